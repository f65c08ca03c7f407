"""Whatever the child does, the caller is unharmed and hears the cause. A stand-in plays grizli's part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from panoramic.errors import (
    CalibrationError,
    DiskFullError,
    EngineFailedError,
    EngineKilledError,
    InputError,
    StorageError,
    TruncatedFileError,
)
from panoramic.provenance import sha256_of
from panoramic.reduction import workfolder
from panoramic.reduction.base import (
    CalibrationSetup,
    ExposureInput,
    Pointing,
    PointingPrior,
    ReductionResult,
    ReferenceSources,
)
from panoramic.reduction.grizli import GrizliReduction, remove_orphans
from panoramic.reduction.workfolder import WorkFolder, publish

A, B = (f"jw09001001001_02201_0000{i}_nrcblong" for i in (1, 2))
PROJECT = Path(__file__).resolve().parents[2]

# plays grizli_child: does what a test's code says, with the folders that the real one has
STAND_IN = """
import json, os, shutil, signal, sys, time
from pathlib import Path
made_before = Path(__file__).parent
job = json.loads(Path(sys.argv[1]).read_text())
work, root, products = Path(job["work"]), job["root"], Path(job["products"])
prep = work / root / "Prep"
prep.mkdir()
products.mkdir()

def done(exposures=True, image=False, references=("area", "filteroffset", "photom"), **error):
    made = {"exposures": {}, "image": None, "weight": None, "catalog": None, "n_sources": 0, "pixel_scale_mas": 0.0}
    if exposures:
        for e in job["exposures"]:
            shutil.copyfile(made_before / "product.fits", products / f"{e['dataset']}_rate.fits")
            made["exposures"][e["dataset"]] = f"{e['dataset']}_rate.fits"
        made |= {"n_sources": 7, "pixel_scale_mas": 63.0}
    if image:
        for plane, name in (("image", "sci.fits"), ("weight", "wht.fits")):
            shutil.copyfile(made_before / name, products / name)
            made[plane] = name
    outcome = {"stage": "products", "references": {kind: f"{kind}_1.fits" for kind in references}}
    if error:
        outcome["stage"] = error.pop("stage")
        outcome["error"] = {"module": "builtins", "errno": None, "message": "", **error}
    else:
        outcome["products"] = made
    Path(job["outcome"]).write_text(json.dumps(outcome))

def shifts(rejected=False):
    a, b = (e["alias"] for e in job["exposures"])
    rows = f"{a}_rate.fits 0.000 0.000 0.0 1.0 100 0.000 0.000\\n"
    bad = f"# ! {b}_rate.fits 0.4 0.4 0.0 1.0 6 0.3 0.3\\n" if rejected else ""
    row = "0.000 0.000 0.0 1.0 6 0.3 0.3" if rejected else "0.1 0.2 0.0 1.0 90 0.01 0.02"
    (prep / f"{root}_shifts.log").write_text(rows + bad + f"{b}_rate.fits {row}\\n")

def wcs():
    (prep / f"{root}_wcs.log").write_text("# ext\\n 0 1.4 0.2 0.01 1.0 0.479 29\\n")

"""


@pytest.fixture(scope="module")
def rate_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExposureInput, ...]:
    """Two rate files that pass the driver's looks."""
    folder = tmp_path_factory.mktemp("rates")
    out = []
    for i, dataset in enumerate((A, B)):
        primary = fits.PrimaryHDU()
        primary.header.update({
            "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCBLONG", "CHANNEL": "LONG", "MODULE": "B",
            "FILTER": "F444W", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE", "DATE-OBS": "2025-05-02",
            "TIME-OBS": "08:21:00.000", "EXPSTART": 60797.3 + i, "EFFEXPTM": 900.0,
        })  # fmt: skip
        planes = [fits.ImageHDU(np.zeros((2048, 2048), np.uint8), name=n) for n in ("SCI", "ERR", "DQ")]
        planes[0].header.update({
            "RA_REF": 150.1, "DEC_REF": 2.3, "ROLL_REF": 112.0, "V2_REF": -89.5, "V3_REF": -491.4, "VPARITY": -1,
            "V3I_YANG": 0.06,
        })  # fmt: skip
        path = folder / f"{dataset}_rate.fits"
        fits.HDUList([primary, *planes]).writeto(path)
        path.chmod(0o444)
        out.append(ExposureInput(dataset, path))
    return tuple(reversed(out))


