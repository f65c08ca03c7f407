"""What made a product: fingerprints, and the record that is written into headers and beside files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panoramic import __version__

CHUNK = 1 << 20


def canonical(value: object) -> str:
    """JSON text of a value, independent of the order of keys."""
    return json.dumps(value, sort_keys=True, default=str)


def digest_of(value: object) -> str:
    """SHA-256 (64 hex digits) of any JSON-able value, independent of the order of keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return digest_file(path, "sha256")


def digest_file(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's bytes; ``algorithm`` is a name of `hashlib`, e.g. ``md5``."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def record(
    *,
    survey: str,
    survey_digest: str,
    fingerprint: str,
    inputs: Mapping[str, str],
    crds_context: str = "",
    references: Mapping[str, str] | None = None,
    reference_catalog: str = "",
    checks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The provenance of a product.

    Parameters
    ----------
    inputs : checksum of each input by its name.
    references : digest of each CRDS reference file by its name.
    reference_catalog : name and digest of the astrometric reference.
    checks : what was found about the product, as stored with it.
    """
    return {
        "code_version": __version__,
        "survey": survey,
        "survey_digest": survey_digest,
        "fingerprint": fingerprint,
        "inputs": dict(inputs),
        "crds_context": crds_context,
        "references": dict(references or {}),
        "reference_catalog": reference_catalog,
        "checks": dict(checks or {}),
    }
