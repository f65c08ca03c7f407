"""Ingest and report: one transaction, no duplicate, nothing lost between the two databases."""

from __future__ import annotations

from datetime import datetime

import dagster as dg
import pytest
import sqlalchemy as sa

from panoramic.survey import Survey
from panoramic_assets.ingest import ingest, mjd
from panoramic_assets.reporting import MAST_ARCHIVE, report, unreported
from resources import tables as t
from resources.archive import ArchiveFault, ArchiveLook

AT = datetime(2026, 1, 1)


def counts(platform) -> dict[str, int]:
    with platform.home.database.read() as connection:
        return {x.name: connection.scalar(sa.select(sa.func.count()).select_from(x)) for x in t.metadata.sorted_tables}


def events(platform) -> int:
    return len(platform.instance.fetch_materializations(MAST_ARCHIVE, limit=100).records)


def test_the_same_look_again_changes_nothing(two_fields) -> None:
    platform, first, _ = two_fields
    before = counts(platform)
    version = platform.home.database.field(first)["data_version"]
    found = platform.ingest()
    assert (found.new, found.changed, found.touched_fields) == ([], [], [])
    assert len(found.unchanged) == 8
    assert counts(platform) == before
    assert platform.home.database.field(first)["data_version"] == version
    assert events(platform) == 2


def test_each_look_makes_at_most_one_revision(two_fields) -> None:
    platform, first, second = two_fields
    row = platform.sky.rows[0]
    platform.sky.rows[0] = row | {"ArchiveFileID": 2, "checksum": "b"}
    platform.sky.rows.append(row | {"ArchiveFileID": 3, "checksum": "c"})
    found = platform.ingest()
    assert len(found.changed) == 1
    assert found.touched_fields == [first]
    with platform.home.database.read() as connection:
        revision, _, exposure = platform.home.database.latest(connection)[found.changed[0]]
    assert (revision, exposure.checksum) == (2, "c")
    assert platform.ingest().changed == []


def test_a_failure_in_the_middle_leaves_nothing(platform, monkeypatch) -> None:
    platform.add_visit(150.0, 2.0, 1)

    def broken(*_: object) -> None:
        raise RuntimeError("killed here")

    monkeypatch.setattr("panoramic_assets.ingest._write_data_versions", broken)
    with pytest.raises(RuntimeError):
        platform.ingest()
    assert all(n == 0 for name, n in counts(platform).items() if name not in ("home",))
    monkeypatch.undo()
    assert len(platform.ingest().new) == 4


