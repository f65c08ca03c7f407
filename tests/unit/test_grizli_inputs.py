"""Bad input is refused before the engine starts, with the file and the cause named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from panoramic.errors import (
    CalibrationError,
    ExposureFileError,
    InputError,
    MissingKeywordError,
    NoUsableExposureError,
    TruncatedFileError,
    WrongShapeError,
)
from panoramic.pointing import moved_position, rotation_of
from panoramic.reduction.base import CalibrationSetup, ExposureInput, Pointing, PointingPrior, ReferenceSources
from panoramic.reduction.grizli_child import complete_header, describe_prior
from panoramic.reduction.grizli_job import GrizliJob
from panoramic.reduction.grizli_parameters import (
    SECOND_ATTEMPT,
    GrizliParameters,
    second_parameters,
    validate_parameters,
)
from panoramic.reduction.rate_files import check_calibration, read_association, read_rate_header

PRIMARY = {
    "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCBLONG", "CHANNEL": "LONG", "MODULE": "B",
    "FILTER": "F444W", "PUPIL": "F470N", "EXP_TYPE": "NRC_IMAGE", "DATE-OBS": "2025-05-02",
    "TIME-OBS": "08:21:00.000", "EXPSTART": 60797.3, "EFFEXPTM": 900.0,
}  # fmt: skip
POINTING = {
    "RA_REF": 150.1, "DEC_REF": 2.3, "ROLL_REF": 112.0, "V2_REF": -89.5, "V3_REF": -491.4, "VPARITY": -1,
    "V3I_YANG": 0.06,
}  # fmt: skip

MakeRate = Callable[..., Path]


@pytest.fixture
def make_rate(tmp_path: Path) -> MakeRate:
    """A maker of rate files: small on disk (compressible zeros are not the point), right in structure."""

    def make(
        name: str = "a", shape: tuple[int, ...] = (2048, 2048), drop: str = "",
        planes: tuple[str, ...] = ("SCI", "ERR", "DQ"), **changed: Any,
    ) -> Path:  # fmt: skip
        primary = fits.PrimaryHDU()
        primary.header.update({k: changed.get(k.replace("-", "_"), v) for k, v in PRIMARY.items() if k != drop})
        hdus = [primary]
        for plane in planes:
            kind = np.uint8 if plane == "DQ" else np.int16
            hdu = fits.ImageHDU(np.zeros(shape, kind), name=plane)
            if plane == "SCI":
                hdu.header.update({k: changed.get(k, v) for k, v in POINTING.items() if k != drop})
            hdus.append(hdu)
        path = tmp_path / f"{name}_rate.fits"
        fits.HDUList(hdus).writeto(path, overwrite=True)
        return path

    return make


def exposure(path: Path) -> ExposureInput:
    return ExposureInput(path.name.removesuffix("_rate.fits"), path)


def test_a_good_file(make_rate: MakeRate) -> None:
    header = read_rate_header(exposure(make_rate()))
    assert (header.detector, header.filter, header.pupil, header.is_long_wave) == ("NRCBLONG", "F444W", "F470N", True)
    assert header.end == pytest.approx(header.start + 900 / 86400)


@pytest.mark.parametrize("keep", [0, 100, 2880, 30_000, 9_000_000, -2880])
def test_a_cut_file(make_rate: MakeRate, keep: int) -> None:
    path = make_rate()
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(TruncatedFileError, match=r"a_rate\.fits"):
        read_rate_header(exposure(path))


def test_not_fits(tmp_path: Path) -> None:
    path = tmp_path / "x_rate.fits"
    path.write_text("<html>503 Service Unavailable</html>" * 200)
    with pytest.raises(TruncatedFileError, match=r"x_rate\.fits"):
        read_rate_header(exposure(path))


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExposureFileError, match="is not there"):
        read_rate_header(exposure(tmp_path / "x_rate.fits"))
    with pytest.raises(ExposureFileError, match="can't be read"):
        read_rate_header(ExposureInput("x", tmp_path))


@pytest.mark.parametrize("shape", [(640, 640), (2, 2048, 2048), (2048, 2040)])
def test_wrong_shape(make_rate: MakeRate, shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongShapeError, match=" x ".join(map(str, shape))):
        read_rate_header(exposure(make_rate(shape=shape)))


def test_missing_plane(make_rate: MakeRate) -> None:
    with pytest.raises(ExposureFileError, match="has no ERR plane"):
        read_rate_header(exposure(make_rate(planes=("SCI", "DQ"))))


@pytest.mark.parametrize("key", ["RA_REF", "V3I_YANG", "FILTER", "EFFEXPTM", "DATE-OBS"])
def test_missing_keyword(make_rate: MakeRate, key: str) -> None:
    with pytest.raises(MissingKeywordError, match=f"lacks {key}"):
        read_rate_header(exposure(make_rate(drop=key)))


def test_empty_and_impossible_keywords(make_rate: MakeRate) -> None:
    with pytest.raises(MissingKeywordError, match="lacks PUPIL"):
        read_rate_header(exposure(make_rate(PUPIL="")))
    with pytest.raises(MissingKeywordError, match="should be a number"):
        read_rate_header(exposure(make_rate(ROLL_REF="none")))
    with pytest.raises(MissingKeywordError, match="exposure time of 0"):
        read_rate_header(exposure(make_rate(EFFEXPTM=0.0)))


def test_other_instruments_and_modes(make_rate: MakeRate) -> None:
    with pytest.raises(ExposureFileError, match="NIRISS"):
        read_rate_header(exposure(make_rate(INSTRUME="NIRISS")))
    with pytest.raises(ExposureFileError, match="no imaging exposure"):
        read_rate_header(exposure(make_rate(PUPIL="GRISMR")))


def test_an_association_is_of_one_kind(make_rate: MakeRate) -> None:
    a = exposure(make_rate("a"))
    with pytest.raises(NoUsableExposureError):
        read_association("x", ())
    with pytest.raises(InputError, match="more than once"):
        read_association("x", (a, a))
    b = exposure(make_rate("b", PUPIL="CLEAR"))
    with pytest.raises(InputError, match=r"more than one pupil: CLEAR \(b_rate.fits\), F470N \(a_rate.fits\)"):
        read_association("x", (a, b))
    c = exposure(make_rate("c", DETECTOR="NRCALONG"))
    with pytest.raises(InputError, match="more than one detector"):
        read_association("x", (a, c))


def test_calibration(tmp_path: Path) -> None:
    setup = CalibrationSetup(tmp_path / "crds", "jwst_1.pmap")
    with pytest.raises(CalibrationError, match="CRDS cache is missing"):
        check_calibration(setup)
    (tmp_path / "crds" / "config" / "jwst").mkdir(parents=True)
    with pytest.raises(CalibrationError, match="server_config"):
        check_calibration(setup)
    (tmp_path / "crds" / "config" / "jwst" / "server_config").write_text("{}")
    with pytest.raises(CalibrationError, match=r"context jwst_1\.pmap is missing"):
        check_calibration(setup)
    (tmp_path / "crds" / "mappings" / "jwst").mkdir(parents=True)
    (tmp_path / "crds" / "mappings" / "jwst" / "jwst_1.pmap").write_text("")
    check_calibration(setup)
    with pytest.raises(CalibrationError, match="configuration folder"):
        check_calibration(CalibrationSetup(tmp_path / "crds", "jwst_1.pmap", grizli_path=tmp_path / "none"))


# --- parameters ----------------------------------------------------------------------------


def test_lean_and_what_wins_over_it() -> None:
    default, lean = validate_parameters({}).prep_args(), validate_parameters({"lean": True}).prep_args()
    assert default["tweak_mosaic_iters"] == 2 and "angle_background_kwargs" not in default
    assert lean["tweak_mosaic_iters"] == 0 and lean["angle_background_kwargs"] == {}
    mixed = validate_parameters({"lean": True, "tweak_mosaic_iters": 1, "angle_background": True}).prep_args()
    assert mixed["tweak_mosaic_iters"] == 1 and "angle_background_kwargs" not in mixed


def test_switches() -> None:
    given = {"oneoverf": False, "background_mesh": None, "align_mag_limits": [14, 25, 0.1]}
    args = validate_parameters(given).prep_args()
    assert args["oneoverf_kwargs"] is None and args["imaging_bkg_params"] is None
    assert args["align_mag_limits"] == [14.0, 25.0, 0.1]
    assert validate_parameters({}).prep_args()["nircam_wisp_kwargs"]["download"] is False


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(InputError, match="tweak_treshold: unknown parameter, did you mean tweak_threshold"):
        validate_parameters({"tweak_treshold": 3})
    with pytest.raises(InputError, match=r"tweak_n_min: .*got -1"):
        validate_parameters({"tweak_n_min": -1})
    with pytest.raises(InputError, match=r"driz_cr_snr.*lean|lean.*driz_cr_snr"):
        validate_parameters({"lean": "perhaps", "driz_cr_snr": "high"})


def test_each_parameter_is_described() -> None:
    assert all(field.description for field in GrizliParameters.model_fields.values())


def test_a_second_attempt_looks_further() -> None:
    first = {"lean": True, "align_ref_border": 500, "tweak_threshold": 4.0}
    second = validate_parameters(second_parameters(first, None, 10.0))
    assert second.lean and second.tweak_threshold == 4.0
    # 10 arcsec are 323 pixels of a short-wave detector; what was wider stays
    assert 323 < second.align_clip < 400 and 323 < second.tweak_max_dist < 400 and second.align_ref_border == 500
    assert second.align_final_niter == 0
    assert validate_parameters(second_parameters({"align_clip": -1}, None, 10.0)).align_clip == -1
    assert set(SECOND_ATTEMPT) <= set(GrizliParameters.model_fields)
    assert first == {"lean": True, "align_ref_border": 500, "tweak_threshold": 4.0}


def test_a_survey_that_names_its_second_parameters_gets_these_alone() -> None:
    assert second_parameters({"lean": True, "tweak_n_min": 8}, {"tweak_n_min": 5}, 10.0) == {
        "lean": True,
        "tweak_n_min": 5,
    }
    assert second_parameters({"lean": True}, {}, 10.0) == {"lean": True}
    with pytest.raises(InputError, match="did you mean align_clip"):
        second_parameters({}, {"align_klip": 5}, 10.0)


# --- the reference -------------------------------------------------------------------------


def test_the_reference_is_written_by_brightness(make_rate: MakeRate, tmp_path: Path) -> None:
    """grizli keeps the first 200 rows: the brightest; unknown magnitudes last, equal ones as they came."""
    mag = np.array([22.0, np.nan, 19.5, 22.0, np.nan, 18.0, 15.0])
    ra = 150.0 + np.arange(7) / 100
    dec = np.array([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, np.nan])
    reference = ReferenceSources("LS_DR9", ra, dec, mag, np.full(7, 30.0))
    folder = tmp_path / "job"
    folder.mkdir()
    job = GrizliJob(
        folder, "assoc", (read_rate_header(ExposureInput("a", make_rate())),), reference, GrizliParameters(),
        CalibrationSetup(tmp_path, "jwst_1.pmap"), (), "1.14.3",
    )  # fmt: skip
    job.write()
    rows = np.loadtxt(folder / "reference.radec")
    assert rows[:, 0] == pytest.approx([150.05, 150.02, 150.0, 150.03, 150.01, 150.04], abs=1e-9)


# --- the working copy ----------------------------------------------------------------------


def test_the_copy_gets_what_grizli_reads(make_rate: MakeRate) -> None:
    path = make_rate(RA_REF=359.99)
    complete_header(path, 90.0)
    with fits.open(path) as hdus:
        primary, sci = hdus[0].header, hdus["SCI"].header
        assert primary["EXPOSURE"] == "1" and primary["TARGNAME"] == "indef"
        assert sci["PA_V3"] == 112.0
        assert sci["RA_REF"] == pytest.approx(89.99) and sci["CRVAL1"] == pytest.approx(89.99)
        assert sci["CTYPE1"] == "RA---TAN"


PRIOR = PointingPrior(
    "a", (-812.5, 2400.25), 0.071, ((4.0, 0, 0), (0, 4.0, 0), (0, 0, 1e-6)), "exposure", ("b", "c"), ("d",)
)


def sky_of_pixels(sci: Any, va_scale: float = 1.00003) -> tuple[np.ndarray, np.ndarray]:
    """Where a header's attitude puts pixels, by the simulator's own geometry, as assign_wcs has it."""
    from panoramic.simulate import geometry

    pointing = geometry.Pointing(sci["RA_REF"], sci["DEC_REF"], sci["ROLL_REF"], va_scale)
    axis = np.linspace(0, 2047, 5)
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    return geometry.aperture("nrcblong").pixel_to_sky(pointing, x, y)


def separation_mas(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    vectors = []
    for ra, dec in (first, second):
        lon, lat = np.radians(ra), np.radians(dec)
        vectors.append(np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]))
    return float(np.linalg.norm(vectors[0] - vectors[1], axis=0).max() * 206264806.247)


@pytest.mark.parametrize("place", [(150.1, 2.3), (0.0001, -31.2), (233.0, 89.99), (10.0, -89.9)])
@pytest.mark.parametrize("offset", [0.0, 90.0])
def test_a_prior_moves_the_whole_pointing(make_rate: MakeRate, place: tuple[float, float], offset: float) -> None:
    """The telescope turns as a rigid body: every pixel's position is turned alike, in each way that a header tells."""
    matrix = np.array([[-0.374, 0.927], [0.927, 0.374]])
    cards = {f"PC{i}_{j}": float(matrix[i - 1, j - 1]) for i in (1, 2) for j in (1, 2)} | {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1024.5, "CRPIX2": 1024.5, "CRVAL1": place[0],
        "CRVAL2": place[1], "CDELT1": 1.75e-5, "CDELT2": 1.76e-5, "PA_V3": 111.0, "PA_APER": 112.1, "RA_V1": place[0],
        "DEC_V1": place[1] - 0.09, "V2_REF": -89.39, "V3_REF": -491.44,
    }  # fmt: skip
    path = make_rate(RA_REF=place[0], DEC_REF=place[1])
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].header.update(cards)
        before = hdus["SCI"].header.copy()
    complete_header(path, offset, asdict(PRIOR))
    after = fits.getheader(path, "SCI")
    rotation = rotation_of(Pointing(*place, PRIOR.shift_mas, PRIOR.roll_deg))

    def turned(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = np.array([moved_position(rotation, a, d) for a, d in zip(ra, dec, strict=True)])
        return moved[:, 0] + offset, moved[:, 1]

    x, y = np.array([0.0, 2047, 2047, 0, 1000]), np.array([0.0, 0, 2047, 2047, 900])
    for positions in (sky_of_pixels, lambda header: WCS(header).all_pix2world(x, y, 0)):
        assert separation_mas(positions(after), turned(*positions(before))) < 1e-3
    boresight = np.array([before["RA_V1"]]), np.array([before["DEC_V1"]])
    assert separation_mas((np.array([after["RA_V1"]]), np.array([after["DEC_V1"]])), turned(*boresight)) < 1e-3
    # all angles by about the roll and the turn of north, which differ from place to place near a pole
    change = after["PA_APER"] - before["PA_APER"]
    assert (after["ROLL_REF"] - before["ROLL_REF"] - change) % 360 == pytest.approx(0, abs=1e-9)
    if abs(place[1]) < 80:
        assert change == pytest.approx(0.071, abs=1e-3)
        assert after["PA_V3"] - before["PA_V3"] == pytest.approx(change, abs=1e-4)


def test_a_prior_of_an_exposure_with_few_keywords(make_rate: MakeRate) -> None:
    path = make_rate()
    complete_header(path, 0.0, asdict(PRIOR))
    sci = fits.getheader(path, "SCI")
    assert (sci["CRVAL1"], sci["CRVAL2"]) == (sci["RA_REF"], sci["DEC_REF"]) and sci["RA_REF"] != POINTING["RA_REF"]
    assert sci["PA_V3"] == pytest.approx(112.071, abs=1e-4) and "RA_V1" not in sci


def test_a_prior_in_the_log() -> None:
    said = describe_prior(asdict(PRIOR))
    assert said == (
        "pointing prior: a moved by -812.50 mas east, 2400.25 mas north, 0.07100 deg from north to east "
        "(from the exposure: b, c; left out d)"
    )
