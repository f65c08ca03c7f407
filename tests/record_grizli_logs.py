"""Records what grizli really prints when something is missing: one small reduction for each case, into ``tests/logs``.

Put here the cases, what each takes away, and which degradations are due (written down by hand, never taken from what
was found). Keep out the patterns that are tested against the records. Run it after an upgrade of grizli or jwst:

    python tests/record_grizli_logs.py --work FOLDER [--case NAME ...]

A reduction takes about a minute. What data or a missing file can provoke is provoked so; a few things can only be had
by making a function of grizli raise (``inject``), in the child process and nowhere else.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from panoramic.errors import PanoramicError
from panoramic.reduction.base import CalibrationSetup, ExposureInput, ReductionResult, ReferenceSources
from panoramic.reduction.grizli import GrizliReduction
from panoramic.simulate.archive import SimulatedArchive, simulate_archive
from panoramic.simulate.program import FieldPointing, FilterPair, Simulation, SkyModel

LOGS = Path(__file__).parent / "logs"
COMPRESS_ABOVE = 40_000
SIMULATION = Simulation(
    seed=11,
    program=9003,
    fields=(FieldPointing(ra=0.004, dec=-31.25, v3pa=70.0, observation=3),),
    filters=(
        FilterPair(short="F115W", long="F444W"),
        FilterPair(short="F150W", long="F277W"),
        FilterPair(short="F200W", long="F250M"),
    ),
    detectors=("nrcblong", "nrcb4"),
    dithers=2,
    sky=SkyModel(star_density=10.0),
)
ACTIVITY = {"F115W": 1, "F444W": 1, "F150W": 2, "F277W": 2, "F200W": 3, "F250M": 3}
# few sources: matching triangles is half of a reduction's time otherwise
FAINTEST = 22.5
PARAMETERS = {"lean": True, "align_mag_limits": (14.0, FAINTEST, 0.05)}
OFFLINE = ("region_mask", "persistence_history")
FIRST, SECOND, ASSOCIATION = "first", "second", "association"


@dataclass
class Setting:
    """One case's own copies: rate files in order of time, CRDS cache, grizli's folder. ``context`` may be renamed."""

    exposures: list[Path]
    crds: Path
    grizli: Path
    context: str


@dataclass(frozen=True)
class Case:
    """One thing that is missing, and the degradations (product, what) that are due besides those on purpose."""

    name: str
    missing: str
    due: tuple[tuple[str, str], ...]
    band: str = "F444W"
    change: Callable[[Setting], None] = lambda _: None
    inject: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    services_off: tuple[str, ...] = OFFLINE
    # what no line of the log says and only the products do
    due_in_products: tuple[tuple[str, str], ...] = ()
    # every source of the reference lies elsewhere
    reference_elsewhere: bool = False


# --- what is taken away --------------------------------------------------------------------


def no_wisp_template(setting: Setting) -> None:
    shutil.rmtree(setting.grizli / "CONF" / "NircamWisp")


def rewrite_rule(path: Path, edit: Callable[[str], str], target: Path | None = None) -> None:
    """Change a rule of CRDS; it is refused unless it holds the SHA-1 of all its lines but that one."""
    body = edit(re.sub(r"    'sha1sum' : '\w+',\n", "", path.read_text()))
    sha1 = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()
    (target or path).write_text(body.replace("header = {\n", f"header = {{\n    'sha1sum' : {sha1!r},\n", 1))


def not_applicable(kind: str) -> Callable[[Setting], None]:
    """CRDS says that the detector needs no such reference file."""

    def change(setting: Setting) -> None:
        (imap,) = (setting.crds / "mappings" / "jwst").glob("*.imap")
        rewrite_rule(imap, lambda text: re.sub(rf"('{kind}' : )'[^']+'", r"\1'N/A'", text))

    return change


def old_context(setting: Setting) -> None:
    """The same rules under a number for which grizli wants corrections of the flux scale."""
    folder = setting.crds / "mappings" / "jwst"
    old = setting.context
    setting.context = "jwst_1100.pmap"
    rewrite_rule(folder / old, lambda text: text.replace(old, setting.context), folder / setting.context)


def own_reference(setting: Setting, kind: str) -> list[Path]:
    """Copies, in place of links, of the reference files of one kind."""
    files = sorted((setting.crds / "references" / "jwst" / "nircam").glob(f"jwst_nircam_{kind}_*"))
    for path in files:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return files


def small_flat(setting: Setting) -> None:
    from astropy.io import fits

    for path in own_reference(setting, "flat"):
        with fits.open(path) as hdus:
            planes = [hdus[0].copy()]
            for hdu in hdus[1:]:
                cut = hdu.data[:1024, :1024].copy() if hdu.name in ("SCI", "ERR", "DQ") else hdu.data.copy()
                planes.append(type(hdu)(cut, hdu.header))
            fits.HDUList(planes).writeto(path, overwrite=True)


def photom_without_filter(setting: Setting) -> None:
    from astropy.io import fits

    for path in own_reference(setting, "photom"):
        with fits.open(path, mode="update") as hdus:
            hdus[1].data["filter"] = np.char.replace(hdus[1].data["filter"].astype(str), "F444W", "F430M")


def area_without_keywords(setting: Setting) -> None:
    from astropy.io import fits

    for path in own_reference(setting, "area"):
        with fits.open(path, mode="update") as hdus:
            for key in ("PIXAR_SR", "PIXAR_A2"):
                hdus[0].header.remove(key)


def keywords(which: int | None, **values: object) -> Callable[[Setting], None]:
    """Set primary keywords of one exposure, or of all."""

    def change(setting: Setting) -> None:
        from astropy.io import fits

        for path in setting.exposures if which is None else [setting.exposures[which]]:
            with fits.open(path, mode="update") as hdus:
                hdus[0].header.update(values)

    return change


def pixels(edit: Callable[[Any], None]) -> Callable[[Setting], None]:
    """Change the second exposure's planes."""

    def change(setting: Setting) -> None:
        from astropy.io import fits

        with fits.open(setting.exposures[1], mode="update") as hdus:
            edit(hdus)

    return change


