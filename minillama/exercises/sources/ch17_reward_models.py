"""Chapter 17, preferences and reward models: exercises, solutions and typical wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minillama import layers
from minillama.alignment import ranking, reward
from minillama.alignment.ranking import sigmoid
from minillama.alignment.reward_model import LIKELIHOOD, SCORE, RewardModel
from minillama.backend import Array
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.params import Params, accumulate

chapter = Chapter(
    "ch17_reward_models",
    "Preferences and reward models",
    """Chapter 17: preferences and reward models. Write the functions; the chapter derives each formula.

    minillama exercises check ch17      what is right, and the first thing that is not
    minillama exercises hint ch17       the next hint

When 17.2 to 17.7 are right, your functions train a safety model, which has both losses (`make book` has made the model
that it begins with, and the pairs):

    minillama exercises run --with ch17 -- reward --model runs/mini/gatt --data runs/mini/v1/safety.jsonl \\
        --safety-loss 1 --out runs/my-safety

B pairs, or rows of tokens; T tokens of a row; r a score, before any sigmoid; σ(x) = 1 / (1 + e^-x). Losses are in nats.
`count` is what a mean is over where these arrays are a part of a larger batch: then the parts' losses and gradients add
up to the batch's.""",
)


# --- 17.1 how often it agrees


def accuracy_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"chosen": np.array([1.5, -0.5, 0.25, 2.0, -1.0]), "rejected": np.array([0.5, -0.25, 0.25, 2.5, -3.0])}
    yield {"chosen": rng.standard_normal(40).astype(np.float32), "rejected": rng.standard_normal(40).astype(np.float32)}
    yield {"chosen": np.full(3, 0.7), "rejected": np.full(3, 0.7)}  # a model that finds everything equal


chapter.exercise(
    "warm-up",
    cases=accuracy_cases,
    returns=("share",),
    replaces="minillama.alignment.ranking:accuracy",
    hints=(
        "chosen > rejected is true where the model agrees; the mean of truth values is a share.",
        "A tie is no agreement: a model that gives every answer the same score has learned nothing.",
    ),
)(ranking.accuracy)

chapter.edit(
    "accuracy",
    "a tie counts as right: a model that gives every answer the same score would be right always.",
    "(chosen > rejected)",
    "(chosen >= rejected)",
)
chapter.edit(
    "accuracy",
    "this is the share of chosen answers with a score above 0: what counts is the difference within a pair.",
    "(chosen > rejected)",
    "(chosen > 0)",
)
chapter.edit(
    "accuracy",
    "each chosen answer is compared with the rejected ones of all pairs; only its own has the same prompt.",
    "(chosen > rejected).sum(dtype=chosen.dtype) / max(chosen.size, 1)",
    "(chosen[:, None] > rejected).mean(dtype=chosen.dtype)",
)
chapter.edit("accuracy", "this is how many are right; divide by the number of pairs.", " / max(chosen.size, 1)", "")
chapter.edit("accuracy", "it counts the pairs that are wrong.", "(chosen > rejected)", "(chosen < rejected)")


# --- 17.2 and 17.3 where the score stands


def reward_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"values": rng.standard_normal((3, 6)), "last": np.array([5, 2, 3])}
    values = rng.standard_normal((4, 5)).astype(np.float32)
    last = np.array([0, 4, 1, 2])
    values[np.arange(5) > last[:, None]] = np.nan  # padding may hold anything
    yield {"values": values, "last": last}


def as_rewards(function: Callable[[Array, Array], tuple[Array, Any]]) -> Callable[..., tuple[Array, Any]]:
    """`RewardModel.rewards`, which takes its scores out of all values by a learner's `rewards`."""

    def of_model(
        model: RewardModel,
        tokens: Array,
        last: Array,
        *,
        first: Array | None = None,
        mask: Array | None = None,
        recompute: bool = False,
    ) -> tuple[Array, Any]:
        last, places = np.asarray(last), np.arange(tokens.shape[1])
        real = places <= last[:, None]  # (T,) <= (B, 1) -> (B, T)
        if mask is not None:
            real &= mask
        tokens = np.where(real, tokens, 0)
        hidden, saved_forward = model.forward(tokens, mask=mask, recompute=recompute)
        values, saved_head = layers.linear(hidden, model.params[SCORE])  # (B, T, C) -> (B, T, 1)
        scores, saved = function(values[..., 0], last)
        saved_likelihood = None
        if model.config.head == "score+likelihood":
            answer = real & (places >= np.asarray(first)[:, None])
            likelihood, saved_likelihood = model._likelihood(hidden, tokens, answer)
            scores = scores + model.params[LIKELIHOOD] * likelihood
        return scores, (saved_forward, saved_head, hidden.shape, saved, saved_likelihood)

    return of_model


