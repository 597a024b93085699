"""Tests of ch11_pretraining.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch11_pretraining.py")


def test_nats_per_byte():
    verify(FILE, "nats_per_byte")


def test_perplexity():
    verify(FILE, "perplexity")


def test_window():
    verify(FILE, "window")


def test_windows_of_step():
    verify(FILE, "windows_of_step")


def test_diverged_at():
    verify(FILE, "diverged_at")


def test_fit_power_law():
    verify(FILE, "fit_power_law")
