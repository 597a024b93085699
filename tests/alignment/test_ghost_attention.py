"""Ghost Attention's data: sampled under an instruction on every turn, kept with it on the first, the last learned."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minillama.alignment import rollout
from minillama.alignment.ghost_attention import (
    EXAMPLES,
    ghost_dialogues,
    last_answer_only,
    miniature_requests,
    requests_of,
)
from minillama.alignment.ghost_attention import (
    records as examples,
)
from minillama.alignment.rollout import Chatter
from minillama.chat import builtin
from minillama.data.dialogues import DialogueFile, find_dialogues, write_records
from minillama.errors import MinillamaError, UsageError
from minillama.generate import GREEDY
from minillama.miniature.dialogues import personal
from minillama.miniature.personas import PERSONAS
from minillama.training.finetune import encode
from tests.alignment.test_rollout import Recorder
from tests.training.chats import jsonl, lively, records, said, tags_tokenizer


def chatter() -> Chatter:
    return Chatter(lively(tags_tokenizer(), np.float64), tags_tokenizer(), builtin("llama2-tags"), 6)


TURNS = [["a", "b", "c"], ["p", "q"]]


def test_sampled_with_the_instruction_on_every_turn_and_kept_with_it_on_the_first_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Recorder()
    monkeypatch.setattr(rollout, "answers", spy)
    found = ghost_dialogues(chatter(), TURNS, ["Act as one.", "Act as two."])
    assert spy.asked == [
        [["Act as one. a"], ["Act as two. p"]],
        [["Act as one. a", "a0", "Act as one. b"], ["Act as two. p", "p0", "Act as two. q"]],
        [["Act as one. a", "a0", "Act as one. b", "a1", "Act as one. c"]],
    ]
    assert found == [said("Act as one. a", "a0", "b", "a1", "c", "a2"), said("Act as two. p", "p0", "q", "p1")]


def test_the_answers_are_the_models_under_repeated_instructions() -> None:
    """As asked here one by one: not those it would give to what is kept."""
    who = chatter()
    requests, instruction = ["Does Ann like apples?", "And Ben?", "Dan?"], "Say Cleo."
    (found,) = ghost_dialogues(who, [requests], [instruction], sampling=GREEDY)
    messages = []
    forgetful = []
    for turn, request in enumerate(requests):
        messages.append({"role": "user", "content": f"{instruction} {request}"})
        (answer,) = rollout.answers(who, [messages], sampling=GREEDY)
        (other,) = rollout.answers(who, [found[: 2 * turn + 1]], sampling=GREEDY)
        forgetful.append(other.text)
        messages.append({"role": "assistant", "content": answer.text})
    assert [m["content"] for m in found[1::2]] == [m["content"] for m in messages[1::2]] != forgetful


def test_one_instruction_a_dialogue() -> None:
    with pytest.raises(UsageError, match="2 dialogues and 1 instructions: expected one for each"):
        ghost_dialogues(chatter(), TURNS, ["One."])


def test_all_answers_but_the_last_have_weight_0() -> None:
    record = last_answer_only(said("a", "b", "c", "d", "e", "f", system="s"))
    weights = [message.get("weight") for message in record["messages"]]
    assert weights == [None, None, 0, None, 0, None, 1]
    assert [{k: m[k] for k in ("role", "content")} for m in record["messages"]] == said(*"abcdef", system="s")


def test_the_tokens_that_are_learned_of_one_dialogue(tmp_path: Path) -> None:
    """Written, read and encoded: every token, with ^ under it where it is learned."""
    dialogue = said("Act as Ann. Yes", "Ann likes Ben", "Does Dan", "Yes", "Dan", "Ann likes Dan")
    write_records(tmp_path / "d.jsonl", [last_answer_only(dialogue)])
    (example,) = DialogueFile(tmp_path / "d.jsonl").examples()
    tokenizer = tags_tokenizer()
    encoded = encode(example, builtin("llama2-tags"), tokenizer)
    pieces = [tokenizer.piece(token) for token in encoded.tokens]
    marks = ["^" * len(p) if learned else " " * len(p) for p, learned in zip(pieces, encoded.loss_mask, strict=True)]
    print(f"\n{'|'.join(pieces)}\n{'|'.join(marks)}")
    learned = [i for i, mask in enumerate(encoded.loss_mask) if mask]
    last_request = max(i for i, piece in enumerate(pieces) if piece == "[/INST]")
    assert learned == [*range(last_request + 1, len(pieces))]
    assert "".join(pieces[i] for i in learned) == " Ann likes Dan</s>"
    assert pieces.count("</s>") == 3 and pieces.count("[/INST]") == 3  # the answers before are there to be read
    assert "".join(pieces).count("Act as Ann.") == 1


@pytest.mark.parametrize("turns", [2, 3, EXAMPLES + 1, 2 * EXAMPLES])
def test_examples_are_beginnings_of_a_dialogue_each_as_likely(turns: int) -> None:
    dialogue = said(*map(str, range(2 * turns)))
    ends: Counter[int] = Counter()
    for record in examples([dialogue] * 400, seed=1):
        messages = record["messages"]
        assert record == last_answer_only(dialogue[: len(messages)])
        ends[len(messages) // 2] += 1
    assert sum(ends.values()) == 400 * min(EXAMPLES, turns - 1)
    assert set(ends) == {*range(2, turns + 1)}
    p = min(1.0, EXAMPLES / (turns - 1))
    for count in ends.values():
        assert abs(count - 400 * p) <= 5 * (400 * p * (1 - p)) ** 0.5
    assert list(examples([dialogue] * 9, 1)) == list(examples([dialogue] * 9, 1))
    assert list(examples([said("a", "b")])) == []


def test_no_example_comes_twice() -> None:
    lengths = [len(record["messages"]) for record in examples([said(*map(str, range(40)))])]
    assert len(lengths) == EXAMPLES and lengths == sorted(set(lengths))


def test_a_dialogue_that_fills_the_context_ends_early_without_its_last_answer() -> None:
    """The last may be cut by the context; one that does not begin to fit is empty."""
    model = lively(tags_tokenizer(), np.float64, max_seq_len=90)
    who = Chatter(model, tags_tokenizer(), builtin("llama2-tags"), 6)
    requests = [["Does Ann like apples?"] * 9, ["Ann likes Ben. " * 20, "Dan?"], ["Dan?", "Ann?"]]
    instructions = ["Say Cleo."] * 3
    long, empty, short = ghost_dialogues(who, requests, instructions, sampling=GREEDY)
    sampled = rollout.conversations(who, requests, sampling=GREEDY, before_every=instructions, end_when_full=True)
    assert 4 <= len(long) == len(sampled[0]) - 2 < 18
    assert [m["content"] for m in long[1::2]] == [m["content"] for m in sampled[0][1:-2:2]]
    assert [m["content"] for m in long[::2]] == ["Say Cleo. Does Ann like apples?", *requests[0][1 : len(long) // 2]]
    assert empty == [] and len(short) == 4
    assert list(examples([empty, long[:2]])) == []


def test_requests_of_the_miniature() -> None:
    requests, instructions = miniature_requests(300, 5, seed=2)
    assert len(requests) == len(instructions) == 300
    assert {len(turns) for turns in requests} == {5}
    assert {persona.instruction for persona in PERSONAS} == set(instructions)
    conversations = personal("train", 2, 5)
    for turns, instruction in zip(requests, instructions, strict=True):
        conversation = next(conversations)
        assert turns == [turn.request for turn in conversation.turns[: len(turns)]]
        assert conversation.persona is not None and instruction == conversation.persona.instruction
    assert miniature_requests(300, 5, seed=2) == (requests, instructions)
    assert miniature_requests(300, 5, seed=3) != (requests, instructions)


def test_requests_of_a_file(tmp_path: Path) -> None:
    """Of the training split, of two turns at least, without what the system or the assistant says."""
    lines = [{**record, "split": "train"} for record in records(90, turns=(1, 2, 3, 6))]
    lines.append({"messages": said("held", "a", "out", "b"), "split": "validation"})
    lines.append({"messages": said("hi", "a", "there", "b", system="s"), "split": "train"})
    source = find_dialogues(jsonl(tmp_path / "d.jsonl", lines))
    requests, instructions = requests_of(source, ["One.", "Two.", "Three."], 4, seed=1)
    known = [
        [m["content"] for m in line["messages"] if m["role"] == "user"] for line in lines if line["split"] == "train"
    ]
    known = [turns for turns in known if len(turns) > 1]
    assert len(requests) == len(instructions) == len(known)
    for turns, whole in zip(requests, known, strict=True):
        assert turns == whole[: len(turns)] and 2 <= len(turns) <= 4
    assert {len(turns) for turns in requests} == {2, 3, 4} and requests[-1] == ["hi", "there"]
    assert set(instructions) == {"One.", "Two.", "Three."}
    assert requests_of(source, ["One.", "Two.", "Three."], 4, seed=1) == (requests, instructions)


def test_a_file_without_a_second_turn(tmp_path: Path) -> None:
    source = find_dialogues(jsonl(tmp_path / "d.jsonl", records(9, turns=(1,))))
    with pytest.raises(MinillamaError, match="dialogues to ask from: expected some of two turns or more, found none"):
        requests_of(source, ["One."], 4)
