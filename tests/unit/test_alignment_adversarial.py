"""Each hard case with its truth: the right answer, or a refusal that names the cause."""

from __future__ import annotations

import numpy as np
import pytest

from panoramic.alignment_solution import Cause, PointingKnowledge, Refusal, Solution, measure_solution
from panoramic.errors import InputError
from panoramic.footprints import deproject

HALF = 64.5
PIXEL = 0.063
PLACE = (359.998, -41.0)
SEEDS = range(8)


class World:
    """Objects of a field, those of the reference among them, and exposures of it; positions in arcsec."""

    def __init__(self, seed: int, references: int = 60, others: int = 200, scatter_mas: float = 25.0, false: int = 0):
        self.rng = np.random.default_rng(seed)
        true = self.rng.uniform(-HALF + 6, HALF - 6, (references, 2))
        self.objects = np.r_[true, self.rng.uniform(-HALF, HALF, (others, 2))]
        noise = self.rng.normal(0, scatter_mas / 1000, (references, 2))
        self.reference = np.r_[true + noise, self.rng.uniform(-HALF, HALF, (false, 2))]
        self.ref_error = np.full(len(self.reference), scatter_mas)

    def exposure(self, shift=(0.0, 0.0), rotation: float = 0.0, noise=None) -> tuple[np.ndarray, np.ndarray]:
        """RA and Dec of what an exposure detects, whose geometry is off by a shift and turned north to east."""
        a = np.radians(rotation)
        moved = (self.objects + shift) @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        moved = moved + self.rng.normal(0, 0.003, moved.shape) + (0 if noise is None else noise)
        return sky(moved[(np.abs(moved) < HALF).all(axis=1)])

    def measure(self, exposure, reference=None, **keywords) -> Solution | Refusal:
        reference = self.reference if reference is None else reference
        error = np.full(len(reference), self.ref_error[0] if len(self.ref_error) else np.nan)
        keywords = {"ref_error_mas": error, "error_mas": np.full(len(exposure[0]), 3.0)} | keywords
        return measure_solution(*exposure, *sky(reference), footprint=FOOTPRINT, **keywords)


def sky(points) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(points, float).reshape(-1, 2)
    return deproject(np.radians(points[:, 0] / 3600), np.radians(points[:, 1] / 3600), *PLACE)


FOOTPRINT = np.column_stack(sky([[-HALF, -HALF], [HALF, -HALF], [HALF, HALF], [-HALF, HALF]]))


def right(found: Solution | Refusal, shift, rotation: float = 0.0) -> Solution:
    """The truth within the limits that an accepted solution must keep."""
    assert isinstance(found, Solution), found
    radial = np.hypot(found.dra - 1000 * shift[0], found.ddec - 1000 * shift[1])
    assert radial < max(30.0, 4.5 * np.hypot(found.err_ra, found.err_dec) / np.sqrt(2))
    assert max(found.err_ra, found.err_dec) < 30
    assert abs(found.rotation_deg - rotation) < 5 * found.rotation_err_deg
    return found


def refused(found: Solution | Refusal, *causes: Cause) -> Refusal:
    assert isinstance(found, Refusal), found
    assert found.cause in causes, found
    assert found.text
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [0.5, 3.0, 10.0])
def test_shift(seed: int, size: float) -> None:
    world = World(seed)
    shift = size * np.array([np.cos(seed), np.sin(seed)])
    found = world.measure(world.exposure(shift))
    if size > 3:
        cause = refused(found, Cause.BEYOND_SEARCH_RADIUS)
        assert (cause.numbers["dra_mas"], cause.numbers["ddec_mas"]) == pytest.approx(1000 * shift, abs=60)
        right(world.measure(world.exposure(shift), search_radius_arcsec=12), shift)
    else:
        right(found, shift)


@pytest.mark.parametrize("rotation", [0.2, -0.2])
def test_rotation(rotation: float) -> None:
    world = World(1)
    found = right(world.measure(world.exposure((0.3, -0.4), rotation)), (0.3, -0.4), rotation)
    assert found.rotation_err_deg < 0.02


@pytest.mark.parametrize("pixels", [0.1, 0.3, 1.0])
def test_one_of_four_dithers_is_off(pixels: float) -> None:
    """Each exposure is told where it lies; against an own reference of 3 mas even a tenth of a pixel stands out."""
    world = World(2, references=150, scatter_mas=3.0)
    base, off = np.array([0.1, -0.2]), np.array([0.6, 0.8]) * pixels * PIXEL
    found = [
        right(world.measure(world.exposure(base + (off if k == 2 else 0))), base + (off if k == 2 else 0))
        for k in range(4)
    ]
    away = np.array([(s.dra - found[0].dra, s.ddec - found[0].ddec) for s in found])
    error = np.hypot(found[0].err_ra, found[2].err_ra)
    assert np.allclose(away[2], 1000 * off, atol=5 * error)
    assert np.hypot(*away[2]) > 8 * error
    assert np.hypot(*away[[1, 3]].T).max() < 5 * error


