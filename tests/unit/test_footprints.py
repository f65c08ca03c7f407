"""Spherical geometry: poles and RA 0 are places like any other."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import square

from panoramic.errors import InputError
from panoramic.footprint_plots import plot_footprints, write_regions
from panoramic.footprints import (
    FootprintSet,
    covered_fraction,
    edge_distance_arcmin,
    from_tangent_plane,
    inside,
    mean_position,
    parse_s_region,
    separation_arcmin,
    to_s_region,
    to_tangent_plane,
    union_area_arcmin2,
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


@pytest.mark.parametrize(
    "text",
    [
        "polygon icrs 10 -5 11 -5 11 -4",
        "  POLYGON  ICRS  10 -5 11 -5 11 -4 10 -5 ",
        "POLYGON 10 -5 11 -5 11 -4",
        "POLYGON FK5 370 -5 371 -5 371 -4",
        "Polygon ICRS (10, -5), (11, -5), (11, -4)",
        "POLYGON ICRS 10.0000000001 -5 11 -5 11 -4 10 -5",
    ],
)
def test_ways_to_write_a_polygon(text: str) -> None:
    assert np.allclose(parse_s_region(text), [[10, -5], [11, -5], [11, -4]], atol=1e-9)


def test_several_polygons_become_one_list_of_vertices() -> None:
    assert len(parse_s_region("POLYGON ICRS 1 1 2 1 2 2 POLYGON ICRS 3 3 4 3 4 4")) == 6


@pytest.mark.parametrize("number", ["nan", "inf", "91"])
def test_positions_off_the_sphere_are_refused(number: str) -> None:
    with pytest.raises(InputError, match="not on the sphere"):
        parse_s_region(f"POLYGON ICRS 1 1 2 {number} 2 2")


@given(place=places, seed=st.integers(0, 999))
def test_many_footprints_are_measured_as_one_by_one(place, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = []
    for count in rng.integers(3, 8, 6):
        plane = rng.uniform(-40, 40, 2) + rng.uniform(-2, 2, (count, 2))
        shapes.append(from_tangent_plane(plane, place))
    shapes.append(square((place[0] + 180) % 360, -place[1]))  # the other side of the sphere
    some = FootprintSet(shapes)
    first, second = np.triu_indices(len(shapes))
    expected = [edge_distance_arcmin(shapes[i], shapes[j]) for i, j in zip(first, second, strict=True)]
    assert np.allclose(some.edge_distances_arcmin(first, some, second), expected, rtol=1e-9, atol=1e-9)
    part = some.subset(np.array([4, 1]))
    assert np.array_equal(part.corners, np.concatenate([shapes[4], shapes[1]]))
    assert np.allclose(part.middles, [mean_position(shapes[4]), mean_position(shapes[1])])
    assert np.allclose(FootprintSet([square(*place, 2.0)]).inner_radii() * 60 * 180 / np.pi, 1.0, rtol=1e-4)


def test_a_line_has_no_inner_radius() -> None:
    line = FootprintSet([from_tangent_plane(np.array([[0, 0], [1, 0], [2, 0.0]]), (150.0, 0.0))])
    assert line.inner_radii() == pytest.approx(0, abs=1e-9)


def test_vertices_are_parsed_once_and_are_no_field(make_exposure) -> None:
    exposure = make_exposure()
    same = dataclasses.replace(exposure)
    assert exposure.vertices is exposure.vertices
    assert not exposure.vertices.flags.writeable
    assert exposure == same
    assert hash(exposure) == hash(same)
    assert "vertices" not in dataclasses.asdict(exposure)
    moved = dataclasses.replace(exposure, footprint="POLYGON ICRS 1 1 2 1 2 2")
    assert np.array_equal(moved.vertices, [[1, 1], [2, 1], [2, 2]])


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
