"""Chapter 20, rounds V1 to V5: exercises, solutions and typical wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minillama import layers
from minillama.alignment import dpo, rejection
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.ranking import sigmoid
from minillama.alignment.rejection import Candidate, Pool
from minillama.alignment.scorer import LOWEST
from minillama.backend import Array
from minillama.errors import UsageError
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.pipeline import runner
from minillama.pipeline.runner import Made, Stage

chapter = Chapter(
    "ch20_rounds",
    "Rounds V1 to V5",
    """Chapter 20: rounds V1 to V5. Write the functions; the chapter says what each is for.

    minillama exercises check ch20      what is right, and the first thing that is not
    minillama exercises hint ch20       the next hint

When 20.1 and 20.2 are right, they keep the pool of a round, the second here (`make book` has made the first):

    minillama exercises run --with ch20 -- reject --model runs/mini/v1/reject --reward runs/mini/v2/reward \\
        --pool runs/mini/v1/reject/pool.jsonl --data miniature:60 --samples 4 --out runs/my-round

When 20.3 to 20.6 are right, they train on a round's preferences without any reward model:

    minillama exercises run --with ch20 -- dpo --model runs/mini/gatt --data runs/mini/v1/helpfulness.jsonl \\
        --out runs/my-dpo

B pairs; V vocabulary; π the model that is trained, ref what it was before. Log-probabilities are in nats.""",
)


def of(text: str, answer: str, reward: float) -> Candidate:
    """An answer to a prompt of one request."""
    return Candidate(Prompt(({"role": "user", "content": text},), False, "train"), answer, reward)


def readable(candidates: Sequence[Candidate]) -> list[tuple[str, str, float]]:
    """Request, answer and reward of each, sorted: in which order a pool lies is of no matter."""
    return sorted((c.prompt.messages[-1]["content"], c.answer, float(c.reward)) for c in candidates)


# --- 20.1 the best of a pool


def pool_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"candidates": [of("a?", "1", 0.5), of("a?", "2", 1.5), of("b?", "3", -2.0), of("a?", "4", 1.0)]}
    yield {"candidates": [of("a?", "1", -1.0), of("b?", "2", -0.5), of("b?", "3", -0.5), of("a?", "4", -3.0)]}
    yield {"candidates": [of(f"{i % 3}?", f"{i}", float(r)) for i, r in enumerate(rng.standard_normal(12))]}


def chosen_of(own: Functions, candidates: list[Candidate]) -> list[tuple[str, str, float]]:
    return readable(own.best_in_pool(candidates))


def as_method(function: Callable[[Sequence[Candidate]], list[Candidate]]) -> Callable[[Pool], list[Candidate]]:
    """`Pool.best` by a learner's `best_in_pool`."""
    return lambda pool: function(pool.candidates)


