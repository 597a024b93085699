"""Tests of ch22_measuring.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch22_measuring.py")


def test_correlation():
    verify(FILE, "correlation")


def test_win_points():
    verify(FILE, "win_points")


def test_share():
    verify(FILE, "share")


def test_mean_interval():
    verify(FILE, "mean_interval")


def test_binomial_p():
    verify(FILE, "binomial_p")
