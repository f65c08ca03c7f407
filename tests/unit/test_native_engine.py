"""The native engine's pieces on made-up catalogues and images with known answers, and what happens around its child."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from panoramic.errors import (
    CalibrationError,
    EngineFailedError,
    EngineKilledError,
    ExposureFileError,
    InputError,
    NoUsableExposureError,
    StorageError,
    TruncatedFileError,
)
from panoramic.exposure_sources import ExposureSources, in_spikes
from panoramic.footprints import deproject
from panoramic.reduction.base import CalibrationSetup, ExposureInput, PointingPrior, ReductionResult, ReferenceSources
from panoramic.reduction.moving import SkyCorrection
from panoramic.reduction.native.absolute import align_to_reference
from panoramic.reduction.native.catalogue import make_catalogue
from panoramic.reduction.native.engine import NativeReduction
from panoramic.reduction.native.exposure import wisp_template
from panoramic.reduction.native.geometry import Distortion, Geometry, attitude_matrix
from panoramic.reduction.native.image import Grid, Part, drizzle, frame_map
from panoramic.reduction.native.outliers import NODE_STEP
from panoramic.reduction.native.parameters import NativeParameters, second_parameters, validate_parameters
from panoramic.reduction.native.relative import align_exposures, moved
from panoramic.reduction.rate_files import RateHeader
from panoramic.survey import ReductionRules

PLACE = (359.999, -31.0)
SCALE_MAS = 63.0
SIDE_MAS = 2048 * SCALE_MAS
MAS = np.pi / 180 / 3.6e6
PROJECT = Path(__file__).resolve().parents[2]


# --- parameters --------------------------------------------------------------------------------


def test_parameters_that_are_not_known_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="stripe: unknown parameter, did you mean stripes"):
        validate_parameters({"stripe": True})
    with pytest.raises(InputError, match=r"pixfrac: .*got 2"):
        validate_parameters({"pixfrac": 2})
    with pytest.raises(InputError, match="at least three corners"):
        validate_parameters({"scattered_light": [{"match": "*", "vertices": [[0, 0], [1, 1]]}]})
    assert validate_parameters({}) == NativeParameters()


def test_second_attempt_searches_wider_and_never_narrower() -> None:
    second = second_parameters({"search_radius_arcsec": 12.0, "wisps": False}, None, 10.0)
    assert second == {"search_radius_arcsec": 12.0, "relative_search_arcsec": 10.0, "wisps": False}
    assert second_parameters({"wisps": False}, {"pixfrac": 1.0}, 10.0) == {"wisps": False, "pixfrac": 1.0}
    with pytest.raises(InputError):
        second_parameters({}, {"align_clip": 3}, 10.0)


def test_survey_file_names_either_engine_with_its_own_parameters() -> None:
    overrides = [{"match": "F444W", "engine": "native", "parameters": {"wisps": False}}, {"match": "a*"}]
    rules = ReductionRules.model_validate({"parameters": {"lean": True}, "overrides": overrides})
    assert rules.settings_for("a", "f", "f444w") == ("native", {"wisps": False})
    assert rules.settings_for("a", "f", "f115w") == ("grizli", {"lean": True})


# --- alignment of catalogues -------------------------------------------------------------------


def sky_of(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sources over a field of 1.3 detectors, east and north in mas."""
    east, north = rng.uniform(-0.65 * SIDE_MAS, 0.65 * SIDE_MAS, (2, number))
    return east, north


def exposure_of(
    name: str,
    sky: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    *,
    dither: tuple[float, float] = (0.0, 0.0),
    error: SkyCorrection | None = None,
    noise_mas: float = 5.0,
) -> ExposureSources:
    """What an exposure sees of a sky, north up; ``error`` moves all that its header says."""
    x = 1023.5 - (sky[0] - dither[0]) / SCALE_MAS
    y = 1023.5 + (sky[1] - dither[1]) / SCALE_MAS
    seen = (x > 6) & (x < 2041) & (y > 6) & (y < 2041)
    sigma = noise_mas * np.exp(rng.normal(0, 0.5, seen.sum()))
    east = sky[0][seen] + rng.normal(0, sigma)
    north = sky[1][seen] + rng.normal(0, sigma)
    ra, dec = deproject(east * MAS, north * MAS, *PLACE)
    half = SIDE_MAS / 2
    corners = np.array([[half, -half], [-half, -half], [-half, half], [half, half]]) + dither
    footprint = np.column_stack(deproject(corners[:, 0] * MAS, corners[:, 1] * MAS, *PLACE))
    centre = deproject(np.array(dither[0]) * MAS, np.array(dither[1]) * MAS, *PLACE)
    mag = rng.uniform(20, 27, seen.sum())
    found = ExposureSources(
        name, x[seen], y[seen], ra, dec, sigma, np.zeros_like(sigma), mag, footprint, (float(centre[0]), float(centre[1])), SCALE_MAS,
        (2048, 2048),
    )  # fmt: skip
    return found if error is None else moved(found, error.matrix)


