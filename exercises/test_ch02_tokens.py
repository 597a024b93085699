"""Tests of ch02_tokens.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch02_tokens.py")


def test_count_pairs():
    verify(FILE, "count_pairs")


def test_merge_pair():
    verify(FILE, "merge_pair")


def test_learn_merges():
    verify(FILE, "learn_merges")


def test_join_by_score():
    verify(FILE, "join_by_score")


def test_encode():
    verify(FILE, "encode")


def test_decode():
    verify(FILE, "decode")


def test_count_words():
    verify(FILE, "count_words")
