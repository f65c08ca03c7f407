"""What a person decides on an association: ``panoramic accept``, ``panoramic reject``.

Put here options and printing. Keep out what a judgement does to a verdict (`panoramic/alignment.py`).
"""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from panoramic.alignment import Judgement, Status, overruled
from panoramic.errors import InputError
from panoramic_assets.console import opened, refusing, say
from panoramic_assets.reducing import settle_verdict
from resources.database import now

AssociationArgument = Annotated[str, typer.Argument(help="Name of the association.")]
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept with your name and the date.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(accept)
    app.command()(reject)


def accept(association: AssociationArgument, reason: ReasonOption) -> None:
    """Accept an association against its numbers, until its data change."""
    _judge(association, "accepted", reason)


def reject(association: AssociationArgument, reason: ReasonOption) -> None:
    """Hold an association back against its numbers, until its data change."""
    _judge(association, "held_back", reason)


def _judge(name: str, decision: Status, reason: str) -> None:
    with refusing():
        home = opened()
        if not reason.strip():
            raise InputError("a judgement needs a reason: --reason TEXT")
        association = home.database.association(name)
        stored = home.database.reduction(name)
        if decision == "accepted" and (stored is None or not stored[1].exposures):
            raise InputError(f"{name} has no calibrated exposures that could be accepted")
        judgement = Judgement(decision, reason.strip(), getpass.getuser(), f"{now():%Y-%m-%d}")
        home.database.put_judgement(association, judgement)
        if stored is not None:
            settle_verdict(home, association, stored, overruled(stored.verdict, judgement))
        say(f"{name}: {judgement}")
        say(f"`panoramic run --field {association.field}`, or the next look at the archive, takes it up")
