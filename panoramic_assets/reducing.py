"""One association from its exposures to a stored, judged result; called by the mapped steps of two assets.

Put here what a reduction step does besides the engine's own work: fingerprint, reuse, attempts, storing. Keep out
Dagster.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from astropy.table import Table

from panoramic.alignment import Verdict, judge, overruled
from panoramic.alignment_measurement import Measurement
from panoramic.alignment_plots import draw_alignment
from panoramic.alignment_prior import PointingKnowledge
from panoramic.alignment_solution import Cause
from panoramic.associations import Association
from panoramic.errors import (
    ArchiveAccessError,
    CalibrationError,
    EngineFailedError,
    ExposureFileError,
    InputError,
    NoUsableExposureError,
    ReductionError,
    ServiceError,
)
from panoramic.plots import plot_image
from panoramic.provenance import digest_of, record
from panoramic.reduction.base import Degradation, ExposureInput, PointingPrior, ReductionResult, ReferenceSources
from panoramic.reduction.moving import move_products
from panoramic.reference import sources_digest
from panoramic.verification import correction_of, knowledge_of, no_pairs
from panoramic_assets.candidates import Candidate, Candidates, OwnReference, reference_candidates
from panoramic_assets.inputs import calibration_references, fetch, made_of_these, templates
from panoramic_assets.storing import products_stand, publish, staging
from resources.database import ALIGNMENT_FAILED, DONE, NO_DATA, RUNNING, StoredReduction
from resources.home import Home

STAGE_VERSION = "3"

Log = Callable[[str], None]


@dataclass
class Outcome:
    """What a step tells the merge: small, so that it travels between processes.

    ``status`` is ``accepted``, ``held_back`` (9) or ``no_data`` (10).
    """

    association: str
    filter_key: str
    status: str
    cause: str = ""
    reused: bool = False
    near: list[str] = field(default_factory=list)
    n_sources: int = 0
    n_exposures: int = 0
    reference: str = ""
    attempt: str = ""
    absolute_n: int = 0
    absolute_error_mas: float | None = None
    worst_rms_px: float | None = None
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_mib: float = 0.0


def association_folder(name: str) -> str:
    """Where an association's products lie in the storage: below the field that named it, also where it moved since."""
    return f"{name.split('_', 1)[0]}/associations/{name}"


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

    def row(self, made: Made | None, verdict: Verdict) -> dict[str, Any]:
        """The try as a row of the table of tries."""
        used = made.candidate if made else next(iter(self.candidates), None)
        return {
            "attempt": self.attempt,
            "catalog": used.sources.name if used else "none",
            "origin": used.origin[:160] if used else "",
            "n_sources": len(used.sources) if used else 0,
            "used": verdict.accepted,
            "outcome": verdict.cause or "accepted",
        }


@dataclass(frozen=True)
class Made:
    """What a try made, in its folder: the result, its measurement and the pairs behind it, the catalogue of both."""

    candidate: Candidate | None
    result: ReductionResult
    measurement: Measurement | None
    pairs: Table | None


