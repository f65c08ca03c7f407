"""The offset between two catalogues of the same sky, or the statement that it can't be measured.

Put here the pure measurement, on positions alone. Keep out limits of checks and where catalogues come from.

All pairs within the search radius are points in the plane of offsets. True pairs pile up at one point, chance pairs
fill the plane. A pile counts sources, not pairs (each source and each reference once), and is believed only if chance
would hardly ever make such a pile anywhere in the plane, if it stands well over the next one, and if enough sources are
in it. Then the offset is refined on mutual nearest neighbours, as a Gaussian on a uniform background of false pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

_SCALES_MAS = (30.0, 80.0, 200.0)
_MERGE_MAS = 50.0
_EARLY_MATCHES = 12
_MOST_PAIRS = 3_000_000
_ROUNDS = 60
_FEWEST = 5
_ARCSEC = math.degrees(1) * 3600
# what a scatter can be at least: positions are never better than this
_FLOOR_MAS = 0.2


@dataclass(frozen=True)
class OffsetMeasurement:
    """Catalogue minus reference.

    Parameters
    ----------
    dra, ddec : mas, positive where the catalogue lies to the east (a great circle's angle) and to the north.
    err_ra, err_dec : standard error of the two, mas.
    scatter_ra, scatter_dec : standard deviation of one pair about the offset, mas.
    n : matched sources, each source and each reference once.
    chance : expected number of piles as high as this one, anywhere within the search radius, if nothing matched.
    contrast : height of the pile over that of the next one.
    index, ref_index : rows of the given catalogues that were matched; not part of comparisons.
    """

    dra: float
    ddec: float
    err_ra: float
    err_dec: float
    scatter_ra: float
    scatter_dec: float
    n: int
    chance: float
    contrast: float
    index: np.ndarray = field(compare=False, repr=False, default_factory=lambda: np.empty(0, int))
    ref_index: np.ndarray = field(compare=False, repr=False, default_factory=lambda: np.empty(0, int))


@dataclass(frozen=True)
class NotMeasurable:
    """Why no offset is given; ``n`` is how many sources the best pile had, ``chance`` and ``contrast`` where known."""

    reason: str
    n: int = 0
    chance: float = math.nan
    contrast: float = math.nan


@dataclass(frozen=True)
class _Pile:
    """The best pile: place (arcsec), radius (arcsec), members, chance expectation, contrast."""

    x: float
    y: float
    radius: float
    n: int
    chance: float
    contrast: float


def measure_offset(
    ra: np.ndarray,
    dec: np.ndarray,
    ref_ra: np.ndarray,
    ref_dec: np.ndarray,
    *,
    search_radius_arcsec: float = 3.0,
    error_mas: np.ndarray | None = None,
    ref_error_mas: np.ndarray | None = None,
    minimum_matches: int = 8,
    maximum_chance: float = 1e-3,
    maximum_chance_early: float = 1e-4,
    minimum_contrast: float = 1.5,
) -> OffsetMeasurement | NotMeasurable:
    """Measure how far a catalogue lies from a reference.

    Parameters
    ----------
    ra, dec : of the catalogue, deg, shape (N,).
    ref_ra, ref_dec : of the reference, deg, shape (M,); rows closer than 50 mas to each other count as one.
    search_radius_arcsec : largest offset that is looked for.
    error_mas, ref_error_mas : standard deviation per axis of each position, shape (N,), (M,), relative weights of the
        refinement; NaN or None: unknown. The errors of the result come from the scatter, never from these.
    minimum_matches : fewer matched sources are not measurable.
    maximum_chance, maximum_chance_early : greatest expected number of chance piles, from and below 12 matches.
    minimum_contrast : smallest ratio of the best pile's height to the next one's.
    """
    ra, dec, ref_ra, ref_dec = (np.atleast_1d(np.asarray(v, float)) for v in (ra, dec, ref_ra, ref_dec))
    rows, ref_rows = (np.flatnonzero(np.isfinite(a) & np.isfinite(d)) for a, d in ((ra, dec), (ref_ra, ref_dec)))
    if min(rows.size, ref_rows.size) < minimum_matches:
        return NotMeasurable(
            f"only {rows.size} sources and {ref_rows.size} reference sources; {minimum_matches} are needed"
        )
    centre = catalogue_centre(ra[rows], dec[rows])
    source, reference = (
        plane_positions(ra[rows], dec[rows], centre),
        plane_positions(ref_ra[ref_rows], ref_dec[ref_rows], centre),
    )
    near = np.isfinite(reference).all(axis=1)
    reference, ref_rows = reference[near], ref_rows[near]
    reach = search_radius_arcsec + 1.0
    inside = ((reference > source.min(axis=0) - reach) & (reference < source.max(axis=0) + reach)).all(axis=1)
    reference, ref_rows = reference[inside], ref_rows[inside]
    # several rows of one object would be counted as so many witnesses
    single, ref_single = _distinct(source), _distinct(reference)
    source, rows, reference, ref_rows = source[single], rows[single], reference[ref_single], ref_rows[ref_single]
    if min(len(source), len(reference)) < minimum_matches:
        return NotMeasurable(
            f"only {len(source)} distinct sources and {len(reference)} distinct reference sources in the same area; "
            f"{minimum_matches} are needed"
        )
    pile = _best_pile(source, reference, search_radius_arcsec)
    if pile is None:
        return NotMeasurable(f"no pair of sources within {search_radius_arcsec:g} arcsec")
    weights = known_variances(error_mas, rows), known_variances(ref_error_mas, ref_rows)
    fit = _refine(source, reference, pile, weights)
    if fit is None or fit[4].size < minimum_matches:
        n = 0 if fit is None else fit[4].size
        return NotMeasurable(
            f"only {n} sources agree on one offset; {minimum_matches} are needed", n, pile.chance, pile.contrast
        )
    offset, error, scatter, _, i, j = fit
    limit = maximum_chance if min(pile.n, i.size) >= _EARLY_MATCHES else maximum_chance_early
    if pile.chance > limit:
        return NotMeasurable(
            f"{pile.n} sources agree, but chance makes {pile.chance:.2g} such agreements (limit {limit:g})",
            pile.n, pile.chance, pile.contrast,
        )  # fmt: skip
    if pile.contrast < minimum_contrast:
        return NotMeasurable(
            f"the best offset has only {pile.contrast:.2f} times the support of the next (limit {minimum_contrast:g})",
            pile.n, pile.chance, pile.contrast,
        )  # fmt: skip
    if np.hypot(*offset) > search_radius_arcsec + 3 * np.hypot(*error):
        return NotMeasurable("the best offset lies beyond the search radius", pile.n, pile.chance, pile.contrast)
    mas = [float(1000 * value) for value in (*offset, *error, *scatter)]
    return OffsetMeasurement(
        mas[0], mas[1], mas[2], mas[3], mas[4], mas[5], int(i.size), pile.chance, pile.contrast, rows[i], ref_rows[j]
    )


def catalogue_centre(ra: np.ndarray, dec: np.ndarray) -> tuple[float, float]:
    """Mean direction, deg; good at the poles and across RA 0."""
    a, d = np.radians(ra), np.radians(dec)
    x, y, z = (np.cos(d) * np.cos(a)).mean(), (np.cos(d) * np.sin(a)).mean(), np.sin(d).mean()
    return math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))


def plane_positions(ra: np.ndarray, dec: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """Tangent plane positions, arcsec to the east and north, (N, 2); NaN on the far side of the sphere."""
    a, d, d0 = np.radians(ra - centre[0]), np.radians(dec), math.radians(centre[1])
    depth = math.sin(d0) * np.sin(d) + math.cos(d0) * np.cos(d) * np.cos(a)
    depth = np.where(depth > 0.1, depth, np.nan)
    x, y = np.cos(d) * np.sin(a), math.cos(d0) * np.sin(d) - math.sin(d0) * np.cos(d) * np.cos(a)
    return np.column_stack([x / depth, y / depth]) * _ARCSEC


def _distinct(points: np.ndarray) -> np.ndarray:
    """Rows that stand for each group of points closer than 50 mas, ascending; the first of a group stands for it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if len(points) == 0:
        return np.empty(0, int)
    pairs = cKDTree(points).query_pairs(_MERGE_MAS / 1000, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(points),) * 2)
    return np.unique(connected_components(links, directed=False)[1], return_index=True)[1]


