"""The local server before the unmodified astroquery client, and a simulated archive's folder behind it."""

from __future__ import annotations

import csv
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from astroquery.mast import MastClass, MastMissionsClass, conf
from mast_examples import FUTURE, NAME, SHAPE, TOKEN, exposure_bytes, known, rate_name, rows

from panoramic.errors import InputError
from panoramic.provenance import digest_file
from panoramic.simulate.server import SERVICE, ArchiveServer, folder_contents, running_server, serve_archive
from panoramic.survey import MastArchive as MastRules
from resources.archive_mast import MastArchive


@pytest.fixture
def client(server: ArchiveServer) -> MastClass:
    client = MastClass()
    portal = client._portal_api_connection
    portal.MAST_REQUEST_URL = f"{server.url}/api/v0/invoke"
    portal.COLUMNS_CONFIG_URL = f"{server.url}/portal/Mashup/Mashup.asmx/columnsconfig"
    portal.MAST_DOWNLOAD_URL = f"{server.url}/api/v0.1/Download/file"
    portal._column_configs.pop(SERVICE, None)  # the class keeps it
    return client


@pytest.fixture
def missions(server: ArchiveServer) -> Iterator[MastMissionsClass]:
    missions = MastMissionsClass(mission="jwst")
    service = missions._service_api_connection
    service.SERVICE_URL, service.MISSIONS_DOWNLOAD_URL = server.url, f"{server.url}/search/"
    missions.mission = "jwst"
    with conf.set_temp("server", server.url):  # of the list of columns
        yield missions


def test_the_keyword_service_to_astroquery(server: ArchiveServer, client: MastClass) -> None:
    server.rows = rows(25) + rows(3, 1345)
    server.faults = ["executing"]
    filters = [{"paramName": "program", "values": ["2514"]}]
    table = client.service_request(SERVICE, {"columns": "*", "filters": filters}, pagesize=10)
    assert len(table) == 25  # all pages
    assert table["filename"][0] == rows(1)[0]["filename"]
    assert (table["fileSize"].dtype.kind, table["publicReleaseDate_mjd"].dtype.kind) == ("i", "f")
    assert table["s_region"].mask.all()


@pytest.mark.parametrize(
    ("condition", "n"),
    [
        ({"paramName": "ingestCompletionDate_mjd", "values": [{"min": 61001.0, "max": 61003.0}]}, 3),
        ({"paramName": "filename", "values": [], "freeText": "%_00002_nrcb1%"}, 1),
        ({"paramName": "productLevel", "values": ["2a"]}, 2),
        ({"paramName": "s_region", "values": ["x"]}, 0),
    ],
)
def test_filters(server: ArchiveServer, client: MastClass, condition: dict[str, Any], n: int) -> None:
    server.rows = rows(6)
    (response,) = client.service_request_async(SERVICE, {"columns": "*", "filters": [condition]}, pagesize=50, page=1)
    assert response.json()["paging"]["rowsFiltered"] == len(response.json()["data"]) == n


def test_the_missions_search_to_astroquery(server: ArchiveServer, missions: MastMissionsClass) -> None:
    server.rows, server.files = rows(2), {rate_name(0): b"12345"}
    server.other_programs = {77}
    found = missions.query_criteria(program="2514", select_cols=["program"])
    assert list(found["fileSetName"]) == ["jw02514001001_03201_00001", "jw02514001001_03201_00002"]
    assert len(missions.query_criteria(program=[77, 2514], instrume="MIRI")) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(missions.query_criteria(program="3")) == 0
    products = missions.get_product_list(found)
    sizes = dict(zip(products["filename"], products["size"], strict=True))
    assert sizes[rate_name(0)] == 5
    assert sizes[rows(1)[0]["filename"]] == 117573120
    assert set(products["access"]) == {"PUBLIC"}


def test_downloads_to_astroquery(server: ArchiveServer, missions: MastMissionsClass, tmp_path: Path) -> None:
    data = server.files[NAME] = exposure_bytes()
    status, message, _ = missions.download_file(f"mast:JWST/product/{NAME}", local_path=tmp_path / NAME, verbose=False)
    assert (status, message) == ("COMPLETE", None)
    assert (tmp_path / NAME).read_bytes() == data


def test_who_asks(server: ArchiveServer) -> None:
    def who(token: str) -> bool:
        return requests.get(f"{server.url}/whoami", headers={"Authorization": f"token {token}"}, timeout=5).json()[
            "anon"
        ]

    assert (who(TOKEN), who("other")) == (False, True)


