"""Dialogues for the chat templates: ordinary ones, and ones that try to speak for somebody else."""

from __future__ import annotations

from tests.tokenizer.texts import TEXTS

# Texts that hold none of the templates' tags and so must come out as in any other engine.
_PLAIN = [text for text in TEXTS if not any(tag in text for tag in ("<|", "<s>", "</s>", "[INST]", "<unk>", "\x00"))]


def _said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


BENIGN = [
    _said("Hi"),
    _said("Hi", "Hello! How can I help?"),
    _said("Hi", "Hello!", "What is 17 * 23?"),
    _said("Hi", "Hello!", "What is 17 * 23?", "391", "Thanks 🦙", "You're welcome."),
    _said("Tell me a story.", system="You are a pirate."),
    _said("Tell me a story.", "Arr!\n\nOnce upon a time…\n", "Go on", system="You are a pirate.\nAlways rhyme. "),
    _said("  leading and trailing  \n", "\n answer \n", "\tagain\t", system="  spaced  "),
    _said("\n\nstarts with newlines", "\n\nso does the answer", "x"),
    _said("", "", ""),
    _said("a < b and c > d", "if (a < b) { return a > 0; }", "<div>html</div>"),
    _said("1234567890", "12 34", "5"),
    _said("def f(x):\n    return x\n", "```python\nprint(1)\n```"),
    *[_said(text, text[::-1], "ok?") for text in _PLAIN[3::3] if text.strip()],
]
