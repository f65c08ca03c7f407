"""Reduces one association; the program of the child process that `engine.py` starts.

Put here the order of the steps over all exposures and what is recorded. Keep out the steps. Called as
``python -m panoramic.reduction.native.child job.json``; the outcome, good or bad, is a JSON file.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoramic.alignment_solution import Solution
from panoramic.errors import NoUsableExposureError
from panoramic.exposure_sources import Detections, ExposureSources
from panoramic.pointing import pointing_at, rotation_of
from panoramic.provenance import sha256_of
from panoramic.reduction.base import (
    CalibratedExposure,
    Degradation,
    Pointing,
    ReductionResult,
    RelativeFit,
)
from panoramic.reduction.childprocess import die_with_parent
from panoramic.reduction.native.absolute import AbsoluteSolution, align_to_reference
from panoramic.reduction.native.catalogue import make_catalogue, write_catalogue
from panoramic.reduction.native.exposure import ReducedExposure, reduce_exposure, wisp_template
from panoramic.reduction.native.geometry import Geometry
from panoramic.reduction.native.image import Grid, Part, drizzle, frame_map
from panoramic.reduction.native.job import Job
from panoramic.reduction.native.outliers import DitheredImage, find_outliers
from panoramic.reduction.native.persistence import DECAY_S, LASTING
from panoramic.reduction.native.products import WrittenExposure, finish_exposure, write_exposure, write_image
from panoramic.reduction.native.references import References, load_references
from panoramic.reduction.native.relative import RelativeSolution, align_exposures, moved
from panoramic.reduction.native.sources import find_sources, place_sources
from panoramic.reduction.rate_files import SHAPE, RateHeader
from panoramic.verification import without_fixed

Array = NDArray[np.float64]

_SECONDS_PER_DAY = 86400.0
_DIGITS_MAS, _DIGITS_DEG = 4, 8


@dataclass(eq=False)
class _Member:
    """An exposure on its way: what later steps need of it, without its planes."""

    header: RateHeader
    references: References
    archive: Geometry
    place: tuple[float, float]
    start: Array
    found: Detections
    written: WrittenExposure
    shot: float
    rotation: Array

    @property
    def pointing(self) -> Pointing:
        """The correction of the archive's pointing, at the detector's reference point.

        Rounded far below its error: the last bits of a library's sums hang on where its arrays lie in memory.
        """
        exact = pointing_at(self.rotation, *self.place)
        east, north = (round(v, _DIGITS_MAS) for v in exact.shift_mas)
        return replace(exact, shift_mas=(east, north), roll_deg=round(exact.roll_deg, _DIGITS_DEG))

    @property
    def geometry(self) -> Geometry:
        """As it is known by now."""
        return self.archive.corrected(self.pointing)


class Association:
    """The steps over all exposures, in order; `run` gives the result."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.notes: list[Degradation] = []
        self.excluded: dict[str, str] = {}
        self.failures: list[str] = []

    def run(self) -> ReductionResult:
        """Reduce, align, compare, combine; all products are written."""
        job = self.job
        job.products.mkdir()
        members = self._reduce()
        if not members:
            causes = "; ".join(f"{name}: {why}" for name, why in self.excluded.items())
            raise NoUsableExposureError(f"{job.association}: no exposure can be used ({causes})")
        relative, members, sources = self._tie(members)
        scale = float(np.sqrt(members[0].references.pixar_a2)) * 1000
        absolute = self._align(members, sources, relative, scale)
        grid = Grid.around([m.geometry for m in members], scale)
        outliers = self._outliers(members, grid, relative)
        for member in members:
            finish_exposure(
                member.written.path, member.geometry, member.pointing, outliers.pop(member.header.dataset),
                with_gwcs=job.parameters.gwcs,
            )  # fmt: skip
        names, n_sources = self._combine(members, grid)
        self._services()
        return ReductionResult(
            association=job.association,
            engine=job.provenance["ENGINE"],
            engine_version=job.provenance["ENGVER"],
            exposures=tuple(_calibrated(m) for m in sorted(members, key=lambda m: m.header.dataset)),
            relative=relative.fits,
            absolute=absolute.fit,
            image=names[0],
            weight=names[1],
            catalog=names[2],
            n_sources=n_sources,
            log=f"{job.association}.log",
            pixel_scale_mas=scale,
            degradations=tuple(self.notes),
            excluded=self.excluded,
            failure="; ".join(self.failures) or None,
        )

    # --- exposure by exposure -----------------------------------------------------------------

    def _reduce(self) -> list[_Member]:
        """The detector's steps; what each leaves is written at once."""
        job = self.job
        references = load_references(job.headers, job.calibration, job.cache)
        template, why = wisp_template(job.calibration.grizli_path, job.headers[0])
        earlier: list[tuple[NDArray[np.bool_], float]] = []
        members = []
        for header, own in zip(job.headers, references, strict=True):
            name = header.dataset
            if why and job.parameters.wisps:
                self._note(name, "wisp_template", f"scattered light (wisps) was not subtracted: {why}")
            glowing = (header.start - DECAY_S * LASTING / _SECONDS_PER_DAY, header.start)
            earlier = [(mask, end) for mask, end in earlier if end >= glowing[0]]
            raw = _science_header(header.path)
            archive = Geometry.from_header(raw, own.distortion, own.filter_offset)
            try:
                exposure = reduce_exposure(header, own, archive, job.parameters, earlier=earlier, template=template)
            except NoUsableExposureError as error:
                self.excluded[name] = str(error)
                say(f"{name}: left out: {error}")
                continue
            self.notes += exposure.degradations
            earlier.append((exposure.saturated, header.end))
            members.append(self._member(exposure, own, archive, (float(raw["RA_REF"]), float(raw["DEC_REF"]))))
            del exposure
        return members

    def _member(
        self, exposure: ReducedExposure, references: References, archive: Geometry, place: tuple[float, float]
    ) -> _Member:
        job, header = self.job, exposure.header
        prior = next((p for p in job.priors if p.dataset == header.dataset), None)
        start = np.eye(3) if prior is None else rotation_of(Pointing(*place, prior.shift_mas, prior.roll_deg))
        science, weight = exposure.planes["SCI"], exposure.planes["WHT"]
        found = find_sources(science, weight)
        path = job.products / f"{header.dataset}_rate.fits"
        written = write_exposure(exposure, references, archive, path, job.provenance)
        wisp = "" if exposure.wisp is None else f", wisps {exposure.wisp.amplitude:.4g} +- {exposure.wisp.error:.2g}"
        rms = exposure.stripes.rms if exposure.stripes else 0.0
        say(
            f"{header.dataset}: sky {exposure.background.level:.5g} MJy/sr, stripes {rms:.3g} DN/s rms{wisp}, "
            f"{np.mean(weight > 0):.1%} of its pixels usable, {len(found.x)} sources"
        )
        return _Member(header, references, archive, place, start, found, written, exposure.shot, start)

    # --- alignment -------------------------------------------------------------------------------

    def _tie(self, members: list[_Member]) -> tuple[RelativeSolution, list[_Member], list[ExposureSources]]:
        """Tie the exposures to each other; those that can't be are left out, unless none can."""
        job = self.job
        placed = without_fixed(
            [
                place_sources(m.found, m.header.dataset, m.archive.corrected(m.pointing), m.references, SHAPE)
                for m in members
            ]
        )
        trusted = frozenset(p.dataset for p in job.priors)
        solution = align_exposures(
            placed, search_radius_arcsec=job.parameters.relative_search_arcsec,
            largest_rotation_deg=job.parameters.largest_rotation_deg, trusted=trusted,
        )  # fmt: skip
        for fit in solution.fits:
            say(_relative_line(fit, solution.rejected.get(fit.dataset, "")))
        tied = [m for m in members if m.header.dataset not in solution.rejected]
        if solution.rejected:
            causes = "; ".join(f"{name} ({why})" for name, why in sorted(solution.rejected.items()))
            self.failures.append(f"not aligned with the other exposures: {causes}")
        if not tied:
            return solution, members, placed
        for member in members:
            why = solution.rejected.get(member.header.dataset)
            if why:
                self.excluded[member.header.dataset] = f"not aligned with the other exposures: {why}"
                member.written.path.unlink()
            member.rotation = solution.rotations[member.header.dataset] @ member.start
        sources = [moved(s, solution.rotations[s.dataset]) for s in placed if s.dataset not in solution.rejected]
        return solution, tied, sources

    def _align(
        self, members: list[_Member], sources: list[ExposureSources], relative: RelativeSolution, scale: float
    ) -> AbsoluteSolution:
        job = self.job
        tied = {m.header.dataset for m in members}
        if relative.rejected and len(relative.rejected) == len(members):
            return AbsoluteSolution(np.eye(3))  # it has no one place
        solution = align_to_reference(
            sources, job.reference, pixel_scale_mas=scale, search_radius_arcsec=job.parameters.search_radius_arcsec,
            largest_rotation_deg=job.parameters.largest_rotation_deg,
            priors=[p for p in job.priors if p.dataset in tied],
        )  # fmt: skip
        if solution.failure:
            self.failures.append(solution.failure)
            say(solution.failure)
        if solution.solution is not None and job.reference is not None:
            say(_absolute_line(solution.solution, job.reference.name))
        for member in members:
            member.rotation = solution.rotation @ member.rotation
        return solution

    # --- all exposures together ------------------------------------------------------------------

    def _outliers(
        self, members: list[_Member], grid: Grid, relative: RelativeSolution
    ) -> dict[str, NDArray[np.uint32]]:
        """Flat indices of each exposure's outliers."""
        job, nothing = self.job, np.empty(0, np.uint32)
        none = {m.header.dataset: nothing for m in members}
        if not job.parameters.outliers:
            return none
        if len(members) < 2:
            self._note(job.association, "outliers", "one exposure only: cosmic rays and bad pixels can't be told")
            return none
        if relative.rejected and len(relative.rejected) == len(members):
            self._note(job.association, "outliers", "exposures that are not aligned can't be compared")
            return none
        exposures = [
            DitheredImage(m.written.science, m.written.weight, frame_map(m.geometry, grid), m.shot)  # type: ignore[arg-type]
            for m in members
        ]
        found = find_outliers(exposures, grid.shape)
        for member, one in zip(members, found, strict=True):
            say(f"{member.header.dataset}: {one.pixels.size} outliers, {one.judged:.1%} of its pixels were compared")
        return {m.header.dataset: one.pixels for m, one in zip(members, found, strict=True)}

    def _combine(self, members: list[_Member], grid: Grid) -> tuple[tuple[str, str, str], int]:
        """The association's image, weight and catalogue: their names, and the number of sources."""
        job, first = self.job, members[0].header
        parts = [Part(m.geometry, m.header.exptime, m.written.science, m.written.weight) for m in members]
        science, weight = drizzle(parts, grid, job.parameters.pixfrac)
        names = (f"{job.association}_drz_sci.fits", f"{job.association}_drz_wht.fits", f"{job.association}.cat.ecsv")
        keywords = {
            "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": first.detector, "FILTER": first.filter,
            "PUPIL": first.pupil, "EXPTIME": sum(m.header.exptime for m in members), "NDRIZIM": len(members),
            "PIXFRAC": job.parameters.pixfrac, "KERNEL": "square", "PIXAR_SR": members[0].references.pixar_sr,
            "EXPSTART": min(m.header.start for m in members), "EXPEND": max(m.header.end for m in members),
        }  # fmt: skip
        target = job.products
        write_image(science, weight, grid, (target / names[0], target / names[1]), keywords, job.provenance)
        table = make_catalogue(science, weight, grid, detection_sigma=job.parameters.detection_sigma)
        write_catalogue(table, target / names[2])
        say(f"{len(table)} sources; purity over S/N {table.meta['purity_snr']:g} is {table.meta['purity']:.3f}")
        return names, len(table)

    def _services(self) -> None:
        """What only the archive knows and this engine does not ask."""
        self._note(
            self.job.association,
            "persistence_history",
            "pixels saturated in earlier exposures of other associations and programs were not looked up",
        )

    def _note(self, product: str, what: str, why: str) -> None:
        self.notes.append(Degradation(product, what, why, what in self.job.services_off))


