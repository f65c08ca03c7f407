"""Archive rows into the database (`ingest`), and from there into Dagster's event log (`report`).

The only place where observations, revisions, fields and data versions are written. Called by the sensor, by
``panoramic run`` and by ``panoramic ingest``.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from dagster import AssetKey, AssetMaterialization, AssetRecordsFilter, DagsterInstance
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from panoramic.errors import InputError
from panoramic.fields import FieldAssignment, assign_fields
from panoramic.footprints import mean_position
from panoramic.observations import Exposure, ParsedRows, is_revision, parse_rows, split_filename
from panoramic.provenance import digest_of
from panoramic.survey import DETECTORS, Survey
from panoramic_assets.partitions import FIELDS
from resources import tables as t
from resources.archive import ArchiveLook
from resources.database import Database

MAST_ARCHIVE = AssetKey("mast_archive")


@dataclass
class IngestReport:
    """What a look at the archive brought: datasets by what happened to them, refusals and faults with their reason."""

    n_rows: int = 0
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    unreleased: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    new_fields: list[str] = field(default_factory=list)
    touched_fields: list[str] = field(default_factory=list)


def ingest(database: Database, survey: Survey, look: ArchiveLook, at: datetime) -> IngestReport:
    """Write what a look at the archive showed, in one transaction; the same look again changes nothing.

    Parameters
    ----------
    at : the time of the look, UTC. Exposures whose release date is later are known but wait.
    """
    parsed = parse_rows(look.rows, look.source, survey.exposures)
    exposures = {d: _of_this_survey(e, survey) for d, e in parsed.exposures.items()}
    report = IngestReport(n_rows=parsed.n_rows, errors=[str(e) for e in parsed.errors])
    report.refused = {d: e.refused for d, e in exposures.items() if e.refused}
    report.faults = {f.name: f.reason for f in look.faults}
    named = set(report.faults.values())
    report.faults |= {d: reason for d, reason in parsed.unplaced.items() if reason not in named}
    with database.write() as connection:
        known = database.latest(connection)
        assignment = _place(database, connection, exposures, survey)
        _write_fields(database, connection, assignment, exposures, at)
        report.new_fields = assignment.new
        for dataset, exposure in exposures.items():
            _write_exposure(database, connection, exposure, known.get(dataset), assignment, at, report)
        _write_faults(database, connection, look, parsed, at)
        report.touched_fields = _write_data_versions(database, connection, look, set(report.refused), at)
    return report


def mjd(at: datetime) -> float:
    """Modified Julian date of a UTC time."""
    return (at - datetime(1858, 11, 17)).total_seconds() / 86400


def _of_this_survey(exposure: Exposure, survey: Survey) -> Exposure:
    if survey.programs and exposure.program not in survey.programs and not exposure.refused:
        return dataclasses.replace(exposure, refused=f"program {exposure.program} is not one of the survey's")
    return exposure


def _place(
    database: Database, connection: sa.Connection, exposures: Mapping[str, Exposure], survey: Survey
) -> FieldAssignment:
    """Fields of the exposures that have none yet; refused ones make none and are in none."""
    known = database.sky_fields(connection)
    return assign_fields([e for e in exposures.values() if not e.refused], known, survey.fields)


def _write_fields(
    database: Database,
    connection: sa.Connection,
    assignment: FieldAssignment,
    exposures: Mapping[str, Exposure],
    at: datetime,
) -> None:
    ordinal = connection.scalar(sa.select(sa.func.max(t.fields.c.ordinal))) or 0
    for number, name in enumerate(assignment.new, start=ordinal + 1):
        members = [exposures[d] for d, f in assignment.fields.items() if f == name]
        ra, dec = mean_position(np.array([[e.ra, e.dec] for e in members]))
        row = {"name": name, "ordinal": number, "ra": ra, "dec": dec, "data_version": "", "archive_count": 0}
        database.upsert(connection, t.fields, [row | {"looked_at": at, "touching": {}}])
    touching: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for dataset, names in assignment.touching.items():
        touching[assignment.fields[dataset]][dataset] = list(names)
    for name, datasets in touching.items():
        old = connection.scalar(sa.select(t.fields.c.touching).where(t.fields.c.name == name)) or {}
        connection.execute(t.fields.update().where(t.fields.c.name == name).values(touching=old | datasets))


def _write_exposure(
    database: Database,
    connection: sa.Connection,
    exposure: Exposure,
    known: tuple[int, str, Exposure] | None,
    assignment: FieldAssignment,
    at: datetime,
    report: IngestReport,
) -> None:
    if exposure.release > mjd(at):
        report.unreleased.append(exposure.dataset)
    if known is None:
        name = assignment.fields.get(exposure.dataset)
        if name is not None:
            report.new.append(exposure.dataset)
            database.put_exposure(connection, exposure, 1, name, at, at)
        return
    revision, name, old = known
    if is_revision(old, exposure):
        report.changed.append(exposure.dataset)
        database.put_exposure(connection, exposure, revision + 1, name, at, at)
        return
    report.unchanged.append(exposure.dataset)
    o = t.observations
    values: dict[str, Any] = {"last_seen": at}
    # what is no revision but may still change: the survey's rules, the release date, the state of the file
    for column in ("refused", "fault", "release", "filename", "checksum", "file_id", "size"):
        values[column] = getattr(exposure, column)
    connection.execute(o.update().where(o.c.dataset == exposure.dataset, o.c.revision == revision).values(**values))


def _write_faults(
    database: Database, connection: sa.Connection, look: ArchiveLook, parsed: ParsedRows, at: datetime
) -> None:
    """Replace the list of what is wrong in the archive: it describes the last look."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for dataset, reason in parsed.unplaced.items():
        rows[dataset, "bad_row"] = {
            "name": dataset,
            "kind": "bad_row",
            "dataset": dataset,
            "reason": reason,
            "seen": at,
        }
    for fault in look.faults:
        dataset = _dataset_of(fault.name)
        name = fault.name[-160:]
        rows[name, fault.kind] = {
            "name": name,
            "kind": fault.kind,
            "dataset": dataset,
            "reason": fault.reason,
            "seen": at,
        }
    if look.complete:
        connection.execute(t.archive_faults.delete())
    database.upsert(connection, t.archive_faults, list(rows.values()))


