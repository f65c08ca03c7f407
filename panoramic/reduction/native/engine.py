"""The native engine behind the `Reduction` protocol: runs `child.py` in a process and a work folder of its own.

Put here what happens around the child and what its end means. Keep out the steps, so that their memory and their
crashes stay over there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from panoramic import __version__, errors
from panoramic.errors import (
    DiskFullError,
    EngineFailedError,
    EngineKilledError,
    ExposureFileError,
    InputError,
    PanoramicError,
    StorageError,
)
from panoramic.reduction.base import (
    CalibrationSetup,
    ExposureInput,
    PointingPrior,
    ReductionResult,
    ReferenceSources,
)
from panoramic.reduction.childprocess import ChildEnd, base_environment, run_child
from panoramic.reduction.native.parameters import validate_parameters
from panoramic.reduction.rate_files import RateHeader, check_calibration, read_association
from panoramic.reduction.workfolder import WorkFolder, publish, storage_error

VERSION = "1.0"
"""Raise it whenever the same input would give other products."""
_LAST_LINES = 12


class NativeReduction:
    """The engine ``native`` behind the protocol of ``base.py``.

    Parameters
    ----------
    calibration : CRDS cache and context; grizli's configuration folder for its wisp templates.
    work_root : work folders are made and removed here; on one file system with the products if possible.
    parameters : see `NativeParameters`.
    timeout_s : a reduction that takes longer is killed.
    services_off : names of degradations that are on purpose (``persistence_history``, ...).
    cache : folder of parsed reference files and compiled kernels, shared by any number of processes; None: they are
        made anew each time.
    """

    name = "native"
    version = VERSION

    def __init__(
        self,
        calibration: CalibrationSetup,
        work_root: Path,
        parameters: Mapping[str, Any] = MappingProxyType({}),
        timeout_s: float = 7200.0,
        services_off: tuple[str, ...] = (),
        cache: Path | None = None,
    ) -> None:
        self.calibration = calibration
        self.work_root = Path(work_root).absolute()
        self.parameters = validate_parameters(parameters)
        self.timeout_s = timeout_s
        self.services_off = tuple(services_off)
        self.cache = None if cache is None else Path(cache).absolute()
        self.child_command: tuple[str, ...] = (sys.executable, "-m", "panoramic.reduction.native.child")

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

        A failed alignment is no error: the result says so in ``failure``, and the products stay in the telescope's
        frame, as far as priors don't move it.
        """
        folder = Path(folder).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"{folder} holds something already")
        headers = read_association(association, exposures)
        headers = tuple(sorted(headers, key=lambda h: (h.start, h.dataset)))
        _check_priors(association, headers, pointing_priors)
        check_calibration(self.calibration)
        kept_log = folder.parent / f"{association}.failed.log"
        with WorkFolder(self.work_root, association) as work:
            log, outcome = work.path / f"{association}.log", work.path / "outcome.json"
            products = work.path / "products"
            try:
                job = work.path / "job.json"
                home = work.path / "home"
                try:
                    for part in ("tmp", "cache", "config"):
                        (home / part).mkdir(parents=True)
                    content = self._job(association, headers, reference, pointing_priors, work.path)
                    job.write_text(json.dumps(content))
                except OSError as error:
                    raise storage_error("the work folder can't be filled", error) from error
                end = self._run(association, job, work, log)
                result = self._result(association, end, outcome, log)
                shutil.copyfile(log, products / log.name)
                publish(products, folder)
            except PanoramicError as error:
                if _keep_log(log, kept_log):
                    error.args = (f"{error}\nLog: {kept_log}",)
                raise
            except OSError as error:
                raise storage_error("the products can't be written", error) from error
        kept_log.unlink(missing_ok=True)
        return result

    def _job(
        self,
        association: str,
        headers: tuple[RateHeader, ...],
        reference: ReferenceSources | None,
        priors: tuple[PointingPrior, ...],
        work: Path,
    ) -> dict[str, Any]:
        """What the child reads, in JSON types."""
        calibration = {k: v and str(Path(v).absolute()) if k.endswith("_path") else v
                       for k, v in asdict(self.calibration).items()}  # fmt: skip
        return {
            "parent_pid": os.getpid(),
            "association": association,
            "headers": [{**asdict(h), "path": str(h.path.absolute())} for h in headers],
            "reference": _finite(reference),
            "priors": [asdict(p) for p in priors],
            "parameters": self.parameters.model_dump(mode="json"),
            "calibration": calibration,
            "services_off": list(self.services_off),
            "provenance": {
                "ENGINE": self.name,
                "ENGVER": self.version,
                "CODEVER": __version__,
                "ASSOC": association,
                "REFCAT": reference.name if reference is not None else "none",
                "CRDS_CTX": self.calibration.crds_context,
            },
            "products": str(work / "products"),
            "outcome": str(work / "outcome.json"),
            "cache": str(self.cache / "references" if self.cache else work / "references"),
        }

    def _environment(self, home: Path) -> dict[str, str]:
        environment = base_environment(home)
        # freed planes are used again rather than given back: asking the system anew takes a tenth of the time
        environment |= {
            "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
            "MALLOC_TOP_PAD_": str(1 << 26),
        }
        code = Path(__file__).parent
        if self.cache is not None and not os.access(code, os.W_OK):
            # compiled kernels are kept beside the code where that can be written
            environment["NUMBA_CACHE_DIR"] = str(self.cache / "kernels")
        return environment

    def _run(self, association: str, job: Path, work: WorkFolder, log: Path) -> ChildEnd:
        """Run the child; raise what a violent end means."""
        command = (*self.child_command, str(job))
        try:
            end = run_child(
                command, self._environment(work.path / "home"), work.path, log, self.timeout_s, (work.lock_fd,)
            )
        except OSError as error:
            raise storage_error("the engine's process can't be started", error) from error
        if end.timed_out:
            raise EngineKilledError(
                f"{association}: the native engine took longer than the time limit of {self.timeout_s:g} s and was "
                f"killed (peak {end.peak_mib:.0f} MiB)"
            )
        if end.signal is not None:
            hint = "; out of memory?" if end.signal_name == "SIGKILL" else ""
            raise EngineKilledError(
                f"{association}: the native engine was killed by {end.signal_name}{hint} (its peak was "
                f"{end.peak_mib:.0f} MiB after {end.wall_seconds:.0f} s)"
            )
        return end

    def _result(self, association: str, end: ChildEnd, outcome: Path, log: Path) -> ReductionResult:
        """What the child says, or the error that its failure is."""
        if not outcome.exists():
            raise EngineFailedError(
                f"{association}: the native engine's process ended with code {end.exit_code} and no outcome. "
                f"It said last:\n{_last_lines(log)}"
            )
        said = json.loads(outcome.read_text())
        if "error" in said:
            raise _typed(association, said["error"], log)
        result = ReductionResult.from_json(said["result"])
        return replace(
            result,
            cpu_seconds=end.cpu_seconds,
            wall_seconds=end.wall_seconds,
            peak_mib=said["peak_mib"] or end.peak_mib,
        )


