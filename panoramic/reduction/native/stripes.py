"""The 1/f noise of the readout: stripes along the fast direction, measured beside the sources and taken away.

Put here stripes in detector units, on plain arrays. Keep out what finds the sources (`background.py`).

Each row has a term common to all amplifiers, each amplifier adds its own, and its even and odd columns may differ.
Clipped means per row, amplifier and column parity beside the sources are the data. Their power spectra, between
amplifiers and inside them, tell how much of each frequency is stripes and how much the pixels' own noise; the best
linear estimate with these spectra as prior (a Wiener filter that knows of missing rows) then shrinks every term by its
own noise, and is zero where there are no stripes. What is higher than `HIGH_PASS_ROWS`, half a period, is left to the
background: there stripes can't be told from the sky, and big galaxies keep their light. Parity has no such limit: no
sky has it.

Stripes are added by the electronics, behind the flat: give ``(image - plane of the sky) * flat`` and take away
``stripes.image() / flat``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError

Series = NDArray[np.float64]

HIGH_PASS_ROWS = 200
_CLIP_SIGMA = 2.5
_LEAST_PIXELS = 24
_MODES_PER_BIN = 6
_TOLERANCE = 1e-4
# what clipping Gaussian noise at 2.5 sigma takes from the variance, and adds to the variance of the mean
_CLIPPED_MEAN_VARIANCE = 1.03


@dataclass(frozen=True)
class Stripes:
    """What the readout added to an image, in the image's units.

    Parameters
    ----------
    row : (rows,), the term that all amplifiers share.
    amplifier : (amplifiers, rows), what each adds to it.
    parity : (amplifiers, rows), added to even columns, taken from odd ones.
    columns : of the image.
    error : predicted rms error of the sum of the terms that were subtracted.
    """

    row: NDArray[np.float32]
    amplifier: NDArray[np.float32]
    parity: NDArray[np.float32]
    columns: int
    error: float

    def image(self) -> NDArray[np.float32]:
        """The stripes as an image, (rows, columns)."""
        amplifiers, rows = self.amplifier.shape
        out = np.empty((rows, amplifiers, self.columns // amplifiers), np.float32)
        out[:] = (self.row + self.amplifier).T[:, :, None]
        if self.parity.any():
            out[:, :, 0::2] += self.parity.T[:, :, None]
            out[:, :, 1::2] -= self.parity.T[:, :, None]
        return out.reshape(rows, self.columns)

    @property
    def rms(self) -> float:
        """Rms of the common and the amplifiers' terms together."""
        return float(np.std(self.row + self.amplifier, dtype=np.float64))


def measure_stripes(
    image: NDArray[np.float32],
    masked: NDArray[np.bool_],
    *,
    amplifiers: int = 4,
    high_pass_rows: float = HIGH_PASS_ROWS,
    odd_even: bool = True,
) -> Stripes:
    """Measure the stripes of an image in detector units.

    Parameters
    ----------
    image : (rows, columns), less a smooth sky, before the flat (any unit; NaN is left out).
    masked : sources and unusable pixels, (rows, columns).
    amplifiers : that share the columns evenly.
    high_pass_rows : height, *rows*, of a stripe of which half is left in the image; infinite: no limit.
    odd_even : measure the difference between even and odd columns.

    Returns
    -------
    Stripes
        All zeros where nothing can be measured (no usable pixel).

    Raises
    ------
    InputError
        The shapes differ, or the columns can't be shared among the amplifiers.
    """
    rows, columns = image.shape
    if masked.shape != image.shape:
        raise InputError(f"the mask's shape {masked.shape} is not the image's {image.shape}")
    if amplifiers < 1 or columns % (2 * amplifiers):
        raise InputError(f"{columns} columns can't be shared by {amplifiers} amplifiers of even width")
    if not high_pass_rows > 2:
        raise InputError(f"high_pass_rows is {high_pass_rows}: give more than 2 rows")
    values, counts, sigma = _clipped_means(image, masked, amplifiers)
    zeros = np.zeros((amplifiers, rows), np.float32)
    if not np.isfinite(sigma).any() or np.nanmax(sigma) <= 0:
        return Stripes(zeros[0], zeros, zeros, columns, 0.0)
    variance = _CLIPPED_MEAN_VARIANCE * sigma[:, None, None] ** 2 / np.maximum(counts, 1)
    seen = (counts >= _LEAST_PIXELS) & np.isfinite(variance)
    both = seen.all(axis=2)
    level = np.where(both, values.mean(axis=2), 0.0)
    noise = np.where(both, variance.mean(axis=2) / 2, np.inf)

    def kept(frequency: Series) -> Series:
        return (
            1 - np.exp2(-((frequency * 2 * high_pass_rows) ** 4))
            if np.isfinite(high_pass_rows)
            else np.ones_like(frequency)
        )

    row, amplifier, _, error = _estimate(level, noise, kept)
    parity = zeros
    if odd_even:
        half = np.where(both, (values[:, :, 0] - values[:, :, 1]) / 2, 0.0)
        common, own, constant, more = _estimate(half, noise, np.ones_like)
        parity = (common + own + constant[:, None]).astype(np.float32)
        error = float(np.hypot(error, more))
    return Stripes(row.astype(np.float32), amplifier.astype(np.float32), parity, columns, error)