def reduce_association(
    home: Home,
    association: Association,
    own: OwnReference,
    minimum_cover: float,
    log: Log,
    *,
    verify: bool = False,
    priors: Sequence[PointingPrior] | None = None,
) -> Outcome:
    """Reduce an association, or find that the stored result still stands; measure, judge and store it.

    The first attempt tries the catalogues in order until the verdict accepts. The second one is for what was held back:
    the survey's second parameters with each catalogue again, from where ``priors`` put the exposures, then few
    reference sources together with the priors.

    Parameters
    ----------
    own, minimum_cover : our own reference, and the least fraction of the association that it must cover.
    verify : all bytes of stored products are read before they are taken as they are.
    priors : None for the first attempt; what the visit's other detectors say (may be nothing) for the second one.
    """
    survey, name = home.survey, association.name
    candidates = reference_candidates(home, association, own, minimum_cover)
    stored = home.database.reduction(name)
    try:
        inputs = fetch(home, association.exposures, log)
        references = calibration_references(home, list(inputs.values()))
    except (ServiceError, ExposureFileError, CalibrationError) as error:
        if stored is None or not made_of_these(home, association) or not products_stand(home, name, verify):
            raise
        log(f"{name}: {error}; the result of these very data stands")
        return _reuse(home, association, stored, candidates, log)
    engine_name, parameters = survey.reduction.settings_for(name, association.field, association.first.element)
    second = survey.reduction.second_attempt
    fingerprint = digest_of(
        {
            "stage": f"reduction {STAGE_VERSION}",
            "engine": [engine_name, home.engine(association).version, parameters, list(survey.services_off)],
            "exposures": {e.dataset: e.checksum or e.file_id for e in association.exposures},
            "calibration": sorted(references.items()),
            "templates": templates(home, association.detector),
            "references": [sources_digest(c.sources) for c in candidates.usable],
        }
    )
    second_fingerprint = "" if priors is None else digest_of([second.model_dump(), [asdict(p) for p in priors]])
    current = stored is not None and stored.fingerprint == fingerprint and products_stand(home, name, verify)
    if stored is not None and current and (priors is None or stored.second_fingerprint == second_fingerprint):
        return _reuse(home, association, stored, candidates, log)
    if stored is None or not current or priors is None:
        attempts, second_fingerprint = candidates.rows(), ""
        tries = [Try("first", (c,), parameters) for c in candidates.usable] or [Try("first", (), parameters)]
    else:
        attempts = [a for a in stored.attempts if a["attempt"] not in ("second", "visit")]
        tries = second_tries(home, engine_name, parameters, candidates, tuple(priors))
        if not tries:
            return _reuse(home, association, stored, candidates, log)
    home.database.set_status(name, RUNNING)
    home.storage.require_room(150_000_000 * (2 + len(inputs)))
    exposures = tuple(ExposureInput(dataset, path) for dataset, path in inputs.items())
    folder = staging(home, association_folder(name))
    try:
        ended = _try_all(home, association, exposures, candidates, tries, attempts, folder, log)
        if ended is None:
            return _kept_first(home, association, attempts, second_fingerprint, log)
        made, verdict, chosen = ended
        failures = [a for a in attempts if a["attempt"] and not a["used"]]
        if failures:
            first = f"{failures[0]['catalog']}: {failures[0]['outcome']}"
            candidates.degradations.append(Degradation(name, "reference_catalog", first))
        result = replace(made.result, degradations=(*made.result.degradations, *candidates.degradations))
        reference = made.candidate.sources if made.candidate else None
        provenance = record(
            survey=survey.name,
            survey_digest=survey.digest,
            fingerprint=fingerprint,
            inputs={e.dataset: e.checksum for e in association.exposures},
            crds_context=home.calibration.setup().crds_context,
            references=references,
            reference_catalog=_named(reference, own) if reference else "",
            checks={"verdict": verdict.status, "cause": verdict.cause, "attempt": chosen.attempt},
        )
        kept = StoredReduction(fingerprint, result, verdict, attempts, made.measurement, second_fingerprint)
        store(home, association, folder, kept, made.pairs, provenance)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome_of(association, kept)


def second_tries(
    home: Home,
    engine_name: str,
    parameters: Mapping[str, Any],
    candidates: Candidates,
    priors: tuple[PointingPrior, ...],
) -> list[Try]:
    """What is tried with an association that failed: wider and brighter, then together with its visit."""
    second = home.survey.reduction.second_attempt
    tries: list[Try] = []
    if second.enabled:
        wider = home.second_parameters(engine_name, parameters, second)
        tries += [Try("second", (c,), wider, priors) for c in candidates.usable]
    catalogs = (*candidates.usable, *candidates.sparse)
    if priors and catalogs:
        tries.append(Try("visit", catalogs, parameters, priors))
    return tries


