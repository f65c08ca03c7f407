"""The association's own image: its grid, where each exposure falls on it, and drizzling.

Put here the tangent plane that an association is seen on. Keep out mosaics (`panoramic.mosaic`), whose grids are the
field's, and files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from panoramic.footprints import deproject, mean_position, project
from panoramic.mosaic.pixelmap import STEP, PixelMap
from panoramic.reduction.native.geometry import Geometry
from panoramic.reduction.native.outliers import FrameMap
from panoramic.reduction.rate_files import SHAPE

Array = NDArray[np.float64]
Image = NDArray[np.float32]

_MAS = np.pi / 180 / 3.6e6
_MARGIN_PX = 8
_ROWS = 256
_LOST = -1e6  # where an exposure's geometry ends, far outside of the detector


@dataclass(frozen=True)
class Grid:
    """A tangent plane with square pixels, north up.

    Parameters
    ----------
    ra, dec : the tangent point, deg.
    scale_mas : of a pixel.
    shape : (rows, columns).
    x, y : 0-based pixel of the tangent point.
    """

    ra: float
    dec: float
    scale_mas: float
    shape: tuple[int, int]
    x: float
    y: float

    @classmethod
    def around(cls, geometries: Iterable[Geometry], scale_mas: float) -> Grid:
        """The smallest grid that holds all exposures, with a margin of 8 pixels."""
        corners = np.concatenate([g.footprint() for g in geometries])
        ra, dec = (round(v, 9) for v in mean_position(corners))
        xi, eta = (v / (scale_mas * _MAS) for v in project(corners[:, 0], corners[:, 1], ra, dec))
        left, bottom = np.ceil(xi.max()) + _MARGIN_PX, np.ceil(-eta.min()) + _MARGIN_PX
        shape = int(bottom + np.ceil(eta.max())) + _MARGIN_PX, int(left + np.ceil(-xi.min())) + _MARGIN_PX
        return cls(ra, dec, scale_mas, shape, float(left), float(bottom))

    def pixels(self, ra: Array, dec: Array) -> tuple[Array, Array]:
        """0-based pixels of sky positions, deg."""
        xi, eta = project(ra, dec, self.ra, self.dec)
        step = self.scale_mas * _MAS
        return np.asarray(self.x - xi / step, float), np.asarray(self.y + eta / step, float)

    def sky(self, x: Array, y: Array) -> tuple[Array, Array]:
        """RA and Dec, deg, of 0-based pixels."""
        step = self.scale_mas * _MAS
        ra, dec = deproject((self.x - np.asarray(x)) * step, (np.asarray(y) - self.y) * step, self.ra, self.dec)
        return np.asarray(ra, float), np.asarray(dec, float)

    def cards(self) -> dict[str, float | int | str]:
        """The WCS of its header."""
        step = self.scale_mas / 3.6e6
        return {
            "WCSAXES": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
            "CRPIX1": self.x + 1, "CRPIX2": self.y + 1, "CRVAL1": self.ra, "CRVAL2": self.dec,
            "CD1_1": -step, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": step, "LONPOLE": 180.0, "RADESYS": "ICRS",
        }  # fmt: skip


class Plane(Protocol):
    """An image of which rows are read when they are asked for."""

    def __getitem__(self, rows: slice) -> Image:
        """Rows, in memory."""
        ...


@dataclass(frozen=True)
class Part:
    """One exposure of the image: its geometry, exposure time (s), brightness and weight."""

    geometry: Geometry
    exposure_time: float
    science: Plane
    weight: Plane


def frame_map(geometry: Geometry, grid: Grid) -> FrameMap:
    """Where an exposure's pixels fall on the grid, and back."""

    def to_frame(x: Array, y: Array) -> tuple[Array, Array]:
        return grid.pixels(*geometry.sky(x, y))

    def to_pixel(x: Array, y: Array) -> tuple[Array, Array]:
        column, row = geometry.pixels(*grid.sky(x, y))
        return np.nan_to_num(column, nan=_LOST), np.nan_to_num(row, nan=_LOST)

    return FrameMap.sampled(to_frame, to_pixel, SHAPE, grid.shape)


def drizzle(parts: Sequence[Part], grid: Grid, pixfrac: float) -> tuple[Image, Image]:
    """Drizzle exposures onto a grid with a square kernel.

    Returns
    -------
    science, weight : MJy/sr and (MJy/sr)^-2; 0 where there are no data. ``1 / sqrt(weight)`` is a pixel's noise as if
        neighbours were independent, which sums over many pixels have (Fruchter & Hook 2002, PASP 114, 144).
    """
    from drizzle.resample import Drizzle

    science, weight = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    engine = Drizzle(kernel="square", fillval=0.0, out_img=science, out_wht=weight, disable_ctx=True)
    for part in parts:
        places = _pixel_map(part.geometry, grid)
        for first in range(0, SHAPE[0], _ROWS):
            rows = slice(first, min(first + _ROWS, SHAPE[0]))
            own_weight = part.weight[rows]
            if not own_weight.any():
                continue
            image = part.science[rows]
            image[own_weight == 0] = 0
            engine.add_image(
                image,
                exptime=part.exposure_time,
                pixmap=places.expand((rows.start, rows.stop, 0, SHAPE[1])),
                weight_map=own_weight,
                pixfrac=pixfrac,
                pixel_scale_ratio=1 / places.scale,
                in_units="cps",
            )
    science[weight <= 0] = 0
    return science, weight


def _pixel_map(geometry: Geometry, grid: Grid) -> PixelMap:
    """Where the detector's pixels fall on the grid, by the nodes that `PixelMap` has."""
    y, x = (np.arange(-STEP, length + 2 * STEP, STEP, dtype=float) for length in SHAPE)
    return PixelMap(SHAPE, *grid.pixels(*geometry.sky(*np.meshgrid(x, y))))
