"""Real archive rows through exactly the code that the sensor uses, held against an independent count."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from panoramic.associations import index_of
from panoramic.errors import InputError
from panoramic.fields import field_name
from panoramic.observations import parse_rows
from panoramic.survey import ExposureRules, Survey
from panoramic_assets import cli
from panoramic_assets.ingest import ingest
from panoramic_assets.replay import parse_date, report_lines, saved_look
from resources import tables as t
from resources.database import Database

SURVEY = "name: replayed\narchive: {kind: mast}\nrecorded_detectors: [NRCA1, NRCB1, NRCALONG, NRCBLONG]\n"
NIRCAM = re.compile(
    r"^(jw\d{11}_\w{5}_\d{5}_nrc(?:a|b)(?:[1-4]|long))_(rate|rateints|cal|calints|uncal|trapsfilled)\.fits$"
)
REFUSED_PUPILS = {"GRISMR", "GRISMC", "WLP8", "WLM8", "GDHS0", "GDHS60", "PINHOLES", "MASKIPR"}


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    return Survey.parse(SURVEY, tmp_path / "replayed.yaml")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'replay.db'}")
    database.migrate()
    return database


def state(database: Database) -> dict[str, list]:
    """All rows of the tables that an ingest writes, without the dates of looks."""
    found = {}
    with database.read() as connection:
        for table in (t.fields, t.observations, t.archive_faults, t.refusals):
            columns = [c for c in table.columns if c.name not in ("last_seen", "looked_at", "seen")]
            found[table.name] = sorted(map(repr, connection.execute(sa.select(*columns))))
    return found


def independent_count(path: Path, at: str) -> dict[str, set[str]]:
    """Datasets of a saved reply by what they are, counted by pandas alone."""
    table = pd.read_csv(path, low_memory=False, dtype={"pupil": str})
    table["dataset"] = [m.group(1) if (m := NIRCAM.match(str(f))) else "" for f in table["filename"]]
    table = table[table["dataset"] != ""]
    refused = table[
        (table["exp_type"] != "NRC_IMAGE") | (table["subarray"] != "FULL") | table["pupil"].isin(REFUSED_PUPILS)
    ]
    days = (pd.Timestamp(at) - pd.Timestamp("1858-11-17")) / pd.Timedelta(days=1)
    return {
        "all": set(table["dataset"]),
        "refused": set(refused["dataset"]),
        "unreleased": set(table.loc[table["publicReleaseDate_mjd"] > days, "dataset"]),
    }


def test_snapshots_day_by_day(shared_data: Path, database: Database, survey: Survey) -> None:
    known: set[str] = set()
    seen_before: set[str] = set()
    for path in sorted((shared_data / "mast" / "snapshots").glob("*.csv.gz")):
        day = path.name[:10]
        truth = independent_count(path, f"{day} 12:00")
        at = datetime.fromisoformat(f"{day}T12:00:00")
        found = ingest(database, survey, saved_look(path, complete=False), at)
        usable = truth["all"] - truth["refused"]
        assert set(found.refused) == truth["refused"], day
        assert set(found.new) == usable - known, day
        assert found.changed == [], day
        assert set(found.unchanged) == truth["all"] & known, day
        assert set(found.not_seen) == known - truth["all"], day
        assert found.gone == []
        assert set(found.unreleased) == truth["unreleased"], day
        assert not found.errors, found.errors[:3]
        known |= usable
        seen_before |= truth["all"]
        before = state(database)
        again = ingest(database, survey, saved_look(path, complete=False), at)
        assert (again.new, again.changed, again.touched_fields, again.new_fields) == ([], [], [], [])
        assert state(database) == before, day
    assert len(known) > 200


def test_what_becomes_public_touches_its_field(shared_data: Path, database: Database, survey: Survey) -> None:
    path = shared_data / "mast" / "snapshots" / "2026-08-08.csv.gz"
    first = ingest(database, survey, saved_look(path, complete=False), datetime(2026, 8, 8))
    assert first.unreleased
    later = ingest(database, survey, saved_look(path, complete=False), datetime(2027, 8, 8))
    assert later.unreleased == []
    with database.read() as connection:
        fields = {name for _, name, e in database.latest(connection).values() if e.dataset in set(first.unreleased)}
    assert set(later.touched_fields) == fields


def test_snapshots_through_the_sensor_and_the_assets(shared_data: Path, platform_of) -> None:
    platform = platform_of(SURVEY.replace("kind: mast", "kind: folder, path: nowhere"))
    runs: list[tuple[str, str]] = []
    for path in sorted((shared_data / "mast" / "snapshots").glob("*.csv.gz"))[:3]:
        rows = [r for r in saved_look(path, complete=False).rows if r["instrume"] == "NIRCAM"][:60]
        platform.sky.rows = rows
        before = set(platform.home.database.data_versions().items())
        platform.tick()
        changed = {name for name, version in set(platform.home.database.data_versions().items()) - before}
        for name in sorted(changed):
            for asset in ("observations", "associations"):
                runs.append((asset, name))
                result = platform.materialize(asset, name)
                assert result.success
                failed = {c.check_name for c in result.get_asset_check_evaluations() if not c.passed}
                assert not failed & {"associations_unique"}, failed
        assert not platform.tick().asset_events  # the same day again: nothing to run
    versions = platform.home.database.data_versions()
    assert versions
    for name in versions:
        usable = {e.dataset for e in platform.home.database.exposures(name) if not e.refused and e.is_available(1e9)}
        rows = platform.home.database.exposure_rows(name)
        assert {r["dataset"] for r in rows} <= usable
        names = [r["assoc_name"] for r in platform.home.database.association_rows(name)]
        assert sorted(map(index_of, names)) == list(range(1, len(names) + 1))


def test_reprocessed_files_are_revisions(shared_data: Path, database: Database, survey: Survey) -> None:
    """Each pair of the table as an earlier and a later reply; the table has no positions, so they are made up."""
    pairs = pd.read_csv(shared_data / "mast" / "reprocessed_files.csv", low_memory=False)
    pairs = pairs[pairs["filename"].str.match(NIRCAM.pattern) & (pairs["exp_type"] == "NRC_IMAGE")]
    pairs = pairs.sort_values(["filename", "ArchiveFileID"])
    earlier, later = pairs.groupby("filename").first().reset_index(), pairs.groupby("filename").last().reset_index()
    assert len(earlier) > 300

    def reply(table: pd.DataFrame) -> list[dict]:
        rows = []
        for number, row in enumerate(table.to_dict("records")):
            ra, dec = (number * 7.3) % 360, (number % 120) - 60.0
            corners = [(ra, dec), (ra + 0.03, dec), (ra + 0.03, dec + 0.03), (ra, dec + 0.03)]
            region = "POLYGON ICRS " + " ".join(f"{a} {b}" for a, b in corners)
            rows.append(row | {"s_region": region, "pupil": "CLEAR", "expstart": 60800.0, "expend": 60800.01})
        return rows

    look = saved_look(shared_data / "mast" / "pure_parallel_nircam.csv", complete=False)
    at = datetime(2026, 1, 1)
    first = ingest(database, survey, dataclasses.replace(look, rows=reply(earlier)), at)
    assert not first.errors
    files = {f: f.rsplit("_", 1)[0] for f in earlier["filename"]}
    # a dataset is one, however many of its products were reprocessed
    assert set(first.new) == set(files.values())
    second = ingest(database, survey, dataclasses.replace(look, rows=reply(later)), at)
    assert set(second.changed) == set(files.values())
    assert second.new == []
    third = ingest(database, survey, dataclasses.replace(look, rows=reply(later)), at)
    assert (third.changed, third.touched_fields) == ([], [])
    with database.read() as connection:
        assert {revision for revision, _, _ in database.latest(connection).values()} == {2}


def test_a_window_that_shows_a_lesser_product_takes_nothing_over(
    database: Database, survey: Survey, shared_data
) -> None:
    look = saved_look(shared_data / "mast" / "nircam_image.csv.gz", complete=False)
    row = next(r for r in look.rows if r["filename"].endswith("_rate.fits"))
    lesser = row | {"filename": row["filename"].replace("_rate", "_rateints"), "ArchiveFileID": 1, "checksum": "f" * 32}
    at = datetime(2027, 1, 1)
    ingest(database, survey, dataclasses.replace(look, rows=[row]), at)
    before = state(database)
    for rows in ([lesser], [row, lesser], [lesser, row]):
        found = ingest(database, survey, dataclasses.replace(look, rows=rows), at)
        assert (found.new, found.changed) == ([], [])
        assert state(database) == before


def test_all_real_rows(shared_data: Path, database: Database, survey: Survey) -> None:
    look = saved_look(shared_data / "mast" / "nircam_image.csv.gz", complete=True)
    found = ingest(database, survey, look, datetime(2027, 1, 1))
    assert len(found.new) + len(found.refused) == 7122
    assert not found.errors
    assert len(found.new_fields) == len(set(found.new_fields)) > 100
    fewer = dataclasses.replace(look, rows=look.rows[:1000])
    gone = ingest(database, survey, fewer, datetime(2027, 1, 1)).gone
    shown = set(parse_rows(fewer.rows, "rows", ExposureRules()).exposures)
    assert set(gone) == set(found.new) - shown
    assert len(database.data_versions()) == len(found.new_fields)  # nothing is deleted for it


# --- the real night of j100032p0208 -----------------------------------------------------------


def night(shared_data: Path) -> list[dict]:
    """The night's 70 exposures as archive rows; positions are made up, for the table has none."""
    table = pd.read_csv(shared_data / "panoramic" / "visit_exposure_lists.csv")
    rows = []
    for line in table.to_dict("records"):
        visit_id, detector = f"{line['visit_id']:012d}"[1:], line["detector"].lower()
        numbers = [int(n) for n in str(line["exposures"]).split()]
        for k, number in enumerate(numbers):
            # a number that stands twice is the first exposure of two activities
            activity = f"{'03' if len(set(numbers)) > 1 else '04' if k == 0 else '05'}201"
            ra, dec = (
                150.13 + (0.02 if "long" in detector else 0.01 * int(detector[-1])) * (-1) ** ("a" in detector),
                2.13,
            )
            side = 0.036 if "long" in detector else 0.017
            corners = [(ra, dec), (ra + side, dec), (ra + side, dec + side), (ra, dec + side)]
            rows.append(
                {
                    "filename": f"jw{visit_id}_{activity}_{number:05d}_{detector}_rate.fits",
                    "filter": line["inst_mode"].removeprefix("NIRCAM-"), "pupil": line["pupil"],
                    "s_region": "POLYGON ICRS " + " ".join(f"{a} {b}" for a, b in corners), "exp_type": "NRC_IMAGE",
                    "subarray": "FULL", "expstart": 60300.0 + k / 100, "expend": 60300.005 + k / 100,
                    "effexptm": 773.0, "ArchiveFileID": len(rows) + 1, "checksum": f"{len(rows):032x}", "fileSize": 1,
                    "publicReleaseDate_mjd": 60300.0,
                }
            )  # fmt: skip
    return rows


