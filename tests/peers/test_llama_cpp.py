"""llama.cpp opens the GGUF that we save, and computes what we compute. Skipped where llama-cpp-python is absent.

The file is F32 and so is llama.cpp's KV cache here: on quantized weights it also quantizes activations, and its logits
then differ from those of the dequantized weights by more than one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import weights
from minillama.generate import generate
from minillama.model import Llama
from minillama.tokenizer import from_llama2c
from tests.data import data_file, smollm2_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

FIXTURES = Path(__file__).parents[1] / "fixtures"
GGML_TYPE_F32 = 0


@pytest.fixture(scope="module", params=["smollm2", "stories260k"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[weights.Checkpoint, Any]:
    """A checkpoint, and llama.cpp on the F32 GGUF that we write of it."""
    if request.param == "smollm2":
        checkpoint = weights.load(smollm2_gguf())
    else:
        checkpoint = weights.load(data_file("weights/stories260K.bin"))
        checkpoint.tokenizer = from_llama2c(data_file("weights/tok512.bin"), checkpoint.config.vocab_size)
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    weights.save(checkpoint, path)
    engine = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=1,  # its threads wait by spinning, which stands still where cores are shared
        logits_all=True,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
    )
    return checkpoint, engine


def prompts(checkpoint: weights.Checkpoint) -> list[list[int]]:
    assert checkpoint.tokenizer is not None
    if checkpoint.config.vocab_size < 1000:
        return [checkpoint.tokenizer.encode(text) for text in ("", "Lily and Tom went to", "The big dog")]
    frozen = json.loads((FIXTURES / "smollm2_prompts.json").read_text(encoding="utf-8"))
    return [prompt["ids"] for prompt in frozen[::3]]  # raw, raw, chat, chat


def test_logits_and_greedy_tokens(pair: tuple[weights.Checkpoint, Any]) -> None:
    checkpoint, engine = pair
    assert checkpoint.tokenizer is not None
    model, eos = Llama(checkpoint.config, checkpoint.params), checkpoint.tokenizer.eos_id
    for ids in prompts(checkpoint):
        engine.reset()
        engine.eval(ids)
        logits = model.logits(model.forward(np.array([ids]))[0])[0]
        np.testing.assert_allclose(engine.scores[: len(ids)], logits, rtol=0, atol=5e-4)
        tokens = [int(engine.scores[len(ids) - 1].argmax())]
        while len(tokens) < 64 and tokens[-1] != eos:
            engine.eval(tokens[-1:])
            tokens.append(int(engine.scores[engine.n_tokens - 1].argmax()))
        (completion,) = generate(model, [ids], max_new_tokens=64, stop_ids={eos})
        assert completion.tokens == tokens


def test_token_ids(pair: tuple[weights.Checkpoint, Any]) -> None:
    """What it reads from the vocabulary that we wrote: the same ids, and the same tokens at the ends."""
    checkpoint, engine = pair
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None
    strings = json.loads((FIXTURES / "smollm2_tokens.json").read_text(encoding="utf-8"))
    if checkpoint.config.vocab_size < 1000:  # llama.cpp falls short of SentencePiece where text is not plain
        strings = [['Once upon a time, Lily\'s mom said: "No!"', None], ["two  spaces", None], ["", None]]
    wrong = [
        text
        for text, _ in strings
        if engine.tokenize(text.encode(), add_bos=False, special=False) != tokenizer.encode(text, bos=False)
    ]
    assert not wrong, f"{len(wrong)} of {len(strings)} differ: {wrong[:5]}"
    assert (engine.token_bos(), engine.token_eos()) == (tokenizer.bos_id, tokenizer.eos_id)
    if checkpoint.chat_template is not None:
        assert engine.metadata["tokenizer.chat_template"] == checkpoint.chat_template.source
