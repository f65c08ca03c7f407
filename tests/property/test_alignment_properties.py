"""What must not change the measurement against a reference, and what must change it in a known way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoramic.alignment_solution import PointingKnowledge, Refusal, Solution, measure_solution
from panoramic.footprints import deproject

HALF = 60.0
SEED = st.integers(0, 10**6)
PLACE = st.sampled_from([(150.0, 2.0), (0.0001, -30.0), (359.9999, 45.0), (33.0, 89.9995), (120.0, -89.999)])
SMALL = st.floats(-0.25, 0.25)


def sky(points: np.ndarray, place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return deproject(np.radians(points[:, 0] / 3600), np.radians(points[:, 1] / 3600), *place)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Turned from north to east."""
    a = np.radians(degrees)
    return points @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


class Scene:
    """A catalogue that is off, and its reference, with errors, in arcsec."""

    def __init__(self, seed: int, rotation: float = 0.0, shift: tuple[float, float] = (0.4, -0.3)):
        rng = np.random.default_rng(seed)
        true = rng.uniform(-HALF, HALF, (40, 2))
        self.catalog = turned(np.r_[true, rng.uniform(-HALF, HALF, (120, 2))] + shift, rotation)
        self.reference = np.r_[true + rng.normal(0, 0.02, (40, 2)), rng.uniform(-HALF, HALF, (15, 2))]
        self.errors, self.ref_errors = rng.uniform(2, 4, 160), rng.uniform(18, 22, 55)
        self.magnitude = rng.uniform(20, 27, 160)
        self.rng = rng

    def measure(self, place, catalog=None, reference=None, **keywords) -> Solution | Refusal:
        catalog = self.catalog if catalog is None else catalog
        reference = self.reference if reference is None else reference
        keywords = {"error_mas": self.errors, "ref_error_mas": self.ref_errors, "magnitude": self.magnitude} | keywords
        return measure_solution(*sky(catalog, place), *sky(reference, place), footprint=square(place), **keywords)


def square(place) -> np.ndarray:
    return np.column_stack(sky(np.array([[-HALF, -HALF], [HALF, -HALF], [HALF, HALF], [-HALF, HALF]]), place))


def alike(one: Solution | Refusal, two: Solution | Refusal, east: int = 1, north: int = 1, turn: int = 1) -> None:
    """The same answer up to rounding, with signs."""
    assert type(one) is type(two)
    if isinstance(one, Refusal):
        assert one.cause is two.cause
        return
    assert two.n == one.n
    assert two.dra == pytest.approx(east * one.dra, abs=0.01)
    assert two.ddec == pytest.approx(north * one.ddec, abs=0.01)
    assert two.rotation_deg == pytest.approx(turn * one.rotation_deg, abs=1e-5)
    assert (two.err_ra, two.err_dec) == pytest.approx((one.err_ra, one.err_dec), rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=SEED, place=PLACE, rotation=SMALL)
def test_the_order_of_rows_with_their_errors(seed: int, place: tuple[float, float], rotation: float) -> None:
    scene = Scene(seed, rotation)
    one, two = scene.rng.permutation(160), scene.rng.permutation(55)
    mixed = scene.measure(
        place,
        scene.catalog[one],
        scene.reference[two],
        error_mas=scene.errors[one],
        ref_error_mas=scene.ref_errors[two],
        magnitude=scene.magnitude[one],
    )
    assert mixed == scene.measure(place)


@settings(max_examples=20, deadline=None)
@given(seed=SEED, place=PLACE, rotation=SMALL, by=st.floats(0, 360))
def test_a_turn_of_the_whole_sky_in_ra(seed: int, place: tuple[float, float], rotation: float, by: float) -> None:
    """Across RA 0 and at the poles alike."""
    scene = Scene(seed, rotation)
    ra, dec = sky(scene.catalog, place)
    ref_ra, ref_dec = sky(scene.reference, place)
    corners = square(place)
    keywords = {"error_mas": scene.errors, "ref_error_mas": scene.ref_errors, "magnitude": scene.magnitude}
    first = measure_solution(ra, dec, ref_ra, ref_dec, footprint=corners, **keywords)
    there = np.column_stack([(corners[:, 0] + by) % 360, corners[:, 1]])
    second = measure_solution((ra + by) % 360, dec, (ref_ra + by) % 360, ref_dec, footprint=there, **keywords)
    alike(first, second)


