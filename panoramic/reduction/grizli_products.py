"""Turns what grizli leaves in its work folder into the files of the contract (``base.py``).

Put here the reading of grizli's files and the writing of ours. Keep out grizli itself (nothing here imports it) and
the verdict on what it did.

grizli's exposures are in MJy/sr although their header says ELECTRONS/S (drizzlepac wants that); the sky is still in
them, its level in MDRIZSKY and its shape in the BKG plane. A star's flux is the sum of SCI over pixels times each
pixel's own solid angle, as the flat field leaves surface brightness; PIXAR_SR, the nominal solid angle, is right to
the detector's pixel area variation (about 1 % at the corners), which drizzling with the aligned WCS takes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from panoramic.pointing import measured_pointing, moved_position, pointing_at, rotation_of
from panoramic.reduction.base import Pointing
from panoramic.reduction.star_cores import DO_NOT_USE, star_cores

APERTURE_ARCSEC = 0.36
OUTLIER = 16
_GRIZLI_OUTLIER = 4096  # AstroDrizzle's bit for cosmic rays; JWST's bit of that number, WARM, is reset by grizli
_NO_ERROR = 1e4  # grizli writes 1e5 where the archive has NaN
_WCS_PREFIXES = (
    "CRPIX", "CRVAL", "CTYPE", "CUNIT", "CDELT", "CD1_", "CD2_", "PC1_", "PC2_", "PV1_", "PV2_", "A_", "B_", "AP_",
    "BP_", "WCSAXES", "WCSNAME", "LONPOLE", "LATPOLE", "RADESYS", "EQUINOX", "CROTA", "CTYPE3", "PC3_",
)  # fmt: skip
_PRIMARY_FROM_GRIZLI = (
    "S_FLAT", "S_PHOTOM", "S_WCS", "R_FLAT", "R_PHOTOM", "R_AREA", "R_DISTOR", "R_FILOFF",
    "ONEFEXP", "FIXFLATF", "WISPFILE",  # grizli's own: 1/f removed, sky flat, wisp template
)  # fmt: skip
_SCI_FROM_GRIZLI = ("PHOTMJSR", "PHOTUJA2", "PIXAR_SR", "PIXAR_A2")
_IMAGE_DROP = ("TELESCOP", "INSTRUME", "BUNIT", "PHOTSCAL")


class ProductError(Exception):
    """What grizli left can't be made into products."""


