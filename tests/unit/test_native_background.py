"""The sky and what must not go into it, by injection into images whose parts are known."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from panoramic.errors import InputError
from panoramic.reduction.native.background import (
    Background,
    Flattened,
    flatten,
    measure_background,
)
from panoramic.reduction.native.sky_masks import find_sources, sources_in_stripes
from panoramic.simulate.detector import NPIX, smooth_noise, stripes

NOISE = 0.01
SKY = 0.25
SCALE = 0.063  # arcsec per pixel


@dataclass
class Scene:
    """An image in MJy/sr and its parts."""

    image: np.ndarray
    sky: np.ndarray
    stripes: np.ndarray
    flat: np.ndarray
    bad: np.ndarray


def radius(x: float, y: float, ratio: float = 1.0, angle: float = 0.6) -> np.ndarray:
    j, i = np.mgrid[:NPIX, :NPIX].astype(np.float32)
    u = (i - x) * np.float32(np.cos(angle)) + (j - y) * np.float32(np.sin(angle))
    v = ((j - y) * np.float32(np.cos(angle)) - (i - x) * np.float32(np.sin(angle))) / np.float32(ratio)
    return np.hypot(u, v)


def galaxy(
    x: float, y: float, half_light_px: float, brightness: float, n: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A galaxy of a mean brightness inside its half-light radius, and that radius's multiples."""
    r = radius(x, y, 0.7) / np.float32(half_light_px)
    out = np.exp(-np.float32({1.0: 1.678, 4.0: 7.669}[n]) * r ** np.float32(1 / n))
    return out * np.float32(brightness / out[r < 1].mean()), r


