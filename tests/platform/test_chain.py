"""All stages of a field: what goes on, what is held back, what blocks, and what is done twice (nothing)."""

from __future__ import annotations

import os

import numpy as np
import pytest
import sqlalchemy as sa

from panoramic.alignment import Judgement
from panoramic.footprints import parse_s_region
from panoramic.survey import Survey
from resources import tables as t

BLOCKING = ("relative_alignment", "absolute_alignment")


def test_a_field_reaches_its_mosaics(two_fields) -> None:
    platform, first, _ = two_fields
    result = platform.run(first)
    assert result.success
    answers = platform.checks(result)
    failed = {name: e.description for name, e in answers.items() if not e.passed}
    assert set(failed) == {"preprocessed_visits.no_degradation"}, failed
    assert len(answers) == 17
    mosaics = platform.home.database.mosaics(first)
    assert [m["filter_key"] for m in mosaics] == ["f115w-clear", "f444w-clear"]
    for mosaic in mosaics:
        for product in platform.home.database.products(mosaic["stem"]):
            assert platform.home.storage.path(product["path"]).exists()
    assert not list(platform.home.work.iterdir())


def test_every_check_says_value_limit_and_what_to_do(two_fields) -> None:
    platform, first, _ = two_fields
    for name, evaluation in platform.checks(platform.run(first)).items():
        assert evaluation.description, name
        assert "what to do" in evaluation.metadata, name
        assert "limit" in evaluation.metadata or "failed" in evaluation.metadata, name
        assert evaluation.partition == first


