"""The catalogue of an association's image.

Put here finding and measuring its sources in the contract's columns. Keep out published photometry
(`panoramic.mosaic`) and the sources that alignment goes by (`sources.py`).

Errors are those of the weights times what empty apertures scatter more; the purity is counted on the image turned
upside down, whose sources are all false: noise is symmetric, the sky's light is not (as is known from radio surveys).
Only rows without flags take part in it: what may be a piece of a bright star's spikes has SExtractor's flag 1. Cosmic
rays are not symmetric: where one exposure alone looked, they are in no purity.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from panoramic.exposure_sources import in_spikes
from panoramic.reduction.base import CATALOG_COLUMNS
from panoramic.reduction.native.image import Grid

if TYPE_CHECKING:
    from astropy.table import Table

Image = NDArray[np.float32]
Array = NDArray[np.float64]

APERTURE_ARCSEC = 0.36
PURITY_SNR = 7.0
_MESH_PX = 128
_KERNEL_FWHM_PX = 2.0
_LEAST_PIXELS = 5
_PIXEL_STACKS = (500_000, 5_000_000)
_DEBLEND_LIMIT = 16_384
_FEWEST_APERTURES = 50
_LARGEST_STEP_PX = 3.0


def make_catalogue(science: Image, weight: Image, grid: Grid, *, detection_sigma: float = 1.5) -> Table:
    """Find and measure the sources of an image.

    Parameters
    ----------
    science, weight : MJy/sr and (MJy/sr)^-2; 0 where there are no data. The image is changed: its background goes.
    grid : of both.
    detection_sigma : of a pixel after smoothing, in units of the scatter before it.

    Returns
    -------
    Table
        The columns of `CATALOG_COLUMNS`, brightest first; ``meta`` tells ``purity`` (part of the rows without flags
        over ``purity_snr`` that are no noise, with its error) and ``error_scale``.
    """
    import sep

    scale = grid.scale_mas / 1000
    radius = APERTURE_ARCSEC / scale
    to_ujy = 1e12 * (scale / 206264.806247) ** 2
    void = ~(weight > 0)
    sky = sep.Background(science, mask=void, bw=_MESH_PX, bh=_MESH_PX, fw=3, fh=3)
    sky.subfrom(science)
    science[void] = 0
    error = np.zeros_like(science)
    np.divide(1, np.sqrt(weight, out=error), out=error, where=~void)
    ratio = np.divide(science, error, out=np.zeros_like(science), where=~void)
    some = ratio[::3, ::3][~void[::3, ::3]]
    scatter = 1.4826 * float(np.median(np.abs(some - np.median(some)))) if some.size else 0.0
    if not scatter > 0:
        return _table({name: np.empty(0) for name in CATALOG_COLUMNS}, 1.0, 1.0, 0.0)
    ratio /= np.float32(scatter)
    objects, segments = _extract(sep, ratio, void, detection_sigma)
    factor = _empty_apertures(sep, science, error, void | (segments > 0), radius)
    del segments
    columns = _measured(sep, science, error * np.float32(factor), void, objects, radius)
    # the image upside down; the same measurement, the same limit
    np.negative(ratio, out=ratio)
    false, _ = _extract(sep, ratio, void, detection_sigma)
    flux, flux_error, _ = sep.sum_circle(science, false["x"], false["y"], radius, err=error, mask=void, subpix=1)
    n_false = int(np.count_nonzero(-flux > PURITY_SNR * factor * flux_error))
    x, y = columns["x"], columns["y"]
    ra, dec = grid.sky(x, y)
    rows = {
        "id": np.zeros(x.size, int), "ra": ra, "dec": dec, "x": x, "y": y, "flux": columns["flux"] * to_ujy,
        "flux_error": columns["error"] * to_ujy, "mag": _magnitude(columns["total"] * to_ujy),
        "flux_radius": columns["radius"], "flags": columns["flags"],
    }  # fmt: skip
    # rows on the edge, where nothing can be measured, are no sources
    good = np.isfinite(rows["flux"]) & np.isfinite(rows["flux_error"]) & (rows["flux_error"] > 0)
    order = np.flatnonzero(good)
    order = order[np.lexsort((y[order], x[order], -rows["flux"][order]))]
    rows = {name: values[order] for name, values in rows.items()}
    rows["id"] = np.arange(1, order.size + 1)
    n = int(np.count_nonzero((rows["flux"] > PURITY_SNR * rows["flux_error"]) & (rows["flags"] == 0)))
    purity = 1 - min(n_false, n) / n if n else 1.0
    return _table(rows, factor, purity, np.sqrt(max(n_false, 1)) / n if n else 1.0)


def write_catalogue(table: Table, path: Path) -> None:
    """Write the catalogue as ECSV."""
    table.write(path, format="ascii.ecsv")


def _table(columns: dict[str, Any], factor: float, purity: float, error: float) -> Table:
    from astropy.table import Table

    table = Table({name: columns[name] for name in CATALOG_COLUMNS})
    table["id"], table["flags"] = table["id"].astype(int), table["flags"].astype(int)
    for name, meaning in CATALOG_COLUMNS.items():
        table[name].description = meaning
    table.meta = {
        "error_scale": round(float(factor), 4),
        "purity": round(float(purity), 4),
        "purity_error": round(float(error), 4),
        "purity_snr": PURITY_SNR,
    }
    return table


def _extract(sep: Any, ratio: Image, void: NDArray[np.bool_], sigma: float) -> tuple[Any, Any]:
    """Objects and segments of an image in units of its scatter; a crowded field takes a larger stack."""
    before = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_sub_object_limit(max(before[1], _DEBLEND_LIMIT))
    try:
        for last, stack in ((False, _PIXEL_STACKS[0]), (True, _PIXEL_STACKS[1])):
            sep.set_extract_pixstack(stack)
            try:
                return sep.extract(
                    ratio, sigma, mask=void, minarea=_LEAST_PIXELS, filter_kernel=_kernel(), filter_type="conv",
                    deblend_nthresh=32, deblend_cont=0.005, segmentation_map=True,
                )  # fmt: skip
            except Exception as error:
                # sep raises the plain class
                if last or "pixel buffer full" not in str(error):
                    raise
    finally:
        sep.set_extract_pixstack(before[0])
        sep.set_sub_object_limit(before[1])
    raise AssertionError("unreachable")


def _kernel() -> Image:
    y, x = np.indices((5, 5)) - 2.0
    return np.asarray(np.exp(-0.5 * (x**2 + y**2) * (2.3548 / _KERNEL_FWHM_PX) ** 2), np.float32)


def _measured(
    sep: Any, science: Image, error: Image, void: NDArray[np.bool_], objects: Any, radius: float
) -> dict[str, Any]:
    """Windowed places, fluxes in the contract's aperture, half-light radii and Kron fluxes."""
    x, y = objects["x"].astype(float), objects["y"].astype(float)
    if not x.size:
        return {name: np.empty(0) for name in ("x", "y", "flux", "error", "total", "radius")} | {
            "flags": np.empty(0, int)
        }
    half, _ = sep.flux_radius(science, x, y, np.maximum(6.0 * objects["a"], 6.0), 0.5, mask=void, subpix=5)
    wx, wy, lost = sep.winpos(science, x, y, np.clip(2.0 / 2.35 * half, 0.8, 10.0), mask=void)
    # a windowed centroid that wandered off has found the neighbour
    stray = (lost != 0) | ~np.isfinite(wx + wy) | (np.hypot(wx - x, wy - y) > _LARGEST_STEP_PX)
    x, y = np.where(stray, x, wx), np.where(stray, y, wy)
    flux, flux_error, flag = sep.sum_circle(science, x, y, radius, err=error, mask=void, subpix=5)
    kron = _kron(sep, science, void, objects, x, y)
    return {
        "x": x,
        "y": y,
        "flux": flux,
        "error": flux_error,
        "total": np.where(kron > 0, kron, flux),
        "radius": half,
        # SExtractor's bit for "so near to something bright that photometry is wrong"
        "flags": objects["flag"].astype(int) | flag | in_spikes(x, y, objects["flux"].astype(float)),
    }


