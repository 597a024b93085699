"""Rewards of texts: one by one or many at once, and the table of which of two models counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minillama import weights
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.reward import encode_answer
from minillama.alignment.reward_model import SCORE, RewardModel
from minillama.alignment.scorer import LOWEST, Rewards, Scorer
from minillama.chat import builtin
from minillama.errors import MinillamaError, UsageError
from minillama.model import Llama
from tests.alignment.models import CONFIG, TEMPLATE, TOKENIZER, chat_model, prompt, reward_model

PROMPTS = [prompt("a").messages, prompt("b" * 40).messages, prompt("c").messages, prompt("a").messages]
ANSWERS = ["yes", "no", "perhaps, or perhaps not", "no"]


def lively(seed: int = 2, **changes: int) -> RewardModel:
    """With large weights, so that texts score differently."""
    model = RewardModel.from_llama(Llama.init(replace(CONFIG, **changes), seed=seed), seed)
    return RewardModel(model.config, {n: p * 20 if p.ndim > 1 else p for n, p in model.params.items()})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_many_at_once_score_as_one_by_one(threads: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, however they are put together."""
    monkeypatch.setattr("minillama.alignment.scorer.MICRO_BATCH_TOKENS", tokens)
    model = lively()
    expected = []
    for messages, answer in zip(PROMPTS, ANSWERS, strict=True):
        text = np.array([encode_answer(messages, answer, TEMPLATE, TOKENIZER)[0]])
        expected.append(model.values(text)[0][0, -1])
    assert np.ptp(expected) > 0.1
    found = Scorer(model, TOKENIZER, TEMPLATE, threads).scores(PROMPTS, ANSWERS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_answer_scores_lowest() -> None:
    scorer = Scorer(lively(), TOKENIZER, TEMPLATE)
    found = scorer.scores([PROMPTS[0]] * 4, ["yes", "", " \n", "[INST] yes"])
    assert found[0] != LOWEST
    assert found[1:].tolist() == [LOWEST] * 3
    assert len(scorer.scores([], [])) == 0
    with pytest.raises(UsageError, match="1 prompts and 2 answers: expected one for each"):
        scorer.scores(PROMPTS[:1], ANSWERS[:2])


def test_long_dialogues_lose_their_first_turns() -> None:
    """A system message stays; a last turn that is too long alone is an error."""
    system = {"role": "system", "content": "be kind"}
    said = [{"role": ("user", "assistant")[i % 2], "content": f"{i}" * 20} for i in range(5)]
    whole = len(encode_answer([system, *said], "yes", TEMPLATE, TOKENIZER)[0])
    scorer = Scorer(lively(max_seq_len=whole - 1), TOKENIZER, TEMPLATE)
    shorter = Scorer(lively(), TOKENIZER, TEMPLATE).scores([[system, *said[2:]]], ["yes"])
    np.testing.assert_allclose(scorer.scores([[system, *said]], ["yes"]), shorter, rtol=1e-5)
    with pytest.raises(MinillamaError, match=f"with its prompt: expected at most {whole - 1}"):
        scorer.scores([prompt("x" * whole).messages], ["yes"])


class Fixed(Scorer):
    """Scores that are given."""

    def __init__(self, scores: list[float]) -> None:
        object.__setattr__(self, "given", scores)

    def scores(self, *_: object) -> np.ndarray:
        return np.array(self.given)  # type: ignore[attr-defined]


def test_which_model_counts() -> None:
    """R_s where the prompt is one of safety or R_s < 0.15, else R_h; a logit of each, which is the score again."""
    logit_of_015 = float(np.log(0.15 / 0.85))
    cases = [  # safety, helpfulness, tagged -> expected
        (2.0, -1.0, True, 2.0),
        (2.0, -1.0, False, -1.0),
        (-3.0, 4.0, False, -3.0),
        (-3.0, 4.0, True, -3.0),
        (logit_of_015 + 0.01, 4.0, False, 4.0),
        (logit_of_015 - 0.01, 4.0, False, logit_of_015 - 0.01),
        (50.0, 1.0, True, float(np.log((1 - 1e-4) / 1e-4))),  # bounded
        (LOWEST, 3.0, True, LOWEST),
        (3.0, LOWEST, True, LOWEST),
    ]
    safety, helpful, tags, expected = zip(*cases, strict=True)
    prompts = [prompt(str(i), tagged) for i, tagged in enumerate(tags)]
    both = Rewards(Fixed(list(helpful)), Fixed(list(safety)))
    np.testing.assert_allclose(both(prompts, [""] * len(cases)), expected, rtol=1e-9)
    assert Rewards(helpfulness=Fixed([70.0, -3.0]))(prompts[:2], ["", ""]).tolist() == [70.0, -3.0]
    assert Rewards(safety=Fixed([0.5]))(prompts[:1], [""]).tolist() == [0.5]
    with pytest.raises(UsageError, match="expected a reward model at least, found none"):
        Rewards()


def test_from_a_folder(tmp_path: Path) -> None:
    """With its own tokenizer and template: texts are read, not tokens, so those of the chat model do not matter."""
    scorer = Scorer.load(reward_model(tmp_path / "rm"), threads=1)
    assert scorer.template.source == TEMPLATE.source
    model = RewardModel.load(tmp_path / "rm")
    expected = model.values(np.array([encode_answer(PROMPTS[0], "yes", TEMPLATE, TOKENIZER)[0]]))[0][0, -1]
    np.testing.assert_allclose(scorer.scores(PROMPTS[:1], ["yes"]), expected, rtol=1e-4)
    assert Scorer.load(tmp_path / "rm", template="chatml").template.source == builtin("chatml").source
    assert scorer.identity() == Scorer.load(tmp_path / "rm").identity()
    assert scorer.identity() != Scorer.load(reward_model(tmp_path / "other", seed=3)).identity()
    with pytest.raises(MinillamaError, match="expected a reward model, found a model that writes text"):
        Scorer.load(chat_model(tmp_path / "chat"))
    weights.save(model.checkpoint(), tmp_path / "bare")
    with pytest.raises(MinillamaError, match="expected a tokenizer with the weights, found none"):
        Scorer.load(tmp_path / "bare")
    assert SCORE in model.params


def test_a_prompt_is_a_dialogue() -> None:
    """Rewards take what PPO takes."""
    said = Prompt(tuple({"role": r, "content": r[0]} for r in ("user", "assistant", "user")), False, "train")
    assert np.isfinite(Rewards(Scorer(lively(), TOKENIZER, TEMPLATE))([said], ["yes"])).all()