def _try_all(
    home: Home,
    association: Association,
    exposures: tuple[ExposureInput, ...],
    candidates: Candidates,
    tries: Sequence[Try],
    attempts: list[dict[str, Any]],
    folder: Path,
    log: Log,
) -> tuple[Made, Verdict, Try] | None:
    """Go through the tries until one is accepted; what the last one made is in the folder.

    A first attempt that fails for another reason than the absolute alignment is not tried with the next catalogue. An
    engine that breaks down over a second attempt leaves the first one's result: None where nothing else was made.
    """
    name, limits = association.name, home.survey.limits
    judgement = home.database.judgement(association)
    ended: tuple[Made, Verdict, Try] | None = None
    for one in tries:
        shutil.rmtree(folder, ignore_errors=True)
        catalogs = ", ".join(c.sources.name for c in one.candidates) or "none"
        log(f"{name}: {one.attempt} attempt on {len(exposures)} exposures, reference {catalogs}")
        try:
            made = _make(home, association, exposures, one, folder)
        except ReductionError as error:
            if one.attempt == "first":
                raise
            ended = None
            attempts.append(one.row(None, Verdict(name, "held_back", (), f"{type(error).__name__}: {error}")))
            log(f"{name}: the {one.attempt} attempt broke down: {error}")
            continue
        verdict = judge(
            made.result, association.detector, limits, home.survey.reference.absolute_alignment,
            candidates.covering, candidates.why_none, made.measurement,
        )  # fmt: skip
        verdict = overruled(verdict, judgement)
        attempts.append(one.row(made, verdict))
        ended = made, verdict, one
        log(f"{name}: {verdict.status} {verdict.cause}")
        failed_between = any(c.passed is False for c in verdict.of("relative_alignment"))
        if verdict.accepted or (failed_between and one.attempt == "first"):
            break
    return ended


def _make(home: Home, association: Association, exposures: tuple[ExposureInput, ...], one: Try, folder: Path) -> Made:
    """Let the engine work and measure what it made; with few reference sources, move it by what was measured."""
    engine = home.engine(association, one.parameters)
    first = next(iter(one.candidates), None)
    given = first.sources if first and one.attempt != "visit" else None
    result = engine.reduce(association.name, exposures, given, one.priors, folder)
    if one.attempt != "visit":
        return _measured(home, folder, result, first)
    for candidate in one.candidates:
        made = _measured(home, folder, result, candidate, knowledge_of(one.priors))
        offset = made.measurement.absolute if made.measurement else None
        if offset is not None and offset.measured:
            correction = correction_of(offset)
            moved = move_products(folder, result, correction)
            return _measured(home, folder, moved, candidate, knowledge_of(one.priors, correction))
        if offset is not None and offset.cause == Cause.DISAGREES_WITH_PRIOR:
            break  # its matches are real: a catalogue with fewer must not overrule them
    return made


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


def store(
    home: Home,
    association: Association,
    folder: Path,
    kept: StoredReduction,
    pairs: Table | None,
    provenance: dict[str, Any],
) -> None:
    """Draw what was measured, move the folder into its place and keep the story in the database."""
    draw(folder, kept, pairs)
    products = publish(home, folder, association_folder(association.name), kept.fingerprint, provenance)
    home.database.put_reduction(association, kept, products)


def _kept_first(
    home: Home, association: Association, attempts: list[dict[str, Any]], second_fingerprint: str, log: Log
) -> Outcome:
    """No second attempt made anything: the first one's result stands as it was, and what was tried is kept."""
    home.database.put_attempts(association.name, attempts, second_fingerprint)
    stored = home.database.reduction(association.name)
    if stored is None:
        raise EngineFailedError(f"{association.name}: {attempts[-1]['outcome']}")
    home.database.set_status(association.name, ALIGNMENT_FAILED, stored.verdict.cause)
    log(f"{association.name}: no second attempt made anything; the first one's result stands")
    return outcome_of(association, stored)


def _named(reference: ReferenceSources, own: OwnReference) -> str:
    """A reference as provenance names it: with the digest of its sources, our own with its version."""
    version = f" version {own.version}" if reference.kind == "own" else ""
    return f"{reference.name}{version} {sources_digest(reference)}"


