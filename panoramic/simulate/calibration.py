"""The CRDS cache of a simulated archive: rules and reference files that an offline run asks for.

Put here the cache's layout and the reference files. Keep out the detectors' own behaviour (`detector.py`), which the
reference files describe. Facts about the layout: CRDS reads ``config/jwst/server_config`` (a dict's repr) in its
serverless mode, rules by name from ``mappings/jwst``, and every rule carries the SHA-1 of its own lines.
"""

from __future__ import annotations

import hashlib
import pprint
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from panoramic.simulate.detector import DO_NOT_USE, NO_FLAT_FIELD, flat_field, reference_border
from panoramic.simulate.exposures import dated, set_meta, write_text
from panoramic.simulate.geometry import Aperture, aperture, filter_offset
from panoramic.simulate.headers import CONTEXT
from panoramic.simulate.instrument import DETECTORS, FILTERS, NPIX, photmjsr
from panoramic.simulate.plan import wheel
from panoramic.simulate.program import Simulation

USE_AFTER = "2014-10-01 00:00:00"
FILE_DATE = "2025-01-01T00:00:00.000"
SERIAL = "9001"
# Types that the steps of an imaging reduction ask for and that it doesn't need.
NOT_APPLICABLE = (
    "specwcs", "regions", "wavelengthrange", "camera", "collimator", "disperser", "fore", "fpa", "msa", "ote",
    "ifupost", "ifufore", "ifuslicer", "fflat", "sflat", "dflat",
    "pars-assignwcsstep", "pars-flatfieldstep", "pars-photomstep", "pars-image2pipeline",
)  # fmt: skip
PARKEYS = {
    "flat": ("META.INSTRUMENT.DETECTOR", "META.INSTRUMENT.FILTER", "META.INSTRUMENT.PUPIL"),
    "area": ("META.INSTRUMENT.DETECTOR", "META.INSTRUMENT.FILTER", "META.INSTRUMENT.PUPIL"),
    "photom": ("META.EXPOSURE.TYPE", "META.INSTRUMENT.DETECTOR"),
    "distortion": ("META.EXPOSURE.TYPE", "META.INSTRUMENT.DETECTOR", "META.INSTRUMENT.CHANNEL"),
    "filteroffset": ("META.INSTRUMENT.CHANNEL", "META.INSTRUMENT.MODULE"),
}

Rules = dict[str, dict[tuple[str, ...], str]]


