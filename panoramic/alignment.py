"""The verdict on an association: accepted, or held back with the number that decided.

Put here the gates (design: section 7), as pure functions of a reduction's result, its independent measurement and the
survey's limits. Keep out the fitting itself, which is the engines', the measuring (``verification.py``), and what is
done with a verdict, which is the assets'.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from panoramic.alignment_measurement import Measurement, Offset
from panoramic.observations import is_long_wave
from panoramic.reduction.base import AbsoluteFit, ReductionResult
from panoramic.survey import Limits

# below this many matches chance must be rarer
_EARLY_MATCHES = 12

Status = Literal["accepted", "held_back"]


@dataclass(frozen=True)
class Criterion:
    """One number held against one limit.

    ``passed`` is None where the criterion does not apply (``note`` says why); ``near`` marks a value that passed but
    deserves a look. ``gate`` is the check it belongs to. ``at_least``: the limit is a lower one.
    """

    gate: str
    name: str
    value: float | None
    limit: float | None
    unit: str
    passed: bool | None
    near: bool = False
    note: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: {self.note}"
        sign = "" if self.limit is None else f" ({'at least' if self.at_least else 'limit'} {self.limit:.4g})"
        return f"{self.name} = {self.value:.4g} {self.unit}{sign}" + (f", {self.note}" if self.note else "")


@dataclass(frozen=True)
class Verdict:
    """The judgement of one association and all the numbers behind it."""

    association: str
    status: Status
    criteria: tuple[Criterion, ...]
    cause: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the association may be published and drizzled."""
        return self.status == "accepted"

    @property
    def near(self) -> tuple[Criterion, ...]:
        """Criteria that passed near their limit."""
        return tuple(c for c in self.criteria if c.near)

    def of(self, gate: str) -> tuple[Criterion, ...]:
        """The criteria of one gate."""
        return tuple(c for c in self.criteria if c.gate == gate)

    def to_json(self) -> str:
        """Serialise; `from_json` gives an equal verdict back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        raw["criteria"] = tuple(Criterion(**c) for c in raw["criteria"])
        return cls(**raw)


@dataclass(frozen=True)
class Judgement:
    """What a person decided on an association, against or with the numbers: ``accepted`` or ``held_back``."""

    decision: Status
    reason: str
    by: str
    on: str

    def __str__(self) -> str:
        word = "accepted" if self.decision == "accepted" else "rejected"
        return f"{word} by {self.by} on {self.on}: {self.reason}"


def overruled(verdict: Verdict, judgement: Judgement | None) -> Verdict:
    """The verdict as a person's judgement leaves it; the numbers stay, with a note on those that were overruled."""
    if judgement is None:
        return verdict
    said = str(judgement)
    if judgement.decision == "accepted":
        criteria = tuple(
            replace(c, passed=None, note=f"{c.note}; failed, {said}".strip("; ")) if c.passed is False else c
            for c in verdict.criteria
        )
        return Verdict(verdict.association, "accepted", criteria)
    stated = Criterion("absolute_alignment", "judgement", None, None, "", False, note=said)
    return Verdict(verdict.association, "held_back", (*verdict.criteria, stated), said)


def judge(
    result: ReductionResult,
    detector: str,
    limits: Limits,
    absolute_alignment: str,
    reference_available: bool,
    why_none: str = "",
    measurement: Measurement | None = None,
) -> Verdict:
    """Judge one association.

    Relative alignment must pass on the engine's numbers and on the measured ones. Absolute alignment is decided by the
    measurement alone where there is one; a reported solution that contradicts it is held back.

    Parameters
    ----------
    result : the engine's story.
    detector : decides between the long-wave and the short-wave limit on matches.
    absolute_alignment : ``required`` or ``if_available`` (survey file).
    reference_available : whether any catalogue covers the association, be it with too few sources.
    why_none : why none of them could be used; empty where one was.
    measurement : of the products; None where there are none, or for logs without products.
    """
    long_wave = is_long_wave(detector)
    relative = _relative(result, long_wave, limits)
    if measurement is not None:
        relative += _measured_relative(measurement, long_wave, limits)
    if measurement is not None and measurement.absolute is not None:
        absolute = _measured_absolute(measurement, measurement.absolute, result.absolute, limits)
    else:
        absolute = _reported_absolute(result.absolute, limits, absolute_alignment, reference_available, why_none)
    criteria = tuple(relative + absolute)
    failed = [str(c) for c in criteria if c.passed is False]
    if result.failure:
        failed.insert(0, result.failure)
    return Verdict(result.association, "held_back" if failed else "accepted", criteria, "; ".join(failed))


