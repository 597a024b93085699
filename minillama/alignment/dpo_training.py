"""Training a chat model on preferences as they are, without a reward model: direct preference optimization.

The reference is the model as it is at the beginning. It is never needed again once it has said how likely it finds each
answer: these numbers are computed once, and kept beside the run for when it goes on after a stop.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minillama import layers
from minillama.alignment.dpo import dpo_loss, dpo_loss_backward
from minillama.alignment.preferences import Pair, Preferences
from minillama.alignment.ranking import accuracy
from minillama.alignment.reward import Recipe
from minillama.backend import Array, Device, to_host
from minillama.chat import ChatTemplate, Dialogue, Message
from minillama.config import LlamaConfig
from minillama.data.dialogues import ChatExample
from minillama.errors import MinillamaError, UsageError
from minillama.generate import GREEDY, generate
from minillama.lora import LoraConfig, LoraLlama
from minillama.model import Llama
from minillama.params import Params, accumulate
from minillama.tokenizer import Tokenizer
from minillama.training.distributed import Communicator, share_of_rows
from minillama.training.finetune import SAMPLE_TOKENS, chat_template, encode
from minillama.training.loop import Options, Progress, train
from minillama.training.pretrain import MICRO_BATCH_TOKENS, fingerprint, load_initial
from minillama.training.run_folder import RunFolder, Settings
from minillama.training.threads import ONE_THREAD, Threads
from minillama.training.workers import Batch
from minillama.weights.writing import replaced_file

BETA = 0.1
VALIDATION_PAIRS = 512  # at most, the first of those held out
REFERENCE = "reference.npz"  # in the run's folder


@dataclass(frozen=True)
class EncodedPair:
    """A pair as tokens, the loss masks true on the answers. reference: the log-probability of each answer under the
    reference; None until it has been asked.
    """

    chosen: Dialogue
    rejected: Dialogue
    reference: tuple[float, float] | None = None

    @property
    def length(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.chosen.tokens), len(self.rejected.tokens))


@dataclass
class Encoded:
    """Pairs as tokens, and how many could not be taken. request: the prompt of the first one held out."""

    train: list[EncodedPair] = field(default_factory=list)
    held_out: list[EncodedPair] = field(default_factory=list)
    request: list[Message] = field(default_factory=list)
    too_long: int = 0
    refused: int = 0

    def notices(self) -> list[str]:
        """What a user should know, a line each."""
        told = {"too long": self.too_long, "refused by the chat template": self.refused}
        return [f"{count:,} pairs left out: {why}" for why, count in told.items() if count]


def encode_pair(pair: Pair, template: ChatTemplate, tokenizer: Tokenizer) -> EncodedPair:
    """Both answers with their prompt. Raises UsageError for what the template cannot hold."""
    earlier = sum(message["role"] == "assistant" for message in pair.prompt)
    learned = (*(False,) * earlier, True)

    def dialogue(answer: str) -> Dialogue:
        messages = (*pair.prompt, {"role": "assistant", "content": answer})
        return encode(ChatExample(messages, learned, "train"), template, tokenizer)

    return EncodedPair(dialogue(pair.chosen), dialogue(pair.rejected))


def encode_all(
    data: Preferences, template: ChatTemplate, tokenizer: Tokenizer, max_length: int, held_out: float
) -> Encoded:
    """All pairs in tokens, those longer than `max_length` left out. Raises MinillamaError where none is left to train
    on.
    """
    from tqdm import tqdm

    encoded = Encoded()
    splits = zip((encoded.train, encoded.held_out), data.split(held_out), strict=True)
    with tqdm(total=len(data.pairs), desc="encoding", unit=" pairs", disable=None, delay=2, leave=False) as bar:
        for into, pairs in splits:
            for pair in pairs:
                bar.update()
                try:
                    tokens = encode_pair(pair, template, tokenizer)
                except UsageError:
                    encoded.refused += 1
                    continue
                if tokens.length > max_length:
                    encoded.too_long += 1
                    continue
                if into is encoded.held_out and not encoded.request:
                    encoded.request = list(pair.prompt)
                into.append(tokens)
    if not encoded.train:
        why = "; ".join(encoded.notices()) or "no pair is there to train on"
        raise MinillamaError(f"nothing to learn: {why}")
    return encoded


def as_batch(pairs: Sequence[EncodedPair]) -> Batch:
    """Pairs as arrays, chosen before rejected: "tokens" (B, 2, T) padded on the right with token 0, "loss_mask"
    (B, 2, T) true on the answers, "reference" (B, 2) their log-probabilities under the reference, 0 if not known.
    """
    shape = (len(pairs), 2, max(pair.length for pair in pairs))
    batch: Batch = {
        "tokens": np.zeros(shape, np.int64),
        "loss_mask": np.zeros(shape, bool),
        "reference": np.array([pair.reference or (0.0, 0.0) for pair in pairs]),
    }
    for i, pair in enumerate(pairs):
        for j, dialogue in enumerate((pair.chosen, pair.rejected)):
            batch["tokens"][i, j, : len(dialogue.tokens)] = dialogue.tokens
            batch["loss_mask"][i, j, : len(dialogue.tokens)] = dialogue.loss_mask
    return batch


def answer_logprobs(model: Llama, batch: Batch, *, recompute: bool = False) -> tuple[Array, Any]:
    """log π(answer | prompt) of each answer, the sum over its tokens and its end token: (B, 2), and what
    `answer_logprobs_backward` needs.

    batch: as `as_batch` makes it; it is cut to the longest of its texts.
    """
    B, _, T = batch["tokens"].shape
    mask = batch["loss_mask"].reshape(2 * B, T)  # (B, 2, T) -> (2B, T)
    T = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1
    tokens, mask = batch["tokens"].reshape(2 * B, -1)[:, :T], mask[:, 1:T]
    xp = model.xp
    hidden, saved = model.forward(tokens[:, :-1], recompute=recompute)
    logprobs, saved_logprobs = layers.token_logprobs(model.logits(hidden), xp.asarray(tokens[:, 1:]), xp.asarray(mask))
    return logprobs.sum(axis=1).reshape(B, 2), (saved, hidden, saved_logprobs, logprobs.shape)


def answer_logprobs_backward(model: Llama, dlogprobs: Array, saved: tuple) -> Params:
    """Gradient of every trained parameter, given that of `answer_logprobs` (B, 2)."""
    saved_forward, hidden, saved_logprobs, shape = saved
    dy = model.xp.broadcast_to(dlogprobs.reshape(-1, 1), shape)  # (B, 2) -> (2B, T - 1): each token counts once
    dlogits = layers.token_logprobs_backward(dy, saved_logprobs, overwrite=True)
    dhidden, head_grads = model.logits_backward(dlogits, hidden)
    return accumulate(model.backward(dhidden, saved_forward), head_grads)


def preference_loss(
    model: Llama, batch: Batch, weight: float, beta: float = BETA, *, recompute: bool = False
) -> tuple[Array, Params]:
    """DPO's loss of some pairs of a larger batch, and its gradients. weight: the pairs of the whole of it."""
    logprobs, saved = answer_logprobs(model, batch, recompute=recompute)
    xp = model.xp
    reference = xp.asarray(batch["reference"].astype(logprobs.dtype))
    loss, saved_loss = dpo_loss(
        logprobs[:, 0], logprobs[:, 1], reference[:, 0], reference[:, 1], beta=beta, count=weight
    )
    dlogprobs = xp.stack(dpo_loss_backward(saved_loss), axis=1)  # (B,), (B,) -> (B, 2)
    return loss, answer_logprobs_backward(model, dlogprobs, saved)


