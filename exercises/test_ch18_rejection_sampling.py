"""Tests of ch18_rejection_sampling.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch18_rejection_sampling.py")


def test_best():
    verify(FILE, "best")


def test_best_temperature():
    verify(FILE, "best_temperature")


def test_best_of():
    verify(FILE, "best_of")


def test_records():
    verify(FILE, "records")


def test_rank_probabilities():
    verify(FILE, "rank_probabilities")
