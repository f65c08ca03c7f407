"""What is not sky in an exposure: sources with their halos and spikes, and objects larger than a mesh.

Put here masks, and the smooth surface that big objects stand out of, on plain arrays. Keep out the sky itself
(`background.py`) and catalogues.

Two kinds of masks, both found on means of 4 x 4 px:

- sources: means that stand out of the local sky, grown by 8 px. Diffraction spikes and halos of bright stars are long
  and faint: means of 12 px that stand out less count where they touch a source, and so on outwards;
- extended objects: medians of 16 px blocks that stand out of one clipped plane. A mesh follows a galaxy larger than
  itself (one of 8 arcsec lost 12-67 % of its light); a plane does not.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Shape = tuple[int, ...]

GROW_PX = 8
LOCAL_PX = 128
"""Mesh of the local sky that sources stand out of."""
_CELL = 4
_BLOCK = 4  # cells
_SURE, _LIKELY, _FAINT = 4.0, 2.5, 2.0
_BLOCK_SEED, _BLOCK_EDGE = 5.0, 1.5
_LEAST_BLOCKS = 6
_BLOCK_FREE = 5  # cells of 16


def find_sources(image: Image, unusable: Mask, *, grow_px: int = GROW_PX) -> Mask:
    """What is not sky: sources with their halos and spikes, extended objects.

    Parameters
    ----------
    image : (rows, columns); NaN is left out.
    unusable : pixels without a valid value.
    grow_px : how far a source's mask reaches beyond what was detected.

    Returns
    -------
    array of bool, (rows, columns)
        Pixels that are only unusable are not in it.
    """
    image = check_image(image, unusable)
    mean, count = cells(image, unusable)
    if not (count > 0).any():
        return np.zeros(image.shape, bool)
    found = _grown(_compact(mean, count), -(-grow_px // _CELL))
    found |= _extended(mean, count, found)
    return _magnified(found, image.shape)


def sources_in_stripes(image: Image, unusable: Mask, amplifiers: int = 4) -> Mask:
    """What is not sky in an image that has stripes still (see `find_sources`).

    A mask of what stands out of the sky would choose among the stripes' rows, and their means would be too low. So the
    medians of each row of cells in each amplifier are taken away before.
    """
    image = check_image(image, unusable)
    mean, count = cells(image, unusable)
    if not (count > 0).any():
        return np.zeros(image.shape, bool)
    found = count < _CELL
    for _ in range(2):
        free = np.where(found | (count < _CELL), np.nan, mean)
        clean = mean.copy()
        for part in np.array_split(np.arange(mean.shape[1]), amplifiers):
            medians = _row_medians(free[:, part[0] : part[-1] + 1])
            clean[:, part[0] : part[-1] + 1] -= medians[:, None]
        compact = _grown(_compact(clean, count), -(-GROW_PX // _CELL))
        # an object narrower than half the image does not change the medians of whole rows
        rows = _row_medians(np.where(compact | (count < _CELL), np.nan, mean))
        found = compact | _extended(mean - rows[:, None], count, compact)
    return _magnified(found, image.shape)


def check_image(image: Image, unusable: Mask) -> Image:
    """The image in the machine's byte order, which compiled code needs.

    Raises
    ------
    InputError
        Image and mask are not two-dimensional and of one shape.
    """
    if image.ndim != 2 or unusable.shape != image.shape:
        raise InputError(f"image {image.shape} and mask {unusable.shape} must be two-dimensional and of one shape")
    return np.ascontiguousarray(image, np.float32)


def _magnified(cells: Mask, shape: Shape) -> Mask:
    """The same mask at the image's scale."""
    return np.repeat(np.repeat(cells, _CELL, axis=0), _CELL, axis=1)[: shape[0], : shape[1]]


def _grown(mask: Mask, radius: int) -> Mask:
    """The mask and everything within a radius of it."""
    from scipy.ndimage import binary_dilation

    if radius < 1:
        return mask
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return binary_dilation(mask, np.hypot(x, y) < radius + 0.5)


