"""What differs between the exposures of an association: cosmic rays and bad pixels that no flag names.

Put here the comparison, on plain arrays. Keep out flags from the detector: those are in the weights already.

The method is that of `panoramic.mosaic.cosmic_rays`, in compiled kernels: all exposures are put on a common frame;
their median, seen again by each exposure, is what it should have recorded. A pixel is rejected where it differs by more
than 4.5 sigma plus 2.5 times the local gradient, its neighbours where they differ by 3 sigma plus 1.5 times the
gradient. The gradient is freed from the noise's own share. Lower scales reject the cores of stars (at 1.2 / 0.7 fluxes
fell by 2-8 %).

The frame is worked through in bands of rows, and of each exposure only the rows that a band needs are touched: arrays
may be memory maps, and memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError

SIGMA, SIGMA_GROWN = 4.5, 3.0
GRADIENT, GRADIENT_GROWN = 2.5, 1.5
NODE_STEP = 16
_BAND_ROWS = 256
_STACK_BYTES = 48e6
_MARGIN = 2
# what the largest of four differences to neighbours amounts to in pure noise after bilinear interpolation, squared
_GRADIENT_OF_NOISE = 2.0

Positions = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True)
class FrameMap:
    """Where an exposure's pixels fall on the common frame, and back, at nodes with straight lines between.

    Parameters
    ----------
    to_frame : (2, n, m), x and y on the frame of the exposure's pixels ``NODE_STEP`` apart, from pixel (0, 0).
    to_pixel : (2, n, m), x and y in the exposure of the frame's pixels ``NODE_STEP`` apart, from pixel (0, 0).
    """

    to_frame: NDArray[np.float64]
    to_pixel: NDArray[np.float64]

    @classmethod
    def sampled(
        cls, to_frame: Positions, to_pixel: Positions, shape: tuple[int, int], frame: tuple[int, int]
    ) -> FrameMap:
        """Sample two functions of (x, y), 0-based pixels.

        Between nodes NIRCam's distortion bends a line by 0.002 px.

        Parameters
        ----------
        to_frame, to_pixel : from the exposure's pixels to the frame's and back.
        shape, frame : shapes of the exposure and of the frame, (rows, columns).
        """
        return cls(_nodes(to_frame, shape), _nodes(to_pixel, frame))


def _nodes(function: Positions, shape: tuple[int, int]) -> NDArray[np.float64]:
    y, x = (np.arange(0, length + NODE_STEP, NODE_STEP, dtype=float) for length in shape)
    grid_x, grid_y = np.meshgrid(x, y)
    return np.ascontiguousarray(np.stack(function(grid_x, grid_y)), dtype=float)


@dataclass(frozen=True)
class DitheredImage:
    """One exposure of an association.

    Parameters
    ----------
    image : (rows, columns) float32, background subtracted. An array or a memory map.
    weight : (rows, columns) float32, inverse variance of read noise and background; 0 where the pixel must not be used.
    map : to the common frame.
    shot : variance that light adds, image units: a pixel of brightness b has ``1 / weight + shot * b``.
    """

    image: NDArray[np.float32]
    weight: NDArray[np.float32]
    map: FrameMap
    shot: float = 0.0


@dataclass(frozen=True)
class Outliers:
    """The outliers of one exposure.

    Parameters
    ----------
    pixels : flat indices, sorted.
    shape : of the exposure.
    judged : part of its usable pixels that another exposure has seen.
    """

    pixels: NDArray[np.uint32]
    shape: tuple[int, ...]
    judged: float

    def mask(self) -> NDArray[np.bool_]:
        """The outliers as an image, (rows, columns)."""
        out = np.zeros(self.shape, bool)
        out.ravel()[self.pixels] = True
        return out


def find_outliers(exposures: Sequence[DitheredImage], frame: tuple[int, int]) -> list[Outliers]:
    """Compare the exposures of an association.

    With two exposures the fainter of both is believed, unless it is a hole in its own surroundings. One alone, and
    where only one looks, nothing can be judged.

    Parameters
    ----------
    exposures : all on one frame.
    frame : shape of the common frame, (rows, columns), pixels about as large as the exposures'.

    Returns
    -------
    list of Outliers
        In the order of the exposures.

    Raises
    ------
    InputError
        Planes of an exposure differ in shape, or a map does not cover its exposure or the frame.
    """
    for number, exposure in enumerate(exposures):
        _check(number, exposure, frame)
    typical = [_typical_variance(e.weight) for e in exposures]
    band = int(max(16, min(_BAND_ROWS, _STACK_BYTES // max(1, len(exposures) * frame[1] * 4))))
    sure: list[list[NDArray[np.uint32]]] = [[] for _ in exposures]
    likely: list[list[NDArray[np.uint32]]] = [[] for _ in exposures]
    judged = np.zeros(len(exposures), np.int64)
    for first in range(0, frame[0], band) if len(exposures) > 1 else ():
        last = min(first + band, frame[0])
        top, bottom = max(0, first - _MARGIN), min(frame[0], last + _MARGIN)
        stack = np.full((len(exposures), bottom - top, frame[1]), np.nan, np.float32)
        reach = [_rows_seen(e.map.to_pixel, top, bottom, e.image.shape[0], axis=1) for e in exposures]
        members = [k for k, r in enumerate(reach) if r is not None and typical[k] > 0]
        for k in members:
            start, stop = reach[k]  # type: ignore[misc]
            image, weight = _read(exposures[k], start, stop)
            _resample(image, weight, exposures[k].map.to_pixel, top, start, stack[k])
        if len(members) < 2:
            continue
        reference, sigma, alone = _expected(
            stack if len(members) == len(exposures) else stack[members],
            np.array([typical[k] for k in members], np.float32),
        )
        gradient = _gradient(reference, sigma)
        for place, k in enumerate(members):
            exposure = exposures[k]
            rows = _rows_seen(exposure.map.to_frame, first, last, exposure.image.shape[0], axis=0)
            if rows is None:
                continue
            image, weight = _read(exposure, *rows)
            grade, seen = _judge(
                image,
                weight,
                exposure.map.to_frame,
                rows[0],
                exposure.shot,
                reference,
                sigma,
                gradient,
                alone,
                place,
                top,
                first,
                last,
            )
            judged[k] += seen
            offset = rows[0] * exposure.image.shape[1]
            sure[k].append((np.flatnonzero(grade == 2) + offset).astype(np.uint32))
            likely[k].append((np.flatnonzero(grade == 1) + offset).astype(np.uint32))
    out = []
    for k, exposure in enumerate(exposures):
        usable = sum(
            np.count_nonzero(exposure.weight[y : y + _BAND_ROWS]) for y in range(0, exposure.image.shape[0], _BAND_ROWS)
        )
        pixels = _with_neighbours(sure[k], likely[k], exposure.image.shape)
        out.append(Outliers(pixels, exposure.image.shape, judged[k] / usable if usable else 0.0))
    return out


def _check(number: int, exposure: DitheredImage, frame: tuple[int, int]) -> None:
    if exposure.image.ndim != 2 or exposure.weight.shape != exposure.image.shape:
        raise InputError(
            f"exposure {number}: image {exposure.image.shape} and weight {exposure.weight.shape} must have one shape"
        )
    for name, nodes, shape in (
        ("to_frame", exposure.map.to_frame, exposure.image.shape),
        ("to_pixel", exposure.map.to_pixel, frame),
    ):
        if nodes.ndim != 3 or any(
            (n - 1) * NODE_STEP < length - 1 for n, length in zip(nodes.shape[1:], shape, strict=True)
        ):
            raise InputError(
                f"exposure {number}: the map {name} {nodes.shape} does not cover {shape}: make it with sampled()"
            )


def _read(exposure: DitheredImage, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of an exposure, in memory and in the machine's byte order."""
    return (
        np.ascontiguousarray(exposure.image[start:stop], np.float32),
        np.ascontiguousarray(exposure.weight[start:stop], np.float32),
    )


