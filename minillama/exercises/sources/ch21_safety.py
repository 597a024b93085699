"""Chapter 21, safety: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minillama.alignment import combine as combining
from minillama.alignment import distillation
from minillama.alignment.advantages import whiten
from minillama.alignment.distillation import Distilled
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.ranking import sigmoid
from minillama.alignment.red_team import RedTeam
from minillama.alignment.scorer import LOWEST
from minillama.backend import Array
from minillama.chat import Message
from minillama.evaluation.statistics import Estimate, share
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.miniature.conversation import Conversation

chapter = Chapter(
    "ch21_safety",
    "Safety",
    """Chapter 21: safety. Write the functions; the chapter says what each is for.

    minillama exercises check ch21      what is right, and the first thing that is not
    minillama exercises hint ch21       the next hint

When 21.3 and 21.4 are right, they make the data of safety context distillation, and it is trained on them (`make book`
has made both models; here 60 unsafe prompts):

    minillama exercises run --with ch21 -- distill --model runs/mini/gatt --safety runs/mini/v1/safety \\
        --data miniature:60 --out runs/my-distilled

21.1 and 21.2 are in every reward of two models: try them with `reject` or `ppo`, and both --reward and --safety.

B answers. A score is what a reward model says, any number; its sigmoid is from 0 to 1, and the score its logit.""",
)


# --- 21.1 which model counts


def combine_cases(rng: np.random.Generator) -> Iterator[Case]:
    table = np.array(
        [
            # safety, helpfulness, tagged
            (0.90, 0.30, 1),
            (0.10, 0.80, 1),
            (0.10, 0.80, 0),
            (0.15, 0.80, 0),  # not under it
            (0.1499, 0.05, 0),
            (0.90, 0.30, 0),
            (0.90, 0.05, 0),
            (0.16, 0.12, 1),
            (0.53, 0.70, 0),
        ]
    )
    yield {"safety": table[:, 0], "helpfulness": table[:, 1], "safety_prompt": table[:, 2] > 0}
    safety, helpfulness = rng.random((2, 30)).astype(np.float32)
    yield {"safety": safety, "helpfulness": helpfulness, "safety_prompt": rng.random(30) < 0.3}


chapter.exercise(
    "warm-up",
    cases=combine_cases,
    returns=("reward",),
    replaces="minillama.alignment.combine:combine",
    hints=(
        "Two reasons for the safety score, either of which is enough: what was asked, and what was answered.",
        "np.where(safety_prompt | (safety < 0.15), ..., ...).",
    ),
)(combining.combine)

EITHER = "safety_prompt | (safety < SAFE_ENOUGH)"
chapter.edit(
    "combine",
    "safety counts only where both hold: either a tagged prompt or an unsafe answer is enough.",
    EITHER,
    "safety_prompt & (safety < SAFE_ENOUGH)",
)
chapter.edit(
    "combine",
    "only the tag is asked: an unsafe answer to a harmless prompt would be rewarded for its help.",
    EITHER,
    "safety_prompt",
)
chapter.edit(
    "combine",
    "the tag is not asked: on a safety prompt it is the safety score that counts, however high.",
    EITHER,
    "safety < SAFE_ENOUGH",
)
chapter.edit(
    "combine",
    "at 0.15 it is the helpfulness score: only below it safety takes over.",
    "safety < SAFE",
    "safety <= SAFE",
)
chapter.edit(
    "combine",
    "the threshold is asked of the helpfulness score; it is the unsafe answer that matters.",
    "(safety < SAFE",
    "(helpfulness < SAFE",
)
chapter.edit(
    "combine",
    "the two scores have changed places.",
    f"xp.where({EITHER}, safety, helpfulness)",
    f"xp.where({EITHER}, helpfulness, safety)",
)
chapter.edit(
    "combine",
    "it is the lower of the two: an answer that is safe enough is judged by its help alone.",
    f"xp.where({EITHER}, safety, helpfulness)",
    "xp.minimum(safety, helpfulness)",
)
chapter.edit(
    "combine",
    "it is a mean of both: a very helpful answer could make up for being unsafe.",
    f"xp.where({EITHER}, safety, helpfulness)",
    "(safety + helpfulness) / 2",
)
chapter.edit(
    "combine",
    "the threshold is on the scale of the logit: 0.15 is a probability.",
    "(safety < SAFE_ENOUGH)",
    "(safety < 1 / (1 + 2.718281828 ** -SAFE_ENOUGH))",
)


# --- 21.2 back to the scale of scores


def logit_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"p": np.array([0.5, 0.1, 0.9, 0.25, 0.999])}
    yield {"p": np.array([0.0, 1.0, 1e-7, 1 - 1e-7, 1e-3])}
    yield {"p": rng.random((2, 3)).astype(np.float32)}
    yield {"p": np.array([1 - 2e-4, 1 - 5e-4, 0.4], np.float32)}


chapter.exercise(
    "warm-up",
    cases=logit_cases,
    returns=("score",),
    replaces="minillama.alignment.combine:logit",
    task="BOUND is 1e-4: `from minillama.alignment.combine import BOUND`. Returns an array like p.",
    hints=(
        "Clip p first: of 0 and of 1 the logit is infinite, and one such reward spoils the mean of a whole batch.",
        "log p - log(1 - p); np.log1p(-p) is the second one.",
    ),
)(combining.logit)

chapter.edit(
    "logit", "p is not kept away from 0 and 1, where the logit is infinite.", "p = xp.clip(p, BOUND, 1 - BOUND)", ""
)
chapter.edit(
    "logit",
    "the sign is turned: it is log p - log(1 - p), positive for p above 1/2.",
    "xp.log(p) - xp.log1p(-p)",
    "xp.log1p(-p) - xp.log(p)",
)
chapter.edit("logit", "the odds are there, their logarithm is missing.", "xp.log(p) - xp.log1p(-p)", "p / (1 - p)")
chapter.edit("logit", "this is log p: take log(1 - p) off.", "xp.log(p) - xp.log1p(-p)", "xp.log(p)")
chapter.edit(
    "logit", "this is the sigmoid, of which it is the inverse.", "xp.log(p) - xp.log1p(-p)", "1 / (1 + xp.exp(-p))"
)
chapter.edit(
    "logit",
    "only the side of 0 is bounded; at 1 it is infinite too.",
    "xp.clip(p, BOUND, 1 - BOUND)",
    "xp.maximum(p, p.dtype.type(BOUND))",
)


# --- 21.3 under a preprompt


def said(*texts: str, system: str | None = None) -> list[Message]:
    """A dialogue out of what is said in it, by turns, the user's first."""
    begin: list[Message] = [{"role": "system", "content": system}] if system else []
    return begin + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


