"""Reward models: the scalar head, where a score is read, what padding can change (nothing), their training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import weights
from minillama.alignment import reward
from minillama.alignment.preferences import RATINGS, Pair, Preferences
from minillama.alignment.reward import EncodedPair, RewardTraining, as_batch, preference_loss
from minillama.alignment.reward_model import LIKELIHOOD, SCORE, LoraRewardModel, RewardModel
from minillama.chat import builtin
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.generate import generate
from minillama.layers import gradcheck
from minillama.lora import LoraConfig
from minillama.model import Llama
from minillama.params import Params
from minillama.training.distributed import SingleProcess
from minillama.training.loop import Options, train
from minillama.training.run_folder import RunFolder
from minillama.training.workers import Workers
from minillama.weights import Checkpoint
from tests.conftest import Arrays
from tests.weights.support import tiny_tokenizer

TINY = LlamaConfig(dim=8, n_layers=2, n_heads=2, ffn_dim=12, vocab_size=17, n_kv_heads=1, max_seq_len=32)


def lively(dtype: Any = np.float64, config: LlamaConfig = TINY) -> RewardModel:
    """A reward model whose every weight matters."""
    llama = Llama.init(config, seed=1, dtype=np.float64)
    model = RewardModel.from_llama(llama, seed=2)
    rng = np.random.default_rng(3)
    params = {n: p * 10 if p.ndim > 1 else p + 0.3 * rng.standard_normal(p.shape) for n, p in model.params.items()}
    params[SCORE] = model.params[SCORE]
    return RewardModel(model.config, {name: p.astype(dtype) for name, p in params.items()})


def texts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(1, TINY.vocab_size, length).tolist() for length in lengths]


def right_padded(rows: list[list[int]], width: int, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(rows), width), pad)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.array([len(row) - 1 for row in rows])


ROWS = texts(6, 3, 9, 1)
PAIRS = [
    EncodedPair(*texts(5, 7), 1 / 3, "slightly better", (True, False)),
    EncodedPair(*texts(9, 4), 1.0, "significantly better", (True, True)),
    EncodedPair(*texts(3, 3), 0.0, "negligibly better or unsure", None),
    EncodedPair(*texts(2, 8), 2 / 3, "better", (False, False)),
]


# The head


def test_the_head_is_new_and_the_rest_is_the_models() -> None:
    llama = Llama.init(replace(TINY, tie_embeddings=False), seed=1)
    model = RewardModel.from_llama(llama, seed=5)
    assert "output.weight" not in model.params
    for name in model.params.keys() - {SCORE}:
        assert np.array_equal(model.params[name], llama.params[name])
        assert not np.shares_memory(model.params[name], llama.params[name]), "a copy: the two are trained apart"
    assert model.params[SCORE].shape == (1, TINY.dim)
    assert sum(p.size for p in model.params.values()) == model.config.param_count()
    assert np.array_equal(model.params[SCORE], RewardModel.from_llama(llama, seed=5).params[SCORE])
    assert not np.array_equal(model.params[SCORE], RewardModel.from_llama(llama, seed=6).params[SCORE])
    assert np.array_equal(RewardModel.from_llama(model, seed=6).params[SCORE], model.params[SCORE])


@pytest.mark.parametrize("dim", [24, 576])
def test_deviation_of_the_head(dim: int) -> None:
    """1/√(C + 1), not 1/(C + 1), and not that of the other matrices, 0.02: over 100 seeds within four errors of it."""
    llama = Llama.init(LlamaConfig(dim, 1, 2, 8, vocab_size=3, tie_embeddings=True))
    heads = np.concatenate([RewardModel.from_llama(llama, seed).params[SCORE][0] for seed in range(100)])
    expected = 1 / math.sqrt(dim + 1)
    assert heads.std() == pytest.approx(expected, abs=4 * expected / math.sqrt(2 * len(heads)))
    assert abs(heads.mean()) < 4 * expected / math.sqrt(len(heads))


def test_values_are_the_products_of_hidden_states_and_head() -> None:
    """Rung 1: loops."""
    model = lively()
    tokens, _ = right_padded(ROWS, 9)
    hidden, _ = model.forward(tokens)
    values, _ = model.values(tokens)
    for b, t in np.ndindex(tokens.shape):
        assert values[b, t] == pytest.approx(
            sum(h * w for h, w in zip(hidden[b, t], model.params[SCORE][0], strict=True))
        )


def test_the_score_is_read_at_the_last_real_token() -> None:
    """Not at the first padding (one too far), not at the end of the row, not one before."""
    model = lively()
    tokens, last = right_padded(ROWS, 12)
    scores, _ = model.rewards(tokens, last)
    for row, score in zip(ROWS, scores, strict=True):
        values, _ = model.values(np.array([row]))
        assert score == pytest.approx(values[0, -1], rel=1e-12)
        if len(row) > 1:
            assert abs(score - values[0, -2]) > 1e-3
    at_the_padding, _ = model.rewards(tokens, last + 1)
    assert np.abs(at_the_padding - scores).min() > 1e-3, "a score at the padding must be another"


def test_scores_know_no_padding() -> None:
    """Neither how much of it there is nor what stands in it, right or left, changes a score or a gradient."""
    model = lively()
    tokens, last = right_padded(ROWS, 9)
    scores, saved = model.rewards(tokens, last)
    dscores = np.array([1.0, -0.5, 2.0, 0.3])
    grads = model.rewards_backward(dscores, saved)

    def check(tokens: np.ndarray, last: np.ndarray, mask: np.ndarray | None = None) -> None:
        found, saved = model.rewards(tokens, last, mask=mask)
        np.testing.assert_allclose(found, scores, rtol=1e-12)
        for name, grad in model.rewards_backward(dscores, saved).items():
            np.testing.assert_allclose(grad, grads[name], rtol=1e-9, atol=1e-12, err_msg=name)

    for garbage in (5, -100, 10**6):
        check(*right_padded(ROWS, 9, garbage))
        check(*right_padded(ROWS, 14, garbage))
        shifted = np.full((4, 13), garbage)
        shifted[:, 4:] = right_padded(ROWS, 9, garbage)[0]
        check(shifted, last + 4, np.tile(np.arange(13) >= 4, (4, 1)))


def test_gradients_of_the_scores() -> None:
    """Rung 2: central differences of every parameter."""
    model = lively()
    tokens, last = right_padded(ROWS, 9)
    _check_gradients(model, lambda m: m.rewards(tokens, last), lambda m, d, saved: m.rewards_backward(d, saved))


def with_likelihood(dtype: Any = np.float64, tied: bool = True) -> RewardModel:
    """The same with the likelihood of answers, of another weight than at the beginning."""
    llama = Llama.init(replace(TINY, tie_embeddings=tied), seed=1, dtype=np.float64)
    params = {n: p * 10 if p.ndim > 1 else p for n, p in llama.params.items()}
    model = RewardModel.from_llama(Llama(llama.config, params), seed=2, likelihood=True)
    assert not model.params[SCORE].any() and model.params[LIKELIHOOD] == 0.5  # the likelihood is all that counts
    model.params[SCORE][...] = RewardModel.from_llama(llama, seed=2).params[SCORE]
    model.params[LIKELIHOOD][...] = 0.7
    return RewardModel(model.config, {name: p.astype(dtype) for name, p in model.params.items()})


FIRST = np.array([2, 1, 8, 1])  # where the answers begin, in texts of 6, 3, 9 and 4 tokens


@pytest.mark.parametrize("tied", [True, False])
def test_likelihood_is_of_the_answer_alone(tied: bool) -> None:
    """Against one text after the other, token by token; whatever stands in the padding."""
    model = with_likelihood(tied=tied)
    rows = texts(6, 3, 9, 4)
    plain = RewardModel(replace(model.config, head="score"), {n: model.params[n] for n in plain_names(model)})
    writer = Llama(replace(model.config, head=None), {n: p for n, p in model.params.items() if "score" not in n})
    for pad in (0, -5):
        tokens, last = right_padded(rows, 11, pad)
        found, _ = model.rewards(tokens, last, first=FIRST)
        for i, (row, first) in enumerate(zip(rows, FIRST, strict=True)):
            logits = writer.logits(writer.forward(np.array([row]))[0])[0]  # (T, V)
            logprobs = [
                logits[t - 1, row[t]] - np.log(np.exp(logits[t - 1] - logits[t - 1].max()).sum()) - logits[t - 1].max()
                for t in range(first, len(row))
            ]
            score = plain.rewards(np.array([row]), np.array([len(row) - 1]))[0][0]
            assert found[i] == pytest.approx(score + 0.7 * np.sum(logprobs) / len(logprobs) ** 0.5, rel=1e-9, abs=1e-9)


def plain_names(model: RewardModel) -> list[str]:
    return list(replace(model.config, head="score").param_shapes())


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_with_likelihood(tied: bool) -> None:
    """Rung 2, through both: the score and the next-token head."""
    model = with_likelihood(tied=tied)
    tokens, last = right_padded(texts(6, 3, 9, 4), 9)
    _check_gradients(
        model, lambda m: m.rewards(tokens, last, first=FIRST), lambda m, d, saved: m.rewards_backward(d, saved)
    )


def test_a_bug_in_the_likelihood_is_noticed() -> None:
    """Rung 4: the plain sum in the place of the sum over √n, on the way back."""
    model = with_likelihood()
    tokens, last = right_padded(texts(6, 3, 9, 4), 9)

    def wrong(m: RewardModel, d: np.ndarray, saved: Any) -> Params:
        *rest, (likelihood, logprobs, predicted, before, roots) = saved
        return m.rewards_backward(d, (*rest, (likelihood, logprobs, predicted, before, np.ones_like(roots))))

    with pytest.raises(AssertionError, match="central differences"):
        _check_gradients(model, lambda m: m.rewards(tokens, last, first=FIRST), wrong)


def test_a_model_with_likelihood_keeps_it(tmp_path: Path) -> None:
    """As a copy, and on disk; and it must be told where answers begin."""
    model = with_likelihood(np.float32)
    tokens, last = right_padded(texts(6, 3, 9, 4), 9)
    expected, _ = model.rewards(tokens, last, first=FIRST)
    weights.save(Checkpoint(model.config, model.params), tmp_path / "model")
    for again in (RewardModel.from_llama(model), RewardModel.load(tmp_path / "model")):
        assert again.config == model.config
        np.testing.assert_allclose(again.rewards(tokens, last, first=FIRST)[0], expected, rtol=1e-6)
    with pytest.raises(UsageError, match="where the answers begin"):
        model.rewards(tokens, last)


def test_gradients_of_the_values() -> None:
    """As a value model: every token's number counts, those of padding on the left do not."""
    model = lively()
    tokens = np.random.default_rng(5).integers(0, TINY.vocab_size, (2, 6))
    mask = np.arange(6) >= np.array([[0], [2]])

    def backward(m: RewardModel, dvalues: np.ndarray, saved: Any) -> Params:
        return m.values_backward(np.where(mask, dvalues, 0), saved)

    def forward(m: RewardModel) -> tuple:
        values, saved = m.values(tokens, mask=mask)
        return np.where(mask, values, 0), saved

    _check_gradients(model, forward, backward)


