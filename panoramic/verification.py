"""The alignment of an association measured again from its products, with no help of the engine that made them.

Put here which sources are held against which: each exposure against the others, each exposure and the whole association
against the reference. Keep out the finding of sources (``exposure_sources.py``), the matching
(``alignment_solution.py``), and what the numbers must reach (``alignment.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.alignment_measurement import Kind, Measurement, Offset, Tile
from panoramic.alignment_solution import PointingKnowledge, Refusal, Solution, measure_solution
from panoramic.alignment_tiles import tile_residuals
from panoramic.exposure_sources import ExposureSources, find_exposure_sources
from panoramic.footprints import connected, east_north, hull, inside, positions_of, project, unit_vectors
from panoramic.reduction.base import Pointing, PointingPrior, ReferenceSources
from panoramic.reduction.moving import SkyCorrection
from panoramic.survey import Limits

if TYPE_CHECKING:
    from astropy.table import Table

_Settings = dict[str, Any]

_MAS = np.pi / 180 / 3_600_000
_ARCSEC = 1000 * _MAS
# detections this near to each other in different exposures are one object; misaligned by more, they are several
_SAME_OBJECT_ARCSEC = 0.15
# what stays on the same pixels while the sky has moved by more than this is the detector's
_FIXED_PX, _MOVED_PX = 0.5, 3.0
# what is drawn where nothing matched
_SHOWN_PAIRS_ARCSEC = 0.5
# a relative solution is worth a number even where it is bad: the gates say what is too bad
_LARGEST_ERROR_MAS = 60.0
# a galaxy's centre in another filter; smears of an exposure show against the other exposures, where nothing is excused
_HARMLESS_ARCSEC = 0.08
# pieces of diffraction spikes, split galaxies and cosmic rays about real sources: up to this part of the matched ones
_LONE_PART = 0.4
_FEWEST_PER_TILE = 10
_TILES = 4
_COLUMNS = (
    "dataset", "kind", "x", "y", "mag", "dra", "ddec", "dx", "dy", "before_dra", "before_ddec", "used",
)  # fmt: skip
_EMPTY: dict[str, type | str] = {"dataset": "U1", "kind": "U8", "used": bool}


def measure_alignment(
    association: str,
    files: Mapping[str, Path],
    reference: ReferenceSources | None,
    *,
    search_radius_arcsec: float,
    prior: PointingKnowledge | None = None,
    pointings: Mapping[str, Pointing | None] | None = None,
    limits: Limits | None = None,
) -> tuple[Measurement, Table]:
    """Measure the alignment of an association's calibrated exposures.

    Parameters
    ----------
    association : its name.
    files : product ``{dataset}_rate.fits`` by dataset.
    reference : at the exposures' epoch; None: only the exposures are held against each other.
    search_radius_arcsec : largest offset that is looked for.
    prior : what the visit's other detectors say of the whole association's offset from the reference, at its centre.
    pointings : how far each exposure was moved from the archive's pointing, for the pairs' offsets before.
    limits : how rare chance and how high a peak must be for a number to be given; the survey's defaults where None.

    Returns
    -------
    measurement : all offsets, or why there are none.
    pairs : the matched pairs: ``dataset``, ``kind``, ``x``, ``y`` (0-based detector pixels), ``mag``, ``dra``,
        ``ddec`` (mas, as the products stand), ``dx``, ``dy`` (the same in detector pixels), ``before_dra``,
        ``before_ddec`` (by the archive's pointing; NaN where unknown), ``used`` (False: near, but not part of any
        solution).

    Raises
    ------
    OSError, KeyError
        A product does not open.
    """
    exposures = without_fixed([find_exposure_sources(path, dataset) for dataset, path in sorted(files.items())])
    pairs = _Pairs(pointings or {})
    limits = limits or Limits()
    settings: _Settings = {
        "search_radius_arcsec": search_radius_arcsec,
        "maximum_chance": limits.absolute_chance,
        "maximum_chance_early": limits.absolute_chance_early,
        "minimum_contrast": limits.absolute_contrast,
        "lone_part": _LONE_PART,
    }
    offsets: list[Offset] = []
    for k, exposure in enumerate(exposures):
        others = [other for i, other in enumerate(exposures) if i != k]
        if others:
            offsets.append(_relative(exposure, others, settings, pairs))
    absolute = None
    if reference is not None:
        absolute = _association(association, exposures, reference, settings, prior)
        for exposure in exposures:
            offsets.append(_absolute(exposure, reference, settings, pairs))
    name, kind = (reference.name, reference.kind) if reference is not None else ("", "")
    return Measurement(association, name, kind, absolute, tuple(offsets)), pairs.table()


def without_fixed(exposures: Sequence[ExposureSources]) -> list[ExposureSources]:
    """The exposures without what stays on the same pixels while the sky moves: bad pixels, not sources."""
    from scipy.spatial import cKDTree

    fixed = [np.zeros(len(e), bool) for e in exposures]
    for i, one in enumerate(exposures):
        for j in range(i):
            other = exposures[j]
            apart = np.linalg.norm(unit_vectors(*one.centre) - unit_vectors(*other.centre)) / _MAS
            if apart <= _MOVED_PX * one.pixel_scale_mas or not len(one) or not len(other):
                continue
            places, other_places = np.column_stack([one.x, one.y]), np.column_stack([other.x, other.y])
            distance, nearest = cKDTree(other_places).query(places, distance_upper_bound=_FIXED_PX)
            same = np.isfinite(distance)
            fixed[i] |= same
            fixed[j][nearest[same]] = True
    return [e.without(rows) for e, rows in zip(exposures, fixed, strict=True)]


def common_objects(
    exposures: Sequence[ExposureSources], *, with_shape: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Median position of each object over exposures: RA and Dec (deg), error (mas) and magnitude, each (N,).

    ``with_shape`` adds to the error what another filter may see elsewhere, which exposures have in common.
    """
    from scipy.spatial import cKDTree

    if sum(len(e) for e in exposures) == 0:
        nothing = np.empty(0)
        return nothing, nothing, nothing, nothing
    ra, dec, error, shape, mag = (
        np.concatenate([getattr(e, c) for e in exposures]) for c in ("ra", "dec", "error_mas", "shape_error_mas", "mag")
    )
    owner = np.repeat(np.arange(len(exposures)), [len(e) for e in exposures])
    places = unit_vectors(ra, dec)
    links = cKDTree(places).query_pairs(_SAME_OBJECT_ARCSEC * _ARCSEC, output_type="ndarray")
    links = links[owner[links[:, 0]] != owner[links[:, 1]]]
    labels = connected(links, len(places))
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    middle = positions_of(np.array([np.median(places[g], axis=0) for g in groups]))
    joint = np.array([(error[g] ** -2.0).sum() ** -0.5 for g in groups])
    # of more than two, the median is taken, which is worse than the mean by up to a factor of 1.25
    joint *= np.where([len(g) > 2 for g in groups], 1.25, 1.0)
    if with_shape:
        joint = np.hypot(joint, [np.median(shape[g]) for g in groups])
    brightness = np.array([np.nanmedian(mag[g]) if np.isfinite(mag[g]).any() else np.nan for g in groups])
    return middle[:, 0], middle[:, 1], joint, brightness


