"""Spherical polygons: parsing, area, distance, overlap; footprint plots and region files.

Put here whatever asks where on the sky something lies. Polygons are convex quadrilaterals or hulls of a few arcmin,
so they are handled in a tangent plane about their own middle, which has no seam at RA 0 and none at the poles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from panoramic.errors import InputError

if TYPE_CHECKING:
    from shapely.geometry import Polygon
    from shapely.geometry.base import BaseGeometry

ARCMIN = np.pi / 180 / 60
FAR_ARCMIN = 3600.0  # beyond it the distance of the middles stands for the distance of the edges
CLOSED_DEG = 1e-6  # a last vertex this close to the first one closes the polygon and is left out


def parse_s_region(s_region: str) -> np.ndarray:
    """Vertices of an S_REGION string.

    Parameters
    ----------
    s_region : e.g. ``POLYGON ICRS 34.45 -5.08 34.46 -5.10 ...`` (the archive's column and header keyword).

    Returns
    -------
    (N, 2) array of RA and Dec in deg, ICRS, N >= 3, not closed. Several polygons become the first one's vertices
    followed by the others': their hull is what matters here.

    Raises
    ------
    InputError
        The string holds no polygon with finite coordinates on the sphere.
    """
    words = (s_region or "").split()
    try:  # nearly every row of the archive has this plain form, and a table has 100,000 of them
        plain = [word.upper() for word in words[:2]] == ["POLYGON", "ICRS"]
        numbers = [float(word) for word in (words[2:] if plain else _numbers_of(s_region))]
    except ValueError:
        numbers = _numbers_of(s_region)
    if len(numbers) < 6 or len(numbers) % 2:
        raise InputError(f"S_REGION needs three pairs of RA and Dec or more: {s_region!r}")
    if not all(map(math.isfinite, numbers)) or max(map(abs, numbers[1::2])) > 90:
        raise InputError(f"S_REGION has coordinates that are not on the sphere: {s_region!r}")
    numbers[::2] = [ra % 360.0 for ra in numbers[::2]]
    closed = abs(numbers[0] - numbers[-2]) < CLOSED_DEG and abs(numbers[1] - numbers[-1]) < CLOSED_DEG
    if closed and len(numbers) > 6:
        numbers = numbers[:-2]
    return np.array(numbers).reshape(-1, 2)


def _numbers_of(s_region: str) -> list[float]:
    """The numbers of an S_REGION string with brackets, commas, several polygons or another frame's name."""
    if not re.match(r"\s*POLYGON\b", s_region or "", re.IGNORECASE):
        raise InputError(f"no polygon in S_REGION {s_region!r}")
    words = [w for w in re.split(r"[\s,()]+", s_region) if w and not re.fullmatch(r"POLYGON|ICRS|FK5|J2000", w, re.I)]
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"S_REGION has a word that is no number: {s_region!r}") from error


def to_s_region(vertices: np.ndarray) -> str:
    """The S_REGION string of (N, 2) vertices in deg."""
    return "POLYGON ICRS " + " ".join(f"{ra:.9f} {dec:.9f}" for ra, dec in np.asarray(vertices))


