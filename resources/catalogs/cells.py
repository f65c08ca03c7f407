"""The sky in fixed regions, so that what is asked of a catalogue once serves every footprint that comes after.

Put here where a region begins and ends. Keep out what is asked for it.

Bands of declination, each cut into equal intervals of right ascension of about the same width on the sky. A region
never crosses RA 0, and at the poles the regions are wedges: no query needs a case of its own there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoramic.errors import InputError
from panoramic.footprints import mean_position, separation_arcmin

BANDS = 900
HEIGHT_DEG = 180.0 / BANDS
MOST_CELLS = 200  # 8 square degrees: no field is that wide
EDGE_SAMPLES = 32


@dataclass(frozen=True, order=True)
class Cell:
    """One region: a band of declination (0 at the south pole) and an interval of right ascension in it."""

    band: int
    column: int

    @property
    def name(self) -> str:
        """The name that its file in the cache has."""
        return f"b{self.band:03d}c{self.column:04d}"

    @property
    def dec_range(self) -> tuple[float, float]:
        """Declination from and to, deg."""
        return round(self.band * HEIGHT_DEG - 90, 9), round((self.band + 1) * HEIGHT_DEG - 90, 9)

    @property
    def ra_range(self) -> tuple[float, float]:
        """Right ascension from and to, deg."""
        width = 360.0 / columns_of(self.band)
        return round(self.column * width, 9), round((self.column + 1) * width, 9)

    def contains(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Which positions (deg, RA in [0, 360)) lie in it; each position of the sky lies in exactly one region."""
        (west, east), (south, north) = self.ra_range, self.dec_range
        inside = (ra >= west) & (ra < east) & (dec >= south)
        return inside & ((dec <= north) if self.band == BANDS - 1 else (dec < north))

    def circle(self) -> tuple[float, float, float]:
        """RA, Dec and radius (deg) of a circle that holds all of it."""
        (west, east), (south, north) = self.ra_range, self.dec_range
        ra, dec = (west + east) / 2, (south + north) / 2
        along, up = np.linspace(west, east, EDGE_SAMPLES), np.linspace(south, north, EDGE_SAMPLES)
        edge_ra = np.concatenate([along, along, np.full(EDGE_SAMPLES, west), np.full(EDGE_SAMPLES, east)])
        edge_dec = np.concatenate([np.full(EDGE_SAMPLES, south), np.full(EDGE_SAMPLES, north), up, up])
        # between two samples an edge bends out by less than that
        return ra, dec, 1.01 * float(separation_arcmin(ra, dec, edge_ra, edge_dec).max()) / 60


def columns_of(band: int) -> int:
    """Number of regions in a band of declination."""
    nearest_to_equator = min(abs(band * HEIGHT_DEG - 90), abs((band + 1) * HEIGHT_DEG - 90))
    return max(1, int(360.0 * math.cos(math.radians(nearest_to_equator)) / HEIGHT_DEG))


def cells_around(footprints: Sequence[np.ndarray], margin_arcsec: float) -> list[Cell]:
    """The regions that footprints ((N, 2) vertices in deg), widened by a margin, lie in.

    Raises
    ------
    InputError
        The footprints are wider than any field.
    """
    found: set[Cell] = set()
    for footprint in footprints:
        ra, dec = mean_position(footprint)
        radius = float(separation_arcmin(ra, dec, footprint[:, 0], footprint[:, 1]).max()) / 60 + margin_arcsec / 3600
        found.update(_cells_of_circle(ra, dec, radius))
        if len(found) > MOST_CELLS:
            raise InputError(
                f"footprints about RA {ra:.3f}, Dec {dec:.3f} cover over {MOST_CELLS * HEIGHT_DEG**2:.0f} square "
                "degrees: too much to ask a catalogue for; give the catalogue as a file (reference.files)"
            )
    return sorted(found)


def _cells_of_circle(ra: float, dec: float, radius: float) -> list[Cell]:
    first = max(0, math.floor((dec - radius + 90) / HEIGHT_DEG))
    last = min(BANDS - 1, math.floor((dec + radius + 90) / HEIGHT_DEG))
    around_pole = abs(dec) + radius >= 90
    half = 180.0 if around_pole else _degrees_of_ra(radius, dec)
    cells: list[Cell] = []
    for band in range(first, last + 1):
        count = columns_of(band)
        width = 360.0 / count
        start, stop = math.floor((ra - half) / width), math.floor((ra + half) / width)
        columns = range(count) if stop - start + 1 >= count else range(start, stop + 1)
        cells += [Cell(band, column % count) for column in columns]
    return cells


def _degrees_of_ra(radius: float, dec: float) -> float:
    """Half the interval of RA that a circle about ``dec`` spans where it is widest."""
    return math.degrees(math.asin(math.sin(math.radians(radius)) / math.cos(math.radians(dec))))
