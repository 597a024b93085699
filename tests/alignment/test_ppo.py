"""PPO: what is computed of sampled answers equals loops over unpadded texts; bugs that people have made are noticed; it
raises a reward; a run that is stopped goes on to the same bits.
"""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama.alignment import ppo, ppo_batch, ppo_trainer
from minillama.alignment.combine import combined_reward
from minillama.alignment.ppo_batch import (
    UNFINISHED,
    Judges,
    Rollout,
    Update,
    answer_logprobs,
    as_batch,
    combined,
    minibatches,
    policy_gradients,
    take,
    value_gradients,
    whitened,
)
from minillama.alignment.ppo_log import read_log
from minillama.alignment.ppo_prompts import (
    PPO_MIXTURE,
    EncodedPrompt,
    MiniaturePrompts,
    PromptFile,
    Prompts,
    encode_prompts,
    end_token,
    find_prompts,
)
from minillama.alignment.ppo_trainer import Recipe, Trainer
from minillama.alignment.reward_model import SCORE, RewardModel
from minillama.chat import ChatTemplate, builtin
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.lora import LoraConfig
from minillama.model import Llama
from minillama.training.checkpoint import Checkpoints
from minillama.training.workers import Batch
from minillama.weights import load
from tests.alignment.tiny_ppo import CONFIG, END, FAVOURITE, RECIPE, Favourite, policy, run, trainer, value
from tests.conftest import Arrays
from tests.training.test_resume import KILLED, same_bits
from tests.weights.support import tiny_tokenizer

ROOT = Path(__file__).parents[2]


# What an iteration computes, by loops over one unpadded text after the other
@dataclass(frozen=True)
class Seen:
    """A trainer in float64 whose policy has moved from the reference, its answers, what it makes of them, and what the
    loops do.
    """

    made: Trainer
    rollouts: list[Rollout]
    batch: Batch
    measures: dict[str, float]
    naive: list[dict[str, list[float]]]

    def again(self) -> Batch:
        """What the trainer makes of the answers now."""
        return self.made.experience(as_batch(self.rollouts))[0]


@pytest.fixture(scope="module")
def seen() -> Seen:
    made = trainer(dtype=np.float64, temperature=0.7, beta=0.3, lam=0.9)
    rng = np.random.default_rng(5)
    made.policy.params += 0.05 * rng.standard_normal(made.policy.params.shape)
    rollouts = made.sampled(made.prompts.batch(0, 16, 0), (2, 0))
    assert len({len(r.prompt.tokens) for r in rollouts}) > 2 and len({len(r.tokens) for r in rollouts}) > 2
    assert {r.finished for r in rollouts} == {True, False}
    return Seen(made, rollouts, *made.experience(as_batch(rollouts)), naive_experience(made, rollouts))


