"""Work folders that belong to a living process, and the clearing of those whose owner is gone.

Put here their making, locking and removal. Keep out what is done inside them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from panoramic.errors import DiskFullError, StorageError

PREFIX = "reduction-"
_LOCK = ".lock"
# short folders for the sockets of an engine's helpers, by the pid of the process that made them
SOCKETS, SOCKETS_ROOT = "panoramic-", Path("/") / "tmp"


class WorkFolder:
    """A fresh folder, removed when the ``with`` block ends. Its lock, a file beside it, ends with its owners.

    The lock's descriptor may be handed to a child process (`lock_fd`): the folder then counts as owned until both
    are gone.
    """

    def __init__(self, root: Path, label: str) -> None:
        self.root, self.label = Path(root), label
        self.path = self.root
        self.lock_fd = -1

    def __enter__(self) -> WorkFolder:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # the lock is there before the folder, so that a folder without a living owner is always an orphan
            while True:
                fd, name = tempfile.mkstemp(prefix=f"{PREFIX}{self.label}-", suffix=_LOCK, dir=self.root)
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _same_file(fd, name):
                    break
                os.close(fd)
            self.lock_fd = fd
            self.path = Path(name.removesuffix(_LOCK))
            self.path.mkdir()
        except OSError as error:
            if self.lock_fd >= 0:
                self.__exit__(None, None, None)
            raise storage_error(f"no work folder in {self.root}", error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        Path(f"{self.path}{_LOCK}").unlink(missing_ok=True)
        os.close(self.lock_fd)


def remove_orphans(root: Path) -> tuple[Path, ...]:
    """Delete work folders in ``root`` whose owners (process and child) are gone; give what was deleted.

    The folders of sockets that killed engines left go too.
    """
    removed = []
    for lock in sorted(Path(root).glob(f"{PREFIX}*{_LOCK}")):
        try:
            fd = os.open(lock, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _same_file(fd, str(lock)):
                continue
            folder = Path(str(lock).removesuffix(_LOCK))
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
            lock.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
    for folder in SOCKETS_ROOT.glob(f"{SOCKETS}[0-9]*-*"):
        pid = folder.name.removeprefix(SOCKETS).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
    return tuple(removed)


def _same_file(fd: int, name: str) -> bool:
    """Whether the open file is still the one of that name: a cleaner may have removed it before it was locked."""
    try:
        there = Path(name).stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def storage_error(what: str, error: OSError) -> StorageError:
    """The typed error for an operating system's refusal to write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{what}: no room left ({error})")
    return StorageError(f"{what}: {error}")


def publish(staged: Path, folder: Path) -> None:
    """Make ``staged`` appear as ``folder`` in one step: all of it, or nothing.

    Files are flushed to disk first. Across file systems they are copied beside ``folder`` under a hidden name, then
    renamed; what a killed copy left beside it is deleted.

    Raises
    ------
    StorageError, DiskFullError
        ``folder`` holds something already, or can't be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        _flush(staged)
        try:
            staged.rename(folder)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
            try:
                shutil.copytree(staged, beside, dirs_exist_ok=True)
                _flush(beside)
                beside.chmod(0o755)
                beside.rename(folder)
            except OSError:
                shutil.rmtree(beside, ignore_errors=True)
                raise
        _fsync(folder.parent)
    except OSError as error:
        raise storage_error(f"{folder} can't be written", error) from error


def _flush(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
