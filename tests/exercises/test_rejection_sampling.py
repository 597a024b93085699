"""Chapter 18's solutions do what the package does, and make a round of rejection sampling in its place."""

import numpy as np
import pytest

from minillama.alignment import rejection
from minillama.alignment.rejection import one_round, reward_curve
from minillama.exercises.chapter import load_chapter
from minillama.exercises.sources import ch18_rejection_sampling as ch18
from minillama.exercises.swap import swapped
from tests.alignment.models import CHATTER, Judging, prompt, saying

CHAPTER = load_chapter("ch18")
PROMPTS = [prompt("a"), prompt("b", safety=True), prompt("c", split="validation"), prompt("d")]


@pytest.fixture(autouse=True)
def _scripted(monkeypatch):
    """The n-th answer to a prompt repeats its letter; some are cut off, all those to "d"."""
    times = [1, 3, None, 2, 5, 5]

    def reply(messages, n):
        asked = messages[-1]["content"]
        return None if asked == "d" or times[n % 6] is None else asked * times[n % 6]

    monkeypatch.setattr(rejection, "answers", saying(reply))


def round_of(earlier=None):
    found = one_round(CHATTER, PROMPTS, Judging(lambda text: -abs(len(text) - 3.2)), 6, [0.7, 1.0], earlier=earlier)
    return found, list(rejection.records(found.chosen))


def test_a_learner_s_round_is_the_package_s(solved):
    expected, data = round_of()
    before = rejection.candidates, rejection.tune_temperature, rejection.records, rejection._ranks
    with swapped(solved, [CHAPTER]) as (yours, unwritten):
        assert yours == ["best", "best_temperature", "records", "rank_probabilities"]
        assert unwritten == []
        found, ours = round_of()
        later, _ = round_of(found.pool)
    assert before == (rejection.candidates, rejection.tune_temperature, rejection.records, rejection._ranks)
    assert found.chosen == expected.chosen
    assert [c.answer for c in found.chosen] == ["aaa", "bbb", "ccc"]
    assert found.temperatures == expected.temperatures
    assert found.summary() == expected.summary()
    assert ours == data
    assert later.chosen == expected.chosen


def test_a_learner_s_wrong_choice_is_what_is_learned(answer):
    path = answer(
        "ch18",
        "best",
        "return [Candidate(samples.prompts[i], samples.texts[i][0], float(samples.rewards[i, 0]))\n"
        "        for i in np.flatnonzero(samples.usable.any(axis=1))]",
    )
    with swapped(path.parent, [CHAPTER]):
        _, ours = round_of()
    assert [record["messages"][-1]["content"] for record in ours] == ["a", "b", "c"]


def test_best_of_is_a_point_of_the_curve():
    rewards = np.random.default_rng(0).standard_normal((5, 8))
    for at in reward_curve(rewards):
        assert ch18.best_of(rewards, at.n).mean() == pytest.approx(at.highest.mean, rel=1e-12)
