"""Which footprints hang together: single linkage on the sphere, and the nearest pairs that it needs, in n log n.

Put here the search among many footprints. Keep out what the groups mean (`panoramic.fields`) and the geometry of one
footprint (`panoramic.footprints`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from panoramic.footprints import (
    ARCMIN,
    FootprintSet,
    angle_between,
    chord,
    connected,
    positions_of,
    ragged,
    unit_vectors,
)
from panoramic.survey import FieldRules

WIDE = np.radians(1.0)  # a footprint of a larger radius is no NIRCam exposure: it is compared one by one
ROUNDING_ARCMIN = 1e-6  # what shifted planes may lose


def single_linkage(footprints: FootprintSet, rules: FieldRules) -> np.ndarray:
    """Groups of footprints that hang together by edge distances within the buffer.

    Returns
    -------
    (N,) label of each footprint's group, counted from 0 in the order of the groups' first footprints.

    Notes
    -----
    The edges of two footprints are no further apart than their middles, so the footprints of a small cell belong
    together unmeasured. Pairs of near cells are then settled by one promising pair of footprints; only the few that
    it leaves apart are searched in full, by a spatial index of polygons.
    """
    if not len(footprints):
        return np.empty(0, np.intp)
    buffer_arcmin = rules.buffer_arcmin
    cells = Cells(
        footprints,
        np.arange(len(footprints)),
        buffer_arcmin,
        np.where(footprints.radii > WIDE, np.arange(len(footprints)) + 1, 0),
    )
    ordinary = footprints.radii[cells.members[cells.starts]] <= WIDE
    first, second = cells.near(cells, buffer_arcmin, ordinary)
    first, second = first[first < second], second[first < second]
    links = [_measured(footprints, cells, *wide_pairs(footprints, footprints, buffer_arcmin), buffer_arcmin)]
    links.append(_measured(footprints, cells, *_promising(footprints, cells, first, second), buffer_arcmin))
    labels = connected(np.concatenate(links), len(cells))
    undecided = (labels[first] != labels[second]) & (cells.counts[first] * cells.counts[second] > 1)
    first, second = first[undecided], second[undecided]
    rows, plane = ragged(cells.starts[first], cells.counts[first])
    rows_there, plane_there = ragged(cells.starts[second], cells.counts[second])
    tangent = positions_of(cells.centroids[first] + cells.centroids[second])
    pairs = closest(
        (footprints, cells.members[rows], plane),
        (footprints, cells.members[rows_there], plane_there),
        tangent,
        buffer_arcmin,
    )
    links.append(_measured(footprints, cells, *pairs, buffer_arcmin))
    return in_order(connected(np.concatenate(links), len(cells))[cells.cell_of])


def in_order(labels: np.ndarray) -> np.ndarray:
    """The same groups, numbered from 0 in the order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def _measured(
    footprints: FootprintSet, cells: Cells, which: np.ndarray, others: np.ndarray, buffer_arcmin: float
) -> np.ndarray:
    """Links (L, 2) between cells, by the pairs of footprints that are within the buffer."""
    within = footprints.edge_distances_arcmin(which, footprints, others) <= buffer_arcmin
    return np.column_stack([cells.cell_of[which[within]], cells.cell_of[others[within]]])


