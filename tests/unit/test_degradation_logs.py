"""Logs and products of real runs in which one thing each was missing: exactly the due degradations are found.

The records are made by ``tests/record_grizli_logs.py``, which says what each takes away and what is due for it.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from panoramic.reduction import grizli_logs
from panoramic.reduction.base import Degradation
from panoramic.reduction.grizli_logs import alignment_failure, find_degradations, last_exception
from panoramic.reduction.grizli_outputs import (
    STEP_KEYWORDS,
    USABLE_AREA,
    image_lacks,
    merge_degradations,
    output_degradations,
    reference_degradations,
)
from panoramic.reduction.grizli_patterns import DEGRADATIONS

RECORDS = sorted((Path(__file__).parents[1] / "logs").glob("*.json"))
# patterns that no run here prints, by a part of their text, each with the reason
NOT_RECORDED = {
    "get_photom_scale": "only grizli's own drizzling of mosaics asks for corrections, which nothing here lets it do",
    "ImportError: snowblind": "the lock file installs a newer one",
    "No flat found or supplied": "without a flat no reduction starts",
    "No PHOTOM reference file": "without a flux scale no reduction starts",
    "`tweak_flt` tristars failed": "the exception before it makes grizli run again without alignment, which is recorded",
    "^# tw ": "reached only behind the one before",
    "# !! Drizzle alignment failed": "no data made align_drizzled_image raise; it returns what its caller can't unpack",
    "# ! tristars failed": "no data made the matcher raise",
    "JWST Outlier Detection Failed": "jwst's outlier step is never asked for",
    r"^open\(": "a broken exposure is an error before and after it, as recorded",
    "Failed to initialize WCS": "an exposure without a WCS does not get so far",
    "blot_background: No mosaic": "without a mosaic the step before it fails",
    "use ZP=25": "a flux scale is there in every reduction that starts",
}

Found = set[tuple[str, str]]


def load(record: Path) -> tuple[dict[str, Any], list[str]]:
    content = json.loads(record.read_text())
    plain, packed = record.with_suffix(".log"), record.with_suffix(".log.gz")
    text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else plain.read_text()
    return content, text.splitlines()


def found_in(content: dict[str, Any], lines: list[str]) -> tuple[Found, Found]:
    """(product, what) of what nobody meant, and of what was on purpose."""
    stems = {dataset: dataset for dataset in content["datasets"]}
    found = find_degradations(lines, content["association"], stems, content["services_off"])
    assert len({(d.product, d.what) for d in found}) == len(found)
    return ({(d.product, d.what) for d in found if not d.intended}, {(d.product, d.what) for d in found if d.intended})


def pairs(rows: list[list[str]]) -> Found:
    return {(product, what) for product, what in rows}


reductions = pytest.mark.parametrize(
    "record", [r for r in RECORDS if json.loads(r.read_text())["error"] is None], ids=lambda r: r.stem
)


@reductions
def test_exactly_what_is_due(record: Path) -> None:
    content, lines = load(record)
    unmeant, on_purpose = found_in(content, lines)
    assert unmeant == pairs(content["due"])
    assert on_purpose == pairs(content["due_on_purpose"])


@reductions
def test_without_its_pattern_each_is_missed(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, lines = load(record)
    for _, what in pairs(content["due"]):
        rest = tuple(p for p in DEGRADATIONS if p.what != what)
        monkeypatch.setattr(grizli_logs, "DEGRADATIONS", rest)
        assert what not in {w for _, w in found_in(content, lines)[0]}


def test_every_pattern_was_printed_by_a_real_run() -> None:
    text = [line.strip() for record in RECORDS for line in load(record)[1]]
    unseen = {p.regex for p in DEGRADATIONS if not any(re.search(p.regex, line) for line in text)}
    excused = {regex for regex in unseen if any(part in regex for part in NOT_RECORDED)}
    assert unseen == excused
    assert all(any(part in regex for regex in unseen) for part in NOT_RECORDED)


def test_records_hold_no_path_of_a_machine() -> None:
    assert len(RECORDS) >= 12
    for record in RECORDS:
        content, lines = load(record)
        text = "\n".join([json.dumps(content), *lines])
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|mnt)/", text), record.name


@pytest.mark.parametrize(
    "record", [r for r in RECORDS if json.loads(r.read_text())["error"] is not None], ids=lambda r: r.stem
)
def test_what_can_not_be_done_without_is_an_error_that_names_it(record: Path) -> None:
    content, lines = load(record)
    assert content["products"] == {}
    assert pairs(content["due"]) <= found_in(content, lines)[0]
    assert re.match(r"(?:CalibrationError|EngineFailedError|NoUsableExposureError): \S", content["error"])
    assert last_exception("\n".join(lines)) is not None


@pytest.mark.parametrize(
    "record", [r for r in RECORDS if json.loads(r.read_text())["failure"] is not None], ids=lambda r: r.stem
)
def test_a_failed_alignment_has_a_cause_in_words(record: Path) -> None:
    _, lines = load(record)
    assert alignment_failure(lines) is not None


# --- products ------------------------------------------------------------------------------


def write_product(path: Path, keywords: dict[str, Any], used: float, **changes: Any) -> str:
    """A small product of which a share of the pixels is used; the rest has no value. A plane of None is left out."""
    n = 100
    sci, weight = np.zeros((n, n), np.float32), np.ones((n, n), np.float32)
    void = np.arange(n * n).reshape(n, n) >= round(used * n * n)
    sci[void], weight[void] = np.nan, 0
    planes = {"SCI": sci, "ERR": np.ones_like(sci), "WHT": weight, "DQ": void.astype(np.uint32)} | changes
    primary = fits.PrimaryHDU()
    primary.header.update(keywords)
    hdus = [fits.ImageHDU(data, name=name) for name, data in planes.items() if data is not None]
    fits.HDUList([primary, *hdus]).writeto(path)
    return path.name


@reductions
def test_products_of_the_same_runs(record: Path, tmp_path: Path) -> None:
    """Keywords and used share are the real run's; pixels are made up."""
    content, _ = load(record)
    exposures = {
        dataset: write_product(tmp_path / f"{dataset}_rate.fits", said["keywords"], said["used"])
        for dataset, said in content["products"].items()
    }
    found = merge_degradations(
        output_degradations(tmp_path, content["association"], exposures),
        reference_degradations(content["references"], exposures),
    )
    assert {(d.product, d.what) for d in found} == pairs(content["due_in_products"])