def _dataset_of(name: str) -> str:
    try:
        return split_filename(name.rsplit("/", 1)[-1])["dataset"].lower()
    except InputError:
        return ""


def _write_data_versions(
    database: Database, connection: sa.Connection, look: ArchiveLook, refused: set[str], at: datetime
) -> list[str]:
    """Give each field the digest of what a downstream step would see of it; returns the fields that changed."""
    members: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    field_of: dict[str, str] = {}
    visits: dict[str, set[str]] = defaultdict(set)
    for dataset, (revision, name, e) in database.latest(connection).items():
        members[name].append((dataset, revision, e.refused, e.fault, e.release <= mjd(at)))
        field_of[dataset] = name
        visits[e.visit_id].add(name)
    # what is known by name only holds its group back, so it is part of what downstream sees
    for row in connection.execute(sa.select(t.archive_faults).order_by(t.archive_faults.c.name)).mappings():
        dataset = row["dataset"]
        for name in visits.get(dataset[2:13], ()) if dataset not in field_of else ():
            members[name].append(("unplaced", dataset))
    counts = _archive_counts(look.rows, field_of, visits, refused)
    touched = []
    for row in connection.execute(sa.select(t.fields)).mappings().all():
        version = digest_of(members[row["name"]])[:16]
        values: dict[str, Any] = {}
        if version != row["data_version"]:
            touched.append(row["name"])
            values["data_version"] = version
        if look.complete:
            values |= {"archive_count": counts[row["name"]], "looked_at": at}
        if values:
            connection.execute(t.fields.update().where(t.fields.c.name == row["name"]).values(**values))
    return touched


def _archive_counts(
    rows: Iterable[Mapping[str, Any]], field_of: Mapping[str, str], visits: Mapping[str, set[str]], refused: set[str]
) -> dict[str, int]:
    """Distinct datasets by field, counted from the rows themselves.

    A row that was never taken in (its footprint or filter is empty) counts for the fields of its visit.
    """
    datasets = set()
    for row in rows:
        try:
            parts = split_filename(str(row.get("filename", "")))
        except InputError:
            continue
        if parts["detector"].upper() in DETECTORS:
            datasets.add(parts["dataset"].lower())
    counts: dict[str, int] = defaultdict(int)
    for dataset in datasets:
        unplaced_in = () if dataset in refused else visits.get(dataset[2:13], ())
        for name in {field_of[dataset]} if dataset in field_of else unplaced_in:
            counts[name] += 1
    return counts


# --- from the database into Dagster -----------------------------------------------------------


def unreported(database: Database, instance: DagsterInstance) -> list[AssetMaterialization]:
    """Events that Dagster lacks: each field whose stored data version is not the one that it knows last."""
    events = []
    for name in database.field_names():
        stored = database.field(name)["data_version"]
        records = instance.fetch_materializations(
            AssetRecordsFilter(asset_key=MAST_ARCHIVE, asset_partitions=[name]), limit=1
        ).records
        last = records[0].asset_materialization if records else None
        if last is None or (last.tags or {}).get(DATA_VERSION_TAG) != stored:
            events.append(AssetMaterialization(MAST_ARCHIVE, partition=name, tags={DATA_VERSION_TAG: stored}))
    return events


def report(database: Database, instance: DagsterInstance, on_event: Callable[[str], None] | None = None) -> list[str]:
    """Add missing partition keys and report changed fields to Dagster; returns the fields reported."""
    missing = set(database.field_names()) - set(instance.get_dynamic_partitions(FIELDS))
    if missing:
        instance.add_dynamic_partitions(FIELDS, sorted(missing))
    events = unreported(database, instance)
    for event in events:
        instance.report_runless_asset_event(event)
        if on_event is not None and event.partition is not None:
            on_event(event.partition)
    return [e.partition for e in events if e.partition is not None]
