"""One association from its exposures to a stored, judged result; called by the mapped steps of two assets.

Put here what a reduction step does besides the engine's own work: fingerprint, reuse, storing. Keep out the attempts
themselves (``attempts.py``) and Dagster.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from astropy.table import Table

from panoramic.alignment import Verdict
from panoramic.alignment_plots import draw_alignment
from panoramic.associations import Association
from panoramic.errors import (
    ArchiveAccessError,
    CalibrationError,
    EngineFailedError,
    ExposureFileError,
    InputError,
    NoUsableExposureError,
    ServiceError,
)
from panoramic.plots import plot_image
from panoramic.provenance import digest_of, record, sha256_of
from panoramic.reduction.base import Degradation, ExposureInput, ReferenceSources
from panoramic.reference import sources_digest
from panoramic.verification import no_pairs
from panoramic_assets.attempts import Try, first_tries, judged, second_tries, try_all
from panoramic_assets.candidates import Candidate, Candidates, OwnReference
from panoramic_assets.choosing import VisitWord
from panoramic_assets.inputs import Log, calibration_references, fetch, made_of_these, templates
from panoramic_assets.storing import association_folder, products_stand, publish, staging
from resources.database import ALIGNMENT_FAILED, DONE, NO_DATA, RUNNING, StoredReduction
from resources.home import Home

STAGE_VERSION = "3"


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
        ended, rows = try_all(home, association, exposures, candidates, tries, folder, log)
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
