"""Pixels to the sky in closed form: jwst's own gwcs, real ones, SIP and gwcs exports, poles and RA 0."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from panoramic.errors import InputError
from panoramic.pointing import measured_pointing, rotation_of
from panoramic.reduction.base import Pointing
from panoramic.reduction.native.chebyshev import Polynomial, nodes
from panoramic.reduction.native.geometry import CENTRE, SIDE, Distortion, Geometry
from panoramic.simulate.geometry import Pointing as SimulatedPointing
from panoramic.simulate.geometry import aperture, filter_offset
from panoramic.simulate.instrument import DETECTORS

CEERS = Path(__file__).parents[2].parent / "shared" / "data" / "ceers"
FILES = sorted((CEERS / "wcs").glob("*.asdf"))
AXIS = np.linspace(-0.5, SIDE - 0.5, 24)
X, Y = np.meshgrid(AXIS, AXIS)
# pole, south pole nearby, both sides of RA 0, anywhere
PLACES = (
    (0.0001, 90.0, 30.0, 1.00009),
    (250.0, -89.995, 200.0, 0.99992),
    (359.9999, 5.0, 0.0, 1.0),
    (123.0, -45.0, 250.0, 1.00003),
)

# In a process of its own: jwst takes seconds, and changes logging and warnings.
ASSIGN_WCS = """
import logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import numpy as np
from pathlib import Path
from jwst.assign_wcs.nircam import imaging
from gwcs import WCS
from stdatamodels.jwst.datamodels import ImageModel
from panoramic.simulate import calibration
from panoramic.simulate.exposures import set_meta
from panoramic.simulate.headers import rate_meta
from panoramic.simulate.plan import plan_exposures
from panoramic.simulate.program import Simulation
folder = Path(sys.argv[1])
places = [(0.02, 89.999, 30.0), (250.0, -89.995, 200.0), (0.0, 5.0, 0.0), (123.0, -45.0, 250.0)]
simulation = Simulation.model_validate({
    "seed": 5, "modules": ["A", "B"], "dithers": 1, "filters": [{"short": "F162M", "long": "F444W"}],
    "fields": [{"ra": a, "dec": d, "v3pa": p, "observation": k + 1} for k, (a, d, p) in enumerate(places)],
})
axis = np.linspace(-0.5, 2047.5, 24)
x, y = np.meshgrid(axis, axis)
detectors = simulation.active_detectors()
for plan in plan_exposures(simulation):
    if plan.field != detectors.index(plan.detector) % len(places):
        continue
    distortion, offsets = (folder / f"{kind}_{plan.detector}.asdf" for kind in ("distortion", "filteroffset"))
    calibration._distortion(distortion, plan.detector)
    entry = calibration.DETECTORS[plan.detector]
    calibration._filteroffset(offsets, entry.channel, entry.module)
    with ImageModel(np.zeros((16, 16), np.float32)) as model:
        set_meta(model, rate_meta(simulation, plan))
        model.save(folder / f"{plan.detector}.fits")
        wcs = WCS(imaging(model, {"distortion": str(distortion), "filteroffset": str(offsets)}))
        wcs.bounding_box = None
        np.save(folder / f"{plan.detector}.npy", wcs(x, y))
