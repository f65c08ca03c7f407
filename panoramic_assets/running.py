"""Runs that the command line starts itself, and what it tells of them.

Dagster runs in process here, with the same job, checks and executor as in the UI; the events are followed live.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster import DagsterEvent, DagsterInstance, DagsterRunStatus, RunsFilter, reconstructable
from dagster._core.errors import DagsterAssetCheckFailedError
from dagster._core.execution.api import execute_run_iterator
from sqlalchemy.exc import DatabaseError

from panoramic.errors import FieldBusyError, InputError, PanoramicError, UnknownNameError
from panoramic.mosaic.build import MosaicResult
from panoramic_assets import definitions
from panoramic_assets.common import VERIFY
from panoramic_assets.ingest import ingest
from panoramic_assets.jobs import STAGES
from panoramic_assets.replay import report_lines
from panoramic_assets.reporting import report
from resources.archive import Archive, ArchiveLook
from resources.archive_folder import SETTLE_SECONDS
from resources.database import is_disk_full
from resources.home import Home
from resources.processes import RUN, identity
from resources.storage import field_lock

Say = Callable[[str], None]
AT_WORK = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
# how Dagster ends the step of a blocking check that did not pass
BLOCKED = DagsterAssetCheckFailedError.__name__


@dataclass
class CheckLine:
    """One check's answer as the closing table shows it. ``word`` is ``passed``, ``warned`` or ``failed``."""

    asset: str
    name: str
    word: str
    blocking: bool
    summary: str
    value: str
    limit: str


@dataclass
class FieldOutcome:
    """What a field's run came to."""

    field: str
    seconds: float = 0.0
    checks: list[CheckLine] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    products: list[str] = dataclasses.field(default_factory=list)
    stages: set[str] = dataclasses.field(default_factory=set)

    @property
    def reached_last_stage(self) -> bool:
        """Whether the field went through all stages, what was held back named; a failed blocking check stops it."""
        return STAGES[-1] in self.stages and not any(c.word == "failed" and c.blocking for c in self.checks)

    @property
    def state(self) -> str:
        """One word for the title."""
        return "finished" if self.reached_last_stage else "failed" if self.errors else "blocked"


def take_in(home: Home, wanted: list[str], say: Say) -> list[str]:
    """Look at the archive, write it down, tell Dagster; returns the fields to run.

    Raises
    ------
    UnknownNameError
        A wanted field does not exist; the nearest names are in the message.
    InputError
        Nothing in the archive can be used.
    """
    look = settled_look(home.archive, say)
    found = ingest(home.database, home.survey, look, datetime.now(UTC).replace(tzinfo=None))
    for line in report_lines(found):
        say(line)
    names = list(home.database.data_versions())
    for name in wanted:
        if name not in names:
            raise UnknownNameError("field", name, names)
    if not names:
        reasons = list(found.faults.values()) + found.errors + list(found.refused.values())
        raise InputError(
            f"no exposure of {look.source} can be used: {'; '.join(reasons[:5]) or 'it has no NIRCam image'}"
        )
    with DagsterInstance.get() as instance:
        report(home.database, instance)
    return wanted or names


def settled_look(archive: Archive, say: Say, wait: Callable[[float], None] = time.sleep) -> ArchiveLook:
    """A look at the archive; where files were written just now, a second one that sees whether they still grow.

    A person who copied files and starts at once wants them in; the sensor takes them at its next tick.
    """
    look = archive.look()
    fresh = sum(fault.kind == "unsettled" for fault in look.faults)
    if not fresh:
        return look
    say(f"{fresh} files were written just now: looking again in {SETTLE_SECONDS:g} s, whether they are whole")
    wait(SETTLE_SECONDS)
    return archive.look()


def run_field(home: Home, name: str, say: Say, verify: bool = False) -> FieldOutcome:
    """Run all stages of a field here and now; a second run on the same field waits.

    With ``verify`` all bytes of stored products are read before they are taken as they are.
    """
    started = time.monotonic()
    outcome = FieldOutcome(name)
    with DagsterInstance.get() as instance, field_lock(name, home.path / "locks", on_wait=say):
        _refuse_if_busy(instance, name)
        _remove_leftovers(home, name)
        job = definitions.field_job()
        reconstructable_job = reconstructable(definitions.field_job)
        run = instance.create_run_for_job(
            job,
            job_code_origin=reconstructable_job.get_python_origin(),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            asset_selection=frozenset(job.asset_layer.executable_asset_keys),
            tags={"dagster/partition": name} | ({VERIFY: "true"} if verify else {}),
        )
        # with the run's own id: a re-execution copies the tags of its parent, not its process
        instance.add_run_tags(run.run_id, {**identity(), RUN: run.run_id})
        say(f"{name}: run {run.run_id[:8]}")
        with told_of_downloads(home.path / "downloads", say):
            for event in execute_run_iterator(reconstructable_job, run, instance):
                _follow(event, outcome, say)
        blocking = {key for key in job.asset_layer.asset_graph.asset_check_keys if _is_blocking(job, key)}
        for check in outcome.checks:
            check.blocking = (check.asset, check.name) in {(k.asset_key.to_user_string(), k.name) for k in blocking}
    order = {stage: i for i, stage in enumerate(STAGES)}
    outcome.checks.sort(key=lambda c: (order.get(c.asset, 9), c.name))
    outcome.products = [
        str(home.storage.path(p["path"]))
        for m in home.database.mosaics(name)
        for p in home.database.products(m["stem"])
        if p["path"].endswith((".fits", ".ecsv"))
    ]
    outcome.products += sorted(str(p) for p in home.storage.path(f"{name}/mosaics").glob("*.png"))
    outcome.seconds = time.monotonic() - started
    return outcome


