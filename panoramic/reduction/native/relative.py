"""The exposures of an association tied to each other.

Put here which exposures hang together, and the joint fit of their pointings. Keep out finding sources (`sources.py`),
the matching of two catalogues (`panoramic.alignment_solution`) and the reference (`absolute.py`).

Exposures are linked one after the other to what those already linked have in common. Then shift and roll of all are
fitted together, with the place of each object as an unknown: weighted least squares with Tukey's biweight, alternating
between objects and exposures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from panoramic.alignment_solution import Refusal, measure_solution
from panoramic.exposure_sources import ExposureSources
from panoramic.footprints import connected, mean_position, positions_of, project, unit_vectors
from panoramic.reduction.base import RelativeFit
from panoramic.reduction.moving import SkyCorrection
from panoramic.verification import common_objects, on_detector

Array = NDArray[np.float64]

FEWEST_MATCHES = 5
_MAS = np.pi / 180 / 3.6e6
_GROUP_MAS = 100.0
_TUKEY = 4.7
_ROUNDS = 40
_CONVERGED_MAS = 1e-5


@dataclass(frozen=True)
class RelativeSolution:
    """How exposures were brought to a common frame.

    Parameters
    ----------
    rotations : (3, 3) by dataset, which turns its sky positions to the common ones.
    fits : one for each exposure, in the order given. RMS as in grizli's logs: the scatter of the matches against the
        other exposures over the root of their number, which is the shift's error.
    rejected : dataset -> why it could not be tied to the others.
    """

    rotations: dict[str, Array]
    fits: tuple[RelativeFit, ...]
    rejected: dict[str, str]


def align_exposures(
    exposures: Sequence[ExposureSources],
    *,
    search_radius_arcsec: float = 2.0,
    largest_rotation_deg: float = 0.3,
    trusted: frozenset[str] = frozenset(),
) -> RelativeSolution:
    """Tie exposures to each other.

    Parameters
    ----------
    exposures : with what is the detector's own taken out (`panoramic.verification.without_fixed`).
    search_radius_arcsec : largest shift between two.
    largest_rotation_deg : largest turn between two.
    trusted : datasets whose pointing is known better; the frame is theirs. Empty: the median of all.

    Returns
    -------
    RelativeSolution
        A rejected exposure keeps its pointing. Where none can be tied to any other, all are rejected.
    """
    if len(exposures) == 1:
        only = exposures[0].dataset
        return RelativeSolution({only: np.eye(3)}, (RelativeFit(only, "single"),), {})
    by_name = {e.dataset: e for e in exposures}
    coarse, refused = _linked(exposures, search_radius_arcsec, largest_rotation_deg)
    identity = {e.dataset: np.eye(3) for e in exposures}
    if len(coarse) < 2:
        return RelativeSolution(identity, tuple(RelativeFit(e.dataset, "rejected") for e in exposures), refused)
    members = [moved(by_name[name], rotation) for name, rotation in coarse.items()]
    fit = _JointFit(members)
    fit.solve()
    centre = fit.centre
    total = {e.dataset: fit.rotation(k) @ coarse[e.dataset] for k, e in enumerate(members)}
    names = [name for name in total if name in trusted] or list(total)
    seen = [SkyCorrection.from_matrix(total[name], *centre) for name in names]
    common = SkyCorrection(
        *centre, *(float(np.median([getattr(s, a) for s in seen])) for a in ("east_mas", "north_mas", "rotation_deg"))
    ).matrix
    total = {name: common.T @ rotation for name, rotation in total.items()}
    fits: dict[str, RelativeFit] = {}
    for k, member in enumerate(members):
        name = member.dataset
        n, rms = fit.quality(k)
        if n < FEWEST_MATCHES:
            refused[name] = f"only {n} of its sources are seen by the other exposures; {FEWEST_MATCHES} are needed"
            continue
        correction = SkyCorrection.from_matrix(total[name], *by_name[name].centre)
        dx, dy = on_detector(member, np.array([correction.east_mas]), np.array([correction.north_mas]))
        fits[name] = RelativeFit(
            name, "matched", float(dx[0]), float(dy[0]), correction.rotation_deg, 1.0, n, float(rms[0]), float(rms[1])
        )
    return RelativeSolution(
        {**identity, **{name: total[name] for name in fits}},
        tuple(fits.get(e.dataset, RelativeFit(e.dataset, "rejected")) for e in exposures),
        refused,
    )


def moved(exposure: ExposureSources, rotation: Array) -> ExposureSources:
    """The exposure's sources and outline after a rotation of the sky."""
    places = positions_of(unit_vectors(exposure.ra, exposure.dec) @ rotation.T)
    footprint = positions_of(unit_vectors(*exposure.footprint.T) @ rotation.T)
    centre = positions_of(rotation @ unit_vectors(*exposure.centre))
    return replace(
        exposure,
        ra=places[..., 0],
        dec=places[..., 1],
        footprint=footprint,
        centre=(float(centre[0]), float(centre[1])),
    )


