"""Residuals by tile: what was injected is found, and a wild value changes little."""

from __future__ import annotations

import numpy as np
import pytest

from panoramic.alignment_tiles import tile_residuals
from panoramic.errors import InputError

SHAPE = (2048, 2048)


def field(rng: np.random.Generator, n: int = 1600, sigma: float = 20.0) -> tuple[np.ndarray, ...]:
    x, y = rng.uniform(-0.5, 2047.5, (2, n))
    return x, y, rng.normal(0, sigma, n), rng.normal(0, sigma, n)


def test_a_rotation_shows() -> None:
    x, y, dra, ddec = field(np.random.default_rng(1), sigma=5)
    tiles = tile_residuals(x, y, dra + 0.1 * (y - 1023.5), ddec - 0.1 * (x - 1023.5), SHAPE, 4)
    assert [(t.row, t.column) for t in tiles] == [(r, c) for r in range(4) for c in range(4)]
    assert sum(t.n for t in tiles) == 1600
    for tile in tiles:
        middle_x, middle_y = (512 * tile.column + 256, 512 * tile.row + 256)
        assert tile.dra == pytest.approx(0.1 * (middle_y - 1024), abs=9)
        assert tile.ddec == pytest.approx(-0.1 * (middle_x - 1024), abs=9)


def test_one_tile_that_is_off_shows_there_alone() -> None:
    x, y, dra, ddec = field(np.random.default_rng(2))
    off = (x > 1535.5) & (y < 511.5)
    tiles = tile_residuals(x, y, dra + 30.0 * off, ddec, SHAPE, (4, 4))
    for tile in tiles:
        expected = 30.0 if (tile.column, tile.row) == (3, 0) else 0.0
        assert abs(tile.dra - expected) < 4 * tile.err_ra
        assert abs(tile.ddec) < 4 * tile.err_dec
    assert sum(abs(t.dra) > 4 * t.err_ra for t in tiles) == 1


@pytest.mark.parametrize("n", [3, 4, 5, 12, 40])
def test_errors_are_honest(n: int) -> None:
    rng = np.random.default_rng(n)
    medians, errors = [], []
    for _ in range(2000):
        (tile,) = tile_residuals(*np.full((2, n), 5.0), *rng.normal(0, 10, (2, n)), (16, 16), 1)
        medians.append(tile.dra)
        errors.append(tile.err_ra)
    # the median of few is better than the rule for many says; never promised better than it is
    assert 0.8 < np.std(medians) / np.mean(errors) < 1.1


def test_a_wild_residual_changes_little() -> None:
    x, y, dra, ddec = field(np.random.default_rng(3), 200)
    (before,) = tile_residuals(x, y, dra, ddec, SHAPE, 1)
    dra[7] = 1e5
    (after,) = tile_residuals(x, y, dra, ddec, SHAPE, 1)
    assert abs(after.dra - before.dra) < before.err_ra
    assert after.err_ra == pytest.approx(before.err_ra, rel=0.1)


def test_sparse_tiles_and_unknown_sources_are_left_out() -> None:
    x, y = np.array([1.0, 2, 3, 30, 31, 32, 33, 100]), np.array([1.0, 2, 3, 3, 3, 3, 3, 3])
    dra = np.array([1.0, 2, 3, 4, 4, np.nan, np.nan, 4])
    (tile,) = tile_residuals(x, y, dra, dra, (40, 40), 2)
    assert (tile.column, tile.row, tile.n, tile.dra) == (0, 0, 3, 2.0)
    assert tile_residuals(*np.empty((4, 0)), (40, 40), 2) == ()


def test_rows_and_columns_of_a_detector_that_is_not_square() -> None:
    x, y = np.full(3, 90.0), np.full(3, 10.0)
    (tile,) = tile_residuals(x, y, np.ones(3), np.zeros(3), (50, 100), (5, 10))
    assert (tile.column, tile.row) == (9, 1)
    edge = tile_residuals(np.full(3, 99.5), np.full(3, 49.5), np.ones(3), np.zeros(3), (50, 100), (5, 10))
    assert (edge[0].column, edge[0].row) == (9, 4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="one value each"):
        tile_residuals(np.ones(3), np.ones(3), np.ones(2), np.ones(3), SHAPE, 2)
    with pytest.raises(InputError, match="positive"):
        tile_residuals(np.ones(3), np.ones(3), np.ones(3), np.ones(3), SHAPE, (0, 2))
