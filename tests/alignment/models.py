"""Small chat and reward models in folders, and models that say what a test wants them to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner, Result

from minillama import weights
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.reward_model import RewardModel
from minillama.alignment.rollout import Answer, Chatter
from minillama.alignment.scorer import LOWEST
from minillama.chat import Message, builtin
from minillama.cli import app
from minillama.config import LlamaConfig
from minillama.model import Llama
from tests.weights.support import tiny_tokenizer

TEMPLATE, TOKENIZER = builtin("llama2"), tiny_tokenizer()
# It ends an answer by chance: one token in 262 is the end.
CONFIG = LlamaConfig(8, 1, 1, 16, vocab_size=262, max_seq_len=640, tie_embeddings=True)
CHATTER = Chatter(Llama.init(CONFIG, seed=1), TOKENIZER, TEMPLATE, max_new_tokens=4)


def chat_model(path: Path, seed: int = 1, config: LlamaConfig = CONFIG) -> Path:
    """A chat model of random weights, saved."""
    checkpoint = Llama.init(config, seed=seed).checkpoint()
    weights.save(replace(checkpoint, tokenizer=TOKENIZER, chat_template=TEMPLATE), path)
    return path


def reward_model(path: Path, seed: int = 2) -> Path:
    """A reward model of random weights, saved."""
    model = RewardModel.from_llama(Llama.init(CONFIG, seed=seed), seed)
    weights.save(replace(model.checkpoint(), tokenizer=TOKENIZER, chat_template=TEMPLATE), path)
    return path


def prompt(text: str, safety: bool = False, split: str = "train") -> Prompt:
    return Prompt(({"role": "user", "content": text},), safety, split)


def saying(reply: Callable[[Sequence[Message], int], str | None]) -> Callable[..., list[Answer]]:
    """In place of `rollout.answers`: what `reply` says to a dialogue when it is asked for the n-th time; None stands
    for an answer that is cut off.
    """

    def answers(_: Chatter, dialogues: Sequence[Sequence[Message]], **_how: Any) -> list[Answer]:
        asked: dict[str, int] = {}
        found = []
        for messages in dialogues:
            n = asked[str(messages)] = asked.get(str(messages), -1) + 1
            text = reply(messages, n)
            found.append(Answer([], [], [], "cut off" if text is None else text, text is not None))
        return found

    return answers


class Judging:
    """In place of `Rewards`: a number for each text, and what it has been asked."""

    def __init__(self, reward: Callable[[str], float]) -> None:
        self.reward, self.asked = reward, list[str]()

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
        assert len(prompts) == len(answers)
        self.asked += answers
        return np.array([self.reward(text) if text else LOWEST for text in answers])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return result


def problem(*arguments: object) -> str:
    """What a command that must fail says."""
    result = run(*arguments)
    assert result.exit_code in (1, 2), result.output
    return str(result.exception) + result.stderr
