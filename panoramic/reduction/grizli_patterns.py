"""What grizli prints when something was missing and it went on, as data.

Put here one `Pattern` per message, with the words a user reads. Keep out code: `grizli_logs.py` applies them.
Written from the source of grizli 1.14.3; the file that prints each message is named.
"""

from __future__ import annotations

from typing import NamedTuple


class Pattern(NamedTuple):
    """One message of the log.

    ``what`` is the degradation's stable name, which is also what a survey file lists in ``services_off``. A named group
    ``file`` in ``regex`` gives the exposure; without it the degradation is the association's. ``per_exposure`` marks
    messages that don't name their exposure but come once for each: they are the exposure's that the log is at
    (`EXPOSURE_STARTS`), or, where it is at none, all exposures'.
    """

    what: str
    regex: str
    meaning: str
    per_exposure: bool = False


FILE = r"(?P<file>[\w./-]+?)_rate\.fits"

# Lines with which grizli turns to one exposure, and with which it turns to all of them.
EXPOSURE_STARTS: tuple[str, ...] = (
    rf"jwst_utils\.initialize_jwst_image\(\*\*\{{'filename': '{FILE}'",
    rf"\(\s*\d+/\s*\d+\) Add exposure {FILE}",
)
EXPOSURES_END: tuple[str, ...] = (
    r"^(?:prep|auto_script)\.\w+\(\*\*\{",
    r"^Load visit information from",
)

