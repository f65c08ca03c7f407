"""The catalogues: whose table, which columns, which rows, and what becomes of them in the standard table.

Put here what is known of each catalogue, with its source. Keep out how services are asked (`protocols.py`).

No real service was reached while this was written: table and column names are those of the documentation that each
catalogue's function names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from panoramic.errors import ReferenceCatalogQueryError
from panoramic.reference import COLUMNS, empty_table
from resources.catalogs.cells import Cell

if TYPE_CHECKING:
    from astropy.table import Table

ServiceName = Literal["gaia", "datalab", "vizier"]
MAS_PER_DEG = 3.6e6
J2000_MJD = 51544.5
GAIA_DR3_EPOCH = 2016.0
# G zero points of Gaia DR3 (Riello et al. 2021, A&A 649, A3): AB 25.8010, Vega 25.6874
GAIA_AB_MINUS_VEGA = 0.1136


@dataclass(frozen=True)
class Source:
    """One table of one service that a catalogue can be had from.

    Parameters
    ----------
    service : who has it.
    title : the service and the table, for messages and records.
    table, columns : as the service names them.
    condition : ADQL that rows must meet beside lying in the region; empty for VizieR, whose rows are all taken.
    standard : the service's rows as the columns of `panoramic.reference.COLUMNS`; rows that are no reference left out.
    version : of ``standard``; one more when it makes something else of the same rows.
    """

    service: ServiceName
    title: str
    table: str
    columns: tuple[str, ...]
    standard: Callable[[Table], Table]
    condition: str = ""
    version: int = 1

    @property
    def definition(self) -> str:
        """What was asked for and made of it: a kept region of another definition is asked for again."""
        return f"{self.title}; {self.version}; {','.join(self.columns)}; {self.condition}"

    def adql(self, cell: Cell) -> str:
        """The query of a region.

        Data Lab does not translate ADQL's POINT, CIRCLE and CONTAINS, so it is asked for an interval of each
        coordinate, as grizli asks it; a region crosses neither RA 0 nor a pole. The Gaia archive is asked
        for a circle.
        """
        if self.service == "gaia":
            ra, dec, radius = cell.circle()
            where = f"1 = CONTAINS(POINT('ICRS', ra, dec), CIRCLE('ICRS', {ra:.9f}, {dec:.9f}, {radius:.9f}))"
        else:
            (west, east), (south, north) = cell.ra_range, cell.dec_range
            # the poles themselves belong to the last bands: the upper edge is taken too, and left out here afterwards
            where = f"ra >= {west:.9f} AND ra < {east:.9f} AND dec >= {south:.9f} AND dec <= {north:.9f}"
        condition = f" AND {self.condition}" if self.condition else ""
        return f"SELECT {', '.join(self.columns)} FROM {self.table} WHERE {where}{condition}"  # noqa: S608


# --- what the columns mean ------------------------------------------------------------------


def _numbers(table: Table, column: str, unit: str | None = None, to: str | None = None) -> np.ndarray:
    """A column as floats, NaN where empty; ``unit`` is the documented one, a stated one goes before it."""
    from astropy import units

    values = np.ma.filled(np.ma.MaskedArray(table[column]).astype(float), np.nan)
    if unit is None or to is None:
        return values
    stated = table[column].unit
    known = stated is not None and not isinstance(stated, units.UnrecognizedUnit) and stated.is_equivalent(to)
    return np.asarray(units.Quantity(values, stated if known else unit).to_value(to))


def _text(table: Table, column: str) -> np.ndarray:
    return np.array([str(value).strip().upper() for value in np.ma.filled(np.ma.MaskedArray(table[column]), "")])


def _standard(keep: np.ndarray, **columns: np.ndarray | float) -> Table:
    """The standard table of the rows that are kept; what is not given is unknown (NaN)."""
    from astropy.table import Table

    keep = keep & np.isfinite(columns["ra"]) & np.isfinite(columns["dec"])
    result, units = Table(), empty_table()
    for column in COLUMNS:
        values = np.broadcast_to(np.asarray(columns.get(column, np.nan), dtype=float), keep.shape)[keep]
        result[column] = np.where(np.isfinite(values), values, np.nan)
        result[column].unit = units[column].unit
    result["ra"] %= 360.0
    return result


def gaia_dr3(table: Table) -> Table:
    """Gaia DR3: ``gaiadr3.gaia_source``, positions at 2016.0.

    Gaia Archive data model of DR3: ``ra``, ``dec`` deg; ``ra_error`` (with cos Dec), ``dec_error`` mas; ``pmra`` (with
    cos Dec), ``pmdec`` and their errors mas/yr; ``phot_g_mean_mag`` Vega, taken to AB by the release's zero points.
    """
    return _standard(
        np.ones(len(table), bool),
        ra=_numbers(table, "ra"),
        dec=_numbers(table, "dec"),
        mag=_numbers(table, "phot_g_mean_mag") + GAIA_AB_MINUS_VEGA,
        ra_error=_numbers(table, "ra_error", "mas", "mas"),
        dec_error=_numbers(table, "dec_error", "mas", "mas"),
        pm_ra=_numbers(table, "pmra", "mas / yr", "mas / yr"),
        pm_dec=_numbers(table, "pmdec", "mas / yr", "mas / yr"),
        pm_ra_error=_numbers(table, "pmra_error", "mas / yr", "mas / yr"),
        pm_dec_error=_numbers(table, "pmdec_error", "mas / yr", "mas / yr"),
        epoch=GAIA_DR3_EPOCH,
    )


def gaia_dr3_vizier(table: Table) -> Table:
    """Gaia DR3 at VizieR, ``I/355/gaiadr3``: the same numbers under VizieR's names (its ReadMe)."""
    table = table.copy()
    names = {
        "RA_ICRS": "ra", "DE_ICRS": "dec", "e_RA_ICRS": "ra_error", "e_DE_ICRS": "dec_error", "Gmag": "phot_g_mean_mag",
        "pmRA": "pmra", "pmDE": "pmdec", "e_pmRA": "pmra_error", "e_pmDE": "pmdec_error",
    }  # fmt: skip
    table.rename_columns(list(names), list(names.values()))
    return gaia_dr3(table)


