"""The gates on real alignment logs of the survey, and on small made-up ones."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from panoramic.errors import InputError
from panoramic.survey import Limits

LIMITS = Limits()
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "alignment_logs.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("alignment_logs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["alignment_logs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


logs = load()


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    for name in ("shifts_log.csv", "wcs_log.csv"):
        if not (shared_data / "panoramic" / name).is_file():
            pytest.skip(f"{shared_data / 'panoramic' / name} is absent")
    return shared_data / "panoramic"


@pytest.fixture(scope="module")
def raw(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    tables = []
    for name in ("shifts_log.csv", "wcs_log.csv"):
        with (folder / name).open(newline="") as stream:
            tables.append(list(csv.DictReader(stream)))
    return tables[0], tables[1]


def test_every_real_row_and_association_has_a_verdict(raw, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shifts, wcs = raw
    assert logs.main(["--shifts", str(folder / "shifts_log.csv"), "--wcs", str(folder / "wcs_log.csv")]) == 0
    out = capsys.readouterr().out.splitlines()
    found = json.loads(out[-1])
    assert found["rows"] == len(shifts) + len(wcs)
    assert found["accepted"] + found["near"] + found["refused"] == found["rows"]
    whole = found["associations"]
    assert whole["accepted"] + whole["near"] + whole["refused"] == whole["number"]
    for row in shifts:
        assert (
            sum(row["file"].removesuffix("_rate.fits") == line.split()[1] for line in out if len(line.split()) > 2) == 1
        )
    visits = {(row["file"][:19], row["file"].split("_")[3]) for row in shifts}
    assert whole["number"] >= max(len(visits), len(wcs))


def test_real_fits_of_few_matches_are_refused_for_their_number(raw) -> None:
    _, wcs = raw
    few = 0
    for row in wcs:
        (association,) = logs.read_wcs([row])
        found = logs.judged(association, LIMITS, ["absolute_alignment"])
        if int(row["n_matched"]) < LIMITS.absolute_n:
            few += 1
            assert found.outcome == "refused"
            assert "absolute N" in found.cause
            assert f"= {row['n_matched']} matches (at least {LIMITS.absolute_n})" in found.decided
        else:
            assert "absolute N" not in found.cause
    assert few >= 1


def test_real_fits_are_judged_by_the_deviation_per_axis(raw) -> None:
    """Counted here from the table: the logged RMS is 0.6649 of the deviation per axis."""
    _, wcs = raw
    for row in wcs:
        (association,) = logs.read_wcs([row])
        own = "ls_dr9" not in row["reference_catalog"]
        scatter = float(row["rms_pix"]) / 0.6649 * association.absolute.pixel_scale_mas
        n = int(row["n_matched"])
        good = n >= 12 and scatter <= (20 if own else 80) and scatter / n**0.5 <= (5 if own else 20)
        found = logs.judged(association, LIMITS, ["absolute_alignment"])
        assert (found.outcome != "refused") == good, row["product"]
        assert (found.outcome == "near") == (good and not own and scatter / n**0.5 > 10), row["product"]


def test_real_shifts_near_the_limit_are_told(raw) -> None:
    shifts, _ = raw
    associations = logs.read_shifts(shifts)
    found = {j.name: j for j in logs.judge_rows(associations, LIMITS)}
    anchors = 0
    for row in shifts:
        rms, n = max(float(row["rms_x_pix"]), float(row["rms_y_pix"])), int(row["n_matched"])
        verdict = found[row["file"].removesuffix("_rate.fits")]
        if rms == 0:
            anchors += 1
            assert "by the others' fits" in verdict.decided
        else:
            expected = "refused" if rms > 0.1 or n < 24 else "near" if rms > 0.03 else "accepted"
            assert verdict.outcome == expected, row
    assert anchors >= 1


# --- made-up tables -------------------------------------------------------------------------------

HEADER = "notebook_version,file,xshift_pix,yshift_pix,rot_deg,scale,n_matched,rms_x_pix,rms_y_pix\n"
WCS_HEADER = "notebook_version,reference_catalog,product,ext,xshift_pix,yshift_pix,rot_deg,scale,rms_pix,n_matched\n"


def shift(exposure: int, n: int, rms: float, detector: str = "nrcblong", observation: int = 9) -> str:
    file = f"jw02514{observation:03d}001_02201_{exposure:05d}_{detector}_rate.fits"
    return f"v,{file},{0.0 if rms == 0 else 0.4},0.0,0.0,1.0,{n},{rms},{rms}\n"


def wcs(n: int, rms: float, catalog: str = "x_ls_dr9.radec", detector: str = "nrcb5", observation: int = 9) -> str:
    return f"v,{catalog},indef-02514-{observation:03d}-124.0-{detector}-f444w-clear,0,0.1,0.1,0.0,1.0,{rms},{n}\n"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def judge(shifts: str | None, fits: str | None) -> tuple[list[str], dict]:
        for name, text in (("s.csv", shifts), ("w.csv", fits)):
            if text is not None:
                (tmp_path / name).write_text(text)
        assert logs.main(["--shifts", str(tmp_path / "s.csv"), "--wcs", str(tmp_path / "w.csv")]) == 0
        out = capsys.readouterr().out.splitlines()
        return out, json.loads(out[-1])

    return judge


def test_rows_of_both_logs_make_one_association(run) -> None:
    out, found = run(HEADER + shift(1, 100, 0.0) + shift(2, 80, 0.011), WCS_HEADER + wcs(40, 0.3))
    assert found["associations"]["number"] == 1
    assert found["associations"]["accepted"] == 1
    assert found["rows"] == 3
    assert found["causes"] == {}
    assert not any("not logged" in line for line in out)


@pytest.mark.parametrize(
    ("rows", "fit", "outcome", "causes"),
    [
        (shift(2, 80, 0.05), wcs(40, 0.3), "near", {}),
        (shift(2, 80, 0.11), wcs(40, 0.3), "refused", {"relative RMS": 1}),
        (shift(2, 23, 0.01), wcs(40, 0.3), "refused", {"relative N": 1}),
        (shift(2, 80, 0.01), wcs(11, 0.3), "refused", {"absolute N": 1}),
        (shift(2, 80, 0.01), wcs(400, 0.9), "refused", {"absolute scatter": 1}),
        (shift(2, 80, 0.01), wcs(12, 0.8), "refused", {"absolute error": 1}),
        (shift(2, 80, 0.01), wcs(40, 0.3, "own.radec"), "refused", {"absolute scatter": 1}),
        (shift(2, 80, 0.01), wcs(100, 0.1, "own.radec"), "accepted", {}),
    ],
)
def test_the_number_that_decided(run, rows: str, fit: str, outcome: str, causes: dict) -> None:
    _, found = run(HEADER + shift(1, 100, 0.0) + rows, WCS_HEADER + fit)
    whole = found["associations"]
    assert whole[outcome] == 1
    assert whole["causes"] == causes


def test_short_wave_detectors_have_their_own_limit(run) -> None:
    rows = HEADER + shift(1, 100, 0.0, "nrcb1") + shift(2, 10, 0.011, "nrcb1")
    _, found = run(rows, WCS_HEADER + wcs(40, 0.3, detector="nrcb1"))
    assert found["associations"] == {"number": 1, "accepted": 1, "near": 0, "refused": 0, "causes": {}}


def test_an_anchor_stands_and_falls_with_the_fits_to_it(run) -> None:
    out, found = run(HEADER + shift(1, 100, 0.0) + shift(2, 80, 0.2), None)
    assert found["refused"] == 2
    assert found["associations"]["refused"] == 1
    assert any(line.startswith("skipped: ") and "w.csv" in line for line in out)
    assert any("absolute alignment not logged" in line for line in out)


def test_both_absent_is_told_and_no_error(run) -> None:
    out, found = run(None, None)
    assert [line.startswith("skipped: ") for line in out[:2]] == [True, True]
    assert found["rows"] == 0


def test_rows_of_an_unknown_instrument_are_named_and_not_judged(run) -> None:
    shifts = HEADER + shift(1, 100, 0.0) + shift(2, 80, 0.01) + "v,jdq101_flt.fits,0,0,0,1,9,0.1,0.1\n"
    out, found = run(shifts, WCS_HEADER + wcs(40, 0.3) + "v,c.radec,hst-acs-f814w,0,0,0,0,1,0.1,9\n")
    assert found["not_judged"] == 2
    assert found["rows"] == 3
    assert sum("jdq101_flt.fits" in line or "hst-acs-f814w" in line for line in out) == 2


def test_two_runs_on_the_same_exposures_are_two_associations(run) -> None:
    first = shift(1, 100, 0.0) + shift(2, 80, 0.2)
    second = (shift(1, 100, 0.0) + shift(2, 80, 0.01)).replace("v,", "w,")
    _, found = run(HEADER + first + second, WCS_HEADER + wcs(40, 0.3).replace("v,", "w,", 1))
    whole = found["associations"]
    assert (whole["number"], whole["accepted"], whole["refused"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("catalog", "kind"),
    [("x_ls_dr9", "external"), ("x_gaia", "external"), ("ps1", "external"), ("j04_f444w_00011_cat", "own")],
)
def test_which_catalogues_are_external(catalog: str, kind: str) -> None:
    row = dict(zip(WCS_HEADER.strip().split(","), wcs(40, 0.3, f"{catalog}.radec").strip().split(","), strict=True))
    assert logs.read_wcs([row])[0].absolute.kind == kind


def test_a_table_without_a_column_is_refused(run) -> None:
    with pytest.raises(InputError, match="no column xshift_pix"):
        run("file,n_matched\n", None)
