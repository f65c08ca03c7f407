"""Which exposures of a visit are missing, and which groups are therefore held back.

A *group* is one visit, activity, filter, pupil and detector. Put here who expects what (design: section 3); keep out
what is done about it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from panoramic.observations import Exposure, is_long_wave, split_filename
from panoramic.survey import DETECTORS, Expected, MastArchive, Survey

Group = tuple[str, str, str, str, str]


@dataclass
class GroupVerdict:
    """What a group has and lacks. ``missing`` gives a cause for each exposure that is not usable."""

    present: tuple[str, ...]
    missing: dict[str, str] = field(default_factory=dict)
    still_coming: bool = False
    released: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    @property
    def ready(self) -> bool:
        """Whether the group may be reduced: complete, or released by hand with a reason."""
        return bool(self.present) and (self.complete or bool(self.released))


@dataclass
class Completeness:
    """Verdicts by group, what no group stands for (whole detectors or filters missing), and notes that hold nothing."""

    groups: dict[Group, GroupVerdict] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def all_missing(self) -> dict[str, str]:
        """Everything that is missing, with its cause."""
        combined = dict(self.missing)
        for verdict in self.groups.values():
            combined.update(verdict.missing)
        return combined


def assess(
    exposures: Iterable[Exposure],
    survey: Survey,
    now_mjd: float,
    unplaced: Mapping[str, str] | None = None,
    released_groups: Mapping[Group, str] | None = None,
    refused: Iterable[str] = (),
) -> Completeness:
    """Compare what is there with what each visit and activity should hold.

    Parameters
    ----------
    exposures : of one field, those that the survey's rules refuse left out by the caller or here.
    now_mjd : a visit younger than the survey's patience is still coming in, and exposures not yet public wait.
    unplaced : datasets known by name only, with the cause.
    released_groups : reasons of groups that a person released although incomplete.
    refused : further datasets that the survey's rules leave out: they are known, so their detectors are not missing.
    """
    unplaced, released_groups = unplaced or {}, released_groups or {}
    everything = list(exposures)
    kept = [e for e in everything if not e.refused]
    left_out = {(e.visit_id, e.activity, e.detector) for e in everything if e.refused}
    visits: dict[str, list[Exposure]] = defaultdict(list)
    for exposure in everything:
        visits[exposure.visit_id].append(exposure)
    left_out |= {_place_of(dataset) for dataset in refused if dataset[2:13] in visits}
    activities: dict[tuple[str, str], list[Exposure]] = defaultdict(list)
    for exposure in kept:
        activities[exposure.visit_id, exposure.activity].append(exposure)
    lost: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for dataset, cause in unplaced.items():
        if dataset[2:13] in visits:
            lost[_place_of(dataset)][dataset] = cause

    result = Completeness()
    for (visit_id, activity), members in sorted(activities.items()):
        young = now_mjd - max(e.t_max for e in members) < survey.patience_days
        used = [e for e in visits[visit_id] if not e.refused]
        expected = _expected_exposures(members, used, survey)
        by_group: dict[Group, list[Exposure]] = defaultdict(list)
        for exposure in members:
            by_group[exposure.group].append(exposure)
        for group, own in sorted(by_group.items()):
            missing = {e.dataset: e.fault for e in own if e.fault}
            missing |= {
                e.dataset: f"not public before MJD {e.release:.2f}"
                for e in own
                if not e.fault and not e.is_available(now_mjd)
            }
            missing |= lost.get((visit_id, activity, group[4]), {})
            numbers = {e.exposure for e in own} | {
                int(split_filename(f"{d}_rate")["exposure"]) for d in lost.get((visit_id, activity, group[4]), {})
            }
            for number in sorted(set(expected.get(group[4], ())) - numbers):
                dataset = f"jw{visit_id}_{activity}_{number:05d}_{group[4].lower()}"
                missing[dataset] = "still to come" if young else "not in the archive"
            result.groups[group] = GroupVerdict(
                present=tuple(sorted(e.dataset for e in own if e.dataset not in missing)),
                missing=missing,
                still_coming=young and bool(missing),
                released=released_groups.get(group, ""),
            )
        seen = {e.detector for e in members}
        # a detector that did something else meanwhile (a grism, say) is not missing
        elsewhere = {d for d in DETECTORS if (visit_id, activity, d) in left_out}
        for detector in sorted(set(expected) - seen - elsewhere):
            what = f"jw{visit_id}_{activity}_*_{detector.lower()}"
            causes = lost.get((visit_id, activity, detector))
            if causes:
                result.missing.update(causes)
            else:
                result.missing[what] = "still to come" if young else "no exposure of this detector in the archive"
        result.notes += _notes(visit_id, activity, members, elsewhere)
    for visit_id, own in sorted(visits.items()):
        if any(not e.refused for e in own):
            result.notes += _gaps_in_count(visit_id, own)
    result.missing |= _missing_filters(kept, survey)
    return result


def _place_of(dataset: str) -> tuple[str, str, str]:
    """Visit, activity and detector of a dataset, by its name."""
    parts = split_filename(f"{dataset}_rate")
    visit_id = parts["program"] + parts["observation"] + parts["visit"]
    return visit_id, parts["activity"].lower(), parts["detector"].upper()


def _expected_exposures(members: list[Exposure], visit: list[Exposure], survey: Survey) -> dict[str, range]:
    """Expected exposure numbers by detector, for one visit and activity.

    Where no survey file says it: each module and channel that the visit used anywhere (NIRCam reads both channels at
    once, and all detectors of a module), and the largest exposure number that any detector of the activity reached.
    """
    expected = survey.expected
    if isinstance(expected, Expected):
        detectors = expected.detectors or tuple({e.detector for e in members})
        count = expected.exposures or max(e.exposure for e in members)
    elif expected is None and isinstance(survey.archive, MastArchive):
        modules = {e.module for e in visit}
        channels = {e.is_long_wave for e in visit}
        detectors = tuple(d for d in DETECTORS if d[3] in modules and is_long_wave(d) in channels)
        count = max(e.exposure for e in members)
    else:  # what is there is what is expected
        return {}
    recorded = {d.upper() for d in survey.recorded_detectors or DETECTORS}
    return {d: range(1, count + 1) for d in detectors if d in recorded}


def _gaps_in_count(visit_id: str, members: list[Exposure]) -> list[str]:
    """Exposures of a visit that its own running count (EXPCOUNT) says there were, and nothing stands for.

    The count runs over all exposures of the visit, of other instruments and of the prime as well, so it is a hint for
    people and holds nothing back.
    """
    counts = sorted({e.expcount for e in members if e.expcount > 0})
    absent = sorted(set(range(counts[0], counts[-1] + 1)) - set(counts)) if counts else []
    if not absent:
        return []
    listed = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
    return [f"visit {visit_id}: no NIRCam image has the running count (EXPCOUNT) {listed}"]


def _notes(visit_id: str, activity: str, members: list[Exposure], elsewhere: set[str]) -> list[str]:
    """What module and dither count would add, named for people; it holds nothing back."""
    notes = []
    for module in sorted({e.module for e in members}):
        for long_wave in sorted({e.is_long_wave for e in members if e.module == module}):
            everything = {d for d in DETECTORS if d[3] == module and is_long_wave(d) == long_wave}
            absent = everything - {e.detector for e in members} - elsewhere
            if absent:
                notes.append(
                    f"visit {visit_id} activity {activity}: module {module} has no {', '.join(sorted(absent))}"
                )
    counts = defaultdict(set)
    for exposure in members:
        counts[exposure.detector].add(exposure.exposure)
    numbers = set().union(*counts.values())
    for detector, own in sorted(counts.items()):
        if own != numbers:
            lacking = ", ".join(str(n) for n in sorted(numbers - own))
            notes.append(
                f"visit {visit_id} activity {activity}: {detector} has no exposure {lacking}, other detectors have"
            )
    if len(numbers) == 1:
        notes.append(f"visit {visit_id} activity {activity}: a single exposure, so nothing can be held against it")
    return notes


def _missing_filters(exposures: list[Exposure], survey: Survey) -> dict[str, str]:
    """Filters that the survey expects in every visit and that a visit does not have."""
    if not isinstance(survey.expected, Expected) or not survey.expected.filters:
        return {}
    by_visit = defaultdict(set)
    for exposure in exposures:
        by_visit[exposure.visit_id].add(exposure.element.upper())
    return {
        f"jw{visit_id} {name}": "no exposure in this filter"
        for visit_id, seen in sorted(by_visit.items())
        for name in sorted({f.upper() for f in survey.expected.filters} - seen)
    }