def ls_dr9(table: Table) -> Table:
    """Legacy Surveys DR9: ``ls_dr9.tractor`` at Data Lab.

    legacysurvey.org/dr9/catalogs: ``ra_ivar`` is the inverse variance of RA without cos Dec, in 1/deg2; ``flux_*`` in
    nanomaggies (AB = 22.5 - 2.5 log10); ``type`` DUP marks a Gaia source that another source's model took up, without
    flux of its own; ``ref_cat`` G2 (DR9: Gaia DR2; GE: Gaia EDR3) has ``pmra``, ``pmdec`` in mas/yr and ``ref_epoch``.
    Motions that Gaia lacks are written as 0 (legacypipe, ``read_gaia``): unknown there, though the epoch is known.
    The errors leave out the astrometric calibration. Asked for are sources of S/N over 10 in r or z (grizli: in r).
    """
    ra, dec = _numbers(table, "ra"), _numbers(table, "dec")
    flux_z, flux_r = _numbers(table, "flux_z"), _numbers(table, "flux_r")
    with np.errstate(divide="ignore", invalid="ignore"):
        mag_z, mag_r = (np.where(flux > 0, 22.5 - 2.5 * np.log10(flux), np.nan) for flux in (flux_z, flux_r))
        error = [1 / np.sqrt(_numbers(table, column)) for column in ("ra_ivar", "dec_ivar")]
    epoch = _numbers(table, "ref_epoch")
    of_gaia = np.isin(_text(table, "ref_cat"), ("G2", "GE")) & (epoch > 1900)
    pm_ra, pm_dec = _numbers(table, "pmra"), _numbers(table, "pmdec")
    moving = of_gaia & ((np.nan_to_num(pm_ra) != 0) | (np.nan_to_num(pm_dec) != 0))
    return _standard(
        (_text(table, "type") != "DUP") & np.isfinite(error[0]) & np.isfinite(error[1]),
        ra=ra,
        dec=dec,
        mag=np.where(np.isfinite(mag_z), mag_z, mag_r),
        ra_error=error[0] * np.cos(np.radians(dec)) * MAS_PER_DEG,
        dec_error=error[1] * MAS_PER_DEG,
        pm_ra=np.where(moving, pm_ra, np.nan),
        pm_dec=np.where(moving, pm_dec, np.nan),
        epoch=np.where(of_gaia, epoch, np.nan),
    )


