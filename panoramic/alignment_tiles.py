"""Residuals of matched sources by tile of the detector, in which rotation and distortion show.

Put here the statistics of the tiles. Keep out how sources are matched (`panoramic.alignment_solution`) and how tiles
are drawn.
"""

from __future__ import annotations

import math

import numpy as np

from panoramic.alignment_measurement import Tile
from panoramic.errors import InputError

FEWEST = 3
# standard deviation of a Gaussian over its median absolute deviation, and of its median over that of its mean
_SIGMA_OF_MAD, _MEDIAN_OF_MEAN = 1.4826, math.sqrt(math.pi / 2)
# what the median absolute deviation of few values must be multiplied by to be right in the mean (Croux and
# Rousseeuw 1992), from 3 to 9; above it n / (n - 0.8)
_FEW = {3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}


def tile_residuals(
    x: np.ndarray,
    y: np.ndarray,
    dra: np.ndarray,
    ddec: np.ndarray,
    shape: tuple[int, int],
    tiles: tuple[int, int] | int,
) -> tuple[Tile, ...]:
    """Median residual and its error in each tile of a detector.

    Parameters
    ----------
    x, y : pixels of the matched sources, counted from 0 at the middle of the first pixel, shape (N,).
    dra, ddec : residuals, mas, shape (N,).
    shape : rows and columns of the detector, pixels.
    tiles : rows and columns of tiles; one number: as many of both.

    Returns
    -------
    The tiles with 3 sources or more, by row, then column. Sources that are not finite or not on the detector are left
    out. Errors come from the median absolute deviation, so one wild residual changes little.

    Raises
    ------
    InputError
        Arrays of different lengths, or a shape or number of tiles that is not positive.
    """
    x, y, dra, ddec = (np.atleast_1d(np.asarray(v, float)) for v in (x, y, dra, ddec))
    rows, columns = (tiles, tiles) if isinstance(tiles, int | np.integer) else tiles
    if len({v.shape for v in (x, y, dra, ddec)}) != 1 or x.ndim != 1:
        raise InputError("x, y, dra and ddec of the tiles need one value each for every source")
    if min(*shape, rows, columns) <= 0:
        raise InputError(f"a detector of {shape} pixels can't have {rows} x {columns} tiles; both must be positive")
    # the first pixel reaches from -0.5 to 0.5
    across, up = (x + 0.5) / shape[1], (y + 0.5) / shape[0]
    usable = np.isfinite(x + y + dra + ddec) & (across >= 0) & (across <= 1) & (up >= 0) & (up <= 1)
    across, up, dra, ddec = across[usable], up[usable], dra[usable], ddec[usable]
    column = np.minimum((across * columns).astype(int), columns - 1)
    row = np.minimum((up * rows).astype(int), rows - 1)
    found = []
    for number in np.unique(row * columns + column):
        inside = row * columns + column == number
        if np.count_nonzero(inside) < FEWEST:
            continue
        (east, east_error), (north, north_error) = (_median(v[inside]) for v in (dra, ddec))
        n, place = int(np.count_nonzero(inside)), divmod(int(number), columns)
        found.append(Tile(place[1], place[0], n, east, north, east_error, north_error))
    return tuple(found)


def _median(values: np.ndarray) -> tuple[float, float]:
    """Median and its standard error."""
    n, middle = len(values), float(np.median(values))
    sigma = _SIGMA_OF_MAD * float(np.median(np.abs(values - middle))) * _FEW.get(n, n / (n - 0.8))
    return middle, _MEDIAN_OF_MEAN * sigma / math.sqrt(n)
