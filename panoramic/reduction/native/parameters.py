"""What a survey file may tell the native engine.

Put here names, defaults and limits. Keep out paths and the reference, which the driver sets.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from panoramic.errors import InputError
from panoramic.reduction.native.claws import parse_regions

Positive = Annotated[float, Field(gt=0)]


class NativeParameters(BaseModel):
    """Parameters of one association's reduction. Pixels are the detector's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # detector effects
    snowballs: bool = Field(True, description="leave out large cosmic-ray events")
    snowball_growth: Positive = Field(2.5, description="radius that is left out, in units of the flagged disc's")
    persistence: bool = Field(True, description="leave out what an earlier exposure of the association saturated")
    stripes: bool = Field(True, description="remove 1/f stripes")
    stripe_high_pass_rows: Positive = Field(200.0, gt=2, description="height of a stripe of which half is left")
    odd_even: bool = Field(True, description="measure the difference of even and odd columns")
    wisps: bool = Field(True, description="subtract wisps where there is a template")
    background_mesh_px: int = Field(128, ge=16, le=1024, description="mesh of the background")
    scattered_light: tuple[dict[str, Any], ...] = Field(
        (), description="regions to leave out (claws, glints): match, vertices, frame, note"
    )
    outliers: bool = Field(True, description="reject what differs between exposures")

    # alignment
    relative_search_arcsec: Positive = Field(2.0, description="largest shift between exposures")
    search_radius_arcsec: Positive = Field(3.0, description="largest shift from the reference")
    largest_rotation_deg: Positive = Field(0.3, le=2, description="largest rotation that is looked for")

    # products
    pixfrac: float = Field(0.75, gt=0, le=1, description="drop size of the association's image")
    detection_sigma: Positive = Field(1.5, description="detection limit of the catalogue, of a smoothed pixel")
    variances: bool = Field(True, description="keep the three variances in the products")
    gwcs: bool = Field(False, description="write the geometry as a gwcs object as well")

    @field_validator("scattered_light")
    @classmethod
    def _drawn_well(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        try:
            parse_regions(value)
        except InputError as error:
            raise ValueError(str(error)) from error
        return value


def validate_parameters(parameters: Mapping[str, Any]) -> NativeParameters:
    """Check a survey file's ``reduction.parameters``.

    Raises
    ------
    InputError
        With every wrong key and value, and the nearest known name for an unknown one.
    """
    try:
        return NativeParameters.model_validate(dict(parameters))
    except ValidationError as error:
        said = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else "parameters"
            if problem["type"] == "extra_forbidden":
                near = difflib.get_close_matches(name, NativeParameters.model_fields, n=1)
                said.append(f"{name}: unknown parameter" + (f", did you mean {near[0]}?" if near else ""))
            else:
                said.append(f"{name}: {problem['msg']} (got {problem['input']!r})")
        raise InputError("the native engine's parameters: " + "; ".join(said)) from error


def second_parameters(
    first: Mapping[str, Any], given: Mapping[str, Any] | None, search_radius_arcsec: float
) -> dict[str, Any]:
    """Parameters of the second attempt: a wider search, against the reference and between exposures.

    Parameters
    ----------
    first : of the first attempt.
    given : the survey file's own choice; goes over the first ones, and nothing else is changed. None: this engine's.
    search_radius_arcsec : largest pointing error to look for.

    Raises
    ------
    InputError
        A name or value that the parameters don't have.
    """
    if given is not None:
        parameters = {**first, **given}
    else:
        before = validate_parameters(first)
        parameters = {
            **first,
            "relative_search_arcsec": max(before.relative_search_arcsec, search_radius_arcsec),
            "search_radius_arcsec": max(before.search_radius_arcsec, search_radius_arcsec),
        }
    validate_parameters(parameters)
    return parameters
