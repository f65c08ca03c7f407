"""The truth of a simulated archive: what was put into the pixels, and where they really looked.

Put here the reader that tests use. Keep out everything that the pipeline could come to depend on: it never reads
this folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Row, Table
from numpy.typing import ArrayLike, NDArray

from panoramic.errors import InputError, UnknownNameError
from panoramic.simulate.geometry import Pointing, aperture, filter_offset

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth tables of one archive.

    Parameters
    ----------
    sources : ``id``, ``field``, ``ra``, ``dec`` (*deg*, at the field's first exposure), ``kind``, ``mag_{filter}``,
        ``mag_gaia``, ``mag_ls`` (AB), ``re_arcsec``, ``n``, ``axis_ratio``, ``pa`` (*deg*), ``pm_ra``, ``pm_dec``
        (*mas/yr*).
    exposures : one row per dataset: true and reported pointing of its aperture's reference point, and what makes
        the difference.
    references : per catalogue name, its rows with ``source_id`` (-1: belongs to nothing) and true position.
    """

    sources: Table
    exposures: Table
    references: dict[str, Table]

    @classmethod
    def load(cls, path: Path | str) -> Truth:
        """Read the truth of the archive in a folder.

        Raises
        ------
        InputError
            The folder holds no simulated archive.
        """
        folder = Path(path) / "truth"
        if not (folder / "sources.fits").exists():
            raise InputError(f"{folder} holds no truth tables: only a simulated archive has them")
        references = {
            file.stem.removeprefix("reference_"): Table.read(file, format="ascii.ecsv")
            for file in sorted(folder.glob("reference_*.ecsv"))
        }
        sources = Table.read(folder / "sources.fits")
        sources.convert_bytestring_to_unicode()
        return cls(sources, Table.read(folder / "exposures.ecsv", format="ascii.ecsv"), references)

    def exposure(self, dataset: str) -> Row:
        """The row of an exposure (a file name will do).

        Raises
        ------
        UnknownNameError
            There is no such dataset.
        """
        name = Path(dataset).name.removesuffix(".fits").removesuffix("_rate")
        rows = np.flatnonzero(np.asarray(self.exposures["dataset"]) == name)
        if not len(rows):
            raise UnknownNameError("dataset", name, self.exposures["dataset"])
        return self.exposures[int(rows[0])]

    def true_sky(self, dataset: str, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Where pixels really looked.

        Parameters
        ----------
        dataset : name of the exposure.
        x, y : 0-based pixels of the science frame, any shape.

        Returns
        -------
        (array, array)
            Right ascension and declination, *degrees*.
        """
        return self._sky(dataset, x, y, "true")

    def reported_sky(self, dataset: str, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Where the exposure's header says that pixels looked; as `true_sky`."""
        return self._sky(dataset, x, y, "reported")

    def true_pixel(self, dataset: str, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
        """The inverse of `true_sky`."""
        row = self.exposure(dataset)
        dx, dy = filter_offset(row["detector"], row["band"])
        x, y = aperture(row["detector"]).sky_to_pixel(_pointing(row, "true"), ra, dec)
        return x - dx, y - dy

    def catalog_scatter(self, name: str, ids: ArrayLike | None = None) -> tuple[Array, Array]:
        """What catalogue positions are off by: (catalogue - true) east and north, *milliarcsec*; NaN for false entries.

        Parameters
        ----------
        name : of the catalogue, e.g. ``LS_DR9``.
        ids : rows (``id`` column); all, if not given.
        """
        if name not in self.references:
            raise UnknownNameError("reference catalogue", name, self.references)
        table = self.references[name]
        rows = np.arange(len(table)) if ids is None else np.searchsorted(table["id"], ids)
        east = np.where(table["source_id"] >= 0, table["east_mas"], np.nan)[rows]
        north = np.where(table["source_id"] >= 0, table["north_mas"], np.nan)[rows]
        return np.asarray(east, float), np.asarray(north, float)

    def _sky(self, dataset: str, x: ArrayLike, y: ArrayLike, which: str) -> tuple[Array, Array]:
        row = self.exposure(dataset)
        dx, dy = filter_offset(row["detector"], row["band"])
        ap = aperture(row["detector"])
        return ap.pixel_to_sky(_pointing(row, which), np.asarray(x, float) + dx, np.asarray(y, float) + dy)


def _pointing(row: Row, which: str) -> Pointing:
    return Pointing(
        float(row[f"ra_ref_{which}"]),
        float(row[f"dec_ref_{which}"]),
        float(row[f"roll_ref_{which}"]),
        float(row["va_scale"]),
    )
