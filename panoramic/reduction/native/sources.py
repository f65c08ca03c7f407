"""Sources of one exposure while it is reduced: what ties exposures to each other and to the reference.

Put here how a reduced image and its geometry become sources on the sky. Keep out finding them
(`panoramic.exposure_sources`: the same as the independent measurement of the products does) and matching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from panoramic.exposure_sources import Detections, ExposureSources, detect_sources, on_sky

if TYPE_CHECKING:
    from panoramic.reduction.native.geometry import Geometry
    from panoramic.reduction.native.references import References

Image = NDArray[np.float32]


def find_sources(image: Image, weight: Image) -> Detections:
    """Sources of a reduced image; neither array is changed.

    Parameters
    ----------
    image : MJy/sr, background subtracted; NaN where there is no value.
    weight : inverse variance; 0 where a pixel must not be used.
    """
    unusable = ~(weight > 0)
    unusable |= ~np.isfinite(image)
    return detect_sources(image.copy(), weight, unusable)


def place_sources(
    found: Detections, dataset: str, geometry: Geometry, references: References, shape: tuple[int, int]
) -> ExposureSources:
    """Detections on the sky, by a geometry."""
    scale = float(np.sqrt(references.pixar_a2)) * 1000
    return on_sky(found, dataset, geometry.sky, shape, scale, references.pixar_sr)
