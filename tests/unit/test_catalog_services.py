"""The external catalogues against a server of our own: right answers, and every failure by its name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from catalog_server import CatalogServer, serving, to_votable

from panoramic.errors import (
    InputError,
    ReferenceCatalogQueryError,
    ReferenceCatalogUnavailableError,
)
from panoramic.footprints import from_tangent_plane
from panoramic.reference import UNKNOWN_MOTION, move
from panoramic.survey import ReferenceRules
from resources.catalogs.definitions import CATALOGS
from resources.catalogs.protocols import Patience, read_votable, tap_query
from resources.catalogs.services import Addresses, CatalogServices
from resources.reference_catalogs import FolderReferenceCatalogs, SurveyReferenceCatalogs

QUICK = Patience(connect_s=2.0, read_s=0.25, retries=1, backoff_s=0.0, job_s=5.0, poll_s=0.01)
SKIES = [(150.0, 2.2), (0.0, -30.0), (359.99, 45.0), (123.0, 89.97), (10.0, -89.999), (37.0, 0.0)]
TABLES = {"LS_DR9": "ls_dr9.tractor", "PS1": "II/349/ps1", "DES": "II/371/des_dr2", "NSC": "nsc_dr2.object"}


class Clock:
    """A clock that the test turns."""

    now = 1.8e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[CatalogServer]:
    with serving() as state:
        yield state


def footprint(ra: float, dec: float, half_arcmin: float = 1.0) -> np.ndarray:
    corners = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) * half_arcmin
    return from_tangent_plane(corners, (ra, dec))


def services(server: CatalogServer, folder: Path, clock: Clock | None = None, **changes: object) -> CatalogServices:
    addresses = Addresses(f"{server.url}/gaia", f"{server.url}/datalab", server.url)
    return CatalogServices(folder, addresses, QUICK, clock=clock or Clock(), **changes)  # type: ignore[arg-type]


def survey(asked: CatalogServices | None, **rules: object) -> SurveyReferenceCatalogs:
    return SurveyReferenceCatalogs(ReferenceRules(**rules), FolderReferenceCatalogs(None), asked)  # type: ignore[arg-type]


def sky(ra: float, dec: float, count: int = 600, seed: int = 1) -> np.ndarray:
    """Positions within 8 arcmin, at least 1 arcsec apart from each other with near certainty."""
    return from_tangent_plane(np.random.default_rng(seed).uniform(-8, 8, (count, 2)), (ra, dec))


def fill(server: CatalogServer, name: str, places: np.ndarray) -> None:
    """A service's table at the given positions, in its own columns and units."""
    n, (ra, dec) = len(places), places.T
    full = lambda value: np.full(n, value)  # noqa: E731
    if name == "LS_DR9":
        sigma = 0.010 / 3600  # deg, on the sky
        server.tables["ls_dr9.tractor"] = Table(
            {"ra": ra, "dec": dec, "ra_ivar": (np.cos(np.radians(dec)) / sigma) ** 2, "dec_ivar": full(sigma**-2),
             "type": full("PSF"), "flux_r": full(10.0), "flux_ivar_r": full(100.0), "flux_z": full(25.0),
             "flux_ivar_z": full(100.0), "ref_cat": full("  "), "ref_epoch": full(0.0), "pmra": full(0.0),
             "pmdec": full(0.0)}
        )  # fmt: skip
    elif name == "NSC":
        server.tables["nsc_dr2.object"] = Table(
            {"ra": ra, "dec": dec, "raerr": full(0.020), "decerr": full(0.030), "pmra": full(np.nan),
             "pmdec": full(np.nan), "pmraerr": full(np.nan), "pmdecerr": full(np.nan), "mjd": full(57205.875),
             "deltamjd": full(0.0), "ndet": full(3), "flags": full(0), "rmag": full(21.0), "imag": full(99.99),
             "zmag": full(99.99), "rerr": full(0.02), "ierr": full(9.99), "zerr": full(9.99)}
        )  # fmt: skip
    elif name == "PS1":
        server.tables["II/349/ps1"] = Table(
            {"RAJ2000": ra, "DEJ2000": dec, "e_RAJ2000": full(0.012), "e_DEJ2000": full(0.016), "imag": full(20.5),
             "e_imag": full(0.01)}
        )  # fmt: skip
    elif name == "DES":
        server.tables["II/371/des_dr2"] = Table(
            {"RA_ICRS": ra, "DE_ICRS": dec, "rmag": full(22.5), "e_rmag": full(0.05), "imag": full(22.0),
             "e_imag": full(0.05)}
        )  # fmt: skip
    else:
        columns = {"ra": ra, "dec": dec, "ra_error": full(0.3), "dec_error": full(0.4), "pmra": full(0.0),
                   "pmdec": full(0.0), "pmra_error": full(0.05), "pmdec_error": full(0.05),
                   "phot_g_mean_mag": full(18.0)}  # fmt: skip
        server.tables["gaiadr3.gaia_source"] = Table(columns)
        names = ("RA_ICRS", "DE_ICRS", "e_RA_ICRS", "e_DE_ICRS", "pmRA", "pmDE", "e_pmRA", "e_pmDE", "Gmag")
        server.tables["I/355/gaiadr3"] = Table(dict(zip(names, columns.values(), strict=True)))


