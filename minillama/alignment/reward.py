"""Training reward models: a scalar head learns, pair by pair, which answer people prefer (Llama 2, section 3.2.2).

Helpfulness and safety have a model each; the safety model's loss has a second term, whether each answer is safe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from minillama.alignment.preferences import RATINGS, Pair, Preferences
from minillama.alignment.ranking import (
    MARGINS,
    accuracy,
    margins,
    ranking_loss,
    ranking_loss_backward,
    safety_loss,
    safety_loss_backward,
    sigmoid,
)
from minillama.alignment.reward_model import SCORE, LoraRewardModel, RewardModel
from minillama.backend import Array, Device, to_host
from minillama.chat import ChatTemplate, Message, builtin, suited
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.lora import LoraConfig
from minillama.params import Params
from minillama.tokenizer import Tokenizer
from minillama.training.distributed import Communicator, share_of_rows
from minillama.training.loop import Options, Progress, train
from minillama.training.pretrain import MICRO_BATCH_TOKENS, fingerprint, load_initial
from minillama.training.run_folder import RunFolder, Settings
from minillama.training.threads import ONE_THREAD, Threads
from minillama.training.workers import Batch

NO_MARGIN = "none"
VALIDATION_PAIRS = 1024  # at most, the first of those held out
BINS = 5  # of the confidence, from 1/2 to 1


@dataclass(frozen=True)
class EncodedPair:
    """A pair as a model sees it: prompt and answer, up to the token that ends the answer.

    first: where each answer begins. margin: how far apart the scores shall be at least. rating, safe: as `Pair` has
    them.
    """

    chosen: list[int]
    rejected: list[int]
    margin: float = 0.0
    rating: str | None = None
    safe: tuple[bool, bool] | None = None
    first: tuple[int, int] = (1, 1)

    @property
    def length(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.chosen), len(self.rejected))


@dataclass
class Encoded:
    """Pairs as tokens, and how many could not be taken as they are.

    shown: a pair to look at, held out where there is one, and its tokens. shortened: pairs that lost their first turns,
    too_long: those left out, because of the length. refused: those left out because the template cannot hold them.
    """

    train: list[EncodedPair] = field(default_factory=list)
    held_out: list[EncodedPair] = field(default_factory=list)
    shown: tuple[Pair, EncodedPair] | None = None
    shortened: int = 0
    too_long: int = 0
    refused: int = 0

    def notices(self) -> list[str]:
        """What a user should know, a line each."""
        told = {
            "lost their first turns: too long": self.shortened,
            "left out: too long": self.too_long,
            "left out: refused by the chat template": self.refused,
        }
        return [f"{count:,} pairs {what}" for what, count in told.items() if count]


def encode_answer(
    prompt: Sequence[Message], answer: str, template: ChatTemplate, tokenizer: Tokenizer
) -> tuple[list[int], int]:
    """Prompt and answer as tokens, and the place of the answer's first one; the last is the one that ends the answer,
    where a reward model scores it.

    Raises UsageError for a dialogue that the template cannot hold, MinillamaError where the answer has no tokens.
    """
    messages = [*prompt, {"role": "assistant", "content": answer}]
    dialogue = template.encode(messages, tokenizer, add_generation_prompt=False)
    ends = np.flatnonzero(dialogue.loss_mask)
    if not len(ends):
        raise MinillamaError(f"chat template ({template}): expected the answer in its loss mask, found none")
    before = np.flatnonzero(~np.asarray(dialogue.loss_mask, bool)[: ends[-1]])
    return dialogue.tokens[: ends[-1] + 1], int(before[-1]) + 1


def encode_pair(
    pair: Pair, template: ChatTemplate, tokenizer: Tokenizer, max_length: int, margin: str = NO_MARGIN
) -> tuple[EncodedPair | None, bool]:
    """The pair in tokens, and whether its prompt lost turns: as many from its beginning, in twos, as it takes for both
    answers to fit into `max_length` tokens; a system message stays. None where the last turn alone does not fit.
    """
    system = pair.prompt[:1] if pair.prompt[0]["role"] == "system" else ()
    turns = pair.prompt[len(system) :]
    m = 0.0 if margin == NO_MARGIN or pair.rating is None else float(margins([pair.rating], margin)[0])
    for start in range(0, len(turns), 2):
        prompt = (*system, *turns[start:])
        answers = [encode_answer(prompt, answer, template, tokenizer) for answer in (pair.chosen, pair.rejected)]
        (chosen, first), (rejected, second) = answers
        encoded = EncodedPair(chosen, rejected, m, pair.rating, pair.safe, (first, second))
        if encoded.length <= max_length:
            return encoded, start > 0
    return None, False


def encode_all(
    data: Preferences,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    max_length: int,
    margin: str = NO_MARGIN,
    held_out: float = 0.1,
) -> Encoded:
    """All pairs in tokens. Raises UsageError where a margin is asked for and no pair has a rating; MinillamaError where
    no pair is left to train on.
    """
    from tqdm import tqdm

    check_margin(margin)
    if margin != NO_MARGIN and all(pair.rating is None for pair in data.pairs):
        raise UsageError(f"margin {margin}: expected pairs with a rating, found none")
    encoded = Encoded()
    splits = zip((encoded.train, encoded.held_out), data.split(held_out), strict=True)
    with tqdm(total=len(data.pairs), desc="encoding", unit=" pairs", disable=None, delay=2, leave=False) as bar:
        for into, pairs in splits:
            for pair in pairs:
                bar.update()
                try:
                    tokens, shortened = encode_pair(pair, template, tokenizer, max_length, margin)
                except UsageError:
                    encoded.refused += 1
                    continue
                if tokens is None:
                    encoded.too_long += 1
                    continue
                encoded.shortened += shortened
                if encoded.shown is None or not into:
                    encoded.shown = pair, tokens
                into.append(tokens)
    if not encoded.train:
        why = "; ".join(encoded.notices()) or "no pair is there to train on"
        raise MinillamaError(f"nothing to learn: {why}")
    return encoded


def check_margin(margin: str) -> None:
    """Raise UsageError for a margin that there is not."""
    if margin not in (NO_MARGIN, *MARGINS):
        raise UsageError(f"margin {margin!r}: expected one of {', '.join((NO_MARGIN, *MARGINS))}")


def as_batch(pairs: Sequence[EncodedPair]) -> Batch:
    """Pairs as arrays, chosen before rejected: "tokens" (B, 2, T) padded on the right, "last" (B, 2) the place of the
    token that ends each answer, "first" (B, 2) that of its first, "margin" (B,), "safe" and "labelled" (B, 2) bool,
    what is known of each answer.
    """
    shape = (len(pairs), 2)
    batch: Batch = {
        "tokens": np.zeros((*shape, max(pair.length for pair in pairs)), np.int64),
        "last": np.array([[len(pair.chosen) - 1, len(pair.rejected) - 1] for pair in pairs]),
        "first": np.array([pair.first for pair in pairs]),
        "margin": np.array([pair.margin for pair in pairs], np.float32),
        "safe": np.zeros(shape, bool),
        "labelled": np.zeros(shape, bool),
    }
    for i, pair in enumerate(pairs):
        batch["tokens"][i, 0, : len(pair.chosen)] = pair.chosen
        batch["tokens"][i, 1, : len(pair.rejected)] = pair.rejected
        if pair.safe is not None:
            batch["safe"][i], batch["labelled"][i] = pair.safe, True
    return batch


def preference_loss(
    model: RewardModel, batch: Batch, weight: float, safety_weight: float = 0.0, *, recompute: bool = False
) -> tuple[Array, Params]:
    """loss = −1/N Σ log σ(r_c − r_r − m), plus `safety_weight` times the safety loss of the answers that have a label,
    which is a mean over all 2N answers; and its gradients.

    batch: as `as_batch` makes it, some pairs of a larger one. weight: N, the pairs of the whole of it.
    """
    scores, saved = _scores(model, batch, recompute)
    xp = model.xp
    margin = xp.asarray(batch["margin"].astype(scores.dtype))
    loss, saved_ranking = ranking_loss(scores[:, 0], scores[:, 1], margin, count=weight)
    dscores = xp.stack(ranking_loss_backward(saved_ranking), axis=1)  # (B,), (B,) -> (B, 2)
    labelled = np.nonzero(batch["labelled"])
    if safety_weight and len(labelled[0]):
        safe = xp.asarray(batch["safe"][labelled])
        at = tuple(map(xp.asarray, labelled))
        more, saved_safety = safety_loss(scores[at], safe, count=2 * weight)
        loss = loss + safety_weight * more
        dscores[at] += safety_loss_backward(saved_safety, safety_weight)
    return loss, model.rewards_backward(dscores.reshape(-1), saved)  # (B, 2) -> (2B,)


def _scores(model: RewardModel, batch: Batch, recompute: bool) -> tuple[Array, Any]:
    """The scores (B, 2) of chosen and rejected answers, rows cut to the longest of these."""
    last = batch["last"].reshape(-1)  # (B, 2) -> (2B,)
    tokens = batch["tokens"].reshape(len(last), -1)[:, : last.max() + 1]  # (B, 2, T) -> (2B, T)
    scores, saved = model.rewards(tokens, last, first=batch["first"].reshape(-1), recompute=recompute)
    return scores.reshape(-1, 2), saved


def score_pairs(model: RewardModel, pairs: Sequence[EncodedPair], threads: Threads = ONE_THREAD) -> np.ndarray:
    """The scores of each pair's answers, (N, 2) in the order of `pairs`, on the host."""
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].length)  # little padding in a batch
    size = pairs_at_once(pairs)
    pieces = [order[start : start + size] for start in range(0, len(order), size)]
    scores = np.zeros((len(pairs), 2), model.dtype)

    def work(worker: int) -> None:
        for piece in pieces[worker :: threads.count]:
            found, _ = _scores(model, as_batch([pairs[i] for i in piece]), recompute=True)  # keeps the least
            scores[piece] = to_host(found)

    threads.each(work)
    return scores


