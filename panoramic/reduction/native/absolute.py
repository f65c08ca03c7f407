"""The whole association tied to its reference, or the cause why it is not.

Put here the one call of the matcher that decides, and what its answer means. Keep out the matcher
(`panoramic.alignment_solution`) and how exposures are tied to each other (`relative.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoramic.alignment_solution import Refusal, Solution, measure_solution
from panoramic.exposure_sources import ExposureSources
from panoramic.footprints import hull
from panoramic.reduction.base import AbsoluteFit, PointingPrior, ReferenceSources
from panoramic.reduction.moving import SkyCorrection
from panoramic.verification import common_objects, knowledge_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AbsoluteSolution:
    """What was found against the reference.

    Parameters
    ----------
    rotation : (3, 3), which turns sky positions to the reference's; unity where nothing was found.
    fit : None where nothing was found.
    failure : why not; None where it was found, or there is no reference.
    solution : the matcher's own answer.
    """

    rotation: Array
    fit: AbsoluteFit | None = None
    failure: str | None = None
    solution: Solution | None = None


def align_to_reference(
    exposures: Sequence[ExposureSources],
    reference: ReferenceSources | None,
    *,
    pixel_scale_mas: float,
    search_radius_arcsec: float = 3.0,
    largest_rotation_deg: float = 0.3,
    priors: Sequence[PointingPrior] = (),
) -> AbsoluteSolution:
    """Measure the association against a reference, each object once.

    Parameters
    ----------
    exposures : tied to each other, where the priors put them.
    reference : at the exposures' epoch; None: nothing is done.
    pixel_scale_mas : of the association's image, in whose pixels the result is told.
    search_radius_arcsec, largest_rotation_deg : limits of what is accepted.
    priors : what is known of the pointing; empty: nothing.
    """
    still = np.eye(3)
    if reference is None:
        return AbsoluteSolution(still)
    prefix = f"no alignment to {reference.name}: "
    if not len(reference):
        return AbsoluteSolution(still, failure=f"{prefix}it has no source here")
    ra, dec, error, mag = common_objects(exposures, with_shape=True)
    answer = measure_solution(
        ra, dec, reference.ra, reference.dec, search_radius_arcsec=search_radius_arcsec,
        largest_rotation_deg=largest_rotation_deg, footprint=hull([e.footprint for e in exposures]), error_mas=error,
        ref_error_mas=reference.error_mas, magnitude=mag, prior=knowledge_of(priors) if priors else None,
    )  # fmt: skip
    if isinstance(answer, Refusal):
        return AbsoluteSolution(still, failure=f"{prefix}{answer.cause} ({answer.text})")
    correction = SkyCorrection(answer.ra, answer.dec, -answer.dra, -answer.ddec, -answer.rotation_deg)
    rms = float(np.hypot(answer.scatter_ra, answer.scatter_dec)) / np.sqrt(2) / pixel_scale_mas
    fit = AbsoluteFit(
        reference=reference.name,
        kind=reference.kind,
        # x of the association's image grows to the west
        dx=answer.dra / pixel_scale_mas,
        dy=-answer.ddec / pixel_scale_mas,
        rotation_deg=correction.rotation_deg,
        scale=1.0,
        n=answer.n,
        rms=rms,
        pixel_scale_mas=pixel_scale_mas,
    )
    return AbsoluteSolution(correction.matrix, fit, None, answer)
