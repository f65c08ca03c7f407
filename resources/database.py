"""The survey's own database: connections, transactions, upserts, and the questions that assets ask of it.

SQLite (WAL) on a laptop, PostgreSQL in production: the same tables (``resources/tables.py``), the same code. Every
writing method takes the connection of a transaction, so that what belongs together is committed together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from astropy.table import Table
from sqlalchemy.dialects import postgresql, sqlite

from panoramic.alignment import Verdict
from panoramic.associations import Association
from panoramic.errors import ConflictError, StorageError, UnknownNameError
from panoramic.fields import SkyField
from panoramic.footprints import to_s_region
from panoramic.observations import Exposure
from panoramic.reduction.base import AbsoluteFit, ReductionResult
from resources import tables as t

PROJECT = Path(__file__).resolve().parent.parent
EXPOSURE_COLUMNS = tuple(f.name for f in fields(Exposure))

# assoc_table.status, as the survey's users know it
DEFINED, QUEUED, RUNNING, DONE, ALIGNMENT_FAILED, NO_DATA, DO_NOT_RUN = 70, 0, 1, 2, 9, 10, 12


def now() -> datetime:
    """The present in UTC, without time zone, as all tables keep it."""
    return datetime.now(UTC).replace(tzinfo=None)


class Database:
    """The survey's database behind one URL.

    Parameters
    ----------
    url : e.g. ``sqlite:////home/me/data/survey.db`` or ``postgresql+psycopg2://...``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    # --- transactions ---------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading, in one consistent snapshot."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes; it is rolled back as a whole if anything in it fails."""
        with self.engine.connect().execution_options(panoramic_write=True) as connection:
            try:
                with connection.begin():
                    yield connection
            except sa.exc.OperationalError as error:
                raise StorageError(f"the survey's database could not be written: {error.orig}") from error

    def migrate(self) -> None:
        """Bring the tables to the newest revision; does nothing where they are there already."""
        config = Config()
        config.set_main_option("script_location", str(PROJECT / "migrations"))
        config.attributes["engine"] = self.engine
        command.upgrade(config, "head")

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, or update those whose primary key is there."""
        if not rows:
            return
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        keys = [c.name for c in table.primary_key]
        for row in rows:
            statement = dialect.insert(table).values(**row)
            others = {k: statement.excluded[k] for k in row if k not in keys}
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=others))

    # --- the home -------------------------------------------------------------------------

    def claim(self, survey: str) -> None:
        """Make this the home of a survey; another survey's name is refused."""
        with self.write() as connection:
            held = connection.scalar(sa.select(t.home.c.value).where(t.home.c.key == "survey"))
            if held is None:
                connection.execute(t.home.insert().values(key="survey", value=survey))
            elif held != survey:
                raise ConflictError(
                    f"this PANORAMIC_HOME belongs to the survey {held!r}, not to {survey!r}: "
                    "set PANORAMIC_HOME to another folder"
                )

    # --- exposures and fields -------------------------------------------------------------

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

    # --- associations ---------------------------------------------------------------------

    def known_associations(self, connection: sa.Connection, field: str) -> dict[str, str]:
        """Association of each dataset of a field that has one."""
        query = (
            sa.select(t.exposure_files.c.dataset, t.exposure_files.c.assoc)
            .join(t.assoc_table, t.assoc_table.c.assoc_name == t.exposure_files.c.assoc)
            .where(t.assoc_table.c.parent == field)
        )
        return {row.dataset: row.assoc for row in connection.execute(query)}

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
            status = DEFINED if not ready else QUEUED if old in (None, DEFINED, DO_NOT_RUN) else old
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
        """
        kept = list(kept)
        datasets = {e.dataset for a in kept for e in a.exposures}
        gone = set(self.known_associations(connection, field)) - datasets
        connection.execute(
            t.exposure_files.update()
            .where(t.exposure_files.c.dataset.in_(gone))
            .values(ready=False, held_back_because="refused by the survey", modtime=now())
        )
        connection.execute(
            t.assoc_table.update()
            .where(t.assoc_table.c.parent == field, t.assoc_table.c.assoc_name.not_in([a.name for a in kept]))
            .values(
                status=DO_NOT_RUN, dataURL="", cause="all of its exposures are refused by the survey", modtime=now()
            )
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
        return [Association(n, field, tuple(members[n])) for n in sorted(members, key=lambda n: n[-5:])]

    def association(self, name: str) -> Association:
        """One association with its ready exposures; `UnknownNameError` names the nearest."""
        with self.read() as connection:
            field = connection.scalar(sa.select(t.assoc_table.c.parent).where(t.assoc_table.c.assoc_name == name))
            if field is None:
                names = list(connection.scalars(sa.select(t.assoc_table.c.assoc_name)))
                raise UnknownNameError("association", name, names)
        return next(a for a in self.associations(field) if a.name == name)

    def association_rows(self, field: str) -> list[sa.RowMapping]:
        """Rows of ``assoc_table`` of one field."""
        with self.read() as connection:
            query = sa.select(t.assoc_table).where(t.assoc_table.c.parent == field).order_by(t.assoc_table.c.assoc_name)
            return sorted(connection.execute(query).mappings(), key=lambda r: r["assoc_name"][-5:])

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

    def set_status(self, name: str, status: int, cause: str = "") -> None:
        """Mirror an association's state for those who ask by SQL."""
        with self.write() as connection:
            connection.execute(
                t.assoc_table.update()
                .where(t.assoc_table.c.assoc_name == name)
                .values(status=status, cause=cause, modtime=now())
            )

    # --- reductions -----------------------------------------------------------------------

    def put_reduction(
        self,
        association: Association,
        fingerprint: str,
        result: ReductionResult,
        verdict: Verdict,
        attempts: Sequence[Mapping[str, Any]],
        products: Sequence[Mapping[str, Any]],
    ) -> None:
        """Store an association's result and verdict, its logs and products, in one transaction."""
        at, name = now(), association.name
        with self.write() as connection:
            self.upsert(
                connection,
                t.reductions,
                [
                    {
                        "assoc": name,
                        "fingerprint": fingerprint,
                        "result": result.to_json(),
                        "verdict": verdict.to_json(),
                        "status": verdict.status,
                        "attempts": list(attempts),
                        "made": at,
                    }
                ],
            )
            connection.execute(t.shifts_log.delete().where(t.shifts_log.c.shift_assoc == name))
            self.upsert(connection, t.shifts_log, [_shift_row(f, association, at) for f in result.relative])
            connection.execute(t.wcs_log.delete().where(t.wcs_log.c.wcs_assoc == name))
            if result.absolute is not None:
                self.upsert(connection, t.wcs_log, [_wcs_row(result.absolute, association, at)])
            connection.execute(t.degradations.delete().where(t.degradations.c.assoc == name))
            self.upsert(
                connection,
                t.degradations,
                [asdict(d) | {"assoc": name, "modtime": at} for d in result.degradations],
            )
            self._replace_products(connection, association.field, name, products, at)
            connection.execute(
                t.assoc_table.update()
                .where(t.assoc_table.c.assoc_name == name)
                .values(status=DONE if verdict.accepted else ALIGNMENT_FAILED, cause=verdict.cause, modtime=at)
            )

    def put_verdict(self, verdict: Verdict) -> None:
        """Replace the verdict on a stored result (the limits changed)."""
        with self.write() as connection:
            connection.execute(
                t.reductions.update()
                .where(t.reductions.c.assoc == verdict.association)
                .values(verdict=verdict.to_json(), status=verdict.status)
            )
            connection.execute(
                t.assoc_table.update()
                .where(t.assoc_table.c.assoc_name == verdict.association)
                .values(status=DONE if verdict.accepted else ALIGNMENT_FAILED, cause=verdict.cause, modtime=now())
            )

    def reduction(self, name: str) -> tuple[str, ReductionResult, Verdict, list[dict[str, Any]]] | None:
        """Fingerprint, result, verdict and attempts of an association; None where it was never reduced."""
        with self.read() as connection:
            row = connection.execute(sa.select(t.reductions).where(t.reductions.c.assoc == name)).first()
        if row is None:
            return None
        return (
            row.fingerprint,
            ReductionResult.from_json(row.result),
            Verdict.from_json(row.verdict),
            list(row.attempts),
        )

    def field_degradations(self, field: str) -> list[sa.RowMapping]:
        """Degradations of a field's reductions."""
        with self.read() as connection:
            query = (
                sa.select(t.degradations)
                .join(t.assoc_table, t.assoc_table.c.assoc_name == t.degradations.c.assoc)
                .where(t.assoc_table.c.parent == field)
                .order_by(t.degradations.c.product, t.degradations.c.what)
            )
            return list(connection.execute(query).mappings())

    # --- products -------------------------------------------------------------------------

    def _replace_products(
        self, connection: sa.Connection, field: str, owner: str, products: Sequence[Mapping[str, Any]], at: datetime
    ) -> None:
        connection.execute(t.products.delete().where(t.products.c.owner == owner))
        self.upsert(connection, t.products, [dict(p) | {"field": field, "owner": owner, "made": at} for p in products])

    def products(self, owner: str) -> list[sa.RowMapping]:
        """Product rows of an association or a mosaic."""
        with self.read() as connection:
            query = sa.select(t.products).where(t.products.c.owner == owner).order_by(t.products.c.path)
            return list(connection.execute(query).mappings())

    def put_mosaic(
        self,
        stem: str,
        field: str,
        filter_key: str,
        fingerprint: str,
        result: str,
        products: Sequence[Mapping[str, Any]],
    ) -> None:
        """Store a mosaic's result and products in one transaction; its astrometry is measured anew."""
        at = now()
        row = {"stem": stem, "field": field, "filter_key": filter_key, "fingerprint": fingerprint, "result": result}
        with self.write() as connection:
            self.upsert(connection, t.mosaics, [row | {"astrometry": [], "made": at}])
            self._replace_products(connection, field, stem, products, at)

    def mosaics(self, field: str) -> list[sa.RowMapping]:
        """Mosaics of a field."""
        with self.read() as connection:
            query = sa.select(t.mosaics).where(t.mosaics.c.field == field).order_by(t.mosaics.c.filter_key)
            return list(connection.execute(query).mappings())

    def drop_mosaics(self, field: str, keep: Iterable[str]) -> list[str]:
        """Forget mosaics of a field that no longer stand; returns the paths of their products."""
        keep = set(keep)
        gone = [m["stem"] for m in self.mosaics(field) if m["stem"] not in keep]
        paths = [p["path"] for stem in gone for p in self.products(stem)]
        with self.write() as connection:
            connection.execute(t.products.delete().where(t.products.c.owner.in_(gone)))
            connection.execute(t.mosaics.delete().where(t.mosaics.c.stem.in_(gone)))
        return paths

    # --- the astrometric reference --------------------------------------------------------

    def publish_reference(self, field: str, sources: Table) -> None:
        """Replace a field's own reference by these sources (``ra, dec, mag, src``), in one transaction."""
        rows = [
            {
                "src": str(r["src"]),
                "number": number,
                "field": field,
                "ra": float(r["ra"]),
                "dec": float(r["dec"]),
                "mag": float(r["mag"]),
            }
            for number, r in enumerate(sources)
        ]
        with self.write() as connection:
            connection.execute(t.astrometry_reference.delete().where(t.astrometry_reference.c.field == field))
            if rows:
                connection.execute(t.astrometry_reference.insert(), rows)

    def reference(self, field: str) -> list[sa.RowMapping]:
        """The published sources of a field's own reference."""
        with self.read() as connection:
            r = t.astrometry_reference
            query = sa.select(r).where(r.c.field == field).order_by(r.c.src, r.c.number)
            return list(connection.execute(query).mappings())


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins its own transactions, see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=60000")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # a writer takes its lock at once: an upgrade from reading to writing fails under load instead of waiting
    writes = connection.get_execution_options().get("panoramic_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def _shift_row(fit: Any, association: Association, at: datetime) -> dict[str, Any]:
    return {
        "shift_dataset": fit.dataset,
        "shift_parent": association.field,
        "shift_assoc": association.name,
        "shift_role": fit.role,
        "shift_dx": fit.dx,
        "shift_dy": fit.dy,
        "shift_n": fit.n,
        "shift_xrms": _finite(fit.rms_x),
        "shift_yrms": _finite(fit.rms_y),
        "shift_modtime": at,
    }


def _wcs_row(fit: AbsoluteFit, association: Association, at: datetime) -> dict[str, Any]:
    return {
        "wcs_assoc": association.name,
        "wcs_parent": association.field,
        "wcs_radec": fit.reference,
        "wcs_iter": 0,
        "wcs_dx": fit.dx,
        "wcs_dy": fit.dy,
        "wcs_rot": fit.rotation_deg,
        "wcs_scale": fit.scale,
        "wcs_rms": _finite(fit.rms),
        "wcs_n": fit.n,
        "wcs_modtime": at,
    }


def canonical(value: object) -> str:
    """JSON text of a value, independent of the order of keys."""
    return json.dumps(value, sort_keys=True, default=str)
