"""The field's own frame: its reference associations tied to each other, and moved together to the external catalogue.

Put here the solution for a field from catalogues alone, and its typed result. Keep out which associations take part
(`panoramic.patches`), the moving of files (`panoramic.reduction.moving`), and whether an error is small enough.

Method. Where two associations overlap, their common sources are found (`panoramic.alignment_solution`); each pair of
them, and each pair of a source and an external source, is an observation. Unknown are a shift and a turn of each
association. One system of normal equations holds all pairs with their true weights. As ties know 1-5 mas where
external pairs know 10-60, its solution is that of two steps, first the ties and then each connected component as a
whole, wherever ties determine a mode; a mode that they leave loose (the turn of an association that hangs on a sliver)
is held by its own external pairs with their own weight, for which two steps would have no place.

A source seen by m associations makes m (m - 1) / 2 pairs that share its errors. A pair's weight is w_i w_j / sum(w)
over the source's rows, which is exactly what eliminating the source's unknown position gives; and an external star
seen by m associations counts 1 / m in each.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from panoramic.errors import InputError
from panoramic.footprints import connected, mean_position, unit_vectors
from panoramic.frame_external import anchor, frame_covariance, relative_covariance
from panoramic.frame_network import (
    DEG_PER_TURN,
    Array,
    Contradiction,
    Network,
    Pairs,
    consistent_solution,
    displacements,
    vector_axes,
)
from panoramic.frame_solution import (
    EXTERNAL_NAME,
    FrameCause,
    FrameComponent,
    FrameError,
    FrameMember,
    FrameSolution,
    RefusedTie,
    Tie,
)
from panoramic.frame_ties import (
    ExternalMatches,
    FrameAssociation,
    FrameRules,
    Match,
    Member,
    measure_ties,
    prepared,
    weighted_pairs,
)
from panoramic.pointing import tangent_axes
from panoramic.reduction.moving import SkyCorrection

__all__ = [
    "EXTERNAL_NAME",
    "ExternalMatches",
    "FrameAssociation",
    "FrameCause",
    "FrameComponent",
    "FrameError",
    "FrameMember",
    "FrameRules",
    "FrameSolution",
    "RefusedTie",
    "SkyCorrection",
    "Tie",
    "solve_frame",
]


def solve_frame(associations: Sequence[FrameAssociation], rules: FrameRules | None = None) -> FrameSolution:
    """Tie a field's reference associations to each other and to the external catalogue.

    Parameters
    ----------
    associations : in any order; the result doesn't depend on it, nor on the order of their rows.
    rules : the defaults where None.

    Returns
    -------
    A correction for each association, with what holds it. An association whose ties contradict the others' is named,
    and stands on its own external pairs: its ties draw nobody.

    Raises
    ------
    InputError
        A name that comes twice, arrays of unlike lengths, negative errors, a footprint that is none.
    """
    rules = rules or FrameRules()
    twice = sorted(name for name, count in Counter(a.name for a in associations).items() if count > 1)
    if twice:
        raise InputError(f"{', '.join(twice)}: given twice; each association comes once")
    members = [prepared(number, a) for number, a in enumerate(sorted(associations, key=lambda a: a.name))]
    matches, refused = measure_ties(members, rules)
    found = consistent_solution(
        _network(members, rules),
        weighted_pairs(members, matches),
        rules.contradiction_sigma,
        rules.contradiction_mas,
    )
    refused += _contradicting(members, matches, found.dropped, found.excluded)
    matches = [matches[k] for k in found.kept]
    groups = weighted_pairs(members, matches)

    labels = connected(np.array([(m.first, m.second) for m in matches], int).reshape(-1, 2), len(members))
    rotations = np.array(found.rotations)
    parts: list[FrameMember] = []
    components: list[FrameComponent] = []
    for label in dict.fromkeys(labels.tolist()):
        rows = np.flatnonzero(labels == label)
        inner = [_renumbered(g, rows) for g in groups if labels[g.first] == label]
        solved = _Component(len(components), [members[k] for k in rows], inner, found.rotations[rows], rules)
        rotations[rows] = solved.rotations
        parts += solved.parts({members[k].source.name: c for k, c in found.excluded.items()})
        components.append(solved.summary())
        refused += solved.refused()
    return FrameSolution(
        tuple(sorted(parts, key=lambda m: m.name)),
        tuple(components),
        tuple(_tie(m, g, members, rotations) for m, g in zip(matches, groups, strict=True)),
        tuple(sorted(refused, key=lambda r: (r.first, r.second))),
    )


def _network(members: Sequence[Member], rules: FrameRules) -> Network:
    return Network(np.array([m.centre for m in members]), rules.prior_mas, rules.prior_rotation_deg)


def _renumbered(pairs: Pairs, rows: np.ndarray) -> Pairs:
    """The same pairs with the numbers that their ends have among ``rows`` (sorted)."""
    first, second = np.searchsorted(rows, [pairs.first, pairs.second]).tolist()
    return dataclasses.replace(pairs, first=first, second=second)


def _contradicting(
    members: Sequence[Member],
    matches: Sequence[Match],
    dropped: Mapping[int, Contradiction],
    excluded: Mapping[int, Contradiction],
) -> list[RefusedTie]:
    """The ties that were measured and are not used."""
    refused = []
    for number, match in enumerate(matches):
        names = members[match.first].source.name, members[match.second].source.name
        if number in dropped:
            refused.append(RefusedTie(*names, str(FrameCause.CONTRADICTS), _told(dropped[number])))
        elif blamed := [members[k].source.name for k in (match.first, match.second) if k in excluded]:
            text = f"the ties of {' and '.join(blamed)} contradict the others"
            refused.append(RefusedTie(*names, str(FrameCause.EXCLUDED), text))
    return refused


def _told(found: Contradiction) -> str:
    return (
        f"differs from what all other ties say by {found.shift_mas:.1f} mas ({found.shift_sigma:.1f} sigma), and by "
        f"{found.turn_mas:.1f} mas ({found.turn_sigma:.1f} sigma) of turn at its farthest source"
    )


class _Component:
    """A connected component on the external frame, or in a frame of its own."""

    def __init__(
        self, number: int, members: Sequence[Member], ties: Sequence[Pairs], rotations: Array, rules: FrameRules
    ) -> None:
        self.number, self.members, self.ties = number, members, ties
        self.network = _network(members, rules)
        self.centre = mean_position(np.concatenate([m.source.footprint for m in members]))
        sets = [dataclasses.replace(m.external, association=k) for k, m in enumerate(members) if m.external is not None]
        self.anchored = anchor(
            self.network,
            ties,
            rotations,
            sets,
            rules.minimum_external,
            rules.contradiction_sigma,
            rules.contradiction_mas,
        )
        self.rotations = self.anchored.rotations

    def summary(self) -> FrameComponent:
        found, corners = self.anchored, np.concatenate([m.source.footprint for m in self.members])
        error = None
        if found.cause is None:
            covariance = frame_covariance(found.groups, self.network.prior, self.centre)
            error = _error(covariance, self.centre, corners)
        return FrameComponent(
            number=self.number,
            members=tuple(m.source.name for m in self.members),
            ra=self.centre[0],
            dec=self.centre[1],
            n_external=found.n,
            scatter_mas=found.scatter_mas if math.isfinite(found.scatter_mas) else None,
            error=error,
            cause=found.cause,
        )

    def parts(self, excluded: Mapping[str, Contradiction]) -> list[FrameMember]:
        """What the result says of each member."""
        found, total = self.anchored, np.linalg.inv(self.anchored.matrix)
        relative = relative_covariance(self.network, found.matrix, self.centre)
        unit = np.array([1.0, 1.0, DEG_PER_TURN])
        parts = []
        for k, member in enumerate(self.members):
            block = slice(3 * k, 3 * k + 3)
            corners, centre, name = member.source.footprint, member.centre, member.source.name
            covariance = total[block, block] * np.outer(unit, unit)
            anchored = found.cause is None
            parts.append(
                FrameMember(
                    name=name,
                    component=self.number,
                    correction=SkyCorrection.from_matrix(found.rotations[k], *centre),
                    covariance=tuple(map(tuple, covariance.tolist())) if anchored else None,
                    error=_error(total[block, block], centre, corners) if anchored else None,
                    relative_error=_error(relative[block, block], centre, corners),
                    ties=sum(k in (g.first, g.second) for g in self.ties),
                    n_external=found.agreeing.get(k, 0),
                    excluded=_told(excluded[name]) if name in excluded else None,
                )
            )
        return parts

    def refused(self) -> list[RefusedTie]:
        """The external sets that were not used."""
        return [
            RefusedTie(
                self.members[k].source.name,
                EXTERNAL_NAME,
                str(FrameCause.CONTRADICTS),
                f"the median of {c.n} external sources is {c.shift_mas:.0f} mas ({c.sigma:.1f} sigma) from where the "
                "component lies by all others",
            )
            for k, c in self.anchored.contradictions.items()
        ]


def _error(covariance: Array, centre: tuple[float, float], corners: Array) -> FrameError:
    """Standard errors from a covariance in the network's units, at the middle and at the worst of (N, 2) corners."""
    points = unit_vectors(corners[:, 0], corners[:, 1])
    design = displacements(vector_axes(*centre), points)
    sky = np.stack([tangent_axes(*corner)[:, :2] for corner in corners])
    seen = np.einsum("nia,nij->naj", sky, design)
    errors = np.sqrt(np.einsum("naj,jk,nak->na", seen, covariance, seen))
    east, north = errors[int(np.argmax(np.hypot(*errors.T)))].tolist()
    middle = np.sqrt(np.diag(covariance)).tolist()
    return FrameError(middle[0], middle[1], middle[2] * DEG_PER_TURN, east, north)


def _tie(match: Match, pairs: Pairs, members: Sequence[Member], rotations: Array) -> Tie:
    """A tie of the solution, before and after the corrections."""
    summary = pairs.summary(np.tile(np.eye(3), (len(members), 1, 1)))
    before, after = summary.offset().tolist(), pairs.summary(rotations).offset().tolist()
    error = np.sqrt(np.diag(np.linalg.pinv(summary.information))).tolist()
    solution = match.solution
    return Tie(
        first=members[match.first].source.name,
        second=members[match.second].source.name,
        n=solution.n,
        chance=solution.chance,
        scatter_mas=math.sqrt((solution.scatter_ra**2 + solution.scatter_dec**2) / 2),
        error_mas=(error[0], error[1]),
        before_mas=(before[0], before[1]),
        after_mas=(after[0], after[1]),
        rotation_before_deg=before[2] * DEG_PER_TURN,
        rotation_after_deg=after[2] * DEG_PER_TURN,
    )
