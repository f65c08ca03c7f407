"""Runs grizli's own preprocessing of one association; the program of the child process that `grizli.py` starts.

Put here what has to happen in the same process as grizli: telling it where things are, keeping it off the network,
calling it. Keep out judgement of what it did, which is the parent's. Called as
``python -m panoramic.reduction.grizli_child job.json``; the outcome, good or bad, is a JSON file.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from panoramic.reduction.childprocess import die_with_parent
from panoramic.reduction.workfolder import SOCKETS, SOCKETS_ROOT

REQUIRED_REFERENCES = ("flat", "photom", "distortion")
OPTIONAL_REFERENCES = ("area", "filteroffset")
SERVICES = ("region_mask", "persistence_history", "pure_parallel_pointing")
"""What grizli asks over the network during an association, and a survey file can switch off."""


def _short_socket_folder() -> None:
    """Give multiprocessing a short folder: a socket's path may have 107 bytes, a work folder alone can be longer."""
    folder = tempfile.mkdtemp(prefix=f"{SOCKETS}{os.getpid()}-", dir=SOCKETS_ROOT)
    multiprocessing.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def main(job_file: str) -> int:
    """Do the job; every way to end, a `SystemExit` of foreign code included, is written down."""
    job = json.loads(Path(job_file).read_text())
    die_with_parent(job["parent_pid"])
    _short_socket_folder()
    outcome: dict[str, Any] = {"stage": "calibration"}
    try:
        run(job, outcome)
    except BaseException as error:  # noqa: BLE001 the one outermost place; foreign code raises SystemExit
        outcome["error"] = {
            "type": type(error).__name__,
            "module": type(error).__module__,
            "message": str(error),
            "errno": getattr(error, "errno", None),
        }
        traceback.print_exc()
    target = Path(job["outcome"])
    beside = target.with_suffix(".part")
    beside.write_text(json.dumps(outcome))
    os.replace(beside, target)
    return 1 if "error" in outcome else 0


def run(job: dict[str, Any], outcome: dict[str, Any]) -> None:
    """The stages, each named in the outcome before it starts."""
    outcome["references"] = select_references(job["crds_parameters"])
    outcome["stage"] = "engine"
    recorder = call_grizli(job)
    outcome["stage"] = "products"
    from panoramic.reduction.grizli_products import write_products

    outcome["products"] = write_products(job, recorder.weights, recorder.initial)


# --- reference files -----------------------------------------------------------------------


class ReferenceFileError(Exception):
    """CRDS could not give a reference file; the message names its type."""


def select_references(parameters: dict[str, str]) -> dict[str, str]:
    """Ask CRDS for each type that grizli will ask for, so that a missing one is named before hours are spent."""
    import crds
    from crds.core import config
    from crds.core.exceptions import CrdsError

    found = {}
    for kind in REQUIRED_REFERENCES + OPTIONAL_REFERENCES:
        try:
            name = crds.getrecommendations(parameters, reftypes=[kind], observatory="jwst")[kind]
        except (CrdsError, OSError, SystemExit) as error:
            raise ReferenceFileError(f"{kind}: {type(error).__name__}: {error}") from error
        if name.upper() == "N/A" or name.upper().startswith("NOT FOUND"):
            if kind in REQUIRED_REFERENCES:
                raise ReferenceFileError(f"{kind}: there is none for this detector, filter and pupil ({name})")
            continue
        path = Path(config.locate_file(name, observatory="jwst"))
        if not path.is_file():
            raise ReferenceFileError(f"{kind}: {name} is not in the cache ({path})")
        found[kind] = name
    return found


# --- grizli --------------------------------------------------------------------------------


