"""Optics conserve flux and position; the detector's noise is what ERR says; flags mean what they say."""

import numpy as np
import pytest

from panoramic.simulate import detector as d
from panoramic.simulate import optics
from panoramic.simulate.geometry import aperture
from panoramic.simulate.instrument import NPIX, photmjsr
from panoramic.simulate.program import Effects, Readout

QUIET = {
    "one_over_f": 0, "snowballs_per_ks": 0, "cosmic_rays_per_ks": 0, "wisps": 0, "bad_pixels": False,
    "saturation": False, "reference_pixels": False, "noise": False, "flat_error": 0,
}  # fmt: skip
SCALE = aperture("nrcblong").x_scale


def uniform(value):
    return np.full((NPIX, NPIX), value, np.float32)


def expose(brightness, detector="nrcblong", band="F444W", name="x", **effects):
    rng = d.generator(1, name)
    return d.expose(brightness, detector, band, Readout(), Effects(**(QUIET | effects)), 7, rng)


@pytest.fixture(scope="module")
def transfer():
    return optics.transfer_function("F470N", "LONG", SCALE)


def centroid(image, x, y, half=40):
    x0, y0 = int(x) - half, int(y) - half
    stamp = image[y0 : y0 + 2 * half + 1, x0 : x0 + 2 * half + 1].astype(float)
    grid = np.arange(2 * half + 1)
    cx, cy = x - x0, y - y0
    for _ in range(30):
        window = stamp * np.exp(-0.5 * ((grid[None, :] - cx) ** 2 + (grid[:, None] - cy) ** 2) / 2.0**2)
        cx += 2 * (window * (grid[None, :] - cx)).sum() / window.sum()
        cy += 2 * (window * (grid[:, None] - cy)).sum() / window.sum()
    return cx + x0, cy + y0


def test_star_keeps_flux_and_place(transfer):
    canvas = optics.new_canvas()
    places = [(300.0, 400.0), (900.37, 1200.81), (1500.5, 700.25)]
    for x, y in places:
        optics.draw(canvas, x, y, 100.0, np.zeros((2, 2)), np.ones(1), np.zeros(1))
    image = optics.observe(canvas, transfer)
    assert image.sum() == pytest.approx(300.0, rel=2e-3)
    assert image.min() > -1e-3
    for x, y in places:
        # 0.02 pixel is 1 mas long-wave.
        np.testing.assert_allclose(centroid(image, x, y), (x, y), atol=0.02)


def test_spikes_reach_far_and_a_drift_smears(transfer):
    canvas = optics.new_canvas()
    optics.draw(canvas, 1000.0, 1000.0, 1e6, np.zeros((2, 2)), np.ones(1), np.zeros(1))
    image = optics.observe(canvas.copy(), transfer)
    y, x = np.mgrid[:NPIX, :NPIX]
    ring = image[(np.hypot(x - 1000, y - 1000) > 60) & (np.hypot(x - 1000, y - 1000) < 64)]
    assert np.percentile(ring, 99) > 8 * np.median(ring)
    smeared = optics.observe(canvas, optics.transfer_function("F470N", "LONG", SCALE, (12.0, 0.0)))
    assert smeared.sum() == pytest.approx(image.sum(), rel=1e-3)
    assert smeared.max() < 0.5 * image.max()
    assert smeared[1000, 995] > 3 * image[1000, 995]


@pytest.mark.parametrize("n", [0.5, 1.0, 2.5, 4.0, 6.0])
def test_sersic_mixture_has_unit_flux_and_its_radius(n):
    weights, sigmas = optics.sersic_mixture(n)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights * (1 - np.exp(-0.5 / sigmas**2))).sum() == pytest.approx(0.5, abs=0.07)


def test_galaxy_keeps_flux_and_axis(transfer):
    canvas = optics.new_canvas()
    covariance = np.array([[36.0, 20.0], [20.0, 25.0]])
    optics.draw(canvas, 800.2, 900.6, 50.0, covariance, *optics.sersic_mixture(1.0))
    image = optics.observe(canvas, transfer)
    assert image.sum() == pytest.approx(50.0, rel=5e-3)
    y, x = np.mgrid[:NPIX, :NPIX]
    assert (image * (x - 800.2) * (y - 900.6)).sum() > 0


