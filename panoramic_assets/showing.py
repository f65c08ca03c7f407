"""What people see of a field's reductions in the UI: numbers, tables, pictures.

Put here the metadata of the assets that reduce. Keep out checks, and what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from panoramic_assets.common import as_table, picture, significant
from panoramic_assets.reducing import Outcome
from panoramic_assets.storing import association_folder
from resources.home import Home

PLOTS_SHOWN = 16


def outcome_metadata(home: Home, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a person wants to see of a field's reductions: numbers that the UI plots over time, table, pictures."""
    metadata: dict[str, Any] = {
        "associations": len(outcomes),
        "accepted": sum(o.status == "accepted" for o in outcomes),
        "held back": sum(o.status != "accepted" for o in outcomes),
        "reused": sum(o.reused for o in outcomes),
        "sources": sum(o.n_sources for o in outcomes),
        "CPU seconds": round(sum(o.cpu_seconds for o in outcomes), 1),
        "run time of the steps [s]": round(sum(o.wall_seconds for o in outcomes), 1),
        "peak memory [MiB]": round(max((o.peak_mib for o in outcomes), default=0.0), 1),
    }
    rms = [o.worst_rms_px for o in outcomes if o.worst_rms_px is not None]
    if rms:
        metadata["worst relative RMS [px]"] = max(rms)
    errors = [o.absolute_error_mas for o in outcomes if o.absolute_error_mas is not None]
    if errors:
        metadata["worst absolute error [mas]"] = round(max(errors), 2)
        metadata["fewest absolute matches"] = min(o.absolute_n for o in outcomes if o.absolute_error_mas is not None)
    metadata["catalogues tried"] = as_table(tries_of(home, [o.association for o in outcomes]))
    metadata["measured alignment"] = as_table(measured_rows(home, [o.association for o in outcomes]))
    metadata["associations table"] = as_table([_outcome_row(o) for o in outcomes])
    # what was held back is what a person looks for
    for outcome in sorted(outcomes, key=lambda o: o.status == "accepted")[:PLOTS_SHOWN]:
        plot = home.storage.path(f"{association_folder(outcome.association)}/{outcome.association}_alignment.png")
        if plot.exists():
            state = "" if outcome.status == "accepted" else ", held back"
            metadata[f"alignment {short(outcome.association)}{state}"] = picture(plot, outcome.association)
    return metadata


def tries_of(home: Home, names: Sequence[str]) -> list[dict[str, Any]]:
    """The catalogues that associations were tried with: how many sources each had, which was used, and why."""
    rows = []
    for name in names:
        stored = home.database.reduction(name)
        for a in stored.attempts if stored else ():
            rows.append(
                {
                    "association": short(name),
                    "attempt": a["attempt"] or "passed over",
                    "catalogue": a["catalog"],
                    "used": "yes" if a["used"] else "no",
                    "outcome": a["outcome"],
                    "sources in view": a["n_sources"],
                    "from": a["origin"],
                }
            )
    return rows


def measured_rows(home: Home, names: Sequence[str]) -> list[dict[str, Any]]:
    """The independent measurement of each association, catalogue minus reference, in mas and in pixels."""
    rows = []
    for name in names:
        stored = home.database.reduction(name)
        offset = stored.measurement.absolute if stored and stored.measurement else None
        if offset is None:
            continue
        row: dict[str, Any] = {
            "association": short(name),
            "verdict": stored.verdict.status.replace("_", " ") if stored else "",
            "reference": offset.reference,
            "matches": offset.n,
        }
        if offset.dra is None or offset.ddec is None:
            rows.append(row | {"cause": offset.text})
            continue
        row |= {
            "east [mas]": round(offset.dra, 2), "north [mas]": round(offset.ddec, 2),
            "east [px]": round(offset.dra / offset.pixel_scale_mas, 4),
            "north [px]": round(offset.ddec / offset.pixel_scale_mas, 4),
            "predicted error [mas]": round(max(offset.err_ra or 0.0, offset.err_dec or 0.0), 2),
            "scatter [mas]": round(max(offset.scatter_ra or 0.0, offset.scatter_dec or 0.0), 1),
            "rotation [deg]": round(offset.rotation_deg or 0.0, 5),
            "its error [deg]": round(offset.rotation_err_deg or 0.0, 5),
            "chance": significant(offset.chance), "contrast": significant(offset.contrast),
            "note": "moved by this very solution" if offset.with_prior else "",
        }  # fmt: skip
        rows.append(row)
    return rows


def short(name: str) -> str:
    """An association's name without the field's, which is the partition's."""
    return name.split("_", 1)[-1]


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "association": short(outcome.association),
        "status": outcome.status.replace("_", " "),
        "reference": outcome.reference,
        "matches": outcome.absolute_n,
        "error [mas]": significant(outcome.absolute_error_mas),
        "RMS [px]": significant(outcome.worst_rms_px),
        "attempt": outcome.attempt,
        "reused": "yes" if outcome.reused else "no",
        "exposures": outcome.n_exposures,
        "sources": outcome.n_sources,
        "CPU [s]": round(outcome.cpu_seconds, 1),
        "peak [MiB]": round(outcome.peak_mib),
        "cause": outcome.cause or "; ".join(outcome.near),
    }
