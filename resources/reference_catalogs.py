"""External reference catalogues: where they are had from.

Put here the finding and reading of catalogues. Keep out what a catalogue must hold and how its sources move
(`panoramic/reference.py`), and how services are asked (`resources/catalogs/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from panoramic.errors import ReferenceCatalogUnavailableError
from panoramic.reduction.base import ReferenceSources
from panoramic.reference import at_epoch, read_catalog, to_reference_sources, within, without_duplicates
from panoramic.survey import ReferenceRules
from resources.catalogs.services import CatalogServices

if TYPE_CHECKING:
    from astropy.table import Table

SUFFIXES = (".ecsv", ".csv", ".fits")
# far enough that no source moves into the footprint from outside (0.5 arcsec/yr for 60 years)
MOTION_MARGIN_ARCSEC = 30.0

Footprints = np.ndarray | Sequence[np.ndarray]
Origin = Literal["file", "folder", "service", "cache", "none"]


@dataclass(frozen=True)
class CatalogAnswer:
    """What became of asking for a catalogue: a row of the table of what was tried.

    Parameters
    ----------
    name : the catalogue.
    sources : at the epoch that was asked for; None where it has none there, or can't be asked for.
    origin : a local file of the survey file, the archive's folder, a service just now, the cache of a service; ``none``
        where there was nobody to ask.
    detail : in words: which file or service, of when, and what went wrong on the way.
    """

    name: str
    sources: ReferenceSources | None
    origin: Origin
    detail: str

    @property
    def count(self) -> int:
        """Number of sources."""
        return 0 if self.sources is None else len(self.sources)


class ReferenceCatalogs(Protocol):
    """Catalogues by name, in the survey's order of preference."""

    def names(self) -> list[str]:
        """All names that the survey asks for, the preferred first, whether they can be had or not."""
        ...

    def available(self) -> list[str]:
        """Names that can be asked for, the preferred first."""
        ...

    def ask(self, name: str, footprint: Footprints, epoch: float, margin_arcsec: float = 0.0) -> CatalogAnswer:
        """Sources of a catalogue in one footprint or several ((N, 2) vertices in deg), at an epoch (Julian year).

        Raises
        ------
        InputError, ReferenceCatalogUnavailableError
            The catalogue is damaged, or could not be had.
        """
        ...

    def load(
        self, name: str, footprint: Footprints, epoch: float, margin_arcsec: float = 0.0
    ) -> ReferenceSources | None:
        """The sources of `ask`: None where the catalogue does not exist or has no source there.

        Raises
        ------
        InputError, ReferenceCatalogUnavailableError
            The catalogue is damaged, or could not be had.
        """
        ...


class FolderReferenceCatalogs:
    """Catalogues as files ``NAME.ecsv`` (or ``.csv``, ``.fits``) in a folder.

    Parameters
    ----------
    folder : the folder, or None where the archive has none.
    names_in_order : the survey's catalogues; names are compared without case. None takes all that are there, by name.
    """

    def __init__(self, folder: Path | None, names_in_order: Sequence[str] | None = None) -> None:
        self.folder, self.names_in_order = folder, names_in_order
        self._tables = _Tables()

    def present(self) -> list[str]:
        """Names of all catalogues in the folder, whether the survey asks for them or not."""
        return sorted(path.stem for path in self._files().values())

    def available(self) -> list[str]:
        """Names of the survey that are there, the preferred first."""
        if self.names_in_order is None:
            return self.present()
        files = self._files()
        return [name for name in self.names_in_order if name.upper() in files]

    def names(self) -> list[str]:
        """All names of the survey; without an order, those that are there."""
        return self.present() if self.names_in_order is None else list(self.names_in_order)

    def ask(self, name: str, footprint: Footprints, epoch: float, margin_arcsec: float = 0.0) -> CatalogAnswer:
        """Sources of a catalogue around footprints; see `ReferenceCatalogs.ask`."""
        path = self._files().get(name.upper())
        if path is None:
            where = f"no {name}{SUFFIXES[0]} in {self.folder}" if self.folder else "no folder of catalogues"
            return CatalogAnswer(name, None, "none", where)
        sources = select(self._tables.read(path), name, footprint, epoch, margin_arcsec)
        return CatalogAnswer(name, sources, "folder", _told(sources, str(path)))

    def load(
        self, name: str, footprint: Footprints, epoch: float, margin_arcsec: float = 0.0
    ) -> ReferenceSources | None:
        """The sources of `ask`."""
        return self.ask(name, footprint, epoch, margin_arcsec).sources

    def _files(self) -> dict[str, Path]:
        if self.folder is None or not self.folder.is_dir():
            return {}
        found: dict[str, Path] = {}
        for suffix in SUFFIXES:
            for path in sorted(self.folder.glob(f"*{suffix}")):
                found.setdefault(path.stem.upper(), path)
        return found


