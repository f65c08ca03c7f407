"""The native engine behind the protocol, held against the truth of a simulated visit: a long- and a short-wave one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from judging import encircled_energy, placement
from numpy.typing import NDArray

from panoramic.mosaic.photometry import aperture_photometry
from panoramic.pointing import measured_pointing, moved_position, rotation_of
from panoramic.provenance import sha256_of
from panoramic.reduction.base import (
    CATALOG_COLUMNS,
    CalibratedExposure,
    CalibrationSetup,
    ExposureInput,
    PointingPrior,
    ReductionResult,
    ReferenceSources,
)
from panoramic.reduction.moving import SkyCorrection, move_products
from panoramic.reduction.native.engine import NativeReduction
from panoramic.reference import select_own
from panoramic.simulate.archive import SimulatedArchive, simulate_archive
from panoramic.simulate.program import FieldPointing, FilterPair, Simulation, SkyModel
from panoramic.simulate.truth import Truth
from panoramic.survey import SourceSelection
from panoramic.verification import measure_alignment

Array = NDArray[np.float64]
BANDS = {"nrcalong": "F356W", "nrca3": "F150W"}
# a field across RA = 0
SIMULATION = Simulation(
    seed=23,
    program=9004,
    fields=(FieldPointing(ra=0.004, dec=-31.25, v3pa=215.0, observation=3),),
    filters=(FilterPair(short="F150W", long="F356W"),),
    modules=("A",),
    detectors=tuple(BANDS),
    dithers=3,
    sky=SkyModel(star_density=10.0),
)


@dataclass(frozen=True)
class Reduced:
    """One association and where it lies."""

    result: ReductionResult
    folder: Path
    band: str

    def path(self, exposure: CalibratedExposure) -> Path:
        return self.folder / exposure.filename

    def catalog(self) -> Table:
        assert self.result.catalog is not None
        return Table.read(self.folder / self.result.catalog)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> SimulatedArchive:
    return simulate_archive(SIMULATION, tmp_path_factory.mktemp("native_visit"))


@pytest.fixture(scope="session")
def truth(archive: SimulatedArchive) -> Truth:
    return Truth.load(archive.path)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_cache")


def inputs(archive: SimulatedArchive, detector: str) -> tuple[ExposureInput, ...]:
    return tuple(
        ExposureInput(path.name.removesuffix("_rate.fits"), path)
        for path in sorted(archive.exposures)
        if path.name.endswith(f"_{detector}_rate.fits")
    )


def reduce(
    archive: SimulatedArchive,
    exposures: Sequence[ExposureInput],
    reference: ReferenceSources | None,
    root: Path,
    cache: Path,
    priors: tuple[PointingPrior, ...] = (),
    **parameters: object,
) -> Reduced:
    detector = exposures[0].dataset.rsplit("_", 1)[-1]
    setup = CalibrationSetup(archive.crds_path, archive.crds_context, grizli_path=archive.grizli_path)
    engine = NativeReduction(setup, root / "work", parameters, services_off=("persistence_history",), cache=cache)
    digests = [sha256_of(e.path) for e in exposures]
    folder = root / "products" / detector
    result = engine.reduce(detector, tuple(exposures), reference, priors, folder)
    assert [sha256_of(e.path) for e in exposures] == digests
    assert list((root / "work").iterdir()) == []
    return Reduced(result, folder, BANDS[detector])


@pytest.fixture(scope="session")
def external(archive: SimulatedArchive) -> ReferenceSources:
    table = Table.read(archive.reference_catalogs["LS_DR9"])
    ra, dec, mag, error = (np.asarray(table[c], float) for c in ("ra", "dec", "mag", "ra_error"))
    return ReferenceSources("LS_DR9", ra, dec, mag, error)


@pytest.fixture(scope="session")
def long_wave(
    archive: SimulatedArchive, external: ReferenceSources, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reduced:
    return reduce(archive, inputs(archive, "nrcalong"), external, tmp_path_factory.mktemp("long"), cache)


@pytest.fixture(scope="session")
def own(long_wave: Reduced) -> ReferenceSources:
    table = select_own(long_wave.catalog(), SourceSelection())
    ra, dec, mag = (np.asarray(table[c], float) for c in ("ra", "dec", "mag"))
    return ReferenceSources("own", ra, dec, mag, np.full(len(table), np.nan), "own")


@pytest.fixture(scope="session")
def short_wave(
    archive: SimulatedArchive, own: ReferenceSources, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reduced:
    return reduce(archive, inputs(archive, "nrca3"), own, tmp_path_factory.mktemp("short"), cache)


@pytest.fixture(params=["long_wave", "short_wave"])
def reduced(request: pytest.FixtureRequest) -> Reduced:
    value: Reduced = request.getfixturevalue(request.param)
    return value


# --- what both give ---------------------------------------------------------------------------


def test_the_story(reduced: Reduced) -> None:
    result = reduced.result
    assert (result.engine, result.failure, result.excluded) == ("native", None, {})
    assert len(result.exposures) == 3 and [f.role for f in result.relative] == ["matched"] * 3
    assert all(f.n >= 24 and max(f.rms_x, f.rms_y) < 0.02 for f in result.relative)
    assert result.absolute is not None and result.absolute.n >= 12
    assert {(d.what, d.intended) for d in result.degradations} <= {
        ("persistence_history", True),
        ("wisp_template", False),
    }
    assert sorted(p.name for p in reduced.folder.iterdir()) == sorted(
        [*(e.filename for e in result.exposures), result.image, result.weight, result.catalog, result.log]  # type: ignore[type-var]
    )


def test_budget(reduced: Reduced) -> None:
    assert reduced.result.peak_mib < 1024
    # of three exposures, with room for a busy machine and kernels that are compiled for the first time
    assert reduced.result.cpu_seconds < 45


def test_exposures_agree_with_each_other(reduced: Reduced, truth: Truth) -> None:
    assert placement(reduced.folder, reduced.result, truth).between < 0.5


def test_absolute_error_is_what_is_predicted(long_wave: Reduced, truth: Truth) -> None:
    fit = long_wave.result.absolute
    assert fit is not None
    sigma = fit.rms * fit.pixel_scale_mas / np.sqrt(fit.n)
    found = placement(long_wave.folder, long_wave.result, truth)
    assert max(abs(found.east), abs(found.north)) < 3.5 * sigma < 50


def test_short_wave_lies_on_the_long_wave_frame(short_wave: Reduced, long_wave: Reduced, truth: Truth) -> None:
    ours, theirs = (placement(r.folder, r.result, truth) for r in (short_wave, long_wave))
    assert np.hypot(ours.east - theirs.east, ours.north - theirs.north) < 6  # the field turns about another centre


def test_the_independent_measurement_agrees(
    reduced: Reduced, external: ReferenceSources, own: ReferenceSources
) -> None:
    files = {e.dataset: reduced.path(e) for e in reduced.result.exposures}
    reference = external if reduced.band == "F356W" else own
    measured, _ = measure_alignment("a", files, reference, search_radius_arcsec=3.0)
    assert measured.absolute is not None and measured.absolute.measured
    for offset in (measured.absolute, *measured.of("relative")):
        assert offset.measured
        assert abs(offset.dra or 0) < 3 * (offset.err_ra or 0) and abs(offset.ddec or 0) < 3 * (offset.err_dec or 0)


def test_the_pointing_correction_is_what_the_product_was_moved_by(reduced: Reduced, truth: Truth) -> None:
    """The archive's positions, by the simulator's own geometry, turned by the correction: the product's positions."""
    x, y = (a.ravel() for a in np.meshgrid(*[np.linspace(0, 2047, 5)] * 2))
    for exposure in reduced.result.exposures:
        pointing = exposure.pointing
        assert pointing is not None
        rotation = rotation_of(pointing)
        moved = np.array(
            [moved_position(rotation, *p) for p in zip(*truth.reported_sky(exposure.dataset, x, y), strict=True)]
        )
        ra, dec = WCS(fits.getheader(reduced.path(exposure), "SCI")).all_pix2world(x, y, 0)
        east = ((ra - moved[:, 0] + 180) % 360 - 180) * np.cos(np.radians(dec)) * 3.6e6
        assert np.hypot(east, (dec - moved[:, 1]) * 3.6e6).max() < 0.05
        header = fits.getheader(reduced.path(exposure))
        assert (header["PNTDRA"], header["PNTDDEC"], header["PNTROLL"]) == (*pointing.shift_mas, pointing.roll_deg)


