"""The folder archive: what counts, what is named, and that a bad file hides no other."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from panoramic.errors import (
    ArchiveRowError,
    ArchiveUnavailableError,
    ChecksumMismatchError,
    EmptyArchiveError,
    MissingKeywordError,
    TruncatedFileError,
    WrongShapeError,
)
from panoramic.footprints import covered_fraction, parse_s_region
from panoramic.observations import parse_rows
from panoramic.provenance import digest_file
from panoramic.survey import ExposureRules
from resources.archive import FAULT_KEY, FAULT_KINDS, ArchiveLook
from resources.archive_folder import FolderArchive
from resources.archive_table import read_table
from resources.exposure_files import read_headers

SHAPE = (16, 16)
NOW = 1_790_000_000.0
LONG_AGO = NOW - 3600
REGION = "POLYGON ICRS 150.00 2.00 150.03 2.00 150.03 2.03 150.00 2.03"
REAL_ROWS = Path(__file__).parents[2].parent / "shared" / "data" / "mast" / "pure_parallel_nircam.csv"


def name_of(exposure: int = 1, detector: str = "nrcblong") -> str:
    return f"jw02514162001_03201_{exposure:05d}_{detector}_rate.fits"


def write_exposure(
    path: Path,
    *,
    shape: tuple[int, int] = SHAPE,
    drop: tuple[str, ...] = (),
    planes: tuple[str, ...] = ("SCI", "ERR", "DQ"),
    mtime: float = LONG_AGO,
    value: float = 0.0,
    **changed: Any,
) -> Path:
    detector = path.name.split("_")[3].upper()
    primary = {
        "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": detector, "MODULE": detector[3], "CHANNEL": "LONG",
        "FILTER": "F444W", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE", "SUBARRAY": "FULL", "DATE-OBS": "2025-06-01",
        "TIME-OBS": "01:02:03.4", "EXPSTART": 60827.0431, "EXPEND": 60827.0556, "EFFEXPTM": 1073.7,
        "CAL_VER": "1.16.1", "CRDS_CTX": "jwst_1303.pmap", "ENGQLPTG": "CALCULATED_TRACK_TR_202111", "EXPCOUNT": 2,
    }  # fmt: skip
    science = {
        "RA_REF": 150.015, "DEC_REF": 2.015, "ROLL_REF": 20.0, "V2_REF": -89.4, "V3_REF": -491.4, "VPARITY": -1,
        "V3I_YANG": -0.08, "S_REGION": REGION,
    }  # fmt: skip
    for header in (primary, science):
        header.update({k.replace("__", "-"): v for k, v in changed.items() if k.replace("__", "-") in header})
        for keyword in drop:
            header.pop(keyword, None)
    hdus: list[Any] = [fits.PrimaryHDU(header=fits.Header(primary))]
    for plane in planes:
        data = np.full(shape, value, dtype=np.uint32 if plane == "DQ" else np.float32)
        hdus.append(fits.ImageHDU(data, header=fits.Header(science) if plane == "SCI" else None, name=plane))
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    os.utime(path, (mtime, mtime))
    return path


def write_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(c for row in rows for c in row))
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / "metadata.csv"


def listed(path: Path, **changed: Any) -> dict[str, Any]:
    row = {
        "ArchiveFileID": 7, "filename": path.name, "checksum": digest_file(path, "md5"),
        "fileSize": path.stat().st_size, "filter": "NC.F444W", "pupil": "CLEAR", "s_region": REGION,
        "expstart": 60827.04, "expend": 60827.05, "cal_ver": "1.20", "act_id": "01",
    }  # fmt: skip
    return row | changed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "archive" / "exposures").mkdir(parents=True)
    return tmp_path / "archive"


def archive_of(folder: Path, now: float = NOW, shape: tuple[int, int] = SHAPE) -> FolderArchive:
    return FolderArchive(folder, folder.parent / "cache" / "files.sqlite", clock=lambda: now, shape=shape)


def kinds(look: ArchiveLook) -> dict[str, str]:
    assert all(f.kind in FAULT_KINDS for f in look.faults)
    return {f.name: f.kind for f in look.faults}


def only(look: ArchiveLook) -> dict[str, Any]:
    assert len(look.rows) == 1
    return look.rows[0]


def test_rows_are_built_from_headers(folder: Path) -> None:
    path = write_exposure(folder / "exposures" / "deep" / name_of())
    row = only(archive_of(folder).look())
    assert FAULT_KEY not in row
    assert row["checksum"] == digest_file(path, "md5")
    assert row["fileSize"] == path.stat().st_size
    assert (row["program"], row["observtn"], row["visit"], row["visitgrp"], row["seq_id"], row["act_id"]) == (
        2514, 162, 1, 3, 2, "01",
    )  # fmt: skip
    assert row["fileSetName"] == "jw02514162001_03201_00001"
    assert row["s_region"] == REGION
    parsed = parse_rows([row], "test", ExposureRules())
    exposure = parsed.exposures["jw02514162001_03201_00001_nrcblong"]
    assert (exposure.filter, exposure.pupil, exposure.exptime, exposure.crds_ctx) == (
        "F444W", "CLEAR", 1073.7, "jwst_1303.pmap",
    )  # fmt: skip
    assert exposure.release <= exposure.t_max
    assert exposure.file_id == row["ArchiveFileID"] < 2**53


def test_without_exposures_the_folder_itself_is_searched_but_not_its_own_parts(tmp_path: Path) -> None:
    write_exposure(tmp_path / "a" / name_of(1))
    for part in ("crds", "truth", "grizli", "reference_catalogs", ".hidden", "home"):
        write_exposure(tmp_path / part / name_of(2))
    archive = FolderArchive(tmp_path, tmp_path / "home" / "c.sqlite", tmp_path / "home", clock=lambda: NOW, shape=SHAPE)
    assert only(archive.look())["filename"] == name_of(1)
    assert archive.crds_cache == tmp_path / "crds"
    assert archive.grizli_folder == tmp_path / "grizli"
    assert archive.reference_catalog_folder == tmp_path / "reference_catalogs"


def test_a_link_back_into_the_tree_ends(folder: Path) -> None:
    write_exposure(folder / "exposures" / name_of())
    (folder / "exposures" / "again").symlink_to(folder / "exposures")
    (folder / "exposures" / name_of(9)).symlink_to(folder / "nowhere")
    look = archive_of(folder).look()
    assert only(look)["filename"] == name_of()
    assert kinds(look) == {name_of(9): "unreadable"}


@pytest.mark.parametrize(
    ("kind", "error", "damage"),
    [
        ("truncated", TruncatedFileError, lambda p: os.truncate(p, p.stat().st_size - 2880)),
        ("truncated", TruncatedFileError, lambda p: os.truncate(p, 5000)),
        ("truncated", TruncatedFileError, lambda p: os.truncate(p, 0)),
        ("truncated", TruncatedFileError, lambda p: p.write_bytes(b"<html>Service unavailable</html>" * 200)),
        ("truncated", TruncatedFileError, lambda p: p.write_bytes(p.read_bytes() + b"\0" * 2880)),
        ("wrong_shape", WrongShapeError, lambda p: write_exposure(p, shape=(16, 12))),
        ("wrong_shape", WrongShapeError, lambda p: write_exposure(p, planes=("SCI", "DQ"))),
        ("missing_keyword", MissingKeywordError, lambda p: write_exposure(p, drop=("RA_REF", "ROLL_REF"))),
        ("missing_keyword", MissingKeywordError, lambda p: write_exposure(p, drop=("FILTER",))),
        ("missing_keyword", MissingKeywordError, lambda p: write_exposure(p, DETECTOR="NRCALONG")),
        ("missing_keyword", MissingKeywordError, lambda p: write_exposure(p, INSTRUME="WFC3")),
        ("missing_keyword", MissingKeywordError, lambda p: write_exposure(p, DEC_REF=123.0)),
    ],
)
def test_a_bad_file_is_named_and_hides_no_other(folder: Path, kind: str, error: type[Exception], damage: Any) -> None:
    write_exposure(folder / "exposures" / name_of(1))
    bad = write_exposure(folder / "exposures" / name_of(2))
    damage(bad)
    os.utime(bad, (LONG_AGO, LONG_AGO))
    archive = archive_of(folder)
    for look in (archive.look(), archive.look()):  # the second from what is remembered
        assert kinds(look) == {bad.name: kind}
        rows = {row["filename"]: row for row in look.rows}
        assert FAULT_KEY not in rows[name_of(1)]
        assert rows[bad.name][FAULT_KEY] == look.faults[0].reason
        assert (rows[bad.name]["program"], rows[bad.name]["exposure"]) == (2514, 2)
    with pytest.raises(error, match=name_of(2)):
        archive.fetch(bad.name)
    assert archive.fetch(name_of(1)) == folder / "exposures" / name_of(1)


def test_a_table_that_contradicts_the_header_is_not_believed(folder: Path) -> None:
    good, bad = (write_exposure(folder / "exposures" / name_of(k)) for k in (1, 2))
    write_table(folder, [listed(good), listed(bad, filter="NC.F356W")])
    look = archive_of(folder).look()
    assert kinds(look) == {bad.name: "contradiction"}
    assert "header says filter F444W" in look.faults[0].reason
    assert {r["filename"]: FAULT_KEY in r for r in look.rows} == {good.name: False, bad.name: True}


def test_the_message_names_the_cause(folder: Path) -> None:
    write_exposure(folder / "exposures" / name_of(1), drop=("RA_REF", "V2_REF"))
    path = write_exposure(folder / "exposures" / name_of(2))
    os.truncate(path, path.stat().st_size - 1)
    os.utime(path, (LONG_AGO, LONG_AGO))
    reasons = [f.reason for f in archive_of(folder).look().faults]
    assert "RA_REF, V2_REF" in reasons[0]
    assert "(DQ) goes to byte" in reasons[1]


def test_full_frame_is_2048(folder: Path) -> None:
    write_exposure(folder / "exposures" / name_of())
    look = archive_of(folder, shape=(2048, 2048)).look()
    assert kinds(look) == {name_of(): "wrong_shape"}
    assert "(16, 16), not (2048, 2048)" in look.faults[0].reason


def test_another_subarray_is_left_to_the_survey_rules(folder: Path) -> None:
    write_exposure(folder / "exposures" / name_of(), SUBARRAY="SUB64P")
    look = archive_of(folder, shape=(2048, 2048)).look()
    assert look.faults == []
    assert "SUB64P" in next(iter(parse_rows(look.rows, "t", ExposureRules()).exposures.values())).refused


def test_footprint_is_computed_where_the_header_has_none(folder: Path) -> None:
    # the V2/V3 reference point and roll of NRCB5_FULL at RA 0 and near the pole: the aperture's own corners
    for k, (ra, dec) in enumerate([(150.0, 2.0), (359.9999, -30.0), (10.0, 89.99)], start=1):
        write_exposure(folder / "exposures" / name_of(k), drop=("S_REGION",), RA_REF=ra, DEC_REF=dec)
    look = archive_of(folder).look()
    assert look.faults == []
    for row, (ra, dec) in zip(look.rows, [(150.0, 2.0), (359.9999, -30.0), (10.0, 89.99)], strict=True):
        vertices = parse_s_region(row["s_region"])
        small = np.array([[ra, dec - 0.001], [ra + 0.001, dec], [ra, dec + 0.001]])
        assert covered_fraction(small, [vertices]) == pytest.approx(1.0)
        width = np.abs(np.diff(vertices[:2, 1])) if k == 1 else None
        assert width is None or width < 0.05


def test_a_file_counts_once_it_is_settled(folder: Path) -> None:
    path = write_exposure(folder / "exposures" / name_of(), mtime=NOW - 1)
    archive = archive_of(folder)
    first = archive.look()
    assert kinds(first) == {path.name: "unsettled"}
    assert only(first)[FAULT_KEY]
    path.write_bytes(path.read_bytes() + b"\0" * 10)  # still growing
    os.utime(path, (NOW, NOW))
    assert kinds(archive.look()) == {path.name: "unsettled"}
    write_exposure(path, mtime=NOW)
    assert kinds(archive.look()) == {path.name: "unsettled"}
    last = archive.look()
    assert last.faults == []
    assert FAULT_KEY not in only(last)


def test_a_growing_file_is_not_called_truncated_before_it_rests(folder: Path) -> None:
    path = write_exposure(folder / "exposures" / name_of(), mtime=NOW)
    os.truncate(path, 6000)
    os.utime(path, (NOW, NOW))
    archive = archive_of(folder)
    assert kinds(archive.look()) == {path.name: "unsettled"}
    assert kinds(archive.look()) == {path.name: "truncated"}


def test_a_whole_file_with_the_listed_checksum_counts_at_once(folder: Path) -> None:
    path = write_exposure(folder / "exposures" / name_of(), mtime=NOW)
    write_table(folder, [listed(path)])
    look = archive_of(folder).look()
    assert look.faults == []
    assert only(look)["ArchiveFileID"] == 7


def test_a_second_look_reads_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(1, 4):
        write_exposure(folder / "exposures" / name_of(k))
    archive = archive_of(folder)
    before = archive.look().rows

    def refuse(*args: object) -> None:
        raise AssertionError("a file was read again")

    monkeypatch.setattr("resources.archive_folder.read_headers", refuse)
    monkeypatch.setattr("resources.file_facts.digest_file", refuse)
    assert archive_of(folder).look().rows == before
    assert archive.fetch(name_of(1), before[0]["fileSize"], before[0]["checksum"]).is_file()


def test_changed_bytes_are_another_version(folder: Path) -> None:
    path = write_exposure(folder / "exposures" / name_of())
    archive = archive_of(folder)
    before = only(archive.look())
    write_exposure(path, value=1.0, mtime=LONG_AGO + 60)
    after = only(archive.look())
    assert after["checksum"] != before["checksum"]
    assert after["ArchiveFileID"] != before["ArchiveFileID"]
    with pytest.raises(ChecksumMismatchError):
        archive.fetch(path.name, before["fileSize"], before["checksum"])


def test_a_damaged_cache_is_made_again(folder: Path) -> None:
    write_exposure(folder / "exposures" / name_of())
    archive = archive_of(folder)
    before = archive.look().rows
    (folder.parent / "cache" / "files.sqlite").write_bytes(b"no database" * 1000)
    assert archive.look().rows == before


def test_the_archive_may_be_read_only(folder: Path) -> None:
    write_exposure(folder / "exposures" / name_of())
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    archive_of(folder).look()
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before


def test_table_and_files_are_held_together(folder: Path) -> None:
    paths = [write_exposure(folder / "exposures" / name_of(k)) for k in range(1, 6)]
    paths[3].unlink()
    os.truncate(paths[4], 3000)
    os.utime(paths[4], (LONG_AGO, LONG_AGO))
    ghost, truncated = dict.fromkeys(("filter", "pupil"), "x"), listed(paths[1]) | {"filename": paths[4].name}
    rows = [
        listed(paths[0]),
        listed(paths[1], checksum="0" * 32),
        listed(paths[0]) | {"filename": paths[3].name},
        truncated,
        listed(paths[0]) | ghost | {"filename": "jw02514162001_03201_00001_mirimage_rate.fits"},
    ]
    write_table(folder, rows)
    look = archive_of(folder).look()
    assert kinds(look) == {
        paths[1].name: "checksum",
        paths[2].name: "file_without_row",
        paths[3].name: "row_without_file",
        paths[4].name: "truncated",
    }
    by_name = {row["filename"]: row for row in look.rows}
    assert {n for n, row in by_name.items() if FAULT_KEY in row} == {paths[k].name for k in (1, 3, 4)}
    assert by_name[paths[0].name]["cal_ver"] == "1.20"  # a version is no number
    assert by_name[paths[2].name]["cal_ver"] == "1.16.1"
    with pytest.raises(ChecksumMismatchError, match="the archive's row says 0000"):
        archive_of(folder).fetch(paths[1].name, None, "0" * 32)
    with pytest.raises(ArchiveUnavailableError, match="is not in"):
        archive_of(folder).fetch(paths[3].name)


def test_a_row_of_another_suffix_stands_for_its_rate_file(folder: Path) -> None:
    path = write_exposure(folder / "exposures" / name_of())
    cal = listed(path, filename=path.name.replace("_rate", "_cal"), checksum="1" * 32, fileSize=117573120)
    write_table(folder, [cal])
    look = archive_of(folder).look()
    assert look.faults == []
    assert {row["filename"] for row in look.rows} == {path.name, cal["filename"]}


def test_null_cells_stay_null_for_the_reader_to_refuse(folder: Path) -> None:
    paths = [write_exposure(folder / "exposures" / name_of(k)) for k in (1, 2, 3)]
    write_table(
        folder, [listed(paths[0], s_region=""), listed(paths[1], filter="nan"), listed(paths[2], ArchiveFileID=-999)]
    )
    look = archive_of(folder).look()
    assert look.faults == []
    parsed = parse_rows(look.rows, "metadata.csv", ExposureRules())
    assert {e.column for e in parsed.errors} == {"s_region", "filter"}
    assert look.rows[2]["ArchiveFileID"] > 0  # the stand-in fills what identifies the version


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,size\na,1\n", "no such column"),
        ("", "no such column"),
        ("filename,filter\n\x00\x00\x00", "NUL"),
        ('filename,filter\n"a.fits,F444W\n', "is no CSV"),
    ],
)
def test_a_malformed_table_is_refused_by_name(folder: Path, text: str, match: str) -> None:
    write_exposure(folder / "exposures" / name_of())
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(ArchiveRowError, match=match) as caught:
        archive_of(folder).look()
    assert "metadata.csv" in str(caught.value)
    assert caught.value.column == "filename"


def test_a_bad_row_is_named_and_hides_no_other(folder: Path) -> None:
    paths = [write_exposure(folder / "exposures" / name_of(k)) for k in (1, 2)]
    table = write_table(folder, [listed(p) for p in paths])
    table.write_text(table.read_text() + "jw02514162001_03201_00003_nrcb1_rate.fits,7\n,,,,,,,,,,\n")
    look = archive_of(folder).look()
    assert [f.kind for f in look.faults] == ["bad_row", "bad_row"]
    assert len(look.rows) == 2
    assert not any(FAULT_KEY in row for row in look.rows)


def test_of_two_rows_of_a_file_the_newest_stands(folder: Path) -> None:
    path = write_exposure(folder / "exposures" / name_of())
    write_table(folder, [listed(path, ArchiveFileID=9), listed(path, ArchiveFileID=8, checksum="2" * 32)])
    look = archive_of(folder).look()
    assert only(look)["ArchiveFileID"] == 9
    assert kinds(look) == {path.name: "bad_row"}


def test_files_of_one_name(folder: Path) -> None:
    one = write_exposure(folder / "exposures" / "a" / name_of())
    two = folder / "exposures" / "b" / name_of()
    two.parent.mkdir()
    shutil.copy2(one, two)
    look = archive_of(folder).look()
    assert kinds(look) == {one.name: "duplicate"}
    assert FAULT_KEY not in only(look)
    write_exposure(two, value=3.0, mtime=LONG_AGO + 60)
    look = archive_of(folder).look()
    assert kinds(look) == {one.name: "duplicate"}
    assert "different bytes" in only(look)[FAULT_KEY]


def test_an_empty_archive_says_what_was_searched(folder: Path) -> None:
    with pytest.raises(EmptyArchiveError, match=r"exposures and the folders below it for \*_rate.fits"):
        archive_of(folder).look()
    write_exposure(folder / "exposures" / "jw02514162001_03201_00001_mirimage_rate.fits")
    (folder / "exposures" / "mine_rate.fits").write_bytes(b"")
    with pytest.raises(EmptyArchiveError, match=r"'mine_rate\.fits' is no name"):
        archive_of(folder).look()
    with pytest.raises(EmptyArchiveError, match="does not exist"):
        archive_of(folder / "gone").look()
    with pytest.raises(EmptyArchiveError, match="is no folder"):
        FolderArchive(folder / "exposures" / "mine_rate.fits", folder / "c.sqlite").look()


def test_a_file_that_is_no_exposure_is_named(folder: Path) -> None:
    write_exposure(folder / "exposures" / name_of())
    (folder / "exposures" / "mine_rate.fits").write_bytes(b"x")
    look = archive_of(folder).look()
    assert kinds(look) == {"mine_rate.fits": "bad_row"}
    assert only(look)["filename"] == name_of()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_cut_of_a_file_is_taken_for_a_whole_one(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp() / "whole" / name_of()
    whole = base if base.exists() else write_exposure(base)
    size = whole.stat().st_size
    cut = whole.with_name("cut.fits")
    length = data.draw(st.integers(0, size - 1) | st.integers(0, size // 2880 - 1).map(lambda k: 2880 * k))
    cut.write_bytes(whole.read_bytes()[:length])
    try:
        headers = read_headers(cut)
    except TruncatedFileError:
        return
    # a cut between two HDUs leaves a shorter but valid file: its planes are missing then
    assert len(headers) < len(read_headers(whole))
    assert length % 2880 == 0


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, 8639), byte=st.integers(0, 255), length=st.integers(1, 30))
def test_no_damage_of_a_header_hides_the_other_files(
    place: int, byte: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    good, bad = folder / name_of(1), folder / name_of(2)
    if not good.exists():
        write_exposure(good)
    raw = bytearray(good.read_bytes())
    raw[place : place + length] = bytes([byte]) * length
    bad.write_bytes(raw)
    os.utime(bad, (LONG_AGO, LONG_AGO + place + byte / 1000))
    look = archive_of(folder).look()
    rows = {row["filename"]: row for row in look.rows}
    assert set(rows) == {good.name, bad.name}
    assert FAULT_KEY not in rows[good.name]
    assert (FAULT_KEY in rows[bad.name]) == bool(look.faults)
    parse_rows(look.rows, "damaged", ExposureRules())


def test_real_rows_of_the_archive_are_read_as_plain_values() -> None:
    if not REAL_ROWS.exists():
        pytest.skip(f"the real archive rows are not at {REAL_ROWS}")
    table = read_table(REAL_ROWS)
    assert len(table.rows) + sum("more than once" in reason for _, reason in table.bad) >= 88
    for row in table.rows.values():
        assert isinstance(row["checksum"], str)
        assert len(row["checksum"]) == 32
        assert isinstance(row["ArchiveFileID"], int)
        assert isinstance(row["s_region"], str)
    parsed = parse_rows(table.rows.values(), "pure_parallel_nircam.csv", ExposureRules())
    assert parsed.errors == []
    assert parsed.exposures
