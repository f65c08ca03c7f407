"""How the pictures of alignments are laid out: places, texts, limits of axes, colours.

Put here what the pictures of an association and of a field have in common. Keep out what is drawn from which number
(``alignment_plots.py``, ``alignment_pair_plots.py``, ``alignment_field_plots.py``).

All lengths are inches from the top left corner, so that a longer text makes a taller picture and never runs into a
panel. Equal input makes equal bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.alignment_measurement import Offset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 14.5, 100
PANEL = 3.55
LEFTS = (0.85, 5.75, 10.65)
LINE = 0.155  # height of a line of 8 pt
COLUMN_CHARACTERS = 54
BLANK = {"facecolor": "w", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
USED, UNUSED, BEFORE, GOOD, NEAR, BAD = "#0b4f8a", "0.55", "#c2570c", "#1a7f37", "#8a5a00", "#b3261e"
_CHARACTER = 0.07  # width of a character of DejaVu Sans Mono at 8 pt, a whole number of pixels
_TITLE_CHARACTERS = 60


def new_figure(height: float) -> Figure:
    """An empty figure of the common width; height in inches, rounded up to whole pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, math.ceil(height * DPI) / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def place_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, from the top left corner."""
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8.5)
    axes.yaxis.label.set_fontsize(8.5)
    return axes


def set_sky_limits(axes: Axes, centre: np.ndarray, half: float) -> None:
    """A square of sky, east to the left."""
    axes.set(xlim=(centre[0] + half, centre[0] - half), ylim=(centre[1] - half, centre[1] + half), aspect="equal")
    axes.xaxis.set_major_locator(tick_locator())
    axes.yaxis.set_major_locator(tick_locator())


def tick_locator(bins: int = 6) -> Any:
    """Ticks at round numbers, at most so many intervals."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(bins, steps=[1, 2, 5, 10])


def write_title(axes: Axes, title: str, detail: str, pad: float = 5) -> None:
    """A panel's title, and below it what its marks mean; both wrapped."""
    lines = [w for line in detail.splitlines() for w in textwrap.wrap(line, _TITLE_CHARACTERS)]
    text = "\n".join([*textwrap.wrap(title, 50), *lines])
    axes.set_title(text, fontsize=8.5, loc="left", pad=pad, parse_math=False, linespacing=1.15)


def write_nothing(axes: Axes, text: str) -> None:
    """Why a panel is empty, in its middle."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="0.35")


def write_text(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """A text whose top lies at a place in inches; no letter of it is taken for mathematics."""
    wide, tall = figure.get_size_inches()
    figure.text(left / wide, 1 - top / tall, text, va="top", parse_math=False, **style)


def write_heading(figure: Figure, left: float, top: float, text: str) -> None:
    """The heading of a block of lines."""
    write_text(figure, left, top, text, size=9.5, weight="bold")


def write_lines(figure: Figure, left: float, top: float, lines: Iterable[tuple[str, str]]) -> None:
    """Lines of 8 pt in a font of equal widths, each with its colour."""
    for k, (line, colour) in enumerate(lines):
        if line:
            write_text(figure, left, top + k * LINE, line, size=8, family="DejaVu Sans Mono", color=colour)


def characters_in(inches: float) -> int:
    """How many characters of `write_lines` fit into a width."""
    return int(inches / _CHARACTER)


def wrapped(texts: Iterable[str], characters: int) -> list[str]:
    """Lines no longer than so many characters; an empty text stays an empty line."""
    return [
        line
        for text in texts
        for part in (text.splitlines() or [""])
        for line in (textwrap.wrap(part, characters, subsequent_indent="  ") or [""])
    ]


def window_of(
    points: np.ndarray, others: Sequence[np.ndarray], reach: float = 4.0, least: float = 0.5
) -> tuple[np.ndarray, float]:
    """Middle and half width that hold 95 % of the points, and the others and zero where these are not too far off."""
    if not len(points):
        return np.zeros(points.shape[1]), 100.0
    centre = np.median(points, axis=0)
    half = max(float(np.percentile(np.abs(points - centre).max(axis=1), 95, method="higher")), least)
    low, high = centre - half, centre + half
    for other in (*others, np.zeros(points.shape[1])):
        if np.abs(other - centre).max() <= reach * half:
            low, high = np.minimum(low, other), np.maximum(high, other)
    return (low + high) / 2, 1.12 * float((high - low).max()) / 2


def draw_rows(axes: Axes, rows: Sequence[Offset], names: Sequence[str]) -> float:
    """One row for each offset: both axes with error bars, or the cause why there is none; half the axis's width."""
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.axvline(0, color="0.75", lw=0.8, zorder=1)
    largest = 0.0
    for k, row in enumerate(rows):
        if not row.measured:
            axes.text(
                0.03, k, f"✗ {row.cause}", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=BAD
            )
            continue
        for value, error, step, marker in ((row.dra, row.err_ra, -0.15, "o"), (row.ddec, row.err_dec, 0.15, "s")):
            value, error = float(value or 0), float(error or 0)
            colour = USED if marker == "o" else BEFORE
            axes.errorbar(value, k + step, xerr=error, fmt=marker, color=colour, ms=4, capsize=2, lw=1, zorder=3)
            largest = max(largest, abs(value) + error)
    reach = 1.2 * (largest or 1.0)
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(tick_locator())
    return reach


def shift_of(offset: Offset | None) -> np.ndarray | None:
    """Measured shift to the east and north, mas, (2,); None where there is none."""
    if offset is None or offset.dra is None or offset.ddec is None:
        return None
    return np.array([offset.dra, offset.ddec])


def radial(offset: Offset) -> float:
    """Length of the measured shift, mas; 0 where there is none."""
    return math.hypot(offset.dra or 0.0, offset.ddec or 0.0)


def strangeness(offset: Offset) -> float:
    """How much a person should look at it: without a number first, then by size."""
    return math.inf if not offset.measured else radial(offset)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG; an equal one makes equal bytes."""
    # without the program's version the bytes depend on the input alone
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})
