"""`astrometric_reference`: one filter of a field reduced, judged and published as the reference of all others.

Of each patch of sky the first preferred filter is reduced against the external catalogues; what fails is tried again
with other parameters and the help of its visit, then the next filter takes its place. Overlapping associations are tied
to each other and moved as a whole. The accepted ones are published, and the checks read what was published.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import dagster as dg
import numpy as np

from panoramic.associations import Association
from panoramic.errors import CalibrationError, InputError, ReductionError, ServiceError
from panoramic.footprints import inside, union_area_arcmin2
from panoramic.observations import is_long_wave, passband
from panoramic.provenance import digest_of
from panoramic_assets.candidates import OwnReference
from panoramic_assets.choosing import choice_rounds, held_back_in, members_of, word_of_the_visit
from panoramic_assets.common import (
    MAX_RETRIES,
    RETRY,
    answer,
    criteria_rows,
    field_of,
    mapping_key,
    significant,
    verdicts_of,
    verifies,
)
from panoramic_assets.framing import frame_metadata, settle_frame
from panoramic_assets.observations import WHEN_UPSTREAM_PASSED
from panoramic_assets.own_reference import own_sources, published_reference
from panoramic_assets.partitions import fields_partitions
from panoramic_assets.reducing import (
    Outcome,
    is_final,
    reduce_association,
    without_data,
)
from panoramic_assets.showing import outcome_metadata
from resources.home import Home, HomeResource

# area of one detector on the sky, arcmin2 (NIRCam: 129 and 63 arcsec a side; jwst-docs "NIRCam Detectors")
LONG_WAVE_AREA, SHORT_WAVE_AREA = 129.0**2 / 3600, 63.0**2 / 3600


def reduce_step(
    context: dg.OpExecutionContext,
    home: Home,
    name: str,
    own: OwnReference,
    minimum_cover: float,
    attempts: Sequence[Literal["first", "second"]] = ("first",),
    speakers: Collection[str] | None = None,
) -> Outcome:
    """Reduce one association as a step of a run: the last try answers with a cause instead of failing.

    ``speakers`` are the associations of its visit that a second attempt listens to; None: all.
    """
    association = home.database.association(name)
    log, verify = context.log.info, verifies(context)
    try:
        with home.alone(name, log):
            for attempt in attempts:
                word = word_of_the_visit(home, association, speakers) if attempt == "second" else None
                outcome = reduce_association(home, association, own, minimum_cover, log, verify=verify, word=word)
                if outcome.status == "accepted":
                    break
            return outcome
    except (ReductionError, ServiceError, InputError, CalibrationError) as error:
        if context.retry_number < MAX_RETRIES and not is_final(error):
            raise
        context.log.warning(f"{name} is held back: {error}")
        return without_data(home, association, error)


def mapped(associations: Sequence[Association]) -> Iterator[dg.DynamicOutput[str]]:
    """One mapped step for each association."""
    for association in associations:
        yield dg.DynamicOutput(association.name, mapping_key=mapping_key(association.name))


@dg.op(ins={"associations": dg.In(dg.Nothing)}, out=dg.DynamicOut(str))
def plan_reference(context: dg.OpExecutionContext, home: HomeResource) -> Any:
    """The associations that are to carry the reference: of each patch of sky the first preferred filter."""
    yield from mapped(choice_rounds(home.open(), field_of(context))[0])


@dg.op(retry_policy=RETRY)
def reduce_reference(context: dg.OpExecutionContext, home: HomeResource, association: str) -> Outcome:
    """Reduce one association against the external catalogues."""
    return reduce_step(context, home.open(), association, OwnReference.empty(), 1.0)


@dg.op(out=dg.DynamicOut(str))
def plan_second_attempts(context: dg.OpExecutionContext, home: HomeResource, first: list[Outcome]) -> Any:
    """Those that were held back, now that other detectors of their visit may be aligned."""
    house = home.open()
    names = {outcome.association for outcome in first if outcome.status != "no_data"}
    yield from mapped(held_back_in(house, [a for a in members_of(house, field_of(context)) if a.name in names]))


@dg.op(retry_policy=RETRY)
def retry_reference(context: dg.OpExecutionContext, home: HomeResource, association: str) -> Outcome:
    """Reduce one association again, by the survey's second parameters and with the help of its visit."""
    return _reduce_again(context, home.open(), association, ["second"])


@dg.op(ins={"second": dg.In(dg.Nothing)}, out=dg.DynamicOut(str))
def plan_second_choice(context: dg.OpExecutionContext, home: HomeResource) -> Any:
    """The next filter's associations, where those of the first are held back."""
    yield from mapped(choice_rounds(home.open(), field_of(context))[1])


@dg.op(ins={"other": dg.In(dg.Nothing)}, out=dg.DynamicOut(str))
def plan_last_choice(context: dg.OpExecutionContext, home: HomeResource) -> Any:
    """Whatever covers the patches of sky that have no reference yet."""
    yield from mapped(choice_rounds(home.open(), field_of(context))[2])


