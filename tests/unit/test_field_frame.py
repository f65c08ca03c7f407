"""The field's frame against a simulated sky whose pointing errors are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from panoramic.errors import InputError
from panoramic.field_frame import (
    EXTERNAL_NAME,
    ExternalMatches,
    FrameAssociation,
    FrameRules,
    FrameSolution,
    solve_frame,
)
from panoramic.footprints import ARCMIN, deproject, project
from panoramic.reduction.moving import SkyCorrection

MAS = ARCMIN / 60_000
HALF = 65.0  # arcsec, of a pointing
PLACES = [(150.0, 2.0), (0.002, -30.0), (33.0, 89.99)]
GRID = [(x * 100.0, y * 100.0) for y in range(2) for x in range(3)]  # 30 arcsec of overlap


def sky(points: np.ndarray, place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (deg) of points in arcsec about a place."""
    points = np.asarray(points, float).reshape(-1, 2)
    return deproject(*(points.T * 1000 * MAS), *place)


def plane(ra: np.ndarray, dec: np.ndarray, place: tuple[float, float]) -> np.ndarray:
    """Inverse of `sky`, in mas."""
    return np.column_stack(project(ra, dec, *place)) / MAS


@dataclasses.dataclass
class Field:
    """A simulated field: what the solution is given, and the error that each pointing was given."""

    associations: list[FrameAssociation]
    errors: dict[str, SkyCorrection]
    centres: np.ndarray
    place: tuple[float, float]

    def left(self, solution: FrameSolution, name: str) -> np.ndarray:
        """What is left of the pointing's error at a 5 x 5 grid over the association: (25, 2), mas."""
        k = [a.name for a in self.associations].index(name)
        grid = np.array([(x, y) for x in np.linspace(-HALF, HALF, 5) for y in np.linspace(-HALF, HALF, 5)])
        truth = sky(self.centres[k] + grid, self.place)
        seen = self.errors[name].apply(*truth)
        return plane(*solution.of(name).correction.apply(*seen), self.place) - plane(*truth, self.place)

    def apart(self, solution: FrameSolution, first: str, second: str) -> float:
        """By how much two associations disagree over the middle of their overlap, mas."""
        names = [a.name for a in self.associations]
        middle = (self.centres[names.index(first)] + self.centres[names.index(second)]) / 2
        truth = sky(middle, self.place)
        places = [
            plane(*solution.of(n).correction.apply(*self.errors[n].apply(*truth)), self.place) for n in (first, second)
        ]
        return float(np.hypot(*(places[0] - places[1])[0]))


def without_common_motion(field: Field, solution: FrameSolution) -> dict[str, np.ndarray]:
    """Mean of what is left of each association when a shift and a turn of all of them are taken out, mas."""
    names = [a.name for a in field.associations]
    left = np.array([field.left(solution, name).mean(axis=0) for name in names])
    x, y = (field.centres - field.centres.mean(axis=0)).T
    one, none = np.ones_like(x), np.zeros_like(x)
    design = np.concatenate([np.column_stack([one, none, y]), np.column_stack([none, one, -x])])
    values = np.concatenate(left.T)
    rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return dict(zip(names, rest.reshape(2, -1).T, strict=True))


