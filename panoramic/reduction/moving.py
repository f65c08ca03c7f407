"""Moves an association's finished products on the sky by a small correction, pixels untouched.

Put here the rotation of the sphere that a correction is, and its application to the files of the contract
(``base.py``). Keep out where a correction comes from (`panoramic.field_frame`) and who may be moved.

A correction is a rigid rotation of the sphere. A TAN projection turned with the sphere is a TAN projection about the
turned reference point, so CRVAL and CD change and what lies before them (CRPIX, SIP) doesn't: the moved WCS is exact
everywhere, also at the poles. What was applied in total is recorded in ``FRAM*`` keywords of each moved header and of
the catalogue.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.errors import InputError, ProductDamagedError
from panoramic.footprints import positions_of, unit_vectors
from panoramic.pointing import pointing_at, rotation_of, tangent_axes
from panoramic.provenance import sha256_of
from panoramic.reduction.base import Pointing, ReductionResult

if TYPE_CHECKING:
    from astropy.table import Table

# keyword -> attribute of `SkyCorrection`, comment
KEYWORDS = {
    "FRAMDRA": ("east_mas", "[mas] moved after the reduction: to the east"),
    "FRAMDDEC": ("north_mas", "[mas] moved after the reduction: to the north"),
    "FRAMROT": ("rotation_deg", "[deg] turned after the reduction, N to E"),
    "FRAMRA0": ("ra", "[deg] RA to which the move belongs"),
    "FRAMDEC0": ("dec", "[deg] Dec to which the move belongs"),
}
# recorded totals of one association's files may differ by no more than their rounding
_SAME_MAS, _SAME_DEG = 1e-3, 1e-8
_COPIED_AT_ONCE = 1 << 22


@dataclasses.dataclass(frozen=True)
class SkyCorrection:
    """A rigid rotation of the sphere, as it looks at one place: first the turn about it, then the shift.

    Parameters
    ----------
    ra, dec : the place, deg, before the correction.
    east_mas, north_mas : how far, along a great circle, the place itself is shifted; mas.
    rotation_deg : turn of the sky about the place, positive from north to east, deg.
    """

    ra: float
    dec: float
    east_mas: float = 0.0
    north_mas: float = 0.0
    rotation_deg: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, dataclasses.astuple(self))) or abs(self.dec) > 90:
            raise InputError(f"{self}: a correction needs finite numbers and a place on the sky")

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, ra: float, dec: float) -> SkyCorrection:
        """The rotation ``matrix`` (3, 3) as it looks at a place (deg)."""
        seen = pointing_at(np.asarray(matrix, float), ra, dec)
        return cls(ra, dec, *seen.shift_mas, seen.roll_deg)

    @property
    def matrix(self) -> np.ndarray:
        """The rotation matrix (3, 3) that acts on unit vectors."""
        return rotation_of(Pointing(self.ra, self.dec, (self.east_mas, self.north_mas), self.rotation_deg))

    def inverse(self) -> SkyCorrection:
        """The correction that takes this one back, at the same place."""
        return self.from_matrix(self.matrix.T, self.ra, self.dec)

    def compose(self, later: SkyCorrection) -> SkyCorrection:
        """Both as one: this correction, then ``later``; at this one's place."""
        return self.from_matrix(later.matrix @ self.matrix, self.ra, self.dec)

    def at(self, ra: float, dec: float) -> SkyCorrection:
        """The same rotation as it looks at another place (deg)."""
        return self.from_matrix(self.matrix, ra, dec)

    def apply(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corrected positions, RA in [0, 360), of positions in deg of any shape; NaN stays NaN."""
        moved = positions_of(unit_vectors(ra, dec) @ self.matrix.T)
        return moved[..., 0], moved[..., 1]


# --- an association's products --------------------------------------------------------------


def move_products(folder: Path, result: ReductionResult, correction: SkyCorrection) -> ReductionResult:
    """Apply a correction to all products of an association.

    The folder should be a copy that nobody reads yet: each file is whole at any moment, but between the first and the
    last replacement they are in two frames. A folder that was left so is refused.

    Parameters
    ----------
    folder : holds the files that ``result`` names.
    result : of the association's reduction.
    correction : what is to be done now; earlier moves are in the files already.

    Returns
    -------
    ReductionResult
        The same, with digests, sizes and pointings of the moved exposures.

    Raises
    ------
    ProductDamagedError
        A file is missing, isn't what ``result`` says, or the files are in different frames.
    InputError
        A file has no TAN projection in RA and Dec, or its catalogue no ``ra`` and ``dec``.
    """
    exposures = {e.filename: e for e in result.exposures}
    images = [*exposures, *(name for name in (result.image, result.weight) if name)]
    names = [*images, *([result.catalog] if result.catalog else [])]
    for name in names:
        if not (folder / name).is_file():
            raise ProductDamagedError(f"{folder / name} is missing: reduce {result.association} again")
    for name, exposure in exposures.items():
        if sha256_of(folder / name) != exposure.sha256:
            raise ProductDamagedError(f"{folder / name} isn't what was recorded: reduce {result.association} again")
    recorded: dict[str, list[SkyCorrection | None]] = {name: _recorded_of_image(folder / name) for name in images}
    table = None
    if result.catalog:
        table = _read_catalog(folder / result.catalog)
        recorded[result.catalog] = [recorded_correction(table.meta)]
    earlier = _common_frame(folder, recorded)
    total = earlier.compose(correction) if earlier else correction
    cards = {key: (getattr(total, attribute), comment) for key, (attribute, comment) in KEYWORDS.items()}

    pointings = {
        name: _moved_pointing(exposure.pointing, correction)
        for name, exposure in exposures.items()
        if exposure.pointing
    }
    staged = {name: folder / f".{name}.moving" for name in names}
    try:
        for name in images:
            _move_image(folder / name, staged[name], correction, cards, pointings.get(name))
        if result.catalog and table is not None:
            _move_catalog(table, staged[result.catalog], correction, cards)
        moved = tuple(
            dataclasses.replace(
                e,
                sha256=sha256_of(staged[name]),
                size=staged[name].stat().st_size,
                pointing=pointings.get(name),
            )
            for name, e in exposures.items()
        )
        for name in names:
            os.replace(staged[name], folder / name)
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)
    return dataclasses.replace(result, exposures=moved)


def recorded_correction(header: Mapping[str, Any]) -> SkyCorrection | None:
    """The total correction that a header, or a catalogue's ``meta``, says was applied; None where none was."""
    if not all(key in header for key in KEYWORDS):
        return None
    return SkyCorrection(**{attribute: float(header[key]) for key, (attribute, _) in KEYWORDS.items()})


def rotate_wcs(header: Any, correction: SkyCorrection) -> None:
    """Turn a header's WCS with the sky: CRVAL and CD (or PC) change, in place.

    Raises
    ------
    InputError
        The header's first two axes are no TAN projection of RA and Dec in deg.
    """
    types = str(header.get("CTYPE1", "")), str(header.get("CTYPE2", ""))
    units = {str(header.get(f"CUNIT{axis}", "deg")).strip().lower() for axis in (1, 2)}
    if not (types[0].startswith("RA---TAN") and types[1].startswith("DEC--TAN") and units <= {"deg", "degree", ""}):
        raise InputError(f"CTYPE {types} in {sorted(units)}: only TAN projections of RA and Dec in deg can be moved")
    matrix = correction.matrix
    before = tangent_axes(header["CRVAL1"], header["CRVAL2"])
    ra, dec = (float(v) for v in positions_of(matrix @ before[:, 2]))
    # axes of the plane before, turned, as seen in the plane after
    turn = (tangent_axes(ra, dec).T @ matrix @ before)[:2, :2]
    # the default changes at the pole itself
    header.setdefault("LONPOLE", 0.0 if header["CRVAL2"] >= 90 else 180.0)
    header["CRVAL1"], header["CRVAL2"] = ra, dec
    if any(f"CD{i}_{j}" in header for i in (1, 2) for j in (1, 2)):
        linear = np.array([[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)])
        key, linear = "CD", turn @ linear
    else:
        step = np.diag([header.get(f"CDELT{i}", 1.0) for i in (1, 2)])
        linear = np.array([[header.get(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)])
        key, linear = "PC", np.linalg.inv(step) @ turn @ step @ linear
    for i in (1, 2):
        for j in (1, 2):
            header[f"{key}{i}_{j}"] = float(linear[i - 1, j - 1])


def _has_sky(header: Any) -> bool:
    return str(header.get("CTYPE1", "")).startswith("RA--")


def _recorded_of_image(path: Path) -> list[SkyCorrection | None]:
    """What each plane with a WCS records; the header alone is read."""
    from astropy.io import fits

    with fits.open(path) as hdus:
        headers = [hdu.header for hdu in hdus if _has_sky(hdu.header)]
        if not headers:
            raise InputError(f"{path}: no plane has RA and Dec; an exposure of the contract has them in SCI")
        return [recorded_correction(header) for header in headers]


def _common_frame(folder: Path, recorded: Mapping[str, list[SkyCorrection | None]]) -> SkyCorrection | None:
    """The one total that all files record."""
    found = [(name, one) for name, values in recorded.items() for one in values]
    if not found:
        return None
    first_name, first = found[0]
    for name, other in found[1:]:
        if not _same(first, other):
            raise ProductDamagedError(
                f"{folder}: {first_name} and {name} are in different frames, a move was broken off: "
                "start from a fresh copy of the products"
            )
    return first


def _same(first: SkyCorrection | None, second: SkyCorrection | None) -> bool:
    if first is None or second is None:
        return first is second
    apart = first.inverse().compose(second)
    return math.hypot(apart.east_mas, apart.north_mas) < _SAME_MAS and abs(apart.rotation_deg) < _SAME_DEG


def _move_image(
    path: Path,
    target: Path,
    correction: SkyCorrection,
    cards: Mapping[str, tuple[float, str]],
    pointing: Pointing | None,
) -> None:
    """Write the file with moved headers; the planes' bytes are copied as they are."""
    from astropy.io import fits

    with fits.open(path) as hdus, path.open("rb") as source, target.open("wb") as out:
        if pointing and "PNTDRA" in hdus[0].header:
            hdus[0].header.update(
                PNTDRA=pointing.shift_mas[0], PNTDDEC=pointing.shift_mas[1], PNTROLL=pointing.roll_deg
            )
        sealed = []
        for k, hdu in enumerate(hdus):
            header, info = hdu.header, hdu.fileinfo()
            if _has_sky(header):
                try:
                    rotate_wcs(header, correction)
                except InputError as error:
                    raise InputError(f"{path}, plane {k}: {error}") from error
                if "S_REGION" in header:
                    header["S_REGION"] = _outline(header)
                header.update(cards)
            sealed += [k] if "CHECKSUM" in header else []
            out.write(header.tostring().encode("ascii"))
            source.seek(info["datLoc"])
            _copy(source, out, info["datSpan"])
        _sync(out)
    if sealed:
        with fits.open(target, mode="update") as hdus:
            for k in sealed:
                hdus[k].add_checksum()


def _copy(source: Any, out: Any, count: int) -> None:
    while count > 0:
        block = source.read(min(count, _COPIED_AT_ONCE))
        if not block:
            raise ProductDamagedError(f"{source.name} ends early: {count} bytes are missing")
        out.write(block)
        count -= len(block)


def _sync(out: Any) -> None:
    out.flush()
    os.fsync(out.fileno())


def _outline(header: Any) -> str:
    """S_REGION of the detector's outer pixel centres, as the engines write it."""
    from astropy.wcs import WCS

    corners = WCS(header, relax=True, fix=False).celestial.calc_footprint(axes=(header["NAXIS1"], header["NAXIS2"]))
    return "POLYGON ICRS  " + " ".join(f"{v:.9f}" for v in corners.ravel())


def _read_catalog(path: Path) -> Table:
    from astropy.table import Table

    table = Table.read(path, format="ascii.ecsv")
    missing = [column for column in ("ra", "dec") if column not in table.colnames]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}")
    return table


def _move_catalog(
    table: Table, target: Path, correction: SkyCorrection, cards: Mapping[str, tuple[float, str]]
) -> None:
    """Write the catalogue with moved positions; all else stays."""
    ra, dec = (np.ma.filled(np.ma.MaskedArray(table[c]).astype(float), np.nan) for c in ("ra", "dec"))
    for column, moved in zip(("ra", "dec"), correction.apply(ra, dec), strict=True):
        if table[column].dtype != np.float64:  # fewer digits than a correction has
            table[column] = table[column].astype(np.float64)
        known = np.isfinite(moved)
        table[column][known] = moved[known]
    table.meta.update({key: value for key, (value, _) in cards.items()})
    with target.open("w", encoding="utf-8") as out:
        table.write(out, format="ascii.ecsv")
        _sync(out)


def _moved_pointing(pointing: Pointing, correction: SkyCorrection) -> Pointing:
    """The correction of the archive's pointing that the moved WCS means."""
    return pointing_at(correction.matrix @ rotation_of(pointing), pointing.ra, pointing.dec)