@settings(max_examples=20, deadline=None)
@given(seed=SEED, rotation=SMALL)
def test_a_mirrored_sky_gives_the_mirrored_answer(seed: int, rotation: float) -> None:
    scene = Scene(seed, rotation)
    for signs in ((-1, 1), (1, -1), (-1, -1)):
        other = scene.measure((0.0, 0.0), scene.catalog * signs, scene.reference * signs)
        alike(scene.measure((0.0, 0.0)), other, *signs, signs[0] * signs[1])


@settings(max_examples=20, deadline=None)
@given(seed=SEED, place=PLACE, rotation=SMALL)
def test_swapping_catalogue_and_reference_swaps_the_sign(
    seed: int, place: tuple[float, float], rotation: float
) -> None:
    scene = Scene(seed, rotation)
    first = scene.measure(place)
    second = measure_solution(
        *sky(scene.reference, place),
        *sky(scene.catalog, place),
        footprint=square(place),
        error_mas=scene.ref_errors,
        ref_error_mas=scene.errors,
    )
    if isinstance(first, Solution) and isinstance(second, Solution):
        # the shift at the centre is told in the other one's frame, which is turned
        back = turned(-np.array([[second.dra, second.ddec]]), second.rotation_deg)[0]
        assert np.hypot(first.dra - back[0], first.ddec - back[1]) < max(first.err_ra, first.err_dec)
        assert abs(first.rotation_deg + second.rotation_deg) < first.rotation_err_deg
    assert isinstance(first, Solution)


@settings(max_examples=20, deadline=None)
@given(seed=SEED, place=PLACE, copies=st.integers(1, 4))
def test_copies_and_unknown_rows_change_nothing(seed: int, place: tuple[float, float], copies: int) -> None:
    scene = Scene(seed)
    ref_ra, ref_dec = (np.r_[np.tile(v, copies), np.nan] for v in sky(scene.reference, place))
    ra, dec = (np.r_[v, np.nan, 10.0] for v in sky(scene.catalog, place))
    dec[-1] = np.nan
    found = measure_solution(
        ra,
        dec,
        ref_ra,
        ref_dec,
        footprint=square(place),
        error_mas=np.r_[scene.errors, 3.0, 3.0],
        ref_error_mas=np.r_[np.tile(scene.ref_errors, copies), 20.0],
        magnitude=np.r_[scene.magnitude, 10.0, 10.0],
    )
    alike(scene.measure(place), found)


@settings(max_examples=20, deadline=None)
@given(seed=SEED, place=PLACE, rotation=SMALL)
def test_the_corrected_catalogue_has_nothing_left(seed: int, place: tuple[float, float], rotation: float) -> None:
    scene = Scene(seed, rotation)
    first = scene.measure(place)
    assert isinstance(first, Solution)
    again = measure_solution(
        *first.corrected(*sky(scene.catalog, place)),
        *sky(scene.reference, place),
        footprint=square(place),
        error_mas=scene.errors,
        ref_error_mas=scene.ref_errors,
        magnitude=scene.magnitude,
    )
    assert isinstance(again, Solution)
    assert np.hypot(again.dra, again.ddec) < 0.3 * max(first.err_ra, first.err_dec)
    assert abs(again.rotation_deg) < 0.3 * first.rotation_err_deg


@settings(max_examples=20, deadline=None)
@given(seed=SEED, rotation=st.floats(-0.1, 0.1), east=st.floats(-30, 30), north=st.floats(-30, 30))
def test_a_prior_pulls_towards_itself(seed: int, rotation: float, east: float, north: float) -> None:
    scene = Scene(seed, rotation)
    alone = scene.measure((10.0, 20.0))
    assert isinstance(alone, Solution)
    prior = PointingKnowledge(
        alone.dra + east, alone.ddec + north, alone.rotation_deg, np.diag([15.0**2, 15.0**2, 0.05**2])
    )
    both = scene.measure((10.0, 20.0), prior=prior)
    assert isinstance(both, Solution)
    assert both.with_prior
    moved = np.array([both.dra - alone.dra, both.ddec - alone.ddec])
    assert moved @ [east, north] >= -1e-6
    assert np.hypot(*moved) <= 0.5 * np.hypot(east, north) + 0.05