def logprobs_of(model: Llama, pairs: Sequence[EncodedPair], threads: Threads = ONE_THREAD) -> np.ndarray:
    """log π of each pair's answers, (N, 2) in the order of `pairs`, on the host."""
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].length)  # little padding in a batch
    size = pairs_at_once(pairs)
    pieces = [order[start : start + size] for start in range(0, len(order), size)]
    found = np.zeros((len(pairs), 2), model.dtype)

    def work(worker: int) -> None:
        for piece in pieces[worker :: threads.count]:
            logprobs, _ = answer_logprobs(model, as_batch([pairs[i] for i in piece]), recompute=True)  # keeps the least
            found[piece] = to_host(logprobs)

    threads.each(work)
    return found


def pairs_at_once(pairs: Sequence[EncodedPair]) -> int:
    """Pairs of which a thread's activations stay near its core's cache."""
    mean = sum(pair.length for pair in pairs) / max(1, len(pairs))
    return max(1, int(MICRO_BATCH_TOKENS / (2 * max(1.0, mean))))


def with_reference(pairs: Sequence[EncodedPair], logprobs: np.ndarray) -> list[EncodedPair]:
    """The pairs with their log-probabilities (N, 2) under the reference."""
    return [
        replace(pair, reference=(float(chosen), float(rejected)))
        for pair, (chosen, rejected) in zip(pairs, logprobs, strict=True)
    ]