def _clipped_means(
    image: NDArray[np.float32], masked: NDArray[np.bool_], amplifiers: int
) -> tuple[Series, NDArray[np.int64], Series]:
    """Means per amplifier, row and parity, (amplifiers, rows, 2), pixels in each, and each amplifier's pixel noise."""
    image = np.ascontiguousarray(image, np.float32)
    masked = np.ascontiguousarray(masked, np.bool_)
    sigma = np.full(amplifiers, np.nan)
    spread = _row_scatter(image, masked, amplifiers, max(1, image.shape[0] // 256))
    for a in range(amplifiers):
        some = spread[a][np.isfinite(spread[a])]
        if some.size:
            sigma[a] = 1.4826 * np.median(some)
    values, counts = _row_means(image, masked, sigma.astype(np.float32))
    return values, counts, sigma


@numba.njit(cache=True)
def _row_scatter(  # type: ignore[no-untyped-def]
    image, masked, amplifiers, step
):
    """Median absolute deviation of every ``step``-th row's pixels, per amplifier and parity."""
    rows, columns = image.shape
    width = columns // amplifiers
    out = np.full((amplifiers, rows // step * 2 + 2), np.nan, np.float32)
    buffer = np.empty(width, np.float32)
    for a in range(amplifiers):
        k = 0
        for y in range(0, rows, step):
            for parity in range(2):
                n = 0
                for x in range(a * width + parity, (a + 1) * width, 2):
                    if not masked[y, x] and np.isfinite(image[y, x]):
                        buffer[n] = image[y, x]
                        n += 1
                if n >= 24 and k < out.shape[1]:
                    middle = np.median(buffer[:n])
                    for i in range(n):
                        buffer[i] = abs(buffer[i] - middle)
                    out[a, k] = np.median(buffer[:n])
                    k += 1
    return out


@numba.njit(cache=True)
def _row_means(image, masked, sigma):  # type: ignore[no-untyped-def]
    """Means of the pixels within 2.5 sigma of the median, iterated; (amplifiers, rows, parity)."""
    rows, columns = image.shape
    amplifiers = sigma.shape[0]
    width = columns // amplifiers
    values = np.zeros((amplifiers, rows, 2))
    counts = np.zeros((amplifiers, rows, 2), np.int64)
    buffer = np.empty(width, np.float32)
    for y in range(rows):
        for a in range(amplifiers):
            limit = np.float32(_CLIP_SIGMA) * sigma[a]
            for parity in range(2):
                n = 0
                for x in range(a * width + parity, (a + 1) * width, 2):
                    if not masked[y, x] and np.isfinite(image[y, x]):
                        buffer[n] = image[y, x]
                        n += 1
                if n == 0:
                    continue
                middle = np.median(buffer[:n]) + 0.0
                used = 0
                for _ in range(3):
                    total, used = 0.0, 0
                    for i in range(n):
                        if abs(buffer[i] - middle) <= limit:
                            total += buffer[i]
                            used += 1
                    if used == 0:
                        break
                    middle = total / used
                values[a, y, parity] = middle
                counts[a, y, parity] = used
    return values, counts


def _estimate(data: Series, variance: Series, kept: Callable[[Series], Series]) -> tuple[Series, Series, Series, float]:
    """Best linear estimate of a common series and one of each amplifier, with their constant levels apart.

    Parameters
    ----------
    data, variance : (amplifiers, rows); the variance is infinite where there are no data.
    kept : part of each frequency (cycles per row) that is to be returned.

    Returns
    -------
    common, own, constant : (rows,), (amplifiers, rows), (amplifiers,).
    error : predicted rms error of their sum, from frequencies that are kept.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    amplifiers, rows = data.shape
    seen = np.isfinite(variance)
    used = seen.sum(axis=1) > 0
    centre = np.zeros(amplifiers)
    if np.count_nonzero(seen) < 2 * rows // 5:
        return np.zeros(rows), np.zeros((amplifiers, rows)), centre, 0.0
    centre[used] = [np.median(d[s]) for d, s in zip(data[used], seen[used], strict=True)]
    data = np.where(seen, data - centre[:, None], 0.0)
    noise = np.where(seen, variance, 0.0)
    typical = float(np.median(variance[seen]))
    length = 2 * rows
    frequency = np.fft.rfftfreq(length)
    common_power, own_power = _power(data, seen, noise, frequency)

    def smooth(series: Series, gain: Series) -> Series:
        return np.fft.irfft(np.fft.rfft(series, length) * gain, length)[..., :rows]

    def covariance(flat: Series) -> Series:
        x = flat.reshape(amplifiers, rows) * seen
        out = smooth(x, own_power) + smooth(x.sum(axis=0), common_power) + noise * x
        return (out * seen + x * ~seen).ravel()

    def nearly_inverse(flat: Series) -> Series:
        x = flat.reshape(amplifiers, rows)
        mean = x.mean(axis=0)
        out = smooth(x - mean, typical / (own_power + typical))
        out += smooth(mean, typical / (amplifiers * common_power + own_power + typical))
        return out.ravel()

    size = amplifiers * rows
    weight, _ = cg(
        LinearOperator((size, size), matvec=covariance, dtype=float),
        data.ravel(),
        rtol=_TOLERANCE,
        maxiter=60,
        M=LinearOperator((size, size), matvec=nearly_inverse, dtype=float),
    )
    weight = weight.reshape(amplifiers, rows) * seen
    gain = kept(frequency)
    shared, single = smooth(weight.sum(axis=0), gain * common_power), smooth(weight, gain * own_power)
    # posterior power of the sum, frequency by frequency, had no row been missing
    mean = common_power + own_power / amplifiers
    left = mean * typical / (amplifiers * mean + typical)
    left += (1 - 1 / amplifiers) * own_power * typical / (own_power + typical)
    return shared, single, centre, float(np.sqrt(np.mean(gain**2 * left)))


def _power(data: Series, seen: NDArray[np.bool_], noise: Series, frequency: Series) -> tuple[Series, Series]:
    """Power of what the amplifiers share and of what each adds, at the given frequencies, freed from the noise's."""
    rows = data.shape[1]
    ramp = np.clip(np.arange(rows) / (0.05 * rows), 0, 1)
    window = np.sin(0.5 * np.pi * np.minimum(ramp, ramp[::-1])) ** 2
    tapered = data * window
    share = np.maximum((window**2 * seen).sum(axis=1), 1.0)
    spectra = np.fft.rfft(tapered, axis=1) / np.sqrt(share)[:, None]
    expected = (noise * window**2).sum(axis=1) / share
    used = seen.sum(axis=1) > rows // 5
    spectra, expected = spectra[used], expected[used]
    count = int(used.sum())
    if count == 0:
        return np.zeros_like(frequency), np.zeros_like(frequency)
    total = np.mean(np.abs(spectra) ** 2 - expected[:, None], axis=0)
    if count > 1:
        shared = (np.abs(spectra.sum(axis=0)) ** 2 - (np.abs(spectra) ** 2).sum(axis=0)) / (count * (count - 1))
    else:
        shared = np.zeros_like(total)
    edges = [1]
    while edges[-1] < total.size:
        edges.append(edges[-1] + max(_MODES_PER_BIN, int(0.35 * edges[-1])))
    edges[-1] = total.size
    floor = 1e-4 * float(expected.mean())
    middle = np.array([np.sqrt(a * (b - 1.0)) for a, b in pairwise(edges)]) / rows
    out = []
    for power in (shared, total - shared):
        binned = np.array([power[a:b].mean() for a, b in pairwise(edges)])
        out.append(
            np.exp(
                np.interp(np.log(np.maximum(frequency, 0.5 / rows)), np.log(middle), np.log(np.maximum(binned, floor)))
            )
        )
    return out[0], out[1]
