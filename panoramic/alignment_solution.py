"""Shift and rotation between one exposure's sources and a reference, or the cause why they can't be measured.

Put here the pure measurement of the transformation, on positions alone. Keep out what the numbers must reach for an
association to be accepted (that is the verdict's), where catalogues come from, and the offset of mosaics, which have no
rotation left (`panoramic.alignment_offsets`).

Method: all pairs within the search radius are points in the plane of offsets; for a small set of trial rotations and
radii the highest pile is found, and weighed against the number of such piles that chance makes (scan statistic of a
Poisson plane, each source and each reference counted once; the prototype of facts.md section 8, and the offset
histograms of tweakwcs `XYXYMatch`, are where the idea comes from). The pile that chance explains least must also stand
over the best one among the pairs it leaves unexplained. Then shift and rotation are fitted on mutual nearest
neighbours as a Gaussian on a uniform background (expectation maximisation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from panoramic.alignment_offsets import (
    catalogue_centre,
    close_pairs,
    distinct_rows,
    known_variances,
    mutual_pairs,
    plane_positions,
)
from panoramic.footprints import ARCMIN, deproject, mean_position, project

_ARCSEC = ARCMIN / 60
_SCALES_ARCSEC = (0.03, 0.08, 0.2)
# pairs of the search: more of them cost time and add nothing
_MOST_PAIRS = 200_000
# places per disc that are tried: a pile may lie anywhere, and is recentred; found by counting unrelated catalogues
_PLACES_PER_DISC = 12.0
_EARLY_MATCHES = 12
_CANDIDATES = 6
_ROUNDS = 60
_STEPS_PER_ROUND = 12
# what a scatter can be at least: positions are never better than this
_FLOOR_ARCSEC = 2e-4
_WIDEST_PAIR_ARCSEC = 0.6
# how much farther than the search radius is looked, only to name the cause of a refusal
_BEYOND_FACTOR = 4.0


class Cause(StrEnum):
    """Why there is no solution."""

    TOO_FEW_SOURCES = "too few sources"
    TOO_FEW_REFERENCES = "too few reference sources"
    NO_PEAK = "no peak above chance"
    AMBIGUOUS = "ambiguous"
    SCATTER_TOO_LARGE = "scatter too large"
    BEYOND_SEARCH_RADIUS = "offset beyond the search radius"
    BEYOND_LARGEST_ROTATION = "rotation beyond the largest allowed"
    ERROR_TOO_LARGE = "predicted error too large"


@dataclass(frozen=True)
class Refusal:
    """No solution; ``text`` says why in a sentence, ``numbers`` what was counted or measured against which limit."""

    cause: Cause
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Solution:
    """Catalogue minus reference: a shift and a rotation about the field's centre.

    Parameters
    ----------
    ra, dec : the field's centre, deg, to which shift and errors belong.
    dra, ddec : shift there, mas, positive where the catalogue lies to the east (a great circle's angle) and north.
    err_ra, err_dec : predicted standard error of the two, mas, from the larger of stated and measured scatter.
    corner_err_ra, corner_err_dec : the same at the corner where it is largest, the rotation's error included.
    rotation_deg, rotation_err_deg : turn of the catalogue against the reference, positive from north to east.
    rotation_mas : what the rotation moves the farthest corner by.
    scale_mas, scale_err_mas : what the scale that is left in the residuals moves the farthest corner by, positive
        where the catalogue is larger. It is measured after the fit and is never part of the solution.
    median_ra, median_dec : median offset of the matched pairs, mas, rotation not taken out.
    scatter_ra, scatter_dec : standard deviation of one pair about the solution, mas.
    n : matched sources, each source and each reference once.
    chance : expected number of piles as high as this one, for all trials, if nothing matched.
    contrast : height of the pile over that of the next solution.
    corner_arcsec : distance of the farthest corner from the centre.
    covariance : of east, north (arcsec) and rotation (rad) at the centre, (3, 3).
    index, ref_index : rows of the given catalogues that were matched; not part of comparisons, like the covariance.
    """

    ra: float
    dec: float
    dra: float
    ddec: float
    err_ra: float
    err_dec: float
    corner_err_ra: float
    corner_err_dec: float
    rotation_deg: float
    rotation_err_deg: float
    rotation_mas: float
    scale_mas: float
    scale_err_mas: float
    median_ra: float
    median_dec: float
    scatter_ra: float
    scatter_dec: float
    n: int
    chance: float
    contrast: float
    corner_arcsec: float
    covariance: np.ndarray = field(compare=False, repr=False)
    index: np.ndarray = field(compare=False, repr=False)
    ref_index: np.ndarray = field(compare=False, repr=False)

    def corrected(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the catalogue (deg, any shape) brought to the frame of the reference."""
        xi, eta = project(ra, dec, self.ra, self.dec)
        x, y = _unrotated(np.stack([xi, eta], axis=-1), math.radians(self.rotation_deg)).T
        shift = np.array([self.dra, self.ddec]) / 1000 * _ARCSEC
        return deproject(x.T - shift[0], y.T - shift[1], self.ra, self.dec)

    def error_at(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standard error of the corrected position, mas to the east and to the north, at positions in deg."""
        xi, eta = project(ra, dec, self.ra, self.dec)
        variance = _variance_at(np.stack([xi, eta], axis=-1) / _ARCSEC, self.covariance)
        return 1000 * np.sqrt(variance[..., 0]), 1000 * np.sqrt(variance[..., 1])


@dataclass(frozen=True)
class _Pairs:
    """Pairs of the search: positions of both (arcsec, shape (P, 2)) and the rows they belong to."""

    source: np.ndarray
    reference: np.ndarray
    i: np.ndarray
    j: np.ndarray


@dataclass(frozen=True)
class _Pile:
    """The best pile: shift and radius (arcsec), rotation (rad), members, log of the chance expectation."""

    shift: np.ndarray
    rotation: float
    radius: float
    n: int
    log_chance: float


@dataclass(frozen=True)
class _Fit:
    """Shift (arcsec), rotation (rad), their covariance, scatter per axis, scale and its error, rows matched."""

    shift: np.ndarray
    rotation: float
    covariance: np.ndarray
    scatter: np.ndarray
    scale: float
    scale_error: float
    median: np.ndarray
    i: np.ndarray
    j: np.ndarray


def measure_solution(
    ra: np.ndarray,
    dec: np.ndarray,
    ref_ra: np.ndarray,
    ref_dec: np.ndarray,
    *,
    search_radius_arcsec: float = 3.0,
    largest_rotation_deg: float = 0.3,
    footprint: np.ndarray | None = None,
    error_mas: np.ndarray | None = None,
    ref_error_mas: np.ndarray | None = None,
    magnitude: np.ndarray | None = None,
    minimum_matches: int = 5,
    maximum_chance: float = 1e-3,
    maximum_chance_early: float = 1e-4,
    minimum_contrast: float = 1.5,
    largest_scatter_mas: float = 120.0,
    largest_error_mas: float = 30.0,
) -> Solution | Refusal:
    """Measure shift and rotation of a catalogue against a reference.

    Parameters
    ----------
    ra, dec : of the catalogue, deg, shape (N,); rows that are not finite are left out.
    ref_ra, ref_dec : of the reference, deg, shape (M,); rows closer than 50 mas to each other count as one.
    search_radius_arcsec : largest shift at the field's centre that is accepted.
    largest_rotation_deg : largest rotation that is looked for, either way.
    footprint : (K, 2) RA and Dec of the corners, deg, which set centre and corners of the field; None: taken from the
        catalogue.
    error_mas, ref_error_mas : standard deviation per axis of each position, shape (N,), (M,); NaN or None: unknown.
    magnitude : of the catalogue, shape (N,); where there are too many pairs, the brightest sources are searched with.
    minimum_matches : fewer matched sources are no solution.
    maximum_chance, maximum_chance_early : greatest expected number of chance piles, from and below 12 matches.
    minimum_contrast : smallest ratio of the best pile's height to that of the next solution.
    largest_scatter_mas : of one pair about the solution, the larger axis.
    largest_error_mas : predicted error at the field's centre, the larger axis.

    Returns
    -------
    The solution, or why there is none. The order of rows doesn't matter.
    """
    ra, dec, ref_ra, ref_dec = (np.atleast_1d(np.asarray(v, float)) for v in (ra, dec, ref_ra, ref_dec))
    rows, ref_rows = _in_order(ra, dec), _in_order(ref_ra, ref_dec)
    if rows.size < minimum_matches:
        return _too_few(Cause.TOO_FEW_SOURCES, rows.size, minimum_matches)
    if ref_rows.size < minimum_matches:
        return _too_few(Cause.TOO_FEW_REFERENCES, ref_rows.size, minimum_matches)
    centre = catalogue_centre(ra[rows], dec[rows]) if footprint is None else mean_position(np.asarray(footprint))
    source = plane_positions(ra[rows], dec[rows], centre)
    reference = plane_positions(ref_ra[ref_rows], ref_dec[ref_rows], centre)
    usable = np.isfinite(source).all(axis=1)
    source, rows = source[usable], rows[usable]
    single = distinct_rows(source)
    source, rows = source[single], rows[single]
    if rows.size < minimum_matches:
        return _too_few(Cause.TOO_FEW_SOURCES, rows.size, minimum_matches)
    corners = _corners(source, footprint, centre)
    farthest = float(np.hypot(*corners.T).max())
    largest_rotation = math.radians(largest_rotation_deg)

    # several rows of one object would be counted as so many witnesses
    beyond = max(_BEYOND_FACTOR * search_radius_arcsec, 1.0)
    around = _around(reference, source, beyond + largest_rotation * farthest)
    single = distinct_rows(reference[around])
    reference, ref_rows = reference[around][single], ref_rows[around][single]
    inside = _around(reference, source, search_radius_arcsec + largest_rotation * farthest).size
    if inside < minimum_matches:
        return _too_few(Cause.TOO_FEW_REFERENCES, inside, minimum_matches)

    ranks = _brightest_first(magnitude, rows)
    search = _Search(source, reference, ranks, largest_rotation, farthest)
    pile, pairs = search.best(search_radius_arcsec, _SCALES_ARCSEC)
    early, late = math.log(maximum_chance_early), math.log(maximum_chance)
    if pile is None or pile.n < minimum_matches or pile.log_chance > (late if pile.n >= _EARLY_MATCHES else early):
        wide, _ = search.best(beyond, _SCALES_ARCSEC[1:])
        if wide is not None and wide.n >= minimum_matches and wide.log_chance <= early:
            found = float(np.hypot(*wide.shift))
            if found > search_radius_arcsec:
                return _beyond(found, search_radius_arcsec, wide)
        return _no_peak(pile, minimum_matches, late if pile is not None and pile.n >= _EARLY_MATCHES else early)

    variances = known_variances(error_mas, rows), known_variances(ref_error_mas, ref_rows)
    fit = _fit(source, reference, pile, variances, minimum_matches)
    if fit is None:
        return _no_peak(pile, minimum_matches, early)
    n = int(fit.i.size)
    limit = late if min(pile.n, n) >= _EARLY_MATCHES else early
    if n < minimum_matches or pile.log_chance > limit:
        return _no_peak(pile, minimum_matches, limit)
    rival = search.next(pairs, fit, pile.radius, search_radius_arcsec)
    contrast = pile.n / max(rival, 1)
    if contrast < minimum_contrast:
        return Refusal(
            Cause.AMBIGUOUS,
            f"the best solution has only {contrast:.2f} times the support of the next (limit {minimum_contrast:g})",
            {"n": pile.n, "n_next": rival, "contrast": contrast, "limit": minimum_contrast},
        )
    size, error = float(np.hypot(*fit.shift)), np.sqrt(np.diag(fit.covariance))
    if size > search_radius_arcsec + 3 * float(np.hypot(error[0], error[1])):
        return _beyond(size, search_radius_arcsec, pile)
    if abs(fit.rotation) > largest_rotation + 3 * error[2]:
        turn = math.degrees(fit.rotation)
        return Refusal(
            Cause.BEYOND_LARGEST_ROTATION,
            f"the best solution is turned by {turn:.3f} deg (limit {largest_rotation_deg:g})",
            {"n": n, "rotation_deg": turn, "limit": largest_rotation_deg},
        )
    scatter, predicted = 1000 * float(fit.scatter.max()), 1000 * float(error[:2].max())
    if scatter > largest_scatter_mas:
        return Refusal(
            Cause.SCATTER_TOO_LARGE,
            f"{n} matched sources scatter by {scatter:.0f} mas (limit {largest_scatter_mas:g})",
            {"n": n, "scatter_mas": scatter, "limit": largest_scatter_mas},
        )
    if predicted > largest_error_mas:
        return Refusal(
            Cause.ERROR_TOO_LARGE,
            f"{n} matched sources give the shift to {predicted:.1f} mas only (limit {largest_error_mas:g})",
            {"n": n, "error_mas": predicted, "limit": largest_error_mas},
        )
    at_corners = np.sqrt(_variance_at(corners, fit.covariance))
    worst = at_corners[int(np.argmax(np.hypot(*at_corners.T)))]
    return Solution(
        ra=centre[0] % 360.0,
        dec=centre[1],
        dra=1000 * float(fit.shift[0]),
        ddec=1000 * float(fit.shift[1]),
        err_ra=1000 * float(error[0]),
        err_dec=1000 * float(error[1]),
        corner_err_ra=1000 * float(worst[0]),
        corner_err_dec=1000 * float(worst[1]),
        rotation_deg=math.degrees(fit.rotation),
        rotation_err_deg=math.degrees(error[2]),
        rotation_mas=1000 * fit.rotation * farthest,
        scale_mas=1000 * fit.scale * farthest,
        scale_err_mas=1000 * fit.scale_error * farthest,
        median_ra=1000 * float(fit.median[0]),
        median_dec=1000 * float(fit.median[1]),
        scatter_ra=1000 * float(fit.scatter[0]),
        scatter_dec=1000 * float(fit.scatter[1]),
        n=n,
        chance=math.exp(max(pile.log_chance, -600.0)),
        contrast=contrast,
        corner_arcsec=farthest,
        covariance=fit.covariance,
        index=rows[fit.i],
        ref_index=ref_rows[fit.j],
    )


def _too_few(cause: Cause, found: int, needed: int) -> Refusal:
    """Refusal for want of sources, of either catalogue."""
    what = "sources" if cause is Cause.TOO_FEW_SOURCES else "distinct reference sources around the field"
    return Refusal(cause, f"only {found} {what}; {needed} are needed", {"n": found, "limit": needed})


def _no_peak(pile: _Pile | None, needed: int, log_limit: float) -> Refusal:
    """Refusal because nothing stands above chance."""
    if pile is None:
        return Refusal(Cause.NO_PEAK, "no pair of sources within the search radius", {"n": 0, "limit": needed})
    chance, limit = math.exp(min(max(pile.log_chance, -600.0), 20.0)), math.exp(log_limit)
    numbers = {"n": pile.n, "chance": chance, "limit": limit}
    if pile.log_chance <= log_limit:
        return Refusal(
            Cause.NO_PEAK, f"fewer than {needed} sources agree on one solution", {"n": pile.n, "limit": needed}
        )
    text = f"{pile.n} sources agree, but chance makes {chance:.2g} such agreements (limit {limit:g})"
    return Refusal(Cause.NO_PEAK, text, numbers)


def _beyond(size: float, radius: float, pile: _Pile) -> Refusal:
    """Refusal because the agreement lies outside of what was searched."""
    text = f"{pile.n} sources agree on a shift of {size:.2f} arcsec, beyond the search radius of {radius:g}"
    return Refusal(
        Cause.BEYOND_SEARCH_RADIUS,
        text,
        {"n": pile.n, "dra_mas": 1000 * pile.shift[0], "ddec_mas": 1000 * pile.shift[1], "limit": 1000 * radius},
    )


def _in_order(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Finite rows, always in the same order of positions, so that the given order can't matter."""
    finite = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    return finite[np.lexsort((ra[finite] % 360.0, dec[finite]))]


def _corners(source: np.ndarray, footprint: np.ndarray | None, centre: tuple[float, float]) -> np.ndarray:
    """Corners of the field in the plane, arcsec, (K, 2)."""
    if footprint is not None:
        vertices = np.asarray(footprint, float)
        return plane_positions(vertices[:, 0], vertices[:, 1], centre)
    (west, south), (east, north) = source.min(axis=0), source.max(axis=0)
    return np.array([[west, south], [east, south], [east, north], [west, north]])


def _around(reference: np.ndarray, source: np.ndarray, reach: float) -> np.ndarray:
    """Rows of the reference in the sources' rectangle widened by ``reach`` (arcsec)."""
    low, high = source.min(axis=0) - reach, source.max(axis=0) + reach
    return np.flatnonzero(((reference > low) & (reference < high)).all(axis=1))


def _brightest_first(magnitude: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Order in which sources are taken where not all can be: by brightness, else spread over the field."""
    if magnitude is None:
        # rows come sorted by position; multiples of the golden ratio take from everywhere alike
        return np.argsort(np.arange(rows.size) * 0.6180339887498949 % 1.0, kind="stable")
    return np.argsort(np.nan_to_num(np.asarray(magnitude, float)[rows], nan=np.inf), kind="stable")


def _unrotated(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (..., 2) turned back by a rotation that goes from north to east (rad)."""
    x, y = points[..., 0], points[..., 1]
    return np.stack([math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y], axis=-1)


def _variance_at(points: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Variance per axis (arcsec^2) of the solution at points of the plane (arcsec), both (..., 2)."""
    x, y = points[..., 0], points[..., 1]
    east = covariance[0, 0] + 2 * y * covariance[0, 2] + y**2 * covariance[2, 2]
    north = covariance[1, 1] - 2 * x * covariance[1, 2] + x**2 * covariance[2, 2]
    return np.maximum(np.stack([east, north], axis=-1), 0.0)


class _Search:
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

    def pairs(self, radius: float) -> _Pairs:
        """All pairs that a shift up to ``radius`` and a rotation could explain."""
        reach = radius + self.largest_rotation * self.farthest + 2 * _SCALES_ARCSEC[-1]
        ranked = self.source[self.ranks]
        i, j = close_pairs(ranked, self.reference, reach, most=_MOST_PAIRS)
        return _Pairs(ranked[i], self.reference[j], self.ranks[i], j)

    def best(self, radius: float, scales: tuple[float, ...]) -> tuple[_Pile | None, _Pairs]:
        """The pile that chance explains least, over all scales and rotations, and the pairs it was found in."""
        pairs = self.pairs(radius)
        piles = [self._highest(pairs, scale, radius, len(scales)) for scale in scales]
        found = [pile for pile in piles if pile is not None]
        return (min(found, key=lambda pile: pile.log_chance) if found else None), pairs

    def next(self, pairs: _Pairs, fit: _Fit, scale: float, radius: float) -> int:
        """Members of the best pile among the pairs that a solution leaves unexplained."""
        apart = np.hypot(*(_unrotated(pairs.source, fit.rotation) - pairs.reference - fit.shift).T)
        # the wings of the solution's own scatter are no other solution
        left = apart > max(2.5 * scale, 4 * float(fit.scatter.max()))
        rest = _Pairs(pairs.source[left], pairs.reference[left], pairs.i[left], pairs.j[left])
        pile = self._highest(rest, scale, radius, 1)
        return 0 if pile is None else pile.n

    def _highest(self, pairs: _Pairs, scale: float, radius: float, scales: int) -> _Pile | None:
        """The highest pile of radius ``scale`` with its shift within ``radius`` (arcsec)."""
        if pairs.i.size == 0:
            return None
        rotations = self.rotations(scale)
        places = [(*self._fullest_box(pairs, angle, scale, radius), angle) for angle in rotations]
        places.sort(key=lambda place: (-place[0], abs(place[2]), place[2]))
        best: tuple[int, float, np.ndarray, float, np.ndarray] | None = None
        for count, start, angle in places[:_CANDIDATES]:
            if count == 0:
                break
            offsets = _unrotated(pairs.source, angle) - pairs.reference
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
        expected = _pair_density(offsets, shift, scale, radius) * math.pi * scale**2
        trials = scales * len(rotations) * _PLACES_PER_DISC * (1 + radius / scale) ** 2
        return _Pile(shift, float(angle), scale, int(n), math.log(trials) + _log_tail(int(n), expected))

    def _fullest_box(self, pairs: _Pairs, angle: float, scale: float, radius: float) -> tuple[int, np.ndarray]:
        """Number of pairs in the fullest square of two by two cells, and its middle (arcsec)."""
        half = math.ceil(radius / scale) + 2
        side = 2 * half
        cells = np.floor((_unrotated(pairs.source, angle) - pairs.reference) / scale).astype(int) + half
        cells = cells[((cells >= 0) & (cells < side)).all(axis=1)]
        counts = np.bincount(cells[:, 0] * side + cells[:, 1], minlength=side**2).reshape(side, side)
        boxes = counts[:-1, :-1] + counts[1:, :-1] + counts[:-1, 1:] + counts[1:, 1:]
        nodes = (np.arange(1, side) - half) * scale
        boxes[nodes[:, None] ** 2 + nodes[None, :] ** 2 > (radius + scale) ** 2] = 0
        a, b = np.unravel_index(int(np.argmax(boxes)), boxes.shape)
        return int(boxes[a, b]), np.array([nodes[a], nodes[b]])


def _pair_density(offsets: np.ndarray, shift: np.ndarray, scale: float, radius: float) -> float:
    """Density of chance pairs, arcsec^-2: the denser of a ring about the pile and of the whole plane.

    Catalogues that are clustered alike have more chance pairs at small shifts; at least one pair in the plane is
    assumed, so that a pile in an empty plane isn't worth more than it is.
    """
    distance = np.hypot(*(offsets - shift).T)
    inner, outer = 4 * scale, max(8 * scale, 1.0)
    ring = np.count_nonzero((distance > inner) & (distance <= outer)) / (math.pi * (outer**2 - inner**2))
    outside = np.count_nonzero((distance > inner) & (np.hypot(*offsets.T) <= radius))
    whole = outside / max(math.pi * (radius**2 - inner**2), math.pi * radius**2 / 4)
    return max(ring, whole, 1 / (math.pi * radius**2))


def _log_tail(n: int, expected: float) -> float:
    """Logarithm of the probability that a Poisson variable reaches ``n``; an upper bound where it is tiny."""
    from scipy.special import gammainc, gammaln

    tail = float(gammainc(n, expected))
    if tail > 1e-200:
        return math.log(tail)
    first = n * math.log(expected) - expected - float(gammaln(n + 1))
    return first - math.log1p(-expected / (n + 1))


def _fit(
    source: np.ndarray,
    reference: np.ndarray,
    pile: _Pile,
    variances: tuple[np.ndarray, np.ndarray],
    fewest: int,
) -> _Fit | None:
    """Shift and rotation on mutual nearest neighbours, starting from a pile; None if it wanders off.

    Expectation maximisation: a Gaussian about the solution, with each pair's stated variance on top of a width that is
    fitted per axis, and a uniform density of false pairs over the disc in which pairs are taken.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(reference)
    shift, rotation, width = pile.shift, pile.rotation, np.full(2, pile.radius)
    promised = math.sqrt(float(np.median(variances[0]) + np.median(variances[1])))
    reach = 3 * pile.radius
    for _ in range(_ROUNDS):
        before = np.array([*shift, rotation])
        moved = _unrotated(source, rotation) - shift
        i, j = mutual_pairs(moved, reference, tree, reach)
        if i.size < fewest:
            return None
        own = variances[0][i] + variances[1][j]
        shift, rotation, width, truth = _mixture(source[i], reference[j], own, shift, rotation, width, reach)
        if not np.isfinite([*shift, rotation]).all() or np.hypot(*(shift - pile.shift)) > 4 * pile.radius:
            return None
        reach = float(np.clip(6 * np.hypot(width.max(), promised), 0.05, _WIDEST_PAIR_ARCSEC))
        if np.abs(np.array([*shift, rotation]) - before).max() < 1e-7:
            break
    believed = truth > 0.5
    if int(believed.sum()) < fewest:
        return None
    turned = _unrotated(source[i], rotation)
    residual = turned - reference[j] - shift
    weight = truth[:, None] / (width**2 + own[:, None])
    normal, _ = _normal_equations(turned, residual, weight)
    n = float(truth.sum())
    freedom = max(2 * n - 3, 1.0)
    # the larger of the stated and the measured scatter, the latter known badly from few sources (Student)
    student = freedom / (freedom - 2) if freedom > 2 else 3.0
    inflation = max(1.0, float((weight * residual**2).sum()) / freedom * student)
    covariance = np.linalg.inv(normal) * inflation
    scatter = np.sqrt((truth[:, None] * residual**2).sum(axis=0) / max(n - 1.5, 1.0))
    middle = (weight * turned).sum(axis=0) / weight.sum(axis=0)
    arm = turned - middle
    lever = float((weight * arm**2).sum())
    return _Fit(
        shift=shift,
        rotation=rotation,
        covariance=covariance,
        scatter=scatter,
        scale=float((weight * arm * residual).sum()) / lever,
        scale_error=math.sqrt(inflation / lever),
        median=np.median((source[i] - reference[j])[believed], axis=0),
        i=i[believed],
        j=j[believed],
    )


def _normal_equations(turned: np.ndarray, residual: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of corrections to east, north and rotation: matrix (3, 3) and right side (3,), from (N, 2) arrays.

    A greater rotation turns the catalogue farther back, by (-y, x) per radian.
    """
    x, y = turned.T
    wx, wy = weight.T
    matrix = np.array(
        [
            [wx.sum(), 0.0, (wx * y).sum()],
            [0.0, wy.sum(), -(wy * x).sum()],
            [(wx * y).sum(), -(wy * x).sum(), (wx * y**2 + wy * x**2).sum()],
        ]
    )
    rx, ry = residual.T
    side = np.array([(wx * rx).sum(), (wy * ry).sum(), (wx * y * rx - wy * x * ry).sum()])
    return matrix, side


def _mixture(
    source: np.ndarray,
    reference: np.ndarray,
    own: np.ndarray,
    shift: np.ndarray,
    rotation: float,
    width: np.ndarray,
    reach: float,
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Some steps of the fit on given pairs: shift, rotation, width per axis, each pair's probability to be true."""
    density = 1 / (math.pi * reach**2)
    part = 0.7
    truth = np.ones(len(source))
    for _ in range(_STEPS_PER_ROUND):
        turned = _unrotated(source, rotation)
        residual = turned - reference - shift
        variance = width**2 + own[:, None]
        gauss = np.exp(-0.5 * (residual**2 / variance).sum(axis=1)) / (2 * math.pi * np.sqrt(variance.prod(axis=1)))
        truth = part * gauss / np.maximum(part * gauss + (1 - part) * density, 1e-300)
        if truth.sum() < 1e-6:
            break
        part = float(np.clip(truth.mean(), 0.02, 0.995))
        matrix, side = _normal_equations(turned, residual, truth[:, None] / variance)
        # a lone place on the sky has no rotation: keep the matrix regular
        step = np.linalg.solve(matrix + np.diag([1e-12, 1e-12, 1e-9 * matrix[2, 2] + 1e-12]), side)
        shift, rotation = shift + step[:2], rotation + float(step[2])
        residual = _unrotated(source, rotation) - reference - shift
        excess = (truth[:, None] * (residual**2 - own[:, None])).sum(axis=0) / truth.sum()
        width = np.sqrt(np.maximum(excess, _FLOOR_ARCSEC**2))
    return shift, rotation, width, truth