def correction_of(offset: Offset) -> SkyCorrection:
    """What brings an association with this measured offset onto its reference."""
    if offset.ra is None or offset.dec is None or offset.dra is None or offset.ddec is None:
        raise ValueError(f"{offset.subject} has no measured offset: {offset.text}")
    return SkyCorrection(offset.ra, offset.dec, -offset.dra, -offset.ddec, -(offset.rotation_deg or 0.0))


def knowledge_of(priors: Sequence[PointingPrior], moved: SkyCorrection | None = None) -> PointingKnowledge:
    """What priors say of products that lie where the priors put them, or were moved from there since.

    The exposures' priors have their error in common: the mean of their covariances stands for all.
    """
    covariance = np.mean([np.asarray(p.covariance, float) for p in priors], axis=0)
    if moved is None:
        return PointingKnowledge(0.0, 0.0, 0.0, covariance)
    return PointingKnowledge(moved.east_mas, moved.north_mas, moved.rotation_deg, covariance)


def _relative(
    exposure: ExposureSources, others: Sequence[ExposureSources], settings: _Settings, pairs: _Pairs
) -> Offset:
    """One exposure against what the others have in common."""
    ra, dec, error, _ = common_objects(others)
    answer = measure_solution(
        exposure.ra, exposure.dec, ra, dec, footprint=exposure.footprint, error_mas=exposure.error_mas,
        ref_error_mas=error, magnitude=exposure.mag, largest_error_mas=_LARGEST_ERROR_MAS, **settings,
    )  # fmt: skip
    pairs.add(exposure, "relative", ra, dec, answer)
    near = int(inside(ra, dec, exposure.footprint).sum()) if len(ra) else 0
    return _offset(exposure.dataset, "relative", "other exposures", len(exposure), near, exposure, answer, ra, dec)