@pytest.fixture
def setup(tmp_path: Path) -> CalibrationSetup:
    crds = tmp_path / "crds"
    for name in ("config/jwst/server_config", "mappings/jwst/jwst_1.pmap"):
        (crds / name).parent.mkdir(parents=True, exist_ok=True)
        (crds / name).write_text("{}")
    wisps = tmp_path / "grizli" / "CONF" / "NircamWisp"
    wisps.mkdir(parents=True)
    (wisps / "WISP_NRCB4_F115W_CLEAR.fits").write_text("template")
    return CalibrationSetup(crds, "jwst_1.pmap", grizli_path=tmp_path / "grizli")


def write_product(path: Path, used: float = 1.0, **keywords: str) -> None:
    """A small calibrated exposure, complete but for what is said."""
    weight = (np.arange(400).reshape(20, 20) < used * 400).astype(np.float32)
    primary = fits.PrimaryHDU()
    primary.header.update({"S_FLAT": "COMPLETE", "S_PHOTOM": "COMPLETE", "S_WCS": "COMPLETE", **keywords})
    planes = {"SCI": np.ones_like(weight), "ERR": np.ones_like(weight), "WHT": weight, "DQ": np.zeros((20, 20), "u4")}
    hdus = [primary, *(fits.ImageHDU(plane, name=name) for name, plane in planes.items())]
    fits.HDUList(hdus).writeto(path, overwrite=True)


Run = Callable[..., ReductionResult]
REFERENCE = ReferenceSources("LS_DR9", np.array([150.1, 150.2]), np.array([2.3, 2.4]), np.zeros(2), np.zeros(2))


@pytest.fixture
def run(tmp_path: Path, setup: CalibrationSetup, rate_files: tuple[ExposureInput, ...]) -> Iterator[Run]:
    """Runs the driver with a stand-in of the given code; checks after it that nothing is left and nothing changed."""

    def state() -> tuple[object, ...]:
        # pytest itself notes its stage there
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        return environment, Path.cwd(), [sha256_of(e.path) for e in rate_files]

    before = state()

    def call(
        code: str, reference: ReferenceSources | None = REFERENCE, n: int = 2, timeout_s: float = 60,
        priors: tuple[PointingPrior, ...] = (), product: Mapping[str, Any] = MappingProxyType({}), lost: int = 0,
        **engine: object,
    ) -> ReductionResult:  # fmt: skip
        write_product(tmp_path / "product.fits", **product)
        image = np.ones((20, 20), np.float32)
        fits.writeto(tmp_path / "wht.fits", image, overwrite=True)
        image.flat[:lost] = np.nan
        fits.writeto(tmp_path / "sci.fits", image, overwrite=True)
        script = tmp_path / "stand_in.py"
        script.write_text(STAND_IN + textwrap.dedent(code))
        reduction = GrizliReduction(setup, tmp_path / "work", timeout_s=timeout_s, **engine)  # type: ignore[arg-type]
        reduction.child_command = (sys.executable, str(script))
        return reduction.reduce("assoc", rate_files[-n:], reference, priors, tmp_path / "products" / "assoc")

    yield call
    assert list((tmp_path / "work").glob("*")) == []
    assert state() == before


# --- good ends -----------------------------------------------------------------------------


def test_a_reduction(run: Run, tmp_path: Path) -> None:
    (tmp_path / "products").mkdir()
    (tmp_path / "products" / "assoc.failed.log").write_text("of an earlier try")
    result = run("print('# prep.apply_region_mask_from_db: query failed'); shifts(); wcs(); done()")
    folder = tmp_path / "products" / "assoc"
    assert result.failure is None and result.excluded == {}
    assert [(f.dataset, f.role) for f in result.relative] == [(A, "anchor"), (B, "matched")]  # by time
    assert result.absolute is not None and result.absolute.n == 29 and result.absolute.pixel_scale_mas == 63.0
    assert {d.what for d in result.degradations} == {"region_mask"} and len(result.degradations) == 2
    for exposure in result.exposures:
        assert sha256_of(folder / exposure.filename) == exposure.sha256
    log = (folder / result.log).read_text()
    assert "query failed" in log and "=== nircam-f444w-clear_wcs.log" in log
    assert not (tmp_path / "products" / "assoc.failed.log").exists()
    assert result.peak_mib > 0 and result.cpu_seconds > 0
    assert ReductionResult.from_json(result.to_json()) == result


