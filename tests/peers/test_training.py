"""Ten steps of training against live PyTorch and transformers, at other seeds than the frozen references."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.params import flatten
from minillama.training.adamw import AdamW, clip_factor, global_norm
from minillama.training.schedule import CosineSchedule
from tests.fixtures.make_adamw import CASES, MODELS, STEPS, batches, random_gradients, rates, run, train_transformers
from tests.fixtures.make_adamw import train as train_torch
from tests.peers import hf
from tests.peers.autograd import random_params
from tests.training.test_workers import train

SETTINGS = CASES | {
    "late_momentum": {"betas": (0.99, 0.9), "eps": 1e-6, "weight_decay": 0.3, "limit": 0.1},
    "only_squares": {"betas": (0.0, 0.98), "eps": 1e-9, "weight_decay": 0.01, "limit": 5.0},
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 5e-7)], ids=["float64", "float32"])
@pytest.mark.parametrize("seed", [31, 32])
@pytest.mark.parametrize("name", SETTINGS)
def test_ten_steps(name: str, seed: int, dtype: type, tolerance: float) -> None:
    """Our own norm and clip factor too, and both moments of the last step."""
    settings, lrs, grads = SETTINGS[name], rates(0.02), random_gradients(seed)
    rng = np.random.default_rng(seed)
    start = {key: rng.standard_normal(g.shape).astype(dtype) for key, g in grads[0].items()}
    kind = torch.float64 if dtype is np.float64 else torch.float32
    norms, after = run(start, grads, settings, lrs, kind)
    params = dict(start)
    flat, matrices = flatten(params)
    optimizer = AdamW(flat, matrices, **{key: settings[key] for key in ("betas", "eps", "weight_decay")})
    for t, grad in enumerate(grads):
        g = np.concatenate([grad[key].ravel() for key in params]).astype(dtype)
        norm = global_norm(g)
        assert norm == pytest.approx(norms[t], rel=1e-14 if dtype is np.float64 else 3e-7)
        optimizer.step(g, lrs[t], clip_factor(norm, settings["limit"]))
        for key, p in params.items():
            np.testing.assert_allclose(p, after[t][key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("limit", [0.5, 1.0, 3.0, 1e9])
def test_clip(limit: float) -> None:
    """`clip_grad_norm_` over several tensors, below, at and above the limit."""
    rng = np.random.default_rng(1)
    grads = [rng.standard_normal(shape) for shape in ((3, 4), (5,), (2, 2))]
    for scale in (limit / np.sqrt(sum((g * g).sum() for g in grads)), 1.0, 1e-4):
        leaves = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = torch.tensor(g * scale)
        norm = torch.nn.utils.clip_grad_norm_(leaves, limit)
        flat = np.concatenate([g.ravel() for g in grads]) * scale
        ours = global_norm(flat)
        assert ours == pytest.approx(norm.item(), rel=1e-14)
        theirs = np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves])
        np.testing.assert_allclose(flat * clip_factor(ours, limit), theirs, rtol=1e-13)


@pytest.mark.parametrize(("warmup", "floor"), [(0, 0.1), (7, 0.1), (1, 0.0), (40, 0.5)])
def test_schedule(warmup: int, floor: float) -> None:
    """SequentialLR of a LinearLR and a CosineAnnealingLR, which are written as recursions; and beyond the end."""
    peak, steps = 3e-4, 40
    parameter = torch.zeros(1, requires_grad=True)
    sgd = torch.optim.SGD([parameter], lr=peak)
    schedules = torch.optim.lr_scheduler
    rise = schedules.LinearLR(sgd, start_factor=1 / (warmup + 1), total_iters=warmup) if warmup else None
    ours = CosineSchedule(peak, steps, warmup, floor)
    if rise is not None:
        for step in range(warmup):
            assert ours(step) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
            sgd.step()
            rise.step()
    if warmup < steps:
        sgd = torch.optim.SGD([parameter], lr=peak)
        fall = schedules.CosineAnnealingLR(sgd, T_max=steps - warmup, eta_min=floor * peak)
        for step in range(warmup, steps + 1):
            assert ours(step) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
            sgd.step()
            fall.step()


@pytest.mark.parametrize("seed", [41, 42])
@pytest.mark.parametrize("engine", ["torch", "transformers"])
@pytest.mark.parametrize("name", MODELS)
def test_ten_golden_losses(name: str, engine: str, seed: int) -> None:
    """Losses of ten steps of a small Llama: 1e-5."""
    config, settings = MODELS[name]
    params, drawn, lrs = random_params(config, seed), batches(config, seed), rates(0.01)
    if engine == "torch":
        expected, _ = train_torch(config, params, drawn, settings, lrs, torch.float64)
    else:
        expected = train_transformers(hf.build(config, params), drawn, settings, lrs)
    frozen_alike: dict[str, Any] = {"config": vars(config), "settings": settings, "lrs": np.array(lrs)}
    frozen_alike |= {f"params/{key}": p for key, p in params.items()}
    frozen_alike |= {f"batches/{key}": np.stack([batch[key] for batch in drawn]) for key in drawn[0]}
    losses, _ = train(frozen_alike, micro_batch=2, threads=2)
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


def test_a_batch_learned_by_heart() -> None:
    """Forty steps of one batch: the losses stay PyTorch's all the way down, though rounding grows as they go."""
    config = LlamaConfig(48, n_layers=3, n_heads=6, n_kv_heads=2, ffn_dim=96, vocab_size=61, max_seq_len=64)
    config = replace(config, tie_embeddings=True)
    settings = {**CASES["llama2"], "weight_decay": 0.01}
    params = Llama.init(config, seed=5).params
    batch = batches(config, 7)[0]
    schedule = CosineSchedule(1e-2, steps=40, warmup_steps=4)
    lrs = [schedule(step) for step in range(40)]
    expected, _ = train_torch(config, params, [batch] * 40, settings, lrs, torch.float64)
    assert expected[-1] < 0.2 * expected[0]
    frozen_alike: dict[str, Any] = {"config": vars(config), "settings": settings, "lrs": np.array(lrs)}
    frozen_alike |= {f"params/{key}": p for key, p in params.items()}
    frozen_alike |= {f"batches/{key}": np.stack([x] * 40) for key, x in batch.items()}
    losses, _ = train(frozen_alike, micro_batch=1, threads=2)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=2e-4)
