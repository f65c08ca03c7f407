"""From count rates to surface brightness: flat, flux scale, errors, bad pixels, the cores of bright stars.

Put here what is done to each pixel alone. Keep out the reading of reference files (`references.py`) and everything
that looks at neighbours. Flat, flux scale and their errors are those of jwst's ``flat_field`` and ``photom`` steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import ExposureFileError, TruncatedFileError, WrongShapeError
from panoramic.reduction.native.references import FLAGS, References
from panoramic.reduction.rate_files import SHAPE
from panoramic.reduction.star_cores import star_cores

if TYPE_CHECKING:
    from astropy.io.fits import HDUList

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

DO_NOT_USE, SATURATED, NON_SCIENCE = (np.uint32(FLAGS[k]) for k in ("DO_NOT_USE", "SATURATED", "NON_SCIENCE"))


@dataclass(eq=False)
class Calibrated:
    """One exposure in MJy/sr. Later steps work on its arrays in place.

    Parameters
    ----------
    sci : surface brightness, NaN where a pixel can't be used.
    err : total standard deviation.
    var_poisson, var_rnoise, var_flat : variances of sources and background, of read noise, of the flat, (MJy/sr)^2.
    dq : JWST's bits; DO_NOT_USE exactly where ``sci`` is NaN.
    saturated_core : pixels of bright stars that are flagged as saturated and have a good value all the same.
    """

    sci: Image
    err: Image
    var_poisson: Image
    var_rnoise: Image
    var_flat: Image
    dq: NDArray[np.uint32]
    saturated_core: Mask

    def unusable(self) -> Mask:
        """Pixels without a value to be trusted: DO_NOT_USE, or saturated and no star's core (a snowball's)."""
        bad = self.dq & (DO_NOT_USE | SATURATED) > 0
        bad &= ~self.saturated_core
        return bad


def calibrate(path: Path, references: References) -> Calibrated:
    """Read a rate file and bring it to MJy/sr.

    Parameters
    ----------
    path : the archive's file, full frame; it is not written to.
    references : of its detector, filter and pupil.

    Raises
    ------
    ExposureFileError
        It can't be read, lacks a plane of variances, or is no full frame.
    """
    from astropy.io import fits

    path = Path(path)
    try:
        # planes are read when they are asked for; a mapped file can't have unsigned flags
        with fits.open(path, memmap=False) as hdus:
            sci, poisson, rnoise = (_plane(hdus, name, path) for name in ("SCI", "VAR_POISSON", "VAR_RNOISE"))
            # with a flat the error follows from the variances, as in jwst
            err = _plane(hdus, "ERR", path) if references.flat is None else np.empty(0, np.float32)
            flags = np.ascontiguousarray(hdus["DQ"].data, dtype=np.uint32)
            primary = hdus[0].header.copy()
    except KeyError as error:
        raise ExposureFileError(path, f"lacks a plane ({error}); it is no rate file") from error
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise TruncatedFileError(path, f"is no whole FITS file ({error}); fetch it again") from error
    core = star_cores(sci, flags, primary)
    if references.flat is None:
        var_flat = np.zeros(SHAPE, np.float32)
    else:
        flat = references.flat
        sci /= flat.data
        squared = np.square(flat.data)
        poisson /= squared
        rnoise /= squared
        var_flat = np.square(sci * flat.error)
        var_flat /= squared
        flags |= flat.dq
        flags[flags & NON_SCIENCE > 0] |= DO_NOT_USE
        err = np.sqrt(poisson + rnoise + var_flat)
    scale = np.float32(references.photmjsr)
    planes = (sci, err, poisson, rnoise, var_flat)
    for plane, factor in zip(planes, (scale, scale, scale**2, scale**2, scale**2), strict=True):
        plane *= factor
    void = flags & DO_NOT_USE > 0
    for plane in planes:
        void |= np.isnan(plane)
    for plane in planes:
        plane[void] = np.nan
    flags[void] |= DO_NOT_USE
    core &= ~void
    return Calibrated(sci, err, poisson, rnoise, var_flat, flags, core)


def to_rate(image: Image, references: References) -> Image:
    """Surface brightness (MJy/sr) as count rates before the flat (DN/s), where the stripes are; a new array."""
    rate = image / np.float32(references.photmjsr)
    if references.flat is not None:
        rate *= references.flat.data
    return np.asarray(rate)


def from_rate(rate: Image, references: References) -> Image:
    """Inverse of `to_rate`."""
    image = rate * np.float32(references.photmjsr)
    if references.flat is not None:
        image /= references.flat.data
    return np.asarray(image)


def _plane(hdus: HDUList, name: str, path: Path) -> Image:
    data = hdus[name].data
    if data is None or data.shape != SHAPE:
        raise WrongShapeError(path, f"plane {name} is no full frame of {SHAPE[0]} x {SHAPE[1]}")
    return np.array(data, dtype=np.float32)
