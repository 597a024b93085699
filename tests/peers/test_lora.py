"""Adapters beside PEFT, live: its logits and gradients, our folder in PEFT, PEFT's folder here; on SmolLM2 too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from minillama import weights
from minillama.config import LlamaConfig
from minillama.lora import LoraConfig, LoraLlama
from minillama.model import Llama
from minillama.training.losses import next_token_loss
from tests.data import smollm2_gguf
from tests.fixtures.make_lora import random_adapters
from tests.peers import hf, hf_lora
from tests.peers.autograd import random_batch, random_params
from tests.reference import gradient_errors, relative_error

_GQA = LlamaConfig(48, 2, 6, 70, vocab_size=61, n_kv_heads=2, max_seq_len=64)
CASES = {
    "all": (_GQA, LoraConfig(rank=4, alpha=10.0)),
    "queries and values": (_GQA, LoraConfig(rank=2, alpha=4.0, targets=("wq", "wv"))),
    "keys, multi-query": (replace(_GQA, n_kv_heads=1), LoraConfig(rank=1, alpha=0.5, targets=("wk",))),
    "feed-forward, tied": (replace(_GQA, tie_embeddings=True), LoraConfig(rank=3, targets=("w1", "w2", "w3"))),
    "window": (replace(_GQA, sliding_window=7), LoraConfig(rank=4, alpha=4.0)),
}
each_case = pytest.mark.parametrize(("config", "lora"), CASES.values(), ids=CASES)


def adapted(config: LlamaConfig, lora: LoraConfig, seed: int, base: str = "") -> LoraLlama:
    return LoraLlama(config, random_params(config, seed), lora, random_adapters(config, lora, seed), base)


def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(tokens), use_cache=False).logits.numpy()


@each_case
def test_loss_logits_and_gradients(config: LlamaConfig, lora: LoraConfig) -> None:
    """float32 on both sides; the gradient of every A and B."""
    model, batch = adapted(config, lora, 41), random_batch(config, 2, 20, 41)
    expected_loss, expected_logits, expected = hf_lora.loss_and_gradients(
        config, model.params, lora, model.trained, **batch
    )
    loss, grads = next_token_loss(model, batch["tokens"], batch["targets"])
    assert float(loss) == pytest.approx(expected_loss, rel=2e-6)
    assert relative_error(model.logits(model.forward(batch["tokens"])[0]), expected_logits) <= 2e-5
    errors = gradient_errors({name: grads[name] for name in expected}, expected)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 2e-5, worst
    assert len(errors) == len(grads)


@each_case
def test_peft_opens_what_we_save(config: LlamaConfig, lora: LoraConfig, tmp_path: Path) -> None:
    """Our folder in PeftModel.from_pretrained, on our base in transformers."""
    model = adapted(config, lora, 42, base=str(tmp_path / "base"))
    Llama(config, model.params).save(tmp_path / "base")
    weights.save(model.checkpoint(), tmp_path / "adapters")
    tokens = random_batch(config, 2, 20, 42)["tokens"]
    expected = model.logits(model.forward(tokens)[0])
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert relative_error(logits_of(base, tokens), expected) > 0.05
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapters")
    result = peft.set_peft_model_state_dict(theirs, peft.utils.load_peft_weights(str(tmp_path / "adapters")))
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    assert relative_error(logits_of(theirs.eval(), tokens), expected) <= 2e-5
    merged = theirs.merge_and_unload()
    state = {key: p.detach().numpy() for key, p in merged.state_dict().items()}
    for key, p in hf.to_hf(config, model.merged_params()).items():
        assert relative_error(p, state[key]) <= 1e-6, key


@each_case
def test_what_peft_saves_loads_here(config: LlamaConfig, lora: LoraConfig, tmp_path: Path) -> None:
    model = adapted(config, lora, 43)
    Llama(config, model.params).save(tmp_path / "base")
    theirs = hf_lora.build(config, model.params, lora, model.trained)
    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = LoraLlama.load(tmp_path / "theirs")
    assert loaded.lora == lora
    for name, p in model.trained.items():
        np.testing.assert_array_equal(loaded.trained[name], p, err_msg=name)
    tokens = random_batch(config, 2, 20, 43)["tokens"]
    merged = Llama.load(tmp_path / "theirs")
    assert relative_error(merged.logits(merged.forward(tokens)[0]), logits_of(theirs, tokens)) <= 2e-5
    # The names, and the settings that are in both, are PEFT's own.
    weights.save(loaded.checkpoint(), tmp_path / "ours")
    names = [set(peft.utils.load_peft_weights(str(tmp_path / which))) for which in ("ours", "theirs")]
    assert names[0] == names[1]
    ours, written = (peft.LoraConfig.from_pretrained(tmp_path / which).to_dict() for which in ("ours", "theirs"))
    assert set(ours.pop("target_modules")) == set(written.pop("target_modules"))
    assert {key for key in written if ours[key] != written[key]} <= {"peft_version"}


def test_a_head_that_is_trained_whole(tmp_path: Path) -> None:
    """modules_to_save: an output layer and a norm, saved by either and opened by the other."""
    lora = LoraConfig(rank=2, alpha=4.0, targets=("wq", "w2"), also=("output.weight", "norm.weight"))
    base, model = adapted(_GQA, replace(lora, also=()), 44), adapted(_GQA, lora, 45, base=str(tmp_path / "base"))
    Llama(_GQA, base.params).save(tmp_path / "base")
    model = LoraLlama(_GQA, base.params, lora, model.trained, str(tmp_path / "base"))
    weights.save(model.checkpoint(), tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "ours"
    ).eval()
    tokens = random_batch(_GQA, 2, 20, 44)["tokens"]
    assert relative_error(model.logits(model.forward(tokens)[0]), logits_of(theirs, tokens)) <= 2e-5
    theirs.save_pretrained(tmp_path / "theirs")
    again = LoraLlama.load(tmp_path / "theirs")
    assert again.lora == lora
    for name, p in model.trained.items():
        np.testing.assert_array_equal(again.trained[name], p, err_msg=name)


def test_fresh_adapters_are_drawn_alike() -> None:
    """The spread of A, ours and PEFT's, and B of zeros."""
    config, lora = replace(_GQA, dim=192, n_heads=6, ffn_dim=400), LoraConfig(rank=32)
    ours = LoraLlama.wrap(Llama(config, random_params(config, 1)), lora, seed=1).trained
    settings = peft.LoraConfig(r=32, target_modules=list(hf_lora.MODULES.values()))
    theirs = dict(peft.get_peft_model(hf.build(config, random_params(config, 1)), settings).named_parameters())
    for name, p in ours.items():
        other = theirs[hf_lora.name(name)].detach().numpy()
        assert p.shape == other.shape
        assert float(p.std()) == pytest.approx(float(other.std()), rel=0.05)
        assert float(abs(p).max()) == pytest.approx(float(abs(other).max()), rel=0.05)


def test_smollm2(tmp_path: Path) -> None:
    """Adapters on all matrices of SmolLM2-135M: PEFT on what transformers makes of the GGUF gives our logits."""
    path = smollm2_gguf()
    base = Llama.load(path)
    model = LoraLlama.wrap(base, LoraConfig(rank=8, alpha=16), seed=3, base=str(path))
    for i, (name, p) in enumerate(model.trained.items()):
        if name.endswith("lora_b"):
            p[...] = 0.02 * np.random.default_rng([3, i]).standard_normal(p.shape)
    weights.save(model.checkpoint(), tmp_path / "adapters")
    gguf = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokens = np.random.default_rng(4).integers(0, base.config.vocab_size, (1, 24))
    plain = logits_of(gguf, tokens)
    theirs = peft.PeftModel.from_pretrained(gguf, tmp_path / "adapters").eval()
    expected = logits_of(theirs, tokens)
    assert relative_error(plain, expected) > 0.05
    assert relative_error(model.logits(model.forward(tokens)[0]), expected) <= 2e-5
    merged = Llama.load(tmp_path / "adapters")
    assert relative_error(merged.logits(merged.forward(tokens)[0]), expected) <= 2e-5
