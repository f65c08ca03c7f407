"""The steps of a mosaic by themselves: backgrounds, cosmic rays, detection, photometry, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.ndimage import center_of_mass, maximum_filter
from test_mosaic_exposures import CENTRE, Sky, dithers, grid_for_tests, make_exposure, random_stars

from panoramic.errors import MosaicError
from panoramic.mosaic import cosmic_rays
from panoramic.mosaic.astrometry import AssociationArea, mosaic_astrometry
from panoramic.mosaic.backgrounds import CoarseImage, difference, solve
from panoramic.mosaic.build import build_mosaic
from panoramic.mosaic.cosmic_rays import expected, gradient_without_noise, outliers
from panoramic.mosaic.detection import detect
from panoramic.mosaic.drizzle import units_per_mjy_sr
from panoramic.mosaic.exposures import open_exposure
from panoramic.mosaic.photometry import aperture_photometry, aperture_ratio, magnitude
from panoramic.mosaic.rgb import colour_picture, preview, wavelength
from panoramic.reduction.base import ReferenceSources
from panoramic.survey import Limits, MosaicRules


def flat(
    value: float, origin: tuple[int, int] = (0, 0), size: int = 30, seed: int = 0, weight: float = 1.0
) -> CoarseImage:
    noise = np.random.default_rng(seed).normal(0, 0.01, (size, size))
    return CoarseImage(origin, value + noise, weight)


def test_difference_is_of_the_overlap_and_clipped() -> None:
    one, two = flat(1.0), flat(0.2, (20, 15), seed=1)
    one.values[:, 25:] = np.where(np.arange(30)[:, None] % 5 == 0, 50.0, one.values[:, 25:])
    found = difference(one, two)
    assert found is not None
    assert found[0] == pytest.approx(0.8, abs=0.01)
    assert found[2] <= 150
    assert difference(one, flat(0, (29, 29))) is None
    assert difference(one, flat(0, (100, 0))) is None


@given(arrays(float, 6, elements=st.floats(-1, 1)), arrays(float, 6, elements=st.floats(0.1, 10)))
@settings(max_examples=25, deadline=None)
def test_solution_finds_the_constants_and_keeps_the_mean(truth: np.ndarray, weight: np.ndarray) -> None:
    images = [flat(t, (7 * k, 0), seed=k, weight=w) for k, (t, w) in enumerate(zip(truth, weight, strict=True))]
    solution = solve(images)
    assert solution.n_groups == 1
    np.testing.assert_allclose(solution.offsets, truth - np.average(truth, weights=weight), atol=0.01)
    assert np.average(solution.offsets, weights=weight) == pytest.approx(0, abs=1e-9)


def test_groups_that_do_not_overlap_keep_their_own_mean() -> None:
    images = [
        flat(1.0),
        flat(2.0, (3, 3), seed=1),
        flat(9.0, (500, 0), seed=2),
        flat(7.0, (503, 0), seed=3),
        flat(5.0, (900, 0)),
    ]
    solution = solve(images)
    assert solution.n_groups == 3
    np.testing.assert_allclose(solution.offsets, [-0.5, 0.5, 1.0, -1.0, 0.0], atol=0.01)


def test_one_bad_overlap_does_not_tilt_the_rest() -> None:
    images = [flat(0.1 * k, (3 * k, 0), seed=k) for k in range(7)]
    images[3].values[:, :15] += 4.0  # half of the picture is scattered light
    offsets = solve(images).offsets
    others = [0, 1, 2, 4, 5, 6]
    relative = offsets[others] - 0.1 * np.array(others)
    assert np.ptp(relative) < 0.1


def test_what_is_expected_behind_outliers() -> None:
    stack = np.full((4, 5, 5), 1.0, np.float32)
    variance = np.full((5, 5), 4 * 0.01, np.float32)
    stack[0, 2, 2], stack[1, 0, 0] = 90.0, -40.0
    stack[2, 4, 4] = np.nan
    reference, sigma, count = expected(stack, variance)
    np.testing.assert_allclose(reference, 1.0)
    assert count[4, 4] == 3
    assert (sigma > 0).all()
    two = stack[:2]
    two[0, 4, 0] = two[1, 4, 1] = np.nan
    two[:, 4, 2] = np.nan
    reference, sigma, count = expected(two, variance / 2)
    assert reference[2, 2] == 1.0  # the fainter of two
    assert reference[0, 0] == 1.0  # but not a hole
    assert np.isnan(reference[4, :3]).all()
    assert np.isnan(sigma[4, :3]).all()
    assert list(count[4, :3]) == [1, 1, 0]


def test_noise_makes_no_gradient_and_a_star_does() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (200, 200)).astype(np.float32)
    sigma = np.ones_like(noise)
    plain = gradient_without_noise(noise, np.zeros_like(sigma))
    assert np.median(gradient_without_noise(noise, sigma)) < 0.85 * np.median(plain)
    noise[100, 100] += 100
    assert gradient_without_noise(noise, sigma)[100, 101] > 90


def test_neighbours_of_an_outlier_are_judged_more_strictly() -> None:
    difference, error = np.zeros((20, 20), np.float32), np.ones((20, 20), np.float32)
    difference[5, 5], difference[5, 6], difference[15, 15], difference[9, 9] = 10.0, 4.0, 4.0, np.nan
    there = np.dstack(np.meshgrid(np.arange(20.0), np.arange(20.0)))
    zero = np.zeros((20, 20), np.float32)
    rows, columns = outliers(difference, error, zero, zero, there)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(5, 5), (5, 6)}
    rows, _ = outliers(difference, error, zero + 4, zero, there)
    assert rows.size == 0
    rows, _ = outliers(difference, error, zero, zero, there + 100)
    assert rows.size == 0


def test_rejection_does_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        make_exposure(tmp_path, f"jw1_{k}", random_stars(20, 3, 1), ra=ra, dec=dec, seed=k, cosmic_rays=150)
        for k, (ra, dec) in enumerate(dithers(3, 0.3))
    ]
    flags = []
    for size in (1024, 64):
        monkeypatch.setattr(cosmic_rays, "_BLOCK_PX", size)
        exposures = [open_exposure(one.input, grid_for_tests(), "short") for one in made]
        told: list[str] = []
        cosmic_rays.reject_cosmic_rays(exposures, told.append)
        flags.append(np.stack([e.rejected_window((0, 256, 0, 256)) for e in exposures]))
    assert len(told) > 4
    assert flags[0].sum() > 300
    np.testing.assert_array_equal(*flags)


def test_a_smeared_exposure_is_pointed_out(tmp_path: Path) -> None:
    sky = random_stars(400, 4, 1, (5, 30))
    made = [
        make_exposure(tmp_path, f"jw1_{k}", sky, ra=ra, dec=dec, seed=k, fwhm_px=9.0 if k == 2 else 2.0, noise=0.002)
        for k, (ra, dec) in enumerate(dithers(4, 0.3))
    ]
    exposures = [open_exposure(one.input, grid_for_tests(), "short") for one in made]
    result = cosmic_rays.reject_cosmic_rays(exposures)
    assert max(result.fraction, key=lambda name: result.fraction[name]) == "jw1_2"
    assert any("jw1_2" in note for note in result.notes)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[Path, Path]], Sky]:
    """Mosaics of three filters of one field, long and short wave."""
    folder = tmp_path_factory.mktemp("field")
    sky = random_stars(40, 4, 8, (0.3, 20))
    out = {}
    for name, channel, scale, shape in (
        ("F115W", "short", 31.0, (300, 300)), ("F200W", "short", 31.0, (300, 300)), ("F444W", "long", 63.0, (150, 150)),
    ):  # fmt: skip
        inputs = [
            make_exposure(
                folder,
                f"{name}_{k}",
                sky,
                ra=ra,
                dec=dec,
                seed=k,
                shape=shape,
                scale_mas=scale,
                filter_name=name,
                noise=0.005,
            ).input
            for k, (ra, dec) in enumerate(dithers(3, 0.3))
        ]
        build_mosaic(inputs, grid_for_tests(128), channel, folder, name.lower(), MosaicRules(), {})  # type: ignore[arg-type]
        out[name] = (folder / f"{name.lower()}_sci.fits", folder / f"{name.lower()}_wht.fits")
    return out, sky


def test_detection_finds_the_stars_once(field: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    from panoramic.mosaic import detection

    paths, sky = field
    whole = detect(*paths["F115W"])
    assert list(whole["id"]) == list(range(1, len(whole) + 1))
    assert (np.diff(whole["flux"]) <= 0).all()
    cos = np.cos(np.radians(CENTRE[1]))
    distance = np.hypot((sky.ra[:, None] - whole["ra"]) * cos, sky.dec[:, None] - whole["dec"]) * 3.6e6
    bright = sky.flux > 1
    inside = np.hypot((sky.ra - CENTRE[0]) * cos, sky.dec - CENTRE[1]) * 3600 < 3.5
    apart = (
        np.array(
            [np.sort(np.hypot((sky.ra - r) * cos, sky.dec - d))[1] * 3600 for r, d in zip(sky.ra, sky.dec, strict=True)]
        )
        > 0.3
    )
    assert (distance.min(axis=1)[bright & inside & apart] < 30).all()
    assert len(whole) < 1.6 * len(sky.ra)
    monkeypatch.setattr(detection, "_CORE_PX", 200)
    windows = detect(*paths["F115W"])
    strong = whole[whole["snr"] > 30]
    again = np.hypot(strong["x"][:, None] - windows["x"], strong["y"][:, None] - windows["y"])
    assert ((again < 0.3).sum(axis=1) == 1).mean() > 0.95


def test_detection_of_nothing(tmp_path: Path) -> None:
    header = fits.Header({"CDELT1": -20 / 3.6e6, "CDELT2": 20 / 3.6e6, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    for name in ("sci", "wht"):
        fits.PrimaryHDU(np.zeros((300, 300), np.float32), header).writeto(tmp_path / f"{name}.fits")
    table = detect(tmp_path / "sci.fits", tmp_path / "wht.fits")
    assert len(table) == 0
    assert {"id", "ra", "dec", "x", "y", "flux", "flux_error", "mag", "flux_radius", "flags", "snr"} <= set(
        table.colnames
    )


def test_photometry_outside_and_across_the_edge_is_not_covered(field: tuple) -> None:
    paths, _ = field
    ra, dec = [CENTRE[0], CENTRE[0] + 0.5, np.nan], [CENTRE[1], CENTRE[1], 0.0]
    table = aperture_photometry(*paths["F444W"], ra, dec, [0.2], annulus_arcsec=(0.4, 0.6))
    assert list(table["covered"]) == [True, False, False]
    assert np.isfinite(table["flux_0.20"][0])
    assert np.isnan(table["flux_0.20"][1:]).all()
    with pytest.raises(MosaicError):
        aperture_photometry(*paths["F444W"], ra, dec, [])
    assert len(aperture_photometry(*paths["F444W"], [], [], [0.2])) == 0


def test_annulus_takes_the_local_sky_away(tmp_path: Path) -> None:
    header = fits.Header({
        "CDELT1": -20 / 3.6e6, "CDELT2": 20 / 3.6e6, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
        "CRVAL1": 10.0, "CRVAL2": 0.0, "CRPIX1": 100.5, "CRPIX2": 100.5,
    })  # fmt: skip
    image = np.full((200, 200), 3.0, np.float32)
    image[99:101, 99:101] += 100
    fits.PrimaryHDU(image, header).writeto(tmp_path / "s.fits")
    fits.PrimaryHDU(np.full_like(image, 4.0), header).writeto(tmp_path / "w.fits")
    table = aperture_photometry(tmp_path / "s.fits", tmp_path / "w.fits", [10.0], [0.0], [0.2], (0.5, 1.0))
    assert table["flux_0.20"][0] == pytest.approx(4.0)
    assert table["error_0.20"][0] == pytest.approx(0.01 * np.sqrt(np.pi * 100 / 4), rel=0.01)
    assert table["sky"][0] == pytest.approx(0.03 / 0.02**2)


def test_magnitudes_and_units() -> None:
    assert magnitude(np.array([1.0]))[0] == pytest.approx(23.9)
    assert np.isnan(magnitude(np.array([-1.0]))[0])
    assert units_per_mjy_sr(20.0) == pytest.approx(0.94, rel=0.001)
    assert all(np.isnan(aperture_ratio(Table({"flux_0.10": [np.nan], "flux_0.40": [1.0]}), 0.1, 0.4)))


def test_pictures_show_the_field(field: tuple, tmp_path: Path) -> None:
    paths, _ = field
    for names in (("F444W",), ("F115W", "F444W"), ("F115W", "F200W", "F444W")):
        out = colour_picture({name: paths[name] for name in names}, tmp_path / f"{len(names)}.png", largest_px=300)
        pixels = np.asarray(Image.open(out).convert("RGB")).astype(float)
        assert 100 < max(pixels.shape[:2]) <= 300
        assert out.stat().st_size < 3_000_000
        assert (pixels.max(axis=2) > 200).mean() > 1e-3  # stars
        assert (pixels.max(axis=2) < 90).mean() > 0.8  # on a dark sky
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.png", "2.png", "3.png"]
    small = preview(*paths["F115W"], tmp_path / "small.png", largest_bytes=5_000)
    assert small.stat().st_size <= 5_000


def test_stars_of_all_filters_fall_together(field: tuple, tmp_path: Path) -> None:
    """Short-wave pixels are binned onto the long-wave grid: red and blue of a star have one centre."""
    paths, _ = field
    out = colour_picture({name: paths[name] for name in ("F115W", "F444W")}, tmp_path / "two.png")
    pixels = np.asarray(Image.open(out)).astype(float) - 60
    red, blue = np.clip(pixels[..., 0], 0, None), np.clip(pixels[..., 2], 0, None)
    offsets = []
    for y, x in np.argwhere((blue == maximum_filter(blue, 15)) & (blue > 100)):
        part = np.s_[max(0, y - 5) : y + 6, max(0, x - 5) : x + 6]
        offsets.append(np.subtract(center_of_mass(red[part]), center_of_mass(blue[part])))
    assert len(offsets) > 10
    assert np.abs(np.median(offsets, axis=0)).max() < 0.25


def test_pictures_of_nothing_or_of_unlike_fields_are_refused(field: tuple, tmp_path: Path) -> None:
    paths, _ = field
    with pytest.raises(MosaicError):
        colour_picture({}, tmp_path / "x.png")
    other = [tmp_path / "s.fits", tmp_path / "w.fits"]
    for path, source in zip(other, paths["F444W"], strict=True):
        with fits.open(source) as hdus:
            hdus[0].header["CRVAL1"] += 1
            hdus.writeto(path)
    with pytest.raises(MosaicError, match="one field"):
        colour_picture({"F444W": (other[0], other[1]), "F115W": paths["F115W"]}, tmp_path / "x.png")


def test_wavelengths() -> None:
    assert wavelength("F115W") == wavelength("f115w-clear") == 1.15
    assert wavelength("clear") == np.inf


def test_a_displaced_association_is_caught_in_the_pixels(tmp_path: Path) -> None:
    """From exposures whose WCS is 0.3 arcsec wrong to the failed measurement."""
    rng = np.random.default_rng(2)
    cos = np.cos(np.radians(CENTRE[1]))
    k = 160
    sky = Sky(
        CENTRE[0] + rng.uniform(-11, 11, k) / 3600 / cos,
        CENTRE[1] + rng.uniform(-6, 6, k) / 3600,
        rng.uniform(1, 10, k),
    )
    moved = Sky(sky.ra + 0.3 / 3600 / cos, sky.dec, sky.flux)
    inputs, areas = [], []
    for name, east, truth in (("good", -5.5, sky), ("moved", 5.5, moved)):
        for i, (ra, dec) in enumerate(dithers(2, 0.3)):
            made = make_exposure(
                tmp_path, f"{name}_{i}", truth, ra=ra + east / 3600 / cos, dec=dec, seed=i, shape=(300, 300),
                roll_deg=0.0, association=name,
            )  # fmt: skip
            inputs.append(made.input)
        areas.append(AssociationArea(name, "short", made.wcs.calc_footprint(axes=(300, 300))))
    build_mosaic(inputs, grid_for_tests(), "short", tmp_path, "x", MosaicRules(), {})
    catalog = detect(tmp_path / "x_sci.fits", tmp_path / "x_wht.fits")
    error = np.full(k, 4.0)
    own = ReferenceSources("own", sky.ra, sky.dec, np.full(k, 22.0), error, "own")
    found = {
        one.name: one for one in mosaic_astrometry(catalog, None, own, areas, Limits()) if one.kind == "own_association"
    }
    assert found["good"].passed is True
    assert abs(found["good"].dra) < 1
    assert found["moved"].passed is False
    assert found["moved"].dra == pytest.approx(300, abs=3)
    assert found["moved"].ddec == pytest.approx(0, abs=3)
