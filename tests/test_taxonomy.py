"""Classes are the same by their names; numbers, ids and colours serve where there are none."""

from __future__ import annotations

import pytest

from fullyconv.taxonomy import Taxonomy, match


def ids(ours: str | Taxonomy, theirs: str | Taxonomy) -> tuple[str, tuple[int, ...]]:
    """How they match and which ids ours have in theirs; texts are names with commas between."""
    one, two = (t if isinstance(t, Taxonomy) else Taxonomy(tuple(t.split(","))) for t in (ours, theirs))
    found = match(one, two)
    return found.how, found.ids


@pytest.mark.parametrize(
    ("ours", "theirs", "how", "expected"),
    [
        ("sky,road,car", "sky,road,car", "same", (0, 1, 2)),
        ("sky,road,car", "car,sky,road", "names", (1, 2, 0)),
        ("sky,road", "sky,tree,road", "names", (0, 2)),
        ("sky,road,dog", "sky,road", "names", (0, 1, -1)),
        ("sky,dog", "road,car", "names", (-1, -1)),
        ("Traffic Light,CAR", "car,traffic_light", "names", (1, 0)),
        ("traffic-light,car", "Car,TrafficLight", "names", (1, 0)),
        ("stra\u00dfe,caf\u00e9", "Cafe\u0301,STRASSE", "names", (1, 0)),
        ("car,Car", "Car,CAR", "names", (1, 0)),  # Car by name; then car and CAR are the only ones left
        ("car,x", "Car,CAR", "names", (-1, -1)),  # which of the two? neither
        ("class 0,class 1", "class 0,class 1,class 2", "numbers", (0, 1)),
        ("class 0,class 1,class 2", "class 0,class 1", "numbers", (0, 1, -1)),
        ("0,1,2", "class 2,class 1,class 0", "numbers", (2, 1, 0)),
        ("Label_1,label 2", "2,01", "numbers", (1, 0)),
        ("class 0,class 1", "sky,road,car", "ids", (0, 1)),
        ("class 0,class 1,class 2", "sky,road", "ids", (0, 1, -1)),
        ("sky,road,car", "class 0,class 1", "ids", (0, 1, -1)),
        ("background,1,2", "background,2,1", "names", (0, 2, 1)),  # one name makes names of them all
    ],
)
def test_classes_match_by_name_then_by_number_then_by_id(
    ours: str, theirs: str, how: str, expected: tuple[int, ...]
) -> None:
    assert ids(ours, theirs) == (how, expected)


def test_classes_that_are_only_named_by_their_colours_match_the_other_sides_palette() -> None:
    seen = Taxonomy(("rgb 0 0 0", "rgb 0 0 255", "rgb 9 9 9"), ((0, 0, 0), (0, 0, 255), (9, 9, 9)))
    named = Taxonomy(("void", "disc", "square"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))
    assert ids(seen, named) == ("colours", (0, 2, -1))
    assert ids(named, seen) == ("colours", (0, -1, 1))
    fewer = Taxonomy(("rgb 9 9 9", "rgb 0 0 0"), ((9, 9, 9), (0, 0, 0)))
    assert ids(fewer, seen) == ("names", (2, 0))


def test_a_match_says_what_moved_what_is_called_otherwise_and_what_has_no_partner() -> None:
    text = str(match(Taxonomy(("sky", "car", "dog")), Taxonomy(("car", "sky", "road"))))
    assert (
        text == "2 of 3 classes matched by name; sky 0 -> 1, car 1 -> 0; without a partner: dog; not among them: road"
    )
    text = str(match(Taxonomy.numbered(2), Taxonomy(("sky", "road"))))
    assert text == "2 of 2 classes matched by id; class 0 is sky, class 1 is road"
    many = Taxonomy(tuple(f"n{k}" for k in range(40)))
    other = Taxonomy(tuple(f"n{k}" for k in reversed(range(40))))
    assert "and 34 more" in str(match(many, other))
    assert "\x1b" not in str(match(Taxonomy(("a\x1b[31m", "b")), Taxonomy(("b", "c"))))


@pytest.mark.parametrize("seed", range(20))
def test_every_permutation_is_found_and_undone(seed: int) -> None:
    import random

    names = [f"name {k}" for k in range(30)]
    other = random.Random(seed).sample(names, 30)
    found = match(Taxonomy(tuple(names)), Taxonomy(tuple(other)))
    assert [other[k] for k in found.ids] == names
    back = match(found.theirs, found.ours)
    assert [found.ids[k] for k in back.ids] == list(range(30))
