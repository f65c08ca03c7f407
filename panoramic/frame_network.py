"""The network of associations: matched positions as observations, one small rotation of the sky for each association.

Put here the equations of `panoramic.field_frame`: normal equations, their solution, and the search for ties that
contradict the others. Keep out how matches are found and what a result looks like.

A correction is a rotation vector, so its displacement of a position is linear in it, and isotropic weights need no
tangent plane: the normal equations are summed over Cartesian residuals. Each association's unknowns are the rotation
vector's components at its own centre: east and north (mas), and the turn as displacement (mas) at a lever of 1 arcmin.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoramic.footprints import ARCMIN
from panoramic.pointing import MAS, tangent_axes

Array = NDArray[np.float64]

LEVER = ARCMIN
DEG_PER_TURN = math.degrees(MAS / LEVER)
"""Turn of 1 mas at the lever, in deg."""
EXTERNAL = -1
# directions in which a tie has less redundancy than this can't be tested: nothing else measures them
_REDUNDANCY = 1e-6
# explanations whose gains differ by fewer sigmas of chi square can't be told apart
_APART = 4.0
_MOST_NAMED = 3
_ROUNDS = 6
_CONVERGED_MAS = 1e-6


def vector_axes(ra: float, dec: float) -> Array:
    """(3, 3): columns are the rotation vectors of unit shifts to the east, to the north, and of a unit turn."""
    east, north, place = tangent_axes(ra, dec).T
    return np.column_stack([north, -east, -place / LEVER])


def components(ra: float, dec: float) -> Array:
    """Inverse of `vector_axes`."""
    east, north, place = tangent_axes(ra, dec).T
    return np.stack([north, -east, -LEVER * place])


def displacements(axes: Array, points: Array) -> Array:
    """Displacement vectors of points (N, 3) by unit shifts and turn: (N, 3, 3), the last axis counts the unknowns."""
    centre = -axes[:, 2] * LEVER
    columns = [np.cross(axes[:, 0], points), np.cross(axes[:, 1], points)]
    # from the centre, where the turn does nothing: keeps the digits
    columns.append(np.cross(axes[:, 2], points - centre))
    return np.stack(columns, axis=-1)


@dataclass(frozen=True)
class Summary:
    """All that the pairs say: information matrix (3, 3) and vector (3,) of the displacement at their middle."""

    information: Array
    vector: Array

    def offset(self) -> Array:
        """East, north, turn of first minus second."""
        return np.linalg.lstsq(self.information, self.vector, rcond=1e-12)[0]


@dataclass(frozen=True)
class Pairs:
    """Matched positions of two associations, or of one and the external reference (``second`` is `EXTERNAL`).

    Parameters
    ----------
    first, second : numbers of the associations; a pair's residual is first minus second.
    p, q : unit vectors of the two, as they came, (N, 3).
    weight : inverse variance per axis of each pair, mas^-2, (N,).
    axes : `vector_axes` at the pairs' middle.
    """

    first: int
    second: int
    p: Array
    q: Array
    weight: Array
    axes: Array

    def residuals(self, rotations: Array) -> Array:
        """First minus second under the associations' rotations (K, 3, 3): vectors in mas, (N, 3)."""
        q = self.q if self.second == EXTERNAL else self.q @ rotations[self.second].T
        return (self.p @ rotations[self.first].T - q) / MAS

    def summary(self, rotations: Array) -> Summary:
        """What the pairs say under the associations' rotations."""
        design = displacements(self.axes, self.p)
        weighted = design * self.weight[:, None, None]
        information = np.einsum("nij,nik->jk", weighted, design)
        return Summary(information, np.einsum("nij,ni->j", weighted, self.residuals(rotations)))

    def reach(self) -> float:
        """Distance of the farthest pair from the middle, in units of the lever."""
        return float(np.linalg.norm(self.p + self.axes[:, 2] * LEVER, axis=1).max()) / LEVER

    def ends(self) -> tuple[tuple[int, float], ...]:
        """The associations that take part, with the sign of their displacement."""
        return ((self.first, 1.0),) if self.second == EXTERNAL else ((self.first, 1.0), (self.second, -1.0))


@dataclass(frozen=True)
class Contradiction:
    """A tie against all others: what it says less what they say (mas; the turn at its farthest pair), and sigmas."""

    pairs: int
    shift_mas: float
    shift_sigma: float
    turn_mas: float
    turn_sigma: float

    def beyond(self, sigma: float, mas: float) -> bool:
        """Whether shift or turn is over both limits."""
        return (self.shift_sigma > sigma and self.shift_mas > mas) or (self.turn_sigma > sigma and self.turn_mas > mas)


