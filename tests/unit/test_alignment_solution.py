"""Shift and rotation against a reference: the right answer, or a refusal that names the cause."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoramic.alignment_solution import Cause, Refusal, Solution, measure_solution
from panoramic.footprints import deproject

HALF = 60.0
PLACES = [(150.0, 2.0), (0.0001, -30.0), (359.9999, 45.0), (33.0, 89.9995), (120.0, -89.999)]


def sky(points: np.ndarray, place: tuple[float, float] = (150.0, 2.0)) -> tuple[np.ndarray, np.ndarray]:
    """Positions of points in arcsec."""
    points = np.asarray(points).reshape(-1, 2)
    return deproject(np.radians(points[:, 0] / 3600), np.radians(points[:, 1] / 3600), *place)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Turned from north to east."""
    a = np.radians(degrees)
    return points @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


def scene(
    rng: np.random.Generator,
    n: int = 60,
    *,
    offset: tuple[float, float] = (0.4, -0.3),
    rotation: float = 0.0,
    scatter_mas: float = 20.0,
    others: int = 150,
    false: int = 20,
) -> tuple[np.ndarray, np.ndarray]:
    """A catalogue that is off at the field's centre by ``offset`` and turned, and its reference, arcsec."""
    true = rng.uniform(-HALF, HALF, (n, 2))
    objects = np.r_[true, rng.uniform(-HALF, HALF, (others, 2))]
    reference = np.r_[true + rng.normal(0, scatter_mas / 1000, (n, 2)), rng.uniform(-HALF, HALF, (false, 2))]
    return turned(objects + offset, rotation), reference


def square(place: tuple[float, float] = (150.0, 2.0)) -> np.ndarray:
    """The field's corners, deg."""
    corners = np.array([[-HALF, -HALF], [HALF, -HALF], [HALF, HALF], [-HALF, HALF]])
    return np.column_stack(sky(corners, place))


def measured(catalog: np.ndarray, reference: np.ndarray, place=PLACES[0], **keywords) -> Solution | Refusal:
    return measure_solution(*sky(catalog, place), *sky(reference, place), footprint=square(place), **keywords)


def solved(catalog: np.ndarray, reference: np.ndarray, place=PLACES[0], **keywords) -> Solution:
    found = measured(catalog, reference, place, **keywords)
    assert isinstance(found, Solution), found
    return found


def refused(catalog: np.ndarray, reference: np.ndarray, **keywords) -> Refusal:
    found = measured(catalog, reference, **keywords)
    assert isinstance(found, Refusal), found
    return found


def near(found: Solution, east: float, north: float, rotation: float = 0.0, largest: float = 15.0) -> None:
    """The answer is the truth within 5 of its own errors, and those are no excuse."""
    assert max(found.err_ra, found.err_dec) < largest
    assert abs(found.dra - 1000 * east) < 5 * found.err_ra
    assert abs(found.ddec - 1000 * north) < 5 * found.err_dec
    assert abs(found.rotation_deg - rotation) < 5 * found.rotation_err_deg
    assert found.corner_err_ra > found.err_ra or found.corner_err_dec > found.err_dec


@pytest.mark.parametrize(("size", "radius"), [(0.5, 3.0), (2.99, 3.0), (3.0, 4.0), (10.0, 12.0)])
@pytest.mark.parametrize("place", PLACES)
def test_shifts_inside_of_the_search_radius(size: float, radius: float, place: tuple[float, float]) -> None:
    catalog, reference = scene(np.random.default_rng(1), offset=(0.6 * size, -0.8 * size))
    near(solved(catalog, reference, place, search_radius_arcsec=radius), 0.6 * size, -0.8 * size)


@pytest.mark.parametrize(("size", "radius"), [(3.5, 3.0), (10.0, 3.0), (0.9, 0.5)])
def test_shifts_beyond_are_named(size: float, radius: float) -> None:
    catalog, reference = scene(np.random.default_rng(2), offset=(size, 0))
    found = refused(catalog, reference, search_radius_arcsec=radius)
    assert found.cause is Cause.BEYOND_SEARCH_RADIUS
    # what the next attempt needs is in the numbers
    assert found.numbers["dra_mas"] == pytest.approx(1000 * size, abs=60)


@pytest.mark.parametrize("rotation", [0.2, -0.2, 0.05, -0.29])
def test_rotation(rotation: float) -> None:
    catalog, reference = scene(np.random.default_rng(3), rotation=rotation, scatter_mas=5)
    found = solved(catalog, reference)
    near(found, 0.4, -0.3, rotation)
    assert abs(found.rotation_mas) == pytest.approx(np.radians(abs(rotation)) * HALF * np.sqrt(2) * 1000, rel=0.05)
    assert abs(found.scale_mas) < 5 * found.scale_err_mas
    ra, dec = found.corrected(*sky(catalog[:60]))
    true_ra, true_dec = sky(reference[:60])
    assert np.std(3.6e6 * (ra - true_ra)) < 7
    assert np.std(3.6e6 * (dec - true_dec)) < 7


