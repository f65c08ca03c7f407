"""Fields and associations: the same partition whatever the order, the place on the sky, or the batches."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panoramic.associations import associate, association_name, index_of
from panoramic.errors import InputError
from panoramic.fields import SkyField, assign_fields, field_name
from panoramic.footprints import from_tangent_plane
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