@dg.op(retry_policy=RETRY)
def reduce_other_choice(context: dg.OpExecutionContext, home: HomeResource, association: str) -> Outcome:
    """Reduce one association of another filter against the external catalogues, twice if it must be."""
    return _reduce_again(context, home.open(), association, ["first", "second"])


def _reduce_again(
    context: dg.OpExecutionContext, home: Home, name: str, attempts: Sequence[Literal["first", "second"]]
) -> Outcome:
    """Attempts on an association of the reference: it listens to others of the reference alone."""
    speakers = {a.name for a in members_of(home, field_of(context))}
    return reduce_step(context, home, name, OwnReference.empty(), 1.0, attempts, speakers)


@dg.op
def tie_frame(
    context: dg.OpExecutionContext,
    home: HomeResource,
    first: list[Outcome],
    second: list[Outcome],
    other: list[Outcome],
    last: list[Outcome],
) -> list[Outcome]:
    """Tie overlapping associations to each other and move the whole to the external frame."""
    house, field = home.open(), field_of(context)
    later = {o.association: o for o in (*second, *other, *last)}
    outcomes = {o.association: later.get(o.association, o) for o in (*first, *later.values())}
    moved = settle_frame(house, field, members_of(house, field), context.log.info)
    return [moved.get(name, outcome) for name, outcome in outcomes.items()]


@dg.op
def publish_reference(context: dg.OpExecutionContext, home: HomeResource, outcomes: list[Outcome]) -> dg.Output[str]:
    """Publish the accepted associations' sources, in one transaction that replaces the field's earlier ones."""
    house, field = home.open(), field_of(context)
    sources = own_sources(house, members_of(house, field))
    metadata = outcome_metadata(house, outcomes)
    metadata["version of the reference"] = house.database.publish_reference(field, sources)
    metadata["published sources"] = len(sources)
    metadata |= frame_metadata(house, field)
    version = digest_of([np.round(sources["ra"], 8).tolist(), np.round(sources["dec"], 8).tolist()])
    return dg.Output(field, metadata=metadata, data_version=dg.DataVersion(version[:16]))


@dg.graph_asset(
    ins={"associations": dg.AssetIn(dagster_type=dg.Nothing)},
    partitions_def=fields_partitions,
    group_name="field",
    automation_condition=WHEN_UPSTREAM_PASSED,
    kinds={"python"},
)
def astrometric_reference(associations: Any) -> Any:
    """The field's own reference catalogue, from its first preferred filter."""
    first = plan_reference(associations).map(reduce_reference).collect()
    second = plan_second_attempts(first).map(retry_reference).collect()
    other = plan_second_choice(second).map(reduce_other_choice).collect()
    last = plan_last_choice(other).map(reduce_other_choice).collect()
    return publish_reference(tie_frame(first, second, other, last))


# --- checks -----------------------------------------------------------------------------------


def gate_answer(home: Home, names: Sequence[str], gate: str, stands: bool, why_not: str) -> dg.AssetCheckResult:
    """Answer for one gate: accepted associations must pass it on recount, and the field must be able to stand."""
    verdicts = verdicts_of(home, names)
    accepted = [v for v in verdicts.values() if v.accepted]
    leaking = [v.association for v in accepted if any(c.passed is False for c in v.of(gate))]
    failing = [v.association for v in verdicts.values() if any(c.passed is False for c in v.of(gate))]
    numbers = [c for v in verdicts.values() for c in v.of(gate) if c.value is not None and c.limit]
    upper = [c for c in numbers if not c.at_least]
    counts = [c.value for c in numbers if c.unit == "matches" and c.value is not None]
    # where nothing can stand, the gate that failed says so; without any number (no data at all) the last gate does
    blamed = bool(failing) or (
        gate == "absolute_alignment" and not any(c.passed is False for v in verdicts.values() for c in v.criteria)
    )
    blocked = not stands and blamed
    passed = not leaking and not blocked
    summary = f"{len(accepted)} of {len(names)} associations accepted, {len(failing)} held back by this gate"
    if blocked:
        summary += f": {why_not}"
        causes = [cause for cause in home.database.causes(names).values() if cause]
        summary += f" ({_shortened(causes[0])})" if causes else ""
    if leaking:
        summary += f"; accepted although they fail: {', '.join(leaking)}"
    metadata: dict[str, Any] = {"accepted": len(accepted), "failing": len(failing)}
    if upper:
        worst = max(upper, key=lambda c: (c.value or 0.0) / (c.limit or 1.0))
        values = {"worst value": significant(worst.value), "limit": significant(worst.limit)}
        metadata |= values | {"unit": worst.unit, "of": worst.name}
    if counts:
        metadata["fewest matches"] = min(counts)
    return answer(
        passed,
        summary,
        metadata,
        what_to_do="look at the alignment plots; `panoramic explain FIELD` names the cause of each association. "
        "Where the reference filter itself fails, put another one first in reference.filters of the survey file",
        when_passed="see nothing_held_back for what was held back" if failing else "nothing",
        table=criteria_rows(verdicts.values(), gate),
    )


