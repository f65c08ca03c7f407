"""One association from its exposures to a stored, judged result; called by the mapped steps of two assets.

Put here what a reduction step does besides the engine's own work: fingerprint, reuse, attempts, storing. Keep out
Dagster.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from panoramic.alignment import Verdict, judge, overruled
from panoramic.associations import Association
from panoramic.errors import (
    ArchiveAccessError,
    CalibrationError,
    ExposureFileError,
    InputError,
    NoUsableExposureError,
    ReferenceCatalogUnavailableError,
    ServiceError,
)
from panoramic.footprints import covered_fraction, inside
from panoramic.observations import Exposure
from panoramic.plots import plot_alignment, plot_image
from panoramic.provenance import canonical, digest_of, record, sha256_of
from panoramic.reduction.base import Degradation, ExposureInput, ReductionResult, ReferenceSources
from panoramic.reference import sources_digest
from resources.archive import FileRequest
from resources.database import ALIGNMENT_FAILED, DONE, NO_DATA, RUNNING
from resources.home import Home

STAGE_VERSION = "2"
JULIAN_YEAR_MJD = 51544.5

Log = Callable[[str], None]


@dataclass(frozen=True)
class OwnReference:
    """The survey's own sources that an association may be aligned to, and the footprints they come from."""

    ra: np.ndarray
    dec: np.ndarray
    mag: np.ndarray
    error_mas: np.ndarray
    footprints: tuple[np.ndarray, ...]

    @classmethod
    def empty(cls) -> OwnReference:
        """No source at all."""
        nothing = np.empty(0)
        return cls(nothing, nothing, nothing, nothing, ())


@dataclass
class Candidates:
    """Reference catalogues to try, in order, and a line on each one that was looked at.

    ``covering`` says that some catalogue has sources there, be they too few.
    """

    usable: list[ReferenceSources] = field(default_factory=list)
    covering: bool = False
    notes: list[str] = field(default_factory=list)
    degradations: list[Degradation] = field(default_factory=list)

    @property
    def why_none(self) -> str:
        """Why no catalogue could be used; empty where one can."""
        return "" if self.usable else "; ".join(self.notes) or "no catalogue covers it"


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
    absolute_n: int = 0
    absolute_error_mas: float | None = None
    worst_rms_px: float | None = None
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_mib: float = 0.0


def association_folder(name: str) -> str:
    """Where an association's products lie in the storage: below the field that named it, also where it moved since."""
    return f"{name.split('_', 1)[0]}/associations/{name}"


def reference_candidates(home: Home, association: Association, own: OwnReference, minimum_cover: float) -> Candidates:
    """The catalogues that can align an association: our own where it covers enough, then the external ones.

    A catalogue with fewer sources in the footprint than the gate asks for could never pass: it is noted and left out.
    """
    survey, found = home.survey, Candidates()
    outline = association.footprint
    margin = survey.reference.search_radius_arcsec + 10.0
    minimum = survey.limits.absolute_n
    if own.footprints:
        cover = covered_fraction(outline, own.footprints)
        sources = _own_sources(own, outline, margin)
        within = int(inside(own.ra, own.dec, outline).sum())  # those beside it tie nothing
        if cover >= minimum_cover and within >= minimum:
            found.usable.append(sources)
            found.notes.append(f"own: {len(sources)} sources, covers {cover:.0%}")
        else:
            why = (
                f"our own reference covers {cover:.0%} with {within} sources, "
                f"less than {minimum_cover:.0%} or {minimum}"
            )
            found.notes.append(why)
            found.degradations.append(Degradation(association.name, "own_reference", why))
    epoch = 2000.0 + (association.first.t_min - JULIAN_YEAR_MJD) / 365.25
    for name in survey.reference.catalogs:
        try:
            external = home.reference_catalogs.load(name, outline, epoch, margin)
        except (ReferenceCatalogUnavailableError, InputError) as error:
            found.notes.append(f"{name}: {error}")
            found.degradations.append(Degradation(association.name, f"reference_catalog_{name}", str(error)))
            continue
        if external is None:
            found.notes.append(f"{name}: not available here")
            continue
        found.covering = True
        if len(external) < minimum:
            found.notes.append(f"{name}: {len(external)} sources, fewer than {minimum}")
        else:
            found.usable.append(external)
            found.notes.append(f"{name}: {len(external)} sources")
    found.covering |= bool(found.usable)
    return found


def _own_sources(own: OwnReference, outline: np.ndarray, margin_arcsec: float) -> ReferenceSources:
    keep = inside(own.ra, own.dec, outline, margin_arcsec)
    return ReferenceSources("own", own.ra[keep], own.dec[keep], own.mag[keep], own.error_mas[keep], kind="own")


