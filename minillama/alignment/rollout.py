"""Answers of a model to many dialogues at once, as every stage of alignment and evaluation needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minillama.chat import ChatTemplate, Message
from minillama.errors import UsageError
from minillama.generate import Sampling, generate
from minillama.model import Llama
from minillama.tokenizer import Tokenizer
from minillama.tokenizer.base import TURN_NAMES
from minillama.training.threads import Threads

FULL = Sampling(temperature=1.0)  # the model's own distribution
TOGETHER = 1024  # dialogues that are sampled at a time, shared out among threads


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
) -> list[Answer]:
    """An answer to each dialogue, in order; the same seed gives the same answers.

    dialogues: each ends with what the user says. progress: the name of a progress bar. Dialogues of like lengths are
    sampled together, so that little is padded. Raises UsageError for a dialogue that leaves no room for an answer.
    """
    from tqdm import tqdm

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
    """
    dialogues: list[list[Message]] = [[] for _ in requests]
    for turn in range(max(map(len, requests), default=0)):
        going_on = [i for i, turns in enumerate(requests) if turn < len(turns) and len(dialogues[i]) == 2 * turn]
        for i in going_on:
            instruction = before_every[i] if before_every is not None else None
            if before_first is not None and turn == 0:
                instruction = before_first[i]
            dialogues[i].append({"role": "user", "content": instructed(instruction, requests[i][turn])})
        if end_when_full:
            for i in [i for i in going_on if len(chatter.prompt(dialogues[i])) >= chatter.model.config.max_seq_len]:
                dialogues[i].pop()
                going_on.remove(i)
        name = None if progress is None else f"{progress}, turn {turn + 1}"
        asked = [dialogues[i] for i in going_on]
        said = answers(chatter, asked, sampling=sampling, seed=seed + turn, progress=name)
        for i, answer in zip(going_on, said, strict=True):
            dialogues[i].append({"role": "assistant", "content": answer.text})
    return dialogues


def instructed(instruction: str | None, request: str) -> str:
    """A request under an instruction."""
    return f"{instruction} {request}" if instruction else request