def _calibrated(member: _Member) -> CalibratedExposure:
    path = member.written.path
    return CalibratedExposure(member.header.dataset, path.name, sha256_of(path), path.stat().st_size, member.pointing)


def _science_header(path: Path) -> Any:
    from astropy.io import fits

    return fits.getheader(path, "SCI")


def _relative_line(fit: RelativeFit, why: str) -> str:
    if fit.role != "matched":
        return f"{fit.dataset}: {fit.role} {why}".strip()
    return (
        f"{fit.dataset}: tied to the others by {fit.n} sources, {fit.dx:.4f} {fit.dy:.4f} px, "
        f"{fit.rotation_deg:.5f} deg, errors {fit.rms_x:.4f} {fit.rms_y:.4f} px"
    )


def _absolute_line(solution: Solution, reference: str) -> str:
    return (
        f"aligned to {reference}: {solution.n} matches, {-solution.dra:.2f} mas east, {-solution.ddec:.2f} mas north "
        f"(errors {solution.err_ra:.2f}, {solution.err_dec:.2f}), {-solution.rotation_deg:.5f} deg; "
        f"scatter {solution.scatter_ra:.1f}, {solution.scatter_dec:.1f} mas; expected chance solutions "
        f"{solution.chance:.1g}, contrast {solution.contrast:.2f}"
        f"{', with what the visit says' if solution.with_prior else ''}"
    )


def say(line: str) -> None:
    """A line of the log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def peak_mib() -> float | None:
    """Largest resident size of this program, MiB; None where the system doesn't tell.

    What a parent is told on Linux is no less than its own size when it started the child.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else None


def main(job_file: str) -> int:
    """Do the job; every way to end is written down."""
    raw = json.loads(Path(job_file).read_text())
    die_with_parent(raw["parent_pid"])
    outcome: dict[str, Any]
    try:
        outcome = {"result": Association(Job.from_json(raw)).run().to_json()}
    except BaseException as error:  # noqa: BLE001 the one outermost place; crds may raise SystemExit
        outcome = {
            "error": {
                "type": type(error).__name__,
                "message": str(error),
                "errno": getattr(error, "errno", None),
                "path": str(getattr(error, "path", "")),
                "reason": getattr(error, "reason", ""),
            }
        }
        traceback.print_exc()
    outcome["peak_mib"] = peak_mib()
    target = Path(raw["outcome"])
    beside = target.with_suffix(".part")
    beside.write_text(json.dumps(outcome))
    os.replace(beside, target)
    return 1 if "error" in outcome else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
