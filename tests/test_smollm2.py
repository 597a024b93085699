"""SmolLM2-135M-Instruct, real weights from a GGUF: tokens, logits and greedy text are those of independent engines.

The references were frozen by fixtures/make_smollm2.py: logits and text by transformers in float32 on the dequantized
weights, token ids by a byte-level BPE built by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import weights
from minillama.generate import generate
from minillama.model import Llama
from minillama.params import Params
from minillama.tokenizer import Tokenizer
from minillama.training.adamw import AdamW, clip_factor, global_norm
from minillama.training.losses import next_token_loss
from minillama.training.workers import Batch, Workers
from tests.data import smollm2_gguf

FIXTURES = Path(__file__).parent / "fixtures"
STRINGS: list[tuple[str, list[int]]] = json.loads((FIXTURES / "smollm2_tokens.json").read_text(encoding="utf-8"))
PROMPTS: list[dict] = json.loads((FIXTURES / "smollm2_prompts.json").read_text(encoding="utf-8"))
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def checkpoint() -> weights.Checkpoint:
    return weights.load(smollm2_gguf())


@pytest.fixture(scope="module")
def tokenizer(checkpoint: weights.Checkpoint) -> Tokenizer:
    assert checkpoint.tokenizer is not None
    return checkpoint.tokenizer


@pytest.fixture(scope="module")
def model(checkpoint: weights.Checkpoint) -> Llama:
    return Llama(checkpoint.config, checkpoint.params)


def test_token_ids_of_every_string(tokenizer: Tokenizer) -> None:
    """Numbers, code, emoji, scripts, white space, and mixtures of them."""
    assert len(STRINGS) > 200
    wrong = [text for text, ids in STRINGS if tokenizer.encode(text) != ids]
    assert not wrong, f"{len(wrong)} of {len(STRINGS)} differ: {wrong[:5]}"


def test_decoding_is_exact(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode(ids) for _, ids in STRINGS] == [text for text, _ in STRINGS]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_token_ids_of_prompts(checkpoint: weights.Checkpoint, tokenizer: Tokenizer, prompt: dict) -> None:
    if "text" in prompt:
        ids = tokenizer.encode(prompt["text"])
    else:
        assert checkpoint.chat_template is not None
        ids = checkpoint.chat_template.encode(prompt["messages"], tokenizer).tokens
    assert ids == prompt["ids"]


def test_logits(model: Llama) -> None:
    """At up to three positions the 64 largest logits and 64 others, and log Σ exp at all: within 2e-4."""
    with np.load(FIXTURES / "smollm2_logits.npz") as file:
        expected = dict(file)
    for i, prompt in enumerate(PROMPTS):
        hidden, _ = model.forward(np.array([prompt["ids"]]))
        logits = model.logits(hidden)[0]  # (T, V)
        assert logits.dtype == np.float32
        chosen = np.take_along_axis(logits[expected[f"{i}/positions"]], expected[f"{i}/indices"], axis=1)
        np.testing.assert_allclose(chosen, expected[f"{i}/values"], rtol=0, atol=2e-4)
        logsumexp = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
        np.testing.assert_allclose(logsumexp, expected[f"{i}/logsumexp"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_greedy_continuations(model: Llama, tokenizer: Tokenizer, together: bool) -> None:
    """Raw prompts and chats, of unequal lengths, up to 64 tokens or the end of the answer."""
    chosen = PROMPTS if together else [PROMPTS[1], PROMPTS[-1]]
    prompts = [prompt["ids"] for prompt in chosen]
    batches = [prompts] if together else [[prompt] for prompt in prompts]
    completions = [
        completion
        for batch in batches
        for completion in generate(model, batch, max_new_tokens=NEW_TOKENS, stop_ids={tokenizer.eos_id})
    ]
    assert [completion.tokens for completion in completions] == [prompt["greedy"] for prompt in chosen]
    ended = [prompt["greedy"][-1] == tokenizer.eos_id for prompt in chosen]
    assert [completion.finish_reason for completion in completions] == ["stop" if e else "length" for e in ended]


def test_losses_of_adamw_steps_are_those_of_transformers() -> None:
    """All 135 million parameters, two steps on one sentence, against transformers with PyTorch's AdamW."""
    frozen = json.loads((FIXTURES / "smollm2_steps.json").read_text(encoding="utf-8"))
    checkpoint = weights.load(smollm2_gguf())  # of its own: its weights change
    workers = Workers(Llama(checkpoint.config, checkpoint.params), 1)
    optimizer = AdamW(workers.params, workers.matrices)
    ids = np.array([frozen["ids"]])
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
    for lr, expected in zip(frozen["lrs"][:2], frozen["losses"], strict=False):
        loss, grads = workers.gradients(sentence_loss, batch, float(batch["targets"].size), 1)
        assert loss == pytest.approx(expected, abs=1e-3)
        optimizer.step(grads, lr, clip_factor(global_norm(grads), 1.0))
    loss, _ = sentence_loss(workers.model, batch, float(batch["targets"].size))
    assert float(loss) == pytest.approx(frozen["losses"][2], abs=1e-3)


def sentence_loss(model: Llama, batch: Batch, weight: float) -> tuple[Any, Params]:
    return next_token_loss(model, batch["tokens"], batch["targets"], count=weight)
