"""The training loop on a stage that is learned in milliseconds: its numbers, however the work is cut; divergence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama.backend import Array
from minillama.errors import MinillamaError, UsageError
from minillama.model import Llama
from minillama.params import Params
from minillama.training.adamw import clip_factor
from minillama.training.loop import PATIENCE, Options
from minillama.training.workers import Batch
from minillama.weights import load
from tests.conftest import Arrays
from tests.training.tiny import CONFIG, ROWS, Counting, run


def records(folder: Path, kind: str = "loss") -> list[dict[str, Any]]:
    """The records of a run's log that have a `kind`."""
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in lines if kind in record]


def losses(folder: Path) -> np.ndarray:
    return np.array([record["loss"] for record in records(folder)])


def test_a_stage_is_learned(tmp_path: Path) -> None:
    model, progress = run(tmp_path, 150)
    found = losses(tmp_path)
    assert abs(found[0] - np.log(CONFIG.vocab_size)) < 0.1
    assert found[-1] < 0.2
    assert progress.step == 150 and progress.tokens == 150 * ROWS * 6
    assert progress.sample == "3"
    assert progress.validation["loss"] == pytest.approx(found[-1], abs=0.1)
    assert model.params["norm.weight"].dtype == np.float32


def test_the_first_steps_are_adamw_on_the_mean_loss(tmp_path: Path) -> None:
    from minillama.params import flatten
    from minillama.training.adamw import AdamW, global_norm

    model, _ = run(tmp_path, 5, warmup_steps=2, clip=0.5)
    expected, stage = Llama.init(CONFIG, seed=3), Counting()
    params, matrices = flatten(expected.params)
    adamw = AdamW(params, matrices)
    rates = [0.01 / 3, 0.02 / 3, *(0.01 * (0.1 + 0.45 * (1 + np.cos(np.pi * i / 3))) for i in range(3))]
    for step, (record, rate) in enumerate(zip(records(tmp_path), rates, strict=True)):
        batch = stage.batch(step)
        loss, grads = stage.loss(expected, batch, batch["targets"].size)
        flat = np.concatenate([grads[name].reshape(-1) for name in expected.params])
        norm = global_norm(flat)
        assert record["step"] == step + 1
        assert record["loss"] == pytest.approx(float(loss), rel=1e-6)
        assert record["lr"] == pytest.approx(rate, rel=1e-6)
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-5)
        adamw.step(flat, rate, clip_factor(norm, 0.5))
    for name, p in model.params.items():
        np.testing.assert_allclose(p, expected.params[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "cut", [{"micro_batch": 1}, {"micro_batch": 3}, {"threads": 2, "micro_batch": 2}, {"threads": 4, "micro_batch": 1}]
)
def test_losses_do_not_depend_on_how_a_batch_is_cut(tmp_path: Path, cut: dict[str, int]) -> None:
    run(tmp_path / "whole", 30)
    run(tmp_path / "cut", 30, **cut)
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), rtol=2e-5)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "first", 20, threads=2, micro_batch=2)
    second, _ = run(tmp_path / "second", 20, threads=2, micro_batch=2)
    for name, p in first.params.items():
        assert p.tobytes() == second.params[name].tobytes()
    assert losses(tmp_path / "first").tobytes() == losses(tmp_path / "second").tobytes()


def test_on_any_device(tmp_path: Path, arrays: Arrays) -> None:
    """Stopped and gone on with too: what is saved is on the host, what is trained on the device."""
    if arrays.name == "fake-gpu":
        pytest.skip("a step reads its loss back, which the imagined GPU forbids")
    expected, _ = run(tmp_path / "host", 12)
    for steps_done in (5, 12):
        model = Llama(CONFIG, arrays.put(Llama.init(CONFIG, seed=3).params))
        if steps_done == 5:
            with pytest.raises(MinillamaError, match="diverged in step 6"):
                run(tmp_path / "device", 12, Diverging(5, loss=float("nan")), model)
        else:
            run(tmp_path / "device", 12, model=model)
    np.testing.assert_allclose(losses(tmp_path / "device"), losses(tmp_path / "host"), rtol=1e-4)
    for name, p in model.params.items():
        assert type(p) is type(arrays.put(np.zeros(1)))
        np.testing.assert_allclose(arrays.get(p), expected.params[name], rtol=0, atol=1e-4)


class Diverging(Counting):
    """From step `step` on, what comes out is `bad`."""

    def __init__(self, step: int, loss: float = 1.0, gradient: float = 1.0) -> None:
        super().__init__(self.note)
        self.begins, self.factors, self.now = step, (loss, gradient), 0

    def note(self, step: int) -> None:
        self.now = step if step < 1000 else self.now

    def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
        loss, grads = super().loss(model, batch, weight)
        if self.now >= self.begins:
            loss = loss * self.factors[0]
            grads["norm.weight"] = grads["norm.weight"] * np.float32(self.factors[1])
        return loss, grads


