"""From surface brightness on the detector to a count rate image with its errors and data quality.

Put here detector effects, on plain arrays. Keep out optics, files and headers. Data-quality bits and the treatment
of unusable pixels (NaN, zero variance) are those of jwst's ramp fitting.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoramic.simulate.instrument import (
    DARK_RATE,
    DETECTORS,
    FULL_WELL,
    GAIN,
    NPIX,
    REFERENCE_BORDER,
    exposure_times,
    photmjsr,
    slope_variances,
)
from panoramic.simulate.plan import generator
from panoramic.simulate.program import Effects, Readout

Image = NDArray[np.float32]
Mask = NDArray[np.uint32]

DO_NOT_USE, SATURATED, JUMP_DET = 1, 2, 4
DEAD, HOT, LOW_QE, OTHER_BAD_PIXEL, NO_FLAT_FIELD = 1 << 10, 1 << 11, 1 << 13, 1 << 30, 1 << 18
REFERENCE_PIXEL = 1 << 31
AMPLIFIERS = 4
NOMINAL_EXPOSURE_S = 945.0

# centre x, y and radius, *pixels*, of the wisps on the four detectors that see them
WISP_PLACES = {
    "nrca3": (680, 1680, 280),
    "nrca4": (690, 190, 250),
    "nrcb3": (1120, 290, 360),
    "nrcb4": (1290, 1480, 420),
}


@dataclass
class RateImage:
    """A count rate image: ``sci``, ``err`` (*DN/s*), ``var_poisson``, ``var_rnoise`` (*(DN/s)^2*), ``dq`` (bits)."""

    sci: Image
    err: Image
    var_poisson: Image
    var_rnoise: Image
    dq: Mask


def smooth_noise(rng: np.random.Generator, cells: int) -> Image:
    """Unit-variance noise without structure below NPIX / cells pixels, shape (NPIX, NPIX)."""
    from scipy.ndimage import zoom

    coarse = rng.normal(size=(cells + 1, cells + 1)).astype(np.float32)
    out = zoom(coarse, NPIX / (cells + 1), order=3, grid_mode=True, mode="nearest").astype(np.float32)
    return (out - out.mean()) / out.std()


def reference_border() -> NDArray[np.bool_]:
    """The reference pixels of a full frame."""
    out = np.ones((NPIX, NPIX), bool)
    out[REFERENCE_BORDER:-REFERENCE_BORDER, REFERENCE_BORDER:-REFERENCE_BORDER] = False
    return out


@functools.lru_cache(maxsize=2)
def flat_field(seed: int, detector: str, band: str, structure: float) -> Image:
    """The reference flat: large-scale structure of a filter, pixel-to-pixel structure of the detector; mean 1."""
    pixel = generator(seed, "flat", detector)
    large = generator(seed, "flat", detector, band)
    out = 1.0 + structure * (0.8 * smooth_noise(large, 4) + 0.5 * smooth_noise(pixel, 40))
    out *= 1.0 + 0.006 * pixel.standard_normal((NPIX, NPIX), dtype=np.float32)
    # The sensitivity of a few pixels is low, but they are usable.
    rows, columns = pixel.integers(0, NPIX, (2, 800))
    out[rows, columns] *= pixel.uniform(0.7, 0.95, 800).astype(np.float32)
    return (out / np.median(out)).astype(np.float32)


@functools.lru_cache(maxsize=2)
def static_bad_pixels(seed: int, detector: str) -> tuple[Mask, Image]:
    """Flags that never change, and the excess rate (*DN/s*) of warm pixels that are not flagged."""
    rng = generator(seed, "bad pixels", detector)
    dq = np.zeros((NPIX, NPIX), np.uint32)
    excess = np.zeros((NPIX, NPIX), np.float32)
    for flag, count in ((DEAD, 3500), (HOT, 9000), (LOW_QE | OTHER_BAD_PIXEL, 1500)):
        y, x = rng.integers(0, NPIX, (2, count))
        dq[y, x] |= flag | DO_NOT_USE
    for _ in range(12):
        y, x, r = *rng.integers(0, NPIX, 2), rng.integers(2, 7)
        dq[max(0, y - r) : y + r, max(0, x - r) : x + r] |= OTHER_BAD_PIXEL | DO_NOT_USE
    y, x = rng.integers(0, NPIX, (2, 700))
    excess[y, x] = rng.exponential(0.15, 700)
    excess[dq != 0] = 0.0
    return dq, excess


@functools.lru_cache(maxsize=2)
def wisp_template(detector: str) -> Image:
    """Surface brightness of a detector's wisps, peak 1, shape (NPIX, NPIX); zeros where there are none."""
    out = np.zeros((NPIX, NPIX), np.float32)
    if detector not in WISP_PLACES:
        return out
    cx, cy, radius = WISP_PLACES[detector]
    rng = generator(0, "wisp", detector)
    y, x = np.mgrid[:NPIX, :NPIX].astype(np.float32)
    for _ in range(6):
        angle = rng.normal(0.9, 0.25)
        px, py = cx + rng.normal(0, 0.3) * radius, cy + rng.normal(0, 0.3) * radius
        along = (x - px) * np.cos(angle) + (y - py) * np.sin(angle)
        across = -(x - px) * np.sin(angle) + (y - py) * np.cos(angle) + 0.25 * along**2 / radius
        out += rng.uniform(0.4, 1.0) * np.exp(
            -0.5 * (along / (0.5 * radius)) ** 2 - 0.5 * (across / (0.16 * radius)) ** 2
        )
    out *= np.clip(1.5 - np.hypot(x - cx, y - cy) / radius, 0, 1)
    return out / out.max()


