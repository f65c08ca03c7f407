"""A connected component of the field's network on the external frame.

Put here the robust joint solution of ties and external pairs for one component, and the search for external sets that
contradict it. Keep out ties among themselves (`panoramic.frame_network`).

All external pairs of a component are judged together, as a Gaussian about the joint solution on a uniform background of
false pairs (expectation maximisation, as in `panoramic.alignment_solution`): an association with two external sources
gives what they are worth, and can't be led astray by a false one as it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from panoramic.footprints import connected, positions_of
from panoramic.frame_network import EXTERNAL, Array, Network, Pairs, displacements, vector_axes
from panoramic.pointing import MAS, tangent_axes

_ROUNDS = 60
_CONVERGED_MAS = 1e-4
_NORMAL_MAD = 1.4826
_MEDIAN_ERROR = 1.2533
# reference rows this close are one star: seen by several associations it is still one witness
_SAME_STAR_MAS = 1.0
# how many times more external pairs must agree than contradict, or the frame is anybody's guess
_MAJORITY = 2.0
# a set that holds nearly all of the weight has nothing to be held against
_LARGEST_SHARE = 0.98


@dataclass(frozen=True)
class ExternalSet:
    """Pairs of one association with the external reference.

    Parameters
    ----------
    association : its number in the network.
    p, q : unit vectors of source and reference, (N, 3).
    variance : stated variance of a pair per axis, mas^2, 0 where unknown, (N,).
    """

    association: int
    p: Array
    q: Array
    variance: Array


@dataclass(frozen=True)
class SetContradiction:
    """An external set's own median against what all the rest says, mas and sigmas."""

    shift_mas: float
    sigma: float
    n: int


@dataclass(frozen=True)
class Anchored:
    """A component's solution.

    Parameters
    ----------
    rotations, matrix : of the network, and its normal matrix with prior; the ties' alone where ``cause`` is set.
    groups : the external pairs with their final weights, empty where there is no anchor.
    n : distinct external sources that agree, in effect.
    agreeing : external pairs that are likely true, by association.
    scatter_mas : standard deviation per axis of an external pair; NaN without any.
    cause : why the component isn't on the external frame; None where it is.
    contradictions : external sets that weren't used, by association.
    """

    rotations: Array
    matrix: Array
    groups: tuple[Pairs, ...]
    n: float
    agreeing: dict[int, int]
    scatter_mas: float
    cause: str | None
    contradictions: dict[int, SetContradiction]


@dataclass(frozen=True)
class _Fit:
    """One robust joint solution; ``share`` is each set's part of the external weight."""

    rotations: Array
    matrix: Array
    groups: tuple[Pairs, ...]
    n: float
    agreeing: dict[int, int]
    scatter_mas: float
    share: Array
    variance: list[Array]


def anchor(
    network: Network,
    ties: Sequence[Pairs],
    rotations: Array,
    sets: Sequence[ExternalSet],
    minimum_external: int,
    sigma: float,
    mas: float,
) -> Anchored:
    """Move a component to the external frame.

    Parameters
    ----------
    network, ties, rotations : of the component alone, with the relative solution.
    sets : its external pairs.
    minimum_external : fewer distinct external sources that agree are no anchor.
    sigma, mas : both are exceeded by a set that contradicts.
    """
    relative, matrix = network.solve(ties, rotations)
    refused: dict[int, SetContradiction] = {}

    def without(cause: str) -> Anchored:
        return Anchored(relative, matrix, (), 0.0, {}, math.nan, cause, refused)

    active = [s for s in sets if len(s.p)]
    if not active:
        return without("no external sources")
    while True:
        pairs = sum(len(s.p) for s in active)
        if pairs < minimum_external:
            return without(f"only {pairs} external sources; {minimum_external} are needed")
        fit = _joint(network, ties, relative, active)
        if fit.n < minimum_external:
            return without(f"only {fit.n:.1f} external sources agree; {minimum_external} are needed")
        bad = _contradictory(fit, active, minimum_external, sigma, mas)
        if not bad:
            return Anchored(fit.rotations, fit.matrix, fit.groups, fit.n, fit.agreeing, fit.scatter_mas, None, refused)
        against = sum(len(active[k].p) for k in bad)
        if pairs - against < _MAJORITY * against:
            refused |= {active[k].association: found for k, found in bad.items()}
            return without("its associations' external sources contradict each other")
        worst = max(bad, key=lambda k: (bad[k].sigma, -k))
        refused[active[worst].association] = bad[worst]
        del active[worst]


