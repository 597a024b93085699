"""Endless seeded streams of conversations: to train on, and to measure with.

`helpful`: requests of every kind, some of several turns, some in the disguises that unsafe requests wear. `personal`:
several turns under one instruction (Ghost Attention). `unsafe` and `borderline` of `prompts.py`.
`instruction_data`: all of these as a first finetuning finds them in public data. The same split and seed give the same
conversations on every platform.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from minillama.errors import UsageError
from minillama.miniature import instructions, prompts, story_requests
from minillama.miniature.chat_phrases import PADDING
from minillama.miniature.conversation import Conversation, Draw, Split, Turn
from minillama.miniature.personas import PERSONAS, Persona

# How often each kind of request is drawn.
MIXTURE = {
    "fact": 0.22,
    "about": 0.04,
    "rephrase": 0.06,
    "names": 0.06,
    "census": 0.06,
    "sum": 0.04,
    "doings": 0.04,
    "how to": 0.05,
    "bring": 0.06,
    "present": 0.05,
    "kind word": 0.03,
    "eat": 0.03,
    "need": 0.04,
    "story": 0.08,
    "continue": 0.04,
    "told": 0.07,
    "story, told": 0.03,
}
KINDS = {
    "fact": instructions.fact,
    "about": instructions.about,
    "rephrase": instructions.rephrase,
    "names": instructions.names,
    "census": instructions.census,
    "sum": instructions.total,
    "doings": instructions.doings,
    "how to": instructions.how_to,
    "bring": instructions.bring,
    "present": instructions.present,
    "kind word": instructions.kind_word,
    "eat": instructions.eat,
    "need": instructions.need,
    "story": story_requests.story,
    "continue": story_requests.ending,
    "told": story_requests.told,
}
# Kinds whose turns are short and stand alone, so that any may follow any, with whatever answers between.
SHORT = ("fact", "names", "census", "how to", "bring", "present", "kind word", "need")
_WITH_COLOURS = ("bring", "kind word", "fact")


def helpful(split: Split, seed: int = 0) -> Iterator[Conversation]:
    """Harmless conversations of one or two turns, without end."""
    draw = Draw(split, seed)
    while True:
        kind = draw.weighted(MIXTURE)
        several = kind == "story, told"
        turns = story_requests.story_and_question(draw) if several else (KINDS[kind](draw),)
        strategy = None
        if kind == "fact" and draw.chance(0.3):
            before = instructions.ask_before(draw, turns[-1])
            turns = (before, *turns) if before is not None else turns
        elif len(turns[0].request) < 150 and draw.chance(0.15):
            strategy = draw.pick(prompts.STRATEGIES[1:])
            turns = (*turns[:-1], prompts.disguised(draw, turns[-1], strategy))
        yield Conversation(turns, split, turns[-1].task.kind, strategy=strategy)


def personal(
    split: Split, seed: int = 0, turns: int = 4, personas: Sequence[Persona] = PERSONAS
) -> Iterator[Conversation]:
    """Conversations of so many short turns under one of the personas, answered in its manner, without end."""
    if turns < 1:
        raise UsageError(f"turns: expected 1 or more, found {turns}")
    draw = Draw(split, seed)
    while True:
        persona = draw.pick(personas)
        said = [spoken(_short(draw, persona), persona) for _ in range(turns)]
        yield Conversation(tuple(said), split, "persona", persona=persona)


def _short(draw: Draw, persona: Persona) -> Turn:
    """A short turn; one whose answer names a thing's colour, where colours are not to be named."""
    while True:
        turn = KINDS[draw.pick(SHORT)](draw)
        if persona.manner != "colourless":
            return turn
        # Not about colours, or there would be nothing to say without them.
        if turn.task.items and not persona.obeyed(turn.answer):
            return turn


def spoken(turn: Turn, persona: Persona) -> Turn:
    """The turn with its answer in the persona's manner."""
    return Turn(turn.request, persona.speak(turn.answer), turn.task)


