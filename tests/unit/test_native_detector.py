"""Flat and flux scale as jwst's own steps, star cores, snowballs and persistence against what was put in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from panoramic.errors import ExposureFileError, InputError, TruncatedFileError, WrongShapeError
from panoramic.reduction.base import CalibrationSetup, ExposureInput
from panoramic.reduction.native.detector import Calibrated, calibrate, from_rate, to_rate
from panoramic.reduction.native.persistence import flag_persistence, saturated_pixels
from panoramic.reduction.native.references import References, load_references
from panoramic.reduction.native.snowballs import find_snowballs
from panoramic.reduction.rate_files import read_rate_header
from panoramic.simulate import calibration
from panoramic.simulate import detector as simulated
from panoramic.simulate.detector import DO_NOT_USE, JUMP_DET, SATURATED, expose
from panoramic.simulate.exposures import write_rate
from panoramic.simulate.headers import CONTEXT
from panoramic.simulate.instrument import photmjsr
from panoramic.simulate.plan import plan_exposures
from panoramic.simulate.program import Effects, Simulation

SIMULATION = Simulation.model_validate(
    {
        "seed": 8, "fields": [{"ra": 10.0, "dec": 10.0, "observation": 1}], "detectors": ["nrcb4"], "dithers": 1,
        "filters": [{"short": "F200W"}],
    }
)  # fmt: skip
SKY = 0.16
STARS = {(400, 400): 40.0, (1200, 700): 200.0, (1500, 1500): 5e5}
"""(y, x) -> MJy/sr in the middle; the last saturates before its second group."""

# In a process of its own: CRDS keeps its first configuration for the life of a process.
CALIBRATE = """
import logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import numpy as np
from jwst.flatfield import FlatFieldStep
from jwst.photom import PhotomStep
from stdatamodels.jwst.datamodels import ImageModel
for name in ("flat", "none"):
    model = ImageModel(sys.argv[1])
    model = PhotomStep().process(FlatFieldStep().process(model) if name == "flat" else model)
    planes = {k: getattr(model, k) for k in ("data", "err", "var_poisson", "var_rnoise", "dq")}
    if name == "flat":
        planes["var_flat"] = model.var_flat
    area = model.meta.photometry
    np.savez(f"{sys.argv[2]}/{name}.npz", area=[area.pixelarea_steradians, area.pixelarea_arcsecsq],
             scale=area.conversion_megajanskys, **planes)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A rate file with stars on a flat sky, and a CRDS cache whose flat has holes and bits of its own."""
    folder = tmp_path_factory.mktemp("detector")
    crds = folder / "crds"
    calibration.write_cache(SIMULATION, crds)
    (flat,) = (crds / "references" / "jwst" / "nircam").glob("*_flat_*.fits")
    with fits.open(flat) as hdus:
        data, flags, defined = hdus["SCI"].data, hdus["DQ"].data, hdus["DQ_DEF"].data
        data[50, 50:53] = np.nan, 0.0, -0.5
        flags[60, 50:53] = 4, 8, 16
        rows = [
            (*defined[0],),
            (*defined[1],),
            (2, 4, "NO_FLAT_FIELD", ""),
            (3, 8, "LOW_QE", ""),
            (4, 16, "NON_SCIENCE", ""),
        ]
        hdus["DQ_DEF"].data = np.array(rows, dtype=defined.dtype)
        hdus["ERR"].data = np.float32(0.01) + np.float32(0.005) * np.abs(data - 1).astype(np.float32)
        hdus.writeto(flat.with_suffix(".new"))
    flat.with_suffix(".new").replace(flat)
    (plan,) = plan_exposures(SIMULATION)
    image = np.full((2048, 2048), SKY, np.float32)
    grid = np.arange(-20, 21)
    profile = np.exp(-0.5 * (grid[:, None] ** 2 + grid**2) / 1.6**2)
    for (y, x), peak in STARS.items():
        image[y - 20 : y + 21, x - 20 : x + 21] += (peak * profile).astype(np.float32)
    rate = expose(
        image, "nrcb4", "F200W", SIMULATION.readout, SIMULATION.effects, SIMULATION.seed, np.random.default_rng(4)
    )
    rate.sci[70, 50] = np.nan  # without a flag
    rate.var_rnoise[70, 51] = np.nan
    path = folder / plan.file_name
    write_rate(rate, SIMULATION, plan, path)
    return path, crds


@pytest.fixture(scope="module")
def jwst_says(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, crds = made
    folder = tmp_path_factory.mktemp("jwst")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CRDS_")} | {
        "CRDS_PATH": str(crds), "CRDS_SERVER_URL": "https://jwst-serverless.stsci.edu", "CRDS_CONTEXT": CONTEXT,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CALIBRATE, str(path), str(folder)],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def references(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> References:
    path, crds = made
    header = read_rate_header(ExposureInput(path.name.removesuffix("_rate.fits"), path))
    return load_references((header,), CalibrationSetup(crds, CONTEXT), tmp_path_factory.mktemp("parsed"))[0]


@pytest.fixture(scope="module")
def calibrated(made: tuple[Path, Path], references: References) -> Calibrated:
    return calibrate(made[0], references)


def without_flat(references: References) -> References:
    return References(
        references.files, None, references.photmjsr, references.pixar_sr, references.pixar_a2, references.distortion,
        references.filter_offset,
    )  # fmt: skip


# --- flat and flux scale ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["flat", "none"])
def test_equals_jwsts_steps(made: tuple[Path, Path], references: References, jwst_says: Path, which: str) -> None:
    ours = calibrate(made[0], references if which == "flat" else without_flat(references))
    with np.load(jwst_says / f"{which}.npz") as theirs:
        assert (references.pixar_sr, references.pixar_a2) == pytest.approx(tuple(theirs["area"]), rel=1e-9)
        assert references.photmjsr == pytest.approx(float(theirs["scale"]), rel=1e-7)
        planes = {"sci": "data", "err": "err", "var_poisson": "var_poisson", "var_rnoise": "var_rnoise"}
        for mine, name in (planes | ({"var_flat": "var_flat"} if which == "flat" else {})).items():
            own, expected = getattr(ours, mine), theirs[name]
            assert own.dtype == np.float32
            np.testing.assert_array_equal(np.isnan(own), np.isnan(expected), err_msg=mine)
            good = np.isfinite(expected)
            assert good.mean() > 0.98
            np.testing.assert_allclose(own[good], expected[good], rtol=1e-6, atol=0, err_msg=mine)
        np.testing.assert_array_equal(ours.dq, theirs["dq"])
    np.testing.assert_array_equal(np.isnan(ours.sci), ours.dq & DO_NOT_USE > 0)
    assert (ours.dq[50, 50:53] & DO_NOT_USE > 0).tolist() == ([True, True, False] if which == "flat" else [False] * 3)
    assert (ours.dq[60, 50:53] & DO_NOT_USE > 0).tolist() == ([True, False, True] if which == "flat" else [False] * 3)
    assert (ours.dq[70, 50:52] & DO_NOT_USE > 0).all()


def test_the_sky_comes_out(calibrated: Calibrated) -> None:
    usable = ~calibrated.unusable()
    assert np.median(calibrated.sci[usable]) == pytest.approx(SKY, rel=0.01)
    pull = (calibrated.sci[usable] - SKY) / calibrated.err[usable]
    assert 0.95 < np.percentile(np.abs(pull), 68.3) < 1.3  # stripes are in it


def test_there_and_back(calibrated: Calibrated, references: References, made: tuple[Path, Path]) -> None:
    rate = to_rate(calibrated.sci, references)
    assert rate.dtype == np.float32
    with fits.open(made[0]) as hdus:
        good = np.isfinite(rate)
        np.testing.assert_allclose(rate[good], hdus["SCI"].data[good], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(from_rate(rate, references)[good], calibrated.sci[good], rtol=1e-6)


def test_star_cores_are_kept(calibrated: Calibrated) -> None:
    saturated = calibrated.dq & SATURATED > 0
    unusable = calibrated.unusable()
    for (y, x), peak in STARS.items():
        core = calibrated.saturated_core[y - 8 : y + 9, x - 8 : x + 9]
        assert core.any() == (peak > 100)
        if peak < 1e3:  # no pixel of it is lost, and the values are right
            assert not unusable[y - 1 : y + 2, x - 1 : x + 2].any()
            assert calibrated.sci[y, x] == pytest.approx(peak + SKY, rel=0.02)
    assert unusable[1500, 1500]  # too bright for a slope
    # snowballs saturate as well, and are left out
    far = np.ones_like(saturated)
    for y, x in STARS:
        far[y - 20 : y + 21, x - 20 : x + 21] = False
    assert (saturated & far).sum() > 50
    assert not calibrated.saturated_core[far].any()
    assert unusable[saturated & far].all()


def test_bad_files_are_refused(made: tuple[Path, Path], references: References, tmp_path: Path) -> None:
    bad = tmp_path / "bad_rate.fits"
    with fits.open(made[0]) as hdus:
        fits.HDUList([h for h in hdus if h.name != "VAR_RNOISE"]).writeto(bad)
    with pytest.raises(ExposureFileError, match=r"lacks a plane.*VAR_RNOISE"):
        calibrate(bad, references)
    bad.unlink()
    bad.write_bytes(made[0].read_bytes()[:75_000_000])
    with pytest.warns(UserWarning, match="truncated"), pytest.raises(TruncatedFileError):
        calibrate(bad, references)
    with fits.open(made[0]) as hdus:
        hdus["SCI"].data = hdus["SCI"].data[:640, :640]
        hdus.writeto(bad, overwrite=True)
    with pytest.raises(WrongShapeError, match="plane SCI"):
        calibrate(bad, references)


# --- snowballs -------------------------------------------------------------------------------------


def injected(seed: int, snowballs_per_ks: float = 12.0, cosmic_rays_per_ks: float = 60000.0):
    """Flags and leftover light (DN/s) of the simulator's snowballs among its cosmic rays; centres and radii."""
    effects = Effects(snowballs_per_ks=snowballs_per_ks, cosmic_rays_per_ks=cosmic_rays_per_ks)
    rng = np.random.default_rng(seed)
    dq, factor, read = (
        np.zeros((2048, 2048), np.uint32),
        np.ones((2048, 2048), np.float32),
        np.ones((2048, 2048), np.float32),
    )
    simulated._cosmic_rays(rng, effects, 945.0, 1e-3, 1e-4, dq, factor, read)
    before = dq.copy()
    light = simulated._snowballs(rng, effects, 945.0, dq, factor, read)
    return dq, light, dq & ~before & JUMP_DET > 0


