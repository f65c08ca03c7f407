"""Associations and the exposures in them: ``assoc_table`` and ``exposure_files``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from panoramic.associations import Association, index_of
from panoramic.errors import InputError, UnknownNameError
from panoramic.footprints import to_s_region
from panoramic.observations import Exposure
from resources import tables as t
from resources.database.core import DEFINED, DO_NOT_RUN, QUEUED, now
from resources.database.exposures import ExposureTables

RETIRED = "all of its exposures are refused by the survey"


class AssociationTables(ExposureTables):
    """The tables ``assoc_table`` and ``exposure_files``."""

    def known_associations(self, connection: sa.Connection, field: str) -> dict[str, str]:
        """Association of each dataset of a field that has one."""
        query = (
            sa.select(t.exposure_files.c.dataset, t.exposure_files.c.assoc)
            .join(t.assoc_table, t.assoc_table.c.assoc_name == t.exposure_files.c.assoc)
            .where(t.assoc_table.c.parent == field)
        )
        return {row.dataset: row.assoc for row in connection.execute(query)}

    def association_names(self, connection: sa.Connection, field: str) -> list[str]:
        """All names that a field has given or adopted."""
        a = t.assoc_table
        return list(connection.scalars(sa.select(a.c.assoc_name).where(a.c.parent == field)))

    def adopted(self, connection: sa.Connection) -> dict[str, str]:
        """Field of each dataset that is in an association, whether the archive has shown it or not."""
        a, e = t.assoc_table, t.exposure_files
        query = sa.select(e.c.dataset, a.c.parent).join(a, a.c.assoc_name == e.c.assoc)
        return dict(connection.execute(query).all())

    def move_exposures(self, connection: sa.Connection, moves: Mapping[str, str]) -> None:
        """Put exposures into other fields, as the survey file's merges and splits say.

        An association that moves as a whole keeps its name; of one that is cut, the moved exposures get new ones.
        """
        o, a, e = t.observations, t.assoc_table, t.exposure_files
        by_field: dict[str, list[str]] = {}
        for dataset, name in moves.items():
            by_field.setdefault(name, []).append(dataset)
        for name, datasets in by_field.items():
            connection.execute(o.update().where(o.c.dataset.in_(datasets)).values(field=name))
            touched = set(connection.scalars(sa.select(e.c.assoc).where(e.c.dataset.in_(datasets))))
            for association in touched:
                members = set(connection.scalars(sa.select(e.c.dataset).where(e.c.assoc == association)))
                # what was adopted and never shown goes where the rest goes
                fields = sa.select(o.c.dataset).where(o.c.dataset.in_(members), o.c.field != name)
                staying = set(connection.scalars(fields)) - set(moves)
                if not staying:
                    connection.execute(
                        a.update().where(a.c.assoc_name == association).values(parent=name, modtime=now())
                    )
                else:
                    connection.execute(e.delete().where(e.c.dataset.in_(members & set(datasets))))

    def put_associations(
        self, connection: sa.Connection, associations: Iterable[Association], held_back: Mapping[str, str]
    ) -> None:
        """Write a field's associations and the exposures in them.

        ``held_back`` gives the cause by dataset. An association without any ready exposure is only defined (70); one
        that lost or gained data is queued again; the status of the others stays.
        """
        at = now()
        for association in associations:
            first, outline = association.first, association.footprint
            ready = [e for e in association.exposures if e.dataset not in held_back]
            known = connection.execute(
                sa.select(t.assoc_table.c.status, t.assoc_table.c.cause).where(
                    t.assoc_table.c.assoc_name == association.name
                )
            ).first()
            old, old_cause = (known.status, known.cause) if known else (None, "")
            causes = "; ".join(
                f"{e.dataset}: {held_back[e.dataset]}" for e in association.exposures if e.dataset in held_back
            )
            again = old == DO_NOT_RUN and old_cause == RETIRED  # not where a team says so by its own table
            status = DEFINED if not ready else QUEUED if old in (None, DEFINED) or again else old
            self.upsert(
                connection,
                t.assoc_table,
                [
                    {
                        "assoc_name": association.name,
                        "status": status,
                        "dataURL": ",".join(f"mast:JWST/product/{e.rate_filename}" for e in association.exposures),
                        "parent": association.field,
                        "proposal_id": first.program,
                        "filter": f"{first.filter}-{first.pupil}",
                        "instrument_name": "NIRCAM",
                        "detector": first.detector,
                        "t_min": min(e.t_min for e in association.exposures),
                        "t_max": max(e.t_max for e in association.exposures),
                        "exptime": sum(e.exptime for e in association.exposures),
                        "footprint": to_s_region(outline),
                        "ra": sum(e.ra for e in association.exposures) / len(association.exposures)
                        if max(e.ra for e in association.exposures) - min(e.ra for e in association.exposures) < 180
                        else first.ra,
                        "dec": sum(e.dec for e in association.exposures) / len(association.exposures),
                        "modtime": at,
                        "cause": causes if status in (DEFINED, QUEUED) else old_cause,
                    }
                ],
            )
            self.upsert(
                connection,
                t.exposure_files,
                [
                    {
                        "dataset": e.dataset,
                        "file": e.rate_filename,
                        "assoc": association.name,
                        "filter": e.filter,
                        "pupil": e.pupil,
                        "instrument": "NIRCAM",
                        "detector": e.detector,
                        "exptime": e.exptime,
                        "expstart": e.t_min,
                        "footprint": e.footprint,
                        "ready": e.dataset not in held_back,
                        "held_back_because": held_back.get(e.dataset, ""),
                        "modtime": at,
                    }
                    for e in association.exposures
                ],
            )

    def retire(self, connection: sa.Connection, field: str, kept: Iterable[Association]) -> None:
        """Take exposures that are in none of a field's associations any more (refused since) out of the work.

        Their rows stay, so that names and indices are never given twice; an association that lost all is status 12.
        What was adopted and the archive has not shown yet stays as it is.
        """
        o, a, e = t.observations, t.assoc_table, t.exposure_files
        kept = list(kept)
        shown = set(connection.scalars(sa.select(o.c.dataset).where(o.c.field == field)))
        known = self.known_associations(connection, field)
        gone = (set(known) & shown) - {x.dataset for k in kept for x in k.exposures}
        connection.execute(
            e.update()
            .where(e.c.dataset.in_(gone))
            .values(ready=False, held_back_because="refused by the survey", modtime=now())
        )
        empty = {known[d] for d in gone} - {k.name for k in kept} - {known[d] for d in set(known) - shown}
        connection.execute(
            a.update()
            .where(a.c.assoc_name.in_(empty))
            .values(status=DO_NOT_RUN, dataURL="", cause=RETIRED, modtime=now())
        )

    def associations(self, field: str, ready_only: bool = True) -> list[Association]:
        """Associations of a field with their newest exposures, in the order of their indices.

        With ``ready_only`` exposures of held-back groups are left out, and associations that have no other.
        """
        with self.read() as connection:
            latest = self.latest(connection, field)
            query = (
                sa.select(t.exposure_files.c.dataset, t.exposure_files.c.assoc, t.exposure_files.c.ready)
                .join(t.assoc_table, t.assoc_table.c.assoc_name == t.exposure_files.c.assoc)
                .where(t.assoc_table.c.parent == field)
                .order_by(t.exposure_files.c.dataset)
            )
            members: dict[str, list[Exposure]] = {}
            for row in connection.execute(query):
                if row.dataset in latest and (row.ready or not ready_only):
                    members.setdefault(row.assoc, []).append(latest[row.dataset][2])
        return [Association(n, field, tuple(members[n])) for n in sorted(members, key=_by_index)]

    def association(self, name: str) -> Association:
        """One association with its ready exposures; `UnknownNameError` names the nearest."""
        with self.read() as connection:
            field = connection.scalar(sa.select(t.assoc_table.c.parent).where(t.assoc_table.c.assoc_name == name))
            if field is None:
                names = list(connection.scalars(sa.select(t.assoc_table.c.assoc_name)))
                raise UnknownNameError("association", name, names)
        found = next((a for a in self.associations(field) if a.name == name), None)
        if found is None:
            raise InputError(f"{name} has no exposure that may be reduced: its group waits, or the survey refuses it")
        return found

    def association_rows(self, field: str) -> list[sa.RowMapping]:
        """Rows of ``assoc_table`` of one field."""
        with self.read() as connection:
            query = sa.select(t.assoc_table).where(t.assoc_table.c.parent == field)
            return sorted(connection.execute(query).mappings(), key=lambda r: _by_index(r["assoc_name"]))

    def exposure_rows(self, field: str) -> list[sa.RowMapping]:
        """Rows of ``exposure_files`` of one field."""
        with self.read() as connection:
            query = (
                sa.select(t.exposure_files)
                .join(t.assoc_table, t.assoc_table.c.assoc_name == t.exposure_files.c.assoc)
                .where(t.assoc_table.c.parent == field)
                .order_by(t.exposure_files.c.dataset)
            )
            return list(connection.execute(query).mappings())

    def mark_grouped(self, connection: sa.Connection, field: str, data_version: str) -> None:
        """Remember of which data of the field the associations were made."""
        f = t.fields
        connection.execute(f.update().where(f.c.name == field).values(grouped_version=data_version))

    def arrived_since(self, field: str) -> set[str]:
        """Exposures of a field that are in no association because they came after it was grouped."""
        f, o, e = t.fields, t.observations, t.exposure_files
        with self.read() as connection:
            row = connection.execute(sa.select(f.c.data_version, f.c.grouped_version).where(f.c.name == field)).one()
            if row.data_version == row.grouped_version:
                return set()
            grouped = sa.select(e.c.dataset)
            query = sa.select(o.c.dataset).where(o.c.field == field, o.c.dataset.not_in(grouped))
            return set(connection.scalars(query))

    def causes(self, names: Iterable[str]) -> dict[str, str]:
        """Why associations are in the state that they are in."""
        a = t.assoc_table
        with self.read() as connection:
            query = sa.select(a.c.assoc_name, a.c.cause).where(a.c.assoc_name.in_(list(names)))
            return dict(connection.execute(query).all())

    def set_status(self, name: str, status: int, cause: str = "") -> None:
        """Mirror an association's state for those who ask by SQL."""
        with self.write() as connection:
            connection.execute(
                t.assoc_table.update()
                .where(t.assoc_table.c.assoc_name == name)
                .values(status=status, cause=cause, modtime=now())
            )


def _by_index(name: str) -> tuple[int, str]:
    """Order of a field's associations; two of one index come from fields that were merged."""
    return index_of(name), name
