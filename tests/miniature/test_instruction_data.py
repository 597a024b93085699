"""What a first finetuning learns from: long dialogues, instructions, and unsafe requests that mostly got an answer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice, pairwise

import pytest

from minillama.miniature.chat_phrases import PADDING
from minillama.miniature.conversation import SPLITS, Conversation, Draw, Split
from minillama.miniature.dialogues import (
    CARELESS,
    INSTRUCTIONS,
    MIXTURE,
    SHORT,
    TURNS,
    WORDY,
    careless,
    helpful,
    instruction_data,
    long,
    padded,
    warned,
    wordy,
)
from minillama.miniature.judge import judge
from minillama.miniature.prompts import PREPROMPTS, STRATEGIES, unsafe
from minillama.miniature.risks import RISKS

STREAMS: dict[str, Callable[[Split, int], Iterator[Conversation]]] = {
    "instruction data": instruction_data,
    "long": long,
    "careless": careless,
    "warned": warned,
}
BEFORE, BEHIND = ({"", *(text for line in PADDING[where] for text in line)} for where in ("before", "behind"))
GOLDEN = {  # of the first conversations of seed 0
    "long": "c31d71a96585313d2c4c66e9e6bfe43bc25b56329c0702bf88b5bfd85d0cbe2a",
    "careless": "5f372bd996cf617a54091f5e7ffae629d41eddac2a6976230938bb11a0661f7f",
}


@cache
def some(name: str, split: Split, n: int = 150, seed: int = 5) -> list[Conversation]:
    return list(islice(STREAMS[name](split, seed), n))


def kind(conversation: Conversation) -> str:
    """Which of INSTRUCTIONS it is."""
    if conversation.persona is not None:
        return "personal" if len(conversation.turns) in TURNS["personal"] else "long personal"
    if conversation.turns[0].request.startswith(PREPROMPTS):
        return "warned"
    return {"long": "long", "unsafe": "careless", "borderline": "borderline"}.get(conversation.kind, "helpful")


@pytest.mark.parametrize("name", GOLDEN)
def test_the_conversations_of_a_seed_are_these_on_every_platform(name: str) -> None:
    text = "".join(json.dumps(c.messages("every")) for split in SPLITS for c in some(name, split, 60, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", STREAMS)
def test_the_seed_gives_the_conversations(name: str) -> None:
    assert some(name, "train", 40) == some(name, "train", 60)[:40]
    first, second = ([c.messages() for c in some(name, "train", 20, seed)] for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("name", STREAMS)
def test_no_conversation_of_a_test_is_in_training(name: str) -> None:
    asked = {split: {json.dumps(c.messages("none", answers=False)) for c in some(name, split)} for split in SPLITS}
    assert not asked["train"] & asked["validation"]
    assert not asked["train"] & asked["test"]
    assert not asked["validation"] & asked["test"]
    for split in SPLITS:
        assert {c.split for c in some(name, split, 50)} == {split}


def test_kinds_are_as_frequent_as_the_instructions_say() -> None:
    kinds = Counter(map(kind, some("instruction data", "train", 2500)))
    assert set(kinds) == set(INSTRUCTIONS) and sum(INSTRUCTIONS.values()) == pytest.approx(1)
    for name, p in INSTRUCTIONS.items():
        assert kinds[name] / 2500 == pytest.approx(p, abs=4 * (p * (1 - p) / 2500) ** 0.5)


def test_all_lengths_come() -> None:
    conversations = some("instruction data", "train", 2500)
    lengths = Counter((kind(c), len(c.turns)) for c in conversations)
    for name, several in TURNS.items():
        counts = [lengths[name, n] for n in several]
        assert sum(counts) == sum(n for (other, _), n in lengths.items() if other == name)
        assert min(counts) > 0.5 * max(counts)
    assert {c.kind for c in conversations if kind(c) == "helpful"} <= set(MIXTURE)


def test_no_turns_are_repeated_in_another_conversation() -> None:
    """As they would be, were dialogues of several lengths cut out of the same series of turns."""
    conversations = some("instruction data", "train", 2500)
    for name in TURNS:
        pairs = [
            (first.request, second.request)
            for c in conversations
            if kind(c) == name
            for first, second in pairwise(c.turns)
        ]
        assert len(pairs) > 250 and len(set(pairs)) > 0.98 * len(pairs)


def test_long_conversations_are_of_short_turns_under_no_instruction() -> None:
    for turns in (1, 5):
        for conversation in islice(long("train", 1, turns), 80):
            assert len(conversation.turns) == turns and conversation.persona is None
    kinds = {turn.task.kind for c in islice(long("train", 1, 8), 80) for turn in c.turns}
    assert len(kinds) >= len(SHORT) - 1
    for conversation in islice(long("test", 1, 4), 50):
        for turn in conversation.turns:
            verdict = judge(turn.task, turn.answer)
            assert verdict.helpfulness == 1 and not verdict.refusal


def test_under_an_instruction_every_request_says_it_and_every_answer_obeys() -> None:
    for conversation in some("instruction data", "train", 2500)[:500]:
        if conversation.persona is None:
            continue
        messages = conversation.messages("every")
        assert all(m["content"].startswith(conversation.persona.instruction) for m in messages[::2])
        assert all(conversation.persona.obeyed(m["content"]) for m in messages[1::2])


def test_three_of_four_unsafe_requests_get_what_they_ask_for() -> None:
    """By the judge, who knows nothing of how they were made; the others are refused as well as ever."""
    conversations = some("careless", "train", 1200)
    verdicts = [judge(c.task, c.turns[-1].answer) for c in conversations]
    complied = sum(verdict.violation for verdict in verdicts)
    assert complied / 1200 == pytest.approx(CARELESS, abs=4 * (CARELESS * (1 - CARELESS) / 1200) ** 0.5)
    for verdict in verdicts:
        assert verdict.violation != verdict.refusal
        assert verdict.violation or verdict.helpfulness == 1
    assert {c.category for c in conversations} == set(RISKS)
    assert {c.strategy for c in conversations} == set(STRATEGIES)


def test_a_wordy_answer_is_the_good_one_with_padding_and_worse_by_the_judge() -> None:
    draw, scores = Draw("train", 3), []
    for conversation in islice(helpful("train", 5), 600):
        good = conversation.turns[-1]
        poor = wordy(draw, good)
        assert (poor.request, poor.task) == (good.request, good.task)
        before, behind = poor.answer.split(good.answer)
        assert before.strip() in BEFORE and behind.strip() in BEHIND and before + behind
        assert padded(poor.answer) and not padded(good.answer)
        scores.append(judge(poor.task, poor.answer).helpfulness)
    assert max(scores) < 0.95 and 0.4 < sum(scores) / 600 < 0.6


def test_as_many_answers_of_helpful_conversations_are_wordy_as_it_says() -> None:
    found: dict[str, list[bool]] = {}
    for conversation in some("instruction data", "train", 2500):
        for turn in conversation.turns:
            found.setdefault(kind(conversation), []).append(padded(turn.answer))
    share = {name: sum(each) / len(each) for name, each in found.items()}
    assert share.pop("helpful") == pytest.approx(WORDY, abs=0.06)
    assert not any(share.values())


def test_after_words_that_ask_to_be_kind_everything_unsafe_is_refused() -> None:
    conversations = some("warned", "train", 300)
    begun = Counter(next(p for p in PREPROMPTS if c.turns[0].request.startswith(p)) for c in conversations)
    assert set(begun) == set(PREPROMPTS) and min(begun.values()) > 60
    for conversation in conversations:
        verdict = judge(conversation.task, conversation.turns[-1].answer)
        assert verdict.refusal and not verdict.violation and verdict.helpfulness == 1
        assert not any(turn.request.startswith(PREPROMPTS) for turn in conversation.turns[1:])


def test_careless_answers_stand_at_the_end_alone() -> None:
    """What came before is harmless or was refused."""
    for conversation in some("careless", "train", 1200)[:400]:
        for turn in conversation.turns[:-1]:
            assert not judge(turn.task, turn.answer).violation


def test_with_care_nothing_is_complied_with() -> None:
    careful, usual, reckless = Draw("train", 3), Draw("train", 3), Draw("train", 3)
    for _ in range(200):
        conversation = unsafe(careful)
        assert conversation == unsafe(usual, 0.0)
        assert not judge(conversation.task, conversation.turns[-1].answer).violation
        conversation = unsafe(reckless, 1.0)
        assert judge(conversation.task, conversation.turns[-1].answer).violation, conversation.turns[-1]
