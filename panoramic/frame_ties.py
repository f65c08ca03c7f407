"""The ties of a field: what overlapping associations have in common, measured, as weighted pairs.

Put here the solution's input and the making of its observations. Keep out the equations (`panoramic.frame_network`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from panoramic.alignment_solution import Refusal, Solution, measure_solution
from panoramic.errors import InputError
from panoramic.footprints import FootprintSet, connected, inside, mean_position, positions_of, unit_vectors
from panoramic.frame_external import ExternalSet
from panoramic.frame_network import Array, Pairs, vector_axes
from panoramic.frame_solution import RefusedTie

# positions are never better than this, whatever few sources seem to say
_FLOOR_MAS = 0.2


@dataclass(frozen=True)
class FrameRules:
    """Limits of the solution.

    Parameters
    ----------
    search_radius_arcsec, largest_rotation_deg : how far two overlapping associations may lie apart.
    minimum_matches, maximum_chance : of a tie, as `measure_solution` takes them.
    largest_scatter_mas, largest_error_mas : of a tie: scatter of a pair, and error of the shift.
    minimum_external : fewer distinct external sources that agree are no anchor for a component.
    contradiction_sigma, contradiction_mas : what contradicts all others by more than both is taken out.
    prior_mas, prior_rotation_deg : standard deviation of a correction before anything is measured. So weak that it
        only matters where nothing else tells; without external sources it makes the mean correction zero.
    """

    search_radius_arcsec: float = 1.0
    largest_rotation_deg: float = 0.1
    minimum_matches: int = 5
    maximum_chance: float = 1e-3
    largest_scatter_mas: float = 60.0
    largest_error_mas: float = 10.0
    minimum_external: int = 5
    contradiction_sigma: float = 4.0
    contradiction_mas: float = 5.0
    prior_mas: float = 3000.0
    prior_rotation_deg: float = 0.3


@dataclass(frozen=True)
class ExternalMatches:
    """An association's matches with the external reference.

    Parameters
    ----------
    ra, dec : of the association's sources, deg, (N,).
    ref_ra, ref_dec : of the reference, deg, (N,).
    ref_error_mas : standard deviation per axis, (N,); NaN or None: unknown, the scatter tells.
    error_mas : the same of the sources.
    """

    ra: np.ndarray
    dec: np.ndarray
    ref_ra: np.ndarray
    ref_dec: np.ndarray
    ref_error_mas: np.ndarray | None = None
    error_mas: np.ndarray | None = None


@dataclass(frozen=True)
class FrameAssociation:
    """What the solution is given of an association.

    Parameters
    ----------
    name : of the association.
    ra, dec : of its selected sources, deg, (N,).
    footprint : (K, 2) RA and Dec of its corners, deg.
    error_mas : standard deviation per axis of each position, (N,); NaN or None: unknown, the ties' scatter tells.
    mag : (N,); only says which sources are searched with where there are very many.
    external : None where there are no matches.
    """

    name: str
    ra: np.ndarray
    dec: np.ndarray
    footprint: np.ndarray
    error_mas: np.ndarray | None = None
    mag: np.ndarray | None = None
    external: ExternalMatches | None = None


@dataclass(frozen=True)
class Member:
    """An association in a fixed order of its rows, known by its number.

    ``centre`` is the middle of its footprint (deg), ``vectors`` are (N, 3), ``variance`` is (N,), mas^2, NaN where
    unknown.
    """

    source: FrameAssociation
    centre: tuple[float, float]
    vectors: Array
    variance: Array
    external: ExternalSet | None


@dataclass(frozen=True)
class Match:
    """A measured tie: numbers of two associations, the matched rows of each, and the measurement."""

    first: int
    second: int
    i: np.ndarray
    j: np.ndarray
    solution: Solution


def prepared(number: int, given: FrameAssociation) -> Member:
    """An association with its usable rows only, in the order of their positions.

    Raises
    ------
    InputError
        Columns of unlike lengths, a negative error, a footprint that is none.
    """
    footprint = np.asarray(given.footprint, float)
    if footprint.ndim != 2 or footprint.shape[1:] != (2,) or len(footprint) < 3 or not np.isfinite(footprint).all():
        raise InputError(f"{given.name}: a footprint has three corners or more, each RA and Dec in deg")
    own = _columns(
        given.name, {"ra": given.ra, "dec": given.dec, "mag": given.mag, "error_mas": given.error_mas}, positions=2
    )
    source = dataclasses.replace(
        given, ra=own["ra"], dec=own["dec"], mag=own["mag"], error_mas=own["error_mas"], footprint=footprint
    )
    external = None
    if given.external is not None:
        wanted = ("ra", "dec", "ref_ra", "ref_dec", "ref_error_mas", "error_mas")
        out = _columns(
            f"{given.name}, external matches", {key: getattr(given.external, key) for key in wanted}, positions=4
        )
        variance = np.nan_to_num(out["ref_error_mas"]) ** 2 + np.nan_to_num(out["error_mas"]) ** 2
        p, q = unit_vectors(out["ra"], out["dec"]), unit_vectors(out["ref_ra"], out["ref_dec"])
        external = ExternalSet(number, p, q, variance)
    vectors, variance = unit_vectors(own["ra"], own["dec"]), own["error_mas"] ** 2
    return Member(source, mean_position(footprint), vectors, variance, external)


def _columns(what: str, given: Mapping[str, np.ndarray | None], positions: int) -> dict[str, Array]:
    """Columns as floats, rows without a position left out, sorted; None becomes NaN. Positions come first."""
    length = len(np.atleast_1d(np.asarray(next(iter(given.values())), float)))
    columns = {
        key: np.full(length, np.nan) if value is None else np.atleast_1d(np.asarray(value, float))
        for key, value in given.items()
    }
    unlike = {key: len(value) for key, value in columns.items() if value.shape != (length,)}
    if unlike:
        raise InputError(f"{what}: columns of unlike lengths: {length} and {unlike}")
    for key, value in columns.items():
        if key.endswith("error_mas") and (value < 0).any():
            raise InputError(f"{what}: {key} is negative; leave it NaN where it isn't known")
    places = list(columns.values())[:positions]
    rows = np.flatnonzero(np.isfinite(places).all(axis=0))
    order = rows[np.lexsort([value[rows] for value in reversed(columns.values())])]
    return {key: value[order] for key, value in columns.items()}


def measure_ties(members: Sequence[Member], rules: FrameRules) -> tuple[list[Match], list[RefusedTie]]:
    """Every two associations that overlap: their tie, or the cause why it can't be measured."""
    outlines = FootprintSet([m.source.footprint for m in members])
    first, second = np.triu_indices(len(members), 1)
    overlap = outlines.edge_distances_arcmin(first, outlines, second) == 0 if len(first) else np.zeros(0, bool)
    matches, refused = [], []
    for a, b in zip(first[overlap].tolist(), second[overlap].tolist(), strict=True):
        one, other = members[a], members[b]
        rows, other_rows = _common(one, other, rules), _common(other, one, rules)
        found = measure_solution(
            one.source.ra[rows],
            one.source.dec[rows],
            other.source.ra[other_rows],
            other.source.dec[other_rows],
            search_radius_arcsec=rules.search_radius_arcsec,
            largest_rotation_deg=rules.largest_rotation_deg,
            error_mas=np.sqrt(one.variance[rows]),
            ref_error_mas=np.sqrt(other.variance[other_rows]),
            magnitude=one.source.mag[rows] if one.source.mag is not None else None,
            minimum_matches=rules.minimum_matches,
            maximum_chance=rules.maximum_chance,
            maximum_chance_early=rules.maximum_chance / 10,
            largest_scatter_mas=rules.largest_scatter_mas,
            largest_error_mas=rules.largest_error_mas,
        )
        if isinstance(found, Refusal):
            refused.append(RefusedTie(one.source.name, other.source.name, str(found.cause), found.text))
        else:
            matches.append(Match(a, b, rows[found.index], other_rows[found.ref_index], found))
    return matches, refused


