"""Chapter 10's solutions do what the package does, and train a model in its place."""

import numpy as np
import pytest

from minillama.exercises.chapter import load_chapter
from minillama.exercises.sources import ch10_optimizer
from minillama.exercises.swap import swapped
from minillama.training.adamw import AdamW, clip_factor, global_norm
from minillama.training.schedule import CosineSchedule
from minillama.training.workers import Workers
from tests.training.steps import below, frozen
from tests.training.test_workers import counted, masked_loss, model_of, train


def test_rates_are_the_package_s():
    for warmup in (0, 3, 10):
        schedule = CosineSchedule(2e-3, 11, warmup, 0.2)
        for step in range(15):
            assert ch10_optimizer.learning_rate(step, 2e-3, 11, warmup, 0.2) == pytest.approx(schedule(step), rel=1e-14)


def test_clipping_is_the_package_s():
    rng = np.random.default_rng(0)
    grads = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    flat = np.concatenate([g.ravel() for g in grads.values()])
    for limit in (0.5, 100.0):
        clipped, norm = ch10_optimizer.clip_by_global_norm(grads, limit)
        assert norm == pytest.approx(global_norm(flat), rel=1e-14)
        expected = flat * clip_factor(norm, limit)
        np.testing.assert_allclose(np.concatenate([g.ravel() for g in clipped.values()]), expected, rtol=2e-6)


def test_the_mask_is_the_package_s():
    model = model_of(frozen("training_steps.npz")["gqa"])
    mask = ch10_optimizer.decayed(model.params)
    assert sum(p.size for name, p in model.params.items() if mask[name]) == Workers(model, 1).matrices


def test_ten_updates_are_pytorch_s():
    for case in frozen("adamw.npz").values():
        settings, grads = case["settings"], below(case, "grads")
        params = {name: p.astype(np.float64) for name, p in below(case, "params").items()}
        m, v = ({name: np.zeros(p.shape) for name, p in params.items()} for _ in range(2))
        for t, lr in enumerate(case["lrs"].tolist()):
            factor = clip_factor(case["float64/norms"][t], settings["limit"])
            for name, p in params.items():
                decay = settings["weight_decay"] if p.ndim > 1 else 0.0
                state = p, grads[name][t].astype(np.float64) * factor, m[name], v[name]
                params[name], m[name], v[name] = ch10_optimizer.adamw_update(
                    *state, t + 1, lr, settings["betas"], settings["eps"], decay
                )
                np.testing.assert_allclose(params[name], case[f"float64/{name}"][t], rtol=0, atol=1e-13)


def test_accumulated_is_the_package_s():
    """The means of uneven rows, weighted, are the loss and the gradients of the batch."""
    run = frozen("training_steps.npz")["gqa"]
    model = model_of(run, np.float64)
    batch = {name: x[0] for name, x in below(run, "batches").items()}
    expected, whole = masked_loss(model, batch, counted(batch))
    rows = [{name: x[i : i + 1] for name, x in batch.items()} for i in range(4)]
    parts = [masked_loss(model, row, counted(row)) for row in rows]
    counts = [int(counted(row)) for row in rows]
    assert len(set(counts)) > 1
    loss, grads = ch10_optimizer.accumulate([float(part) for part, _ in parts], [grads for _, grads in parts], counts)
    assert loss == pytest.approx(float(expected), rel=1e-13)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, whole[name], rtol=1e-10, atol=1e-14)


def test_a_learner_s_update_trains_the_model(solved):
    """`run --with ch10`: the losses are the same, by the learner's code."""
    run = frozen("training_steps.npz")["gqa"]
    before = AdamW.step
    with swapped(solved, [load_chapter("ch10")]) as (yours, unwritten):
        assert yours == ["learning_rate", "adamw_update"]
        assert unwritten == []
        assert AdamW.step is not before
        losses, _ = train(run, micro_batch=2, threads=2)
        schedule = CosineSchedule(run["lrs"][3], steps=10, warmup_steps=3)
        assert [schedule(step) for step in range(10)] == pytest.approx(run["lrs"].tolist())
    assert AdamW.step is before
    np.testing.assert_allclose(losses, run["losses"], rtol=0, atol=1e-5)


def test_a_learner_s_wrong_update_is_run_too(answer):
    """What runs is the learner's: an update that does nothing leaves the parameters."""
    folder = answer("ch10", "adamw_update", "return p, m, v").parent
    run = frozen("training_steps.npz")["gqa"]
    with swapped(folder, [load_chapter("ch10")]):
        _, params = train(run, micro_batch=4, threads=1)
    for name, p in below(run, "params").items():
        np.testing.assert_array_equal(params[name], p)
