"""Pictures of mosaics: small grey previews and one colour picture of a field.

Put here pictures for people. Keep out measurement: nothing reads these files back.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.errors import MosaicError

if TYPE_CHECKING:
    from astropy.io.fits import Header

LARGEST_BYTES = 3_000_000
_SOFTENING = 8.0
_BRIGHTEST = 600.0
_EMPTY = 24


def preview(
    sci_path: Path, wht_path: Path, out: Path, *, largest_px: int = 1200, largest_bytes: int = LARGEST_BYTES
) -> Path:
    """Write a grey PNG of one mosaic, north up, cropped to its data, at most ``largest_px`` on a side."""
    with _Mosaic(sci_path, wht_path) as mosaic:
        box = mosaic.data_box()
        step = max(1, math.ceil(max(box[1] - box[0], box[3] - box[2]) / largest_px))
        image, noise = mosaic.binned(box, step)
    return _save(_grey(image, noise), out, largest_bytes)


def colour_picture(
    paths_by_filter: Mapping[str, tuple[Path, Path]],
    out: Path,
    *,
    largest_px: int = 1600,
    largest_bytes: int = LARGEST_BYTES,
) -> Path:
    """Write a colour PNG of a field from its mosaics.

    All filters are brought to the long-wave grid (short-wave pixels are binned; the grids nest) and to one rectangle.
    Three or more filters: thirds of the list by wavelength are blue, green and red. Two: green is the mean. One: grey.

    Parameters
    ----------
    paths_by_filter : filter name to (science, weight) planes of the same field.
    out : the file; written beside its place and moved.

    Raises
    ------
    MosaicError
        No mosaic is given, or two are not on grids of one field.
    """
    if not paths_by_filter:
        raise MosaicError("a colour picture needs at least one mosaic")
    names = sorted(paths_by_filter, key=lambda name: (wavelength(name), name))
    if len(names) == 1:
        return preview(*paths_by_filter[names[0]], out, largest_px=largest_px, largest_bytes=largest_bytes)
    mosaics = [_Mosaic(*paths_by_filter[name]) for name in names]
    try:
        coarse = max(mosaic.scale for mosaic in mosaics)
        boxes = [mosaic.sky_box(coarse) for mosaic in mosaics]
        if len({mosaic.tangent for mosaic in mosaics}) > 1:
            raise MosaicError(f"mosaics of {', '.join(names)} are not of one field")
        box = (min(b[0] for b in boxes), max(b[1] for b in boxes), min(b[2] for b in boxes), max(b[3] for b in boxes))
        step = max(1, math.ceil(max(box[1] - box[0], box[3] - box[2]) / largest_px))
        box = tuple(f(v / step) * step for f, v in zip((math.floor, math.ceil) * 2, box, strict=True))  # type: ignore[assignment]
        planes = []
        for mosaic in mosaics:
            image, noise = mosaic.binned(mosaic.own_box(box, coarse), step * round(coarse / mosaic.scale))
            planes.append((image, noise))
    finally:
        for mosaic in mosaics:
            mosaic.close()
    return _save(_colour(planes), out, largest_bytes)


def wavelength(filter_name: str) -> float:
    """Wavelength in um that a filter's name tells, ``F115W`` or ``f115w-clear``: 1.15; infinite where it tells none."""
    digits = re.search(r"f(\d{3})", filter_name.lower())
    return int(digits.group(1)) / 100 if digits else math.inf


