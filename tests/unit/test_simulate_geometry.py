"""Pixels to sky and back, anywhere on the sky, against pysiaf and by rules."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from panoramic.simulate.geometry import (
    ARCSEC,
    Pointing,
    aperture,
    attitude_matrix,
    roll_at,
    s_region,
    sky_of,
    unit_vectors,
)
from panoramic.simulate.instrument import DETECTORS

PIXELS = np.array([0.0, 3.5, 700.0, 1023.5, 2047.0])


def separation_mas(ra1, dec1, ra2, dec2):
    a, b = (unit_vectors(np.radians(r), np.radians(d)) for r, d in ((ra1, dec1), (ra2, dec2)))
    return np.linalg.norm(a - b, axis=-1) / ARCSEC * 1000


@pytest.mark.parametrize("detector", DETECTORS)
def test_distortion_is_pysiafs(detector, monkeypatch):
    import requests

    def offline(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(requests, "get", offline)  # pysiaf's import asks the web for news
    import pysiaf

    siaf = pysiaf.Siaf("NIRCam")[DETECTORS[detector].aperture]
    x, y = np.meshgrid(PIXELS, PIXELS)
    v2, v3 = aperture(detector).pixel_to_v2v3(x, y)
    expected = siaf.sci_to_tel(x + 1, y + 1)
    np.testing.assert_allclose([v2, v3], expected, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 359.999999),
    dec=st.floats(-90, 90),
    roll=st.floats(0, 359.9),
    scale=st.floats(0.9999, 1.0001),
    detector=st.sampled_from(sorted(DETECTORS)),
)
@example(ra=0.0, dec=90.0, roll=10.0, scale=1.0, detector="nrca1")
@example(ra=123.0, dec=-90.0, roll=200.0, scale=1.0, detector="nrcblong")
@example(ra=359.9999, dec=0.0, roll=0.0, scale=1.00005, detector="nrcb4")
def test_sky_and_pixel_are_inverse(ra, dec, roll, scale, detector):
    ap, pointing = aperture(detector), Pointing(ra, dec, roll, scale)
    x, y = np.meshgrid(PIXELS, PIXELS)
    lon, lat = ap.pixel_to_sky(pointing, x, y)
    assert np.all((lon >= 0) & (lon < 360))
    back = ap.sky_to_pixel(pointing, lon, lat)
    np.testing.assert_allclose(back, [x, y], atol=2e-5)
    centre = ap.pixel_to_sky(pointing, ap.x_ref - 1, ap.y_ref - 1)
    assert separation_mas(*centre, ra, dec) < 1e-3


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 359.999),
    dec=st.floats(-89.99, 89.99),
    east=st.floats(-3, 3),
    north=st.floats(-3, 3),
)
def test_moved_goes_the_asked_way(ra, dec, east, north):
    start = Pointing(ra, dec, 77.0, 1.0)
    end = start.moved(east, north)
    assert separation_mas(ra, dec, end.ra_ref, end.dec_ref) == pytest.approx(1000 * np.hypot(east, north), abs=1e-3)
    back = end.moved(0, 0)
    assert back == end
    # The field's neighbours move with it: nothing turns.
    ap = aperture("nrcblong")
    before, after = ap.pixel_to_sky(start, [0, 2047], [0, 2047]), ap.pixel_to_sky(end, [0, 2047], [0, 2047])
    assert np.ptp(separation_mas(*before, *after)) < 0.1


@settings(max_examples=40, deadline=None)
@given(ra=st.floats(0, 359.999), dec=st.floats(-89.9, 89.9), pa=st.floats(0.1, 359.9), v2=st.floats(-500, 500))
def test_attitude_puts_the_point_there_with_its_roll(ra, dec, pa, v2):
    matrix = attitude_matrix(v2, -480.0, ra, dec, pa)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    point = sky_of(matrix @ unit_vectors(v2 * ARCSEC, -480.0 * ARCSEC))
    assert separation_mas(*point, ra, dec) < 1e-3
    assert roll_at(matrix, v2, -480.0) == pytest.approx(pa, abs=1e-8)


def test_detectors_of_one_attitude_agree():
    # A place on the sky seen by the long-wave detector lies where its short-wave neighbour sees it.
    attitude = attitude_matrix(-83.6, -496.0, 0.01, -52.4, 247.5)
    long, short = aperture("nrcblong"), aperture("nrcb2")
    there = short.pixel_to_sky(short.reference_pointing(attitude, 1.00009), 1000.0, 1000.0)
    x, y = long.sky_to_pixel(long.reference_pointing(attitude, 1.00009), *there)
    v2, v3 = short.pixel_to_v2v3(1000.0, 1000.0)
    np.testing.assert_allclose(long.v2v3_to_pixel(v2, v3), [x, y], atol=1e-4)


def test_jacobian_is_the_pixel_area_that_crds_gets():
    from panoramic.simulate.calibration import pixel_area_map

    ap, pointing = aperture("nrcblong"), Pointing(10.0, 89.99, 30.0, 1.0)
    x, y = np.array([100, 1000, 1900]), np.array([1500, 1020, 300])
    area = 1 / np.abs(np.linalg.det(ap.jacobian(pointing, *ap.pixel_to_sky(pointing, x, y))))
    np.testing.assert_allclose(area / ap.pixel_area_arcsec2, pixel_area_map(ap)[y, x], rtol=2e-5)


def test_footprint_string_is_the_archives():
    text = s_region(aperture("nrcb1").footprint(Pointing(359.999, 10.0, 0.0, 1.0)))
    assert text.startswith("POLYGON ICRS  ")
    assert len(text.split()) == 10
