"""What a training run will take before it is begun: memory of a GPU, tokens a second, GPU hours, carbon.

Everything follows from the sizes of the model, from how the run is divided among GPUs, and from one number that cannot
be derived, the MFU: the share of the GPUs' peak arithmetic that a run reaches (PaLM, arXiv:2204.02311, appendix B).
`TABLE2` holds what Llama 2's four runs took (arXiv:2307.09288, table 2), to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from minillama.config import LlamaConfig, preset
from minillama.errors import UsageError

PAPER_TOKENS = 2_000_000_000_000
PAPER_BATCH = 1024 * 4096  # "4M tokens"


@dataclass(frozen=True)
class GPU:
    """A kind of GPU: memory in bytes, power in watts, peak FLOP/s dense, bf16 on tensor cores and float32 without."""

    name: str
    memory: float
    watts: float
    bf16: float
    fp32: float


GPUS = {  # of the makers' data sheets, SXM modules
    "a100-40gb": GPU("A100-40GB", 40e9, 400, 312e12, 19.5e12),
    "a100-80gb": GPU("A100-80GB", 80e9, 400, 312e12, 19.5e12),
    "h100-80gb": GPU("H100-80GB", 80e9, 700, 989.4e12, 66.9e12),
    "h200-141gb": GPU("H200-141GB", 141e9, 700, 989.4e12, 66.9e12),
}


def find_gpu(name: str) -> GPU:
    """The kind of GPU called `name`, whatever the case. Raises UsageError with the known names."""
    if name.lower() not in GPUS:
        raise UsageError(f"unknown GPU {name!r}: expected one of {', '.join(GPUS)}")
    return GPUS[name.lower()]


@dataclass(frozen=True)
class Precision:
    """Bytes of one parameter, of its gradient, of what the optimizer keeps for it, and of one kept activation."""

    weight: int
    gradient: int
    optimizer: int
    activation: int


PRECISIONS = {
    "bf16": Precision(2, 2, 12, 2),  # the optimizer has a float32 copy of the weights beside its two moments
    "fp32": Precision(4, 4, 8, 4),
}


@dataclass(frozen=True)
class PaperRun:
    """A row of the paper's table 2: GPU hours on A100-80GB, watts a GPU, tonnes of CO2 equivalent."""

    hours: int
    watts: float
    tonnes: float

    @property
    def intensity(self) -> float:
        """Kilograms of CO2 equivalent for a kWh of the GPUs that the row implies."""
        return self.tonnes * 1000 / (self.hours * self.watts / 1000)


TABLE2 = {
    "llama2-7b": PaperRun(184_320, 400, 31.22),
    "llama2-13b": PaperRun(368_640, 400, 62.44),
    "llama2-34b": PaperRun(1_038_336, 350, 153.90),  # trained on the cluster whose GPUs were capped at 350 W
    "llama2-70b": PaperRun(1_720_320, 400, 291.42),
}
PAPER_HOURS, PAPER_TONNES = 3_311_616, 539.00  # the table's own last row


def paper_intensity() -> float:
    """Kilograms of CO2 equivalent for a kWh of GPU energy, from the sums of table 2, so that no row's rounding decides.

    What the building takes beside the GPUs (PUE) is inside: the 0.4235 are LLaMA 1's PUE of 1.1 times its 0.385 kg/kWh,
    the mean of the United States (arXiv:2302.13971, section 6).
    """
    rows = TABLE2.values()
    return sum(row.tonnes for row in rows) * 1000 / sum(row.hours * row.watts / 1000 for row in rows)


def forward_flops(config: LlamaConfig, seq_len: int) -> float:
    """FLOPs of a forward pass for one token, the mean over `seq_len` tokens: 14,288,158,720 for Llama 2 7B at 4,096.

    A multiplication and an addition are two. Counted are the matrix products: a matrix takes 2 for each of its
    parameters, tied or not the head too, but not the embedding table, which is read and not multiplied; a query and a
    key, a probability and a value, take 2HD each a layer for every position that a query sees: i + 1 at place i, or
    the sliding window. Norms, softmax, RoPE and SwiGLU are left out, a few thousandths. Returns a float.
    """
    C, H, K, D, F, V = config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.ffn_dim, config.vocab_size
    layer = 2 * H * D * C + 2 * K * D * C + 3 * F * C  # wq and wo, wk and wv, w1, w2 and w3
    window = min(config.sliding_window or seq_len, seq_len)
    seen = (window + 1) / 2 * (window / seq_len) + window * (1 - window / seq_len)  # positions, the mean over queries
    return 2 * (config.n_layers * layer + V * C) + config.n_layers * 2 * (2 * H * D) * seen


def training_flops(config: LlamaConfig, seq_len: int, recompute: bool = False) -> float:
    """Floating-point operations of a training step for one token: the backward pass makes two products for each of the
    forward's. recompute: every layer runs forward twice.
    """
    return (4 if recompute else 3) * forward_flops(config, seq_len)


def gpu_hours(flops: float, peak: float, mfu: float) -> float:
    """Hours that one GPU of `peak` FLOP/s would need for `flops` at a share `mfu` of its peak."""
    return flops / (peak * mfu) / 3600


