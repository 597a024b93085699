"""Pretraining: next-token prediction on all tokens of a text, from fresh weights or from a model that is there."""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from rich.console import Console

from minillama import catalog, weights
from minillama import config as shapes
from minillama.backend import Array, Device, to_device, to_host
from minillama.chat import TAGS, ChatTemplate
from minillama.config import LlamaConfig
from minillama.data import TokenData, documents, is_prepared, tokenize
from minillama.data.sources import find_source
from minillama.errors import MinillamaError
from minillama.generate import Sampling, generate
from minillama.model import Llama
from minillama.params import Params
from minillama.tokenizer import Tokenizer, from_sentencepiece, save_sentencepiece
from minillama.tokenizer import train as train_tokenizer
from minillama.training.batches import Windows, in_order
from minillama.training.distributed import Communicator, share_of_rows
from minillama.training.loop import Options, Progress, train
from minillama.training.losses import next_token_loss, summed_loss
from minillama.training.run_folder import RunFolder, Settings
from minillama.training.threads import ONE_THREAD, Threads
from minillama.training.workers import Batch

VALIDATION_TOKENS = 1 << 16  # of the held-out split, from its beginning; fewer where it has fewer
MICRO_BATCH_TOKENS = 1024
SAMPLE = Sampling(temperature=0.8, top_p=0.95)
SAMPLE_TOKENS = 120


