"""Shift and rotation between one exposure's sources and a reference, or the cause why they can't be measured.

Put here the pure measurement of the transformation, on positions alone. Keep out what the numbers must reach for an
association to be accepted (that is the verdict's), where catalogues come from, and the offset of mosaics, which have no
rotation left (`panoramic.alignment_offsets`).

Method: all pairs within the search radius are points in the plane of offsets; for a small set of trial rotations and
radii the highest pile is found, and weighed against the number of such piles that chance makes (scan statistic of a
Poisson plane, each source and each reference counted once; the offset histograms of tweakwcs `XYXYMatch` are where the
idea comes from). The pile that chance explains least must also stand over the best one among the pairs it leaves
unexplained. Then shift and rotation are fitted on mutual nearest
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
    known_variances,
    mutual_pairs,
    plane_positions,
)
from panoramic.footprints import ARCMIN, connected, deproject, mean_position, project

_ARCSEC = ARCMIN / 60
_SCALES_ARCSEC = (0.03, 0.08, 0.2)
# pairs of the search: more of them cost time and add nothing
_MOST_PAIRS = 200_000
# places per disc that are tried: a pile may lie anywhere, and is recentred; found by counting unrelated catalogues
_PLACES_PER_DISC = 12.0
_EARLY_MATCHES = 12
# a scale is fitted with this many sources, where it is there beyond doubt and no more than optics allow
_SCALE_MATCHES, _SCALE_SIGMA, _LARGEST_SCALE = 100, 5.0, 1e-3
_CANDIDATES = 6
_ROUNDS = 60
_STEPS_PER_ROUND = 12
# what a scatter can be at least: positions are never better than this
_FLOOR_ARCSEC = 2e-4
_WIDEST_PAIR_ARCSEC = 0.6
_MERGE_ARCSEC = 0.05
# sources this near to the solution and outside of its scatter tell that the scatter is really wider
_WINGS_ARCSEC = 0.8
_LARGEST_WINGS, _LARGEST_WINGS_CHANCE = 0.3, 1e-3
# the same where the matched sources scatter more than stated: then they are likely a part of something wider
_SMALLER_WINGS, _SMALLER_WINGS_CHANCE = 0.1, 0.05
_UNEXPLAINED = 1.0
# few sources with unexplained scatter: a Gaussian is hardly what they come from
_UNEXPLAINED_EARLY_VARIANCE = 2.0
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
    scale_mas, scale_err_mas : what the scale moves the farthest corner by, positive where the catalogue is larger.
    scale : the catalogue's scale over the reference's, less 1, where it is part of the solution (100 sources and 5
        standard errors); else 0, and ``scale_mas`` tells what is left in the residuals.
    median_ra, median_dec : median offset of the matched pairs, mas, rotation not taken out.
    scatter_ra, scatter_dec : standard deviation of one pair about the solution, mas.
    n : matched sources, each source and each reference once.
    chance : expected number of piles as high as this one, for all trials, if nothing matched.
    contrast : height of the pile over that of the next solution.
    corner_arcsec : distance of the farthest corner from the centre.
    covariance : of east, north (arcsec), rotation (rad) and scale at the centre, (4, 4).
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
    scale: float
    covariance: np.ndarray = field(compare=False, repr=False)
    index: np.ndarray = field(compare=False, repr=False)
    ref_index: np.ndarray = field(compare=False, repr=False)

    def corrected(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the catalogue (deg, any shape) brought to the frame of the reference."""
        xi, eta = project(ra, dec, self.ra, self.dec)
        plane = _unrotated(np.stack([xi, eta], axis=-1), math.radians(self.rotation_deg)) / (1 + self.scale)
        plane = plane - np.array([self.dra, self.ddec]) / 1000 * _ARCSEC
        return deproject(plane[..., 0], plane[..., 1], self.ra, self.dec)

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
    """Shift (arcsec), rotation (rad), their covariance, scatter per axis, scale and its error, median, rows matched.

    ``unexplained``: the scatter is well above what the errors of the positions promise.
    """

    shift: np.ndarray
    rotation: float
    covariance: np.ndarray
    scatter: np.ndarray
    scale: float
    scale_error: float
    scale_fitted: bool
    median: np.ndarray
    i: np.ndarray
    j: np.ndarray
    unexplained: bool


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
    source, single = _objects(source)
    rows = rows[single]
    if rows.size < minimum_matches:
        return _too_few(Cause.TOO_FEW_SOURCES, rows.size, minimum_matches)
    corners = _corners(source, footprint, centre)
    farthest = float(np.hypot(*corners.T).max())
    largest_rotation = math.radians(largest_rotation_deg)

    # several rows of one object would be counted as so many witnesses
    beyond = max(_BEYOND_FACTOR * search_radius_arcsec, 1.0)
    around = _around(reference, source, beyond + largest_rotation * farthest)
    reference, single = _objects(reference[around])
    ref_rows = ref_rows[around][single]
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
    if (
        fit.i.size >= _SCALE_MATCHES and _SCALE_SIGMA * fit.scale_error < abs(fit.scale) < _LARGEST_SCALE
    ):  # a shift and a rotation alone would be off by it at the corners
        fit = _fit(source, reference, pile, variances, minimum_matches, with_scale=True) or fit
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
    lost, by_chance = search.wings(pairs, fit, search_radius_arcsec)
    most, rarest = (
        (_SMALLER_WINGS, _SMALLER_WINGS_CHANCE) if fit.unexplained else (_LARGEST_WINGS, _LARGEST_WINGS_CHANCE)
    )
    if lost - by_chance > most * n and _log_tail(lost, by_chance) < math.log(rarest):
        return Refusal(
            Cause.SCATTER_TOO_LARGE,
            f"{n} sources agree, but {lost} more lie about them (chance puts {by_chance:.1f}): the scatter is wider",
            {"n": n, "n_around": lost, "n_chance": by_chance, "limit": most},
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
        scale=fit.scale if fit.scale_fitted else 0.0,
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


def _objects(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean position of each group of points closer than 50 mas, and the row that stands for it (its first)."""
    from scipy.spatial import cKDTree

    if len(points) == 0:
        return points, np.empty(0, int)
    labels = connected(cKDTree(points).query_pairs(_MERGE_ARCSEC, output_type="ndarray"), len(points))
    _, first, group, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    # the first row alone would be the southernmost one
    means = [np.bincount(group, weights=axis) / sizes for axis in points.T]
    return np.column_stack(means), first


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
    one, none = np.ones_like(x), np.zeros_like(x)
    east, north = np.stack([one, none, y, x], axis=-1), np.stack([none, one, -x, y], axis=-1)
    variances = [np.einsum("...i,ij,...j->...", axis, covariance, axis) for axis in (east, north)]
    return np.maximum(np.stack(variances, axis=-1), 0.0)


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
        reach = radius + self.largest_rotation * self.farthest + _WINGS_ARCSEC
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

    def wings(self, pairs: _Pairs, fit: _Fit, radius: float) -> tuple[int, float]:
        """Sources that lie about the solution but outside of its scatter, and how many chance puts there."""
        offsets = _unrotated(pairs.source, fit.rotation) - pairs.reference
        distance = np.hypot(*(offsets - fit.shift).T)
        core = max(3.5 * float(fit.scatter.max()), _SCALES_ARCSEC[0])
        wide = max(_WINGS_ARCSEC, 2 * core)
        matched = np.unique(pairs.i[distance <= core])
        seen = np.setdiff1d(pairs.i[distance <= wide], matched).size
        density = _pair_density(offsets, fit.shift, wide / 4, radius)
        free = 1 - matched.size / max(np.unique(pairs.i).size, matched.size, 1)
        return int(seen), density * math.pi * (wide**2 - core**2) * free

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
    *,
    with_scale: bool = False,
) -> _Fit | None:
    """Shift, rotation, and if told a scale, on mutual nearest neighbours, starting from a pile; None if it wanders off.

    Expectation maximisation: a Gaussian about the solution, with each pair's stated variance on top of a width that is
    fitted per axis, and a uniform density of false pairs over the disc in which pairs are taken.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(reference)
    shift, rotation, scale, width = pile.shift, pile.rotation, 0.0, np.full(2, pile.radius)
    promised = math.sqrt(float(np.median(variances[0]) + np.median(variances[1])))
    reach = 3 * pile.radius
    for _ in range(_ROUNDS):
        before = np.array([*shift, rotation, scale])
        moved = _unrotated(source, rotation) / (1 + scale) - shift
        i, j = mutual_pairs(moved, reference, tree, reach)
        if i.size < fewest:
            return None
        own = variances[0][i] + variances[1][j]
        start = np.array([*shift, rotation, scale])
        now, width, truth = _mixture(source[i], reference[j], own, start, width, reach, with_scale=with_scale)
        shift, rotation, scale = now[:2], float(now[2]), float(now[3])
        if not np.isfinite(now).all() or np.hypot(*(shift - pile.shift)) > 4 * pile.radius:
            return None
        reach = float(np.clip(6 * np.hypot(width.max(), promised), 0.05, _WIDEST_PAIR_ARCSEC))
        if np.abs(now - before).max() < 1e-7:
            break
    believed = truth > 0.5
    if int(believed.sum()) < fewest:
        return None
    turned = _unrotated(source[i], rotation) / (1 + scale)
    residual = turned - reference[j] - shift
    weight = truth[:, None] / (width**2 + own[:, None])
    normal, side = _normal_equations(turned, residual, weight)
    n = float(truth.sum())
    freedom = max(2 * n - 3, 1.0)
    # the larger of the stated and the measured scatter, the latter known badly from few sources (Student)
    student = freedom / (freedom - 2) if freedom > 2 else 3.0
    inflation = max(1.0, float((weight * residual**2).sum()) / freedom * student)
    stated = float(np.median(own[believed]))
    unexplained = stated > 0 and float(width.max()) ** 2 > _UNEXPLAINED * stated
    if unexplained and int(believed.sum()) < _EARLY_MATCHES:
        inflation *= _UNEXPLAINED_EARLY_VARIANCE
    everything = np.linalg.inv(normal)
    covariance = everything.copy()
    if not with_scale:
        covariance = np.zeros((4, 4))
        covariance[:3, :3] = np.linalg.inv(normal[:3, :3])
    scatter = np.sqrt((truth[:, None] * residual**2).sum(axis=0) / max(n - 1.5, 1.0))
    return _Fit(
        shift=shift,
        rotation=rotation,
        covariance=covariance * inflation,
        scatter=scatter,
        scale=scale + float((everything @ side)[3]),
        scale_error=math.sqrt(inflation * everything[3, 3]),
        scale_fitted=with_scale,
        median=np.median((source[i] - reference[j])[believed], axis=0),
        i=i[believed],
        j=j[believed],
        unexplained=unexplained,
    )


def _normal_equations(turned: np.ndarray, residual: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of corrections to east, north, rotation and scale: matrix (4, 4) and right side (4,), from (N, 2) arrays.

    A greater rotation turns the catalogue farther back, by (-y, x) per radian; a greater scale shrinks it.
    """
    x, y = turned.T
    one, none = np.ones_like(x), np.zeros_like(x)
    east, north = np.stack([one, none, y, x]), np.stack([none, one, -x, y])
    wx, wy = weight.T
    matrix = (east * wx) @ east.T + (north * wy) @ north.T
    return matrix, (east * wx) @ residual[:, 0] + (north * wy) @ residual[:, 1]


def _mixture(
    source: np.ndarray,
    reference: np.ndarray,
    own: np.ndarray,
    solution: np.ndarray,
    width: np.ndarray,
    reach: float,
    *,
    with_scale: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some steps of the fit on given pairs.

    Takes and gives the solution: east, north (arcsec), rotation (rad) and scale, (4,); and gives the width per axis
    and each pair's probability to be true.
    """
    density = 1 / (math.pi * reach**2)
    part = 0.7
    truth = np.ones(len(source))
    free = 4 if with_scale else 3
    for _ in range(_STEPS_PER_ROUND):
        turned = _unrotated(source, float(solution[2])) / (1 + solution[3])
        residual = turned - reference - solution[:2]
        variance = width**2 + own[:, None]
        gauss = np.exp(-0.5 * (residual**2 / variance).sum(axis=1)) / (2 * math.pi * np.sqrt(variance.prod(axis=1)))
        truth = part * gauss / np.maximum(part * gauss + (1 - part) * density, 1e-300)
        if truth.sum() < 1e-6:
            break
        part = float(np.clip(truth.mean(), 0.02, 0.995))
        matrix, side = _normal_equations(turned, residual, truth[:, None] / variance)
        # a lone place on the sky has no rotation: keep the matrix regular
        matrix = matrix + np.diag([1e-12, 1e-12, 1e-9 * matrix[2, 2] + 1e-12, 1e-12])
        solution = solution.copy()
        solution[:free] += np.linalg.solve(matrix[:free, :free], side[:free])
        residual = _unrotated(source, float(solution[2])) / (1 + solution[3]) - reference - solution[:2]
        excess = (truth[:, None] * (residual**2 - own[:, None])).sum(axis=0) / truth.sum()
        width = np.sqrt(np.maximum(excess, _FLOOR_ARCSEC**2))
    return solution, width, truth