def nsc_dr2(table: Table) -> Table:
    """NOIRLab Source Catalog DR2: ``nsc_dr2.object`` at Data Lab.

    Nidever et al. 2021, AJ 161, 192, and the catalogue's own code (``nsc_instcal_combine``): ``raerr`` (with cos Dec),
    ``decerr`` arcsec, at the mean date ``mjd``; ``pmra``, ``pmdec`` and errors mas/yr; magnitudes AB, 99.99 where there
    is none. Motions of galaxies and of few images are noise: one is taken where the authors' own selection of moving
    objects would (20 detections over three years, significance^2 > 27.63). Asked for are sources without flags, with
    errors under 0.08 mag in r, i or z and 0.2 arcsec, as grizli does.
    """
    motion = [_numbers(table, column) for column in ("pmra", "pmdec")]
    motion_error = [_numbers(table, column) for column in ("pmraerr", "pmdecerr")]
    with np.errstate(divide="ignore", invalid="ignore"):
        significance = (motion[0] / motion_error[0]) ** 2 + (motion[1] / motion_error[1]) ** 2
        moving = (significance > 27.63) & (_numbers(table, "ndet") >= 20) & (_numbers(table, "deltamjd") > 1095)
        magnitudes = [_numbers(table, column) for column in ("zmag", "imag", "rmag")]
    mag = np.full(len(table), np.nan)
    for values in reversed(magnitudes):
        mag = np.where(values < 50, values, mag)
    pm_ra, pm_dec, pm_ra_error, pm_dec_error = (np.where(moving, v, np.nan) for v in (*motion, *motion_error))
    return _standard(
        np.ones(len(table), bool),
        ra=_numbers(table, "ra"),
        dec=_numbers(table, "dec"),
        mag=mag,
        ra_error=_numbers(table, "raerr", "arcsec", "mas"),
        dec_error=_numbers(table, "decerr", "arcsec", "mas"),
        pm_ra=pm_ra,
        pm_dec=pm_dec,
        pm_ra_error=pm_ra_error,
        pm_dec_error=pm_dec_error,
        epoch=2000.0 + (_numbers(table, "mjd") - J2000_MJD) / 365.25,
    )


def ps1_dr1(table: Table) -> Table:
    """Pan-STARRS1 DR1 at VizieR, ``II/349/ps1``: mean positions.

    Its ReadMe: ``RAJ2000``, ``DEJ2000`` deg, ``e_RAJ2000``, ``e_DEJ2000`` arcsec, magnitudes AB. It has no motions.
    Kept are sources with errors under 0.2 mag in i and 0.15 arcsec, as grizli does.
    """
    errors = [_numbers(table, column, "arcsec", "mas") for column in ("e_RAJ2000", "e_DEJ2000")]
    with np.errstate(invalid="ignore"):
        keep = (_numbers(table, "e_imag") < 0.2) & (errors[0] < 150) & (errors[1] < 150)
    return _standard(
        keep,
        ra=_numbers(table, "RAJ2000"),
        dec=_numbers(table, "DEJ2000"),
        mag=_numbers(table, "imag"),
        ra_error=errors[0],
        dec_error=errors[1],
    )