def simulate(
    seed: int,
    centres: Sequence[tuple[float, float]] = GRID,
    *,
    place: tuple[float, float] = PLACES[0],
    density: float = 0.02,
    noise: tuple[float, float] = (2.0, 5.0),
    pointing_mas: float = 30.0,
    turn_deg: float = 0.003,
    external_mas: float = 40.0,
    external_part: float = 0.1,
    false_part: float = 0.2,
    known_errors: bool = True,
) -> Field:
    """Overlapping pointings of one sky.

    ``density`` is sources per arcsec2; ``external_part`` of them are in the external catalogue, and ``false_part`` of
    an association's external matches are false ones, anywhere within 150 mas.
    """
    rng = np.random.default_rng(seed)
    centres = np.array(centres, float)
    low, high = centres.min(axis=0) - HALF, centres.max(axis=0) + HALF
    stars = rng.uniform(low, high, (int(density * np.prod(high - low)), 2))
    sigma = rng.uniform(*noise, len(stars))
    catalogued = rng.random(len(stars)) < external_part
    reference = stars + rng.normal(0, external_mas / 1000, stars.shape)
    mag = rng.uniform(18, 25, len(stars))
    associations, errors = [], {}
    for k, centre in enumerate(centres):
        name = f"a{k:02d}"
        shift = rng.normal(0, pointing_mas, 2)
        ra0, dec0 = (float(v[0]) for v in sky(centre, place))
        errors[name] = SkyCorrection(ra0, dec0, *shift, float(rng.normal(0, turn_deg)))
        rows = np.flatnonzero((np.abs(stars - centre) < HALF).all(axis=1))
        rows = rows[rng.permutation(len(rows))]
        seen = stars[rows] + rng.normal(0, 1, (len(rows), 2)) * sigma[rows, None] / 1000
        ra, dec = errors[name].apply(*sky(seen, place))
        outside = catalogued[rows]
        matched = reference[rows[outside]]
        false = rng.random(len(matched)) < false_part
        r, a = 0.15 * np.sqrt(rng.random(len(matched))), rng.uniform(0, 2 * np.pi, len(matched))
        matched = np.where(false[:, None], seen[outside] + np.column_stack([r * np.cos(a), r * np.sin(a)]), matched)
        corners = centre + HALF * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        associations.append(
            FrameAssociation(
                name=name,
                ra=ra,
                dec=dec,
                footprint=np.column_stack(errors[name].apply(*sky(corners, place))),
                error_mas=sigma[rows] if known_errors else None,
                mag=mag[rows],
                external=ExternalMatches(
                    ra[outside],
                    dec[outside],
                    *sky(matched, place),
                    np.full(len(matched), external_mas) if known_errors else None,
                ),
            )
        )
    return Field(associations, errors, centres, place)


def changed(field: Field, name: str, **values: object) -> list[FrameAssociation]:
    return [dataclasses.replace(a, **values) if a.name == name else a for a in field.associations]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("known_errors", [True, False])
def test_six_pointings_agree_with_each_other_and_lie_in_the_external_frame(
    place: tuple[float, float], known_errors: bool
) -> None:
    field = simulate(1, place=place, known_errors=known_errors)
    solution = solve_frame(field.associations)
    assert [c.members for c in solution.components] == [tuple(f"a{k:02d}" for k in range(6))]
    assert not solution.refused
    assert len(solution.ties) == 11  # the corners of the grid included
    assert max(field.apart(solution, t.first, t.second) for t in solution.ties) < 2.0
    assert max(np.hypot(*t.before_mas) for t in solution.ties) > 20.0
    assert all(np.hypot(*t.after_mas) < 5 * np.hypot(*t.error_mas) + 0.5 for t in solution.ties)
    (component,) = solution.components
    assert component.cause is None
    assert component.error is not None
    assert 2.0 < component.error.east_mas < 6.0
    assert 30.0 < (component.scatter_mas or 0.0) < 60.0
    for member in solution.members:
        assert member.error is not None
        middle = field.left(solution, member.name).mean(axis=0)
        assert abs(middle[0]) < 4.5 * member.error.east_mas
        assert abs(middle[1]) < 4.5 * member.error.north_mas
        assert member.relative_error.corner_east_mas < 3.0
    assert FrameSolution.from_json(solution.to_json()) == solution


def test_errors_are_what_is_promised() -> None:
    """Over many fields: of the frame, of each association, and of associations against each other."""
    frame, member, relative = [], [], []
    for seed in range(40):
        field = simulate(seed, GRID[:4], density=0.012, external_part=0.12)
        solution = solve_frame(field.associations)
        # where only corners meet there may be too few sources
        assert {r.cause for r in solution.refused} <= {"too few sources"}
        left = {m.name: field.left(solution, m.name).mean(axis=0) for m in solution.members}
        error = solution.components[0].error
        assert error is not None
        mean, apart = np.mean(list(left.values()), axis=0), without_common_motion(field, solution)
        frame += [mean[0] / error.east_mas, mean[1] / error.north_mas]
        for m in solution.members:
            assert m.error is not None
            member += [left[m.name][0] / m.error.east_mas, left[m.name][1] / m.error.north_mas]
            errors = m.relative_error.east_mas, m.relative_error.north_mas
            relative += [apart[m.name][0] / errors[0], apart[m.name][1] / errors[1]]
    # 80 numbers of the frame: a standard deviation of 1 is seen to 8 % (1 sigma)
    for pulls in (frame, member, relative):
        assert 0.75 < np.std(pulls) < 1.25


