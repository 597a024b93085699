"""Two minibatch steps of PPO, from sampled answers to updated weights, against PyTorch's autograd and AdamW.

PyTorch gets the tokens of the answers, their scores and the weights; it computes log-probabilities, values, advantages,
both losses and all gradients by itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from minillama.alignment.ppo_batch import UNFINISHED, as_batch, by_length, take
from minillama.alignment.ppo_trainer import GRADIENT_CLIP, WEIGHT_DECAY, Trainer
from minillama.model import Llama
from minillama.training.workers import Batch
from tests.alignment.tiny_ppo import Favourite, trainer
from tests.peers import torch_llama

Leaves = dict[str, torch.Tensor]


def leaves(model: Llama) -> Leaves:
    return {name: torch.from_numpy(p.copy()).requires_grad_() for name, p in model.params.items()}


def logprobs(model: Llama, params: Leaves, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, T - 1), of each token given those before."""
    hidden = torch_llama.forward(model.config, params, tokens[:, :-1])
    scores = torch_llama.logits(model.config, params, hidden) / temperature
    return scores.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def values(model: Llama, params: Leaves, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T - 1), before each token."""
    return torch_llama.forward(model.config, params, tokens[:, :-1]) @ params["score.weight"][0]


def advantages_and_returns(
    made: Trainer, scores: torch.Tensor, new: torch.Tensor, ref: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token, answer by answer; whitened over all."""
    recipe = made.recipe
    advantages, returns = torch.zeros_like(new), torch.zeros_like(new)
    for i in range(len(new)):
        places = mask[i].nonzero()[:, 0].tolist()
        for at, t in enumerate(places):
            total = torch.tensor(0.0, dtype=new.dtype)
            for ahead, u in enumerate(places[at:]):  # Σ (γ λ)^l δ_{t+l}
                last = u == places[-1]
                reward = -recipe.beta * (new[i, u] - ref[i, u]) + (scores[i] if last else 0)
                delta = reward + (0 if last else recipe.gamma * v[i, u + 1]) - v[i, u]
                total = total + (recipe.gamma * recipe.lam) ** ahead * delta
            advantages[i, t] = total
            returns[i, t] = total + v[i, t]
    valid = advantages[mask]
    white = (advantages - valid.mean()) / torch.sqrt(valid.var(correction=0) + 1e-8)
    return white.detach(), returns.detach()


def scores_of(batch: Batch) -> torch.Tensor:
    """Whitened over the finished answers."""
    raw = torch.from_numpy(np.asarray(Favourite().rewards(batch["tokens"], batch["last"])[0]))
    finished = torch.from_numpy(batch["finished"])
    known = raw[finished]
    white = (raw - known.mean()) / torch.sqrt(known.var(correction=0) + 1e-8)
    return torch.where(finished, white, torch.tensor(UNFINISHED, dtype=raw.dtype))


def adamw(params: Leaves, lr: float) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in params.values() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-5)


def recorded(made: Trainer) -> dict[str, np.ndarray]:
    """Will hold the gradients that the optimizers were given last."""
    found: dict[str, np.ndarray] = {}

    def record(kind: str, optimizer: Any) -> None:
        step = optimizer.step

        def stepped(grads: np.ndarray, lr: float, clip: float) -> float:
            found[kind] = grads.copy()
            return step(grads, lr, clip)

        optimizer.step = stepped

    record("policy", made.policy_optimizer)
    record("value", made.value_optimizer)
    return found


@pytest.mark.parametrize(("temperature", "threads", "micro_batch"), [(1.0, 1, 8), (0.7, 2, 3)])
def test_two_minibatches(temperature: float, threads: int, micro_batch: int) -> None:
    made = trainer(
        dtype=np.float64, temperature=temperature, beta=0.2, lam=0.9, lr=0.01, threads=threads, micro_batch=micro_batch
    )
    moved = np.random.default_rng(1).standard_normal(made.policy.params.shape)
    made.policy.params += 0.03 * moved  # so that there is a KL from the reference
    batch, measures = made.experience(as_batch(made.sampled(made.prompts.batch(0, 16, 0), (2, 0))))
    assert abs(measures["kl"]) > 0.01 and 0 < measures["finished"] < 1

    models, recipe = made.models, made.recipe
    policy, reference, value = leaves(models.policy), leaves(models.reference), leaves(models.value)
    tokens, mask = torch.from_numpy(batch["tokens"]), torch.from_numpy(batch["mask"])
    with torch.no_grad():
        old = logprobs(models.policy, policy, tokens, temperature)
        ref = logprobs(models.reference, reference, tokens, temperature)
        old_values = values(models.value, value, tokens)
        advantages, returns = advantages_and_returns(made, scores_of(batch), old, ref, old_values, mask)
    for name, theirs in (("old_logprobs", old), ("advantages", advantages), ("returns", returns)):
        np.testing.assert_allclose(batch[name][batch["mask"]], theirs[mask].numpy(), rtol=1e-9, atol=1e-11)

    optimizers = adamw(policy, recipe.lr), adamw(value, recipe.value_lr)
    gradients = recorded(made)
    for number, part in enumerate(made.minibatches(batch, 0)):
        some, valid = torch.from_numpy(part), mask[part]
        ratio = torch.exp(logprobs(models.policy, policy, tokens[some], temperature) - old[some])
        a = advantages[some]
        clipped = torch.clamp(ratio, 1 - recipe.clip, 1 + recipe.clip)
        policy_loss = torch.maximum(-a * ratio, -a * clipped)[valid].mean()
        v, before, target = values(models.value, value, tokens[some]), old_values[some], returns[some]
        near = before + torch.clamp(v - before, -recipe.clip, recipe.clip)
        value_loss = 0.5 * torch.maximum((v - target) ** 2, (near - target) ** 2)[valid].mean()
        assert number == 0 or 0 < ((ratio - 1).abs() > recipe.clip)[valid].sum() < valid.sum()
        norms = []
        for params, loss, optimizer in zip((policy, value), (policy_loss, value_loss), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(params.values(), GRADIENT_CLIP).item())

        told = made.update(take(batch, by_length(batch, part)), micro_batch)
        assert told["loss"] == pytest.approx(policy_loss.item(), rel=1e-9, abs=1e-12)
        assert told["value_loss"] == pytest.approx(value_loss.item(), rel=1e-9)
        assert told["ratio_max"] == pytest.approx(ratio[valid].max().item(), rel=1e-9)
        assert [told["grad_norm"], told["value_grad_norm"]] == pytest.approx(norms, rel=1e-9)
        for kind, params, norm, model in (
            ("policy", policy, norms[0], models.policy),
            ("value", value, norms[1], models.value),
        ):
            factor = min(1.0, GRADIENT_CLIP / (norm + 1e-6))  # theirs are clipped already
            theirs = np.concatenate([params[name].grad.numpy().ravel() for name in model.params])  # type: ignore[union-attr]
            assert np.abs(theirs).max() > 0.01
            np.testing.assert_allclose(gradients[kind] * factor, theirs, rtol=1e-8, atol=1e-11)
        for optimizer in optimizers:
            optimizer.step()
        for params, model in ((policy, models.policy), (value, models.value)):
            for name, p in model.params.items():
                np.testing.assert_allclose(p, params[name].detach().numpy(), rtol=1e-7, atol=1e-9, err_msg=name)
    assert not math.isclose(told["ratio_max"], 1.0)
