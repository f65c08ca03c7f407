"""Reference catalogues: what is refused, how sources move, which of our own count."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from panoramic.errors import InputError
from panoramic.footprints import from_tangent_plane, unit_vectors
from panoramic.reference import (
    MAS,
    UNKNOWN_MOTION,
    at_epoch,
    cover_fraction,
    merge_own,
    move,
    read_catalog,
    select_own,
    sources_digest,
    standard_table,
    to_reference_sources,
    within,
    without_duplicates,
)
from panoramic.survey import SourceSelection

EGS = Path(__file__).parents[2].parent / "shared" / "data" / "ceers" / "egs_reference.ecsv"
ras, decs = st.floats(0, 359.999), st.floats(-90, 90)
motions = st.floats(-10_000, 10_000)


def apart_mas(ra1: np.ndarray, dec1: np.ndarray, ra2: np.ndarray, dec2: np.ndarray) -> np.ndarray:
    return np.linalg.norm(unit_vectors(ra1, dec1) - unit_vectors(ra2, dec2), axis=-1) / MAS


def catalog(**columns: object) -> Table:
    n = len(next(iter(columns.values())))  # type: ignore[arg-type]
    base = {"ra": np.linspace(10, 11, n), "dec": np.zeros(n), "mag": np.full(n, 20.0)}
    return Table(base | columns)


def square(ra: float, dec: float, size: float = 2.0, east: float = 0.0, north: float = 0.0) -> np.ndarray:
    corners = size / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + [east, north]
    return from_tangent_plane(corners.astype(float), (ra, dec))


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"ra": [10.0, np.nan]}, "row 2, column 'ra': nan is no RA in deg"),
        ({"ra": [10.0, 361.0]}, "row 2, column 'ra'"),
        ({"dec": [-90.5, 0.0, 95.0]}, r"row 1, column 'dec': -90.5 is no Dec in deg \(and 1 more rows\)"),
        ({"ra_error": [1.0, -3.0]}, "row 2, column 'ra_error'"),
        ({"pm_ra": [0.0, 5.0], "epoch": [np.nan, np.nan]}, "row 2, column 'epoch'"),
        ({"mag": ["20.1", "bright"]}, "row 2, column 'mag': .*bright.* is no number"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, columns: dict[str, list[float]], match: str) -> None:
    path = tmp_path / "LS_DR9.ecsv"
    catalog(**columns).write(path)
    with pytest.raises(InputError, match=match) as caught:
        read_catalog(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "can't be read as a table"),
        ("%ECSV", "can't be read as a table"),
        ("# %ECSV 1.0\n# ---\n# datatype: [\nra dec\n", "can't be read as a table"),
        ("\x89PNG\r\n\x1a\n\x00\x00\xff", "can't be read as a table"),
        (
            "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: ra, datatype: float64}\n# schema: astropy-2.0\nra\n1.0\n",
            "no column dec, mag",
        ),
        (
            "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: ra, datatype: float64}\n# - {name: dec, datatype: float64}\n"
            "# - {name: mag, datatype: float64}\n# schema: astropy-2.0\nra dec mag\n",
            "holds no source",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "GAIA.ecsv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=match) as caught:
        read_catalog(path)
    assert str(path) in str(caught.value)


def test_damaged_fits_and_unknown_kind(tmp_path: Path) -> None:
    for name, match in (("a.fits", "can't be read as a table"), ("a.txt", "is one of .ecsv")):
        (tmp_path / name).write_bytes(b"nothing of the sort" * 100)
        with pytest.raises(InputError, match=match):
            read_catalog(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_catalog(tmp_path / "absent.fits")


def test_units_case_and_empty_cells() -> None:
    table = Table(
        {
            "RA": np.ma.array([1.0, 2.0], mask=[False, False]) * 1.0,
            "Dec": [0.1, -0.1],
            "MAG": np.ma.array([20.0, 0.0], mask=[False, True]),
            "ra_error": [0.01, 0.02],
            "pm_ra": np.ma.array([3.0, 0.0], mask=[False, True]),
            "epoch": [2016.0, 2016.0],
        }
    )
    table["Dec"].unit, table["ra_error"].unit = "rad", "arcsec"
    result = standard_table(table, "test")
    assert result["dec"][0] == pytest.approx(np.degrees(0.1))
    np.testing.assert_allclose(result["ra_error"], [10.0, 20.0])
    assert np.isnan(result["mag"][1])
    assert np.isnan(result["pm_ra"][1])
    assert np.isnan(result["dec_error"]).all()
    assert standard_table(Table({"ra": [-10.0], "dec": [0.0], "mag": [1.0]}), "t")["ra"][0] == 350.0
    table["Dec"].unit = "mag"
    with pytest.raises(InputError, match="'dec' is in mag"):
        standard_table(table, "test")


def test_a_real_catalogue_of_positions() -> None:
    if not EGS.exists():
        pytest.skip(f"the real catalogue is not at {EGS}")
    table = read_catalog(EGS)
    assert len(table) == 40408
    centre = (float(np.median(table["ra"])), float(np.median(table["dec"])))
    near = within(table, [square(*centre)])
    area = square(*centre)
    assert 20 < len(near) < 2000
    assert area[:, 1].min() <= near["dec"].min() <= near["dec"].max() <= area[:, 1].max()
    assert len(without_duplicates(near, 0.05)) <= len(near)
    sources = to_reference_sources(near, "EGS", 2022.5)
    assert len(sources) == len(near)
    assert np.isnan(sources.error_mas).all()


# --- motion ---------------------------------------------------------------------------------


@given(ra=ras, dec=decs, pm_ra=motions, pm_dec=motions, years=st.floats(-100, 100))
def test_moving_there_and_back_is_nothing(ra: float, dec: float, pm_ra: float, pm_dec: float, years: float) -> None:
    start = [np.array([v]) for v in (ra, dec, pm_ra, pm_dec)]
    there = move(*start, years)
    back = move(*there, -years)
    assert apart_mas(back[0], back[1], start[0], start[1])[0] < 1e-3
    assert np.hypot(there[2], there[3])[0] == pytest.approx(np.hypot(pm_ra, pm_dec), abs=1e-6)
    assert apart_mas(there[0], there[1], start[0], start[1])[0] == pytest.approx(
        np.hypot(pm_ra, pm_dec) * abs(years), rel=1e-4, abs=1e-3
    )


@settings(max_examples=40, deadline=None)
@given(ra=ras, dec=st.floats(-89.99, 89.99), pm_ra=motions, pm_dec=motions, years=st.floats(-50, 50))
def test_motion_agrees_with_astropy(ra: float, dec: float, pm_ra: float, pm_dec: float, years: float) -> None:
    coordinate = SkyCoord(
        ra * units.deg,
        dec * units.deg,
        pm_ra_cosdec=pm_ra * units.mas / units.yr,
        pm_dec=pm_dec * units.mas / units.yr,
        radial_velocity=0 * units.km / units.s,
        distance=1 * units.pc,
        obstime=Time(2016.0, format="jyear", scale="tdb"),
    )
    expected = coordinate.apply_space_motion(Time(2016.0 + years, format="jyear", scale="tdb"))
    new = move(*(np.array([v]) for v in (ra, dec, pm_ra, pm_dec)), years)
    # a straight line in space against a great circle: the third order of 10 arcsec/yr in 50 years is 2 mas
    assert apart_mas(new[0], new[1], np.array([expected.ra.deg]), np.array([expected.dec.deg]))[0] < 3.0


def test_a_source_crosses_the_pole() -> None:
    ra, dec, pm_ra, pm_dec = move(*(np.array([v]) for v in (10.0, 90.0 - 1e-5, 0.0, 3.6)), 20.0)
    assert ra[0] == pytest.approx(190.0)
    assert dec[0] == pytest.approx(90.0 - 1e-5, abs=1e-9)
    assert pm_dec[0] == pytest.approx(-3.6)
    assert pm_ra[0] == pytest.approx(0.0, abs=1e-3)


def test_only_moving_sources_move() -> None:
    table = standard_table(
        catalog(
            ra=[10.0, 20.0, 30.0],
            pm_ra=[1000.0, 0.0, np.nan],
            pm_dec=[np.nan, 0.0, np.nan],
            epoch=[2016.0, 2016.0, np.nan],
        ),
        "test",
    )
    moved = at_epoch(table, 2026.0)
    assert moved["ra"][0] == pytest.approx(10.0 + 10 / 3600)
    assert moved["epoch"][0] == 2026.0
    assert list(moved["ra"][1:]) == [20.0, 30.0]
    assert table["ra"][0] == 10.0
    sources = to_reference_sources(table, "GAIA", 2026.0)
    assert sources.ra[0] == moved["ra"][0]
    assert to_reference_sources(table, "GAIA").ra[0] == 10.0


# --- selection ------------------------------------------------------------------------------


@given(
    ra=ras, dec=decs, size=st.floats(0.5, 10), overlap=st.floats(0, 1), also=st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_cover_fraction_is_the_overlap(ra: float, dec: float, size: float, overlap: float, also: bool) -> None:
    own = square(ra, dec, size)
    covering = [square(ra, dec, size, east=size * (1 - overlap))]
    if also:
        covering += [covering[0], square(ra, dec, size, east=-30 * size)]  # counted once; elsewhere
    assert cover_fraction(own, covering) == pytest.approx(overlap, abs=1e-4)
    assert cover_fraction(own, []) == 0.0
    assert cover_fraction(own, [square(ra, dec, size / 2), own]) == pytest.approx(1.0)


@pytest.mark.parametrize("dec", [0.0, 89.999, -90.0])
def test_within_takes_the_margin(dec: float) -> None:
    places = from_tangent_plane(np.array([[0.0, 0.0], [1.05, 0.0], [0.0, -1.2]]), (359.9999, dec))
    table = Table({"ra": places[:, 0], "dec": places[:, 1], "mag": [1.0, 2.0, 3.0]})
    footprint = [square(359.9999, dec)]
    assert list(within(table, footprint)["mag"]) == [1.0]
    assert list(within(table, footprint, margin_arcsec=5.0)["mag"]) == [1.0, 2.0]
    assert list(within(table, [])["mag"]) == []


@pytest.mark.parametrize("dec", [0.0, 89.9999])
def test_duplicates_leave_the_best(dec: float) -> None:
    steps = np.array([0.0, 0.05, 0.09, 0.5]) / 60  # arcsec in arcmin
    places = from_tangent_plane(np.column_stack([steps, 0 * steps]), (0.0, dec))
    table = Table(
        {
            "ra": places[:, 0],
            "dec": places[:, 1],
            "mag": [20.0, 19, 18, 21],
            "ra_error": [5.0, 3, 9, np.nan],
            "dec_error": [5.0, 3, 9, np.nan],
        }
    )
    assert list(without_duplicates(table)["mag"]) == [19.0, 21.0]
    assert list(without_duplicates(table[::-1])["mag"]) == [21.0, 19.0]
    del table["ra_error"]
    assert list(without_duplicates(table)["mag"]) == [18.0, 21.0]
    assert len(without_duplicates(table[:1])) == 1


def own_catalog(n: int, rng: np.random.Generator) -> Table:
    flux = rng.uniform(0.1, 100, n)
    return Table(
        {
            "id": np.arange(n), "ra": 150 + rng.uniform(0, 0.03, n), "dec": 2 + rng.uniform(0, 0.03, n),
            "flux": flux, "flux_error": np.full(n, 0.05), "mag": 23.9 - 2.5 * np.log10(flux),
            "flux_radius": rng.uniform(0.5, 12, n), "flags": rng.integers(0, 3, n),
        }
    )  # fmt: skip


def test_our_own_sources_are_chosen_by_the_rule() -> None:
    table = own_catalog(6000, np.random.default_rng(1))
    table["mag"][:30] = 16.5
    table["ra"][30:33] = np.nan
    selection = SourceSelection()
    chosen = select_own(table, selection)
    assert len(chosen) == 1000
    assert (np.diff(chosen["mag"]) >= 0).all()
    assert (chosen["flags"] == 0).all()
    assert chosen["mag"].min() > 17
    assert np.isfinite(chosen["ra"]).all()
    assert ((chosen["flux_radius"] > 1) & (chosen["flux_radius"] < 10)).all()
    few = select_own(table[:200], selection)
    good = [
        r for r in table[33:200] if r["flags"] == 0 and 1 < r["flux_radius"] < 10 and r["flux"] > 20 * r["flux_error"]
    ]  # fmt: skip
    assert set(few["id"]) == {r["id"] for r in good}
    assert len(select_own(table[:0], selection)) == 0


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_overlapping_associations_give_one_row_per_object(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sky = own_catalog(60, rng)
    first, second = sky[:40].copy(), sky[20:].copy()
    second["dec"] += 20 / 3_600_000  # 20 mas apart
    second["flux_error"] *= 2
    merged = merge_own({"a": first, "b": second})
    assert len(merged) == 60
    assert sorted(merged["n"]) == [1] * 40 + [2] * 20
    both = merged[merged["n"] == 2]
    assert set(both["src"]) == {"a"}
    for row in both:
        shift = (row["dec"] - sky["dec"][np.argmin(np.hypot(sky["ra"] - row["ra"], sky["dec"] - row["dec"]))]) * 3.6e6
        assert shift == pytest.approx(20 * 1 / (1 + 4), abs=0.01)  # weights go with (S/N)^2
    again = merge_own({"b": second[::-1], "a": first[rng.permutation(40)]})
    for column in ("ra", "dec", "mag"):
        np.testing.assert_allclose(again[column], merged[column], rtol=0, atol=1e-12)
    assert list(again["src"]) == list(merged["src"])


def test_two_objects_of_one_association_stay_two() -> None:
    pair = own_catalog(2, np.random.default_rng(2))
    pair["ra"], pair["dec"] = 150.0, [2.0, 2.0 + 0.06 / 3600]
    merged = merge_own({"a": pair, "b": pair[:1], "c": pair[:0]})
    assert sorted(merged["n"]) == [1, 2]
    assert len(merge_own({"a": pair[:0]})) == 0


def test_the_digest_is_of_the_sources_and_not_of_their_order() -> None:
    table = standard_table(catalog(ra=[10.0, 10.1, 10.2], mag=[20.0, np.nan, 22.0]), "t")
    digest = sources_digest(to_reference_sources(table, "GAIA"))
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert sources_digest(to_reference_sources(table[::-1], "GAIA")) == digest
    assert sources_digest(to_reference_sources(table, "PS1")) != digest
    table["ra"][1] += 1e-8
    assert sources_digest(to_reference_sources(table, "GAIA")) != digest


def test_an_unknown_motion_makes_an_old_position_less_certain() -> None:
    rows = {"ra": [1.0, 1.1, 1.2], "dec": [2.0] * 3, "mag": [18.0] * 3, "ra_error": [10.0] * 3, "dec_error": [10.0] * 3}
    table = standard_table(Table(rows | {"pm_ra": [np.nan, 0.0, np.nan], "pm_dec": [np.nan, 0.0, np.nan],
                                         "epoch": [2016.0, 2016.0, np.nan]}), "made up")  # fmt: skip
    later = at_epoch(table, 2024.0)
    assert later["ra_error"][0] == pytest.approx(np.hypot(10, UNKNOWN_MOTION * 8))
    assert list(later["ra_error"][1:]) == [10.0, 10.0]  # it stands still, or nobody knows since when
    assert list(later["ra"]) == list(table["ra"])
