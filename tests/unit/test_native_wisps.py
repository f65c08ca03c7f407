"""Wisps of known brightness in realistic images, and drawn regions of scattered light."""

from __future__ import annotations

import numpy as np
import pytest

from panoramic.errors import InputError
from panoramic.reduction.native.claws import ScatteredLight, flag_regions, parse_regions, polygon_mask
from panoramic.reduction.native.wisps import fit_wisp, fit_wisp_among_sources
from panoramic.simulate.detector import NPIX, stripes, wisp_template

NOISE = 0.02


def sky_with_sources(seed: int, sources: int = 500) -> np.ndarray:
    """Sloped sky, stripes, noise and round sources of all brightnesses, MJy/sr."""
    rng = np.random.default_rng(seed)
    out = NOISE * rng.standard_normal((NPIX, NPIX), dtype=np.float32)
    out += stripes(rng, 0.028, 0.35)
    out += np.float32(0.25) + np.linspace(-0.004, 0.004, NPIX, dtype=np.float32)
    j, i = np.mgrid[-20:21, -20:21]
    for x, y, peak, width in zip(
        rng.integers(20, NPIX - 21, sources),
        rng.integers(20, NPIX - 21, sources),
        10 ** rng.uniform(-2.5, 1.5, sources),
        rng.uniform(1.2, 5, sources),
        strict=True,
    ):
        out[y - 20 : y + 21, x - 20 : x + 21] += (peak * np.exp(-0.5 * (i**2 + j**2) / width**2)).astype(np.float32)
    return out


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return sky_with_sources(1)


@pytest.fixture(scope="module")
def error() -> np.ndarray:
    return np.full((NPIX, NPIX), NOISE, np.float32)


@pytest.fixture(scope="module")
def bad() -> np.ndarray:
    return np.random.default_rng(2).random((NPIX, NPIX)) < 0.01


@pytest.mark.parametrize(
    ("detector", "amplitude"), [("nrcb4", 0.035), ("nrca3", 0.035), ("nrcb4", 0.008), ("nrca4", 0.1)]
)
def test_amplitude_is_found(
    plain: np.ndarray, error: np.ndarray, bad: np.ndarray, detector: str, amplitude: float
) -> None:
    template = wisp_template(detector)
    fit = fit_wisp_among_sources(plain + np.float32(amplitude) * template, error, bad, template)
    assert fit.used, fit.reason
    assert fit.amplitude == pytest.approx(amplitude, abs=max(4 * fit.error, 0.0))
    assert fit.error < 0.0008
    assert fit.improvement > 25


def test_the_error_is_the_scatter() -> None:
    template = wisp_template("nrcb3")
    pulls = []
    for seed in range(8):
        image = sky_with_sources(100 + seed, 200)[:700]
        fit = fit_wisp(
            image + np.float32(0.02) * template[:700],
            np.full(image.shape, 3 * NOISE, np.float32),  # a wrong error does not matter
            image > 0.25 + 6 * NOISE,
            template[:700],
        )
        pulls.append((fit.amplitude - 0.02) / fit.error)
    assert 0.4 < np.sqrt(np.mean(np.square(pulls))) < 2.0, pulls


def test_no_wisp_or_another_detectors_is_refused(plain: np.ndarray, error: np.ndarray, bad: np.ndarray) -> None:
    template = wisp_template("nrcb4")
    none = fit_wisp_among_sources(plain, error, bad, template)
    assert not none.used
    assert "sigma" in none.reason or "negative" in none.reason
    assert abs(none.amplitude) < 5 * none.error
    negative = fit_wisp_among_sources(plain - np.float32(0.03) * template, error, bad, template)
    assert not negative.used
    assert "negative" in negative.reason
    with_wisp = plain + np.float32(0.035) * template
    for other in (wisp_template("nrcb3"), np.roll(template, 300, axis=0)):
        wrong = fit_wisp_among_sources(with_wisp, error, bad, other)
        assert not wrong.used, wrong


def test_a_shape_that_is_not_the_images_is_refused(error: np.ndarray) -> None:
    rng = np.random.default_rng(6)
    y, x = np.mgrid[:NPIX, :NPIX].astype(np.float32)
    near = np.exp(-0.5 * ((x - 700) ** 2 + (y - 700) ** 2) / 90**2)
    image = 0.04 * near * (1 + np.sin(x / 12) * np.sin(y / 12)) + NOISE * rng.standard_normal(
        (NPIX, NPIX), dtype=np.float32
    )
    fit = fit_wisp(image, error, np.zeros(image.shape, bool), near)
    assert fit.amplitude > 5 * fit.error
    assert not fit.used
    assert "shape" in fit.reason


