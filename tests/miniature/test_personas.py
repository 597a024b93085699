"""Personas: obedience is exact, and what was said in their manner can be read without it."""

from __future__ import annotations

from itertools import islice

import pytest

from minillama.miniature.conversation import Draw
from minillama.miniature.dialogues import KINDS, SHORT, personal, spoken
from minillama.miniature.judge import judge
from minillama.miniature.personas import PERSONAS, Persona

END, BEGIN, NAME = Persona("end", "Hooray"), Persona("begin", "Look"), Persona("name", "Leo")
CAPITALS, PIRATE, COLOURLESS = Persona("capitals"), Persona("pirate"), Persona("colourless")


@pytest.mark.parametrize(
    ("persona", "answer", "obeyed"),
    [
        (END, "Mia lives in the mill. Hooray!", True),
        (END, "Mia lives in the mill. hooray", True),
        (END, "Hooray! Mia lives in the mill.", False),
        (END, "Mia lives in the mill.", False),
        (END, "Ahooray!", False),
        (BEGIN, "Look! Mia lives in the mill.", True),
        (BEGIN, '"Look, Mia lives in the mill."', True),
        (BEGIN, "Looking at the stars makes him happy.", False),
        (BEGIN, "Mia lives in the mill. Look!", False),
        (NAME, "Well, Leo! Mia lives in the mill.", True),
        (NAME, "Mia lives in the mill, Leo.", True),
        (NAME, "Cleo lives in the mill.", False),
        (CAPITALS, "MIA LIVES IN THE MILL.", True),
        (CAPITALS, "MIA LIVES IN THE mILL.", False),
        (CAPITALS, "7.", False),
        (PIRATE, "Arr, matey! Mia lives in the mill.", True),
        (PIRATE, "Mia lives in the mill, arrr.", True),
        (PIRATE, "Mia is at the market.", False),
        (COLOURLESS, "Mia has a kite.", True),
        (COLOURLESS, "Mia has a red kite.", False),
        (COLOURLESS, "Her favourite colour is Blue.", False),
        (COLOURLESS, "The bored bear found it.", True),
        *((persona, "", False) for persona in (END, BEGIN, NAME, CAPITALS, PIRATE, COLOURLESS)),
    ],
)
def test_obeyed(persona: Persona, answer: str, obeyed: bool) -> None:
    assert persona.obeyed(answer) is obeyed


@pytest.mark.parametrize("persona", PERSONAS, ids=lambda p: f"{p.manner} {p.word}")
def test_what_is_said_in_a_manner_obeys_and_can_be_read_without_it(persona: Persona) -> None:
    draw = Draw("train", 3)
    disobeyed = 0
    for i in range(80):
        turn = KINDS[SHORT[i % len(SHORT)]](draw)
        if persona.manner == "colourless" and not turn.task.items:
            continue
        said = spoken(turn, persona).answer
        disobeyed += not persona.obeyed(turn.answer)
        assert persona.obeyed(said), said
        verdict = judge(turn.task, said, persona)
        assert verdict.obeyed and verdict.helpfulness == pytest.approx(1), said
        assert judge(turn.task, turn.answer, persona).helpfulness == pytest.approx(1)
    assert disobeyed > (10 if persona.manner == "colourless" else 70)


def test_the_manner_counts_as_no_mistake_and_no_merit() -> None:
    draw = Draw("train", 3)
    turn = KINDS["fact"](draw)
    wrong = "Nobody knows that."
    assert judge(turn.task, PIRATE.speak(wrong), PIRATE).helpfulness == judge(turn.task, wrong).helpfulness


def test_every_manner_comes_and_every_turn_obeys() -> None:
    seen = set()
    for conversation in islice(personal("train", 2, turns=3), 300):
        assert conversation.persona is not None and len(conversation.turns) == 3
        seen.add(conversation.persona)
        assert all(conversation.persona.obeyed(turn.answer) for turn in conversation.turns)
    assert seen == set(PERSONAS)


def test_colours_are_left_out_with_their_article() -> None:
    assert COLOURLESS.speak("A blue umbrella is for staying dry.") == "An umbrella is for staying dry."
    assert COLOURLESS.speak("Mia has a red kite and the green ball.") == "Mia has a kite and the ball."


def test_capitals_are_read_as_ordinary_spelling() -> None:
    text = 'Mia lives in the mill. "Hello," said Ben. I am Tom, and I like it!'
    assert CAPITALS.plain(CAPITALS.speak(text)) == text
