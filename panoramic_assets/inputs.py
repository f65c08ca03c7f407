"""What an association's reduction is made of: its exposures, reference files and templates.

Put here how they are had and how they count in a fingerprint. Keep out the reduction (``reducing.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from panoramic.associations import Association
from panoramic.observations import Exposure
from resources.archive import FileRequest
from resources.home import Home

Log = Callable[[str], None]


def fetch(home: Home, exposures: Sequence[Exposure], log: Log) -> dict[str, Path]:
    """The exposures' verified rate files by dataset, several at once where they must be fetched."""

    def tell(name: str, so_far: int, total: int | None) -> None:
        log(f"{name}: {so_far / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{name}: {so_far / 1e6:.0f} MB")

    paths = home.archive.fetch_many([file_request(e) for e in exposures], tell)
    return {e.dataset: paths[e.rate_filename] for e in exposures}


def file_request(exposure: Exposure) -> FileRequest:
    """What is asked of the archive; size and checksum are its row's where they belong to that very file."""
    own_row = exposure.filename == exposure.rate_filename
    return FileRequest(
        exposure.rate_filename,
        exposure.size or None if own_row else None,
        exposure.checksum or None if own_row else None,
        exposure.cal_ver or None,
        exposure.file_id or None,
    )


def calibration_references(home: Home, paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each reference file that CRDS selects for any of the exposures, by ``type name``."""
    from astropy.io import fits

    headers = [dict(fits.getheader(path)) for path in paths]
    return {
        f"{kind} {file.name}": file.sha256
        for selected in home.calibration.selected_references_of(headers)
        for kind, file in sorted(selected.items())
    }


def made_of_these(home: Home, association: Association) -> bool:
    """Whether the stored result was made from the very data that the association has now."""
    made_of = [p["provenance"]["inputs"] for p in home.database.products(association.name)]
    return bool(made_of) and made_of[0] == {e.dataset: e.checksum for e in association.exposures}


def templates(home: Home, detector: str) -> list[tuple[str, int]]:
    """Name and size of the engine's own templates for a detector: supplying one makes results stale."""
    folder = home.archive.grizli_folder
    if folder is None:
        return []
    return sorted((p.name, p.stat().st_size) for p in folder.rglob("*.fits*") if detector.lower() in p.name.lower())