def test_cosmic_rays_and_missing_values_do_not_pull(plain: np.ndarray, error: np.ndarray, bad: np.ndarray) -> None:
    template = wisp_template("nrcb4").copy()
    image = plain + np.float32(0.035) * template
    rng = np.random.default_rng(5)
    image[rng.integers(0, NPIX, 20_000), rng.integers(0, NPIX, 20_000)] += 5.0
    image[rng.integers(0, NPIX, 500), rng.integers(0, NPIX, 500)] = np.nan
    template[template == 0] = np.nan
    fit = fit_wisp_among_sources(image, error, bad, template)
    assert fit.used
    assert fit.amplitude == pytest.approx(0.035, abs=max(0.001, 4 * fit.error))
    again = fit_wisp_among_sources(image.copy(), error, bad, template.copy())
    assert again == fit


def test_nothing_to_fit(plain: np.ndarray, error: np.ndarray, bad: np.ndarray) -> None:
    template = wisp_template("nrcb4")
    assert fit_wisp(plain, error, bad, np.zeros_like(plain)).reason == "the template is empty"
    for masked in (np.ones_like(bad), template > 1e-4):
        fit = fit_wisp(plain, error, masked, template)
        assert not fit.used
        assert fit.reason
    assert not fit_wisp_among_sources(plain, error, np.ones_like(bad), template).used
    assert not fit_wisp(plain, np.zeros_like(error), bad, template).used
    # a flat template is the sky's level, which is fitted away
    assert not fit_wisp(plain, error, bad, np.ones_like(plain)).used
    with pytest.raises(InputError, match="one shape"):
        fit_wisp(plain, error, bad, template[:100])


# --- claws -----------------------------------------------------------------------------------


def test_polygons_cover_the_pixels_whose_centres_are_inside() -> None:
    square = polygon_mask(np.array([1.5, 4.5, 4.5, 1.5]), np.array([2.5, 2.5, 5.5, 5.5]), (8, 8))
    truth = np.zeros((8, 8), bool)
    truth[3:6, 2:5] = True
    np.testing.assert_array_equal(square, truth)
    # a corner on a row's line counts once; the part outside the detector is no trouble
    triangle = polygon_mask(np.array([-5.0, 20.0, 3.0]), np.array([3.0, 3.0, 6.0]), (8, 8))
    assert triangle[3].all()
    assert not triangle[:3].any()
    assert not triangle[6:].any()


def test_polygons_against_winding_of_random_shapes() -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(5, 30, 9)
        x, y = 32 + radius * np.cos(angle), 30 + radius * np.sin(angle)
        mask = polygon_mask(x, y, (64, 64))
        j, i = np.mgrid[:64, :64]
        turn = np.zeros((64, 64))
        for k in range(9):
            a = np.arctan2(y[k] - j, x[k] - i)
            b = np.arctan2(y[(k + 1) % 9] - j, x[(k + 1) % 9] - i)
            turn += (b - a + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_array_equal(mask, np.round(turn / (2 * np.pi)).astype(int) % 2 == 1)


def test_regions_are_flagged_where_they_match() -> None:
    regions = parse_regions(
        [
            {"match": "jw0*_nrcb1", "vertices": [[10, 10], [20, 10], [20, 20], [10, 20]], "note": "claw"},
            {"match": "*", "frame": "sky", "vertices": [[150.0, 2.0], [150.1, 2.0], [150.1, 2.1]]},
        ]
    )
    assert regions[0].frame == "pixel"

    def pixels(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (ra - 150) * 500, (dec - 2) * 500

    one = flag_regions(regions, "jw02514162001_02201_00001_nrcb1", (64, 64), pixels)
    two = flag_regions(regions, "jw02514162001_02201_00001_nrcb2", (64, 64), pixels)
    assert one[15, 15]
    assert not two[15, 12]
    assert two[10, 40]
    assert not two[40, 10]
    behind = flag_regions(regions[1:], "x", (64, 64), lambda ra, dec: (ra * np.nan, dec * np.nan))
    assert not behind.any()
    with pytest.raises(InputError, match="no geometry"):
        flag_regions(regions, "jw02514162001_02201_00001_nrcb1", (64, 64))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"vertices": [[0, 0], [1, 0], [1, 1]]}, "lacks match"),
        ({"match": "*", "vertices": [[0, 0], [1, 0], [1, 1]], "shape": "box"}, "does not know shape"),
        ({"match": "*", "vertices": [[0, 0], [1, 0]]}, "at least three corners"),
        ({"match": "*", "vertices": "0 0 1 0 1 1"}, "pairs of numbers"),
        ({"match": "*", "vertices": [[0, 0], [1, 0], [1, float("nan")]]}, "finite"),
        ({"match": "*", "frame": "fk4", "vertices": [[0, 0], [1, 0], [1, 1]]}, "frame"),
        ({"match": "*", "frame": "sky", "vertices": [[0, 0], [1, 95], [1, 1]]}, "declination"),
        ({"match": "", "vertices": [[0, 0], [1, 0], [1, 1]]}, "names no exposures"),
    ],
)
def test_wrong_regions_are_refused(entry: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_regions([entry])


def test_a_region_is_checked_also_when_made_by_hand() -> None:
    with pytest.raises(InputError, match="three corners"):
        ScatteredLight("*", ((0.0, 0.0), (1.0, 1.0)))