DITHERS = ((0.0, 0.0), (6000.0, -4000.0), (-5000.0, 7000.0), (9000.0, 8000.0))
ERRORS = ((3.0, -8.0, 0.001), (-6.0, 2.0, -0.002), (9.0, 7.0, 0.0005), (-40.0, 25.0, 0.01))


def four(rng: np.random.Generator, number: int = 150, **changes: SkyCorrection) -> list[ExposureSources]:
    sky = sky_of(number, rng)
    errors = {f"e{k}": SkyCorrection(*PLACE, *e) for k, e in enumerate(ERRORS)} | changes
    return [exposure_of(f"e{k}", sky, rng, dither=d, error=errors[f"e{k}"]) for k, d in enumerate(DITHERS)]


def disagreement(rotations: dict[str, np.ndarray], errors: dict[str, SkyCorrection]) -> float:
    """Largest difference between exposures, mas, that is left at five points of the field."""
    at = [deproject(np.array(e) * 40_000 * MAS, np.array(n) * 40_000 * MAS, *PLACE) for e, n in
          ((0, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))]  # fmt: skip
    places = {}
    for name, error in errors.items():
        left = SkyCorrection.from_matrix(rotations[name] @ error.matrix, *PLACE)
        places[name] = np.array([left.apply(*p) for p in at])
    mean = np.mean(list(places.values()), axis=0)
    return max(float(np.hypot(*((p - mean) * 3.6e6).T).max()) for p in places.values())


def test_exposures_are_tied_to_each_other() -> None:
    rng = np.random.default_rng(4)
    exposures = four(rng)
    solution = align_exposures(exposures)
    assert solution.rejected == {} and [f.role for f in solution.fits] == ["matched"] * 4
    errors = {f"e{k}": SkyCorrection(*PLACE, *e) for k, e in enumerate(ERRORS)}
    # 90 sources of about 5 mas each: 0.6 mas per axis in the middle, 0.9 at the corners; the largest of twenty
    assert disagreement(solution.rotations, errors) < 3.0
    for fit, error in zip(solution.fits, ERRORS, strict=True):
        assert fit.n > 60 and 0.2 < max(fit.rms_x, fit.rms_y) * SCALE_MAS * np.sqrt(fit.n) / 6 < 2
        assert fit.dx == pytest.approx((error[0] - np.median([e[0] for e in ERRORS])) / SCALE_MAS, abs=0.05)


def test_the_frame_is_that_of_exposures_that_are_known_better() -> None:
    rng = np.random.default_rng(4)
    free, held = align_exposures(four(rng)), align_exposures(four(np.random.default_rng(4)), trusted=frozenset({"e3"}))
    assert np.allclose(held.rotations["e3"], np.eye(3), atol=2 * MAS)
    assert not np.allclose(free.rotations["e3"], np.eye(3), atol=10 * MAS)


def test_an_exposure_that_is_off_is_named_and_the_others_stand() -> None:
    exposures = four(np.random.default_rng(6), e1=SkyCorrection(*PLACE, 0.0, 3000.0, 0.0))
    solution = align_exposures(exposures, search_radius_arcsec=2.0)
    assert list(solution.rejected) == ["e1"] and "beyond the search radius" in solution.rejected["e1"]
    assert [f.role for f in solution.fits] == ["matched", "rejected", "matched", "matched"]
    assert np.array_equal(solution.rotations["e1"], np.eye(3))
    wider = align_exposures(exposures, search_radius_arcsec=10.0)
    assert wider.rejected == {}


