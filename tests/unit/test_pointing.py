"""What one detector's pointing correction says of another's: exact for a rigid telescope, honest about its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoramic.errors import InputError
from panoramic.pointing import (
    KnownPointing,
    angle_change,
    measured_pointing,
    moved_position,
    pointing_at,
    rotation_of,
    visit_priors,
)
from panoramic.reduction.base import (
    CalibratedExposure,
    ExposureInput,
    Pointing,
    PointingPrior,
    ReductionResult,
    ReferenceSources,
)
from panoramic.simulate.geometry import aperture
from panoramic.simulate.geometry import attitude_matrix as attitude

CEERS = Path(__file__).parents[2].parent / "shared" / "data" / "ceers"
EXPOSURE = "jw02514162001_03201_0000{}_{}"
DETECTORS = ("nrca1", "nrca3", "nrcalong", "nrcb1", "nrcb4", "nrcblong")
EXACT = np.diag([1e-4, 1e-4, 1e-10])
VA = 1.00005

Detector = tuple[float, float]

angles = st.floats(0, 359.999)
declinations = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 89.999, 0.0]))


def as_rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix)


def observed(detector: str, reported: np.ndarray, true: np.ndarray) -> tuple[Detector, Pointing]:
    """Centre of a detector under the reported attitude, and the correction to the true one, by the simulator alone."""
    ap = aperture(detector)
    a, b = ap.reference_pointing(reported, VA), ap.reference_pointing(true, VA)
    axis = np.linspace(0, 2047, 5)
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    centre = (a.ra_ref, a.dec_ref)
    return centre, measured_pointing(ap.pixel_to_sky(a, x, y), ap.pixel_to_sky(b, x, y), *centre)


def separation_mas(a: tuple[float, float], b: tuple[float, float]) -> float:
    def unit(p: tuple[float, float]) -> np.ndarray:
        ra, dec = np.radians(p)
        return np.array([math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)])

    return float(np.linalg.norm(unit(a) - unit(b)) * 206264806.247)


# --- rotations -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(angles, declinations, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-1, 1))
def test_a_pointing_and_its_rotation(ra: float, dec: float, east: float, north: float, roll: float) -> None:
    back = pointing_at(rotation_of(Pointing(ra, dec, (east, north), roll)), ra, dec)
    assert back.shift_mas == pytest.approx((east, north), abs=1e-5)
    assert back.roll_deg == pytest.approx(roll, abs=1e-9)


def test_signs() -> None:
    """East is to greater RA, north to greater Dec; a roll from north to east moves what lies north to the east."""
    moved = moved_position(rotation_of(Pointing(0.0, 40.0, (-3600.0, 7200.0), 0.0)), 0.0, 40.0)
    assert moved == pytest.approx((360 - 1e-3 / math.cos(math.radians(40.002)), 40.002), abs=1e-8)
    turned = rotation_of(Pointing(10.0, 0.0, (0.0, 0.0), 0.5))
    ra, dec = moved_position(turned, 10.0, 0.01)
    assert ra - 10 == pytest.approx(0.01 * math.sin(math.radians(0.5)), rel=1e-6) and dec < 0.01
    assert angle_change(turned, 10.0, 0.0) == pytest.approx(0.5)


def test_position_angles_turn_with_the_meridians() -> None:
    """A shift to the east at Dec 60 turns north by shift * tan(Dec) although nothing rolls."""
    shift = 3.6e6  # a degree
    change = angle_change(rotation_of(Pointing(50.0, 60.0, (shift, 0.0), 0.0)), 50.0, 60.0)
    assert change == pytest.approx(math.tan(math.radians(60)), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(angles, st.floats(-89.99, 89.99), angles, st.floats(-5, 5), st.floats(-5, 5), st.floats(-0.1, 0.1))
def test_a_correction_is_measured(ra: float, dec: float, pa: float, east: float, north: float, roll: float) -> None:
    reported = attitude(-89.0, -491.0, ra, dec, pa)
    rotation = rotation_of(Pointing(ra, dec, (1000 * east, 1000 * north), roll))
    centre, pointing = observed("nrcblong", reported, rotation @ reported)
    expected = pointing_at(rotation, *centre)
    assert pointing.shift_mas == pytest.approx(expected.shift_mas, abs=0.01)
    assert pointing.roll_deg == pytest.approx(expected.roll_deg, abs=1e-7)


# --- carried from detector to detector -----------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    angles, declinations, angles, st.floats(-3, 3), st.floats(-3, 3), st.floats(-0.1, 0.1), st.permutations(DETECTORS)
)
def test_a_rigid_telescope_is_carried_exactly(
    ra: float, dec: float, pa: float, v2: float, v3: float, roll: float, order: Sequence[str]
) -> None:
    """Errors of the whole telescope: any detectors tell any other where it is, at poles and at RA 0."""
    target, *others = order[:4]
    reported = attitude(0.0, -490.0, ra, dec, pa)
    true = attitude(v2, -490.0 + v3, ra, dec, pa + roll)
    known = []
    for detector in others:
        _, pointing = observed(detector, reported, true)
        known.append(KnownPointing(EXPOSURE.format(1, detector), pointing, as_rows(EXACT)))
    centre, expected = observed(target, reported, true)
    name = EXPOSURE.format(1, target)
    for given_known in (known[:1], known):
        (prior,) = visit_priors({name: centre}, given_known, 12.0, 0.02)
        there = moved_position(rotation_of(Pointing(*centre, prior.shift_mas, prior.roll_deg)), *centre)
        assert separation_mas(there, moved_position(rotation_of(expected), *centre)) < 0.05
        assert prior.roll_deg == pytest.approx(expected.roll_deg, abs=1e-6)
        assert prior.sources == tuple(sorted(k.dataset for k in given_known)) and prior.left_out == ()


class Telescope:
    """A visit with a rigid pointing error, errors of each detector's place, scatter of the dithers and measurements."""

    def __init__(self, seed: int, offset: float, roll: float, dither: float = 0.0, exposures: int = 1) -> None:
        rng = np.random.default_rng(seed)
        reported = attitude(0.0, -490.0, 150.0, 60.0, 110.0)
        sky = (150.0, 60.0)
        whole = rotation_of(Pointing(*sky, (rng.normal(0, 300), rng.normal(0, 300)), rng.normal(0, 0.03)))
        place = {d: rng.normal(0, [offset, offset, roll]) for d in DETECTORS}
        self.centres: dict[str, Detector] = {}
        self.truth: dict[str, Pointing] = {}
        self.known: dict[str, KnownPointing] = {}
        for number in range(1, exposures + 1):
            step = rotation_of(Pointing(*sky, (rng.normal(0, dither), rng.normal(0, dither)), 0.0))
            for detector in DETECTORS:
                name = EXPOSURE.format(number, detector)
                ap = aperture(detector).reference_pointing(reported, VA)
                self.centres[name] = centre = (ap.ra_ref, ap.dec_ref)
                rigid = pointing_at(step @ whole, *centre)
                east, north, turn = place[detector] + [*rigid.shift_mas, rigid.roll_deg]
                self.truth[name] = Pointing(*centre, (east, north), turn)
                error = rng.uniform(0.5, 2) * np.array([3.0, 3.0, 0.003])
                e, n, r = rng.normal([east, north, turn], error)
                self.known[name] = KnownPointing(name, Pointing(*centre, (e, n), r), as_rows(np.diag(error**2)))

    def chi_square(self, prior: PointingPrior) -> float:
        """Of a prior against the truth, 3 degrees of freedom."""
        true = self.truth[prior.dataset]
        difference = np.array([*prior.shift_mas, prior.roll_deg]) - [*true.shift_mas, true.roll_deg]
        return float(difference @ np.linalg.solve(np.array(prior.covariance), difference))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_covariance_is_honest(n: int) -> None:
    found = []
    for seed in range(200):
        telescope = Telescope(seed, 12.0, 0.02)
        names = sorted(telescope.known)
        target = names.pop(seed % len(names))
        known = [telescope.known[name] for name in names[:n]]
        (prior,) = visit_priors({target: telescope.centres[target]}, known, 12.0, 0.02)
        assert prior.basis == "exposure"
        found.append(telescope.chi_square(prior))
    # the mean of 200 values of 3 degrees of freedom each
    assert np.mean(found) / 3 == pytest.approx(1.0, abs=4 * math.sqrt(2 / 3 / 200))
    assert np.percentile(found, 95) == pytest.approx(7.81, rel=0.25)