def pairs_at_once(pairs: Sequence[EncodedPair]) -> int:
    """Pairs of which a thread's activations stay near its core's cache."""
    mean = sum(pair.length for pair in pairs) / max(1, len(pairs))
    return max(1, int(MICRO_BATCH_TOKENS / (2 * max(1.0, mean))))


def measure(scores: np.ndarray, pairs: Sequence[EncodedPair], safety_weight: float = 0.0) -> dict[str, float]:
    """How well scores (N, 2) agree with the people who chose.

    loss: as in training. accuracy, pairs: of all pairs, and where there are ratings of those of each. Calibration: a
    model says with σ(|r_c − r_r|) how sure it is of its choice; "right, 60 to 70 % sure" is how often it was right
    where it said that. calibration_error: how far the two are apart, the mean over pairs of |mean of σ − right| of
    their bin.
    """
    chosen, rejected = scores[:, 0], scores[:, 1]
    loss, _ = ranking_loss(chosen, rejected, np.array([pair.margin for pair in pairs], scores.dtype))
    labelled = np.array([pair.safe is not None for pair in pairs])
    if safety_weight and labelled.any():
        safe = np.array([pair.safe for pair in pairs if pair.safe is not None])
        loss = loss + safety_weight * safety_loss(scores[labelled], safe, count=2.0 * len(pairs))[0]
    measures = {"loss": float(loss), "accuracy": float(accuracy(chosen, rejected)), "pairs": float(len(pairs))}
    for rating in RATINGS:
        rated = np.array([pair.rating == rating for pair in pairs])
        if rated.any():
            measures[f"accuracy, {rating}"] = float(accuracy(chosen[rated], rejected[rated]))
            measures[f"pairs, {rating}"] = float(rated.sum())
    return measures | _calibration(chosen - rejected)


