"""MAST's protocol spoken by a local server to the unmodified astroquery client and to our own fetcher."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
import pytest
from astropy.io import fits

from panoramic.errors import (
    ArchiveAccessError,
    ArchiveUnavailableError,
    ChecksumMismatchError,
    DiskFullError,
    EmptyArchiveError,
    InputError,
    MissingKeywordError,
    TruncatedFileError,
)
from panoramic.provenance import digest_file
from panoramic.survey import MastArchive as MastRules
from panoramic.survey import Survey
from resources.archive import make_archive
from resources.archive_folder import FolderArchive
from resources.archive_mast import MastArchive

NAME = "jw02514162001_03201_00001_nrcblong_rate.fits"
SHAPE = (256, 256)  # larger than a few chunks of a transfer
PAGE = 10
TOKEN = "secret-of-a-test"  # noqa: S105


def exposure_bytes(**changed: Any) -> bytes:
    primary = {
        "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCBLONG", "CHANNEL": "LONG", "MODULE": "B",
        "FILTER": "F444W", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE", "SUBARRAY": "FULL", "DATE-OBS": "2025-06-01",
        "TIME-OBS": "01:02:03.4", "EXPSTART": 60827.0431, "EFFEXPTM": 1073.7,
    }  # fmt: skip
    science = dict.fromkeys(("RA_REF", "DEC_REF", "ROLL_REF", "V2_REF", "V3_REF", "V3I_YANG"), 1.0) | {"VPARITY": -1}
    primary.update(changed)
    hdus: list[Any] = [fits.PrimaryHDU(header=fits.Header({k: v for k, v in primary.items() if v is not None}))]
    for plane in ("SCI", "ERR", "DQ"):
        data = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
        hdus.append(fits.ImageHDU(data, header=fits.Header(science) if plane == "SCI" else None, name=plane))
    stream = io.BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


class Server:
    """What the local archive holds and how it misbehaves: `faults` are used up one by one, then all is well."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.always = ""
        self.requests: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization
        self.seen: Counter[str] = Counter()
        self.etag: str | None = '"v1"'
        self.url = ""

    def fault(self) -> str:
        return self.always or (self.faults.pop(0) if self.faults else "")


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def reply(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def note(self, what: str) -> None:
            server.seen[what] += 1
            server.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if "columnsconfig" in self.path:
                self.reply(200, b"{}")
                return
            self.note("query")
            question = json.loads(unquote(body.removeprefix("request=")))
            fault = server.fault()
            if fault.isdigit():
                self.reply(int(fault), b"oh dear", Retry_After="0")
                return
            if fault == "html":
                self.reply(200, b"<html>maintenance</html>", "text/html")
                return
            if fault == "executing":
                self.reply(200, b'{"status": "EXECUTING"}')
                return
            if fault == "error":
                self.reply(200, b'{"status": "ERROR", "msg": "column not found"}')
                return
            if fault == "cut":
                self.reply(200, b'{"status": "COMPLETE", "data": [')
                return
            rows = [row for row in server.rows if all(passes(row, f) for f in question["params"]["filters"])]
            first = (question["page"] - 1) * question["pagesize"]
            page = rows[first : first + question["pagesize"]]
            answer: dict[str, Any] = {"status": "COMPLETE", "msg": "", "data": page, "fields": []}
            total = len(rows)
            if fault == "empty page":
                answer["data"] = []
            if fault == "double page":
                answer["data"] = page[:1] * len(page)
            if fault == "rows change":
                total += 1
            answer["paging"] = {"page": question["page"], "pageSize": question["pagesize"], "rowsFiltered": total}
            if fault == "no paging":
                del answer["paging"]
            self.reply(200, json.dumps(answer).encode())

        def do_GET(self) -> None:
            self.note("download")
            uri = parse_qs(urlparse(self.path).query)["uri"][0]
            assert uri.startswith("mast:JWST/product/")
            fault = server.fault()
            if fault.isdigit():
                self.reply(int(fault), b"oh dear", Retry_After="0")
                return
            data = server.files.get(uri.rsplit("/", 1)[1])
            if data is None:
                self.reply(404, b"no such product")
                return
            if fault == "html":
                self.reply(200, b"<html>please log in</html>", "text/html")
                return
            if fault == "wrong bytes":
                data = data[:-1] + bytes([data[-1] ^ 1])
            if fault == "short":  # whole by its own length, but not the whole file
                self.reply(200, data[: len(data) // 2])
                return
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            current = self.headers.get("If-Range") in (None, server.etag)
            if start >= len(data) and asked and current:
                self.reply(416, b"")
                return
            partial = bool(asked) and current and fault != "range ignored"
            body = data[start:] if partial else data
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(len(body)))
            if server.etag:
                self.send_header("ETag", server.etag)
            if partial:
                place = start + (7 if fault == "other range" else 0)
                self.send_header("Content-Range", f"bytes {place}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
            self.close_connection = fault == "cut"

    return Handler


def passes(row: dict[str, Any], condition: dict[str, Any]) -> bool:
    value = row[condition["paramName"]]
    return any(v["min"] <= value <= v["max"] if isinstance(v, dict) else str(value) == v for v in condition["values"])


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def archive_at(server: Server, tmp_path: Path) -> Callable[..., MastArchive]:
    def make(token: str | None = None, programs: tuple[int, ...] = (2514,), retries: int = 2) -> MastArchive:
        rules = MastRules(kind="mast", url=server.url, timeout_s=10)
        return MastArchive(rules, programs, tmp_path / "down", token, 0.001, retries, PAGE, SHAPE)

    return make


def rows(n: int, program: int = 2514) -> list[dict[str, Any]]:
    return [
        {
            "ArchiveFileID": 1000 * program + k, "filename": f"jw{program:05d}001001_03201_{k + 1:05d}_nrcb1_cal.fits",
            "program": str(program), "productLevel": "2b" if k % 3 else "2a", "checksum": f"{k:032x}",
            "fileSize": 117573120, "ingestCompletionDate_mjd": 61000.0 + k, "obslabel": "", "cont_id": -999,
            "s_region": None, "isRestricted": False,
        }
        for k in range(n)
    ]  # fmt: skip


def no_part_left(folder: Path) -> bool:
    return not [p for p in folder.rglob("*") if p.name.endswith((".part", ".fits"))]


# --- looking --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, PAGE, PAGE + 1, 3 * PAGE])
def test_all_pages_are_read(server: Server, archive_at: Callable[..., MastArchive], n: int) -> None:
    server.rows = rows(n) + rows(5, 1345) + [rows(1)[0] | {"productLevel": "1b", "ArchiveFileID": 5}]
    look = archive_at().look()
    assert sorted(row["ArchiveFileID"] for row in look.rows) == [2514000 + k for k in range(n)]
    assert look.complete
    assert look.faults == []
    assert (look.rows[0]["obslabel"], look.rows[0]["cont_id"], look.rows[0]["s_region"]) == (None, None, None)
    assert look.rows[0]["isRestricted"] is False
    assert server.seen["query"] == -(-n // PAGE)


def test_a_window_overlaps_and_is_not_the_whole(server: Server, archive_at: Callable[..., MastArchive]) -> None:
    server.rows = rows(30)
    look = archive_at().look(since_mjd=61020.0)
    assert min(row["ingestCompletionDate_mjd"] for row in look.rows) == 61019.0
    assert not look.complete
    assert archive_at().look(since_mjd=70000.0).rows == []


def test_what_does_not_exist(server: Server, archive_at: Callable[..., MastArchive]) -> None:
    server.rows = rows(3)
    with pytest.raises(EmptyArchiveError, match=r"no NIRCam exposure .* of program 77, 78"):
        archive_at(programs=(77, 78)).look()
    with pytest.raises(InputError, match="needs programs"):
        archive_at(programs=()).look()


@pytest.mark.parametrize("faults", [["500"], ["429", "503"], ["executing", "executing"]])
def test_a_query_that_fails_is_asked_again(
    server: Server, archive_at: Callable[..., MastArchive], faults: list[str]
) -> None:
    server.rows, server.faults = rows(3), list(faults)
    assert len(archive_at().look().rows) == 3
    assert server.seen["query"] == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ("500", ArchiveUnavailableError, "status 500"),
        ("429", ArchiveUnavailableError, "status 429"),
        ("404", ArchiveUnavailableError, "status 404"),
        ("401", ArchiveAccessError, "set a MAST token"),
        ("403", ArchiveAccessError, "status 403"),
        ("html", ArchiveUnavailableError, "no JSON"),
        ("cut", ArchiveUnavailableError, "no JSON"),
        ("error", ArchiveUnavailableError, "column not found"),
        ("empty page", ArchiveUnavailableError, "page 1 is empty after 0 of 25 rows"),
        ("double page", ArchiveUnavailableError, "25 rows announced, 3 different ones"),
        ("no paging", ArchiveUnavailableError, "malformed"),
    ],
)
def test_what_the_user_sees_of_a_failed_query(
    server: Server, archive_at: Callable[..., MastArchive], fault: str, error: type[Exception], match: str
) -> None:
    server.rows, server.always = rows(25), fault
    with pytest.raises(error, match=match):
        archive_at().look()


def test_rows_that_change_while_they_are_read(server: Server, archive_at: Callable[..., MastArchive]) -> None:
    server.rows, server.faults = rows(25), ["", "rows change"]
    with pytest.raises(ArchiveUnavailableError, match="changed while they were read"):
        archive_at().look()


def test_no_server_at_all(server: Server, tmp_path: Path) -> None:
    rules = MastRules(kind="mast", url="http://127.0.0.1:9", timeout_s=1)
    with pytest.raises(ArchiveUnavailableError, match="try again later"):
        MastArchive(rules, (1,), tmp_path, backoff_factor=0.001, retries=1).look()


def test_the_token_is_a_header_and_in_no_message(server: Server, archive_at: Callable[..., MastArchive]) -> None:
    server.rows, server.files[NAME] = rows(1), exposure_bytes()
    archive = archive_at(TOKEN)
    archive.look()
    archive.fetch(NAME)
    assert {r[2] for r in server.requests} == {f"token {TOKEN}"}
    server.always = "401"
    for call in (archive.look, lambda: archive.fetch("jw02514162001_03201_00002_nrcblong_rate.fits")):
        with pytest.raises(ArchiveAccessError, match="the token is wrong, expired") as caught:
            call()
        assert TOKEN not in str(caught.value)


# --- fetching -------------------------------------------------------------------------------


def known(data: bytes, tmp_path: Path) -> tuple[int, str]:
    (tmp_path / "original").write_bytes(data)
    return len(data), digest_file(tmp_path / "original", "md5")


def test_a_file_is_fetched_once(server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "faults",
    [
        ["500"], ["cut"], ["cut", "cut", "cut"], ["cut", "range ignored"], ["cut", "other range"], ["html"],
        ["wrong bytes"], ["short"], ["short", "wrong bytes", "cut"],
    ],
)  # fmt: skip
def test_a_spoilt_transfer_is_mended(
    server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path, faults: list[str]
) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.faults = list(faults)
    assert archive_at().fetch(NAME, *known(data, tmp_path)).read_bytes() == data
    assert server.faults == []
    assert not list((tmp_path / "down").rglob("*.part"))


def test_a_cut_transfer_goes_on_where_it_was_cut(
    server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path
) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.always = "cut"
    with pytest.raises(ArchiveUnavailableError):
        archive_at().fetch(NAME, *known(data, tmp_path))
    came = (tmp_path / "down" / "jw02514" / f".{NAME}.part").stat().st_size
    assert len(data) / 2 < came < len(data)
    server.always, server.requests = "", []
    assert archive_at().fetch(NAME, *known(data, tmp_path)).read_bytes() == data
    assert server.requests[0][1] == f"bytes={came}-"


def test_the_rest_of_another_version_is_not_added(
    server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path
) -> None:
    server.files[NAME] = exposure_bytes()
    server.always = "cut"
    with pytest.raises(ArchiveUnavailableError):
        archive_at().fetch(NAME)
    data = server.files[NAME] = exposure_bytes(PUPIL="F470N")
    server.always, server.etag = "", '"v2"'
    assert archive_at().fetch(NAME).read_bytes() == data


def test_without_version_and_checksum_it_begins_again(
    server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path
) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.etag, server.faults = None, ["cut"]
    assert archive_at().fetch(NAME).read_bytes() == data
    assert [r[1] for r in server.requests] == [None, None]


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ("wrong bytes", ChecksumMismatchError, "has the md5"),
        ("html", ArchiveUnavailableError, "no FITS file.*please log in"),
        ("short", ArchiveUnavailableError, "bytes came"),
        ("cut", ArchiveUnavailableError, "the transfer was cut"),
        ("500", ArchiveUnavailableError, "status 500"),
        ("401", ArchiveAccessError, "set a MAST token"),
        ("404", ArchiveUnavailableError, "status 404"),
    ],
)
def test_no_wrong_file_is_left(
    server: Server,
    archive_at: Callable[..., MastArchive],
    tmp_path: Path,
    fault: str,
    error: type[Exception],
    match: str,
) -> None:
    data = server.files[NAME] = exposure_bytes()
    server.always = fault
    with pytest.raises(error, match=match) as caught:
        archive_at().fetch(NAME, *known(data, tmp_path))
    assert NAME in str(caught.value)
    assert not (tmp_path / "down" / "jw02514" / NAME).exists()
    if fault not in ("cut", "short"):  # what may go on is kept beside the place
        assert no_part_left(tmp_path / "down")


