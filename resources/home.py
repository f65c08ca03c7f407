"""One PANORAMIC_HOME: the folder of a survey and the resources that live in or start from it.

Put here how the resources are assembled from the survey file. Keep out what each of them does.

    survey.yaml     the survey file in force, its archive folder resolved
    survey.db       the survey's database
    archive/        the simulated archive, or what was downloaded
    products/       FIELD/associations/NAME/, FIELD/mosaics/, FIELD/*.png, *.reg, *.ecsv
    work/           folders of steps at work; empty when nothing runs
    cache/          digests of files that were read once
    dagster/        Dagster's own storage
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from dagster import ConfigurableResource, EnvVar

from panoramic.associations import Association
from panoramic.errors import InputError
from panoramic.reduction.base import Pointing, Reduction, ReferenceSources
from panoramic.survey import FolderArchive, ReductionRules, ReferenceRules, SecondAttempt, SimulatedArchive, Survey
from resources.archive import Archive, make_archive
from resources.calibration import Calibration
from resources.catalogs.services import CatalogServices
from resources.database import Database
from resources.reference_catalogs import FolderReferenceCatalogs, SurveyReferenceCatalogs
from resources.storage import LocalStorage, field_lock

if TYPE_CHECKING:
    from astropy.table import Table

    from panoramic.alignment_measurement import Measurement
    from panoramic.alignment_prior import PointingKnowledge

SIMULATED_SURVEY = Path(__file__).resolve().parent.parent / "surveys" / "simulated.yaml"


class Home:
    """The opened home of one survey; everything in it is made when it is first asked for."""

    def __init__(self, path: Path, database_url: str = "", mast_token: str = "") -> None:
        self.path = path.resolve()
        self._database_url = database_url or f"sqlite:///{self.path / 'survey.db'}"
        self._mast_token = mast_token

    @property
    def survey_file(self) -> Path:
        """The survey file in force."""
        return self.path / "survey.yaml"

    @property
    def has_database(self) -> bool:
        """Whether there is a database already; a server's is taken to be there."""
        return not self._database_url.startswith("sqlite") or (self.path / "survey.db").exists()

    @property
    def work(self) -> Path:
        """Where steps work; a step makes a folder of its own in it."""
        folder = self.path / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def prepare(self, survey: Survey) -> None:
        """Make the folder the home of ``survey``: its file, its database, Dagster's settings.

        Raises
        ------
        ConflictError
            The home belongs to another survey.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.database.migrate()
        self.database.claim(survey.name)
        text = yaml.safe_dump(survey.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
        temporary = self.survey_file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(f"# The survey file in force; written by panoramic, changed by --survey FILE.\n{text}")
        os.replace(temporary, self.survey_file)
        self.__dict__.pop("survey", None)
        dagster_home = self.path / "dagster"
        dagster_home.mkdir(exist_ok=True)
        settings = Path(__file__).resolve().parent.parent / "deploy" / "laptop" / "dagster.yaml"
        if not (dagster_home / "dagster.yaml").exists():
            shutil.copyfile(settings, dagster_home / "dagster.yaml")

    def alone(
        self, product: str, on_wait: Callable[[str], None] | None = None, blocking: bool = True
    ) -> AbstractContextManager[None]:
        """Hold a product while it is made: a second run of the same step waits, then finds it there."""
        return field_lock(product, self.path / "locks" / "products", on_wait, blocking)

    @cached_property
    def survey(self) -> Survey:
        """The survey in force; `SurveyFileError` where the home has none yet."""
        return Survey.load(self.survey_file)

    @cached_property
    def database(self) -> Database:
        """The survey's database."""
        return Database(self._database_url)

    @cached_property
    def storage(self) -> LocalStorage:
        """Where products go."""
        return LocalStorage(self.path / "products")

    @cached_property
    def archive(self) -> Archive:
        """Where exposures come from."""
        return self.archive_of(self.survey)

    def archive_of(self, survey: Survey) -> Archive:
        """The archive of a survey that need not be in force here yet."""
        return make_archive(survey, self.path, self.mast_token)

    @property
    def mast_token(self) -> str | None:
        """The token that the environment gives, if any."""
        return self._mast_token or None

    @cached_property
    def calibration(self) -> Calibration:
        """CRDS context and cache: the archive's own cache where it brings one."""
        own = os.environ.get("CRDS_PATH")
        crds_path = self.archive.crds_cache or (Path(own) if own else self.path / "crds")
        server = "https://jwst-serverless.stsci.edu" if self.archive.crds_cache else "https://jwst-crds.stsci.edu"
        return Calibration(
            crds_path,
            self.survey.crds_context or (None if self.archive.crds_cache else os.environ.get("CRDS_CONTEXT")),
            server,
            self.archive.grizli_folder,
            cache=self.path / "cache",
            pin=self.path / "crds_context.txt",
        )

    @cached_property
    def reference_catalogs(self) -> SurveyReferenceCatalogs:
        """External reference catalogues, in the survey's order: files, the archive's folder, services."""
        rules = self.survey.reference
        asks = self.survey.archive.kind == "mast" if rules.services is None else rules.services
        services = CatalogServices(self.path / "cache" / "reference_catalogs") if asks else None
        folder = FolderReferenceCatalogs(self.archive.reference_catalog_folder, rules.catalogs)
        return SurveyReferenceCatalogs(rules, folder, services)

    def engine(self, association: Association, parameters: Mapping[str, Any] | None = None) -> Reduction:
        """The reduction engine that the survey file names for this association, with other parameters where given."""
        survey = self.survey
        name, own = survey.reduction.settings_for(association.name, association.field, association.first.element)
        settings: dict[str, Any] = {
            "calibration": self.calibration.setup(),
            "work_root": self.work,
            "parameters": own if parameters is None else parameters,
            "timeout_s": survey.reduction.timeout_s,
            "services_off": survey.services_off,
        }
        engine: Reduction
        if name == "native":
            from panoramic.reduction.native.engine import NativeReduction

            engine = NativeReduction(**settings, cache=self.path / "cache" / "native")
        elif name == "grizli":
            from panoramic.reduction.grizli import GrizliReduction

            engine = GrizliReduction(**settings)
        else:
            raise _unknown_engine(name)
        if isinstance(survey.archive, SimulatedArchive):
            from panoramic.simulate.engine import with_declared_faults

            engine = with_declared_faults(engine, survey.archive.simulation)
        return engine

    def second_parameters(self, engine: str, first: Mapping[str, Any], second: SecondAttempt) -> dict[str, Any]:
        """What an engine is told in the second attempt."""
        if engine == "native":
            from panoramic.reduction.native.parameters import second_parameters
        elif engine == "grizli":
            from panoramic.reduction.grizli_parameters import second_parameters
        else:
            raise _unknown_engine(engine)
        return second_parameters(first, second.parameters, second.search_radius_arcsec)

    def measure_alignment(
        self,
        association: str,
        files: Mapping[str, Path],
        reference: ReferenceSources | None,
        prior: PointingKnowledge | None = None,
        pointings: Mapping[str, Pointing | None] | None = None,
    ) -> tuple[Measurement, Table]:
        """The independent measurement of an association's products, with the survey's search radius."""
        from panoramic.verification import measure_alignment

        return measure_alignment(
            association,
            files,
            reference,
            search_radius_arcsec=self.survey.reference.search_radius_arcsec,
            prior=prior,
            pointings=pointings,
            limits=self.survey.limits,
        )


