"""Random exposures and references with a known truth, at catalogue level.

Put here how a case is made and what class its truth gives it. Nothing here comes from what is measured: the geometry is
written again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

SEARCH_RADIUS = 3.0  # arcsec, the survey file's default
SIDES = {"short": 64.0, "long": 129.0}  # arcsec
PIXELS = {"short": 0.031, "long": 0.063}
MARGIN = 25.0  # arcsec by which the reference reaches over the field
POLES = ((33.0, 89.9995), (120.0, -89.999), (0.0002, 12.0), (359.9999, -41.0))
ENOUGH, HARDLY_ANY = 12, 3
ARCSEC = 206264.80624709636
KINDS = (
    *["ordinary"] * 11,
    "shift 0.5",
    "shift 3",
    "shift 10",
    "rotation 0.2",
    "dither 0.1 px",
    "dither 0.3 px",
    "dither 1 px",
    "detector off",
    "reference of 5",
    "no reference",
    "half false",
    "very dense",
    "duplicates",
    "smeared",
    "empty",
    "proper motions",
    "far off",
    "far off",
    "unrelated",
)
NEVER_GOOD = ("smeared", "empty", "proper motions")


@dataclass
class Scene:
    """One exposure and its reference; positions in deg, errors in mas, truth at the field's centre in mas and deg."""

    ra: np.ndarray
    dec: np.ndarray
    error: np.ndarray
    ref_ra: np.ndarray
    ref_dec: np.ndarray
    ref_error: np.ndarray
    footprint: np.ndarray
    east: float
    north: float
    rotation: float
    true_matches: int
    ref_rows: int
    magnitude: np.ndarray | None = None
    give_footprint: bool = True
    place: tuple[float, float] = (0.0, 0.0)
    plane_shift: tuple[float, float] = (0.0, 0.0)

    def true_place(self, ra: float, dec: float) -> tuple[np.ndarray, np.ndarray]:
        """Where something truly is that the catalogue has at a position (deg)."""
        seen = tangent_plane(np.array([ra]), np.array([dec]), self.place)
        return on_sky(turned(seen - np.array([self.plane_shift]), -self.rotation), self.place)

    def truth_at(self, ra: float, dec: float) -> tuple[float, float]:
        """East and north (mas) there by which the catalogue is off at a position of its own (deg)."""
        east, north = -1000 * tangent_plane(*self.true_place(ra, dec), (ra, dec))[0]
        return float(east), float(north)


@dataclass
class Case:
    """What belongs together, and the class that its truth gives it."""

    kind: str
    scenes: list[Scene]
    false_fraction: float
    offset: float
    settings: dict[str, float] = field(default_factory=dict)

    @property
    def klass(self) -> str:
        """Good, between or bad; of an association, what its poorest exposure gives."""
        matches = min(scene.true_matches for scene in self.scenes)
        if self.kind in NEVER_GOOD or self.kind in ("dither 0.3 px", "dither 1 px", "detector off"):
            return "bad" if matches < HARDLY_ANY or self.offset > SEARCH_RADIUS else "between"
        if matches < HARDLY_ANY or self.offset > SEARCH_RADIUS:
            return "bad"
        return "good" if matches >= ENOUGH and self.false_fraction < 0.5 else "between"