def test_a_planted_bug_is_noticed() -> None:
    """Rung 4: a gradient at the token before the last."""
    model = lively()
    tokens, last = right_padded(ROWS[:3], 9)

    def wrong(m: RewardModel, d: np.ndarray, saved: Any) -> Params:
        forward, head, at, shape, likelihood = saved
        return m.rewards_backward(d, (forward, head, (at[0], at[1] - 1), shape, likelihood))

    with pytest.raises(AssertionError, match="central differences"):
        _check_gradients(model, lambda m: m.rewards(tokens, last), wrong)


def _check_gradients(model: RewardModel, forward: Callable, backward: Callable) -> None:
    """Against central differences in every parameter."""
    names = list(model.params)

    def at(*params: np.ndarray) -> tuple[Any, Any]:
        there = RewardModel(model.config, dict(zip(names, params, strict=True)))
        y, saved = forward(there)
        return y, (there, saved)

    def gradients(dy: np.ndarray, saved: Any) -> tuple:
        there, rest = saved
        grads = backward(there, dy, rest)
        assert grads.keys() == set(names)
        assert all(grads[name].any() for name in names), "a gradient of 0 is no test"
        return tuple(grads[name] for name in names)

    gradcheck(at, gradients, *model.params.values())


def test_recomputed_scores_are_the_same() -> None:
    model = lively()
    tokens, last = right_padded(ROWS, 9)
    (scores, saved), (again, saved_again) = (model.rewards(tokens, last, recompute=r) for r in (False, True))
    assert np.array_equal(scores, again)
    grads, grads_again = (model.rewards_backward(np.ones(4), s) for s in (saved, saved_again))
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_again[name], grad, rtol=1e-12, atol=1e-14)