def naive_logprobs(model: Llama, rollout: Rollout, temperature: float) -> list[float]:
    """Of each token of the answer: the text up to it alone through the model, the softmax of the last logits."""
    found = []
    for i, token in enumerate(rollout.tokens):
        text = rollout.prompt.tokens + rollout.tokens[:i]
        logits = model.logits(model.forward(np.array([text]))[0][0, -1]) / temperature
        found.append(float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
    return found


def naive_experience(made: Trainer, rollouts: list[Rollout]) -> list[dict[str, list[float]]]:
    """For each answer: log-probabilities, values, rewards, advantages before whitening, returns."""
    models, recipe = made.models, made.recipe
    raw = []
    for rollout in rollouts:
        text = np.array([rollout.prompt.tokens + rollout.tokens])
        score = float(Favourite().rewards(text, np.array([text.shape[1] - 1]))[0][0])
        p = min(max(1 / (1 + math.exp(-score)), 1e-4), 1 - 1e-4)
        raw.append(math.log(p / (1 - p)))
    known = [x for x, r in zip(raw, rollouts, strict=True) if r.finished]
    mean = sum(known) / len(known)
    scale = math.sqrt(sum((x - mean) ** 2 for x in known) / len(known) + 1e-8)
    found = []
    for x, rollout in zip(raw, rollouts, strict=True):
        new, ref = (naive_logprobs(model, rollout, recipe.temperature) for model in (models.policy, models.reference))
        values = [
            float(models.value.values(np.array([rollout.prompt.tokens + rollout.tokens[:i]]))[0][0, -1])
            for i in range(len(rollout.tokens))
        ]
        rewards = [-recipe.beta * (a - b) for a, b in zip(new, ref, strict=True)]
        rewards[-1] += (x - mean) / scale if rollout.finished else -3.0
        advantages, ahead, next_value = [0.0] * len(rewards), 0.0, 0.0
        for t in reversed(range(len(rewards))):
            ahead = rewards[t] + recipe.gamma * next_value - values[t] + recipe.gamma * recipe.lam * ahead
            advantages[t], next_value = ahead, values[t]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        found.append(
            {
                "old_logprobs": new,
                "ref_logprobs": ref,
                "old_values": values,
                "raw_advantages": advantages,
                "returns": returns,
            }
        )
    return found


def check_experience(seen: Seen, batch: Batch) -> None:
    """Every number equals that of the loops, each at its token's place, and everything else is masked."""
    rollouts, naive = seen.rollouts, seen.naive
    for name in naive[0]:
        for i, (rollout, expected) in enumerate(zip(rollouts, naive, strict=True)):
            start = len(rollout.prompt.tokens) - 1
            place = slice(start, start + len(rollout.tokens))
            np.testing.assert_allclose(batch[name][i, place], expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
            assert batch["mask"][i, place].all() and batch["mask"][i].sum() == len(rollout.tokens)
            assert list(batch["tokens"][i, 1:][place]) == rollout.tokens
    raw = np.concatenate([x["raw_advantages"] for x in naive])
    expected = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-8)
    ordered = np.concatenate([batch["advantages"][i][batch["mask"][i]] for i in range(len(rollouts))])
    np.testing.assert_allclose(ordered, expected, rtol=1e-10, atol=1e-12)


def test_experience_equals_loops_over_unpadded_texts(
    seen: Seen,
) -> None:
    """Checklist 1, 3, 5, 6, 7, 11, 22, 23, 24: logits at t are of token t + 1, the temperature divides all of them, the
    score stands at the last token of the answer and nowhere else, values end with the answer, returns are made before
    advantages are whitened.
    """
    check_experience(seen, seen.batch)


def test_what_is_logged_equals_loops(seen: Seen) -> None:
    """Checklist 11, 12, 32, 33: sums over an answer's tokens, then means over answers; pads count nowhere."""
    made, rollouts, measures, naive = seen.made, seen.rollouts, seen.measures, seen.naive
    ratios = [np.subtract(x["ref_logprobs"], x["old_logprobs"]) for x in naive]
    assert measures["kl"] == pytest.approx(np.mean([-r.sum() for r in ratios]), rel=1e-10)
    assert measures["kl_k3"] == pytest.approx(np.mean([(np.exp(r) - 1 - r).sum() for r in ratios]), rel=1e-10)
    assert measures["kl_k3"] > 0
    nats = []
    for rollout in rollouts:
        for i in range(len(rollout.tokens)):
            text = np.array([rollout.prompt.tokens + rollout.tokens[:i]])
            logits = made.models.policy.logits(made.models.policy.forward(text)[0][0, -1]) / 0.7
            p = np.exp(logits - logits.max())
            p /= p.sum()
            nats.append(-(p * np.log(p)).sum())
    assert measures["entropy"] == pytest.approx(np.mean(nats), rel=1e-10)
    values, returns, raw = (
        np.concatenate([x[name] for x in naive]) for name in ("old_values", "returns", "raw_advantages")
    )
    assert measures["explained_variance"] == pytest.approx(1 - (returns - values).var() / returns.var(), rel=1e-9)
    assert measures["advantage_mean"] == pytest.approx(raw.mean(), rel=1e-9)
    assert measures["advantage_std"] == pytest.approx(raw.std(), rel=1e-9)
    assert measures["answer_length"] == np.mean([len(r.tokens) for r in rollouts])
    assert measures["finished"] == np.mean([r.finished for r in rollouts])
    assert measures["helpfulness"] == pytest.approx(measures["score"], rel=1e-9)  # ±9.2 is far
    assert -1 <= measures["score_by_length"] <= 1
    assert measures["sampling_gap"] < 1e-6


def test_padding_and_garbage_in_it_change_nothing(
    seen: Seen,
) -> None:
    """Checklist 1: other tokens in the pads, more pads: the same numbers, losses and gradients."""
    made, rollouts, batch = seen.made, seen.rollouts, seen.batch
    spoilt = dict(batch)
    pads = np.arange(batch["tokens"].shape[1]) > batch["last"][:, None]
    spoilt["tokens"] = np.where(pads, np.random.default_rng(6).integers(0, CONFIG.vocab_size, pads.shape), 0)
    spoilt["tokens"][~pads] = batch["tokens"][~pads]
    assert pads.any() and (spoilt["tokens"] != batch["tokens"]).any()
    for name in ("old_logprobs", "ref_logprobs", "old_values", "advantages", "returns"):
        spoilt[name] = np.where(batch["mask"], batch[name], np.nan)
    weight, numbers = float(batch["mask"].sum()), Update(0.7, 0.2)
    for gradients, model in ((policy_gradients, made.models.policy), (value_gradients, made.models.value)):
        loss, grads, *measures = gradients(model, batch, weight, numbers)
        again, grads_again, *measures_again = gradients(model, spoilt, weight, numbers)
        assert loss == again and measures == measures_again
        for name, grad in grads.items():  # zeros at pads are added to the embeddings' sums in another order
            np.testing.assert_allclose(grads_again[name], grad, rtol=1e-12, atol=1e-15, err_msg=name)
    for scorer in (Judges(made.models.value), Judges(safety=made.models.value)):
        rows = [np.arange(len(rollouts))]
        assert str(scorer.scores(batch, rows)) == str(scorer.scores(spoilt, rows))
    longer = {n: np.pad(x, [(0, 0), (0, 3)]) if x.ndim == 2 else x for n, x in batch.items()}
    assert all(np.array_equal(x, batch[name]) for name, x in take(longer, slice(None)).items())


def test_sampling_is_what_is_scored_though_its_prompts_are_padded_on_the_left() -> None:
    """Checklist 1, 7, 12: prompts of one to five tokens in one batch, at temperatures that are not 1."""
    for temperature in (0.5, 1.0, 2.0):
        made = trainer(temperature=temperature)
        rollouts = made.sampled(made.prompts.batch(0, 16, 0), (2, 0))
        for rollout in rollouts:
            expected = naive_logprobs(made.models.policy, rollout, temperature)
            np.testing.assert_allclose(rollout.logprobs, expected, rtol=1e-4, atol=1e-5)
        _, measures = made.experience(as_batch(rollouts))
        assert measures["sampling_gap"] < 1e-4
        assert measures["kl"] == measures["kl_k3"] == 0


# Before anything has been learned
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lora", [None, LoraConfig(2, 4.0)])
def test_at_first_the_ratio_is_exactly_1_and_the_kl_0(threads: int, lora: LoraConfig | None) -> None:
    """Checklist 9, 10: in the first minibatch of every iteration, and the KL before the first update."""
    made = trainer(threads=threads, lora=lora)
    for iteration in range(3):
        batch, measures = made.experience(as_batch(made.sampled(made.prompts.batch(iteration, 16, 0), (2, iteration))))
        if iteration == 0:
            assert measures["kl"] == measures["kl_k3"] == 0
        first, second = made.learn(batch)
        assert first["ratio_min"] == first["ratio_max"] == 1
        assert first["ratio_mean"] == pytest.approx(1, abs=1e-7)  # of parts, each divided by the tokens of all
        assert first["clip_fraction"] == first["approx_kl"] == 0
        assert second["ratio_min"] < 1 < second["ratio_max"] and second["approx_kl"] > 0
        made.progress.step += 1
    assert measures["kl_k3"] > 0


def test_the_samplers_own_logprobs_would_not_do() -> None:
    """They are the same numbers but for rounding, which is enough for a ratio that is not 1."""
    made = trainer()
    batch, _ = made.experience(as_batch(made.sampled(made.prompts.batch(0, 16, 0), (2, 0))))
    first, _ = made.learn(batch | {"old_logprobs": batch["sampled"]})
    assert first["ratio_min"] != 1 or first["ratio_max"] != 1


@pytest.mark.parametrize("lora", [None, LoraConfig(2, 4.0)])
def test_the_reference_and_the_judges_stay_what_they_are(lora: LoraConfig | None) -> None:
    """Checklist 21: nothing that is not trained shares memory with what is."""
    judge = value()
    made = Trainer(ppo.models(policy(), Judges(judge), judge, lora), trainer().prompts, tiny_tokenizer(), END, RECIPE)
    frozen = {**{f"reference {n}": p for n, p in made.models.reference.params.items()}}
    frozen |= {f"judge {n}": p for n, p in judge.params.items()}
    before = {name: p.copy() for name, p in frozen.items()}
    trained = [*made.models.policy.trained.values(), *made.models.value.trained.values()]
    was = [p.copy() for p in trained]
    made.iterate()
    for name, p in frozen.items():
        assert np.array_equal(p, before[name]), name
        assert not any(np.shares_memory(p, other) for other in trained), name
    # B of the adapters begins at 0, so that A gets no gradient in the first step
    assert sum(not np.array_equal(p, old) for p, old in zip(trained, was, strict=True)) == len(trained)
    assert not any(
        np.shares_memory(p, q) for p in made.models.policy.trained.values() for q in made.models.value.trained.values()
    )


@pytest.mark.parametrize("lora", [None, LoraConfig(2, 4.0)])
def test_values_begin_at_zero_in_a_copy_of_the_reward_model(lora: LoraConfig | None) -> None:
    judge = value()
    before = {name: p.copy() for name, p in judge.params.items()}
    made = ppo.models(policy(), Judges(judge), judge, lora).value
    assert not made.values(np.array([[1, 2, 3]]))[0].any()
    for name, p in judge.params.items():
        assert np.array_equal(p, before[name])
        assert name == SCORE or np.array_equal(made.params[name], p)


def test_in_the_warm_up_the_value_model_alone_learns() -> None:
    made = trainer(value_warmup=1)
    policy_before, value_before = made.policy.params.copy(), made.value.params.copy()
    record = made.iterate()
    assert np.array_equal(made.policy.params, policy_before) and not np.array_equal(made.value.params, value_before)
    assert record["clip_fraction"] == 0 and record["ratio_max"] == 1
    made.iterate()
    assert not np.array_equal(made.policy.params, policy_before)
    with pytest.raises(UsageError, match="value warm-up 3: expected fewer than the 3 iterations"):
        trainer(value_warmup=3, iterations=3)


def test_several_answers_to_a_prompt_are_asked_for_side_by_side() -> None:
    """A batch of 8 answers, 4 to each, asks the first two prompts of an iteration; other numbers are refused."""
    made = trainer(batch_size=8, minibatch=4, answers=4)
    asked: list[list[EncodedPrompt]] = []
    sampled = made.sampled
    made.sampled = lambda prompts, stream: asked.append(prompts) or sampled(prompts, stream)  # type: ignore
    made.iterate()
    two = made.prompts.batch(0, 2, made.seed)
    assert asked[0] == [two[0]] * 4 + [two[1]] * 4
    assert as_batch(sampled(asked[0], (2, 0)), 4)["asked"].tolist() == [0] * 4 + [1] * 4
    with pytest.raises(UsageError, match="batch size 8: expected a multiple of 3 answers a prompt"):
        trainer(batch_size=8, minibatch=4, answers=3)


def test_each_scale_has_a_baseline_of_its_own(tmp_path: Path) -> None:
    """Also as it is read from a checkpoint."""
    made, progress = run(tmp_path / "own", iterations=2, own_scales=True)
    assert progress.baseline is not None and len(progress.baseline) == 2
    batch = as_batch(made.sampled(made.prompts.train, (9,))) | {"finished": np.ones(len(made.prompts.train), bool)}
    score = np.where(batch["safety"], 100.0, 1.0) * np.arange(1, len(batch["safety"]) + 1)
    found = made.baseline(batch, score)
    for tagged, (mean, deviation) in enumerate(found):
        some = score[batch["safety"] == tagged]
        assert mean == pytest.approx(some.mean()) and deviation == pytest.approx(some.std())
    made.progress = ppo_trainer.Progress.from_json(tmp_path, json.loads(json.dumps(asdict(progress))))
    assert np.isfinite(
        made.outcome(batch | made.passes(batch, [np.arange(len(score))], to_learn=False), score)["reward"]
    )
    assert len(trainer().baseline(batch, score)) == 1


# Gradients
def moved(batch: Batch) -> Batch:
    """The batch as it is after some updates: ratios on both sides of the clip, values too."""
    rng = np.random.default_rng(8)
    shape = batch["mask"].shape
    return batch | {
        "old_logprobs": batch["old_logprobs"] + 0.3 * rng.standard_normal(shape),
        "old_values": batch["old_values"] + 0.3 * rng.standard_normal(shape),
    }


@pytest.mark.parametrize("kind", ["policy", "value"])
def test_gradients_equal_central_differences(kind: str, seen: Seen) -> None:
    """Of every parameter, along a random direction in it."""
    made, batch = seen.made, seen.batch
    batch, numbers = moved(batch), Update(0.7, 0.2)
    gradients: Any = policy_gradients if kind == "policy" else value_gradients
    model: Any = made.models.policy if kind == "policy" else made.models.value
    weight = float(batch["mask"].sum())
    _, grads, *measures = gradients(model, batch, weight, numbers)
    if measures:
        assert 0.1 < measures[0]["clip_fraction"] < 0.9
    assert grads.keys() == model.params.keys()
    rng = np.random.default_rng(9)
    for name, p in model.params.items():
        direction, step = rng.standard_normal(p.shape), 1e-6
        losses = []
        for sign in (1, -1):
            shifted = type(model)(model.config, model.params | {name: p + sign * step * direction})
            losses.append(float(gradients(shifted, batch, weight, numbers)[0]))
        slope = float((grads[name] * direction).sum())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-5, abs=1e-8), name


