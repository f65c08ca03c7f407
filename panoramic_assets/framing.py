"""A field's reference associations tied to each other and moved as a whole to the external frame.

Put here which stored results take part, the moving of their products, and the judging of what was moved. Keep out the
solution (`panoramic.field_frame`), the moving of files (`panoramic.reduction.moving`) and Dagster.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from astropy.table import Table

from panoramic.alignment_solution import Solution, measure_solution
from panoramic.associations import Association
from panoramic.errors import InputError, ReferenceCatalogUnavailableError
from panoramic.field_frame import ExternalMatches, FrameAssociation, FrameRules, FrameSolution, solve_frame
from panoramic.footprints import covered_fraction
from panoramic.provenance import digest_of
from panoramic.reduction.base import ReferenceSources
from panoramic.reduction.moving import SkyCorrection, move_products, recorded_correction
from panoramic.reference import centroid_errors_mas, select_own, sources_digest
from panoramic_assets.attempts import judged
from panoramic_assets.candidates import epoch_of
from panoramic_assets.choosing import carries
from panoramic_assets.common import as_table
from panoramic_assets.inputs import Log
from panoramic_assets.own_reference import as_reference, own_sources
from panoramic_assets.reducing import Outcome, outcome_of, settle_verdict, store
from panoramic_assets.storing import association_folder, products_stand, staging
from resources.database import StoredReduction
from resources.home import Home

STAGE_VERSION = "1"
# what a move is worth: less than this at the middle and at a corner changes nothing that anybody can measure
_SMALLEST_MOVE_MAS = 0.02
_CORNER_ARCSEC = 95.0


@dataclass(frozen=True)
class _Part:
    """An association that takes part: what is stored, its catalogue in the engine's own frame, what moved it since."""

    association: Association
    stored: StoredReduction
    catalog: Table
    moved: SkyCorrection | None
    external: ReferenceSources | None


def settle_frame(home: Home, field: str, members: Sequence[Association], log: Log) -> dict[str, Outcome]:
    """Tie overlapping associations, move those that a tie holds, and judge them again where they lie now.

    An association that the external catalogues could not align, and that overlaps some that they could, is moved with
    these and held against their sources. One whose overlaps contradict all others is held back.

    Returns
    -------
    The outcomes of those that were moved or judged again, by name.
    """
    try:
        parts = [p for a in members if (p := _part(home, a)) is not None]
    except (ReferenceCatalogUnavailableError, InputError) as error:
        # without the external sources a component would lose its place: what stands there stays there
        log(f"{field}: the field's frame stays as it is: {error}")
        return {}
    solution = _solution(home, field, parts, log) if _overlap([p.association for p in parts]) else None
    return _settle_all(home, parts, solution, log)


def _solution(home: Home, field: str, parts: Sequence[_Part], log: Log) -> FrameSolution:
    """The field's frame: the stored one where it was made of the same."""
    reference = home.survey.reference
    rules = FrameRules(search_radius_arcsec=reference.search_radius_arcsec)
    made_of = sorted(
        [p.association.name, p.stored.fingerprint, p.stored.second_fingerprint, _digest(p.external)] for p in parts
    )
    fingerprint = digest_of([STAGE_VERSION, asdict(rules), reference.selection.model_dump(), made_of])
    known = home.database.frame(field)
    if known is not None and known[0] == fingerprint:
        return known[1]
    solution = solve_frame([_given(p, reference.search_radius_arcsec) for p in parts], rules)
    home.database.put_frame(field, fingerprint, solution)
    for refused in solution.refused:
        log(f"{field}: {refused.first} and {refused.second} are not tied: {refused.text}")
    return solution


def _part(home: Home, association: Association) -> _Part | None:
    """An association's part in the frame; None where it has no place in it."""
    stored = home.database.reduction(association.name)
    if stored is None or stored.result.catalog is None or stored.measurement is None:
        return None
    judgement = home.database.judgement(association)
    rejected = judgement is not None and judgement.decision == "held_back"
    between = any(c.passed is False for c in stored.verdict.of("relative_alignment"))
    # what its visit placed needs the visit's word to be judged
    by_its_visit = any(a["attempt"] == "visit" and a["used"] for a in stored.attempts)
    if rejected or between or by_its_visit or not products_stand(home, association.name):
        return None
    catalog = Table.read(home.storage.path(f"{association_folder(association.name)}/{stored.result.catalog}"))
    catalog["error_mas"] = centroid_errors_mas(catalog, stored.result.pixel_scale_mas)
    selected = select_own(catalog, home.survey.reference.selection)
    moved = recorded_correction(catalog.meta)
    if moved is not None:
        selected["ra"], selected["dec"] = moved.inverse().apply(selected["ra"], selected["dec"])
    return _Part(association, stored, selected, moved, _external(home, association, stored))