DEGRADATIONS: tuple[Pattern, ...] = (
    # prep.apply_region_mask_from_db
    Pattern(
        "region_mask",
        rf"apply_region_mask_from_db: (?:query failed|switched off for {FILE})",
        "hand-drawn masks (satellites, claws, ghosts) of grizli's database were not applied",
        per_exposure=True,
    ),
    # utils.drizzle_from_visit swallows it; the child process prints it
    Pattern(
        "persistence_history",
        rf"query_persistence: (?:failed|switched off) for {FILE}",
        "pixels saturated in earlier exposures of other programs were not looked up",
    ),
    # jwst_utils.img_with_wcs swallows it; the child process prints it
    Pattern(
        "pure_parallel_pointing",
        rf"update_pure_parallel_wcs: (?:failed|switched off) for {FILE}",
        "the pointing of a pure-parallel exposure calibrated before jwst 1.16 was not mended from the guide star log",
    ),
    # jwst_utils.update_pure_parallel_wcs
    Pattern(
        "pure_parallel_pointing",
        rf"update_pure_parallel_wcs: (?:par_file=')?{FILE}'? couldn't find corresponding exposure",
        "the guide star log has no entry for a pure-parallel exposure",
    ),
    # prep.fix_flt_nan, once after an exposure was calibrated; 840,000 pixels are a fifth of the detector
    Pattern(
        "usable_area",
        r"^Fix (?:8[4-9]\d{4}|9\d{5}|\d{7,}) NaN pixels in extension",
        "more than a fifth of the exposure has no value (NaN)",
        per_exposure=True,
    ),
    # utils.get_photom_scale, which only drizzling of mosaics calls, not preprocessing
    Pattern(
        "photometric_correction",
        r"get_photom_scale .*photom_correction.yml: [\w-]+ not found",
        "grizli has no correction of the flux scale for this detector and filter; CRDS's own scale stands",
        per_exposure=True,
    ),
    # prep.nircam_wisp_correction; only detectors and filters that have wisps reach it
    Pattern(
        "wisp_template",
        rf"nircam_wisp_correction - {FILE}: \S+ not found",
        "scattered light (wisps) was not subtracted: there is no template for this detector and filter",
    ),
    Pattern(
        "wisp_template",
        r"NRC\w+ key not found in \S*nircam_wisp.yml",
        "scattered light (wisps) was not subtracted: grizli knows no region of wisps for this detector",
        per_exposure=True,
    ),
    # jwst_utils.get_jwst_skyflat
    Pattern(
        "sky_flat",
        r"get_jwst_skyflat: (?:\S+ not found|flat_corr failed)",
        "grizli's sky flat was not applied; the pipeline's flat stands",
        per_exposure=True,
    ),
    # jwst_utils.img_with_flat
    Pattern(
        "jump_detection",
        r"img_with_flat: [\d.]+% DQ=4 pixels > ",
        "more than a quarter of the pixels were flagged as cosmic rays, and grizli dropped all those flags",
        per_exposure=True,
    ),
    # auto_script.check_mast_pointing_header
    Pattern(
        "measured_pointing",
        rf"check_mast_pointing_header: {FILE} SKIPPED",
        "the exposure has its planned pointing only (ENGQLPTG = PLANNED)",
    ),
    # jwst_utils.initialize_jwst_image
    Pattern(
        "one_over_f",
        rf"exposure_oneoverf_correction: (?:axis=-1 )?failed for {FILE}",
        "1/f stripes were not removed",
    ),
    # prep.mask_snowballs, utils.jwst_snowblind_mask
    Pattern(
        "snowballs",
        rf"(?:Snowball mask|jwst_snowblind_mask): {FILE} problem",
        "the snowball mask covered too much of the detector and was dropped",
    ),
    Pattern("snowballs", r"ImportError: snowblind > 0.1.2 required", "the snowball finder is not installed"),
    # utils.drizzle_from_visit
    Pattern(
        "hot_pixels",
        r"flag_nircam_hot_pixels: \d+ out of range",
        "the hot pixel finder flagged nothing or far too much and was ignored",
        per_exposure=True,
    ),
    # jwst's own steps: flat_field.py, photom.py
    Pattern(
        "flat_field", r"No flat found or supplied; step will be skipped", "there is no flat field", per_exposure=True
    ),
    Pattern(
        "flat_field",
        r"Reference data array is smaller than science data",
        "the flat field does not cover the detector and was not applied",
        per_exposure=True,
    ),
    Pattern(
        "photometric_calibration",
        r"No PHOTOM reference file found|Photom step will be skipped",
        "there is no flux scale: counts were not converted to MJy/sr",
        per_exposure=True,
    ),
    Pattern(
        "photometric_calibration",
        r"one matching row in table, found 0",
        "the flux scale has no entry for the filter: counts were not converted to MJy/sr",
        per_exposure=True,
    ),
    Pattern(
        "pixel_area",
        r"The PIXAR_(?:SR|A2) keyword is missing from|Pixel area is None",
        "the nominal pixel area is unknown: catalogue fluxes rest on the WCS alone",
        per_exposure=True,
    ),
    Pattern(
        "pixel_area",
        r"Using area reference file: N/A",
        "there is no map of the pixels' areas; the nominal area is the one of the flux scale's reference",
        per_exposure=True,
    ),
    # prep.tweak_align and auto_script.preprocess
    Pattern(
        "relative_alignment",
        r"# !! First `prep` run failed with `run_tweak_align`",
        "alignment between exposures failed, and grizli ran again without it",
    ),
    Pattern("relative_alignment", r"# !! `tweak_flt` tristars failed", "pattern matching between exposures failed"),
    # it means to say "! no match" and prints the file's name alone
    Pattern("relative_alignment", rf"^# tw {FILE}(?: ! no match)?$", "no source of the exposure was matched"),
    # prep.align_drizzled_image, process_direct_grism_visit
    Pattern("absolute_alignment", r"# !! Drizzle alignment failed", "alignment to the reference raised an error"),
    Pattern("absolute_alignment", r"^# ! tristars failed", "pattern matching to the reference failed once"),
    Pattern(
        "absolute_alignment",
        r"no reference objects found in the DRZ footprint|no objects found in magnitude range",
        "there was nothing to align to the reference",
    ),
    Pattern("outliers", r"JWST Outlier Detection Failed", "jwst's outlier step failed; AstroDrizzle's was used"),
    # utils.drizzle_from_visit
    Pattern("exposure", rf"^open\({FILE}\) failed", "the exposure could not be opened for drizzling"),
    Pattern("exposure", rf"Failed to initialize WCS on {FILE}", "the exposure has no usable WCS for drizzling"),
    # prep.blot_background, prep.separate_chip_sky
    Pattern(
        "background",
        r"# (?:blot_background: No mosaic|separate_chip_sky: No segimage) found",
        "the background was not subtracted: the image that it is measured on is missing",
    ),
    # utils.calc_header_zeropoint
    Pattern("zeropoint", r"use ZP=25\b", "the catalogue's magnitudes have no zeropoint"),
)