@pytest.mark.parametrize("own", [False, True])
def test_other_exposures_of_the_visit_stand_in(own: bool) -> None:
    """With the scatter of the dithers; what is known of the detector's own place counts where it is known."""
    found, errors = [], []
    for seed in range(80):
        telescope = Telescope(seed, 12.0, 0.02, dither=5.0, exposures=4)
        target = EXPOSURE.format(4, DETECTORS[seed % len(DETECTORS)])
        detector = target.rsplit("_", 1)[1]
        known = [
            k for name, k in telescope.known.items() if "00004" not in name and (own or not name.endswith(detector))
        ]
        (prior,) = visit_priors({target: telescope.centres[target]}, known, 12.0, 0.02, dither_error_mas=5.0)
        assert prior.basis == "visit"
        found.append(telescope.chi_square(prior))
        errors.append(math.sqrt(prior.covariance[0][0]))
    # dithers are simulated without a scatter in roll, which is allowed for
    assert np.mean(found) / 3 == pytest.approx(1.0, abs=4 * math.sqrt(2 / 3 / 80))
    assert (5.0 < np.mean(errors) < 8.0) if own else (12.0 < np.mean(errors) < 20.0)


def test_very_exposure_is_better_than_the_visit() -> None:
    telescope = Telescope(1, 12.0, 0.02, dither=5.0, exposures=3)
    target = EXPOSURE.format(3, "nrcb1")
    known = [k for name, k in telescope.known.items() if name != target]
    (prior,) = visit_priors({target: telescope.centres[target]}, known, 12.0, 0.02)
    assert prior.basis == "exposure" and all("_00003_" in name for name in prior.sources)


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("shift", [(150.0, 0.0), (0.0, -3000.0)])
def test_a_detector_that_disagrees_is_left_out_and_named(n: int, shift: tuple[float, float]) -> None:
    for seed in range(10):
        telescope = Telescope(seed, 12.0, 0.02)
        target, *names = sorted(telescope.known)[: n + 1]
        known = [telescope.known[name] for name in names]
        wrong = known[seed % n]
        p = wrong.pointing
        moved = Pointing(p.ra, p.dec, (p.shift_mas[0] + shift[0], p.shift_mas[1] + shift[1]), p.roll_deg)
        known[seed % n] = KnownPointing(wrong.dataset, moved, wrong.covariance)
        (prior,) = visit_priors({target: telescope.centres[target]}, known, 12.0, 0.02)
        assert prior.left_out == (wrong.dataset,) and wrong.dataset not in prior.sources
        assert telescope.chi_square(prior) < 25