def nan_rows(share: float) -> Callable[[Any], None]:
    def edit(hdus: Any) -> None:
        rows = round(2048 * share)
        for name in ("SCI", "ERR"):
            hdus[name].data[:rows] = np.nan
        hdus["DQ"].data[:rows] |= 1

    return edit


def flagged_jumps(radius: int, **values: object) -> Callable[[Any], None]:
    """Four discs of pixels that are flagged as cosmic rays; primary keywords."""

    def edit(hdus: Any) -> None:
        hdus[0].header.update(values)
        y, x = np.mgrid[:2048, :2048]
        for cx, cy in ((500, 500), (500, 1500), (1500, 500), (1500, 1500)):
            hdus["DQ"].data[np.hypot(x - cx, y - cy) < radius] |= 4

    return edit


def hot_pixels(hdus: Any) -> None:
    error = hdus["ERR"].data
    axis = np.arange(20, 2028, 18)
    grid = np.ix_(axis, axis)
    hdus["SCI"].data[grid] += 60 * error[grid]


def blank_sky(hdus: Any) -> None:
    rng = np.random.default_rng(3)
    sci, error = hdus["SCI"].data, hdus["ERR"].data
    level, noise = np.nanmedian(sci), np.nanmedian(error)
    sci[:] = level + rng.normal(0, noise, sci.shape)


def of_exposure(*whats: str, which: str = SECOND) -> tuple[tuple[str, str], ...]:
    return tuple((which, what) for what in whats)


def of_both(*whats: str) -> tuple[tuple[str, str], ...]:
    return tuple((which, what) for which in (FIRST, SECOND) for what in whats)


