"""A local MAST server and an archive that talks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mast_examples import PAGE, SHAPE, TOKEN

from panoramic.simulate.server import ArchiveServer, running_server
from panoramic.survey import MastArchive as MastRules
from resources.archive_mast import MastArchive


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    with running_server(token=TOKEN) as archive:
        yield archive


@pytest.fixture
def archive_at(server: ArchiveServer, tmp_path: Path) -> Callable[..., MastArchive]:
    """A maker of archives on the server, all with one folder of downloads."""

    def make(
        token: str | None = None,
        programs: tuple[int, ...] = (2514,),
        retries: int = 2,
        page_rows: int = PAGE,
        timeout_s: float = 10,
        **rules: Any,
    ) -> MastArchive:
        settings = MastRules(kind="mast", url=server.url, timeout_s=timeout_s, **rules)
        return MastArchive(settings, programs, tmp_path / "down", token, 0.001, retries, page_rows, SHAPE)

    return make
