"""`associations`: the field's exposures grouped for reduction, with names that never change."""

from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
from astropy.table import Table

from panoramic.associations import associate
from panoramic.provenance import digest_of
from panoramic_assets.common import answer, as_table, field_of
from panoramic_assets.observations import WHEN_UPSTREAM_PASSED, completeness_of, is_public, observations
from panoramic_assets.partitions import fields_partitions
from resources.database import DEFINED
from resources.home import Home, HomeResource
from resources.storage import replacing


@dg.asset(
    deps=[observations],
    partitions_def=fields_partitions,
    group_name="field",
    automation_condition=WHEN_UPSTREAM_PASSED,
    kinds={"python"},
)
def associations(context: dg.AssetExecutionContext, home: HomeResource) -> dg.MaterializeResult[Any]:
    """The field's associations and the exposures in them, held-back ones included."""
    house, field = home.open(), context.partition_key
    seen_version = house.database.field(field)["data_version"]
    verdicts = completeness_of(house, field)
    usable = [e for e in house.database.exposures(field) if not e.refused and is_public(e)]
    held = {
        e.dataset: "its group lacks " + "; ".join(f"{d} ({why})" for d, why in verdicts.groups[e.group].missing.items())
        for e in usable
        if not verdicts.groups[e.group].ready or e.dataset in verdicts.groups[e.group].missing
    }
    with house.database.write() as connection:
        revisions = {d: revision for d, (revision, _, _) in house.database.latest(connection, field).items()}
        known = house.database.known_associations(connection, field)
        taken = house.database.association_names(connection, field)
        grouped = associate(field, usable, known, house.survey.associations, taken)
        house.database.put_associations(connection, grouped, held)
        house.database.retire(connection, field, grouped)
        house.database.mark_grouped(connection, field, seen_version)
    rows = house.database.association_rows(field)
    path = write_table(house, field)
    version = digest_of(
        [(a.name, e.dataset, revisions[e.dataset]) for a in grouped for e in a.exposures if e.dataset not in held]
    )
    return dg.MaterializeResult(
        metadata={
            "associations": len(rows),
            "held back": sum(r["status"] == DEFINED for r in rows),
            "table as a file": dg.MetadataValue.path(path),
            "table": as_table(
                [
                    {
                        "association": r["assoc_name"],
                        "filter": r["filter"],
                        "detector": r["detector"],
                        "exposures": len(r["dataURL"].split(",")) if r["dataURL"] else 0,
                        "seconds": r["exptime"],
                        "waits because": r["cause"] if r["status"] == DEFINED else "",
                    }
                    for r in rows
                ]
            ),
        },
        data_version=dg.DataVersion(version[:16]),
    )


def write_table(home: Home, field: str) -> Path:
    """Write a field's associations as they are now as an ECSV table, for notebooks."""
    rows = home.database.association_rows(field)
    path = home.storage.path(f"{field}/{field}_associations.ecsv")
    columns = {
        "assoc_name": "", "filter": "", "detector": "", "proposal_id": "", "status": "", "t_min": "d", "t_max": "d",
        "exptime": "s", "ra": "deg", "dec": "deg", "footprint": "", "dataURL": "", "cause": "",
    }  # fmt: skip
    units = {column: unit for column, unit in columns.items() if unit}
    table = Table({column: [row[column] for row in rows] for column in columns}, units=units, meta={"field": field})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        table.write(beside, format="ascii.ecsv", overwrite=True)
    return path


@dg.asset_check(asset=associations, partitions_def=fields_partitions, blocking=True)
def associations_unique(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Each usable exposure is in exactly one association; no refused one is in any."""
    house, field = home.open(), field_of(context)
    later = house.database.arrived_since(field)
    expected = {e.dataset for e in house.database.exposures(field) if not e.refused and is_public(e)} - later
    known = {e.dataset for e in house.database.exposures(field)}
    counts = Counter(r["dataset"] for r in house.database.exposure_rows(field) if r["ready"])
    listed = Counter(
        url.removeprefix("mast:JWST/product/").removesuffix("_rate.fits")
        for r in house.database.association_rows(field)
        for url in filter(None, r["dataURL"].split(","))
    )
    # an adopted exposure that the archive has not shown yet is in its association, and counts from when it is shown
    judged = expected | (set(listed) & known)
    wrong = {d: f"in {listed[d]} associations" for d in judged if listed[d] != 1 or d not in expected}
    wrong |= dict.fromkeys(set(counts) - set(listed), "in exposure_files but not in assoc_table")
    return answer(
        not wrong,
        f"{len(wrong)} exposures are in no or in several associations"
        if wrong
        else f"{len(expected)} exposures, each in one association",
        {"exposures": len(expected), "wrong": len(wrong), "limit": 0},
        what_to_do="this is a bug or a table changed by hand: compare assoc_table and observations",
        table=[{"exposure": d, "found": why} for d, why in sorted(wrong.items())],
    )


@dg.asset_check(asset=associations, partitions_def=fields_partitions, name="nothing_held_back")
def associations_nothing_held_back(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Every association may be reduced."""
    rows = home.open().database.exposure_rows(field_of(context))
    held = [r for r in rows if not r["ready"]]
    return answer(
        not held,
        f"{len(held)} exposures wait" if held else "nothing is held back",
        {"held back": len(held), "limit": 0},
        what_to_do="each is taken up by itself when its group is complete",
        warn_only=True,
        table=[{"association": r["assoc"], "exposure": r["dataset"], "cause": r["held_back_because"]} for r in held],
    )


checks = [associations_unique, associations_nothing_held_back]
