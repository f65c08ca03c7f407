"""The independent measurement, on exposures of a sky whose truth is known: what is off is found, by how much it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from product_files import SCALE_MAS, Made, MadeSky, write_product

from panoramic.alignment import judge
from panoramic.alignment_measurement import Measurement
from panoramic.exposure_sources import find_exposure_sources
from panoramic.reduction.base import AbsoluteFit, Pointing, PointingPrior, ReductionResult, RelativeFit
from panoramic.reduction.moving import SkyCorrection
from panoramic.survey import Limits
from panoramic.verification import (
    common_objects,
    correction_of,
    knowledge_of,
    measure_alignment,
    sky_offsets,
    without_fixed,
)

PLACE = (150.0, 2.3)
DITHERS = ((0.0, 0.0), (2.0, -1.5), (-1.8, 2.2), (2.6, 2.4))


def write_all(folder: Path, sky: MadeSky, made: list[Made], seed: int = 3) -> dict[str, Path]:
    """Exposures ``e1``, ``e2``, ... of one sky."""
    rng = np.random.default_rng(seed)
    return {f"e{k}": write_product(folder / f"e{k}_rate.fits", sky, m, rng) for k, m in enumerate(made, start=1)}


def four(**changes: Made) -> list[Made]:
    """Four dithers, some of them changed: ``four(e4=Made(...))``."""
    return [replace(changes.get(f"e{k}", Made()), dither=d) for k, d in enumerate(DITHERS, start=1)]


def measured(folder: Path, sky: MadeSky, made: list[Made], reference, **settings) -> Measurement:
    files = write_all(folder, sky, made)
    return measure_alignment("a", files, reference, **{"search_radius_arcsec": 3.0, **settings})[0]


def reported(sky: MadeSky, kind: str = "external") -> ReductionResult:
    """What an engine that is content with itself would say."""
    relative = [
        RelativeFit("e1", "anchor"),
        *(RelativeFit(f"e{k}", "matched", n=80, rms_x=0.01, rms_y=0.01) for k in (2, 3, 4)),
    ]
    absolute = AbsoluteFit("LS_DR9", kind, 0.0, 0.0, 0.0, 1.0, 40, 0.5, SCALE_MAS)
    return ReductionResult("a", "engine", "1", (), tuple(relative), absolute, None, None, None, 100, "", SCALE_MAS)


@pytest.fixture
def sky() -> MadeSky:
    return MadeSky.around(PLACE, 110, np.random.default_rng(1))


@pytest.mark.parametrize("place", [(150.0, 2.3), (0.0, -40.0), (10.0, 88.5)])
def test_sources_are_where_the_truth_says(tmp_path: Path, place: tuple[float, float]) -> None:
    sky = MadeSky.around(place, 80, np.random.default_rng(2))
    path = write_product(tmp_path / "e1_rate.fits", sky, Made(), np.random.default_rng(5))
    found = find_exposure_sources(path, "e1")
    assert len(found) > 35
    nearest = np.array([np.argmin(np.hypot(*sky_offsets(np.full(len(sky.ra), r), np.full(len(sky.ra), d), sky.ra, sky.dec)))
                        for r, d in zip(found.ra, found.dec, strict=True)])  # fmt: skip
    east, north = sky_offsets(found.ra, found.dec, sky.ra[nearest], sky.dec[nearest])
    alone = np.hypot(east, north) < 60
    assert alone.mean() > 0.9  # blends are one source
    noisy = alone & (found.error_mas > 2.5)  # brighter ones are better than the floor that stands for real detectors
    ratio = np.concatenate([east[noisy], north[noisy]]) / np.tile(found.error_mas[noisy], 2)
    assert 0.6 < 1.4826 * np.median(np.abs(ratio)) < 1.5  # the stated errors are honest
    assert abs(np.median(east[alone])) < 1.0
    assert found.pixel_scale_mas == pytest.approx(SCALE_MAS, rel=1e-6)


def test_what_stays_on_its_pixels_is_no_source(tmp_path: Path, sky: MadeSky) -> None:
    hot = ((100, 200), (300, 77), (411, 402))
    files = write_all(tmp_path, sky, four(e1=Made(hot=hot), e2=Made(hot=hot), e3=Made(hot=hot)))
    exposures = [find_exposure_sources(p, d) for d, p in files.items()]
    cleaned = without_fixed(exposures)
    for before, after in zip(exposures[:3], cleaned[:3], strict=True):
        for x, y in hot:
            assert (np.hypot(before.x - x, before.y - y) < 0.7).any()
            assert not (np.hypot(after.x - x, after.y - y) < 0.7).any()
    assert len(cleaned[3]) >= len(exposures[3]) - 1


def test_objects_are_counted_once(tmp_path: Path, sky: MadeSky) -> None:
    exposures = [find_exposure_sources(p, d) for d, p in write_all(tmp_path, sky, four()).items()]
    ra, dec, error, mag = common_objects(exposures)
    assert max(map(len, exposures)) <= len(ra) < 1.3 * max(map(len, exposures))
    assert len(ra) == len(dec) == len(error) == len(mag)
    assert np.median(error) < np.median(exposures[0].error_mas)


def test_a_good_association_is_measured_and_accepted(tmp_path: Path, sky: MadeSky) -> None:
    found = measured(tmp_path, sky, four(), sky.reference(np.random.default_rng(9)))
    assert found.absolute is not None and found.absolute.measured
    assert np.hypot(found.absolute.dra, found.absolute.ddec) < 3.5 * np.hypot(
        found.absolute.err_ra, found.absolute.err_dec
    )
    for offset in found.of("relative"):
        assert abs(offset.dra) < 3 and abs(offset.ddec) < 3 and offset.n >= 24
        assert offset.tiles
    verdict = judge(reported(sky), "NRCBLONG", Limits(), "required", True, "", found)
    assert verdict.accepted, verdict.cause
    assert Measurement.from_json(found.to_json()) == found


def test_a_wrong_success_is_held_back(tmp_path: Path, sky: MadeSky) -> None:
    """All exposures 0.3 arcsec off, and an engine that reports nothing of it."""
    moved = Made(error_mas=(180.0, -240.0))
    found = measured(
        tmp_path, sky, four(e1=moved, e2=moved, e3=moved, e4=moved), sky.reference(np.random.default_rng(9))
    )
    assert found.absolute is not None
    assert found.absolute.dra == pytest.approx(180, abs=25) and found.absolute.ddec == pytest.approx(-240, abs=25)
    verdict = judge(reported(sky), "NRCBLONG", Limits(), "required", True, "", found)
    assert not verdict.accepted
    assert "offset from LS_DR9" in verdict.cause


@pytest.mark.parametrize(("pixels", "accepted"), [(0.02, True), (0.3, False), (1.0, False)])
def test_one_dither_that_is_off_is_named(tmp_path: Path, sky: MadeSky, pixels: float, accepted: bool) -> None:
    files = four(e4=Made(error_mas=(pixels * SCALE_MAS, 0.0)))
    found = measured(tmp_path, sky, files, sky.reference(np.random.default_rng(9)))
    by_name = {o.subject: o for o in found.of("relative")}
    assert by_name["e4"].dra == pytest.approx(pixels * SCALE_MAS, abs=2.5)
    assert max(by_name.values(), key=lambda o: abs(o.dra or 0)).subject == "e4" or accepted
    verdict = judge(reported(sky), "NRCBLONG", Limits(), "required", True, "", found)
    assert verdict.accepted is accepted
    assert accepted or "e4 measured offset" in verdict.cause


def test_a_rotation_is_found_and_held_back(tmp_path: Path, sky: MadeSky) -> None:
    turned = Made(error_roll=0.2)
    found = measured(
        tmp_path, sky, [replace(turned, dither=d) for d in DITHERS], sky.reference(np.random.default_rng(9), 15.0)
    )
    assert found.absolute is not None
    assert abs(found.absolute.rotation_deg or 0.0) == pytest.approx(0.2, abs=0.03)
    verdict = judge(reported(sky), "NRCBLONG", Limits(), "required", True, "", found)
    assert not verdict.accepted
    # the corners' tiles lie to different sides
    tiles = [t for o in found.of("absolute") for t in o.tiles]
    assert max(t.dra for t in tiles) - min(t.dra for t in tiles) > 50


def test_a_smeared_exposure_is_not_accepted_as_a_good_one(tmp_path: Path, sky: MadeSky) -> None:
    found = measured(tmp_path, sky, four(e2=Made(smear_px=(9.0, 4.0))), sky.reference(np.random.default_rng(9)))
    smeared = next(o for o in found.of("relative") if o.subject == "e2")
    assert not smeared.measured or abs(smeared.dra or 0.0) < 10


@pytest.mark.parametrize("what", ["empty sky", "no reference source", "another sky's reference"])
def test_what_can_not_be_verified_is_refused_with_its_cause(tmp_path: Path, sky: MadeSky, what: str) -> None:
    rng = np.random.default_rng(9)
    reference, made = sky.reference(rng), four()
    if what == "empty sky":
        made = [replace(m, empty=True) for m in made]
    elif what == "no reference source":
        reference = replace(reference, **{n: np.empty(0) for n in ("ra", "dec", "mag", "error_mas")})
    else:
        reference = MadeSky.around(PLACE, 110, rng).reference(rng)
    found = measured(tmp_path, sky, made, reference)
    assert found.absolute is not None and not found.absolute.measured
    expected = {"empty sky": "too few sources", "no reference source": "too few reference sources"}
    assert found.absolute.cause == expected.get(what, "no peak above chance")
    verdict = judge(reported(sky), "NRCBLONG", Limits(), "required", True, "", found)
    assert not verdict.accepted
    assert found.absolute.text in verdict.cause


def test_pairs_tell_where_sources_were_before(tmp_path: Path, sky: MadeSky) -> None:
    files = write_all(tmp_path, sky, four())
    pointing = Pointing(*PLACE, (500.0, -200.0), 0.0)
    _, pairs = measure_alignment(
        "a",
        files,
        sky.reference(np.random.default_rng(9)),
        search_radius_arcsec=3.0,
        pointings=dict.fromkeys(files, pointing),
    )
    rows = pairs[(pairs["kind"] == "absolute") & pairs["used"]]
    assert len(rows) > 60
    assert np.median(rows["before_dra"] - rows["dra"]) == pytest.approx(-500, abs=0.1)
    assert np.median(rows["before_ddec"] - rows["ddec"]) == pytest.approx(200, abs=0.1)
    assert abs(np.median(rows["dra"])) < 15
    # 30 deg of roll from north to east: x runs to the west, and north of it
    a = np.radians(30)
    expected = -np.cos(a) * rows["dra"] + np.sin(a) * rows["ddec"], np.sin(a) * rows["dra"] + np.cos(a) * rows["ddec"]
    assert np.allclose(rows["dx"] * SCALE_MAS, expected[0], atol=0.1)
    assert np.allclose(rows["dy"] * SCALE_MAS, expected[1], atol=0.1)


def test_the_correction_brings_a_measured_offset_to_nothing(sky: MadeSky) -> None:
    rng = np.random.default_rng(4)
    moved = SkyCorrection(*PLACE, 700.0, -300.0, 0.1)
    from panoramic.alignment_measurement import Offset
    from panoramic.alignment_solution import Solution, measure_solution

    ra, dec = moved.apply(sky.ra, sky.dec)
    noise = rng.normal(0, 1 / 3.6e6, (2, len(ra)))
    answer = measure_solution(ra + noise[0], dec + noise[1], sky.ra, sky.dec, error_mas=np.ones(len(ra)))
    assert isinstance(answer, Solution)
    offset = Offset("a", "absolute", "x", 1, 1, SCALE_MAS, ra=answer.ra, dec=answer.dec, dra=answer.dra,
                    ddec=answer.ddec, rotation_deg=answer.rotation_deg)  # fmt: skip
    back = correction_of(offset).apply(ra, dec)
    east, north = sky_offsets(*back, sky.ra, sky.dec)
    assert np.abs(np.concatenate([east, north])).max() < 1.0


def test_few_references_are_enough_with_the_visit_s_other_detectors(tmp_path: Path, sky: MadeSky) -> None:
    rng = np.random.default_rng(12)
    inside = np.flatnonzero(
        np.hypot(*sky_offsets(sky.ra, sky.dec, np.full(110, PLACE[0]), np.full(110, PLACE[1]))) < 12000
    )
    bright = inside[np.argsort(-sky.peak[inside])][:4]
    few = MadeSky(PLACE, sky.ra[bright], sky.dec[bright], sky.peak[bright]).reference(rng, 15.0)
    covariance = tuple(tuple(row) for row in np.diag([15.0**2, 15.0**2, 0.02**2]).tolist())
    prior = PointingPrior("e1", (0.0, 0.0), 0.0, covariance)
    made = [replace(Made(error_mas=(11.0, -8.0)), dither=d) for d in DITHERS]
    alone = measured(tmp_path, sky, made, few)
    assert alone.absolute is not None and not alone.absolute.measured
    (tmp_path / "again").mkdir()
    helped = measured(tmp_path / "again", sky, made, few, prior=knowledge_of([prior]))
    assert helped.absolute is not None and helped.absolute.measured, helped.absolute
    assert helped.absolute.with_prior
    assert np.hypot(helped.absolute.dra - 11.0, helped.absolute.ddec + 8.0) < 4.5 * helped.absolute.err_ra
