"""grizli's logs become numbers and named degradations. The texts are grizli 1.14.3's own, from real runs."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from panoramic.reduction.base import AbsoluteFit, RelativeFit
from panoramic.reduction.grizli_logs import (
    RADIAL_NMAD,
    absolute_fit,
    alignment_failure,
    find_degradations,
    last_exception,
    last_meaningful_lines,
    parse_shifts_log,
    parse_wcs_log,
)
from panoramic.reduction.grizli_patterns import ALIGNMENT_FAILURES, DEGRADATIONS, HARMLESS, SUSPICIOUS

A, B, C = (f"jw09001001001_02201_0000{i}_nrcblong" for i in (1, 2, 3))
NAMES = {f"{name}_rate.fits": name for name in (A, B, C)}
STEMS = {name: name for name in (A, B, C)}

SHIFTS = f"""# flt xshift yshift rot scale N rmsx rmsy
# fit_order: -1
{A}_rate.fits  -0.000   0.000  0.00000  1.00000   100  0.000  0.000
{B}_rate.fits   0.104  -0.044  0.00000  1.00000    92  0.010  0.011
"""
REJECTED = f"""# flt xshift yshift rot scale N rmsx rmsy
# fit_order: -1
# match['{A}_rate.fits'] = []
{A}_rate.fits   0.000   0.000  0.00000  1.00000    76  0.000  0.000
# ! {B}_rate.fits  -0.812   0.441  0.00000  1.00000     7  0.201  0.187
{B}_rate.fits   0.000   0.000  0.00000  1.00000     7  0.201  0.187
# ! {C}_rate.fits     nan     nan  0.00000  1.00000     0    nan    nan
{C}_rate.fits   0.000   0.000  0.00000  1.00000     0    nan    nan
"""
WCS = """# ext xshift yshift rot scale rms N
# radec: /work/reference.radec
# nircam-f444w-clear
    0        1.4143        0.2077        0.0141       1.00000         0.479   29
