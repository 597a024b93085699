"""Chapter 10, loss, AdamW and schedule: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from minillama.backend import Array
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.training.adamw import AdamW
from minillama.training.schedule import CosineSchedule

chapter = Chapter(
    "ch10_optimizer",
    "Loss, AdamW and schedule",
    """Chapter 10: loss, AdamW and schedule. Write the functions; the chapter derives each formula.

    minillama exercises check ch10      what is right, and the first thing that is not
    minillama exercises hint ch10       the next hint

When 10.1 and 10.5 are right, your learning rate and your update train a model:

    minillama exercises run --with ch10 -- pretrain --out runs/mine

p parameters, g their gradient, m and v the two moments, lr the learning rate of this step, which is step 1, 2, …""",
)


# --- 10.1 the learning rate


def rate_cases(_: np.random.Generator) -> Iterator[Case]:
    for step in (0, 3, 4, 11, 19, 20, 25):
        yield {"step": step, "peak": 3e-4, "steps": 20, "warmup_steps": 4, "floor": 0.1}
    yield {"step": 0, "peak": 1.0, "steps": 10, "warmup_steps": 0, "floor": 0.5}


def as_schedule(learning_rate: Callable) -> Callable:
    """`learning_rate` in the place of CosineSchedule.__call__."""

    def rate(self: CosineSchedule, step: int) -> float:
        return learning_rate(step, self.peak, self.steps, self.warmup_steps, self.floor)

    return rate


@chapter.exercise(
    "warm-up",
    cases=rate_cases,
    returns=("lr",),
    replaces="minillama.training.schedule:CosineSchedule.__call__",
    adapt=as_schedule,
    hints=(
        "Two cases: step < warmup_steps rises in a straight line, from peak / (warmup_steps + 1).",
        "After the warm-up, progress = (step - warmup_steps) / (steps - warmup_steps) runs from 0 to 1; min(1.0, …)"
        " keeps it there.",
        "(1 + cos(π progress)) / 2 falls from 1 to 0: put it between the peak and floor * peak.",
    ),
)
def learning_rate(step: int, peak: float, steps: int, warmup_steps: int, floor: float) -> float:
    """The learning rate of step 0, 1, …, steps - 1: a linear warm-up, then half a cosine down to a floor.

    lr = peak (step + 1) / (warmup_steps + 1) while step < warmup_steps. Then, with p the part of the other steps that
    is done, lr = peak (floor + (1 - floor) (1 + cos π p) / 2). After the last step it stays at floor * peak. Returns
    the rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


chapter.edit(
    "learning_rate",
    "the first rate is 0 and its step is lost: the warm-up counts step + 1.",
    "(step + 1) / (warmup_steps + 1)",
    "step / warmup_steps",
)
chapter.edit(
    "learning_rate",
    "the cosine is counted from step 0; it begins where the warm-up ends.",
    "(step - warmup_steps) / (steps - warmup_steps)",
    "step / steps",
)
chapter.edit(
    "learning_rate",
    "the floor is not respected: the rate falls to 0.",
    "(floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)",
    "(1 + math.cos(math.pi * progress)) / 2",
)
chapter.edit(
    "learning_rate",
    "the floor is added to the whole cosine: between peak and floor there is (1 - floor).",
    "(1 - floor) * (1 +",
    "(1 +",
)
chapter.edit(
    "learning_rate",
    "it is a whole cosine: it comes up again; half of one ends at π.",
    "math.cos(math.pi * progress)",
    "math.cos(2 * math.pi * progress)",
)
chapter.edit(
    "learning_rate",
    "after the last step the cosine goes on and rises again: progress stops at 1.",
    "min(1.0, (step - warmup_steps) / (steps - warmup_steps))",
    "(step - warmup_steps) / (steps - warmup_steps)",
)
chapter.edit(
    "learning_rate",
    "the floor is a part of the peak; it is used as a rate of its own.",
    "peak * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)",
    "floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2",
)