@pytest.mark.parametrize(
    ("stage", "step", "found"),
    [
        (Diverging(9, loss=float("nan")), 10, "loss nan"),
        (Diverging(9, loss=float("inf")), 10, "loss inf"),
        (Diverging(9, gradient=float("nan")), 10, r"loss \d\.\d+, gradient norm nan"),
        (Diverging(9, gradient=1e38), 10, r"loss \d\.\d+, gradient norm inf"),
        (
            Diverging(9, loss=10.0),
            9 + PATIENCE,
            rf"loss \d+\.\d+, for {PATIENCE} steps above 3 times the mean of 3\.\d+",
        ),
    ],
    ids=["loss nan", "loss inf", "gradient nan", "gradient inf", "loss exploded"],
)
def test_divergence_stops_with_the_step_the_loss_and_the_last_good_checkpoint(
    tmp_path: Path, stage: Diverging, step: int, found: str
) -> None:
    with pytest.raises(MinillamaError) as stopped:
        run(tmp_path, 100, stage)
    message = str(stopped.value)
    good = tmp_path / "checkpoints" / "step-000008"
    expected = rf"training diverged in step {step}: {found}; last good checkpoint: {re.escape(str(good))}; a lower"
    assert re.match(expected, message), message
    assert "\n" not in message
    assert max(record["step"] for record in records(tmp_path)) == step - 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == good.name
    for value in load(good).params.values():
        assert np.isfinite(value).all()


def test_a_bad_update_is_not_made(tmp_path: Path) -> None:
    before, _ = run(tmp_path / "good", 8, Counting())
    stage = Diverging(7, gradient=float("nan"))
    model = None

    class Watched(Diverging):
        def loss(self, seen: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
            nonlocal model
            model = seen
            return stage.loss(seen, batch, weight)

    watched = Watched(7)
    watched.before_step = stage.note
    with pytest.raises(MinillamaError, match="diverged in step 8"):
        run(tmp_path / "bad", 8, watched)
    assert model is not None
    for name, value in model.params.items():
        assert np.isfinite(value).all(), name
        assert np.abs(value - before.params[name]).max() < 0.05, name


def test_a_validation_that_is_not_finite(tmp_path: Path) -> None:
    class Lost(Counting):
        def validate(self, model: Llama) -> dict[str, float]:  # noqa: ARG002
            return {"loss": float("nan")}

    with pytest.raises(MinillamaError, match=r"diverged in step 10: validation loss nan; last good .*step-000008"):
        run(tmp_path, 30, Lost())


def test_divergence_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MinillamaError, match="in step 1: loss nan; last good checkpoint: none"):
        run(tmp_path, 8, Diverging(0, loss=float("nan")))


def test_a_learning_rate_far_too_high_diverges_without_a_warning(tmp_path: Path) -> None:
    with pytest.raises(MinillamaError, match="training diverged in step"):
        run(tmp_path, 400, lr=1e20, clip=None, weight_decay=0.0)


def test_a_spike_is_lived_through(tmp_path: Path) -> None:
    class Spike(Counting):
        step = 0

        def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
            loss, grads = super().loss(model, batch, weight)
            return loss * (20 if 10 <= self.step < 10 + PATIENCE - 1 else 1), grads

    stage = Spike()
    stage.before_step = lambda step: setattr(stage, "step", step)
    _, progress = run(tmp_path, 30, stage)
    assert progress.step == 30 and progress.bad == 0


def test_the_best_is_kept_besides_the_last(tmp_path: Path) -> None:
    class Worse(Counting):
        """Its validation is best at step 20."""

        step = 0

        def validate(self, model: Llama) -> dict[str, float]:  # noqa: ARG002
            return {"loss": abs(self.step - 19) / 10}

    stage = Worse()
    stage.before_step = lambda step: setattr(stage, "step", step)
    _, progress = run(tmp_path, 60, stage, save_every=5, keep_last=2)
    assert (progress.best_step, progress.best_loss) == (20, 0.0)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000020", "step-000055", "step-000060"]


def test_validation_and_samples_are_logged_when_due_and_at_the_end(tmp_path: Path) -> None:
    run(tmp_path, 25)
    assert [record["step"] for record in records(tmp_path, "validation")] == [10, 20, 25]
    assert [record["step"] for record in records(tmp_path, "sample")] == [10, 20, 25]


def test_a_stage_without_validation(tmp_path: Path) -> None:
    class Silent(Counting):
        def validate(self, model: Llama) -> dict[str, float]:  # noqa: ARG002
            return {}

        def sample(self, model: Llama) -> None:  # noqa: ARG002
            return None

    _, progress = run(tmp_path, 25, Silent())
    assert progress.validation == {} and progress.sample is None and progress.best_step is None
    assert not records(tmp_path, "validation") and not records(tmp_path, "sample")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps 0: expected at least 1"),
        ({"micro_batch": 0}, "micro batch 0: expected at least 1"),
        ({"keep_last": 0}, "keep last 0: expected at least 1"),
        ({"clip": 0.0}, "clip 0.0: expected a positive number"),
        ({"lr": float("nan")}, "learning rate nan: expected a positive number"),
        ({"warmup_steps": 11}, "11 warm-up steps: expected between 0 and the 10 steps in all"),
    ],
)
def test_options_that_can_never_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**{"steps": 10, "lr": 0.1} | options)
