"""What the check of a mosaic's astrometry measures: against the sky, against our own reference, and against itself.

Put here which offsets are measured and how they stand to their limits. Keep out the matching (``alignment_offsets``)
and the verdict on the field (the check).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from panoramic.alignment_offsets import NotMeasurable, OffsetMeasurement, measure_offset
from panoramic.footprints import mean_position, project
from panoramic.mosaic.grid import Channel, polygon_vertices

if TYPE_CHECKING:
    from astropy.table import Table
    from shapely import Polygon

    from panoramic.reduction.base import ReferenceSources
    from panoramic.survey import Limits

Kind = Literal["external_whole", "external_association", "own_association", "overlap"]

SEARCH_RADIUS_ARCSEC = 1.5
_MINIMUM_SNR = 10.0
_MOSTLY_ALONE = 0.5
_SMALLEST_OVERLAP_ARCSEC2 = 25.0


@dataclass(frozen=True)
class AssociationArea:
    """An association of the mosaic.

    Parameters
    ----------
    name, channel : of the association.
    footprint : S_REGION-like string or (N, 2) deg.
    is_reference : our own reference was made from it, so it can't be held against it.
    catalog : its own catalogue (``ra``, ``dec`` in deg); needed for overlaps.
    """

    name: str
    channel: Channel
    footprint: str | np.ndarray
    is_reference: bool = False
    catalog: Table | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class AstrometryMeasurement:
    """One offset of a mosaic (mas; catalogue minus reference, for an overlap first minus second association).

    ``scatter`` is of one pair, the mean of both axes. ``passed`` is None where nothing could be measured; then
    ``reason`` says why and the numbers are None. A measurement fails when its offset on an axis, less three of its own
    errors, exceeds ``limit``; ``near`` when it passes but exceeds the limit that draws attention.
    """

    kind: Kind
    name: str
    n: int
    dra: float | None
    ddec: float | None
    err_ra: float | None
    err_dec: float | None
    scatter: float | None
    limit: float
    near: bool
    passed: bool | None
    reason: str


def mosaic_astrometry(
    catalog: Table,
    external: ReferenceSources | None,
    own: ReferenceSources | None,
    associations: Sequence[AssociationArea],
    limits: Limits,
    *,
    search_radius_arcsec: float = SEARCH_RADIUS_ARCSEC,
) -> list[AstrometryMeasurement]:
    """Measure a mosaic's astrometry.

    External: the whole mosaic, and the area of each long-wave association. Our own reference: the area of each
    short-wave association that the reference was not made from. Overlaps: the associations' own catalogues, pair by
    pair. What an association's area is measured with is the mosaic's catalogue where the association lies mostly alone,
    else the association's own: in the mosaic a displaced association hides among its neighbours' sources.

    Parameters
    ----------
    catalog : sources of the mosaic (``detection.detect``): ``ra``, ``dec``, ``snr``.
    external, own : references; None where there is none.
    associations : that went into the mosaic.
    limits : of the survey file.
    """
    found: list[AstrometryMeasurement] = []
    positions = _positions(catalog)
    if external is not None:
        outcome = _measure(positions, external, search_radius_arcsec)
        found.append(
            _judge("external_whole", external.name, outcome, limits.mosaic_external_n, limits.mosaic_external_mas)
        )
    if not associations:
        return found
    plane = _Plane([polygon_vertices(one.footprint) for one in associations])
    for k, one in enumerate(associations):
        samples = list(_samples(k, associations, positions, plane))
        if (one.channel == "long" or one.is_reference) and external is not None:
            outcome = _first_measured(samples, external, limits.mosaic_association_n, search_radius_arcsec)
            found.append(
                _judge(
                    "external_association",
                    one.name,
                    outcome,
                    limits.mosaic_association_n,
                    limits.mosaic_association_mas,
                )
            )
        # the reference's own associations are its source; every other one is held against it
        if own is not None and not one.is_reference:
            outcome = _first_measured(samples, own, limits.mosaic_own_n, search_radius_arcsec)
            found.append(
                _judge(
                    "own_association",
                    one.name,
                    outcome,
                    limits.mosaic_own_n,
                    limits.mosaic_own_mas,
                    limits.mosaic_own_near_mas,
                )
            )
    for i, one in enumerate(associations):
        for j in range(i + 1, len(associations)):
            common = plane.polygons[i].intersection(plane.polygons[j])
            if common.area < _SMALLEST_OVERLAP_ARCSEC2:
                continue
            outcome = _overlap(one, associations[j], common, plane, search_radius_arcsec)
            name = f"{one.name} + {associations[j].name}"
            found.append(
                _judge("overlap", name, outcome, limits.mosaic_own_n, limits.mosaic_own_mas, limits.mosaic_own_near_mas)
            )
    return found


class _Plane:
    """Footprints as polygons on one tangent plane, arcsec."""

    def __init__(self, footprints: Sequence[np.ndarray]) -> None:
        from shapely.geometry import Polygon

        self._ra0, self._dec0 = mean_position(np.concatenate(footprints))
        self.polygons: list[Polygon] = [Polygon(np.column_stack(self.xy(*f.T))).buffer(0) for f in footprints]

    def xy(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Arcsec to the east and to the north; NaN on the far side."""
        xi, eta = project(ra, dec, self._ra0, self._dec0)
        return np.degrees(xi) * 3600, np.degrees(eta) * 3600

    def inside(self, polygon: Polygon, positions: np.ndarray) -> np.ndarray:
        """Positions (N, 2) that lie in a polygon."""
        import shapely

        return positions[shapely.contains_xy(polygon, *self.xy(*positions.T))]


