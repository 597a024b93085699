"""stories260K at temperature 0 writes what llama2.c writes, whatever the format it is read from."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillama import weights
from minillama.generate import generate
from minillama.model import Llama
from minillama.tokenizer import from_llama2c
from tests.data import data_file

# What llama2.c's own test (test_all.py) expects of `run stories260K.bin -z tok512.bin -t 0.0 -n 200`.
EXPECTED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to "
    "play with your ball, but I can't find it.\"\n"
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she"
)


@pytest.fixture(scope="module")
def checkpoint() -> weights.Checkpoint:
    """stories260K.bin, with the tokenizer of tok512.bin."""
    loaded = weights.load(data_file("weights/stories260K.bin"))
    loaded.tokenizer = from_llama2c(data_file("weights/tok512.bin"), loaded.config.vocab_size)
    return loaded


def greedy_text(checkpoint: weights.Checkpoint) -> str:
    """200 steps from the empty prompt, which is BOS alone."""
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None
    model = Llama(checkpoint.config, checkpoint.params)
    (completion,) = generate(
        model, [tokenizer.encode("", bos=True)], max_new_tokens=200, stop_ids=tokenizer.stop_ids, tokenizer=tokenizer
    )
    assert len(completion.tokens) == 200
    assert tokenizer.decode(completion.tokens) == completion.text
    return completion.text


def test_legacy_bin(checkpoint: weights.Checkpoint) -> None:
    assert greedy_text(checkpoint) == EXPECTED


def test_version_1_bin(checkpoint: weights.Checkpoint) -> None:
    loaded = weights.load(data_file("weights/stories260K_v1.bin"))
    loaded.tokenizer = checkpoint.tokenizer
    assert greedy_text(loaded) == EXPECTED


@pytest.mark.parametrize(("name", "to"), [("stories", "huggingface"), ("stories.gguf", "gguf")])
def test_converted_with_its_tokenizer(checkpoint: weights.Checkpoint, tmp_path: Path, name: str, to: str) -> None:
    weights.save(checkpoint, tmp_path / name, to=to)
    loaded = weights.load(tmp_path / name)
    assert loaded.format == to
    assert greedy_text(loaded) == EXPECTED


def test_sentencepiece_tokenizer_agrees(checkpoint: weights.Checkpoint) -> None:
    from minillama.tokenizer import from_sentencepiece

    other = from_sentencepiece(data_file("weights/tok512.model"))
    assert checkpoint.tokenizer is not None
    assert other.encode(EXPECTED, bos=True) == checkpoint.tokenizer.encode(EXPECTED, bos=True)