def _linked(
    exposures: Sequence[ExposureSources], radius: float, rotation_deg: float
) -> tuple[dict[str, Array], dict[str, str]]:
    """Rotations of the largest group of exposures that hang together, and why the others don't belong to it."""
    ordered = sorted(exposures, key=lambda e: (-len(e), e.dataset))
    best: dict[str, Array] = {}
    refused: dict[str, str] = {}
    tried: set[str] = set()
    for start in ordered:
        if start.dataset in tried or len(best) > len(ordered) - len(tried):
            continue
        group, causes = {start.dataset: np.eye(3)}, {}
        members = [start]
        waiting = [e for e in ordered if e is not start]
        while waiting:
            ra, dec, error, _ = common_objects(members)
            joined = []
            for exposure in waiting:
                answer = measure_solution(
                    exposure.ra, exposure.dec, ra, dec, search_radius_arcsec=radius, footprint=exposure.footprint,
                    largest_rotation_deg=rotation_deg, error_mas=exposure.error_mas, ref_error_mas=error,
                    magnitude=exposure.mag,
                )  # fmt: skip
                if isinstance(answer, Refusal):
                    causes[exposure.dataset] = f"{answer.cause}: {answer.text}"
                    continue
                turn = SkyCorrection(answer.ra, answer.dec, -answer.dra, -answer.ddec, -answer.rotation_deg).matrix
                group[exposure.dataset] = turn
                joined.append(moved(exposure, turn))
            if not joined:
                break
            members += joined
            waiting = [e for e in waiting if e.dataset not in group]
        tried |= set(group)
        if len(group) > len(best):
            best = group
            refused = {e.dataset: causes[e.dataset] for e in waiting}
    if len(best) < 2:
        refused = {e.dataset: refused.get(e.dataset, "no other exposure could be tied to it") for e in exposures}
    return best, refused