def reduce_association(
    home: Home, association: Association, own: OwnReference, minimum_cover: float, log: Log, verify: bool = False
) -> Outcome:
    """Reduce an association, or find that the stored result still stands; judge and store it.

    Catalogues are tried in order until the verdict accepts; a result that fails for another reason than the absolute
    alignment is not tried again.
    """
    survey, name = home.survey, association.name
    candidates = reference_candidates(home, association, own, minimum_cover)
    engine = home.engine(association)
    stored = home.database.reduction(name)
    try:
        inputs = fetch(home, association.exposures, log)
        references = calibration_references(home, list(inputs.values()))
    except (ServiceError, ExposureFileError, CalibrationError) as error:
        if stored is None or not made_of_these(home, association) or not products_stand(home, name, verify):
            raise
        log(f"{name}: {error}; the result of these very data stands")
        return _reuse(home, association, stored, candidates, log)
    _, parameters = survey.reduction.settings_for(name, association.field, association.first.element)
    fingerprint = digest_of(
        {
            "stage": f"reduction {STAGE_VERSION}",
            "engine": [engine.name, engine.version, parameters, list(survey.services_off)],
            "exposures": {e.dataset: e.checksum or e.file_id for e in association.exposures},
            "calibration": sorted(references.items()),
            "templates": templates(home, association.detector),
            "references": [sources_digest(s) for s in candidates.usable],
        }
    )
    if stored and stored[0] == fingerprint and products_stand(home, name, verify):
        return _reuse(home, association, stored, candidates, log)
    home.database.set_status(name, RUNNING)
    home.storage.require_room(150_000_000 * (2 + len(inputs)))
    exposures = tuple(ExposureInput(dataset, path) for dataset, path in inputs.items())
    folder = staging(home, association_folder(association.name))
    attempts: list[dict[str, Any]] = []
    try:
        tries: list[ReferenceSources | None] = [*candidates.usable] or [None]
        for reference in tries:
            shutil.rmtree(folder, ignore_errors=True)
            log(
                f"{name}: {engine.name} on {len(exposures)} exposures, "
                f"reference {reference.name if reference else 'none'}"
            )
            result = engine.reduce(name, exposures, reference, (), folder)
            verdict = judge(
                result,
                association.detector,
                survey.limits,
                survey.reference.absolute_alignment,
                candidates.covering,
                candidates.why_none,
            )
            verdict = overruled(verdict, home.database.judgement(association))
            attempts.append(
                {"reference": reference.name if reference else "", "status": verdict.status, "cause": verdict.cause}
            )
            log(f"{name}: {verdict.status} {verdict.cause}")
            if verdict.accepted or any(c.passed is False for c in verdict.of("relative_alignment")):
                break
        if len(attempts) > 1:
            first = f"{attempts[0]['reference']}: {attempts[0]['cause']}"
            candidates.degradations.append(Degradation(name, "reference_catalog", first))
        result = dataclasses.replace(result, degradations=(*result.degradations, *candidates.degradations))
        _draw(folder, result, verdict, reference, candidates.notes)
        provenance = record(
            survey=survey.name,
            survey_digest=survey.digest,
            fingerprint=fingerprint,
            inputs={e.dataset: e.checksum for e in association.exposures},
            crds_context=home.calibration.setup().crds_context,
            references=references,
            reference_catalog=f"{reference.name} {sources_digest(reference)}" if reference else "",
            checks={"verdict": verdict.status, "cause": verdict.cause},
        )
        products = publish(home, folder, association_folder(association.name), fingerprint, provenance)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    home.database.put_reduction(association, fingerprint, result, verdict, attempts, products)
    return _outcome(association, result, verdict)


def staging(home: Home, key: str) -> Path:
    """The folder beside a product's place in which it is made: a killed run's leftover is found there and removed."""
    place = home.storage.path(key)
    return place.with_name(f".staged-{place.name}")


def fetch(home: Home, exposures: Sequence[Exposure], log: Log) -> dict[str, Path]:
    """The exposures' verified rate files by dataset, several at once where they must be fetched."""

    def tell(name: str, so_far: int, total: int | None) -> None:
        log(f"{name}: {so_far / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{name}: {so_far / 1e6:.0f} MB")

    paths = home.archive.fetch_many([file_request(e) for e in exposures], tell)
    return {e.dataset: paths[e.rate_filename] for e in exposures}


def file_request(exposure: Exposure) -> FileRequest:
    """What is asked of the archive; size and checksum are its row's where they belong to that very file."""
    own_row = exposure.filename == exposure.rate_filename
    return FileRequest(
        exposure.rate_filename,
        exposure.size or None if own_row else None,
        exposure.checksum or None if own_row else None,
        exposure.cal_ver or None,
        exposure.file_id or None,
    )