@dataclass(frozen=True)
class Variation:
    """How the makers of other cases might have read the same words; the default is our own reading.

    ``clustered``: part of the false references that lie beside true ones, and ``beside`` how near, arcsec.
    ``copies``, ``copies_mas``: rows per object of a doubled reference and their spread.
    ``smear``: the law of a smear, and its size along the axis, arcsec.
    ``understated``: true over stated errors of the reference. ``unknown``: part of the rows without a stated error,
    which is ``unknown_value``. ``unequal``: spread of the rows' errors, in e-folds.
    ``small``: a field of this side instead, arcsec, 0: none.
    """

    clustered: float = 0.3
    beside: float = 1.5
    copies: int = 3
    copies_mas: float = 4.0
    smear: str = "gaussian"
    smallest_smear: float = 0.05
    largest_smear: float = 0.4
    understated: float = 1.0
    unknown: float = 0.0
    unknown_value: float = float("nan")
    unequal: float = 0.0
    magnitudes: bool = False
    footprint: bool = True
    small: float = 0.0

    @staticmethod
    def drawn(rng: np.random.Generator) -> Variation:
        """Any of them."""
        return Variation(
            clustered=float(rng.choice([0, 0.3, 0.8])),
            beside=float(rng.choice([0.5, 1.5, 4.0])),
            copies=int(rng.integers(2, 5)),
            copies_mas=float(rng.choice([4, 20, 50, 100, 200])),
            smear=str(rng.choice(["gaussian", "uniform", "two points", "one-sided"])),
            largest_smear=float(rng.choice([0.2, 0.4, 1.0])),
            understated=float(rng.choice([1, 1, 1.4, 2])),
            unknown=float(rng.choice([0, 0, 0.3, 1])),
            unknown_value=float(rng.choice([np.nan, 0.0])),
            unequal=float(rng.choice([0, 0, 0.7])),
            magnitudes=bool(rng.integers(2)),
            footprint=bool(rng.integers(3)),
            small=float(rng.choice([0, 0, 0, 12.0, 30.0])),
        )


def on_sky(plane: np.ndarray, place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """RA and Dec, deg, of positions (arcsec to the east and north) in the plane that touches the sky at ``place``."""
    radial, east, north = axes(*place)
    x, y = (plane / ARCSEC).T
    v = radial + x[:, None] * east + y[:, None] * north
    ra = np.degrees(np.arctan2(v[:, 1], v[:, 0])) % 360
    return ra, np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))


def tangent_plane(ra: np.ndarray, dec: np.ndarray, place: tuple[float, float]) -> np.ndarray:
    """The inverse of `on_sky`, (N, 2)."""
    radial, east, north = axes(*place)
    a, d = np.radians(ra), np.radians(dec)
    v = np.column_stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    return np.column_stack([v @ east, v @ north]) / (v @ radial)[:, None] * ARCSEC


