"""What is simulated: the ``simulation`` section of a survey file, as one validated model.

Put here every number that a user may set. Keep out the instrument's own constants (`instrument.py`) and anything
heavier than pydantic: survey files are read at each start.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from panoramic.simulate.instrument import DETECTORS, FILTERS, READOUTS

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    """A section; a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldPointing(_Section):
    """One visit of the simulated program.

    Parameters
    ----------
    ra, dec : where the centre of the simulated modules points, in *degrees* ICRS.
    v3pa : position angle of the telescope's V3 axis at that point, *degrees* east of north.
    start : ISO date (UTC) of the first exposure.
    observation, visit : their numbers, part of every dataset's name.
    """

    ra: Annotated[float, Field(ge=0, lt=360)]
    dec: Annotated[float, Field(ge=-90, le=90)]
    v3pa: Annotated[float, Field(ge=0, lt=360)] = 0.0
    start: str = "2025-06-01T00:00:00"
    observation: Annotated[int, Field(ge=1, le=999)]
    visit: Annotated[int, Field(ge=1, le=999)] = 1

    @field_validator("start", mode="before")
    @classmethod
    def _iso_date(cls, value: object) -> str:
        # YAML turns an unquoted date into a datetime: both spellings are meant.
        text = value.isoformat() if hasattr(value, "isoformat") else str(value)
        return datetime.fromisoformat(text).replace(tzinfo=None).isoformat()


class FilterPair(_Section):
    """One activity: what the short-wave and the long-wave channel observe at the same time."""

    short: str | None = None
    long: str | None = None

    @model_validator(mode="after")
    def _known(self) -> FilterPair:
        if self.short is None and self.long is None:
            raise ValueError("a filter pair needs a short-wave or a long-wave filter")
        for name, channel in ((self.short, "SHORT"), (self.long, "LONG")):
            if name is not None and (name not in FILTERS or FILTERS[name].channel != channel):
                known = ", ".join(f for f, entry in FILTERS.items() if entry.channel == channel)
                raise ValueError(f"{name} is no {channel.lower()}-wave imaging filter of NIRCam; there are: {known}")
        return self


class Readout(_Section):
    """The exposure's readout; frames and gaps per group follow from the pattern."""

    readpatt: str = "SHALLOW4"
    ngroups: Annotated[int, Field(ge=2, le=100)] = 18
    nints: Annotated[int, Field(ge=1, le=10)] = 1

    @field_validator("readpatt")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in READOUTS:
            raise ValueError(f"unknown readout pattern {value}; NIRCam has {', '.join(READOUTS)}")
        return value


class SkyModel(_Section):
    """Number counts of the simulated sky, relative to the real ones at high galactic latitude."""

    galaxy_density: NotNegative = 1.0
    star_density: NotNegative = 1.0
    faint_limit_mag: Annotated[float, Field(ge=18, le=31)] = 29.5
    background: NotNegative = 1.0


class CatalogModel(_Section):
    """The external reference catalogues.

    Parameters
    ----------
    ls_dr9_limit_mag : AB magnitude at 0.9 micron where the LS_DR9-like catalogue ends.
    ls_dr9_scatter_mas : position scatter per axis, *milliarcsec*, of the brightest and of the faintest entries.
    ls_dr9_false_fraction : entries that belong to nothing, as a fraction of the true ones.
    gaia_limit_mag : AB magnitude at 0.7 micron where the GAIA-like catalogue ends.
    """

    ls_dr9_limit_mag: float = 23.0
    ls_dr9_scatter_mas: tuple[Positive, Positive] = (10.0, 100.0)
    ls_dr9_false_fraction: NotNegative = 0.04
    gaia_limit_mag: float = 20.8


class Effects(_Section):
    """Detector and optical effects; each can be switched off, most have an amplitude.

    Parameters
    ----------
    one_over_f : rms of the stripes left in a 950 s exposure, *DN/s*; 0 is off.
    amplifier_share : the part of the stripes' variance that differs between the four amplifiers.
    snowballs_per_ks : large cosmic-ray events per detector and 1000 s.
    cosmic_rays_per_ks : pixels per detector and 1000 s that the jump detection flagged.
    cosmic_ray_leftovers : fraction of the hits that were missed and stay in the slope.
    wisps : surface brightness of the wisps' peak, *MJy/sr*; 0 is off. Only A3, A4, B3, B4 have them.
    flat_structure : rms of the large-scale structure of the flat field.
    flat_error : rms of what the reference flat has wrong, per pixel.
    """

    one_over_f: NotNegative = 0.006
    amplifier_share: Annotated[float, Field(ge=0, le=1)] = 0.35
    snowballs_per_ks: NotNegative = 12.0
    cosmic_rays_per_ks: NotNegative = 60000.0
    cosmic_ray_leftovers: Annotated[float, Field(ge=0, le=1)] = 0.01
    wisps: NotNegative = 0.035
    flat_structure: NotNegative = 0.03
    flat_error: NotNegative = 0.001
    bad_pixels: bool = True
    saturation: bool = True
    reference_pixels: bool = True
    noise: bool = True


class MissingExposure(_Section):
    """Exposures that the visit should have and the archive has not."""

    kind: Literal["missing_exposure"]
    match: str
    keep_row: bool = False


class Shifted(_Section):
    """Exposures whose true pointing is off by more than the visit's own error (east, north)."""

    kind: Literal["shifted"]
    match: str
    dx_arcsec: float
    dy_arcsec: float