def test_the_first_exposure_may_be_the_wrong_one() -> None:
    rng = np.random.default_rng(7)
    exposures = four(rng, e0=SkyCorrection(*PLACE, -3000.0, 0.0, 0.0))
    # the richest comes first
    exposures[1:] = [e.without(np.arange(len(e)) % 3 == 0) for e in exposures[1:]]
    assert list(align_exposures(exposures).rejected) == ["e0"]


def test_exposures_of_different_skies_are_all_rejected() -> None:
    rng = np.random.default_rng(8)
    exposures = [exposure_of(f"e{k}", sky_of(80, rng), rng) for k in range(3)]
    solution = align_exposures(exposures)
    assert set(solution.rejected) == {"e0", "e1", "e2"} and {f.role for f in solution.fits} == {"rejected"}


def test_exposures_without_sources_and_single_ones() -> None:
    rng = np.random.default_rng(8)
    empty = [exposure_of(f"e{k}", sky_of(0, rng), rng) for k in range(2)]
    assert set(align_exposures(empty).rejected) == {"e0", "e1"}
    assert [f.role for f in align_exposures(empty[:1]).fits] == ["single"]


def reference_of(
    sky: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, error: SkyCorrection
) -> ReferenceSources:
    """A reference of 30 mas that the sky of an association is off from by ``error``."""
    places = deproject((sky[0] + rng.normal(0, 30, sky[0].size)) * MAS,
                       (sky[1] + rng.normal(0, 30, sky[1].size)) * MAS, *PLACE)  # fmt: skip
    ra, dec = error.inverse().apply(*places)
    return ReferenceSources("LS_DR9", ra, dec, np.full(ra.size, np.nan), np.full(ra.size, 30.0))


def test_an_association_is_tied_to_its_reference() -> None:
    rng = np.random.default_rng(9)
    sky = sky_of(120, rng)
    exposures = [exposure_of(f"e{k}", sky, rng, dither=d) for k, d in enumerate(DITHERS)]
    error = SkyCorrection(*PLACE, 700.0, -400.0, 0.05)
    reference = reference_of((sky[0][:40], sky[1][:40]), rng, error)
    found = align_to_reference(exposures, reference, pixel_scale_mas=SCALE_MAS)
    assert found.failure is None and found.fit is not None and found.solution is not None
    left = SkyCorrection.from_matrix(found.rotation @ error.matrix, *PLACE)
    assert abs(left.east_mas) < 3.5 * found.solution.err_ra and abs(left.north_mas) < 3.5 * found.solution.err_dec
    assert found.fit.n > 20 and found.fit.rms * SCALE_MAS == pytest.approx(30, rel=0.4)
    assert (found.fit.dx, found.fit.dy) == pytest.approx((700 / SCALE_MAS, 400 / SCALE_MAS), abs=1.0)


@pytest.mark.parametrize("number", [0, 3, 40])
def test_a_reference_that_is_empty_sparse_or_of_another_sky_is_refused(number: int) -> None:
    rng = np.random.default_rng(10)
    exposures = [exposure_of(f"e{k}", sky_of(120, rng), rng) for k in range(1)]
    reference = reference_of(sky_of(number, rng), rng, SkyCorrection(*PLACE))
    found = align_to_reference(exposures, reference, pixel_scale_mas=SCALE_MAS)
    assert found.fit is None and str(found.failure).startswith("no alignment to LS_DR9: ")
    assert np.array_equal(found.rotation, np.eye(3))
    assert align_to_reference(exposures, None, pixel_scale_mas=SCALE_MAS).failure is None


def test_pieces_of_spikes_are_told_from_neighbours() -> None:
    x, y = np.array([500.0, 500.0, 540.0, 900.0, 20.0]), np.array([500.0, 560.0, 500.0, 500.0, 20.0])
    flux = np.array([1e6, 1e3, 1e5, 1e3, 10.0])
    assert in_spikes(x, y, flux).tolist() == [False, True, False, False, True]
    assert in_spikes(x[:0], y[:0], flux[:0]).size == 0


# --- image and catalogue -----------------------------------------------------------------------


def geometry(ra: float, dec: float, roll: float = 20.0) -> Geometry:
    """A detector without distortion, its middle at a place."""
    distortion = Distortion.fitted(lambda x, y: (-(x - 1023.5) * SCALE_MAS / 1000, (y - 1023.5) * SCALE_MAS / 1000))
    return Geometry(distortion, (0.0, 0.0), 0.0, 0.0, 1.0, attitude_matrix(0.0, 0.0, ra, dec, roll))


