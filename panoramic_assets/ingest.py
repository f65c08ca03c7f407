"""Archive rows into the database: what is new, changed, refused, and which fields it touches.

The only place where observations, revisions, fields and data versions are written. Called by the sensor, by
``panoramic run`` and by ``panoramic ingest``. Keep out Dagster: its event log is told by `reporting.py`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa

from panoramic.completeness import assess
from panoramic.errors import InputError
from panoramic.fields import FieldAssignment, assign_fields
from panoramic.footprints import mean_position
from panoramic.observations import (
    SUFFIX_RANK,
    Exposure,
    ParsedRows,
    is_revision,
    parse_rows,
    refused_now,
    split_filename,
)
from panoramic.provenance import digest_of
from panoramic.survey import DETECTORS, MastArchive, Survey
from resources import tables as t
from resources.archive import ArchiveLook
from resources.database import Database, Known

# what is no revision but may still change: the survey's rules, the release date, the state of the file
VOLATILE = ("refused", "fault", "release", "granted", "filename", "checksum", "file_id", "size")


@dataclass
class IngestReport:
    """What a look at the archive brought: datasets by what happened to them, refusals and faults with their reason.

    ``older`` are shown in an older version than the known one, which stands. ``not_seen`` are known datasets outside a
    window; ``gone`` those that a full look no longer shows (they are kept). ``touching`` gives the fields (its own
    first) of new exposures that touch several: `fields_touch`.
    ``incomplete`` gives what the touched fields lack, with the cause. ``moved`` gives the field of each dataset that
    the survey file's merges or splits put elsewhere.
    """

    n_rows: int = 0
    n_other: int = 0
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    not_seen: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unreleased: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    incomplete: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    touching: dict[str, list[str]] = field(default_factory=dict)
    new_fields: list[str] = field(default_factory=list)
    touched_fields: list[str] = field(default_factory=list)
    dry_run: bool = False


def ingest(database: Database, survey: Survey, look: ArchiveLook, at: datetime, dry_run: bool = False) -> IngestReport:
    """Write what a look at the archive showed, in one transaction; the same look again changes nothing.

    Parameters
    ----------
    at : the time of the look, UTC. Exposures whose release date is later are known but wait.
    dry_run : do all of it and take it back.
    """
    parsed = parse_rows(look.rows, look.source, survey.exposures, survey.programs)
    report = IngestReport(n_rows=parsed.n_rows, n_other=parsed.n_other, errors=[str(e) for e in parsed.errors])
    report.dry_run = dry_run
    report.faults = {f.name: f.reason for f in look.faults}
    named = set(report.faults.values())
    report.faults |= {d: reason for d, reason in parsed.unplaced.items() if reason not in named}
    with database.rehearse() if dry_run else database.write() as connection:
        known = database.latest(connection)
        exposures = _worth_reading(parsed.exposures, known, look, report)
        report.refused = {d: e.refused for d, e in exposures.items() if e.refused}
        report.unreleased = [d for d, e in exposures.items() if not e.is_available(mjd(at))]
        adopted = {d: f for d, f in database.adopted(connection).items() if d not in known}
        assignment = _place(database, connection, exposures, known, adopted, survey)
        _write_fields(database, connection, assignment, exposures, known, survey, at)
        database.move_exposures(connection, assignment.moved)
        report.new_fields, report.moved = assignment.new, dict(sorted(assignment.moved.items()))
        report.touching = {d: list(names) for d, names in sorted(assignment.touching.items())}
        states = _write_exposures(database, connection, exposures, known, assignment, adopted, at, report)
        unseen_states = _judge_unseen(database, connection, known, exposures, survey)
        states |= unseen_states
        judged = {d: dataclasses.replace(known[d][2], **values) for d, values in unseen_states.items()}
        _write_refusals(connection, exposures | judged, at)
        _write_faults(database, connection, look, parsed, at)
        unseen = sorted(d for d in set(known) - set(parsed.exposures) - set(parsed.unplaced) if d not in states)
        report.gone, report.not_seen = (unseen, []) if look.complete else ([], unseen)
        latest = database.latest(connection) if report.new or report.changed or report.moved else known
        latest = {
            d: (revision, name, dataclasses.replace(e, **states[d]) if d in states else e)
            for d, (revision, name, e) in latest.items()
        }
        report.touched_fields = _write_data_versions(database, connection, look, latest, set(report.refused), at)
        report.incomplete = _incomplete(database, connection, latest, survey, report.touched_fields, at)
        database.remember_look(connection, look.at_mjd, look.complete, _question(survey, look.rights))
    return report


def _worth_reading(
    shown: Mapping[str, Exposure], known: Mapping[str, Known], look: ArchiveLook, report: IngestReport
) -> dict[str, Exposure]:
    """The exposures of a look less those that tell nothing new of a known dataset; these go into the report.

    A window may show only a lesser product of the standing version, and a saved reply (or a server that lags) an older
    version: ArchiveFileID grows with ingestion.
    """
    kept = {}
    for dataset, exposure in shown.items():
        old = known[dataset][2] if dataset in known else None
        if old is not None and not look.complete and _is_lesser_product(old, exposure):
            report.unchanged.append(dataset)
        elif old is not None and look.ids_grow and _is_older(old, exposure):
            report.older.append(dataset)
        else:
            kept[dataset] = exposure
    return kept


def _is_lesser_product(old: Exposure, new: Exposure) -> bool:
    """Whether this is a lesser product of the same version: the standing file is still in the archive."""
    same_version = (old.cal_ver, old.crds_ctx) == (new.cal_ver, new.crds_ctx)
    return same_version and SUFFIX_RANK[old.suffix] < SUFFIX_RANK[new.suffix]


def _is_older(old: Exposure, new: Exposure) -> bool:
    """Whether this is an earlier ingestion of the same product."""
    return old.suffix == new.suffix and 0 < new.file_id < old.file_id


def look_since(database: Database, survey: Survey, rights: str, at: datetime) -> float | None:
    """From which date (MJD) of ingestion on the sensor need ask the archive; None asks for everything.

    A window can't show what left the archive, nor what a changed survey file asks for or another token opens: now and
    then, and after such a change, the look is a full one.

    Parameters
    ----------
    rights : the archive's word for what our token may open.
    """
    looks = database.last_looks(_question(survey, rights))
    if looks is None or not isinstance(survey.archive, MastArchive):
        return None
    last, full = looks
    return None if mjd(at) - full >= survey.archive.full_look_days else last


def _question(survey: Survey, rights: str) -> str:
    """Digest of what a look asks the archive for, and with what rights."""
    asked = [survey.archive.model_dump(mode="json"), survey.programs, survey.exposures.model_dump(), rights]
    return digest_of(asked)[:16]


def mjd(at: datetime) -> float:
    """Modified Julian date of a UTC time."""
    return (at - datetime(1858, 11, 17)).total_seconds() / 86400


def _place(
    database: Database,
    connection: sa.Connection,
    exposures: Mapping[str, Exposure],
    known: Mapping[str, Known],
    adopted: Mapping[str, str],
    survey: Survey,
) -> FieldAssignment:
    """Fields of the exposures that have none yet, and those that the survey file moves.

    Refused exposures make no field and are in none; adopted ones are in the field that they were adopted with.
    """
    unplaced = [e for d, e in exposures.items() if not e.refused and d not in known]
    if not unplaced and not survey.fields.changed():
        return FieldAssignment()  # nothing to place: no footprint need be read
    fields = database.sky_fields(connection, known)
    for dataset, name in adopted.items():
        if dataset in exposures:
            fields[name].footprints[dataset] = exposures[dataset].vertices
    assignment = assign_fields(unplaced, fields, survey.fields)
    # the position of an adopted field counts as a footprint, and is no exposure that could move
    assignment.moved = {d: name for d, name in assignment.moved.items() if d in known or d in exposures}
    return assignment


def _write_fields(
    database: Database,
    connection: sa.Connection,
    assignment: FieldAssignment,
    exposures: Mapping[str, Exposure],
    known: Mapping[str, Known],
    survey: Survey,
    at: datetime,
) -> None:
    ordinal = connection.scalar(sa.select(sa.func.max(t.fields.c.ordinal))) or 0
    members: dict[str, list[Exposure]] = defaultdict(list)
    for dataset, name in (assignment.fields | assignment.moved).items():
        members[name].append(exposures[dataset] if dataset in exposures else known[dataset][2])
    for number, name in enumerate(assignment.new, start=ordinal + 1):
        ra, dec = mean_position(np.array([[e.ra, e.dec] for e in members[name]]))
        row = {"name": name, "ordinal": number, "ra": ra, "dec": dec, "data_version": "", "archive_count": 0}
        database.upsert(connection, t.fields, [row | {"looked_at": at, "touching": {}}])
    touching: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for dataset, names in assignment.touching.items():
        touching[assignment.fields[dataset]][dataset] = list(names)
    for name, datasets in touching.items():
        old = connection.scalar(sa.select(t.fields.c.touching).where(t.fields.c.name == name)) or {}
        connection.execute(t.fields.update().where(t.fields.c.name == name).values(touching=old | datasets))
    if survey.fields.changed():
        _forget_touching(connection, survey)


def _forget_touching(connection: sa.Connection, survey: Survey) -> None:
    """Drop what touched a field that is merged away now."""
    f = t.fields
    for name, touching in connection.execute(sa.select(f.c.name, f.c.touching)).all():
        kept = {d: names for d, names in touching.items() if all(survey.fields.merged(n) == n for n in names)}
        if kept != touching:
            connection.execute(f.update().where(f.c.name == name).values(touching=kept))


def _write_exposures(
    database: Database,
    connection: sa.Connection,
    exposures: Mapping[str, Exposure],
    known: Mapping[str, Known],
    assignment: FieldAssignment,
    adopted: Mapping[str, str],
    at: datetime,
    report: IngestReport,
) -> dict[str, dict[str, Any]]:
    """Write new exposures, new revisions, and what else changed; sort the datasets into the report.

    Returns
    -------
    The new values of what changed without a new revision, by dataset.
    """
    revisions: list[tuple[Exposure, int, str]] = []
    states: dict[str, dict[str, Any]] = {}
    for dataset, exposure in exposures.items():
        standing = known.get(dataset)
        if standing is None:
            name = assignment.moved.get(dataset) or adopted.get(dataset) or assignment.fields.get(dataset)
            if name is not None:
                report.new.append(dataset)
                revisions.append((exposure, 1, name))
            continue
        revision, name, old = standing
        if is_revision(old, exposure):
            report.changed.append(dataset)
            revisions.append((exposure, revision + 1, assignment.moved.get(dataset, name)))
            continue
        report.unchanged.append(dataset)
        values = {column: getattr(exposure, column) for column in VOLATILE}
        if any(getattr(old, column) != value for column, value in values.items()):
            states[dataset] = values
    database.put_exposures(connection, revisions, at)
    database.update_exposures(connection, [(d, known[d][0], values) for d, values in states.items()])
    database.mark_seen(connection, report.unchanged, at)
    return states


def _judge_unseen(
    database: Database,
    connection: sa.Connection,
    known: Mapping[str, Known],
    exposures: Mapping[str, Exposure],
    survey: Survey,
) -> dict[str, dict[str, Any]]:
    """Hold known exposures that this look does not show to today's rules: a program may have left the survey file."""
    states: dict[str, dict[str, Any]] = {}
    for dataset, (_, _, exposure) in known.items():
        if dataset not in exposures:
            refused = refused_now(exposure, survey.exposures, survey.programs)
            if refused != exposure.refused:
                states[dataset] = {"refused": refused}
    database.update_exposures(connection, [(d, known[d][0], values) for d, values in states.items()])
    return states


