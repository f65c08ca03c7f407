"""Drives grizli's own preprocessing of an association, in a child process and a work folder of its own.

Put here what happens around the child and what its end means. Keep out grizli itself: nothing here imports it, so that
a leak, a `SystemExit`, a changed folder or a kill stays over there.

Modules beside it: ``grizli_job`` (what the child is given), ``grizli_child`` (runs in it), ``grizli_products`` (files
of the contract), ``grizli_logs`` and ``grizli_patterns`` (what it printed), ``grizli_outputs`` (what products lack),
``grizli_parameters`` (what a survey file may say).

Facts about grizli's numbers that a reader of the result needs:

- `RelativeFit` shifts are from exposure to anchor; its RMS is the log's: deviation of the matches over the root of
  their number. With iterated alignment (not ``lean``) all exposures are matched to their own mosaic: no anchor.
- `AbsoluteFit.rms` is per axis; ``reported_rms`` is the log's number, a median absolute deviation of radial distances.
- A pointing prior moves the working copy's pointing before grizli sees it; grizli doesn't know its error, and searches
  as far as ever. Exposures without one keep their header's pointing.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from panoramic.errors import (
    CalibrationError,
    DiskFullError,
    EngineFailedError,
    EngineKilledError,
    InputError,
    PanoramicError,
    StorageError,
)
from panoramic.provenance import sha256_of
from panoramic.reduction.base import (
    AbsoluteFit,
    CalibratedExposure,
    CalibrationSetup,
    Degradation,
    ExposureInput,
    Pointing,
    PointingPrior,
    ReductionResult,
    ReferenceSources,
    RelativeFit,
)
from panoramic.reduction.childprocess import ChildEnd, run_child
from panoramic.reduction.grizli_job import GrizliJob
from panoramic.reduction.grizli_logs import (
    absolute_fit,
    alignment_failure,
    find_degradations,
    last_exception,
    last_meaningful_lines,
    parse_shifts_log,
    parse_wcs_log,
)
from panoramic.reduction.grizli_outputs import merge_degradations, output_degradations, reference_degradations
from panoramic.reduction.grizli_parameters import GrizliParameters, validate_parameters
from panoramic.reduction.rate_files import check_calibration, read_association
from panoramic.reduction.workfolder import WorkFolder, publish, remove_orphans, storage_error

__all__ = ["GrizliParameters", "GrizliReduction", "remove_orphans", "validate_parameters"]

_RERUN = "# !! First `prep` run failed with `run_tweak_align`"
# as the system says it, and as astropy does before it writes
_NO_FLUX_SCALE = "no flux scale was applied"  # as `grizli_products` says it
_NO_ROOM = re.compile(r"No space left on device|Not enough free space")


class GrizliReduction:
    """The engine ``grizli`` behind the protocol of ``base.py``.

    Parameters
    ----------
    calibration : CRDS cache and context; grizli's configuration folder, which is read and never written.
    work_root : work folders are made and removed here; on one file system with the products if possible.
    parameters : see `GrizliParameters`.
    timeout_s : a reduction that takes longer is killed.
    services_off : names of degradations that are on purpose (``region_mask``, ``persistence_history``, ...); the
        services among them (``grizli_child.SERVICES``) are not asked.
    """

    name = "grizli"

    def __init__(
        self,
        calibration: CalibrationSetup,
        work_root: Path,
        parameters: Mapping[str, Any] = MappingProxyType({}),
        timeout_s: float = 7200.0,
        services_off: tuple[str, ...] = (),
    ) -> None:
        self.calibration = calibration
        self.work_root = Path(work_root).absolute()
        self.parameters = validate_parameters(parameters)
        self.timeout_s = timeout_s
        self.services_off = tuple(services_off)
        try:
            self.version = version("grizli")
        except PackageNotFoundError as error:
            raise InputError("grizli is not installed in this environment") from error
        self.child_command: tuple[str, ...] = (sys.executable, "-m", "panoramic.reduction.grizli_child")

    def reduce(
        self,
        association: str,
        exposures: tuple[ExposureInput, ...],
        reference: ReferenceSources | None,
        pointing_priors: tuple[PointingPrior, ...],
        folder: Path,
    ) -> ReductionResult:
        """Reduce one association; see the protocol.

        Besides the protocol's errors it raises those of bad input (`ExposureFileError` and its kin, `InputError`),
        `CalibrationError` and `StorageError`. The log of a failure is kept as ``{association}.failed.log`` beside
        ``folder``, and named in the error.

        A failed alignment is no error: the result says so in ``failure``, has no absolute fit, and its folder holds
        what there is (at least the log).
        """
        folder = Path(folder).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"{folder} holds something already")
        headers = read_association(association, exposures)
        check_calibration(self.calibration)
        kept_log = folder.parent / f"{association}.failed.log"
        with WorkFolder(self.work_root, association) as work:
            job = GrizliJob(
                folder=work.path,
                association=association,
                headers=tuple(sorted(headers, key=lambda h: (h.start, h.dataset))),
                reference=reference,
                parameters=self.parameters,
                calibration=self.calibration,
                services_off=self.services_off,
                engine_version=self.version,
                priors=tuple(pointing_priors),
            )
            try:
                job.write()
                end = self._run(job, work.lock_fd)
                result = _Reading(job, end).result()
                publish(job.products, folder)
            except PanoramicError as error:
                if _keep_log(job.log, kept_log):
                    error.args = (f"{error}\nLog: {kept_log}",)
                raise
        kept_log.unlink(missing_ok=True)
        return result

    def _run(self, job: GrizliJob, lock_fd: int) -> ChildEnd:
        """Run the child; raise what a violent end means."""
        command = (*self.child_command, str(job.file))
        try:
            end = run_child(command, job.environment(), job.folder, job.log, self.timeout_s, (lock_fd,))
        except OSError as error:
            raise storage_error("grizli's process can't be started", error) from error
        if end.timed_out:
            raise EngineKilledError(
                f"{job.association}: grizli took longer than the time limit of {self.timeout_s:g} s and was killed "
                f"(peak {end.peak_mib:.0f} MiB)"
            )
        if end.signal is not None:
            hint = "; out of memory?" if end.signal_name == "SIGKILL" else ""
            raise EngineKilledError(
                f"{job.association}: grizli was killed by {end.signal_name}{hint} (its peak was {end.peak_mib:.0f} MiB "
                f"after {end.wall_seconds:.0f} s)"
            )
        return end


class _Reading:
    """Reads what the child left: outcome, logs, products; gives the result or raises its cause.

    Raises
    ------
    EngineFailedError, CalibrationError, DiskFullError
        The child failed, or grizli gave up, and not over alignment.
    """

    def __init__(self, job: GrizliJob, end: ChildEnd) -> None:
        self.job, self.end = job, end
        self.printed = self._read(job.log)
        # some of its worst news grizli only writes down: a second run without alignment, a failed fit
        known = set(self.printed.splitlines())
        written = self._read(job.folder / f"{job.root}.auto_script.log.txt").splitlines()
        self.written = "\n".join(line for line in written if line not in known)
        self.text = f"{self.printed}\n{self.written}"
        self.lines = self.text.splitlines()
        if not job.outcome.exists():
            raise EngineFailedError(
                f"{job.association}: grizli's process ended with code {end.exit_code} and no outcome. "
                f"It said last:\n{last_meaningful_lines(self.printed)}"
            )
        outcome: dict[str, Any] = json.loads(job.outcome.read_text())
        self.references: dict[str, str] = outcome.get("references", {})
        if "error" in outcome:
            raise self._typed(outcome["stage"], outcome["error"])
        self.made: dict[str, Any] = outcome["products"]

    def result(self) -> ReductionResult:
        """Everything, in the contract's words."""
        job, made = self.job, self.made
        relative, relative_failure = self._relative()
        absolute, absolute_failure = self._absolute()
        failures = [f for f in (relative_failure, absolute_failure) if f]
        written: Mapping[str, str] = made["exposures"]
        if not written:
            failures = [self._gave_up()]
        why = failures[0] if failures else "grizli left it out without a word"
        job.products.mkdir(exist_ok=True)
        self._write_log(job.products / job.log.name)
        return ReductionResult(
            association=job.association,
            engine=GrizliReduction.name,
            engine_version=job.engine_version,
            exposures=tuple(self._calibrated(dataset, name) for dataset, name in sorted(written.items())),
            relative=relative,
            absolute=absolute,
            image=made["image"],
            weight=made["weight"],
            catalog=made["catalog"],
            n_sources=made["n_sources"],
            log=job.log.name,
            pixel_scale_mas=made["pixel_scale_mas"],
            degradations=self._degradations(),
            excluded={h.dataset: why for h in job.headers if h.dataset not in written},
            failure="; ".join(failures) or None,
            cpu_seconds=self.end.cpu_seconds,
            wall_seconds=self.end.wall_seconds,
            peak_mib=self.end.peak_mib,
        )

    def _degradations(self) -> tuple[Degradation, ...]:
        """What the log, the products and CRDS's answer say is missing."""
        job, made = self.job, self.made
        written, off = made["exposures"], job.services_off
        stems = {alias: dataset for dataset, alias in job.aliases.items()}
        try:
            seen = output_degradations(job.products, job.association, written, made["image"], made["weight"], off)
        except OSError as error:
            raise storage_error(f"{job.association}: a product can't be read back", error) from error
        told = find_degradations(self.lines, job.association, stems, off)
        return merge_degradations(told, seen, reference_degradations(self.references, written, off))

    def _read(self, path: Path) -> str:
        text = path.read_text(errors="replace") if path.exists() else ""
        return text.replace(f"{self.job.folder}/", "")  # its name means nothing once it is gone

    def _write_log(self, path: Path) -> None:
        """What grizli printed, what it only wrote down, then its two small logs of shifts and WCS."""
        with path.open("w") as stream:
            stream.write(f"{self.printed}\n=== only in grizli's own log\n{self.written}\n")
            for name in ("shifts", "wcs"):
                log = self.job.prep / f"{self.job.root}_{name}.log"
                if log.exists():
                    stream.write(f"\n=== {log.name}\n{log.read_text()}")

    def _calibrated(self, dataset: str, name: str) -> CalibratedExposure:
        path = self.job.products / name
        raw = self.made.get("pointings", {}).get(dataset)
        pointing = raw and Pointing(raw["ra"], raw["dec"], (raw["shift_mas"][0], raw["shift_mas"][1]), raw["roll_deg"])
        return CalibratedExposure(dataset, name, sha256_of(path), path.stat().st_size, pointing)

    def _relative(self) -> tuple[tuple[RelativeFit, ...], str | None]:
        job = self.job
        if len(job.headers) == 1:
            return (RelativeFit(job.headers[0].dataset, "single"),), None
        nothing = tuple(RelativeFit(h.dataset, "rejected") for h in job.headers)
        if _RERUN in self.text:
            # the second run starts from fresh copies: the first one's shifts are in its log, not in the exposures
            return nothing, f"grizli could not align the exposures with each other: {self._cause()}"
        path = job.prep / f"{job.root}_shifts.log"
        names = {f"{alias}_rate.fits": dataset for dataset, alias in job.aliases.items()}
        fits = parse_shifts_log(path.read_text(), names) if path.exists() else ()
        if not fits:
            return nothing, "grizli wrote no shifts between the exposures"
        known = {f.dataset for f in fits}
        fits += tuple(RelativeFit(h.dataset, "rejected") for h in job.headers if h.dataset not in known)
        bad = sorted(f.dataset for f in fits if f.role == "rejected")
        return fits, f"grizli rejected the alignment of {', '.join(bad)} with the other exposures" if bad else None

    def _absolute(self) -> tuple[AbsoluteFit | None, str | None]:
        job = self.job
        if job.reference is None:
            return None, None
        prefix = f"no alignment to {job.reference.name}: "
        if len(job.reference) == 0:
            return None, prefix + "it has no source here"
        if list(job.prep.glob("*failed")):
            return None, prefix + self._cause()
        path = job.prep / f"{job.root}_wcs.log"
        row = parse_wcs_log(path.read_text()) if path.exists() else None
        if row is None:
            return None, prefix + "grizli rejected its own solution (RMS above align_rms_limit, or under 3 matches)"
        return absolute_fit(row, job.reference.name, job.reference.kind, self.made["pixel_scale_mas"]), None

    def _cause(self) -> str:
        said = [cause for cause in (alignment_failure(self.lines), last_exception(self.text)) if cause]
        return "; ".join(said) or "no cause given"

    def _gave_up(self) -> str:
        """The cause where grizli made nothing: words if it is alignment, else an error."""
        name, exception = self.job.association, last_exception(self.text)
        if _NO_ROOM.search(self.text):
            raise DiskFullError(f"{name}: no room left while grizli worked")
        if exception and re.match(r"(crds\.[\w.]*)?Crds\w+", exception):
            raise CalibrationError(f"{name}: {exception}")
        cause = alignment_failure(self.lines)
        if cause is None:
            raise EngineFailedError(
                f"{name}: grizli made nothing ({exception or 'no exception shown'}). It said last:\n"
                f"{last_meaningful_lines(self.printed)}"
            )
        return f"grizli gave up: {cause}"

    def _typed(self, stage: str, error: Mapping[str, Any]) -> PanoramicError:
        """What an exception in the child means here."""
        name = self.job.association
        said = f"{error['type']}: {error['message']}".strip().rstrip(":")
        if error["errno"] == errno.ENOSPC or _NO_ROOM.search(said):
            return DiskFullError(f"{name}: no room left while grizli worked ({said})")
        if error["type"] == "ReferenceFileError":
            context = self.job.calibration.crds_context
            return CalibrationError(f"{name}: reference file {error['message']} (context {context})")
        if error["type"] == "ProductError" and _NO_FLUX_SCALE in said:
            first, photom = self.job.headers[0], self.references.get("photom", "none")
            return CalibrationError(
                f"{name}: {error['message']}. See whether the photom reference file ({photom}, context "
                f"{self.job.calibration.crds_context}) has a row for {first.filter} and {first.pupil}"
            )
        if stage == "calibration" or str(error["module"]).startswith("crds"):
            return CalibrationError(f"{name}: {said}")
        last = last_meaningful_lines(self.printed)
        return EngineFailedError(f"{name}: grizli failed with {said}. It said last:\n{last}")


def _keep_log(log: Path, target: Path) -> bool:
    """Keep the log of a failure; False where there is none."""
    if not log.exists():
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)
    except OSError:  # the failure itself is what the caller must hear of
        return False
    return True
