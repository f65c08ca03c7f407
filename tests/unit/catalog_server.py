"""A server of our own that speaks TAP and VizieR before tables of ours, and misbehaves on demand.

TAP 1.1 (``/sync``; ``/async`` by UWS 1.1: job, phase, result, deletion) answers real SQL, by SQLite: a column that does
not exist is refused as the real ones refuse it. Data Lab's has no ADQL geometry; the Gaia archive's has. VizieR's
``/viz-bin/votable`` takes ASU lines and knows circles.
"""

from __future__ import annotations

import io
import math
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from astropy.io.votable import from_table
from astropy.table import MaskedColumn, Table

from panoramic.footprints import separation_arcmin

RETRY_NOW = {"Retry-After": "0"}
HTML = b"<!DOCTYPE html><html><body><h1>Down for maintenance</h1></body></html>"


class CatalogServer:
    """Tables by name, and a list of what to do wrong next.

    Attributes
    ----------
    faults : each request takes the first and does it: ``slow``, ``503``, ``html``, ``cut``, ``cut with length``,
        ``overflow``, ``error``, ``gzip``, ``fail job``, or ``good``.
    queries : what was asked, in order.
    maximum : rows that the server gives at most.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.faults: list[str] = []
        self.always = ""
        self.queries: list[str] = []
        self.requests: list[str] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.maximum = 10_000
        self.unfinished_looks = 0
        self.release = threading.Event()
        self.url = ""

    def next_fault(self) -> str:
        return self.always or (self.faults.pop(0) if self.faults else "good")

    # --- queries ----------------------------------------------------------------------------

    def sql(self, query: str, geometry: bool) -> Table:
        schema, name = re.search(r"FROM (\w+)\.(\w+)", query).groups()  # type: ignore[union-attr]
        with sqlite3.connect(":memory:") as base:
            base.create_function("SQRT", 1, lambda x: math.sqrt(x) if x is not None and x >= 0 else None)
            if geometry:
                base.create_function("POINT", 3, lambda _, ra, dec: f"{ra!r} {dec!r}")
                base.create_function("CIRCLE", 4, lambda _, ra, dec, r: f"{ra!r} {dec!r} {r!r}")
                base.create_function("CONTAINS", 2, _contains)
            base.execute(f"ATTACH ':memory:' AS {schema}")
            if f"{schema}.{name}" in self.tables:
                table = self.tables[f"{schema}.{name}"]
                base.execute(f"CREATE TABLE {schema}.{name} ({', '.join(table.colnames)})")
                marks = ", ".join("?" * len(table.colnames))
                rows = [[None if _is_null(v) else v for v in map(_plain, row)] for row in table]
                base.executemany(f"INSERT INTO {schema}.{name} VALUES ({marks})", rows)  # noqa: S608
            cursor = base.execute(query)
            names = [column[0] for column in cursor.description]
            return _table(names, cursor.fetchall())

    def vizier(self, lines: str) -> Table | None:
        asked = dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)
        if asked["-source"] not in self.tables:
            raise sqlite3.OperationalError("no catalogue found")
        table = self.tables[asked["-source"]]
        ra, dec = re.fullmatch(r"([\d.]+)([+-][\d.]+)", asked["-c"]).groups()  # type: ignore[union-attr]
        radius = float(asked["-c.rd"])
        prefix = "RA_ICRS", "DE_ICRS"
        if prefix[0] not in table.colnames:
            prefix = "RAJ2000", "DEJ2000"
        apart = separation_arcmin(float(ra), float(dec), np.asarray(table[prefix[0]]), np.asarray(table[prefix[1]]))
        found = table[apart <= radius * 60]
        wanted = [c for c in asked["-out"].split(",") if c in table.colnames]  # VizieR leaves out what it does not know
        limit = None if asked["-out.max"] == "unlimited" else int(asked["-out.max"])
        return found[wanted][:limit] if len(found) else None


def _contains(point: str, circle: str) -> int:
    (ra, dec), (ra0, dec0, radius) = map(float, point.split()), map(float, circle.split())
    return int(separation_arcmin(ra0, dec0, ra, dec) <= radius * 60)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_null(value: Any) -> bool:
    return value is np.ma.masked or (isinstance(value, float) and math.isnan(value))


def _table(names: list[str], rows: list[tuple[Any, ...]]) -> Table:
    table = Table()
    for k, name in enumerate(names):
        values = [row[k] for row in rows]
        if any(isinstance(v, str) for v in values):
            table[name] = np.array([v or "" for v in values], dtype="U8")
        else:
            table[name] = MaskedColumn(
                [0.0 if v is None else float(v) for v in values], mask=[v is None for v in values], dtype=float
            )
    return table


def to_votable(table: Table | None, status: str = "OK", message: str = "") -> bytes:
    """A service's answer; the status that tells of an overflow stands after the table, as TAP has it."""
    if table is None:
        body = '<?xml version="1.0"?>\n<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">'
        return f'{body}<RESOURCE type="results"><INFO name="QUERY_STATUS" value="{status}">{message}</INFO></RESOURCE></VOTABLE>\n'.encode()
    stream = io.BytesIO()
    from_table(table).to_xml(stream)
    return stream.getvalue().replace(
        b"</RESOURCE>", f'<INFO name="QUERY_STATUS" value="{status}">{message}</INFO></RESOURCE>'.encode()
    )


