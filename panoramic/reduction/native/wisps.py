"""Wisps: stray light whose shape a template knows and whose brightness changes from exposure to exposure.

Put here the fit of a template's amplitude. Keep out templates' files and which detectors have wisps (`references.py`).

The fit knows a free constant for each row of each amplifier: neither stripes nor the sky's level can bias it, and it
may come before both are known. A slope of the sky along the rows is fitted with it. Weighted, clipped, iterated. The
error is taken from the residuals, summed over blocks (a cluster-robust variance): stripes, faint sources and what the
template has wrong are in it. A template that does not make the image better is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError
from panoramic.reduction.native.sky_masks import sources_in_stripes

_CLIP_SIGMA = 3.0
_ITERATIONS = 4
_BLOCK_PX = 32
_LEAST_PIXELS = 4000
_LEAST_BLOCKS = 8
SIGNIFICANT = 5.0
_MOST_UNEXPLAINED = 0.25
"""Of the template's light, rms: beyond it the template's shape is wrong."""


@dataclass(frozen=True)
class WispFit:
    """How bright a template is in an image.

    Parameters
    ----------
    amplitude, error : image units per template unit; 0 and infinite where it can't be fitted.
    improvement : by how much chi-square falls, in units of the residuals' own scatter (correlated noise included).
    used : the template makes the image better: subtract it.
    reason : why not, in words; empty if it is used.
    """

    amplitude: float
    error: float
    improvement: float
    used: bool
    reason: str = ""


def fit_wisp_among_sources(
    image: NDArray[np.float32],
    error: NDArray[np.float32],
    unusable: NDArray[np.bool_],
    template: NDArray[np.float32],
    *,
    amplifiers: int = 4,
) -> WispFit:
    """Fit a template to an image whose sources are not known yet.

    Bright wisps look like sources, and sources bias wisps: a first fit trusts to clipping alone, sources are then
    looked for without its wisps, and the second fit is beside them. Parameters as of `fit_wisp`.
    """
    first = fit_wisp(image, error, unusable, template, amplifiers=amplifiers)
    if not np.isfinite(first.error):
        return first
    rest = image - np.float32(first.amplitude) * np.nan_to_num(template)
    sources = sources_in_stripes(rest, unusable, amplifiers)
    return fit_wisp(image, error, sources | unusable, template, amplifiers=amplifiers)


def fit_wisp(
    image: NDArray[np.float32],
    error: NDArray[np.float32],
    masked: NDArray[np.bool_],
    template: NDArray[np.float32],
    *,
    amplifiers: int = 4,
) -> WispFit:
    """Fit a template to a flat-fielded image.

    Parameters
    ----------
    image : (rows, columns), flat-fielded; with or without sky and stripes.
    error : standard deviation of each pixel, same unit.
    masked : sources and unusable pixels.
    template : surface brightness of the wisps, any unit; 0 or NaN where there are none.
    amplifiers : that share the columns.

    Returns
    -------
    WispFit
        ``used`` is False, with a reason, where the amplitude is below 5 sigma or negative, where it leaves a
        quarter of its own light in the image, or where too few pixels are left.

    Raises
    ------
    InputError
        The shapes differ.
    """
    if not image.shape == error.shape == masked.shape == template.shape:
        raise InputError(
            f"image {image.shape}, error {error.shape}, mask {masked.shape} and template {template.shape} "
            "must have one shape"
        )
    if image.shape[1] % amplifiers:
        raise InputError(f"{image.shape[1]} columns can't be shared by {amplifiers} amplifiers")
    shape = np.nan_to_num(np.ascontiguousarray(template, np.float32), copy=True, posinf=0.0, neginf=0.0)
    if not shape.any():
        return WispFit(0.0, np.inf, 0.0, False, "the template is empty")
    # far from the template rows only cost time
    rows = np.flatnonzero(np.abs(shape).max(axis=1) > 1e-3 * np.abs(shape).max())
    part = np.s_[rows[0] : rows[-1] + 1]
    sci, err, wisp = (np.ascontiguousarray(plane[part], np.float32) for plane in (image, error, shape))
    mask = np.ascontiguousarray(masked[part], np.bool_)
    if np.count_nonzero((wisp != 0) & ~mask & np.isfinite(sci) & (err > 0)) < _LEAST_PIXELS:
        return WispFit(0.0, np.inf, 0.0, False, "too few free pixels where the template is")
    solution, inflate = np.zeros(2), 1e30
    for step in range(_ITERATIONS):
        normal, right, scatter = _sums(sci, err, wisp, mask, amplifiers, solution, _CLIP_SIGMA * inflate)
        if not (normal[0, 0] > 0 and np.linalg.det(normal) > 1e-6 * normal[0, 0] * normal[1, 1]):
            return WispFit(0.0, np.inf, 0.0, False, "the free pixels do not tell the template from the sky")
        change = np.linalg.solve(normal, right)
        solution = solution + change
        inflate = max(1.0, scatter)
        if step > 1 and abs(change[0]) < 1e-4 * abs(solution[0]):
            break
    table = _block_sums(sci, err, wisp, mask, amplifiers, solution, _CLIP_SIGMA * inflate, _BLOCK_PX)
    inverse = np.linalg.inv(normal)
    # neighbouring blocks share a faint galaxy or a fault of the template: four by four they are nearly independent
    across = -(-image.shape[1] // _BLOCK_PX)
    y, x = np.divmod(np.arange(len(table)), across)
    group = y // 4 * across + x // 4
    influence = np.bincount(group, weights=table[:, :2] @ inverse[0])
    sigma = float(np.sqrt(np.sum(influence**2)))
    blocks = np.count_nonzero(np.bincount(group, weights=table[:, 2]))
    amplitude = float(solution[0])
    if blocks < _LEAST_BLOCKS or not sigma > 0:
        return WispFit(amplitude, np.inf, 0.0, False, "too small an area is free for an error of the amplitude")
    improvement = amplitude * abs(amplitude) / sigma**2
    reason = ""
    if amplitude <= 0:
        reason = "the amplitude is negative"
    elif amplitude < SIGNIFICANT * sigma:
        reason = f"the amplitude is only {amplitude / sigma:.1f} sigma"
    elif (rest := _unexplained(table, inflate) / amplitude) > _MOST_UNEXPLAINED:
        reason = f"the template leaves {rest:.0%} of its own light in the image: its shape is not this image's"
    return WispFit(amplitude, sigma, improvement, not reason, reason)


def _unexplained(table: NDArray[np.float64], scatter: float) -> float:
    """Rms by which blocks ask for an amplitude of their own, weighted by the template's power, freed from noise."""
    power = table[:, 3]
    bright = power > 0.01 * power.max()
    excess = np.sum(table[bright, 0] ** 2 / power[bright]) - scatter**2 * np.count_nonzero(bright)
    return float(np.sqrt(max(excess, 0.0) / power[bright].sum()))


