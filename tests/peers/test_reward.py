"""Reward models beside transformers: our folders opened by it, the same scores, the same gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from minillama import weights
from minillama.alignment.reward import EncodedPair, as_batch, preference_loss
from minillama.alignment.reward_model import SCORE, LoraRewardModel, RewardModel
from minillama.config import LlamaConfig, RopeScaling
from minillama.lora import LoraConfig
from minillama.model import Llama
from tests.peers import hf
from tests.peers.autograd import random_params
from tests.weights.support import tiny_tokenizer

TINY = LlamaConfig(48, 3, 6, 96, vocab_size=262, n_kv_heads=2, max_seq_len=64)
CONFIGS = {
    "untied": TINY,
    "tied": replace(TINY, tie_embeddings=True),
    "window": replace(TINY, sliding_window=5),
    "llama3": replace(TINY, rope_scaling=RopeScaling("llama3", 8.0, original_max_seq_len=16)),
}
LENGTHS = [(9, 4), (3, 12), (7, 7), (1, 5)]


def pairs(seed: int) -> list[EncodedPair]:
    """Answers that end with the end token, as real ones do, some with it in the middle too."""
    rng = np.random.default_rng(seed)
    eos = tiny_tokenizer().eos_id

    def text(length: int) -> list[int]:
        tokens = rng.integers(3, TINY.vocab_size, length).tolist()
        if length > 6:
            tokens[3] = eos
        return [*tokens, eos]

    return [EncodedPair(text(c), text(r), m / 3, None, (m > 1, m > 2)) for m, (c, r) in enumerate(LENGTHS)]


def reward_model(config: LlamaConfig, seed: int) -> RewardModel:
    return RewardModel.from_llama(Llama(config, random_params(config, seed)), seed)


def opened(model: RewardModel, folder: Path) -> transformers.PreTrainedModel:
    """What transformers makes of the folder that we save."""
    weights.save(replace(model.checkpoint(), tokenizer=tiny_tokenizer()), folder)
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.config.num_labels == 1
    return theirs.eval()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_gradients(name: str, seed: int, tmp_path: Path) -> None:
    """Rows padded on the right with the config's own padding token, read by its rule: the last token that is none."""
    model = reward_model(CONFIGS[name], seed)
    theirs = opened(model, tmp_path / "rm")
    drawn = pairs(seed)
    batch = as_batch(drawn)
    rows = torch.from_numpy(batch["tokens"].reshape(8, -1).copy())
    last = torch.from_numpy(batch["last"].reshape(8))
    padding = torch.arange(rows.shape[1]) > last[:, None]
    rows[padding] = theirs.config.pad_token_id
    scores = theirs(rows, attention_mask=(~padding).long(), use_cache=False).logits  # (2B, 1)
    assert scores.shape == (8, 1)
    ours, _ = model.rewards(batch["tokens"].reshape(8, -1), batch["last"].reshape(8))
    np.testing.assert_allclose(ours, scores[:, 0].detach().numpy(), rtol=0, atol=2e-5 * np.abs(ours).max())

    chosen, rejected = scores.reshape(4, 2).T
    loss = -F.logsigmoid(chosen - rejected - torch.from_numpy(batch["margin"])).mean()
    safe = torch.from_numpy(batch["safe"].reshape(8)).float()
    loss = loss + 0.7 * F.binary_cross_entropy_with_logits(scores[:, 0], safe)
    loss.backward()
    expected = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
    found, grads = preference_loss(model, batch, 4.0, 0.7)
    assert float(found) == pytest.approx(loss.item(), rel=1e-5)
    mapped = hf.to_hf(model.config, {key: grad for key, grad in grads.items() if key != SCORE})
    mapped["score.weight"] = grads[SCORE]
    assert mapped.keys() == expected.keys()
    for key, grad in mapped.items():
        np.testing.assert_allclose(grad, expected[key], rtol=0, atol=3e-5 * np.abs(expected[key]).max(), err_msg=key)


def test_every_tokens_value(tmp_path: Path) -> None:
    """As a value model: the head on each hidden state."""
    model = reward_model(TINY, 3)
    theirs = opened(model, tmp_path / "rm")
    tokens = np.random.default_rng(3).integers(0, TINY.vocab_size, (3, 20))
    with torch.no_grad():
        expected = theirs.score(theirs.model(torch.from_numpy(tokens)).last_hidden_state)[..., 0].numpy()
    values, _ = model.values(tokens)
    np.testing.assert_allclose(values, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_what_transformers_saves_is_loaded(tmp_path: Path) -> None:
    model = reward_model(TINY, 4)
    opened(model, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    loaded = RewardModel.load(tmp_path / "theirs")
    for key, p in model.params.items():
        assert np.array_equal(loaded.params[key], p), key


def test_adapters_in_peft(tmp_path: Path) -> None:
    """A reward model as adapters: PEFT puts them and the head on the base that writes text, and scores alike."""
    peft = pytest.importorskip("peft")
    llama = Llama(TINY, random_params(TINY, 5))
    llama.save(tmp_path / "base")
    base = RewardModel.from_llama(llama, 5)
    lora = LoraRewardModel.wrap(base, LoraConfig(rank=3, alpha=5.0, also=(SCORE,)), base=str(tmp_path / "base"))
    assert isinstance(lora, LoraRewardModel)
    rng = np.random.default_rng(6)
    for key, p in lora.trained.items():
        p[...] = 0.1 * rng.standard_normal(p.shape)
        lora.params.update({key: p} if key in lora.params else {})
    weights.save(lora.checkpoint(), tmp_path / "adapters")
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "adapters", num_labels=1, dtype=torch.float32
    ).eval()
    tokens = rng.integers(3, TINY.vocab_size, (1, 11))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.item()
    ours, _ = lora.rewards(tokens, np.array([10]))
    assert float(ours[0]) == pytest.approx(expected, rel=2e-4, abs=1e-5)
    merged, _ = RewardModel.load(tmp_path / "adapters").rewards(tokens, np.array([10]))
    assert float(merged[0]) == pytest.approx(expected, rel=2e-4, abs=1e-5)
