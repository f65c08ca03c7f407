"""What becomes of an association whose alignment fails: other catalogues, a second attempt, its visit, its neighbours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from panoramic.alignment_measurement import Measurement
from panoramic.footprints import parse_s_region
from resources import tables as t
from resources.database import Database


def names_of(platform, field: str, element: str, detector: str = "") -> list[str]:
    """Associations of a field in one filter."""
    return [
        a.name
        for a in platform.home.database.associations(field)
        if a.first.element == element and a.detector.endswith(detector)
    ]


def region(platform, *parts: str) -> np.ndarray:
    """Footprint of the first exposure whose file name has all parts."""
    row = next(r for r in platform.sky.rows if all(p in r["filename"] for p in parts))
    return parse_s_region(row["s_region"])


def plan(platform, field: str) -> None:
    """The stage that names associations."""
    for asset in ("observations", "associations"):
        assert platform.materialize(asset, field).success


def tries(platform, field: str, name: str) -> list[tuple[str, str, bool]]:
    """Attempt, catalogue and whether it was used."""
    rows = platform.home.database.reference_tries(field)
    return [(r["attempt"], r["catalog"], r["used"]) for r in rows if r["assoc"] == name]


def test_a_wrong_success_never_reaches_a_mosaic(two_fields) -> None:
    """The engine moved its solution after the fit by 0.3 arcsec and says nothing of it."""
    platform, first, _ = two_fields
    plan(platform, first)
    (name,) = names_of(platform, first, "f115w")
    platform.sky.moved = {name: 0.3}
    result = platform.run(first)
    assert result.success
    stored = platform.home.database.reduction(name)
    assert not stored.verdict.accepted
    outcomes = [a["outcome"] for a in stored.attempts if a["attempt"]]
    assert len(outcomes) > 2
    assert "offset from own" in outcomes[0]
    assert [m["filter_key"] for m in platform.home.database.mosaics(first)] == ["f444w-clear"]
    held = platform.checks(result)["preprocessed_visits.nothing_held_back"]
    assert not held.passed
    assert name in str(held.metadata["details"].value)


def test_the_measurement_is_kept_for_people_and_for_sql(two_fields) -> None:
    platform, first, _ = two_fields
    assert platform.run(first).success
    (name,) = names_of(platform, first, "f115w")
    stored = platform.home.database.reduction(name)
    assert isinstance(stored.measurement, Measurement)
    assert stored.measurement.reference_kind == "own"
    with platform.home.database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT subject, kind, n, dra, err_ra FROM alignment_measurements WHERE assoc = ?", (name,)
        ).all()
    assert {r[1] for r in rows} == {"absolute", "relative"}
    assert all(r[2] > 5 and abs(r[3]) < 60 for r in rows)
    assert tries(platform, first, name)[-1] == ("first", "own", True)


def test_the_second_parameters_save_an_association(two_fields) -> None:
    platform, first, _ = two_fields
    plan(platform, first)
    (name,) = names_of(platform, first, "f115w")
    platform.sky.needs_second = {name}
    assert platform.run(first).success
    attempts = tries(platform, first, name)
    assert ("first", "own", False) in attempts
    assert attempts[-1][0] == "second" and attempts[-1][2]
    assert platform.home.database.reduction(name).verdict.accepted
    assert len(platform.home.database.mosaics(first)) == 2
    count = len(platform.sky.reduced)
    assert platform.run(first).success
    assert len(platform.sky.reduced) == count  # the second attempt's result stands


def test_few_references_are_solved_with_the_visit(platform) -> None:
    """Module A's long-wave detector has 4 reference sources; module B of the same exposures knows the pointing."""
    platform.add_visit(150.0, 2.0, 1, detectors=("nrcblong",))
    platform.add_visit(150.0, 2.045, 1, detectors=("nrcalong",))
    platform.sky.sparse = [(region(platform, "nrcalong"), 4)]
    relax(platform)
    platform.ingest()
    (field,) = platform.home.database.field_names()
    platform.run(field)
    (lonely,) = names_of(platform, field, "f444w", "ALONG")
    stored = platform.home.database.reduction(lonely)
    assert stored.verdict.accepted, stored.verdict.cause
    assert stored.measurement.absolute.with_prior
    assert tries(platform, field, lonely)[-1] == ("visit", "LS_DR9", True)
    assert stored.measurement.absolute.n <= 4
    assert any("visit's other detectors" in str(c) for c in stored.verdict.criteria)