def axes(ra: float, dec: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors to a place, and to the east and north of it."""
    a, d = math.radians(ra), math.radians(dec)
    radial = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    return radial, east, np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points turned from north to east about the origin."""
    a = np.radians(degrees)
    x, y = points.T
    return np.column_stack([x * np.cos(a) + y * np.sin(a), y * np.cos(a) - x * np.sin(a)])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def vector(rng: np.random.Generator, size: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return size * np.array([np.cos(angle), np.sin(angle)])


def _smear(rng: np.random.Generator, how: Variation, n: int) -> np.ndarray:
    """Displacements along one axis about their mean, (n, 1), arcsec."""
    size = rng.uniform(how.smallest_smear, how.largest_smear)
    if how.smear == "two points":
        return size * np.where(rng.random((n, 1)) < 0.5, -1.0, 1.0)
    if how.smear == "uniform":
        return size * rng.uniform(-1.7, 1.7, (n, 1))
    if how.smear == "one-sided":
        return size * (rng.exponential(1.0, (n, 1)) - 1.0)
    return rng.normal(0, size, (n, 1))


def make_case(kind: str, rng: np.random.Generator, how: Variation | None = None) -> Case:
    """A random case of a kind."""
    how = how or Variation()
    detector = str(rng.choice(list(SIDES)))
    side, pixel = how.small or SIDES[detector], PIXELS[detector]
    density, scatter = log_uniform(rng, 1, 60), rng.uniform(5, 60)
    if how.small:
        density *= (64.0 / side) ** 2
    false, offset, rotation = rng.uniform(0, 0.8), log_uniform(rng, 0.01, 10), rng.uniform(-0.2, 0.2)
    own_noise, extra = rng.uniform(1, 8), log_uniform(rng, 20, 150)
    displaced = [np.zeros(2)]
    if kind.startswith("shift"):
        offset = float(kind.split()[1])
    elif kind == "rotation 0.2":
        rotation = 0.2 * rng.choice([-1, 1])
    elif kind.startswith("dither") or kind == "detector off":
        amount = float(kind.split()[1]) * pixel if kind.startswith("dither") else log_uniform(rng, 0.02, 2)
        offset, false = min(offset, 2.0), 0.6 * false
        displaced = [np.zeros(2)] * 3 + [vector(rng, amount)]
    elif kind == "half false":
        false = 0.5
    elif kind == "very dense":
        density, extra = rng.uniform(500, 1500), rng.uniform(100, 600)
    elif kind == "far off":
        offset = rng.uniform(3.3, 10)
    elif kind == "unrelated":
        false, density = 1.0, log_uniform(rng, 5, 60)
    area = ((side + 2 * MARGIN) / 60) ** 2
    rows = int(rng.poisson(density * area))
    half = side / 2 + MARGIN
    true = rng.uniform(-half, half, (rows, 2))
    is_false = rng.random(rows) < false
    if kind in ("reference of 5", "no reference"):
        rows = 5 if kind == "reference of 5" else 0
        true, is_false = rng.uniform(-side / 2.4, side / 2.4, (rows, 2)), np.zeros(rows, bool)
        false = 0.0
    errors = scatter * rng.uniform(0.7, 1.3, rows) * np.exp(how.unequal * rng.normal(size=rows))
    reference = true + rng.normal(size=(rows, 2)) * errors[:, None] / 1000
    if kind == "proper motions":
        angle = rng.uniform(0, 2 * np.pi, rows)
        reference += (rng.uniform(0.1, 0.6, rows) * np.array([np.cos(angle), np.sin(angle)])).T
    # some false ones are strewn about true sources, as deblended pieces and spikes are
    lone = rng.uniform(-half, half, (rows, 2))
    beside = reference + rng.normal(0, how.beside, (rows, 2))
    if how.clustered > 0.5 and rows:  # about those that are there, not about those that they stand for
        beside = reference[rng.integers(rows, size=rows)] + rng.normal(0, how.beside, (rows, 2))
    near = rng.random((rows, 1)) < how.clustered
    reference = np.where(is_false[:, None], np.where(near, beside, lone), reference)
    stated_errors = errors / how.understated
    stated_errors = np.where(rng.random(rows) < how.unknown, how.unknown_value, stated_errors)
    if kind == "empty":
        extra = 0.3
    others = rng.uniform(-half, half, (int(rng.poisson(extra * area)), 2))
    place = POLES[int(rng.integers(4))] if rng.random() < 0.1 else _anywhere(rng)
    roll = rng.uniform(0, 360)
    base = vector(rng, offset)
    scenes = []
    for extra_shift in displaced:
        shift = base + extra_shift
        detected = (rng.random(rows) < (0.02 if kind == "empty" else 0.93)) & ~is_false
        objects = np.concatenate([true[detected], others[rng.random(len(others)) < 0.9]])
        noise = rng.normal(0, own_noise / 1000, objects.shape)
        stated = np.full(len(objects), own_noise)
        if kind == "smeared":
            noise = noise + _smear(rng, how, len(objects)) * vector(rng, 1.0)
        seen = turned(objects, rotation) + shift + noise
        # the field of view is where the file says that it is
        inside = (np.abs(turned(seen, roll)) < side / 2).all(axis=1)
        order = rng.permutation(int(inside.sum()))
        ra, dec = on_sky(seen[inside][order], place)
        ref = reference
        if kind == "duplicates":
            ref = np.repeat(reference, how.copies, axis=0)
            ref = ref + rng.normal(0, how.copies_mas / 1000, (how.copies * rows, 2))
        mixed = rng.permutation(len(ref))
        ref_ra, ref_dec = on_sky(ref[mixed], place)
        # what the centre of the field is off by, not the object that belongs there
        middle = 1000 * turned(shift[None], -rotation)[0]
        corners = turned(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2, -roll)
        scenes.append(
            Scene(
                ra=ra,
                dec=dec,
                error=stated[inside][order],
                ref_ra=ref_ra,
                ref_dec=ref_dec,
                ref_error=np.repeat(stated_errors, len(ref) // max(rows, 1))[mixed],
                footprint=np.column_stack(on_sky(corners, place)),
                east=float(middle[0]),
                north=float(middle[1]),
                rotation=rotation,
                true_matches=int(inside[: int(detected.sum())].sum()),
                ref_rows=int((np.abs(turned(reference, roll)) < side / 2).all(axis=1).sum()),
                magnitude=rng.uniform(20, 28, len(order)) if how.magnitudes else None,
                give_footprint=how.footprint,
                plane_shift=(float(shift[0]), float(shift[1])),
                place=place,
            )
        )
    settings = {"density": density, "scatter": scatter, "rotation": rotation, "side": side, "extra": extra}
    return Case(kind, scenes, false, max(round(float(np.hypot(s.east, s.north)) / 1000, 6) for s in scenes), settings)


@dataclass
class PriorCase:
    """A scene with few true references, and what is known of its pointing: mas, mas, deg, with standard errors."""

    scene: Scene
    expected: np.ndarray
    sigmas: np.ndarray
    wrong: bool


def make_prior_case(rng: np.random.Generator) -> PriorCase:
    """3 to 11 true references, up to as many false ones, and a prior that is wrong in every seventh case."""
    side = SIDES[str(rng.choice(list(SIDES)))]
    half, matches = side / 2, int(rng.integers(3, 12))
    rotation, scatter, own_noise = rng.uniform(-0.1, 0.1), rng.uniform(5, 60), rng.uniform(1, 8)
    shift = vector(rng, log_uniform(rng, 0.02, 2.5))
    true = rng.uniform(-half + 3, half - 3, (matches, 2))
    false = rng.uniform(-half - MARGIN, half + MARGIN, (int(rng.integers(0, matches + 1)), 2))
    errors = scatter * rng.uniform(0.7, 1.3, matches + len(false))
    reference = np.concatenate([true, false]) + rng.normal(size=(len(errors), 2)) * errors[:, None] / 1000
    others = rng.uniform(-half, half, (int(rng.poisson(log_uniform(rng, 20, 150) * (side / 60) ** 2)), 2))
    objects = np.concatenate([true, others])
    seen = turned(objects, rotation) + shift + rng.normal(0, own_noise / 1000, objects.shape)
    place = POLES[int(rng.integers(4))] if rng.random() < 0.1 else _anywhere(rng)
    ra, dec = on_sky(seen, place)
    ref_ra, ref_dec = on_sky(reference, place)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    east, north = 1000 * turned(shift[None], -rotation)[0]
    sigmas = np.array([*np.repeat(rng.uniform(10, 20), 2), rng.uniform(0.01, 0.05)])
    expected = np.array([east, north, rotation]) + rng.normal(size=3) * sigmas
    wrong = bool(rng.random() < 1 / 7)
    if wrong:
        expected[:2] += vector(rng, log_uniform(rng, 50, 1000))
    scene = Scene(
        ra=ra,
        dec=dec,
        error=np.full(len(ra), own_noise),
        ref_ra=ref_ra,
        ref_dec=ref_dec,
        ref_error=errors,
        footprint=np.column_stack(on_sky(corners, place)),
        east=float(east),
        north=float(north),
        rotation=rotation,
        true_matches=matches,
        ref_rows=len(reference),
        place=place,
        plane_shift=(float(shift[0]), float(shift[1])),
    )
    return PriorCase(scene, expected, sigmas, wrong)


def _anywhere(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-1, 1))))
