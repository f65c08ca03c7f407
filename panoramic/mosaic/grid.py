"""The pixel grid of a field: tiles that are addressed from the field's own tangent point and never move.

Put here where a pixel of a mosaic lies on the sky. Keep out what is in it.

A tile is ``(column, row)``; tile (0, 0) has its lower left *corner* on the tangent point, columns count to the west,
rows to the north. So a new exposure can only use more tiles, and the tiles of both channels nest: the edges of a
long-wave tile are edges of short-wave tiles, ``crpix_short = ratio * (crpix_long - 0.5) + 0.5``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from panoramic.errors import InputError, MosaicError
from panoramic.footprints import deproject, parse_s_region, project

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from panoramic.survey import MosaicRules

Channel = Literal["short", "long"]
Tile = tuple[int, int]

MAS = math.radians(1 / 3_600_000)
_FARTHEST_DEG = 30.0


def polygon_vertices(footprint: str | np.ndarray) -> np.ndarray:
    """Vertices of a footprint, shape (N, 2) in deg, from an S_REGION string or from an array.

    Raises
    ------
    MosaicError
        It is no polygon of three or more finite vertices.
    """
    if isinstance(footprint, str):
        try:
            return parse_s_region(footprint)
        except InputError as error:
            raise MosaicError(str(error)) from error
    vertices = np.asarray(footprint, dtype=float)
    if vertices.ndim != 2 or vertices.shape[0] < 3 or vertices.shape[1] != 2 or not np.isfinite(vertices).all():
        raise MosaicError("a footprint needs three or more finite vertices of (ra, dec)")
    return vertices


@dataclass(frozen=True)
class FieldGrid:
    """The grid of one field, north up.

    Parameters
    ----------
    name : the field.
    ra, dec : tangent point, deg, ICRS; fixed for ever with the field's name.
    tile_px : tile side in pixels, the same number in both channels.
    long_scale_mas, short_scale_mas : pixel scales at the tangent point, mas.
    """

    name: str
    ra: float
    dec: float
    tile_px: int
    long_scale_mas: float
    short_scale_mas: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ra) and -90.0 <= self.dec <= 90.0):
            raise MosaicError(f"field {self.name}: no tangent point at ra {self.ra}, dec {self.dec}")
        ratio = self.long_scale_mas / self.short_scale_mas
        if ratio < 1 or abs(ratio - round(ratio)) > 1e-9 or self.tile_px < 1:
            raise MosaicError(
                f"field {self.name}: grids of {self.long_scale_mas} and {self.short_scale_mas} mas don't nest"
            )

    @classmethod
    def for_field(cls, name: str, ra: float, dec: float, rules: MosaicRules) -> FieldGrid:
        """Make the grid of a field from its fixed position (deg) and the survey's mosaic rules."""
        return cls(name, ra % 360.0, dec, rules.tile_px, rules.long_wave_scale_mas, rules.short_wave_scale_mas)

    @property
    def ratio(self) -> int:
        """Short-wave pixels along one long-wave pixel."""
        return round(self.long_scale_mas / self.short_scale_mas)

    def scale_mas(self, channel: Channel) -> float:
        """Pixel scale of a channel, mas."""
        return self.long_scale_mas if channel == "long" else self.short_scale_mas

    def pixels(self, ra: np.ndarray, dec: np.ndarray, channel: Channel) -> tuple[np.ndarray, np.ndarray]:
        """Position on the whole field's plane in pixels: (0, 0) is the centre of tile (0, 0)'s first pixel."""
        xi, eta = project(ra, dec, self.ra, self.dec)
        unit = self.scale_mas(channel) * MAS
        return -xi / unit - 0.5, eta / unit - 0.5

    def sky(self, x: np.ndarray, y: np.ndarray, channel: Channel) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of `pixels`, deg."""
        unit = self.scale_mas(channel) * MAS
        return deproject(-(np.asarray(x, float) + 0.5) * unit, (np.asarray(y, float) + 0.5) * unit, self.ra, self.dec)

    def tiles_touching(self, footprints: Iterable[str | np.ndarray], channel: Channel) -> tuple[Tile, ...]:
        """Tiles that share area with any of the footprints, in order of row, then column.

        Parameters
        ----------
        footprints : S_REGION-like strings (``POLYGON ICRS ra dec ...``) or arrays (N, 2) of deg.
        channel : whose tiles.

        Raises
        ------
        MosaicError
            A footprint is no polygon, or lies more than 30 deg from the tangent point.
        """
        from shapely.geometry import Polygon, box
        from shapely.prepared import prep

        found: set[Tile] = set()
        nearest = math.cos(math.radians(_FARTHEST_DEG))
        for footprint in footprints:
            vertices = polygon_vertices(footprint)
            if _cosine(vertices, self.ra, self.dec).min() < nearest:
                raise MosaicError(
                    f"field {self.name}: a footprint lies more than {_FARTHEST_DEG:g} deg from the tangent point"
                )
            x, y = self.pixels(vertices[:, 0], vertices[:, 1], channel)
            # great circles are straight lines in this projection, so the polygon is exact
            polygon = Polygon(np.column_stack([(x + 0.5) / self.tile_px, (y + 0.5) / self.tile_px])).buffer(0)
            if polygon.is_empty:
                continue
            prepared = prep(polygon)
            west, south, east, north = polygon.bounds
            for row in range(math.floor(south), math.ceil(north)):
                for column in range(math.floor(west), math.ceil(east)):
                    cell = box(column, row, column + 1, row + 1)
                    if prepared.intersects(cell) and polygon.intersection(cell).area > 0:
                        found.add((column, row))
        return tuple(sorted(found, key=lambda tile: (tile[1], tile[0])))

    def children(self, tile: Tile) -> tuple[Tile, ...]:
        """Short-wave tiles that together are exactly one long-wave tile."""
        n = self.ratio
        return tuple((tile[0] * n + i, tile[1] * n + j) for j in range(n) for i in range(n))

    def parent(self, tile: Tile) -> Tile:
        """Long-wave tile that holds a short-wave tile."""
        return tile[0] // self.ratio, tile[1] // self.ratio

    def origin(self, tile: Tile) -> tuple[int, int]:
        """Index (x, y) of a tile's first pixel on the whole field's plane."""
        return tile[0] * self.tile_px, tile[1] * self.tile_px

    def tile_wcs(self, tile: Tile, channel: Channel) -> WCS:
        """TAN projection of one tile; ``array_shape`` is set."""
        x, y = self.origin(tile)
        return self._wcs(x, y, (self.tile_px, self.tile_px), channel)

    def mosaic_wcs(self, tiles: Sequence[Tile], channel: Channel) -> tuple[WCS, tuple[int, int]]:
        """TAN projection and shape (rows, columns) of the smallest rectangle of whole tiles that holds ``tiles``.

        Raises
        ------
        MosaicError
            There are no tiles.
        """
        first, shape = self.rectangle(tiles)
        return self._wcs(*self.origin(first), shape, channel), shape

    def rectangle(self, tiles: Sequence[Tile]) -> tuple[Tile, tuple[int, int]]:
        """First tile (lower left) and shape in pixels (rows, columns) of the rectangle around ``tiles``."""
        if not tiles:
            raise MosaicError(f"field {self.name}: a mosaic needs at least one tile")
        columns, rows = [t[0] for t in tiles], [t[1] for t in tiles]
        shape = (max(rows) - min(rows) + 1) * self.tile_px, (max(columns) - min(columns) + 1) * self.tile_px
        return (min(columns), min(rows)), shape

    def _wcs(self, x: int, y: int, shape: tuple[int, int], channel: Channel) -> WCS:
        from astropy.wcs import WCS

        wcs = WCS(naxis=2)
        degrees = self.scale_mas(channel) / 3_600_000
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.crval = [self.ra, self.dec]
        wcs.wcs.crpix = [0.5 - x, 0.5 - y]
        wcs.wcs.cdelt = [-degrees, degrees]
        wcs.wcs.radesys = "ICRS"
        # away from the pole this is the default; at it the default would turn the image
        wcs.wcs.lonpole = 180.0
        wcs.wcs.set()
        wcs.array_shape = shape
        return wcs


def _cosine(vertices: np.ndarray, ra0: float, dec0: float) -> np.ndarray:
    """Cosine of the distance of each vertex from a point."""
    ra, dec = np.radians(vertices[:, 0] - ra0), np.radians(vertices[:, 1])
    d = math.radians(dec0)
    return math.sin(d) * np.sin(dec) + math.cos(d) * np.cos(dec) * np.cos(ra)
