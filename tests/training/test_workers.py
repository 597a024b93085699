"""A batch's loss and gradients are the same however it is cut and whoever computes it, and ten steps are PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.params import Params
from minillama.training.adamw import AdamW, clip_factor, global_norm
from minillama.training.losses import next_token_loss
from minillama.training.threads import Threads, usable_cores
from minillama.training.workers import Batch, Workers
from tests.training.steps import Arrays, below, frozen

RUNS = frozen("training_steps.npz")


def masked_loss(model: Llama, batch: Batch, weight: float) -> tuple[Any, Params]:
    """The loss that a stage hands to the workers: a sum over the targets that count, divided by `weight`."""
    return next_token_loss(model, batch["tokens"], batch["targets"], loss_mask=batch["loss_mask"], count=weight)


def mean_of_means(model: Llama, batch: Batch, weight: float) -> tuple[Any, Params]:
    """The bug: each micro-batch's own mean, all micro-batches alike."""
    loss, grads = next_token_loss(model, batch["tokens"], batch["targets"], loss_mask=batch["loss_mask"])
    return loss / weight, {name: grad / np.float32(weight) for name, grad in grads.items()}


def counted(batch: Batch) -> float:
    return float(batch["loss_mask"].sum())


def config_of(run: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(**run["config"])


def model_of(run: dict[str, Any], dtype: type = np.float32) -> Llama:
    return Llama(config_of(run), {name: p.astype(dtype) for name, p in below(run, "params").items()})


def uneven_batch(config: LlamaConfig, rows: int = 8) -> Batch:
    """Rows in which 1, 2, 4, … up to all of 12 targets count."""
    rng = np.random.default_rng(3)
    tokens, targets = rng.integers(0, config.vocab_size, (2, rows, 12))
    lengths = np.minimum(2 ** np.arange(rows) % 13, 12)
    return {"tokens": tokens, "targets": targets, "loss_mask": np.arange(12) < lengths[:, None]}


def train(run: dict[str, Any], micro_batch: int, threads: int, dtype: type = np.float32) -> tuple[list[float], Arrays]:
    """Ten steps: their losses, and the parameters at the end."""
    workers = Workers(model_of(run, dtype), threads)
    pool = Threads(threads)
    settings = run["settings"]
    limit = settings["limit"]
    optimizer = AdamW(
        workers.params,
        workers.matrices,
        betas=settings["betas"],
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    losses = []
    for t, lr in enumerate(run["lrs"].tolist()):
        batch = {name: x[t] for name, x in below(run, "batches").items()}
        loss, grads = workers.gradients(masked_loss, batch, counted(batch), micro_batch)
        optimizer.step(grads, lr, clip_factor(global_norm(grads, pool), limit), pool)
        losses.append(loss)
    return losses, workers.model.params


@pytest.mark.parametrize("name", RUNS)
def test_ten_golden_losses(name):
    """Of ten steps of AdamW, against PyTorch's in float64."""
    losses, params = train(RUNS[name], micro_batch=4, threads=1)
    np.testing.assert_allclose(losses, RUNS[name]["losses"], rtol=0, atol=1e-5)
    after = below(RUNS[name], "after")
    assert params.keys() == after.keys()
    for key, expected in after.items():
        assert params[key].dtype == np.float32
        np.testing.assert_allclose(params[key], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", RUNS)
def test_ten_golden_losses_in_float64(name):
    losses, params = train(RUNS[name], micro_batch=4, threads=1, dtype=np.float64)
    np.testing.assert_allclose(losses, RUNS[name]["losses"], rtol=0, atol=1e-11)
    for key, expected in below(RUNS[name], "after").items():
        np.testing.assert_allclose(params[key], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4])
def test_ten_losses_however_cut(micro_batch, threads):
    """4 rows as 1 × 4, 2 × 2, 4 × 1 and 3 + 1, by one thread or several: the same losses to rounding."""
    losses, _ = train(RUNS["gqa"], micro_batch, threads)
    np.testing.assert_allclose(losses, RUNS["gqa"]["losses"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_same_bits_again(threads):
    """For one number of threads, losses and parameters are the same to the bit, however the threads are scheduled."""
    (losses, params), *others = [train(RUNS["mha_tied"], 1, threads) for _ in range(3)]
    for other_losses, other in others:
        assert other_losses == losses
        for name, p in params.items():
            np.testing.assert_array_equal(other[name], p)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 8, 100])
@pytest.mark.parametrize("name", RUNS)
def test_accumulated_is_whole(name, micro_batch, threads):
    """Micro-batches with unequal numbers of counted targets add up to the whole batch's loss and gradients."""
    model = model_of(RUNS[name], np.float64)
    batch = uneven_batch(model.config)
    expected, grads = masked_loss(model, batch, counted(batch))
    workers = Workers(model, threads)
    loss, flat = workers.gradients(masked_loss, batch, counted(batch), micro_batch)
    assert loss == pytest.approx(float(expected), rel=1e-13)
    in_order = np.concatenate([grads[name].ravel() for name in model.params])
    np.testing.assert_allclose(flat, in_order, rtol=1e-11, atol=1e-15)


def test_a_mean_of_means_differs():
    """The bug is another loss and another direction; where all rows count alike, it is none and would not be found."""
    model = model_of(RUNS["gqa"])
    workers = Workers(model, 1)
    batch = uneven_batch(model.config)
    loss, grads = workers.gradients(masked_loss, batch, counted(batch), 2)
    right = grads.copy()
    wrong_loss, wrong = workers.gradients(mean_of_means, batch, 4, 2)  # four micro-batches
    assert abs(wrong_loss - loss) > 0.05
    cosine = float(wrong @ right) / (np.linalg.norm(wrong) * np.linalg.norm(right))
    assert cosine < 0.9

    batch["loss_mask"][:] = True
    loss, grads = workers.gradients(masked_loss, batch, counted(batch), 2)
    right = grads.copy()
    wrong_loss, wrong = workers.gradients(mean_of_means, batch, 4, 2)
    assert wrong_loss == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(wrong, right, rtol=1e-4, atol=1e-7)


def test_rows_in_which_nothing_counts():
    """Add nothing: neither to the loss nor, NaN least of all, to the gradients."""
    model = model_of(RUNS["gqa"], np.float64)
    workers = Workers(model, 2)
    batch = uneven_batch(model.config)
    whole, grads = workers.gradients(masked_loss, batch, counted(batch), 1)
    grads = grads.copy()
    more = {name: np.concatenate([x, x[:3]]) for name, x in batch.items()}
    more["loss_mask"][8:] = False
    loss, same = workers.gradients(masked_loss, more, counted(more), 1)
    assert loss == pytest.approx(whole, rel=1e-14)
    np.testing.assert_allclose(same, grads, rtol=1e-12, atol=1e-16)


def test_nothing_is_left_from_the_last_batch():
    """Gradients are written anew: a batch after another gives what it gives alone, also to threads without a piece."""
    model = model_of(RUNS["gqa"])
    workers = Workers(model, 4)
    batch = uneven_batch(model.config)
    small = {name: x[:2] for name, x in batch.items()}
    alone, grads = workers.gradients(masked_loss, small, counted(small), 1)
    grads = grads.copy()
    workers.gradients(masked_loss, batch, counted(batch), 1)
    again, same = workers.gradients(masked_loss, small, counted(small), 1)
    assert again == alone
    np.testing.assert_array_equal(same, grads)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_parameter_without_gradient(threads):
    """A loss that does not use the head, as a reward does not, gives zeros for it and not what lay in memory."""

    def hidden_loss(model: Llama, batch: Batch, weight: float) -> tuple[Any, Params]:
        hidden, saved = model.forward(batch["tokens"])
        return (hidden * hidden).sum() / weight, model.backward(2 * hidden / weight, saved)

    model = model_of(RUNS["gqa"])
    workers = Workers(model, threads)
    batch = uneven_batch(model.config)
    workers.gradients(masked_loss, batch, counted(batch), 2)  # fills the head's gradient
    _, grads = workers.gradients(hidden_loss, batch, 8.0, 2)
    head = slice(0, 0)
    start = 0
    for name, p in model.params.items():
        if name == "output.weight":
            head = slice(start, start + p.size)
        start += p.size
    assert head.stop > head.start
    assert not grads[head].any()
    assert grads[: head.start].any()


def test_as_many_threads_as_asked_for():
    model = model_of(RUNS["gqa"])
    assert Workers(model, 3).threads.count == 3
    assert Workers(model).threads.count == usable_cores()


def test_an_error_in_a_thread_is_raised():
    def broken(*_: Any) -> tuple[Any, Params]:
        raise ValueError("broken")

    model = model_of(RUNS["gqa"])
    with pytest.raises(ValueError, match="broken"):
        Workers(model, 2).gradients(broken, uneven_batch(model.config), 1.0, 1)


def test_the_model_s_parameters_are_the_flat_ones():
    """An update of the flat array is one of the model."""
    model = model_of(RUNS["gqa"])
    workers = Workers(model, 1)
    assert workers.matrices == sum(p.size for p in model.params.values() if p.ndim > 1)
    tokens = np.array([[1, 2, 3]])
    before = model.forward(tokens)[0]
    workers.params *= np.float32(0.5)
    assert not np.allclose(model.forward(tokens)[0], before)