def as_rewards_backward(function: Callable[[Array, Any], Array]) -> Callable[..., Params]:
    """`RewardModel.rewards_backward` by a learner's."""

    def of_model(model: RewardModel, drewards: Array, saved: tuple) -> Params:
        saved_forward, saved_head, shape, own, saved_likelihood = saved
        dhidden, dweight = layers.linear_backward(function(drewards, own)[..., None], saved_head)
        head_grads: Params = {SCORE: dweight}
        if saved_likelihood is not None:
            head_grads[LIKELIHOOD] = (drewards * saved_likelihood[0]).sum(keepdims=True)
            of_likelihood = drewards * model.params[LIKELIHOOD]
            dlikelihood, grads = model._likelihood_backward(of_likelihood, saved_likelihood, shape)
            dhidden += dlikelihood
            head_grads |= grads
        return accumulate(model.backward(dhidden, saved_forward), head_grads)

    return of_model


@chapter.exercise(
    "warm-up",
    cases=reward_cases,
    returns=("scores", "saved"),
    replaces="minillama.alignment.reward_model:RewardModel.rewards",
    adapt=as_rewards,
    task="As `saved`, return whatever your rewards_backward will need.",
    hints=(
        "Of row b you want values[b, last[b]]: one number out of each row, at a place of its own.",
        "Two arrays of indices are taken side by side: values[np.arange(B), last] has the shape (B,).",
    ),
)
def rewards(values: Array, last: Array) -> tuple[Array, tuple]:
    """The score of each answer: what the scalar head says at the token that ends it.

    values: (B, T) float, what the head says at every place of a row: prompt, answer, then padding, where it may say
    anything. last: (B,) integers, the place of the token that ends the answer. Returns the scores (B,), and `saved`.
    """
    at = np.arange(len(values)), last
    return values[at], (at, values.shape)


@chapter.wrong(
    "rewards", "it takes the last place of the row: where an answer is shorter than others, this is padding."
)
def at_the_last_place(values: Array, last: Array) -> tuple[Array, tuple]:
    del last
    return values[:, -1], ()


chapter.edit(
    "rewards",
    "it is off by one, at the first token of the padding: `last` is the place of the end token itself.",
    "at = np.arange(len(values)), last",
    "at = np.arange(len(values)), np.minimum(last + 1, values.shape[1] - 1)",
)
chapter.edit(
    "rewards",
    "it is off by one, before the answer has ended: `last` is the place of the end token itself.",
    "at = np.arange(len(values)), last",
    "at = np.arange(len(values)), last - 1",
)
chapter.edit(
    "rewards",
    "each row is read at the places of all rows, (B, B): the index of the row goes along with its place.",
    "return values[at]",
    "return values[:, last]",
)
chapter.edit(
    "rewards",
    "it is a mean over the tokens: a reward model is read where it knows the whole answer, at its end alone.",
    "return values[at]",
    "return np.stack([v[: i + 1].mean() for v, i in zip(values, last)])",
)


def rewards_there_and_back(own: Functions, values: Array, last: Array, drewards: Array) -> Array:
    _, saved = own.rewards(values, last)
    return own.rewards_backward(drewards, saved)


def rewards_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in reward_cases(rng):
        yield {**case, "drewards": rng.standard_normal(len(case["last"])).astype(case["values"].dtype)}


def rewards_gradient(own: Functions) -> None:
    values, last = np.random.default_rng(1).standard_normal((3, 4)), np.array([3, 0, 2])
    layers.gradcheck(lambda v: own.rewards(v, last), own.rewards_backward, values)


@chapter.exercise(
    "core",
    cases=rewards_backward_cases,
    trial=rewards_there_and_back,
    proof=rewards_gradient,
    needs=("rewards",),
    returns=("dvalues",),
    replaces="minillama.alignment.reward_model:RewardModel.rewards_backward",
    adapt=as_rewards_backward,
    hints=(
        "The score is one of the values. What is the gradient of all the others?",
        "Zeros of the shape (B, T), and drewards at the same places that were read.",
    ),
)
def rewards_backward(drewards: Array, saved: tuple) -> Array:
    """Gradient of `rewards`, given that of the scores, drewards (B,). Returns dvalues (B, T)."""
    at, shape = saved
    dvalues = np.zeros(shape, drewards.dtype)
    dvalues[at] = drewards
    return dvalues


