"""minillama against the live engines, at other seeds and sizes than the frozen references of tests/."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from minillama.config import LlamaConfig, RopeScaling
from minillama.model import Llama
from tests import reference
from tests.fixtures.make_model_gradients import CASES
from tests.peers import autograd, hf
from tests.reference import gradient_errors, relative_error

_MEDIUM = LlamaConfig(
    dim=96, n_layers=3, n_heads=6, n_kv_heads=2, ffn_dim=130, vocab_size=211, max_seq_len=512, rope_theta=5e4
)
# name: (config, batch, length, what the batch has)
LIVE = CASES | {
    "medium": (_MEDIUM, 3, 70, {"padding": True, "masked": True}),
    "medium_mha_tied": (replace(_MEDIUM, n_kv_heads=6, tie_embeddings=True), 2, 65, {"masked": True}),
    "medium_mqa": (replace(_MEDIUM, n_kv_heads=1, head_dim=10), 2, 65, {}),
    "medium_window": (replace(_MEDIUM, sliding_window=17), 2, 300, {"padding": True}),
    "medium_llama3": (replace(_MEDIUM, rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, 128)), 2, 280, {}),
    "smallest": (LlamaConfig(2, 1, 1, 1, 2), 1, 1, {}),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("name", LIVE)
def test_loss_and_gradients_are_autograds(name: str, seed: int, dtype: type, tolerance: float) -> None:
    config, batch, length, options = LIVE[name]
    params = autograd.random_params(config, seed)
    arrays = autograd.random_batch(config, batch, length, seed, **options)
    expected_loss, expected_hidden, _, expected_grads = autograd.loss_and_gradients(config, params, **arrays)
    own = {key: p.astype(dtype) for key, p in params.items()}
    loss, hidden, _, grads = reference.loss_and_gradients(config, own, **arrays)
    real = arrays.get("mask", np.ones((batch, length), bool))
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert relative_error(hidden[real], expected_hidden[real]) <= tolerance
    errors = gradient_errors(grads, expected_grads)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= tolerance, worst


@pytest.mark.parametrize("name", LIVE)
def test_loss_and_gradients_are_those_of_transformers(name: str) -> None:
    """float32 on both sides."""
    config, batch, length, options = LIVE[name]
    params = autograd.random_params(config, seed=21)
    arrays = autograd.random_batch(config, batch, length, seed=21, **options)
    expected_loss, _, expected_logits, expected_grads = hf.loss_and_gradients(config, params, **arrays)
    loss, _, logits, grads = reference.loss_and_gradients(config, params, **arrays)
    real = arrays.get("mask", np.ones((batch, length), bool))
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    assert relative_error(logits[real], expected_logits[real]) <= 1e-5
    errors = gradient_errors(hf.to_hf(config, grads), expected_grads)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 2e-5, worst


@pytest.mark.parametrize(
    "name", ["mha_odd", "gqa_tied_padded", "mqa_wide_heads", "window", "rope_linear", "medium_llama3"]
)
def test_transformers_opens_what_we_save(name: str, tmp_path: Path) -> None:
    """Our folder in AutoModelForCausalLM: the same logits, no tensor missing or left over; and back again."""
    config, _, length, _ = LIVE[name]
    params = autograd.random_params(config, seed=31)
    model = Llama(config, params)
    model.save(tmp_path / "model")
    tokens = np.random.default_rng(31).integers(0, config.vocab_size, (2, length))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    logits = model.logits(model.forward(tokens)[0])
    assert relative_error(logits, expected) <= 1e-5

    theirs.save_pretrained(tmp_path / "theirs")
    again = Llama.load(tmp_path / "theirs")
    assert again.config == config
    for key, p in params.items():
        np.testing.assert_array_equal(again.params[key], p, err_msg=key)
