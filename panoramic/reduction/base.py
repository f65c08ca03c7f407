"""The contract between a reduction engine and the rest of the house.

Put here the protocol and the typed result that every engine returns. Keep out whatever only one engine needs.

Products of an association
--------------------------
Every engine leaves in the association's folder:

``{dataset}_rate.fits``
    One calibrated exposure. Planes, all of the detector's shape (2048, 2048):

    - ``SCI`` float32, MJy/sr, flat-fielded, background-subtracted, with the *aligned* WCS (TAN-SIP) in its header;
    - ``ERR`` float32, MJy/sr, total standard deviation, sources included;
    - ``WHT`` float32, (MJy/sr)^-2, inverse variance of read noise and background alone (a source's own noise in a
      weight distorts star profiles); 0 where the pixel must not be used;
    - ``DQ`` uint32, JWST's bits: DO_NOT_USE (1) wherever ``WHT`` is 0, OUTLIER (16) for what differs between dithers.

    The primary header keeps the archive's own keywords and gains the provenance, and the correction of the archive's
    pointing (`Pointing`) where the engine tells it: PNTDRA and PNTDDEC, mas to the east and north, PNTROLL, deg.
``{association}_drz_sci.fits``, ``{association}_drz_wht.fits``
    The association's own drizzled image (MJy/sr) and weight ((MJy/sr)^-2).
``{association}.cat.ecsv``
    Its catalogue: the columns of `CATALOG_COLUMNS`.
``{association}.log``
    All that the engine printed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CATALOG_COLUMNS = {
    "id": "running number",
    "ra": "deg, ICRS",
    "dec": "deg, ICRS",
    "x": "0-based pixel of the association's image",
    "y": "0-based pixel of the association's image",
    "flux": "uJy, in an aperture of 0.36 arcsec radius",
    "flux_error": "uJy",
    "mag": "AB, of MAG_AUTO where the engine has one, else of the aperture",
    "flux_radius": "half-light radius, pixels of the association's image",
    "flags": "SExtractor's bits; 0 is clean",
}


@dataclass(frozen=True)
class ExposureInput:
    """One exposure that an engine is to reduce.

    Parameters
    ----------
    dataset : file stem without product suffix, e.g. ``jw02514162001_03201_00003_nrca4``.
    path : the archive's ``_rate`` file. The engine copies it; it never writes to it.
    """

    dataset: str
    path: Path


@dataclass(frozen=True)
class CalibrationSetup:
    """Where an engine finds reference files: nothing of it is read from the process's own environment.

    Parameters
    ----------
    crds_path : the CRDS cache (``config/``, ``mappings/``, ``references/``).
    crds_context : the pipeline mapping, e.g. ``jwst_1303.pmap``.
    crds_server_url : ``https://jwst-serverless.stsci.edu`` is CRDS's own offline mode.
    grizli_path : grizli's configuration folder (wisp templates in ``CONF/NircamWisp``), if there is one.
    """

    crds_path: Path
    crds_context: str
    crds_server_url: str = "https://jwst-serverless.stsci.edu"
    grizli_path: Path | None = None


@dataclass(frozen=True)
class ReferenceSources:
    """The reference catalogue that an association is aligned to.

    Parameters
    ----------
    name : ``LS_DR9``, ``GAIA``, ... or ``own`` for the survey's own reference.
    ra, dec : deg, ICRS, at the epoch of the exposures, shape (N,).
    mag : AB magnitude, shape (N,); NaN where unknown.
    error_mas : stated error per axis, shape (N,); NaN where unknown.
    kind : ``external`` or ``own``; the gates are tighter for our own.
    """

    name: str
    ra: np.ndarray
    dec: np.ndarray
    mag: np.ndarray
    error_mas: np.ndarray
    kind: str = "external"

    def __len__(self) -> int:
        return len(self.ra)


@dataclass(frozen=True)
class Pointing:
    """A correction of an exposure's pointing: what brings the archive's positions to the aligned ones.

    A rigid rotation of the sphere: first by ``roll_deg`` about the detector's centre, then along the great circle of
    the shift (`panoramic.pointing` has the rotation).

    Parameters
    ----------
    ra, dec : the detector's reference point (its centre) in the archive's own pointing, deg.
    shift_mas : (east, north) to add to the archive's positions there.
    roll_deg : positive from north to east.
    """

    ra: float
    dec: float
    shift_mas: tuple[float, float]
    roll_deg: float


@dataclass(frozen=True)
class PointingPrior:
    """What is known of an exposure's pointing error before the fit, from other detectors of the same exposure.

    Parameters
    ----------
    dataset : the exposure.
    shift_mas : (east, north) to add to the header's positions.
    roll_deg : rotation about the detector's centre, positive from north to east.
    covariance : (3, 3), of (east mas, north mas, roll deg).
    basis : ``exposure`` where other detectors of this very exposure tell, ``visit`` where only other exposures do.
    sources : the datasets that it comes from.
    left_out : datasets that disagreed with them, and were not used.
    """

    dataset: str
    shift_mas: tuple[float, float]
    roll_deg: float
    covariance: tuple[tuple[float, ...], ...]
    basis: str = "exposure"
    sources: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class RelativeFit:
    """How one exposure was tied to the others of its association.

    ``role`` is one of ``anchor`` (the exposure that the others were matched to: judged by their fits, never by its
    own row), ``matched`` or ``rejected`` (the engine gave up; its numbers mean nothing), ``single`` (nothing to match).
    Shifts and RMS per axis are in pixels of the detector.
    """

    dataset: str
    role: str
    dx: float = 0.0
    dy: float = 0.0
    rotation_deg: float = 0.0
    scale: float = 1.0
    n: int = 0
    rms_x: float = float("nan")
    rms_y: float = float("nan")


@dataclass(frozen=True)
class AbsoluteFit:
    """How the association was tied to its reference. Shifts and RMS (per axis) in pixels of ``pixel_scale_mas``.

    ``reported_rms`` is the number of the engine's own log, by its own definition, where that is another one.
    """

    reference: str
    kind: str
    dx: float
    dy: float
    rotation_deg: float
    scale: float
    n: int
    rms: float
    pixel_scale_mas: float
    reported_rms: float | None = None


@dataclass(frozen=True)
class Degradation:
    """Something that was missing while the work went on without it.

    Parameters
    ----------
    product : dataset or association that lacks it.
    what : short stable name of the thing, e.g. ``wisp_template``, ``region_mask``, ``photometric_correction``.
    why : what was seen (the engine's own line, the service's error).
    intended : True where the survey file switched the service off on purpose; then nobody is warned.
    """

    product: str
    what: str
    why: str
    intended: bool = False


@dataclass(frozen=True)
class CalibratedExposure:
    """One calibrated exposure: file name inside the association's folder, SHA-256 of its bytes, size in bytes.

    ``pointing`` is the correction that the engine's solution means, relative to the archive's own pointing, whatever
    prior there was; None where the engine didn't tell it.
    """

    dataset: str
    filename: str
    sha256: str
    size: int
    pointing: Pointing | None = None


@dataclass(frozen=True)
class ReductionResult:
    """The whole story of one association's reduction.

    Paths are file names inside the association's folder, so that the folder can be moved. ``excluded`` names each
    exposure that is not in the products, with the cause.
    """

    association: str
    engine: str
    engine_version: str
    exposures: tuple[CalibratedExposure, ...]
    relative: tuple[RelativeFit, ...]
    absolute: AbsoluteFit | None
    image: str | None
    weight: str | None
    catalog: str | None
    n_sources: int
    log: str
    pixel_scale_mas: float
    degradations: tuple[Degradation, ...] = ()
    excluded: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_mib: float = 0.0

    def to_json(self) -> str:
        """Serialise; `from_json` gives an equal result back."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ReductionResult:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        raw["exposures"] = tuple(_calibrated_exposure(e) for e in raw["exposures"])
        raw["relative"] = tuple(RelativeFit(**r) for r in raw["relative"])
        raw["absolute"] = AbsoluteFit(**raw["absolute"]) if raw["absolute"] else None
        raw["degradations"] = tuple(Degradation(**d) for d in raw["degradations"])
        return cls(**raw)


def _calibrated_exposure(raw: dict[str, Any]) -> CalibratedExposure:
    pointing = raw.pop("pointing", None)
    if pointing is not None:
        pointing = Pointing(**{**pointing, "shift_mas": tuple(pointing["shift_mas"])})
    return CalibratedExposure(**raw, pointing=pointing)


class Reduction(Protocol):
    """An engine that reduces one association (one program, visit, filter, pupil, detector)."""

    name: str
    version: str

    def reduce(
        self,
        association: str,
        exposures: tuple[ExposureInput, ...],
        reference: ReferenceSources | None,
        pointing_priors: tuple[PointingPrior, ...],
        folder: Path,
    ) -> ReductionResult:
        """Reduce ``exposures`` into the empty or absent ``folder``.

        The folder is filled only when everything in it has been verified; a failure leaves it absent. With
        ``reference`` None the products stay in the telescope's frame, as far as ``pointing_priors`` don't move it.
        An exposure without a prior starts from its header's pointing, whatever priors the others have.

        Raises
        ------
        EngineKilledError, EngineFailedError, NoUsableExposureError
            With the cause; the calling process is unharmed.
        """
        ...