def _typical_variance(weight: NDArray[np.float32]) -> float:
    """Median variance of usable pixels, from a sample; 0 if there are none."""
    some = np.asarray(weight[::7, ::7])
    some = some[some > 0]
    if some.size == 0:
        some = np.asarray(weight)[np.asarray(weight) > 0]
    return float(1 / np.median(some)) if some.size else 0.0


def _rows_seen(nodes: NDArray[np.float64], first: int, last: int, rows: int, axis: int) -> tuple[int, int] | None:
    """Rows that a band needs: of the exposure for rows of the frame (1), or those that fall into the band (0)."""
    if axis == 1:
        y = nodes[1, first // NODE_STEP : (last - 1) // NODE_STEP + 2]
        start, stop = max(0, int(np.floor(y.min())) - 1), min(rows, int(np.ceil(y.max())) + 3)
        return (start, stop) if stop - start > 1 else None
    low, high = nodes[1].min(axis=1), nodes[1].max(axis=1)
    # a strip between two rows of nodes
    inside = np.flatnonzero((np.minimum(low[:-1], low[1:]) <= last) & (np.maximum(high[:-1], high[1:]) >= first - 1))
    if inside.size == 0:
        return None
    start, stop = int(inside[0]) * NODE_STEP, min(rows, (int(inside[-1]) + 1) * NODE_STEP)
    return (start, stop) if stop > start else None


@numba.njit(cache=True)
def _position(nodes, y, x):  # type: ignore[no-untyped-def]
    """Where a pixel falls on the other grid: (x, y), bilinear between the nodes."""
    j, i = y // 16, x // 16
    v, u = (y - 16 * j) / 16.0, (x - 16 * i) / 16.0
    px = (nodes[0, j, i] * (1 - u) + nodes[0, j, i + 1] * u) * (1 - v)
    px += (nodes[0, j + 1, i] * (1 - u) + nodes[0, j + 1, i + 1] * u) * v
    py = (nodes[1, j, i] * (1 - u) + nodes[1, j, i + 1] * u) * (1 - v)
    py += (nodes[1, j + 1, i] * (1 - u) + nodes[1, j + 1, i + 1] * u) * v
    return px, py


@numba.njit(cache=True)
def _resample(image, weight, nodes, top, start, out):  # type: ignore[no-untyped-def]
    """Bilinear samples of rows from ``start`` of an exposure at a band from ``top`` of the frame, into ``out``."""
    rows, columns = image.shape
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            x, y = _position(nodes, top + r, c)
            y -= start
            if not (x >= 0 and y >= 0 and x <= columns - 1 and y <= rows - 1):
                continue
            i, j = min(int(x), columns - 2), min(int(y), rows - 2)
            # a sample next to a bad pixel is no sample
            if weight[j, i] > 0 and weight[j, i + 1] > 0 and weight[j + 1, i] > 0 and weight[j + 1, i + 1] > 0:
                u, v = x - i, y - j
                above = image[j, i] * (1 - u) + image[j, i + 1] * u
                out[r, c] = above * (1 - v) + (image[j + 1, i] * (1 - u) + image[j + 1, i + 1] * u) * v


@numba.njit(cache=True)
def _expected(stack, variance):  # type: ignore[no-untyped-def]
    """What the sky looks like behind the outliers of single exposures, its noise, and who alone says so.

    NaN where no exposure has a sample; ``alone`` is the number of the only exposure that has one, else -1.
    """
    number, rows, columns = stack.shape
    reference = np.full((rows, columns), np.nan, np.float32)
    sigma = np.full((rows, columns), np.nan, np.float32)
    other = np.full((rows, columns), np.nan, np.float32)
    alone = np.full((rows, columns), -1, np.int16)
    values = np.empty(number, np.float32)
    for r in range(rows):
        for c in range(columns):
            n, total = 0, 0.0
            for k in range(number):
                value = stack[k, r, c]
                if not np.isfinite(value):
                    continue
                total += variance[k]
                place = n
                while place > 0 and values[place - 1] > value:
                    values[place] = values[place - 1]
                    place -= 1
                values[place] = value
                n += 1
                alone[r, c] = k if n == 1 else -1
            if n == 0:
                continue
            # interpolation has averaged about two pixels; a median of k has pi/2 times the variance of their mean
            typical = total / n
            if n <= 2:
                reference[r, c] = values[0]
                if n == 2:
                    other[r, c] = values[1]
                sigma[r, c] = np.sqrt(0.5 * typical)
            else:
                reference[r, c] = 0.5 * (values[(n - 1) // 2] + values[n // 2])
                sigma[r, c] = np.sqrt(0.5 * typical * 1.5708 / n)
    # of two the fainter is believed, because cosmic rays are bright; not a hole that the other does not have
    near = np.empty(9, np.float32)
    holes = []
    for r in range(rows):
        for c in range(columns):
            limit = 4 * sigma[r, c] * 1.4142
            if not (other[r, c] - reference[r, c] > limit):
                continue
            n = 0
            for y in range(max(0, r - 1), min(rows, r + 2)):
                for x in range(max(0, c - 1), min(columns, c + 2)):
                    if np.isfinite(reference[y, x]):
                        near[n] = reference[y, x]
                        n += 1
            if reference[r, c] < np.median(near[:n]) - limit:
                holes.append((r, c))
    for r, c in holes:
        reference[r, c] = other[r, c]
    return reference, sigma, alone


@numba.njit(cache=True)
def _gradient(reference, sigma):  # type: ignore[no-untyped-def]
    """Largest difference to one of the four neighbours, less what noise alone makes of it, in quadrature."""
    rows, columns = reference.shape
    out = np.zeros((rows, columns), np.float32)
    for r in range(rows):
        for c in range(columns):
            here = reference[r, c]
            if not np.isfinite(here):
                continue
            steep = np.float32(0.0)
            if r > 0 and abs(reference[r - 1, c] - here) > steep:
                steep = abs(reference[r - 1, c] - here)
            if r + 1 < rows and abs(reference[r + 1, c] - here) > steep:
                steep = abs(reference[r + 1, c] - here)
            if c > 0 and abs(reference[r, c - 1] - here) > steep:
                steep = abs(reference[r, c - 1] - here)
            if c + 1 < columns and abs(reference[r, c + 1] - here) > steep:
                steep = abs(reference[r, c + 1] - here)
            out[r, c] = np.sqrt(max(steep * steep - _GRADIENT_OF_NOISE * sigma[r, c] ** 2, 0.0))
    return out


@numba.njit(cache=True)
def _judge(  # type: ignore[no-untyped-def]
    image, weight, nodes, start, shot, reference, sigma, gradient, alone, place, top, first, last
):
    """Grade rows of an exposure against a band: 2 outlier, 1 one if it touches one; and how many had a reference.

    A pixel belongs to the band that its centre falls in.
    """
    rows, columns = image.shape
    height, width = reference.shape
    grade = np.zeros((rows, columns), np.uint8)
    seen = 0
    for r in range(rows):
        for c in range(columns):
            if not weight[r, c] > 0:
                continue
            x, y = _position(nodes, start + r, c)
            if not (y >= first - 0.5 and y < last - 0.5):
                continue
            y -= top
            if not (x >= 0 and y >= 0 and x <= width - 1 and y <= height - 1):
                continue
            i, j = min(int(x), width - 2), min(int(y), height - 2)
            u, v = x - i, y - j
            a, b, p, q = (1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v
            model = (
                a * reference[j, i] + b * reference[j, i + 1] + p * reference[j + 1, i] + q * reference[j + 1, i + 1]
            )
            if not np.isfinite(model):
                continue
            single = False
            own = False
            for y_, x_ in ((j, i), (j, i + 1), (j + 1, i), (j + 1, i + 1)):
                single = single or alone[y_, x_] >= 0
                own = own or alone[y_, x_] == place
            # nobody judges itself; against one other exposure only what is brighter is known to be this one's
            if own or (single and image[r, c] < model):
                continue
            seen += 1
            variance = 1 / weight[r, c] + shot * max(model, 0.0)
            difference = abs(image[r, c] - model)
            if not difference * difference > SIGMA_GROWN * SIGMA_GROWN * variance:
                continue
            blur = a * sigma[j, i] + b * sigma[j, i + 1] + p * sigma[j + 1, i] + q * sigma[j + 1, i + 1]
            slope = a * gradient[j, i] + b * gradient[j, i + 1] + p * gradient[j + 1, i] + q * gradient[j + 1, i + 1]
            noise = np.sqrt(variance + blur * blur)
            if difference > SIGMA * noise + GRADIENT * slope:
                grade[r, c] = 2
            elif difference > SIGMA_GROWN * noise + GRADIENT_GROWN * slope:
                grade[r, c] = 1
    return grade, seen


def _with_neighbours(
    sure: list[NDArray[np.uint32]], likely: list[NDArray[np.uint32]], shape: tuple[int, ...]
) -> NDArray[np.uint32]:
    """Outliers and the likely ones that touch them, as sorted flat indices."""
    nothing = np.empty(0, np.uint32)
    core, edge = np.concatenate([*sure, nothing]), np.concatenate([*likely, nothing])
    near = np.zeros((shape[0] + 2, shape[1] + 2), bool)
    y, x = np.divmod(core, shape[1])
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            near[y + dy, x + dx] = True
    y, x = np.divmod(edge, shape[1])
    return np.sort(np.concatenate([core, edge[near[y + 1, x + 1]]])).astype(np.uint32)