# --- right answers --------------------------------------------------------------------------


@pytest.mark.parametrize("centre", SKIES)
@pytest.mark.parametrize("name", ["LS_DR9", "PS1", "DES", "NSC", "GAIA"])
def test_every_source_of_the_footprint_once(server, tmp_path, name: str, centre: tuple[float, float]) -> None:
    places = sky(*centre)
    fill(server, name, places)
    answer = survey(services(server, tmp_path)).ask(name, footprint(*centre), 2016.0, margin_arcsec=10.0)
    near = np.abs(np.random.default_rng(1).uniform(-8, 8, (600, 2))).max(axis=1) < 1.0
    assert answer.origin == "service"
    assert answer.sources is not None
    mine = {(round(ra, 7), round(dec, 7)) for ra, dec in zip(answer.sources.ra, answer.sources.dec, strict=True)}
    due = {(round(ra % 360, 7), round(dec, 7)) for ra, dec in places[near]}
    assert len(due) > 4
    assert due <= mine
    assert len(mine) == len(answer.sources) <= 1.9 * len(due) + 8  # the margin adds (1 + 1/6)^2, and chance


@pytest.mark.parametrize(
    ("name", "mag", "error"),
    [
        ("LS_DR9", 22.5 - 2.5 * np.log10(25), 10.0), ("PS1", 20.5, np.sqrt(200)), ("DES", 22.0, np.nan),
        ("NSC", 21.0, np.hypot(np.sqrt(650), 0.5 * UNKNOWN_MOTION)), ("GAIA", 18.1136, np.sqrt(0.125)),
    ],
)  # fmt: skip
def test_magnitudes_and_errors_in_our_units(server, tmp_path, name: str, mag: float, error: float) -> None:
    fill(server, name, sky(150.0, 60.0))  # far from the equator: RA errors are without or with cos Dec
    sources = survey(services(server, tmp_path)).load(name, footprint(150.0, 60.0), 2016.0)
    assert sources is not None
    np.testing.assert_allclose(sources.mag, mag)
    np.testing.assert_allclose(sources.error_mas, error, rtol=1e-6)


def test_stated_units_go_before_documented_ones(server, tmp_path) -> None:
    fill(server, "PS1", sky(150.0, 2.0))
    for column in ("e_RAJ2000", "e_DEJ2000"):
        server.tables["II/349/ps1"][column] = 12.0
        server.tables["II/349/ps1"][column].unit = "mas"
    sources = survey(services(server, tmp_path)).load("PS1", footprint(150.0, 2.0), 2024.0)
    assert sources is not None
    np.testing.assert_allclose(sources.error_mas, 12.0)


