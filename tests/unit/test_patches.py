"""The reference filter is chosen for each patch of sky."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from panoramic.errors import InputError
from panoramic.footprints import from_tangent_plane
from panoramic.patches import ReferenceCandidate, choose_reference

PREFERENCE = ("F444W", "F356W", "F200W", "F277W")
PLACES = [(150.0, 2.0), (0.0, -30.0), (359.9999, 45.0), (33.0, 90.0), (120.0, -89.9999)]


def candidate(
    name: str, element: str, x: float = 0.0, y: float = 0.0, side: float = 2.0, place: tuple[float, float] = PLACES[0]
) -> ReferenceCandidate:
    """A square (arcmin) about a place; short-wave where the filter's number says so."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2 + [x, y]
    return ReferenceCandidate(name, element, int(element[1:4]) > 240, from_tangent_plane(corners, place))


def chosen(*candidates: ReferenceCandidate, held_back: tuple[str, ...] = (), cover: float = 0.9) -> list[str]:
    return [c.name for c in choose_reference(candidates, PREFERENCE, held_back, cover)]


@pytest.mark.parametrize("place", PLACES)
def test_the_first_filter_where_it_looked_and_the_next_elsewhere(place: tuple[float, float]) -> None:
    found = chosen(
        candidate("a", "F444W", place=place),
        candidate("b", "F356W", place=place),  # the same sky
        candidate("c", "F356W", x=5.0, place=place),  # sky of its own
        candidate("d", "F356W", x=1.0, place=place),  # half of it
        candidate("e", "F277W", x=5.0, place=place),
        candidate("f", "F277W", x=10.0, place=place),
    )
    assert found == ["a", "c", "d", "f"]


def test_all_of_one_filter_are_chosen_though_they_overlap() -> None:
    assert chosen(*(candidate(f"a{k}", "F444W", x=0.1 * k) for k in range(5))) == [f"a{k}" for k in range(5)]


def test_long_wave_comes_before_short_wave_whatever_the_list_says() -> None:
    """F200W stands before F277W in the list."""
    assert chosen(candidate("s", "F200W"), candidate("l", "F277W")) == ["l"]
    assert chosen(candidate("s", "F200W", side=1.0), candidate("l", "F277W", x=5.0)) == ["l", "s"]


def test_filters_that_are_not_in_the_list_come_last_by_name() -> None:
    assert chosen(candidate("x", "F480M"), candidate("y", "F410M")) == ["y"]
    assert chosen(candidate("x", "F480M"), candidate("y", "F410M"), candidate("z", "F277W")) == ["z"]
    assert chosen(candidate("x", "F115W"), candidate("z", "F480M")) == ["z"]


def test_a_filter_in_lower_case() -> None:
    assert chosen(candidate("a", "f444w"), candidate("b", "F356W")) == ["a"]


def test_what_failed_gives_its_sky_to_the_next_filter() -> None:
    all_of_them = (candidate("a", "F444W"), candidate("b", "F356W"), candidate("c", "F200W"))
    assert chosen(*all_of_them) == ["a"]
    assert chosen(*all_of_them, held_back=("a",)) == ["b"]
    assert chosen(*all_of_them, held_back=("a", "b")) == ["c"]
    assert chosen(*all_of_them, held_back=("a", "b", "c")) == []
    assert chosen(*all_of_them, held_back=("unknown",)) == ["a"]
    # one of two: only its own sky
    two = (*all_of_them, candidate("d", "F444W", x=5.0), candidate("e", "F356W", x=5.0))
    assert chosen(*two, held_back=("a",)) == ["d", "b"]


def test_the_limit_on_cover() -> None:
    """Half of it is covered, together a quarter and a quarter."""
    wide = candidate("n", "F356W", side=2.0)
    quarters = [candidate("p", "F444W", x=-0.5, y=-0.5, side=1.0), candidate("q", "F444W", x=0.5, y=0.5, side=1.0)]
    assert chosen(wide, *quarters, cover=0.51) == ["p", "q", "n"]
    assert chosen(wide, *quarters, cover=0.49) == ["p", "q"]
    # what is covered wholly is covered at a limit of 1
    assert chosen(wide, candidate("a", "F444W", side=2.0), cover=1.0) == ["a"]


def test_more_data_take_back_a_choice_only_for_an_earlier_filter() -> None:
    standing = [candidate("a", "F444W"), candidate("b", "F356W", x=1.2)]
    assert chosen(*standing) == ["a", "b"]
    for more in (candidate("c", "F356W", x=1.0), candidate("d", "F277W", x=1.2), candidate("e", "F200W", side=9.0)):
        assert {"a", "b"} <= set(chosen(*standing, more))
    assert chosen(*standing, candidate("f", "F444W", x=1.2)) == ["a", "f"]


def test_the_order_does_not_matter() -> None:
    given = [
        candidate("a", "F444W"),
        candidate("b", "F356W", x=1.0),
        candidate("c", "F356W"),
        candidate("d", "F200W", x=3),
    ]
    assert {tuple(chosen(*order)) for order in itertools.permutations(given)} == {("a", "b", "d")}


def test_nothing_and_what_is_no_input() -> None:
    assert choose_reference([], PREFERENCE, (), 0.9) == ()
    assert [c.name for c in choose_reference([candidate("a", "F444W")], (), (), 0.9)] == ["a"]
    with pytest.raises(InputError, match="named twice"):
        chosen(candidate("a", "F444W"), candidate("a", "F356W"))
    with pytest.raises(InputError, match="fraction"):
        chosen(candidate("a", "F444W"), cover=0.0)
