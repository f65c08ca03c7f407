"""Backgrounds matched: one constant per exposure, from what overlapping exposures differ by.

Put here the constants. Keep out anything with structure: that is the reduction's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from panoramic.mosaic.exposures import Exposure

BLOCK_PX = 16
_MINIMUM_CELLS = 20
_HUBER = 2.5
_ROUNDS = 8


@dataclass(frozen=True)
class CoarseImage:
    """An exposure in cells of the common coarse plane: ``values`` (rows, columns), NaN where nothing is known.

    ``origin`` is the (x, y) index of the first cell; ``weight`` the exposure's share in the mean that is kept.
    """

    origin: tuple[int, int]
    values: np.ndarray
    weight: float


@dataclass(frozen=True)
class SkySolution:
    """Constants to subtract, in the order of the input, MJy/sr, and how many overlaps they rest on."""

    offsets: np.ndarray
    n_overlaps: int
    n_groups: int


def coarse_image(exposure: Exposure, cell: float) -> CoarseImage:
    """Medians of detector blocks of 16 px, put into the cells (``cell`` grid pixels wide) that their centres fall in.

    A cell that stands out of the exposure's own distribution by 3 sigma holds a source and is left out: where blocks
    of two exposures cut a source differently, their difference says nothing about the sky.
    """
    ny, nx = (max(1, n // BLOCK_PX) for n in exposure.shape)
    size_y, size_x = min(BLOCK_PX, exposure.shape[0]), min(BLOCK_PX, exposure.shape[1])
    pixels = exposure.read((0, ny * size_y, 0, nx * size_x))
    values = np.where(pixels.weight > 0, pixels.science, np.float32(np.inf))
    blocks = values.reshape(ny, size_y, nx, size_x).transpose(0, 2, 1, 3).reshape(ny * nx, size_y * size_x)
    blocks = np.sort(blocks, axis=1)
    count = np.isfinite(blocks).sum(axis=1)
    middle = np.take_along_axis(blocks, np.maximum(count // 2, 0)[:, None].clip(max=blocks.shape[1] - 1), axis=1)[:, 0]
    usable = count >= blocks.shape[1] // 2
    rows, columns = np.divmod(np.arange(ny * nx), nx)
    x, y = exposure.map.at((columns + 0.5) * size_x - 0.5, (rows + 0.5) * size_y - 0.5)
    weight = float(pixels.weight.sum(dtype=float))
    if not usable.any():
        return CoarseImage((0, 0), np.full((1, 1), np.nan), weight)
    level = np.median(middle[usable])
    spread = 1.4826 * np.median(np.abs(middle[usable] - level))
    usable &= middle <= level + 3 * spread + 1e-30
    i, j = np.floor((x + 0.5) / cell).astype(int)[usable], np.floor((y + 0.5) / cell).astype(int)[usable]
    origin = int(i.min()), int(j.min())
    shape = int(j.max()) - origin[1] + 1, int(i.max()) - origin[0] + 1
    flat = (j - origin[1]) * shape[1] + (i - origin[0])
    number = np.bincount(flat, minlength=shape[0] * shape[1])
    total = np.bincount(flat, weights=middle[usable], minlength=number.size)
    with np.errstate(invalid="ignore"):
        mean = np.where(number > 0, total / number, np.nan)
    return CoarseImage(origin, mean.reshape(shape), weight)


def difference(one: CoarseImage, two: CoarseImage) -> tuple[float, float, int] | None:
    """Clipped median of ``one - two`` where both are known: value, its error, number of cells. None: too few."""
    x0, y0 = max(one.origin[0], two.origin[0]), max(one.origin[1], two.origin[1])
    x1 = min(one.origin[0] + one.values.shape[1], two.origin[0] + two.values.shape[1])
    y1 = min(one.origin[1] + one.values.shape[0], two.origin[1] + two.values.shape[0])
    if x1 <= x0 or y1 <= y0:
        return None
    cuts = [c.values[y0 - c.origin[1] : y1 - c.origin[1], x0 - c.origin[0] : x1 - c.origin[0]] for c in (one, two)]
    d = (cuts[0] - cuts[1]).ravel()
    d = d[np.isfinite(d)]
    for _ in range(3):
        if d.size < _MINIMUM_CELLS:
            return None
        middle = np.median(d)
        spread = 1.4826 * np.median(np.abs(d - middle))
        d = d[np.abs(d - middle) <= 3 * spread + 1e-30]
    if d.size < _MINIMUM_CELLS:
        return None
    middle = float(np.median(d))
    spread = 1.4826 * float(np.median(np.abs(d - middle)))
    return middle, 1.2533 * spread / np.sqrt(d.size), d.size


def solve(images: Sequence[CoarseImage]) -> SkySolution:
    """Least squares over all overlaps, with outlying overlaps weighted down (Huber).

    In each group of exposures that hang together the weighted mean of the constants is zero: matching moves light
    between exposures, it takes none away. An exposure that overlaps nothing gets 0.
    """
    n = len(images)
    first, second, value, error = [], [], [], []
    for i in range(n):
        for j in range(i + 1, n):
            found = difference(images[i], images[j])
            if found is not None:
                first.append(i)
                second.append(j)
                value.append(found[0])
                error.append(found[1])
    offsets = np.zeros(n)
    group = _groups(n, first, second)
    if not first:
        return SkySolution(offsets, 0, n)
    one, two, d, e = np.array(first), np.array(second), np.array(value), np.array(error)
    # an overlap of a million pixels is still not known better than the flat field under it
    e = np.hypot(e, max(float(np.median(e)), 1e-12))
    huber = np.ones(d.size)
    for _ in range(_ROUNDS):
        offsets = _least_squares(n, one, two, d, huber / e**2, group, np.array([c.weight for c in images]))
        residual = np.abs(offsets[one] - offsets[two] - d) / e
        huber = np.minimum(1.0, _HUBER / np.maximum(residual, 1e-12))
    return SkySolution(offsets, d.size, int(np.unique(group).size))


def _least_squares(
    n: int, i: np.ndarray, j: np.ndarray, d: np.ndarray, w: np.ndarray, group: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Solve ``b_i - b_j = d`` with weights ``w``, each group's weighted mean being zero."""
    normal, right = np.zeros((n, n)), np.zeros(n)
    np.add.at(normal, (i, i), w)
    np.add.at(normal, (j, j), w)
    np.add.at(normal, (i, j), -w)
    np.add.at(normal, (j, i), -w)
    np.add.at(right, i, w * d)
    np.add.at(right, j, -w * d)
    # one tie per group makes the system regular; which tie is immaterial, the mean is taken out below
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        normal[members[0], members[0]] += float(w.max())
    solution = np.linalg.solve(normal, right)
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        shares = share[members] if share[members].sum() > 0 else np.ones(members.size)
        solution[members] -= np.average(solution[members], weights=shares)
    return solution


def _groups(n: int, first: list[int], second: list[int]) -> np.ndarray:
    """Number of the connected group that each exposure is in."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    return connected_components(links, directed=False)[1]
