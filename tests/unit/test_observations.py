"""Archive rows become exposures; what can't is refused with its row and column."""

import csv
import gzip
from pathlib import Path

import pytest

from panoramic.errors import InputError
from panoramic.observations import Exposure, is_null, is_revision, parse_rows, passband, split_filename
from panoramic.survey import ExposureRules

ROW = {
    "filename": "jw02514162001_03201_00003_nrca4_rate.fits", "filter": "F115W", "pupil": "CLEAR", "exp_type": "NRC_IMAGE",
    "subarray": "FULL", "s_region": "POLYGON ICRS 150.0 2.0 150.02 2.0 150.02 2.02 150.0 2.02", "expstart": 60000.0,
    "expend": 60000.01, "effexptm": 800.0, "ArchiveFileID": 7, "checksum": "ab", "fileSize": 10, "cal_ver": "1", "crds_ctx": "c",
    "publicReleaseDate_mjd": 60100.0,
}  # fmt: skip


def parse(*rows: dict) -> dict[str, Exposure]:
    return parse_rows(rows, "metadata.csv", ExposureRules()).exposures


def test_a_row_becomes_an_exposure() -> None:
    (exposure,) = parse(ROW).values()
    assert exposure.dataset == "jw02514162001_03201_00003_nrca4"
    assert (exposure.program, exposure.observation, exposure.visit, exposure.activity) == (2514, 162, 1, "03201")
    assert (exposure.exposure, exposure.detector, exposure.module, exposure.element) == (3, "NRCA4", "A", "f115w")
    assert exposure.group == ("02514162001", "03201", "F115W", "CLEAR", "NRCA4")
    assert exposure.ra == pytest.approx(150.01, abs=1e-4)
    assert not exposure.refused


def test_the_rate_row_stands_for_its_dataset_whatever_the_order() -> None:
    cal = ROW | {"filename": ROW["filename"].replace("_rate", "_cal"), "ArchiveFileID": 99, "checksum": "cal"}
    for rows in ([ROW, cal], [cal, ROW]):
        (exposure,) = parse(*rows).values()
        assert exposure.checksum == "ab"
    newer = ROW | {"ArchiveFileID": 8, "checksum": "new"}
    (exposure,) = parse(newer, ROW, cal).values()
    assert exposure.checksum == "new"


@pytest.mark.parametrize("column", ["filter", "pupil", "s_region", "expstart"])
@pytest.mark.parametrize("null", ["", "nan", None, float("nan"), -999])
def test_an_empty_cell_is_refused_with_file_row_and_column(column: str, null: object) -> None:
    broken = ROW | {column: null, "filename": ROW["filename"].replace("00003", "00004")}
    parsed = parse_rows([ROW, broken], "metadata.csv", ExposureRules())
    (error,) = parsed.errors
    assert (error.source, error.row, error.column) == ("metadata.csv", 2, column)
    assert list(parsed.exposures) == ["jw02514162001_03201_00003_nrca4"]
    assert "jw02514162001_03201_00004_nrca4" in parsed.unplaced


@pytest.mark.parametrize(
    "region", ["CIRCLE ICRS 1 2 3", "POLYGON ICRS 1 2 3 4", "POLYGON ICRS 1 2 3 x 5 6", "POLYGON ICRS 1 99 2 98 3 97"]
)
def test_a_footprint_that_is_no_polygon_is_refused(region: str) -> None:
    parsed = parse_rows([ROW | {"s_region": region}], "t", ExposureRules())
    assert parsed.errors[0].column == "s_region"


@pytest.mark.parametrize(
    ("change", "word"),
    [({"exp_type": "NRC_WFSS"}, "NRC_WFSS"), ({"subarray": "SUB160"}, "SUB160"), ({"pupil": "GRISMR"}, "GRISMR")],
)
def test_unwanted_modes_are_refused_with_a_reason(change: dict, word: str) -> None:
    (exposure,) = parse(ROW | change).values()
    assert word in exposure.refused


def test_planned_pointing_is_kept_as_a_warning() -> None:
    (exposure,) = parse(ROW | {"engqlptg": "PLANNED"}).values()
    assert "planned" in exposure.warnings[0]


