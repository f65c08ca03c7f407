"""Fluxes in given apertures, and how deep a mosaic is.

Put here photometry at positions that are known. Keep out finding sources: that is ``detection``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panoramic.errors import MosaicError
from panoramic.mosaic.drizzle import ZEROPOINT_AB
from panoramic.mosaic.result import Depth

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.table import Table

DEPTH_RADIUS_ARCSEC = 0.16
UJY_PER_UNIT = 0.01
_BAND = 1024
_STRIDE_RADII = 3.0
_MINIMUM_APERTURES = 100
_ENOUGH_APERTURES = 50_000


def magnitude(flux_ujy: np.ndarray) -> np.ndarray:
    """AB magnitude of a flux in uJy; NaN where it is not positive."""
    flux = np.asarray(flux_ujy, float)
    return ZEROPOINT_AB - 2.5 * np.log10(np.where(flux > 0, flux / UJY_PER_UNIT, np.nan))


def pixel_scale_arcsec(header: Header) -> float:
    """Pixel scale of a mosaic."""
    return abs(float(header["CDELT2"])) * 3600


def aperture_photometry(
    sci_path: Path,
    wht_path: Path,
    ra: np.ndarray,
    dec: np.ndarray,
    radii_arcsec: Sequence[float],
    annulus_arcsec: tuple[float, float] | None = None,
) -> Table:
    """Sum the mosaic in circles around given positions (exact sub-pixel overlap).

    Parameters
    ----------
    sci_path, wht_path : planes of one mosaic.
    ra, dec : deg, shape (N,).
    radii_arcsec : aperture radii.
    annulus_arcsec : inner and outer radius of a ring whose clipped median is the local sky; None subtracts nothing.

    Returns
    -------
    Table of N rows: ra, dec, x, y (0-based), for each radius ``flux_{radius:.2f}`` and ``error_{radius:.2f}`` in uJy,
    ``sky`` (uJy per arcsec^2) and ``covered``, false where the largest aperture reaches pixels without data; then the
    fluxes are NaN. The errors are those of the background alone.
    """
    from astropy.io import fits
    from astropy.table import Table
    from astropy.wcs import WCS

    ra, dec = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    radii = [float(r) for r in radii_arcsec]
    if not radii or min(radii) <= 0:
        raise MosaicError("aperture radii must be positive")
    fluxes, errors = np.full((len(radii), ra.size), np.nan), np.full((len(radii), ra.size), np.nan)
    sky, covered = np.zeros(ra.size), np.zeros(ra.size, bool)
    with fits.open(sci_path, memmap=True) as sci, fits.open(wht_path, memmap=True) as wht:
        header = sci[0].header
        scale = pixel_scale_arcsec(header)
        x, y = WCS(header).all_world2pix(ra, dec, 0) if ra.size else (ra, dec)
        reach = max(max(radii), annulus_arcsec[1] if annulus_arcsec else 0.0) / scale
        for k in range(ra.size):
            if not (np.isfinite(x[k]) and np.isfinite(y[k])):
                continue
            cut = _cutout(sci[0], wht[0], x[k], y[k], reach)
            if cut is None:
                continue
            image, weight, cx, cy = cut
            covered[k], sky[k] = _sum_circles(image, weight, cx, cy, np.array(radii) / scale, annulus_arcsec, scale,
                                              fluxes[:, k], errors[:, k])  # fmt: skip
    table = Table({"ra": ra, "dec": dec, "x": x, "y": y})
    for i, radius in enumerate(radii):
        table[f"flux_{radius:.2f}"] = fluxes[i] * UJY_PER_UNIT
        table[f"error_{radius:.2f}"] = errors[i] * UJY_PER_UNIT
    table["sky"] = sky * UJY_PER_UNIT / scale**2
    table["covered"] = covered
    return table


def _cutout(
    sci: object, wht: object, x: float, y: float, reach: float
) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """Both planes around a position, and the position in them; None where the reach leaves the mosaic."""
    rows, columns = sci.shape  # type: ignore[attr-defined]
    x0, x1 = math.floor(x - reach) - 1, math.ceil(x + reach) + 2
    y0, y1 = math.floor(y - reach) - 1, math.ceil(y + reach) + 2
    if x0 < 0 or y0 < 0 or x1 > columns or y1 > rows:
        return None
    cuts = [np.asarray(h.section[y0:y1, x0:x1], dtype=np.float64) for h in (sci, wht)]  # type: ignore[attr-defined]
    return cuts[0], cuts[1], x - x0, y - y0


def _sum_circles(
    image: np.ndarray,
    weight: np.ndarray,
    x: float,
    y: float,
    radii: np.ndarray,
    annulus: tuple[float, float] | None,
    scale: float,
    fluxes: np.ndarray,
    errors: np.ndarray,
) -> tuple[bool, float]:
    """Fill in fluxes and errors (mosaic units) of one position; (covered, sky per pixel)."""
    import sep

    gy, gx = np.indices(image.shape)
    distance = np.hypot(gx - x, gy - y)
    if (weight[distance <= radii.max() + 0.5] <= 0).any():
        return False, 0.0
    level = 0.0
    if annulus is not None:
        ring = image[(distance * scale >= annulus[0]) & (distance * scale <= annulus[1]) & (weight > 0)]
        level = _clipped_median(ring) if ring.size else 0.0
    variance = np.where(weight > 0, 1 / np.where(weight > 0, weight, 1), 0)
    fluxes[:] = sep.sum_circle(image - level, np.full(radii.size, x), np.full(radii.size, y), radii, subpix=0)[0]
    spread = sep.sum_circle(variance, np.full(radii.size, x), np.full(radii.size, y), radii, subpix=0)[0]
    errors[:] = np.sqrt(spread)
    return True, level


def _clipped_median(values: np.ndarray) -> float:
    """Median after three rounds of clipping at 3 sigma."""
    for _ in range(3):
        middle = np.median(values)
        spread = 1.4826 * np.median(np.abs(values - middle))
        values = values[np.abs(values - middle) <= 3 * spread + 1e-30]
    return float(np.median(values))


def measure_depth(sci_path: Path, wht_path: Path, radius_arcsec: float = DEPTH_RADIUS_ARCSEC) -> Depth | None:
    """5 sigma depth from apertures on empty sky.

    Apertures lie on a lattice of 3 radii or more, so that 50,000 suffice for the largest field. Each sum is divided
    by what its weights predict. Sources only make sums brighter, so the scatter is that of the fainter half: 1.4826
    times the median distance below the median, after clipping at 3 sigma. None where fewer than 100 apertures fit.
    """
    import sep
    from astropy.io import fits

    ratios, weights = [], []
    with fits.open(sci_path, memmap=True) as sci, fits.open(wht_path, memmap=True) as wht:
        scale = pixel_scale_arcsec(sci[0].header)
        radius = radius_arcsec / scale
        rows, columns = sci[0].shape
        step = max(_STRIDE_RADII * radius, (rows * columns / _ENOUGH_APERTURES) ** 0.5)
        for y0 in range(0, rows, _BAND):
            for x0 in range(0, columns, _BAND):
                part = np.s_[y0 : y0 + _BAND, x0 : x0 + _BAND]
                weight = wht[0].data[part].astype(np.float64)
                if not (weight > 0).any():
                    continue
                image = sci[0].data[part].astype(np.float64)
                gx, gy = np.meshgrid(
                    np.arange(radius + 1, weight.shape[1] - radius - 1, step),
                    np.arange(radius + 1, weight.shape[0] - radius - 1, step),
                )
                x, y = gx.ravel(), gy.ravel()
                if x.size == 0:
                    continue
                variance = np.divide(1.0, weight, out=np.full_like(weight, np.inf), where=weight > 0)
                predicted = np.sqrt(sep.sum_circle(variance, x, y, radius, subpix=0)[0])
                whole = np.isfinite(predicted)
                predicted = predicted[whole]
                flux = sep.sum_circle(image, x[whole], y[whole], radius, subpix=0)[0]
                if flux.size >= _MINIMUM_APERTURES:
                    flux -= np.median(flux)  # a sky that is not zero would read as scatter where the depth varies
                ratios.append(flux / predicted)
                weights.append(predicted)
    ratio = np.concatenate(ratios) if ratios else np.empty(0)
    if ratio.size < _MINIMUM_APERTURES:
        return None
    predicted = np.concatenate(weights)
    kept = ratio
    for _ in range(10):
        middle = np.median(kept)
        below = kept[kept < middle]
        sigma = 1.4826 * float(np.median(middle - below)) if below.size else 0.0
        inside = np.abs(kept - middle) <= 3 * sigma + 1e-30
        if inside.all():
            break
        kept = kept[inside]
    if sigma <= 0:
        return None
    depth = float(magnitude(5 * sigma * np.median(predicted) * UJY_PER_UNIT))
    return Depth(depth, sigma, int(ratio.size), radius_arcsec)


def aperture_ratio(table: Table, small: float, large: float) -> tuple[float, float]:
    """Median of flux in the small over flux in the large aperture, and its scatter (1.4826 MAD), over finite rows.

    ``table`` comes from `aperture_photometry` at isolated point sources; dividing small-aperture fluxes by the median
    corrects them to the large aperture.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.asarray(table[f"flux_{small:.2f}"]) / np.asarray(table[f"flux_{large:.2f}"])
    ratio = ratio[np.isfinite(ratio)]
    if ratio.size == 0:
        return math.nan, math.nan
    middle = float(np.median(ratio))
    return middle, 1.4826 * float(np.median(np.abs(ratio - middle)))