def test_the_grid_holds_all_exposures_and_is_what_its_header_says() -> None:
    geometries = [geometry(0.0, 89.99), geometry(170.0, 89.995, 75.0)]  # about the pole
    grid = Grid.around(geometries, SCALE_MAS)
    x, y = (np.concatenate(v) for v in zip(*(grid.pixels(*g.footprint().T) for g in geometries), strict=True))
    assert x.min() > 7 and y.min() > 7 and x.max() < grid.shape[1] - 7 and y.max() < grid.shape[0] - 7
    wcs = WCS(fits.Header(grid.cards()))
    at = np.array([3.0, 1500.0, 2000.0]), np.array([700.0, 10.0, 1999.0])
    assert np.allclose(wcs.all_world2pix(*grid.sky(*at), 0), at, atol=1e-6)
    assert np.allclose(grid.pixels(*grid.sky(*at)), at, atol=1e-6)


def test_frame_map_and_image_put_light_where_it_belongs() -> None:
    here = geometry(*PLACE)
    grid = Grid.around([here], SCALE_MAS)
    nodes = frame_map(here, grid)
    assert np.isfinite(nodes.to_pixel).all()
    x, y = grid.pixels(*here.sky(32.0 * NODE_STEP, 50.0 * NODE_STEP))
    assert nodes.to_frame[:, 50, 32] == pytest.approx([float(x), float(y)])
    image = np.full((2048, 2048), 0.25, np.float32)
    weight = np.full_like(image, 4.0)
    image[700, 400] += 1000.0
    image[5, 5], weight[5, 5] = np.nan, 0.0
    science, total = drizzle([Part(here, 100.0, image.copy(), weight)], grid, 0.75)
    assert np.median(science[total > 0]) == pytest.approx(0.25) and np.isfinite(science).all()
    assert (science - 0.25)[total > 0].sum() == pytest.approx(1000.0, rel=0.02)
    cx, cy = (round(float(v)) for v in grid.pixels(*here.sky(400.0, 700.0)))
    assert np.unravel_index(science.argmax(), science.shape) == (cy, cx)
    assert total.sum() == pytest.approx(weight.sum(), rel=0.01)


def test_catalogue_of_known_stars() -> None:
    rng = np.random.default_rng(12)
    grid = Grid(150.0, 2.0, SCALE_MAS, (700, 800), 400.0, 350.0)
    noise, sigma = 0.01, 1.3
    science = rng.normal(0.3, noise, grid.shape).astype(np.float32)
    weight = np.full(grid.shape, noise**-2, np.float32)
    x, y = rng.uniform(40, 760, 40), rng.uniform(40, 660, 40)
    total = np.exp(rng.uniform(np.log(5), np.log(500), 40))
    yy, xx = np.indices(grid.shape)
    for a, b, f in zip(x, y, total, strict=True):
        science += np.float32(f / (2 * np.pi * sigma**2)) * np.exp(-((xx - a) ** 2 + (yy - b) ** 2) / 2 / sigma**2)
    weight[:30], science[:30] = 0, 0
    table = make_catalogue(science, weight, grid)
    assert list(table["id"]) == list(range(1, len(table) + 1)) and (np.diff(table["flux"]) <= 0).all()
    apart = np.hypot(np.asarray(table["x"])[:, None] - x, np.asarray(table["y"])[:, None] - y)
    assert (apart.min(axis=0) < 1).mean() > 0.9
    to_ujy = 1e12 * (SCALE_MAS * MAS) ** 2
    row = np.array([apart[:, k].argmin() for k in range(40)])
    alone = (np.hypot(x[:, None] - x, y[:, None] - y) + 99 * np.eye(40)).min(axis=1) > 25
    good = alone & (apart.min(axis=0) < 1)
    # 0.36 arcsec hold all of such a star
    ratio = np.asarray(table["flux"])[row[good]] / (total[good] * to_ujy)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)
    pull = (ratio - 1) * total[good] * to_ujy / np.asarray(table["flux_error"])[row[good]]
    assert 0.5 < np.std(pull) < 1.6
    assert table.meta["purity"] > 0.95 and table.meta["error_scale"] < 1.3


