"""Fields, associations and exposures that a team has already, taken over with their names.

Put here what rows of the team's own tables mean, and what contradicts what. Keep out where the rows come from and where
they go (``resources``).

The columns are those that grizli's users know: ``fields`` (name or field; ra, dec or ra_deg, dec_deg), ``assoc_table``
(assoc_name, parent, dataURL, status, ...; a row per association or one per exposure), ``exposure_files`` (file or
dataset; assoc). Further columns are ignored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from panoramic.associations import index_of
from panoramic.errors import ArchiveRowError, InputError
from panoramic.footprints import mean_position, parse_s_region
from panoramic.observations import is_null, split_filename
from panoramic.survey import DETECTORS

Row = Mapping[str, Any]
FIELD_NAME = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")


@dataclass
class AdoptedAssociation:
    """An association as the team's table has it; what the table does not say stays at its default."""

    name: str
    field: str
    status: int
    row: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass
class Adoption:
    """What is taken over: positions (RA, Dec in deg) by field, associations by name, association by dataset.

    ``kin`` gives the program and detector that all exposures of an association share.
    """

    fields: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    associations: dict[str, AdoptedAssociation] = dataclasses.field(default_factory=dict)
    members: dict[str, str] = dataclasses.field(default_factory=dict)
    exposures: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    kin: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


def adopt(
    fields: tuple[str, Iterable[Row]] | None,
    associations: tuple[str, Iterable[Row]] | None,
    exposures: tuple[str, Iterable[Row]] | None,
) -> Adoption:
    """Read a team's tables; each is its source (for messages) and its rows, or None.

    Raises
    ------
    ArchiveRowError
        Table, row and column of what can't be used: a name without index, a dataset in two associations, a field
        without position, a name that is no exposure's.
    InputError
        There is nothing at all.
    """
    adoption = Adoption()
    for source, rows in (fields,) if fields else ():
        for number, row in enumerate(rows, start=1):
            _take_field(adoption, source, number, row)
    for source, rows in (associations,) if associations else ():
        for number, row in enumerate(rows, start=1):
            _take_association(adoption, source, number, row)
    for source, rows in (exposures,) if exposures else ():
        for number, row in enumerate(rows, start=1):
            _take_exposure(adoption, source, number, row)
    if not adoption.fields and not adoption.associations:
        raise InputError("there is nothing to adopt: no field and no association in the tables")
    _place_fields(adoption)
    return adoption


def _first(row: Row, *columns: str) -> Any:
    return next((row[c] for c in columns if c in row and not is_null(row[c])), None)


def _outline(text: str) -> None:
    """Refuse a footprint that can't be read; "0" stands for none."""
    if text != "0":
        parse_s_region(text)


def _required(row: Row, source: str, number: int, *columns: str) -> str:
    value = _first(row, *columns)
    if value is None:
        raise ArchiveRowError(source, number, columns[0], "is empty or absent; " + " or ".join(columns) + " is needed")
    return str(value).strip()


def _take_field(adoption: Adoption, source: str, number: int, row: Row) -> None:
    name = _required(row, source, number, "name", "field").lower()
    if not FIELD_NAME.match(name):
        raise ArchiveRowError(source, number, "name", f"{name!r} is no name of a field")
    try:
        ra, dec = (float(_required(row, source, number, c, f"{c}_deg")) for c in ("ra", "dec"))
    except ValueError as error:
        raise ArchiveRowError(source, number, "ra, dec", f"no number: {error}") from error
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise ArchiveRowError(source, number, "ra, dec", f"{ra}, {dec} is not on the sky (degrees)")
    old = adoption.fields.get(name)
    if old is not None and not np.allclose(old, (ra, dec), atol=1e-4):
        raise ArchiveRowError(source, number, "name", f"field {name} is listed twice with different positions")
    adoption.fields[name] = (ra % 360.0, dec)