def test_on_every_library(arrays: Arrays) -> None:
    """Scores and gradients under a GPU's rules, tokens on the host or beside the parameters; float32 stays float32."""
    host = lively(np.float32)
    model = RewardModel(host.config, arrays.put(host.params))
    tokens, last = right_padded(ROWS, 9)
    expected, saved = host.rewards(tokens, last)
    grads = host.rewards_backward(np.ones(4, np.float32), saved)
    for where in (lambda x: x, arrays.put):
        scores, saved = model.rewards(where(tokens), where(last))
        assert scores.dtype == np.float32
        np.testing.assert_allclose(arrays.get(scores), expected, rtol=2e-5, atol=2e-6)
        for name, grad in model.rewards_backward(arrays.put(np.ones(4, np.float32)), saved).items():
            assert grad.dtype == np.float32
            np.testing.assert_allclose(arrays.get(grad), grads[name], rtol=2e-4, atol=2e-5, err_msg=name)
    batch = as_batch(PAIRS)
    loss, loss_grads = preference_loss(model, batch, 4.0, 0.7)
    host_loss, host_grads = preference_loss(host, batch, 4.0, 0.7)
    assert float(arrays.get(loss)) == pytest.approx(float(host_loss), rel=1e-5)
    assert arrays.get(loss).dtype == np.float32
    np.testing.assert_allclose(arrays.get(loss_grads[SCORE]), host_grads[SCORE], rtol=1e-4, atol=1e-6)


