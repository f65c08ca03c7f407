"""Pixels that still glow from what saturated them in the visit's earlier exposures.

Put here how long such pixels are left out. Keep out other programs' exposures, which only the archive knows.

Charge that was trapped while a pixel was saturated is released over the next exposures; NIRCam's persistence falls by e
in about a quarter of an hour after the light is gone (J. M. Leisenring et al., Proc. SPIE 9915, 99152N, 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError
from panoramic.reduction.native.references import FLAGS

Mask = NDArray[np.bool_]

DECAY_S = 1000.0
LASTING = 3.0
_DAY_S = 86400.0
_SATURATED = np.uint32(FLAGS["SATURATED"])
_BAD = np.uint32(FLAGS["DEAD"] | FLAGS["NON_SCIENCE"] | FLAGS["REFERENCE_PIXEL"])


def saturated_pixels(dq: NDArray[np.uint32]) -> Mask:
    """Pixels of an exposure that its light or a cosmic ray saturated: what later ones of the visit are warned of."""
    return (dq & _SATURATED > 0) & (dq & _BAD == 0)


def flag_persistence(
    earlier: Sequence[tuple[Mask, float]],
    start: float,
    *,
    shape: tuple[int, int] = (2048, 2048),
    decay_s: float = DECAY_S,
    lasting: float = LASTING,
    saturated_now: Mask | None = None,
) -> Mask:
    """Pixels of an exposure that still glow from earlier ones of the same detector.

    Parameters
    ----------
    earlier : (saturated pixels, end of the exposure in MJD) of each exposure before it, in any filter. Exposures that
        end after ``start`` are not before it, and are passed over.
    start : of the exposure, MJD.
    shape : of the result.
    decay_s : time in which persistence falls by e.
    lasting : times of decay after which it no longer counts; with the default 5 % of it is left.
    saturated_now : pixels that the exposure's own light saturates; beside that, persistence is nothing.

    Returns
    -------
    Boolean array.

    Raises
    ------
    InputError
        A time is not finite, or ``decay_s`` or ``lasting`` is not positive.
    """
    if not (np.isfinite([start, *(end for _, end in earlier)]).all() and decay_s > 0 and lasting > 0):
        raise InputError("persistence: times must be finite, decay_s and lasting above 0")
    out = np.zeros(shape, bool)
    for saturated, end in earlier:
        if saturated.shape != tuple(shape):
            raise InputError(f"persistence: a mask of {saturated.shape} for an exposure of {tuple(shape)}")
        if 0 <= (start - end) * _DAY_S <= lasting * decay_s:
            out |= saturated
    if saturated_now is not None:
        out &= ~saturated_now
    return out
