"""Shift and rotation fitted to the pairs about a pile.

Put here the fit and the covariance it promises. Keep out how a pile is found (`panoramic.alignment_search`) and what a
solution must reach (`panoramic.alignment_solution`).

Pairs are mutual nearest neighbours; shift, rotation and the scatter of each axis are those of a Gaussian, with each
pair's stated variance on top of a fitted width, on a uniform background of false pairs (expectation maximisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from panoramic.alignment_offsets import mutual_pairs
from panoramic.alignment_search import Pile, unrotated

EARLY_MATCHES = 12
VERY_FEW = 8
_ROUNDS = 60
_STEPS_PER_ROUND = 12
# what a scatter can be at least: positions are never better than this
_FLOOR_ARCSEC = 2e-4
_WIDEST_PAIR_ARCSEC = 0.6
# scatter above the stated that has so small a chance is not explained by the positions' errors
_UNEXPLAINED_CHANCE = 0.01
# the variance of a solution whose scatter is not explained is doubled up to so many matches, and less beyond
_DOUBTFUL_MATCHES = 10.0
# scatter that is longer one way than the other, by so small a chance, is taken as if long all ways
_LONGER_CHANCE, _LONGER_CHANCE_DOUBTFUL = 0.03, 0.2


@dataclass(frozen=True)
class Fit:
    """What the pairs say.

    Parameters
    ----------
    shift, rotation : arcsec (2,), rad.
    covariance : of east, north, rotation and scale, (4, 4).
    scatter : per axis, arcsec, (2,).
    scale, scale_error, scale_fitted : catalogue over reference, less 1, and whether it is part of the solution.
    median : of the pairs' offsets, rotation not taken out, arcsec, (2,).
    i, j : rows matched.
    unexplained : the scatter is above what the errors of the positions promise, or these are not known.
    longest, shortest, stated : scatter along its longest direction, across it, and that which was stated, arcsec.
    excess : variance on top of the stated one, arcsec^2.
    round_chance : chance that a round scatter looks as elongated as this one.
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
    longest: float
    shortest: float
    stated: float
    excess: float
    round_chance: float


def fit_pile(
    source: np.ndarray,
    reference: np.ndarray,
    pile: Pile,
    variances: tuple[np.ndarray, np.ndarray],
    fewest: int,
    *,
    rotation: tuple[float, float],
    with_scale: bool = False,
    cautious: bool = True,
) -> Fit | None:
    """Shift, rotation, and if told a scale, starting from a pile; None if it wanders off or has too few pairs.

    Parameters
    ----------
    source, reference : positions in the plane, arcsec, (N, 2), (M, 2).
    pile : where to start.
    variances : of the positions of both, arcsec^2; 0 where unknown.
    fewest : pairs.
    rotation : what is looked for at all, middle and half width in rad: few sources in a small field know it badly.
    with_scale : whether to fit a scale.
    cautious : whether nothing else tells where the solution is.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(reference)
    shift, angle, scale, width = pile.shift, pile.rotation, 0.0, np.full(2, pile.radius)
    promised = math.sqrt(float(np.median(variances[0]) + np.median(variances[1])))
    reach = 3 * pile.radius
    for _ in range(_ROUNDS):
        start = np.array([*shift, angle, scale])
        moved = unrotated(source, angle) / (1 + scale) - shift
        i, j = mutual_pairs(moved, reference, tree, reach)
        if i.size < fewest:
            return None
        own = variances[0][i] + variances[1][j]
        now, width, truth = _mixture(
            source[i], reference[j], own, start, width, reach, rotation=rotation, with_scale=with_scale
        )
        shift, angle, scale = now[:2], float(now[2]), float(now[3])
        if not np.isfinite(now).all() or np.hypot(*(shift - pile.shift)) > 4 * pile.radius:
            return None
        reach = float(np.clip(6 * np.hypot(width.max(), promised), 0.05, _WIDEST_PAIR_ARCSEC))
        if np.abs(now - start).max() < 1e-7:
            break
    believed = truth > 0.5
    if int(believed.sum()) < fewest:
        return None
    turned = unrotated(source[i], angle) / (1 + scale)
    residual = turned - reference[j] - shift
    n = float(truth.sum())
    stated, few = math.sqrt(float(np.median(own[believed]))), int(believed.sum()) < EARLY_MATCHES
    unknown = not (own > 0).all()
    contradicts = not unknown and _contradicts(residual, truth, own)
    unexplained = unknown or contradicts
    # a width on top of stated errors that explain the scatter would be noise, and makes the predicted error too large;
    # few sources that stand alone can't tell
    common = float((width**2).mean()) if unexplained or (few and cautious) else 0.0
    longest, shortest, round_chance = _elongation(residual, truth, common + own)
    long = round_chance < (_LONGER_CHANCE_DOUBTFUL if unexplained or (few and cautious) else _LONGER_CHANCE)
    if long or common == 0:
        # the errors of both axes are then those of the longest direction, which need not be an axis
        width = np.full(2, math.sqrt(common))
    weight = truth[:, None] / (width**2 + own[:, None])
    normal, side = normal_equations(turned, residual, weight)
    normal[2, 2] += 1 / rotation[1] ** 2
    freedom = max(2 * n - 3, 1.0)
    # the larger of the stated and the measured scatter; where the latter is all there is, or few sources stand alone,
    # it is known badly (Student)
    badly = unexplained or (few and cautious)
    inflation = max(1.0, float((weight * residual**2).sum()) / freedom * (_student(freedom) if badly else 1.0))
    if long:
        # the longest of many is rather too long than too short
        inflation = max(inflation, longest * (_student(max(n - 1.5, 1.0)) if few else 1.0))
    if contradicts or (unknown and few):
        # a Gaussian is hardly what they come from, and what was matched may be a part of it
        inflation *= 1 + min(1.0, _DOUBTFUL_MATCHES / n)
    everything = np.linalg.inv(normal)
    covariance = everything.copy()
    if not with_scale:
        covariance = np.zeros((4, 4))
        covariance[:3, :3] = np.linalg.inv(normal[:3, :3])
    scatter = np.sqrt((truth[:, None] * residual**2).sum(axis=0) / max(n - 1.5, 1.0))
    return Fit(
        shift=shift,
        rotation=angle,
        covariance=covariance * inflation,
        scatter=scatter,
        scale=scale + float((everything @ side)[3]),
        scale_error=math.sqrt(inflation * everything[3, 3]),
        scale_fitted=with_scale,
        median=np.median((source[i] - reference[j])[believed], axis=0),
        i=i[believed],
        j=j[believed],
        unexplained=unexplained,
        longest=math.sqrt(longest * (common + stated**2)),
        shortest=math.sqrt(shortest * (common + stated**2)),
        excess=common,
        stated=stated,
        round_chance=round_chance,
    )


def _student(freedom: float) -> float:
    """Variance of Student's distribution, bounded where it has none."""
    return freedom / (freedom - 2) if freedom > 3 else 3.0


