"""Llama 2, all of it, from scratch in arrays: NumPy everywhere, CuPy on NVIDIA GPUs, no autograd."""

from minillama.config import PRESETS, LlamaConfig, RopeScaling
from minillama.errors import MinillamaError, UsageError
from minillama.model import Llama

__all__ = ["PRESETS", "Llama", "LlamaConfig", "MinillamaError", "RopeScaling", "UsageError"]
__version__ = "0.1.0"
