"""What an independent measurement of an association's products says, in numbers that are stored and judged.

Put here the typed record alone. Keep out how it is measured (``verification.py``), what it must reach
(``alignment.py``) and how it is drawn (``alignment_plots.py``).

All offsets are catalogue minus reference in mas, positive to the east (a great circle's angle) and to the north. Pixels
are those of the detector.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["relative", "absolute"]

METHOD = (
    "windowed centroids of the calibrated exposures; pairs within the search radius weighed against chance (scan "
    "statistic of a Poisson plane), then shift and rotation of a Gaussian on a uniform background (expectation "
    "maximisation)"
)


@dataclass(frozen=True)
class Tile:
    """Offsets of the matched sources in one tile of the detector, nothing taken out.

    ``column`` and ``row`` count from 0 in x and y; ``dra``, ``ddec`` are medians, ``err_ra``, ``err_dec`` errors of
    these.
    """

    column: int
    row: int
    n: int
    dra: float
    ddec: float
    err_ra: float
    err_dec: float


@dataclass(frozen=True)
class Offset:
    """One measured offset: of an exposure against the others, of an exposure or an association against a reference.

    Parameters
    ----------
    subject : dataset or association.
    kind : ``relative``, against the other exposures of the association, or ``absolute``.
    reference : the catalogue's name, ``own``, or ``other exposures``.
    n_sources, n_reference : what there was to match, in the common area.
    cause, text : why there is no number (`alignment_solution.Cause`), in a word and in a sentence; empty where
        there is one.
    ra, dec : the centre, deg, to which the shift belongs.
    n : matched sources.
    dra, ddec, err_ra, err_dec : shift at the centre and its predicted errors, mas.
    corner_err_ra, corner_err_dec : predicted errors at the corner where they are largest, mas.
    scatter_ra, scatter_dec : of one pair about the solution, mas.
    median_ra, median_dec : median offset of the pairs, mas.
    rotation_deg, rotation_err_deg : positive from north to east.
    rotation_mas, scale_mas, scale_err_mas : what rotation and scale move the farthest corner by.
    chance, contrast : expected number of chance solutions; height over the next solution.
    pixel_scale_mas : of the detector, so that everything can be told in pixels.
    with_prior : whether the visit's other detectors helped.
    tiles : by tile of the detector.
    """

    subject: str
    kind: Kind
    reference: str
    n_sources: int
    n_reference: int
    pixel_scale_mas: float
    cause: str = ""
    text: str = ""
    ra: float | None = None
    dec: float | None = None
    n: int = 0
    dra: float | None = None
    ddec: float | None = None
    err_ra: float | None = None
    err_dec: float | None = None
    corner_err_ra: float | None = None
    corner_err_dec: float | None = None
    scatter_ra: float | None = None
    scatter_dec: float | None = None
    median_ra: float | None = None
    median_dec: float | None = None
    rotation_deg: float | None = None
    rotation_err_deg: float | None = None
    rotation_mas: float | None = None
    scale_mas: float | None = None
    scale_err_mas: float | None = None
    chance: float | None = None
    contrast: float | None = None
    with_prior: bool = False
    tiles: tuple[Tile, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether there is a number."""
        return self.dra is not None


@dataclass(frozen=True)
class Measurement:
    """All that was measured of an association's products.

    Parameters
    ----------
    association : its name.
    reference, reference_kind : what the absolute offsets are against; empty where there was none.
    absolute : of the whole association; None where there is no reference.
    exposures : of each exposure, relative (where there are others) and absolute (where there is a reference).
    method : how, in a sentence.
    """

    association: str
    reference: str
    reference_kind: str
    absolute: Offset | None
    exposures: tuple[Offset, ...]
    method: str = METHOD

    def of(self, kind: Kind) -> tuple[Offset, ...]:
        """The exposures' offsets of one kind."""
        return tuple(o for o in self.exposures if o.kind == kind)

    def to_json(self) -> str:
        """Serialise; `from_json` gives an equal measurement back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        raw["absolute"] = _offset(raw["absolute"]) if raw["absolute"] else None
        raw["exposures"] = tuple(_offset(o) for o in raw["exposures"])
        return cls(**raw)


def _offset(raw: dict[str, Any]) -> Offset:
    raw["tiles"] = tuple(Tile(**t) for t in raw["tiles"])
    return Offset(**raw)
