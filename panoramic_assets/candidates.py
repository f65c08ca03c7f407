"""Which reference catalogues can align an association, and a line on each one that was looked at.

Put here the choice among our own reference and the external ones. Keep out where catalogues come from
(``resources/reference_catalogs.py``) and what is done with them (``reducing.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """A catalogue that can be tried, where it came from, and how many of its sources are in the field of view."""

    sources: ReferenceSources
    origin: str
    within: int


@dataclass(frozen=True)
class PassedOver:
    """A catalogue that could not be tried, and why; ``n_sources`` None where it could not be had."""

    catalog: str
    origin: str
    n_sources: int | None
    why: str


class Candidates:
    """Reference catalogues to try, in order: our own where it covers enough, then the survey's external ones.

    They are asked for one after the other, only as far as somebody wants to know: what lies behind a catalogue that
    settles the matter neither costs a query nor makes a result stale. ``sparse`` ones have too few sources for an
    association alone, and enough where the visit's other detectors help; ``covering`` says that some catalogue has
    sources there, be they too few.
    """

    def __init__(self, home: Home, association: Association, own: OwnReference, minimum_cover: float) -> None:
        self.home, self.association = home, association
        self.found: list[Candidate] = []
        self.sparse: list[Candidate] = []
        self.passed_over: list[PassedOver] = []
        self.degradations: list[Degradation] = []
        self.covering = False
        self._outline = association.footprint
        self._waiting = list(home.reference_catalogs.names())
        if own.footprints:
            self._look_at_own(own, minimum_cover)

    def first(self, number: int) -> list[Candidate]:
        """The first so many usable ones; fewer where there are no more."""
        while len(self.found) < number and self._waiting:
            self._look_at(self._waiting.pop(0))
        return self.found[:number]

    def all(self) -> list[Candidate]:
        """All usable ones."""
        return self.first(len(self.found) + len(self._waiting) + 1)

    @property
    def some_were_away(self) -> bool:
        """Whether a catalogue could not be had now."""
        return any(p.n_sources is None for p in self.passed_over)

    @property
    def why_none(self) -> str:
        """Why no catalogue can be used; empty where one can, or where none has a source there."""
        if self.found or all(p.n_sources == 0 for p in self.passed_over):
            return ""
        return "no catalogue can align it: " + "; ".join(f"{p.catalog}: {p.why}" for p in self.passed_over)

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

    def _look_at_own(self, own: OwnReference, minimum_cover: float) -> None:
        minimum = self.home.survey.limits.absolute_n
        cover = covered_fraction(self._outline, own.footprints)
        within = int(inside(own.ra, own.dec, self._outline).sum())  # those beside it tie nothing
        candidate = Candidate(
            own.around(self._outline, self.home.survey.reference.search_radius_arcsec + _MARGIN_ARCSEC),
            f"version {own.version}, covers {cover:.0%}",
            within,
        )
        self.covering |= within > 0
        if cover >= minimum_cover and within >= minimum:
            self.found.append(candidate)
            return
        why = f"our own reference covers {cover:.0%} with {within} sources, less than {minimum_cover:.0%} or {minimum}"
        self._pass_over("own", candidate, within, why)
        self.degradations.append(Degradation(self.association.name, "own_reference", why))

    def _look_at(self, name: str) -> None:
        """Ask for one external catalogue.

        One with fewer sources in the footprint than engines need to be right is passed over.
        """
        survey = self.home.survey
        margin = max(survey.reference.search_radius_arcsec, survey.reduction.second_attempt.search_radius_arcsec)
        try:
            answer = self.home.reference_catalogs.ask(
                name, self._outline, epoch_of(self.association), margin + _MARGIN_ARCSEC
            )
        except (ReferenceCatalogUnavailableError, InputError) as error:
            self.passed_over.append(PassedOver(name, "", None, str(error)))
            self.degradations.append(Degradation(self.association.name, f"reference_catalog_{name}", str(error)))
            return
        origin = f"{answer.origin}: {answer.detail}" if answer.detail else answer.origin
        if answer.sources is None:
            self.passed_over.append(PassedOver(name, origin, 0, "no source there"))
            return
        self.covering = True
        minimum = survey.limits.absolute_n
        within = int(inside(answer.sources.ra, answer.sources.dec, self._outline).sum())
        candidate = Candidate(answer.sources, origin, within)
        if within >= minimum:
            self.found.append(candidate)
        else:
            self._pass_over(name, candidate, within, f"{within} sources in the field of view, fewer than {minimum}")

    def _pass_over(self, name: str, candidate: Candidate, within: int, why: str) -> None:
        self.passed_over.append(PassedOver(name, candidate.origin, within, why))
        if within >= FEWEST_WITH_PRIOR:
            self.sparse.append(candidate)


def epoch_of(association: Association) -> float:
    """Julian year of an association's first exposure."""
    return 2000.0 + (association.first.t_min - JULIAN_YEAR_MJD) / 365.25