def _measured_relative(measurement: Measurement, long_wave: bool, limits: Limits) -> list[Criterion]:
    """Each exposure against the others: what is beyond three errors at its worst corner, and how well that is known."""
    gate, minimum = "relative_alignment", limits.relative_n_long if long_wave else limits.relative_n_short
    criteria = []
    for offset in measurement.of("relative"):
        if not offset.measured:
            note = f"measured against the other exposures: {offset.text or offset.cause}"
            criteria.append(Criterion(gate, f"{offset.subject} offset", None, None, "", False, note=note))
            continue
        apart, error = _worst_axis(offset)
        beyond = max(0.0, apart - 3 * error) / offset.pixel_scale_mas
        good = beyond <= limits.relative_rms_px and error / offset.pixel_scale_mas <= limits.relative_rms_px
        note = f"measured {apart:.1f} mas with an error of {error:.1f}"
        criteria.append(
            Criterion(
                gate, f"{offset.subject} measured offset beyond 3 errors", beyond, limits.relative_rms_px, "px", good,
                good and beyond > limits.relative_rms_near_px, note,
            )
        )  # fmt: skip
        criteria.append(
            Criterion(
                gate, f"{offset.subject} measured N", offset.n, minimum, "matches", offset.n >= minimum, at_least=True
            )
        )
    return criteria


def _measured_absolute(
    measurement: Measurement, offset: Offset, fit: AbsoluteFit | None, limits: Limits
) -> list[Criterion]:
    """The association against its reference, by the measurement; the engine's number is told and decides nothing."""
    gate, name = "absolute_alignment", measurement.reference
    if not offset.measured:
        note = f"measured against {name}: {offset.text or offset.cause}"
        return [Criterion(gate, "measured offset", None, None, "", False, note=note), *_reported(fit)]
    own = measurement.reference_kind == "own"
    limit = limits.absolute_error_own_mas if own else limits.absolute_error_external_mas
    apart, error = _worst_axis(offset)
    predicted = max(_value(offset.err_ra), _value(offset.err_dec))
    near = not own and limits.absolute_error_near_mas < predicted <= limit
    with_prior = "with the visit's other detectors" if offset.with_prior else ""
    chance_limit = limits.absolute_chance if offset.n >= _EARLY_MATCHES else limits.absolute_chance_early
    chance, contrast = _value(offset.chance), _value(offset.contrast)
    reported = _reported_error(fit)
    # the two share their stars, and a bad fit must not excuse itself: it counts up to the limit on errors alone
    combined = math.hypot(error, min(reported, limit))
    allowed = limits.absolute_disagreement_sigma * combined + limits.absolute_disagreement_mas
    most = limits.absolute_offset_own_mas if own else limits.absolute_offset_external_mas
    beyond = max(0.0, apart - 3 * error)
    corner = max(_value(offset.corner_err_ra), _value(offset.corner_err_dec))
    corner_limit = limits.absolute_corner_factor * limit
    note = f"3 combined errors of {combined:.1f} mas and {limits.absolute_disagreement_mas:g} mas are allowed"
    if offset.with_prior:
        note = "moved by this very solution: nothing is left by construction"
    return [
        Criterion(
            gate, f"predicted error against {name}", predicted, limit, "mas", predicted <= limit, near, with_prior
        ),
        Criterion(gate, f"chance of {offset.n} matches with {name}", chance, chance_limit, "", chance <= chance_limit),
        Criterion(
            gate, f"contrast with {name}", contrast, limits.absolute_contrast, "", contrast >= limits.absolute_contrast,
            at_least=True,
        ),
        Criterion(
            gate, f"predicted error at the worst corner against {name}", corner, corner_limit, "mas",
            corner <= corner_limit,
        ),
        Criterion(gate, f"offset from {name}", apart, allowed, "mas", apart <= allowed, note=note),
        Criterion(gate, f"offset from {name} beyond 3 errors", beyond, most, "mas", beyond <= most),
        *_reported(fit),
    ]  # fmt: skip


def _value(number: float | None) -> float:
    return math.inf if number is None else number