class Pretraining:
    """The stage: windows of a text, the mean cross-entropy of every token that follows."""

    def __init__(
        self,
        data: TokenData,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        *,
        prompt: str = "",
        recompute: bool = False,
        threads: int | None = None,
    ) -> None:
        """seq_len, batch_size: of a batch's windows. seed: of their order, and of the samples. prompt: what samples
        begin with. recompute: see `Llama.forward`. threads: that validate, None for all cores. Raises MinillamaError
        where the text is too short.
        """
        self.data, self.seed, self.prompt, self.recompute = data, seed, prompt, recompute
        self.threads = Threads(threads)
        self.windows = Windows(data.train, seq_len, batch_size, seed)

    def batch(self, step: int) -> Batch:
        """Windows of the training split."""
        return self.windows.batch(step)

    def weight(self, batch: Batch) -> float:
        """Every token counts."""
        return float(batch["targets"].size)

    def loss(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
        """Cross-entropy in nats."""
        tokens, targets = batch["tokens"], batch["targets"]
        return next_token_loss(model, tokens, targets, count=weight, recompute=self.recompute)

    def validate(self, model: Llama) -> dict[str, float]:
        """Of the held-out split: loss (nats a token), nats_per_byte (of its text in UTF-8), perplexity."""
        split, seq_len = self.data.validation, self.windows.seq_len
        if len(split) < 2:
            return {}
        rows = micro_batch(seq_len)
        batches = [*islice(in_order(split, seq_len, rows), -(-VALIDATION_TOKENS // (rows * seq_len)))]
        threads = self.threads if model.xp is np else ONE_THREAD
        measured = threads.each(
            lambda worker: [summed_loss(model, batch) for batch in batches[worker :: threads.count]]
        )
        counted = sum(int(batch["loss_mask"].sum()) for batch in batches)
        loss = math.fsum(chain(*measured)) / counted
        return {"loss": loss, "nats_per_byte": loss * len(split) / split.bytes, "perplexity": math.exp(min(loss, 700))}

    def sample(self, model: Llama) -> str:
        """A text that begins with the prompt; the same while the model is the same."""
        tokenizer = self.data.tokenizer
        tokens = tokenizer.encode(self.prompt, bos=True)
        room = model.config.max_seq_len - len(tokens)
        completion = generate(
            model,
            [tokens],
            max_new_tokens=max(1, min(SAMPLE_TOKENS, room)),
            sampling=SAMPLE,
            seed=self.seed,
            stop_ids=tokenizer.stop_ids,
            tokenizer=tokenizer,
        )[0]
        return self.prompt + completion.text


@dataclass(frozen=True)
class Recipe:
    """How a size is pretrained: steps, rows and tokens of a batch, peak and warm-up of the learning rate."""

    steps: int
    batch_size: int
    seq_len: int
    lr: float
    warmup_steps: int

    def changed(
        self, steps: int | None, batch_size: int | None, seq_len: int | None, lr: float | None, warmup_steps: int | None
    ) -> Recipe:
        """With what is not None in place of its own; the warm-up of a shorter run is at most a tenth of it."""
        steps = self.steps if steps is None else steps
        if warmup_steps is None:
            warmup_steps = self.warmup_steps if steps >= self.steps else min(self.warmup_steps, steps // 10)
        return Recipe(
            steps,
            self.batch_size if batch_size is None else batch_size,
            self.seq_len if seq_len is None else seq_len,
            self.lr if lr is None else lr,
            warmup_steps,
        )


RECIPES = {
    "mini": Recipe(steps=1800, batch_size=8, seq_len=256, lr=4e-3, warmup_steps=100),  # 3.7M tokens
    "small": Recipe(steps=10_000, batch_size=64, seq_len=512, lr=1e-3, warmup_steps=500),  # 330M tokens
    "base": Recipe(steps=20_000, batch_size=128, seq_len=1024, lr=6e-4, warmup_steps=1000),  # 2.6B tokens
}


def recipe(preset: str | None, config: LlamaConfig) -> Recipe:
    """The recipe of a preset; of any other size that of mini, its rate falling with the width's square root."""
    if preset in RECIPES:
        return RECIPES[preset]
    mini = RECIPES["mini"]
    return replace(mini, lr=mini.lr * math.sqrt(shapes.PRESETS["mini"].dim / config.dim))


def micro_batch(seq_len: int) -> int:
    """Rows of which a thread's activations stay near its core's cache: about 1,024 tokens."""
    return max(1, MICRO_BATCH_TOKENS // seq_len)


@dataclass(frozen=True)
class Job:
    """What to pretrain, on what, and how.

    config: of the model. source: prepared data, or what `documents` reads. tokenizer: None to train one on the source,
    of the model's vocabulary. initial: the model to go on from, None for fresh weights. seed: of the weights, the
    order, the samples.
    """

    config: LlamaConfig
    source: str
    recipe: Recipe
    options: Options
    seed: int = 0
    prompt: str = ""
    recompute: bool = False
    tokenizer: Tokenizer | None = None
    initial: Llama | None = None
    device: Device = "cpu"

    def settings(self) -> Settings:
        """What the numbers of the run depend on."""
        return {
            "stage": "pretrain",
            "model": asdict(self.config),
            "initial": None if self.initial is None else fingerprint(self.initial),
            "data": self._data(),
            "tokenizer": None if self.tokenizer is None else self.tokenizer.sha256,
            "seq_len": self.recipe.seq_len,
            "batch_size": self.recipe.batch_size,
            "seed": self.seed,
            **self.options.settings(),
        }

    def _data(self) -> dict[str, Any]:
        return TokenData(self.source).inputs if is_prepared(self.source) else find_source(self.source).identity()


def load_initial(name: str, device: Device) -> tuple[Llama, Tokenizer, ChatTemplate | None]:
    """The model called `name`, or at that path, its tokenizer, and its chat template if it has one.

    Raises MinillamaError where it has no tokenizer.
    """
    path = catalog.resolve(name)
    checkpoint = weights.load(path)
    if checkpoint.tokenizer is None:
        raise MinillamaError(f"{path}: expected a tokenizer with the weights, found none")
    params = {key: to_device(value, device) for key, value in checkpoint.params.items()}
    return Llama(checkpoint.config, params), checkpoint.tokenizer, checkpoint.chat_template


def fingerprint(model: Llama) -> str:
    """A checksum of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(model.params.items()):
        digest.update(name.encode())
        digest.update(to_host(value).tobytes())
    return digest.hexdigest()


def pretrain(job: Job, folder: RunFolder, comm: Communicator, overwrite: bool = False) -> tuple[Progress, bool]:
    """Do the job in `folder`, or what of it is left.

    Returns where the run is, and whether it had ended before. Raises UsageError where the folder holds another run.
    """
    share_of_rows(comm, job.recipe.batch_size)  # raises before anything is written
    settings = job.settings()
    with folder.begun(settings, overwrite) if comm.rank == 0 else nullcontext():
        comm.barrier()
        if result := folder.result():
            return Progress.from_json(folder.record, result), True
        if comm.rank == 0:
            _prepare(job, folder)
        comm.barrier()
        data = TokenData(job.source if is_prepared(job.source) else folder.data)
        if job.tokenizer is not None:
            data.check_tokenizer(job.tokenizer)
        model = job.initial or Llama.init(job.config, job.seed, device=job.device)
        stage = Pretraining(
            data,
            job.recipe.seq_len,
            job.recipe.batch_size,
            job.seed,
            prompt=job.prompt,
            recompute=job.recompute,
            threads=job.options.threads,
        )
        return train(model, stage, job.options, folder, settings, tokenizer=data.tokenizer, comm=comm), False


def _prepare(job: Job, folder: RunFolder) -> None:
    """Tokens in the folder, by a tokenizer trained on the same text where none is given; unless they are there.

    A trained one has the tags of chats as tokens: a later finetuning then spends 4 tokens a turn on them, and not 18.
    """
    if is_prepared(job.source):
        return
    tokenizer = job.tokenizer
    if tokenizer is None:
        path = folder.path / "tokenizer.model"
        if not path.is_file():
            texts = (document.text for document in documents(job.source) if document.split != "validation")
            size = job.config.vocab_size
            with Console(stderr=True).status(f"learning a vocabulary of {size:,}"):  # shows nothing without a terminal
                save_sentencepiece(train_tokenizer(texts, size, control=TAGS, where=job.source), path)
        tokenizer = from_sentencepiece(path)
    tokenize(job.source, tokenizer, folder.data)
