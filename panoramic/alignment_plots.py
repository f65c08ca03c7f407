"""The picture by which a person believes or disbelieves an association's alignment.

Put here the figure as a whole: the verdict, the measurement in numbers, exposure against exposure, what was tried. Keep
out the panels of pairs (``alignment_pair_plots.py``), the field's picture (``alignment_field_plots.py``), what is
measured (``alignment_measurement.py``), what it must reach (``alignment.py``) and pictures of images (``plots.py``).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panoramic.alignment import Criterion, Verdict
from panoramic.alignment_measurement import Measurement, Offset
from panoramic.alignment_pair_plots import (
    cloud_of,
    draw_before_after,
    draw_histogram,
    draw_magnitudes,
    draw_vectors,
    joint_tiles,
)
from panoramic.alignment_plot_layout import (
    BAD,
    COLUMN_CHARACTERS,
    GOOD,
    LEFTS,
    LINE,
    NEAR,
    PANEL,
    WIDTH,
    characters_in,
    draw_rows,
    new_figure,
    place_axes,
    radial,
    save_figure,
    strangeness,
    tick_locator,
    wrapped,
    write_heading,
    write_lines,
    write_nothing,
    write_text,
    write_title,
)

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS, _MOST_CRITERIA = 20, 44


def draw_alignment(
    path: Path, verdict: Verdict, measurement: Measurement | None, pairs: Table | None, notes: Sequence[str] = ()
) -> None:
    """Write `alignment_figure` as a PNG of 1450 px width; its height follows its texts."""
    save_figure(path, alignment_figure(verdict, measurement, pairs, notes))


def alignment_figure(
    verdict: Verdict, measurement: Measurement | None, pairs: Table | None, notes: Sequence[str] = ()
) -> Figure:
    """Draw what is known of one association's alignment.

    Parameters
    ----------
    verdict : the gates' judgement.
    measurement : None where nothing was measured.
    pairs : matched pairs of all exposures, possibly none or None, with `alignment_pair_plots.PAIR_COLUMNS`: ``kind`` is
        ``absolute`` or ``relative``; ``x``, ``y`` 0-based pixels of the detector; ``mag`` AB, or NaN; ``dra``, ``ddec``
        catalogue minus reference as the products stand, mas; ``before_dra``, ``before_ddec`` the same with the
        archive's own pointing, NaN where unknown; ``used`` whether the solution matched it. With two more columns
        ``dx``, ``dy`` (the same offset in detector pixels) arrows are drawn in the detector's own directions.
    notes : lines on what was tried.

    Raises
    ------
    InputError
        A column is missing.
    """
    absolute, relative = cloud_of(pairs, "absolute"), cloud_of(pairs, "relative")
    cloud = absolute if len(absolute) or not len(relative) else relative
    offset = measurement.absolute if measurement and cloud.kind == "absolute" else None
    against = "other exposures" if cloud.kind == "relative" else (measurement.reference if measurement else "")
    against = against or "a reference"
    cause = wrapped([verdict.cause or _near_text(verdict)], characters_in(WIDTH - 0.8))
    criteria = _criterion_lines(verdict.criteria, 100)
    told = wrapped([*notes] or ["nothing was noted"], 86)
    method = wrapped([f"Measured by: {measurement.method}."], characters_in(WIDTH - 0.8)) if measurement else []

    first = 0.62 + LINE * len(cause) + 0.75
    second = first + PANEL + 1.55
    third = second + PANEL + 0.85
    height = third + 0.3 + LINE * (max(len(criteria), len(told)) + 2 + len(method)) + 0.15
    figure = new_figure(height)
    _headline(figure, verdict)
    write_lines(figure, 0.4, 0.62, [(line, "k") for line in cause])
    side, tiles = joint_tiles(measurement) if cloud.kind == "absolute" else (0, [])
    draw_vectors(place_axes(figure, LEFTS[0], first, PANEL, PANEL), cloud, side, tiles, against)
    draw_histogram(figure, LEFTS[1], first, cloud, offset, against)
    draw_before_after(place_axes(figure, LEFTS[2], first, PANEL, PANEL), cloud)
    draw_magnitudes(figure, LEFTS[0], second, cloud, offset)
    _exposures(place_axes(figure, LEFTS[1] + 0.35, second, PANEL - 0.35, PANEL), verdict, measurement)
    _numbers(figure, LEFTS[2] - 0.35, second - 0.3, measurement)
    write_heading(figure, 0.4, third, "Verdict: each number held against its limit")
    write_lines(figure, 0.4, third + 0.25, criteria)
    write_heading(figure, 8.0, third, "What was tried")
    write_lines(figure, 8.0, third + 0.25, [(line, "k") for line in told])
    write_lines(figure, 0.4, height - 0.12 - LINE * len(method), [(line, "0.35") for line in method])
    return figure


def _headline(figure: Figure, verdict: Verdict) -> None:
    if not verdict.accepted:
        word, colour = "✗ HELD BACK", BAD
    elif verdict.near:
        word, colour = "▲ ACCEPTED, near a limit", NEAR
    else:
        word, colour = "✓ ACCEPTED", GOOD
    write_text(figure, 0.4, 0.2, verdict.association, size=14, weight="bold")
    write_text(figure, WIDTH - 0.4, 0.2, word, size=14, weight="bold", color=colour, ha="right")


def _near_text(verdict: Verdict) -> str:
    near = "; ".join(str(c) for c in verdict.near)
    return f"near a limit: {near}" if near else "every number is inside its limit"


def _exposures(axes: Axes, verdict: Verdict, measurement: Measurement | None) -> None:
    """Each exposure's offset from the others, in mas and pixels."""
    rows = list(measurement.of("relative")) if measurement else []
    if len(rows) > _MOST_ROWS:
        picked = sorted(rows, key=strangeness, reverse=True)[:_MOST_ROWS]
        detail = f"the {_MOST_ROWS} of {len(rows)} that deviate most; dot: east, square: north"
        rows = [r for r in rows if r in picked]
    else:
        detail = "dot: east, square: north"
    limits = [c.limit for c in verdict.of("relative_alignment") if c.unit == "px" and c.limit]
    scale = rows[0].pixel_scale_mas if rows else math.nan
    reach = draw_rows(axes, rows, _short_names([r.subject for r in rows]))
    if not rows:
        write_nothing(axes, "no exposure was held\nagainst another")
        axes.set_xticks([])
    axes.set_xlabel("offset from the other exposures [mas]")
    if limits and rows:
        limit = min(limits) * scale
        if limit < 3 * reach:
            axes.set_xlim(-max(reach, 1.15 * limit), max(reach, 1.15 * limit))
            axes.axvspan(-limit, limit, color="0.92", zorder=0)
            detail += f"; grey: ±{min(limits):g} px"
    if rows:
        top = axes.secondary_xaxis(
            "top", functions=(lambda mas: np.divide(mas, scale), lambda px: np.multiply(px, scale))
        )
        top.tick_params(labelsize=8, pad=1)
        top.xaxis.set_major_locator(tick_locator(5))
        top.set_xlabel("detector px", fontsize=8, labelpad=2)
    write_title(axes, "Exposure against exposure", detail, pad=32 if rows else 5)


