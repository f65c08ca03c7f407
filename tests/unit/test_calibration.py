"""CRDS contexts and selections, asked of the real crds package on a small cache of its own."""

from __future__ import annotations

import hashlib
import json
import os
import pprint
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from panoramic.errors import CalibrationError
from resources.calibration import NOT_APPLICABLE, SERVERLESS, Calibration, ReferenceFile

CONTEXT = "jwst_0007.pmap"
HEADER: dict[str, Any] = {
    "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCBLONG", "CHANNEL": "LONG", "MODULE": "B",
    "FILTER": "F444W", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE", "SUBARRAY": "FULL",
    "DATE-OBS": "2025-06-01", "TIME-OBS": "01:02:03.4",
}  # fmt: skip
# writes mappings through crds itself, so that their sha1sum is right
MAPPING_WRITER = """
import sys
from crds.core import rmap
for path in sys.argv[1:]:
    mapping = rmap.Mapping.from_file(path, ignore_checksum=True)
    mapping.write(path)
"""


def mapping(kind: str, name: str, parkey: object, selector: str, **header: object) -> str:
    full = {
        "mapping": kind, "observatory": "JWST", "name": name, "derived_from": "generated", "parkey": parkey,
        "sha1sum": "0" * 40, **header,
    }  # fmt: skip
    return f"header = {pprint.pformat(full)}\n\nselector = {selector}\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crds")
    mappings, references = path / "mappings" / "jwst", path / "references" / "jwst" / "nircam"
    for folder in (mappings, references, path / "config" / "jwst"):
        folder.mkdir(parents=True)
    (path / "config" / "jwst" / "server_config").write_text(
        repr({"observatory": "jwst", "operational_context": CONTEXT})
    )
    (path / "config" / "jwst" / "ref_cache_subdir_mode").write_text("instrument")
    keys = {
        "flat": ("META.INSTRUMENT.DETECTOR", "META.INSTRUMENT.FILTER", "META.INSTRUMENT.PUPIL"),
        "photom": ("META.EXPOSURE.TYPE", "META.INSTRUMENT.DETECTOR"),
    }
    values = {"flat": "('NRCBLONG', 'F444W', 'CLEAR')", "photom": "('NRC_IMAGE', 'NRCBLONG')"}
    for kind, parkey in keys.items():
        name = f"jwst_nircam_{kind}_0001.rmap"
        date = ("META.OBSERVATION.DATE", "META.OBSERVATION.TIME")
        selector = (
            f"Match({{\n    {values[kind]} : UseAfter({{\n"
            f"        '2022-01-01 00:00:00' : 'jwst_nircam_{kind}_0001.fits',\n"
            f"        '2025-01-01 00:00:00' : 'jwst_nircam_{kind}_0002.fits',\n    }}),\n}})"
        )
        text = mapping("REFERENCE", name, (parkey, date), selector, instrument="NIRCAM", filekind=kind.upper())
        (mappings / name).write_text(text)
        for k in (1, 2):
            (references / f"jwst_nircam_{kind}_000{k}.fits").write_bytes(f"{kind} {k}".encode())
    entries = {kind: f"jwst_nircam_{kind}_0001.rmap" for kind in keys} | {"area": "N/A"}
    name = "jwst_nircam_0007.imap"
    (mappings / name).write_text(
        mapping("INSTRUMENT", name, ("REFTYPE",), pprint.pformat(entries), instrument="NIRCAM")
    )
    pipeline = mapping("PIPELINE", CONTEXT, ("META.INSTRUMENT.NAME",), pprint.pformat({"NIRCAM": name}))
    (mappings / CONTEXT).write_text(pipeline)
    environment = {
        "PATH": os.defpath,
        "CRDS_PATH": str(path),
        "CRDS_SERVER_URL": SERVERLESS,
        "CRDS_OBSERVATORY": "jwst",
    }
    order = [*(mappings / e for e in entries.values() if e != "N/A"), mappings / name, mappings / CONTEXT]
    subprocess.run([sys.executable, "-c", MAPPING_WRITER, *map(str, order)], env=environment, check=True)
    return path


