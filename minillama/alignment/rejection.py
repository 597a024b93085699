"""Rejection sampling: of K answers to each prompt, the one with the highest reward is learned (section 3.2.3).

A round samples from the newest model, adds what it has found to the pool of all earlier rounds, and finetunes on the
best answer that the pool has for each prompt. Without the pool the paper saw abilities forgotten that an earlier model
had.

Our reading of what the paper leaves open:

- A pool keeps the KEEP best different answers to a prompt, of all rounds together, by the newest reward model, which
  scores the earlier ones anew: what the older one thought best need not be.
- Prompts of earlier rounds stay, also where this round has not asked them.
- An answer that did not come to its end cannot be chosen; a prompt without any other is left out of the round.
- The temperature of a round is the one of a few at which the best of K has the highest mean reward, on some of the
  prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minillama.alignment.ghost_attention import last_answer_only
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.rollout import Chatter, answers
from minillama.alignment.scorer import LOWEST, Rewards, complete
from minillama.chat import Message
from minillama.data.dialogues import messages_of, split_of, write_records
from minillama.data.sources import check_split, jsonl_records
from minillama.errors import MinillamaError, UsageError
from minillama.evaluation.statistics import Estimate, mean
from minillama.generate import Sampling

KEEP = 4
TUNING_PROMPTS = 32


@dataclass(frozen=True)
class Samples:
    """K answers to each of P prompts. texts: empty where an answer did not come to its end. rewards: (P, K)."""

    prompts: list[Prompt]
    texts: list[list[str]]
    rewards: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """(P, K) bool: which may be chosen."""
        return self.rewards > LOWEST


@dataclass(frozen=True)
class Candidate:
    """An answer in the pool, and its reward by the newest model."""

    prompt: Prompt
    answer: str
    reward: float


def sample(
    chatter: Chatter,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    k: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    progress: str | None = None,
) -> Samples:
    """K answers to each prompt, drawn independently, and their rewards. Raises UsageError for k below 1, and for a
    temperature of 0, at which all K are the same.
    """
    if k < 1 or not prompts:
        raise UsageError(f"{len(prompts)} prompts, {k} answers to each: expected at least one of both")
    if k > 1 and not temperature > 0:
        raise UsageError(f"temperature {temperature}: expected a positive number, for {k} answers that differ")
    asked = [prompt for prompt in prompts for _ in range(k)]
    said = answers(
        chatter,
        [prompt.messages for prompt in asked],
        sampling=Sampling(temperature),
        seed=seed,
        progress=progress,
    )
    texts = [complete(answer) for answer in said]
    scores = rewards(asked, texts).reshape(len(prompts), k)  # (P K,) -> (P, K)
    return Samples(list(prompts), [texts[i : i + k] for i in range(0, len(texts), k)], scores)


def best(samples: Samples) -> list[Candidate]:
    """Of each prompt the answer with the highest reward, the first of equals; none of a prompt without a usable one."""
    usable = samples.usable.any(axis=1)
    return [_candidate(samples, int(i), int(samples.rewards[i].argmax())) for i in np.flatnonzero(usable)]


def at_random(samples: Samples, seed: int = 0) -> list[Candidate]:
    """The control: of each prompt any of the answers that could have been chosen, each with the same probability."""
    rng = np.random.default_rng([seed, 5])
    drawn = [(i, np.flatnonzero(row)) for i, row in enumerate(samples.usable) if row.any()]
    return [_candidate(samples, i, int(rng.choice(places))) for i, places in drawn]


def _candidate(samples: Samples, i: int, k: int) -> Candidate:
    return Candidate(samples.prompts[i], samples.texts[i][k], float(samples.rewards[i, k]))


def candidates(samples: Samples) -> list[Candidate]:
    """All that are usable."""
    return [_candidate(samples, int(i), int(k)) for i, k in np.argwhere(samples.usable)]


def pooled(earlier: Sequence[Candidate], fresh: Sequence[Candidate], rewards: Rewards, keep: int = KEEP) -> Pool:
    """The pool after a round: of each prompt the `keep` best different answers, by the newest reward model.

    earlier: with rewards by any model; they are scored anew. fresh: of this round, scored by `rewards` already.
    """
    scores = rewards([c.prompt for c in earlier], [c.answer for c in earlier])
    anew = [replace(c, reward=float(score)) for c, score in zip(earlier, scores, strict=True) if score > LOWEST]
    of_prompt: dict[str, dict[str, Candidate]] = {}
    for candidate in [*fresh, *anew]:
        of_prompt.setdefault(_key(candidate.prompt), {}).setdefault(candidate.answer, candidate)
    ranked = [sorted(those.values(), key=lambda c: -c.reward)[:keep] for those in of_prompt.values()]
    return Pool([candidate for those in ranked for candidate in those])


@dataclass(frozen=True)
class Round:
    """What a round came to. temperatures: the mean reward of the best of K at each that was tried, none where only one
    was given. pool: after it; None of the control. chosen: what is to be learned.
    """

    temperature: float
    temperatures: dict[float, float]
    samples: Samples
    pool: Pool | None
    chosen: list[Candidate]

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it: means of the samples' rewards over prompts, and by how many samples there are."""
        rewards = self.samples.rewards
        return {
            "temperature": self.temperature,
            "temperatures": {str(t): value for t, value in self.temperatures.items()},
            "prompts": len(rewards),
            "samples": rewards.shape[1],
            "prompts without an answer": int((~self.samples.usable.any(axis=1)).sum()),
            "mean reward": float(rewards.mean()),
            "mean reward of the best": float(rewards.max(axis=1).mean()),
            "mean reward of the chosen": float(np.mean([c.reward for c in self.chosen])) if self.chosen else None,
            "curve": [[at.n, at.highest.mean, at.median.mean] for at in reward_curve(rewards)],
        }