@pytest.mark.parametrize("seed", range(6))
def test_snowballs_are_left_out_with_their_halos(seed: int) -> None:
    from scipy import ndimage

    dq, light, flagged = injected(seed)
    mask = find_snowballs(dq)
    assert light.sum() > 0
    # every patch with a radius of 5 px or more (all that are made)
    labels, count = ndimage.label(ndimage.binary_closing(flagged, iterations=2))
    sizes = ndimage.sum_labels(flagged, labels, np.arange(1, count + 1))
    assert (sizes > 60).sum() >= 3
    for k in np.flatnonzero(sizes > 60) + 1:
        assert mask[flagged & (labels == k)].mean() > 0.99
    # the halo: at 2.5 radii at most 0.06 DN/s * exp(-2.6) is left
    assert light[~mask].sum() < 0.06 * light.sum()
    assert light[~mask].max() < 0.0055
    # and no more than that
    assert mask.sum() < 8.0 * flagged.sum() + 100


def test_cosmic_rays_alone_are_no_snowballs() -> None:
    dq, _, _ = injected(1, snowballs_per_ks=0.0)
    assert (dq & JUMP_DET > 0).sum() > 30000
    assert not find_snowballs(dq).any()
    dq, _, _ = injected(2, snowballs_per_ks=0.0, cosmic_rays_per_ks=400000.0)  # a crowd
    assert not find_snowballs(dq).any()


