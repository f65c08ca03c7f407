"""The search for a pile of agreeing pairs in the plane of offsets, and what chance makes of such piles.

Put here what weighs piles against chance. Keep out the fit that starts from a pile (`panoramic.alignment_fit`), what a
solution must reach (`panoramic.alignment_solution`), and whether the scatter of its pairs is one of a pointing error
(`panoramic.alignment_scatter`).

All pairs within the search radius are points in the plane of offsets; for a small set of trial rotations and radii the
highest pile is found, and weighed against the number of such piles that chance makes (scan statistic of a Poisson
plane, each source and each reference counted once; the offset histograms of tweakwcs `XYXYMatch` are where the idea
comes from).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from panoramic.alignment_offsets import close_pairs
from panoramic.footprints import connected

SCALES_ARCSEC = (0.03, 0.08, 0.2)
# sources this near to a solution are looked at when its scatter is judged
NEIGHBOURHOOD_ARCSEC = 1.2
# pairs of the search: more of them cost time and add nothing
_MOST_PAIRS = 200_000
# places per disc that are tried: a pile may lie anywhere, and is recentred; found by counting unrelated catalogues
_PLACES_PER_DISC = 12.0
_CANDIDATES = 6
_MERGE_ARCSEC = 0.05
# neighbours of rows that are looked for, and of how many rows there must be more than chance puts there
_COPIES_ARCSEC, _COPIES_PART = (0.1, 0.2, 0.35), 0.15


@dataclass(frozen=True)
class Pairs:
    """Pairs of the search: positions of both (arcsec, shape (P, 2)) and the rows they belong to."""

    source: np.ndarray
    reference: np.ndarray
    i: np.ndarray
    j: np.ndarray

    def where(self, chosen: np.ndarray) -> Pairs:
        """Some of them."""
        return Pairs(self.source[chosen], self.reference[chosen], self.i[chosen], self.j[chosen])


@dataclass(frozen=True)
class Pile:
    """The best pile: shift and radius (arcsec), rotation (rad), members, log of the chance expectation."""

    shift: np.ndarray
    rotation: float
    radius: float
    n: int
    log_chance: float


def objects(points: np.ndarray, radius: float = _MERGE_ARCSEC) -> tuple[np.ndarray, np.ndarray]:
    """Mean position of each group of points closer than ``radius`` (arcsec), and the row that stands for it."""
    from scipy.spatial import cKDTree

    if len(points) == 0:
        return points, np.empty(0, int)
    labels = connected(cKDTree(points).query_pairs(radius, output_type="ndarray"), len(points))
    _, first, group, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    # the first row alone would be the southernmost one
    means = [np.bincount(group, weights=axis) / sizes for axis in points.T]
    return np.column_stack(means), first


def copies_radius(points: np.ndarray) -> float:
    """How near (arcsec) rows are copies of one object: more than 50 mas where many have a neighbour so near.

    Of several copies that scatter, the nearest to a solution is matched, which then confirms itself. Copies that are
    all displaced alike are another catalogue, and stay.
    """
    from scipy.spatial import cKDTree

    means, _ = objects(points)
    if len(means) < 2:
        return _MERGE_ARCSEC
    tree, area = cKDTree(means), max(float(np.prod(np.ptp(points, axis=0))), 1.0)
    radius, seen = _MERGE_ARCSEC, 0
    for wider in _COPIES_ARCSEC:
        near = tree.query_pairs(wider, output_type="ndarray")
        by_chance = len(means) ** 2 * math.pi * wider**2 / (2 * area)
        ring, seen = len(near) - seen, len(near)
        if ring > max(_COPIES_PART * len(means), 4 * by_chance) and not _displaced_alike(
            means[near[:, 0]] - means[near[:, 1]]
        ):
            radius = wider
    return radius


def _displaced_alike(apart: np.ndarray) -> bool:
    """Whether most of some displacements, whose signs mean nothing, lie in one place."""
    from scipy.spatial import cKDTree

    tree = cKDTree(np.concatenate([apart, -apart]))
    return max(map(len, tree.query_ball_point(apart, SCALES_ARCSEC[0]))) > len(apart) / 2


def brightest_first(magnitude: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Order in which sources are taken where not all can be: by brightness, else spread over the field."""
    if magnitude is None:
        # rows come sorted by position; multiples of the golden ratio take from everywhere alike
        return np.argsort(np.arange(rows.size) * 0.6180339887498949 % 1.0, kind="stable")
    return np.argsort(np.nan_to_num(np.asarray(magnitude, float)[rows], nan=np.inf), kind="stable")