class Recorder:
    """Keeps what grizli writes nowhere.

    ``weights`` maps a file name to the saved weight that grizli's last drizzle gives the exposure: its bad pixels, hot
    pixels and all. ``initial`` maps it to the header of the WCS that the exposure has before anything is aligned.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights: dict[str, str] = {}
        self.initial: dict[str, Any] = {}
        self._calls = 0
        self._file = ""

    def attach(self, utils: Any, jwst_utils: Any) -> None:
        """Put itself around grizli's functions."""
        self._attach_weights(utils)
        self._attach_wcs(jwst_utils)

    def _attach_wcs(self, jwst_utils: Any) -> None:
        """The fit of the SIP polynomial doesn't know its file; the function that calls it does."""
        with_wcs: Callable[..., Any] = jwst_utils.img_with_wcs
        fit: Callable[..., Any] = jwst_utils.pipeline_model_wcs_header

        def img_with_wcs(input: Any, *args: Any, **kwargs: Any) -> Any:
            self._file = Path(input).name if isinstance(input, str) else ""
            try:
                return with_wcs(input, *args, **kwargs)
            finally:
                self._file = ""

        def pipeline_model_wcs_header(*args: Any, **kwargs: Any) -> Any:
            header = fit(*args, **kwargs)
            if self._file:
                self.initial[self._file] = header.copy()
            return header

        jwst_utils.img_with_wcs = img_with_wcs
        jwst_utils.pipeline_model_wcs_header = pipeline_model_wcs_header

    def _attach_weights(self, utils: Any) -> None:
        import numpy as np

        from_visit: Callable[..., Any] = utils.drizzle_from_visit
        array_groups: Callable[..., Any] = utils.drizzle_array_groups

        def drizzle_array_groups(sci_list: Any, wht_list: Any, *args: Any, **kwargs: Any) -> Any:
            np.save(self._path(self._calls), np.asarray(wht_list[0], np.float32))
            self._calls += 1
            return array_groups(sci_list, wht_list, *args, **kwargs)

        def drizzle_from_visit(*args: Any, **kwargs: Any) -> Any:
            self._calls = 0
            result = from_visit(*args, **kwargs)
            # grizli numbers the files that it really drizzled in the header
            header = result[4]
            self.weights = {header[f"FLT{i + 1:05d}"]: str(self._path(i)) for i in range(self._calls)}
            return result

        utils.drizzle_array_groups = drizzle_array_groups
        utils.drizzle_from_visit = drizzle_from_visit

    def _path(self, i: int) -> Path:
        return self.folder / f"weight-{i}.npy"


