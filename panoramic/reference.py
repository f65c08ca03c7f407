"""Reference catalogues: a standard table of any of them, proper motions, and the choice of our own sources.

Put here what a reference source is and which ones count. Keep out where a catalogue lies or is asked for
(``resources/reference_catalogs.py``) and how exposures are matched to it (the engines).

The standard table has the columns of `COLUMNS`; positions are ICRS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.errors import InputError
from panoramic.footprints import covered_fraction, east_north, inside, unit_vectors
from panoramic.reduction.base import ReferenceSources
from panoramic.survey import SourceSelection

if TYPE_CHECKING:
    from astropy.table import Table

# column -> unit; the first three must be there
COLUMNS = {
    "ra": "deg",
    "dec": "deg",
    "mag": "mag",
    "ra_error": "mas",
    "dec_error": "mas",
    "pm_ra": "mas / yr",
    "pm_dec": "mas / yr",
    "epoch": "yr",
    "pm_ra_error": "mas / yr",
    "pm_dec_error": "mas / yr",
}
REQUIRED = ("ra", "dec", "mag")
MAS = np.pi / 180 / 3_600_000
ARCSEC = np.pi / 180 / 3600
SAME_OBJECT_ARCSEC = 0.1
UNKNOWN_MOTION = 3.0
"""mas/yr per axis: about what faint stars of high latitude move (Gaia DR3: 3-6 mas/yr at 18-20 mag); galaxies none."""


def read_catalog(path: Path) -> Table:
    """Read a reference catalogue and hold it to the standard (``.ecsv``, ``.csv`` or ``.fits``).

    Returns
    -------
    Table with the columns of `COLUMNS` as floats in their units; what the file leaves empty is NaN.

    Raises
    ------
    InputError
        The file can't be read as a table, is empty, or `standard_table` refuses it; names file, row and column.
    OSError
        It can't be opened.
    """
    from astropy.table import Table
    from astropy.table.meta import YamlParseError

    formats = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits"}
    try:
        if path.suffix.lower() not in formats:
            raise InputError(f"{path}: a reference catalogue is one of {', '.join(formats)}")
        table = Table.read(path, format=formats[path.suffix.lower()])
    except (OSError, ValueError, TypeError, KeyError, YamlParseError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file can't be opened; without a number astropy says that it makes no sense
        raise InputError(f"{path}: can't be read as a table: {error}") from error
    return standard_table(table, str(path))


def standard_table(table: Table, source: str) -> Table:
    """A query's or file's table as the standard one.

    Column names are taken in any case; stated units are converted. ``pm_ra`` is the motion on the sky (cos Dec
    included), as Gaia gives it. A source with a proper motion needs an epoch.

    Parameters
    ----------
    source : the file or service, for messages.

    Raises
    ------
    InputError
        No row, a missing column, or a position that is not on the sky, with the row (1-based) and column.
    """
    from astropy.table import Table

    names = {str(name).lower(): name for name in table.colnames}
    missing = [c for c in REQUIRED if c not in names]
    if missing:
        raise InputError(
            f"{source}: has no column {', '.join(missing)} (columns: {', '.join(table.colnames) or 'none'})"
        )
    if len(table) == 0:
        raise InputError(f"{source}: holds no source")
    result = Table()
    for column, unit in COLUMNS.items():
        values = np.full(len(table), np.nan)
        if column in names:
            values = _floats(table[names[column]], column, unit, source)
        result[column] = values
        result[column].unit = unit
    _refuse(~(np.isfinite(result["ra"]) & (np.abs(result["ra"]) <= 360)), result, "ra", source, "is no RA in deg")
    _refuse(~(np.isfinite(result["dec"]) & (np.abs(result["dec"]) <= 90)), result, "dec", source, "is no Dec in deg")
    for column in ("ra_error", "dec_error", "pm_ra_error", "pm_dec_error"):
        _refuse(np.asarray(result[column]) < 0, result, column, source, "is negative: an error is 0 or more")
    moving = (np.nan_to_num(result["pm_ra"]) != 0) | (np.nan_to_num(result["pm_dec"]) != 0)
    _refuse(
        moving & ~((result["epoch"] > 1800) & (result["epoch"] < 2200)), result, "epoch", source,
        "is no Julian year, and the source moves",
    )  # fmt: skip
    result["ra"] %= 360.0
    return result


def _floats(column: Any, name: str, unit: str, source: str) -> np.ndarray:
    """A column as floats in the standard unit, NaN where masked."""
    from astropy import units

    masked: np.ma.MaskedArray[Any, Any] = np.ma.MaskedArray(column)
    try:
        numbers = np.ma.filled(masked.astype(float), np.nan)
    except (ValueError, TypeError) as error:
        row = next((k for k, value in enumerate(masked) if not _is_number(value)), 0)
        raise InputError(f"{source}, row {row + 1}, column {name!r}: {column[row]!r} is no number") from error
    stated = getattr(column, "unit", None)
    if stated is None or name == "mag":  # magnitudes are AB whatever a service calls their unit
        return numbers
    try:
        return np.asarray(units.Quantity(numbers, stated).to_value(unit))
    except (TypeError, units.UnitConversionError) as error:
        raise InputError(f"{source}: column {name!r} is in {stated}, which can't be turned into {unit}") from error


def _is_number(value: Any) -> bool:
    if value is np.ma.masked:
        return True
    try:
        float(value)
    except (ValueError, TypeError):
        return False
    return True


def _refuse(bad: np.ndarray, table: Table, column: str, source: str, reason: str) -> None:
    rows = np.flatnonzero(np.asarray(bad))
    if rows.size:
        more = f" (and {rows.size - 1} more rows)" if rows.size > 1 else ""
        raise InputError(f"{source}, row {rows[0] + 1}, column {column!r}: {table[column][rows[0]]} {reason}{more}")


# --- positions ------------------------------------------------------------------------------


def move(
    ra: np.ndarray, dec: np.ndarray, pm_ra: np.ndarray, pm_dec: np.ndarray, years: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Move sources along great circles, which has no seam at the poles.

    Parameters
    ----------
    ra, dec : deg, shape (N,).
    pm_ra, pm_dec : mas/yr, ``pm_ra`` with cos Dec included; NaN is taken as 0.
    years : Julian years, forwards or backwards.

    Returns
    -------
    ra, dec, pm_ra, pm_dec at the other date; moving back by ``-years`` gives the start.

    Notes
    -----
    Differs from the straight line in space (Gaia DR3 documentation, section 4.1.7, without radial velocity) by
    (motion)^3 / 3: 1e-6 mas for Barnard's star in a century.
    """
    place = unit_vectors(ra, dec)
    east, north = east_north(np.asarray(ra, float), np.asarray(dec, float))
    velocity = MAS * (np.nan_to_num(pm_ra)[..., None] * east + np.nan_to_num(pm_dec)[..., None] * north)
    speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
    direction = velocity / np.where(speed > 0, speed, 1.0)
    angle = speed * np.broadcast_to(np.asarray(years, float), speed.shape[:-1])[..., None]
    moved = place * np.cos(angle) + direction * np.sin(angle)
    velocity = speed * (direction * np.cos(angle) - place * np.sin(angle))
    new_ra = np.degrees(np.arctan2(moved[..., 1], moved[..., 0])) % 360.0
    new_dec = np.degrees(np.arctan2(moved[..., 2], np.hypot(moved[..., 0], moved[..., 1])))
    east, north = east_north(new_ra, new_dec)
    return new_ra, new_dec, (velocity * east).sum(axis=-1) / MAS, (velocity * north).sum(axis=-1) / MAS


