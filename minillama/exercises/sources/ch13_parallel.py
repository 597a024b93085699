"""Chapter 13, many cores, many machines: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from minillama.backend import Array
from minillama.config import PRESETS, LlamaConfig
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.training import plan
from minillama.training.plan import PRECISIONS, Precision

chapter = Chapter(
    "ch13_parallel",
    "Many cores, many machines",
    """Chapter 13: many cores, many machines. Write the functions; the chapter derives each formula.

    minillama exercises check ch13      what is right, and the first thing that is not
    minillama exercises hint ch13       the next hint

When 13.1 and 13.2 are right, they plan the paper's largest run:

    minillama exercises run --with ch13 -- plan --preset llama2-70b --gpus 2048

N ranks, P parameters. What lies on different ranks is here one array with an axis for the rank: x[r] is what rank r
has. C width, H query heads, K KV heads, D head width, F feed-forward width, V vocabulary, L layers, T time.""",
)


# --- 13.1 FLOPs


def flops_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"config": PRESETS["llama2-7b"], "seq_len": 4096}
    yield {"config": PRESETS["llama2-70b"], "seq_len": 4096}
    yield {"config": PRESETS["smollm2-135m"], "seq_len": 7}
    yield {"config": PRESETS["mistral-7b"], "seq_len": 8192}
    yield {"config": LlamaConfig(8, n_layers=3, n_heads=2, head_dim=6, ffn_dim=5, vocab_size=11), "seq_len": 1}


chapter.exercise(
    "warm-up",
    cases=flops_cases,
    returns=("flops",),
    replaces="minillama.training.plan:forward_flops",
    hints=(
        "A layer's matrices: wq and wo (H*D, C), wk and wv (K*D, C), w1, w2 and w3 (F, C). The head: (V, C).",
        "Place i sees i + 1 positions, so without a window the mean over T places is (T + 1) / 2.",
        "With a window W < T: the first W places see (W + 1) / 2 on average, the other T - W see W each.",
    ),
)(plan.forward_flops)


@chapter.wrong("forward_flops", "a multiplication and an addition are two operations: 2 for each parameter.")
def additions_forgotten(config: LlamaConfig, seq_len: int) -> float:
    return plan.forward_flops(config, seq_len) / 2


@chapter.wrong("forward_flops", "the embedding table is counted; a token reads one of its rows and multiplies none.")
def table_multiplied(config: LlamaConfig, seq_len: int) -> float:
    return plan.forward_flops(config, seq_len) + 2 * config.vocab_size * config.dim


@chapter.wrong("forward_flops", "the head is not counted: it is a matrix (V, C), even where it is tied.")
def head_forgotten(config: LlamaConfig, seq_len: int) -> float:
    return plan.forward_flops(config, seq_len) - 2 * config.vocab_size * config.dim


@chapter.wrong("forward_flops", "attention is missing: its scores and values have no parameters, but products.")
def attention_forgotten(config: LlamaConfig, seq_len: int) -> float:
    del seq_len
    matrices = sum(math.prod(shape) for shape in config.param_shapes().values() if len(shape) == 2)
    table = 0 if config.tie_embeddings else config.vocab_size * config.dim
    return 2.0 * (matrices - table)


@chapter.wrong("forward_flops", "every query sees all T positions; a causal one at place i sees i + 1.")
def not_causal(config: LlamaConfig, seq_len: int) -> float:
    seen = 4 * config.n_layers * config.n_heads * config.head_dim * seq_len
    return attention_forgotten(config, seq_len) + seen


@chapter.wrong("forward_flops", "the sliding window is not respected: with one, a query sees at most W positions.")
def no_window(config: LlamaConfig, seq_len: int) -> float:
    seen = 4 * config.n_layers * config.n_heads * config.head_dim * (seq_len + 1) / 2
    return attention_forgotten(config, seq_len) + seen


@chapter.wrong("forward_flops", "attention is counted for the K heads of keys; every one of the H queries has scores.")
def attention_by_kv_heads(config: LlamaConfig, seq_len: int) -> float:
    matrices = attention_forgotten(config, seq_len)
    return matrices + (plan.forward_flops(config, seq_len) - matrices) * config.n_kv_heads / config.n_heads


# --- 13.2 memory


def memory_cases(_: np.random.Generator) -> Iterator[Case]:
    for zero in (0, 1, 2, 3):
        yield {"parameters": 7.5e9, "zero": zero, "ranks": 64, "precision": PRECISIONS["bf16"]}
    yield {"parameters": 1e6, "zero": 1, "ranks": 4, "precision": PRECISIONS["fp32"]}


chapter.exercise(
    "warm-up",
    cases=memory_cases,
    returns=("sizes",),
    replaces="minillama.training.plan:state_bytes",
    task="In bf16: 2 bytes of weight, 2 of gradient, 12 of optimizer state for each parameter.",
    hints=(
        "Without ZeRO each of the three is parameters times precision.weight, .gradient or .optimizer.",
        "Stage 1 divides one of them by ranks, stage 2 two, stage 3 all three.",
    ),
)(plan.state_bytes)


@chapter.wrong("state_bytes", "nothing is divided among the ranks.")
def undivided(parameters: float, zero: int, ranks: int, precision: Precision) -> dict[str, float]:
    del zero
    return plan.state_bytes(parameters, 0, ranks, precision)


@chapter.wrong("state_bytes", "each stage divides what the next one should: stage 0 divides nothing.")
def stage_too_early(parameters: float, zero: int, ranks: int, precision: Precision) -> dict[str, float]:
    return plan.state_bytes(parameters, zero + 1, ranks, precision)


@chapter.wrong("state_bytes", "from stage 1 on, all three are divided; stage 1 divides the optimizer state alone.")
def all_at_once(parameters: float, zero: int, ranks: int, precision: Precision) -> dict[str, float]:
    return plan.state_bytes(parameters, 3 if zero else 0, ranks, precision)


@chapter.wrong("state_bytes", "the bytes are fixed at 2, 2 and 12; take them from precision: float32 has 4, 4 and 8.")
def always_bf16(parameters: float, zero: int, ranks: int, precision: Precision) -> dict[str, float]:
    del precision
    return plan.state_bytes(parameters, zero, ranks, PRECISIONS["bf16"])


@chapter.wrong(
    "state_bytes", "the float32 copy of the weights is missing: in bf16 the optimizer keeps 12 bytes, not 8."
)
def no_master_weights(parameters: float, zero: int, ranks: int, precision: Precision) -> dict[str, float]:
    small = Precision(precision.weight, precision.gradient, 8, precision.activation)
    return plan.state_bytes(parameters, zero, ranks, small)


# --- 13.3 the mean over a batch that was cut


def mean_cases(rng: np.random.Generator) -> Iterator[Case]:
    for counts in ([5, 3], [4, 4, 4], [7, 0, 1, 2]):
        N = len(counts)
        yield {
            "losses": rng.uniform(1, 3, N),
            "grads": rng.standard_normal((N, 6)),
            "counts": np.array(counts),
        }


@chapter.exercise(
    "core",
    cases=mean_cases,
    returns=("loss", "grad"),
    hints=(
        "The mean over all tokens is Σ counts[i] losses[i] / Σ counts: a mean times its count is a sum again.",
        "The gradient of a sum is the sum of the gradients, so grads are weighted by the same counts[i] / Σ counts.",
        "(counts / counts.sum()) @ grads does it in one product: (N,) @ (N, P) -> (P,).",
    ),
)
def batch_mean(losses: Array, grads: Array, counts: Array) -> tuple[float, Array]:
    """Loss and gradient of a whole batch from those of its N pieces, micro-batches or ranks.

    losses: (N,), the mean loss over each piece's own tokens. grads: (N, P), the gradients of these means. counts: (N,),
    how many tokens each piece has; some may have none. Returns the mean over all tokens and its gradient (P,).
    """
    shares = counts / counts.sum()
    return float(shares @ losses), shares @ grads  # (N,) @ (N, P) -> (P,)


@chapter.wrong("batch_mean", "the pieces' means are averaged as if all had as many tokens; weight each by its count.")
def mean_of_means(losses: Array, grads: Array, counts: Array) -> tuple[float, Array]:
    del counts
    return float(losses.mean()), grads.mean(axis=0)


@chapter.wrong("batch_mean", "the pieces are summed and not divided: the gradient grows with the number of pieces.")
def only_summed(losses: Array, grads: Array, counts: Array) -> tuple[float, Array]:
    del counts
    return float(losses.sum()), grads.sum(axis=0)


@chapter.wrong("batch_mean", "weighted by the counts, but not divided by their sum.")
def not_divided(losses: Array, grads: Array, counts: Array) -> tuple[float, Array]:
    return float(counts @ losses), counts @ grads


@chapter.wrong("batch_mean", "the loss is weighted by tokens, the gradients are not.")
def grads_unweighted(losses: Array, grads: Array, counts: Array) -> tuple[float, Array]:
    return batch_mean(losses, grads, counts)[0], grads.mean(axis=0)


@chapter.wrong("batch_mean", "divided by the number of pieces too: Σ counts is division enough.")
def divided_twice(losses: Array, grads: Array, counts: Array) -> tuple[float, Array]:
    loss, grad = batch_mean(losses, grads, counts)
    return loss / len(counts), grad / len(counts)


# --- 13.4 to 13.6 the ring


def step_cases(rng: np.random.Generator) -> Iterator[Case]:
    for N, step in ((2, 0), (4, 0), (4, 2), (3, 1)):
        yield {"x": rng.standard_normal((N, N, 2)), "step": step}


def reduce_scatters(own: Functions) -> str | None:
    """N - 1 of the learner's steps."""
    x = np.random.default_rng(3).standard_normal((4, 4, 3))
    whole = x.sum(axis=0)  # (N, N, P/N) -> (N, P/N)
    for step in range(3):
        x = own.reduce_scatter_step(x, step)
    for rank in range(4):
        if not np.allclose(x[rank, rank], whole[rank]):
            return f"After the three steps of 4 ranks, chunk {rank} of rank {rank} is not the sum over all ranks."
    return None