def test_tracks_and_stars_are_no_snowballs() -> None:
    dq = np.zeros((2048, 2048), np.uint32)
    dq[100:106, 200:400] |= JUMP_DET  # 6 px wide
    y, x = np.mgrid[:2048, :2048]
    star, ball = (np.hypot(y - a, x - b) for a, b in ((600, 600), (1400, 1300)))
    for r in (star, ball):
        dq[r < 12] |= JUMP_DET
        dq[r < 5] |= SATURATED
    dq[1400, 1300:1500] |= JUMP_DET  # a track that touches
    mask = find_snowballs(dq, star_cores=(dq & SATURATED > 0) & (star < 5))
    assert not mask[y < 900].any()
    assert mask[ball < 25].all()
    assert not mask[ball > 36].any()
    assert find_snowballs(dq)[600, 600]
    assert not find_snowballs(dq, least_radius_px=14.0).any()


@pytest.mark.parametrize("place", [(0, 0), (2047, 1000), (3, 2040), (1024, 1)])
def test_snowballs_at_the_edge(place: tuple[int, int]) -> None:
    y, x = np.mgrid[:2048, :2048]
    r = np.hypot(y - place[0], x - place[1])
    mask = find_snowballs(np.where(r < 10, np.uint32(JUMP_DET), np.uint32(0)))
    assert mask[r < 18].all()
    assert not mask[r > 36].any()  # a corner counts as farther inside than it is


