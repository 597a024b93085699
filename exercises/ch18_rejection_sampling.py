"""Chapter 18: rejection sampling. Write the functions; the chapter says what each is for.

    minillama exercises check ch18      what is right, and the first thing that is not
    minillama exercises hint ch18       the next hint

When 18.1, 18.2 and 18.4 are right, they make a round: the temperature, the answers and the data are of your choice
(`make book` has made the model that answers and the one that scores; here 60 prompts, 4 answers to each):

    minillama exercises run --with ch18 -- reject --model runs/mini/gatt --reward runs/mini/v1/reward \
        --data miniature:60 --samples 4 --temperature 0.7 --temperature 1 --out runs/my-round

P prompts, K answers to each, n of these K. rewards (P, K): what the reward model thinks of each answer. An answer that
did not come to its end cannot be chosen: its reward is the lowest there is, LOWEST.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minillama.alignment.rejection import Candidate, Samples
from minillama.backend import Array

# 18.1 · warm-up --------------------------------------------------------------
# samples has prompts, texts and rewards; samples.usable (P, K) is true where an answer may be chosen. A Candidate is
# made of a prompt, an answer and its reward. Returns a list of them, a prompt after the other.


def best(samples: Samples) -> list[Candidate]:
    """Of each prompt the answer with the highest reward, the first of equals; none of a prompt without a usable one."""
    # Hint: samples.rewards[i].argmax() is the place of the best answer to prompt i, the first of equals.
    raise NotImplementedError


# 18.2 · warm-up --------------------------------------------------------------


def best_temperature(rewards: Mapping[float, Array]) -> tuple[float, dict[float, float]]:
    """The temperature at which the best of K answers has the highest mean reward, and that mean for each.

    rewards: temperature -> (P, K), the rewards of K answers to the same prompts. Returns the temperature, of equals
    the first, and temperature -> mean over prompts of the highest reward.
    """
    # Hint: What is learned is the best of K answers to each prompt; so that is what should be high.
    raise NotImplementedError


# 18.3 · core -----------------------------------------------------------------


def best_of(rewards: Array, n: int) -> Array:
    """The expected highest reward of n samples of each prompt, from K: the mean over all choices of n of the K.

    rewards: (P, K) float. n: 1 to K. No choice is drawn: how many choices have the i-th smallest as their highest can
    be counted. Returns (P,).
    """
    # Hint: Sort each prompt's rewards upwards. In how many choices of n is the i-th smallest the highest? The other n -
    # 1 come from the i - 1 below it.
    raise NotImplementedError


# 18.4 · core -----------------------------------------------------------------
# Returns a record for each, one after the other: {"messages": [...], "split": ...}. A message of the assistant has a
# third entry besides role and content, "weight": 1 where it is learned, else 0.


def records(chosen: Iterable[Candidate]) -> Iterator[dict[str, Any]]:
    """What is finetuned on: each prompt with its answer, of which the answer alone is learned."""
    # Hint: The prompt's messages, then one more: the assistant's, with the answer.
    raise NotImplementedError


# 18.5 · stretch --------------------------------------------------------------
# With j = n it is what 18.3 needs; with j in the middle it is the median of the paper's figure 7.


def rank_probabilities(K: int, n: int, j: int) -> Array:
    """How probable it is that the i-th smallest of K samples is the j-th smallest of n of them, chosen at random.

    j: 1 to n. Returns (K,) float, for i = 1 … K.
    """
    # Hint: For the i-th smallest of K to be the j-th of n, j - 1 of the others are chosen below it and n - j above.
    raise NotImplementedError
