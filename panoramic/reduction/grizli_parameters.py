"""What a survey file may tell grizli, and how that becomes grizli's own arguments.

Put here names, defaults and limits. Defaults are grizli 1.14.3's own (``auto_script_defaults.yml``). Keep out paths and
the reference, which the driver sets.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from panoramic.errors import InputError

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class GrizliParameters(BaseModel):
    """Parameters of one association's reduction. Pixels are of the association's image, about a detector pixel.

    ``lean`` leaves out the iterated alignment and the background along diffraction spikes: half of the CPU time for
    the same astrometry on simulated data. What is given explicitly wins over it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lean: bool = Field(False, description="leave out iterated alignment and the background along diffraction spikes")

    # alignment between exposures
    tweak_threshold: Positive = Field(3.0, description="detection limit for alignment between exposures, sigma")
    tweak_max_dist: Positive = Field(100.0, description="largest shift between exposures, detector pixels")
    tweak_n_min: Count = Field(10, description="fewest matches of a shift that counts")
    tweak_mosaic_iters: Count | None = Field(None, description="rounds against their own mosaic; 2, lean 0")

    # alignment to the reference
    align_mag_limits: tuple[float, float, float] = Field(
        (14.0, 24.0, 0.05), description="brightest and faintest AB magnitude, largest error in mag"
    )
    align_thresh: Positive | None = Field(None, description="detection limit of the catalogue, sigma; grizli's is 2")
    align_clip: int = Field(
        120,
        description="sources with no counterpart within so many pixels take no part in the triangles; negative: all",
    )
    align_rms_limit: Positive = Field(2.0, description="largest RMS of a solution that counts, pixels")
    align_ref_border: Count = Field(100, description="reference sources so far outside the image count, pixels")
    align_min_flux_radius: float = Field(1.0, ge=0, description="smallest half-light radius, pixels")
    align_outlier_threshold: Positive = Field(4.0, description="largest distance of a match to the fit, pixels")
    align_final_niter: Count = Field(8, description="rounds of nearest-neighbour refinement")
    align_assume_close: bool | float = Field(False, description="arcsec within which sources are matched directly")
    match_catalog_density: bool = Field(False, description="take as many sources as the reference has")

    # detector effects
    oneoverf: bool = Field(True, description="remove 1/f stripes")
    oneoverf_deg_pix: Count = Field(64, description="scale of the smooth part that is kept, pixels")
    oneoverf_thresholds: tuple[float, ...] = Field((5.0, 4.0, 3.0), description="source masks of each round, sigma")
    oneoverf_dilate: Count = Field(3, description="growth of the source masks, pixels")
    oneoverf_other_axis: bool = Field(False, description="also along the other axis")
    snowball_min_radius: Count = Field(4, description="smallest radius of a snowball, pixels")
    snowball_growth: Positive = Field(1.5, description="growth of its mask")
    wisp_iterations: Count = Field(3, description="rounds of the wisp fit")
    sky_flats: bool = Field(True, description="grizli's sky flats where it prefers them and they are there")

    # cosmic rays, background
    driz_cr_snr: str = Field("8.0 5.0", pattern=r"^[\d.]+ [\d.]+$", description="AstroDrizzle's limits, sigma")
    driz_cr_scale: str = Field("2.5 0.7", pattern=r"^[\d.]+ [\d.]+$", description="AstroDrizzle's gradient scales")
    background_mesh: Positive | None = Field(25.6, description="mesh of the background, arcsec; null: none")
    angle_background: bool | None = Field(None, description="background along diffraction spikes; lean: not")

    def prep_args(self) -> dict[str, Any]:
        """Arguments of grizli's ``process_direct_grism_visit``, in JSON types."""
        iterations = self.tweak_mosaic_iters
        if iterations is None:
            iterations = 0 if self.lean else 2
        spikes = not self.lean if self.angle_background is None else self.angle_background
        args: dict[str, Any] = {
            "tweak_threshold": self.tweak_threshold,
            "tweak_max_dist": self.tweak_max_dist,
            "tweak_n_min": self.tweak_n_min,
            "tweak_ref_exp": 0,
            "tweak_mosaic_iters": iterations,
            "align_mag_limits": list(self.align_mag_limits),
            "align_thresh": self.align_thresh,
            "align_clip": self.align_clip,
            "align_rms_limit": self.align_rms_limit,
            "align_ref_border": self.align_ref_border,
            "align_min_flux_radius": self.align_min_flux_radius,
            "outlier_threshold": self.align_outlier_threshold,
            "align_final_niter": self.align_final_niter,
            "align_assume_close": self.align_assume_close,
            "match_catalog_density": self.match_catalog_density,
            "nircam_wisp_kwargs": {
                "niter": self.wisp_iterations, "update": True, "prefer_stsci_file": True, "download": False,
            },
            "use_skyflats": self.sky_flats,
            "drizzle_params": {"driz_cr_snr": self.driz_cr_snr, "driz_cr_scale": self.driz_cr_scale},
            "oneoverf_kwargs": None,
            "imaging_bkg_params": None,
            "snowball_kwargs": {
                "snowball_erode": 4,
                "snowball_dilate": 18,
                "mask_bit": 1024,
                "instruments": ["NIRCAM"],
                "max_fraction": 0.3,
                "snowblind_kwargs": {
                    "new_jump_flag": 1024,
                    "min_radius": self.snowball_min_radius,
                    "growth_factor": self.snowball_growth,
                    "unset_first": True,
                },
            },
        }  # fmt: skip
        if self.oneoverf:
            args["oneoverf_kwargs"] = {
                "thresholds": list(self.oneoverf_thresholds),
                "dilate_iterations": self.oneoverf_dilate,
                "deg_pix": self.oneoverf_deg_pix,
                "other_axis": self.oneoverf_other_axis,
                "make_plot": False,
            }
        if self.background_mesh is not None:
            size = self.background_mesh * 10  # grizli counts in pixels of 0.1 arcsec
            args["imaging_bkg_params"] = {
                "bw": size, "bh": size, "fw": 3, "fh": 3, "pixel_scale": 0.10, "get_median": False,
            }  # fmt: skip
        if not spikes:
            args["angle_background_kwargs"] = {}
        return args