def unsaturated_stars(reduced: Reduced, truth: Truth) -> Table:
    """Isolated stars of 18 to 23 mag, seen by two exposures or more, of which none has a saturated pixel."""
    sources, column = truth.sources, np.asarray(truth.sources[f"mag_{reduced.band}"])
    good, seen = (sources["kind"] == "star") & (column > 18) & (column < 23), np.zeros(len(column), int)
    for exposure in reduced.result.exposures:
        x, y = truth.true_pixel(exposure.dataset, sources["ra"], sources["dec"])
        with fits.open(reduced.path(exposure)) as hdus:
            saturated = hdus["DQ"].data & 2 > 0
        seen += (x > 5) & (x < 2043) & (y > 5) & (y < 2043)
        for k in np.flatnonzero(good & (x > 5) & (x < 2043) & (y > 5) & (y < 2043)):
            near = np.hypot(x - x[k], y - y[k]) * reduced.result.pixel_scale_mas < 2000
            i, j = round(float(x[k])), round(float(y[k]))
            good[k] &= (
                not saturated[j - 3 : j + 4, i - 3 : i + 4].any() and (near & (column < column[k] + 4)).sum() == 1
            )
    return sources[good & (seen > 1)]


def test_star_fluxes(reduced: Reduced, truth: Truth, tmp_path: Path) -> None:
    scale = reduced.result.pixel_scale_mas / 1000
    # as a mosaic of 10 nJy per pixel, with a WCS that photometry of mosaics reads
    factor = 1e14 * (scale / 206264.806247) ** 2
    paths = []
    for name, power in ((reduced.result.image, 1), (reduced.result.weight, -2)):
        data, header = fits.getdata(reduced.folder / str(name), header=True)
        for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
            del header[key]
        header["CDELT1"], header["CDELT2"] = -scale / 3600, scale / 3600
        paths.append(tmp_path / str(name))
        fits.PrimaryHDU(data * np.float32(factor**power), header).writeto(paths[-1])
    stars = unsaturated_stars(reduced, truth)
    table = aperture_photometry(
        paths[0], paths[1], np.asarray(stars["ra"]), np.asarray(stars["dec"]), [0.5], annulus_arcsec=(1.2, 1.8)
    )
    true = 10 ** ((23.9 - np.asarray(stars[f"mag_{reduced.band}"])) / 2.5)
    ratio = np.asarray(table["flux_0.50"]) / encircled_energy(reduced.band, scale, 0.5) / true
    ratio = ratio[np.asarray(table["covered"]) & np.isfinite(ratio)]
    assert len(ratio) >= 5
    assert np.mean(ratio) == pytest.approx(1.0, abs=0.008)
    assert np.abs(ratio - 1).max() < 0.03, sorted(ratio)


