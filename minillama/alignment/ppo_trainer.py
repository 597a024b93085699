"""The loop of PPO: sample answers, score them, make advantages of the scores, a few gradient steps; again.

Like `training.loop` it goes on after a stop to the same bits: prompts, samples and minibatches are pure functions of
the seed and the iteration, and a checkpoint holds policy, value model and both optimizers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minillama.alignment.advantages import kl_k1, kl_k3
from minillama.alignment.masked import masked_mean
from minillama.alignment.policy import explained_variance
from minillama.alignment.ppo_batch import (
    UNFINISHED,
    Judges,
    Rollout,
    Update,
    answer_logprobs,
    answer_values,
    as_batch,
    by_length,
    combined,
    experience,
    minibatches,
    pieces,
    policy_gradients,
    sample,
    take,
    value_gradients,
    whitened,
)
from minillama.alignment.ppo_log import PPOTerminal
from minillama.alignment.ppo_prompts import EncodedPrompt, Prompts
from minillama.alignment.reward_model import RewardModel
from minillama.backend import Array, to_host
from minillama.chat import ChatTemplate
from minillama.errors import MinillamaError, UsageError
from minillama.lora import LoraLlama
from minillama.model import Llama
from minillama.params import Params
from minillama.tokenizer import Tokenizer
from minillama.training.checkpoint import TRAINER, Checkpoints, Saved
from minillama.training.distributed import SingleProcess
from minillama.training.interrupts import Interrupts
from minillama.training.logs import JsonLines, Log, Logs, TensorBoard
from minillama.training.pretrain import MICRO_BATCH_TOKENS
from minillama.training.run_folder import RunFolder, Settings, check_settings
from minillama.training.workers import Batch, Workers
from minillama.training.zero import Optimizer
from minillama.weights import Checkpoint

HELD_OUT_PROMPTS = 128  # at most, the first of those held out
WEIGHT_DECAY, GRADIENT_CLIP = 0.1, 1.0  # the paper's


@dataclass(frozen=True)
class Recipe:
    """What the numbers of a run depend on; the defaults are Llama 2's (section 3.4.3), with 200 of its 200 to 400
    iterations. `ppo.recipe` fits them to a model.

    batch_size: answers of an iteration. minibatch: of a gradient step. epochs: times that a batch is gone through.
    answers: to a prompt, whose scores are counted from their mean; with one, as in the paper, from the mean of all.
    value_warmup: iterations at the beginning in which the value model alone learns. own_scales: whether the scores of
    safety prompts and those of the others, which come from different models, are whitened each by themselves; the paper
    whitens all as one. beta: what a nat of KL costs.
    clip: ε of both losses. lr, value_lr: constant. gamma, lam: of the advantages.
    temperature: of sampling, and of every log-probability. kl_limit: stop after an iteration whose mean KL is above.
    patience: stop after so many validations in a row without a better held-out reward. validate_every: iterations.
    None: no such limit.
    """

    iterations: int = 200
    batch_size: int = 512
    minibatch: int = 64
    answers: int = 1
    epochs: int = 1
    value_warmup: int = 0
    own_scales: bool = False
    beta: float = 0.01
    clip: float = 0.2
    lr: float = 1e-6
    value_lr: float = 1e-5
    gamma: float = 1.0
    lam: float = 0.95
    max_new_tokens: int = 128
    temperature: float = 1.0
    kl_limit: float | None = None
    patience: int | None = None
    validate_every: int = 10

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be."""
        for name in ("iterations", "batch_size", "minibatch", "answers", "epochs", "max_new_tokens", "validate_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')} {getattr(self, name)}: expected at least 1")
        if not 0 <= self.value_warmup < self.iterations:
            raise UsageError(f"value warm-up {self.value_warmup}: expected fewer than the {self.iterations} iterations")
        if self.minibatch > self.batch_size:
            raise UsageError(f"minibatch {self.minibatch}: expected at most the batch of {self.batch_size}")
        if self.batch_size % self.answers:
            raise UsageError(f"batch size {self.batch_size}: expected a multiple of {self.answers} answers a prompt")
        for name in ("clip", "lr", "value_lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name.replace('_', ' ')} {getattr(self, name)}: expected a positive number")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected a number from 0 to 1")
        if not 0 <= self.beta < math.inf:
            raise UsageError(f"beta {self.beta}: expected a number of at least 0")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"patience {self.patience}: expected at least 1")
        if self.kl_limit is not None and not self.kl_limit > 0:
            raise UsageError(f"KL limit {self.kl_limit}: expected a positive number")