def test_the_real_night(shared_data: Path, platform_of) -> None:
    platform = platform_of(SURVEY.replace("kind: mast", "kind: folder, path: nowhere").split("recorded")[0])
    rows = night(shared_data)
    assert len(rows) == 70
    platform.sky.rows = rows
    platform.tick()
    (name,) = platform.home.database.data_versions()
    for asset in ("observations", "associations"):
        assert platform.materialize(asset, name).success
    made = platform.home.database.associations(name)
    assert len(made) == 30
    by_filter: dict[str, int] = {}
    for association in made:
        by_filter[association.first.filter] = by_filter.get(association.first.filter, 0) + len(association.exposures)
        form = rf"^{name}_v\d{{3}}-2514-{association.first.filter.lower()}_\d{{5}}$"
        assert re.match(form, association.name), association.name
    recorded = pd.read_csv(shared_data / "panoramic" / "field_filter_exptime.csv")
    assert by_filter == {r["filter"].removeprefix("NC."): r["n_exposures"] for r in recorded.to_dict("records")}
    sizes = {len(a.exposures) for a in made}
    assert sizes == {2, 3}
    listed = pd.read_csv(shared_data / "panoramic" / "dataurl_assoc.csv")
    recorded_form = re.compile(r"^j\d{6}[pm]\d{4}_v\d{3}-\d+-f\d{3}[wmn]_\d{5}$")
    assert all(recorded_form.match(n) for n in listed["assoc_name"])