def at_epoch(table: Table, epoch: float) -> Table:
    """The standard table with its moving sources taken to another epoch (Julian year).

    Where the error of a motion is stated, the position's error grows by it: sqrt(error^2 + (motion's error * years)^2).
    Where nothing is known of the motion it grows by `UNKNOWN_MOTION`: a bright star's small error of years ago would
    otherwise outweigh all galaxies.
    """
    result = table.copy()
    years = np.nan_to_num(epoch - np.asarray(table["epoch"], float))
    old_ra, old_dec, old_pm_ra, old_pm_dec = (np.asarray(table[c], float) for c in ("ra", "dec", "pm_ra", "pm_dec"))
    ra, dec, pm_ra, pm_dec = move(old_ra, old_dec, old_pm_ra, old_pm_dec, years)
    moving = (np.nan_to_num(old_pm_ra) != 0) | (np.nan_to_num(old_pm_dec) != 0)
    for name, values in (("ra", ra), ("dec", dec), ("pm_ra", pm_ra), ("pm_dec", pm_dec)):
        result[name][moving] = values[moving]
    for name, rate in (("ra_error", "pm_ra_error"), ("dec_error", "pm_dec_error")):
        if rate in table.colnames:
            growth = np.nan_to_num(np.asarray(table[rate], float)) * years
            result[name][moving] = np.hypot(np.asarray(table[name], float), growth)[moving]
    unknown = ~np.isfinite(old_pm_ra) & ~np.isfinite(old_pm_dec)
    for name in ("ra_error", "dec_error"):
        grown = np.hypot(np.asarray(table[name], float), UNKNOWN_MOTION * years)
        result[name][unknown] = grown[unknown]
    result["epoch"][moving] = epoch
    return result