def test_catalogue_of_an_empty_image() -> None:
    grid = Grid(150.0, 2.0, SCALE_MAS, (200, 200), 100.0, 100.0)
    void = np.zeros(grid.shape, np.float32)
    assert len(make_catalogue(void, void, grid)) == 0


def header_of(detector: str) -> RateHeader:
    long = detector.endswith("LONG")
    return RateHeader(
        "d", Path("d"), detector, "LONG" if long else "SHORT", "B", "F115W", "CLEAR", "NRC_IMAGE", "", "", 0.0, 0.0,
        1.0, 0.0, 0.0,
    )  # fmt: skip


def test_wisp_templates(tmp_path: Path) -> None:
    assert wisp_template(tmp_path, header_of("NRCB1")) == (None, "")
    assert "no template for NRCB4" in wisp_template(tmp_path, header_of("NRCB4"))[1]
    assert "no template" in wisp_template(None, header_of("NRCB4"))[1]
    folder = tmp_path / "CONF" / "NircamWisp"
    folder.mkdir(parents=True)
    path = folder / "wisps_nrcb4_F115W.fits"
    path.write_bytes(b"no FITS file")
    with pytest.raises(CalibrationError, match="can't be read"):
        wisp_template(tmp_path, header_of("NRCB4"))
    fits.PrimaryHDU(np.ones((2048, 2048), np.float32)).writeto(path, overwrite=True)
    template, why = wisp_template(tmp_path, header_of("NRCB4"))
    assert template is not None and template.shape == (2048, 2048) and why == ""


# --- around the child --------------------------------------------------------------------------

A, B = (f"jw09001001001_02201_0000{i}_nrcblong" for i in (1, 2))

STAND_IN = """
import json, os, signal, sys
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
products, log = Path(job["products"]), []

def end(**outcome):
    Path(job["outcome"]).write_text(json.dumps({"peak_mib": 321.0, **outcome}))

def error(kind, message="said so", **more):
    end(error={"type": kind, "message": message, "errno": None, "path": "", "reason": "", **more})

"""


@pytest.fixture
def rates(tmp_path: Path) -> tuple[ExposureInput, ...]:
    """Two whole rate files with no light in them."""
    primary = fits.Header()
    primary.update(
        TELESCOP="JWST", INSTRUME="NIRCAM", DETECTOR="NRCBLONG", CHANNEL="LONG", MODULE="B", FILTER="F444W",
        PUPIL="CLEAR", EXP_TYPE="NRC_IMAGE", EXPSTART=60000.0, EFFEXPTM=100.0,
    )  # fmt: skip
    primary["DATE-OBS"], primary["TIME-OBS"] = "2025-06-01", "00:00:00"
    sci = fits.Header()
    sci.update(RA_REF=150.0, DEC_REF=2.0, ROLL_REF=70.0, V2_REF=-89.0, V3_REF=-491.0, VPARITY=-1, V3I_YANG=0.02)
    made = []
    for k, name in enumerate((B, A)):
        primary["EXPSTART"] = 60000.0 - k  # given in the wrong order of time
        planes = [fits.PrimaryHDU(header=primary), fits.ImageHDU(np.zeros((2048, 2048), np.float32), sci, name="SCI")]
        planes += [fits.ImageHDU(np.zeros((2048, 2048), np.float32), name="ERR"),
                   fits.ImageHDU(np.zeros((2048, 2048), np.uint32), name="DQ")]  # fmt: skip
        path = tmp_path / f"{name}_rate.fits"
        fits.HDUList(planes).writeto(path)
        made.append(ExposureInput(name, path))
    return tuple(made)


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., NativeReduction]:
    """A maker of engines whose child does what a test's code says."""
    context = tmp_path / "crds" / "mappings" / "jwst" / "jwst_1.pmap"
    for path in (context, tmp_path / "crds" / "config" / "jwst" / "server_config"):
        path.parent.mkdir(parents=True)
        path.write_text("")

    def make(code: str = "", **settings: Any) -> NativeReduction:
        script = tmp_path / "stand_in.py"
        script.write_text(STAND_IN + textwrap.dedent(code))
        made = NativeReduction(CalibrationSetup(tmp_path / "crds", "jwst_1.pmap"), tmp_path / "work", **settings)
        made.child_command = (sys.executable, str(script))
        return made

    return make


