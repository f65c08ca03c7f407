"""Discovery from the command line: ``panoramic ingest``, ``adopt``, ``release-group``.

Put here options and printing. Keep out what an ingest or an adoption does.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import getpass
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from panoramic.completeness import Group
from panoramic.errors import InputError, UnknownNameError
from panoramic.survey import Survey
from panoramic_assets.console import (
    ArchiveOption,
    SurveyOption,
    choose_survey,
    console,
    ensure_archive,
    open_home,
    opened,
    refusing,
    say,
)
from resources.archive import make_archive
from resources.database import Database, now
from resources.home import Home


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(ingest)
    app.command()(adopt)
    app.command("release-group")(release_group)


def ingest(
    survey: SurveyOption = None,
    archive: ArchiveOption = None,
    rows: Annotated[
        Path | None, typer.Option(help="Saved archive rows (CSV, ECSV, VOTable; gzipped or not) instead of a look.")
    ] = None,
    at: Annotated[str, typer.Option(help="Date of the look (UTC, ISO 8601); by default now.")] = "",
    complete: Annotated[
        bool, typer.Option(help="The rows are all that the archive has of the survey: what is not there is gone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Tell what would change, and change nothing.")] = False,
) -> None:
    """Look at the archive, or replay saved rows of it, and write down what is there; no FITS file is needed."""
    from panoramic_assets.ingest import ingest as take_in
    from panoramic_assets.replay import parse_date, report_lines, saved_look
    from panoramic_assets.running import settled_look

    tell = _to_stderr if as_json else say
    with refusing(as_json):
        home = open_home()
        moment = parse_date(at) if at else datetime.now(UTC).replace(tzinfo=None)
        if rows is None and (at or complete):
            raise InputError("--at and --complete belong to --rows FILE: a look at the archive is made now")
        if rows is not None and survey is None and archive is None and not home.survey_file.exists():
            raise InputError("whose rows are these? name a survey file: --survey FILE")
        chosen = choose_survey(home, survey, archive)
        look = saved_look(rows, complete) if rows is not None else None
        with tempfile.TemporaryDirectory() as scratch:
            database = _rehearsal(home, chosen, Path(scratch)) if dry_run else home.database
            if not dry_run:
                home.prepare(chosen)
            if look is None:
                if not dry_run:
                    ensure_archive(home, chosen, tell)
                place = home.path if home.path.exists() else Path(scratch)
                look = settled_look(make_archive(chosen, place, home.mast_token), tell)
            report = take_in(database, chosen, look, moment, dry_run=dry_run)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(report), indent=1))
        else:
            for line in report_lines(report):
                console.print(line, markup=False)
        if not dry_run:
            from dagster import DagsterInstance

            from panoramic_assets.reporting import report as tell_dagster

            with DagsterInstance.get() as instance:
                tell_dagster(home.database, instance)


def _to_stderr(message: str) -> None:
    """Progress where the standard output belongs to a program."""
    typer.echo(message, err=True)


def _rehearsal(home: Home, survey: Survey, scratch: Path) -> Database:
    """A copy of the home's database, or an empty one; a server's own, in which what is done is taken back."""
    if home.has_database and not home.database.is_file:
        home.database.refuse_other(survey.name)
        return home.database
    copy = scratch / "rehearsal.db"
    if home.has_database:
        home.database.copy_to(copy)
    database = Database(f"sqlite:///{copy}")
    database.migrate()
    database.refuse_other(survey.name)
    return database


def adopt(
    fields: Annotated[Path | None, typer.Option(help="CSV: name (or field), ra, dec.")] = None,
    associations: Annotated[Path | None, typer.Option(help="CSV: assoc_name, parent, dataURL, status, ...")] = None,
    exposures: Annotated[Path | None, typer.Option(help="CSV: file (or dataset), assoc.")] = None,
    database: Annotated[str, typer.Option(help="URL of a database with these tables, instead of files.")] = "",
    survey: SurveyOption = None,
) -> None:
    """Take over the fields, associations and exposures that a team has, before the first ingest; names stay."""
    from panoramic.adoption import adopt as read_tables
    from resources.adoption import read_csv, read_database, write_adoption

    with refusing():
        home = open_home()
        if database and (fields or associations or exposures):
            raise InputError("adopt from files or from a database, not from both")
        tables = read_database(database) if database else [read_csv(path) for path in (fields, associations, exposures)]
        if not any(tables):
            raise InputError("name the tables: --fields, --associations, --exposures (CSV), or --database URL")
        adoption = read_tables(*tables)
        home.prepare(choose_survey(home, survey, None))
        n_fields, n_associations, n_exposures = write_adoption(home.database, adoption)
        say(f"adopted {n_fields} fields, {n_associations} associations, {n_exposures} exposures")


def release_group(
    group: Annotated[str, typer.Argument(help="VISIT_ACTIVITY_FILTER_PUPIL_DETECTOR as the checks name it; * fits.")],
    reason: Annotated[str, typer.Option(help="Why the incomplete group may be reduced; it is kept.")],
) -> None:
    """Let an incomplete group go on with the exposures that it has."""
    with refusing():
        home = opened()
        if not reason.strip():
            raise InputError("a release needs a reason: --reason TEXT")
        held = held_groups(home)
        chosen = [g for name, g in held.items() if fnmatch.fnmatch(name.upper(), group.upper())]
        if not held:
            raise InputError("no group waits: there is nothing to release")
        if not chosen:
            raise UnknownNameError("held-back group", group, held)
        home.database.release_groups(chosen, reason.strip(), getpass.getuser(), now())
        for one in chosen:
            say(f"released {'_'.join(one)}: {reason.strip()}")
        say("it is taken up at the next look at the archive: `panoramic run`, or the sensor while `panoramic ui` runs")


def held_groups(home: Home) -> dict[str, Group]:
    """Groups of the survey that wait although they have an exposure, by name."""
    from panoramic_assets.observations import completeness_of

    return {
        "_".join(group): group
        for name in home.database.field_names()
        for group, verdict in completeness_of(home, name).groups.items()
        if verdict.present and not verdict.ready
    }
