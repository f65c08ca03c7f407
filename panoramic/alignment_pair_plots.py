"""The panels of an association's picture that show its matched pairs.

Put here what is drawn of single pairs and of tiles: on the detector, as a histogram, before and after, by magnitude.
Keep out the figure as a whole (``alignment_plots.py``) and its layout (``alignment_plot_layout.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.alignment_measurement import Measurement, Offset, Tile
from panoramic.alignment_plot_layout import (
    BEFORE,
    BLANK,
    PANEL,
    UNUSED,
    USED,
    place_axes,
    set_sky_limits,
    shift_of,
    window_of,
    write_nothing,
    write_title,
)
from panoramic.errors import InputError

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAIR_COLUMNS = ("dataset", "kind", "x", "y", "mag", "dra", "ddec", "before_dra", "before_ddec", "used")
DETECTOR_PX = 2048
_HISTOGRAM_FROM = 30  # fewer pairs are told by their points


@dataclass(frozen=True)
class Cloud:
    """Pairs of one kind: dataset, detector pixels, magnitude, offsets in mas as they stand and before, arrows in mas.

    ``on_detector`` says that the arrows have the directions of the detector's axes; else north is up, east to the left.
    ``turn`` (2, 2) makes an arrow of an offset on the sky.
    """

    kind: str
    dataset: np.ndarray
    place: np.ndarray
    magnitude: np.ndarray
    offset: np.ndarray
    before: np.ndarray
    arrow: np.ndarray
    used: np.ndarray
    on_detector: bool
    turn: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def telling(self) -> np.ndarray:
        """Offsets that set the scale: the used ones, or all where none was used."""
        return self.offset[self.used] if self.used.any() else self.offset


def cloud_of(pairs: Table | None, kind: str) -> Cloud:
    """The pairs of one kind whose offsets are numbers."""
    from astropy.table import Table

    if pairs is None:
        pairs = Table(names=PAIR_COLUMNS, dtype=[str, str, *[float] * 7, bool])
    missing = [c for c in PAIR_COLUMNS if c not in pairs.colnames]
    if missing:
        raise InputError(
            f"the table of pairs lacks {', '.join(missing)}; it needs the columns {', '.join(PAIR_COLUMNS)}"
        )

    def values(*names: str) -> np.ndarray:
        return np.column_stack([np.ma.filled(np.ma.asarray(pairs[n]).astype(float), np.nan) for n in names])

    keep = (np.asarray(pairs["kind"]).astype(str) == kind) & np.isfinite(values("x", "y", "dra", "ddec")).all(axis=1)
    offset = values("dra", "ddec")[keep]
    turn, on_detector = np.array([[-1.0, 0.0], [0.0, 1.0]]), False  # east to the left
    arrow = offset @ turn.T
    if {"dx", "dy"} <= set(pairs.colnames) and keep.sum() > 1:
        moved = values("dx", "dy")[keep]
        good = np.isfinite(moved).all(axis=1)
        solved, _, rank, _ = np.linalg.lstsq(offset[good], moved[good], rcond=None)
        if rank == 2:  # pixels as mas, so that lengths are those on the sky
            pixels_per_mas = math.sqrt(abs(np.linalg.det(solved)))
            turn, on_detector = solved.T / pixels_per_mas, True
            arrow = np.where(good[:, None], moved / pixels_per_mas, offset @ turn.T)
    used = np.ma.filled(np.ma.asarray(pairs["used"]).astype(bool), False)
    return Cloud(
        kind, np.asarray(pairs["dataset"]).astype(str)[keep], values("x", "y")[keep], values("mag")[keep, 0], offset,
        values("before_dra", "before_ddec")[keep], arrow, np.asarray(used)[keep], on_detector, turn,
    )  # fmt: skip


def joint_tiles(measurement: Measurement | None) -> tuple[int, list[Tile]]:
    """Tiles per side, and the tiles of the exposures' absolute offsets taken together, each by its sources.

    Exposures with few sources have fewer tiles: the division that most exposures have is shown.
    """
    if measurement is None:
        return 0, []
    whole = (measurement.absolute,) if measurement.absolute and measurement.absolute.tiles else ()
    offsets = [o.tiles for o in whole or measurement.of("absolute") if o.tiles]
    sides = [max(max(t.column, t.row) for t in tiles) + 1 for tiles in offsets]
    if not sides:
        return 0, []
    side = max(sorted(set(sides), reverse=True), key=sides.count)
    places: dict[tuple[int, int], list[Tile]] = {}
    for tiles in (t for t, s in zip(offsets, sides, strict=True) if s == side):
        for tile in tiles:
            places.setdefault((tile.column, tile.row), []).append(tile)
    joint = []
    for (column, row), same in sorted(places.items()):
        weight = np.array([max(t.n, 1) for t in same], float)
        weight /= weight.sum()
        east, north, err_east, err_north = weight @ np.array([[t.dra, t.ddec, t.err_ra, t.err_dec] for t in same])
        few = math.sqrt(len(same))
        joint.append(Tile(column, row, sum(t.n for t in same), east, north, err_east / few, err_north / few))
    return side, joint


def draw_vectors(axes: Axes, cloud: Cloud, side: int, tiles: Sequence[Tile], against: str) -> None:
    """Offset vectors where the sources lie on the detector, medians by tile, and a scale arrow."""
    axes.set(xlim=(0, DETECTOR_PX), ylim=(0, DETECTOR_PX), aspect="equal")
    axes.set_xticks(range(0, DETECTOR_PX + 1, 512))
    axes.set_yticks(range(0, DETECTOR_PX + 1, 512))
    axes.set_xlabel("detector x [px]")
    axes.set_ylabel("detector y [px]")
    way = "detector's axes" if cloud.on_detector else "north up, east left"
    detail = f"{int(cloud.used.sum())} used (blue), {int((~cloud.used).sum())} not (grey); arrows: {way}"
    lengths = np.hypot(*(cloud.arrow[cloud.used] if cloud.used.any() else cloud.arrow).T)
    # where none was used, some of them are chance
    typical = max(float(np.percentile(lengths, 90 if cloud.used.any() else 75)), 1e-3) if len(cloud) else 1.0
    median = np.array([[t.dra, t.ddec] for t in tiles]).reshape(-1, 2) @ cloud.turn.T
    # what all sources of a tile share is far smaller than what one of them has
    longer = 5 if len(tiles) and np.hypot(*median.T).max() < 0.4 * typical else 1
    if len(tiles):
        detail += "; orange: median by tile" + (f", drawn {longer} times longer" if longer > 1 else "")
    write_title(axes, f"Offsets on the detector, against {against}", detail)
    if not len(cloud):
        write_nothing(axes, "no pairs")
        return
    pixels_per_mas = 0.13 * DETECTOR_PX / typical
    # chance pairs a hundred times as long would hide all others
    long = np.hypot(*cloud.arrow.T)
    arrow = cloud.arrow * np.minimum(1, 2.5 * typical / np.maximum(long, 1e-9))[:, None]
    width = 0.0035 if len(cloud) < 500 else 0.002
    for chosen, colour, order in ((~cloud.used, UNUSED, 2), (cloud.used, USED, 3)):
        if chosen.any():
            axes.quiver(
                *cloud.place[chosen].T, *arrow[chosen].T, angles="xy", scale_units="xy", scale=1 / pixels_per_mas,
                width=width, color=colour, alpha=0.8 if len(cloud) < 500 else 0.35, zorder=order,
            )  # fmt: skip
    if tiles:
        middle = np.array([[t.column + 0.5, t.row + 0.5] for t in tiles]) * DETECTOR_PX / side
        axes.quiver(
            *middle.T, *(longer * median).T, angles="xy", scale_units="xy", scale=1 / pixels_per_mas, width=0.011,
            color=BEFORE, edgecolor="w", linewidth=0.6, zorder=4, label="tiles",
        )  # fmt: skip
    bar = _round_number(typical)
    # below the axes, where no arrow is
    axes.annotate(
        "", xy=(DETECTOR_PX, -0.175 * DETECTOR_PX), xytext=(DETECTOR_PX - bar * pixels_per_mas, -0.175 * DETECTOR_PX),
        annotation_clip=False, arrowprops={"arrowstyle": "-|>", "color": "k", "lw": 1.3, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    cut = int((long > 2.5 * typical).sum())
    label = f"{bar:g} mas" + (f"; {cut} longer ones are cut" if cut else "")
    axes.text(
        DETECTOR_PX - bar * pixels_per_mas - 40, -0.175 * DETECTOR_PX, label, ha="right", va="center", fontsize=8,
        clip_on=False,
    )  # fmt: skip


def draw_histogram(figure: Figure, left: float, top: float, cloud: Cloud, offset: Offset | None, against: str) -> None:
    """Two-dimensional histogram of the offsets with its margins, the solution and its error."""
    from matplotlib.patches import Ellipse

    margin = 0.6
    axes = place_axes(figure, left, top + margin, PANEL - margin, PANEL - margin)
    above = place_axes(figure, left, top, PANEL - margin, margin - 0.06)
    right = place_axes(figure, left + PANEL - margin + 0.06, top + margin, margin - 0.06, PANEL - margin)
    measured = offset is not None and offset.measured
    detail = "+ solution, solid: its error, dashed: scatter of one pair" if measured else "no solution"
    write_title(above, f"Catalogue minus {against}", detail)
    for side in (above, right):
        side.set(xticks=[], yticks=[])
    axes.set_xlabel("offset to the east [mas]")
    axes.set_ylabel("offset to the north [mas]")
    solution = shift_of(offset)
    centre, half = window_of(cloud.telling, [solution] if solution is not None else [])
    set_sky_limits(axes, centre, half)
    above.set_xlim(axes.get_xlim())
    right.set_ylim(axes.get_ylim())
    if not len(cloud):
        write_nothing(axes, "no pairs")
    else:
        axes.axhline(0, color="0.75", lw=0.8, zorder=1)
        axes.axvline(0, color="0.75", lw=0.8, zorder=1)
        telling = cloud.telling
        bins = int(np.clip(1.5 * math.sqrt(len(telling)), 12, 40))
        edges = [np.linspace(c - half, c + half, bins + 1) for c in centre]
        counts = np.histogram2d(telling[:, 0], telling[:, 1], bins=(edges[0], edges[1]))[0].T
        shown = np.where(counts > 0, counts, np.nan)
        if len(telling) >= _HISTOGRAM_FROM:
            most = max(counts.max(), 1)
            axes.pcolormesh(*edges, shown, cmap="Blues", vmin=-0.3 * most, vmax=1.6 * most, zorder=0)
        unused = UNUSED if cloud.used.any() else "0.25"
        axes.plot(*cloud.offset[~cloud.used].T, "x", color=unused, ms=4, mew=0.8, zorder=2)
        if len(telling) < 300:
            axes.plot(*cloud.offset[cloud.used].T, ".", color=USED, ms=4, zorder=3)
        style: Any = {"color": USED if cloud.used.any() else UNUSED, "histtype": "stepfilled", "alpha": 0.6}
        above.hist(telling[:, 0], bins=edges[0], **style)
        right.hist(telling[:, 1], bins=edges[1], orientation="horizontal", **style)
        outside = int((np.abs(cloud.offset - centre) > half).any(axis=1).sum())
        if outside:
            axes.text(
                0.02, 0.02, f"{outside} pairs outside", transform=axes.transAxes, fontsize=8, zorder=6, bbox=BLANK
            )
    if offset is None or solution is None:
        return
    error, scatter = (offset.err_ra or 0, offset.err_dec or 0), (offset.scatter_ra or 0, offset.scatter_dec or 0)
    for (a, b), line in ((error, "-"), (scatter, "--")):
        axes.add_patch(Ellipse(tuple(solution), 2 * a, 2 * b, fill=False, ec="k", ls=line, lw=1.3, zorder=5))
    axes.plot(*solution, "+", color="k", ms=9, mew=1.3, zorder=5)
    above.axvline(solution[0], color="k", lw=1)
    right.axhline(solution[1], color="k", lw=1)


def draw_before_after(axes: Axes, cloud: Cloud) -> None:
    """The offsets with the archive's pointing and as the products stand, and the way between their medians."""
    known = np.isfinite(cloud.before).all(axis=1) & (cloud.used if cloud.used.any() else True)
    before, after = cloud.before[known], cloud.offset[known]
    axes.set_xlabel("offset to the east [mas]")
    axes.set_ylabel("offset to the north [mas]")
    if not len(before):
        set_sky_limits(axes, np.zeros(2), 100.0)
        write_title(axes, "Before and after", "")
        write_nothing(axes, "the offsets before the alignment\nare not known" if len(cloud) else "no pairs")
        return
    start, end = np.median(before, axis=0), np.median(after, axis=0)
    detail = (
        f"orange, archive's pointing: median ({start[0]:+.0f}, {start[1]:+.0f})\n"
        f"blue, after the alignment: median ({end[0]:+.1f}, {end[1]:+.1f}) mas"
    )
    write_title(axes, "Before and after", detail)
    set_sky_limits(axes, *window_of(np.concatenate([before, after]), [np.zeros(2)], reach=np.inf))
    axes.axhline(0, color="0.75", lw=0.8, zorder=1)
    axes.axvline(0, color="0.75", lw=0.8, zorder=1)
    axes.plot(*before.T, "o", mfc="none", mec=BEFORE, ms=4, mew=0.8, alpha=0.7, zorder=2)
    axes.plot(*after.T, ".", color=USED, ms=4, alpha=0.7, zorder=3)
    way = {"arrowstyle": "-|>", "color": "k", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=way, zorder=4)