def test_one_minibatch_of_8_equals_4_of_2() -> None:
    """Checklist 27: the mean is over the tokens of the whole minibatch, on one thread or two."""
    trained = []
    for micro_batch, threads in ((8, 1), (2, 1), (2, 2)):
        made = trainer(dtype=np.float64, micro_batch=micro_batch, threads=threads)
        records = [made.iterate() for _ in range(2)]
        trained.append((made, records))
    (one, records), *others = trained
    for other, others_records in others:
        np.testing.assert_allclose(other.policy.params, one.policy.params, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(other.value.params, one.value.params, rtol=1e-7, atol=1e-9)
        for ours, theirs in zip(records, others_records, strict=True):
            for name in set(ours) - {"seconds", "tokens_per_second"}:
                assert theirs[name] == pytest.approx(ours[name], rel=1e-6, abs=1e-9), name


def test_the_mean_of_the_micro_batches_means_would_be_another(
    seen: Seen,
) -> None:
    """What the test above would not notice if all answers had one length."""
    made, batch = seen.made, seen.batch
    whole, _, _ = policy_gradients(made.models.policy, batch, float(batch["mask"].sum()), Update(0.7))
    parts = [take(batch, slice(i, i + 2)) for i in range(0, 16, 2)]
    means = [policy_gradients(made.models.policy, p, float(p["mask"].sum()), Update(0.7))[0] for p in parts]
    assert abs(np.mean(means) - whole) > 1e-3


def test_rows_without_a_valid_token_give_0(seen: Seen) -> None:
    """Checklist 28: a micro-batch that is all padding gives 0 and no NaN; such a row beside others changes nothing."""
    made, batch = seen.made, seen.batch
    empty = {name: x.copy() for name, x in batch.items()}
    empty["mask"][:] = False
    for name in ("old_logprobs", "old_values", "advantages", "returns"):
        empty[name][:] = np.nan
    weight = float(batch["mask"].sum())
    for gradients, model in ((policy_gradients, made.models.policy), (value_gradients, made.models.value)):
        loss, grads, *_ = gradients(model, empty, weight, Update())
        assert loss == 0
        assert all(np.isfinite(grad).all() and not grad.any() for grad in grads.values())
        both = {name: np.concatenate([batch[name], empty[name]]) for name in batch}
        expected, expected_grads, *_ = gradients(model, batch, weight, Update())
        loss, grads, *_ = gradients(model, both, weight, Update())
        assert loss == pytest.approx(expected, rel=1e-12)
        for name, grad in grads.items():
            np.testing.assert_allclose(grad, expected_grads[name], rtol=1e-9, atol=1e-13)


def test_on_every_library(arrays: Arrays) -> None:
    """Both losses under a GPU's rules, the batch on the host; float32 stays float32."""
    made = trainer()
    batch, _ = made.experience(as_batch(made.sampled(made.prompts.batch(0, 16, 0), (2, 0))))
    batch = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in moved(batch).items()}
    weight = float(batch["mask"].sum())
    for gradients, host, kind in (
        (policy_gradients, made.models.policy, Llama),
        (value_gradients, made.models.value, RewardModel),
    ):
        expected, expected_grads, *_ = gradients(host, batch, weight, Update())
        model = kind(host.config, arrays.put(dict(host.params)))
        loss, grads, *_ = gradients(model, batch, weight, Update())
        assert arrays.get(loss).dtype == np.float32
        assert float(arrays.get(loss)) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
        for name, grad in grads.items():
            assert grad.dtype == np.float32
            np.testing.assert_allclose(arrays.get(grad), expected_grads[name], rtol=1e-3, atol=1e-5, err_msg=name)
    model = Llama(CONFIG, arrays.put(dict(made.models.policy.params)))
    logprobs, nats, _ = answer_logprobs(model, batch, entropy=True)
    assert nats is not None and nats.dtype == np.float32
    np.testing.assert_allclose(arrays.get(logprobs), answer_logprobs(made.models.policy, batch)[0], atol=1e-5)


