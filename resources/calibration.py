"""Calibration: where the CRDS cache lies, which context counts, which reference files it selects.

Put here what concerns CRDS as a place and as a chooser. Keep out what is done with a reference file (``panoramic``).
crds itself runs in a child process with an environment of its own (`crds_lookup.py`).
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panoramic.errors import CalibrationError
from panoramic.provenance import digest_file, digest_of
from panoramic.reduction.base import CalibrationSetup
from resources.file_facts import FileFacts

SERVERLESS = "https://jwst-serverless.stsci.edu"
PUBLIC_SERVER = "https://jwst-crds.stsci.edu"
NOT_APPLICABLE = "N/A"
# what the route from a _rate file to an aligned exposure reads
REFERENCE_TYPES = ("flat", "photom", "area", "distortion", "filteroffset")
# CRDS rules of JWST name data model attributes; headers have keywords (stdatamodels' core schema)
PARAMETERS = {
    "TELESCOP": "META.TELESCOPE",
    "INSTRUME": "META.INSTRUMENT.NAME",
    "DETECTOR": "META.INSTRUMENT.DETECTOR",
    "CHANNEL": "META.INSTRUMENT.CHANNEL",
    "MODULE": "META.INSTRUMENT.MODULE",
    "FILTER": "META.INSTRUMENT.FILTER",
    "PUPIL": "META.INSTRUMENT.PUPIL",
    "CORONMSK": "META.INSTRUMENT.CORONAGRAPH",
    "EXP_TYPE": "META.EXPOSURE.TYPE",
    "READPATT": "META.EXPOSURE.READPATT",
    "SUBARRAY": "META.SUBARRAY.NAME",
    "DATE-OBS": "META.OBSERVATION.DATE",
    "TIME-OBS": "META.OBSERVATION.TIME",
}
NETWORK_VARIABLES = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
OFFLINE_TIMEOUT_S = 300.0
DOWNLOAD_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class ReferenceFile:
    """A reference file that CRDS selected: its name (or ``N/A``) and the SHA-256 of its bytes (empty for ``N/A``)."""

    name: str
    sha256: str


class Calibration:
    """A CRDS cache and the context that is used with it.

    Parameters
    ----------
    crds_path : the cache (``config/``, ``mappings/``, ``references/``).
    context : e.g. ``jwst_1303.pmap``; None takes ``operational_context`` of the cache's ``server_config``.
    server_url : `SERVERLESS`: only what the cache holds; a real server's address lets crds fill the cache.
    grizli_path : grizli's configuration folder, or None.
    pin : a file that keeps the context a server recommended when it was first asked, so that it does not change in
        the middle of a survey; delete it to ask again.
    cache : a folder for a small file of digests and selections, so that asking again costs milliseconds; None
        remembers nothing.
    """

    def __init__(
        self,
        crds_path: Path,
        context: str | None = None,
        server_url: str = SERVERLESS,
        grizli_path: Path | None = None,
        cache: Path | None = None,
        pin: Path | None = None,
    ) -> None:
        self.crds_path, self.server_url, self.grizli_path = Path(crds_path).absolute(), server_url, grizli_path
        self._asked_context, self._pin = context, pin
        self._facts = FileFacts(cache / "calibration.sqlite") if cache else None

    @property
    def is_offline(self) -> bool:
        """Whether nothing but the cache is used."""
        return "serverless" in self.server_url

    @property
    def context(self) -> str:
        """The pipeline mapping that counts.

        Raises
        ------
        CalibrationError
            There is no cache, no ``server_config`` to ask, or no such mapping in it; the server does not answer.
        """
        if self.is_offline and not self.crds_path.is_dir():
            raise CalibrationError(
                f"there is no CRDS cache at {self.crds_path}: put one there (config/, mappings/, references/), or set "
                "the CRDS server and let it be filled"
            )
        context = self._asked_context
        if not context:
            context = self._operational_context() if self.is_offline else self._recommended_context()
        if self.is_offline and not (self._mappings / context).is_file():
            there = sorted(p.name for p in self._mappings.glob("*.pmap")) if self._mappings.is_dir() else []
            known = f"; there is {', '.join(there[-5:])}" if there else ""
            raise CalibrationError(f"the CRDS cache {self.crds_path} has no mapping {context}{known}")
        return context

    def setup(self) -> CalibrationSetup:
        """What a reduction engine is told.

        Raises
        ------
        CalibrationError
        """
        return CalibrationSetup(self.crds_path, self.context, self.server_url, self.grizli_path)

    def selected_references(
        self, header_keywords: Mapping[str, Any], types: Sequence[str] = REFERENCE_TYPES
    ) -> dict[str, ReferenceFile]:
        """Which reference files CRDS selects for an exposure, by type.

        Parameters
        ----------
        header_keywords : header keywords (those of `PARAMETERS` are used) or data model names (``META.INSTRUMENT...``).

        Raises
        ------
        CalibrationError
            Names the type, the exposure's mode and what is missing: a rule, a mapping or a file.
        """
        return self.selected_references_of([header_keywords], types)[0]

    def selected_references_of(
        self, exposures: Sequence[Mapping[str, Any]], types: Sequence[str] = REFERENCE_TYPES
    ) -> list[dict[str, ReferenceFile]]:
        """`selected_references` of many exposures, with one question to crds.

        Raises
        ------
        CalibrationError
        """
        context = self.context
        parameters = [_parameters(exposure) for exposure in exposures]
        keys = [digest_of([context, self.server_url, sorted(types), p]) for p in parameters]
        state = self._mappings_state()
        answers: dict[str, dict[str, Any]] = {}
        for key in dict.fromkeys(keys):
            known = self._facts.get("crds", key, *state) if self._facts else None
            if known is not None and all(not v["path"] or Path(v["path"]).is_file() for v in known.values()):
                answers[key] = known
        asked = {key: p for key, p in zip(keys, parameters, strict=True) if key not in answers}
        if asked:
            new = dict(zip(asked, self._ask(context, list(asked.values()), list(types)), strict=True))
            answers.update(new)
            if self._facts:
                found = [(k, *state, v) for k, v in new.items() if not any(_absent(e["name"]) for e in v.values())]
                self._facts.put_many("crds", found)
        return [
            {kind: self._reference(kind, answers[key][kind], p, context) for kind in types}
            for key, p in zip(keys, parameters, strict=True)
        ]

    # --- inside -----------------------------------------------------------------------------

    @property
    def _mappings(self) -> Path:
        return self.crds_path / "mappings" / "jwst"

    def _operational_context(self) -> str:
        path = self.crds_path / "config" / "jwst" / "server_config"
        try:
            config = ast.literal_eval(path.read_text())
            return str(config["operational_context"])
        except FileNotFoundError as error:
            reason = "is not there"
            raise self._no_context(path, reason) from error
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError, KeyError, TypeError) as error:
            reason = f"can't be read ({type(error).__name__}: {error})"
            raise self._no_context(path, reason) from error

    def _recommended_context(self) -> str:
        """The context that the server recommends for the installed jwst package, asked once and kept."""
        if self._pin is not None and self._pin.is_file():
            return self._pin.read_text().strip()
        reply = self._talk({"context": ""})
        if "error" in reply:
            raise CalibrationError(
                f"no CRDS context: {self.server_url} does not say which ({reply['error']}); try again later, or set "
                "crds_context in the survey file"
            )
        context = str(reply["context"])
        if self._pin is not None:
            beside = self._pin.with_suffix(".tmp")
            beside.write_text(f"{context}\n")
            os.replace(beside, self._pin)
        return context

    @staticmethod
    def _no_context(path: Path, reason: str) -> CalibrationError:
        return CalibrationError(
            f"no CRDS context: {path} {reason}; set crds_context in the survey file, or mend the cache"
        )

    def _mappings_state(self) -> tuple[int, int]:
        """Two numbers that change when any mapping of the cache does."""
        if not self._mappings.is_dir():
            return (0, 0)
        with os.scandir(self._mappings) as entries:
            states = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries)
        return len(states), int(digest_of(states)[:15], 16)

    def _reference(self, kind: str, found: dict[str, str], mode: dict[str, str], context: str) -> ReferenceFile:
        name, path = found["name"], Path(found["path"])
        if name == NOT_APPLICABLE:
            return ReferenceFile(NOT_APPLICABLE, "")
        names = ("DETECTOR", "FILTER", "PUPIL")
        what = " ".join(mode.get(PARAMETERS[k], f"({k} unknown)") for k in names)
        if _absent(name):
            reason = name.removeprefix("NOT FOUND").strip() or "no rule matches"
            raise CalibrationError(f"no {kind} for {what} in context {context}: {reason}")
        try:
            digest = self._facts.digest(path, "sha256") if self._facts else digest_file(path, "sha256")
        except OSError as error:
            raise CalibrationError(
                f"no {kind} for {what}: context {context} selects {name}, but {path} can't be read ({error.strerror})"
            ) from error
        return ReferenceFile(name, digest)

    def _ask(self, context: str, headers: list[dict[str, str]], types: list[str]) -> list[dict[str, Any]]:
        """Which files a context selects, of each type for each exposure."""
        reply = self._talk({"context": context, "headers": headers, "types": types, "download": not self.is_offline})
        if "error" in reply:
            raise CalibrationError(f"CRDS could not use context {context} of {self.crds_path}: {reply['error']}")
        references: list[dict[str, Any]] = reply["references"]
        return references

    def _talk(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Run `crds_lookup.py`; whatever crds does to its process, this one only sees its reply or its end."""
        timeout = OFFLINE_TIMEOUT_S if self.is_offline else DOWNLOAD_TIMEOUT_S
        try:
            with tempfile.TemporaryDirectory() as scratch:
                child = subprocess.run(
                    [sys.executable, "-I", str(Path(__file__).with_name("crds_lookup.py"))],
                    input=json.dumps(question),
                    capture_output=True,
                    text=True,
                    errors="replace",
                    env=self._environment(question["context"], scratch),
                    cwd=scratch,
                    timeout=timeout,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            raise CalibrationError(f"CRDS at {self.server_url} gave no answer within {timeout:.0f} s") from error
        said = " | ".join(child.stderr.strip().splitlines()[-3:])
        try:
            reply: dict[str, Any] = json.loads(child.stdout)
        except ValueError as error:
            how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
            raise CalibrationError(f"CRDS ended with {how} and no answer, cache {self.crds_path}: {said}") from error
        if "error" in reply:
            reply["error"] = f"{reply['error']} {said}".strip()
        return reply

    def _environment(self, context: str, scratch: str) -> dict[str, str]:
        """All that crds may know; nothing of it comes from our own environment but how to reach the network."""
        environment = {
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "HOME": scratch,
            "CRDS_PATH": str(self.crds_path),
            "CRDS_SERVER_URL": self.server_url,
            "CRDS_OBSERVATORY": "jwst",
        }
        if context:
            environment["CRDS_CONTEXT"] = context
        if self.is_offline:
            return environment | {"CRDS_READONLY_CACHE": "1"}
        return environment | {name: os.environ[name] for name in NETWORK_VARIABLES if name in os.environ}


def _absent(name: str) -> bool:
    return name.startswith("NOT FOUND")


def _parameters(keywords: Mapping[str, Any]) -> dict[str, str]:
    """CRDS parameters of an exposure's keywords; absent ones are left out (crds then takes them as undefined)."""
    result = {"META.INSTRUMENT.NAME": "NIRCAM", "META.TELESCOPE": "JWST"}
    for name, value in keywords.items():
        if value is None or str(value).strip() == "":
            continue
        upper = name.upper()
        if upper in PARAMETERS:
            result[PARAMETERS[upper]] = str(value).strip()
        elif upper.startswith("META."):
            result[upper] = str(value).strip()
    return result