@pytest.mark.parametrize("down", [False, True])
def test_a_star_that_moved_two_arcsec(server, tmp_path, down: bool) -> None:
    """200 mas/yr for ten years, from the Gaia archive and from VizieR; its error grows by that of the motion."""
    place = np.array([[200.0, 88.0]])
    fill(server, "GAIA", place)
    for table, names in (("gaiadr3.gaia_source", ("pmra", "pmdec")), ("I/355/gaiadr3", ("pmRA", "pmDE"))):
        server.tables[table][names[0]], server.tables[table][names[1]] = 160.0, -120.0
    if down:
        del server.tables["gaiadr3.gaia_source"]
    answer = survey(services(server, tmp_path)).ask("GAIA", footprint(200.0, 88.0), 2026.0)
    assert answer.sources is not None
    ra, dec, *_ = move(*place.T, np.array([160.0]), np.array([-120.0]), 10.0)
    assert (answer.sources.dec[0] - 88.0) * 3600 == pytest.approx(-1.2, abs=1e-3)
    np.testing.assert_allclose([answer.sources.ra[0], answer.sources.dec[0]], [ra[0], dec[0]], rtol=0, atol=1e-10)
    assert answer.sources.error_mas[0] == pytest.approx(np.sqrt((0.3**2 + 0.4**2) / 2 + 0.5**2))
    assert ("VizieR" in answer.detail) is down


def test_motions_of_the_ground_based_catalogues(server, tmp_path) -> None:
    places = np.array([[10.0, 0.0], [10.005, 0.0], [10.01, 0.0]])
    fill(server, "LS_DR9", places)
    tractor = server.tables["ls_dr9.tractor"]
    tractor["ref_cat"], tractor["ref_epoch"] = ["G2", "  ", "L3"], [2015.5, 0.0, 2015.5]
    tractor["pmra"] = [100.0, 100.0, 100.0]
    fill(server, "NSC", places)
    nsc = server.tables["nsc_dr2.object"]
    nsc["pmra"], nsc["pmdec"], nsc["pmraerr"], nsc["pmdecerr"] = [100.0, 100.0, 10.0], 0.0, [2.0, 2.0, 9.0], 2.0
    nsc["ndet"], nsc["deltamjd"] = [40, 5, 40], 2000.0
    catalogs = survey(services(server, tmp_path))
    for name, years in (("LS_DR9", 10.0), ("NSC", 10.0)):
        epoch = 2025.5
        sources = catalogs.load(name, footprint(10.005, 0.0), epoch)
        assert sources is not None
        moved = (np.sort(sources.ra) - places[:, 0]) * 3.6e6
        np.testing.assert_allclose(moved, [100 * years, 0, 0], atol=0.2)  # what is noise, or no star's, stays


def test_a_gaia_star_without_a_motion_is_not_one_that_stands_still(server, tmp_path) -> None:
    """LS_DR9 writes the motions that Gaia lacks as 0: ten years later the star may be anywhere within 30 mas."""
    places = np.column_stack([10.0 + 0.002 * np.arange(5), np.zeros(5)])
    fill(server, "LS_DR9", places)
    tractor = server.tables["ls_dr9.tractor"]
    tractor["ref_cat"], tractor["ref_epoch"] = ["G2", "GE", "G2", "GE", "  "], [2015.5, 2016.0, 2015.5, 2016.0, 0.0]
    tractor["pmra"], tractor["pmdec"] = [0.0, 0.0, 50.0, 0.0, 0.0], [0.0, np.nan, 0.0, -40.0, 0.0]
    sources = survey(services(server, tmp_path)).load("LS_DR9", footprint(10.004, 0.0), 2025.5)
    assert sources is not None
    order = np.argsort(sources.ra)
    moved = np.column_stack([sources.ra, sources.dec])[order] - places
    np.testing.assert_allclose(moved * 3.6e6, [[0, 0], [0, 0], [500, 0], [0, -380], [0, 0]], atol=0.01)
    grown = [np.hypot(10.0, UNKNOWN_MOTION * years) for years in (10.0, 9.5)]
    # a motion's own error is not asked for, and a galaxy has none
    np.testing.assert_allclose(sources.error_mas[order], [*grown, 10.0, 10.0, 10.0], rtol=1e-6)