# Bugs that people have made; each must be noticed by the comparison with the loops
def _mask_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppo_batch.as_batch

    def wrong(rollouts: list[Rollout]) -> Batch:
        batch = right(rollouts)
        batch["mask"] = np.pad(batch["mask"], [(0, 0), (1, 0)])[:, :-1]
        return batch

    monkeypatch.setattr(sys.modules[__name__], "as_batch", wrong)


def _kl_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppo_batch.token_rewards
    monkeypatch.setattr(
        ppo_batch, "token_rewards", lambda scores, new, ref, mask, *, beta: right(scores, ref, new, mask, beta=beta)
    )


def _whitening_before_the_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppo_batch.gae

    def wrong(rewards: Any, values: Any, mask: Any, **numbers: Any) -> Any:
        advantages, _ = right(rewards, values, mask, **numbers)
        advantages = ppo_batch.whiten(advantages, mask)
        return advantages, advantages + values

    monkeypatch.setattr(ppo_batch, "gae", wrong)


def _pad_scored_as_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppo_batch.as_batch

    def wrong(rollouts: list[Rollout]) -> Batch:
        batch = right(rollouts)
        return batch | {"last": np.full_like(batch["last"], batch["tokens"].shape[1] - 1)}

    monkeypatch.setattr(sys.modules[__name__], "as_batch", wrong)


