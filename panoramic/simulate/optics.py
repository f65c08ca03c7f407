"""The point spread function, and images of sources seen through it.

Put here optics and rendering, on plain arrays. Keep out units, noise and detector defects.

Every source is a sum of Gaussians, drawn on a canvas with `OVERSAMPLING` points per pixel; one Fourier product then
applies the PSF, the pixel's box and charge diffusion, and takes away the small Gaussian with which all of them were
drawn so that they are not aliased.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from panoramic.simulate.instrument import FILTERS, NPIX

Array = NDArray[np.float64]
OVERSAMPLING = 2
PAD = 304
"""Canvas points beyond each edge of the detector: sources just outside, and room for the wings that leave it."""
SMOOTHING = 0.75
"""Sigma, *canvas points*, with which sources are drawn; removed again by the transfer function."""
DIFFUSION_PIXELS = {"SHORT": 0.24, "LONG": 0.22}
"""Sigma of charge diffusion and inter-pixel capacitance, *pixels*."""
PSF_POINTS = 1200
PSF_QUANTUM = 2.0**-32
CANVAS = NPIX * OVERSAMPLING + 2 * PAD
MIXTURE_SIGMAS = np.geomspace(0.015, 5.5, 14)


@functools.cache
def _pupil() -> object:
    """The segmented primary with gaps, struts and a fixed, realistic wavefront error."""
    import poppy

    primary = poppy.MultiHexagonAperture(flattoflat=1.32, gap=0.007, rings=2, center=False)
    struts = poppy.AsymmetricSecondaryObscuration(
        secondary_radius=0.0, support_angle=(0, 150, 210), support_width=(0.13, 0.13, 0.13)
    )
    # Defocus, astigmatism, coma, trefoil, spherical: about 70 nm rms in all.
    nanometres = [0, 0, 0, 20, 30, -25, 25, 20, -15, 25, 18]
    error = poppy.ZernikeWFE(coefficients=[c * 1e-9 for c in nanometres], radius=3.3)
    return poppy.CompoundAnalyticOptic([primary, struts, error], name="JWST-like")


@functools.lru_cache(maxsize=4)
def point_spread_function(band: str, pixel_scale: float) -> NDArray[np.float32]:
    """Monochromatic PSFs averaged over the filter, sampled at the canvas's points, sum 1.

    Parameters
    ----------
    band : imaging filter.
    pixel_scale : detector pixel, *arcsec*.

    Returns
    -------
    array, shape (PSF_POINTS, PSF_POINTS)
        Centred on index PSF_POINTS // 2.
    """
    import poppy

    width = {"W": 0.1, "2": 0.22, "M": 0.04, "N": 0.0}[band[-1]]
    pivot = FILTERS[band].pivot * 1e-6
    wavelengths = [pivot] if width == 0 else [pivot * (1 - width), pivot, pivot * (1 + width)]
    system = poppy.OpticalSystem(npix=768, oversample=1, pupil_diameter=6.6)
    system.add_pupil(_pupil())
    # An odd number of points puts the peak on a point.
    system.add_detector(pixelscale=pixel_scale / OVERSAMPLING, fov_pixels=PSF_POINTS - 1, oversample=1)
    total = np.zeros((PSF_POINTS - 1, PSF_POINTS - 1))
    for wavelength in wavelengths:
        total += system.calc_psf(wavelength=wavelength, normalize="first")[0].data / len(wavelengths)
    out = np.zeros((PSF_POINTS, PSF_POINTS), np.float32)
    # poppy's matrix products differ in their last bits from call to call; equal archives have equal bytes.
    out[1:, 1:] = np.round(total / total.sum() / PSF_QUANTUM) * PSF_QUANTUM
    return out


def transfer_function(
    band: str, channel: str, pixel_scale: float, smear_pixels: tuple[float, float] | None = None
) -> NDArray[np.complex64]:
    """What turns the canvas, as `draw` makes it, into pixel values: its Fourier transform's factor.

    Parameters
    ----------
    band : imaging filter.
    channel : ``SHORT`` or ``LONG``.
    pixel_scale : detector pixel, *arcsec*.
    smear_pixels : x and y extent of a linear drift during the exposure, *pixels*.

    Returns
    -------
    array, shape (CANVAS, CANVAS // 2 + 1)
    """
    out = _transfer(band, channel, round(pixel_scale, 6))
    if smear_pixels is None:
        return out
    fx, fy = _frequencies()
    drift = np.sinc(fx * smear_pixels[0] * OVERSAMPLING + fy * smear_pixels[1] * OVERSAMPLING)
    return (out * drift).astype(np.complex64)


def _frequencies() -> tuple[Array, Array]:
    """Cycles per canvas point along x (last axis, half of it) and y."""
    return np.fft.rfftfreq(CANVAS)[None, :], np.fft.fftfreq(CANVAS)[:, None]


@functools.lru_cache(maxsize=2)
def _transfer(band: str, channel: str, pixel_scale: float) -> NDArray[np.complex64]:
    from scipy import fft

    psf = np.zeros((CANVAS, CANVAS), np.float32)
    psf[:PSF_POINTS, :PSF_POINTS] = point_spread_function(band, pixel_scale)
    psf = np.roll(psf, (-(PSF_POINTS // 2), -(PSF_POINTS // 2)), axis=(0, 1))
    out = fft.rfft2(psf)
    fx, fy = _frequencies()
    sigma = DIFFUSION_PIXELS[channel] * OVERSAMPLING
    row = np.sinc(fx * OVERSAMPLING) * np.exp(-2 * np.pi**2 * (sigma**2 - SMOOTHING**2) * fx**2)
    column = np.sinc(fy * OVERSAMPLING) * np.exp(-2 * np.pi**2 * (sigma**2 - SMOOTHING**2) * fy**2)
    # The canvas holds flux per point; a pixel's box average is per point too, so the sum needs this factor.
    out *= (OVERSAMPLING**2 * row).astype(np.float32)
    out *= column.astype(np.float32)
    # Coma moves the core: take that out, so that a source is where a windowed centroid finds it, in every filter.
    dx, dy = _windowed_centroid(point_spread_function(band, pixel_scale))
    out *= np.exp(2j * np.pi * fx * dx).astype(np.complex64)
    out *= np.exp(2j * np.pi * fy * dy).astype(np.complex64)
    return out


def _windowed_centroid(psf: NDArray[np.float32], sigma: float = 2.0 * OVERSAMPLING) -> tuple[float, float]:
    """Offset of the core from the middle, *canvas points*, in a Gaussian window that follows it."""
    half = 30
    middle = PSF_POINTS // 2
    core = psf[middle - half : middle + half + 1, middle - half : middle + half + 1]
    grid = np.arange(-half, half + 1.0)
    x = y = 0.0
    for _ in range(20):
        window = core * np.exp(-0.5 * ((grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2) / sigma**2)
        # The window halves the apparent offset of a core of its own width: go twice the way.
        x += 2 * float((window * (grid[None, :] - x)).sum() / window.sum())
        y += 2 * float((window * (grid[:, None] - y)).sum() / window.sum())
    return x, y


def observe(canvas: NDArray[np.float32], transfer: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Pixel values, shape (NPIX, NPIX), of a canvas drawn by `draw`."""
    from scipy import fft

    image = fft.irfft2(fft.rfft2(canvas) * transfer, s=canvas.shape, overwrite_x=True)
    edge = slice(PAD, PAD + NPIX * OVERSAMPLING, OVERSAMPLING)
    return np.ascontiguousarray(image[edge, edge], dtype=np.float32)


@functools.lru_cache(maxsize=64)
def sersic_mixture(n: float) -> tuple[Array, Array]:
    """Gaussians that add up to a Sersic profile of unit flux and half-light radius 1, cut at 8 radii.

    Parameters
    ----------
    n : Sersic index.

    Returns
    -------
    (array, array)
        Weights (their sum is 1) and sigmas in units of the half-light radius.
    """
    from scipy.optimize import nnls
    from scipy.special import gammaincinv

    b = gammaincinv(2 * n, 0.5)
    r = np.geomspace(0.01, 8.0, 200)
    profile = np.exp(-b * (r ** (1 / n) - 1)) * np.clip((8.0 - r) / 2.0, 0.0, 1.0)
    ring = np.gradient(r) * 2 * np.pi * r
    profile /= (profile * ring).sum()
    basis = np.exp(-0.5 * (r[:, None] / MIXTURE_SIGMAS) ** 2) / (2 * np.pi * MIXTURE_SIGMAS**2)
    # Weighted by the area of a ring, so that the light and not the centre's peak is fitted.
    weight = r**1.5
    amplitudes, _ = nnls(basis * weight[:, None], profile * weight, maxiter=2000)
    used = amplitudes > 1e-3 * amplitudes.sum()
    return amplitudes[used] / amplitudes[used].sum(), MIXTURE_SIGMAS[used]


def new_canvas() -> NDArray[np.float32]:
    """An empty canvas."""
    return np.zeros((CANVAS, CANVAS), np.float32)


def draw(
    canvas: NDArray[np.float32], x: float, y: float, flux: float, covariance: Array, weights: Array, sigmas: Array
) -> None:
    """Add one source to the canvas.

    Parameters
    ----------
    canvas : shape (CANVAS, CANVAS), changed in place.
    x, y : 0-based detector pixels.
    flux : sum of its pixels.
    covariance : shape (2, 2), *pixels^2*: of a Gaussian with a sigma of one half-light radius; zeros for a star.
    weights, sigmas : its mixture; for a star one component of sigma 0.
    """
    cx, cy = x * OVERSAMPLING + PAD, y * OVERSAMPLING + PAD
    for weight, sigma in zip(weights, sigmas, strict=True):
        a = covariance[0, 0] * (sigma * OVERSAMPLING) ** 2 + SMOOTHING**2
        b = covariance[1, 1] * (sigma * OVERSAMPLING) ** 2 + SMOOTHING**2
        c = covariance[0, 1] * (sigma * OVERSAMPLING) ** 2
        reach = 5.0 if weight * flux > 1e-3 else 4.0
        x0, x1 = max(0, int(cx - reach * a**0.5)), min(CANVAS, int(cx + reach * a**0.5) + 2)
        y0, y1 = max(0, int(cy - reach * b**0.5)), min(CANVAS, int(cy + reach * b**0.5) + 2)
        if x0 >= x1 or y0 >= y1:
            continue
        det = a * b - c * c
        dx, dy = (np.arange(x0, x1) - cx).astype(np.float32), (np.arange(y0, y1) - cy).astype(np.float32)[:, None]
        exponent = (-0.5 * b / det * dx**2) + (-0.5 * a / det * dy**2)
        if c != 0.0:
            exponent += (c / det * dy) * dx
        canvas[y0:y1, x0:x1] += np.exp(exponent) * np.float32(weight * flux / (2 * np.pi * det**0.5))
