"""The sensor against a server that speaks MAST's protocol: real rows, windows, re-ingestion, release, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from panoramic.simulate.server import ArchiveServer, running_server
from panoramic.survey import Survey
from panoramic_assets.definitions import build_definitions
from panoramic_assets.replay import saved_look
from resources.home import Home, HomeResource

PROGRAM = 7814
TOKEN = "opens-it"  # noqa: S105
Tick = Callable[..., Any]


@pytest.fixture
def server(shared_data: Path) -> Iterator[ArchiveServer]:
    """A server with a real program's rows."""
    rows = saved_look(shared_data / "mast" / "nircam_image.csv.gz", complete=False).rows
    mine = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows if row["program"] == PROGRAM]
    assert len(mine) > 100
    with running_server(mine, token=TOKEN) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, server: ArchiveServer) -> Home:
    text = (
        f"name: discovered\nprograms: [{PROGRAM}]\narchive: {{kind: mast, url: '{server.url}', timeout_s: 5}}\n"
        "recorded_detectors: [NRCA1, NRCB1, NRCALONG, NRCBLONG]\n"
    )
    home = Home(tmp_path / "home")
    home.prepare(Survey.parse(text, tmp_path / "discovered.yaml"))
    return home


@pytest.fixture
def tick(home: Home, tmp_path: Path) -> Iterator[Tick]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:

        def once(token: str = "") -> Any:
            resource = HomeResource(path=str(home.path), mast_token=token)
            definitions = build_definitions(resource, dg.in_process_executor)
            with dg.build_sensor_context(instance=instance, resources={"home": resource}) as context:
                data = definitions.resolve_sensor_def("new_exposures").evaluate_tick(context)
            for request in data.dynamic_partitions_requests or []:
                instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
            for event in data.asset_events:
                instance.report_runless_asset_event(event)
            return data

        yield once


def asked_for_everything(server: ArchiveServer) -> bool:
    """Whether the last query named no window of ingestion."""
    return "ingestCompletionDate_mjd" not in server.questions[-1]


def test_a_program_is_found_once(home: Home, server: ArchiveServer, tick: Tick) -> None:
    first = tick()
    fields = home.database.data_versions()
    assert {e.partition for e in first.asset_events} == set(fields)
    assert asked_for_everything(server)
    assert "nothing new" in tick().skip_message
    assert not asked_for_everything(server)


def test_a_reingested_file_touches_its_field_alone(home: Home, server: ArchiveServer, tick: Tick) -> None:
    tick()
    row = server.rows[5]
    row |= {"ArchiveFileID": row["ArchiveFileID"] + 10**6, "checksum": "9" * 32, "crds_ctx": "jwst_9999.pmap"}
    row["ingestCompletionDate_mjd"] = 99000.0
    events = tick().asset_events
    dataset = row["filename"].rsplit("_", 1)[0]
    with home.database.read() as connection:
        revision, field, _ = home.database.latest(connection)[dataset]
    assert revision == 2
    assert [e.partition for e in events] == [field]


def test_unreleased_data_wait_for_the_token(home: Home, server: ArchiveServer, tick: Tick) -> None:
    for row in server.rows:
        row["publicReleaseDate_mjd"] = 99000.0
        server.files[row["filename"]] = b"SIMPLE  ="
    tick()
    with home.database.read() as connection:
        assert not any(e.is_available(70000.0) for _, _, e in home.database.latest(connection).values())
    opened = tick(TOKEN)
    assert opened.asset_events, opened.skip_message
    with home.database.read() as connection:
        assert all(e.is_available(70000.0) for _, _, e in home.database.latest(connection).values())
    assert TOKEN not in home.survey_file.read_text()


@pytest.mark.parametrize("fault", ["html", "no paging", "403"])
def test_a_tick_that_can_not_read_says_why_and_changes_nothing(
    home: Home, server: ArchiveServer, tick: Tick, fault: str
) -> None:
    tick()
    before = home.database.data_versions()
    server.rows[0]["checksum"] = "0" * 32
    server.always = fault
    assert "the archive was not read" in tick().skip_message
    assert home.database.data_versions() == before
