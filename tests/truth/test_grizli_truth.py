"""grizli behind the protocol, held against the truth of a simulated visit: one long- and one short-wave association."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

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
from panoramic.reduction.grizli import GrizliReduction
from panoramic.simulate.archive import SimulatedArchive, simulate_archive
from panoramic.simulate.program import FieldPointing, FilterPair, Simulation, SkyModel
from panoramic.simulate.truth import Truth

Array = NDArray[np.float64]
BANDS = {"nrcblong": "F444W", "nrcb4": "F115W"}
# a field across RA = 0, where grizli's own polygons break
SIMULATION = Simulation(
    seed=11,
    program=9003,
    fields=(FieldPointing(ra=0.004, dec=-31.25, v3pa=70.0, observation=3),),
    filters=(FilterPair(short="F115W", long="F444W"),),
    detectors=tuple(BANDS),
    dithers=2,
    sky=SkyModel(star_density=10.0),  # stars to measure fluxes by
)
# what no folder archive has: its authors' database
OFFLINE = ("region_mask", "persistence_history")


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
    return simulate_archive(SIMULATION, tmp_path_factory.mktemp("visit"))


@pytest.fixture(scope="session")
def truth(archive: SimulatedArchive) -> Truth:
    return Truth.load(archive.path)


def reduce(
    archive: SimulatedArchive,
    detector: str,
    reference: ReferenceSources | None,
    root: Path,
    priors: tuple[PointingPrior, ...] = (),
    number: int = 2,
) -> Reduced:
    setup = CalibrationSetup(archive.crds_path, archive.crds_context, grizli_path=archive.grizli_path)
    engine = GrizliReduction(setup, root / "work", {"lean": True}, services_off=OFFLINE)
    exposures = tuple(
        ExposureInput(path.name.removesuffix("_rate.fits"), path)
        for path in archive.exposures
        if path.name.endswith(f"_{detector}_rate.fits")
    )[:number]
    digests = [sha256_of(e.path) for e in exposures]
    folder = root / "products" / detector
    result = engine.reduce(detector, exposures, reference, priors, folder)
    assert [sha256_of(e.path) for e in exposures] == digests
    assert list((root / "work").iterdir()) == []
    return Reduced(result, folder, BANDS[detector])


@pytest.fixture(scope="session")
def long_wave(archive: SimulatedArchive, tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    """Aligned to the external catalogue."""
    table = Table.read(archive.reference_catalogs["LS_DR9"])
    ra, dec, mag, error = (np.asarray(table[name], float) for name in ("ra", "dec", "mag", "ra_error"))
    reference = ReferenceSources("LS_DR9", ra, dec, mag, error)
    return reduce(archive, "nrcblong", reference, tmp_path_factory.mktemp("lw"))


@pytest.fixture(scope="session")
def short_wave(archive: SimulatedArchive, long_wave: Reduced, tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    """Aligned to the long-wave catalogue."""
    table = long_wave.catalog()
    good = (table["mag"] > 17) & (table["flux"] > 20 * table["flux_error"])
    good &= (table["flux_radius"] > 1) & (table["flux_radius"] < 10)
    table = table[good]
    table.sort("mag")
    ra, dec, mag = (np.asarray(table[name], float) for name in ("ra", "dec", "mag"))
    own = ReferenceSources("own", ra, dec, mag, np.full(len(table), np.nan), "own")
    return reduce(archive, "nrcb4", own, tmp_path_factory.mktemp("sw"))


@pytest.fixture(scope="session")
def true_prior(archive: SimulatedArchive, truth: Truth) -> PointingPrior:
    """The true pointing error of one exposure."""
    dataset = min(p.name for p in archive.exposures if p.name.endswith("_nrcblong_rate.fits")).removesuffix(
        "_rate.fits"
    )
    x, y = (a.ravel() for a in np.meshgrid(*[np.linspace(0, 2047, 5)] * 2))
    row = truth.exposure(dataset)
    centre = float(row["ra_ref_reported"]), float(row["dec_ref_reported"])
    error = measured_pointing(truth.reported_sky(dataset, x, y), truth.true_sky(dataset, x, y), *centre)
    return PointingPrior(dataset, error.shift_mas, error.roll_deg, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1e-6)))


@pytest.fixture(scope="session")
def with_prior(
    archive: SimulatedArchive, true_prior: PointingPrior, tmp_path_factory: pytest.TempPathFactory
) -> Reduced:
    """One exposure moved by its prior, and aligned to nothing."""
    return reduce(archive, "nrcblong", None, tmp_path_factory.mktemp("prior"), (true_prior,), number=1)


@pytest.fixture(params=["long_wave", "short_wave"])
def reduced(request: pytest.FixtureRequest) -> Reduced:
    value: Reduced = request.getfixturevalue(request.param)
    return value


def offsets(reduced: Reduced, truth: Truth) -> Array:
    """(solution - true) east and north in mas, mean over a grid on the detector, per exposure: (N, 2)."""
    axis = np.linspace(40, 2008, 13)
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    out = []
    for exposure in reduced.result.exposures:
        ra, dec = WCS(fits.getheader(reduced.path(exposure), "SCI")).all_pix2world(x, y, 0)
        true_ra, true_dec = truth.true_sky(exposure.dataset, x, y)
        east = ((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec))
        out.append((float(np.mean(east)) * 3.6e6, float(np.mean(dec - true_dec)) * 3.6e6))
    return np.array(out)


def external_error(long_wave: Reduced, truth: Truth) -> float:
    """1 sigma per axis, mas: the catalogue's true scatter over the root of the matches."""
    fit = long_wave.result.absolute
    assert fit is not None
    table = truth.references["LS_DR9"]
    exposure = long_wave.result.exposures[0].dataset
    x, y = truth.true_pixel(exposure, table["ra"], table["dec"])
    inside = (x > 0) & (x < 2048) & (y > 0) & (y < 2048)
    east, north = truth.catalog_scatter("LS_DR9", table["id"][inside])
    scatter = np.sqrt(np.nanmedian(np.concatenate([east, north]) ** 2)) * 1.4826
    return float(scatter / np.sqrt(fit.n))


