"""Tests of ch15_sft.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch15_sft.py")


def test_dialogue():
    verify(FILE, "dialogue")


def test_masked_mean():
    verify(FILE, "masked_mean")


def test_pack():
    verify(FILE, "pack")


def test_seen():
    verify(FILE, "seen")


def test_lora_linear():
    verify(FILE, "lora_linear")


def test_lora_linear_backward():
    verify(FILE, "lora_linear_backward")


def test_merged():
    verify(FILE, "merged")