def measure(logprobs: np.ndarray, reference: np.ndarray, beta: float) -> dict[str, float]:
    """How well the reward that a model implies agrees with the people who chose. logprobs, reference: (N, 2).

    loss: as in training. accuracy: the share of pairs whose chosen answer has the higher reward. margin: by how much it
    is higher, the mean; chosen_reward and rejected_reward: the two it is the difference of. Rewards are
    β log(π / reference), so 0 at the beginning.
    """
    loss, _ = dpo_loss(*logprobs.T, *reference.T, beta=beta)
    rewards = beta * (logprobs - reference)
    chosen, rejected = rewards.T
    return {
        "loss": float(loss),
        "accuracy": float(accuracy(chosen, rejected)),
        "margin": float((chosen - rejected).mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
    }


class DPOTraining:
    """The stage: pairs with what the reference says of them, DPO's loss."""

    def __init__(
        self,
        data: Encoded,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        *,
        beta: float = BETA,
        recompute: bool = False,
        threads: int | None = None,
        show: tuple[ChatTemplate, Tokenizer] | None = None,
    ) -> None:
        """data: its pairs with a reference. batch_size: pairs of a batch, at most: an epoch is cut into batches that
        differ by one pair. seed: of their order. threads: that validate, None for all cores. show: what samples need.
        Raises UsageError.
        """
        if batch_size < 1 or epochs < 1:
            raise UsageError(f"batch size {batch_size}, epochs {epochs}: expected at least 1 each")
        if any(pair.reference is None for pair in (*data.train, *data.held_out)):
            raise UsageError("DPO: expected the reference's log-probabilities of all pairs, found some without")
        self.data, self.seed, self.beta, self.recompute, self.show = data, seed, beta, recompute, show
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
        return float(len(batch["tokens"]))

    def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
        """See `preference_loss`."""
        return preference_loss(model, batch, weight, self.beta, recompute=self.recompute)

    def validate(self, model: Llama) -> dict[str, float]:
        """See `measure`, on pairs held out."""
        pairs = self.data.held_out[:VALIDATION_PAIRS]
        if not pairs:
            return {}
        logprobs = logprobs_of(model, pairs, self.threads if model.xp is np else ONE_THREAD)
        return measure(logprobs, as_batch(pairs)["reference"].astype(logprobs.dtype), self.beta)

    def sample(self, model: Llama) -> str | None:
        """What the model answers to the first prompt held out, greedily."""
        if self.show is None or not self.data.request:
            return None
        template, tokenizer = self.show
        tokens = template.encode(self.data.request, tokenizer).tokens
        room = model.config.max_seq_len - len(tokens)
        if room < 1:
            return None
        (answer,) = generate(
            model,
            [tokens],
            max_new_tokens=min(SAMPLE_TOKENS, room),
            sampling=GREEDY,
            stop_ids=tokenizer.stop_ids,
            tokenizer=tokenizer,
        )
        return f"{self.data.request[-1]['content']} → {answer.text}"


def recipe(config: LlamaConfig, lora: bool = False) -> Recipe:
    """One epoch, batches of 32 pairs, and 1e-6 at the width of 7B, 4096, more where it is smaller, in proportion.

    That is what the authors of DPO took for 2.8B to 6B. With LoRA ten times as much, for the adapters begin at zero.
    """
    return Recipe(1, 32, min(512, config.max_seq_len), 1e-6 * (4096 / config.dim) * (10 if lora else 1))


@dataclass(frozen=True)
class Job:
    """What to train, on what, and how. held_out: the share of pairs that is not trained on."""

    model: Llama
    tokenizer: Tokenizer
    template: ChatTemplate
    data: Preferences
    recipe: Recipe
    beta: float = BETA
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
            "stage": "dpo",
            "model": asdict(self.model.config),
            "initial": fingerprint(self.model),
            "lora": asdict(self.model.lora) if isinstance(self.model, LoraLlama) else None,
            "data": self.data.files,
            "held_out": self.held_out,
            "tokenizer": self.tokenizer.sha256,
            "template": self.template.source,
            "beta": self.beta,
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
    seed: int = 0,
    device: Device = "cpu",
    **how: Any,
) -> Job:
    """The job of training the chat model called `model`; None stands for what it has, or what `recipe` says.

    template: the name of a built-in one. lora: the rank of adapters, None to train all weights; lora_alpha: None for
    twice that. how: fields of `Job`. Raises UsageError, and MinillamaError where the model cannot be loaded.
    """
    if not how.get("beta", BETA) > 0:
        raise UsageError(f"DPO beta: expected a positive number, found {how['beta']}")
    if lora is None and lora_alpha is not None:
        raise UsageError(f"LoRA alpha {lora_alpha}: expected a rank with it, found none")
    llama, tokenizer, own = load_initial(model, device)
    if lora is not None:
        alpha = 2 * lora if lora_alpha is None else lora_alpha
        llama = LoraLlama.wrap(llama, LoraConfig(rank=lora, alpha=alpha), seed=seed, base=model)
    usual = recipe(llama.config, lora is not None)
    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "max_length": max_length, "lr": lr}
    chosen = replace(usual, **{name: value for name, value in given.items() if value is not None})
    return Job(llama, tokenizer, chat_template(template, own, tokenizer), data, chosen, seed=seed, **how)


