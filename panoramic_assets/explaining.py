"""What a person asks of a field: why it is not finished, what it lacks, what works on it.

Put here answers in words, read from the two databases. Keep out printing (`cli_questions.py`) and everything that
changes something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from astropy.time import Time
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.event_api import PartitionKeyFilter

from panoramic.mosaic.build import MosaicResult
from panoramic_assets import definitions
from panoramic_assets.common import verdicts_of
from panoramic_assets.ingest import mjd
from panoramic_assets.jobs import STAGES
from panoramic_assets.observations import completeness_of
from panoramic_assets.reducing import outcome_of
from panoramic_assets.running import AT_WORK
from panoramic_assets.storing import association_folder
from panoramic_assets.visits import standing_filters
from resources.home import Home


def unreleased(home: Home) -> str:
    """How many exposures wait for their release, and when the next one comes; empty where none does."""
    present = mjd(datetime.now(UTC).replace(tzinfo=None))
    exposures = [e for name in home.database.data_versions() for e in home.database.exposures(name)]
    waiting = [e.release for e in exposures if not e.refused and not e.is_available(present)]
    if not waiting:
        return ""
    following = Time(min(waiting), format="mjd").isot[:16]
    return f"{len(waiting)} exposures are not public yet, the next from {following} UTC on"


def unfinished_runs() -> list[str]:
    """One line for each run that is queued or under way."""
    with DagsterInstance.get() as instance:
        runs = instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.QUEUED, *AT_WORK]))
    return [
        f"run {r.run_id[:8]} {r.status.value.lower()}: {r.tags.get('dagster/partition', 'several fields')}"
        for r in runs
    ]


def association_numbers(home: Home, name: str) -> dict[str, str]:
    """RMS, reference, N and error of an association, as text."""
    stored = home.database.reduction(name)
    numbers = {"rms": "", "reference": "", "n": "", "error": ""}
    if stored is None:
        return numbers
    outcome = outcome_of(home.database.association(name), stored)
    if outcome.worst_rms_px is not None:
        numbers["rms"] = f"{outcome.worst_rms_px:.3f}"
    if outcome.absolute_error_mas is not None:
        numbers |= {
            "reference": outcome.reference,
            "n": str(outcome.absolute_n),
            "error": f"{outcome.absolute_error_mas:.1f}",
        }
    return numbers


def explain_field(home: Home, name: str) -> list[str]:
    """What a field lacks and why, and which of its checks failed last."""
    lines = [f"{name}: {len(home.database.mosaics(name))} mosaics"]
    for missing, why in sorted(completeness_of(home, name).all_missing.items()):
        lines.append(f"  missing {missing}: {why}")
    tries: dict[str, list[Any]] = {}
    for tried in home.database.reference_tries(name):
        tries.setdefault(tried["assoc"], []).append(tried)
    for row in home.database.association_rows(name):
        if row["status"] == 2:
            continue
        words = {
            70: "waits",
            0: "is queued",
            1: "is running",
            9: "alignment failed",
            10: "has no data",
            12: "is not to be run",
        }
        lines.append(f"  {row['assoc_name']} {words.get(row['status'], row['status'])}: {row['cause']}")
        plot = home.storage.path(f"{association_folder(row['assoc_name'])}/{row['assoc_name']}_alignment.png")
        if plot.exists():
            lines.append(f"    its plot: {plot}")
            lines.append(f"    to overrule: panoramic accept {row['assoc_name']} --reason TEXT")
        lines += [f"    {line}" for line in tries_in_words(tries.get(row["assoc_name"], ()))]
    for name_, verdict in verdicts_of(home, [a.name for a in home.database.associations(name)]).items():
        lines += [f"  {name_}: {c.note}" for c in verdict.criteria if verdict.accepted and c.near and c.value is None]
    there = {row["filter_key"] for row in home.database.mosaics(name)}
    for key, (_, accepted, total) in standing_filters(home, name).items():
        if key not in there:
            lines.append(f"  no mosaic in {key}: {accepted} of {total} exposures accepted")
    for mosaic in home.database.mosaics(name):
        for note in MosaicResult.from_json(mosaic["result"]).notes:
            lines.append(f"  {mosaic['filter_key']}: {note}")
    lines += _failed_checks(name)
    return lines if len(lines) > 1 else [*lines, "  nothing is missing and nothing is held back"]


def tries_in_words(tries: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each catalogue that an association was tried with, or could not be."""
    lines = []
    for one in tries:
        what = f"{one['attempt']} attempt with {one['catalog']}" if one["attempt"] else f"passed over {one['catalog']}"
        number = "" if one["n_sources"] is None else f" ({one['n_sources']} sources)"
        lines.append(f"{what}{number}: {one['outcome']}")
    return lines


def _failed_checks(name: str) -> list[str]:
    """Checks of the field whose newest answer is not a pass."""
    job = definitions.field_job()
    lines = []
    with DagsterInstance.get() as instance:
        keys = list(job.asset_layer.asset_graph.asset_check_keys)
        for key in sorted(keys, key=lambda k: (STAGES.index(k.asset_key.to_user_string()), k.name)):
            records = instance.event_log_storage.get_asset_check_execution_history(
                key, limit=20, partition_filter=PartitionKeyFilter(key=name)
            )
            evaluations = (
                record.event.dagster_event.asset_check_evaluation_data
                for record in records
                # a check that is planned, or was interrupted, has a record and no answer
                if record.event
                and record.event.dagster_event
                and record.event.dagster_event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION
            )
            newest = next((evaluation for evaluation in evaluations if evaluation is not None), None)
            if newest is not None and not newest.passed:
                lines.append(f"  check {key.asset_key.to_user_string()}.{key.name}: {newest.description}")
    return lines