def write_products(
    job: Mapping[str, Any], weights: Mapping[str, str], initial: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write all products into ``job["products"]`` and verify them.

    Parameters
    ----------
    weights : grizli's file name -> saved weight.
    initial : grizli's file name -> header of the WCS before anything was aligned.

    Returns
    -------
    dict
        ``exposures`` (dataset -> file name), ``pointings`` (dataset -> fields of `Pointing`), ``image``, ``weight``,
        ``catalog`` (file names or None), ``n_sources``, ``pixel_scale_mas``. Empty where grizli ended before its last
        drizzle.
    """
    prep, target = Path(job["work"]) / job["root"] / "Prep", Path(job["products"])
    target.mkdir(parents=True, exist_ok=True)
    empty: dict[str, Any] = {
        "exposures": {}, "pointings": {}, "image": None, "weight": None, "catalog": None, "n_sources": 0,
        "pixel_scale_mas": 0.0,
    }  # fmt: skip
    images = sorted(prep.glob(f"{job['root']}_dr[zc]_sci.fits"))
    catalog = prep / f"{job['root']}.cat.fits"
    if not images or not weights or not catalog.exists():
        return empty
    image = images[0]
    offset = job["ra_offset"]
    written, pointings = {}, {}
    for exposure in job["exposures"]:
        name = f"{exposure['alias']}_rate.fits"
        if name not in weights:
            continue
        path = target / f"{exposure['dataset']}_rate.fits"
        source, pointing = Path(exposure["source"]), None
        if initial and name in initial:
            pointing = pointing_correction(initial[name], prep / name, source, exposure.get("prior"), offset)
            pointings[exposure["dataset"]] = asdict(pointing)
        write_exposure(prep / name, source, Path(weights[name]), path, job["provenance"], offset,
                       several=len(job["exposures"]) > 1, pointing=pointing)  # fmt: skip
        verify_exposure(path)
        written[exposure["dataset"]] = path.name
    names = {kind: f"{job['association']}_drz_{kind}.fits" for kind in ("sci", "wht")}
    scale = write_image(image, target / names["sci"], "MJy/sr", job["provenance"], offset)
    write_image(Path(str(image).replace("_sci.fits", "_wht.fits")), target / names["wht"], "(MJy/sr)^-2",
                job["provenance"], offset)  # fmt: skip
    catalog_name = f"{job['association']}.cat.ecsv"
    n = write_catalog(catalog, target / names["sci"], target / names["wht"], target / catalog_name)
    return {
        "exposures": written,
        "pointings": pointings,
        "image": names["sci"],
        "weight": names["wht"],
        "catalog": catalog_name,
        "n_sources": n,
        "pixel_scale_mas": scale,
    }


# --- exposures -----------------------------------------------------------------------------


def write_exposure(
    reduced: Path,
    archive: Path,
    weight: Path,
    path: Path,
    provenance: Mapping[str, str],
    ra_offset: float,
    several: bool,
    pointing: Pointing | None = None,
) -> None:
    """One exposure: planes of the contract behind the archive's own primary header.

    Parameters
    ----------
    reduced : grizli's file.
    archive : the archive's file, for header and DQ: grizli's has HST's keywords and clipped bits.
    weight : grizli's own drizzling weight of the exposure, saved as an array.
    several : whether cosmic rays were looked for between exposures.
    pointing : correction of the archive's pointing, for the header.
    """
    from astropy.io import fits

    with fits.open(reduced) as done, fits.open(archive) as original:
        sci_header = done["SCI"].header
        unit = str(sci_header.get("OBUNIT", sci_header.get("BUNIT", ""))).upper()
        if unit != "MJY/SR":
            raise ProductError(f"{path.stem}: grizli left it in {unit or 'no unit'}: no flux scale was applied")
        data = done["SCI"].data.astype(np.float32)
        data -= np.float32(sci_header.get("MDRIZSKY", 0.0))
        if ("BKG", 1) in done:
            data -= done["BKG", 1].data.astype(np.float32)
        error = done["ERR"].data.astype(np.float32)
        wht = np.load(weight)
        flags = original["DQ"].data.astype(np.uint32)
        if several:
            flags |= np.where(done["DQ"].data & _GRIZLI_OUTLIER, np.uint32(OUTLIER), np.uint32(0))
        void = ~np.isfinite(data) | ~np.isfinite(error) | (error > _NO_ERROR) | (error <= 0)
        void |= ~np.isfinite(original["SCI"].data)
        wht[void | ~np.isfinite(wht) | (wht < 0)] = 0
        core = star_cores(original["SCI"].data, flags, original[0].header) & ~void
        if core.any() and (wht > 0).any():
            # equal weights: a core that counts less than its wings would dim the star
            wht[core] = np.median(wht[wht > 0])
            flags[core] &= ~np.uint32(OUTLIER)
        # a pixel without a value has none here either
        data[void] = np.nan
        error[void] = np.nan
        flags[wht == 0] |= np.uint32(DO_NOT_USE)
        primary = original[0].header.copy()
        for key in _PRIMARY_FROM_GRIZLI:
            if key in done[0].header:
                primary[key] = done[0].header[key]
        _add_provenance(primary, provenance)
        if pointing is not None:
            primary["PNTDRA"] = (pointing.shift_mas[0], "[mas] correction of the pointing to the east")
            primary["PNTDDEC"] = (pointing.shift_mas[1], "[mas] correction of the pointing to the north")
            primary["PNTROLL"] = (pointing.roll_deg, "[deg] its rotation, from north to east")
        header = _science_header(original["SCI"].header, sci_header, ra_offset)
        planes = [fits.PrimaryHDU(header=primary), fits.ImageHDU(data, header, name="SCI")]
        for name, array, bunit in (("ERR", error, "MJy/sr"), ("WHT", wht, "(MJy/sr)^-2"), ("DQ", flags, "")):
            hdu = fits.ImageHDU(array, name=name)
            if bunit:
                hdu.header["BUNIT"] = bunit
            planes.append(hdu)
        fits.HDUList(planes).writeto(path, output_verify="silentfix")


def pointing_correction(
    initial: Any, reduced: Path, archive: Path, prior: Mapping[str, Any] | None, ra_offset: float
) -> Pointing:
    """What was done to the pointing in all, from the archive's own to the aligned one.

    Both WCS have the same distortion polynomial, so that their difference is exact; a scale in it is left out.

    Parameters
    ----------
    initial : header of the WCS that the exposure had before anything was aligned.
    reduced : grizli's file, with the aligned WCS.
    archive : the archive's file.
    prior : by which the working copy's pointing was moved before all that.
    ra_offset : by which the sky is turned in both, deg.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    header = fits.getheader(archive, "SCI")
    ra, dec = float(header["RA_REF"]), float(header["DEC_REF"])
    turned = (ra + ra_offset) % 360
    moved = np.eye(3)
    if prior:
        moved = rotation_of(Pointing(turned, dec, (prior["shift_mas"][0], prior["shift_mas"][1]), prior["roll_deg"]))
    axis = np.linspace(0.0, 2047.0, 9)
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    before = WCS(initial, relax=True).all_pix2world(x, y, 0)
    after = WCS(fits.getheader(reduced, "SCI"), relax=True).all_pix2world(x, y, 0)
    fitted = measured_pointing(before, after, *moved_position(moved, turned, dec))
    return replace(pointing_at(rotation_of(fitted) @ moved, turned, dec), ra=ra)


def _science_header(archive: Any, reduced: Any, ra_offset: float) -> Any:
    """The archive's SCI header with the aligned WCS in place of the pointing's."""
    from astropy.wcs import WCS

    header = archive.copy()
    for key in [k for k in header if k.startswith(_WCS_PREFIXES)]:
        header.remove(key, remove_all=True)
    header["BUNIT"] = "MJy/sr"
    for key in _SCI_FROM_GRIZLI:
        if key in reduced:
            header[key] = reduced[key]
    header["SKYLEVEL"] = (float(reduced.get("MDRIZSKY", 0.0)), "[MJy/sr] level that was subtracted")
    header["WCSAXES"] = 2
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    for key in ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        header[key] = reduced[key]
    header["CRVAL1"] = (reduced["CRVAL1"] - ra_offset) % 360
    for key in reduced:
        if key.startswith(("A_", "B_")):
            header[key] = reduced[key]
    header["RADESYS"] = "ICRS"
    corners = WCS(header, relax=True).calc_footprint(axes=(header["NAXIS1"], header["NAXIS2"]))
    header["S_REGION"] = "POLYGON ICRS  " + " ".join(f"{v:.9f}" for v in corners.ravel())
    return header


def verify_exposure(path: Path) -> None:
    """Read a written exposure back as anybody would, and refuse what can't be right.

    Raises
    ------
    ProductError
        With the number that is wrong.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    with fits.open(path) as hdus:
        shapes = {name: hdus[name].shape for name in ("SCI", "ERR", "WHT", "DQ")}
        if len(set(shapes.values())) != 1:
            raise ProductError(f"{path.name}: planes of unlike shapes {shapes}")
        used = hdus["WHT"].data > 0
        fraction = float(used.mean())
        if fraction < 0.2:
            raise ProductError(f"{path.name}: only {fraction:.1%} of its pixels can be used")
        if not np.isfinite(hdus["SCI"].data[used]).all() or not (hdus["ERR"].data[used] > 0).all():
            raise ProductError(f"{path.name}: pixels with weight have no value or no error")
        if (hdus["DQ"].data[~used] & DO_NOT_USE == 0).any():
            raise ProductError(f"{path.name}: pixels without weight are not flagged")
        wcs = WCS(hdus["SCI"].header)
        long_wave = str(hdus[0].header["DETECTOR"]).endswith("LONG")
    scale = _pixel_scale_mas(wcs)
    low, high = (60.0, 66.0) if long_wave else (29.0, 33.0)
    if not low < scale < high:
        raise ProductError(f"{path.name}: a pixel scale of {scale:.2f} mas is not that of its detector")
    x, y = wcs.all_world2pix(*wcs.all_pix2world([20.0, 1024.0, 2020.0], [20.0, 1024.0, 2020.0], 0), 0)
    if not np.allclose([x, y], [20.0, 1024.0, 2020.0], atol=0.02):
        raise ProductError(f"{path.name}: its WCS can't be inverted")


# --- the association's image ---------------------------------------------------------------


def write_image(source: Path, path: Path, unit: str, provenance: Mapping[str, str], ra_offset: float) -> float:
    """Copy a drizzled plane under the contract's name and unit; give its pixel scale in mas."""
    from astropy.io import fits
    from astropy.wcs import WCS

    with fits.open(source) as hdus:
        header, data = hdus[0].header.copy(), hdus[0].data.astype(np.float32)
    for key in [k for k in header if k.startswith("FLT0") or k in _IMAGE_DROP]:
        header.remove(key, remove_all=True)
    header["CRVAL1"] = (header["CRVAL1"] - ra_offset) % 360
    header["TELESCOP"], header["INSTRUME"] = "JWST", "NIRCAM"
    header["BUNIT"] = unit
    _add_provenance(header, provenance)
    fits.PrimaryHDU(data, header).writeto(path, output_verify="silentfix")
    return _pixel_scale_mas(WCS(header))


def _pixel_scale_mas(wcs: Any) -> float:
    from astropy.wcs.utils import proj_plane_pixel_area

    return float(np.sqrt(proj_plane_pixel_area(wcs.celestial)) * 3.6e6)


def _add_provenance(header: Any, provenance: Mapping[str, str]) -> None:
    comments = {
        "ENGINE": "reduction engine",
        "ENGVER": "its version",
        "CODEVER": "version of panoramic",
        "ASSOC": "association",
        "REFCAT": "astrometric reference",
        "CRDS_CTX": "CRDS context of the reduction",
    }
    for key, value in provenance.items():
        header[key] = (value, comments.get(key, ""))


def write_catalog(source: Path, image: Path, weight: Path, path: Path) -> int:
    """Write the catalogue in the contract's columns; give the number of its rows.

    Fluxes are measured again, in the contract's aperture, on the drizzled image less the background that grizli took
    off for its own photometry. Errors are scaled so that empty apertures scatter as they say: the stripes that 1/f
    removal leaves are in no weight, and make them 1.6 times larger on a long-wave and 5 times on a short-wave image.

    Parameters
    ----------
    source : grizli's catalogue, with its background and segmentation (``_bkg.fits``, ``_seg.fits``) beside it.
    image, weight : the association's drizzled image, as written.
    """
    import sep
    from astropy.io import fits
    from astropy.table import Table
    from astropy.wcs import WCS

    from panoramic.reduction.base import CATALOG_COLUMNS

    with fits.open(source) as hdus:
        rows = Table(hdus[1].data)
    with fits.open(image) as hdus:
        data, wcs = hdus[0].data.astype(np.float32), WCS(hdus[0].header)
    data -= fits.getdata(_beside(source, "bkg")).astype(np.float32)
    inverse = fits.getdata(weight).astype(np.float32)
    scale = _pixel_scale_mas(wcs) / 1000
    radius = APERTURE_ARCSEC / scale
    to_ujy = 1e12 * (scale / 206264.806247) ** 2
    bad = ~(inverse > 0) | ~np.isfinite(data)
    data[bad] = 0
    error = np.where(bad, 0, 1 / np.sqrt(np.where(bad, 1, inverse))).astype(np.float32)
    x, y = np.asarray(rows["X_IMAGE"], float) - 1, np.asarray(rows["Y_IMAGE"], float) - 1
    flux, flux_error, _ = sep.sum_circle(data, x, y, radius, err=error, mask=bad, subpix=5)
    flux_error *= _empty_aperture_excess(data, error, bad | (fits.getdata(_beside(source, "seg")) > 0), radius)
    ra, dec = wcs.all_pix2world(x, y, 0)
    table = Table(
        {
            "id": np.asarray(rows["NUMBER"], int),
            "ra": ra % 360,
            "dec": dec,
            "x": x,
            "y": y,
            "flux": flux * to_ujy,
            "flux_error": flux_error * to_ujy,
            "mag": np.asarray(rows["MAG_AUTO"], float),
            "flux_radius": np.asarray(rows["FLUX_RADIUS"], float),
            "flags": np.asarray(rows["FLAG"], int),
        }
    )
    # rows on the edge, where nothing can be measured, are no sources
    table = table[np.isfinite(table["flux_error"]) & (table["flux_error"] > 0) & np.isfinite(table["flux"])]
    for name, meaning in CATALOG_COLUMNS.items():
        table[name].description = meaning
    table.write(path, format="ascii.ecsv")
    return len(table)


def _beside(catalog: Path, kind: str) -> Path:
    return catalog.with_name(catalog.name.replace(".cat.fits", f"_{kind}.fits"))


def _empty_aperture_excess(data: Any, error: Any, occupied: Any, radius: float, fewest: int = 50) -> float:
    """How many times more the flux of empty apertures scatters than their errors say; at least 1."""
    import sep

    step = 2 * radius + 1
    y, x = (a.ravel() for a in np.mgrid[step : data.shape[0] - step : step, step : data.shape[1] - step : step])
    # a pixel or two beyond, for the wings that segmentation leaves out
    free = sep.sum_circle(occupied.astype(np.float32), x, y, radius + 2)[0] == 0
    if free.sum() < fewest:
        return 1.0
    flux, flux_error, _ = sep.sum_circle(data, x[free], y[free], radius, err=error)
    pull = flux / flux_error
    return max(1.0, float(1.4826 * np.median(np.abs(pull - np.median(pull)))))