def test_rotation_beyond_the_largest_is_not_accepted() -> None:
    catalog, reference = scene(np.random.default_rng(4), rotation=0.25, scatter_mas=5)
    found = refused(catalog, reference, largest_rotation_deg=0.1)
    assert found.cause in (Cause.BEYOND_LARGEST_ROTATION, Cause.NO_PEAK, Cause.SCATTER_TOO_LARGE)


def test_scale_is_reported_and_not_fitted() -> None:
    catalog, reference = scene(np.random.default_rng(5), offset=(0, 0), scatter_mas=5)
    found = solved(1.0005 * catalog, reference)
    assert found.scale_mas == pytest.approx(0.0005 * HALF * np.sqrt(2) * 1000, abs=5 * found.scale_err_mas)
    assert found.scatter_ra > 10


def test_five_reference_sources() -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        catalog, reference = scene(rng, 5, scatter_mas=10, false=0)
        found = measured(catalog, reference, ref_error_mas=np.full(5, 10.0))
        if isinstance(found, Solution):
            near(found, 0.4, -0.3, largest=25)
        else:
            assert found.cause in (Cause.NO_PEAK, Cause.SCATTER_TOO_LARGE)


@pytest.mark.parametrize(
    ("sources", "references", "cause"),
    [
        (0, 50, Cause.TOO_FEW_SOURCES),
        (4, 50, Cause.TOO_FEW_SOURCES),
        (50, 0, Cause.TOO_FEW_REFERENCES),
        (50, 4, Cause.TOO_FEW_REFERENCES),
    ],
)
def test_too_few(sources: int, references: int, cause: Cause) -> None:
    points = np.random.default_rng(7).uniform(-HALF, HALF, (50, 2))
    found = refused(points[:sources], points[:references])
    assert found.cause is cause
    assert found.numbers["n"] < found.numbers["limit"]


def test_reference_elsewhere_on_the_sky() -> None:
    points = np.random.default_rng(8).uniform(-HALF, HALF, (50, 2))
    for place in [(330.0, -2.0), (151.0, 2.0)]:
        found = measure_solution(*sky(points), *sky(points, place))
        assert isinstance(found, Refusal)
        assert found.cause is Cause.TOO_FEW_REFERENCES


def test_half_of_the_reference_is_false() -> None:
    for seed in range(10):
        catalog, reference = scene(np.random.default_rng(seed), 20, false=20, others=400, scatter_mas=30)
        near(solved(catalog, reference, ref_error_mas=np.full(40, 30.0)), 0.4, -0.3)


def test_unrelated_catalogues_are_refused() -> None:
    for seed, (n, m) in enumerate([(200, 60), (15, 20), (400, 300), (800, 400), (40, 30)] * 20):
        rng = np.random.default_rng(seed)
        found = refused(rng.uniform(-HALF, HALF, (n, 2)), rng.uniform(-HALF, HALF, (m, 2)))
        assert found.cause is Cause.NO_PEAK


def test_chance_is_what_it_says() -> None:
    """Of unrelated catalogues, no more than a tenth has a pile with an expectation below a tenth."""
    low = 0
    for seed in range(150):
        rng = np.random.default_rng(1000 + seed)
        found = refused(rng.uniform(-HALF, HALF, (300, 2)), rng.uniform(-HALF, HALF, (200, 2)))
        low += found.numbers["chance"] < 0.1
    assert low <= 15


def test_unrelated_catalogues_with_the_same_clusters_are_refused() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        middles = rng.uniform(-HALF, HALF, (25, 1, 2))
        one, two = ((middles + rng.normal(0, 1.0, (25, k, 2))).reshape(-1, 2) for k in (12, 8))
        refused(one, two)


def test_a_dense_reference_gives_the_truth_or_nothing() -> None:
    rng = np.random.default_rng(9)
    catalog, reference = scene(rng, 1500, false=1500, others=1500, offset=(1.7, -2.0), rotation=0.1)
    near(solved(catalog, reference), 1.7, -2.0, 0.1)
    found = refused(catalog[1500:1600], rng.uniform(-HALF, HALF, (4000, 2)))
    assert found.cause is Cause.NO_PEAK


