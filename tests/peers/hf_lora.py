"""The same adapters inside PEFT, by a mapping of names and rows written here and not taken from minillama."""

from __future__ import annotations

import numpy as np
import peft
import torch

from minillama.config import LlamaConfig
from minillama.lora import LoraConfig
from tests.peers import hf

MODULES = {
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
}


def name(ours: str) -> str:
    """`layers.3.attention.wq.lora_a` -> `base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight`."""
    stem, _, kind = ours.rpartition(".")
    module = hf.name(f"{stem}.weight").removesuffix(".weight")
    return f"base_model.model.{module}.lora_{kind[-1].upper()}.default.weight"


def rows(config: LlamaConfig, ours: str, array: np.ndarray, back: bool = False) -> np.ndarray:
    """B beside q_proj and k_proj has the rows of these in transformers' order; back: in ours again."""
    if not ours.endswith((".wq.lora_b", ".wk.lora_b")):
        return array
    order = hf.half_split_rows(config.head_dim)
    heads = array.reshape(-1, config.head_dim, array.shape[1])  # (heads * D, R) -> (heads, D, R)
    return heads[:, np.argsort(order) if back else order].reshape(array.shape)


def build(
    config: LlamaConfig, params: dict[str, np.ndarray], lora: LoraConfig, trained: dict[str, np.ndarray]
) -> peft.PeftModel:
    """A float32 PEFT model with these weights and adapters."""
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=[MODULES[kind] for kind in lora.targets],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(hf.build(config, params), settings)
    state = {name(ours): torch.from_numpy(rows(config, ours, array).copy()) for ours, array in trained.items()}
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert {key for key, p in model.named_parameters() if p.requires_grad} == set(state)
    return model


def loss_and_gradients(
    config: LlamaConfig,
    params: dict[str, np.ndarray],
    lora: LoraConfig,
    trained: dict[str, np.ndarray],
    tokens: np.ndarray,
    targets: np.ndarray,
) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    """Loss, logits (B, T, V) and the gradients of the adapters in float32, under our names, in our order of rows."""
    model = build(config, params, lora, trained)
    logits = model(torch.from_numpy(tokens), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    theirs = dict(model.named_parameters())
    grads = {ours: rows(config, ours, theirs[name(ours)].grad.numpy(), back=True) for ours in trained}
    return loss.item(), logits.detach().numpy(), grads
