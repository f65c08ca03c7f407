"""Rows and files of a small archive, for the tests of the local MAST server and of what talks to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from panoramic.provenance import digest_file

NAME = "jw02514162001_03201_00001_nrcblong_rate.fits"
SHAPE = (256, 256)  # larger than a few chunks of a transfer
PAGE = 10
TOKEN = "secret-of-a-test"  # noqa: S105
FUTURE = 99000.0  # MJD


def exposure_bytes(planes: tuple[str, ...] = ("SCI", "ERR", "DQ"), **changed: Any) -> bytes:
    primary = {
        "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCBLONG", "CHANNEL": "LONG", "MODULE": "B",
        "FILTER": "F444W", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE", "SUBARRAY": "FULL", "DATE-OBS": "2025-06-01",
        "TIME-OBS": "01:02:03.4", "EXPSTART": 60827.0431, "EFFEXPTM": 1073.7, "CAL_VER": "1.16.1",
    }  # fmt: skip
    science = dict.fromkeys(("RA_REF", "DEC_REF", "ROLL_REF", "V2_REF", "V3_REF", "V3I_YANG"), 1.0) | {"VPARITY": -1}
    primary.update(changed)
    hdus: list[Any] = [fits.PrimaryHDU(header=fits.Header({k: v for k, v in primary.items() if v is not None}))]
    for plane in planes:
        data = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
        hdus.append(fits.ImageHDU(data, header=fits.Header(science) if plane == "SCI" else None, name=plane))
    stream = io.BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


def rows(n: int, program: int = 2514, **changed: Any) -> list[dict[str, Any]]:
    return [
        {
            "ArchiveFileID": 1000 * program + k, "filename": f"jw{program:05d}001001_03201_{k + 1:05d}_nrcb1_cal.fits",
            "program": str(program), "productLevel": "2b" if k % 3 else "2a", "checksum": f"{k:032x}",
            "fileSize": 117573120, "ingestCompletionDate_mjd": 61000.0 + k, "obslabel": "", "cont_id": -999,
            "s_region": None, "isRestricted": False, "publicReleaseDate_mjd": 60000.5,
        } | changed
        for k in range(n)
    ]  # fmt: skip


def rate_name(k: int) -> str:
    """The count rate file of the k-th row."""
    return rows(k + 1)[k]["filename"].replace("_cal", "_rate")


def known(data: bytes, tmp_path: Path) -> tuple[int, str]:
    (tmp_path / "original").write_bytes(data)
    return len(data), digest_file(tmp_path / "original", "md5")


def no_part_left(folder: Path) -> bool:
    """Whether neither a file nor a half one is in the folder of downloads."""
    return not [p for p in folder.rglob("*") if p.name.endswith((".part", ".tag", ".fits"))]
