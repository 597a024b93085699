"""The losses of alignment agree with PyTorch's autograd, and with TRL where it has the same ones.

TRL's losses are methods of its trainers; they are called on a stand-in that has what such a method reads, with a model
that answers with given scores or log-probabilities. (Its PPO was removed before the version that is pinned.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minillama import layers
from minillama.alignment.dpo import dpo_loss, dpo_loss_backward
from minillama.alignment.policy import policy_loss, policy_loss_backward, value_loss, value_loss_backward
from minillama.alignment.ranking import margins, ranking_loss, ranking_loss_backward, safety_loss, safety_loss_backward
from tests.layers.cases import normal

B, T, V = 16, 11, 23
MASK = np.arange(T) < np.random.default_rng(0).integers(1, T + 1, (B, 1))
SAFE = np.random.default_rng(1).random(B) < 0.5
SCORES, OTHERS, MARGIN = 3 * normal(B), 3 * normal(B, seed=1), np.repeat([1, 2 / 3, 1 / 3, 0], 4)
OLD = normal(B, T) - 3
TARGETS = np.random.default_rng(2).integers(0, V, (B, T))


def _policy(new: Any, old: Any, advantages: Any, mask: Any, clip: float) -> Any:
    ratio = torch.exp(new - old)
    worse = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - clip, 1 + clip))
    return worse[mask].mean()


def _value(new: Any, old: Any, returns: Any, mask: Any, clip: float) -> Any:
    clipped = old + torch.clamp(new - old, -clip, clip)
    return 0.5 * torch.maximum((new - returns) ** 2, (clipped - returns) ** 2)[mask].mean()


def _policy_case(clip: float, spread: float) -> tuple:
    return (
        lambda *x: policy_loss(*x, clip=clip),
        policy_loss_backward,
        lambda *x: _policy(*x, clip=clip),
        (OLD + spread * normal(B, T, seed=3), OLD, normal(B, T, seed=4), MASK),
        1,
    )


def _value_case(clip: float, spread: float) -> tuple:
    return (
        lambda *x: value_loss(*x, clip=clip),
        value_loss_backward,
        lambda *x: _value(*x, clip=clip),
        (OLD + spread * normal(B, T, seed=5), OLD, OLD + normal(B, T, seed=6), MASK),
        1,
    )


# our loss, its backward pass, PyTorch's loss, inputs, how many of these are trained
CASES: dict[str, tuple[Callable, Callable, Callable, tuple[np.ndarray, ...], int]] = {
    "ranking": (
        ranking_loss,
        ranking_loss_backward,
        lambda c, r, m: -F.logsigmoid(c - r - m).mean(),
        (SCORES, OTHERS, MARGIN),
        2,
    ),
    "safety": (
        safety_loss,
        safety_loss_backward,
        lambda scores, safe: F.binary_cross_entropy_with_logits(scores, safe.double()),
        (SCORES, SAFE),
        1,
    ),
    "dpo": (
        lambda *x: dpo_loss(*x, beta=0.3),
        dpo_loss_backward,
        lambda c, r, ref_c, ref_r: -F.logsigmoid(0.3 * ((c - ref_c) - (r - ref_r))).mean(),
        (SCORES, OTHERS, normal(B, seed=7), normal(B, seed=8)),
        2,
    ),
    "policy": _policy_case(0.2, 0.3),
    "policy, far": _policy_case(0.1, 2.0),
    "value": _value_case(0.2, 0.3),
    "value, far": _value_case(0.1, 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_agree_with_autograd(name: str) -> None:
    forward, backward, reference, inputs, trained = CASES[name]
    tensors = [torch.from_numpy(x).requires_grad_(i < trained) for i, x in enumerate(inputs)]
    expected = reference(*tensors)
    expected.backward()
    loss, saved = forward(*inputs)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    grads = backward(saved)
    for ours, x in zip(grads if isinstance(grads, tuple) else (grads,), tensors, strict=False):
        assert np.abs(ours - x.grad.numpy()).max() <= 1e-12 * np.abs(ours).max()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_token_logprobs_and_entropy_agree_with_autograd(temperature: float) -> None:
    logits, dy = 3 * normal(B, T, V), normal(B, T)
    tensor = torch.from_numpy(logits).requires_grad_()
    every = F.log_softmax(tensor / temperature, dim=-1)
    expected = torch.where(torch.from_numpy(MASK), every.gather(-1, torch.from_numpy(TARGETS)[..., None])[..., 0], 0)
    expected.backward(torch.from_numpy(dy))
    y, saved = layers.token_logprobs(logits, TARGETS, MASK, temperature=temperature)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12)
    dlogits = layers.token_logprobs_backward(dy, saved)
    np.testing.assert_allclose(dlogits, tensor.grad.numpy(), rtol=1e-11, atol=1e-15)
    entropy = torch.distributions.Categorical(logits=every.detach()).entropy().numpy()
    np.testing.assert_allclose(layers.entropy(logits, temperature=temperature), entropy, rtol=1e-12)


def _trainer(**attributes: Any) -> SimpleNamespace:
    """What a loss of TRL reads of its trainer, evaluating on one process."""
    accelerator = SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x, device="cpu")
    model = SimpleNamespace(training=False)
    metrics = {"eval": defaultdict(list)}
    return SimpleNamespace(model=model, accelerator=accelerator, _metrics=metrics, _total_train_tokens=0, **attributes)


@pytest.mark.parametrize("size", ["small", "large", None])
def test_ranking_loss_agrees_with_trl(size: str | None) -> None:
    trl = pytest.importorskip("trl")
    ratings = ["significantly better", "better", "slightly better", "negligibly better or unsure"] * (B // 4)
    margin = None if size is None else margins(ratings, size).astype(np.float64)
    chosen, rejected = (torch.from_numpy(x).requires_grad_() for x in (SCORES, OTHERS))
    outputs = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    trainer = _trainer(args=SimpleNamespace(center_rewards_coefficient=None))
    inputs = {} if margin is None else {"margin": torch.from_numpy(margin)}
    expected = trl.RewardTrainer.compute_loss(trainer, lambda **_: outputs, inputs)
    expected.backward()
    loss, saved = ranking_loss(SCORES, OTHERS, margin)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for ours, x in zip(ranking_loss_backward(saved), (chosen, rejected), strict=True):
        np.testing.assert_allclose(ours, x.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_loss_agrees_with_trl(beta: float) -> None:
    """From log-probabilities of tokens: two answers of T tokens to each prompt, with pads, as TRL has them."""
    trl = pytest.importorskip("trl")
    mask = np.concatenate([MASK, MASK[::-1]])  # chosen, then rejected
    tokens = torch.from_numpy(np.where(mask, normal(2 * B, T, seed=9) - 2, 0)).requires_grad_()
    ref_chosen, ref_rejected = 2 * MASK.sum(axis=1) * normal(2, B, seed=10)
    completion = torch.from_numpy(np.pad(mask, [(0, 0), (1, 0)]))  # a prompt of one token before it
    outputs = SimpleNamespace(
        log_probs=tokens,
        entropy=torch.zeros(2 * B, T),
        mean_logits=torch.zeros(2 * B, T),
        is_top1=torch.zeros(2 * B, T, dtype=torch.bool),
    )
    trainer = _trainer(
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
        beta=beta,
    )
    inputs = {
        "input_ids": torch.ones(2 * B, T + 1, dtype=torch.long),
        "completion_mask": completion.long(),
        "ref_chosen_logps": torch.from_numpy(ref_chosen),
        "ref_rejected_logps": torch.from_numpy(ref_rejected),
    }
    expected = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    expected.backward()
    chosen, rejected = tokens.detach().numpy().sum(axis=1).reshape(2, B)
    loss, saved = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    dtokens = np.repeat(np.concatenate(dpo_loss_backward(saved))[:, None], T, axis=1)  # of a sum
    np.testing.assert_allclose(dtokens, tokens.grad.numpy(), rtol=1e-11)