def bright_star(x: float, y: float, peak: float) -> np.ndarray:
    """A halo, six spikes and two fainter ones."""
    j, i = np.mgrid[:NPIX, :NPIX].astype(np.float32)
    out = peak / (1 + (np.hypot(i - x, j - y) / 3) ** 3)
    for angle in np.radians([0, 30, 90, 150, 180, 210, 270, 330]):
        u = (i - x) * np.cos(angle) + (j - y) * np.sin(angle)
        v = (j - y) * np.cos(angle) - (i - x) * np.sin(angle)
        share = 0.05 if np.isclose(np.sin(angle), 0) else 0.15
        out += (u > 0) * share * peak / (1 + (u / 8) ** 2) * np.exp(-0.5 * (v / 2) ** 2)
    return out.astype(np.float32)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Flat with structure, slightly sloped sky, stripes, 600 sources, 1 % bad pixels."""
    rng = np.random.default_rng(4)
    flat = 1 + 0.02 * smooth_noise(rng, 4)
    flat += 0.006 * rng.standard_normal((NPIX, NPIX), dtype=np.float32)
    ramp = np.linspace(-0.5, 0.5, NPIX, dtype=np.float32)
    sky = np.float32(SKY) * (1 + 0.012 * ramp + np.float32(-0.01) * ramp[:, None])
    light = sky.copy()
    j, i = np.mgrid[-25:26, -25:26]
    for x, y, peak, width in zip(
        rng.integers(25, NPIX - 26, 600),
        rng.integers(25, NPIX - 26, 600),
        10 ** rng.uniform(-2.5, 1, 600),
        rng.uniform(1.0, 5, 600),
        strict=True,
    ):
        light[y - 25 : y + 26, x - 25 : x + 26] += peak * np.exp(-0.5 * (i**2 + j**2) / width**2)
    rows = stripes(rng, 0.008, 0.35)
    detector = light * flat + rows + NOISE * rng.standard_normal((NPIX, NPIX), dtype=np.float32)
    bad = rng.random((NPIX, NPIX)) < 0.01
    bad[:4] = bad[-4:] = bad[:, :4] = bad[:, -4:] = True
    image = (detector / flat).astype(np.float32)
    image[bad] = np.nan
    return Scene(image, sky, rows, flat.astype(np.float32), bad)


def with_light(scene: Scene, light: np.ndarray) -> np.ndarray:
    return scene.image + light.astype(np.float32)


@pytest.fixture(scope="module")
def before(scene: Scene) -> Flattened:
    """The scene itself without stripes and sky."""
    return flatten(scene.image, scene.flat, scene.bad)


def kept(scene: Scene, before: Flattened, light: np.ndarray, where: np.ndarray) -> float:
    """Part of some injected light that is still there when stripes and sky have been taken away."""
    after = flatten(with_light(scene, light), scene.flat, scene.bad)
    where = where & ~scene.bad
    return float((after.image - before.image)[where].sum(dtype=float) / light[where].sum(dtype=float))


def test_sky_and_stripes_are_found(scene: Scene, before: Flattened) -> None:
    tracemalloc.start()
    found = flatten(scene.image.copy(), scene.flat, scene.bad)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the result's 20 MB and nothing near the 150 MB that a step may take
    assert peak < 110e6
    error = found.background.image() - scene.sky
    assert abs(error.mean()) < 0.03 * NOISE
    assert error.std() < 0.05 * NOISE
    width = NPIX // 4
    truth = scene.stripes[:, ::width].T
    left = truth - found.stripes.row - found.stripes.amplifier
    assert truth.std() > 0.6 * NOISE
    assert left.std() < 0.12 * NOISE
    # what is left in the image, slow stripes that went into the sky included
    rest = ((scene.stripes - found.stripes.image()) / scene.flat + scene.sky - found.background.image()).reshape(
        NPIX, 4, width
    )
    assert rest.mean(axis=2).std() < 0.1 * NOISE
    assert 0.03 < found.sources.mean() < 0.25
    assert before.image.tobytes() == found.image.tobytes()
    assert before.background.nodes.tobytes() == found.background.nodes.tobytes()


def test_what_was_subtracted_can_be_put_back(scene: Scene, before: Flattened) -> None:
    found = before
    back = found.image + found.background.image() + found.stripes.image() / scene.flat
    good = ~scene.bad
    np.testing.assert_allclose(back[good], scene.image[good], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(("brightness", "n"), [(0.5, 1.0), (0.08, 1.0), (0.2, 4.0)])
def test_a_big_galaxy_keeps_its_light(scene: Scene, before: Flattened, brightness: float, n: float) -> None:
    light, r = galaxy(1150, 900, 4 / SCALE, brightness, n)
    assert kept(scene, before, light, r < 1) == pytest.approx(1, abs=0.01)
    assert kept(scene, before, light, r < 2) == pytest.approx(1, abs=0.02)


def test_a_galaxy_of_twice_that_size_on_a_corner(scene: Scene, before: Flattened) -> None:
    light, r = galaxy(60, 2000, 8 / SCALE, 0.15)
    assert kept(scene, before, light, r < 1) == pytest.approx(1, abs=0.015)


def test_a_plain_mesh_would_not_keep_it(scene: Scene) -> None:
    """The tests above can fail: without the mask of extended objects they do."""
    light, r = galaxy(1150, 900, 8 / SCALE, 0.15)
    image = with_light(scene, light)
    nothing = np.zeros(image.shape, bool)
    took = measure_background(image, scene.bad, sources=nothing).image()
    took = took - measure_background(scene.image, scene.bad, sources=nothing).image()
    assert took[r < 1].sum() > 0.1 * light[r < 1].sum()


@pytest.mark.parametrize(("peak", "most"), [(10.0, 0.06), (100.0, 0.15), (1000.0, 0.25)])
def test_spikes_and_halo_of_a_bright_star_stay_out_of_the_sky(
    scene: Scene, before: Flattened, peak: float, most: float
) -> None:
    light = bright_star(1000, 1100, peak)
    found = flatten(with_light(scene, light), scene.flat, scene.bad)
    change = np.abs(found.background.image() - before.background.image())
    assert change.max() < most * NOISE
    assert change.mean() < 0.03 * NOISE
    assert np.abs(found.stripes.row - before.stripes.row).max() < 0.7 * NOISE
    bright = (light > NOISE) & (radius(1000, 1100) > 30) & ~scene.bad
    assert found.sources[bright].mean() > 0.98


def test_slopes_and_curves_of_the_sky_are_followed(scene: Scene, before: Flattened) -> None:
    j, i = np.mgrid[-0.5 : 0.5 : NPIX * 1j, -0.5 : 0.5 : NPIX * 1j].astype(np.float32)
    more = np.float32(0.05 * SKY) * (i - 0.7 * j + 2 * i * i - j * i)
    found = flatten(with_light(scene, more), scene.flat, scene.bad)
    error = found.background.image() - before.background.image() - more
    assert error.std() < 0.04 * NOISE
    assert np.abs(found.sources.mean() - before.sources.mean()) < 0.02


def test_a_third_of_the_image_masked(scene: Scene, before: Flattened) -> None:
    masked = scene.bad.copy()
    masked[300:1000, 200:1500] = True
    masked[1800:] = True
    found = flatten(scene.image, scene.flat, masked)
    error = found.background.image() - scene.sky
    assert masked.mean() > 0.3
    assert error[~masked].std() < 0.06 * NOISE
    assert np.abs(error).max() < 0.6 * NOISE
    assert found.background.measured < before.background.measured


@pytest.mark.parametrize("noise", [1e-6, 1.0, 1e4])
def test_noise_of_any_level(noise: float) -> None:
    image = np.float32(noise) * np.random.default_rng(1).standard_normal((NPIX, NPIX), dtype=np.float32)
    found = measure_background(image, np.zeros(image.shape, bool))
    assert np.abs(found.nodes).max() < 0.1 * noise
    assert find_sources(image, np.zeros(image.shape, bool)).mean() < 0.02


def test_images_without_information() -> None:
    for value in (0.0, 3.0, np.nan):
        image = np.full((NPIX, NPIX), value, np.float32)
        for bad in (np.zeros(image.shape, bool), np.ones(image.shape, bool)):
            found = flatten(image, np.ones_like(image), bad)
            expected = 0.0 if bad.all() or np.isnan(value) else value
            np.testing.assert_allclose(found.background.nodes, expected, atol=1e-6)
            assert found.background.measured == (0.0 if bad.all() or np.isnan(value) else 1.0)
            assert not found.sources.any()
            assert not found.stripes.image().any()


def test_a_single_usable_corner(scene: Scene) -> None:
    bad = np.ones_like(scene.bad)
    bad[100:140, 100:140] = False
    found = flatten(scene.image, scene.flat, bad)
    assert found.background.level == pytest.approx(SKY, abs=2 * NOISE)
    assert np.isfinite(found.background.image()).all()


def test_sources_are_found_in_strong_stripes(scene: Scene) -> None:
    strong = stripes(np.random.default_rng(9), 0.05, 0.35)
    clean = find_sources(scene.image - scene.stripes / scene.flat, scene.bad)
    found = sources_in_stripes(scene.image + strong / scene.flat, scene.bad)
    assert (found & clean).sum() > 0.75 * clean.sum()
    # no row of an amplifier is taken for a source
    assert found.reshape(NPIX, 4, NPIX // 4).mean(axis=2).max() < 0.9


def test_small_images_and_other_shapes() -> None:
    image = np.float32(0.1) + np.float32(0.01) * np.random.default_rng(0).standard_normal((200, 330), dtype=np.float32)
    found = measure_background(image, np.zeros(image.shape, bool), mesh_px=64)
    assert found.image().shape == image.shape
    np.testing.assert_allclose(found.image(), 0.1, atol=0.002)


def test_table_and_image_agree() -> None:
    y, x = np.mgrid[:4, :4].astype(np.float32)
    image = Background(1 + 2 * y - x, (512, 512), 128, 1.0).image()
    assert image.dtype == np.float32
    assert image[64:66, 63:65].mean() == pytest.approx(image[63:65, 63:65].mean() + 1 * 2 / 128, abs=1e-4)
    np.testing.assert_allclose(image[63:65, 63:65].mean(), 1.0, atol=1e-4)


def test_wrong_input_is_refused(scene: Scene) -> None:
    with pytest.raises(InputError, match="one shape"):
        measure_background(scene.image, scene.bad[:10])
    with pytest.raises(InputError, match="mesh"):
        measure_background(scene.image, scene.bad, mesh_px=4096)
    with pytest.raises(InputError, match="flat's shape"):
        flatten(scene.image, scene.flat[:10], scene.bad)


def test_bytes_of_a_file_do_as_well(scene: Scene, before: Flattened) -> None:
    found = flatten(scene.image.astype(">f4"), scene.flat, scene.bad)
    assert found.image.tobytes() == before.image.tobytes()