@chapter.exercise(
    "warm-up",
    cases=pool_cases,
    trial=chosen_of,
    returns=("chosen",),
    replaces="minillama.alignment.rejection:Pool.best",
    adapt=as_method,
    hints=(
        "A dict from prompt to the best candidate so far; then its values.",
        "Messages are dicts, which cannot be keys: str(candidate.prompt.messages) can.",
        "dict.setdefault(key, candidate) gives the one that is there, or puts this one there.",
    ),
)
def best_in_pool(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of each prompt the candidate with the highest reward, the first of equals.

    candidates: answers of all rounds, each with prompt, answer and reward, in any order; two have the same prompt where
    their messages are the same. Returns a list with one of each prompt.
    """
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        key = str(candidate.prompt.messages)
        if candidate.reward > first.setdefault(key, candidate).reward:
            first[key] = candidate
    return list(first.values())


chapter.edit(
    "best_in_pool",
    "it keeps the first of each prompt, whatever comes after it.",
    "if candidate.reward > first.setdefault(key, candidate).reward",
    "if first.setdefault(key, candidate) is None",
)
chapter.edit(
    "best_in_pool",
    "it keeps the last of each prompt, whatever came before.",
    "if candidate.reward > first.setdefault(key, candidate).reward",
    "if True",
)
chapter.edit(
    "best_in_pool",
    "of equally good answers it is the last; take the first.",
    "candidate.reward > first",
    "candidate.reward >= first",
)
chapter.edit("best_in_pool", "it is the worst of each prompt.", "candidate.reward > first", "candidate.reward < first")
chapter.edit(
    "best_in_pool",
    "it is the best of the whole pool; each prompt has one.",
    "key = str(candidate.prompt.messages)",
    'key = ""',
)
chapter.edit(
    "best_in_pool",
    "answers are told apart, not prompts: all of them stay.",
    "key = str(candidate.prompt.messages)",
    "key = candidate.answer",
)


# --- 20.2 the pool after a round


def newest(prompts: Sequence[Prompt], answers: Sequence[str]) -> Array:
    """The newest reward model: the more words, the better; it cannot read one answer at all."""
    del prompts
    return np.array([LOWEST if answer == "[INST]" else float(len(answer.split())) for answer in answers])


def round_cases(_: np.random.Generator) -> Iterator[Case]:
    # What the older model liked best is not what the newest does; c is asked in this round, b was in an earlier one.
    earlier = [
        of("a?", "One.", 9.0),
        of("a?", "Two long words.", -9.0),
        of("b?", "It is so.", 5.0),
        of("b?", "[INST]", 7.0),
    ]
    fresh = [of("a?", "Two words.", 2.0), of("c?", "See.", 1.0), of("c?", "Look.", 1.0), of("a?", "Two words.", 2.0)]
    yield {"earlier": earlier, "fresh": fresh, "rewards": newest, "keep": 4}
    yield {"earlier": earlier, "fresh": fresh, "rewards": newest, "keep": 1}
    many = [of("a?", " ".join("w" * n), float(n)) for n in (3, 1, 5, 2, 4, 5)]
    yield {
        "earlier": [of("a?", "w w w w w", 0.0), of("a?", "w w w w w w", 0.0)],
        "fresh": many,
        "rewards": newest,
        "keep": 3,
    }
    yield {"earlier": [], "fresh": many, "rewards": newest, "keep": 2}


def pool_of(own: Functions, **case: Any) -> list[tuple[str, str, float]]:
    return readable(own.pooled(**case).candidates)


chapter.exercise(
    "core",
    cases=round_cases,
    trial=pool_of,
    returns=("pool",),
    replaces="minillama.alignment.rejection:pooled",
    task="rewards(prompts, answers) gives an array of numbers, LOWEST (of minillama.alignment.scorer) for an answer"
    " that cannot be chosen; such a one leaves the pool. Returns Pool(candidates).",
    hints=(
        "Score the earlier ones anew: two reward models have two scales, and only numbers of one can be compared.",
        "dataclasses.replace(candidate, reward=...) makes a candidate with another reward.",
        "A dict of dicts, prompt -> answer -> candidate, holds every answer once. Then sort each prompt's by reward.",
    ),
)(rejection.pooled)

ANEW = "[replace(c, reward=float(score)) for c, score in zip(earlier, scores, strict=True) if score > LOWEST]"
BOTH = "[*fresh, *anew]"
RANKED = "[sorted(those.values(), key=lambda c: -c.reward)[:keep] for those in of_prompt.values()]"
chapter.edit(
    "pooled",
    "earlier answers keep the rewards of an older model: on another scale, they cannot be compared with new ones.",
    ANEW,
    "[c for c, score in zip(earlier, scores, strict=True) if score > LOWEST]",
)
chapter.edit(
    "pooled",
    "the earlier rounds are forgotten: what an earlier model could do would be lost with its answers.",
    BOTH,
    "fresh",
)
chapter.edit("pooled", "this round's answers are missing.", BOTH, "anew")
chapter.edit(
    "pooled",
    "prompts that this round has not asked are gone; those of earlier rounds stay.",
    BOTH,
    "[*fresh, *(c for c in anew if any(c.prompt == other.prompt for other in fresh))]",
)
chapter.edit(
    "pooled",
    "the same answer to the same prompt is there twice, and takes the place of another.",
    ".setdefault(candidate.answer, candidate)",
    ".setdefault(str(len(of_prompt[_key(candidate.prompt)])), candidate)",
)
chapter.edit(
    "pooled",
    "`keep` is of the whole pool; it is how many stay of each prompt.",
    "Pool([candidate for those in ranked for candidate in those])",
    "Pool(sorted((c for those in ranked for c in those), key=lambda c: -c.reward)[:keep])",
)
chapter.edit("pooled", "the worst are kept.", "-c.reward", "c.reward")
chapter.edit("pooled", "all answers are kept: `keep` says how many of each prompt.", "[:keep]", "")
chapter.edit(
    "pooled",
    "an answer that the newest model cannot score, LOWEST, is still there.",
    " if score > LOWEST]",
    "]",
)


# --- 20.3 and 20.4 the log-probabilities of given tokens


def logprob_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {
        "logits": 2 * rng.standard_normal((2, 3, 5)),
        "targets": rng.integers(0, 5, (2, 3)),
        "mask": None,
        "temperature": 1.0,
    }
    mask = np.array([[0, 1, 1, 0], [1, 1, 1, 1]], bool)
    targets = np.where(mask, rng.integers(0, 6, mask.shape), -100)  # anything where the mask is false
    yield {"logits": 2 * rng.standard_normal((2, 4, 6)), "targets": targets, "mask": mask, "temperature": 0.7}
    logits = rng.standard_normal((4, 7))
    logits[1] = np.nan  # a place that was never computed
    mask = np.array([True, False, True, True])
    yield {"logits": logits, "targets": rng.integers(0, 7, 4), "mask": mask, "temperature": 1.5}
    far = (200 * rng.standard_normal((3, 4))).astype(np.float32)
    yield {"logits": far, "targets": rng.integers(0, 4, 3), "mask": None, "temperature": 1.0}


chapter.exercise(
    "core",
    cases=logprob_cases,
    returns=("logprobs", "saved"),
    task="As `saved`, return whatever your token_logprobs_backward will need.",
    hints=(
        "log softmax(z)[target] = z[target] - log Σ e^z with z = logits / τ; take the highest z of each row off first.",
        "Make rows of it, (N, V) and (N,), and take scores[np.arange(N), at].",
        "Where the mask is false the target may be -100 and the logits NaN: index with 0 there, np.where at the end.",
    ),
)(layers.token_logprobs)


def changed(change: Callable[[Array, Array, float], Array]) -> Callable[..., tuple[Array, tuple]]:
    """`token_logprobs` made another way: change(logits, targets, temperature) of the valid places."""

    def wrong(
        logits: Array, targets: Array, mask: Array | None = None, *, temperature: float = 1.0
    ) -> tuple[Array, tuple]:
        valid = np.ones(targets.shape, bool) if mask is None else mask
        y = np.zeros(targets.shape, logits.dtype)
        y[valid] = change(logits[valid], targets[valid], temperature)
        return y, ()

    return wrong


def right(logits: Array, targets: Array, temperature: float) -> Array:
    y, _ = layers.token_logprobs(logits, targets, temperature=temperature)
    return y


@chapter.wrong(
    "token_logprobs", "the temperature is not used: it divides the logits, as it did when the tokens were drawn."
)
@changed
def without_temperature(logits: Array, targets: Array, temperature: float) -> Array:
    del temperature
    return right(logits, targets, 1.0)


@chapter.wrong("token_logprobs", "the logits are multiplied by the temperature; they are divided by it.")
@changed
def times_temperature(logits: Array, targets: Array, temperature: float) -> Array:
    return right(logits, targets, 1 / temperature)


@chapter.wrong("token_logprobs", "the log-probability is divided by the temperature; it is the logits that are.")
@changed
def divided_late(logits: Array, targets: Array, temperature: float) -> Array:
    return right(logits, targets, 1.0) / np.array(temperature, logits.dtype)


@chapter.wrong(
    "token_logprobs", "this is the logit of the target: the logarithm of the sum over the vocabulary is not taken off."
)
@changed
def not_normalised(logits: Array, targets: Array, temperature: float) -> Array:
    return logits[np.arange(len(targets)), targets] / np.array(temperature, logits.dtype)


@chapter.wrong("token_logprobs", "these are probabilities: the logarithm is missing.")
@changed
def no_logarithm(logits: Array, targets: Array, temperature: float) -> Array:
    return np.exp(right(logits, targets, temperature))


@chapter.wrong("token_logprobs", "this is -log p, a loss; here it is log p, which is never above 0.")
@changed
def negative(logits: Array, targets: Array, temperature: float) -> Array:
    return -right(logits, targets, temperature)


@chapter.wrong("token_logprobs", "it overflows: take the highest logit of each row off before the exponential.")
@changed
def overflowing(logits: Array, targets: Array, temperature: float) -> Array:
    z = logits / np.array(temperature, logits.dtype)
    return z[np.arange(len(targets)), targets] - np.log(np.exp(z).sum(axis=1))


@chapter.wrong("token_logprobs", "where the mask is false it is not 0.")
def unmasked(
    logits: Array, targets: Array, mask: Array | None = None, *, temperature: float = 1.0
) -> tuple[Array, tuple]:
    at = targets if mask is None else np.where(mask, targets, 0)
    return layers.token_logprobs(logits, at, temperature=temperature)


def logprobs_there_and_back(
    own: Functions, logits: Array, targets: Array, mask: Array | None, temperature: float, dy: Array
) -> Array:
    _, saved = own.token_logprobs(logits, targets, mask, temperature=temperature)
    return own.token_logprobs_backward(dy, saved)


def logprob_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in logprob_cases(rng):
        yield {**case, "dy": rng.standard_normal(case["targets"].shape).astype(case["logits"].dtype)}


def logprob_gradient(own: Functions) -> None:
    logits, targets = np.random.default_rng(1).standard_normal((2, 3, 4)), np.array([[0, 3, 1], [2, 2, 0]])
    mask = np.array([[1, 1, 0], [0, 1, 1]], bool)
    layers.gradcheck(
        lambda z: own.token_logprobs(z, targets, mask, temperature=0.8), own.token_logprobs_backward, logits
    )


chapter.exercise(
    "core",
    cases=logprob_backward_cases,
    trial=logprobs_there_and_back,
    proof=logprob_gradient,
    needs=("token_logprobs",),
    returns=("dlogits",),
    task="With `overwrite` you may put the gradient into the logits' memory, or leave that be.",
    hints=(
        "Of log softmax(z)[target] by z: onehot(target) - softmax(z), what is there less what was expected.",
        "z = logits / τ: by the chain rule there is a 1/τ, besides the τ in the softmax.",
        "Rows of the mask's false places are 0; a NaN in them is not made 0 by a product.",
    ),
)(layers.token_logprobs_backward)

# What the package saves: rows (N, V), shape, at (N,), valid (N,) or None, highest, log_total, temperature


@chapter.wrong("token_logprobs_backward", "the sign is turned: this is the gradient of -log p, softmax - onehot.")
def of_the_loss(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    del overwrite
    return -layers.token_logprobs_backward(dy, saved)


@chapter.wrong("token_logprobs_backward", "the 1/τ of the chain rule is missing.")
def chain_missing(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    del overwrite
    return layers.token_logprobs_backward(dy, saved) * np.array(saved[-1], dy.dtype)


def as_at_one(dy: Array, saved: tuple) -> tuple[Array, Array]:
    """dlogits as if τ were 1, and which rows are valid."""
    rows, shape, at, valid, *_ = saved
    found = layers.token_logprobs(rows, at, valid)[1]
    return layers.token_logprobs_backward(dy.reshape(-1), found).reshape(shape), valid


@chapter.wrong("token_logprobs_backward", "the softmax is that of the logits themselves; it is of logits / τ.")
def softmax_at_one(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    del overwrite
    return as_at_one(dy, saved)[0] / np.array(saved[-1], dy.dtype)


@chapter.wrong("token_logprobs_backward", "the temperature is not used.")
def at_one(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    del overwrite
    return as_at_one(dy, saved)[0]


@chapter.wrong("token_logprobs_backward", "dy is not used: each token's gradient is multiplied by its own dy.")
def dy_missing(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    del overwrite
    return layers.token_logprobs_backward(np.ones_like(dy), saved)


@chapter.wrong("token_logprobs_backward", "the one-hot is missing: only the token itself makes its own logit rise.")
def softmax_alone(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    del overwrite
    rows, shape, at, valid, *_, temperature = saved
    d = layers.token_logprobs_backward(dy, saved).reshape(rows.shape)
    d[np.arange(len(at)), at] -= dy.reshape(-1) / np.array(temperature, dy.dtype) * (True if valid is None else valid)
    return d.reshape(shape)


@chapter.wrong("token_logprobs_backward", "where the mask is false the gradient is not 0.")
def all_rows(dy: Array, saved: tuple, *, overwrite: bool = False) -> Array:
    del overwrite
    rows, shape, at, _, highest, log_total, temperature = saved
    return layers.token_logprobs_backward(dy, (rows, shape, at, None, highest, log_total, temperature))


# --- 20.5 and 20.6 preferences without a reward model


def dpo_cases(rng: np.random.Generator) -> Iterator[Case]:
    for B, beta, count in ((4, 0.1, None), (5, 0.5, None), (3, 0.1, 12.0)):
        ref_chosen, ref_rejected = -rng.exponential(20, (2, B))
        chosen, rejected = (ref + 3 * rng.standard_normal(B) for ref in (ref_chosen, ref_rejected))
        yield {
            "chosen": chosen,
            "rejected": rejected,
            "ref_chosen": ref_chosen,
            "ref_rejected": ref_rejected,
            "beta": beta,
            "count": count,
        }


def chance_at_first(own: Functions) -> str | None:
    """None where a policy that is its own reference has the loss log 2."""
    chosen, rejected = np.array([-30.0, -3.0]), np.array([-12.0, -40.0])
    loss, _ = own.dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    if not np.isclose(loss, np.log(2)):
        return f"Of a policy that is its reference the loss is log 2 = 0.6931, whatever the answers; here {loss:.4g}."
    return None


chapter.exercise(
    "core",
    cases=dpo_cases,
    proof=chance_at_first,
    returns=("loss", "saved"),
    replaces="minillama.alignment.dpo:dpo_loss",
    task="As `saved`, return whatever your dpo_loss_backward will need.",
    hints=(
        "The reward of an answer is β (log π - log ref): how much likelier it has become.",
        "With these rewards it is chapter 17's ranking loss without a margin: -log σ(r_c - r_r), a mean over pairs.",
    ),
)(dpo.dpo_loss)

IMPLIED = "implicit_reward(logprobs, ref, beta)"
RANKING = "ranking_loss(chosen_reward, rejected_reward, count=count)"
chapter.edit(
    "dpo_loss",
    "the reference is missing: a long answer is unlikely under every model, so compare with it.",
    IMPLIED,
    "beta * logprobs",
)
chapter.edit(
    "dpo_loss",
    "the references are added, or have changed places: each answer's own is taken off, log π - log ref.",
    IMPLIED,
    "beta * (logprobs + ref)",
)
chapter.edit("dpo_loss", "β is missing.", IMPLIED, "(logprobs - ref)")
chapter.edit("dpo_loss", "it divides by β; β multiplies the log-ratios.", IMPLIED, "(logprobs - ref) / beta")
chapter.edit(
    "dpo_loss",
    "chosen and rejected have changed places.",
    RANKING,
    "ranking_loss(rejected_reward, chosen_reward, count=count)",
)
chapter.edit(
    "dpo_loss",
    "it is a sum: divide by the pairs, or by `count`.",
    RANKING,
    "ranking_loss(chosen_reward, rejected_reward, count=1)",
)
chapter.edit(
    "dpo_loss",
    "`count` is not used: parts of a batch must add up.",
    RANKING,
    "ranking_loss(chosen_reward, rejected_reward)",
)
chapter.edit(
    "dpo_loss",
    "β multiplies the loss; it belongs into σ, onto the rewards.",
    f"loss, saved = {RANKING}",
    "loss, saved = ranking_loss(chosen_reward / beta, rejected_reward / beta, count=count); loss = beta * loss",
)


def dpo_there_and_back(own: Functions, dloss: float, **case: Any) -> tuple[Array, Array]:
    _, saved = own.dpo_loss(**case)
    gradients: tuple[Array, Array] = own.dpo_loss_backward(saved, dloss)
    return gradients


def dpo_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case, dloss in zip(dpo_cases(rng), (1.0, 0.5, 2.0), strict=True):
        yield {**case, "dloss": dloss}


def dpo_gradient(own: Functions) -> None:
    chosen, rejected = np.random.default_rng(1).standard_normal((2, 4)) - 5
    refs = np.full((2, 4), -5.0, np.float32)  # no float64: held fixed
    layers.gradcheck(
        lambda c, r: own.dpo_loss(c, r, *refs, beta=0.4),
        lambda dloss, saved: own.dpo_loss_backward(saved, dloss),
        chosen,
        rejected,
    )


chapter.exercise(
    "core",
    cases=dpo_backward_cases,
    trial=dpo_there_and_back,
    proof=dpo_gradient,
    needs=("dpo_loss",),
    returns=("dchosen", "drejected"),
    replaces="minillama.alignment.dpo:dpo_loss_backward",
    hints=(
        "By the rewards it is what chapter 17 has: -σ(r_r - r_c) / N for the chosen one, the opposite for the other.",
        "And r = β (log π - log ref): one more factor. The reference is not trained.",
    ),
)(dpo.dpo_loss_backward)


def with_gradients(change: Callable[[Array, float], tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    """`dpo_loss_backward` with its dchosen and β changed into two gradients."""

    def wrong(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
        dchosen, _ = dpo.dpo_loss_backward(saved, dloss)
        return change(dchosen, saved[1])

    return wrong


@chapter.wrong("dpo_loss_backward", "β is missing: the rewards are β times the log-ratios.")
@with_gradients
def beta_missing(dchosen: Array, beta: float) -> tuple[Array, Array]:
    return dchosen / beta, -dchosen / beta


@chapter.wrong("dpo_loss_backward", "both signs are turned: descending would make the chosen answer less likely.")
@with_gradients
def dpo_ascends(dchosen: Array, beta: float) -> tuple[Array, Array]:
    del beta
    return -dchosen, dchosen


@chapter.wrong("dpo_loss_backward", "both answers get the same gradient; that of the rejected one has the other sign.")
@with_gradients
def both_alike(dchosen: Array, beta: float) -> tuple[Array, Array]:
    del beta
    return dchosen, dchosen


@chapter.wrong("dpo_loss_backward", "it is σ(r_c - r_r): the pairs that are judged well already would weigh the most.")
def wrong_sigmoid(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    (x, n), beta = saved
    d = sigmoid(x) * (-dloss / n) * beta
    return d, -d


@chapter.wrong("dpo_loss_backward", "the 1/N of the mean is missing.")
def dpo_not_a_mean(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    (x, _), beta = saved
    return dpo.dpo_loss_backward(((x, 1), beta), dloss)


@chapter.wrong("dpo_loss_backward", "dloss is not used: what comes after the loss may scale it.")
def dpo_dloss_missing(saved: tuple, dloss: float = 1.0) -> tuple[Array, Array]:
    del dloss
    return dpo.dpo_loss_backward(saved)


# --- 20.7 what has to be made again


ROAD = [
    Stage("sft", ("sft", "--data", "miniature:400")),
    Stage("v1/pairs.jsonl", ("preferences", "--model", Made("sft"), "--count", "100")),
    Stage("v1/reward", ("reward", "--model", Made("sft"), "--data", Made("v1/pairs.jsonl"))),
    Stage("v1/reject", ("reject", "--model", Made("sft"), "--reward", Made("v1/reward"), "--samples", "8")),
    Stage("v1/random", ("reject", "--model", Made("sft"), "--reward", Made("v1/reward"), "--pick", "random")),
    Stage("v2/pairs.jsonl", ("preferences", "--model", Made("v1/reject"), "--model", Made("sft"))),
    Stage("v2/reject", ("reject", "--model", Made("v1/reject"), "--pool", Made("v1/reject", "pool.jsonl"))),
]


def with_command(name: str, *command: str | Made) -> list[Stage]:
    """The road, with the command of one stage changed."""
    return [replace(stage, command=command) if stage.name == name else stage for stage in ROAD]


def key_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {
        "before": ROAD,
        "after": with_command("v1/pairs.jsonl", "preferences", "--model", Made("sft"), "--count", "200"),
    }
    yield {"before": ROAD, "after": with_command("v1/random", "reject", "--model", Made("sft"), "--pick", "worst")}
    yield {"before": ROAD, "after": with_command("sft", "sft", "--data", "miniature:500")}
    yield {"before": ROAD, "after": ROAD}
    # A file that no stage makes is another, under the same name.
    yield {"before": ROAD, "after": [replace(stage, checksum="9f") if stage is ROAD[2] else stage for stage in ROAD]}
    other = with_command(
        "v2/reject", "reject", "--model", Made("v1/reject"), "--pool", Made("v1/reject", "older.jsonl")
    )
    yield {"before": ROAD, "after": other}
    yield {"before": ROAD, "after": [*ROAD, Stage("v3/pairs.jsonl", ("preferences", "--model", Made("v2/reject")))]}


def made_again(own: Functions, before: list[Stage], after: list[Stage]) -> list[str]:
    """The stages of `after` whose key is another than in `before`."""
    old, new = own.keys(before), own.keys(after)
    return [name for name, key in new.items() if old.get(name) != key]


def keys_can_be_written(own: Functions) -> str | None:
    """None where the keys are texts, no two stages have the same, and what no stage makes raises."""
    found = own.keys(ROAD)
    if not all(isinstance(key, str) for key in found.values()):
        return "A key is a text: it is written into a file, to be compared with in another process."
    twins = own.keys([Stage("a", ("sft",)), Stage("b", ("sft",))])
    if twins["a"] == twins["b"]:
        return "Two stages of other names have the same key: the name belongs to it, it says where the output goes."
    for wrong in ([ROAD[2]], [ROAD[0], ROAD[0]]):
        try:
            own.keys(wrong)
        except UsageError:
            continue
        except Exception as error:
            return (
                f"Where a stage reads what none before it makes it raises {type(error).__name__}; expected UsageError."
            )
        return "A stage that reads what none before it makes, or two of the same name: expected a UsageError."
    return None


chapter.exercise(
    "stretch",
    cases=key_cases,
    trial=made_again,
    proof=keys_can_be_written,
    returns=("again",),
    replaces="minillama.pipeline.runner:keys",
    task="A stage has name; command, texts and Made(stage, file) where it reads another stage's output; reads(), the"
    " names of these; and checksum, of what it reads that no stage makes. Returns name -> key, a text. It is tried by"
    " which keys change when a stage does: these stages are made again.",
    hints=(
        "A checksum of the command, hashlib.sha256(json.dumps(...).encode()).hexdigest(), changes when that does.",
        "But if the pairs change, so must the reward model, though its command is the same: put into the checksum, in"
        " the place of each Made, the key of the stage that it reads, and the file.",
        "Python's own hash() is another in each process: the record on the disk would mean nothing.",
    ),
)(runner.keys)

SAID = "[found[x.stage], x.file] if isinstance(x, Made) else x"
chapter.edit(
    "keys",
    "only the command is in it: when a stage is made again, those that read its output stay as they were.",
    SAID,
    "[x.stage, x.file] if isinstance(x, Made) else x",
)
chapter.edit(
    "keys",
    "every stage depends on all before it: what does not read a stage need not be made again.",
    "json.dumps([stage.name, *said",
    "json.dumps([stage.name, *said, list(found.values())",
)
chapter.edit(
    "keys",
    "which file of the other stage is read is not in it.",
    SAID,
    "[found[x.stage]] if isinstance(x, Made) else x",
)
chapter.edit("keys", "the stage's checksum is not in it: a file may change under its name.", ", stage.checksum", "")
chapter.edit(
    "keys",
    "what a stage reads is not in it, neither its name nor its key.",
    SAID,
    "None if isinstance(x, Made) else x",
)
chapter.edit(
    "keys",
    "the number of stages is in it: a stage added at the end would make all of them again.",
    "json.dumps([stage.name, *said",
    "json.dumps([stage.name, *said, len(stages)",
)
