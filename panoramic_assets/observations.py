"""`observations`: the field's exposures as the archive shows them.

The rows are written by ``ingest``; this asset reads them, draws the field and lets the checks speak.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import numpy as np
import sqlalchemy as sa

from panoramic.completeness import Completeness, assess
from panoramic.footprint_plots import FILTER_COLOURS, plot_footprints, write_regions
from panoramic.footprints import mean_position, separation_arcmin
from panoramic.observations import Exposure
from panoramic_assets.common import answer, as_table, field_of, picture
from panoramic_assets.ingest import mjd
from panoramic_assets.partitions import fields_partitions
from resources import tables as t
from resources.home import Home, HomeResource
from resources.storage import replacing

# the archive is external: eager's own "newly updated" would fire for the same data version again
# a field that was reported before automation first looked has no change to see: it is caught up once
ON_NEW_DATA = (
    dg.AutomationCondition.eager().replace("newly_updated", dg.AutomationCondition.data_version_changed())
    | (
        dg.AutomationCondition.initial_evaluation()
        & dg.AutomationCondition.missing()
        & ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.in_progress()
    )
).with_label("when the archive's data of the field changed, or the field was never looked at")
WHEN_UPSTREAM_PASSED = dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()

# how far from a field's exposures its picture shows other data, and how far a field's own may lie from its middle
PICTURE_MARGIN_ARCMIN, WIDEST_FIELD_ARCMIN = 5.0, 120.0

mast_archive = dg.AssetSpec(
    "mast_archive",
    description="The archive's exposures of a field. Nothing runs here: the sensor reports its data version.",
    partitions_def=fields_partitions,
    group_name="field",
)


def is_public(exposure: Exposure) -> bool:
    """Whether an exposure can be had now: its release date has passed, or our token opens it."""
    return exposure.is_available(mjd(datetime.now(UTC).replace(tzinfo=None)))


def completeness_of(home: Home, field: str) -> Completeness:
    """What is missing from a field now."""
    exposures = home.database.exposures(field)
    known = {e.dataset for e in exposures}
    with home.database.read() as connection:
        unplaced = {d: why for d, why in home.database.unplaced(connection).items() if d not in known}
        released = home.database.released_groups(connection)
        refused = home.database.refusals(connection)
    present = datetime.now(UTC).replace(tzinfo=None)
    return assess(exposures, home.survey, mjd(present), unplaced, released, refused)


@dg.asset(
    deps=[mast_archive],
    partitions_def=fields_partitions,
    group_name="field",
    automation_condition=ON_NEW_DATA,
    kinds={"python"},
)
def observations(context: dg.AssetExecutionContext, home: HomeResource) -> dg.MaterializeResult[Any]:
    """The field's exposures, one for each dataset, with revisions and refusals."""
    house, field = home.open(), context.partition_key
    row = house.database.field(field)
    exposures = house.database.exposures(field)
    used = [e for e in exposures if not e.refused]
    verdicts = completeness_of(house, field)
    held = [not g.ready for e in used for g in [verdicts.groups[e.group]]]
    plot = house.storage.path(f"{field}/{field}_footprints.png")
    plot.parent.mkdir(parents=True, exist_ok=True)
    if used:
        with replacing(plot) as beside:
            outlines = [(e.element.upper(), e.vertices, e.exptime) for e in used]
            plot_footprints(beside, field, outlines, held, data_around(house, field, used))
    regions = house.storage.path(f"{field}/{field}_exposures.reg")
    colour = {e.dataset: FILTER_COLOURS.get(e.element.upper(), "green") for e in used}
    with replacing(regions) as beside:
        write_regions(beside, [(e.dataset, e.vertices, colour[e.dataset]) for e in used])
    return dg.MaterializeResult(
        metadata={
            "exposures": len(used),
            "refused": len(exposures) - len(used),
            "held back": sum(held),
            "exposure time [ks]": round(sum(e.exptime for e in used) / 1e3, 3),
            "footprints": picture(plot, "footprints") if used else "every exposure is refused",
            "region file": dg.MetadataValue.path(regions),
            "by filter and detector": as_table(_summary(used)),
            "visits": as_table(visit_rows(house, field)),
            "warnings": as_table([{"dataset": e.dataset, "warning": w} for e in used for w in e.warnings]),
            "touching fields": row["touching"],
        },
        data_version=dg.DataVersion(row["data_version"]),
    )


def data_around(home: Home, field: str, used: Sequence[Exposure]) -> list[np.ndarray]:
    """Footprints of other fields' exposures that a picture of this one would show."""
    centre = mean_position(np.array([[e.ra, e.dec] for e in used]))
    reach = max(float(separation_arcmin(*centre, e.ra, e.dec)) for e in used) + PICTURE_MARGIN_ARCMIN
    with home.database.read() as connection:
        near = [
            row.name
            for row in connection.execute(sa.select(t.fields.c.name, t.fields.c.ra, t.fields.c.dec))
            if row.name != field and separation_arcmin(*centre, row.ra, row.dec) < reach + WIDEST_FIELD_ARCMIN
        ]
        others = [e for name in near for _, _, e in home.database.latest(connection, name).values()]
    return [e.vertices for e in others if separation_arcmin(*centre, e.ra, e.dec) < reach]