def test_good_detectors_are_kept() -> None:
    left_out = 0
    for seed in range(100):
        telescope = Telescope(seed, 12.0, 0.02)
        target, *names = sorted(telescope.known)
        known = [telescope.known[name] for name in names]
        (prior,) = visit_priors({target: telescope.centres[target]}, known, 12.0, 0.02)
        left_out += len(prior.left_out)
    assert left_out == 0


def test_two_that_contradict_each_other_widen_the_error() -> None:
    telescope = Telescope(3, 1e-3, 1e-6)
    target, a, b = sorted(telescope.known)[:3]
    p = telescope.known[b].pointing
    wrong = KnownPointing(b, Pointing(p.ra, p.dec, (p.shift_mas[0] + 2000, p.shift_mas[1]), p.roll_deg), as_rows(EXACT))
    (prior,) = visit_priors({target: telescope.centres[target]}, [telescope.known[a], wrong], 12.0, 0.02)
    assert prior.left_out == () and telescope.chi_square(prior) < 16
    assert math.sqrt(prior.covariance[0][0]) > 300


def test_an_exposure_that_disagrees_with_the_visit_is_left_out() -> None:
    telescope = Telescope(2, 12.0, 0.02, dither=3.0, exposures=4)
    target = EXPOSURE.format(4, "nrcb1")
    known = []
    for name, k in telescope.known.items():
        if "_00004_" in name:
            continue
        far = 500.0 if "_00002_" in name else 0.0
        p = k.pointing
        known.append(
            KnownPointing(name, Pointing(p.ra, p.dec, (p.shift_mas[0] + far, p.shift_mas[1]), p.roll_deg), k.covariance)
        )
    (prior,) = visit_priors({target: telescope.centres[target]}, known, 12.0, 0.02)
    assert prior.left_out == tuple(sorted(n for n in telescope.known if "_00002_" in n))


