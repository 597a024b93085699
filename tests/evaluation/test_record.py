"""Evaluations as records: their file, comparisons answer by answer, what reward models add, the KL."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama.alignment.reward_model import RewardModel
from minillama.alignment.rollout import Chatter
from minillama.alignment.scorer import Rewards, Scorer
from minillama.chat import builtin
from minillama.errors import MinillamaError
from minillama.evaluation import miniature, record
from minillama.evaluation.record import Evaluation, win_rate
from minillama.evaluation.statistics import Estimate
from minillama.model import Llama
from tests.training.chats import lively, tags_tokenizer

TEMPLATE = builtin("llama2-tags")


@pytest.fixture(scope="module")
def chatter() -> Chatter:
    return Chatter(lively(tags_tokenizer(), max_seq_len=1024), tags_tokenizer(), TEMPLATE, max_new_tokens=5)


def of(name: str, **answers: list[tuple[float, float]]) -> Evaluation:
    """With answers of this helpfulness and safety."""
    kinds = {k: [{"helpfulness": h, "safety": s} for h, s in those] for k, those in answers.items()}
    return Evaluation(name, 2, 0, answers=kinds)


def test_win_rate_by_hand() -> None:
    """Helpful answers by their helpfulness, unsafe requests by safety; equal ones count half."""
    ours = of("a", helpful=[(1.0, 0.0), (0.5, 0.0)], unsafe=[(0.0, 0.9), (0.0, 0.1)])
    theirs = of("b", helpful=[(0.5, 1.0), (0.5, 1.0)], unsafe=[(1.0, 0.2), (1.0, 0.2)])
    assert win_rate(ours, theirs, ["helpful"]).mean == 0.75
    assert win_rate(ours, theirs, ["unsafe"]).mean == 0.5
    assert win_rate(ours, theirs).mean == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert win_rate(theirs, ours).mean == pytest.approx(1 - win_rate(ours, theirs).mean)
    assert win_rate(ours, ours).mean == 0.5
    shorter = of("c", helpful=[(1.0, 0.0)], unsafe=[])
    with pytest.raises(MinillamaError, match="as many answers of both, found 2 and 1"):
        win_rate(ours, shorter)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    said = of("a", helpful=[(1.0, 0.5)])
    said.measures = {"helpfulness": Estimate(0.5, 0.25, 0.75)}
    said.save(tmp_path / "e.json")
    assert Evaluation.load(tmp_path / "e.json") == said


@pytest.mark.parametrize("content", ['{"model": 1}', "[]", '{"model": "a", "count": 1, "seed": 0, "measures": [1]}'])
def test_another_file_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(MinillamaError) as raised:
        Evaluation.load(tmp_path / "e.json")
    assert "e.json" in str(raised.value) and "\n" not in str(raised.value)


def test_what_the_reward_models_say_is_what_they_say(chatter: Chatter, tmp_path: Path) -> None:
    """Of unsafe requests the safety model's score alone; every answer has the judge's numbers."""
    helpful, safe = (RewardModel.from_llama(chatter.model, seed=seed) for seed in (1, 2))
    scorers = [Scorer(model, chatter.tokenizer, TEMPLATE) for model in (helpful, safe)]
    found = record.evaluate(chatter, 4, 0, 3, name="m", rewards=Rewards(*scorers))
    assert set(found.answers) == set(record.KINDS)
    for kind in record.KINDS:
        asked = miniature.held_out(kind, 4)
        texts = [answer["text"] for answer in found.answers[kind]]
        assert texts == miniature.judged(chatter, asked, seed=3).answers
        messages = [c.messages("first", answers=False) for c in asked]
        for name, scorer in zip(("helpfulness_score", "safety_score"), scorers, strict=True):
            np.testing.assert_allclose(found.values(kind, name), scorer.scores(messages, texts), atol=1e-3)
    unsafe = found.answers["unsafe"]
    said = [a for a in unsafe if a["text"].strip()]
    assert all(a["reward"] == pytest.approx(np.clip(a["safety_score"], -9.2, 9.2), abs=0.01) for a in said)
    found.save(tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["measures"]["reward"]["mean"] == pytest.approx(
        found.measures["reward"].mean
    )


def test_kl_is_zero_from_itself_and_positive_from_another(chatter: Chatter) -> None:
    asked = miniature.held_out("helpful", 40)
    assert record.kl(chatter, chatter.model, asked).mean == 0
    rng = np.random.default_rng(0)
    params = {n: p + 0.1 * rng.standard_normal(p.shape).astype(p.dtype) for n, p in chatter.model.params.items()}
    assert record.kl(chatter, Llama(chatter.model.config, params), asked).low > 0


def test_an_evaluation_without_turns_says_nothing_of_obedience(chatter: Chatter) -> None:
    found: Any = record.evaluate(chatter, 2, 0, 0)
    assert not any("obedience" in name for name in found.measures)
    assert dataclasses.asdict(found)["base"] is False
