"""The survey's database: migrations, transactions, claims."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from astropy.table import Table

from panoramic.errors import ConflictError, StorageError, UnknownNameError
from resources import tables as t
from resources.database import Database

AT = datetime(2026, 1, 1)
FIELD = {
    "name": "j1",
    "ordinal": 1,
    "ra": 1.0,
    "dec": 2.0,
    "data_version": "",
    "archive_count": 0,
    "looked_at": AT,
    "touching": {},
}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'survey.db'}")
    database.migrate()
    return database


def test_the_migrations_make_the_tables(database: Database) -> None:
    inspector = sa.inspect(database.engine)
    for table in t.metadata.sorted_tables:
        columns = {c["name"] for c in inspector.get_columns(table.name)}
        assert columns == {c.name for c in table.columns}, table.name
        keys = inspector.get_pk_constraint(table.name)["constrained_columns"]
        assert set(keys) == {c.name for c in table.primary_key}
        assert len(inspector.get_foreign_keys(table.name)) == len(table.foreign_keys)


def test_migrating_again_keeps_the_rows(database: Database) -> None:
    with database.write() as connection:
        database.upsert(connection, t.fields, [FIELD])
    database.publish_reference("j1", Table({"src": ["a"], "ra": [1.0], "dec": [2.0], "mag": [20.0]}))
    database.migrate()
    assert database.field_names() == ["j1"]
    assert len(database.reference("j1")) == 1


def test_sqlite_is_set_up_for_two_processes(database: Database) -> None:
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_home_belongs_to_one_survey(database: Database) -> None:
    database.claim("one")
    database.claim("one")
    with pytest.raises(ConflictError, match="PANORAMIC_HOME"):
        database.claim("two")


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as connection:
        database.upsert(connection, t.fields, [FIELD])
        raise RuntimeError
    assert database.field_names() == []


def test_publishing_replaces_the_fields_sources_in_one_step(database: Database) -> None:
    with database.write() as connection:
        database.upsert(connection, t.fields, [FIELD, FIELD | {"name": "j2", "ordinal": 2}])
    many = Table({"src": ["a", "a", "b"], "ra": [1.0, 2, 3], "dec": [2.0, 2, 2], "mag": [20.0, 21, 22]})
    database.publish_reference("j1", many)
    other = Table({"src": ["c"], "ra": [9.0], "dec": [2.0], "mag": [20.0]})
    database.publish_reference("j2", other)
    database.publish_reference("j1", many[1:2])
    assert [(r["src"], r["ra"]) for r in database.reference("j1")] == [("a", 2.0)]
    assert len(database.reference("j2")) == 1


def test_writers_wait_for_each_other(database: Database) -> None:
    with database.write() as connection:
        database.upsert(connection, t.fields, [FIELD])

    def count_up() -> None:
        for _ in range(20):
            with database.write() as connection:
                old = connection.scalar(sa.select(t.fields.c.archive_count))
                connection.execute(t.fields.update().values(archive_count=old + 1))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert database.field("j1")["archive_count"] == 80


def test_unknown_names_come_with_the_nearest(database: Database) -> None:
    with database.write() as connection:
        database.upsert(connection, t.fields, [FIELD | {"name": "j131432p2432"}])
    with pytest.raises(UnknownNameError, match="j131432p2432"):
        database.field("j131432p2433")
    with pytest.raises(UnknownNameError):
        database.association("j131432p2433_v001-1-f444w_00001")


def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(StorageError, match="FOREIGN KEY"), database.write() as connection:
        connection.execute(
            t.astrometry_reference.insert().values(src="a", number=0, field="nowhere", ra=1.0, dec=1.0, mag=1.0)
        )