def empty_table() -> Table:
    """The standard table of a part of the sky where a catalogue has no source."""
    from astropy.table import Table

    result = Table({column: np.empty(0) for column in COLUMNS})
    for column, unit in COLUMNS.items():
        result[column].unit = unit
    return result


def within(table: Table, footprints: Sequence[np.ndarray], margin_arcsec: float = 0.0) -> Table:
    """The rows that lie in any of the footprints ((N, 2) vertices in deg) widened by a margin."""
    ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
    chosen = np.zeros(len(table), dtype=bool)
    for footprint in footprints:
        chosen |= inside(ra, dec, footprint, margin_arcsec)
    return table[chosen]


def without_duplicates(table: Table, radius_arcsec: float = SAME_OBJECT_ARCSEC) -> Table:
    """One row per object: of rows closer than the radius the one with the smallest stated error, then the brightest."""
    from scipy.spatial import cKDTree

    if len(table) < 2:
        return table
    error = _error_mas(table)
    order = np.lexsort((np.nan_to_num(table["mag"], nan=99.0), np.where(np.isfinite(error), error, np.inf)))
    rank = np.empty(len(table), dtype=int)
    rank[order] = np.arange(len(table))
    pairs = cKDTree(unit_vectors(table["ra"], table["dec"])).query_pairs(radius_arcsec * ARCSEC, output_type="ndarray")
    better = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    worse = pairs.sum(axis=1) - better
    keep = np.ones(len(table), dtype=bool)
    for k in np.argsort(rank[better], kind="stable"):  # the best first: what is gone removes no other
        if keep[better[k]]:
            keep[worse[k]] = False
    return table[keep]


def _error_mas(table: Table) -> np.ndarray:
    """Stated error per axis: root mean square of the two; NaN where unknown."""
    if "ra_error" not in table.colnames or "dec_error" not in table.colnames:
        return np.full(len(table), np.nan)
    return np.sqrt((np.asarray(table["ra_error"], float) ** 2 + np.asarray(table["dec_error"], float) ** 2) / 2)


def to_reference_sources(
    table: Table, name: str, epoch: float | None = None, kind: str = "external"
) -> ReferenceSources:
    """What an engine is given: positions at the exposures' epoch.

    Parameters
    ----------
    table : the standard table, or any with ``ra``, ``dec``, ``mag``.
    epoch : Julian year of the exposures; None leaves the positions as they are (our own reference).
    kind : ``external`` or ``own``.
    """
    if epoch is not None and {"epoch", "pm_ra", "pm_dec"} <= set(table.colnames):
        table = at_epoch(table, epoch)
    ra, dec, mag = (np.array(table[c], dtype=float) for c in REQUIRED)
    return ReferenceSources(name, ra, dec, mag, _error_mas(table), kind)


def sources_digest(sources: ReferenceSources) -> str:
    """SHA-256 of the sources, independent of their order: part of a reduction's fingerprint.

    Positions count to 0.001 mas, magnitudes and errors to 0.001, so that another platform's rounding is no change.
    """
    columns = (sources.ra / 2.8e-10, sources.dec / 2.8e-10, sources.mag * 1e3, sources.error_mas * 1e3)
    numbers = np.column_stack([np.round(np.nan_to_num(c, nan=-1e6)) for c in columns]).astype(np.int64)
    numbers = numbers[np.lexsort(numbers.T)]
    return hashlib.sha256(f"{sources.name} {sources.kind} ".encode() + numbers.astype("<i8").tobytes()).hexdigest()


# --- our own reference ----------------------------------------------------------------------


def select_own(catalog: Table, selection: SourceSelection) -> Table:
    """The sources of an association's catalogue that may become astrometric reference (design: section 7).

    Parameters
    ----------
    catalog : the columns of `panoramic.reduction.base.CATALOG_COLUMNS`.

    Returns
    -------
    Table
        The brightest unmasked sources fainter than the limit, of good size and S/N, brightest first.
    """
    mag, radius = np.asarray(catalog["mag"], float), np.asarray(catalog["flux_radius"], float)
    flux, error = np.asarray(catalog["flux"], float), np.asarray(catalog["flux_error"], float)
    good = np.isfinite(catalog["ra"]) & np.isfinite(catalog["dec"]) & (np.asarray(catalog["flags"]) == 0)
    with np.errstate(invalid="ignore"):
        good &= (radius > selection.flux_radius_min_px) & (radius < selection.flux_radius_max_px)
        good &= (mag > selection.brighter_limit_mag) & (error > 0) & (flux > selection.minimum_snr * error)
    rows = np.flatnonzero(good)
    return catalog[rows[np.argsort(mag[rows], kind="stable")][: selection.brightest]]


