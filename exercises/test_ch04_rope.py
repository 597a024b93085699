"""Tests of ch04_rope.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch04_rope.py")


def test_rope_frequencies():
    verify(FILE, "rope_frequencies")


def test_rope_rotations():
    verify(FILE, "rope_rotations")


def test_rope():
    verify(FILE, "rope")


def test_rope_backward():
    verify(FILE, "rope_backward")


def test_half_to_interleaved():
    verify(FILE, "half_to_interleaved")


def test_relative_score():
    verify(FILE, "relative_score")


def test_scaled_frequencies():
    verify(FILE, "scaled_frequencies")
