"""Tests of ch20_rounds.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch20_rounds.py")


def test_best_in_pool():
    verify(FILE, "best_in_pool")


def test_pooled():
    verify(FILE, "pooled")


def test_token_logprobs():
    verify(FILE, "token_logprobs")


def test_token_logprobs_backward():
    verify(FILE, "token_logprobs_backward")


def test_dpo_loss():
    verify(FILE, "dpo_loss")


def test_dpo_loss_backward():
    verify(FILE, "dpo_loss_backward")


def test_keys():
    verify(FILE, "keys")
