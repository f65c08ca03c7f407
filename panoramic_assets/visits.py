"""`preprocessed_visits`: every association of a field calibrated and aligned to the field's own reference."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from panoramic.alignment_field_plots import draw_alignment_field
from panoramic.associations import Association
from panoramic.provenance import digest_of
from panoramic_assets.associations import write_table
from panoramic_assets.astrometry import (
    gate_answer,
    held_back_answer,
    mapped,
    reduce_step,
)
from panoramic_assets.choosing import held_back_in, taken_by_the_reference
from panoramic_assets.common import RETRY, answer, field_of, picture, verdicts_of
from panoramic_assets.inputs import made_of_these
from panoramic_assets.observations import WHEN_UPSTREAM_PASSED, is_public
from panoramic_assets.own_reference import published_reference
from panoramic_assets.partitions import fields_partitions
from panoramic_assets.reducing import Outcome
from panoramic_assets.showing import outcome_metadata
from panoramic_assets.storing import association_folder
from resources.home import Home, HomeResource


def standing_filters(home: Home, field: str) -> dict[str, tuple[list[Association], int, int]]:
    """By filter and pupil: accepted associations, their exposures, and all public exposures of the field."""
    accepted: dict[str, list[Association]] = defaultdict(list)
    everything: dict[str, int] = defaultdict(int)
    for exposure in home.database.exposures(field):
        if not exposure.refused and is_public(exposure):
            everything[f"{exposure.filter}-{exposure.pupil}".lower()] += 1
    for association in home.database.associations(field):
        stored = home.database.reduction(association.name)
        if stored is not None and stored[2].accepted:
            accepted[association.filter_key].append(association)
    return {
        key: (accepted[key], sum(len(_reduced(home, a)) for a in accepted[key]), total)
        for key, total in sorted(everything.items())
    }


def _reduced(home: Home, association: Association) -> list[str]:
    stored = home.database.reduction(association.name)
    return [e.dataset for e in stored[1].exposures] if stored else []


def enough(home: Home, accepted: int, total: int) -> bool:
    """Whether a filter has enough accepted exposures for a mosaic."""
    return accepted > 0 and accepted >= home.survey.mosaics.minimum_accepted * total


@dg.op(ins={"astrometric_reference": dg.In(dg.Nothing)}, out=dg.DynamicOut(str))
def plan_visits(context: dg.OpExecutionContext, home: HomeResource) -> Any:
    """Every association that the reference did not take."""
    house, field = home.open(), field_of(context)
    reference = taken_by_the_reference(house, field)
    yield from mapped([a for a in house.database.associations(field) if a.name not in reference])


@dg.op(retry_policy=RETRY)
def reduce_visit(context: dg.OpExecutionContext, home: HomeResource, association: str) -> Outcome:
    """Reduce one association against the field's own reference, else against the external catalogues."""
    house = home.open()
    own = published_reference(house, field_of(context))
    return reduce_step(context, house, association, own, house.survey.reference.minimum_cover)


@dg.op(out=dg.DynamicOut(str))
def plan_second_visits(context: dg.OpExecutionContext, home: HomeResource, first: list[Outcome]) -> Any:
    """Those that can't stand alone, now that other detectors of their visit are aligned."""
    house = home.open()
    names = {outcome.association for outcome in first if outcome.status != "no_data"}
    yield from mapped(
        held_back_in(house, [a for a in house.database.associations(field_of(context)) if a.name in names])
    )


@dg.op(retry_policy=RETRY)
def retry_visit(context: dg.OpExecutionContext, home: HomeResource, association: str) -> Outcome:
    """Reduce one association again, by the survey's second parameters and with the help of its visit."""
    house = home.open()
    own = published_reference(house, field_of(context))
    return reduce_step(context, house, association, own, house.survey.reference.minimum_cover, ["second"])


@dg.op
def gather_visits(
    context: dg.OpExecutionContext, home: HomeResource, first: list[Outcome], second: list[Outcome]
) -> dg.Output[str]:
    """Sum up the field's associations, the reference's own included."""
    house, field = home.open(), field_of(context)
    later = {o.association: o for o in second}
    outcomes = [later.get(o.association, o) for o in first]
    names = [a.name for a in house.database.associations(field)]
    fingerprints = {n: s[0] for n in names if (s := house.database.reduction(n)) is not None}
    verdicts = {n: v.status for n, v in verdicts_of(house, names).items()}
    metadata = outcome_metadata(house, outcomes)
    metadata["alignment of the field"] = picture(draw_field(house, field, names), f"alignment of {field}")
    metadata["table of associations"] = dg.MetadataValue.path(write_table(house, field))
    metadata["taken from the reference as they are"] = len(names) - len(outcomes)
    lacks = house.database.field_degradations(field)
    metadata["degradations"] = sum(not r["intended"] for r in lacks)
    metadata["switched off on purpose"] = sum(r["intended"] for r in lacks)
    return dg.Output(field, metadata=metadata, data_version=dg.DataVersion(digest_of([fingerprints, verdicts])[:16]))


@dg.graph_asset(
    ins={"astrometric_reference": dg.AssetIn(dagster_type=dg.Nothing)},
    partitions_def=fields_partitions,
    group_name="field",
    automation_condition=WHEN_UPSTREAM_PASSED,
    kinds={"python"},
)
def preprocessed_visits(astrometric_reference: Any) -> Any:
    """All associations of the field, calibrated and aligned."""
    first = plan_visits(astrometric_reference).map(reduce_visit).collect()
    return gather_visits(first, plan_second_visits(first).map(retry_visit).collect())


