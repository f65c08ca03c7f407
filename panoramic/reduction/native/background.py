"""The sky of an exposure, and the light that must be kept out of it.

Put here the sky, and the order in which sky and stripes are found, on plain arrays. Keep out what is a source
(`sky_masks.py`), the stripes' statistics (`stripes.py`), wisps and catalogues.

The sky is SExtractor's mesh (`sep`) of 128 px behind the masks of `sky_masks`, measured on what is left above a clipped
parabola: a mesh without a free pixel then follows the slope of the sky.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError
from panoramic.reduction.native.sky_masks import (
    Image,
    Mask,
    Shape,
    check_image,
    clipped_surface,
    find_sources,
    image_blocks,
    sources_in_stripes,
    surface_at,
    surface_image,
)
from panoramic.reduction.native.stripes import Stripes, measure_stripes

MESH_PX = 128


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
    shape: Shape
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


def _side(length: int, mesh_px: int) -> int:
    """Side of the meshes along an axis: near the one asked for, and the last one not much smaller than the others."""
    return -(-length // max(1, round(length / mesh_px)))


def _centres(length: int, mesh_px: int) -> NDArray[np.float64]:
    first = np.arange(0, length, _side(length, mesh_px))
    return (first + np.append(first[1:], length) - 1) / 2


def measure_background(
    image: Image, unusable: Mask, *, mesh_px: int = MESH_PX, sources: Mask | None = None
) -> Background:
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

    image = check_image(image, unusable)
    if not 16 <= mesh_px <= min(image.shape):
        raise InputError(
            f"a mesh of {mesh_px} px does not fit an image of {image.shape}: give 16 px or more, at most its side"
        )
    if sources is None:
        sources = find_sources(image, unusable)
    height, width = (_side(n, mesh_px) for n in image.shape)
    masked = sources | ~np.isfinite(image)
    masked |= unusable
    if masked.all():
        # better a sky with sources in it than none
        masked = unusable | ~np.isfinite(image)
        if masked.all():
            nothing = np.zeros([_centres(n, mesh_px).size for n in image.shape], np.float32)
            return Background(nothing, image.shape, mesh_px, 0.0)
    surface = clipped_surface(image_blocks(image, masked), 2)[0]
    rest = image - surface_image(surface, image.shape)
    rest[masked] = 0.0
    mesh = sep.Background(rest, mask=masked, bw=width, bh=height, fw=3, fh=3).back(dtype=np.float32)
    y, x = (_centres(n, mesh_px) for n in image.shape)
    nodes = _bilinear(mesh, y, x)
    nodes += surface_at(surface, *((c + 0.5) / n - 0.5 for c, n in zip((y[:, None], x), image.shape, strict=True)))
    free = np.add.reduceat(
        np.add.reduceat(~masked, np.arange(0, image.shape[0], height), axis=0, dtype=np.int32),
        np.arange(0, image.shape[1], width),
        axis=1,
    )
    measured = float(np.mean(free >= height * width / 2))
    return Background(nodes.astype(np.float32), image.shape, mesh_px, measured)


def _bilinear(image: Image, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at the crossings of positions y and x."""
    j, i = np.minimum(y.astype(int), image.shape[0] - 2), np.minimum(x.astype(int), image.shape[1] - 2)
    v, u = (y - j)[:, None], x - i
    upper = image[np.ix_(j, i)] * (1 - u) + image[np.ix_(j, i + 1)] * u
    lower = image[np.ix_(j + 1, i)] * (1 - u) + image[np.ix_(j + 1, i + 1)] * u
    return upper * (1 - v) + lower * v


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
    image = check_image(image, unusable)
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


def _stripes(image: Image, flat: Image, unusable: Mask, sources: Mask, options: dict[str, Any]) -> Stripes:
    """The stripes of a flat-fielded image, measured above a plane: a mesh would follow the slow ones."""
    masked = sources | unusable
    plane, _ = clipped_surface(image_blocks(image, masked))
    rest = image - surface_image(plane, image.shape)
    rest *= flat
    return measure_stripes(rest, masked, **options)


def _without(image: Image, stripes: Stripes, flat: Image) -> Image:
    """A flat-fielded image without its stripes."""
    out = stripes.image()
    with np.errstate(divide="ignore", invalid="ignore"):
        out /= flat
    return np.subtract(image, out, out=out)