def centroid_errors_mas(catalog: Table, pixel_scale_mas: float) -> np.ndarray:
    """Standard error per axis of a catalogue's positions, mas: sqrt(2) sigma over S/N (King 1983, PASP 95, 163).

    A floor of 0.03 px stands for what drizzling and undersampling leave in a centroid.
    """
    snr = np.asarray(catalog["flux"], float) / np.asarray(catalog["flux_error"], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.sqrt(2) * np.asarray(catalog["flux_radius"], float) / 1.1774 / snr
    return np.asarray(np.hypot(noise, 0.03) * pixel_scale_mas)


def merge_own(catalogs: Mapping[str, Table], radius_arcsec: float = SAME_OBJECT_ARCSEC) -> Table:
    """One row per object from the selected catalogues of overlapping associations.

    Objects are found from the best S/N downwards; each takes at most one row, the nearest, of each other association
    within the radius. Positions and magnitudes are means weighted by (S/N)^2.

    Parameters
    ----------
    catalogs : result of `select_own` by association.

    Returns
    -------
    Table
        ``ra``, ``dec`` (deg), ``mag``, ``error_mas`` (per axis; NaN where the catalogues have no such column), ``src``
        (the association of its best row), ``n`` (rows it was made of), in order of magnitude; the same for any order of
        the catalogues.
    """
    from astropy.table import Table
    from scipy.spatial import cKDTree

    names = sorted(catalogs)
    if not any(len(catalogs[name]) for name in names):
        nothing = np.zeros(0)
        return Table(
            {"ra": nothing, "dec": nothing, "mag": nothing, "error_mas": nothing, "src": np.zeros(0, "U1"),
             "n": np.zeros(0, int)}
        )  # fmt: skip
    columns = {
        c: np.concatenate([np.asarray(catalogs[k][c], float) for k in names])
        for c in ("ra", "dec", "mag", "flux", "flux_error")
    }
    error = np.concatenate([_own_errors(catalogs[k]) for k in names])
    owner = np.repeat(np.arange(len(names)), [len(catalogs[name]) for name in names])
    snr = columns["flux"] / columns["flux_error"]
    places = unit_vectors(columns["ra"], columns["dec"])
    near = cKDTree(places).query_ball_point(places, radius_arcsec * ARCSEC)
    taken = np.zeros(len(owner), dtype=bool)
    objects: list[list[int]] = []
    for best in np.lexsort((columns["dec"], columns["ra"], -snr)):
        if taken[best]:
            continue
        members: dict[int, int] = {int(owner[best]): int(best)}
        apart = {k: float(np.linalg.norm(places[k] - places[best])) for k in near[best] if not taken[k]}
        for k in sorted(apart, key=lambda k: (apart[k], k)):
            members.setdefault(int(owner[k]), k)
        objects.append(list(members.values()))
        taken[list(members.values())] = True
    weights = [snr[m] ** 2 / (snr[m] ** 2).sum() for m in objects]
    means = np.array([w @ places[m] for w, m in zip(weights, objects, strict=True)])
    table = Table(
        {
            "ra": np.degrees(np.arctan2(means[:, 1], means[:, 0])) % 360.0,
            "dec": np.degrees(np.arctan2(means[:, 2], np.hypot(means[:, 0], means[:, 1]))),
            "mag": [float(w @ columns["mag"][m]) for w, m in zip(weights, objects, strict=True)],
            "error_mas": [float((error[m] ** -2.0).sum() ** -0.5) for m in objects],
            "src": [names[owner[m[0]]] for m in objects],
            "n": [len(m) for m in objects],
        }
    )
    return table[np.lexsort((table["dec"], table["ra"], table["mag"]))]


def _own_errors(catalog: Table) -> np.ndarray:
    return np.asarray(catalog["error_mas"], float) if "error_mas" in catalog.colnames else np.full(len(catalog), np.nan)


def cover_fraction(footprint: np.ndarray, reference_footprints: Sequence[np.ndarray]) -> float:
    """Fraction (0 to 1) of a footprint's area that our own reference covers; footprints are (N, 2) in deg."""
    return covered_fraction(footprint, reference_footprints)
