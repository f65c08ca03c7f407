"""grizli's files become the contract's: headers of the archive, JWST's bits, MJy/sr, one WCS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from panoramic.pointing import angle_change, moved_position, rotation_of
from panoramic.reduction.base import CATALOG_COLUMNS, Pointing
from panoramic.reduction.grizli_products import (
    ProductError,
    pointing_correction,
    verify_exposure,
    write_catalog,
    write_exposure,
    write_image,
    write_products,
)

N = 64
PROVENANCE = {"ENGINE": "grizli", "ENGVER": "1.14.3", "CRDS_CTX": "jwst_1.pmap", "ASSOC": "x", "REFCAT": "LS_DR9"}
SKY, SHAPE = 0.25, (N, N)


def wcs_cards(scale_mas: float = 63.0, ra: float = 10.0) -> dict[str, object]:
    step = scale_mas / 3.6e6
    return {
        "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRPIX1": N / 2, "CRPIX2": N / 2, "CRVAL1": ra,
        "CRVAL2": 2.0, "CD1_1": -step, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": step, "A_ORDER": 2, "B_ORDER": 2,
        "A_2_0": 1e-6, "B_0_2": 1e-6,
    }  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """What grizli leaves, the archive's file, the recorded weight."""
    rng = np.random.default_rng(3)
    sci = (SKY + 0.1 + rng.normal(0, 0.01, SHAPE)).astype(np.float32)
    error, dq = np.full(SHAPE, 0.01, np.float32), np.zeros(SHAPE, np.int16)
    weight = np.full(SHAPE, 1e4, np.float32)
    sci[5, 5], error[5, 5], weight[5, 5] = 0, 1e5, 0  # NaN in the archive
    dq[7, 7] = 4096  # a cosmic ray
    weight[7, 7] = 0
    weight[9, 9] = 0  # a hot pixel that only grizli's drizzle knows
    planes = {"SCI": sci, "ERR": error, "DQ": dq, "BKG": np.full(SHAPE, 0.1, np.float32)}
    done = fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(plane, name=name) for name, plane in planes.items())])
    done[0].header.update(TELESCOP="HST", INSTRUME="WFC3", DETECTOR="IR", FILTER="F444W", R_FLAT="flat_1.fits")
    done["SCI"].header.update(wcs_cards(), BUNIT="ELECTRONS/S", OBUNIT="MJy/sr", MDRIZSKY=SKY, PHOTMJSR=0.37)
    archive_dq = np.zeros(SHAPE, np.uint32)
    archive_dq[11, 11] = (1 << 30) | 4 | 4096
    raw = np.ones(SHAPE, np.float32)
    raw[5, 5] = np.nan
    original = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(raw, name="SCI"), fits.ImageHDU(error, name="ERR"),
                             fits.ImageHDU(archive_dq, name="DQ")])  # fmt: skip
    original[0].header.update(TELESCOP="JWST", INSTRUME="NIRCAM", DETECTOR="NRCBLONG", FILTER="F444W", PUPIL="CLEAR",
                              PROGRAM="09001", CRDS_CTX="jwst_0.pmap")  # fmt: skip
    original["SCI"].header.update(CTYPE1="RA---TAN", CRVAL1=10.1, CRVAL2=2.0, PC1_1=1.0, CDELT1=1e-5, RA_REF=10.1,
                                  BUNIT="DN/s", S_REGION="POLYGON ICRS  1 1 1 1")  # fmt: skip
    paths = tmp_path / "done.fits", tmp_path / "archive.fits", tmp_path / "w.npy"
    done.writeto(paths[0])
    original.writeto(paths[1])
    np.save(paths[2], weight)
    return paths


