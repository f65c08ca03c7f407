"""Products on their way into the storage, and whether they stand there as they were stored.

Put here what associations and mosaics share of it. Keep out what the products are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from panoramic.provenance import canonical, sha256_of
from resources.home import Home


def association_folder(name: str) -> str:
    """Where an association's products lie in the storage: below the field that named it, also where it moved since."""
    return f"{name.split('_', 1)[0]}/associations/{name}"


def staging(home: Home, key: str) -> Path:
    """The folder beside a product's place in which it is made: a killed run's leftover is found there and removed."""
    place = home.storage.path(key)
    return place.with_name(f".staged-{place.name}")


def publish(home: Home, folder: Path, key: str, fingerprint: str, provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Move a finished folder into its place; returns the rows of its products."""
    (folder / "provenance.json").write_text(canonical(provenance) + "\n")
    digests = {p.name: sha256_of(p) for p in sorted(folder.iterdir())}
    home.storage.publish_folder(folder, key)
    rows = []
    for filename, digest in digests.items():
        status = home.storage.path(f"{key}/{filename}").stat()
        rows.append(
            {
                "path": f"{key}/{filename}",
                "kind": _kind(filename),
                "checksum": digest,
                "size": status.st_size,
                "mtime_ns": str(status.st_mtime_ns),
                "fingerprint": fingerprint,
                "provenance": provenance,
            }
        )
    return rows


def products_stand(home: Home, owner: str, verify: bool = False) -> bool:
    """Whether every product of an association or mosaic is there as it was stored.

    Size and mtime are compared; with ``verify`` (or where only the mtime differs) all bytes are read.
    """
    rows = home.database.products(owner)
    for row in rows:
        path = home.storage.path(row["path"])
        if not path.is_file() or path.stat().st_size != row["size"]:
            return False
        if (verify or str(path.stat().st_mtime_ns) != row["mtime_ns"]) and sha256_of(path) != row["checksum"]:
            return False
    return bool(rows)


def _kind(filename: str) -> str:
    for ending, kind in (
        ("_rate.fits", "calibrated exposure"), ("_sci.fits", "science image"), ("_wht.fits", "weight map"),
        ("_exp.fits", "exposure-time map"), (".cat.ecsv", "catalogue"), ("_cat.ecsv", "catalogue"),
        ("_pairs.ecsv", "alignment pairs"), (".log", "log"), (".png", "picture"), (".json", "provenance"),
    ):  # fmt: skip
        if filename.endswith(ending):
            return kind
    return "other"
