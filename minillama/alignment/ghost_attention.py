"""Ghost Attention: an instruction of the first turn that holds for the whole dialogue (paper, section 3.3).

The data are made by a model that forgets. It is asked with the instruction before *every* request, and so obeys in
every answer. To train, the instruction is taken away again from all requests but the first, so that the answers look as
if it had been remembered.

Our reading of what the paper leaves open:

- "We can set the loss to 0 for all the tokens from the previous turns, including assistant messages": only the last
  answer of a dialogue is learned. The earlier ones were sampled under repeated instructions, too, but they are there
  to be read, as they would be in a real dialogue.
- A sampled dialogue is an example at every turn, the turns after it left away. Eight of them are taken, drawn uniformly
  from the second turn on, so that every distance to the instruction is met; to sample is what costs, for every answer
  reads all that was said before.
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

EXAMPLES = 4  # of one sampled dialogue


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

    requests: of each dialogue what the user says, turn by turn. instructions: one for each dialogue. A dialogue that
    has filled the context ends early, without its last answer, which may be cut.
    """
    if len(requests) != len(instructions):
        raise UsageError(f"{len(requests)} dialogues and {len(instructions)} instructions: expected one for each")
    sampled = conversations(
        chatter,
        requests,
        sampling=sampling,
        seed=seed,
        before_every=instructions,
        end_when_full=True,
        progress=progress,
    )
    for dialogue, turns, instruction in zip(sampled, requests, instructions, strict=True):
        if len(dialogue) < 2 * len(turns):
            del dialogue[-2:]
        for turn, request in enumerate(turns[: len(dialogue) // 2]):
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
    """What is trained on: of each dialogue EXAMPLES beginnings that end with an answer from the second turn on, or as
    many as there are, each with only its last answer learned.
    """
    rng = np.random.default_rng([seed, 1])
    for dialogue in dialogues:
        ends = rng.permutation(np.arange(2, len(dialogue) // 2 + 1))[:EXAMPLES]
        for end in sorted(ends.tolist()):
            yield last_answer_only(dialogue[: 2 * end])


def miniature_requests(count: int, turns: int, seed: int = 0) -> tuple[list[list[str]], list[str]]:
    """Requests of so many dialogues of so many turns of the miniature's training split, and an instruction for each."""
    from minillama.miniature.dialogues import personal

    conversations = list(islice(personal("train", seed, turns), count))
    requests = [[turn.request for turn in c.turns] for c in conversations]
    return requests, [c.persona.instruction for c in conversations if c.persona]


def requests_of(
    source: DialogueSource, instructions: Sequence[str], turns: int, seed: int = 0
) -> tuple[list[list[str]], list[str]]:
    """What the user says in the training split's dialogues of two turns at least, in the first `turns` of them, and for
    each one of the instructions, drawn. Raises MinillamaError where there is no such dialogue.
    """
    spoken = [
        [message["content"] for message in example.messages if message["role"] == "user"][:turns]
        for example in source.examples()
        if example.split == "train"
    ]
    requests = [said for said in spoken if len(said) > 1]
    if not requests:
        raise MinillamaError("dialogues to ask from: expected some of two turns or more, found none")
    rng = np.random.default_rng([seed, 2])
    return requests, [instructions[int(i)] for i in rng.integers(len(instructions), size=len(requests))]
