"""Discovery on a real archive: refusals with their reasons, what people release or judge, data that a token opens

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "refusals",
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("program", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(), nullable=False),
        sa.Column("last_seen", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_refusals")),
    )
    op.create_table(
        "released_groups",
        sa.Column("visit_id", sa.String(length=16), nullable=False),
        sa.Column("activity", sa.String(length=8), nullable=False),
        sa.Column("filter", sa.String(length=16), nullable=False),
        sa.Column("pupil", sa.String(length=16), nullable=False),
        sa.Column("detector", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("released_by", sa.String(length=64), nullable=False),
        sa.Column("released_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("visit_id", "activity", "filter", "pupil", "detector", name=op.f("pk_released_groups")),
    )
    op.create_table(
        "judgements",
        sa.Column("assoc", sa.String(length=96), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("judged_by", sa.String(length=64), nullable=False),
        sa.Column("judged_at", sa.DateTime(), nullable=False),
        sa.Column("data", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["assoc"], ["assoc_table.assoc_name"], name=op.f("fk_judgements_assoc_assoc_table")),
        sa.PrimaryKeyConstraint("assoc", name=op.f("pk_judgements")),
    )
    with op.batch_alter_table("observations") as batch:
        batch.add_column(sa.Column("granted", sa.Boolean(), nullable=False, server_default=sa.false()))
        # a folder's files have identities of 48 bits, which PostgreSQL's integer can't hold
        batch.alter_column("file_id", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False)
        batch.alter_column("size", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False)
    with op.batch_alter_table("fields") as batch:
        batch.add_column(sa.Column("adopted", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("grouped_version", sa.String(length=64), nullable=False, server_default=""))
    with op.batch_alter_table("products") as batch:
        batch.alter_column("size", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False)
