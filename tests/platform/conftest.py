"""The whole platform on small images and an engine of seconds, so that its decisions can be tested by the dozen.

The engine writes contract files of 96 x 96 pixels with real sources of a common sky; everything else is the real thing:
database, storage, assets, checks, jobs, mosaics.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from panoramic.alignment_measurement import Measurement, Offset
from panoramic.alignment_solution import Refusal, Solution, measure_solution
from panoramic.errors import ChecksumMismatchError, EmptyArchiveError, EngineKilledError, InputError
from panoramic.footprints import from_tangent_plane, hull, inside, mean_position, parse_s_region, to_s_region
from panoramic.observations import is_long_wave, split_filename
from panoramic.provenance import sha256_of
from panoramic.reduction.base import (
    AbsoluteFit,
    CalibratedExposure,
    CalibrationSetup,
    Degradation,
    Pointing,
    ReductionResult,
    ReferenceSources,
    RelativeFit,
)
from panoramic.survey import Survey
from panoramic_assets.common import VERIFY
from panoramic_assets.definitions import build_definitions
from resources.archive import ArchiveLook
from resources.home import Home, HomeResource
from resources.reference_catalogs import CatalogAnswer

SIDE = 96
SURVEY = """
name: small
programs: [9001]
archive: {kind: folder, path: nowhere}
expected: {detectors: [NRCB1, NRCBLONG], exposures: 2, filters: [F115W, F444W]}
reference: {catalogs: [LS_DR9, GAIA]}
mosaics: {long_wave_scale_mas: 1000, short_wave_scale_mas: 500, tile_px: 128}
"""


@dataclass
class Sky:
    """What the fake archive and engine share: sources per field, and what goes wrong."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    sources: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    reduced: list[tuple[str, str]] = field(default_factory=list)
    killed: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    false_reference: list[np.ndarray] = field(default_factory=list)
    moved: dict[str, float] = field(default_factory=dict)
    bad_relative: set[str] = field(default_factory=set)
    unreachable: bool = False
    no_calibration: Exception | None = None
    damaged_catalogs: set[str] = field(default_factory=set)
    few_sources: int | None = None
    sparse: list[tuple[np.ndarray, int]] = field(default_factory=list)
    needs_second: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)


class FakeArchive:
    """An archive of rows; its files are tiny FITS files that carry their footprint."""

    reference_catalog_folder = crds_cache = grizli_folder = None
    rights = ""

    def __init__(self, sky: Sky, folder: Path) -> None:
        self.sky, self.folder = sky, folder

    def look(self, since_mjd: float | None = None) -> ArchiveLook:
        if self.sky.unreachable:
            raise EmptyArchiveError("the archive is gone")
        return ArchiveLook([dict(r) for r in self.sky.rows], source="fake archive")

    def fetch_many(self, requests, on_progress=None) -> dict[str, Path]:
        return {r.filename: self.fetch(r.filename, r.size, r.checksum, r.cal_ver) for r in requests}

    def fetch(self, filename: str, size: int | None = None, checksum: str | None = None, cal_ver=None) -> Path:
        row = next(r for r in self.sky.rows if r["filename"] == filename)
        path = self.folder / filename
        if filename in self.sky.damaged:
            raise ChecksumMismatchError(path, "md5 is not what the archive says")
        header = fits.Header({"S_REGION": row["s_region"], "EFFEXPTM": row["effexptm"], "DETECTOR": row["detector"]})
        fits.PrimaryHDU(header=header).writeto(path, overwrite=True)
        return path