def keep_offline(services_off: list[str], with_prior: frozenset[str]) -> None:
    """Replace what grizli would fetch, and make loud what it swallows.

    Templates and flats come from the given folder only, so that a result doesn't depend on the network's mood.
    ``with_prior`` : names of files whose pointing has been moved; it is not to be replaced by the guide star log's.
    """
    from grizli import catalog, jwst_utils, prep, utils
    from grizli.aws import db

    def fetch_file(url: str, *_: Any, **__: Any) -> tuple[None, int]:
        utils.log_comment(utils.LOGFILE, f"utils.general_fetch_file: {url} switched off", verbose=True)
        return None, 0

    def no_database(*_: Any, **__: Any) -> None:
        # it is its authors' own; without their credentials grizli would try whatever database runs on this machine
        raise ConnectionError("grizli's database is not asked: it needs its authors' credentials")

    def no_gaia(*_: Any, **__: Any) -> Any:
        # more than 128 stars would replace the reference that we were given
        utils.log_comment(utils.LOGFILE, "gaia_catalog_for_assoc: not asked, the reference is given", verbose=True)
        return utils.GTable({"ra": [0.0], "dec": [0.0], "valid": [False]})

    def loud(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(file: str, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(file, *args, **kwargs)
            except Exception as error:
                line = f"{name}: failed for {file}: {type(error).__name__}: {str(error).splitlines()[:1]}"
                utils.log_comment(utils.LOGFILE, line, verbose=True)
                raise

        return wrapped

    def unless_moved(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(file: str, *args: Any, **kwargs: Any) -> Any:
            if Path(file).name in with_prior:
                line = f"pointing prior: {Path(file).name} keeps it, the guide star log is not asked"
                utils.log_comment(utils.LOGFILE, line, verbose=True)
                return None
            return original(file, *args, **kwargs)

        return wrapped

    def switched_off(name: str) -> Callable[..., Any]:
        def quiet(file: str, *_: Any, **__: Any) -> Any:
            utils.log_comment(utils.LOGFILE, f"{name}: switched off for {file}", verbose=True)
            return () if name == "query_persistence" else None

        return quiet

    for name in ("SQL", "execute", "send_to_database", "get_db_engine"):
        setattr(db, name, no_database)
    utils.fetch_default_calibs = lambda *_, **__: None  # HST's files
    utils.general_fetch_file = fetch_file
    catalog.gaia_catalog_for_assoc = no_gaia
    for service, module, name in (
        ("region_mask", prep, "apply_region_mask_from_db"),
        ("persistence_history", jwst_utils, "query_persistence"),
        ("pure_parallel_pointing", jwst_utils, "update_pure_parallel_wcs"),
    ):
        original = getattr(module, name)
        setattr(module, name, switched_off(name) if service in services_off else loud(name, original))
    jwst_utils.update_pure_parallel_wcs = unless_moved(jwst_utils.update_pure_parallel_wcs)


def make_repeatable() -> None:
    """Seed what grizli draws at random: with a poor reference two runs ended 2,000 pixels apart."""
    import functools

    import numpy as np
    import skimage.measure

    np.random.seed(0)
    # grizli and tristars look it up at each call
    skimage.measure.ransac = functools.partial(skimage.measure.ransac, rng=0)


def call_grizli(job: dict[str, Any]) -> Recorder:
    """Prepare grizli's folders and call `process_visit`."""
    work, root = Path(job["work"]), job["root"]
    os.chdir(work)  # its ROOT_PATH is taken from here at import
    from grizli import jwst_utils, utils
    from grizli.aws import visit_processor

    utils.LOGFILE = str(work / "grizli.log")
    visit_processor.ROOT_PATH = str(work)
    make_repeatable()
    priors = {f"{e['alias']}_rate.fits": e["prior"] for e in job["exposures"] if e["prior"]}
    keep_offline(job["services_off"], frozenset(priors))
    recorder = Recorder(work)
    recorder.attach(utils, jwst_utils)
    files = [work / root / "RAW" / f"{e['alias']}_rate.fits" for e in job["exposures"]]
    for path in files:
        prior = priors.get(path.name)
        if prior:
            utils.log_comment(utils.LOGFILE, describe_prior(prior), verbose=True)
        complete_header(path, job["ra_offset"], prior)
    write_visit(work / root, root, files)
    visit_processor.process_visit(
        root,
        clean=False,
        sync=False,
        with_db=False,
        tab=association_table(job),
        master_radec=job["reference"] or False,  # None would make it look for a catalogue of its own
        prep_args=job["prep_args"],
        fetch_args={"get_recalibrated_rate": False, "do_update": False},
        other_args=job["other_args"],
        do_make_visit_mosaic=False,
    )
    return recorder


def describe_prior(prior: dict[str, Any]) -> str:
    """A line for the log."""
    east, north = prior["shift_mas"]
    line = f"pointing prior: {prior['dataset']} moved by {east:.2f} mas east, {north:.2f} mas north, "
    line += f"{prior['roll_deg']:.5f} deg from north to east (from the {prior['basis']}: {', '.join(prior['sources'])}"
    return line + (f"; left out {', '.join(prior['left_out'])})" if prior["left_out"] else ")")


def move_pointing(sci: Any, prior: dict[str, Any]) -> None:
    """Move a header's pointing by a prior: what assign_wcs reads (RA_REF, DEC_REF, ROLL_REF), and what grizli does.

    The telescope turns as a rigid body about the detector's reference point. S_REGION is read by neither, and written
    anew by assign_wcs.
    """
    import numpy as np

    from panoramic.pointing import angle_change, moved_position, rotation_of
    from panoramic.reduction.base import Pointing

    rotation = rotation_of(Pointing(sci["RA_REF"], sci["DEC_REF"], tuple(prior["shift_mas"]), prior["roll_deg"]))
    for ra_key, dec_key, angle_keys in (
        ("RA_REF", "DEC_REF", ("ROLL_REF",)),
        ("RA_V1", "DEC_V1", ("PA_V3",)),
        ("CRVAL1", "CRVAL2", ("PA_APER",)),
    ):
        if ra_key not in sci or dec_key not in sci:
            continue
        place = float(sci[ra_key]), float(sci[dec_key])
        change = angle_change(rotation, *place)
        sci[ra_key], sci[dec_key] = moved_position(rotation, *place)
        for key in angle_keys:
            if key in sci:
                sci[key] = (float(sci[key]) + change) % 360
        if ra_key == "CRVAL1" and "PC1_1" in sci:
            scales = np.array([sci.get("CDELT1", 1.0), sci.get("CDELT2", 1.0)])[:, None]
            matrix = np.array([[sci.get(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)]) * scales
            c, s = np.cos(np.radians(change)), np.sin(np.radians(change))
            matrix = np.array([[c, s], [-s, c]]) @ matrix / scales
            for i in (1, 2):
                for j in (1, 2):
                    sci[f"PC{i}_{j}"] = float(matrix[i - 1, j - 1])


def complete_header(path: Path, ra_offset: float, prior: dict[str, Any] | None = None) -> None:
    """Give the working copy the keywords that grizli reads though the reduction doesn't need them, and its prior.

    ``ra_offset`` (deg) turns the sky about its pole: grizli's polygons break where RA passes from 360 to 0.
    """
    import numpy as np
    from astropy.io import fits

    with fits.open(path, mode="update") as hdus:
        primary, sci = hdus[0].header, hdus["SCI"].header
        primary.setdefault("EXPOSURE", "1")
        primary.setdefault("EXPEND", primary["EXPSTART"] + primary["EFFEXPTM"] / 86400)
        primary.setdefault("TARGNAME", "indef")
        if prior:
            move_pointing(sci, prior)
        sci.setdefault("PA_V3", sci["ROLL_REF"])
        if not all(f"{key}{i}" in sci for key in ("CRVAL", "CRPIX", "CTYPE") for i in (1, 2)):
            angle = np.radians(sci["ROLL_REF"] + sci["V3I_YANG"])
            scale = (0.063 if primary["DETECTOR"].endswith("LONG") else 0.031) / 3600
            parity = sci["VPARITY"]
            sci.update(
                CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CUNIT1="deg", CUNIT2="deg", CRPIX1=1024.5, CRPIX2=1024.5,
                CRVAL1=sci["RA_REF"], CRVAL2=sci["DEC_REF"], CDELT1=scale, CDELT2=scale,
                PC1_1=parity * np.cos(angle), PC1_2=np.sin(angle), PC2_1=-parity * np.sin(angle), PC2_2=np.cos(angle),
            )  # fmt: skip
        if ra_offset:
            for key in ("RA_REF", "CRVAL1", "RA_V1"):
                if key in sci:
                    sci[key] = (float(sci[key]) + ra_offset) % 360


def write_visit(folder: Path, root: str, files: list[Path]) -> None:
    """Tell grizli that these files are one visit: left alone it splits by rounded roll, target and shift."""
    from grizli import utils
    from grizli.pipeline import auto_script

    for name in ("Prep", "Persistence", "Extractions", "Thumbnails"):
        (folder / name).mkdir(exist_ok=True)
    footprints = [utils.get_flt_footprint(str(path)) for path in files]
    whole = footprints[0].buffer(1 / 3600)
    for footprint in footprints[1:]:
        whole = whole.union(footprint.buffer(1 / 3600))
    visit = {"product": root, "files": [p.name for p in files], "footprint": whole, "footprints": footprints}
    info = utils.get_flt_info([str(path) for path in files])
    auto_script.write_visit_info([visit], [], info, root=root, path=str(folder / "Prep"))


def association_table(job: dict[str, Any]) -> Any:
    """The association as a row of grizli's own database would describe it."""
    from grizli import utils

    rows = job["exposures"]
    table = utils.GTable()
    for name in ("filter", "detector", "t_min", "t_max", "exptime"):
        table[name] = [row[name] for row in rows]
    table["assoc_name"] = job["root"]
    table["instrument_name"] = "NIRCAM"
    table["dataURL"] = [f"mast:JWST/product/{row['alias']}_rate.fits" for row in rows]
    table["proposal_id"] = "0"
    table["target"] = "indef"
    table["footprint"] = "POLYGON ICRS 0 0 0 1 1 1"  # grizli takes its footprints from the files
    table["status"] = 0
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