_FINEST_PIXEL_ARCSEC = 0.031
_MARGIN_PX = 20  # for the scatter of both catalogues and the dithers

SECOND_ATTEMPT: Mapping[str, Any] = MappingProxyType({"align_final_niter": 0})
"""What an association that failed with every catalogue is tried again with, besides a wider search.

grizli's last refinement takes the ten nearest pairs, whatever they are: with some 15 reference sources it moved
triangle solutions that were right to 20-40 mas by 100-300 mas. A brighter faint limit (23 instead of 24 mag) was tried
as well: it gained nothing against an external catalogue, and lost solutions against few sources of our own.
"""


def second_parameters(
    first: Mapping[str, Any], given: Mapping[str, Any] | None, search_radius_arcsec: float
) -> dict[str, Any]:
    """Parameters of the second attempt.

    grizli matches triangles of any shift; what keeps it from a large one is which sources it lets take part: those with
    a counterpart within ``align_clip`` pixels, reference sources within ``align_ref_border`` pixels of the image; and
    between exposures the largest shift that it accepts, ``tweak_max_dist``. These grow to the search radius.

    Parameters
    ----------
    first : of the first attempt.
    given : the survey file's own choice; goes over the first ones, and nothing else is changed. None: this engine's.
    search_radius_arcsec : largest pointing error to look for, arcsec.

    Raises
    ------
    InputError
        A name or value that grizli's parameters don't have.
    """
    if given is not None:
        parameters = {**first, **given}
    else:
        before = validate_parameters(first)
        reach = math.ceil(search_radius_arcsec / _FINEST_PIXEL_ARCSEC) + _MARGIN_PX
        parameters = {
            **first,
            **SECOND_ATTEMPT,
            "align_clip": before.align_clip if before.align_clip < 0 else max(before.align_clip, reach),
            "align_ref_border": max(before.align_ref_border, reach),
            "tweak_max_dist": max(before.tweak_max_dist, float(reach)),
        }
    validate_parameters(parameters)
    return parameters


def validate_parameters(parameters: Mapping[str, Any]) -> GrizliParameters:
    """Check a survey file's ``reduction.parameters`` without importing grizli.

    Raises
    ------
    InputError
        With every wrong key and value, and the nearest known name for an unknown one.
    """
    try:
        return GrizliParameters.model_validate(dict(parameters))
    except ValidationError as error:
        said = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else "parameters"
            if problem["type"] == "extra_forbidden":
                near = difflib.get_close_matches(name, GrizliParameters.model_fields, n=1)
                said.append(f"{name}: unknown parameter" + (f", did you mean {near[0]}?" if near else ""))
            else:
                said.append(f"{name}: {problem['msg']} (got {problem['input']!r})")
        raise InputError("grizli's parameters: " + "; ".join(said)) from error