def test_the_story(reduced: Reduced) -> None:
    result = reduced.result
    assert result.failure is None and result.excluded == {} and len(result.exposures) == 2
    assert [f.role for f in result.relative] == ["anchor", "matched"]
    assert result.absolute is not None and result.absolute.n >= 12
    assert abs(result.absolute.scale - 1) < 1e-3 and abs(result.absolute.rotation_deg) < 0.1
    assert result.n_sources > 100 and 500 < result.peak_mib < 4000 and 10 < result.cpu_seconds < 600


def test_no_degradation_is_missed_and_none_is_invented(reduced: Reduced) -> None:
    found = {(d.product, d.what) for d in reduced.result.degradations}
    assert found == {(e.dataset, what) for e in reduced.result.exposures for what in OFFLINE}
    assert all(d.intended for d in reduced.result.degradations)


def test_long_wave_positions(long_wave: Reduced, truth: Truth) -> None:
    error = float(np.hypot(*offsets(long_wave, truth).mean(axis=0)))
    assert error <= max(20.0, 4 * external_error(long_wave, truth)), f"{error:.1f} mas"


def test_short_wave_positions(short_wave: Reduced, long_wave: Reduced, truth: Truth) -> None:
    fit = short_wave.result.absolute
    assert fit is not None
    own = fit.rms * fit.pixel_scale_mas / np.sqrt(fit.n)
    error = float(np.hypot(*offsets(short_wave, truth).mean(axis=0)))
    assert error <= max(20.0, 4 * float(np.hypot(own, external_error(long_wave, truth)))), f"{error:.1f} mas"


def test_a_true_prior_brings_the_product_to_the_truth(
    with_prior: Reduced, true_prior: PointingPrior, archive: SimulatedArchive, truth: Truth
) -> None:
    """Through headers, assign_wcs, the fitted polynomial and grizli's alignment to nothing; also across RA = 0."""
    assert np.hypot(*true_prior.shift_mas) > 20 and abs(true_prior.roll_deg) > 1e-3
    (exposure,) = with_prior.result.exposures
    x, y = (a.ravel() for a in np.meshgrid(*[np.linspace(0, 2047, 9)] * 2))
    header = fits.getheader(with_prior.path(exposure), "SCI")
    ra, dec = WCS(header).all_pix2world(x, y, 0)
    true_ra, true_dec = truth.true_sky(exposure.dataset, x, y)
    east = ((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec)) * 3.6e6
    assert np.hypot(east, (dec - true_dec) * 3.6e6).max() < 0.5
    # told as a correction of the archive's pointing, whose keywords are kept
    assert exposure.pointing is not None
    assert exposure.pointing.shift_mas == pytest.approx(true_prior.shift_mas, abs=0.01)
    assert exposure.pointing.roll_deg == pytest.approx(true_prior.roll_deg, abs=1e-6)
    theirs = fits.getheader(archive.path / "exposures" / f"{exposure.dataset}_rate.fits", "SCI")
    assert all(header[key] == theirs[key] for key in ("RA_REF", "DEC_REF", "ROLL_REF", "RA_V1", "DEC_V1", "PA_V3"))
    log = (with_prior.folder / with_prior.result.log).read_text()
    assert log.count(f"pointing prior: {exposure.dataset} moved by {true_prior.shift_mas[0]:.2f} mas east") == 1
    assert with_prior.result.failure is None and with_prior.result.absolute is None


