"""A local archive server: MAST's protocol before rows and files of ours, and its faults on demand.

Put here what the real archive answers to astroquery's client and to our fetcher, and how it misbehaves. Keep out how
rows and files are made (`archive.py`) and everything that the asking side decides.

Served are the keyword service ``Mast.Jwst.Filtered.Nircam``, its columns, the missions search of ``jwst`` with the
product list, ``/whoami``, and downloads with ranges and tokens. The real archive was not reached: the protocol is that
of astroquery 0.4.11's source.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from panoramic.errors import InputError

SERVICE = "Mast.Jwst.Filtered.Nircam"
CHUNK = 64 * 1024
SEND_BUFFER = 64 * 1024  # small, so that what was sent was mostly received
EPOCH_MJD = 40587.0

FAULTS = {
    "hang": "no answer until the client gives up",
    "stall": "half of a file, then silence",
    "html": "a web page with status 200",
    "executing": "the query is still at work",
    "error": "the query failed",
    "cut": "a body that ends before its announced length",
    "short": "half of a file, announced as if it were all",
    "empty page": "a page without rows",
    "double page": "a page of the same row",
    "no paging": "a page that does not say how many rows there are",
    "rows change": "another number of rows than before",
    "wrong bytes": "a file with another last byte: of the right size, with the wrong md5",
    "older version": "what `ArchiveServer.older` holds of the file",
    "range ignored": "the whole file where a part was asked for",
    "other range": "another part than was asked for",
}
"""Faults by name; besides, any HTTP status as a number (429 comes with Retry-After)."""

# digits that are no numbers: a version 1.20, a digest, the parts of a name
TEXT_COLUMNS = {
    "act_id", "cal_ver", "checksum", "crds_ctx", "crds_ver", "filename", "fileSetName", "obs_id", "prd_ver", "program",
    "s_region", "sdp_ver", "visit_id", "visitgrp",
}  # fmt: skip
SEARCH_COLUMNS = {"fileSetName": "varchar", "program": "varchar", "instrume": "varchar"}

Content = bytes | Path


class ArchiveServer:
    """What the server holds and how it misbehaves; anything may be changed while it runs.

    Parameters
    ----------
    rows : archive rows under MAST's column names.
    files : content by file name, in memory or on disk.
    token : the one valid token; None if there is none. Files whose row has a ``publicReleaseDate_mjd`` in the future
        need it.

    Attributes
    ----------
    granted : programs that the token has rights to; None: all.
    other_programs : programs that exist, without NIRCam images.
    faults : names of `FAULTS` or status numbers, used up one by one by queries and downloads, then all is well; an
        empty text lets one request pass.
    always : a fault of every query and download.
    broken : a fault of every request of a kind (``query``, ``download``, ``whoami``, ``search``, ``products``).
    older : an older version of a file, by its name.
    requests : (path, Range, Authorization) of each request.
    questions : each query of the keyword service, as JSON.
    seen : number of requests by kind.
    etag : of files in memory; None: the server tells no versions.
    retry_after : *seconds*, as text, sent with 429 and 503.
    on_bytes : called in the handler's thread with a file's name and the bytes of it that this reply has sent so far.
    url : where the server listens.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]] = (),
        files: Mapping[str, Content] | None = None,
        token: str | None = None,
    ) -> None:
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        self.files: dict[str, Content] = dict(files or {})
        self.older: dict[str, bytes] = {}
        self.token = token
        self.granted: set[int] | None = None
        self.other_programs: set[int] = set()
        self.faults: list[str] = []
        self.always = ""
        self.broken: dict[str, str] = {}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.questions: list[str] = []
        self.seen: Counter[str] = Counter()
        self.etag: str | None = '"v1"'
        self.retry_after = "0"
        self.on_bytes: Callable[[str, int], None] | None = None
        self.url = ""
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def begin(self, kind: str, request: tuple[str, str | None, str | None]) -> str:
        """Note a request, and say which fault it meets."""
        with self._lock:
            self.seen[kind] += 1
            self.requests.append(request)
            fault = self.broken.get(kind, "")
            if not fault and kind in ("query", "download"):
                fault = self.always or (self.faults.pop(0) if self.faults else "")
        if fault and fault not in FAULTS and not fault.isdigit():
            raise ValueError(f"unknown fault {fault!r}; there are {', '.join(FAULTS)} and status numbers")
        return fault

    def is_valid(self, authorization: str | None) -> bool:
        """Whether a request brings the valid token."""
        return self.token is not None and authorization == f"token {self.token}"

    def refusal(self, name: str, authorization: str | None) -> int:
        """The status with which a file is refused, 0 where it is not."""
        row = next((r for r in self.rows if dataset_of(str(r["filename"])) == dataset_of(name)), None)
        if row is None or (row.get("publicReleaseDate_mjd") or 0.0) <= now_mjd():
            return 0
        if not self.is_valid(authorization):
            return 401
        return 0 if self.granted is None or int(row["program"]) in self.granted else 403

    def file_sets(self) -> list[dict[str, Any]]:
        """The file sets that the missions search knows."""
        sets = {
            _file_set(row): {
                "fileSetName": _file_set(row),
                "program": str(row["program"]),
                "instrume": row.get("instrume") or "NIRCAM",
            }
            for row in self.rows
        }
        for program in sorted(self.other_programs):
            name = f"jw{program:05d}001001_02101_00001"
            sets[name] = {"fileSetName": name, "program": str(program), "instrume": "MIRI"}
        return list(sets.values())

    def products(self, file_sets: Sequence[str]) -> list[dict[str, Any]]:
        """The product list of file sets: the rows' files, and those that are there without a row."""
        asked = set(file_sets)
        sizes = {str(r["filename"]): r.get("fileSize") for r in self.rows if _file_set(r) in asked}
        sizes |= {n: _size(c) for n, c in self.files.items() if dataset_of(n).rpartition("_")[0] in asked}
        return [
            {
                "product_key": name,
                "access": "RESTRICTED" if self.refusal(name, None) else "PUBLIC",
                "dataset": dataset_of(name).rpartition("_")[0],
                "instrument_name": "NIRCAM",
                "filename": name,
                "uri": f"mast:JWST/product/{name}",
                "file_suffix": f"_{name.rpartition('_')[2].removesuffix('.fits')}",
                "size": size,
                "type": "science",
            }
            for name, size in sorted(sizes.items())
        ]


