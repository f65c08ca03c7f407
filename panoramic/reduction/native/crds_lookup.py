"""Asks CRDS which reference files it selects, whatever the process's environment says of CRDS.

Put here what concerns the crds package. Keep out what is done with a reference file (`references.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from panoramic.errors import CalibrationError
from panoramic.reduction.base import CalibrationSetup
from panoramic.reduction.rate_files import RateHeader

NOT_APPLICABLE = "N/A"
_OFFLINE = "https://jwst-serverless.stsci.edu"  # crds's own mode without a connection


@contextmanager
def crds_settings(calibration: CalibrationSetup) -> Iterator[None]:
    """Crds with the given cache and context alone, off the network; afterwards its variables are as before."""
    from crds.client import api
    from crds.core import config, utils

    before = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("CRDS_")}
    server, mode, parser = api.get_crds_server(), config.CRDS_REF_SUBDIR_MODE, config.CRDS_INI_PARSER
    root = Path(calibration.crds_path).absolute()
    os.environ |= {
        "CRDS_PATH": str(root),
        "CRDS_SERVER_URL": _OFFLINE,
        "CRDS_READONLY_CACHE": "1",
        "CRDS_OBSERVATORY": "jwst",
        "CRDS_CONTEXT": calibration.crds_context,
        # a user's own settings file must not count either
        "CRDS_INI_FILE": str(root / "config" / "no_settings_file.ini"),
    }
    config.CRDS_REF_SUBDIR_MODE, config.CRDS_INI_PARSER = "None", None
    utils.clear_function_caches()
    api.set_crds_server(_OFFLINE)
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith("CRDS_")]:
            del os.environ[key]
        os.environ |= before
        config.CRDS_REF_SUBDIR_MODE, config.CRDS_INI_PARSER = mode, parser
        utils.clear_function_caches()
        api.set_crds_server(server)


def select_files(
    headers: Sequence[RateHeader], calibration: CalibrationSetup, kinds: Sequence[str]
) -> list[dict[str, Path | None]]:
    """Which file CRDS selects of each type for each exposure; None where the type does not apply to its mode.

    All is asked at once, of the cache alone: what a server has is fetched before an engine starts.

    Raises
    ------
    CalibrationError
        The context can't be used; or, naming the type: no rule matches, or the file is not in the cache.
    """
    from crds.core import config, heavy_client
    from crds.core.exceptions import CrdsError

    context = calibration.crds_context
    selections: list[dict[str, Path | None]] = []
    with crds_settings(calibration):
        for header in headers:
            parameters = _parameters(header)
            try:
                # crds ends its process over some faults of a cache
                names = heavy_client.hv_best_references(context, parameters, list(kinds))
            except (CrdsError, OSError, ValueError, KeyError, AssertionError, SystemExit) as error:
                raise CalibrationError(
                    f"CRDS could not use context {context} of {calibration.crds_path}: {type(error).__name__}: {error}"
                ) from error
            selection: dict[str, Path | None] = {}
            for kind in kinds:
                name = str(names.get(kind, NOT_APPLICABLE))
                what = f"{kind} for {header.detector} {header.filter} {header.pupil}"
                if name.upper() in (NOT_APPLICABLE, "NOT FOUND N/A"):
                    selection[kind] = None
                    continue
                if name.upper().startswith("NOT FOUND"):
                    reason = name[len("NOT FOUND") :].strip() or "no rule matches"
                    raise CalibrationError(f"no {what} in context {context}: {reason}")
                path = Path(config.locate_file(name, "jwst"))
                if not path.is_file():
                    raise CalibrationError(f"no {what}: context {context} selects {name}, but {path} is not there")
                selection[kind] = path
            selections.append(selection)
    return selections


def _parameters(header: RateHeader) -> dict[str, str]:
    """What the rules of NIRCam imaging ask of an exposure."""
    return {
        "META.TELESCOPE": "JWST",
        "META.INSTRUMENT.NAME": "NIRCAM",
        "META.INSTRUMENT.DETECTOR": header.detector,
        "META.INSTRUMENT.CHANNEL": header.channel,
        "META.INSTRUMENT.MODULE": header.module,
        "META.INSTRUMENT.FILTER": header.filter,
        "META.INSTRUMENT.PUPIL": header.pupil,
        "META.EXPOSURE.TYPE": header.exp_type,
        "META.OBSERVATION.DATE": header.date,
        "META.OBSERVATION.TIME": header.time,
    }
