"""What is known of files that were read once: digests, headers, lookups; valid while size and mtime stay the same.

Put here facts that can be had again by reading the file. Keep out anything that would be lost with this cache.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from panoramic.provenance import digest_file

_SCHEMA = """CREATE TABLE IF NOT EXISTS facts (
    kind TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (kind, path))"""


class FileFacts:
    """A small SQLite file of facts, keyed by kind, path, size and mtime.

    Several processes may use it at once. A cache that is damaged is thrown away: all of it can be had again.

    Parameters
    ----------
    database : the SQLite file; its folder is made at the first write.
    """

    def __init__(self, database: Path) -> None:
        self.database = database

    def all(self, kind: str) -> dict[str, tuple[int, int, Any]]:
        """All facts of a kind: path -> (size in bytes, mtime in ns, value)."""
        if not self.database.exists():
            return {}
        try:
            with self._connection() as connection:
                rows = connection.execute("SELECT path, size, mtime_ns, value FROM facts WHERE kind = ?", (kind,))
                return {path: (size, mtime_ns, json.loads(value)) for path, size, mtime_ns, value in rows}
        except (sqlite3.OperationalError, ValueError):
            return {}  # busy or on a full disk: facts are a convenience, the caller reads the file instead

    def get(self, kind: str, path: Path | str, size: int, mtime_ns: int) -> Any | None:
        """The fact of a file in exactly this state, or None."""
        if not self.database.exists():
            return None
        try:
            with self._connection() as connection:
                row = connection.execute(
                    "SELECT value FROM facts WHERE kind = ? AND path = ? AND size = ? AND mtime_ns = ?",
                    (kind, str(path), size, mtime_ns),
                ).fetchone()
        except sqlite3.OperationalError:
            return None
        return json.loads(row[0]) if row else None

    def put(self, kind: str, path: Path | str, size: int, mtime_ns: int, value: Any) -> None:
        """Remember one fact (JSON-able) of a file."""
        self.put_many(kind, [(str(path), size, mtime_ns, value)])

    def put_many(self, kind: str, facts: Iterable[tuple[str, int, int, Any]]) -> None:
        """Remember (path, size, mtime_ns, value) of several files in one transaction."""
        rows = [(kind, path, size, mtime_ns, json.dumps(value)) for path, size, mtime_ns, value in facts]
        if not rows:
            return
        with contextlib.suppress(sqlite3.OperationalError, OSError):  # no room for a cache is no reason to stop
            self.database.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as connection:
                connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", rows)

    def forget(self, kind: str, paths: Iterable[str]) -> None:
        """Drop the facts of files that are gone."""
        rows = [(kind, path) for path in paths]
        if rows and self.database.exists():
            with contextlib.suppress(sqlite3.OperationalError), self._connection() as connection:
                connection.executemany("DELETE FROM facts WHERE kind = ? AND path = ?", rows)

    def digest(self, path: Path, algorithm: str) -> str:
        """Digest of a file, computed only if its size or mtime are new.

        Raises
        ------
        OSError
            The file can't be read.
        """
        status = path.stat()
        known = self.get(algorithm, path, status.st_size, status.st_mtime_ns)
        if known is not None:
            return str(known)
        value = digest_file(path, algorithm)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            self.put(algorithm, path, status.st_size, status.st_mtime_ns, value)
        return value

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = self._open()
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.database, timeout=30)
        try:
            connection.execute(_SCHEMA)
        except sqlite3.OperationalError:
            connection.close()
            raise
        except sqlite3.DatabaseError:
            connection.close()
            self.database.unlink()
            connection = sqlite3.connect(self.database, timeout=30)
            connection.execute(_SCHEMA)
        return connection