# Messages that look bad and are not, each with the reason.
HARMLESS: tuple[tuple[str, str], ...] = (
    (r"^paths:  \{", "the folders of a call"),
    (r"mask_snowballs: \S+\s+[\d.]+\S* > 1\.14, skip", "the archive's own jump step has masked them since jwst 1.14"),
    (r"LOCAL JWST PRD VERSION \S+ CANNOT BE CHECKED", "pysiaf looks for a newer table of apertures"),
    (r"Unknown reference type 'pars-\w+'", "the archive has no parameters for that step; its defaults stand"),
    (r"SnowblindStep - WARNING - Large CR masked with radius", "a large snowball, masked as it should be"),
    (r"^skip: False$", "a step's parameters"),
    (r"Warning: no files to fetch for filters=", "the exposures are here already"),
    (r"cp: cannot stat '\*mask\.reg'", "masks that nobody drew"),
    (r"^Step will be skipped$", "the line before it says why"),
    (r"No reference found for type [FSD]FLAT\b", "flats of the spectrograph"),
    (r"^[\w.]+\(\*\*\{", "the arguments of a call"),
    (r"gaia_catalog_for_assoc: not asked", "the driver gives the reference"),
    (r"get_photom_scale .*: jwst_\d+\.pmap > ", "corrections are for contexts up to jwst_1125 only"),
    (r"photom_correction\.yml: Scale", "a correction was found and applied"),
    (r"VISITYPE \(\w*\) != PARALLEL_PURE|VISITYPE not found in header", "no pointing to mend"),
    (r"Only one direct image found, can't compute shifts", "a single exposure"),
    (r"NIRCam (?:filter|detector) \w+ not supported", "no wisps in this detector or filter"),
    (r"\w+Warning\b", "Python's own warnings"),
    (r"general_fetch_file: .* switched off", "the template that it wanted is named apart"),
    (r"Failed to `import", "optional packages of grizli's spectroscopy"),
    (r"Couldn't `import (?:reprocess_wfc3|tristars|sewpy)", "HST's pipeline, and matchers that are not used"),
)

# A line that matches none of the above and one of these is reported as it stands, so that a new message is not lost.
SUSPICIOUS: tuple[str, ...] = (
    r"(?i)\bfailed\b",
    r"(?i)\bnot found\b",
    r"^# !!",
    r"(?i)\bcouldn't\b",
    r"turning off",
    r"(?i)\bskip(?:ped|ping)?\b",
    r"\b(?:ERROR|CRITICAL)\b",
    r"(?i)^warning\b|- WARNING -",
    r"(?i)\b(?:problem|unable|cannot|no such file)\b",
    r"(?i)\bno [\w ]*found\b",
)

# The last line of a traceback that grizli swallowed, or printed and went on. It is reported only where no message names
# the step that it ended.
SWALLOWED = r"^(?:# !\s*)?(?:\w+\.)*(?:[A-Z]\w*)?(?:Error|Exception|Exit)(?::|$)"
STEPS_WITH_TRACEBACK = frozenset({"relative_alignment", "absolute_alignment", "one_over_f", "outliers"})

# Lines that say that alignment, not the engine, gave up. Group 0 is shown to the user.
ALIGNMENT_FAILURES: tuple[tuple[str, str], ...] = (
    (r"no reference objects found in the DRZ footprint", "no source of the reference lies in the image"),
    (r"no objects found in magnitude range \[.*?\].*", "no source of the image is bright and sharp enough to align"),
    (r"zero-size array to reduction operation maximum", "an exposure has no source to align with"),
    (r"object deblending overflow", "an exposure is so uneven that its sources could not be told apart"),
    (r"# !! Drizzle alignment failed", "alignment to the reference raised an error"),
    (r"# !! `tweak_flt` tristars failed", "pattern matching between the exposures failed"),
    (r"No triangles|Need at least 3 points|QhullError|not enough points", "too few sources to match"),
)
