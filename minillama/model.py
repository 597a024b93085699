"""The Llama: parameters, forward, backward and KV cache. Short, because the layers do the work.

The model ends with hidden states. A head stands on them: `logits` for the next token, and as well a reward or a value.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minillama import layers
from minillama.backend import Array, Device, device_of, get_array_module, resolve_device, to_device
from minillama.config import LlamaConfig
from minillama.errors import UsageError
from minillama.params import Params, check_shapes, empty_params, side_by_side

if TYPE_CHECKING:
    from minillama.weights import Checkpoint


class Llama:
    """A Llama with its parameters: one flat dict under the names of Meta's checkpoints, matrices (outputs, inputs).

    Query and key rows stand in Meta's interleaved order; `weights/` permutes what comes in another.
    """

    def __init__(self, config: LlamaConfig, params: Params) -> None:
        """Raises MinillamaError where a parameter is missing, unexpected or of the wrong shape."""
        check_shapes(config, params)
        self.config = config
        self.params = params
        self._frequencies = layers.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self._joins: dict[int, tuple[list[Array], Array | None]] = {}
        self._rotations: Array = None  # (positions so far, D/2) complex, grown as positions are met

    @classmethod
    def init(cls, config: LlamaConfig, seed: int = 0, dtype: type = np.float32, device: Device | None = "cpu") -> Llama:
        """A model with fresh weights: N(0, 0.02²), the two matrices that write to the residual stream smaller by
        √(2L) so that its variance does not grow with depth (GPT-2), norms 1. The same seed gives the same weights.
        """
        device = resolve_device(device)
        rng = np.random.default_rng(seed)
        params: Params = empty_params(config, dtype)
        for name, p in params.items():
            if p.ndim == 1:
                p[...] = 1
            else:
                std = 0.02 / (2 * config.n_layers) ** 0.5 if name.endswith(("wo.weight", "w2.weight")) else 0.02
                p[...] = rng.standard_normal(p.shape) * std
        return cls(config, {name: to_device(p, device) for name, p in params.items()})

    @classmethod
    def load(cls, source: str | Path, device: Device | None = "cpu", dtype: type = np.float32) -> Llama:
        """The model at `source`: a path in any format that `weights/` reads, or a name from the catalog.

        device None means cuda where it is usable. Raises MinillamaError for what cannot be read.
        """
        from minillama import catalog, weights

        device = resolve_device(device)
        checkpoint = weights.load(catalog.resolve(source), dtype=dtype)
        return cls(checkpoint.config, {name: to_device(x, device) for name, x in checkpoint.params.items()})

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint: a Hugging Face folder, which transformers opens as it is."""
        from minillama import weights

        weights.save(self.checkpoint(), folder, to="huggingface")

    @property
    def xp(self) -> Any:
        """The array library of the parameters: numpy or cupy."""
        return get_array_module(self.params["norm.weight"])

    @property
    def device(self) -> Device:
        """Where the parameters live."""
        return device_of(self.params["norm.weight"])

    @property
    def dtype(self) -> np.dtype:
        """The type of the parameters, and so of all arithmetic."""
        return self.params["norm.weight"].dtype

    @property
    def trained(self) -> Params:
        """What training changes, by name: here all parameters."""
        return self.params

    def checkpoint(self) -> Checkpoint:
        """What `weights.save` writes of the model."""
        from minillama.weights import Checkpoint

        return Checkpoint(self.config, self.params)

    def forward(
        self,
        tokens: Array,
        *,
        mask: Array | None = None,
        starts: np.ndarray | None = None,
        cache: KVCache | None = None,
        recompute: bool = False,
    ) -> tuple[Array, Any]:
        """Hidden states after the final norm.

        tokens: (B, T) integers. mask: (B, T) bool, false where a token is padding, left or right: padding changes no
        number of a real token. starts: (B, T) integers on the host, for several texts in one row: the place in the row
        where a token's own text begins. It sees nothing before that, and positions are counted from there. cache:
        continue after the positions it holds, and add these; padding is then the cache's own (see KVCache), and nothing
        is kept for a backward pass. recompute: keep only each block's input, and let `backward` run the block once more
        (Chen et al., arXiv:1604.06174): a third more work for a fraction of the memory. Returns hidden (B, T, C) and
        what `backward` needs (None with a cache). Raises UsageError for tokens that are not in the vocabulary or do not
        fit.
        """
        config, p = self.config, self.params
        tokens = self._check_tokens(tokens, cache)
        if cache is None:
            mask = None if mask is None else self.xp.asarray(mask)
            positions = _positions(self.xp, tokens, mask, starts)
        else:
            if mask is not None or starts is not None:
                raise UsageError("a mask or starts and a cache exclude each other: the cache knows its padding")
            positions, mask = cache.extend(tokens.shape[1])
        rotations = self._rotation_table(tokens.shape[1] if cache is None else cache.length)[positions]

        x, embedded = layers.embedding(tokens, p["tok_embeddings.weight"])  # (B, T) -> (B, T, C)
        blocks = []
        for i in range(config.n_layers):
            block = partial(self._block_forward, i, x, rotations, mask, starts, cache)
            x, saved = block()
            blocks.append(block if recompute else saved)
        hidden, normed = layers.rmsnorm(x, p["norm.weight"], config.norm_eps)
        return hidden, None if cache is not None else [embedded, blocks, normed]

    def backward(self, dhidden: Array, saved: Any) -> Params:
        """Gradient of every trained parameter that `forward` used, given that of its hidden states (B, T, C).

        The heads' own gradients are added by the caller (`accumulate`); with tied embeddings both share a name.
        `saved` is used up as it goes, so that memory falls while gradients are made.
        """
        embedded, blocks, normed = saved
        grads: Params = {}
        dx, grads["norm.weight"] = layers.rmsnorm_backward(dhidden, normed)
        for i in reversed(range(self.config.n_layers)):
            block = blocks.pop()
            dx = self._block_backward(i, dx, block()[1] if callable(block) else block, grads)
        if "tok_embeddings.weight" in self.trained:
            grads["tok_embeddings.weight"] = layers.embedding_backward(dx, embedded)
        return grads

    def logits(self, hidden: Array) -> Array:
        """The next-token head: hidden (..., C) -> unnormalised log-probabilities (..., V)."""
        return layers.linear(hidden, self._head_weight())[0]

    def logits_backward(self, dlogits: Array, hidden: Array) -> tuple[Array, Params]:
        """Gradients of `logits`: dhidden (..., C), and, where it is trained, the head's weight under the name it is
        stored by.
        """
        name, weight = self._head_name(), self._head_weight()
        if name not in self.trained:
            return layers.frozen_linear_backward(dlogits, weight), {}
        dhidden, dweight = layers.linear_backward(dlogits, (hidden, weight))
        return dhidden, {name: dweight}

    def _block_forward(
        self,
        i: int,
        x: Array,
        rotations: Array,
        mask: Array | None,
        starts: np.ndarray | None,
        cache: KVCache | None,
    ) -> tuple[Array, tuple | None]:
        """One transformer block: x + attention(norm(x)), then x + feed_forward(norm(x))."""
        config, p = self.config, self.params
        attention, feed_forward = f"layers.{i}.attention.", f"layers.{i}.feed_forward."
        B, T, _ = x.shape
        D = config.head_dim

        h, norm1 = layers.rmsnorm(x, p[f"layers.{i}.attention_norm.weight"], config.norm_eps)
        names = tuple(f"{attention}{name}.weight" for name in ("wq", "wk", "wv"))
        (q, wq), (k, wk), (v, wv) = self._project(h, names, joined=cache is not None)
        q, rope_q = layers.rope(q.reshape(B, T, config.n_heads, D), rotations)
        k, rope_k = layers.rope(k.reshape(B, T, config.n_kv_heads, D), rotations)
        v = v.reshape(B, T, config.n_kv_heads, D)
        if cache is not None:
            k, v = cache.store(i, k, v)  # (B, T, K, D) -> (B, S, K, D)
        out, attended = layers.attention(
            q, k, v, mask=mask, window=config.sliding_window, starts=starts, keep=cache is None
        )
        out, wo = self._linear(out.reshape(B, T, -1), f"{attention}wo.weight")  # (B, T, H*D) -> (B, T, C)
        x = x + out

        h, norm2 = layers.rmsnorm(x, p[f"layers.{i}.ffn_norm.weight"], config.norm_eps)
        names = (f"{feed_forward}w1.weight", f"{feed_forward}w3.weight")
        (gate, w1), (up, w3) = self._project(h, names, joined=cache is not None)
        h, act = layers.swiglu(gate, up)
        out, w2 = self._linear(h, f"{feed_forward}w2.weight")  # (B, T, F) -> (B, T, C)
        x = x + out
        if cache is not None:
            return x, None
        return x, (norm1, wq, wk, wv, rope_q, rope_k, attended, wo, norm2, w1, w3, act, w2)

    def _linear(self, x: Array, name: str) -> tuple[Array, Any]:
        """x (..., I) times the matrix called `name`, and what `_linear_backward` needs."""
        return layers.linear(x, self.params[name])

    def _linear_backward(self, dy: Array, name: str, saved: Any, grads: Params) -> Array:
        """dx (..., I), given dy (..., O). Puts the gradient of what is trained there into `grads`."""
        dx, grads[name] = layers.linear_backward(dy, saved)
        return dx

    def _project(self, x: Array, names: tuple[str, ...], joined: bool) -> list[tuple[Array, Any]]:
        """x (B, T, C) times each of the named matrices: (y, saved) a matrix. joined: nothing needs to be saved, so
        matrices that lie side by side are multiplied as one; one large product reads memory faster than three.
        """
        matrices = [self.params[name] for name in names]
        whole = self._joined(matrices) if joined else None
        if whole is None:
            return [self._linear(x, name) for name in names]
        y, _ = layers.linear(x, whole)  # (B, T, C) -> (B, T, ΣO)
        ends = np.cumsum([len(matrix) for matrix in matrices]).tolist()
        return [(y[..., end - len(matrix) : end], None) for matrix, end in zip(matrices, ends, strict=True)]

    def _joined(self, matrices: list[Array]) -> Array | None:
        """`side_by_side` of the matrices, looked up once for as long as they are the same arrays."""
        known, whole = self._joins.get(id(matrices[0]), ([], None))
        if len(known) != len(matrices) or any(a is not b for a, b in zip(known, matrices, strict=True)):
            whole = side_by_side(*matrices)
            self._joins[id(matrices[0])] = (matrices, whole)
        return whole

    def _block_backward(self, i: int, dx: Array, saved: tuple, grads: Params) -> Array:
        """The block read from its end: each residual sum hands dx to both of its terms. Fills `grads`."""
        norm1, wq, wk, wv, rope_q, rope_k, attended, wo, norm2, w1, w3, act, w2 = saved
        attention, feed_forward = f"layers.{i}.attention.", f"layers.{i}.feed_forward."
        B, T, _ = dx.shape

        dh = self._linear_backward(dx, f"{feed_forward}w2.weight", w2, grads)
        dgate, dup = layers.swiglu_backward(dh, act)
        dh = self._linear_backward(dgate, f"{feed_forward}w1.weight", w1, grads)
        dh += self._linear_backward(dup, f"{feed_forward}w3.weight", w3, grads)  # h fed both matrices
        dnorm, grads[f"layers.{i}.ffn_norm.weight"] = layers.rmsnorm_backward(dh, norm2)
        dx = dx + dnorm

        dout = self._linear_backward(dx, f"{attention}wo.weight", wo, grads)
        dq, dk, dv = layers.attention_backward(dout.reshape(B, T, -1, self.config.head_dim), attended)
        dq = layers.rope_backward(dq, rope_q).reshape(B, T, -1)  # (B, T, H, D) -> (B, T, H*D)
        dk = layers.rope_backward(dk, rope_k).reshape(B, T, -1)  # (B, T, K, D) -> (B, T, K*D)
        dh = self._linear_backward(dq, f"{attention}wq.weight", wq, grads)
        dh += self._linear_backward(dk, f"{attention}wk.weight", wk, grads)  # h fed all three
        dh += self._linear_backward(dv.reshape(B, T, -1), f"{attention}wv.weight", wv, grads)
        dnorm, grads[f"layers.{i}.attention_norm.weight"] = layers.rmsnorm_backward(dh, norm1)
        return dx + dnorm

    def _head_name(self) -> str:
        if self.config.head == "score":
            raise UsageError("expected a model that writes text, found a reward model, which scores it")
        return "tok_embeddings.weight" if self.config.tie_embeddings else "output.weight"

    def _head_weight(self) -> Array:
        return self.params[self._head_name()]

    def _rotation_table(self, length: int) -> Array:
        """Rotations of at least the positions 0 … length-1; computed on the host, again when a longer text comes."""
        if self._rotations is None or len(self._rotations) < length:
            table = layers.rope_rotations(np.arange(length), self._frequencies, self.dtype.type)
            self._rotations = self.xp.asarray(table)
        return self._rotations

    def _check_tokens(self, tokens: Any, cache: KVCache | None) -> Array:
        """`tokens` as an array beside the parameters, its shape and, where that costs no wait, its values checked."""
        if isinstance(tokens, (list, tuple, np.ndarray)):
            tokens = np.asarray(tokens)
            if tokens.dtype.kind not in "iu" or tokens.ndim != 2:
                raise UsageError(f"tokens: expected integers (B, T), found {tokens.dtype} {tokens.shape}")
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
                bad = tokens.max() if tokens.min() >= 0 else tokens.min()
                raise UsageError(f"token {bad} is not in the vocabulary of {self.config.vocab_size}")
        T = tokens.shape[1]
        if tokens.size == 0:
            raise UsageError("tokens: expected at least one token a row, found none")
        if cache is None and T > self.config.max_seq_len:
            raise UsageError(f"{T} tokens do not fit the context of {self.config.max_seq_len}")
        if cache is not None and cache.used + T > cache.length:
            raise UsageError(f"{cache.used} + {T} tokens do not fit the KV cache of {cache.length}")
        return self.xp.asarray(tokens)


