"""An engine whose solution is moved after its fit: the fault ``wrong_success``, for tests of what must catch it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from panoramic.provenance import sha256_of
from panoramic.reduction.base import (
    CalibratedExposure,
    ExposureInput,
    PointingPrior,
    Reduction,
    ReductionResult,
    ReferenceSources,
)
from panoramic.simulate.faults import move_wcs, wrong_success
from panoramic.simulate.program import Simulation


class EngineWithWrongSuccess:
    """Another engine, whose products are moved where the simulation declares it; its log says nothing of it."""

    def __init__(self, engine: Reduction, simulation: Simulation) -> None:
        self._engine, self._simulation = engine, simulation
        self.name, self.version = engine.name, engine.version

    def reduce(
        self,
        association: str,
        exposures: tuple[ExposureInput, ...],
        reference: ReferenceSources | None,
        pointing_priors: tuple[PointingPrior, ...],
        folder: Path,
    ) -> ReductionResult:
        """Reduce with the engine, then move what it made."""
        result = self._engine.reduce(association, exposures, reference, pointing_priors, folder)
        shift = wrong_success(self._simulation, association)
        if shift is None:
            return result
        move_wcs(sorted(folder.iterdir()), *shift)
        return dataclasses.replace(result, exposures=tuple(_moved(e, folder, shift) for e in result.exposures))


def _moved(exposure: CalibratedExposure, folder: Path, shift_arcsec: tuple[float, float]) -> CalibratedExposure:
    """The exposure as the engine would tell of it, had it found that solution."""
    path, pointing = folder / exposure.filename, exposure.pointing
    if pointing is not None:
        east, north = (a + 1000 * b for a, b in zip(pointing.shift_mas, shift_arcsec, strict=True))
        pointing = dataclasses.replace(pointing, shift_mas=(east, north))
    return dataclasses.replace(exposure, sha256=sha256_of(path), size=path.stat().st_size, pointing=pointing)


def with_declared_faults(engine: Reduction, simulation: Simulation) -> Reduction:
    """The engine, or the engine with its solutions moved where the simulation declares ``wrong_success``."""
    from panoramic.simulate.program import WrongSuccess

    if any(isinstance(fault, WrongSuccess) for fault in simulation.faults):
        return EngineWithWrongSuccess(engine, simulation)
    return engine
