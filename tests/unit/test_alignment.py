"""The gates, number by number."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest

from panoramic.alignment import Verdict, judge
from panoramic.alignment_measurement import Measurement, Offset
from panoramic.reduction.base import AbsoluteFit, ReductionResult, RelativeFit
from panoramic.survey import Limits

LIMITS = Limits()
ANCHOR = RelativeFit("a", "anchor", n=100, rms_x=0.0, rms_y=0.0)
GOOD = RelativeFit("b", "matched", n=40, rms_x=0.02, rms_y=0.01)
FIT = AbsoluteFit("LS_DR9", "external", 0, 0, 0, 1, 25, 0.5, 63.0)


def result(relative=(ANCHOR, GOOD), absolute=FIT, failure=None) -> ReductionResult:
    return ReductionResult(
        "x", "grizli", "1", (), tuple(relative), absolute, None, None, None, 0, "x.log", 63.0, failure=failure
    )


def verdict(
    relative=(ANCHOR, GOOD), absolute=FIT, detector="NRCBLONG", mode="required", available=True, failure=None
) -> Verdict:
    return judge(result(relative, absolute, failure), detector, LIMITS, mode, available)


def test_a_good_association_is_accepted() -> None:
    assert verdict().accepted
    assert Verdict.from_json(verdict().to_json()) == verdict()


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"rms_x": 0.11}, "relative_alignment"),
        ({"rms_y": 0.11}, "relative_alignment"),
        ({"n": 23}, "relative_alignment"),
        ({"rms_x": float("nan"), "rms_y": float("nan")}, "relative_alignment"),
        ({"role": "rejected"}, "relative_alignment"),
    ],
)
def test_one_bad_exposure_holds_the_association_back(change: dict, gate: str) -> None:
    found = verdict(relative=(ANCHOR, GOOD, dataclasses.replace(GOOD, dataset="c", **change)))
    assert not found.accepted
    assert [c.gate for c in found.criteria if c.passed is False] == [gate]
    assert "c" in found.cause


def test_short_wave_detectors_need_fewer_matches() -> None:
    few = dataclasses.replace(GOOD, n=8)
    assert verdict(relative=(ANCHOR, few), detector="NRCB1").accepted
    assert not verdict(relative=(ANCHOR, few)).accepted


def test_the_anchors_own_row_proves_nothing() -> None:
    assert not verdict(relative=(ANCHOR,)).accepted
    assert verdict(relative=(RelativeFit("a", "single"),)).accepted
    assert not verdict(relative=(RelativeFit("a", "single"),), absolute=None).accepted
    assert not verdict(relative=()).accepted


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"n": 11}, False),
        ({"rms": 90 / 63}, False),
        ({"rms": 79 / 63, "n": 12}, False),  # 22.8 mas of error
        ({"rms": 60 / 63, "n": 12}, True),
        ({"rms": 0.0}, False),
        ({"rms": float("nan")}, False),
        ({"n": 0}, False),
        ({"kind": "own", "rms": 10 / 63}, True),
        ({"kind": "own", "rms": 30 / 63}, False),
        ({"kind": "own", "rms": 19 / 63, "n": 12}, False),  # 5.5 mas of error
    ],
)
def test_absolute_limits(change: dict, accepted: bool) -> None:
    assert verdict(absolute=dataclasses.replace(FIT, **change)).accepted is accepted


def test_near_the_limit_is_said() -> None:
    assert [c.name for c in verdict(relative=(ANCHOR, dataclasses.replace(GOOD, rms_x=0.05))).near] == ["b RMS"]
    assert "error" in verdict(absolute=dataclasses.replace(FIT, rms=1.0, n=30)).near[0].name


def test_no_catalogue() -> None:
    assert not verdict(absolute=None, available=False).accepted
    lonely = verdict(absolute=None, available=False, mode="if_available")
    assert lonely.accepted
    assert "telescope" in lonely.near[0].note
    assert not verdict(absolute=None, available=True, mode="if_available").accepted


def test_what_the_engine_gave_up_is_held_back() -> None:
    assert "gave up" in verdict(failure="the engine gave up").cause


def test_real_shifts(shared_data: Path) -> None:
    """Real alignments of the survey: those of June 2023 near the limit, those of August good."""
    with (shared_data / "panoramic" / "shifts_log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    passed = {}
    for row in rows:
        n, rms = int(float(row["n_matched"])), max(float(row["rms_x_pix"]), float(row["rms_y_pix"]))
        if (n, rms) == (100, 0.0):
            continue
        fit = RelativeFit(row["file"], "matched", n=n, rms_x=rms, rms_y=rms)
        detector = "NRCBLONG" if "long" in row["file"] else "NRCB1"
        passed[row["notebook_version"], row["file"]] = verdict(relative=(ANCHOR, fit), detector=detector)
    assert passed
    for (_, name), found in passed.items():
        bad = any(c.passed is False for c in found.of("relative_alignment"))
        limits = [c for c in found.of("relative_alignment") if c.value is not None]
        assert bad == any(c.value > 0.1 if c.unit == "px" else c.value < c.limit for c in limits), name


def test_real_absolute_fits(shared_data: Path) -> None:
    with (shared_data / "panoramic" / "wcs_log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    refused = []
    for row in rows:
        own = "ls_dr9" not in row["reference_catalog"]
        fit = AbsoluteFit(
            "r", "own" if own else "external", 0, 0, 0, 1, int(float(row["n_matched"])), float(row["rms_pix"]), 63.0
        )
        if not verdict(absolute=fit).accepted:
            refused.append(fit)
    assert refused
    assert all(
        f.n < 12 or f.rms * 63 > (20 if f.kind == "own" else 80) or f.rms * 63 / math.sqrt(f.n) > 5 for f in refused
    )
    assert len(refused) < len(rows)


# --- measured ---------------------------------------------------------------------------------


def measured(apart: float, error: float, **changes: object) -> Measurement:
    """An association that lies ``apart`` mas off its reference, known to ``error``."""
    numbers = {
        "n": 40, "ra": 1.0, "dec": 2.0, "dra": apart, "ddec": 0.0, "err_ra": error, "err_dec": error,
        "corner_err_ra": 1.5 * error, "corner_err_dec": 1.5 * error, "scatter_ra": 30.0, "scatter_dec": 30.0,
        "rotation_deg": 0.0, "rotation_err_deg": 0.001, "rotation_mas": 0.0, "chance": 1e-9, "contrast": 5.0,
    } | changes  # fmt: skip
    kind = str(numbers.pop("kind", "external"))
    offset = Offset("a", "absolute", "LS_DR9", 300, 60, 63.0, **numbers)  # type: ignore[arg-type]
    return Measurement("a", "LS_DR9", kind, offset, ())


def judged(measurement: Measurement, n: int = 40, rms_px: float = 0.5) -> Verdict:
    """The verdict where the engine reports this of its own fit, and that all exposures agree."""
    fit = AbsoluteFit("LS_DR9", measurement.reference_kind, 0.0, 0.0, 0.0, 1.0, n, rms_px, 63.0)
    result = ReductionResult(
        "a", "engine", "1", (), (RelativeFit("e", "single"),), fit, None, None, None, 100, "", 63.0
    )
    return judge(result, "NRCALONG", Limits(), "required", True, "", measurement)


@pytest.mark.parametrize(("n", "rms_px"), [(40, 0.5), (5, 0.83), (5, 5.0), (3, 40.0)])
def test_a_bad_fit_does_not_excuse_a_measured_offset(n: int, rms_px: float) -> None:
    """The worse the engine's own numbers, the less they prove."""
    assert not judged(measured(400.0, 10.0), n, rms_px).accepted
    assert not judged(measured(75.0, 12.0), n, rms_px).accepted
    assert judged(measured(10.0, 8.0), n, rms_px).accepted