@chapter.exercise(
    "core",
    cases=step_cases,
    proof=reduce_scatters,
    returns=("x",),
    hints=(
        "All ranks send at once: take what is sent from the x that came in, and add into a copy.",
        "For every rank: chunk = (rank - 1 - step) % N; y[(rank + 1) % N, chunk] += x[rank, chunk].",
    ),
)
def reduce_scatter_step(x: Array, step: int) -> Array:
    """One step of N - 1 of a ring reduce-scatter: every rank sends a chunk to the next rank, which adds it to its own.

    x: (N, N, P/N): x[r, c] is chunk c on rank r. In step s = 0, 1, … rank r sends chunk (r - 1 - s) mod N to rank
    (r + 1) mod N, all at the same moment. Returns x after the step, (N, N, P/N); what is sent stays where it was. After
    the last step, chunk r of rank r is the sum of all ranks' chunks r.
    """
    N = len(x)
    ranks = np.arange(N)
    chunks = (ranks - 1 - step) % N
    y = x.copy()
    y[(ranks + 1) % N, chunks] += x[ranks, chunks]
    return y


@chapter.wrong("reduce_scatter_step", "the chunk replaces the next rank's; it is added to it.")
def replaced(x: Array, step: int) -> Array:
    N = len(x)
    ranks, y = np.arange(N), x.copy()
    chunks = (ranks - 1 - step) % N
    y[(ranks + 1) % N, chunks] = x[ranks, chunks]
    return y


