"""The pictures of an alignment: what is drawn, on which scale, and that every text can be read."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table, vstack
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.quiver import Quiver
from matplotlib.text import Text

from panoramic.alignment import Criterion, Verdict
from panoramic.alignment_field_plots import draw_alignment_field, field_figure
from panoramic.alignment_measurement import Measurement, Offset, Tile
from panoramic.alignment_pair_plots import DETECTOR_PX, PAIR_COLUMNS
from panoramic.alignment_plots import alignment_figure, draw_alignment
from panoramic.errors import InputError

SCALES = {"long": 63.0, "short": 31.0}
KINDS = {
    # pairs per exposure, their scatter (mas), rotation (deg), how far the second exposure is off (px)
    "long": (54, 30.0, 0.0, 0.0),
    "short": (14, 25.0, 0.0, 0.0),
    "rotation": (48, 28.0, 0.2, 0.0),
    "few": (5, 30.0, 0.0, 0.0),
    "one": (1, 30.0, 0.0, 0.0),
    "none": (0, 30.0, 0.0, 0.0),
    "dither": (60, 20.0, 0.0, 1.0),
    "many": (750, 30.0, 0.0, 0.0),
}


class Case:
    """A made-up association: four exposures, true offsets known."""

    def __init__(self, kind: str, exposures: int = 4, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.kind, self.name = kind, f"j131432p2432_v209-2514-f444w_{seed:05d}"
        number, scatter, rotation, off = KINDS[kind]
        self.scale = SCALES["short" if kind == "short" else "long"]
        detector = "nrcb1" if kind == "short" else "nrcblong"
        self.datasets = [f"jw02514209001_02201_{k + 1:05d}_{detector}" for k in range(exposures)]
        turn = np.radians(37.0)
        to_sky = self.scale * np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        rows: list[tuple] = []
        shift = np.array([312.0, -145.0])
        for k, dataset in enumerate(self.datasets):
            false = number // 5
            place = rng.uniform(0, DETECTOR_PX - 1, (number + false, 2))
            sky = (place - DETECTOR_PX / 2) @ to_sky.T
            offset = rng.normal(0, scatter, (number + false, 2)) + np.array([2.0, -3.0])
            offset += np.radians(rotation) * np.column_stack([sky[:, 1], -sky[:, 0]])
            if k == 1:
                offset += [off * self.scale, 0]
            offset[number:] += rng.uniform(-450, 450, (false, 2))
            before = offset + shift + rng.normal(0, 2, 2)
            pixels = offset @ np.linalg.inv(to_sky).T
            mag = rng.uniform(18, 24, number + false)
            refused = kind in ("rotation", "few", "one")
            for i in range(number + false):
                rows.append(
                    (
                        dataset,
                        "absolute",
                        *place[i],
                        mag[i],
                        *offset[i],
                        *before[i],
                        i < number and not refused,
                        *pixels[i],
                    )
                )
            for i in range(min(number, 20)):
                moved = rng.normal(0, 2, 2) + ([off * self.scale, 0] if k == 1 else [-off * self.scale / 3, 0])
                rows.append((dataset, "relative", *place[i], mag[i], *moved, np.nan, np.nan, True, np.nan, np.nan))
        types = ["U40", "U10", *[float] * 7, bool, float, float]
        names = [*PAIR_COLUMNS, "dx", "dy"]
        self.pairs = Table(rows=rows or None, names=names, dtype=types)
        self.measurement = self._measurement(number, scatter, rotation, off)
        self.verdict = self._verdict(off)
        self.notes = (
            "own: our own reference covers 12% with 3 sources, less than 60% or 12",
            "LS_DR9: 54 sources; first attempt, search radius 3 arcsec: accepted",
            "PS1: not asked",
        )

    def _measurement(self, number: int, scatter: float, rotation: float, off: float) -> Measurement:
        exposures = []
        base = {"n_sources": 3 * number + 10, "n_reference": number + 20, "pixel_scale_mas": self.scale}
        for k, dataset in enumerate(self.datasets):
            if number < 3:
                exposures.append(
                    Offset(dataset, "relative", "other exposures", cause="too few sources", text="only 1", **base)
                )
                continue
            moved = off * self.scale if k == 1 else -off * self.scale / 3
            exposures.append(
                Offset(
                    dataset, "relative", "other exposures", n=90, dra=moved + 0.3 * k, ddec=-0.4, err_ra=0.3, err_dec=0.25,
                    scatter_ra=3.0, scatter_dec=2.8, **base,
                )
            )  # fmt: skip
            mine = self.pairs[
                (self.pairs["dataset"] == dataset) & self.pairs["used"] & (self.pairs["kind"] == "absolute")
            ]
            tiles = []
            for column, row in itertools.product(range(2), range(2)):
                half = DETECTOR_PX / 2
                inside = (mine["x"] // half == column) & (mine["y"] // half == row)
                if inside.sum() > 2:
                    east, north = np.median(mine["dra"][inside]), np.median(mine["ddec"][inside])
                    tiles.append(Tile(column, row, int(inside.sum()), float(east), float(north), 9.0, 9.0))
            exposures.append(
                Offset(dataset, "absolute", "LS_DR9", n=len(mine), dra=2.0, ddec=-3.0, tiles=tuple(tiles), **base)
                if len(mine)
                else Offset(dataset, "absolute", "LS_DR9", cause="no peak above chance", **base)
            )
        if self.kind in ("few", "one", "none"):
            text = f"only {number} distinct reference sources around the field; 5 are needed"
            absolute = Offset(self.name, "absolute", "LS_DR9", cause="too few reference sources", text=text, **base)
        elif self.kind == "rotation":
            text = "the best solution is turned by 0.412 deg (limit 0.3)"
            absolute = Offset(
                self.name, "absolute", "LS_DR9", cause="rotation beyond the largest allowed", text=text, **base
            )
        else:
            error = scatter / np.sqrt(number)
            absolute = Offset(
                self.name, "absolute", "LS_DR9", n=number, dra=2.0, ddec=-3.0, err_ra=error, err_dec=error,
                scatter_ra=scatter, scatter_dec=scatter, median_ra=2.1, median_dec=-2.8, rotation_deg=0.0004,
                rotation_err_deg=0.0012, rotation_mas=0.6, scale_mas=0.2, scale_err_mas=3.1, chance=1e-14, contrast=8.2,
                **base,
            )  # fmt: skip
        return Measurement(self.name, "LS_DR9", "external", absolute, tuple(exposures))

    def _verdict(self, off: float) -> Verdict:
        criteria = []
        for k, dataset in enumerate(self.datasets[1:], start=1):
            criteria.append(Criterion("relative_alignment", f"{dataset} RMS", 0.012, 0.1, "px", True))
            criteria.append(Criterion("relative_alignment", f"{dataset} N", 86, 24, "matches", True, at_least=True))
            if off:
                value = off if k == 1 else off / 3
                criteria.append(
                    Criterion(
                        "relative_alignment",
                        f"{dataset} measured offset beyond 3 errors",
                        value,
                        0.1,
                        "px",
                        value <= 0.1,
                    )
                )
        a = self.measurement.absolute
        if a is None or not a.measured:
            said = "no catalogue covers it" if a is None else f"{a.cause}; {a.text}"
            criteria.append(Criterion("absolute_alignment", "reference", None, None, "", False, note=said))
        else:
            near = a.err_ra > 5
            criteria.append(Criterion("absolute_alignment", "error against LS_DR9", a.err_ra, 20, "mas", True, near))
            criteria.append(
                Criterion("absolute_alignment", "N against LS_DR9", a.n, 12, "matches", True, at_least=True)
            )
        failed = [str(c) for c in criteria if c.passed is False]
        return Verdict(self.name, "held_back" if failed else "accepted", tuple(criteria), "; ".join(failed))

    def figure(self) -> Figure:
        return alignment_figure(self.verdict, self.measurement, self.pairs, self.notes)


@functools.cache
def drawn(kind: str) -> tuple[Case, Figure]:
    """A case and its figure, once for all tests that change neither."""
    case = Case(kind)
    return case, case.figure()


def titled(figure: Figure, start: str) -> Axes:
    """The axes whose title begins so."""
    found = [a for a in figure.axes if a.get_title(loc="left").startswith(start)]
    assert len(found) == 1, (start, [a.get_title(loc="left") for a in figure.axes])
    return found[0]


def sky_panel(figure: Figure) -> Axes:
    """The two-dimensional histogram: the panel that stands below the one with its title."""
    return figure.axes[figure.axes.index(titled(figure, "Catalogue minus")) - 1]


def words(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in shown_texts(figure))


def shown_texts(figure: Figure) -> list[Text]:
    """All texts that are drawn; tick labels of places outside of the axes are not."""
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    for axes in [*figure.axes, *(c for a in figure.axes for c in a.child_axes)]:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            gone = {
                id(label)
                for tick in axis.get_major_ticks()
                for label in (tick.label1, tick.label2)
                if not low <= tick.get_loc() <= high
            }
            texts = [t for t in texts if id(t) not in gone]
    return texts


def held_by(axes: Axes, points: np.ndarray) -> float:
    """The part of the points (N, 2) inside the limits of the axes."""
    low, high = np.sort(np.array([axes.get_xlim(), axes.get_ylim()]), axis=1).T
    return float(((points >= low) & (points <= high)).all(axis=1).mean())


def offsets_of(case: Case, kind: str = "absolute") -> np.ndarray:
    rows = case.pairs[case.pairs["kind"] == kind]
    used = np.asarray(rows["used"])
    both = np.column_stack([rows["dra"], rows["ddec"]])
    return both[used] if used.any() else both


def assert_readable(figure: Figure) -> None:
    """No text outside the canvas, none below 8 pt, none over another."""
    texts = shown_texts(figure)
    assert texts
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in texts]
    width, height = figure.canvas.get_width_height()
    assert width <= 1500
    for text, box in zip(texts, boxes, strict=True):
        said = text.get_text()
        assert box.x0 >= 0, said
        assert box.y0 >= 0, said
        assert box.x1 <= width, said
        assert box.y1 <= height, said
        assert text.get_fontsize() >= 8, said
    for (a, box_a), (b, box_b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        # neighbouring lines may touch by a pixel
        common_x = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        common_y = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        assert not (common_x > 1 and common_y > 1), (a.get_text(), b.get_text())


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_can_be_read(kind: str) -> None:
    assert_readable(drawn(kind)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_arrow_for_every_absolute_pair(kind: str) -> None:
    case, figure = drawn(kind)
    arrows = [q for q in titled(figure, "Offsets on the detector").findobj(Quiver) if q.get_label() != "tiles"]
    assert sum(q.N for q in arrows) == (case.pairs["kind"] == "absolute").sum()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_the_axes_are_on_the_scale_of_the_data(kind: str) -> None:
    case, figure = drawn(kind)
    offsets = offsets_of(case)
    assert held_by(sky_panel(figure), offsets) >= 0.9
    widest = 4 * np.abs(offsets).max() + 1
    assert abs(np.subtract(*sky_panel(figure).get_xlim())) < widest
    after = titled(figure, "Before and after")
    assert held_by(after, offsets) >= 0.9
    rows = case.pairs[(case.pairs["kind"] == "absolute")]
    rows = rows[rows["used"]] if rows["used"].any() else rows
    assert held_by(after, np.column_stack([rows["before_dra"], rows["before_ddec"]])) >= 0.85
    for axes in (sky_panel(figure), after):
        assert axes.get_xlim()[0] > axes.get_xlim()[1]  # east to the left
        assert axes.get_aspect() == 1
    detector = titled(figure, "Offsets on the detector")
    assert detector.get_xlim() == detector.get_ylim() == (0, DETECTOR_PX)


def test_a_lone_wrong_pair_does_not_set_the_scale() -> None:
    case = Case("long")
    case.pairs["dra"][0] = 50_000.0
    assert abs(np.subtract(*sky_panel(case.figure()).get_xlim())) < 400


@pytest.mark.parametrize("kind", KINDS)
def test_cause_limits_and_notes_are_told(kind: str) -> None:
    case, figure = drawn(kind)
    said = " ".join(words(figure).split())
    for criterion in case.verdict.criteria:
        if criterion.limit is not None:
            sign = "at least" if criterion.at_least else "limit"
            assert f"{criterion.value:.4g} {criterion.unit} {sign} {criterion.limit:.4g}" in said
    assert case.verdict.accepted == ("ACCEPTED" in said) != ("HELD BACK" in said)
    assert " ".join(case.verdict.cause.split()) in said
    for note in case.notes:
        assert note in said
    absolute = case.measurement.absolute
    if not absolute.measured:
        assert absolute.cause in said
        assert absolute.text in said


def test_marks_differ_without_colour() -> None:
    case = Case("dither")
    told = [
        Criterion("g", "near one", 0.05, 0.1, "px", True, near=True),
        Criterion("g", "none", None, None, "", None, note="x"),
    ]
    verdict = Verdict(case.name, "held_back", (*case.verdict.criteria, *told), "c")
    said = words(alignment_figure(verdict, case.measurement, case.pairs, ()))
    lines = [line for line in said.splitlines() if line[:1] in "✗▲–✓"]
    for mark, word, name in (
        ("✗", "FAILED", "offset"),
        ("▲", "near", "near one"),
        ("–", "n/a", "none"),
        ("✓", "passed", "N"),
    ):
        assert any(line.startswith(f"{mark} {word}") and name in line for line in lines), (mark, lines)
    # what failed comes first
    assert [line[0] for line in lines if line[2:4] != "HE"][:4].count("✗") >= 3


def test_the_solution_and_its_error_are_where_they_were_measured() -> None:
    case, figure = drawn("long")
    ellipses = [p for p in sky_panel(figure).patches if isinstance(p, Ellipse)]
    assert [tuple(np.round(e.get_center(), 6)) for e in ellipses] == [(2.0, -3.0)] * 2
    error, scatter = (e.get_width() / 2 for e in ellipses)
    assert error == pytest.approx(case.measurement.absolute.err_ra)
    assert scatter == pytest.approx(case.measurement.absolute.scatter_ra)
    assert not [p for p in sky_panel(drawn("rotation")[1]).patches if isinstance(p, Ellipse)]


def test_a_rotation_turns_the_arrows_about_the_middle_of_the_detector() -> None:
    """With offsets in detector pixels the arrows of a rotation stand across the way to the middle."""
    (arrows,) = titled(drawn("rotation")[1], "Offsets on the detector").findobj(Quiver)
    away = np.column_stack([arrows.X, arrows.Y]) - DETECTOR_PX / 2
    far = np.hypot(*away.T) > 500
    way = np.column_stack([arrows.U, arrows.V])[far]
    across = (away[far, 0] * way[:, 1] - away[far, 1] * way[:, 0]) / np.hypot(*away[far].T) / np.hypot(*way.T)
    assert abs(np.median(across)) > 0.9


def test_without_detector_offsets_the_arrows_point_on_the_sky() -> None:
    case = Case("long")
    case.pairs.remove_columns(["dx", "dy"])
    axes = titled(case.figure(), "Offsets on the detector")
    assert "north up, east left" in axes.get_title(loc="left")
    arrows = next(q for q in axes.findobj(Quiver) if q.N == 216)
    used = case.pairs[case.pairs["used"] & (case.pairs["kind"] == "absolute")]
    ratio = arrows.U / -np.asarray(used["dra"])
    assert ratio == pytest.approx(np.ones(216))


def test_arrows_have_the_directions_of_the_detector_axes() -> None:
    case, figure = drawn("long")
    axes = titled(figure, "Offsets on the detector")
    assert "arrows: detector's axes" in axes.get_title(loc="left")
    arrows = next(q for q in axes.findobj(Quiver) if q.N == 216)
    used = case.pairs[case.pairs["used"] & (case.pairs["kind"] == "absolute")]
    assert np.column_stack([arrows.U, arrows.V]) == pytest.approx(
        case.scale * np.column_stack([used["dx"], used["dy"]]), rel=1e-3
    )


def test_stars_in_several_exposures_do_not_make_the_running_median_more_certain() -> None:
    """The same pairs in one exposure and in four: one star stays one star."""
    case = Case("many", exposures=1)
    one = case.pairs[case.pairs["kind"] == "absolute"]
    four = vstack([one, one, one, one])
    four["dataset"] = np.repeat([f"jw02514209001_02201_{k + 1:05d}_nrcblong" for k in range(4)], len(one))
    bars = []
    for pairs in (one, four):
        figure = alignment_figure(case.verdict, case.measurement, pairs, case.notes)
        axes = titled(figure, "Offsets against magnitude")
        (line,) = [c for c in axes.containers if c.get_label() == "running median"]
        (ends,) = line.lines[2]
        bars.append(np.array([np.ptp(segment[:, 1]) / 2 for segment in ends.get_segments()]))
    assert len(bars[0]) == len(bars[1]) == 10
    assert bars[1] == pytest.approx(bars[0], rel=1e-6)
    # 75 stars of 30 mas in each group
    assert np.median(bars[0]) == pytest.approx(1.2533 * 30 / np.sqrt(75), rel=0.25)


def test_tile_medians_are_taken_over_the_exposures() -> None:
    case = Case("long", exposures=2)
    tiles = [o.tiles for o in case.measurement.of("absolute")]
    (drawn,) = [q for q in titled(case.figure(), "Offsets on the detector").findobj(Quiver) if q.get_label() == "tiles"]
    assert drawn.N == 4
    assert sorted(set(drawn.X)) == [512, 1536]
    first = [t[0] for t in tiles]  # column 0, row 0
    east = np.average([t.dra for t in first], weights=[t.n for t in first])
    north = np.average([t.ddec for t in first], weights=[t.n for t in first])
    assert np.hypot(drawn.U[0], drawn.V[0]) == pytest.approx(5 * np.hypot(east, north))


def test_one_dither_off_is_seen_in_mas_and_pixels() -> None:
    case, figure = drawn("dither")
    figure.draw_without_rendering()  # sets the limits of the second axis
    axes = titled(figure, "Exposure against exposure")
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert [round(p / case.scale, 1) for p in points] == [-0.3, 1.0, -0.3, -0.3]
    assert axes.get_xlim()[1] > max(points)
    top = axes.child_axes[0]
    assert top.get_xlim()[1] == pytest.approx(axes.get_xlim()[1] / case.scale)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["00001", "00002", "00003", "00004"]


def test_an_exposure_without_a_number_shows_its_cause() -> None:
    axes = titled(drawn("none")[1], "Exposure against exposure")
    assert [t.get_text() for t in axes.texts] == ["✗ too few sources"] * 4


def test_unknown_magnitudes_and_pointings() -> None:
    case = Case("long")
    case.pairs["mag"] = np.nan
    case.pairs["before_dra"] = np.nan
    figure = case.figure()
    assert "no magnitudes are known" in words(figure)
    assert "not known" in titled(figure, "Before and after").texts[0].get_text()
    assert_readable(figure)
    case = Case("long")
    case.pairs["mag"][:40] = np.nan
    assert "without magnitude" in titled(case.figure(), "Offsets against magnitude").get_title(loc="left")


def test_without_a_reference_the_exposures_are_shown() -> None:
    case = Case("long")
    relative = case.pairs[case.pairs["kind"] == "relative"]
    measurement = Measurement(case.name, "", "", None, case.measurement.of("relative"))
    figure = alignment_figure(case.verdict, measurement, relative, ())
    assert held_by(sky_panel(figure), np.column_stack([relative["dra"], relative["ddec"]])) >= 0.9
    assert "other exposures" in titled(figure, "Offsets on the detector").get_title(loc="left")
    assert "no reference" in words(figure)
    assert_readable(figure)


@pytest.mark.parametrize("pairs", [None, Table(names=PAIR_COLUMNS, dtype=[str, str, *[float] * 7, bool])])
def test_nothing_measured_at_all(pairs: Table | None) -> None:
    case = Case("none")
    figure = alignment_figure(case.verdict, None, pairs)
    assert "no independent measurement" in words(figure)
    assert_readable(figure)


def test_long_texts_make_a_taller_picture_and_are_not_cut() -> None:
    case = Case("long", exposures=24)
    note = "$PS1$: the service answered " + "nothing but HTML " * 40 + "https://example.org/" + "x" * 300 + " end"
    verdict = Verdict(case.name, "held_back", case.verdict.criteria, "a cause of many words " * 40 + "last")
    figure = alignment_figure(verdict, case.measurement, case.pairs, (note, "two\nlines"))
    assert figure.get_size_inches()[1] > drawn("long")[1].get_size_inches()[1]
    said = words(figure)
    assert "end" in said.split()
    assert "last" in said.split()
    assert "the 20 of 24 that deviate most" in said
    assert "and 4 more that passed" in said
    assert_readable(figure)


def test_a_table_without_a_column_is_refused() -> None:
    case = Case("few")
    case.pairs.remove_column("mag")
    with pytest.raises(InputError, match="lacks mag"):
        case.figure()


def test_masked_values_count_as_unknown() -> None:
    case = Case("few")
    pairs = Table(case.pairs, masked=True)
    pairs["mag"].mask = True
    pairs["dra"].mask[0] = True
    figure = alignment_figure(case.verdict, case.measurement, pairs, ())
    assert "no magnitudes are known" in words(figure)
    arrows = titled(figure, "Offsets on the detector").findobj(Quiver)
    assert sum(q.N for q in arrows) == (case.pairs["kind"] == "absolute").sum() - 1


def test_the_file_is_a_png_and_the_same_each_time(tmp_path: Path) -> None:
    from PIL import Image

    case = Case("few")
    for name in ("a.png", "b.png"):
        draw_alignment(tmp_path / name, case.verdict, case.measurement, case.pairs, case.notes)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == tuple(drawn("few")[1].canvas.get_width_height())
        assert picture.width == 1450
        assert not {k.lower() for k in picture.info} & {"software", "creation time", "date"}


def field_of(number: int) -> list[Measurement]:
    kinds = ("long", "few", "dither", "short")
    return [Case(kinds[k % 4], exposures=2, seed=k + 1).measurement for k in range(number)]


@pytest.mark.parametrize("number", [0, 1, 7])
def test_a_field(number: int, tmp_path: Path) -> None:
    measurements = field_of(number)
    figure = field_figure("j131432p2432", measurements)
    assert_readable(figure)
    said = words(figure)
    assert f"{number} associations" in said
    assert said.count("too few reference sources") >= sum(not m.absolute.measured for m in measurements)
    measured = np.array([[m.absolute.dra, m.absolute.ddec] for m in measurements if m.absolute.measured])
    if len(measured):
        assert held_by(titled(figure, "Associations against"), measured) == 1
    rows = titled(figure, "Each association's offset")
    assert len([t for t in rows.get_yticklabels() if t.get_text()]) == number
    draw_alignment_field(tmp_path / "field.png", "j131432p2432", measurements)
    assert (tmp_path / "field.png").read_bytes().startswith(b"\x89PNG")


def test_a_field_of_many_shows_the_worst() -> None:
    one = Case("long", exposures=1).measurement
    many = []
    for k in range(80):
        name = f"j131432p2432_v209-2514-f444w_{k:05d}"
        offset = Offset(
            name, "absolute", "LS_DR9", 50, 50, 63.0, n=40, dra=float(k), ddec=0.0, err_ra=3.0, err_dec=3.0,
            rotation_deg=0.001, rotation_err_deg=0.001,
        )  # fmt: skip
        many.append(Measurement(name, "LS_DR9", "external", offset, one.exposures))
    figure = field_figure("j131432p2432", many)
    rows = titled(figure, "Each association's offset")
    labels = [t.get_text() for t in rows.get_yticklabels()]
    assert len(labels) == 50
    assert labels[0].startswith("v209-2514-f444w_00030")
    assert_readable(figure)
