"""Storage: old or new, whole; a full disk; a kill at any point; the lock of a field."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from panoramic.errors import DiskFullError, FieldBusyError, ProductDamagedError, StorageError
from resources import storage as module
from resources.storage import LocalStorage, field_lock

KEY = "j131432p2432/mosaics/colour.png"
ROOT = Path(__file__).parents[2]
SECOND_DISK = Path("/dev/shm")  # noqa: S108 - a file system of its own on Linux


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "products")


def stage(path: Path, text: str, names: tuple[str, ...] = ("a.fits", "deep/b.fits")) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def left_over(store: LocalStorage) -> list[str]:
    return [p.name for p in store.root.rglob("*") if ".part-" in p.name or ".old-" in p.name]


def test_what_is_written_is_read_back(store: LocalStorage) -> None:
    assert not store.exists(KEY)
    first = store.write_text(KEY, "blue")
    assert (first.key, first.size) == (KEY, 4)
    assert first.sha256 == "16477688c0e00699c6cfa4497a3612d7e83c532062b64b250fed8908128ed548"
    store.verify(*vars(first).values())
    store.verify(*vars(first).values(), full=True)
    second = store.write_bytes(KEY, b"reds")
    assert store.path(KEY).read_bytes() == b"reds"
    assert store.sha256(KEY) == second.sha256 != first.sha256
    assert left_over(store) == []


@pytest.mark.parametrize("key", ["", ".", "/etc/passwd", "../x", "a/../../x"])
def test_a_key_stays_below_the_root(store: LocalStorage, key: str) -> None:
    with pytest.raises(StorageError, match="is no key of a product"):
        store.path(key)


def test_damage_is_found(store: LocalStorage) -> None:
    record = store.write_text(KEY, "blue")
    path = store.path(KEY)
    path.write_text("grey")  # same size, later
    os.utime(path, ns=(0, record.mtime_ns + 10**9))
    with pytest.raises(ProductDamagedError, match="was written"):
        store.verify(record.key, record.size, record.mtime_ns, record.sha256)
    os.utime(path, ns=(0, record.mtime_ns))  # only reading all bytes shows this one
    store.verify(record.key, record.size, record.mtime_ns, record.sha256)
    with pytest.raises(ProductDamagedError, match="SHA-256"):
        store.verify(record.key, record.size, record.mtime_ns, record.sha256, full=True)
    path.write_text("gr")
    with pytest.raises(ProductDamagedError, match="has 2 bytes, 4 were written"):
        store.verify(record.key, record.size, record.mtime_ns, record.sha256)
    path.unlink()
    for call in (lambda: store.verify(*vars(record).values()), lambda: store.describe(KEY), lambda: store.sha256(KEY)):
        with pytest.raises(ProductDamagedError, match="No such file"):
            call()


def test_a_copied_home_is_whole(store: LocalStorage, tmp_path: Path) -> None:
    record = store.write_text(KEY, "blue")
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copyfile)
    other = LocalStorage(tmp_path / "copy")
    os.utime(other.path(KEY), ns=(0, 1))
    other.verify(*vars(record).values())


def test_a_folder_is_published_and_replaced(store: LocalStorage, tmp_path: Path) -> None:
    store.publish_folder(stage(tmp_path / "w", "one"), "field/assoc")
    assert contents(store.path("field/assoc")) == {"a.fits": "one", "deep/b.fits": "one"}
    assert not (tmp_path / "w").exists()
    store.publish_folder(stage(tmp_path / "w", "two", ("c.fits",)), "field/assoc")
    assert contents(store.path("field/assoc")) == {"c.fits": "two"}
    assert not (tmp_path / "w").exists()
    assert os.listdir(store.path("field")) == ["assoc"]
    with pytest.raises(StorageError, match="nothing to publish"):
        store.publish_folder(tmp_path / "w", "field/assoc")


def test_without_exchange_two_renames_serve(store: LocalStorage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    store.publish_folder(stage(tmp_path / "w", "one"), "assoc")
    store.publish_folder(stage(tmp_path / "w", "two"), "assoc")
    assert set(contents(store.path("assoc")).values()) == {"two"}
    assert left_over(store) == []
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target).name == "assoc" and Path(source).name == "w":
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        store.publish_folder(stage(tmp_path / "w", "three"), "assoc")
    assert set(contents(store.path("assoc")).values()) == {"two"}
    assert (tmp_path / "w").exists()
    assert left_over(store) == []


def test_a_kill_between_two_renames_is_put_right(store: LocalStorage) -> None:
    folder = stage(store.path("assoc"), "one")
    os.replace(folder, folder.with_name(".assoc.old-77"))
    stage(folder.with_name(".assoc.part-88"), "half")
    stage(folder.with_name(".assoc2.part-99"), "another association's")
    assert store.clear_unfinished("assoc") == [".assoc.part-88"]
    assert set(contents(folder).values()) == {"one"}
    (folder / ".a.fits.part-11").write_text("half")
    stage(folder.with_name(".assoc.old-12"), "older")
    assert sorted(store.clear_unfinished("assoc")) == [".a.fits.part-11", ".assoc.old-12"]
    assert left_over(store) == [".assoc2.part-99"]


def test_another_disk_is_copied_first(store: LocalStorage, tmp_path: Path, monkeypatch: Any) -> None:
    if not SECOND_DISK.is_dir() or SECOND_DISK.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"there is no second file system at {SECOND_DISK}")
    staged = SECOND_DISK / f"panoramic-test-{os.getpid()}"
    try:
        store.publish_folder(stage(staged, "one"), "assoc")
        assert set(contents(store.path("assoc")).values()) == {"one"}
        assert not staged.exists()
        stage(staged, "two")
        monkeypatch.setattr(shutil, "copy2", no_room)
        with pytest.raises(DiskFullError):
            store.publish_folder(staged, "assoc")
        assert set(contents(store.path("assoc")).values()) == {"one"}
        assert set(contents(staged).values()) == {"two"}
        assert left_over(store) == []
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(store: LocalStorage, monkeypatch: Any, call: str) -> None:
    store.write_text(KEY, "blue")
    monkeypatch.setattr(os, call, no_room)
    with pytest.raises(DiskFullError, match=f"{KEY}: the disk is full"):
        store.write_text(KEY, "red")
    with pytest.raises(DiskFullError):
        store.write_text("new/thing", "red")
    monkeypatch.undo()
    assert store.path(KEY).read_text() == "blue"
    assert not store.exists("new/thing")
    assert left_over(store) == []


def test_the_kernel_refuses_a_write_in_the_middle(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    # a file size limit of the process makes the kernel refuse the write in the middle
    code = (
        "import resource, signal, sys; from pathlib import Path; from resources.storage import LocalStorage\n"
        "from panoramic.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    LocalStorage(Path(sys.argv[1])).write_bytes('big', b'x' * 200_000)\n"
        "except StorageError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "StorageError big: could not be written" in done.stdout
    assert [p for p in root.rglob("*") if p.is_file() and ".sqlite" not in p.name] == []


def test_room_is_asked_for_beforehand(store: LocalStorage, monkeypatch: Any) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 10**9))
    assert store.free_bytes() == 10**9
    store.require_room(10**9)
    with pytest.raises(DiskFullError, match=r"1\.00 GB free, 2\.50 GB are needed"):
        store.require_room(2_500_000_000)


HOLDER = """
import sys, time
from pathlib import Path
from resources.storage import field_lock
with field_lock("f1", Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_field_is_held_by_one_and_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path)
    busy = pytest.raises(FieldBusyError, match=f"f1 is held by process {process.pid}")
    with busy, field_lock("f1", tmp_path, blocking=False):
        pytest.fail("two hold one field")
    with field_lock("f2", tmp_path, blocking=False):
        pass  # another field is free
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with field_lock("f1", tmp_path, blocking=False):
        assert (tmp_path / "f1.lock").read_text() == f"process {os.getpid()}"
    assert (tmp_path / "f1.lock").read_text() == ""


def test_the_second_waits_and_says_so(tmp_path: Path) -> None:
    process = holder(tmp_path)
    said: list[str] = []

    def told(message: str) -> None:
        said.append(message)
        assert process.stdin is not None
        process.stdin.close()  # the first may end now

    got = threading.Event()

    def second() -> None:
        with field_lock("f1", tmp_path, on_wait=told):
            got.set()

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(timeout=30)
    assert got.is_set()
    process.wait()
    assert said == [f"f1 is held by process {process.pid}: waiting for it to end"]


def test_an_error_inside_frees_the_field(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), field_lock("f1", tmp_path):
        raise RuntimeError
    with field_lock("f1", tmp_path, blocking=False):
        pass
    with pytest.raises(StorageError, match="no name of a field"), field_lock("../f1", tmp_path):
        pass


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    from resources.storage import replacing

    path = tmp_path / "field.reg"
    path.write_text("old")
    with pytest.raises(DiskFullError, match=r"field\.reg"), replacing(path) as beside:
        beside.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    with replacing(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["field.reg"]
