"""One tile: exposures drizzled onto it with STScI's ``drizzle``, in units of 10 nJy per pixel.

Put here what turns exposures into the pixels of a tile. Keep out files (`writer`) and which tiles there are (`build`).

Drizzle conserves surface brightness, so the science plane is scaled once, by the solid angle of the *output* pixel.
The weight is drizzle's own sum: it spreads the inverse variance of an input pixel over the output without loss, so that
``1 / sqrt(wht)`` is the noise of a pixel *as if uncorrelated*: sums over many pixels have exactly this noise, while the
scatter of single pixels is lower, by the correlation that drizzling brings (Fruchter & Hook 2002, PASP 114, 144).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from panoramic.mosaic.grid import MAS, Channel, FieldGrid, Tile

if TYPE_CHECKING:
    from panoramic.mosaic.exposures import Exposure
    from panoramic.survey import MosaicRules

ZEROPOINT_AB = 28.9
JY_PER_UNIT = 1e-8
_CONTEXT_BITS = 32
_MARGIN = 8


def units_per_mjy_sr(scale_mas: float) -> float:
    """10 nJy per output pixel that 1 MJy/sr amounts to, for a pixel of ``scale_mas``."""
    return 1e6 / JY_PER_UNIT * (scale_mas * MAS) ** 2


@dataclass(frozen=True)
class TilePlanes:
    """The pixels of one tile, all float32 of shape (tile_px, tile_px).

    Parameters
    ----------
    science : 10 nJy per pixel; 0 where there are no data.
    weight : inverse variance, (10 nJy)^-2; 0 where there are no data.
    seconds : summed exposure time of every exposure of which a usable pixel reached the output pixel.
    reached : output pixels that each exposure reached, by dataset.
    """

    science: np.ndarray
    weight: np.ndarray
    seconds: np.ndarray
    reached: dict[str, int]


def exposures_touching(exposures: Sequence[Exposure], tile: Tile, grid: FieldGrid) -> list[Exposure]:
    """Those whose detector may reach into a tile, in the given order."""
    box = _box(tile, grid)
    return [exposure for exposure in exposures if exposure.map.window(box) is not None]


def drizzle_tile(
    exposures: Sequence[Exposure], tile: Tile, grid: FieldGrid, channel: Channel, rules: MosaicRules
) -> TilePlanes | None:
    """Drizzle all exposures that touch a tile; None where not one usable pixel reaches it.

    Parameters
    ----------
    exposures : opened on ``grid`` and ``channel``; the order is kept, so the bytes are reproducible.
    tile : which one.
    rules : pixfrac and kernel.
    """
    from drizzle.resample import Drizzle

    # drizzle passes over input pixels whose centre lies outside its output, though their drops reach into it
    shape = (grid.tile_px + 2 * _MARGIN, grid.tile_px + 2 * _MARGIN)
    own = slice(_MARGIN, _MARGIN + grid.tile_px), slice(_MARGIN, _MARGIN + grid.tile_px)
    science, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    seconds = np.zeros(shape, np.float32)
    reached: dict[str, int] = {}
    origin = tuple(k - _MARGIN for k in grid.origin(tile))
    touching = exposures_touching(exposures, tile, grid)
    context = np.zeros((max(1, -(-len(touching) // _CONTEXT_BITS)), *shape), np.int32)
    engine = Drizzle(kernel=rules.kernel, fillval=0.0, out_img=science, out_wht=weight, out_ctx=context)
    parts: list[tuple[slice, slice]] = []
    for exposure in touching:
        window = exposure.map.window(_box(tile, grid))
        if window is None:
            continue
        pixels, positions = exposure.read(window), exposure.map.expand(window, (origin[0], origin[1]))
        engine.add_image(
            pixels.science,
            exptime=exposure.exposure_time,
            pixmap=positions,
            weight_map=pixels.weight,
            pixfrac=rules.pixfrac,
            pixel_scale_ratio=1 / exposure.map.scale,
            in_units="cps",
        )
        parts.append(_reach(positions, grid.tile_px))
    science, weight, seconds = science[own], weight[own], seconds[own]
    _add_seconds(context[:, own[0], own[1]], touching, parts, seconds, reached)
    empty = weight <= 0
    if empty.all():
        return None
    factor = units_per_mjy_sr(grid.scale_mas(channel))
    science, weight = science * np.float32(factor), weight * np.float32(factor**-2)
    for plane in (science, weight, seconds):
        plane[empty] = 0
    return TilePlanes(science, weight, seconds, reached)


def _add_seconds(
    context: np.ndarray,
    exposures: Sequence[Exposure],
    parts: Sequence[tuple[slice, slice]],
    seconds: np.ndarray,
    reached: dict[str, int],
) -> None:
    """Add the exposure times that drizzle's context planes (one bit per exposure) stand for."""
    bits = context.view(np.uint32)
    for k, (exposure, part) in enumerate(zip(exposures, parts, strict=True)):
        plane, bit = divmod(k, _CONTEXT_BITS)
        hit = (bits[plane][part] & np.uint32(1 << bit)) != 0
        n = int(np.count_nonzero(hit))
        if n:
            np.add(seconds[part], np.float32(exposure.exposure_time), out=seconds[part], where=hit)
            reached[exposure.dataset] = n


def _reach(positions: np.ndarray, side: int) -> tuple[slice, slice]:
    """Rows and columns of a tile that drops at ``positions`` (counted from its margin's corner) can fall on."""
    edge = np.concatenate([positions[0], positions[-1], positions[:, 0], positions[:, -1]]) - _MARGIN
    low = np.clip(np.floor(edge.min(axis=0) - _MARGIN), 0, side).astype(int)
    high = np.clip(np.ceil(edge.max(axis=0) + _MARGIN), 0, side).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _box(tile: Tile, grid: FieldGrid) -> tuple[float, float, float, float]:
    """A tile's extent on the plane with room for the drop of a pixel whose centre lies outside."""
    x, y = grid.origin(tile)
    return x - _MARGIN, x + grid.tile_px + _MARGIN, y - _MARGIN, y + grid.tile_px + _MARGIN