def turned_and_shifted(field: Field, name: str, correction: SkyCorrection) -> Field:
    """The field with one pointing's error replaced: catalogue, footprint and external sources go with it."""
    errors = dict(field.errors)
    move = field.errors[name].inverse().compose(correction)
    errors[name] = correction
    one = next(a for a in field.associations if a.name == name)
    assert one.external is not None
    ra, dec = move.apply(one.external.ra, one.external.dec)
    moved = dataclasses.replace(
        one,
        **dict(zip(("ra", "dec"), move.apply(one.ra, one.dec), strict=True)),
        footprint=np.column_stack(move.apply(*one.footprint.T)),
        external=dataclasses.replace(one.external, ra=ra, dec=dec),
    )
    return dataclasses.replace(
        field, associations=[moved if a.name == name else a for a in field.associations], errors=errors
    )


def test_one_association_off_by_300_mas_is_brought_back_and_drags_nobody() -> None:
    field = simulate(2)
    off = dataclasses.replace(field.errors["a04"], east_mas=240.0, north_mas=-180.0, rotation_deg=0.05)
    moved, alone = solve_frame(turned_and_shifted(field, "a04", off).associations), solve_frame(field.associations)
    assert not moved.refused
    assert np.abs(turned_and_shifted(field, "a04", off).left(moved, "a04").mean(axis=0)).max() < 12.0
    for name in field.errors:
        same = field.left(alone, name) - turned_and_shifted(field, "a04", off).left(moved, name)
        assert np.abs(same).max() < 0.5


def split(field: Field, name: str, size_mas: float) -> list[FrameAssociation]:
    """The field with the western half of one catalogue displaced against the eastern one."""
    k = [a.name for a in field.associations].index(name)
    one = field.associations[k]
    points = plane(one.ra, one.dec, field.place) / 1000
    side = np.sign(points[:, 0] - field.centres[k][0])
    ra, dec = sky(points + np.outer(side, [size_mas / 2000, 0.0]), field.place)
    return changed(field, name, ra=ra, dec=dec)


@pytest.mark.parametrize(("seed", "size_mas"), [(3, 25.0), (4, 100.0)])
def test_an_association_that_contradicts_itself_is_named_and_drags_nobody(seed: int, size_mas: float) -> None:
    field = simulate(seed, [(x * 100.0, y * 100.0) for y in range(3) for x in range(3)])
    healthy, solution = solve_frame(field.associations), solve_frame(split(field, "a04", size_mas))
    assert not healthy.refused
    assert [m.name for m in solution.members if m.excluded] == ["a04"]
    member = solution.of("a04")
    assert "sigma" in (member.excluded or "")
    assert member.ties == 0
    assert solution.components[member.component].members == ("a04",)
    refused = {(r.first, r.second) for r in solution.refused}
    assert {("a03", "a04"), ("a04", "a05")} <= refused
    assert all("a04" in pair for pair in refused)
    for name in field.errors.keys() - {"a04"}:
        error = solution.of(name).error
        assert error is not None
        assert np.abs(field.left(solution, name).mean(axis=0)).max() < 4.5 * max(error.east_mas, error.north_mas)
    for tie in solution.ties:
        assert field.apart(solution, tie.first, tie.second) < 2.5


def test_two_that_explain_a_contradiction_equally_well_are_both_named() -> None:
    """In two rows of three only the middle ones join the sides: either could have torn."""
    field = simulate(3)
    solution = solve_frame(split(field, "a01", 25.0))
    assert [m.name for m in solution.members if m.excluded] == ["a01", "a04"]
    assert {(t.first, t.second) for t in solution.ties} == {("a00", "a03"), ("a02", "a05")}


def test_a_wrong_tie_alone_is_left_out() -> None:
    """A corner of one catalogue is displaced: its other ties are as good as ever."""
    field = simulate(5)
    one = field.associations[0]
    points = plane(one.ra, one.dec, field.place) / 1000
    corner = (points[:, 0] > 36) & (points[:, 1] < 34)
    ra, dec = sky(points + np.outer(corner, [0.03, 0.0]), field.place)
    solution = solve_frame(changed(field, "a00", ra=ra, dec=dec))
    assert [(r.first, r.second, r.cause) for r in solution.refused] == [("a00", "a01", "contradicts the others")]
    assert "sigma" in solution.refused[0].text
    assert not any(m.excluded for m in solution.members)
    assert len(solution.components) == 1


