"""What was made: reductions with their logs and verdicts, mosaics, products, and the published reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from astropy.table import Table

from panoramic.alignment import Judgement, Verdict
from panoramic.alignment_measurement import Measurement, Offset
from panoramic.associations import Association
from panoramic.field_frame import FrameSolution
from panoramic.provenance import digest_of
from panoramic.reduction.base import AbsoluteFit, ReductionResult, RelativeFit
from resources import tables as t
from resources.database.core import ALIGNMENT_FAILED, DONE, DatabaseCore, now


class StoredReduction(NamedTuple):
    """What is kept of an association's reduction.

    ``second_fingerprint`` is that of the second attempt; empty where the first one settled it. ``measurement`` is None
    where there was nothing to measure.
    """

    fingerprint: str
    result: ReductionResult
    verdict: Verdict
    attempts: list[dict[str, Any]]
    measurement: Measurement | None
    second_fingerprint: str


class ProductTables(DatabaseCore):
    """The tables of results and products."""

    # --- reductions -----------------------------------------------------------------------

    def put_reduction(
        self, association: Association, stored: StoredReduction, products: Sequence[Mapping[str, Any]]
    ) -> None:
        """Store an association's result and verdict, its logs, measurements and products, in one transaction."""
        at, name = now(), association.name
        result, verdict = stored.result, stored.verdict
        with self.write() as connection:
            self.upsert(
                connection,
                t.reductions,
                [
                    {
                        "assoc": name,
                        "fingerprint": stored.fingerprint,
                        "second_fingerprint": stored.second_fingerprint,
                        "result": result.to_json(),
                        "verdict": verdict.to_json(),
                        "status": verdict.status,
                        "attempts": stored.attempts,
                        "measurement": stored.measurement.to_json() if stored.measurement else "",
                        "made": at,
                    }
                ],
            )
            tables: dict[sa.Table, list[dict[str, Any]]] = {
                t.reference_tries: _try_rows(name, stored.attempts, at),
                t.shifts_log: [_shift_row(f, association, at) for f in result.relative],
                t.wcs_log: [_wcs_row(result.absolute, association, at)] if result.absolute else [],
                t.degradations: [asdict(d) | {"assoc": name, "modtime": at} for d in result.degradations],
                t.alignment_measurements: _measurement_rows(stored.measurement, at),
            }
            for table, rows in tables.items():
                owner = next(c for c in table.c if c.name in ("assoc", "shift_assoc", "wcs_assoc"))
                connection.execute(table.delete().where(owner == name))
                self.upsert(connection, table, rows)
            self._replace_products(connection, association.field, name, products, at)
            connection.execute(
                t.assoc_table.update()
                .where(t.assoc_table.c.assoc_name == name)
                .values(status=DONE if verdict.accepted else ALIGNMENT_FAILED, cause=verdict.cause, modtime=at)
            )

    def put_attempts(self, name: str, attempts: Sequence[Mapping[str, Any]], second_fingerprint: str) -> None:
        """Keep what was tried with an association though it made nothing new."""
        at, r, tries = now(), t.reductions, t.reference_tries
        values = {"attempts": list(attempts), "second_fingerprint": second_fingerprint}
        with self.write() as connection:
            connection.execute(r.update().where(r.c.assoc == name).values(**values))
            connection.execute(tries.delete().where(tries.c.assoc == name))
            self.upsert(connection, tries, _try_rows(name, attempts, at))

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

    def put_judgement(self, association: Association, judgement: Judgement) -> None:
        """Keep what a person decided on an association, of the data that it has now."""
        row = {
            "assoc": association.name, "decision": judgement.decision, "reason": judgement.reason,
            "judged_by": judgement.by, "judged_at": now(), "data": association.data,
        }  # fmt: skip
        with self.write() as connection:
            self.upsert(connection, t.judgements, [row])

    def judgement(self, association: Association) -> Judgement | None:
        """What a person decided on an association; None once its data have changed."""
        j = t.judgements
        with self.read() as connection:
            row = connection.execute(sa.select(j).where(j.c.assoc == association.name)).first()
        if row is None or row.data != association.data:
            return None
        return Judgement(row.decision, row.reason, row.judged_by, f"{row.judged_at:%Y-%m-%d}")

    def reduction(self, name: str) -> StoredReduction | None:
        """What is kept of an association's reduction; None where it was never reduced."""
        with self.read() as connection:
            row = connection.execute(sa.select(t.reductions).where(t.reductions.c.assoc == name)).first()
        if row is None:
            return None
        return StoredReduction(
            row.fingerprint,
            ReductionResult.from_json(row.result),
            Verdict.from_json(row.verdict),
            list(row.attempts),
            Measurement.from_json(row.measurement) if row.measurement else None,
            row.second_fingerprint,
        )

    def reference_tries(self, field: str) -> list[sa.RowMapping]:
        """The catalogues that a field's associations were tried with, in order."""
        r = t.reference_tries
        with self.read() as connection:
            query = (
                sa.select(r)
                .join(t.assoc_table, t.assoc_table.c.assoc_name == r.c.assoc)
                .where(t.assoc_table.c.parent == field)
                .order_by(r.c.assoc, r.c.number)
            )
            return list(connection.execute(query).mappings())

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

    def put_product_file(self, path: str, checksum: str, size: int, mtime_ns: int) -> None:
        """Record that a stored product was written anew in its place."""
        p = t.products
        values = {"checksum": checksum, "size": size, "mtime_ns": str(mtime_ns)}
        with self.write() as connection:
            connection.execute(p.update().where(p.c.path == path).values(**values))

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

    def publish_reference(self, field: str, sources: Table) -> int:
        """Replace a field's own reference by these sources (``ra, dec, mag, src``), in one transaction.

        Returns
        -------
        Its version: one more than the last, or the last where nothing changed.
        """
        rows: list[dict[str, Any]] = [
            {
                "src": str(r["src"]),
                "number": number,
                "field": field,
                "ra": float(r["ra"]),
                "dec": float(r["dec"]),
                "mag": float(r["mag"]),
                "error_mas": _finite(float(r["error_mas"])) if "error_mas" in sources.colnames else None,
            }
            for number, r in enumerate(sources)
        ]
        digest = digest_of(
            [
                [r["src"], round(r["ra"], 9), round(r["dec"], 9), round(r["mag"], 3), round(r["error_mas"] or 0.0, 3)]
                for r in rows
            ]
        )
        with self.write() as connection:
            last = self._last_version(connection, field)
            if last is not None and last.digest == digest:
                return int(last.version)
            version = 1 if last is None else last.version + 1
            connection.execute(t.astrometry_reference.delete().where(t.astrometry_reference.c.field == field))
            if rows:
                connection.execute(t.astrometry_reference.insert(), rows)
            row = {
                "field": field, "version": version, "digest": digest, "n_sources": len(rows),
                "associations": sorted({r["src"] for r in rows}), "published": now(),
            }  # fmt: skip
            connection.execute(t.reference_versions.insert().values(**row))
        return version

    def reference_version(self, field: str) -> int:
        """Version of a field's published reference; 0 where none was."""
        with self.read() as connection:
            last = self._last_version(connection, field)
        return 0 if last is None else int(last.version)

    @staticmethod
    def _last_version(connection: sa.Connection, field: str) -> sa.Row[Any] | None:
        v = t.reference_versions
        return connection.execute(sa.select(v).where(v.c.field == field).order_by(v.c.version.desc()).limit(1)).first()

    # --- the field's frame ----------------------------------------------------------------

    def put_frame(self, field: str, fingerprint: str, solution: FrameSolution) -> None:
        """Keep how a field's reference associations were tied to each other."""
        row = {"field": field, "fingerprint": fingerprint, "solution": solution.to_json(), "made": now()}
        with self.write() as connection:
            self.upsert(connection, t.field_frames, [row])

    def frame(self, field: str) -> tuple[str, FrameSolution] | None:
        """Fingerprint and solution of a field's frame; None where nothing had to be tied."""
        with self.read() as connection:
            row = connection.execute(sa.select(t.field_frames).where(t.field_frames.c.field == field)).first()
        return None if row is None else (row.fingerprint, FrameSolution.from_json(row.solution))

    def reference(self, field: str) -> list[sa.RowMapping]:
        """The published sources of a field's own reference."""
        with self.read() as connection:
            r = t.astrometry_reference
            query = sa.select(r).where(r.c.field == field).order_by(r.c.src, r.c.number)
            return list(connection.execute(query).mappings())


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def _shift_row(fit: RelativeFit, association: Association, at: datetime) -> dict[str, Any]:
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


def _try_rows(name: str, attempts: Sequence[Mapping[str, Any]], at: datetime) -> list[dict[str, Any]]:
    columns = {c.name for c in t.reference_tries.columns}
    return [
        {"assoc": name, "number": k, "modtime": at} | {c: v for c, v in attempt.items() if c in columns}
        for k, attempt in enumerate(attempts, start=1)
    ]


def _measurement_rows(measurement: Measurement | None, at: datetime) -> list[dict[str, Any]]:
    if measurement is None:
        return []
    offsets: list[Offset] = [*([measurement.absolute] if measurement.absolute else []), *measurement.exposures]
    columns = {c.name for c in t.alignment_measurements.columns} - {"assoc", "modtime"}
    return [
        {"assoc": measurement.association, "modtime": at} | {c: getattr(offset, c) for c in columns}
        for offset in offsets
    ]


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
