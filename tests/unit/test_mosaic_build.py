"""Mosaics of synthetic exposures against their truth: flux, place, noise, planes; files are whole or absent."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from test_mosaic_exposures import CENTRE, Made, Sky, dithers, grid_for_tests, make_exposure, random_stars

from panoramic.errors import DiskFullError, MosaicError, ProductDamagedError
from panoramic.mosaic import cosmic_rays, photometry, writer
from panoramic.mosaic.build import build_mosaic, measure_coverage, mosaic_stem
from panoramic.mosaic.detection import detect
from panoramic.mosaic.photometry import aperture_photometry, aperture_ratio, measure_depth
from panoramic.mosaic.result import MosaicResult
from panoramic.survey import MosaicRules

RULES = MosaicRules()
STEM = mosaic_stem("Sim", "j100028p0212", "v1.0", "F115W", "CLEAR")
PROVENANCE = {"SURVEY": "sim", "fingerprint": "0123456789abcdef", "N_RUNS": 3}
PLANES = ("sci", "wht", "exp")


def isolated_stars(step: float, n: int, seed: int, flux: float = 20.0) -> Sky:
    """Stars on a jittered lattice, far enough apart for large apertures."""
    rng = np.random.default_rng(seed)
    k = (np.arange(n) - (n - 1) / 2) * step
    x, y = (g.ravel() + rng.uniform(-0.1, 0.1, n * n) for g in np.meshgrid(k, k))
    return Sky(CENTRE[0] + x / 3600 / np.cos(np.radians(CENTRE[1])), CENTRE[1] + y / 3600, np.full(n * n, flux))


def build(made: list[Made], folder: Path, **changes: Any) -> MosaicResult:
    settings = {"grid": grid_for_tests(), "channel": "short", "stem": STEM, "rules": RULES, "provenance": PROVENANCE}
    settings |= changes
    return build_mosaic([one.input for one in made], folder=folder, **settings)


def planes(folder: Path, stem: str = STEM) -> dict[str, np.ndarray]:
    return {plane: fits.getdata(folder / f"{stem}_{plane}.fits").astype(float) for plane in PLANES}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Made], Sky, MosaicResult]:
    """Four dithers of bright isolated stars, hardly any noise, no cosmic rays."""
    folder = tmp_path_factory.mktemp("clean")
    sky = isolated_stars(1.1, 5, 1)
    made = [
        make_exposure(
            folder, f"jw1_{k}_nrcb1", sky, ra=ra, dec=dec, noise=1e-4, seed=k, seconds=100.0 * (k + 1),
            shape=(288, 288), bad_fraction=0,
        )
        for k, (ra, dec) in enumerate(dithers(4, 0.5))
    ]  # fmt: skip
    return folder, made, sky, build(made, folder / "out")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Made], Sky, MosaicResult]:
    """Four dithers with noise, cosmic rays and backgrounds of their own."""
    folder = tmp_path_factory.mktemp("noisy")
    sky = random_stars(40, 4, 2, (0.2, 30))
    made = [
        make_exposure(
            folder, f"jw2_{k}_nrcb1", sky, ra=ra, dec=dec, seed=10 + k, cosmic_rays=300,
            background=0.004 * (k - 1.5), shape=(320, 320),
        )
        for k, (ra, dec) in enumerate(dithers(4, 0.4))
    ]  # fmt: skip
    return folder, made, sky, build(made, folder / "out")


def test_stars_keep_their_flux(clean: tuple) -> None:
    folder, _, sky, _ = clean
    out = folder / "out"
    table = aperture_photometry(out / f"{STEM}_sci.fits", out / f"{STEM}_wht.fits", sky.ra, sky.dec, [0.05, 0.4])
    assert table["covered"].sum() > 15
    ratio = (table["flux_0.40"] / sky.flux)[table["covered"]]
    assert np.abs(ratio - 1).max() < 0.005
    small, scatter = aperture_ratio(table, 0.05, 0.4)
    assert 0.5 < small < 0.95
    assert scatter < 0.02
    corrected = (table["flux_0.05"] / small / sky.flux)[table["covered"]]
    assert abs(np.median(corrected) - 1) < 0.01


def test_stars_keep_their_place(clean: tuple) -> None:
    folder, _, sky, _ = clean
    out = folder / "out"
    found = detect(out / f"{STEM}_sci.fits", out / f"{STEM}_wht.fits")
    cos = np.cos(np.radians(CENTRE[1]))
    separation = np.hypot((found["ra"][:, None] - sky.ra) * cos, found["dec"][:, None] - sky.dec) * 3.6e6
    nearest = separation.argmin(axis=1)
    match = separation.min(axis=1) < 40
    assert match.sum() >= 20
    east = ((found["ra"] - sky.ra[nearest]) * cos * 3.6e6)[match]
    north = ((found["dec"] - sky.dec[nearest]) * 3.6e6)[match]
    assert abs(np.median(east)) < 0.5
    assert abs(np.median(north)) < 0.5
    assert max(np.std(east), np.std(north)) < 1.5
    assert np.abs((found["flux"] / sky.flux[nearest])[match] - 1).max() < 0.02
    np.testing.assert_allclose(found["mag"][match], 23.9 - 2.5 * np.log10(20.0), atol=0.05)


@pytest.mark.parametrize("kernel", ["square", "turbo"])
@pytest.mark.parametrize("channel", ["short", "long"])
def test_total_light_is_conserved(tmp_path: Path, kernel: str, channel: str) -> None:
    sky = isolated_stars(1.5, 2, 3)
    rules = MosaicRules(kernel=kernel, pixfrac=1.0)
    scale, shape = (31.0, (192, 192)) if channel == "short" else (63.0, (96, 96))
    made = [
        make_exposure(
            tmp_path, f"jw3_{k}", sky, ra=ra, dec=dec, noise=0, bad_fraction=0, seed=k, scale_mas=scale, shape=shape
        )
        for k, (ra, dec) in enumerate(dithers(4, 0.3))
    ]
    result = build(made, tmp_path / "out", rules=rules, channel=channel)
    science = planes(tmp_path / "out")["sci"]
    assert science.sum() * 0.01 == pytest.approx(sky.flux.sum(), rel=0.003)
    assert result.pixel_scale_mas == (20.0 if channel == "short" else 40.0)


def test_exposure_time_is_exact(clean: tuple) -> None:
    folder, made, _, result = clean
    got = planes(folder / "out")
    wcs = WCS(fits.getheader(folder / "out" / f"{STEM}_sci.fits"))
    y, x = np.indices(got["exp"].shape)
    ra, dec = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    total, sure = np.zeros(x.size), np.ones(x.size, bool)
    for k, one in enumerate(made):
        px, py = one.wcs.all_world2pix(ra, dec, 0, quiet=True)
        ny, nx = one.bad.shape
        depth = np.minimum(np.minimum(px, nx - 1 - px), np.minimum(py, ny - 1 - py))
        total += np.where(depth > 0, 100.0 * (k + 1), 0)
        sure &= np.abs(depth + 0.5) > 1.5
        inside = depth > 0
        ix, iy = np.round(px[inside]).astype(int), np.round(py[inside]).astype(int)
        near_bad = np.zeros(one.bad.shape, bool)
        by, bx = np.nonzero(one.bad | one.cosmic)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near_bad[np.clip(by + dy, 0, ny - 1), np.clip(bx + dx, 0, nx - 1)] = True
        sure[np.flatnonzero(inside)[near_bad[iy, ix]]] = False
    rejected = sum(one.rejected for one in result.exposures)
    assert rejected < 4 * 1e-4
    differ = np.abs(got["exp"].ravel() - total)[sure] > 1e-3
    assert sure.mean() > 0.9
    assert differ.mean() < 2e-4  # the few pixels that were taken for cosmic rays
    assert ((got["wht"] > 0) == (got["exp"] > 0)).all()
    assert (got["sci"][got["wht"] == 0] == 0).all()
    assert result.median_seconds == np.median(got["exp"][got["exp"] > 0])


def test_weight_is_the_inverse_variance_of_sums(tmp_path: Path) -> None:
    nothing = Sky(np.empty(0), np.empty(0), np.empty(0))
    made = [
        make_exposure(
            tmp_path, f"jw4_{k}", nothing, ra=ra, dec=dec, noise=0.01 * (1 + k % 2), seed=50 + k, shape=(560, 560)
        )
        for k, (ra, dec) in enumerate(dithers(4, 0.2))
    ]
    result = build(made, tmp_path / "out")
    got = planes(tmp_path / "out")
    middle = slice(got["sci"].shape[0] // 2 - 280, got["sci"].shape[0] // 2 + 280)
    science, weight = got["sci"][middle, middle], got["wht"][middle, middle]
    assert (weight > 0).all()
    block = 16
    sums = science.reshape(35, block, 35, block).sum(axis=(1, 3))
    predicted = np.sqrt((1 / weight).reshape(35, block, 35, block).sum(axis=(1, 3)))
    assert np.std(sums / predicted) == pytest.approx(1.0, abs=0.12)
    # single pixels scatter less: neighbours share input pixels
    assert 0.3 < np.std(science * np.sqrt(weight)) < 0.9
    # four exposures, two of them of a quarter of the weight, at 31 mas to 20 mas
    expected = 2.5 / 0.01**2 * (20 / 31) ** 2 / (1e6 * 1e8 * (np.radians(20 / 3.6e6)) ** 2) ** 2
    assert np.median(weight) == pytest.approx(expected, rel=0.02)
    assert result.depth is not None
    assert result.depth.error_ratio == pytest.approx(1.0, abs=0.12)
    noise = np.sqrt(np.pi * 8**2 / np.median(weight))
    assert result.depth.magnitude == pytest.approx(28.9 - 2.5 * np.log10(5 * noise), abs=0.15)


def test_backgrounds_are_matched_and_nothing_is_taken_away(noisy: tuple) -> None:
    folder, _, _, result = noisy
    sky = np.array([one.sky for one in result.exposures])
    np.testing.assert_allclose(sky, 0.004 * (np.arange(4) - 1.5), atol=3e-4)
    assert abs(sky.mean()) < 1e-4
    got = planes(folder / "out")
    values = got["sci"][got["wht"] > 0]
    assert abs(np.median(values)) < 0.05 * np.std(values)


def test_cosmic_rays_go_and_star_cores_stay(noisy: tuple) -> None:
    from panoramic.mosaic.backgrounds import coarse_image, solve
    from panoramic.mosaic.cosmic_rays import reject_cosmic_rays
    from panoramic.mosaic.exposures import open_exposure

    _, made, _, result = noisy
    exposures = [open_exposure(one.input, grid_for_tests(), "short") for one in made]
    for exposure, offset in zip(exposures, solve([coarse_image(e, 25.0) for e in exposures]).offsets, strict=True):
        exposure.sky = float(offset)
    reject_cosmic_rays(exposures)
    found = total = cores = lost = false = pixels = 0
    for exposure, one in zip(exposures, made, strict=True):
        flags = exposure.rejected_window((0, 320, 0, 320))
        seen = np.zeros((320, 320), bool)
        seen[40:-40, 40:-40] = True  # where another exposure looks too
        real = one.cosmic & ~one.bad & seen
        found, total = found + (flags & real).sum(), total + real.sum()
        core = (one.clean > 0.5) & ~one.cosmic & ~one.bad
        cores, lost = cores + core.sum(), lost + (flags & core).sum()
        other = seen & ~one.cosmic & ~one.bad & (one.clean < 0.005)
        false, pixels = false + (flags & other).sum(), pixels + other.sum()
    assert total > 700
    assert found / total > 0.95
    assert cores > 500
    assert lost / cores < 0.005
    assert false / pixels < 1e-3
    assert all(0.003 < one.rejected < 0.012 for one in result.exposures)


def test_two_exposures_are_enough_for_cosmic_rays_and_holes(tmp_path: Path) -> None:
    from panoramic.mosaic.cosmic_rays import reject_cosmic_rays
    from panoramic.mosaic.exposures import open_exposure

    sky = random_stars(30, 3, 4, (1, 30))
    made = [
        make_exposure(tmp_path, f"jw5_{k}", sky, ra=ra, dec=dec, seed=k, cosmic_rays=200, shape=(256, 256))
        for k, (ra, dec) in enumerate(dithers(2, 0.35))
    ]
    with fits.open(made[1].input.path, mode="update") as hdus:
        holes = np.zeros((256, 256), bool)
        holes[40:220:20, 40:220:20] = True
        holes &= (made[1].clean < 0.002) & ~made[1].bad & ~made[1].cosmic
        hdus["SCI"].data[holes] -= 0.3
    exposures = [open_exposure(one.input, grid_for_tests(), "short") for one in made]
    reject_cosmic_rays(exposures)
    flags = [e.rejected_window((0, 256, 0, 256)) for e in exposures]
    inner = np.zeros((256, 256), bool)
    inner[24:-24, 24:-24] = True
    for flag, one in zip(flags, made, strict=True):
        real = one.cosmic & ~one.bad & inner
        # where both exposures were hit, and beside bad pixels, two exposures can't tell
        assert flag[real & (one.clean < 0.01)].mean() > 0.94
        assert flag[real].mean() > 0.9
        core = (one.clean > 0.5) & ~one.cosmic & ~one.bad
        assert flag[core].mean() < 0.005
    assert flags[1][holes].mean() > 0.9
    assert flags[0].sum() < 1.3 * made[0].cosmic.sum() + 30  # the other exposure's holes are not held against it


def test_a_single_exposure_says_what_can_not_be_done(tmp_path: Path) -> None:
    made = [make_exposure(tmp_path, "jw6_0", random_stars(5, 2, 5), cosmic_rays=5)]
    result = build(made, tmp_path / "out")
    assert result.single_fraction == 1.0
    assert any("only one exposure" in note for note in result.notes)
    assert result.exposures[0].rejected == 0


def test_tiles_leave_no_seams(noisy: tuple, tmp_path: Path) -> None:
    folder, made, _, _ = noisy
    build(made, tmp_path / "large", grid=grid_for_tests(1024))
    small, large = planes(folder / "out"), planes(tmp_path / "large")
    y, x = ((n - m) // 2 for n, m in zip(large["sci"].shape, small["sci"].shape, strict=True))
    assert x >= 0
    assert y >= 0
    for plane in PLANES:
        cut = large[plane][y : y + small[plane].shape[0], x : x + small[plane].shape[1]]
        np.testing.assert_allclose(small[plane], cut, rtol=1e-4, atol=1e-4 * np.abs(cut).max() * (plane == "sci"))
        assert np.count_nonzero(cut) == np.count_nonzero(large[plane])


def test_the_same_inputs_give_the_same_bytes(noisy: tuple, tmp_path: Path) -> None:
    _, made, _, result = noisy
    again = build(made[::-1], tmp_path)
    assert [f.sha256 for f in again.files] == [f.sha256 for f in result.files]


def test_a_new_exposure_does_not_move_the_grid(noisy: tuple, tmp_path: Path) -> None:
    folder, made, sky, result = noisy
    extra = make_exposure(tmp_path, "jw2_9_nrcb1", sky, ra=CENTRE[0] + 9 / 3600, dec=CENTRE[1] + 3 / 3600, seed=99)
    more = build([*made, extra], tmp_path / "out")
    assert set(result.tiles) < set(more.tiles)
    one, two = (fits.getheader(f / "out" / f"{STEM}_sci.fits") for f in (folder, tmp_path))
    assert (two["CRPIX1"] - one["CRPIX1"]) % 256 == 0
    assert (two["CRPIX2"] - one["CRPIX2"]) % 256 == 0
    assert (one["CRVAL1"], one["CRVAL2"]) == (two["CRVAL1"], two["CRVAL2"])


def test_headers_and_table_tell_where_it_came_from(noisy: tuple) -> None:
    folder, made, _, result = noisy
    for plane, unit in (("sci", "10nJy"), ("wht", "(10nJy)-2"), ("exp", "s")):
        with fits.open(folder / "out" / f"{STEM}_{plane}.fits") as hdus:
            hdus.verify("exception")
            header, table = hdus[0].header, hdus["INPUTS"].data
        assert header["BUNIT"] == unit
        assert header["SURVEY"] == "sim"
        assert header["FINGERPRINT"] == "0123456789abcdef"
        assert header["FILTER"] == "F115W"
        assert "DATE" not in header
        assert list(table["dataset"]) == [one.input.dataset for one in made]
        assert [e.sha256 for e in result.exposures] == list(table["sha256"])
    assert fits.getheader(folder / "out" / f"{STEM}_sci.fits")["PHOTFNU"] == 1e-8
    assert STEM == "sim-j100028p0212-v1.0-f115w-clear_drc"


def test_result_goes_through_json(noisy: tuple) -> None:
    result = noisy[3]
    assert MosaicResult.from_json(result.to_json()) == result
    assert json.loads(result.to_json())["stem"] == STEM
    assert result.filename("wht") == f"{STEM}_wht.fits"
    for file in result.files:
        assert (noisy[0] / "out" / file.filename).stat().st_size == file.size


def test_coverage_is_recounted_from_the_files(noisy: tuple, tmp_path: Path) -> None:
    folder, made, _, result = noisy
    names = [one.input.dataset for one in made]
    report = measure_coverage(folder / "out", STEM, names)
    assert report.passed
    assert min(report.measured.values()) > 0.9
    assert report.area_arcmin2 == pytest.approx(result.area_arcmin2)
    assert measure_coverage(folder / "out", STEM, [*names, "jw9"]).missing == ("jw9",)
    assert measure_coverage(folder / "out", STEM, names[1:]).unexpected == (names[0],)
    shutil.copytree(folder / "out", tmp_path / "out")
    with fits.open(tmp_path / "out" / f"{STEM}_exp.fits", mode="update") as hdus:
        hdus[0].data[hdus[0].data > 0] -= 500
    report = measure_coverage(tmp_path / "out", STEM, names)
    assert report.n_disagree > 0
    assert not report.passed
    (tmp_path / "out" / f"{STEM}_wht.fits").unlink()
    with pytest.raises(ProductDamagedError):
        measure_coverage(tmp_path / "out", STEM, names)


def test_an_exposure_that_is_not_in_the_pixels_is_missing(noisy: tuple, tmp_path: Path) -> None:
    """The table of inputs names it, the planes don't hold it."""
    _, made, _, _ = noisy
    build(made[:3], tmp_path / "three")
    build(made, tmp_path / "four")
    four, three = tmp_path / "four" / f"{STEM}_exp.fits", tmp_path / "three" / f"{STEM}_exp.fits"
    with fits.open(three) as less, fits.open(four, mode="update") as hdus:
        y, x = (round(hdus[0].header[k] - less[0].header[k]) for k in ("CRPIX2", "CRPIX1"))
        hdus[0].data[:] = 0
        hdus[0].data[y : y + less[0].shape[0], x : x + less[0].shape[1]] = less[0].data
    report = measure_coverage(tmp_path / "four", STEM, [one.input.dataset for one in made])
    assert made[3].input.dataset in report.missing


