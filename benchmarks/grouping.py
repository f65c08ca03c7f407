"""How long it takes to group and name exposures; side by side with mastquery.

Makes a sky of `Exposure` objects (fields all over the sphere, poles and RA 0 among them, some of them deep), and
groups them as the ingest and the asset ``associations`` do: `assign_fields` over all, then `associate` in each field.
Each size runs in a process of its own and ends with one JSON line. Making the sky is not timed; parsing the
footprints is.

``--peer`` also runs mastquery's grouping. Its `overlaps.find_overlaps` looks up the galactic dust on the web and draws
a figure for each group, so the two functions are called that it groups with: `query.instrument_polygon` (S_REGION to
polygon, in degrees of RA and Dec) and `overlaps.parse_overlap_polygons`. It widens both of two footprints, so half of
our buffer is its buffer. Its plane of RA and Dec has no cos(dec), no poles and no RA 0: groups are compared on the
real table only, away from those.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from panoramic.associations import associate
from panoramic.fields import FieldAssignment, SkyField, assign_fields
from panoramic.footprints import from_tangent_plane, mean_position, positions_of, to_s_region
from panoramic.observations import Exposure, parse_rows
from panoramic.survey import AssociationRules, ExposureRules, FieldRules

REAL_TABLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "mast" / "nircam_image.csv.gz"
PEER_EXPOSURES = 1000
FILTERS = (("F115W", "F277W"), ("F150W", "F356W"), ("F200W", "F444W"))
CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
SHORT, LONG = 1.07, 2.2  # arcmin, sides of the detectors
# arcmin from the middle of the module; the modules lie 2.75 arcmin to either side
DETECTORS = {"1": (-0.56, -0.56), "2": (-0.56, 0.56), "3": (0.56, -0.56), "4": (0.56, 0.56), "LONG": (0.0, 0.0)}
PLACES = ((20.0, 89.99), (200.0, -89.99), (0.001, 12.0), (359.999, -37.0))  # poles and RA 0


def survey_sky(count: int, rng: np.random.Generator) -> Iterator[Exposure]:
    """Pure-parallel fields all over the sky, four fifths of them shallow; the others are deep."""
    made = 0
    for number in range(count):
        centre = PLACES[number] if number < len(PLACES) else tuple(positions_of(rng.normal(size=3)))
        deep = number % 40 == 39
        visits = int(rng.integers(12, 40)) if deep else int(rng.integers(1, 4))
        for exposure in field_of_exposures(number + 1, centre, visits, 6.0 if deep else 1.5, rng):
            yield exposure
            made += 1
            if made == count:
                return


def deep_sky(count: int, rng: np.random.Generator) -> Iterator[Exposure]:
    """All exposures overlap in one field."""
    made = 0
    for number in range(count):
        for exposure in field_of_exposures(number + 1, (53.16, -27.79), 40, 6.0, rng):
            yield exposure
            made += 1
            if made == count:
                return


def one_visit(count: int, rng: np.random.Generator) -> Iterator[Exposure]:
    """A single association group: one visit of one detector, with dithers of a few arcmin over ten days."""
    for number in range(count):
        middle = from_tangent_plane(rng.uniform(-3, 3, (1, 2)), (150.0, 2.0))[0]
        vertices = from_tangent_plane(CORNERS * LONG, (float(middle[0]), float(middle[1])))
        yield make_exposure(1, 1, number + 1, "NRCBLONG", "F444W", vertices, 60000 + float(rng.uniform(0, 10)))


SKIES = {"survey": survey_sky, "deep": deep_sky, "visit": one_visit}


def field_of_exposures(
    program: int, centre: tuple[float, ...], visits: int, scatter: float, rng: np.random.Generator
) -> Iterator[Exposure]:
    """A field's visits, about ``scatter`` arcmin around its centre; each with dithers, filters, detectors, a roll."""
    for observation in range(1, visits + 1):
        pointing, roll = rng.normal(0, scatter, 2), rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        start = 59800 + float(rng.uniform(0, 900))
        modules = "B" if rng.random() < 0.3 else "AB"
        dithers = rng.normal(0, 0.1, (int(rng.integers(2, 7)), 2))
        used = FILTERS[: int(rng.integers(1, 4))]
        for k, (short, long) in enumerate(used):
            for d, dither in enumerate(dithers):
                for module in modules:
                    for name, offset in DETECTORS.items():
                        middle = dither + offset
                        middle[0] += 2.75 if module == "A" else -2.75
                        size, element = (LONG, long) if name == "LONG" else (SHORT, short)
                        plane = pointing + (CORNERS * size + middle) @ turn.T
                        vertices = from_tangent_plane(plane, (float(centre[0]), float(centre[1])))
                        number = k * len(dithers) + d + 1
                        t_min = start + number * 0.01
                        yield make_exposure(
                            program, observation, number, f"NRC{module}{name}", element, vertices, t_min
                        )


