"""Every op of a Llama: a forward that returns (y, saved), a backward that takes (dy, saved) and returns gradients.

An op keeps no state and takes its array library from its arrays. `model.py` calls the ops through this package
(`layers.rope(...)`), so that another implementation can be put in an op's place.
"""

from minillama.layers.attention import attention, attention_backward
from minillama.layers.cross_entropy import cross_entropy, cross_entropy_backward
from minillama.layers.embedding import embedding, embedding_backward
from minillama.layers.gradcheck import gradcheck
from minillama.layers.linear import linear, linear_backward
from minillama.layers.lora import frozen_linear, frozen_linear_backward, lora_linear, lora_linear_backward
from minillama.layers.rmsnorm import rmsnorm, rmsnorm_backward
from minillama.layers.rope import rope, rope_backward, rope_frequencies, rope_rotations
from minillama.layers.swiglu import swiglu, swiglu_backward
from minillama.layers.token_logprobs import entropy, token_logprobs, token_logprobs_backward

__all__ = [
    "attention",
    "attention_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "embedding",
    "embedding_backward",
    "entropy",
    "frozen_linear",
    "frozen_linear_backward",
    "gradcheck",
    "linear",
    "linear_backward",
    "lora_linear",
    "lora_linear_backward",
    "rmsnorm",
    "rmsnorm_backward",
    "rope",
    "rope_backward",
    "rope_frequencies",
    "rope_rotations",
    "swiglu",
    "swiglu_backward",
    "token_logprobs",
    "token_logprobs_backward",
]