class FakeEngine:
    """Writes contract products from the common sky; reports fits as an honest engine would."""

    name, version = "fake", "1"

    def __init__(self, sky: Sky, second: bool = False) -> None:
        self.sky, self.second = sky, second

    def reduce(self, association, exposures, reference, pointing_priors, folder) -> ReductionResult:
        sky, detector = self.sky, split_filename(exposures[0].path.name)["detector"]
        sky.reduced.append((association, reference.name if reference else ""))
        if sky.killed.get(association, 0) > 0:
            sky.killed[association] -= 1
            raise EngineKilledError(f"{association}: killed by signal 9 (out of memory?)")
        folder.mkdir(parents=True)
        move = sky.moved.get(association, 0.0)
        if association in sky.needs_second and not self.second:
            move = 0.5
        outline = np.concatenate([parse_s_region(fits.getheader(e.path)["S_REGION"]) for e in exposures])
        inside_it = sky.sources[inside(sky.sources[:, 0], sky.sources[:, 1], outline)]
        seen = inside_it + np.array([0.0, move / 3600])
        done = tuple(self._write(e, folder, move) for e in exposures)
        brightness = 30.0 + np.arange(len(seen)) % 17
        Table(
            {
                "id": np.arange(len(seen)), "ra": seen[:, 0], "dec": seen[:, 1], "x": brightness, "y": brightness,
                "flux": brightness, "flux_error": np.full(len(seen), 0.1), "mag": 23.9 - 2.5 * np.log10(brightness),
                "flux_radius": np.full(len(seen), 2.0), "flags": np.zeros(len(seen), int),
            }
        ).write(folder / f"{association}.cat.ecsv")  # fmt: skip
        (folder / f"{association}.log").write_text("reduced\n")
        rms = 0.5 if association in sky.bad_relative else 0.01
        relative = [RelativeFit(exposures[0].dataset, "anchor", n=100, rms_x=0.0, rms_y=0.0)]
        relative += [RelativeFit(e.dataset, "matched", n=60, rms_x=rms, rms_y=rms) for e in exposures[1:]]
        if len(exposures) == 1:
            relative = [RelativeFit(exposures[0].dataset, "single")]
        absolute, failure = self._absolute(inside_it, reference, is_long_wave(detector))
        degradations = (
            (Degradation(association, "wisp_template", "no template for the detector"),) if "b1" in detector else ()
        )
        return ReductionResult(
            association, self.name, self.version, done, tuple(relative), absolute, None, None, f"{association}.cat.ecsv",
            len(seen), f"{association}.log", 63.0 if is_long_wave(detector) else 31.0, degradations, failure=failure,
            cpu_seconds=1.0, wall_seconds=1.0, peak_mib=10.0,
        )  # fmt: skip

    @staticmethod
    def _absolute(
        sources: np.ndarray, reference: ReferenceSources | None, long_wave: bool
    ) -> tuple[AbsoluteFit | None, str | None]:
        if reference is None:
            return None, None
        apart = np.hypot(
            (sources[:, None, 0] - reference.ra) * np.cos(np.radians(sources[:, None, 1])),
            sources[:, None, 1] - reference.dec,
        )
        matched = int((apart.min(axis=0) * 3600 < 0.3).sum()) if len(sources) and len(reference) else 0
        if matched < 5:
            return None, "no solution against the reference"
        scale = 63.0 if long_wave else 31.0
        scatter = 2.0 if reference.kind == "own" else 30.0
        return AbsoluteFit(reference.name, reference.kind, 0.1, 0.1, 0.0, 1.0, matched, scatter / scale, scale), None

    def _write(self, exposure: Any, folder: Path, move: float) -> CalibratedExposure:
        header = fits.getheader(exposure.path)
        vertices = parse_s_region(header["S_REGION"])
        centre = mean_position(vertices)
        size = np.ptp(vertices[:, 1]) / SIDE
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
        wcs.wcs.crval, wcs.wcs.crpix = [centre[0], centre[1] + move / 3600], [SIDE / 2 + 0.5] * 2
        wcs.wcs.cdelt = [-size, size]
        rng = np.random.default_rng(zlib.crc32(exposure.dataset.encode()))
        image = rng.normal(0, 0.01, (SIDE, SIDE)).astype("f4")
        y, x = np.mgrid[:SIDE, :SIDE]
        true = wcs.deepcopy()
        true.wcs.crval = list(centre)
        here = self.sky.sources[inside(self.sky.sources[:, 0], self.sky.sources[:, 1], vertices)]
        for k, (sx, sy) in enumerate(true.wcs_world2pix(here, 0)):
            image += ((3 + k % 5) * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / 2 / 1.2**2)).astype("f4")
        error = np.full((SIDE, SIDE), 0.01, "f4")
        dq = np.zeros((SIDE, SIDE), "u4")
        science = fits.ImageHDU(image, wcs.to_header(), name="SCI")
        science.header["BUNIT"] = "MJy/sr"
        planes = [fits.PrimaryHDU(header=header), science]
        planes += [fits.ImageHDU(a, name=n) for n, a in (("ERR", error), ("DQ", dq), ("WHT", 1 / error**2))]
        path = folder / f"{exposure.dataset}_rate.fits"
        fits.HDUList(planes).writeto(path)
        pointing = Pointing(*centre, (0.0, 1000.0 * move), 0.0)
        return CalibratedExposure(exposure.dataset, path.name, sha256_of(path), path.stat().st_size, pointing)