def _positions(table: Table | None) -> np.ndarray:
    """Positions (N, 2) of the sources that are bright enough to be placed; all where no S/N is known."""
    if table is None or len(table) == 0:
        return np.empty((0, 2))
    ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
    good = np.isfinite(ra) & np.isfinite(dec)
    if "snr" in table.colnames:
        good &= np.asarray(table["snr"], float) >= _MINIMUM_SNR
    elif {"flux", "flux_error"} <= set(table.colnames):
        with np.errstate(invalid="ignore", divide="ignore"):
            good &= np.asarray(table["flux"], float) >= _MINIMUM_SNR * np.asarray(table["flux_error"], float)
    return np.column_stack([ra[good], dec[good]])


def _samples(
    k: int, associations: Sequence[AssociationArea], positions: np.ndarray, plane: _Plane
) -> Iterable[tuple[str, np.ndarray]]:
    """What an association's area can be measured with, best first: (what it is, positions)."""
    import shapely

    polygon = plane.polygons[k]
    others = shapely.union_all([p for i, p in enumerate(plane.polygons) if i != k])
    alone = polygon.difference(others)
    mine = _positions(associations[k].catalog)
    if polygon.area > 0 and alone.area >= _MOSTLY_ALONE * polygon.area:
        yield "the mosaic where it lies alone", plane.inside(alone, positions)
    if len(mine):
        yield "its own catalogue", mine
    yield "the mosaic", plane.inside(polygon, positions)


def _first_measured(
    samples: Sequence[tuple[str, np.ndarray]], reference: ReferenceSources, minimum: int, radius: float
) -> tuple[OffsetMeasurement | NotMeasurable, str]:
    """The first sample with enough matches; if none has, what the first came to."""
    outcomes = []
    for what, positions in samples:
        outcome, _ = _measure(positions, reference, radius)
        outcomes.append((outcome, what))
        if isinstance(outcome, OffsetMeasurement) and outcome.n >= minimum:
            return outcomes[-1]
    return outcomes[0]


def _measure(
    positions: np.ndarray, reference: ReferenceSources, radius: float
) -> tuple[OffsetMeasurement | NotMeasurable, str]:
    """Offset of positions (N, 2) from a reference."""
    outcome = measure_offset(
        positions[:, 0], positions[:, 1], reference.ra, reference.dec,
        search_radius_arcsec=radius, ref_error_mas=reference.error_mas,
    )  # fmt: skip
    return outcome, "the mosaic"


def _overlap(
    one: AssociationArea, two: AssociationArea, common: Polygon, plane: _Plane, radius: float
) -> tuple[OffsetMeasurement | NotMeasurable, str]:
    """Offset between two associations' catalogues in their overlap; a margin lets displaced sources still meet."""
    a, b = (plane.inside(common.buffer(radius), _positions(each.catalog)) for each in (one, two))
    if len(a) == 0 or len(b) == 0:
        return NotMeasurable("an association of the overlap has no catalogue, or no source in it"), "catalogues"
    return measure_offset(a[:, 0], a[:, 1], b[:, 0], b[:, 1], search_radius_arcsec=radius), "catalogues"


def _judge(
    kind: Kind,
    name: str,
    outcome: tuple[OffsetMeasurement | NotMeasurable, str],
    minimum: int,
    limit: float,
    near: float | None = None,
) -> AstrometryMeasurement:
    """Hold a measurement against its limit."""
    offset, what = outcome
    if isinstance(offset, NotMeasurable):
        return AstrometryMeasurement(
            kind, name, offset.n, None, None, None, None, None, limit, False, None, offset.reason
        )
    scatter = float(np.hypot(offset.scatter_ra, offset.scatter_dec) / np.sqrt(2))
    numbers = (offset.dra, offset.ddec, offset.err_ra, offset.err_dec, scatter)
    if offset.n < minimum:
        reason = f"{offset.n} matched sources; {minimum} are needed"
        return AstrometryMeasurement(kind, name, offset.n, *numbers, limit, False, None, reason)
    excess = max(abs(offset.dra) - 3 * offset.err_ra, abs(offset.ddec) - 3 * offset.err_dec)
    passed = bool(excess <= limit)
    close = passed and near is not None and excess > near
    text = f"{offset.dra:+.1f}, {offset.ddec:+.1f} mas (errors {offset.err_ra:.1f}, {offset.err_dec:.1f})"
    text += f" from {offset.n} sources of {what}"
    if not passed:
        text += f": {excess:.1f} mas beyond 3 errors, limit {limit:g}; look at this area's alignment"
    return AstrometryMeasurement(kind, name, offset.n, *numbers, limit, close, passed, text)
