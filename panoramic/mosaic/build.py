"""A mosaic from its exposures: backgrounds, cosmic rays, tiles, files.

Put here the order of the work. Keep out the work itself: each step has a module of its own.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panoramic.errors import MosaicError
from panoramic.mosaic import backgrounds, cosmic_rays, writer
from panoramic.mosaic.coverage import CoverageReport, measure_coverage
from panoramic.mosaic.drizzle import JY_PER_UNIT, ZEROPOINT_AB, drizzle_tile
from panoramic.mosaic.exposures import Exposure, MosaicInput, open_exposure
from panoramic.mosaic.grid import Channel, FieldGrid, Tile
from panoramic.mosaic.photometry import measure_depth
from panoramic.mosaic.result import MosaicExposure, MosaicFile, MosaicResult

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU, Header

    from panoramic.survey import MosaicRules

__all__ = ["CoverageReport", "MosaicInput", "MosaicResult", "build_mosaic", "measure_coverage", "mosaic_stem"]

_UNITS = {"sci": "10nJy", "wht": "(10nJy)-2", "exp": "s"}
_BYTES_PER_INPUT = 4096


def mosaic_stem(survey: str, field: str, version: str, filter_name: str, pupil: str) -> str:
    """Name of a mosaic without its plane, as the survey's users know it."""
    return f"{survey}-{field}-{version}-{filter_name}-{pupil}_drc".lower()


