"""A geometry as a TAN projection with SIP polynomials, which every FITS tool reads.

Put here the fit and what it has wrong. Keep out the geometry itself (`geometry.py`) and the writing of files.
Convention: D. L. Shupe et al., ASP Conf. Ser. 347, 491 (2005). The polynomials are truncated Chebyshev series, so that
the error is spread evenly over the detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from panoramic.errors import InputError
from panoramic.pointing import tangent_axes
from panoramic.reduction.native.chebyshev import Polynomial, nodes

if TYPE_CHECKING:
    from panoramic.reduction.native.geometry import Geometry

Array = NDArray[np.float64]

HIGHEST_ORDER = 6
_NODES = 16
_CENTRING_STEPS = 4
_DEG = 180 / np.pi


@dataclass(frozen=True)
class SipFit:
    """Header cards and their errors, on a 33 x 33 grid of the detector.

    Parameters
    ----------
    cards : keyword -> value, in the order of a header; SIPMXERR and SIPIVERR are jwst's keywords for the largest
        errors, forward and inverse, in pixels.
    rms_mas, max_mas : of sky positions by the cards, against the geometry.
    inverse_rms_px, inverse_max_px : of pixels by the inverse polynomials.
    """

    cards: dict[str, float | int | str]
    rms_mas: float
    max_mas: float
    inverse_rms_px: float
    inverse_max_px: float


def fit_sip(geometry: Geometry, order: int = 5) -> SipFit:
    """Fit the projection about the detector's centre.

    Parameters
    ----------
    geometry : the exposure's.
    order : of the polynomials, forward and inverse.

    Raises
    ------
    InputError
        The order is not one of 2 to 6.
    """
    from panoramic.reduction.native.geometry import CENTRE, SIDE, positions, rotated

    if not 2 <= order <= HIGHEST_ORDER:
        raise InputError(f"a SIP polynomial of order {order}: give one from 2 to {HIGHEST_ORDER}")
    reach = SIDE / 2
    at = CENTRE + reach * nodes(_NODES)
    vectors = geometry.vectors(*np.meshgrid(at, at, indexing="ij"))
    crval = tuple(float(v) for v in geometry.sky(CENTRE, CENTRE))
    # the tangent point is where the polynomial, not the geometry, has its centre: then no constant is left
    for last in (False,) * _CENTRING_STEPS + (True,):
        axes = tangent_axes(*crval)
        planes = _project(axes, vectors)
        both = [Polynomial.through(p, order, (CENTRE, CENTRE), (reach, reach)).monomials() for p in planes]
        if not last:
            moved = rotated(axes, both[0][0, 0] / _DEG, both[1][0, 0] / _DEG, 1.0)
            crval = tuple(float(v) for v in positions(*moved))
    matrix = np.array([[plane[1, 0], plane[0, 1]] for plane in both])
    inverse = _inverse(matrix)
    forward = [inverse[k, 0] * both[0] + inverse[k, 1] * both[1] for k in (0, 1)]
    for plane in forward:
        plane[0, 0] = plane[0, 1] = plane[1, 0] = 0.0
    backward = _backward(geometry, crval, matrix, forward, order)

    # LONPOLE: its default is another one where the tangent point is the pole itself
    cards: dict[str, float | int | str] = {
        "WCSAXES": 2, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CUNIT1": "deg", "CUNIT2": "deg",
        "CRPIX1": CENTRE + 1, "CRPIX2": CENTRE + 1, "CRVAL1": crval[0], "CRVAL2": crval[1],
        "CD1_1": float(matrix[0, 0]), "CD1_2": float(matrix[0, 1]),
        "CD2_1": float(matrix[1, 0]), "CD2_2": float(matrix[1, 1]), "LONPOLE": 180.0,
        "RADESYS": "ICRS",
    }  # fmt: skip
    for name, plane, lowest in (
        ("A", forward[0], 2), ("B", forward[1], 2), ("AP", backward[0], 0), ("BP", backward[1], 0),
    ):  # fmt: skip
        cards[f"{name}_ORDER"] = order
        for i in range(order + 1):
            for j in range(order + 1 - i):
                if i + j >= lowest:
                    cards[f"{name}_{i}_{j}"] = float(plane[i, j])
    grid = np.linspace(-0.5, SIDE - 0.5, 33)
    u, v = (g.ravel() - CENTRE for g in np.meshgrid(grid, grid))
    xi, eta = _project(tangent_axes(*crval), geometry.vectors(u + CENTRE, v + CENTRE))
    first, second = u + _evaluate(forward[0], u, v), v + _evaluate(forward[1], u, v)
    off = np.hypot(
        matrix[0, 0] * first + matrix[0, 1] * second - xi, matrix[1, 0] * first + matrix[1, 1] * second - eta
    )
    exact = inverse[0, 0] * xi + inverse[0, 1] * eta, inverse[1, 0] * xi + inverse[1, 1] * eta
    back = np.hypot(*(e + _evaluate(p, *exact) - w for e, p, w in zip(exact, backward, (u, v), strict=True)))
    off_mas = off * 3.6e6
    scale_mas = float(np.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))) * 3.6e6
    cards["SIPMXERR"], cards["SIPIVERR"] = _digits(off_mas.max() / scale_mas), _digits(back.max())
    return SipFit(cards, _rms(off_mas), float(off_mas.max()), _rms(back), float(back.max()))


def _backward(
    geometry: Geometry, crval: tuple[float, ...], matrix: Array, forward: list[Array], order: int
) -> list[Array]:
    """Polynomials from linear to true pixels, fitted on the rectangle that holds the detector."""
    from panoramic.reduction.native.geometry import CENTRE, SIDE, rotated

    edge = np.linspace(-SIDE / 2, SIDE / 2, 17)
    side = np.full_like(edge, SIDE / 2)
    u, v = np.concatenate([edge, edge, side, -side]), np.concatenate([side, -side, edge, edge])
    # whole pixels: the rectangle doesn't hang on last bits
    reach = tuple(float(np.ceil(np.abs(w + _evaluate(p, u, v)).max())) for w, p in zip((u, v), forward, strict=True))
    first, second = np.meshgrid(*(r * nodes(_NODES) for r in reach), indexing="ij")
    xi = (matrix[0, 0] * first + matrix[0, 1] * second) / _DEG
    eta = (matrix[1, 0] * first + matrix[1, 1] * second) / _DEG
    axes = tangent_axes(*crval)
    x, y = geometry.pixels_of_vectors(*rotated(axes, xi, eta, 1.0))
    centre = (0.0, 0.0)
    return [
        Polynomial.through(value - CENTRE - linear, order, centre, (reach[0], reach[1])).monomials()
        for value, linear in ((x, first), (y, second))
    ]


def _project(axes: Array, vectors: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Gnomonic projection, deg to the east and to the north, about the point whose axes are given."""
    from panoramic.reduction.native.geometry import rotated

    east, north, depth = rotated(axes.T, *vectors)
    return east / depth * _DEG, north / depth * _DEG


def _inverse(matrix: Array) -> Array:
    (a, b), (c, d) = matrix
    return np.array([[d, -b], [-c, a]]) / (a * d - b * c)


def _evaluate(coefficients: Array, u: Array, v: Array) -> Array:
    total = np.zeros_like(u)
    for row in coefficients[::-1]:
        inner = np.zeros_like(u)
        for value in row[::-1]:
            inner = inner * v + value
        total = total * u + inner
    return total


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _digits(value: float) -> float:
    """Three digits: an error is not known better, and the last bits of tiny ones are noise."""
    return float(f"{value:.2e}")