class _Mosaic:
    """Two planes of a mosaic, read in bands of rows."""

    def __init__(self, sci_path: Path, wht_path: Path) -> None:
        from astropy.io import fits

        self._hdus = fits.open(sci_path, memmap=True), fits.open(wht_path, memmap=True)
        header: Header = self._hdus[0][0].header
        self.shape: tuple[int, int] = self._hdus[0][0].shape
        self.scale = round(header["CDELT2"] * 3.6e6, 6)
        self.tangent = round(header["CRVAL1"], 9), round(header["CRVAL2"], 9)
        # plane index of the first pixel, as FieldGrid counts
        self.first = round(0.5 - header["CRPIX1"]), round(0.5 - header["CRPIX2"])

    def __enter__(self) -> _Mosaic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both files."""
        for hdus in self._hdus:
            hdus.close()

    def data_box(self) -> tuple[int, int, int, int]:
        """(x0, x1, y0, y1) of the pixels with data, ends excluded, to within 16 px."""
        sparse = self._hdus[1][0].data[::16, ::16] > 0
        rows, columns = np.flatnonzero(sparse.any(axis=1)), np.flatnonzero(sparse.any(axis=0))
        if rows.size == 0:
            return 0, self.shape[1], 0, self.shape[0]
        return (
            max(0, int(columns[0]) * 16 - 16), min(self.shape[1], int(columns[-1]) * 16 + 32),
            max(0, int(rows[0]) * 16 - 16), min(self.shape[0], int(rows[-1]) * 16 + 32),
        )  # fmt: skip

    def sky_box(self, coarse: float) -> tuple[int, int, int, int]:
        """`data_box` on the field's plane in pixels of scale ``coarse``."""
        n, box = coarse / self.scale, self.data_box()
        x, y = self.first
        return (
            math.floor((box[0] + x) / n), math.ceil((box[1] + x) / n),
            math.floor((box[2] + y) / n), math.ceil((box[3] + y) / n),
        )  # fmt: skip

    def own_box(self, box: tuple[int, int, int, int], coarse: float) -> tuple[int, int, int, int]:
        """A box on the plane at scale ``coarse`` in this mosaic's pixels; may reach beyond the mosaic."""
        n = round(coarse / self.scale)
        x, y = self.first
        return box[0] * n - x, box[1] * n - x, box[2] * n - y, box[3] * n - y

    def binned(self, box: tuple[int, int, int, int], step: int) -> tuple[np.ndarray, float]:
        """Weighted means over ``step`` x ``step`` pixels (NaN without data), less their median, and their noise."""
        x0, x1, y0, y1 = box
        nx, ny = (x1 - x0) // step, (y1 - y0) // step
        image = np.full((ny, nx), np.nan, np.float32)
        for row in range(ny):
            top = y0 + row * step
            low, high = max(top, 0), min(top + step, self.shape[0])
            left, right = max(x0, 0), min(x0 + nx * step, self.shape[1])
            if low >= high or left >= right:
                continue
            science, weight = (np.asarray(h[0].data[low:high, left:right], np.float32) for h in self._hdus)
            # columns beyond the mosaic's edges are empty
            sums = np.zeros((2, nx * step), np.float64)
            sums[0, left - x0 : right - x0] = (science * weight).sum(axis=0)
            sums[1, left - x0 : right - x0] = weight.sum(axis=0)
            total = sums.reshape(2, nx, step).sum(axis=2)
            np.divide(total[0], total[1], out=image[row], where=total[1] > 0, casting="unsafe")
        known = image[np.isfinite(image)]
        if known.size == 0:
            return image, 1.0
        middle = np.median(known)
        noise = 1.4826 * float(np.median(middle - known[known <= middle]))
        return image - np.float32(middle), noise or 1.0


def _stretch(intensity: np.ndarray) -> np.ndarray:
    """Asinh stretch of a signal in units of its noise to 0..1; the sky is dark, but not black."""
    low, high = np.arcsinh(-4.0 / _SOFTENING), np.arcsinh(_BRIGHTEST / _SOFTENING)
    return np.clip((np.arcsinh(intensity / _SOFTENING) - low) / (high - low), 0, 1)


def _grey(image: np.ndarray, noise: float) -> np.ndarray:
    """Bytes of a grey picture, first row in the north."""
    known = np.isfinite(image)
    values = _stretch(np.where(known, image, 0) / noise)
    grey = np.where(known, np.round(values * 255), _EMPTY).astype(np.uint8)
    return grey[::-1]


def _mean(stacked: np.ndarray) -> np.ndarray:
    """Mean along the first axis of what is there; NaN where nothing is."""
    there = np.isfinite(stacked)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, stacked, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _colour(planes: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Bytes (rows, columns, 3) from images in order of wavelength; the colour is kept where the stretch saturates."""
    if len(planes) == 2:
        groups = [[planes[0]], planes, [planes[1]]]
    else:
        groups = [[planes[i] for i in part] for part in np.array_split(np.arange(len(planes)), 3)]
    channels = np.stack([_mean(np.stack([image / noise for image, noise in group])) for group in groups])
    # where a filter has no data the picture has no colour: grey, not a colour that nothing has
    known = np.isfinite(channels).any(axis=0)
    channels = np.where(np.isfinite(channels), channels, _mean(channels))
    blue, green, red = np.where(known, channels, 0)
    intensity = (blue + green + red) / 3
    factor = _stretch(intensity) / np.maximum(np.abs(intensity), 0.5)
    # near the sky the ratio of channels is noise, and everywhere the filters' unlike sharpness paints rings of pure
    # colour: so the stretch of each channel by itself keeps the greater share
    faint = 0.65 + 0.35 * np.exp(-0.5 * (np.maximum(intensity, 0) / 3) ** 2)
    rgb = np.stack(
        [faint * _stretch(c) + (1 - faint) * np.clip(c, 0, None) * factor for c in (red, green, blue)], axis=-1
    )
    brightest = rgb.max(axis=-1, keepdims=True)
    rgb = np.where(brightest > 1, rgb / np.maximum(brightest, 1), rgb)
    picture = np.where(known[..., None], np.round(np.clip(rgb, 0, 1) * 255), _EMPTY).astype(np.uint8)
    return picture[::-1]


def _save(pixels: np.ndarray, out: Path, largest_bytes: int) -> Path:
    """Write a PNG, made smaller until it fits, beside its place, then move it."""
    from PIL import Image

    image: Any = Image.fromarray(np.ascontiguousarray(pixels))
    while True:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= largest_bytes or max(image.size) <= 64:
            break
        shrink = max(0.5, min(0.9, math.sqrt(largest_bytes / buffer.tell()) * 0.97))
        image = image.resize(
            (max(1, round(image.width * shrink)), max(1, round(image.height * shrink))), Image.Resampling.LANCZOS
        )
    out = Path(out)
    part = out.with_name(f".{out.name}.part")
    part.write_bytes(buffer.getvalue())
    os.replace(part, out)
    return out
