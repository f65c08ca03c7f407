"""What is known of a finished mosaic, as typed values that go through JSON unchanged.

Put here results. Keep out how they are obtained.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MosaicFile:
    """One plane: ``sci``, ``wht`` or ``exp``; file name inside the mosaic's folder, SHA-256, size in bytes."""

    plane: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True)
class MosaicExposure:
    """One exposure's part in a mosaic.

    Parameters
    ----------
    dataset, association, sha256 : which file it was.
    seconds : effective exposure time.
    pixels : output pixels that its usable pixels reached.
    sky : constant that background matching subtracted, MJy/sr.
    rejected : part of its usable pixels that differ from the other exposures.
    """

    dataset: str
    association: str
    sha256: str
    seconds: float
    pixels: int
    sky: float
    rejected: float


@dataclass(frozen=True)
class Depth:
    """How deep a mosaic is, from apertures on empty sky.

    Parameters
    ----------
    magnitude : AB magnitude of 5 sigma in an aperture of ``radius_arcsec``, no aperture correction; at median weight.
    error_ratio : scatter of empty apertures over what the weights predict; 1 where the weights are right.
    n : apertures that it rests on.
    """

    magnitude: float
    error_ratio: float
    n: int
    radius_arcsec: float


@dataclass(frozen=True)
class MosaicResult:
    """The whole story of one mosaic. File names are inside its folder, so that the folder can be moved.

    ``corners`` are the sky positions (deg) of the rectangle's corners, counter-clockwise on the pixel plane from pixel
    (0, 0); ``tiles`` the tiles that hold data; ``peak_mib`` the process's own peak, earlier work included.
    """

    stem: str
    channel: str
    files: tuple[MosaicFile, ...]
    exposures: tuple[MosaicExposure, ...]
    tiles: tuple[tuple[int, int], ...]
    shape: tuple[int, int]
    pixel_scale_mas: float
    corners: tuple[tuple[float, float], ...]
    area_arcmin2: float
    median_seconds: float
    depth: Depth | None
    single_fraction: float
    notes: tuple[str, ...] = ()
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0

    def filename(self, plane: str) -> str:
        """File name of a plane (``sci``, ``wht``, ``exp``)."""
        return next(f.filename for f in self.files if f.plane == plane)

    def to_json(self) -> str:
        """Serialise; `from_json` gives an equal result back."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> MosaicResult:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        raw["files"] = tuple(MosaicFile(**f) for f in raw["files"])
        raw["exposures"] = tuple(MosaicExposure(**e) for e in raw["exposures"])
        raw["tiles"] = tuple((int(t[0]), int(t[1])) for t in raw["tiles"])
        raw["shape"] = int(raw["shape"][0]), int(raw["shape"][1])
        raw["corners"] = tuple((float(c[0]), float(c[1])) for c in raw["corners"])
        raw["depth"] = Depth(**raw["depth"]) if raw["depth"] else None
        raw["notes"] = tuple(raw["notes"])
        return cls(**raw)