def stripes(rng: np.random.Generator, rms: float, amplifier_share: float) -> Image:
    """1/f noise of one exposure: rows share a term, each amplifier adds its own.

    Parameters
    ----------
    rng : random numbers.
    rms : of the whole, *DN/s*.
    amplifier_share : of the variance.

    Returns
    -------
    array, shape (NPIX, NPIX)
        Constant along the fast read direction (x) inside an amplifier's 512 columns.
    """
    frequency = np.fft.rfftfreq(NPIX)
    frequency[0] = frequency[1]
    # The side reference pixels took away drifts over more than some hundred rows.
    amplitude = frequency**1.5 / (frequency**2 + (1 / 250) ** 2)

    def series() -> NDArray[np.float64]:
        spectrum = rng.normal(size=(2, len(frequency))) * amplitude
        out = np.fft.irfft(spectrum[0] + 1j * spectrum[1], NPIX)
        # The bias of a whole frame is removed by the reference pixels.
        out -= out.mean()
        return out / out.std()

    out = np.repeat((rms * (1 - amplifier_share) ** 0.5 * series())[:, None], NPIX, axis=1)
    width = NPIX // AMPLIFIERS
    for k in range(AMPLIFIERS):
        out[:, k * width : (k + 1) * width] += (rms * amplifier_share**0.5 * series())[:, None]
    return out.astype(np.float32)


def expose(
    surface_brightness: Image,
    detector: str,
    band: str,
    readout: Readout,
    effects: Effects,
    seed: int,
    rng: np.random.Generator,
) -> RateImage:
    """The count rate image of one exposure.

    Parameters
    ----------
    surface_brightness : *MJy/sr*, sky and scattered light, shape (NPIX, NPIX).
    detector, band : lower-case detector, imaging filter.
    readout, effects : of the simulation.
    seed : of what does not change between exposures (flat, bad pixels).
    rng : of this exposure.
    """
    channel = DETECTORS[detector].channel
    gain, times = GAIN[channel], exposure_times(readout.readpatt, readout.ngroups, readout.nints)
    flat = flat_field(seed, detector, band, effects.flat_structure)
    rate = surface_brightness * (flat / np.float32(photmjsr(detector, band)))
    if effects.flat_error:
        # What the reference flat has wrong belongs to the detector and is the same in each exposure.
        wrong = generator(seed, "flat error", detector, band).standard_normal((NPIX, NPIX), dtype=np.float32)
        rate *= 1 + np.float32(effects.flat_error) * wrong
    np.maximum(rate, 0, out=rate)

    dq = np.zeros((NPIX, NPIX), np.uint32)
    if effects.bad_pixels:
        bad, excess = static_bad_pixels(seed, detector)
        dq |= bad
        rate += excess

    per_rate, read = slope_variances(channel, readout.readpatt, readout.ngroups, readout.nints)
    var_rnoise = np.full((NPIX, NPIX), read, np.float32)
    poisson_factor = np.full((NPIX, NPIX), per_rate, np.float32)
    if effects.saturation:
        _saturate(rate * gain, channel, readout, dq, poisson_factor, var_rnoise)
    leftovers = _cosmic_rays(rng, effects, times.exposure, per_rate, read, dq, poisson_factor, var_rnoise)
    leftovers += _snowballs(rng, effects, times.exposure, dq, poisson_factor, var_rnoise)

    dark = np.float32(DARK_RATE[channel] / gain)
    sci = rate + leftovers
    if effects.noise:
        noise = rng.standard_normal((NPIX, NPIX), dtype=np.float32)
        noise *= np.sqrt(poisson_factor * (rate + dark) + var_rnoise)
        sci += noise
    if effects.one_over_f:
        rms = effects.one_over_f * (NOMINAL_EXPOSURE_S / times.exposure) ** 0.5
        sci += stripes(rng, rms, effects.amplifier_share)
    # As in jwst's ramp fitting the Poisson variance comes from the measured rate, not from the true one.
    var_poisson = poisson_factor * (np.maximum(sci, 0) + dark)

    if effects.reference_pixels:
        dq[reference_border()] |= np.uint32(REFERENCE_PIXEL | DO_NOT_USE)
    unusable = (dq & DO_NOT_USE) != 0
    sci[unusable] = np.nan
    var_poisson[unusable] = 0.0
    var_rnoise[unusable] = 0.0
    return RateImage(sci, np.sqrt(var_poisson + var_rnoise), var_poisson, var_rnoise, dq)