@contextmanager
def serving() -> Iterator[CatalogServer]:
    """A running server: ``/gaia`` and ``/datalab`` are TAP services, ``/viz-bin`` is VizieR's."""
    state = CatalogServer()

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: CatalogServer

    def log_message(self, *args: Any) -> None: ...

    def do_POST(self) -> None:
        state = self.server_state
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        state.requests.append(f"POST {self.path}")
        if self.path == "/viz-bin/votable":
            state.queries.append(text)
            return self.answer(lambda: state.vizier(text))
        form = {k.upper(): v[0] for k, v in parse_qs(text).items()}
        service, place = self.path.strip("/").split("/", 1)
        if place == "sync":
            state.queries.append(form["QUERY"])
            return self.tap(service, form)
        if place == "async":
            job = f"j{len(state.jobs)}"
            state.queries.append(form["QUERY"])
            state.jobs[job] = {"form": form, "phase": "PENDING", "looks": 0}
            fault = state.always or (state.faults[0] if state.faults else "good")
            if fault in ("503", "html", "slow"):
                return self.answer(lambda: None)
            return self.see(f"/{service}/async/{job}")
        job = place.split("/")[1]
        if state.faults[:1] == ["fail job"]:
            state.faults.pop(0)
            state.jobs[job]["phase"] = "ERROR"
        else:
            state.jobs[job]["phase"] = "EXECUTING" if state.unfinished_looks else "COMPLETED"
        return self.see(f"/{service}/async/{job}")

    def do_GET(self) -> None:
        state = self.server_state
        state.requests.append(f"GET {self.path}")
        service, _, job, *rest = (self.path.split("?")[0].strip("/") + "/").split("/")
        if job not in state.jobs:  # what follows an answer that was no job
            self.send(200, HTML, "text/html")
            return None
        known, rest = state.jobs[job], [part for part in rest if part]
        if rest == ["results", "result"]:
            return self.tap(service, known["form"])
        if known["phase"] == "EXECUTING":
            known["looks"] += 1
            if known["looks"] > state.unfinished_looks:
                known["phase"] = "COMPLETED"
        error = '<uws:errorSummary type="fatal"><uws:message>out of luck</uws:message></uws:errorSummary>'
        document = (
            '<?xml version="1.0"?><uws:job xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1">'
            f"<uws:jobId>{job}</uws:jobId><uws:phase>{known['phase']}</uws:phase>"
            f'<uws:results><uws:result id="result" xlink:href="{state.url}/{service}/async/{job}/results/result"/>'
            f"</uws:results>{error if known['phase'] == 'ERROR' else ''}</uws:job>"
        )
        return self.send(200, document.encode(), "text/xml")

    def do_DELETE(self) -> None:
        self.server_state.requests.append(f"DELETE {self.path}")
        self.send(200, b"", "text/plain")

    def tap(self, service: str, form: dict[str, str]) -> None:
        state = self.server_state
        maximum = min(int(form.get("MAXREC", 10**9)), state.maximum)
        self.answer(lambda: state.sql(form["QUERY"], geometry=service == "gaia"), maximum)

    def answer(self, query: Any, maximum: int = 10**9) -> None:
        state = self.server_state
        fault = state.next_fault()
        if fault == "slow":
            state.release.wait(20)
            return
        if fault == "503":
            self.send(503, b"Service Unavailable", "text/plain", RETRY_NOW)
            return
        if fault == "html":
            self.send(200, HTML, "text/html")
            return
        try:
            table = query()
        except sqlite3.OperationalError as error:
            vizier = self.path.startswith("/viz-bin")
            self.send(200 if vizier else 400, to_votable(None, "ERROR", str(error)), "application/x-votable+xml")
            return
        status = "OVERFLOW" if fault == "overflow" or (table is not None and len(table) > maximum) else "OK"
        body = to_votable(table if table is None else table[:maximum], status)
        if fault == "cut":
            self.send(200, body[: len(body) * 2 // 3], "application/x-votable+xml", length=None)
        elif fault == "cut with length":
            self.send(200, body[: len(body) * 2 // 3], "application/x-votable+xml", length=len(body))
        else:
            self.send(200, body, "application/x-votable+xml")

    def see(self, place: str) -> None:
        self.send(303, b"", "text/plain", {"Location": f"{self.server_state.url}{place}"})

    def send(
        self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None, length: int | None = -1
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