def table2_hours(name: str, mfu: float) -> float:
    """GPU hours on A100-80GB for the 2T tokens of the model called `name` in table 2 ('llama2-7b', …), at an MFU.

    Raises UsageError for other names.
    """
    if name not in TABLE2:
        raise UsageError(f"{name}: not in the paper's table 2, expected one of {', '.join(TABLE2)}")
    config = preset(name)
    return gpu_hours(training_flops(config, config.max_seq_len) * PAPER_TOKENS, GPUS["a100-80gb"].bf16, mfu)


def implied_mfu(name: str) -> float:
    """The MFU at which the model called `name` in table 2 takes the hours that the table says."""
    return table2_hours(name, mfu=1.0) / TABLE2[name].hours


def state_bytes(parameters: float, zero: int, ranks: int, precision: Precision) -> dict[str, float]:
    """Bytes on each of `ranks` GPUs for `parameters` and what belongs to them: weights, gradients, optimizer state.

    A ZeRO stage of 1 divides the optimizer state among the ranks, 2 the gradients too, 3 (which FSDP is) also the
    weights (arXiv:1910.02054, section 5). Returns the bytes by these three names.
    """
    return {
        "weights": precision.weight * parameters / (ranks if zero >= 3 else 1),
        "gradients": precision.gradient * parameters / (ranks if zero >= 2 else 1),
        "optimizer state": precision.optimizer * parameters / (ranks if zero >= 1 else 1),
    }


