"""The matcher: right offsets with honest errors, and never a wrong number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoramic.alignment_offsets import NotMeasurable, OffsetMeasurement, measure_offset

HALF = 65.0


def sky(points: np.ndarray, ra0: float = 150.0, dec0: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Offsets in arcsec from a point, exact by deprojection."""
    from panoramic.footprints import deproject

    return deproject(np.radians(points[:, 0] / 3600), np.radians(points[:, 1] / 3600), ra0, dec0)


def scene(
    rng: np.random.Generator, n: int, false: int, ref_false: int, scatter_mas: float, offset: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """A displaced catalogue and its reference, arcsec."""
    true = rng.uniform(-HALF, HALF, (n, 2))
    catalog = np.r_[true + offset, rng.uniform(-HALF, HALF, (false, 2))]
    reference = np.r_[true + rng.normal(0, scatter_mas / 1000, (n, 2)), rng.uniform(-HALF, HALF, (ref_false, 2))]
    return catalog, reference


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([10, 14, 30, 100, 300]),
    scatter=st.sampled_from([2.0, 10.0, 30.0, 50.0]),
    size=st.floats(0, 2.95),
    angle=st.floats(0, 6.28),
    false=st.sampled_from([0, 100, 400]),
    place=st.sampled_from([(150.0, 2.0), (0.0001, -30.0), (80.5, -69.5), (10.0, 88.0)]),
)
def test_measures_what_was_put_in(
    seed: int, n: int, scatter: float, size: float, angle: float, false: int, place: tuple[float, float]
) -> None:
    offset = size * np.cos(angle), size * np.sin(angle)
    catalog, reference = scene(np.random.default_rng(seed), n, false, n, scatter, offset)
    found = measure_offset(*sky(catalog, *place), *sky(reference, *place))
    assert isinstance(found, OffsetMeasurement), found
    # north at the catalogue's centre is not quite north at the field's
    tolerance = 6 * scatter / np.sqrt(n) + 1000 * size * (0.01 if place[1] > 80 else 1e-3)
    assert abs(found.dra - 1000 * offset[0]) < tolerance
    assert abs(found.ddec - 1000 * offset[1]) < tolerance
    assert 0.7 * n - 3 <= found.n <= 1.2 * n + 3
    assert found.index.size == found.ref_index.size == found.n


@pytest.mark.parametrize("place", [(10.0, 89.999), (200.0, -90.0)])
def test_at_the_pole(place: tuple[float, float]) -> None:
    catalog, reference = scene(np.random.default_rng(9), 100, 50, 50, 5, (0.6, -0.8))
    found = measure_offset(*sky(catalog, *place), *sky(reference, *place))
    assert isinstance(found, OffsetMeasurement)
    assert np.hypot(found.dra, found.ddec) == pytest.approx(1000, abs=3)


def test_errors_are_honest() -> None:
    pulls = []
    for seed in range(120):
        n = (10, 15, 40)[seed % 3]
        catalog, reference = scene(np.random.default_rng(seed), n, 150, 15, 30, (0.4, -0.9))
        found = measure_offset(*sky(catalog), *sky(reference))
        assert isinstance(found, OffsetMeasurement)
        pulls += [(found.dra - 400) / found.err_ra, (found.ddec + 900) / found.err_dec]
    assert np.std(pulls) == pytest.approx(1.0, abs=0.25)
    assert abs(np.mean(pulls)) < 4 * np.std(pulls) / np.sqrt(len(pulls))


def test_unrelated_catalogues_are_never_accepted() -> None:
    sizes = [(200, 60), (15, 20), (400, 300), (800, 400), (40, 30)]
    accepted = []
    for seed in range(500):
        rng = np.random.default_rng(10_000 + seed)
        n, m = sizes[seed % len(sizes)]
        found = measure_offset(*sky(rng.uniform(-HALF, HALF, (n, 2))), *sky(rng.uniform(-HALF, HALF, (m, 2))))
        accepted += [found] if isinstance(found, OffsetMeasurement) else []
    assert accepted == []


def test_unrelated_catalogues_with_the_same_clusters_are_not_accepted() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        middles = rng.uniform(-HALF, HALF, (25, 1, 2))
        one, two = ((middles + rng.normal(0, 1.0, (25, k, 2))).reshape(-1, 2) for k in (12, 8))
        assert isinstance(measure_offset(*sky(one), *sky(two)), NotMeasurable)


