"""Fills the work folder of one reduction by grizli: copies, links, the reference, the job that the child reads.

Put here everything that grizli is given. Keep out running it and what it gives back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from panoramic import __version__
from panoramic.errors import InputError
from panoramic.reduction.base import CalibrationSetup, PointingPrior, ReferenceSources
from panoramic.reduction.childprocess import base_environment
from panoramic.reduction.grizli_parameters import GrizliParameters
from panoramic.reduction.rate_files import RateHeader
from panoramic.reduction.workfolder import storage_error

_GRIZLI_NAME = re.compile(r"^jw0\d{10}_\w+_nrc(a[1-4]|b[1-4]|along|blong)$")
_WRAP_DEG = 2.0


@dataclass(frozen=True)
class GrizliJob:
    """What one association's reduction needs, and where it lies in the work folder.

    ``headers`` are in order of time: grizli aligns the exposures to the first.

    Raises
    ------
    InputError
        A pointing prior is of no exposure of the association, is given twice, or is no number.
    """

    folder: Path
    association: str
    headers: tuple[RateHeader, ...]
    reference: ReferenceSources | None
    parameters: GrizliParameters
    calibration: CalibrationSetup
    services_off: tuple[str, ...]
    engine_version: str
    priors: tuple[PointingPrior, ...] = ()

    def __post_init__(self) -> None:
        named, datasets = [p.dataset for p in self.priors], {h.dataset for h in self.headers}
        strange = sorted(set(named) - datasets)
        if strange:
            raise InputError(f"{self.association}: pointing priors of exposures that it has not: {', '.join(strange)}")
        if len(set(named)) < len(named):
            raise InputError(f"{self.association}: an exposure has two pointing priors; give one")
        for prior in self.priors:
            if not np.isfinite([*prior.shift_mas, prior.roll_deg]).all():
                raise InputError(f"{self.association}: the pointing prior of {prior.dataset} is no number")

    @property
    def root(self) -> str:
        """Name of the association inside grizli, which reads filters from names and splits them at dashes."""
        return f"nircam-{self.headers[0].filter}-{self.headers[0].pupil}".lower()

    @cached_property
    def aliases(self) -> dict[str, str]:
        """The name that grizli sees of each dataset: it downloads what isn't called like a JWST file."""
        return {
            h.dataset: h.dataset
            if _GRIZLI_NAME.match(h.dataset)
            else f"jw00000001001_02101_{i + 1:05d}_{h.detector.lower()}"
            for i, h in enumerate(self.headers)
        }

    @property
    def products(self) -> Path:
        """Where the child writes the files of the contract."""
        return self.folder / "products"

    @property
    def log(self) -> Path:
        """All that the child printed."""
        return self.folder / f"{self.association}.log"

    @property
    def outcome(self) -> Path:
        """How the child says that it ended."""
        return self.folder / "outcome.json"

    @property
    def file(self) -> Path:
        """The job as the child reads it."""
        return self.folder / "job.json"

    @property
    def prep(self) -> Path:
        """Folder where grizli leaves its own products."""
        return self.folder / self.root / "Prep"

    @property
    def ra_offset(self) -> float:
        """Degrees by which the sky is turned about its pole: grizli's polygons break where RA passes from 360 to 0."""
        near_zero = any(abs((h.ra + 180) % 360 - 180) < _WRAP_DEG / np.cos(np.radians(h.dec)) for h in self.headers)
        # to the far side: close to a pole a detector spans many degrees, wherever it is
        mean = np.angle(np.exp(1j * np.radians([h.ra for h in self.headers])).mean(), deg=True)
        return round(180.0 - float(mean)) % 360.0 if near_zero else 0.0

    def write(self) -> None:
        """Copy the rate files, link grizli's configuration, write reference and job.

        Raises
        ------
        StorageError, DiskFullError
        """
        raw = self.folder / self.root / "RAW"
        try:
            home = [self.folder / "home" / name for name in ("tmp", "cache", "config", "matplotlib")]
            for path in (raw, self.folder / "iref", self.folder / "jref", *home):
                path.mkdir(parents=True)
            self._link_configuration()
            for header in self.headers:
                copy = raw / f"{self.aliases[header.dataset]}_rate.fits"
                shutil.copyfile(header.path, copy)
                copy.chmod(0o644)
            self.file.write_text(json.dumps(self._content()))
        except OSError as error:
            raise storage_error("the work folder can't be filled", error) from error

    def environment(self) -> dict[str, str]:
        """All that the child's process sees of the world."""
        return {
            **base_environment(self.folder / "home"),
            "CRDS_PATH": str(Path(self.calibration.crds_path).absolute()),
            "CRDS_CONTEXT": self.calibration.crds_context,
            "CRDS_SERVER_URL": self.calibration.crds_server_url,
            "CRDS_READONLY_CACHE": "1",
            "GRIZLI": str(self.folder / "grizli"),
            "iref": f"{self.folder}/iref/",
            "jref": f"{self.folder}/jref/",
            # without it each look for cloud credentials waits for an address that doesn't answer
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _link_configuration(self) -> None:
        """Make grizli's folder of links: grizli writes into the one that it is given."""
        conf = self.folder / "grizli" / "CONF"
        conf.mkdir(parents=True)
        given = self.calibration.grizli_path
        for name in ("NircamWisp", "NircamSkyFlat"):
            (conf / name).mkdir()
            source = Path(given).absolute() / "CONF" / name if given else None
            for path in sorted(source.glob("*.fits")) if source and source.is_dir() else ():
                (conf / name / path.name).symlink_to(path)

    def _write_reference(self) -> str | None:
        """The two columns that grizli reads, by brightness; None where there is no reference."""
        if self.reference is None:
            return None
        ra = (np.asarray(self.reference.ra, float) + self.ra_offset) % 360
        dec = np.asarray(self.reference.dec, float)
        # grizli's matcher keeps the first 200 rows of a longer list; NaN magnitudes come last
        order = np.argsort(np.asarray(self.reference.mag, float), kind="stable")
        order = order[(np.isfinite(ra) & np.isfinite(dec))[order]]
        if not order.size:
            return None
        path = self.folder / "reference.radec"
        path.write_text("".join(f"{a:.9f} {d:.9f}\n" for a, d in zip(ra[order], dec[order], strict=True)))
        return str(path)

    def _content(self) -> dict[str, Any]:
        first = self.headers[0]
        prep_args = self.parameters.prep_args()
        reference = self._write_reference()
        if reference is None:
            # told that the answer is "no shift", grizli leaves the exposures where the telescope put them
            prep_args |= {"align_use_guess": True, "align_guess": [0.0, 0.0, 0.0, 1.0]}
        preprocess = {
            "min_overlap": 0.2, "master_radec": reference or False, "parent_radec": None, "use_visit": True,
            "make_combined": False, "skip_single_optical_visits": False, "use_first_radec": False,
            "skip_imaging": False, "clean": False,
        }  # fmt: skip
        return {
            "parent_pid": os.getpid(),
            "association": self.association,
            "root": self.root,
            "work": str(self.folder),
            "products": str(self.products),
            "outcome": str(self.outcome),
            "exposures": [self._exposure(h) for h in self.headers],
            "reference": reference,
            "ra_offset": self.ra_offset,
            "prep_args": prep_args,
            # clean would delete the weight image; the visit is written by the child
            "other_args": {"preprocess_args": preprocess, "run_parse_visits": False, "min_gaia_count": 1 << 30},
            "services_off": list(self.services_off),
            "crds_parameters": {
                "meta.instrument.name": "NIRCAM",
                "meta.instrument.detector": first.detector,
                "meta.instrument.channel": first.channel,
                "meta.instrument.module": first.module,
                "meta.instrument.filter": first.filter,
                "meta.instrument.pupil": first.pupil,
                "meta.exposure.type": first.exp_type,
                "meta.observation.date": first.date,
                "meta.observation.time": first.time,
            },
            "provenance": {
                "ENGINE": "grizli",
                "ENGVER": self.engine_version,
                "CODEVER": __version__,
                "ASSOC": self.association,
                "REFCAT": self.reference.name if reference and self.reference else "none",
                "CRDS_CTX": self.calibration.crds_context,
            },
        }

    def _exposure(self, header: RateHeader) -> dict[str, Any]:
        return {
            "dataset": header.dataset,
            "alias": self.aliases[header.dataset],
            "source": str(Path(header.path).absolute()),
            "filter": f"{header.filter}-{header.pupil}",
            "detector": header.detector,
            "t_min": header.start,
            "t_max": header.end,
            "exptime": header.exptime,
            "prior": next((asdict(p) for p in self.priors if p.dataset == header.dataset), None),
        }
