"""The sky of an exposure, and the light that must be kept out of it.

Put here what is a source and what is background, on plain arrays. Keep out stripes' statistics (`stripes.py`), wisps
and catalogues.

The sky is SExtractor's mesh (`sep`) of 128 px behind two kinds of masks, both found on means of 4 x 4 px:

- sources: means that stand out of the local sky, grown by 8 px. Diffraction spikes and halos of bright stars are long
  and faint: means of 12 px that stand out less count where they touch a source, and so on outwards;
- extended objects: medians of 16 px blocks that stand out of one clipped plane. A mesh follows a galaxy larger than
  itself (one of 8 arcsec lost 12-67 % of its light); a plane does not.

The mesh is measured on what is left above the plane, so that a block without a free pixel follows the slope of the sky.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError
from panoramic.reduction.native.stripes import Stripes, measure_stripes

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

MESH_PX = 128
GROW_PX = 8
_CELL = 4
_BLOCK = 4  # cells
_SURE, _LIKELY, _FAINT = 4.0, 2.5, 2.0
_BLOCK_SEED, _BLOCK_EDGE = 5.0, 1.5
_LEAST_BLOCKS = 6
_BLOCK_FREE = 5  # cells of 16


@dataclass(frozen=True)
class Background:
    """The sky as a coarse table; what was subtracted can be put back from it.

    Parameters
    ----------
    nodes : (n, m), the sky at the centres of the meshes, image units.
    shape : of the image.
    mesh_px : side of a mesh, *pixels*.
    measured : part of the meshes that had pixels of their own.
    """

    nodes: NDArray[np.float32]
    shape: tuple[int, int]
    mesh_px: int
    measured: float

    def image(self) -> Image:
        """The sky at each pixel: a cubic spline through the nodes."""
        vertical, horizontal = (
            _spline(length, nodes, self.mesh_px) for length, nodes in zip(self.shape, self.nodes.shape, strict=True)
        )
        return vertical @ self.nodes @ horizontal.T

    @property
    def level(self) -> float:
        """The median of the nodes."""
        return float(np.median(self.nodes))


def _spline(length: int, nodes: int, mesh_px: int) -> NDArray[np.float32]:
    """Matrix (pixels, nodes) of a cubic spline through nodes at the meshes' centres; exact for parabolas."""
    from scipy.interpolate import CubicSpline

    if nodes == 1:
        return np.ones((length, 1), np.float32)
    centres = _centres(length, mesh_px)
    return CubicSpline(centres, np.eye(nodes), bc_type=_ends(nodes))(np.arange(length, dtype=float)).astype(np.float32)


def _ends(nodes: int) -> str:
    """What a spline does at its ends: with three nodes or fewer there is no third derivative to continue."""
    return "not-a-knot" if nodes > 3 else "natural"