class SurveyReferenceCatalogs:
    """The catalogues of a survey: its own files, the archive's folder, then the services.

    A catalogue is looked for in this order until one has a source there. A file that is damaged or gone is an error,
    not a reason to look further: what a person named must not be replaced in silence.

    Parameters
    ----------
    rules : the survey's catalogues in order and its files.
    folder : the archive's own catalogues.
    services : the external services, or None where they are not to be asked.
    """

    def __init__(
        self, rules: ReferenceRules, folder: FolderReferenceCatalogs, services: CatalogServices | None
    ) -> None:
        self._files = {name.upper(): path for name, path in rules.files.items()}
        listed = {name.upper() for name in rules.catalogs}
        self._names = [name for name in rules.files if name.upper() not in listed] + list(rules.catalogs)
        self._folder, self._services = folder, services
        self._tables = _Tables()

    def names(self) -> list[str]:
        """All names of the survey, the preferred first: files that its list does not name, then the list."""
        return list(self._names)

    def available(self) -> list[str]:
        """Names for which there is a file or a service."""
        there = {name.upper() for name in self._folder.present()} | set(self._files)
        return [n for n in self._names if n.upper() in there or (self._services and self._services.knows(n))]

    def ask(self, name: str, footprint: Footprints, epoch: float, margin_arcsec: float = 0.0) -> CatalogAnswer:
        """Sources of a catalogue around footprints; see `ReferenceCatalogs.ask`."""
        told: list[str] = []
        last: Origin = "none"
        path = self._files.get(name.upper())
        if path is not None:
            sources = select(self._tables.read(path), name, footprint, epoch, margin_arcsec)
            last, detail = "file", _told(sources, f"{path} (reference.files)")
            if sources is not None:
                return CatalogAnswer(name, sources, last, detail)
            told.append(detail)
        answer = self._folder.ask(name, footprint, epoch, margin_arcsec)
        if answer.sources is not None:
            return CatalogAnswer(name, answer.sources, answer.origin, "; ".join([*told, answer.detail]))
        if answer.origin != "none":
            last = answer.origin
            told.append(answer.detail)
        if self._services is not None and self._services.knows(name):
            found = self._services.around(name, _several(footprint), margin_arcsec + MOTION_MARGIN_ARCSEC)
            sources = select(found.table, name, footprint, epoch, margin_arcsec)
            told.append(_told(sources, found.detail))
            return CatalogAnswer(name, sources, found.origin, "; ".join(told))
        if not told:
            why = "no service is known for it" if self._services is not None else "services are not asked"
            told.append(f"no file of it here, and {why}")
        return CatalogAnswer(name, None, last, "; ".join(told))

    def load(
        self, name: str, footprint: Footprints, epoch: float, margin_arcsec: float = 0.0
    ) -> ReferenceSources | None:
        """The sources of `ask`."""
        return self.ask(name, footprint, epoch, margin_arcsec).sources


def select(
    table: Table, name: str, footprint: Footprints, epoch: float, margin_arcsec: float
) -> ReferenceSources | None:
    """The sources of a standard table in footprints at an epoch, each object once; None where there is none."""
    footprints = _several(footprint)
    table = within(table, footprints, margin_arcsec + MOTION_MARGIN_ARCSEC)
    table = within(without_duplicates(at_epoch(table, epoch)), footprints, margin_arcsec)
    return to_reference_sources(table, name) if len(table) else None


def _several(footprint: Footprints) -> list[np.ndarray]:
    return [footprint] if isinstance(footprint, np.ndarray) and footprint.ndim == 2 else list(footprint)


def _told(sources: ReferenceSources | None, where: str) -> str:
    return f"{len(sources)} sources: {where}" if sources is not None else f"no source there: {where}"


class _Tables:
    """Catalogue files, read again only when they changed."""

    def __init__(self) -> None:
        self._tables: dict[tuple[Path, int, int], Table] = {}

    def read(self, path: Path) -> Table:
        """The standard table of a file."""
        try:
            status = path.stat()
            key = (path, status.st_size, status.st_mtime_ns)
            if key not in self._tables:
                table = read_catalog(path)
                self._tables = {k: v for k, v in self._tables.items() if k[0] != path} | {key: table}
            return self._tables[key]
        except OSError as error:
            raise ReferenceCatalogUnavailableError(f"{path}: can't be read: {error.strerror or error}") from error