def test_without_checksum_the_structure_decides(
    server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path
) -> None:
    server.files[NAME] = exposure_bytes()[:-2880]
    with pytest.raises(TruncatedFileError, match=NAME):
        archive_at().fetch(NAME)
    server.files[NAME] = exposure_bytes(FILTER=None)
    with pytest.raises(MissingKeywordError, match="lacks FILTER"):
        archive_at().fetch(NAME)
    assert no_part_left(tmp_path / "down")


def test_a_full_disk_leaves_nothing(
    server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[NAME] = exposure_bytes()

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("resources.downloads.os.fsync", no_room)
    with pytest.raises(DiskFullError, match=NAME):
        archive_at().fetch(NAME)
    assert no_part_left(tmp_path / "down")


def test_several_at_once_fetch_one_file_once(
    server: Server, archive_at: Callable[..., MastArchive], tmp_path: Path
) -> None:
    data = server.files[NAME] = exposure_bytes()
    asked = known(data, tmp_path)
    archives = [archive_at() for _ in range(4)]
    threads = [threading.Thread(target=archive.fetch, args=(NAME, *asked)) for archive in archives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.seen["download"] == 1


def test_the_survey_file_chooses_the_archive(tmp_path: Path) -> None:
    mast = make_archive(Survey(name="a", programs=(1,), archive=MastRules(kind="mast")), tmp_path, TOKEN)
    assert isinstance(mast, MastArchive)
    assert mast.url == "https://mast.stsci.edu"
    assert (mast.crds_cache, mast.grizli_folder, mast.reference_catalog_folder) == (None, None, None)
    folder = Survey.parse(f"name: b\narchive: {{kind: folder, path: {tmp_path}/x}}", tmp_path / "s.yaml")
    archive = make_archive(folder, tmp_path)
    assert isinstance(archive, FolderArchive)
    assert archive.path == tmp_path / "x"
