"""Chapter 19, PPO: exercises, solutions and typical wrong answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillama import layers
from minillama.alignment import advantages, policy
from minillama.backend import Array
from minillama.exercises.chapter import Case, Chapter, Functions

chapter = Chapter(
    "ch19_ppo",
    "PPO",
    """Chapter 19: PPO. Write the functions; the chapter derives each formula.

    minillama exercises check ch19      what is right, and the first thing that is not
    minillama exercises hint ch19       the next hint

When 19.3 to 19.9 are right, your functions train a chat model on what a reward model says of its answers (`make book`
has made both; here five iterations):

    minillama exercises run --with ch19 -- ppo --model runs/mini/v5/reject --reward runs/mini/v5/reward \\
        --iterations 5 --out runs/my-ppo

B answers of up to T tokens. `mask` (B, T) is true on an answer's tokens, which stand side by side, the end token among
them. Before them is the prompt, after them padding: there the arrays may hold anything, even NaN, and NaN · 0 is NaN.
`count` is what a mean is over where these rows are a part of a larger minibatch.""",
)


def answers(T: int, *spans: tuple[int, int]) -> Array:
    """The mask of answers that begin and end at these places. Returns (B, T) bool."""
    place = np.arange(T)
    return np.stack([(place >= begin) & (place < end) for begin, end in spans])


def garbage(mask: Array, *arrays: Array) -> list[Array]:
    """Each array with something that means nothing where the mask is false."""
    return [np.where(mask, x, np.nan).astype(x.dtype) for x in arrays]


def logprobs_of(rng: np.random.Generator, shape: tuple[int, ...], apart: float = 0.3) -> tuple[Array, Array]:
    """Log-probabilities of the same tokens under two models that are not far apart."""
    old = -rng.exponential(1.5, shape)
    return old + apart * rng.standard_normal(shape), old


# --- 19.1 how far from the reference


def kl_cases(rng: np.random.Generator) -> Iterator[Case]:
    for mask in (answers(6, (0, 6), (0, 6)), answers(6, (1, 5), (2, 6), (0, 1)), answers(4, (0, 2), (3, 4))):
        ours, reference = logprobs_of(rng, mask.shape)
        yield {"logprobs": ours, "ref_logprobs": reference, "mask": mask}
    mask = answers(5, (2, 4), (0, 5))
    ours, reference = garbage(mask, *logprobs_of(rng, mask.shape))
    yield {"logprobs": ours, "ref_logprobs": reference, "mask": mask}


chapter.exercise(
    "warm-up",
    cases=kl_cases,
    returns=("kl",),
    replaces="minillama.alignment.advantages:kl_k1",
    hints=(
        "log π - log ref of every token of the answer, and the sum of an answer's: that is the log of a quotient of"
        " probabilities of whole answers.",
        "np.where(mask, x, 0) before you add; what the mask excludes may be NaN.",
    ),
)(advantages.kl_k1)

MASKED = "logprobs, ref_logprobs = masked(mask, logprobs, ref_logprobs)"
PRODUCT = "logprobs, ref_logprobs = mask * logprobs, mask * ref_logprobs"
chapter.edit(
    "kl_k1",
    "the sign is turned: KL(π ‖ ref) is a mean of log π - log ref, over answers of π.",
    "(logprobs - ref_logprobs)",
    "(ref_logprobs - logprobs)",
)
chapter.edit(
    "kl_k1",
    "it is a mean over the answer's tokens: the log-probability of an answer is a sum, and so is its KL.",
    "(logprobs - ref_logprobs).sum(axis=1)",
    "(logprobs - ref_logprobs).sum(axis=1) / mask.sum(axis=1)",
)
chapter.edit(
    "kl_k1", "prompt and padding are in it: only where the mask is true are there tokens of the answer.", MASKED, ""
)
chapter.edit(
    "kl_k1",
    "the mask is multiplied: where it is false may stand NaN, and NaN · 0 is NaN. Use np.where.",
    MASKED,
    PRODUCT,
)
chapter.edit(
    "kl_k1",
    "it is one number; each answer has a KL of its own, (B,).",
    ".sum(axis=1)",
    ".sum(axis=1).mean()",
)
chapter.edit(
    "kl_k1",
    "absolute values are added: single terms may be negative, and only with their signs is the mean without bias.",
    "(logprobs - ref_logprobs)",
    "abs(logprobs - ref_logprobs)",
)


# --- 19.2 what the values are worth


def variance_cases(rng: np.random.Generator) -> Iterator[Case]:
    for mask in (answers(5, (0, 5), (0, 5)), answers(6, (1, 5), (2, 6), (0, 1))):
        returns = rng.standard_normal(mask.shape) + 1
        yield {"values": returns + 0.5 * rng.standard_normal(mask.shape) - 0.7, "returns": returns, "mask": mask}
    mask = answers(4, (1, 3), (0, 4))
    values, returns = garbage(mask, *rng.standard_normal((2, 2, 4)))
    yield {"values": values, "returns": returns, "mask": mask}
    yield {"values": rng.standard_normal((1, 3)), "returns": np.full((1, 3), 0.5), "mask": np.ones((1, 3), bool)}


chapter.exercise(
    "warm-up",
    cases=variance_cases,
    returns=("share",),
    replaces="minillama.alignment.policy:explained_variance",
    hints=(
        "Two variances over the tokens where the mask is true: of what is left, R - V, and of R.",
        "A variance takes the mean off: values that are all too high by the same explain as much as right ones.",
        "Where all returns are the same there is nothing to explain: 0, not 0/0.",
    ),
)(policy.explained_variance)

chapter.edit(
    "explained_variance",
    "it is a mean square, not a variance: take the mean of R - V off first.",
    "unexplained = _variance(returns - values, mask)",
    "unexplained = masked_mean((returns - values) ** 2, mask)",
)
chapter.edit(
    "explained_variance",
    "prompt and padding are in it, as zeros: they change mean and variance.",
    "unexplained = _variance(returns - values, mask)",
    "mask = xp.ones_like(mask); unexplained = _variance(returns - values, mask)",
)
chapter.edit(
    "explained_variance",
    "it is divided by the variance of the values; the returns are what is to be explained.",
    "_variance(returns, mask)",
    "_variance(values, mask)",
)
chapter.edit("explained_variance", "this is the unexplained share: take it from 1.", "1 - unexplained", "unexplained")


@chapter.wrong("explained_variance", "where the returns do not vary it divides by 0; then it is 0.")
def over_nothing(values: Array, returns: Array, mask: Array) -> Array:
    return 1 - np.var((returns - values)[mask]) / np.var(returns[mask])


# --- 19.3 the rewards of tokens


def reward_cases(rng: np.random.Generator) -> Iterator[Case]:
    square = answers(3, (0, 2), (0, 3), (1, 2))  # as many answers as places
    for mask, beta in ((square, 0.1), (answers(6, (1, 5), (2, 6)), 0.5), (answers(4, (0, 1), (1, 4), (0, 4)), 0.02)):
        ours, reference = logprobs_of(rng, mask.shape)
        yield {
            "scores": rng.standard_normal(len(mask)),
            "logprobs": ours,
            "ref_logprobs": reference,
            "mask": mask,
            "beta": beta,
        }
    mask = answers(5, (2, 4), (0, 3))
    ours, reference = garbage(mask, *(x.astype(np.float32) for x in logprobs_of(rng, mask.shape)))
    scores = rng.standard_normal(2).astype(np.float32)
    yield {"scores": scores, "logprobs": ours, "ref_logprobs": reference, "mask": mask, "beta": 0.01}


chapter.exercise(
    "core",
    cases=reward_cases,
    returns=("rewards",),
    replaces="minillama.alignment.advantages:token_rewards",
    hints=(
        "Two parts: -β (log π - log ref) at every token of the answer, and the score at one token of it.",
        "Which is the last? The place where the mask is true and, counted from the right, it is the first such:"
        " np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1.",
        "scores[:, None] is a column: (B, 1) goes with (B, T), while (B,) does not, or worse, does.",
    ),
)(advantages.token_rewards)

SCORED = "xp.where(last, scores[:, None], 0)"
PENALTY = "beta * (logprobs - ref_logprobs)"
chapter.edit(
    "token_rewards",
    "the sign of the KL is turned: being likelier than under the reference would be rewarded.",
    f" - {PENALTY}",
    f" + {PENALTY}",
)
chapter.edit(
    "token_rewards",
    "the score stands in the last place of the row, which is padding where an answer is shorter.",
    f"{SCORED} - ",
    "xp.where(xp.arange(mask.shape[1]) == mask.shape[1] - 1, scores[:, None], 0) - ",
)
chapter.edit(
    "token_rewards",
    "it is off by one: the score stands behind the answer, where nothing counts any more.",
    f"{SCORED} - ",
    "xp.where(xp.roll(last, 1, axis=1), scores[:, None], 0) - ",
)
chapter.edit(
    "token_rewards",
    "the score stands at the answer's first token: it is known when the answer has ended.",
    f"{SCORED} - ",
    "xp.where(mask & (xp.cumsum(mask, axis=1) == 1), scores[:, None], 0) - ",
)
chapter.edit(
    "token_rewards",
    "every token gets the score: a long answer would get it many times.",
    SCORED,
    "xp.where(mask, scores[:, None], 0)",
)
chapter.edit(
    "token_rewards",
    "the scores lie along the tokens: (B,) beside (B, T) is a row. Make a column of them, scores[:, None].",
    SCORED,
    "xp.where(last, scores, 0)",
)
chapter.edit(
    "token_rewards",
    "the whole answer's penalty stands at its end; each token pays its own, so that it is told which one was dear.",
    PENALTY,
    "beta * xp.where(last, (logprobs - ref_logprobs).sum(axis=1, keepdims=True), 0)",
)
chapter.edit("token_rewards", "β multiplies the score as well.", SCORED, "xp.where(last, beta * scores[:, None], 0)")
chapter.edit("token_rewards", "β is not used.", PENALTY, "(logprobs - ref_logprobs)")
chapter.edit("token_rewards", "prompt and padding pay for KL too.", MASKED, "")
chapter.edit(
    "token_rewards",
    "the mask is multiplied: where it is false may stand NaN, and NaN · 0 is NaN. Use np.where.",
    MASKED,
    PRODUCT,
)


# --- 19.4 generalized advantage estimation


def gae_cases(rng: np.random.Generator) -> Iterator[Case]:
    for mask, gamma, lam in (
        (answers(4, (0, 4), (0, 4)), 1.0, 0.95),
        (answers(6, (1, 5), (2, 6), (0, 1)), 0.9, 0.8),
        (answers(5, (0, 3), (1, 5)), 1.0, 0.0),
        (answers(5, (2, 4), (0, 5)), 0.97, 1.0),
    ):
        rewards, values = rng.standard_normal((2, *mask.shape))
        yield {"rewards": np.where(mask, rewards, 0), "values": values, "mask": mask, "gamma": gamma, "lam": lam}
    mask = answers(5, (1, 4), (0, 2))
    rewards, values = garbage(mask, *rng.standard_normal((2, 2, 5)).astype(np.float32))
    yield {"rewards": rewards, "values": values, "mask": mask, "gamma": 1.0, "lam": 0.95}


def by_hand(own: Functions) -> str | None:
    """None where an answer of two tokens comes out as on paper."""
    found, returns = own.gae(np.array([[0.5, 2.0]]), np.array([[1.0, 3.0]]), np.ones((1, 2), bool), gamma=1.0, lam=0.5)
    if not np.allclose(found, [[2.0, -1.0]]) or not np.allclose(returns, [[3.0, 2.0]]):
        return (
            "Rewards 0.5 and 2, values 1 and 3, γ = 1, λ = 0.5: the last token has δ = 2 - 3 = -1, the first"
            " 0.5 + 3 - 1 + 0.5 · (-1) = 2."
        )
    return None


chapter.exercise(
    "core",
    cases=gae_cases,
    proof=by_hand,
    returns=("advantages", "returns"),
    replaces="minillama.alignment.advantages:gae",
    hints=(
        "Set rewards and values to 0 where the mask is false, before anything else: the value after the end is 0.",
        "Go from the last place to the first, and carry two columns (B,) along: the next value and the next advantage.",
        "δ = r_t + γ V_next - V_t; A_t = δ + γ λ A_next where the mask is true, else 0. The returns are A + V.",
    ),
)(advantages.gae)

RECURSION = "delta + gamma * lam * next_advantage"
RETURN = "return advantages, advantages + values"
chapter.edit(
    "gae",
    "the value of what stands behind the end is used; nothing comes after the end token: V is 0 there.",
    "rewards, values = masked(mask, rewards, values)",
    "(rewards,) = masked(mask, rewards)\n    kept, values = values, values",
)
chapter.edit(
    "gae",
    "the advantages are whitened before the returns are made of them: the value model would learn numbers of another"
    " scale. Whiten afterwards.",
    RETURN,
    "white = whiten(advantages, mask); return white, xp.where(mask, white + values, 0)",
)
chapter.edit(
    "gae",
    "the returns are the rewards to come, whatever λ is: here they are A + V, which is that for λ = 1 only.",
    RETURN,
    "ones, _ = gae(rewards, values, mask, gamma=gamma, lam=1.0); return advantages, ones + values",
)
chapter.edit(
    "gae",
    "it is the TD error alone; add γ λ times the advantage of the next token.",
    RECURSION,
    "delta",
)
chapter.edit(
    "gae",
    "λ is missing in the recursion: then it is the rewards to come, less the value.",
    RECURSION,
    "delta + gamma * next_advantage",
)
chapter.edit(
    "gae", "γ is missing in the recursion: the next advantage counts γ λ.", RECURSION, "delta + lam * next_advantage"
)
chapter.edit(
    "gae",
    "the value of the token itself is not taken off: that is how much better it went than expected.",
    " - values[:, t]",
    "",
)
chapter.edit(
    "gae",
    "the value of the next token is missing in δ: it stands for all that comes after.",
    "gamma * next_value",
    "0 * next_value",
)
chapter.edit(
    "gae",
    "it goes from the first token to the last; what a token has led to is known from the end.",
    "reversed(range(rewards.shape[1]))",
    "range(rewards.shape[1])",
)
chapter.edit(
    "gae", "the returns lack the values: return_t = A_t + V_t.", RETURN, "return advantages, advantages.copy()"
)


@chapter.wrong("gae", "the returns are not 0 where the mask is false: what the values hold there is still in them.")
def returns_of_padding(
    rewards: Array, values: Array, mask: Array, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Array, Array]:
    found, _ = advantages.gae(rewards, values, mask, gamma=gamma, lam=lam)
    return found, found + values


# --- 19.5 whitening


def whiten_cases(rng: np.random.Generator) -> Iterator[Case]:
    for mask, shift in ((answers(6, (1, 5), (2, 6), (0, 1)), True), (answers(5, (0, 5), (3, 5)), False)):
        yield {"x": 2 * rng.standard_normal(mask.shape) + 3, "mask": mask, "shift_mean": shift}
    yield {"x": rng.standard_normal(7) - 1, "mask": None, "shift_mean": True}
    yield {"x": np.array([[0.4, 9.0]]), "mask": np.array([[True, False]]), "shift_mean": True}  # a single one
    mask = answers(4, (1, 3), (0, 3))
    (x,) = garbage(mask, rng.standard_normal(mask.shape).astype(np.float32))
    yield {"x": x, "mask": mask, "shift_mean": True}


chapter.exercise(
    "core",
    cases=whiten_cases,
    returns=("whitened",),
    replaces="minillama.alignment.advantages:whiten",
    hints=(
        "Mean and variance are those of the entries where the mask is true, of all rows together.",
        "np.where(mask, x - mean, 0), its mean square over the N valid entries, and √(variance + 1e-8).",
        "Without shift_mean the mean is added again, after the division. At last: 0 where the mask is false.",
    ),
)(advantages.whiten)

SCALED = "scaled = centred / xp.sqrt(masked_mean(centred * centred, mask) + EPS)"


@chapter.wrong("whiten", "prompt and padding are in mean and variance; only where the mask is true are there numbers.")
def whitened_with_padding(x: Array, mask: Array | None = None, *, shift_mean: bool = True) -> Array:
    white = advantages.whiten(x, None, shift_mean=shift_mean)
    return white if mask is None else np.where(mask, white, 0)


@chapter.wrong("whiten", "each row is whitened by itself: a bad answer would have as many good tokens as a good one.")
def whitened_by_row(x: Array, mask: Array | None = None, *, shift_mean: bool = True) -> Array:
    if x.ndim == 1:
        return advantages.whiten(x, mask, shift_mean=shift_mean)
    rows = zip(x, [None] * len(x) if mask is None else mask, strict=True)
    return np.stack([advantages.whiten(row, valid, shift_mean=shift_mean) for row, valid in rows])


chapter.edit(
    "whiten",
    "the variance is divided by N - 1; here it is the population's, divided by N.",
    "masked_mean(centred * centred, mask) + EPS",
    "masked_mean(centred * centred, mask, xp.maximum(mask.sum(dtype=x.dtype) - 1, 1)) + EPS",
)
chapter.edit(
    "whiten",
    "it divides by the variance; the deviation is its root.",
    SCALED,
    "scaled = centred / (masked_mean(centred * centred, mask) + EPS)",
)
chapter.edit(
    "whiten",
    "1e-8 is added to the deviation; it belongs to the variance, under the root.",
    SCALED,
    "scaled = centred / (xp.sqrt(masked_mean(centred * centred, mask)) + EPS)",
)
chapter.edit(
    "whiten",
    "the mean is always taken off: with shift_mean=False it is put back.",
    "scaled if shift_mean else scaled + mean",
    "scaled",
)
chapter.edit(
    "whiten",
    "without shift_mean it is x over its deviation, which moves the mean too: add the mean after the division.",
    "scaled if shift_mean else scaled + mean",
    "scaled if shift_mean else scaled + mean / xp.sqrt(masked_mean(centred * centred, mask) + EPS)",
)
chapter.edit(
    "whiten",
    "where the mask is false it is not 0.",
    "return xp.where(mask, scaled if shift_mean else scaled + mean, 0)",
    "return (x - mean) / xp.sqrt(masked_mean(centred * centred, mask) + EPS) + (0 if shift_mean else mean)",
)


# --- 19.6 and 19.7 the policy's loss


def policy_cases(rng: np.random.Generator) -> Iterator[Case]:
    for mask, clip, count in (
        (answers(5, (0, 5), (0, 5), (0, 5)), 0.2, None),
        (answers(6, (1, 5), (2, 6), (0, 1)), 0.1, None),
        (answers(4, (0, 2), (1, 4)), 0.3, 12.0),
    ):
        ours, old = logprobs_of(rng, mask.shape)
        given = {"logprobs": ours, "old_logprobs": old, "advantages": rng.standard_normal(mask.shape), "mask": mask}
        yield {**given, "clip": clip, "count": count}
    mask = answers(5, (2, 4), (0, 5))
    ours, old = logprobs_of(rng, mask.shape)
    arrays = garbage(mask, ours, old, rng.standard_normal(mask.shape))
    yield {
        **dict(zip(("logprobs", "old_logprobs", "advantages"), arrays, strict=True)),
        "mask": mask,
        "clip": 0.2,
        "count": None,
    }
    ours, old = logprobs_of(rng, (2, 3), apart=0.0)  # the first minibatch: the ratio is 1
    yield {
        "logprobs": ours,
        "old_logprobs": old,
        "advantages": rng.standard_normal((2, 3)),
        "mask": np.ones((2, 3), bool),
        "clip": 0.2,
        "count": None,
    }


chapter.exercise(
    "core",
    cases=policy_cases,
    returns=("loss", "saved"),
    replaces="minillama.alignment.policy:policy_loss",
    task="As `saved`, return whatever your policy_loss_backward will need.",
    hints=(
        "ρ = exp(log π - log π_old), with the difference set to 0 where the mask is false.",
        "Two losses a token, -A ρ and -A clip(ρ, 1 - ε, 1 + ε); of these the larger, whatever the sign of A.",
        "The sum over the valid tokens of the whole batch, over their number, or over `count`.",
    ),
)(policy.policy_loss)

WORSE = "xp.maximum(free, clipped).sum() / n"
chapter.edit(
    "policy_loss",
    "it is the smaller of the two losses: then what has moved too far is still paid for.",
    WORSE,
    "xp.minimum(free, clipped).sum() / n",
)
chapter.edit(
    "policy_loss",
    "the smaller of ρ and clip(ρ) is taken before A multiplies it: for a negative advantage that is the wrong one.",
    WORSE,
    "(-advantages * xp.minimum(ratio, xp.clip(ratio, 1 - clip, 1 + clip))).sum() / n",
)
chapter.edit("policy_loss", "nothing is clipped.", WORSE, "free.sum() / n")
chapter.edit(
    "policy_loss",
    "the clipped loss stands alone: a step in the wrong direction could not be undone. Take the larger of the two.",
    WORSE,
    "clipped.sum() / n",
)
chapter.edit(
    "policy_loss",
    "the ratio is upside down: ρ = π / π_old.",
    "_ratio(logprobs, old_logprobs, mask)",
    "_ratio(old_logprobs, logprobs, mask)",
)
chapter.edit(
    "policy_loss",
    "the sign is turned: a loss is made smaller, so a good token's must fall as ρ grows.",
    WORSE,
    "xp.minimum(-free, -clipped).sum() / n",
)
chapter.edit(
    "policy_loss",
    "log π stands in the place of the ratio: that is the policy gradient without a memory of who sampled.",
    WORSE,
    "(-advantages * masked(mask, logprobs)[0]).sum() / n",
)
chapter.edit(
    "policy_loss",
    "the mean is over all places, prompt and padding too: the loss would shrink with the padding.",
    "n = valid_count(mask, ratio.dtype, count)",
    "n = mask.size if count is None else count",
)
chapter.edit(
    "policy_loss",
    "`count` is not used: parts of a minibatch must add up.",
    "valid_count(mask, ratio.dtype, count)",
    "valid_count(mask, ratio.dtype)",
)
chapter.edit(
    "policy_loss",
    "it is a mean of the answers' means: a token of a short answer weighs more. Divide once, at the end.",
    WORSE,
    "(xp.maximum(free, clipped).sum(axis=1) / mask.sum(axis=1)).mean() * (1 if count is None else mask.sum() / n)",
)
chapter.edit(
    "policy_loss", "it is a sum: divide by the valid tokens, or by `count`.", WORSE, "xp.maximum(free, clipped).sum()"
)


@chapter.wrong(
    "policy_loss", "the mask is multiplied: where it is false may stand NaN, and NaN · 0 is NaN. Use np.where."
)
def loss_times_mask(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip: float = 0.2,
    count: float | None = None,
) -> tuple[Array, tuple]:
    ratio = np.exp(logprobs - old_logprobs)
    losses = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 1 - clip, 1 + clip))
    return (losses * mask).sum() / (mask.sum() if count is None else count), ()


def policy_there_and_back(
    own: Functions,
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    clip: float,
    count: float | None,
    dloss: float,
) -> Array:
    _, saved = own.policy_loss(logprobs, old_logprobs, advantages, mask, clip=clip, count=count)
    return own.policy_loss_backward(saved, dloss)


def policy_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case, dloss in zip(policy_cases(rng), (1.0, 0.5, 1.0, 2.0, 1.0), strict=True):
        yield {**case, "dloss": dloss}


def policy_gradient(own: Functions) -> None:
    """Central differences on both sides of each clip, for advantages of both signs."""
    old = np.full((2, 5), -1.0)
    moved = np.array([[-0.5, -0.1, 0.0, 0.1, 0.5]] * 2)
    ours, given, mask = old + moved, np.array([[1.5] * 5, [-0.5] * 5]).astype(np.float32), np.ones((2, 5), bool)
    old = old.astype(np.float32)  # no float64: held fixed
    layers.gradcheck(
        lambda x: own.policy_loss(x, old, given, mask),
        lambda dloss, saved: own.policy_loss_backward(saved, dloss),
        ours,
    )


chapter.exercise(
    "core",
    cases=policy_backward_cases,
    trial=policy_there_and_back,
    proof=policy_gradient,
    needs=("policy_loss",),
    returns=("dlogprobs",),
    replaces="minillama.alignment.policy:policy_loss_backward",
    hints=(
        "dρ / dlog π = ρ, so d(-A ρ) / dlog π = -A ρ; the clipped loss depends on ρ only inside the range.",
        "Inside the range both losses are the same number, and its gradient is -A ρ. Outside, ask which one is larger.",
        "Where the unclipped loss is at least as large as the clipped one: -A ρ / N. Elsewhere, and off the mask, 0.",
    ),
)(policy.policy_loss_backward)

MOVES = "xp.where(moves, free, 0) / n"
chapter.edit_saved(
    "policy_loss_backward",
    "the gradient goes through where the clipped loss is the larger one: there the loss does not depend on ρ.",
    MOVES,
    "free / n",
)
chapter.edit_saved(
    "policy_loss_backward",
    "inside the range, where both losses are equal, there is no gradient: nothing would ever begin to move.",
    "(free >= clipped)",
    "(free > clipped)",
)
chapter.edit_saved(
    "policy_loss_backward",
    "it is 0 wherever ρ is out of range; where the step went against the advantage the loss still counts, to undo it.",
    "(free >= clipped)",
    "(xp.abs(ratio - 1) <= clip)",
)
chapter.edit_saved(
    "policy_loss_backward",
    "ρ is missing: the derivative of e^x is e^x, so it is -A ρ.",
    MOVES,
    "xp.where(moves, -advantages, 0) / n",
)
chapter.edit_saved("policy_loss_backward", "the 1/N of the mean is missing.", MOVES, "xp.where(moves, free, 0)")
chapter.edit_saved(
    "policy_loss_backward",
    "it is divided by these tokens though the loss is divided by `count`.",
    "n = valid_count(mask, ratio.dtype, count)",
    "n = valid_count(mask, ratio.dtype)",
)


@chapter.wrong("policy_loss_backward", "the sign is turned: descending would make good tokens less likely.")
def policy_ascends(saved: tuple, dloss: float = 1.0) -> Array:
    return -policy.policy_loss_backward(saved, dloss)


@chapter.wrong("policy_loss_backward", "dloss is not used: what comes after the loss may scale it.")
def policy_dloss_missing(saved: tuple, dloss: float = 1.0) -> Array:
    del dloss
    return policy.policy_loss_backward(saved)


# --- 19.8 and 19.9 the value model's loss


def value_cases(rng: np.random.Generator) -> Iterator[Case]:
    for mask, clip, count in (
        (answers(5, (0, 5), (0, 5), (0, 5)), 0.2, None),
        (answers(6, (1, 5), (2, 6), (0, 1)), 0.4, None),
        (answers(4, (0, 2), (1, 4)), 0.2, 12.0),
    ):
        old = rng.standard_normal(mask.shape) + 1
        values, returns = old + 0.3 * rng.standard_normal(mask.shape), old + rng.standard_normal(mask.shape)
        yield {"values": values, "old_values": old, "returns": returns, "mask": mask, "clip": clip, "count": count}
    mask = answers(5, (2, 4), (0, 5))
    old, moved, returns = rng.standard_normal((3, *mask.shape))
    values, old, returns = garbage(mask, old + 0.3 * moved, old, returns)
    yield {"values": values, "old_values": old, "returns": returns, "mask": mask, "clip": 0.2, "count": None}


chapter.exercise(
    "core",
    cases=value_cases,
    returns=("loss", "saved"),
    replaces="minillama.alignment.policy:value_loss",
    task="As `saved`, return whatever your value_loss_backward will need.",
    hints=(
        "Two squared errors a token: of V, and of V kept within ε of what it was, clip(V, V_old - ε, V_old + ε).",
        "Of the two the larger; half of the mean over the valid tokens, or over `count`.",
    ),
)(policy.value_loss)

HALF = "0.5 * xp.maximum(free, clipped).sum() / n"
chapter.edit(
    "value_loss",
    "it is the smaller of the two: then moving far from V_old would make the loss smaller.",
    HALF,
    "0.5 * xp.minimum(free, clipped).sum() / n",
)
chapter.edit("value_loss", "nothing is clipped.", HALF, "0.5 * free.sum() / n")
chapter.edit(
    "value_loss", "the clipped error stands alone: take the larger of the two.", HALF, "0.5 * clipped.sum() / n"
)
chapter.edit(
    "value_loss",
    "V is clipped to ±ε around 0; keep it within ε of V_old.",
    "xp.clip(values, old_values - clip, old_values + clip)",
    "xp.clip(values, -clip, clip)",
)
chapter.edit("value_loss", "the 1/2 is missing.", HALF, "xp.maximum(free, clipped).sum() / n")
chapter.edit(
    "value_loss",
    "the mean is over all places, prompt and padding too.",
    "valid_count(mask, values.dtype, count)",
    "(mask.size if count is None else count)",
)
chapter.edit(
    "value_loss",
    "`count` is not used: parts of a minibatch must add up.",
    "valid_count(mask, values.dtype, count)",
    "valid_count(mask, values.dtype)",
)
chapter.edit(
    "value_loss",
    "it is a sum: divide by the valid tokens, or by `count`.",
    HALF,
    "0.5 * xp.maximum(free, clipped).sum()",
)
chapter.edit(
    "value_loss",
    "the mask is multiplied: where it is false may stand NaN, and NaN · 0 is NaN. Use np.where.",
    "masked(mask, values, old_values, returns)",
    "mask * values, mask * old_values, mask * returns",
)


def value_there_and_back(
    own: Functions,
    values: Array,
    old_values: Array,
    returns: Array,
    mask: Array,
    clip: float,
    count: float | None,
    dloss: float,
) -> Array:
    _, saved = own.value_loss(values, old_values, returns, mask, clip=clip, count=count)
    return own.value_loss_backward(saved, dloss)


def value_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case, dloss in zip(value_cases(rng), (1.0, 0.1, 1.0, 2.0), strict=True):
        yield {**case, "dloss": dloss}


def value_gradient(own: Functions) -> None:
    """Central differences on both sides of each clip, for returns above and below."""
    values = np.array([[-0.5, -0.1, 0.05, 0.1, 0.5]] * 2)
    old, mask = np.zeros((2, 5), np.float32), np.ones((2, 5), bool)
    returns = np.array([[0.9] * 5, [-0.7] * 5], np.float32)  # no float64: held fixed
    layers.gradcheck(
        lambda v: own.value_loss(v, old, returns, mask),
        lambda dloss, saved: own.value_loss_backward(saved, dloss),
        values,
    )


chapter.exercise(
    "core",
    cases=value_backward_cases,
    trial=value_there_and_back,
    proof=value_gradient,
    needs=("value_loss",),
    returns=("dvalues",),
    replaces="minillama.alignment.policy:value_loss_backward",
    hints=(
        "d/dV of (V - R)² / 2 is V - R. The clipped error does not depend on V where V is out of range.",
        "Where the free error is at least as large as the clipped one: (V - R) / N. Elsewhere, and off the mask, 0.",
    ),
)(policy.value_loss_backward)

FREE = "xp.where(free >= clipped, error, 0) / n"
chapter.edit_saved(
    "value_loss_backward",
    "the gradient goes through where the clipped error is the larger one: there the loss does not depend on V.",
    FREE,
    "error / n",
)
chapter.edit_saved(
    "value_loss_backward",
    "inside the range, where both errors are equal, there is no gradient: nothing would ever begin to move.",
    "free >= clipped",
    "free > clipped",
)
chapter.edit_saved(
    "value_loss_backward",
    "it is 0 wherever V is out of range; where V has moved away from its return the loss still counts.",
    "free >= clipped",
    "xp.abs(values - old_values) <= clip",
)
chapter.edit_saved(
    "value_loss_backward",
    "it is twice too large: the loss has a 1/2.",
    FREE,
    "xp.where(free >= clipped, 2 * error, 0) / n",
)
chapter.edit_saved(
    "value_loss_backward", "the 1/N of the mean is missing.", FREE, "xp.where(free >= clipped, error, 0)"
)
chapter.edit_saved(
    "value_loss_backward",
    "it is divided by these tokens though the loss is divided by `count`.",
    "valid_count(mask, values.dtype, count)",
    "valid_count(mask, values.dtype)",
)


@chapter.wrong("value_loss_backward", "the sign is turned: it is V - R, so that descending brings V to R.")
def value_ascends(saved: tuple, dloss: float = 1.0) -> Array:
    return -policy.value_loss_backward(saved, dloss)


@chapter.wrong("value_loss_backward", "dloss is not used: it is also the place for the loss's coefficient.")
def value_dloss_missing(saved: tuple, dloss: float = 1.0) -> Array:
    del dloss
    return policy.value_loss_backward(saved)


# --- 19.10 a better estimator


def k3_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield from kl_cases(rng)
    ours, reference = logprobs_of(rng, (2, 4), apart=2e-3)  # two models that are nearly the same
    yield {
        "logprobs": ours.astype(np.float32),
        "ref_logprobs": reference.astype(np.float32),
        "mask": np.ones((2, 4), bool),
    }


def no_bias(own: Functions) -> str | None:
    """None where its mean over all tokens, by their probability, is the divergence, and no term is negative."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    terms = own.kl_k3(np.log(p)[:, None], np.log(q)[:, None], np.ones((3, 1), bool))
    if not np.isclose((p * terms).sum(), (p * np.log(p / q)).sum()):
        return "Its mean over tokens drawn from π is not KL(π ‖ ref)."
    if (terms < 0).any():
        return "A term is negative: e^r - 1 - r never is."
    return None


