"""What the archive at STScI holds, its tokens and sizes, by the local server that speaks its protocol."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from astroquery import log as astroquery_log
from keyring.errors import KeyringLocked
from mast_examples import FUTURE, NAME, PAGE, SHAPE, TOKEN, exposure_bytes, known, no_part_left, rate_name, rows
from pydantic import ValidationError

from panoramic.errors import (
    ArchiveAccessError,
    ArchiveUnavailableError,
    EmptyArchiveError,
    InputError,
    MissingKeywordError,
    TruncatedFileError,
    UnknownProgramError,
)
from panoramic.simulate.server import CHUNK, ArchiveServer
from panoramic.survey import MastArchive as MastRules
from panoramic.survey import Survey
from resources.archive import FAULT_KINDS, GRANTED_KEY, FileRequest, make_archive
from resources.archive_folder import FolderArchive
from resources.archive_mast import MastArchive
from resources.tokens import find_token

Maker = Callable[..., MastArchive]
SHORT_WAVE = {"DETECTOR": "NRCB1", "CHANNEL": "SHORT"}


# --- looking --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, PAGE, PAGE + 1, 3 * PAGE])
def test_all_pages_are_read(server: ArchiveServer, archive_at: Maker, n: int) -> None:
    server.rows = rows(n) + rows(5, 1345) + [rows(1)[0] | {"productLevel": "1b", "ArchiveFileID": 5}]
    look = archive_at().look()
    assert sorted(row["ArchiveFileID"] for row in look.rows) == [2514000 + k for k in range(n)]
    assert look.complete
    assert look.faults == []
    assert (look.rows[0]["obslabel"], look.rows[0]["cont_id"], look.rows[0]["s_region"]) == (None, None, None)
    assert look.rows[0]["isRestricted"] is False
    assert server.seen["query"] == -(-n // PAGE)


def test_a_program_of_30000_files(server: ArchiveServer, archive_at: Maker) -> None:
    server.rows = rows(30_000)
    look = archive_at(page_rows=5000).look()
    assert len({row["filename"] for row in look.rows}) == 30_000
    assert server.seen["query"] == 6


def test_a_window_overlaps_and_is_not_the_whole(server: ArchiveServer, archive_at: Maker) -> None:
    server.rows = rows(30)
    look = archive_at().look(since_mjd=61020.0)
    assert min(row["ingestCompletionDate_mjd"] for row in look.rows) == 61019.0
    assert not look.complete
    assert archive_at().look(since_mjd=70000.0).rows == []
    assert server.seen["search"] == 0


@pytest.mark.parametrize("faults", [["500"], ["429", "503"], ["executing", "executing"], ["hang"]])
def test_a_query_that_fails_is_asked_again(server: ArchiveServer, archive_at: Maker, faults: list[str]) -> None:
    server.rows, server.faults = rows(3), list(faults)
    assert len(archive_at(timeout_s=0.5 if "hang" in faults else 10).look().rows) == 3
    assert server.seen["query"] == len(faults) + 1


def test_the_archive_says_how_long_to_wait(
    server: ArchiveServer, archive_at: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", types.SimpleNamespace(sleep=slept.append))
    server.rows, server.faults, server.retry_after = rows(3), ["429"], "17"
    archive_at().look()
    assert slept == [17]


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ("500", ArchiveUnavailableError, "status 500"),
        ("429", ArchiveUnavailableError, "status 429"),
        ("404", ArchiveUnavailableError, "status 404"),
        ("401", ArchiveAccessError, "set a MAST token"),
        ("403", ArchiveAccessError, "status 403"),
        ("hang", ArchiveUnavailableError, "try again later"),
        ("html", ArchiveUnavailableError, "no JSON"),
        ("cut", ArchiveUnavailableError, "no JSON"),
        ("error", ArchiveUnavailableError, "column not found"),
        ("empty page", ArchiveUnavailableError, "page 1 is empty after 0 of 25 rows"),
        ("double page", ArchiveUnavailableError, "25 rows announced, 3 different ones"),
        ("no paging", ArchiveUnavailableError, "malformed"),
    ],
)
def test_what_the_user_sees_of_a_failed_query(
    server: ArchiveServer, archive_at: Maker, fault: str, error: type[Exception], match: str
) -> None:
    server.rows, server.always = rows(25), fault
    with pytest.raises(error, match=match):
        archive_at(timeout_s=0.2 if fault == "hang" else 10, retries=1).look()


@pytest.mark.parametrize(
    ("fault", "match"), [("rows change", "changed while they were read"), ("empty page", "empty after 10 of 25")]
)
def test_a_later_page_that_does_not_fit(server: ArchiveServer, archive_at: Maker, fault: str, match: str) -> None:
    server.rows, server.faults = rows(25), ["", fault]
    with pytest.raises(ArchiveUnavailableError, match=match):
        archive_at().look()


def test_no_server_at_all(tmp_path: Path) -> None:
    rules = MastRules(kind="mast", url="http://127.0.0.1:9", timeout_s=1)
    with pytest.raises(ArchiveUnavailableError, match="try again later"):
        MastArchive(rules, (1,), tmp_path, backoff_factor=0.001, retries=1).look()


# --- programs -------------------------------------------------------------------------------


def test_no_such_program_and_a_program_without_images(server: ArchiveServer, archive_at: Maker) -> None:
    server.rows, server.other_programs = rows(3), {78}
    with pytest.raises(UnknownProgramError, match=r"program 77: .* knows no such program; mend `programs`"):
        archive_at(programs=(77,)).look()
    with pytest.raises(EmptyArchiveError, match=r"no NIRCam exposure .* of program 78, though it knows the program"):
        archive_at(programs=(78,)).look()
    with pytest.raises(UnknownProgramError, match=r"program 77: "):
        archive_at(programs=(77, 78)).look()
    with pytest.raises(InputError, match="needs programs"):
        archive_at(programs=()).look()
    assert issubclass(UnknownProgramError, InputError)
    assert not issubclass(UnknownProgramError, EmptyArchiveError)


def test_one_program_that_does_not_exist_hides_no_other(
    server: ArchiveServer, archive_at: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    server.rows, server.other_programs = rows(3), {78}
    look = archive_at(programs=(77, 78, 2514)).look()
    assert len(look.rows) == 3
    (fault,) = look.faults
    assert (fault.name, fault.kind) == ("program 77", "unknown_program")
    assert "unknown_program" in FAULT_KINDS
    assert "program 78 exists, without NIRCam exposures" in caplog.text


@pytest.mark.parametrize("fault", ["500", "400", "404", "html"])
def test_a_missions_search_that_is_down(
    server: ArchiveServer, archive_at: Maker, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    server.rows, server.broken = rows(3), {"search": fault}
    with pytest.raises(ArchiveUnavailableError, match=r"search for program 77: .*try again later"):
        archive_at(programs=(77,)).look()
    look = archive_at(programs=(77, 2514)).look()
    assert (len(look.rows), look.faults) == (3, [])
    assert "no row of program 77, and whether it exists can't be asked" in caplog.text


# --- tokens ---------------------------------------------------------------------------------


def test_the_token_is_a_header_and_in_no_message(
    server: ArchiveServer, archive_at: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    level = astroquery_log.level
    astroquery_log.setLevel(logging.DEBUG)
    astroquery_log.addHandler(caplog.handler)
    try:
        server.rows, server.files[NAME] = rows(1), exposure_bytes()
        archive = archive_at(TOKEN, programs=(2514, 77))
        archive.look()
        archive.fetch(NAME)
        assert {r[2] for r in server.requests} == {f"token {TOKEN}"}
        server.always = "401"
        for call in (archive.look, lambda: archive.fetch("jw02514162001_03201_00002_nrcblong_rate.fits")):
            with pytest.raises(ArchiveAccessError, match="the token is wrong, expired") as caught:
                call()
            assert TOKEN not in str(caught.value)
        assert TOKEN not in repr(archive) + repr(vars(archive._client()._session))
        assert "/whoami" in caplog.text  # the log was there to be read
        assert TOKEN not in caplog.text
        stored = [p for p in (archive._folder).rglob("*") if p.is_file()]
        assert stored
        assert not [p for p in stored if TOKEN.encode() in p.read_bytes()]
    finally:
        astroquery_log.removeHandler(caplog.handler)
        astroquery_log.setLevel(level)


def test_a_wrong_token_is_found_early(server: ArchiveServer, archive_at: Maker) -> None:
    server.rows, server.files[NAME] = rows(1), exposure_bytes()
    archive = archive_at("not-the-token")
    for call in (archive.look, lambda: archive.fetch(NAME)):
        with pytest.raises(ArchiveAccessError, match="the MAST token is wrong or expired; set a new one") as caught:
            call()
        assert "not-the-token" not in str(caught.value)
    assert (server.seen["query"], server.seen["download"]) == (0, 0)
    server.broken = {"whoami": "401"}
    with pytest.raises(ArchiveAccessError, match="status 401; the token is wrong, expired"):
        archive_at(TOKEN).look()
    server.broken = {"whoami": "html"}
    with pytest.raises(ArchiveUnavailableError, match="whoami: the answer is no JSON"):
        archive_at(TOKEN).look()


def test_who_asks_is_asked_once(server: ArchiveServer, archive_at: Maker) -> None:
    server.rows, server.files[NAME] = rows(1), exposure_bytes()
    archive = archive_at(TOKEN)
    archive.look()
    archive.look()
    archive.fetch(NAME)
    assert server.seen["whoami"] == 1
    archive_at().look()
    archive_at("not-the-token").fetch(NAME)  # it is there already: nothing is asked
    assert server.seen["whoami"] == 1


def granted(archive: MastArchive) -> dict[str, int]:
    """How many rows of each program the token has rights to."""
    counts: dict[str, int] = {}
    for row in archive.look().rows:
        counts[row["program"]] = counts.get(row["program"], 0) + (row.get(GRANTED_KEY) is True)
    return counts


def test_rights_are_probed_once_for_each_program(server: ArchiveServer, archive_at: Maker) -> None:
    programs = (2514, 1345, 99)
    server.rows = rows(2) + rows(3, publicReleaseDate_mjd=FUTURE)[2:] + rows(4, 1345, publicReleaseDate_mjd=FUTURE)
    server.rows += rows(3, 99, publicReleaseDate_mjd=None)
    server.files = {row["filename"]: b"1" for row in server.rows}
    assert granted(archive_at(programs=programs)) == {"2514": 0, "1345": 0, "99": 0}
    assert server.seen["download"] == 0  # without a token there is nothing to probe
    server.granted = {1345}
    assert granted(archive_at(TOKEN, programs)) == {"2514": 0, "1345": 4, "99": 0}
    assert [r[1] for r in server.requests if "Download" in r[0]] == ["bytes=0-0", "bytes=0-0"]
    server.granted = None
    assert granted(archive_at(TOKEN, programs)) == {"2514": 1, "1345": 4, "99": 0}


def test_a_probe_without_answer_spoils_the_look(
    server: ArchiveServer, archive_at: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    server.rows = rows(2, publicReleaseDate_mjd=FUTURE)
    server.broken = {"download": "503"}
    with pytest.raises(ArchiveUnavailableError, match="whether the token opens it: status 503"):
        archive_at(TOKEN).look()
    server.broken = {}
    assert granted(archive_at(TOKEN)) == {"2514": 0}  # listed, and not there
    assert "is listed, but is not there" in caplog.text


def test_where_the_token_is_looked_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kept = {("astroquery:mast.stsci.edu.token", "masttoken"): TOKEN}
    monkeypatch.setattr("keyring.get_password", lambda service, user: kept.get((service, user)))
    monkeypatch.setenv("MAST_API_TOKEN", "of-the-environment")
    assert find_token() == "of-the-environment"
    monkeypatch.delenv("MAST_API_TOKEN")
    assert find_token() == TOKEN
    kept.clear()
    assert find_token() is None

    def locked(service: str, user: str) -> str:
        raise KeyringLocked("locked")

    monkeypatch.setattr("keyring.get_password", locked)
    caplog.set_level(logging.DEBUG, "resources.tokens")
    assert find_token() is None
    # a set: another package may have hung the same handler into the tree of loggers once more
    assert {(r.levelname, r.getMessage()) for r in caplog.records} == {
        ("DEBUG", "no MAST token from the keyring: KeyringLocked")
    }


# --- sizes, many files, raw ramps -----------------------------------------------------------


def test_the_product_list_tells_the_size_of_a_file_without_a_row(
    server: ArchiveServer, archive_at: Maker, tmp_path: Path
) -> None:
    data = exposure_bytes(**SHORT_WAVE)
    server.rows = rows(3)
    server.files = {rate_name(k): data for k in range(3)}
    server.always = "short"
    archive = archive_at()
    with pytest.raises(ArchiveUnavailableError, match=f"{len(data) // 2} of {len(data)} bytes came"):
        archive.fetch(rate_name(0))
    server.always = ""
    for _ in range(2):
        assert archive.fetch(rate_name(0)).read_bytes() == data
    assert server.seen["products"] == 1
    archive.fetch(rate_name(1), *known(data, tmp_path))
    assert server.seen["products"] == 1  # what the row tells is enough


@pytest.mark.parametrize("fault", ["500", "404", "html"])
def test_without_product_list_the_structure_decides(
    server: ArchiveServer, archive_at: Maker, caplog: pytest.LogCaptureFixture, fault: str, tmp_path: Path
) -> None:
    server.rows, server.broken = rows(3), {"products": fault}
    server.files = {rate_name(0): exposure_bytes(**SHORT_WAVE), rate_name(1): exposure_bytes(**SHORT_WAVE)[:-2880]}
    archive = archive_at(retries=0)
    assert archive.fetch(rate_name(0)).is_file()
    assert "held to their FITS structure alone" in caplog.text
    with pytest.raises(TruncatedFileError):
        archive.fetch(rate_name(1))
    assert server.seen["products"] == 1  # it is not asked again and again
    assert [p.name for p in (tmp_path / "down").rglob("*.fits")] == [rate_name(0)]


def test_many_files_in_parallel_each_once(server: ArchiveServer, archive_at: Maker) -> None:
    server.rows = rows(6)
    server.files = {rate_name(k): exposure_bytes(**SHORT_WAVE, EXPSTART=60000.0 + k) for k in range(6)}
    together = threading.Barrier(3)  # passes only if three are under way at once

    def wait_for_two_others(_: str, sent: int) -> None:
        if sent <= CHUNK:
            together.wait(20)

    server.on_bytes = wait_for_two_others
    told: list[tuple[str, int, int | None]] = []
    requests = [FileRequest(rate_name(k)) for k in (0, 1, 2, 3, 4, 5, 0)]
    archive = archive_at(parallel_downloads=3)
    paths = archive.fetch_many(requests, lambda *line: told.append(line))
    assert {name: path.read_bytes() for name, path in paths.items()} == server.files
    assert (server.seen["download"], server.seen["products"]) == (6, 1)
    assert told
    name, so_far, total = told[0]
    assert name in paths
    assert 0 < so_far <= total == len(server.files[name])
    assert archive_at().fetch_many(requests) == paths
    assert server.seen["download"] == 6
    assert archive.fetch_many([]) == {}


def test_a_failure_names_all_files_and_hides_none(server: ArchiveServer, archive_at: Maker) -> None:
    server.rows = rows(4)
    server.files = {rate_name(k): exposure_bytes(**SHORT_WAVE) for k in (0, 3)}
    server.files[rate_name(1)] = exposure_bytes()  # another detector
    with pytest.raises(MissingKeywordError) as caught:
        archive_at().fetch_many([FileRequest(rate_name(k)) for k in (0, 1, 2, 3)])
    message = str(caught.value)
    assert rate_name(1) in message
    assert f"; 1 more failed: {rate_name(2)}: status 404" in message
    assert (rate_name(0) in message, rate_name(3) in message) == (False, False)
    with pytest.raises(ArchiveUnavailableError, match=r"status 404; try again later; 1 more failed: .*_00002_"):
        archive_at().fetch_many([FileRequest(rate_name(k)) for k in (2, 1)])
    before = server.seen["download"]
    archive_at().fetch_many([FileRequest(rate_name(k)) for k in (0, 3)])  # the others were fetched all the same
    assert server.seen["download"] == before


def test_raw_ramps_if_asked(server: ArchiveServer, archive_at: Maker, tmp_path: Path) -> None:
    raw_name = NAME.replace("_rate", "_uncal")
    server.files = {NAME: exposure_bytes(), raw_name: exposure_bytes(("SCI", "GROUP"), FILTER=None)}
    assert set(archive_at().fetch_many([FileRequest(NAME)])) == {NAME}
    both = archive_at(products=("rate", "uncal")).fetch_many([FileRequest(NAME)])
    assert set(both) == {NAME, raw_name}
    assert both[raw_name].read_bytes() == server.files[raw_name]
    for wrong, match in (({"DETECTOR": "NRCALONG"}, "not NIRCAM NRCBLONG"), ({"INSTRUME": "MIRI"}, "MIRI")):
        both[raw_name].unlink(missing_ok=True)
        server.files[raw_name] = exposure_bytes(("SCI",), **wrong)
        with pytest.raises(MissingKeywordError, match=match):
            archive_at(products=("rate", "uncal")).fetch_many([FileRequest(NAME)])
        assert not both[raw_name].exists()
    both[NAME].unlink()
    assert no_part_left(tmp_path / "down")
    with pytest.raises(ValidationError, match="products must hold 'rate'"):
        MastRules(kind="mast", products=("uncal",))


# --- the choice -----------------------------------------------------------------------------


def test_the_survey_file_chooses_the_archive(tmp_path: Path) -> None:
    mast = make_archive(Survey(name="a", programs=(1,), archive=MastRules(kind="mast")), tmp_path, TOKEN)
    assert isinstance(mast, MastArchive)
    assert mast.url == "https://mast.stsci.edu"
    assert (mast.crds_cache, mast.grizli_folder, mast.reference_catalog_folder) == (None, None, None)
    folder = Survey.parse(f"name: b\narchive: {{kind: folder, path: {tmp_path}/x}}", tmp_path / "s.yaml")
    archive = make_archive(folder, tmp_path)
    assert isinstance(archive, FolderArchive)
    assert archive.path == tmp_path / "x"


def test_many_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "exposures").mkdir()
    for k in range(2):
        (tmp_path / "exposures" / rate_name(k)).write_bytes(exposure_bytes(**SHORT_WAVE))
    archive = FolderArchive(tmp_path, tmp_path / "cache.sqlite", shape=SHAPE)
    paths = archive.fetch_many([FileRequest(rate_name(k)) for k in range(2)])
    assert list(paths.values()) == [archive.fetch(rate_name(k), cal_ver="9.9") for k in range(2)]
    with pytest.raises(ArchiveUnavailableError, match=r"00003_nrcb1_rate.fits is not in .*1 more failed: .*00004"):
        archive.fetch_many([FileRequest(rate_name(k)) for k in (0, 2, 3)])
