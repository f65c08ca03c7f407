"""What is missing is found and named, whoever says what is expected."""

from pathlib import Path

import pytest

from panoramic.completeness import assess
from panoramic.survey import Survey

DETECTORS = ["NRCB1", "NRCB2", "NRCB3", "NRCB4", "NRCBLONG"]
NOW = 60100.0


def survey(expected: object, kind: str = "folder") -> Survey:
    archive = {"kind": "folder", "path": "/x"} if kind == "folder" else {"kind": "mast"}
    return Survey.model_validate({"name": "s", "archive": archive, "expected": expected})


@pytest.fixture
def visit(make_exposure):
    return [
        make_exposure(detector=d, filter="F444W" if "LONG" in d else "F115W", exposure=n)
        for d in DETECTORS
        for n in (1, 2)
    ]


EXPECTED = {"detectors": DETECTORS, "exposures": 2, "filters": ["F115W", "F444W"]}


def test_a_complete_visit(visit) -> None:
    verdict = assess(visit, survey(EXPECTED), NOW)
    assert not verdict.all_missing
    assert all(g.ready for g in verdict.groups.values())
    assert len(verdict.groups) == 5


def test_one_missing_exposure_holds_its_group_alone_back(visit) -> None:
    gone = visit.pop(3)
    verdict = assess(visit, survey(EXPECTED), NOW)
    assert verdict.all_missing == {gone.dataset: "not in the archive"}
    assert [g[4] for g, v in verdict.groups.items() if not v.ready] == [gone.detector]


def test_a_missing_detector_is_named_and_holds_nothing(visit) -> None:
    verdict = assess([e for e in visit if e.detector != "NRCB2"], survey(EXPECTED), NOW)
    assert list(verdict.missing) == ["jw02514001001_02201_*_nrcb2"]
    assert all(g.ready for g in verdict.groups.values())


def test_a_missing_filter_is_named(visit) -> None:
    verdict = assess([e for e in visit if e.filter == "F444W"], survey(EXPECTED | {"detectors": ["NRCBLONG"]}), NOW)
    assert list(verdict.missing) == ["jw02514001001 F115W"]


def test_a_young_visit_is_still_coming(visit) -> None:
    del visit[0]
    verdict = assess(visit, survey(EXPECTED), 60001.0)
    assert set(verdict.all_missing.values()) == {"still to come"}
    assert any(g.still_coming for g in verdict.groups.values())


def test_what_is_there_is_expected_without_a_survey_file(visit) -> None:
    some = [e for e in visit if (e.detector, e.exposure) not in {("NRCB1", 2), ("NRCB2", 1), ("NRCB2", 2)}]
    verdict = assess(some, survey("present"), NOW)
    assert not verdict.all_missing
    assert all(g.ready for g in verdict.groups.values())
    assert any("NRCB2" in note for note in verdict.notes)
    assert any("NRCB1 has no exposure 2" in note for note in verdict.notes)


def test_the_module_says_what_is_expected_of_the_archive(visit) -> None:
    some = [e for e in visit if e.detector != "NRCB4" and (e.detector, e.exposure) != ("NRCB1", 2)]
    verdict = assess(some, survey(None, "mast"), NOW)
    assert set(verdict.all_missing) == {"jw02514001001_02201_*_nrcb4", "jw02514001001_02201_00002_nrcb1"}


def test_recorded_detectors_limit_what_is_expected(visit) -> None:
    s = survey(None, "mast").model_copy(update={"recorded_detectors": ("NRCB1", "NRCBLONG")})
    verdict = assess([e for e in visit if e.detector in ("NRCB1", "NRCBLONG")], s, NOW)
    assert not verdict.all_missing


def test_a_fault_or_a_bad_row_holds_the_group_back(visit, make_exposure) -> None:
    visit[0] = make_exposure(detector="NRCB1", filter="F115W", exposure=1, fault="wrong md5")
    lost = visit.pop()
    verdict = assess(visit, survey("present"), NOW, unplaced={lost.dataset: "truncated"})
    assert verdict.all_missing == {visit[0].dataset: "wrong md5", lost.dataset: "truncated"}
    assert {g[4] for g, v in verdict.groups.items() if not v.ready} == {"NRCB1", "NRCBLONG"}


def test_unreleased_exposures_wait(visit, make_exposure) -> None:
    visit[0] = make_exposure(detector="NRCB1", filter="F115W", exposure=1, release=NOW + 5)
    verdict = assess(visit, survey(EXPECTED), NOW)
    assert "not public" in verdict.all_missing[visit[0].dataset]


def test_a_group_released_by_hand_is_ready(visit) -> None:
    del visit[0]
    s = survey(EXPECTED)
    group = visit[0].group
    assert assess(visit, s, NOW, released_groups={group: "the other is lost"}).groups[group].ready


def test_unknown_detectors_are_refused(tmp_path: Path) -> None:
    from panoramic.errors import SurveyFileError

    text = "name: s\narchive: {kind: mast}\nexpected:\n  detectors: [NRCB9]\n"
    with pytest.raises(SurveyFileError, match="NRCB9"):
        Survey.parse(text, tmp_path / "s.yaml")
