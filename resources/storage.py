"""Where products are kept: written beside their place, verified, then moved; and the lock of a field.

Put here how bytes come to rest and how their wholeness is shown. Keep out what the products are.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from panoramic.errors import DiskFullError, FieldBusyError, ProductDamagedError, StorageError
from panoramic.provenance import digest_file
from resources.file_facts import FileFacts

PART = ".part-"  # in the name of whatever is being written
OLD = ".old-"  # in the name of a folder that was taken out of its place
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class StoredFile:
    """What is recorded of a product: key, size in bytes, mtime in ns since 1970, SHA-256."""

    key: str
    size: int
    mtime_ns: int
    sha256: str


class Storage(Protocol):
    """Products by key, a relative path with slashes (``j131432p2432/mosaics/x_drc_sci.fits``)."""

    def write_bytes(self, key: str, data: bytes) -> StoredFile:
        """Store bytes under a key: all of them or, on any error, what was there before."""
        ...

    def write_text(self, key: str, text: str) -> StoredFile:
        """Store text as UTF-8."""
        ...

    def publish_folder(self, staged: Path, key: str) -> None:
        """Put a finished folder under a key in place of an older one; at any moment the old or the new one is whole."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is a file or folder of that key."""
        ...

    def describe(self, key: str) -> StoredFile:
        """Size, time and digest of a stored file, to be recorded."""
        ...

    def sha256(self, key: str) -> str:
        """Digest of a stored file."""
        ...

    def verify(self, key: str, size: int, mtime_ns: int, sha256: str, full: bool = False) -> None:
        """Hold a stored file to its record."""
        ...

    def require_room(self, needed: int) -> None:
        """Refuse at once what can't be stored."""
        ...


class LocalStorage:
    """Products in a folder of a local disk.

    Parameters
    ----------
    root : the folder; made at the first write.
    cache : a folder for a small file of digests by size and mtime; absent, ``root/.cache``.
    """

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        self.root = Path(root).absolute()
        self._facts = FileFacts((cache or self.root / ".cache") / "digests.sqlite")

    def path(self, key: str) -> Path:
        """The file or folder of a key.

        Raises
        ------
        StorageError
            The key is empty, absolute or leads out of the root.
        """
        pure = PurePosixPath(key)
        if not pure.parts or pure.is_absolute() or ".." in pure.parts:
            raise StorageError(f"{key!r} is no key of a product: it must be a path below {self.root}")
        return self.root / pure

    def exists(self, key: str) -> bool:
        """Whether there is a file or folder of that key."""
        return self.path(key).exists()

    def write_text(self, key: str, text: str) -> StoredFile:
        """Store text as UTF-8; see `write_bytes`."""
        return self.write_bytes(key, text.encode())

    def write_bytes(self, key: str, data: bytes) -> StoredFile:
        """Store bytes under a key: all of them or, on any error, what was there before.

        Raises
        ------
        DiskFullError, StorageError
        """
        target = self.path(key)
        part = target.with_name(f".{target.name}{PART}{secrets.token_hex(4)}")
        with _storing(key, part):
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, target)
            _sync(target.parent)
        return self.describe(key)

    def publish_folder(self, staged: Path, key: str) -> None:
        """Put a finished folder in its place; ``staged`` is gone afterwards.

        An older folder is exchanged in one step of the file system (two renames where it knows no exchange; what a
        kill leaves between them is put right by `clear_unfinished`). A folder on another disk is copied beside its
        place first.

        Raises
        ------
        DiskFullError, StorageError
            The older folder and ``staged`` are as they were.
        """
        target = self.path(key)
        if not staged.is_dir():
            raise StorageError(f"{staged} is no folder: nothing to publish as {key}")
        part = target.with_name(f".{target.name}{PART}{secrets.token_hex(4)}")
        with _storing(key, part):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._put_back(target)
            new = staged
            if staged.stat().st_dev != target.parent.stat().st_dev:
                _copy_tree(staged, part)
                new = part
            _sync_tree(new)
            if not target.exists():
                os.replace(new, target)
            elif not _exchange(new, target):
                self._replace_in_two_steps(new, target)
            _sync(target.parent)
        _remove(staged)  # the older folder after an exchange, the original after a copy

    def clear_unfinished(self, key: str) -> list[str]:
        """Remove what a killed process left half-written under a key's folder and beside it; put back what it took out.

        To be called only while nobody else writes there (under the field's lock).

        Returns
        -------
        list of str
            Names of what was removed.
        """
        target = self.path(key)
        removed: list[str] = []
        self._put_back(target)
        for place in (*target.parent.glob(f".{target.name}.*"), *target.rglob(".*")):
            if (PART in place.name or OLD in place.name) and os.path.lexists(place):
                removed.append(place.name)
                _remove(place)
        return removed

    def describe(self, key: str) -> StoredFile:
        """Size, time and digest of a stored file, to be recorded.

        Raises
        ------
        ProductDamagedError
            It is not there.
        """
        digest = self.sha256(key)
        status = self.path(key).stat()
        return StoredFile(key, status.st_size, status.st_mtime_ns, digest)

    def sha256(self, key: str) -> str:
        """Digest of a stored file, computed again only if its size or mtime are new.

        Raises
        ------
        ProductDamagedError
            It is not there or can't be read.
        """
        try:
            return self._facts.digest(self.path(key), "sha256")
        except OSError as error:
            raise ProductDamagedError(f"{key}: can't be read from {self.root}: {error.strerror}") from error

    def verify(self, key: str, size: int, mtime_ns: int, sha256: str, full: bool = False) -> None:
        """Hold a stored file to its record: size and mtime, and its bytes where these differ or ``full`` is asked for.

        Raises
        ------
        ProductDamagedError
            It is missing, or is not what was written.
        """
        path = self.path(key)
        try:
            status = path.stat()
            if status.st_size != size:
                raise ProductDamagedError(f"{key}: has {status.st_size} bytes, {size} were written")
            if not full and status.st_mtime_ns == mtime_ns:
                return
            # a copied home has other times: the bytes decide
            digest = digest_file(path, "sha256") if full else self._facts.digest(path, "sha256")
        except OSError as error:
            raise ProductDamagedError(f"{key}: can't be read from {self.root}: {error.strerror}") from error
        if digest != sha256:
            raise ProductDamagedError(f"{key}: has the SHA-256 {digest[:16]}..., {sha256[:16]}... was written")

    def free_bytes(self) -> int:
        """Room left on the disk of the root."""
        place = self.root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def require_room(self, needed: int) -> None:
        """Refuse at once what would not fit.

        Parameters
        ----------
        needed : bytes.

        Raises
        ------
        DiskFullError
        """
        free = self.free_bytes()
        if free < needed:
            raise DiskFullError(
                f"{self.root} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed: make room and run again"
            )

    def _replace_in_two_steps(self, new: Path, target: Path) -> None:
        """For file systems without exchange; an error between the steps puts the older folder back."""
        old = target.with_name(f".{target.name}{OLD}{secrets.token_hex(4)}")
        os.replace(target, old)
        try:
            os.replace(new, target)
        finally:
            self._put_back(target)
        _remove(old)

    @staticmethod
    def _put_back(target: Path) -> None:
        """After a kill between two renames the older folder lies beside its empty place."""
        if not target.exists():
            taken_out = sorted(target.parent.glob(f".{target.name}{OLD}*")) if target.parent.is_dir() else []
            if taken_out:
                os.replace(taken_out[-1], target)


