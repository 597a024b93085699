"""Safety context distillation: what a preprompt makes a model say, learned without the preprompt (section 4.2.4).

A model answers adversarial prompts under a preprompt that asks it to be safe, and is then finetuned on these answers as
if it had never been asked. The paper saw that this can make answers worse, evasive or beside the point, and so keeps
only those that the safety reward model scores higher than what the model says without a preprompt: the gate.

Our reading of what the paper leaves open:

- Which of the preprompts a prompt gets is drawn uniformly.
- Prompts whose distilled answer is not kept are left out, and not learned with the original answer.
- A preprompt helps a model that has learned to heed one; the miniature's instruction data have some (`warned`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillama.alignment.ghost_attention import last_answer_only
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.rollout import FULL, Chatter, answers, instructed
from minillama.alignment.scorer import LOWEST, Scorer, complete
from minillama.chat import Message
from minillama.errors import UsageError
from minillama.generate import Sampling
from minillama.miniature.prompts import PREPROMPTS as MINIATURE

# As the paper makes them: one sentence, in which the adjectives change.
PREPROMPTS = {
    "general": tuple(
        f"You are a {one} and {other} assistant. You give {one} answers, and you refuse what could do harm."
        for one, other in (("safe", "responsible"), ("responsible", "respectful"), ("respectful", "wise"))
    ),
    "miniature": MINIATURE,
}


@dataclass(frozen=True)
class Distilled:
    """A prompt, what the model says to it (`original`), and what it says under a preprompt (`answer`).

    before, after: the safety scores of both, as answers to the prompt without a preprompt; LOWEST for one that did not
    come to its end.
    """

    prompt: Prompt
    original: str
    answer: str
    before: float
    after: float

    @property
    def usable(self) -> bool:
        """Whether there is an answer to learn."""
        return self.after > LOWEST

    @property
    def safer(self) -> bool:
        """Whether the preprompt has raised the score."""
        return self.after > self.before


def distil(
    chatter: Chatter,
    prompts: Sequence[Prompt],
    preprompts: Sequence[str],
    safety: Scorer,
    *,
    put: str = "prefix",
    sampling: Sampling = FULL,
    seed: int = 0,
    progress: str | None = None,
) -> list[Distilled]:
    """An answer to each prompt without and with a preprompt, and what the safety reward model thinks of both.

    put: where a preprompt goes, see `under`. Raises UsageError where there are no prompts or preprompts.
    """
    if not prompts or not preprompts:
        raise UsageError(f"{len(prompts)} prompts, {len(preprompts)} preprompts: expected at least one of both")
    rng = np.random.default_rng([seed, 6])
    drawn = [preprompts[i] for i in rng.integers(len(preprompts), size=len(prompts))]
    plain = [prompt.messages for prompt in prompts]
    instructed_too = [under(preprompt, messages, put) for preprompt, messages in zip(drawn, plain, strict=True)]
    texts = []
    for name, asked in (("as before", plain), ("under a preprompt", instructed_too)):
        shown = None if progress is None else f"{progress} {name}"
        texts.append([complete(a) for a in answers(chatter, asked, sampling=sampling, seed=seed, progress=shown)])
    before, after = (safety.scores(plain, said).tolist() for said in texts)
    # The same answer has the same score, also where another batch has rounded it otherwise: else the gate lets it pass.
    after = [b if x == y else a for x, y, b, a in zip(*texts, before, after, strict=True)]
    return [Distilled(*those) for those in zip(prompts, *texts, before, after, strict=True)]


def under(preprompt: str, messages: Sequence[Message], put: str) -> list[Message]:
    """A dialogue under a preprompt: "system", as its system message, before that if it has one, or "prefix", before the
    words of the user's first turn. Raises UsageError for anything else.
    """
    check_put(put)
    role = "system" if put == "system" else "user"
    if put == "system" and messages[0]["role"] != "system":
        return [{"role": "system", "content": preprompt}, *messages]
    first = next(i for i, message in enumerate(messages) if message["role"] == role)
    said: Message = {"role": role, "content": instructed(preprompt, messages[first]["content"])}
    return [*messages[:first], said, *messages[first + 1 :]]


def check_put(put: str) -> None:
    """Raise UsageError for a place that a preprompt cannot have."""
    if put not in ("system", "prefix"):
        raise UsageError(f"put {put!r}: expected prefix or system")


def kept(distilled: Iterable[Distilled], gate: bool = True) -> list[Distilled]:
    """Those to learn: the ones that are safer than before; without the gate all that came to their end."""
    return [d for d in distilled if d.usable and (d.safer or not gate)]


def records(distilled: Iterable[Distilled]) -> Iterator[dict[str, Any]]:
    """What is finetuned on: each prompt, without a preprompt, with its distilled answer, of which that alone is
    learned.
    """
    for d in distilled:
        messages = [*d.prompt.messages, {"role": "assistant", "content": d.answer}]
        yield {**last_answer_only(messages), "split": d.prompt.split}


def counts(distilled: Sequence[Distilled]) -> dict[str, int]:
    """How many prompts there are, and of how many the distilled answer scores higher, as high, lower, or did not come
    to its end.
    """
    usable = [d for d in distilled if d.usable]
    return {
        "prompts": len(distilled),
        "safer": sum(d.safer for d in usable),
        "as safe": sum(d.after == d.before for d in usable),
        "less safe": sum(d.after < d.before for d in usable),
        "unfinished": len(distilled) - len(usable),
    }
