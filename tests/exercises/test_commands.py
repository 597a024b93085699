"""The commands of `minillama exercises`, from the command line down."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from minillama import LlamaConfig, MinillamaError, backend, layers
from minillama.alignment import policy, ppo_batch
from minillama.cli import app
from minillama.exercises.chapter import CHAPTERS, all_chapters, load_chapter
from minillama.exercises.cli import _split
from minillama.exercises.swap import swapped
from minillama.model import KVCache, Llama

CONFIG = LlamaConfig(16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=24, vocab_size=40, max_seq_len=32)
TOKENS = np.array([[5, 1, 7, 7, 30], [9, 9, 0, 2, 3]])


def exercises(*args, typed=None):
    """Exit code, stdout and stderr of `minillama exercises ...`."""
    result = CliRunner().invoke(app, ["exercises", *args], input=typed)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("folder")
def test_check_says_what_comes_next():
    code, out, _ = exercises("check", "ch04")
    assert code == 1
    assert "0 of 7 solved" in out
    assert "Next: 4.1 rope_frequencies" in out


def test_check_is_content_with_solutions(solved):
    code, out, _ = exercises("check", "8", "--folder", str(solved))
    assert code == 0
    assert "10 of 10 solved" in out
    assert "All solved." in out


def test_check_explains_the_exercise_that_is_asked_for(answer):
    path = answer("ch04", "rope_frequencies", "return theta")
    text = path.read_text(encoding="utf-8").replace("return _turn(x, rotations", "return _turn(2 * x, rotations")
    path.write_text(text, encoding="utf-8")
    assert "4.1 rope_frequencies is not right yet" in exercises("check", "ch04")[1]
    for name in ("rope", "4.3"):
        code, out, _ = exercises("check", "ch04", name)
        assert code == 1
        assert "4.3 rope is not right yet" in out
        assert "rope_frequencies is not right yet" not in out
    code, out, _ = exercises("check", "ch04", "rope_rotations")
    assert code == 0
    assert out.endswith("4.2 rope_rotations is solved.\n")


def test_check_takes_the_first_chapter_that_is_not_solved(folder, solutions):
    *before, last = all_chapters()
    for solved, chapter in (([], before[0]), (before[:1], before[1]), (before, last)):
        for done in solved:
            (folder / f"{done.name}.py").write_text(solutions[done.name], encoding="utf-8")
        assert f"{chapter.code} · {chapter.title}: 0 of {len(chapter.exercises)} solved" in exercises("check")[1]


def test_a_terminal_without_greek_gets_question_marks(folder):
    command = [sys.executable, "-m", "minillama", "exercises", "hint", "ch04", "relative_score"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "ascii"}
    for line in ("Turning q_j by m ?_j", "ch04 ? Rotary position"):
        done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, env=environment, check=False)
        assert line in done.stdout
        assert done.stderr == ""
        command[4:] = ["check", "ch04"]
    assert "  . 4.1  warm-up  rope_frequencies" in done.stdout


def test_alone_it_shows_its_help():
    code, out, _ = exercises()
    assert code == 0
    for command in ("check", "status", "hint", "solution", "reset", "run"):
        assert command in out


@pytest.mark.usefixtures("folder")
def test_unknown_names_are_told():
    code, _, err = exercises("check", "ch99")
    assert code == 2
    known = ", ".join(name[:4] for name in CHAPTERS)
    assert err == f"minillama: no exercises for chapter 'ch99': expected one of {known}\n"
    code, _, err = exercises("hint", "ch04", "ropes")
    assert code == 2
    assert "ch04 has no exercise 'ropes': expected one of rope_frequencies" in err


def test_without_a_folder_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minillama.__file__", str(tmp_path / "site-packages" / "minillama" / "__init__.py"))
    code, _, err = exercises("status")
    assert code == 2
    assert "minillama exercises reset --folder exercises" in err
    code, out, _ = exercises("reset", "--folder", "exercises")
    assert code == 0
    assert out.count("is new") == len(CHAPTERS)
    assert exercises("status")[0] == 0


def test_status_fits_80_columns(solved):
    (solved / "ch08_llama.py").write_text("import nonsense\n", encoding="utf-8")
    code, out, _ = exercises("status")
    assert code == 0
    assert "2/2" in out
    assert "7/7" in out
    assert "0/10" in out
    count = sum(len(chapter.exercises) for chapter in all_chapters())
    assert f"{count - 10} of {count} exercises solved" in out
    assert "ch08_llama.py cannot be imported." in out
    assert max(map(len, out.splitlines())) <= 80


def test_hints_come_one_by_one(folder):
    hints = load_chapter("ch04").find("rope").hints
    assert hints[0].split()[0] in (folder / "ch04_rope.py").read_text(encoding="utf-8")
    for number, expected in ((2, hints[1]), (3, hints[2]), (3, hints[2])):
        code, out, _ = exercises("hint", "ch04", "rope")
        assert code == 0
        assert out.startswith(f"4.3 rope, hint {number} of 3:")
        assert expected in " ".join(out.split())
    assert "minillama exercises solution ch04 rope" in out
    (folder / ".hints.json").write_text("broken", encoding="utf-8")
    assert "hint 2 of 3" in exercises("hint", "ch04", "4.3")[1]


def test_hint_and_solution_take_the_next_exercise(answer):
    answer("ch04", "rope_backward", "raise NotImplementedError")
    assert exercises("hint", "ch04")[1].startswith("4.4 rope_backward, hint 2 of")
    assert "def rope_backward(" in exercises("solution", "ch04", "--yes")[1]


@pytest.mark.usefixtures("solved")
def test_nothing_is_left_to_hint():
    assert exercises("hint", "ch04")[1] == "ch04 is solved; name an exercise to see its hints.\n"
    assert exercises("solution", "ch04", "-y")[1] == "ch04 is solved; name an exercise to see its solution.\n"


@pytest.mark.usefixtures("folder")
def test_solution_asks_first(monkeypatch):
    code, out, err = exercises("solution", "ch04", "rope")
    assert (code, out) == (2, "")
    assert "say --yes" in err
    monkeypatch.setattr("minillama.exercises.cli._can_answer", lambda: True)
    code, out, _ = exercises("solution", "ch04", "rope", typed="n\n")
    assert code == 1
    assert "def rope(" not in out
    code, out, _ = exercises("solution", "ch04", "rope", typed="y\n")
    assert code == 0
    assert "def rope(" in out
    assert "minillama.layers.rope" in out


def test_reset_keeps_the_learner_s_work(folder):
    path = folder / "ch04_rope.py"
    skeleton = path.read_text(encoding="utf-8")
    for number in (1, 2):
        path.write_text(f"my work {number}", encoding="utf-8")
        code, out, _ = exercises("reset", "ch04", "-y")
        assert code == 0
        assert f"yours is now ch04_rope.mine-{number}.py" in out
        assert (folder / f"ch04_rope.mine-{number}.py").read_text(encoding="utf-8") == f"my work {number}"
        assert path.read_text(encoding="utf-8") == skeleton
    exercises("reset", "ch04", "-y")  # nothing was changed, so nothing is kept
    assert sorted(p.name for p in folder.glob("*.mine-*")) == ["ch04_rope.mine-1.py", "ch04_rope.mine-2.py"]


def test_reset_asks_first(folder):
    (folder / "ch04_rope.py").write_text("my work", encoding="utf-8")
    code, _, err = exercises("reset", "ch04")
    assert code == 2
    assert "say --yes" in err
    assert (folder / "ch04_rope.py").read_text(encoding="utf-8") == "my work"


# --- run --with


def test_the_model_computes_the_same_through_solutions(solved):
    model = Llama.init(CONFIG, dtype=np.float64)
    hidden, saved = model.forward(TOKENS)
    expected = model.backward(np.ones_like(hidden), saved)
    original = layers.rope, Llama._block_forward, KVCache.extend
    with swapped(solved, [load_chapter("ch04"), load_chapter("ch08")]) as (yours, unwritten):
        assert unwritten == []
        assert "rope" in yours
        assert "block" in yours
        assert layers.rope is not original[0]
        assert layers.rope.__code__ is not original[0].__code__
        ours, saved = Llama.init(CONFIG, dtype=np.float64).forward(TOKENS)
        grads = Llama.init(CONFIG, dtype=np.float64).backward(np.ones_like(ours), saved)
        cached = Llama.init(CONFIG, dtype=np.float64)
        cache = KVCache(CONFIG, 2, 8, cached.params["norm.weight"])
        steps = [cached.forward(TOKENS[:, t : t + 1], cache=cache)[0] for t in range(5)]
    assert (layers.rope, Llama._block_forward, KVCache.extend) == original
    np.testing.assert_allclose(ours, hidden, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), hidden, rtol=1e-11, atol=1e-12)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        np.testing.assert_allclose(grads[name], grad, rtol=1e-11, atol=1e-13)


def test_a_module_that_is_imported_while_learners_code_runs_gets_the_package_s_own_back(solved, monkeypatch):
    late = ModuleType("minillama.late")
    monkeypatch.setitem(sys.modules, "minillama.late", late)
    original = policy.policy_loss
    with swapped(solved, [load_chapter("ch19")]):
        late.loss = policy.policy_loss
        assert late.loss is ppo_batch.policy_loss is not original
    assert late.loss is ppo_batch.policy_loss is original


def test_a_wrong_rope_changes_what_the_model_says(answer):
    path = answer("ch04", "rope", "return x, (rotations, layout)")
    model = Llama.init(CONFIG, dtype=np.float64)
    expected, _ = model.forward(TOKENS)
    with swapped(path.parent, [load_chapter("ch04")]):
        hidden, _ = model.forward(TOKENS)
    assert np.abs(hidden - expected).max() > 1e-6


def test_a_backward_that_is_not_written_is_missed_only_in_training(answer):
    path = answer("ch04", "rope_backward", "raise NotImplementedError")
    model = Llama.init(CONFIG)
    with swapped(path.parent, [load_chapter("ch04")]) as (yours, unwritten):
        assert "rope_backward" not in yours
        assert unwritten == ["rope_backward"]
        hidden, saved = model.forward(TOKENS)
        with pytest.raises(MinillamaError, match=r"training needs rope_backward \(4.4\), which is not written yet"):
            model.backward(hidden, saved)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 1 / 0", r"ch04_rope.py, your rope: Line \d+, `return 1 / 0`, raised ZeroDivisionError"),
        ("return x", "rope returned one ndarray; expected 2 values"),
        ("pass", "rope returned None"),
    ],
)
def test_a_rope_that_breaks_is_told_in_one_line(answer, body, expected):
    path = answer("ch04", "rope", body)
    original = layers.rope
    with pytest.raises(MinillamaError, match=expected), swapped(path.parent, [load_chapter("ch04")]):
        Llama.init(CONFIG).forward(TOKENS)
    assert layers.rope is original


def test_learners_code_stays_on_the_cpu(solved, monkeypatch):
    monkeypatch.setattr(backend, "cuda_problem", lambda: None)
    with swapped(solved, [load_chapter("ch04")]):
        assert backend.resolve_device(None) == "cpu"
    assert backend.resolve_device(None) == "cuda"


def test_run_gives_the_rest_to_the_command_line(answer):
    answer("ch08", "param_count", "return 12345")
    code, out, err = exercises("run", "--with", "ch08", "--", "info", "--preset", "llama2-7b")
    assert code == 0
    assert err.startswith("your code runs: param_count, rmsnorm, ")
    assert "12,345" in out
    _, out, _ = exercises("run", "--with", "ch08", "--", "info", "--preset", "llama2-13b", "--folder", "x")
    assert "12,345" not in out


def test_run_says_what_is_missing(folder):
    code, _, err = exercises("run", "--with", "ch04", "--", "info", "--preset", "llama2-7b")
    assert code == 1
    assert err.count("\n") == 1
    assert "nothing to run in ch04_rope.py yet: write rope_frequencies first (4.1)" in err
    code, _, err = exercises("run", "--with", "ch04")
    assert code == 2
    assert "expected a command after --" in err
    (folder / "ch04_rope.py").write_text("import nonsense", encoding="utf-8")
    code, _, err = exercises("run", "--with", "ch04", "--", "info", "--preset", "llama2-7b")
    assert code == 1
    assert "ch04_rope.py cannot be imported. Line 1, `import nonsense`, raised ModuleNotFoundError" in err


def test_chapters_and_command_are_told_apart():
    command = ["generate", "stories260k", "--prompt", "Once"]
    assert _split(["ch04", "ch08", "--", *command]) == (["ch04", "ch08"], command)
    assert _split(["ch04", "ch08", *command]) == (["ch04", "ch08"], command)
    assert _split(["ch04"]) == (["ch04"], [])
    assert _split(["ch04", "ch15", "sft", "--lora", "8"]) == (["ch04", "ch15"], ["sft", "--lora", "8"])  # a topic too


# --- real weights


@pytest.fixture
def stories():
    """stories260K: the first line that it tells at temperature 0."""
    path = Path(os.environ.get("MINILLAMA_DATA", "")) / "weights" / "stories260K.bin"
    if "MINILLAMA_DATA" not in os.environ or not path.is_file():
        pytest.skip("needs MINILLAMA_DATA with weights/stories260K.bin")
    return ["generate", "stories260k", "--prompt", "Once upon a time", "--temperature", "0", "--max-new-tokens", "40"]


def test_a_learner_s_llama_tells_the_story(stories, solved):
    code, out, _ = exercises("run", "--with", "ch04", "ch08", "--", *stories)
    assert code == 0
    assert out.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert exercises("run", "--folder", str(solved), "--with", "ch08", "--", *stories)[1] == out


def test_a_rope_in_the_wrong_layout_tells_gibberish(stories, answer):
    answer("ch04", "rope", "return _turn(x, rotations, 'half'), (rotations, layout)")
    code, out, _ = exercises("run", "--with", "ch04", "--", *stories)
    assert code == 0
    assert out.startswith("Once upon a time, there was a little goth mist")


def test_a_learner_s_encoder_cuts_the_prompt(stories, solved, answer):
    package = exercises("run", "--folder", str(solved), "--with", "ch08", "--", *stories)[1]
    assert exercises("run", "--with", "ch02", "--", *stories)[1] == package
    answer("ch02", "encode", "return [0 for _ in text]")
    assert exercises("run", "--with", "ch02", "--", *stories)[1] != package
