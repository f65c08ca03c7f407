"""The cores of bright stars: pixels that filled their well late enough for a slope.

Put here how they are told from other saturated pixels (docs/decisions/0005). Keep out what an engine does with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DO_NOT_USE = 1
SATURATED = 2
# DN that a pixel gathers in an integration before it counts as filled by its own light: half a full well (about 58,000
# electrons at a gain of 1.8-2.1, jwst-docs "NIRCam Detector Performance"); the core of a snowball is flagged, and dim
_FILLING_DN = 15_000.0


def star_cores(rate: np.ndarray, flags: np.ndarray, header: Any) -> np.ndarray:
    """Saturated pixels that have a good count rate.

    The pipeline fits the groups before saturation and says DO_NOT_USE only where they are too few; without these pixels
    the stars that fill them lose up to a third of their light.

    Parameters
    ----------
    rate : the archive's SCI plane, DN/s.
    flags : the archive's DQ plane.
    header : its primary header (EFFINTTM, the time of an integration in s).

    Returns
    -------
    Boolean array of the planes' shape.
    """
    seconds = float(header.get("EFFINTTM") or float(header.get("EFFEXPTM", 0.0)) / float(header.get("NINTS", 1) or 1))
    with np.errstate(invalid="ignore"):
        filled = rate * seconds > _FILLING_DN
    return filled & (flags & SATURATED > 0) & (flags & DO_NOT_USE == 0)
