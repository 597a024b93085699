"""What a pipeline came to: from its files, as a table that fits a terminal, as a page that asks nobody for anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minillama.cli import app
from minillama.errors import MinillamaError
from minillama.evaluation.record import Evaluation
from minillama.evaluation.statistics import Estimate
from minillama.pipeline import report, results, runner
from minillama.pipeline.runner import Record
from minillama.training.logs import JsonLines

MODELS = ("base", "sft", "gatt", "v1-random", "v1-reject", "v5-reject", "v5-ppo")


def evaluation(name: str, good: float) -> Evaluation:
    """Half of the answers are as good as those of sft, the rest as `good`."""
    if name == "base":
        return Evaluation(name, 2, 0, base=True, measures={"helpfulness": Estimate(0.1, 0.05, 0.15)})
    answer = {"text": "Yes.", "safety": 1.0, "violation": False, "refusal": False}
    answers = [{**answer, "helpfulness": 0.5}, {**answer, "helpfulness": good}]
    measures = {m: Estimate(good, good - 0.1, good + 0.1) for m in ("helpfulness", "violations", "false refusals")}
    measures |= {m: Estimate(good, good - 0.1, good + 0.1) for m in ("words", "reward", "KL")}
    return Evaluation(name, 2, 0, measures=measures, answers={"helpful": answers, "unsafe": [answers[0]]})


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The files of a pipeline."""
    out = tmp_path / "mini"
    record = Record(out / runner.RECORD)
    for stage, result in {
        "sft": {"validation": {"loss": 0.5}},
        "v1/reward": {
            "validation": {"accuracy": 0.75, "pairs": 40.0, "accuracy, better": 0.5, "calibration_error": 0.1}
        },
        "v5/ppo": {"validation": {"reward": 1.0}},
    }.items():
        (out / stage).mkdir(parents=True)
        (out / stage / "run.json").write_text(json.dumps({"settings": {}, "result": result}))
        record.note(stage, "key", True, 12.0)
    log = JsonLines(out / "v5/ppo/log.jsonl", 0)
    for step in (1, 2):
        log.write({"step": step, "reward": 0.1, "score": 0.2 * step, "kl": 0.3})
        log.write({"step": step, "validation": {"score": 0.2, "reward": 0.1}})
    log.close()
    (out / "judged").mkdir()
    for i, name in enumerate(MODELS):
        evaluation(name, 0.4 + 0.1 * i).save(out / "judged" / f"{name}.json")
        record.note(f"judged/{name}.json", "key", True, 1.0)
    return out


def test_everything_is_found(made: Path) -> None:
    found = results.collect(made)
    assert [row.name for row in found.rows] == list(MODELS)
    assert found.row("sft")["win rate"].mean == 0.5 and found.row("base").keys() == {"helpfulness"}
    # of three answers one is better and two are equal
    assert found.row("v5-ppo")["win rate"].mean == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found.row("v5-ppo")["helpful win rate"].mean == 0.75
    assert found.row("v5-ppo")["safety win rate"].mean == 0.5
    assert found.reward_models == {
        "v1/reward": {"accuracy": 0.75, "pairs": 40.0, "accuracy, better": 0.5, "calibration_error": 0.1}
    }
    assert found.losses["sft"] == {"loss": 0.5}
    assert found.seconds == 36 + len(MODELS) and found.peak > 1e6
    found.save(made / "results.json")
    content = json.loads((made / "results.json").read_text())
    assert content["models"]["v5-ppo"]["helpfulness"] == [1.0, 0.9, 1.1]


def test_the_table_fits_100_columns(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    report.show(results.collect(made), "runs/mini")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    row = next(line for line in lines if line.startswith("v5-ppo"))
    assert row.split()[1:5] == ["1.000", "100.0", "%", "100.0"]
    assert next(line for line in lines if line.startswith("v1/reward")).split()[1:3] == ["40", "75"]


def test_the_page_needs_nothing_else(made: Path) -> None:
    page = report.write(results.collect(made), made).read_text()
    assert "<svg" in page and all(name in page for name in MODELS)
    outside = {x for x in re.findall(r"(?:src|href)=[\"']?([^\"' >]+)", page) if not x.startswith("#")}
    assert not outside, outside
    assert "report.html" in [path.name for path in made.iterdir()]


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MinillamaError, match="expected a pipeline that has ended, found none"):
        results.collect(tmp_path)


def test_the_command(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is commands that can be copied; the end of a run is a table and two files."""
    shown = CliRunner().invoke(app, ["pipeline", "--plan", "--out", "some where"])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0] == "minillama pretrain --preset mini --data miniature --seed 0 --out 'some where/base'"
    assert all(line.startswith("minillama ") for line in lines) and len(lines) > 30

    monkeypatch.setattr(runner, "run", lambda stages, out, threads: Record.load(out / runner.RECORD))
    ended = CliRunner().invoke(app, ["pipeline", "--out", str(made)], env={"COLUMNS": "100"})
    assert ended.exit_code == 0, ended.stderr
    assert "v5-ppo" in ended.stdout and f"{made}/report.html: the same with curves" in ended.stderr
    assert (made / "results.json").is_file()

    part = CliRunner().invoke(app, ["pipeline", "--plan", "--out", "x", "--until", "v1/random"])
    assert part.stdout.splitlines()[-1].endswith("--pick random --out x/v1/random")
    bad = CliRunner().invoke(app, ["pipeline", "--out", "x", "--until", "v9"])
    assert bad.exit_code == 2 and "expected one of base, sft, gatt" in bad.stderr and bad.stderr.count("\n") == 1
    bad = CliRunner().invoke(app, ["pipeline", "--out", str(made), "--preset", "huge"])
    assert bad.exit_code == 2 and "expected one of mini, small, base" in bad.stderr and bad.stderr.count("\n") == 1