@chapter.wrong("reduce_scatter_step", "chunks go to the previous rank; the ring leads from r to r + 1.")
def backwards(x: Array, step: int) -> Array:
    N = len(x)
    ranks, y = np.arange(N), x.copy()
    chunks = (ranks - 1 - step) % N
    y[(ranks - 1) % N, chunks] += x[ranks, chunks]
    return y


@chapter.wrong("reduce_scatter_step", "in step 0 rank r sends chunk r; it keeps that one for last and sends r - 1.")
def own_chunk_first(x: Array, step: int) -> Array:
    return reduce_scatter_step(x, step - 1)


@chapter.wrong("reduce_scatter_step", "the same chunk is sent in every step: it is chunk (r - 1 - s) mod N.")
def same_chunk_again(x: Array, step: int) -> Array:
    del step
    return reduce_scatter_step(x, 0)


@chapter.wrong("reduce_scatter_step", "all chunks are sent, where the step sends one: N times too many bytes.")
def whole_array_sent(x: Array, step: int) -> Array:
    del step
    return x + np.roll(x, 1, axis=0)


def all_gathers(own: Functions) -> str | None:
    """N - 1 of the learner's steps."""
    parts = np.random.default_rng(4).standard_normal((4, 3))
    x = np.zeros((4, 4, 3))
    x[np.arange(4), np.arange(4)] = parts
    for step in range(3):
        x = own.all_gather_step(x, step)
    if not np.allclose(x, parts):
        return "After the three steps of 4 ranks, not every rank has every chunk."
    return None


