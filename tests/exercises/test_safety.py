"""Chapter 21's solutions do what the package does: rewards of two models, distillation, rates of attacks."""

import numpy as np
import pytest

from minillama.alignment import combine, distillation, ppo_batch, red_team, scorer
from minillama.alignment.distillation import Distilled
from minillama.alignment.red_team import Attack, RedTeam, attacks
from minillama.alignment.scorer import LOWEST, Rewards
from minillama.exercises.chapter import load_chapter
from minillama.exercises.swap import swapped
from tests.alignment.models import prompt

CHAPTER = load_chapter("ch21")
PROMPTS = [prompt("a", safety=True), prompt("b"), prompt("c"), prompt("d")]
SCORES = {"safety": np.array([3.0, -4.0, 0.5, LOWEST]), "helpfulness": np.array([-1.0, 2.0, 1.5, 0.0])}
DISTILLED = [
    Distilled(p, "before", f"after {i}", *scores)
    for i, (p, scores) in enumerate(zip(PROMPTS, [(0.0, 1.0), (1.0, 1.0), (0.5, LOWEST), (2.0, -1.0)], strict=True))
]


def team():
    rng = np.random.default_rng(0)
    found = []
    for conversation in attacks(2):
        violations = tuple((rng.random(len(conversation.turns)) < 0.4).tolist())
        found.append(Attack(conversation, ("",) * len(violations), violations))
    return RedTeam(found, [False])


def made():
    """What the package's callers get."""
    of_ppo = ppo_batch.combined({n: x[:3] for n, x in SCORES.items()}, np.array([True, False, False]))
    messages = [distillation.under("Be kind.", PROMPTS[0].messages, put) for put in ("prefix", "system")]
    kept = [d.answer for gate in (True, False) for d in distillation.kept(DISTILLED, gate)]
    rates = team()
    groups = rates.by_category() | rates.by_strategy() | rates.by_turns()
    return Rewards.combined(PROMPTS, SCORES).tolist(), of_ppo.tolist(), messages, kept, groups


def test_in_the_package_s_place_all_is_the_same(solved):
    expected = made()
    before = combine.combine, combine.logit, distillation.kept, RedTeam._by
    with swapped(solved, [CHAPTER]) as (yours, unwritten):
        assert yours == [e.name for e in CHAPTER.exercises if e.name != "combined_reward"]
        assert unwritten == []
        assert scorer.combine is ppo_batch.combine is combine.combine is not before[0]
        ours = made()
    assert (scorer.combine, ppo_batch.logit, distillation.kept, red_team.RedTeam._by) == before
    assert ours[0] == pytest.approx(expected[0], rel=1e-12)
    assert ours[1] == pytest.approx(expected[1], rel=1e-12)
    assert ours[2:4] == expected[2:4]
    assert str(ours[4]) == str(expected[4])  # NaN where a group has no attack
    assert len(set(ours[3])) == 3


@pytest.mark.parametrize(
    ("name", "body", "place"),
    [
        ("combine", "return (safety + helpfulness) / 2", 0),
        ("logit", "return p", 1),
        ("under", "return list(messages)", 2),
        ("kept", "return list(distilled)", 3),
        ("success_rates", "return {group: (0.0, 1) for group in groups}", 4),
    ],
)
def test_what_is_wrong_is_run_too(name, body, place, answer):
    expected = made()
    with swapped(answer("ch21", name, body).parent, [CHAPTER]):
        assert str(made()[place]) != str(expected[place])
