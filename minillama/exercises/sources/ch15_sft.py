"""Chapter 15, supervised finetuning: exercises, solutions and typical wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minillama import layers
from minillama.backend import Array
from minillama.config import LlamaConfig
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.lora import LoraConfig, LoraLlama
from minillama.params import Params
from minillama.training import packing

chapter = Chapter(
    "ch15_sft",
    "Supervised finetuning",
    """Chapter 15: supervised finetuning. Write the functions; the chapter derives each formula.

    minillama exercises check ch15      what is right, and the first thing that is not
    minillama exercises hint ch15       the next hint

When 15.3, 15.5 and 15.6 are right, your functions finetune the miniature that `make book` has trained:

    minillama exercises run --with ch15 -- sft --model runs/mini/base --data miniature:400 --lora 8 --out runs/mine

T places of a row, S key positions, N rows of x, I and O the width of what goes into a matrix and of what comes out, R
the rank. A dialogue of n tokens takes n - 1 places: at each stands a token, and beside it the next one, its target.""",
)


# --- 15.1 a dialogue


def turn_cases(_: np.random.Generator) -> Iterator[Case]:
    marks = {"bos": 1, "eos": 2, "opening": 3, "closing": 4}
    yield {"turns": [[20, 21, 22], [30, 31]], **marks}
    yield {"turns": [[20], [30, 31, 32], [21, 22], [33]], **marks}
    yield {"turns": [[20, 2, 21], [30], [23], [], [24, 25], [34, 35]], **marks}  # a 2 that a user has typed; no answer
    yield {"turns": [[40, 41]], **marks}  # a request that waits for its answer


@chapter.exercise(
    "warm-up",
    cases=turn_cases,
    returns=("tokens", "loss_mask"),
    hints=(
        "Each request begins with bos, each answer ends with eos: a dialogue of two pairs has two of both.",
        "Go through the turns with enumerate; an odd one is the assistant's. Its tokens and its eos are learned.",
    ),
)
def dialogue(
    turns: Sequence[list[int]], bos: int, eos: int, opening: int, closing: int
) -> tuple[list[int], list[bool]]:
    """A dialogue as a model of this chapter sees it: bos [INST] request [/INST] answer eos, pair after pair.

    turns: the tokens of each, without any mark, the user's and the assistant's by turns; the last may be a request
    without an answer. opening, closing: the tokens [INST] and [/INST]. Returns the tokens, and for each whether it is
    learned: what the assistant says, its eos included, and nothing else.
    """
    tokens: list[int] = []
    loss_mask: list[bool] = []
    for i, said in enumerate(turns):
        learned = i % 2 == 1
        piece = [*said, eos] if learned else [bos, opening, *said, closing]
        tokens += piece
        loss_mask += [learned] * len(piece)
    return tokens, loss_mask


chapter.edit(
    "dialogue",
    "the eos of an answer is not learned: a model trained so never stops.",
    "loss_mask += [learned] * len(piece)",
    "loss_mask += [learned and token != eos for token in piece]",
)
chapter.edit("dialogue", "requests are learned too; only the assistant's words are.", "[learned]", "[True]")
chapter.edit("dialogue", "it learns what the user says, and not what the assistant says.", "[learned]", "[not learned]")
chapter.edit(
    "dialogue",
    "only the last answer is learned: all of them are.",
    "loss_mask += [learned] * len(piece)",
    "loss_mask = [False] * len(loss_mask) + [learned] * len(piece)",
)
chapter.edit(
    "dialogue",
    "bos stands only at the beginning of the dialogue; here it begins each pair.",
    "[bos, opening, *said, closing]",
    "[*([bos] if i == 0 else []), opening, *said, closing]",
)
chapter.edit(
    "dialogue",
    "eos ends only the last answer; here it ends each of them.",
    "[*said, eos] if learned",
    "[*said, *([eos] if i == len(turns) - 1 else [])] if learned",
)
chapter.edit(
    "dialogue",
    "[/INST] counts as learned: it is the template that writes it, not the assistant.",
    "loss_mask += [learned] * len(piece)",
    "loss_mask += [learned or token == closing for token in piece]",
)


# --- 15.2 the mean over a batch


def loss_cases(rng: np.random.Generator) -> Iterator[Case]:
    for *shapes, share in (((2, 5), (1, 7), 0.4), ((3, 4), (3, 4), (1, 9), 0.7), ((1, 6), 0.5)):
        masks = [rng.random(shape) < share for shape in shapes]
        for mask in masks:
            mask[0, -1] = True
        yield {"losses": [rng.uniform(0, 5, shape) for shape in shapes], "masks": masks}
    empty = np.zeros((2, 3), bool)
    yield {"losses": [rng.uniform(0, 5, (2, 3)), rng.uniform(0, 5, (2, 3))], "masks": [~empty, empty]}


@chapter.exercise(
    "warm-up",
    cases=loss_cases,
    returns=("loss",),
    hints=(
        "How many tokens count in the whole batch? That number belongs under the sum, once.",
        "losses[mask] are those that count; add up over all pieces first and divide at the end.",
    ),
)
def masked_mean(losses: Sequence[Array], masks: Sequence[Array]) -> float:
    """The mean loss over the tokens that count, of a batch that comes in pieces.

    losses: -log p of every token, a piece's (B, T). masks: (B, T) bool, true where a token counts; there may be none in
    a piece, but not in all. Returns the mean: however the batch is cut into pieces, it is the same.
    """
    total = sum(float(loss[mask].sum()) for loss, mask in zip(losses, masks, strict=True))
    return total / sum(int(mask.sum()) for mask in masks)


@chapter.wrong(
    "masked_mean", "it is a mean of the pieces' means: a token weighs more where few count. Divide once, at the end."
)
def mean_of_pieces(losses: Sequence[Array], masks: Sequence[Array]) -> float:
    means = [float(loss[mask].sum()) / max(1, int(mask.sum())) for loss, mask in zip(losses, masks, strict=True)]
    return sum(means) / len(means)


@chapter.wrong(
    "masked_mean", "it is a mean of the rows' means: a token of a short answer weighs more. Divide once, at the end."
)
def mean_of_rows(losses: Sequence[Array], masks: Sequence[Array]) -> float:
    rows = [(x, m) for loss, mask in zip(losses, masks, strict=True) for x, m in zip(loss, mask, strict=True)]
    return sum(float(x[m].sum()) / max(1, int(m.sum())) for x, m in rows) / len(rows)


chapter.edit(
    "masked_mean",
    "the sum is divided by all places, also those that do not count: padding makes the loss smaller.",
    "sum(int(mask.sum()) for mask in masks)",
    "sum(mask.size for mask in masks)",
)
chapter.edit(
    "masked_mean",
    "everything counts: take only the losses where the mask is true.",
    "loss[mask].sum()",
    "loss.sum()",
)
chapter.edit(
    "masked_mean",
    "this is the sum: divide by how many count.",
    "total / sum(int(mask.sum()) for mask in masks)",
    "total",
)


# --- 15.3 packing


def pack_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"lengths": [4, 5, 3, 6, 2], "order": [0, 1, 2, 3, 4], "size": 10}
    yield {"lengths": [4, 5, 3, 6, 2], "order": [3, 0, 4, 2, 1], "size": 7}
    yield {"lengths": [7, 1, 7], "order": [0, 1, 2], "size": 7}
    lengths = rng.integers(1, 41, 200).tolist()
    yield {"lengths": lengths, "order": rng.permutation(200).tolist(), "size": 40}
    # After forty full rows the first has still room for one: but only the last 32 are tried.
    yield {"lengths": [9, *[10] * 40, 1], "order": list(range(42)), "size": 10}


chapter.exercise(
    "core",
    cases=pack_cases,
    returns=("rows",),
    replaces="minillama.training.packing:pack",
    hints=(
        "Keep two lists side by side: the dialogues of each row, and the room that it has left.",
        "For each dialogue try the rows from max(0, len(rows) - 32) on; take the first with room[r] >= lengths[i].",
        "Where none has room, append a row with all its room; then put the dialogue in and take its length away.",
    ),
)(packing.pack)

chapter.edit(
    "pack",
    "a dialogue goes into the last row that has room: first fit takes the first.",
    "range(max(0, len(rows) - 32), len(rows))",
    "reversed(range(max(0, len(rows) - 32), len(rows)))",
)
chapter.edit(
    "pack",
    "only the newest row is tried: room in the ones before it stays empty.",
    "max(0, len(rows) - 32)",
    "max(0, len(rows) - 1)",
)
chapter.edit("pack", "all rows are tried; keep to the 32 opened last.", "max(0, len(rows) - 32)", "0")
chapter.edit(
    "pack",
    "a dialogue that exactly fills what is left is refused: its length may equal the room.",
    ">= lengths[i]",
    "> lengths[i]",
)
chapter.edit(
    "pack",
    "the dialogues are taken as they are numbered: take them in the given order.",
    "for i in order:",
    "for i in sorted(order):",
)
chapter.edit("pack", "the room of a row never shrinks, so that rows grow too long.", "room[row] -= lengths[i]", "pass")


# --- 15.4 what a token sees


def row_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"lengths": [3, 2, 4], "size": 10}
    yield {"lengths": [5], "size": 5}
    yield {"lengths": [1, 1, 6], "size": 8}
    yield {"lengths": [4, 3], "size": 12}


@chapter.exercise(
    "core",
    cases=row_cases,
    returns=("starts", "positions", "visible"),
    hints=(
        "starts begins as np.arange(size): padding is a text of one token. Then each text overwrites its own places.",
        "A position is the distance from the start: np.arange(size) - starts.",
        "visible compares a column of queries with a row of keys: starts[:, None] <= key, and key <= query.",
    ),
)
def seen(lengths: Sequence[int], size: int) -> tuple[Array, Array, Array]:
    """Who sees whom in a row in which texts stand side by side, none of which knows of the others.

    lengths: the places that each text takes, in order; what is left of the row is padding, of which each place is a
    text of its own. size: T. Returns starts (T,), the place where the text of each token begins; positions (T,),
    counted from there; visible (T, T) bool, true where the query of the row sees the key of the column.
    """
    place = np.arange(size)
    starts = place.copy()
    begin = 0
    for length in lengths:
        starts[begin : begin + length] = begin
        begin += length
    visible = (starts[:, None] <= place) & (place <= place[:, None])  # (T, 1) and (T,) -> (T, T)
    return starts, place - starts, visible


chapter.edit(
    "seen",
    "texts see the texts before them: a key must not lie before the query's start.",
    "(starts[:, None] <= place) & ",
    "",
)
chapter.edit(
    "seen", "a query sees what comes after it: the causal mask is missing.", " & (place <= place[:, None])", ""
)
chapter.edit(
    "seen",
    "queries and keys have changed places: visible[query, key].",
    "(starts[:, None] <= place) & (place <= place[:, None])",
    "((starts[:, None] <= place) & (place <= place[:, None])).T",
)
chapter.edit(
    "seen",
    "positions run through the row: they begin at 0 in each text.",
    "return starts, place - starts",
    "return starts, place",
)
chapter.edit(
    "seen",
    "a token does not see itself: the causal mask includes it.",
    "place <= place[:, None]",
    "place < place[:, None]",
)
chapter.edit(
    "seen",
    "padding is one text, or part of the last: each of its places is a text of its own.",
    "    visible =",
    "    starts[begin:] = begin\n    visible =",
)
chapter.edit(
    "seen",
    "every text begins at place 0: move the beginning on by each text's length.",
    "        begin += length\n",
    "",
)


# --- 15.5 and 15.6 LoRA


def lora_cases(rng: np.random.Generator) -> Iterator[Case]:
    for lead, I, O, R, scale in (((2, 3), 5, 4, 2, 2.0), ((4,), 6, 3, 1, 0.5), ((2, 2), 3, 7, 3, 1.0)):
        shapes = {"x": (*lead, I), "weight": (O, I), "a": (R, I), "b": (O, R)}
        yield {name: rng.standard_normal(shape) for name, shape in shapes.items()} | {"scale": scale}
    fresh = {"x": (3, 4), "weight": (5, 4), "a": (2, 4)}
    case = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in fresh.items()}
    yield {**case, "b": np.zeros((5, 2), np.float32), "scale": 2.0}  # as adapters begin


chapter.exercise(
    "core",
    cases=lora_cases,
    returns=("y", "saved"),
    task="As `saved`, return whatever your lora_linear_backward will need.",
    hints=(
        "x @ a.T is narrow, (..., R). Multiply that by the scale, then by b.T, and add it to x @ weight.T.",
        "Do not form b @ a: it is as large as the weight, and would be made anew in every step.",
    ),
)(layers.lora_linear)


@chapter.wrong("lora_linear", "the scale is missing: alpha / rank multiplies what the adapters add.")
def scale_missing(x: Array, weight: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple]:
    del scale
    return layers.lora_linear(x, weight, a, b, 1.0)


@chapter.wrong("lora_linear", "the scale multiplies all of the output; it belongs to what the adapters add.")
def all_scaled(x: Array, weight: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple]:
    y, saved = layers.lora_linear(x, weight, a, b, 1.0)
    return y * scale, saved


@chapter.wrong("lora_linear", "the frozen weight is missing: adapters are added to x Wᵀ.")
def base_missing(x: Array, weight: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple]:
    return layers.lora_linear(x, np.zeros_like(weight), a, b, scale)


@chapter.wrong("lora_linear", "the adapters are missing: this is x Wᵀ alone.")
def adapters_missing(x: Array, weight: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple]:
    return layers.lora_linear(x, weight, a, b, 0.0 * scale)


@chapter.wrong("lora_linear", "it divides by the scale.")
def divided(x: Array, weight: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple]:
    return layers.lora_linear(x, weight, a, b, 1 / scale)


def lora_there_and_back(own: Functions, x: Array, weight: Array, a: Array, b: Array, scale: float, dy: Array) -> tuple:
    _, saved = own.lora_linear(x, weight, a, b, scale)
    return own.lora_linear_backward(dy, saved)


def lora_backward_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in lora_cases(rng):
        x, O = case["x"], len(case["weight"])
        yield {**case, "dy": rng.standard_normal((*x.shape[:-1], O)).astype(x.dtype)}


def lora_gradient(own: Functions) -> None:
    rng = np.random.default_rng(1)
    x, a, b, weight = (rng.standard_normal(shape) for shape in ((2, 3, 5), (2, 5), (4, 2), (4, 5)))
    layers.gradcheck(lambda x, a, b: own.lora_linear(x, weight, a, b, 1.5), own.lora_linear_backward, x, a, b)


chapter.exercise(
    "core",
    cases=lora_backward_cases,
    trial=lora_there_and_back,
    proof=lora_gradient,
    needs=("lora_linear",),
    returns=("dx", "da", "db"),
    hints=(
        "Name the narrow array: u = scale x Aᵀ. Then y = x Wᵀ + u Bᵀ, and both products are linear maps you know.",
        "du = dy B, and from u = scale x Aᵀ: dA = scale duᵀ x. x has two ways to y, so dx has two terms.",
        "Reshape x and dy to (N, I) and (N, O) before the products that sum over all rows.",
    ),
)(layers.lora_linear_backward)


@chapter.wrong("lora_linear_backward", "dx lacks what comes back through the adapters: + scale (dy B) A.")
def dx_of_base(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    _, da, db = layers.lora_linear_backward(dy, saved)
    return dy @ saved[1], da, db


@chapter.wrong("lora_linear_backward", "dx lacks what comes back through the frozen weight: + dy W.")
def dx_of_adapters(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    dx, da, db = layers.lora_linear_backward(dy, saved)
    return dx - dy @ saved[1], da, db


@chapter.wrong("lora_linear_backward", "the scale is missing in all that comes back through the adapters.")
def scale_lost(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    x, weight, a, b, _, _ = saved
    return layers.lora_linear_backward(dy, layers.lora_linear(x, weight, a, b, 1.0)[1])


@chapter.wrong("lora_linear_backward", "the scale is missing in dA.")
def scale_lost_in_a(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    dx, da, db = layers.lora_linear_backward(dy, saved)
    return dx, da / saved[4], db


@chapter.wrong("lora_linear_backward", "the scale is missing in dB.")
def scale_lost_in_b(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    dx, da, db = layers.lora_linear_backward(dy, saved)
    return dx, da, db / saved[4]


@chapter.wrong("lora_linear_backward", "the scale is there twice in dB: u = scale x Aᵀ already has it.")
def scale_twice_in_b(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    dx, da, db = layers.lora_linear_backward(dy, saved)
    return dx, da, db * saved[4]


@chapter.wrong("lora_linear_backward", "dA and dB have changed places.")
def exchanged(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    dx, da, db = layers.lora_linear_backward(dy, saved)
    return dx, db, da


# --- 15.7 merging


MERGED = LlamaConfig(6, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=5, vocab_size=7)


def merge_cases(rng: np.random.Generator) -> Iterator[Case]:
    for lora in (
        LoraConfig(2, 4.0, ("wq", "w2")),
        LoraConfig(1, 0.5, ("wv",), ("norm.weight",)),
        LoraConfig(3, 6.0, ("wo", "w1"), ("output.weight", "layers.1.ffn_norm.weight")),
    ):
        params = {name: rng.standard_normal(shape) for name, shape in MERGED.param_shapes().items()}
        trained = {name: rng.standard_normal(shape) for name, shape in lora.shapes(MERGED).items()}
        yield {"params": params, "lora": lora, "trained": trained}


def merge_untouched(own: Functions) -> str | None:
    case = next(merge_cases(np.random.default_rng(2)))
    before = {name: p.copy() for name, p in case["params"].items()}
    own.merged(**case)
    changed = [name for name, p in case["params"].items() if not np.array_equal(p, before[name])]
    if changed:
        return (
            f"it writes into the base: params[{changed[0]!r}] has changed. Others may stand on it; return new arrays."
        )
    return None


def for_the_model(function: Callable[..., Params]) -> Callable[[LoraLlama], Params]:
    """`merged` in the place of the method, which finds its arguments in the model."""
    return lambda model: function(model.params, model.lora, model.trained)


@chapter.exercise(
    "stretch",
    cases=merge_cases,
    proof=merge_untouched,
    returns=("weights",),
    replaces="minillama.lora:LoraLlama.merged_params",
    adapt=for_the_model,
    task="And think: in which precision would you add, if the base were stored in bfloat16?",
    hints=(
        "A parameter is one of three: it has adapters (lora.adapts), it is trained itself, or it is untouched.",
        "b @ a has the shape of the weight, (O, R) @ (R, I); the scale multiplies the product.",
        "copy() what is untouched: whoever changes the merged model must not change the base.",
    ),
)
def merged(params: Params, lora: LoraConfig, trained: Params) -> Params:
    """The weights of a plain Llama that computes what a Llama with adapters does: W + scale B A.

    params: all parameters of the base, by name; they stay as they are. lora: `lora.adapts(name)` says whether a
    parameter has adapters, and `lora.scale` is alpha / R. trained: beside `….wq.weight` stand its A (R, I) as
    `….wq.lora_a` and its B (O, R) as `….wq.lora_b`; there may be whole parameters too, under their own names, which
    replace the base's. Returns all parameters, by name, in arrays of their own.
    """
    found = {}
    for name, p in params.items():
        if lora.adapts(name):
            stem = name.removesuffix("weight")
            a, b = trained[f"{stem}lora_a"], trained[f"{stem}lora_b"]
            found[name] = p + lora.scale * (b @ a)  # (O, R) @ (R, I) -> (O, I)
        elif name in trained:
            found[name] = trained[name].copy()
        else:
            found[name] = p.copy()
    return found


chapter.edit("merged", "the scale is missing: alpha / rank multiplies B A.", "lora.scale * (b @ a)", "b @ a")
chapter.edit("merged", "it multiplies by alpha: the scale is alpha / rank.", "lora.scale *", "lora.alpha *")
chapter.edit("merged", "the base is missing: B A is added to W.", "p + lora.scale", "lora.scale")
chapter.edit(
    "merged",
    "parameters that were trained whole are still the base's: take them from `trained`.",
    "trained[name].copy()",
    "p.copy()",
)
chapter.edit("merged", "the adapters are taken away, not added.", "p + lora.scale", "p - lora.scale")
chapter.edit(
    "merged",
    "parameters that no adapter touches are missing: return all of them.",
    "        else:\n            found[name] = p.copy()\n",
    "",
)
