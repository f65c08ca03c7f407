"""The command line: ``panoramic run``, ``simulate``, ``ui``.

Put here what starts work. Keep out questions (`cli_questions.py`), discovery (`cli_discovery.py`) and decisions: those
are the checks'.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from panoramic.errors import InputError
from panoramic.simulate.program import Simulation
from panoramic.survey import SimulatedArchive, Survey
from panoramic_assets import cli_discovery, cli_judging, cli_questions
from panoramic_assets.console import (
    ArchiveOption,
    FieldOption,
    SurveyOption,
    choose_survey,
    console,
    ensure_archive,
    open_home,
    refusing,
    say,
)
from resources.home import SIMULATED_SURVEY, Home

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0]
)


@app.command()
def simulate(
    path: Annotated[Path | None, typer.Argument(help="Folder to write; by default the home's archive.")] = None,
    survey: SurveyOption = None,
    seed: Annotated[int | None, typer.Option(help="Another sky and other noise.")] = None,
    serve: Annotated[bool, typer.Option(help="Then put it behind MAST's protocol, until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Port of that server.")] = 8765,
) -> None:
    """Write the simulated archive: exposures, CRDS cache, reference catalogues, truth; or serve it as MAST would."""
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
        if serve:
            from panoramic.simulate.server import serve_archive

            serve_archive(folder, port=port, announce=lambda url: _tell_how(chosen, simulation, folder, url))


def _tell_how(survey: Survey, simulation: Simulation, folder: Path, url: str) -> None:
    """Write the survey file of a served archive, and say how it is used."""
    target = folder / "served.yaml"
    settings = survey.model_dump(mode="json", exclude_defaults=True) | {
        "name": f"{survey.name}.served",
        "programs": [simulation.program],
        "archive": {"kind": "mast", "url": url, "companions": str(folder.resolve())},
    }
    target.write_text(yaml.safe_dump(settings, sort_keys=False))
    say(f"MAST's protocol at {url}; Ctrl-C ends it. In another shell:")
    console.print(f"  PANORAMIC_HOME=./served panoramic run --survey {target}", markup=False)


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
            table.add_row(check.asset, name, Text(check.word, style), check.summary, check.value, check.limit)
        console.print(table if outcome.checks else str(table.title), markup=False)
        for error in outcome.errors:
            console.print(error, style="red", markup=False)
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
    with refusing(), socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port} can't be used ({error.strerror}): choose another with --port") from error
    say(f"http://{host}:{port}/asset-groups shows the stages; Ctrl-C ends it")
    os.execv(str(Path(sys.executable).with_name("dagster")), arguments)  # noqa: S606 - our own interpreter's program


cli_discovery.register(app)
cli_judging.register(app)
cli_questions.register(app)

if __name__ == "__main__":
    app()