@numba.njit(cache=True)
def cells(image, unusable):  # type: ignore[no-untyped-def]
    """Means of 4 x 4 px, NaN where no pixel is usable, and the number of usable ones."""
    rows, columns = image.shape
    mean = np.full(((rows + 3) // 4, (columns + 3) // 4), np.nan, np.float32)
    count = np.zeros(mean.shape, np.uint8)
    for j in range(mean.shape[0]):
        for i in range(mean.shape[1]):
            total, n = 0.0, 0
            for y in range(4 * j, min(4 * j + 4, rows)):
                for x in range(4 * i, min(4 * i + 4, columns)):
                    if not unusable[y, x] and np.isfinite(image[y, x]):
                        total += image[y, x]
                        n += 1
            count[j, i] = n
            if n:
                mean[j, i] = total / n
    return mean, count


def _row_medians(values: Image) -> Image:
    """Median of each row without NaN; a row without values has its neighbours' between."""
    ordered = np.sort(values, axis=1)  # NaN goes last
    number = np.isfinite(ordered).sum(axis=1)
    low, high = (
        np.take_along_axis(ordered, (np.maximum(n, 0) // 2)[:, None], axis=1)[:, 0] for n in (number - 1, number)
    )
    known = number >= max(4, values.shape[1] // 16)
    if not known.any():
        return np.zeros(values.shape[0], np.float32)
    rows = np.arange(values.shape[0])
    return np.interp(rows, rows[known], ((low + high) / 2)[known]).astype(np.float32)


def _compact(mean: Image, count: NDArray[np.uint8]) -> Mask:
    """Cells that stand out of the local sky, and those beside them that do so less."""
    import sep
    from scipy.ndimage import binary_propagation, uniform_filter

    empty = count < _CELL
    filled = np.where(empty, 0.0, mean).astype(np.float32)
    mesh = max(8, min(LOCAL_PX // _CELL, *mean.shape))
    found = empty
    scale = np.sqrt(np.maximum(count, 1) / np.float32(_CELL**2))
    # too few cells say nothing: the square root keeps their noise as it is
    share = np.sqrt(np.maximum(uniform_filter((~empty).astype(np.float32), 3, mode="constant"), 1 / 9))
    for _ in range(2):
        if found.all():
            found = empty
        sky = sep.Background(filled, mask=found, bw=mesh, bh=mesh, fw=3, fh=3).back(dtype=np.float32)
        rest = np.where(empty, 0.0, mean - sky).astype(np.float32)
        ratio = rest * scale
        wide = uniform_filter(rest, 3, mode="constant") / share
        # each scatter is measured: stripes that are still there do not average out
        narrow_noise, wide_noise = _scatter(ratio[~found]), _scatter(wide[~found])
        if narrow_noise <= 0 or wide_noise <= 0:
            return np.zeros(mean.shape, bool)
        seeds = (ratio > _SURE * narrow_noise) | (wide > _SURE * wide_noise)
        reach = (ratio > _LIKELY * narrow_noise) | (wide > _FAINT * wide_noise) | seeds
        found = binary_propagation(seeds, mask=reach) | empty
    return found & ~empty


def _scatter(values: Image) -> float:
    """Robust standard deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else 0.0


def _extended(mean: Image, count: NDArray[np.uint8], compact: Mask) -> Mask:
    """Cells of objects that are larger than a mesh: blocks of 16 px that stand out of a clipped plane."""
    from scipy.ndimage import binary_dilation, binary_fill_holes, binary_propagation, label, uniform_filter

    block = blocks(mean, count, compact)
    known = np.isfinite(block)
    if np.count_nonzero(known) < 32:
        return np.zeros(mean.shape, bool)
    plane, noise = clipped_surface(block)
    rest = block - surface_image(plane, block.shape)
    if noise <= 0:
        return np.zeros(mean.shape, bool)
    weight = uniform_filter(known.astype(np.float32), 3, mode="constant")
    wide = uniform_filter(np.where(known, rest, 0), 3, mode="constant") / np.sqrt(np.maximum(weight, 1 / 9))
    below = wide[known & (wide < 0)]
    if below.size == 0:
        return np.zeros(mean.shape, bool)
    ratio = wide / (1.4826 * np.median(-below))
    # a block that sources fill says nothing by itself, but connects those around it
    full = ~known & (binary_dilation(known))
    reach = ((ratio > _BLOCK_EDGE) & known) | full
    names, _ = label(reach)
    seeds = (ratio > _BLOCK_SEED) & known
    sizes = np.bincount(names[seeds], minlength=names.max() + 1)
    seeds &= sizes[names] >= _LEAST_BLOCKS
    found = binary_fill_holes(binary_propagation(seeds, mask=reach))
    found = binary_dilation(found, np.ones((7, 7), bool))
    return np.repeat(np.repeat(found, _BLOCK, axis=0), _BLOCK, axis=1)[: mean.shape[0], : mean.shape[1]]


def blocks(mean: Image, count: NDArray[np.uint8], compact: Mask | None = None) -> Image:
    """Medians of blocks of 16 px from the cells outside a mask; NaN where fewer than a third are left."""
    rows, columns = (-(-n // _BLOCK) for n in mean.shape)
    padded = np.full((rows * _BLOCK, columns * _BLOCK), np.nan, np.float32)
    left_out = count < _CELL
    if compact is not None:
        left_out = left_out | compact
    padded[: mean.shape[0], : mean.shape[1]] = np.where(left_out, np.nan, mean)
    grouped = padded.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2).reshape(rows, columns, -1)
    number = np.isfinite(grouped).sum(axis=2)
    ordered = np.sort(grouped, axis=2)  # NaN goes last
    low, high = (
        np.take_along_axis(ordered, (np.maximum(n, 0) // 2)[..., None], axis=2)[..., 0] for n in (number - 1, number)
    )
    return np.where(number >= _BLOCK_FREE, (low + high) / 2, np.nan).astype(np.float32)


def _terms(y: NDArray[np.float64], x: NDArray[np.float64], degree: int) -> list[NDArray[np.float64]]:
    """Polynomial terms of positions from -0.5 to 0.5 across the image: a plane or a parabola."""
    out = [np.ones(np.broadcast_shapes(y.shape, x.shape)), y, x]
    return [*out, y * y, y * x, x * x] if degree == 2 else out


def image_blocks(image: Image, masked: Mask) -> Image:
    """Medians of blocks of 16 px of an image beside a mask; NaN where fewer than a third are left."""
    mean, count = cells(image, masked)
    return blocks(mean, count)


def clipped_surface(values: Image, degree: int = 1) -> tuple[NDArray[np.float64], float]:
    """A plane or parabola that what stands out of it does not bend, and the scatter below it."""
    y, x = np.nonzero(np.isfinite(values))
    z = values[y, x].astype(float)
    size = 3 if degree == 1 else 6
    surface = np.zeros(size)
    if z.size == 0:
        return surface, 0.0
    terms = np.stack(_terms((y + 0.5) / values.shape[0] - 0.5, (x + 0.5) / values.shape[1] - 0.5, degree), axis=1)
    surface[0] = np.median(z)
    noise = 0.0
    for step in range(10):
        rest = z - terms @ surface
        below = rest[rest < 0]
        noise = 1.4826 * float(np.median(-below)) if below.size else 0.0
        if noise <= 0:
            break
        # objects only add light: what is above is cut nearer
        use = (rest < 2.0 * noise) & (rest > -3.0 * noise)
        # a parabola only bends to what a plane has left over
        part = terms[:, : 3 if step < 4 else size]
        if np.count_nonzero(use) < 4 * size:
            break
        surface[:] = 0.0
        surface[: part.shape[1]] = np.linalg.lstsq(part[use].T @ part[use], part[use].T @ z[use], rcond=1e-10)[0]
        # the mean of noise cut at -3 and +2 sigma is 0.05 sigma low
        surface[0] += 0.05 * noise
    return surface, noise


def surface_at(surface: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A surface at positions from -0.5 to 0.5 across the image; y and x are broadcast."""
    terms = _terms(y, x, 1 if surface.size == 3 else 2)
    return np.sum([c * np.broadcast_to(term, terms[0].shape) for c, term in zip(surface, terms, strict=True)], axis=0)


def surface_image(surface: NDArray[np.float64], shape: Shape) -> Image:
    """A surface at each pixel of an image."""
    y, x = (((np.arange(n) + 0.5) / n - 0.5).astype(np.float32) for n in shape)
    c = surface.astype(np.float32)
    out = np.empty(shape, np.float32)
    if c.size == 3:
        out[:] = (c[0] + c[1] * y)[:, None]
        out += c[2] * x
    else:
        out[:] = (c[0] + c[1] * y + c[3] * y * y)[:, None]
        out += c[2] * x + c[5] * x * x
        out += (c[4] * y)[:, None] * x
    return out
