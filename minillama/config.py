"""The shape of a model: `LlamaConfig`, and the presets of the Llama family by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from minillama.errors import UsageError


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to a context longer than the one trained on.

    kind: 'linear' divides every frequency by `factor` (position interpolation, arXiv:2306.15595); 'ntk' raises
    theta so that only the slow pairs stretch (NTK-aware scaling); 'llama3' leaves fast pairs alone, divides slow
    ones by `factor` and blends between (Llama 3.1).
    factor: how many times longer the context becomes.
    low_freq_factor, high_freq_factor, original_max_seq_len: of 'llama3' only.
    """

    kind: Literal["linear", "ntk", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "ntk", "llama3"):
            raise UsageError(f"rope scaling kind {self.kind!r}: expected 'linear', 'ntk' or 'llama3'")
        if not self.factor >= 1:
            raise UsageError(f"rope scaling factor {self.factor}: expected a number of at least 1")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UsageError(
                f"rope scaling frequency factors {self.low_freq_factor}, {self.high_freq_factor}: expected low < high"
            )
        if self.original_max_seq_len < 1:
            raise UsageError(f"rope scaling original_max_seq_len {self.original_max_seq_len}: expected at least 1")


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of one Llama; checked when built.

    The letters are those used in every shape comment: C = dim, L = n_layers, H = n_heads, K = n_kv_heads,
    D = head_dim, F = ffn_dim, V = vocab_size. n_kv_heads None means H (multi-head attention); 1 is multi-query;
    between is grouped-query. head_dim None means C / H. sliding_window W lets position i see i-W+1 … i. head None is
    the next-token head; 'score' a single row in its place, as reward and value models have; 'score+likelihood' a single
    row beside it (see `alignment.reward_model`).
    """

    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    vocab_size: int
    n_kv_heads: int = None  # type: ignore[assignment]  # filled below
    head_dim: int = None  # type: ignore[assignment]  # filled below
    max_seq_len: int = 4096
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    tie_embeddings: bool = False
    head: Literal["score", "score+likelihood"] | None = None

    def __post_init__(self) -> None:
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"config {name} = {value!r}: expected a positive integer")
        if self.head_dim is None:
            if self.dim % self.n_heads:
                raise UsageError(f"config dim {self.dim} is not a multiple of n_heads {self.n_heads}")
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if not isinstance(self.head_dim, int) or self.head_dim < 2 or self.head_dim % 2:
            raise UsageError(f"config head_dim {self.head_dim!r}: RoPE rotates pairs, expected a positive even integer")
        if self.n_heads % self.n_kv_heads:
            raise UsageError(f"config n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if not self.norm_eps > 0 or not self.rope_theta > 0:
            raise UsageError(
                f"config norm_eps {self.norm_eps}, rope_theta {self.rope_theta}: expected positive numbers"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UsageError(f"config sliding_window {self.sliding_window}: expected a positive integer or None")
        if self.head not in (None, "score", "score+likelihood"):
            raise UsageError(f"config head {self.head!r}: expected 'score', 'score+likelihood' or None")

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, under the names of Meta's checkpoints, in the order of the forward pass.

        A matrix is (outputs, inputs). With tied embeddings there is no `output.weight`, nor with the head 'score'.
        """
        C, H, K, D, F = self.dim, self.n_heads, self.n_kv_heads, self.head_dim, self.ffn_dim
        shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (self.vocab_size, C)}
        for i in range(self.n_layers):
            shapes |= {
                f"layers.{i}.attention_norm.weight": (C,),
                f"layers.{i}.attention.wq.weight": (H * D, C),
                f"layers.{i}.attention.wk.weight": (K * D, C),
                f"layers.{i}.attention.wv.weight": (K * D, C),
                f"layers.{i}.attention.wo.weight": (C, H * D),
                f"layers.{i}.ffn_norm.weight": (C,),
                f"layers.{i}.feed_forward.w1.weight": (F, C),
                f"layers.{i}.feed_forward.w3.weight": (F, C),
                f"layers.{i}.feed_forward.w2.weight": (C, F),
            }
        shapes["norm.weight"] = (C,)
        if self.head is not None:
            shapes["score.weight"] = (1, C)
        if self.head == "score+likelihood":
            shapes["score.likelihood"] = (1,)
        if self.head != "score" and not self.tie_embeddings:
            shapes["output.weight"] = (self.vocab_size, C)
        return shapes

    def param_count(self) -> int:
        """How many parameters the model has, without allocating one."""
        C, H, K, D, F, V = self.dim, self.n_heads, self.n_kv_heads, self.head_dim, self.ffn_dim, self.vocab_size
        layer = (H * D * C) * 2 + (K * D * C) * 2 + 3 * F * C + 2 * C
        head = 0 if self.tie_embeddings or self.head == "score" else V * C
        head += {None: 0, "score": C, "score+likelihood": C + 1}[self.head]
        return V * C + self.n_layers * layer + C + head

    def kv_cache_bytes(self, batch: int = 1, length: int | None = None, bytes_per_value: int = 4) -> int:
        """Size of the KV cache for `batch` sequences of `length` positions (None: the whole context)."""
        length = self.max_seq_len if length is None else length
        return 2 * self.n_layers * batch * self.n_kv_heads * length * self.head_dim * bytes_per_value

    def inference_bytes(self, batch: int = 1, length: int | None = None, bytes_per_value: int = 4) -> int:
        """Weights and KV cache, the two that matter when generating."""
        return self.param_count() * bytes_per_value + self.kv_cache_bytes(batch, length, bytes_per_value)

    def training_bytes(self, batch: int, length: int, bytes_per_value: int = 4, recompute: bool = False) -> int:
        """Weights, gradients, AdamW's two moments, and the activations that the backward pass reads.

        A layer keeps, for each token: of its two norms the normed vector and the result (4C) and the inverse norm (2);
        the queries and the attention's output by group, the output by head (3HD), k and v (2KD); the exponentials of
        the scores, and the inverse of their sum (H); gate, up, σ and product of SwiGLU (4F). The end keeps the last
        norm's three (2C + 1), and the gradient of the logits, in their place (V). recompute: of each layer only what
        goes into it (C), and all that one layer keeps.
        """
        C, H, K, D, F, V = self.dim, self.n_heads, self.n_kv_heads, self.head_dim, self.ffn_dim, self.vocab_size
        layer = length * (4 * C + 2 + 3 * H * D + 2 * K * D + H + 4 * F) + H * self._scores_kept(length)
        layers = self.n_layers * length * C + layer if recompute else self.n_layers * layer
        activations = batch * (layers + length * (2 * C + 1 + V))
        return (4 * self.param_count() + activations) * bytes_per_value

    def _scores_kept(self, length: int) -> int:
        """Scores of a head and a sequence: 64 queries at a time (on a CPU), with all keys that any of them may see."""
        window = self.sliding_window or length
        blocks = [(start, min(start + 64, length)) for start in range(0, length, 64)]
        return sum((stop - start) * (stop - max(0, start - window + 1)) for start, stop in blocks)


