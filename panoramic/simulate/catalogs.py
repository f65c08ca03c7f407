"""External reference catalogues of the simulated sky, with the defects of the real ones.

Put here catalogues and the faults that are asked of them. Keep out the sky itself. Scatter, density and epochs are
like those of the Legacy Surveys' DR9 and of Gaia's DR3.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import numpy as np
from astropy.table import MaskedColumn, Table, vstack
from numpy.typing import NDArray

from panoramic.simulate.geometry import ARCSEC, aperture, rotate, sky_of, unit_vectors
from panoramic.simulate.instrument import NPIX
from panoramic.simulate.plan import PlannedExposure, field_of_view, generator, visit_attitude
from panoramic.simulate.program import ReferenceDense, ReferenceFalse, ReferenceSparse, Simulation
from panoramic.simulate.sky import julian_year

LS_EPOCH, GAIA_EPOCH = 2016.5, 2016.0
NAMES = ("LS_DR9", "GAIA")

Array = NDArray[np.float64]


def offset_sky(ra: Array, dec: Array, east_mas: Array, north_mas: Array) -> tuple[Array, Array]:
    """Positions moved by small angles east and north, *milliarcsec*; right at the poles too."""
    point = unit_vectors(np.radians(ra), np.radians(dec))
    east = np.stack([-np.sin(np.radians(ra)), np.cos(np.radians(ra)), np.zeros_like(ra)], axis=-1)
    north = np.cross(point, east)
    return sky_of(point + (east * east_mas[:, None] + north * north_mas[:, None]) * ARCSEC / 1000)


def make_catalog(
    name: str, simulation: Simulation, index: int, sources: Table, exposures: Sequence[PlannedExposure]
) -> Table:
    """One catalogue in one field, with its truth.

    Parameters
    ----------
    name : ``LS_DR9`` or ``GAIA``.
    simulation, index : what is simulated, number of the field.
    sources : of the field.
    exposures : of the field; their dates set the epoch of the true positions.

    Returns
    -------
    Table
        Published columns ``ra``, ``dec`` (*deg*), ``mag``, ``ra_error``, ``dec_error`` (*mas*), ``pm_ra``, ``pm_dec``
        (*mas/yr*, masked where unknown), ``epoch`` (Julian year); and the truth: ``source_id`` (-1: belongs to
        nothing), ``true_ra``, ``true_dec`` (*deg*), ``east_mas``, ``north_mas`` (catalogue, moved to the observation's
        epoch by the published motion, minus truth).
    """
    rng = generator(simulation.seed, "catalogue", name, index)
    observed = julian_year(min(e.start for e in exposures))
    out = (_legacy if name == "LS_DR9" else _gaia)(rng, simulation, sources, observed)
    out = vstack([out, _false(rng, name, simulation, index, len(out))], metadata_conflicts="silent")
    for fault in simulation.faults:
        if not isinstance(fault, ReferenceSparse | ReferenceFalse | ReferenceDense):
            continue
        if fnmatch.fnmatch(name, fault.catalog) and fault.field in (None, index):
            fault_rng = generator(simulation.seed, "fault", name, index, fault.kind)
            out = _spoil(out, fault, fault_rng, simulation, index, exposures)
    # No order that would tell true from false.
    return out[rng.permutation(len(out))]


def _legacy(rng: np.random.Generator, simulation: Simulation, sources: Table, observed: float) -> Table:
    limit, (best, worst) = simulation.catalogs.ls_dr9_limit_mag, simulation.catalogs.ls_dr9_scatter_mas
    mag = np.asarray(sources["mag_ls"], float)
    # Ground-based imaging is complete down to half a magnitude above its limit.
    seen = rng.uniform(size=len(mag)) < np.interp(mag, [limit - 0.6, limit], [0.97, 0.0])
    table, mag = sources[seen], mag[seen]
    # A floor, and what the noise of the sky adds: it grows as the flux falls.
    sigma = np.clip(np.hypot(best, worst * 10 ** (0.4 * (mag - limit))), best, worst)
    extended = np.asarray(table["re_arcsec"], float) > 0.7
    # The centre of an extended object is not where its peak is.
    scatter = np.where(extended, np.hypot(sigma, 40.0), sigma)
    return _entries(rng, table, mag, scatter, sigma, LS_EPOCH, observed, motion_known=False)


def _gaia(rng: np.random.Generator, simulation: Simulation, sources: Table, observed: float) -> Table:
    mag = np.asarray(sources["mag_gaia"], float)
    seen = (mag < simulation.catalogs.gaia_limit_mag) & (np.asarray(sources["kind"]) == "star")
    table, mag = sources[seen], mag[seen]
    sigma = np.interp(mag, [14, 17, 19, 20, 21], [0.02, 0.08, 0.25, 0.5, 1.2])
    return _entries(rng, table, mag, sigma, sigma, GAIA_EPOCH, observed, motion_known=True)


def _entries(
    rng: np.random.Generator,
    table: Table,
    mag: Array,
    scatter: Array,
    stated: Array,
    epoch: float,
    observed: float,
    *,
    motion_known: bool,
) -> Table:
    n, years = len(table), observed - epoch
    motion = np.stack([np.asarray(table["pm_ra"], float), np.asarray(table["pm_dec"], float)])
    published = motion + rng.normal(0, 1, (2, n)) * stated * 0.9 if motion_known else np.zeros((2, n))
    error = rng.normal(0, 1, (2, n)) * scatter
    ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
    offset = error - motion * years
    out = Table()
    out["ra"], out["dec"] = offset_sky(ra, dec, offset[0], offset[1])
    out["mag"] = mag + rng.normal(0, 0.03, n)
    out["ra_error"] = out["dec_error"] = np.round(stated, 4)
    for axis, column in enumerate(("pm_ra", "pm_dec")):
        out[column] = MaskedColumn(published[axis], mask=np.full(n, not motion_known))
    out["epoch"] = np.full(n, epoch)
    out["source_id"] = np.asarray(table["id"], np.int64)
    out["true_ra"], out["true_dec"] = ra, dec
    total = offset + published * years
    out["east_mas"], out["north_mas"] = total[0], total[1]
    return out


def _false(rng: np.random.Generator, name: str, simulation: Simulation, index: int, count: int) -> Table:
    """Entries that belong to nothing: noise peaks, parts of galaxies, asteroids."""
    number = rng.poisson(simulation.catalogs.ls_dr9_false_fraction * count) if name == "LS_DR9" else 0
    return _random_entries(rng, name, simulation, index, number)


def _random_entries(rng: np.random.Generator, name: str, simulation: Simulation, index: int, number: int) -> Table:
    low2, high2, low3, high3 = field_of_view(simulation)
    v2, v3 = rng.uniform(low2, high2, number), rng.uniform(low3, high3, number)
    out = Table()
    out["ra"], out["dec"] = sky_of(rotate(visit_attitude(simulation, index), unit_vectors(v2 * ARCSEC, v3 * ARCSEC)))
    legacy = name == "LS_DR9"
    out["mag"] = rng.uniform(20.5, 23.5, number) if legacy else rng.uniform(17.0, 20.7, number)
    out["ra_error"] = out["dec_error"] = rng.uniform(30, 90, number) if legacy else rng.uniform(0.1, 1.0, number)
    for column in ("pm_ra", "pm_dec"):
        out[column] = MaskedColumn(np.zeros(number), mask=np.full(number, legacy))
    out["epoch"] = np.full(number, LS_EPOCH if legacy else GAIA_EPOCH)
    out["source_id"] = np.full(number, -1, np.int64)
    out["true_ra"], out["true_dec"] = out["ra"], out["dec"]
    out["east_mas"] = out["north_mas"] = np.zeros(number)
    return out


def _spoil(
    table: Table,
    fault: ReferenceSparse | ReferenceFalse | ReferenceDense,
    rng: np.random.Generator,
    simulation: Simulation,
    index: int,
    exposures: Sequence[PlannedExposure],
) -> Table:
    """Apply a fault to the part of a catalogue that it names."""
    part = _covered(table, fault.match, exposures)
    if isinstance(fault, ReferenceSparse):
        drop = rng.permutation(np.flatnonzero(part))[fault.keep :]
        return table[np.setdiff1d(np.arange(len(table)), drop)]
    name = "GAIA" if np.all(table["epoch"] == GAIA_EPOCH) else "LS_DR9"
    factor = 1.0 if isinstance(fault, ReferenceFalse) else fault.factor
    # Random entries fall anywhere in the field: make enough, keep those in the part.
    number = 40 + round(4 * len(table) * factor * len(table) / max(1, part.sum()))
    made = _random_entries(rng, name, simulation, index, number)
    made = made[_covered(made, fault.match, exposures)][: round(part.sum() * factor)]
    kept = table[~part] if isinstance(fault, ReferenceFalse) else table
    return vstack([kept, made], metadata_conflicts="silent")


def _covered(table: Table, match: str | None, exposures: Sequence[PlannedExposure]) -> NDArray[np.bool_]:
    """Which entries lie on (or within 5 arcsec of) the exposures that match."""
    if match is None:
        return np.ones(len(table), bool)
    out = np.zeros(len(table), bool)
    for exposure in exposures:
        if fnmatch.fnmatch(exposure.dataset, match):
            ap = aperture(exposure.detector)
            x, y = ap.sky_to_pixel(exposure.true, np.asarray(table["ra"], float), np.asarray(table["dec"], float))
            margin = 5.0 / ap.x_scale
            out |= (np.minimum(x, y) > -margin) & (np.maximum(x, y) < NPIX + margin)
    return out
