"""A geometry as a gwcs object, which jwst's and gwcs's own tools read.

Put here the building of the object. Keep out its writing into a file. Frames and transforms are those of jwst's
``assign_wcs``, with the distortion as Chebyshev polynomials and an inverse that is right to 1e-6 px.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from panoramic.reduction.native.chebyshev import Polynomial, nodes

if TYPE_CHECKING:
    from gwcs import WCS

    from panoramic.reduction.native.geometry import Geometry

_INVERSE_DEGREE, _INVERSE_NODES = 9, 20


def to_gwcs(geometry: Geometry) -> WCS:
    """A gwcs object; its bounding box is the detector's."""
    from astropy import coordinates, units
    from astropy.modeling.models import Identity, Mapping, RotationSequence3D, Scale, Shift
    from gwcs import WCS
    from gwcs import coordinate_frames as frames
    from gwcs.geometry import CartesianToSpherical, SphericalToCartesian

    from panoramic.reduction.native.geometry import SIDE

    split = Mapping((0, 1, 0, 1))
    dx, dy = geometry.filter_offset
    own = geometry.distortion
    distortion = Shift(dx) & Shift(dy) | split | _model(own.v2) & _model(own.v3)
    backward = _backward(geometry)
    distortion.inverse = split | _model(backward[0]) & _model(backward[1]) | Shift(-dx) & Shift(-dy)
    distortion.bounding_box = ((-0.5, SIDE - 0.5), (-0.5, SIDE - 0.5))
    scale, v2, v3 = geometry.va_scale, geometry.v2_ref, geometry.v3_ref
    aberration: Any = Identity(2)
    if scale != 1.0:
        aberration = Scale(scale) & Scale(scale) | Shift((1 - scale) * v2) & Shift((1 - scale) * v3)
    aberration.name = "DVA_Correction"
    ra, dec, roll = geometry.reference_pointing
    to_sky = (
        Scale(1 / 3600) & Scale(1 / 3600)
        | SphericalToCartesian(wrap_lon_at=180)
        | RotationSequence3D(np.array([v2 / 3600, -v3 / 3600, roll, dec, -ra]), axes_order="zyxyz")
        | CartesianToSpherical(wrap_lon_at=360)
    )
    to_sky.name = "v23tosky"
    arcsec = {"axes_order": (0, 1), "axes_names": ("v2", "v3"), "unit": (units.arcsec, units.arcsec)}
    return WCS(
        [
            (frames.Frame2D(name="detector", axes_order=(0, 1), unit=(units.pix, units.pix)), distortion),
            (frames.Frame2D(name="v2v3", **arcsec), aberration),
            (frames.Frame2D(name="v2v3vacorr", **arcsec), to_sky),
            (frames.CelestialFrame(reference_frame=coordinates.ICRS(), name="world"), None),
        ]
    )


def _model(polynomial: Polynomial) -> Any:
    """The polynomial as a model of astropy."""
    from astropy.modeling.models import Chebyshev2D

    (cx, cy), (rx, ry) = polynomial.centre, polynomial.reach
    degree = len(polynomial.coefficients) - 1
    terms = {f"c{i}_{j}": float(v) for (i, j), v in np.ndenumerate(polynomial.coefficients)}
    return Chebyshev2D(degree, degree, x_domain=(cx - rx, cx + rx), y_domain=(cy - ry, cy + ry), **terms)


def _backward(geometry: Geometry) -> list[Polynomial]:
    """Polynomials from V2, V3 to pixels, on the rectangle that holds the detector."""
    from panoramic.reduction.native.geometry import SIDE

    edge, low, high = np.linspace(-0.5, SIDE - 0.5, 17), np.full(17, -0.5), np.full(17, SIDE - 0.5)
    x, y = np.concatenate([edge, edge, low, high]), np.concatenate([low, high, edge, edge])
    dx, dy = geometry.filter_offset
    outline = geometry.distortion.at(x + dx, y + dy)
    # whole milliarcseconds: the rectangle doesn't hang on last bits
    limits = [(np.floor(v.min() * 1000) / 1000, np.ceil(v.max() * 1000) / 1000) for v in outline]
    centre = (float(limits[0][0] + limits[0][1]) / 2, float(limits[1][0] + limits[1][1]) / 2)
    reach = (float(limits[0][1] - limits[0][0]) / 2, float(limits[1][1] - limits[1][0]) / 2)
    at = nodes(_INVERSE_NODES)
    v2, v3 = np.meshgrid(centre[0] + reach[0] * at, centre[1] + reach[1] * at, indexing="ij")
    pixels = geometry.distortion.pixels(v2, v3)
    return [Polynomial.through(plane, _INVERSE_DEGREE, centre, reach) for plane in pixels]