def _calibration(apart: np.ndarray) -> dict[str, float]:
    """The part of `measure` on confidence. apart: r_c − r_r, (N,)."""
    confidence, right = sigmoid(np.abs(apart)), apart > 0
    bins = np.minimum((confidence - 0.5) * 2 * BINS, BINS - 1).astype(int)  # of equal width
    measures: dict[str, float] = {}
    error = 0.0
    for i in range(BINS):
        inside = bins == i
        if inside.any():
            name = f"{50 + 50 * i // BINS} to {50 + 50 * (i + 1) // BINS} % sure"
            measures |= {f"right, {name}": float(right[inside].mean()), f"pairs, {name}": float(inside.sum())}
            error += abs(float(confidence[inside].sum()) - float(right[inside].sum()))
    return {"calibration_error": error / len(apart), **measures}


def binomial_p(right: int, pairs: int) -> float:
    """P(at least so many right of so many pairs) by tossing coins: Σ_{k ≥ right} (n over k) / 2ⁿ, exact."""
    return sum(math.comb(pairs, k) for k in range(right, pairs + 1)) / 2**pairs


class RewardTraining:
    """The stage: pairs, the ranking loss, and for the safety model the safety loss."""

    def __init__(
        self,
        data: Encoded,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        *,
        safety_weight: float = 0.0,
        recompute: bool = False,
        threads: int | None = None,
    ) -> None:
        """batch_size: pairs of a batch, at most: an epoch is cut into batches that differ by one pair. seed: of their
        order. threads: that validate, None for all cores. Raises UsageError.
        """
        if batch_size < 1 or epochs < 1:
            raise UsageError(f"batch size {batch_size}, epochs {epochs}: expected at least 1 each")
        if not safety_weight >= 0:
            raise UsageError(f"safety loss {safety_weight}: expected a weight of 0 or more")
        self.data, self.seed, self.safety_weight, self.recompute = data, seed, safety_weight, recompute
        self.threads = Threads(threads)
        self.steps_per_epoch = -(-len(data.train) // batch_size)
        self.steps = epochs * self.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """The pairs of `step` = 0 … steps - 1, sorted by length, so that those computed together need little padding;
        each epoch has every pair once, in an order drawn from (seed, epoch).
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        pairs = self.data.train
        order = np.random.default_rng([self.seed, epoch]).permutation(len(pairs))
        bounds = [len(pairs) * i // self.steps_per_epoch for i in (place, place + 1)]
        return as_batch(sorted((pairs[i] for i in order[slice(*bounds)]), key=lambda pair: pair.length))

    def weight(self, batch: Batch) -> float:
        """Every pair counts."""
        return float(len(batch["last"]))

    def loss(self, model: Any, batch: Batch, weight: float) -> tuple[Array, Params]:
        """See `preference_loss`. model: a `RewardModel`."""
        return preference_loss(model, batch, weight, self.safety_weight, recompute=self.recompute)

    def validate(self, model: Any) -> dict[str, float]:
        """See `measure`, on pairs held out."""
        pairs = self.data.held_out[:VALIDATION_PAIRS]
        if not pairs:
            return {}
        threads = self.threads if model.xp is np else ONE_THREAD
        return measure(score_pairs(model, pairs, threads), pairs, self.safety_weight)

    def sample(self, model: Any) -> str | None:
        """A pair and its scores."""
        if self.data.shown is None:
            return None
        pair, encoded = self.data.shown
        chosen, rejected = score_pairs(model, [encoded])[0]
        return (
            f"{pair.prompt[-1]['content']}\n{chosen:+.2f} (chosen) {pair.chosen}\n"
            f"{rejected:+.2f} (rejected) {pair.rejected}"
        )


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: epochs, pairs of a batch, tokens of prompt and answer, the peak of the learning rate."""

    epochs: int
    batch_size: int
    max_length: int
    lr: float

    def warmup(self, steps: int) -> int:
        """3 % of the steps, at least 5; never more than half of them."""
        return min(max(5, int(0.03 * steps)), steps // 2)


def recipe(config: LlamaConfig, lora: bool = False) -> Recipe:
    """Llama 2's, by width: one epoch, and 1e-5 at the width of 7B, 4096, more where it is smaller, in proportion.

    With LoRA ten times as much, for the adapters begin at zero. The paper's batch of 512 pairs is one in thousands of
    its data; sets that a small model reads have thousands in all, so a batch is 32.
    """
    return Recipe(1, 32, min(512, config.max_seq_len), 1e-5 * (4096 / config.dim) * (10 if lora else 1))


@dataclass(frozen=True)
class Job:
    """What to make a reward model of, on what, and how. held_out: the share of pairs that is not trained on."""

    model: RewardModel | LoraRewardModel
    tokenizer: Tokenizer
    template: ChatTemplate
    data: Preferences
    recipe: Recipe
    margin: str = NO_MARGIN
    safety_weight: float = 0.0
    held_out: float = 0.1
    seed: int = 0
    recompute: bool = False
    threads: int | None = None
    rows: int | None = None  # pairs that a thread runs at once
    save_every: int | None = None
    tensorboard: bool = False

    def settings(self) -> Settings:
        """What the numbers of the run depend on."""
        return {
            "stage": "reward",
            "model": asdict(self.model.config),
            "initial": fingerprint(self.model),
            "lora": asdict(self.model.lora) if isinstance(self.model, LoraRewardModel) else None,
            "data": self.data.files,
            "held_out": self.held_out,
            "tokenizer": self.tokenizer.sha256,
            "template": self.template.source,
            "margin": self.margin,
            "safety_weight": self.safety_weight,
            "seed": self.seed,
            **asdict(self.recipe),
        }

    def options(self, steps: int, pairs: Sequence[EncodedPair]) -> Options:
        """Of the loop, for so many steps."""
        return Options(
            steps,
            self.recipe.lr,
            self.recipe.warmup(steps),
            micro_batch=self.rows or pairs_at_once(pairs),
            threads=self.threads,
            validate_every=max(1, steps // 5),
            save_every=self.save_every or max(1, steps // 10),
            tensorboard=self.tensorboard,
        )


def job(
    model: str,
    data: Preferences,
    *,
    template: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    lr: float | None = None,
    lora: int | None = None,
    lora_alpha: float | None = None,
    likelihood: bool = False,
    seed: int = 0,
    device: Device = "cpu",
    **how: Any,
) -> Job:
    """The job of making a reward model of the one called `model`; None stands for what it has, or what `recipe` says.

    template: the name of a built-in one. lora: the rank of adapters, which are trained with the head, None to train all
    weights; lora_alpha: None for twice that. likelihood: see `reward_model`. how: fields of `Job`. Raises UsageError,
    and MinillamaError where the model cannot be loaded.
    """
    if likelihood and lora is not None:
        raise UsageError("reward: expected either LoRA or the likelihood, found both")
    check_margin(how.get("margin", NO_MARGIN))
    llama, tokenizer, own = load_initial(model, device)
    reward_model = RewardModel.from_llama(llama, seed, likelihood)
    if lora is not None:
        alpha = 2 * lora if lora_alpha is None else lora_alpha
        config = LoraConfig(rank=lora, alpha=alpha, also=(SCORE,))
        reward_model = LoraRewardModel.wrap(reward_model, config, seed=seed, base=model)  # type: ignore[assignment]
    usual = recipe(llama.config, lora is not None)
    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "max_length": max_length, "lr": lr}
    chosen = replace(usual, **{name: value for name, value in given.items() if value is not None})
    chat_template = builtin(template) if template else own or suited(tokenizer)
    return Job(reward_model, tokenizer, chat_template, data, chosen, seed=seed, **how)


def train_reward_model(
    job: Job, folder: RunFolder, comm: Communicator, overwrite: bool = False
) -> tuple[Progress, Encoded | None]:
    """Do the job in `folder`, or what of it is left.

    Returns where the run is, and the data; None where it had ended before. Raises UsageError where the folder holds
    another run.
    """
    share_of_rows(comm, job.recipe.batch_size)  # raises before anything is written
    if job.recipe.max_length > job.model.config.max_seq_len:
        raise UsageError(
            f"max length {job.recipe.max_length}: expected at most the context of {job.model.config.max_seq_len}"
        )
    settings = job.settings()
    with folder.begun(settings, overwrite) if comm.rank == 0 else nullcontext():
        comm.barrier()
        if result := folder.result():
            return Progress.from_json(folder.record, result), None
        data = encode_all(job.data, job.template, job.tokenizer, job.recipe.max_length, job.margin, job.held_out)
        stage = RewardTraining(
            data,
            job.recipe.batch_size,
            job.recipe.epochs,
            job.seed,
            safety_weight=job.safety_weight,
            recompute=job.recompute,
            threads=job.threads,
        )
        progress = train(
            job.model,
            stage,
            job.options(stage.steps, data.train),
            folder,
            settings,
            tokenizer=job.tokenizer,
            chat_template=job.template,
            comm=comm,
        )
        return progress, data