def _write_refusals(connection: sa.Connection, exposures: Mapping[str, Exposure], at: datetime) -> None:
    """Keep the reason of each refusal, also of exposures that are in no field; drop it where it no longer holds."""
    r = t.refusals
    old = set(connection.scalars(sa.select(r.c.dataset)))
    refused = [e for e in exposures.values() if e.refused]
    rows = [
        {"dataset": e.dataset, "program": e.program, "reason": e.refused, "first_seen": at, "last_seen": at}
        for e in refused
    ]
    fresh = [row for row in rows if row["dataset"] not in old]
    if fresh:
        connection.execute(r.insert(), fresh)
    again = [{"key": row["dataset"], "reason": row["reason"], "last_seen": at} for row in rows if row["dataset"] in old]
    if again:
        connection.execute(r.update().where(r.c.dataset == sa.bindparam("key")), again)
    for dataset in old & {d for d, e in exposures.items() if not e.refused}:
        connection.execute(r.delete().where(r.c.dataset == dataset))


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
    f = t.archive_faults
    if look.complete:
        connection.execute(f.delete())
    else:  # a window: what it shows whole is whole
        mended = set(connection.scalars(sa.select(f.c.dataset))) & set(parsed.exposures)
        connection.execute(f.delete().where(f.c.dataset.in_(mended)))
    database.upsert(connection, t.archive_faults, list(rows.values()))