def make_exposure(
    program: int, observation: int, number: int, detector: str, element: str, vertices: np.ndarray, t_min: float
) -> Exposure:
    dataset = f"jw{program:05d}{observation:03d}001_02101_{number:05d}_{detector.lower()}"
    ra, dec = mean_position(vertices)
    return Exposure(
        dataset=dataset, filename=f"{dataset}_rate.fits", program=program, observation=observation, visit=1,
        activity="02101", exposure=number, detector=detector, filter=element, pupil="CLEAR", module=detector[3],
        exptime=500.0, t_min=t_min, t_max=t_min + 500 / 86400, footprint=to_s_region(vertices), ra=ra, dec=dec,
        release=0.0, file_id=number, checksum="", size=0, cal_ver="1.16.1", crds_ctx="", expcount=4,
    )  # fmt: skip


def as_known(exposures: Iterable[Exposure], assignment: FieldAssignment) -> dict[str, SkyField]:
    """The fields as the database hands them to the next look."""
    known = {name: SkyField(name, order) for order, name in enumerate(assignment.new, start=1)}
    for exposure in exposures:
        known[assignment.fields[exposure.dataset]].footprints[exposure.dataset] = exposure.vertices
    return known


def group(exposures: Sequence[Exposure], known: dict[str, SkyField]) -> tuple[FieldAssignment, int]:
    """Fields, and the number of associations in the fields that got new exposures."""
    assignment = assign_fields(exposures, known, FieldRules())
    members: dict[str, list[Exposure]] = defaultdict(list)
    for exposure in exposures:
        if exposure.dataset in assignment.fields:
            members[assignment.fields[exposure.dataset]].append(exposure)
    return assignment, sum(len(associate(name, own, {}, AssociationRules())) for name, own in members.items())


