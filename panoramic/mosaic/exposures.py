"""Calibrated exposures as the mosaic sees them: headers first, pixels only by window.

Put here how a contract file (``panoramic.reduction.base``) is opened and which of its pixels may be used. Keep out
what is done with them.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.errors import ExposureFileError, MissingKeywordError, TruncatedFileError, WrongShapeError
from panoramic.mosaic.pixelmap import InverseMap, PixelMap, Window

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    from panoramic.mosaic.grid import Channel, FieldGrid

DO_NOT_USE = 1
OUTLIER = 16
# A pixel whose variance was underestimated would rule every mean that it is in.
WEIGHT_CEILING = 2.0

_PLANES = ("SCI", "ERR", "WHT", "DQ")
_TYPES = {-32: ">f4", -64: ">f8", 32: ">i4", 16: ">i2", 8: "u1"}


@dataclass(frozen=True)
class MosaicInput:
    """One calibrated exposure that goes into a mosaic.

    Parameters
    ----------
    dataset : file stem without product suffix.
    association : the association that it was reduced in.
    path : the contract file ``{dataset}_rate.fits``.
    detector, filter, pupil : as in the archive, e.g. ``NRCBLONG``, ``F444W``, ``CLEAR``.
    sha256 : digest of the file where the caller has verified it; else it is computed.
    """

    dataset: str
    association: str
    path: Path
    detector: str
    filter: str
    pupil: str
    sha256: str | None = None


@dataclass(frozen=True)
class _Plane:
    """Where an image plane's bytes lie in the file."""

    offset: int
    dtype: str
    shape: tuple[int, int]
    zero: int


@dataclass(frozen=True)
class Pixels:
    """A window of an exposure: values in MJy/sr, ``weight`` in (MJy/sr)^-2 and 0 where a pixel must not be used."""

    science: np.ndarray
    weight: np.ndarray