def write_cache(simulation: Simulation, path: Path, progress: Callable[[str], None] | None = None) -> None:
    """Write a CRDS cache for the simulated detectors and filters.

    Parameters
    ----------
    simulation : what is simulated.
    path : the folder that ``CRDS_PATH`` will name.
    progress : told of each file that is made.

    Notes
    -----
    A reference file that is there is complete (they are moved into place) and is kept.
    """
    references = path / "references" / "jwst" / "nircam"
    for folder in (references, path / "mappings" / "jwst", path / "config" / "jwst"):
        folder.mkdir(parents=True, exist_ok=True)
    rules: Rules = {kind: {} for kind in PARKEYS}
    tell = progress or (lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, fill, kind, keys in _files(simulation):
            for key in keys:
                rules[kind][key] = name
            if not (references / name).exists():
                tell(f"reference file {name}")
                draft = references / f"part_{name}"
                fill(draft)
                draft.replace(references / name)
    _write_rules(path, rules)
    write_text(path / "config" / "jwst" / "server_config", pprint.pformat(_server_config(rules)) + "\n")
    write_text(path / "config" / "jwst" / "bad_files.txt", "")
    write_text(path / "config" / "ref_cache_subdir_mode", "instrument\n")


def _files(simulation: Simulation) -> list[tuple[str, Callable[[Path], None], str, list[tuple[str, ...]]]]:
    """Name, writer, type and rule keys of each reference file."""
    out: list[tuple[str, Callable[[Path], None], str, list[tuple[str, ...]]]] = []
    bands = {b for pair in simulation.filters for b in (pair.short, pair.long) if b is not None}
    modes = set()
    for number, name in enumerate(DETECTORS):
        if name not in simulation.active_detectors():
            continue
        entry = DETECTORS[name]
        own = [b for b in sorted(bands) if FILTERS[b].channel == entry.channel]
        if not own:
            continue
        modes.add((entry.channel, entry.module))
        wheels: list[tuple[str, ...]] = [(entry.name, *wheel(b)) for b in own]
        for band in own:
            serial = f"{SERIAL}{number:02d}{sorted(FILTERS).index(band):02d}"
            out.append(
                (f"jwst_nircam_flat_{serial}.fits", _Write(_flat, simulation, name, band), "flat",
                 [(entry.name, *wheel(band))])
            )  # fmt: skip
        serial = f"{SERIAL}{number:02d}"
        out.append((f"jwst_nircam_area_{serial}.fits", _Write(_area, name), "area", wheels))
        out.append((f"jwst_nircam_photom_{serial}.fits", _Write(_photom, name), "photom", [("NRC_IMAGE", entry.name)]))
        out.append(
            (f"jwst_nircam_distortion_{serial}.asdf", _Write(_distortion, name), "distortion",
             [("NRC_IMAGE", entry.name, entry.channel)])
        )  # fmt: skip
    for number, (channel, module) in enumerate(sorted(modes)):
        out.append(
            (f"jwst_nircam_filteroffset_{SERIAL}{number:02d}.asdf", _Write(_filteroffset, channel, module),
             "filteroffset", [(channel, module)])
        )  # fmt: skip
    return out


class _Write:
    """A function of a path with its other arguments bound; printable, unlike a lambda."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self, path: Path) -> None:
        self.function(path, *self.arguments)


# --- reference files ----------------------------------------------------------------------------


def _meta(detector: str, kind: str) -> dict[str, Any]:
    entry = DETECTORS[detector]
    return {
        "telescope": "JWST",
        "instrument.name": "NIRCAM",
        "instrument.detector": entry.name,
        "instrument.module": entry.module,
        "instrument.channel": entry.channel,
        "reftype": kind,
        "author": "panoramic.simulate",
        "description": f"Simulated {kind} reference file",
        "pedigree": "DUMMY",
        "useafter": USE_AFTER.replace(" ", "T"),
        "date": FILE_DATE,
    }


def _flat(path: Path, simulation: Simulation, detector: str, band: str) -> None:
    from stdatamodels.jwst.datamodels import FlatModel

    with dated(FlatModel, FILE_DATE)() as model:
        data = flat_field(simulation.seed, detector, band, simulation.effects.flat_structure).copy()
        dq = np.zeros((NPIX, NPIX), np.uint32)
        border = reference_border()
        data[border], dq[border] = 1.0, NO_FLAT_FIELD | DO_NOT_USE
        model.data, model.dq = data, dq
        model.err = np.full((NPIX, NPIX), max(simulation.effects.flat_error, 1e-4), np.float32)
        model.dq_def = np.array(
            [(0, 1, "DO_NOT_USE", "Bad pixel"), (18, 1 << 18, "NO_FLAT_FIELD", "Flat field cannot be measured")],
            dtype=[("BIT", "<u4"), ("VALUE", "<u4"), ("NAME", "S40"), ("DESCRIPTION", "S80")],
        )
        meta = _meta(detector, "FLAT") | _wheel_meta(band) | _full_frame(detector)
        set_meta(model, meta | {"exposure.type": "NRC_IMAGE"})
        model.save(str(path))


def _wheel_meta(band: str) -> dict[str, Any]:
    return dict(zip(("instrument.filter", "instrument.pupil"), wheel(band), strict=True))


def _full_frame(detector: str) -> dict[str, Any]:
    entry = DETECTORS[detector]
    return {
        "subarray.name": "FULL",
        "subarray.xstart": 1,
        "subarray.ystart": 1,
        "subarray.xsize": NPIX,
        "subarray.ysize": NPIX,
        "subarray.fastaxis": entry.fastaxis,
        "subarray.slowaxis": entry.slowaxis,
    }


def _area(path: Path, detector: str) -> None:
    from stdatamodels.jwst.datamodels import PixelAreaModel

    ap = aperture(detector)
    with dated(PixelAreaModel, FILE_DATE)() as model:
        model.data = pixel_area_map(ap)
        set_meta(model, _meta(detector, "AREA") | _pixel_area(ap) | {"exposure.type": "NRC_IMAGE"})
        model.save(str(path))


def pixel_area_map(ap: Aperture) -> np.ndarray:
    """Area of each pixel relative to the nominal one, shape (NPIX, NPIX), float32."""
    # The distortion is smooth: differences on a coarse grid of pixels say it all.
    edges = np.linspace(0, NPIX, 65) - 0.5
    v2, v3 = ap.pixel_to_v2v3(*np.meshgrid(edges, edges))
    step = edges[1] - edges[0]
    dx, dy = (np.gradient(v, step, axis=1, edge_order=2) for v in (v2, v3))
    ex, ey = (np.gradient(v, step, axis=0, edge_order=2) for v in (v2, v3))
    area = np.abs(dx * ey - dy * ex) / ap.pixel_area_arcsec2
    from scipy.interpolate import RectBivariateSpline

    pixels = np.arange(NPIX)
    return RectBivariateSpline(edges, edges, area)(pixels, pixels).astype(np.float32)


def _pixel_area(ap: Aperture) -> dict[str, Any]:
    return {
        "photometry.pixelarea_steradians": ap.pixel_area_sr,
        "photometry.pixelarea_arcsecsq": ap.pixel_area_arcsec2,
    }


def _photom(path: Path, detector: str) -> None:
    from stdatamodels.jwst.datamodels import NrcImgPhotomModel

    own = [b for b in FILTERS if FILTERS[b].channel == DETECTORS[detector].channel]
    with dated(NrcImgPhotomModel, FILE_DATE)() as model:
        rows = [(*wheel(b), photmjsr(detector, b), 0.01 * photmjsr(detector, b)) for b in own]
        columns = [("filter", "S12"), ("pupil", "S12"), ("photmjsr", "<f4"), ("uncertainty", "<f4")]
        model.phot_table = np.array(rows, dtype=columns)
        set_meta(model, _meta(detector, "PHOTOM") | _pixel_area(aperture(detector)) | {"exposure.type": "NRC_IMAGE"})
        model.save(str(path))


def _distortion(path: Path, detector: str) -> None:
    from astropy import units
    from astropy.modeling.models import Identity, Mapping, Polynomial2D, Shift
    from stdatamodels.jwst.datamodels import DistortionModel

    ap = aperture(detector)

    def pair(coefficients: np.ndarray) -> Any:
        terms: list[dict[str, float]] = [{}, {}]
        k = 0
        for i in range(ap.degree + 1):
            for j in range(i + 1):
                for axis in (0, 1):
                    terms[axis][f"c{i - j}_{j}"] = float(coefficients[axis, k])
                k += 1
        return Polynomial2D(ap.degree, **terms[0]) & Polynomial2D(ap.degree, **terms[1])

    c, s = np.cos(np.radians(ap.v3_idl_yangle)), np.sin(np.radians(ap.v3_idl_yangle))
    linear = Polynomial2D(1, c0_0=0, c1_0=ap.parity * c, c0_1=s) & Polynomial2D(1, c0_0=0, c1_0=-ap.parity * s, c0_1=c)
    back = Polynomial2D(1, c0_0=0, c1_0=ap.parity * c, c0_1=-ap.parity * s) & Polynomial2D(1, c0_0=0, c1_0=s, c0_1=c)
    split = Mapping((0, 1, 0, 1))
    forward = (
        Shift(1 - ap.x_ref) & Shift(1 - ap.y_ref) | split | pair(ap.forward) | split | linear
        | Shift(ap.v2_ref) & Shift(ap.v3_ref)
    )  # fmt: skip
    inverse = (
        Shift(-ap.v2_ref) & Shift(-ap.v3_ref) | split | back | split | pair(ap.fitted_inverse())
        | Shift(ap.x_ref - 1) & Shift(ap.y_ref - 1) | Identity(2)
    )  # fmt: skip
    forward.inverse = inverse
    with DistortionModel(model=forward, input_units=units.pix, output_units=units.arcsec) as model:
        entry = DETECTORS[detector]
        set_meta(
            model,
            _meta(detector, "distortion")
            | {
                "exposure.type": "NRC_IMAGE",
                "exposure.p_exptype": "NRC_IMAGE|NRC_TSIMAGE|NRC_FLAT|NRC_LED|NRC_WFSC|NRC_TACQ|NRC_FOCUS|",
                "instrument.p_pupil": "".join(f"{p}|" for p in sorted({f.pupil for f in FILTERS.values()})),
                "instrument.pupil": "CLEAR",
                "instrument.filter": next(f.filter for f in FILTERS.values() if f.channel == entry.channel),
                "title": "NIRCam SIAF distortion",
            },
        )
        model.save(str(path))


def _filteroffset(path: Path, channel: str, module: str) -> None:
    from stdatamodels.jwst.datamodels import FilteroffsetModel

    detector = next(d for d in DETECTORS if DETECTORS[d].channel == channel and DETECTORS[d].module == module)
    rows = []
    for band in (b for b in FILTERS if FILTERS[b].channel == channel):
        dx, dy = (float(v) for v in filter_offset(detector, band))
        rows.append(dict(zip(("filter", "pupil"), wheel(band), strict=True)) | {"column_offset": dx, "row_offset": dy})
    with dated(FilteroffsetModel, FILE_DATE)(filters=rows, instrument="NIRCAM") as model:
        set_meta(model, _meta(detector, "filteroffset") | {"exposure.type": "NRC_IMAGE", "input_units": "pixel"})
        model.save(str(path))


# --- rules --------------------------------------------------------------------------------------


def _write_rules(path: Path, rules: Rules) -> None:
    folder = path / "mappings" / "jwst"
    selector: dict[str, str] = dict.fromkeys(NOT_APPLICABLE, "N/A")
    for kind, entries in rules.items():
        name = f"jwst_nircam_{kind}_{SERIAL}.rmap"
        selector[kind] = name
        header = _header(name, "REFERENCE", (PARKEYS[kind], ("META.OBSERVATION.DATE", "META.OBSERVATION.TIME")))
        header |= {
            "instrument": "NIRCAM",
            "filekind": kind.upper(),
            "suffix": kind,
            "classes": ("Match", "UseAfter"),
            "text_descr": f"Simulated {kind}",
        }
        lines = "".join(
            f"    {key!r} : UseAfter({{\n        {USE_AFTER!r} : {file!r},\n    }}),\n"
            for key, file in sorted(entries.items())
        )
        _write_rule(folder / name, header, "Match({\n" + lines + "})")
    imap = f"jwst_nircam_{SERIAL}.imap"
    header = _header(imap, "INSTRUMENT", ("REFTYPE",)) | {"instrument": "NIRCAM"}
    _write_rule(folder / imap, header, _plain(selector))
    header = _header(CONTEXT, "PIPELINE", ("META.INSTRUMENT.NAME",))
    _write_rule(folder / CONTEXT, header, _plain({"NIRCAM": imap}))


def _header(name: str, mapping: str, parkey: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "derived_from": "generated by panoramic.simulate",
        "mapping": mapping,
        "name": name,
        "filename": name,
        "observatory": "JWST",
        "parkey": parkey,
    }


def _plain(entries: Mapping[str, object]) -> str:
    return "{\n" + "".join(f"    {key!r} : {value!r},\n" for key, value in sorted(entries.items())) + "}"


def _write_rule(path: Path, header: dict[str, Any], selector: str) -> None:
    """Write a rule; CRDS refuses it unless it holds the SHA-1 of all lines but the one that holds it."""
    body = f"header = {_plain(header)}\n\nselector = {selector}\n"
    sha1 = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()
    write_text(path, body.replace("header = {\n", f"header = {{\n    'sha1sum' : {sha1!r},\n", 1))


def _server_config(rules: Rules) -> dict[str, Any]:
    mappings = [CONTEXT, f"jwst_nircam_{SERIAL}.imap", *(f"jwst_nircam_{kind}_{SERIAL}.rmap" for kind in rules)]
    return {
        "observatory": "jwst",
        "status": "server",
        "connected": False,
        "operational_context": CONTEXT,
        "edit_context": CONTEXT,
        "crds_version": {"str": "12.1.11", "version": "12.1.11"},
        "force_remote_mode": False,
        "last_synced": "2025-01-01 00:00:00",
        "bad_files": "",
        "bad_files_list": [],
        "mappings": mappings,
        "mapping_url": {"jwst": "", "unchecked": {"jwst": ""}, "checked": {"jwst": ""}},
        "reference_url": {"jwst": "", "unchecked": {"jwst": ""}, "checked": {"jwst": ""}},
    }