@dataclass(frozen=True)
class How:
    """What changes no number, or only its last bits. micro_batch: rows that a thread runs at once, None: as many as
    stay near its core's cache. save_every: iterations between checkpoints; a kill loses those since the last one.
    """

    threads: int | None = None
    micro_batch: int | None = None
    recompute: bool = False
    save_every: int = 1
    keep_last: int = 3
    tensorboard: bool = False


@dataclass(frozen=True)
class Models:
    """All that take part. policy, value: trained, in place. reference: what the policy was, never written to."""

    policy: Llama
    reference: Llama
    value: RewardModel
    judges: Judges


@dataclass
class Progress:
    """How far a run is. With the parameters and the optimizers' states, all that it takes to go on.

    step: iterations done. tokens: sampled, with their prompts. seconds: spent in iterations. baseline: of
    each scale, mean and deviation of the initial model's scores on held-out prompts, which rewards are counted in.
    validation, sample: the last ones. best_step, best_reward: of the best validation. waited: validations since then.
    stopped: why the run ended before its last iteration; empty where it did not.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    baseline: list[tuple[float, float]] | None = None
    validation: dict[str, float] = field(default_factory=dict)
    sample: str | None = None
    best_step: int | None = None
    best_reward: float | None = None
    waited: int = 0
    stopped: str = ""

    @classmethod
    def from_json(cls, place: Path, content: Any) -> Progress:
        """What `asdict` made of one. Raises MinillamaError, naming the file `place`, where it is something else."""
        try:
            return cls(**content)
        except TypeError:
            raise MinillamaError(f"{place}: expected the progress of a PPO run, found something else") from None

    def validated(self, measures: dict[str, float]) -> None:
        """Note a validation."""
        self.validation = measures
        if self.best_reward is None or measures["reward"] > self.best_reward:
            self.best_step, self.best_reward, self.waited = self.step, measures["reward"], 0
        else:
            self.waited += 1


class Trainer:
    """A run of PPO: `train` does it all; `iterate` does one iteration and needs no folder."""

    def __init__(
        self,
        models: Models,
        prompts: Prompts,
        tokenizer: Tokenizer,
        end: int,
        recipe: Recipe,
        how: How | None = None,
        seed: int = 0,
    ) -> None:
        """end: the token that ends an answer. Moves what is trained of policy and value model into flat arrays."""
        self.models, self.prompts, self.tokenizer, self.end = models, prompts, tokenizer, end
        self.recipe, self.how, self.seed = recipe, how or How(), seed
        self.policy, self.value = (Workers(model, self.how.threads) for model in (models.policy, models.value))
        self.threads = self.policy.threads
        self.policy_optimizer, self.value_optimizer = (
            Optimizer(
                SingleProcess(),
                workers.params,
                workers.matrices,
                threads=workers.threads,
                weight_decay=WEIGHT_DECAY,
            )
            for workers in (self.policy, self.value)
        )
        self.numbers = Update(recipe.temperature, recipe.clip, self.how.recompute)
        self.progress = Progress()

    # --- an iteration ---------------------------------------------------------------------------------------------
    def iterate(self) -> dict[str, Any]:
        """One iteration: its record for the log."""
        started = time.perf_counter()
        progress, recipe, step = self.progress, self.recipe, self.progress.step
        prompts = self.prompts.batch(step, recipe.batch_size // recipe.answers, self.seed)
        rollouts = self.sampled([prompt for prompt in prompts for _ in range(recipe.answers)], (2, step))
        batch, measures = self.experience(as_batch(rollouts, recipe.answers))
        updates = self.learn(batch)
        seconds, tokens = time.perf_counter() - started, sum(rollout.length for rollout in rollouts)
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        return {
            "step": progress.step,
            **measures,
            **_summary(updates),
            "tokens": progress.tokens,
            "tokens_per_second": tokens / seconds,
            "seconds": progress.seconds,
        }

    def sampled(self, prompts: list[EncodedPrompt], stream: tuple[int, ...]) -> list[Rollout]:
        """The policy's answers. stream: what the random numbers depend on besides the seed."""
        policy = self.models.policy
        return sample(
            policy.merged() if isinstance(policy, LoraLlama) else policy,
            prompts,
            self.end,
            self.recipe.max_new_tokens,
            temperature=self.recipe.temperature,
            seed=int(np.random.SeedSequence([self.seed, *stream]).generate_state(1)[0]),
            threads=self.threads if policy.xp is np else None,
        )

    def experience(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """What the updates learn from, and what is known before them."""
        recipe = self.recipe
        rows = list(pieces(batch, self.minibatches(batch, 0), self.rows_at_once(batch)))
        scores = self.models.judges.scores(batch, rows, self.threads)
        batch |= self.passes(batch, rows)
        score = combined(scores, batch["safety"])
        if self.progress.baseline is None:
            self.progress.baseline = self.baseline(batch, score)
        asked = batch["asked"] if recipe.answers > 1 else None
        white = whitened(score, batch["finished"], self.scale(batch), asked)
        batch = experience(batch, white, beta=recipe.beta, gamma=recipe.gamma, lam=recipe.lam)
        mask = batch["mask"]
        gap = np.abs(batch["sampled"] - batch["old_logprobs"])
        return batch, {
            **self.outcome(batch, score),
            **{name: float(x.mean()) for name, x in scores.items()},
            "kl_k3": float(kl_k3(batch["old_logprobs"], batch["ref_logprobs"], mask).mean()),
            "entropy": float(masked_mean(batch["entropy"], mask)),
            "explained_variance": float(explained_variance(batch["old_values"], batch["returns"], mask)),
            "score_by_length": _correlation(score, mask.sum(axis=1)),
            "advantage_mean": float(masked_mean(batch["raw_advantages"], mask)),
            "advantage_std": _deviation(batch["raw_advantages"], mask),
            "sampling_gap": float(np.where(mask, gap, 0).max()),
        }

    def passes(self, batch: Batch, rows: list[np.ndarray], to_learn: bool = True) -> Batch:
        """The log-probabilities of the policy as it is, and of the reference, (B, T − 1); to learn from it, the values
        and the entropy as well.
        """
        models, temperature = self.models, self.recipe.temperature
        names = ("old_logprobs", "ref_logprobs", *(("old_values", "entropy") if to_learn else ()))
        found: Batch = {name: np.zeros(batch["mask"].shape, models.policy.dtype) for name in names}

        def work(worker: int) -> None:
            for piece in rows[worker :: self.threads.count]:
                some = take(batch, piece)
                results: dict[str, Array] = {}
                with np.errstate(over="ignore", invalid="ignore"):  # here, since it holds for one thread
                    results["old_logprobs"], results["entropy"], _ = answer_logprobs(
                        models.policy, some, temperature=temperature, entropy=to_learn, recompute=True
                    )
                    results["ref_logprobs"], _, _ = answer_logprobs(
                        models.reference, some, temperature=temperature, recompute=True
                    )
                    if to_learn:
                        results["old_values"], _ = answer_values(models.value, some, recompute=True)
                for name, x in found.items():
                    x[piece, : some["mask"].shape[1]] = to_host(results[name])

        self.threads.each(work)
        return found

    def scale(self, batch: Batch) -> np.ndarray:
        """Which scale each answer's score is of, (B,) integers."""
        return batch["safety"].astype(int) if self.recipe.own_scales else np.zeros(len(batch["safety"]), int)

    def baseline(self, batch: Batch, score: np.ndarray) -> list[tuple[float, float]]:
        """Of each scale, mean and deviation of the scores of finished answers; 1 where they do not deviate."""
        found = []
        for each in range(1 + self.recipe.own_scales):
            known = score[batch["finished"] & (self.scale(batch) == each)]
            found.append((float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0))
        return found

    def outcome(self, batch: Batch, score: np.ndarray) -> dict[str, float]:
        """What came of the answers: see `ppo_log`."""
        assert self.progress.baseline is not None
        mean, deviation = np.array(self.progress.baseline)[self.scale(batch)].T  # (B, 2) -> (B,), (B,)
        in_deviations = np.where(batch["finished"], (score - mean) / deviation, UNFINISHED)
        kl = float(kl_k1(batch["old_logprobs"], batch["ref_logprobs"], batch["mask"]).mean())
        return {
            "reward": float(in_deviations.mean()) - self.recipe.beta * kl,
            "score": float(score.mean()),
            "kl": kl,
            "answer_length": float(batch["mask"].sum(axis=1).mean()),
            "finished": float(batch["finished"].mean()),
        }

    def learn(self, batch: Batch) -> list[dict[str, float]]:
        """All gradient steps on a batch of experience. Returns what `update` does, of each."""
        micro_batch = self.rows_at_once(batch)  # of the whole, as when it was scored: the same rows computed together
        return [
            self.update(take(batch, by_length(batch, part)), micro_batch)
            for epoch in range(self.recipe.epochs)
            for part in self.minibatches(batch, epoch)
        ]

    def update(self, minibatch: Batch, micro_batch: int) -> dict[str, float]:
        """One gradient step of the policy, but in the warm-up, and of the value model. Returns losses and measures."""
        weight = float(minibatch["mask"].sum())
        measured: list[dict[str, float]] = []  # by all threads; `fsum` is exact, whatever the order

        def of_policy(model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                loss, grads, measures = policy_gradients(model, take(batch, slice(None)), weight, self.numbers)
            measured.append({name: float(x) for name, x in measures.items()})
            return loss, grads

        def of_values(model: Any, batch: Batch, weight: float) -> tuple[Array, Params]:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                return value_gradients(model, take(batch, slice(None)), weight, self.numbers)

        loss, grads = self.policy.gradients(of_policy, minibatch, weight, micro_batch)
        lr = self.recipe.lr if self.progress.step >= self.recipe.value_warmup else 0.0
        norm = self.stepped(self.policy_optimizer, "loss", loss, grads, lr)
        value_loss, grads = self.value.gradients(of_values, minibatch, weight, micro_batch)
        value_norm = self.stepped(self.value_optimizer, "value loss", value_loss, grads, self.recipe.value_lr)
        measures = {name: _EXTREMES.get(name, math.fsum)([part[name] for part in measured]) for name in measured[0]}
        return {"loss": loss, "value_loss": value_loss, "grad_norm": norm, "value_grad_norm": value_norm} | measures

    def stepped(self, optimizer: Optimizer, name: str, loss: float, grads: Array, lr: float) -> float:
        """One step of an optimizer. Returns the norm of the gradients; raises MinillamaError, with nothing updated,
        where this or the loss is not finite.
        """
        norm = optimizer.step(grads, lr, GRADIENT_CLIP) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            raise MinillamaError(
                f"PPO diverged in iteration {self.progress.step + 1}: {name} {loss:.4g}, gradient norm {norm}; "
                "a lower learning rate may help"
            )
        return norm

    def rows_at_once(self, batch: Batch) -> int:
        """Rows of which a thread's activations stay near its core's cache, with something to do for every thread."""
        if self.how.micro_batch is not None:
            return self.how.micro_batch
        fit = int(MICRO_BATCH_TOKENS / (batch["last"].mean() + 1))
        return max(1, min(fit, -(-min(self.recipe.minibatch, len(batch["last"])) // self.threads.count)))

    def minibatches(self, batch: Batch, epoch: int) -> list[np.ndarray]:
        """The rows of each minibatch of an epoch of this iteration."""
        return minibatches(len(batch["last"]), self.recipe.minibatch, self.seed, self.progress.step, epoch)

    # --- measuring ------------------------------------------------------------------------------------------------
    def validate(self) -> dict[str, float]:
        """Reward, score, KL, length and end of answers to held-out prompts; {} where there are none.

        The random numbers are always the same, so that what changes is the policy. The first of all is of the initial
        model, whose scores become the `baseline`.
        """
        prompts = self.prompts.held_out[:HELD_OUT_PROMPTS]
        if not prompts:
            return {}
        rollouts = self.sampled(prompts, (3,))
        batch = as_batch(rollouts)
        rows = list(pieces(batch, [np.arange(len(rollouts))], self.rows_at_once(batch)))
        batch |= self.passes(batch, rows, to_learn=False)
        score = combined(self.models.judges.scores(batch, rows, self.threads), batch["safety"])
        if self.progress.baseline is None:
            self.progress.baseline = self.baseline(batch, score)
        self.progress.sample = self.shown(rollouts[0], score[0])
        return self.outcome(batch, score)

    def shown(self, rollout: Rollout, score: float) -> str:
        """An answer to look at."""
        return f"{rollout.prompt.asked} → {self.tokenizer.decode(rollout.tokens).strip()} ({score:+.2f})"

    # --- a whole run ----------------------------------------------------------------------------------------------
    def train(self, folder: RunFolder, settings: Settings, chat_template: ChatTemplate | None = None) -> Progress:
        """All iterations that the run in `folder` still lacks; the model in the folder is in the end the one with the
        best held-out reward, or the last where nothing is held out.

        settings: what the numbers depend on; a checkpoint of others is refused. Returns where the run is: before its
        end after Ctrl-C or SIGTERM, with a checkpoint to go on from.
        """
        self.folder, self.settings, self.chat_template = folder, settings, chat_template
        self.checkpoints = Checkpoints(folder.checkpoints, self.how.keep_last)
        self.saved: int | None = None
        notices = self.restore()
        with closing(self.open_logs()) as self.log, Interrupts() as interrupts:
            for notice in notices:
                self.log.say(notice)
            self.run(interrupts)
        return self.progress

    def run(self, interrupts: Interrupts) -> None:
        """Until the end, or an interrupt."""
        progress, recipe = self.progress, self.recipe
        if progress.step == 0 and not progress.validation:
            self.validate_and_note()
            self.save()
        while progress.step < recipe.iterations and not progress.stopped:
            record = self.iterate()
            self.log.write(record)
            last = progress.step == recipe.iterations
            if recipe.kl_limit is not None and record["kl"] > recipe.kl_limit:
                progress.stopped = f"a KL of {record['kl']:.4g} is above the limit of {recipe.kl_limit:g}"
            elif progress.step % recipe.validate_every == 0 or last:
                self.validate_and_note()
                if recipe.patience is not None and progress.waited >= recipe.patience:
                    progress.stopped = f"{progress.waited} validations without a better held-out reward"
            if progress.step % self.how.save_every == 0 or last or progress.stopped or interrupts.asked:
                self.save()
            if interrupts.asked and not last and not progress.stopped:
                return
        if progress.stopped:
            self.log.say(f"stopped after iteration {progress.step}: {progress.stopped}")
        self.folder.finish(self.settings, self.best(), asdict(progress))

    def validate_and_note(self) -> None:
        """Measure, and say so; the best so far is saved."""
        measures = self.validate()
        if measures:
            self.log.write({"step": self.progress.step, "validation": measures})
            self.log.write({"step": self.progress.step, "sample": self.progress.sample})
            self.progress.validated(measures)
            if self.progress.best_step == self.progress.step:
                self.save()

    def best(self) -> Checkpoint:
        """The policy with the best held-out reward; the last where there is none."""
        if self.progress.best_step in (None, self.progress.step):
            return self.checkpoint()
        assert self.progress.best_step is not None
        best = self.checkpoints.load(self.progress.best_step, self.models.policy.dtype).model
        return replace(best, tokenizer=self.tokenizer, chat_template=self.chat_template)

    def checkpoint(self) -> Checkpoint:
        """The policy as it is now."""
        policy = self.models.policy.checkpoint()
        return replace(policy, tokenizer=self.tokenizer, chat_template=self.chat_template)

    def save(self) -> None:
        """A checkpoint of now, unless there is one: the policy as a model, the rest among the optimizer's arrays."""
        if self.saved == self.progress.step:
            return
        self.log.sync()
        state = {"value.params": to_host(self.value.params), **self.policy_optimizer.state()}
        state |= {f"value.{name}": x for name, x in self.value_optimizer.state().items()}
        trainer = {"settings": self.settings, "how": self.described(), "progress": asdict(self.progress)}
        self.checkpoints.save(self.progress.step, self.checkpoint(), state, trainer)
        self.checkpoints.prune(self.progress.step, self.progress.best_step)
        self.saved = self.progress.step

    def restore(self) -> list[str]:
        """Go to the newest checkpoint that is whole, or to the beginning. Returns what there is to say about it."""
        saved, notices = self.checkpoints.newest(self.models.policy.dtype)
        if saved is None:
            return notices
        check_settings(saved.path / TRAINER, saved.trainer.get("settings"), self.settings)
        self.progress = Progress.from_json(saved.path / TRAINER, saved.trainer.get("progress"))
        self.saved = self.progress.step
        self.load_state(saved)
        notices.append(f"going on after iteration {self.progress.step}")
        before, now = saved.trainer.get("how", {}), self.described()
        if changed := [
            f"{name} {now[name]} (before {before.get(name)})" for name in now if now[name] != before.get(name)
        ]:
            notices.append(f"{', '.join(changed)}: from here the numbers agree to rounding, not to the bit")
        return notices

    def load_state(self, saved: Saved) -> None:
        """Parameters and optimizers of a checkpoint."""
        policy = self.models.policy
        for name, value in saved.model.params.items():
            policy.trained[name][...] = policy.xp.asarray(value)
        of_values = {name.removeprefix("value."): x for name, x in saved.optimizer.items() if name.startswith("value.")}
        self.value.params[...] = policy.xp.asarray(of_values.pop("params"))
        self.policy_optimizer.load_state(saved.optimizer)
        self.value_optimizer.load_state(of_values)

    def described(self) -> dict[str, Any]:
        """What the order of sums depends on, and so their last bits."""
        return {
            "device": self.models.policy.device,
            "threads": self.threads.count,
            "micro_batch": self.how.micro_batch,
        }

    def open_logs(self) -> Log:
        """The file, the terminal, and TensorBoard where it is wanted."""
        step = self.progress.step
        kept = -1 if self.saved is None else step  # without a checkpoint the validation before the first iteration too
        logs: list[Log] = [JsonLines(self.folder.log, kept), PPOTerminal(self.recipe.iterations, step)]
        if self.how.tensorboard:
            logs.append(TensorBoard(self.folder.tensorboard, step))
        return Logs(*logs)


_EXTREMES: dict[str, Callable[[list[float]], float]] = {"ratio_min": min, "ratio_max": max}


def _summary(updates: list[dict[str, float]]) -> dict[str, float]:
    """The minibatches of an iteration in one: means, and the extremes of the ratio."""
    return {
        name: _EXTREMES.get(name, lambda x: math.fsum(x) / len(x))([update[name] for update in updates])
        for name in updates[0]
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; 0 where one of them does not vary."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def _deviation(x: np.ndarray, mask: np.ndarray) -> float:
    """The standard deviation of the valid entries."""
    return float(x[mask].std())
