"""The tables of design section 6, as SQLAlchemy metadata. ``migrations/`` brings a database to this state."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

home = Table("home", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False))

fields = Table(
    "fields",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("ordinal", Integer, nullable=False, unique=True),
    Column("ra", Float, nullable=False),
    Column("dec", Float, nullable=False),
    Column("data_version", String(64), nullable=False),
    Column("archive_count", Integer, nullable=False),
    Column("looked_at", DateTime, nullable=False),
    Column("touching", JSON, nullable=False),
    Column("adopted", Boolean, nullable=False, server_default=false()),
    Column("grouped_version", String(64), nullable=False, server_default=""),
)

observations = Table(
    "observations",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("field", String(32), ForeignKey("fields.name"), nullable=False, index=True),
    Column("filename", String(80), nullable=False),
    Column("program", Integer, nullable=False),
    Column("observation", Integer, nullable=False),
    Column("visit", Integer, nullable=False),
    Column("activity", String(8), nullable=False),
    Column("exposure", Integer, nullable=False),
    Column("detector", String(16), nullable=False),
    Column("filter", String(16), nullable=False),
    Column("pupil", String(16), nullable=False),
    Column("module", String(2), nullable=False),
    Column("exptime", Float, nullable=False),
    Column("t_min", Float, nullable=False),
    Column("t_max", Float, nullable=False),
    Column("footprint", Text, nullable=False),
    Column("ra", Float, nullable=False),
    Column("dec", Float, nullable=False),
    Column("release", Float, nullable=False),
    Column("file_id", BigInteger, nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("cal_ver", String(32), nullable=False),
    Column("crds_ctx", String(32), nullable=False),
    Column("expcount", Integer, nullable=False),
    Column("refused", Text, nullable=False),
    Column("fault", Text, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("granted", Boolean, nullable=False, server_default=false()),
    Column("first_seen", DateTime, nullable=False),
    Column("last_seen", DateTime, nullable=False),
)

archive_faults = Table(
    "archive_faults",
    metadata,
    Column("name", String(160), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("dataset", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("seen", DateTime, nullable=False),
)

refusals = Table(
    "refusals",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("program", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("first_seen", DateTime, nullable=False),
    Column("last_seen", DateTime, nullable=False),
)

released_groups = Table(
    "released_groups",
    metadata,
    Column("visit_id", String(16), primary_key=True),
    Column("activity", String(8), primary_key=True),
    Column("filter", String(16), primary_key=True),
    Column("pupil", String(16), primary_key=True),
    Column("detector", String(16), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("released_by", String(64), nullable=False),
    Column("released_at", DateTime, nullable=False),
)

judgements = Table(
    "judgements",
    metadata,
    Column("assoc", String(96), ForeignKey("assoc_table.assoc_name"), primary_key=True),
    Column("decision", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("judged_by", String(64), nullable=False),
    Column("judged_at", DateTime, nullable=False),
    Column("data", String(64), nullable=False),
)

assoc_table = Table(
    "assoc_table",
    metadata,
    Column("assoc_name", String(96), primary_key=True),
    Column("status", Integer, nullable=False),
    Column("dataURL", Text, nullable=False),
    Column("parent", String(32), ForeignKey("fields.name"), nullable=False, index=True),
    Column("proposal_id", Integer, nullable=False),
    Column("filter", String(32), nullable=False),
    Column("instrument_name", String(16), nullable=False),
    Column("detector", String(16), nullable=False),
    Column("t_min", Float, nullable=False),
    Column("t_max", Float, nullable=False),
    Column("exptime", Float, nullable=False),
    Column("footprint", Text, nullable=False),
    Column("ra", Float, nullable=False),
    Column("dec", Float, nullable=False),
    Column("modtime", DateTime, nullable=False),
    Column("cause", Text, nullable=False),
)

exposure_files = Table(
    "exposure_files",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("file", String(80), nullable=False),
    Column("assoc", String(96), ForeignKey("assoc_table.assoc_name"), nullable=False, index=True),
    Column("filter", String(16), nullable=False),
    Column("pupil", String(16), nullable=False),
    Column("instrument", String(16), nullable=False),
    Column("detector", String(16), nullable=False),
    Column("exptime", Float, nullable=False),
    Column("expstart", Float, nullable=False),
    Column("footprint", Text, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("held_back_because", Text, nullable=False),
    Column("modtime", DateTime, nullable=False),
)

reductions = Table(
    "reductions",
    metadata,
    Column("assoc", String(96), ForeignKey("assoc_table.assoc_name"), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("result", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempts", JSON, nullable=False),
    Column("made", DateTime, nullable=False),
    Column("measurement", Text, nullable=False, server_default=""),
    Column("second_fingerprint", String(64), nullable=False, server_default=""),
)

alignment_measurements = Table(
    "alignment_measurements",
    metadata,
    Column("assoc", String(96), ForeignKey("assoc_table.assoc_name"), primary_key=True),
    Column("subject", String(96), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("reference", String(96), nullable=False),
    Column("n_sources", Integer, nullable=False),
    Column("n_reference", Integer, nullable=False),
    Column("n", Integer, nullable=False),
    Column("dra", Float),
    Column("ddec", Float),
    Column("err_ra", Float),
    Column("err_dec", Float),
    Column("scatter_ra", Float),
    Column("scatter_dec", Float),
    Column("rotation_deg", Float),
    Column("rotation_err_deg", Float),
    Column("scale_mas", Float),
    Column("scale_err_mas", Float),
    Column("pixel_scale_mas", Float, nullable=False),
    Column("chance", Float),
    Column("contrast", Float),
    Column("cause", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("modtime", DateTime, nullable=False),
)

reference_tries = Table(
    "reference_tries",
    metadata,
    Column("assoc", String(96), ForeignKey("assoc_table.assoc_name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", String(16), nullable=False),
    Column("catalog", String(96), nullable=False),
    Column("origin", String(160), nullable=False),
    Column("n_sources", Integer),
    Column("used", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("modtime", DateTime, nullable=False),
)

shifts_log = Table(
    "shifts_log",
    metadata,
    Column("shift_dataset", String(64), primary_key=True),
    Column("shift_parent", String(32), nullable=False),
    Column("shift_assoc", String(96), ForeignKey("assoc_table.assoc_name"), nullable=False, index=True),
    Column("shift_role", String(16), nullable=False),
    Column("shift_dx", Float, nullable=False),
    Column("shift_dy", Float, nullable=False),
    Column("shift_n", Integer, nullable=False),
    Column("shift_xrms", Float),
    Column("shift_yrms", Float),
    Column("shift_modtime", DateTime, nullable=False),
)

wcs_log = Table(
    "wcs_log",
    metadata,
    Column("wcs_assoc", String(96), ForeignKey("assoc_table.assoc_name"), primary_key=True),
    Column("wcs_parent", String(32), nullable=False),
    Column("wcs_radec", String(96), nullable=False),
    Column("wcs_iter", Integer, primary_key=True),
    Column("wcs_dx", Float, nullable=False),
    Column("wcs_dy", Float, nullable=False),
    Column("wcs_rot", Float, nullable=False),
    Column("wcs_scale", Float, nullable=False),
    Column("wcs_rms", Float),
    Column("wcs_n", Integer, nullable=False),
    Column("wcs_modtime", DateTime, nullable=False),
)

astrometry_reference = Table(
    "astrometry_reference",
    metadata,
    Column("src", String(96), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("field", String(32), ForeignKey("fields.name"), nullable=False, index=True),
    Column("ra", Float, nullable=False),
    Column("dec", Float, nullable=False),
    Column("mag", Float),
    Column("error_mas", Float),
)

reference_versions = Table(
    "reference_versions",
    metadata,
    Column("field", String(32), ForeignKey("fields.name"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("n_sources", Integer, nullable=False),
    Column("associations", JSON, nullable=False),
    Column("published", DateTime, nullable=False),
)

field_frames = Table(
    "field_frames",
    metadata,
    Column("field", String(32), ForeignKey("fields.name"), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("solution", Text, nullable=False),
    Column("made", DateTime, nullable=False),
)

degradations = Table(
    "degradations",
    metadata,
    Column("product", String(96), primary_key=True),
    Column("what", String(64), primary_key=True),
    Column("assoc", String(96), ForeignKey("assoc_table.assoc_name"), nullable=False, index=True),
    Column("why", Text, nullable=False),
    Column("intended", Boolean, nullable=False),
    Column("modtime", DateTime, nullable=False),
)

products = Table(
    "products",
    metadata,
    Column("path", String(255), primary_key=True),
    Column("field", String(32), ForeignKey("fields.name"), nullable=False, index=True),
    Column("owner", String(96), nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", String(24), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("made", DateTime, nullable=False),
)

mosaics = Table(
    "mosaics",
    metadata,
    Column("stem", String(128), primary_key=True),
    Column("field", String(32), ForeignKey("fields.name"), nullable=False, index=True),
    Column("filter_key", String(32), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("result", Text, nullable=False),
    Column("astrometry", JSON, nullable=False),
    Column("made", DateTime, nullable=False),
)