# --- 10.2 clipping


def clip_cases(rng: np.random.Generator) -> Iterator[Case]:
    grads = {"wq": rng.standard_normal((3, 4)), "norm": 5 * rng.standard_normal(4), "wo": rng.standard_normal((2, 3))}
    yield {"grads": grads, "limit": 1.0}
    yield {"grads": {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}, "limit": 2.5}
    yield {"grads": grads, "limit": 100.0}  # short enough
    yield {"grads": {name: g.astype(np.float32) for name, g in grads.items()}, "limit": 0.5}


@chapter.exercise(
    "warm-up",
    cases=clip_cases,
    returns=("clipped", "norm"),
    hints=(
        "Squares add up: the norm is the root of one sum, over all entries of all arrays.",
        "The factor is limit / norm where the norm is above the limit, else 1: min(1.0, …).",
    ),
)
def clip_by_global_norm(grads: dict[str, Array], limit: float) -> tuple[dict[str, Array], float]:
    """All gradients times one factor, so that their norm, √Σ g² over all of them together, is at most `limit`.

    grads: name -> array, left as they are. The factor is 1 where the norm is below the limit. Returns new arrays under
    the same names, and the norm before.
    """
    norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in grads.values()))
    factor = min(1.0, limit / norm)
    return {name: g * factor for name, g in grads.items()}, norm


chapter.edit(
    "clip_by_global_norm",
    "each array is clipped by its own norm, which turns the gradient as a whole: there is one norm and one factor.",
    "return {name: g * factor for name, g in grads.items()}, norm",
    "return {name: g * min(1.0, limit / float(np.linalg.norm(g))) for name, g in grads.items()}, norm",
)
chapter.edit(
    "clip_by_global_norm",
    "each entry is clipped to ± limit, which turns the gradient: multiply all of it by one factor.",
    "g * factor",
    "np.clip(g, -limit, limit)",
)
chapter.edit(
    "clip_by_global_norm",
    "the norms of the arrays are added; squares add up: sum those and take one root.",
    "math.sqrt(sum(float(np.sum(np.square(g))) for g in grads.values()))",
    "sum(float(np.linalg.norm(g)) for g in grads.values())",
)
chapter.edit("clip_by_global_norm", "the root is missing: this is the square of the norm.", "math.sqrt(", "float(")
chapter.edit(
    "clip_by_global_norm",
    "short gradients are made longer: the factor is never above 1.",
    "min(1.0, limit / norm)",
    "limit / norm",
)
chapter.edit(
    "clip_by_global_norm",
    "the factor is the limit itself; divide it by the norm.",
    "min(1.0, limit / norm)",
    "min(1.0, limit) if norm > limit else 1.0",
)
chapter.edit(
    "clip_by_global_norm",
    "the norm returned is the one after clipping; it is the one before that tells of spikes.",
    "}, norm",
    "}, norm * factor",
)


# --- 10.3 the decay mask


def mask_cases(rng: np.random.Generator) -> Iterator[Case]:
    shapes = {
        "tok_embeddings.weight": (7, 4),
        "layers.0.attention_norm.weight": (4,),
        "layers.0.attention.wq.weight": (4, 4),
        "layers.0.feed_forward.w2.weight": (4, 6),
        "norm.weight": (4,),
        "output.weight": (7, 4),
    }
    yield {"params": {name: rng.standard_normal(shape) for name, shape in shapes.items()}}
    yield {"params": {"head.weight": np.ones((1, 4)), "head.bias": np.ones(1), "temperature": np.ones(())}}


@chapter.exercise(
    "warm-up",
    cases=mask_cases,
    returns=("mask",),
    hints=(
        "Look at the shape, not at the name: a matrix has two axes.",
        "params[name].ndim is the number of axes; a scalar has none.",
    ),
)
def decayed(params: dict[str, Array]) -> dict[str, bool]:
    """Which parameters weight decay pulls to zero: matrices, the embedding among them. Vectors and scalars are not.

    params: name -> array. Returns name -> True or False.
    """
    return {name: p.ndim > 1 for name, p in params.items()}