def without_data(home: Home, association: Association, error: Exception) -> Outcome:
    """Hold an association back because its data could not be had or its engine was killed (status 10)."""
    cause = f"{type(error).__name__}: {error}"
    # a result of earlier data must not stand in for what could not be had now: it is judged again when it can
    home.database.put_verdict(Verdict(association.name, "held_back", (), f"no data: {cause}"))
    home.database.set_status(association.name, NO_DATA, cause)
    return Outcome(association.name, association.filter_key, "no_data", cause, n_exposures=len(association.exposures))


def is_final(error: Exception) -> bool:
    """Whether trying again can't help."""
    return isinstance(error, InputError | NoUsableExposureError | ArchiveAccessError | CalibrationError)


def _reuse(home: Home, association: Association, stored: StoredReduction, candidates: Candidates, log: Log) -> Outcome:
    """The stored result stands; only the verdict is made again, because limits may have changed."""
    survey = home.survey
    rule = survey.reference.absolute_alignment
    verdict = judge(
        stored.result, association.detector, survey.limits, rule, candidates.covering, candidates.why_none,
        stored.measurement,
    )  # fmt: skip
    verdict = overruled(verdict, home.database.judgement(association))
    if verdict != stored.verdict:
        home.database.put_verdict(verdict)
    else:
        home.database.set_status(association.name, DONE if verdict.accepted else ALIGNMENT_FAILED, verdict.cause)
    log(f"{association.name}: nothing changed, result of an earlier run stands ({verdict.status})")
    outcome = outcome_of(association, stored._replace(verdict=verdict))
    outcome.reused, outcome.cpu_seconds, outcome.wall_seconds = True, 0.0, 0.0
    return outcome


def outcome_of(association: Association, kept: StoredReduction) -> Outcome:
    """What a step tells of a stored reduction."""
    result, verdict, measurement = kept.result, kept.verdict, kept.measurement
    fit = result.absolute
    n, error, reference = 0, None, fit.reference if fit else ""
    if measurement is not None and measurement.absolute is not None:
        offset = measurement.absolute
        n, reference = offset.n, measurement.reference
        error = max(offset.err_ra or 0.0, offset.err_dec or 0.0) if offset.measured else None
    elif fit and fit.n:
        n, error = fit.n, fit.rms * fit.pixel_scale_mas / fit.n**0.5
    rms = [max(f.rms_x, f.rms_y) for f in result.relative if f.role == "matched"]
    tried = [a["attempt"] for a in kept.attempts if a["attempt"]]
    return Outcome(
        association=association.name,
        filter_key=association.filter_key,
        status=verdict.status,
        cause=verdict.cause,
        near=[str(c) for c in verdict.near],
        n_sources=result.n_sources,
        n_exposures=len(result.exposures),
        reference=reference,
        attempt=tried[-1] if tried else "",
        absolute_n=n,
        absolute_error_mas=error,
        worst_rms_px=max(rms) if rms else None,
        cpu_seconds=result.cpu_seconds,
        wall_seconds=result.wall_seconds,
        peak_mib=result.peak_mib,
    )


def draw(folder: Path, kept: StoredReduction, pairs: Table | None) -> None:
    """Add the pairs, the alignment plot and a small picture of the image to the products."""
    result = kept.result
    pairs = no_pairs() if pairs is None else pairs
    if len(pairs):
        pairs.write(folder / f"{result.association}_pairs.ecsv", format="ascii.ecsv", overwrite=True)
    notes = [
        " ".join(str(a[c]) for c in ("attempt", "catalog", "origin") if a[c]) + f": {a['outcome']}"
        for a in kept.attempts
    ]
    draw_alignment(folder / f"{result.association}_alignment.png", kept.verdict, kept.measurement, pairs, notes)
    if result.image:
        from astropy.io import fits

        image, weight = fits.getdata(folder / result.image), None
        if result.weight:
            weight = fits.getdata(folder / result.weight)
        plot_image(folder / f"{result.association}_image.png", image, result.association, weight)