@numba.njit(cache=True)
def _row_averages(image, error, template, masked, amplifiers, solution, limit, y, a, free):  # type: ignore[no-untyped-def]
    """Mark the usable pixels of one row and amplifier; weighted means of image, template and column there."""
    width = image.shape[1] // amplifiers
    half = 0.5 * image.shape[1]
    total, mean_image, mean_template, mean_x = 0.0, 0.0, 0.0, 0.0
    for round_ in range(2):
        total, i_, t_, x_ = 0.0, 0.0, 0.0, 0.0
        for k in range(width):
            x = a * width + k
            if round_ == 0:
                free[k] = not masked[y, x] and error[y, x] > 0 and np.isfinite(image[y, x]) and np.isfinite(error[y, x])
            elif free[k] and limit < 1e20:
                rest = image[y, x] - mean_image - solution[0] * (template[y, x] - mean_template)
                rest -= solution[1] * (x / half - 1 - mean_x)
                free[k] = abs(rest) <= limit * error[y, x]
            if free[k]:
                w = 1.0 / (error[y, x] * error[y, x])
                total += w
                i_ += w * image[y, x]
                t_ += w * template[y, x]
                x_ += w * (x / half - 1)
        if total > 0:
            mean_image, mean_template, mean_x = i_ / total, t_ / total, x_ / total
    return total, mean_image, mean_template, mean_x


@numba.njit(cache=True)
def _sums(image, error, template, masked, amplifiers, solution, limit):  # type: ignore[no-untyped-def]
    """Normal equations of the change of (amplitude, slope), and the pixels' scatter in units of their errors."""
    rows, columns = image.shape
    width = columns // amplifiers
    half = 0.5 * columns
    normal, right = np.zeros((2, 2)), np.zeros(2)
    chi, number = 0.0, 0
    free = np.zeros(width, np.bool_)
    for y in range(rows):
        for a in range(amplifiers):
            total, mean_image, mean_template, mean_x = _row_averages(
                image, error, template, masked, amplifiers, solution, limit, y, a, free
            )
            if total <= 0:
                continue
            for k in range(width):
                if not free[k]:
                    continue
                x = a * width + k
                w = 1.0 / (error[y, x] * error[y, x])
                t = template[y, x] - mean_template
                s = x / half - 1 - mean_x
                rest = image[y, x] - mean_image - solution[0] * t - solution[1] * s
                normal[0, 0] += w * t * t
                normal[0, 1] += w * t * s
                normal[1, 1] += w * s * s
                right[0] += w * t * rest
                right[1] += w * s * rest
                if w * rest * rest < 9.0 * 9.0:
                    chi += w * rest * rest
                    number += 1
    normal[1, 0] = normal[0, 1]
    return normal, right, np.sqrt(chi / max(number, 1))


@numba.njit(cache=True)
def _block_sums(image, error, template, masked, amplifiers, solution, limit, size):  # type: ignore[no-untyped-def]
    """Per block: the sums of weight x (template, column) x residual, pixels, and weight x template^2."""
    rows, columns = image.shape
    width = columns // amplifiers
    half = 0.5 * columns
    across = (columns + size - 1) // size
    out = np.zeros(((rows + size - 1) // size * across, 4))
    free = np.zeros(width, np.bool_)
    for y in range(rows):
        for a in range(amplifiers):
            total, mean_image, mean_template, mean_x = _row_averages(
                image, error, template, masked, amplifiers, solution, limit, y, a, free
            )
            if total <= 0:
                continue
            for k in range(width):
                if not free[k]:
                    continue
                x = a * width + k
                w = 1.0 / (error[y, x] * error[y, x])
                t = template[y, x] - mean_template
                s = x / half - 1 - mean_x
                rest = image[y, x] - mean_image - solution[0] * t - solution[1] * s
                block = (y // size) * across + x // size
                out[block, 0] += w * t * rest
                out[block, 1] += w * s * rest
                out[block, 2] += 1
                out[block, 3] += w * t * t
    return out
