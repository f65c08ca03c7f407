"""Pictures and region files of footprints, for people.

Put here how footprints are shown. Keep out where they lie (`panoramic.footprints`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from panoramic.footprints import mean_position, to_tangent_plane


def write_regions(path: Path, footprints: Sequence[tuple[str, np.ndarray, str]]) -> None:
    """Write a DS9 region file of (label, vertices in deg, colour) triples."""
    lines = ["# Region file format: DS9 version 4.1", "icrs"]
    for label, vertices, colour in footprints:
        corners = ",".join(f"{v:.7f}" for v in np.asarray(vertices).ravel())
        lines.append(f"polygon({corners}) # color={colour} text={{{label}}}")
    path.write_text("\n".join(lines) + "\n")


FILTER_COLOURS = {
    "F070W": "#6a3d9a", "F090W": "#5e4fa2", "F115W": "#3288bd", "F140M": "#3a9cc0", "F150W": "#66c2a5",
    "F162M": "#7fcf8f", "F164N": "#7fcf8f", "F150W2": "#66c2a5", "F182M": "#abdda4", "F187N": "#abdda4",
    "F200W": "#9ccc3c", "F210M": "#c2d03a", "F212N": "#c2d03a", "F250M": "#e6c229", "F277W": "#fdae61",
    "F300M": "#f79a4b", "F322W2": "#f68b3c", "F323N": "#f68b3c", "F335M": "#f46d43", "F356W": "#ee5a3a",
    "F360M": "#ea5037", "F405N": "#e34a33", "F410M": "#df3f36", "F430M": "#d53e4f", "F444W": "#c51b3d",
    "F460M": "#a5123a", "F466N": "#a5123a", "F470N": "#9e0142", "F480M": "#80003a",
}  # fmt: skip


def plot_footprints(
    path: Path,
    title: str,
    exposures: Sequence[tuple[str, np.ndarray, float]],
    held_back: Sequence[bool] | None = None,
    around: Sequence[np.ndarray] = (),
) -> None:
    """Draw a field's exposures on the sky, coloured by filter, with compass, scale bar and exposure times.

    Parameters
    ----------
    path : the PNG to write.
    exposures : (filter, vertices in deg (N, 2), exposure time in s) of each exposure.
    held_back : which of them are held back (drawn dashed); all are taken as used if absent.
    around : footprints (N, 2) of other data, drawn in grey where they lie in the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon as Patch

    held_back = held_back or [False] * len(exposures)
    centre = mean_position(np.concatenate([v for _, v, _ in exposures]))
    figure = Figure(figsize=(7.5, 6.5), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for vertices in around:
        axes.add_patch(Patch(to_tangent_plane(vertices, centre), facecolor="0.9", edgecolor="0.7", lw=0.6, zorder=0))
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    for (name, vertices, exptime), held in zip(exposures, held_back, strict=True):
        colour = FILTER_COLOURS.get(name, "#888888")
        plane = to_tangent_plane(vertices, centre)
        axes.add_patch(Patch(plane, facecolor=colour, alpha=0.10, edgecolor="none"))
        axes.add_patch(Patch(plane, fill=False, edgecolor=colour, lw=1.1, ls="--" if held else "-"))
        seconds[name] = seconds.get(name, 0.0) + exptime
        counts[name] = counts.get(name, 0) + 1
    outline = np.concatenate([to_tangent_plane(v, centre) for _, v, _ in exposures])
    low, high = outline.min(axis=0), outline.max(axis=0)
    pad = 0.12 * (high - low).max()
    axes.set_xlim(high[0] + pad, low[0] - pad)  # east to the left
    axes.set_ylim(low[1] - pad, high[1] + pad)
    axes.set_aspect("equal")
    axes.set_xlabel("east of centre [arcmin]")
    axes.set_ylabel("north of centre [arcmin]")
    axes.set_title(f"{title}\nRA {centre[0]:.5f}  Dec {centre[1]:+.5f}", fontsize=11)
    arrow = 0.09 * (high - low).max()
    tail = np.array([low[0] - pad * 0.55, low[1] - pad * 0.55])
    for label, step in (("E", (arrow, 0.0)), ("N", (0.0, arrow))):
        axes.annotate(
            "", xy=tuple(tail + step), xytext=tuple(tail), arrowprops={"arrowstyle": "-|>", "color": "k", "lw": 1.2}
        )
        east, north = tail + 1.25 * np.array(step)
        axes.text(east, north, label, ha="center", va="center", fontsize=9)
    bar = np.array([high[0] + pad * 0.7, low[1] - pad * 0.6])
    axes.plot([bar[0], bar[0] - 1.0], [bar[1], bar[1]], "k-", lw=2)
    axes.text(bar[0] - 0.5, bar[1] + pad * 0.12, "1 arcmin", ha="center", fontsize=8)
    handles = [
        Line2D(
            [],
            [],
            color=FILTER_COLOURS.get(n, "#888888"),
            label=f"{n}: {counts[n]} exposures, {seconds[n] / 1e3:.1f} ks of detector time",
        )
        for n in sorted(seconds)
    ]
    if len(around):
        handles.append(Line2D([], [], color="0.7", label=f"{len(around)} exposures of other visits around"))
    if any(held_back):
        handles.append(Line2D([], [], color="k", ls="--", label="held back"))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=8, ncol=2, frameon=False)
    figure.savefig(path, bbox_inches="tight", format="png")
