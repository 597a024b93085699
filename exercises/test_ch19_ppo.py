"""Tests of ch19_ppo.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch19_ppo.py")


def test_kl_k1():
    verify(FILE, "kl_k1")


def test_explained_variance():
    verify(FILE, "explained_variance")


def test_token_rewards():
    verify(FILE, "token_rewards")


def test_gae():
    verify(FILE, "gae")


def test_whiten():
    verify(FILE, "whiten")


def test_policy_loss():
    verify(FILE, "policy_loss")


def test_policy_loss_backward():
    verify(FILE, "policy_loss_backward")


def test_value_loss():
    verify(FILE, "value_loss")


def test_value_loss_backward():
    verify(FILE, "value_loss_backward")


def test_kl_k3():
    verify(FILE, "kl_k3")