def build_mosaic(
    inputs: Sequence[MosaicInput],
    grid: FieldGrid,
    channel: Channel,
    folder: Path,
    stem: str,
    rules: MosaicRules,
    provenance: Mapping[str, str | int | float],
    progress: Callable[[str], None] | None = None,
    tiles: Sequence[Tile] | None = None,
) -> MosaicResult:
    """Build one mosaic into ``folder``: ``{stem}_sci.fits``, ``{stem}_wht.fits``, ``{stem}_exp.fits``.

    The files lie in a hidden work folder until all of them have been written and read back; then they are moved.
    Memory is that of a tile and of the exposures' windows on it. The same inputs give the same bytes, whatever their
    order; no date is written.

    Parameters
    ----------
    inputs : exposures of one filter and pupil.
    grid : of the field.
    channel : ``short`` or ``long``; sets the pixel scale.
    folder : made if it is absent.
    stem : see `mosaic_stem`.
    rules : pixfrac and kernel.
    provenance : keywords for the headers.
    progress : is told what is being done.
    tiles : tiles that the rectangle holds at least, so that filters of a field can have the same one.

    Raises
    ------
    MosaicError
        There are no inputs, they are not of one filter, a dataset is there twice, or no usable pixel is in any.
    ExposureFileError
        An input is missing, cut or not by contract.
    DiskFullError, StorageError
        The files could not be written; nothing is left behind.
    """
    started = time.process_time()
    tell = progress or (lambda _: None)
    _check(inputs)
    tell(f"opening {len(inputs)} exposures")
    exposures = [open_exposure(one, grid, channel) for one in sorted(inputs, key=lambda one: one.dataset)]
    used = grid.tiles_touching([e.outline for e in exposures], channel)
    if not used:
        raise MosaicError(f"{stem}: the exposures cover no tile")
    first, shape = grid.rectangle([*used, *(tiles or ())])
    wcs, _ = grid.mosaic_wcs([*used, *(tiles or ())], channel)
    folder = Path(folder)
    with writer.working(folder, stem) as work:
        writer.need_room(folder, 3 * (math.prod(shape) * 4 + _BYTES_PER_INPUT * (len(inputs) + 16)))
        notes = _match_backgrounds(exposures, tell)
        rejection = cosmic_rays.reject_cosmic_rays(exposures, tell)
        notes += rejection.notes
        names = {plane: f"{stem}_{plane}.fits" for plane in writer.PLANES}
        with ExitStack() as stack:
            files = {
                plane: stack.enter_context(
                    closing(
                        writer.PlaneFile(
                            work / name,
                            _header(plane, exposures, grid, channel, rules, wcs, provenance),
                            grid,
                            first,
                            shape,
                        )
                    )
                )
                for plane, name in names.items()
            }
            filled, reached, seconds = _fill(files, exposures, used, grid, channel, rules, tell)
            story = tuple(
                MosaicExposure(
                    e.dataset, e.source.association, e.sha256, e.exposure_time,
                    reached.get(e.dataset, 0), e.sky, rejection.fraction[e.dataset],
                )
                for e in exposures
            )  # fmt: skip
            if not filled:
                raise MosaicError(f"{stem}: no exposure has a usable pixel")
            notes += [f"{one.dataset} has no usable pixel in the mosaic" for one in story if not one.pixels]
            tell("verifying")
            for file in files.values():
                file.finish(_table(exposures, story))
        depth = measure_depth(work / names["sci"], work / names["wht"])
        digests = writer.publish(work, folder, names)
    n_pixels = int(seconds[0])
    return MosaicResult(
        stem=stem,
        channel=channel,
        files=tuple(MosaicFile(plane, names[plane], *digests[plane]) for plane in writer.PLANES),
        exposures=story,
        tiles=filled,
        shape=shape,
        pixel_scale_mas=grid.scale_mas(channel),
        corners=tuple((float(ra), float(dec)) for ra, dec in wcs.calc_footprint()),
        area_arcmin2=n_pixels * (grid.scale_mas(channel) / 60_000) ** 2,
        median_seconds=seconds[1],
        depth=depth,
        single_fraction=rejection.single,
        notes=tuple(notes),
        cpu_seconds=time.process_time() - started,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _check(inputs: Sequence[MosaicInput]) -> None:
    """Refuse what can't be one mosaic."""
    if not inputs:
        raise MosaicError("a mosaic needs at least one exposure")
    optics = sorted({f"{one.filter}/{one.pupil}".upper() for one in inputs})
    if len(optics) > 1:
        raise MosaicError(f"exposures of several filters can't make one mosaic: {', '.join(optics)}")
    datasets = [one.dataset for one in inputs]
    twice = sorted({d for d in datasets if datasets.count(d) > 1})
    if twice:
        raise MosaicError(f"{twice[0]} is there twice; each exposure counts once")


def _match_backgrounds(exposures: Sequence[Exposure], tell: Callable[[str], None]) -> list[str]:
    """Set each exposure's ``sky``; notes on what could not be matched."""
    if len(exposures) < 2:
        return []
    tell("matching backgrounds")
    cell = backgrounds.BLOCK_PX * float(np.median([e.map.scale for e in exposures]))
    solution = backgrounds.solve([backgrounds.coarse_image(e, cell) for e in exposures])
    for exposure, offset in zip(exposures, solution.offsets, strict=True):
        exposure.sky = float(offset)
    if solution.n_groups > 1:
        return [f"backgrounds were matched in {solution.n_groups} groups of exposures that don't overlap each other"]
    return []


def _fill(
    files: Mapping[str, writer.PlaneFile],
    exposures: Sequence[Exposure],
    used: Sequence[Tile],
    grid: FieldGrid,
    channel: Channel,
    rules: MosaicRules,
    tell: Callable[[str], None],
) -> tuple[tuple[Tile, ...], dict[str, int], tuple[int, float]]:
    """Drizzle and write all tiles: those with data, pixels by dataset, (pixels with data, their median seconds)."""
    filled: list[Tile] = []
    reached: dict[str, int] = {}
    histogram: dict[float, int] = {}
    for k, tile in enumerate(used):
        tell(f"drizzling tile {k + 1} of {len(used)}")
        planes = drizzle_tile(exposures, tile, grid, channel, rules)
        if planes is None:
            continue
        for name, pixels in (("sci", planes.science), ("wht", planes.weight), ("exp", planes.seconds)):
            files[name].write(tile, pixels)
        filled.append(tile)
        for dataset, n in planes.reached.items():
            reached[dataset] = reached.get(dataset, 0) + n
        values, counts = np.unique(planes.seconds[planes.seconds > 0], return_counts=True)
        for value, n in zip(values.tolist(), counts.tolist(), strict=True):
            histogram[value] = histogram.get(value, 0) + n
    ordered = np.array(sorted(histogram.items())).reshape(-1, 2)
    total = ordered[:, 1].cumsum()
    median = float(ordered[np.searchsorted(total, total[-1] / 2), 0]) if total.size else 0.0
    return tuple(filled), reached, (int(total[-1]) if total.size else 0, median)


def _header(
    plane: str,
    exposures: Sequence[Exposure],
    grid: FieldGrid,
    channel: Channel,
    rules: MosaicRules,
    wcs: object,
    provenance: Mapping[str, str | int | float],
) -> Header:
    """Cards of one plane, the structural ones left out."""
    header: Header = wcs.to_header()  # type: ignore[attr-defined]
    source = exposures[0].source
    header["BUNIT"] = (_UNITS[plane], "unit of the pixels")
    if plane == "sci":
        header["PHOTFNU"] = (JY_PER_UNIT, "Jy per unit")
        header["ZP"] = (ZEROPOINT_AB, "AB magnitude of one unit")
    header["TELESCOP"] = exposures[0].keywords.get("TELESCOP", "JWST")
    header["INSTRUME"] = exposures[0].keywords.get("INSTRUME", "NIRCAM")
    header["CHANNEL"] = (channel.upper(), "short- or long-wave channel")
    header["FILTER"], header["PUPIL"] = source.filter.upper(), source.pupil.upper()
    header["FIELD"] = (grid.name, "field; the grid is its own")
    header["TILEPX"] = (grid.tile_px, "side of a tile, pixels")
    header["PIXFRAC"] = (rules.pixfrac, "drizzle: drop size")
    header["KERNEL"] = (rules.kernel, "drizzle: kernel")
    header["NDRIZIM"] = (len(exposures), "exposures, see table INPUTS")
    starts = [e.start_mjd for e in exposures if math.isfinite(e.start_mjd)]
    ends = [e.end_mjd for e in exposures if math.isfinite(e.end_mjd)]
    if starts and ends:
        header["EXPSTART"] = (min(starts), "MJD of the first exposure's start")
        header["EXPEND"] = (max(ends), "MJD of the last exposure's end")
    writer.add_provenance(header, provenance)
    return header


def _table(exposures: Sequence[Exposure], story: Sequence[MosaicExposure]) -> BinTableHDU:
    """The table INPUTS: one row per exposure."""
    from astropy.io import fits

    def text(name: str, values: Sequence[str]) -> fits.Column:
        return fits.Column(name, f"{max(1, *map(len, values))}A", array=np.array(values))

    outlines = ["POLYGON ICRS " + " ".join(f"{v:.8f}" for v in e.outline[::8].ravel()) for e in exposures]
    columns = [
        text("dataset", [e.dataset for e in exposures]),
        text("association", [e.source.association for e in exposures]),
        text("detector", [e.source.detector for e in exposures]),
        fits.Column("seconds", "D", unit="s", array=[one.seconds for one in story]),
        fits.Column("sky", "D", unit="MJy/sr", array=[one.sky for one in story]),
        fits.Column("rejected", "D", array=[one.rejected for one in story]),
        fits.Column("pixels", "K", array=[one.pixels for one in story]),
        text("footprint", outlines),
        text("sha256", [e.sha256 for e in exposures]),
    ]
    return fits.BinTableHDU.from_columns(columns, name="INPUTS")
