"""Reference files: selected by the exposure alone, held against it, parsed once; what is missing is named."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from panoramic.errors import CalibrationError
from panoramic.reduction.base import CalibrationSetup, Degradation
from panoramic.reduction.native.references import FLAGS, KINDS, References, load_references
from panoramic.reduction.rate_files import RateHeader
from panoramic.simulate import calibration
from panoramic.simulate.geometry import aperture, filter_offset
from panoramic.simulate.headers import CONTEXT
from panoramic.simulate.instrument import photmjsr
from panoramic.simulate.program import Simulation

SIMULATION = Simulation.model_validate(
    {
        "fields": [{"ra": 10.0, "dec": 10.0, "observation": 1}], "detectors": ["nrcb1", "nrcblong"],
        "filters": [{"short": "F162M", "long": "F444W"}],
    }
)  # fmt: skip
HEADER = RateHeader(
    dataset="a", path=Path("a_rate.fits"), detector="NRCB1", channel="SHORT", module="B", filter="F150W2", pupil="F162M",
    exp_type="NRC_IMAGE", date="2025-05-02", time="08:21:00.000", start=60797.3, end=60797.31, exptime=900.0, ra=10.0,
    dec=10.0,
)  # fmt: skip
LONG = dataclasses.replace(HEADER, detector="NRCBLONG", channel="LONG", filter="F444W", pupil="CLEAR")
Load = Callable[..., tuple[References, ...]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated CRDS cache; the area files say what their header says, and hold few pixels."""
    path = tmp_path_factory.mktemp("references") / "crds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "pixel_area_map", lambda ap: np.ones((8, 8), np.float32))
        calibration.write_cache(SIMULATION, path)
    return path


@pytest.fixture
def own(cache: Path, tmp_path: Path) -> Path:
    """A cache that a test may change: replace files, don't write into them."""
    return Path(shutil.copytree(cache, tmp_path / "crds", copy_function=os.link))


def load(crds: Path, parsed: Path, *headers: RateHeader) -> tuple[References, ...]:
    return load_references(headers or (HEADER,), CalibrationSetup(crds, CONTEXT), parsed)


def file_of(crds: Path, kind: str, detector: str = "nrcb1") -> Path:
    number = list(calibration.DETECTORS).index(detector)
    pattern = {"filteroffset": "01" if detector == "nrcb1" else "00", "flat": f"{number:02d}??"}.get(
        kind, f"{number:02d}"
    )
    (found,) = (crds / "references" / "jwst" / "nircam").glob(f"jwst_nircam_{kind}_9001{pattern}.*")
    return found


def rewrite_rule(path: Path, old: str, new: str) -> None:
    """Change a mapping, and its checksum with it."""
    lines = [line for line in path.read_text().replace(old, new).splitlines(keepends=True) if "sha1sum" not in line]
    assert new in "".join(lines)
    digest = hashlib.sha1("".join(lines).encode(), usedforsecurity=False).hexdigest()
    path.unlink()
    path.write_text("".join(lines).replace("header = {\n", f"header = {{\n    'sha1sum' : '{digest}',\n", 1))


def rewrite_header(path: Path, **keywords: str) -> None:
    with fits.open(path) as hdus:
        hdus.readall()
        for hdu in hdus:
            hdu.data  # noqa: B018 a lazy plane would be lost with its file
        hdus[0].header.update(keywords)
        beside = path.with_suffix(".new")
        hdus.writeto(beside)
    beside.replace(path)


# --- what is selected and read ---------------------------------------------------------------------