def test_what_is_made_of_the_rows_is_part_of_a_definition() -> None:
    """Regions that were kept while LS_DR9's zeros counted as motions are asked for again."""
    (source,) = CATALOGS["LS_DR9"]
    before = replace(source, version=1)
    assert before.definition != source.definition
    assert "; 1; ra," in before.definition


def test_what_is_no_reference_is_left_out(server, tmp_path) -> None:
    places = sky(30.0, -5.0, 40) * [1, 1]
    fill(server, "LS_DR9", places)
    tractor = server.tables["ls_dr9.tractor"]
    tractor["type"] = ["DUP"] * 10 + ["PSF"] * 30
    tractor["ra_ivar"][10:15] = 0.0
    tractor["flux_r"][15:20], tractor["flux_z"][15:20] = 0.5, 0.9  # S/N 5 and 9
    fill(server, "PS1", places)
    server.tables["II/349/ps1"]["e_imag"][:25] = 0.3
    fill(server, "DES", places)
    for column in ("e_rmag", "e_imag"):
        server.tables["II/371/des_dr2"][column][:35] = 0.2
    fill(server, "NSC", places)
    server.tables["nsc_dr2.object"]["flags"][:15] = 3
    catalogs, wide = survey(services(server, tmp_path)), footprint(30.0, -5.0, 8.5)
    counts = [len(catalogs.load(name, wide, 2024.0)) for name in ("LS_DR9", "PS1", "DES", "NSC")]  # type: ignore[arg-type]
    assert counts == [20, 15, 5, 25]


def test_duplicates_are_one_source(server, tmp_path) -> None:
    places = sky(30.0, -5.0, 50)
    twice = np.concatenate([places, places + [0, 0.03 / 3600]])
    fill(server, "LS_DR9", twice)
    sources = survey(services(server, tmp_path)).load("LS_DR9", footprint(30.0, -5.0, 8.5), 2024.0)
    assert sources is not None
    assert len(sources) == 50


def test_no_source_there_is_an_answer(server, tmp_path) -> None:
    for name in ("LS_DR9", "PS1", "GAIA"):
        fill(server, name, sky(200.0, 10.0))
        answer = survey(services(server, tmp_path)).ask(name, footprint(20.0, 10.0), 2024.0)
        assert (answer.sources, answer.origin) == (None, "service")
        assert "no source there" in answer.detail
    asked = len(server.queries)
    assert survey(services(server, tmp_path)).ask("PS1", footprint(20.0, 10.0), 2024.0).origin == "cache"
    assert len(server.queries) == asked


def test_an_asynchronous_job_is_waited_for_and_deleted(server, tmp_path) -> None:
    fill(server, "GAIA", sky(150.0, 2.2))
    server.unfinished_looks = 3
    assert survey(services(server, tmp_path)).load("GAIA", footprint(150.03, 2.3, 0.5), 2024.0) is not None
    assert [r for r in server.requests if r.startswith("DELETE")] == ["DELETE /gaia/async/j0"]


