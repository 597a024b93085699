"""Prefix caching: what a model has read of a text is not read again when the text has grown, as a dialogue does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from minillama.backend import Array, get_array_module
from minillama.config import LlamaConfig
from minillama.model import KVCache, Llama


class Prefix:
    """One text as far as a model has read it: its tokens, with their keys and values in every layer.

    It serves one model, whose weights stay as they are. Empty at first; then its memory is that of a whole context
    (`Prefix.nbytes`), of which the part that is never written to stays with the system.
    """

    def __init__(self, config: LlamaConfig) -> None:
        """config: of the model that reads."""
        self.tokens: list[int] = []
        self._length = config.max_seq_len
        self._keys: Array = None  # (L, K, S, D), position t in slot t
        self._values: Array = None

    @staticmethod
    def nbytes(config: LlamaConfig, dtype: np.dtype) -> int:
        """Bytes that the keys and values of a full context take."""
        return 2 * config.n_layers * config.n_kv_heads * config.max_seq_len * config.head_dim * dtype.itemsize

    def known(self, prompt: Sequence[int]) -> int:
        """How many tokens at the head of `prompt` need not be read: never its last, whose logits are wanted."""
        return common(self.tokens, prompt[:-1])

    def fill(self, cache: KVCache, row: int, n: int) -> None:
        """Put the first n positions before the end of what row `row` of `cache` has used, and zeros before them."""
        begin = cache.used - n
        for there, own in ((cache.keys, self._keys), (cache.values, self._values)):
            # Masked slots count as 0 · value, and what happens to lie in memory may be no number.
            there[:, row, :, :begin] = 0
            if n:
                there[:, row, :, begin : cache.used] = own[:, :, :n]

    def keep(self, cache: KVCache, row: int, tokens: list[int]) -> None:
        """Copy row `row` of `cache`, whose last positions hold `tokens`; what is here of them already stays."""
        if self._keys is None:
            xp = get_array_module(cache.keys)
            L, _, K, _, D = cache.keys.shape
            shape = (L, K, self._length, D)
            self._keys, self._values = xp.empty(shape, cache.keys.dtype), xp.empty(shape, cache.keys.dtype)
        n, known = len(tokens), common(self.tokens, tokens)
        slots = slice(cache.used - n + known, cache.used)
        self._keys[:, :, known:n] = cache.keys[:, row, :, slots]
        self._values[:, :, known:n] = cache.values[:, row, :, slots]
        self.tokens = tokens


def resumed(model: Llama, prompts: Sequence[Sequence[int]], prefixes: Sequence[Prefix], length: int) -> KVCache:
    """A cache of `length` slots for these prompts, with what is known of them in it already.

    All rows go on from one slot: of each prompt as many tokens are left to be read as of the one with the most news.
    """
    lengths = [len(prompt) for prompt in prompts]
    news = max(n - prefix.known(prompt) for n, prompt, prefix in zip(lengths, prompts, prefixes, strict=True))
    pads = np.array([max(lengths) - n for n in lengths])
    cache = KVCache(model.config, len(prompts), length, like=model.params["norm.weight"], pads=pads)
    cache.used = max(lengths) - news
    for row, (n, prefix) in enumerate(zip(lengths, prefixes, strict=True)):
        prefix.fill(cache, row, max(0, n - news))
    return cache


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    n = min(len(a), len(b))
    return n if a[:n] == b[:n] else next(i for i in count() if a[i] != b[i])
