"""The planner, against numbers worked out by hand and against the papers' own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from minillama import LlamaConfig, UsageError, layers
from minillama.cli import app
from minillama.config import PRESETS
from minillama.model import Llama
from minillama.training import losses, plan
from minillama.training.plan import GPUS, PRECISIONS, TABLE2, Plan, state_bytes

SEVEN = PRESETS["llama2-7b"]
TINY = LlamaConfig(8, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=12, vocab_size=16, max_seq_len=32)


# --- arithmetic


def test_flops_of_7b_by_hand():
    # A layer: four matrices of 4096 × 4096 and three of 4096 × 11008; then the head, 4096 × 32000. Two FLOPs each.
    matrices = 2 * (32 * (4 * 16_777_216 + 3 * 45_088_768) + 131_072_000)
    assert matrices == 13_214_154_752
    # Scores and values: 2 · 2 · 4096 for each position seen, (4096 + 1) / 2 of them on average, in 32 layers.
    attention = 32 * 4 * 4096 * 2048.5
    assert attention == 1_074_003_968
    assert plan.forward_flops(SEVEN, 4096) == matrices + attention == 14_288_158_720
    assert plan.training_flops(SEVEN, 4096) == 42_864_476_160
    assert plan.training_flops(SEVEN, 4096, recompute=True) == 57_152_634_880


@pytest.mark.parametrize("window", [None, 5, 32, 100])
def test_flops_are_those_of_the_products_that_the_formula_names(window):
    """Counted one query at a time."""
    config, T = replace(TINY, sliding_window=window, tie_embeddings=True), 12
    matrices = [shape for name, shape in config.param_shapes().items() if len(shape) == 2 and "embed" not in name]
    count = 2 * sum(rows * columns for rows, columns in [*matrices, (config.vocab_size, config.dim)])  # the tied head
    seen = [min(i + 1, window or T) for i in range(T)]
    count += config.n_layers * config.n_heads * 4 * config.head_dim * sum(seen) / T
    assert plan.forward_flops(config, T) == pytest.approx(count, rel=1e-12)


def test_a_step_does_three_times_the_matrix_products_of_a_forward_pass(monkeypatch):
    """The linear layers of a real step, counted as they are called; the rest is attention, which is counted above."""
    done = {"forward": 0, "backward": 0}
    linear, backward = layers.linear, layers.linear_backward

    def counted(x, weight):
        done["forward"] += 2 * (x.size // x.shape[-1]) * weight.size
        return linear(x, weight)

    def counted_backward(dy, saved):
        done["backward"] += 2 * 2 * (dy.size // dy.shape[-1]) * saved[1].size  # dx and dW, each as large as y
        return backward(dy, saved)

    monkeypatch.setattr(layers, "linear", counted)
    monkeypatch.setattr(layers, "linear_backward", counted_backward)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (3, 11))
    losses.next_token_loss(Llama.init(TINY), tokens[:, :-1], tokens[:, 1:])
    attention = TINY.n_layers * 4 * TINY.n_heads * TINY.head_dim * 11 / 2
    per_token = plan.forward_flops(TINY, 10) - attention
    assert done["forward"] == 30 * per_token
    assert done["backward"] == 2 * done["forward"]


# --- the paper's table 2


def test_table_2_implies_one_carbon_intensity():
    for row in TABLE2.values():
        rounding = 0.011 / (row.hours * row.watts / 1e6)  # the table's tonnes have two digits, cut off or rounded
        assert row.intensity == pytest.approx(plan.paper_intensity(), abs=rounding)
        assert row.intensity == pytest.approx(1.1 * 0.385, abs=rounding)  # LLaMA 1's PUE and kg/kWh


def test_34b_would_not_agree_at_400_watts():
    row = replace(TABLE2["llama2-34b"], watts=400)
    assert row.intensity < 0.9 * plan.paper_intensity()


def test_rows_of_table_2_sum_to_its_last():
    assert sum(row.hours for row in TABLE2.values()) == plan.PAPER_HOURS
    assert sum(row.tonnes for row in TABLE2.values()) == pytest.approx(plan.PAPER_TONNES, abs=0.021)


def test_implied_mfu_of_7b_by_hand():
    seconds = 184_320 * 3600
    assert plan.implied_mfu("llama2-7b") == pytest.approx(42_864_476_160 * 2e12 / (seconds * 312e12), rel=1e-12)


@pytest.mark.parametrize("name", TABLE2)
def test_table_2_round_trips_at_a_plausible_mfu(name):
    mfu = plan.implied_mfu(name)
    assert 0.35 < mfu < 0.6
    assert plan.table2_hours(name, mfu) == pytest.approx(TABLE2[name].hours, rel=1e-12)
    assert plan.table2_hours(name, mfu / 2) == pytest.approx(2 * TABLE2[name].hours, rel=1e-12)


def test_a_plan_at_the_implied_mfu_is_the_paper():
    run = plan.smallest_tensor(PRESETS["llama2-70b"], 2048, mfu=plan.implied_mfu("llama2-70b"))
    assert run.gpu_hours == pytest.approx(1_720_320, rel=1e-12)
    assert run.days == pytest.approx(1_720_320 / 2048 / 24, rel=1e-12)
    assert run.tonnes == pytest.approx(291.42, abs=0.02)
    assert run.steps == 476_838  # 2e12 / (1024 · 4096), upwards
    assert run.tokens_per_second * run.days * 86_400 == pytest.approx(2e12, rel=1e-12)


def test_implied_mfu_knows_table_2_only():
    with pytest.raises(UsageError, match=r"^llama1-7b: not in the paper's table 2, expected one of llama2-7b, "):
        plan.implied_mfu("llama1-7b")


# --- memory


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_divides_as_its_paper_says(zero, gigabytes):
    """Figure 1 of arXiv:1910.02054: 7.5B parameters on 64 GPUs."""
    whole = sum(state_bytes(7.5e9, zero, 64, PRECISIONS["bf16"]).values())
    assert whole / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_state_of_7b_by_hand():
    memory = Plan(SEVEN, gpus=8, zero=0).memory()
    assert memory["weights"] == memory["gradients"] == 2 * 6_738_415_616
    assert memory["optimizer state"] == 12 * 6_738_415_616
    assert Plan(SEVEN, gpus=8).memory()["optimizer state"] == 12 * 6_738_415_616 / 8
    full = Plan(SEVEN, gpus=8, precision="fp32", zero=0).memory()
    assert [full[name] for name in ("weights", "gradients", "optimizer state")] == [
        n * 6_738_415_616 for n in (4, 4, 8)
    ]


def test_a_layer_is_whole_while_it_works():
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11_008 + 2 * 4096  # larger than the embedding table
    assert "layer at work" not in Plan(SEVEN, gpus=8, zero=1).memory()
    assert Plan(SEVEN, gpus=8, zero=2).memory()["layer at work"] == 2 * layer
    assert Plan(SEVEN, gpus=8, zero=3).memory()["layer at work"] == 4 * layer
    assert Plan(PRESETS["mini"], gpus=8, zero=3).memory()["layer at work"] == 4 * 4 * 128 * 344 * 3 / 4 + 4 * (
        2 * 128 * 128 + 2 * 128 * 64 + 2 * 128
    )


def test_activations_of_7b_by_hand():
    # bf16 numbers of a token in a layer: 4C, 4HD for q, k, v and the output, 3F; and 32 row sums in float32.
    layer = 2 * (4 * 4096 + 4 * 4096 + 3 * 11_008) + 4 * 32
    head = 2 * 2 * 4096 + 4 * 32_000
    assert layer == 131_712
    assert Plan(SEVEN, gpus=8).memory()["activations"] == 4096 * (32 * layer + head)
    assert Plan(SEVEN, gpus=8, micro_batch=2, seq_len=1024).memory()["activations"] == 2048 * (32 * layer + head)
    recomputed = Plan(SEVEN, gpus=8, recompute=True).memory()["activations"]
    assert recomputed == 4096 * (32 * 2 * 4096 + max(layer, head))


def test_tensor_parallel_divides_matrices_and_not_norms():
    norms = 65 * 4096
    memory = Plan(SEVEN, gpus=8, tensor=4, zero=1).memory()
    parameters = (6_738_415_616 - norms) / 4 + norms
    assert memory["weights"] == 2 * parameters
    assert memory["optimizer state"] == 12 * parameters / 2  # two ranks
    layer = 2 * (4 * 4096 + (4 * 4096 + 3 * 11_008) / 4) + 32
    assert memory["activations"] == 4096 * (32 * layer + 2 * 2 * 4096 + 4 * 32_000 / 4)


def test_recomputation_takes_a_third_longer():
    run = Plan(SEVEN, gpus=8)
    assert replace(run, recompute=True).gpu_hours == pytest.approx(run.gpu_hours * 4 / 3, rel=1e-12)


def test_fp32_has_the_lower_peak():
    run = Plan(SEVEN, gpus=8)
    assert replace(run, precision="fp32").tokens_per_second == pytest.approx(run.tokens_per_second * 19.5 / 312)


def test_the_smallest_tensor_degree_that_fits():
    run = plan.smallest_tensor(PRESETS["llama2-70b"], 2048)
    assert run.fits()
    assert (run.tensor, run.ranks, run.accumulation) == (8, 256, 4)
    assert not Plan(PRESETS["llama2-70b"], 2048, tensor=4).fits()
    assert plan.smallest_tensor(SEVEN, 8).tensor == 1


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "plan gpus = 0: expected at least 1"),
        ({"zero": 4}, "ZeRO stage 4: expected 0, 1, 2 or 3"),
        ({"precision": "fp8"}, "precision 'fp8': expected one of bf16, fp32"),
        ({"mfu": 0.0}, "MFU 0: expected a share"),
        ({"mfu": 1.01}, "MFU 1.01: expected a share"),
        ({"seq_len": 4097}, "sequences of 4,097 tokens: the model's context is 4,096"),
        ({"tensor": 3, "gpus": 3}, "tensor parallel over 3: n_heads 32 is no multiple"),
        ({"tensor": 8, "gpus": 12}, "12 GPUs are no multiple of the 8 that share each matrix"),
        (
            {"gpus": 3, "micro_batch": 2},
            "a batch of 4,194,304 tokens does not divide into 3 ranks × micro-batches of 2 × 4,096 tokens: "
            "expected a multiple of 24,576",
        ),
    ],
)
def test_divisions_that_do_not_come_out_even(options, message):
    with pytest.raises(UsageError) as error:
        Plan(SEVEN, **{"gpus": 8, **options})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "options", "largest", "cure"),
    [
        ("llama2-7b", {"gpus": 8, "zero": 0}, "optimizer state, 80.9 GB", {"zero": 1}),
        ("llama2-70b", {"gpus": 64, "micro_batch": 4, "tensor": 8}, "activations, 121.0 GB", {"micro_batch": 1}),
        ("llama2-7b", {"gpus": 1}, "optimizer state, 80.9 GB", {"gpus": 2, "zero": 2}),
    ],
)
def test_what_does_not_fit_is_told_what_would(name, options, largest, cure):
    run = Plan(PRESETS[name], **options)
    with pytest.raises(UsageError, match=r"^does not fit: a GPU needs [\d.]+ GB and A100-80GB has 80 GB; ") as error:
        run.check_memory()
    assert f"most of it is {largest}" in str(error.value)
    said = str(error.value).partition("expected ")[2].split("--")[1:]
    assert {option.strip() for option in said} == {f"{name.replace('_', '-')} {value}" for name, value in cure.items()}
    replace(run, **cure).check_memory()  # and so it does


def test_nothing_would_fit():
    gpu = replace(GPUS["a100-80gb"], memory=1e6)
    with pytest.raises(UsageError, match=r"expected a GPU with more memory$"):
        Plan(SEVEN, gpus=8, gpu=gpu).check_memory()


# --- the command


def run(*args: object, columns: str = "80"):
    return CliRunner().invoke(app, ["plan", *map(str, args)], env={"COLUMNS": columns})


def test_the_command_prints_the_plan_within_80_columns():
    result = run("--preset", "llama2-70b", "--gpus", 2048, "--recompute", "--zero", "fsdp")
    assert result.exit_code == 0, result.stderr
    rows = {line[:15].strip(): " ".join(line[15:].split()) for line in result.stdout.splitlines()}
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert rows["parameters"] == "68,976,648,192 bf16"
    assert rows["FLOPs a token"] == "428.39 G 6 a parameter: 413.86 G"
    assert rows["MFU"] == "30.0% what is recomputed not counted"
    assert "1,720,320 in the paper: an MFU of 44.3% on A100s" in " ".join(result.stdout.split())


def test_the_command_takes_a_shape_of_ones_own():
    sizes = ("--dim", 64, "--layers", 2, "--heads", 4, "--kv-heads", 2, "--ffn-dim", 96, "--vocab-size", 512)
    result = run(*sizes, "--gpus", 1, "--tokens", "1e9")
    assert result.exit_code == 0, result.stderr
    own = LlamaConfig(64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=512)
    assert f"{own.param_count():,}" in result.stdout
    assert "for 1,000,000,000 tokens" in result.stdout


def test_the_command_prints_table_2():
    result = run("--table2", "--mfu", 0.4)
    assert max(map(len, result.stdout.splitlines())) <= 80
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    assert ["llama2-34b", "1,038,336", "153.90", "0.4235", "36.1%", "937,287"] in cells


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "plan: expected --preset NAME, or all of --dim, --layers, --heads, --ffn-dim; found neither"),
        (("--preset", "mini", "--dim", 64), "found --preset, --dim"),
        (("--preset", "llama9"), "unknown preset 'llama9': expected one of llama1-7b"),
        (("--preset", "mini", "--gpu", "abacus"), "unknown GPU 'abacus': expected one of a100-40gb"),
        (("--preset", "mini", "--zero", "4"), "--zero 4: expected 0, 1, 2, 3 or fsdp"),
        (("--preset", "llama2-70b", "--gpus", 8), "does not fit: a GPU needs"),
        (("--preset", "mini", "--gpus", 3), "expected a multiple of 3,072"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
