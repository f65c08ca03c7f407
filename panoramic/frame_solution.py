"""The typed result of a field's frame, and its JSON.

Put here what is known of the frame after the solution. Keep out how it comes about (`panoramic.field_frame`).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from panoramic.reduction.moving import SkyCorrection

EXTERNAL_NAME = "external"


class FrameCause(StrEnum):
    """Why a tie or an external set isn't part of the solution, beside the causes of `measure_solution`."""

    CONTRADICTS = "contradicts the others"
    EXCLUDED = "its association contradicts the others"


@dataclass(frozen=True)
class FrameError:
    """Standard errors: shift at the middle (mas), turn (deg), and shift at the worst corner (mas)."""

    east_mas: float
    north_mas: float
    rotation_deg: float
    corner_east_mas: float
    corner_north_mas: float


@dataclass(frozen=True)
class FrameMember:
    """An association's part of the result.

    Parameters
    ----------
    name, component : the association, and the number of its `FrameComponent`.
    correction : what brings its positions to the field's frame, at the middle of its footprint.
    covariance : (3, 3) of east (mas), north (mas), turn (deg); None where there is no external frame.
    error : predicted error in the external frame; None where there is none.
    relative_error : the same if the component's place as a whole were known.
    ties : number of ties that hold it.
    n_external : its external pairs in the solution.
    excluded : why it stands alone although it overlaps others; None for all others.
    """

    name: str
    component: int
    correction: SkyCorrection
    covariance: tuple[tuple[float, ...], ...] | None
    error: FrameError | None
    relative_error: FrameError
    ties: int
    n_external: int
    excluded: str | None = None


@dataclass(frozen=True)
class FrameComponent:
    """Associations that hang together by ties.

    Parameters
    ----------
    number, members : from 0, in the order of the first member's name.
    ra, dec : its middle, deg, to which ``error`` belongs.
    n_external : distinct external sources that agree, in effect.
    scatter_mas : of an external pair about the solution, per axis; None without any.
    error : of the component's place as a whole; None where it isn't on the external frame.
    cause : why it isn't; None where it is.
    """

    number: int
    members: tuple[str, ...]
    ra: float
    dec: float
    n_external: float
    scatter_mas: float | None
    error: FrameError | None
    cause: str | None = None


@dataclass(frozen=True)
class Tie:
    """A measured tie. Offsets are first minus second, east and north, mas, at the middle of the common sources.

    ``error_mas`` is that of the tie's own offset; ``rotation_after_deg`` is the turn that is left.
    """

    first: str
    second: str
    n: int
    chance: float
    scatter_mas: float
    error_mas: tuple[float, float]
    before_mas: tuple[float, float]
    after_mas: tuple[float, float]
    rotation_before_deg: float
    rotation_after_deg: float


@dataclass(frozen=True)
class RefusedTie:
    """A tie, or an external set (``second`` is ``external``), that isn't in the solution, with its cause."""

    first: str
    second: str
    cause: str
    text: str


@dataclass(frozen=True)
class FrameSolution:
    """The field's frame, in the order of names."""

    members: tuple[FrameMember, ...]
    components: tuple[FrameComponent, ...]
    ties: tuple[Tie, ...]
    refused: tuple[RefusedTie, ...]

    def of(self, name: str) -> FrameMember:
        """One association's part; `KeyError` where it wasn't given."""
        return {m.name: m for m in self.members}[name]

    def to_json(self) -> str:
        """Serialise; `from_json` gives an equal result back."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> FrameSolution:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        return cls(
            tuple(_member_of(m) for m in raw["members"]),
            tuple(
                FrameComponent(**c | {"members": tuple(c["members"]), "error": _error_of(c["error"])})
                for c in raw["components"]
            ),
            tuple(
                Tie(**t | {key: tuple(t[key]) for key in ("error_mas", "before_mas", "after_mas")}) for t in raw["ties"]
            ),
            tuple(RefusedTie(**r) for r in raw["refused"]),
        )


def _error_of(raw: dict[str, float] | None) -> FrameError | None:
    return FrameError(**raw) if raw else None


def _member_of(raw: dict[str, Any]) -> FrameMember:
    covariance = raw["covariance"]
    return FrameMember(
        **raw
        | {
            "correction": SkyCorrection(**raw["correction"]),
            "covariance": tuple(map(tuple, covariance)) if covariance else None,
            "error": _error_of(raw["error"]),
            "relative_error": FrameError(**raw["relative_error"]),
        }
    )
