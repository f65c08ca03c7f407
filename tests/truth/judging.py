"""How products are held against the simulation's truth. Shares no code with what measures inside the platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from panoramic.mosaic.photometry import aperture_photometry
from panoramic.reduction.base import ReductionResult
from panoramic.simulate.optics import OVERSAMPLING, PSF_POINTS, point_spread_function
from panoramic.simulate.truth import Truth


@dataclass(frozen=True)
class Placement:
    """Where an association's exposures lie: mean error (east, north) and scatter between exposures, mas."""

    east: float
    north: float
    between: float

    @property
    def radial(self) -> float:
        """Radial error of the association, mas."""
        return float(np.hypot(self.east, self.north))


def placement(folder: Path, result: ReductionResult, truth: Truth) -> Placement:
    """Compare the aligned WCS of each exposure with where its pixels really looked, on a 16 x 16 grid."""
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(50, 1997, 16), np.linspace(50, 1997, 16)))
    means = []
    for exposure in result.exposures:
        with fits.open(folder / exposure.filename) as hdus:
            ra, dec = WCS(hdus["SCI"].header, hdus).all_pix2world(x, y, 0)
        true_ra, true_dec = truth.true_sky(exposure.dataset, x, y)
        east = ((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec)) * 3.6e6
        means.append([np.mean(east), np.mean((dec - true_dec) * 3.6e6)])
    offsets = np.array(means)
    between = float(np.sqrt(offsets.var(axis=0).mean())) if len(offsets) > 1 else 0.0
    return Placement(float(offsets[:, 0].mean()), float(offsets[:, 1].mean()), between)


def external_sigma(truth: Truth, catalog: str, n: int, fields: Table) -> float:
    """Error per axis (mas) that a mean of N matches has, by the catalogue's true scatter among the matchable ones."""
    east, north = truth.catalog_scatter(catalog)
    good = np.isfinite(east) & (np.hypot(east, north) < 300) & np.isin(truth.references[catalog]["id"], fields["id"])
    return float(np.sqrt((np.var(east[good]) + np.var(north[good])) / 2 / n))


def encircled_energy(band: str, scale: float, radius: float) -> float:
    """Fraction of a point source's light within a radius (arcsec), of the simulator's own PSF."""
    psf = point_spread_function(band, scale)
    centre = PSF_POINTS // 2
    y, x = np.indices(psf.shape)
    return float(psf[np.hypot(x - centre, y - centre) * scale / OVERSAMPLING < radius].sum() / psf.sum())


def star_ratios(folder: Path, stem: str, truth: Truth, band: str, scale: float, radius: float = 0.5) -> np.ndarray:
    """Measured over true flux of the isolated stars of 18 to 23 mag on a mosaic."""
    sources, column = truth.sources, f"mag_{band}"
    stars = sources[(sources["kind"] == "star") & (sources[column] > 18) & (sources[column] < 23)]
    keep = []
    for star in stars:
        apart = (
            np.hypot((sources["ra"] - star["ra"]) * np.cos(np.radians(star["dec"])), sources["dec"] - star["dec"])
            * 3600
        )
        rivals = (apart > 0) & (apart < 2.0) & (sources[column] < star[column] + 4)
        keep.append(not rivals.any())
    stars = stars[np.array(keep, bool)]
    table = aperture_photometry(
        folder / f"{stem}_sci.fits", folder / f"{stem}_wht.fits", np.asarray(stars["ra"]), np.asarray(stars["dec"]),
        [radius], annulus_arcsec=(1.2, 1.8),
    )  # fmt: skip
    true = 10 ** ((23.9 - np.asarray(stars[column])) / 2.5)
    ratio = np.asarray(table[f"flux_{radius:.2f}"]) / encircled_energy(band, scale, radius) / true
    return ratio[np.asarray(table["covered"]) & np.isfinite(ratio)]