def test_planes_of_the_contract(reduced: Reduced) -> None:
    for exposure in reduced.result.exposures:
        path = reduced.path(exposure)
        assert (sha256_of(path), path.stat().st_size) == (exposure.sha256, exposure.size)
        with fits.open(path) as hdus:
            sci, weight, error, dq = (hdus[n].data for n in ("SCI", "WHT", "ERR", "DQ"))
            names = [hdu.name for hdu in hdus]
            variances = sum(hdus[n].data for n in ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"))
        assert names[1:5] == ["SCI", "ERR", "WHT", "DQ"] and names[-2:] == ["BACKGROUND", "STRIPES"]
        assert dq.dtype == np.uint32
        used = weight > 0
        assert 0.9 < used.mean() < 0.995 and ((dq & 1 > 0) == ~used).all()
        # a pixel that differs between exposures has a value, and no weight
        outlier = dq & 16 > 0
        assert 100 < outlier.sum() < 20000 and (weight[outlier] == 0).all() and np.isfinite(sci[outlier]).all()
        # neighbours' differences know nothing of sources that are wider than a pixel
        pull = np.diff(np.where(used, sci * np.sqrt(weight), np.nan), axis=1) / np.sqrt(2)
        assert 1.4826 * np.nanmedian(np.abs(pull)) == pytest.approx(1.0, abs=0.08)
        assert np.allclose(error[used] ** 2, variances[used], rtol=1e-5)
        # a star's own noise is in the error and not in the weight
        bright = used & (sci > 200 / np.sqrt(np.median(weight[used])))
        assert np.median((error * np.sqrt(weight))[bright]) > 2


def test_what_was_subtracted_can_be_put_back(reduced: Reduced, archive: SimulatedArchive) -> None:
    from panoramic.reduction.native.background import Background

    exposure = reduced.result.exposures[0]
    with fits.open(reduced.path(exposure)) as hdus:
        sci, weight, scale = hdus["SCI"].data, hdus["WHT"].data, hdus["SCI"].header["PHOTMJSR"]
        sky, table = hdus["BACKGROUND"], Table(hdus["STRIPES"].data)
        background = Background(np.asarray(sky.data, np.float32), (2048, 2048), sky.header["MESH_PX"], 1.0).image()
        flat_name = hdus[0].header["R_FLAT"]
        wisps = hdus[0].header.get("WISPAMP", 0.0)
    width = 2048 // 4
    even = np.where(np.arange(2048) % 2 == 0, 1.0, -1.0)
    stripes = np.asarray(table["ROW"])[:, None] + np.repeat(np.asarray(table["AMPLIFIER"]), width, axis=1)
    stripes = stripes + np.repeat(np.asarray(table["PARITY"]), width, axis=1) * even
    flat = fits.getdata(archive.crds_path / "references/jwst/nircam" / flat_name, "SCI")
    rate = fits.getdata(archive.path / "exposures" / f"{exposure.dataset}_rate.fits", "SCI")
    good = weight > 0
    again = (sci + background) * flat / scale + stripes
    if wisps:
        names = list((Path(str(archive.grizli_path)) / "CONF" / "NircamWisp").glob("*NRCA3_F150W*"))
        again += wisps * np.nan_to_num(fits.getdata(names[0])) * flat / scale
    assert np.abs(again - rate)[good].max() < 2e-5 * np.abs(rate[good]).max()


def test_catalogue(reduced: Reduced, truth: Truth) -> None:
    result, catalog = reduced.result, reduced.catalog()
    assert catalog.colnames == list(CATALOG_COLUMNS) and len(catalog) == result.n_sources > 100
    header = fits.getheader(reduced.folder / str(result.image))
    assert header["BUNIT"] == "MJy/sr" and (header["ENGINE"], header["ASSOC"]) == ("native", result.association)
    x, y = WCS(header).all_world2pix(catalog["ra"], catalog["dec"], 0)
    assert np.abs(x - catalog["x"]).max() < 1e-3 and np.abs(y - catalog["y"]).max() < 1e-3
    assert 0.9 < catalog.meta["purity"] <= 1 and 1 <= catalog.meta["error_scale"] < 1.5
    placed = placement(reduced.folder, result, truth)
    cos = np.cos(np.radians(np.asarray(truth.sources["dec"])))
    ra = np.asarray(truth.sources["ra"]) + placed.east / 3.6e6 / cos
    dec = np.asarray(truth.sources["dec"]) + placed.north / 3.6e6
    bright = catalog[(catalog["flags"] == 0) & (catalog["flux"] > 30 * catalog["flux_error"])]
    d_ra = (np.asarray(bright["ra"])[:, None] - ra[None] + 180) % 360 - 180
    apart = np.hypot(d_ra * cos, np.asarray(bright["dec"])[:, None] - dec[None]) * 3.6e6
    nearest = apart.argmin(axis=1)
    star = np.asarray(truth.sources["kind"])[nearest] == "star"
    assert star.sum() >= 8 and np.median(apart.min(axis=1)[star]) < 5


def test_the_products_can_be_moved(long_wave: Reduced, tmp_path: Path) -> None:
    """As the field's frame does it with either engine's products."""
    folder = tmp_path / "copy"
    shutil.copytree(long_wave.folder, folder)
    moved = move_products(folder, long_wave.result, SkyCorrection(0.0, -31.25, 30.0, -20.0, 0.01))
    assert all(a.sha256 != b.sha256 for a, b in zip(moved.exposures, long_wave.result.exposures, strict=True))


# --- the same again, and bad cases ------------------------------------------------------------


def test_two_runs_give_the_same_bytes(
    archive: SimulatedArchive, own: ReferenceSources, short_wave: Reduced, cache: Path, tmp_path: Path
) -> None:
    again = reduce(archive, inputs(archive, "nrca3"), own, tmp_path, cache)
    first = {p.name: sha256_of(p) for p in short_wave.folder.iterdir()}
    assert {p.name: sha256_of(p) for p in again.folder.iterdir()} == first


def test_a_reference_that_belongs_to_nothing_is_refused(
    archive: SimulatedArchive, external: ReferenceSources, truth: Truth, cache: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    nothing = replace(external, ra=external.ra + rng.uniform(-5, 5, len(external)) / 600, dec=external.dec[::-1].copy())
    done = reduce(archive, inputs(archive, "nrcalong")[:2], nothing, tmp_path, cache)
    assert done.result.absolute is None and "no alignment to LS_DR9" in str(done.result.failure)
    # in the telescope's frame: where the headers say, but for the tie of the two
    for exposure in done.result.exposures:
        assert exposure.pointing is not None and np.hypot(*exposure.pointing.shift_mas) < 20


def test_one_exposure_alone_with_a_true_prior(
    archive: SimulatedArchive, truth: Truth, cache: Path, tmp_path: Path
) -> None:
    only = inputs(archive, "nrcalong")[0]
    x, y = (a.ravel() for a in np.meshgrid(*[np.linspace(0, 2047, 5)] * 2))
    row = truth.exposure(only.dataset)
    centre = float(row["ra_ref_reported"]), float(row["dec_ref_reported"])
    error = measured_pointing(truth.reported_sky(only.dataset, x, y), truth.true_sky(only.dataset, x, y), *centre)
    covariance = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1e-6))
    prior = PointingPrior(only.dataset, error.shift_mas, error.roll_deg, covariance)
    assert np.hypot(*prior.shift_mas) > 20
    done = reduce(archive, [only], None, tmp_path, cache, (prior,), gwcs=True)
    assert [f.role for f in done.result.relative] == ["single"] and done.result.failure is None
    assert "outliers" in {d.what for d in done.result.degradations}
    path = done.path(done.result.exposures[0])
    true_ra, true_dec = truth.true_sky(only.dataset, x, y)
    header = fits.getheader(path, "SCI")
    for ra, dec in (WCS(header).all_pix2world(x, y, 0), gwcs_of(path)(x, y)):
        east = ((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec)) * 3.6e6
        assert np.hypot(east, (dec - true_dec) * 3.6e6).max() < 0.1


