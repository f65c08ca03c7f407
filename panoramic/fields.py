"""Sky groups and their names: which field an exposure belongs to, for ever.

Put here the rules of design section 5: joining known fields, names, merges and splits. Keep out storage (the caller
hands in the fields that exist and keeps what comes back) and the search for near footprints (`panoramic.linkage`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from panoramic.footprints import ARCMIN, FootprintSet, chord, positions_of, ragged, unit_vectors
from panoramic.linkage import WIDE, Cells, closest, single_linkage, tree, wide_pairs
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
    """What a look at the exposures decided.

    ``fields`` gives the field of each newly placed dataset, ``new`` the fields that did not exist, ``touching`` the
    fields (its own first) of exposures that touch a second one. ``moved`` gives the field to which a dataset that was
    placed before now belongs by the survey file's merges and splits; nothing else ever moves.
    """

    fields: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    touching: dict[str, tuple[str, ...]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)


def field_name(ra: float, dec: float) -> str:
    """``j{HHMMSS}{p|m}{DDMM}`` of a position in deg, rounded to 4 s in RA and 1 arcmin in Dec."""
    seconds = round(ra / 15 * 3600 / 4) * 4 % 86400
    minutes = round(abs(dec) * 60)
    hours, rest = divmod(seconds, 3600)
    sign = "m" if dec < 0 and minutes > 0 else "p"
    return f"j{hours:02d}{rest // 60:02d}{rest % 60:02d}{sign}{minutes // 60:02d}{minutes % 60:02d}"


def assign_fields(exposures: Sequence[Exposure], known: Mapping[str, SkyField], rules: FieldRules) -> FieldAssignment:
    """Give each exposure its field.

    An exposure that is in a known field already stays there, unless the survey file's merges and splits say
    otherwise. A new one joins the nearest known field within the buffer (edge to edge; the older at a tie), and takes
    along the new ones that hang on it alone; what joins none makes new fields, by single linkage within the buffer. So
    it does not matter in which batches exposures arrive, unless a later one bridges two fields. A field that was
    merged away stands for the one that is kept; what was split off counts as its parent's place on the sky, and the
    patterns of the split decide.

    Parameters
    ----------
    exposures : all that were seen; those that are in ``known`` already are passed over.
    known : the fields that exist by name; those without footprints only keep their name from being given again.

    Returns
    -------
    FieldAssignment
        Fields of the exposures that were not placed before, and moves. It does not depend on the order of
        ``exposures``.
    """
    result = FieldAssignment()
    for name in sorted(rules.changed() & set(known)):
        for dataset in known[name].footprints:
            target = rules.split(rules.merged(name), dataset)
            if target != name:
                result.moved[dataset] = target
    placed = {dataset for f in known.values() for dataset in f.footprints}
    by_dataset = {e.dataset: e for e in exposures if e.dataset not in placed}
    new = [by_dataset[dataset] for dataset in sorted(by_dataset)]
    footprints = FootprintSet([e.vertices for e in new])
    owners, touched = _join(footprints, known, rules)
    for index, owner in owners.items():
        dataset = new[index].dataset
        own = result.fields[dataset] = rules.split(owner, dataset)
        others = [name for name in touched.get(index, ()) if name not in (owner, own)]
        if others:
            result.touching[dataset] = (own, *others)
    # targets of merges and splits that did not exist yet
    result.new = sorted((set(result.fields.values()) | set(result.moved.values())) - set(known))
    loose = np.array([index for index in range(len(new)) if index not in owners], dtype=np.intp)
    _name_new_fields([new[i] for i in loose], single_linkage(footprints.subset(loose), rules), known, rules, result)
    return result


def _name_new_fields(
    exposures: list[Exposure],
    labels: np.ndarray,
    known: Mapping[str, SkyField],
    rules: FieldRules,
    result: FieldAssignment,
) -> None:
    """Name the groups of exposures that joined no field, in the order of their first dataset."""
    if not exposures:
        return
    directions = unit_vectors(np.array([e.ra for e in exposures]), np.array([e.dec for e in exposures]))
    sums = np.column_stack([np.bincount(labels, weights=axis) for axis in directions.T])
    members: dict[int, list[Exposure]] = defaultdict(list)
    for label, exposure in zip(labels.tolist(), exposures, strict=True):
        members[label].append(exposure)
    created = set(result.new)
    taken = {name for name in known if rules.merged(name) == name} | created  # a name merged away stands for another
    for (ra, dec), group in zip(positions_of(sums).tolist(), members.values(), strict=True):
        name = rules.merged(_free_name(field_name(ra, dec), taken))
        taken.add(name)
        for exposure in group:
            own = rules.split(name, exposure.dataset)
            result.fields[exposure.dataset] = own
            if own not in created and own not in known:
                created.add(own)
                taken.add(own)
                result.new.append(own)


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a letter behind it where a tiny buffer makes two fields round to the same one."""
    if name not in taken:
        return name
    for letter in "bcdefghiklmnopqrstuvwxyz":
        if name + letter not in taken:
            return name + letter
    return _free_name(name + "z", taken)


