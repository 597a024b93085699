"""The learning rate of each step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from minillama.errors import UsageError
from minillama.training.schedule import CosineSchedule
from tests.training.steps import frozen


@pytest.mark.parametrize("name", ["adamw.npz", "training_steps.npz"])
def test_frozen_rates(name):
    """Those that the references were made with, by a formula of their own."""
    for case in frozen(name).values():
        lrs = case["lrs"]
        schedule = CosineSchedule(lrs[3], steps=10, warmup_steps=3)
        assert [schedule(step) for step in range(10)] == pytest.approx(lrs.tolist(), rel=1e-15)


def test_llama_2_s():
    """Section 2.2: 2,000 steps of warm-up, then a cosine down to a tenth of the peak."""
    schedule = CosineSchedule(3e-4, steps=500_000, warmup_steps=2_000)
    assert schedule(0) == pytest.approx(3e-4 / 2001)
    assert schedule(1_999) == pytest.approx(3e-4 * 2000 / 2001)
    assert schedule(2_000) == 3e-4
    assert schedule(251_000) == pytest.approx(3e-4 * 0.55)  # half way down
    assert schedule(500_000) == pytest.approx(3e-5)
    assert schedule(499_999) == pytest.approx(3e-5, rel=1e-9)


def test_it_rises_then_falls():
    schedule = CosineSchedule(1.0, steps=100, warmup_steps=20, floor=0.25)
    rates = [schedule(step) for step in range(101)]
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert max(rates) == rates[20] == 1.0
    assert rates[100] == pytest.approx(0.25)
    rises = [b - a for a, b in pairwise(rates[:21])]
    assert rises == pytest.approx([1 / 21] * 20)  # a straight line


def test_after_the_end_the_floor_stays():
    schedule = CosineSchedule(1.0, steps=10, warmup_steps=2)
    assert schedule(10) == schedule(11) == schedule(1000) == pytest.approx(0.1)
    assert CosineSchedule(1.0, steps=3, warmup_steps=2)(3) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_floor_of_one_is_constant(warmup):
    schedule = CosineSchedule(0.5, steps=9, warmup_steps=warmup, floor=1.0)
    assert [schedule(step) for step in range(warmup, 9)] == [0.5] * (9 - warmup)


def test_no_warm_up_begins_at_the_peak():
    schedule = CosineSchedule(2.0, steps=4, floor=0.0)
    expected = [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    assert [schedule(step) for step in range(4)] == pytest.approx(expected)


def test_only_warm_up():
    schedule = CosineSchedule(1.0, steps=3, warmup_steps=3)
    assert [schedule(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peak": 0.0, "steps": 5}, "learning rate"),
        ({"peak": math.nan, "steps": 5}, "learning rate"),
        ({"peak": math.inf, "steps": 5}, "learning rate"),
        ({"peak": 1.0, "steps": 5, "floor": -0.1}, "floor"),
        ({"peak": 1.0, "steps": 5, "floor": 1.1}, "floor"),
        ({"peak": 1.0, "steps": 5, "warmup_steps": 6}, "6 warm-up steps"),
        ({"peak": 1.0, "steps": 5, "warmup_steps": -1}, "warm-up"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UsageError, match=words):
        CosineSchedule(**settings)