def test_two_true_pairs_among_false_ones_are_refused() -> None:
    for seed in range(60):
        catalog, reference = scene(np.random.default_rng(seed), 2, 200, 30, 20, (0.5, 0.5))
        assert isinstance(measure_offset(*sky(catalog), *sky(reference)), NotMeasurable)


def test_dense_fields() -> None:
    catalog, reference = scene(np.random.default_rng(1), 900, 3500, 1500, 20, (1.7, -2.0))
    found = measure_offset(*sky(catalog), *sky(reference))
    assert isinstance(found, OffsetMeasurement)
    assert abs(found.dra - 1700) < 5
    assert abs(found.ddec + 2000) < 5
    # two thirds of the reference are false: they must not come in as matches
    assert found.n < 1000


def test_scatter_that_grows_with_magnitude() -> None:
    pulls = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        true, sigma = rng.uniform(-HALF, HALF, (35, 2)), np.geomspace(10, 100, 35)
        reference = np.r_[true + rng.normal(size=(35, 2)) * sigma[:, None] / 1000, rng.uniform(-HALF, HALF, (8, 2))]
        catalog = np.r_[true, rng.uniform(-HALF, HALF, (250, 2))] + (0.3, 0.1)
        found = measure_offset(*sky(catalog), *sky(reference), ref_error_mas=np.r_[sigma, np.full(8, 50.0)])
        assert isinstance(found, OffsetMeasurement)
        pulls += [(found.dra - 300) / found.err_ra, (found.ddec - 100) / found.err_dec]
        assert abs(found.dra - 300) < 30
    assert np.std(pulls) < 1.4


def test_duplicates_do_not_inflate_the_number() -> None:
    rng = np.random.default_rng(3)
    true = rng.uniform(-HALF, HALF, (20, 2))
    reference = np.repeat(true, 6, axis=0) + rng.normal(0, 0.005, (120, 2))
    found = measure_offset(*sky(true + np.array([0.2, 0.0])), *sky(reference))
    assert isinstance(found, OffsetMeasurement)
    assert found.n == 20
    assert np.unique(found.index).size == np.unique(found.ref_index).size == 20
    four = measure_offset(
        *sky(np.r_[true[:4], rng.uniform(-HALF, HALF, (100, 2))]), *sky(np.repeat(true[:4], 30, axis=0))
    )
    assert isinstance(four, NotMeasurable)


def test_two_equally_good_offsets_are_refused() -> None:
    rng = np.random.default_rng(4)
    true = rng.uniform(-HALF, HALF, (40, 2))
    found = measure_offset(*sky(true), *sky(np.r_[true, true + np.array([1.0, 0.0])]))
    assert isinstance(found, NotMeasurable)
    assert "next" in found.reason


@pytest.mark.parametrize("n", [0, 3, 7])
def test_too_few_say_so(n: int) -> None:
    rng = np.random.default_rng(5)
    points = rng.uniform(-HALF, HALF, (n, 2))
    found = measure_offset(*sky(points), *sky(points))
    assert isinstance(found, NotMeasurable)
    assert "8" in found.reason


def test_beyond_the_search_radius_and_elsewhere_on_the_sky() -> None:
    catalog, reference = scene(np.random.default_rng(6), 50, 0, 0, 5, (4.5, 0.0))
    assert isinstance(measure_offset(*sky(catalog), *sky(reference)), NotMeasurable)
    assert isinstance(measure_offset(*sky(catalog), *sky(reference, 330.0, -2.0)), NotMeasurable)


def test_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(7)
    catalog, reference = scene(rng, 60, 100, 30, 20, (0.7, 0.7))
    one = measure_offset(*sky(catalog), *sky(reference))
    two = measure_offset(*sky(rng.permutation(catalog)), *sky(rng.permutation(reference)))
    assert isinstance(one, OffsetMeasurement)
    assert isinstance(two, OffsetMeasurement)
    assert one.dra == pytest.approx(two.dra, abs=1e-3)
    assert one.n == two.n


def test_unknown_positions_are_left_out() -> None:
    catalog, reference = scene(np.random.default_rng(8), 30, 0, 0, 10, (0.1, 0.0))
    ra, dec = sky(catalog)
    ra[3] = np.nan
    found = measure_offset(ra, dec, *sky(reference))
    assert isinstance(found, OffsetMeasurement)
    assert found.n == 29
    assert 3 not in found.index
