"""Tests of ch21_safety.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch21_safety.py")


def test_combine():
    verify(FILE, "combine")


def test_logit():
    verify(FILE, "logit")


def test_under():
    verify(FILE, "under")


def test_kept():
    verify(FILE, "kept")


def test_success_rates():
    verify(FILE, "success_rates")


def test_combined_reward():
    verify(FILE, "combined_reward")