def test_adopted_names_stay_and_new_indices_go_on(shared_data: Path, platform_of) -> None:
    from panoramic.adoption import adopt
    from resources.adoption import read_csv, write_adoption

    platform = platform_of(SURVEY.replace("kind: mast", "kind: folder, path: nowhere").split("recorded")[0])
    listed = shared_data / "panoramic" / "dataurl_assoc.csv"
    # the field's recorded name is adopted; the rows of the night lie elsewhere by their made-up positions
    unseen = [{"assoc_name": "j100032p0208_v163-2514-f090w_00077", "dataURL": ""}]
    source, rows = read_csv(listed)
    adoption = adopt(
        ("fields", [{"name": "j100032p0208", "ra": 150.13, "dec": 2.13}]), (source, [*rows, *unseen]), None
    )
    write_adoption(platform.home.database, adoption)
    assert platform.home.database.data_versions() == {}  # nothing to run before the archive shows something
    platform.sky.rows = night(shared_data)
    platform.tick()
    assert list(platform.home.database.data_versions()) == ["j100032p0208"]
    for asset in ("observations", "associations"):
        result = platform.materialize(asset, "j100032p0208")
        assert result.success
    assert all(c.passed for c in result.get_asset_check_evaluations() if c.check_name == "associations_unique")
    made = {a.name: a for a in platform.home.database.associations("j100032p0208", ready_only=False)}
    recorded = {
        row["dataURI"].rsplit("/", 1)[1][:-10]: row["assoc_name"] for row in pd.read_csv(listed).to_dict("records")
    }
    placed = {e.dataset: a.name for a in made.values() for e in a.exposures}
    shown = {d: name for d, name in recorded.items() if d in placed}
    assert shown
    assert {d: placed[d] for d in shown} == shown
    fresh = set(made) - set(recorded.values())
    assert min(map(index_of, fresh)) == 78  # after the highest, though the archive has shown nothing of it
    assert len(set(map(index_of, made))) == len(made)


