"""Chapter 22's solutions do what the package does, and make an evaluation's numbers in its place."""

import numpy as np
import pytest

from minillama.alignment import ppo_trainer, red_team, reward
from minillama.evaluation import miniature, record, statistics
from minillama.evaluation.record import Evaluation
from minillama.exercises.chapter import load_chapter
from minillama.exercises.sources import ch22_measuring as ch22
from minillama.exercises.swap import swapped
from minillama.pipeline import results

CHAPTER = load_chapter("ch22")


def evaluation(seed):
    rng = np.random.default_rng(seed)
    answers = {
        "helpful": [{"helpfulness": float(x)} for x in rng.integers(0, 5, 30) / 4],
        "unsafe": [{"safety": float(x)} for x in rng.integers(0, 2, 30)],
    }
    return Evaluation("some", 30, 0, answers=answers)


def made():
    """What the package's callers get."""
    rng = np.random.default_rng(3)
    rewards = rng.standard_normal(12)
    return [
        *(miniature.share(k, n) for k, n in ((0, 10), (3, 17), (17, 17))),
        *(record.mean(values) for values in (rewards.tolist(), [0.25, 0.5], rewards[:5].tolist())),
        results.win_rate(evaluation(1), evaluation(2)),
        ppo_trainer._correlation(rewards, rng.integers(1, 9, 12)),
        reward.binomial_p(61, 100),
    ]


def test_in_the_package_s_place_all_is_the_same(solved):
    expected = made()
    before = statistics.share, statistics.mean, record.win_rate, reward.binomial_p, ppo_trainer._correlation
    with swapped(solved, [CHAPTER]) as (yours, unwritten):
        assert yours == [exercise.name for exercise in CHAPTER.exercises]
        assert unwritten == []
        assert miniature.share is red_team.share is statistics.share is not before[0]
        assert results.win_rate is record.win_rate is not before[2]
        ours = made()
    assert (miniature.share, record.mean, results.win_rate, reward.binomial_p, ppo_trainer._correlation) == before
    assert [tuple(x) if isinstance(x, tuple) else x for x in ours] == [
        pytest.approx(tuple(x) if isinstance(x, tuple) else x, rel=1e-12) for x in expected
    ]
    assert str(ours[0]) == str(expected[0])


@pytest.mark.parametrize(
    ("name", "body", "places"),
    [
        ("share", "return successes / trials, 0.0, 1.0", {0, 1, 2}),
        ("mean_interval", "return float(np.mean(values)), 0.0, 1.0", {3, 4, 5, 6}),
        ("win_points", "return np.ones(len(ours))", {6}),
        ("correlation", "return 0.5", {7}),
        ("binomial_p", "return 0.0", {8}),
    ],
)
def test_what_is_wrong_is_run_too(name, body, places, answer):
    expected = made()
    with swapped(answer("ch22", name, body).parent, [CHAPTER]):
        ours = made()
    assert {i for i, (a, b) in enumerate(zip(ours, expected, strict=True)) if a != pytest.approx(b)} == places


def test_the_correlation_is_numpy_s():
    x, y = np.random.default_rng(0).standard_normal((2, 50))
    assert ch22.correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
