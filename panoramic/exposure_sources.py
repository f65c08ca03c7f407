"""Sources of one calibrated exposure, for measuring its alignment: positions on detector and sky with their errors.

Put here what finds and places them on the products of an engine (``reduction/base.py``), with no help of the engine's
own catalogue. Keep out matching (``alignment_solution.py``) and photometry that anybody publishes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# the narrowest star is 1.3 px (F115W, short wave; jwst-docs "NIRCam Point Spread Functions"); wider kernels blend
_KERNEL_FWHM_PX = 1.6
_THRESHOLD_SIGMA = 4.0
_MINIMUM_SNR = 8.0
_MESH_PX = 64
_APERTURE_PX = 3.0
# undersampling and pixels' own sensitivity leave this much in a centroid, however bright the star
_FLOOR_PX = 0.02
# of a galaxy's half-light radius: dust and clumps move its centre by a few per cent of it from filter to filter
_SHAPE_PART = 0.05
# of a Gaussian
_HALF_LIGHT_PER_SIGMA = 1.1774
_LARGEST_STEP_PX = 1.5
# sep's flags of an aperture outside of the image, all masked, or without light; single masked pixels do no harm
_LOST = 0x0010 | 0x0040 | 0x0080
# what is sharper is a bad pixel or a cosmic ray, what is larger has no centroid to speak of
_FLUX_RADIUS_PX = (0.55, 12.0)
_BORDER_PX = 6
# how many of the brightest have spikes to speak of, how much brighter they are than pieces of these, and the pieces'
# part of the light times the squared distance in pixels
_SPIKED, _SPIKED_RATIO, _SPIKE_LIGHT = 100, 30.0, 5.0
_MOST = 2500
# a crowded field fills the detector; the stack is memory that is really used
_PIXEL_STACKS = (500_000, 5_000_000)
_DEBLEND_LIMIT = 16_384


_COLUMNS = ("x", "y", "ra", "dec", "error_mas", "shape_error_mas", "mag")


@dataclass(frozen=True)
class ExposureSources:
    """Sources of one exposure, brightest first.

    Parameters
    ----------
    dataset : the exposure.
    x, y : 0-based detector pixels, shape (N,).
    ra, dec : deg, by the WCS of the product's header.
    error_mas : standard error per axis of the centroid.
    shape_error_mas : what another filter or telescope may see elsewhere of an extended source, per axis.
    mag : AB magnitude in an aperture of 3 px, without correction; NaN where the header has no flux scale.
    footprint : (4, 2) RA and Dec of the detector's corners, deg.
    centre : RA and Dec of its middle, deg.
    pixel_scale_mas : mean of both axes.
    shape : of the detector, (rows, columns).
    """

    dataset: str
    x: np.ndarray
    y: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    error_mas: np.ndarray
    shape_error_mas: np.ndarray
    mag: np.ndarray
    footprint: np.ndarray
    centre: tuple[float, float]
    pixel_scale_mas: float
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.x)

    def without(self, rows: np.ndarray) -> ExposureSources:
        """The same less some rows (boolean, shape (N,))."""
        keep = ~rows
        columns = {name: getattr(self, name)[keep] for name in _COLUMNS}
        return replace(self, **columns)


@dataclass(frozen=True)
class Detections:
    """What was found on a detector, brightest first: 0-based pixels, centroid error per axis, half-light radius (px).

    ``flux`` is that of an aperture of 3 px.
    """

    x: np.ndarray
    y: np.ndarray
    error_px: np.ndarray
    radius_px: np.ndarray
    flux: np.ndarray


def find_exposure_sources(path: Path, dataset: str) -> ExposureSources:
    """Find the sources of a calibrated exposure; see `detect_sources`.

    Parameters
    ----------
    path : a product ``{dataset}_rate.fits`` with the planes ``SCI``, ``WHT``.

    Raises
    ------
    OSError, KeyError
        It does not open, or has no such plane.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    with fits.open(path) as hdus:
        header = hdus["SCI"].header
        data = np.ascontiguousarray(hdus["SCI"].data, np.float32)
        weight = np.asarray(hdus["WHT"].data, np.float32)
    wcs = WCS(header, relax=True, fix=False)

    def sky(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ra, dec = wcs.all_pix2world(x, y, 0)
        return ra % 360, dec

    found = detect_sources(data, weight, ~(weight > 0) | ~np.isfinite(data))
    return on_sky(found, dataset, sky, (data.shape[0], data.shape[1]), pixel_scale_mas(wcs), header.get("PIXAR_SR"))


def detect_sources(data: np.ndarray, weight: np.ndarray, unusable: np.ndarray) -> Detections:
    """Find the sources of an image.

    Windowed centroids (Bertin & Arnouts 1996; SExtractor's XWIN_IMAGE as sep computes them) of what stands 4 sigma
    above the background in the smoothed image. The error is sqrt(2) sigma over S/N, of a Gaussian in front of a
    background (King 1983, PASP 95, 163), with a floor of 0.02 px. What has an unusable pixel near its middle, lies at
    the border, is sharper than a star, or may be a piece of a bright star's spikes, is left out.

    Parameters
    ----------
    data : float32, (rows, columns); its background is taken from it in place.
    weight : inverse variance.
    unusable : boolean.
    """
    import sep

    data[unusable] = 0.0
    table = _detect(sep, data, weight, unusable)
    x, y, error, radius, good = _place(sep, data, unusable, table)
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(-table["flux"][rows], kind="stable")][:_MOST]
    return Detections(x[rows], y[rows], np.hypot(error[rows], _FLOOR_PX), radius[rows], table["flux"][rows])


