"""A field's exposures become associations with names that never change.

An association is what one reduction takes at once: exposures of one program, observation, visit, filter, pupil and
detector that lie close together in sky and time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from panoramic.errors import InputError
from panoramic.footprints import ARCMIN, angle_between, chord, connected, hull, ragged, unit_vectors
from panoramic.observations import Exposure
from panoramic.provenance import digest_of
from panoramic.survey import AssociationRules

MEASURED_AT_ONCE = 1_000_000  # pairs of exposures; bounds the memory
_INDEX = re.compile(r"_(\d{5})$")


@dataclass(frozen=True)
class Association:
    """An association and its exposures, in the order of their datasets."""

    name: str
    field: str
    exposures: tuple[Exposure, ...]

    @property
    def first(self) -> Exposure:
        """The exposure that lends its detector, filter and pupil."""
        return self.exposures[0]

    @property
    def detector(self) -> str:
        """``NRCBLONG``, ``NRCA1``, ..."""
        return self.first.detector

    @property
    def is_long_wave(self) -> bool:
        """Whether the detector belongs to the long-wave channel."""
        return self.first.is_long_wave

    @property
    def filter_key(self) -> str:
        """``f444w-clear``: filter and pupil, lower case, as mosaics are named."""
        return f"{self.first.filter}-{self.first.pupil}".lower()

    @property
    def footprint(self) -> np.ndarray:
        """Hull of the exposures: (N, 2) RA, Dec in deg."""
        return hull([e.vertices for e in self.exposures])

    @property
    def data(self) -> str:
        """Digest of the very data that are in it: another revision is another digest."""
        return digest_of({e.dataset: e.checksum or e.file_id for e in self.exposures})

    @property
    def datasets(self) -> tuple[str, ...]:
        """The exposures' datasets."""
        return tuple(e.dataset for e in self.exposures)


def association_name(field: str, exposure: Exposure, index: int) -> str:
    """``{field}_v{observation:03d}-{program}-{filter}_{index:05d}`` in lower case (design: section 5)."""
    return f"{field}_v{exposure.observation:03d}-{exposure.program}-{exposure.element}_{index:05d}".lower()


def index_of(name: str) -> int:
    """The running number at the end of an association's name; `InputError` where there is none."""
    match = _INDEX.search(name)
    if not match:
        raise InputError(f"{name!r} is no association name: it has no five-digit index at its end")
    return int(match.group(1))


def associate(
    field: str,
    exposures: Iterable[Exposure],
    known: Mapping[str, str],
    rules: AssociationRules,
    taken: Iterable[str] = (),
) -> list[Association]:
    """Put each exposure of a field into exactly one association.

    Parameters
    ----------
    field : the field's name.
    exposures : those that are public and not refused; held-back ones included.
    known : association of each dataset that has one already; it keeps it.
    taken : names that the field has given, also of associations without any exposure now (adopted, say).

    Returns
    -------
    Associations in the order of their indices. New exposures join the known association of their own group within
    the separation and time of ``rules`` (the lowest index at a choice); the others make new ones, whose indices go on
    after the highest that was ever given.
    """
    groups: dict[tuple[int, int, int, str, str, str], list[Exposure]] = defaultdict(list)
    for exposure in sorted(exposures, key=lambda e: e.dataset):
        key = (
            exposure.program,
            exposure.observation,
            exposure.visit,
            exposure.filter,
            exposure.pupil,
            exposure.detector,
        )
        groups[key].append(exposure)
    ordered_groups = [
        own for _, own in sorted(groups.items(), key=lambda item: (min(e.t_min for e in item[1]), item[0]))
    ]
    next_index = max((index_of(name) for name in {*known.values(), *taken}), default=0) + 1
    members: dict[str, list[Exposure]] = defaultdict(list)
    for cluster in linked(ordered_groups, rules):
        names = sorted({known[e.dataset] for e in cluster if e.dataset in known}, key=index_of)
        for exposure in cluster:
            if exposure.dataset in known:
                members[known[exposure.dataset]].append(exposure)
        fresh = [e for e in cluster if e.dataset not in known]
        if not fresh:
            continue
        if not names:
            names = [association_name(field, fresh[0], next_index)]
            next_index += 1
        members[names[0]] += fresh
    ordered = sorted(members, key=index_of)
    return [Association(n, field, tuple(sorted(members[n], key=lambda e: e.dataset))) for n in ordered]