def des_dr2(table: Table) -> Table:
    """Dark Energy Survey DR2 at VizieR, ``II/371/des_dr2``.

    Its ReadMe: ``RA_ICRS``, ``DE_ICRS`` deg, magnitudes AB. It states neither errors nor motions of positions (the
    survey's paper, Abbott et al. 2021, ApJS 255, 20, gives 27 mas of internal scatter). Kept are sources with errors
    under 0.15 mag in r or i, as grizli does.
    """
    with np.errstate(invalid="ignore"):
        keep = (_numbers(table, "e_imag") < 0.15) | (_numbers(table, "e_rmag") < 0.15)
    imag = _numbers(table, "imag")
    return _standard(
        keep,
        ra=_numbers(table, "RA_ICRS"),
        dec=_numbers(table, "DE_ICRS"),
        mag=np.where(np.isfinite(imag), imag, _numbers(table, "rmag")),
    )


def to_standard(source: Source, table: Table | None, cell: Cell) -> Table:
    """What a service sent, as the standard table of a region.

    Raises
    ------
    ReferenceCatalogQueryError
        A column that was asked for is not there, or holds no numbers: the service's table has changed.
    """
    if table is None:
        return empty_table()
    missing = [column for column in source.columns if column not in table.colnames]
    if missing:
        raise ReferenceCatalogQueryError(
            f"{source.title}: the answer has no column {', '.join(missing)} (columns: {', '.join(table.colnames)})"
        )
    if len(table) == 0:
        return empty_table()
    try:
        result = source.standard(table)
    except (ValueError, TypeError) as error:
        raise ReferenceCatalogQueryError(f"{source.title}: the answer has a column of another kind: {error}") from error
    return result[cell.contains(np.asarray(result["ra"]), np.asarray(result["dec"]))]


_GAIA = ("ra", "dec", "ra_error", "dec_error", "pmra", "pmdec", "pmra_error", "pmdec_error", "phot_g_mean_mag")
_GAIA_VIZIER = ("RA_ICRS", "DE_ICRS", "e_RA_ICRS", "e_DE_ICRS", "pmRA", "pmDE", "e_pmRA", "e_pmDE", "Gmag")
_LS = ("ra", "dec", "ra_ivar", "dec_ivar", "type", "flux_r", "flux_z", "ref_cat", "ref_epoch", "pmra", "pmdec")
_NSC = (
    "ra", "dec", "raerr", "decerr", "pmra", "pmdec", "pmraerr", "pmdecerr", "mjd", "deltamjd", "ndet",
    "rmag", "imag", "zmag",
)  # fmt: skip

# name -> where it can be had, the first choice first
CATALOGS: dict[str, tuple[Source, ...]] = {
    "LS_DR9": (
        Source(
            "datalab", "NOIRLab Astro Data Lab, ls_dr9.tractor", "ls_dr9.tractor", _LS, ls_dr9,
            "type <> 'DUP' AND (flux_r * SQRT(flux_ivar_r) > 10 OR flux_z * SQRT(flux_ivar_z) > 10)", version=2,
        ),
    ),
    "PS1": (
        Source(
            "vizier", "VizieR, II/349/ps1", "II/349/ps1",
            ("RAJ2000", "DEJ2000", "e_RAJ2000", "e_DEJ2000", "imag", "e_imag"), ps1_dr1,
        ),
    ),
    "DES": (
        Source(
            "vizier", "VizieR, II/371/des_dr2", "II/371/des_dr2",
            ("RA_ICRS", "DE_ICRS", "rmag", "e_rmag", "imag", "e_imag"), des_dr2,
        ),
    ),
    "NSC": (
        Source(
            "datalab", "NOIRLab Astro Data Lab, nsc_dr2.object", "nsc_dr2.object", _NSC, nsc_dr2,
            "flags = 0 AND (rerr < 0.08 OR ierr < 0.08 OR zerr < 0.08) AND raerr < 0.2 AND decerr < 0.2",
        ),
    ),
    "GAIA": (
        Source("gaia", "Gaia archive, gaiadr3.gaia_source", "gaiadr3.gaia_source", _GAIA, gaia_dr3),
        Source("vizier", "VizieR, I/355/gaiadr3", "I/355/gaiadr3", _GAIA_VIZIER, gaia_dr3_vizier),
    ),
}  # fmt: skip
