"""Writes the embedded archive: a folder like those that users have, plus the truth.

Put here the order of the work, what is kept of an interrupted one, and who may write where. Keep out pixels.

Layout: ``exposures/*_rate.fits``, ``metadata.csv``, ``crds/``, ``reference_catalogs/NAME.ecsv``, ``grizli/`` (wisp
templates), ``truth/``. The stamp ``simulation.json`` is written last; until then ``.simulating/`` holds the notes of
what is complete.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from panoramic.errors import ConflictError
from panoramic.simulate.calibration import write_cache
from panoramic.simulate.catalogs import NAMES, make_catalog
from panoramic.simulate.detector import WISP_PLACES, wisp_template
from panoramic.simulate.exposures import make_exposure, write_text
from panoramic.simulate.geometry import filter_offset
from panoramic.simulate.headers import CONTEXT, metadata_row
from panoramic.simulate.plan import PlannedExposure, plan_exposures, wheel
from panoramic.simulate.program import MissingExposure, Simulation
from panoramic.simulate.sky import make_sky, sources_of

VERSION = 1
"""Of the simulator: raise it whenever the same description would give other bytes."""
RATE_FILE_BYTES = 83_934_720
STAMP, WORK = "simulation.json", ".simulating"
PUBLISHED = ("ra", "dec", "mag", "ra_error", "dec_error", "pm_ra", "pm_dec", "epoch")


@dataclass(frozen=True)
class SimulatedArchive:
    """A written archive.

    Parameters
    ----------
    path : its folder.
    datasets : exposures that have a file, in order of time.
    crds_path, crds_context : for ``CRDS_PATH`` and ``CRDS_CONTEXT``.
    reference_catalogs : name to file.
    grizli_path : grizli's configuration folder, if wisps are simulated.
    made : False if the archive was there already.
    """

    path: Path
    datasets: tuple[str, ...]
    crds_path: Path
    crds_context: str
    reference_catalogs: dict[str, Path]
    grizli_path: Path | None
    made: bool

    @property
    def exposures(self) -> list[Path]:
        """Files of the exposures."""
        return [self.path / "exposures" / f"{d}_rate.fits" for d in self.datasets]


def simulate_archive(
    simulation: Simulation, path: Path | str, progress: Callable[[str], None] | None = None, workers: int = 1
) -> SimulatedArchive:
    """Write a simulated archive, or do nothing if it is there.

    Parameters
    ----------
    simulation : what to simulate.
    path : its folder; made if it doesn't exist.
    progress : called with a line of text per step.
    workers : processes for the exposures (each needs about 1.3 GB). The bytes don't depend on it.

    Returns
    -------
    SimulatedArchive

    Raises
    ------
    ConflictError
        The folder holds something else: another simulation, or files that no simulation wrote.
    FaultError
        A fault names nothing that is simulated.

    Notes
    -----
    After a kill, the same call goes on: exposures and reference files that are complete are kept.
    """
    path, tell = Path(path), progress or (lambda _: None)
    stamp = {"simulator": VERSION, "digest": simulation.digest()}
    plans = plan_exposures(simulation)
    work = path / WORK
    if _is_complete(path, stamp):
        shutil.rmtree(work, ignore_errors=True)
        return _describe(simulation, path, plans, made=False)
    _claim(path, work, stamp)

    tell(f"sky of {len(simulation.fields)} fields")
    sources = _write_sources(simulation, path, plans)
    _write_truth(simulation, path, plans)
    _write_catalogs(simulation, path, plans, sources)
    tell("calibration reference files")
    write_cache(simulation, path / "crds", tell)
    if simulation.effects.wisps:
        _write_wisps(simulation, path)

    wanted = [p for p in plans if _has_file(simulation, p)]
    folder = path / "exposures"
    folder.mkdir(exist_ok=True)
    _make_exposures(simulation, wanted, sources, folder, work, tell, workers)
    _write_metadata(simulation, plans, path, work)
    write_text(path / STAMP, json.dumps(stamp | {"simulation": simulation.model_dump(mode="json")}, indent=1) + "\n")
    shutil.rmtree(work)
    tell(f"archive of {len(wanted)} exposures in {path}")
    return _describe(simulation, path, plans, made=True)


def _is_complete(path: Path, stamp: dict[str, object]) -> bool:
    """Whether the folder holds just this archive.

    Raises
    ------
    ConflictError
        It holds another one.
    """
    file = path / STAMP
    if not file.exists():
        return False
    found = json.loads(file.read_text())
    if {key: found.get(key) for key in stamp} != stamp:
        raise ConflictError(
            f"{path} holds another simulated archive (digest {str(found.get('digest'))[:12]}, simulator "
            f"{found.get('simulator')}): choose another folder, or remove this one"
        )
    return True


def _claim(path: Path, work: Path, stamp: dict[str, object]) -> None:
    """Mark the folder as ours before anything is written into it."""
    path.mkdir(parents=True, exist_ok=True)
    claim = work / "claim.json"
    if claim.exists():
        if json.loads(claim.read_text()) != stamp:
            raise ConflictError(f"{path} holds the beginning of another simulated archive: remove it first")
        return
    strangers = [entry.name for entry in path.iterdir() if entry.name != WORK]
    if strangers:
        raise ConflictError(f"{path} is not empty and holds no simulated archive: {', '.join(sorted(strangers)[:5])}")
    work.mkdir(exist_ok=True)
    write_text(claim, json.dumps(stamp))


def _has_file(simulation: Simulation, plan: PlannedExposure) -> bool:
    faults = [f for f in simulation.faults if isinstance(f, MissingExposure)]
    return not any(fnmatch.fnmatch(plan.dataset, f.match) for f in faults)


def _has_row(simulation: Simulation, plan: PlannedExposure) -> bool:
    faults = [f for f in simulation.faults if isinstance(f, MissingExposure) and not f.keep_row]
    return not any(fnmatch.fnmatch(plan.dataset, f.match) for f in faults)


def _describe(simulation: Simulation, path: Path, plans: list[PlannedExposure], *, made: bool) -> SimulatedArchive:
    return SimulatedArchive(
        path=path,
        datasets=tuple(p.dataset for p in plans if _has_file(simulation, p)),
        crds_path=path / "crds",
        crds_context=CONTEXT,
        reference_catalogs={name: path / "reference_catalogs" / f"{name}.ecsv" for name in NAMES},
        grizli_path=path / "grizli" if simulation.effects.wisps else None,
        made=made,
    )


# --- truth and catalogues -----------------------------------------------------------------------


def _write_sources(simulation: Simulation, path: Path, plans: list[PlannedExposure]) -> Table:
    bands = sorted({p.band for p in plans})
    sources = make_sky(simulation, bands)
    (path / "truth").mkdir(exist_ok=True)
    _write_table(sources, path / "truth" / "sources.fits")
    return sources


def _write_truth(simulation: Simulation, path: Path, plans: list[PlannedExposure]) -> None:
    rows = []
    for p in plans:
        offset = filter_offset(p.detector, p.band)
        rows.append(
            {
                "dataset": p.dataset,
                "field": p.field,
                "detector": p.detector,
                "band": p.band,
                "filter": wheel(p.band)[0],
                "pupil": wheel(p.band)[1],
                "ra_ref_true": p.true.ra_ref,
                "dec_ref_true": p.true.dec_ref,
                "roll_ref_true": p.true.roll_ref,
                "ra_ref_reported": p.reported.ra_ref,
                "dec_ref_reported": p.reported.dec_ref,
                "roll_ref_reported": p.reported.roll_ref,
                "va_scale": p.reported.va_scale,
                "filter_offset_x": float(offset[0]),
                "filter_offset_y": float(offset[1]),
                "dv2_error_mas": p.visit_error_mas[0],
                "dv3_error_mas": p.visit_error_mas[1],
                "roll_error_deg": p.roll_error_deg,
                "jitter_v2_mas": p.jitter_mas[0],
                "jitter_v3_mas": p.jitter_mas[1],
                "fault_dx_arcsec": p.fault_shift_arcsec[0],
                "fault_dy_arcsec": p.fault_shift_arcsec[1],
                "smeared": p.smear is not None,
                "missing": not _has_file(simulation, p),
            }
        )
    _write_table(Table(rows), path / "truth" / "exposures.ecsv")


def _write_catalogs(simulation: Simulation, path: Path, plans: list[PlannedExposure], sources: Table) -> None:
    (path / "reference_catalogs").mkdir(exist_ok=True)
    for name in NAMES:
        parts = []
        for k in range(len(simulation.fields)):
            here = [p for p in plans if p.field == k]
            parts.append(make_catalog(name, simulation, k, sources[np.asarray(sources["field"]) == k], here))
        table = vstack(parts, metadata_conflicts="silent")
        table.add_column(np.arange(len(table)), name="id", index=0)
        _write_table(table[list(PUBLISHED)], path / "reference_catalogs" / f"{name}.ecsv")
        truth = table["id", "source_id", "true_ra", "true_dec", "ra", "dec", "mag", "east_mas", "north_mas"]
        _write_table(truth, path / "truth" / f"reference_{name}.ecsv")


def _write_table(table: Table, path: Path) -> None:
    draft = path.with_name(f".part_{path.name}")
    table.write(draft, format="fits" if path.suffix == ".fits" else "ascii.ecsv", overwrite=True)
    draft.replace(path)


def _write_wisps(simulation: Simulation, path: Path) -> None:
    """Wisp templates where grizli looks for them: one file per detector and short-wave filter, peak 1."""
    folder = path / "grizli" / "CONF" / "NircamWisp"
    folder.mkdir(parents=True, exist_ok=True)
    bands = sorted({pair.short for pair in simulation.filters if pair.short is not None})
    for detector in (d for d in simulation.active_detectors() if d in WISP_PLACES):
        for band in bands:
            target = folder / f"WISP_{detector.upper()}_{wheel(band)[0]}_{wheel(band)[1]}.fits"
            if not target.exists():
                draft = folder / f".part_{target.name}"
                fits.PrimaryHDU(wisp_template(detector)).writeto(draft, overwrite=True)
                draft.replace(target)


# --- exposures ----------------------------------------------------------------------------------


def _make_exposures(
    simulation: Simulation,
    plans: list[PlannedExposure],
    sources: Table,
    folder: Path,
    work: Path,
    tell: Callable[[str], None],
    workers: int,
) -> None:
    # One detector and filter after the other: flat and transfer function are then made once.
    ordered = sorted(plans, key=lambda p: (p.detector, p.band, p.dataset))
    done = 0

    def note(plan: PlannedExposure, fresh: bool) -> None:
        nonlocal done
        done += 1
        tell(f"exposure {done} of {len(plans)}: {plan.file_name}{'' if fresh else ' (was there)'}")

    if workers <= 1:
        for plan in ordered:
            note(plan, _one(simulation, plan, sources, folder, work))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_one, simulation, plan, None, folder, work): plan for plan in ordered}
        for future in as_completed(futures):
            note(futures[future], future.result())


def _one(simulation: Simulation, plan: PlannedExposure, sources: Table | None, folder: Path, work: Path) -> bool:
    """One exposure, in this or another process (which reads the sources that this one wrote)."""
    if sources is None:
        sources = Table.read(folder.parent / "truth" / "sources.fits")
        sources.convert_bytestring_to_unicode()
    return make_exposure(simulation, plan, sources_of(simulation, sources, plan.field), folder, work)


def _write_metadata(simulation: Simulation, plans: list[PlannedExposure], path: Path, work: Path) -> None:
    rows = []
    for plan in (p for p in plans if _has_row(simulation, p)):
        if _has_file(simulation, plan):
            rows.append(json.loads((work / f"{plan.dataset}.json").read_text())["row"])
        else:
            # The archive lists it, and its file can't be had: its size is that of every other one.
            rows.append(metadata_row(simulation, plan, RATE_FILE_BYTES, "0" * 32))
    columns = list(metadata_row(simulation, plans[0], 0, ""))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path / "metadata.csv", text.getvalue())
