"""Questions of the command line: ``panoramic fields``, ``associations``, ``status``, ``explain``.

Put here printing of what is known. Keep out anything that changes something.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from panoramic_assets.console import console, opened, refusing
from resources.home import Home


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (fields, associations, status, explain):
        app.command()(command)


def fields(
    picture: Annotated[Path | None, typer.Option("--map", help="Draw all fields on the sky into this PNG.")] = None,
) -> None:
    """List the survey's fields, or draw them on the sky."""
    with refusing():
        home = opened()
        if picture is not None:
            from panoramic.plots import plot_field_map

            everything = {n: home.database.exposures(n) for n in home.database.field_names()}
            plot_field_map(picture, home.survey.name, {n: [e.vertices for e in v] for n, v in everything.items() if v})
            console.print(f"{len(everything)} fields in {picture}", markup=False)
            return
        columns = ("field", escape("RA [deg]"), escape("Dec [deg]"), "exposures", "associations")
        table = Table(*columns, "done", "held back", "mosaics")
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


def associations(field: str) -> None:
    """List a field's associations, with their numbers."""
    with refusing():
        home = opened()
        home.database.field(field)
        table = Table(
            Column("association", overflow="fold"),
            "filter",
            "detector",
            "exposures",
            "status",
            escape("RMS [px]"),
            "reference",
            "N",
            escape("error [mas]"),
            "cause",
        )
        from panoramic_assets.explaining import association_numbers

        for row in home.database.association_rows(field):
            numbers = association_numbers(home, row["assoc_name"])
            cause = escape(row["cause"].partition("\n")[0])
            table.add_row(
                row["assoc_name"], row["filter"], row["detector"],
                str(len(list(filter(None, row["dataURL"].split(","))))), str(row["status"]),
                numbers["rms"], numbers["reference"], numbers["n"], numbers["error"], cause,
            )  # fmt: skip
        console.print(table)
        console.print("status: 70 waits for exposures, 0 queued, 1 running, 2 done, 9 alignment failed, 10 no data")
        console.print(visit_table(home, field))


def visit_table(home: Home, field: str) -> Table:
    """What each visit of a field has and lacks."""
    from panoramic_assets.observations import visit_rows

    table = Table("visit", "exposures", "filters", "detectors", "groups waiting", "lacks", title="visits")
    for row in visit_rows(home, field):
        table.add_row(
            *(escape(str(row[c])) for c in ("visit", "exposures", "filters", "detectors", "waiting", "lacks"))
        )
    return table


def status() -> None:
    """What the survey has, what is wrong in its archive, and which runs are under way."""
    with refusing():
        home = opened()
        console.print(f"survey {home.survey.name} in {home.path}")
        from panoramic_assets.explaining import unfinished_runs, unreleased

        names = home.database.field_names()
        console.print(f"{len(names)} fields, {sum(len(home.database.exposures(n)) for n in names)} exposures")
        with home.database.read() as connection:
            refusals = Counter(home.database.refusals(connection).values())
        if waiting := unreleased(home):
            console.print(f"  {waiting}", markup=False)
        for reason, count in refusals.most_common():
            console.print(f"  refused: {reason}: {count}", markup=False)
        for fault in home.database.faults():
            console.print(f"  archive: {fault['name']}: {fault['reason']} ({fault['kind']})", markup=False)
        for line in unfinished_runs():
            console.print(f"  {line}", markup=False)


def explain(field: str) -> None:
    """Why is this field not finished, or what does its product lack?"""
    with refusing():
        home = opened()
        home.database.field(field)
        from panoramic_assets.explaining import explain_field

        for line in explain_field(home, field):
            console.print(line, markup=False)