@dataclass
class Exposure:
    """An opened exposure. Pixels are read by window from the file each time, so that memory stays that of a tile.

    ``sky`` (MJy/sr, to subtract) and ``rejected`` (packed bits of cosmic rays) are filled in by the build's own steps.
    """

    source: MosaicInput
    shape: tuple[int, int]
    exposure_time: float
    start_mjd: float
    end_mjd: float
    map: PixelMap
    outline: np.ndarray
    sha256: str
    planes: dict[str, _Plane]
    keywords: dict[str, str] = field(default_factory=dict)
    sky: float = 0.0
    rejected: np.ndarray | None = None

    @property
    def dataset(self) -> str:
        """The exposure's name."""
        return self.source.dataset

    @cached_property
    def inverse(self) -> InverseMap:
        """From the grid's plane back to the detector."""
        return self.map.inverse()

    @cached_property
    def typical_weight(self) -> float:
        """Median of the positive weights, on a sample of pixels; 0 where no pixel may be used."""
        return self._weights[0]

    @cached_property
    def usable_pixels(self) -> int:
        """About how many pixels may be used, from the same sample."""
        return self._weights[1]

    @cached_property
    def _weights(self) -> tuple[float, int]:
        sample = self._raw("WHT", (0, self.shape[0], 0, self.shape[1]))[:: max(1, self.shape[0] // 256), ::3]
        positive = sample[np.isfinite(sample) & (sample > 0)]
        usable = round(math.prod(self.shape) * positive.size / sample.size)
        return (float(np.median(positive)), usable) if positive.size else (0.0, 0)

    def read(self, window: Window) -> Pixels:
        """Read a window; cosmic rays found so far have weight 0, and the matched sky is already subtracted."""
        science = self._raw("SCI", window).astype(np.float32, copy=False)
        weight = self._raw("WHT", window).astype(np.float32, copy=False)
        flags = self._raw("DQ", window)
        good = np.isfinite(science) & (weight > 0) & ((flags & (DO_NOT_USE | OUTLIER)) == 0) & np.isfinite(weight)
        if self.rejected is not None:
            good &= ~self.rejected_window(window)
        np.minimum(weight, np.float32(WEIGHT_CEILING * self.typical_weight), out=weight)
        weight[~good] = 0
        science -= np.float32(self.sky)
        science[~good] = 0
        return Pixels(science, weight)

    def read_error(self, window: Window) -> np.ndarray:
        """Standard deviation of a window, sources included, MJy/sr; never below the exposure's own background noise."""
        error = self._raw("ERR", window).astype(np.float32, copy=False)
        floor = np.float32(0.5 * self.typical_weight**-0.5 if self.typical_weight else np.inf)
        return np.where(error > floor, error, floor)

    def rejected_window(self, window: Window) -> np.ndarray:
        """Cosmic-ray flags of a window, bool."""
        y0, y1, x0, x1 = window
        if self.rejected is None:
            return np.zeros((y1 - y0, x1 - x0), bool)
        return np.unpackbits(self.rejected[y0:y1], axis=1, count=self.shape[1])[:, x0:x1].astype(bool)

    def reject(self, indices: np.ndarray) -> None:
        """Add cosmic-ray flags, by flat index into the detector."""
        if self.rejected is None:
            self.rejected = np.zeros((self.shape[0], (self.shape[1] + 7) // 8), np.uint8)
        rows, columns = np.divmod(indices, self.shape[1])
        np.bitwise_or.at(self.rejected, (rows, columns // 8), (128 >> (columns % 8)).astype(np.uint8))

    def _raw(self, name: str, window: Window) -> np.ndarray:
        """A window of a plane as it is in the file, in native byte order."""
        plane = self.planes[name]
        y0, y1, x0, x1 = window
        whole = np.memmap(self.source.path, dtype=plane.dtype, mode="r", offset=plane.offset, shape=plane.shape)
        part = np.array(whole[y0:y1, x0:x1], dtype=np.dtype(plane.dtype).newbyteorder("="))
        if plane.zero:  # FITS has no unsigned integers: they are stored with an offset
            return (part.astype(np.int64) + plane.zero).astype(np.uint32)
        return part


def open_exposure(source: MosaicInput, grid: FieldGrid, channel: Channel) -> Exposure:
    """Open a contract file: headers, WCS on the grid, exposure time, digest.

    Raises
    ------
    ExposureFileError
        Or one of its subclasses: the file is missing, cut, of unlike planes, or lacks WCS or exposure time.
    """
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyUserWarning
    from astropy.wcs import WCS, FITSFixedWarning

    path = Path(source.path)
    try:
        size = path.stat().st_size
        with warnings.catch_warnings():
            # what these warn of (a cut file, odd cards) is checked below, and told as an error
            warnings.simplefilter("ignore", FITSFixedWarning)
            warnings.simplefilter("ignore", AstropyUserWarning)
            with fits.open(path, memmap=True, disable_image_compression=True) as hdus:
                planes = {name: _plane(hdus, name, path, size) for name in _PLANES}
                primary, header = hdus[0].header.copy(), hdus["SCI"].header.copy()
                wcs = WCS(header, hdus, relax=True)
    except FileNotFoundError as error:
        raise ExposureFileError(path, "is not there; reduce its association again") from error
    except OSError as error:
        raise TruncatedFileError(path, f"can't be read as FITS: {error}") from error
    shape = planes["SCI"].shape
    unlike = [name for name in _PLANES if planes[name].shape != shape]
    if unlike:
        raise WrongShapeError(path, f"planes {', '.join(unlike)} are not of SCI's shape {shape}")
    if not wcs.has_celestial or wcs.naxis != 2:
        raise MissingKeywordError(path, "SCI has no celestial WCS")
    return Exposure(
        source=source,
        shape=shape,
        exposure_time=_exposure_time(primary, header, path),
        start_mjd=_number(primary, header, ("EXPSTART", "MJD-BEG")),
        end_mjd=_number(primary, header, ("EXPEND", "MJD-END")),
        map=PixelMap.from_wcs(wcs, shape, grid, channel),
        outline=_outline(wcs, shape),
        sha256=source.sha256 or file_sha256(path),
        planes=planes,
        keywords={key: str(primary[key]) for key in ("TELESCOP", "INSTRUME", "PROGRAM") if key in primary},
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plane(hdus: Any, name: str, path: Path, size: int) -> _Plane:
    """Locate one plane, or say what is wrong with it."""
    from astropy.io import fits

    if name not in hdus:
        raise ExposureFileError(path, f"has no {name} plane; it is no calibrated exposure of this pipeline")
    hdu = hdus[name]
    header = hdu.header
    if not isinstance(hdu, (fits.ImageHDU, fits.PrimaryHDU)) or header.get("NAXIS") != 2:
        raise WrongShapeError(path, f"plane {name} is no plain two-dimensional image")
    zero = float(header.get("BZERO", 0))
    if float(header.get("BSCALE", 1)) != 1 or (zero and zero != 2**31) or int(header["BITPIX"]) not in _TYPES:
        raise WrongShapeError(path, f"plane {name} is stored in a scaled type")
    plane = _Plane(
        hdu.fileinfo()["datLoc"],
        _TYPES[int(header["BITPIX"])],
        (int(header["NAXIS2"]), int(header["NAXIS1"])),
        int(zero),
    )
    if plane.offset + np.dtype(plane.dtype).itemsize * math.prod(plane.shape) > size:
        raise TruncatedFileError(path, f"ends before its {name} plane does")
    return plane


def _exposure_time(primary: Header, header: Header, path: Path) -> float:
    """Effective exposure time in seconds."""
    value = _number(primary, header, ("EFFEXPTM", "XPOSURE", "EXPTIME"))
    if not (math.isfinite(value) and value > 0):
        raise MissingKeywordError(path, "has no exposure time (EFFEXPTM, XPOSURE or EXPTIME)")
    return value


def _number(primary: Header, header: Header, names: tuple[str, ...]) -> float:
    """First of the keywords that holds a number; NaN where none does."""
    for name in names:
        for one in (primary, header):
            value = one.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return float(value)
    return math.nan


def _outline(wcs: WCS, shape: tuple[int, int]) -> np.ndarray:
    """Sky polygon of the detector's edge, eight points to a side so that distortion is followed, (32, 2) deg."""
    t = np.arange(8) / 8
    ny, nx = shape
    x = np.concatenate([t * nx, np.full(8, nx), nx - t * nx, np.zeros(8)]) - 0.5
    y = np.concatenate([np.zeros(8), t * ny, np.full(8, ny), ny - t * ny]) - 0.5
    return np.column_stack(wcs.all_pix2world(x, y, 0))
