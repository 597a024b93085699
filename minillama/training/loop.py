"""The training loop, the same for every stage: batch, gradients, clip, AdamW; log, validate, save; again.

A stage says what a batch is and what its loss. The loop knows nothing of either, only that a batch is a dict of arrays
whose first axis is the row, so that threads and ranks each take some rows.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minillama.backend import Array
from minillama.chat import ChatTemplate
from minillama.errors import MinillamaError, UsageError
from minillama.model import Llama
from minillama.params import Params
from minillama.tokenizer import Tokenizer
from minillama.training.checkpoint import TRAINER, Checkpoints
from minillama.training.distributed import Communicator, SingleProcess, gather, share_of_rows
from minillama.training.interrupts import Interrupts
from minillama.training.logs import JsonLines, Log, Logs, TensorBoard, Terminal
from minillama.training.run_folder import RunFolder, Settings, check_settings
from minillama.training.schedule import CosineSchedule
from minillama.training.threads import usable_cores
from minillama.training.workers import Batch, Workers
from minillama.training.zero import Optimizer
from minillama.weights import Checkpoint

EXPLODED = 3.0  # times the running mean: a loss of that size is a bad one
PATIENCE = 10  # bad ones in a row that end a run
MEMORY = 0.98  # of the running mean, a step


class Stage(Protocol):
    """What is trained: pretraining, a finetuning, a reward model."""

    def batch(self, step: int) -> Batch:
        """All rows of the batch of `step` = 0, 1, …, the same whenever it is asked for: "tokens", and what more the
        loss needs.
        """
        ...

    def weight(self, batch: Batch) -> float:
        """What the loss of a batch is a mean over, such as the tokens that count; it adds up over rows."""
        ...

    def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
        """The sum of the losses of some rows, divided by `weight`, the whole batch's; and its gradients."""
        ...

    def validate(self, model: Llama) -> dict[str, float]:
        """Measures on data held out, "loss" among them, by which the best checkpoint is chosen; {} for none."""
        ...

    def sample(self, model: Llama) -> str | None:
        """A text to look at; None for none."""
        ...


@dataclass(frozen=True)
class Options:
    """How a stage is trained.

    lr: the peak of the cosine schedule, warmup_steps and lr_floor the rest of it. clip: the largest global norm of the
    gradients, None for any. micro_batch: rows that a thread runs at once. threads None: all cores. validate_every,
    save_every: steps; the last step is always followed by both, and a validation better than all before by a
    checkpoint. keep_last: checkpoints besides the best.
    """

    steps: int
    lr: float
    warmup_steps: int = 0
    lr_floor: float = 0.1
    weight_decay: float = 0.1
    clip: float | None = 1.0
    micro_batch: int = 4
    threads: int | None = None
    validate_every: int = 100
    save_every: int = 100
    keep_last: int = 3
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batch", "validate_every", "save_every", "keep_last"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} {getattr(self, name)}: expected at least 1")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip {self.clip}: expected a positive number")
        self.schedule()

    def schedule(self) -> CosineSchedule:
        """The learning rate of each step. Raises UsageError where the numbers make none."""
        return CosineSchedule(self.lr, self.steps, self.warmup_steps, self.lr_floor)

    def settings(self) -> Settings:
        """Those of the options that decide what comes out."""
        names = ("steps", "lr", "warmup_steps", "lr_floor", "weight_decay", "clip")
        return {name: getattr(self, name) for name in names}


@dataclass
class Progress:
    """How far a run is. With the parameters and the optimizer's state, all that it takes to go on.

    tokens: read so far. seconds: spent in steps. mean_loss: the running mean of |loss|, bad ones left out. bad: how
    many losses were bad in a row. validation, sample: the last ones. best_step, best_loss: of the validation with the
    lowest loss.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    mean_loss: float | None = None
    bad: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_loss: float | None = None
    sample: str | None = None

    @classmethod
    def from_json(cls, place: Path, content: Any) -> Progress:
        """What `asdict` made of one. Raises MinillamaError, naming the file `place`, where it is something else."""
        try:
            return cls(**content)
        except TypeError:
            raise MinillamaError(f"{place}: expected the progress of a run, found something else") from None

    def watch(self, loss: float) -> None:
        """Note the loss of a step: whether it is bad, and the mean."""
        if self.mean_loss is None:
            self.mean_loss = abs(loss)
        if abs(loss) > EXPLODED * self.mean_loss:
            self.bad += 1
        else:
            self.bad = 0
            self.mean_loss = MEMORY * self.mean_loss + (1 - MEMORY) * abs(loss)

    def validated(self, measures: dict[str, float]) -> bool:
        """Note a validation. Returns whether its loss is the lowest so far, and training's not bad."""
        self.validation = measures
        loss = measures.get("loss", math.inf)
        improved = self.bad == 0 and loss < (math.inf if self.best_loss is None else self.best_loss)
        if improved:
            self.best_step, self.best_loss = self.step, loss
        return improved