def _numbers(figure: Figure, left: float, top: float, measurement: Measurement | None) -> None:
    """The measurement in words."""
    write_heading(figure, left, top, "Measured from the products")
    if measurement is None:
        lines = ["no independent measurement was made"]
    elif measurement.absolute is None:
        lines = ["no reference: nothing absolute to measure"]
    else:
        lines = _offset_lines(measurement.absolute)
    relative = list(measurement.of("relative")) if measurement else []
    measured = [o for o in relative if o.measured]
    if relative:
        lines += ["", f"exposures against each other: {len(measured)} of {len(relative)} measured"]
    if measured:
        worst = max(measured, key=radial)
        lines += wrapped(
            [f"largest {radial(worst):.1f} mas = {radial(worst) / worst.pixel_scale_mas:.3f} px:"], COLUMN_CHARACTERS
        )
        lines += wrapped([worst.subject], COLUMN_CHARACTERS)
    missing = [o for o in relative if not o.measured]
    lines += wrapped([f"{o.subject}: {o.cause}; {o.text}" for o in missing[:2]], COLUMN_CHARACTERS)
    write_lines(figure, left, top + 0.25, [(line, "k") for line in lines[:26]])


def _offset_lines(offset: Offset) -> list[str]:
    head = [f"against {offset.reference}: {offset.n_sources} sources, {offset.n_reference} reference sources"]
    if not offset.measured:
        return [
            *wrapped(head, COLUMN_CHARACTERS),
            *wrapped([f"NO SOLUTION: {offset.cause}", offset.text], COLUMN_CHARACTERS),
        ]
    scale = offset.pixel_scale_mas

    def line(name: str, value: float | None, error: float | None) -> str:
        if value is None:
            return f"{name:<14}not told"
        known = "" if error is None else f" ± {error:.1f}"
        pixels = "" if error is None else f" ± {error / scale:.4f}"
        return f"{name:<14}{value:+.1f}{known} mas = {value / scale:+.4f}{pixels} px"

    lines = [
        *wrapped(head, COLUMN_CHARACTERS),
        f"{'matched':<14}{offset.n}",
        line("shift east", offset.dra, offset.err_ra),
        line("shift north", offset.ddec, offset.err_dec),
        line("median east", offset.median_ra, None),
        line("median north", offset.median_dec, None),
        line("scatter east", offset.scatter_ra, None),
        line("    north", offset.scatter_dec, None),
    ]
    if offset.rotation_deg is not None:
        error = f" ± {offset.rotation_err_deg:.4f}" if offset.rotation_err_deg is not None else ""
        lines.append(f"{'rotation':<14}{offset.rotation_deg:+.4f}{error} deg")
        lines.append(line("  at corner", offset.rotation_mas, None))
    lines.append(line("scale, corner", offset.scale_mas, offset.scale_err_mas))
    if offset.chance is not None and offset.contrast is not None:
        lines.append(f"{'by chance':<14}{offset.chance:.1g} such solutions")
        lines.append(f"{'contrast':<14}{offset.contrast:.1f} times the next solution")
    if offset.with_prior:
        lines.append("the visit's other detectors helped")
    return lines