def test_an_association_that_only_its_neighbours_can_place(platform) -> None:
    """Two overlapping pointings; the catalogue is false under one of them: ties place it, the other's sources judge it."""
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(150.0, 2.02, 2)
    outline = region(platform, "jw09001002", "nrcblong")
    platform.sky.false_reference = [np.column_stack([outline[:, 0], outline[:, 1] + 0.012])]
    platform.ingest()
    (field,) = platform.home.database.field_names()
    plan(platform, field)
    result = platform.run(field)
    assert result.success
    good, placed = names_of(platform, field, "f444w")
    stored = platform.home.database.reduction(placed)
    assert stored.attempts[-1]["attempt"] == "frame", stored.attempts
    assert stored.verdict.accepted, stored.verdict.cause
    assert stored.measurement.reference_kind == "own"
    # it is in the mosaic, and never a reference
    assert {r["src"] for r in platform.home.database.reference(field)} == {good}
    count, version = len(platform.sky.reduced), platform.home.database.reference_version(field)
    assert platform.run(field).success
    assert len(platform.sky.reduced) == count
    assert platform.home.database.reference_version(field) == version
    assert platform.home.database.reduction(placed).verdict.accepted


def test_overlapping_associations_are_tied(platform) -> None:
    """The engine leaves them 60 mas apart, each within its own error of the catalogue; the frame brings them together."""
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(150.0, 2.02, 2)
    platform.ingest()
    (field,) = platform.home.database.field_names()
    plan(platform, field)
    one, two = names_of(platform, field, "f444w")
    platform.sky.moved = {one: 0.005, two: -0.005}
    assert platform.run(field).success
    solution = platform.home.database.frame(field)[1]
    (tie,) = solution.ties
    assert abs(tie.before_mas[1]) == pytest.approx(10, abs=1.5)
    assert np.hypot(*tie.after_mas) < 1.0
    catalogs = [Table.read(platform.home.storage.path(f"{field}/associations/{n}/{n}.cat.ecsv")) for n in (one, two)]
    assert all("FRAMDRA" in c.meta for c in catalogs)
    from panoramic.alignment_solution import Solution, measure_solution

    apart = measure_solution(*(np.asarray(c[k]) for c in catalogs for k in ("ra", "dec")), search_radius_arcsec=1.0)
    assert isinstance(apart, Solution)
    assert np.hypot(apart.dra, apart.ddec) < 1.0
    count = len(platform.sky.reduced)
    before = {p["path"]: p["checksum"] for n in (one, two) for p in platform.home.database.products(n)}
    assert platform.run(field).success
    assert len(platform.sky.reduced) == count
    assert {p["path"]: p["checksum"] for n in (one, two) for p in platform.home.database.products(n)} == before


def test_the_next_filter_carries_a_patch_whose_first_is_held_back(platform_of, survey_text) -> None:
    platform = platform_of(survey_text.replace("filters: [F115W, F444W]", "filters: [F115W, F444W, F277W]"))
    platform.add_visit(150.0, 2.0, 1, detectors=("nrcblong",))
    platform.add_visit(150.0, 2.0, 2, detectors=("nrcb1", "nrcblong"))
    for row in platform.sky.rows:
        if "jw09001002" in row["filename"] and "long" in row["filename"]:
            row["filter"] = "F277W"
    relax(platform)
    platform.ingest()
    (field,) = platform.home.database.field_names()
    plan(platform, field)
    (failed,) = names_of(platform, field, "f444w")
    platform.sky.bad_relative = {failed}
    assert platform.run(field).success
    assert {r["src"] for r in platform.home.database.reference(field)} == set(names_of(platform, field, "f277w"))
    (short,) = names_of(platform, field, "f115w")
    assert platform.home.database.reduction(short).measurement.reference_kind == "own"


