"""Finetuning on dialogues: next-token prediction on what the assistant says, and on nothing else (paper, section 3.1).

Supervised finetuning is this on dialogues that people wrote; Ghost Attention, rejection sampling and context
distillation are this on dialogues that a model wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from minillama.backend import Array, Device
from minillama.chat import ChatTemplate, Dialogue, Message, builtin, suited
from minillama.config import LlamaConfig
from minillama.data.dialogues import ChatExample, DialogueSource
from minillama.errors import MinillamaError, UsageError
from minillama.generate import GREEDY, generate
from minillama.lora import LoraConfig, LoraLlama
from minillama.model import Llama
from minillama.params import Params
from minillama.tokenizer import Tokenizer
from minillama.training.distributed import Communicator, share_of_rows
from minillama.training.loop import Options, Progress, train
from minillama.training.losses import next_token_loss, summed_loss
from minillama.training.packing import PackedDialogues, Packing, as_batch, check_packing, pack
from minillama.training.pretrain import fingerprint, load_initial, micro_batch
from minillama.training.run_folder import RunFolder, Settings
from minillama.training.threads import ONE_THREAD, Threads
from minillama.training.workers import Batch

VALIDATION_DIALOGUES = 256  # at most, the first of the split
SAMPLE_TOKENS = 80


@dataclass(frozen=True)
class Encoded:
    """Dialogues as tokens, and how many could not be taken as they are.

    train, validation: what is learned and measured. request: the beginning of the first dialogue held out, up to what
    is answered there; empty where there is none. cut: dialogues that lost their last turns, or the end of the only
    one, because they are longer than the rows. empty: those left out because nothing in them is learned. refused:
    those left out because the chat template cannot hold them; why: the first of these, and the reason.
    """

    train: list[Dialogue]
    validation: list[Dialogue]
    request: list[Message]
    cut: int
    empty: int
    refused: int = 0
    why: str = ""

    def notices(self) -> list[str]:
        """What a user should know, a line each."""
        said = []
        if self.cut:
            said.append(f"{self.cut} dialogues are longer than a row: cut there")
        if self.empty:
            said.append(f"{self.empty} dialogues left out: no token of theirs is learned")
        if self.refused:
            said.append(f"{self.refused} dialogues left out, the first of them {self.why}")
        return said


def encode(example: ChatExample, template: ChatTemplate, tokenizer: Tokenizer) -> Dialogue:
    """The dialogue in tokens, its loss mask true on the answers that are learned and their end tokens."""
    dialogue = template.encode(example.messages, tokenizer, add_generation_prompt=False)
    if all(example.learned):
        return dialogue
    mask = np.array(dialogue.loss_mask, bool)
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    answer = np.cumsum(begins) - 1  # which answer a token of the mask belongs to
    if begins.sum() != len(example.learned):
        raise MinillamaError(
            f"chat template: expected {len(example.learned)} answers in its loss mask, found {begins.sum()}"
        )
    return Dialogue(dialogue.tokens, (mask & np.array(example.learned)[answer]).tolist())


def encode_all(source: DialogueSource, template: ChatTemplate, tokenizer: Tokenizer, size: int) -> Encoded:
    """All dialogues of a source, each at most `size` + 1 tokens. Raises MinillamaError where nothing can be learned."""
    from tqdm import tqdm

    splits: dict[str, list[Dialogue]] = {"train": [], "validation": []}
    request: list[Message] = []
    cut = empty = refused = 0
    why = ""
    for example in tqdm(source.examples(), "encoding", unit=" dialogues", disable=None, delay=2, leave=False):
        try:
            dialogue = encode(example, template, tokenizer)
        except UsageError as error:  # published data have turns out of order, and tags in their texts
            refused += 1
            why = why or f"{example.where or 'a dialogue'}: {error}"
            continue
        if len(dialogue.tokens) > size + 1:
            dialogue = Dialogue(dialogue.tokens[: size + 1], dialogue.loss_mask[: size + 1])
            cut += 1
        if any(dialogue.loss_mask[1:]):
            splits[example.split].append(dialogue)
            if example.split == "validation" and not request:
                answer = next(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
                request = list(example.messages[:answer])
        else:
            empty += 1
    if not splits["train"]:
        found = [f"{empty} of which no token counts"] if empty else []
        found += [f"{refused} that the chat template cannot hold ({why})"] if refused else []
        found += [f"{len(splits['validation'])} held out"] if splits["validation"] else []
        raise MinillamaError(f"nothing to learn: expected dialogues to train on, found {', '.join(found) or 'none'}")
    return Encoded(splits["train"], splits["validation"], request, cut, empty, refused, why)


class Finetuning:
    """The stage: dialogues, the mean cross-entropy of the tokens that the assistant said."""

    def __init__(
        self,
        data: Encoded,
        size: int,
        batch_size: int,
        epochs: int,
        seed: int = 0,
        *,
        packing: Packing = "packed",
        recompute: bool = False,
        threads: int | None = None,
        show: tuple[ChatTemplate, Tokenizer] | None = None,
    ) -> None:
        """size, batch_size: places and number of a batch's rows. seed: of their order. show: what samples need.
        threads: that validate, None for all cores.
        """
        self.data, self.size, self.recompute, self.show = data, size, recompute, show
        self.threads = Threads(threads)
        self.batches = PackedDialogues(data.train, size, batch_size, epochs, seed, packing)

    def batch(self, step: int) -> Batch:
        """Rows of the training split."""
        return self.batches.batch(step)

    def weight(self, batch: Batch) -> float:
        """Every token that is learned counts."""
        return float(batch["loss_mask"].sum())

    def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
        """Cross-entropy in nats."""
        return next_token_loss(
            model,
            batch["tokens"],
            batch["targets"],
            loss_mask=batch["loss_mask"],
            starts=batch["starts"],
            count=weight,
            recompute=self.recompute,
        )

    def validate(self, model: Llama) -> dict[str, float]:
        """Of dialogues held out: loss (nats a token that is learned) and perplexity."""
        dialogues = self.data.validation[:VALIDATION_DIALOGUES]
        if not dialogues:
            return {}
        threads = self.threads if model.xp is np else ONE_THREAD
        batches = list(_in_order(dialogues, self.size))
        measured = threads.each(
            lambda worker: [summed_loss(model, batch) for batch in batches[worker :: threads.count]]
        )
        loss = math.fsum(chain(*measured)) / sum(int(batch["loss_mask"].sum()) for batch in batches)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    def sample(self, model: Llama) -> str | None:
        """What the model answers, greedily; the same while the model is the same."""
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


def _in_order(dialogues: Sequence[Dialogue], size: int) -> Iterator[Batch]:
    """All dialogues once, packed, a micro-batch at a time."""
    rows = pack([len(dialogue.tokens) - 1 for dialogue in dialogues], range(len(dialogues)), size)
    count = micro_batch(size)
    for start in range(0, len(rows), count):
        yield as_batch(dialogues, rows[start : start + count], size)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast: epochs, rows and places of a batch, the peak of the learning rate, the share of the steps
    that lead up to it.
    """

    epochs: int
    batch_size: int
    size: int
    lr: float
    warmup: float = 0.03


