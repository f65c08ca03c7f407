"""`mosaics`: one mosaic for each filter of a field, from accepted associations alone, and what is measured on it."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
from astropy.table import Table

from panoramic import __version__
from panoramic.associations import Association
from panoramic.errors import ExposureFileError, InputError, MosaicError, ReferenceCatalogUnavailableError
from panoramic.footprints import hull
from panoramic.mosaic.astrometry import AssociationArea, AstrometryMeasurement
from panoramic.mosaic.astrometry import mosaic_astrometry as measure_astrometry
from panoramic.mosaic.build import MosaicInput, MosaicResult, build_mosaic, measure_coverage, mosaic_stem
from panoramic.mosaic.grid import Channel, FieldGrid
from panoramic.provenance import digest_of, record
from panoramic.reduction.base import ReferenceSources
from panoramic_assets.candidates import epoch_of
from panoramic_assets.choosing import carries, members_of
from panoramic_assets.common import MAX_RETRIES, RETRY, answer, as_table, field_of, mapping_key, picture, verifies
from panoramic_assets.observations import WHEN_UPSTREAM_PASSED, is_public
from panoramic_assets.own_reference import published_reference
from panoramic_assets.partitions import fields_partitions
from panoramic_assets.storing import association_folder, products_stand, publish, staging
from panoramic_assets.visits import enough, standing_filters
from resources.database import NO_DATA
from resources.home import Home, HomeResource

STAGE_VERSION = "1"


def field_grid(home: Home, field: str) -> FieldGrid:
    """The field's grid, fixed with its name."""
    row = home.database.field(field)
    return FieldGrid.for_field(field, row["ra"], row["dec"], home.survey.mosaics)


def mosaic_key(field: str, filter_key: str) -> str:
    """Where a mosaic's files lie in the storage."""
    return f"{field}/mosaics/{filter_key}"


def waiting_filters(home: Home, field: str) -> set[str]:
    """Filters without enough accepted exposures because data could not be had: their earlier mosaics stay."""
    rows = home.database.association_rows(field)
    without_data = {row["filter"].lower() for row in rows if row["status"] == NO_DATA}
    return {
        key
        for key, (_, accepted, total) in standing_filters(home, field).items()
        if key in without_data and not enough(home, accepted, total)
    }


def stem_of(home: Home, field: str, filter_key: str) -> str:
    """File stem of a field's mosaic in a filter and pupil."""
    filter_name, pupil = filter_key.split("-", 1)
    return mosaic_stem(home.survey.name, field, home.survey.mosaics.version, filter_name, pupil)


def inputs_of(home: Home, members: list[Association]) -> list[MosaicInput]:
    """Calibrated exposures of accepted associations."""
    inputs = []
    for association in members:
        stored = home.database.reduction(association.name)
        if stored is None:
            continue
        first = association.first
        for exposure in stored[1].exposures:
            path = home.storage.path(f"{association_folder(association.name)}/{exposure.filename}")
            inputs.append(
                MosaicInput(
                    exposure.dataset, association.name, path, first.detector, first.filter, first.pupil, exposure.sha256
                )
            )
    return inputs


@dg.op(ins={"preprocessed_visits": dg.In(dg.Nothing)}, out=dg.DynamicOut(str))
def plan_mosaics(context: dg.OpExecutionContext, home: HomeResource) -> Any:
    """The filters that have enough accepted exposures."""
    house, field = home.open(), field_of(context)
    for filter_key, (_, accepted, total) in standing_filters(house, field).items():
        if enough(house, accepted, total):
            yield dg.DynamicOutput(filter_key, mapping_key=mapping_key(filter_key))
        else:
            context.log.warning(f"no mosaic in {filter_key}: {accepted} of {total} exposures are accepted")


@dg.op(retry_policy=RETRY)
def build_filter(context: dg.OpExecutionContext, home: HomeResource, filter_key: str) -> dict[str, Any]:
    """Build one filter's mosaic and its catalogue, or find that the stored one still stands."""
    try:
        house, field = home.open(), field_of(context)
        with house.alone(f"{field}-{filter_key}", context.log.info):
            return make_mosaic(house, field, filter_key, context.log.info, verifies(context))
    except (MosaicError, ExposureFileError) as error:
        if context.retry_number < MAX_RETRIES:
            raise
        context.log.warning(f"no mosaic in {filter_key}: {error}")
        return {
            "filter": filter_key,
            "stem": "",
            "notes": f"no mosaic: {error}",
            "CPU seconds": 0.0,
            "peak memory [MiB]": 0.0,
        }