def test_a_changed_reference_redoes_what_depends_on_it_and_nothing_else(platform) -> None:
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(150.0, 2.1, 2)  # the same field, another patch of sky
    platform.ingest()
    (field,) = platform.home.database.field_names()
    assert platform.run(field).success
    count, version = len(platform.sky.reduced), platform.home.database.reference_version(field)
    row = next(r for r in platform.sky.rows if "jw09001001" in r["filename"] and "nrcblong" in r["filename"])
    row |= {"ArchiveFileID": 2, "checksum": "1" * 32}
    long_wave = next(n for n in names_of(platform, field, "f444w") if "_v001-" in n)
    platform.sky.moved = {long_wave: 0.004}  # the new revision's solution is another one
    platform.ingest()
    assert platform.run(field).success
    redone = {name for name, _ in platform.sky.reduced[count:]}
    assert redone == {long_wave, *(n for n in names_of(platform, field, "f115w") if "_v001-" in n)}
    assert platform.home.database.reference_version(field) == version + 1


def three_in_a_row(platform_of, survey_text):
    """Three overlapping pointings of which the middle one's solution is off by 25 mas, which the catalogue can't tell."""
    platform = platform_of(survey_text)
    for observation, dec in enumerate((2.0, 2.006, 2.012), start=1):
        platform.add_visit(150.0, dec, observation)
    platform.ingest()
    (field,) = platform.home.database.field_names()
    plan(platform, field)
    return platform, field


def test_what_contradicts_its_neighbours_stays_held_back(platform_of, survey_text, monkeypatch) -> None:
    """The frame's word is part of the verdict: no other step lifts it, and a second run changes nothing."""
    from panoramic_assets import framing

    platform, field = three_in_a_row(platform_of, survey_text)
    odd = names_of(platform, field, "f444w")[1]
    solve = framing.solve_frame

    def contradicted(associations, rules):
        solution = solve(associations, rules)
        members = tuple(replace(m, excluded="it contradicts two") if m.name == odd else m for m in solution.members)
        return replace(solution, members=members)

    monkeypatch.setattr(framing, "solve_frame", contradicted)
    for _ in range(2):
        result = platform.run(field)
        assert result.success
        stored = platform.home.database.reduction(odd)
        assert not stored.verdict.accepted
        assert "it contradicts two" in stored.verdict.cause
        assert odd not in {r["src"] for r in platform.home.database.reference(field)}
        assert {r["assoc_name"]: r["status"] for r in platform.home.database.association_rows(field)}[odd] == 9
    count = len(platform.sky.reduced)
    # the step before the frame alone doesn't lift it either
    platform.materialize("astrometric_reference", field)
    assert not platform.home.database.reduction(odd).verdict.accepted
    assert len(platform.sky.reduced) == count


def test_a_second_attempt_of_the_reference_stands_when_the_visit_is_finished(platform) -> None:
    """What is aligned to the reference has no say in making it: the second run finds everything as it was."""
    platform.add_visit(150.0, 2.0, 1, detectors=("nrcb1", "nrcblong"))
    platform.add_visit(150.0, 2.045, 1, detectors=("nrca1", "nrcalong"))
    relax(platform)
    platform.ingest()
    (field,) = platform.home.database.field_names()
    plan(platform, field)
    (late,) = names_of(platform, field, "f444w", "ALONG")
    platform.sky.needs_second = {late}
    assert platform.run(field).success
    assert platform.home.database.reduction(late).verdict.accepted
    count, version = len(platform.sky.reduced), platform.home.database.reference_version(field)
    assert platform.run(field).success
    assert platform.sky.reduced[count:] == []
    assert platform.home.database.reference_version(field) == version


def test_a_catalogue_that_is_away_leaves_what_it_made(two_fields) -> None:
    platform, first, _ = two_fields
    assert platform.run(first).success
    count = len(platform.sky.reduced)
    platform.sky.damaged_catalogs = {"LS_DR9"}
    assert platform.run(first).success
    assert len(platform.sky.reduced) == count
    assert {r["status"] for r in platform.home.database.association_rows(first)} == {2}


def test_catalogues_behind_the_one_that_settles_it_do_not_count(platform_of, survey_text) -> None:
    platform = platform_of(survey_text)
    platform.add_visit(150.0, 2.0, 1)
    platform.ingest()
    (field,) = platform.home.database.field_names()
    assert platform.run(field).success
    count = len(platform.sky.reduced)
    platform.sky.asked.clear()
    changed = platform.home.survey.reference.model_copy(update={"catalogs": ("LS_DR9", "NSC", "GAIA")})
    platform.home.prepare(platform.home.survey.model_copy(update={"reference": changed}))
    assert platform.run(field).success
    assert len(platform.sky.reduced) == count
    assert "NSC" not in platform.sky.asked