def of_whom(result: ReductionResult) -> dict[str, set[str]]:
    """Who lacks each thing."""
    found: dict[str, set[str]] = {}
    for entry in result.degradations:
        found.setdefault(entry.what, set()).add(entry.product)
    return found


def test_nothing_is_missing(run: Run) -> None:
    assert run("shifts(); wcs(); done(image=True)").degradations == ()


def test_what_log_products_and_crds_say_is_missing(run: Run) -> None:
    """Each of the three is heard, and what two of them say of one exposure is one row with both reasons."""
    result = run(
        """
        print("# prep.apply_region_mask_from_db: query failed")
        print("Fix 3000000 NaN pixels in extension 1, set DQ=1025")
        shifts(); wcs(); done(image=True, references=["area", "photom"])
        """,
        product={"used": 0.5, "S_JUMP": "SKIPPED", "ENGQLPTG": "PLANNED"},
        lost=4,
        services_off=("region_mask", "filter_offset"),
    )
    each = {A, B}
    assert of_whom(result) == {
        "region_mask": each, "jump_detection": each, "usable_area": each, "measured_pointing": each,
        "filter_offset": each, "drizzled_image": {"assoc"},
    }  # fmt: skip
    assert len(result.degradations) == 11 and result.failure is None
    assert {d.what for d in result.degradations if d.intended} == {"region_mask", "filter_offset"}
    why = {(d.product, d.what): d.why for d in result.degradations}
    assert why["assoc", "drizzled_image"] == "1.0% of the drizzled image's pixels with weight have no value"
    assert all("Fix 3000000 NaN" in why[e, "usable_area"] and "only 50% of" in why[e, "usable_area"] for e in each)
    assert ReductionResult.from_json(result.to_json()) == result


def test_a_product_that_can_not_be_read_back(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="assoc: a product can't be read back"):
        run(f"shifts(); wcs(); done(); (products / '{A}_rate.fits').write_text('')")
    assert not (tmp_path / "products" / "assoc").exists()


