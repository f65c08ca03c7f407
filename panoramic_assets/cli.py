"""The command line: ``panoramic run``, ``simulate``, ``ui``, ``status``, ``fields``, ``associations``, ``explain``.

Put here options and printing. Keep out decisions: they are the checks'.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from panoramic.errors import InputError, PanoramicError
from panoramic.survey import FolderArchive, SimulatedArchive, Survey
from resources.home import SIMULATED_SURVEY, Home, home_from_environment, survey_of_folder

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0]
)
console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)

SurveyOption = Annotated[
    Path | None, typer.Option("--survey", help="Survey file; by default the home's own, else the simulated one.")
]
ArchiveOption = Annotated[Path | None, typer.Option("--archive", help="A folder of NIRCam rate files to work on.")]
FieldOption = Annotated[list[str] | None, typer.Option("--field", help="Only this field; may be given several times.")]


@contextmanager
def refusing() -> Iterator[None]:
    """Turn typed errors into one line and an exit code: 2 for bad input, 1 for what may be better later."""
    try:
        yield
    except PanoramicError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from error


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
    elif home.survey_file.exists():
        survey = home.survey
    elif archive is not None:
        survey = survey_of_folder(archive)
    else:
        survey = Survey.load(SIMULATED_SURVEY)
    check_parameters(survey)
    if archive is not None:
        survey = survey.model_copy(update={"archive": FolderArchive(kind="folder", path=archive.resolve())})
    return survey


def check_parameters(survey: Survey) -> None:
    """Refuse engine parameters that the engine does not know, before anything runs."""
    from panoramic.reduction.grizli_parameters import validate_parameters

    validate_parameters(survey.reduction.parameters)
    for override in survey.reduction.overrides:
        validate_parameters(survey.reduction.parameters | override.parameters)


def ensure_archive(home: Home, survey: Survey) -> None:
    """Write the simulated archive where the survey has one and it is not there yet."""
    if isinstance(survey.archive, SimulatedArchive):
        from panoramic.simulate.archive import simulate_archive

        simulate_archive(survey.archive.simulation, home.path / "archive", progress=say, workers=2)


def say(message: str) -> None:
    """One line of progress with the time."""
    console.print(f"[dim]{datetime.now():%H:%M:%S}[/] {message}")


@app.command()
def simulate(
    path: Annotated[Path | None, typer.Argument(help="Folder to write; by default the home's archive.")] = None,
    survey: SurveyOption = None,
    seed: Annotated[int | None, typer.Option(help="Another sky and other noise.")] = None,
) -> None:
    """Write the simulated archive: exposures, CRDS cache, reference catalogues, truth."""
    from panoramic.simulate.archive import simulate_archive

    with refusing():
        home = open_home()
        chosen = Survey.load(survey or SIMULATED_SURVEY)
        if not isinstance(chosen.archive, SimulatedArchive):
            raise InputError(f"the survey {chosen.name} has no simulated archive (archive: kind: simulated)")
        simulation = chosen.archive.simulation
        if seed is not None:
            simulation = simulation.model_copy(update={"seed": seed})
        folder = path or home.path / "archive"
        simulate_archive(simulation, folder, progress=say, workers=2)
        say(f"the archive is in {folder}")


@app.command()
def run(
    survey: SurveyOption = None,
    archive: ArchiveOption = None,
    field: FieldOption = None,
    verify: Annotated[bool, typer.Option(help="Read all bytes of stored products before they are reused.")] = False,
) -> None:
    """Take every field (or the named ones) through all stages, and print what was made and every check."""
    logging.getLogger("dagster").setLevel(logging.ERROR)
    with refusing():
        home = open_home()
        chosen = choose_survey(home, survey, archive)
        say(f"survey {chosen.name} in {home.path}")
        home.prepare(chosen)
        from panoramic_assets import running

        ensure_archive(home, chosen)
        fields = running.take_in(home, field or [], say)
        free_dead_runs()
        started = time.monotonic()
        outcomes = [running.run_or_name(home, name, say, verify) for name in fields]
        _print_outcomes(home, outcomes, time.monotonic() - started)
    if not all(outcome.reached_last_stage for outcome in outcomes):
        raise typer.Exit(1)


def free_dead_runs() -> None:
    """Report runs failed whose process is gone, so that their fields are free."""
    from dagster import DagsterInstance

    from sensors.stuck_runs import reap

    with DagsterInstance.get() as instance:
        for run_id in reap(instance):
            say(f"run {run_id[:8]} of an earlier process was left unfinished; it is reported failed and done again")


def _print_outcomes(home: Home, outcomes: list[Any], seconds: float) -> None:
    for outcome in outcomes:
        table = Table(title=f"{outcome.field}: {outcome.state} in {outcome.seconds:.0f} s", title_justify="left")
        for column in ("stage", "check", "result", "what was found", "value", "limit"):
            table.add_column(column, overflow="fold")
        for check in outcome.checks:
            style = {"passed": "green", "warned": "yellow", "failed": "bold red"}[check.word]
            name = check.name + (" (blocking)" if check.blocking else "")
            table.add_row(check.asset, name, f"[{style}]{check.word}[/]", check.summary, check.value, check.limit)
        console.print(table)
        for error in outcome.errors:
            console.print(f"[red]{error}[/]")
        for path in outcome.products:
            console.print(f"  {path}", markup=False)
    from panoramic_assets.running import peak_mib

    largest = peak_mib(home, [outcome.field for outcome in outcomes])
    say(f"{len(outcomes)} fields in {seconds:.0f} s, largest step {largest:.0f} MiB; `panoramic ui` shows it all")


@app.command()
def ui(
    survey: SurveyOption = None,
    archive: ArchiveOption = None,
    port: Annotated[int, typer.Option(help="Port of the web server.")] = 3000,
    host: Annotated[str, typer.Option(help="Address of the web server.")] = "127.0.0.1",
) -> None:
    """Start Dagster's web server and daemon on the same data; new files in the archive become mosaics by themselves."""
    with refusing():
        home = open_home()
        chosen = choose_survey(home, survey, archive)
        home.prepare(chosen)
        ensure_archive(home, chosen)
    workspace = Path(__file__).resolve().parent.parent / "workspace.yaml"
    arguments = ["dagster", "dev", "-w", str(workspace), "-h", host, "-p", str(port)]
    say(f"http://{host}:{port}")
    os.execv(str(Path(sys.executable).with_name("dagster")), arguments)  # noqa: S606 - our own interpreter's program