def on_sky(
    found: Detections,
    dataset: str,
    sky: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int],
    scale_mas: float,
    pixel_area_sr: float | None,
) -> ExposureSources:
    """Detections with their places on the sky.

    Parameters
    ----------
    sky : from 0-based pixels to RA and Dec, deg.
    shape : of the detector, (rows, columns).
    scale_mas : its pixel scale.
    pixel_area_sr : nominal solid angle of a pixel of an image in MJy/sr; None where it is unknown.
    """
    nothing = np.empty(0)
    ra, dec = sky(found.x, found.y) if found.x.size else (nothing, nothing)
    middle = sky(np.array([(shape[1] - 1) / 2]), np.array([(shape[0] - 1) / 2]))
    return ExposureSources(
        dataset=dataset,
        x=found.x,
        y=found.y,
        ra=ra,
        dec=dec,
        error_mas=found.error_px * scale_mas,
        shape_error_mas=_shape_error(found.radius_px) * scale_mas,
        mag=_magnitude(found.flux, pixel_area_sr),
        footprint=np.column_stack(sky(*_corners(shape))),
        centre=(float(middle[0][0]), float(middle[1][0])),
        pixel_scale_mas=scale_mas,
        shape=shape,
    )


def _shape_error(radius: np.ndarray) -> np.ndarray:
    """Standard deviation per axis of a centroid from one filter to another: a part of what is wider than a star."""
    if radius.size == 0:
        return radius
    star = np.percentile(radius, 10)
    return _SHAPE_PART * np.sqrt(np.maximum(radius**2 - star**2, 0.0))


def pixel_scale_mas(wcs: Any) -> float:
    """Mean pixel scale of a WCS, mas."""
    from astropy.wcs.utils import proj_plane_pixel_area

    return float(np.sqrt(proj_plane_pixel_area(wcs.celestial)) * 3.6e6)


