"""Large cosmic-ray events (snowballs), by the flags that the pipeline's jump detection left.

Put here how they are found and how far they are left out. Keep out single cosmic rays (`outliers.py`).

A snowball is a round patch of pixels with JUMP_DET, often saturated in the middle, with a halo of faint light that no
flag covers. A patch that holds a disc of the least radius is one; tracks and crowds of small hits hold none. Stars have
no such patches unless they saturate: patches that hold a star's core are left alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panoramic.reduction.native.references import FLAGS

Mask = NDArray[np.bool_]

LEAST_RADIUS_PX = 4.0
GROWTH = 2.5
LARGEST_REACH_PX = 200.0
_JUMP = np.uint32(FLAGS["JUMP_DET"])
_DO_NOT_USE = np.uint32(FLAGS["DO_NOT_USE"])


def find_snowballs(
    dq: NDArray[np.uint32],
    *,
    star_cores: Mask | None = None,
    least_radius_px: float = LEAST_RADIUS_PX,
    growth: float = GROWTH,
) -> Mask:
    """Pixels that snowballs spoil, their faint halos included.

    Parameters
    ----------
    dq : JWST's bits.
    star_cores : pixels of bright stars that are saturated; a patch with one is a star's, no snowball's.
    least_radius_px : of the largest disc inside a patch of flagged pixels.
    growth : radius that is left out, in units of that disc's; halos are faint beyond 2.5.

    Returns
    -------
    Boolean array of the shape of ``dq``.
    """
    from scipy import ndimage

    jump = dq & _JUMP > 0
    out = np.zeros(dq.shape, bool)
    half = _all_of_blocks(jump)
    labels, count = ndimage.label(half)
    if not count:
        return out
    # a disc of the least radius fills at least this many blocks of 2 x 2 pixels
    fewest = max(1.0, np.pi / 4 * max(least_radius_px - 2.0, 0.5) ** 2)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(labels)
    for label in np.flatnonzero(sizes >= fewest):
        if label == 0:
            continue
        rows, columns = boxes[label - 1]
        box = (
            max(2 * rows.start - 2, 0), min(2 * rows.stop + 2, dq.shape[0]),
            max(2 * columns.start - 2, 0), min(2 * columns.stop + 2, dq.shape[1]),
        )  # fmt: skip
        _grow(out, jump, star_cores, box, least_radius_px, growth)
    return out


def _grow(
    out: Mask, jump: Mask, cores: Mask | None, box: tuple[int, int, int, int], least_radius: float, growth: float
) -> None:
    """Add to ``out`` what the patches in a box (y0, y1, x0, x1) spoil, if a disc fits into them."""
    from scipy import ndimage

    y0, y1, x0, x1 = box
    patch = jump[y0:y1, x0:x1]
    # a detector's edge cuts a snowball; it is no edge of the patch
    edges = [(int(low > 0), int(high < n)) for (low, high), n in zip(((y0, y1), (x0, x1)), jump.shape, strict=True)]
    depth = ndimage.distance_transform_edt(np.pad(patch, edges))
    depth = depth[edges[0][0] : depth.shape[0] - edges[0][1], edges[1][0] : depth.shape[1] - edges[1][1]]
    discs, count = ndimage.label(depth >= least_radius)
    for k in range(1, count + 1):
        disc = discs == k
        radius = float(depth[disc].max())
        # the disc's centres, not the tracks that touch them
        middle = disc & (depth >= 0.7 * radius)
        reach = min(growth * radius, radius + LARGEST_REACH_PX)
        margin = int(np.ceil(reach)) + 1
        rows, columns = np.flatnonzero(middle.any(axis=1)), np.flatnonzero(middle.any(axis=0))
        ya, yb = max(y0 + int(rows[0]) - margin, 0), min(y0 + int(rows[-1]) + margin + 1, jump.shape[0])
        xa, xb = max(x0 + int(columns[0]) - margin, 0), min(x0 + int(columns[-1]) + margin + 1, jump.shape[1])
        if cores is not None and cores[ya:yb, xa:xb][_near(middle, (y0, x0), (ya, yb, xa, xb), radius)].any():
            continue
        out[ya:yb, xa:xb] |= _near(middle, (y0, x0), (ya, yb, xa, xb), reach)


def _near(middle: Mask, origin: tuple[int, int], box: tuple[int, int, int, int], reach: float) -> Mask:
    """Pixels of a box no farther than ``reach`` from those of ``middle``, which lies at ``origin``."""
    from scipy import ndimage

    ya, yb, xa, xb = box
    far = np.ones((yb - ya, xb - xa), bool)
    rows, columns = np.nonzero(middle)
    far[rows + origin[0] - ya, columns + origin[1] - xa] = False
    near: Mask = ndimage.distance_transform_edt(far) <= reach
    return near


def _all_of_blocks(mask: Mask) -> Mask:
    """Blocks of 2 x 2 pixels that are all set, shape halved (the last row or column of an odd shape is left out)."""
    rows, columns = (n // 2 * 2 for n in mask.shape)
    even: Mask = mask[0:rows:2, 0:columns:2] & mask[1:rows:2, 0:columns:2]
    even &= mask[0:rows:2, 1:columns:2]
    even &= mask[1:rows:2, 1:columns:2]
    return even