chapter.edit("decayed", "everything is decayed; the norms' weights, which are vectors, are not.", "p.ndim > 1", "True")
chapter.edit(
    "decayed",
    "only names with 'norm' are spared; biases and other vectors are too: look at the shape.",
    "p.ndim > 1",
    "'norm' not in name",
)
chapter.edit(
    "decayed",
    "the embedding or the head is spared; they are matrices, and decayed.",
    "p.ndim > 1",
    "p.ndim > 1 and 'layers.' in name",
)
chapter.edit("decayed", "it is the wrong way round: matrices are decayed.", "p.ndim > 1", "p.ndim <= 1")
chapter.edit(
    "decayed",
    "a matrix with one row is still a matrix: count the axes, not the rows.",
    "p.ndim > 1",
    "p.ndim > 1 and len(p) > 1",
)


# --- 10.4 and 10.5 AdamW


def moment_cases(rng: np.random.Generator) -> Iterator[Case]:
    betas = (0.9, 0.95)
    g = rng.standard_normal((3, 4))
    yield {"g": g, "m": np.zeros((3, 4)), "v": np.zeros((3, 4)), "step": 1, "betas": betas}
    for step, dtype in ((2, np.float64), (7, np.float32), (1000, np.float64)):
        g, m = rng.standard_normal((2, 3, 4)).astype(dtype)
        yield {"g": g, "m": m, "v": (1 + g) ** 2, "step": step, "betas": (0.8, 0.99)}