COMPLETE = {step.keyword: "COMPLETE" for step in STEP_KEYWORDS}


def lacks(tmp_path: Path, keywords: dict[str, Any], used: float = 0.96, **changes: Any) -> tuple[Degradation, ...]:
    name = write_product(tmp_path / "a_rate.fits", keywords, used, **changes)
    return output_degradations(tmp_path, "assoc", {"a": name})


@pytest.mark.parametrize("step", STEP_KEYWORDS, ids=lambda s: s.keyword)
def test_a_step_that_was_skipped(step: Any, tmp_path: Path) -> None:
    (found,) = lacks(tmp_path, COMPLETE | {step.keyword: "SKIPPED"})
    assert (found.product, found.what) == ("a", step.what)
    assert f"{step.keyword} = SKIPPED" in found.why


def test_a_step_that_was_never_run(tmp_path: Path) -> None:
    found = lacks(tmp_path, {})
    assert {d.what for d in found} == {"flat_field", "photometric_calibration", "distortion"}
    assert all("absent" in d.why for d in found)


def test_several_steps_of_one_name_are_one_degradation(tmp_path: Path) -> None:
    (found,) = lacks(tmp_path, COMPLETE | {"S_DARK": "SKIPPED", "S_LINEAR": "SKIPPED"})
    assert found.what == "detector_calibration" and "S_DARK" in found.why and "S_LINEAR" in found.why


def test_a_planned_pointing(tmp_path: Path) -> None:
    (found,) = lacks(tmp_path, COMPLETE | {"ENGQLPTG": "PLANNED"})
    assert found.what == "measured_pointing"


@pytest.mark.parametrize(
    ("used", "whats"), [(1.0, []), (USABLE_AREA, []), (0.79, ["usable_area"]), (0.0, ["exposure"])]
)
def test_a_frame_of_which_little_is_left(used: float, whats: list[str], tmp_path: Path) -> None:
    assert [d.what for d in lacks(tmp_path, COMPLETE, used)] == whats


def test_a_frame_says_what_is_void_and_what_is_flagged(tmp_path: Path) -> None:
    weight = np.ones((100, 100), np.float32)
    weight[:50] = 0
    (found,) = lacks(tmp_path, COMPLETE, 0.75, WHT=weight)
    # rows 50-74 are used, 75-99 have no value, 0-49 no weight
    assert "only 25% of its pixels are used" in found.why
    assert "25% have no value" in found.why and "50% are flagged" in found.why


@pytest.mark.parametrize("plane", ["SCI", "ERR", "WHT", "DQ"])
def test_a_plane_that_is_missing(plane: str, tmp_path: Path) -> None:
    without: dict[str, Any] = {plane: None}
    (found,) = lacks(tmp_path, COMPLETE, **without)
    assert found.what == "exposure" and plane in found.why


def test_a_product_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a_rate\.fits"):
        output_degradations(tmp_path, "assoc", {"a": "a_rate.fits"})


def test_the_drizzled_image(tmp_path: Path) -> None:
    image, weight = np.zeros((20, 20), np.float32), np.ones((20, 20), np.float32)
    assert image_lacks(image, weight) is None
    weight[:10] = 0
    image[:10] = np.nan
    assert image_lacks(image, weight) is None  # no weight, no claim
    image[15, 5] = np.nan
    assert "0.5%" in (image_lacks(image, weight) or "")
    assert "has weight" in (image_lacks(image, 0 * weight) or "")
    assert "differ in shape" in (image_lacks(image, weight[1:]) or "")
    for name, data in (("i.fits", image), ("w.fits", weight)):
        fits.PrimaryHDU(data).writeto(tmp_path / name)
    (found,) = output_degradations(tmp_path, "assoc", {}, "i.fits", "w.fits", ("drizzled_image",))
    assert (found.product, found.what, found.intended) == ("assoc", "drizzled_image", True)


def test_a_reference_that_nobody_misses_aloud() -> None:
    whole = {kind: f"{kind}.fits" for kind in ("flat", "photom", "distortion", "area", "filteroffset")}
    assert reference_degradations(whole, ("a", "b")) == ()
    del whole["filteroffset"]
    found = reference_degradations(whole, ("a", "b"), ("filter_offset",))
    assert [(d.product, d.what, d.intended) for d in found] == [
        ("a", "filter_offset", True),
        ("b", "filter_offset", True),
    ]


def test_log_and_products_are_one_list() -> None:
    log = (Degradation("b", "flat_field", "log"), Degradation("a", "region_mask", "query failed", True))
    products = (Degradation("b", "flat_field", "S_FLAT = SKIPPED"), Degradation("a", "region_mask", "query failed"))
    assert merge_degradations(log, products) == (
        Degradation("a", "region_mask", "query failed", True),
        Degradation("b", "flat_field", "log; S_FLAT = SKIPPED"),
    )
