"""One association from its exposures to a stored, judged result; called by the mapped steps of two assets.

Put here what a reduction step does besides the engine's own work: fingerprint, reuse, attempts, storing. Keep out
Dagster.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from astropy.table import Table

from panoramic.alignment import Criterion, Verdict, judge, overruled
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
from panoramic.provenance import digest_of, record, sha256_of
from panoramic.reduction.base import Degradation, ExposureInput, PointingPrior, ReductionResult, ReferenceSources
from panoramic.reduction.moving import move_products
from panoramic.reference import sources_digest
from panoramic.verification import correction_of, knowledge_of, no_pairs
from panoramic_assets.candidates import Candidate, Candidates, OwnReference
from panoramic_assets.choosing import VisitWord
from panoramic_assets.inputs import calibration_references, fetch, made_of_these, templates
from panoramic_assets.storing import association_folder, products_stand, publish, staging
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


def reduce_association(
    home: Home,
    association: Association,
    own: OwnReference,
    minimum_cover: float,
    log: Log,
    *,
    verify: bool = False,
    word: VisitWord | None = None,
) -> Outcome:
    """Reduce an association, or find that the stored result still stands; measure, judge and store it.

    The first attempt tries the catalogues in order until the verdict accepts. The second one is for what was held back:
    the survey's second parameters with each catalogue again, from where the visit puts the exposures, then few
    reference sources together with the visit's word.

    Parameters
    ----------
    own, minimum_cover : our own reference, and the least fraction of the association that it must cover.
    verify : all bytes of stored products are read before they are taken as they are.
    word : None for the first attempt; what the visit's other detectors say (may be nothing) for the second one.
    """
    survey, name = home.survey, association.name
    candidates = Candidates(home, association, own, minimum_cover)
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
    base = digest_of(
        {
            "stage": f"reduction {STAGE_VERSION}",
            "engine": [engine_name, home.engine(association).version, parameters, list(survey.services_off)],
            "exposures": {e.dataset: e.checksum or e.file_id for e in association.exposures},
            "calibration": sorted(references.items()),
            "templates": templates(home, association.detector),
            "search radius": survey.reference.search_radius_arcsec,
        }
    )
    stands = stored is not None and products_stand(home, name, verify)
    current = stored is not None and stands and _is_current(stored, base, candidates)
    if stored is not None and stands and not current and _only_catalogues_are_away(home, name, base, candidates):
        log(f"{name}: a catalogue can't be had now; the result of these very data stands")
        return _reuse(home, association, stored, candidates, log)
    second_fingerprint = "" if word is None else _second_fingerprint(home, word, candidates)
    if stored is not None and current and (word is None or stored.second_fingerprint == second_fingerprint):
        return _reuse(home, association, stored, candidates, log)
    if stored is None or not current or word is None:
        second_fingerprint, earlier = "", []
        tries: Iterable[Try] = first_tries(candidates, parameters)
    else:
        earlier = [a for a in stored.attempts if a["attempt"] in ("", "first")]
        tries = second_tries(home, engine_name, parameters, candidates, word.priors)
        if not tries:
            return _reuse(home, association, stored, candidates, log)
    home.database.set_status(name, RUNNING)
    home.storage.require_room(150_000_000 * (2 + len(inputs)))
    exposures = tuple(ExposureInput(dataset, path) for dataset, path in inputs.items())
    folder = staging(home, association_folder(name))
    try:
        ended, rows = _try_all(home, association, exposures, candidates, tries, folder, log)
        attempts = [*(earlier or candidates.rows()), *rows]
        worse = stored is not None and current and stored.verdict.accepted
        if ended is None or (worse and not ended[1].accepted):
            return _kept_earlier(home, association, rows, second_fingerprint, log)
        made, verdict, chosen = ended
        verdict = judged(home, association, made.result, made.measurement, attempts, candidates)
        before = next((a for a in attempts if a["attempt"] == "first" and not a["used"]), None)
        if verdict.accepted and before and made.candidate and before["catalog"] != made.candidate.sources.name:
            why = f"not aligned to {before['catalog']}: {before['outcome']}"
            candidates.degradations.append(Degradation(name, "reference_catalog", why))
        result = replace(made.result, degradations=(*made.result.degradations, *candidates.degradations))
        reference = made.candidate.sources if made.candidate else None
        tried = sum(a["attempt"] == "first" and a["catalog"] != "none" for a in attempts)
        fingerprint = _fingerprint(base, candidates.first(tried))
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
        provenance["without_catalogues"] = base
        kept = StoredReduction(fingerprint, result, verdict, attempts, made.measurement, second_fingerprint)
        store(home, association, folder, kept, made.pairs, provenance)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome_of(association, kept)


def _fingerprint(base: str, tried: Sequence[Candidate]) -> str:
    """Of what made a result: everything but catalogues, and the catalogues that were tried."""
    return digest_of([base, [sources_digest(c.sources) for c in tried]])


def _is_current(stored: StoredReduction, base: str, candidates: Candidates) -> bool:
    """Whether a stored result is what would be made now.

    Of the catalogues those count that were tried; where all of them failed, another one that could be tried counts too.
    """
    firsts = [a for a in stored.attempts if a["attempt"] == "first"]
    number = sum(a["catalog"] != "none" for a in firsts)
    tried = candidates.first(number)
    if len(tried) < number or stored.fingerprint != _fingerprint(base, tried):
        return False
    final = bool(firsts) and bool(firsts[-1].get("final", firsts[-1]["used"]))
    return final or len(candidates.all()) == number


def _only_catalogues_are_away(home: Home, name: str, base: str, candidates: Candidates) -> bool:
    """Whether a stored result differs from what would be made now by catalogues alone, of which one can't be had."""
    rows = home.database.products(name)
    return candidates.some_were_away and bool(rows) and rows[0]["provenance"].get("without_catalogues") == base


