"""A field's exposures become associations with names that never change.

An association is what one reduction takes at once: exposures of one program, observation, visit, filter, pupil and
detector that lie close together in sky and time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from panoramic.errors import InputError
from panoramic.footprints import hull, separation_arcmin
from panoramic.observations import Exposure
from panoramic.survey import AssociationRules

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
    field: str, exposures: Iterable[Exposure], known: Mapping[str, str], rules: AssociationRules
) -> list[Association]:
    """Put each exposure of a field into exactly one association.

    Parameters
    ----------
    field : the field's name.
    exposures : those that are public and not refused; held-back ones included.
    known : association of each dataset that has one already; it keeps it.

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
    next_index = max((index_of(name) for name in known.values()), default=0) + 1
    members: dict[str, list[Exposure]] = defaultdict(list)
    for _, own in sorted(groups.items(), key=lambda item: (min(e.t_min for e in item[1]), item[0])):
        for cluster in _linked(own, rules):
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


def _linked(exposures: list[Exposure], rules: AssociationRules) -> list[list[Exposure]]:
    """Single-linkage clusters by distance of the middles and gap in time, in the order of their first exposure."""
    clusters: list[list[Exposure]] = []
    for exposure in sorted(exposures, key=lambda e: (e.t_min, e.dataset)):
        near = [c for c in clusters if any(_close(exposure, other, rules) for other in c)]
        merged = [exposure]
        for cluster in near:
            merged = cluster + merged
            clusters.remove(cluster)
        clusters.append(merged)
    return sorted(clusters, key=lambda c: min((e.t_min, e.dataset) for e in c))


def _close(first: Exposure, second: Exposure, rules: AssociationRules) -> bool:
    gap = max(first.t_min, second.t_min) - min(first.t_max, second.t_max)
    apart = separation_arcmin(first.ra, first.dec, second.ra, second.dec)
    return gap <= rules.maximum_gap_days and bool(apart <= rules.maximum_separation_arcmin)