@contextlib.contextmanager
def _storing(key: str, part: Path) -> Iterator[None]:
    """Name the cause of a failed write, and leave nothing of it behind, whatever ended it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(f"{key}: the disk is full ({part.parent}); nothing was written, make room") from error
        raise StorageError(f"{key}: could not be written to {part.parent}: {error.strerror or error}") from error
    finally:
        _remove(part)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file's or folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder; unlike shutil.copytree it stops at the first error and keeps its number."""
    for place, _, names in os.walk(source):
        here = target / Path(place).relative_to(source)
        here.mkdir()
        for name in names:
            shutil.copy2(Path(place) / name, here / name, follow_symlinks=False)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            if not (Path(place) / name).is_symlink():
                _sync(Path(place) / name)
        _sync(Path(place))


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step (Linux, renameat2); False where the system or the file system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside a file to write its new version; it takes the file's place at the end of the block, or vanishes.

    Raises
    ------
    DiskFullError
        There was no room for it; the old version stands.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{path} can't be written: make room and run again") from error
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def field_lock(
    name: str, folder: Path, on_wait: Callable[[str], None] | None = None, blocking: bool = True
) -> Iterator[None]:
    """Hold a field: nobody else works on it until the block, or the process, ends.

    Parameters
    ----------
    name : the field.
    folder : where lock files lie, on a local disk.
    on_wait : told once, in words, if somebody else holds the field.
    blocking : wait for the other; else give up at once.

    Raises
    ------
    FieldBusyError
        Another run holds the field (with ``blocking`` False).
    """
    if not name or PurePosixPath(name).name != name:
        raise StorageError(f"{name!r} is no name of a field")
    folder.mkdir(parents=True, exist_ok=True)
    # the file stays: removing it would let two processes lock two files of one name
    with (folder / f"{name}.lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another run"
            if not blocking:
                raise FieldBusyError(f"{name} is held by {holder}; wait for it to end") from error
            if on_wait is not None:
                on_wait(f"{name} is held by {holder}: waiting for it to end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # on a full disk the lock still holds, only its holder has no name
            stream.truncate(0)
            os.pwrite(stream.fileno(), f"process {os.getpid()}".encode(), 0)
        try:
            yield
        finally:
            stream.truncate(0)
            fcntl.flock(stream, fcntl.LOCK_UN)
