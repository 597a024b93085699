"""Chapter 13: many cores, many machines. Write the functions; the chapter derives each formula.

    minillama exercises check ch13      what is right, and the first thing that is not
    minillama exercises hint ch13       the next hint

When 13.1 and 13.2 are right, they plan the paper's largest run:

    minillama exercises run --with ch13 -- plan --preset llama2-70b --gpus 2048

N ranks, P parameters. What lies on different ranks is here one array with an axis for the rank: x[r] is what rank r
has. C width, H query heads, K KV heads, D head width, F feed-forward width, V vocabulary, L layers, T time.
"""

import math

import numpy as np

from minillama.backend import Array
from minillama.config import LlamaConfig
from minillama.training.plan import Precision

# 13.1 · warm-up --------------------------------------------------------------


def forward_flops(config: LlamaConfig, seq_len: int) -> float:
    """FLOPs of a forward pass for one token, the mean over `seq_len` tokens: 14,288,158,720 for Llama 2 7B at 4,096.

    A multiplication and an addition are two. Counted are the matrix products: a matrix takes 2 for each of its
    parameters, tied or not the head too, but not the embedding table, which is read and not multiplied; a query and a
    key, a probability and a value, take 2HD each a layer for every position that a query sees: i + 1 at place i, or
    the sliding window. Norms, softmax, RoPE and SwiGLU are left out, a few thousandths. Returns a float.
    """
    # Hint: A layer's matrices: wq and wo (H*D, C), wk and wv (K*D, C), w1, w2 and w3 (F, C). The head: (V, C).
    raise NotImplementedError


# 13.2 · warm-up --------------------------------------------------------------
# In bf16: 2 bytes of weight, 2 of gradient, 12 of optimizer state for each parameter.


def state_bytes(parameters: float, zero: int, ranks: int, precision: Precision) -> dict[str, float]:
    """Bytes on each of `ranks` GPUs for `parameters` and what belongs to them: weights, gradients, optimizer state.

    A ZeRO stage of 1 divides the optimizer state among the ranks, 2 the gradients too, 3 (which FSDP is) also the
    weights (arXiv:1910.02054, section 5). Returns the bytes by these three names.
    """
    # Hint: Without ZeRO each of the three is parameters times precision.weight, .gradient or .optimizer.
    raise NotImplementedError


# 13.3 · core -----------------------------------------------------------------


def batch_mean(losses: Array, grads: Array, counts: Array) -> tuple[float, Array]:
    """Loss and gradient of a whole batch from those of its N pieces, micro-batches or ranks.

    losses: (N,), the mean loss over each piece's own tokens. grads: (N, P), the gradients of these means. counts: (N,),
    how many tokens each piece has; some may have none. Returns the mean over all tokens and its gradient (P,).
    """
    # Hint: The mean over all tokens is Σ counts[i] losses[i] / Σ counts: a mean times its count is a sum again.
    raise NotImplementedError


# 13.4 · core -----------------------------------------------------------------


def reduce_scatter_step(x: Array, step: int) -> Array:
    """One step of N - 1 of a ring reduce-scatter: every rank sends a chunk to the next rank, which adds it to its own.

    x: (N, N, P/N): x[r, c] is chunk c on rank r. In step s = 0, 1, … rank r sends chunk (r - 1 - s) mod N to rank
    (r + 1) mod N, all at the same moment. Returns x after the step, (N, N, P/N); what is sent stays where it was. After
    the last step, chunk r of rank r is the sum of all ranks' chunks r.
    """
    # Hint: All ranks send at once: take what is sent from the x that came in, and add into a copy.
    raise NotImplementedError


# 13.5 · core -----------------------------------------------------------------


def all_gather_step(x: Array, step: int) -> Array:
    """One step of N - 1 of a ring all-gather: every rank sends one chunk to the next rank, which keeps it.

    x: (N, N, P/N): x[r, c] is chunk c on rank r; at first only chunk r of rank r is good. In step s = 0, 1, … rank r
    sends chunk (r - s) mod N to rank (r + 1) mod N, all at the same moment. Returns x after the step, (N, N, P/N).
    """
    # Hint: As in 13.4, but the chunk is the one that the rank has just received, and it is stored and not added.
    raise NotImplementedError


# 13.6 · core -----------------------------------------------------------------
# With your two steps, reduce_scatter_step and all_gather_step; a rank sends 2 (N - 1) / N of its array.


def all_reduce(x: Array) -> Array:
    """The sum over all ranks, on all ranks, by a ring.

    x: (N, P), x[r] the array of rank r; N divides P. Returns (N, P), every row the sum of x over ranks.
    """
    # Hint: Cut every rank's array into N chunks: x.reshape(N, N, -1).
    raise NotImplementedError


# 13.7 · stretch --------------------------------------------------------------


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
    # Hint: A reduce-scatter gives rank r the summed gradients of its own part: grads.sum(axis=0).reshape(N, P // N)[r].
    raise NotImplementedError
