"""Which associations carry a field's astrometric reference, patch of sky by patch of sky.

Put here the choice among the filters that looked at a patch. Keep out whether an association is good enough (the
verdict's) and how the chosen ones are tied to each other (`panoramic.field_frame`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from panoramic.errors import InputError
from panoramic.footprints import covered_fraction

# a footprint covered by its own likeness is covered, whatever the last digits say
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ReferenceCandidate:
    """An association that could carry the reference.

    Parameters
    ----------
    name : of the association.
    element : its filter, or the pupil's element where that decides (``F444W``, ``F470N``), in any case.
    long_wave : whether its detector belongs to the long-wave channel.
    footprint : (N, 2) RA and Dec of the corners, deg.
    """

    name: str
    element: str
    long_wave: bool
    footprint: np.ndarray = field(compare=False, repr=False)


def choose_reference(
    candidates: Iterable[ReferenceCandidate],
    preference: Sequence[str],
    held_back: Collection[str],
    minimum_cover: float,
) -> tuple[ReferenceCandidate, ...]:
    """The associations that carry the reference.

    Filters are gone through in their order: long-wave before short-wave whatever the list says, then the list's, then
    those that aren't in it by name. An association is chosen where what was chosen from earlier filters covers less
    than ``minimum_cover`` of its area; associations of one filter never stand in for each other, so that overlapping
    ones are all chosen and can be tied.

    More data of the same filters or of later ones never take back a choice of this filter; an association gives way
    only to an earlier filter that covers its patch, and comes back when that one is held back.

    Parameters
    ----------
    candidates : of one field, in any order.
    preference : filters in order.
    held_back : names that failed: they are not chosen, and their sky goes to the next filter.
    minimum_cover : fraction of an association's area, 0 to 1.

    Returns
    -------
    The chosen ones in the order of filters, then of names.

    Raises
    ------
    InputError
        A name that comes twice, or a fraction outside of 0 to 1.
    """
    if not 0 < minimum_cover <= 1:
        raise InputError(f"minimum_cover is {minimum_cover}: it is a fraction above 0 and up to 1")
    candidates = list(candidates)
    twice = sorted(name for name, count in Counter(c.name for c in candidates).items() if count > 1)
    if twice:
        raise InputError(f"{', '.join(twice)}: named twice among the candidates; each association comes once")
    places = {name.upper(): place for place, name in reversed(list(enumerate(preference)))}

    def rank(candidate: ReferenceCandidate) -> tuple[bool, int, str]:
        element = candidate.element.upper()
        return not candidate.long_wave, places.get(element, len(preference)), element

    chosen: list[ReferenceCandidate] = []
    eligible = sorted((c for c in candidates if c.name not in held_back), key=lambda c: (rank(c), c.name))
    for _, group in groupby(eligible, key=rank):
        earlier = [c.footprint for c in chosen]
        chosen += [c for c in group if covered_fraction(c.footprint, earlier) < minimum_cover - _ROUNDING]
    return tuple(chosen)
