"""The survey file: everything that differs between surveys, as one validated model.

Put here what an astronomer may want to set. Keep out secrets and places of servers: those are resources.
"""

from __future__ import annotations

import fnmatch
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from panoramic.errors import SurveyFileError
from panoramic.simulate.program import Simulation

SHORT_WAVE_DETECTORS = tuple(f"NRC{module}{k}" for module in "AB" for k in (1, 2, 3, 4))
LONG_WAVE_DETECTORS = ("NRCALONG", "NRCBLONG")
DETECTORS = SHORT_WAVE_DETECTORS + LONG_WAVE_DETECTORS

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A section of the survey file; a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FolderArchive(Section):
    """Exposures in a folder (docs/data_products.md names its parts). A relative path starts at the survey file."""

    kind: Literal["folder"]
    path: Path


class SimulatedArchive(Section):
    """The embedded archive, written under PANORAMIC_HOME at the first run."""

    kind: Literal["simulated"]
    simulation: Simulation


class MastArchive(Section):
    """The Mikulski Archive for Space Telescopes.

    ``products`` names what is downloaded of each exposure: the count rates, and the raw ramps if they are asked for.
    ``companions`` is a folder of what an archive's own folder would bring: ``crds/``, ``reference_catalogs/`` and
    ``grizli/`` (docs/data_products.md); a relative path starts at the survey file.
    """

    kind: Literal["mast"]
    url: str = "https://mast.stsci.edu"
    parallel_downloads: int = Field(default=4, ge=1, le=16)
    timeout_s: Positive = 60.0
    full_look_days: Positive = 1.0
    products: tuple[Literal["rate", "uncal"], ...] = ("rate",)
    companions: Path | None = None

    @field_validator("products")
    @classmethod
    def _with_rates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "rate" not in value:
            raise ValueError("products must hold 'rate': the reduction starts from it; 'uncal' may be added")
        return value


class ExposureRules(Section):
    """Which archive rows are exposures of this survey; the others are kept with the reason of their refusal."""

    exp_types: tuple[str, ...] = ("NRC_IMAGE",)
    subarrays: tuple[str, ...] = ("FULL",)
    refuse_filters: tuple[str, ...] = ()
    refuse_pupils: tuple[str, ...] = ("GRISMR", "GRISMC", "WLP8", "WLM8", "GDHS0", "GDHS60", "PINHOLES", "MASKIPR")
    refuse_datasets: tuple[str, ...] = ()


