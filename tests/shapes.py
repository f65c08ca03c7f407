"""Footprints for tests."""

import numpy as np

from panoramic.footprints import from_tangent_plane


def square(ra: float, dec: float, size_arcmin: float = 2.2) -> np.ndarray:
    """Vertices (deg) of a square footprint about a position."""
    half = size_arcmin / 2
    return from_tangent_plane(np.array([[-half, -half], [half, -half], [half, half], [-half, half]]), (ra, dec))