class Network:
    """Associations with their centres, and what is known of them before: nothing worth more than the search's limits.

    Parameters
    ----------
    centres : (K, 2) RA and Dec of the associations, deg.
    prior_mas, prior_turn_deg : standard deviation of a correction, per axis, and of its turn. They only keep apart
        what nothing measures.
    """

    def __init__(self, centres: Array, prior_mas: float, prior_turn_deg: float) -> None:
        self.axes = np.array([vector_axes(*c) for c in centres]).reshape(-1, 3, 3)
        self.components = np.array([components(*c) for c in centres]).reshape(-1, 3, 3)
        self.prior = np.array([prior_mas, prior_mas, prior_turn_deg / DEG_PER_TURN]) ** -2.0

    def __len__(self) -> int:
        return len(self.axes)

    def coupling(self, pairs: Pairs) -> list[tuple[int, Array]]:
        """For each end of the pairs, its number and the (3, 3) matrix from its unknowns to the pairs' displacement."""
        inverse = np.linalg.inv(pairs.axes)
        return [(end, sign * inverse @ self.axes[end]) for end, sign in pairs.ends()]

    def normal(self, groups: Sequence[Pairs], summaries: Sequence[Summary]) -> tuple[Array, Array]:
        """Normal matrix (3K, 3K) and right side (3K,) of the groups, without prior."""
        matrix, side = np.zeros((3 * len(self), 3 * len(self))), np.zeros(3 * len(self))
        for pairs, summary in zip(groups, summaries, strict=True):
            ends = self.coupling(pairs)
            for k, to_k in ends:
                side[3 * k : 3 * k + 3] -= to_k.T @ summary.vector
                for m, to_m in ends:
                    matrix[3 * k : 3 * k + 3, 3 * m : 3 * m + 3] += to_k.T @ summary.information @ to_m
        return matrix, side

    def with_prior(self, matrix: Array, side: Array, rotations: Array) -> tuple[Array, Array]:
        """The same with the prior of each correction, which is about none at all."""
        prior = np.tile(self.prior, len(self))
        return matrix + np.diag(prior), side - prior * self.unknowns(rotations).ravel()

    def unknowns(self, rotations: Array) -> Array:
        """East, north, turn (mas) of rotations (K, 3, 3) at the associations' centres: (K, 3)."""
        from scipy.spatial.transform import Rotation

        vectors = Rotation.from_matrix(rotations).as_rotvec() / MAS
        return np.einsum("kij,kj->ki", self.components, vectors)

    def stepped(self, rotations: Array, step: Array) -> Array:
        """Rotations followed by small ones, (3K,) or (K, 3) unknowns."""
        from scipy.spatial.transform import Rotation

        vectors = np.einsum("kij,kj->ki", self.axes, step.reshape(-1, 3)) * MAS
        return np.asarray(Rotation.from_rotvec(vectors).as_matrix() @ rotations)

    def solve(self, groups: Sequence[Pairs], rotations: Array, rounds: int = _ROUNDS) -> tuple[Array, Array]:
        """Least squares from a start: rotations (K, 3, 3), and normal matrix with prior (3K, 3K)."""
        matrix = np.diag(np.tile(self.prior, len(self)))
        for _ in range(rounds):
            plain = self.normal(groups, [pairs.summary(rotations) for pairs in groups])
            matrix, side = self.with_prior(*plain, rotations)
            step = np.linalg.solve(matrix, side)
            rotations = self.stepped(rotations, step)
            if np.abs(step).max(initial=0.0) < _CONVERGED_MAS:
                break
        return rotations, matrix

    def contradictions(self, groups: Sequence[Pairs], rotations: Array, matrix: Array) -> list[Contradiction]:
        """Each group against all others, from the solution of all (W. Baarda, A testing procedure, 1968)."""
        covariance = np.linalg.inv(matrix)
        found = []
        for number, pairs in enumerate(groups):
            summary, ends = pairs.summary(rotations), self.coupling(pairs)
            predicted = np.zeros((3, 3))
            for k, to_k in ends:
                for m, to_m in ends:
                    predicted += to_k @ covariance[3 * k : 3 * k + 3, 3 * m : 3 * m + 3] @ to_m.T
            found.append(_contradiction(number, summary, predicted, pairs.reach()))
        return found

    def misfit(self, groups: Sequence[Pairs], rotations: Array, without: Collection[int] = ()) -> float:
        """Chi square that the groups, some left out, keep after one more step of the solution (offsets alone)."""
        kept = [pairs for number, pairs in enumerate(groups) if number not in without]
        summaries = [pairs.summary(rotations) for pairs in kept]
        step = np.linalg.solve(*self.with_prior(*self.normal(kept, summaries), rotations))
        total = 0.0
        for pairs, summary in zip(kept, summaries, strict=True):
            moved = sum((to_k @ step[3 * k : 3 * k + 3] for k, to_k in self.coupling(pairs)), np.zeros(3))
            left = summary.offset() + moved
            total += float(left @ summary.information @ left)
        return total


