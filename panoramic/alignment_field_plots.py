"""The picture of a whole field's alignment: its associations and its exposures.

Put here what is drawn of many measurements at once. Keep out the picture of one association (``alignment_plots.py``)
and the layout (``alignment_plot_layout.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panoramic.alignment_measurement import Measurement, Offset
from panoramic.alignment_plot_layout import (
    COLUMN_CHARACTERS,
    LEFTS,
    PANEL,
    USED,
    draw_rows,
    new_figure,
    place_axes,
    save_figure,
    set_sky_limits,
    strangeness,
    tick_locator,
    window_of,
    wrapped,
    write_heading,
    write_lines,
    write_nothing,
    write_text,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ASSOCIATIONS = 50


def draw_alignment_field(path: Path, field: str, measurements: Sequence[Measurement]) -> None:
    """Write `field_figure` as a PNG of 1450 px width."""
    save_figure(path, field_figure(field, measurements))


def field_figure(field: str, measurements: Sequence[Measurement]) -> Figure:
    """Draw the offsets of all associations of a field against their references, and of all exposures against others.

    Parameters
    ----------
    field : its name.
    measurements : of its associations, in any order; may be none.
    """
    measurements = sorted(measurements, key=lambda m: m.association)
    absolute = [m.absolute for m in measurements if m.absolute is not None]
    relative = [o for m in measurements for o in m.of("relative")]
    rows, detail = absolute, "dot: east, square: north"
    if len(rows) > _MOST_ASSOCIATIONS:
        picked = sorted(rows, key=strangeness, reverse=True)[:_MOST_ASSOCIATIONS]
        detail = f"the {_MOST_ASSOCIATIONS} of {len(rows)} that deviate most; {detail}"
        rows = [r for r in rows if r in picked]
    without = len(measurements) - len(absolute)
    missing = [o for o in (*absolute, *relative) if not o.measured]
    told = [
        f"{len(measurements)} associations, {without} of them without a reference",
        f"{sum(o.measured for o in absolute)} of {len(absolute)} measured against a reference",
        f"{sum(o.measured for o in relative)} of {len(relative)} exposures measured against others",
        "",
        *(f"✗ {o.subject}: {o.cause}" for o in missing[:12]),
    ]
    if len(missing) > 12:
        told.append(f"... and {len(missing) - 12} more without a number")
    first, second = 1.2, 1.2 + PANEL + 1.45
    tall = max(1.2, 0.19 * len(rows))
    figure = new_figure(second + tall + 0.85)
    write_text(figure, 0.4, 0.2, f"{field}: alignment as measured from the products", size=14, weight="bold")
    for left, some, unit, title in (
        (LEFTS[0], [o for o in absolute if o.measured], "mas", "Associations against their references"),
        (LEFTS[1], [o for o in relative if o.measured], "px", "Exposures against each other"),
    ):
        _plane(place_axes(figure, left, first, PANEL, PANEL), some, unit, title)
    write_heading(figure, LEFTS[2] - 0.35, first - 0.3, "In numbers")
    write_lines(figure, LEFTS[2] - 0.35, first - 0.05, [(line, "k") for line in wrapped(told, COLUMN_CHARACTERS)[:24]])
    names = [f"{r.subject.removeprefix(f'{field}_')} ({r.reference})" for r in rows]
    shown = [n if len(n) < 44 else f"{n[:20]}...{n[-20:]}" for n in names]
    offsets = place_axes(figure, 3.9, second, 5.6, tall)
    draw_rows(offsets, rows, shown)
    offsets.set_xlabel("offset of the association [mas]")
    write_title(offsets, "Each association's offset", detail)
    turned = place_axes(figure, 10.3, second, 3.7, tall)
    _rotations(turned, rows)
    if not rows:
        write_nothing(offsets, "no association was held against a reference")
    return figure


def _plane(axes: Axes, offsets: Sequence[Offset], unit: str, title: str) -> None:
    """Offsets as points of the sky with their errors; filled against our own reference, open otherwise."""
    axes.set_xlabel(f"offset to the east [{unit}]")
    axes.set_ylabel(f"offset to the north [{unit}]")
    own = sum(o.reference == "own" for o in offsets)
    detail = f"{len(offsets)} exposures"
    if unit == "mas":
        detail = f"{own} own reference (filled), {len(offsets) - own} external (open)"
    write_title(axes, title, detail if offsets else "")
    if not offsets:
        set_sky_limits(axes, np.zeros(2), 10.0)
        write_nothing(axes, "nothing measured")
        return
    size = np.array([1.0 if unit == "mas" else o.pixel_scale_mas for o in offsets])[:, None]
    value = np.array([[o.dra or 0, o.ddec or 0] for o in offsets]) / size
    error = np.array([[o.err_ra or 0, o.err_dec or 0] for o in offsets]) / size
    ends = np.concatenate([value, value - error, value + error])
    set_sky_limits(axes, *window_of(ends, [np.zeros(2)], reach=np.inf, least=1e-4))
    axes.axhline(0, color="0.75", lw=0.8, zorder=1)
    axes.axvline(0, color="0.75", lw=0.8, zorder=1)
    for k, offset in enumerate(offsets):
        filled = offset.reference == "own" or unit == "px"
        axes.errorbar(
            value[k, 0], value[k, 1], xerr=error[k, 0], yerr=error[k, 1], fmt="o", ms=4, lw=0.7, color=USED,
            mfc=USED if filled else "w", zorder=3,
        )  # fmt: skip


def _rotations(axes: Axes, rows: Sequence[Offset]) -> None:
    """Rotation of each association, in deg."""
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.axvline(0, color="0.75", lw=0.8, zorder=1)
    reach = 1e-4
    for k, row in enumerate(rows):
        if row.rotation_deg is not None:
            error = row.rotation_err_deg or 0.0
            axes.errorbar(row.rotation_deg, k, xerr=error, fmt="D", color=USED, ms=4, capsize=2, lw=1)
            reach = max(reach, 1.2 * (abs(row.rotation_deg) + error))
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(tick_locator(5))
    axes.set_xlabel("rotation [deg]")
    write_title(axes, "Each association's rotation", "positive from north to east")
