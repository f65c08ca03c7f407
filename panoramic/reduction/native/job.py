"""What the native engine's child process is given: the JSON file that `engine.py` writes, read back.

Put here its types. Keep out what is done with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoramic.reduction.base import CalibrationSetup, PointingPrior, ReferenceSources
from panoramic.reduction.native.parameters import NativeParameters
from panoramic.reduction.rate_files import RateHeader


@dataclass(frozen=True)
class Job:
    """What the child is given, from the JSON file that the parent writes."""

    association: str
    headers: tuple[RateHeader, ...]
    reference: ReferenceSources | None
    priors: tuple[PointingPrior, ...]
    parameters: NativeParameters
    calibration: CalibrationSetup
    services_off: tuple[str, ...]
    provenance: Mapping[str, str]
    products: Path
    cache: Path

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Job:
        """Read what `engine.py` wrote."""
        calibration, reference = dict(raw["calibration"]), raw["reference"]
        for key in ("crds_path", "grizli_path"):
            calibration[key] = calibration[key] and Path(calibration[key])
        if reference is not None:
            arrays = {key: np.asarray(reference[key], float) for key in ("ra", "dec", "mag", "error_mas")}
            reference = ReferenceSources(reference["name"], **arrays, kind=reference["kind"])
        return cls(
            association=raw["association"],
            headers=tuple(RateHeader(**{**h, "path": Path(h["path"])}) for h in raw["headers"]),
            reference=reference,
            priors=tuple(_prior(p) for p in raw["priors"]),
            parameters=NativeParameters.model_validate(raw["parameters"]),
            calibration=CalibrationSetup(**calibration),
            services_off=tuple(raw["services_off"]),
            provenance=raw["provenance"],
            products=Path(raw["products"]),
            cache=Path(raw["cache"]),
        )


def _prior(raw: Mapping[str, Any]) -> PointingPrior:
    lists = {key: tuple(raw[key]) for key in ("shift_mas", "sources", "left_out")}
    return PointingPrior(**{**raw, **lists, "covariance": tuple(tuple(row) for row in raw["covariance"])})