"""


def vectors(ra, dec) -> np.ndarray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def apart_mas(first, second) -> np.ndarray:
    return np.degrees(np.linalg.norm(vectors(*first) - vectors(*second), axis=-1)) * 3.6e6


def distortion_of(detector: str) -> Distortion:
    return Distortion.fitted(aperture(detector).pixel_to_v2v3)


def geometry_of(detector: str, place=PLACES[3], offset=(0.0, 0.0)) -> Geometry:
    ap = aperture(detector)
    header = dict(zip(("RA_REF", "DEC_REF", "ROLL_REF", "VA_SCALE"), place, strict=True))
    return Geometry.from_header(header | {"V2_REF": ap.v2_ref, "V3_REF": ap.v3_ref}, distortion_of(detector), offset)


# --- truth from outside ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wcs")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CRDS_")}
    done = subprocess.run(
        [sys.executable, "-c", ASSIGN_WCS, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("detector", DETECTORS)
def test_equals_jwst(assigned: Path, detector: str) -> None:
    import asdf

    header = fits.getheader(assigned / f"{detector}.fits", "SCI")
    with asdf.open(assigned / f"distortion_{detector}.asdf", lazy_load=False) as opened:
        distortion = Distortion.fitted(opened.tree["model"])
    assert distortion.error_mas < 1e-6
    band = "F444W" if "long" in detector else "F162M"
    offset = filter_offset(detector, band)
    assert max(map(abs, offset)) > 0.05
    geometry = Geometry.from_header(header, distortion, offset)
    assert geometry.va_scale != 1
    expected = np.load(assigned / f"{detector}.npy")
    assert apart_mas(geometry.sky(X, Y), expected).max() < 0.01
    # what each part is worth: without it the agreement is gone
    assert apart_mas(Geometry.from_header(header, distortion).sky(X, Y), expected).max() > 1
    still = {**header, "VA_SCALE": 1.0}
    assert apart_mas(Geometry.from_header(still, distortion, offset).sky(X, Y), expected).max() > 0.05


def test_equals_the_real_geometry() -> None:
    """The transforms of 60 real exposures, by their own parameters; their corrections are rotations of the sky."""
    if not FILES:
        pytest.skip(f"no real geometry in {CEERS}")
    import asdf

    assert len(FILES) == 60
    for path in FILES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with asdf.open(path, lazy_load=False) as opened:
                wcs = opened.tree["wcs"]
        wcs.bounding_box = None
        steps = {step.frame.name: step.transform for step in wcs.pipeline}
        rotation = next(steps["v2v3corr"][k] for k in range(5) if hasattr(steps["v2v3corr"][k], "angles"))
        v2, v3, roll, dec, ra = rotation.angles.value
        header = {
            "V2_REF": v2 * 3600, "V3_REF": -v3 * 3600, "ROLL_REF": roll, "DEC_REF": dec, "RA_REF": -ra,
            "VA_SCALE": steps["v2v3"][0].factor.value,
        }  # fmt: skip
        geometry = Geometry.from_header(header, Distortion.fitted(steps["detector"]))
        assert geometry.distortion.error_mas < 1e-3, path.name
        plain = (steps["detector"] | steps["v2v3"] | steps["v2v3corr"])(X, Y)
        assert apart_mas(geometry.sky(X, Y), plain).max() < 0.01, path.name
        # the short-wave corrections hold no scale
        if "long" not in path.name:
            aligned = wcs(X, Y)
            pointing = measured_pointing(
                tuple(p.ravel() for p in plain), tuple(p.ravel() for p in aligned), header["RA_REF"], dec
            )
            assert np.hypot(*pointing.shift_mas) > 20
            assert apart_mas(geometry.corrected(pointing).sky(X, Y), aligned).max() < 0.05, path.name


# --- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("detector", ["nrca3", "nrcblong"])
def test_sky_and_pixels(detector: str, place: tuple[float, ...]) -> None:
    geometry = geometry_of(detector, place, (0.2, -0.3))
    ra, dec = geometry.sky(X, Y)
    assert np.all((ra >= 0) & (ra < 360))
    expected = aperture(detector).pixel_to_sky(SimulatedPointing(*place), X + 0.2, Y - 0.3)
    assert apart_mas((ra, dec), expected).max() < 1e-5
    np.testing.assert_allclose(geometry.pixels(ra, dec), [X, Y], atol=1e-6)
    # beyond the edges it goes on, far outside it says so
    near, far = geometry.sky([-300.0, 2400.0], [2300.0, -200.0]), geometry.sky([-1400.0, 1000.0], [500.0, 3600.0])
    np.testing.assert_allclose(geometry.pixels(*near), [[-300.0, 2400.0], [2300.0, -200.0]], atol=1e-5)
    assert np.isnan(geometry.pixels(*far)).all()
    assert np.isnan(geometry.pixels(ra[0] + 180, -dec[0])).all()
    assert np.isnan(geometry.pixels([0.0, 120.0, 240.0], [0.0, 30.0, -60.0])).all()


def test_reference_point_and_footprint() -> None:
    for place in PLACES[1:]:
        geometry = geometry_of("nrcb1", place)
        np.testing.assert_allclose(geometry.reference_pointing, place[:3], atol=1e-8)
    corners = geometry.footprint()
    np.testing.assert_allclose(
        geometry.pixels(*corners.T), [[-0.5, -0.5, 2047.5, 2047.5], [-0.5, 2047.5, 2047.5, -0.5]], atol=1e-6
    )


@pytest.mark.parametrize("place", PLACES)
def test_corrections_are_rotations(place: tuple[float, ...]) -> None:
    geometry = geometry_of("nrcb4", place)
    pointing = Pointing(place[0], place[1], (180.0, -75.0), 0.04)
    moved = geometry.corrected(pointing)
    turned = vectors(*geometry.sky(X, Y)) @ rotation_of(pointing).T
    assert np.degrees(np.abs(np.stack(moved.vectors(X, Y), axis=-1) - turned).max()) * 3.6e6 < 1e-6
    np.testing.assert_allclose(moved.pixels(*moved.sky(X, Y)), [X, Y], atol=1e-6)
    assert apart_mas(geometry.sky(X, Y), moved.sky(X, Y)).min() > 100
    # its own reference point tells the same attitude
    ra, dec, roll = moved.reference_pointing
    again = geometry_of("nrcb4", (ra, dec, roll, place[3]))
    assert apart_mas(again.sky(X, Y), moved.sky(X, Y)).max() < 1e-4


# --- exports ---------------------------------------------------------------------------------------


def header_of(cards: dict) -> fits.Header:
    """The cards as text and back."""
    return fits.Header.fromstring(fits.Header(cards.items()).tostring())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_sip_is_read_by_astropy(detector: str, place: tuple[float, ...]) -> None:
    geometry = geometry_of(detector, place, (0.1, 0.2)).corrected(Pointing(place[0], place[1], (40.0, 90.0), -0.03))
    truth = geometry.sky(X, Y)
    for order in (4, 5):
        fit = geometry.to_sip(order)
        wcs = WCS(header_of(fit.cards), relax=True)
        off = apart_mas(wcs.all_pix2world(X, Y, 0), truth)
        assert np.sqrt((off**2).mean()) == pytest.approx(fit.rms_mas, rel=0.1, abs=1e-4)
        assert off.max() < fit.max_mas * 1.1 + 1e-4
        # only the fifth order is enough for the long-wave detectors
        assert fit.rms_mas < (0.5 if "long" not in detector else 1.0) / (1 if order == 4 else 100)
        np.testing.assert_allclose(wcs.all_world2pix(*truth, 0), [X, Y], atol=0.05 if order == 4 else 1e-4)
        # the inverse polynomials alone
        x, y = wcs.sip_foc2pix(*(v - CENTRE for v in wcs.wcs_world2pix(*truth, 0)), 1)
        back = np.hypot(x - 1 - X, y - 1 - Y)
        assert back.max() < fit.inverse_max_px * 1.1 + 1e-6
        assert fit.inverse_max_px < (0.04 if order == 4 else 0.002)
    with pytest.raises(InputError, match="order 1"):
        geometry.to_sip(1)


def test_sip_is_the_same_bits_again() -> None:
    place = PLACES[3]
    assert geometry_of("nrca1", place).to_sip().cards == geometry_of("nrca1", place).to_sip().cards


@pytest.mark.parametrize("detector", ["nrcb2", "nrcalong"])
def test_gwcs_is_read_back(detector: str, tmp_path: Path) -> None:
    from stdatamodels.jwst.datamodels import ImageModel

    geometry = geometry_of(detector, PLACES[3], (0.1, 0.2)).corrected(Pointing(123.0, -45.0, (40.0, 90.0), -0.03))
    with ImageModel(np.zeros((16, 16), np.float32)) as model:
        model.meta.wcs = geometry.gwcs()
        model.save(tmp_path / "a_cal.fits")
    with ImageModel(tmp_path / "a_cal.fits") as model:
        wcs = model.meta.wcs
    assert wcs.available_frames == ["detector", "v2v3", "v2v3vacorr", "world"]
    assert apart_mas(wcs(X, Y), geometry.sky(X, Y)).max() < 1e-4
    # inside the outer edge, which is the bounding box
    inside = np.s_[1:-1, 1:-1]
    back = wcs.invert(*geometry.sky(X, Y))
    np.testing.assert_allclose([back[0][inside], back[1][inside]], [X[inside], Y[inside]], atol=1e-5)
    assert np.isnan(wcs(3000.0, 10.0)).all()


# --- the polynomials and bad input -----------------------------------------------------------------


def test_polynomials_are_exact() -> None:
    rng = np.random.default_rng(3)
    powers = np.triu(rng.normal(size=(7, 7)))[:, ::-1]
    scale = 1000.0 ** -np.add.outer(np.arange(7), np.arange(7))

    def values(x, y):
        return np.polynomial.polynomial.polyval2d(x - 500, y - 800, powers * scale)

    at = nodes(12)
    fitted = Polynomial.through(
        values(*np.meshgrid(500 + 900 * at, 800 + 700 * at, indexing="ij")), 6, (500.0, 800.0), (900.0, 700.0)
    )
    x, y = rng.uniform(-300, 1300, (2, 50))
    np.testing.assert_allclose(fitted.at(x, y), values(x, y), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fitted.monomials() / scale, powers, atol=1e-9)
    step = 1e-3
    slope = (values(x, y + step) - values(x, y - step)) / (2 * step)
    np.testing.assert_allclose(fitted.derivative(1).at(x, y), slope, rtol=1e-6, atol=1e-8)


def test_a_rough_transform_is_told() -> None:
    ap = aperture("nrcb1")

    def rough(x, y):
        v2, v3 = ap.pixel_to_v2v3(x, y)
        return v2 + 1e-3 * np.sin(x / 60), v3

    assert Distortion.fitted(rough).error_mas > 0.5


def test_a_header_that_places_nothing_is_refused() -> None:
    distortion = distortion_of("nrcb1")
    good = {"RA_REF": 1.0, "DEC_REF": 2.0, "ROLL_REF": 3.0, "V2_REF": 4.0, "V3_REF": 5.0}
    assert Geometry.from_header(good, distortion).va_scale == 1
    for change, match in (
        ({"ROLL_REF": None}, "ROLL_REF is None"), ({"DEC_REF": float("nan")}, "DEC_REF is nan"),
        ({"RA_REF": "east"}, "RA_REF is 'east'"), ({"VA_SCALE": -1.0}, "VA_SCALE is -1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            Geometry.from_header(good | change, distortion)
    assert CENTRE == 1023.5
