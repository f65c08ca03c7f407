"""Calibrated exposures of a made-up sky with known positions, small enough to be made by the dozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from panoramic.reduction.base import ReferenceSources

SIDE = 512
SCALE_MAS = 63.0
NOISE = 0.02


@dataclass(frozen=True)
class MadeSky:
    """Stars about a place: RA, Dec (deg), peak brightness in units of the noise."""

    place: tuple[float, float]
    ra: np.ndarray
    dec: np.ndarray
    peak: np.ndarray

    @classmethod
    def around(cls, place: tuple[float, float], number: int, rng: np.random.Generator, half: float = 24.0) -> MadeSky:
        """Stars scattered over a square of 2 x ``half`` arcsec."""
        plane = rng.uniform(-half, half, (number, 2)) / 3600
        wcs = sky_wcs(place, 0.0, pixel_deg=1.0)
        ra, dec = wcs.all_pix2world(-plane[:, 0], plane[:, 1], 0)
        return cls(place, ra, dec, np.exp(rng.uniform(np.log(15), np.log(600), number)))

    def reference(
        self, rng: np.random.Generator, scatter_mas: float = 30.0, name: str = "LS_DR9", kind: str = "external"
    ) -> ReferenceSources:
        """A catalogue of the stars with an honest error in each position."""
        north = rng.normal(0, scatter_mas, len(self.ra)) / 3.6e6
        east = rng.normal(0, scatter_mas, len(self.ra)) / 3.6e6 / np.cos(np.radians(self.dec))
        error = np.full(len(self.ra), scatter_mas)
        return ReferenceSources(
            name, (self.ra + east) % 360, self.dec + north, np.full(len(self.ra), 20.0), error, kind
        )


@dataclass(frozen=True)
class Made:
    """How one exposure differs from the truth: a wrong WCS, and what happened to the light."""

    dither: tuple[float, float] = (0.0, 0.0)  # arcsec
    roll: float = 30.0  # deg
    error_mas: tuple[float, float] = (0.0, 0.0)  # of the WCS in the file, east and north
    error_roll: float = 0.0  # deg, north to east
    smear_px: tuple[float, float] = (0.0, 0.0)
    hot: tuple[tuple[int, int], ...] = field(default=())
    empty: bool = False


def sky_wcs(place: tuple[float, float], roll: float, pixel_deg: float, side: int = 1) -> WCS:
    """TAN about a place; ``roll`` turns the detector from north to east."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix = list(place), [(side + 1) / 2] * 2
    a = np.radians(roll)
    wcs.wcs.cd = pixel_deg * np.array([[-np.cos(a), np.sin(a)], [np.sin(a), np.cos(a)]])
    return wcs


def write_product(path: Path, sky: MadeSky, made: Made, rng: np.random.Generator) -> Path:
    """Write a product of the contract; its header's WCS is off by what ``made`` says."""
    pixel = SCALE_MAS / 3.6e6
    cos = np.cos(np.radians(sky.place[1]))
    centre = (sky.place[0] + made.dither[0] / 3600 / cos, sky.place[1] + made.dither[1] / 3600)
    true = sky_wcs(centre, made.roll, pixel, SIDE)
    image = rng.normal(0, NOISE, (SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE]
    if not made.empty:
        px, py = true.all_world2pix(sky.ra, sky.dec, 0)
        for sx, sy, peak in zip(px, py, sky.peak, strict=True):
            if not (-10 < sx < SIDE + 10 and -10 < sy < SIDE + 10):
                continue
            part = np.s_[max(0, int(sy) - 14) : int(sy) + 16, max(0, int(sx) - 14) : int(sx) + 16]
            steps = np.linspace(-0.5, 0.5, 15) if any(made.smear_px) else np.zeros(1)
            for step in steps:
                dx, dy = x[part] - sx - step * made.smear_px[0], y[part] - sy - step * made.smear_px[1]
                image[part] += peak * NOISE / len(steps) * np.exp(-(dx**2 + dy**2) / 2 / 1.1**2)
    for hx, hy in made.hot:
        image[hy - 1 : hy + 2, hx - 1 : hx + 2] += 200 * NOISE * np.array([[1, 4, 1], [4, 16, 4], [1, 4, 1]]) / 16
    wrong = (
        (centre[0] + made.error_mas[0] / 3.6e6 / np.cos(np.radians(centre[1]))) % 360,
        centre[1] + made.error_mas[1] / 3.6e6,
    )
    header = sky_wcs(wrong, made.roll + made.error_roll, pixel, SIDE).to_header()
    header["PIXAR_SR"] = (pixel * np.pi / 180) ** 2
    header["BUNIT"] = "MJy/sr"
    planes = [
        fits.PrimaryHDU(header=fits.Header({"DETECTOR": "NRCBLONG"})),
        fits.ImageHDU(image.astype("f4"), header, "SCI"),
    ]
    error = np.full((SIDE, SIDE), NOISE, "f4")
    planes += [
        fits.ImageHDU(a, name=n)
        for n, a in (("ERR", error), ("WHT", 1 / error**2), ("DQ", np.zeros((SIDE, SIDE), "u4")))
    ]
    fits.HDUList(planes).writeto(path)
    return path