@app.command()
def ingest(survey: SurveyOption = None, archive: ArchiveOption = None) -> None:
    """Look at the archive and write down what is there; no FITS pixel is touched and nothing is run."""
    with refusing():
        home = open_home()
        chosen = choose_survey(home, survey, archive)
        home.prepare(chosen)
        ensure_archive(home, chosen)
        from panoramic_assets import running

        running.take_in(home, [], say)


@app.command()
def fields() -> None:
    """List the survey's fields."""
    with refusing():
        home = opened()
        table = Table("field", "RA [deg]", "Dec [deg]", "exposures", "associations", "done", "held back", "mosaics")
        for name in home.database.field_names():
            row = home.database.field(name)
            rows = home.database.association_rows(name)
            table.add_row(
                name,
                f"{row['ra']:.5f}",
                f"{row['dec']:+.5f}",
                str(len([e for e in home.database.exposures(name) if not e.refused])),
                str(len(rows)),
                str(sum(r["status"] == 2 for r in rows)),
                str(sum(r["status"] in (9, 10, 70) for r in rows)),
                str(len(home.database.mosaics(name))),
            )
        console.print(table)


@app.command()
def associations(field: str) -> None:
    """List a field's associations, with their numbers."""
    with refusing():
        home = opened()
        home.database.field(field)
        table = Table(
            "association",
            "filter",
            "detector",
            "exposures",
            "status",
            "RMS [px]",
            "reference",
            "N",
            "error [mas]",
            "cause",
        )
        from panoramic_assets.running import association_numbers

        for row in home.database.association_rows(field):
            numbers = association_numbers(home, row["assoc_name"])
            table.add_row(
                row["assoc_name"], row["filter"], row["detector"],
                str(row["dataURL"].count(",") + 1), str(row["status"]),
                numbers["rms"], numbers["reference"], numbers["n"], numbers["error"], row["cause"],
            )  # fmt: skip
        console.print(table)
        console.print("status: 70 waits for exposures, 0 queued, 1 running, 2 done, 9 alignment failed, 10 no data")


@app.command()
def status() -> None:
    """What the survey has, what is wrong in its archive, and which runs are under way."""
    with refusing():
        home = opened()
        console.print(f"survey {home.survey.name} in {home.path}")
        from panoramic_assets.running import unfinished_runs

        names = home.database.field_names()
        console.print(f"{len(names)} fields, {sum(len(home.database.exposures(n)) for n in names)} exposures")
        for fault in home.database.faults():
            console.print(f"  archive: {fault['name']}: {fault['reason']} ({fault['kind']})", markup=False)
        for line in unfinished_runs():
            console.print(f"  {line}", markup=False)


@app.command()
def explain(field: str) -> None:
    """Why is this field not finished, or what does its product lack?"""
    with refusing():
        home = opened()
        home.database.field(field)
        from panoramic_assets.running import explain_field

        for line in explain_field(home, field):
            console.print(line, markup=False)


def opened() -> Home:
    """The home, which must have a survey already."""
    home = open_home()
    if not home.survey_file.exists():
        raise InputError(f"{home.path} holds no survey yet: start with `panoramic run`, or set PANORAMIC_HOME")
    home.database.migrate()
    return home


if __name__ == "__main__":
    app()
