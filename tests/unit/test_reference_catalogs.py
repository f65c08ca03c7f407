"""Catalogues in files, a folder and services: order, absence, damage, motion and duplicates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from panoramic.errors import InputError, ReferenceCatalogUnavailableError
from panoramic.footprints import from_tangent_plane
from panoramic.reference import standard_table
from panoramic.survey import ReferenceRules, Survey
from resources.catalogs.services import Answer
from resources.reference_catalogs import FolderReferenceCatalogs, SurveyReferenceCatalogs


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


# --- a survey's own: files, the folder, services ---------------------------------------------


class Services:
    """Services that know two catalogues about one place."""

    def __init__(self, centre: tuple[float, float], fails: bool = False) -> None:
        self.centre, self.fails = centre, fails
        self.asked: list[tuple[str, float]] = []

    def knows(self, name: str) -> bool:
        return name.upper() in ("LS_DR9", "GAIA")

    def around(self, name: str, footprints: Any, margin_arcsec: float) -> Answer:
        self.asked.append((name, margin_arcsec))
        if self.fails:
            raise ReferenceCatalogUnavailableError("the service is down")
        places = from_tangent_plane(np.random.default_rng(1).uniform(-3, 3, (400, 2)), self.centre)
        table = standard_table(Table({"ra": places[:, 0], "dec": places[:, 1], "mag": np.full(400, 20.0)}), "it")
        return Answer(table, "service", "a service, of today")


def composite(folder: Path | None, services: Services | None, **rules: Any) -> SurveyReferenceCatalogs:
    chosen = ReferenceRules(**rules)
    return SurveyReferenceCatalogs(chosen, FolderReferenceCatalogs(folder, chosen.catalogs), services)  # type: ignore[arg-type]


def test_files_that_the_list_does_not_name_come_first(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", "PS1.ecsv", (50.0, 0.0))
    write(tmp_path, "mine.ecsv", (50.0, 0.0))
    files = {"OURS": tmp_path / "mine.ecsv", "gaia": tmp_path / "mine.ecsv"}
    catalogs = composite(tmp_path / "folder", None, files=files)
    assert catalogs.names() == ["OURS", "LS_DR9", "PS1", "DES", "NSC", "GAIA"]
    assert catalogs.available() == ["OURS", "PS1", "GAIA"]
    assert composite(tmp_path / "folder", Services((50.0, 0.0))).available() == ["LS_DR9", "PS1", "GAIA"]
    assert FolderReferenceCatalogs(tmp_path / "folder", ("LS_DR9", "PS1")).names() == ["LS_DR9", "PS1"]


def test_a_file_goes_before_the_folder_and_the_folder_before_the_service(tmp_path: Path) -> None:
    place, services = (50.0, 0.0), Services((50.0, 0.0))
    (tmp_path / "folder").mkdir()
    origins = []
    for step in ("service", "folder", "file"):
        if step == "folder":
            write(tmp_path / "folder", "LS_DR9.ecsv", place)
        files = {}
        if step == "file":
            write(tmp_path, "mine.csv", place)
            files = {"ls_dr9": tmp_path / "mine.csv"}
        answer = composite(tmp_path / "folder", services, files=files).ask("LS_DR9", footprint(*place), 2025.0, 10.0)
        origins.append(answer.origin)
        assert answer.count == len(answer.sources) > 20  # type: ignore[arg-type]
        assert answer.detail.startswith(f"{answer.count} sources: ")
    assert origins == ["service", "folder", "file"]
    assert services.asked == [("LS_DR9", 40.0)]  # the margin, and how far sources move


def test_what_a_file_does_not_cover_is_looked_for_further_on(tmp_path: Path) -> None:
    write(tmp_path, "mine.ecsv", (200.0, 0.0))
    services = Services((50.0, 0.0))
    catalogs = composite(None, services, files={"GAIA": tmp_path / "mine.ecsv"})
    answer = catalogs.ask("GAIA", footprint(50.0, 0.0), 2025.0)
    assert (answer.origin, answer.count > 20) == ("service", True)
    assert "mine.ecsv (reference.files)" in answer.detail
    assert "no source there" in answer.detail
    assert catalogs.ask("GAIA", footprint(200.0, 0.0), 2025.0).origin == "file"
    nowhere = catalogs.ask("GAIA", footprint(100.0, 0.0), 2025.0)
    assert (nowhere.sources, nowhere.origin) == (None, "service")


def test_nobody_to_ask(tmp_path: Path) -> None:
    answer = composite(tmp_path, None).ask("PS1", footprint(50.0, 0.0), 2025.0)
    assert (answer.sources, answer.origin, answer.count) == (None, "none", 0)
    assert answer.detail == "no file of it here, and services are not asked"
    answer = composite(tmp_path, Services((50.0, 0.0))).ask("SDSS", footprint(50.0, 0.0), 2025.0)
    assert answer.detail == "no file of it here, and no service is known for it"
    assert composite(None, None).load("PS1", footprint(50.0, 0.0), 2025.0) is None


def test_a_named_file_that_is_damaged_or_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "half.ecsv").write_text("half a fil")
    services = Services((50.0, 0.0))
    catalogs = composite(None, services, files={"GAIA": tmp_path / "half.ecsv", "PS1": tmp_path / "gone.ecsv"})
    with pytest.raises(InputError, match=r"half\.ecsv: can't be read as a table"):
        catalogs.load("GAIA", footprint(50.0, 0.0), 2025.0)
    with pytest.raises(ReferenceCatalogUnavailableError, match=r"gone\.ecsv: can't be read: No such file"):
        catalogs.load("PS1", footprint(50.0, 0.0), 2025.0)
    assert services.asked == []
    with pytest.raises(ReferenceCatalogUnavailableError, match="the service is down"):
        composite(None, Services((50.0, 0.0), fails=True)).ask("GAIA", footprint(50.0, 0.0), 2025.0)


@pytest.mark.parametrize(
    ("archive", "services", "asked"),
    [
        ({"kind": "folder", "path": "."}, None, False), ({"kind": "folder", "path": "."}, True, True),
        ({"kind": "mast"}, None, True), ({"kind": "mast"}, False, False),
    ],
)  # fmt: skip
def test_services_are_asked_for_the_archive_mast(
    tmp_path: Path, archive: dict[str, Any], services: bool | None, asked: bool
) -> None:
    from resources.home import Home

    home = Home(tmp_path)
    home.__dict__["survey"] = Survey.model_validate(
        {"name": "s", "programs": [2514], "archive": archive, "reference": {"services": services}}
    )
    home.__dict__["archive"] = SimpleNamespace(reference_catalog_folder=None)
    assert home.reference_catalogs.available() == (["LS_DR9", "PS1", "DES", "NSC", "GAIA"] if asked else [])
    assert list(tmp_path.iterdir()) == []
