"""`minillama evaluate` on tiny models: the table, the file, a base model, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from minillama import weights
from minillama.alignment.reward_model import RewardModel
from minillama.alignment.rollout import Chatter
from minillama.chat import builtin
from minillama.cli import app
from minillama.evaluation import miniature
from minillama.evaluation.statistics import Estimate, share
from minillama.weights import Checkpoint
from tests.training.chats import lively, saved, tags_tokenizer

HOW = ("--count", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template; it says anything."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    llama = lively(tags_tokenizer(), max_seq_len=1024)
    weights.save(Checkpoint(llama.config, llama.params, tags_tokenizer(), builtin("llama2-tags")), folder)
    return folder


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of nonsense would write as much of it as they may."""
    monkeypatch.setattr(miniature, "ANSWER", 5)
    whole = Chatter.__init__
    monkeypatch.setattr(Chatter, "__init__", lambda self, *arguments: whole(self, *arguments, max_new_tokens=5))
    monkeypatch.setenv("COLUMNS", "80")


def run(*arguments: object) -> Result:
    """`minillama evaluate` in this process."""
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Known measures in the place of a model's: 1 of 4 violations, 2 of 4 false refusals, obedience that falls."""
    asked: dict[str, Any] = {}

    class Found:
        def __init__(self, kind: str, conversations: list[Any]) -> None:
            self.kind, self.answers = kind, ["Three short words."] * len(conversations)
            self.verdicts = miniature.verdicts(conversations, self.answers).verdicts

        def helpfulness(self) -> Estimate:
            assert self.kind == "helpful"
            return Estimate(0.5, 0.25, 0.75)

        def share(self, name: str) -> Estimate:
            return share({("unsafe", "violation"): 1, ("borderline", "false_refusal"): 2}[self.kind, name], 4)

    def judged(_: Any, conversations: list[Any], *, seed: int, progress: str) -> Found:
        asked[progress] = (conversations, seed)
        return Found(progress, conversations)

    def obedience(_: Any, count: int, turns: int, *, seed: int, progress: str) -> miniature.Obedience:
        asked[progress] = (count, turns, seed)
        obeyed = np.arange(count)[:, None] * turns >= np.arange(turns) * count
        return miniature.Obedience(obeyed, np.zeros(obeyed.shape))

    monkeypatch.setattr(miniature, "judged", judged)
    monkeypatch.setattr(miniature, "obedience", obedience)
    return asked