# On disk


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_what_is_saved_is_loaded(tmp_path: Path, tied: bool, window: int | None) -> None:
    config = replace(TINY, tie_embeddings=tied, sliding_window=window)
    model = RewardModel.from_llama(Llama.init(config, seed=1), seed=2)
    model.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm")
    assert loaded.config == model.config
    assert list(loaded.params) == list(model.params)
    for name, p in model.params.items():
        assert np.array_equal(loaded.params[name], p), name
    loaded.save(tmp_path / "again")
    for file in (tmp_path / "rm").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_padding_on_disk_is_no_token_that_ends_a_text(tmp_path: Path) -> None:
    """transformers reads the score at the last token that is no padding: were that the end token, it would be lost."""
    tokenizer = tiny_tokenizer()
    config = replace(TINY, vocab_size=tokenizer.vocab_size)
    model = RewardModel.from_llama(Llama.init(config), seed=2)
    weights.save(replace(model.checkpoint(), tokenizer=tokenizer), tmp_path / "rm")
    settings = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForSequenceClassification"]
    assert settings["id2label"] == {"0": "LABEL_0"}
    assert settings["pad_token_id"] not in {None, tokenizer.eos_id, tokenizer.bos_id, *tokenizer.stop_ids}
    assert 0 <= settings["pad_token_id"] < tokenizer.vocab_size


def test_a_reward_model_is_no_model_of_text(tmp_path: Path) -> None:
    model = RewardModel.from_llama(Llama.init(replace(TINY, tie_embeddings=True)))
    with pytest.raises(UsageError, match="found a reward model"):
        generate(model, [[1, 2]], max_new_tokens=1)
    for name in ("rm.gguf", "rm.bin"):
        with pytest.raises(UsageError, match="a reward model fits only into a Hugging Face folder"):
            weights.save(model.checkpoint(), tmp_path / name)
        assert not (tmp_path / name).exists()
    Llama.init(TINY).save(tmp_path / "text")
    with pytest.raises(MinillamaError, match="expected a reward model, found a model that writes text"):
        RewardModel.load(tmp_path / "text")


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    RewardModel.from_llama(Llama.init(TINY)).save(tmp_path / "rm")
    path = tmp_path / "rm" / "config.json"
    settings = json.loads(path.read_text())
    for labels in ({"0": "good", "1": "bad"}, None, 3):
        path.write_text(json.dumps(settings | {"id2label": labels}))
        with pytest.raises(MinillamaError, match=r"config\.json: expected a classifier of 1 label"):
            weights.load(tmp_path / "rm")