def _llama1(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> LlamaConfig:
    return LlamaConfig(dim, n_layers, n_heads, ffn_dim, vocab_size=32_000, max_seq_len=2048, norm_eps=1e-6)


def _llama2(dim: int, n_layers: int, n_heads: int, ffn_dim: int, n_kv_heads: int | None = None) -> LlamaConfig:
    return LlamaConfig(dim, n_layers, n_heads, ffn_dim, vocab_size=32_000, n_kv_heads=n_kv_heads)  # type: ignore[arg-type]


def _stories(dim: int, n_layers: int, n_heads: int, ffn_dim: int, max_seq_len: int) -> LlamaConfig:
    return LlamaConfig(dim, n_layers, n_heads, ffn_dim, vocab_size=32_000, max_seq_len=max_seq_len, tie_embeddings=True)


_LLAMA2 = {
    "llama2-7b": _llama2(4096, 32, 32, 11_008),
    "llama2-13b": _llama2(5120, 40, 40, 13_824),
    "llama2-34b": _llama2(8192, 48, 64, 22_016, n_kv_heads=8),  # never released; the shape of Code Llama 34B
    "llama2-70b": _llama2(8192, 80, 64, 28_672, n_kv_heads=8),
}


# Code Llama is Llama 2 trained on with theta 1,000,000 and a context of 16,384; 16 infilling tokens were added to the
# vocabulary of 7B and 13B (arXiv:2308.12950).
def _code(config: LlamaConfig, vocab_size: int = 32_016) -> LlamaConfig:
    return replace(config, vocab_size=vocab_size, rope_theta=1e6, max_seq_len=16_384)


_LLAMA3_8B = LlamaConfig(4096, 32, 32, 14_336, vocab_size=128_256, n_kv_heads=8, max_seq_len=8192, rope_theta=500_000.0)
_LLAMA3_70B = replace(_LLAMA3_8B, dim=8192, n_layers=80, n_heads=64, head_dim=128, ffn_dim=28_672)


def _llama31(config: LlamaConfig) -> LlamaConfig:
    return replace(config, max_seq_len=131_072, rope_scaling=RopeScaling("llama3", factor=8.0))


_SMOLLM2 = LlamaConfig(
    576, 30, 9, 1536, vocab_size=49_152, n_kv_heads=3, max_seq_len=8192, rope_theta=100_000.0, tie_embeddings=True
)

PRESETS: dict[str, LlamaConfig] = {
    "llama1-7b": _llama1(4096, 32, 32, 11_008),
    "llama1-13b": _llama1(5120, 40, 40, 13_824),
    "llama1-33b": _llama1(6656, 60, 52, 17_920),
    "llama1-65b": _llama1(8192, 80, 64, 22_016),
    **_LLAMA2,
    "codellama-7b": _code(_LLAMA2["llama2-7b"]),
    "codellama-13b": _code(_LLAMA2["llama2-13b"]),
    "codellama-34b": _code(_LLAMA2["llama2-34b"], vocab_size=32_000),
    "codellama-70b": replace(_LLAMA2["llama2-70b"], vocab_size=32_016, rope_theta=1e4, max_seq_len=2048),
    "tinyllama-1.1b": LlamaConfig(2048, 22, 32, 5632, vocab_size=32_000, n_kv_heads=4, max_seq_len=2048),
    "mistral-7b": LlamaConfig(
        4096, 32, 32, 14_336, vocab_size=32_000, n_kv_heads=8, max_seq_len=32_768, sliding_window=4096
    ),
    "llama3-8b": _LLAMA3_8B,
    "llama3-70b": _LLAMA3_70B,
    "llama3.1-8b": _llama31(_LLAMA3_8B),
    "llama3.1-70b": _llama31(_LLAMA3_70B),
    "smollm2-135m": _SMOLLM2,
    "smollm2-360m": replace(_SMOLLM2, dim=960, n_layers=32, n_heads=15, n_kv_heads=5, ffn_dim=2560),
    "smollm2-1.7b": replace(
        _SMOLLM2, dim=2048, n_layers=24, n_heads=32, n_kv_heads=32, ffn_dim=8192, rope_theta=130_000.0
    ),
    "stories260k": LlamaConfig(64, 5, 8, 172, vocab_size=512, n_kv_heads=4, max_seq_len=512, tie_embeddings=True),
    "stories15m": _stories(288, 6, 6, 768, 256),
    "stories42m": _stories(512, 8, 8, 1376, 1024),
    "stories110m": _stories(768, 12, 12, 2048, 1024),
    "mini": LlamaConfig(128, 4, 4, 344, vocab_size=1024, n_kv_heads=2, max_seq_len=1024, tie_embeddings=True),
    "small": LlamaConfig(384, 8, 6, 1024, vocab_size=8192, n_kv_heads=2, max_seq_len=1024, tie_embeddings=True),
    "base": LlamaConfig(768, 12, 12, 2048, vocab_size=32_000, max_seq_len=1024, tie_embeddings=True),
}


def scaled(depth: int, vocab_size: int = 1024, max_seq_len: int = 1024) -> LlamaConfig:
    """A family on one dial: L = H = `depth`, D = 4 (L + 4), and so C = L D; K = H / 2, F about 8/3 C, tied embeddings.

    Depth 4 is the preset mini; at 8 and 12 the model is as wide as small and base. The ratio of width to depth, 32 at 4
    and 64 at 12, grows towards that of Llama 2 7B, 128 at 32.
    """
    if depth < 1:
        raise UsageError(f"depth {depth}: expected at least 1")
    head_dim = 4 * (depth + 4)
    dim = depth * head_dim
    return LlamaConfig(
        dim,
        depth,
        n_heads=depth,
        n_kv_heads=depth // 2 if depth % 2 == 0 else depth,
        head_dim=head_dim,
        ffn_dim=-(-8 * dim // 24) * 8,  # 8/3 C, rounded up to a multiple of 8
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        tie_embeddings=True,
    )


def preset(name: str) -> LlamaConfig:
    """The preset called `name`, whatever the case. Raises UsageError with the known names."""
    config = PRESETS.get(name.lower())
    if config is None:
        raise UsageError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return config
