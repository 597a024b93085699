"""`minillama reward` from a small chat model: the tables, resuming, adapters, what other commands say of the result."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from minillama import weights
from minillama.alignment import preferences
from minillama.alignment.preferences import RATINGS, Pair
from minillama.alignment.reward_model import RewardModel
from minillama.chat import builtin
from minillama.cli import app
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.training import loop
from tests.weights.support import tiny_tokenizer

CONFIG = LlamaConfig(16, 2, 2, 32, vocab_size=262, n_kv_heads=1, max_seq_len=64, tie_embeddings=True)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "chat"
    checkpoint = replace(
        Llama.init(CONFIG, seed=1).checkpoint(), tokenizer=tiny_tokenizer(), chat_template=builtin("llama2")
    )
    weights.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of a letter, which the chosen answer repeats and the rejected one does not."""
    rng = np.random.default_rng(0)
    drawn = []
    for i in range(120):
        letter, other = rng.choice(list("abcdef"), 2, replace=False)
        prompt = ({"role": "user", "content": f"{letter} {i}"},)
        drawn.append(Pair(prompt, letter * 3, other * 3, RATINGS[i % 4], (True, i % 3 > 0), "safety"))
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    preferences.save(drawn, path)
    return path


def run(*arguments: object, command: str = "reward") -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def reward(model: Path, data: Path, out: Path, *more: object) -> Result:
    """A run that must succeed."""
    result = run(*required(model, data, out), *more)
    assert result.exit_code == 0, result.stderr
    return result


def number_after(word: str, text: str) -> int:
    """The first number that stands after `word`."""
    found = re.search(rf"\b{word} +([\d,]+)", text)
    assert found, text
    return int(found[1].replace(",", ""))


def required(model: Path, data: Path, out: Path) -> tuple[object, ...]:
    return "--model", model, "--data", data, "--out", out, "--threads", 1, "--batch-size", 8, "--device", "cpu"


@pytest.fixture(scope="module")
def trained(chat_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A safety model with margins that has ended, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "safety"
    return out, reward(chat_model, pairs, out, "--margin", "small", "--safety-loss", 1, "--held-out", 0.3)


def log(out: Path, kind: str = "loss") -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if kind in line]


def test_tables_and_a_pair(trained: tuple[Path, Result]) -> None:
    """The numbers are those of the last validation; each line's p-value is that of its own pairs."""
    out, result = trained
    measures = log(out, "validation")[-1]["validation"]
    assert measures["pairs"] == 120 - number_after("pairs", result.stdout)
    rows = dict(re.findall(r"^(all|[a-z][a-z ]+?) +([\d,]+ +[\d.]+ % +p = \S+)$", result.stdout, re.M))
    assert list(rows) == ["all", *RATINGS]
    for name, row in rows.items():
        count, share, p = re.fullmatch(r"([\d,]+) +([\d.]+) % +p = (\S+)", row).groups()  # type: ignore[union-attr]
        suffix = "" if name == "all" else f", {name}"
        assert int(count) == measures[f"pairs{suffix}"]
        assert float(share) == pytest.approx(100 * measures[f"accuracy{suffix}"], abs=0.05)
        assert 0 < float(p) <= 1
    assert sum(measures[f"pairs, {rating}"] for rating in RATINGS) == measures["pairs"]
    assert re.search(r"50 to 60 % sure +\d+ ", result.stdout)
    assert "(chosen)" in result.stdout and "(rejected)" in result.stdout


def test_the_result_is_a_reward_model(trained: tuple[Path, Result], tmp_path: Path) -> None:
    """`info` says so; what writes text refuses it in a line."""
    out, _ = trained
    model = RewardModel.load(out)
    assert model.config.head == "score"
    told = run(out, command="info")
    assert told.exit_code == 0 and "reward model" in told.stdout
    assert f"{model.config.param_count():,}" in told.stdout
    for command, arguments in (("generate", [out, "--prompt", "a"]), ("chat", [out]), ("serve", [out, "--port", 0])):
        refused = run(*arguments, command=command)
        assert refused.exit_code == 1
        assert "found a reward model" in str(refused.exception) + refused.stderr
    refused = run(out, tmp_path / "x.gguf", command="convert")
    assert refused.exit_code == 2