def measure(count: int, seed: int, sky: str, arriving: int | None) -> dict[str, float]:
    """One size: group all, or only the last ``arriving`` exposures, the others being known."""
    rng = np.random.default_rng(seed)
    exposures = list(SKIES[sky](count, rng))
    order = rng.permutation(count)
    exposures, known = [exposures[i] for i in order], {}
    if arriving is not None:
        earlier, exposures = exposures[arriving:], exposures[:arriving]
        known = as_known(earlier, group(earlier, {})[0])
    start = time.process_time()
    assignment, associations = group(exposures, known)
    seconds = time.process_time() - start
    return {
        "exposures": len(exposures),
        "fields": len(set(assignment.fields.values())),
        "associations": associations,
        "cpu_seconds": round(seconds, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


# --- mastquery --------------------------------------------------------------------------------


def mastquery_groups(exposures: Sequence[Exposure]) -> set[frozenset[str]]:
    """Groups of datasets, by mastquery's own functions."""
    from mastquery import overlaps, query

    polygons = []
    for e in exposures:
        row = {"ra": e.ra, "dec": e.dec, "footprint": e.footprint, "instrument_name": "NIRCAM", "obs_id": e.dataset}
        with contextlib.redirect_stdout(io.StringIO()):
            # without a limit on the area it would replace short-wave footprints by circles
            polygon, _, _ = query.instrument_polygon(row | {"expstart": e.t_min}, bad_area=0.01)
        polygons.append(polygon.buffer(FieldRules().buffer_arcmin / 2 / 60))
    overlaps.TQDM_MIN = len(polygons) + 1  # no progress bar
    _, members = overlaps.parse_overlap_polygons(polygons, verbose=0)
    return {frozenset(exposures[i].dataset for i in own) for own in members}


def our_groups(exposures: Sequence[Exposure]) -> set[frozenset[str]]:
    """Groups of datasets, by our fields."""
    groups = defaultdict(set)
    for dataset, name in assign_fields(exposures, {}, FieldRules()).fields.items():
        groups[name].add(dataset)
    return {frozenset(own) for own in groups.values()}


def timed(function, exposures: Sequence[Exposure]) -> tuple[float, set[frozenset[str]]]:
    for exposure in exposures:
        exposure.__dict__.pop("vertices", None)  # parsed anew in each run
    start = time.process_time()
    groups = function(exposures)
    return time.process_time() - start, groups


def beside_mastquery(name: str, exposures: Sequence[Exposure], compare: bool) -> bool:
    """Run both in turn, three times; print the medians and their ratio. Whether the groups are as they should be."""
    our_groups(exposures[:50])  # imports
    mastquery_groups(exposures[:50])
    ours, theirs = [], []
    for _ in range(3):
        seconds, own = timed(our_groups, exposures)
        ours.append(seconds)
        seconds, peer = timed(mastquery_groups, exposures)
        theirs.append(seconds)
    a, b = float(np.median(ours)), float(np.median(theirs))
    print(f"{name}: {len(exposures)} exposures, ours {a:.3f} s, mastquery {b:.3f} s, mastquery / ours = {b / a:.1f}")
    if not compare:
        return True
    same = own == peer
    print(f"{name}: {len(own)} groups, mastquery {len(peer)}: {'the same' if same else 'NOT the same'}")
    for datasets in sorted(own ^ peer, key=min):
        print(f"  only {'ours' if datasets in own else 'mastquery'}: {len(datasets)} from {min(datasets)}")
    return same


def peer(count: int, seed: int) -> bool:
    beside_mastquery(
        "made sky", list(survey_sky(min(count, PEER_EXPOSURES), np.random.default_rng(seed))), compare=False
    )
    if not REAL_TABLE.is_file():
        print(f"real table: skipped, {REAL_TABLE} is absent")
        return True
    csv.field_size_limit(sys.maxsize)
    with gzip.open(REAL_TABLE, "rt", newline="") as text:
        parsed = parse_rows(csv.DictReader(text), REAL_TABLE.name, ExposureRules())
    real = [e for e in parsed.exposures.values() if not e.refused and abs(e.dec) < 80 and 2 < e.ra < 358]
    right = beside_mastquery("real table", real, compare=True)
    sys.stdout.flush()  # a pool ends its processes without
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exposures", type=int, nargs="+", default=[1000, 10_000, 100_000], metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--sky", choices=sorted(SKIES), default="survey", help="all over the sky, one deep field, one visit"
    )
    parser.add_argument("--arriving", type=int, metavar="M", help="only the last M are new, the others are known")
    parser.add_argument("--peer", action="store_true", help="also run mastquery's grouping and compare")
    options = parser.parse_args()
    # a process for each task, so that its peak memory is its own
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        right = pool.apply(peer, (min(options.exposures), options.seed)) if options.peer else True
        for count in options.exposures:
            job = (count, options.seed, options.sky, options.arriving)
            print(json.dumps(pool.apply(measure, job)), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
