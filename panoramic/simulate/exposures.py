"""One simulated exposure: the scene on the detector, its count rate file, its archive row.

Put here what happens to a single exposure. Keep out the archive as a whole (`archive.py`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from panoramic.simulate import detector as detectors
from panoramic.simulate import optics
from panoramic.simulate.geometry import ARCSEC, aperture, filter_offset
from panoramic.simulate.headers import metadata_row, processed_at, rate_meta
from panoramic.simulate.instrument import DETECTORS, FILTERS, NPIX
from panoramic.simulate.plan import PlannedExposure, generator
from panoramic.simulate.program import Simulation, TruncatedFile, WrongChecksum

AB_ZERO_JY = 3631.0
REACH_PIXELS = 140
"""Sources so far outside the detector still send light onto it."""


def background(simulation: Simulation, plan: PlannedExposure) -> NDArray[np.float32]:
    """Zodiacal and telescope light, *MJy/sr*, shape (NPIX, NPIX): a level per field, a slight slope per detector."""
    level = FILTERS[plan.band].background * simulation.sky.background
    rng = generator(simulation.seed, "background", plan.field)
    level *= rng.uniform(0.85, 1.2)
    slope = generator(simulation.seed, "slope", plan.field, plan.detector, plan.band).normal(0, 0.012, 2)
    ramp = np.linspace(-0.5, 0.5, NPIX, dtype=np.float32)
    return (level * (1 + slope[0] * ramp[None, :] + slope[1] * ramp[:, None])).astype(np.float32)


def scene(simulation: Simulation, plan: PlannedExposure, sources: Table) -> NDArray[np.float32]:
    """Surface brightness on the detector, *MJy/sr*, shape (NPIX, NPIX), without noise and defects.

    Parameters
    ----------
    simulation, plan : what and which exposure.
    sources : of the exposure's field (`sky.make_sources`).
    """
    ap = aperture(plan.detector)
    channel = DETECTORS[plan.detector].channel
    ra, dec = np.asarray(sources["ra"], float), np.asarray(sources["dec"], float)
    x, y = ap.sky_to_pixel(plan.true, ra, dec)
    offset = filter_offset(plan.detector, plan.band)
    x, y = x - offset[0], y - offset[1]
    near = (np.minimum(x, y) > -REACH_PIXELS) & (np.maximum(x, y) < NPIX + REACH_PIXELS)
    jacobian = ap.jacobian(plan.true, ra[near], dec[near])
    # A flat is made on uniform light, so a pixel's share of a source goes with its true area.
    determinant = jacobian[:, 0, 0] * jacobian[:, 1, 1] - jacobian[:, 0, 1] * jacobian[:, 1, 0]
    pixel_sr = ARCSEC**2 / np.abs(determinant)
    table = sources[near]
    flux = AB_ZERO_JY * 1e-6 * 10 ** (-0.4 * np.asarray(table[f"mag_{plan.band}"], float)) / pixel_sr
    canvas = optics.new_canvas()
    zero, one, nothing = np.zeros((2, 2)), np.ones(1), np.zeros(1)
    shapes = _shapes(table, jacobian)
    star = np.asarray(table["kind"]) == "star"
    n = np.round(np.asarray(table["n"], float) * 4) / 4
    for k in range(len(table)):
        if star[k]:
            optics.draw(canvas, x[near][k], y[near][k], flux[k], zero, one, nothing)
        else:
            weights, sigmas = optics.sersic_mixture(max(float(n[k]), 0.5))
            optics.draw(canvas, x[near][k], y[near][k], flux[k], shapes[k], weights, sigmas)
    image = optics.observe(canvas, optics.transfer_function(plan.band, channel, ap.x_scale, _smear(plan, ap.x_scale)))
    image += background(simulation, plan)
    if simulation.effects.wisps:
        image += np.float32(simulation.effects.wisps) * detectors.wisp_template(plan.detector)
    return image


def _shapes(table: Table, jacobian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariances, *pixels^2*, shape (n, 2, 2), of Gaussians with the shape of one half-light radius."""
    pa = np.radians(np.asarray(table["pa"], float))
    major = np.asarray(table["re_arcsec"], float)
    minor = major * np.asarray(table["axis_ratio"], float)
    along = np.stack([np.sin(pa), np.cos(pa)], axis=-1) * major[:, None]
    across = np.stack([np.cos(pa), -np.sin(pa)], axis=-1) * minor[:, None]
    out = np.zeros((len(table), 2, 2))
    for axis in (along, across):
        pixel = jacobian[:, :, 0] * axis[:, :1] + jacobian[:, :, 1] * axis[:, 1:]
        out += pixel[:, :, None] * pixel[:, None, :]
    return out


