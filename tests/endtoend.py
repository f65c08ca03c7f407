"""A survey taken through the whole chain by the command line, once for all tests that look at what came out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from panoramic.associations import Association
from panoramic.reduction.base import ReductionResult
from panoramic.simulate.truth import Truth
from resources.home import Home

PROJECT = Path(__file__).resolve().parents[1]
SURVEY = {
    "name": "endtoend",
    "archive": {
        "kind": "simulated",
        "simulation": {
            "seed": 77,
            "program": 9002,
            "fields": [
                {"ra": 150.1325, "dec": 2.3421, "v3pa": 247.5, "start": "2025-07-19T17:03:00", "observation": 7}
            ],
            "filters": [{"short": "F115W", "long": "F444W"}],
            "modules": ["B"],
            "detectors": ["nrcb1", "nrcblong"],
            "dithers": 2,
            "sky": {"star_density": 4.0},  # enough isolated stars for the photometry to be judged
            # a pointing error of one detector is what alignment is for
            "faults": [{"kind": "shifted", "match": "*nrcb1", "dx_arcsec": 0.3, "dy_arcsec": 0.0}],
        },
    },
    "expected": {"detectors": ["NRCB1", "NRCBLONG"], "exposures": 2, "filters": ["F115W", "F444W"]},
    "reference": {"catalogs": ["LS_DR9", "GAIA"]},
    "reduction": {"engine": "grizli", "parameters": {"lean": True}},
}


@dataclass
class Finished:
    """A finished home, what was printed, and the truth."""

    home: Home
    first_output: str
    output: str
    again: str
    truth: Truth
    field: str

    def reduction(self, element: str) -> tuple[Association, ReductionResult, Path]:
        """The association in a filter, its result and folder."""
        (association,) = [a for a in self.home.database.associations(self.field) if a.first.element == element]
        stored = self.home.database.reduction(association.name)
        assert stored is not None
        return association, stored[1], self.home.storage.path(f"{self.field}/associations/{association.name}")


def panoramic(home: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line on a home."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("panoramic")), *arguments],
        env=os.environ | {"PANORAMIC_HOME": str(home)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=check, cwd=PROJECT, timeout=1400,
    )  # fmt: skip


def run_and_kill(home: Path, survey: Path) -> str:
    """Start a run, kill its whole process group in the middle of the first reduction; returns what it had printed."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("panoramic")), "run", "--survey", str(survey)],
        env=os.environ | {"PANORAMIC_HOME": str(home)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, cwd=PROJECT,
    )  # fmt: skip
    lines: list[str] = []
    at_work = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line)
            if "reduce_reference" in line:
                at_work.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert at_work.wait(600), "".join(lines)
    # wait until the engine itself has written something
    for _ in range(600):
        if list((home / "work").glob("reduction-*/**/*_rate.fits")):
            break
        threading.Event().wait(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join()
    return "".join(lines)
