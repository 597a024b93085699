"""The tables of the valley fit together."""

from __future__ import annotations

from minillama.miniature.chooser import variants
from minillama.miniature.fact_phrases import RELATIONS
from minillama.miniature.world import (
    ANIMALS,
    CHARACTER,
    CHARACTERS,
    CHILDREN,
    COLOURS,
    GROWN_UPS,
    HEROES,
    ITEMS,
    PLACES,
    THINGS,
)


def test_how_many_of_each() -> None:
    assert (len(CHILDREN), len(GROWN_UPS), len(ANIMALS)) == (8, 8, 8)
    assert (len(CHARACTERS), len(HEROES), len(PLACES), len(THINGS), len(ITEMS)) == (24, 16, 16, 20, 60)


def test_names_are_unique() -> None:
    names = [entity.name for entity in (*CHARACTERS, *PLACES, *THINGS)]
    assert len(set(names)) == len(names)


def test_everyone_has_one_thing_and_no_two_have_the_same() -> None:
    assert len({c.owns for c in CHARACTERS}) == len(CHARACTERS)


def test_friends_and_relatives_live_in_the_valley() -> None:
    for c in CHARACTERS:
        assert c.friend in CHARACTER and c.friend != c.name
        assert not c.relative or c.relative in CHARACTER
        assert c.colour in COLOURS
    for child in CHILDREN:
        parent = CHARACTER[child.relative]
        assert (parent.relative, parent.family, parent.home) == (child.name, child.family, child.home)


def test_every_place_has_three_doings_and_three_spots() -> None:
    for place in PLACES:
        assert len(set(place.doings)) == len(set(place.spots)) == 3


def test_forms() -> None:
    mia, hoot = CHARACTER["Mia"], CHARACTER["Hoot"]
    assert (mia.full, mia.his, mia.home.at, mia.owns.a) == ("Mia", "her", "in the mill", "a red kite")
    assert (hoot.full, hoot.a_kind, hoot.home.to) == ("Hoot the owl", "an owl", "to the forest")


def test_every_relation_holds_of_somebody_and_can_be_asked_and_answered() -> None:
    for relation in RELATIONS:
        assert relation.about and relation.statements and relation.questions and relation.answers
        assert bool(relation.own) == bool(relation.own_question)


def test_a_line_without_alternatives_is_itself() -> None:
    assert variants("{S} had {X.a}.") == ["{S} had {X.a}."]