def _centres(length: int, mesh_px: int) -> NDArray[np.float64]:
    edges = np.minimum(np.arange(0, length + mesh_px, mesh_px), length)[: -(-length // mesh_px) + 1]
    return (edges[:-1] + edges[1:] - 1) / 2


def measure_background(image: Image, unusable: Mask, *, mesh_px: int = MESH_PX, sources: Mask | None = None) -> Background:
    """Measure the sky of an image.

    Parameters
    ----------
    image : (rows, columns); NaN is left out.
    unusable : pixels without a valid value.
    mesh_px : side of the mesh.
    sources : what `find_sources` gave, if it is known already.

    Returns
    -------
    Background
        All zeros with ``measured`` 0 where no pixel is usable.

    Raises
    ------
    InputError
        The shapes differ, or the mesh is larger than the image or smaller than 16 px.
    """
    import sep

    _check(image, unusable)
    if not 16 <= mesh_px <= min(image.shape):
        raise InputError(f"a mesh of {mesh_px} px does not fit an image of {image.shape}: give 16 px or more, at most its side")
    if sources is None:
        sources = find_sources(image, unusable)
    meshes = tuple(-(-n // mesh_px) for n in image.shape)
    masked = sources | ~np.isfinite(image)
    masked |= unusable
    if masked.all():
        # better a sky with sources in it than none
        masked = unusable | ~np.isfinite(image)
        if masked.all():
            return Background(np.zeros(meshes, np.float32), image.shape, mesh_px, 0.0)
    surface = _clipped_surface(_blocks(*_cells(image, masked), None), 2)[0]
    rest = image - _surface_image(surface, image.shape)
    rest[masked] = 0.0
    mesh = sep.Background(rest, mask=masked, bw=mesh_px, bh=mesh_px, fw=3, fh=3).back(dtype=np.float32)
    y, x = (_centres(n, mesh_px) for n in image.shape)
    nodes = _bilinear(mesh, y, x)
    nodes += _surface(surface, *((c + 0.5) / n - 0.5 for c, n in zip((y[:, None], x), image.shape, strict=True)))
    free = np.add.reduceat(
        np.add.reduceat(~masked, np.arange(0, image.shape[0], mesh_px), axis=0, dtype=np.int32),
        np.arange(0, image.shape[1], mesh_px),
        axis=1,
    )
    measured = float(np.mean(free >= mesh_px**2 / 2))
    return Background(nodes.astype(np.float32), image.shape, mesh_px, measured)


def _bilinear(image: Image, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at the crossings of positions y and x."""
    j, i = np.minimum(y.astype(int), image.shape[0] - 2), np.minimum(x.astype(int), image.shape[1] - 2)
    v, u = (y - j)[:, None], x - i
    upper = image[np.ix_(j, i)] * (1 - u) + image[np.ix_(j, i + 1)] * u
    lower = image[np.ix_(j + 1, i)] * (1 - u) + image[np.ix_(j + 1, i + 1)] * u
    return upper * (1 - v) + lower * v


def _check(image: Image, unusable: Mask) -> None:
    if image.ndim != 2 or unusable.shape != image.shape:
        raise InputError(f"image {image.shape} and mask {unusable.shape} must be two-dimensional and of one shape")


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
    _check(image, unusable)
    mean, count = _cells(image, unusable)
    if not (count > 0).any():
        return np.zeros(image.shape, bool)
    found = _grown(_compact(mean, count), -(-grow_px // _CELL))
    found |= _extended(mean, count, found)
    return _magnified(found, image.shape)


def _magnified(cells: Mask, shape: tuple[int, int]) -> Mask:
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
def _cells(image, unusable):  # type: ignore[no-untyped-def]
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


def _compact(mean: Image, count: NDArray[np.uint8]) -> Mask:
    """Cells that stand out of the local sky, and those beside them that do so less."""
    import sep
    from scipy.ndimage import binary_propagation, uniform_filter

    empty = count < _CELL
    filled = np.where(empty, 0.0, mean).astype(np.float32)
    mesh = max(8, min(MESH_PX // _CELL, *mean.shape))
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

    block = _blocks(mean, count, compact)
    known = np.isfinite(block)
    if np.count_nonzero(known) < 32:
        return np.zeros(mean.shape, bool)
    plane, noise = _clipped_surface(block)
    rest = block - _surface_image(plane, block.shape)
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


def _blocks(mean: Image, count: NDArray[np.uint8], compact: Mask | None) -> Image:
    """Medians of blocks of 16 px from the cells outside a mask; NaN where fewer than a third are left."""
    rows, columns = (-(-n // _BLOCK) for n in mean.shape)
    padded = np.full((rows * _BLOCK, columns * _BLOCK), np.nan, np.float32)
    left_out = count < _CELL
    if compact is not None:
        left_out = left_out | compact
    padded[: mean.shape[0], : mean.shape[1]] = np.where(left_out, np.nan, mean)
    cells = padded.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2).reshape(rows, columns, -1)
    number = np.isfinite(cells).sum(axis=2)
    ordered = np.sort(cells, axis=2)  # NaN goes last
    low, high = (
        np.take_along_axis(ordered, (np.maximum(n, 0) // 2)[..., None], axis=2)[..., 0] for n in (number - 1, number)
    )
    return np.where(number >= _BLOCK_FREE, (low + high) / 2, np.nan).astype(np.float32)


def _terms(y: NDArray[np.float64], x: NDArray[np.float64], degree: int) -> list[NDArray[np.float64]]:
    """Polynomial terms of positions from -0.5 to 0.5 across the image: a plane or a parabola."""
    out = [np.ones(np.broadcast_shapes(y.shape, x.shape)), y, x]
    return [*out, y * y, y * x, x * x] if degree == 2 else out


def _surface(surface: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    return sum(c * term for c, term in zip(surface, _terms(y, x, 1 if surface.size == 3 else 2), strict=True))  # type: ignore[return-value]


def _clipped_surface(values: Image, degree: int = 1) -> tuple[NDArray[np.float64], float]:
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


def _surface_image(surface: NDArray[np.float64], shape: tuple[int, int]) -> Image:
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


@dataclass(frozen=True)
class Flattened:
    """An image without stripes and sky, and what was taken away.

    Parameters
    ----------
    image : (rows, columns), the input's units.
    stripes : in detector units, before the flat.
    background : the sky.
    sources : what was kept out of both.
    """

    image: Image
    stripes: Stripes
    background: Background
    sources: Mask


def flatten(
    image: Image,
    flat: Image,
    unusable: Mask,
    *,
    mesh_px: int = MESH_PX,
    high_pass_rows: float | None = None,
    amplifiers: int = 4,
    odd_even: bool = True,
) -> Flattened:
    """Take stripes and sky out of a flat-fielded image.

    Sources hide in stripes and stripes look like sources: both are found twice, first roughly.

    Parameters
    ----------
    image : (rows, columns), flat-fielded, with sky; it is not changed.
    flat : what it was divided by; where it is not positive the pixel must be unusable.
    unusable : pixels without a valid value.
    mesh_px, high_pass_rows, amplifiers, odd_even : see `measure_background`, `measure_stripes`.
    """
    _check(image, unusable)
    if flat.shape != image.shape:
        raise InputError(f"the flat's shape {flat.shape} is not the image's {image.shape}")
    options: dict[str, Any] = {"amplifiers": amplifiers, "odd_even": odd_even}
    if high_pass_rows is not None:
        options["high_pass_rows"] = high_pass_rows
    sources = sources_in_stripes(image, unusable, amplifiers)
    stripes = _stripes(image, flat, unusable, sources, {**options, "high_pass_rows": np.inf})
    # sources are looked for without any stripes, slow ones included, which may take some light of big galaxies;
    # what counts is then measured on the image as it was
    sources = find_sources(_without(image, stripes, flat), unusable)
    stripes = _stripes(image, flat, unusable, sources, options)
    clean = _without(image, stripes, flat)
    background = measure_background(clean, unusable, mesh_px=mesh_px, sources=sources)
    clean -= background.image()
    return Flattened(clean, stripes, background, sources)


def sources_in_stripes(image: Image, unusable: Mask, amplifiers: int = 4) -> Mask:
    """What is not sky in an image that has stripes still (see `find_sources`).

    A mask of what stands out of the sky would choose among the stripes' rows, and their means would be too low. So the
    medians of each row of cells in each amplifier are taken away before.
    """
    _check(image, unusable)
    mean, count = _cells(image, unusable)
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


def _row_medians(values: Image) -> Image:
    """Median of each row without NaN; a row without values has its neighbours' between."""
    ordered = np.sort(values, axis=1)  # NaN goes last
    number = np.isfinite(ordered).sum(axis=1)
    low, high = (np.take_along_axis(ordered, (np.maximum(n, 0) // 2)[:, None], axis=1)[:, 0] for n in (number - 1, number))
    known = number >= max(4, values.shape[1] // 16)
    if not known.any():
        return np.zeros(values.shape[0], np.float32)
    rows = np.arange(values.shape[0])
    return np.interp(rows, rows[known], ((low + high) / 2)[known]).astype(np.float32)


def _stripes(image: Image, flat: Image, unusable: Mask, sources: Mask, options: dict[str, Any]) -> Stripes:
    """The stripes of a flat-fielded image, measured above a plane: a mesh would follow the slow ones."""
    masked = sources | unusable
    plane, _ = _clipped_surface(_blocks(*_cells(image, masked), None))
    rest = image - _surface_image(plane, image.shape)
    rest *= flat
    return measure_stripes(rest, masked, **options)


def _without(image: Image, stripes: Stripes, flat: Image) -> Image:
    """A flat-fielded image without its stripes."""
    out = stripes.image()
    with np.errstate(divide="ignore", invalid="ignore"):
        out /= flat
    return np.subtract(image, out, out=out)
