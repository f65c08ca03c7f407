"""The simulated sky: stars and Sersic galaxies with realistic counts, colours, sizes and proper motions.

Put here what exists on the sky. Keep out telescope, detectors and catalogues made from it.

Sources: galaxy counts follow the F444W counts of public JWST surveys; sizes the mean size-magnitude relation of
HST and JWST fields; star counts those of high galactic latitude. All are smooth approximations.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
from astropy.table import Table, vstack
from numpy.typing import NDArray

from panoramic.reference import move
from panoramic.simulate.geometry import ARCSEC, rotate, sky_of, unit_vectors
from panoramic.simulate.instrument import FILTERS
from panoramic.simulate.plan import field_of_view, generator, visit_attitude
from panoramic.simulate.program import Simulation

Array = NDArray[np.float64]
REFERENCE_BAND = 4.421
"""Wavelength, *micron*, at which the counts are given."""
GAIA_MICRON, LS_MICRON = 0.65, 0.90

# AB magnitude at the reference band, log10 of sources per magnitude and square degree
GALAXY_COUNTS = ((16, 1.6), (18, 2.85), (20, 3.82), (22, 4.45), (24, 4.85), (26, 5.1), (28, 5.3), (31, 5.6))
STAR_COUNTS = ((15, 2.1), (16, 2.35), (18, 2.85), (20, 3.15), (22, 3.35), (24, 3.5), (26, 3.6), (31, 3.6))


def julian_year(moment: datetime) -> float:
    """Julian year of a UTC date."""
    j2000 = datetime(2000, 1, 1, 12, tzinfo=UTC)
    return 2000.0 + (moment.replace(tzinfo=UTC) - j2000).total_seconds() / (365.25 * 86400.0)


def draw_magnitudes(
    rng: np.random.Generator, counts: tuple[tuple[float, float], ...], area_deg2: float, limit: float
) -> Array:
    """Magnitudes of a Poisson number of sources.

    Parameters
    ----------
    rng : random numbers.
    counts : pairs of magnitude and log10 of the number per magnitude and square degree, linear in between.
    area_deg2 : the area.
    limit : faintest magnitude.

    Returns
    -------
    array, shape (n_sources,)
    """
    points = np.array(counts)
    edges = np.arange(points[0, 0], min(limit, points[-1, 0]) + 1e-9, 0.05)
    density = 10 ** np.interp(edges, points[:, 0], points[:, 1])
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * 0.05)])
    number = rng.poisson(cumulative[-1] * area_deg2)
    return np.interp(rng.uniform(0.0, cumulative[-1], number), cumulative, edges)


def make_sources(simulation: Simulation, index: int, bands: list[str]) -> Table:
    """The sources of one field.

    Parameters
    ----------
    simulation : what to simulate.
    index : number of the field.
    bands : filters whose magnitudes are wanted.

    Returns
    -------
    Table
        ``id``, ``field``, ``ra``, ``dec`` (*deg*, at the date of the field's first exposure), ``kind`` (star or
        galaxy), ``mag_{filter}`` (AB), ``mag_gaia``, ``mag_ls`` (AB at 0.65 and 0.9 micron), ``re_arcsec`` (half-light
        semi-major axis), ``n`` (Sersic index), ``axis_ratio``, ``pa`` (*deg* east of north), ``pm_ra``, ``pm_dec``
        (*mas/yr*, the first times cos dec).
    """
    field = simulation.fields[index]
    rng = generator(simulation.seed, "sky", simulation.program, field.observation, field.visit)
    low2, high2, low3, high3 = field_of_view(simulation)
    area = (high2 - low2) * (high3 - low3) / 3600**2
    sky = simulation.sky
    galaxy = draw_magnitudes(rng, GALAXY_COUNTS, area * sky.galaxy_density, sky.faint_limit_mag)
    star = draw_magnitudes(rng, STAR_COUNTS, area * sky.star_density, sky.faint_limit_mag)
    mag = np.concatenate([star, galaxy])
    n, is_star = len(mag), np.arange(len(mag)) < len(star)
    v2, v3 = rng.uniform(low2, high2, n), rng.uniform(low3, high3, n)
    ra, dec = sky_of(rotate(visit_attitude(simulation, index), unit_vectors(v2 * ARCSEC, v3 * ARCSEC)))

    size = np.clip(10 ** (-0.22 - 0.095 * (mag - 20) + rng.normal(0, 0.18, n)), 0.02, 3.0)
    early = rng.uniform(size=n) < np.interp(mag, [19, 24], [0.4, 0.12])
    sersic = np.where(early, np.clip(rng.normal(3.6, 0.7, n), 2.0, 6.0), np.clip(rng.normal(1.05, 0.25, n), 0.5, 1.9))
    motion = rng.normal(0, 1, (2, n)) * rng.gamma(1.5, 2.0, n)
    out = Table()
    out["id"] = np.arange(n) + 1_000_000 * (index + 1)
    out["field"] = np.full(n, index)
    out["ra"], out["dec"] = ra, dec
    out["kind"] = np.where(is_star, "star", "galaxy")
    colour = _draw_colours(rng, mag, is_star)
    for band in bands:
        out[f"mag_{band}"] = mag + colour(FILTERS[band].pivot)
    out["mag_gaia"], out["mag_ls"] = mag + colour(GAIA_MICRON), mag + colour(LS_MICRON)
    out["re_arcsec"] = np.where(is_star, 0.0, size)
    out["n"] = np.where(is_star, 0.0, sersic)
    out["axis_ratio"] = np.where(is_star, 1.0, np.clip(rng.normal(0.62, 0.2, n), 0.22, 1.0))
    out["pa"] = np.where(is_star, 0.0, rng.uniform(0, 180, n))
    out["pm_ra"], out["pm_dec"] = np.where(is_star, motion, 0.0)
    return out


def make_sky(simulation: Simulation, bands: list[str]) -> Table:
    """The sources of all fields: where visits overlap, the sky is that of the first of them.

    Returns
    -------
    Table
        As `make_sources` gives it; ``field`` is the field that a source was drawn for, each source comes once.
    """
    parts = []
    for index in range(len(simulation.fields)):
        own = make_sources(simulation, index, bands)
        known = np.zeros(len(own), bool)
        for earlier in range(index):
            known |= _in_view(simulation, earlier, own)
        parts.append(own[~known])
    return vstack(parts)


def sources_of(simulation: Simulation, sources: Table, index: int) -> Table:
    """The sources that a field's exposures can see, at the date of its first exposure, whatever field drew them."""
    owner = np.asarray(sources["field"])
    own, others = sources[owner == index], sources[(owner != index) & _in_view(simulation, index, sources)]
    if len(others) == 0:
        return own
    dates = np.array([julian_year(datetime.fromisoformat(f.start).replace(tzinfo=UTC)) for f in simulation.fields])
    ra, dec, pm_ra, pm_dec = (np.asarray(others[c], float) for c in ("ra", "dec", "pm_ra", "pm_dec"))
    ra, dec, _, _ = move(ra, dec, pm_ra, pm_dec, dates[index] - dates[np.asarray(others["field"])])
    others["ra"], others["dec"] = ra, dec
    return vstack([own, others])