def test_combined_filter_names_are_split() -> None:
    (exposure,) = parse(ROW | {"filter": "NC.F444W.F470N", "pupil": ""}).values()
    assert (exposure.filter, exposure.pupil, exposure.element) == ("F444W", "F470N", "f470n")
    assert passband("F444W", "CLEAR") == "f444w"


@pytest.mark.parametrize("name", ["image.fits", "jw02514_rate.fits", ""])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        split_filename(name)


def test_a_checksum_of_another_suffix_is_no_revision() -> None:
    (rate,) = parse(ROW).values()
    (cal,) = parse(
        ROW | {"filename": ROW["filename"].replace("_rate", "_cal"), "checksum": "x", "ArchiveFileID": 9}
    ).values()
    (again,) = parse(ROW | {"checksum": "x", "ArchiveFileID": 9}).values()
    (context,) = parse(ROW | {"crds_ctx": "d"}).values()
    assert not is_revision(rate, rate)
    assert not is_revision(rate, cal)
    assert is_revision(rate, again)
    assert is_revision(rate, context)


def test_nulls() -> None:
    assert all(is_null(v) for v in (None, float("nan"), "", " NaN ", "--", -999))
    assert not any(is_null(v) for v in (0, "0", "CLEAR", False))


def test_real_rows(shared_data: Path) -> None:
    with gzip.open(shared_data / "mast" / "nircam_image.csv.gz", "rt") as stream:
        rows = list(csv.DictReader(stream))
    parsed = parse_rows(rows, "nircam_image", ExposureRules())
    stems = {r["filename"].rsplit("_", 1)[0] for r in rows}
    assert parsed.n_rows == len(rows)
    assert len(parsed.exposures) + len(parsed.unplaced) == len(stems) == 7122
    assert not parsed.errors
    refused = {r["filename"].rsplit("_", 1)[0] for r in rows if r["pupil"] == "WLM8"}
    assert {d for d, e in parsed.exposures.items() if e.refused} == refused


# --- rows that can't be right --------------------------------------------------------------------

GOOD = {
    "filename": "jw02514162001_03201_00001_nrcblong_rate.fits", "filter": "F444W", "pupil": "CLEAR",
    "exp_type": "NRC_IMAGE", "subarray": "FULL", "s_region": "POLYGON ICRS 1 1 1 2 2 2", "expstart": 60000.0,
    "publicReleaseDate_mjd": 60000.0, "ArchiveFileID": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ArchiveFileID", "abc"), ("ArchiveFileID", "inf"), ("ArchiveFileID", "1e400"), ("ArchiveFileID", -5),
        ("fileSize", "nan7"), ("expcount", 1e11), ("expstart", "inf"), ("cal_ver", "1" * 40), ("pupil", "P" * 20),
        ("publicReleaseDate_mjd", None), ("filter", ""), ("s_region", "POLYGON ICRS 1 1 2 x"),
    ],
)  # fmt: skip
def test_a_bad_cell_is_named_and_hides_no_other_row(column, value) -> None:
    good = GOOD | {"filename": GOOD["filename"].replace("00001", "00002")}
    parsed = parse_rows([GOOD | {column: value}, good], "rows.csv", ExposureRules())
    assert list(parsed.exposures) == ["jw02514162001_03201_00002_nrcblong"]
    (error,) = parsed.errors
    assert (error.row, error.column) == (1, column)
    assert "jw02514162001_03201_00001_nrcblong" in parsed.unplaced


def test_release_dates_in_all_their_forms() -> None:
    def release(**changed):
        row = {k: v for k, v in GOOD.items() if k != "publicReleaseDate_mjd"} | changed
        (exposure,) = parse_rows([row], "r", ExposureRules()).exposures.values()
        return exposure.release

    assert release(publicReleaseDate_mjd=None, publicReleaseDate="/Date(1786039970000)/") == pytest.approx(
        61258.7589, abs=1e-3
    )
    assert release(t_obs_release=60001.5) == 60001.5
    assert release() == 0.0  # a row that knows nothing of releases: a file in somebody's hands


def test_a_mode_that_is_not_given_is_refused() -> None:
    (exposure,) = parse_rows([GOOD | {"exp_type": None}], "r", ExposureRules()).exposures.values()
    assert exposure.refused == "exposure type is not given"