# The loss


def test_the_loss_of_a_batch() -> None:
    """Loops over pairs scored one by one: ranking with margins, and the safety term over labelled answers."""
    model = lively()
    for safety_weight in (0.0, 0.7):
        total = 0.0
        for pair in PAIRS:
            chosen, rejected = (float(model.values(np.array([t]))[0][0, -1]) for t in (pair.chosen, pair.rejected))
            total += math.log(1 + math.exp(-(chosen - rejected - pair.margin))) / 4
            for score, safe in zip((chosen, rejected), pair.safe or (), strict=False):
                total += safety_weight * math.log(1 + math.exp(-score if safe else score)) / 8
        loss, _ = preference_loss(model, as_batch(PAIRS), 4.0, safety_weight)
        assert float(loss) == pytest.approx(total, rel=1e-6)  # margins are float32


@pytest.mark.parametrize("safety_weight", [0.0, 0.7])
def test_gradients_of_the_loss(safety_weight: float) -> None:
    """Rung 2, of ranking and safety together, in every parameter."""
    model = lively()
    batch = as_batch(PAIRS)

    def forward(m: RewardModel) -> tuple:
        return preference_loss(m, batch, 4.0, safety_weight)

    def backward(_: RewardModel, d: np.ndarray, grads: Params) -> Params:
        return {name: d * grad for name, grad in grads.items()}

    _check_gradients(model, forward, backward)


def test_the_loss_knows_no_padding() -> None:
    """A batch padded further, with garbage: the same loss, the same gradients."""
    model = lively()
    batch = as_batch(PAIRS)
    loss, grads = preference_loss(model, batch, 4.0, 0.7)
    spoilt = np.full((4, 2, 15), -7)
    for i, pair in enumerate(PAIRS):
        spoilt[i, 0, : len(pair.chosen)], spoilt[i, 1, : len(pair.rejected)] = pair.chosen, pair.rejected
    again, grads_again = preference_loss(model, batch | {"tokens": spoilt}, 4.0, 0.7)
    assert float(again) == pytest.approx(float(loss), rel=1e-13)
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_again[name], grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_accumulated_gradients_are_those_of_the_batch(micro_batch: int, threads: int) -> None:
    model = lively()
    batch = as_batch(PAIRS)
    loss, grads = preference_loss(model, batch, 4.0, 0.7)
    expected = np.concatenate([grads[n].ravel() for n in sorted(grads, key=lambda n: model.params[n].ndim <= 1)])
    workers = Workers(model, threads)
    names = list(model.params)

    def part(m: Any, rows: Any, weight: float) -> Any:
        return preference_loss(m, rows, weight, 0.7)

    total, flat = workers.gradients(part, batch, 4.0, micro_batch)
    assert total == pytest.approx(float(loss), rel=1e-12)
    assert len(flat) == len(expected)
    start = 0
    for name in names:
        size = grads[name].size
        np.testing.assert_allclose(flat[start : start + size], grads[name].ravel(), rtol=1e-9, atol=1e-13, err_msg=name)
        start += size


def test_chosen_and_rejected_are_not_confused() -> None:
    """A step along the gradient moves the chosen answer up against the rejected one."""
    model = lively()
    pairs = [replace(PAIRS[0], margin=0.0)]
    before = np.diff(reward.score_pairs(model, pairs))[0, 0]
    _, grads = preference_loss(model, as_batch(pairs), 1.0)
    for name, grad in grads.items():
        model.params[name] -= 1e-3 * grad
    after = np.diff(reward.score_pairs(model, pairs))[0, 0]
    assert after < before


# With LoRA


def adapted(model: RewardModel, base: str = "") -> LoraRewardModel:
    """With adapters that already do something."""
    lora = LoraRewardModel.wrap(model, LoraConfig(rank=2, alpha=3.0, also=(SCORE,)), seed=4, base=base)
    assert isinstance(lora, LoraRewardModel)
    rng = np.random.default_rng(5)
    for name, p in lora.trained.items():
        if name.endswith("lora_b"):
            p[...] = 0.3 * rng.standard_normal(p.shape)
    return lora