def _elongation(residual: np.ndarray, truth: np.ndarray, variance: np.ndarray) -> tuple[float, float, float]:
    """Greatest and smallest variance over all directions, in units of ``variance``, and the chance of that.

    The chance is that of a round scatter to look so long. The likelihood ratio of a round against any Gaussian has a
    closed distribution in two dimensions (Mauchly).
    """
    freedom = max(float(truth.sum()) - 1.5, 1.0)
    scaled = residual * np.sqrt(truth / variance)[:, None]
    small, large = np.linalg.eigvalsh(scaled.T @ scaled / freedom)
    roundness = 2 * math.sqrt(max(small * large, 0.0)) / max(small + large, 1e-300)
    return float(large), max(float(small), 0.0), roundness ** max(freedom - 1, 0.0)


def _contradicts(residual: np.ndarray, truth: np.ndarray, own: np.ndarray) -> bool:
    """Whether the scatter is well above the stated variances."""
    from scipy.special import gammaincc

    size = float((truth[:, None] * residual**2 / own[:, None]).sum())
    freedom = max(2 * float(truth.sum()) - 3, 1.0)
    return float(gammaincc(freedom / 2, size / 2)) < _UNEXPLAINED_CHANCE


def normal_equations(turned: np.ndarray, residual: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of corrections to east, north, rotation and scale: matrix (4, 4) and right side (4,), from (N, 2) arrays.

    A greater rotation turns the catalogue farther back, by (-y, x) per radian; a greater scale shrinks it.
    """
    x, y = turned.T
    one, none = np.ones_like(x), np.zeros_like(x)
    east, north = np.stack([one, none, y, x]), np.stack([none, one, -x, y])
    wx, wy = weight.T
    matrix = (east * wx) @ east.T + (north * wy) @ north.T
    return matrix, (east * wx) @ residual[:, 0] + (north * wy) @ residual[:, 1]


def variance_at(points: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Variance per axis (arcsec^2) of the solution at points of the plane (arcsec), both (..., 2)."""
    x, y = points[..., 0], points[..., 1]
    one, none = np.ones_like(x), np.zeros_like(x)
    east, north = np.stack([one, none, y, x], axis=-1), np.stack([none, one, -x, y], axis=-1)
    variances = [np.einsum("...i,ij,...j->...", axis, covariance, axis) for axis in (east, north)]
    return np.maximum(np.stack(variances, axis=-1), 0.0)


def _mixture(
    source: np.ndarray,
    reference: np.ndarray,
    own: np.ndarray,
    solution: np.ndarray,
    width: np.ndarray,
    reach: float,
    *,
    rotation: tuple[float, float],
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
    middle, half = rotation
    for _ in range(_STEPS_PER_ROUND):
        turned = unrotated(source, float(solution[2])) / (1 + solution[3])
        residual = turned - reference - solution[:2]
        variance = width**2 + own[:, None]
        gauss = np.exp(-0.5 * (residual**2 / variance).sum(axis=1)) / (2 * math.pi * np.sqrt(variance.prod(axis=1)))
        truth = part * gauss / np.maximum(part * gauss + (1 - part) * density, 1e-300)
        if truth.sum() < 1e-6:
            break
        part = float(np.clip(truth.mean(), 0.02, 0.995))
        matrix, side = normal_equations(turned, residual, truth[:, None] / variance)
        matrix[2, 2] += 1 / half**2
        side[2] += (middle - solution[2]) / half**2
        # a lone place on the sky has no scale: keep the matrix regular
        matrix = matrix + np.diag([1e-12, 1e-12, 1e-12, 1e-12])
        solution = solution.copy()
        solution[:free] += np.linalg.solve(matrix[:free, :free], side[:free])
        residual = unrotated(source, float(solution[2])) / (1 + solution[3]) - reference - solution[:2]
        # rows with large errors tell little of what comes on top
        share = truth[:, None] / variance**2
        excess = (share * (residual**2 - own[:, None])).sum(axis=0) / share.sum(axis=0)
        width = np.sqrt(np.maximum(excess, _FLOOR_ARCSEC**2))
    return solution, width, truth