def test_a_file_that_is_not_public(server: ArchiveServer) -> None:
    server.rows = rows(1, publicReleaseDate_mjd=FUTURE)
    server.files = {rate_name(0): b"123", NAME: b"456"}
    url = f"{server.url}/api/v0.1/Download/file?uri=mast:JWST/product/"

    def status(name: str, token: str = "") -> int:
        headers = {"Authorization": f"token {token}"} if token else {}
        return requests.get(url + name, headers=headers, timeout=5).status_code

    assert status(NAME) == 200
    assert (status(rate_name(0)), status(rate_name(0), "wrong"), status(rate_name(0), TOKEN)) == (401, 401, 200)
    server.granted = {1}
    assert status(rate_name(0), TOKEN) == 403
    server.granted = {2514}
    assert status(rate_name(0), TOKEN) == 200
    assert server.products(["jw02514001001_03201_00001"])[0]["access"] == "RESTRICTED"


@pytest.mark.parametrize(("asked", "status", "got"), [
    (None, 200, b"0123456789"), ("bytes=4-", 206, b"456789"), ("bytes=0-0", 206, b"0"), ("bytes=10-", 416, b""),
])  # fmt: skip
def test_ranges_of_files_in_memory_and_on_disk(
    server: ArchiveServer, tmp_path: Path, asked: str | None, status: int, got: bytes
) -> None:
    (tmp_path / "disk").write_bytes(b"0123456789")
    server.files = {"memory": b"0123456789", "disk": tmp_path / "disk"}
    for name in server.files:
        url = f"{server.url}/api/v0.1/Download/file?uri=mast:JWST/product/{name}"
        reply = requests.get(url, headers={"Range": asked} if asked else {}, timeout=5)
        assert (reply.status_code, reply.content) == (status, got)
        if status == 206:
            again = {"Range": asked, "If-Range": '"another version"'}
            assert requests.get(url, headers=again, timeout=5).status_code == 200
            assert requests.get(url, headers=again | {"If-Range": reply.headers["ETag"]}, timeout=5).status_code == 206


def test_an_unknown_fault_is_refused(server: ArchiveServer) -> None:
    server.always = "flood"
    with pytest.raises(ValueError, match=r"unknown fault 'flood'; there are hang, stall"):
        server.begin("query", ("", None, None))


# --- a folder -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the simulator writes, small."""
    exposures = tmp_path / "archive" / "exposures"
    exposures.mkdir(parents=True)
    (exposures / NAME).write_bytes(exposure_bytes())
    size, md5 = known(exposure_bytes(), tmp_path)
    there = rows(1)[0] | {"filename": NAME, "productLevel": "2a", "fileSize": size, "checksum": md5}
    with (exposures.parent / "metadata.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(there))
        table.writeheader()
        table.writerows([there, *rows(2)[1:]])
    return exposures.parent


def test_a_folder_is_served_until_it_is_stopped(folder: Path, tmp_path: Path) -> None:
    addresses: list[str] = []
    listening, stop = threading.Event(), threading.Event()

    def announce(url: str) -> None:
        addresses.append(url)
        listening.set()

    thread = threading.Thread(target=serve_archive, args=(folder, "127.0.0.1", 0, None, announce, stop))
    thread.start()
    assert listening.wait(10)
    try:
        rules = MastRules(kind="mast", url=addresses[0])
        archive = MastArchive(rules, (2514,), tmp_path / "down", backoff_factor=0.001, shape=SHAPE)
        look = archive.look()
        assert len(look.rows) == 2
        row = next(r for r in look.rows if r["filename"] == NAME)
        path = archive.fetch(NAME, row["fileSize"], row["checksum"])
        assert digest_file(path, "md5") == row["checksum"]
    finally:
        stop.set()
        thread.join()
    with pytest.raises(requests.ConnectionError):
        requests.get(addresses[0], timeout=5)


def test_cells_of_the_table_have_their_types(folder: Path) -> None:
    (row, _), files = folder_contents(folder)
    assert (row["ArchiveFileID"], row["program"], row["ingestCompletionDate_mjd"]) == (2514000, "2514", 61000.0)
    assert (row["isRestricted"], row["s_region"], len(row["checksum"])) == (False, None, 32)
    assert files == {NAME: folder / "exposures" / NAME}


def test_what_cannot_be_served(tmp_path: Path, server: ArchiveServer) -> None:
    with pytest.raises(InputError, match=r"no simulated archive .* run panoramic simulate first"):
        serve_archive(tmp_path)
    port = int(server.url.rpartition(":")[2])
    with (
        pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use: choose another"),
        running_server(port=port),
    ):
        pass