# --- persistence -----------------------------------------------------------------------------------


def test_persistence_is_left_out_until_it_is_gone() -> None:
    """Each exposure's saturated pixels glow on and fall by e in 1000 s; what isn't flagged is faint."""
    rng = np.random.default_rng(6)
    shape, length, gap, decay, glow = (256, 256), 945.0, 38.0, 1000.0, 0.2
    times = 60000.0 + np.arange(8) * (length + gap) / 86400
    earlier: list[tuple[np.ndarray, float]] = []
    for start in times:
        excess = np.zeros(shape)
        for mask, end in earlier:
            excess[mask] += glow * np.exp(-(start - end) * 86400 / decay)
        flagged = flag_persistence(earlier, start, shape=shape, decay_s=decay)
        assert (excess[~flagged] <= 0.1 * glow).all()
        assert (excess[flagged] > 0.04 * glow).all()
        dq = np.where(rng.random(shape) < 2e-3, np.uint32(SATURATED), np.uint32(0))
        earlier.append((saturated_pixels(dq), start + length / 86400))
    assert flagged.any()
    assert sum(mask.sum() for mask, _ in earlier) > 2 * flagged.sum()


def test_persistence_order_and_own_light() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[0, 0], b[1, 1] = True, True
    minute = 1 / 1440
    earlier = [(a, 60000.0), (b, 60000.0 + 10 * minute)]
    only_a = flag_persistence(earlier, 60000.0 + 5 * minute, shape=(4, 4))
    assert only_a.sum() == only_a[0, 0] == 1
    assert flag_persistence(earlier, 60000.0 + 12 * minute, shape=(4, 4)).sum() == 2
    now = flag_persistence(earlier, 60000.0 + 12 * minute, shape=(4, 4), saturated_now=a)
    assert now.sum() == now[1, 1] == 1
    assert not flag_persistence(earlier, 60001.0, shape=(4, 4)).any()
    assert not flag_persistence([], 60000.0).any()
    for wrong, match in (
        ({"decay_s": 0.0}, "above 0"),
        ({"start": float("nan")}, "finite"),
        ({"shape": (8, 8)}, "a mask of"),
    ):
        with pytest.raises(InputError, match=match):
            flag_persistence(earlier, **({"start": 60000.01, "shape": (4, 4)} | wrong))  # type: ignore[arg-type]


def test_dead_and_reference_pixels_hold_no_charge() -> None:
    dq = np.array(
        [[SATURATED, SATURATED | 1 << 10, SATURATED | 1 << 31, DO_NOT_USE, SATURATED | DO_NOT_USE]], np.uint32
    )
    assert saturated_pixels(dq).tolist() == [[True, False, False, False, True]]
    assert photmjsr("nrcb4", "F200W") > 0
