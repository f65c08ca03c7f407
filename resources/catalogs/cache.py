"""What a service said of a region of the sky, as verified files; and which services were found to be down.

Put here how answers are kept and shown to be whole. Keep out who is asked and how.

    NAME/bBBBcCCCC.ecsv     a catalogue's sources in one region, at its own epochs; no row: no source there
    down/SERVICE.json       a service that failed, and until when it is not asked again

Processes share the folder: files are moved into place whole, and a lock per region lets one process ask for all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.errors import ProductDamagedError, ReferenceCatalogUnavailableError
from panoramic.reference import COLUMNS, empty_table
from resources.catalogs.cells import Cell
from resources.storage import field_lock, replacing

if TYPE_CHECKING:
    from astropy.table import Table

DAY_S = 86400.0
# data releases do not change, but "nothing there" may have been a slip of the service
EMPTY_STANDS_DAYS = 30.0
DOWN_S = 900.0


@dataclass(frozen=True)
class Region:
    """One catalogue in one region.

    Parameters
    ----------
    table : the standard table; may be empty.
    service : who gave it, in words.
    definition : the table, columns and conditions that were asked for.
    asked : when, s since 1970.
    """

    table: Table
    service: str
    definition: str
    asked: float

    @property
    def day(self) -> str:
        """The day it was asked for (UTC)."""
        return f"{datetime.fromtimestamp(self.asked, UTC):%Y-%m-%d}"

    def is_due(self, now: float) -> bool:
        """Whether the service should be asked again, if it can be."""
        return not len(self.table) and now - self.asked > EMPTY_STANDS_DAYS * DAY_S


class RegionCache:
    """Regions in a folder.

    Parameters
    ----------
    folder : made at the first write.
    clock : s since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.clock = folder, clock

    def path(self, catalog: str, cell: Cell) -> Path:
        """The file of a region."""
        return self.folder / catalog / f"{cell.name}.ecsv"

    def alone(self, catalog: str, cell: Cell) -> AbstractContextManager[None]:
        """Hold a region while it is asked for; a second process waits, then finds it here."""
        return field_lock(f"{catalog}-{cell.name}", self.folder / "locks")

    def read(self, catalog: str, cell: Cell, definitions: tuple[str, ...]) -> Region | None:
        """A kept region; None where there is none, or where it was asked for in other terms than ``definitions``.

        Raises
        ------
        ProductDamagedError
            The file is not what was written.
        """
        from astropy.table import Table
        from astropy.table.meta import YamlParseError

        path = self.path(catalog, cell)
        try:
            table = Table.read(path, format="ascii.ecsv")
            header = dict(table.meta)
            sha256 = header.pop("sha256")
            if header["rows"] != len(table):
                raise ProductDamagedError(f"{path}: has {len(table)} rows, {header['rows']} were written")
            table = _plain(table) if len(table) else empty_table()
            if _digest(header, table) != sha256:
                raise ProductDamagedError(f"{path}: is not what was written (SHA-256)")
            table.meta.clear()
            region = Region(table, str(header["service"]), str(header["definition"]), float(header["asked_s"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, IndexError, YamlParseError) as error:
            raise ProductDamagedError(f"{path}: can't be read: {error}") from error
        return region if region.definition in definitions else None

    def write(self, catalog: str, cell: Cell, table: Table, service: str, definition: str) -> Region:
        """Keep a region.

        Raises
        ------
        DiskFullError, OSError
            Nothing was half-written.
        """
        region = Region(table, service, definition, self.clock())
        header = {
            "catalog": catalog, "service": service, "definition": definition, "cell": cell.name,
            "ra_range": list(cell.ra_range), "dec_range": list(cell.dec_range),
            "asked": f"{datetime.fromtimestamp(region.asked, UTC):%Y-%m-%dT%H:%M:%SZ}", "asked_s": region.asked,
            "rows": len(table),
        }  # fmt: skip
        kept = table.copy()
        kept.meta = header | {"sha256": _digest(header, table)}
        path = self.path(catalog, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            kept.write(beside, format="ascii.ecsv")
        return region


def _plain(table: Table) -> Table:
    """The columns as floats, an empty entry as NaN."""
    result = empty_table()
    plain = type(table)({c: np.ma.filled(np.ma.MaskedArray(table[c]).astype(float), np.nan) for c in COLUMNS})
    for column in COLUMNS:
        plain[column].unit = result[column].unit
    return plain


def _digest(header: dict[str, Any], table: Table) -> str:
    """SHA-256 of the header and of every number."""
    total = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for column in COLUMNS:
        total.update(np.ascontiguousarray(table[column], dtype="<f8").tobytes())
    return total.hexdigest()


class DownList:
    """Services that failed: none of them is asked again for some minutes, by any process that shares the folder.

    Without it, thirty associations wait for thirty time-outs.

    Parameters
    ----------
    pause_s : how long a service is left alone.
    clock : s since 1970.
    """

    def __init__(self, folder: Path, pause_s: float = DOWN_S, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.pause_s, self.clock = folder, pause_s, clock

    def check(self, service: str) -> None:
        """Refuse at once where the service failed a short time ago.

        Raises
        ------
        ReferenceCatalogUnavailableError
            With what happened, and when it will be asked again.
        """
        try:
            noted = json.loads(self._path(service).read_text())
            until, reason = float(noted["until"]), str(noted["reason"])
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError):
            return  # a torn note says nothing: ask
        now = self.clock()
        if now < until <= now + self.pause_s:  # a clock that was set back must not close a service for long
            again = f"{datetime.fromtimestamp(until, UTC):%H:%M} UTC"
            raise ReferenceCatalogUnavailableError(f"{reason} (found before; not asked again until {again})")

    def add(self, service: str, reason: str) -> None:
        """Note that a service failed."""
        path = self._path(service)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_text(json.dumps({"until": self.clock() + self.pause_s, "reason": reason}))

    def remove(self, service: str) -> None:
        """Note that a service answered."""
        self._path(service).unlink(missing_ok=True)

    def _path(self, service: str) -> Path:
        return self.folder / f"{service}.json"