def one_round(
    chatter: Chatter,
    prompts: Iterable[Prompt],
    rewards: Rewards,
    k: int,
    temperatures: Sequence[float],
    *,
    pick: str = "best",
    earlier: Pool | None = None,
    keep: int = KEEP,
    seed: int = 0,
    progress: str | None = None,
) -> Round:
    """Sample K answers to each prompt, at the best of the temperatures, and choose one.

    pick: "best", of the pool, which is what `earlier` holds and this round has found; or "random", the control, of this
    round's samples alone. Raises UsageError for anything else.
    """
    check_pick(pick, earlier is not None)
    asked = list({_key(prompt): prompt for prompt in prompts}.values())
    means: dict[float, float] = {}
    temperature = temperatures[0] if temperatures else 1.0
    if len(temperatures) > 1:
        some = asked[:TUNING_PROMPTS]
        temperature, means = tune_temperature(
            chatter, some, rewards, k, temperatures, seed=seed, progress=progress and f"{progress} to tune"
        )
    samples = sample(chatter, asked, rewards, k, temperature=temperature, seed=seed + 1, progress=progress)
    if pick == "random":
        return Round(temperature, means, samples, None, at_random(samples, seed))
    pool = pooled(earlier.candidates if earlier else [], candidates(samples), rewards, keep)
    return Round(temperature, means, samples, pool, pool.best())


def check_pick(pick: str, pool: bool) -> None:
    """Raise UsageError for a way to choose that there is not, and for the control with a pool."""
    if pick not in ("best", "random"):
        raise UsageError(f"pick {pick!r}: expected best or random")
    if pick == "random" and pool:
        raise UsageError("pick random: expected no pool, for it is the control of this round's samples alone")


@dataclass(frozen=True)
class Pool:
    """Answers of all rounds so far, those to a prompt side by side, the best first."""

    candidates: list[Candidate]

    def best(self) -> list[Candidate]:
        """The best answer to each prompt."""
        first: dict[str, Candidate] = {}
        for candidate in self.candidates:
            before = first.setdefault(_key(candidate.prompt), candidate)
            if candidate.reward > before.reward:
                first[_key(candidate.prompt)] = candidate
        return list(first.values())

    def save(self, path: Path) -> None:
        """A JSONL file, a candidate a line. Raises MinillamaError."""
        write_records(path, map(_record, self.candidates))

    @classmethod
    def load(cls, path: Path) -> Pool:
        """The pool in a file. Raises MinillamaError with file and line for a line that is no candidate, and for a file
        without any.
        """
        if not path.is_file():
            raise MinillamaError(f"{path}: expected the pool of an earlier round, found no such file")
        found = [_read(where, record) for where, record in jsonl_records(path)]
        if not found:
            raise MinillamaError(f"{path}: expected candidates, found none")
        return cls(found)