def calibration_references(home: Home, paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each reference file that CRDS selects for any of the exposures, by ``type name``."""
    from astropy.io import fits

    headers = [dict(fits.getheader(path)) for path in paths]
    return {
        f"{kind} {file.name}": file.sha256
        for selected in home.calibration.selected_references_of(headers)
        for kind, file in sorted(selected.items())
    }


def made_of_these(home: Home, association: Association) -> bool:
    """Whether the stored result was made from the very data that the association has now."""
    made_of = [p["provenance"]["inputs"] for p in home.database.products(association.name)]
    return bool(made_of) and made_of[0] == {e.dataset: e.checksum for e in association.exposures}


def templates(home: Home, detector: str) -> list[tuple[str, int]]:
    """Name and size of the engine's own templates for a detector: supplying one makes results stale."""
    folder = home.archive.grizli_folder
    if folder is None:
        return []
    return sorted((p.name, p.stat().st_size) for p in folder.rglob("*.fits*") if detector.lower() in p.name.lower())


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


def publish(home: Home, folder: Path, key: str, fingerprint: str, provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Move a finished folder into its place; returns the rows of its products."""
    (folder / "provenance.json").write_text(canonical(provenance) + "\n")
    digests = {p.name: sha256_of(p) for p in sorted(folder.iterdir())}
    home.storage.publish_folder(folder, key)
    rows = []
    for filename, digest in digests.items():
        status = home.storage.path(f"{key}/{filename}").stat()
        rows.append(
            {
                "path": f"{key}/{filename}",
                "kind": _kind(filename),
                "checksum": digest,
                "size": status.st_size,
                "mtime_ns": str(status.st_mtime_ns),
                "fingerprint": fingerprint,
                "provenance": provenance,
            }
        )
    return rows


def products_stand(home: Home, owner: str, verify: bool = False) -> bool:
    """Whether every product of an association or mosaic is there as it was stored.

    Size and mtime are compared; with ``verify`` (or where only the mtime differs) all bytes are read.
    """
    rows = home.database.products(owner)
    for row in rows:
        path = home.storage.path(row["path"])
        if not path.is_file() or path.stat().st_size != row["size"]:
            return False
        if (verify or str(path.stat().st_mtime_ns) != row["mtime_ns"]) and sha256_of(path) != row["checksum"]:
            return False
    return bool(rows)


def _kind(filename: str) -> str:
    for ending, kind in (
        ("_rate.fits", "calibrated exposure"), ("_sci.fits", "science image"), ("_wht.fits", "weight map"),
        ("_exp.fits", "exposure-time map"), (".cat.ecsv", "catalogue"), ("_cat.ecsv", "catalogue"),
        (".log", "log"), (".png", "picture"), (".json", "provenance"),
    ):  # fmt: skip
        if filename.endswith(ending):
            return kind
    return "other"


def _reuse(home: Home, association: Association, stored: tuple[Any, ...], candidates: Candidates, log: Log) -> Outcome:
    """The stored result stands; only the verdict is made again, because limits may have changed."""
    _, result, old, _ = stored
    survey = home.survey
    rule = survey.reference.absolute_alignment
    verdict = judge(result, association.detector, survey.limits, rule, candidates.covering, candidates.why_none)
    verdict = overruled(verdict, home.database.judgement(association))
    if verdict != old:
        home.database.put_verdict(verdict)
    else:
        home.database.set_status(association.name, DONE if verdict.accepted else ALIGNMENT_FAILED, verdict.cause)
    log(f"{association.name}: nothing changed, result of an earlier run stands ({verdict.status})")
    outcome = _outcome(association, result, verdict)
    outcome.reused, outcome.cpu_seconds, outcome.wall_seconds = True, 0.0, 0.0
    return outcome


def _outcome(association: Association, result: ReductionResult, verdict: Verdict) -> Outcome:
    fit = result.absolute
    rms = [max(f.rms_x, f.rms_y) for f in result.relative if f.role == "matched"]
    return Outcome(
        association=association.name,
        filter_key=association.filter_key,
        status=verdict.status,
        cause=verdict.cause,
        near=[str(c) for c in verdict.near],
        n_sources=result.n_sources,
        n_exposures=len(result.exposures),
        reference=fit.reference if fit else "",
        absolute_n=fit.n if fit else 0,
        absolute_error_mas=fit.rms * fit.pixel_scale_mas / fit.n**0.5 if fit and fit.n else None,
        worst_rms_px=max(rms) if rms else None,
        cpu_seconds=result.cpu_seconds,
        wall_seconds=result.wall_seconds,
        peak_mib=result.peak_mib,
    )


def _draw(
    folder: Path, result: ReductionResult, verdict: Verdict, reference: ReferenceSources | None, notes: Sequence[str]
) -> None:
    """Add the alignment plot and a small picture of the image to the products."""
    sources = np.empty((0, 2))
    if result.catalog:
        table = Table.read(folder / result.catalog)
        sources = np.column_stack([table["ra"], table["dec"]])
    against = np.column_stack([reference.ra, reference.dec]) if reference else np.empty((0, 2))
    name = reference.name if reference else "no reference"
    plot_alignment(folder / f"{result.association}_alignment.png", verdict, sources, against, name, notes)
    if result.image:
        from astropy.io import fits

        image, weight = fits.getdata(folder / result.image), None
        if result.weight:
            weight = fits.getdata(folder / result.weight)
        plot_image(folder / f"{result.association}_image.png", image, result.association, weight)
