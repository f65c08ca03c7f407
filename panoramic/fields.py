"""Sky groups and their names: which field an exposure belongs to, for ever.

Put here the rules of design section 5. Keep out storage: the caller hands in the fields that exist and keeps what
comes back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from panoramic.footprints import ARCMIN, edge_distance_arcmin, mean_position, unit_vectors
from panoramic.observations import Exposure
from panoramic.survey import FieldRules


@dataclass
class SkyField:
    """A field: its name, its order of creation (for ties), and the footprints of its exposures by dataset."""

    name: str
    order: int
    footprints: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class FieldAssignment:
    """Field of each newly placed dataset, the fields that are new, and exposures that touch a second field."""

    fields: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    touching: dict[str, tuple[str, ...]] = field(default_factory=dict)


def field_name(ra: float, dec: float) -> str:
    """``j{HHMMSS}{p|m}{DDMM}`` of a position in deg, rounded to 4 s in RA and 1 arcmin in Dec."""
    seconds = round(ra / 15 * 3600 / 4) * 4 % 86400
    minutes = round(abs(dec) * 60)
    hours, rest = divmod(seconds, 3600)
    sign = "m" if dec < 0 and minutes > 0 else "p"
    return f"j{hours:02d}{rest // 60:02d}{rest % 60:02d}{sign}{minutes // 60:02d}{minutes % 60:02d}"


def assign_fields(exposures: Sequence[Exposure], known: Mapping[str, SkyField], rules: FieldRules) -> FieldAssignment:
    """Give each exposure its field.

    An exposure that is in a known field already stays there. A new one joins the nearest known field within the
    buffer (edge to edge; the older at a tie); what joins none makes new fields, by single linkage within the buffer.
    Merged fields (survey file) take new exposures under the name that is kept.

    Returns
    -------
    FieldAssignment
        For the exposures that were not placed before. The partition does not depend on the order of ``exposures``.
    """
    result = FieldAssignment()
    placed = {dataset for f in known.values() for dataset in f.footprints}
    by_dataset = {e.dataset: e for e in exposures if e.dataset not in placed}
    new = [by_dataset[dataset] for dataset in sorted(by_dataset)]
    if not new:
        return result
    merged = {gone: kept for kept, names in rules.merges.items() for gone in names}
    vertices = [e.vertices for e in new]
    loose: list[int] = []
    finder = _Neighbours([v for f in known.values() for v in f.footprints.values()]) if placed else None
    owner = [name for name, f in known.items() for _ in f.footprints]
    for index, exposure in enumerate(new):
        near: dict[str, float] = {}
        if finder is not None:
            for other in finder.within(vertices[index], rules.buffer_arcmin):
                distance = edge_distance_arcmin(vertices[index], finder.footprints[other])
                if distance <= rules.buffer_arcmin:
                    name = merged.get(owner[other], owner[other])
                    near[name] = min(distance, near.get(name, np.inf))
        if not near:
            loose.append(index)
            continue
        ranked = sorted(near, key=lambda n: (round(near[n], 6), known[n].order if n in known else -1))
        result.fields[exposure.dataset] = ranked[0]
        if len(ranked) > 1:
            result.touching[exposure.dataset] = tuple(ranked)
    result.new += sorted(set(result.fields.values()) - set(known))  # the target of a merge that did not exist yet
    taken = set(known)
    for members in _clusters([vertices[i] for i in loose], rules.buffer_arcmin):
        chosen = [loose[i] for i in members]
        centre = mean_position(np.array([[new[i].ra, new[i].dec] for i in chosen]))
        name = _free_name(field_name(*centre), taken)
        name = merged.get(name, name)
        if name not in taken and name not in result.new:
            result.new.append(name)
        taken.add(name)
        result.fields.update({new[i].dataset: name for i in chosen})
    return result


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a letter behind it where a tiny buffer makes two fields round to the same one."""
    if name not in taken:
        return name
    for letter in "bcdefghiklmnopqrstuvwxyz":
        if name + letter not in taken:
            return name + letter
    return _free_name(name + "z", taken)


class _Neighbours:
    """Footprints whose edges may lie within a distance, found by their middles on the unit sphere."""

    def __init__(self, footprints: list[np.ndarray]) -> None:
        from scipy.spatial import cKDTree

        self.footprints = footprints
        self.middles = np.array([unit_vectors(*mean_position(v)) for v in footprints])
        self.radii = np.array([_radius(v, m) for v, m in zip(footprints, self.middles, strict=True)])
        self.tree = cKDTree(self.middles)

    def within(self, vertices: np.ndarray, buffer_arcmin: float) -> list[int]:
        middle = unit_vectors(*mean_position(vertices))
        angle = buffer_arcmin * ARCMIN + self.radii.max() + _radius(vertices, middle)
        return sorted(self.tree.query_ball_point(middle, 2 * np.sin(min(angle, np.pi) / 2)))


def _radius(vertices: np.ndarray, middle: np.ndarray) -> float:
    """Angle (rad) from a footprint's middle to its farthest vertex."""
    chord = np.linalg.norm(unit_vectors(vertices[:, 0], vertices[:, 1]) - middle, axis=1).max()
    return float(2 * np.arcsin(min(chord / 2, 1.0)))


def _clusters(footprints: list[np.ndarray], buffer_arcmin: float) -> list[list[int]]:
    """Single-linkage groups by edge distance, each sorted, in the order of their first member."""
    if not footprints:
        return []
    parent = list(range(len(footprints)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    finder = _Neighbours(footprints)
    for i, vertices in enumerate(footprints):
        for j in finder.within(vertices, buffer_arcmin):
            if j <= i or root(i) == root(j):
                continue
            if edge_distance_arcmin(vertices, footprints[j]) <= buffer_arcmin:
                parent[max(root(i), root(j))] = min(root(i), root(j))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(footprints)):
        groups[root(i)].append(i)
    return list(groups.values())