def test_a_ring_that_does_not_close_names_all_of_it() -> None:
    """Three ties, one of them 20 mas wrong: nothing says which, so nothing is guessed."""
    field = simulate(4, [(0.0, 0.0), (100.0, 0.0), (50.0, 100.0)])
    one = field.associations[0]
    y = plane(one.ra, one.dec, field.place)[:, 1] / 1000
    ra, dec = sky(plane(one.ra, one.dec, field.place) / 1000 + np.outer(y > 30, [0.03, 0.0]), field.place)
    solution = solve_frame(changed(field, "a00", ra=ra, dec=dec))
    assert [m.name for m in solution.members if m.excluded] == ["a00", "a01", "a02"]
    assert not solution.ties
    assert all(m.error is not None for m in solution.members)


def test_a_chain() -> None:
    """Its ends are held by its ties and by all external sources, better than by their own alone."""
    centres = [(100.0 * k, 0.0) for k in range(8)]
    field = simulate(5, centres)
    solution = solve_frame(field.associations)
    assert len(solution.ties) == 7
    assert len(solution.components) == 1
    for tie in solution.ties:
        assert field.apart(solution, tie.first, tie.second) < 2.0
    end, alone = solution.of("a00"), solve_frame(field.associations[:1]).of("a00")
    assert end.error is not None
    assert alone.error is not None
    assert end.error.corner_east_mas < 0.8 * alone.error.corner_east_mas
    for name in field.errors:
        error = solution.of(name).error
        assert error is not None
        assert np.abs(field.left(solution, name).mean(axis=0)).max() < 4.5 * max(error.east_mas, error.north_mas)


def test_two_components_have_frames_of_their_own() -> None:
    field = simulate(6, [(0.0, 0.0), (100.0, 0.0), (400.0, 0.0), (500.0, 0.0)])
    solution = solve_frame(field.associations)
    assert [c.members for c in solution.components] == [("a00", "a01"), ("a02", "a03")]
    assert [m.component for m in solution.members] == [0, 0, 1, 1]
    apart = [solve_frame(field.associations[k : k + 2]) for k in (0, 2)]
    together = [m.correction for half in apart for m in half.members]
    for one, other in zip([m.correction for m in solution.members], together, strict=True):
        assert abs(one.east_mas - other.east_mas) < 1e-6
    # one of them without external sources: the other is none the worse
    bare = [dataclasses.replace(a, external=None) if a.name in ("a02", "a03") else a for a in field.associations]
    solution = solve_frame(bare)
    assert [c.cause for c in solution.components] == [None, "no external sources"]
    assert abs(solution.of("a00").correction.east_mas - together[0].east_mas) < 1e-6


def test_without_external_sources_they_are_tied_and_the_frame_is_unknown() -> None:
    field = simulate(7)
    solution = solve_frame([dataclasses.replace(a, external=None) for a in field.associations])
    (component,) = solution.components
    assert component.cause == "no external sources"
    assert component.error is None
    for tie in solution.ties:
        assert field.apart(solution, tie.first, tie.second) < 2.0
    for member in solution.members:
        assert member.error is None
        assert member.covariance is None
        assert member.relative_error.east_mas < 1.5
    # the mean correction is none
    assert abs(np.mean([m.correction.east_mas for m in solution.members])) < 5.0
    assert FrameSolution.from_json(solution.to_json()) == solution


def test_too_few_external_sources_are_no_anchor() -> None:
    field = simulate(8, GRID[:2])
    few = [
        dataclasses.replace(
            a, external=ExternalMatches(*(np.asarray(getattr(a.external, c))[:2] for c in ("ra", "dec", "ref_ra", "ref_dec")))
        )
        for a in field.associations
    ]  # fmt: skip
    (component,) = solve_frame(few).components
    assert component.cause == "only 4 external sources; 5 are needed"


def test_few_external_sources_in_each_are_judged_together() -> None:
    """Four in each of six, a quarter of them false: none could be judged alone."""
    field = simulate(9, external_part=0.012, false_part=0.25)
    assert all(a.external is not None and len(a.external.ra) < 9 for a in field.associations)
    (component,) = solve_frame(field.associations).components
    assert component.error is not None
    assert 8.0 < component.error.east_mas < 20.0


def test_an_association_that_hangs_on_a_sliver_is_turned_by_its_own_external_sources() -> None:
    """A common corner of 12 arcsec leaves the turn to the external sources; the shift there is the tie's."""
    field = simulate(10, [(0.0, 0.0), (100.0, 0.0), (218.0, 118.0)], density=0.06, external_part=0.1)
    tied = solve_frame(field.associations)
    assert ("a01", "a02") in {(t.first, t.second) for t in tied.ties}
    bare = solve_frame(changed(field, "a02", external=None))
    with_own, without = tied.of("a02").error, bare.of("a02").error
    assert with_own is not None
    assert without is not None
    assert without.rotation_deg > 2 * with_own.rotation_deg
    assert np.abs(field.left(tied, "a02")).max() < 4.5 * max(with_own.corner_east_mas, with_own.corner_north_mas)
    assert field.apart(tied, "a01", "a02") < 4.0


