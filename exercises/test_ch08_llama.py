"""Tests of ch08_llama.py: run them with `pytest exercises/`."""

from pathlib import Path

from minillama.exercises.pytest_support import verify

FILE = Path(__file__).with_name("ch08_llama.py")


def test_param_count():
    verify(FILE, "param_count")


def test_rmsnorm():
    verify(FILE, "rmsnorm")


def test_rmsnorm_backward():
    verify(FILE, "rmsnorm_backward")


def test_block():
    verify(FILE, "block")


def test_block_backward():
    verify(FILE, "block_backward")


def test_cross_entropy():
    verify(FILE, "cross_entropy")


def test_cross_entropy_backward():
    verify(FILE, "cross_entropy_backward")


def test_tied_gradient():
    verify(FILE, "tied_gradient")


def test_cache_positions():
    verify(FILE, "cache_positions")


def test_forward():
    verify(FILE, "forward")
