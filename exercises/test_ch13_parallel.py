"""Tests of ch13_parallel.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch13_parallel.py")


def test_forward_flops():
    verify(FILE, "forward_flops")


def test_state_bytes():
    verify(FILE, "state_bytes")


def test_batch_mean():
    verify(FILE, "batch_mean")


def test_reduce_scatter_step():
    verify(FILE, "reduce_scatter_step")


def test_all_gather_step():
    verify(FILE, "all_gather_step")


def test_all_reduce():
    verify(FILE, "all_reduce")


def test_zero1_step():
    verify(FILE, "zero1_step")
