"""The archive as a folder: what lies where, what repeats, what is refused, and every fault.

Pixels are replaced by a small image and reference files are left out: tests/truth has whole ones.
"""

import csv
import hashlib
import json
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from panoramic.errors import ConflictError, FaultError, InputError, UnknownNameError
from panoramic.simulate import archive, exposures
from panoramic.simulate.archive import simulate_archive
from panoramic.simulate.detector import RateImage
from panoramic.simulate.faults import move_wcs, wrong_success
from panoramic.simulate.plan import generator
from panoramic.simulate.program import Simulation, default_simulation
from panoramic.simulate.truth import Truth


def small(**update):
    base = default_simulation().model_dump() | {"detectors": ["nrcb1", "nrcblong"], "sky": {"galaxy_density": 0.05}}
    base["fields"] = base["fields"][:1]
    base["effects"]["wisps"] = 0.0
    return Simulation.model_validate(base | update)


@pytest.fixture(autouse=True)
def _small_images(monkeypatch):
    def image(simulation, plan, sources):
        noise = generator(simulation.seed, plan.dataset).normal(size=(16, 16)).astype(np.float32)
        flags = np.zeros((16, 16), np.uint32)
        return RateImage(noise, abs(noise), noise**2, noise**2, flags)

    monkeypatch.setattr(exposures, "simulate_exposure", image)
    monkeypatch.setattr(archive, "write_cache", lambda simulation, path, tell: None)


def rows(path):
    with (path / "metadata.csv").open() as stream:
        return list(csv.DictReader(stream))


def content(path):
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob("*") if f.is_file()
    }


def test_layout_and_rows(tmp_path):
    lines = []
    made = simulate_archive(small(), tmp_path / "a", lines.append)
    assert made.made
    assert len(made.datasets) == 4
    assert all(f.exists() for f in [*made.exposures, *made.reference_catalogs.values()])
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "exposures", "metadata.csv", "reference_catalogs", "truth", "simulation.json",
    }  # fmt: skip
    assert any("exposure 4 of 4" in line for line in lines)
    table = rows(tmp_path / "a")
    assert len({r["ArchiveFileID"] for r in table}) == len(table) == 4
    for row in table:
        file = tmp_path / "a" / "exposures" / row["filename"]
        assert int(row["fileSize"]) == file.stat().st_size
        assert row["checksum"] == hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        assert row["dataURI"].endswith(row["filename"])
        assert row["productLevel"] == "2a"
        assert float(row["publicReleaseDate_mjd"]) > float(row["date_obs_mjd"])
    reference = Table.read(made.reference_catalogs["LS_DR9"], format="ascii.ecsv")
    assert reference.colnames == ["ra", "dec", "mag", "ra_error", "dec_error", "pm_ra", "pm_dec", "epoch"]


