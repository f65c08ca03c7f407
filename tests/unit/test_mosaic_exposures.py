"""Calibrated exposures by contract, made here for all mosaic tests, and how the mosaic opens them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.special import erf

from panoramic.errors import ExposureFileError, MissingKeywordError, TruncatedFileError, WrongShapeError
from panoramic.mosaic.exposures import MosaicInput, open_exposure
from panoramic.mosaic.grid import FieldGrid

CENTRE = (150.1163, 2.2058)


@dataclass
class Sky:
    """Point sources: deg and uJy."""

    ra: np.ndarray
    dec: np.ndarray
    flux: np.ndarray


@dataclass
class Made:
    """A written exposure and its truth."""

    input: MosaicInput
    wcs: WCS
    clean: np.ndarray
    cosmic: np.ndarray
    bad: np.ndarray = field(repr=False)


def sip_wcs(ra: float, dec: float, shape: tuple[int, int], scale_mas: float, roll_deg: float, sip: float = 2e-6) -> WCS:
    """TAN-SIP with a distortion of a few pixels over a full detector."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5, shape[0] / 2 + 0.5]
    t, s = np.radians(roll_deg), scale_mas / 3.6e6
    wcs.wcs.cd = s * np.array([[-np.cos(t), np.sin(t)], [np.sin(t), np.cos(t)]])
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    from astropy.wcs import Sip

    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[2, 0], a[1, 1], a[3, 0] = sip, -sip / 2, sip * 1e-4
    b[0, 2], b[1, 1], b[0, 3] = -sip, sip / 3, sip * 1e-4
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    return wcs