def test_the_same_command_again(trained: tuple[Path, Result], chat_model: Path, pairs: Path) -> None:
    out, first = trained
    again = reward(chat_model, pairs, out, "--margin", "small", "--safety-loss", 1, "--held-out", 0.3)
    assert "has ended already" in again.stderr
    assert re.findall(r"^all .*$", again.stdout, re.M) == re.findall(r"^all .*$", first.stdout, re.M)
    for option in (["--margin", "large"], ["--safety-loss", 0.5], ["--held-out", 0.2], ["--seed", 1], ["--lora", 2]):
        options = {"--margin": "small", "--safety-loss": 1, "--held-out": 0.3} | dict([option])
        other = run(*required(chat_model, pairs, out), *(x for item in options.items() for x in item))
        assert other.exit_code == 2
        assert "a run of other settings" in str(other.exception) + other.stderr


def test_a_run_that_is_interrupted_goes_on(
    chat_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits, with adapters too."""
    for name, more in (("whole", []), ("adapters", ["--lora", 2, "--lr", 0.01])):
        reward(chat_model, pairs, tmp_path / name, *more)
        step = loop._Trainer.step

        def stopped(trainer: Any, step: Any = step) -> None:
            if trainer.progress.step == 7:
                raise KeyboardInterrupt
            step(trainer)

        broken = tmp_path / f"{name}-broken"
        monkeypatch.setattr(loop._Trainer, "step", stopped)
        run(*required(chat_model, pairs, broken), *more, "--save-every", 3)
        monkeypatch.setattr(loop._Trainer, "step", step)
        assert not (broken / "model.safetensors").exists()
        result = reward(chat_model, pairs, broken, *more, "--save-every", 3, "--resume")
        assert "going on after step 6" in result.stderr
        assert [r["loss"] for r in log(broken)] == [r["loss"] for r in log(tmp_path / name)]
        ours, theirs = (weights.load(path).params for path in (tmp_path / name, broken))
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_adapters(chat_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Few parameters are trained, few are saved, and with their base they are a reward model."""
    result = reward(chat_model, pairs, tmp_path / "lora", "--lora", 2, "--lora-alpha", 8)
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["r"], settings["lora_alpha"]) == ("SEQ_CLS", 2, 8)
    assert 0 < number_after("trained", result.stdout) < number_after("of", result.stdout)
    assert RewardModel.load(tmp_path / "lora").config.head == "score"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--margin", "huge"], "margin 'huge': expected one of none, small, large"),
        (["--max-length", 100], "max length 100: expected at most the context of 64"),
        (["--max-length", 5], "nothing to learn: 120 pairs left out: too long"),
        (["--data", "nobody"], "unknown preferences 'nobody'"),
        (["--resume"], "expected a run to go on with, found none"),
        (["--lora", 2, "--lora-alpha", -1], "LoRA alpha -1.0: expected a positive number"),
        (["--lr", 0], "learning rate 0.0: expected a positive number"),
    ],
)
def test_wrong_use(chat_model: Path, pairs: Path, tmp_path: Path, more: list[object], problem: str) -> None:
    result = run(*required(chat_model, pairs, tmp_path / "out"), *more)
    assert result.exit_code in (1, 2)
    assert problem in str(result.exception) + result.stderr


def test_margins_need_ratings(chat_model: Path, tmp_path: Path) -> None:
    preferences.save([Pair(({"role": "user", "content": "a"},), "b", "c")], tmp_path / "pairs.jsonl")
    result = run(*required(chat_model, tmp_path / "pairs.jsonl", tmp_path / "out"), "--margin", "small")
    assert "expected pairs with a rating, found none" in str(result.exception) + result.stderr