class Expected(Section):
    """What each visit and activity must hold; where it is absent, the exposures' own module and expcount say."""

    detectors: tuple[str, ...] | None = None
    exposures: int | None = Field(default=None, ge=1)
    filters: tuple[str, ...] | None = None

    @field_validator("detectors")
    @classmethod
    def _known_detectors(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        unknown = [d for d in value if d.upper() not in DETECTORS]
        if unknown:
            raise ValueError(f"unknown detectors {unknown}; NIRCam has {', '.join(DETECTORS)}")
        return tuple(d.upper() for d in value)


class FieldRules(Section):
    """How exposures become fields. Merges and splits are by name, and the only way to change a field.

    ``merges`` gives the fields that each kept field takes over. ``splits`` gives, for a parent field, its child
    fields and the shell patterns of the datasets that belong to each. Merges come first, then splits.
    """

    buffer_arcmin: float = Field(default=25.0, gt=0, le=600)
    merges: dict[str, tuple[str, ...]] = {}
    splits: dict[str, dict[str, tuple[str, ...]]] = {}

    @model_validator(mode="after")
    def _consistent_merges(self) -> FieldRules:
        seen: dict[str, str] = {}
        for kept, gone in self.merges.items():
            for name in gone:
                if name == kept:
                    raise ValueError(f"field {name} is merged into itself")
                if name in seen and seen[name] != kept:
                    raise ValueError(f"field {name} is merged into both {seen[name]} and {kept}")
                if name in self.merges:
                    raise ValueError(f"field {name} is merged into {kept} and is itself a target of merges")
                seen[name] = kept
        return self

    @model_validator(mode="after")
    def _consistent_splits(self) -> FieldRules:
        gone = {name: kept for kept, names in self.merges.items() for name in names}
        parent_of: dict[str, str] = {}
        child_of: dict[str, str] = {}
        for parent, children in self.splits.items():
            if parent in gone:
                raise ValueError(f"field {parent} is merged into {gone[parent]} and is also split")
            for child, patterns in children.items():
                if child == parent:
                    raise ValueError(f"field {child} is split from itself")
                if child in self.splits:
                    raise ValueError(f"field {child} is split from {parent} and is itself split")
                if child in gone:
                    raise ValueError(f"field {child} is split from {parent} and is also merged into {gone[child]}")
                if child in parent_of:
                    raise ValueError(f"field {child} is split from both {parent_of[child]} and {parent}")
                parent_of[child] = parent
                for pattern in patterns:
                    if child_of.get(pattern, child) != child:
                        raise ValueError(f"datasets {pattern} are split off into both {child_of[pattern]} and {child}")
                    child_of[pattern] = child
        return self

    def merged(self, name: str) -> str:
        """The field that stands for ``name``: the one that it is merged into, or itself."""
        return next((kept for kept, gone in self.merges.items() if name in gone), name)

    def split(self, name: str, dataset: str) -> str:
        """The field of a dataset that is or would be in field ``name``: one of its children, or ``name`` itself.

        Where patterns of two children match, the longer pattern decides, then the alphabet.
        """
        matches = [
            (-len(pattern), child)
            for child, patterns in self.splits.get(name, {}).items()
            for pattern in patterns
            if fnmatch.fnmatchcase(dataset, pattern.lower())
        ]
        return min(matches)[1] if matches else name

    def changed(self) -> set[str]:
        """Fields whose exposures may belong to another field."""
        return {name for gone in self.merges.values() for name in gone} | set(self.splits)

    def parents(self) -> dict[str, str]:
        """Parent of each child field."""
        return {child: parent for parent, children in self.splits.items() for child in children}


class AssociationRules(Section):
    """Exposures of one group further apart than this become separate associations."""

    maximum_separation_arcmin: Positive = 0.9
    maximum_gap_days: Positive = 2.0


class SourceSelection(Section):
    """Which of our own sources become astrometric reference (design: section 7)."""

    brightest: int = Field(default=1000, ge=1)
    brighter_limit_mag: float = 17.0
    flux_radius_min_px: Positive = 1.0
    flux_radius_max_px: Positive = 10.0
    minimum_snr: Positive = 20.0

    @model_validator(mode="after")
    def _radius_range(self) -> SourceSelection:
        if self.flux_radius_min_px >= self.flux_radius_max_px:
            raise ValueError("flux_radius_min_px must be below flux_radius_max_px")
        return self


class ReferenceRules(Section):
    """The astrometric reference: filters in order of preference, external catalogues in order.

    ``files`` names local catalogue files by catalogue name; a name that is not among ``catalogs`` comes first.
    ``services`` says whether catalogues that are no local file are asked for over the network; without it they are
    for the archive ``mast`` alone.
    """

    filters: tuple[str, ...] = (
        "F444W", "F356W", "F277W", "F410M", "F480M", "F460M", "F430M", "F360M", "F335M", "F300M", "F250M", "F322W2",
        "F470N", "F466N", "F405N", "F323N",
        "F200W", "F150W", "F115W", "F090W", "F070W", "F210M", "F182M", "F140M", "F162M", "F150W2",
        "F212N", "F187N", "F164N",
    )  # fmt: skip
    catalogs: tuple[str, ...] = ("LS_DR9", "PS1", "DES", "NSC", "GAIA")
    files: dict[str, Path] = {}
    services: bool | None = None
    search_radius_arcsec: Positive = 3.0
    absolute_alignment: Literal["required", "if_available"] = "required"
    minimum_cover: Fraction = 0.6
    selection: SourceSelection = SourceSelection()


class ReductionOverride(Section):
    """Parameters that replace the survey's own for a field, a filter or an association name pattern."""

    match: str
    engine: Literal["native", "grizli"] | None = None
    parameters: dict[str, Any] = {}


class SecondAttempt(Section):
    """What an association that failed with every catalogue is tried again with.

    ``parameters`` go over the first ones; None takes the engine's own choice (a wider search).
    """

    enabled: bool = True
    search_radius_arcsec: Positive = 10.0
    parameters: dict[str, Any] | None = None


class VisitPriors(Section):
    """What the detectors of one exposure know of each other: they share the telescope's pointing error.

    ``offset_error_mas`` (per axis) and ``roll_error_deg`` say how well the detectors' places in the focal plane are
    known: 19 mas and 0.009 deg by maximum likelihood on 60 real corrections of one visit.
    """

    enabled: bool = True
    offset_error_mas: Positive = 20.0
    roll_error_deg: Positive = 0.01


class ReductionRules(Section):
    """The reduction engine and what it is told."""

    engine: Literal["native", "grizli"] = "grizli"
    parameters: dict[str, Any] = {}
    overrides: tuple[ReductionOverride, ...] = ()
    second_attempt: SecondAttempt = SecondAttempt()
    visit_priors: VisitPriors = VisitPriors()
    timeout_s: Positive = 7200.0

    def settings_for(self, association: str, field: str, filter_name: str) -> tuple[str, dict[str, Any]]:
        """Engine and parameters of one association; later overrides win.

        An override's ``match`` is held against the association's name, its field and its filter, as a shell pattern.
        Parameters are an engine's own: an override that changes the engine starts without any.
        """
        engine, parameters = self.engine, dict(self.parameters)
        for override in self.overrides:
            names = (association, field, filter_name.lower(), filter_name.upper())
            if any(fnmatch.fnmatchcase(name, override.match) for name in names):
                if override.engine is not None and override.engine != engine:
                    engine, parameters = override.engine, {}
                parameters.update(override.parameters)
        return engine, parameters


class MosaicRules(Section):
    """Grids and drizzling. A short-wave pixel is a whole fraction of a long-wave one, so that the grids nest."""

    version: str = Field(default="v1.0", pattern=r"^[a-z0-9.]+$")
    long_wave_scale_mas: Positive = 40.0
    short_wave_scale_mas: Positive = 20.0
    tile_px: int = Field(default=2048, ge=64)
    pixfrac: float = Field(default=0.75, gt=0, le=1)
    kernel: Literal["square", "turbo", "point"] = "square"
    minimum_accepted: Fraction = 0.5

    @model_validator(mode="after")
    def _nested(self) -> MosaicRules:
        ratio = self.long_wave_scale_mas / self.short_wave_scale_mas
        if abs(ratio - round(ratio)) > 1e-9 or ratio < 1:
            raise ValueError("long_wave_scale_mas must be a whole multiple of short_wave_scale_mas")
        return self


class Limits(Section):
    """The gates: every number is a limit of a check; the ones called ``near`` only draw attention."""

    relative_rms_px: Positive = 0.1
    relative_rms_near_px: Positive = 0.03
    relative_n_long: Count = 24
    relative_n_short: Count = 8
    absolute_error_external_mas: Positive = 20.0
    absolute_error_near_mas: Positive = 10.0
    absolute_error_own_mas: Positive = 5.0
    absolute_scatter_external_mas: Positive = 80.0
    absolute_scatter_own_mas: Positive = 20.0
    absolute_n: Count = 12
    absolute_chance: Positive = 1e-3
    absolute_chance_early: Positive = 1e-4
    absolute_contrast: Positive = 1.5
    absolute_disagreement_sigma: Positive = 3.0
    absolute_disagreement_mas: Positive = 2.0
    absolute_offset_external_mas: Positive = 20.0
    absolute_offset_own_mas: Positive = 5.0
    absolute_corner_factor: Positive = 2.5
    reference_sources: Count = 50
    reference_sources_short: Count = 12
    reference_sources_near: Count = 200
    mosaic_external_mas: Positive = 20.0
    mosaic_external_n: Count = 20
    mosaic_association_mas: Positive = 30.0
    mosaic_association_n: Count = 12
    mosaic_own_mas: Positive = 10.0
    mosaic_own_near_mas: Positive = 5.0
    mosaic_own_n: Count = 15

    @model_validator(mode="after")
    def _near_is_inside(self) -> Limits:
        pairs = [
            ("relative_rms_near_px", "relative_rms_px"),
            ("absolute_error_near_mas", "absolute_error_external_mas"),
            ("mosaic_own_near_mas", "mosaic_own_mas"),
        ]
        for near, limit in pairs:
            if getattr(self, near) > getattr(self, limit):
                raise ValueError(f"{near} must not exceed {limit}: nothing could ever be near the limit")
        if self.reference_sources_near < self.reference_sources:
            raise ValueError("reference_sources_near must not be below reference_sources")
        return self


class Survey(Section):
    """A survey, from its YAML file.

    Raises
    ------
    SurveyFileError
        From `load`: the file, the line and the reason.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.]*$")
    programs: tuple[int, ...] = ()
    archive: Annotated[FolderArchive | SimulatedArchive | MastArchive, Field(discriminator="kind")]
    instrument: Literal["NIRCAM"] = "NIRCAM"
    exposures: ExposureRules = ExposureRules()
    expected: Expected | Literal["present"] | None = None
    recorded_detectors: tuple[str, ...] | None = None
    patience_days: float = Field(default=3.0, ge=0)
    fields: FieldRules = FieldRules()
    associations: AssociationRules = AssociationRules()
    reference: ReferenceRules = ReferenceRules()
    reduction: ReductionRules = ReductionRules()
    mosaics: MosaicRules = MosaicRules()
    limits: Limits = Limits()
    services_off: tuple[str, ...] = ()
    crds_context: str | None = Field(default=None, pattern=r"^jwst_.*\.pmap$")

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of all settings, as provenance keeps it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: Path | str) -> Survey:
        """Read and validate a survey file; a relative archive folder is taken from the file's own folder."""
        path = Path(path)
        try:
            text = path.read_text()
        except OSError as error:
            raise SurveyFileError(path, f"can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SurveyFileError(path, "is no text file") from error
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: Path) -> Survey:
        """Validate the text of a survey file that lies (or will lie) at ``path``."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            raise SurveyFileError(
                path, f"is not YAML: {getattr(error, 'problem', error)}", mark and mark.line + 1
            ) from error
        if not isinstance(raw, dict):
            raise SurveyFileError(path, "is empty or no mapping; see surveys/simulated.yaml for an example", 1)
        try:
            survey = cls.model_validate(raw)
        except ValidationError as error:
            # a mistyped key also makes the right one absent: the unknown key is the better hint
            first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            line, dotted = _line_of(node, first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                reason = "unknown key; docs/survey_file.md lists the known ones"
            raise SurveyFileError(path, f"{dotted}: {reason}", line) from error
        archive, here = survey.archive, path.resolve().parent
        files = {name: here / file for name, file in survey.reference.files.items()}
        if files != survey.reference.files:
            rules = survey.reference.model_copy(update={"files": files})
            survey = survey.model_copy(update={"reference": rules})
        if isinstance(archive, FolderArchive) and not archive.path.is_absolute():
            survey = survey.model_copy(update={"archive": FolderArchive(kind="folder", path=here / archive.path)})
        if isinstance(archive, MastArchive) and archive.companions and not archive.companions.is_absolute():
            absolute = archive.model_copy(update={"companions": here / archive.companions})
            survey = survey.model_copy(update={"archive": absolute})
        return survey


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> tuple[int | None, str]:
    """Line (1-based) and dotted name of a validation error's location in the YAML tree."""
    line = node.start_mark.line + 1 if node is not None else None
    dotted: list[str] = []
    for part in location:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None and node is not None and dotted and part in ("folder", "simulated", "mast", "Expected"):
            continue  # pydantic names the union's branch here, the file does not
        dotted.append(str(part))
        if child is not None:
            node = child
    return line, ".".join(dotted)