class FakeCatalogs:
    """LS_DR9 of the common sky, dense enough to align; false where the test says so."""

    def __init__(self, sky: Sky, home: FakeHome) -> None:
        self.sky, self.home = sky, home

    def names(self):
        return list(self.home.survey.reference.catalogs)

    available = names

    def ask(self, name, footprint, epoch, margin_arcsec=0.0):
        self.sky.asked.add(name)  # for an alignment; mosaics load theirs
        return CatalogAnswer(name, self.load(name, footprint, epoch, margin_arcsec), "folder", f"{name}.ecsv")

    def load(self, name, footprint, epoch, margin_arcsec=0.0):
        if name in self.sky.damaged_catalogs:
            raise InputError(f"{name}.ecsv is damaged")
        if name != "LS_DR9":
            return None
        rng = np.random.default_rng(5)
        positions = self.sky.sources[::3] + rng.normal(0, 30.0 / 3.6e6, self.sky.sources[::3].shape)
        for area in self.sky.false_reference:
            bad = inside(positions[:, 0], positions[:, 1], area, 30.0)
            positions[bad] += rng.uniform(-20, 20, (bad.sum(), 2)) / 3600
        keep = inside(positions[:, 0], positions[:, 1], footprint, margin_arcsec)
        if self.sky.few_sources is not None:
            keep[np.flatnonzero(keep)[self.sky.few_sources :]] = False
        for area, number in self.sky.sparse:
            there = np.flatnonzero(keep & inside(positions[:, 0], positions[:, 1], area, 30.0))
            middle = there[inside(*positions[there].T, area, -10.0)]
            keep[np.setdiff1d(there, middle[:number])] = False
        n = int(keep.sum())
        if n == 0:
            return None
        return ReferenceSources(name, *positions[keep].T, np.full(n, 20.0), np.full(n, 30.0))


class FakeHome(Home):
    """A home with the archive, catalogues, calibration and engine of the tests."""

    def __init__(self, path: Path, sky: Sky) -> None:
        super().__init__(path)
        self.sky = sky
        self.archive = FakeArchive(sky, path)  # type: ignore[misc]
        self.reference_catalogs = FakeCatalogs(sky, self)  # type: ignore[misc]
        self.calibration = SimpleNamespace(  # type: ignore[misc]
            context="jwst_0001.pmap",
            setup=lambda: CalibrationSetup(path, "jwst_0001.pmap"),
            selected_references_of=self._selected,
        )

    def _selected(self, headers):
        if self.sky.no_calibration is not None:
            raise self.sky.no_calibration
        return [{} for _ in headers]

    def engine(self, association, parameters=None):
        return FakeEngine(self.sky, second=bool(parameters and parameters.get("second")))

    def second_parameters(self, engine, first, second):
        return {**first, "second": True}

    def measure_alignment(self, association, files, reference, prior=None, pointings=None):
        """The library's measurement on catalogue level: the fake exposures' pixels are larger than a star's image."""
        folder = next(iter(files.values())).parent
        catalog = Table.read(folder / f"{association}.cat.ecsv")
        outline = hull([parse_s_region(fits.getheader(path)["S_REGION"]) for path in files.values()])
        absolute = None
        if reference is not None:
            found = measure_solution(
                catalog["ra"], catalog["dec"], reference.ra, reference.dec, footprint=outline,
                error_mas=np.full(len(catalog), 2.0), ref_error_mas=reference.error_mas, prior=prior,
            )  # fmt: skip
            start = Offset(association, "absolute", reference.name, len(catalog), len(reference), 63.0)
            absolute = _offset(start, found)
        apart = 40.0 if association in self.sky.bad_relative else 0.1
        relative = [
            Offset(
                dataset, "relative", "other exposures", 100, 100, 63.0, ra=0.0, dec=0.0, n=80, dra=apart, ddec=0.1,
                err_ra=0.3, err_dec=0.3, scatter_ra=3.0, scatter_dec=3.0, rotation_deg=0.0, rotation_err_deg=0.001,
                rotation_mas=0.0, chance=0.0, contrast=9.0,
            )
            for dataset in sorted(files)
            if len(files) > 1
        ]  # fmt: skip
        name, kind = (reference.name, reference.kind) if reference is not None else ("", "")
        return Measurement(association, name, kind, absolute, tuple(relative)), None


def _offset(start: Offset, found: Solution | Refusal) -> Offset:
    if isinstance(found, Refusal):
        return replace(start, cause=str(found.cause), text=found.text)
    names = set(start.__dataclass_fields__) & set(found.__dataclass_fields__)
    return replace(start, **{name: getattr(found, name) for name in names})


SKIES: dict[str, Sky] = {}


class FakeHomeResource(HomeResource):
    """Opens the fake home of a test by its path."""

    def open(self) -> Home:
        return FakeHome(Path(self.path), SKIES[self.path])