@chapter.wrong("rewards_backward", "the gradient stands in the last place of each row, not where the score was read.")
def back_to_the_last_place(drewards: Array, saved: tuple) -> Array:
    dvalues = np.zeros(saved[1], drewards.dtype)
    dvalues[:, -1] = drewards
    return dvalues


@chapter.wrong("rewards_backward", "every place gets the gradient: the other values are not in the score.")
def back_to_all(drewards: Array, saved: tuple) -> Array:
    return np.broadcast_to(drewards[:, None], saved[1]).copy()


@chapter.wrong(
    "rewards_backward", "at each of the places stands the gradient of all rows: the index of the row is missing."
)
def back_to_all_rows(drewards: Array, saved: tuple) -> Array:
    (_, last), shape = saved
    dvalues = np.zeros(shape, drewards.dtype)
    dvalues[:, last] = drewards[:, None]
    return dvalues


# --- 17.4 and 17.5 the ranking loss


def ranking_cases(rng: np.random.Generator) -> Iterator[Case]:
    for B, margin, count in ((5, True, None), (4, False, None), (3, True, 12.0), (6, False, 10.0)):
        chosen, rejected = rng.standard_normal((2, B)) + 0.3
        given = rng.choice([0.0, 1 / 3, 2 / 3, 1.0], B) + 0.1 if margin else None
        yield {"chosen": chosen, "rejected": rejected, "margin": given, "count": count}
    # Scores that are far apart, on the right side and on the wrong one, in float32.
    far = np.array([[200.0, -150.0, 3.0], [-100.0, 90.0, 2.5]], np.float32)
    yield {"chosen": far[0], "rejected": far[1], "margin": np.ones(3, np.float32), "count": None}


def shapes_are_compared(own: Functions) -> str | None:
    """None where unlike shapes raise."""
    scores = np.array([0.5, 1.0, -0.5])
    try:
        own.ranking_loss(scores, -scores, np.ones((3, 1)))
    except Exception:
        return None
    return (
        "Scores (3,) with a margin (3, 1) went through: NumPy makes (3, 3) of them, and every pair gets the margins of"
        " all. Raise an error where the shapes differ."
    )


chapter.exercise(
    "core",
    cases=ranking_cases,
    proof=shapes_are_compared,
    returns=("loss", "saved"),
    replaces="minillama.alignment.ranking:ranking_loss",
    task="As `saved`, return whatever your ranking_loss_backward will need. Scores may be hundreds apart.",
    hints=(
        "x = chosen - rejected, less the margin if there is one; the loss is -log σ(x), summed, over N.",
        "e^250 is infinite in float32. In log σ(x) = min(x, 0) - log(1 + e^-|x|) the exponent is never positive.",
        "Compare the shapes first: (B,) with a margin (B, 1) would broadcast to (B, B) without a word.",
    ),
)(ranking.ranking_loss)

chapter.edit(
    "ranking_loss",
    "chosen and rejected have changed places: the loss falls where the rejected answer scores higher.",
    "apart = chosen - rejected",
    "apart = rejected - chosen",
)
chapter.edit(
    "ranking_loss",
    "the margin is added: it is what the difference must exceed, so it is taken off.",
    "apart = apart - margin",
    "apart = apart + margin",
)
chapter.edit("ranking_loss", "the margin is not used.", "apart = apart - margin", "pass")
chapter.edit(
    "ranking_loss",
    "the margin has become a column: (B,) and (B, 1) broadcast to (B, B), so each pair gets the margins of all.",
    "apart = apart - margin",
    "apart = apart - margin[:, None]",
)
chapter.edit(
    "ranking_loss",
    "it is a sum: divide by N, the number of pairs, or `count` where that is given.",
    "_log_sigmoid_loss(apart, count)",
    "_log_sigmoid_loss(apart, 1)",
)
chapter.edit(
    "ranking_loss",
    "the mean is over these pairs though `count` says how many there are in all: parts of a batch must add up.",
    "_log_sigmoid_loss(apart, count)",
    "_log_sigmoid_loss(apart, None)",
)
chapter.edit(
    "ranking_loss",
    "this is -σ: the logarithm is missing.",
    "return _log_sigmoid_loss(apart, count)",
    "n = len(apart) if count is None else count; return -sigmoid(apart).sum() / n, ()",
)
chapter.edit(
    "ranking_loss",
    "it overflows: σ of scores far apart is 0 in float32, whose logarithm is infinite. Write log σ without forming σ.",
    "return _log_sigmoid_loss(apart, count)",
    "n = len(apart) if count is None else count; return -np.log(1 / (1 + np.exp(-apart))).sum() / n, ()",
)