chapter.exercise(
    "stretch",
    cases=k3_cases,
    proof=no_bias,
    returns=("kl",),
    replaces="minillama.alignment.advantages:kl_k3",
    task="Then ask: why is the mean of e^r - 1 over samples of π zero, and what does that do for the noise?",
    hints=(
        "r = log ref - log π of each token. Under π the mean of e^r is Σ π · ref/π = 1: e^r - 1 adds nothing to it.",
        "By subtraction, e^r - 1 of a small r loses its digits: 1.000001 - 1 has one left in float32. Take np.expm1.",
    ),
)(advantages.kl_k3)

K3 = "(xp.expm1(r) - r).sum(axis=1)"
chapter.edit(
    "kl_k3",
    "r has the other sign: its mean would be KL(ref ‖ π), and that not even of ref's samples.",
    "r = ref_logprobs - logprobs",
    "r = logprobs - ref_logprobs",
)
chapter.edit("kl_k3", "the -1 is missing: every token, padding too, adds 1.", K3, "(xp.exp(r) - r).sum(axis=1)")
chapter.edit(
    "kl_k3",
    "e^r - 1 by subtraction loses the digits of a small r; np.expm1(r) keeps them.",
    K3,
    "(xp.exp(r) - 1 - r).sum(axis=1)",
)
chapter.edit("kl_k3", "it is k1: -r alone, whose single terms may be negative.", K3, "(-r).sum(axis=1)")
chapter.edit("kl_k3", "it is k2, r²/2: never negative either, but biased.", K3, "(r * r / 2).sum(axis=1)")
chapter.edit("kl_k3", "it is a mean over the answer's tokens; an answer's KL is a sum.", K3, f"{K3} / mask.sum(axis=1)")
chapter.edit("kl_k3", "prompt and padding are in it.", MASKED, "")
