"""What a person decides on an association is kept, followed, and ends with its data."""

from __future__ import annotations

import pytest

from panoramic.alignment import Judgement, Verdict, overruled
from panoramic.footprints import parse_s_region

REJECTED = Judgement("held_back", "doubled stars", "vera", "2026-11-24")
ACCEPTED = Judgement("accepted", "checked by eye", "vera", "2026-11-24")


def judge(platform, field: str, element: str, judgement: Judgement) -> str:
    (association,) = [a for a in platform.home.database.associations(field) if a.first.element == element]
    platform.home.database.put_judgement(association, judgement)
    return association.name


def test_a_rejected_association_leaves_the_mosaic_until_its_data_change(two_fields) -> None:
    platform, first, second = two_fields
    assert platform.run(first).success
    name = judge(platform, first, "f115w", REJECTED)
    assert platform.ingest().touched_fields == [first]  # and automation takes it up
    count = len(platform.sky.reduced)
    result = platform.run(first)
    assert result.success
    assert len(platform.sky.reduced) == count
    (row,) = [r for r in platform.home.database.association_rows(first) if r["assoc_name"] == name]
    assert row["status"] == 9
    assert row["cause"] == "rejected by vera on " + row["cause"].split(" on ")[1]
    assert "doubled stars" in row["cause"]
    assert [m["filter_key"] for m in platform.home.database.mosaics(first)] == ["f444w-clear"]
    for archived in platform.sky.rows:
        if "jw09001001" in archived["filename"] and "nrcb1" in archived["filename"]:
            archived |= {"ArchiveFileID": 9, "checksum": "9" * 32}
    platform.ingest()
    assert platform.run(first).success
    assert len(platform.home.database.mosaics(first)) == 2


def test_a_rejected_reference_blocks_and_is_published_nowhere(two_fields) -> None:
    platform, first, _ = two_fields
    assert platform.run(first).success
    judge(platform, first, "f444w", REJECTED)
    result = platform.run(first)
    assert not result.success
    assert platform.home.database.reference(first) == []


def test_an_accepted_association_is_used_against_its_numbers(two_fields) -> None:
    platform, first, _ = two_fields
    bad = next(r for r in platform.sky.rows if "jw09001001" in r["filename"] and "nrcblong" in r["filename"])
    platform.sky.false_reference = [parse_s_region(bad["s_region"])]
    assert not platform.run(first).success
    name = judge(platform, first, "f444w", ACCEPTED)
    result = platform.run(first)
    stored = platform.home.database.reduction(name)
    assert stored[2].accepted
    assert any("failed, accepted by vera" in c.note for c in stored[2].criteria)
    assert platform.checks(result)["astrometric_reference.absolute_alignment"].passed
    assert platform.home.database.reference(first)


def test_a_judgement_keeps_the_numbers() -> None:
    verdict = Verdict("a", "accepted", ())
    assert overruled(verdict, None) is verdict
    held = overruled(verdict, REJECTED)
    assert (held.status, held.cause) == ("held_back", str(REJECTED))
    assert Verdict.from_json(held.to_json()) == held
    assert overruled(held, ACCEPTED).accepted


@pytest.mark.parametrize("command", ["accept", "reject"])
def test_the_commands(two_fields, monkeypatch, command) -> None:
    from typer.testing import CliRunner

    from panoramic_assets import cli, cli_judging

    platform, first, _ = two_fields
    platform.run(first)
    monkeypatch.setattr(cli_judging, "opened", lambda: platform.home)
    (name,) = [a.name for a in platform.home.database.associations(first) if a.first.element == "f115w"]
    done = CliRunner().invoke(cli.app, [command, name, "--reason", "seen by eye"])
    assert done.exit_code == 0, done.output
    association = platform.home.database.association(name)
    kept = platform.home.database.judgement(association)
    assert (kept.decision, kept.reason) == ({"accept": "accepted", "reject": "held_back"}[command], "seen by eye")
    assert CliRunner().invoke(cli.app, [command, name, "--reason", " "]).exit_code == 2
    wrong = CliRunner().invoke(cli.app, [command, name[:-1] + "9", "--reason", "x"])
    assert wrong.exit_code == 2
    assert name in wrong.output.replace("\n", "")
