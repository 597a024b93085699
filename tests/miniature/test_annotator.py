"""The annotator errs as its formula says."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from minillama.errors import UsageError
from minillama.miniature.annotator import RATINGS, TEMPERATURE, Annotator, Preference
from minillama.miniature.judge import Verdict, judge
from minillama.miniature.prompts import unsafe_task
from tests.miniature.labelled import WHO, fact

PERFECT = judge(fact(WHO["Mia"], "home"), "Mia lives in the mill.")


def scored(helpfulness: float, safety: float = 1.0) -> Verdict:
    return replace(PERFECT, helpfulness=helpfulness, safety=safety)


def preferences(a: Verdict, b: Verdict, n: int = 4000, seed: int = 0) -> list[Preference]:
    annotator = Annotator(seed)
    return [annotator.prefer(a, b) for _ in range(n)]


@pytest.mark.parametrize("gap", [0.0, 0.03, 0.1, 0.2, -0.1])
def test_the_better_is_preferred_as_often_as_bradley_and_terry_say(gap: float) -> None:
    share = sum(p.chosen == 0 for p in preferences(scored(0.5 + gap), scored(0.5))) / 4000
    expected = 1 / (1 + math.exp(-gap / TEMPERATURE))
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize("gap", [0.0, 0.2, 0.5])
def test_each_rating_is_as_frequent_as_its_thresholds_say(gap: float) -> None:
    counts = Counter(p.rating for p in preferences(scored(0.4 + gap), scored(0.4)))

    def below(x: float) -> float:  # the probability that less than x is perceived
        return 1 / (1 + math.exp(-(x - gap) / TEMPERATURE))

    edges = [math.inf, *RATINGS.values()]
    for rating, high, low in zip(RATINGS, edges, edges[1:], strict=False):
        p = (
            (below(high) if high < math.inf else 1.0)
            - below(low)
            + below(-low)
            - (below(-high) if high < math.inf else 0)
        )
        assert counts[rating] / 4000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000) + 1e-9)


def test_accuracy_rises_with_the_rating() -> None:
    """Over pairs of random scores, in the paper's order."""
    annotator, scores = Annotator(1), Annotator(2)
    right, total = Counter[str](), Counter[str]()
    for _ in range(5_000):
        x, y = scores._random(), scores._random()
        preference = annotator.prefer(scored(x), scored(y))
        total[preference.rating] += 1
        right[preference.rating] += (preference.chosen == 0) == (x > y)
    accuracy = [right[rating] / total[rating] for rating in RATINGS]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > 0.99 and 0.5 < accuracy[-1] < 0.7


def test_without_noise_the_better_is_always_preferred() -> None:
    annotator = Annotator(0, temperature=0)
    assert annotator.prefer(scored(0.6), scored(0.0)) == Preference(0, "significantly better", (True, True))
    assert annotator.prefer(scored(0.4), scored(0.6)) == Preference(1, "slightly better", (True, True))


def test_domains_and_labels_of_safety() -> None:
    task = unsafe_task(WHO["Mia"], "taking take")
    bad, good = judge(task, "Take it and run home."), judge(task, "I cannot help with that.")
    preference = Annotator(0, temperature=0).prefer(bad, good, "safety")
    assert preference == Preference(1, "significantly better", (False, True))
    helpful = Annotator(0, temperature=0).prefer(scored(0.9, safety=0.0), scored(0.1, safety=1.0))
    assert helpful.chosen == 0


def test_the_same_seed_gives_the_same_preferences() -> None:
    pair = scored(0.5), scored(0.45)
    assert preferences(*pair, n=50) == preferences(*pair, n=50)
    assert preferences(*pair, n=50) != preferences(*pair, n=50, seed=1)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(UsageError, match="temperature: expected 0 or more, found -1"):
        Annotator(0, temperature=-1)
    with pytest.raises(UsageError, match="domain: expected helpfulness or safety, found 'x'"):
        Annotator().prefer(PERFECT, PERFECT, "x")  # type: ignore[arg-type]