@chapter.exercise(
    "core",
    cases=step_cases,
    proof=all_gathers,
    returns=("x",),
    hints=(
        "As in 13.4, but the chunk is the one that the rank has just received, and it is stored and not added.",
        "In step 0 a rank sends its own chunk r; in step s the one that started s ranks back, (r - s) mod N.",
    ),
)
def all_gather_step(x: Array, step: int) -> Array:
    """One step of N - 1 of a ring all-gather: every rank sends one chunk to the next rank, which keeps it.

    x: (N, N, P/N): x[r, c] is chunk c on rank r; at first only chunk r of rank r is good. In step s = 0, 1, … rank r
    sends chunk (r - s) mod N to rank (r + 1) mod N, all at the same moment. Returns x after the step, (N, N, P/N).
    """
    N = len(x)
    ranks = np.arange(N)
    chunks = (ranks - step) % N
    y = x.copy()
    y[(ranks + 1) % N, chunks] = x[ranks, chunks]
    return y


@chapter.wrong("all_gather_step", "the chunk is added; a gathered chunk replaces what the next rank had there.")
def added(x: Array, step: int) -> Array:
    return reduce_scatter_step(x, step - 1)


@chapter.wrong(
    "all_gather_step", "rank r sends chunk r - 1 - s, as in the reduce-scatter; here it begins with its own."
)
def one_chunk_late(x: Array, step: int) -> Array:
    return replaced(x, step)


@chapter.wrong("all_gather_step", "the rank sends its own chunk in every step; it passes on what it has just received.")
def own_chunk_always(x: Array, step: int) -> Array:
    del step
    return all_gather_step(x, 0)


def all_reduce_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"x": rng.standard_normal((2, 6))}
    yield {"x": rng.standard_normal((4, 8))}
    yield {"x": rng.standard_normal((3, 12)).astype(np.float32)}
    yield {"x": rng.standard_normal((1, 5))}


def rings_sum(own: Functions, x: Array) -> tuple[Array, int]:
    """The learner's all_reduce, and the numbers that its own steps sent."""
    sent = 0

    def counted(step_function):  # type: ignore[no-untyped-def]
        def step(x: Array, step: int) -> Array:
            nonlocal sent
            sent += x[0, 0].size  # each rank sends a chunk
            return step_function(x, step)

        return step

    names = ("reduce_scatter_step", "all_gather_step")
    theirs = own.all_reduce.__globals__
    before = {name: theirs.get(name) for name in names}
    theirs.update({name: counted(getattr(own, name)) for name in names})
    try:
        return own.all_reduce(x), sent
    finally:
        theirs.update({name: function for name, function in before.items() if function is not None})