@dataclass(frozen=True)
class Plan:
    """A training run on paper; its divisions are checked when it is built, its memory by `check_memory`.

    tensor: GPUs that share every matrix (Megatron-LM, arXiv:1909.08053); gpus / tensor is the number of ranks that take
    different sequences. zero: the ZeRO stage among those ranks, 0 to 3. micro_batch: sequences that a rank runs at
    once. seq_len: None means the model's context, at most 4,096. batch_tokens: of the whole step. mfu: of a step
    without recomputation; with it, the GPUs work at the same rate and a step takes 4/3 of the time.
    intensity: kg CO2 equivalent a kWh of GPU energy.
    """

    config: LlamaConfig
    gpus: int
    gpu: GPU = GPUS["a100-80gb"]
    precision: str = "bf16"
    zero: int = 1
    tensor: int = 1
    recompute: bool = False
    micro_batch: int = 1
    seq_len: int = None  # type: ignore[assignment]  # filled below
    batch_tokens: int = PAPER_BATCH
    tokens: int = PAPER_TOKENS
    mfu: float = 0.4
    intensity: float = paper_intensity()

    def __post_init__(self) -> None:
        if self.seq_len is None:
            object.__setattr__(self, "seq_len", min(self.config.max_seq_len, 4096))
        for name in ("gpus", "tensor", "micro_batch", "seq_len", "batch_tokens", "tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"plan {name} = {getattr(self, name)}: expected at least 1")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r}: expected one of {', '.join(PRECISIONS)}")
        if self.zero not in (0, 1, 2, 3):
            raise UsageError(f"ZeRO stage {self.zero}: expected 0, 1, 2 or 3")
        if not 0 < self.mfu <= 1:
            raise UsageError(f"MFU {self.mfu:g}: expected a share of the peak, above 0 and at most 1")
        if self.seq_len > self.config.max_seq_len:
            raise UsageError(
                f"sequences of {self.seq_len:,} tokens: the model's context is {self.config.max_seq_len:,}"
            )
        for name in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
            if getattr(self.config, name) % self.tensor:
                raise UsageError(
                    f"tensor parallel over {self.tensor}: {name} {getattr(self.config, name):,} is no multiple"
                )
        if self.gpus % self.tensor:
            raise UsageError(f"{self.gpus:,} GPUs are no multiple of the {self.tensor} that share each matrix")
        together = self.ranks * self.micro_batch * self.seq_len
        if self.batch_tokens % together:
            raise UsageError(
                f"a batch of {self.batch_tokens:,} tokens does not divide into {self.ranks:,} ranks × micro-batches of "
                f"{self.micro_batch} × {self.seq_len:,} tokens: expected a multiple of {together:,}"
            )

    @property
    def ranks(self) -> int:
        """Groups of GPUs that take different sequences."""
        return self.gpus // self.tensor

    @property
    def peak(self) -> float:
        """FLOP/s of one GPU at its best."""
        return self.gpu.bf16 if self.precision == "bf16" else self.gpu.fp32

    @property
    def accumulation(self) -> int:
        """Micro-batches that a rank runs one after the other in a step."""
        return self.batch_tokens // (self.ranks * self.micro_batch * self.seq_len)

    def memory(self) -> dict[str, float]:
        """Bytes by component on one GPU at the fullest moment, the beginning of the backward pass."""
        bytes_per = PRECISIONS[self.precision]
        norms = (2 * self.config.n_layers + 1) * self.config.dim  # every GPU has them whole
        parts = state_bytes((self.config.param_count() - norms) / self.tensor + norms, self.zero, self.ranks, bytes_per)
        if self.zero >= 2:  # what a layer's gradients, and in stage 3 its weights, need while they are whole
            sizes = [bytes_per.gradient] + [bytes_per.weight] * (self.zero == 3)
            parts["layer at work"] = sum(sizes) * self._largest_layer()
        return parts | {"activations": self._activations()}

    def _largest_layer(self) -> float:
        """Parameters that one GPU has of a layer, or of the embeddings where those are larger."""
        shapes = self.config.param_shapes()
        layer = sum(prod(shape) for name, shape in shapes.items() if name.startswith("layers.0."))
        return max(layer, prod(shapes["tok_embeddings.weight"])) / self.tensor

    def _activations(self) -> float:
        """Bytes that the forward pass of a micro-batch leaves for the backward pass.

        A layer keeps for each token: the inputs and outputs of the norms (4C, whole on every GPU), q, the attention's
        output, k and v (2HD + 2KD), its row sums in float32 (H), and gate, up and their product (3F). Attention
        probabilities are not kept but computed again, as FlashAttention does (arXiv:2205.14135). The head keeps the
        input and output of the last norm (2C) and float32 logits (V). recompute: of a layer its input alone is kept
        (C); what the others have is there for one layer at a time, when the head's is no longer.
        """
        c, t, size = self.config, self.tensor, PRECISIONS[self.precision].activation
        shared = 2 * c.n_heads * c.head_dim + 2 * c.n_kv_heads * c.head_dim + 3 * c.ffn_dim
        layer = size * (4 * c.dim + shared / t) + 4 * c.n_heads / t
        head = size * 2 * c.dim + 4 * c.vocab_size / t
        per_token = c.n_layers * size * c.dim + max(layer, head) if self.recompute else c.n_layers * layer + head
        return self.micro_batch * self.seq_len * per_token

    def fits(self) -> bool:
        """Whether a GPU's memory is enough."""
        return sum(self.memory().values()) <= self.gpu.memory

    def check_memory(self) -> None:
        """Raises UsageError where the GPU's memory is not enough, with what is largest and what would make it fit."""
        if self.fits():
            return
        memory = self.memory()
        largest = max(memory, key=memory.__getitem__)
        cure = next((how for how, other in self._alternatives() if other.fits()), None)
        raise UsageError(
            f"does not fit: a GPU needs {sum(memory.values()) / 1e9:,.1f} GB and {self.gpu.name} has "
            f"{self.gpu.memory / 1e9:,.0f} GB; most of it is {largest}, {memory[largest] / 1e9:,.1f} GB; "
            f"expected {cure or 'a GPU with more memory'}"
        )

    def _alternatives(self) -> Iterator[tuple[str, Plan]]:
        """This run divided further, as options of the command and as a plan: few GPUs first, then few changes, the
        cheapest first.
        """
        nothing: list[dict[str, Any]] = [{}]
        combinations = product(
            nothing + [{"gpus": self.gpus << doublings} for doublings in range(1, 12)],
            nothing + [{"recompute": True}] * (not self.recompute),
            nothing + [{"tensor": degree} for degree in (2, 4, 8) if degree > self.tensor],
            nothing + [{"micro_batch": 1}] * (self.micro_batch > 1),
            nothing + [{"zero": stage} for stage in range(self.zero + 1, 4)],
        )
        changes = [{name: value for part in parts for name, value in part.items()} for parts in combinations]
        for change in sorted(changes, key=lambda change: (change.get("gpus", 0), len(change))):
            options = [
                f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {value}"
                for name, value in change.items()
            ]
            try:
                yield " ".join(options), replace(self, **change)
            except UsageError:
                continue  # a division that does not come out even

    @property
    def flops_per_token(self) -> float:
        """Executed by a training step for one token, what is recomputed counted."""
        return training_flops(self.config, self.seq_len, self.recompute)

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.gpus * self.peak * self.mfu / self.flops_per_token

    @property
    def steps(self) -> int:
        """Optimizer steps until all tokens are seen, the last one perhaps not whole."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs together, for all tokens."""
        return gpu_hours(self.flops_per_token * self.tokens, self.peak, self.mfu)

    @property
    def days(self) -> float:
        """From the first step to the last, without a pause."""
        return self.gpu_hours / self.gpus / 24

    @property
    def kwh(self) -> float:
        """Energy of the GPUs, at full power all the time."""
        return self.gpu_hours * self.gpu.watts / 1000

    @property
    def tonnes(self) -> float:
        """CO2 equivalent of that energy."""
        return self.kwh * self.intensity / 1000


def smallest_tensor(config: LlamaConfig, gpus: int, **options: Any) -> Plan:
    """The plan whose tensor parallel degree, 1, 2, 4 or 8 (the GPUs of one machine), is the smallest that fits.

    options: the other fields of `Plan`. Where none fits, the last that divides evenly is returned, for `check_memory`
    to speak of; where none does, its UsageError is raised.
    """
    plan, problem = None, None
    for degree in (1, 2, 4, 8):
        try:
            plan = Plan(config, gpus, tensor=degree, **options)
        except UsageError as error:
            problem = problem or error
            continue
        if plan.fits():
            return plan
    if plan is None:
        assert problem is not None
        raise problem
    return plan