def test_the_names_of_the_surveys_fields(shared_data: Path) -> None:
    """By the rule from their positions, but for fields that were merged or named from an earlier mean."""
    table = pd.read_csv(shared_data / "panoramic" / "fields.csv")
    differ = {
        row["field"]: name
        for row in table.to_dict("records")
        if (name := field_name(row["ra_deg"], row["dec_deg"])) != row["field"]
    }
    assert differ == {
        "j014428p1715": "j014428p1714",
        "j033212m2745": "j033204m2746",
        "j033224m2756": "j033216m2757",
        "j093144p0819": "j093144p0820",
        "j100028p0215": "j100028p0218",
        "j123800p6217": "j123756p6215",
    }
    merges = Survey.load(Path(cli.__file__).parents[1] / "surveys" / "panoramic.yaml").fields.merges
    assert {kept: gone[0] for kept, gone in merges.items()} == differ


# --- the command line -------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PANORAMIC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    (tmp_path / "replayed.yaml").write_text(SURVEY)

    def run(*arguments: str):
        return CliRunner().invoke(cli.app, [str(a) for a in arguments])

    run.survey = str(tmp_path / "replayed.yaml")
    run.home = tmp_path / "home"
    return run


def test_rows_are_replayed_from_the_command_line(command, shared_data: Path) -> None:
    path = shared_data / "mast" / "snapshots" / "2026-08-10.csv.gz"
    wanted = ["ingest", "--rows", path, "--at", "2026-08-10", "--survey", command.survey, "--json"]
    rehearsed = command(*wanted, "--dry-run")
    assert rehearsed.exit_code == 0, rehearsed.output
    assert not command.home.exists() or not (command.home / "survey.db").exists()
    first = json.loads(rehearsed.stdout)
    assert first["dry_run"]
    done = json.loads(command(*wanted).stdout)
    assert {**done, "dry_run": True} == first
    again = json.loads(command(*wanted, "--dry-run").stdout)
    assert (again["new"], again["touched_fields"]) == ([], [])
    assert len(again["unchanged"]) == len(first["new"])
    text = command("ingest", "--rows", path, "--at", "2026-08-10", "--survey", command.survey).stdout
    assert f"{len(first['new'])} unchanged" in text
    assert "fields touched: none" in text