def pixel_area_sr(wcs: WCS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Solid angle of pixels from the full WCS."""
    h = 0.5
    corners = [wcs.all_pix2world(x + dx, y + dy, 0) for dx, dy in ((-h, -h), (h, -h), (h, h), (-h, h))]
    xi = [np.radians(c[0] - corners[0][0]) * np.cos(np.radians(c[1])) for c in corners]
    eta = [np.radians(c[1]) for c in corners]
    return 0.5 * np.abs((xi[2] - xi[0]) * (eta[3] - eta[1]) - (xi[3] - xi[1]) * (eta[2] - eta[0]))


def render(sky: Sky, wcs: WCS, shape: tuple[int, int], fwhm_px: float) -> np.ndarray:
    """Surface brightness in MJy/sr of pixel-integrated Gaussians."""
    image = np.zeros(shape)
    x, y = wcs.all_world2pix(sky.ra, sky.dec, 0, quiet=True)
    sigma = fwhm_px / 2.3548
    reach = int(np.ceil(6 * sigma)) + 1
    areas = pixel_area_sr(wcs, x, y)
    for cx, cy, flux, area in zip(x, y, sky.flux, areas, strict=True):
        if not (-reach < cx < shape[1] + reach and -reach < cy < shape[0] + reach):
            continue
        ix, iy = (
            np.arange(round(cx) - reach, round(cx) + reach + 1),
            np.arange(round(cy) - reach, round(cy) + reach + 1),
        )
        px = 0.5 * (erf((ix + 0.5 - cx) / sigma / 2**0.5) - erf((ix - 0.5 - cx) / sigma / 2**0.5))
        py = 0.5 * (erf((iy + 0.5 - cy) / sigma / 2**0.5) - erf((iy - 0.5 - cy) / sigma / 2**0.5))
        okx, oky = (ix >= 0) & (ix < shape[1]), (iy >= 0) & (iy < shape[0])
        image[np.ix_(iy[oky], ix[okx])] += flux * 1e-12 / area * np.outer(py[oky], px[okx])
    return image


def make_exposure(
    folder: Path,
    dataset: str,
    sky: Sky,
    *,
    ra: float = CENTRE[0],
    dec: float = CENTRE[1],
    shape: tuple[int, int] = (256, 256),
    scale_mas: float = 31.0,
    roll_deg: float = 33.0,
    fwhm_px: float = 2.2,
    noise: float = 0.01,
    background: float = 0.0,
    cosmic_rays: int = 0,
    cosmic_sigma: tuple[float, float] = (10.0, 300.0),
    bad_fraction: float = 0.002,
    seconds: float = 500.0,
    seed: int = 0,
    filter_name: str = "F115W",
    association: str = "j100028p0212_v001-1-f115w_00001",
) -> Made:
    """Write one contract file ``{dataset}_rate.fits`` and hand its truth back."""
    rng = np.random.default_rng(seed)
    wcs = sip_wcs(ra, dec, shape, scale_mas, roll_deg)
    clean = render(sky, wcs, shape, fwhm_px)
    science = clean + background
    error = np.sqrt(noise**2 + np.maximum(clean, 0) * noise * 0.02)
    if noise > 0:
        science = science + rng.normal(size=shape) * error
    cosmic = np.zeros(shape, bool)
    for _ in range(cosmic_rays):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        dy, dx = ((0, 0), (0, 1), (1, 0))[rng.integers(0, 3)]
        for j, i in {(y, x), (min(y + dy, shape[0] - 1), min(x + dx, shape[1] - 1))}:
            if not cosmic[j, i]:
                science[j, i] += error[j, i] * np.exp(rng.uniform(*np.log(cosmic_sigma)))
                cosmic[j, i] = True
    bad = rng.random(shape) < bad_fraction
    science[bad] = np.where(rng.random(bad.sum()) < 0.5, np.nan, 1e4)
    weight = np.where(bad, 0.0, 1 / max(noise, 1e-3) ** 2)
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"], primary.header["INSTRUME"] = "JWST", "NIRCAM"
    primary.header["EFFEXPTM"] = seconds
    primary.header["EXPSTART"], primary.header["EXPEND"] = 60000.0 + seed, 60000.0 + seed + seconds / 86400
    header = wcs.to_header(relax=True)
    planes = [
        fits.ImageHDU(science.astype(np.float32), header, name="SCI"),
        fits.ImageHDU(error.astype(np.float32), name="ERR"),
        fits.ImageHDU(weight.astype(np.float32), name="WHT"),
        fits.ImageHDU(bad.astype(np.uint32), name="DQ"),
    ]
    path = folder / f"{dataset}_rate.fits"
    fits.HDUList([primary, *planes]).writeto(path, overwrite=True)
    source = MosaicInput(dataset, association, path, "NRCB1", filter_name, "CLEAR")
    return Made(source, wcs, clean, cosmic, bad)


def random_stars(n: int, radius_arcsec: float, seed: int, flux: tuple[float, float] = (1.0, 30.0)) -> Sky:
    """Stars around CENTRE, logarithmic in flux (uJy)."""
    rng = np.random.default_rng(seed)
    dx, dy = rng.uniform(-radius_arcsec, radius_arcsec, (2, n)) / 3600
    fluxes = np.exp(rng.uniform(*np.log(flux), n))
    return Sky(CENTRE[0] + dx / np.cos(np.radians(CENTRE[1])), CENTRE[1] + dy, fluxes)


def grid_for_tests(tile_px: int = 256, ra: float = CENTRE[0], dec: float = CENTRE[1]) -> FieldGrid:
    """The survey's scales with small tiles."""
    return FieldGrid("j100028p0212", ra, dec, tile_px, 40.0, 20.0)


def dithers(n: int, step_arcsec: float = 1.3) -> list[tuple[float, float]]:
    """Pointings around CENTRE that repeat no pixel phase."""
    k = np.arange(n)
    dx, dy = step_arcsec * np.cos(2.4 * k) * np.sqrt(k), step_arcsec * np.sin(2.4 * k) * np.sqrt(k)
    return [
        (CENTRE[0] + a / 3600 / np.cos(np.radians(CENTRE[1])), CENTRE[1] + b / 3600)
        for a, b in zip(dx, dy, strict=True)
    ]


@pytest.fixture
def one(tmp_path: Path) -> Made:
    """A small exposure."""
    return make_exposure(tmp_path, "jw1_nrcb1", random_stars(3, 2, 1), shape=(96, 128), seed=3)


def test_opens_and_reads_by_window(one: Made) -> None:
    exposure = open_exposure(one.input, grid_for_tests(), "short")
    assert exposure.shape == (96, 128)
    assert exposure.exposure_time == 500.0
    part = exposure.read((10, 50, 20, 90))
    assert part.science.shape == (40, 70)
    assert ((part.weight == 0) == one.bad[10:50, 20:90]).all()
    assert np.isfinite(part.science).all()
    assert (exposure.read_error((10, 50, 20, 90)) > 0).all()
    with fits.open(one.input.path) as hdus:
        good = part.weight > 0
        np.testing.assert_array_equal(part.science[good], hdus["SCI"].data[10:50, 20:90][good])


def test_flags_of_the_engine_count(one: Made) -> None:
    with fits.open(one.input.path, mode="update") as hdus:
        hdus["DQ"].data[5, 6] |= 16
        hdus["DQ"].data[7, 8] |= 4
    exposure = open_exposure(one.input, grid_for_tests(), "short")
    weight = exposure.read((0, 96, 0, 128)).weight
    assert weight[5, 6] == 0
    assert weight[7, 8] > 0 or one.bad[7, 8]


def test_a_weight_that_would_rule_is_capped(one: Made) -> None:
    with fits.open(one.input.path, mode="update") as hdus:
        hdus["WHT"].data[20, 20] = 1e12
        hdus["DQ"].data[20, 20] = 0
        hdus["SCI"].data[20, 20] = 0
    exposure = open_exposure(one.input, grid_for_tests(), "short")
    assert exposure.read((20, 21, 20, 21)).weight[0, 0] == pytest.approx(2 * exposure.typical_weight)


def test_rejected_pixels_are_kept_as_bits(one: Made) -> None:
    exposure = open_exposure(one.input, grid_for_tests(), "short")
    flat = np.array([0, 127, 128 * 95 + 127, 128 * 33 + 9], np.uint32)
    exposure.reject(flat)
    found = np.flatnonzero(exposure.rejected_window((0, 96, 0, 128)).ravel())
    np.testing.assert_array_equal(found, np.sort(flat))
    assert exposure.rejected_window((33, 34, 9, 10)).all()


@pytest.mark.parametrize("damage", ["gone", "cut", "no_plane", "unlike", "no_wcs", "no_time", "text"])
def test_what_is_wrong_is_told(one: Made, damage: str) -> None:
    path = one.input.path
    expected: type[Exception] = ExposureFileError
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:150_000])
        expected = TruncatedFileError
    elif damage == "text":
        path.write_text("<html>not found</html>")
        expected = TruncatedFileError
    else:
        with fits.open(path) as hdus:
            new = fits.HDUList([h.copy() for h in hdus])
        if damage == "no_plane":
            del new["WHT"]
        elif damage == "unlike":
            new["ERR"].data, expected = new["ERR"].data[:-1], WrongShapeError
        elif damage == "no_wcs":
            new["SCI"].header, expected = fits.ImageHDU(new["SCI"].data, name="SCI").header, MissingKeywordError
        else:
            del new[0].header["EFFEXPTM"]
            expected = MissingKeywordError
        new.writeto(path, overwrite=True)
    with pytest.raises(expected) as caught:
        open_exposure(one.input, grid_for_tests(), "short")
    assert str(path) in str(caught.value)