@pytest.mark.parametrize("moment", ["matching", "drizzling tile 3", "verifying"])
def test_killed_half_way_leaves_nothing(noisy: tuple, tmp_path: Path, moment: str) -> None:
    _, made, _, _ = noisy

    def stop(text: str) -> None:
        if text.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(made[:2], tmp_path / "out", progress=stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_run_left_is_removed(noisy: tuple, tmp_path: Path) -> None:
    _, made, _, _ = noisy
    left = writer.work_folder(tmp_path, STEM)
    left.mkdir()
    (left / f"{STEM}_sci.fits").write_bytes(b"half")
    build(made[:2], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{STEM}_{plane}.fits" for plane in PLANES)


def test_sigkill_leaves_no_mosaic_and_the_next_run_makes_the_same_bytes(noisy: tuple, tmp_path: Path) -> None:
    _, made, _, result = noisy
    code = (
        "import os, pickle, signal, sys\n"
        "from pathlib import Path\n"
        "from panoramic.mosaic.build import build_mosaic\n"
        "arguments = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "def stop(text):\n"
        "    if text.startswith('drizzling tile 5'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_mosaic(*arguments, progress=stop)\n"
    )
    out = tmp_path / "out"
    inputs = [one.input for one in made]
    (tmp_path / "arguments").write_bytes(
        pickle.dumps((inputs, grid_for_tests(), "short", out, STEM, RULES, PROVENANCE))
    )
    child = subprocess.run([sys.executable, "-c", code, tmp_path / "arguments"], check=False)
    assert child.returncode == -9
    assert [p.name for p in out.iterdir()] == [writer.work_folder(out, STEM).name]
    again = build(made, out)
    assert [f.sha256 for f in again.files] == [f.sha256 for f in result.files]
    assert sorted(p.name for p in out.iterdir()) == sorted(f"{STEM}_{plane}.fits" for plane in PLANES)


def test_memory_is_that_of_a_tile_not_of_the_mosaic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the pieces of work, in proportion to these small exposures
    monkeypatch.setattr(photometry, "_BAND", 256)
    monkeypatch.setattr(cosmic_rays, "_BLOCK_PX", 256)
    nothing = Sky(np.empty(0), np.empty(0), np.empty(0))
    made = [
        make_exposure(
            tmp_path,
            f"jw9_{k}",
            nothing,
            ra=CENTRE[0] + (k % 4) * 15 / 3600,
            dec=CENTRE[1] + k // 4 * 15 / 3600,
            seed=k,
        )
        for k in range(8)
    ]
    build(made[:1], tmp_path / "warm")  # imports and caches
    peaks = []
    for part in (made[:1], made):
        tracemalloc.start()
        result = build(part, tmp_path / f"{len(part)}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 0.6 * math.prod(result.shape) * 4 * 3  # all three planes at once would be this much


def test_full_disk(noisy: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made, _, _ = noisy
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
        with pytest.raises(DiskFullError, match="free"):
            build(made[:2], tmp_path / "a")
    with monkeypatch.context() as patch:

        def no_room(*_: object) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(writer.os, "pwrite", no_room)
        with pytest.raises(DiskFullError):
            build(made[:2], tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_what_was_not_written_as_meant_is_noticed(
    noisy: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made, _, _ = noisy
    true_write = writer.os.pwrite

    def flip(descriptor: int, data: memoryview, offset: int) -> int:
        damaged = bytearray(data)
        damaged[5] ^= 1
        return true_write(descriptor, damaged, offset)

    monkeypatch.setattr(writer.os, "pwrite", flip)
    with pytest.raises(ProductDamagedError, match="reads back"):
        build(made[:2], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["none", "twice", "filters", "provenance", "unusable"])
def test_what_can_not_be_a_mosaic_is_refused(noisy: tuple, tmp_path: Path, case: str) -> None:
    _, made, sky, _ = noisy
    inputs, provenance = [one.input for one in made], dict(PROVENANCE)
    if case == "none":
        inputs = []
    elif case == "twice":
        inputs.append(inputs[0])
    elif case == "filters":
        inputs[0] = replace(inputs[0], filter="F444W")
    elif case == "provenance":
        provenance["CRVAL1"] = 3.0
    else:
        inputs = [make_exposure(tmp_path, "jw8", sky, bad_fraction=1.1).input]
    with pytest.raises(MosaicError):
        build_mosaic(inputs, grid_for_tests(), "short", tmp_path / "out", STEM, RULES, provenance)
    assert not list((tmp_path / "out").glob("*"))


def test_an_exposure_without_usable_pixels_is_named(noisy: tuple, tmp_path: Path) -> None:
    _, made, sky, _ = noisy
    dead = make_exposure(tmp_path, "jw8_dead", sky, bad_fraction=1.1)
    result = build([*made[:2], dead], tmp_path / "out")
    assert any("jw8_dead has no usable pixel" in note for note in result.notes)
    report = measure_coverage(tmp_path / "out", STEM, [e.dataset for e in result.exposures])
    assert report.missing == ("jw8_dead",)


def test_more_exposures_than_drizzle_counts_in_one_plane(tmp_path: Path) -> None:
    sky = random_stars(3, 1, 7)
    made = [
        make_exposure(
            tmp_path, f"jw7_{k:02d}", sky, ra=ra, dec=dec, seed=k, shape=(48, 48), seconds=10.0, bad_fraction=0
        )
        for k, (ra, dec) in enumerate(dithers(35, 0.02))
    ]
    build(made, tmp_path / "out", grid=grid_for_tests(128))
    assert planes(tmp_path / "out")["exp"].max() == 350.0


def test_depth_needs_apertures(tmp_path: Path) -> None:
    header = fits.Header({"CDELT2": 20 / 3.6e6})
    for name in ("sci", "wht"):
        fits.PrimaryHDU(np.zeros((64, 64), np.float32), header).writeto(tmp_path / f"{name}.fits")
    assert measure_depth(tmp_path / "sci.fits", tmp_path / "wht.fits") is None