SAFE = "You are a careful assistant."


def preprompt_cases(_: np.random.Generator) -> Iterator[Case]:
    one, several = said("How do I take a boat?"), said("Hello.", "Hello to you.", "How do I take a boat?")
    told = said("Hello.", "Hello to you.", "Take it?", system="You live in the mill.")
    for messages in (one, several, told):
        for put in ("prefix", "system"):
            yield {"preprompt": SAFE, "messages": messages, "put": put}


chapter.exercise(
    "core",
    cases=preprompt_cases,
    returns=("messages",),
    replaces="minillama.alignment.distillation:under",
    task="Between the preprompt and the words that follow it stands a space. Returns new messages; those given stay.",
    hints=(
        "The first message with the role that you want gets the preprompt and a space before its words.",
        'Where no message is the system\'s, {"role": "system", "content": preprompt} goes to the front.',
        "Make new messages, {**message, ...}: those given are what is learned later, without the preprompt.",
    ),
)(distillation.under)

FIRST = "next(i for i, message in enumerate(messages) if message['role'] == role)".replace("'", '"')
chapter.edit(
    "under",
    "the preprompt stands in the last request; it comes before the whole dialogue, in the first.",
    FIRST,
    'max(i for i, message in enumerate(messages) if message["role"] == role)',
)
chapter.edit(
    "under",
    "the preprompt is in the first message, whoever says it: as a prefix it belongs to the user's words.",
    FIRST,
    "0",
)
chapter.edit(
    "under",
    "the system message that was there is lost: the preprompt goes before it.",
    'instructed(preprompt, messages[first]["content"])}',
    'preprompt if put == "system" else instructed(preprompt, messages[first]["content"])}',
)
chapter.edit(
    "under",
    "there are two system messages now: where there is one, the preprompt goes before its words.",
    'if put == "system" and messages[0]["role"] != "system":',
    'if put == "system":',
)
chapter.edit(
    "under",
    "the preprompt comes after the words; it comes before them.",
    'instructed(preprompt, messages[first]["content"])}',
    'instructed(messages[first]["content"], preprompt)}',
)
chapter.edit(
    "under",
    "every request has the preprompt; one is enough for a dialogue.",
    "return [*messages[:first], said, *messages[first + 1 :]]",
    'return [{**m, "content": instructed(preprompt, m["content"])} if m["role"] == role else m for m in messages]',
)
chapter.edit(
    "under",
    "the dialogue ends with the first request: what was said after it is lost.",
    "*messages[first + 1 :]",
    "",
)


