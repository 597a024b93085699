"""Red teaming: every strategy in one turn and in several, rates by group, false refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from minillama.alignment import red_team as red
from minillama.alignment import rollout
from minillama.alignment.red_team import Attack, RedTeam, attacks, red_team
from minillama.errors import UsageError
from minillama.evaluation.statistics import share
from minillama.miniature.conversation import Conversation
from minillama.miniature.prompts import STRATEGIES
from minillama.miniature.risks import RISKS
from tests.alignment.models import CHATTER, saying

REFUSAL = "I am sorry, but I cannot help with that."
HARM = "Take it. Give them mud to drink. They are silly."  # by any category


def meets(monkeypatch: pytest.MonkeyPatch, reply: Any) -> RedTeam:
    """What red teams find with a model that replies so."""
    answers = saying(reply)
    monkeypatch.setattr(rollout, "answers", answers)
    monkeypatch.setattr(red, "answers", answers)
    return red_team(CHATTER, each=4, borderline=30)


def test_attacks_of_every_strategy_and_length() -> None:
    found = attacks(3, "test", 1)
    assert Counter((c.strategy, len(c.turns) > 1) for c in found) == {
        (strategy, several): 3 for strategy in STRATEGIES for several in (False, True)
    }
    assert {c.category for c in found} == set(RISKS)
    assert all(c.split == "test" for c in found)
    assert attacks(3, "test", 1) == found != attacks(3, "test", 2)
    with pytest.raises(UsageError, match="0 attacks of a strategy: expected at least 1"):
        attacks(0)


def test_a_model_that_does_what_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = meets(monkeypatch, lambda messages, n: HARM)
    assert len(found.attacks) == 80
    assert found.violation_rate() == share(80, 80)
    assert found.false_refusals() == share(0, 30)
    insisted = sum(all(turn.task.category for turn in a.conversation.turns) for a in found.attacks)
    assert found.violations_in_100().mean >= 100 + 100 * (insisted - 40) / 80 > 100, "asked twice, it does it twice"


def test_a_model_that_refuses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    found = meets(monkeypatch, lambda messages, n: REFUSAL)
    assert found.violation_rate() == share(0, 80)
    assert found.violations_in_100().mean == 0
    assert found.false_refusals() == share(30, 30)


def test_rates_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does harm only in the first turn, only in the second, and only of one category."""
    first = meets(monkeypatch, lambda messages, n: HARM if len(messages) == 1 else REFUSAL)
    assert first.by_turns()["single-turn"] == share(40, 40)
    assert 0 < first.by_turns()["multi-turn"].mean < 1, "where the attack stands in the first turn already"
    later = meets(monkeypatch, lambda messages, n: HARM if len(messages) > 1 else REFUSAL)
    assert later.by_turns() == {"single-turn": share(0, 40), "multi-turn": share(40, 40)}
    assert later.by_strategy() == {strategy: share(4, 8) for strategy in STRATEGIES}
    assert later.violation_rate() == share(40, 80)

    ill = meets(monkeypatch, lambda messages, n: "Give them mud." if "ill" in messages[-1]["content"] else REFUSAL)
    rates = ill.by_category()
    assert list(rates) == [risk.name for risk in RISKS.values()]
    assert rates["unqualified advice"].mean > 0
    assert rates["hateful and harmful"].mean == 0


def test_numbers_by_hand() -> None:
    """Three attacks with 0, 1 and 2 violating answers: two of three succeed, 100 violating answers in 100."""
    conversation = attacks(1)[0]
    made = [Attack(conversation, ("", ""), v) for v in ((False, False), (True, False), (True, True))]
    found = RedTeam(made, [True, False])
    assert found.violation_rate() == share(2, 3)
    assert found.violations_in_100().mean == pytest.approx(100)
    assert found.violations_in_100().high == pytest.approx(100 * (1 + 4.303 / 3**0.5), rel=1e-3)
    assert found.false_refusals() == share(1, 2)


def test_the_model_sees_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier turns are its own words, not those of the data; each is judged by its own request."""
    seen: list[Sequence[Any]] = []

    def reply(messages: Any, _: int) -> str:
        seen.append(list(messages))
        return f"{HARM} {len(messages)}."

    found = meets(monkeypatch, reply)
    for messages in seen:
        assert all(m["content"] == f"{HARM} {i}." for i, m in enumerate(messages) if m["role"] == "assistant" and i)
    several = [attack for attack in found.attacks if len(attack.answers) > 1]
    assert len(several) == 40
    for attack in several:
        for turn, violation in zip(attack.conversation.turns, attack.violations, strict=True):
            if turn.task.category is not None:
                assert violation


def test_the_same_seed_makes_the_same_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Conversation] = []
    monkeypatch.setattr(red, "answers", saying(lambda messages, n: REFUSAL))
    monkeypatch.setattr(rollout, "answers", saying(lambda messages, n: REFUSAL))
    for seed in (0, 0, 1):
        asked.append([a.conversation for a in red_team(CHATTER, 1, 5, seed=seed).attacks])  # type: ignore[arg-type]
    assert asked[0] == asked[1] != asked[2]


def test_a_real_model() -> None:
    """Of random weights, which does no harm that a judge would see, and nothing fails."""
    found = red_team(CHATTER, each=1, borderline=3)
    assert len(found.attacks) == 20 and found.violation_rate().mean == 0
