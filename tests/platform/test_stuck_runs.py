"""Runs whose process is gone are found and reported; living ones are left alone."""

from __future__ import annotations

import subprocess
import sys

import dagster as dg
import pytest

from resources.processes import BOOT, HOST, RUN, STARTED, identity, is_gone
from sensors.stuck_runs import dead_runs, reap


@pytest.fixture
def dead_process() -> dict[str, str]:
    """Tags of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        tags = identity(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    return tags


def test_who_is_gone(dead_process: dict[str, str]) -> None:
    assert is_gone(dead_process) is True
    mine = identity()
    assert is_gone(mine) is False
    assert is_gone(mine | {STARTED: "1"}) is True  # the pid is used again by another process
    assert is_gone(mine | {BOOT: "an earlier boot"}) is True
    assert is_gone(mine | {HOST: "elsewhere"}) is None
    assert is_gone({}) is None


def started(platform, tags: dict[str, str]) -> str:
    job = platform.definitions.resolve_job_def("field_job")
    run = platform.instance.create_run_for_job(job, tags=tags)
    platform.instance.add_run_tags(run.run_id, {RUN: run.run_id})
    platform.instance.report_engine_event("started", run)
    platform.instance.handle_new_event(
        dg._core.events.log.EventLogEntry(
            error_info=None, level=10, user_message="", run_id=run.run_id, timestamp=0.0, job_name="field_job",
            dagster_event=dg.DagsterEvent("PIPELINE_START", "field_job"),
        )
    )  # fmt: skip
    return run.run_id


def test_a_dead_run_is_reported_and_a_living_one_is_not(two_fields, dead_process) -> None:
    platform, first, second = two_fields
    dead = started(platform, {"dagster/partition": first, **dead_process})
    alive = started(platform, {"dagster/partition": second, **identity()})
    assert set(dead_runs(platform.instance)) == {dead}
    assert reap(platform.instance) == [dead]
    assert platform.instance.get_run_by_id(dead).status == dg.DagsterRunStatus.FAILURE
    assert platform.instance.get_run_by_id(alive).status == dg.DagsterRunStatus.STARTED
    assert reap(platform.instance) == []


def test_a_killed_daemon_leaves_its_socket_behind(two_fields, dead_process, tmp_path) -> None:
    """The socket's file of a killed code server stays; nobody answers at it."""
    import json
    import socket

    platform, first, second = two_fields
    runs = {}
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "second"))
    listening.listen()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "first"))
    left.close()
    for name, place in ((first, "first"), (second, "second")):
        tags = {"dagster/partition": name, ".dagster/grpc_info": json.dumps({"socket": str(tmp_path / place)})}
        runs[name] = started(platform, tags)
        platform.instance.add_run_tags(runs[name], {RUN: "another"})
        run = platform.instance.get_run_by_id(runs[name])
        pid = dead_process["panoramic/pid"]
        platform.instance.report_engine_event(f"Started process for run (pid: {pid}).", run)
    assert set(dead_runs(platform.instance)) == {runs[first]}
    listening.close()