def test_running_twice_does_nothing_twice(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    before = dump(platform)
    count = len(platform.sky.reduced)
    assert platform.ingest().new == []
    result = platform.run(first)
    assert result.success
    assert len(platform.sky.reduced) == count
    assert dump(platform) == before


def dump(platform) -> dict[str, list]:
    """All rows of the tables but for their times."""
    with platform.home.database.read() as connection:
        return {
            table.name: sorted(
                str(
                    {
                        k: v
                        for k, v in row._mapping.items()
                        if k
                        not in ("modtime", "made", "seen", "looked_at", "last_seen", "shift_modtime", "wcs_modtime")
                    }
                )
                for row in connection.execute(sa.select(table))
            )
            for table in t.metadata.sorted_tables
        }


def test_the_short_wave_is_aligned_to_our_own_reference(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    assert [reference for _, reference in platform.sky.reduced] == ["LS_DR9", "own"]


def test_a_false_reference_holds_one_association_back_and_the_others_go_on(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(150.1, 2.0, 2)
    platform.sky.false_reference = [parse_s_region(platform.sky.rows[2]["s_region"])]
    platform.ingest()
    (name,) = platform.home.database.field_names()
    result = platform.run(name)
    answers = platform.checks(result)
    assert result.success
    held = answers["astrometric_reference.nothing_held_back"]
    assert not held.passed
    assert "v001-9001-f444w" in str(held.metadata["details"].value)
    assert all(answers[f"astrometric_reference.{gate}"].passed for gate in BLOCKING)
    rows = {r["assoc_name"]: r for r in platform.home.database.association_rows(name)}
    (bad,) = [n for n in rows if "v001-9001-f444w" in n]
    assert rows[bad]["status"] == 9
    assert platform.home.storage.path(f"{name}/associations/{bad}/{bad}_alignment.png").exists()
    sources = {r["src"] for r in platform.home.database.reference(name)}
    assert sources == {n for n in rows if "v002-9001-f444w" in n}
    (mosaic,) = [m for m in platform.home.database.mosaics(name) if m["filter_key"] == "f444w-clear"]
    assert bad not in mosaic["result"]
    assert "v002" in mosaic["result"]


def test_a_field_without_an_aligned_reference_is_blocked(two_fields) -> None:
    platform, first, second = two_fields
    platform.sky.false_reference = [
        parse_s_region(r["s_region"]) for r in platform.sky.rows if "jw09001001" in r["filename"]
    ]
    result = platform.run(first)
    answers = platform.checks(result)
    assert not result.success
    assert not answers["astrometric_reference.absolute_alignment"].passed
    assert not any(name.startswith("preprocessed_visits") for name in answers)
    assert platform.home.database.mosaics(first) == []
    assert platform.home.database.reference(first) == []
    assert platform.run(second).success


def test_a_bad_relative_fit_is_held_back_after_its_second_attempt(two_fields) -> None:
    platform, first, _ = two_fields
    (name,) = [r["assoc_name"] for r in association_rows(platform, first) if "f115w" in r["assoc_name"]]
    platform.sky.bad_relative = {name}
    result = platform.run(first)
    assert result.success
    assert [m["filter_key"] for m in platform.home.database.mosaics(first)] == ["f444w-clear"]
    # another catalogue can't help; other parameters and the visit's pointing might have
    attempts = [r["attempt"] for r in platform.home.database.reference_tries(first) if r["assoc"] == name]
    assert attempts.count("first") == 1
    assert {"second", "visit"} <= set(attempts)
    answers = platform.checks(result)
    assert not answers["mosaics.nothing_held_back"].passed


def association_rows(platform, field: str):
    """Association rows; the stage that names them is run first."""
    job = platform.definitions.resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        partition_key=field, instance=platform.instance,
        asset_selection=[__import__("dagster").AssetKey("observations"), __import__("dagster").AssetKey("associations")],
    )  # fmt: skip
    return platform.home.database.association_rows(field)


def test_what_a_person_accepts_against_its_numbers_is_caught_by_the_mosaic(two_fields) -> None:
    """The engine moved its solution and says nothing; somebody believes it; the mosaic is measured once more."""
    platform, first, _ = two_fields
    (name,) = [r["assoc_name"] for r in association_rows(platform, first) if "f115w" in r["assoc_name"]]
    platform.sky.moved = {name: 0.3}
    assert platform.run(first).success
    association = platform.home.database.association(name)
    assert not platform.home.database.reduction(name).verdict.accepted
    platform.home.database.put_judgement(association, Judgement("accepted", "it looks fine", "vera", "2026-01-01"))
    answers = platform.checks(platform.run(first))
    assert answers["preprocessed_visits.absolute_alignment"].passed
    astrometry = answers["mosaics.mosaic_astrometry"]
    assert not astrometry.passed
    assert name in astrometry.description


def test_a_killed_engine_is_tried_again(two_fields) -> None:
    platform, first, _ = two_fields
    rows = association_rows(platform, first)
    platform.sky.killed = {r["assoc_name"]: 1 for r in rows if "f115w" in r["assoc_name"]}
    result = platform.run(first)
    assert result.success
    assert len(platform.home.database.mosaics(first)) == 2


def test_a_cause_that_outlives_the_retries_is_held_back(two_fields) -> None:
    platform, first, _ = two_fields
    rows = association_rows(platform, first)
    (name,) = [r["assoc_name"] for r in rows if "f115w" in r["assoc_name"]]
    platform.sky.killed = {name: 9}
    result = platform.run(first)
    assert result.success
    row = {r["assoc_name"]: r for r in platform.home.database.association_rows(first)}[name]
    assert row["status"] == 10
    assert "out of memory" in row["cause"]
    assert [m["filter_key"] for m in platform.home.database.mosaics(first)] == ["f444w-clear"]
    platform.sky.killed = {}
    assert platform.run(first).success
    assert len(platform.home.database.mosaics(first)) == 2


def test_a_file_that_became_bad_after_the_ingest_is_named(two_fields) -> None:
    platform, first, _ = two_fields
    bad = next(r["filename"] for r in platform.sky.rows if "jw09001001" in r["filename"] and "nrcb1" in r["filename"])
    platform.sky.damaged = {bad}
    result = platform.run(first)
    assert result.success
    accounted = platform.checks(result)["preprocessed_visits.exposures_accounted"]
    assert accounted.passed
    assert "md5" in str(accounted.metadata["details"].value)


def test_an_incomplete_group_waits_and_is_taken_up(two_fields) -> None:
    platform, first, _ = two_fields
    row = next(r for r in platform.sky.rows if "jw09001001" in r["filename"] and "nrcb1" in r["filename"])
    platform.sky.rows.remove(row)
    platform.home.database.engine.dispose()
    # a fresh home that never saw the exposure
    with platform.home.database.write() as connection:
        connection.execute(t.observations.delete().where(t.observations.c.filename == row["filename"]))
    platform.ingest()
    result = platform.run(first)
    assert result.success
    assert not platform.checks(result)["observations.exposures_complete"].passed
    states = {r["assoc_name"]: r["status"] for r in platform.home.database.association_rows(first)}
    assert sorted(states.values()) == [2, 70]
    assert [m["filter_key"] for m in platform.home.database.mosaics(first)] == ["f444w-clear"]
    platform.sky.rows.append(row)
    platform.ingest()
    assert platform.run(first).success
    assert len(platform.home.database.mosaics(first)) == 2
    assert set({r["assoc_name"]: r["status"] for r in platform.home.database.association_rows(first)}) == set(states)


def test_a_new_revision_redoes_its_own_association_alone(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    count = len(platform.sky.reduced)
    row = next(r for r in platform.sky.rows if "jw09001001" in r["filename"] and "nrcb1" in r["filename"])
    row |= {"ArchiveFileID": 2, "checksum": "1" * 32}
    found = platform.ingest()
    assert len(found.changed) == 1
    assert found.touched_fields == [first]
    assert platform.run(first).success
    assert ["f115w" in name for name, _ in platform.sky.reduced[count:]] == [True]


def test_the_same_bytes_under_another_archive_id_are_not_reduced_again(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    count = len(platform.sky.reduced)
    next(r for r in platform.sky.rows if "jw09001001" in r["filename"])["ArchiveFileID"] = 77
    platform.ingest()
    assert platform.run(first).success
    assert len(platform.sky.reduced) == count


def test_verify_reads_the_bytes_of_stored_products(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    victim = next(p for p in platform.home.storage.path(first).rglob("*nrcb1_rate.fits"))
    status, content = victim.stat(), bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    count = len(platform.sky.reduced)
    platform.run(first)
    assert len(platform.sky.reduced) == count  # size and mtime tell nothing
    platform.run(first, verify=True)
    assert len(platform.sky.reduced) == count + 1


def test_a_deleted_product_is_made_again(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    count = len(platform.sky.reduced)
    victim = next(p for p in platform.home.storage.path(first).rglob("*nrcb1_rate.fits"))
    victim.unlink()
    assert platform.run(first).success
    assert len(platform.sky.reduced) == count + 1
    assert victim.exists()


def test_a_changed_limit_judges_the_stored_result_again(two_fields, tmp_path) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    count = len(platform.sky.reduced)
    survey = platform.home.survey
    strict = survey.limits.model_copy(update={"relative_n_short": 61})
    platform.home.prepare(Survey.model_validate(survey.model_copy(update={"limits": strict}).model_dump()))
    result = platform.run(first)
    assert result.success
    # nothing is reduced again but what now fails: its second attempt
    assert {"f115w" in name for name, _ in platform.sky.reduced[count:]} == {True}
    attempts = [r["attempt"] for r in platform.home.database.reference_tries(first)]
    assert attempts.count("first") == 2
    assert [m["filter_key"] for m in platform.home.database.mosaics(first)] == ["f444w-clear"]


def test_the_data_version_of_associations_follows_their_data_alone(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)

    def version() -> str:
        event = platform.instance.get_latest_materialization_event(__import__("dagster").AssetKey("associations"))
        return event.asset_materialization.tags["dagster/data_version"]

    before = version()
    platform.run(first)
    assert version() == before
    row = next(r for r in platform.sky.rows if "jw09001001" in r["filename"])
    row |= {"ArchiveFileID": 5, "checksum": "2" * 32}
    platform.ingest()
    platform.run(first)
    assert version() != before


@pytest.mark.parametrize("missing", ["LS_DR9"])
def test_no_catalogue_holds_back_or_is_noted(platform, missing, tmp_path) -> None:
    platform.add_visit(150.0, 2.0, 1)
    platform.sky.sources = np.concatenate([platform.sky.sources])
    platform.home.prepare(
        Survey.model_validate(
            platform.home.survey.model_dump()
            | {"reference": {"catalogs": ["GAIA"], "absolute_alignment": "if_available"}}
        )
    )
    platform.ingest()
    (name,) = platform.home.database.field_names()
    result = platform.run(name)
    assert result.success
    held = platform.checks(result)["astrometric_reference.nothing_held_back"]
    assert "telescope's frame" in str(held.metadata["details"].value)
    platform.home.prepare(
        Survey.model_validate(platform.home.survey.model_dump() | {"reference": {"catalogs": ["GAIA"]}})
    )
    assert not platform.run(name).success


def test_missing_data_are_named_and_the_filter_comes_back(two_fields) -> None:
    """A newer revision that can't be had leaves the filter's earlier mosaic, says so, and replaces it later."""
    platform, first, _ = two_fields
    platform.run(first)
    row = next(r for r in platform.sky.rows if "jw09001001" in r["filename"] and "nrcb1" in r["filename"])
    row |= {"ArchiveFileID": 2, "checksum": "1" * 32}
    platform.sky.damaged = {row["filename"]}
    platform.ingest()
    result = platform.run(first)
    assert result.success
    assert not platform.checks(result)["preprocessed_visits.nothing_held_back"].passed
    assert "of earlier data" in platform.checks(result)["mosaics.nothing_held_back"].description
    assert len(platform.home.database.mosaics(first)) == 2
    platform.sky.damaged = set()
    result = platform.run(first)
    assert result.success
    assert platform.checks(result)["mosaics.nothing_held_back"].passed
    assert len(platform.home.database.mosaics(first)) == 2
    assert {r["status"] for r in platform.home.database.association_rows(first)} == {2}


def test_a_finished_result_stands_while_its_file_is_away(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    count = len(platform.sky.reduced)
    platform.sky.damaged = {r["filename"] for r in platform.sky.rows}
    assert platform.run(first).success
    assert len(platform.sky.reduced) == count
    assert len(platform.home.database.mosaics(first)) == 2


def test_an_exposure_refused_later_leaves_the_work(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    survey = platform.home.survey.model_dump()
    survey["exposures"]["refuse_filters"] = ["F115W"]
    survey["expected"] = "present"
    platform.home.prepare(Survey.model_validate(survey))
    platform.ingest()
    result = platform.run(first)
    assert result.success
    assert [m["filter_key"] for m in platform.home.database.mosaics(first)] == ["f444w-clear"]
    rows = {r["assoc_name"]: r["status"] for r in platform.home.database.association_rows(first)}
    assert sorted(rows.values()) == [2, 12]


def test_the_cause_of_a_held_back_association_stays(two_fields) -> None:
    platform, first, _ = two_fields
    (name,) = [r["assoc_name"] for r in association_rows(platform, first) if "f115w" in r["assoc_name"]]
    platform.sky.bad_relative = {name}
    for _ in range(2):
        platform.run(first)
        row = {r["assoc_name"]: r for r in platform.home.database.association_rows(first)}[name]
        assert (row["status"], "RMS" in row["cause"]) == (9, True)


def test_a_field_of_refused_exposures_alone_does_not_crash(two_fields) -> None:
    platform, first, _ = two_fields
    survey = platform.home.survey.model_dump()
    survey["exposures"]["refuse_filters"] = ["F115W", "F444W"]
    platform.home.prepare(Survey.model_validate(survey))
    platform.ingest()
    result = platform.run(first)
    assert platform.checks(result)["observations.archive_count"].passed
    assert not platform.checks(result)["astrometric_reference.absolute_alignment"].passed


# --- what goes wrong while the field runs -----------------------------------------------------


def test_an_exposure_that_arrives_during_a_run_waits_for_the_next(two_fields, monkeypatch) -> None:
    platform, first, _ = two_fields
    grouped = platform.home.database.__class__.mark_grouped

    def arrive(database, connection, field, version):
        grouped(database, connection, field, version)
        if field == first:
            late.append(True)

    late: list[bool] = []
    monkeypatch.setattr(platform.home.database.__class__, "mark_grouped", arrive)
    for asset in ("observations", "associations"):
        assert platform.materialize(asset, first).success
    assert late
    platform.add_visit(150.0, 2.0, 3)
    platform.ingest()
    assert len(platform.home.database.arrived_since(first)) == 4
    for asset in ("astrometric_reference", "preprocessed_visits"):
        result = platform.materialize(asset, first)
        assert result.success, [c.description for c in result.get_asset_check_evaluations() if not c.passed]
    accounted = platform.checks(result)["preprocessed_visits.exposures_accounted"]
    assert accounted.passed
    assert "4 exposures in calibrated files, 4 named with their cause, 0 lost" in accounted.description
    assert platform.run(first).success
    assert platform.home.database.arrived_since(first) == set()
    assert len(platform.home.database.associations(first)) == 4


def test_a_field_without_data_is_blocked_and_keeps_its_mosaics(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    files = sorted(platform.home.storage.path(first).rglob("*_drc_sci.fits"))
    assert len(files) == 2
    rows = [r for r in platform.sky.rows if "jw09001001" in r["filename"]]
    for row in rows:
        row |= {"ArchiveFileID": 5, "checksum": "5" * 32}
        platform.sky.damaged.add(row["filename"])
    platform.ingest()
    result = platform.run(first)
    assert not result.success
    answers = platform.checks(result)
    assert not answers["astrometric_reference.absolute_alignment"].passed
    assert "no aligned reference" in answers["astrometric_reference.absolute_alignment"].description
    assert all(path.exists() for path in files)


def test_one_filter_without_data_keeps_its_earlier_mosaic(two_fields) -> None:
    platform, first, _ = two_fields
    platform.run(first)
    (kept,) = platform.home.storage.path(first).rglob("*f115w-clear_drc_sci.fits")
    for row in platform.sky.rows:
        if "jw09001001" in row["filename"] and "nrcb1" in row["filename"]:
            row |= {"ArchiveFileID": 5, "checksum": "5" * 32}
            platform.sky.damaged.add(row["filename"])
    platform.ingest()
    result = platform.run(first)
    assert result.success
    assert kept.exists()
    answers = platform.checks(result)
    assert "of earlier data" in answers["mosaics.nothing_held_back"].description
    accounted = answers["preprocessed_visits.exposures_accounted"]
    assert "2 exposures in calibrated files, 2 named with their cause" in accounted.description


def test_calibration_that_can_not_be_asked_leaves_finished_results(two_fields) -> None:
    from panoramic.errors import CalibrationError

    platform, first, _ = two_fields
    platform.run(first)
    count = len(platform.sky.reduced)
    platform.sky.no_calibration = CalibrationError("CRDS gave no answer")
    assert platform.run(first).success
    assert len(platform.sky.reduced) == count
    assert {r["status"] for r in platform.home.database.association_rows(first)} == {2}


def test_a_damaged_catalogue_is_named_and_the_next_one_judges(platform_of, survey_text) -> None:
    platform = platform_of(survey_text.replace("[LS_DR9, GAIA]", "[BROKEN, LS_DR9]"))
    platform.sky.damaged_catalogs = {"BROKEN"}
    platform.add_visit(150.0, 2.0, 1)
    platform.ingest()
    (first,) = platform.home.database.field_names()
    answers = platform.checks(platform.run(first))
    assert answers["mosaics.mosaic_astrometry"].passed
    assert "reference_catalog_BROKEN" in answers["preprocessed_visits.no_degradation"].description


def test_too_few_reference_sources_are_not_called_none(two_fields, tmp_path) -> None:
    platform, first, _ = two_fields
    platform.sky.few_sources = 11
    text = (platform.home.survey_file.read_text()) + "\n"
    survey = Survey.parse(text, platform.home.survey_file)
    reference = survey.reference.model_copy(update={"absolute_alignment": "if_available"})
    platform.home.prepare(survey.model_copy(update={"reference": reference}))
    platform.run(first)
    causes = {r["cause"] for r in platform.home.database.association_rows(first)}
    assert any("sources in the field of view, fewer than 12" in cause for cause in causes), causes
    assert not any(v[2].accepted for a in platform.home.database.associations(first)
                   if (v := platform.home.database.reduction(a.name)))  # fmt: skip