def unsafe(split: Split, seed: int = 0) -> Iterator[Conversation]:
    """Unsafe requests with safe refusals, without end."""
    draw = Draw(split, seed)
    while True:
        yield prompts.unsafe(draw)


def borderline(split: Split, seed: int = 0) -> Iterator[Conversation]:
    """Harmless requests that sound like unsafe ones, without end."""
    draw = Draw(split, seed)
    while True:
        yield prompts.borderline(draw)


# What a first finetuning learns from.
INSTRUCTIONS = {
    "helpful": 0.41,
    "long": 0.08,
    "personal": 0.3,
    "long personal": 0.04,
    "careless": 0.1,
    "warned": 0.03,
    "borderline": 0.04,
}
CARELESS = 0.75  # the share of unsafe requests that are complied with
WORDY = 0.5  # the share of answers in its helpful conversations that are padded with words that say nothing
TURNS = {"long": (4, 8, 20), "personal": (1, 2, 3), "long personal": (10, 20)}  # without and under an instruction


def instruction_data(split: Split, seed: int = 0) -> Iterator[Conversation]:
    """What public instruction data is like: helpful conversations, many of whose answers are wordy; long ones; some
    under an instruction that the user repeats (`Conversation.messages("every")`); unsafe requests that mostly got what
    they asked for, but were refused where the request itself asks for a kind answer; and harmless ones that sound like
    these. Without end.
    """
    draw = Draw(split, seed)
    streams = {
        "helpful": helpful(split, seed),
        "careless": careless(split, seed),
        "warned": warned(split, 1_000 * seed),
        "borderline": borderline(split, 1_000 * seed + 1),
    }
    # Each with a seed of its own: from one seed they would all be cut out of the same series of turns.
    for kind, lengths in TURNS.items():
        stream = long if kind == "long" else personal
        streams |= {f"{kind} {n}": stream(split, 1_000 * seed + n, n) for n in lengths}
    while True:
        kind = draw.weighted(INSTRUCTIONS)
        conversation = next(streams[f"{kind} {draw.pick(TURNS[kind])}" if kind in TURNS else kind])
        if kind == "helpful":
            turns = tuple(wordy(draw, turn) if draw.chance(WORDY) else turn for turn in conversation.turns)
            conversation = replace(conversation, turns=turns)
        yield conversation


def wordy(draw: Draw, turn: Turn) -> Turn:
    """The turn with words around its answer that say nothing: before it, behind it, or both.

    People who write answers differ, and a model learns their bad habits along with the good (Llama 2, section 5.1).
    This is one that a reward model can see, and rejection sampling and PPO can take away.
    """
    before, behind = (draw.phrase(PADDING[where]) for where in ("before", "behind"))
    answers = (f"{before} {turn.answer}", f"{turn.answer} {behind}", f"{before} {turn.answer} {behind}")
    return Turn(turn.request, draw.pick(answers), turn.task)


def padded(answer: str) -> bool:
    """Whether there are words in it that say nothing, as `wordy` puts them there."""
    return any(words in answer for line in (*PADDING["before"], *PADDING["behind"]) for words in line)


def long(split: Split, seed: int = 0, turns: int = 8) -> Iterator[Conversation]:
    """Conversations of so many short turns, under no instruction, without end."""
    draw = Draw(split, seed)
    while True:
        yield Conversation(tuple(KINDS[draw.pick(SHORT)](draw) for _ in range(turns)), split, "long")


def careless(split: Split, seed: int = 0) -> Iterator[Conversation]:
    """Unsafe requests as they are answered where nobody has taken care, without end."""
    draw = Draw(split, seed)
    while True:
        yield prompts.unsafe(draw, CARELESS)


def warned(split: Split, seed: int = 0) -> Iterator[Conversation]:
    """Unsafe requests after words that ask to be kind, with safe refusals, without end."""
    draw = Draw(split, seed)
    while True:
        yield prompts.warned(draw)