def test_a_sliver_with_too_few_sources_is_listed_with_its_cause() -> None:
    field = simulate(11, [(0.0, 0.0), (129.5, 0.0)])
    solution = solve_frame(field.associations)
    (refused,) = solution.refused
    assert (refused.first, refused.second) == ("a00", "a01")
    assert refused.cause in ("too few sources", "too few reference sources")
    assert "are needed" in refused.text
    assert len(solution.components) == 2


def test_a_single_association_stands_on_its_external_sources() -> None:
    field = simulate(12, GRID[:1], external_part=0.3)
    solution = solve_frame(field.associations)
    (member,) = solution.members
    assert member.error is not None
    assert np.abs(field.left(solution, "a00").mean(axis=0)).max() < 4.5 * member.error.east_mas
    assert member.relative_error.east_mas < 0.1
    assert not solution.ties
    (bare,) = solve_frame([dataclasses.replace(field.associations[0], external=None)]).members
    nothing = bare.correction.east_mas, bare.correction.north_mas, bare.correction.rotation_deg
    assert nothing == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)


def test_an_external_set_that_contradicts_is_named_and_not_used() -> None:
    field, healthy = simulate(13), solve_frame(simulate(13).associations)
    one = field.associations[2].external
    assert one is not None
    for size in (0.08, 0.3):
        wrong = sky(plane(one.ref_ra, one.ref_dec, field.place) / 1000 + [size, 0.0], field.place)
        external = dataclasses.replace(one, ref_ra=wrong[0], ref_dec=wrong[1])
        solution = solve_frame(changed(field, "a02", external=external))
        assert [(r.first, r.second, r.cause) for r in solution.refused] == [
            ("a02", EXTERNAL_NAME, "contradicts the others")
        ]
        assert solution.of("a02").n_external == 0
        for name in field.errors:
            assert np.abs((field.left(solution, name) - field.left(healthy, name)).mean(axis=0)).max() < 6.0


def test_two_external_sets_against_each_other_give_no_frame() -> None:
    field = simulate(14, GRID[:2])
    one = field.associations[1].external
    assert one is not None
    wrong = sky(plane(one.ref_ra, one.ref_dec, field.place) / 1000 + [0.3, 0.0], field.place)
    solution = solve_frame(changed(field, "a01", external=dataclasses.replace(one, ref_ra=wrong[0], ref_dec=wrong[1])))
    (component,) = solution.components
    assert component.cause == "its associations' external sources contradict each other"
    assert [r.second for r in solution.refused if r.cause.startswith("contradicts")]
    assert all(m.error is None for m in solution.members)


def test_unrelated_catalogues_are_not_tied() -> None:
    """Overlapping footprints whose sources have nothing in common."""
    one, other = simulate(15, GRID[:2]), simulate(16, GRID[:2])
    solution = solve_frame([one.associations[0], other.associations[1]])
    assert not solution.ties
    assert [r.cause for r in solution.refused] == ["no peak above chance"]


def test_nothing_and_what_is_no_input() -> None:
    assert solve_frame([]) == FrameSolution((), (), (), ())
    one = simulate(17, GRID[:1]).associations[0]
    with pytest.raises(InputError, match="given twice"):
        solve_frame([one, one])
    with pytest.raises(InputError, match="unlike lengths"):
        solve_frame([dataclasses.replace(one, dec=one.dec[:-1])])
    with pytest.raises(InputError, match="negative"):
        solve_frame([dataclasses.replace(one, error_mas=-np.ones(len(one.ra)))])
    with pytest.raises(InputError, match="footprint"):
        solve_frame([dataclasses.replace(one, footprint=one.footprint[:2])])
    empty = dataclasses.replace(one, ra=np.zeros(0), dec=np.zeros(0), error_mas=None, mag=None, external=None)
    (member,) = solve_frame([empty]).members
    assert abs(member.correction.east_mas) < 1e-6


def test_stricter_rules_refuse_ties() -> None:
    field = simulate(18, GRID[:2])
    solution = solve_frame(field.associations, FrameRules(largest_scatter_mas=1.0))
    assert [r.cause for r in solution.refused] == ["scatter too large"]