def _promising(
    footprints: FootprintSet, cells: Cells, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each pair of cells the member of each whose middle is nearest to the other's centroid."""
    return _nearest_to(footprints, cells, first, second), _nearest_to(footprints, cells, second, first)


def _nearest_to(footprints: FootprintSet, cells: Cells, of: np.ndarray, target: np.ndarray) -> np.ndarray:
    rows, pair = ragged(cells.starts[of], cells.counts[of])
    members = cells.members[rows]
    apart = np.linalg.norm(footprints.vectors[members] - cells.centroids[target][pair], axis=1)
    order = np.lexsort((apart, pair))
    return members[order[np.cumsum(cells.counts[of]) - cells.counts[of]]]


# --- finding near footprints ------------------------------------------------------------------


class Cells:
    """Footprints sorted into cells so small that the edges of any two in one cell lie within the buffer.

    ``members[starts[c]:starts[c] + counts[c]]`` are the footprints of cell ``c``; footprints of different ``keys``
    never share one. ``spreads`` is the angle (rad) from a cell's centroid to the farthest vertex in it.
    """

    def __init__(
        self, footprints: FootprintSet, which: np.ndarray, buffer_arcmin: float, keys: np.ndarray | None = None
    ) -> None:
        part = footprints.subset(which)
        inner = part.inner_radii().min(initial=np.inf)
        # with a circle of radius q inside each, footprints 2 (arctan(b / 2) + q) apart are b apart in their plane
        clique = 2 * (np.arctan(buffer_arcmin * ARCMIN / 2) + inner) * (1 - 1e-9)
        grid = np.floor(part.vectors * (np.sqrt(3) / chord(clique))).astype(np.int64)
        if keys is not None:
            grid = np.column_stack([grid, keys[which]])
        cell = _rows_as_labels(grid)
        order = np.argsort(cell, kind="stable")
        self.members = which[order]
        self.counts = np.bincount(cell)
        self.starts = np.cumsum(self.counts) - self.counts
        self.cell_of = np.full(len(footprints), -1, dtype=np.intp)
        self.cell_of[which] = cell
        sums = np.add.reduceat(part.vectors[order], self.starts, axis=0) if len(which) else np.empty((0, 3))
        self.centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        reach = angle_between(part.vectors, self.centroids[cell]) + part.radii
        self.spreads = np.maximum.reduceat(reach[order], self.starts) if len(which) else np.empty(0)

    def __len__(self) -> int:
        return len(self.counts)

    def near(
        self, others: Cells, buffer_arcmin: float, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a cell here and a cell there (both among ``only``, if given) that may hold a near pair."""
        here = np.arange(len(self)) if only is None else np.flatnonzero(only)
        there = np.arange(len(others)) if only is None else here
        if not len(here) or not len(there):
            return np.empty(0, np.intp), np.empty(0, np.intp)
        reach = buffer_arcmin * ARCMIN + self.spreads[here] + others.spreads[there].max()
        found = tree(others.centroids[there]).query_ball_point(self.centroids[here], chord(reach) * (1 + 1e-9))
        first = np.repeat(here, np.fromiter(map(len, found), dtype=np.intp, count=len(found)))
        second = there[np.fromiter((k for near in found for k in near), dtype=np.intp, count=len(first))]
        apart = angle_between(self.centroids[first], others.centroids[second])
        near = apart <= (buffer_arcmin * ARCMIN + self.spreads[first] + others.spreads[second]) * (1 + 1e-9)
        return first[near], second[near]


def _rows_as_labels(table: np.ndarray) -> np.ndarray:
    """A number from 0 for each different row of an integer table."""
    order = np.lexsort(table.T)
    changes = np.any(np.diff(table[order], axis=0) != 0, axis=1)
    labels = np.empty(len(table), np.intp)
    labels[order] = np.concatenate([[0], np.cumsum(changes)])[: len(table)]
    return labels


def wide_pairs(footprints: FootprintSet, others: FootprintSet, buffer_arcmin: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs that may be near, of which one is a footprint too wide for the cells."""
    first, second = [], []
    for flipped, (a, b) in enumerate([(footprints, others), (others, footprints)]):
        for index in np.flatnonzero(a.radii > WIDE):
            apart = angle_between(a.vectors[index], b.vectors)
            near = np.flatnonzero(apart <= (buffer_arcmin * ARCMIN + a.radii[index] + b.radii) * (1 + 1e-9))
            own = np.full(len(near), index)
            first.append(near if flipped else own)
            second.append(own if flipped else near)
    empty = np.empty(0, np.intp)
    return np.concatenate([empty, *first]), np.concatenate([empty, *second])


def closest(
    queries: tuple[FootprintSet, np.ndarray, np.ndarray],
    targets: tuple[FootprintSet, np.ndarray, np.ndarray],
    tangent: np.ndarray,
    buffer_arcmin: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs among which is the nearest target of each query in each plane, if it lies within the buffer.

    Parameters
    ----------
    queries, targets : footprints, which of them take part, and the plane in which each does.
    tangent : (P, 2) RA and Dec (deg) where the planes touch the sphere.

    Returns
    -------
    Indices of queries and of targets. The planes stretch distances a little, so whatever may be the nearest is
    listed; the exact distance decides.
    """
    import shapely

    (footprints, which, plane), (others, which_others, plane_others) = queries, targets
    empty = np.empty(0, np.intp)
    if not len(which) or not len(which_others):
        return empty, empty
    centres = unit_vectors(tangent[:, 0], tangent[:, 1])
    farthest = max(
        float((angle_between(f.vectors[w], centres[p]) + f.radii[w]).max())
        for f, w, p in ((footprints, which, plane), (others, which_others, plane_others))
    )
    stretch = 1 / np.cos(farthest) ** 2
    limit = buffer_arcmin * stretch + ROUNDING_ARCMIN
    # all planes side by side, further apart than the limit: one index serves them all
    step = 2 * np.tan(farthest) / ARCMIN + 2 * limit
    index = shapely.STRtree(others.flat_polygons(which_others, tangent[plane_others], plane_others * step))
    asked = footprints.flat_polygons(which, tangent[plane], plane * step)
    (query, target), distance = index.query_nearest(asked, max_distance=limit, return_distance=True, all_matches=False)
    apart = distance > 0  # where they overlap, they do so in any plane
    reach = np.minimum(distance[apart] * stretch**2 + ROUNDING_ARCMIN, limit)
    more, more_targets = index.query(asked[query[apart]], predicate="dwithin", distance=reach)
    query = np.concatenate([query[~apart], query[apart][more]])
    target = np.concatenate([target[~apart], more_targets])
    return which[query], which_others[target]


def tree(vectors: np.ndarray) -> Any:
    """A search tree of unit vectors, (N, 3)."""
    from scipy.spatial import cKDTree

    return cKDTree(vectors)