def test_headers_are_the_archives(tmp_path):
    made = simulate_archive(small(), tmp_path / "a")
    row = next(r for r in rows(tmp_path / "a") if "nrcblong" in r["filename"])
    with fits.open(made.path / "exposures" / row["filename"]) as hdus:
        primary, science = hdus[0].header, hdus["SCI"].header
        assert [h.name for h in hdus] == ["PRIMARY", "SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "ASDF"]
        for keyword, value in {
            "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCBLONG", "MODULE": "B", "CHANNEL": "LONG",
            "FILTER": "F444W", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE", "PROGRAM": "09001", "OBSERVTN": "001",
            "VISIT": "001", "VISITGRP": "02", "SEQ_ID": "2", "ACT_ID": "01", "EXPRIPAR": "PARALLEL_PURE",
            "FASTAXIS": 1, "SLOWAXIS": -2, "SUBARRAY": "FULL", "CRDS_CTX": "jwst_9001.pmap", "S_RAMP": "COMPLETE",
            "FILENAME": row["filename"], "DATAMODL": "ImageModel", "EXPCOUNT": 2,
        }.items():  # fmt: skip
            assert primary[keyword] == value, keyword
        assert science["BUNIT"] == "DN/s"
        assert science["S_REGION"] == row["s_region"]
        assert science["VPARITY"] == -1
        truth = Truth.load(made.path)
        # The simple WCS of the header is the reported pointing at its reference pixel.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(science)
        ra, dec = wcs.all_pix2world(1023.5, 1023.5, 0)
        expected = truth.reported_sky(row["filename"], 1023.5, 1023.5)
        assert np.hypot(ra - expected[0], dec - expected[1]) * 3600 < 0.05


def test_truth_tells_the_errors(tmp_path):
    simulate_archive(small(), tmp_path / "a")
    truth = Truth.load(tmp_path / "a")
    name = truth.exposures["dataset"][0]
    x, y = np.array([10.0, 2000.0]), np.array([300.0, 1500.0])
    ra, dec = truth.true_sky(name + "_rate.fits", x, y)
    np.testing.assert_allclose(truth.true_pixel(name, ra, dec), [x, y], atol=1e-4)
    row = truth.exposure(name)
    reported = truth.reported_sky(name, x, y)
    off = np.hypot((ra - reported[0]) * np.cos(np.radians(dec)), dec - reported[1]) * 3.6e6
    size = np.hypot(row["dv2_error_mas"] + row["jitter_v2_mas"], row["dv3_error_mas"] + row["jitter_v3_mas"])
    assert off == pytest.approx(size, abs=60)
    east, _north = truth.catalog_scatter("LS_DR9")
    assert len(east) == len(truth.references["LS_DR9"])
    assert np.array_equal(np.isnan(east), truth.references["LS_DR9"]["source_id"] < 0)
    with pytest.raises(UnknownNameError):
        truth.exposure("jw00000000000_00000_00000_nrcb1")
    with pytest.raises(UnknownNameError):
        truth.catalog_scatter("2MASS")
    with pytest.raises(InputError, match="no truth"):
        Truth.load(tmp_path)


def test_second_call_does_nothing(tmp_path):
    first = simulate_archive(small(), tmp_path / "a")
    before = content(tmp_path / "a")
    second = simulate_archive(small(), tmp_path / "a")
    assert not second.made
    assert second.datasets == first.datasets
    assert content(tmp_path / "a") == before


def test_other_content_is_refused(tmp_path):
    simulate_archive(small(), tmp_path / "a")
    with pytest.raises(ConflictError, match="another simulated archive"):
        simulate_archive(small(seed=3), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConflictError, match=r"thesis\.tex"):
        simulate_archive(small(), tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("stop_after", [0, 3, 4, 5])
def test_interrupted_archive_goes_on_to_the_same_bytes(tmp_path, stop_after, monkeypatch):
    simulate_archive(small(), tmp_path / "whole")
    count = 0

    def stop(_line):
        nonlocal count
        count += 1
        if count > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_archive(small(), tmp_path / "a", stop)
    with pytest.raises(ConflictError, match="beginning of another"):
        simulate_archive(small(seed=3), tmp_path / "a")
    # A kill in the middle of a write leaves a file that is too short.
    whole = sorted((tmp_path / "a").glob("exposures/*.fits"))
    for file in whole[:1]:
        file.write_bytes(file.read_bytes()[:2880])
    made = []
    original = exposures.write_rate
    monkeypatch.setattr(exposures, "write_rate", lambda *a: (made.append(a[2].dataset), original(*a)))
    simulate_archive(small(), tmp_path / "a")
    assert len(made) == 4 - len(whole[1:])
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_missing_exposure(tmp_path):
    gone = {"kind": "missing_exposure", "match": "*_00002_nrcb1"}
    made = simulate_archive(small(faults=[gone]), tmp_path / "a")
    assert len(made.datasets) == len(rows(made.path)) == len(list(made.path.glob("exposures/*"))) == 3
    # Its neighbours still say that there are two.
    assert {r["expcount"] for r in rows(made.path)} == {"2"}
    made = simulate_archive(small(faults=[gone | {"keep_row": True}]), tmp_path / "b")
    assert len(made.datasets) == 3
    assert len(rows(made.path)) == 4
    assert Truth.load(made.path).exposures["missing"].sum() == 1


def test_truncated_file_and_wrong_checksum(tmp_path):
    faults = [
        {"kind": "truncated_file", "match": "*_00001_nrcb1", "fraction": 0.5},
        {"kind": "wrong_checksum", "match": "*_00002_nrcblong"},
    ]
    made = simulate_archive(small(faults=faults), tmp_path / "a")
    for row in rows(made.path):
        file = made.path / "exposures" / row["filename"]
        whole = int(row["fileSize"]) == file.stat().st_size
        right = row["checksum"] == hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        assert whole != ("00001_nrcb1_" in row["filename"])
        assert right == ("00001_nrcb1_" not in row["filename"] and "00002_nrcblong" not in row["filename"])
    assert not simulate_archive(small(faults=faults), tmp_path / "a").made


def test_pointing_and_smear_faults_are_in_the_truth(tmp_path):
    faults = [
        {"kind": "shifted", "match": "*_nrcblong", "dx_arcsec": 0.3, "dy_arcsec": 0.0},
        {"kind": "smeared", "match": "*_00001_nrcb1"},
    ]
    simulate_archive(small(faults=faults), tmp_path / "a")
    table = Truth.load(tmp_path / "a").exposures
    assert set(table["fault_dx_arcsec"][table["detector"] == "nrcblong"]) == {0.3}
    assert list(table["dataset"][table["smeared"]]) == ["jw09001001001_02201_00001_nrcb1"]


def test_fault_for_nothing_writes_nothing(tmp_path):
    with pytest.raises(FaultError):
        simulate_archive(small(faults=[{"kind": "shifted", "match": "*nrca1", "dx_arcsec": 1, "dy_arcsec": 0}]),
                         tmp_path / "a")  # fmt: skip
    assert not (tmp_path / "a").exists()


def test_stamp_holds_the_description(tmp_path):
    simulate_archive(small(), tmp_path / "a")
    stamp = json.loads((tmp_path / "a" / "simulation.json").read_text())
    assert Simulation.model_validate(stamp["simulation"]) == small()


def test_wrong_success_moves_solutions_only(tmp_path):
    simulation = small(faults=[{"kind": "wrong_success", "match": "j100032*_00002", "shift_arcsec": [0.3, -0.1]}])
    assert wrong_success(simulation, "j100032p0208_v001-9001-f444w_00002") == (0.3, -0.1)
    assert wrong_success(simulation, "j100032p0208_v001-9001-f444w_00003") is None
    header = fits.Header(
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRVAL1": 359.99998, "CRVAL2": 60.0, "CRPIX1": 8.0,
         "CRPIX2": 8.0, "CD1_1": -1.7e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1.7e-5, "A_ORDER": 2, "B_ORDER": 2,
         "A_2_0": 1e-5, "B_0_2": 1e-5}
    )  # fmt: skip
    image = fits.ImageHDU(np.ones((16, 16), np.float32), header, name="SCI")
    plain = fits.ImageHDU(np.ones((16, 16), np.float32), name="ERR")
    rate, log = tmp_path / "jw_rate.fits", tmp_path / "a_wcs.log"
    fits.HDUList([fits.PrimaryHDU(), image, plain]).writeto(rate)
    log.write_text("0 0.1 0.2 0.0 1.0 0.3 26\n")
    catalog = tmp_path / "a.cat.fits"
    Table({"RA": [359.99999], "DEC": [60.0], "X_WORLD": [359.99999], "Y_WORLD": [60.0], "FLUX": [3.0]}).write(catalog)
    before = WCS(fits.getheader(rate, "SCI")).all_pix2world([[3, 4], [14, 2]], 0)
    assert move_wcs([rate, log, catalog], 0.3, -0.1) == [rate, catalog]
    after = WCS(fits.getheader(rate, "SCI")).all_pix2world([[3, 4], [14, 2]], 0)
    east = ((after[:, 0] - before[:, 0] + 180) % 360 - 180) * 0.5 * 3600
    np.testing.assert_allclose(east, 0.3, atol=1e-4)
    np.testing.assert_allclose((after[:, 1] - before[:, 1]) * 3600, -0.1, atol=1e-4)
    moved = Table.read(catalog)
    assert (moved["RA"][0] + 180) % 360 - 180 == pytest.approx(-0.00001 + 0.6 / 3600, abs=1e-8)
    assert moved["Y_WORLD"][0] == pytest.approx(60 - 0.1 / 3600, abs=1e-9)
    assert moved["FLUX"][0] == 3.0
    assert log.read_text().startswith("0 0.1")
    with pytest.raises(FaultError):
        move_wcs([log], 0.3, 0.0)