def _contradiction(number: int, summary: Summary, predicted: Array, reach: float) -> Contradiction:
    """A group's residual divided by its redundancy: the difference to what all others predict.

    In units in which the group's own covariance is 1, the prediction's has eigenvalues up to 1: 1 where the group alone
    tells.
    """
    values, vectors = np.linalg.eigh(summary.information)
    root = vectors * np.sqrt(np.maximum(values, values.max() * 1e-14))
    share, turn = np.linalg.eigh(root.T @ predicted @ root)
    redundancy = 1 - share
    tested = redundancy > _REDUNDANCY
    residual = turn.T @ np.linalg.solve(root, summary.vector)
    back = np.linalg.inv(root.T) @ turn[:, tested]
    difference = back @ (residual[tested] / redundancy[tested])
    covariance = back @ np.diag(1 / redundancy[tested]) @ back.T
    shift, apart = difference[:2], float(np.hypot(*difference[:2]))
    shift_sigma = math.sqrt(max(float(shift @ np.linalg.pinv(covariance[:2, :2], rcond=1e-12) @ shift), 0.0))
    turn_error = math.sqrt(max(covariance[2, 2], 0.0))
    turned = abs(float(difference[2]))
    return Contradiction(number, apart, shift_sigma, turned * reach, turned / turn_error if turn_error > 0 else 0.0)


@dataclass(frozen=True)
class Consistent:
    """What is left when contradictions are gone.

    ``dropped`` are the groups that contradicted alone, with their contradiction; ``excluded`` the associations that
    did, with the worst contradiction of their groups.
    """

    rotations: Array
    matrix: Array
    kept: tuple[int, ...]
    dropped: dict[int, Contradiction]
    excluded: dict[int, Contradiction]


def consistent_solution(network: Network, groups: Sequence[Pairs], sigma: float, mas: float) -> Consistent:
    """Solve, and take out what contradicts, the greatest cause first, until nothing does.

    A tie goes alone where leaving it out explains as much as leaving out an association, and no other tie does as well.
    Else it is an association, or up to three that explain it equally well (a ring that doesn't close says no more);
    then not those whose ties are strained in less than half the part. With more of them nobody is named, and what
    contradicts is not used.
    """
    rotations = np.tile(np.eye(3), (len(network), 1, 1))
    kept = list(range(len(groups)))
    dropped: dict[int, Contradiction] = {}
    excluded: dict[int, Contradiction] = {}
    while True:
        now = [groups[k] for k in kept]
        rotations, matrix = network.solve(now, rotations)
        tests = network.contradictions(now, rotations, matrix) if now else []
        beyond = {t.pairs: t for t in tests if t.beyond(sigma, mas)}
        if not beyond:
            return Consistent(rotations, matrix, tuple(kept), dropped, excluded)
        # a cause may pull at ties that stay just within the limits
        strained = {t.pairs for t in tests if max(t.shift_sigma, t.turn_sigma) > sigma / 2} | set(beyond)
        ties, guilty = _blame(network, now, rotations, beyond, strained)
        dropped |= {kept[t]: beyond[t] for t in ties}
        for association in guilty:
            own = [t for t in tests if association in (now[t.pairs].first, now[t.pairs].second)]
            excluded[association] = max(own, key=lambda t: max(t.shift_sigma, t.turn_sigma))
        kept = [k for k in kept if k not in dropped and not {groups[k].first, groups[k].second} & set(guilty)]


def _blame(
    network: Network, groups: Sequence[Pairs], rotations: Array, beyond: Collection[int], strained: Collection[int]
) -> tuple[list[int], list[int]]:
    """The ties that are to go, or the associations."""
    total = network.misfit(groups, rotations)

    def gain(without: Collection[int]) -> float:
        """How much better the rest fits, less what as many ties bring by chance."""
        return total - network.misfit(groups, rotations, without) - 3 * len(without)

    def alike(one: float, other: float, ties: int) -> bool:
        """Whether two gains are the same within the noise of the ties left out."""
        return abs(one - other) < _APART * math.sqrt(2 * 3 * ties)

    ties = sorted(((gain([t]), t) for t in beyond), key=lambda pair: (-pair[0], pair[1]))
    suspects = sorted({end for t in strained for end, _ in groups[t].ends()})
    of = {s: [t for t, pairs in enumerate(groups) if s in (pairs.first, pairs.second)] for s in suspects}
    gains = {s: gain(of[s]) + 3 for s in suspects}
    best = max(suspects, key=lambda s: (gains[s], -s))
    alone = len(ties) == 1 or not alike(ties[0][0], ties[1][0], 2)
    if alone and (ties[0][0] > gains[best] or alike(ties[0][0], gains[best], 1 + len(of[best]))):
        return [ties[0][1]], []
    equal = [s for s in suspects if alike(gains[s], gains[best], len(of[s]) + len(of[best]))]
    part = {s: sum(t in strained for t in of[s]) / len(of[s]) for s in equal}
    guilty = [s for s in equal if part[s] > max(part.values()) / 2]
    return ([], guilty) if len(guilty) <= _MOST_NAMED else (sorted(beyond), [])