def _absolute(exposure: ExposureSources, reference: ReferenceSources, settings: _Settings, pairs: _Pairs) -> Offset:
    """One exposure against the reference."""
    answer = measure_solution(
        exposure.ra, exposure.dec, reference.ra, reference.dec, footprint=exposure.footprint,
        error_mas=np.hypot(exposure.error_mas, exposure.shape_error_mas), ref_error_mas=reference.error_mas,
        magnitude=exposure.mag, largest_error_mas=_LARGEST_ERROR_MAS, harmless_arcsec=_HARMLESS_ARCSEC, **settings,
    )  # fmt: skip
    pairs.add(exposure, "absolute", reference.ra, reference.dec, answer)
    near = int(inside(reference.ra, reference.dec, exposure.footprint).sum())
    return _offset(
        exposure.dataset, "absolute", reference.name, len(exposure), near, exposure, answer, reference.ra, reference.dec
    )


def _association(
    association: str,
    exposures: Sequence[ExposureSources],
    reference: ReferenceSources,
    settings: _Settings,
    prior: PointingKnowledge | None,
) -> Offset:
    """The whole association, each object once, against the reference."""
    ra, dec, error, mag = common_objects(exposures, with_shape=True)
    outline = hull([e.footprint for e in exposures])
    answer = measure_solution(
        ra, dec, reference.ra, reference.dec, footprint=outline, error_mas=error, ref_error_mas=reference.error_mas,
        magnitude=mag, largest_error_mas=_LARGEST_ERROR_MAS, harmless_arcsec=_HARMLESS_ARCSEC, prior=prior,
        **settings,
    )  # fmt: skip
    near = int(inside(reference.ra, reference.dec, outline).sum())
    return _offset(association, "absolute", reference.name, len(ra), near, exposures[0], answer)


def _offset(
    subject: str,
    kind: Kind,
    reference: str,
    n_sources: int,
    n_reference: int,
    exposure: ExposureSources,
    answer: Solution | Refusal,
    ref_ra: np.ndarray | None = None,
    ref_dec: np.ndarray | None = None,
) -> Offset:
    """A solution or refusal as the record that is kept; with the reference's positions also by tile."""
    start = Offset(subject, kind, reference, n_sources, n_reference, exposure.pixel_scale_mas)
    if isinstance(answer, Refusal):
        return replace(start, cause=str(answer.cause), text=answer.text, n=int(answer.numbers.get("n", 0)))
    tiles: tuple[Tile, ...] = ()
    if ref_ra is not None and ref_dec is not None:
        i, j = answer.index, answer.ref_index
        east, north = sky_offsets(exposure.ra[i], exposure.dec[i], ref_ra[j], ref_dec[j])
        per_side = int(np.clip(np.sqrt(answer.n / _FEWEST_PER_TILE), 1, _TILES))
        tiles = tile_residuals(exposure.x[i], exposure.y[i], east, north, exposure.shape, per_side)
    names = (
        "ra", "dec", "n", "dra", "ddec", "err_ra", "err_dec", "corner_err_ra", "corner_err_dec", "scatter_ra",
        "scatter_dec", "median_ra", "median_dec", "rotation_deg", "rotation_err_deg", "rotation_mas", "scale_mas",
        "scale_err_mas", "chance", "contrast", "with_prior",
    )  # fmt: skip
    return replace(start, **{name: getattr(answer, name) for name in names}, tiles=tiles)


