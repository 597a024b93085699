"""Tokenizers: text to token ids and back, for every format that Llamas come in."""

from minillama.tokenizer.base import Framing, Span, Special, Tokenizer
from minillama.tokenizer.folder import from_folder, from_tokenizer_json
from minillama.tokenizer.gguf import from_gguf
from minillama.tokenizer.llama2c import from_llama2c, save_llama2c
from minillama.tokenizer.sentencepiece import from_sentencepiece
from minillama.tokenizer.stream import StreamDecoder
from minillama.tokenizer.training import save_sentencepiece, train

__all__ = [
    "Framing",
    "Span",
    "Special",
    "StreamDecoder",
    "Tokenizer",
    "from_folder",
    "from_gguf",
    "from_llama2c",
    "from_sentencepiece",
    "from_tokenizer_json",
    "save_llama2c",
    "save_sentencepiece",
    "train",
]