def _common(one: Member, other: Member, rules: FrameRules) -> np.ndarray:
    """Rows of one association that may lie in the other."""
    return np.flatnonzero(inside(one.source.ra, one.source.dec, other.source.footprint, rules.search_radius_arcsec))


def weighted_pairs(members: Sequence[Member], matches: Sequence[Match]) -> list[Pairs]:
    """The ties' pairs with weights that count each source's error once, however many associations see it."""
    starts = np.cumsum([0, *(len(m.vectors) for m in members)])
    variance = _row_variances(members, matches)
    weight = 1 / np.concatenate([*variance, np.zeros(0)])
    links = [np.column_stack([starts[m.first] + m.i, starts[m.second] + m.j]) for m in matches]
    if not links:
        return []
    objects = connected(np.concatenate(links), len(weight))
    seen = np.bincount(objects, weights=weight)[objects]
    pairs = []
    for match, link in zip(matches, links, strict=True):
        p, q = members[match.first].vectors[match.i], members[match.second].vectors[match.j]
        together = weight[link[:, 0]] * weight[link[:, 1]] / seen[link[:, 0]]
        axes = vector_axes(*positions_of((p + q).sum(axis=0)))
        pairs.append(Pairs(match.first, match.second, p, q, together, axes))
    return pairs


def _row_variances(members: Sequence[Member], matches: Sequence[Match]) -> list[Array]:
    """Variance of each row per axis, mas^2: what is stated, and what the association's ties scatter beyond it."""
    stated = []
    for member in members:
        known = member.variance[np.isfinite(member.variance)]
        stated.append(np.nan_to_num(member.variance, nan=float(np.median(known)) if known.size else 0.0))
    beyond, count = np.zeros(len(members)), np.zeros(len(members))
    for m in matches:
        seen = (m.solution.scatter_ra**2 + m.solution.scatter_dec**2) / 2
        excess = (seen - float(np.median(stated[m.first][m.i] + stated[m.second][m.j]))) / 2
        for end in (m.first, m.second):
            beyond[end] += m.solution.n * excess
            count[end] += m.solution.n
    extra = np.maximum(beyond / np.maximum(count, 1), 0.0)
    return [np.maximum(s + e, _FLOOR_MAS**2) for s, e in zip(stated, extra, strict=True)]