def test_bad_replays_are_refused(command, tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("filename,filter\n")
    for arguments, said in (
        (["--rows", tmp_path / "absent.csv"], "can't be read"),
        (["--rows", empty], "has no row"),
        (["--rows", empty, "--at", "yesterday"], "is no date"),
        (["--at", "2026-01-01"], "belong to --rows"),
    ):
        done = command("ingest", "--survey", command.survey, *arguments)
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stdout.split()), done.stdout


def test_a_group_is_released_by_hand(command, shared_data: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame(night(shared_data)).iloc[:]
    gone = rows["filename"].str.contains("162001_03201_00002_nrcb1_")
    rows[~gone].to_csv(tmp_path / "rows.csv", index=False)
    wanted = ["ingest", "--rows", tmp_path / "rows.csv", "--survey", command.survey]
    first = command(*wanted, "--json")
    assert json.loads(first.stdout)["incomplete"] == {"jw02514162001_03201_00002_nrcb1": "not in the archive"}
    nobody = command("release-group", "02514162001_03201_F115W_CLEAR_NRCB9", "--reason", "x")
    assert nobody.exit_code == 2
    assert "NRCB1" in nobody.stdout
    done = command("release-group", "02514162001_03201_*_nrcb1", "--reason", "the second dither is lost")
    assert done.exit_code == 0, done.stdout
    again = json.loads(command(*wanted, "--json").stdout)
    assert len(again["touched_fields"]) == 1
    assert json.loads(command(*wanted, "--json").stdout)["touched_fields"] == []
    assert command("release-group", "*", "--reason", "x").exit_code == 2  # nothing waits any more


def test_dates() -> None:
    assert parse_date("2026-08-10") == datetime(2026, 8, 10)
    assert parse_date("2026-08-10T02:00:00+02:00") == datetime(2026, 8, 10)
    with pytest.raises(InputError):
        parse_date("10.8.2026")


def test_the_report_is_short_for_people(shared_data: Path, database: Database, survey: Survey) -> None:
    found = ingest(
        database, survey, saved_look(shared_data / "mast" / "nircam_image.csv.gz", complete=False), datetime(2027, 1, 1)
    )
    lines = list(report_lines(found))
    assert len(lines) < 60
    grisms = saved_look(shared_data / "mast" / "pure_parallel_nircam.csv", complete=False)
    lines = list(report_lines(ingest(database, survey, grisms, datetime(2027, 1, 1))))
    assert any(line.startswith("  refused: exposure type NRC_WFSS") for line in lines), lines


def test_formats_give_the_same_rows(shared_data: Path, tmp_path: Path) -> None:
    from astropy.table import Table

    path = shared_data / "mast" / "pure_parallel_nircam.csv"
    plain = saved_look(path, complete=False).rows
    table = Table.read(path, format="ascii.csv", converters={"act_id": str})
    table.write(tmp_path / "rows.vot", format="votable")
    table.write(tmp_path / "rows.ecsv")
    (tmp_path / "rows.csv.gz").write_bytes(__import__("gzip").compress(path.read_bytes()))
    for name in ("rows.vot", "rows.ecsv", "rows.csv.gz"):
        other = saved_look(tmp_path / name, complete=False).rows
        a, b = (parse_rows(rows, "x", ExposureRules()).exposures for rows in (plain, other))
        assert {d: (e.filter, e.pupil, e.checksum, e.file_id, e.refused) for d, e in a.items()} == {
            d: (e.filter, e.pupil, e.checksum, e.file_id, e.refused) for d, e in b.items()
        }, name
        assert np.allclose([a[d].ra for d in sorted(a)], [b[d].ra for d in sorted(b)])


# --- completeness on real rows ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        ("162001_03201_00002_nrca3_", {"jw02514162001_03201_00002_nrca3"}),
        ("162001_03201_0000._nrca3_", {"jw02514162001_03201_*_nrca3"}),
        ("162001_03201_0000._nrcb", {f"jw02514162001_03201_*_nrcb{k}" for k in ("1", "2", "3", "4", "long")}),
        ("162001_03201_0000._nrc.long_", {f"jw02514162001_03201_*_nrc{m}long" for m in "ab"}),
    ],
    ids=["exposure", "detector", "module", "filter"],
)
def test_what_is_taken_out_of_real_rows_is_found(shared_data, database, tmp_path, pattern, missing) -> None:
    detectors = [f"NRC{m}{k}" for m in "AB" for k in ("1", "2", "3", "4", "LONG")]
    text = f"name: replayed\narchive: {{kind: mast}}\nexpected: {{detectors: [{', '.join(detectors)}]}}\n"
    survey = Survey.parse(text, tmp_path / "s.yaml")
    rows = night(shared_data)
    look = dataclasses.replace(saved_look(shared_data / "mast" / "pure_parallel_nircam.csv", False), rows=rows)
    assert ingest(database, survey, look, datetime(2027, 1, 1)).incomplete == {}
    other = Database(f"sqlite:///{tmp_path / 'other.db'}")
    other.migrate()
    look = dataclasses.replace(look, rows=[r for r in rows if not re.search(pattern, r["filename"])])
    assert set(ingest(other, survey, look, datetime(2027, 1, 1)).incomplete) == missing