@chapter.exercise(
    "core",
    cases=moment_cases,
    returns=("m", "v", "m_hat", "v_hat"),
    hints=(
        "A moving average keeps β of what it was and takes 1 - β of what is new.",
        "Started at zero, after t steps it has seen weights that sum to 1 - βᵗ: divide by that.",
        "Keep the uncorrected m and v: the next step starts from them.",
    ),
)
def moments(g: Array, m: Array, v: Array, step: int, betas: tuple[float, float]) -> tuple[Array, Array, Array, Array]:
    """Adam's moving averages of g and g², and both corrected for having started at zero.

    m = β₁ m + (1 - β₁) g, v = β₂ v + (1 - β₂) g², m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ), with t the step: 1 at first.
    g, m, v: arrays of one shape, left as they are. Returns m and v for the next step, and m̂ and v̂.
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return m, v, m / (1 - beta1**step), v / (1 - beta2**step)


chapter.edit(
    "moments", "the corrections are missing: divide by 1 - βᵗ.", "m / (1 - beta1**step), v / (1 - beta2**step)", "m, v"
)
chapter.edit(
    "moments",
    "v̂ is corrected by 1 - β₂, which is right for the first step only: the power t is missing.",
    "v / (1 - beta2**step)",
    "v / (1 - beta2)",
)
chapter.edit(
    "moments",
    "steps are counted from 0: after the first one the divisor is 1 - β¹.",
    "m / (1 - beta1**step), v / (1 - beta2**step)",
    "m / (1 - beta1 ** max(step - 1, 1)), v / (1 - beta2 ** max(step - 1, 1))",
)
chapter.edit("moments", "both corrections use β₁; v has β₂.", "v / (1 - beta2**step)", "v / (1 - beta1**step)")
chapter.edit(
    "moments", "v averages m²; it averages the square of the gradient.", "(1 - beta2) * g * g", "(1 - beta2) * m * m"
)
chapter.edit("moments", "v averages g; it averages g².", "(1 - beta2) * g * g", "(1 - beta2) * g")
chapter.edit(
    "moments",
    "β and 1 - β are exchanged: most of the old average is kept.",
    "beta1 * m + (1 - beta1) * g",
    "(1 - beta1) * m + beta1 * g",
)
chapter.edit(
    "moments",
    "the gradient is added whole: 1 - β₁ of it is new.",
    "beta1 * m + (1 - beta1) * g",
    "beta1 * m + g",
)
chapter.edit(
    "moments",
    "the corrected averages are kept for the next step, which corrects them again: keep m and v as they are.",
    "return m, v, m /",
    "m, v = m / (1 - beta1**step), v / (1 - beta2**step)\n    return m, v, m, v\n    return m, v, m /",
)


def update_cases(rng: np.random.Generator) -> Iterator[Case]:
    rest = {"betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    p, g = rng.standard_normal((2, 3, 4))
    yield {"p": p, "g": g, "m": np.zeros((3, 4)), "v": np.zeros((3, 4)), "step": 1, "lr": 0.01, **rest}
    for dtype in (np.float64, np.float32):
        p, g, m = rng.standard_normal((3, 5)).astype(dtype)
        g[0] = m[0] = 0.0  # no gradient so far: only the decay moves it
        g[1] *= dtype(1e-6)  # eps matters here
        m[1] *= dtype(1e-6)
        v = (np.float32(0.1) + np.abs(m)) ** 2
        v[:2] = m[:2] ** 2
        yield {"p": p, "g": g, "m": m, "v": v.astype(dtype), "step": 6, "lr": 0.02, **rest}
    yield {"p": p, "g": g, "m": m, "v": v, "step": 2, "lr": 0.02, **rest, "weight_decay": 0.0}


def as_step(update: Callable) -> Callable:
    """`update` in the place of AdamW.step."""

    def step(self: AdamW, grads: Array, lr: float, scale: float = 1.0, threads: object = None) -> None:
        del threads
        self.steps += 1
        for part, decay in ((slice(self.decayed), self.weight_decay), (slice(self.decayed, None), 0.0)):
            state = self.params[part], grads[part] * scale, self.m[part], self.v[part]
            new = update(*state, self.steps, lr, self.betas, self.eps, decay)
            self.params[part], self.m[part], self.v[part] = new

    return step


def update_descends(own: Functions) -> str | None:
    """The learner's update on a narrow valley, where plain gradient descent with the same rate would explode."""
    p, m, v = np.array([1.0, 1.0]), np.zeros(2), np.zeros(2)
    curvature = np.array([1.0, 1000.0])
    for step in range(1, 301):
        p, m, v = own.adamw_update(p, curvature * p, m, v, step, 0.1 * (1 - step / 301), (0.9, 0.95), 1e-8, 0.0)
    if not np.abs(p).max() < 0.01:
        return f"From (1, 1) it should reach the lowest point of a valley, (0, 0), in 300 steps; yours is at {p}."
    return None


