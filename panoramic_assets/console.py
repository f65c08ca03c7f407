"""What every command of the command line shares: the home, the survey it works on, errors as one line.

Put here what two modules of commands need. Keep out the commands.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import DatabaseError

from panoramic.errors import ConflictError, DiskFullError, EmptyArchiveError, InputError, PanoramicError
from panoramic.survey import FolderArchive, SimulatedArchive, Survey
from resources.database import is_disk_full
from resources.home import SIMULATED_SURVEY, Home, home_from_environment, survey_of_folder
from resources.storage import field_lock

console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)

SurveyOption = Annotated[
    Path | None, typer.Option("--survey", help="Survey file; by default the home's own, else the simulated one.")
]
ArchiveOption = Annotated[Path | None, typer.Option("--archive", help="A folder of NIRCam rate files to work on.")]
FieldOption = Annotated[list[str] | None, typer.Option("--field", help="Only this field; may be given several times.")]


@contextmanager
def refusing(as_json: bool = False) -> Iterator[None]:
    """Turn typed errors into one line and an exit code: 2 for bad input, 1 for what may be better later."""
    try:
        yield
    except PanoramicError as error:
        _refuse(error, as_json)
    except (OSError, DatabaseError) as error:
        if not is_disk_full(error):
            raise
        _refuse(DiskFullError(f"no room left ({error}): make room and run again"), as_json)


def _refuse(error: PanoramicError, as_json: bool) -> NoReturn:
    code = 2 if isinstance(error, InputError) else 1
    if as_json:
        typer.echo(json.dumps({"error": type(error).__name__, "message": str(error)}))
        raise typer.Exit(code) from error
    console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
    console.print(str(error), markup=False)
    raise typer.Exit(code) from error


def open_home() -> Home:
    """The home that the environment names; Dagster's own home goes into it."""
    resource = home_from_environment()
    home = Home(Path(resource.path), os.environ.get("PANORAMIC_DATABASE_URL", ""), os.environ.get("MAST_API_TOKEN", ""))
    os.environ["PANORAMIC_HOME"] = str(home.path)
    os.environ["DAGSTER_HOME"] = str(home.path / "dagster")
    # one thread a step: the steps themselves run side by side
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    return home


def choose_survey(home: Home, survey_file: Path | None, archive: Path | None) -> Survey:
    """The survey that a command works on."""
    if survey_file is not None:
        survey = Survey.load(survey_file)
    elif archive is not None:
        survey = survey_of_archive(home, archive)
    elif home.survey_file.exists():
        survey = home.survey
    else:
        survey = Survey.load(SIMULATED_SURVEY)
    check_parameters(survey)
    if archive is not None:
        survey = survey.model_copy(update={"archive": FolderArchive(kind="folder", path=archive.resolve())})
    return survey


def survey_of_archive(home: Home, archive: Path) -> Survey:
    """The survey of a folder without survey file: the home's own where it is that of this folder, else a new one.

    Raises
    ------
    ConflictError
        The home works on another archive already.
    """
    if not archive.is_dir():
        raise InputError(f"there is no folder {archive}")
    if next(archive.rglob("*_rate.fits"), None) is None:
        raise EmptyArchiveError(f"no NIRCam exposure in {archive}: there is no *_rate.fits file in it or below it")
    fresh = survey_of_folder(archive)
    if not home.survey_file.exists():
        return fresh
    there = home.survey.archive
    if isinstance(there, FolderArchive) and there.path == archive.resolve():
        # a survey that was made from the folder follows it: a catalogue may have come since
        return fresh if home.survey.model_copy(update={"reference": fresh.reference}) == fresh else home.survey
    what = f"the folder {there.path}" if isinstance(there, FolderArchive) else f"an archive of kind {there.kind!r}"
    raise ConflictError(
        f"{home.path} is the home of the survey {home.survey.name!r}, which works on {what}: set PANORAMIC_HOME to "
        "another folder, or give the survey file that changes it (--survey)"
    )


def check_parameters(survey: Survey) -> None:
    """Refuse engine parameters that the engine does not know, before anything runs."""
    from panoramic.reduction.grizli_parameters import validate_parameters as validate_grizli
    from panoramic.reduction.native.parameters import validate_parameters as validate_native

    validate = {"grizli": validate_grizli, "native": validate_native}
    rules = survey.reduction
    validate[rules.engine](rules.parameters)
    for override in rules.overrides:
        engine = override.engine or rules.engine
        validate[engine](({} if engine != rules.engine else rules.parameters) | override.parameters)


def ensure_archive(home: Home, survey: Survey, tell: Callable[[str], None] | None = None) -> None:
    """Write the simulated archive where the survey has one and it is not there yet."""
    if isinstance(survey.archive, SimulatedArchive):
        from panoramic.simulate.archive import simulate_archive

        # two first runs at once: the second waits, then finds the archive there
        tell = tell or say
        with field_lock("archive", home.path / "locks", on_wait=tell):
            simulate_archive(survey.archive.simulation, home.path / "archive", progress=tell, workers=2)


def say(message: str) -> None:
    """One line of progress with the time."""
    console.print(f"[dim]{datetime.now():%H:%M:%S}[/] {escape(message)}")


def opened() -> Home:
    """The home, which must have a survey already."""
    home = open_home()
    if not home.survey_file.exists():
        raise InputError(f"{home.path} holds no survey yet: start with `panoramic run`, or set PANORAMIC_HOME")
    home.database.migrate()
    return home