"""


def test_anchor_and_match() -> None:
    anchor, match = parse_shifts_log(SHIFTS, NAMES)
    assert anchor == RelativeFit(A, "anchor", -0.0, 0.0, 0.0, 1.0, 100, 0.0, 0.0)
    assert match == RelativeFit(B, "matched", 0.104, -0.044, 0.0, 1.0, 92, 0.010, 0.011)


def test_iterated_alignment_has_no_anchor() -> None:
    text = SHIFTS.replace("-0.000   0.000  0.00000  1.00000   100  0.000  0.000", "0.021 0.003 0.0 1.0 98 0.004 0.005")
    assert [f.role for f in parse_shifts_log(text, NAMES)] == ["matched", "matched"]


def test_a_rejected_fit_keeps_its_numbers_and_not_the_row_of_zeros() -> None:
    anchor, few, none = parse_shifts_log(REJECTED, NAMES)
    assert anchor.role == "anchor"
    assert (few.role, few.dx, few.dy, few.n) == ("rejected", -0.812, 0.441, 7)
    assert none.role == "rejected" and none.n == 0 and math.isnan(none.rms_x)


def test_rows_of_unknown_files_and_garbage_are_left_out() -> None:
    assert parse_shifts_log("nonsense\nother_rate.fits 0 0 0 1 5 0.1 0.1\n", NAMES) == ()
    assert parse_shifts_log("", NAMES) == ()


def test_wcs_log() -> None:
    row = parse_wcs_log(WCS)
    assert row is not None
    assert (row.dx, row.dy, row.rotation, row.scale, row.rms, row.n) == (1.4143, 0.2077, 0.0141, 1.0, 0.479, 29)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# ext xshift yshift rot scale rms N\n",
        # told the answer instead of fitting one
        "# x\n    0        0.0000        0.0000        0.0000       1.00000         0.000  999\n",
    ],
)
def test_a_wcs_log_without_a_fit(text: str) -> None:
    assert parse_wcs_log(text) is None


def test_the_last_row_counts() -> None:
    assert parse_wcs_log(WCS + "    1  0.5  0.6  0.0  1.0  0.2  40\n").n == 40  # type: ignore[union-attr]


def test_rms_becomes_a_deviation_per_axis() -> None:
    # grizli's statistic of radial residuals, on residuals of known deviation
    residuals = np.random.default_rng(1).normal(0, 0.5, (200_000, 2))
    radial = np.hypot(*residuals.T)
    reported = 1.48260221 * np.median(np.abs(radial - np.median(radial)))
    row = parse_wcs_log(WCS)
    assert row is not None
    fit = absolute_fit(row._replace(rms=reported), "LS_DR9", "external", 63.0)
    assert isinstance(fit, AbsoluteFit)
    assert fit.rms == pytest.approx(0.5, rel=0.01)
    assert fit.reported_rms == reported
    assert pytest.approx(0.6649, abs=1e-4) == RADIAL_NMAD


REAL_MESSAGES = [
    ("# prep.apply_region_mask_from_db: query failed", "region_mask", (A, B, C)),
    (
        f'query_persistence: failed for {B}_rate.fits: ConnectionError: ["grizli\'s database is not asked"]',
        "persistence_history",
        (B,),
    ),
    (
        "get_photom_scale /venv/grizli/data/photom_correction.yml: NRCBLONG-F444W-CLEAR not found",
        "photometric_correction",
        (A, B, C),
    ),
    (
        f"nircam_wisp_correction - {A}_rate.fits: /g/CONF/NircamWisp/wisps_nrcb4_f115w.fits not found",
        "wisp_template",
        (A,),
    ),
    (
        "jwst_utils.get_jwst_skyflat: /g/CONF/NircamSkyFlat/nrcblong-f250m-clear_skyflat_smooth.fits not found",
        "sky_flat",
        (A, B, C),
    ),
    (
        f"check_mast_pointing_header: {C}_rate.fits SKIPPED jwst.lib.set_telescope_pointing.update_wcs",
        "measured_pointing",
        (C,),
    ),
    (f"exposure_oneoverf_correction: failed for {A}_rate.fits", "one_over_f", (A,)),
    (f"Snowball mask: {A}_rate.fits problem  fraction 31.02 > 30.00 turning off...", "snowballs", (A,)),
    (f"grizli.utils.jwst_snowblind_mask: {A}_rate.fits problem  fraction 31.0 > 30.00", "snowballs", (A,)),
    (" flag_nircam_hot_pixels: 9411 out of range", "hot_pixels", (A, B, C)),
    ("2026-11-24 - jwst.flat - WARNING - No flat found or supplied; step will be skipped.", "flat_field", (A, B, C)),
    ("stpipe - WARNING - Photom step will be skipped", "photometric_calibration", (A, B, C)),
    (
        "# !! First `prep` run failed with `run_tweak_align`. Try again",
        "relative_alignment",
        ("assoc",),
    ),
    ("# !! Drizzle alignment failed", "absolute_alignment", ("assoc",)),
    (
        f"update_pure_parallel_wcs: failed for {A}_rate.fits: ConnectionError: ['no route']",
        "pure_parallel_pointing",
        (A,),
    ),
    ("Couldn't find PHOTFNU or PHOTPLAM/PHOTFLAM keywords, use ZP=25", "zeropoint", ("assoc",)),
]


@pytest.mark.parametrize(("line", "what", "products"), REAL_MESSAGES)
def test_each_message_becomes_its_degradation(line: str, what: str, products: tuple[str, ...]) -> None:
    found = find_degradations([line, line], "assoc", STEMS)
    assert sorted(d.product for d in found) == sorted(products)
    assert {d.what for d in found} == {what}
    assert all(not d.intended and line.strip()[:40] in d.why for d in found)


STARTS = [
    f"jwst_utils.initialize_jwst_image(**{{'filename': '{B}_rate.fits', 'verbose': True}})",
    f"(   2/   3) Add exposure {B}_rate.fits (weight_type='jwst', rnoise_percentile=99)",
]


@pytest.mark.parametrize("start", STARTS)
def test_what_names_no_exposure_is_of_the_one_that_the_log_is_at(start: str) -> None:
    message = " flag_nircam_hot_pixels: 9411 out of range"
    (found,) = find_degradations([start, "Clip MAXDQBIT = 14", message], "assoc", STEMS)
    assert (found.product, found.what) == (B, "hot_pixels")


@pytest.mark.parametrize("end", ["prep.mask_snowballs(**{'visit': 1})", "Load visit information from ./visits.yaml"])
def test_behind_the_last_exposure_it_is_of_all(end: str) -> None:
    found = find_degradations([*STARTS, end, "# prep.apply_region_mask_from_db: query failed"], "assoc", STEMS)
    assert [d.product for d in found] == [A, B, C]


def test_a_message_that_names_its_exposure_is_of_that_one_wherever_the_log_is() -> None:
    (found,) = find_degradations([STARTS[0], f"exposure_oneoverf_correction: failed for {A}_rate.fits"], "assoc", STEMS)
    assert found.product == A


def test_what_is_switched_off_on_purpose_is_recorded_as_intended() -> None:
    lines = [f"apply_region_mask_from_db: switched off for {name}_rate.fits" for name in (A, B)]
    found = find_degradations(lines, "assoc", STEMS, ("region_mask",))
    assert [d.product for d in found] == [A, B] and all(d.intended for d in found)
    assert B in found[1].why


@pytest.mark.parametrize(
    "line",
    [
        "nircam_wisp_correction - x_rate.fits: NIRCam filter F444W not supported",
        "Failed to `import dust_attenuation`",
        "Couldn't `import reprocess_wfc3`.",
        "prep.tweak_align(**{'direct': {'files': ['not found', 'failed']}})",
        "/venv/prep.py:1009: FutureWarning: `estimate` is deprecated; it failed",
        "# ! nircam-f444w-clear: Only one direct image found, can't compute shifts",
        "get_photom_scale /d/photom_correction.yml: jwst_1303.pmap > jwst_0988.pmap",
        "Reset: DETECTOR > NRCB1 (ODETECTO)",
        f"mask_snowballs: {A}_rate.fits  1.16.1 > 1.14, skip",
        "2026-11-24 23:22:51 - CRDS - ERROR -  Error determining best reference for 'pars-snowblindstep'  =   "
        "Unknown reference type 'pars-snowblindstep'",
        "**WARNING**: LOCAL JWST PRD VERSION PRDOPSSOC-072 CANNOT BE CHECKED AGAINST ONLINE VERSION",
        "skip: False",
        "Fix 47520 NaN pixels in extension 1, set DQ=1025",
        "",
    ],
)
def test_harmless_lines_say_nothing(line: str) -> None:
    assert find_degradations([line], "assoc", STEMS) == ()


@pytest.mark.parametrize(
    "line",
    [
        "new_step: the frobnicator failed",
        "2026-11-24 22:47:03 - stpipe.NewStep - WARNING - the frobnicator has a dent",
        "Step frobnicator skipped",
        "skip: True",
        "# frobnicate: No seed found for F444W",
        "frobnicator: cannot open the lid",
        "2026-11-24 - CRDS - ERROR - frobnicator",
    ],
)
def test_a_message_that_nobody_knows_is_reported_as_it_stands(line: str) -> None:
    (found,) = find_degradations([line], "assoc", STEMS)
    assert found.what == "unrecognised_message" and found.why == line


def test_a_swallowed_exception_is_reported_where_nothing_explains_it() -> None:
    lines = ["# !Traceback (most recent call last):", "# !IndexError: list index out of range"]
    (found,) = find_degradations(lines, "assoc", STEMS)
    assert found.why == "# !IndexError: list index out of range"
    (found,) = find_degradations([*lines, "# !! Drizzle alignment failed"], "assoc", STEMS)
    assert found.what == "absolute_alignment"


def test_patterns_compile_and_explain() -> None:
    for pattern in DEGRADATIONS:
        re.compile(pattern.regex)
        assert re.fullmatch(r"[a-z_]+", pattern.what) and len(pattern.meaning) > 15
    for regex, reason in (*HARMLESS, *ALIGNMENT_FAILURES):
        re.compile(regex)
        assert reason
    for regex in SUSPICIOUS:
        re.compile(regex)


EXCEPTION = """
##########################################
# ! Exception (2026-11-24 13:37:43.782)
#
# !Traceback (most recent call last):
# !  File "grizli/pipeline/auto_script.py", line 486, in go
# !    orig_wcs, drz_wcs, out_shift, out_rot, out_scale = result
# !TypeError: cannot unpack non-iterable bool object
# !
#########################################
"""


def test_the_cause_of_a_failure() -> None:
    lines = ["nircam-f444w-clear: no reference objects found in the DRZ footprint", *EXCEPTION.splitlines()]
    assert "no source of the reference lies in the image" in (alignment_failure(lines) or "")
    magnitude = "x.cat: no objects found in magnitude range [14.0, 24.0, 0.05] + mask_aper_0 < 3"
    assert "[14.0, 24.0, 0.05]" in (alignment_failure([magnitude]) or "")
    assert alignment_failure(["all is well"]) is None
    assert last_exception(EXCEPTION) == "TypeError: cannot unpack non-iterable bool object"
    dotted = "crds.core.exceptions.CrdsNetworkError: no file"
    assert last_exception(dotted) == dotted
    assert last_exception("nothing") is None
    bare = EXCEPTION.replace("TypeError: cannot unpack", "Exception: object deblending overflow, cannot unpack")
    assert last_exception(bare) == "Exception: object deblending overflow, cannot unpack non-iterable bool object"
    (found,) = find_degradations(bare.splitlines(), "assoc", STEMS)
    assert "deblending overflow" in found.why


def test_last_meaningful_lines_skip_rules_and_blanks() -> None:
    assert last_meaningful_lines("a\n\n#####\n  \nb\n=====\n", 2) == "a\nb"