def train(
    model: Llama,
    stage: Stage,
    options: Options,
    folder: RunFolder,
    settings: Settings,
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: ChatTemplate | None = None,
    comm: Communicator | None = None,
) -> Progress:
    """Train `model`, in place, for the steps that the run in `folder` still lacks.

    The steps done are taken from the newest whole checkpoint, and from there every number is as if there had been no
    break: to the bit with the same threads, ranks and micro-batches, else to rounding. settings: what the numbers
    depend on; a checkpoint of others is refused. tokenizer, chat_template: go into the checkpoints.

    Returns where the run is: after the last step, with the trained model in the folder itself; or, after Ctrl-C or
    SIGTERM, before it, with a checkpoint to go on from. Raises MinillamaError for a loss or a gradient that is not
    finite, and for a loss above EXPLODED times its running mean PATIENCE times in a row: the update that would follow
    is not made, and nothing is saved from there; and where a file cannot be read or written.
    """
    comm = SingleProcess() if comm is None else comm
    trainer = _Trainer(model, stage, options, folder, settings, tokenizer, chat_template, comm)
    notices = trainer.restore()
    with closing(trainer.open_logs()) as trainer.log, Interrupts() as interrupts:
        for notice in notices:
            trainer.log.say(notice)
        trainer.run(interrupts)
    return trainer.progress


