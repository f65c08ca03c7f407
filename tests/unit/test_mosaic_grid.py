"""Grids: what is refused, and what stays light."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from panoramic.errors import MosaicError
from panoramic.mosaic.grid import FieldGrid, polygon_vertices
from panoramic.survey import MosaicRules

GRID = FieldGrid.for_field("j000000p0000", 0.0, 0.0, MosaicRules())


@pytest.mark.parametrize(
    "text",
    ["CIRCLE ICRS 1 2 3", "POLYGON ICRS 1 2 3", "POLYGON ICRS 1 2 3 4", "", "POLYGON ICRS nan nan 1 1 2 2 3"],
)
def test_what_is_no_polygon_is_refused(text: str) -> None:
    with pytest.raises(MosaicError):
        polygon_vertices(text)


@pytest.mark.parametrize("frame", ["ICRS", "FK5", "ICRS ", ""])
def test_polygon_with_any_frame_name(frame: str) -> None:
    got = polygon_vertices(f"POLYGON {frame} 359.99 -1.5e-3 0.01 -0.001 0.0 2")
    np.testing.assert_array_equal(got, [[359.99, -1.5e-3], [0.01, -0.001], [0.0, 2.0]])


def test_far_footprints_are_refused() -> None:
    far = np.array([[180.0, 0.0], [180.1, 0.0], [180.1, 0.1]])
    with pytest.raises(MosaicError, match="tangent"):
        GRID.tiles_touching([far], "long")


def test_grids_that_do_not_nest_are_refused() -> None:
    with pytest.raises(MosaicError, match="nest"):
        FieldGrid("x", 0, 0, 100, 50.0, 20.0)
    with pytest.raises(MosaicError, match="tangent"):
        FieldGrid("x", 0, 91, 100, 40.0, 20.0)


def test_no_tiles_no_mosaic() -> None:
    with pytest.raises(MosaicError):
        GRID.mosaic_wcs([], "long")


def test_north_is_up_and_east_is_left() -> None:
    wcs = GRID.tile_wcs((0, 0), "long")
    x, y = wcs.all_world2pix(0.001, 0.002, 0)
    assert x == pytest.approx(-0.5 - 0.001 * 3.6e6 / 40, abs=1e-3)
    assert y == pytest.approx(-0.5 + 0.002 * 3.6e6 / 40, abs=1e-3)


def test_import_stays_light() -> None:
    code = (
        "import sys; import panoramic.mosaic.grid, panoramic.mosaic.build, panoramic.mosaic.astrometry, "
        "panoramic.mosaic.detection, panoramic.mosaic.rgb, panoramic.alignment_offsets; "
        "print([m for m in ('scipy', 'photutils', 'astropy', 'drizzle', 'sep', 'matplotlib', 'grizli', 'jwst', 'PIL') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