def _dataset_of(name: str) -> str:
    try:
        return split_filename(name.rsplit("/", 1)[-1])["dataset"].lower()
    except InputError:
        return ""


def _write_data_versions(
    database: Database,
    connection: sa.Connection,
    look: ArchiveLook,
    latest: Mapping[str, Known],
    refused: set[str],
    at: datetime,
) -> list[str]:
    """Give each field the digest of what a downstream step would see of it; returns the fields that changed."""
    members: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    field_of: dict[str, str] = {}
    visits: dict[str, set[str]] = defaultdict(set)
    for dataset, (revision, name, e) in sorted(latest.items()):
        # that something is wrong counts, not in which words it is told
        members[name].append((dataset, revision, bool(e.refused), bool(e.fault), e.is_available(mjd(at))))
        field_of[dataset] = name
        visits[e.visit_id].add(name)
    # what is known by name only holds its group back, so it is part of what downstream sees
    for row in connection.execute(sa.select(t.archive_faults).order_by(t.archive_faults.c.name)).mappings():
        dataset = row["dataset"]
        for name in visits.get(dataset[2:13], ()) if dataset not in field_of else ():
            members[name].append(("unplaced", dataset))
    for group in database.released_groups(connection):
        for name in visits.get(group[0], ()):
            members[name].append(("released", *group))
    judged = sa.select(t.assoc_table.c.parent, t.judgements.c.assoc, t.judgements.c.decision, t.judgements.c.judged_at)
    query = judged.join(t.judgements, t.judgements.c.assoc == t.assoc_table.c.assoc_name).order_by(t.judgements.c.assoc)
    for parent, *judgement in connection.execute(query):
        members[parent].append(("judged", *map(str, judgement)))
    counts = _archive_counts(look.rows, field_of, visits, refused)
    touched = []
    for row in connection.execute(sa.select(t.fields)).mappings().all():
        if not members[row["name"]] and not row["data_version"]:
            continue  # adopted, and the archive has shown nothing of it yet
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


def _incomplete(
    database: Database,
    connection: sa.Connection,
    latest: Mapping[str, Known],
    survey: Survey,
    names: Iterable[str],
    at: datetime,
) -> dict[str, str]:
    """What is missing from some fields, with the cause."""
    unplaced = {d: why for d, why in database.unplaced(connection).items() if d not in latest}
    released, refused = database.released_groups(connection), database.refusals(connection)
    members: dict[str, list[Exposure]] = {name: [] for name in names}
    for _, name, exposure in latest.values():
        if name in members:
            members[name].append(exposure)
    missing: dict[str, str] = {}
    for exposures in members.values():
        missing |= assess(exposures, survey, mjd(at), unplaced, released, refused).all_missing
    return dict(sorted(missing.items()))


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
