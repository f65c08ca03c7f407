"""What a user meets who gives the command line something wrong, or too little room."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from panoramic.errors import DiskFullError
from panoramic.survey import Survey
from panoramic_assets import cli, console
from resources.database import Database, is_disk_full
from resources.home import Home


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PANORAMIC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))

    def run(*arguments: str):
        done = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        return done.exit_code, " ".join(done.stdout.split())

    run.home = tmp_path / "home"
    return run


def test_another_archive_in_a_home_that_has_one_is_refused(command, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "jw02514001001_02201_00001_nrcb1_rate.fits").write_text("no FITS")
    code, said = command("ingest", "--archive", tmp_path / "one")
    assert (code, "is no FITS file" in said) == (0, True)
    code, said = command("ingest", "--archive", tmp_path / "two")
    assert code == 1
    assert "set PANORAMIC_HOME to another folder" in said
    assert Home(command.home).survey.archive.path == tmp_path / "one"
    # the folder's own survey follows the folder
    (tmp_path / "one" / "reference_catalogs").mkdir()
    (tmp_path / "one" / "reference_catalogs" / "OURS.ecsv").write_text("")
    command("ingest", "--archive", tmp_path / "one")
    assert "OURS" in Home(command.home).survey.reference.catalogs


def test_a_folder_that_is_not_there_claims_nothing(command, tmp_path: Path) -> None:
    code, said = command("run", "--archive", tmp_path / "exposres")
    assert code == 2
    assert "there is no folder" in said
    (tmp_path / "docs").mkdir()
    code, said = command("run", "--archive", tmp_path / "docs")
    assert (code, "no NIRCam exposure" in said) == (2, True)
    assert not command.home.exists()


def test_survey_files_that_are_none(command, tmp_path: Path) -> None:
    binary = tmp_path / "picture.yaml"
    binary.write_bytes(bytes(range(128, 256)))
    code, said = command("run", "--survey", binary)
    assert (code, "is no text file" in said) == (2, True)


def test_brackets_in_messages_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("/data/[jwst]/a.fits: [/raw] is missing")
    assert "/data/[jwst]/a.fits: [/raw] is missing" in capsys.readouterr().out


def test_a_full_disk_is_named(tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{tmp_path / 'survey.db'}")
    database.migrate()
    with database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    def small(connection, _):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    database.engine.dispose()
    sa.event.listen(database.engine, "connect", small)
    with pytest.raises(DiskFullError, match="make room"), database.write() as connection:
        from resources import tables as t

        connection.execute(t.home.insert().values(key="big", value="x" * 10_000_000))
    assert is_disk_full(OSError(28, "No space left on device"))
    assert not is_disk_full(OSError(13, "denied"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Home, "prepare", full)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "jw02514001001_02201_00001_nrcb1_rate.fits").write_text("no FITS")
    code, said = command("run", "--archive", tmp_path / "one")
    assert code == 1
    assert "DiskFullError: no room left" in said


def test_a_survey_of_a_folder_is_lean(tmp_path: Path) -> None:
    from resources.home import survey_of_folder

    survey = survey_of_folder(tmp_path)
    assert survey.reduction.parameters == {"lean": True}
    assert Survey.model_validate(survey.model_dump()) == survey


def test_files_that_were_copied_just_now_are_looked_at_twice(tmp_path: Path) -> None:
    from panoramic_assets.running import settled_look
    from resources.archive import ArchiveFault, ArchiveLook

    looks = [ArchiveLook([], [ArchiveFault("a", "just written", "unsettled")]), ArchiveLook([{"filename": "a"}])]
    said: list[str] = []
    waited: list[float] = []

    class Folder:
        def look(self, since_mjd: float | None = None) -> ArchiveLook:
            return looks.pop(0)

    look = settled_look(Folder(), said.append, waited.append)
    assert look.rows == [{"filename": "a"}]
    assert len(waited) == 1
    assert "written just now" in said[0]


def test_transfers_are_told_of(tmp_path: Path) -> None:
    import threading

    from panoramic_assets.running import told_of_downloads

    (tmp_path / "jw02514").mkdir()
    (tmp_path / "jw02514" / ".jw02514001001_02201_00001_nrcb1_rate.fits.part").write_bytes(bytes(3_000_000))
    said = threading.Event()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        said.set()

    with told_of_downloads(tmp_path, say, every_s=0.01):
        assert said.wait(10)
    assert "downloading 1 files, 3 MB" in lines[0]