def draw_field(home: Home, field: str, names: Sequence[str]) -> Path:
    """The field's picture of all alignments, in its folder."""
    stored = [home.database.reduction(name) for name in names]
    path = home.storage.path(f"{field}/{field}_alignment.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".staged-{path.name}")
    draw_alignment_field(temporary, field, [s.measurement for s in stored if s and s.measurement])
    temporary.replace(path)
    return path


# --- checks -----------------------------------------------------------------------------------


def _visit_gate(context: dg.AssetCheckExecutionContext, home: HomeResource, gate: str) -> dg.AssetCheckResult:
    house, field = home.open(), field_of(context)
    names = [a.name for a in house.database.associations(field)]
    stands = any(enough(house, n, total) for _, n, total in standing_filters(house, field).values())
    stands = stands or not house.database.exposures(field)
    return gate_answer(house, names, gate, stands, "no filter has enough accepted exposures for a mosaic")


@dg.asset_check(asset=preprocessed_visits, partitions_def=fields_partitions, blocking=True, name="relative_alignment")
def visits_relative_alignment(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Exposures of each association agree with each other."""
    return _visit_gate(context, home, "relative_alignment")


@dg.asset_check(asset=preprocessed_visits, partitions_def=fields_partitions, blocking=True, name="absolute_alignment")
def visits_absolute_alignment(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Each association agrees with its reference."""
    return _visit_gate(context, home, "absolute_alignment")


@dg.asset_check(asset=preprocessed_visits, partitions_def=fields_partitions, blocking=True)
def exposures_accounted(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Every exposure is in a calibrated file that opens, or is named with its cause."""
    house, field = home.open(), field_of(context)
    rows, reduced = [], 0
    causes = {r["dataset"]: r["held_back_because"] for r in house.database.exposure_rows(field) if not r["ready"]}
    statuses = {r["assoc_name"]: r for r in house.database.association_rows(field)}
    assoc_of = {r["dataset"]: r["assoc"] for r in house.database.exposure_rows(field)}
    files = {a.name: _files(house, a) for a in house.database.associations(field)}
    later = house.database.arrived_since(field)
    for exposure in house.database.exposures(field):
        if exposure.refused:
            continue
        name = assoc_of.get(exposure.dataset, "")
        stored = house.database.reduction(name) if name else None
        problem = files.get(name, {}).get(exposure.dataset, "no calibrated file")
        if not problem:
            reduced += 1
            continue
        if exposure.dataset in causes:
            cause = causes[exposure.dataset]
        elif not is_public(exposure):
            cause = f"not public before MJD {exposure.release:.2f}"
        elif exposure.dataset in later:
            cause = "arrived after this run had grouped the field: the next run takes it up"
        elif name and statuses[name]["cause"]:
            cause = statuses[name]["cause"]
        elif stored and exposure.dataset in stored[1].excluded:
            cause = stored[1].excluded[exposure.dataset]
        else:
            cause = ""
        rows.append({"exposure": exposure.dataset, "found": problem, "cause": cause or "unknown"})
    lost = [r for r in rows if r["cause"] == "unknown"]
    return answer(
        not lost,
        f"{reduced} exposures in calibrated files, {len(rows) - len(lost)} named with their cause, {len(lost)} lost",
        {"calibrated": reduced, "named with a cause": len(rows) - len(lost), "lost": len(lost), "limit": 0},
        what_to_do="run the field again; a file that was deleted by hand is made anew",
        table=rows,
    )


def _files(home: Home, association: Association) -> dict[str, str]:
    """What is wrong with each calibrated exposure of an association; an empty text where it opens."""
    from astropy.io import fits

    stored = home.database.reduction(association.name)
    problems: dict[str, str] = {}
    if stored is None or not made_of_these(home, association):
        return dict.fromkeys(association.datasets, "no calibrated file of the present data")
    for exposure in stored[1].exposures:
        path = home.storage.path(f"{association_folder(association.name)}/{exposure.filename}")
        try:
            with fits.open(path) as hdus:
                shape = hdus["SCI"].shape
                problems[exposure.dataset] = (
                    "" if len(shape) == 2 and hdus["WHT"].shape == shape else "planes differ in shape"
                )
        except (OSError, KeyError) as error:
            problems[exposure.dataset] = f"does not open: {error}"
    return problems


@dg.asset_check(asset=preprocessed_visits, partitions_def=fields_partitions)
def no_degradation(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """No service or reference was missing that was not switched off on purpose."""
    rows = home.open().database.field_degradations(field_of(context))
    open_ones = [r for r in rows if not r["intended"]]
    kinds = sorted({r["what"] for r in open_ones})
    return answer(
        not open_ones,
        f"{len(open_ones)} products lack: {', '.join(kinds)}" if open_ones else "nothing was missing",
        {"degradations": len(open_ones), "limit": 0, "switched off on purpose": len(rows) - len(open_ones)},
        what_to_do="supply what is missing, or name it in services_off of the survey file if it is meant to be",
        warn_only=True,
        table=[{"product": r["product"], "what": r["what"], "why": r["why"], "intended": r["intended"]} for r in rows],
    )


@dg.asset_check(asset=preprocessed_visits, partitions_def=fields_partitions, name="nothing_held_back")
def visits_nothing_held_back(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """No association was held back or came near a limit."""
    house, field = home.open(), field_of(context)
    return held_back_answer(house, [r["assoc_name"] for r in house.database.association_rows(field)])


checks = [
    visits_relative_alignment,
    visits_absolute_alignment,
    exposures_accounted,
    no_degradation,
    visits_nothing_held_back,
]