def _smear(plan: PlannedExposure, pixel_scale: float) -> tuple[float, float] | None:
    if plan.smear is None:
        return None
    length, angle = plan.smear[0] / pixel_scale, np.radians(plan.smear[1])
    return float(length * np.cos(angle)), float(length * np.sin(angle))


def simulate_exposure(simulation: Simulation, plan: PlannedExposure, sources: Table) -> detectors.RateImage:
    """The count rate image of an exposure; its noise depends on the seed and the dataset alone."""
    return detectors.expose(
        scene(simulation, plan, sources),
        plan.detector,
        plan.band,
        simulation.readout,
        simulation.effects,
        simulation.seed,
        generator(simulation.seed, "exposure", plan.dataset),
    )


def dated(model_class: type, date: str) -> type:
    """A data model class that is saved with a given date instead of now, so that equal archives have equal bytes."""

    def on_save(self: Any, path: object = None) -> None:
        model_class.on_save(self, path)  # type: ignore[attr-defined]
        self.meta.date = date

    return type(model_class.__name__, (model_class,), {"on_save": on_save})


def set_meta(model: Any, values: dict[str, Any]) -> None:
    """Set metadata of a data model by dotted paths."""
    for path, value in values.items():
        node = model.meta
        *parents, leaf = path.split(".")
        for part in parents:
            node = getattr(node, part)
        setattr(node, leaf, value)


def write_rate(image: detectors.RateImage, simulation: Simulation, plan: PlannedExposure, path: Path) -> None:
    """Write a count rate file with the archive's extensions and keywords."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from stdatamodels.jwst.datamodels import ImageModel

        date = f"{processed_at(simulation, plan):%Y-%m-%dT%H:%M:%S}.000"
        with dated(ImageModel, date)() as model:
            model.data, model.err, model.dq = image.sci, image.err, image.dq
            model.var_poisson, model.var_rnoise = image.var_poisson, image.var_rnoise
            set_meta(model, rate_meta(simulation, plan))
            model.save(str(path))


def digest(path: Path) -> tuple[int, str]:
    """Size in bytes and md5 of a file."""
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            md5.update(chunk)
    return path.stat().st_size, md5.hexdigest()


def make_exposure(simulation: Simulation, plan: PlannedExposure, sources: Table, folder: Path, work: Path) -> bool:
    """Simulate and write one exposure, unless it is there already; its archive row goes to the work folder.

    Parameters
    ----------
    simulation, plan, sources : what to simulate.
    folder : where the file goes.
    work : notes of what is complete: ``{dataset}.json`` with the archive row and the size on disk.

    Returns
    -------
    bool
        False if the exposure was already complete.
    """
    note, target = work / f"{plan.dataset}.json", folder / plan.file_name
    if note.exists() and target.exists():
        expected = json.loads(note.read_text())["size_on_disk"]
        if target.stat().st_size == expected:
            return False
    scratch = work / plan.dataset
    scratch.mkdir(parents=True, exist_ok=True)
    draft = scratch / plan.file_name
    write_rate(simulate_exposure(simulation, plan, sources), simulation, plan, draft)
    size, md5 = digest(draft)
    for fault in simulation.faults:
        if isinstance(fault, WrongChecksum) and fnmatch.fnmatch(plan.dataset, fault.match):
            md5 = hashlib.md5(md5.encode(), usedforsecurity=False).hexdigest()
        if isinstance(fault, TruncatedFile) and fnmatch.fnmatch(plan.dataset, fault.match):
            os.truncate(draft, int(size * fault.fraction))
    row = metadata_row(simulation, plan, size, md5)
    write_text(note, json.dumps({"size_on_disk": draft.stat().st_size, "row": row}))
    draft.replace(target)
    shutil.rmtree(scratch)
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place, then move it there."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text)
    draft.replace(path)
