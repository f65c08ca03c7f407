"""Fields and associations: the same partition whatever the order, the place on the sky, or the batches."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panoramic.associations import associate, association_name, index_of, linked
from panoramic.errors import InputError
from panoramic.fields import SkyField, assign_fields, field_name
from panoramic.footprints import (
    ARCMIN,
    FootprintSet,
    edge_distance_arcmin,
    from_tangent_plane,
    positions_of,
    separation_arcmin,
)
from panoramic.linkage import single_linkage
from panoramic.survey import AssociationRules, FieldRules

RULES = FieldRules(buffer_arcmin=25)
CENTRES = [(150.0, 2.0), (0.0005, 10.0), (359.9999, -45.0), (20.0, 89.99), (200.0, -89.995), (80.0, 0.0)]
RELAXED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scatter(make_exposure, centre, offsets):
    """Exposures at offsets (arcmin) about a centre; each a visit of its own."""
    positions = from_tangent_plane(np.array(offsets, float).reshape(-1, 2), centre)
    return [make_exposure(ra=ra, dec=dec, observation=1 + k) for k, (ra, dec) in enumerate(positions)]


def partition(assigned: dict[str, str]) -> set[frozenset[str]]:
    groups = defaultdict(set)
    for dataset, name in assigned.items():
        groups[name].add(dataset)
    return {frozenset(g) for g in groups.values()}


def brute_groups(count: int, close) -> set[frozenset[int]]:
    """Single linkage by asking for every pair."""
    groups = [{k} for k in range(count)]
    for i in range(count):
        for j in range(i):
            if close(i, j):
                one, other = (next(g for g in groups if k in g) for k in (i, j))
                if one is not other:
                    groups.remove(other)
                    one |= other
    return {frozenset(g) for g in groups}


def grouped(labels) -> set[frozenset[int]]:
    groups = defaultdict(set)
    for k, label in enumerate(labels):
        groups[int(label)].add(k)
    return {frozenset(g) for g in groups.values()}


def clustered_sky(seed: int, count: int, centre, buffer: float) -> list[np.ndarray]:
    """Footprints in clumps that lie about one buffer from each other, some with more corners, some very wide."""
    rng = np.random.default_rng(seed)
    clumps = np.cumsum(rng.uniform(-1.5, 1.5, (5, 2)) * (buffer + 3), axis=0)
    shapes = []
    for _ in range(count):
        middle = clumps[rng.integers(5)] + rng.normal(0, rng.choice([0.1, 1.0, buffer / 3]), 2)
        size = rng.choice([0.05, 1.07, 2.2, 8.0, 150.0], p=[0.1, 0.4, 0.4, 0.08, 0.02])
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7)) if rng.random() < 0.2 else np.pi / 4 + np.arange(4) * np.pi / 2
        plane = middle + size / np.sqrt(2) * np.column_stack([np.cos(angles), np.sin(angles)])
        shapes.append(from_tangent_plane(plane, centre))
    return shapes


offsets = st.lists(st.tuples(st.floats(-90, 90), st.floats(-90, 90)), min_size=1, max_size=12)


@RELAXED
@given(offsets=offsets, centre=st.sampled_from(CENTRES), seed=st.integers(0, 99))
def test_the_order_of_exposures_does_not_matter(make_exposure, offsets, centre, seed) -> None:
    exposures = scatter(make_exposure, centre, offsets)
    shuffled = list(exposures)
    np.random.default_rng(seed).shuffle(shuffled)  # type: ignore[arg-type]
    first, second = assign_fields(exposures, {}, RULES), assign_fields(shuffled + shuffled[:2], {}, RULES)
    assert first.fields == second.fields
    assert set(first.fields) == {e.dataset for e in exposures}


@RELAXED
@given(offsets=offsets, place=st.sampled_from(CENTRES))
def test_the_place_on_the_sky_does_not_matter(make_exposure, offsets, place) -> None:
    here = assign_fields(scatter(make_exposure, (150.0, 2.0), offsets), {}, RULES)
    there = assign_fields(scatter(make_exposure, place, offsets), {}, RULES)
    assert partition(here.fields) == partition(there.fields)


@RELAXED
@given(offsets=offsets, centre=st.sampled_from(CENTRES))
def test_running_again_changes_nothing(make_exposure, offsets, centre) -> None:
    exposures = scatter(make_exposure, centre, offsets)
    known = as_known(exposures, assign_fields(exposures, {}, RULES).fields)
    again = assign_fields(exposures, known, RULES)
    assert (again.fields, again.new) == ({}, [])


def as_known(exposures, fields) -> dict[str, SkyField]:
    known: dict[str, SkyField] = {}
    for exposure in exposures:
        name = fields[exposure.dataset]
        known.setdefault(name, SkyField(name, len(known))).footprints[exposure.dataset] = exposure.vertices
    return known


def test_a_bridge_keeps_both_names_and_is_reported(make_exposure) -> None:
    east, west = scatter(make_exposure, (150.0, 2.0), [(-20, 0), (20, 0)])
    known = as_known([east, west], assign_fields([east, west], {}, RULES).fields)
    assert len(known) == 2
    (bridge,) = scatter(make_exposure, (150.0, 2.0), [(3, 0)])
    bridge = make_exposure(ra=bridge.ra, dec=bridge.dec, observation=9)
    result = assign_fields([bridge], known, RULES)
    nearest = next(name for name, f in known.items() if west.dataset in f.footprints)
    assert result.fields == {bridge.dataset: nearest}
    assert set(result.touching[bridge.dataset]) == set(known)


def test_merges_of_the_survey_file_take_new_exposures(make_exposure) -> None:
    east, west = scatter(make_exposure, (150.0, 2.0), [(-20, 0), (20, 0)])
    known = as_known([east, west], assign_fields([east, west], {}, RULES).fields)
    names = list(known)
    rules = FieldRules(merges={names[0]: (names[1],)})
    new = make_exposure(ra=west.ra, dec=west.dec, observation=9)
    assert assign_fields([new], known, rules).fields == {new.dataset: names[0]}


@RELAXED
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 45),
    centre=st.sampled_from(CENTRES),
    buffer=st.sampled_from([0.05, 1.0, 25.0, 120.0]),
)
def test_groups_are_those_of_every_pair_measured(seed, count, centre, buffer) -> None:
    shapes = clustered_sky(seed, count, centre, buffer)
    labels = single_linkage(FootprintSet(shapes), FieldRules(buffer_arcmin=buffer))
    assert grouped(labels) == brute_groups(count, lambda i, j: edge_distance_arcmin(shapes[i], shapes[j]) <= buffer)
    assert sorted(set(labels)) == sorted(set(labels), key=list(labels).index) == list(range(max(labels) + 1))


@pytest.mark.parametrize("buffer", [0.05, 1.0, 25.0, 600.0])
def test_pairs_all_over_the_sky_are_linked_up_to_the_buffer(buffer) -> None:
    rng = np.random.default_rng(7)
    shapes = []
    while len(shapes) < 600:
        centre = (float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-1, 1)))))
        apart, roll = (buffer + 1.07) * rng.uniform(0.9, 1.1), rng.uniform(0, 2 * np.pi)
        middles = np.array([[0, 0], [apart * np.cos(roll), apart * np.sin(roll)]])
        shapes += [
            from_tangent_plane(m + 0.535 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]), centre) for m in middles
        ]
    rules = FieldRules(buffer_arcmin=buffer)
    linked_ = [len(set(single_linkage(FootprintSet(shapes[k : k + 2]), rules))) == 1 for k in range(0, 600, 2)]
    expected = [edge_distance_arcmin(shapes[k], shapes[k + 1]) <= buffer for k in range(0, 600, 2)]
    assert linked_ == expected
    assert 0 < sum(expected) < 300


def test_no_cell_is_too_large_along_its_diagonal() -> None:
    # pairs a little further apart than the buffer, along the direction (1, 1, 1) in which the cells are longest
    count, rng = 4000, np.random.default_rng(3)
    diagonal = np.ones(3) / np.sqrt(3)
    across = np.array([1, -1, 0]) / np.sqrt(2), np.array([1, 1, -2]) / np.sqrt(6)
    shapes = []
    for turn in 2 * np.pi * np.arange(count) / count:
        radial = np.cos(turn) * across[0] + np.sin(turn) * across[1]
        aside = np.cross(diagonal, radial)
        along = rng.uniform(-3, 3) + (1.07 + rng.uniform(1.001, 1.1)) * np.array([0, 1])
        for middle in along:
            corners = 0.535 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + [0, middle]
            shapes.append(positions_of(radial + ARCMIN * (corners[:, :1] * aside + corners[:, 1:] * diagonal)))
    assert single_linkage(FootprintSet(shapes), FieldRules(buffer_arcmin=1)).tolist() == list(range(2 * count))


@RELAXED
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(4, 40),
    centre=st.sampled_from(CENTRES),
    buffer=st.sampled_from([0.05, 1.0, 25.0]),
)
def test_a_new_exposure_joins_the_nearest_field(make_exposure, seed, count, centre, buffer) -> None:
    rules = FieldRules(buffer_arcmin=buffer)
    shapes = clustered_sky(seed, count, centre, buffer)
    known: dict[str, SkyField] = {}
    for k, label in enumerate(single_linkage(FootprintSet(shapes[1:]), rules), start=1):
        known.setdefault(f"f{label}", SkyField(f"f{label}", int(label))).footprints[f"d{k}"] = shapes[k]
    new = exposure_of(make_exposure, shapes[0])
    distances = {
        name: min(edge_distance_arcmin(shapes[0], v) for v in f.footprints.values()) for name, f in known.items()
    }
    near = [n for n in distances if distances[n] <= buffer]
    ranked = sorted(near, key=lambda n: (round(distances[n], 6), known[n].order))
    result = assign_fields([new], known, rules)
    assert result.moved == {}
    assert result.touching == ({new.dataset: tuple(ranked)} if len(ranked) > 1 else {})
    if ranked:
        assert result.fields == {new.dataset: ranked[0]}
    else:
        assert result.new == list(result.fields.values())


def exposure_of(make_exposure, vertices, **rest):
    """An exposure with a footprint of any shape, given to all digits."""
    text = "POLYGON ICRS " + " ".join(repr(float(v)) for v in vertices.ravel())
    return make_exposure(footprint=text, **rest)


@RELAXED
@given(offsets=offsets, centre=st.sampled_from(CENTRES), seed=st.integers(0, 99), batches=st.integers(2, 5))
def test_batches_do_not_matter_unless_a_later_exposure_bridges_fields(
    make_exposure, offsets, centre, seed, batches
) -> None:
    exposures = scatter(make_exposure, centre, offsets)
    known: dict[str, SkyField] = {}
    fields: dict[str, str] = {}
    touched = False
    for batch in np.array_split(np.random.default_rng(seed).permutation(len(exposures)), batches):
        names = dict(fields)
        result = assign_fields([exposures[i] for i in batch], known, RULES)
        fields |= result.fields
        touched = touched or bool(result.touching)
        assert {d: fields[d] for d in names} == names
        assert result.moved == {}
        assert set(result.new) == set(result.fields.values()) - set(known)
        for i in batch:
            name = fields[exposures[i].dataset]
            known.setdefault(name, SkyField(name, len(known))).footprints[exposures[i].dataset] = exposures[i].vertices
    if not touched:
        assert partition(fields) == partition(assign_fields(exposures, {}, RULES).fields)
    else:  # the fields kept their names, and are one group
        assert len(known) > len(set(assign_fields(exposures, {}, RULES).fields.values()))


def test_a_chain_of_new_exposures_joins_the_field_at_its_end(make_exposure) -> None:
    first, second, third = scatter(make_exposure, (150.0, 2.0), [(0, 0), (25, 0), (50, 0)])
    known = as_known([first], assign_fields([first], {}, RULES).fields)
    result = assign_fields([third, second], known, RULES)
    assert set(result.fields.values()) == set(known)
    assert (result.new, result.touching) == ([], {})


def test_a_chain_between_two_fields_goes_to_the_nearer_end_and_is_reported(make_exposure) -> None:
    ends_and_chain = scatter(make_exposure, (150.0, 2.0), [(-50, 0), (50, 0), (-25, 0), (0.1, 0), (25, 0)])
    ends, chain = ends_and_chain[:2], ends_and_chain[2:]
    known = as_known(ends, assign_fields(ends, {}, RULES).fields)
    west, east = (next(n for n, f in known.items() if e.dataset in f.footprints) for e in ends)
    result = assign_fields(chain, known, RULES)
    assert [result.fields[e.dataset] for e in chain] == [west, east, east]
    assert result.touching == {chain[0].dataset: (west, east), chain[1].dataset: (east, west)}


# --- merges and splits ------------------------------------------------------------------------


def apply(known, result, exposures) -> dict[str, SkyField]:
    """The fields as they are stored after a result."""
    vertices = {e.dataset: e.vertices for e in exposures}
    placed = {d: f.name for f in known.values() for d in f.footprints} | result.fields | result.moved
    stored = {name: SkyField(name, f.order) for name, f in known.items()}
    for name in result.new:
        stored[name] = SkyField(name, len(stored))
    for dataset, name in placed.items():
        stored[name].footprints[dataset] = vertices[dataset]
    return stored


@RELAXED
@given(offsets=offsets, centre=st.sampled_from(CENTRES), seed=st.integers(0, 99), fresh=st.booleans())
def test_merges_and_splits_are_done_once(make_exposure, offsets, centre, seed, fresh) -> None:
    exposures = scatter(make_exposure, centre, offsets)
    natural = assign_fields(exposures, {}, RULES)
    names = list(natural.new)
    rng = np.random.default_rng(seed)
    gone = [n for n in names[1:] if rng.random() < 0.5]
    parents = [n for n in names if n not in gone and rng.random() < 0.7]
    rules = FieldRules(
        merges={names[0]: gone},
        splits={
            n: {f"{n}odd": [f"jw02514{k:03d}*" for k in range(1, 13, 2)] if n == parents[0] else []} for n in parents
        },
    )
    expected = {d: rules.split(names[0] if n in gone else n, d) for d, n in natural.fields.items()}
    if fresh:
        known, result = {}, assign_fields(exposures, {}, rules)
        assert result.moved == {}
        assert result.fields == expected
    else:
        known = as_known(exposures, natural.fields)
        result = assign_fields(exposures, known, rules)
        assert result.fields == {}
        assert result.moved == {d: n for d, n in expected.items() if n != natural.fields[d]}
    assert set(result.new) == set(expected.values()) - set(known)
    assert len(set(result.new)) == len(result.new)
    again = assign_fields(exposures, apply(known, result, exposures), rules)
    assert (again.fields, again.moved, again.new, again.touching) == ({}, {}, [], {})


def test_new_exposures_follow_the_split_whatever_part_is_nearer(make_exposure) -> None:
    first, second = scatter(make_exposure, (150.0, 2.0), [(-8, 0), (8, 0)])
    known = as_known([first, second], assign_fields([first, second], {}, RULES).fields)
    (parent,) = known
    rules = FieldRules(splits={parent: {"east": ["jw02514001*"], "third": ["jw02514003*"]}})
    moves = assign_fields([first, second], known, rules)
    assert (moves.moved, moves.new) == ({first.dataset: "east"}, ["east"])
    known = apply(known, moves, [first, second])
    same_place = make_exposure(ra=first.ra, dec=first.dec, observation=2, exposure=2)
    matching = make_exposure(ra=second.ra, dec=second.dec, observation=3)
    result = assign_fields([same_place, matching], known, rules)
    assert result.fields == {same_place.dataset: parent, matching.dataset: "third"}
    assert (result.new, result.touching, result.moved) == (["third"], {}, {})


def test_a_field_that_everything_left_stays_empty(make_exposure) -> None:
    east, west = scatter(make_exposure, (150.0, 2.0), [(-30, 0), (30, 0)])
    natural = assign_fields([east, west], {}, RULES).fields
    kept, gone = natural[east.dataset], natural[west.dataset]
    rules = FieldRules(merges={kept: (gone,)})
    known = as_known([east, west], natural)
    known = apply(known, assign_fields([], known, rules), [east, west])
    assert known[gone].footprints == {}
    near = make_exposure(ra=west.ra, dec=west.dec, observation=9)
    far = make_exposure(ra=10.0, dec=-50.0, observation=10)
    result = assign_fields([near, far], known, rules)
    assert result.fields[near.dataset] == kept
    assert result.new == [result.fields[far.dataset]]
    # without its exposures a field has no place on the sky, and its name is not given to another
    lone = assign_fields([near], {gone: SkyField(gone, 1)}, RULES)
    assert lone.fields == {near.dataset: gone + "b"}


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [
        (198.6333, 24.5333, "j131432p2432"),
        (0.960430, -11.326817, "j000352m1120"),
        (150.0, 2.1333, "j100000p0208"),
        (359.9999, -0.001, "j000000p0000"),
        (10.0, -0.01, "j004000m0001"),
        (10.0, 89.9999, "j004000p9000"),
    ],
)
def test_names(ra: float, dec: float, name: str) -> None:
    assert field_name(ra, dec) == name


def test_two_fields_never_share_a_name(make_exposure) -> None:
    close = scatter(make_exposure, (150.0, 2.0), [(0, 0), (0, 3.0)])
    names = assign_fields(close, {}, FieldRules(buffer_arcmin=0.1)).fields
    assert len(set(names.values())) == 2


# --- associations -----------------------------------------------------------------------------


def test_one_association_for_each_visit_filter_and_detector(make_exposure) -> None:
    exposures = [
        make_exposure(observation=o, detector=d, filter=f, exposure=n)
        for o in (1, 2)
        for d, f in (("NRCB1", "F115W"), ("NRCB2", "F115W"), ("NRCBLONG", "F444W"))
        for n in (1, 2, 3)
    ]
    found = associate("j1", exposures, {}, AssociationRules())
    assert [len(a.exposures) for a in found] == [3] * 6
    assert [index_of(a.name) for a in found] == [1, 2, 3, 4, 5, 6]
    assert found[0].name == association_name("j1", found[0].first, 1)


@RELAXED
@given(seed=st.integers(0, 999), batches=st.integers(1, 4))
def test_names_never_change_and_every_exposure_is_in_one(make_exposure, seed, batches) -> None:
    rng = np.random.default_rng(seed)
    exposures = [
        make_exposure(
            observation=int(rng.integers(1, 4)),
            activity=f"{k:02d}101",
            exposure=1,
            t_min=60000 + float(rng.uniform(0, 1)),
        )
        for k in range(12)
    ]
    known: dict[str, str] = {}
    order = rng.permutation(12)
    for batch in np.array_split(order, batches):
        arrived = [exposures[i] for i in order if exposures[i].dataset in known or i in batch]
        found = associate("j1", arrived, known, AssociationRules())
        new = {e.dataset: a.name for a in found for e in a.exposures}
        assert {d: new[d] for d in known} == known
        assert sum(len(a.exposures) for a in found) == len(new) == len(arrived)
        known = new
    assert partition(known) == partition(
        {e.dataset: a.name for a in associate("j1", exposures, {}, AssociationRules()) for e in a.exposures}
    )


@RELAXED
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 40),
    centre=st.sampled_from(CENTRES),
    lasting=st.sampled_from([0.0, 0.01, 5.0]),
    rules=st.sampled_from([AssociationRules(), AssociationRules(maximum_separation_arcmin=3, maximum_gap_days=0.02)]),
)
def test_associations_are_those_of_every_pair_measured(make_exposure, seed, count, centre, lasting, rules) -> None:
    rng = np.random.default_rng(seed)
    apart, gap = rules.maximum_separation_arcmin, rules.maximum_gap_days
    exposures = []
    for k in range(count):
        plane = rng.integers(0, 3, (1, 2)) * apart + rng.normal(0, apart / 4, (1, 2))
        ra, dec = from_tangent_plane(plane, centre)[0]
        t_min = 60000 + float(rng.integers(0, 3) * gap + rng.normal(0, gap / 4))
        t_max = t_min + lasting * float(rng.uniform(-0.1, 1))  # a few end before they begin
        observation = int(rng.integers(1, 3))
        exposures.append(
            make_exposure(ra=ra, dec=dec, observation=observation, exposure=k + 1, t_min=t_min, t_max=t_max)
        )

    def close(i: int, j: int) -> bool:
        one, other = exposures[i], exposures[j]
        between = max(one.t_min, other.t_min) - min(one.t_max, other.t_max)
        distance = separation_arcmin(one.ra, one.dec, other.ra, other.dec)
        return one.observation == other.observation and between <= gap and distance <= apart

    groups = [[e for e in exposures if e.observation == o] for o in (1, 2)]
    found = linked([g for g in groups if g], rules)
    number = {e.dataset: k for k, e in enumerate(exposures)}
    assert {frozenset(number[e.dataset] for e in c) for c in found} == brute_groups(count, close)
    assert sum(map(len, found)) == count
    keys = [(c[0].observation, c[0].t_min, c[0].dataset) for c in found]
    assert keys == sorted(keys)
    assert all(c == sorted(c, key=lambda e: (e.t_min, e.dataset)) for c in found)


def test_thousands_of_exposures_in_one_group_are_one_association(make_exposure) -> None:
    rng = np.random.default_rng(1)
    base = make_exposure()
    exposures = [
        dataclasses.replace(
            base,
            dataset=f"jw{k:05d}",
            ra=base.ra + rng.uniform(-0.05, 0.05),
            t_min=base.t_min + t,
            t_max=base.t_min + t,
        )
        for k, t in enumerate(rng.uniform(0, 10, 3000))
    ]
    (found,) = associate("j1", exposures, {}, AssociationRules())
    assert len(found.exposures) == 3000


def test_far_apart_in_time_or_space_is_another_association(make_exposure) -> None:
    base = make_exposure()
    later = make_exposure(exposure=2, t_min=base.t_max + 2.5)
    away = make_exposure(exposure=3, ra=150.0 + 1.5 / 60)
    assert [len(a.exposures) for a in associate("j1", [base, later, away], {}, AssociationRules())] == [1, 1, 1]


def test_indices_go_on_after_the_highest_ever_given(make_exposure) -> None:
    new = make_exposure(observation=7)
    (found,) = associate("j1", [new], {"gone": "j1_v001-1-f444w_00041"}, AssociationRules())
    assert index_of(found.name) == 42


def test_a_pupil_filter_gives_its_own_name(make_exposure) -> None:
    (found,) = associate("j1", [make_exposure(pupil="F470N")], {}, AssociationRules())
    assert found.name == "j1_v001-2514-f470n_00001"
    assert found.filter_key == "f444w-f470n"


def test_a_name_without_index_is_refused() -> None:
    with pytest.raises(InputError):
        index_of("j1_v001-2514-f444w")


def test_merges_on_a_fresh_home_take_the_kept_name_once(make_exposure) -> None:
    east, west = scatter(make_exposure, (150.0, 2.0), [(-30, 0), (30, 0)])
    natural = assign_fields([east, west], {}, RULES).fields
    kept, gone = natural[east.dataset], natural[west.dataset]
    result = assign_fields([east, west], {}, FieldRules(merges={kept: (gone,)}))
    assert set(result.fields.values()) == {kept}
    assert result.new == [kept]
    known = as_known([east], {east.dataset: kept})
    later = assign_fields([west], known, FieldRules(merges={kept: (gone,)}))
    assert (later.fields, later.new) == ({west.dataset: kept}, [])