def test_what_the_child_is_given(run: Run, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    os.environ["CRDS_PATH"] = "/not/this/one"
    os.environ["OF_THE_PARENT"] = "1"
    try:
        run(
            f"""
            conf = Path(os.environ["GRIZLI"]) / "CONF" / "NircamWisp"
            Path({str(seen)!r}).write_text(json.dumps({{
                "env": dict(os.environ), "job": job, "cwd": os.getcwd(), "group": os.getpgid(0),
                "raw": sorted(p.name for p in (work / root / "RAW").iterdir()),
                "wisps": [p.read_text() for p in conf.iterdir()],
                "reference": Path(job["reference"]).read_text(),
            }}))
            (conf / "new.fits").write_text("grizli writes here")
            (work / root / "RAW" / "{A}_rate.fits").write_bytes(b"switched keywords")
            shifts(); wcs(); done()
            """,
            services_off=("region_mask",),
        )
    finally:
        del os.environ["CRDS_PATH"], os.environ["OF_THE_PARENT"]
    told = json.loads(seen.read_text())
    env = told["env"]
    assert "OF_THE_PARENT" not in env
    assert env["CRDS_PATH"] == str(tmp_path / "crds") and env["CRDS_CONTEXT"] == "jwst_1.pmap"
    assert env["OMP_NUM_THREADS"] == "1" and env["MPLBACKEND"] == "Agg"
    assert all(env[k].startswith(told["cwd"]) for k in ("HOME", "TMPDIR", "GRIZLI", "iref", "jref", "MPLCONFIGDIR"))
    assert Path(told["cwd"]).parent == tmp_path / "work" and told["group"] == os.getpgid(0)
    assert told["raw"] == [f"{A}_rate.fits", f"{B}_rate.fits"] and told["wisps"] == ["template"]
    assert told["reference"] == "150.100000000 2.300000000\n150.200000000 2.400000000\n"
    assert told["job"]["services_off"] == ["region_mask"]
    assert told["job"]["provenance"]["REFCAT"] == "LS_DR9"
    assert not (tmp_path / "grizli" / "CONF" / "NircamWisp" / "new.fits").exists()


def test_without_a_reference_nothing_is_aligned(run: Run) -> None:
    result = run("assert job['reference'] is None and job['prep_args']['align_use_guess']; shifts(); done()", None)
    assert result.absolute is None and result.failure is None


def test_a_single_exposure(run: Run) -> None:
    result = run("wcs(); done()", n=1)
    assert [f.role for f in result.relative] == ["single"] and result.failure is None


def prior_of(dataset: str, east: float = 12.5) -> PointingPrior:
    covariance = ((100.0, 0.0, 0.0), (0.0, 100.0, 0.0), (0.0, 0.0, 1e-4))
    return PointingPrior(dataset, (east, -3.25), 0.01, covariance, "visit", ("jw1_nrcb1",), ())


def test_pointing_priors_reach_the_child(run: Run) -> None:
    """One exposure has a prior; the other keeps its header's pointing."""
    result = run(
        f"""
        priors = {{e["dataset"]: e["prior"] for e in job["exposures"]}}
        assert priors[{A!r}] is None
        prior = priors[{B!r}]
        assert (prior["shift_mas"], prior["roll_deg"], prior["basis"]) == ([12.5, -3.25], 0.01, "visit")
        assert prior["covariance"][0] == [100, 0, 0] and prior["sources"] == ["jw1_nrcb1"]
        shifts(); wcs(); done()
        """,
        priors=(prior_of(B),),
    )
    assert result.failure is None


def test_priors_that_can_not_be_meant_are_refused(run: Run) -> None:
    for priors, said in (
        ((prior_of("jw09001001001_02201_00007_nrcblong"),), "exposures that it has not: jw09001001001_02201_00007"),
        ((prior_of(A), prior_of(A)), "two pointing priors"),
        ((prior_of(A, float("nan")),), "is no number"),
    ):
        with pytest.raises(InputError, match=said):
            run("os._exit(9)", priors=priors)


def test_the_pointing_correction_comes_back(run: Run) -> None:
    result = run(
        f"""
        shifts(); wcs(); done()
        outcome = json.loads(Path(job["outcome"]).read_text())
        outcome["products"]["pointings"] = {{
            {A!r}: {{"ra": 150.1, "dec": 2.3, "shift_mas": [120.5, -33.0], "roll_deg": 0.02}}
        }}
        Path(job["outcome"]).write_text(json.dumps(outcome))
        """
    )
    pointings = {e.dataset: e.pointing for e in result.exposures}
    assert pointings == {A: Pointing(150.1, 2.3, (120.5, -33.0), 0.02), B: None}
    assert ReductionResult.from_json(result.to_json()) == result


def test_results_stored_without_pointings_are_read(run: Run) -> None:
    stored = json.loads(run("shifts(); wcs(); done()").to_json())
    for exposure in stored["exposures"]:
        del exposure["pointing"]
    read = ReductionResult.from_json(json.dumps(stored))
    assert [e.dataset for e in read.exposures] == [A, B] and all(e.pointing is None for e in read.exposures)


# --- failed alignment is a result ----------------------------------------------------------


def test_a_rejected_exposure(run: Run) -> None:
    result = run("shifts(rejected=True); wcs(); done()")
    assert [f.role for f in result.relative] == ["anchor", "rejected"]
    assert B in (result.failure or "")


def test_a_second_run_without_alignment_is_not_taken_for_an_aligned_one(run: Run) -> None:
    # grizli says so in its own log only
    result = run(
        """
        shifts(); wcs(); done()
        said = "# !! First `prep` run failed with `run_tweak_align`. Try again"
        (work / f"{root}.auto_script.log.txt").write_text(said)
        """
    )
    assert [f.role for f in result.relative] == ["rejected", "rejected"]
    assert "could not align the exposures with each other" in (result.failure or "")
    assert "relative_alignment" in {d.what for d in result.degradations}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("shifts(); done()", "rejected its own solution"),
        ("shifts(); (prep / f'{root}_wcs.log').write_text(''); done()", "rejected its own solution"),
        (
            "shifts(); wcs(); (prep / f'{root}.wcs_failed').write_text('');"
            "print('# !! Drizzle alignment failed'); done()",
            "alignment to the reference raised an error",
        ),
    ],
)
def test_no_solution(run: Run, code: str, said: str) -> None:
    result = run(code)
    assert result.absolute is None and said in (result.failure or "") and len(result.exposures) == 2


def test_grizli_gives_up_over_alignment(run: Run, tmp_path: Path) -> None:
    result = run(
        """
        print("nircam-f444w-clear: no reference objects found in the DRZ footprint")
        (prep / f"{root}.failed").write_text("")
        done(exposures=False)
        """
    )
    assert "no source of the reference lies in the image" in (result.failure or "")
    assert result.exposures == () and set(result.excluded) == {A, B} and result.image is None
    assert [p.name for p in (tmp_path / "products" / "assoc").iterdir()] == ["assoc.log"]