def test_a_kill_between_the_databases_loses_nothing(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    ingest(platform.home.database, platform.home.survey, platform.home.archive.look(), AT)
    assert events(platform) == 0
    assert len(unreported(platform.home.database, platform.instance)) == 1
    assert report(platform.home.database, platform.instance) == platform.home.database.field_names()
    assert report(platform.home.database, platform.instance) == []
    assert platform.instance.get_dynamic_partitions("fields") == platform.home.database.field_names()


def test_bad_rows_are_named_and_hold_nothing_else_up(two_fields) -> None:
    platform, first, _ = two_fields
    broken = dict(platform.sky.rows[0]) | {"filename": "jw09001001001_02201_00003_nrcb1_rate.fits", "s_region": None}
    null = dict(platform.sky.rows[0]) | {"filename": "jw09001001001_02201_00004_nrcb1_rate.fits", "filter": "nan"}
    platform.sky.rows += [broken, null, {"filename": "notes.txt"}]
    found = platform.ingest()
    assert {e.split("column ")[1].split(":")[0] for e in found.errors} == {"'s_region'", "'filter'", "'filename'"}
    assert found.new == []
    faults = {f["dataset"]: f["reason"] for f in platform.home.database.faults()}
    assert "s_region" in faults["jw09001001001_02201_00003_nrcb1"]


def test_faults_are_those_of_the_last_look(two_fields) -> None:
    platform, _, _ = two_fields
    look = platform.home.archive.look()
    look.faults.append(ArchiveFault("jw09001001001_02201_00009_nrcb1_rate.fits", "cut", "truncated"))
    ingest(platform.home.database, platform.home.survey, look, AT)
    assert [f["kind"] for f in platform.home.database.faults()] == ["truncated"]
    platform.ingest()
    assert platform.home.database.faults() == []


def test_unreleased_exposures_wait_for_their_date(platform) -> None:
    release = mjd(datetime(2030, 1, 1))
    platform.add_visit(150.0, 2.0, 1, publicReleaseDate_mjd=release)
    found = platform.ingest()
    assert len(found.unreleased) == 4
    (name,) = platform.home.database.field_names()
    version = platform.home.database.field(name)["data_version"]
    later = ingest(platform.home.database, platform.home.survey, platform.home.archive.look(), datetime(2030, 1, 2))
    assert later.touched_fields == [name]
    assert platform.home.database.field(name)["data_version"] != version


def test_other_programs_are_refused(two_fields) -> None:
    platform, _, _ = two_fields
    platform.sky.rows.append(platform.sky.rows[0] | {"filename": "jw01345001001_02201_00001_nrcb1_rate.fits"})
    found = platform.ingest()
    assert "program 1345" in found.refused["jw01345001001_02201_00001_nrcb1"]
    assert len(platform.home.database.field_names()) == 2


def test_exposures_that_left_the_archive_are_kept_and_counted(two_fields) -> None:
    platform, first, _ = two_fields
    gone = next(r for r in platform.sky.rows if "jw09001001" in r["filename"])
    platform.sky.rows.remove(gone)
    platform.ingest()
    result = platform.run(first)
    assert not platform.checks(result)["observations.archive_count"].passed
    assert len(platform.home.database.exposures(first)) == 4


def test_a_window_is_no_full_look(two_fields) -> None:
    platform, first, _ = two_fields
    before = platform.home.database.field(first)["archive_count"]
    ingest(platform.home.database, platform.home.survey, ArchiveLook([dict(platform.sky.rows[0])], complete=False), AT)
    assert platform.home.database.field(first)["archive_count"] == before


# --- the sensor -------------------------------------------------------------------------------


def test_the_sensor_finds_new_fields_once(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    data = platform.tick()
    (name,) = platform.home.database.field_names()
    assert [e.partition for e in data.asset_events] == [name]
    assert platform.instance.get_dynamic_partitions("fields") == [name]
    again = platform.tick()
    assert not again.asset_events
    assert "nothing new" in again.skip_message


def test_an_archive_that_cant_be_read_changes_nothing(two_fields) -> None:
    platform, _, _ = two_fields
    platform.sky.unreachable = True
    before = counts(platform)
    data = platform.tick()
    assert "the archive is gone" in data.skip_message
    assert counts(platform) == before


# --- automation -------------------------------------------------------------------------------

STAGES = ["observations", "associations", "astrometric_reference", "preprocessed_visits", "mosaics"]


def asked(platform, cursor=None):
    """One tick of the automation conditions: what is asked for, by asset and field."""
    result = dg.evaluate_automation_conditions(platform.definitions, platform.instance, cursor=cursor)
    requested = {
        (name, key) for name in STAGES for key in result.get_requested_partitions(dg.AssetKey(name)) if key is not None
    }
    return requested, result.cursor


def in_order(requested):
    """Upstream first: one tick may ask for several stages of a field, which Dagster then runs in this order."""
    return sorted(requested, key=lambda pair: (pair[1], STAGES.index(pair[0])))


def materialize(platform, requested) -> None:
    for name, partition in in_order(requested):
        platform.materialize(name, partition)


def drive(platform, cursor, ticks=8):
    """Tick until nothing more is asked for; returns all that was asked, in order."""
    order = []
    for _ in range(ticks):
        requested, cursor = asked(platform, cursor)
        order += in_order(requested)
        materialize(platform, requested)
    return order, cursor


def test_new_data_become_mosaics_by_themselves(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    _, cursor = asked(platform)
    platform.tick()
    (name,) = platform.home.database.field_names()
    order, cursor = drive(platform, cursor)
    assert order == [(stage, name) for stage in STAGES]
    assert len(platform.home.database.mosaics(name)) == 2
    platform.tick()
    assert drive(platform, cursor, 2)[0] == []


def test_a_blocked_field_stops_and_the_other_goes_on(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(10.0, -40.0, 2)
    from panoramic.footprints import parse_s_region

    platform.sky.false_reference = [
        parse_s_region(r["s_region"]) for r in platform.sky.rows if "jw09001001" in r["filename"]
    ]
    _, cursor = asked(platform)
    platform.tick()
    order, _ = drive(platform, cursor)
    first, second = platform.home.database.field_names()
    assert [stage for stage, name in order if name == second] == STAGES
    assert [stage for stage, name in order if name == first] == STAGES[:3]


def test_a_new_revision_runs_each_stage_once_more(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    _, cursor = asked(platform)
    platform.tick()
    _, cursor = drive(platform, cursor)
    platform.sky.rows[0] |= {"ArchiveFileID": 2, "checksum": "1" * 32}
    platform.tick()
    order, _ = drive(platform, cursor)
    assert [stage for stage, _ in order] == STAGES


def test_fields_reported_before_automation_looked_are_caught_up(two_fields) -> None:
    platform, first, second = two_fields
    requested, _ = asked(platform)
    assert {("observations", first), ("observations", second)} <= requested


def test_a_damaged_file_that_goes_away_is_new_data(two_fields) -> None:
    platform, first, second = two_fields
    fault = {"filename": "jw09001001001_02201_00003_nrcb1_rate.fits", "_fault": "truncated"}
    platform.sky.rows.append(fault)
    assert platform.ingest().touched_fields == [first]
    platform.sky.rows.remove(fault)
    assert platform.ingest().touched_fields == [first]


def test_a_row_that_was_never_taken_in_is_counted(two_fields) -> None:
    platform, first, second = two_fields
    row = platform.sky.rows[0] | {"filename": "jw09001001001_02201_00003_nrcb1_rate.fits", "s_region": None}
    platform.sky.rows.append(row)
    platform.ingest()
    count = {name: platform.home.database.field(name)["archive_count"] for name in (first, second)}
    assert count == {first: 5, second: 4}
    assert not platform.checks(platform.run(first))["observations.archive_count"].passed


# --- merges and splits of the survey file -------------------------------------------------------


def test_merged_fields_keep_their_names_and_work(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(150.6, 2.0, 2)
    platform.ingest()
    first, second = platform.home.database.field_names()
    for name in (first, second):
        assert platform.run(name).success
    count = len(platform.sky.reduced)
    survey = platform.home.survey.model_dump()
    survey["fields"]["merges"] = {first: [second]}
    platform.home.prepare(Survey.model_validate(survey))
    found = platform.ingest()
    assert set(found.moved.values()) == {first}
    assert len(found.moved) == 4
    assert set(found.touched_fields) == {first, second}
    for name in (second, first):  # the field that gave all away has nothing to do, and says so
        result = platform.run(name)
        failed = [
            c.description for c in platform.checks(result).values() if not c.passed and c.check_name != "no_degradation"
        ]
        assert result.success, failed
    rows = platform.home.database.association_rows(first)
    assert len(rows) == 4
    assert {r["assoc_name"].split("_")[0] for r in rows} == {first, second}
    assert len(platform.sky.reduced) == count  # what was reduced stays reduced
    assert platform.home.database.mosaics(second) == []
    assert len(platform.home.database.mosaics(first)) == 2
    again = platform.ingest()
    assert (again.moved, again.touched_fields) == ({}, [])


def test_a_split_takes_its_exposures_into_a_field_of_their_own(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(150.05, 2.0, 3)
    platform.ingest()
    (parent,) = platform.home.database.field_names()
    survey = platform.home.survey.model_dump()
    survey["fields"]["splits"] = {parent: {"j100100p0200": ["jw09001003*"]}}
    platform.home.prepare(Survey.model_validate(survey))
    found = platform.ingest()
    assert found.new_fields == ["j100100p0200"]
    assert {d[:10] for d in found.moved} == {"jw09001003"}
    for name in (parent, "j100100p0200"):
        assert platform.run(name).success
        assert len(platform.home.database.exposures(name)) == 4
        assert len(platform.home.database.mosaics(name)) == 2


def test_one_false_reference_holds_its_association_back_and_the_field_goes_on(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(150.1, 2.0, 2)
    from panoramic.footprints import parse_s_region

    bad = [r for r in platform.sky.rows if "jw09001002" in r["filename"]]
    platform.sky.false_reference = [parse_s_region(r["s_region"]) for r in bad]
    _, cursor = asked(platform)
    platform.tick()
    order, _ = drive(platform, cursor)
    (name,) = platform.home.database.field_names()
    assert [stage for stage, _ in order] == STAGES
    statuses = {r["assoc_name"]: r["status"] for r in platform.home.database.association_rows(name)}
    assert {n: s for n, s in statuses.items() if "v002" in n} == dict.fromkeys([n for n in statuses if "v002" in n], 9)
    assert {s for n, s in statuses.items() if "v001" in n} == {2}
    for held in (n for n, s in statuses.items() if s == 9):
        assert platform.home.storage.path(f"{name}/associations/{held}/{held}_alignment.png").exists()
    assert len(platform.home.database.mosaics(name)) == 2
