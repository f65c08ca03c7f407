"""The survey file: unknown keys and impossible limits are refused with file and line."""

from pathlib import Path

import pytest

from panoramic.errors import SurveyFileError
from panoramic.survey import FieldRules, FolderArchive, Survey

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((PROJECT / "surveys").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_surveys_of_the_project_are_valid(path: Path) -> None:
    survey = Survey.load(path)
    assert survey.name == path.stem
    again = Survey.parse(__import__("yaml").safe_dump(survey.model_dump(mode="json", exclude_defaults=True)), path)
    assert again.digest == survey.digest


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("name: s\narchive: {kind: mast}\nlimitz: {}\n", 3, "limitz"),
        ("name: s\narchive:\n  kind: mast\nlimits:\n  relative_rms_px: -1\n", 5, "relative_rms_px"),
        ("name: s\narchive: {kind: mast}\nlimits:\n  absolute_n: 12\n  oops: 3\n", 5, "oops"),
        ("name: s\narchive: {kind: mast}\nlimits: {relative_rms_px: 0.01}\n", 3, "near"),
        ("name: s\narchive: {kind: mast}\nmosaics: {long_wave_scale_mas: 50}\n", 3, "whole multiple"),
        ("name: s\narchive:\n  kind: folder\n  pat: x\n", 4, "pat"),
        ("name: S S\narchive: {kind: mast}\n", 1, "name"),
        ("name: [\n", 2, "YAML"),
        ("", 1, "empty"),
        ("name: s\n", 1, "archive"),
        ("name: s\narchive: {kind: mast}\nfields:\n  merges: {a: [c], b: [c]}\n", 3, "merged"),
    ],
)
def test_mistakes_are_refused_with_their_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    path = tmp_path / "survey.yaml"
    path.write_text(text)
    with pytest.raises(SurveyFileError, match=word) as caught:
        Survey.load(path)
    assert caught.value.path == path
    assert caught.value.line is not None
    assert abs(caught.value.line - line) <= 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SurveyFileError, match="nowhere"):
        Survey.load(tmp_path / "nowhere.yaml")


def test_a_relative_archive_starts_at_the_survey_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\narchive: {kind: folder, path: exposures}\n")
    archive = Survey.load(path).archive
    assert isinstance(archive, FolderArchive)
    assert archive.path == tmp_path / "exposures"


def test_overrides_by_field_filter_and_association() -> None:
    survey = Survey.model_validate(
        {
            "name": "s",
            "archive": {"kind": "mast"},
            "reduction": {
                "parameters": {"lean": True, "x": 1},
                "overrides": [
                    {"match": "F444W", "parameters": {"x": 2}},
                    {"match": "j1*_00007", "parameters": {"x": 3}},
                ],
            },
        }
    )
    assert survey.reduction.settings_for("j1_v001-1-f115w_00001", "j1", "f115w")[1] == {"lean": True, "x": 1}
    assert survey.reduction.settings_for("j1_v001-1-f444w_00001", "j1", "f444w")[1] == {"lean": True, "x": 2}
    assert survey.reduction.settings_for("j1_v001-1-f444w_00007", "j1", "f444w")[1] == {"lean": True, "x": 3}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"merges": {"a": ["c"], "b": ["c"]}}, "field c is merged into both a and b"),
        ({"merges": {"a": ["b"], "b": ["c"]}}, "field b is merged into a and is itself a target of merges"),
        ({"merges": {"a": ["b"], "b": ["a"]}}, "is itself a target of merges"),
        ({"merges": {"a": ["a"]}}, "field a is merged into itself"),
        ({"merges": {"a": ["b"]}, "splits": {"b": {"c": ["x*"]}}}, "field b is merged into a and is also split"),
        ({"merges": {"a": ["b"]}, "splits": {"c": {"b": ["x*"]}}}, "field b is split from c and is also merged into a"),
        ({"splits": {"a": {"b": ["x*"], "c": ["x*"]}}}, "datasets x\\* are split off into both b and c"),
        ({"splits": {"a": {"b": ["x*"]}, "d": {"c": ["x*"]}}}, "datasets x\\* are split off into both b and c"),
        ({"splits": {"a": {"a": ["x*"]}}}, "field a is split from itself"),
        ({"splits": {"a": {"b": ["x*"]}, "b": {"c": ["y*"]}}}, "field b is split from a and is itself split"),
        ({"splits": {"a": {"c": ["x*"]}, "b": {"c": ["y*"]}}}, "field c is split from both a and b"),
        ({"buffer_arcmin": 601}, "less than or equal to 600"),
        ({"buffer_arcmin": 0}, "greater than 0"),
    ],
)
def test_contradictory_merges_and_splits_are_refused(rules: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FieldRules.model_validate(rules)


def test_merges_then_splits() -> None:
    rules = FieldRules(merges={"a": ("b", "c")}, splits={"a": {"d": ("JW02514162*",), "e": ("jw02514*", "jw1*")}})
    assert [rules.merged(name) for name in "abcd"] == ["a", "a", "a", "d"]
    assert rules.split("a", "jw02514162001_03201_00003_nrca4") == "d"  # the longer pattern
    assert rules.split("a", "jw02514001001_03201_00003_nrca4") == "e"
    assert rules.split("a", "jw99999001001_03201_00003_nrca4") == "a"
    assert rules.split("b", "jw02514162001_03201_00003_nrca4") == "b"
    assert rules.changed() == {"a", "b", "c"}
    assert rules.parents() == {"d": "a", "e": "a"}
