"""Saved archive rows through the code that the sensor uses: `panoramic ingest --rows FILE`.

Put here how saved rows become a look, and how a report is told to people. Keep out what is done with a look
(`ingest.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from panoramic.errors import EmptyArchiveError, InputError
from panoramic_assets.ingest import IngestReport
from resources.archive import ArchiveFault, ArchiveLook
from resources.archive_table import read_table

SHOWN = 10


def saved_look(path: Path, complete: bool) -> ArchiveLook:
    """A look at the archive as a file of rows holds it (CSV, ECSV or VOTable, gzipped or not).

    Parameters
    ----------
    complete : whether the file holds all rows of its programs; what it lacks is then gone, else only not seen.

    Raises
    ------
    ArchiveRowError, EmptyArchiveError
        The file is no such table, or has no row.
    """
    table = read_table(path)
    if not table.rows and not table.bad:
        raise EmptyArchiveError(f"{path} has no row")
    faults = [ArchiveFault(name, reason, "bad_row") for name, reason in table.bad]
    # no date: a replay is no look of ours, and must not move the window of the next one
    return ArchiveLook(list(table.rows.values()), faults, str(path), at_mjd=0.0, complete=complete)


def parse_date(text: str) -> datetime:
    """A date and time (ISO 8601; UTC where no zone is given), without zone, as all tables keep it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is no date: write it like 2026-08-15 or 2026-08-15T12:00:00") from error
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def report_lines(report: IngestReport) -> Iterator[str]:
    """What an ingest brought, for people."""
    yield (
        f"{report.n_rows} rows ({report.n_other} of other instruments): {len(report.new)} new exposures, "
        f"{len(report.changed)} changed, {len(report.unchanged)} unchanged, {len(report.unreleased)} not yet public, "
        f"{len(report.refused)} refused, {len(report.gone)} gone, {len(report.not_seen)} known and not seen"
    )
    for title, names in (("new", report.new), ("changed", report.changed), ("gone", report.gone)):
        if names:
            yield f"  {title}: {_some(names)}"
    for reason, count in Counter(report.refused.values()).most_common():
        example = next(d for d, why in report.refused.items() if why == reason)
        yield f"  refused: {reason}: {count} (e.g. {example})"
    for name, reason in list(report.faults.items())[:SHOWN]:
        yield f"  fault: {name}: {reason}"
    if len(report.faults) > SHOWN:
        yield f"  and {len(report.faults) - SHOWN} faults more"
    known = set(report.faults.values())
    for error in [e for e in report.errors if e not in known][:SHOWN]:
        yield f"  {error}"
    for what, why in list(report.incomplete.items())[:SHOWN]:
        yield f"  incomplete: {what}: {why}"
    if len(report.incomplete) > SHOWN:
        yield f"  and {len(report.incomplete) - SHOWN} missing more"
    for dataset, name in list(report.moved.items())[:SHOWN]:
        yield f"  moved: {dataset} to {name}"
    if report.older:
        yield f"  older than what is known, passed over: {_some(report.older)}"
    for dataset, names in list(report.touching.items())[:SHOWN]:
        yield f"  fields_touch: {dataset} is in {names[0]} and touches {', '.join(names[1:])}"
    if report.new_fields:
        yield f"  new fields: {_some(report.new_fields)}"
    yield f"  fields touched: {_some(report.touched_fields) if report.touched_fields else 'none'}"
    if report.dry_run:
        yield "  nothing of this was written (dry run)"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
