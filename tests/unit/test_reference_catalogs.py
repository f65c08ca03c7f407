"""Catalogues in a folder: order, absence, damage, motion and duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from panoramic.errors import InputError, ReferenceCatalogUnavailableError
from panoramic.footprints import from_tangent_plane
from resources.reference_catalogs import FolderReferenceCatalogs


def footprint(ra: float, dec: float) -> np.ndarray:
    return from_tangent_plane(np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]), (ra, dec))


def write(folder: Path, name: str, centre: tuple[float, float], **columns: object) -> None:
    rng = np.random.default_rng(3)
    places = from_tangent_plane(rng.uniform(-3, 3, (400, 2)), centre)
    base = {"ra": places[:, 0], "dec": places[:, 1], "mag": rng.uniform(18, 23, 400)}
    Table(base | columns).write(folder / name, overwrite=True)


def test_names_in_the_surveys_order(tmp_path: Path) -> None:
    for name in ("GAIA.ecsv", "ls_dr9.ecsv", "MINE.csv"):
        write(tmp_path, name, (0.0, 0.0))
    assert FolderReferenceCatalogs(tmp_path, ("LS_DR9", "PS1", "GAIA")).available() == ["LS_DR9", "GAIA"]
    assert FolderReferenceCatalogs(tmp_path).available() == ["GAIA", "MINE", "ls_dr9"]
    assert FolderReferenceCatalogs(None, ("LS_DR9",)).available() == []
    assert FolderReferenceCatalogs(tmp_path / "gone", ("LS_DR9",)).available() == []


@pytest.mark.parametrize("centre", [(0.001, 10.0), (200.0, 89.9), (359.999, -60.0)])
def test_sources_of_a_footprint(tmp_path: Path, centre: tuple[float, float]) -> None:
    write(tmp_path, "LS_DR9.ecsv", centre, ra_error=np.full(400, 6.0), dec_error=np.full(400, 8.0))
    catalogs = FolderReferenceCatalogs(tmp_path, ("LS_DR9",))
    sources = catalogs.load("LS_DR9", footprint(*centre), 2025.0)
    assert sources is not None
    assert 20 < len(sources) < 80  # 4 of 36 arcmin2
    np.testing.assert_allclose(sources.error_mas, np.sqrt(50.0))
    wider = catalogs.load("LS_DR9", footprint(*centre), 2025.0, margin_arcsec=60)
    several = catalogs.load("LS_DR9", [footprint(*centre), footprint(*centre)], 2025.0)
    assert wider is not None
    assert several is not None
    assert len(wider) > len(sources) == len(several)
    assert catalogs.load("LS_DR9", footprint((centre[0] + 180) % 360, 0.0), 2025.0) is None
    assert catalogs.load("PS1", footprint(*centre), 2025.0) is None


def test_a_star_moves_into_the_footprint_and_is_one_star(tmp_path: Path) -> None:
    edge = 1.0 / 60  # the footprint ends 1 arcmin east of RA 10
    table = Table(
        {
            "ra": [10 + edge + 1 / 3600] * 2, "dec": [0.0, 0.02 / 3600], "mag": [15.0, 15.0],
            "ra_error": [0.1, 0.3], "dec_error": [0.1, 0.3], "pm_ra": [-1000.0, -1000.0], "pm_dec": [0.0, 0.0],
            "epoch": [2016.0, 2016.0],
        }
    )  # fmt: skip
    table.write(tmp_path / "GAIA.ecsv")
    catalogs = FolderReferenceCatalogs(tmp_path, ("GAIA",))
    assert catalogs.load("GAIA", footprint(10.0, 0.0), 2016.5) is None
    sources = catalogs.load("GAIA", footprint(10.0, 0.0), 2026.0)
    assert sources is not None
    assert len(sources) == 1
    assert sources.error_mas[0] == pytest.approx(0.1)
    assert sources.ra[0] == pytest.approx(10 + edge - 9 / 3600)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, "PS1.ecsv", (50.0, 0.0))
    catalogs = FolderReferenceCatalogs(tmp_path, ("PS1",))
    before = catalogs.load("PS1", footprint(50.0, 0.0), 2025.0)
    Table({"ra": [50.0], "dec": [0.0], "mag": [20.0]}).write(tmp_path / "PS1.ecsv", overwrite=True)
    after = catalogs.load("PS1", footprint(50.0, 0.0), 2025.0)
    assert before is not None
    assert after is not None
    assert len(before) > len(after) == 1


def test_damaged_catalogues(tmp_path: Path) -> None:
    (tmp_path / "PS1.ecsv").write_text("half a fil")
    (tmp_path / "DES.ecsv").mkdir()
    catalogs = FolderReferenceCatalogs(tmp_path, ("PS1", "DES"))
    with pytest.raises(InputError, match=r"PS1\.ecsv: can't be read as a table"):
        catalogs.load("PS1", footprint(0.0, 0.0), 2025.0)
    with pytest.raises(ReferenceCatalogUnavailableError, match=r"DES\.ecsv: can't be read"):
        catalogs.load("DES", footprint(0.0, 0.0), 2025.0)