def test_an_empty_log_is_no_success(run: Run) -> None:
    result = run("(prep / f'{root}_shifts.log').write_text(''); wcs(); done()")
    assert {f.role for f in result.relative} == {"rejected"} and "no shifts" in (result.failure or "")


def test_an_empty_reference(run: Run) -> None:
    nothing = ReferenceSources("GAIA", np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    result = run("shifts(); done()", nothing)
    assert result.failure == "no alignment to GAIA: it has no source here"


# --- bad ends ------------------------------------------------------------------------------


def test_killed(run: Run, tmp_path: Path) -> None:
    with pytest.raises(EngineKilledError, match=r"SIGKILL; out of memory\? \(its peak was \d+ MiB") as caught:
        run("print('step one', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    kept = tmp_path / "products" / "assoc.failed.log"
    assert kept.read_text() == "step one\n" and str(kept) in str(caught.value)
    assert not (tmp_path / "products" / "assoc").exists()


def test_crashed(run: Run) -> None:
    with pytest.raises(EngineKilledError, match="SIGSEGV"):
        run("os.kill(os.getpid(), signal.SIGSEGV)")


def test_too_slow(run: Run) -> None:
    with pytest.raises(EngineKilledError, match=r"time limit of 0\.5 s"):
        run("time.sleep(60)", timeout_s=0.5)


@pytest.mark.parametrize("code", ["sys.exit(-1)", "os._exit(3)", "raise ValueError('surprise')", ""])
def test_it_ends_without_a_word(run: Run, code: str) -> None:
    with pytest.raises(EngineFailedError, match="no outcome"):
        run(code)


def test_its_exceptions(run: Run) -> None:
    with pytest.raises(EngineFailedError, match=r"KeyError: 'EXPNAME'.*\nlast words"):
        run("print('last words'); done(stage='engine', type='KeyError', message=\"'EXPNAME'\")")


def test_systemexit_of_crds(run: Run) -> None:
    with pytest.raises(CalibrationError, match="SystemExit: -1"):
        run("done(stage='calibration', type='SystemExit', message='-1')")


def test_a_missing_reference_file(run: Run) -> None:
    with pytest.raises(CalibrationError, match=r"reference file photom: .*context jwst_1\.pmap"):
        run("done(stage='calibration', type='ReferenceFileError', message='photom: none')")
    with pytest.raises(CalibrationError, match=r"CrdsDownloadError: x\.asdf"):
        run("print('# !crds.core.exceptions.CrdsDownloadError: x.asdf'); done(exposures=False)")


def test_no_flux_scale_is_a_matter_of_calibration(run: Run) -> None:
    with pytest.raises(CalibrationError, match=r"DN/S: no flux scale.*photom_1\.fits, context jwst_1\.pmap.*F444W and"):
        run(
            "done(stage='products', type='ProductError', message='x: grizli left it in DN/S: no flux scale was applied')"
        )
    with pytest.raises(EngineFailedError, match="ProductError: x: planes of unlike shapes"):
        run("done(stage='products', type='ProductError', message='x: planes of unlike shapes')")


def test_a_full_disk_over_there(run: Run) -> None:
    with pytest.raises(DiskFullError):
        run("done(stage='engine', type='OSError', message='[Errno 28] No space left on device', errno=28)")
    with pytest.raises(DiskFullError):
        run("print('OSError: [Errno 28] No space left on device'); done(exposures=False)")


def test_nothing_made_for_another_reason(run: Run) -> None:
    with pytest.raises(EngineFailedError, match="IndexError: list index out of range"):
        run(
            "print('# !IndexError: list index out of range'); (prep / 'x.failed').write_text(''); done(exposures=False)"
        )


def test_a_program_that_is_not_there(
    setup: CalibrationSetup, tmp_path: Path, rate_files: tuple[ExposureInput, ...]
) -> None:
    reduction = GrizliReduction(setup, tmp_path / "work")
    reduction.child_command = ("/no/such/python",)
    with pytest.raises(StorageError, match="can't be started"):
        reduction.reduce("assoc", rate_files, None, (), tmp_path / "out")


def test_bad_input_starts_nothing(run: Run, tmp_path: Path, rate_files: tuple[ExposureInput, ...]) -> None:
    (tmp_path / "products" / "assoc").mkdir(parents=True)
    (tmp_path / "products" / "assoc" / "old.fits").write_text("")
    with pytest.raises(StorageError, match="holds something"):
        run("os._exit(9)")
    cut = tmp_path / f"{A}_rate.fits"
    cut.write_bytes(rate_files[0].path.read_bytes()[:10_000])
    with pytest.raises(TruncatedFileError, match=str(cut)):
        GrizliReduction(CalibrationSetup(tmp_path, "x"), tmp_path / "work").reduce(
            "assoc", (ExposureInput(A, cut),), None, (), tmp_path / "new"
        )
    with pytest.raises(InputError, match="unknown parameter"):
        GrizliReduction(CalibrationSetup(tmp_path, "x"), tmp_path / "work", {"leen": True})


# --- the parent's end ----------------------------------------------------------------------

PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {project!r})
from panoramic.reduction.childprocess import base_environment, run_child
from panoramic.reduction.workfolder import WorkFolder
with WorkFolder(Path({root!r}), "assoc") as work:
    code = ("import os,sys,time; sys.path.insert(0, {project!r});"
            "from panoramic.reduction.childprocess import die_with_parent; die_with_parent(int(sys.argv[1]));"
            "print(os.getpid(), flush=True); time.sleep(60)")
    import os
    run_child([sys.executable, "-c", code, str(os.getpid())], base_environment(work.path), work.path,
              work.path / "log", 60, (work.lock_fd,))
"""


def test_the_child_dies_with_a_killed_parent_and_its_folder_is_cleared(tmp_path: Path) -> None:
    root = tmp_path / "work"
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(project=str(PROJECT), root=str(root))])
    log = None
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (log is None or not log.read_text().strip()):
        log = next(iter(root.glob("*/log")), None)
        time.sleep(0.05)
    assert log is not None
    child = int(log.read_text())
    assert remove_orphans(root) == ()  # it lives
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    assert remove_orphans(root) == (log.parent,)
    assert list(root.iterdir()) == [] and remove_orphans(root) == ()
    assert remove_orphans(tmp_path / "never made") == ()


def test_an_interrupt_kills_the_child(
    setup: CalibrationSetup, tmp_path: Path, rate_files: tuple[ExposureInput, ...]
) -> None:
    script = tmp_path / "stand_in.py"
    pid_file = tmp_path / "pid"
    script.write_text(
        f"import os, signal, time; open({str(pid_file)!r}, 'w').write(str(os.getpid()));"
        "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    )
    reduction = GrizliReduction(setup, tmp_path / "work")
    reduction.child_command = (sys.executable, str(script))
    with pytest.raises(KeyboardInterrupt):
        reduction.reduce("assoc", rate_files, None, (), tmp_path / "out")
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    assert list((tmp_path / "work").iterdir()) == [] and not (tmp_path / "out").exists()


# --- moving products -----------------------------------------------------------------------


def test_publish_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged, folder = tmp_path / "staged", tmp_path / "deep" / "folder"
    staged.mkdir()
    (staged / "a").write_text("a")
    folder.mkdir(parents=True)  # empty: allowed
    publish(staged, folder)
    assert (folder / "a").read_text() == "a" and not staged.exists()
    staged.mkdir()
    with pytest.raises(StorageError, match="can't be written"):
        publish(staged, folder)
    assert (folder / "a").read_text() == "a"

    # another file system, and the disk fills up in the middle
    rename, other = Path.rename, tmp_path / "other"
    (staged / "b").write_text("b")

    def across(self: Path, target: Path) -> Path:
        if self == staged:
            raise OSError(workfolder.errno.EXDEV, "cross-device link")
        return rename(self, target)

    def full(*_: object, **__: object) -> None:
        raise OSError(workfolder.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", across)
    with monkeypatch.context() as patch:
        patch.setattr(workfolder.shutil, "copytree", full)
        with pytest.raises(DiskFullError):
            publish(staged, other)
    assert not other.exists() and list(tmp_path.glob(".other*")) == []
    (tmp_path / ".other.partial-killed").mkdir()  # of a copy that was killed
    publish(staged, other)
    assert (other / "b").read_text() == "b" and list(tmp_path.glob(".other*")) == []


def test_a_work_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), WorkFolder(tmp_path / "file" / "work", "x"):
        pass


def test_signals_are_named() -> None:
    from panoramic.reduction.childprocess import ChildEnd

    assert ChildEnd(None, signal.SIGTERM, False, 0, 0, 0).signal_name == "SIGTERM"
    assert ChildEnd(0, None, False, 0, 0, 0).signal_name == ""
