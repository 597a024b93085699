"""Context distillation: where a preprompt goes, which answers pass the gate, what is learned; the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import weights
from minillama.alignment import distillation
from minillama.alignment.distillation import PREPROMPTS, Distilled, counts, distil, kept, records, under
from minillama.alignment.ppo_prompts import Prompt
from minillama.alignment.scorer import LOWEST, Scorer
from minillama.chat import Message
from minillama.data.dialogues import DialogueFile, write_records
from minillama.errors import UsageError
from minillama.training import loop
from tests.alignment.models import CHATTER, chat_model, problem, prompt, reward_model, run, saying, succeed

PROMPTS = [prompt(letter, safety=True) for letter in "abcdef"]
# prompt: what the model says as before, and under a preprompt; None: it does not come to an end
SAID: dict[str, tuple[str | None, str | None]] = {
    "a": ("1", "5"),
    "b": ("4", "2"),
    "c": ("3", "3"),
    "d": ("1", None),
    "e": (None, "1"),
    "f": (None, None),
}


class Digits(Scorer):
    """The score of an answer is the number that it is. What it was asked is kept."""

    def __init__(self) -> None:
        object.__setattr__(self, "asked", [])

    def scores(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> np.ndarray:
        self.asked.extend(prompts)  # type: ignore[attr-defined]
        return np.array([float(text) if text else LOWEST for text in answers])


@pytest.fixture
def distilled(monkeypatch: pytest.MonkeyPatch) -> list[Distilled]:
    def reply(messages: Any, _: int) -> str | None:
        return SAID[messages[-1]["content"][-1]]["Be kind." in str(messages)]

    monkeypatch.setattr(distillation, "answers", saying(reply))
    return distil(CHATTER, PROMPTS, ["Be kind."], Digits())


def test_the_gate_keeps_exactly_those_that_rise(distilled: list[Distilled]) -> None:
    """Higher than before, not as high; an answer where there was none is one that rises; none is none."""
    assert [(d.original, d.answer) for d in distilled[:3]] == [("1", "5"), ("4", "2"), ("3", "3")]
    assert [d.prompt for d in kept(distilled)] == [PROMPTS[0], PROMPTS[4]]
    assert [d.prompt for d in kept(distilled, gate=False)] == [PROMPTS[i] for i in (0, 1, 2, 4)]
    assert counts(distilled) == {"prompts": 6, "safer": 2, "as safe": 1, "less safe": 1, "unfinished": 2}


def test_the_gate_does_not_keep_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its two scores, made in different batches, may differ in the last bits."""

    class Rounding(Digits):
        def scores(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> np.ndarray:
            found = super().scores(prompts, answers)
            return found + 4e-6 * (len(self.asked) > len(PROMPTS))  # type: ignore[attr-defined]

    monkeypatch.setattr(distillation, "answers", saying(lambda messages, n: "1"))
    found = distil(CHATTER, PROMPTS, ["Be kind."], Rounding())
    assert not kept(found) and counts(found)["as safe"] == len(PROMPTS)


def test_the_score_is_of_the_prompt_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both answers are scored, and learned, without the preprompt."""
    monkeypatch.setattr(distillation, "answers", saying(lambda messages, n: "1"))
    scorer = Digits()
    found = distil(CHATTER, PROMPTS, ["Be kind."], scorer, put="system")
    assert scorer.asked == 2 * [p.messages for p in PROMPTS]  # type: ignore[attr-defined]
    for record, asked in zip(records(found), PROMPTS, strict=True):
        assert [m["content"] for m in record["messages"]] == [asked.messages[0]["content"], "1"]
        assert "Be kind" not in json.dumps(record)


def test_only_the_answer_is_learned(tmp_path: Path) -> None:
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate("abc")]
    d = Distilled(Prompt(tuple(said), True, "validation"), "x", "y", 0.0, 1.0)
    write_records(tmp_path / "d.jsonl", records([d]))
    (example,) = DialogueFile(tmp_path / "d.jsonl").examples()
    assert [m["content"] for m in example.messages] == ["a", "b", "c", "y"]
    assert (example.learned, example.split) == ((False, True), "validation")


def test_where_a_preprompt_goes() -> None:
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate("abc")]
    first = [m["content"] for m in under("Be kind.", said, "prefix")]
    assert first == ["Be kind. a", "b", "c"]
    system = under("Be kind.", said, "system")
    assert system == [{"role": "system", "content": "Be kind."}, *said]
    assert under("Be brief.", system, "system")[0]["content"] == "Be brief. Be kind."
    assert under("Be brief.", system, "prefix")[1]["content"] == "Be brief. a"
    assert [m["content"] for m in said] == ["a", "b", "c"], "a copy"
    with pytest.raises(UsageError, match="put 'after': expected prefix or system"):
        under("Be kind.", said, "after")


def test_preprompts_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them; the same seed draws the same."""
    seen: list[str] = []

    def reply(messages: Any, _: int) -> str:
        seen.append(messages[0]["content"])
        return "1"

    monkeypatch.setattr(distillation, "answers", saying(reply))
    many = [prompt(str(i)) for i in range(60)]
    for seed in (0, 0, 1):
        distil(CHATTER, many, PREPROMPTS["miniature"], Digits(), seed=seed)
    first, same, other = (seen[i * 120 + 60 : (i + 1) * 120] for i in range(3))
    assert first == same != other
    times = [sum(said.startswith(text) for said in first) for text in PREPROMPTS["miniature"]]
    assert sum(times) == 60 and min(times) >= 10
    for nothing in (([], ["x"]), (many, [])):
        with pytest.raises(UsageError, match="expected at least one of both"):
            distil(CHATTER, *nothing, Digits())


# The command


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return chat_model(folder / "chat"), reward_model(folder / "rm")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    asked = [{"prompt": [{"role": "user", "content": f"{letter} {i}"}]} for i in range(2) for letter in "abcd"]
    write_records(path, [{**p, "split": "validation" if i == 0 else "train"} for i, p in enumerate(asked)])
    return path


def required(models: tuple[Path, Path], prompts: Path, out: Path) -> list[object]:
    """Answers of up to 200 tokens: half of them come to an end."""
    return [
        *("distill", "--model", models[0], "--safety", models[1], "--data", prompts, "--out", out),
        *("--max-new-tokens", 200, "--temperature", 1, "--batch-size", 1, "--threads", 1, "--device", "cpu"),
    ]


def test_with_and_without_the_gate(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    """The same answers, fewer of them; what is kept is what scores higher, by the model in the folder."""
    learned = {}
    for name, more in (("gate", []), ("none", ["--no-gate"])):
        result = succeed(*required(models, prompts, tmp_path / name), *more)
        told = json.loads((tmp_path / name / "sampling.json").read_text())
        examples = list(DialogueFile(tmp_path / name / "dialogues.jsonl").examples())
        learned[name] = {e.messages[0]["content"]: e.messages[-1]["content"] for e in examples}
        assert told["prompts"] == 8 == told["safer"] + told["as safe"] + told["less safe"] + told["unfinished"]
        assert told["learned"] == len(learned[name])
        assert f"learned: {told['learned']}" in result.stderr
        assert not any(text in json.dumps([e.messages for e in examples]) for text in PREPROMPTS["general"])
    assert 0 < len(learned["gate"]) == told["safer"] < len(learned["none"])
    assert learned["gate"].items() <= learned["none"].items()


def test_a_run_that_is_killed_goes_on(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its last checkpoint and its samples, which are not drawn again, to the same bits."""
    succeed(*required(models, prompts, tmp_path / "whole"), "--no-gate", "--epochs", 4)
    step = loop._Trainer.step

    def stopped(trainer: Any) -> None:
        if trainer.progress.step == 3:
            raise KeyboardInterrupt
        step(trainer)

    broken = [*required(models, prompts, tmp_path / "broken"), "--no-gate", "--epochs", 4, "--save-every", 2]
    monkeypatch.setattr(loop._Trainer, "step", stopped)
    run(*broken)
    monkeypatch.setattr(loop._Trainer, "step", step)
    monkeypatch.setattr(distillation, "distil", None)
    assert "going on after step 2" in succeed(*broken, "--resume").stderr
    ours, theirs = (weights.load(tmp_path / name).params for name in ("whole", "broken"))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_preprompts_of_a_file(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    """They are part of what a run is."""
    (tmp_path / "pre.txt").write_text("Be kind.\n\nBe safe.\n")
    usual = [*required(models, prompts, tmp_path / "out"), "--no-gate", "--put", "system"]
    succeed(*usual, "--preprompts", tmp_path / "pre.txt")
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["data"]["preprompts"] == ["Be kind.", "Be safe."]
    assert settings["stage"] == "distill"
    assert "a run of other settings" in problem(*usual)


def test_wrong_use(models: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    chat, _ = models
    (tmp_path / "empty.jsonl").write_text("")
    usual = required(models, prompts, tmp_path / "out")
    for more, expected in (
        (["--put", "after"], "put 'after': expected prefix or system"),
        (["--safety", chat], "expected a reward model, found a model that writes text"),
        (["--preprompts", tmp_path / "none.txt"], "none.txt: cannot be read"),
        (["--preprompts", tmp_path / "empty.jsonl"], "expected an instruction a line, found none"),
        (["--data", tmp_path / "none.jsonl"], "none.jsonl"),
        (["--data", tmp_path / "empty.jsonl"], "0 prompts, 3 preprompts: expected at least one of both"),
        (["--temperature", -1], "temperature -1.0"),
        (["--resume"], "expected a run to go on with, found none"),
    ):
        assert expected in problem(*usual, *more), more
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_a_gate_that_nothing_passes(
    models: tuple[Path, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy answers under a preprompt that changes nothing are as safe as before."""
    monkeypatch.setattr(distillation, "under", lambda preprompt, messages, put: list(messages))
    told = problem(*required(models, prompts, tmp_path / "out"), "--temperature", 0)
    assert "the gate: expected answers that a preprompt makes safer, found none" in told
