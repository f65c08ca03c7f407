"""Exposures, their revisions, fields, and what was wrong in the archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from panoramic.completeness import Group
from panoramic.errors import UnknownNameError
from panoramic.fields import SkyField
from panoramic.footprints import small_square
from panoramic.observations import Exposure
from resources import tables as t
from resources.database.core import DatabaseCore

EXPOSURE_COLUMNS = tuple(f.name for f in fields(Exposure))
ROWS_AT_ONCE = 500

# newest revision of a dataset: its number, the field, the exposure
Known = tuple[int, str, Exposure]


class ExposureTables(DatabaseCore):
    """The tables ``observations``, ``fields``, ``archive_faults``, ``refusals`` and ``released_groups``."""

    def latest(self, connection: sa.Connection, field: str | None = None) -> dict[str, Known]:
        """Newest revision of each dataset: (revision, field, exposure) by dataset."""
        o = t.observations
        newest = sa.select(o.c.dataset, sa.func.max(o.c.revision).label("revision")).group_by(o.c.dataset).subquery()
        columns = [o.c.revision, o.c.field, *(o.c[name] for name in EXPOSURE_COLUMNS)]
        query = sa.select(*columns).join(
            newest, sa.and_(o.c.dataset == newest.c.dataset, o.c.revision == newest.c.revision)
        )
        if field is not None:
            query = query.where(o.c.field == field)
        warnings = EXPOSURE_COLUMNS.index("warnings")
        result: dict[str, Known] = {}
        for revision, name, *values in connection.execute(query.order_by(o.c.dataset)):
            values[warnings] = tuple(values[warnings])
            exposure = Exposure(*values)
            result[exposure.dataset] = (revision, name, exposure)
        return result

    def sky_fields(self, connection: sa.Connection, known: Mapping[str, Known]) -> dict[str, SkyField]:
        """The fields with the footprints of their known exposures; an adopted one counts with its position as well."""
        rows = list(connection.execute(sa.select(t.fields).order_by(t.fields.c.ordinal)))
        fields = {row.name: SkyField(row.name, row.ordinal) for row in rows}
        for row in rows:
            if row.adopted:  # it draws new exposures before any of its own has been shown
                fields[row.name].footprints[f"the position of {row.name}"] = small_square(row.ra, row.dec)
        for dataset, (_, name, exposure) in known.items():
            fields[name].footprints[dataset] = exposure.vertices
        return fields

    def put_exposures(
        self, connection: sa.Connection, revisions: Sequence[tuple[Exposure, int, str]], at: datetime
    ) -> None:
        """Write new revisions of exposures: (exposure, revision, field)."""
        rows = [
            {column: getattr(exposure, column) for column in EXPOSURE_COLUMNS}
            | {"warnings": list(exposure.warnings), "revision": revision, "field": field}
            | {"first_seen": at, "last_seen": at}
            for exposure, revision, field in revisions
        ]
        if rows:
            connection.execute(t.observations.insert(), rows)

    def update_exposures(
        self, connection: sa.Connection, updates: Sequence[tuple[str, int, Mapping[str, Any]]]
    ) -> None:
        """Change columns of revisions that are there: (dataset, revision, new values), the same columns for all."""
        o = t.observations
        if updates:
            which = sa.and_(o.c.dataset == sa.bindparam("key_dataset"), o.c.revision == sa.bindparam("key_revision"))
            rows = [{"key_dataset": d, "key_revision": revision} | dict(values) for d, revision, values in updates]
            connection.execute(o.update().where(which), rows)

    def mark_seen(self, connection: sa.Connection, datasets: Sequence[str], at: datetime) -> None:
        """Remember when datasets were last shown by the archive."""
        o = t.observations
        for start in range(0, len(datasets), ROWS_AT_ONCE):
            some = datasets[start : start + ROWS_AT_ONCE]
            connection.execute(o.update().where(o.c.dataset.in_(some)).values(last_seen=at))

    # --- what the archive showed last, and what was said by hand ----------------------------

    def remember_look(self, connection: sa.Connection, at_mjd: float, complete: bool, question: str) -> None:
        """Keep the date of the last look at the archive, and of the last full one (a replay of saved rows has none).

        ``question`` is a digest of what was asked: another question has no last look.
        """
        if at_mjd <= 0:
            return
        values = {"last_look_mjd": repr(at_mjd)}
        if complete:
            values |= {"last_full_look_mjd": repr(at_mjd), "last_full_look_of": question}
        self.upsert(connection, t.home, [{"key": key, "value": value} for key, value in values.items()])

    def last_looks(self, question: str) -> tuple[float, float] | None:
        """Dates (MJD) of the last look at the archive and of the last full one; None where that asked another thing."""
        with self.read() as connection:
            rows = dict(connection.execute(sa.select(t.home.c.key, t.home.c.value)).all())
        if rows.get("last_full_look_of") != question:
            return None
        return float(rows["last_look_mjd"]), float(rows["last_full_look_mjd"])

    def data_versions(self) -> dict[str, str]:
        """Data version of each field of which the archive has shown anything, in the order of discovery."""
        f = t.fields
        with self.read() as connection:
            query = sa.select(f.c.name, f.c.data_version).where(f.c.data_version != "").order_by(f.c.ordinal)
            return dict(connection.execute(query).all())

    def unplaced(self, connection: sa.Connection) -> dict[str, str]:
        """Datasets that are known by name only, with the cause."""
        f = t.archive_faults
        return dict(connection.execute(sa.select(f.c.dataset, f.c.reason).where(f.c.dataset != "")).all())

    def refusals(self, connection: sa.Connection) -> dict[str, str]:
        """Datasets that the survey's rules leave out, with the reason; most of them are in no field."""
        r = t.refusals
        return dict(connection.execute(sa.select(r.c.dataset, r.c.reason).order_by(r.c.dataset)).all())

    def released_groups(self, connection: sa.Connection) -> dict[Group, str]:
        """Reasons of the groups that a person released although they are incomplete."""
        g = t.released_groups
        rows = connection.execute(sa.select(g).order_by(*g.primary_key.columns))
        return {(r.visit_id, r.activity, r.filter, r.pupil, r.detector): f"{r.reason} ({r.released_by})" for r in rows}

    def release_groups(self, groups: Iterable[Group], reason: str, by: str, at: datetime) -> None:
        """Release incomplete groups by hand."""
        names = ("visit_id", "activity", "filter", "pupil", "detector")
        rows = [
            dict(zip(names, group, strict=True)) | {"reason": reason, "released_by": by, "released_at": at}
            for group in groups
        ]
        with self.write() as connection:
            self.upsert(connection, t.released_groups, rows)

    # --- questions ---------------------------------------------------------------------------

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