def _in_view(simulation: Simulation, index: int, sources: Table) -> NDArray[np.bool_]:
    """Which sources lie where those of a field are drawn."""
    low2, high2, low3, high3 = field_of_view(simulation)
    sky = unit_vectors(np.radians(sources["ra"]), np.radians(sources["dec"]))
    # a rotation's inverse is its transpose
    x, y, z = np.moveaxis(rotate(visit_attitude(simulation, index).T, sky), -1, 0)
    v2, v3 = np.arctan2(y, x) / ARCSEC, np.arctan2(z, np.hypot(x, y)) / ARCSEC
    return np.asarray((v2 > low2) & (v2 < high2) & (v3 > low3) & (v3 < high3))


def _draw_colours(rng: np.random.Generator, mag: Array, is_star: NDArray[np.bool_]) -> Callable[[float], Array]:
    """Magnitude difference to the reference band of each source, as a function of wavelength in *micron*."""
    n = len(mag)
    mean = np.interp(mag, [20, 23, 26, 29], [0.75, 0.55, 0.4, 0.25])
    slope = np.where(is_star, rng.normal(-1.1, 0.15, n), mean + rng.normal(0, 0.45, n))
    bend = np.where(is_star, 0.0, rng.normal(0, 0.25, n))
    # Cool stars and old galaxies fall steeply below a micron.
    drop = np.where(is_star, rng.uniform(1.0, 6.0, n), rng.uniform(0.5, 3.0, n))

    def difference(micron: float) -> Array:
        t = np.log(REFERENCE_BAND / micron) / np.log(REFERENCE_BAND / 1.154)
        return slope * t + bend * t * (t - 1) + drop * max(0.0, t - 1)

    return difference