@chapter.exercise(
    "core",
    cases=all_reduce_cases,
    trial=rings_sum,
    needs=("reduce_scatter_step", "all_gather_step"),
    returns=("y", "numbers sent by a rank"),
    task="With your two steps, reduce_scatter_step and all_gather_step; a rank sends 2 (N - 1) / N of its array.",
    hints=(
        "Cut every rank's array into N chunks: x.reshape(N, N, -1).",
        "Then steps 0 … N - 2 of the one, steps 0 … N - 2 of the other, and reshape back to (N, P).",
    ),
)
def all_reduce(x: Array) -> Array:
    """The sum over all ranks, on all ranks, by a ring.

    x: (N, P), x[r] the array of rank r; N divides P. Returns (N, P), every row the sum of x over ranks.
    """
    N = len(x)
    chunks = x.reshape(N, N, -1)  # (N, P) -> (N, N, P/N)
    for step in range(N - 1):
        chunks = reduce_scatter_step(chunks, step)
    for step in range(N - 1):
        chunks = all_gather_step(chunks, step)
    return chunks.reshape(x.shape)


@chapter.wrong("all_reduce", "right, but not by the ring: add with N - 1 steps of each of your two functions.")
def not_by_ring(x: Array) -> Array:
    return np.broadcast_to(x.sum(axis=0), x.shape).copy()


chapter.edit(
    "all_reduce",
    "reduce-scatter alone: each rank has one summed chunk; the all-gather hands them round.",
    "chunks = all_gather_step(chunks, step)",
    "pass",
)
chapter.edit(
    "all_reduce",
    "a step too many: N - 1 steps reach all N ranks, and the next one adds a chunk twice.",
    """for step in range(N - 1):
        chunks = reduce""",
    """for step in range(N):
        chunks = reduce""",
)
chapter.edit(
    "all_reduce",
    "the mean over ranks; an all-reduce sums. Whoever wants a mean has divided before, by tokens.",
    "return chunks.reshape(x.shape)",
    "return chunks.reshape(x.shape) / x.dtype.type(N)",
)


# --- 13.7 ZeRO


