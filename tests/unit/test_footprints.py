"""Spherical geometry: poles and RA 0 are places like any other."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import square

from panoramic.errors import InputError
from panoramic.footprints import (
    covered_fraction,
    edge_distance_arcmin,
    from_tangent_plane,
    inside,
    mean_position,
    parse_s_region,
    plot_footprints,
    separation_arcmin,
    to_s_region,
    to_tangent_plane,
    union_area_arcmin2,
    write_regions,
)

places = st.tuples(st.floats(0, 360), st.floats(-89.99, 89.99))


@given(place=places, x=st.floats(-60, 60), y=st.floats(-60, 60))
def test_projection_round_trip(place, x: float, y: float) -> None:
    there = from_tangent_plane(np.array([[x, y]]), place)
    assert np.allclose(to_tangent_plane(there, place), [[x, y]], atol=1e-7)


@given(place=places, gap=st.floats(0.5, 60))
def test_edge_distance_is_the_gap(place, gap: float) -> None:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    here = from_tangent_plane(corners, place)
    there = from_tangent_plane(corners + [2 + gap, 0], place)
    assert edge_distance_arcmin(here, there) == pytest.approx(gap, rel=1e-3)
    assert edge_distance_arcmin(here, here) == 0


@given(place=places)
def test_area_and_cover(place) -> None:
    here = square(*place, 2.0)
    shifted = from_tangent_plane(to_tangent_plane(here, place) + [1.0, 0.0], place)
    assert union_area_arcmin2([here]) == pytest.approx(4.0, rel=1e-4)
    assert union_area_arcmin2([here, shifted]) == pytest.approx(6.0, rel=1e-4)
    assert covered_fraction(here, [shifted]) == pytest.approx(0.5, rel=1e-4)
    assert covered_fraction(here, []) == 0


def test_s_region_round_trip_and_seam() -> None:
    vertices = square(0.0, 5.0)
    again = parse_s_region(to_s_region(vertices))
    assert np.allclose(again, vertices, atol=1e-8)
    assert separation_arcmin(*mean_position(again), 0.0, 5.0) < 1e-3
    closed = "POLYGON ICRS 1 1 2 1 2 2 1 1"
    assert len(parse_s_region(closed)) == 3


@pytest.mark.parametrize(
    "text", ["", "CIRCLE 1 2 3", "POLYGON ICRS 1 2 3 4", "POLYGON ICRS 1 2 3 4 5", "POLYGON ICRS a b c d e f"]
)
def test_what_is_no_polygon_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_s_region(text)


def test_inside_with_margin() -> None:
    area = square(359.999, 60.0, 2.0)
    points = from_tangent_plane(np.array([[0, 0], [1.1, 0], [1.3, 0], [500, 0]], float), (359.999, 60.0))
    assert inside(*points.T, area).tolist() == [True, False, False, False]
    assert inside(*points.T, area, margin_arcsec=12).tolist() == [True, True, False, False]


def test_pictures_and_regions(tmp_path: Path) -> None:
    exposures = [("F444W", square(0.0, 80.0), 500.0), ("F115W", square(0.05, 80.0, 1.0), 500.0)]
    plot_footprints(tmp_path / "field.png", "j000000p8000", exposures, [False, True])
    assert (tmp_path / "field.png").stat().st_size > 10_000
    write_regions(tmp_path / "field.reg", [("one", square(0.0, 80.0), "red")])
    assert (tmp_path / "field.reg").read_text().count("polygon(") == 1