def unrotated(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (..., 2) turned back by a rotation that goes from north to east (rad)."""
    x, y = points[..., 0], points[..., 1]
    return np.stack([math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y], axis=-1)


class Search:
    """The search for piles: catalogues in the plane (arcsec), and the rotations that are tried."""

    def __init__(
        self, source: np.ndarray, reference: np.ndarray, ranks: np.ndarray, largest_rotation: float, farthest: float
    ) -> None:
        self.source, self.reference, self.ranks = source, reference, ranks
        self.largest_rotation, self.farthest = largest_rotation, farthest

    def rotations(self, scale: float) -> np.ndarray:
        """Trial rotations (rad) such that half a step moves the farthest corner by half of ``scale``."""
        steps = math.ceil(self.largest_rotation * self.farthest / scale)
        return np.linspace(-self.largest_rotation, self.largest_rotation, 2 * steps + 1) if steps else np.zeros(1)

    def pairs(self, radius: float) -> Pairs:
        """All pairs that a shift up to ``radius`` (arcsec) and a rotation could explain."""
        reach = max(radius, 0.6) + self.largest_rotation * self.farthest + NEIGHBOURHOOD_ARCSEC
        ranked = self.source[self.ranks]
        i, j = close_pairs(ranked, self.reference, reach, most=_MOST_PAIRS)
        return Pairs(ranked[i], self.reference[j], self.ranks[i], j)

    def counts(self) -> tuple[int, int, float]:
        """Sources, references among them, and the area of the sources' rectangle, arcsec^2."""
        low, high = self.source.min(axis=0), self.source.max(axis=0)
        inside = ((self.reference >= low) & (self.reference <= high)).all(axis=1)
        return len(self.source), int(np.count_nonzero(inside)), max(float(np.prod(high - low)), 1.0)

    def mean_density(self) -> float:
        """Pairs per arcsec^2 of the plane of offsets if nothing matched."""
        sources, references, area = self.counts()
        return sources * references / area

    def best(self, pairs: Pairs, radius: float, scales: tuple[float, ...] = SCALES_ARCSEC) -> Pile | None:
        """The pile that chance explains least, over all scales and rotations."""
        piles = [self.highest(pairs, scale, radius, len(scales)) for scale in scales]
        found = [pile for pile in piles if pile is not None]
        return min(found, key=lambda pile: pile.log_chance) if found else None

    def highest(self, pairs: Pairs, scale: float, radius: float, scales: int) -> Pile | None:
        """The highest pile of radius ``scale`` with its shift within ``radius`` (arcsec)."""
        if pairs.i.size == 0:
            return None
        rotations = self.rotations(scale)
        places = [(*_fullest_box(pairs, angle, scale, radius), angle) for angle in rotations]
        places.sort(key=lambda place: (-place[0], abs(place[2]), place[2]))
        best: tuple[int, float, np.ndarray, float, np.ndarray] | None = None
        for count, start, angle in places[:_CANDIDATES]:
            if count == 0:
                break
            offsets = unrotated(pairs.source, angle) - pairs.reference
            shift = start
            for _ in range(5):
                inside = np.hypot(*(offsets - shift).T) <= scale
                if not inside.any():
                    break
                shift = offsets[inside].mean(axis=0)
            inside = np.hypot(*(offsets - shift).T) <= scale
            n = min(np.unique(pairs.i[inside]).size, np.unique(pairs.j[inside]).size)
            spread = float(((offsets[inside] - shift) ** 2).sum() / max(n, 1))
            if n and (best is None or (n, -spread) > (best[0], -best[1])):
                best = n, spread, shift, angle, offsets
        if best is None:
            return None
        n, _, shift, angle, offsets = best
        expected = pair_density(offsets, shift, scale, radius) * math.pi * scale**2
        trials = scales * len(rotations) * _PLACES_PER_DISC * (1 + radius / scale) ** 2
        return Pile(shift, float(angle), scale, int(n), math.log(trials) + log_tail(int(n), expected))


def _fullest_box(pairs: Pairs, angle: float, scale: float, radius: float) -> tuple[int, np.ndarray]:
    """Number of pairs in the fullest square of two by two cells, and its middle (arcsec)."""
    half = math.ceil(radius / scale) + 2
    side = 2 * half
    cells = np.floor((unrotated(pairs.source, angle) - pairs.reference) / scale).astype(int) + half
    cells = cells[((cells >= 0) & (cells < side)).all(axis=1)]
    counts = np.bincount(cells[:, 0] * side + cells[:, 1], minlength=side**2).reshape(side, side)
    boxes = counts[:-1, :-1] + counts[1:, :-1] + counts[:-1, 1:] + counts[1:, 1:]
    nodes = (np.arange(1, side) - half) * scale
    boxes[nodes[:, None] ** 2 + nodes[None, :] ** 2 > (radius + scale) ** 2] = 0
    a, b = np.unravel_index(int(np.argmax(boxes)), boxes.shape)
    return int(boxes[a, b]), np.array([nodes[a], nodes[b]])


def pair_density(offsets: np.ndarray, shift: np.ndarray, scale: float, radius: float) -> float:
    """Density of chance pairs, arcsec^-2: the denser of a ring about the pile and of the whole plane.

    Catalogues that are clustered alike have more chance pairs at small shifts; at least one pair in the plane is
    assumed, so that a pile in an empty plane isn't worth more than it is.
    """
    # a plane as small as a prior makes it is too small to count in: pairs are known some way beyond its edge
    plane = max(radius, NEIGHBOURHOOD_ARCSEC)
    distance = np.hypot(*(offsets - shift).T)
    inner, outer = 4 * scale, max(8 * scale, 1.0)
    ring = np.count_nonzero((distance > inner) & (distance <= outer)) / (math.pi * (outer**2 - inner**2))
    outside = np.count_nonzero((distance > inner) & (np.hypot(*offsets.T) <= plane))
    whole = outside / max(math.pi * (plane**2 - inner**2), math.pi * plane**2 / 4)
    return max(ring, whole, 1 / (math.pi * plane**2))


def log_tail(n: int, expected: float) -> float:
    """Logarithm of the probability that a Poisson variable reaches ``n``; an upper bound where it is tiny."""
    from scipy.special import gammainc, gammaln

    if n <= 0:
        return 0.0
    tail = float(gammainc(n, expected))
    if tail > 1e-200:
        return math.log(tail)
    first = n * math.log(expected) - expected - float(gammaln(n + 1))
    return first - math.log1p(-expected / (n + 1))