def test_one_detector_is_off() -> None:
    shifts = [(0.2, 0.1)] * 7 + [(0.9, -0.7)]
    for k, shift in enumerate(shifts):
        world = World(30 + k)
        right(world.measure(world.exposure(shift, 0.05)), shift, 0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_reference_of_five(seed: int) -> None:
    world = World(seed, references=5, others=60)
    found = world.measure(world.exposure((0.2, 0.3)))
    if isinstance(found, Solution):
        right(found, (0.2, 0.3))
        assert found.n == 5
    else:
        refused(found, Cause.NO_PEAK, Cause.TOO_FEW_REFERENCES, Cause.ERROR_TOO_LARGE)


def test_no_reference() -> None:
    world = World(4, references=0)
    refused(world.measure(world.exposure()), Cause.TOO_FEW_REFERENCES)
    refused(world.measure(world.exposure(), prior=knowledge(0, 0)), Cause.TOO_FEW_REFERENCES)


@pytest.mark.parametrize("seed", SEEDS)
def test_half_of_the_reference_is_false(seed: int) -> None:
    world = World(seed, references=20, false=20)
    right(world.measure(world.exposure((1.0, -1.5), 0.1)), (1.0, -1.5), 0.1)


@pytest.mark.parametrize("seed", range(3))
def test_very_dense_reference(seed: int) -> None:
    world = World(seed, references=4000, others=800, false=1500, scatter_mas=30)
    right(world.measure(world.exposure((1.3, 0.7), -0.15)), (1.3, 0.7), -0.15)
    # dense enough to agree with anything, and belonging to nothing
    other = World(seed + 100, references=0, false=5500)
    other.objects = other.rng.uniform(-HALF, HALF, (800, 2))
    refused(other.measure(other.exposure()), Cause.NO_PEAK)


@pytest.mark.parametrize("spread_mas", [4, 50, 100, 200])
def test_duplicates_in_the_reference(spread_mas: float) -> None:
    world = World(5, references=40)
    rows = np.repeat(world.reference, 3, axis=0)
    rows = rows + world.rng.normal(0, spread_mas / 1000, rows.shape)
    found = world.measure(world.exposure((0.5, 0.5)), rows)
    if spread_mas <= 50:
        right(found, (0.5, 0.5))
    if isinstance(found, Solution):
        right(found, (0.5, 0.5))
        assert found.n <= 40


@pytest.mark.parametrize("copy_mas", [100, 300, 1000])
def test_a_reference_that_holds_a_second_copy_of_itself(copy_mas: float) -> None:
    world = World(6)
    rows = np.r_[world.reference, world.reference + (0.6 * copy_mas / 1000, -0.8 * copy_mas / 1000)]
    refused(world.measure(world.exposure(), rows), Cause.AMBIGUOUS, Cause.SCATTER_TOO_LARGE)


@pytest.mark.parametrize("law", ["gaussian", "uniform", "two points"])
@pytest.mark.parametrize("size", [0.1, 0.2, 0.4, 1.0])
def test_smeared(law: str, size: float) -> None:
    for seed in range(6):
        world = World(seed, references=25, others=150)
        n, angle = len(world.objects), world.rng.uniform(0, np.pi)
        along = {
            "gaussian": world.rng.normal(0, size, (n, 1)),
            "uniform": size * world.rng.uniform(-1.7, 1.7, (n, 1)),
            "two points": size * world.rng.choice([-1.0, 1.0], (n, 1)),
        }[law]
        noise = along * [np.cos(angle), np.sin(angle)]
        found = world.measure(world.exposure((0.3, 0.2), noise=noise))
        refused(found, Cause.SCATTER_TOO_LARGE, Cause.NO_PEAK, Cause.AMBIGUOUS, Cause.ERROR_TOO_LARGE)


@pytest.mark.parametrize("seed", SEEDS)
def test_empty_region(seed: int) -> None:
    world = World(seed, references=0, others=3)
    world.reference = world.rng.uniform(-HALF, HALF, (30, 2))
    refused(world.measure(world.exposure()), Cause.TOO_FEW_SOURCES, Cause.NO_PEAK)
    world.objects = world.rng.uniform(-HALF, HALF, (12, 2))
    refused(world.measure(world.exposure()), Cause.NO_PEAK)


@pytest.mark.parametrize("seed", SEEDS)
def test_proper_motions_only(seed: int) -> None:
    world = World(seed, references=40, scatter_mas=5.0)
    angle = world.rng.uniform(0, 2 * np.pi, 40)
    world.reference += (world.rng.uniform(0.1, 0.6, 40) * [np.cos(angle), np.sin(angle)]).T
    found = world.measure(world.exposure((0.2, 0.0)))
    refused(found, Cause.SCATTER_TOO_LARGE, Cause.NO_PEAK, Cause.AMBIGUOUS)


@pytest.mark.parametrize("value", [None, np.nan, 0.0])
def test_unknown_errors(value: float | None) -> None:
    world = World(7)
    errors = None if value is None else np.full(60, value)
    right(world.measure(world.exposure((0.4, 0.1)), ref_error_mas=errors, error_mas=None), (0.4, 0.1))
    # some are unknown: these are no better than the others
    some = np.where(np.arange(60) % 3 == 0, np.nan if value is None else value, 25.0)
    right(world.measure(world.exposure((0.4, 0.1)), ref_error_mas=some), (0.4, 0.1))


def test_errors_of_rows_that_differ_widely() -> None:
    world = World(8, scatter_mas=10)
    errors = np.where(np.arange(60) % 2 == 0, 10.0, 80.0)
    rows = world.reference + world.rng.normal(size=(60, 2)) * np.where(errors > 50, 0.08, 0.0)[:, None]
    found = right(world.measure(world.exposure((0.4, 0.1)), rows, ref_error_mas=errors), (0.4, 0.1))
    assert max(found.err_ra, found.err_dec) < 5


@pytest.mark.parametrize("side", [8.0, 20.0])
def test_a_tiny_field(side: float) -> None:
    rng = np.random.default_rng(9)
    true = rng.uniform(-side / 2, side / 2, (20, 2))
    reference = true + rng.normal(0, 0.02, true.shape)
    corners = np.column_stack(sky(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2))
    for footprint in (None, corners):
        found = measure_solution(*sky(true + (0.7, 0.2)), *sky(reference), footprint=footprint)
        assert isinstance(found, Solution), found
        assert np.hypot(found.dra - 700, found.ddec - 200) < 30


def knowledge(east: float, north: float, rotation: float = 0.0, sigma: float = 15.0) -> PointingKnowledge:
    return PointingKnowledge(east, north, rotation, np.diag([sigma**2, sigma**2, 0.02**2]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("references", [3, 4])
def test_few_references_are_enough_with_a_prior(seed: int, references: int) -> None:
    world = World(seed, references=references, others=60, false=2, scatter_mas=20)
    exposure = world.exposure((0.8, -0.5), 0.05)
    assert isinstance(world.measure(exposure), Refusal)
    found = right(world.measure(exposure, prior=knowledge(790, -495, 0.055)), (0.8, -0.5), 0.05)
    assert found.with_prior
    assert found.n >= 3
    assert max(found.err_ra, found.err_dec) < 22


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prior_that_is_wrong_is_named(seed: int) -> None:
    world = World(seed, references=30)
    exposure = world.exposure((0.8, -0.5))
    found = refused(world.measure(exposure, prior=knowledge(500, -500)), Cause.DISAGREES_WITH_PRIOR)
    assert found.numbers["dra_mas"] == pytest.approx(300, abs=40)
    turned = knowledge(800, -500, rotation=0.25)
    refused(world.measure(exposure, prior=turned), Cause.DISAGREES_WITH_PRIOR)
    # without it there is nothing wrong
    assert not right(world.measure(exposure), (0.8, -0.5)).with_prior


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wrong_prior_makes_no_solution_of_nothing(seed: int) -> None:
    world = World(seed, references=0, others=120)
    world.reference = world.rng.uniform(-HALF, HALF, (40, 2))
    world.ref_error = np.full(40, 25.0)
    refused(world.measure(world.exposure(), prior=knowledge(300, 100)), Cause.NO_PEAK)


def test_a_prior_enters_as_an_observation() -> None:
    world = World(10, references=8, others=60, scatter_mas=40)
    exposure = world.exposure((0.2, 0.2))
    alone = right(world.measure(exposure), (0.2, 0.2))
    both = right(world.measure(exposure, prior=knowledge(200, 200, sigma=10)), (0.2, 0.2))
    assert both.err_ra < alone.err_ra
    assert min(alone.dra, 200) <= both.dra <= max(alone.dra, 200)
    weak = right(world.measure(exposure, prior=knowledge(200, 200, sigma=1000)), (0.2, 0.2))
    assert weak.dra == pytest.approx(alone.dra, abs=0.1 * alone.err_ra)
    assert weak.rotation_deg == pytest.approx(alone.rotation_deg, abs=alone.rotation_err_deg)


def test_a_prior_tells_two_copies_apart() -> None:
    world = World(11)
    rows = np.r_[world.reference, world.reference + (1.0, 0.0)]
    exposure = world.exposure((0.3, 0.0))
    refused(world.measure(exposure, rows), Cause.AMBIGUOUS)
    right(world.measure(exposure, rows, prior=knowledge(305, -5)), (0.3, 0.0))


@pytest.mark.parametrize(
    "covariance",
    [np.eye(2), np.diag([1.0, -1.0, 1.0]), np.full((3, 3), 1.0), np.diag([1.0, np.nan, 1.0]), np.diag([1.0, 1.0, 0.0])],
)
def test_a_covariance_that_is_none_is_refused(covariance: np.ndarray) -> None:
    with pytest.raises(InputError, match="positive definite"):
        PointingKnowledge(0.0, 0.0, 0.0, covariance)


def test_a_prior_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="leave the prior out"):
        PointingKnowledge(np.nan, 0.0, 0.0, np.eye(3))