def zero_cases(rng: np.random.Generator) -> Iterator[Case]:
    for N, P, steps, clip in ((2, 6, 1, 100.0), (4, 8, 3, 1.0), (1, 5, 2, 0.5)):
        yield {
            "params": rng.standard_normal(P),
            "grads": rng.standard_normal((N, P)),
            "m": 0.1 * rng.standard_normal((N, P // N)),
            "v": rng.uniform(0.1, 1, (N, P // N)),
            "steps": steps,
            "lr": 0.1,
            "clip": clip,
        }


def equals_one_rank(own: Functions) -> str | None:
    """The learner's step on four ranks and on one."""
    rng = np.random.default_rng(5)
    params, grads, m = rng.standard_normal(8), rng.standard_normal((4, 8)), rng.standard_normal((4, 2))
    v = rng.uniform(0.1, 1, (4, 2))
    four = own.zero1_step(params, grads, m, v, 2, 0.1, 1.0)[0]
    one = own.zero1_step(params, grads.sum(axis=0)[None], m.reshape(1, -1), v.reshape(1, -1), 2, 0.1, 1.0)[0]
    if not np.allclose(four, one, rtol=1e-9):
        return "Four ranks and one rank with the same gradients arrive at different parameters."
    return None


@chapter.exercise(
    "stretch",
    cases=zero_cases,
    proof=equals_one_rank,
    returns=("params", "m", "v"),
    hints=(
        "A reduce-scatter gives rank r the summed gradients of its own part: grads.sum(axis=0).reshape(N, P // N)[r].",
        "For the norm each rank squares and sums its part; one number a rank is all-reduced, and the root comes after.",
        "AdamW works element by element, so rank r updates its part of the parameters by its own m and v; an all-gather"
        " puts the parts together again.",
    ),
)
def zero1_step(
    params: Array, grads: Array, m: Array, v: Array, steps: int, lr: float, clip: float
) -> tuple[Array, Array, Array]:
    """One step of AdamW with the optimizer's state divided among N ranks (ZeRO stage 1).

    params: (P,), the same on every rank; N divides P. grads: (N, P), each rank's share: summed over ranks they are the
    gradient of the batch. m, v: (N, P/N), each rank's part of the moments, rank r having elements r P/N to (r+1) P/N.
    steps: how many were made with this one, t. clip: the gradient of the whole batch is made no longer than this.
    β₁ = 0.9, β₂ = 0.95, ε = 1e-5, weight decay λ = 0.1:
    m = β₁ m + (1-β₁) g, v = β₂ v + (1-β₂) g², p = p - lr λ p - lr (m / (1-β₁ᵗ)) / (√(v / (1-β₂ᵗ)) + ε).

    Returns params (P,), m and v (N, P/N), new arrays.
    """
    parts = grads.sum(axis=0).reshape(m.shape)  # reduce-scatter: (N, P) -> (P,) -> (N, P/N)
    norm = math.sqrt(np.square(parts).sum(axis=1).sum())  # each rank its own, then an all-reduce of one number
    parts = parts * min(1.0, clip / norm)
    p = params.reshape(m.shape)  # (P,) -> (N, P/N)
    m = 0.9 * m + 0.1 * parts
    v = 0.95 * v + 0.05 * parts * parts
    update = m / (1 - 0.9**steps) / (np.sqrt(v / (1 - 0.95**steps)) + 1e-5)
    p = p - lr * 0.1 * p - lr * update
    return p.reshape(-1), m, v  # all-gather: (N, P/N) -> (P,)


chapter.edit(
    "zero1_step",
    "the gradients are averaged over ranks; these are shares already, to be summed.",
    "grads.sum(axis=0)",
    "grads.mean(axis=0)",
)
chapter.edit(
    "zero1_step",
    "only rank 0's gradients are used: the reduce-scatter is missing.",
    "grads.sum(axis=0)",
    "grads[0]",
)
chapter.edit(
    "zero1_step",
    "each rank clips by the norm of its own part; the norm is that of the whole gradient, over all ranks.",
    """norm = math.sqrt(np.square(parts).sum(axis=1).sum())  # each rank its own, then an all-reduce of one number
    parts = parts * min(1.0, clip / norm)""",
    """norm = np.sqrt(np.square(parts).sum(axis=1, keepdims=True))
    parts = parts * np.minimum(1.0, clip / norm)""",
)
chapter.edit(
    "zero1_step",
    "the norms of the parts are added; squares add up: sum those and take one root.",
    "norm = math.sqrt(np.square(parts).sum(axis=1).sum())",
    "norm = np.sqrt(np.square(parts).sum(axis=1)).sum()",
)
chapter.edit(
    "zero1_step",
    "short gradients are made longer: clip by min(1, clip / norm).",
    "min(1.0, clip / norm)",
    "clip / norm",
)
chapter.edit(
    "zero1_step",
    "the bias correction is missing: divide m by 1 - β₁ᵗ and v by 1 - β₂ᵗ.",
    "m / (1 - 0.9**steps) / (np.sqrt(v / (1 - 0.95**steps)) + 1e-5)",
    "m / (np.sqrt(v) + 1e-5)",
)
chapter.edit(
    "zero1_step",
    "weight decay is missing: p - lr λ p.",
    "p = p - lr * 0.1 * p - lr * update",
    "p = p - lr * update",
)
