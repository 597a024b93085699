"""Answers of a model to many dialogues at once, as every stage of alignment and evaluation needs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from minillama.chat import ChatTemplate, Message
from minillama.errors import UsageError
from minillama.generate import Sampling, generate
from minillama.model import Llama
from minillama.prefix import Prefix
from minillama.tokenizer import Tokenizer
from minillama.tokenizer.base import TURN_NAMES
from minillama.training.threads import Threads

FULL = Sampling(temperature=1.0)  # the model's own distribution
TOGETHER = 1024  # dialogues that are sampled at a time, shared out among threads
KEPT = 512 << 20  # bytes of keys and values that are kept from turn to turn, about
FEWEST = 16  # dialogues that go on together, though their model be so large that they take more than that


@dataclass(frozen=True)
class Chatter:
    """A chat model with all that it takes to be asked: tokenizer, template, and the longest answer."""

    model: Llama
    tokenizer: Tokenizer
    template: ChatTemplate
    max_new_tokens: int = 128

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a dialogue that ends with a request."""
        return self.template.prompt(messages, self.tokenizer)

    @cached_property
    def stop_strings(self) -> list[str]:
        """The template's tags that are plain text in this vocabulary: who writes one has ended the answer."""
        return sorted(tag for tag in TURN_NAMES - self.tokenizer.specials.keys() if tag in self.template.source)


@dataclass(frozen=True)
class Answer:
    """An answer. tokens: with the end token, if the model came to it (`finished`). logprobs: of each token under
    softmax(logits / temperature); empty unless asked for.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str
    finished: bool


def answers(
    chatter: Chatter,
    dialogues: Sequence[Sequence[Message]],
    *,
    sampling: Sampling = FULL,
    seed: int = 0,
    logprobs: bool = False,
    progress: str | None = None,
    prompts: Sequence[list[int]] | None = None,
    prefixes: Sequence[Prefix] | None = None,
) -> list[Answer]:
    """An answer to each dialogue, in order; the same seed gives the same answers.

    dialogues: each ends with what the user says. progress: the name of a progress bar. prompts: the dialogues' tokens,
    where they are known already. prefixes: what was read of each dialogue before and need not be read again, brought up
    to date. Dialogues of like lengths are sampled together, so that little is padded. Raises UsageError for a dialogue
    that leaves no room for an answer.
    """
    from tqdm import tqdm

    if prompts is None:
        prompts = [chatter.prompt(messages) for messages in dialogues]
    context = chatter.model.config.max_seq_len
    for i, prompt in enumerate(prompts):
        if len(prompt) >= context:
            raise UsageError(f"dialogue {i} has {len(prompt)} tokens and leaves no room in the context of {context}")
    said: list[Answer] = []
    threads = Threads() if chatter.model.xp is np else None
    with tqdm(
        total=len(prompts),
        desc=progress,
        unit=" answers",
        disable=True if progress is None else None,  # None: shown on a terminal only
        delay=2,
        leave=False,
    ) as bar:
        for start in range(0, len(prompts), TOGETHER):
            completions = generate(
                chatter.model,
                prompts[start : start + TOGETHER],
                max_new_tokens=chatter.max_new_tokens,
                sampling=sampling,
                seed=int(np.random.SeedSequence([seed, start]).generate_state(1)[0]),
                stop_ids=chatter.tokenizer.stop_ids,
                stop_strings=chatter.stop_strings,
                tokenizer=chatter.tokenizer,
                logprobs=logprobs,
                threads=threads,
                prefixes=None if prefixes is None else prefixes[start : start + TOGETHER],
            )
            for prompt, completion in zip(prompts[start:], completions, strict=False):
                text, finished = completion.text.strip(), completion.tokens[-1] in chatter.tokenizer.stop_ids
                said.append(Answer(prompt, completion.tokens, completion.logprobs, text, finished))
            bar.update(len(completions))
    return said


def conversations(
    chatter: Chatter,
    requests: Sequence[Sequence[str]],
    *,
    sampling: Sampling = FULL,
    seed: int = 0,
    before_first: Sequence[str] | None = None,
    before_every: Sequence[str] | None = None,
    end_when_full: bool = False,
    progress: str | None = None,
) -> list[list[Message]]:
    """Whole dialogues: the user's turns are given, the model answers each in the light of its own earlier answers.

    requests: of each dialogue what the user says, turn by turn. before_first, before_every: an instruction for each
    dialogue, put before its first or before each of its requests. end_when_full: a dialogue that has filled the
    context ends with its last answer; else it is an error. Returns all messages. Raises UsageError.

    The keys and values of a dialogue are kept, and a turn reads only what is new of it. So that they fit in memory,
    dialogues are taken some at a time, from their first turn to their last.
    """

    def instruction(dialogue: int, turn: int) -> str | None:
        if before_first is not None and turn == 0:
            return before_first[dialogue]
        return before_every[dialogue] if before_every is not None else None

    asked = [
        [instructed(instruction(i, turn), request) for turn, request in enumerate(turns)]
        for i, turns in enumerate(requests)
    ]
    config = chatter.model.config
    most = max(FEWEST, KEPT // Prefix.nbytes(config, chatter.model.dtype))
    parts = math.ceil(len(asked) / most)
    bounds = [len(asked) * part // parts for part in range(parts + 1)] if parts else []
    dialogues: list[list[Message]] = []
    for part, (start, stop) in enumerate(pairwise(bounds)):
        name = progress if progress is None or parts == 1 else f"{progress}, part {part + 1} of {parts}"
        drawn = seed if part == 0 else int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
        dialogues += _together(chatter, asked[start:stop], sampling, drawn, end_when_full, name)
    return dialogues


def _together(
    chatter: Chatter,
    requests: Sequence[Sequence[str]],
    sampling: Sampling,
    seed: int,
    end_when_full: bool,
    progress: str | None,
) -> list[list[Message]]:
    """`conversations` of as many dialogues as go on together; the requests are under their instructions already."""
    dialogues: list[list[Message]] = [[] for _ in requests]
    prefixes = [Prefix(chatter.model.config) for _ in requests]
    going_on = list(range(len(requests)))
    for turn in range(max(map(len, requests), default=0)):
        going_on = [i for i in going_on if turn < len(requests[i])]
        for i in going_on:
            dialogues[i].append({"role": "user", "content": requests[i][turn]})
        prompts = {i: chatter.prompt(dialogues[i]) for i in going_on}
        if end_when_full:
            for i in [i for i in going_on if len(prompts[i]) >= chatter.model.config.max_seq_len]:
                dialogues[i].pop()
                going_on.remove(i)
        said = answers(
            chatter,
            [dialogues[i] for i in going_on],
            sampling=sampling,
            seed=seed + turn,
            progress=None if progress is None else f"{progress}, turn {turn + 1}",
            prompts=[prompts[i] for i in going_on],
            prefixes=[prefixes[i] for i in going_on],
        )
        for i, answer in zip(going_on, said, strict=True):
            dialogues[i].append({"role": "assistant", "content": answer.text})
    return dialogues


def instructed(instruction: str | None, request: str) -> str:
    """A request under an instruction."""
    return f"{instruction} {request}" if instruction else request