def test_the_pointing_correction_is_what_the_product_was_moved_by(reduced: Reduced, truth: Truth) -> None:
    """The archive's positions, by the simulator's own geometry, turned by the correction: the product's positions."""
    x, y = (a.ravel() for a in np.meshgrid(*[np.linspace(0, 2047, 5)] * 2))
    for exposure in reduced.result.exposures:
        pointing = exposure.pointing
        assert pointing is not None
        rotation = rotation_of(pointing)
        reported = zip(*truth.reported_sky(exposure.dataset, x, y), strict=True)
        moved = np.array([moved_position(rotation, *place) for place in reported])
        ra, dec = WCS(fits.getheader(reduced.path(exposure), "SCI")).all_pix2world(x, y, 0)
        east = ((ra - moved[:, 0] + 180) % 360 - 180) * np.cos(np.radians(dec)) * 3.6e6
        assert np.hypot(east, (dec - moved[:, 1]) * 3.6e6).max() < 0.5
        header = fits.getheader(reduced.path(exposure))
        assert (header["PNTDRA"], header["PNTDDEC"]) == pytest.approx(pointing.shift_mas)
        assert header["PNTROLL"] == pytest.approx(pointing.roll_deg)


def test_exposures_agree_with_each_other(long_wave: Reduced, short_wave: Reduced, truth: Truth) -> None:
    for reduced, limit in ((long_wave, 2.0), (short_wave, 6.0)):
        first, second = offsets(reduced, truth)
        assert np.hypot(*(second - first)) / np.sqrt(2) <= limit


def test_what_the_fit_says_of_its_own_scatter(long_wave: Reduced, truth: Truth) -> None:
    fit = long_wave.result.absolute
    assert fit is not None
    true = external_error(long_wave, truth) * np.sqrt(fit.n)
    assert 0.4 < fit.rms * fit.pixel_scale_mas / true < 1.6


def test_flux_scale(reduced: Reduced, archive: SimulatedArchive) -> None:
    """Bright pixels against the archive's own counts, flat and flux scale: what grizli does in between is additive."""
    for exposure in reduced.result.exposures:
        with fits.open(reduced.path(exposure)) as done:
            primary, sci, weight = done[0].header, done["SCI"].data, done["WHT"].data
            header = done["SCI"].header
        flat = fits.getdata(archive.crds_path / "references/jwst/nircam" / primary["R_FLAT"], "SCI")
        counts = fits.getdata(archive.path / "exposures" / f"{exposure.dataset}_rate.fits", "SCI")
        expected = counts / flat * header["PHOTMJSR"] - header["SKYLEVEL"]
        bright = (weight > 0) & np.isfinite(expected)
        bright &= expected > np.percentile(expected[bright], 99.7)
        slope = float(np.sum(sci[bright] * expected[bright]) / np.sum(expected[bright] ** 2))
        assert slope == pytest.approx(1.0, abs=0.005)