def _joint(network: Network, ties: Sequence[Pairs], rotations: Array, sets: Sequence[ExternalSet]) -> _Fit:
    """Ties and external pairs in one least-squares solution, with each external pair's probability to be true."""
    owner = np.repeat(np.arange(len(sets)), [len(s.p) for s in sets])
    own = np.concatenate([s.variance for s in sets])
    crowd = _crowd(np.concatenate([s.q for s in sets]))
    plain = [
        Pairs(s.association, EXTERNAL, s.p, s.q, np.ones(len(s.p)), vector_axes(*positions_of(s.p.sum(axis=0))))
        for s in sets
    ]
    centre = positions_of(np.concatenate([s.p for s in sets]).sum(axis=0))
    rotations = _roughly_placed(network, plain, rotations, centre)
    squared = _squared(plain, rotations)
    # half the squared length has the median 0.693 of a Gaussian's variance
    width2 = max(float(np.median(squared)) / 2 / math.log(2) - float(np.median(own)), 0.0)
    part, truth, variance = 0.7, np.ones(len(own)), own + width2
    matrix = np.empty((0, 0))
    for _ in range(_ROUNDS):
        variance = np.maximum(own + width2, 1e-6)
        # false pairs lie as far as the farthest that was matched; by the present solution, so that no start matters
        reach2 = max(float(squared.max()), 16 * float(np.median(variance)))
        gauss = part * np.exp(-squared / 2 / variance) / (2 * variance)
        truth = gauss / (gauss + (1 - part) / reach2)
        before = rotations
        groups = _weighted(plain, owner, truth / variance / crowd)
        rotations, matrix = network.solve([*ties, *groups], rotations, rounds=1)
        squared = _squared(plain, rotations)
        total = max(float(truth.sum()), 1e-9)
        width2 = max(float((truth * (squared / 2 - own)).sum()) / total, 0.0)
        part = float(np.clip(truth.mean(), 0.02, 0.995))
        if np.abs(rotations - before).max() < _CONVERGED_MAS * MAS:
            break
    n = float((truth / crowd).sum())
    freedom = max(2 * n - 3, 1.0)
    # the larger of stated and measured scatter, the latter known badly from few sources (Student)
    student = freedom / (freedom - 2) if freedom > 2 else 3.0
    inflation = max(1.0, float((truth / crowd * squared / variance).sum()) / freedom * student)
    groups = _weighted(plain, owner, truth / variance / crowd / inflation)
    rotations, matrix = network.solve([*ties, *groups], rotations)
    weights = np.array([float(g.weight.sum()) for g in groups])
    scatter = math.sqrt(float((truth * squared).sum()) / 2 / max(float(truth.sum()), 1e-9))
    parts = [variance[owner == k] for k in range(len(sets))]
    agreeing = {s.association: int((truth[owner == k] > 0.5).sum()) for k, s in enumerate(sets)}
    share = weights / max(float(weights.sum()), 1e-300)
    return _Fit(rotations, matrix, tuple(groups), n, agreeing, scatter, share, parts)


def _roughly_placed(network: Network, plain: Sequence[Pairs], rotations: Array, centre: Array) -> Array:
    """The component shifted as a whole by the median of all its external pairs."""
    residuals = np.concatenate([pairs.residuals(rotations) for pairs in plain])
    east, north = np.median(residuals @ tangent_axes(*centre)[:, :2], axis=0)
    vector = vector_axes(*centre) @ np.array([-east, -north, 0.0])
    return network.stepped(rotations, network.components @ vector)


def _squared(plain: Sequence[Pairs], rotations: Array) -> Array:
    """Squared lengths of all residuals, mas^2."""
    return np.concatenate([(pairs.residuals(rotations) ** 2).sum(axis=1) for pairs in plain])


def _weighted(plain: Sequence[Pairs], owner: np.ndarray, weight: Array) -> list[Pairs]:
    return [replace(pairs, weight=weight[owner == k]) for k, pairs in enumerate(plain)]


def _crowd(stars: Array) -> Array:
    """How many rows each row's reference star has: its error is in all of them alike."""
    from scipy.spatial import cKDTree

    labels = connected(cKDTree(stars).query_pairs(_SAME_STAR_MAS * MAS, output_type="ndarray"), len(stars))
    return np.bincount(labels)[labels].astype(float)


def _contradictory(
    fit: _Fit, sets: Sequence[ExternalSet], fewest: int, sigma: float, mas: float
) -> dict[int, SetContradiction]:
    """Sets whose median offset isn't what all the rest says, by their place among ``sets``."""
    found = {}
    for k, (one, pairs) in enumerate(zip(sets, fit.groups, strict=True)):
        if len(one.p) < fewest or fit.share[k] > _LARGEST_SHARE:
            continue
        plane = pairs.residuals(fit.rotations) @ tangent_axes(*positions_of(one.p.sum(axis=0)))[:, :2]
        median = np.median(plane, axis=0)
        seen = _NORMAL_MAD * float(np.median(np.abs(plane - median)))
        error = _MEDIAN_ERROR * max(seen, math.sqrt(float(np.median(fit.variance[k])))) / math.sqrt(len(one.p))
        # a set draws the solution to itself by its share
        left = 1 - fit.share[k]
        apart, sigmas = float(np.hypot(*median)) / left, float(np.hypot(*median)) / error / math.sqrt(left)
        if apart > mas and sigmas > sigma:
            found[k] = SetContradiction(apart, sigmas, len(one.p))
    return found


def frame_covariance(groups: Sequence[Pairs], prior: Array, centre: tuple[float, float]) -> Array:
    """Covariance (3, 3) of the component's shift and turn as a whole at a place, in the network's units (mas).

    Ties are taken as stiff: what is left is what the external pairs alone know of the frame.
    """
    matrix, axes = np.diag(prior), vector_axes(*centre)
    for pairs in groups:
        design = displacements(axes, pairs.p)
        matrix = matrix + np.einsum("n,nij,nik->jk", pairs.weight, design, design)
    return np.linalg.inv(matrix)


def relative_covariance(network: Network, matrix: Array, centre: tuple[float, float]) -> Array:
    """Covariance (3K, 3K) of the corrections if the component's shift and turn as a whole were known.

    As a whole: the rigid motion about a place that fits all associations' corrections best. It gets a weight that is
    very large beside any tie's.
    """
    motion = np.concatenate([own @ vector_axes(*centre) for own in network.components])
    whole = np.linalg.solve(motion.T @ motion, motion.T)
    return np.linalg.inv(matrix + 1e4 * whole.T @ whole)