def _external(home: Home, association: Association, stored: StoredReduction) -> ReferenceSources | None:
    """The external catalogue that the association was accepted with; raises where it can't be had now."""
    if not carries(stored) or stored.measurement is None or not stored.measurement.reference:
        return None
    margin = home.survey.reference.search_radius_arcsec + 10.0
    name, outline = stored.measurement.reference, association.footprint
    sources = home.reference_catalogs.ask(name, outline, epoch_of(association), margin).sources
    if sources is None:
        raise ReferenceCatalogUnavailableError(f"{name} has no source on {association.name} any more")
    return sources


def _digest(sources: ReferenceSources | None) -> str:
    return sources_digest(sources) if sources is not None else ""


def _overlap(associations: Sequence[Association]) -> bool:
    return any(
        covered_fraction(one.footprint, [other.footprint]) > 0
        for k, one in enumerate(associations)
        for other in associations[:k]
    )


def _given(part: _Part, radius: float) -> FrameAssociation:
    """The association as the solution takes it, with its external pairs."""
    ra, dec, mag, error = (np.asarray(part.catalog[c], float) for c in ("ra", "dec", "mag", "error_mas"))
    external, sources = None, part.external
    if sources is not None:
        found = measure_solution(
            ra, dec, sources.ra, sources.dec, search_radius_arcsec=radius, footprint=part.association.footprint,
            error_mas=error, ref_error_mas=sources.error_mas, magnitude=mag,
        )  # fmt: skip
        if isinstance(found, Solution):
            i, j = found.index, found.ref_index
            external = ExternalMatches(ra[i], dec[i], sources.ra[j], sources.dec[j], sources.error_mas[j], error[i])
    return FrameAssociation(part.association.name, ra, dec, part.association.footprint, error, mag, external)


def _settle_all(home: Home, parts: Sequence[_Part], solution: FrameSolution | None, log: Log) -> dict[str, Outcome]:
    """Move what is not where the solution wants it; first those that carry the reference: the others lean on them."""
    outcomes: dict[str, Outcome] = {}
    for part in sorted(parts, key=lambda p: (not carries(p.stored), p.association.name)):
        name = part.association.name
        why = solution.of(name).excluded if solution is not None else None
        if why is not None or any(a["attempt"] == "ties" for a in part.stored.attempts):
            outcomes[name] = _say_of_ties(home, part, why, log)
        if why is not None:
            continue
        step = _step(part, _wanted(part, solution))
        reference = part.external
        if not carries(part.stored):
            if solution is None or not _is_tied(solution, name):
                continue
            neighbours = [p.association for p in parts if p.association.name != name]
            reference = _neighbours_sources(home, neighbours, part.association)
        if reference is None or (step is None and _judged_by(part.stored, reference)):
            continue
        outcomes[name] = _move(home, part, step, reference, solution, log)
    return outcomes


def _say_of_ties(home: Home, part: _Part, why: str | None, log: Log) -> Outcome:
    """Keep with the result that its overlaps contradict all others, or that they no longer do, and judge it again.

    Either it is wrong by more than its errors, or they are: it is held back.
    """
    stored, association = part.stored, part.association
    attempts = [a for a in stored.attempts if a["attempt"] != "ties"]
    if why is not None:
        row = {"attempt": "ties", "catalog": "neighbours", "origin": "", "n_sources": None, "used": False}
        attempts.append(row | {"outcome": why})
    verdict = judged(home, association, stored.result, stored.measurement, attempts)
    changed = stored._replace(attempts=attempts, verdict=verdict)
    if attempts != stored.attempts or verdict != stored.verdict:
        home.database.put_attempts(association.name, attempts, stored.second_fingerprint)
        settle_verdict(home, association, changed, verdict)
        log(f"{association.name}: {verdict.status} {verdict.cause} (field's frame)")
    return outcome_of(association, changed)


def _is_tied(solution: FrameSolution, name: str) -> bool:
    member = solution.of(name)
    anchored = next(c for c in solution.components if c.number == member.component).cause is None
    return member.ties > 0 and member.excluded is None and anchored


