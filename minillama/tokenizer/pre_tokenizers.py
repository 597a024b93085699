"""How byte-level BPE models cut a text into words before merging, by the names that GGUF files give.

A name stands for a family of models. The patterns are those of the models' own tokenizer.json, in its JSON form.
"""

from __future__ import annotations

from typing import Any

from minillama.errors import MinillamaError

Spec = dict[str, Any]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + _WORDS % r"\p{N}{1,3}"
_QWEN2 = _CONTRACTIONS + _WORDS % r"\p{N}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, words: bool) -> Spec:
    """Bytes to characters; `words` cuts with GPT-2's own pattern first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


def _split(pattern: str) -> Spec:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: Spec) -> Spec:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_GPT2 = _byte_level(words=True)
_DIGITS_APART = _sequence({"type": "Digits", "individual_digits": True}, _GPT2)
# What llama.cpp does for a file whose model its converter did not know: punctuation and thrice three digits apart.
_DEFAULT = _sequence(
    _split(r"[\p{P}\$\+<=>\^~\|]+"),
    _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
    _split(r"\p{N}+"),
    _split(r"[0-9][0-9][0-9]"),
    _byte_level(words=False),
)
_LLAMA_BPE = _sequence(_split(_LLAMA3), _byte_level(words=False))

PRE_TOKENIZERS: dict[str, Spec] = {
    "gpt-2": _GPT2,
    "default": _DEFAULT,
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "smaug-bpe": _LLAMA_BPE,
    "qwen2": _sequence(_split(_QWEN2), _byte_level(words=False)),
    "deepseek-r1-qwen": _sequence(_split(_QWEN2), _byte_level(words=False)),
    "tekken": _sequence(_split(_TEKKEN), _byte_level(words=False)),
}
# A word that is in the vocabulary is taken whole, even where the merges would not lead to it.
WHOLE_WORDS_FIRST = frozenset(["llama-bpe", "llama3", "llama-v3", "tekken"])
# Models that begin every text with bos; the others do so only where the file says it.
ADDS_BOS = frozenset(["llama-bpe", "llama3", "llama-v3", "tekken"])
# Models that compose accents before anything else (Unicode NFC).
COMPOSES = frozenset(["qwen2", "deepseek-r1-qwen"])


def pre_tokenizer(name: str, where: str) -> Spec:
    """The pre-tokenizer that GGUF calls `name`. Raises MinillamaError with the known names."""
    spec = PRE_TOKENIZERS.get(name)
    if spec is None:
        raise MinillamaError(f"{where}: unknown pre-tokenizer {name!r}: expected one of {', '.join(PRE_TOKENIZERS)}")
    return spec


def name_of(spec: Spec | None, where: str) -> str:
    """GGUF's name of a pre-tokenizer. Raises MinillamaError where it has none."""
    for name, known in PRE_TOKENIZERS.items():
        if _essence(known) == _essence(spec):
            return name
    raise MinillamaError(
        f"{where}: GGUF has no name for this tokenizer's pre-tokenizer: known {', '.join(PRE_TOKENIZERS)}"
    )


def _essence(spec: Any) -> Any:
    """`spec` without what does not change the cut: trim_offsets, and Sequences of one."""
    if isinstance(spec, dict):
        if spec.get("type") == "Sequence" and len(spec.get("pretokenizers") or []) == 1:
            return _essence(spec["pretokenizers"][0])
        return {key: _essence(value) for key, value in spec.items() if key != "trim_offsets"}
    return [_essence(item) for item in spec] if isinstance(spec, list) else spec
