"""Products moved on the sky: the WCS as the rotation says, pixels and the rest of the files untouched."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from panoramic.errors import InputError, ProductDamagedError
from panoramic.footprints import parse_s_region, separation_arcmin, unit_vectors
from panoramic.pointing import rotation_of
from panoramic.provenance import sha256_of
from panoramic.reduction.base import CalibratedExposure, Pointing, ReductionResult
from panoramic.reduction.moving import KEYWORDS, SkyCorrection, move_products, recorded_correction, rotate_wcs

MAS = math.radians(1) / 3.6e6
PLACES = [(150.0, 2.0), (359.99999, -30.0), (0.0, 89.99), (212.0, -89.99999), (45.0, 90.0)]
N = 2048


def apart_mas(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.linalg.norm(unit_vectors(*first) - unit_vectors(*second), axis=-1).max() / MAS)


def detector_header(place: tuple[float, float], kind: str = "CD") -> fits.Header:
    """A TAN-SIP WCS like NIRCam's, turned by 30 deg."""
    header = fits.Header()
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, N, N
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["CRPIX1"], header["CRPIX2"], header["CRVAL1"], header["CRVAL2"] = 1024.5, 1020.0, *place
    step, angle = 63.0 / 3.6e6, math.radians(30)
    cd = step * np.array([[-math.cos(angle), math.sin(angle)], [math.sin(angle), math.cos(angle) * 1.002]])
    scale = (1.0, 1.0) if kind == "CD" else (-step, step)
    if kind == "PC":
        header["CDELT1"], header["CDELT2"] = scale
    for i in (1, 2):
        for j in (1, 2):
            header[f"{kind}{i}_{j}"] = cd[i - 1, j - 1] / scale[i - 1]
    header["A_ORDER"] = header["B_ORDER"] = 3
    for key, value in {"A_2_0": 2e-6, "A_1_1": -1e-6, "A_0_3": 3e-10, "B_0_2": 4e-6, "B_1_1": 2e-6}.items():
        header[key] = value
    return header


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:N:128, 0:N:128]
    return np.append(x.ravel(), N - 1).astype(float), np.append(y.ravel(), N - 1).astype(float)


def positions(header: fits.Header) -> tuple[np.ndarray, np.ndarray]:
    ra, dec = WCS(header, relax=True, fix=False).all_pix2world(*grid(), 0)
    return ra, dec


# --- corrections ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_shift_and_a_turn_are_what_they_say(place: tuple[float, float]) -> None:
    """The place itself goes where spherical trigonometry puts it; what lay to its north turns to the east."""
    east, north, turn = 300.0, -400.0, 0.5
    ra, dec = SkyCorrection(*place, east, north, turn).apply(*map(np.array, place))
    assert float(separation_arcmin(*place, ra, dec)) * 60_000 == pytest.approx(500.0, rel=1e-6)
    if abs(place[1]) < 60:
        assert (float(dec) - place[1]) * 3.6e6 == pytest.approx(north, abs=1e-3)
        assert ((float(ra) - place[0] + 180) % 360 - 180) * 3.6e6 * math.cos(math.radians(place[1])) == pytest.approx(
            east, rel=1e-5
        )
        above = SkyCorrection(*place, 0.0, 0.0, turn).apply(np.array(place[0]), np.array(place[1] + 1 / 60))
        assert ((float(above[0]) - place[0] + 180) % 360 - 180) * 3600 * math.cos(
            math.radians(place[1])
        ) == pytest.approx(60 * math.sin(math.radians(turn)), rel=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_compose_inverse_and_another_place(place: tuple[float, float]) -> None:
    one, other = (
        SkyCorrection(*place, 120.0, -30.0, 0.2),
        SkyCorrection(place[0] + 1, place[1] * 0.999, -7.0, 900.0, -0.1),
    )
    ra, dec = place[0] + np.linspace(-0.02, 0.02, 7), np.clip(place[1] + np.linspace(-0.02, 0.02, 7), -90, 90)
    assert apart_mas(one.compose(other).apply(ra, dec), other.apply(*one.apply(ra, dec))) < 1e-6
    assert apart_mas(one.inverse().apply(*one.apply(ra, dec)), (ra, dec)) < 1e-6
    assert apart_mas(one.at(10.0, 20.0).apply(ra, dec), one.apply(ra, dec)) < 1e-6
    again = SkyCorrection.from_matrix(one.matrix, *place)
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(one), abs=1e-7)
    assert np.isnan(SkyCorrection(*place).apply(np.array([np.nan]), np.array([1.0]))).all()


def test_what_is_no_correction() -> None:
    with pytest.raises(InputError, match="finite"):
        SkyCorrection(1.0, 2.0, math.nan)
    with pytest.raises(InputError, match="place on the sky"):
        SkyCorrection(1.0, 91.0)


