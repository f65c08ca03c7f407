"""The attempts to reduce an association: what is tried in which order, and how each is measured and judged.

Put here the tries. Keep out when they are needed and what becomes of their result (``reducing.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from astropy.table import Table

from panoramic.alignment import Criterion, Verdict, judge, overruled
from panoramic.alignment_measurement import Measurement
from panoramic.alignment_prior import PointingKnowledge
from panoramic.alignment_solution import Cause
from panoramic.associations import Association
from panoramic.errors import EngineFailedError, ReductionError
from panoramic.reduction.base import ExposureInput, PointingPrior, ReductionResult
from panoramic.reduction.moving import move_products
from panoramic.verification import correction_of, knowledge_of
from panoramic_assets.candidates import Candidate, Candidates
from panoramic_assets.inputs import Log
from resources.home import Home


@dataclass(frozen=True)
class Try:
    """One way to reduce an association: a catalogue, parameters, and what the visit's other detectors say.

    ``attempt`` is ``first``, ``second`` (the survey's second parameters) or ``visit``: the engine leaves the exposures
    where the priors put them, and few matches with a reference decide what is left; of several candidates the first
    that can be matched.
    """

    attempt: Literal["first", "second", "visit"]
    candidates: tuple[Candidate, ...]
    parameters: Mapping[str, Any]
    priors: tuple[PointingPrior, ...] = ()

    def row(self, candidate: Candidate | None, verdict: Verdict) -> dict[str, Any]:
        """The try with a catalogue as a row of the table; ``final`` where no other catalogue could change it."""
        return {
            "attempt": self.attempt,
            "catalog": candidate.sources.name if candidate else "none",
            "origin": candidate.origin[:160] if candidate else "",
            "n_sources": candidate.within if candidate else 0,
            "used": verdict.accepted,
            "outcome": verdict.cause or "accepted",
            "final": verdict.accepted or any(c.passed is False for c in verdict.of("relative_alignment")),
        }


@dataclass(frozen=True)
class Made:
    """What a try made, in its folder: the result, its measurement and the pairs behind it, the catalogue of both.

    ``refused`` are catalogues that were held against it before, and why they could not be.
    """

    candidate: Candidate | None
    result: ReductionResult
    measurement: Measurement | None
    pairs: Table | None
    refused: tuple[tuple[Candidate, str], ...] = ()


def first_tries(candidates: Candidates, parameters: Mapping[str, Any]) -> Iterator[Try]:
    """The catalogues one after the other, each asked for when its turn comes; without any, one try where none is."""
    number = 0
    while len(found := candidates.first(number + 1)) > number:
        yield Try("first", (found[number],), parameters)
        number += 1
    if number == 0:
        yield Try("first", (), parameters)


def second_tries(
    home: Home,
    engine_name: str,
    parameters: Mapping[str, Any],
    candidates: Candidates,
    priors: tuple[PointingPrior, ...],
) -> list[Try]:
    """What is tried with an association that failed: a wider search, then together with its visit."""
    second = home.survey.reduction.second_attempt
    tries: list[Try] = []
    if second.enabled:
        wider = home.second_parameters(engine_name, parameters, second)
        tries += [Try("second", (c,), wider, priors) for c in candidates.all()]
    catalogs = (*candidates.all(), *candidates.sparse)
    if priors and catalogs:
        tries.append(Try("visit", catalogs, parameters, priors))
    return tries


def try_all(
    home: Home,
    association: Association,
    exposures: tuple[ExposureInput, ...],
    candidates: Candidates,
    tries: Iterable[Try],
    folder: Path,
    log: Log,
) -> tuple[tuple[Made, Verdict, Try] | None, list[dict[str, Any]]]:
    """Go through the tries until one is accepted; what the last one made is in the folder. And a row for each try.

    A first attempt that fails for another reason than the absolute alignment is not tried with the next catalogue.
    Where the engine breaks down, the next try has its turn; None where the last one made nothing.

    Raises
    ------
    ReductionError
        No first attempt made anything; or the engine was killed, which may go better another time.
    """
    name = association.name
    ended: tuple[Made, Verdict, Try] | None = None
    broken: ReductionError | None = None
    rows: list[dict[str, Any]] = []
    for one in tries:
        shutil.rmtree(folder, ignore_errors=True)
        catalogs = ", ".join(c.sources.name for c in one.candidates) or "none"
        log(f"{name}: {one.attempt} attempt on {len(exposures)} exposures, reference {catalogs}")
        try:
            made = _make(home, association, exposures, one, folder)
        except ReductionError as error:
            if one.attempt == "first" and not isinstance(error, EngineFailedError):
                raise
            ended, broken = None, error
            said = Verdict(name, "held_back", (), f"{type(error).__name__}: {error}")
            rows.append(one.row(next(iter(one.candidates), None), said))
            log(f"{name}: the {one.attempt} attempt broke down: {error}")
            continue
        verdict = judged(home, association, made.result, made.measurement, (), candidates)
        rows += [one.row(c, Verdict(name, "held_back", (), f"not measured: {why}")) for c, why in made.refused]
        rows.append(one.row(made.candidate, verdict))
        ended = made, verdict, one
        log(f"{name}: {verdict.status} {verdict.cause}")
        if verdict.accepted or (rows[-1]["final"] and one.attempt == "first"):
            break
    if ended is None and broken is not None and one.attempt == "first":
        raise broken
    return ended, rows


def judged(
    home: Home,
    association: Association,
    result: ReductionResult,
    measurement: Measurement | None,
    attempts: Sequence[Mapping[str, Any]],
    candidates: Candidates | None = None,
) -> Verdict:
    """The verdict that counts: the gates', what the ties to its neighbours said since, and a person's judgement."""
    survey = home.survey
    verdict = judge(
        result, association.detector, survey.limits, survey.reference.absolute_alignment,
        candidates.covering if candidates else True, candidates.why_none if candidates else "", measurement,
    )  # fmt: skip
    telling = next((a for a in attempts if a["attempt"] == "first" and a["catalog"] != "none"), None)
    if not verdict.accepted and telling and len([a for a in attempts if a["attempt"]]) > 1:
        # the last try is what is judged, the first one often what tells
        before = f"first attempt with {telling['catalog']}: {telling['outcome']}"
        if telling["outcome"] not in verdict.cause:
            verdict = replace(verdict, cause=f"{verdict.cause} ({before})")
    contradicting = [a["outcome"] for a in attempts if a["attempt"] == "ties"]
    if contradicting:
        said = Criterion("absolute_alignment", "ties to neighbours", None, None, "", False, note=contradicting[0])
        cause = "; ".join(t for t in (verdict.cause, str(said)) if t)
        verdict = Verdict(verdict.association, "held_back", (*verdict.criteria, said), cause)
    return overruled(verdict, home.database.judgement(association))


def _make(home: Home, association: Association, exposures: tuple[ExposureInput, ...], one: Try, folder: Path) -> Made:
    """Let the engine work and measure what it made; with few reference sources, move it by what was measured."""
    engine = home.engine(association, one.parameters)
    first = next(iter(one.candidates), None)
    given = first.sources if first and one.attempt != "visit" else None
    result = engine.reduce(association.name, exposures, given, one.priors, folder)
    if one.attempt != "visit":
        return _measured(home, folder, result, first)
    refused: list[tuple[Candidate, str]] = []
    for candidate in one.candidates:
        made = _measured(home, folder, result, candidate, knowledge_of(one.priors))
        offset = made.measurement.absolute if made.measurement else None
        if offset is not None and offset.measured:
            correction = correction_of(offset)
            moved = move_products(folder, result, correction)
            made = _measured(home, folder, moved, candidate, knowledge_of(one.priors, correction))
            break
        if offset is not None and offset.cause == Cause.DISAGREES_WITH_PRIOR:
            break  # its matches are real: a catalogue with fewer must not overrule them
        if candidate is not one.candidates[-1]:
            refused.append((candidate, offset.text if offset else "nothing was made"))
    return replace(made, refused=tuple(refused))


def _measured(
    home: Home,
    folder: Path,
    result: ReductionResult,
    candidate: Candidate | None,
    knowledge: PointingKnowledge | None = None,
) -> Made:
    """The result with the independent measurement of its products; there is none where no exposure came out."""
    if not result.exposures:
        return Made(candidate, result, None, None)
    measurement, pairs = home.measure_alignment(
        result.association,
        {e.dataset: folder / e.filename for e in result.exposures},
        candidate.sources if candidate else None,
        knowledge,
        {e.dataset: e.pointing for e in result.exposures},
    )
    return Made(candidate, result, measurement, pairs)