def _second_fingerprint(home: Home, word: VisitWord, candidates: Candidates) -> str:
    """Of what a second attempt rests on besides the first one's inputs."""
    rules = home.survey.reduction
    catalogues = [sources_digest(c.sources) for c in (*candidates.all(), *candidates.sparse)]
    return digest_of([rules.second_attempt.model_dump(), rules.visit_priors.model_dump(), word.donors, catalogues])


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


def _try_all(
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


def _kept_earlier(
    home: Home, association: Association, rows: list[dict[str, Any]], second_fingerprint: str, log: Log
) -> Outcome:
    """A second attempt made nothing better: the earlier result stands as it was, and what was tried is kept."""
    stored = home.database.reduction(association.name)
    if stored is None:
        raise EngineFailedError(f"{association.name}: {rows[-1]['outcome']}")
    attempts = [*(a for a in stored.attempts if a["attempt"] not in ("second", "visit") or a["used"]), *rows]
    home.database.put_attempts(association.name, attempts, second_fingerprint)
    status = DONE if stored.verdict.accepted else ALIGNMENT_FAILED
    home.database.set_status(association.name, status, stored.verdict.cause)
    log(f"{association.name}: no second attempt made anything better; the earlier result stands")
    return outcome_of(association, stored)


def settle_verdict(home: Home, association: Association, stored: StoredReduction, verdict: Verdict) -> None:
    """Keep another verdict on a stored result, and draw its plot anew."""
    home.database.put_verdict(verdict)
    name, folder = association.name, association_folder(association.name)
    path = home.storage.path(f"{folder}/{name}_alignment.png")
    if not path.exists():
        return
    pairs = home.storage.path(f"{folder}/{name}_pairs.ecsv")
    table = Table.read(pairs, format="ascii.ecsv") if pairs.exists() else no_pairs()
    draw_plot(path.with_name(f".{path.name}.new"), stored._replace(verdict=verdict), table)
    path.with_name(f".{path.name}.new").replace(path)
    status = path.stat()
    home.database.put_product_file(f"{folder}/{path.name}", sha256_of(path), status.st_size, status.st_mtime_ns)


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
    verdict = judged(home, association, stored.result, stored.measurement, stored.attempts, candidates)
    if verdict != stored.verdict:
        settle_verdict(home, association, stored, verdict)
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
    draw_plot(folder / f"{result.association}_alignment.png", kept, pairs)
    if result.image:
        from astropy.io import fits

        image, weight = fits.getdata(folder / result.image), None
        if result.weight:
            weight = fits.getdata(folder / result.weight)
        plot_image(folder / f"{result.association}_image.png", image, result.association, weight)


def draw_plot(path: Path, kept: StoredReduction, pairs: Table) -> None:
    """The alignment plot: what was measured, the verdict, and what was tried."""
    notes = [
        f"{a['attempt'] or 'passed over'}, {a['catalog']}"
        + (f" ({a['n_sources']} in view)" if a["n_sources"] else "")
        + f": {a['outcome']}"
        for a in kept.attempts
    ]
    draw_alignment(path, kept.verdict, kept.measurement, pairs, notes)
