"""Chapter 11, pretraining and loss by size: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from minillama.backend import Array
from minillama.exercises.chapter import Case, Chapter

chapter = Chapter(
    "ch11_pretraining",
    "Pretraining, and loss by size",
    """Chapter 11: pretraining, and loss by size. Write the functions; the chapter says what each is for.

    minillama exercises check ch11      what is right, and the first thing that is not
    minillama exercises hint ch11       the next hint

T tokens of a window, B windows of a batch; step, window and epoch are counted from 0. Losses are in nats.""",
)


# --- 11.1 nats a byte


def byte_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"nats": [80.0, 20.0, 35.0], "sizes": [700, 100, 400]}
    yield {"nats": [12.5], "sizes": [100]}
    yield {"nats": [4.0, 300.0], "sizes": [10, 3000]}


@chapter.exercise(
    "warm-up",
    cases=byte_cases,
    returns=("nats_per_byte",),
    hints=(
        "What does all the text cost, and how long is all of it?",
        "One quotient of two sums: a long document counts for more than a short one.",
    ),
)
def nats_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> float:
    """What a byte of a text costs: the nats of all its documents over the bytes of all of them.

    nats: of each document, summed over its tokens. sizes: the bytes of each in UTF-8. Returns nats a byte.
    """
    return sum(nats) / sum(sizes)


chapter.edit(
    "nats_per_byte",
    "it is a mean of the documents' own means, in which a short one counts as much as a long one: sums first.",
    "sum(nats) / sum(sizes)",
    "sum(n / size for n, size in zip(nats, sizes, strict=True)) / len(nats)",
)
chapter.edit(
    "nats_per_byte",
    "these are nats a document: divide by bytes.",
    "sum(nats) / sum(sizes)",
    "sum(nats) / len(nats)",
)
chapter.edit(
    "nats_per_byte", "these are bits: a nat is not divided by log 2.", "sum(sizes)", "sum(sizes) / math.log(2)"
)
chapter.edit(
    "nats_per_byte",
    "it is upside down: these are bytes for a nat.",
    "sum(nats) / sum(sizes)",
    "sum(sizes) / sum(nats)",
)


# --- 11.2 perplexity


def perplexity_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"losses": [1.0, 3.0], "counts": [4096, 512]}
    yield {"losses": [2.0, 2.0, 2.0], "counts": [7, 8, 9]}
    yield {"losses": [0.0, 6.9], "counts": [10, 10]}


@chapter.exercise(
    "warm-up",
    cases=perplexity_cases,
    returns=("perplexity",),
    hints=(
        "First the loss of a token over all batches: a batch with more tokens weighs more.",
        "Then one exponential of that mean.",
    ),
)
def perplexity(losses: Sequence[float], counts: Sequence[int]) -> float:
    """e to the power of the mean loss of a token, over all batches.

    losses: the mean loss of each batch. counts: how many tokens that was a mean of. Returns the perplexity.
    """
    total = sum(loss * count for loss, count in zip(losses, counts, strict=True))
    return math.exp(total / sum(counts))


chapter.edit(
    "perplexity",
    "batches are averaged as if all had as many tokens: weight each by its count.",
    "math.exp(total / sum(counts))",
    "math.exp(sum(losses) / len(losses))",
)
chapter.edit(
    "perplexity",
    "it is a mean of perplexities; take the mean of the losses first, then one exponential.",
    "math.exp(total / sum(counts))",
    "sum(math.exp(loss) * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)",
)
chapter.edit(
    "perplexity",
    "it is 2 to the power of a loss in nats: nats belong to e.",
    "math.exp(total / sum(counts))",
    "2 ** (total / sum(counts))",
)
chapter.edit("perplexity", "the exponential is missing: this is the mean loss.", "math.exp(", "float(")


# --- 11.3 windows


def window_cases(rng: np.random.Generator) -> Iterator[Case]:
    tokens = rng.integers(0, 1000, 33)
    for index in (0, 1, 3):
        yield {"tokens": tokens, "index": index, "seq_len": 8}
    yield {"tokens": np.arange(7), "index": 5, "seq_len": 1}


@chapter.exercise(
    "core",
    cases=window_cases,
    returns=("inputs", "targets"),
    hints=(
        "Window `index` begins at index * seq_len. Cut out one token more than seq_len.",
        "All but the last of these are the inputs, all but the first the targets.",
    ),
)
def window(tokens: Array, index: int, seq_len: int) -> tuple[Array, Array]:
    """The `index`-th window of a text: T tokens, and for each the token that follows it.

    tokens: (N,) integers, with N > (index + 1) T. Windows lie side by side, so that every token but the first is a
    target once. Returns inputs (T,) and targets (T,).
    """
    piece = tokens[index * seq_len : (index + 1) * seq_len + 1]
    return piece[:-1], piece[1:]


chapter.edit(
    "window",
    "the targets are the inputs: the target of a token is the one after it.",
    "return piece[:-1], piece[1:]",
    "return piece[:-1], piece[:-1]",
)
chapter.edit(
    "window",
    "it predicts backwards: the targets are shifted to the right, not to the left.",
    "return piece[:-1], piece[1:]",
    "return piece[1:], piece[:-1]",
)
chapter.edit(
    "window",
    "the window begins at token `index`: windows overlap, and a token is a target many times.",
    "tokens[index * seq_len : (index + 1) * seq_len + 1]",
    "tokens[index : index + seq_len + 1]",
)
chapter.edit(
    "window",
    "windows are T + 1 apart, so that one token in T + 1 is never a target: their edges overlap by one.",
    "tokens[index * seq_len : (index + 1) * seq_len + 1]",
    "tokens[index * (seq_len + 1) : (index + 1) * (seq_len + 1)]",
)
chapter.edit(
    "window",
    "there is one pair too few: T targets need T + 1 tokens.",
    "(index + 1) * seq_len + 1]",
    "(index + 1) * seq_len]",
)


# --- 11.4 an order that can be drawn again


def order_cases(_: np.random.Generator) -> Iterator[Case]:
    for step in (0, 1, 2, 3, 7):
        yield {"step": step, "windows": 10, "batch_size": 4, "seed": 3}
    yield {"step": 5, "windows": 6, "batch_size": 6, "seed": 0}
    yield {"step": 1, "windows": 3, "batch_size": 8, "seed": 1}  # a batch larger than an epoch


@chapter.exercise(
    "core",
    cases=order_cases,
    returns=("chosen",),
    task="It must give the same answer whatever was asked before: that is what lets a killed run go on exactly.",
    hints=(
        "Count places over the whole run: the batch of `step` has the places step * batch_size and on.",
        "divmod(place, windows) is (epoch, place within the epoch).",
        "An epoch's order: np.random.default_rng([seed, epoch]).permutation(windows).",
    ),
)
def windows_of_step(step: int, windows: int, batch_size: int, seed: int) -> Array:
    """Which windows are in the batch of a step, in order.

    In epoch e the windows come in the order np.random.default_rng([seed, e]).permutation(windows). A batch that an
    epoch's end leaves unfilled goes on with the next epoch. Returns (B,) integers.
    """
    chosen = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, position = divmod(place, windows)
        order = np.random.default_rng([seed, epoch]).permutation(windows)
        chosen.append(order[position])
    return np.array(chosen)


chapter.edit(
    "windows_of_step",
    "every epoch has the same order: seed with (seed, epoch).",
    "[seed, epoch]",
    "[seed, 0]",
)
chapter.edit(
    "windows_of_step",
    "the order does not depend on the seed.",
    "[seed, epoch]",
    "[0, epoch]",
)
chapter.edit(
    "windows_of_step",
    "the windows are not shuffled.",
    "order[position]",
    "position",
)
chapter.edit(
    "windows_of_step",
    "windows are drawn with replacement: in an epoch some come twice and others never. Draw a permutation.",
    "permutation(windows)",
    "integers(0, windows, windows)",
)
chapter.edit(
    "windows_of_step",
    "each step draws an order of its own, so that an epoch does not see every window once.",
    "[seed, epoch]",
    "[seed, step]",
)
chapter.edit(
    "windows_of_step",
    "an epoch is counted in steps, and windows at its end are left out: let the batch run into the next epoch.",
    "epoch, position = divmod(place, windows)",
    "per = max(1, windows // batch_size); "
    "epoch, position = step // per, (step % per * batch_size + place % batch_size) % windows",
)


# --- 11.5 divergence


def loss_cases(_: np.random.Generator) -> Iterator[Case]:
    rule = {"factor": 3.0, "patience": 4, "memory": 0.9}
    falling = [6.0, 5.0, 4.0, 3.5, 3.2, 3.0]
    yield {"losses": [*falling, 2.9, 2.8], **rule}
    yield {"losses": [*falling, 40.0, 50.0, 60.0, 70.0, 80.0], **rule}
    yield {"losses": [*falling, 40.0, 50.0, 60.0, 3.0, 40.0, 40.0, 2.9, 2.8], **rule}  # spikes that pass
    yield {"losses": [*falling, 16.0, 16.0, 16.0, 16.0, 16.0], **rule}
    yield {"losses": [*falling, math.nan, 3.0], **rule}
    yield {"losses": [*falling, math.inf], **rule}
    yield {"losses": [2.0] * 3 + [2.5, 4.0, 6.5, 10.0, 16.0, 25.0, 39.0, 60.0, 95.0, 150.0], **rule}


@chapter.exercise(
    "core",
    cases=loss_cases,
    returns=("step",),
    task="Return -1 where the run is never stopped.",
    hints=(
        "Keep two numbers: the running mean, which begins with the first loss, and the bad ones so far in a row.",
        "A bad loss raises the count and leaves the mean alone; a good one sets the count to 0 and enters the mean.",
        "NaN compares false with everything: ask math.isfinite first.",
    ),
)
def diverged_at(losses: Sequence[float], factor: float, patience: int, memory: float) -> int:
    """The step at which a run is stopped: at a loss that is not finite, or at the last of `patience` bad ones in a row.

    A loss is bad if it is above `factor` times the running mean. The mean begins with the first loss; every loss that
    is not bad enters it: mean = memory * mean + (1 - memory) * loss. Returns the step, or -1 where there is none.
    """
    mean, bad = losses[0], 0
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            return step
        if loss > factor * mean:
            bad += 1
            if bad == patience:
                return step
        else:
            bad = 0
            mean = memory * mean + (1 - memory) * loss
    return -1


chapter.edit(
    "diverged_at",
    "bad losses enter the mean, which follows them up until they look ordinary: leave them out.",
    "            bad = 0\n            mean =",
    "            bad = 0\n        mean =",
)
chapter.edit(
    "diverged_at",
    "bad losses are counted over the whole run: spikes that pass are harmless, so a good loss sets the count to 0.",
    "            bad = 0\n",
    "",
)
chapter.edit(
    "diverged_at", "the first bad loss ends the run: wait for `patience` of them.", "bad == patience", "bad == 1"
)
chapter.edit(
    "diverged_at",
    "NaN slips through: it is neither above nor below anything.",
    "not math.isfinite(loss)",
    "loss == math.inf",
)
chapter.edit(
    "diverged_at",
    "the run goes on for one bad loss too many: stop at the last of `patience`.",
    "bad == patience",
    "bad > patience",
)
chapter.edit(
    "diverged_at",
    "losses are compared with the lowest so far, which a single lucky batch can set: use the running mean.",
    "mean = memory * mean + (1 - memory) * loss",
    "mean = min(mean, loss)",
)
chapter.edit(
    "diverged_at",
    "memory is on the wrong side: it is the part of the mean that stays.",
    "memory * mean + (1 - memory) * loss",
    "(1 - memory) * mean + memory * loss",
)


# --- 11.6 loss by size


def power_cases(rng: np.random.Generator) -> Iterator[Case]:
    sizes = np.array([2.5e4, 1e5, 3.4e5, 8.6e5, 1.8e6])
    for floor, A, alpha in ((0.35, 60.0, 0.3), (0.0, 400.0, 0.5), (1.69, 406.4, 0.34)):
        noise = np.exp(0.01 * rng.standard_normal(5))
        yield {"sizes": sizes, "losses": floor + A * sizes**-alpha * noise, "floor": floor}


@chapter.exercise(
    "stretch",
    cases=power_cases,
    returns=("A", "alpha"),
    hints=(
        "Take logarithms: log(L - E) = log A - α log P is a straight line.",
        "np.polyfit(x, y, 1) gives slope and offset; α is minus the slope, A the exponential of the offset.",
    ),
)
def fit_power_law(sizes: Array, losses: Array, floor: float) -> tuple[float, float]:
    """A and α of L = E + A / P^α, by least squares on logarithms.

    sizes: (n,) parameters P. losses: (n,) nats, all above `floor`, the E that no size gets below. Returns A and α, both
    positive where loss falls with size.
    """
    slope, offset = np.polyfit(np.log(sizes), np.log(losses - floor), 1)
    return float(np.exp(offset)), float(-slope)


chapter.edit(
    "fit_power_law",
    "the floor is left out: it is L - E that falls as a power.",
    "np.log(losses - floor)",
    "np.log(losses)",
)
chapter.edit("fit_power_law", "α has the wrong sign: the loss falls, and P^α stands below the line.", "-slope", "slope")
chapter.edit("fit_power_law", "this is log A: take the exponential of the offset.", "np.exp(offset)", "offset")
chapter.edit(
    "fit_power_law",
    "the line is fitted over P itself; a power law is straight over log P.",
    "np.polyfit(np.log(sizes), ",
    "np.polyfit(sizes, ",
)
chapter.edit(
    "fit_power_law",
    "logarithms are mixed: with log₁₀ on both axes α is the same, but A is 10 to the power of the offset.",
    "np.polyfit(np.log(sizes), np.log(losses - floor), 1)",
    "np.polyfit(np.log10(sizes), np.log10(losses - floor), 1)",
)