def test_gradients_with_adapters() -> None:
    """Of adapters and head, of nothing else, by central differences."""
    base = lively()
    lora = adapted(base)
    names, batch = list(lora.trained), as_batch(PAIRS)
    assert SCORE in names and "norm.weight" not in names

    def forward(*trained: np.ndarray) -> tuple:
        model = LoraRewardModel(base.config, base.params, lora.lora, dict(zip(names, trained, strict=True)))
        return preference_loss(model, batch, 4.0, 0.7)

    def backward(d: np.ndarray, grads: Params) -> tuple:
        assert grads.keys() == set(names)
        return tuple(d * grads[name] for name in names)

    gradcheck(forward, backward, *lora.trained.values())


def test_adapters_are_trained_and_found_again(tmp_path: Path) -> None:
    """The loop changes adapters and head, the base not at all; what is saved scores alike, merged into the base."""
    Llama.init(TINY, seed=1).save(tmp_path / "base")
    base = RewardModel.from_llama(Llama.load(tmp_path / "base"), seed=2)
    before = {name: p.copy() for name, p in base.params.items()}
    lora = adapted(base, str(tmp_path / "base"))
    stage = RewardTraining(reward.Encoded(PAIRS * 5, PAIRS), batch_size=5, epochs=2, threads=1)
    unlike = stage.validate(lora)
    folder = RunFolder(tmp_path / "run")
    with folder.begun({}):
        train(lora, stage, Options(stage.steps, lr=0.01, threads=1), folder, {}, comm=SingleProcess())
    assert all(np.array_equal(base.params[name], p) for name, p in before.items())
    after = stage.validate(lora)
    assert after["loss"] < unlike["loss"]
    loaded = RewardModel.load(folder.path)
    assert not np.array_equal(loaded.params[SCORE], before[SCORE])
    assert stage.validate(loaded)["loss"] == pytest.approx(after["loss"], rel=1e-5)


# From dialogues to batches

TEMPLATE, TOKENIZER = builtin("llama2"), tiny_tokenizer()


def pair(*turns: str, **more: Any) -> Pair:
    prompt = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns))
    return Pair(prompt, **{"chosen": "yes", "rejected": "no"} | more)


def test_a_score_is_read_at_the_end_token() -> None:
    encoded, shortened = reward.encode_pair(pair("a"), TEMPLATE, TOKENIZER, 1000)
    assert encoded is not None and not shortened
    for tokens, answer in ((encoded.chosen, "yes"), (encoded.rejected, "no")):
        assert tokens[-1] == TOKENIZER.eos_id
        assert TOKENIZER.decode(tokens[:-1]).endswith(f"[/INST] {answer} ")
    for name in ("llama2", "chatml"):
        tokens, first = reward.encode_answer(pair("a").prompt, "yes", builtin(name), TOKENIZER)
        assert TOKENIZER.decode(tokens[first:]).strip().startswith("yes")
        assert "yes" in TOKENIZER.decode(tokens)
        assert TOKENIZER.decode(tokens).split("yes")[-1].strip() in ("", "<|im_end|>")


def test_long_prompts_lose_their_first_turns() -> None:
    """Both answers' alike, as many as it takes for the longer one; a system message stays."""
    long = pair("first", "one", "second", "two", "third", chosen="short", rejected="much longer than it")
    whole, _ = reward.encode_pair(long, TEMPLATE, TOKENIZER, 1000)
    assert whole is not None
    shorter, shortened = reward.encode_pair(long, TEMPLATE, TOKENIZER, whole.length - 1)
    assert shorter is not None and shortened
    for tokens in (shorter.chosen, shorter.rejected):
        text = TOKENIZER.decode(tokens)
        assert "first" not in text and "one" not in text
        assert "second" in text and "third" in text
    assert reward.encode_pair(long, TEMPLATE, TOKENIZER, whole.length)[1] is False
    assert reward.encode_pair(pair("x" * 50), TEMPLATE, TOKENIZER, 40) == (None, False)
    system = replace(long, prompt=({"role": "system", "content": "be kind"}, *long.prompt))
    whole_system, _ = reward.encode_pair(system, TEMPLATE, TOKENIZER, 1000)
    assert whole_system is not None
    kept, shortened = reward.encode_pair(system, TEMPLATE, TOKENIZER, whole_system.length - 1)
    assert kept is not None and shortened
    assert "be kind" in TOKENIZER.decode(kept.chosen) and "first" not in TOKENIZER.decode(kept.chosen)


