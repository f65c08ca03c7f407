"""Which process a run belongs to, and whether it still lives.

Put here what `/proc` knows. A process is named by host, boot, pid and start time, because pids are used again.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

HOST, BOOT, PID, STARTED = "panoramic/host", "panoramic/boot", "panoramic/pid", "panoramic/started"
RUN = "panoramic/run"


def boot_id() -> str:
    """Identity of the running kernel's boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> str | None:
    """Start of a process in clock ticks since boot; None where there is none (a zombie counts as gone)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def started_at(pid: int) -> float | None:
    """Start of a process in seconds since 1970; None where there is none."""
    ticks = start_time(pid)
    if ticks is None:
        return None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + int(ticks) / os.sysconf("SC_CLK_TCK")


def identity(pid: int | None = None) -> dict[str, str]:
    """Tags that name a process (this one by default) for ever."""
    pid = pid or os.getpid()
    return {HOST: socket.gethostname(), BOOT: boot_id(), PID: str(pid), STARTED: start_time(pid) or ""}


def is_gone(tags: Mapping[str, str]) -> bool | None:
    """Whether the process of these tags has ended; None where this machine can't know."""
    if PID not in tags:
        return None
    if tags.get(HOST) != socket.gethostname():
        return None
    if tags.get(BOOT) != boot_id():
        return True
    return start_time(int(tags[PID])) != tags.get(STARTED)
