"""Faults that are applied after an engine's work: a solution moved, its log unchanged.

Put here what changes reduced products. Faults of the archive itself are applied where the archive is written.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import ArrayLike

from panoramic.errors import FaultError
from panoramic.simulate.catalogs import offset_sky
from panoramic.simulate.program import Simulation, WrongSuccess

RA_COLUMNS, DEC_COLUMNS = ("ra", "X_WORLD"), ("dec", "Y_WORLD")


def wrong_success(simulation: Simulation, name: str) -> tuple[float, float] | None:
    """The shift (east, north, *arcsec*) that is to be added to the solution of a dataset or association, or None."""
    faults = [f for f in simulation.faults if isinstance(f, WrongSuccess)]
    shifts = [f.shift_arcsec for f in faults if fnmatch.fnmatch(name, f.match)]
    if not shifts:
        return None
    return sum(s[0] for s in shifts), sum(s[1] for s in shifts)


def move_wcs(paths: Iterable[Path | str], dx_arcsec: float, dy_arcsec: float) -> list[Path]:
    """Move the solution of reduced products, as if the engine had found another one.

    Parameters
    ----------
    paths : reduced exposures and drizzled images (CRVAL of every image extension with a celestial WCS), catalogues
        named ``*.cat.fits``, ``*.cat.ecsv`` or ``*_cat.fits`` (columns ra and dec). Other files are left alone.
    dx_arcsec, dy_arcsec : east (along a great circle) and north, *arcsec*.

    Returns
    -------
    list of Path
        The files that were changed. Polynomial distortion needs no change: it is in pixels.

    Raises
    ------
    FaultError
        None of the files has a solution to move.
    """
    moved = []
    for path in map(Path, paths):
        if path.name.endswith((".cat.fits", ".cat.ecsv", "_cat.fits")):
            _move_catalog(path, dx_arcsec, dy_arcsec)
        elif path.suffix == ".fits" and _move_images(path, dx_arcsec, dy_arcsec):
            pass
        else:
            continue
        moved.append(path)
    if not moved:
        raise FaultError("wrong_success: none of the files has a solution that could be moved")
    return moved


def _shift(ra: ArrayLike, dec: ArrayLike, dx_arcsec: float, dy_arcsec: float) -> tuple[np.ndarray, np.ndarray]:
    lon, lat = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    return offset_sky(lon, lat, np.full(len(lon), dx_arcsec * 1000), np.full(len(lon), dy_arcsec * 1000))


def _move_images(path: Path, dx_arcsec: float, dy_arcsec: float) -> bool:
    draft = path.with_name(f".{path.name}.part")
    shutil.copyfile(path, draft)
    changed = False
    with fits.open(draft, mode="update") as hdus:
        for hdu in hdus:
            if {"CRVAL1", "CRVAL2", "CTYPE1"} <= set(hdu.header) and str(hdu.header["CTYPE1"]).startswith("RA--"):
                ra, dec = _shift(hdu.header["CRVAL1"], hdu.header["CRVAL2"], dx_arcsec, dy_arcsec)
                hdu.header["CRVAL1"], hdu.header["CRVAL2"] = float(ra[0]), float(dec[0])
                changed = True
        primary = hdus[0].header
        if changed and "PNTDRA" in primary and "PNTDDEC" in primary:
            # the correction of the pointing that the engine would have told, mas
            primary["PNTDRA"] += 1000 * dx_arcsec
            primary["PNTDDEC"] += 1000 * dy_arcsec
    if changed:
        os.replace(draft, path)
    else:
        draft.unlink()
    return changed


def _move_catalog(path: Path, dx_arcsec: float, dy_arcsec: float) -> None:
    form = "ascii.ecsv" if path.suffix == ".ecsv" else "fits"
    table = Table.read(path, format=form)
    names = {str(name).lower(): name for name in table.colnames}
    for ra_name, dec_name in zip(RA_COLUMNS, DEC_COLUMNS, strict=True):
        ra_column, dec_column = names.get(ra_name.lower()), names.get(dec_name.lower())
        if ra_column and dec_column:
            ra, dec = _shift(table[ra_column], table[dec_column], dx_arcsec, dy_arcsec)
            table[ra_column][:], table[dec_column][:] = ra, dec
    draft = path.with_name(f".{path.name}.part")
    table.write(draft, format=form, overwrite=True)
    os.replace(draft, path)
