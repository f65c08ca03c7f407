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
) -> Completeness:
    """Compare what is there with what each visit and activity should hold.

    Parameters
    ----------
    exposures : of one field, those that the survey's rules refuse left out by the caller or here.
    now_mjd : a visit younger than the survey's patience is still coming in, and exposures not yet public wait.
    unplaced : datasets known by name only, with the cause.
    released_groups : reasons of groups that a person released although incomplete.
    """
    unplaced, released_groups = unplaced or {}, released_groups or {}
    kept = [e for e in exposures if not e.refused]
    activities: dict[tuple[str, str], list[Exposure]] = defaultdict(list)
    for exposure in kept:
        activities[exposure.visit_id, exposure.activity].append(exposure)
    lost: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for dataset, cause in unplaced.items():
        parts = split_filename(f"{dataset}_rate")
        visit_id = parts["program"] + parts["observation"] + parts["visit"]
        lost[visit_id, parts["activity"].lower(), parts["detector"].upper()][dataset] = cause

    result = Completeness()
    for (visit_id, activity), members in sorted(activities.items()):
        young = now_mjd - max(e.t_max for e in members) < survey.patience_days
        expected = _expected_exposures(members, survey)
        by_group: dict[Group, list[Exposure]] = defaultdict(list)
        for exposure in members:
            by_group[exposure.group].append(exposure)
        for group, own in sorted(by_group.items()):
            missing = {e.dataset: e.fault for e in own if e.fault}
            missing |= {
                e.dataset: f"not public before MJD {e.release:.2f}" for e in own if not e.fault and e.release > now_mjd
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
        for detector in sorted(set(expected) - seen):
            what = f"jw{visit_id}_{activity}_*_{detector.lower()}"
            causes = lost.get((visit_id, activity, detector))
            if causes:
                result.missing.update(causes)
            else:
                result.missing[what] = "still to come" if young else "no exposure of this detector in the archive"
        result.notes += _notes(visit_id, activity, members)
    result.missing |= _missing_filters(kept, survey)
    return result


def _expected_exposures(members: list[Exposure], survey: Survey) -> dict[str, range]:
    """Expected exposure numbers by detector, for one visit and activity."""
    expected = survey.expected
    if isinstance(expected, Expected):
        detectors = expected.detectors or tuple({e.detector for e in members})
        count = expected.exposures or max(e.exposure for e in members)
    elif expected is None and isinstance(survey.archive, MastArchive):
        modules = {e.module for e in members}
        channels = {e.is_long_wave for e in members}
        detectors = tuple(d for d in DETECTORS if d[3] in modules and is_long_wave(d) in channels)
        count = max(e.exposure for e in members)
    else:  # what is there is what is expected
        return {}
    recorded = {d.upper() for d in survey.recorded_detectors or DETECTORS}
    return {d: range(1, count + 1) for d in detectors if d in recorded}


def _notes(visit_id: str, activity: str, members: list[Exposure]) -> list[str]:
    """What module and dither count would add, named for people; it holds nothing back."""
    notes = []
    for module in sorted({e.module for e in members}):
        for long_wave in sorted({e.is_long_wave for e in members if e.module == module}):
            everything = {d for d in DETECTORS if d[3] == module and is_long_wave(d) == long_wave}
            absent = everything - {e.detector for e in members}
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
