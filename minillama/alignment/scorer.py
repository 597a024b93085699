"""Rewards of many answers at once: what a reward model thinks of texts, and Llama 2's reward, which takes two of them.

Answers are read as texts and encoded anew, so a reward model may have another tokenizer and template than the model
that wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillama import catalog, weights
from minillama.alignment.combine import combine, logit
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.ranking import sigmoid
from minillama.alignment.reward import encode_answer
from minillama.alignment.reward_model import RewardModel
from minillama.alignment.rollout import Answer
from minillama.backend import Device, to_device, to_host
from minillama.chat import ChatTemplate, Message, builtin, suited
from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer import Tokenizer
from minillama.training.pretrain import MICRO_BATCH_TOKENS, fingerprint
from minillama.training.threads import Threads

# What counts for an answer that is none: without a word, cut off before its end, or with a tag that no message may
# have. Below every combined reward, whose lowest is logit(1e-4) = −9.2.
LOWEST = -10.0


@dataclass(frozen=True)
class Scorer:
    """A reward model with all that it takes to read a dialogue. threads: that score, None for all cores."""

    model: RewardModel
    tokenizer: Tokenizer
    template: ChatTemplate
    threads: int | None = None

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        template: str | None = None,
        threads: int | None = None,
        device: Device = "cpu",
    ) -> Scorer:
        """The reward model called `source`. template: the name of a built-in one; None: its own, or what suits its
        vocabulary. Raises MinillamaError where a model of text is there, or no tokenizer.
        """
        path = catalog.resolve(source)
        checkpoint = weights.load(path)
        if checkpoint.config.head is None:
            raise MinillamaError(f"{path}: expected a reward model, found a model that writes text")
        if checkpoint.tokenizer is None:
            raise MinillamaError(f"{path}: expected a tokenizer with the weights, found none")
        model = RewardModel(checkpoint.config, {name: to_device(x, device) for name, x in checkpoint.params.items()})
        own = builtin(template) if template else checkpoint.chat_template or suited(checkpoint.tokenizer)
        return cls(model, checkpoint.tokenizer, own, threads)

    def identity(self) -> str:
        """A checksum of the model."""
        return fingerprint(self.model)

    def scores(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> np.ndarray:
        """The score of each answer to its prompt, before any sigmoid: (N,) float, on the host.

        LOWEST for an answer without a word, and where the template refuses one. Of a dialogue that is longer than the
        model's context the first turns are left out, as in training. Raises UsageError where there are not as many
        prompts as answers, MinillamaError where a last turn alone is too long.
        """
        if len(prompts) != len(answers):
            raise UsageError(f"{len(prompts)} prompts and {len(answers)} answers: expected one for each")
        found = np.full(len(answers), LOWEST, self.model.dtype)
        texts: dict[int, list[int]] = {}
        begins = np.zeros(len(answers), np.int64)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if answer.strip() and (encoded := self._encode(prompt, answer)) is not None:
                texts[i], begins[i] = encoded
        pieces = _pieces({i: len(tokens) for i, tokens in texts.items()})
        threads = Threads(self.threads if self.model.xp is np else 1)

        def work(worker: int) -> None:
            for piece in pieces[worker :: threads.count]:
                last = np.array([len(texts[i]) - 1 for i in piece])
                tokens = np.zeros((len(piece), last.max() + 1), np.int64)
                for row, i in enumerate(piece):
                    tokens[row, : len(texts[i])] = texts[i]
                scores, _ = self.model.rewards(tokens, last, first=begins[piece], recompute=True)  # keeps the least
                found[piece] = to_host(scores)

        threads.each(work)
        return found

    def _encode(self, prompt: Sequence[Message], answer: str) -> tuple[list[int], int] | None:
        """Prompt and answer in tokens, and where the answer begins; None where the template cannot hold the answer."""
        system = list(prompt[:1]) if prompt[0]["role"] == "system" else []
        turns = prompt[len(system) :]
        context = self.model.config.max_seq_len
        for start in range(0, len(turns), 2):
            try:
                tokens, first = encode_answer([*system, *turns[start:]], answer, self.template, self.tokenizer)
            except UsageError:
                return None
            if len(tokens) <= context:
                return tokens, first
        raise MinillamaError(f"an answer of {len(tokens)} tokens with its prompt: expected at most {context}")


@dataclass(frozen=True)
class Rewards:
    """Llama 2's reward of both models, or that of the one that there is. Raises UsageError where there is none."""

    helpfulness: Scorer | None = None
    safety: Scorer | None = None

    def __post_init__(self) -> None:
        if self.helpfulness is None and self.safety is None:
            raise UsageError("rewards: expected a reward model at least, found none")

    def identity(self) -> dict[str, str | None]:
        """Checksums of the models."""
        models = {"helpfulness": self.helpfulness, "safety": self.safety}
        return {name: None if model is None else model.identity() for name, model in models.items()}

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        """R of each answer to its prompt, (N,) float: see `combined`."""
        return self.combined(prompts, self.each(prompts, answers))

    def each(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> dict[str, np.ndarray]:
        """What each model that there is says of each answer, "helpfulness" and "safety", as `Scorer.scores`."""
        asked = [prompt.messages for prompt in prompts]
        models = {"helpfulness": self.helpfulness, "safety": self.safety}
        return {name: model.scores(asked, answers) for name, model in models.items() if model is not None}

    @staticmethod
    def combined(prompts: Sequence[Prompt], scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """R of scores as `each` gives them, (N,) float, LOWEST where one of them is.

        Of both models it is LOGIT(R_c) (section 3.2.3), where R_c is the safety score if the prompt is one of safety or
        that score is below 0.15, else the helpfulness score. It is not whitened, which would move with the batch and
        changes no order. Of one model, it is that model's score.
        """
        rewards = next(iter(scores.values()))
        if len(scores) == 2:
            tagged = np.array([prompt.safety for prompt in prompts], bool)
            rewards = logit(combine(sigmoid(scores["safety"]), sigmoid(scores["helpfulness"]), tagged))
        return np.where(np.any([x == LOWEST for x in scores.values()], axis=0), LOWEST, rewards)


def complete(said: Answer) -> str:
    """The text of an answer that the model has ended itself, and no text of one that was cut off."""
    return said.text if said.finished else ""


def _pieces(lengths: dict[int, int]) -> list[list[int]]:
    """The numbers of texts, those of like lengths together, so that little is padded; of each piece a thread's
    activations stay near its core's cache.
    """
    pieces: list[list[int]] = []
    for i in sorted(lengths, key=lengths.__getitem__):
        if not pieces or (len(pieces[-1]) + 1) * lengths[i] > MICRO_BATCH_TOKENS:
            pieces.append([])
        pieces[-1].append(i)
    return pieces
