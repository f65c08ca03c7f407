"""The reaper: runs whose process is gone stay STARTED for ever in Dagster and hold their field; report them failed."""

import json
import os
import re
import socket

import dagster as dg
from dagster import DagsterEventType, DagsterInstance, DagsterRun

from panoramic.reduction.workfolder import remove_orphans
from resources.home import HomeResource
from resources.processes import RUN, is_gone, started_at

_STARTED_PROCESS = re.compile(r"\(pid: (\d+)\)")


def dead_runs(instance: DagsterInstance) -> dict[str, str]:
    """Unfinished runs whose process is gone, with what was seen of each."""
    unfinished = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    )
    found = {}
    for run in instance.get_runs(filters=unfinished):
        gone = is_gone(run.tags) if run.tags.get(RUN) == run.run_id else None
        if gone is None:
            gone = _daemon_run_is_gone(instance, run)
        if gone:
            found[run.run_id] = (
                "the process that executed this run has ended without saying so (killed, or the machine restarted)"
            )
    return found


def _daemon_run_is_gone(instance: DagsterInstance, run: DagsterRun) -> bool:
    """A run of the daemon's launcher is dead when nobody listens at its code server's socket, and its process is gone.

    A killed server leaves the socket's file behind, so the file alone says nothing.
    """
    info = json.loads(run.tags.get(".dagster/grpc_info", "{}"))
    server = info.get("socket")
    if not server or _listens(server):
        return False
    records = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ENGINE_EVENT).records
    processes = [
        (int(match.group(1)), record.event_log_entry.timestamp)
        for record in records
        if (
            match := _STARTED_PROCESS.search(
                record.event_log_entry.user_message or record.event_log_entry.message or ""
            )
        )
    ]
    return bool(processes) and not any(_lives(pid, said) for pid, said in processes if pid != os.getpid())


def _listens(address: str) -> bool:
    """Whether a process answers at a local socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(5)
        try:
            one.connect(address)
        except TimeoutError:
            return True  # somebody holds it, and is busy
        except OSError:
            return False
    return True


def _lives(pid: int, said: float) -> bool:
    """Whether the process that was named at a time (s since 1970) still is the one of that pid."""
    began = started_at(pid)
    return began is not None and began <= said + 5.0


def reap(instance: DagsterInstance) -> list[str]:
    """Report dead runs failed, so that their fields are free and ``run_retries`` may run them again."""
    dead = dead_runs(instance)
    for run_id, why in dead.items():
        run = instance.get_run_by_id(run_id)
        if run is not None:
            instance.report_run_failed(run, why)
    return sorted(dead)


@dg.sensor(
    name="stuck_runs",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports runs failed whose process is gone, so that they don't hold their field for ever.",
)
def stuck_runs(context: dg.SensorEvaluationContext, home: HomeResource) -> dg.SkipReason:
    """Reap dead runs; `run_retries` runs them again. What they left in the work folder goes."""
    reaped = reap(context.instance)
    remove_orphans(home.open().work)
    return dg.SkipReason(f"reported failed: {', '.join(reaped)}" if reaped else "every unfinished run has its process")