def visit_rows(home: Home, field: str) -> list[dict[str, Any]]:
    """What each visit of a field has and lacks, for people."""
    verdicts = completeness_of(home, field)
    visits: dict[str, list[Exposure]] = {}
    for exposure in home.database.exposures(field):
        if not exposure.refused:
            visits.setdefault(exposure.visit_id, []).append(exposure)
    rows = []
    for visit, own in sorted(visits.items()):
        groups = [v for g, v in verdicts.groups.items() if g[0] == visit]
        lacks = {what: why for what, why in verdicts.all_missing.items() if what[2:13] == visit}
        rows.append(
            {
                "visit": visit,
                "start [MJD]": round(min(e.t_min for e in own), 4),
                "exposures": len(own),
                "filters": " ".join(sorted({e.element.upper() for e in own})),
                "detectors": " ".join(sorted({e.detector for e in own})),
                "groups": len(groups),
                "waiting": sum(not v.ready for v in groups),
                "released by hand": "; ".join(sorted({v.released for v in groups if v.released})),
                "lacks": "; ".join(f"{what}: {why}" for what, why in sorted(lacks.items())) or "nothing",
                "notes": "; ".join(note for note in verdicts.notes if note.startswith(f"visit {visit}")),
            }
        )
    return rows


def _summary(exposures: list[Any]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for e in exposures:
        row = rows.setdefault(
            (e.element, e.detector),
            {"filter": e.element.upper(), "detector": e.detector, "exposures": 0, "seconds": 0.0},
        )
        row["exposures"] += 1
        row["seconds"] += e.exptime
    return [rows[key] for key in sorted(rows)]


@dg.asset_check(asset=observations, partitions_def=fields_partitions)
def exposures_complete(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Every visit and activity has its expected exposures in every expected detector and filter."""
    verdicts = completeness_of(home.open(), field_of(context))
    missing = verdicts.all_missing
    held = [g for g, v in verdicts.groups.items() if not v.ready]
    first = "; ".join(f"{d}: {why}" for d, why in sorted(missing.items())[:3])
    return answer(
        not missing,
        f"{len(missing)} missing ({first})" if missing else f"{len(verdicts.groups)} groups are complete",
        {"missing": len(missing), "limit": 0, "groups": len(verdicts.groups), "groups held back": len(held)},
        what_to_do="the groups wait for the exposures named below; the others go on",
        warn_only=True,
        table=[{"exposure": d, "cause": why} for d, why in sorted(missing.items())]
        + [{"exposure": "note", "cause": note} for note in verdicts.notes],
    )


@dg.asset_check(asset=observations, partitions_def=fields_partitions)
def archive_count(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """The archive's datasets of the field at the last look equal ours."""
    house, field = home.open(), field_of(context)
    row = house.database.field(field)
    with house.database.read() as connection:
        o = t.observations
        ours = connection.scalar(sa.select(sa.func.count(sa.distinct(o.c.dataset))).where(o.c.field == field))
    return answer(
        ours == row["archive_count"],
        f"{ours} datasets here, {row['archive_count']} in the archive at the last look",
        {"ours": ours, "limit": row["archive_count"], "looked at": str(row["looked_at"])},
        what_to_do="exposures have left the archive, or rows could not be read: see `panoramic status`",
        warn_only=True,
    )


@dg.asset_check(asset=observations, partitions_def=fields_partitions, name="nothing_held_back")
def observations_nothing_held_back(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """No group of the field waits, and the field touches no other."""
    house, field = home.open(), field_of(context)
    verdicts, touching = completeness_of(house, field), house.database.field(field)["touching"]
    held = {"_".join(g): v for g, v in verdicts.groups.items() if not v.ready}
    others = sorted({name for names in touching.values() for name in names} - {field})
    said = [f"{len(held)} of {len(verdicts.groups)} groups are held back"] if held else []
    said += [f"fields_touch: {len(touching)} exposures touch {', '.join(others)}"] if touching else []
    return answer(
        not said,
        "; ".join(said) or "nothing is held back",
        {"held back": len(held), "limit": 0, "exposures that touch another field": len(touching)},
        what_to_do="each group is taken up by itself when its exposures are complete; fields that touch stay apart "
        "unless fields.merges of the survey file joins them",
        warn_only=True,
        table=[{"group": g, "lacks": d, "cause": why} for g, v in held.items() for d, why in v.missing.items()]
        + [{"group": "fields_touch", "lacks": d, "cause": " and ".join(n)} for d, n in sorted(touching.items())],
    )


checks = [exposures_complete, archive_count, observations_nothing_held_back]
