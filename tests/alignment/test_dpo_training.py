"""DPO through a model: log-probabilities of answers, gradients, the reference, what is learned; the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import weights
from minillama.alignment import dpo_training as stage
from minillama.alignment import preferences
from minillama.alignment.dpo import dpo_loss
from minillama.alignment.dpo_training import (
    REFERENCE,
    DPOTraining,
    Encoded,
    EncodedPair,
    answer_logprobs,
    as_batch,
    logprobs_of,
    preference_loss,
    with_reference,
)
from minillama.alignment.preferences import Pair, Preferences
from minillama.chat import Dialogue
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.layers import gradcheck
from minillama.lora import LoraConfig, LoraLlama
from minillama.model import Llama
from minillama.training import loop
from minillama.training.workers import Workers
from tests.alignment.models import TEMPLATE, TOKENIZER, chat_model, problem, run, succeed
from tests.conftest import Arrays

TINY = LlamaConfig(dim=8, n_layers=1, n_heads=2, ffn_dim=12, vocab_size=17, n_kv_heads=1, max_seq_len=32)


def lively(dtype: Any = np.float64, config: LlamaConfig = TINY) -> Llama:
    """A model whose every weight matters."""
    llama = Llama.init(config, seed=1, dtype=np.float64)
    rng = np.random.default_rng(3)
    params = {n: p * 10 if p.ndim > 1 else p + 0.3 * rng.standard_normal(p.shape) for n, p in llama.params.items()}
    return Llama(config, {name: p.astype(dtype) for name, p in params.items()})


def dialogue(prompt: int, answer: int, seed: int) -> Dialogue:
    tokens = np.random.default_rng([4, seed]).integers(1, TINY.vocab_size, prompt + answer).tolist()
    return Dialogue(tokens, [i >= prompt for i in range(prompt + answer)])


LENGTHS = [((3, 4), (3, 2)), ((5, 1), (5, 6)), ((2, 3), (2, 3)), ((4, 4), (4, 1))]
PLAIN = [EncodedPair(dialogue(*c, 2 * i), dialogue(*r, 2 * i + 1)) for i, (c, r) in enumerate(LENGTHS)]
RNG = np.random.default_rng(6)
PAIRS = with_reference(PLAIN, logprobs_of(lively(), PLAIN) + RNG.standard_normal((4, 2)))


def brute_force(model: Llama, said: Dialogue) -> float:
    """Token by token, each from a forward pass over what stands before it."""
    total = 0.0
    for t, (token, counts) in enumerate(zip(said.tokens, said.loss_mask, strict=True)):
        if counts:
            hidden, _ = model.forward(np.array([said.tokens[:t]]))
            logits = [float(x) for x in model.logits(hidden)[0, -1]]
            total += logits[token] - math.log(sum(map(math.exp, logits)))
    return total


# Log-probabilities


def test_logprobs_token_by_token() -> None:
    """Rung 1: of the answer's tokens, each seen from the place before it; nothing of the prompt."""
    model = lively()
    expected = [[brute_force(model, said) for said in (pair.chosen, pair.rejected)] for pair in PAIRS]
    np.testing.assert_allclose(answer_logprobs(model, as_batch(PAIRS))[0], expected, rtol=1e-10)
    np.testing.assert_allclose(logprobs_of(model, PAIRS), expected, rtol=1e-10)


def test_logprobs_know_no_padding() -> None:
    model = lively()
    batch = as_batch(PAIRS)
    logprobs, _ = answer_logprobs(model, batch)
    longer = {name: np.pad(x, [(0, 0), (0, 0), (0, 5)]) for name, x in batch.items() if name != "reference"}
    longer["tokens"][:, :, -5:] = 3
    np.testing.assert_allclose(answer_logprobs(model, longer)[0], logprobs, rtol=1e-12)
    garbage = batch["tokens"].copy()
    for i, pair in enumerate(PAIRS):
        for j, said in enumerate((pair.chosen, pair.rejected)):
            garbage[i, j, len(said.tokens) :] = 9
    np.testing.assert_allclose(answer_logprobs(model, batch | {"tokens": garbage})[0], logprobs, rtol=1e-12)


# The loss and its gradient


def test_the_loss_of_a_batch() -> None:
    """Equation 7 of the paper, pair by pair."""
    model, total = lively(), 0.0
    for pair in PAIRS:
        assert pair.reference is not None
        chosen, rejected = (
            brute_force(model, said) - reference
            for said, reference in zip((pair.chosen, pair.rejected), pair.reference, strict=True)
        )
        total += math.log(1 + math.exp(-0.7 * (chosen - rejected))) / 4
    loss, _ = preference_loss(model, as_batch(PAIRS), 4.0, 0.7)
    assert float(loss) == pytest.approx(total, rel=1e-10)