# --- what a second look may not change ---------------------------------------------------------


def rows_of(shared_data: Path, count: int = 40) -> list[dict]:
    look = saved_look(shared_data / "mast" / "nircam_image.csv.gz", complete=False)
    return [r for r in look.rows if r["filename"].endswith("_rate.fits")][:count]


def took(
    database: Database, survey: Survey, rows: list[dict], complete: bool = False, at: datetime = datetime(2027, 1, 1)
):
    from resources.archive import ArchiveLook

    return ingest(database, survey, ArchiveLook(rows, source="rows", complete=complete), at)


def test_an_older_reply_is_passed_over(shared_data, database, survey) -> None:
    rows = rows_of(shared_data)
    newer = [r | {"ArchiveFileID": r["ArchiveFileID"] + 10, "checksum": "e" * 32} for r in rows]
    took(database, survey, newer)
    before = state(database)
    found = took(database, survey, rows)
    assert len(found.older) == len({r["filename"] for r in rows})
    assert (found.changed, found.touched_fields) == ([], [])
    assert state(database) == before


def test_a_program_that_leaves_the_survey_file_leaves_the_work(shared_data, database, survey) -> None:
    rows = rows_of(shared_data, 400)
    programs = sorted({int(r["filename"][2:7]) for r in rows})
    assert len(programs) > 1
    took(database, survey, rows, complete=True)
    fewer = survey.model_copy(update={"programs": (programs[0],)})
    shown = [r for r in rows if int(r["filename"][2:7]) == programs[0]]
    found = took(database, fewer, shown, complete=True)
    assert found.gone == []
    assert found.touched_fields
    with database.read() as connection:
        states = {e.program: bool(e.refused) for _, _, e in database.latest(connection).values()}
    assert states == {p: p != programs[0] for p in programs}
    assert took(database, survey, shown).touched_fields  # and comes back with it
    assert took(database, survey, shown).touched_fields == []