def recipe(config: LlamaConfig, lora: bool = False) -> Recipe:
    """Llama 2's, by width C: two epochs, and a rate of 2e-5 at the width of 7B, 4096, that grows with (4096 / C)^1.5 to
    3e-3 at most; three times as much with LoRA, whose adapters begin at zero.

    Rows are 1,024 places, or what the context has; 64 of the paper's rows of 4,096 are as many tokens as a small model
    reads in all, so a batch is 4.
    """
    lr = 2e-5 * (4096 / config.dim) ** 1.5 * (3 if lora else 1)
    return Recipe(2, 4, min(1024, config.max_seq_len), min(lr, 3e-3))


@dataclass(frozen=True)
class Job:
    """What to finetune, on what, and how. stage: what the run is called in its record."""

    model: Llama
    tokenizer: Tokenizer
    template: ChatTemplate
    source: DialogueSource
    recipe: Recipe
    seed: int = 0
    packing: Packing = "packed"
    recompute: bool = False
    stage: str = "sft"
    threads: int | None = None
    rows: int | None = None  # that a thread runs at once
    save_every: int | None = None
    tensorboard: bool = False

    def settings(self) -> Settings:
        """What the numbers of the run depend on."""
        return {
            "stage": self.stage,
            "model": asdict(self.model.config),
            "initial": fingerprint(self.model),
            "lora": asdict(self.model.lora) if isinstance(self.model, LoraLlama) else None,
            "data": self.source.identity(),
            "tokenizer": self.tokenizer.sha256,
            "template": self.template.source,
            "packing": self.packing,
            "seed": self.seed,
            **asdict(self.recipe),
        }

    def options(self, steps: int) -> Options:
        """Of the loop, for so many steps."""
        tenth = max(1, steps // 10)
        return Options(
            steps,
            self.recipe.lr,
            int(self.recipe.warmup * steps),
            micro_batch=self.rows or micro_batch(self.recipe.size),
            threads=self.threads,
            validate_every=max(5, tenth),  # a short run would spend more time on it than on its steps
            save_every=self.save_every or tenth,
            tensorboard=self.tensorboard,
        )


def job(
    model: str,
    source: DialogueSource,
    *,
    template: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    size: int | None = None,
    lr: float | None = None,
    lora: int | None = None,
    lora_alpha: float | None = None,
    seed: int = 0,
    device: Device = "cpu",
    **how: Any,
) -> Job:
    """The job of finetuning the model called `model`; None stands for what it has, or what `recipe` says.

    template: the name of a built-in one. lora: the rank of adapters, None to train all weights; lora_alpha: None for
    twice that. how: fields of `Job`. Raises UsageError, and MinillamaError where the model cannot be loaded.
    """
    if lora is None and lora_alpha is not None:
        raise UsageError(f"LoRA alpha {lora_alpha}: expected a rank with it, found none")
    llama, tokenizer, own = load_initial(model, device)
    if lora is not None:
        alpha = 2 * lora if lora_alpha is None else lora_alpha
        llama = LoraLlama.wrap(llama, LoraConfig(rank=lora, alpha=alpha), seed=seed, base=model)
    usual = recipe(llama.config, lora is not None)
    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "size": size, "lr": lr}
    chosen = replace(usual, **{name: value for name, value in given.items() if value is not None})
    return Job(llama, tokenizer, chat_template(template, own, tokenizer), source, chosen, seed, **how)