def _worst_axis(offset: Offset) -> tuple[float, float]:
    """The offset that is farthest beyond its error, and that error: an axis, or the rotation at the farthest corner."""
    turn = abs(offset.rotation_mas or 0.0)
    per_degree = turn / abs(offset.rotation_deg) if offset.rotation_deg else 0.0
    candidates = [
        (abs(_value(offset.dra)), _value(offset.err_ra)),
        (abs(_value(offset.ddec)), _value(offset.err_dec)),
        (turn, per_degree * (offset.rotation_err_deg or 0.0)),
    ]
    return max(candidates, key=lambda c: c[0] - 3 * c[1])


def _reported_error(fit: AbsoluteFit | None) -> float:
    """Error of the mean that the engine's numbers amount to, mas; 0 where it reports none."""
    if fit is None or fit.n <= 0 or not math.isfinite(fit.rms):
        return 0.0
    return fit.rms * fit.pixel_scale_mas / math.sqrt(fit.n)


def _reported(fit: AbsoluteFit | None) -> list[Criterion]:
    """The engine's own number, told beside the measured ones."""
    if fit is None:
        return []
    note = f"{fit.n} matches; reported by the engine, the measurement decides"
    return [
        Criterion("absolute_alignment", f"reported error against {fit.reference}", _reported_error(fit), None, "mas",
                  None, note=note)
    ]  # fmt: skip


def _relative(result: ReductionResult, long_wave: bool, limits: Limits) -> list[Criterion]:
    gate, minimum = "relative_alignment", limits.relative_n_long if long_wave else limits.relative_n_short
    criteria = []
    for fit in result.relative:
        if fit.role == "anchor":
            continue
        if fit.role == "single":
            criteria.append(
                Criterion(gate, fit.dataset, None, None, "", None, note="a single exposure: nothing to match")
            )
        elif fit.role == "rejected":
            criteria.append(
                Criterion(gate, fit.dataset, None, None, "", False, note="the fit was rejected by the engine")
            )
        else:
            rms = max(fit.rms_x, fit.rms_y)
            good = math.isfinite(rms) and rms <= limits.relative_rms_px
            near = good and rms > limits.relative_rms_near_px
            criteria.append(Criterion(gate, f"{fit.dataset} RMS", rms, limits.relative_rms_px, "px", good, near))
            criteria.append(
                Criterion(gate, f"{fit.dataset} N", fit.n, minimum, "matches", fit.n >= minimum, at_least=True)
            )
    anchors = [f for f in result.relative if f.role == "anchor"]
    if anchors and not any(f.role in ("matched", "rejected") for f in result.relative):
        note = "no other exposure was matched to it"
        criteria.append(Criterion(gate, anchors[0].dataset, None, None, "", False, note=note))
    if not result.relative and not result.failure:
        criteria.append(Criterion(gate, result.association, None, None, "", False, note="the engine reported no fit"))
    return criteria


def _reported_absolute(
    fit: AbsoluteFit | None, limits: Limits, absolute_alignment: str, reference_available: bool, why_none: str
) -> list[Criterion]:
    gate = "absolute_alignment"
    if fit is None:
        if not reference_available and absolute_alignment == "if_available":
            note = "no catalogue covers it: it stays in the telescope's frame"
            return [Criterion(gate, "reference", None, None, "", None, near=True, note=note)]
        note = why_none or ("the engine found no solution" if reference_available else "no catalogue covers it")
        if not reference_available:
            note += "; put one into reference_catalogs/, or set reference.absolute_alignment: if_available"
        return [Criterion(gate, "reference", None, None, "", False, note=note)]
    own = fit.kind == "own"
    error_limit = limits.absolute_error_own_mas if own else limits.absolute_error_external_mas
    scatter_limit = limits.absolute_scatter_own_mas if own else limits.absolute_scatter_external_mas
    scatter = fit.rms * fit.pixel_scale_mas
    error = scatter / math.sqrt(fit.n) if fit.n > 0 else math.inf
    near = not own and limits.absolute_error_near_mas < error <= error_limit
    # a scatter of exactly nothing is a fit to itself or to a single source, never a measurement
    real = math.isfinite(scatter) and scatter > 0
    return [
        Criterion(
            gate, f"error against {fit.reference}", error, error_limit, "mas", real and error <= error_limit, near
        ),
        Criterion(
            gate, f"scatter against {fit.reference}", scatter, scatter_limit, "mas", real and scatter <= scatter_limit
        ),
        Criterion(
            gate,
            f"N against {fit.reference}",
            fit.n,
            limits.absolute_n,
            "matches",
            fit.n >= limits.absolute_n,
            at_least=True,
        ),
    ]
