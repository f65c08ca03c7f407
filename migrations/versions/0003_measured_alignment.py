"""Alignment measured independently, the catalogues that were tried, versions of a field's reference, its frame

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "alignment_measurements",
        sa.Column("assoc", sa.String(length=96), nullable=False),
        sa.Column("subject", sa.String(length=96), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("reference", sa.String(length=96), nullable=False),
        sa.Column("n_sources", sa.Integer(), nullable=False),
        sa.Column("n_reference", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("dra", sa.Float(), nullable=True),
        sa.Column("ddec", sa.Float(), nullable=True),
        sa.Column("err_ra", sa.Float(), nullable=True),
        sa.Column("err_dec", sa.Float(), nullable=True),
        sa.Column("scatter_ra", sa.Float(), nullable=True),
        sa.Column("scatter_dec", sa.Float(), nullable=True),
        sa.Column("rotation_deg", sa.Float(), nullable=True),
        sa.Column("rotation_err_deg", sa.Float(), nullable=True),
        sa.Column("scale_mas", sa.Float(), nullable=True),
        sa.Column("scale_err_mas", sa.Float(), nullable=True),
        sa.Column("pixel_scale_mas", sa.Float(), nullable=False),
        sa.Column("chance", sa.Float(), nullable=True),
        sa.Column("contrast", sa.Float(), nullable=True),
        sa.Column("cause", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("modtime", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assoc"], ["assoc_table.assoc_name"], name=op.f("fk_alignment_measurements_assoc_assoc_table")
        ),
        sa.PrimaryKeyConstraint("assoc", "subject", "kind", name=op.f("pk_alignment_measurements")),
    )
    op.create_table(
        "reference_tries",
        sa.Column("assoc", sa.String(length=96), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.String(length=16), nullable=False),
        sa.Column("catalog", sa.String(length=96), nullable=False),
        sa.Column("origin", sa.String(length=160), nullable=False),
        sa.Column("n_sources", sa.Integer(), nullable=True),
        sa.Column("used", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("modtime", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assoc"], ["assoc_table.assoc_name"], name=op.f("fk_reference_tries_assoc_assoc_table")
        ),
        sa.PrimaryKeyConstraint("assoc", "number", name=op.f("pk_reference_tries")),
    )
    op.create_table(
        "reference_versions",
        sa.Column("field", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("n_sources", sa.Integer(), nullable=False),
        sa.Column("associations", sa.JSON(), nullable=False),
        sa.Column("published", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["field"], ["fields.name"], name=op.f("fk_reference_versions_field_fields")),
        sa.PrimaryKeyConstraint("field", "version", name=op.f("pk_reference_versions")),
    )
    op.create_table(
        "field_frames",
        sa.Column("field", sa.String(length=32), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("solution", sa.Text(), nullable=False),
        sa.Column("made", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["field"], ["fields.name"], name=op.f("fk_field_frames_field_fields")),
        sa.PrimaryKeyConstraint("field", name=op.f("pk_field_frames")),
    )
    with op.batch_alter_table("reductions") as batch:
        batch.add_column(sa.Column("measurement", sa.Text(), nullable=False, server_default=""))
        batch.add_column(sa.Column("second_fingerprint", sa.String(length=64), nullable=False, server_default=""))
    _rewrite_attempts(op.get_bind())


def _rewrite_attempts(connection: sa.Connection) -> None:
    """What was tried, from ``reference``, ``status`` and ``cause`` to rows of `reference_tries`, in both places."""
    r = sa.table("reductions", sa.column("assoc"), sa.column("attempts", sa.JSON), sa.column("made", sa.DateTime))
    columns = ("assoc", "number", "attempt", "catalog", "origin", "n_sources", "used", "outcome")
    tries = sa.table("reference_tries", *map(sa.column, columns), sa.column("modtime", sa.DateTime))
    for assoc, attempts, made in connection.execute(sa.select(r.c.assoc, r.c.attempts, r.c.made)).all():
        rows = [
            {
                "attempt": "first",
                "catalog": attempt["reference"] or "none",
                "origin": "",
                "n_sources": None,
                "used": attempt["status"] == "accepted",
                "outcome": attempt["cause"] or attempt["status"],
            }
            for attempt in attempts
        ]
        connection.execute(r.update().where(r.c.assoc == assoc).values(attempts=rows))
        for number, row in enumerate(rows, start=1):
            connection.execute(tries.insert().values(assoc=assoc, number=number, modtime=made, **row))