CASES = (
    Case("nothing_missing", "nothing", ()),
    Case("region_mask", "database of hand-drawn masks", of_both("region_mask"), services_off=(OFFLINE[1],)),
    Case("persistence_history", "database of saturated pixels", of_both("persistence_history"), band="F115W",
         services_off=(OFFLINE[0],)),
    Case("wisp_template", "wisp template", of_both("wisp_template"), band="F115W", change=no_wisp_template),
    Case("wisp_region", "the detector in grizli's nircam_wisp.yml", of_both("wisp_template"), band="F115W",
         inject="wisp_region"),
    Case("sky_flat", "sky flat of a filter for which grizli prefers one", of_both("sky_flat"), band="F250M"),
    # grizli asks for it only when it drizzles mosaics of its own, which nothing here lets it do
    Case("photometric_correction", "entry in photom_correction.yml", (), change=old_context, parameters={"sky_flats": False}),
    Case("area", "pixel area map", of_both("pixel_area"), change=not_applicable("area"),
         due_in_products=of_both("pixel_area")),
    # neither log nor products say a word of it
    Case("filter_offset", "filter offsets", (), change=not_applicable("filteroffset"),
         due_in_products=of_both("filter_offset")),
    Case("pixel_area", "PIXAR keywords of the area map", of_both("pixel_area"), change=area_without_keywords),
    Case("flat_small", "a flat of the detector's size", of_exposure("flat_field", which=FIRST), change=small_flat),
    Case("photom_row", "the filter's row in the photom table", of_both("photometric_calibration"),
         change=photom_without_filter),
    Case("flat", "flat field", (), change=not_applicable("flat")),
    Case("photom", "flux scale", (), change=not_applicable("photom")),
    Case("distortion", "distortion", (), change=not_applicable("distortion")),
    Case("measured_pointing", "measured pointing of the second exposure", of_exposure("measured_pointing"),
         change=keywords(1, ENGQLPTG="PLANNED"), due_in_products=of_exposure("measured_pointing")),
    Case("guide_star_log", "guide star log: not answering for the first exposure, without an entry for the second",
         of_both("pure_parallel_pointing"), inject="guide_star_log",
         change=keywords(None, VISITYPE="PARALLEL_PURE", CAL_VER="1.15.1")),
    # the hole's edge is so uneven that finding sources overflows, and grizli runs again without aligning
    Case("half_nan", "half of the second exposure", ((ASSOCIATION, "relative_alignment"), (SECOND, "usable_area")),
         change=pixels(nan_rows(0.5)), due_in_products=of_exposure("usable_area")),
    Case("all_nan", "all pixels of the second exposure", of_exposure("usable_area"), change=pixels(nan_rows(1.0))),
    Case("snowballs", "a snowball mask of the second exposure that can be believed", of_exposure("snowballs"),
         change=pixels(flagged_jumps(260, CAL_VER="1.13.4", VISITYPE="PRIME_TARGETED_FIXED"))),
    Case("jump_flags", "cosmic-ray flags of the second exposure that can be believed", of_exposure("jump_detection"),
         change=pixels(flagged_jumps(400))),
    Case("hot_pixels", "a hot pixel list of the second exposure that can be believed", of_exposure("hot_pixels"),
         change=pixels(hot_pixels)),
    Case("one_over_f", "1/f correction of the second exposure", of_exposure("one_over_f"), inject="one_over_f"),
    Case("blank_exposure", "sources of the second exposure", ((ASSOCIATION, "relative_alignment"),), change=pixels(blank_sky)),
    # it fails twice: grizli takes the first time for a failure between the exposures
    Case("reference_elsewhere", "reference sources in the field",
         ((ASSOCIATION, "relative_alignment"), (ASSOCIATION, "absolute_alignment")), reference_elsewhere=True),
    Case("unreadable_exposure", "the second exposure when it is drizzled", (),
         inject="unreadable_exposure"),
)  # fmt: skip


# --- in the child: what only a function of grizli's can do ----------------------------------


def inject_wisp_region() -> None:
    from types import SimpleNamespace

    import yaml
    from grizli import prep

    def load(stream: Any, **_: Any) -> Any:
        content = yaml.safe_load(stream)
        if isinstance(content, dict):
            content.pop("NRCB4", None)
        return content

    prep.yaml = SimpleNamespace(load=load, Loader=yaml.Loader, SafeLoader=yaml.SafeLoader)


