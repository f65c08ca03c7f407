"""The files of the contract (``base.py``): exposures, the association's image and weight.

Put here what the files look like. Keep out what is in them.

An exposure is written once, when the detector's steps are done with it; its planes are then read by rows from there, so
that memory does not grow with the number of exposures. Alignment and outliers are written into the same file at the
end: header cards, weights and flags of single pixels. No file holds a date of its making.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import EngineFailedError
from panoramic.reduction.base import Pointing
from panoramic.reduction.native.exposure import ReducedExposure
from panoramic.reduction.native.geometry import Geometry
from panoramic.reduction.native.image import Grid
from panoramic.reduction.native.references import FLAGS, References
from panoramic.reduction.rate_files import SHAPE

Image = NDArray[np.float32]

SIP_ORDER = 5
_DO_NOT_USE, _OUTLIER = FLAGS["DO_NOT_USE"], FLAGS["OUTLIER"]
_UNITS = {
    "ERR": "MJy/sr", "WHT": "(MJy/sr)^-2", "VAR_POISSON": "(MJy/sr)^2", "VAR_RNOISE": "(MJy/sr)^2",
    "VAR_FLAT": "(MJy/sr)^2",
}  # fmt: skip
_WCS_PREFIXES = (
    "CRPIX", "CRVAL", "CTYPE", "CUNIT", "CDELT", "CD1_", "CD2_", "PC1_", "PC2_", "PC3_", "PV1_", "PV2_", "A_", "B_",
    "AP_", "BP_", "WCSAXES", "WCSNAME", "LONPOLE", "LATPOLE", "RADESYS", "EQUINOX", "CROTA", "S_REGION",
)  # fmt: skip
_STEPS = {
    "S_FLAT": ("flat", "Flat Field Correction"),
    "S_PHOTOM": ("photom", "Photometric Calibration"),
    "S_WCS": ("distortion", "Assign World Coordinate System"),
}
_FILES = {
    "R_FLAT": "flat", "R_PHOTOM": "photom", "R_AREA": "area", "R_DISTOR": "distortion", "R_FILOFF": "filteroffset",
}  # fmt: skip
_COMMENTS = {
    "ENGINE": "reduction engine",
    "ENGVER": "its version",
    "CODEVER": "version of panoramic",
    "ASSOC": "association",
    "REFCAT": "astrometric reference",
    "CRDS_CTX": "CRDS context of the reduction",
}
_POINTING_COMMENTS = {
    "PNTDRA": "[mas] correction of the pointing to the east",
    "PNTDDEC": "[mas] correction of the pointing to the north",
    "PNTROLL": "[deg] its rotation, from north to east",
}


@dataclass(frozen=True)
class PlaneFile:
    """A float32 plane of a written product; rows are read from the file each time."""

    path: Path
    offset: int
    shape: tuple[int, int] = SHAPE
    ndim: int = 2

    def __getitem__(self, key: Any) -> Image:
        stored = np.memmap(self.path, dtype=">f4", mode="r", offset=self.offset, shape=self.shape)
        return np.array(stored[key], dtype=np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True)
class WrittenExposure:
    """A written product: its file, and the planes that later steps read."""

    path: Path
    science: PlaneFile
    weight: PlaneFile


def write_exposure(
    exposure: ReducedExposure,
    references: References,
    geometry: Geometry,
    path: Path,
    provenance: Mapping[str, str],
) -> WrittenExposure:
    """Write an exposure; its alignment and outliers come later (`finish_exposure`).

    Parameters
    ----------
    exposure : what the detector's steps left.
    references : that were used, for the header.
    geometry : by the pointing so far.
    provenance : keyword -> value.
    """
    from astropy.io import fits

    with fits.open(exposure.header.path, memmap=True) as original:
        primary, header = original[0].header.copy(), original["SCI"].header.copy()
    for key, (kind, comment) in _STEPS.items():
        primary[key] = ("COMPLETE" if kind in references.files else "SKIPPED", comment)
    for key, kind in _FILES.items():
        if kind in references.files:
            primary[key] = references.files[kind].name
    for key, value in provenance.items():
        primary[key] = (value, _COMMENTS.get(key, ""))
    for key, comment in _POINTING_COMMENTS.items():
        primary[key] = (0.0, comment)
    wisp = exposure.wisp
    if wisp is not None:
        primary["WISPAMP"] = (wisp.amplitude if wisp.used else 0.0, "amplitude of the wisp template subtracted")
        if np.isfinite(wisp.error):
            primary["WISPERR"] = (wisp.error, "its error")
    for key in [k for k in header if k.startswith(_WCS_PREFIXES)]:
        header.remove(key, remove_all=True)
    header["BUNIT"] = "MJy/sr"
    header["PHOTMJSR"] = (references.photmjsr, "MJy/sr of 1 DN/s")
    header["PIXAR_SR"], header["PIXAR_A2"] = references.pixar_sr, references.pixar_a2
    header["SKYLEVEL"] = (exposure.background.level, "[MJy/sr] median of the background subtracted")
    _set_geometry(header, geometry)
    hdus = [fits.PrimaryHDU(header=primary)]
    for name, plane in exposure.planes.items():
        hdu = fits.ImageHDU(plane, header if name == "SCI" else None, name=name)
        if name in _UNITS:
            hdu.header["BUNIT"] = _UNITS[name]
        hdus.append(hdu)
    hdus += _models(exposure)
    fits.HDUList(hdus).writeto(path, output_verify="silentfix")
    with fits.open(path, memmap=True) as written:
        places = [written[name].fileinfo()["datLoc"] for name in ("SCI", "WHT")]
    return WrittenExposure(path, *(PlaneFile(path, offset) for offset in places))


def finish_exposure(
    path: Path, geometry: Geometry, pointing: Pointing, outliers: NDArray[np.uint32], *, with_gwcs: bool
) -> None:
    """Write the alignment and the outliers into a product, and look whether its WCS can be read.

    Parameters
    ----------
    path : of the product.
    geometry : aligned.
    pointing : correction of the archive's pointing that it means.
    outliers : flat indices of pixels.
    with_gwcs : append the geometry as a gwcs object, in an extension ASDF.

    Raises
    ------
    EngineFailedError
        The WCS can't be inverted by astropy, or no plane is where it should be.
    """
    from astropy.io import fits

    with fits.open(path, mode="update", memmap=True, output_verify="silentfix") as hdus:
        primary, header = hdus[0].header, hdus["SCI"].header
        for key, value in zip(_POINTING_COMMENTS, (*pointing.shift_mas, pointing.roll_deg), strict=True):
            primary[key] = value
        _set_geometry(header, geometry)
        _check_wcs(header, path)
    with fits.open(path, memmap=True) as hdus:
        weight_at, flags_at = (hdus[name].fileinfo()["datLoc"] for name in ("WHT", "DQ"))
    if outliers.size:
        weight = np.memmap(path, dtype=">f4", mode="r+", offset=weight_at, shape=SHAPE[0] * SHAPE[1])
        weight[outliers] = 0
        weight.flush()
        # unsigned numbers are stored less 2^31: the highest bit is turned, the others are as they are
        flags = np.memmap(path, dtype=">u4", mode="r+", offset=flags_at, shape=SHAPE[0] * SHAPE[1])
        flags[outliers] |= np.uint32(_DO_NOT_USE | _OUTLIER)
        flags.flush()
    if with_gwcs:
        _append_gwcs(path, geometry)


def write_image(
    science: Image,
    weight: Image,
    grid: Grid,
    paths: tuple[Path, Path],
    keywords: Mapping[str, Any],
    provenance: Mapping[str, str],
) -> None:
    """Write the association's image and its weight.

    Parameters
    ----------
    science, weight : MJy/sr and (MJy/sr)^-2.
    paths : of the two files.
    keywords : for both headers.
    """
    from astropy.io import fits

    for data, path, unit in zip((science, weight), paths, ("MJy/sr", "(MJy/sr)^-2"), strict=True):
        header = fits.Header()
        for key, value in {**grid.cards(), **keywords, "BUNIT": unit}.items():
            header[key] = value
        for key, said in provenance.items():
            header[key] = (said, _COMMENTS.get(key, ""))
        fits.PrimaryHDU(data, header).writeto(path)


def _set_geometry(header: Any, geometry: Geometry) -> None:
    for key, value in geometry.to_sip(SIP_ORDER).cards.items():
        header[key] = value
    corners = geometry.footprint()
    header["S_REGION"] = "POLYGON ICRS  " + " ".join(f"{v:.9f}" for v in corners.ravel())


def _models(exposure: ReducedExposure) -> list[Any]:
    """What was subtracted, coarse: the sky's nodes, and the stripes' rows."""
    from astropy.io import fits

    sky = fits.ImageHDU(exposure.background.nodes, name="BACKGROUND")
    sky.header["BUNIT"] = "MJy/sr"
    sky.header["MESH_PX"] = (exposure.background.mesh_px, "side of a mesh; a natural cubic spline between")
    if exposure.stripes is None:
        return [sky]
    amplifiers, rows = exposure.stripes.amplifier.shape
    columns = [
        fits.Column("ROW", "E", "DN/s", array=exposure.stripes.row),
        fits.Column("AMPLIFIER", f"{amplifiers}E", "DN/s", array=exposure.stripes.amplifier.T),
        fits.Column("PARITY", f"{amplifiers}E", "DN/s", array=exposure.stripes.parity.T),
    ]
    table = fits.BinTableHDU.from_columns(columns, nrows=rows, name="STRIPES")
    table.header["COMMENT"] = "Before the flat: a pixel of an amplifier had ROW + AMPLIFIER added,"
    table.header["COMMENT"] = "and PARITY too in even columns (counted from 0), -PARITY in odd ones."
    return [sky, table]


def _check_wcs(header: Any, path: Path) -> None:
    """Read the WCS as anybody would."""
    from astropy.wcs import WCS

    wcs = WCS(header, relax=True, fix=False)
    at = [20.0, 1024.0, 2020.0]
    x, y = wcs.all_world2pix(*wcs.all_pix2world(at, at, 0), 0)
    if not np.allclose([x, y], [at, at], atol=0.02):
        raise EngineFailedError(f"{path.name}: its WCS can't be inverted")


def _append_gwcs(path: Path, geometry: Geometry) -> None:
    """Append an extension ASDF as jwst's files have one, with the tree ``meta.wcs`` alone."""
    import io

    import asdf
    from astropy.io import fits

    buffer = io.BytesIO()
    # history would hold a date
    asdf.AsdfFile({"meta": {"wcs": geometry.gwcs()}}).write_to(
        buffer, all_array_storage="inline", include_block_index=False
    )
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    column = fits.Column("ASDF_METADATA", f"{content.size}B", array=content[None, :])
    table = fits.BinTableHDU.from_columns([column], name="ASDF")
    fits.append(path, table.data, table.header, verify=False)
