"""The PyTorch Llama that everything else is measured against agrees with transformers, gradients included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minillama.config import LlamaConfig
from tests.fixtures.make_model_gradients import CASES
from tests.peers import autograd, hf
from tests.reference import gradient_errors, relative_error


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_transformers(name: str) -> None:
    config, batch, length, options = CASES[name]
    params = autograd.random_params(config, seed=100)
    arrays = autograd.random_batch(config, batch, length, seed=100, **options)
    expected_loss, expected_hidden, expected_logits, expected_grads = hf.loss_and_gradients(config, params, **arrays)
    loss, hidden, logits, grads = autograd.loss_and_gradients(config, params, **arrays)
    real = arrays.get("mask", np.ones((batch, length), bool))
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    assert relative_error(hidden[real], expected_hidden[real]) < 5e-6
    assert relative_error(logits[real], expected_logits[real]) < 5e-6
    errors = gradient_errors(hf.to_hf(config, grads), expected_grads)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < 1e-5, worst  # of transformers in float32: up to 6e-6 on a processor without AVX-512


def test_autograd_agrees_with_finite_differences() -> None:
    """Float64 all the way: the measured precision of the reference itself."""
    config: LlamaConfig = CASES["gqa_tied_padded"][0]
    params = autograd.random_params(config, seed=7)
    arrays = autograd.random_batch(config, 2, 5, seed=7, padding=True)
    _, _, _, grads = autograd.loss_and_gradients(config, params, **arrays)
    rng = np.random.default_rng(7)
    for name, grad in grads.items():
        direction = rng.standard_normal(grad.shape)
        losses = []
        for step in (1e-5, -1e-5):
            moved = params | {name: params[name].astype(np.float64) + step * direction}
            losses.append(autograd.loss_and_gradients(config, moved, **arrays)[0])
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float((grad * direction).sum()), rel=1e-6), name


def test_is_float64_throughout() -> None:
    config = CASES["rope_llama3"][0]
    params = autograd.random_params(config, seed=3)
    arrays = autograd.random_batch(config, 1, 12, seed=3)
    exact = autograd.loss_and_gradients(config, params, **arrays)[0]
    rounded = autograd.loss_and_gradients(config, params, **arrays, dtype=torch.float32)[0]
    assert 0 < abs(exact - rounded) < 1e-5