def make_mosaic(home: Home, field: str, filter_key: str, log: Any, verify: bool = False) -> dict[str, Any]:
    """Build, detect, draw and store the mosaic of one filter; returns its numbers."""
    members = standing_filters(home, field)[filter_key][0]
    inputs, rules = inputs_of(home, members), home.survey.mosaics
    grid, stem = field_grid(home, field), stem_of(home, field, filter_key)
    channel: Channel = "long" if members[0].is_long_wave else "short"
    # all filters of a field share one rectangle, as the survey's users are used to
    outlines = [e.vertices for e in home.database.exposures(field) if not e.refused and is_public(e)]
    tiles = grid.tiles_touching(outlines, channel)
    fingerprint = digest_of(
        {
            "stage": f"mosaic {STAGE_VERSION}",
            "rules": rules.model_dump(exclude={"minimum_accepted"}),
            "grid": [grid.ra, grid.dec, list(tiles)],
            "inputs": sorted((one.dataset, one.sha256) for one in inputs),
        }
    )
    stored = {row["stem"]: row for row in home.database.mosaics(field)}.get(stem)
    if stored and stored["fingerprint"] == fingerprint and products_stand(home, stem, verify):
        log(f"{stem}: nothing changed, the mosaic of an earlier run stands")
        return _numbers(filter_key, MosaicResult.from_json(stored["result"]), reused=True)
    folder = staging(home, mosaic_key(field, filter_key))
    shutil.rmtree(folder, ignore_errors=True)
    checksums = {one.dataset: one.sha256 or "" for one in inputs}
    provenance = record(
        survey=home.survey.name,
        survey_digest=home.survey.digest,
        fingerprint=fingerprint,
        inputs=checksums,
        crds_context=home.calibration.context,
        reference_catalog=", ".join(sorted({_reference_of(home, a) for a in members})),
        checks={a.name: "accepted" for a in members},
    )
    headers = {
        "PANVERS": __version__,
        "SURVEY": home.survey.name,
        "SURVDIG": home.survey.digest,
        "FINGERPR": fingerprint[:16],
        "CRDS_CTX": provenance["crds_context"],
        "ASTROREF": str(provenance["reference_catalog"])[:60],
    }
    try:
        result = build_mosaic(inputs, grid, channel, folder, stem, rules, headers, log, tiles)
        catalogue(folder, stem, result)
        products = publish(home, folder, mosaic_key(field, filter_key), fingerprint, provenance)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    home.database.put_mosaic(stem, field, filter_key, fingerprint, result.to_json(), products)
    return _numbers(filter_key, result, reused=False)


def catalogue(folder: Path, stem: str, result: MosaicResult) -> None:
    """Add the mosaic's catalogue and its small picture."""
    from panoramic.mosaic.detection import detect
    from panoramic.mosaic.rgb import preview

    science, weight = folder / result.filename("sci"), folder / result.filename("wht")
    detect(science, weight).write(folder / f"{stem}_cat.ecsv", overwrite=True)
    preview(science, weight, folder / f"{stem}_preview.png")


def _reference_of(home: Home, association: Association) -> str:
    stored = home.database.reduction(association.name)
    return stored[1].absolute.reference if stored and stored[1].absolute else "none"


def _numbers(filter_key: str, result: MosaicResult, *, reused: bool) -> dict[str, Any]:
    return {
        "filter": filter_key,
        "stem": result.stem,
        "exposures": len(result.exposures),
        "area [arcmin2]": round(result.area_arcmin2, 3),
        "median exposure time [s]": round(result.median_seconds, 1),
        "depth [AB, 5 sigma, 0.32 arcsec]": round(result.depth.magnitude, 3) if result.depth else None,
        "CPU seconds": 0.0 if reused else round(result.cpu_seconds, 1),
        "peak memory [MiB]": round(result.peak_mib, 1),
        "reused": reused,
        "notes": "; ".join(result.notes),
    }


