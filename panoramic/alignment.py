"""The verdict on an association: accepted, or held back with the number that decided.

Put here the gates (design: section 7), as pure functions of a reduction's result and the survey's limits. Keep out
the fitting itself, which is the engines', and what is done with a verdict, which is the assets'.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from panoramic.observations import is_long_wave
from panoramic.reduction.base import AbsoluteFit, ReductionResult
from panoramic.survey import Limits

Status = Literal["accepted", "held_back"]


@dataclass(frozen=True)
class Criterion:
    """One number held against one limit.

    ``passed`` is None where the criterion does not apply (``note`` says why); ``near`` marks a value that passed but
    deserves a look. ``gate`` is the check it belongs to.
    """

    gate: str
    name: str
    value: float | None
    limit: float | None
    unit: str
    passed: bool | None
    near: bool = False
    note: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: {self.note}"
        sign = "" if self.limit is None else f" (limit {self.limit:g})"
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
) -> Verdict:
    """Judge one association by what its engine reports.

    Parameters
    ----------
    result : the engine's story.
    detector : decides between the long-wave and the short-wave limit on matches.
    absolute_alignment : ``required`` or ``if_available`` (survey file).
    reference_available : whether any catalogue covers the association, be it with too few sources.
    why_none : why none of them could be used; empty where one was.
    """
    relative = _relative(result, is_long_wave(detector), limits)
    absolute = _absolute(result.absolute, limits, absolute_alignment, reference_available, why_none)
    criteria = tuple(relative + absolute)
    failed = [str(c) for c in criteria if c.passed is False]
    if result.failure:
        failed.insert(0, result.failure)
    return Verdict(result.association, "held_back" if failed else "accepted", criteria, "; ".join(failed))


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
            criteria.append(Criterion(gate, f"{fit.dataset} N", fit.n, minimum, "matches", fit.n >= minimum))
    anchors = [f for f in result.relative if f.role == "anchor"]
    if anchors and not any(f.role in ("matched", "rejected") for f in result.relative):
        note = "no other exposure was matched to it"
        criteria.append(Criterion(gate, anchors[0].dataset, None, None, "", False, note=note))
    if not result.relative and not result.failure:
        criteria.append(Criterion(gate, result.association, None, None, "", False, note="the engine reported no fit"))
    return criteria


def _absolute(
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
        Criterion(gate, f"N against {fit.reference}", fit.n, limits.absolute_n, "matches", fit.n >= limits.absolute_n),
    ]