class HomeResource(ConfigurableResource):
    """A home as a Dagster resource: the environment says where it is, the survey file in it says the rest."""

    path: str
    database_url: str = ""
    mast_token: str = ""

    def open(self) -> Home:
        """The home; opened once per process and step."""
        return Home(Path(self.path), self.database_url, self.mast_token)


def home_from_environment() -> HomeResource:
    """The home that PANORAMIC_HOME names (default ``./data``), with a database and a token of their own where set."""
    optional = {"database_url": "PANORAMIC_DATABASE_URL", "mast_token": "MAST_API_TOKEN"}
    return HomeResource(
        path=str(Path(os.environ.get("PANORAMIC_HOME", "data")).resolve()),
        **{key: EnvVar(name) for key, name in optional.items() if os.environ.get(name)},
    )


def _unknown_engine(name: str) -> InputError:
    return InputError(f"reduction engine {name!r} is not known; use native or grizli")


def survey_of_folder(folder: Path) -> Survey:
    """The survey of a folder of exposures that has no survey file: what is there is what is expected."""
    letters = folder.resolve().name.lower()
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in letters).strip("_") or "folder"
    usual = ReferenceRules().catalogs
    there = FolderReferenceCatalogs(folder.resolve() / "reference_catalogs").present()
    others = tuple(n for n in there if n.upper() not in usual)
    return Survey(
        name=name,
        archive=FolderArchive(kind="folder", path=folder.resolve()),
        expected="present",
        reference=ReferenceRules(catalogs=usual + others),
        reduction=ReductionRules(parameters={"lean": True}),
    )