@dg.op
def finish_mosaics(context: dg.OpExecutionContext, home: HomeResource, built: list[dict[str, Any]]) -> dg.Output[str]:
    """Drop what no longer stands, make the colour picture, sum up."""
    from panoramic.mosaic.rgb import colour_picture

    house, field = home.open(), field_of(context)
    waiting = waiting_filters(house, field)
    kept = [row["stem"] for row in house.database.mosaics(field) if row["filter_key"] in waiting]
    for path in house.database.drop_mosaics(field, [row["stem"] for row in built] + kept):
        house.storage.path(path).unlink(missing_ok=True)
    metadata: dict[str, Any] = {
        "mosaics": len(built),
        "CPU seconds": round(sum(row["CPU seconds"] for row in built), 1),
        "peak memory [MiB]": max((row["peak memory [MiB]"] for row in built), default=0.0),
        "table": as_table(built),
    }
    planes = {}
    for row in house.database.mosaics(field):
        folder = house.storage.path(mosaic_key(field, row["filter_key"]))
        planes[row["filter_key"]] = (folder / f"{row['stem']}_sci.fits", folder / f"{row['stem']}_wht.fits")
        result = MosaicResult.from_json(row["result"])
        if result.depth:
            metadata[f"{row['filter_key']} depth [AB]"] = result.depth.magnitude
        metadata[f"{row['filter_key']} exposures"] = len(result.exposures)
        metadata[row["filter_key"]] = picture(folder / f"{row['stem']}_preview.png", row["stem"])
        metadata[f"{row['filter_key']} folder"] = dg.MetadataValue.path(folder)
    if planes:
        rgb = house.storage.path(f"{field}/mosaics/{house.survey.name}-{field}-{house.survey.mosaics.version}-rgb.png")
        colour_picture(planes, rgb)
        metadata["colour picture"] = picture(rgb, field)
    version = digest_of(sorted((row["stem"], row["fingerprint"]) for row in house.database.mosaics(field)))
    return dg.Output(field, metadata=metadata, data_version=dg.DataVersion(version[:16]))


@dg.graph_asset(
    ins={"preprocessed_visits": dg.AssetIn(dagster_type=dg.Nothing)},
    partitions_def=fields_partitions,
    group_name="field",
    automation_condition=WHEN_UPSTREAM_PASSED,
    kinds={"python"},
)
def mosaics(preprocessed_visits: Any) -> Any:
    """Mosaics of the field at 40 mas (long wave) and 20 mas (short wave), in every filter that can stand."""
    return finish_mosaics(plan_mosaics(preprocessed_visits).map(build_filter).collect())


# --- checks -----------------------------------------------------------------------------------


def astrometry_of(home: Home, field: str, row: Any) -> list[AstrometryMeasurement]:
    """Measure one mosaic against the external catalogue, our own reference, and its own overlaps."""
    folder = home.storage.path(mosaic_key(field, row["filter_key"]))
    catalog = Table.read(folder / f"{row['stem']}_cat.ecsv")
    members = standing_filters(home, field)[row["filter_key"]][0]
    in_mosaic = {e.association for e in MosaicResult.from_json(row["result"]).exposures}
    reference_names = {a.name for a in members_of(home, field) if carries(home.database.reduction(a.name))}
    areas = []
    for association in (a for a in members if a.name in in_mosaic):
        stored = home.database.reduction(association.name)
        own = (
            Table.read(home.storage.path(f"{association_folder(association.name)}/{stored[1].catalog}"))
            if stored and stored[1].catalog
            else None
        )
        areas.append(
            AssociationArea(
                association.name, "long" if association.is_long_wave else "short", association.footprint,
                association.name in reference_names, own,
            )
        )  # fmt: skip
    own_reference = published_reference(home, field)
    own_sources = ReferenceSources(
        "own", own_reference.ra, own_reference.dec, own_reference.mag, own_reference.error_mas, kind="own"
    )
    return measure_astrometry(
        catalog, _external(home, members), own_sources if len(own_sources) else None, areas, home.survey.limits
    )


def _external(home: Home, members: list[Association]) -> ReferenceSources | None:
    """The first external catalogue of the survey that has sources on the mosaic."""
    outline = hull([a.footprint for a in members])
    epoch = epoch_of(members[0])
    for name in home.reference_catalogs.available():
        try:
            sources = home.reference_catalogs.load(name, outline, epoch, home.survey.reference.search_radius_arcsec)
        except (ReferenceCatalogUnavailableError, InputError):
            continue  # the reductions name it as a degradation; the next catalogue is as good a judge
        if sources is not None and len(sources) >= home.survey.limits.mosaic_association_n:
            return sources
    return None