def _shortened(text: str, length: int = 300) -> str:
    """The first line of a text, cut where it is long."""
    line = text.partition("\n")[0]
    return line if len(line) <= length else f"{line[:length]}..."


def _reference_gate(context: dg.AssetCheckExecutionContext, home: HomeResource, gate: str) -> dg.AssetCheckResult:
    house, field = home.open(), field_of(context)
    names = [a.name for a in members_of(house, field)]
    # a field whose exposures all belong to another one now has nothing to stand on, and needs nothing
    stands = any(v.accepted for v in verdicts_of(house, names).values()) or not house.database.exposures(field)
    return gate_answer(house, names, gate, stands, "the field has no aligned reference")


@dg.asset_check(asset=astrometric_reference, partitions_def=fields_partitions, blocking=True)
def relative_alignment(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """Exposures of the reference associations agree with each other."""
    return _reference_gate(context, home, "relative_alignment")


@dg.asset_check(asset=astrometric_reference, partitions_def=fields_partitions, blocking=True)
def absolute_alignment(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """The reference associations agree with the external catalogue."""
    return _reference_gate(context, home, "absolute_alignment")


@dg.asset_check(asset=astrometric_reference, partitions_def=fields_partitions, blocking=True)
def reference_source_count(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """What was published has enough sources on each detector's area."""
    house, field = home.open(), field_of(context)
    limits, reference = house.survey.limits, published_reference(house, field)
    verdicts = verdicts_of(house, [a.name for a in members_of(house, field)])
    sources = {r["src"] for r in house.database.reference(field)} | {n for n, v in verdicts.items() if v.accepted}
    ready = {a.name: a for a in house.database.associations(field)}
    rows = []
    for row in house.database.association_rows(field):
        if row["assoc_name"] not in sources or row["assoc_name"] not in ready:
            continue
        # held-back exposures of the association bring no sources
        outline, long_wave = ready[row["assoc_name"]].footprint, is_long_wave(row["detector"])
        detectors = max(1.0, union_area_arcmin2([outline]) / (LONG_WAVE_AREA if long_wave else SHORT_WAVE_AREA))
        value = inside(reference.ra, reference.dec, outline).sum() / detectors
        limit = limits.reference_sources if long_wave else limits.reference_sources_short
        near = limits.reference_sources_near if long_wave else limits.reference_sources_near / 4
        result = "failed" if value < limit else "near the limit" if value < near else "passed"
        name = passband(*row["filter"].split("-", 1))
        rows.append(
            {
                "association": row["assoc_name"],
                "filter": name,
                "sources per detector": float(value),
                "limit": limit,
                "result": result,
            }
        )
    worst = min((r["sources per detector"] for r in rows), default=0.0)
    passed = all(r["result"] != "failed" for r in rows) and (bool(rows) or not house.database.exposures(field))
    return answer(
        passed,
        f"{len(reference.ra)} sources published, at least {worst:.0f} on a detector's area"
        if rows
        else "nothing was published",
        {"published": len(reference.ra), "fewest on a detector": worst, "limit": limits.reference_sources},
        what_to_do="too few sources for the other filters to align to: look at the association's image and catalogue; "
        "for a narrow filter, lower limits.reference_sources or put another first in reference.filters (survey file)",
        table=rows,
    )


@dg.asset_check(asset=astrometric_reference, partitions_def=fields_partitions, name="nothing_held_back")
def reference_nothing_held_back(context: dg.AssetCheckExecutionContext, home: HomeResource) -> dg.AssetCheckResult:
    """No reference association was held back or came near a limit."""
    house, field = home.open(), field_of(context)
    return held_back_answer(house, [a.name for a in members_of(house, field)])


def held_back_answer(home: Home, names: Sequence[str]) -> dg.AssetCheckResult:
    """Name what was held back, and what passed near a limit."""
    verdicts = verdicts_of(home, names)
    causes = home.database.causes(names)
    rows = []
    for name in names:
        verdict = verdicts.get(name)
        if verdict is None or not verdict.accepted:
            cause = verdict.cause if verdict else causes.get(name) or "not reduced"
            rows.append({"association": name, "state": "held back", "cause": cause})
        else:
            rows += [{"association": name, "state": "near a limit", "cause": str(c)} for c in verdict.near]
    held = sum(r["state"] == "held back" for r in rows)
    return answer(
        not rows,
        f"{held} of {len(names)} associations held back, {len(rows) - held} numbers near a limit"
        if rows
        else "nothing is held back",
        {"held back": held, "limit": 0, "near a limit": len(rows) - held},
        what_to_do="look at the plots of the associations named here; mosaics go without those that are held back. "
        "`panoramic explain FIELD` tells what was tried; `panoramic accept ASSOCIATION --reason TEXT` overrules",
        warn_only=True,
        table=rows,
    )


checks = [relative_alignment, absolute_alignment, reference_source_count, reference_nothing_held_back]
