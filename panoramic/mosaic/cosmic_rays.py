"""What differs between exposures of the same sky: cosmic rays and bad pixels that no flag names.

Put here the comparison. Keep out flags from the detector: those are already in the exposures' weights.

All exposures of a patch of sky are put on a common frame of detector-like pixels; their median, seen again by each
exposure, is what it should have recorded. A pixel is rejected where it differs by more than 4.5 sigma plus 2.5 times
the local gradient; its neighbours where they differ by 3 sigma plus 1.5 times the gradient. The gradient is freed from
the noise's own share. Lower scales reject the cores of stars (at 1.2 / 0.7 fluxes fell by 2-8 %).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from panoramic.mosaic.exposures import Exposure

SIGMA, SIGMA_GROWN = 4.5, 3.0
GRADIENT, GRADIENT_GROWN = 2.5, 1.5
_BLOCK_PX = 1024
_MARGIN = 6
_STACK_BYTES = 200e6
# what the largest of four differences to neighbours amounts to in pure noise after bilinear interpolation, squared
_GRADIENT_OF_NOISE = 2.0
_STRIP = 64
_MOST_PLAUSIBLE = 0.1

Block = tuple[int, int]


@dataclass
class Rejection:
    """How much was rejected, and where nothing could be.

    Parameters
    ----------
    fraction : rejected part of each exposure's usable pixels, by dataset.
    single : part of the area that only one exposure looked at.
    notes : sentences for people.
    """

    fraction: dict[str, float] = field(default_factory=dict)
    single: float = 0.0
    notes: list[str] = field(default_factory=list)


def reject_cosmic_rays(exposures: Sequence[Exposure], progress: Callable[[str], None] | None = None) -> Rejection:
    """Compare all exposures, block by block; flags go into `Exposure.rejected`.

    Blocks lie on the field's plane and have margins, and a pixel is judged in the block that its centre falls in: the
    result depends neither on the blocks nor on the tiles.
    """
    result = Rejection(dict.fromkeys((e.dataset for e in exposures), 0.0))
    if len(exposures) < 2:
        result.single = 1.0 if exposures else 0.0
        result.notes.append("cosmic rays were not looked for: there is only one exposure")
        return result
    scale = float(np.median([e.map.scale for e in exposures]))
    size = _block_size(exposures, scale)
    found: dict[str, list[np.ndarray]] = {e.dataset: [] for e in exposures}
    area = np.zeros(2)
    blocks = _blocks(exposures, size, scale)
    for number, block in enumerate(blocks):
        area += _one_block(exposures, block, size, scale, found)
        if progress is not None:
            progress(f"cosmic rays: block {number + 1} of {len(blocks)}")
    # only now: a flag given earlier would change the next block's median inside the margin
    for exposure in exposures:
        flat = np.concatenate([*found[exposure.dataset], np.empty(0, np.uint32)])
        if flat.size:
            exposure.reject(flat)
        part = flat.size / exposure.usable_pixels if exposure.usable_pixels else 0.0
        result.fraction[exposure.dataset] = part
        if part > _MOST_PLAUSIBLE:
            result.notes.append(
                f"{exposure.dataset} differs from the other exposures in {part:.0%} of its pixels: "
                "look at its alignment and its sharpness"
            )
    result.single = float(area[0] / area[1]) if area[1] else 0.0
    if result.single > 0.005:
        result.notes.append(
            f"cosmic rays can't be told from sources in {result.single:.0%} of the area, where only one exposure looks"
        )
    return result


def _one_block(
    exposures: Sequence[Exposure], block: Block, size: int, scale: float, found: dict[str, list[np.ndarray]]
) -> np.ndarray:
    """Judge the pixels of one block; (area seen once, area seen at all) in pixels of the frame."""
    from drizzle.resample import blot_image

    box = _box(block, size, scale, _MARGIN)
    members = [(e, w) for e in exposures if e.typical_weight > 0 and (w := e.map.window(box)) is not None]
    if not members:
        return np.zeros(2)
    origin, shape = _frame([e for e, _ in members], block, size, scale)
    stack = np.empty((len(members), *shape), np.float32)
    variance = np.zeros(shape, np.float32)
    images = []
    for k, (exposure, window) in enumerate(members):
        pixels = exposure.read(window)
        # NaN spreads through the interpolation: a sample next to a bad pixel is no sample
        pixels.science[pixels.weight == 0] = np.nan
        images.append(pixels.science)
        back = exposure.inverse.expand(origin, shape, scale)
        back -= (window[2], window[0])
        blot_image(pixels.science, back, out_img=stack[k], fillval=np.nan, interp="linear")
        variance += np.isfinite(stack[k]) * np.float32(1 / exposure.typical_weight)
    reference, sigma, count = expected(stack, variance)
    gradient = gradient_without_noise(reference, sigma)
    corner = np.array([block[0] * size - origin[0], block[1] * size - origin[1]])
    first, last = np.maximum(corner, 0), corner + size
    inner = count[first[1] : last[1], first[0] : last[0]]
    seen = np.array([np.count_nonzero(inner == 1), np.count_nonzero(inner > 0)])
    if not (count > 1).any():
        return seen
    for (exposure, window), science in zip(members, images, strict=True):
        there = exposure.map.expand(window, origin, scale)
        model = blot_image(reference, there, fillval=np.nan, interp="linear")
        rows, columns = outliers(science - model, exposure.read_error(window), gradient, sigma, there)
        position = there[rows, columns] - corner + 0.5
        own = ((position >= 0) & (position < size)).all(axis=1)
        flat = (rows[own] + window[0]) * exposure.shape[1] + columns[own] + window[2]
        found[exposure.dataset].append(flat.astype(np.uint32))
    return seen


def _frame(
    members: Sequence[Exposure], block: Block, size: int, scale: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """First pixel (x, y) and shape of the part of a block, margin included, that its exposures can fill."""
    low, high = [], []
    for axis, first in enumerate((block[0] * size, block[1] * size)):
        planes = [(e.map.x, e.map.y)[axis] for e in members]
        low.append(max(first - _MARGIN, int(min(plane.min() for plane in planes) // scale) - 1))
        high.append(min(first + size + _MARGIN, int(max(plane.max() for plane in planes) // scale) + 2))
    return (low[0], low[1]), (high[1] - low[1], high[0] - low[0])


def expected(stack: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the sky looks like behind the outliers of single exposures.

    Three or more samples: their median. Two: the fainter, because cosmic rays are bright, unless the fainter one is a
    hole in its own surroundings while the other is not. One: unknown.

    Parameters
    ----------
    stack : (exposures, rows, columns), MJy/sr, NaN where an exposure has no sample.
    variance : (rows, columns), sum over the samples of each one's pixel variance, (MJy/sr)^2.

    Returns
    -------
    reference, sigma : (rows, columns), the expected value and its noise; NaN where it is unknown.
    count : samples per pixel.
    """
    n, rows, columns = stack.shape
    reference = np.full((rows, columns), np.nan, np.float32)
    count = np.zeros((rows, columns), np.int16)
    low, high = reference.copy(), reference.copy()
    for y in range(0, rows, _STRIP):
        strip = slice(y, y + _STRIP)
        part = np.sort(stack[:, strip], axis=0)  # NaN goes last
        number = np.isfinite(part).sum(axis=0)
        below, above = (
            np.take_along_axis(part, np.clip(k, 0, n - 1)[None], axis=0)[0] for k in ((number - 1) // 2, number // 2)
        )
        reference[strip] = np.where(number >= 2, (below + above) / 2, np.nan)
        low[strip] = np.where(number == 2, below, reference[strip])
        high[strip] = np.where(number == 2, above, reference[strip])
        count[strip] = number
    with np.errstate(invalid="ignore", divide="ignore"):
        typical = np.sqrt(variance / count)
    pair = count == 2
    reference[pair] = low[pair]
    with np.errstate(invalid="ignore"):
        j, i = np.nonzero(pair & (high > low + 4 * typical))
    if j.size:
        hole = low[j, i] < _surroundings(low, j, i) - 4 * typical[j, i]
        reference[j[hole], i[hole]] = high[j[hole], i[hole]]
    # the median of k has pi/2 times the variance of their mean, and interpolation has averaged about two pixels
    number = np.maximum(count, 1)
    sigma = typical * np.sqrt(0.5 * np.where(count > 2, np.pi / 2 / number, 1.0))
    return reference, np.where(count >= 2, sigma, np.nan).astype(np.float32), count


def _surroundings(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Median of the known ones of the 3 x 3 pixels around single pixels; NaN where none is known."""
    padded = np.pad(image, 1, constant_values=np.nan)
    around = np.sort([padded[y + j, x + i] for j in (0, 1, 2) for i in (0, 1, 2)], axis=0)
    count = np.isfinite(around).sum(axis=0)
    return np.take_along_axis(around, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]


def gradient_without_noise(reference: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Largest difference to one of the four neighbours, less what noise alone makes of it, in quadrature."""
    steep = np.zeros_like(reference)
    for axis in (0, 1):
        step = np.abs(np.diff(reference, axis=axis))
        np.nan_to_num(step, copy=False, nan=0.0)
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        steep[tuple(before)] = np.maximum(steep[tuple(before)], step)
        steep[tuple(after)] = np.maximum(steep[tuple(after)], step)
    return np.sqrt(np.maximum(steep**2 - _GRADIENT_OF_NOISE * np.nan_to_num(sigma) ** 2, 0)).astype(np.float32)


def outliers(
    difference: np.ndarray, error: np.ndarray, gradient: np.ndarray, sigma: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that differ, and those beside them that differ a little less.

    Parameters
    ----------
    difference, error : exposure less expected value, and the exposure's own noise, (rows, columns), NaN: unknown.
    gradient, sigma : of the expected image, on its own frame.
    there : position (x, y) of each pixel on that frame, (rows, columns, 2).

    Returns
    -------
    rows, columns of the outliers.
    """
    size = np.abs(difference)
    # gradient and the reference's noise only raise the threshold: they are looked up for these few pixels alone
    rows, columns = np.nonzero(size > SIGMA_GROWN * error)
    if rows.size == 0:
        return rows, columns
    slope, blurred = _sample((gradient, sigma), there[rows, columns])
    value, noise = size[rows, columns], np.hypot(error[rows, columns], blurred)
    sure = value > SIGMA * noise + GRADIENT * slope
    likely = value > SIGMA_GROWN * noise + GRADIENT_GROWN * slope
    core = np.zeros(np.add(size.shape, 2), bool)
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            core[rows[sure] + dy, columns[sure] + dx] = True
    taken = sure | (likely & core[rows + 1, columns + 1])
    return rows[taken], columns[taken]


def _sample(images: tuple[np.ndarray, ...], position: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bilinear samples of images of one shape at positions (N, 2) of (x, y); NaN outside."""
    rows, columns = images[0].shape
    inside = (position >= 0).all(axis=1) & (position[:, 0] <= columns - 1) & (position[:, 1] <= rows - 1)
    x, y = np.where(inside, position.T, 0)
    i, j = np.minimum(x.astype(int), columns - 2), np.minimum(y.astype(int), rows - 2)
    u, v = x - i, y - j
    weights = ((1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v)
    corners = ((j, i), (j, i + 1), (j + 1, i), (j + 1, i + 1))
    return tuple(
        np.where(inside, sum(w * image[c] for w, c in zip(weights, corners, strict=True)), np.nan) for image in images
    )


def _block_size(exposures: Sequence[Exposure], scale: float) -> int:
    """Side of a block for which the stack of all exposures on it stays within the memory it may use."""
    size = _BLOCK_PX
    while size > 128:
        most = max(
            sum(e.map.window(_box(block, size, scale, _MARGIN)) is not None for e in exposures)
            for block in _blocks(exposures, size, scale)
        )
        if most * size**2 * 4 <= _STACK_BYTES:
            break
        size //= 2
    return size


def _blocks(exposures: Sequence[Exposure], size: int, scale: float) -> list[Block]:
    """Blocks that any exposure reaches, by row and column."""
    found: set[Block] = set()
    for e in exposures:
        for j in range(int(e.map.y.min() // (size * scale)), int(e.map.y.max() // (size * scale)) + 1):
            for i in range(int(e.map.x.min() // (size * scale)), int(e.map.x.max() // (size * scale)) + 1):
                if (i, j) not in found and e.map.window(_box((i, j), size, scale, 0)) is not None:
                    found.add((i, j))
    return sorted(found, key=lambda block: (block[1], block[0]))


def _box(block: Block, size: int, scale: float, margin: int) -> tuple[float, float, float, float]:
    """Extent of a block on the field's plane, in grid pixels."""
    x, y = block[0] * size - margin, block[1] * size - margin
    side = size + 2 * margin
    return x * scale - 0.5, (x + side) * scale - 0.5, y * scale - 0.5, (y + side) * scale - 0.5
