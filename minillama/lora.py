"""LoRA: a Llama whose weights are frozen, with trained matrices of low rank beside some of them (arXiv:2106.09685).

    model = LoraLlama.wrap(Llama.load("smollm2"), LoraConfig(rank=8, alpha=16), seed=0, base="smollm2")
    ...  # `training.loop.train(model, …)` changes model.trained, and only that
    weights.save(model.checkpoint(), "adapters")  # PEFT's format: adapter_config.json, adapter_model.safetensors
    plain = model.merged()  # a Llama with the weights W + alpha / rank · B A

The loop, its checkpoints and generation take it as any other Llama. For a few thousandths of the parameters there are
gradients and an optimizer's state; the base, which is never written to, is its own reference model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minillama import layers
from minillama.backend import Array, Device, resolve_device, to_device
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError, UsageError
from minillama.model import Llama
from minillama.params import Params, views

if TYPE_CHECKING:
    from minillama.weights import Checkpoint

TARGETS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")  # the matrices of a block


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices get adapters, and of what size.

    rank: R, the rows of A and columns of B. alpha: the product B A is added alpha / rank times. targets: some of
    TARGETS, in every block. also: names of parameters that are trained as they are, beside the adapters (PEFT's
    modules_to_save), such as a reward model's 'score.weight'. Raises UsageError for what cannot be.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"LoRA rank {self.rank}: expected a positive integer")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"LoRA alpha {self.alpha}: expected a positive number")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise UsageError(f"LoRA targets {', '.join(self.targets)}: expected some of {', '.join(TARGETS)}")
        # In one order, whatever the order given: equal choices are equal configs.
        object.__setattr__(self, "targets", tuple(name for name in TARGETS if name in self.targets))
        object.__setattr__(self, "also", tuple(sorted(set(self.also))))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    def shapes(self, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all that is trained: `layers.0.attention.wq.lora_a` (R, I) and `….lora_b` (O, R) for each
        target, in the order of the forward pass; then the parameters in `also`.

        Raises UsageError for a name in `also` that is no parameter of `config`, or is a target.
        """
        params, shapes = config.param_shapes(), dict[str, tuple[int, ...]]()
        for name, shape in params.items():
            if self.adapts(name):
                O, I = shape
                a, b = adapter_names(name)
                shapes |= {a: (self.rank, I), b: (O, self.rank)}
        for name in self.also:
            if name not in params or self.adapts(name):
                raise UsageError(f"LoRA also {name}: expected the name of a parameter that has no adapters")
            if name == "tok_embeddings.weight" and config.tie_embeddings:
                raise UsageError(f"LoRA also {name}: expected embeddings of their own, found them tied to the head")
            shapes[name] = params[name]
        return shapes

    def adapts(self, name: str) -> bool:
        """Whether the parameter called `name` has adapters beside it."""
        return name.removesuffix(".weight").rpartition(".")[2] in self.targets


def adapter_names(name: str) -> tuple[str, str]:
    """`layers.0.attention.wq.weight` -> the names of its A and its B."""
    stem = name.removesuffix("weight")
    return f"{stem}lora_a", f"{stem}lora_b"