def test_a_kill_between_product_and_database_is_healed(two_fields, monkeypatch) -> None:
    """The new products are in their place and the database knows the old ones: the next run makes it whole."""
    from resources.database import Database

    platform, first, _ = two_fields
    assert platform.run(first).success
    (name,) = names_of(platform, first, "f115w")
    row = next(r for r in platform.sky.rows if "jw09001001" in r["filename"] and "nrcb1" in r["filename"])
    row |= {"ArchiveFileID": 2, "checksum": "1" * 32}
    platform.ingest()
    put = Database.put_reduction
    died_at: list[str] = []

    def killed(self, association, kept, products):
        died_at.append(association.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "put_reduction", killed)
    with suppress(BaseException):  # whatever the runner makes of it
        platform.run(first)
    assert died_at[:1] == [name]
    monkeypatch.setattr(Database, "put_reduction", put)
    count = len(platform.sky.reduced)
    assert platform.run(first).success
    assert [n for n, _ in platform.sky.reduced[count:]] == [name]
    assert platform.home.database.reduction(name).verdict.accepted


def relax(platform) -> None:
    """What is there is what is expected."""
    from panoramic.survey import Survey

    survey = platform.home.survey.model_dump() | {"expected": "present"}
    platform.home.prepare(Survey.model_validate(survey))


# --- publishing -------------------------------------------------------------------------------


def sources(number: int, src: str = "a") -> Table:
    """A made-up reference."""
    ra = 150 + np.arange(number) / 1e4
    return Table({"ra": ra, "dec": ra - 148, "mag": np.full(number, 20.0), "src": np.full(number, src)})


@pytest.fixture
def published(tmp_path: Path) -> Database:
    """A database with two fields; the first has a reference."""
    database = Database(f"sqlite:///{tmp_path / 'survey.db'}")
    database.migrate()
    with database.write() as connection:
        fields = [
            {"name": name, "ordinal": k, "ra": 1.0, "dec": 2.0, "data_version": "v", "archive_count": 1,
             "looked_at": datetime(2026, 1, 1), "touching": {}}
            for k, name in enumerate(("j1", "j2"))
        ]  # fmt: skip
        database.upsert(connection, t.fields, fields)
    assert database.publish_reference("j1", sources(50)) == 1
    return database


def test_publishing_counts_versions(published: Database) -> None:
    assert published.publish_reference("j1", sources(50)) == 1
    assert published.publish_reference("j1", sources(49)) == 2
    assert published.reference_version("j1") == 2
    assert published.reference_version("j2") == 0
    assert len(published.reference("j1")) == 49


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import sqlalchemy as sa
from test_alignment_gates import sources
from resources.database import Database

database = Database({url!r})

def kill(connection, cursor, statement, parameters, context, executemany):
    if statement.startswith("INSERT INTO reference_versions"):  # old rows are gone, new ones are in, nothing is committed
        os.kill(os.getpid(), signal.SIGKILL)

sa.event.listen(database.engine, "before_cursor_execute", kill)
database.publish_reference("j1", sources(7, "new"))
"""


def test_a_kill_while_publishing_leaves_the_old_reference_whole(published: Database) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), url=published.url)
    ended = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    rows = published.reference("j1")
    assert len(rows) == 50
    assert {r["src"] for r in rows} == {"a"}
    assert published.reference_version("j1") == 1
    assert published.publish_reference("j1", sources(7, "new")) == 2


def test_two_fields_publish_at_once(published: Database) -> None:
    failed: list[BaseException] = []

    def publish(field: str) -> None:
        try:
            for number in range(10, 30):
                published.publish_reference(field, sources(number, field))
        except BaseException as error:  # noqa: BLE001 handed to the test
            failed.append(error)

    threads = [threading.Thread(target=publish, args=(field,)) for field in ("j1", "j2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for field in ("j1", "j2"):
        rows = published.reference(field)
        assert len(rows) == 29
        assert {r["src"] for r in rows} == {field}
