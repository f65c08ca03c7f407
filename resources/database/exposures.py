"""Exposures, their revisions, fields, and what was wrong in the archive."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import datetime

import sqlalchemy as sa

from panoramic.errors import UnknownNameError
from panoramic.fields import SkyField
from panoramic.observations import Exposure
from resources import tables as t
from resources.database.core import DatabaseCore

EXPOSURE_COLUMNS = tuple(f.name for f in fields(Exposure))


class ExposureTables(DatabaseCore):
    """The tables ``observations``, ``fields`` and ``archive_faults``."""

    def latest(self, connection: sa.Connection, field: str | None = None) -> dict[str, tuple[int, str, Exposure]]:
        """Newest revision of each dataset: (revision, field, exposure) by dataset."""
        o = t.observations
        newest = sa.select(o.c.dataset, sa.func.max(o.c.revision).label("revision")).group_by(o.c.dataset).subquery()
        query = sa.select(o).join(newest, sa.and_(o.c.dataset == newest.c.dataset, o.c.revision == newest.c.revision))
        if field is not None:
            query = query.where(o.c.field == field)
        result = {}
        for row in connection.execute(query.order_by(o.c.dataset)).mappings():
            values = {name: row[name] for name in EXPOSURE_COLUMNS}
            values["warnings"] = tuple(values["warnings"])
            result[row["dataset"]] = (row["revision"], row["field"], Exposure(**values))
        return result

    def sky_fields(self, connection: sa.Connection) -> dict[str, SkyField]:
        """The known fields with the footprints of their exposures."""
        known = {
            row.name: SkyField(row.name, row.ordinal)
            for row in connection.execute(sa.select(t.fields).order_by(t.fields.c.ordinal))
        }
        for dataset, (_, field, exposure) in self.latest(connection).items():
            known[field].footprints[dataset] = exposure.vertices
        return known

    def put_exposure(
        self,
        connection: sa.Connection,
        exposure: Exposure,
        revision: int,
        field: str,
        at: datetime,
        first_seen: datetime,
    ) -> None:
        """Write one revision of an exposure."""
        values = asdict(exposure) | {"warnings": list(exposure.warnings)}
        row = values | {"revision": revision, "field": field, "last_seen": at, "first_seen": first_seen}
        self.upsert(connection, t.observations, [row])

    def field_names(self) -> list[str]:
        """All fields, in the order in which they were found."""
        with self.read() as connection:
            return list(connection.scalars(sa.select(t.fields.c.name).order_by(t.fields.c.ordinal)))

    def field(self, name: str) -> sa.RowMapping:
        """The row of one field; `UnknownNameError` names the nearest."""
        with self.read() as connection:
            row = connection.execute(sa.select(t.fields).where(t.fields.c.name == name)).mappings().first()
        if row is None:
            raise UnknownNameError("field", name, self.field_names())
        return row

    def exposures(self, field: str) -> list[Exposure]:
        """Newest revision of each exposure of a field, refused ones included."""
        with self.read() as connection:
            return [e for _, _, e in self.latest(connection, field).values()]

    def faults(self) -> list[sa.RowMapping]:
        """What was wrong in the archive at the last look."""
        with self.read() as connection:
            return list(connection.execute(sa.select(t.archive_faults).order_by(t.archive_faults.c.name)).mappings())