@chapter.exercise(
    "core",
    cases=update_cases,
    proof=update_descends,
    returns=("p", "m", "v"),
    replaces="minillama.training.adamw:AdamW.step",
    adapt=as_step,
    task="A vector is updated with weight_decay = 0: who calls the function sees to that.",
    hints=(
        "First the moments, as in 10.4. Only their corrected versions appear in the update.",
        "The decay is lr * weight_decay * p, subtracted from p itself. It goes into neither g, m nor v.",
        "eps stands beside the root, √v̂ + ε, not inside it.",
    ),
)
def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Array, Array, Array]:
    """One step of AdamW: p = p - lr λ p - lr m̂ / (√v̂ + ε), the moments as in 10.4 and λ the weight decay.

    p, g, m, v: arrays of one shape, left as they are. step: 1 at first. Returns the new p, m and v.
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    root = np.sqrt(v / (1 - beta2**step)) + eps
    p = p - lr * weight_decay * p
    return p - lr * (m / (1 - beta1**step)) / root, m, v


chapter.edit(
    "adamw_update",
    "the decay is coupled: added to the gradient it is averaged and divided by √v. Subtract lr λ p from p instead.",
    "    m = beta1 * m + (1 - beta1) * g\n",
    "    g = g + weight_decay * p\n    p = p / (1 - lr * weight_decay)\n    m = beta1 * m + (1 - beta1) * g\n",
)
chapter.edit(
    "adamw_update",
    "the decay is not multiplied by the learning rate: subtract lr λ p.",
    "p - lr * weight_decay * p",
    "p - weight_decay * p",
)
chapter.edit("adamw_update", "the decay is missing: subtract lr λ p.", "p = p - lr * weight_decay * p", "p = p")
chapter.edit(
    "adamw_update",
    "the decay has the wrong sign: it pulls to zero.",
    "p - lr * weight_decay * p",
    "p + lr * weight_decay * p",
)
chapter.edit(
    "adamw_update",
    "both bias corrections are missing: m / (1 - β₁ᵗ) and v / (1 - β₂ᵗ).",
    "    root = np.sqrt(v / (1 - beta2**step)) + eps\n",
    "    root = (np.sqrt(v) + eps) / (1 - beta1**step)\n",
)
chapter.edit(
    "adamw_update",
    "the second moment is not corrected: √(v / (1 - β₂ᵗ)).",
    "np.sqrt(v / (1 - beta2**step))",
    "np.sqrt(v)",
)
chapter.edit(
    "adamw_update",
    "the first moment is not corrected: m / (1 - β₁ᵗ).",
    "(m / (1 - beta1**step))",
    "m",
)
chapter.edit(
    "adamw_update",
    "eps is inside the root; it stands beside it: √v̂ + ε.",
    "np.sqrt(v / (1 - beta2**step)) + eps",
    "np.sqrt(v / (1 - beta2**step) + eps)",
)
chapter.edit("adamw_update", "eps is missing.", " + eps", " + 1e-30")
chapter.edit(
    "adamw_update",
    "the root is missing: this divides by v̂.",
    "np.sqrt(v / (1 - beta2**step)) + eps",
    "v / (1 - beta2**step) + eps",
)
chapter.edit("adamw_update", "it goes uphill: the update is subtracted.", "return p - lr", "return p + lr")
chapter.edit(
    "adamw_update",
    "momentum is missing: this is the gradient itself over √v̂ (RMSprop).",
    "(m / (1 - beta1**step))",
    "g",
)


# --- 10.6 accumulation


def accumulate_cases(rng: np.random.Generator) -> Iterator[Case]:
    for counts, dtype in (([7, 1, 4], np.float64), ([3, 0, 9, 1], np.float32), ([5], np.float64)):
        losses = [float(rng.uniform(1, 5)) * (count > 0) for count in counts]
        grads = [
            {
                "w": ((count > 0) * rng.standard_normal((2, 3))).astype(dtype),
                "norm": rng.standard_normal(3).astype(dtype),
            }
            for count in counts
        ]
        yield {"losses": losses, "grads": grads, "counts": counts}


@chapter.exercise(
    "core",
    cases=accumulate_cases,
    returns=("loss", "total"),
    hints=(
        "A mean times its count is a sum; sums add up; divide once, by all counted tokens.",
        "So micro-batch k has the weight counts[k] / sum(counts), in the loss and in every gradient.",
    ),
)
def accumulate(losses: list[float], grads: list[dict[str, Array]], counts: list[int]) -> tuple[float, dict[str, Array]]:
    """Loss and gradients of a whole batch from those of its micro-batches.

    losses[k] is the mean over the counts[k] tokens of micro-batch k that count, and grads[k] the gradients of that
    mean, name -> array. Returns the mean over all tokens that count, and its gradients, in new arrays.
    """
    weights = [count / sum(counts) for count in counts]
    loss = sum(weight * part for weight, part in zip(weights, losses, strict=True))
    total = {name: sum(weight * g[name] for weight, g in zip(weights, grads, strict=True)) for name in grads[0]}
    return loss, total


chapter.edit(
    "accumulate",
    "micro-batches count alike, a mean of means; each must count by its tokens.",
    "count / sum(counts)",
    "1 / len(counts)",
)
chapter.edit(
    "accumulate",
    "this is the sum over the tokens: divide by how many there are in all.",
    "count / sum(counts)",
    "count",
)
chapter.edit(
    "accumulate", "means are added as if they were sums: weight each by its tokens.", "count / sum(counts)", "1.0"
)
chapter.edit(
    "accumulate",
    "the loss is right and the gradients are a mean of means: they have the same weights.",
    "sum(weight * g[name] for weight, g in zip(weights, grads, strict=True))",
    "sum(g[name] / len(grads) for g in grads)",
)
chapter.edit(
    "accumulate",
    "micro-batches without tokens are left out, the others count alike; each must count by its tokens.",
    "count / sum(counts)",
    "(count > 0) / sum(c > 0 for c in counts)",
)


# --- 10.7 the largest step


def largest_cases(_: np.random.Generator) -> Iterator[Case]:
    for betas in ((0.9, 0.95), (0.9, 0.999), (0.0, 0.99), (0.8, 0.7)):
        yield {"betas": betas}


def bound_is_reached(own: Functions) -> str | None:
    """Against the sequence of gradients that makes the most of both averages."""
    for beta1, beta2 in ((0.9, 0.95), (0.9, 0.999), (0.5, 0.9)):
        m = v = 0.0
        for age in range(20_000, -1, -1):
            g = (beta1 / beta2) ** age
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        bound = own.largest_update((beta1, beta2))
        if abs(m / math.sqrt(v) - bound) > 1e-6 * bound:
            reached = m / math.sqrt(v)
            return f"With β = ({beta1}, {beta2}) there are gradients that give {reached:.6f}; yours is {bound:.6f}."
    return None


@chapter.exercise(
    "stretch",
    cases=largest_cases,
    proof=bound_is_reached,
    returns=("bound",),
    hints=(
        "Let a_s = (1 - β₁) β₁ˢ and b_s = (1 - β₂) β₂ˢ be the weights of a gradient that is s steps old: m = Σ a_s g_s,"
        " v = Σ b_s g_s². Which g makes m² / v largest?",
        "Cauchy-Schwarz on m = Σ (a_s / √b_s) (√b_s g_s): m² ≤ Σ a_s² / b_s · v, with equality for g_s ~ a_s / b_s.",
        "Σ a_s² / b_s is a geometric series with the ratio β₁² / β₂.",
    ),
)
def largest_update(betas: tuple[float, float]) -> float:
    """The largest |m| / √v that any sequence of gradients can reach, after so many steps that corrections are over.

    Adam's step is at most lr times this number, whatever happens. betas: β₁ and β₂ with β₁² < β₂. Returns the bound.
    """
    beta1, beta2 = betas
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))


@chapter.wrong("largest_update", "1 is what a constant gradient gives; one that grows as it goes gives more.")
def constant_gradient(betas: tuple[float, float]) -> float:
    del betas
    return 1.0


@chapter.wrong(
    "largest_update", "this is a single gradient after silence; older ones in the right proportion add to it."
)
def single_spike(betas: tuple[float, float]) -> float:
    return (1 - betas[0]) / math.sqrt(1 - betas[1])


@chapter.wrong("largest_update", "the root is missing: this is m² / v.")
def squared_bound(betas: tuple[float, float]) -> float:
    return largest_update(betas) ** 2


@chapter.wrong("largest_update", "the ratio of the series is β₁² / β₂: a_s is squared.")
def plain_ratio(betas: tuple[float, float]) -> float:
    beta1, beta2 = betas
    return (1 - beta1) / math.sqrt(abs((1 - beta2) * (1 - beta1 / beta2)))