class LoraLlama(Llama):
    """A Llama of which only adapters are trained, and what `LoraConfig.also` names.

    params: all parameters of the base, frozen; those in `also` are copies, trained. trained: name -> array, under the
    names of `LoraConfig.shapes`. A model with another head comes about by inheritance:
    `class LoraRewardModel(LoraLlama, RewardModel)`, with `also=("score.weight",)`.
    """

    def __init__(self, config: LlamaConfig, params: Params, lora: LoraConfig, trained: Params, base: str = "") -> None:
        """trained: what `LoraConfig.shapes` says. Arrays are taken as they are: those of `trained` will be written to.

        base: where the base can be found again, a path or a name. Raises MinillamaError where shapes are wrong.
        """
        check_adapters(config, lora, trained)
        super().__init__(config, params | {name: trained[name] for name in lora.also})
        self.lora, self.base, self._trained = lora, base, trained

    @classmethod
    def wrap(cls, model: Llama, lora: LoraConfig, *, seed: int = 0, base: str = "") -> LoraLlama:
        """`model` with fresh adapters, which change nothing yet: A uniform within ±1/√I as in PEFT, B zeros.

        model: its arrays are shared, and never written to. base: its name or path, which a saved adapter gives as
        where to find it. The same seed gives the same adapters.
        """
        rng = np.random.default_rng(seed)
        trained = {}
        for name, shape in lora.shapes(model.config).items():
            if name in lora.also:
                trained[name] = model.params[name].copy()
            elif name.endswith("lora_a"):
                bound = 1 / math.sqrt(shape[1])
                trained[name] = model.xp.asarray(rng.uniform(-bound, bound, shape).astype(model.dtype))
            else:
                trained[name] = model.xp.zeros(shape, model.dtype)
        return cls(model.config, model.params, lora, trained, base)

    @classmethod
    def load(cls, source: str | Path, device: Device | None = "cpu", dtype: type = np.float32) -> LoraLlama:
        """The adapters in the folder `source` on their base, not merged, to be trained on. Raises MinillamaError."""
        from minillama import weights
        from minillama.weights import peft

        device = resolve_device(device)
        saved = weights.load(source, dtype, merge=False)
        if saved.lora is None or saved.base is None:
            raise MinillamaError(f"{source}: expected adapters, found a whole model")
        base = weights.load(peft.base_of(Path(source)), dtype).params
        wanted = saved.config.param_shapes()  # without the next-token head, where the adapters have another one
        params = {name: to_device(x, device) for name, x in base.items() if name in wanted}
        trained = {name: to_device(x, device) for name, x in saved.params.items()}
        return cls(saved.config, params, saved.lora, trained, saved.base)

    @property
    def trained(self) -> Params:
        """What training changes: adapters, and the parameters in `LoraConfig.also`."""
        return self._trained

    def checkpoint(self) -> Checkpoint:
        """The adapters alone: `weights.save` writes them in PEFT's format, `weights.load` finds the base again."""
        from minillama.weights import Checkpoint

        return Checkpoint(self.config, self._trained, lora=self.lora, base=self.base)

    def merged(self) -> Llama:
        """A Llama of its own with the weights W + scale B A: the same function, at the speed of any other."""
        return Llama(self.config, self.merged_params())

    def merged_params(self) -> Params:
        """The parameters of `merged`, copies, side by side in one buffer."""
        shapes = self.config.param_shapes()
        params = views(self.xp.empty(sum(map(math.prod, shapes.values())), self.dtype), shapes)
        for name, p in params.items():
            p[...] = self.params[name]
        merge(params, self.lora, self._trained)
        return params

    def backward(self, dhidden: Array, saved: Any) -> Params:
        """As `Llama.backward`: the gradients of what is trained."""
        grads = super().backward(dhidden, saved)
        return {name: grad for name, grad in grads.items() if name in self._trained}  # without those of the norms

    def _linear(self, x: Array, name: str) -> tuple[Array, Any]:
        if self.lora.adapts(name):
            a, b = (self._trained[adapter] for adapter in adapter_names(name))
            return layers.lora_linear(x, self.params[name], a, b, self.lora.scale)
        if name in self._trained:
            return super()._linear(x, name)
        return layers.frozen_linear(x, self.params[name])

    def _linear_backward(self, dy: Array, name: str, saved: Any, grads: Params) -> Array:
        if self.lora.adapts(name):
            a, b = adapter_names(name)
            dx, grads[a], grads[b] = layers.lora_linear_backward(dy, saved)
            return dx
        if name in self._trained:
            return super()._linear_backward(dy, name, saved, grads)
        return layers.frozen_linear_backward(dy, saved)

    def _project(self, x: Array, names: tuple[str, ...], joined: bool) -> list[tuple[Array, Any]]:
        return super()._project(x, names, joined and not any(map(self.lora.adapts, names)))


def merge(params: Params, lora: LoraConfig, trained: Params) -> None:
    """Work what is trained into the parameters of its base, in place: W + scale B A, and those in `also` replaced."""
    for name, p in params.items():
        if lora.adapts(name):
            a, b = (trained[adapter] for adapter in adapter_names(name))
            p[...] = p + lora.scale * (b @ a)  # (O, R) @ (R, I) -> (O, I)
        elif name in lora.also:
            p[...] = trained[name]


def check_adapters(config: LlamaConfig, lora: LoraConfig, trained: Params) -> None:
    """Raise MinillamaError with the first array that is missing, unexpected or of the wrong shape."""
    shapes = lora.shapes(config)
    if missing := [name for name in shapes if name not in trained]:
        raise MinillamaError(f"missing {missing[0]} ({len(missing)} of {len(shapes)} missing)")
    if unexpected := [name for name in trained if name not in shapes]:
        raise MinillamaError(f"unexpected {unexpected[0]} ({len(unexpected)} in all)")
    for name, shape in shapes.items():
        if tuple(trained[name].shape) != shape:
            raise MinillamaError(f"{name}: expected shape {shape}, found {tuple(trained[name].shape)}")
