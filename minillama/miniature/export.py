"""Conversations as files in the format that every chat trainer reads: JSONL with `messages`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from minillama.data.dialogues import write_records
from minillama.errors import UsageError
from minillama.miniature.conversation import Conversation


def write_jsonl(
    path: str | Path, conversations: Iterable[Conversation], count: int, instruction: str = "first"
) -> None:
    """Writes the first `count` conversations, one a line, as `record` gives them.

    instruction: see `Conversation.messages`. Raises MinillamaError where the file cannot be written; then nothing is.
    """
    write_records(Path(path), (record(conversation, instruction) for conversation in islice(conversations, count)))


def record(conversation: Conversation, instruction: str = "first") -> dict[str, Any]:
    """{"messages": […], "kind": …}, and where they are there "category" and "strategy"."""
    if instruction not in ("first", "every", "none"):
        raise UsageError(f"instruction: expected first, every or none, found {instruction!r}")
    known = {"category": conversation.category, "strategy": conversation.strategy}
    return {
        "messages": conversation.messages(instruction),  # type: ignore[arg-type]
        "kind": conversation.kind,
        **{name: value for name, value in known.items() if value is not None},
    }