def chat_template(name: str | None, own: ChatTemplate | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The built-in template called `name`; None: the model's own, or what suits its vocabulary."""
    return builtin(name) if name else own or suited(tokenizer)


def finetune(
    job: Job, folder: RunFolder, comm: Communicator, overwrite: bool = False
) -> tuple[Progress, Encoded | None]:
    """Do the job in `folder`, or what of it is left.

    Returns where the run is, and the data; None where it had ended before. Raises UsageError where the folder holds
    another run.
    """
    share_of_rows(comm, job.recipe.batch_size)  # what can be wrong is said before anything is written, or sampled
    job.options(steps=1)
    check_packing(job.packing)
    if job.recipe.size > job.model.config.max_seq_len:
        raise UsageError(
            f"rows of {job.recipe.size} tokens: expected at most the context of {job.model.config.max_seq_len}"
        )
    settings = job.settings()
    with folder.begun(settings, overwrite) if comm.rank == 0 else nullcontext():
        comm.barrier()
        if result := folder.result():
            return Progress.from_json(folder.record, result), None
        if comm.rank > 0:
            comm.barrier()  # rank 0 may have dialogues to write first
        data = encode_all(job.source, job.template, job.tokenizer, job.recipe.size)
        if comm.rank == 0:
            comm.barrier()
        stage = Finetuning(
            data,
            job.recipe.size,
            job.recipe.batch_size,
            job.recipe.epochs,
            job.seed,
            packing=job.packing,
            recompute=job.recompute,
            threads=job.threads,
            show=(job.template, job.tokenizer),
        )
        progress = train(
            job.model,
            stage,
            job.options(stage.batches.steps),
            folder,
            settings,
            tokenizer=job.tokenizer,
            chat_template=job.template,
            comm=comm,
        )
        return progress, data