class KVCache:
    """Keys and values of the positions seen so far, for B sequences side by side, in memory taken once.

    Prompts of unequal lengths are padded on the left: `pads[b]` leading slots of row b hold nothing and are never
    seen, and row b's first real token has position 0. A slot is the same for all rows.
    """

    def __init__(
        self, config: LlamaConfig, batch: int, length: int, like: Array, pads: np.ndarray | None = None
    ) -> None:
        """length: slots, of which none is used yet. like: an array of the type and on the device to use."""
        xp = get_array_module(like)
        shape = (config.n_layers, batch, config.n_kv_heads, length, config.head_dim)  # (L, B, K, S, D)
        self.keys, self.values = xp.empty(shape, like.dtype), xp.empty(shape, like.dtype)
        self.length, self.used = length, 0
        self.pads = None if pads is None or not np.any(pads) else xp.asarray(pads)[:, None]  # (B, 1)

    def extend(self, T: int) -> tuple[Any, Array | None]:
        """Take the next T slots. Returns their positions, a slice or (B, T), and the mask (B, S) of real keys."""
        start, self.used = self.used, self.used + T
        if self.pads is None:
            return slice(start, self.used), None
        xp = get_array_module(self.pads)
        slots = xp.arange(self.used)
        return xp.maximum(slots[start:] - self.pads, 0), slots >= self.pads

    def store(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Put k and v (B, T, K, D) into the slots just taken; all of the layer's so far (B, S, K, D), as views."""
        start = self.used - k.shape[1]
        keys, values = self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]  # (B, K, S, D)
        keys[:, :, start:] = k.swapaxes(1, 2)
        values[:, :, start:] = v.swapaxes(1, 2)
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def select(self, rows: list[int]) -> None:
        """Keep only these rows, in this order: sequences that are finished leave the batch.

        A row that keeps its place is not copied, and no row's unused slots are.
        """
        moved = [place for place, row in enumerate(rows) if place != row]
        if moved:
            come = [rows[place] for place in moved]
            for x in (self.keys, self.values):
                x[:, moved, :, : self.used] = x[:, come, :, : self.used]
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        self.pads = None if self.pads is None else self.pads[rows]


def _positions(xp: Any, tokens: Array, mask: Array | None, starts: np.ndarray | None) -> Any:
    """Position of each token among the real ones of its text: a slice where there is one text and no padding, else
    (B, T).
    """
    if starts is not None:
        if mask is not None:
            raise UsageError("a mask and starts exclude each other: padding is a text of its own")
        return xp.asarray(np.arange(tokens.shape[1]) - starts)
    if mask is None:
        return slice(0, tokens.shape[1])
    return xp.maximum(xp.cumsum(mask, axis=1) - 1, 0)
