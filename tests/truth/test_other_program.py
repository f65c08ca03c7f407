"""Another program, module, filters and sky, as a plain folder of rate files: no survey file, no table of rows.

Single exposures, a filter of the pupil wheel, close to RA 0 and far north, two associations that overlap nothing.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from endtoend import panoramic
from judging import external_sigma, placement

from panoramic.footprints import inside
from panoramic.simulate.archive import simulate_archive
from panoramic.simulate.program import Simulation
from panoramic.simulate.truth import Truth
from resources.home import Home

SIMULATION = Simulation.model_validate(
    {
        "seed": 991,
        "program": 4321,
        "fields": [
            {"ra": 0.012, "dec": 71.3, "v3pa": 33.0, "start": "2024-12-02T08:21:00", "observation": 12, "visit": 2}
        ],
        "filters": [{"short": "F162M", "long": "F356W"}],
        "modules": ["A"],
        "detectors": ["nrca2", "nrcalong"],
        "dithers": 1,
    }
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Truth, str]:
    folder = tmp_path_factory.mktemp("other")
    simulate_archive(SIMULATION, folder / "simulated")
    mine = folder / "my exposures"  # a space in the name, files in subfolders
    for part in ("crds", "reference_catalogs"):
        shutil.copytree(folder / "simulated" / part, mine / part)
    for path in sorted((folder / "simulated" / "exposures").glob("*_rate.fits")):
        (mine / path.name[:10]).mkdir(exist_ok=True)
        shutil.copy(path, mine / path.name[:10])
    finished = panoramic(folder / "home", "run", "--archive", str(mine), check=False)
    assert finished.returncode == 0, finished.stdout
    return Home(folder / "home"), Truth.load(folder / "simulated"), finished.stdout


def test_both_filters_reach_a_mosaic(done: tuple[Home, Truth, str]) -> None:
    home, _, _ = done
    (field,) = home.database.field_names()
    assert field == "j000008p7118"  # both footprints lie east of RA 0
    stems = [m["stem"] for m in home.database.mosaics(field)]
    assert stems == [f"my_exposures-{field}-v1.0-f150w2-f162m_drc", f"my_exposures-{field}-v1.0-f356w-clear_drc"]
    names = [a.name for a in home.database.associations(field)]
    assert names == [f"{field}_v012-4321-f162m_00001", f"{field}_v012-4321-f356w_00002"]


def test_single_exposures_lie_where_they_should(done: tuple[Home, Truth, str]) -> None:
    home, truth, _ = done
    (field,) = home.database.field_names()
    table = truth.references["LS_DR9"]
    sigma = 0.0
    for association in sorted(home.database.associations(field), key=lambda a: not a.is_long_wave):
        stored = home.database.reduction(association.name)
        assert stored is not None
        result, verdict = stored.result, stored.verdict
        assert verdict.accepted, verdict.cause
        assert [f.role for f in result.relative] == ["single"]
        assert result.absolute is not None
        own = result.absolute.rms * result.absolute.pixel_scale_mas / np.sqrt(result.absolute.n)
        if association.is_long_wave:
            here = table[inside(np.asarray(table["ra"]), np.asarray(table["dec"]), association.footprint)]
            sigma = external_sigma(truth, "LS_DR9", result.absolute.n, here)
            allowed = max(20.0, 4 * sigma)
        else:
            assert result.absolute.kind == "own"
            allowed = max(20.0, 4 * np.hypot(sigma, own))
        folder = home.storage.path(f"{field}/associations/{association.name}")
        assert placement(folder, result, truth).radial <= allowed
