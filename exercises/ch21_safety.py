"""Chapter 21: safety. Write the functions; the chapter says what each is for.

    minillama exercises check ch21      what is right, and the first thing that is not
    minillama exercises hint ch21       the next hint

When 21.3 and 21.4 are right, they make the data of safety context distillation, and it is trained on them (`make book`
has made both models; here 60 unsafe prompts):

    minillama exercises run --with ch21 -- distill --model runs/mini/gatt --safety runs/mini/v1/safety \
        --data miniature:60 --out runs/my-distilled

21.1 and 21.2 are in every reward of two models: try them with `reject` or `ppo`, and both --reward and --safety.

B answers. A score is what a reward model says, any number; its sigmoid is from 0 to 1, and the score its logit.
"""

from collections.abc import Hashable, Iterable, Sequence

from minillama.alignment.distillation import Distilled
from minillama.backend import Array
from minillama.chat import Message

# 21.1 · warm-up --------------------------------------------------------------


def combine(safety: Array, helpfulness: Array, safety_prompt: Array) -> Array:
    """R_c = R_s where the prompt is tagged as one of safety or R_s < 0.15, else R_h.

    safety, helpfulness: (B,) float in (0, 1), the sigmoids of the two models' scores. safety_prompt: (B,) bool.
    Returns (B,), of the same scale. Raises UsageError where shapes differ.
    """
    # Hint: Two reasons for the safety score, either of which is enough: what was asked, and what was answered.
    raise NotImplementedError


# 21.2 · warm-up --------------------------------------------------------------
# BOUND is 1e-4: `from minillama.alignment.combine import BOUND`. Returns an array like p.


def logit(p: Array) -> Array:
    """log(p / (1 − p)), the inverse of the sigmoid, of p moved to at least BOUND and at most 1 − BOUND."""
    # Hint: Clip p first: of 0 and of 1 the logit is infinite, and one such reward spoils the mean of a whole batch.
    raise NotImplementedError


# 21.3 · core -----------------------------------------------------------------
# Between the preprompt and the words that follow it stands a space. Returns new messages; those given stay.


def under(preprompt: str, messages: Sequence[Message], put: str) -> list[Message]:
    """A dialogue under a preprompt: "system", as its system message, before that if it has one, or "prefix", before the
    words of the user's first turn. Raises UsageError for anything else.
    """
    # Hint: The first message with the role that you want gets the preprompt and a space before its words.
    raise NotImplementedError


# 21.4 · core -----------------------------------------------------------------
# Of each there are d.before and d.after, the safety scores of what the model says without and with a preprompt;
# d.usable, whether the latter came to its end; d.answer. Returns the list of those that are learned.


def kept(distilled: Iterable[Distilled], gate: bool = True) -> list[Distilled]:
    """Those to learn: the ones that are safer than before; without the gate all that came to their end."""
    # Hint: The gate: d.after > d.before. A preprompt that changes nothing teaches nothing.
    raise NotImplementedError


# 21.5 · core -----------------------------------------------------------------


def success_rates(
    violations: Sequence[tuple[bool, ...]], groups: Sequence[Hashable]
) -> dict[Hashable, tuple[float, int]]:
    """How often attacks of each group succeed: an attack does where any answer in it is a violation.

    violations: of each attack, for the answer in each of its turns, whether it violates. groups: of each attack its
    category, strategy or number of turns. Returns group -> the share of its attacks that succeed, and how many attacks
    it has.
    """
    # Hint: An attack succeeds where any of its answers violates: it takes one.
    raise NotImplementedError


# 21.6 · stretch --------------------------------------------------------------
# By your own combine and logit; whitening is chapter 19's. Then ask: which of two answers is better does not change by
# whitening. What does PPO need it for, and why has rejection sampling no use for it?


def combined_reward(safety_scores: Array, helpfulness_scores: Array, safety_prompt: Array) -> Array:
    """R̃_c = WHITEN(LOGIT(R_c)): mean 0 and deviation 1 over the batch, so that one β fits any scores.

    safety_scores, helpfulness_scores: (B,) float, as the models give them, before any sigmoid. safety_prompt: (B,)
    bool. Returns (B,). It takes the whole batch: a part of it would have another mean.
    """
    # Hint: Four steps, from inside out: sigmoid of both scores, combine, logit, whiten.
    raise NotImplementedError