def test_an_exposure(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "out_rate.fits"
    write_exposure(*files, path, PROVENANCE, 0.0, several=True)
    with fits.open(path) as hdus:
        assert [h.name for h in hdus] == ["PRIMARY", "SCI", "ERR", "WHT", "DQ"]
        primary, header = hdus[0].header, hdus["SCI"].header
        archive = ("JWST", "NIRCAM", "NRCBLONG", "F444W", "CLEAR", "09001")
        assert tuple(primary[k] for k in ("TELESCOP", "INSTRUME", "DETECTOR", "FILTER", "PUPIL", "PROGRAM")) == archive
        assert {k: primary[k] for k in PROVENANCE} == PROVENANCE and primary["R_FLAT"] == "flat_1.fits"
        sci, error, weight, dq = (hdus[k].data for k in ("SCI", "ERR", "WHT", "DQ"))
        assert (sci.dtype.kind, dq.dtype.kind, dq.dtype.itemsize) == ("f", "u", 4)
        # the sky's level and shape are gone
        assert abs(np.nanmedian(sci)) < 0.005 and header["BUNIT"] == "MJy/sr" and header["SKYLEVEL"] == SKY
        assert header["RA_REF"] == 10.1 and header["PHOTMJSR"] == 0.37
        # DO_NOT_USE just where there is no weight; JWST's bits as the archive has them
        assert ((dq & 1 > 0) == (weight == 0)).all() and (weight == 0).sum() == 3
        assert dq[7, 7] == 16 | 1 and dq[9, 9] == 1 and dq[5, 5] == 1
        assert dq[11, 11] == (1 << 30) | 4 | 4096
        assert np.isnan(sci[5, 5]) and np.isnan(error[5, 5]) and np.isfinite(sci[7, 7])
        wcs = WCS(header)
        assert wcs.sip is not None and not any(k.startswith(("PC1", "CDELT")) for k in header)
        ra, dec = wcs.all_pix2world(N / 2 - 1, N / 2 - 1, 0)
        assert (float(ra), float(dec)) == pytest.approx((10.0, 2.0))
        assert header["S_REGION"].startswith("POLYGON ICRS  10.")


def test_the_core_of_a_bright_star_keeps_its_weight(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Saturated late: a slope is there. Saturated at once, or in a snowball: it is not the star's light."""
    star, lost, snowball = (20, 20), (22, 22), (24, 24)
    with fits.open(files[1], mode="update") as hdus:
        hdus[0].header["EFFINTTM"] = 900.0
        for place, flags, rate in ((star, 2, 90.0), (lost, 3, 90.0), (snowball, 2, 0.05)):
            hdus["DQ"].data[place], hdus["SCI"].data[place] = flags, rate
    with fits.open(files[0], mode="update") as hdus:
        hdus["DQ"].data[star] = 4096  # and its core was taken for a cosmic ray
    weight = np.load(files[2])
    for place in (star, lost, snowball):
        weight[place] = 0
    np.save(files[2], weight)
    write_exposure(*files, tmp_path / "o.fits", PROVENANCE, 0.0, several=True)
    with fits.open(tmp_path / "o.fits") as hdus:
        assert hdus["WHT"].data[star] == np.median(weight[weight > 0])
        assert hdus["DQ"].data[star] == 2
        for place in (lost, snowball):
            assert hdus["WHT"].data[place] == 0
            assert hdus["DQ"].data[place] & 1


def moved_cards(cards: dict[str, object], rotation: np.ndarray, scale: float = 1.0) -> dict[str, object]:
    """The WCS after a rotation of the sky, and a scale about its reference pixel."""
    place = float(cards["CRVAL1"]), float(cards["CRVAL2"])  # type: ignore[arg-type]
    angle = np.radians(angle_change(rotation, *place))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * scale
    matrix = turn @ np.array([[cards[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)], float)
    ra, dec = moved_position(rotation, *place)
    new = {f"CD{i}_{j}": float(matrix[i - 1, j - 1]) for i in (1, 2) for j in (1, 2)}
    return {**cards, "CRVAL1": ra, "CRVAL2": dec, **new}


@pytest.mark.parametrize("prior", [None, Pointing(359.9999, -60.0, (-3100.0, 900.0), 0.08)])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (180.0, 1.0002)])
def test_the_correction_of_the_archives_pointing(
    tmp_path: Path, prior: Pointing | None, offset: float, scale: float
) -> None:
    """From the archive's own pointing to the aligned one, whatever the working copy was moved by; a scale is left out."""
    place = (359.9999, -60.0)
    total = Pointing(*place, (210.0, -87.0), 0.05)
    archive = {**wcs_cards(63.0), "CRVAL1": place[0], "CRVAL2": place[1], "CRPIX1": 1024.5, "CRPIX2": 1024.5,
               "CD1_1": 1e-5, "CD1_2": 1.44e-5, "CD2_1": 1.44e-5, "CD2_2": -1e-5}  # fmt: skip
    initial = archive if prior is None else moved_cards(archive, rotation_of(prior))
    aligned = moved_cards(archive, rotation_of(total), scale)
    for cards in (initial, aligned):
        cards["CRVAL1"] = (cards["CRVAL1"] + offset) % 360  # type: ignore[operator]
    reference: dict[str, object] = {"RA_REF": place[0], "DEC_REF": place[1]}
    for name, cards in (("aligned", aligned), ("archive", reference)):
        hdu = fits.ImageHDU(np.zeros((2, 2)), name="SCI")
        hdu.header.update(cards)
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / f"{name}.fits")
    given = None if prior is None else {"shift_mas": list(prior.shift_mas), "roll_deg": prior.roll_deg}
    found = pointing_correction(
        fits.Header(initial), tmp_path / "aligned.fits", tmp_path / "archive.fits", given, offset
    )
    assert (found.ra, found.dec) == place
    assert found.shift_mas == pytest.approx(total.shift_mas, abs=0.01)
    assert found.roll_deg == pytest.approx(total.roll_deg, abs=1e-7)