def test_the_words_of_a_refusal_touch_nothing(shared_data, database, survey) -> None:
    rows = rows_of(shared_data)
    took(database, survey, rows)
    for extra in ("NRC_TSIMAGE", "NRC_GRISM"):
        rules = survey.exposures.model_copy(update={"exp_types": (extra,)})
        found = took(database, survey.model_copy(update={"exposures": rules}), rows)
    assert found.touched_fields == []


def test_a_window_of_a_lesser_product_does_not_flip_versions(shared_data, database, survey) -> None:
    rows = rows_of(shared_data)
    took(database, survey, rows)
    lesser = [
        r | {"filename": r["filename"].replace("_rate.", "_rateints."), "publicReleaseDate_mjd": 99999.0} for r in rows
    ]
    assert took(database, survey, lesser).touched_fields == []
    assert took(database, survey, []).touched_fields == []


def test_adopted_fields_draw_their_exposures_by_position(shared_data, database, survey) -> None:
    from panoramic.adoption import adopt
    from resources.adoption import write_adoption

    rows = rows_of(shared_data, 400)
    other = Database(f"{database.url}.other")
    other.migrate()
    names = took(other, survey, rows).new_fields
    fields = [{"name": n, "ra": other.field(n)["ra"], "dec": other.field(n)["dec"]} for n in names]
    write_adoption(database, adopt(("fields", fields), None, None))
    found = took(database, survey, rows)
    assert found.new_fields == []
    assert set(database.data_versions()) == set(names)


def test_a_merge_before_all_is_shown_keeps_adopted_associations_whole(database, tmp_path) -> None:
    from panoramic.adoption import adopt
    from resources.adoption import write_adoption

    name = "j000000p0000_v001-2514-f444w_00007"
    rows = [
        {
            "filename": f"jw02514001001_02201_0000{k}_nrcblong_rate.fits", "filter": "F444W", "pupil": "CLEAR",
            "exp_type": "NRC_IMAGE", "subarray": "FULL", "s_region": "POLYGON ICRS 0.1 0 0.13 0 0.13 0.03 0.1 0.03",
            "expstart": 60000.0, "publicReleaseDate_mjd": 60000.0, "ArchiveFileID": k,
        }
        for k in (1, 2)
    ]  # fmt: skip
    listed = [{"assoc_name": name, "dataURL": r["filename"], "ra": 0.1, "dec": 0.0} for r in rows]
    write_adoption(database, adopt(None, ("assoc", listed), None))
    text = SURVEY + "fields: {merges: {j111111p1111: [j000000p0000]}}\n"
    merged = Survey.parse(text, tmp_path / "merged.yaml")
    for shown in (rows[:1], rows[1:]):
        assert set(took(database, merged, shown).moved.values()) <= {"j111111p1111"}
    with database.read() as connection:
        assert set(database.known_associations(connection, "j111111p1111").values()) == {name}
        assert len(database.known_associations(connection, "j111111p1111")) == 2


def test_json_is_json_whatever_happens(command, tmp_path: Path) -> None:
    done = command("ingest", "--rows", tmp_path / "absent.csv", "--survey", command.survey, "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"] == "ArchiveRowError"