class _JointFit:
    """Shift (mas) and turn of each exposure, and the places of objects that two or more of them see."""

    def __init__(self, exposures: Sequence[ExposureSources]) -> None:
        self.exposures = exposures
        self.centre = mean_position(np.concatenate([e.footprint for e in exposures]))
        owner = np.repeat(np.arange(len(exposures)), [len(e) for e in exposures])
        ra, dec, error = (np.concatenate([getattr(e, c) for e in exposures]) for c in ("ra", "dec", "error_mas"))
        plane = np.column_stack(project(ra, dec, *self.centre)) / _MAS
        keep, label = _groups(plane, owner)
        self.owner, self.plane, self.error, self.label = owner[keep], plane[keep], error[keep], label
        self.parameters = np.zeros((len(exposures), 3))
        self.weight = self.error**-2.0
        # about the middle in arcmin, so that all three unknowns are of one size
        self.arm = np.column_stack([self.plane[:, 1], -self.plane[:, 0]]) / 60_000

    def solve(self) -> None:
        """Alternate between objects and exposures until nothing moves."""
        number = int(self.label.max()) + 1 if self.label.size else 0
        if not number:
            return
        for _ in range(_ROUNDS):
            where = self._where()
            mean = self._means(where, number)
            rest = where - mean[self.label]
            self._reweigh(rest)
            mean = self._means(where, number)
            step = np.zeros_like(self.parameters)
            for k in range(len(self.exposures)):
                rows = np.flatnonzero(self.owner == k)
                if rows.size < 3:
                    continue
                step[k] = _shift_and_turn(self.arm[rows], (mean[self.label] - where)[rows], self.weight[rows])
            step -= step.mean(axis=0)
            self.parameters += step
            if np.abs(step).max() < _CONVERGED_MAS:
                break

    def rotation(self, k: int) -> Array:
        """The rotation of the sky that the fit gives an exposure."""
        east, north, turn = self.parameters[k]
        # the turn is in mas per arcmin, from north to east
        return SkyCorrection(*self.centre, east, north, float(np.degrees(turn / 60_000))).matrix

    def quality(self, k: int) -> tuple[int, Array]:
        """Matches of an exposure, and their scatter against the others along its axes over the root of N, px."""
        rows = np.flatnonzero((self.owner == k) & (self.weight > 0))
        if not rows.size:
            return 0, np.full(2, np.nan)
        where = self._where()
        number = int(self.label.max()) + 1
        sums = np.bincount(self.label, self.weight, number)
        rest = (where - self._means(where, number)[self.label])[rows]
        share = 1 - self.weight[rows] / sums[self.label[rows]]
        seen = share > 1e-9
        rows, rest = rows[seen], rest[seen] / share[seen, None]
        dx, dy = on_detector(self.exposures[k], rest[:, 0], rest[:, 1])
        weight = self.weight[rows]
        n = int(rows.size)
        if n < 2:
            return n, np.full(2, np.nan)
        scatter = [np.sqrt(np.average(d**2, weights=weight)) for d in (dx, dy)]
        return n, np.array(scatter) / np.sqrt(n)

    def _where(self) -> Array:
        shift = self.parameters[self.owner]
        return np.asarray(self.plane + shift[:, :2] + shift[:, 2:] * self.arm)

    def _means(self, where: Array, number: int) -> Array:
        sums = np.maximum(np.bincount(self.label, self.weight, number), 1e-30)
        return np.column_stack([np.bincount(self.label, self.weight * where[:, i], number) / sums for i in (0, 1)])

    def _reweigh(self, rest: Array) -> None:
        """Tukey's biweight, in units of the stated errors times what they are too small by."""
        size = np.bincount(self.label)[self.label]
        # the mean takes part of each residual
        ratio = np.hypot(*rest.T) / self.error / np.sqrt(1 - 1 / size)
        # the median of a Rayleigh distribution is 1.1774 sigma
        scale = max(float(np.median(ratio)) / 1.1774, 0.2)
        u = np.minimum(ratio / scale / _TUKEY, 1.0)
        self.weight = self.error**-2.0 * (1 - u**2) ** 2


def _groups(plane: Array, owner: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that belong to an object that several exposures see, each once, and the number of the object of each."""
    from scipy.spatial import cKDTree

    nothing = np.empty(0, int)
    if len(plane) < 2:
        return nothing, nothing
    links = cKDTree(plane).query_pairs(_GROUP_MAS, output_type="ndarray")
    links = links[owner[links[:, 0]] != owner[links[:, 1]]]
    label = connected(links, len(plane))
    _, label, size = np.unique(label, return_inverse=True, return_counts=True)
    pairs, times = np.unique(np.column_stack([label, owner]), axis=0, return_counts=True)
    twice = np.zeros(size.size, bool)
    twice[pairs[times > 1, 0]] = True
    keep = np.flatnonzero((size[label] > 1) & ~twice[label])
    _, numbers = np.unique(label[keep], return_inverse=True)
    return keep, numbers


def _shift_and_turn(arm: Array, wanted: Array, weight: Array) -> Array:
    """Weighted least squares of east, north = shift + turn * arm, (3,)."""
    total = weight.sum()
    if total <= 0:
        return np.zeros(3)
    a, b = (arm * weight[:, None]).sum(axis=0) / total, (wanted * weight[:, None]).sum(axis=0) / total
    lever = float((weight[:, None] * (arm - a) ** 2).sum())
    turn = float((weight[:, None] * (arm - a) * (wanted - b)).sum()) / lever if lever > 0 else 0.0
    return np.array([*(b - turn * a), turn])