# --- joining known fields ---------------------------------------------------------------------


def _join(
    new: FootprintSet, known: Mapping[str, SkyField], rules: FieldRules
) -> tuple[dict[int, str], dict[int, list[str]]]:
    """The known field that each new footprint joins, and the fields within the buffer where they are several."""
    territories, names = _territories(known, rules)
    if not len(new) or not names:
        return {}, {}
    seniority = [known[name].order if name in known else -1 for name in names]

    def ranked(distances: Mapping[int, float]) -> list[int]:
        return sorted(distances, key=lambda t: (round(distances[t], 6), seniority[t], names[t]))

    old = FootprintSet([vertices for f in known.values() for vertices in f.footprints.values()])
    near = _near(new, old, territories, rules.buffer_arcmin)
    owners = np.full(len(new), -1)
    for index, distances in near.items():
        owners[index] = ranked(distances)[0]
    chains = single_linkage(new, rules) if near else np.arange(len(new))
    joined = np.unique(np.column_stack([chains, owners])[owners >= 0], axis=0)
    fields_of_chain = np.bincount(joined[:, 0], minlength=len(new))
    owner_of_chain = np.full(len(new), -1)
    owner_of_chain[joined[:, 0]] = joined[:, 1]
    follow = (owners < 0) & (fields_of_chain[chains] == 1)
    owners[follow] = owner_of_chain[chains[follow]]
    # new exposures that together bridge several fields: from each field outwards, the nearest first
    bridges = np.flatnonzero(fields_of_chain[chains] > 1)
    part = new.subset(bridges)
    while (loose := np.flatnonzero(owners[bridges] < 0)).size:
        front = np.flatnonzero(owners[bridges] >= 0)
        found = _near(part.subset(loose), part.subset(front), owners[bridges[front]], rules.buffer_arcmin)
        if not found:  # a link to within the last digit of the buffer: a field of their own
            break
        for index, distances in found.items():
            owners[bridges[loose[index]]] = ranked(distances)[0]
    placed = np.flatnonzero(owners[bridges] >= 0)
    bridges, part = bridges[placed], part.subset(placed)
    for index, distances in _near(part, part, owners[bridges], rules.buffer_arcmin).items():
        own = near.setdefault(int(bridges[index]), {})
        own.update({t: min(distance, own.get(t, np.inf)) for t, distance in distances.items()})
    touched = {index: [names[t] for t in ranked(found)] for index, found in near.items() if len(found) > 1}
    return {int(index): names[owners[index]] for index in np.flatnonzero(owners >= 0)}, touched