def gwcs_of(path: Path):  # type: ignore[no-untyped-def]
    """The gwcs object as jwst's datamodels read it."""
    from stdatamodels import asdf_in_fits

    with asdf_in_fits.open(str(path)) as tree:
        return tree["meta"]["wcs"]


def copy_of(exposure: ExposureInput, folder: Path) -> ExposureInput:
    path = folder / exposure.path.name
    shutil.copyfile(exposure.path, path)
    path.chmod(0o644)
    return ExposureInput(exposure.dataset, path)


def test_one_exposure_whose_pointing_is_wrong_by_3_arcsec_is_held_back_by_name(
    archive: SimulatedArchive, external: ReferenceSources, cache: Path, tmp_path: Path
) -> None:
    exposures = list(inputs(archive, "nrcalong"))
    wrong = exposures[1] = copy_of(exposures[1], tmp_path)
    with fits.open(wrong.path, mode="update") as hdus:
        hdus["SCI"].header["DEC_REF"] += 3 / 3600
    done = reduce(archive, exposures, external, tmp_path, cache)
    assert list(done.result.excluded) == [wrong.dataset] and wrong.dataset in str(done.result.failure)
    assert [f.role for f in done.result.relative] == ["matched", "rejected", "matched"]
    assert len(done.result.exposures) == 2 and not (done.folder / wrong.path.name).exists()


def test_an_exposure_without_a_good_pixel_is_left_out(
    archive: SimulatedArchive, external: ReferenceSources, cache: Path, tmp_path: Path
) -> None:
    exposures = list(inputs(archive, "nrcalong")[:2])
    bad = exposures[0] = copy_of(exposures[0], tmp_path)
    with fits.open(bad.path, mode="update") as hdus:
        hdus["DQ"].data |= 1
    done = reduce(archive, exposures, external, tmp_path, cache)
    assert "0.0% of its pixels" in done.result.excluded[bad.dataset]
    assert len(done.result.exposures) == 1 and done.result.absolute is not None