def ranking_there_and_back(
    own: Functions, chosen: Array, rejected: Array, margin: Array | None, count: float | None, dloss: float
) -> tuple[Array, Array]:
    _, saved = own.ranking_loss(chosen, rejected, margin, count=count)
    gradients: tuple[Array, Array] = own.ranking_loss_backward(saved, dloss)
    return gradients


def ranking_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case, dloss in zip(ranking_cases(rng), (1.0, 1.0, 0.5, 2.0, 1.0), strict=True):
        yield {**case, "dloss": dloss}


def ranking_gradient(own: Functions) -> None:
    chosen, rejected = np.random.default_rng(1).standard_normal((2, 4))
    margin = np.array([1.0, 0.0, 1 / 3, 2 / 3]).astype(np.float32)  # no float64: held fixed
    layers.gradcheck(
        lambda c, r: own.ranking_loss(c, r, margin),
        lambda dloss, saved: own.ranking_loss_backward(saved, dloss),
        chosen,
        rejected,
    )


chapter.exercise(
    "core",
    cases=ranking_backward_cases,
    trial=ranking_there_and_back,
    proof=ranking_gradient,
    needs=("ranking_loss",),
    returns=("dchosen", "drejected"),
    replaces="minillama.alignment.ranking:ranking_loss_backward",
    hints=(
        "The derivative of -log σ(x) is -σ(-x): nearly -1 for a pair judged wrongly, nearly 0 for one judged well.",
        "x = r_c - r_r - m: the rejected answer gets the same gradient with the other sign.",
        "Mind the 1/N of the mean, and dloss, which multiplies everything.",
    ),
)(ranking.ranking_loss_backward)


