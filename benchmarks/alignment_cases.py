"""Random alignment cases with a known truth: is a wrong solution ever accepted, and is a good one ever refused?

Each case is made at catalogue level: sources of one exposure (or of the exposures or detectors of one association)
against one reference, of the kinds in `KINDS`, all of which come up alike often. `measure_solution` sees the two
catalogues with their stated errors, the nominal footprint, and nothing else. Generator and judge share no code with it.

A case is *good* with 12 true matches or more in the field of view, a false fraction below a half and an offset inside
the search radius; *bad* with under 3 true matches or an offset outside; all else, and every smeared, empty,
proper-motion-only or partly displaced one, is *between*. *Wrong* is what is accepted with a true radial error at the
field's centre of more than 30 mas and more than 4.5 predicted sigma per axis.

Prints the cases that were judged badly (with ``--show``), a table by kind, and one JSON line at the end. The exit
status is 1 where a wrong one was accepted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from panoramic.alignment_solution import Cause, Refusal, Solution, measure_solution

SEARCH_RADIUS = 3.0  # arcsec, the survey file's default
SIDES = {"short": 64.0, "long": 129.0}  # arcsec
PIXELS = {"short": 0.031, "long": 0.063}
MARGIN = 25.0  # arcsec by which the reference reaches over the field
FLOOR_MAS = 30.0
WORST_SIGMA = 4.5
RAYLEIGH = math.sqrt(2 * math.log(2))  # median of a radial error in sigma per axis
POLES = ((33.0, 89.9995), (120.0, -89.999), (0.0002, 12.0), (359.9999, -41.0))
ENOUGH, HARDLY_ANY = 12, 3
FEW_ROWS = 8  # a reference of fewer rows may well be called too small
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


def on_sky(plane: np.ndarray, place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """RA and Dec, deg, of positions (arcsec to the east and north) in the plane that touches the sky at ``place``."""
    a, d = np.radians(place)
    radial = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    x, y = (plane / 206264.80624709636).T
    v = radial + x[:, None] * east + y[:, None] * north
    ra = np.degrees(np.arctan2(v[:, 1], v[:, 0])) % 360
    return ra, np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))


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


def make_case(kind: str, rng: np.random.Generator) -> Case:
    detector = str(rng.choice(list(SIDES)))
    side, pixel = SIDES[detector], PIXELS[detector]
    density, scatter = log_uniform(rng, 1, 60), rng.uniform(5, 60)
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
    errors = scatter * rng.uniform(0.7, 1.3, rows)
    reference = true + rng.normal(size=(rows, 2)) * errors[:, None] / 1000
    if kind == "proper motions":
        angle = rng.uniform(0, 2 * np.pi, rows)
        reference += (rng.uniform(0.1, 0.6, rows) * np.array([np.cos(angle), np.sin(angle)])).T
    # some false ones are strewn about true sources, as deblended pieces and spikes are
    lone = rng.uniform(-half, half, (rows, 2))
    beside = reference + rng.normal(0, 1.5, (rows, 2))
    reference = np.where(is_false[:, None], np.where(rng.random((rows, 1)) < 0.3, beside, lone), reference)
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
            along = vector(rng, 1.0)
            noise = noise + rng.normal(0, rng.uniform(0.05, 0.4), (len(objects), 1)) * along
        seen = turned(objects, rotation) + shift + noise
        # the field of view is where the file says that it is
        inside = (np.abs(turned(seen, roll)) < side / 2).all(axis=1)
        order = rng.permutation(int(inside.sum()))
        ra, dec = on_sky(seen[inside][order], place)
        ref = reference
        if kind == "duplicates":
            ref = np.repeat(reference, 3, axis=0) + rng.normal(0, 0.004, (3 * rows, 2))
        mixed = rng.permutation(len(ref))
        ref_ra, ref_dec = on_sky(ref[mixed], place)
        # what the centre of the field is off by, not the object that belongs there
        middle = 1000 * turned(shift[None], -rotation)[0]
        corners = turned(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2, -roll)
        rows_inside = int((np.abs(turned(reference, roll)) < side / 2).all(axis=1).sum())
        scenes.append(
            Scene(
                ra, dec, stated[inside][order], ref_ra, ref_dec, np.repeat(errors, len(ref) // max(rows, 1))[mixed],
                np.column_stack(on_sky(corners, place)), float(middle[0]), float(middle[1]), rotation,
                int(inside[: int(detected.sum())].sum()), rows_inside,
            )
        )  # fmt: skip
    settings = {"density": density, "scatter": scatter, "rotation": rotation, "side": side, "extra": extra}
    return Case(kind, scenes, false, max(round(float(np.hypot(s.east, s.north)) / 1000, 6) for s in scenes), settings)


def _anywhere(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-1, 1))))


def right_cause(kind: str, scene: Scene, refusal: Refusal) -> bool:
    """Does the cause of a refusal say what is the matter with a bad scene?"""
    outside = np.hypot(scene.east, scene.north) > 1000 * SEARCH_RADIUS
    allowed = {Cause.NO_PEAK}
    if scene.ref_rows < FEW_ROWS:
        allowed.add(Cause.TOO_FEW_REFERENCES)
    if len(scene.ra) < FEW_ROWS:
        allowed.add(Cause.TOO_FEW_SOURCES)
    if outside and scene.true_matches >= HARDLY_ANY:
        allowed.add(Cause.BEYOND_SEARCH_RADIUS)
        # enough sources to tell where the exposure is: nothing else will do
        if scene.true_matches >= 2 * ENOUGH:
            allowed = {Cause.BEYOND_SEARCH_RADIUS}
    if kind in NEVER_GOOD:
        allowed.add(Cause.NO_PEAK)
    return refusal.cause in allowed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=sorted(set(KINDS)), help="make cases of one kind only")
    parser.add_argument("--show", action="store_true", help="print each case that was judged badly")
    options = parser.parse_args(arguments)
    count: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    ratios, corner_ratios, cpu = [], [], 0.0
    for number in range(options.cases):
        rng = np.random.default_rng([options.seed, number])
        case = make_case(options.kind or KINDS[number % len(KINDS)], rng)
        start = time.process_time()
        answers = [
            measure_solution(
                scene.ra, scene.dec, scene.ref_ra, scene.ref_dec,
                search_radius_arcsec=SEARCH_RADIUS, footprint=scene.footprint,
                error_mas=scene.error, ref_error_mas=scene.ref_error,
            )
            for scene in case.scenes
        ]  # fmt: skip
        cpu += time.process_time() - start
        klass = case.klass
        wrong, right = False, True
        for scene, answer in zip(case.scenes, answers, strict=True):
            if isinstance(answer, Solution):
                radial = math.hypot(answer.dra - scene.east, answer.ddec - scene.north)
                sigma = math.sqrt((answer.err_ra**2 + answer.err_dec**2) / 2)
                wrong |= radial > max(FLOOR_MAS, WORST_SIGMA * sigma)
                ratios.append(radial / (RAYLEIGH * sigma))
                corner_ratios.append(corner_ratio(scene, answer))
            else:
                right &= right_cause(case.kind, scene, answer)
        refused = any(isinstance(answer, Refusal) for answer in answers)
        verdict = "wrong" if wrong else "refused" if refused else "accepted"
        count[klass] += 1
        by_kind[case.kind][f"{klass} {verdict}"] += 1
        count["wrong_accepted"] += wrong
        count["good_refused"] += klass == "good" and refused
        count["bad_refused"] += klass == "bad" and refused
        count["bad_refused_with_right_cause"] += klass == "bad" and refused and right
        badly = wrong or (klass == "good" and refused) or (klass == "bad" and refused and not right)
        if options.show and badly:
            told = [a.text if isinstance(a, Refusal) else f"{a.n} {a.dra:.0f} {a.ddec:.0f}" for a in answers]
            truth = [(s.true_matches, s.ref_rows, len(s.ra), round(s.east), round(s.north)) for s in case.scenes]
            rounded = {k: round(v, 2) for k, v in case.settings.items()}
            print(number, klass, verdict, case.kind, f"false {case.false_fraction:.2f}", rounded, truth, told)
    for kind, seen in by_kind.items():
        print(f"{kind:16}", ", ".join(f"{what} {n}" for what, n in sorted(seen.items())))
    result = {
        "cases": options.cases,
        "good": count["good"],
        "between": count["between"],
        "bad": count["bad"],
        "wrong_accepted": count["wrong_accepted"],
        "good_refused": count["good_refused"],
        "bad_refused_with_right_cause": count["bad_refused_with_right_cause"],
        "bad_refused": count["bad_refused"],
        "median_error_over_sigma": round(float(np.median(ratios)), 4) if ratios else None,
        "median_corner_error_over_sigma": round(float(np.median(corner_ratios)), 4) if ratios else None,
        "cpu_seconds_per_case": round(cpu / max(options.cases, 1), 4),
    }
    print(json.dumps(result))
    return int(count["wrong_accepted"] > 0)


def corner_ratio(scene: Scene, answer: Solution) -> float:
    """Radial error at the first corner over its predicted median; the truth is a rotation about the centre."""
    ra, dec = scene.footprint[:1, 0], scene.footprint[:1, 1]
    centre = _unit(answer.ra, answer.dec)
    east, north = _axes(answer.ra, answer.dec)
    corner = _unit(float(ra[0]), float(dec[0]))
    plane = np.array([[corner @ east, corner @ north]]) / (corner @ centre) * 206264.80624709636
    expected = turned(plane, -scene.rotation) - np.array([[scene.east, scene.north]]) / 1000
    moved = answer.corrected(ra, dec)
    got = _unit(float(moved[0][0]), float(moved[1][0]))
    found = np.array([[got @ east, got @ north]]) / (got @ centre) * 206264.80624709636
    error = answer.error_at(ra, dec)
    sigma = math.sqrt((float(error[0][0]) ** 2 + float(error[1][0]) ** 2) / 2)
    return 1000 * float(np.hypot(*(expected - found)[0])) / (RAYLEIGH * sigma)


def _unit(ra: float, dec: float) -> np.ndarray:
    a, d = math.radians(ra), math.radians(dec)
    return np.array([math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)])


def _axes(ra: float, dec: float) -> tuple[np.ndarray, np.ndarray]:
    a, d = math.radians(ra), math.radians(dec)
    east = np.array([-math.sin(a), math.cos(a), 0.0])
    return east, np.array([-math.sin(d) * math.cos(a), -math.sin(d) * math.sin(a), math.cos(d)])


if __name__ == "__main__":
    sys.exit(main())
