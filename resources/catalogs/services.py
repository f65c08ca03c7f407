"""The external catalogues by region: from the cache, else from the service.

Put here who is asked, in which order, and what is told of it. Keep out protocols, columns and files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from panoramic.errors import (
    ProductDamagedError,
    ReferenceCatalogQueryError,
    ReferenceCatalogUnavailableError,
    StorageError,
)
from panoramic.reference import empty_table
from resources.catalogs.cache import DOWN_S, DownList, Region, RegionCache
from resources.catalogs.cells import Cell, cells_around
from resources.catalogs.definitions import CATALOGS, ServiceName, Source, to_standard
from resources.catalogs.protocols import Patience, tap_query, vizier_query

if TYPE_CHECKING:
    from astropy.table import Table

# no region of 0.04 square degrees holds as many; an answer that reaches it was cut
MOST_ROWS = 1_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """Where the services are."""

    gaia: str = "https://gea.esac.esa.int/tap-server/tap"
    datalab: str = "https://datalab.noirlab.edu/tap"
    vizier: str = "https://vizier.cds.unistra.fr"


@dataclass(frozen=True)
class Answer:
    """What is known of a catalogue around footprints.

    Parameters
    ----------
    table : the standard table of all regions that the footprints lie in, at the catalogue's own epochs.
    origin : ``service`` where anything had to be asked for now.
    detail : who gave it and when, and what went wrong on the way.
    """

    table: Table
    origin: Literal["service", "cache"]
    detail: str


class CatalogServices:
    """The five external catalogues that a survey can name.

    Parameters
    ----------
    folder : the cache; made at the first write.
    addresses, patience : where the services are and how long they are waited for.
    pause_s : how long a service that failed is left alone.
    clock : s since 1970.
    """

    def __init__(
        self,
        folder: Path,
        addresses: Addresses | None = None,
        patience: Patience | None = None,
        pause_s: float = DOWN_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.addresses, self.patience, self.clock = addresses or Addresses(), patience or Patience(), clock
        self.cache = RegionCache(folder, clock)
        self.down = DownList(folder / "down", pause_s, clock)

    @staticmethod
    def knows(name: str) -> bool:
        """Whether there is a service for a catalogue of this name."""
        return name.upper() in CATALOGS

    def around(self, name: str, footprints: Sequence[np.ndarray], margin_arcsec: float) -> Answer:
        """A catalogue in all regions that footprints ((N, 2) vertices in deg), widened by a margin, lie in.

        Raises
        ------
        ReferenceCatalogUnavailableError
            A region is not kept, and no service gave it.
        InputError
            The footprints are too wide.
        StorageError
            The answer could not be kept.
        """
        from astropy.table import vstack

        name = name.upper()
        regions: list[Region] = []
        notes: list[str] = []
        asked = 0
        for cell in cells_around(footprints, margin_arcsec):
            region = self._kept(name, cell, notes)
            if region is None or region.is_due(self.clock()):
                try:
                    region, was_asked = self._ask(name, cell, region, notes)
                except OSError as error:  # the services' own failures have types of ours by here
                    where = self.cache.folder
                    raise StorageError(f"{where}: {name} can't be kept: {error.strerror or error}") from error
                asked += was_asked
            regions.append(region)
        tables = [region.table for region in regions if len(region.table)]
        givers = sorted({f"{region.service}, of {region.day}" for region in regions})
        kept = len(regions) - asked
        shares = [f"{asked} regions asked for now" if asked else "", f"{kept} regions from the cache" if kept else ""]
        detail = "; ".join([*givers, ", ".join(filter(None, shares)), *dict.fromkeys(notes)])
        table = vstack(tables, metadata_conflicts="silent") if tables else empty_table()
        return Answer(table, "service" if asked else "cache", detail)

    def _kept(self, name: str, cell: Cell, notes: list[str]) -> Region | None:
        try:
            return self.cache.read(name, cell, tuple(source.definition for source in CATALOGS[name]))
        except ProductDamagedError as error:
            logger.warning("%s; it is asked for again", error)
            notes.append(f"a damaged file of the cache was replaced ({cell.name})")
            return None

    def _ask(self, name: str, cell: Cell, kept: Region | None, notes: list[str]) -> tuple[Region, bool]:
        """A region from the first service that gives it, and whether this process asked."""
        failures: list[ReferenceCatalogUnavailableError] = []
        with self.cache.alone(name, cell):
            if kept is None:  # another process may have asked in the meantime
                found = self._kept(name, cell, [])
                if found is not None:
                    return found, False
            for source in CATALOGS[name]:
                try:
                    table = self._from(name, source, cell)
                except ReferenceCatalogUnavailableError as error:
                    failures.append(error)
                    continue
                notes += [str(error) for error in failures]
                return self.cache.write(name, cell, table, source.title, source.definition), True
        if kept is not None:
            notes.append(f"{failures[-1]}: what was known on {kept.day} stands")
            return kept, False
        kind = type(failures[-1]) if len(failures) == 1 else ReferenceCatalogUnavailableError
        raise kind("; ".join(str(error) for error in failures)) from failures[-1]

    def _from(self, name: str, source: Source, cell: Cell) -> Table:
        """One region of one service's table; a failure is noted for the others that would ask."""
        query_key = f"{source.service}-{name}"
        self.down.check(source.service)
        self.down.check(query_key)
        try:
            table = to_standard(source, self._query(source, cell), cell)
        except ReferenceCatalogQueryError as error:  # this table's fault: the service may well have the next one
            self.down.add(query_key, str(error))
            raise
        except ReferenceCatalogUnavailableError as error:
            self.down.add(source.service, str(error))
            raise
        self.down.remove(source.service)
        self.down.remove(query_key)
        return table

    def _query(self, source: Source, cell: Cell) -> Table | None:
        address = self.address(source.service)
        what = f"{source.title} ({address})"
        if source.service == "vizier":
            return vizier_query(address, source.table, source.columns, cell.circle(), what=what, patience=self.patience)
        # the Gaia archive gives 2000 rows to a synchronous query
        mode: Literal["sync", "async"] = "async" if source.service == "gaia" else "sync"
        return tap_query(address, source.adql(cell), mode=mode, maximum=MOST_ROWS, what=what, patience=self.patience)

    def address(self, service: ServiceName) -> str:
        """Where a service is."""
        return {"gaia": self.addresses.gaia, "datalab": self.addresses.datalab, "vizier": self.addresses.vizier}[
            service
        ]