def check_gradients(model: Llama, wrong: float = 1.0) -> None:
    """Of all that is trained, by central differences. wrong: a factor on the gradient of one matrix."""
    names, batch = list(model.trained), as_batch(PAIRS)
    reference = batch["reference"]

    def forward(*trained: np.ndarray) -> tuple:
        changed = dict(zip(names, trained, strict=True))
        there = (
            LoraLlama(model.config, model.params, model.lora, changed)
            if isinstance(model, LoraLlama)
            else Llama(model.config, changed)
        )
        logprobs, _ = answer_logprobs(there, batch)
        return dpo_loss(*logprobs.T, *reference.T, beta=0.7)[0], there

    def backward(d: np.ndarray, there: Llama) -> tuple:
        _, grads = preference_loss(there, batch, 4.0, 0.7)
        assert grads.keys() == set(names)
        assert all(grad.any() for grad in grads.values()), "a gradient of 0 is no test"
        return tuple(d * grads[name] * (wrong if name == names[0] else 1.0) for name in names)

    gradcheck(forward, backward, *model.trained.values())


@pytest.mark.parametrize("tied", [True, False])
def test_gradients(tied: bool) -> None:
    """Rung 2."""
    check_gradients(lively(config=replace(TINY, tie_embeddings=tied)))


def adapted(base: Llama) -> LoraLlama:
    """With adapters that already do something."""
    lora = LoraLlama.wrap(base, LoraConfig(rank=2, alpha=3.0), seed=4)
    for name, p in lora.trained.items():
        if name.endswith("lora_b"):
            p[...] = 0.3 * np.random.default_rng(5).standard_normal(p.shape)
    return lora


def test_gradients_of_adapters() -> None:
    check_gradients(adapted(lively()))


def test_a_planted_bug_is_noticed() -> None:
    """Rung 4."""
    with pytest.raises(AssertionError, match="central differences"):
        check_gradients(lively(), wrong=1.01)


def test_recomputed_gradients_are_the_same() -> None:
    model, batch = lively(), as_batch(PAIRS)
    (loss, grads), (again, same) = (preference_loss(model, batch, 4.0, recompute=r) for r in (False, True))
    assert float(loss) == float(again)
    for name, grad in grads.items():
        np.testing.assert_allclose(same[name], grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_accumulated_gradients_are_those_of_the_batch(micro_batch: int, threads: int) -> None:
    """However a batch is cut: the mean is over the pairs of the whole."""
    model, batch = lively(), as_batch(PAIRS)
    loss, grads = preference_loss(model, batch, 4.0)
    workers = Workers(model, threads)
    total, flat = workers.gradients(lambda m, b, w: preference_loss(m, b, w), batch, 4.0, micro_batch)
    assert total == pytest.approx(float(loss), rel=1e-12)
    expected = np.concatenate([grads[name].reshape(-1) for name in model.params])
    np.testing.assert_allclose(flat, expected, rtol=1e-8, atol=1e-13)


def test_on_every_library(arrays: Arrays) -> None:
    """Under a GPU's rules; float32 stays float32."""
    host = lively(np.float32)
    model = Llama(host.config, arrays.put(host.params))
    batch = as_batch(PAIRS)
    (expected, host_grads), (loss, grads) = (preference_loss(m, batch, 4.0) for m in (host, model))
    assert loss.dtype == np.float32
    assert float(arrays.get(loss)) == pytest.approx(float(expected), rel=1e-5)
    for name, grad in grads.items():
        assert grad.dtype == np.float32
        np.testing.assert_allclose(arrays.get(grad), host_grads[name], rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(logprobs_of(model, PAIRS), logprobs_of(host, PAIRS), rtol=1e-5)


# The reference


def at_the_beginning(model: Llama, pairs: list[EncodedPair] = PLAIN) -> DPOTraining:
    asked = with_reference(pairs, logprobs_of(model, pairs))
    return DPOTraining(Encoded(asked, asked), batch_size=2, threads=1)


def test_the_first_loss_is_log_2() -> None:
    """In training and in validation: nothing is preferred yet, by all weights or by fresh adapters."""
    base = lively()
    for model in (base, LoraLlama.wrap(base, LoraConfig(rank=2), seed=4)):
        training = at_the_beginning(model)
        for step in range(training.steps):
            batch = training.batch(step)
            loss, _ = training.loss(model, batch, training.weight(batch))
            assert float(loss) == pytest.approx(math.log(2), rel=1e-12)
        measures = training.validate(model)
        assert measures["loss"] == pytest.approx(math.log(2), rel=1e-12)
        assert measures["margin"] == pytest.approx(0, abs=1e-12)


def test_a_step_moves_what_it_should() -> None:
    """The chosen answer up against the rejected one; the reference, which is numbers, stays."""
    model = lively()
    training = at_the_beginning(model)
    reference = [pair.reference for pair in training.data.train]
    batch = as_batch(training.data.train)
    _, grads = training.loss(model, batch, 4.0)
    for name, grad in grads.items():
        model.params[name] -= 1e-2 * grad
    measures = training.validate(model)
    assert measures["loss"] < math.log(2)
    assert measures["margin"] > 0
    assert measures["margin"] == pytest.approx(measures["chosen_reward"] - measures["rejected_reward"], rel=1e-6)
    assert [pair.reference for pair in training.data.train] == reference
    np.testing.assert_array_equal(as_batch(training.data.train)["reference"], batch["reference"])


def test_measures_by_hand() -> None:
    """β 0.5; rewards 1 and −1, 0 and 2, and a tie, which counts as wrong."""
    reference = np.array([[-3.0, -4.0], [-1.0, -2.0], [-5.0, -5.0]])
    logprobs = reference + np.array([[2.0, -2.0], [0.0, 4.0], [1.0, 1.0]])
    measures = stage.measure(logprobs, reference, 0.5)
    assert measures["accuracy"] == pytest.approx(1 / 3)
    assert measures["margin"] == pytest.approx(0)
    assert measures["chosen_reward"] == pytest.approx(0.5)
    assert measures["rejected_reward"] == pytest.approx(0.5)
    losses = [math.log(1 + math.exp(-apart)) for apart in (2, -2, 0)]
    assert measures["loss"] == pytest.approx(sum(losses) / 3)


# From dialogues to batches


def said(*turns: str, chosen: str = "yes", rejected: str = "no", split: str | None = None) -> Pair:
    prompt = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns))
    return Pair(prompt, chosen, rejected, split=split)