def test_what_cannot_be_taken_is_counted() -> None:
    pairs = [
        pair("a", split="train", rating="better"),
        pair("b", split="validation"),
        pair("[INST] c", split="train"),
        pair("d" * 90, split="train"),
        pair("e" * 90, "f", "g", split="train"),
    ]
    data = reward.encode_all(Preferences(pairs), TEMPLATE, TOKENIZER, 60, "small")
    assert (len(data.train), len(data.held_out)) == (2, 1)
    assert (data.refused, data.too_long, data.shortened) == (1, 1, 1)
    assert len(data.notices()) == 3
    assert [p.margin for p in data.train] == [pytest.approx(2 / 3), 0.0]
    assert data.shown is not None and data.shown[0] is pairs[1]
    with pytest.raises(UsageError, match="margin large: expected pairs with a rating, found none"):
        reward.encode_all(Preferences(pairs[1:]), TEMPLATE, TOKENIZER, 60, "large")
    with pytest.raises(UsageError, match="margin 'huge': expected one of none, small, large"):
        reward.encode_all(Preferences(pairs), TEMPLATE, TOKENIZER, 60, "huge")
    with pytest.raises(MinillamaError, match="nothing to learn: 1 pairs left out: too long"):
        reward.encode_all(Preferences(pairs[3:4]), TEMPLATE, TOKENIZER, 60)


def test_an_epoch_has_every_pair_once() -> None:
    pairs = [EncodedPair([i], [i, i]) for i in range(1, 12)]
    stage = RewardTraining(reward.Encoded(pairs), batch_size=4, epochs=2, seed=3, threads=1)
    assert (stage.steps_per_epoch, stage.steps) == (3, 6)
    batches = [stage.batch(step) for step in range(6)]
    assert {len(batch["tokens"]) for batch in batches} == {3, 4}
    for epoch in (batches[:3], batches[3:]):
        assert sorted(int(t) for batch in epoch for t in batch["tokens"][:, 0, 0]) == list(range(1, 12))
    orders = [[tuple(batch["tokens"][:, 0, 0]) for batch in epoch] for epoch in (batches[:3], batches[3:])]
    assert orders[0] != orders[1]
    again = RewardTraining(reward.Encoded(pairs), batch_size=4, epochs=2, seed=3, threads=1)
    assert np.array_equal(again.batch(4)["tokens"], batches[4]["tokens"])
    for batch_size, epochs, safety_weight in ((0, 1, 0.0), (1, 0, 0.0), (1, 1, -1.0), (1, 1, math.nan)):
        with pytest.raises(UsageError):
            RewardTraining(reward.Encoded(pairs), batch_size, epochs, safety_weight=safety_weight)


# Measures


def test_scores_come_in_the_order_of_the_pairs() -> None:
    model = lively()
    pairs = [EncodedPair(*texts(n, 13 - n)) for n in range(1, 13)] * 20
    for threads in (1, 2):
        scores = reward.score_pairs(model, pairs, reward.Threads(threads))
        for i in (0, 1, 11, 100, 239):
            for j, tokens in enumerate((pairs[i].chosen, pairs[i].rejected)):
                assert scores[i, j] == pytest.approx(float(model.values(np.array([tokens]))[0][0, -1]), rel=1e-9)