class Smeared(_Section):
    """Exposures during which the telescope drifted."""

    kind: Literal["smeared"]
    match: str
    length_arcsec: Positive = 0.8
    angle_deg: float = 30.0


class _ReferenceFault(_Section):
    """A fault of an external catalogue, in one field or all, or only under the exposures that match."""

    catalog: str = "*"
    field: int | None = None
    match: str | None = None


class ReferenceSparse(_ReferenceFault):
    """Only so many sources are left (per field, or under the matching exposures)."""

    kind: Literal["reference_sparse"]
    keep: Annotated[int, Field(ge=0)]


class ReferenceFalse(_ReferenceFault):
    """Every source is replaced by one that belongs to nothing."""

    kind: Literal["reference_false"]


class ReferenceDense(_ReferenceFault):
    """So many false sources are added for each one that is there."""

    kind: Literal["reference_dense"]
    factor: Positive = 20.0


class TruncatedFile(_Section):
    """Files that end too early; their archive rows name the whole file's size and digest."""

    kind: Literal["truncated_file"]
    match: str
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.6


class WrongChecksum(_Section):
    """Archive rows whose md5 is not the file's."""

    kind: Literal["wrong_checksum"]
    match: str


class WrongSuccess(_Section):
    """An engine's solution moved after its fit, its log unchanged; `faults.move_wcs` applies it."""

    kind: Literal["wrong_success"]
    match: str
    shift_arcsec: tuple[float, float] = (0.3, 0.0)


Fault = Annotated[
    MissingExposure
    | Shifted
    | Smeared
    | ReferenceSparse
    | ReferenceFalse
    | ReferenceDense
    | TruncatedFile
    | WrongChecksum
    | WrongSuccess,
    Field(discriminator="kind"),
]


class Simulation(_Section):
    """A simulated archive. The same description always gives the same bytes.

    Parameters
    ----------
    seed : of all random numbers.
    program : number of the simulated program, part of every dataset's name.
    fields : the visits.
    filters : the activities of each visit.
    modules : which of NIRCam's two modules are recorded.
    detectors : if given, only these of the modules' detectors.
    dithers : exposures of each activity.
    dither_step_arcsec : size of the dither pattern; its sub-pixel phases differ.
    pointing_error_mas : 1 sigma *radial* error of a visit's reported pointing, *milliarcsec*.
    roll_error_deg : 1 sigma error of a visit's reported roll, *degrees*.
    jitter_mas : 1 sigma error per axis of each dither, *milliarcsec*, the same for all detectors.
    """

    seed: int = 2514
    program: Annotated[int, Field(ge=1, le=99999)] = 9001
    fields: Annotated[tuple[FieldPointing, ...], Field(min_length=1)]
    filters: Annotated[tuple[FilterPair, ...], Field(min_length=1, max_length=35)]
    modules: Annotated[tuple[Literal["A", "B"], ...], Field(min_length=1)] = ("B",)
    detectors: tuple[str, ...] | None = None
    dithers: Annotated[int, Field(ge=1, le=99)] = 2
    dither_step_arcsec: NotNegative = 3.0
    readout: Readout = Readout()
    pointing_error_mas: NotNegative = 200.0
    roll_error_deg: NotNegative = 0.02
    jitter_mas: NotNegative = 3.0
    sky: SkyModel = SkyModel()
    catalogs: CatalogModel = CatalogModel()
    effects: Effects = Effects()
    faults: tuple[Fault, ...] = ()

    @field_validator("detectors", mode="after")
    @classmethod
    def _known_detectors(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        lower = tuple(d.lower() for d in value)
        unknown = [d for d in lower if d not in DETECTORS]
        if unknown or not lower:
            raise ValueError(f"unknown detectors {unknown}; NIRCam has {', '.join(DETECTORS)}")
        return lower

    @model_validator(mode="after")
    def _consistent(self) -> Simulation:
        visits = [(f.observation, f.visit) for f in self.fields]
        if len(set(visits)) < len(visits):
            raise ValueError("two fields have the same observation and visit number")
        if not self.active_detectors():
            raise ValueError(f"none of detectors {self.detectors} is in modules {', '.join(self.modules)}")
        for fault in self.faults:
            field = getattr(fault, "field", None)
            if field is not None and not 0 <= field < len(self.fields):
                raise ValueError(f"fault {fault.kind}: there is no field number {field}")
        return self

    def active_detectors(self) -> tuple[str, ...]:
        """The detectors that are simulated, in lower case, in the instrument's order."""
        chosen = DETECTORS if self.detectors is None else self.detectors
        return tuple(d for d in DETECTORS if d in chosen and DETECTORS[d].module in self.modules)

    def digest(self) -> str:
        """SHA-256 of everything that decides the archive's bytes (`wrong_success` does not)."""
        kept = tuple(f for f in self.faults if f.kind != "wrong_success")
        return hashlib.sha256(self.model_copy(update={"faults": kept}).model_dump_json().encode()).hexdigest()


def default_simulation() -> Simulation:
    """The archive of ``make run``: two fields in different parts of the sky, F115W and F444W, module B."""
    return Simulation(
        seed=2514,
        program=9001,
        fields=(
            FieldPointing(ra=150.1325, dec=2.3421, v3pa=112.0, start="2025-05-02T08:21:00", observation=1),
            FieldPointing(ra=337.2341, dec=-52.417, v3pa=247.5, start="2025-07-19T17:03:00", observation=2),
        ),
        filters=(FilterPair(short="F115W", long="F444W"),),
        modules=("B",),
        dithers=2,
    )
