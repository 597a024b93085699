"""The same weights inside transformers, by a mapping of names and rows written here and not taken from minillama."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from minillama.config import LlamaConfig

_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_OUTER = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def name(ours: str) -> str:
    """`layers.3.attention.wq.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem = ours.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, index, inner = stem.split(".", 2)
    return f"model.layers.{index}.{_NAMES[inner]}.weight"


def half_split_rows(head_dim: int) -> np.ndarray:
    """Row j of a half-split head is row order[j] of an interleaved one: first all even rows, then all odd ones."""
    return np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])


def to_hf(config: LlamaConfig, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters (or gradients) under transformers' names and row order."""
    order = half_split_rows(config.head_dim)
    out = {}
    for ours, array in arrays.items():
        if ".wq." in ours or ".wk." in ours:
            heads = array.reshape(-1, config.head_dim, config.dim)  # (heads * D, C) -> (heads, D, C)
            array = heads[:, order].reshape(array.shape)
        out[name(ours)] = array
    return out


def build(config: LlamaConfig, params: dict[str, np.ndarray]) -> transformers.PreTrainedModel:
    """A float32 LlamaForCausalLM, or MistralForCausalLM where the config has a sliding window, with these weights."""
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "ntk":  # transformers has no fixed NTK: it is a larger theta
        rope["rope_theta"] = config.rope_theta * scaling.factor ** (config.head_dim / (config.head_dim - 2))
    elif scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    sizes = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.sliding_window is None:
        hf_config = transformers.LlamaConfig(**sizes, attn_implementation="eager")
        model = transformers.LlamaForCausalLM(hf_config)
    else:
        hf_config = transformers.MistralConfig(
            **sizes, sliding_window=config.sliding_window, attn_implementation="eager"
        )
        model = transformers.MistralForCausalLM(hf_config)
    state = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in to_hf(config, params).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval()


def loss_and_gradients(
    config: LlamaConfig,
    params: dict[str, np.ndarray],
    tokens: np.ndarray,
    targets: np.ndarray,
    mask: np.ndarray | None = None,
    token_mask: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Loss, hidden states, logits and gradients by transformers in float32, gradients under transformers' names."""
    model = build(config, params)
    real = np.ones(tokens.shape, bool) if mask is None else mask
    out = model(
        torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(real.astype(np.int64)),
        position_ids=torch.from_numpy(np.maximum(real.cumsum(1) - 1, 0)),
        output_hidden_states=True,
        use_cache=False,
    )
    ignored = torch.from_numpy(targets.copy())
    if token_mask is not None:
        ignored[torch.from_numpy(~token_mask)] = -100
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), ignored.flatten())
    loss.backward()
    grads = {key: p.grad.numpy() for key, p in model.named_parameters()}
    return loss.item(), out.hidden_states[-1].detach().numpy(), out.logits.detach().numpy(), grads