def test_whom_it_knows_nothing_about() -> None:
    telescope = Telescope(0, 12.0, 0.02)
    name = EXPOSURE.format(1, "nrcb1")
    elsewhere = "jw02514163001_03201_00001_nrcb4"
    wanted = {elsewhere: telescope.centres[name], name: telescope.centres[name]}
    assert visit_priors(wanted, [], 12.0, 0.02) == ()
    # a correction of its own, or of another visit, says nothing
    assert visit_priors(wanted, [telescope.known[name]], 12.0, 0.02) == ()
    both = visit_priors(wanted, [telescope.known[EXPOSURE.format(1, "nrcb4")]], 12.0, 0.02)
    assert [p.dataset for p in both] == [name]


def test_order_does_not_matter() -> None:
    telescope = Telescope(4, 12.0, 0.02)
    target, *names = sorted(telescope.known)
    known = [telescope.known[name] for name in names]
    wanted = {target: telescope.centres[target]}
    assert visit_priors(wanted, known, 12.0, 0.02) == visit_priors(wanted, known[::-1], 12.0, 0.02)


def test_bad_input() -> None:
    telescope = Telescope(0, 12.0, 0.02)
    known = list(telescope.known.values())
    with pytest.raises(InputError, match="above 0"):
        visit_priors({}, known, 0.0, 0.02)
    with pytest.raises(InputError, match="two known pointings"):
        visit_priors({}, [known[0], known[0]], 12.0, 0.02)
    for bad in (np.full((3, 3), np.nan), np.diag([1.0, 1.0, -1.0]), np.eye(2)):
        with pytest.raises(InputError, match="covariance"):
            KnownPointing("jw1_a", known[0].pointing, as_rows(bad))


# --- an engine whose solution is moved -----------------------------------------------------


class OneProduct:
    """An engine that makes one exposure, and keeps the priors that it was given."""

    name, version = "one", "1"

    def __init__(self) -> None:
        self.priors: tuple[PointingPrior, ...] = ()

    def reduce(
        self,
        association: str,
        exposures: tuple[ExposureInput, ...],
        reference: ReferenceSources | None,
        pointing_priors: tuple[PointingPrior, ...],
        folder: Path,
    ) -> ReductionResult:
        from astropy.io import fits

        self.priors = pointing_priors
        sci = fits.ImageHDU(np.zeros((2, 2)), name="SCI")
        sci.header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10.0, CRVAL2=0.0)
        primary = fits.PrimaryHDU()
        primary.header.update(PNTDRA=100.0, PNTDDEC=-50.0)
        folder.mkdir()
        fits.HDUList([primary, sci]).writeto(folder / "a_rate.fits")
        made = CalibratedExposure("a", "a_rate.fits", "", 0, Pointing(10.0, 0.0, (100.0, -50.0), 0.01))
        return ReductionResult(association, "one", "1", (made,), (), None, None, None, None, 0, "a.log", 63.0)