def test_selected_by_the_exposure_alone(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {"CRDS_PATH": "/nowhere", "CRDS_CONTEXT": "jwst_9999.pmap", "CRDS_SERVER_URL": "https://localhost:1"}
    for key, value in foreign.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("CRDS_INI_FILE", str(tmp_path / "mine.ini"))
    (tmp_path / "mine.ini").write_text("[crds]\nCRDS_CONTEXT = jwst_9999.pmap\n")
    before, there = dict(os.environ), sorted(cache.rglob("*"))
    short, again, long = load(cache, tmp_path / "parsed", HEADER, dataclasses.replace(HEADER, time="09:00:00"), LONG)
    assert dict(os.environ) == before
    assert sorted(cache.rglob("*")) == there
    assert short is again
    for references, detector, band in ((short, "nrcb1", "F162M"), (long, "nrcblong", "F444W")):
        assert {k: f.name for k, f in references.files.items()} == {k: file_of(cache, k, detector).name for k in KINDS}
        assert references.photmjsr == pytest.approx(photmjsr(detector, band), rel=1e-6)
        ap = aperture(detector)
        assert (references.pixar_sr, references.pixar_a2) == pytest.approx((ap.pixel_area_sr, ap.pixel_area_arcsec2))
        assert references.filter_offset == pytest.approx(filter_offset(detector, band))
        x, y = np.array([0.0, 2047.0, 700.0]), np.array([3.0, 1500.0, 2047.0])
        np.testing.assert_allclose(references.distortion.at(x, y), ap.pixel_to_v2v3(x, y), atol=1e-8)
        assert references.degradations("a") == ()
        for file in references.files.values():
            assert references.checksums[file.name] == hashlib.sha256(file.path.read_bytes()).hexdigest()


def test_flats_are_jwsts(own: Path, tmp_path: Path) -> None:
    """Bits of a flat's own numbering, pixels without a value."""
    path = file_of(own, "flat")
    with fits.open(path) as hdus:
        data, error, flags = (hdus[k].data.copy() for k in ("SCI", "ERR", "DQ"))
        data[100, 100:104] = np.nan, 0.0, 0.9, 0.8
        flags[100, 102:104] = 4, 8
        hdus["SCI"].data, hdus["DQ"].data = data, flags
        defined = hdus["DQ_DEF"].data
        rows = [(*defined[0],), (*defined[1],), (2, 4, "NO_FLAT_FIELD", ""), (3, 8, "LOW_QE", ""), (4, 16, "NEWS", "")]
        hdus["DQ_DEF"].data = np.array(rows, dtype=defined.dtype)
        hdus.writeto(path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    from stdatamodels.jwst.datamodels import FlatModel

    (references,) = load(own, tmp_path / "parsed")
    flat = references.flat
    assert flat is not None
    none = FLAGS["NO_FLAT_FIELD"] | FLAGS["DO_NOT_USE"]
    assert flat.dq[100, 100:104].tolist() == [none, none, none, FLAGS["LOW_QE"]]
    np.testing.assert_array_equal(flat.data[100, 100:104], np.float32([1, 1, 1, 0.8]))
    with FlatModel(path) as model:
        assert (flat.dq & model.dq == model.dq).all()
        usable = flat.dq & 1 == 0
        np.testing.assert_array_equal(flat.data[usable], model.data[usable])
        np.testing.assert_array_equal(flat.error, model.err)


def test_flags_are_jwsts() -> None:
    from stdatamodels.jwst.datamodels.dqflags import pixel

    assert pixel == {"GOOD": 0} | FLAGS


def test_without_a_flat_or_an_offset_it_goes_on_and_says_so(own: Path, tmp_path: Path) -> None:
    (imap,) = (own / "mappings" / "jwst").glob("*.imap")
    for kind in ("flat", "filteroffset", "area"):
        rewrite_rule(imap, f"'jwst_nircam_{kind}_9001.rmap'", "'N/A'")
    (references,) = load(own, tmp_path / "parsed")
    assert references.flat is None
    assert references.filter_offset == (0.0, 0.0)
    assert references.pixar_sr == pytest.approx(aperture("nrcb1").pixel_area_sr)  # photom's own
    missing = references.degradations("jw1_nrcb1")
    assert [d.what for d in missing] == ["flat_field", "pixel_area", "filter_offset"]
    assert missing[0] == Degradation("jw1_nrcb1", "flat_field", missing[0].why)
    assert "NRCB1 F150W2 F162M" in missing[0].why


# --- the cache -------------------------------------------------------------------------------------


def test_parsed_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asdf

    parsed = tmp_path / "parsed"
    (first,) = load(cache, parsed)
    entries = sorted(p.name for p in parsed.iterdir())
    assert entries == sorted(f"{k}-1-{first.files[k].sha256}.npz" for k in ("distortion", "filteroffset"))
    content = {p: p.read_bytes() for p in parsed.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(asdf, "open", lambda *_, **__: pytest.fail("parsed again"))
        (second,) = load(cache, parsed)
    for a, b in ((first.distortion.v2, second.distortion.v2), (first.distortion.v3, second.distortion.v3)):
        assert a.coefficients.tobytes() == b.coefficients.tobytes()
    assert second.filter_offset == first.filter_offset
    assert second.distortion.error_mas == first.distortion.error_mas
    # damaged entries are made anew, with the same bytes
    for k, (path, whole) in enumerate(content.items()):
        path.write_bytes(whole[: len(whole) // 2] if k else whole[:500] + b"\0\0\0\0" + whole[504:])
    (third,) = load(cache, parsed)
    assert third.distortion.v2.coefficients.tobytes() == first.distortion.v2.coefficients.tobytes()
    assert {p: p.read_bytes() for p in parsed.iterdir()} == content


def test_another_file_is_another_entry(own: Path, tmp_path: Path) -> None:
    parsed = tmp_path / "parsed"
    (first,) = load(own, parsed)
    path = file_of(own, "distortion")
    path.unlink()
    shutil.copy(file_of(own, "distortion", "nrcblong"), path)
    rewrite_asdf(path, "NRCB1")
    (second,) = load(own, parsed)
    assert abs(second.distortion.at(np.zeros(1), np.zeros(1))[0] - first.distortion.at(np.zeros(1), np.zeros(1))[0]) > 1
    assert len(list(parsed.iterdir())) == 3


def rewrite_asdf(path: Path, detector: str) -> None:
    import asdf

    with asdf.open(path, lazy_load=False, memmap=False) as opened:
        opened.tree["meta"]["instrument"]["detector"] = detector
        opened.write_to(path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["photom", "distortion", "flat", "area", "filteroffset"])
def test_a_missing_file_is_named(own: Path, tmp_path: Path, kind: str) -> None:
    file = file_of(own, kind)
    file.unlink()
    with pytest.raises(CalibrationError, match=rf"no {kind} for NRCB1 F150W2 F162M: .* selects {file.name}, but"):
        load(own, tmp_path / "parsed")


@pytest.mark.parametrize("kind", ["photom", "distortion"])
def test_what_nothing_can_do_without(own: Path, tmp_path: Path, kind: str) -> None:
    (imap,) = (own / "mappings" / "jwst").glob("*.imap")
    rewrite_rule(imap, f"'jwst_nircam_{kind}_9001.rmap'", "'N/A'")
    with pytest.raises(CalibrationError, match=f"no {kind} for NRCB1 F150W2 F162M"):
        load(own, tmp_path / "parsed")


def test_no_rule(cache: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(HEADER, filter="F090W", pupil="CLEAR")
    with pytest.raises(CalibrationError, match=f"no flat for NRCB1 F090W CLEAR in context {CONTEXT}"):
        load(cache, tmp_path / "parsed", other)
    with pytest.raises(CalibrationError, match=r"jwst_0001\.pmap is missing"):
        load_references((HEADER,), CalibrationSetup(cache, "jwst_0001.pmap"), tmp_path)


def test_a_damaged_mapping(own: Path, tmp_path: Path) -> None:
    load(own, tmp_path / "parsed")
    (rmap,) = (own / "mappings" / "jwst").glob("*photom*.rmap")
    text = rmap.read_text()
    rmap.unlink()
    rmap.write_text(text.replace("NRCB1", "NRCB2"))
    with pytest.raises(CalibrationError, match="could not use context"):
        load(own, tmp_path / "parsed")


@pytest.mark.parametrize(
    ("kind", "keywords", "match"),
    [
        ("flat", {"DETECTOR": "NRCB2"}, "is of DETECTOR NRCB2, the exposure of NRCB1"),
        ("flat", {"FILTER": "F200W"}, "is of FILTER F200W, the exposure of F150W2"),
        ("flat", {"PUPIL": "CLEAR"}, "is of PUPIL CLEAR, the exposure of F162M"),
        ("flat", {"INSTRUME": "NIRISS"}, "is of INSTRUME NIRISS"),
        ("photom", {"DETECTOR": "NRCA1"}, "is of DETECTOR NRCA1"),
        ("area", {"DETECTOR": "NRCA1"}, "is of DETECTOR NRCA1"),
    ],
)
def test_of_another_detector_or_filter(own: Path, tmp_path: Path, kind: str, keywords: dict, match: str) -> None:
    file = file_of(own, kind)
    rewrite_header(file, **keywords)
    with pytest.raises(CalibrationError, match=f"{kind} {file.name} {match}"):
        load(own, tmp_path / "parsed")
    # a pattern of several values is as good
    patterns = {"DETECTOR": "P_DETECT", "FILTER": "P_FILTER", "PUPIL": "P_PUPIL"}
    if (name := next(iter(keywords))) in patterns:
        rewrite_header(file, **{patterns[name]: f"{keywords[name]}| {getattr(HEADER, name.lower())} |"})
        load(own, tmp_path / "parsed")


def test_distortion_of_another_detector(own: Path, tmp_path: Path) -> None:
    parsed = tmp_path / "parsed"
    rewrite_asdf(file_of(own, "distortion"), "NRCB2")
    for _ in range(2):  # parsed, and from the cache
        with pytest.raises(CalibrationError, match=r"distortion .* is of DETECTOR NRCB2, the exposure of NRCB1"):
            load(own, parsed)
    path = file_of(own, "filteroffset")
    rewrite_asdf(file_of(own, "distortion"), "NRCB1")
    path.unlink()
    shutil.copy(file_of(own, "filteroffset", "nrcblong"), path)
    with pytest.raises(CalibrationError, match=r"filteroffset .* is of CHANNEL LONG, the exposure of SHORT"):
        load(own, parsed)


@pytest.mark.filterwarnings("ignore:.*(truncated|Header size)")
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("flat", 1500),
        ("flat", 20_000_000),
        ("flat", 45_000_000),
        ("photom", 1500),
        ("photom", 6000),
        ("distortion", 1500),
        ("filteroffset", 1500),
        ("area", 1500),
    ],
)
def test_a_damaged_file_is_named(own: Path, tmp_path: Path, kind: str, size: int) -> None:
    file = file_of(own, kind)
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:size])
    with pytest.raises(CalibrationError, match=rf"{kind} .*{file.name} can't be read"):
        load(own, tmp_path / "parsed")


def test_a_flux_scale_that_is_none(own: Path, tmp_path: Path) -> None:
    path = file_of(own, "photom")
    with fits.open(path) as hdus:
        table = hdus["PHOTOM"].data
        row = (table["pupil"] == "F162M").nonzero()[0][0]
        table["photmjsr"][row] = np.nan
        hdus.writeto(path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    with pytest.raises(CalibrationError, match="no single positive flux scale for F150W2 F162M"):
        load(own, tmp_path / "parsed")
