"""Shift and rotation between one exposure's sources and a reference, or the cause why they can't be measured.

Put here the measurement of the transformation, on positions alone: the order of its steps and the limits of each. Keep
out the steps themselves (`panoramic.alignment_search`, `alignment_fit`, `alignment_scatter`, `alignment_prior`), what
the numbers must reach for an association to be accepted (that is the verdict's), where catalogues come from, and the
offset of mosaics, which have no rotation left (`panoramic.alignment_offsets`).

Method: the pile of pairs that chance explains least (`alignment_search`) must also stand over the best one among the
pairs it leaves unexplained. Then shift and rotation are fitted on mutual nearest neighbours (`alignment_fit`), and the
scatter must be that of one pointing (`alignment_scatter`). Where something is known of the pointing, a solution that
stands alone must agree with it; where none does, one is looked for within what the knowledge allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from panoramic.alignment_answers import Cause, Refusal, Solution, beyond, no_peak, too_few
from panoramic.alignment_fit import EARLY_MATCHES, Fit, fit_pile, variance_at
from panoramic.alignment_offsets import catalogue_centre, known_variances, plane_positions
from panoramic.alignment_plane import around, corners, in_order
from panoramic.alignment_prior import PointingKnowledge, combine
from panoramic.alignment_scatter import rival, wider_scatter
from panoramic.alignment_search import (
    SCALES_ARCSEC,
    Pairs,
    Pile,
    Search,
    brightest_first,
    copies_radius,
    objects,
    unrotated,
)
from panoramic.footprints import mean_position

__all__ = ["Cause", "PointingKnowledge", "Refusal", "Solution", "measure_solution"]

# a scale is fitted with this many sources, where it is there beyond doubt and no more than optics allow
_SCALE_MATCHES, _SCALE_SIGMA, _LARGEST_SCALE = 100, 5.0, 1e-3
# how much farther than the search radius is looked, only to name the cause of a refusal
_BEYOND_FACTOR = 4.0
# few matches must be this part of the sources or of the references, whichever are fewer
_SMALLEST_PART_EARLY = 0.2
# and their predicted error this part of the largest: a few of a wide scatter agree by accident
_ERROR_EARLY = 2 / 3
# how far from its prior a solution is looked for
_PRIOR_SIGMAS = 4.0


@dataclass(frozen=True)
class _Limits:
    """The limits of `measure_solution`, lengths in arcsec, rotation in rad, chances as logarithms."""

    radius: float
    rotation: float
    matches: int
    late: float
    early: float
    contrast: float
    scatter: float
    error: float
    part: float = _SMALLEST_PART_EARLY
    harmless: float = 0.0
    lone_part: float = 0.0

    def chance(self, n: int) -> float:
        """Greatest expected number of chance piles for so many matches."""
        return self.late if n >= EARLY_MATCHES else self.early


@dataclass(frozen=True)
class _Scene:
    """Both catalogues as objects in the plane about the centre (arcsec), with the rows and variances of each."""

    centre: tuple[float, float]
    corners: np.ndarray
    source: np.ndarray
    reference: np.ndarray
    rows: np.ndarray
    ref_rows: np.ndarray
    ranks: np.ndarray
    variances: tuple[np.ndarray, np.ndarray]

    @property
    def farthest(self) -> float:
        """Distance of the farthest corner from the centre."""
        return float(np.hypot(*self.corners.T).max())


@dataclass(frozen=True)
class _Found:
    """A solution that passed, and what it came from."""

    pile: Pile
    fit: Fit
    contrast: float


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
    harmless_arcsec: float = 0.0,
    lone_part: float = 0.0,
    prior: PointingKnowledge | None = None,
    minimum_matches_with_prior: int = 3,
) -> Solution | Refusal:
    """Measure shift and rotation of a catalogue against a reference.

    Parameters
    ----------
    ra, dec : of the catalogue, deg, shape (N,); rows that are not finite are left out.
    ref_ra, ref_dec : of the reference, deg, shape (M,); rows closer than 50 mas to each other count as one;
        the same up to 350 mas where many more are that near than chance makes, as in a merged catalogue.
    search_radius_arcsec : largest shift at the field's centre that is accepted.
    largest_rotation_deg : largest rotation that is looked for, either way.
    footprint : (K, 2) RA and Dec of the corners, deg, which set centre and corners of the field; None: taken from the
        catalogue.
    error_mas, ref_error_mas : standard deviation per axis of each position, shape (N,), (M,); NaN, 0 or None: unknown.
    magnitude : of the catalogue, shape (N,); where there are too many pairs, the brightest sources are searched with.
    minimum_matches : fewer matched sources are no solution.
    maximum_chance, maximum_chance_early : greatest expected number of chance piles, from and below 12 matches.
    minimum_contrast : smallest ratio of the best pile's height to that of the next solution.
    largest_scatter_mas : of one pair about the solution, the larger axis.
    largest_error_mas : predicted error at the field's centre, the larger axis; two thirds of it below 12 matches that
        stand alone.
    harmless_arcsec : sources without a partner so near to the solution tell nothing against it, from 12 matches on:
        galaxies whose centre is elsewhere in another filter. With 0, a smear is told from fewer sources.
    lone_part : such sources farther out, as a part of the matched ones, that tell nothing from 24 matches on: pieces of
        spikes and blends. At least a tenth.
    prior : what is known of the pointing, as the visit's other detectors say; it belongs to the centre of the
        footprint. It enters the solution as an observation.
    minimum_matches_with_prior : the same as ``minimum_matches``, within 4 standard errors of the prior.

    Returns
    -------
    The solution, or why there is none. The order of rows doesn't matter.
    """
    limits = _Limits(
        radius=search_radius_arcsec,
        rotation=math.radians(largest_rotation_deg),
        matches=minimum_matches,
        late=math.log(maximum_chance),
        early=math.log(maximum_chance_early),
        contrast=minimum_contrast,
        scatter=largest_scatter_mas / 1000,
        error=largest_error_mas / 1000,
        harmless=harmless_arcsec,
        lone_part=lone_part,
    )
    near = limits if prior is None else _near(prior, limits, min(minimum_matches, minimum_matches_with_prior))
    scene = _scene((ra, dec), (ref_ra, ref_dec), limits, near.matches, footprint, (error_mas, ref_error_mas), magnitude)
    if isinstance(scene, Refusal):
        return scene
    alone = _measure(scene, limits)
    if prior is None:
        return alone if isinstance(alone, Refusal) else _solution(scene, alone)
    if isinstance(alone, Refusal) and alone.cause in (Cause.BEYOND_SEARCH_RADIUS, Cause.BEYOND_LARGEST_ROTATION):
        return alone
    if isinstance(alone, Refusal) and alone.cause is not Cause.SCATTER_TOO_LARGE:
        found = _measure(scene, near, prior)
        # without the prior there may be a better reason
        alone = found if isinstance(found, _Found) or alone.cause is Cause.ERROR_TOO_LARGE else alone
    return alone if isinstance(alone, Refusal) else _with_prior(scene, alone, prior, limits)


def _near(prior: PointingKnowledge, limits: _Limits, matches: int) -> _Limits:
    """The limits within what a prior allows."""
    shift, turn = prior.reach(_PRIOR_SIGMAS)
    # the error that matters is that of measurement and prior together
    return replace(
        limits,
        radius=min(shift, limits.radius),
        rotation=min(turn, limits.rotation),
        matches=matches,
        error=math.inf,
        part=0.0,
    )


def _scene(
    catalog: tuple[np.ndarray, np.ndarray],
    reference: tuple[np.ndarray, np.ndarray],
    limits: _Limits,
    fewest: int,
    footprint: np.ndarray | None,
    errors: tuple[np.ndarray | None, np.ndarray | None],
    magnitude: np.ndarray | None,
) -> _Scene | Refusal:
    """Both catalogues in the plane; a refusal where they have too few objects in the same area."""
    ra, dec, ref_ra, ref_dec = (np.atleast_1d(np.asarray(v, float)) for v in (*catalog, *reference))
    rows, ref_rows = in_order(ra, dec), in_order(ref_ra, ref_dec)
    if rows.size < fewest:
        return too_few(Cause.TOO_FEW_SOURCES, rows.size, fewest)
    if ref_rows.size < fewest:
        return too_few(Cause.TOO_FEW_REFERENCES, ref_rows.size, fewest)
    centre = catalogue_centre(ra[rows], dec[rows]) if footprint is None else mean_position(np.asarray(footprint))
    source = plane_positions(ra[rows], dec[rows], centre)
    seen = plane_positions(ref_ra[ref_rows], ref_dec[ref_rows], centre)
    usable = np.isfinite(source).all(axis=1)
    source, rows = source[usable], rows[usable]
    # several rows of one object would be counted as so many witnesses
    source, single = objects(source)
    rows = rows[single]
    if rows.size < fewest:
        return too_few(Cause.TOO_FEW_SOURCES, rows.size, fewest)
    edges = corners(source, footprint, centre)
    slack = limits.rotation * float(np.hypot(*edges.T).max())
    near = around(seen, source, max(_BEYOND_FACTOR * limits.radius, 1.0) + slack)
    seen, single = objects(seen[near], copies_radius(seen[near]))
    ref_rows = ref_rows[near][single]
    inside = around(seen, source, limits.radius + slack).size
    if inside < fewest:
        return too_few(Cause.TOO_FEW_REFERENCES, inside, fewest)
    variances = known_variances(errors[0], rows), known_variances(errors[1], ref_rows)
    return _Scene(centre, edges, source, seen, rows, ref_rows, brightest_first(magnitude, rows), variances)


def _measure(scene: _Scene, limits: _Limits, prior: PointingKnowledge | None = None) -> _Found | Refusal:
    """A solution within the limits, about a prior or about none, or why there is none."""
    # the search goes about the prior: the catalogue is brought there first
    shift, turn = (np.zeros(2), 0.0) if prior is None else (prior.mean[:2], float(prior.mean[2]))
    search = Search(
        unrotated(scene.source, turn) - shift, scene.reference, scene.ranks, limits.rotation, scene.farthest
    )
    pairs = search.pairs(limits.radius)
    pile = search.best(pairs, limits.radius)
    if pile is None or pile.n < limits.matches or pile.log_chance > limits.chance(pile.n):
        missing = no_peak(pile, limits.matches, limits.early if pile is None else limits.chance(pile.n))
        return missing if prior is not None else _farther(search, limits) or missing
    turns = (0.0, max(limits.rotation, 1e-6))
    variances, fewest = scene.variances, limits.matches
    fit = fit_pile(search.source, scene.reference, pile, variances, fewest, rotation=turns, cautious=prior is None)
    if fit is None:
        return no_peak(pile, fewest, limits.early)
    if fit.i.size >= _SCALE_MATCHES and _SCALE_SIGMA * fit.scale_error < abs(fit.scale) < _LARGEST_SCALE:
        # a shift and a rotation alone would be off by it at the corners
        fit = fit_pile(search.source, scene.reference, pile, variances, fewest, rotation=turns, with_scale=True) or fit
    refusal = _judged(search, pairs, pile, fit, variances, limits)
    if isinstance(refusal, Refusal):
        return refusal
    if prior is not None:
        fit = replace(
            fit,
            shift=fit.shift + unrotated(shift, fit.rotation),
            rotation=fit.rotation + turn,
            median=np.median(scene.source[fit.i] - scene.reference[fit.j], axis=0),
        )
    return _Found(pile, fit, refusal)


def _farther(search: Search, limits: _Limits) -> Refusal | None:
    """A refusal that tells how far off the catalogue is, where that is beyond the search radius."""
    reach = max(_BEYOND_FACTOR * limits.radius, 1.0)
    pile = search.best(search.pairs(reach), reach, SCALES_ARCSEC[1:])
    if pile is None or pile.n < limits.matches or pile.log_chance > limits.early:
        return None
    return beyond(pile, pile.shift, limits.radius) if np.hypot(*pile.shift) > limits.radius else None


def _judged(
    search: Search, pairs: Pairs, pile: Pile, fit: Fit, variances: tuple[np.ndarray, np.ndarray], limits: _Limits
) -> float | Refusal:
    """The contrast of a solution, or why it is none."""
    n = int(fit.i.size)
    limit = limits.chance(min(pile.n, n))
    if n < limits.matches or pile.log_chance > limit:
        return no_peak(pile, limits.matches, limit)
    other = rival(search, pairs, fit, pile, limits.radius)
    if other.contrast < limits.contrast or other.real:
        text = (
            f"the best solution has only {other.contrast:.2f} times the support of the next (limit {limits.contrast:g})"
            if other.contrast < limits.contrast
            else f"{other.n} sources agree on another solution than the best, which is no accident"
        )
        numbers = {"n": pile.n, "n_next": other.n, "contrast": other.contrast, "limit": limits.contrast}
        return Refusal(Cause.AMBIGUOUS, text, numbers)
    most = min(search.counts()[:2])
    if n < EARLY_MATCHES and n < limits.part * most:
        text = f"only {n} of {most} sources agree on one solution (limit {limits.part:g} of them)"
        return Refusal(Cause.NO_PEAK, text, {"n": n, "n_possible": most, "limit": limits.part})
    error = np.sqrt(np.diag(fit.covariance))
    if np.hypot(*fit.shift) > limits.radius + 3 * float(np.hypot(error[0], error[1])):
        return beyond(pile, fit.shift, limits.radius)
    if abs(fit.rotation) > limits.rotation + 3 * error[2]:
        turn, largest = math.degrees(fit.rotation), math.degrees(limits.rotation)
        return Refusal(
            Cause.BEYOND_LARGEST_ROTATION,
            f"the best solution is turned by {turn:.3f} deg (limit {largest:g})",
            {"n": n, "rotation_deg": turn, "limit": largest},
        )
    wider = wider_scatter(search, pairs, fit, variances, limits.radius, limits.harmless, limits.lone_part)
    if wider is not None:
        return Refusal(Cause.SCATTER_TOO_LARGE, *wider)
    if fit.scatter.max() > limits.scatter:
        scatter, largest = 1000 * float(fit.scatter.max()), 1000 * limits.scatter
        return Refusal(
            Cause.SCATTER_TOO_LARGE,
            f"{n} matched sources scatter by {scatter:.0f} mas (limit {largest:g})",
            {"n": n, "scatter_mas": scatter, "limit": largest},
        )
    return _too_uncertain(fit, limits.error) or other.contrast


def _too_uncertain(fit: Fit, largest: float, *, with_prior: bool = False) -> Refusal | None:
    """A refusal where the shift is known to less than ``largest`` (arcsec) on the worse axis."""
    predicted = math.sqrt(float(fit.covariance.diagonal()[:2].max()))
    if fit.i.size < EARLY_MATCHES and not with_prior:
        largest *= _ERROR_EARLY
    if predicted <= largest:
        return None
    return Refusal(
        Cause.ERROR_TOO_LARGE,
        f"{fit.i.size} matched sources give the shift to {1000 * predicted:.1f} mas only (limit {1000 * largest:g})",
        {"n": int(fit.i.size), "error_mas": 1000 * predicted, "limit": 1000 * largest},
    )


def _with_prior(scene: _Scene, found: _Found, prior: PointingKnowledge, limits: _Limits) -> Solution | Refusal:
    """The solution with the prior as one more observation, if the two agree."""
    fit = found.fit
    measured = np.array([*fit.shift, fit.rotation])
    both = combine(measured, fit.covariance[:3, :3], prior)
    n, away = int(fit.i.size), measured - prior.mean
    if not both.agree:
        east, north, turn = 1000 * away[0], 1000 * away[1], math.degrees(away[2])
        return Refusal(
            Cause.DISAGREES_WITH_PRIOR,
            f"{n} matched sources put the exposure {east:.0f} mas east, {north:.0f} mas north and {turn:.3f} deg off "
            "what is known of its pointing",
            {"n": n, "dra_mas": east, "ddec_mas": north, "rotation_deg": turn, "chi2": both.chi2},
        )
    covariance = np.zeros((4, 4))
    covariance[:3, :3], covariance[3, 3] = both.covariance, fit.covariance[3, 3]
    fit = replace(fit, shift=both.solution[:2], rotation=float(both.solution[2]), covariance=covariance)
    if np.hypot(*fit.shift) > limits.radius + 3 * math.sqrt(float(np.trace(both.covariance[:2, :2]))):
        return beyond(found.pile, fit.shift, limits.radius)
    return _too_uncertain(fit, limits.error, with_prior=True) or _solution(
        scene, replace(found, fit=fit), with_prior=True
    )


def _solution(scene: _Scene, found: _Found, *, with_prior: bool = False) -> Solution:
    """What was found, in mas and deg."""
    fit, farthest = found.fit, scene.farthest
    error = np.sqrt(np.diag(fit.covariance))
    at_corners = np.sqrt(variance_at(scene.corners, fit.covariance))
    worst = at_corners[int(np.argmax(np.hypot(*at_corners.T)))]
    return Solution(
        ra=scene.centre[0] % 360.0,
        dec=scene.centre[1],
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
        n=int(fit.i.size),
        chance=math.exp(max(found.pile.log_chance, -600.0)),
        contrast=found.contrast,
        corner_arcsec=farthest,
        scale=fit.scale if fit.scale_fitted else 0.0,
        covariance=fit.covariance,
        index=scene.rows[fit.i],
        ref_index=scene.ref_rows[fit.j],
        with_prior=with_prior,
    )
