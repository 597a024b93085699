"""A stage that a thousand parameters learn in milliseconds: count on from a number.

`python -m tests.training.tiny FOLDER STEPS KILL DELAY` trains it in a process of its own, which ends itself as kill -9
does, DELAY seconds after step KILL has begun; without these two it runs to the end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minillama.backend import Array
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.params import Params
from minillama.training.loop import Options, Progress, train
from minillama.training.losses import next_token_loss
from minillama.training.run_folder import RunFolder
from minillama.training.workers import Batch

CONFIG = LlamaConfig(16, 2, 2, 32, vocab_size=32, n_kv_heads=1, max_seq_len=32, tie_embeddings=True)
ROWS, LENGTH = 8, 6
SETTINGS = {"stage": "tiny", "seed": 0}


class Counting:
    """Rows that count on from a random number, modulo the vocabulary."""

    def __init__(self, before_step: Callable[[int], None] = lambda step: None) -> None:
        self.before_step = before_step

    def batch(self, step: int) -> Batch:
        self.before_step(step)
        starts = np.random.default_rng([7, step]).integers(CONFIG.vocab_size, size=(ROWS, 1))
        rows = (starts + np.arange(LENGTH + 1)) % CONFIG.vocab_size  # (B, 1) + (T + 1,) -> (B, T + 1)
        return {"tokens": rows[:, :-1], "targets": rows[:, 1:]}

    def weight(self, batch: Batch) -> float:
        return float(batch["targets"].size)

    def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
        return next_token_loss(model, batch["tokens"], batch["targets"], count=weight)

    def validate(self, model: Llama) -> dict[str, float]:
        batch = self.batch(1_000_000)
        return {"loss": float(self.loss(model, batch, self.weight(batch))[0])}

    def sample(self, model: Llama) -> str | None:
        hidden, _ = model.forward(np.array([[0, 1, 2]]))
        return str(int(model.logits(hidden)[0, -1].argmax()))


def options(steps: int, **changes: Any) -> Options:
    """Options of a short run on one thread."""
    standard: dict[str, Any] = {"lr": 0.01, "threads": 1, "validate_every": 10, "save_every": 4, "micro_batch": ROWS}
    return Options(steps, **standard | changes)


def run(
    folder: Path, steps: int, stage: Counting | None = None, model: Llama | None = None, **changes: Any
) -> tuple[Llama, Progress]:
    """Train a fresh model, or the one given, in `folder`; or go on with it."""
    place = RunFolder(folder)
    settings = SETTINGS | {"steps": steps}
    model = model or Llama.init(CONFIG, seed=3)
    with place.begun(settings):
        return model, train(model, stage or Counting(), options(steps, **changes), place, settings)


def ends_itself(step: int, delay: float) -> Callable[[int], None]:
    """Ends this process `delay` seconds after `step` has begun, wherever it is then."""

    def end() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows SIGTERM ends it as abruptly

    def before_step(now: int) -> None:
        if now == step:
            threading.Thread(target=end, daemon=True).start()

    return before_step


if __name__ == "__main__":
    folder, steps, *kill = sys.argv[1:]
    stage = Counting(ends_itself(int(kill[0]), float(kill[1]))) if kill else Counting()
    run(Path(folder), int(steps), stage)
