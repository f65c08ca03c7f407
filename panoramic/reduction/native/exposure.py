"""One exposure, from its rate file to an image without stripes, wisps and sky, with its weight.

Put here the order of the detector's steps and what is recorded where one can't be done. Keep out the steps themselves,
and all that looks at more than one exposure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import CalibrationError, NoUsableExposureError
from panoramic.reduction.base import Degradation
from panoramic.reduction.native.background import Background, flatten, measure_background
from panoramic.reduction.native.claws import flag_regions, parse_regions
from panoramic.reduction.native.detector import Calibrated, calibrate
from panoramic.reduction.native.geometry import Geometry
from panoramic.reduction.native.parameters import NativeParameters
from panoramic.reduction.native.persistence import flag_persistence, saturated_pixels
from panoramic.reduction.native.references import FLAGS, References
from panoramic.reduction.native.sky_masks import find_sources
from panoramic.reduction.native.snowballs import find_snowballs
from panoramic.reduction.native.stripes import Stripes
from panoramic.reduction.native.wisps import WispFit, fit_wisp_among_sources
from panoramic.reduction.rate_files import SHAPE, RateHeader

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

WISP_DETECTORS = ("NRCA3", "NRCA4", "NRCB3", "NRCB4")
SMALLEST_USABLE = 0.2
_COMPLETE = 0.8
_WEIGHT_CEILING = 2.0
_DO_NOT_USE, _PERSISTENCE = (np.uint32(FLAGS[k]) for k in ("DO_NOT_USE", "PERSISTENCE"))


@dataclass(eq=False)
class ReducedExposure:
    """What the detector's steps leave.

    Parameters
    ----------
    header : of the rate file.
    planes : name -> plane of the product: SCI, ERR, WHT, DQ, VAR_POISSON, VAR_RNOISE, VAR_FLAT.
    background : the sky that was subtracted, MJy/sr.
    stripes : in DN/s before the flat; None where they were left.
    wisp : the fit of the template; None where there was none.
    shot : variance that light adds: a pixel of brightness b has ``1 / WHT + shot * b`` (MJy/sr).
    saturated : pixels that later exposures of the visit are warned of.
    degradations : what could not be done.
    """

    header: RateHeader
    planes: dict[str, NDArray[Any]]
    background: Background
    stripes: Stripes | None
    wisp: WispFit | None
    shot: float
    saturated: Mask
    degradations: tuple[Degradation, ...] = field(default=())


def reduce_exposure(
    header: RateHeader,
    references: References,
    geometry: Geometry,
    parameters: NativeParameters,
    *,
    earlier: Sequence[tuple[Mask, float]] = (),
    template: Image | None = None,
) -> ReducedExposure:
    """Take an exposure through the detector's steps.

    Parameters
    ----------
    header : of its rate file.
    references : of its detector, filter and pupil.
    geometry : by the archive's pointing, for regions on the sky.
    earlier : (saturated pixels, end in MJD) of exposures before it.
    template : wisps, flat-fielded, any unit; None where there is none.

    Raises
    ------
    NoUsableExposureError
        Under a fifth of its pixels can be used, or its sky can't be measured.
    ExposureFileError
        The file can't be used.
    """
    name = header.dataset
    notes = list(references.degradations(name))
    exposure = calibrate(header.path, references)
    saturated = saturated_pixels(exposure.dq)
    unusable = exposure.unusable()
    if parameters.snowballs:
        unusable |= find_snowballs(exposure.dq, star_cores=exposure.saturated_core, growth=parameters.snowball_growth)
    if parameters.persistence and earlier:
        glowing = flag_persistence(earlier, header.start, saturated_now=exposure.saturated_core)
        exposure.dq[glowing] |= _PERSISTENCE
        unusable |= glowing
    if parameters.scattered_light:
        regions = parse_regions(parameters.scattered_light)
        unusable |= flag_regions(regions, name, SHAPE, geometry.pixels)
    usable = 1 - float(unusable.mean())
    if usable < SMALLEST_USABLE:
        raise NoUsableExposureError(f"only {usable:.1%} of its pixels can be used")
    if usable < _COMPLETE:
        notes.append(Degradation(name, "usable_area", f"only {usable:.0%} of the exposure's pixels can be used"))
    wisp = _remove_wisp(exposure, unusable, template, parameters, header, notes)
    image, stripes, background, sources = _flattened(exposure, references, unusable, parameters)
    if background.measured <= 0:
        raise NoUsableExposureError("its background can't be measured: no mesh has free pixels")
    weight, shot = _weight(exposure, image, background, unusable, sources, references)
    exposure.dq[unusable] |= _DO_NOT_USE
    planes: dict[str, NDArray[Any]] = {"SCI": image, "ERR": exposure.err, "WHT": weight, "DQ": exposure.dq}
    if parameters.variances:
        planes |= {
            "VAR_POISSON": exposure.var_poisson, "VAR_RNOISE": exposure.var_rnoise, "VAR_FLAT": exposure.var_flat,
        }  # fmt: skip
    return ReducedExposure(header, planes, background, stripes, wisp, shot, saturated, tuple(notes))


def wisp_template(folder: Path | None, header: RateHeader) -> tuple[Image | None, str]:
    """The template of an exposure's wisps and why there is none; an empty reason where none is needed.

    Parameters
    ----------
    folder : grizli's configuration folder, with templates in ``CONF/NircamWisp``: STScI's
        ``WISP_NRCB4_F115W_CLEAR.fits`` or grizli's ``wisps_nrcb4_F115W.fits``.

    Raises
    ------
    CalibrationError
        A template can't be read, or is no full frame.
    """
    from astropy.io import fits

    if header.detector not in WISP_DETECTORS:
        return None, ""
    names = (
        f"WISP_{header.detector}_{header.filter}_{header.pupil}.fits",
        f"wisps_{header.detector.lower()}_{header.filter}.fits",
    )
    paths = [folder / "CONF" / "NircamWisp" / name for name in names] if folder else []
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        return None, f"there is no template for {header.detector} {header.filter} {header.pupil} ({names[0]})"
    try:
        with fits.open(path) as hdus:
            planes = [hdu.data for hdu in hdus if hdu.data is not None and hdu.data.ndim == 2]
            data = np.array(planes[0], np.float32)
    except (OSError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise CalibrationError(f"the wisp template {path} can't be read ({error}); fetch it again") from error
    if data.shape != SHAPE:
        raise CalibrationError(f"the wisp template {path} is {data.shape}, a full frame is {SHAPE}")
    return data, ""


def _remove_wisp(
    exposure: Calibrated,
    unusable: Mask,
    template: Image | None,
    parameters: NativeParameters,
    header: RateHeader,
    notes: list[Degradation],
) -> WispFit | None:
    """Fit the template and subtract it where that makes the image better."""
    if template is None or not parameters.wisps:
        return None
    fit = fit_wisp_among_sources(exposure.sci, exposure.err, unusable, template)
    if fit.used:
        exposure.sci -= np.float32(fit.amplitude) * np.nan_to_num(template)
    elif fit.reason.startswith("the template leaves"):
        notes.append(Degradation(header.dataset, "wisp_fit", f"wisps were not subtracted: {fit.reason}"))
    return fit


def _flattened(
    exposure: Calibrated, references: References, unusable: Mask, parameters: NativeParameters
) -> tuple[Image, Stripes | None, Background, Mask]:
    """The image without stripes and sky, these, and the pixels of sources."""
    mesh = parameters.background_mesh_px
    if parameters.stripes:
        flat = references.flat.data if references.flat is not None else np.ones(SHAPE, np.float32)
        done = flatten(
            exposure.sci, flat, unusable, mesh_px=mesh, high_pass_rows=parameters.stripe_high_pass_rows,
            odd_even=parameters.odd_even,
        )  # fmt: skip
        # stripes were measured on brightness times the flat: count rates are that over the flux scale
        return done.image, _scaled(done.stripes, 1 / references.photmjsr), done.background, done.sources
    sources = find_sources(exposure.sci, unusable)
    background = measure_background(exposure.sci, unusable, mesh_px=mesh, sources=sources)
    return exposure.sci - background.image(), None, background, sources


def _scaled(stripes: Stripes, factor: float) -> Stripes:
    """The stripes in another unit."""
    row, amplifier, parity = (
        np.asarray(part * factor, np.float32) for part in (stripes.row, stripes.amplifier, stripes.parity)
    )
    return replace(stripes, row=row, amplifier=amplifier, parity=parity, error=stripes.error * factor)


def _weight(
    exposure: Calibrated, image: Image, background: Background, unusable: Mask, sources: Mask, references: References
) -> tuple[Image, float]:
    """Inverse variance of read noise and background alone, and the variance that light adds per brightness.

    The background's own Poisson noise is that of the pixels beside sources: the archive's plane follows each pixel's
    noise and every star.
    """
    sample = np.s_[::5, ::5]
    sky = ~(sources[sample] | unusable[sample])
    flat = references.flat.data if references.flat is not None else np.ones(SHAPE, np.float32)
    poisson, flat_sample = exposure.var_poisson[sample], flat[sample]
    # of a pixel of mean sensitivity: light that a pixel sees weaker is scaled up, and its noise with it
    values = (poisson * flat_sample)[sky]
    values = values[np.isfinite(values)]
    typical = float(np.median(values)) if values.size else 0.0
    level = background.level
    variance = np.full(SHAPE, np.float32(typical))
    if level > 0:
        # from mesh to mesh the sky differs by a few per cent at most: no need of its smooth image
        steps = np.clip(background.nodes / np.float32(level), 0.2, 5.0)
        mesh = background.mesh_px
        variance *= np.repeat(np.repeat(steps, mesh, axis=0), mesh, axis=1)[: SHAPE[0], : SHAPE[1]]
    variance /= flat
    variance += exposure.var_rnoise
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.asarray(1 / variance, np.float32)
    weight[unusable | ~np.isfinite(weight) | (weight < 0) | ~np.isfinite(image)] = 0
    middle = weight[sample][weight[sample] > 0]
    if middle.size:
        usual = np.float32(np.median(middle))
        np.minimum(weight, _WEIGHT_CEILING * usual, out=weight)
        # equal weights: a core that counts less than its wings would dim the star
        weight[exposure.saturated_core & (weight > 0)] = usual
    return weight, typical / level if level > 0 else 0.0
