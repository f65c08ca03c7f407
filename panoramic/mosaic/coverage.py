"""Coverage recounted from a mosaic's files alone: is every exposure in it, do the planes agree?

Put here what reads finished files. Keep out anything that the build itself knows: this is its witness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoramic.errors import ProductDamagedError
from panoramic.mosaic.grid import polygon_vertices

_BAND_ROWS = 1024
_SAMPLES = 4000
_PRESENT = 0.01


@dataclass(frozen=True)
class CoverageReport:
    """What the planes of a mosaic say about its exposures.

    Parameters
    ----------
    measured : by dataset, the part of its footprint in which its exposure time is found in the exposure plane, after
        the times of all others that should be there: 1 but for bad pixels, 0 where it is missing.
    missing : expected datasets that are not in the table of inputs, state no pixel, or are not found in the plane.
    unexpected : datasets in the table of inputs that nobody expected.
    n_pixels : pixels with weight.
    n_disagree : pixels that have weight but no exposure time, or the other way round.
    n_bad : pixels with a value that is not finite, or a negative weight or time.
    fraction : part of the rectangle's pixels that have weight.
    area_arcmin2 : area with weight.
    """

    measured: dict[str, float]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    n_pixels: int
    n_disagree: int
    n_bad: int
    fraction: float
    area_arcmin2: float

    @property
    def passed(self) -> bool:
        """Every expected exposure and no other is in the mosaic, and the planes agree."""
        return not (self.missing or self.unexpected or self.n_disagree or self.n_bad) and self.n_pixels > 0


def measure_coverage(folder: Path, stem: str, datasets: Iterable[str]) -> CoverageReport:
    """Recount a finished mosaic.

    Parameters
    ----------
    folder, stem : as given to ``build_mosaic``.
    datasets : the exposures that should be in it.

    Raises
    ------
    ProductDamagedError
        A plane is missing, can't be read, or its shape differs from the science plane's.
    """
    from astropy.io import fits

    expected = set(datasets)
    paths = {plane: Path(folder) / f"{stem}_{plane}.fits" for plane in ("sci", "wht", "exp")}
    try:
        with (
            fits.open(paths["sci"], memmap=True) as sci,
            fits.open(paths["wht"]) as wht,
            fits.open(paths["exp"]) as exp,
        ):
            shape = sci[0].shape
            if wht[0].shape != shape or exp[0].shape != shape:
                raise ProductDamagedError(f"{stem}: the planes are not of one shape")
            header = sci[0].header.copy()
            table = np.array(sci["INPUTS"].data)
            counts = np.zeros(3, np.int64)
            for y in range(0, shape[0], _BAND_ROWS):
                s, w, t = (h[0].section[y : y + _BAND_ROWS] for h in (sci, wht, exp))
                counts += (
                    np.count_nonzero(w > 0),
                    np.count_nonzero((w > 0) != (t > 0)),
                    np.count_nonzero(~(np.isfinite(s) & (w >= 0) & (t >= 0) & np.isfinite(w) & np.isfinite(t))),
                )
            measured = _measure(table, header, exp[0])
    except (OSError, KeyError) as error:
        raise ProductDamagedError(f"{stem} in {folder}: {error}; build the mosaic again") from error
    stated = {_text(row["dataset"]) for row in table if row["pixels"] > 0}
    listed = {_text(row["dataset"]) for row in table}
    missing = {d for d in expected if d not in stated or measured[d] <= _PRESENT}
    scale = abs(header["CDELT1"]) * 60
    return CoverageReport(
        measured=measured,
        missing=tuple(sorted(missing)),
        unexpected=tuple(sorted(listed - expected)),
        n_pixels=int(counts[0]),
        n_disagree=int(counts[1]),
        n_bad=int(counts[2]),
        fraction=float(counts[0]) / float(np.prod(shape)),
        area_arcmin2=float(counts[0]) * scale**2,
    )


def _measure(table: np.ndarray, header: object, plane: object) -> dict[str, float]:
    """Part of each exposure's footprint in which its own time is found on top of the others'."""
    import shapely
    from astropy.wcs import WCS

    wcs = WCS(header)
    polygons = []
    for row in table:
        vertices = polygon_vertices(_text(row["footprint"]))
        polygons.append(shapely.Polygon(wcs.all_world2pix(vertices, 0)).buffer(0))
    seconds = np.asarray(table["seconds"], float)
    found: dict[str, float] = {}
    rows, columns = plane.shape  # type: ignore[attr-defined]
    for k, polygon in enumerate(polygons):
        west, south, east, north = polygon.bounds
        step = max(1.0, np.sqrt((east - west) * (north - south) / _SAMPLES))
        # whole rows are read, so sample many columns of few rows
        x = np.unique(np.round(np.arange(west, east, step / 4)).astype(int).clip(0, columns - 1))
        y = np.unique(np.round(np.arange(south, north, step * 4)).astype(int).clip(0, rows - 1))
        if x.size == 0 or y.size == 0:
            found[_text(table["dataset"][k])] = 0.0
            continue
        gx, gy = np.meshgrid(x, y)
        inside = shapely.contains_xy(polygon, gx, gy)
        actual = np.array([plane.section[j, x[0] : x[-1] + 1][x - x[0]] for j in y])  # type: ignore[attr-defined]
        others = np.zeros(gx.shape)
        for i, other in enumerate(polygons):
            if i != k and other.intersects(polygon):
                others += seconds[i] * shapely.contains_xy(other, gx, gy)
        share = np.clip((actual - others) / seconds[k], 0, 1)
        found[_text(table["dataset"][k])] = float(share[inside].mean()) if inside.any() else 0.0
    return found


def _text(value: bytes | str) -> str:
    """A table's text, which numpy may hand out as bytes."""
    return (value.decode("ascii") if isinstance(value, bytes) else str(value)).strip()
