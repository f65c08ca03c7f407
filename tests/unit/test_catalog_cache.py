"""Regions of the sky, what is kept of them, and processes that share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from catalog_server import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalog_services import SKIES, Clock, fill, footprint, services, sky, survey

from panoramic.errors import ReferenceCatalogUnavailableError, StorageError
from panoramic.footprints import separation_arcmin
from panoramic.reference import COLUMNS, standard_table
from resources.catalogs.cache import DAY_S, DownList, RegionCache
from resources.catalogs.cells import BANDS, Cell, cells_around, columns_of

ras = st.floats(0, 360, exclude_max=True)
decs = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 0.0, 89.8, -89.8, 2.2]))
ROOT = Path(__file__).parents[2]
HERE = Cell(461, 749)


def table(count: int = 5) -> Table:
    rng = np.random.default_rng(count)
    data = {
        "ra": rng.uniform(150, 150.1, count),
        "dec": rng.uniform(2.2, 2.4, count),
        "mag": rng.uniform(18, 22, count),
    }
    return standard_table(Table(data | {"ra_error": rng.uniform(1, 20, count)}), "a test")


# --- cells ----------------------------------------------------------------------------------


@given(ra=ras, dec=decs)
@settings(deadline=None)
def test_each_position_is_in_one_cell_that_is_found(ra: float, dec: float) -> None:
    band = min(BANDS - 1, int(np.floor((dec + 90) / 180 * BANDS)))
    near = [
        Cell(b, c)
        for b in range(max(0, band - 1), min(BANDS, band + 2))
        for c in {int(ra / 360 * columns_of(b) + d) % columns_of(b) for d in (-1, 0, 1)}
    ]
    holding = [c for c in near if c.contains(np.array([ra]), np.array([dec]))[0]]
    assert len(holding) == 1
    ra0, dec0, radius = holding[0].circle()
    assert separation_arcmin(ra0, dec0, ra, dec) <= radius * 60
    assert radius < 0.35
    assert holding[0] in cells_around([footprint(ra, dec, 0.01)], 1.0)


@given(ra=ras, dec=decs, size=st.floats(0.1, 12), angle=st.floats(0, 2 * np.pi), margin=st.floats(0, 60))
@settings(deadline=None)
def test_the_cells_hold_the_footprint_and_its_margin(
    ra: float, dec: float, size: float, angle: float, margin: float
) -> None:
    from panoramic.footprints import from_tangent_plane

    outline = footprint(ra, dec, size)
    reach = size + margin / 60
    place = from_tangent_plane(reach * np.array([[np.cos(angle), np.sin(angle)]]), (ra, dec))
    cells = cells_around([outline], margin)
    assert sum(bool(c.contains(place[:, 0] % 360, place[:, 1])[0]) for c in cells) == 1
    assert len(set(cells)) == len(cells) <= 40


def test_neighbours_share_their_cells() -> None:
    one, two = (cells_around([footprint(ra, 2.3)], 40.0) for ra in (150.03, 150.06))
    assert one == two == [HERE]
    assert cells_around([footprint(150.03, 2.3), footprint(150.06, 2.3)], 40.0) == [HERE]
    assert {c.band for c in cells_around([footprint(0.0, 90.0)], 0.0)} == {BANDS - 1}
    assert {c.column for c in cells_around([footprint(0.0, 10.1)], 0.0)} == {0, columns_of(500) - 1}


# --- files ----------------------------------------------------------------------------------


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    clock = Clock()
    cache = RegionCache(tmp_path, clock)
    assert cache.read("PS1", HERE, ("v",)) is None
    cache.write("PS1", HERE, table(), "VizieR", "v")
    region = cache.read("PS1", HERE, ("u", "v"))
    assert region is not None
    for column in COLUMNS:
        np.testing.assert_array_equal(region.table[column], table()[column])
        assert region.table[column].unit == table()[column].unit
    assert (region.service, region.day, region.asked) == ("VizieR", "2027-01-15", clock.now)
    header = Table.read(cache.path("PS1", HERE), format="ascii.ecsv").meta
    assert (header["rows"], header["service"], header["asked"]) == (5, "VizieR", "2027-01-15T08:00:00Z")
    assert cache.read("PS1", HERE, ("another query",)) is None
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [f"{HERE.name}.ecsv"]  # nothing half-written is left


def test_no_source_is_kept_and_asked_for_again_in_time(tmp_path: Path) -> None:
    clock = Clock()
    cache = RegionCache(tmp_path, clock)
    cache.write("PS1", HERE, table()[:0], "VizieR", "v")
    region = cache.read("PS1", HERE, ("v",))
    assert region is not None
    assert len(region.table) == 0
    assert not region.is_due(clock.now + 29 * DAY_S)
    assert region.is_due(clock.now + 31 * DAY_S)
    full = cache.write("PS1", HERE, table(), "VizieR", "v")
    assert not full.is_due(clock.now + 10_000 * DAY_S)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def damage_digit(path: Path) -> None:
    lines = path.read_text().splitlines()
    digit = lines[-1][5]
    lines[-1] = lines[-1][:5] + ("1" if digit != "1" else "2") + lines[-1][6:]
    path.write_text("\n".join(lines))


def damage_row(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


def damage_header(path: Path) -> None:
    path.write_text(path.read_text().replace("asked_s: 1800000000", "asked_s: 1900000000"))


def damage_all(path: Path) -> None:
    path.write_bytes(b"\x00\xff" * 100)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_no_header(path: Path) -> None:
    Table({"ra": [1.0], "dec": [2.0], "mag": [3.0]}).write(path, format="ascii.ecsv", overwrite=True)


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_digit, damage_row, damage_header, damage_all, damage_empty, damage_no_header],
)
def test_a_damaged_file_is_asked_for_again_and_told(tmp_path: Path, damage) -> None:
    with serving() as server:
        fill(server, "LS_DR9", sky(150.0, 2.3))
        first = survey(services(server, tmp_path)).load("LS_DR9", footprint(150.03, 2.3), 2024.0)
        path = tmp_path / "LS_DR9" / f"{HERE.name}.ecsv"
        before = path.read_bytes()
        damage(path)
        assert path.read_bytes() != before
        answer = survey(services(server, tmp_path)).ask("LS_DR9", footprint(150.03, 2.3), 2024.0)
        assert answer.origin == "service"
        assert "damaged file" in answer.detail
        assert len(server.queries) == 2
        assert path.read_bytes() == before
        assert first is not None
        assert answer.sources is not None
        np.testing.assert_array_equal(answer.sources.ra, first.ra)
        damage(path)
        server.always = "503"
        with pytest.raises(ReferenceCatalogUnavailableError, match="503"):  # a damaged file is no answer
            survey(services(server, tmp_path)).ask("LS_DR9", footprint(150.03, 2.3), 2024.0)


def test_an_old_emptiness_stands_while_the_service_is_down(tmp_path: Path) -> None:
    clock = Clock()
    with serving() as server:
        fill(server, "LS_DR9", sky(10.0, 2.3))
        catalogs, place = survey(services(server, tmp_path, clock)), footprint(150.03, 2.3)
        assert catalogs.ask("LS_DR9", place, 2024.0).origin == "service"
        clock.now += 31 * DAY_S
        server.always = "503"
        answer = catalogs.ask("LS_DR9", place, 2024.0)
        assert (answer.sources, answer.origin) == (None, "cache")
        assert "what was known on 2027-01-15 stands" in answer.detail
        server.always = ""
        clock.now += 3600
        fill(server, "LS_DR9", sky(150.0, 2.3))
        assert catalogs.ask("LS_DR9", place, 2024.0).count > 0


def test_motion_is_applied_when_it_is_read(tmp_path: Path) -> None:
    with serving() as server:
        fill(server, "GAIA", np.array([[150.03, 2.3]]))
        server.tables["gaiadr3.gaia_source"]["pmdec"] = 200.0
        catalogs, place = survey(services(server, tmp_path)), footprint(150.03, 2.3)
        declinations = [catalogs.load("GAIA", place, epoch).dec[0] for epoch in (2016.0, 2021.0, 2026.0)]  # type: ignore[union-attr]
    np.testing.assert_allclose((np.array(declinations) - 2.3) * 3600, [0.0, 1.0, 2.0], atol=1e-6)
    assert len(server.queries) == 1


@pytest.mark.parametrize("centre", SKIES)
def test_the_cache_is_right_everywhere(tmp_path: Path, centre: tuple[float, float]) -> None:
    with serving() as server:
        fill(server, "PS1", sky(*centre))
        catalogs = survey(services(server, tmp_path))
        first = catalogs.load("PS1", footprint(*centre), 2024.0)
        asked = len(server.queries)
        wide = catalogs.load("PS1", footprint(*centre, 0.5), 2024.0)  # lies in what is known
    again = survey(services(server, tmp_path)).load("PS1", footprint(*centre), 2024.0)
    assert len(server.queries) == asked
    assert first is not None
    assert again is not None
    assert wide is not None
    assert 0 < len(wide) < len(first)
    cells = cells_around([footprint(*centre)], 30.0)
    for cell in cells:  # what the query's circle gave beyond the region is another file's
        kept = Table.read(tmp_path / "PS1" / f"{cell.name}.ecsv", format="ascii.ecsv")
        assert cell.contains(np.asarray(kept["ra"], float), np.asarray(kept["dec"], float)).all()
    np.testing.assert_array_equal(np.sort(first.ra), np.sort(again.ra))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    with serving() as server:
        fill(server, "PS1", sky(150.0, 2.3))
        with pytest.raises(StorageError, match="cache: PS1 can't be kept"):
            survey(services(server, blocked)).load("PS1", footprint(150.03, 2.3), 2024.0)


CHILD = """
import sys, json
from pathlib import Path
import numpy as np
from resources.catalogs.services import Addresses, CatalogServices
url, folder = sys.argv[1:]
print("ready", flush=True); sys.stdin.readline()
outline = np.array(json.loads(sys.stdin.readline()))
answer = CatalogServices(Path(folder), Addresses(f"{url}/gaia", f"{url}/datalab", url)).around("LS_DR9", [outline], 40.0)
print(json.dumps([answer.origin, sorted(map(float, answer.table["ra"]))]))
"""


def test_two_processes_ask_once(tmp_path: Path) -> None:
    with serving() as server:
        fill(server, "LS_DR9", sky(150.0, 2.2))
        outline = footprint(150.0, 2.2)
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, server.url, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        outputs = []
        for child in children:
            child.stdin.write(f"go\n{json.dumps(outline.tolist())}\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
        for child in children:
            outputs.append(json.loads(child.communicate(timeout=60)[0]))
            assert child.returncode == 0
        cells = cells_around([outline], 40.0)
        assert len(server.queries) == len(cells) > 1
    assert outputs[0][1] == outputs[1][1] != []


# --- services that are down -----------------------------------------------------------------


def test_a_note_of_a_failure_ends(tmp_path: Path) -> None:
    clock = Clock()
    down = DownList(tmp_path, 300.0, clock)
    down.check("gaia")
    down.add("gaia", "no answer")
    with pytest.raises(
        ReferenceCatalogUnavailableError, match=r"no answer \(found before; not asked again until 08:05"
    ):
        DownList(tmp_path, 300.0, clock).check("gaia")
    down.check("vizier")
    clock.now += 301
    down.check("gaia")
    down.add("gaia", "no answer")
    down.remove("gaia")
    down.check("gaia")
    down.add("gaia", "no answer")
    clock.now -= 7 * DAY_S  # a clock that was set back
    down.check("gaia")
    (tmp_path / "gaia.json").write_text("{torn")
    down.check("gaia")