def run(engine: NativeReduction, rates: tuple[ExposureInput, ...], tmp_path: Path, **more: Any) -> ReductionResult:
    settings = {"reference": None, "pointing_priors": (), "folder": tmp_path / "products" / "a"} | more
    return engine.reduce("a", rates, **settings)


def empty_result() -> str:
    return ReductionResult("a", "native", "1", (), (), None, None, None, None, 0, "a.log", 63.0).to_json()


def test_what_the_child_is_given_and_what_comes_back(
    engine: Callable[..., NativeReduction],
    rates: tuple[ExposureInput, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CRDS_PATH", "/nowhere")
    monkeypatch.setenv("SECRET", "1")
    reference = ReferenceSources("LS", np.array([1.0, np.nan]), np.array([2.0, 3.0]), *np.full((2, 2), np.nan))
    code = f"""
    products.mkdir()
    (products / "product").write_text(json.dumps(job))
    print(sorted(os.environ))
    end(result={empty_result()!r})
    """
    prior = PointingPrior(A, (1.0, 2.0), 0.0, ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    result = run(engine(code), rates, tmp_path, reference=reference, pointing_priors=(prior,))
    assert result.peak_mib == 321.0 and result.wall_seconds > 0
    folder = tmp_path / "products" / "a"
    job = (folder / "product").read_text()
    assert sorted(p.name for p in folder.iterdir()) == ["a.log", "product"]
    assert job.index(A) < job.index(B) and '"REFCAT": "LS"' in job and '"ra": [1.0]' in job
    printed = (folder / "a.log").read_text()
    assert "SECRET" not in printed and "CRDS_PATH" not in printed and "NUMBA_NUM_THREADS" in printed
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", EngineKilledError, "SIGKILL; out of memory"),
        ("import time; time.sleep(60)", EngineKilledError, "time limit of 1 s"),
        ("print('last words'); sys.exit(3)", EngineFailedError, "last words"),
        ("error('ValueError')", EngineFailedError, "ValueError: said so"),
        ("error('MemoryError')", EngineKilledError, "out of memory"),
        ("error('OSError', errno=28)", StorageError, "no room left"),
        ("error('CalibrationError')", CalibrationError, "said so"),
        ("error('NoUsableExposureError')", NoUsableExposureError, "said so"),
        ("error('ExposureFileError', path='x', reason='is bad')", ExposureFileError, "x: is bad"),
    ],
)
def test_every_end_of_the_child_has_its_cause(
    engine: Callable[..., NativeReduction],
    rates: tuple[ExposureInput, ...],
    tmp_path: Path,
    code: str,
    error: type,
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        run(engine(code, timeout_s=1.0 if "sleep" in code else 60.0), rates, tmp_path)
    assert not (tmp_path / "products" / "a").exists() and list((tmp_path / "work").iterdir()) == []
    assert (tmp_path / "products" / "a.failed.log").exists()


def test_bad_input_is_refused_before_anything_runs(
    engine: Callable[..., NativeReduction], rates: tuple[ExposureInput, ...], tmp_path: Path
) -> None:
    code = "error('ValueError')"
    prior = PointingPrior(A, (1.0, 2.0), 0.0, ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    with pytest.raises(InputError, match="exposures that it has not: x"):
        run(engine(code), rates, tmp_path, pointing_priors=(replace(prior, dataset="x"),))
    with pytest.raises(InputError, match="two pointing priors"):
        run(engine(code), rates, tmp_path, pointing_priors=(prior, prior))
    with pytest.raises(InputError, match="is no number"):
        run(engine(code), rates, tmp_path, pointing_priors=(replace(prior, roll_deg=np.nan),))
    with pytest.raises(NoUsableExposureError):
        run(engine(code), (), tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with pytest.raises(StorageError, match="holds something already"):
        run(engine(code), rates, tmp_path, folder=full)
    with rates[1].path.open("r+b") as stream:
        stream.truncate(20_000_000)
    with pytest.raises(TruncatedFileError):
        run(engine(code), rates, tmp_path)
    assert not (tmp_path / "work").exists()


def test_neither_jwst_nor_grizli_is_imported() -> None:
    code = (
        "import sys, panoramic.reduction.native.child, panoramic.reduction.native.engine\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('jwst', 'grizli', 'dagster', 'sqlalchemy')])"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
