"""The UI in a real browser: the graph, the fields, the checks with their values, the plots."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from endtoend import PROJECT, Finished

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def address(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`panoramic ui` on the finished home."""
    port = free_port()
    log = tmp_path_factory.mktemp("ui") / "ui.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("panoramic")), "ui", "--port", str(port)],
            env=os.environ | {"PANORAMIC_HOME": str(finished.home.path)}, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True, cwd=PROJECT,
        )  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                if process.poll() is not None:
                    break
                try:
                    requests.get(f"{address}/server_info", timeout=2).raise_for_status()
                    break
                except requests.RequestException:
                    threading.Event().wait(0.5)
            else:
                pytest.fail(log.read_text()[-3000:])
            assert process.poll() is None, log.read_text()[-3000:]
            yield address
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[object]:
    """A browser page."""
    if CHROMIUM is None:
        pytest.skip("browser: chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def show(page, url: str, *texts: str, picture: Path) -> None:
    """Open a page, wait for texts, keep a screenshot."""
    page.goto(url)
    for text in texts:
        page.get_by_text(text).first.wait_for(state="attached")
    page.screenshot(path=str(picture))
    assert picture.stat().st_size > 10_000


def test_the_asset_graph(page, address: str, tmp_path: Path) -> None:
    names = ("mast_archive", "observations", "associations", "astrometric_reference", "preprocessed_visits", "mosaics")
    show(page, f"{address}/asset-groups", *names, picture=tmp_path / "graph.png")


def test_the_field_and_its_metadata(page, address: str, tmp_path: Path, finished: Finished) -> None:
    url = f"{address}/assets/mosaics?view=partitions&partition={finished.field}"
    show(page, url, finished.field, "colour picture", picture=tmp_path / "mosaics.png")


def test_the_checks_with_their_values(page, address: str, tmp_path: Path) -> None:
    url = f"{address}/assets/astrometric_reference?view=checks"
    show(
        page, url, "relative_alignment", "absolute_alignment", "reference_source_count", picture=tmp_path / "checks.png"
    )