@dg.asset_check(asset=mosaics, partitions_def=fields_partitions, blocking=True)
def mosaic_astrometry(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Each mosaic, and each association's area in it, lies where the reference catalogues say."""
    house, field = home.open(), field_of(context)
    rows = []
    waiting = waiting_filters(house, field)
    for mosaic in [m for m in house.database.mosaics(field) if m["filter_key"] not in waiting]:
        for m in astrometry_of(house, field, mosaic):
            result = (
                "not measurable"
                if m.passed is None
                else "failed"
                if not m.passed
                else "near the limit"
                if m.near
                else "passed"
            )
            rows.append(
                {"mosaic": mosaic["filter_key"], "measurement": m.kind, "area": m.name, "N": m.n, "east [mas]": m.dra,
                 "error east [mas]": m.err_ra, "north [mas]": m.ddec, "error north [mas]": m.err_dec,
                 "limit [mas]": m.limit, "result": result, "note": m.reason}
            )  # fmt: skip
    failed = [r for r in rows if r["result"] == "failed"]
    measured = [max(abs(r["east [mas]"]), abs(r["north [mas]"])) for r in rows if r["result"] != "not measurable"]
    first = "; ".join(
        f"{r['mosaic']} {r['area']}: {r['east [mas]']:.1f}, {r['north [mas]']:.1f} mas (limit {r['limit [mas]']:g})"
        for r in failed[:3]
    )
    return answer(
        not failed,
        f"{len(failed)} of {len(rows)} measurements fail: {first}"
        if failed
        else f"{len(measured)} of {len(rows)} measurements made, all within their limits",
        {
            "measured": len(measured),
            "worst offset [mas]": float(np.max(measured)) if measured else 0.0,
            "limit": house.survey.limits.mosaic_association_mas,
            "failed": len(failed),
        },
        what_to_do="an association named here is misplaced although its own fit said success: "
        "`panoramic reject ASSOCIATION --reason TEXT`, then run the field again",
        table=rows,
    )


@dg.asset_check(asset=mosaics, partitions_def=fields_partitions, blocking=True)
def mosaic_coverage(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Every accepted exposure is in its mosaic; weight map and exposure map agree."""
    house, field = home.open(), field_of(context)
    rows = []
    waiting = waiting_filters(house, field)
    for mosaic in house.database.mosaics(field):
        if mosaic["filter_key"] in waiting:
            continue  # of earlier data, which its products still are
        members = standing_filters(house, field)[mosaic["filter_key"]][0]
        folder = house.storage.path(mosaic_key(field, mosaic["filter_key"]))
        report = measure_coverage(folder, mosaic["stem"], [one.dataset for one in inputs_of(house, members)])
        rows.append(
            {
                "mosaic": mosaic["filter_key"],
                "covered [arcmin2]": report.area_arcmin2,
                "exposures": len(report.measured),
                "missing": ", ".join(report.missing),
                "unexpected": ", ".join(report.unexpected),
                "pixels that disagree": report.n_disagree,
                "result": "passed" if report.passed else "failed",
            }
        )
    failed = [r for r in rows if r["result"] == "failed"]
    summary = (
        f"{len(failed)} of {len(rows)} mosaics fail" if failed else f"{len(rows)} mosaics hold every accepted exposure"
    )
    return answer(
        not failed and (bool(rows) or bool(waiting) or not house.database.exposures(field)),
        summary if rows else "there is no mosaic",
        {"mosaics": len(rows), "failed": len(failed), "limit": 0},
        what_to_do="run the field again: a mosaic is rebuilt where its inputs changed",
        table=rows,
    )


@dg.asset_check(asset=mosaics, partitions_def=fields_partitions, name="nothing_held_back")
def mosaics_nothing_held_back(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Every filter of the field has a mosaic, with all of its exposures."""
    house, field = home.open(), field_of(context)
    there = {row["filter_key"] for row in house.database.mosaics(field)}
    waiting = waiting_filters(house, field)
    rows = [
        {"mosaic": key, "state": "complete" if key in there else "no mosaic", "exposures": n, "of": total}
        for key, (_, n, total) in standing_filters(house, field).items()
        if key not in there or n < total
    ]
    for row in rows:
        if row["mosaic"] in waiting and row["state"] == "complete":
            row["state"] = "of earlier data, its new data could not be had"
        elif row["state"] == "complete":
            row["state"] = "lacks exposures"
    return answer(
        not rows,
        "; ".join(f"{r['mosaic']}: {r['state']} ({r['exposures']} of {r['of']})" for r in rows)
        or "nothing is held back",
        {"held back": len(rows), "limit": 0},
        what_to_do="see `nothing_held_back` of preprocessed_visits for the causes",
        warn_only=True,
        table=rows,
    )


checks = [mosaic_astrometry, mosaic_coverage, mosaics_nothing_held_back]
