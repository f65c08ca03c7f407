"""Stripes measured on images whose stripes are known: the simulator's, and some that it does not have."""

from __future__ import annotations

import numpy as np
import pytest

from panoramic.errors import InputError
from panoramic.reduction.native.stripes import Stripes, measure_stripes
from panoramic.simulate.detector import AMPLIFIERS, NPIX, stripes

WIDTH = NPIX // AMPLIFIERS


def random_mask(fraction: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((NPIX, NPIX)) < fraction


def terms(image: np.ndarray) -> np.ndarray:
    """Row and amplifier terms of a noise-free image, (amplifiers, rows)."""
    return image[:, ::WIDTH].T.astype(float)


def left(found: Stripes, truth: np.ndarray) -> float:
    rest = truth - found.row - found.amplifier
    return float(np.std(rest - rest.mean(axis=1, keepdims=True)))


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((NPIX, NPIX), dtype=np.float32)


@pytest.mark.parametrize(
    ("rms", "pixel", "most_left"),
    [(3.6, 5.0, 0.45), (28.0, 30.0, 2.9), (28.0, 60.0, 4.0)],
    ids=["long", "short", "noisy"],
)
def test_simulated_stripes_are_taken_away(noise: np.ndarray, rms: float, pixel: float, most_left: float) -> None:
    truth = stripes(np.random.default_rng(8), rms, 0.35)
    image, masked = truth + np.float32(pixel) * noise, random_mask(0.1)
    found = measure_stripes(image, masked)
    assert left(found, terms(truth)) < most_left
    # without the limit on slow ones, what is left is what was predicted, and less than the rows' own noise allows
    every = measure_stripes(image, masked, high_pass_rows=np.inf)
    own_noise = pixel / np.sqrt(WIDTH * 0.9)
    assert left(every, terms(truth)) == pytest.approx(every.error, rel=0.15)
    assert every.error < 1.15 * own_noise


def test_rows_alike_in_all_amplifiers_gain_from_all_of_them(noise: np.ndarray) -> None:
    truth = stripes(np.random.default_rng(9), 5.0, 0.0)
    found = measure_stripes(truth + 30 * noise, random_mask(0.1), high_pass_rows=np.inf)
    assert left(found, terms(truth)) < 0.75 * 30 / np.sqrt(WIDTH * 0.9)
    assert found.amplifier.std() < 0.3 * found.row.std()


def test_nothing_is_taken_where_there_are_no_stripes(noise: np.ndarray) -> None:
    found = measure_stripes(30 * noise, random_mask(0.1))
    assert found.rms < 0.25 * 30 / np.sqrt(WIDTH)
    assert found.parity.std() < 0.25 * 30 / np.sqrt(WIDTH)


def test_odd_and_even_columns_have_terms_of_their_own(noise: np.ndarray) -> None:
    rng = np.random.default_rng(4)
    common, parity = stripes(rng, 10.0, 0.35), stripes(rng, 6.0, 0.5)
    offset = np.repeat(np.array([3.0, -2.0, 0.0, 5.0], np.float32), WIDTH)
    sign = np.where(np.arange(NPIX) % 2 == 0, 1, -1).astype(np.float32)
    truth = common + sign * (parity + offset)
    image = truth + 20 * noise
    found = measure_stripes(image, random_mask(0.1), high_pass_rows=np.inf)
    rest = terms(parity + offset) - found.parity
    assert rest.std() < 1.1
    np.testing.assert_allclose(rest.mean(axis=1), 0, atol=0.3)
    assert (truth - found.image()).std() < 1.6
    # switched off, they stay
    without = measure_stripes(image, random_mask(0.1), odd_even=False)
    assert not without.parity.any()
    assert (truth - without.image()).std() > 5


def test_sources_and_bad_values_do_not_pull(noise: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    truth = stripes(rng, 28.0, 0.35)
    image, masked = truth + 30 * noise, np.zeros((NPIX, NPIX), bool)
    # a tenth of the light is not masked, some values are no numbers
    rows, columns = rng.integers(0, NPIX, (2, 200_000))
    image[rows, columns] += rng.exponential(300, 200_000).astype(np.float32)
    image[rng.integers(0, NPIX, 500), rng.integers(0, NPIX, 500)] = np.nan
    image[rng.integers(0, NPIX, 50), rng.integers(0, NPIX, 50)] = np.inf
    found = measure_stripes(image, masked, high_pass_rows=np.inf)
    assert left(found, terms(truth)) < 1.5 * 30 / np.sqrt(WIDTH)


def test_masked_regions_are_bridged(noise: np.ndarray) -> None:
    truth = stripes(np.random.default_rng(6), 28.0, 0.2)
    masked = random_mask(0.05)
    masked[400:1300, 300:1500] = True  # two whole amplifiers, parts of two others
    masked[1700:1720] = True  # and some rows as a whole
    assert masked.mean() > 0.3
    found = measure_stripes(truth + 30 * noise, masked)
    rest = np.abs(terms(truth) - found.row - found.amplifier)
    seen = np.ones(NPIX, bool)
    seen[400:1300] = seen[1650:1770] = False
    assert rest[:, seen].mean() < 2.6
    # where an amplifier sees nothing, what it shares with the others is known all the same
    assert rest[1, 400:1300].mean() < 0.75 * np.abs(terms(truth)[1, 400:1300]).mean()
    assert np.isfinite(found.row).all()
    assert np.isfinite(found.amplifier).all()


def test_what_is_higher_than_the_limit_stays(noise: np.ndarray) -> None:
    y = np.arange(NPIX, dtype=np.float32)[:, None]
    bump = 20 * np.exp(-0.5 * ((y - 1000) / 300) ** 2) * np.ones(NPIX, np.float32)
    found = measure_stripes(bump + 30 * noise, random_mask(0.1), high_pass_rows=200)
    assert np.abs(found.row[900:1100]).mean() < 0.6


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_images_without_information(value: float) -> None:
    image = np.full((NPIX, NPIX), value, np.float32)
    for masked in (np.ones(image.shape, bool), np.zeros(image.shape, bool)):
        found = measure_stripes(image, masked)
        assert not found.image().any()
    found = measure_stripes(np.full(image.shape, np.nan, np.float32), np.zeros(image.shape, bool))
    assert not found.image().any()
    assert found.error == 0


def test_scale_and_repetition(noise: np.ndarray) -> None:
    image, masked = stripes(np.random.default_rng(7), 28.0, 0.35) + 30 * noise, random_mask(0.1)
    one, two = measure_stripes(image, masked), measure_stripes(image.copy(), masked.copy())
    assert one.image().tobytes() == two.image().tobytes()
    small = measure_stripes(image * np.float32(2.0**-20), masked)
    np.testing.assert_allclose(small.image() * 2.0**20, one.image(), atol=1e-3 * 28)


def test_image_is_the_sum_of_its_terms() -> None:
    rng = np.random.default_rng(2)
    row, amplifier, parity = (rng.normal(size=n).astype(np.float32) for n in (6, (2, 6), (2, 6)))
    image = Stripes(row, amplifier, parity, 8, 0.0).image()
    assert image.dtype == np.float32
    assert image[3, 2] == pytest.approx(row[3] + amplifier[0, 3] + parity[0, 3], rel=1e-6)
    assert image[5, 7] == pytest.approx(row[5] + amplifier[1, 5] - parity[1, 5], rel=1e-6)


def test_wrong_input_is_refused() -> None:
    image, masked = np.zeros((64, 64), np.float32), np.zeros((64, 64), bool)
    with pytest.raises(InputError, match="mask's shape"):
        measure_stripes(image, masked[:32])
    with pytest.raises(InputError, match="amplifiers"):
        measure_stripes(image, masked, amplifiers=5)
    with pytest.raises(InputError, match="high_pass_rows"):
        measure_stripes(image, masked, high_pass_rows=0)