def _best_pile(source: np.ndarray, reference: np.ndarray, radius: float) -> _Pile | None:
    """The pile that chance explains least, over all scales."""
    i, j = close_pairs(source, reference, radius + 3 * _SCALES_MAS[-1] / 1000)
    if i.size == 0:
        return None
    offsets = source[i] - reference[j]
    best: _Pile | None = None
    for scale in _SCALES_MAS:
        pile = _pile_at(offsets, i, j, scale / 1000, radius)
        if pile is not None and (best is None or (pile.chance, -pile.contrast) < (best.chance, -best.contrast)):
            best = pile
    return best


def close_pairs(
    source: np.ndarray, reference: np.ndarray, reach: float, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs closer than ``reach`` (arcsec), as rows of both.

    Where there are too many, those of a regular part of the sources, or with ``most`` about as many, of the first ones.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(reference)
    count = cKDTree(source).count_neighbors(tree, reach)
    if most is None:
        chosen = np.arange(0, len(source), max(1, math.ceil(count / _MOST_PAIRS)))
    else:
        chosen = np.arange(min(len(source), math.ceil(len(source) * most / max(count, 1))))
    lists = tree.query_ball_point(source[chosen], reach)
    lengths = np.array([len(one) for one in lists])
    j = np.concatenate([np.asarray(one, int) for one in lists]) if lengths.sum() else np.empty(0, int)
    return np.repeat(chosen, lengths), j


def _pile_at(offsets: np.ndarray, i: np.ndarray, j: np.ndarray, r: float, radius: float) -> _Pile | None:
    """The highest pile of radius ``r`` (arcsec) with its centre within ``radius``, and how chance would do."""
    from scipy.ndimage import convolve
    from scipy.special import gammainc

    cell = r / 2
    half = math.ceil((radius + 2.5 * r) / cell)
    side = 2 * half + 1
    cells = np.floor(offsets / cell + 0.5).astype(int) + half
    cells = cells[((cells >= 0) & (cells < side)).all(axis=1)]
    counts = np.bincount(cells[:, 0] * side + cells[:, 1], minlength=side**2).reshape(side, side).astype(float)
    k = np.arange(-3, 4) * 0.5
    disc = (np.hypot(*np.meshgrid(k, k)) <= 1.01).astype(float)
    piles = convolve(counts, disc, mode="constant")
    nodes = np.arange(-half, half + 1) * cell
    allowed = np.hypot(*np.meshgrid(nodes, nodes, indexing="ij")) <= radius + cell
    piles = np.where(allowed, piles, 0)
    a, b = np.unravel_index(int(np.argmax(piles)), piles.shape)
    x, y = nodes[a], nodes[b]
    for _ in range(5):
        inside = np.hypot(offsets[:, 0] - x, offsets[:, 1] - y) <= r
        if not inside.any():
            return None
        x, y = offsets[inside].mean(axis=0)
    n = _members(offsets, i, j, x, y, r)
    far = np.hypot(*np.meshgrid(nodes - x, nodes - y, indexing="ij")) > 4 * r
    other = np.where(far, piles, 0)
    c, d = np.unravel_index(int(np.argmax(other)), other.shape)
    rival = _members(offsets, i, j, nodes[c], nodes[d], r) if other[c, d] > 0 else 0
    # chance is denser where catalogues are clustered alike: take the denser of the surroundings and of all
    distance = np.hypot(offsets[:, 0] - x, offsets[:, 1] - y)
    inner, outer = 4 * r, max(8 * r, 1.0)
    ring = np.count_nonzero((distance > inner) & (distance <= outer)) / (math.pi * (outer**2 - inner**2))
    outside = np.count_nonzero((distance > inner) & (np.hypot(*offsets.T) <= radius))
    whole = outside / max(math.pi * (radius**2 - inner**2), math.pi * radius**2 / 4)
    expected = max(ring, whole, 1 / (math.pi * radius**2)) * math.pi * r**2
    # every node and scale is a trial; neighbouring ones are hardly independent, which errs on the safe side
    trials = np.count_nonzero(allowed) * len(_SCALES_MAS)
    chance = float(min(trials * gammainc(n, expected), 1e9))
    return _Pile(float(x), float(y), r, n, chance, n / max(rival, 1))


def _members(offsets: np.ndarray, i: np.ndarray, j: np.ndarray, x: float, y: float, r: float) -> int:
    """Sources in a pile when each source and each reference may count once."""
    inside = np.hypot(offsets[:, 0] - x, offsets[:, 1] - y) <= r
    return min(np.unique(i[inside]).size, np.unique(j[inside]).size)


def known_variances(error_mas: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Variance of each row's position, arcsec^2; where unknown (not finite, not positive) the median of the known.

    All are 0 where none is known.
    """
    if error_mas is None:
        return np.zeros(rows.size)
    error = np.asarray(error_mas, float)[rows] / 1000
    known = np.isfinite(error) & (error > 0)
    if not known.any():
        return np.zeros(rows.size)
    # a row without an error is no better than the others
    return np.where(known, error, np.median(error[known])) ** 2


def _refine(
    source: np.ndarray, reference: np.ndarray, pile: _Pile, variances: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Offset, its errors and the scatter per axis (arcsec), probabilities, rows matched of both; None if it fails.

    Expectation maximisation: a Gaussian about the offset, with each pair's own variance on top where it is known, and a
    uniform density of false pairs over the disc in which pairs are taken.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(reference)
    centre = np.array([pile.x, pile.y])
    width = np.full(2, pile.radius)
    promised = math.sqrt(float(np.median(variances[0]) + np.median(variances[1])))
    previous = np.full(2, np.inf)
    for _ in range(_ROUNDS):
        reach = float(np.clip(6 * np.hypot(width.max(), promised), 0.01, 3 * pile.radius))
        i, j = mutual_pairs(source - centre, reference, tree, reach)
        if i.size < _FEWEST:
            return None
        d = source[i] - reference[j]
        own = variances[0][i] + variances[1][j]
        centre, width, truth = _mixture(d, own, centre, width, reach)
        if not np.isfinite(centre).all() or np.hypot(*(centre - (pile.x, pile.y))) > 3 * pile.radius:
            return None
        if np.abs(centre - previous).max() < 1e-6:
            break
        previous = centre
    believed = truth > 0.5
    n = int(believed.sum())
    if n < _FEWEST:
        return None
    share = truth[:, None] / (width**2 + own[:, None])
    total = share.sum(axis=0)
    # the scatter that is seen, not the one that was promised, makes the error; few sources know it badly (Student)
    error = np.sqrt((share**2 * (d - centre) ** 2).sum(axis=0)) / total * math.sqrt(n / (n - 3))
    scatter = np.sqrt((truth[:, None] * (d - centre) ** 2).sum(axis=0) / truth.sum() * n / (n - 1))
    error = np.maximum(error, _FLOOR_MAS / 1000 / math.sqrt(n))
    return centre, error, scatter, truth[believed], i[believed], j[believed]


def mutual_pairs(
    shifted: np.ndarray, reference: np.ndarray, tree: object, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are each other's nearest, closer than ``reach``."""
    from scipy.spatial import cKDTree

    distance, nearest = tree.query(shifted, distance_upper_bound=reach)  # type: ignore[attr-defined]
    _, back = cKDTree(shifted).query(reference, distance_upper_bound=reach)
    found = np.flatnonzero(np.isfinite(distance))
    mutual = found[back[nearest[found]] == found]
    return mutual, nearest[mutual]


def _mixture(
    d: np.ndarray, own: np.ndarray, centre: np.ndarray, width: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One fit of Gaussian plus uniform to offsets (N, 2) in a disc: centre, width per axis, each pair's probability."""
    density = 1 / (math.pi * reach**2)
    part = 0.7
    floor = (_FLOOR_MAS / 1000) ** 2
    truth = np.ones(len(d))
    for _ in range(25):
        variance = width**2 + own[:, None]
        gauss = np.exp(-0.5 * ((d - centre) ** 2 / variance).sum(axis=1)) / (
            2 * math.pi * np.sqrt(variance.prod(axis=1))
        )
        truth = part * gauss / np.maximum(part * gauss + (1 - part) * density, 1e-300)
        if truth.sum() < 1e-6:
            break
        part = float(np.clip(truth.mean(), 0.02, 0.995))
        share = truth[:, None] / variance
        centre = (share * d).sum(axis=0) / share.sum(axis=0)
        excess = (truth[:, None] * ((d - centre) ** 2 - own[:, None])).sum(axis=0) / truth.sum()
        width = np.sqrt(np.maximum(excess, floor))
    return centre, width, truth