def _criterion_lines(criteria: Iterable[Criterion], characters: int) -> list[tuple[str, str]]:
    """The criteria as lines of text with their colours: failed ones first, then near ones, then the others."""

    def look(c: Criterion) -> tuple[int, str, str, str]:
        if c.passed is False:
            return 0, "✗", "FAILED", BAD
        if c.near:
            return 1, "▲", "near", NEAR
        return (2, "–", "n/a", "0.35") if c.passed is None else (3, "✓", "passed", GOOD)

    ordered = sorted(criteria, key=lambda c: look(c)[0])
    lines: list[tuple[str, str]] = []
    for c in ordered[:_MOST_CRITERIA]:
        _, mark, word, colour = look(c)
        tail = "" if c.value is None else f"{c.value:10.4g} {c.unit:<7}"
        if c.limit is not None:
            tail += f" {'at least' if c.at_least else 'limit'} {c.limit:.4g}"
        names = textwrap.wrap(c.name, 66) or [""]
        lines.append((f"{mark} {word:<7}{names[0]:<66}{tail}".rstrip(), colour))
        rest = [*names[1:], *textwrap.wrap(c.note, characters - 9)]
        lines += [(f"{'':9}{more}", colour) for more in rest]
    hidden = len(ordered) - _MOST_CRITERIA
    if hidden > 0:
        passed = all(look(c)[0] == 3 for c in ordered[_MOST_CRITERIA:])
        lines.append((f"... and {hidden} more{' that passed' if passed else ''}", "0.35"))
    return lines


def _short_names(names: Sequence[str]) -> list[str]:
    """Dataset names without the parts that all of them share; never shorter than the exposure's number."""
    parts = [name.split("_") for name in names]
    if len({len(p) for p in parts}) != 1 or len(parts[0]) < 3:
        return [name if len(name) < 17 else f"{name[:3]}..{name[-10:]}" for name in names]
    differing = [k for k in range(len(parts[0])) if len({p[k] for p in parts}) > 1]
    shown = ["_".join(p[k] for k in differing or [len(p) - 2]) for p in parts]
    return [name if len(name) < 17 else f"..{name[-13:]}" for name in shown]
