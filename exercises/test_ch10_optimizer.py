"""Tests of ch10_optimizer.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch10_optimizer.py")


def test_learning_rate():
    verify(FILE, "learning_rate")


def test_clip_by_global_norm():
    verify(FILE, "clip_by_global_norm")


def test_decayed():
    verify(FILE, "decayed")


def test_moments():
    verify(FILE, "moments")


def test_adamw_update():
    verify(FILE, "adamw_update")


def test_accumulate():
    verify(FILE, "accumulate")


def test_largest_update():
    verify(FILE, "largest_update")
