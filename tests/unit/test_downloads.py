"""Downloads of which no wrong byte is ever used: every fault, a kill at any point, several at one file."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mast_examples import NAME, SHAPE, exposure_bytes, known, no_part_left

from panoramic.errors import (
    ArchiveAccessError,
    ArchiveUnavailableError,
    ChecksumMismatchError,
    DiskFullError,
    MissingKeywordError,
    TruncatedFileError,
)
from panoramic.simulate.server import CHUNK, ArchiveServer
from resources.archive import FileRequest
from resources.archive_mast import MastArchive
from resources.downloads import SeldomProgress

Maker = Callable[..., MastArchive]

CHILD = f"""
import sys
from pathlib import Path
from panoramic.survey import MastArchive as Rules
from resources.archive_mast import MastArchive
url, folder, name, size, checksum = sys.argv[1:]
archive = MastArchive(Rules(kind="mast", url=url), (2514,), Path(folder), backoff_factor=0.001, shape={SHAPE})
print("ready", flush=True)
print(archive.fetch(name, int(size), checksum), flush=True)
"""


def child(server: ArchiveServer, folder: Path, size: int, checksum: str) -> subprocess.Popen[str]:
    """A process of its own that fetches the file."""
    command = [sys.executable, "-c", CHILD, server.url, str(folder), NAME, str(size), checksum]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def part_of(folder: Path) -> Path:
    return folder / "jw02514" / f".{NAME}.part"


def test_a_file_is_fetched_once(server: ArchiveServer, archive_at: Maker, tmp_path: Path) -> None:
    data = server.files[NAME] = exposure_bytes()
    path = archive_at().fetch(NAME, *known(data, tmp_path))
    assert path == tmp_path / "down" / "jw02514" / NAME
    assert path.read_bytes() == data
    for more in ((), known(data, tmp_path)):
        assert archive_at().fetch(NAME, *more) == path
    assert server.seen["download"] == 1
    path.write_bytes(data[:-2880])  # damaged since: fetched again
    archive_at().fetch(NAME)
    assert path.read_bytes() == data
    server.files[NAME] = newer = exposure_bytes(PUPIL="F470N")
    assert len(newer) == len(data)
    archive_at().fetch(NAME, *known(newer, tmp_path))  # the archive says another checksum: fetched again
    assert path.read_bytes() == newer


# --- faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        ["500"], ["429"], ["cut"], ["cut", "cut", "cut"], ["cut", "range ignored"], ["cut", "other range"], ["html"],
        ["wrong bytes"], ["older version"], ["short"], ["short", "wrong bytes", "cut"], ["hang"], ["stall"],
    ],
)  # fmt: skip
def test_a_spoilt_transfer_is_mended(
    server: ArchiveServer, archive_at: Maker, tmp_path: Path, faults: list[str]
) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.older[NAME] = exposure_bytes(CAL_VER="1.15.0")
    server.faults = list(faults)
    silent = faults[0] in ("hang", "stall")
    archive = archive_at(timeout_s=0.5 if silent else 10)
    assert archive.fetch(NAME, *known(data, tmp_path)).read_bytes() == data
    assert server.faults == []
    assert [p.name for p in (tmp_path / "down" / "jw02514").iterdir() if p.name.endswith((".part", ".tag"))] == []


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ("wrong bytes", ChecksumMismatchError, "has the md5"),
        ("older version", ChecksumMismatchError, "has the md5"),
        ("html", ArchiveUnavailableError, "no FITS file.*maintenance"),
        ("short", ArchiveUnavailableError, "bytes came"),
        ("cut", ArchiveUnavailableError, "the transfer was cut"),
        ("stall", ArchiveUnavailableError, "the transfer was cut"),
        ("hang", ArchiveUnavailableError, "try again later"),
        ("429", ArchiveUnavailableError, "status 429"),
        ("500", ArchiveUnavailableError, "status 500"),
        ("401", ArchiveAccessError, "set a MAST token"),
        ("404", ArchiveUnavailableError, "status 404"),
    ],
)
def test_no_wrong_file_is_left(
    server: ArchiveServer, archive_at: Maker, tmp_path: Path, fault: str, error: type[Exception], match: str
) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.older[NAME] = exposure_bytes(CAL_VER="1.15.0")
    server.always = fault
    archive = archive_at(timeout_s=0.2 if fault in ("hang", "stall") else 10, retries=1)
    with pytest.raises(error, match=match) as caught:
        archive.fetch(NAME, *known(data, tmp_path))
    assert NAME in str(caught.value)
    assert not (tmp_path / "down" / "jw02514" / NAME).exists()
    if fault not in ("cut", "short", "stall"):  # what may go on is kept beside the place
        assert no_part_left(tmp_path / "down")
    server.always = ""
    assert archive.fetch(NAME, *known(data, tmp_path)).read_bytes() == data


def test_without_checksum_the_structure_decides(server: ArchiveServer, archive_at: Maker, tmp_path: Path) -> None:
    server.files[NAME] = exposure_bytes()[:-2880]
    with pytest.raises(TruncatedFileError, match=NAME):
        archive_at().fetch(NAME)
    server.files[NAME] = exposure_bytes(FILTER=None)
    with pytest.raises(MissingKeywordError, match="lacks FILTER"):
        archive_at().fetch(NAME)
    assert no_part_left(tmp_path / "down")


def test_a_full_disk_leaves_nothing(
    server: ArchiveServer, archive_at: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[NAME] = exposure_bytes()

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("resources.downloads.os.fsync", no_room)
    with pytest.raises(DiskFullError, match=NAME):
        archive_at().fetch(NAME)
    assert no_part_left(tmp_path / "down")


# --- versions -------------------------------------------------------------------------------


def test_an_older_version_of_the_same_size_is_refused(server: ArchiveServer, archive_at: Maker, tmp_path: Path) -> None:
    server.files[NAME] = older = exposure_bytes(CAL_VER="1.9.2")
    with pytest.raises(ChecksumMismatchError, match=r"software 1\.9\.2, the archive's row says 1\.16\.1: an older"):
        archive_at().fetch(NAME, len(older), None, "1.16.1")
    assert no_part_left(tmp_path / "down")
    assert archive_at().fetch(NAME, len(older), None, "1.9.2").read_bytes() == older
    newer = server.files[NAME] = exposure_bytes(CAL_VER="1.16.1")
    assert archive_at().fetch(NAME, len(older), None, "1.16.1").read_bytes() == newer  # what is there became old


@pytest.mark.parametrize("cal_ver", [None, "", "unknown", "1.17.0.dev3"])
def test_what_is_no_older_version_is_not_refused(server: ArchiveServer, archive_at: Maker, cal_ver: str | None) -> None:
    server.files[NAME] = exposure_bytes(CAL_VER=cal_ver)
    assert archive_at().fetch(NAME, None, None, "1.16.1").is_file()


def test_the_md5_overrules_the_version(server: ArchiveServer, archive_at: Maker, tmp_path: Path) -> None:
    data = server.files[NAME] = exposure_bytes(CAL_VER="1.9.2")
    assert archive_at().fetch(NAME, *known(data, tmp_path), "1.16.1").is_file()


def test_a_dataset_that_was_made_anew_is_fetched_anew(server: ArchiveServer, archive_at: Maker) -> None:
    server.files[NAME] = exposure_bytes()
    (path,) = archive_at().fetch_many([FileRequest(NAME, file_id=1)]).values()
    archive_at().fetch_many([FileRequest(NAME, file_id=1)])
    archive_at().fetch_many([FileRequest(NAME)])
    assert server.seen["download"] == 1
    newer = server.files[NAME] = exposure_bytes(CRDS_CTX="jwst_1400.pmap")  # same size, same software
    assert len(newer) == path.stat().st_size
    archive_at().fetch_many([FileRequest(NAME, file_id=2)])
    assert path.read_bytes() == newer


# --- going on -------------------------------------------------------------------------------


def test_a_cut_transfer_goes_on_where_it_was_cut(server: ArchiveServer, archive_at: Maker, tmp_path: Path) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.always = "cut"
    with pytest.raises(ArchiveUnavailableError):
        archive_at().fetch(NAME, *known(data, tmp_path))
    came = part_of(tmp_path / "down").stat().st_size
    assert len(data) / 2 < came < len(data)
    server.always, server.requests = "", []
    assert archive_at().fetch(NAME, *known(data, tmp_path)).read_bytes() == data
    assert server.requests[0][1] == f"bytes={came}-"


def cut(server: ArchiveServer, archive: MastArchive, request: FileRequest) -> None:
    """Leave the beginning of a file."""
    server.always = "cut"
    with pytest.raises(ArchiveUnavailableError):
        archive.fetch_many([request])
    server.always, server.requests = "", []


def test_the_rest_of_another_version_is_not_added(server: ArchiveServer, archive_at: Maker) -> None:
    server.files[NAME] = exposure_bytes()
    cut(server, archive_at(), FileRequest(NAME))
    data = server.files[NAME] = exposure_bytes(PUPIL="F470N")
    server.etag = '"v2"'
    assert archive_at().fetch(NAME).read_bytes() == data


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (FileRequest(NAME, cal_ver="1.15.0"), FileRequest(NAME, cal_ver="1.16.1")),
        (FileRequest(NAME, file_id=1), FileRequest(NAME, file_id=2)),
        (FileRequest(NAME, checksum="0" * 32), FileRequest(NAME)),
    ],
)
def test_a_part_of_what_was_wanted_before_is_dropped(
    server: ArchiveServer, archive_at: Maker, first: FileRequest, then: FileRequest
) -> None:
    server.files[NAME] = exposure_bytes()
    cut(server, archive_at(), first)
    data = server.files[NAME] = exposure_bytes(PUPIL="F470N")  # and a server that calls it by the same tag
    (path,) = archive_at().fetch_many([then]).values()
    assert path.read_bytes() == data
    assert [r[1] for r in server.requests if "Download" in r[0]] == [None]


@pytest.mark.parametrize("tag", [None, "", '{"wanted": {"si', "[]"])
def test_a_part_whose_tag_is_lost_is_dropped(
    server: ArchiveServer, archive_at: Maker, tmp_path: Path, tag: str | None
) -> None:
    data = server.files[NAME] = exposure_bytes()
    part = part_of(tmp_path / "down")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"SIMPLE  = of something else")
    if tag is not None:
        part.with_suffix(".tag").write_text(tag)
    assert archive_at().fetch(NAME, *known(data, tmp_path)).read_bytes() == data
    assert [r[1] for r in server.requests if "Download" in r[0]] == [None]


def test_without_version_and_checksum_it_begins_again(server: ArchiveServer, archive_at: Maker) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.etag, server.faults = None, ["cut"]
    assert archive_at().fetch(NAME).read_bytes() == data
    assert [r[1] for r in server.requests if "Download" in r[0]] == [None, None]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_download_that_is_killed_goes_on(
    server: ArchiveServer, archive_at: Maker, tmp_path: Path, share: float
) -> None:
    data = server.files[NAME] = exposure_bytes()
    size, checksum = known(data, tmp_path)
    reached, killed = threading.Event(), threading.Event()

    def hold(_: str, sent: int) -> None:
        if sent >= max(CHUNK, share * size):
            reached.set()
            killed.wait(60)

    server.on_bytes = hold
    process = child(server, tmp_path / "down", size, checksum)
    assert reached.wait(60)
    process.kill()
    process.communicate()
    killed.set()
    server.on_bytes = None
    target, part = tmp_path / "down" / "jw02514" / NAME, part_of(tmp_path / "down")
    came = part.stat().st_size if part.exists() else 0
    whole = target.exists()  # all had come, and it was quicker than the kill
    assert not whole or share == 1.0
    if share == 0.5:
        assert CHUNK <= came < size
        tag = json.loads(part.with_suffix(".tag").read_text())
        assert (tag["wanted"]["checksum"], tag["version"]) == (checksum, server.etag)
    server.requests = []
    assert archive_at().fetch(NAME, size, checksum).read_bytes() == data
    asked = [r[1] for r in server.requests if "Download" in r[0]]
    assert asked == ([] if whole or came == size else [f"bytes={came}-" if came else None])
    assert not part.exists()


# --- several at once ------------------------------------------------------------------------


def test_several_threads_fetch_one_file_once(server: ArchiveServer, archive_at: Maker, tmp_path: Path) -> None:
    data = server.files[NAME] = exposure_bytes()
    asked = known(data, tmp_path)
    archives = [archive_at() for _ in range(4)]
    threads = [threading.Thread(target=archive.fetch, args=(NAME, *asked)) for archive in archives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.seen["download"] == 1


def test_two_processes_fetch_one_file_once(server: ArchiveServer, tmp_path: Path) -> None:
    data = server.files[NAME] = exposure_bytes()
    both_are_ready = threading.Event()
    server.on_bytes = lambda *_: both_are_ready.wait(60) and None
    processes = [child(server, tmp_path / "down", *known(data, tmp_path)) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    both_are_ready.set()
    places = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert places == {str(tmp_path / "down" / "jw02514" / NAME)}
    assert Path(places.pop()).read_bytes() == data
    assert server.seen["download"] == 1


def test_progress_is_told_seldom() -> None:
    now, told = [0.0], []
    progress = SeldomProgress(lambda *line: told.append(line), every_s=5.0, clock=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        progress("a", second, None)
    assert told == [("a", 0, None), ("a", 5, None), ("a", 10, None)]