class _Trainer:
    """One call of `train`: the loop, and what it works with."""

    def __init__(
        self,
        model: Llama,
        stage: Stage,
        options: Options,
        folder: RunFolder,
        settings: Settings,
        tokenizer: Tokenizer | None,
        chat_template: ChatTemplate | None,
        comm: Communicator,
    ) -> None:
        self.model, self.stage, self.options, self.folder = model, stage, options, folder
        self.settings, self.tokenizer, self.chat_template, self.comm = settings, tokenizer, chat_template, comm
        self.schedule = options.schedule()
        self.checkpoints = Checkpoints(folder.checkpoints, options.keep_last)
        self.workers = Workers(model, options.threads or max(1, usable_cores() // comm.local_size))
        self.how = {  # what the order of sums depends on, and so their last bits
            "device": model.device,
            "ranks": comm.size,
            "threads": self.workers.threads.count,
            "micro_batch": options.micro_batch,
        }
        self.progress = Progress()
        self.saved: int | None = None  # the step of the newest checkpoint
        self.log = Log()

    def restore(self) -> list[str]:
        """Go to the newest checkpoint that is whole, or to the beginning. Returns what there is to say about it."""
        saved, notices = self.checkpoints.newest(self.model.dtype)
        if saved is not None:
            place = saved.path / TRAINER
            check_settings(place, saved.trainer.get("settings"), self.settings)
            self.progress = Progress.from_json(place, saved.trainer.get("progress"))
            self.saved = self.progress.step
            for name, value in saved.model.params.items():
                self.model.trained[name][...] = self.model.xp.asarray(value)
            notices.append(f"going on after step {self.progress.step}")
            notices += _changes(saved.trainer.get("how", {}), self.how)
        workers, decay = self.workers, self.options.weight_decay
        self.optimizer = Optimizer(
            self.comm, workers.params, workers.matrices, threads=workers.threads, weight_decay=decay
        )
        if saved is not None:
            self.optimizer.load_state(saved.optimizer)
        return notices

    def open_logs(self) -> Log:
        """Rank 0 logs; the others have nothing to say."""
        if self.comm.rank > 0:
            return Log()
        step = self.progress.step
        logs: list[Log] = [JsonLines(self.folder.log, step), Terminal(self.options.steps, step)]
        if self.options.tensorboard:
            logs.append(TensorBoard(self.folder.tensorboard, step))
        return Logs(*logs)

    def run(self, interrupts: Interrupts) -> None:
        """All steps that are left, or as many as there are until an interrupt."""
        while self.progress.step < self.options.steps:
            self.step()
            self.validate_and_save()
            if self.anyone(interrupts.asked) and self.progress.step < self.options.steps:
                self.save()
                return
        if self.comm.rank == 0:
            self.folder.finish(self.settings, self.checkpoint(), asdict(self.progress))

    def step(self) -> None:
        """One update of all parameters."""
        started = time.perf_counter()
        progress, step = self.progress, self.progress.step
        batch = self.stage.batch(step)
        weight = self.stage.weight(batch)
        rows = share_of_rows(self.comm, len(batch["tokens"]))
        mine = {name: x[rows] for name, x in batch.items()}
        part, grads = self.workers.gradients(self.loss, mine, weight, self.options.micro_batch)
        loss = math.fsum(gather(self.comm, part))
        progress.watch(loss)
        if not math.isfinite(loss):
            raise self.diverged(step + 1, f"loss {loss}")
        if progress.bad >= PATIENCE:
            mean = f"{EXPLODED:g} times the mean of {progress.mean_loss:.4g}"
            raise self.diverged(step + 1, f"loss {loss:.4g}, for {PATIENCE} steps above {mean}")
        lr = self.schedule(step)
        norm = self.optimizer.step(grads, lr, self.options.clip)
        if not math.isfinite(norm):
            raise self.diverged(step + 1, f"loss {loss:.4g}, gradient norm {norm}")

        seconds = time.perf_counter() - started
        tokens = batch["tokens"].size
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        self.log.write(
            {
                "step": progress.step,
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "tokens": progress.tokens,
                "tokens_per_second": tokens / seconds,
                "seconds": progress.seconds,
            }
        )

    def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
        """The stage's loss; numbers that overflow are noticed by the loop, and need no warning."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self.stage.loss(model, batch, weight)

    def diverged(self, step: int, found: str) -> MinillamaError:
        """The error to raise for what was `found` in a step."""
        good = "none" if self.saved is None else self.checkpoints.path(self.saved)
        return MinillamaError(
            f"training diverged in step {step}: {found}; last good checkpoint: {good}; a lower learning rate may help"
        )

    def validate_and_save(self) -> None:
        """After a step, whatever is due."""
        step, last = self.progress.step, self.progress.step == self.options.steps
        improved = False
        if (step % self.options.validate_every == 0 or last) and self.comm.rank == 0:
            improved = self.validate()
        due = (step % self.options.save_every == 0 and self.progress.bad == 0) or last
        if due or self.anyone(improved):
            self.save()

    def validate(self) -> bool:
        """Measure, and show a sample. Returns whether this is the best so far."""
        measures = self.stage.validate(self.model)
        if not math.isfinite(measures.get("loss", 0.0)):
            raise self.diverged(self.progress.step, f"validation loss {measures['loss']}")
        if measures:
            self.log.write({"step": self.progress.step, "validation": measures})
        self.progress.sample = self.stage.sample(self.model)
        if self.progress.sample:
            self.log.write({"step": self.progress.step, "sample": self.progress.sample})
        return self.progress.validated(measures)

    def save(self) -> None:
        """A checkpoint of now, unless there is one."""
        if self.saved == self.progress.step:
            return
        optimizer = self.optimizer.state()  # gathered from all ranks
        if self.comm.rank == 0:
            self.log.sync()
            trainer = {"settings": self.settings, "how": self.how, "progress": asdict(self.progress)}
            self.checkpoints.save(self.progress.step, self.checkpoint(), optimizer, trainer)
            self.checkpoints.prune(self.progress.step, self.progress.best_step)
        self.saved = self.progress.step

    def checkpoint(self) -> Checkpoint:
        """The model as it is now."""
        return replace(self.model.checkpoint(), tokenizer=self.tokenizer, chat_template=self.chat_template)

    def anyone(self, asked: bool) -> bool:
        """Whether one rank at least says so."""
        return any(gather(self.comm, float(asked)))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as before, in a line, if anything."""
    changed = [name for name in now if now[name] != before.get(name)]
    told = ", ".join(f"{name.replace('_', ' ')} {now[name]} (before {before.get(name)})" for name in changed)
    return [f"{told}: from here the numbers agree to rounding, not to the bit"] if changed else []