def train_dpo(
    job: Job, folder: RunFolder, comm: Communicator, overwrite: bool = False
) -> tuple[Progress, Encoded | None]:
    """Do the job in `folder`, or what of it is left.

    Returns where the run is, and the data; None where it had ended before. Raises UsageError where the folder holds
    another run.
    """
    share_of_rows(comm, job.recipe.batch_size)  # what can be wrong is said before anything is written
    job.options(1, [])
    if job.recipe.max_length > job.model.config.max_seq_len:
        raise UsageError(
            f"max length {job.recipe.max_length}: expected at most the context of {job.model.config.max_seq_len}"
        )
    settings = job.settings()
    with folder.begun(settings, overwrite) if comm.rank == 0 else nullcontext():
        comm.barrier()
        if result := folder.result():
            return Progress.from_json(folder.record, result), None
        data = encode_all(job.data, job.template, job.tokenizer, job.recipe.max_length, job.held_out)
        if comm.rank > 0:
            comm.barrier()  # rank 0 asks the reference
        _ask_reference(job, data, folder.path / REFERENCE)
        if comm.rank == 0:
            comm.barrier()
        stage = DPOTraining(
            data,
            job.recipe.batch_size,
            job.recipe.epochs,
            job.seed,
            beta=job.beta,
            recompute=job.recompute,
            threads=job.threads,
            show=(job.template, job.tokenizer),
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


def _ask_reference(job: Job, data: Encoded, path: Path) -> None:
    """Give all pairs the reference's log-probabilities: those in the file, or, where there is none yet, what the job's
    model says, which is as it was at the beginning; then they are put there.
    """
    pairs = [*data.train, *data.held_out]
    if not path.is_file():
        logprobs = logprobs_of(job.model, pairs, Threads(job.threads if job.model.xp is np else 1))
        if not np.isfinite(logprobs).all():
            raise MinillamaError("the reference: expected finite log-probabilities, found NaN or infinite ones")
        with replaced_file(path) as partial, partial.open("wb") as file:
            np.savez(file, logprobs=logprobs)
    try:
        with np.load(path) as saved:
            logprobs = saved["logprobs"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise MinillamaError(
            f"{path}: expected log-probabilities of a reference, found something else ({error})"
        ) from None
    if logprobs.shape != (len(pairs), 2):
        raise MinillamaError(f"{path}: expected log-probabilities of {len(pairs)} pairs, found {logprobs.shape}")
    asked = with_reference(pairs, logprobs)
    data.train, data.held_out = asked[: len(data.train)], asked[len(data.train) :]
