"""Tests of ch16_ghost_attention.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch16_ghost_attention.py")


def test_instruct():
    verify(FILE, "instruct")


def test_strip_instruction():
    verify(FILE, "strip_instruction")


def test_last_answer_mask():
    verify(FILE, "last_answer_mask")


def test_answer_loss():
    verify(FILE, "answer_loss")


def test_obeyed_by_turn():
    verify(FILE, "obeyed_by_turn")


def test_distil():
    verify(FILE, "distil")
