"""Dialogues out of every format in which they are published, and one line with file and place for what is none."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minillama import catalog
from minillama.alignment.ppo_prompts import find_prompts
from minillama.data import comparisons
from minillama.data.dialogues import (
    ChatExample,
    DialogueFile,
    GeneratedDialogues,
    MiniatureDialogues,
    MixedDialogues,
    find_dialogues,
    human_assistant,
    write_records,
)
from minillama.errors import MinillamaError, UsageError
from minillama.miniature.dialogues import KINDS, instruction_data
from tests.data import data_file
from tests.training.chats import jsonl, records, said

OPENAI = {"messages": said("Hi", "Hello!", "How are you?", "Well.", system="Be brief.")}
ALPACA = {"instruction": "Add the numbers.", "input": "1 and 2", "output": "3"}
WITHOUT_INPUT = {"instruction": "Say hello.", "input": "", "output": "Hello!"}
HH = {
    "chosen": "\n\nHuman: What is a llama?\nTell me.\n\nAssistant: An animal.\n\nHuman: Thanks \n\nAssistant: Bye",
    "rejected": "\n\nHuman: What is a llama?\n\nAssistant: No.",
}
READ = [
    OPENAI["messages"],
    said("Add the numbers.\n\n1 and 2", "3"),
    said("Say hello.", "Hello!"),
    said("What is a llama?\nTell me.", "An animal.", "Thanks", "Bye"),
]


def read(path: Path) -> list[ChatExample]:
    return list(find_dialogues(path).examples())


@pytest.mark.parametrize("number", range(4))
def test_each_format_is_read(tmp_path: Path, number: int) -> None:
    record = (OPENAI, ALPACA, WITHOUT_INPUT, HH)[number]
    (example,) = read(jsonl(tmp_path / "a.jsonl", [record]))
    assert list(example.messages) == READ[number]
    assert example.learned == (True,) * sum(message["role"] == "assistant" for message in READ[number])


@pytest.mark.parametrize("absent", [{}, {"input": None}])
def test_alpaca_without_an_input_has_the_instruction_alone(tmp_path: Path, absent: dict[str, Any]) -> None:
    record = {"instruction": "Say hello.", "output": "Hello!", **absent}
    assert list(read(jsonl(tmp_path / "a.jsonl", [record]))[0].messages) == READ[2]


@pytest.mark.parametrize("packed", [False, True])
def test_formats_mixed_in_one_file_also_packed_by_gzip(tmp_path: Path, packed: bool) -> None:
    text = "\n".join(map(json.dumps, (OPENAI, ALPACA, WITHOUT_INPUT, HH))).replace("\n", "\n\n", 1) + "\n"
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    examples = read(path)
    assert [list(example.messages) for example in examples] == READ
    assert [example.where for example in examples] == [f"{path}: line {line}" for line in (1, 3, 4, 5)]


def test_the_published_hh_rlhf_is_read() -> None:
    examples = read(data_file("text/hh_harmless_base_sample.jsonl.gz"))
    assert len(examples) == 1312
    roles = [tuple(message["role"] for message in example.messages) for example in examples]
    alternating = sum(those == ("user", "assistant") * (len(those) // 2) for those in roles)
    assert alternating == 1309  # in three the model speaks twice: the template decides about them


def test_what_only_looks_like_a_turn_stays_text() -> None:
    text = "\n\nHuman: He said:\nHuman: no. \n\nHumans: many\n\nAssistant:Yes.\n\n\n\nHuman: "
    assert human_assistant("x", text) == said("He said:\nHuman: no. \n\nHumans: many", "Yes.", "")


def test_weights_say_which_answers_are_learned(tmp_path: Path) -> None:
    messages = said("a", "b", "c", "d", "e", "f")
    for message, weight in zip(messages[1::2], (0, 1, None), strict=True):
        message |= {} if weight is None else {"weight": weight}  # type: ignore[dict-item]
    (example,) = read(jsonl(tmp_path / "a.jsonl", [{"messages": messages}]))
    assert example.learned == (False, True, True)
    assert list(example.messages) == said("a", "b", "c", "d", "e", "f")  # without the weights


def test_splits_are_by_what_is_asked_first(tmp_path: Path) -> None:
    """As computed here: whatever is answered and goes on, in whichever format, a request has one split."""
    requests = [f"Question {i}?" for i in range(400)]
    formats = [
        [{"messages": said(request, "a", system=f"{i}")} for i, request in enumerate(requests)],
        [{"messages": said(request, "b", "more", "c")} for request in requests],
        [{"instruction": request, "output": "d"} for request in requests],
        [{"chosen": f"\n\nHuman: {request}\n\nAssistant: e"} for request in requests],
    ]
    digests = [hashlib.blake2b(request.encode(), digest_size=8).digest() for request in requests]
    expected = ["validation" if int.from_bytes(d, "little") / 2**64 < 0.05 else "train" for d in digests]
    assert 8 < expected.count("validation") < 35
    for lines in formats:
        assert [example.split for example in read(jsonl(tmp_path / "a.jsonl", lines))] == expected


def test_a_split_that_a_record_says_holds(tmp_path: Path) -> None:
    lines = [{**ALPACA, "split": "validation"}, {**HH, "split": "train"}, {**OPENAI, "split": None}]
    assert [e.split for e in read(jsonl(tmp_path / "a.jsonl", lines))][:2] == ["validation", "train"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', "line 2: expected JSON, found something else"),
        ("[1, 2]", "line 2: expected a JSON object, found a list"),
        ("{}", "line 2: expected messages, instruction and output, or chosen, found nothing"),
        ('{"text": "x", "id": 1}', "or chosen, found 'text', 'id'"),
        ('{"instruction": "x"}', "instruction and output, or chosen, found 'instruction'"),
        ('{"instruction": "x", "input": 5, "output": "y"}', "line 2: expected a text as input, found 5"),
        ('{"messages": []}', "line 2: expected messages to be a list of at least one"),
        ('{"messages": {"role": "user"}}', "line 2: expected messages to be a list of at least one"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}', "line 2: message 1: "),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', "line 2: message 0: expected a role (system, user, "),
        ('{"messages": [{"role": "assistant", "content": null}]}', "and a text as content, found {'role': 'assistan"),
        ('{"messages": ["x"]}', "line 2: message 0: expected a role (system, user, assistant)"),
        ('{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}', "line 2: expected 0 or 1 as the weig"),
        ('{"messages": [{"role": "assistant", "content": "x", "weight": [1]}]}', "weight of a message, found [1]"),
        ('{"instruction": "x", "output": "y", "split": "test"}', "line 2: expected 'train' or 'validation' as the spl"),
        ('{"chosen": "Human: x"}', "line 2: expected turns after Human: and Assistant:, found 'Human: x'"),
        ('{"chosen": "Well.\\n\\nHuman: x"}', "found 'Well.\\n\\nHuman: x'"),
        ('{"chosen": ""}', "line 2: expected turns after Human: and Assistant:, found ''"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ALPACA) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(MinillamaError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: line 2: ") and message in str(error.value), error.value
    assert "\n" not in str(error.value)


def test_the_identity_of_a_file_is_its_content(tmp_path: Path) -> None:
    path, same = (jsonl(tmp_path / name, records(3)) for name in ("a.jsonl", "b.jsonl"))
    identity = find_dialogues(path).identity()
    assert identity == {"name": "a.jsonl", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert find_dialogues(same).identity()["sha256"] == identity["sha256"]
    jsonl(path, records(4))
    assert find_dialogues(path).identity()["sha256"] != identity["sha256"]


def test_the_miniature_by_name() -> None:
    source = find_dialogues("miniature:40", seed=3)
    assert isinstance(source, MiniatureDialogues)
    examples = list(source.examples())
    assert [example.split for example in examples] == ["train"] * 40 + ["validation"] * 2
    train, validation = (instruction_data(split, 3) for split in ("train", "validation"))  # type: ignore[arg-type]
    for example in examples:
        conversation = next(train if example.split == "train" else validation)
        assert list(example.messages) == conversation.messages("every")
        assert example.learned == (True,) * len(conversation.turns)
    assert examples == list(source.examples())
    assert isinstance(find_dialogues("Miniature"), MiniatureDialogues)


def test_the_harmless_ones_are_those_of_the_same_finetuning() -> None:
    """The first of the same dialogues, in their order, that are short and ask for nothing unsafe."""
    source = find_dialogues("harmless:30", seed=3)
    examples = list(source.examples())
    assert [example.split for example in examples] == ["train"] * 30 + ["validation"]
    found = (c for c in instruction_data("train", 3) if c.category is None and len(c.turns) <= 3)
    for example in examples[:30]:
        assert list(example.messages) == next(found).messages("every")
    same = [example.messages for example in find_dialogues("miniature:60", seed=3).examples()]
    assert all(example.messages in same for example in examples[:30])
    assert source.identity()["harmless"] == 30 and source.identity()["seed"] == 3


def test_the_miniatures_identity_follows_its_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = [find_dialogues(f"miniature:{n}", seed).identity() for n, seed in ((20, 0), (20, 1), (21, 0))]
    assert len({json.dumps(identity) for identity in identities}) == 3
    assert find_dialogues("miniature:20").identity() == identities[0]
    fact = KINDS["fact"]
    monkeypatch.setitem(KINDS, "fact", lambda draw: replace(fact(draw), answer="Who knows?"))
    assert find_dialogues("miniature:20").identity() != identities[0]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("miniature:x", UsageError, "miniature:x: expected miniature:N with a number of dialogues N, found 'x'"),
        ("miniature:0", UsageError, "with a number of dialogues N, found '0'"),
        ("miniature:-3", UsageError, "with a number of dialogues N, found '-3'"),
        ("harmless:x", UsageError, "harmless:x: expected harmless:N with a number of dialogues N, found 'x'"),
        (
            "alpaca",
            UsageError,
            "unknown dialogues 'alpaca': expected a .jsonl file or one of miniature, harmless, hh-rlhf",
        ),
        ("alpaca.jsonl", MinillamaError, "alpaca.jsonl: no such file"),
        ("no/where", MinillamaError, "no/where: no such file"),
    ],
)
def test_unknown_names(name: str, kind: type, message: str) -> None:
    with pytest.raises(MinillamaError, match=message.replace("(", r"\(")) as error:
        find_dialogues(name)
    assert type(error.value) is kind


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a \.jsonl file of dialogues, found a folder"):
        find_dialogues(tmp_path)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ALPACA).encode() * 500)[:-20])
    with pytest.raises(MinillamaError, match=r"a.jsonl.gz: expected the end of the gzip stream"):
        read(path)


def test_generated_dialogues_are_made_once_and_kept(tmp_path: Path) -> None:
    made = []

    def make() -> list[dict[str, Any]]:
        made.append(1)
        return records(3)

    source = GeneratedDialogues(tmp_path / "d.jsonl", {"seed": 4}, make)
    assert source.identity() == {"seed": 4} and not made
    first, again = list(source.examples()), list(source.examples())
    assert first == again and made == [1]
    assert [list(example.messages) for example in first] == [record["messages"] for record in records(3)]
    assert list(GeneratedDialogues(tmp_path / "d.jsonl", {}, make).examples()) == first and made == [1]


def test_generated_dialogues_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def make() -> Any:
        yield records(1)[0]
        raise KeyError("the power is gone")

    with pytest.raises(KeyError):
        list(GeneratedDialogues(tmp_path / "d.jsonl", {}, make).examples())
    assert list(tmp_path.iterdir()) == []


def test_mixed_sources_come_one_after_the_other(tmp_path: Path) -> None:
    file = DialogueFile(jsonl(tmp_path / "a.jsonl", records(3)))
    mixed = MixedDialogues(file, find_dialogues("miniature:5"))
    assert len(list(mixed.examples())) == 3 + 5 + 1
    assert list(mixed.examples())[:3] == list(file.examples())
    assert mixed.identity() == {"0": file.identity(), "1": find_dialogues("miniature:5").identity()}


def test_records_are_written_as_they_are_read(tmp_path: Path) -> None:
    lines = [{"messages": said("Grüße 🦙\n", "ok")}, ALPACA]
    write_records(tmp_path / "a.jsonl", lines)
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()] == lines
    (tmp_path / "file").touch()
    with pytest.raises(MinillamaError, match="cannot be written"):
        write_records(tmp_path / "file" / "a.jsonl", lines)


def test_a_public_set_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its preferred answers as dialogues, and what was to be answered as prompts, each with its file's split."""
    monkeypatch.setenv("MINILLAMA_DATA", str(tmp_path))
    monkeypatch.setattr(catalog, "check_sha256", lambda *_: None)
    for number, (file, _, _) in enumerate(comparisons.PUBLIC_SETS["hh-rlhf"]):
        asked = {key: text.replace("llama", f"llama {number}") for key, text in HH.items()}
        (tmp_path / file.name).write_bytes(gzip.compress(json.dumps(asked).encode()))
    first, second = find_dialogues("HH-RLHF").examples()
    assert (first.split, second.split) == ("train", "validation")
    assert [e.messages[-1]["content"] for e in (first, second)] == ["Bye", "Bye"]
    assert second.messages[0]["content"] == "What is a llama 1?\nTell me."
    prompts = list(find_prompts("hh-rlhf").prompts())
    assert [prompt.messages for prompt in prompts] == [e.messages[:-1] for e in (first, second)]
    assert [(prompt.split, prompt.safety) for prompt in prompts] == [("train", False), ("validation", False)]
    monkeypatch.setitem(
        comparisons.PUBLIC_SETS, "hh-rlhf", [(f, s, "safety") for f, s, _ in comparisons.PUBLIC_SETS["hh-rlhf"]]
    )
    tagged = find_prompts("hh-rlhf")
    assert all(prompt.safety for prompt in tagged.prompts())
    before = tagged.identity()
    (tmp_path / file.name).write_bytes(gzip.compress(json.dumps(HH).encode()))
    assert find_prompts("hh-rlhf").identity() != before
