"""Whether the pairs of a solution scatter as those of one pointing do, or are a part of something wider.

Put here the tests that a smeared exposure, a doubled reference or proper motions fail. Keep out how a solution is found
and fitted (`panoramic.alignment_search`, `panoramic.alignment_fit`).

A part of a wide or long scatter that happens to agree looks like a good solution: its own scatter is small. What gives
it away are the sources that it leaves unmatched: they lie around it, or along a line, or in a second heap, more often
than chance puts them there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from panoramic.alignment_fit import EARLY_MATCHES, VERY_FEW, Fit
from panoramic.alignment_search import (
    NEIGHBOURHOOD_ARCSEC,
    SCALES_ARCSEC,
    Pairs,
    Pile,
    Search,
    log_tail,
    pair_density,
    unrotated,
)

# unmatched sources about a solution, along a line through it, or in one heap near it: the greatest part of the matched
_LARGEST_PART, _LARGEST_HEAP = 0.1, 0.15
# and the chance below which they are no accident, for each of the three: with few matches, with a scatter larger than
# stated, else; a solution that has everything for it is hardly a part of something wider
_CHANCE_EARLY, _CHANCE_UNEXPLAINED, _CHANCE = 1e-2, 2e-3, 1e-4
# what belongs to the solution's own scatter, in standard deviations; nearer than that it moves many matches by little
_CORE, _HARMLESS_ARCSEC, _MANY_MATCHES = 3.5, 0.1, 24
_WINGS_ARCSEC = (0.2, 0.4, 0.8)
_DIRECTIONS, _LENGTHS_ARCSEC = 16, (0.3, 0.6, 1.2)
_HEAP_ARCSEC = 0.08
# another solution that chance hardly makes, and is this part as high: an exposure that jumped, or a mixed reference
_RIVAL_CHANCE, _RIVAL_PART, _RIVAL_ARCSEC = 1e-5, 0.25, 0.5
# scatter longer one way than the other: what is no accident, and no longer small
_LONG_CHANCE_EARLY, _LONG_CHANCE_UNEXPLAINED, _LONG_CHANCE, _LONG_ARCSEC = 1e-2, 3e-3, 1e-4, 0.03
# few matches that scatter more than they should are no solution
_FEW_FACTOR = 1.6


def wider_scatter(
    search: Search,
    pairs: Pairs,
    fit: Fit,
    variances: tuple[np.ndarray, np.ndarray],
    radius: float,
    harmless_arcsec: float,
    lone_part: float,
) -> tuple[str, dict[str, float]] | None:
    """Why the pairs of a fit are hardly those of one pointing, in a sentence and numbers; None where they may be."""
    n = int(fit.i.size)
    excess = math.sqrt(max(fit.longest**2 - max(fit.stated, fit.shortest) ** 2, 0.0))
    limit = _LONG_CHANCE_EARLY if n < EARLY_MATCHES else _LONG_CHANCE_UNEXPLAINED if fit.unexplained else _LONG_CHANCE
    if fit.round_chance < limit and excess > _LONG_ARCSEC:
        text = f"the {n} matched sources scatter by {1000 * fit.longest:.0f} mas along one direction, as in a smear"
        return text, {"n": n, "scatter_mas": 1000 * fit.longest, "chance": fit.round_chance, "limit": limit}
    if fit.unexplained and n < VERY_FEW and 0 < _FEW_FACTOR * fit.stated < fit.longest:
        text = f"only {n} sources agree, and scatter by {1000 * fit.longest:.0f} mas, not {1000 * fit.stated:.0f}"
        return text, {"n": n, "scatter_mas": 1000 * fit.longest, "limit": 1000 * _FEW_FACTOR * fit.stated}
    offsets = unrotated(pairs.source, fit.rotation) - pairs.reference
    residual = offsets - fit.shift
    # a pair with large errors may lie farther out
    cores = np.maximum(_CORE * np.sqrt(fit.excess + variances[0][pairs.i] + variances[1][pairs.j]), SCALES_ARCSEC[0])
    distance = np.hypot(*residual.T)
    matched = np.unique(pairs.i[distance <= cores])
    floor = _HARMLESS_ARCSEC if n >= _MANY_MATCHES else harmless_arcsec if n >= EARLY_MATCHES else 0.0
    core = max(_CORE * float(fit.scatter.max()), floor, SCALES_ARCSEC[0])
    # a source without a partner in the solution: it should have none near it either
    lone = ~np.isin(pairs.i, matched) & (distance <= max(NEIGHBOURHOOD_ARCSEC, 2 * core))
    lone &= ~np.isin(pairs.j, pairs.j[distance <= cores]) & (distance > core)
    free = 1 - matched.size / max(np.unique(pairs.i).size, matched.size, 1)
    density = max(pair_density(offsets, fit.shift, max(_WINGS_ARCSEC) / 4, radius), search.mean_density()) * free
    more = lone_part if n >= _MANY_MATCHES else 0.0
    rare = _CHANCE_EARLY if n < EARLY_MATCHES else _CHANCE_UNEXPLAINED if fit.unexplained else _CHANCE
    for found in (_wings, _line, _heap):
        answer = found(residual[lone], pairs.i[lone], matched.size, core, density, math.log(rare), more)
        if answer is not None:
            seen, by_chance, where, part = answer
            text = f"{n} sources agree, but {seen} more lie {where} (chance puts {by_chance:.1f}): the scatter is wider"
            return text, {"n": n, "n_around": seen, "n_chance": by_chance, "limit": part}
    return None


_Found = tuple[int, float, str, float] | None


def _wings(
    residual: np.ndarray, i: np.ndarray, n: int, core: float, density: float, limit: float, more: float
) -> _Found:
    """Sources all around the solution but outside of its scatter."""
    part = max(_LARGEST_PART, more)
    for radius in _WINGS_ARCSEC:
        wide = max(radius, 1.5 * core)
        seen = np.unique(i[np.hypot(*residual.T) <= wide]).size
        by_chance = density * math.pi * (wide**2 - core**2)
        rare = math.log(len(_WINGS_ARCSEC)) + log_tail(seen, by_chance) < limit
        if rare and seen - by_chance > part * n:
            return seen, by_chance, "about them", part
    return None


def _line(
    residual: np.ndarray, i: np.ndarray, n: int, core: float, density: float, limit: float, more: float
) -> _Found:
    """Sources along a line through the solution."""
    part = max(_LARGEST_PART, more)
    half = core * 0.7
    trials = math.log(_DIRECTIONS * len(_LENGTHS_ARCSEC))
    for angle in np.arange(_DIRECTIONS) * math.pi / _DIRECTIONS:
        along = residual[:, 0] * math.cos(angle) + residual[:, 1] * math.sin(angle)
        across = residual[:, 1] * math.cos(angle) - residual[:, 0] * math.sin(angle)
        for length in _LENGTHS_ARCSEC:
            reach = max(length, 2 * core)
            # farther out a line through the middle may miss by more
            strip = (np.abs(along) <= reach) & (np.abs(across) <= half + 0.1 * np.abs(along))
            seen = np.unique(i[strip]).size
            by_chance = density * (4 * half * (reach - core) + 0.2 * (reach**2 - core**2))
            if trials + log_tail(seen, by_chance) < limit and seen - by_chance > part * n:
                return seen, by_chance, "along a line through them", part
    return None


def _heap(
    residual: np.ndarray, i: np.ndarray, n: int, core: float, density: float, limit: float, more: float
) -> _Found:
    """Sources in one heap near the solution, as an exposure that jumped leaves."""
    from scipy.spatial import cKDTree

    if not len(residual):
        return None
    wide, radius = max(NEIGHBOURHOOD_ARCSEC, 2 * core), max(_HEAP_ARCSEC, core)
    tree = cKDTree(residual)
    seen = max(np.unique(i[near]).size for near in tree.query_ball_point(residual, radius))
    by_chance = density * math.pi * radius**2
    places = 4 * (1 + wide / radius) ** 2
    if math.log(places) + log_tail(seen, by_chance) < limit and seen > max(max(_LARGEST_HEAP, more) * n, 2):
        return seen, by_chance, "in a second heap beside them", max(_LARGEST_HEAP, more)
    return None


@dataclass(frozen=True)
class Rival:
    """The next best solution: its members, the height of the best over it, and whether chance hardly makes it."""

    n: int
    contrast: float
    real: bool


def rival(search: Search, pairs: Pairs, fit: Fit, pile: Pile, radius: float) -> Rival:
    """The best pile of what a solution leaves: apart from it at the pile's scale, near it at that of the scatter."""
    residual = np.hypot(*(unrotated(pairs.source, fit.rotation) - pairs.reference - fit.shift).T)
    spread = float(fit.scatter.max())
    # the wings of the solution's own scatter are no other solution
    apart = residual > max(2.5 * pile.radius, 4 * spread)
    found = [_compared(search, pairs, residual, apart, pile.radius, radius, fit.shift, pile.n)]
    fine = max(SCALES_ARCSEC[0], 1.5 * spread)
    if fine < pile.radius:
        # a second copy of the reference can lie closer than that: all but the pairs of the solution
        partner = np.full(len(search.source), -1)
        partner[fit.i] = fit.j
        rest = (partner[pairs.i] != pairs.j) & (residual > 2 * spread)
        found.append(_compared(search, pairs, residual, rest, fine, radius, fit.shift, 0))
    return min(found, key=lambda one: (not one.real, one.contrast))


def _compared(
    search: Search,
    pairs: Pairs,
    residual: np.ndarray,
    rest: np.ndarray,
    scale: float,
    radius: float,
    shift: np.ndarray,
    height: int,
) -> Rival:
    """The highest pile of some pairs against the solution at ``shift``, which is at least ``height`` high."""
    inside = residual <= scale
    own = max(height, min(np.unique(pairs.i[inside]).size, np.unique(pairs.j[inside]).size))
    other = search.highest(pairs.where(rest), scale, radius, 1)
    if other is None:
        return Rival(0, float(own), False)
    # nearer ones may be copies of single rows, which are no accident either, and harmless
    far = np.hypot(*(other.shift - shift)) > _RIVAL_ARCSEC
    real = bool(far and other.log_chance < math.log(_RIVAL_CHANCE) and other.n > _RIVAL_PART * own)
    return Rival(other.n, own / max(other.n, 1), real)