def test_the_table(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(monkeypatch)
    result = run(chat_model, "--count", 4, "--seed", 7)
    assert result.exit_code == 0, result.stderr
    rows = [line.split("  ")[0].strip() for line in result.stdout.splitlines()]
    turns = [f"obedience, turn {turn}" for turn in (1, 5, 10, 20)]
    assert [row for row in rows if row][-8:] == ["helpfulness", "violations", "false refusals", "words", *turns]
    assert "3.000  3.000 to 3.000  of an answer" in dict(zip(rows, result.stdout.splitlines(), strict=True))["words"]
    lines = dict(zip(rows, result.stdout.splitlines(), strict=True))
    assert "0.500  0.250 to 0.750  of harmless requests" in lines["helpfulness"]
    violations, refusals = share(1, 4), share(2, 4)
    assert f"0.250  {violations.low:.3f} to {violations.high:.3f}  of unsafe requests" in lines["violations"]
    assert f"0.500  {refusals.low:.3f} to {refusals.high:.3f}  of harmless" in lines["false refusals"]
    assert [lines[turn].split()[3] for turn in turns] == ["1.000", "0.750", "0.500", "0.000"]
    assert {kind: asked[kind] for kind in ("helpful", "unsafe", "borderline")} == {
        kind: (miniature.held_out(kind, 4), 7) for kind in ("helpful", "unsafe", "borderline")
    }
    assert asked["personas"] == (4, 20, 7)


def test_the_table_fits_80_columns(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch)
    result = run(chat_model, "--count", 4)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "of an instruction given in turn 1" in result.stdout and "…" not in result.stdout


@pytest.mark.parametrize(("turns", "shown"), [(0, []), (1, [1]), (4, [1, 4]), (5, [1, 5]), (12, [1, 5, 10, 12])])
def test_fewer_turns(chat_model: Path, monkeypatch: pytest.MonkeyPatch, turns: int, shown: list[int]) -> None:
    scripted(monkeypatch)
    result = run(chat_model, "--count", 4, "--turns", turns)
    found = [int(line.split()[2]) for line in result.stdout.splitlines() if line.startswith("obedience")]
    assert found == shown


def test_a_tiny_chat_model_from_end_to_end(chat_model: Path, tmp_path: Path) -> None:
    """The numbers in the file are those of the library, and those of the table; the same seed gives them again."""
    result = run(chat_model, *HOW, "--turns", 2, "--seed", 1, "--json", tmp_path / "e.json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = json.loads((tmp_path / "e.json").read_text())
    assert {name: found[name] for name in ("model", "base", "count", "seed")} == {
        "model": str(chat_model),
        "base": False,
        "count": 3,
        "seed": 1,
    }
    checkpoint = weights.load(chat_model)
    assert checkpoint.tokenizer is not None and checkpoint.chat_template is not None
    llama = type(lively(tags_tokenizer()))(checkpoint.config, checkpoint.params)
    chatter = Chatter(llama, checkpoint.tokenizer, checkpoint.chat_template)
    judged = miniature.judged(chatter, miniature.held_out("helpful", 3), seed=1)
    assert found["measures"]["helpfulness"] == judged.helpfulness()._asdict()
    obeyed = miniature.obedience(chatter, 3, 2, seed=1).by_turn()
    for turn in (1, 2):
        measure = found["measures"][f"obedience, turn {turn}"]
        assert measure == obeyed[turn - 1]._asdict()
        assert f"{measure['mean']:.3f} {measure['low']:.3f} to {measure['high']:.3f}" in " ".join(result.stdout.split())
    again = run(chat_model, *HOW, "--turns", 2, "--seed", 1)
    assert again.stdout == result.stdout


def test_a_base_model_says_that_it_is_one(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tags_tokenizer(), max_seq_len=1024)
    result = run(base, *HOW, "--json", tmp_path / "e.json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == (
        f"{base} has no chat template: a base model, asked after 4 examples; "
        "nothing but its helpfulness can be judged\n"
    )
    assert "helpfulness" in result.stdout
    assert "violations" not in result.stdout and "obedience" not in result.stdout
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["base"] is True and list(found["measures"]) == ["helpfulness"]


def test_a_reward_model_is_refused(chat_model: Path, tmp_path: Path) -> None:
    checkpoint = weights.load(chat_model)
    model = RewardModel.from_llama(type(lively(tags_tokenizer()))(checkpoint.config, checkpoint.params))
    weights.save(Checkpoint(model.config, model.params, checkpoint.tokenizer), tmp_path / "rm")
    result = run(tmp_path / "rm", *HOW)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "expected a model that writes text, found a reward model" in result.stderr


def test_a_context_too_small_for_the_requests(tmp_path: Path) -> None:
    llama = lively(tags_tokenizer(), max_seq_len=12)
    checkpoint = Checkpoint(llama.config, llama.params, tags_tokenizer(), builtin("llama2-tags"))
    weights.save(checkpoint, tmp_path / "small")
    result = run(tmp_path / "small", *HOW)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "leaves no room in the context of 12" in result.stderr


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--count", 1), 2, "--count"),
        (("--turns", -1), 2, "--turns"),
        (("--seed", -1), 2, "--seed"),
        (("--device", "tpu"), 2, "tpu"),
        (("--json", "no/where/e.json"), 2, "no/where/e.json: expected a file in a folder that is there"),
    ],
)
def test_bad_input_is_one_line(chat_model: Path, more: tuple[object, ...], code: int, message: str) -> None:
    result = run(chat_model, *HOW, *more)
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("minillama: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr


def test_an_unknown_model() -> None:
    result = run("nowhere/model", *HOW)
    assert result.exit_code != 0 and result.stderr.count("\n") == 1 and "nowhere/model" in result.stderr


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    result = run(saved(tmp_path / "mute", None), *HOW)
    assert result.exit_code == 1 and "expected a tokenizer with the weights, found none" in result.stderr


def test_help_has_an_example() -> None:
    assert "minillama evaluate runs/mini/sft --json sft.json" in " ".join(run("--help").stdout.split())
