"""What several tests share: real tables (skipped where absent) and hand-made exposures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from endtoend import SURVEY, Finished, panoramic, run_and_kill
from shapes import square

from panoramic.footprints import to_s_region
from panoramic.observations import Exposure, mean_position
from panoramic.simulate.truth import Truth
from resources.home import Home

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tables; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real tables are not here ({SHARED})")
    return SHARED


@pytest.fixture
def make_exposure() -> Callable[..., Exposure]:
    """A maker of exposures: everything has a default, keywords replace it."""

    def make(
        ra: float = 150.0, dec: float = 2.0, detector: str = "NRCBLONG", filter: str = "F444W", pupil: str = "CLEAR",
        program: int = 2514, observation: int = 1, visit: int = 1, activity: str = "02201", exposure: int = 1,
        t_min: float = 60000.0, exptime: float = 500.0, size: float | None = None, **rest: object,
    ) -> Exposure:  # fmt: skip
        dataset = f"jw{program:05d}{observation:03d}{visit:03d}_{activity}_{exposure:05d}_{detector.lower()}"
        vertices = square(ra, dec, size or (2.2 if "LONG" in detector else 1.07))
        middle = mean_position(vertices)
        values: dict[str, object] = {
            "dataset": dataset, "filename": f"{dataset}_rate.fits", "program": program, "observation": observation,
            "visit": visit, "activity": activity, "exposure": exposure, "detector": detector, "filter": filter,
            "pupil": pupil, "module": "A" if detector.startswith("NRCA") else "B", "exptime": exptime, "t_min": t_min,
            "t_max": t_min + exptime / 86400, "footprint": to_s_region(vertices), "ra": middle[0], "dec": middle[1],
            "release": 0.0, "file_id": 1, "checksum": "a" * 32, "size": 1, "cal_ver": "1.16.1",
            "crds_ctx": "jwst_1303.pmap", "expcount": 2,
        }  # fmt: skip
        return Exposure(**(values | rest))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Run, killed and run again to the end, and once more with nothing to do."""
    folder = tmp_path_factory.mktemp("endtoend")
    survey = folder / "endtoend.yaml"
    survey.write_text(yaml.safe_dump(SURVEY))
    home = folder / "home"
    first = run_and_kill(home, survey)
    second = panoramic(home, "run", check=False)
    again = panoramic(home, "run", check=False)
    opened = Home(home)
    (field,) = opened.database.field_names()
    yield Finished(opened, first, second.stdout, again.stdout, Truth.load(home / "archive"), field)
