"""A folder's own table of archive rows (``metadata.csv``): MAST's columns as plain Python values.

Put here the reading of saved archive rows. Keep out what a row means (`panoramic/observations.py`).
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from panoramic.errors import ArchiveRowError
from panoramic.observations import is_null

TABLE_NAMES = ("metadata.csv", "metadata.csv.gz", "metadata.ecsv")

# only these become numbers: a version 1.20 or a digest of digits alone must stay text
INTEGER_COLUMNS = {
    "ArchiveFileID", "FileSetId", "FileTypeID", "datamode", "expcount", "exposure", "fastaxis", "fileSize",
    "frmdivsr", "groupgap", "nexposur", "nframes", "ngroups", "nints", "observtn", "patt_num", "program",
    "proposal_id", "sca_num", "seq_id", "slowaxis", "subsize1", "subsize2", "substrt1", "substrt2", "visit",
    "visitgrp",
}  # fmt: skip
FLOAT_COLUMNS = {
    "dec", "duration", "effexptm", "effinttm", "expend", "expmid", "expstart", "exptime", "gs_dec", "gs_mag",
    "gs_ra", "ra", "t_max", "t_min", "t_obs_release", "targ_dec", "targ_ra", "tframe", "tgroup", "tmeasure",
    "va_dec", "va_ra", "xoffset", "yoffset",
}  # fmt: skip

# what astropy reads; everything else is taken for CSV
FORMATS = {".ecsv": "ascii.ecsv", ".vot": "votable", ".votable": "votable", ".xml": "votable"}

ROW_KEY = "_row"  # the row's number in its table, for messages


@dataclass
class ArchiveTable:
    """Rows of a table, one per file name (lower case), and what was wrong with others: (name, reason).

    ``older`` names files of which the table has several rows; the newest stands.
    """

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    older: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def find_table(folder: Path) -> Path | None:
    """The folder's table of rows, if it has one."""
    return next((folder / name for name in TABLE_NAMES if (folder / name).is_file()), None)


def read_table(path: Path) -> ArchiveTable:
    """Read a CSV, ECSV or VOTable file of archive rows, gzipped or not.

    Of several rows of one file name the one with the largest ArchiveFileID stands: the archive's newest.

    Raises
    ------
    ArchiveRowError
        The table can't be read as one, or has no column ``filename``. A single bad row is kept in `bad` instead.
    """
    table = ArchiveTable(path)
    form = FORMATS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
    for number, row in _astropy_rows(path, form) if form else _csv_rows(path, table):
        name = str(row["filename"] or "").strip()
        if not name:
            table.bad.append(
                (f"{path.name} row {number}", "column 'filename' is empty: fill it in or leave the row out")
            )
            continue
        row[ROW_KEY] = number
        older = table.rows.get(name.lower())
        if older is not None and older | {ROW_KEY: number} != row:
            table.older.append(name)
            if _file_id(older) > _file_id(row):
                continue
        table.rows[name.lower()] = row
    return table


def _file_id(row: dict[str, Any]) -> float:
    value = row.get("ArchiveFileID")
    return float(value) if isinstance(value, (int, float)) else -1.0


def _csv_rows(path: Path, table: ArchiveTable) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ArchiveRowError(str(path), 0, "filename", f"the table can't be read: {error}") from error
    if "\0" in text:
        raise ArchiveRowError(str(path), 0, "filename", "the table holds NUL bytes: it is damaged or no CSV")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        _require_filename(path, columns)
        for number, cells in enumerate(reader, start=1):
            if not cells:
                continue
            row = dict(zip(columns, cells, strict=False))
            if len(cells) != len(columns):
                name = row.get("filename") or f"{path.name} row {number}"
                table.bad.append((name, f"{path.name}, row {number}: {len(cells)} cells under {len(columns)} columns"))
                continue
            yield number, {column: _plain(column, value) for column, value in row.items()}
    except csv.Error as error:
        raise ArchiveRowError(str(path), reader.line_num, "filename", f"is no CSV: {error}") from error


def _astropy_rows(path: Path, form: str) -> Iterable[tuple[int, dict[str, Any]]]:
    from astropy.table import Table

    try:
        table = Table.read(path, format=form)
    except (OSError, ValueError, TypeError, IndexError, ExpatError) as error:
        raise ArchiveRowError(str(path), 0, "filename", f"can't be read as {form}: {error}") from error
    _require_filename(path, table.colnames)
    for number, row in enumerate(table, start=1):
        cells = ((column, row[column]) for column in table.colnames)
        yield number, {c: _plain(c, v.item() if hasattr(v, "item") and not is_null(v) else v) for c, v in cells}


def _require_filename(path: Path, columns: list[str]) -> None:
    if "filename" not in columns:
        found = ", ".join(columns[:6]) or "none"
        raise ArchiveRowError(str(path), 0, "filename", f"the table has no such column (columns: {found})")


def _plain(column: str, value: Any) -> Any:
    """A cell as a plain Python value: None for null, numbers in the columns that hold numbers.

    A word where a number belongs stays as it is: whoever needs the number names the row.
    """
    if is_null(value):
        return None
    if column in INTEGER_COLUMNS or column in FLOAT_COLUMNS or column.endswith("_mjd"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return str(value)
        return int(number) if column in INTEGER_COLUMNS and number.is_integer() else number
    if isinstance(value, str):
        return {"True": True, "False": False}.get(value.strip(), value.strip())
    return value