def _corners(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the outermost pixels, 0-based, counted about the detector."""
    high_x, high_y = shape[1] - 0.5, shape[0] - 0.5
    return np.array([-0.5, high_x, high_x, -0.5]), np.array([-0.5, -0.5, high_y, high_y])


def _kernel() -> np.ndarray:
    axis = np.arange(-2, 3)
    sigma = _KERNEL_FWHM_PX / 2.3548
    kernel = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * sigma**2))
    return np.asarray(kernel / kernel.sum(), np.float32)


def _detect(sep: Any, data: np.ndarray, weight: np.ndarray, unusable: np.ndarray) -> dict[str, np.ndarray]:
    """What sep extracts: place, size and flux in arrays of equal length."""
    background = sep.Background(data, mask=unusable, bw=_MESH_PX, bh=_MESH_PX, fw=3, fh=3)
    background.subfrom(data)
    data[unusable] = 0.0
    noise = np.where(unusable, 0, 1 / np.sqrt(np.where(unusable, 1, weight))).astype(np.float32)
    # weights know read noise and background alone; what stripes leave is seen in the image itself
    seen = float(np.median(np.abs(data[~unusable][::7]))) * 1.4826 if (~unusable).any() else 0.0
    stated = float(np.median(noise[~unusable])) if (~unusable).any() else 1.0
    noise *= np.float32(max(1.0, seen / stated)) if stated > 0 else np.float32(1.0)
    found = _extract(sep, data, noise, unusable)
    x, y = found["x"].astype(float), found["y"].astype(float)
    flux, error, _ = sep.sum_circle(data, x, y, _APERTURE_PX, err=noise, mask=unusable, subpix=5)
    error = np.where(error > 0, error, np.inf) * _aperture_excess(sep, data, noise, unusable)
    return {
        "x": x,
        "y": y,
        "a": found["a"].astype(float),
        "flux": np.asarray(flux, float),
        "snr": np.asarray(flux / error, float),
        "spike": in_spikes(x, y, found["flux"].astype(float)),
    }


def _extract(sep: Any, data: np.ndarray, noise: np.ndarray, unusable: np.ndarray) -> Any:
    """What stands out of the smoothed image, in units of its noise; a crowded field takes a larger stack."""
    # smoothing an image in units of its noise takes half as long as smoothing both
    ratio = np.divide(data, noise, out=np.zeros_like(data), where=~unusable)
    kernel = _kernel()
    threshold = _THRESHOLD_SIGMA * float(np.sqrt(np.sum(kernel**2)))
    before = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    sep.set_sub_object_limit(max(before[1], _DEBLEND_LIMIT))
    try:
        for stack in _PIXEL_STACKS:
            sep.set_extract_pixstack(max(before[0], stack))
            try:
                return sep.extract(
                    ratio, threshold, mask=unusable, minarea=3, filter_kernel=kernel, filter_type="conv",
                    deblend_cont=0.005,
                )  # fmt: skip
            except Exception as error:
                # sep raises the plain class
                if stack == _PIXEL_STACKS[-1] or "pixel buffer full" not in str(error):
                    raise
    finally:
        sep.set_extract_pixstack(before[0])
        sep.set_sub_object_limit(before[1])


def in_spikes(x: np.ndarray, y: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Detections that may be nothing but a piece of a bright source's diffraction spikes or halo.

    Diffraction falls with the square of the distance: a piece at d pixels holds up to 5 / d^2 of the source's light
    (in simulated F115W to F444W, three quarters of the pieces lie below, and one in fifteen real sources).

    Parameters
    ----------
    x, y : pixels, shape (N,).
    flux : isophotal, any unit, shape (N,).
    """
    piece = np.zeros(len(x), bool)
    for k in np.argsort(-flux, kind="stable")[:_SPIKED]:
        fainter = flux * _SPIKED_RATIO < flux[k]
        if not fainter.any():
            break
        piece |= fainter & (flux * ((x - x[k]) ** 2 + (y - y[k]) ** 2) < _SPIKE_LIGHT * flux[k])
    return piece


def _aperture_excess(sep: Any, data: np.ndarray, noise: np.ndarray, unusable: np.ndarray) -> float:
    """How much more apertures scatter than single pixels' noise says: what is left of stripes is common to many."""
    y, x = (a.ravel().astype(float) for a in np.mgrid[20 : data.shape[0] - 20 : 37, 20 : data.shape[1] - 20 : 37])
    flux, error, flag = sep.sum_circle(data, x, y, _APERTURE_PX, err=noise, mask=unusable, subpix=1)
    clean = (flag == 0) & (error > 0)
    if np.count_nonzero(clean) < 100:
        return 1.0
    ratio = flux[clean] / error[clean]
    # sources raise some of them: the lower half of the distribution is the sky's
    low, middle = np.percentile(ratio, [15.87, 50])
    return max(1.0, float(middle - low))


def _place(
    sep: Any, data: np.ndarray, unusable: np.ndarray, table: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windowed centroids, their errors and half-light radii in pixels, and which rows are good enough to be matched."""
    x, y = table["x"], table["y"]
    if x.size == 0:
        return x, y, x, x, np.zeros(0, bool)
    radius, _ = sep.flux_radius(data, x, y, 6.0 * np.maximum(table["a"], 1.0), 0.5, mask=unusable, subpix=5)
    window = np.clip(radius, 0.6, 6.0) * 2 / 2.3548
    wx, wy, flag = sep.winpos(data, x, y, window, mask=unusable)
    # a window that slides to a neighbour places nothing: the isophotal barycentre stands
    wandered = ~np.isfinite(wx) | ~np.isfinite(wy) | (np.hypot(wx - x, wy - y) > _LARGEST_STEP_PX) | (flag & _LOST != 0)
    wx, wy = np.where(wandered, x, wx), np.where(wandered, y, wy)
    rows, columns = data.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        error = math.sqrt(2) * radius / _HALF_LIGHT_PER_SIGMA / table["snr"]
    good = (table["snr"] >= _MINIMUM_SNR) & np.isfinite(error) & (error > 0) & ~table["spike"]
    good &= (radius > _FLUX_RADIUS_PX[0]) & (radius < _FLUX_RADIUS_PX[1])
    good &= (wx > _BORDER_PX) & (wx < columns - 1 - _BORDER_PX) & (wy > _BORDER_PX) & (wy < rows - 1 - _BORDER_PX)
    # a hole in the middle (a saturated core, a cosmic ray) moves a centroid
    good &= sep.sum_circle(unusable.astype(np.float32), wx, wy, 1.5, subpix=1)[0] == 0
    return wx, wy, error, radius, good


def _magnitude(flux: np.ndarray, area: float | None) -> np.ndarray:
    """AB magnitude of fluxes in MJy/sr times pixels of a solid angle in sr."""
    if not area:
        return np.full(len(flux), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(8.9 - 2.5 * np.log10(np.where(flux > 0, flux, np.nan) * float(area) * 1e6), float)