class _HttpServer(ThreadingHTTPServer):
    """A server that knows its archive."""

    request_queue_size = 64

    def __init__(self, address: tuple[str, int], archive: ArchiveServer) -> None:
        self.archive = archive
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: _HttpServer

    def setup(self) -> None:
        """Keep little under way to the client."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        super().setup()

    def log_message(self, *args: object) -> None:
        """Stay silent: `ArchiveServer.requests` is the log."""

    def do_POST(self) -> None:
        """Answer a query, the columns, a search or a product list."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = urlparse(self.path).path
        if path.endswith("/columnsconfig"):
            self._reply_json({name: {"text": name, "type": kind} for name, kind in _types(self.server.archive.rows)})
        elif path.endswith("/invoke"):
            self._query(json.loads(unquote(body.removeprefix("request="))))
        elif path == "/search/jwst/api/v0.1/search":
            self._search(json.loads(body))
        elif path == "/search/jwst/api/v0.1/post_list_products":
            if not self._fails("products"):
                self._reply_json({"products": self.server.archive.products(json.loads(body)["dataset_ids"])})
        else:
            self._reply(404, b"no such service")

    def do_GET(self) -> None:
        """Answer who asks, the columns of the missions search, or a download."""
        url = urlparse(self.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/whoami":
            if not self._fails("whoami"):
                known = self.server.archive.is_valid(self.headers.get("Authorization"))
                self._reply_json({"anon": not known, "attrib": {"display_name": "a user"} if known else {}})
        elif url.path == "/search/util/api/v0.1/column_list":
            columns = SEARCH_COLUMNS.items()
            self._reply_json([{"column_name": n, "qual_type": kind, "description": ""} for n, kind in columns])
        elif url.path == "/api/v0.1/Download/file":
            self._download(asked["uri"].removeprefix("mast:JWST/product/"))
        elif url.path == "/search/jwst/api/v0.1/retrieve_product":
            self._download(asked["product_name"].removeprefix("mast:JWST/product/"))
        else:
            self._reply(404, b"no such page")

    # --- replies ----------------------------------------------------------------------------

    def _begin(self, kind: str) -> str:
        request = (self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        return self.server.archive.begin(kind, request)

    def _reply(self, status: int, body: bytes, kind: str = "application/json", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if status in (429, 503):
            self.send_header("Retry-After", self.server.archive.retry_after)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gave up
            self.wfile.write(body)

    def _reply_json(self, value: object) -> None:
        self._reply(200, json.dumps(value).encode())

    def _fails(self, kind: str) -> bool:
        """Whether the request met a fault that any request can meet, and got it."""
        return self._common_fault(self._begin(kind))

    def _common_fault(self, fault: str) -> bool:
        if fault.isdigit():
            self._reply(int(fault), b"oh dear")
        elif fault == "html":
            self._reply(200, b"<html>maintenance: please log in</html>", "text/html")
        elif fault == "hang":
            self.server.archive.stopping.wait()
        else:
            return False
        return True

    # --- services ---------------------------------------------------------------------------

    def _query(self, question: dict[str, Any]) -> None:
        fault = self._begin("query")
        self.server.archive.questions.append(json.dumps(question))
        if self._common_fault(fault):
            return
        if fault == "executing":
            self._reply_json({"status": "EXECUTING"})
            return
        if fault == "error" or question["service"] != SERVICE:
            self._reply_json({"status": "ERROR", "msg": "column not found"})
            return
        if fault == "cut":
            self._reply(200, b'{"status": "COMPLETE", "data": [')
            return
        conditions = question["params"].get("filters", [])
        rows = [row for row in self.server.archive.rows if all(_passes(row, c) for c in conditions)]
        size, number, total = int(question["pagesize"]), int(question["page"]), len(rows)
        page = rows[(number - 1) * size : number * size]
        total += fault == "rows change"
        answer: dict[str, Any] = {
            "status": "COMPLETE",
            "msg": "",
            "data": {"empty page": [], "double page": page[:1] * len(page)}.get(fault, page),
            "fields": [{"name": name, "type": kind} for name, kind in _types(rows)],
            "paging": {
                "page": number,
                "pageSize": size,
                "pagesFiltered": -(-total // size),
                "rows": len(page),
                "rowsFiltered": total,
                "rowsTotal": len(self.server.archive.rows),
            },
        }
        if fault == "no paging":
            del answer["paging"]
        self._reply_json(answer)

    def _search(self, question: dict[str, Any]) -> None:
        if self._fails("search"):
            return
        wanted: dict[str, set[str]] = {}
        for condition in question.get("conditions", []):
            wanted |= {name: {v.strip() for v in str(value).split(",")} for name, value in condition.items()}
        found = [s for s in self.server.archive.file_sets() if all(str(s[n]) in v for n, v in wanted.items())]
        first = int(question.get("offset") or 0)
        self._reply_json(
            {
                "results": found[first : first + int(question.get("limit") or 5000)],
                "totalResults": len(found),
                "info": [{"column_name": name, "db_type": kind} for name, kind in SEARCH_COLUMNS.items()],
            }
        )

    # --- files ------------------------------------------------------------------------------

    def _download(self, name: str) -> None:
        archive, fault = self.server.archive, self._begin("download")
        if self._common_fault(fault):
            return
        content = archive.files.get(name)
        refused = archive.refusal(name, self.headers.get("Authorization"))
        if refused or content is None:
            self._reply(refused or 404, b"refused" if refused else b"no such product")
            return
        if fault == "wrong bytes":
            data = content if isinstance(content, bytes) else content.read_bytes()
            content = data[:-1] + bytes([data[-1] ^ 1])
        elif fault == "older version":
            content = archive.older[name]
        total, version = _size(content), archive.etag if isinstance(content, bytes) else _version(content)
        if fault == "short":
            self.send_response(200)
            self.send_header("Content-Length", str(total // 2))
            self.end_headers()
            self._send(name, content, 0, total // 2)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        partial = bool(asked) and self.headers.get("If-Range") in (None, version) and fault != "range ignored"
        first = int(asked[1]) if asked and partial else 0
        end = min(int(asked[2]) + 1, total) if asked and partial and asked[2] else total
        if partial and first >= total:
            self._reply(416, b"")
            return
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", "application/fits")
        self.send_header("Content-Length", str(end - first))
        self.send_header("Accept-Ranges", "bytes")
        if version:
            self.send_header("ETag", version)
        if partial:
            shift = 7 if fault == "other range" else 0
            self.send_header("Content-Range", f"bytes {first + shift}-{end - 1}/{total}")
        self.end_headers()
        self._send(name, content, first, (first + end) // 2 if fault in ("cut", "stall") else end)
        if fault == "stall":
            archive.stopping.wait()

    def _send(self, name: str, content: Content, first: int, end: int) -> None:
        """Bytes of a file from `first` up to `end`, a chunk at a time."""
        tell, sent = self.server.archive.on_bytes, 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gave up
            for chunk in _chunks(content, first, end):
                self.wfile.write(chunk)
                sent += len(chunk)
                if tell is not None:
                    tell(name, sent)


@contextlib.contextmanager
def running_server(
    rows: Sequence[Mapping[str, Any]] = (),
    files: Mapping[str, Content] | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[ArchiveServer]:
    """A server at work in threads of its own, ended with the block.

    Parameters
    ----------
    rows, files, token : see `ArchiveServer`.
    port : 0 takes any free one.

    Raises
    ------
    InputError
        The address can't be listened at.
    """
    archive = ArchiveServer(rows, files, token)
    try:
        http = _HttpServer((host, port), archive)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened at ({error.strerror})"
        raise InputError(f"port {port} of {host} {why}: choose another") from error
    archive.url = f"http://{host}:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        archive.stopping.set()
        http.shutdown()
        http.server_close()
        thread.join()


def serve_archive(
    folder: Path | str,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    announce: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Put a simulated archive's folder behind MAST's protocol; returns when it is told to stop.

    Parameters
    ----------
    folder : as `panoramic.simulate.archive.simulate_archive` writes it.
    port : 0 takes any free one.
    token : what unreleased files need; None: nobody gets them.
    announce : told the address once the server listens, for the survey file's ``archive: {kind: mast, url: ...}``.
    stop : set from another thread, it ends the service; without it, only an interrupt (Ctrl-C) does.

    Raises
    ------
    InputError
        The folder holds no simulated archive, or the address can't be listened at.
    KeyboardInterrupt
        After the service has ended.
    """
    rows, files = folder_contents(folder)
    with running_server(rows, files, token, host, port) as archive:
        if announce is not None:
            announce(archive.url)
        (stop or threading.Event()).wait()


def folder_contents(folder: Path | str) -> tuple[list[dict[str, Any]], dict[str, Content]]:
    """Rows (plain numbers, None for empty cells) and files of a simulated archive's folder.

    Raises
    ------
    InputError
        It has no ``metadata.csv``.
    """
    folder = Path(folder)
    table = folder / "metadata.csv"
    if not table.is_file():
        raise InputError(f"{folder} holds no simulated archive (no {table.name}): run panoramic simulate first")
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [{column: _plain(column, text) for column, text in row.items()} for row in csv.DictReader(stream)]
    return rows, {path.name: path for path in sorted((folder / "exposures").rglob("*_rate.fits"))}


def dataset_of(filename: str) -> str:
    """A file's name without its product suffix."""
    return filename.removesuffix(".fits").rpartition("_")[0]


def now_mjd() -> float:
    """The present, MJD (UTC)."""
    return time.time() / 86400 + EPOCH_MJD


def _file_set(row: Mapping[str, Any]) -> str:
    return str(row.get("fileSetName") or dataset_of(str(row["filename"])).rpartition("_")[0])


def _plain(column: str, text: str) -> Any:
    """A cell of a table as the archive's JSON would hold it."""
    if text == "":
        return None
    if column in TEXT_COLUMNS:
        return text
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _passes(row: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether a row is within one filter of a query: a value, a range or a text with wildcards."""
    value = row.get(condition["paramName"])
    if value is None:
        return False
    for wanted in condition.get("values") or []:
        if wanted["min"] <= value <= wanted["max"] if isinstance(wanted, dict) else str(value) == str(wanted):
            return True
    pattern = str(condition.get("freeText") or "")
    return pattern != "" and re.fullmatch(re.escape(pattern).replace("%", ".*"), str(value)) is not None


def _types(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and MAST type of each column, by the first row that fills it."""
    types: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if types.get(name, "") == "" and value is not None:
                types[name] = {bool: "boolean", int: "int", float: "float"}.get(type(value), "string")
            types.setdefault(name, "")
    return [(name, kind or "string") for name, kind in types.items()]


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _version(path: Path) -> str:
    status = path.stat()
    return f'"{status.st_size:x}-{status.st_mtime_ns:x}"'


def _chunks(content: Content, first: int, end: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield from (content[k : min(k + CHUNK, end)] for k in range(first, end, CHUNK))
        return
    with content.open("rb") as stream:
        stream.seek(first)
        while first < end and (chunk := stream.read(min(CHUNK, end - first))):
            first += len(chunk)
            yield chunk
