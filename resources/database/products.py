"""What was made: reductions with their logs and verdicts, mosaics, products, and the published reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from astropy.table import Table

from panoramic.alignment import Judgement, Verdict
from panoramic.associations import Association
from panoramic.reduction.base import AbsoluteFit, ReductionResult, RelativeFit
from resources import tables as t
from resources.database.core import ALIGNMENT_FAILED, DONE, DatabaseCore, now


class ProductTables(DatabaseCore):
    """The tables of results and products."""

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