def records(chosen: Iterable[Candidate]) -> Iterator[dict[str, Any]]:
    """What is finetuned on: each prompt with its answer, of which the answer alone is learned."""
    for candidate in chosen:
        messages = [*candidate.prompt.messages, {"role": "assistant", "content": candidate.answer}]
        yield {**last_answer_only(messages), "split": candidate.prompt.split}


def tune_temperature(
    chatter: Chatter,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    k: int,
    temperatures: Sequence[float],
    *,
    seed: int = 0,
    progress: str | None = None,
) -> tuple[float, dict[float, float]]:
    """The temperature at which the best of K has the highest mean reward, the first of equals, and that mean for each.

    The paper found that the best one changes as a model is trained (figure 8), and looked for it again in each round.
    """
    if not temperatures:
        raise UsageError("temperatures: expected at least one, found none")
    means = {}
    for t in temperatures:
        name = None if progress is None else f"{progress}, temperature {t:g}"
        samples = sample(chatter, prompts, rewards, k, temperature=t, seed=seed, progress=name)
        means[t] = float(samples.rewards.max(axis=1).mean())
    return max(means, key=means.__getitem__), means


@dataclass(frozen=True)
class RewardOfN:
    """What N samples of a prompt come to: the highest reward among them, and the median, means over prompts."""

    n: int
    highest: Estimate
    median: Estimate


def reward_curve(rewards: np.ndarray) -> list[RewardOfN]:
    """Figure 7 of the paper: the highest and the median reward among N of a prompt's samples, for N = 1 … K.

    rewards: (P, K). Of each prompt it is the mean over all choices of N of its K samples, in closed form: the one
    ranked i-th of K is the j-th of N in (i−1 over j−1) (K−i over N−j) of the (K over N) choices.
    """
    if rewards.ndim != 2 or not rewards.size:
        raise UsageError(f"rewards: expected (prompts, samples), found {rewards.shape}")
    ranked = np.sort(rewards.astype(float), axis=1)
    K = ranked.shape[1]
    curve = []
    for n in range(1, K + 1):
        middle = (_ranks(K, n, (n + 1) // 2) + _ranks(K, n, n // 2 + 1)) / 2  # two where N is even
        curve.append(RewardOfN(n, mean(ranked @ _ranks(K, n, n)), mean(ranked @ middle)))  # (P, K) @ (K,) -> (P,)
    return curve


def _ranks(K: int, n: int, j: int) -> np.ndarray:
    """(K,): the probability that the i-th smallest of K is the j-th smallest of n of them."""
    ways = [math.comb(i - 1, j - 1) * math.comb(K - i, n - j) for i in range(1, K + 1)]
    return np.array(ways) / math.comb(K, n)


def _key(prompt: Prompt) -> str:
    return json.dumps([[message["role"], message["content"]] for message in prompt.messages])


def _record(candidate: Candidate) -> dict[str, Any]:
    prompt = candidate.prompt
    return {
        "prompt": [dict(message) for message in prompt.messages],
        "answer": candidate.answer,
        "reward": candidate.reward,
        "domain": "safety" if prompt.safety else "helpfulness",
        "split": prompt.split,
    }


def _read(where: str, record: dict[str, Any]) -> Candidate:
    """The candidate in a record."""
    check_split(where, record.get("split"))
    answer, reward = record.get("answer"), record.get("reward")
    if not isinstance(answer, str) or not answer.strip() or not isinstance(reward, int | float):
        raise MinillamaError(
            f"{where}: expected a prompt, a text as answer and a number as reward, found {', '.join(map(repr, record))}"
        )
    messages = messages_of(where, {"messages": record.get("prompt")})
    if messages[-1]["role"] != "user":
        raise MinillamaError(f"{where}: expected a prompt that ends with what the user says, found another")
    said: tuple[Message, ...] = tuple({k: m[k] for k in ("role", "content")} for m in messages)
    split = record.get("split") or split_of(said)
    return Candidate(Prompt(said, record.get("domain") == "safety", split), answer, float(reward))