def sky_offsets(
    ra: np.ndarray, dec: np.ndarray, ref_ra: np.ndarray, ref_dec: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of positions from others near them, mas to the east and north; deg in; good at the poles."""
    step = unit_vectors(ra, dec) - unit_vectors(ref_ra, ref_dec)
    east, north = east_north(ref_ra, ref_dec)
    return (step * east).sum(axis=-1) / _MAS, (step * north).sum(axis=-1) / _MAS


def on_detector(exposure: ExposureSources, east: np.ndarray, north: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets on the sky (mas) in pixels along the detector's axes, distortion left out."""
    rows, columns = exposure.shape
    pixels = np.array([[-0.5, -0.5], [columns - 0.5, -0.5], [columns - 0.5, rows - 0.5], [-0.5, rows - 0.5]])
    ra, dec = exposure.footprint.T
    sky = np.column_stack(project(ra, dec, *exposure.centre)) / _MAS
    to_pixels, *_ = np.linalg.lstsq(sky - sky.mean(axis=0), pixels - pixels.mean(axis=0), rcond=None)
    dx, dy = (np.column_stack([east, north]) @ to_pixels).T
    return dx, dy


class _Pairs:
    """Gathers matched pairs, and where nothing matched the near ones, for people to look at."""

    def __init__(self, pointings: Mapping[str, Pointing | None]) -> None:
        self.pointings = pointings
        self.rows: list[dict[str, np.ndarray]] = []

    def add(
        self, exposure: ExposureSources, kind: Kind, ra: np.ndarray, dec: np.ndarray, answer: Solution | Refusal
    ) -> None:
        """Pairs of an exposure's sources with reference positions (deg)."""
        if isinstance(answer, Solution):
            i, j = answer.index, answer.ref_index
        else:
            i, j = _near(exposure, ra, dec)
        east, north = sky_offsets(exposure.ra[i], exposure.dec[i], ra[j], dec[j])
        moved_east, moved_north = self._moved(exposure, i)
        dx, dy = on_detector(exposure, east, north)
        size = len(i)
        self.rows.append(
            {
                "dataset": np.full(size, exposure.dataset),
                "kind": np.full(size, kind),
                "x": exposure.x[i],
                "y": exposure.y[i],
                "mag": exposure.mag[i],
                "dra": east,
                "ddec": north,
                "dx": dx,
                "dy": dy,
                "before_dra": east - moved_east,
                "before_ddec": north - moved_north,
                "used": np.full(size, isinstance(answer, Solution)),
            }
        )

    def _moved(self, exposure: ExposureSources, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far the alignment moved sources, mas to the east and north; NaN where nobody knows."""
        pointing = self.pointings.get(exposure.dataset)
        if pointing is None:
            unknown = np.full(len(rows), np.nan)
            return unknown, unknown
        xi, eta = project(exposure.ra[rows], exposure.dec[rows], pointing.ra, pointing.dec)
        roll = np.radians(pointing.roll_deg)
        east, north = pointing.shift_mas
        return east + roll * eta / _MAS, north - roll * xi / _MAS

    def table(self) -> Table:
        """All pairs, rounded to what can be seen."""
        from astropy.table import Table

        digits = dict.fromkeys(("x", "y", "dra", "ddec", "before_dra", "before_ddec"), 2) | {"mag": 3, "dx": 4, "dy": 4}
        columns = {
            name: np.concatenate([r[name] for r in self.rows])
            if self.rows
            else np.empty(0, np.dtype(_EMPTY.get(name, float)))
            for name in _COLUMNS
        }
        return Table({name: np.round(v, digits[name]) if name in digits else v for name, v in columns.items()})


def no_pairs() -> Table:
    """The table of pairs without any."""
    return _Pairs({}).table()


def _near(exposure: ExposureSources, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each other's nearest neighbours, for a picture of what did not match."""
    from scipy.spatial import cKDTree

    nothing = np.empty(0, int)
    if not len(exposure) or not len(ra):
        return nothing, nothing
    own, other = unit_vectors(exposure.ra, exposure.dec), unit_vectors(ra, dec)
    distance, nearest = cKDTree(other).query(own, distance_upper_bound=_SHOWN_PAIRS_ARCSEC * _ARCSEC)
    i = np.flatnonzero(np.isfinite(distance))
    return i, nearest[i]