def draw_magnitudes(figure: Figure, left: float, top: float, cloud: Cloud, offset: Offset | None) -> None:
    """Offsets against magnitude on both axes, with a running median."""
    height = (PANEL - 0.15) / 2
    both = [place_axes(figure, left, top + k * (height + 0.15), PANEL, height) for k in (0, 1)]
    known = np.isfinite(cloud.magnitude)
    lost = int((~known).sum())
    write_title(
        both[0], "Offsets against magnitude", "line: running median" + (f"; {lost} without magnitude" if lost else "")
    )
    both[0].tick_params(labelbottom=False)
    both[1].set_xlabel("AB magnitude")
    solution = shift_of(offset)
    for k, (axes, name) in enumerate(zip(both, ("east", "north"), strict=True)):
        axes.set_ylabel(f"to the {name} [mas]")
        if not known.any():
            write_nothing(axes, "no magnitudes are known" if len(cloud) else "no pairs")
            axes.set(xticks=[], yticks=[])
            continue
        middle, half = window_of(cloud.telling[:, [k]], [np.zeros(1)])
        axes.set_ylim(middle[0] - half, middle[0] + half)
        axes.axhline(0, color="0.75", lw=0.8, zorder=1)
        size = 4 if len(cloud) < 500 else 2
        for chosen, sign, colour in ((~cloud.used, "x", UNUSED), (cloud.used, ".", USED)):
            mine = chosen & known
            axes.plot(cloud.magnitude[mine], cloud.offset[mine, k], sign, color=colour, ms=size, mew=0.8, zorder=2)
        mine = known & (cloud.used if (cloud.used & known).any() else True)
        at, median, error = _running_median(cloud.magnitude[mine], cloud.offset[mine, k], cloud.dataset[mine])
        if len(at) > 1:
            axes.errorbar(at, median, error, color=BEFORE, lw=1.6, capsize=2, zorder=4, label="running median")
        if solution is not None:
            axes.axhline(solution[k], color="k", lw=0.8, ls="--", zorder=3)
        low, high = cloud.magnitude[known].min(), cloud.magnitude[known].max()
        pad = 0.05 * (high - low) or 0.5
        axes.set_xlim(low - pad, high + pad)


def _running_median(
    magnitude: np.ndarray, offset: np.ndarray, dataset: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median magnitude, median offset and its error in groups of equal number, at least five stars each."""
    # a star seen in n exposures makes n pairs that share the reference's error: one star, not n. Which pairs are of one
    # star the table doesn't say: all are taken to be seen in every exposure, so that no error is too small
    exposures = max(len(np.unique(dataset)), 1)
    groups = int(np.clip(len(magnitude) // (5 * exposures), 0, 10))
    parts = np.array_split(np.argsort(magnitude, kind="stable"), groups) if groups else []
    at = np.array([np.median(magnitude[p]) for p in parts])
    middle = np.array([np.median(offset[p]) for p in parts])
    spread = [1.4826 * np.median(np.abs(offset[p] - m)) for p, m in zip(parts, middle, strict=True)]
    stars = [len(p) / exposures for p in parts]
    # 1.2533: the median of a Gaussian is that much less certain than its mean
    return at, middle, np.array([1.2533 * s / math.sqrt(n) for s, n in zip(spread, stars, strict=True)])


def _round_number(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(f for f in (1, 2, 5) if f * power <= value * (1 + 1e-9)) * power