def _near(
    new: FootprintSet, old: FootprintSet, territories: np.ndarray, buffer_arcmin: float
) -> dict[int, dict[int, float]]:
    """Territories of old footprints within the buffer of each new one, with their edge distance in arcmin.

    The distance is the territory's least one where several are near; of a single one it only says that it is near.
    """
    if not len(new) or not len(old):
        return {}
    apart = tree(new.vectors).query(old.vectors)[0]
    close = np.flatnonzero(apart <= chord(buffer_arcmin * ARCMIN + old.radii + new.radii.max()) * (1 + 1e-9))
    old, territories = old.subset(close), territories[close]
    which, others = _pairs_to_measure(new, old, territories, buffer_arcmin)
    distances = new.edge_distances_arcmin(which, old, others)
    result: dict[int, dict[int, float]] = {}
    within = distances <= buffer_arcmin
    for index, territory, distance in zip(
        which[within].tolist(), territories[others[within]].tolist(), distances[within].tolist(), strict=True
    ):
        near = result.setdefault(index, {})
        near[territory] = min(distance, near.get(territory, np.inf))
    return result


def _territories(known: Mapping[str, SkyField], rules: FieldRules) -> tuple[np.ndarray, list[str]]:
    """To whose place on the sky each known footprint counts: indices into a list of names."""
    numbers: dict[str, int] = {}
    result: list[int] = []
    parents, changed = rules.parents(), rules.changed()
    for name, f in known.items():
        if name not in changed and name not in parents:
            if f.footprints:
                result += [numbers.setdefault(name, len(numbers))] * len(f.footprints)
            continue
        parent = parents.get(name)
        for dataset in f.footprints:
            # what was split off is still the parent's; a child may also have exposures that never were
            owner = parent if parent is not None and rules.split(parent, dataset) == name else rules.merged(name)
            result.append(numbers.setdefault(owner, len(numbers)))
    return np.array(result, dtype=np.intp), list(numbers)


def _pairs_to_measure(
    new: FootprintSet, old: FootprintSet, territories: np.ndarray, buffer_arcmin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (new, old) among which is the nearest old footprint of each territory near a new one.

    Where a single territory is in reach and the footprint with the nearest middle is within the buffer, that pair
    says it all.
    """
    wide = wide_pairs(new, old, buffer_arcmin)
    here = Cells(new, np.flatnonzero(new.radii <= WIDE), buffer_arcmin)
    there = Cells(old, np.flatnonzero(old.radii <= WIDE), buffer_arcmin, territories)
    cells, cells_there = here.near(there, buffer_arcmin)
    owners = territories[there.members[there.starts[cells_there]]] if len(cells_there) else cells_there
    # one plane for each cell of new footprints and territory in its reach
    planes, plane_of = np.unique(np.column_stack([cells, owners]), axis=0, return_inverse=True)
    plane_of = plane_of.reshape(-1)
    in_reach = np.bincount(planes[:, 0], minlength=len(here)) if len(planes) else np.zeros(len(here), int)
    lone = here.members[np.repeat(in_reach == 1, here.counts)] if not len(wide[0]) else np.empty(0, np.intp)
    nearest = tree(old.vectors).query(new.vectors[lone])[1].astype(np.intp) if len(lone) else lone
    settled = new.edge_distances_arcmin(lone, old, nearest) <= buffer_arcmin
    open_ = np.ones(len(new), bool)
    open_[lone[settled]] = False
    rows, owner = ragged(here.starts[planes[:, 0]], here.counts[planes[:, 0]])
    queries = here.members[rows]
    asked = open_[queries]
    needed = np.zeros(len(planes), bool)
    needed[owner[asked]] = True
    use = needed[plane_of]
    rows_there, pair = ragged(there.starts[cells_there[use]], there.counts[cells_there[use]])
    tangent = positions_of(here.centroids[planes[:, 0]]) if len(planes) else np.empty((0, 2))
    which, others = closest(
        (new, queries[asked], owner[asked]),
        (old, there.members[rows_there], plane_of[use][pair]),
        tangent,
        buffer_arcmin,
    )
    return (
        np.concatenate([lone[settled], which, wide[0]]),
        np.concatenate([nearest[settled], others, wide[1]]),
    )