def _check_priors(association: str, headers: tuple[RateHeader, ...], priors: tuple[PointingPrior, ...]) -> None:
    """Refuse priors that are of no exposure, given twice, or no numbers."""
    named = [p.dataset for p in priors]
    strange = sorted(set(named) - {h.dataset for h in headers})
    if strange:
        raise InputError(f"{association}: pointing priors of exposures that it has not: {', '.join(strange)}")
    if len(set(named)) < len(named):
        raise InputError(f"{association}: an exposure has two pointing priors; give one")
    for prior in priors:
        if not np.isfinite([*prior.shift_mas, prior.roll_deg]).all():
            raise InputError(f"{association}: the pointing prior of {prior.dataset} is no number")


def _finite(reference: ReferenceSources | None) -> dict[str, Any] | None:
    """The reference in JSON types, without rows that have no place."""
    if reference is None:
        return None
    columns = {key: np.asarray(getattr(reference, key), float) for key in ("ra", "dec", "mag", "error_mas")}
    good = np.isfinite(columns["ra"]) & np.isfinite(columns["dec"])
    return {
        "name": reference.name,
        "kind": reference.kind,
        **{key: values[good].tolist() for key, values in columns.items()},
    }


def _typed(association: str, error: Mapping[str, Any], log: Path) -> PanoramicError:
    """What an exception in the child means here."""
    kind = getattr(errors, error["type"], None)
    if isinstance(kind, type) and issubclass(kind, ExposureFileError):
        return kind(error["path"], error["reason"])
    if isinstance(kind, type) and issubclass(kind, PanoramicError):
        return kind(error["message"])
    said = f"{error['type']}: {error['message']}".strip().rstrip(":")
    if error["errno"] in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in said:
        return DiskFullError(f"{association}: no room left while the engine worked ({said})")
    if error["type"] == "MemoryError":
        return EngineKilledError(f"{association}: out of memory ({said})")
    return EngineFailedError(f"{association}: the native engine failed with {said}. It said last:\n{_last_lines(log)}")


def _last_lines(log: Path) -> str:
    if not log.exists():
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-_LAST_LINES:])


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