def _score_at_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppo_batch.token_rewards
    monkeypatch.setattr(
        ppo_batch,
        "token_rewards",
        lambda scores, new, ref, mask, *, beta: right(scores, new[:, ::-1], ref[:, ::-1], mask[:, ::-1], beta=beta)[
            :, ::-1
        ],
    )


def _the_reference_at_temperature_1(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppo_trainer.answer_logprobs

    def wrong(model: Llama, batch: Batch, *, temperature: float = 1.0, **how: Any) -> Any:
        return right(model, batch, temperature=temperature if how.get("entropy") else 1.0, **how)

    monkeypatch.setattr(ppo_trainer, "answer_logprobs", wrong)


def _values_of_the_token_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value after the token is known, as it comes out where the row is not shifted."""

    def wrong(model: RewardModel, batch: Batch, **_: Any) -> Any:
        values, saved = model.values(batch["tokens"])
        return values[:, 1:], saved

    monkeypatch.setattr(ppo_trainer, "answer_values", wrong)


def _values_go_on_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ppo_batch.gae

    def wrong(rewards: Any, values: Any, mask: Any, **numbers: Any) -> Any:
        from_first = np.maximum.accumulate(mask, axis=1)
        advantages, returns = right(rewards, values, from_first, **numbers)
        return np.where(mask, advantages, 0), np.where(mask, returns, 0)

    monkeypatch.setattr(ppo_batch, "gae", wrong)


@pytest.mark.parametrize(
    "plant",
    [
        _mask_off_by_one,
        _kl_sign,
        _whitening_before_the_returns,
        _pad_scored_as_the_last_token,
        _score_at_the_first_token,
        _the_reference_at_temperature_1,
        _values_of_the_token_itself,
        _values_go_on_after_the_end,
    ],
)
def test_a_planted_bug_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None],
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_experience(seen, seen.again())
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_experience(seen, seen.again())


# The reward
def test_both_reward_models_make_the_papers_reward() -> None:
    """WHITEN(LOGIT(R_c)) where all answers are finished; with one model, its own score."""
    rng = np.random.default_rng(10)
    helpfulness, safety = 2 * rng.standard_normal((2, 12))
    tagged, all_finished = np.arange(12) % 3 == 0, np.ones(12, bool)
    scores = {"helpfulness": helpfulness, "safety": safety}
    assert (1 / (1 + np.exp(-safety)) < 0.15).any()
    np.testing.assert_allclose(
        whitened(combined(scores, tagged), all_finished), combined_reward(safety, helpfulness, tagged), rtol=1e-12
    )
    for name, x in scores.items():
        alone = combined({name: x}, tagged)
        np.testing.assert_allclose(alone, x, rtol=1e-9)  # LOGIT undoes the sigmoid
        np.testing.assert_allclose(whitened(alone, all_finished), (x - x.mean()) / x.std(), rtol=1e-6)
    assert np.abs(combined({"safety": np.array([50.0, -50.0])}, tagged[:2])).max() < 9.3  # finite at the ends


def test_scores_of_two_scales_are_whitened_each_by_itself() -> None:
    """A safety model that speaks in hundreds takes nothing from what helpfulness is worth."""
    score, finished = np.array([1.0, 500.0, 3.0, 100.0, 900.0, 5.0]), np.array([True, True, True, True, False, True])
    scale = np.array([0, 1, 0, 1, 1, 0])
    third = np.sqrt(1.5)
    expected = [-third, 1, 0, -1, UNFINISHED, third]
    np.testing.assert_allclose(whitened(score, finished, scale), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(whitened(score, finished, np.zeros(6, int)), whitened(score, finished))


def test_answers_to_a_prompt_are_compared_with_each_other() -> None:
    """That one prompt scores high whatever is said makes none of its answers more likely."""
    score, finished = np.array([1.0, 3.0, 2.0, 101.0, 99.0, 500.0]), np.array([True] * 5 + [False])
    asked = np.array([0, 0, 0, 1, 1, 1])
    one = np.sqrt(5 / 4)  # −1, 1, 0, 1, −1 have the variance 4/5
    expected = [-one, one, 0, one, -one, UNFINISHED]
    np.testing.assert_allclose(whitened(score, finished, asked=asked), expected, rtol=1e-6, atol=1e-9)
    alone = whitened(score, np.array([False] * 5 + [True]), asked=asked)  # compared with none, it is worth nothing
    np.testing.assert_array_equal(alone, [UNFINISHED] * 5 + [0])
    np.testing.assert_array_equal(whitened(score, finished, asked=np.zeros(6, int)), whitened(score, finished))
    both = whitened(score, finished, np.array([0, 0, 0, 1, 1, 1]), asked)
    np.testing.assert_allclose(both, [-np.sqrt(1.5), np.sqrt(1.5), 0, 1, -1, UNFINISHED], rtol=1e-6, atol=1e-9)


def test_an_answer_without_an_end_gets_a_fixed_low_score() -> None:
    """Checklist 5: it is not among those that are whitened."""
    score, finished = np.array([1.0, 100.0, 3.0, -50.0]), np.array([True, False, True, False])
    np.testing.assert_allclose(whitened(score, finished), [-1, UNFINISHED, 1, UNFINISHED], rtol=1e-6)
    assert not np.isnan(whitened(score, np.zeros(4, bool))).any()
    assert UNFINISHED < -2


def test_each_model_scores_each_answer_at_its_last_token() -> None:
    """Checklist 3: one score an answer, whatever is scored beside it."""
    made = trainer()
    rollouts = made.sampled(made.prompts.batch(0, 12, 0), (2, 0))
    batch, other = as_batch(rollouts), value()
    found = Judges(Favourite(), other).scores(batch, [np.array([3, 0, 7]), np.array([1, 2, 4, 5, 6, 8, 9, 10, 11])])
    for i, rollout in enumerate(rollouts):
        text = np.array([rollout.prompt.tokens + rollout.tokens])
        alone = other.values(text)[0][0, -1]
        assert found["safety"][i] == pytest.approx(float(alone), rel=1e-4, abs=1e-5)
        assert found["helpfulness"][i] == Favourite().rewards(text, np.array([text.shape[1] - 1]))[0][0]


@pytest.mark.parametrize("name", ["llama2", "llama2-tags"])
def test_the_trained_stop_token_is_the_one_checked(name: str) -> None:
    """Checklist 5: what finetuning learns to end with is what sampling stops at."""
    tokenizer = tiny_tokenizer()
    learned = builtin(name).encode(
        [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}], tokenizer, False
    )
    assert learned.loss_mask[-1]
    assert end_token(builtin(name), tokenizer) == learned.tokens[-1] == tokenizer.eos_id
    never_ends = ChatTemplate.from_source(
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(UsageError, match="expected answers to end with a stop token"):
        end_token(never_ends, tokenizer)


def test_an_answer_ends_at_the_end_token() -> None:
    made = trainer()
    for rollout in made.sampled(made.prompts.batch(0, 16, 0), (2, 0)):
        assert rollout.finished == (rollout.tokens[-1] == END)
        assert END not in rollout.tokens[:-1]
        assert rollout.finished or len(rollout.tokens) == RECIPE.max_new_tokens
        assert len(rollout.tokens) == len(rollout.logprobs)


# Learning
def test_it_raises_the_reward_and_without_beta_the_kl_grows_faster() -> None:
    outcomes = {}
    for beta in (0.0, 0.01, 1.0):
        made = trainer(beta=beta, batch_size=32)
        records = [made.iterate() for _ in range(20)]
        assert all(math.isfinite(x) for record in records for x in record.values())
        outcomes[beta] = records
    first, last = outcomes[0.01][0], outcomes[0.01][-1]
    assert last["score"] > first["score"] + 0.5
    assert last["reward"] > first["reward"]
    assert 0 < last["kl"] < 100
    assert outcomes[0.0][-1]["kl"] > 2 * outcomes[1.0][-1]["kl"] > 0
    assert last["explained_variance"] > first["explained_variance"]


def test_without_a_reward_nothing_is_preferred() -> None:
    """The control: a scorer that gives all answers the same, so that only the end of an answer counts."""

    class Indifferent:
        def rewards(self, _: Any, last: Any, **__: Any) -> tuple[Any, None]:
            return np.zeros(len(last)), None

    def said(made: Trainer) -> float:
        rollouts = made.sampled(made.prompts.batch(0, 24, 0), (9,))
        return float(np.mean([token == FAVOURITE for r in rollouts for token in r.tokens]))

    with_reward, without = trainer(), trainer(judges=Judges(Indifferent()))
    for _ in range(20):
        with_reward.iterate()
        without.iterate()
    assert said(with_reward) > said(without) + 0.2


def test_several_epochs_use_each_answer_as_often() -> None:
    for epoch in range(3):
        parts = minibatches(10, 4, seed=1, iteration=2, epoch=epoch)
        assert sorted(np.concatenate(parts).tolist()) == list(range(10))
        assert [len(part) for part in parts] == [4, 3, 3]
    orders = [np.concatenate(minibatches(10, 4, 1, 2, epoch)).tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    made = trainer(epochs=3)
    batch, _ = made.experience(as_batch(made.sampled(made.prompts.batch(0, 16, 0), (2, 0))))
    assert len(made.learn(batch)) == 6
    assert made.policy_optimizer.adamw.steps == made.value_optimizer.adamw.steps == 6


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    """Checklist 35."""

    def numbers(seed: int) -> list[float]:
        made = trainer(seed)
        record = [made.iterate() for _ in range(2)][-1]
        return [x for name, x in record.items() if "second" not in name] + [float(made.policy.params.sum())]

    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)


def test_a_loss_that_is_not_finite_ends_the_run_and_changes_nothing() -> None:
    made = trainer()
    batch, _ = made.experience(as_batch(made.sampled(made.prompts.batch(0, 16, 0), (2, 0))))
    batch["advantages"][batch["mask"]] = np.nan
    before = made.policy.params.copy()
    with pytest.raises(MinillamaError, match="PPO diverged in iteration 1: loss nan"):
        made.learn(batch)
    assert np.array_equal(made.policy.params, before)


# A whole run
def without_time(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{name: x for name, x in line.items() if "second" not in name} for line in lines]


def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Policy, value model, both optimizers, the log: wherever it was killed, three times."""
    iterations = 12
    run(tmp_path / "whole", iterations, save_every=2)
    folder, rng = tmp_path / "killed", random.Random(time.time_ns())  # new moments each time
    command = [sys.executable, "-m", "tests.alignment.tiny_ppo", str(folder), str(iterations)]
    for step in sorted(rng.sample(range(iterations), 3)):
        saved = max(Checkpoints(folder / "checkpoints").steps(), default=0)
        kill = [str(max(step, saved)), str(rng.uniform(0, 0.1))]
        process = subprocess.run([*command, *kill], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert process.returncode in (KILLED, 0), process.stderr
        assert saved == 0 or f"going on after iteration {saved}" in process.stderr or process.returncode == 0
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300).returncode == 0
    assert without_time(folder) == without_time(tmp_path / "whole")
    ours, theirs = (Checkpoints(tmp_path / name / "checkpoints").load(iterations) for name in ("whole", "killed"))
    assert {"m", "v", "steps", "value.m", "value.v", "value.steps", "value.params"} == set(ours.optimizer)
    for name, x in ours.optimizer.items():
        assert x.tobytes() == theirs.optimizer[name].tobytes(), name
    for name, x in ours.model.params.items():
        assert x.tobytes() == theirs.model.params[name].tobytes(), name
    assert same_bits(Llama.load(tmp_path / "whole"), Llama.load(folder))
    assert not [path for path in folder.rglob("*") if "part" in path.name or path.name == ".final"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to a process alone")
def test_an_interrupt_ends_the_iteration_and_loses_nothing(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", save_every=100)
    _, progress = run(tmp_path / "run", before=_interrupting(3), save_every=100)
    assert progress.step == 4 and Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 4
    assert not (tmp_path / "run" / "config.json").exists()
    _, progress = run(tmp_path / "run", save_every=100)
    assert json.dumps(asdict(progress) | {"seconds": 0}) == json.dumps(asdict(whole) | {"seconds": 0})
    assert without_time(tmp_path / "run") == without_time(tmp_path / "whole")


def _interrupting(at: int) -> Callable[[int], None]:
    def before(step: int) -> None:
        if step == at:
            signal.raise_signal(signal.SIGINT)

    return before


def test_with_adapters_a_run_goes_on_too(tmp_path: Path) -> None:
    """Only the adapters are trained and saved."""
    policy().save(tmp_path / "base")
    how: dict[str, Any] = {"lora": LoraConfig(2, 4.0), "base": str(tmp_path / "base"), "lr": 0.02}
    expected, _ = run(tmp_path / "whole", 4, **how)

    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == 2:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "run", 4, stop, **how)
    made, _ = run(tmp_path / "run", 4, **how)
    assert np.array_equal(made.policy.params, expected.policy.params)
    assert np.array_equal(made.value.params, expected.value.params)
    assert made.policy.params.any() and len(made.policy.params) < CONFIG.param_count() / 2
    assert SCORE in made.models.value.trained


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", 2)
    with pytest.raises(UsageError, match="a run of other settings"):
        run(tmp_path / "run", 3)


def test_the_result_is_the_policy_with_the_best_held_out_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run stops where that does not rise any more."""
    rewards = iter([0.0, 0.5, 2.0, 1.0, 1.5, 9.0])
    right = Trainer.validate

    def validate(made: Trainer) -> dict[str, float]:
        return right(made) | {"reward": next(rewards)}

    monkeypatch.setattr(Trainer, "validate", validate)
    made, progress = run(tmp_path / "run", 20, validate_every=1, patience=2, keep_last=1)
    assert progress.stopped == "2 validations without a better held-out reward"
    assert (progress.step, progress.best_step, progress.best_reward) == (4, 2, 2.0)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2, 4]
    best = load(tmp_path / "run" / "checkpoints" / "step-000002").params
    assert same_bits(Llama(CONFIG, best), Llama.load(tmp_path / "run"))
    assert not same_bits(made.models.policy, Llama.load(tmp_path / "run"))


def test_a_kl_above_the_limit_ends_the_run(tmp_path: Path) -> None:
    _, progress = run(tmp_path / "run", 40, kl_limit=0.05, beta=0.0)
    curves = read_log(tmp_path / "run")
    assert progress.step < 40 and progress.stopped.endswith("is above the limit of 0.05")
    assert curves.training["kl"][-1] > 0.05
    assert (curves.training["kl"][:-1] <= 0.05).all()
    _, unlimited = run(tmp_path / "other", 4, beta=0.0)
    assert unlimited.stopped == "" and unlimited.step == 4


def test_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checklist 33, 34: all of it is there, and read again for plots."""
    _, progress = run(tmp_path / "run", 4)
    curves = read_log(tmp_path / "run")
    assert curves.training["step"].tolist() == [1, 2, 3, 4]
    assert curves.validation["step"].tolist() == [0, 2, 4]
    wanted = {"score", "reward", "kl", "kl_k3", "entropy", "ratio_mean", "ratio_min", "ratio_max", "clip_fraction"}
    wanted |= {"approx_kl", "loss", "value_loss", "explained_variance", "answer_length", "finished"}
    wanted |= {"advantage_mean", "advantage_std", "grad_norm", "value_grad_norm", "tokens_per_second", "helpfulness"}
    wanted |= {"score_by_length", "sampling_gap", "tokens", "seconds"}
    assert wanted | {"step"} == set(curves.training)
    assert all(np.isfinite(x).all() and len(x) == 4 for x in curves.training.values())
    assert (curves.training["ratio_min"] <= curves.training["ratio_mean"]).all()
    assert (curves.training["ratio_mean"] <= curves.training["ratio_max"]).all()
    assert curves.training["tokens"][-1] == progress.tokens
    assert curves.validation["reward"][0] == pytest.approx(  # of the initial model, in its own deviations
        UNFINISHED * (1 - curves.validation["finished"][0]), abs=1e-9
    )
    assert curves.validation["kl"][0] == 0
    assert [step for step, _ in curves.samples] == [0, 2, 4]
    assert curves.samples[0][1].startswith("prompt 24 → ")
    said = capsys.readouterr().err
    assert "step 4 of 4: reward " in said and " · KL " in said
    assert read_log(tmp_path / "run" / "log.jsonl").training.keys() == curves.training.keys()


def test_without_held_out_prompts_the_last_policy_is_the_result(tmp_path: Path) -> None:
    made = trainer(iterations=2)
    made.prompts = Prompts(made.prompts.train)
    from minillama.training.run_folder import RunFolder

    place = RunFolder(tmp_path / "run")
    with place.begun({}):
        progress = made.train(place, {})
    assert progress.validation == {} and progress.best_step is None and progress.baseline is not None
    assert same_bits(made.models.policy, Llama.load(tmp_path / "run"))


# Prompts
def test_prompts_of_files(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": "a"}], "domain": "safety", "split": "train"},
        {"prompt": [{"role": "user", "content": "b"}], "chosen": "x", "rejected": "y", "domain": "helpfulness"},
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}], "kind": "unsafe"},
        {"chosen": "\n\nHuman: e\n\nAssistant: f\n\nHuman: g\n\nAssistant: h", "split": "validation"},
        {"instruction": "i", "output": "o", "kind": "borderline"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = list(PromptFile(path).prompts())
    assert [p.safety for p in found] == [True, False, True, False, False]
    assert [[m["content"] for m in p.messages] for p in found] == [["a"], ["b"], ["c"], ["e", "f", "g"], ["i"]]
    assert found[0].split == "train" and found[3].split == "validation"
    assert isinstance(find_prompts(path), PromptFile)
    encoded = encode_prompts(find_prompts(path), builtin("llama2"), tiny_tokenizer(), longest=25)
    assert len(encoded.train) + len(encoded.held_out) == 4 and encoded.too_long == 1
    assert encoded.notices() == ["1 prompts left out: too long"]
    path.write_text(json.dumps({"messages": [{"role": "assistant", "content": "d"}]}))
    with pytest.raises(MinillamaError, match=r"prompts.jsonl: line 1: expected something that the user says"):
        list(PromptFile(path).prompts())
    path.write_text(json.dumps({"prompt": "a"}))
    with pytest.raises(MinillamaError, match="expected messages to be a list"):
        list(PromptFile(path).prompts())
    path.write_text(json.dumps(lines[3]))
    with pytest.raises(MinillamaError, match="no prompt to answer: none is there to train on"):
        encode_prompts(PromptFile(path), builtin("llama2"), tiny_tokenizer(), 100)


def test_prompts_of_the_miniature() -> None:
    """Of the training split to train on, of the validation split held out; unsafe ones are tagged, and only those."""
    found = list(find_prompts("miniature:60", seed=3).prompts())
    assert [p.split for p in found] == ["train"] * 60 + ["validation"] * 3
    assert 5 < sum(p.safety for p in found) < 30
    assert all(p.messages[-1]["role"] == "user" for p in found)
    assert not any(p.safety for p in find_prompts("miniature:60", 3, safety=False).prompts())
    again, other = find_prompts("miniature:60", 3), find_prompts("miniature:60", 4)
    assert again.identity() == find_prompts("miniature:60", 3).identity() != other.identity()
    assert isinstance(again, MiniaturePrompts)
    of_ppo = list(find_prompts("miniature:600", 3, mixture=PPO_MIXTURE).prompts())[:600]
    assert sum(p.safety for p in of_ppo) / 600 == pytest.approx(PPO_MIXTURE["unsafe"], abs=0.05)
    assert sum(PPO_MIXTURE.values()) == pytest.approx(1) and PPO_MIXTURE["unsafe"] < PPO_MIXTURE["borderline"]


@pytest.mark.parametrize(
    ("source", "error", "problem"),
    [
        ("nobody", UsageError, "unknown prompts 'nobody'"),
        ("no/such.jsonl", MinillamaError, "no such file"),
        ("miniature:0", UsageError, "expected miniature:N"),
        (".", UsageError, "found a folder"),
    ],
)
def test_prompts_that_are_not_there(source: str, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        find_prompts(source)


def test_every_prompt_comes_once_an_epoch() -> None:
    found = Prompts([EncodedPrompt([i], False, "") for i in range(10)])
    drawn = [p.tokens[0] for i in range(5) for p in found.batch(i, 4, seed=2)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert [p.tokens[0] for p in found.batch(3, 4, seed=2)] == drawn[12:16]
    assert drawn != [p.tokens[0] for i in range(5) for p in found.batch(i, 4, seed=3)]


# The numbers
def test_the_recipe_is_the_papers() -> None:
    """Section 3.4.3, at 7B and 70B; smaller models in proportion."""
    large, largest = (LlamaConfig(dim, 1, 1, 8, 32) for dim in (4096, 8192))
    assert replace(ppo.recipe(large), value_lr=1e-5) == Recipe()
    assert ppo.recipe(large).value_lr == pytest.approx(1e-5)
    defaults = Recipe()
    assert (defaults.batch_size, defaults.minibatch, defaults.clip, defaults.lr) == (512, 64, 0.2, 1e-6)
    assert (defaults.beta, ppo.recipe(largest).beta, defaults.epochs) == (0.01, 0.005, 1)
    assert ppo_trainer.WEIGHT_DECAY == 0.1 and ppo_trainer.GRADIENT_CLIP == 1.0
    adamw = trainer().policy_optimizer.adamw
    assert (adamw.betas, adamw.eps, adamw.weight_decay) == ((0.9, 0.95), 1e-5, 0.1)
    mini = LlamaConfig(128, 4, 4, 344, 1024, max_seq_len=1024)
    assert ppo.recipe(mini).lr == pytest.approx(3.2e-5)
    assert ppo.recipe(mini, lora=True).lr == pytest.approx(3.2e-4)
    assert ppo.recipe(mini, lr=0.5).value_lr == 5.0
    assert (ppo.recipe(mini).batch_size, ppo.recipe(mini).minibatch) == (64, 16)
    assert ppo.recipe(mini, batch_size=8).minibatch == 8
    assert ppo.recipe(mini, iterations=50).validate_every == 5
    assert ppo.recipe(mini, iterations=None, beta=0.0).beta == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"iterations": 0}, "iterations 0: expected at least 1"),
        ({"minibatch": 1024}, "minibatch 1024: expected at most the batch of 512"),
        ({"beta": -1.0}, "beta -1.0: expected a number of at least 0"),
        ({"lr": 0.0}, "lr 0.0: expected a positive number"),
        ({"temperature": math.inf}, "temperature inf: expected a positive number"),
        ({"lam": 1.5}, "lam 1.5: expected a number from 0 to 1"),
        ({"kl_limit": 0.0}, "KL limit 0.0: expected a positive number"),
        ({"patience": 0}, "patience 0: expected at least 1"),
    ],
)
def test_numbers_that_cannot_be(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        replace(Recipe(), **change)