def test_star_fluxes(reduced: Reduced, truth: Truth) -> None:
    """Isolated stars: the median of both exposures within 2 % of truth once the aperture's share of light is known."""
    import sep

    from panoramic.simulate.optics import OVERSAMPLING, point_spread_function

    ratios = []
    for exposure in reduced.result.exposures:
        with fits.open(reduced.path(exposure)) as hdus:
            sci, weight, header = hdus["SCI"].data, hdus["WHT"].data, hdus["SCI"].header
        scale, area = np.sqrt(header["PIXAR_A2"]), header["PIXAR_SR"]
        psf = point_spread_function(reduced.band, scale).astype(float)
        yy, xx = np.indices(psf.shape) - len(psf) // 2
        radius = np.hypot(xx, yy) * scale / OVERSAMPLING
        share = psf[radius < 0.45].sum() - psf[(radius > 0.8) & (radius < 1.2)].mean() * (radius < 0.45).sum()
        mag = np.asarray(truth.sources[f"mag_{reduced.band}"], float)
        x, y = truth.true_pixel(exposure.dataset, truth.sources["ra"], truth.sources["dec"])
        inside = (x > 50) & (x < 1998) & (y > 50) & (y < 1998)
        stars = np.flatnonzero((truth.sources["kind"] == "star") & inside & (mag > 18) & (mag < 24.5))
        good = np.isfinite(sci) & (weight > 0)
        data = np.where(good, sci, 0).astype(np.float32)
        for i in stars:
            near = np.hypot(x - x[i], y - y[i]) * scale < 1.3
            if (near & (mag < mag[i] + 2.5)).sum() > 1:
                continue
            if sep.sum_circle((~good).astype(np.float32), [x[i]], [y[i]], 0.2 / scale)[0][0] > 0:
                continue  # a bad pixel in the core
            flux, _, _ = sep.sum_circle(
                data, [x[i]], [y[i]], 0.45 / scale, bkgann=(0.8 / scale, 1.2 / scale), mask=~good
            )
            ratios.append(float(flux[0]) * 1e12 * area / 10 ** (-0.4 * (mag[i] - 23.9)) / share)
    assert len(ratios) >= 6
    assert np.median(ratios) == pytest.approx(1.0, abs=0.02), sorted(ratios)


def test_weights_know_the_noise(reduced: Reduced) -> None:
    for exposure in reduced.result.exposures:
        with fits.open(reduced.path(exposure)) as hdus:
            sci, weight, error, dq = (hdus[n].data for n in ("SCI", "WHT", "ERR", "DQ"))
        used = weight > 0
        assert 0.9 < used.mean() < 0.99 and ((dq & 1 > 0) == ~used).all()
        pull = sci[used] * np.sqrt(weight[used])
        # stripes that 1/f removal leaves are in the scatter and in no error plane
        assert 0.9 < 1.4826 * np.median(np.abs(pull - np.median(pull))) < 1.5
        # a star's own noise is in the error and not in the weight
        bright = used & (sci > 200 / np.sqrt(np.median(weight[used])))
        assert np.median((error * np.sqrt(weight))[bright]) > 2


def test_headers_and_catalogue(reduced: Reduced, archive: SimulatedArchive, truth: Truth) -> None:
    result = reduced.result
    for exposure in result.exposures:
        ours = fits.getheader(reduced.path(exposure))
        theirs = fits.getheader(archive.path / "exposures" / f"{exposure.dataset}_rate.fits")
        for key in ("TELESCOP", "INSTRUME", "DETECTOR", "FILTER", "PUPIL", "CHANNEL", "MODULE", "EXP_TYPE", "EFFEXPTM"):
            assert ours[key] == theirs[key]
        assert (ours["ENGINE"], ours["CRDS_CTX"], ours["ASSOC"]) == ("grizli", archive.crds_context, result.association)
    assert result.image is not None and result.weight is not None
    image, weight = (fits.open(reduced.folder / name)[0] for name in (result.image, result.weight))
    assert image.header["BUNIT"] == "MJy/sr" and image.shape == weight.shape and image.header["TELESCOP"] == "JWST"
    catalog = reduced.catalog()
    assert catalog.colnames == list(CATALOG_COLUMNS) and len(catalog) == result.n_sources
    x, y = WCS(image.header).all_world2pix(catalog["ra"], catalog["dec"], 0)
    assert np.abs(x - catalog["x"]).max() < 1e-3 and np.abs(y - catalog["y"]).max() < 1e-3
    # bright clean stars lie where truth has them, once the solution's own offset and rotation are taken off
    dataset = result.exposures[0].dataset
    good = (catalog["flags"] == 0) & (catalog["mag"] < 23.5) & (catalog["flux"] > 50 * catalog["flux_error"])
    wcs = WCS(fits.getheader(reduced.path(result.exposures[0]), "SCI"))
    x, y = wcs.all_world2pix(catalog["ra"][good], catalog["dec"][good], 0)
    inside = (x > 20) & (x < 2028) & (y > 20) & (y < 2028)
    ra, dec = truth.true_sky(dataset, x[inside], y[inside])
    d_ra = (ra[:, None] - np.asarray(truth.sources["ra"])[None] + 180) % 360 - 180
    distance = np.hypot(d_ra * np.cos(np.radians(dec))[:, None], dec[:, None] - np.asarray(truth.sources["dec"])[None])
    star = np.asarray(truth.sources["kind"])[distance.argmin(axis=1)] == "star"
    assert star.sum() >= 8
    assert np.median(distance.min(axis=1)[star]) * 3.6e6 < 10
