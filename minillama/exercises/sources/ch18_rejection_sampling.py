"""Chapter 18, rejection sampling: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from minillama.alignment import rejection
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.rejection import Candidate, Samples
from minillama.alignment.rollout import Chatter
from minillama.alignment.scorer import LOWEST, Rewards
from minillama.backend import Array
from minillama.chat import Message
from minillama.exercises.chapter import Case, Chapter, Functions

chapter = Chapter(
    "ch18_rejection_sampling",
    "Rejection sampling",
    """Chapter 18: rejection sampling. Write the functions; the chapter says what each is for.

    minillama exercises check ch18      what is right, and the first thing that is not
    minillama exercises hint ch18       the next hint

When 18.1, 18.2 and 18.4 are right, they make a round: the temperature, the answers and the data are of your choice
(`make book` has made the model that answers and the one that scores; here 60 prompts, 4 answers to each):

    minillama exercises run --with ch18 -- reject --model runs/mini/gatt --reward runs/mini/v1/reward \\
        --data miniature:60 --samples 4 --temperature 0.7 --temperature 1 --out runs/my-round

P prompts, K answers to each, n of these K. rewards (P, K): what the reward model thinks of each answer. An answer that
did not come to its end cannot be chosen: its reward is the lowest there is, LOWEST.""",
)


def prompt_of(*turns: str, safety: bool = False, split: str = "train") -> Prompt:
    """A prompt out of what is said in it, by turns, the user's first."""
    messages: list[Message] = [
        {"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)
    ]
    return Prompt(tuple(messages), safety, split)


# --- 18.1 the best of K


def best_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {
        "prompts": ["Name a fruit.", "Where does Ada live?"],
        "texts": [["A plum.", "A plum is a fruit.", "Plum"], ["In the mill.", "By the sea.", "I do not know."]],
        "rewards": np.array([[0.25, 1.5, -2.0], [-0.5, -1.25, -3.0]]),
    }
    # A tie; answers that did not come to their end; and a prompt that has no other.
    yield {
        "prompts": ["Tell a story.", "Count to three.", "Rhyme."],
        "texts": [["", "One day.", "Once.", "It was."], ["", "", "", ""], ["a", "b", "", "d"]],
        "rewards": np.array([[LOWEST, -4.0, -1.0, -1.0], [LOWEST] * 4, [-9.5, -9.0, LOWEST, -9.75]]),
    }


def chosen_of(own: Functions, prompts: list[str], texts: list[list[str]], rewards: Array) -> list[tuple]:
    """What is chosen, as it can be read: request, answer, reward."""
    chosen = own.best(Samples([prompt_of(text) for text in prompts], texts, rewards))
    return [(c.prompt.messages[-1]["content"], c.answer, float(c.reward)) for c in chosen]


chapter.exercise(
    "warm-up",
    cases=best_cases,
    trial=chosen_of,
    returns=("chosen",),
    replaces="minillama.alignment.rejection:candidates",  # then nothing else of this round enters the pool
    task="samples has prompts, texts and rewards; samples.usable (P, K) is true where an answer may be chosen. A"
    " Candidate is made of a prompt, an answer and its reward. Returns a list of them, a prompt after the other.",
    hints=(
        "samples.rewards[i].argmax() is the place of the best answer to prompt i, the first of equals.",
        "Of which prompts? Of those with any usable answer: np.flatnonzero(samples.usable.any(axis=1)).",
        "Candidate(samples.prompts[i], samples.texts[i][k], float(samples.rewards[i, k])).",
    ),
)(rejection.best)

chapter.edit(
    "best",
    "a prompt without a usable answer has one all the same, without a word: leave such prompts out.",
    "np.flatnonzero(usable)",
    "range(len(usable))",
)
chapter.edit("best", "it is the answer with the lowest reward.", ".argmax()", ".argmin()")
chapter.edit(
    "best",
    "it is the first answer, whatever its reward: that is one sample, not the best of K.",
    "int(samples.rewards[i].argmax())",
    "0",
)
chapter.edit(
    "best",
    "of answers that are equally good it is the last; take the first.",
    "int(samples.rewards[i].argmax())",
    "samples.rewards.shape[1] - 1 - int(samples.rewards[i, ::-1].argmax())",
)
chapter.edit(
    "best",
    "it takes one answer from the whole batch, that with the highest reward: each prompt has a best one.",
    "np.flatnonzero(usable)",
    "[samples.rewards.max(axis=1).argmax()]",
)
chapter.edit(
    "best",
    "all usable answers are there: of each prompt the best one is learned.",
    "[_candidate(samples, int(i), int(samples.rewards[i].argmax())) for i in np.flatnonzero(usable)]",
    "[_candidate(samples, int(i), int(k)) for i, k in np.argwhere(samples.usable)]",
)


# --- 18.2 the temperature


def temperature_cases(rng: np.random.Generator) -> Iterator[Case]:
    # The dullest has the best mean, the wildest the best single answer, the last the best of each prompt.
    calm = np.full((4, 3), 0.5) + 0.01 * rng.standard_normal((4, 3))
    wild = rng.normal(-3.0, 0.1, (4, 3))
    wild[0, 1] = 4.0
    between = rng.normal(-0.5, 0.1, (4, 3))
    between[:, 2] = 1.0
    yield {"rewards": {0.3: calm, 2.0: wild, 1.0: between}}
    tied = rng.standard_normal((2, 5))
    yield {"rewards": {0.9: tied, 0.7: tied[::-1], 1.2: tied - 0.5}}
    yield {"rewards": {1.0: rng.standard_normal((6, 2))}}


def as_tuning(
    function: Callable[[Mapping[float, Array]], tuple[float, dict[float, float]]],
) -> Callable[..., tuple[float, dict[float, float]]]:
    """`rejection.tune_temperature`, which chooses by a learner's `best_temperature`."""

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
        found = {}
        for t in temperatures:
            name = None if progress is None else f"{progress}, temperature {t:g}"
            samples = rejection.sample(chatter, prompts, rewards, k, temperature=t, seed=seed, progress=name)
            found[t] = samples.rewards
        return function(found)

    return tune_temperature


@chapter.exercise(
    "warm-up",
    cases=temperature_cases,
    returns=("temperature", "means"),
    replaces="minillama.alignment.rejection:tune_temperature",
    adapt=as_tuning,
    hints=(
        "What is learned is the best of K answers to each prompt; so that is what should be high.",
        "rewards[t].max(axis=1) are the best of each prompt; their mean is the number that belongs to t.",
        "max(means, key=means.get) is the first of the keys whose value is highest.",
    ),
)
def best_temperature(rewards: Mapping[float, Array]) -> tuple[float, dict[float, float]]:
    """The temperature at which the best of K answers has the highest mean reward, and that mean for each.

    rewards: temperature -> (P, K), the rewards of K answers to the same prompts. Returns the temperature, of equals
    the first, and temperature -> mean over prompts of the highest reward.
    """
    means = {t: float(of.max(axis=1).mean()) for t, of in rewards.items()}
    return max(means, key=means.__getitem__), means


chapter.edit(
    "best_temperature",
    "it is the mean of all answers, which low temperatures win: only the best of K is learned.",
    "of.max(axis=1).mean()",
    "of.mean()",
)
chapter.edit(
    "best_temperature",
    "it is the highest reward of all prompts together: one lucky answer decides. Take the best of each prompt first.",
    "of.max(axis=1).mean()",
    "of.max()",
)
chapter.edit(
    "best_temperature",
    "the maximum is over the prompts; the K answers to a prompt are along axis 1.",
    "of.max(axis=1)",
    "of.max(axis=0)",
)
chapter.edit(
    "best_temperature", "it is the median of each prompt's answers.", "of.max(axis=1)", "np.median(of, axis=1)"
)
chapter.edit(
    "best_temperature",
    "of equally good temperatures it takes the last; take the first that was given.",
    "max(means, key=means.__getitem__)",
    "max(reversed(means), key=means.__getitem__)",
)


# --- 18.3 what n of K would have come to


def best_of_cases(rng: np.random.Generator) -> Iterator[Case]:
    for P, K, n in ((3, 5, 2), (2, 4, 3), (4, 6, 1), (2, 3, 3)):
        yield {"rewards": rng.standard_normal((P, K)), "n": n}
    yield {"rewards": np.array([[2.0, 0.0, 1.0, 1.0]]), "n": 2}


def every_choice(own: Functions) -> str | None:
    """None where the numbers are those of all choices, made one by one."""
    rewards = np.random.default_rng(1).standard_normal((2, 7))
    for n in (1, 4, 7):
        counted = [np.mean([max(row[list(c)]) for c in combinations(range(7), n)]) for row in rewards]
        if not np.allclose(own.best_of(rewards, n), counted):
            return f"Of all choices of {n} of 7 samples, made one by one, the mean of the highest is another."
    return None


@chapter.exercise(
    "core",
    cases=best_of_cases,
    proof=every_choice,
    returns=("highest",),
    hints=(
        "Sort each prompt's rewards upwards. In how many choices of n is the i-th smallest the highest? The other n - 1"
        " come from the i - 1 below it.",
        "So its weight is math.comb(i - 1, n - 1) / math.comb(K, n), for i = 1 … K.",
        "ranked (P, K) times weights (K,) -> (P,).",
    ),
)
def best_of(rewards: Array, n: int) -> Array:
    """The expected highest reward of n samples of each prompt, from K: the mean over all choices of n of the K.

    rewards: (P, K) float. n: 1 to K. No choice is drawn: how many choices have the i-th smallest as their highest can
    be counted. Returns (P,).
    """
    ranked = np.sort(rewards, axis=1)
    K = rewards.shape[1]
    ways = np.array([math.comb(i - 1, n - 1) for i in range(1, K + 1)])
    return ranked @ (ways / math.comb(K, n))  # (P, K) @ (K,) -> (P,)


chapter.edit(
    "best_of",
    "it is the highest of the first n samples: one choice of many, and noisier than their mean.",
    "return ranked @ (ways / math.comb(K, n))",
    "return rewards[:, :n].max(axis=1)",
)
chapter.edit(
    "best_of",
    "samples are drawn with replacement, (i/K)ⁿ - ((i-1)/K)ⁿ: of the K that are there, n different ones are chosen.",
    "return ranked @ (ways / math.comb(K, n))",
    "cdf = (np.arange(K + 1) / K) ** n; return ranked @ np.diff(cdf)",
)
chapter.edit(
    "best_of",
    "the rewards are sorted downwards under weights that count upwards: it is the expected lowest.",
    "np.sort(rewards, axis=1)",
    "-np.sort(-rewards, axis=1)",
)
chapter.edit(
    "best_of",
    "the rewards are sorted over the prompts; each prompt's K samples are along axis 1.",
    "np.sort(rewards, axis=1)",
    "np.sort(rewards, axis=0)",
)
chapter.edit(
    "best_of",
    "it is off by one: below the i-th smallest are i - 1 others, not i.",
    "math.comb(i - 1, n - 1) for",
    "math.comb(i, n - 1) for",
)
chapter.edit("best_of", "the counts are not divided by the number of choices.", "(ways / math.comb(K, n))", "ways")
chapter.edit(
    "best_of",
    "the n highest are averaged: of n samples only the best one is learned.",
    "return ranked @ (ways / math.comb(K, n))",
    "return ranked[:, K - n :].mean(axis=1)",
)


# --- 18.4 what is learned of it


def record_cases(_: np.random.Generator) -> Iterator[Case]:
    asked = prompt_of("Name a fruit.", "A plum.", "And another?")
    yield {
        "chosen": [
            Candidate(prompt_of("Hello."), "Hello to you.", 1.5),
            Candidate(asked, "A pear.", -0.25),
            Candidate(prompt_of("Where does Ada live?", split="validation"), "In the mill.", 0.0),
        ]
    }
    yield {"chosen": []}


def all_records(own: Functions, chosen: list[Candidate]) -> list[dict[str, Any]]:
    return list(own.records(chosen))


chapter.exercise(
    "core",
    cases=record_cases,
    trial=all_records,
    returns=("records",),
    replaces="minillama.alignment.rejection:records",
    task='Returns a record for each, one after the other: {"messages": [...], "split": ...}. A message of the assistant'
    ' has a third entry besides role and content, "weight": 1 where it is learned, else 0.',
    hints=(
        "The prompt's messages, then one more: the assistant's, with the answer.",
        "The prompt may hold earlier answers. Nobody has chosen these: their weight is 0.",
        "Yield the records, or return a list. minillama.alignment.ghost_attention.last_answer_only sets the weights.",
    ),
)(rejection.records)


def with_messages(change: Callable[[list[dict[str, Any]], Candidate], None]) -> Callable[..., list[dict[str, Any]]]:
    """`records` with each record's messages changed."""

    def wrong(chosen: Iterable[Candidate]) -> list[dict[str, Any]]:
        chosen = list(chosen)
        found = list(rejection.records(chosen))
        for record, candidate in zip(found, chosen, strict=True):
            change(record["messages"], candidate)
        return found

    return wrong


@chapter.wrong("records", "earlier answers are learned as well: they are a part of the prompt, and nobody chose them.")
@with_messages
def all_answers(messages: list[dict[str, Any]], candidate: Candidate) -> None:
    del candidate
    for message in messages[1::2]:
        message["weight"] = 1


@chapter.wrong("records", "nothing is learned: the chosen answer has the weight 1.")
@with_messages
def no_answer(messages: list[dict[str, Any]], candidate: Candidate) -> None:
    del candidate
    messages[-1]["weight"] = 0


@chapter.wrong(
    "records", "the weight is the reward; here the reward has only chosen the answer, which is then learned."
)
@with_messages
def by_reward(messages: list[dict[str, Any]], candidate: Candidate) -> None:
    messages[-1]["weight"] = candidate.reward


@chapter.wrong("records", "only the last request is there: the model reads the whole dialogue before it answers.")
@with_messages
def without_history(messages: list[dict[str, Any]], candidate: Candidate) -> None:
    del candidate
    del messages[:-2]


@chapter.wrong("records", "the answer itself is missing.")
@with_messages
def prompt_alone(messages: list[dict[str, Any]], candidate: Candidate) -> None:
    del candidate
    messages.pop()


chapter.edit(
    "records",
    "the split is lost: prompts that are held out would be trained on.",
    "candidate.prompt.split",
    '"train"',
)


# --- 18.5 any rank


def rank_cases(_: np.random.Generator) -> Iterator[Case]:
    for K, n, j in ((5, 2, 2), (5, 3, 2), (8, 4, 1), (6, 1, 1), (4, 4, 3)):
        yield {"K": K, "n": n, "j": j}


def sums_to_one(own: Functions) -> str | None:
    """None where each rank's probabilities add up to 1."""
    for n in (2, 7, 16):
        total = float(np.sum(own.rank_probabilities(16, n, (n + 1) // 2)))
        if abs(total - 1) > 1e-9:
            return f"rank_probabilities(16, {n}, {(n + 1) // 2}) adds up to {total:g}: some sample must have the rank."
    return None


@chapter.exercise(
    "stretch",
    cases=rank_cases,
    proof=sums_to_one,
    returns=("probabilities",),
    replaces="minillama.alignment.rejection:_ranks",
    task="With j = n it is what 18.3 needs; with j in the middle it is the median of the paper's figure 7.",
    hints=(
        "For the i-th smallest of K to be the j-th of n, j - 1 of the others are chosen below it and n - j above.",
        "Below it are i - 1, above it K - i. Multiply the ways, and divide by all choices.",
    ),
)
def rank_probabilities(K: int, n: int, j: int) -> Array:
    """How probable it is that the i-th smallest of K samples is the j-th smallest of n of them, chosen at random.

    j: 1 to n. Returns (K,) float, for i = 1 … K.
    """
    ways = [math.comb(i - 1, j - 1) * math.comb(K - i, n - j) for i in range(1, K + 1)]
    return np.array(ways) / math.comb(K, n)


chapter.edit(
    "rank_probabilities",
    "ranks are counted from the largest: the i-th is the i-th smallest.",
    "for i in range(1, K + 1)",
    "for i in range(K, 0, -1)",
)
chapter.edit(
    "rank_probabilities",
    "it is off by one: with i counted from 0, i samples are below and K - 1 - i above.",
    "math.comb(i - 1, j - 1) * math.comb(K - i, n - j) for i in range(1, K + 1)",
    "math.comb(i, j - 1) * math.comb(K - i, n - j) for i in range(K)",
)
chapter.edit(
    "rank_probabilities",
    "nothing is chosen above it: n - j of the K - i larger samples are.",
    " * math.comb(K - i, n - j)",
    "",
)
chapter.edit(
    "rank_probabilities",
    "nothing is chosen below it: j - 1 of the i - 1 smaller ones are.",
    "math.comb(i - 1, j - 1) * ",
    "",
)
chapter.edit(
    "rank_probabilities",
    "these are counts of choices; divide by all there are, math.comb(K, n).",
    "np.array(ways) / math.comb(K, n)",
    "np.array(ways, float)",
)
chapter.edit(
    "rank_probabilities",
    "the choices that it is divided by are those of j of K; n samples are chosen.",
    "/ math.comb(K, n)",
    "/ math.comb(K, j)",
)
