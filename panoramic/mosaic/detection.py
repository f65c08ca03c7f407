"""Sources of a mosaic, found window by window.

Put here what finds sources. Keep out photometry at given positions (``photometry``) and what sources are used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panoramic.mosaic.photometry import UJY_PER_UNIT, magnitude, pixel_scale_arcsec

if TYPE_CHECKING:
    from astropy.table import Table

APERTURES_ARCSEC = (0.16, 0.25, 0.36)
_CORE_PX = 2048
_MARGIN_PX = 128
_MESH_PX = 128
_KERNEL_FWHM_PX = 2.5
_PIXEL_STACK = 3_000_000
_DEBLEND_LIMIT = 16_384


def detect(
    sci_path: Path,
    wht_path: Path,
    *,
    threshold: float = 1.5,
    minimum_snr: float = 5.0,
    apertures_arcsec: Sequence[float] = APERTURES_ARCSEC,
) -> Table:
    """Find the sources of a mosaic.

    Pixels are compared with their own scatter (the weights' noise times the part of it that drizzling leaves in single
    pixels, measured in each window); signal to noise is that of the smallest aperture with the weights' full noise.

    Parameters
    ----------
    sci_path, wht_path : planes of one mosaic.
    threshold : of a pixel after smoothing with a Gaussian of 2.5 px, in units of the scatter before it; drizzled noise
        is smooth already, so this is about 3 sigma of what is compared.
    minimum_snr : in the smallest aperture.
    apertures_arcsec : radii, ascending; the largest is the column ``flux``.

    Returns
    -------
    Table by descending flux: ``id``; ``ra``, ``dec`` (deg) and ``x``, ``y`` (0-based mosaic pixels) of the windowed
    centroid; ``flux``, ``flux_error`` (uJy, largest aperture, no correction), ``flux_{radius:.2f}``,
    ``error_{radius:.2f}``; ``mag`` (AB, Kron aperture where it can be had, else of ``flux``); ``flux_radius`` (px);
    ``snr``; ``flags`` (SExtractor's bits; 0 is clean).
    """
    from astropy.io import fits
    from astropy.table import Table, vstack
    from astropy.wcs import WCS

    parts: list[Table] = []
    with fits.open(sci_path, memmap=True) as sci, fits.open(wht_path, memmap=True) as wht:
        header = sci[0].header
        scale = pixel_scale_arcsec(header)
        radii = np.array(sorted(float(a) for a in apertures_arcsec)) / scale
        rows, columns = sci[0].shape
        for y0 in range(0, rows, _CORE_PX):
            for x0 in range(0, columns, _CORE_PX):
                top, left = max(0, y0 - _MARGIN_PX), max(0, x0 - _MARGIN_PX)
                part = np.s_[top : y0 + _CORE_PX + _MARGIN_PX, left : x0 + _CORE_PX + _MARGIN_PX]
                weight = wht[0].data[part].astype(np.float32)
                if not (weight > 0).any():
                    continue
                found = _detect_window(sci[0].data[part].astype(np.float32), weight, radii, threshold)
                found["x"] += left
                found["y"] += top
                own = (found["x"] >= x0 - 0.5) & (found["x"] < x0 + _CORE_PX - 0.5)
                own &= (found["y"] >= y0 - 0.5) & (found["y"] < y0 + _CORE_PX - 0.5)
                parts.append(found[own])
        names = [f"{radius * scale:.2f}" for radius in radii]
        table = vstack(parts, metadata_conflicts="silent") if parts else _empty(radii.size)
        ra, dec = WCS(header).all_pix2world(table["x"], table["y"], 0) if len(table) else (np.empty(0), np.empty(0))
    out = Table()
    snr = table["f0"] / table["e0"]
    last = radii.size - 1
    out["id"] = np.zeros(len(table), int)
    out["ra"], out["dec"], out["x"], out["y"] = np.asarray(ra), np.asarray(dec), table["x"], table["y"]
    out["flux"], out["flux_error"] = table[f"f{last}"] * UJY_PER_UNIT, table[f"e{last}"] * UJY_PER_UNIT
    for k, name in enumerate(names):
        out[f"flux_{name}"], out[f"error_{name}"] = table[f"f{k}"] * UJY_PER_UNIT, table[f"e{k}"] * UJY_PER_UNIT
    out["mag"] = magnitude(np.where(table["kron"] > 0, table["kron"], table[f"f{last}"]) * UJY_PER_UNIT)
    out["flux_radius"], out["snr"], out["flags"] = table["radius"], snr, table["flags"].astype(int)
    out = out[np.asarray(snr >= minimum_snr)]
    out.sort(["flux", "x", "y"], reverse=True)
    out["id"] = np.arange(1, len(out) + 1)
    out.meta["pixel_scale_arcsec"] = scale
    return out


def _detect_window(science: np.ndarray, weight: np.ndarray, radii: np.ndarray, threshold: float) -> Table:
    """Sources of one window in its own pixels; fluxes in mosaic units."""
    import sep
    from astropy.table import Table

    mask = weight <= 0
    science = np.ascontiguousarray(science)
    if min(science.shape) >= _MESH_PX:
        science = science - sep.Background(science, mask=mask, bw=_MESH_PX, bh=_MESH_PX, fw=3, fh=3).back()
    error = np.divide(1.0, np.sqrt(weight), out=np.full_like(weight, 1e10), where=~mask)
    normal = (science / error)[~mask]
    scatter = 1.4826 * float(np.median(np.abs(normal - np.median(normal))))
    if not scatter > 0:
        return _empty(radii.size)
    before = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_extract_pixstack(_PIXEL_STACK)
    sep.set_sub_object_limit(_DEBLEND_LIMIT)
    try:
        # on the image in units of its own scatter: with a noise map the filter would take twice as long
        objects = sep.extract(
            science / (error * np.float32(scatter)), threshold, mask=mask, minarea=5,
            filter_kernel=_kernel(), filter_type="conv", deblend_nthresh=32, deblend_cont=0.005, clean=True,
        )  # fmt: skip
    finally:
        sep.set_extract_pixstack(before[0])
        sep.set_sub_object_limit(before[1])
    if objects.size == 0:
        return _empty(radii.size)
    x, y = objects["x"], objects["y"]
    radius, _ = sep.flux_radius(science, x, y, np.maximum(6.0 * objects["a"], 6.0), 0.5, mask=mask, subpix=5)
    xw, yw, lost = sep.winpos(science, x, y, np.clip(2.0 / 2.35 * radius, 0.8, 10.0), mask=mask)
    # a windowed centroid that wandered off has found the neighbour
    stray = (lost != 0) | ~np.isfinite(xw + yw) | (np.hypot(xw - x, yw - y) > 3.0)
    xw, yw = np.where(stray, x, xw), np.where(stray, y, yw)
    table = Table({"x": xw, "y": yw, "radius": radius})
    flags = objects["flag"].astype(int)
    for k, r in enumerate(radii):
        table[f"f{k}"], table[f"e{k}"], flag = sep.sum_circle(science, xw, yw, r, err=error, mask=mask, subpix=5)
        flags |= flag
    table["kron"] = _kron(science, mask, objects, xw, yw)
    table["flags"] = flags
    return table


def _kron(science: np.ndarray, mask: np.ndarray, objects: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kron fluxes; 0 where the aperture can't be had."""
    import sep

    a, b = np.maximum(objects["a"], 0.5), np.maximum(objects["b"], 0.5)
    theta = np.clip(np.nan_to_num(objects["theta"]), -np.pi / 2 + 1e-6, np.pi / 2 - 1e-6)
    kron, _ = sep.kron_radius(science, x, y, a, b, theta, 6.0, mask=mask)
    good = np.isfinite(kron) & (kron > 0)
    flux = np.zeros(x.size)
    size = np.clip(2.5 * kron[good], 3.5 / np.sqrt(a[good] * b[good]), 20.0)
    flux[good], _, _ = sep.sum_ellipse(
        science, x[good], y[good], a[good], b[good], theta[good], size, mask=mask, subpix=1
    )
    return flux


def _kernel() -> np.ndarray:
    """Gaussian smoothing kernel, 5 x 5."""
    y, x = np.indices((5, 5)) - 2.0
    return np.exp(-0.5 * (x**2 + y**2) * (2.3548 / _KERNEL_FWHM_PX) ** 2)


def _empty(n_radii: int) -> Table:
    """A window without sources."""
    from astropy.table import Table

    names = ["x", "y", "radius", *(f"{c}{k}" for k in range(n_radii) for c in "fe"), "kron"]
    table = Table({name: np.empty(0) for name in names})
    table["flags"] = np.empty(0, int)
    return table
