"""Polynomials of two variables by Chebyshev's nodes: the same bits from the same values, whatever library is below.

Put here what is mathematics. Keep out detectors and the sky.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.chebyshev import chebder
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nodes(count: int) -> Array:
    """Chebyshev's nodes in (-1, 1), shape (count,)."""
    return np.array([math.cos(math.pi * (k + 0.5) / count) for k in range(count)])


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A polynomial of x and y, as a sum of products of Chebyshev's polynomials.

    Parameters
    ----------
    coefficients : of T_i((x - centre x) / reach x) T_j((y - centre y) / reach y), shape (degree + 1, degree + 1).
    centre, reach : of the rectangle that holds the nodes.
    """

    coefficients: Array
    centre: tuple[float, float]
    reach: tuple[float, float]

    @classmethod
    def through(cls, values: Array, degree: int, centre: tuple[float, float], reach: tuple[float, float]) -> Polynomial:
        """The polynomial of total degree up to ``degree`` that is nearest to values on the nodes.

        Parameters
        ----------
        values : shape (nodes, nodes), first index along x.
        """
        count = len(values)
        basis = np.array([[math.cos(i * math.pi * (k + 0.5) / count) for k in range(count)] for i in range(degree + 1)])
        coefficients = np.zeros((degree + 1, degree + 1))
        for i in range(degree + 1):
            for j in range(degree + 1 - i):
                norm = (2.0 if i else 1.0) * (2.0 if j else 1.0) / count**2
                terms = values * (basis[i][:, None] * basis[j][None, :])
                # exactly rounded, so that the order of the terms doesn't matter
                coefficients[i, j] = norm * math.fsum(terms.ravel().tolist())
        return cls(coefficients, centre, reach)

    def at(self, x: Array, y: Array) -> Array:
        """Values at positions of any shape."""
        return _sums([self.coefficients], *self._bases(x, y))[0]

    def derivative(self, axis: int) -> Polynomial:
        """Its derivative along x (0) or y (1)."""
        return Polynomial(chebder(self.coefficients, axis=axis) / self.reach[axis], self.centre, self.reach)

    def monomials(self) -> Array:
        """Coefficients of (x - centre x)^i (y - centre y)^j, shape (degree + 1, degree + 1)."""
        degree = len(self.coefficients) - 1
        # integers: T_0 = 1, T_1 = s, T_n = 2 s T_(n-1) - T_(n-2)
        powers = np.zeros((degree + 1, degree + 1))
        powers[0, 0] = 1.0
        for n in range(1, degree + 1):
            powers[n, 1:] = (2.0 if n > 1 else 1.0) * powers[n - 1, :-1]
            powers[n] -= powers[n - 2] if n > 1 else 0.0
        out = np.zeros_like(powers)
        for i in range(degree + 1):
            for j in range(degree + 1 - i):
                terms = self.coefficients * (powers[:, i][:, None] * powers[:, j][None, :])
                out[i, j] = math.fsum(terms.ravel().tolist()) / (self.reach[0] ** i * self.reach[1] ** j)
        return out

    def _bases(self, x: Array, y: Array) -> tuple[list[Array], list[Array]]:
        n, m = self.coefficients.shape
        return (
            _chebyshev((np.asarray(x, float) - self.centre[0]) / self.reach[0], n),
            _chebyshev((np.asarray(y, float) - self.centre[1]) / self.reach[1], m),
        )


def pair(first: Polynomial, second: Polynomial, x: Array, y: Array) -> tuple[Array, Array]:
    """Values of two polynomials of one rectangle and degree; cheaper than one after the other."""
    a, b = _sums([first.coefficients, second.coefficients], *first._bases(x, y))
    return a, b


def _chebyshev(s: Array, count: int) -> list[Array]:
    out = [np.ones_like(s), s]
    while len(out) < count:
        out.append(2.0 * s * out[-1] - out[-2])
    return out[:count]


def _sums(coefficients: list[Array], bases_x: list[Array], bases_y: list[Array]) -> list[Array]:
    results = []
    for table in coefficients:
        total = np.zeros_like(bases_x[0])
        for row, base in zip(table, bases_x, strict=True):
            inner = np.zeros_like(total)
            for value, other in zip(row, bases_y, strict=True):
                if value:
                    inner += value * other
            total += base * inner
        results.append(total)
    return results