def test_the_correction_is_in_the_header(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pointing = Pointing(10.1, 2.0, (123.25, -4.5), 0.0125)
    write_exposure(*files, tmp_path / "o.fits", PROVENANCE, 0.0, several=True, pointing=pointing)
    header = fits.getheader(tmp_path / "o.fits")
    assert (header["PNTDRA"], header["PNTDDEC"], header["PNTROLL"]) == (123.25, -4.5, 0.0125)
    assert (
        all("[mas]" in header.comments[key] for key in ("PNTDRA", "PNTDDEC")) and "[deg]" in header.comments["PNTROLL"]
    )
    write_exposure(*files, tmp_path / "p.fits", PROVENANCE, 0.0, several=True)
    assert "PNTDRA" not in fits.getheader(tmp_path / "p.fits")


def test_one_exposure_alone_has_no_outliers(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    write_exposure(*files, tmp_path / "o.fits", PROVENANCE, 0.0, several=False)
    assert not (fits.getdata(tmp_path / "o.fits", "DQ") & 16).any()


def test_a_turned_sky_is_turned_back(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with fits.open(files[0], mode="update") as hdus:
        hdus["SCI"].header["CRVAL1"] = 89.999
    write_exposure(*files, tmp_path / "o.fits", PROVENANCE, 90.0, several=True)
    assert fits.getheader(tmp_path / "o.fits", "SCI")["CRVAL1"] == pytest.approx(359.999)


def test_the_same_bytes_twice(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_exposure(*files, tmp_path / name, PROVENANCE, 0.0, several=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_counts_are_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with fits.open(files[0], mode="update") as hdus:
        hdus["SCI"].header["OBUNIT"] = "DN/s"
    with pytest.raises(ProductError, match="DN/S: no flux scale"):
        write_exposure(*files, tmp_path / "o.fits", PROVENANCE, 0.0, several=True)


@pytest.mark.parametrize(
    ("plane", "value", "said"),
    [("WHT", 0, "can be used"), ("ERR", 0, "no value or no error"), ("SCI", np.nan, "no value or no error")],
)
def test_what_can_not_be_right_is_refused(
    files: tuple[Path, Path, Path], tmp_path: Path, plane: str, value: float, said: str
) -> None:
    path = tmp_path / "o_rate.fits"
    write_exposure(*files, path, PROVENANCE, 0.0, several=True)
    with fits.open(path, mode="update") as hdus:
        hdus[plane].data[2:, 2:] = value
    with pytest.raises(ProductError, match=said):
        verify_exposure(path)


def test_a_wcs_that_is_not_the_detectors_is_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "o_rate.fits"
    with fits.open(files[0], mode="update") as hdus:
        hdus["SCI"].header.update(CD1_1=-1e-5, CD2_2=1e-5)
    write_exposure(*files, path, PROVENANCE, 0.0, several=True)
    with pytest.raises(ProductError, match="pixel scale of 36"):
        verify_exposure(path)


def test_image_and_catalogue(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    y, x = np.indices((200, 200))
    star = np.exp(-((x - 99.5) ** 2 + (y - 120.0) ** 2) / (2 * 1.2**2))
    flux_ujy, scale = 5.0, 0.063
    # twice the noise that the weight tells of
    data = star / star.sum() * flux_ujy / (1e12 * (scale / 206264.806247) ** 2) + rng.normal(0, 2e-3, star.shape)
    header = fits.Header({k: v for k, v in wcs_cards(63.0, 100.0).items() if not k.startswith(("A_", "B_"))})
    header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", TELESCOP="HST", FLT00001="work name")
    for kind, plane in (("sci", data), ("wht", np.full(data.shape, 1e6))):
        fits.PrimaryHDU(plane.astype(np.float32), header).writeto(tmp_path / f"x_drz_{kind}.fits")
        measured = write_image(tmp_path / f"x_drz_{kind}.fits", tmp_path / f"{kind}.fits", "MJy/sr", PROVENANCE, 90.0)
        assert measured == pytest.approx(63.0)
    out = fits.getheader(tmp_path / "sci.fits")
    assert out["CRVAL1"] == 10.0 and out["TELESCOP"] == "JWST" and "FLT00001" not in out and out["REFCAT"] == "LS_DR9"
    rows = Table({"NUMBER": [1, 2], "X_IMAGE": [100.5, -500.0], "Y_IMAGE": [121.0, 1.0], "MAG_AUTO": [22.1, np.nan],
                  "FLUX_RADIUS": [1.4, 0.0], "FLAG": [0, 2]})  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(rows)]).writeto(tmp_path / "x.cat.fits")
    fits.writeto(tmp_path / "x_bkg.fits", np.zeros(data.shape, np.float32))
    fits.writeto(tmp_path / "x_seg.fits", (star > 1e-3).astype(np.int32))
    n = write_catalog(tmp_path / "x.cat.fits", tmp_path / "sci.fits", tmp_path / "wht.fits", tmp_path / "c.ecsv")
    catalog = Table.read(tmp_path / "c.ecsv")
    assert n == len(catalog) == 1  # what can't be measured is no source
    assert catalog.colnames == list(CATALOG_COLUMNS)
    row = catalog[0]
    assert (row["x"], row["y"]) == (99.5, 120.0)
    assert row["flux"] == pytest.approx(flux_ujy, rel=0.01)
    area = np.pi * (0.36 / scale) ** 2
    assert row["flux_error"] == pytest.approx(2e-3 * np.sqrt(area) * 1e12 * (scale / 206264.806247) ** 2, rel=0.2)
    sky = WCS(out).all_pix2world(99.5, 120.0, 0)
    assert (row["ra"], row["dec"]) == pytest.approx((float(sky[0]), float(sky[1])))


def test_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    job = {"work": str(tmp_path), "root": "nircam-f444w-clear", "products": str(tmp_path / "p"), "exposures": [],
           "ra_offset": 0.0, "association": "x", "provenance": {}}  # fmt: skip
    (tmp_path / "nircam-f444w-clear" / "Prep").mkdir(parents=True)
    made = write_products(job, {"a_rate.fits": "w.npy"})
    assert made["exposures"] == {} and made["catalog"] is None
