"""Tests of ch17_reward_models.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch17_reward_models.py")


def test_accuracy():
    verify(FILE, "accuracy")


def test_rewards():
    verify(FILE, "rewards")


def test_rewards_backward():
    verify(FILE, "rewards_backward")


def test_ranking_loss():
    verify(FILE, "ranking_loss")


def test_ranking_loss_backward():
    verify(FILE, "ranking_loss_backward")


def test_safety_loss():
    verify(FILE, "safety_loss")


def test_safety_loss_backward():
    verify(FILE, "safety_loss_backward")


def test_calibration():
    verify(FILE, "calibration")
