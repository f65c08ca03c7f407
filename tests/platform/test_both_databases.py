"""Migrations and an ingest on SQLite and, where Debian's PostgreSQL is installed, on a server of its own."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from panoramic.survey import Survey
from panoramic_assets.ingest import ingest
from resources import tables as t
from resources.archive import ArchiveLook
from resources.database import Database
from resources.database.core import PROJECT

AT = datetime(2026, 1, 1)
ASSOC, UNALIGNED = "j1_v001-9001-f444w_00001", "j1_v002-9001-f444w_00002"
SURVEY = "name: both\nprograms: [9001]\narchive: {kind: folder, path: nowhere}\n"


def postgres_binaries() -> Path | None:
    """Folder of the newest PostgreSQL server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a fresh server; it refuses to run as root, so root starts it as nobody."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
    folder = Path(tmp_path_factory.mktemp("pg", numbered=True))
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    home = Path("/") / "tmp" / f"panoramic-test-postgres-{os.getpid()}"
    home.mkdir(mode=0o700)
    os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    settings = {
        "user": user if os.getuid() == 0 else None,
        "cwd": "/",
        "env": {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    }
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    log = (folder / "log").open("w")
    initdb = [str(binaries / "initdb"), "-D", str(home / "data"), "-A", "trust", "-U", "panoramic"]
    subprocess.run(initdb, check=True, stdout=log, stderr=log, **settings)
    server = subprocess.Popen(
        [str(binaries / "postgres"), "-D", str(home / "data"), "-p", str(port), "-k", str(home), "-h", "127.0.0.1"],
        stdout=log, stderr=log, **settings,
    )  # fmt: skip
    url = f"postgresql+psycopg2://panoramic@127.0.0.1:{port}/postgres"
    try:
        engine = sa.create_engine(url)
        for _ in range(100):
            try:
                engine.connect().close()
                break
            except sa.exc.OperationalError:
                threading.Event().wait(0.1)
        engine.dispose()
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown: open connections don't hold it
        server.wait(30)
        log.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield Database(f"sqlite:///{tmp_path / 'survey.db'}")
        return
    database = Database(request.getfixturevalue("postgres"))
    yield database
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    database.engine.dispose()


def upgrade(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(PROJECT / "migrations"))
    config.attributes["engine"] = database.engine
    command.upgrade(config, revision)


def visit(observation: int = 1, **changed: object) -> list[dict]:
    return [
        {
            "filename": f"jw09001{observation:03d}001_02201_0000{k}_nrcblong_rate.fits", "filter": "F444W", "pupil": "CLEAR",
            "exp_type": "NRC_IMAGE", "subarray": "FULL", "detector": "NRCBLONG", "expstart": 60000.0, "expend": 60000.01,
            "s_region": "POLYGON ICRS 359.99 -40.0 0.02 -40.0 0.02 -39.97 359.99 -39.97", "effexptm": 500.0,
            # a folder's files have identities of 48 bits
            "ArchiveFileID": 2**47 + k, "checksum": f"{k:032x}", "fileSize": 84_000_000, "cal_ver": "1",
            "crds_ctx": "c", "publicReleaseDate_mjd": 60000.0, **changed,
        }
        for k in (1, 2)
    ]  # fmt: skip


def first_release_reduction(name: str, status: str, attempts: list[dict]) -> dict:
    """A row of `reductions` with the JSON that the first release wrote."""
    cause = attempts[-1]["cause"]
    criterion = {
        "gate": "absolute_alignment", "name": "matches", "value": 9.0, "limit": 12.0, "unit": "",
        "passed": status == "accepted", "near": False, "note": "",
    }  # fmt: skip
    result = {
        "association": name, "engine": "grizli", "engine_version": "1.12",
        "exposures": [{"dataset": "d", "filename": "d_rate.fits", "sha256": "0" * 64, "size": 5}], "relative": [],
        "absolute": {"reference": "PS1", "kind": "external", "dx": 0.1, "dy": 0.2, "rotation_deg": 0.0, "scale": 1.0,
                     "n": 9, "rms": 0.3, "pixel_scale_mas": 63.0, "reported_rms": None},
        "image": None, "weight": None, "catalog": None, "n_sources": 7, "log": "log", "pixel_scale_mas": 63.0,
        "degradations": [], "excluded": {}, "failure": None, "cpu_seconds": 0.0, "wall_seconds": 0.0, "peak_mib": 0.0,
    }  # fmt: skip
    verdict = {"association": name, "status": status, "criteria": [criterion], "cause": cause}
    return {
        "assoc": name, "fingerprint": "f" * 64, "result": json.dumps(result), "verdict": json.dumps(verdict),
        "status": status, "attempts": json.dumps(attempts), "made": datetime(2025, 12, 24, 18, 30),
    }  # fmt: skip


def test_the_newest_tables_are_those_of_the_code(database: Database) -> None:
    database.migrate()
    database.migrate()
    inspector = sa.inspect(database.engine)
    for name, table in t.metadata.tables.items():
        assert {c["name"] for c in inspector.get_columns(name)} == {c.name for c in table.columns}, name


def test_rows_outlive_the_migrations(database: Database) -> None:
    """From the first release's tables, with rows in parents and children, to the newest."""
    upgrade(database, "0001")
    with database.write() as connection:
        for statement in (
            "INSERT INTO fields (name, ordinal, ra, dec, data_version, archive_count, looked_at, touching) "
            "VALUES ('j1', 1, 0.0, -40.0, 'v', 1, '2026-01-01', '{}')",
            "INSERT INTO observations VALUES ('d', 1, 'j1', 'd_rate.fits', 9001, 1, 1, '02201', 1, 'NRCBLONG', 'F444W', "
            "'CLEAR', 'B', 500, 60000, 60000.01, 'POLYGON ICRS 1 1 1 2 2 2', 1, 1, 0, 7, 'c', 1, '1', 'c', 2, '', '', "
            "'[]', '2026-01-01', '2026-01-01')",
            "INSERT INTO assoc_table VALUES ('j1_v001-9001-f444w_00001', 2, '', 'j1', 9001, 'F444W-CLEAR', 'NIRCAM', "
            "'NRCBLONG', 0, 0, 500, '', 1, 1, '2026-01-01', '')",
            "INSERT INTO assoc_table VALUES ('j1_v002-9001-f444w_00002', 9, '', 'j1', 9001, 'F444W-CLEAR', 'NIRCAM', "
            "'NRCBLONG', 0, 0, 500, '', 1, 1, '2026-01-01', 'no catalogue')",
            "INSERT INTO products VALUES ('p', 'j1', 'o', 'k', 'c', 1, '1', 'f', '{}', '2026-01-01')",
        ):
            connection.exec_driver_sql(statement)
        few = {"reference": "LS_DR9", "status": "held_back", "cause": "matches = 9 (limit 12): \u00b5 'few'"}
        then = {"reference": "PS1", "status": "accepted", "cause": ""}
        none = {"reference": "", "status": "held_back", "cause": "no catalogue"}
        insert = (
            "INSERT INTO reductions (assoc, fingerprint, result, verdict, status, attempts, made) "
            "VALUES (:assoc, :fingerprint, :result, :verdict, :status, :attempts, :made)"
        )
        for row in (
            first_release_reduction(ASSOC, "accepted", [few, then]),
            first_release_reduction(UNALIGNED, "held_back", [none]),
        ):
            connection.execute(sa.text(insert), row)
    database.migrate()
    database.migrate()  # nothing is rewritten twice
    with database.read() as connection:
        ((revision, field, exposure),) = database.latest(connection).values()
        assert (revision, field, exposure.file_id, exposure.granted) == (1, "j1", 7, False)
        assert database.known_associations(connection, "j1") == {}
    assert len(database.association_rows("j1")) == 2
    assert len(database.products("o")) == 1
    assert database.arrived_since("j1") == {"d"}
    kept, unaligned = database.reduction(ASSOC), database.reduction(UNALIGNED)
    assert kept is not None
    assert unaligned is not None
    tried = {"attempt": "first", "origin": "", "n_sources": None}
    assert kept.attempts == [
        {**tried, "catalog": "LS_DR9", "used": False, "outcome": "matches = 9 (limit 12): \u00b5 'few'"},
        {**tried, "catalog": "PS1", "used": True, "outcome": "accepted"},
    ]
    assert unaligned.attempts == [{**tried, "catalog": "none", "used": False, "outcome": "no catalogue"}]
    assert (kept.verdict.accepted, unaligned.verdict.accepted) == (True, False)
    assert (kept.measurement, kept.second_fingerprint, kept.fingerprint) == (None, "", "f" * 64)
    assert kept.result.absolute is not None
    assert (kept.result.absolute.n, kept.result.exposures[0].pointing) == (9, None)
    rows = [dict(row) for row in database.reference_tries("j1")]
    made = {row.pop("modtime") for row in rows}
    assert made == {datetime(2025, 12, 24, 18, 30)}
    assert rows == [
        *({"assoc": ASSOC, "number": k, **a} for k, a in enumerate(kept.attempts, start=1)),
        {"assoc": UNALIGNED, "number": 1, **unaligned.attempts[0]},
    ]


def test_an_ingest_and_what_it_decides(database: Database, tmp_path: Path) -> None:
    database.migrate()
    survey = Survey.parse(SURVEY, tmp_path / "s.yaml")
    first = ingest(database, survey, ArchiveLook(visit(), source="rows"), AT)
    assert len(first.new) == 2
    assert len(first.touched_fields) == 1
    again = ingest(database, survey, ArchiveLook(visit(), source="rows"), AT)
    assert (again.new, again.changed, again.touched_fields) == ([], [], [])
    rehearsed = ingest(database, survey, ArchiveLook(visit(2), source="rows", complete=False), AT, dry_run=True)
    assert len(rehearsed.new) == 2
    assert len(ingest(database, survey, ArchiveLook(visit(2), source="rows", complete=False), AT).new) == 2
    refused = ingest(database, survey, ArchiveLook(visit(3, exp_type="NRC_WFSS"), source="rows", complete=False), AT)
    assert len(refused.refused) == 2
    with database.read() as connection:
        assert set(database.refusals(connection)) == set(refused.refused)
    database.release_groups([("09001001001", "02201", "F444W", "CLEAR", "NRCBLONG")], "tried", "me", AT)
    database.release_groups([("09001001001", "02201", "F444W", "CLEAR", "NRCBLONG")], "tried again", "me", AT)
    with database.read() as connection:
        assert list(database.released_groups(connection).values()) == ["tried again (me)"]