def test_nothing_is_printed_and_no_home_folder_is_written(server, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    fill(server, "GAIA", sky(150.0, 2.2))
    fill(server, "PS1", sky(150.0, 2.2))
    catalogs = survey(services(server, tmp_path / "cache"))
    for name in ("GAIA", "PS1"):
        catalogs.load(name, footprint(150.0, 2.2), 2024.0)
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LS_DR9", "PS1"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("slow", "no answer in time"), ("503", "status 503"), ("html", "no table"), ("cut", "ends in the middle"),
        ("cut with length", "can't be reached|ends in the middle"), ("overflow", "overflow"),
    ],
)  # fmt: skip
def test_a_service_that_fails(server, tmp_path, name: str, fault: str, message: str) -> None:
    fill(server, name, sky(150.0, 2.2))
    server.always = fault
    with pytest.raises(ReferenceCatalogUnavailableError, match=message) as caught:
        survey(services(server, tmp_path)).load(name, footprint(150.0, 2.2), 2024.0)
    assert not isinstance(caught.value, ReferenceCatalogQueryError)
    assert server.url in str(caught.value)
    assert not list(tmp_path.rglob("*.ecsv"))  # nothing of it is kept


@pytest.mark.parametrize("fault", ["slow", "503", "html", "cut", "overflow", "fail job"])
def test_gaia_from_vizier_where_its_archive_fails(server, tmp_path, fault: str) -> None:
    fill(server, "GAIA", sky(150.0, 2.2))
    server.faults = [fault] * (2 if fault in ("slow", "503") else 1)
    answer = survey(services(server, tmp_path)).ask("GAIA", footprint(150.0, 2.2), 2024.0)
    assert answer.count > 0
    assert "VizieR, I/355/gaiadr3" in answer.detail
    assert "Gaia archive" in answer.detail  # what went wrong is told
    server.always = "html"
    with pytest.raises(ReferenceCatalogUnavailableError, match=r"Gaia archive.*VizieR"):
        survey(services(server, tmp_path)).ask("GAIA", footprint(50.0, 2.35), 2024.0)


@pytest.mark.parametrize("name", ["LS_DR9", "PS1"])
def test_a_short_breakdown_is_waited_out(server, tmp_path, name: str) -> None:
    fill(server, name, sky(150.0, 2.2))
    server.faults = ["503"]
    assert survey(services(server, tmp_path)).load(name, footprint(150.0, 2.2), 2024.0) is not None


def test_a_job_that_never_ends(server, tmp_path) -> None:
    fill(server, "GAIA", sky(150.0, 2.2))
    server.unfinished_looks = 10**9
    patience = Patience(2.0, 0.5, 0, 0.0, job_s=0.05, poll_s=0.01)
    with pytest.raises(ReferenceCatalogUnavailableError, match=r"not done after 0 s"):
        tap_query(f"{server.url}/gaia", "SELECT ra FROM gaiadr3.gaia_source", mode="async", maximum=9, what="Gaia",
                  patience=patience)  # fmt: skip
    assert server.requests[-1].startswith("DELETE")


def test_a_table_that_is_not_what_it_was(server, tmp_path) -> None:
    fill(server, "LS_DR9", sky(150.0, 2.2))
    server.tables["ls_dr9.tractor"].remove_column("ra_ivar")
    with pytest.raises(ReferenceCatalogQueryError, match=r"status 400.*ra_ivar"):
        survey(services(server, tmp_path)).load("LS_DR9", footprint(150.0, 2.2), 2024.0)
    fill(server, "PS1", sky(150.0, 2.2))
    server.tables["II/349/ps1"].remove_column("e_imag")
    with pytest.raises(ReferenceCatalogQueryError, match="no column e_imag"):
        survey(services(server, tmp_path)).load("PS1", footprint(150.0, 2.2), 2024.0)
    with pytest.raises(ReferenceCatalogQueryError, match="no catalogue found"):
        survey(services(server, tmp_path)).load("DES", footprint(150.0, 2.2), 2024.0)
    # the service itself is well: its next table is asked for
    fill(server, "NSC", sky(150.0, 2.2))
    assert survey(services(server, tmp_path)).load("NSC", footprint(150.0, 2.2), 2024.0) is not None