def _take_association(adoption: Adoption, source: str, number: int, row: Row) -> None:
    name = _required(row, source, number, "assoc_name", "assoc").lower()
    try:
        index_of(name)
    except InputError as error:
        raise ArchiveRowError(source, number, "assoc_name", str(error)) from error
    parent = str(_first(row, "parent") or name.split("_", 1)[0]).strip().lower()
    try:
        status = int(float(_first(row, "status") or 0))
    except (ValueError, OverflowError) as error:
        raise ArchiveRowError(source, number, "status", f"{row['status']!r} is no whole number") from error
    for column, read in (("footprint", _outline), ("ra", float), ("dec", float)):
        try:
            read(str(_first(row, column) or "0"))
        except (InputError, ValueError) as error:
            raise ArchiveRowError(source, number, column, f"{row[column]!r} can't be read: {error}") from error
    known = adoption.associations.setdefault(
        name, AdoptedAssociation(name, parent, status, {k: v for k, v in row.items() if not is_null(v)})
    )
    if known.field != parent:
        raise ArchiveRowError(source, number, "parent", f"{name} is in {known.field} and in {parent}")
    for url in str(_first(row, "dataURL", "dataURI", "dataurl", "datauri") or "").split(","):
        if url.strip():
            _take_member(adoption, source, number, "dataURL", url, name)


def _take_exposure(adoption: Adoption, source: str, number: int, row: Row) -> None:
    dataset_column = "file" if not is_null(row.get("file")) else "dataset"
    name = _required(row, source, number, "assoc", "assoc_name").lower()
    if name not in adoption.associations:
        _take_association(adoption, source, number, {"assoc_name": name})
    dataset = _take_member(
        adoption, source, number, dataset_column, _required(row, source, number, "file", "dataset"), name
    )
    adoption.exposures[dataset] = {k: v for k, v in row.items() if not is_null(v)}


def _take_member(adoption: Adoption, source: str, number: int, column: str, text: str, association: str) -> str:
    """Put a dataset into an association; the dataset's own name comes from a file name, a path or an archive URI."""
    filename = text.strip().rsplit("/", 1)[-1]
    try:
        dataset = split_filename(filename)["dataset"].lower()
    except InputError:
        try:  # the table may have the dataset without a product suffix
            dataset = split_filename(f"{filename}_rate")["dataset"].lower()
        except InputError as error:
            raise ArchiveRowError(source, number, column, str(error)) from error
    parts = split_filename(f"{dataset}_rate")
    if parts["detector"].upper() not in DETECTORS:
        raise ArchiveRowError(source, number, column, f"{dataset} is of no NIRCam imaging detector")
    kin = adoption.kin.setdefault(association, (parts["program"], parts["detector"]))
    if kin != (parts["program"], parts["detector"]):
        raise ArchiveRowError(
            source, number, column,
            f"{dataset} is of another program or detector than the others of {association} ({kin[0]}, {kin[1]})",
        )  # fmt: skip
    old = adoption.members.setdefault(dataset, association)
    if old != association:
        raise ArchiveRowError(source, number, column, f"{dataset} is in {old} and in {association}")
    return dataset


def _place_fields(adoption: Adoption) -> None:
    """Give each association's field a position: of the table of fields, else the mean of its associations."""
    found: dict[str, list[tuple[float, float]]] = {}
    for association in adoption.associations.values():
        if association.field in adoption.fields:
            continue
        found.setdefault(association.field, [])
        row = association.row
        if not is_null(row.get("footprint")):
            found[association.field].append(mean_position(parse_s_region(str(row["footprint"]))))
        elif not is_null(row.get("ra")) and not is_null(row.get("dec")):
            found[association.field].append((float(row["ra"]), float(row["dec"])))
    for dataset, row in adoption.exposures.items():
        name = adoption.associations[adoption.members[dataset]].field
        if name in found and not is_null(row.get("footprint")):
            found[name].append(mean_position(parse_s_region(str(row["footprint"]))))
    for name, positions in found.items():
        if not positions:
            example = next(a.name for a in adoption.associations.values() if a.field == name)
            raise InputError(
                f"the field {name} (of {example}) has no position: list it in the table of fields (name, ra, dec)"
            )
        adoption.fields[name] = mean_position(np.array(positions))
