"""Random alignment cases with a known truth: is a wrong solution ever accepted, and is a good one ever refused?

Each case is made at catalogue level: sources of one exposure (or of the exposures or detectors of one association)
against one reference, of the kinds in `KINDS`, all of which come up alike often. `measure_solution` sees the two
catalogues with their stated errors, the nominal footprint, and nothing else. Generator and judge share no code with it.

A case is *good* with 12 true matches or more in the field of view, a false fraction below a half and an offset inside
the search radius; *bad* with under 3 true matches or an offset outside; all else, and every smeared, empty,
proper-motion-only or partly displaced one, is *between*. *Wrong* is what is accepted with a true radial error at the
field's centre of more than 30 mas and more than 4.5 predicted sigma per axis.

``--vary`` draws anew for each case what the generator leaves open: how false sources lie, laws of smears, understated
or unknown errors, tiny fields, no footprint. ``--prior`` makes another kind of case: 3 to 11 true references and a
prior of 10-20 mas, every seventh one wrong; its JSON line tells how many were solved, and which priors were called
wrong.

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
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from alignment_scenes import (
    ENOUGH,
    HARDLY_ANY,
    KINDS,
    NEVER_GOOD,
    SEARCH_RADIUS,
    Scene,
    Variation,
    make_case,
    make_prior_case,
    tangent_plane,
)

from panoramic.alignment_solution import Cause, PointingKnowledge, Refusal, Solution, measure_solution

FLOOR_MAS = 30.0
WORST_SIGMA = 4.5
RAYLEIGH = math.sqrt(2 * math.log(2))  # median of a radial error in sigma per axis
FEW_ROWS = 8  # a reference of fewer rows may well be called too small


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
    parser.add_argument("--vary", action="store_true", help="vary what the generator leaves open")
    parser.add_argument("--prior", action="store_true", help="few references, and knowledge of the pointing")
    parser.add_argument("--show", action="store_true", help="print each case that was judged badly")
    options = parser.parse_args(arguments)
    return prior_cases(options) if options.prior else random_cases(options)


def measured(scene: Scene, prior: PointingKnowledge | None = None) -> tuple[Solution | Refusal, float]:
    """The answer, and the processor time it took."""
    start = time.process_time()
    answer = measure_solution(
        scene.ra,
        scene.dec,
        scene.ref_ra,
        scene.ref_dec,
        search_radius_arcsec=SEARCH_RADIUS,
        footprint=scene.footprint if scene.give_footprint else None,
        error_mas=scene.error,
        ref_error_mas=scene.ref_error,
        magnitude=scene.magnitude,
        prior=prior,
    )
    return answer, time.process_time() - start


@dataclass
class Judged:
    """One accepted solution against the truth: ratios of radial errors to their predicted medians, and the verdict."""

    wrong: bool
    ratio: float
    corner_ratio: float


def judged(scene: Scene, answer: Solution) -> Judged:
    east, north = scene.truth_at(answer.ra, answer.dec)
    radial = math.hypot(answer.dra - east, answer.ddec - north)
    sigma = math.sqrt((answer.err_ra**2 + answer.err_dec**2) / 2)
    return Judged(radial > max(FLOOR_MAS, WORST_SIGMA * sigma), radial / (RAYLEIGH * sigma), corner(scene, answer))


def corner(scene: Scene, answer: Solution) -> float:
    """Radial error at the first corner over its predicted median."""
    ra, dec = scene.footprint[:1, 0], scene.footprint[:1, 1]
    here = float(ra[0]), float(dec[0])
    found, true = (tangent_plane(*sky, here)[0] for sky in (answer.corrected(ra, dec), scene.true_place(*here)))
    error_east, error_north = (float(e[0]) for e in answer.error_at(ra, dec))
    return 1000 * math.hypot(*(found - true)) / (RAYLEIGH * math.sqrt((error_east**2 + error_north**2) / 2))


def random_cases(options: argparse.Namespace) -> int:
    count: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    solutions: list[Judged] = []
    cpu = 0.0
    for number in range(options.cases):
        rng = np.random.default_rng([options.seed, number])
        how = Variation.drawn(np.random.default_rng([options.seed, number, 1])) if options.vary else None
        case = make_case(options.kind or KINDS[number % len(KINDS)], rng, how)
        klass, answers = case.klass, []
        wrong, right = False, True
        for scene in case.scenes:
            answer, seconds = measured(scene)
            answers.append(answer)
            cpu += seconds
            if isinstance(answer, Solution):
                solutions.append(judged(scene, answer))
                wrong |= solutions[-1].wrong
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
            print(
                number, klass, verdict, case.kind, f"false {case.false_fraction:.2f}", rounded, truth, told, how or ""
            )
    for kind, seen in by_kind.items():
        if seen:
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
        **medians(solutions),
        "cpu_seconds_per_case": round(cpu / max(options.cases, 1), 4),
    }
    print(json.dumps(result))
    return int(count["wrong_accepted"] > 0)


def medians(solutions: list[Judged]) -> dict[str, float | None]:
    def median(values: list[float]) -> float | None:
        return round(float(np.median(values)), 4) if values else None

    return {
        "median_error_over_sigma": median([s.ratio for s in solutions]),
        "median_corner_error_over_sigma": median([s.corner_ratio for s in solutions]),
    }


def prior_cases(options: argparse.Namespace) -> int:
    count: Counter[str] = Counter()
    solutions: list[Judged] = []
    cpu = 0.0
    for number in range(options.cases):
        case = make_prior_case(np.random.default_rng([options.seed, number]))
        east, north, rotation = map(float, case.expected)
        answer, seconds = measured(case.scene, PointingKnowledge(east, north, rotation, np.diag(case.sigmas**2)))
        cpu += seconds
        which = "wrong_priors" if case.wrong else "right_priors"
        count[which] += 1
        if isinstance(answer, Refusal):
            count[f"{which}_named"] += answer.cause is Cause.DISAGREES_WITH_PRIOR
            continue
        solutions.append(judged(case.scene, answer))
        count[f"{which}_solved"] += 1
        count["alone"] += isinstance(measured(case.scene)[0], Solution)
        count["wrong_accepted"] += solutions[-1].wrong
        if options.show and solutions[-1].wrong:
            print(number, case.wrong, case.scene.true_matches, case.expected.round(2), case.sigmas.round(2), answer)
    result = {
        "cases": options.cases,
        "right_priors": count["right_priors"],
        "right_priors_solved": count["right_priors_solved"],
        "right_priors_called_wrong": count["right_priors_named"],
        "wrong_priors": count["wrong_priors"],
        "wrong_priors_solved": count["wrong_priors_solved"],
        "wrong_priors_named": count["wrong_priors_named"],
        "solved_without_prior_too": count["alone"],
        "wrong_accepted": count["wrong_accepted"],
        **medians(solutions),
        "cpu_seconds_per_case": round(cpu / max(options.cases, 1), 4),
    }
    print(json.dumps(result))
    return int(count["wrong_accepted"] > 0)


if __name__ == "__main__":
    sys.exit(main())
