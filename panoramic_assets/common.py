"""What every asset of the house shares: the way a check answers, metadata, retries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from panoramic.alignment import Criterion, Verdict
from resources.home import Home

# a killed or failed step is tried again by Dagster; the last try answers "held back" instead of failing
MAX_RETRIES = 1
RETRY = dg.RetryPolicy(max_retries=MAX_RETRIES, delay=1)

# tag of a run that reads all bytes of stored products before it takes them as they are
VERIFY = "panoramic/verify"

NO_PARTITION = (
    "this check belongs to one field: materialize the asset's partition (the check runs with it), or launch a backfill"
)


def field_of(context: dg.AssetCheckExecutionContext | dg.OpExecutionContext | dg.AssetExecutionContext) -> str:
    """The run's field; a run without partition (the UI's "Execute all" on a check) gets a clear answer."""
    key = context.run.tags.get("dagster/partition")
    if not key:
        raise dg.Failure(NO_PARTITION, allow_retries=False)
    return str(key)


def verifies(context: dg.OpExecutionContext) -> bool:
    """Whether the run was asked to read all bytes of stored products."""
    return str(context.run.tags.get(VERIFY, "")) == "true"


def mapping_key(name: str) -> str:
    """A name as Dagster allows it for a mapped step."""
    return name.replace("-", "_").replace(".", "_")


def answer(
    passed: bool,
    summary: str,
    values: Mapping[str, Any] | None = None,
    *,
    what_to_do: str,
    when_passed: str = "nothing",
    warn_only: bool = False,
    table: Sequence[Mapping[str, Any]] = (),
) -> dg.AssetCheckResult:
    """A check's result with its numbers and what to do, also when it passes."""
    metadata: dict[str, Any] = {**(values or {}), "what to do": when_passed if passed else what_to_do}
    if table:
        metadata["details"] = as_table(table)
    severity = dg.AssetCheckSeverity.WARN if warn_only else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(passed=passed, severity=severity, description=summary, metadata=metadata)


def as_table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue | dg.TextMetadataValue:
    """Rows as a table of the UI; a row that lacks a column has an empty cell."""
    if not rows:
        return dg.MetadataValue.text("none")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return dg.MetadataValue.table([dg.TableRecord({c: _plain(row.get(c)) for c in columns}) for row in rows])


def _plain(value: Any) -> str | int | float | bool:
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return round(value, 6)
    return "" if value is None else str(value)


def significant(value: float | None) -> float | None:
    """A number to the digits that mean something."""
    return None if value is None else float(f"{value:.4g}")


def criteria_rows(verdicts: Iterable[Verdict], gate: str) -> list[dict[str, Any]]:
    """One row for each criterion of a gate, those that fail or nearly do first."""
    order = {"failed": 0, "near the limit": 1}
    rows: list[dict[str, Any]] = [
        {
            "association": v.association,
            "criterion": c.name,
            "value": significant(c.value),
            "limit": significant(c.limit),
            "unit": c.unit,
            "result": _word(c),
            "note": c.note,
        }
        for v in verdicts
        for c in v.of(gate)
    ]
    return sorted(rows, key=lambda row: order.get(row["result"], 2))


def _word(criterion: Criterion) -> str:
    if criterion.passed is None:
        return "not applicable"
    return "failed" if not criterion.passed else "near the limit" if criterion.near else "passed"


def picture(path: Path, alt: str) -> dg.MarkdownMetadataValue:
    """A picture for the UI, inside the metadata itself, so that no web server is needed to show it."""
    import base64
    import io

    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((900, 900))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=82)
    return dg.MetadataValue.md(f"![{alt}](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})")


def verdicts_of(home: Home, names: Iterable[str]) -> dict[str, Verdict]:
    """Stored verdicts of associations that have one."""
    found = {name: home.database.reduction(name) for name in names}
    return {name: stored[2] for name, stored in found.items() if stored is not None}
