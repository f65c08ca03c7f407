"""Which reference catalogues can align an association, and a line on each one that was looked at.

Put here the choice among our own reference and the external ones. Keep out where catalogues come from
(``resources/reference_catalogs.py``) and what is done with them (``reducing.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from panoramic.associations import Association
from panoramic.errors import InputError, ReferenceCatalogUnavailableError
from panoramic.footprints import covered_fraction, inside
from panoramic.reduction.base import Degradation, ReferenceSources
from resources.home import Home

JULIAN_YEAR_MJD = 51544.5
# reference sources so far outside still tie what the search may move in
_MARGIN_ARCSEC = 10.0
# matches that are worth a try where the visit's other detectors say where to look
FEWEST_WITH_PRIOR = 3


@dataclass(frozen=True)
class OwnReference:
    """The survey's own sources that an association may be aligned to, and the footprints they come from."""

    ra: np.ndarray
    dec: np.ndarray
    mag: np.ndarray
    error_mas: np.ndarray
    footprints: tuple[np.ndarray, ...]
    version: int = 0

    @classmethod
    def empty(cls) -> OwnReference:
        """No source at all."""
        nothing = np.empty(0)
        return cls(nothing, nothing, nothing, nothing, ())

    def around(self, outline: np.ndarray, margin_arcsec: float) -> ReferenceSources:
        """The sources in a footprint ((N, 2) deg) widened by a margin."""
        keep = inside(self.ra, self.dec, outline, margin_arcsec)
        return ReferenceSources("own", self.ra[keep], self.dec[keep], self.mag[keep], self.error_mas[keep], kind="own")


@dataclass(frozen=True)
class Candidate:
    """A catalogue that can be tried, and where it came from."""

    sources: ReferenceSources
    origin: str


@dataclass(frozen=True)
class PassedOver:
    """A catalogue that could not be tried, and why; ``n_sources`` None where it could not be had."""

    catalog: str
    origin: str
    n_sources: int | None
    why: str


@dataclass
class Candidates:
    """Reference catalogues to try, in order, and those that were passed over.

    ``sparse`` ones have too few sources for an association alone, and enough where the visit's other detectors help;
    ``covering`` says that some catalogue has sources there, be they too few.
    """

    usable: list[Candidate] = field(default_factory=list)
    sparse: list[Candidate] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    covering: bool = False
    degradations: list[Degradation] = field(default_factory=list)

    @property
    def why_none(self) -> str:
        """Why no catalogue can be used; empty where one can, or where none has a source there."""
        if self.usable or all(p.n_sources == 0 for p in self.passed_over):
            return ""
        return "no catalogue can align it: " + "; ".join(f"{p.catalog}: {p.why}" for p in self.passed_over)

    @property
    def notes(self) -> list[str]:
        """A line on each catalogue."""
        lines = [f"{c.sources.name}: {len(c.sources)} sources ({c.origin})" for c in self.usable]
        return lines + [f"{p.catalog}: {p.why}" for p in self.passed_over]

    def rows(self) -> list[dict[str, Any]]:
        """Those that were passed over, as rows of the table of tries."""
        return [
            {
                "attempt": "",
                "catalog": p.catalog,
                "origin": p.origin[:160],
                "n_sources": p.n_sources,
                "used": False,
                "outcome": p.why,
            }
            for p in self.passed_over
        ]


def epoch_of(association: Association) -> float:
    """Julian year of an association's first exposure."""
    return 2000.0 + (association.first.t_min - JULIAN_YEAR_MJD) / 365.25


def reference_candidates(home: Home, association: Association, own: OwnReference, minimum_cover: float) -> Candidates:
    """The catalogues that can align an association: our own where it covers enough, then the external ones.

    A catalogue with fewer sources in the footprint than engines need to be right is passed over by them.
    """
    survey, found = home.survey, Candidates()
    outline = association.footprint
    margin = max(survey.reference.search_radius_arcsec, survey.reduction.second_attempt.search_radius_arcsec)
    margin += _MARGIN_ARCSEC
    minimum = survey.limits.absolute_n
    if own.footprints:
        cover = covered_fraction(outline, own.footprints)
        within = int(inside(own.ra, own.dec, outline).sum())  # those beside it tie nothing
        if cover >= minimum_cover and within >= minimum:
            found.usable.append(Candidate(own.around(outline, margin), f"version {own.version}, covers {cover:.0%}"))
        else:
            why = (
                f"our own reference covers {cover:.0%} with {within} sources, "
                f"less than {minimum_cover:.0%} or {minimum}"
            )
            found.passed_over.append(PassedOver("own", f"version {own.version}", within, why))
            found.degradations.append(Degradation(association.name, "own_reference", why))
            if within >= FEWEST_WITH_PRIOR:
                found.sparse.append(Candidate(own.around(outline, margin), f"version {own.version}"))
    for name in home.reference_catalogs.names():
        try:
            answer = home.reference_catalogs.ask(name, outline, epoch_of(association), margin)
        except (ReferenceCatalogUnavailableError, InputError) as error:
            found.passed_over.append(PassedOver(name, "", None, str(error)))
            found.degradations.append(Degradation(association.name, f"reference_catalog_{name}", str(error)))
            continue
        origin = f"{answer.origin}: {answer.detail}" if answer.detail else answer.origin
        if answer.sources is None:
            found.passed_over.append(PassedOver(name, origin, 0, "no source there"))
            continue
        found.covering = True
        within = int(inside(answer.sources.ra, answer.sources.dec, outline).sum())
        if within < minimum:
            why = f"{within} sources in the field of view, fewer than {minimum}"
            found.passed_over.append(PassedOver(name, origin, within, why))
            if within >= FEWEST_WITH_PRIOR:
                found.sparse.append(Candidate(answer.sources, origin))
        else:
            found.usable.append(Candidate(answer.sources, origin))
    found.covering |= bool(found.usable)
    return found