def test_duplicates_count_once() -> None:
    rng = np.random.default_rng(10)
    catalog, reference = scene(rng, 25, false=0, scatter_mas=5)
    found = solved(catalog, np.repeat(reference, 6, axis=0) + rng.normal(0, 0.004, (150, 2)))
    near(found, 0.4, -0.3)
    assert found.n <= 25
    assert np.unique(found.index).size == np.unique(found.ref_index).size == found.n
    few = refused(catalog, np.repeat(reference[:4], 30, axis=0))
    assert few.cause is Cause.TOO_FEW_REFERENCES


def test_two_equally_good_solutions_are_ambiguous() -> None:
    true = np.random.default_rng(11).uniform(-HALF, HALF, (40, 2))
    found = refused(true, np.r_[true, true + np.array([1.0, 0.0])])
    assert found.cause is Cause.AMBIGUOUS


def test_an_empty_region() -> None:
    rng = np.random.default_rng(12)
    found = refused(rng.uniform(-HALF, HALF, (8, 2)), rng.uniform(-HALF, HALF, (12, 2)))
    assert found.cause is Cause.NO_PEAK


def test_only_proper_motions() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        catalog, reference = scene(rng, 60, scatter_mas=250)
        found = refused(catalog, reference, ref_error_mas=np.full(80, 10.0))
        assert found.cause in (Cause.NO_PEAK, Cause.SCATTER_TOO_LARGE)


def test_few_poor_sources_have_too_large_an_error() -> None:
    catalog, reference = scene(np.random.default_rng(13), 20, scatter_mas=30, false=0)
    found = refused(catalog, reference, largest_error_mas=3.0)
    assert found.cause is Cause.ERROR_TOO_LARGE
    assert found.numbers["error_mas"] > 3


def test_errors_are_the_larger_of_stated_and_measured() -> None:
    catalog, reference = scene(np.random.default_rng(14), 60, scatter_mas=20)
    alone = solved(catalog, reference)
    modest = solved(catalog, reference, ref_error_mas=np.full(80, 60.0))
    boastful = solved(catalog, reference, ref_error_mas=np.full(80, 1.0))
    assert modest.err_ra > 2 * alone.err_ra
    assert boastful.err_ra == pytest.approx(alone.err_ra, rel=0.2)
    assert modest.scatter_ra == pytest.approx(20, rel=0.3)
    at_centre = alone.error_at(np.array([alone.ra]), np.array([alone.dec]))
    assert at_centre[0][0] == pytest.approx(alone.err_ra)


def test_errors_are_honest() -> None:
    pulls = []
    for seed in range(60):
        n = (10, 15, 40)[seed % 3]
        catalog, reference = scene(np.random.default_rng(seed), n, rotation=0.1, scatter_mas=30)
        found = measured(catalog, reference)
        if isinstance(found, Solution):
            pulls += [(found.dra - 400) / found.err_ra, (found.ddec + 300) / found.err_dec]
            pulls += [(found.rotation_deg - 0.1) / found.rotation_err_deg]
    assert len(pulls) > 150
    assert np.std(pulls) == pytest.approx(1.0, abs=0.2)
    assert np.abs(pulls).max() < 4.5


def test_unknown_positions_are_left_out() -> None:
    catalog, reference = scene(np.random.default_rng(15))
    ra, dec = sky(catalog)
    ra[3] = np.nan
    found = measure_solution(ra, dec, *sky(reference), magnitude=np.full(len(ra), np.nan))
    assert isinstance(found, Solution)
    assert 3 not in found.index


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.sampled_from(PLACES), rotation=st.floats(-0.25, 0.25))
def test_the_order_of_rows_does_not_matter(seed: int, place: tuple[float, float], rotation: float) -> None:
    rng = np.random.default_rng(seed)
    catalog, reference = scene(rng, 40, rotation=rotation)
    one, two = rng.permutation(len(catalog)), rng.permutation(len(reference))
    first = solved(catalog, reference, place)
    second = solved(catalog[one], reference[two], place)
    assert first == second
    assert sorted(one[second.index]) == sorted(first.index)
    assert sorted(two[second.ref_index]) == sorted(first.ref_index)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    place=st.sampled_from(PLACES),
    east=st.floats(-1.5, 1.5),
    north=st.floats(-1.5, 1.5),
)
def test_a_shift_of_all_sources_is_added(seed: int, place: tuple[float, float], east: float, north: float) -> None:
    catalog, reference = scene(np.random.default_rng(seed), 40, offset=(0.2, 0.1))
    before, after = solved(catalog, reference, place), solved(catalog + (east, north), reference, place)
    assert after.dra - before.dra == pytest.approx(1000 * east, abs=0.5 * before.err_ra)
    assert after.ddec - before.ddec == pytest.approx(1000 * north, abs=0.5 * before.err_dec)
    assert after.rotation_deg == pytest.approx(before.rotation_deg, abs=0.5 * before.rotation_err_deg)