# --- headers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["CD", "PC"])
@pytest.mark.parametrize("place", PLACES)
def test_a_wcs_is_moved_exactly_and_back(place: tuple[float, float], kind: str) -> None:
    header = detector_header(place, kind)
    before, correction = header.copy(), SkyCorrection(place[0], place[1] * 0.9999, 250.0, 80.0, 0.07)
    rotate_wcs(header, correction)
    assert apart_mas(positions(before), positions(header)) > 200
    assert apart_mas(correction.apply(*positions(before)), positions(header)) < 1e-4
    assert {k: v for k, v in header.items() if k[:2] in ("A_", "B_", "CR") and "VAL" not in k} == {
        k: v for k, v in before.items() if k[:2] in ("A_", "B_", "CR") and "VAL" not in k
    }
    rotate_wcs(header, correction.inverse())
    assert apart_mas(positions(before), positions(header)) < 1e-4


def test_other_projections_are_refused() -> None:
    header = detector_header(PLACES[0])
    header["CTYPE1"], header["CTYPE2"] = "GLON-TAN", "GLAT-TAN"
    with pytest.raises(InputError, match="only TAN projections"):
        rotate_wcs(header, SkyCorrection(1.0, 2.0))


# --- products -------------------------------------------------------------------------------


@pytest.fixture
def products(tmp_path: Path) -> tuple[Path, ReductionResult]:
    """An association's folder with small planes, behind headers of a whole detector's WCS."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "assoc"
    folder.mkdir()
    exposures = []
    for k, place in enumerate([(359.9999, 40.0), (0.0001, 40.001)]):
        header = detector_header(place)
        header["S_REGION"] = "POLYGON ICRS 1 1 2 1 2 2"
        sci = fits.ImageHDU(rng.normal(0, 1, (48, 64)).astype(np.float32), header, name="SCI")
        primary = fits.PrimaryHDU()
        primary.header["TELESCOP"] = ("JWST", "a comment that stays")
        if k == 0:
            primary.header["PNTDRA"], primary.header["PNTDDEC"], primary.header["PNTROLL"] = 10.0, 20.0, 0.01
        dq = fits.ImageHDU(rng.integers(0, 2**32, (48, 64), dtype=np.uint32), name="DQ")
        path = folder / f"jw{k}_rate.fits"
        fits.HDUList([primary, sci, dq]).writeto(path, checksum=k == 1)
        pointing = Pointing(0.0, 40.0, (10.0, 20.0), 0.01) if k == 0 else None
        exposures.append(CalibratedExposure(f"jw{k}", path.name, sha256_of(path), path.stat().st_size, pointing))
    for kind in ("sci", "wht"):
        header = detector_header((0.0, 40.0))
        for key in [k for k in header if k.startswith(("A_", "B_"))]:
            del header[key]
        header["CTYPE1"], header["CTYPE2"], header["LATPOLE"] = "RA---TAN", "DEC--TAN", 40.0
        fits.PrimaryHDU(rng.normal(0, 1, (32, 32)).astype(np.float32), header).writeto(folder / f"x_drz_{kind}.fits")
    table = Table(
        {"id": [3, 1, 2], "ra": [359.99999, 0.00001, np.nan], "dec": [40.0, 40.01, 39.99], "note": ["a", "b", "c"]}
    )
    table["ra"].description, table["flux"] = "deg, ICRS", np.array([1 / 3, 2e-7, 5.0])
    table["flux"].unit, table.meta["origin"] = "uJy", {"k": [1, 2]}
    table.write(folder / "x.cat.ecsv", format="ascii.ecsv")
    (folder / "x.log").write_text("log\n")
    result = ReductionResult(
        "x", "grizli", "1", tuple(exposures), (), None, "x_drz_sci.fits", "x_drz_wht.fits", "x.cat.ecsv", 3, "x.log", 63.0
    )  # fmt: skip
    return folder, result


def headers(folder: Path) -> dict[str, fits.Header]:
    return {p.name: fits.getheader(p, "SCI" if "rate" in p.name else 0).copy() for p in sorted(folder.glob("*.fits"))}


CORRECTION = SkyCorrection(0.0, 40.0, 35.0, -210.0, 0.03)


def test_all_products_are_moved_and_nothing_else(products: tuple[Path, ReductionResult]) -> None:
    folder, result = products
    before, files = headers(folder), {p.name: p.read_bytes() for p in folder.iterdir()}
    planes = {p.name: [h.data.copy() for h in fits.open(p) if h.data is not None] for p in folder.glob("*.fits")}
    table = Table.read(folder / "x.cat.ecsv")
    moved = move_products(folder, result, CORRECTION)
    assert sorted(p.name for p in folder.iterdir()) == sorted(files)
    assert (folder / "x.log").read_bytes() == files["x.log"]
    for name, header in headers(folder).items():
        assert apart_mas(CORRECTION.apply(*positions(before[name])), positions(header)) < 1e-4
        assert recorded_correction(header) == CORRECTION
        assert "[mas]" in header.comments["FRAMDRA"]
        assert header["CTYPE1"] == before[name]["CTYPE1"]
        with fits.open(folder / name, checksum=True) as hdus:
            hdus.verify("exception")
            for old, new in zip(planes[name], [h.data for h in hdus if h.data is not None], strict=True):
                assert new.dtype == old.dtype
                assert np.array_equal(new, old)
    assert fits.getheader(folder / "jw0_rate.fits").comments["TELESCOP"] == "a comment that stays"
    # the outline is the WCS's own
    header = headers(folder)["jw0_rate.fits"]
    corners = WCS(header, relax=True, fix=False).all_pix2world([0, 0, 63, 63], [0, 47, 47, 0], 0)
    assert apart_mas(tuple(parse_s_region(header["S_REGION"]).T), tuple(corners)) < 0.01

    after = Table.read(folder / "x.cat.ecsv")
    want = CORRECTION.apply(np.asarray(table["ra"]), np.asarray(table["dec"]))
    assert apart_mas((np.asarray(after["ra"])[:2], np.asarray(after["dec"])[:2]), (want[0][:2], want[1][:2])) < 1e-6
    assert after.colnames == table.colnames
    assert list(after["id"]) == [3, 1, 2]
    assert list(after["note"]) == ["a", "b", "c"]
    assert list(after["flux"]) == list(table["flux"])
    assert (str(after["flux"].unit), after["ra"].description) == ("uJy", "deg, ICRS")
    assert after.meta["origin"] == {"k": [1, 2]}
    assert recorded_correction(after.meta) == CORRECTION

    for exposure in moved.exposures:
        assert exposure.sha256 == sha256_of(folder / exposure.filename)
        assert exposure.size == (folder / exposure.filename).stat().st_size
    assert [e.sha256 for e in moved.exposures] != [e.sha256 for e in result.exposures]
    assert dataclasses.replace(moved, exposures=result.exposures) == result
    assert ReductionResult.from_json(moved.to_json()) == moved


def test_the_pointing_follows(products: tuple[Path, ReductionResult]) -> None:
    folder, result = products
    moved = move_products(folder, result, CORRECTION)
    pointing, before = moved.exposures[0].pointing, result.exposures[0].pointing
    assert pointing is not None
    assert before is not None
    assert np.allclose(rotation_of(pointing), CORRECTION.matrix @ rotation_of(before), atol=1e-14)
    header = fits.getheader(folder / "jw0_rate.fits")
    assert (header["PNTDRA"], header["PNTDDEC"]) == pytest.approx(pointing.shift_mas)
    assert header["PNTROLL"] == pytest.approx(pointing.roll_deg)
    assert moved.exposures[1].pointing is None
    assert "PNTDRA" not in fits.getheader(folder / "jw1_rate.fits")


def test_moves_compose_and_moving_back_restores_the_wcs(products: tuple[Path, ReductionResult]) -> None:
    folder, result = products
    before = headers(folder)
    second = SkyCorrection(0.01, 40.02, -5.0, 17.0, -0.2)
    now = move_products(folder, move_products(folder, result, CORRECTION), second)
    total = CORRECTION.compose(second)
    for name, header in headers(folder).items():
        recorded = recorded_correction(header)
        assert recorded is not None
        assert (recorded.ra, recorded.dec) == (CORRECTION.ra, CORRECTION.dec)
        assert apart_mas(total.apply(*positions(before[name])), positions(header)) < 1e-3
        assert apart_mas(recorded.apply(*positions(before[name])), positions(header)) < 1e-3
    move_products(folder, now, total.inverse())
    for name, header in headers(folder).items():
        assert apart_mas(positions(before[name]), positions(header)) < 1e-3
        assert abs(header["FRAMDRA"]) < 1e-5


def test_files_that_are_not_what_was_recorded_are_refused(products: tuple[Path, ReductionResult]) -> None:
    folder, result = products
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    moved = move_products(folder, result, CORRECTION)
    with pytest.raises(ProductDamagedError, match="isn't what was recorded"):
        move_products(folder, result, CORRECTION)
    # one product of the frame before among those of the new one
    (folder / "x_drz_wht.fits").write_bytes(files["x_drz_wht.fits"])
    with pytest.raises(ProductDamagedError, match="different frames"):
        move_products(folder, moved, CORRECTION)
    (folder / "x_drz_wht.fits").unlink()
    with pytest.raises(ProductDamagedError, match="missing"):
        move_products(folder, moved, CORRECTION)


def test_a_failure_leaves_all_files_as_they_were(
    products: tuple[Path, ReductionResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = products
    table = Table.read(folder / "x.cat.ecsv")
    table["position"] = table["ra"]
    del table["ra"]
    table.write(folder / "x.cat.ecsv", format="ascii.ecsv", overwrite=True)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match="has no column ra"):
        move_products(folder, result, CORRECTION)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        move_products(folder, dataclasses.replace(result, catalog=None), CORRECTION)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files


def test_without_image_and_catalogue(products: tuple[Path, ReductionResult]) -> None:
    folder, result = products
    moved = move_products(folder, dataclasses.replace(result, image=None, weight=None, catalog=None), CORRECTION)
    assert json.loads(moved.to_json())["catalog"] is None
    assert recorded_correction(fits.getheader(folder / "jw0_rate.fits", "SCI")) == CORRECTION
    assert not set(KEYWORDS) & set(fits.getheader(folder / "x_drz_sci.fits"))
