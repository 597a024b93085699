"""`minillama ppo` from a small chat model and reward models: the report, again, stopped, with adapters, wrong use."""

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
from minillama.alignment.ppo_log import read_log
from minillama.alignment.ppo_trainer import Trainer
from minillama.alignment.reward_model import RewardModel
from minillama.chat import builtin
from minillama.cli import app
from minillama.config import LlamaConfig
from minillama.model import Llama
from minillama.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, Piece, SentencePieceTokenizer, build_model
from tests.weights.support import tiny_tokenizer

CONFIG = LlamaConfig(16, 2, 2, 32, vocab_size=262, n_kv_heads=1, max_seq_len=64, tie_embeddings=True)
ITERATIONS = 3


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A chat model, two reward models, some that do not fit it, and prompts."""
    folder = tmp_path_factory.mktemp("models")
    llama = Llama.init(CONFIG, seed=1)
    found = {}
    for name, model, tokenizer, template in (
        ("chat", llama, tiny_tokenizer(), "llama2"),
        ("helpful", RewardModel.from_llama(llama, seed=2), tiny_tokenizer(), "llama2"),
        ("safe", RewardModel.from_llama(llama, seed=3), tiny_tokenizer(), "llama2"),
        ("other words", RewardModel.from_llama(llama, seed=3), _other_tokenizer(), "llama2"),
        ("other template", RewardModel.from_llama(llama, seed=3), tiny_tokenizer(), "chatml"),
    ):
        checkpoint = replace(model.checkpoint(), tokenizer=tokenizer, chat_template=builtin(template))
        found[name] = folder / name
        weights.save(checkpoint, found[name])
    rng = np.random.default_rng(0)
    found["prompts"] = folder / "prompts.jsonl"
    lines = [
        {"prompt": [{"role": "user", "content": f"{rng.choice(list('abc'))} {i}"}], "domain": domain, "split": split}
        for i in range(20)
        for domain, split in [(("helpfulness", "safety")[i % 2], "validation" if i > 15 else "train")]
    ]
    found["prompts"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def _other_tokenizer() -> SentencePieceTokenizer:
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [Piece(text, -float(i), NORMAL) for i, text in enumerate(["▁", "b", "▁b"])]
    return SentencePieceTokenizer(build_model(pieces, where="other"))


def run(places: dict[str, Path], out: Path, *more: object) -> Result:
    required = ("--model", places["chat"], "--data", places["prompts"], "--out", out, "--threads", 1, "--device", "cpu")
    sizes = ("--iterations", ITERATIONS, "--batch-size", 8, "--minibatch", 4, "--max-new-tokens", 6)
    return CliRunner().invoke(app, ["ppo", *map(str, (*required, *sizes, *more))])


def ppo(places: dict[str, Path], out: Path, *more: object) -> Result:
    """A run that must succeed."""
    result = run(places, out, *more)
    assert result.exit_code == 0, result.stderr + str(result.exception)
    return result


def both(places: dict[str, Path]) -> tuple[object, ...]:
    return "--reward", places["helpful"], "--safety", places["safe"]


@pytest.fixture(scope="module")
def trained(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run by both reward models that has ended, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "ppo"
    return out, ppo(places, out, *both(places), "--lr", 0.01)


def test_the_report(trained: tuple[Path, Result]) -> None:
    out, result = trained
    assert re.search(r"prompts +16\b", result.stdout)
    assert re.search(rf"iterations +{ITERATIONS}\b", result.stdout)
    curves = read_log(out)
    assert curves.training["step"].tolist() == [1, 2, 3]
    assert {"helpfulness", "safety"} <= set(curves.training)
    best = curves.validation["reward"].max()
    found = re.search(r"held-out reward +([+-][\d.]+)", result.stdout)
    assert found and float(found[1]) == pytest.approx(best, abs=5e-4)
    assert " → " in result.stdout
    assert f"step {ITERATIONS} of {ITERATIONS}: reward " in result.stderr


def test_the_result_is_a_chat_model(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    checkpoint = weights.load(out)
    assert checkpoint.config == CONFIG
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.sha256 == tiny_tokenizer().sha256
    assert checkpoint.chat_template is not None
    answered = CliRunner().invoke(app, ["generate", str(out), "--prompt", "a", "--max-new-tokens", "3"])
    assert answered.exit_code == 0
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert settings["stage"] == "ppo" and set(settings["rewards"]) == {"helpfulness", "safety"}
    assert settings["value_lr"] == pytest.approx(0.1)  # ten times what was given


def test_the_same_command_again(trained: tuple[Path, Result], places: dict[str, Path]) -> None:
    out, _ = trained
    again = ppo(places, out, *both(places), "--lr", 0.01)
    assert "has ended already" in again.stderr
    for more in (["--beta", 0.5], ["--seed", 1], ["--clip", 0.1], ["--epochs", 2], ["--temperature", 0.5]):
        other = run(places, out, *both(places), "--lr", 0.01, *more)
        assert other.exit_code == 2
        assert "a run of other settings" in str(other.exception) + other.stderr
    other = run(places, out, "--reward", places["safe"], "--safety", places["helpful"], "--lr", 0.01)
    assert "rewards.helpfulness" in str(other.exception) + other.stderr


@pytest.mark.parametrize("more", [(), ("--lora", 2)])
def test_a_run_that_is_interrupted_goes_on(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    """To the same bits."""
    more = ("--reward", places["helpful"], "--lr", 0.01, *more)
    ppo(places, tmp_path / "whole", *more)
    iterate = Trainer.iterate

    def stopped(trainer: Any) -> dict[str, Any]:
        if trainer.progress.step == 2:
            raise KeyboardInterrupt
        return iterate(trainer)

    monkeypatch.setattr(Trainer, "iterate", stopped)
    run(places, tmp_path / "broken", *more)
    monkeypatch.setattr(Trainer, "iterate", iterate)
    assert not list((tmp_path / "broken").glob("*.safetensors"))
    result = ppo(places, tmp_path / "broken", *more, "--resume")
    assert "going on after iteration 2" in result.stderr
    ours, theirs = (weights.load(tmp_path / name).params for name in ("whole", "broken"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    scores = [read_log(tmp_path / name).training["score"].tolist() for name in ("whole", "broken")]
    assert scores[0] == scores[1] and len(scores[0]) == ITERATIONS


def test_adapters(places: dict[str, Path], tmp_path: Path) -> None:
    """Few parameters are trained, few are saved, and with their base they are a chat model."""
    result = ppo(places, tmp_path / "lora", "--reward", places["helpful"], "--lora", 2, "--lora-alpha", 8)
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["r"], settings["lora_alpha"]) == ("CAUSAL_LM", 2, 8)
    found = re.search(r"trained +([\d,]+) of ([\d,]+)", result.stdout)
    assert found
    few, all_of_them = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < few < all_of_them
    assert Llama.load(tmp_path / "lora").config == CONFIG


def test_a_safety_model_alone(places: dict[str, Path], tmp_path: Path) -> None:
    ppo(places, tmp_path / "run", "--safety", places["safe"])
    training = read_log(tmp_path / "run").training
    assert "helpfulness" not in training
    np.testing.assert_allclose(training["score"], training["safety"], rtol=1e-4)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ([], "ppo: expected a reward model, found none"),
        (["--reward", "chat"], "expected a reward model, found a model that writes text"),
        (["--reward", "other words"], "expected the tokenizer of the model that is trained, found another"),
        (["--reward", "other template"], "expected the chat template of the model that is trained, found another"),
        (["--reward", "helpful", "--safety", "other words"], "other words: expected the tokenizer"),
        (["--reward", "helpful", "--model", "helpful"], "expected a model that writes text, found a reward model"),
        (["--reward", "helpful", "--minibatch", 9], "minibatch 9: expected at most the batch of 8"),
        (["--reward", "helpful", "--max-new-tokens", 64], "max new tokens 64: expected fewer than the context"),
        (["--reward", "helpful", "--max-new-tokens", 60], "no prompt to answer: 20 prompts left out: too long"),
        (["--reward", "helpful", "--lr", 0], "lr 0.0: expected a positive number"),
        (["--reward", "helpful", "--data", "nobody"], "unknown prompts 'nobody'"),
        (["--reward", "helpful", "--resume"], "expected a run to go on with, found none"),
        (["--reward", "helpful", "--resume", "--overwrite"], "expected either --resume or --overwrite, found both"),
    ],
)
def test_wrong_use(places: dict[str, Path], tmp_path: Path, more: list[object], problem: str) -> None:
    result = run(places, tmp_path / "out", *[places.get(str(x), x) for x in more])
    assert result.exit_code in (1, 2)
    said = str(result.exception) + result.stderr
    assert problem in said
    assert "Traceback" not in result.stderr