@dataclass
class Platform:
    """A test's platform: its home, its sky, its Dagster instance and definitions."""

    home: FakeHome
    sky: Sky
    instance: dg.DagsterInstance
    definitions: dg.Definitions

    def add_visit(
        self, ra: float, dec: float, observation: int, *, detectors=("nrcb1", "nrcblong"), exposures=(1, 2), **row: Any
    ) -> list[str]:
        """Put a visit's rows into the archive and its sources into the sky; returns the datasets."""
        rng = np.random.default_rng(observation)
        local = rng.uniform(-2.4, 2.4, (700, 2))
        self.sky.sources = np.concatenate([self.sky.sources, from_tangent_plane(local, (ra, dec))])
        datasets = []
        for detector in detectors:
            for number in exposures:
                size = 2.2 if "long" in detector else 1.07
                offset = 0.05 * number
                corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2 + offset
                dataset = f"jw09001{observation:03d}001_02201_{number:05d}_{detector}"
                datasets.append(dataset)
                self.sky.rows.append(
                    {
                        "filename": f"{dataset}_rate.fits", "filter": "F444W" if "long" in detector else "F115W",
                        "pupil": "CLEAR", "exp_type": "NRC_IMAGE", "subarray": "FULL", "detector": detector.upper(),
                        "s_region": to_s_region(from_tangent_plane(corners, (ra, dec))), "expstart": 60000.0 + observation,
                        "expend": 60000.01 + observation, "effexptm": 500.0, "ArchiveFileID": 1, "checksum": "0" * 32,
                        "fileSize": 2880, "cal_ver": "1", "crds_ctx": "c", "publicReleaseDate_mjd": 60000.0, **row,
                    }
                )  # fmt: skip
        return datasets

    def ingest(self):
        """Take the archive in, as the sensor and the command line do."""
        from datetime import datetime

        from panoramic_assets.ingest import ingest
        from panoramic_assets.reporting import report

        found = ingest(self.home.database, self.home.survey, self.home.archive.look(), datetime(2026, 1, 1))
        report(self.home.database, self.instance)
        return found

    def run(self, name: str, job: str = "field_job", verify: bool = False) -> dg.ExecuteInProcessResult:
        """Run all stages of a field in this process."""
        return self.definitions.resolve_job_def(job).execute_in_process(
            partition_key=name, instance=self.instance, raise_on_error=False, tags={VERIFY: "true"} if verify else {}
        )

    def tick(self) -> Any:
        """One tick of the sensor: what it asks for is applied as the daemon would."""
        home = {"home": self.definitions.resources["home"]}
        with dg.build_sensor_context(instance=self.instance, resources=home) as context:
            data = self.definitions.resolve_sensor_def("new_exposures").evaluate_tick(context)
        for request in data.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        return data

    def materialize(self, asset: str, field: str) -> dg.ExecuteInProcessResult:
        """Materialize one asset of a field, its checks with it."""
        key = dg.AssetKey(asset)
        checks = self.definitions.resolve_asset_graph().get_check_keys_for_assets({key})
        job = self.definitions.resolve_implicit_global_asset_job_def()
        subset = job.get_subset(asset_selection={key}, asset_check_selection=checks)
        return subset.execute_in_process(partition_key=field, instance=self.instance, raise_on_error=False)

    def checks(self, result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
        """Answers of a run by ``asset.check``."""
        return {f"{e.asset_key.to_user_string()}.{e.check_name}": e for e in result.get_asset_check_evaluations()}


@pytest.fixture
def platform_of(tmp_path: Path) -> Iterator[Callable[[str], Platform]]:
    """A maker of a platform for the text of a survey file; one for each test."""
    path = tmp_path / "home"
    sky = SKIES[str(path)] = Sky()
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:

        def make(text: str) -> Platform:
            home = FakeHome(path, sky)
            home.prepare(Survey.parse(text, tmp_path / "small.yaml"))
            definitions = build_definitions(FakeHomeResource(path=str(path)), dg.in_process_executor)
            return Platform(home, sky, instance, definitions)

        yield make
    del SKIES[str(path)]


@pytest.fixture
def survey_text() -> str:
    """The survey file of most tests here."""
    return SURVEY


@pytest.fixture
def platform(platform_of: Callable[[str], Platform]) -> Platform:
    """A platform of its own for each test."""
    return platform_of(SURVEY)


@pytest.fixture
def two_fields(platform: Platform) -> tuple[Platform, str, str]:
    """A platform with two complete fields, taken in."""
    platform.add_visit(150.0, 2.0, 1)
    platform.add_visit(10.0, -40.0, 2)
    platform.ingest()
    first, second = platform.home.database.field_names()
    return platform, first, second


Maker = Callable[..., Any]