def test_rows_as_many_as_were_asked_for_are_a_cut_answer(server) -> None:
    fill(server, "LS_DR9", sky(150.0, 2.2, 20))
    query = "SELECT ra, dec FROM ls_dr9.tractor"
    settings = {"mode": "sync", "what": "it", "patience": QUICK}
    assert len(tap_query(f"{server.url}/datalab", query, maximum=21, **settings)) == 20  # type: ignore[arg-type]
    for maximum in (20, 19):
        with pytest.raises(ReferenceCatalogUnavailableError, match="cut"):
            tap_query(f"{server.url}/datalab", query, maximum=maximum, **settings)  # type: ignore[arg-type]


def test_compressed_answers(server) -> None:
    import gzip
    from types import SimpleNamespace

    body = gzip.compress(to_votable(Table({"ra": [1.0, 2.0]})))
    table = read_votable(SimpleNamespace(content=body, status_code=200), "it")  # type: ignore[arg-type]
    assert table is not None
    assert list(table["ra"]) == [1.0, 2.0]
    with pytest.raises(ReferenceCatalogUnavailableError, match="ends in the middle"):
        read_votable(SimpleNamespace(content=body[:-20], status_code=200), "it")  # type: ignore[arg-type]


def test_a_service_that_failed_is_left_alone_for_minutes(server, tmp_path) -> None:
    """Thirty associations do not wait for thirty time-outs, nor do their processes."""
    fill(server, "LS_DR9", sky(150.0, 2.2))
    fill(server, "NSC", sky(150.0, 2.2))
    clock = Clock()
    server.always = "503"
    with pytest.raises(ReferenceCatalogUnavailableError, match="status 503"):
        survey(services(server, tmp_path, clock)).load("LS_DR9", footprint(150.0, 2.2), 2024.0)
    requests = len(server.requests)
    for name in ["LS_DR9", "NSC"] * 15:  # the same service has both
        with pytest.raises(ReferenceCatalogUnavailableError, match=r"status 503.*not asked again until \d\d:\d\d UTC"):
            survey(services(server, tmp_path, clock)).load(name, footprint(150.0, 2.2), 2024.0)
    assert len(server.requests) == requests
    server.always = ""
    clock.now += 901
    assert survey(services(server, tmp_path, clock)).load("LS_DR9", footprint(150.0, 2.2), 2024.0) is not None
    assert survey(services(server, tmp_path, clock)).load("NSC", footprint(150.0, 2.2), 2024.0) is not None


def test_a_cache_answers_without_a_server(tmp_path) -> None:
    with serving() as server:
        fill(server, "LS_DR9", sky(150.0, 2.2))
        first = survey(services(server, tmp_path)).ask("LS_DR9", footprint(150.0, 2.2), 2024.0)
        asked = services(server, tmp_path)
    again = survey(asked).ask("LS_DR9", footprint(150.0, 2.2), 2024.0)
    assert (first.origin, again.origin) == ("service", "cache")
    assert "of 2027-01-15" in again.detail
    assert first.sources is not None
    assert again.sources is not None
    np.testing.assert_array_equal(first.sources.ra, again.sources.ra)
    np.testing.assert_array_equal(first.sources.error_mas, again.sources.error_mas)
    with pytest.raises(ReferenceCatalogUnavailableError, match="can't be reached"):
        survey(asked).ask("LS_DR9", footprint(151.0, 2.2), 2024.0)


def test_footprints_too_wide_are_refused(server, tmp_path) -> None:
    with pytest.raises(InputError, match=r"reference\.files"):
        survey(services(server, tmp_path)).load("LS_DR9", footprint(150.0, 2.2, 300.0), 2024.0)
    assert server.requests == []


def test_importing_asks_nobody_and_loads_no_client() -> None:
    code = "import sys, resources.reference_catalogs; print([m for m in ('pyvo', 'astroquery') if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
