"""Runs foreign code in a child process: its end, its cost and its log come back, whatever it does.

Put here the process side alone: environment, limits, signals, usage. Keep out what the child computes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.1
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class ChildEnd:
    """How a child ended: exit code or signal, whether the time limit ended it, CPU and wall seconds, peak in MiB."""

    exit_code: int | None
    signal: int | None
    timed_out: bool
    cpu_seconds: float
    wall_seconds: float
    peak_mib: float

    @property
    def signal_name(self) -> str:
        """Name of the signal that ended it, e.g. ``SIGKILL``."""
        if self.signal is None:
            return ""
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


def base_environment(home: Path, threads: int = 1) -> dict[str, str]:
    """An environment made from nothing of the caller's: search path, a home of its own, thread limits, no display.

    Parameters
    ----------
    home : a folder inside the work folder; caches and configuration of foreign packages go there.
    threads : for OpenMP, BLAS and numba.
    """
    code = Path(__file__).resolve().parents[2]
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {
        "PATH": f"{Path(sys.executable).parent}:{_SYSTEM_PATH}",
        "PYTHONPATH": str(code),
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MPLBACKEND": "Agg",
        **dict.fromkeys(limits, str(threads)),
    }


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    timeout_s: float,
    keep_fds: Sequence[int] = (),
) -> ChildEnd:
    """Run a command in its own process, in the caller's process group, and wait for its end.

    Parameters
    ----------
    command : program and arguments.
    environment : all of the child's environment.
    folder : its working folder.
    log : receives its standard output and error, in order.
    timeout_s : after this many seconds it is killed.
    keep_fds : descriptors that it inherits (the lock of its work folder).

    Notes
    -----
    The child's standard input is a pipe that closes when this process ends, however it ends: `die_with_parent`, called
    in the child, watches it.
    """
    start = time.monotonic()
    with log.open("ab") as stream:
        child = subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(keep_fds),
        )
    timed_out = False
    done = 0
    try:
        while True:
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() - start > timeout_s:
                timed_out = True
                os.kill(child.pid, signal.SIGKILL)
                done, status, usage = os.wait4(child.pid, 0)
                break
            time.sleep(_POLL_S)
    finally:
        if not done:  # interrupted here: the child must not outlive us
            os.kill(child.pid, signal.SIGKILL)
            os.wait4(child.pid, 0)
        child.returncode = 0  # reaped by wait4, so that Popen doesn't look for it again
        if child.stdin is not None:
            child.stdin.close()
    code = os.waitstatus_to_exitcode(status)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB on Linux
    return ChildEnd(
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        timed_out=timed_out,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        wall_seconds=time.monotonic() - start,
        peak_mib=usage.ru_maxrss / unit,
    )


def die_with_parent(parent_pid: int) -> None:
    """In the child: end as soon as the parent does.

    On Linux the kernel does it; everywhere a thread waits for the pipe on standard input to close.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it ended before the request
            os._exit(1)
        # what foreign code forks (helpers of multiprocessing) ends with this process, however that ends
        os.register_at_fork(
            after_in_child=lambda: ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        )

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    pipe = os.dup(0)
    # foreign code must not read the pipe that it lives by
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