def test_measures() -> None:
    """By hand: two of significantly better, both right; of two others one is wrong and one a tie, which is wrong."""
    apart = [3.0, 1.0, -1.0, 0.0]
    ratings = [RATINGS[0], RATINGS[0], RATINGS[2], None]
    pairs = [EncodedPair([1], [2], 0.5, rating, (True, False)) for rating in ratings]
    scores = np.array([[x / 2, -x / 2] for x in apart])
    found = reward.measure(scores, pairs)
    assert found["loss"] == pytest.approx(sum(math.log(1 + math.exp(-(x - 0.5))) for x in apart) / 4)
    assert (found["accuracy"], found["pairs"]) == (0.5, 4)
    assert (found["accuracy, significantly better"], found["pairs, significantly better"]) == (1.0, 2)
    assert (found["accuracy, slightly better"], found["pairs, slightly better"]) == (0.0, 1)
    assert "accuracy, better" not in found
    sure = [1 / (1 + math.exp(-abs(x))) for x in apart]  # 0.95, 0.73, 0.73, 0.5
    assert (found["pairs, 50 to 60 % sure"], found["right, 50 to 60 % sure"]) == (1, 0.0)
    assert (found["pairs, 70 to 80 % sure"], found["right, 70 to 80 % sure"]) == (2, 0.5)
    assert (found["pairs, 90 to 100 % sure"], found["right, 90 to 100 % sure"]) == (1, 1.0)
    error = (abs(sure[3] - 0) + abs(sure[1] + sure[2] - 1) + abs(sure[0] - 1)) / 4
    assert found["calibration_error"] == pytest.approx(error)
    with_safety = reward.measure(scores, pairs, safety_weight=2.0)["loss"]
    safety = sum(2 * math.log(1 + math.exp(-x / 2)) for x in apart) / 8
    assert with_safety == pytest.approx(found["loss"] + 2 * safety)


def test_validation_has_the_loss_of_training() -> None:
    """Over all terms: the same number by either way."""
    model = lively()
    stage = RewardTraining(reward.Encoded(PAIRS, PAIRS), 4, safety_weight=0.7, threads=1)
    batch = stage.batch(0)
    loss, _ = stage.loss(model, batch, stage.weight(batch))
    assert stage.validate(model)["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert RewardTraining(reward.Encoded(PAIRS), 4, threads=1).validate(model) == {}


@pytest.mark.parametrize(("right", "pairs"), [(0, 5), (3, 5), (5, 5), (60, 100), (130, 250)])
def test_p_value(right: int, pairs: int) -> None:
    """Against Pascal's triangle in fractions."""
    row = [Fraction(1)]
    for _ in range(pairs):
        row = [(a + b) / 2 for a, b in zip([Fraction(0), *row], [*row, Fraction(0)], strict=True)]
    assert reward.binomial_p(right, pairs) == pytest.approx(float(sum(row[right:])), rel=1e-12)
    assert reward.binomial_p(60, 100) == pytest.approx(0.0284, abs=5e-5)  # a table's


def test_recipe() -> None:
    """The paper's rate at the paper's width, warm-up of 3 % and at least 5 steps."""
    seven = reward.recipe(LlamaConfig(4096, 1, 32, 8, vocab_size=3))
    assert (seven.epochs, seven.lr) == (1, pytest.approx(1e-5))
    small = reward.recipe(replace(TINY, max_seq_len=64))
    assert (small.lr, small.max_length) == (pytest.approx(1e-5 * 512), 64)
    assert [small.warmup(n) for n in (1, 6, 100, 1000)] == [0, 3, 5, 30]


def test_what_people_prefer_is_learned(tmp_path: Path) -> None:
    """Answers with a 7 in them are better, wherever it stands and however long they are; new pairs are judged right."""
    rng = np.random.default_rng(0)

    def draw() -> EncodedPair:
        answers = [rng.integers(8, TINY.vocab_size, rng.integers(2, 7)).tolist() for _ in range(2)]
        answers[0][rng.integers(len(answers[0]))] = 7
        return EncodedPair([*answers[0], 2], [*answers[1], 2])

    data = reward.Encoded([draw() for _ in range(600)], [draw() for _ in range(200)])
    stage = RewardTraining(data, batch_size=20, epochs=2, threads=1)
    model = RewardModel.from_llama(Llama.init(TINY, seed=1), seed=2)
    before = stage.validate(model)["accuracy"]
    folder = RunFolder(tmp_path / "run")
    settings = {"stage": "reward"}
    with folder.begun(settings):
        options = Options(stage.steps, lr=0.02, warmup_steps=5, micro_batch=20, threads=1, validate_every=60)
        progress = train(model, stage, options, folder, settings, comm=SingleProcess())
    assert before < 0.8
    assert progress.validation["accuracy"] > 0.95
    saved = RewardModel.load(folder.path)
    assert stage.validate(saved) == stage.validate(model)
