"""A team's own tables as files or as a database: read for adoption, and written into the survey's database.

Put here reading and writing. Keep out what the rows mean (`panoramic/adoption.py`).
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from panoramic.adoption import Adoption
from panoramic.errors import ConflictError, InputError
from panoramic.footprints import mean_position, parse_s_region
from panoramic.observations import is_null, split_filename
from resources import tables as t
from resources.database import Database, now

TABLES = ("fields", "assoc_table", "exposure_files")
NOT_SHOWN = "adopted; the archive has not shown it yet"

Source = tuple[str, Iterable[Mapping[str, Any]]]


def read_csv(path: Path | None) -> Source | None:
    """A CSV file's rows (gzipped or not), with its name for messages."""
    if path is None:
        return None
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    return str(path), list(csv.DictReader(io.StringIO(text, newline="")))


def read_database(url: str) -> list[Source | None]:
    """The three tables of a database, in the order of `TABLES`; None for one that it does not have.

    Raises
    ------
    InputError
        The address is none, the database does not answer, or it has none of the tables.
    """
    try:
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            there = set(sa.inspect(connection).get_table_names())
            found: list[Source | None] = []
            for name in TABLES:
                if name not in there:
                    found.append(None)
                    continue
                rows = connection.execute(sa.select(sa.text("*")).select_from(sa.table(name))).mappings()
                found.append((name, [dict(row) for row in rows]))
        engine.dispose()
    except (sa.exc.ArgumentError, sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        raise InputError(f"the team's database can't be read: {str(error).splitlines()[0]}") from error
    if not any(found):
        raise InputError(f"the team's database has none of the tables {', '.join(TABLES)}")
    return found


def write_adoption(database: Database, adoption: Adoption) -> tuple[int, int, int]:
    """Write what is adopted, in one transaction; returns the numbers of fields, associations and exposures.

    Raises
    ------
    ConflictError
        The home knows exposures of the archive already: their names are given.
    """
    at = now()
    members: dict[str, list[str]] = {name: [] for name in adoption.associations}
    for dataset, name in sorted(adoption.members.items()):
        members[name].append(dataset)
    with database.write() as connection:
        known = connection.scalar(sa.select(sa.func.count()).select_from(t.observations)) or 0
        if known:
            raise ConflictError(
                f"adopt before the first ingest: this home knows {known} exposures, and their names are given for ever"
            )
        _write_fields(database, connection, adoption, at)
        database.upsert(
            connection, t.assoc_table, [_association_row(adoption, name, own, at) for name, own in members.items()]
        )
        database.upsert(connection, t.exposure_files, [_exposure_row(adoption, d, at) for d in adoption.members])
    return len(adoption.fields), len(adoption.associations), len(adoption.members)


def _write_fields(database: Database, connection: sa.Connection, adoption: Adoption, at: Any) -> None:
    f = t.fields
    ordinals = dict(connection.execute(sa.select(f.c.name, f.c.ordinal)).all())
    following = max(ordinals.values(), default=0) + 1
    for name, (ra, dec) in adoption.fields.items():
        if name not in ordinals:
            ordinals[name], following = following, following + 1
        row = {"name": name, "ordinal": ordinals[name], "ra": ra, "dec": dec, "data_version": "", "archive_count": 0}
        database.upsert(connection, f, [row | {"looked_at": at, "touching": {}, "adopted": True}])


def _association_row(adoption: Adoption, name: str, datasets: list[str], at: Any) -> dict[str, Any]:
    adopted = adoption.associations[name]
    ra, dec = adoption.fields[adopted.field]
    footprint = _text(adopted.row, "footprint")
    if footprint:
        ra, dec = mean_position(parse_s_region(footprint))
    return {
        "assoc_name": name,
        "status": adopted.status,
        "dataURL": ",".join(f"mast:JWST/product/{d}_rate.fits" for d in datasets),
        "parent": adopted.field,
        "proposal_id": int(_number(adopted.row, "proposal_id") or (int(datasets[0][2:7]) if datasets else 0)),
        "filter": _text(adopted.row, "filter"),
        "instrument_name": _text(adopted.row, "instrument_name") or "NIRCAM",
        "detector": _text(adopted.row, "detector") or (_detector(datasets[0]) if datasets else ""),
        "t_min": _number(adopted.row, "t_min"),
        "t_max": _number(adopted.row, "t_max"),
        "exptime": _number(adopted.row, "exptime"),
        "footprint": footprint,
        "ra": ra,
        "dec": dec,
        "modtime": at,
        "cause": "adopted",
    }


def _exposure_row(adoption: Adoption, dataset: str, at: Any) -> dict[str, Any]:
    row = adoption.exposures.get(dataset, {})
    return {
        "dataset": dataset,
        "file": f"{dataset}_rate.fits",
        "assoc": adoption.members[dataset],
        "filter": _text(row, "filter"),
        "pupil": _text(row, "pupil"),
        "instrument": "NIRCAM",
        "detector": _text(row, "detector") or _detector(dataset),
        "exptime": _number(row, "exptime"),
        "expstart": _number(row, "expstart"),
        "footprint": _text(row, "footprint"),
        "ready": False,
        "held_back_because": NOT_SHOWN,
        "modtime": at,
    }


def _detector(dataset: str) -> str:
    return split_filename(f"{dataset}_rate")["detector"].upper()


def _text(row: Mapping[str, Any], column: str) -> str:
    return "" if is_null(row.get(column)) else str(row[column]).strip()


def _number(row: Mapping[str, Any], column: str) -> float:
    try:
        return 0.0 if is_null(row.get(column)) else float(row[column])
    except (TypeError, ValueError):
        return 0.0  # a date as text, say: the archive's own row brings the number