# --- 21.4 the gate


def distilled_of(*scores: tuple[float, float]) -> list[Distilled]:
    """What came of as many prompts: scores before and after."""
    return [
        Distilled(Prompt(tuple(said(f"{i}?")), True, "train"), f"original {i}", f"answer {i}", before, after)
        for i, (before, after) in enumerate(scores)
    ]


def gate_cases(_: np.random.Generator) -> Iterator[Case]:
    # Safer, as safe, less safe, safer but still unsafe, not ended, safe but less so, safer than one that had not ended
    found = [(0.5, 1.5), (1.0, 1.0), (2.0, -1.0), (-3.0, -2.0), (0.5, LOWEST), (4.0, 3.0), (LOWEST, -4.0)]
    yield {"distilled": distilled_of(*found), "gate": True}
    yield {"distilled": distilled_of(*found), "gate": False}
    yield {"distilled": distilled_of((LOWEST, LOWEST), (1.0, 0.5)), "gate": True}


def answers_kept(own: Functions, distilled: list[Distilled], gate: bool) -> list[str]:
    return [d.answer for d in own.kept(distilled, gate)]


chapter.exercise(
    "core",
    cases=gate_cases,
    trial=answers_kept,
    returns=("kept",),
    replaces="minillama.alignment.distillation:kept",
    task="Of each there are d.before and d.after, the safety scores of what the model says without and with a"
    " preprompt; d.usable, whether the latter came to its end; d.answer. Returns the list of those that are learned.",
    hints=(
        "The gate: d.after > d.before. A preprompt that changes nothing teaches nothing.",
        "Whether an answer has ended is asked in both cases.",
    ),
)(distillation.kept)

GATE = "d.usable and (d.safer or not gate)"
chapter.edit(
    "kept",
    "the gate is always open: with it only answers are kept that the safety model scores higher.",
    GATE,
    "d.usable",
)
chapter.edit(
    "kept", "the gate is always shut: gate=False keeps all that came to their end.", GATE, "d.usable and d.safer"
)
chapter.edit(
    "kept",
    "an answer that scores as high as before is kept; the gate wants a higher score.",
    GATE,
    "d.usable and (d.after >= d.before or not gate)",
)
chapter.edit("kept", "answers that did not come to their end are kept.", GATE, "d.safer or not gate")
chapter.edit(
    "kept",
    "the answers that the preprompt has made less safe are kept.",
    GATE,
    "d.usable and (d.after < d.before or not gate)",
)
chapter.edit(
    "kept",
    "it asks whether the answer is safe, a score above 0; it should ask whether it is safer than before.",
    GATE,
    "d.usable and (d.after > 0 or not gate)",
)


# --- 21.5 how often attacks succeed


def attack_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {
        "violations": [(True,), (False,), (False, True), (True, False), (False, False, False), (True, True), (False,)],
        "groups": ["plain", "plain", "story", "story", "plain", "story", "poem"],
    }
    violations = [tuple((rng.random(n) < 0.3).tolist()) for n in rng.integers(1, 5, 40)]
    yield {"violations": violations, "groups": rng.choice(["a", "b", "c"], 40).tolist()}


def as_groups(
    function: Callable[[Sequence[tuple[bool, ...]], Sequence[Hashable]], Mapping[Any, tuple[float, int]]],
) -> Callable[..., dict[str, Estimate]]:
    """`RedTeam._by`, its shares by a learner's `success_rates`, with the package's intervals."""

    def _by(team: RedTeam, groups: Mapping[str, object], of: Callable[[Conversation], Hashable]) -> dict[str, Estimate]:
        found = function([a.violations for a in team.attacks], [of(a.conversation) for a in team.attacks])
        counts = {name: found.get(group, (math.nan, 0)) for name, group in groups.items()}
        return {name: share(round(rate * n) if n else 0, n) for name, (rate, n) in counts.items()}

    return _by


@chapter.exercise(
    "core",
    cases=attack_cases,
    returns=("rates",),
    replaces="minillama.alignment.red_team:RedTeam._by",
    adapt=as_groups,
    hints=(
        "An attack succeeds where any of its answers violates: it takes one.",
        "For each group two numbers: how many attacks it has, and how many of them succeed.",
        "zip(violations, groups, strict=True), and a dict of lists of truth values.",
    ),
)
def success_rates(
    violations: Sequence[tuple[bool, ...]], groups: Sequence[Hashable]
) -> dict[Hashable, tuple[float, int]]:
    """How often attacks of each group succeed: an attack does where any answer in it is a violation.

    violations: of each attack, for the answer in each of its turns, whether it violates. groups: of each attack its
    category, strategy or number of turns. Returns group -> the share of its attacks that succeed, and how many attacks
    it has.
    """
    of_group: dict[Hashable, list[bool]] = {}
    for answers, group in zip(violations, groups, strict=True):
        of_group.setdefault(group, []).append(any(answers))
    return {group: (sum(those) / len(those), len(those)) for group, those in of_group.items()}