def test_noiseless_rate_is_brightness_through_flat_and_zeropoint():
    image = expose(uniform(0.3))
    flat = d.flat_field(7, "nrcblong", "F444W", Effects().flat_structure)
    np.testing.assert_allclose(image.sci, 0.3 / photmjsr("nrcblong", "F444W") * flat, rtol=1e-5)
    assert image.dq.max() == 0
    assert abs(float(np.median(flat)) - 1) < 1e-3
    assert 0.01 < flat.std() < 0.08


@pytest.mark.parametrize(("detector", "band"), [("nrcblong", "F444W"), ("nrca3", "F115W")])
def test_noise_is_what_err_says(detector, band):
    quiet, noisy = expose(uniform(0.3), detector, band), expose(uniform(0.3), detector, band, noise=True)
    pull = (noisy.sci - quiet.sci) / noisy.err
    assert np.std(pull) == pytest.approx(1.0, abs=0.03)
    assert abs(np.mean(pull)) < 0.1
    np.testing.assert_allclose(noisy.err**2, noisy.var_poisson + noisy.var_rnoise, rtol=1e-5)


def test_stripes_follow_the_amplifiers():
    pattern = d.stripes(d.generator(3, "s"), 0.006, 0.35)
    assert pattern.std() == pytest.approx(0.006, rel=0.1)
    for k in range(4):
        block = pattern[:, 512 * k : 512 * (k + 1)]
        assert np.ptp(block, axis=1).max() == 0
    assert np.std(pattern[:, 0] - pattern[:, 600]) > 0.002
    # 1/f: neighbouring rows are alike.
    row = pattern[:, 0].astype(float)
    assert np.corrcoef(row[1:], row[:-1])[0, 1] > 0.2


def test_flags_of_the_archive():
    image = expose(
        uniform(0.3), reference_pixels=True, bad_pixels=True, snowballs_per_ks=12, cosmic_rays_per_ks=60000, noise=True
    )
    border = d.reference_border()
    assert np.all(image.dq[border] & d.REFERENCE_PIXEL)
    assert not np.any(image.dq[~border] & np.uint32(d.REFERENCE_PIXEL))
    unusable = (image.dq & d.DO_NOT_USE) != 0
    assert np.array_equal(unusable, np.isnan(image.sci))
    assert np.all(image.err[unusable] == 0)
    assert 0.002 < unusable[~border].mean() < 0.02
    jump = (image.dq & d.JUMP_DET) != 0
    assert 0.005 < jump.mean() < 0.05
    # A ramp that was cut has a larger error.
    assert np.median(image.err[jump & ~unusable]) > 1.05 * np.median(image.err[~jump & ~unusable])
    snowball_cores = ((image.dq & d.SATURATED) != 0) & jump
    assert snowball_cores.sum() > 50


def test_bright_cores_saturate():
    bright = uniform(0.3)
    bright[1000:1003, 1000:1003] = 100.0
    bright[500, 500] = 1e5
    image = expose(bright, saturation=True)
    assert image.dq[500, 500] & d.DO_NOT_USE
    assert image.dq[500, 500] & d.SATURATED
    assert np.isnan(image.sci[500, 500])
    assert image.dq[1001, 1001] == d.SATURATED
    assert np.isfinite(image.sci[1001, 1001])
    plain = expose(bright)
    assert image.var_poisson[1001, 1001] > plain.var_poisson[1001, 1001]
    assert image.dq[1500, 1500] == 0


def test_exposures_repeat_and_differ():
    same = [expose(uniform(0.2), name="a", noise=True, one_over_f=0.006, cosmic_rays_per_ks=1000).sci for _ in range(2)]
    other = expose(uniform(0.2), name="b", noise=True, one_over_f=0.006, cosmic_rays_per_ks=1000).sci
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], other)


def test_wisps_are_where_grizli_fits_them():
    for detector in ("nrca3", "nrca4", "nrcb3", "nrcb4"):
        template = d.wisp_template(detector)
        assert template.max() == pytest.approx(1.0)
        assert template.min() >= 0
        x, y, _ = d.WISP_PLACES[detector]
        assert template[max(0, y - 200) : y + 200, max(0, x - 200) : x + 200].mean() > 5 * template.mean()
    assert d.wisp_template("nrcb1").max() == 0