def _saturate(
    electrons: Image, channel: str, readout: Readout, dq: Mask, poisson_factor: Image, var_rnoise: Image
) -> None:
    """Flag pixels that fill their well; fewer groups are left for their slope, none in the middle of bright stars."""
    times = exposure_times(readout.readpatt, readout.ngroups, readout.nints)
    y, x = np.nonzero(electrons * times.integration > FULL_WELL[channel])
    filled_after = FULL_WELL[channel] / electrons[y, x]
    groups = np.floor((filled_after - times.first_group) / times.group).astype(int) + 1
    dq[y, x] |= SATURATED
    lost = groups < 2
    dq[y[lost], x[lost]] |= DO_NOT_USE
    for left in np.unique(groups[~lost]):
        here = groups == left
        factor, read = slope_variances(channel, readout.readpatt, int(min(left, readout.ngroups)), readout.nints)
        poisson_factor[y[here], x[here]], var_rnoise[y[here], x[here]] = factor, read


def _cosmic_rays(
    rng: np.random.Generator,
    effects: Effects,
    exposure_s: float,
    per_rate: float,
    read: float,
    dq: Mask,
    poisson_factor: Image,
    var_rnoise: Image,
) -> Image:
    """Flag the hits that were found, which cost part of the ramp; return what the missed ones left, *DN/s*."""
    out = np.zeros((NPIX, NPIX), np.float32)
    hits = rng.poisson(effects.cosmic_rays_per_ks * exposure_s / 1000 / 4)
    y, x = rng.integers(0, NPIX, (2, hits))
    angle, length = rng.uniform(0, np.pi, hits), rng.exponential(1.6, hits)
    missed = rng.uniform(size=hits) < effects.cosmic_ray_leftovers
    sigma = (per_rate * 0.5 + read) ** 0.5
    energy = np.where(missed, rng.exponential(14.0, hits) * sigma, 0.0)
    split = rng.uniform(1.3, 4.0, hits)
    for step in range(6):
        here = length >= step - 1
        px = np.clip(np.rint(x + step * np.cos(angle)), 0, NPIX - 1).astype(int)[here]
        py = np.clip(np.rint(y + step * np.sin(angle)), 0, NPIX - 1).astype(int)[here]
        found = ~missed[here]
        dq[py[found], px[found]] |= JUMP_DET
        # A ramp cut in two: the more even the cut, the larger the variance of the slope.
        var_rnoise[py[found], px[found]] = read * split[here][found] ** 1.5
        poisson_factor[py[found], px[found]] = per_rate * (1 + 0.15 * split[here][found])
        out[py, px] += energy[here]
    return out


def _snowballs(
    rng: np.random.Generator, effects: Effects, exposure_s: float, dq: Mask, poisson_factor: Image, var_rnoise: Image
) -> Image:
    """Round events: a saturated core, a ring flagged as jump, a faint halo that no flag covers, *DN/s*."""
    out = np.zeros((NPIX, NPIX), np.float32)
    for _ in range(rng.poisson(effects.snowballs_per_ks * exposure_s / 1000)):
        cx, cy = rng.uniform(0, NPIX, 2)
        radius, glow = float(np.clip(rng.lognormal(2.2, 0.5), 5, 45)), rng.uniform(0.01, 0.06)
        reach = int(3 * radius) + 1
        x0, x1 = max(0, int(cx) - reach), min(NPIX, int(cx) + reach + 1)
        y0, y1 = max(0, int(cy) - reach), min(NPIX, int(cy) + reach + 1)
        r = np.hypot(np.arange(x0, x1) - cx, (np.arange(y0, y1) - cy)[:, None])
        box = np.s_[y0:y1, x0:x1]
        dq[box][r < radius] |= JUMP_DET
        dq[box][r < 0.45 * radius] |= SATURATED
        poisson_factor[box][r < radius] *= 1.6
        var_rnoise[box][r < radius] *= 4.0
        out[box] += (glow * np.exp(-0.5 * (r / (1.1 * radius)) ** 2)).astype(np.float32)
    return out
