"""A whole archive: its bytes repeat, and the unmodified jwst package calibrates it to the truth."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits

from panoramic.simulate.archive import simulate_archive
from panoramic.simulate.geometry import aperture
from panoramic.simulate.program import Simulation
from panoramic.simulate.truth import Truth

SIMULATION = Simulation.model_validate(
    {
        "seed": 11,
        "program": 4321,
        "fields": [{"ra": 0.002, "dec": 71.5, "v3pa": 290.0, "observation": 7}],
        "filters": [{"short": "F162M", "long": "F356W"}],
        "modules": ["A"],
        "detectors": ["nrca3", "nrcalong"],
        "dithers": 1,
        "sky": {"galaxy_density": 0.4, "star_density": 6.0},
    }
)

# In a process of its own: CRDS keeps its first configuration for the life of a process.
CALIBRATE = """
import json, logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import numpy as np
from jwst.assign_wcs import AssignWcsStep
from jwst.flatfield import FlatFieldStep
from jwst.photom import PhotomStep
from stdatamodels.jwst.datamodels import ImageModel
model = AssignWcsStep().process(ImageModel(sys.argv[1]))
x, y = np.meshgrid(np.linspace(0, 2047, 9), np.linspace(0, 2047, 9))
ra, dec = model.meta.wcs(x, y)
back = model.meta.wcs.backward_transform(ra, dec)
model = PhotomStep().process(FlatFieldStep().process(model))
np.save(sys.argv[2], np.stack([model.data, model.err, model.area, model.dq & 1]))
print(json.dumps({
    "x": x.ravel().tolist(), "y": y.ravel().tolist(), "ra": ra.ravel().tolist(), "dec": dec.ravel().tolist(),
    "back": float(max(np.abs(back[0] - x).max(), np.abs(back[1] - y).max())),
    "flat": model.meta.cal_step.flat_field, "photom": model.meta.cal_step.photom,
    "sr": model.meta.photometry.pixelarea_steradians, "unit": model.meta.bunit_data,
    "photmjsr": model.meta.photometry.conversion_megajanskys,
}))
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return simulate_archive(SIMULATION, tmp_path_factory.mktemp("archive") / "a")


def content(path):
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob("*") if f.is_file()
    }


def calibrate(archive, file, tmp_path):
    environment = os.environ | {
        "CRDS_PATH": str(archive.crds_path),
        "CRDS_SERVER_URL": "https://jwst-serverless.stsci.edu",
        "CRDS_CONTEXT": archive.crds_context,
    }
    planes = tmp_path / "planes.npy"
    done = subprocess.run(
        [sys.executable, "-c", CALIBRATE, str(file), str(planes)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), np.load(planes)


def test_bytes_depend_neither_on_workers_nor_on_process(archive, tmp_path):
    simulate_archive(SIMULATION, tmp_path / "b", workers=2)
    assert content(tmp_path / "b") == content(archive.path)


@pytest.mark.parametrize("detector", ["nrca3", "nrcalong"])
def test_jwst_calibrates_to_the_truth(archive, detector, tmp_path):
    file = next(f for f in archive.exposures if f"_{detector}_" in f.name)
    info, (data, err, area, unusable) = calibrate(archive, file, tmp_path)
    assert (info["flat"], info["photom"], info["unit"]) == ("COMPLETE", "COMPLETE", "MJy/sr")
    assert info["sr"] == pytest.approx(aperture(detector).pixel_area_sr)
    truth = Truth.load(archive.path)

    # Geometry: the pipeline's WCS is the reported pointing, to less than 1 mas.
    ra, dec = truth.reported_sky(file.name, info["x"], info["y"])
    east = ((np.array(info["ra"]) - ra + 180) % 360 - 180) * np.cos(np.radians(dec)) * 3.6e6
    north = (np.array(info["dec"]) - dec) * 3.6e6
    assert np.hypot(east, north).max() < 0.01
    assert info["back"] < 0.05

    # Photometry of isolated stars, against the same aperture on one whose flux is known.
    assert area.min() > 0.9
    row = truth.exposure(file.name)
    sources = truth.sources
    x, y = truth.true_pixel(file.name, sources["ra"], sources["dec"])
    mag = np.asarray(sources[f"mag_{row['band']}"], float)
    ratios, fraction = [], star_fraction(detector, row["band"])
    for k in np.flatnonzero((np.asarray(sources["kind"]) == "star") & (mag > 19) & (mag < 22.5)):
        near = (np.hypot(x - x[k], y - y[k]) < 45) & (mag < mag[k] + 4)
        if near.sum() > 1 or not (60 < x[k] < 1987 and 60 < y[k] < 1987):
            continue
        flux, bad = measure(data, unusable, area, x[k], y[k])
        if not bad:
            ratios.append(flux * info["sr"] * 1e6 / (3631 * 10 ** (-0.4 * mag[k])) / fraction)
    assert len(ratios) >= 3
    assert np.median(ratios) == pytest.approx(1.0, abs=0.015)

    # Noise: apart from sources and stripes, ERR is the scatter.
    good = unusable == 0
    pull = (data[good] - np.median(data[good])) / err[good]
    low, middle = np.percentile(pull, [16, 50])
    assert 0.95 < middle - low < 1.7


def measure(data, unusable, area, x, y, radius=14.0):
    half = 32
    x0, y0 = round(x) - half, round(y) - half
    box = np.s_[y0 : y0 + 2 * half + 1, x0 : x0 + 2 * half + 1]
    grid = np.arange(2 * half + 1)
    r = np.hypot(grid[None, :] + x0 - x, grid[:, None] + y0 - y)
    bad = unusable[box] > 0
    stamp = np.where(bad, np.nan, data[box])
    sky = np.nanmedian(stamp[(r > 24) & (r < 32)])
    return float(np.nansum(((stamp - sky) * area[box])[r < radius])), bool(bad[r < 5].any())


def star_fraction(detector, band):
    """Part of a star's flux that `measure` finds."""
    from panoramic.simulate import optics
    from panoramic.simulate.instrument import DETECTORS, NPIX

    canvas = optics.new_canvas()
    optics.draw(canvas, 1000.3, 1000.6, 1.0, np.zeros((2, 2)), np.ones(1), np.zeros(1))
    transfer = optics.transfer_function(band, DETECTORS[detector].channel, aperture(detector).x_scale)
    image = optics.observe(canvas, transfer)
    return measure(image, np.zeros((NPIX, NPIX)), np.ones((NPIX, NPIX)), 1000.3, 1000.6)[0]


def test_pupil_wheel_filter_has_its_own_calibration(archive):
    file = next(f for f in archive.exposures if "_nrca3_" in f.name)
    header = fits.getheader(file)
    assert (header["FILTER"], header["PUPIL"]) == ("F150W2", "F162M")
    assert (archive.grizli_path / "CONF" / "NircamWisp" / "WISP_NRCA3_F150W2_F162M.fits").exists()


def test_files_are_whole_frames(archive):
    for file in archive.exposures:
        with fits.open(file) as hdus:
            for name in ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE"):
                assert hdus[name].data.shape == (2048, 2048)
            assert hdus["DQ"].data.dtype == np.dtype(">u4") or hdus["DQ"].data.dtype == np.uint32
        assert abs(file.stat().st_size - 83_934_720) < 30_000
