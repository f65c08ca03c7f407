"""External reference catalogues: where they are had from.

Put here the finding and reading of catalogues. Keep out what a catalogue must hold and how its sources move
(`panoramic/reference.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from panoramic.errors import ReferenceCatalogUnavailableError
from panoramic.reduction.base import ReferenceSources
from panoramic.reference import at_epoch, read_catalog, to_reference_sources, within, without_duplicates

if TYPE_CHECKING:
    from astropy.table import Table

SUFFIXES = (".ecsv", ".csv", ".fits")
# far enough that no source moves into the footprint from outside (0.5 arcsec/yr for 60 years)
MOTION_MARGIN_ARCSEC = 30.0


class ReferenceCatalogs(Protocol):
    """Catalogues by name, in the survey's order of preference."""

    def available(self) -> list[str]:
        """Names that can be asked for, the preferred first."""
        ...

    def load(
        self, name: str, footprint: np.ndarray | Sequence[np.ndarray], epoch: float, margin_arcsec: float = 0.0
    ) -> ReferenceSources | None:
        """Sources of a catalogue in one footprint or several ((N, 2) vertices in deg), at an epoch (Julian year).

        Returns
        -------
        None where the catalogue does not exist or has no source there.

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
        self._tables: dict[tuple[Path, int, int], Table] = {}

    def present(self) -> list[str]:
        """Names of all catalogues in the folder, whether the survey asks for them or not."""
        return sorted(path.stem for path in self._files().values())

    def available(self) -> list[str]:
        """Names of the survey that are there, the preferred first."""
        if self.names_in_order is None:
            return self.present()
        files = self._files()
        return [name for name in self.names_in_order if name.upper() in files]

    def load(
        self, name: str, footprint: np.ndarray | Sequence[np.ndarray], epoch: float, margin_arcsec: float = 0.0
    ) -> ReferenceSources | None:
        """Sources of a catalogue around footprints; see `ReferenceCatalogs.load`."""
        path = self._files().get(name.upper())
        if path is None:
            return None
        footprints = [footprint] if isinstance(footprint, np.ndarray) and footprint.ndim == 2 else list(footprint)
        table = within(self._read(path), footprints, margin_arcsec + MOTION_MARGIN_ARCSEC)
        table = within(without_duplicates(at_epoch(table, epoch)), footprints, margin_arcsec)
        return to_reference_sources(table, name) if len(table) else None

    def _files(self) -> dict[str, Path]:
        if self.folder is None or not self.folder.is_dir():
            return {}
        found: dict[str, Path] = {}
        for suffix in SUFFIXES:
            for path in sorted(self.folder.glob(f"*{suffix}")):
                found.setdefault(path.stem.upper(), path)
        return found

    def _read(self, path: Path) -> Table:
        """The catalogue, read again only when the file changed."""
        try:
            status = path.stat()
            key = (path, status.st_size, status.st_mtime_ns)
            if key not in self._tables:
                table = read_catalog(path)
                self._tables = {k: v for k, v in self._tables.items() if k[0] != path} | {key: table}
            return self._tables[key]
        except OSError as error:
            raise ReferenceCatalogUnavailableError(f"{path}: can't be read: {error.strerror or error}") from error
