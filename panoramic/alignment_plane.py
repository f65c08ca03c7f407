"""Catalogues in the plane about a field's centre: their order, the field's corners, and what lies around it.

Put here the small geometry that the measurement against a reference starts with. Keep out the search and the fit.
"""

from __future__ import annotations

import numpy as np

from panoramic.alignment_offsets import plane_positions


def in_order(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Finite rows, always in the same order of positions, so that the given order can't matter."""
    finite = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    return finite[np.lexsort((ra[finite] % 360.0, dec[finite]))]


def corners(source: np.ndarray, footprint: np.ndarray | None, centre: tuple[float, float]) -> np.ndarray:
    """Corners of the field in the plane, arcsec, (K, 2)."""
    if footprint is not None:
        vertices = np.asarray(footprint, float)
        return plane_positions(vertices[:, 0], vertices[:, 1], centre)
    (west, south), (east, north) = source.min(axis=0), source.max(axis=0)
    return np.array([[west, south], [east, south], [east, north], [west, north]])


def around(reference: np.ndarray, source: np.ndarray, reach: float) -> np.ndarray:
    """Rows of the reference in the sources' rectangle widened by ``reach`` (arcsec)."""
    low, high = source.min(axis=0) - reach, source.max(axis=0) + reach
    return np.flatnonzero(((reference > low) & (reference < high)).all(axis=1))
