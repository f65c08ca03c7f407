"""The grid of any field, anywhere on the sky."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from panoramic.footprints import deproject, project
from panoramic.mosaic.grid import FieldGrid
from panoramic.mosaic.pixelmap import PixelMap
from panoramic.survey import MosaicRules

places = st.tuples(
    st.one_of(st.floats(0, 360, exclude_max=True), st.sampled_from([0.0, 1e-9, 359.9999999, 180.0])),
    st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 89.99999, -89.99999, 0.0])),
)
tiles = st.tuples(st.integers(-8, 8), st.integers(-8, 8))
ratios = st.sampled_from([(40.0, 20.0), (60.0, 20.0), (30.0, 30.0), (63.0, 31.5)])


def grid_at(place: tuple[float, float], scales: tuple[float, float] = (40.0, 20.0), tile_px: int = 2048) -> FieldGrid:
    rules = MosaicRules(long_wave_scale_mas=scales[0], short_wave_scale_mas=scales[1], tile_px=tile_px)
    return FieldGrid.for_field("j000000p0000", *place, rules)


def arcsec(ra: np.ndarray, dec: np.ndarray, ra2: np.ndarray, dec2: np.ndarray) -> np.ndarray:
    """Distance on the sphere, by chord: no trouble at poles or RA 0."""
    one, two = (
        np.stack(
            [
                np.cos(np.radians(d)) * np.cos(np.radians(a)),
                np.cos(np.radians(d)) * np.sin(np.radians(a)),
                np.sin(np.radians(d)),
            ]
        )
        for a, d in ((ra, dec), (ra2, dec2))
    )
    return np.degrees(2 * np.arcsin(np.linalg.norm(one - two, axis=0) / 2)) * 3600


@given(places, st.floats(-0.02, 0.02), st.floats(-0.02, 0.02))
def test_projection_and_its_inverse(place: tuple[float, float], xi: float, eta: float) -> None:
    back = project(*deproject(np.array(xi), np.array(eta), *place), *place)
    assert back[0] == pytest.approx(xi, abs=1e-13)
    assert back[1] == pytest.approx(eta, abs=1e-13)


@settings(deadline=None)
@given(places, tiles, ratios)
def test_short_wave_tiles_are_exactly_a_long_wave_tile(
    place: tuple[float, float], tile: tuple[int, int], scales: tuple[float, float]
) -> None:
    grid = grid_at(place, scales)
    children = grid.children(tile)
    assert len(set(children)) == grid.ratio**2
    assert {grid.parent(child) for child in children} == {tile}
    long, shape_long = grid.mosaic_wcs([tile], "long")
    short, shape_short = grid.mosaic_wcs(children, "short")
    assert shape_short == tuple(n * grid.ratio for n in shape_long)
    np.testing.assert_array_equal(short.wcs.crpix, grid.ratio * (long.wcs.crpix - 0.5) + 0.5)
    edges = np.array([-0.5, grid.tile_px - 0.5])
    a = long.all_pix2world(edges, edges, 0)
    b = short.all_pix2world((edges + 0.5) * grid.ratio - 0.5, (edges + 0.5) * grid.ratio - 0.5, 0)
    assert arcsec(*a, *b).max() < 1e-6


@settings(deadline=None)
@given(places, tiles)
def test_wcs_and_closed_form_agree(place: tuple[float, float], tile: tuple[int, int]) -> None:
    grid = grid_at(place)
    x, y = np.array([0.0, 100.3, 2047.0]), np.array([5.0, 2047.0, 700.7])
    ra, dec = grid.tile_wcs(tile, "long").all_pix2world(x, y, 0)
    origin = grid.origin(tile)
    mine = grid.sky(x + origin[0], y + origin[1], "long")
    assert arcsec(ra, dec, *mine).max() < 1e-6
    back = grid.pixels(ra, dec, "long")
    np.testing.assert_allclose(back, (x + origin[0], y + origin[1]), atol=1e-5)


@settings(deadline=None)
@given(places, tiles, st.sampled_from(["short", "long"]))
def test_a_tiles_own_footprint_touches_it_and_nothing_else(
    place: tuple[float, float], tile: tuple[int, int], channel: str
) -> None:
    grid = grid_at(place)
    edges = np.array([[0.5, 0.5], [2046.5, 0.5], [2046.5, 2046.5], [0.5, 2046.5]])
    ra, dec = grid.tile_wcs(tile, channel).all_pix2world(edges[:, 0], edges[:, 1], 0)
    footprint = np.column_stack([ra, dec])
    assert grid.tiles_touching([footprint], channel) == (tile,)
    text = "POLYGON ICRS  " + " ".join(f"{v:.12f}" for v in footprint.ravel())
    assert grid.tiles_touching([text], channel) == (tile,)


@settings(deadline=None)
@given(places, st.lists(st.tuples(st.floats(-300, 300), st.floats(-300, 300)), min_size=2, max_size=6))
def test_a_new_exposure_only_adds_tiles(place: tuple[float, float], middles: list[tuple[float, float]]) -> None:
    grid = grid_at(place)
    footprints = []
    for x, y in middles:
        corners = np.array([(-30, -30), (30, -30), (30, 30), (-30, 30)]) + np.array([x, y])
        xi, eta = np.radians(corners.T / 3600)
        footprints.append(np.column_stack(deproject(xi, eta, *place)))
    some, more = grid.tiles_touching(footprints[:-1], "short"), grid.tiles_touching(footprints, "short")
    assert set(some) <= set(more)
    first, second = (grid.mosaic_wcs(used, "short")[0] for used in (some, more))
    np.testing.assert_array_equal((second.wcs.crpix - first.wcs.crpix) % grid.tile_px, 0)


@settings(deadline=None, max_examples=30)
@given(places, st.floats(0, 360), st.sampled_from(["short", "long"]), st.floats(-100, 100), st.floats(-100, 100))
def test_coarse_pixel_map_equals_the_full_wcs(
    place: tuple[float, float], roll: float, channel: str, east: float, north: float
) -> None:
    from astropy.wcs import WCS, Sip

    assume(abs(place[1]) < 89.5)  # a detector over the pole itself has no north to be rolled from
    scale, side = (31.0, 512) if channel == "short" else (63.0, 512)
    ra, dec = deproject(np.radians(east / 3600), np.radians(north / 3600), *place)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN-SIP", "DEC--TAN-SIP"], [ra, dec], [1024.5, 1024.5]
    t, s = np.radians(roll), scale / 3.6e6
    wcs.wcs.cd = s * np.array([[-np.cos(t), np.sin(t)], [np.sin(t), np.cos(t)]])
    wcs.wcs.set()
    # twice NIRCam's distortion, out to the corner of a full detector
    a, b = np.zeros((6, 6)), np.zeros((6, 6))
    a[2, 0], a[1, 1], a[0, 2], a[3, 0], a[1, 4] = 2e-5, 1.4e-5, -4e-6, 1e-9, 1e-15
    b[2, 0], b[1, 1], b[0, 2], b[0, 3], b[5, 0] = 5e-6, -1.8e-5, 1.2e-5, 2e-9, -1e-15
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    grid = grid_at(place)
    pixel_map = PixelMap.from_wcs(wcs, (side, side), grid, channel)
    window = (3, 500, 17, side)
    dense = pixel_map.expand(window)
    y, x = np.mgrid[3:500:7, 17:side:5]
    full = grid.pixels(*wcs.all_pix2world(x.ravel(), y.ravel(), 0), channel)
    mine = dense[::7, ::5].reshape(-1, 2)
    assert np.abs(mine - np.column_stack(full)).max() < 1e-5
    inverse = pixel_map.inverse().at(*full)
    assert max(np.abs(inverse[0] - x.ravel()).max(), np.abs(inverse[1] - y.ravel()).max()) < 0.02