def test_only_the_last_answer_counts() -> None:
    """Not the assistant's earlier ones; its end token does."""
    pair = stage.encode_pair(said("a", "earlier", "b"), TEMPLATE, TOKENIZER)
    for encoded, answer in ((pair.chosen, "yes"), (pair.rejected, "no")):
        counted = [token for token, counts in zip(encoded.tokens, encoded.loss_mask, strict=True) if counts]
        assert TOKENIZER.decode(counted[:-1]).strip() == answer
        assert counted[-1] == TOKENIZER.eos_id


def test_what_cannot_be_taken_is_counted() -> None:
    pairs = [
        said("a", split="train"),
        said("b", split="validation"),
        said("[INST] c", split="train"),
        said("d" * 90, split="train"),
    ]
    data = stage.encode_all(Preferences(pairs), TEMPLATE, TOKENIZER, 60, 0.1)
    assert (len(data.train), len(data.held_out), data.refused, data.too_long) == (1, 1, 1, 1)
    assert data.request == list(pairs[1].prompt)
    assert len(data.notices()) == 2
    with pytest.raises(MinillamaError, match="nothing to learn: 1 pairs left out: too long"):
        stage.encode_all(Preferences(pairs[3:]), TEMPLATE, TOKENIZER, 60, 0.1)
    with pytest.raises(MinillamaError, match="nothing to learn: no pair is there to train on"):
        stage.encode_all(Preferences([]), TEMPLATE, TOKENIZER, 60, 0.1)


def test_each_epoch_has_every_pair_once() -> None:
    asked = with_reference(PLAIN, np.arange(8.0).reshape(4, 2))
    training = DPOTraining(Encoded(asked), batch_size=3, epochs=2, seed=1)
    assert training.steps == 4
    for epoch in (0, 1):
        seen = np.concatenate([training.batch(2 * epoch + i)["reference"][:, 0] for i in (0, 1)])
        assert sorted(seen) == [0, 2, 4, 6]
    assert np.array_equal(training.batch(1)["tokens"], training.batch(1)["tokens"])
    with pytest.raises(UsageError, match="batch size 0, epochs 1: expected at least 1 each"):
        DPOTraining(Encoded(asked), batch_size=0)
    with pytest.raises(UsageError, match="expected the reference's log-probabilities of all pairs"):
        DPOTraining(Encoded(PLAIN), batch_size=1)


# The command