def unit_vectors(ra: np.ndarray | float, dec: np.ndarray | float) -> np.ndarray:
    """Cartesian unit vectors, shape (..., 3), of RA and Dec in deg."""
    ra, dec = np.deg2rad(np.asarray(ra, float)), np.deg2rad(np.asarray(dec, float))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def east_north(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors to the east and to the north at positions in deg, each (..., 3)."""
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
    north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    return east, north


def mean_position(vertices: np.ndarray) -> tuple[float, float]:
    """Mean RA and Dec (deg) of (N, 2) positions, as the direction of their mean unit vector."""
    ra, dec = positions_of(unit_vectors(vertices[:, 0], vertices[:, 1]).mean(axis=0))
    return float(ra), float(dec)


def positions_of(vectors: np.ndarray) -> np.ndarray:
    """RA and Dec in deg, shape (..., 2), of Cartesian vectors of any length, shape (..., 3)."""
    x, y, z = np.moveaxis(np.asarray(vectors, float), -1, 0)
    return np.stack([np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))], axis=-1)


def chord(angle: np.ndarray | float) -> np.ndarray:
    """Straight distance of two points on the unit sphere that lie ``angle`` (rad) apart."""
    return 2 * np.sin(np.minimum(angle, np.pi) / 2)


def angle_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angle (rad) between unit vectors, shapes (..., 3), accurate for small and large angles."""
    return 2 * np.arcsin(np.clip(np.linalg.norm(first - second, axis=-1) / 2, 0, 1))


def separation_arcmin(ra1: float, dec1: float, ra2: np.ndarray | float, dec2: np.ndarray | float) -> np.ndarray:
    """Great-circle distance in arcmin, accurate for small and large angles."""
    return angle_between(unit_vectors(ra1, dec1), unit_vectors(ra2, dec2)) / ARCMIN


def project(
    ra: np.ndarray, dec: np.ndarray, ra0: np.ndarray | float, dec0: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Gnomonic projection, exact at the poles and across RA 0.

    Parameters
    ----------
    ra, dec : deg, any shape.
    ra0, dec0 : tangent point, deg; one for all, or one for each position.

    Returns
    -------
    xi, eta : radians to the east and to the north; NaN on the far side of the sphere.
    """
    ra, dec = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    a, d = ra - np.radians(ra0), np.radians(dec0)
    depth = np.sin(d) * np.sin(dec) + np.cos(d) * np.cos(dec) * np.cos(a)
    depth = np.where(depth > 1e-9, depth, np.nan)
    xi = np.cos(dec) * np.sin(a) / depth
    eta = (np.cos(d) * np.sin(dec) - np.sin(d) * np.cos(dec) * np.cos(a)) / depth
    return xi, eta


def deproject(xi: np.ndarray, eta: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `project`: right ascension in [0, 360) and declination, deg."""
    xi, eta = np.asarray(xi, float), np.asarray(eta, float)
    d = math.radians(dec0)
    axis = math.cos(d) - eta * math.sin(d)
    ra = math.radians(ra0) + np.arctan2(xi, axis)
    dec = np.arctan2(math.sin(d) + eta * math.cos(d), np.hypot(xi, axis))
    return np.degrees(ra) % 360.0, np.degrees(dec)


def to_tangent_plane(positions: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """Gnomonic projection of (N, 2) RA, Dec (deg) about ``centre``: (N, 2) east and north in arcmin."""
    return np.column_stack(project(positions[:, 0], positions[:, 1], *centre)) / ARCMIN


def from_tangent_plane(plane: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """Inverse of `to_tangent_plane`."""
    return np.column_stack(deproject(plane[:, 0] * ARCMIN, plane[:, 1] * ARCMIN, *centre))


def flat_polygon(vertices: np.ndarray, centre: tuple[float, float]) -> Polygon:
    """Convex hull of the vertices in the tangent plane about ``centre``, in arcmin (east, north)."""
    from shapely.geometry import MultiPoint

    return MultiPoint(to_tangent_plane(np.asarray(vertices), centre)).convex_hull


def edge_distance_arcmin(first: np.ndarray, second: np.ndarray) -> float:
    """Distance from footprint edge to footprint edge, in arcmin; 0 where they overlap.

    Both are (N, 2) vertices in deg. The plane touches the sphere midway, so that distances up to a degree are right
    to 1e-4; beyond 60 deg apart the distance of the middles is returned.
    """
    middle_1, middle_2 = mean_position(first), mean_position(second)
    apart = float(separation_arcmin(*middle_1, *middle_2))
    if apart > FAR_ARCMIN:
        return apart
    centre = mean_position(np.array([middle_1, middle_2]))
    return float(flat_polygon(first, centre).distance(flat_polygon(second, centre)))


class FootprintSet:
    """Many footprints at once, so that a whole sky is measured without a loop.

    Attributes
    ----------
    corners : (V, 2) RA and Dec (deg) of all vertices, footprint by footprint.
    counts, starts : (N,) number of vertices of each footprint, and the row of its first one.
    vectors : (N, 3) unit vectors of the middles; ``middles`` their RA and Dec in deg, (N, 2).
    radii : (N,) angle (rad) from the middle to the farthest vertex.
    """

    def __init__(self, footprints: Sequence[np.ndarray]) -> None:
        self.counts = np.fromiter(map(len, footprints), dtype=np.intp, count=len(footprints))
        self.starts = np.cumsum(self.counts) - self.counts
        self.corners = np.concatenate(footprints) if len(footprints) else np.empty((0, 2))
        directions = unit_vectors(self.corners[:, 0], self.corners[:, 1])
        sums = np.add.reduceat(directions, self.starts, axis=0) if len(footprints) else np.empty((0, 3))
        self.middles = positions_of(sums)
        self.vectors = unit_vectors(self.middles[:, 0], self.middles[:, 1])
        away = angle_between(directions, np.repeat(self.vectors, self.counts, axis=0))
        self.radii = np.maximum.reduceat(away, self.starts) if len(footprints) else np.empty(0)

    def __len__(self) -> int:
        return len(self.counts)

    def subset(self, which: np.ndarray) -> FootprintSet:
        """The footprints with the indices ``which``."""
        part = FootprintSet([])
        rows, _ = self._rows(which)
        part.corners, part.counts = self.corners[rows], self.counts[which]
        part.starts = np.cumsum(part.counts) - part.counts
        part.middles, part.vectors, part.radii = self.middles[which], self.vectors[which], self.radii[which]
        return part

    def flat_polygons(self, which: np.ndarray, centres: np.ndarray, shift: np.ndarray | float = 0.0) -> np.ndarray:
        """Convex hulls of the footprints ``which`` (M,), each in the tangent plane about its own of ``centres``.

        Parameters
        ----------
        centres : (M, 2) RA and Dec in deg.
        shift : arcmin to the east, by which each polygon is moved (to keep several planes in one index apart).

        Returns
        -------
        (M,) shapely geometries in arcmin, as `flat_polygon` makes them.
        """
        import shapely

        rows, owner = self._rows(which)
        east, north = project(self.corners[rows, 0], self.corners[rows, 1], centres[owner, 0], centres[owner, 1])
        plane = np.column_stack([east, north]) / ARCMIN
        plane[:, 0] += np.broadcast_to(shift, len(which))[owner]
        return shapely.convex_hull(shapely.linestrings(plane, indices=owner))

    def inner_radii(self) -> np.ndarray:
        """Angle (rad) from each middle to the nearest edge, (N,); 0 where the vertices span no area."""
        import shapely

        outlines = self.flat_polygons(np.arange(len(self)), self.middles)
        inner = np.arctan(shapely.distance(shapely.boundary(outlines), shapely.Point(0, 0)) * ARCMIN)
        return np.where(shapely.get_dimensions(outlines) == 2, inner, 0.0)

    def edge_distances_arcmin(self, which: np.ndarray, others: FootprintSet, which_others: np.ndarray) -> np.ndarray:
        """`edge_distance_arcmin` of each footprint ``which[k]`` and footprint ``which_others[k]`` of ``others``."""
        import shapely

        first, second = self.vectors[which], others.vectors[which_others]
        result = np.asarray(angle_between(first, second) / ARCMIN)
        near = result <= FAR_ARCMIN
        centres = positions_of(first[near] + second[near])
        result[near] = shapely.distance(
            self.flat_polygons(which[near], centres), others.flat_polygons(which_others[near], centres)
        )
        return result

    def _rows(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ``corners`` of the footprints ``which``, and the place in ``which`` that each row belongs to."""
        return ragged(self.starts[which], self.counts[which])


def ragged(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``starts[k] ... starts[k] + counts[k] - 1`` for all k in one array, and the k of each."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return np.arange(len(owner)) - (first - starts)[owner], owner


def connected(links: np.ndarray, count: int) -> np.ndarray:
    """Connected components of ``count`` nodes joined by (L, 2) links: a label from 0 for each node."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def small_square(ra: float, dec: float, side_arcmin: float = 0.02) -> np.ndarray:
    """A footprint that stands for a position (deg): vertices (4, 2) in deg."""
    half = side_arcmin / 2
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    return from_tangent_plane(corners, (ra, dec))


def union_area_arcmin2(footprints: Iterable[np.ndarray]) -> float:
    """Area on the sky covered by any of the footprints, arcmin2."""
    from shapely.ops import unary_union

    footprints = list(footprints)
    if not footprints:
        return 0.0
    centre = mean_position(np.concatenate(footprints))
    return float(unary_union([flat_polygon(f, centre) for f in footprints]).area)


def covered_fraction(footprint: np.ndarray, by: Iterable[np.ndarray]) -> float:
    """Fraction (0 to 1) of a footprint's area that lies in the union of others."""
    from shapely.ops import unary_union

    centre = mean_position(footprint)
    own = flat_polygon(footprint, centre)
    near = [f for f in by if separation_arcmin(*centre, *mean_position(f)) < 60]
    if not near or own.area == 0:
        return 0.0
    others: BaseGeometry = unary_union([flat_polygon(f, centre) for f in near])
    return float(own.intersection(others).area / own.area)


def hull(footprints: Sequence[np.ndarray]) -> np.ndarray:
    """Convex hull on the sky of several footprints: (N, 2) vertices in deg."""
    points = np.concatenate(footprints)
    centre = mean_position(points)
    outline = np.array(flat_polygon(points, centre).exterior.coords)[:-1]
    return from_tangent_plane(outline, centre)


def inside(ra: np.ndarray, dec: np.ndarray, footprint: np.ndarray, margin_arcsec: float = 0.0) -> np.ndarray:
    """Which positions (deg) lie in the footprint widened by a margin: boolean, shape of ``ra``."""
    import shapely

    centre = mean_position(footprint)
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    result = separation_arcmin(*centre, ra, dec) < 120
    if result.any():
        area = flat_polygon(footprint, centre).buffer(margin_arcsec / 60)
        plane = to_tangent_plane(np.column_stack([ra[result], dec[result]]), centre)
        result[result] = shapely.contains_xy(area, plane[:, 0], plane[:, 1])
    return result
