"""Ghost Attention: an instruction of the first turn that holds for the whole dialogue (paper, section 3.3).

The data are made by a model that forgets. It is asked with the instruction before *every* request, and so obeys in
every answer. To train, the instruction is taken away again from all requests but the first, so that the answers look as
if it had been remembered.

Our reading of what the paper leaves open:

- "We can set the loss to 0 for all the tokens from the previous turns, including assistant messages": only the last
  answer of a dialogue is learned. The earlier ones were sampled under repeated instructions, too, but they are there
  to be read, as they would be in a real dialogue.
- How long the dialogues are is drawn uniformly from 2 to the longest, so that every distance to the instruction is met.
- A sampled dialogue is an example at every turn, the turns after it left away: three of them are taken, its end and two
  more. To sample is what costs, for every answer reads all that was said before.
- Answers that disobey are not sorted out: no judge of obedience is asked, and the model that samples rarely disobeys.
- An instruction is put before a request in the same message, with a space between, while sampling and while training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from minillama.alignment.rollout import FULL, Chatter, conversations, instructed
from minillama.chat import Message
from minillama.data.dialogues import DialogueSource
from minillama.errors import MinillamaError, UsageError
from minillama.generate import Sampling

EXAMPLES = 3  # of one sampled dialogue


def ghost_dialogues(
    chatter: Chatter,
    requests: Sequence[Sequence[str]],
    instructions: Sequence[str],
    *,
    sampling: Sampling = FULL,
    seed: int = 0,
    progress: str | None = None,
) -> list[list[Message]]:
    """Dialogues whose answers obey, though only the first request says what is to be obeyed.

    requests: of each dialogue what the user says, turn by turn. instructions: one for each dialogue.
    """
    if len(requests) != len(instructions):
        raise UsageError(f"{len(requests)} dialogues and {len(instructions)} instructions: expected one for each")
    sampled = conversations(
        chatter, requests, sampling=sampling, seed=seed, before_every=instructions, progress=progress
    )
    for dialogue, turns, instruction in zip(sampled, requests, instructions, strict=True):
        for turn, request in enumerate(turns):
            said = instructed(instruction, request) if turn == 0 else request
            dialogue[2 * turn] = {"role": "user", "content": said}
    return sampled


def last_answer_only(messages: Sequence[Message]) -> dict[str, Any]:
    """The dialogue as a record of which only the last answer is learned: the others have weight 0."""
    last = len(messages) - 1
    return {
        "messages": [
            {**message, "weight": int(i == last)} if message["role"] == "assistant" else dict(message)
            for i, message in enumerate(messages)
        ]
    }


def records(dialogues: Iterable[Sequence[Message]], seed: int = 0) -> Iterator[dict[str, Any]]:
    """What is trained on: of each dialogue EXAMPLES beginnings that end with an answer, itself among them, each from
    the second turn on and with only its last answer learned.
    """
    rng = np.random.default_rng([seed, 3])
    for dialogue in dialogues:
        turns = len(dialogue) // 2
        earlier = rng.permutation(np.arange(2, turns))[: EXAMPLES - 1]
        for end in (*sorted(earlier.tolist()), turns):
            yield last_answer_only(dialogue[: 2 * end])


def cut(requests: Sequence[Sequence[str]], longest: int, seed: int = 0) -> Iterator[list[str]]:
    """Each dialogue's first requests, as many as are drawn uniformly from 2 to `longest`, or to all that it has."""
    if longest < 2:
        raise UsageError(f"turns {longest}: expected at least 2, for an instruction to be remembered")
    rng = np.random.default_rng([seed, 1])
    for turns in requests:
        most = min(longest, len(turns))
        yield list(turns[: int(rng.integers(2, most + 1)) if most > 2 else most])


def miniature_requests(count: int, longest: int, seed: int = 0) -> tuple[list[list[str]], list[str]]:
    """Requests of so many dialogues of 2 to `longest` turns of the miniature's training split, and an instruction for
    each.
    """
    from minillama.miniature.dialogues import personal

    conversations = list(islice(personal("train", seed, longest), count))
    requests = cut([[turn.request for turn in c.turns] for c in conversations], longest, seed)
    return list(requests), [c.persona.instruction for c in conversations if c.persona]


def requests_of(
    source: DialogueSource, instructions: Sequence[str], longest: int, seed: int = 0
) -> tuple[list[list[str]], list[str]]:
    """What the user says in the dialogues of a source that have two turns at least, cut to 2 to `longest`, and one of
    the instructions for each, drawn.
    """
    spoken = [
        [message["content"] for message in example.messages if message["role"] == "user"]
        for example in source.examples()
        if example.split == "train"
    ]
    requests = list(cut([turns for turns in spoken if len(turns) > 1], longest, seed))
    if not requests:
        raise MinillamaError("dialogues to ask from: expected some of two turns or more, found none")
    rng = np.random.default_rng([seed, 2])
    return requests, [instructions[int(i)] for i in rng.integers(len(instructions), size=len(requests))]