@contextmanager
def told_of_downloads(folder: Path, say: Say, every_s: float = 10.0) -> Iterator[None]:
    """Tell of transfers under way, while the steps that fetch are processes of their own."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            parts = [path.stat().st_size for path in folder.glob("*/.*.part") if path.exists()]
            if parts:
                say(f"  downloading {len(parts)} files, {sum(parts) / 1e6:.0f} MB of them so far")

    watcher = threading.Thread(target=watch, daemon=True, name="downloads")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def run_or_name(home: Home, name: str, say: Say, verify: bool = False) -> FieldOutcome:
    """Run a field, or say why it could not be started; the other fields go on."""
    try:
        return run_field(home, name, say, verify)
    except PanoramicError as error:
        return FieldOutcome(name, errors=[f"{type(error).__name__}: {error}"])
    except (OSError, DatabaseError) as error:
        if not is_disk_full(error):
            raise
        return FieldOutcome(name, errors=[f"DiskFullError: no room left ({error}): make room and run again"])


def _is_blocking(job: Any, key: Any) -> bool:
    return bool(job.asset_layer.asset_graph.get(key).blocking)


def _refuse_if_busy(instance: DagsterInstance, name: str) -> None:
    """Refuse a field on which a run of the daemon works, with the run's name.

    A run that only waits in the daemon's queue is passed: the queue waits for ours (limit of one run per field). Should
    the daemon begin one between this look and our start, the steps' own locks keep the two apart.
    """
    others = instance.get_runs(RunsFilter(statuses=AT_WORK, tags={"dagster/partition": name}))
    foreign = [run for run in others if run.tags.get(RUN) != run.run_id]
    if foreign:
        raise FieldBusyError(
            f"run {foreign[0].run_id[:8]} of the daemon works on {name}: wait for it, or terminate it in the UI"
        )


def _remove_leftovers(home: Home, name: str) -> None:
    """Remove what a killed run left in the work folder and beside the field's products, where nobody works on it."""
    import shutil

    from panoramic.reduction.workfolder import remove_orphans

    remove_orphans(home.work)
    for folder in home.storage.path(name).glob("*/.staged-*"):
        with suppress(FieldBusyError), home.alone(folder.name.removeprefix(".staged-"), blocking=False):
            shutil.rmtree(folder, ignore_errors=True)


def _follow(event: DagsterEvent, outcome: FieldOutcome, say: Say) -> None:
    step = event.step_key or ""
    short = step.split(".")[-1]
    if event.is_step_start:
        say(f"  {short}")
    elif event.is_step_failure:
        data = event.step_failure_data
        if data.error is not None and data.error.cls_name == BLOCKED:
            say(f"  {short}: the check failed, the field goes no further")
            return
        message = (
            data.user_failure_data.description
            if data.user_failure_data and data.user_failure_data.description
            else None
        )
        outcome.errors.append(f"{short}: {message or (data.error.message.strip() if data.error else 'failed')}")
        cause = data.error.cause if data.error else None
        if cause is not None:
            outcome.errors.append(f"  {cause.message.strip()}")
        say(f"  {short} failed: {outcome.errors[-1]}")
    elif event.is_step_up_for_retry:
        say(f"  {short} is tried again")
    elif event.is_step_materialization:
        key = event.step_materialization_data.materialization.asset_key
        outcome.stages.add(key.to_user_string())
        say(f"{outcome.field}: {key.to_user_string()} materialized")
    elif event.event_type_value == "ASSET_CHECK_EVALUATION":
        evaluation = event.asset_check_evaluation_data
        values = {k: v.value for k, v in evaluation.metadata.items()}
        word = "passed" if evaluation.passed else "warned" if evaluation.severity.value == "WARN" else "failed"
        outcome.checks.append(
            CheckLine(
                asset=evaluation.asset_key.to_user_string(),
                name=evaluation.check_name,
                word=word,
                blocking=False,
                summary=evaluation.description or "",
                value=_first_number(values),
                limit=_plain(values.get("limit")),
            )
        )


def _first_number(values: dict[str, Any]) -> str:
    for preferred in ("worst value", "worst offset [mas]", "fewest on a detector", "missing", "held back"):
        if preferred in values:
            return _plain(values[preferred])
    for key, value in values.items():
        if isinstance(value, int | float) and key != "limit":
            return _plain(value)
    return ""


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def peak_mib(home: Home, names: list[str]) -> float:
    """Peak memory of the largest step of some fields, by their stored results, MiB."""
    results = [home.database.reduction(a.name) for name in names for a in home.database.associations(name)]
    peaks = [stored[1].peak_mib for stored in results if stored is not None]
    peaks += [MosaicResult.from_json(m["result"]).peak_mib for name in names for m in home.database.mosaics(name)]
    return max(peaks, default=0.0)
