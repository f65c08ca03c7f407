"""The simulated sky and the catalogues made of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoramic.simulate.catalogs import make_catalog, offset_sky
from panoramic.simulate.geometry import ARCSEC, unit_vectors
from panoramic.simulate.instrument import NPIX
from panoramic.simulate.plan import plan_exposures
from panoramic.simulate.program import Simulation, default_simulation
from panoramic.simulate.sky import GALAXY_COUNTS, draw_magnitudes, julian_year, make_sky, make_sources, sources_of


def changed(**update):
    return Simulation.model_validate(default_simulation().model_dump() | update)


def on_detector(plan, table, inside=0):
    from panoramic.simulate.geometry import aperture

    x, y = aperture(plan.detector).sky_to_pixel(plan.true, np.asarray(table["ra"]), np.asarray(table["dec"]))
    return (np.minimum(x, y) > inside) & (np.maximum(x, y) < NPIX - 1 - inside)


def catalogue(simulation, name="LS_DR9", field=0):
    plans = [p for p in plan_exposures(simulation) if p.field == field]
    return make_catalog(name, simulation, field, make_sources(simulation, field, ["F115W", "F444W"]), plans), plans


def test_counts_are_realistic():
    rng = np.random.default_rng(1)
    mag = draw_magnitudes(rng, GALAXY_COUNTS, 1.0, 28.0)
    # About 130 to 250 galaxies per square arcminute to 28 mag.
    assert 130 < len(mag) / 3600 < 250
    assert mag.max() <= 28.0


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 89.9), (359.9999, -52.4), (0.0, 0.0), (83.0, -90.0)])
def test_sources_cover_the_detectors_anywhere(ra, dec):
    simulation = changed(fields=[{"ra": ra, "dec": dec, "v3pa": 33.0, "observation": 1}])
    sources = make_sources(simulation, 0, ["F444W"])
    for plan in plan_exposures(simulation):
        inside = on_detector(plan, sources)
        area = 4.84 if plan.detector == "nrcblong" else 1.12
        assert 180 < inside.sum() / area < 400
    same = make_sources(simulation, 0, ["F444W"])
    assert all(np.array_equal(sources[c], same[c]) for c in sources.colnames)


def test_fields_are_independent():
    simulation = default_simulation()
    first, second = (make_sources(simulation, k, ["F444W"]) for k in (0, 1))
    assert len(first) != len(second)
    assert not set(first["id"]) & set(second["id"])


def test_sizes_shrink_and_stars_are_points():
    sources = make_sources(changed(sky={"galaxy_density": 5.0}), 0, ["F115W", "F444W"])
    galaxy = sources["kind"] == "galaxy"
    bright, faint = (galaxy & (np.abs(sources["mag_F444W"] - m) < 1) for m in (22, 28))
    assert np.median(sources["re_arcsec"][bright]) > 2 * np.median(sources["re_arcsec"][faint])
    assert np.all(sources["re_arcsec"][~galaxy] == 0)
    assert np.all(sources["pm_ra"][galaxy] == 0)
    colour = sources["mag_F115W"] - sources["mag_F444W"]
    assert np.median(colour[~galaxy]) < -0.8 < 0 < np.median(colour[galaxy])


@pytest.mark.parametrize("field", [0, 1])
def test_catalogues_are_like_the_real_ones(field):
    simulation = default_simulation()
    legacy, plans = catalogue(simulation, field=field)
    long = next(p for p in plans if p.detector == "nrcblong")
    assert 40 <= on_detector(long, legacy).sum() <= 80
    gaia, _ = catalogue(simulation, "GAIA", field)
    assert 3 <= len(gaia) <= 14
    assert not np.ma.is_masked(gaia["pm_ra"])
    assert np.all(legacy["pm_ra"].mask)


def test_scatter_grows_with_magnitude_and_is_recorded():
    table, _ = catalogue(changed(sky={"galaxy_density": 20.0}))
    assert 0.01 < np.mean(table["source_id"] < 0) < 0.1
    true = table[table["source_id"] >= 0]
    bright, faint = true["ra_error"][true["mag"] < 20], true["ra_error"][true["mag"] > 22.6]
    assert np.median(bright) < 30 < 70 < np.median(faint)
    a = unit_vectors(np.radians(true["ra"]), np.radians(true["dec"]))
    b = unit_vectors(np.radians(true["true_ra"]), np.radians(true["true_dec"]))
    np.testing.assert_allclose(
        np.linalg.norm(a - b, axis=1) / ARCSEC * 1000, np.hypot(true["east_mas"], true["north_mas"]), atol=1e-3
    )


def test_gaia_positions_are_right_once_moved():
    table, plans = catalogue(changed(sky={"star_density": 30.0}), "GAIA")
    years = julian_year(plans[0].start) - np.asarray(table["epoch"])
    ra, dec = offset_sky(
        np.asarray(table["ra"]),
        np.asarray(table["dec"]),
        np.asarray(table["pm_ra"]) * years,
        np.asarray(table["pm_dec"]) * years,
    )
    true_ra, true_dec = np.asarray(table["true_ra"]), np.asarray(table["true_dec"])
    raw, moved = (
        np.hypot((r - true_ra) * np.cos(np.radians(true_dec)), d - true_dec) * 3.6e6
        for r, d in ((np.asarray(table["ra"]), np.asarray(table["dec"])), (ra, dec))
    )
    assert np.median(raw) > 10
    assert np.median(moved) < 8


def test_sparse_false_and_dense_references():
    plain, _ = catalogue(default_simulation())
    sparse, _ = catalogue(changed(faults=[{"kind": "reference_sparse", "keep": 5, "catalog": "LS*"}]))
    assert len(sparse) == 5
    other, _ = catalogue(changed(faults=[{"kind": "reference_sparse", "keep": 5, "field": 1}]))
    assert len(other) == len(plain)
    false, _ = catalogue(changed(faults=[{"kind": "reference_false"}]))
    assert np.all(false["source_id"] == -1)
    assert len(false) == pytest.approx(len(plain), abs=2)
    dense, _ = catalogue(changed(faults=[{"kind": "reference_dense", "factor": 10}]))
    assert (dense["source_id"] == -1).sum() == pytest.approx(10 * len(plain), rel=0.1)
    assert (dense["source_id"] >= 0).sum() == (plain["source_id"] >= 0).sum()


def test_reference_fault_under_some_exposures_only():
    match = "*_nrcb1"
    plain, plans = catalogue(default_simulation())
    spoiled, _ = catalogue(changed(faults=[{"kind": "reference_false", "match": match}]))
    one, four = (next(p for p in plans if p.detector == d) for d in ("nrcb1", "nrcb4"))
    assert np.all(spoiled["source_id"][on_detector(one, spoiled)] == -1)
    # The fault reaches 5 arcsec beyond the exposure's edge.
    kept = spoiled["source_id"][on_detector(four, spoiled, 300)]
    assert (kept >= 0).sum() == (plain["source_id"][on_detector(four, plain, 300)] >= 0).sum() > 5


@settings(max_examples=40, deadline=None)
@given(ra=st.floats(0, 359.9), dec=st.floats(-90, 90), east=st.floats(-500, 500), north=st.floats(-500, 500))
def test_offset_sky_moves_by_the_length(ra, dec, east, north):
    out = offset_sky(np.array([ra]), np.array([dec]), np.array([east]), np.array([north]))
    a, b = unit_vectors(np.radians(ra), np.radians(dec)), unit_vectors(np.radians(out[0]), np.radians(out[1]))[0]
    assert np.linalg.norm(a - b) / ARCSEC * 1000 == pytest.approx(np.hypot(east, north), abs=1e-3)


def test_visits_that_overlap_see_one_sky():
    pointing = {"ra": 53.02, "dec": -27.8, "v3pa": 47.5, "start": "2025-07-19T17:03:00", "observation": 1}
    near = pointing | {"ra": 53.036, "dec": -27.807, "start": "2026-07-19T17:03:00", "observation": 2}
    far = pointing | {"ra": 200.0, "observation": 3}
    simulation = changed(fields=[pointing, near, far])
    sky = make_sky(simulation, ["F444W"])
    first, second, third = (sources_of(simulation, sky, k) for k in range(3))
    # what both see is the same objects, moved by their own motion in the year between
    common, i, j = np.intersect1d(first["id"], second["id"], return_indices=True)
    assert len(common) > 800
    apart = 3.6e6 * (np.asarray(second["dec"])[j] - np.asarray(first["dec"])[i])
    assert np.allclose(apart, np.asarray(first["pm_dec"])[i] * 365 / 365.25, atol=0.01)
    assert not np.intersect1d(first["id"], third["id"]).size
    # no field of view is emptier or fuller for it, and no two sources are one
    for k, seen in enumerate((first, second)):
        alone = make_sources(simulation, k, ["F444W"])
        assert abs(len(seen) - len(alone)) < 5 * np.sqrt(len(alone))
    assert len(np.unique(sky["id"])) == len(sky)
    assert np.array_equal(sources_of(simulation, sky, 2)["ra"], make_sources(simulation, 2, ["F444W"])["ra"])