def test_selects_by_mode_and_date(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRDS_PATH", "/nowhere")  # our own environment must not count
    monkeypatch.setenv("CRDS_CONTEXT", "jwst_9999.pmap")
    before = sorted(cache.rglob("*"))
    calibration = Calibration(cache, cache=tmp_path)
    assert calibration.context == CONTEXT
    early = HEADER | {"DATE-OBS": "2023-06-01"}
    new, old, again = calibration.selected_references_of([HEADER, early, HEADER], ("flat", "photom", "area"))
    assert new == again
    assert new["flat"] == ReferenceFile("jwst_nircam_flat_0002.fits", hashlib.sha256(b"flat 2").hexdigest())
    assert old["photom"] == ReferenceFile("jwst_nircam_photom_0001.fits", hashlib.sha256(b"photom 1").hexdigest())
    assert new["area"] == ReferenceFile(NOT_APPLICABLE, "")
    assert calibration.selected_references(HEADER, ("flat",))["flat"] == new["flat"]
    assert sorted(cache.rglob("*")) == before


def test_asking_again_starts_no_child(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Calibration(cache, cache=tmp_path).selected_references(HEADER, ("flat",))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("crds was asked again"))
    assert Calibration(cache, CONTEXT, cache=tmp_path).selected_references(HEADER, ("flat",)) == first


@pytest.mark.parametrize(
    ("changed", "types", "match"),
    [
        ({"FILTER": "F090W"}, ("flat",), f"no flat for NRCBLONG F090W CLEAR in context {CONTEXT}: "),
        ({"DATE-OBS": "2021-01-01"}, ("photom",), f"no photom for NRCBLONG F444W CLEAR in context {CONTEXT}: "),
        ({"FILTER": None}, ("flat",), r"no flat for NRCBLONG \(FILTER unknown\) CLEAR"),
        ({}, ("distortion",), f"no distortion for NRCBLONG F444W CLEAR in context {CONTEXT}: "),
    ],
)
def test_what_is_missing_is_named(
    cache: Path, tmp_path: Path, changed: dict[str, Any], types: tuple[str, ...], match: str
) -> None:
    with pytest.raises(CalibrationError, match=match):
        Calibration(cache, cache=tmp_path).selected_references(HEADER | changed, types)


def test_a_selected_file_that_is_not_there(cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "crds"
    subprocess.run(["cp", "-r", str(cache), str(copy)], check=True)
    calibration = Calibration(copy, cache=tmp_path)
    calibration.selected_references(HEADER, ("flat",))
    (copy / "references" / "jwst" / "nircam" / "jwst_nircam_flat_0002.fits").unlink()
    with pytest.raises(CalibrationError, match=r"selects jwst_nircam_flat_0002\.fits, but .* can't be read"):
        calibration.selected_references(HEADER, ("flat",))


def test_a_damaged_mapping_is_named(cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "crds"
    subprocess.run(["cp", "-r", str(cache), str(copy)], check=True)
    calibration = Calibration(copy, cache=tmp_path)
    calibration.selected_references(HEADER, ("flat",))
    rmap = copy / "mappings" / "jwst" / "jwst_nircam_flat_0001.rmap"
    rmap.write_text(rmap.read_text().replace("flat_0002", "flat_0003"))
    with pytest.raises(
        CalibrationError, match=r"could not use context .*sha1sum mismatch in 'jwst_nircam_flat_0001\.rmap'"
    ):
        calibration.selected_references(HEADER, ("flat",))
    (copy / "mappings" / "jwst" / CONTEXT).write_text("no mapping")
    with pytest.raises(CalibrationError, match="could not use context jwst_0007"):
        calibration.selected_references(HEADER, ("flat",))


def test_the_end_of_the_child_is_told(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\necho 'FATAL: no cache' >&2\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    with pytest.raises(CalibrationError, match=r"signal 9 and no answer.*FATAL: no cache"):
        Calibration(cache).selected_references(HEADER, ("flat",))


def test_context_and_setup(cache: Path, tmp_path: Path) -> None:
    setup = Calibration(cache, grizli_path=tmp_path).setup()
    assert (setup.crds_path, setup.crds_context, setup.crds_server_url, setup.grizli_path) == (
        cache, CONTEXT, SERVERLESS, tmp_path,
    )  # fmt: skip
    with pytest.raises(CalibrationError, match=rf"has no mapping jwst_0099\.pmap; there is {CONTEXT}"):
        Calibration(cache, "jwst_0099.pmap").setup()
    with pytest.raises(CalibrationError, match="there is no CRDS cache at"):
        Calibration(tmp_path / "absent").setup()
    (tmp_path / "mappings").mkdir()
    with pytest.raises(CalibrationError, match="server_config is not there; set crds_context"):
        Calibration(tmp_path).setup()
    config = tmp_path / "config" / "jwst" / "server_config"
    config.parent.mkdir(parents=True)
    for text in ("{", "{}", "[1]", "__import__('os')"):
        config.write_text(text)
        with pytest.raises(CalibrationError, match="can't be read"):
            Calibration(tmp_path).setup()
    remote = Calibration(tmp_path / "empty", "jwst_1303.pmap", "https://jwst-crds.stsci.edu")
    assert not remote.is_offline
    assert remote.setup().crds_context == "jwst_1303.pmap"


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that speaks CRDS's JSON-RPC and knows the contexts of builds: its address and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            known = {"get_build_context": "jwst_1303.pmap"}
            error = None if question["method"] in known else {"message": "no such method"}
            body = json.dumps({"result": known.get(question["method"]), "error": error, "id": question["id"]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()
    listening.server_close()


def test_the_server_recommends_the_context_once(tmp_path: Path, server: tuple[str, list[dict[str, Any]]]) -> None:
    address, asked = server
    pin = tmp_path / "crds_context.txt"
    for _ in range(2):
        assert Calibration(tmp_path / "crds", None, address, pin=pin).context == "jwst_1303.pmap"
    (question,) = asked
    assert question["method"] == "get_build_context"
    assert question["params"][0] == "jwst"
    assert Calibration(tmp_path / "crds", "jwst_1299.pmap", address, pin=pin).context == "jwst_1299.pmap"


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{one.getsockname()[1]}"
    with pytest.raises(CalibrationError, match=f"{address} does not say which.*set crds_context"):
        _ = Calibration(tmp_path / "crds", None, address, pin=tmp_path / "pin").context
    assert not (tmp_path / "pin").exists()
