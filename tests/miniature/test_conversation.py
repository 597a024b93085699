"""Conversations: reproducible, split by content, short enough, exported as messages."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from minillama.errors import MinillamaError, UsageError
from minillama.miniature.conversation import SPLITS, Conversation, Draw, Split, Turn, split_of
from minillama.miniature.dialogues import KINDS, MIXTURE, borderline, helpful, personal, unsafe
from minillama.miniature.export import write_jsonl
from minillama.miniature.fact_phrases import RELATIONS
from minillama.miniature.facts import ENTITIES, FACTS
from minillama.miniature.grammar import examine

STREAMS: dict[str, Callable[[Split, int], Iterator[Conversation]]] = {
    "helpful": helpful,
    "personal": personal,
    "unsafe": unsafe,
    "borderline": borderline,
}
GOLDEN = {  # of the first conversations of seed 0
    "helpful": "235d014d733fd4097f271987707760bb6840c83e776b6050afbbab4c51651b40",
    "personal": "d1e0bb9720f00c3f3cb4a37a2c9fbd30cb25e58894653de5b3be1a2c5dbdb9fe",
    "unsafe": "1ea7928bfa7e70dacc52168828732a03d6c70f71ded33d4d18530d6a4b1c8cea",
    "borderline": "077f53edc3eb56990317afcf29b0c0121112481b1eb90a05ca7e5cec8471a463",
}


def some(name: str, split: Split, n: int = 400, seed: int = 5) -> list[Conversation]:
    return list(islice(STREAMS[name](split, seed), n))


@pytest.mark.parametrize("name", STREAMS)
def test_the_conversations_of_a_seed_are_these_on_every_platform(name: str) -> None:
    text = "".join(json.dumps(c.messages()) for split in SPLITS for c in some(name, split, 100, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", STREAMS)
def test_other_seeds_give_other_conversations(name: str) -> None:
    first, second = ([c.messages() for c in some(name, "train", 50, seed)] for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("name", STREAMS)
def test_no_request_of_a_test_is_in_training(name: str) -> None:
    """Neither verbatim nor, as the splits are by content, in other words."""
    asked = {split: {json.dumps(c.messages("none", answers=False)) for c in some(name, split, 600)} for split in SPLITS}
    assert not asked["train"] & asked["validation"]
    assert not asked["train"] & asked["test"]
    assert not asked["validation"] & asked["test"]


def test_a_question_of_a_test_is_not_asked_in_training_but_its_fact_is() -> None:
    """In other words, where there are any."""
    found: dict[str, set] = {split: set() for split in SPLITS}
    questions = {
        template.format(**{relation.role: entity}): (entity, RELATIONS.index(relation), k)
        for entity, relation in FACTS
        for k, template in enumerate(template for line in relation.questions for template in line)
    }
    for split in SPLITS:
        for conversation in some("helpful", split, 2000):
            for turn in conversation.turns[-1:] if split != "train" else conversation.turns:
                found[split] |= {questions[turn.request]} if turn.request in questions else set()
    assert len(found["train"]) > 200 and len(found["test"]) > 10 and len(found["validation"]) > 10
    assert not found["train"] & (found["test"] | found["validation"])
    for entity, relation, k in found["test"]:
        i = ENTITIES.index(entity)
        assert split_of(i, relation, k) == "test"
        ways = range(sum(map(len, RELATIONS[relation].questions)))
        assert len(ways) == 1 or "train" in {split_of(i, relation, other) for other in ways}
    facts = {split: {(entity, relation) for entity, relation, _ in found[split]} for split in SPLITS}
    assert len(facts["test"] & facts["train"]) > 0.5 * len(facts["test"])


def test_every_kind_comes_in_every_split() -> None:
    for split in SPLITS:
        for request in KINDS.values():
            turn = request(Draw(split, 2))
            assert isinstance(turn, Turn) and turn.request and turn.answer
        kinds = Counter(c.kind for c in some("helpful", split, 1500))
        assert set(kinds) == set(MIXTURE) - {"story, told"}


def test_kinds_are_as_frequent_as_the_mixture_says() -> None:
    kinds = Counter(c.kind for c in some("helpful", "train", 2000))
    for kind, p in MIXTURE.items():
        p += MIXTURE["story, told"] if kind == "told" else 0
        if kind != "story, told":
            assert kinds[kind] / 2000 == pytest.approx(p, abs=4 * (p * (1 - p) / 2000) ** 0.5)


@pytest.mark.parametrize("name", STREAMS)
def test_answers_are_of_the_language_and_true(name: str) -> None:
    for conversation in some(name, "train", 300):
        for turn in conversation.turns:
            plain = conversation.persona.plain(turn.answer, turn.task.items) if conversation.persona else turn.answer
            examination = examine(plain, turn.task.subject)
            assert examination.grammatical and not examination.untrue, (turn.answer, examination)


@pytest.mark.parametrize("name", STREAMS)
def test_no_slot_is_left_open_and_sentences_begin_large(name: str) -> None:
    for conversation in some(name, "train", 500):
        for message in conversation.messages():
            text = message["content"]
            assert not re.search(r"[{}|]|\s\s| [.,!?]|\.\.", text.replace("\n", "")), text
            assert text[0].isupper() or text[0] == '"', text
            assert text == text.strip() and text[-1] in '.!?"', text


def test_conversations_are_short() -> None:
    """In words: a piece of the tokenizer is about 0.8 words, and 512 pieces are the context."""
    for name in STREAMS:
        for conversation in some(name, "train", 500):
            assert sum(len(message["content"].split()) for message in conversation.messages()) < 250


def test_several_turns_and_disguises_come() -> None:
    conversations = some("helpful", "train", 1000)
    assert 0.05 < sum(len(c.turns) > 1 for c in conversations) / 1000 < 0.2
    assert 0.05 < sum(c.strategy is not None for c in conversations) / 1000 < 0.2


def test_messages_with_and_without_instruction() -> None:
    conversation = next(personal("test", 1, turns=3))
    assert conversation.persona is not None
    instruction = conversation.persona.instruction
    users = {
        where: [m["content"].startswith(instruction) for m in conversation.messages(where) if m["role"] == "user"]  # type: ignore[arg-type]
        for where in ("first", "every", "none")
    }
    assert users == {"first": [True, False, False], "every": [True] * 3, "none": [False] * 3}
    prompt = conversation.messages(answers=False)
    assert [m["role"] for m in prompt] == ["user", "assistant"] * 2 + ["user"]
    assert prompt == conversation.messages()[:-1]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "unsafe.jsonl"
    write_jsonl(path, unsafe("test", 0), 20)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 20
    for line, conversation in zip(lines, unsafe("test", 0), strict=False):
        assert line["messages"] == conversation.messages()
        assert (line["kind"], line["category"], line["strategy"]) == (
            "unsafe",
            conversation.category,
            conversation.strategy,
        )
    write_jsonl(path, helpful("train", 0), 3)
    assert all({"messages", "kind"} <= set(json.loads(line)) for line in path.read_text().splitlines())


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="split: expected one of train, validation, test, found 'dev'"):
        next(helpful("dev"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seed: expected an integer of 0 or more, found -1"):
        next(unsafe("train", -1))
    with pytest.raises(UsageError, match="turns: expected 1 or more, found 0"):
        next(personal("train", 0, turns=0))
    with pytest.raises(UsageError, match="instruction: expected first, every or none, found 'all'"):
        write_jsonl(tmp_path / "x.jsonl", helpful("train"), 1, "all")
    (tmp_path / "file").write_text("")
    with pytest.raises(MinillamaError, match="cannot be written"):
        write_jsonl(tmp_path / "file" / "x.jsonl", helpful("train"), 1)
    assert not list(tmp_path.glob("*.part"))