def test_a_declared_wrong_success_has_the_pointing_of_its_products(tmp_path: Path) -> None:
    from astropy.io import fits

    from panoramic.simulate.engine import with_declared_faults
    from panoramic.simulate.program import WrongSuccess, default_simulation

    fault = WrongSuccess(kind="wrong_success", match="assoc*", shift_arcsec=(0.3, -0.1))
    inner = OneProduct()
    engine = with_declared_faults(inner, default_simulation().model_copy(update={"faults": (fault,)}))
    prior = PointingPrior("a", (1.0, 2.0), 0.0, as_rows(EXACT))
    result = engine.reduce("assoc_1", (), None, (prior,), tmp_path / "out")
    assert inner.priors == (prior,)
    pointing = result.exposures[0].pointing
    assert pointing is not None and pointing.shift_mas == pytest.approx((400.0, -150.0)) and pointing.roll_deg == 0.01
    header = fits.getheader(tmp_path / "out" / "a_rate.fits")
    assert (header["PNTDRA"], header["PNTDDEC"]) == pytest.approx((400.0, -150.0))


# --- real corrections ----------------------------------------------------------------------


def real_corrections() -> tuple[dict[str, KnownPointing], dict[str, Detector]]:
    """By dataset: the corrections, with an error of 2 mas, and the centres of the detectors."""
    import pandas as pd

    known: dict[str, KnownPointing] = {}
    centres: dict[str, Detector] = {}
    table = pd.read_csv(CEERS / "measured_corrections.csv", dtype={"visit": str, "act": str})
    for row in table.itertuples():
        name = f"jw{row.visit}_{row.act}_{row.exposure:05d}_{row.detector}"
        roll = math.radians(row.roll_ref)
        east = row.dv2_mas * math.cos(roll) + row.dv3_mas * math.sin(roll)
        north = -row.dv2_mas * math.sin(roll) + row.dv3_mas * math.cos(roll)
        centres[name] = (row.crval1, row.crval2)
        # their rotation is from east to north
        pointing = Pointing(*centres[name], (east, north), -row.rot_deg)
        known[name] = KnownPointing(name, pointing, as_rows(np.diag([2.0**2, 2.0**2, 0.001**2])))
    return known, centres


@pytest.mark.skipif(not (CEERS / "measured_corrections.csv").exists(), reason=f"no real corrections in {CEERS}")
def test_real_corrections_predict_each_other() -> None:
    """Each detector of 6 real exposures from the 9 others. Their places in the focal plane of that time were off."""
    known, centres = real_corrections()
    assert len(known) == 60
    # 12 mas and 0.02 deg are too good and too bad for the focal plane of that time, 20 and 0.01 are right
    for offset, roll, low, high in ((12.0, 0.02, 1.2, 2.5), (20.0, 0.01, 0.6, 1.3)):
        difference, chi_square = [], []
        for prior in visit_priors(centres, list(known.values()), offset, roll):
            true = known[prior.dataset].pointing
            d = np.array([*prior.shift_mas, prior.roll_deg]) - [*true.shift_mas, true.roll_deg]
            difference.append(d)
            chi_square.append(float(d @ np.linalg.solve(np.array(prior.covariance), d)))
            assert prior.basis == "exposure" and prior.left_out == ()
        rms = np.sqrt(np.mean(np.square(difference), axis=0))
        assert np.hypot(*rms[:2]) < 32 and rms[2] < 0.011, rms
        # one draw of ten detectors: the places of all exposures are the same
        assert low < np.mean(chi_square) / 3 < high, np.mean(chi_square) / 3
    raw = np.sqrt(np.mean([np.square(k.pointing.shift_mas) for k in known.values()], axis=0))
    assert np.hypot(*raw) > 250


@pytest.mark.skipif(not (CEERS / "measured_corrections.csv").exists(), reason=f"no real corrections in {CEERS}")
def test_real_corrections_of_one_activity_predict_the_next() -> None:
    """A detector's own place, known from another exposure of the visit, leaves the scatter of the dithers alone."""
    known, centres = real_corrections()
    first = [k for name, k in known.items() if "_02201_" in name]
    later = {name: centre for name, centre in centres.items() if "_04201_" in name}
    priors = visit_priors(later, first, 20.0, 0.01)
    assert len(priors) == 30 and {p.basis for p in priors} == {"visit"}
    shift = [np.subtract(p.shift_mas, known[p.dataset].pointing.shift_mas) for p in priors]
    assert np.sqrt(np.mean(np.square(shift), axis=0)).max() < 5
    assert 4 < math.sqrt(priors[0].covariance[0][0]) < 8