@chapter.wrong("ranking_loss_backward", "it is σ(x): then the pairs that are judged well already would move the most.")
def wrong_sigmoid(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    x, n = saved
    d = sigmoid(x) * (-dloss / n)
    return d, -d


@chapter.wrong("ranking_loss_backward", "both signs are turned: descending would bring the chosen score down.")
def ascending(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    dchosen, drejected = ranking.ranking_loss_backward(saved, dloss)
    return drejected, dchosen


@chapter.wrong(
    "ranking_loss_backward", "both scores get the same gradient; that of the rejected one has the other sign."
)
def both_alike(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    dchosen, _ = ranking.ranking_loss_backward(saved, dloss)
    return dchosen, dchosen


@chapter.wrong("ranking_loss_backward", "the 1/N of the mean is missing.")
def not_a_mean(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    return ranking.ranking_loss_backward((saved[0], 1), dloss)


@chapter.wrong("ranking_loss_backward", "dloss is not used: what comes after the loss may scale it.")
def dloss_missing(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    del dloss
    return ranking.ranking_loss_backward(saved, 1.0)


chapter.edit_saved(
    "ranking_loss_backward",
    "the margin is not in it: σ is taken of the scores' difference alone.",
    "return _log_sigmoid_loss(apart, count)",
    "return _log_sigmoid_loss(chosen - rejected, count)",
)
chapter.edit_saved(
    "ranking_loss_backward",
    "it is divided by these pairs though the loss is divided by `count`.",
    "return _log_sigmoid_loss(apart, count)",
    "return _log_sigmoid_loss(apart, None)",
)


# --- 17.6 and 17.7 the safety loss


def safety_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, count in (((4, 2), None), ((5,), None), ((3, 2), 16.0)):
        yield {"scores": rng.standard_normal(shape) + 0.4, "safe": rng.random(shape) < 0.4, "count": count}
    far = np.array([120.0, -130.0, 140.0, -0.5], np.float32)
    yield {"scores": far, "safe": np.array([True, False, False, True]), "count": None}


chapter.exercise(
    "core",
    cases=safety_cases,
    returns=("loss", "saved"),
    replaces="minillama.alignment.ranking:safety_loss",
    task="As `saved`, return whatever your safety_loss_backward will need.",
    hints=(
        "It is a binary cross-entropy with the score as its logit: P(safe) = σ(r), P(unsafe) = 1 - σ(r) = σ(-r).",
        "Turn the sign of the unsafe answers' scores: then it is the mean of -log σ for all.",
        "Of both answers of B pairs the mean is over 2B: over all entries of `scores`, whatever its shape.",
    ),
)(ranking.safety_loss)

SAFETY = "_log_sigmoid_loss(xp.where(safe, scores, -scores), count)"
chapter.edit(
    "safety_loss",
    "the labels are turned: a high score must mean that an answer is safe.",
    "safe, scores, -scores",
    "safe, -scores, scores",
)
chapter.edit(
    "safety_loss",
    "unsafe answers are pushed up like safe ones: for them it is log σ(-r).",
    "xp.where(safe, scores, -scores)",
    "scores",
)
chapter.edit(
    "safety_loss",
    "unsafe answers are left out: they are what the model shall tell from the safe ones.",
    f"loss, saved = {SAFETY}",
    "loss, saved = _log_sigmoid_loss(scores[safe], scores.size if count is None else count)",
)
chapter.edit(
    "safety_loss",
    "it is a sum: divide by the number of answers, or by `count`.",
    SAFETY,
    SAFETY.replace("count)", "1)"),
)
chapter.edit(
    "safety_loss",
    "the mean is over pairs; it is one over answers, two for each pair.",
    SAFETY,
    SAFETY.replace("count)", "len(scores) if count is None else count)"),
)
chapter.edit(
    "safety_loss",
    "`count` is not used: parts of a batch must add up.",
    SAFETY,
    SAFETY.replace("count)", "None)"),
)
chapter.edit(
    "safety_loss",
    "it overflows: 1 - σ(r) of a high score is 0 in float32, whose logarithm is infinite. It is σ(-r).",
    f"loss, saved = {SAFETY}",
    "p = 1 / (1 + xp.exp(-scores)); n = scores.size if count is None else count; "
    "loss, saved = -xp.where(safe, xp.log(p), xp.log(1 - p)).sum() / n, ()",
)


def safety_there_and_back(own: Functions, scores: Array, safe: Array, count: float | None, dloss: float) -> Array:
    _, saved = own.safety_loss(scores, safe, count=count)
    return own.safety_loss_backward(saved, dloss)


def safety_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case, dloss in zip(safety_cases(rng), (1.0, 0.5, 2.0, 1.0), strict=True):
        yield {**case, "dloss": dloss}


def safety_gradient(own: Functions) -> None:
    scores, safe = np.random.default_rng(1).standard_normal((3, 2)), np.array([[1, 0], [1, 1], [0, 0]], bool)
    layers.gradcheck(
        lambda r: own.safety_loss(r, safe), lambda dloss, saved: own.safety_loss_backward(saved, dloss), scores
    )


chapter.exercise(
    "core",
    cases=safety_backward_cases,
    trial=safety_there_and_back,
    proof=safety_gradient,
    needs=("safety_loss",),
    returns=("dscores",),
    replaces="minillama.alignment.ranking:safety_loss_backward",
    hints=(
        "d/dr of -log σ(r) is σ(r) - 1, and of -log σ(-r) it is σ(r).",
        "Both in one: (σ(r) - y) / N with y = 1 for safe answers, 0 for others. Chapter 10's, with two classes.",
    ),
)(ranking.safety_loss_backward)


@chapter.wrong("safety_loss_backward", "it is (σ(r) - 1) / N for unsafe answers too; for them it is σ(r) / N.")
def as_if_safe(saved: tuple, dloss: float = 1.0) -> Array:
    (x, n), safe = saved
    return (sigmoid(np.where(safe, x, -x)) - 1) * (dloss / n)


@chapter.wrong("safety_loss_backward", "the sign is turned: descending would make unsafe answers score higher.")
def unsafe_up(saved: tuple, dloss: float = 1.0) -> Array:
    return -ranking.safety_loss_backward(saved, dloss)


@chapter.wrong(
    "safety_loss_backward", "the inner sign is missing where an answer is unsafe: the loss there is of -r, not of r."
)
def chain_missing(saved: tuple, dloss: float = 1.0) -> Array:
    d = ranking.safety_loss_backward(saved, dloss)
    return np.where(saved[1], d, -d)


@chapter.wrong("safety_loss_backward", "the 1/N of the mean is missing.")
def safety_not_a_mean(saved: tuple, dloss: float = 1.0) -> Array:
    (x, _), safe = saved
    return ranking.safety_loss_backward(((x, 1), safe), dloss)


@chapter.wrong("safety_loss_backward", "dloss is not used: it is also the weight that the loss has beside the other.")
def safety_dloss_missing(saved: tuple, dloss: float = 1.0) -> Array:
    del dloss
    return ranking.safety_loss_backward(saved, 1.0)


# --- 17.8 calibration


def calibration_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"apart": 1.5 * rng.standard_normal(60) + 0.6, "bins": 5}
    yield {"apart": np.array([0.1, -0.2, 3.0, 2.5, -4.0, 40.0, 0.6, -0.7]), "bins": 4}  # sure to the last digit
    yield {"apart": rng.choice([-1.0, 1.0], 30, p=[0.3, 0.7]) * 0.8, "bins": 10}


def as_calibration(function: Callable[[Array, int], tuple[Array, Array, float]]) -> Callable[[Array], dict[str, float]]:
    """`reward._calibration` by a learner's `calibration`."""

    def _calibration(apart: Array) -> dict[str, float]:
        right, pairs, error = function(apart, reward.BINS)
        measures = {"calibration_error": float(error)}
        for i in np.flatnonzero(pairs):
            name = f"{50 + 50 * i // reward.BINS} to {50 + 50 * (i + 1) // reward.BINS} % sure"
            measures |= {f"right, {name}": float(right[i]), f"pairs, {name}": float(pairs[i])}
        return measures

    return _calibration


@chapter.exercise(
    "stretch",
    cases=calibration_cases,
    returns=("right", "pairs", "error"),
    replaces="minillama.alignment.reward:_calibration",
    adapt=as_calibration,
    task="And ask: by which number would you divide all scores to make the error small, and does the accuracy change?",
    hints=(
        "The model prefers the answer with the higher score, and is sure of it with c = σ(|apart|). It is right where"
        " apart > 0.",
        "The bin of c is the whole part of (c - 1/2) · 2 · bins; c = 1 belongs into the last one.",
        "A bin's part of the error is |mean of c - share right| times its share of the pairs: |Σ c - rights| / n.",
    ),
)
def calibration(apart: Array, bins: int) -> tuple[Array, Array, float]:
    """Whether a reward model is right as often as it says it is.

    apart: (n,) float, r_c - r_r of n pairs. Of the answer with the higher score the model says that it is the preferred
    one with the probability c = σ(|apart|), from 1/2 to 1: `bins` bins of equal width. Returns the share of pairs in
    each bin whose model is right (bins,), NaN where there are none; how many there are (bins,); and the expected
    calibration error: how far a bin's mean c and its share are apart, the mean over pairs.
    """
    sure, right = 1 / (1 + np.exp(-np.abs(apart))), apart > 0
    at = np.minimum((sure - 0.5) * 2 * bins, bins - 1).astype(int)
    pairs, rights, sums = (np.bincount(at, weight, bins) for weight in (np.ones(len(at)), right, sure))
    share = np.full(bins, np.nan)
    share[pairs > 0] = rights[pairs > 0] / pairs[pairs > 0]
    return share, pairs, float(np.abs(sums - rights).sum() / len(apart))


chapter.edit(
    "calibration",
    "the bins are from 0 to 1: of two answers the preferred one has at least 1/2, so half of the bins stay empty.",
    "(sure - 0.5) * 2 * bins",
    "sure * bins",
)
chapter.edit(
    "calibration",
    "the error is a mean over bins: a bin with two pairs weighs as much as one with hundreds.",
    "float(np.abs(sums - rights).sum() / len(apart))",
    "float(np.abs(sums - rights)[pairs > 0].__truediv__(pairs[pairs > 0]).mean())",
)
chapter.edit(
    "calibration",
    "too sure in one bin makes up for too unsure in another: take absolute values bin by bin.",
    "np.abs(sums - rights).sum()",
    "np.abs((sums - rights).sum())",
)
chapter.edit(
    "calibration",
    "every pair counts as right where the model is sure: it is right where the chosen answer scores higher.",
    "apart > 0",
    "np.abs(apart) > 0",
)
chapter.edit(
    "calibration",
    "an empty bin says 0, as if the model had always been wrong there: nothing is known, NaN.",
    "np.full(bins, np.nan)",
    "np.zeros(bins)",
)
chapter.edit(
    "calibration",
    "σ is of apart with its sign: how sure the model is does not depend on whether it is right.",
    "np.exp(-np.abs(apart))",
    "np.exp(-apart)",
)