def _kron(sep: Any, science: Image, void: NDArray[np.bool_], objects: Any, x: Array, y: Array) -> Array:
    """Kron fluxes (2.5 Kron radii, as SExtractor's MAG_AUTO); 0 where the aperture can't be had."""
    a, b = np.maximum(objects["a"], 0.5), np.maximum(objects["b"], 0.5)
    theta = np.clip(np.nan_to_num(objects["theta"]), -np.pi / 2 + 1e-6, np.pi / 2 - 1e-6)
    kron, _ = sep.kron_radius(science, x, y, a, b, theta, 6.0, mask=void)
    good = np.isfinite(kron) & (kron > 0)
    flux = np.zeros(x.size)
    size = np.clip(2.5 * kron[good], 3.5 / np.sqrt(a[good] * b[good]), 20.0)
    flux[good], _, _ = sep.sum_ellipse(
        science, x[good], y[good], a[good], b[good], theta[good], size, mask=void, subpix=1
    )
    return flux


def _empty_apertures(sep: Any, science: Image, error: Image, occupied: NDArray[np.bool_], radius: float) -> float:
    """How many times more the flux of empty apertures scatters than their errors say; at least 1."""
    step = 2 * radius + 1
    y, x = (a.ravel() for a in np.mgrid[step : science.shape[0] - step : step, step : science.shape[1] - step : step])
    # a pixel or two beyond, for the wings that segmentation leaves out
    free = sep.sum_circle(occupied.astype(np.float32), x, y, radius + 2)[0] == 0
    if np.count_nonzero(free) < _FEWEST_APERTURES:
        return 1.0
    flux, flux_error, _ = sep.sum_circle(science, x[free], y[free], radius, err=error)
    pull = flux / flux_error
    return max(1.0, float(1.4826 * np.median(np.abs(pull - np.median(pull)))))


def _magnitude(flux_ujy: Array) -> Array:
    return np.asarray(23.9 - 2.5 * np.log10(np.where(flux_ujy > 0, flux_ujy, np.nan)))