def linked(groups: Sequence[list[Exposure]], rules: AssociationRules) -> list[list[Exposure]]:
    """Single-linkage clusters inside each group, by distance of the middles and gap in time.

    Returns
    -------
    The clusters, group by group, in each the ones that begin first before the others (by dataset where they begin
    together), and in each cluster the exposures likewise.
    """
    ordered = [sorted(own, key=lambda e: (e.t_min, e.dataset)) for own in groups]
    if all(len(own) == 1 for own in ordered):
        return ordered
    exposures = [e for own in ordered for e in own]
    labels = _labels(exposures, np.repeat(np.arange(len(ordered)), [len(own) for own in ordered]), rules)
    clusters: dict[int, list[Exposure]] = {}
    for label, exposure in zip(labels.tolist(), exposures, strict=True):
        clusters.setdefault(label, []).append(exposure)
    return list(clusters.values())


def _labels(exposures: Sequence[Exposure], group: np.ndarray, rules: AssociationRules) -> np.ndarray:
    """A label (N,) for each exposure, the same for those that are linked.

    Exposures of one small cell of sky and time belong together unmeasured; only pairs of neighbouring cells that
    nothing else has joined yet are measured, exposure by exposure.
    """
    from scipy.spatial import cKDTree

    columns = np.array([(e.ra, e.dec, e.t_min, e.t_max) for e in exposures])
    directions, starts, ends = unit_vectors(columns[:, 0], columns[:, 1]), columns[:, 2], columns[:, 3]
    side = chord(rules.maximum_separation_arcmin * ARCMIN) / np.sqrt(3) * (1 - 1e-9)
    gap = rules.maximum_gap_days * (1 - 1e-9)
    grid = np.floor(np.column_stack([directions / side, (starts - starts.min()) / gap]))
    # an exposure that ends before it begins need not be near those that begin with it
    alone = np.where(ends < starts, np.arange(1, len(exposures) + 1), 0)
    keys = np.column_stack([group, grid.astype(np.int64), alone])
    cells, cell = np.unique(keys, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    if len(cells) == len(np.unique(group)):
        return cell
    # neighbours: two cells away on the sky (the diagonal of three), and as many in time as an exposure lasts
    reach = 2.5
    in_time = 1.5 + np.ceil(max(float((ends - starts).max()), 0.0) / gap)
    scale = np.array([4 * reach, 1, 1, 1, reach / in_time])
    pairs = cKDTree(cells[:, :5] * scale).query_pairs(reach, p=np.inf, output_type="ndarray")
    return _joined(cell, pairs, directions, starts, ends, rules)


def _joined(
    cell: np.ndarray,
    pairs: np.ndarray,
    directions: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    rules: AssociationRules,
) -> np.ndarray:
    """Labels (N,) after joining those pairs of cells that hold a close pair of exposures."""
    order, counts = np.argsort(cell, kind="stable"), np.bincount(cell)
    first = np.cumsum(counts) - counts
    labels = np.arange(len(counts))
    links = np.empty((0, 2), np.intp)
    rows, owner = ragged(first[pairs[:, 0]], counts[pairs[:, 0]])
    one, there = order[rows], pairs[owner, 1]  # each exposure of a pair's first cell against its second cell
    while True:
        apart = labels[cell[one]] != labels[there]
        one, there = one[apart], there[apart]
        if not len(one):
            return labels[cell]
        some = max(int(np.searchsorted(np.cumsum(counts[there]), MEASURED_AT_ONCE)), 1)
        rows, owner = ragged(first[there[:some]], counts[there[:some]])
        a, b = one[:some][owner], order[rows]
        gaps = np.maximum(starts[a], starts[b]) - np.minimum(ends[a], ends[b])
        near = angle_between(directions[a], directions[b]) / ARCMIN <= rules.maximum_separation_arcmin
        close = near & (gaps <= rules.maximum_gap_days)
        links = np.concatenate([links, np.unique(np.column_stack([cell[a[close]], cell[b[close]]]), axis=0)])
        labels = connected(links, len(counts))
        one, there = one[some:], there[some:]
