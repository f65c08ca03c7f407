"""Names that a team has already are taken over as they are; what contradicts itself is refused at the door."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import sqlalchemy as sa

from panoramic.adoption import adopt
from panoramic.errors import ArchiveRowError, ConflictError, InputError
from resources import tables as t
from resources.adoption import read_csv, read_database, write_adoption
from resources.database import Database, now

FIELDS = [{"field": "j100032p0208", "ra_deg": "150.13", "dec_deg": "2.14"}]
ONE = "j100032p0208_v162-2514-f444w_00031"
URL = "mast:JWST/product/jw02514162001_03201_0000{}_nrcalong_rate.fits"


def tables(fields=None, associations=None, exposures=None):
    return adopt(*(("t.csv", rows) if rows is not None else None for rows in (fields, associations, exposures)))


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'survey.db'}")
    database.migrate()
    return database


def test_a_row_for_each_exposure_or_one_with_all() -> None:
    many = [{"assoc_name": ONE, "dataURL": URL.format(k)} for k in (1, 2, 3)]
    one = [{"assoc_name": ONE, "dataURL": ",".join(URL.format(k) for k in (1, 2, 3))}]
    assert tables(FIELDS, many).members == tables(FIELDS, one).members
    assert len(tables(FIELDS, many).members) == 3
    assert tables(FIELDS, many).associations[ONE].field == "j100032p0208"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"fields": [{"field": "j1", "ra": "400", "dec": "0"}]}, "not on the sky"),
        ({"fields": [{"field": "j1", "ra": "x", "dec": "0"}]}, "no number"),
        ({"fields": [{"field": "j1", "ra": "1"}]}, "dec_deg is needed"),
        ({"fields": [*FIELDS, {"field": "j100032p0208", "ra": "1", "dec": "2"}]}, "row 2.*different positions"),
        ({"fields": FIELDS, "associations": [{"assoc_name": "j100032p0208_f444w"}]}, "five-digit index"),
        ({"fields": FIELDS, "associations": [{"assoc_name": ONE, "dataURL": "picture.png"}]}, "no name of a JWST"),
        (
            {"fields": FIELDS, "associations": [{"assoc_name": f"j100032p0208_x_0000{k}", "dataURL": URL.format(1)}
                                                for k in (1, 2)]},
            "row 2.*is in j100032p0208_x_00001 and in j100032p0208_x_00002",
        ),
        ({"fields": FIELDS, "associations": [{"assoc_name": ONE, "parent": p} for p in ("a", "b")]}, "in a and in b"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_with_their_row(given, what) -> None:
    with pytest.raises(ArchiveRowError, match=what):
        tables(**given)


def test_a_field_without_position_is_named() -> None:
    with pytest.raises(InputError, match=r"j100032p0208 .* has no position"):
        tables(associations=[{"assoc_name": ONE}])
    with pytest.raises(InputError, match="nothing to adopt"):
        tables(fields=[])


def test_positions_come_from_footprints_where_there_is_no_table_of_fields() -> None:
    outline = "POLYGON ICRS 359.99 2.0 0.01 2.0 0.01 2.02 359.99 2.02"
    ra, dec = tables(associations=[{"assoc_name": ONE, "footprint": outline}]).fields["j100032p0208"]
    assert abs((ra + 180) % 360 - 180) < 1e-6
    assert dec == pytest.approx(2.01, abs=1e-3)


def test_adopting_twice_changes_nothing(database: Database) -> None:
    adoption = tables(FIELDS, [{"assoc_name": ONE, "dataURL": URL.format(1), "status": "2"}])
    assert write_adoption(database, adoption) == (1, 1, 1)
    assert write_adoption(database, adoption) == (1, 1, 1)
    with database.read() as connection:
        (row,) = connection.execute(sa.select(t.assoc_table)).mappings()
        assert (row["assoc_name"], row["status"], row["proposal_id"], row["detector"]) == (ONE, 2, 2514, "NRCALONG")
        assert connection.scalar(sa.select(sa.func.count()).select_from(t.exposure_files)) == 1


def test_after_an_ingest_it_is_too_late(database: Database, make_exposure) -> None:
    write_adoption(database, tables(FIELDS))
    with database.write() as connection:
        database.put_exposures(connection, [(make_exposure(), 1, "j100032p0208")], now())
    with pytest.raises(ConflictError, match="before the first ingest"):
        write_adoption(database, tables(FIELDS))


def test_files_and_a_database_give_the_same(tmp_path: Path) -> None:
    rows = [{"assoc_name": ONE, "parent": "j100032p0208", "dataURL": URL.format(1), "status": 2}]
    path = tmp_path / "assoc.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    url = f"sqlite:///{tmp_path / 'team.db'}"
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE assoc_table (assoc_name, parent, dataURL, status, footprint)")
        connection.exec_driver_sql("INSERT INTO assoc_table VALUES (?, ?, ?, ?, NULL)", tuple(rows[0].values()))
        connection.exec_driver_sql("CREATE TABLE fields (name, ra, dec)")
        connection.exec_driver_sql("INSERT INTO fields VALUES ('j100032p0208', 150.13, 2.14)")
    from_files = adopt(("f", FIELDS), read_csv(path), None)
    from_database = adopt(*read_database(url))
    assert from_files.members == from_database.members
    assert from_files.fields == from_database.fields
    with pytest.raises(InputError, match="none of the tables"):
        read_database(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(InputError, match="can't be read"):
        read_database("nonsense")
    with pytest.raises(InputError, match="can't be read"):
        read_csv(tmp_path / "absent.csv")