def _wanted(part: _Part, solution: FrameSolution | None) -> SkyCorrection | None:
    """Where the solution wants an association, from the engine's frame; None: where the engine left it."""
    if solution is None or not _is_tied(solution, part.association.name):
        return None
    return solution.of(part.association.name).correction


def _step(part: _Part, wanted: SkyCorrection | None) -> SkyCorrection | None:
    """What is left to be done; None where it is nothing."""
    step = wanted
    if part.moved is not None:
        back = part.moved.inverse()
        step = back if wanted is None else back.compose(wanted)
    if step is None:
        return None
    turn = abs(np.radians(step.rotation_deg)) * _CORNER_ARCSEC * 1000
    return step if np.hypot(step.east_mas, step.north_mas) + turn > _SMALLEST_MOVE_MAS else None


def _judged_by(stored: StoredReduction, reference: ReferenceSources | None) -> bool:
    """Whether the stored measurement is against these sources: an external catalogue, or these very neighbours."""
    if reference is None or reference.kind != "own":
        return True
    return stored.attempts[-1].get("attempt") == "frame" and sources_digest(reference) in stored.attempts[-1]["origin"]


def _neighbours_sources(home: Home, neighbours: Sequence[Association], around: Association) -> ReferenceSources | None:
    """Sources of the accepted associations about one that the external catalogues could not align."""
    own = as_reference(own_sources(home, neighbours), neighbours)
    found = own.around(around.footprint, home.survey.reference.search_radius_arcsec + 10.0)
    return found if len(found) else None


def _move(
    home: Home,
    part: _Part,
    step: SkyCorrection | None,
    reference: ReferenceSources | None,
    solution: FrameSolution | None,
    log: Log,
) -> Outcome:
    """Move the products, measure and judge them where they lie now, and store all of it."""
    association, stored = part.association, part.stored
    name, key = association.name, association_folder(association.name)
    folder = staging(home, key)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(home.storage.path(key), folder)
        result = stored.result if step is None else move_products(folder, stored.result, step)
        measurement, pairs = home.measure_alignment(
            name,
            {e.dataset: folder / e.filename for e in result.exposures},
            reference,
            None,
            {e.dataset: e.pointing for e in result.exposures},
        )
        verdict = judged(home, association, result, measurement, ())
        shift = "" if step is None else f"moved {step.east_mas:+.1f}, {step.north_mas:+.1f} mas"
        row = {
            "attempt": "frame",
            "catalog": reference.name if reference else "none",
            "origin": f"{'ties to overlapping associations' if solution else 'no tie left'} {_digest(reference)}"[:160],
            "n_sources": len(reference) if reference else 0,
            "used": verdict.accepted,
            "outcome": "; ".join(t for t in (shift, verdict.cause or "accepted") if t),
        }
        attempts = [*(a for a in stored.attempts if a["attempt"] not in ("frame", "ties")), row]
        kept = stored._replace(result=result, verdict=verdict, attempts=attempts, measurement=measurement)
        provenance = dict(home.database.products(name)[0]["provenance"])
        provenance["field_frame"] = asdict(solution.of(name).correction) if solution else {}
        provenance["checks"] = {**provenance.get("checks", {}), "verdict": verdict.status, "cause": verdict.cause}
        store(home, association, folder, kept, pairs, provenance)
        log(f"{name}: {row['outcome']} (field's frame)")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome_of(association, kept)


def frame_metadata(home: Home, field: str) -> dict[str, Any]:
    """What a person wants to see of the field's frame: ties before and after, errors, what was refused and why."""
    known = home.database.frame(field)
    if known is None:
        return {}
    solution = known[1]
    ties = [
        {
            "first": t.first, "second": t.second, "matches": t.n,
            "before [mas]": f"{t.before_mas[0]:+.1f}, {t.before_mas[1]:+.1f}",
            "after [mas]": f"{t.after_mas[0]:+.2f}, {t.after_mas[1]:+.2f}",
            "error [mas]": f"{t.error_mas[0]:.2f}, {t.error_mas[1]:.2f}",
        }
        for t in solution.ties
    ]  # fmt: skip
    refused = [{"first": r.first, "second": r.second, "matches": 0, "cause": r.text} for r in solution.refused]
    errors = [c.error for c in solution.components if c.error is not None]
    metadata: dict[str, Any] = {"ties of the field's frame": as_table([*ties, *refused])}
    if errors:
        metadata["error of the field's frame [mas]"] = round(max(max(e.east_mas, e.north_mas) for e in errors), 2)
    return metadata