CONFIG = LlamaConfig(16, 2, 2, 32, vocab_size=262, n_kv_heads=1, max_seq_len=64, tie_embeddings=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("models") / "chat", config=CONFIG)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted preference: answers of a's, not of another letter."""
    rng = np.random.default_rng(0)
    drawn = [
        said(f"{rng.choice(list('pqrs'))} {i}", chosen="aaa", rejected=rng.choice(list("bcd")) * 3) for i in range(96)
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    preferences.save(drawn, path)
    return path


def required(model: Path, pairs: Path, out: Path) -> list[object]:
    return [
        *("dpo", "--model", model, "--data", pairs, "--out", out, "--threads", 1, "--batch-size", 8),
        *("--lr", 0.01, "--device", "cpu", "--held-out", 0.2),
    ]


def log(out: Path, kind: str) -> list[Any]:
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[kind] for line in lines if kind in line]


@pytest.mark.parametrize("more", [[], ["--lora", 2, "--lr", 0.05]], ids=["all weights", "adapters"])
def test_a_planted_preference_is_learned(model: Path, pairs: Path, tmp_path: Path, more: list[object]) -> None:
    """From log 2 and half of the pairs to nearly all; the model at the beginning is on disk as it was."""
    before = {name: p.copy() for name, p in weights.load(model).params.items()}
    result = succeed(*required(model, pairs, tmp_path / "out"), *more)
    assert log(tmp_path / "out", "loss")[0] == pytest.approx(math.log(2), rel=1e-5)
    last = log(tmp_path / "out", "validation")[-1]
    assert last["accuracy"] > 0.95 and last["margin"] > 0.1 and last["loss"] < math.log(2) - 0.05
    assert f"{last['accuracy']:.4f}" in result.stdout
    with np.load(tmp_path / "out" / REFERENCE) as saved:
        assert saved["logprobs"].shape == (96, 2)
    after = weights.load(model).params
    assert all(np.array_equal(after[name], p) for name, p in before.items())
    trained = Llama.load(tmp_path / "out")
    assert not np.array_equal(trained.params["layers.0.attention.wq.weight"], before["layers.0.attention.wq.weight"])
    assert (tmp_path / "out" / "adapter_config.json").exists() == bool(more)


def test_a_run_that_is_killed_goes_on(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits, without asking the reference again. Each validation is the best so far, and saved."""
    succeed(*required(model, pairs, tmp_path / "whole"))
    step = loop._Trainer.step

    def stopped(trainer: Any) -> None:
        if trainer.progress.step == 5:
            raise KeyboardInterrupt
        step(trainer)

    broken = [*required(model, pairs, tmp_path / "broken"), "--save-every", 3]
    monkeypatch.setattr(loop._Trainer, "step", stopped)
    run(*broken)
    monkeypatch.setattr(loop._Trainer, "step", step)
    asked = (tmp_path / "broken" / REFERENCE).read_bytes()
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    assert "going on after step 5" in succeed(*broken, "--resume").stderr
    assert (tmp_path / "broken" / REFERENCE).read_bytes() == asked
    assert log(tmp_path / "broken", "loss") == log(tmp_path / "whole", "loss")
    ours, theirs = (weights.load(tmp_path / name).params for name in ("whole", "broken"))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert "has ended already" in succeed(*broken).stderr
    assert "a run of other settings" in problem(*broken, "--beta", 0.2)


def test_a_damaged_reference(model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Trainer, "step", stopped)
    run(*required(model, pairs, tmp_path / "out"))
    path = tmp_path / "out" / REFERENCE
    whole = path.read_bytes()
    for damaged in (b"", b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert f"{REFERENCE}: expected log-probabilities of a reference" in problem(
            *required(model, pairs, path.parent)
        )
    np.savez(path, logprobs=np.zeros((3, 2)))
    assert "expected log-probabilities of 96 pairs, found (3, 2)" in problem(*required(model, pairs, path.parent))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--beta", 0], "DPO beta: expected a positive number, found 0.0"),
        (["--max-length", 100], "max length 100: expected at most the context of 64"),
        (["--max-length", 5], "nothing to learn: 96 pairs left out: too long"),
        (["--data", "nobody"], "unknown preferences 'nobody'"),
        (["--resume"], "expected a run to go on with, found none"),
        (["--lora-alpha", 4], "LoRA alpha 4.0: expected a rank with it, found none"),
        (["--lr", 0], "learning rate 0.0: expected a positive number"),
    ],
)
def test_wrong_use(model: Path, pairs: Path, tmp_path: Path, more: list[object], expected: str) -> None:
    assert expected in problem(*required(model, pairs, tmp_path / "out"), *more)
