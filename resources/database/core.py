"""Connections, transactions, upserts and migrations of the survey's database.

SQLite (WAL) on a laptop, PostgreSQL in production: the same tables (``resources/tables.py``), the same code. Every
writing method takes the connection of a transaction, so that what belongs together is committed together.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite

from panoramic.errors import ConflictError, DiskFullError, StorageError
from resources import tables as t

PROJECT = Path(__file__).resolve().parents[2]

# PostgreSQL's advisory lock of all writers of a survey's database
WRITERS = 2515

# assoc_table.status, as the survey's users know it
DEFINED, QUEUED, RUNNING, DONE, ALIGNMENT_FAILED, NO_DATA, DO_NOT_RUN = 70, 0, 1, 2, 9, 10, 12


def now() -> datetime:
    """The present in UTC, without time zone, as all tables keep it."""
    return datetime.now(UTC).replace(tzinfo=None)


class DatabaseCore:
    """The survey's database behind one URL.

    Parameters
    ----------
    url : e.g. ``sqlite:////home/me/data/survey.db`` or ``postgresql+psycopg2://...``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    # --- transactions ---------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading, in one consistent snapshot."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes; it is rolled back as a whole if anything in it fails."""
        with self.engine.connect().execution_options(panoramic_write=True) as connection:
            try:
                with connection.begin():
                    self._queue(connection)
                    yield connection
            except sa.exc.OperationalError as error:
                raise _typed(error) from error
            except (sa.exc.DataError, sa.exc.IntegrityError) as error:
                raise StorageError(f"the survey's database refused what was to be written: {error.orig}") from error

    @contextmanager
    def rehearse(self) -> Iterator[sa.Connection]:
        """A transaction that writes and is taken back at its end."""
        with self.engine.connect().execution_options(panoramic_write=True) as connection:
            transaction = connection.begin()
            try:
                self._queue(connection)
                yield connection
            finally:
                transaction.rollback()

    @property
    def is_file(self) -> bool:
        """Whether it is a file of its own (SQLite), and no server's."""
        return self.engine.dialect.name == "sqlite"

    def copy_to(self, path: Path) -> None:
        """Copy a database that is a file, whole, whatever others write meanwhile."""
        with self.engine.connect() as connection, closing(sqlite3.connect(path)) as target:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - `is_file` said so
            driver.backup(target)

    def _queue(self, connection: sa.Connection) -> None:
        """One writer at a time: names and indices are given once. SQLite queues by itself (BEGIN IMMEDIATE)."""
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITERS})

    def migrate(self) -> None:
        """Bring the tables to the newest revision; does nothing where they are there already."""
        config = Config()
        config.set_main_option("script_location", str(PROJECT / "migrations"))
        config.attributes["engine"] = self.engine
        try:
            command.upgrade(config, "head")
        except sa.exc.OperationalError as error:
            raise _typed(error) from error

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, or update those whose primary key is there."""
        if not rows:
            return
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        keys = [c.name for c in table.primary_key]
        for row in rows:
            statement = dialect.insert(table).values(**row)
            others = {k: statement.excluded[k] for k in row if k not in keys}
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=others))

    def claim(self, survey: str) -> None:
        """Make this the home of a survey; another survey's name is refused."""
        with self.write() as connection:
            if not _is_claimed(connection, survey):
                connection.execute(t.home.insert().values(key="survey", value=survey))

    def refuse_other(self, survey: str) -> None:
        """Raise `ConflictError` if this is the home of another survey."""
        with self.read() as connection:
            _is_claimed(connection, survey)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the system or of a database says that there is no room left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "disk is full" in str(error) or "No space left on device" in str(error)


def _typed(error: sa.exc.OperationalError) -> StorageError:
    if is_disk_full(error):
        return DiskFullError("no room left for the survey's database: make room and run again")
    return StorageError(f"the survey's database could not be written: {error.orig}")


def _is_claimed(connection: sa.Connection, survey: str) -> bool:
    """Whether this is the survey's home; `ConflictError` where it is another one's."""
    held = connection.scalar(sa.select(t.home.c.value).where(t.home.c.key == "survey"))
    if held is not None and held != survey:
        raise ConflictError(
            f"this PANORAMIC_HOME belongs to the survey {held!r}, not to {survey!r}: "
            "set PANORAMIC_HOME to another folder"
        )
    return held is not None


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins its own transactions, see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=60000")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # a writer takes its lock at once: an upgrade from reading to writing fails under load instead of waiting
    writes = connection.get_execution_options().get("panoramic_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