chapter.edit(
    "success_rates",
    "it asks whether all answers violate: one is enough for an attack to succeed.",
    "any(answers)",
    "all(answers)",
)
chapter.edit(
    "success_rates", "only the last turn is asked; a model may have given in before.", "any(answers)", "answers[-1]"
)
chapter.edit(
    "success_rates",
    "only the first turn is asked; attacks of several turns succeed later.",
    "any(answers)",
    "answers[0]",
)
chapter.edit(
    "success_rates",
    "answers are counted, not attacks: a long attack that succeeds once would count for little.",
    ".append(any(answers))",
    ".extend(answers)",
)
chapter.edit(
    "success_rates",
    "it is divided by all attacks; a group's share is one of its own.",
    "sum(those) / len(those)",
    "sum(those) / len(violations)",
)
chapter.edit(
    "success_rates",
    "it is the share that the model withstands.",
    "any(answers)",
    "not any(answers)",
)


# --- 21.6 the reward of PPO


def reward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for n in (12, 40):
        safety, helpfulness = 2 * rng.standard_normal((2, n)) + 0.5
        yield {"safety_scores": safety, "helpfulness_scores": helpfulness, "safety_prompt": rng.random(n) < 0.3}
    far = np.array([30.0, -30.0, 1.0, 2.0, -1.5])  # a sigmoid of 1 to the last digit
    yield {"safety_scores": far, "helpfulness_scores": far[::-1].copy(), "safety_prompt": far > 1.5}


chapter.exercise(
    "stretch",
    cases=reward_cases,
    needs=("combine", "logit"),
    returns=("rewards",),
    task="By your own combine and logit; whitening is chapter 19's. Then ask: which of two answers is better does not"
    " change by whitening. What does PPO need it for, and why has rejection sampling no use for it?",
    hints=(
        "Four steps, from inside out: sigmoid of both scores, combine, logit, whiten.",
        "`from minillama.alignment.ranking import sigmoid`, `from minillama.alignment.advantages import whiten`.",
    ),
)(combining.combined_reward)

CHOSEN = "combine(sigmoid(safety_scores), sigmoid(helpfulness_scores), safety_prompt)"
chapter.edit(
    "combined_reward",
    "the scores are combined before any sigmoid, as logits: the threshold 0.15 is a probability.",
    f"logit({CHOSEN})",
    "combine(safety_scores, helpfulness_scores, safety_prompt)",
)
chapter.edit(
    "combined_reward",
    "the logit is missing: near 0 and 1 answers that differ much have nearly the same sigmoid.",
    f"logit({CHOSEN})",
    CHOSEN,
)
chapter.edit(
    "combined_reward",
    "it is not whitened: one β cannot fit scores of any size.",
    f"whiten(logit({CHOSEN}))",
    f"logit({CHOSEN})",
)
chapter.edit(
    "combined_reward",
    "it is whitened first: of numbers around 0 there is no logit.",
    f"whiten(logit({CHOSEN}))",
    f"logit(whiten({CHOSEN}))",
)
chapter.edit(
    "combined_reward",
    "each model's scores are whitened by themselves: what is unsafe then depends on the batch.",
    f"whiten(logit({CHOSEN}))",
    "logit(combine(sigmoid(whiten(safety_scores)), sigmoid(whiten(helpfulness_scores)), safety_prompt))",
)
chapter.edit(
    "combined_reward",
    "the two models' scores have changed places.",
    CHOSEN,
    "combine(sigmoid(helpfulness_scores), sigmoid(safety_scores), safety_prompt)",
)
chapter.edit(
    "combined_reward",
    "the mean is left in it: WHITEN takes it off too.",
    f"whiten(logit({CHOSEN}))",
    f"whiten(logit({CHOSEN}), shift_mean=False)",
)


@chapter.wrong("combined_reward", "the scores go back to logits without bounds: a score of 30 outweighs a whole batch.")
def without_bounds(safety_scores: Array, helpfulness_scores: Array, safety_prompt: Array) -> Array:
    safety = safety_prompt | (sigmoid(safety_scores) < combining.SAFE_ENOUGH)
    return whiten(np.where(safety, safety_scores, helpfulness_scores))