@pytest.mark.parametrize(
    ("numbers", "cause"),
    [
        ({"error": 21.0}, "predicted error against"),
        ({"chance": 2e-3}, "chance of 40 matches"),
        ({"chance": 5e-4, "n": 11}, "chance of 11 matches"),
        ({"contrast": 1.4}, "contrast"),
        ({"corner_err_ra": 60.0}, "worst corner"),
        ({"rotation_deg": 0.1, "rotation_mas": 160.0}, "offset from LS_DR9"),
        ({"ddec": 90.0}, "offset from LS_DR9"),
    ],
)
def test_each_measured_number_is_held_to_its_limit(numbers: dict[str, float], cause: str) -> None:
    assert judged(measured(3.0, 5.0)).accepted
    numbers = dict(numbers)
    error = numbers.pop("error", 5.0)
    verdict = judged(measured(3.0, error, **numbers))
    assert not verdict.accepted
    assert cause in verdict.cause


def test_our_own_reference_is_held_to_less() -> None:
    assert judged(measured(1.5, 0.5, kind="own")).accepted
    assert not judged(measured(7.5, 0.5, kind="own")).accepted
    assert not judged(measured(1.5, 5.5, kind="own")).accepted


def test_the_axis_that_is_farthest_beyond_its_error_decides() -> None:
    """East is larger and means nothing, north is smaller and certain."""
    verdict = judged(measured(21.0, 7.0, ddec=24.0, err_dec=0.3))
    assert not verdict.accepted
    assert "24" in verdict.cause


def test_a_refused_measurement_is_never_accepted() -> None:
    offset = Offset(
        "a", "absolute", "LS_DR9", 300, 4, 63.0, cause="too few reference sources", text="only 4; 5 are needed"
    )
    verdict = judged(Measurement("a", "LS_DR9", "external", offset, ()))
    assert not verdict.accepted
    assert "only 4; 5 are needed" in verdict.cause
