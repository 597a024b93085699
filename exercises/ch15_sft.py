"""Chapter 15: supervised finetuning. Write the functions; the chapter derives each formula.

    minillama exercises check ch15      what is right, and the first thing that is not
    minillama exercises hint ch15       the next hint

When 15.3, 15.5 and 15.6 are right, your functions finetune the miniature that `make book` has trained:

    minillama exercises run --with ch15 -- sft --model runs/mini/base --data miniature:400 --lora 8 --out runs/mine

T places of a row, S key positions, N rows of x, I and O the width of what goes into a matrix and of what comes out, R
the rank. A dialogue of n tokens takes n - 1 places: at each stands a token, and beside it the next one, its target.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from minillama.backend import Array
from minillama.lora import LoraConfig
from minillama.params import Params

# 15.1 · warm-up --------------------------------------------------------------


def dialogue(
    turns: Sequence[list[int]], bos: int, eos: int, opening: int, closing: int
) -> tuple[list[int], list[bool]]:
    """A dialogue as a model of this chapter sees it: bos [INST] request [/INST] answer eos, pair after pair.

    turns: the tokens of each, without any mark, the user's and the assistant's by turns; the last may be a request
    without an answer. opening, closing: the tokens [INST] and [/INST]. Returns the tokens, and for each whether it is
    learned: what the assistant says, its eos included, and nothing else.
    """
    # Hint: Each request begins with bos, each answer ends with eos: a dialogue of two pairs has two of both.
    raise NotImplementedError


# 15.2 · warm-up --------------------------------------------------------------


def masked_mean(losses: Sequence[Array], masks: Sequence[Array]) -> float:
    """The mean loss over the tokens that count, of a batch that comes in pieces.

    losses: -log p of every token, a piece's (B, T). masks: (B, T) bool, true where a token counts; there may be none in
    a piece, but not in all. Returns the mean: however the batch is cut into pieces, it is the same.
    """
    # Hint: How many tokens count in the whole batch? That number belongs under the sum, once.
    raise NotImplementedError


# 15.3 · core -----------------------------------------------------------------


def pack(lengths: Sequence[int], order: Iterable[int], size: int) -> list[list[int]]:
    """Rows of at most `size` places: each dialogue, in the given order, goes into the first of the open rows that has
    room for it, or opens a new one (first fit; the 32 rows opened last are tried).

    lengths: places that each dialogue takes, from 1 to `size`. Returns the dialogues of each row.
    """
    # Hint: Keep two lists side by side: the dialogues of each row, and the room that it has left.
    raise NotImplementedError


# 15.4 · core -----------------------------------------------------------------


def seen(lengths: Sequence[int], size: int) -> tuple[Array, Array, Array]:
    """Who sees whom in a row in which texts stand side by side, none of which knows of the others.

    lengths: the places that each text takes, in order; what is left of the row is padding, of which each place is a
    text of its own. size: T. Returns starts (T,), the place where the text of each token begins; positions (T,),
    counted from there; visible (T, T) bool, true where the query of the row sees the key of the column.
    """
    # Hint: starts begins as np.arange(size): padding is a text of one token. Then each text overwrites its own places.
    raise NotImplementedError


# 15.5 · core -----------------------------------------------------------------
# As `saved`, return whatever your lora_linear_backward will need.


def lora_linear(x: Array, weight: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple]:
    """y = x Wᵀ + scale (x Aᵀ) Bᵀ, which is x (W + scale B A)ᵀ without the (O, I) matrix B A.

    x: (..., I) float. weight: W (O, I), frozen. a: A (R, I), b: B (O, R), trained; all of one dtype. Returns y (..., O)
    and what the backward pass needs. Hu et al., equation 3.
    """
    # Hint: x @ a.T is narrow, (..., R). Multiply that by the scale, then by b.T, and add it to x @ weight.T.
    raise NotImplementedError


# 15.6 · core -----------------------------------------------------------------


def lora_linear_backward(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    """Gradients of `lora_linear`: with u = scale x Aᵀ and du = scale dy B, dx = dy W + du A, dA = duᵀ x, dB = dyᵀ u.

    dy: (..., O). Returns dx (..., I), da (R, I) and db (O, R); W is frozen and has none.
    """
    # Hint: Name the narrow array: u = scale x Aᵀ. Then y = x Wᵀ + u Bᵀ, and both products are linear maps you know.
    raise NotImplementedError


# 15.7 · stretch --------------------------------------------------------------
# And think: in which precision would you add, if the base were stored in bfloat16?


def merged(params: Params, lora: LoraConfig, trained: Params) -> Params:
    """The weights of a plain Llama that computes what a Llama with adapters does: W + scale B A.

    params: all parameters of the base, by name; they stay as they are. lora: `lora.adapts(name)` says whether a
    parameter has adapters, and `lora.scale` is alpha / R. trained: beside `….wq.weight` stand its A (R, I) as
    `….wq.lora_a` and its B (O, R) as `….wq.lora_b`; there may be whole parameters too, under their own names, which
    replace the base's. Returns all parameters, by name, in arrays of their own.
    """
    # Hint: A parameter is one of three: it has adapters (lora.adapts), it is trained itself, or it is untouched.
    raise NotImplementedError