def inject_guide_star_log() -> None:
    import mastquery.jwst  # type: ignore[import-untyped]
    from grizli.utils import GTable

    asked = []

    def query(*_: Any, **__: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            raise ConnectionError("the archive does not answer")
        return GTable({"expstart": [1.0], "expend": [2.0], "ra_v1": [0.0], "dec_v1": [0.0], "pa_v3": [0.0]})

    mastquery.jwst.query_guidestar_log = query


def inject_one_over_f() -> None:
    from grizli import jwst_utils

    original = jwst_utils.exposure_oneoverf_correction

    def correct(file: str, *args: Any, **kwargs: Any) -> Any:
        if "_00002_" in file:
            raise ValueError("zero-size array to reduction operation")
        return original(file, *args, **kwargs)

    jwst_utils.exposure_oneoverf_correction = correct


def inject_unreadable_exposure() -> None:
    from grizli import utils

    original = utils.drizzle_from_visit

    def drizzle(visit: Any, *args: Any, **kwargs: Any) -> Any:
        Path(visit["files"][1]).write_bytes(b"not a FITS file" * 1000)
        return original(visit, *args, **kwargs)

    utils.drizzle_from_visit = drizzle


def inject_nothing() -> None:
    pass


def child(injection: str, job_file: str) -> int:
    """The child process: the project's own, after one function of grizli was replaced. Keeps the references it found."""
    from panoramic.reduction import grizli_child

    original = grizli_child.make_repeatable

    def patched() -> None:
        original()
        globals()[f"inject_{injection}"]()

    grizli_child.make_repeatable = patched
    code = grizli_child.main(job_file)
    job = json.loads(Path(job_file).read_text())
    outcome = json.loads(Path(job["outcome"]).read_text())
    references = json.dumps(outcome.get("references", {}))
    (Path(job["work"]).parents[1] / "references.json").write_text(references)
    return code


# --- recording -----------------------------------------------------------------------------


def prepare(case: Case, archive: SimulatedArchive, folder: Path) -> Setting:
    """Copies that the case may change; big reference files are links."""
    detector = "nrcblong" if case.band in ("F444W", "F277W", "F250M") else "nrcb4"
    visit = f"_0220{ACTIVITY[case.band]}_"
    (folder / "exposures").mkdir(parents=True)
    paths = sorted(p for p in archive.exposures if visit in p.name and p.name.endswith(f"_{detector}_rate.fits"))
    crds = folder / "crds"
    shutil.copytree(archive.crds_path, crds, ignore=shutil.ignore_patterns("*.fits", "*.asdf"))
    for path in archive.crds_path.rglob("references/jwst/nircam/*"):
        (crds / path.relative_to(archive.crds_path)).symlink_to(path.absolute())
    assert archive.grizli_path is not None
    shutil.copytree(archive.grizli_path, folder / "grizli")
    copies = [Path(shutil.copy(path, folder / "exposures")) for path in paths]
    setting = Setting(copies, crds, folder / "grizli", archive.crds_context)
    case.change(setting)
    return setting


def reference_of(archive: SimulatedArchive, case: Case) -> ReferenceSources:
    """The true positions of what is bright enough."""
    from panoramic.simulate.truth import Truth

    table = Truth.load(archive.path).sources
    table = table[np.asarray(table[f"mag_{case.band}"], float) < FAINTEST]
    ra, dec, mag = (np.asarray(table[name], float) for name in ("ra", "dec", f"mag_{case.band}"))
    if case.reference_elsewhere:
        dec = dec + 1
    return ReferenceSources("own", ra, dec, mag, np.full(len(ra), np.nan), "own")


def trim(text: str, places: dict[Path, str]) -> str:
    """Take out what belongs to one machine and one run."""
    for path, name in sorted(places.items(), key=lambda item: -len(str(item[0]))):
        text = text.replace(str(path), name)
    text = re.sub(r"CASE/work/reduction-[\w-]+", "WORK", text)
    text = re.sub(r"[/\w.-]*/site-packages/", "SITE/", text)
    text = re.sub(r"[/\w.-]*/lib/python3\.\d+/", "PYTHON/", text)
    return re.sub(r"(?m)[ \t]+$", "", text)


def record(case: Case, archive: SimulatedArchive, work: Path) -> None:
    """Reduce once and store the log and what is due."""
    folder = work / "cases" / case.name
    shutil.rmtree(folder, ignore_errors=True)
    setting = prepare(case, archive, folder)
    setup = CalibrationSetup(setting.crds, setting.context, grizli_path=setting.grizli)
    engine = GrizliReduction(setup, folder / "work", PARAMETERS | case.parameters, services_off=case.services_off)
    engine.child_command = (sys.executable, str(Path(__file__).absolute()), "--child", case.inject or "nothing")
    exposures = tuple(ExposureInput(p.name.removesuffix("_rate.fits"), p) for p in setting.exposures)
    reference = reference_of(archive, case)
    result: ReductionResult | None = None
    error = None
    try:
        result = engine.reduce(case.name, exposures, reference, (), folder / "products")
        log = folder / "products" / result.log
    except PanoramicError as caught:
        error = f"{type(caught).__name__}: {str(caught).splitlines()[0]}"
        log = folder / f"{case.name}.failed.log"
    places = {folder: "CASE", Path(__file__).parents[1]: "PROJECT", Path(sys.prefix): "ENVIRONMENT"}
    content = {
        "injected": case.inject is not None,
        "association": case.name,
        "datasets": [e.dataset for e in exposures],
        "services_off": list(case.services_off),
        "error": trim(error, places) if error else None,
        "failure": trim(result.failure, places) if result and result.failure else None,
        "references": json.loads((folder / "references.json").read_text()),
        "excluded": sorted(result.excluded) if result else [],
        "products": _describe(folder / "products", result) if result else {},
        "versions": {"grizli": engine.version},
    }
    store(case, content, trim(log.read_text(), places))


def store(case: Case, content: dict[str, Any], text: str) -> None:
    """Write log and JSON, with what is due by the case's own words."""
    names = {FIRST: content["datasets"][0], SECOND: content["datasets"][1], ASSOCIATION: case.name}
    # the history of saturated pixels is looked up in the last drizzle
    reached = [s for s in case.services_off if s != "persistence_history" or content["products"]]
    on_purpose = [(which, what) for which in (FIRST, SECOND) for what in reached]

    def due(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
        return sorted([names[which], what] for which, what in pairs)

    content |= {
        "missing": case.missing,
        "due": due(case.due),
        "due_on_purpose": due(on_purpose) if content["error"] is None else [],
        "due_in_products": due(case.due_in_products),
    }
    LOGS.mkdir(exist_ok=True)
    for old in LOGS.glob(f"{case.name}.log*"):
        old.unlink()
    raw = text.encode()
    if len(raw) > COMPRESS_ABOVE:
        (LOGS / f"{case.name}.log.gz").write_bytes(gzip.compress(raw, mtime=0))
    else:
        (LOGS / f"{case.name}.log").write_bytes(raw)
    (LOGS / f"{case.name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def store_again(case: Case) -> None:
    """Write what is due into a record that is there, without a reduction."""
    (log,) = LOGS.glob(f"{case.name}.log*")
    text = (gzip.decompress(log.read_bytes()) if log.suffix == ".gz" else log.read_bytes()).decode()
    store(case, json.loads((LOGS / f"{case.name}.json").read_text()), trim(text, {}))


def _describe(folder: Path, result: ReductionResult) -> dict[str, Any]:
    """What the products say of themselves: keywords of steps and reference files, share of pixels that are used."""
    from astropy.io import fits

    out: dict[str, Any] = {}
    for exposure in result.exposures:
        with fits.open(folder / exposure.filename) as hdus:
            header = hdus[0].header
            out[exposure.dataset] = {
                "keywords": {k: v for k, v in header.items() if k.startswith(("S_", "R_")) or k in ("ENGQLPTG",)},
                "used": round(float((hdus["WHT"].data > 0).mean()), 4),
            }
    return out


def main(arguments: list[str]) -> int:
    """Make the archive once, then each case that was asked for."""
    if arguments[:1] == ["--child"]:
        return child(arguments[1], arguments[2])
    parser = argparse.ArgumentParser(description="record grizli's logs of runs in which something is missing")
    parser.add_argument("--work", type=Path, help="folder for the simulated archive and the reductions")
    parser.add_argument("--case", action="append", choices=[c.name for c in CASES], help="only these")
    parser.add_argument("--due", action="store_true", help="no reductions: only write anew what is due")
    options = parser.parse_args(arguments)
    if not options.due and options.work is None:
        parser.error("--work FOLDER is needed, or --due")
    archive = None if options.due else simulate_archive(SIMULATION, options.work / "archive")
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        if archive is not None:
            record(case, archive, options.work.absolute())
        elif (LOGS / f"{case.name}.json").exists():
            store_again(case)
        sys.stdout.write(f"{case.name} recorded\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
