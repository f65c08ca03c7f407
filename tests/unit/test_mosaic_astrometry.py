"""Which offsets of a mosaic are measured, and how they stand to their limits."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from panoramic.mosaic.astrometry import AssociationArea, AstrometryMeasurement, mosaic_astrometry
from panoramic.reduction.base import ReferenceSources
from panoramic.survey import Limits

LIMITS = Limits()
DEC = 2.0


def sky(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arcsec to deg near RA 0."""
    return (x / 3600 / np.cos(np.radians(DEC))) % 360, DEC + y / 3600


def box(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    return np.column_stack(sky(np.array([x0, x1, x1, x0]), np.array([y0, y0, y1, y1])))


def table(x: np.ndarray, y: np.ndarray, snr: float = 50.0) -> Table:
    ra, dec = sky(x, y)
    return Table({"ra": ra, "dec": dec, "snr": np.full(ra.size, snr)})


def reference(x: np.ndarray, y: np.ndarray, name: str = "LS_DR9") -> ReferenceSources:
    ra, dec = sky(x, y)
    return ReferenceSources(name, ra, dec, np.full(ra.size, 21.0), np.full(ra.size, 30.0))


@pytest.fixture
def truth() -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(5)
    return rng.uniform(-100, 100, 900), rng.uniform(-50, 50, 900), rng


def by(found: list[AstrometryMeasurement], kind: str) -> list[AstrometryMeasurement]:
    return [one for one in found if one.kind == kind]


def test_a_good_mosaic_passes(truth: tuple) -> None:
    x, y, rng = truth
    pick = rng.choice(900, 90, replace=False)
    ext = reference(x[pick] + rng.normal(0, 0.03, 90), y[pick] + rng.normal(0, 0.03, 90))
    own = reference(x[:500] + rng.normal(0, 0.004, 500), y[:500] + rng.normal(0, 0.004, 500), "own")
    areas = [
        AssociationArea("a", "short", box(-100, 5, -50, 50), catalog=table(x[x < 5], y[x < 5])),
        AssociationArea("b", "short", box(-5, 100, -50, 50), catalog=table(x[x > -5], y[x > -5])),
    ]
    found = mosaic_astrometry(table(x, y), ext, own, areas, LIMITS)
    assert [one.kind for one in found] == ["external_whole", "own_association", "own_association", "overlap"]
    assert all(one.passed for one in found), found
    assert not any(one.near for one in found)
    assert by(found, "external_whole")[0].scatter == pytest.approx(30, rel=0.25)
    assert by(found, "overlap")[0].name == "a + b"


@pytest.mark.parametrize("channel", ["short", "long"])
def test_a_displaced_association_fails(truth: tuple, channel: str) -> None:
    x, y, rng = truth
    shift = np.where(x > 0, 0.3, 0.0)
    pick = rng.choice(900, 90, replace=False)
    ext = reference(x[pick] + rng.normal(0, 0.03, 90), y[pick] + rng.normal(0, 0.03, 90))
    own = reference(x + rng.normal(0, 0.004, 900), y, "own")
    areas = [AssociationArea("a", channel, box(-100, 0, -50, 50)), AssociationArea("b", channel, box(0, 100, -50, 50))]
    found = mosaic_astrometry(table(x + shift, y), ext, own, areas, LIMITS)
    one, two = by(found, "external_association" if channel == "long" else "own_association")
    assert one.passed is True
    assert two.passed is False
    assert two.dra == pytest.approx(300, abs=15)
    assert "limit" in two.reason
    # whatever is no source of our own reference is held against it
    assert [m.passed for m in by(found, "own_association")] == [True, False]
    if channel == "short":
        assert not by(found, "external_association")


def test_a_displaced_association_can_not_hide_among_others(truth: tuple) -> None:
    x, y, rng = truth
    own = reference(x + rng.normal(0, 0.004, 900), y, "own")
    areas = [
        AssociationArea("good", "short", box(-100, 100, -50, 50), catalog=table(x, y)),
        AssociationArea("good2", "short", box(-100, 100, -50, 50), catalog=table(x, y)),
        AssociationArea("bad", "short", box(-100, 100, -50, 50), catalog=table(x, y + 0.3)),
    ]
    mosaic = table(np.r_[x, x[:400]], np.r_[y, y[:400] + 0.3])
    found = mosaic_astrometry(mosaic, None, own, areas, LIMITS)
    assert {one.name: one.passed for one in by(found, "own_association")} == {"good": True, "good2": True, "bad": False}
    assert {one.name: one.passed for one in by(found, "overlap")} == {
        "good + good2": True, "good + bad": False, "good2 + bad": False,
    }  # fmt: skip


def test_the_reference_is_not_held_against_itself(truth: tuple) -> None:
    x, y, _ = truth
    areas = [AssociationArea("a", "short", box(-100, 100, -50, 50), is_reference=True)]
    assert mosaic_astrometry(table(x, y), None, reference(x, y, "own"), areas, LIMITS) == []


def test_near_the_limit(truth: tuple) -> None:
    x, y, rng = truth
    own = reference(x + rng.normal(0, 0.004, 900), y + rng.normal(0, 0.004, 900), "own")
    areas = [AssociationArea("a", "short", box(-100, 100, -50, 50))]
    (one,) = mosaic_astrometry(table(x + 0.0075, y), None, own, areas, LIMITS)
    assert one.passed is True
    assert one.near is True


def test_too_few_is_not_measurable_and_not_failed(truth: tuple) -> None:
    x, y, _ = truth
    ext = reference(x[:15] + 0.5, y[:15])
    whole, part = mosaic_astrometry(
        table(x, y), ext, None, [AssociationArea("a", "long", box(-100, 100, -50, 50))], LIMITS
    )
    assert whole.passed is None
    assert whole.n == 15
    assert "20" in whole.reason
    assert part.passed is False  # 15 are enough for an association's area
    none = mosaic_astrometry(table(x[:0], y[:0]), ext, None, [], LIMITS)
    assert none[0].passed is None
    assert none[0].dra is None


def test_faint_sources_are_left_out(truth: tuple) -> None:
    x, y, _ = truth
    ext = reference(x[:100], y[:100])
    assert mosaic_astrometry(table(x, y, snr=4.0), ext, None, [], LIMITS)[0].passed is None
