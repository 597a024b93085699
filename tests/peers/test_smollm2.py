"""SmolLM2-135M live: transformers on the GGUF it dequantizes itself, and on the folder that we save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from minillama import weights
from minillama.generate import generate
from minillama.model import Llama
from tests.data import smollm2_gguf

PROMPTS = [
    "Gravity is the force that",
    "    for (size_t i = 0; i < 10; ++i) {\n",
    "Список дел на завтра: 1)",
    "😀 😀 2 + 2 =",
]
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def checkpoint() -> weights.Checkpoint:
    return weights.load(smollm2_gguf())


@pytest.fixture(scope="module")
def model(checkpoint: weights.Checkpoint) -> Llama:
    return Llama(checkpoint.config, checkpoint.params)


@pytest.fixture(scope="module")
def folder(checkpoint: weights.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "model"
    weights.save(checkpoint, path, to="huggingface")
    return path


@pytest.fixture(scope="module", params=["gguf", "folder"])
def theirs(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    """transformers' model of the original GGUF, or of the folder that we made of it; float32."""
    if request.param == "folder":
        folder = request.getfixturevalue("folder")
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    path = smollm2_gguf()
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
@torch.inference_mode()
def test_logits_and_greedy_text(
    theirs: transformers.PreTrainedModel, model: Llama, checkpoint: weights.Checkpoint, prompt: str
) -> None:
    """Every logit of every position within 2e-4, and the same 64 tokens, unless an answer ends before."""
    assert checkpoint.tokenizer is not None
    ids = checkpoint.tokenizer.encode(prompt)
    expected = theirs(torch.tensor([ids])).logits[0].numpy()
    logits = model.logits(model.forward(np.array([ids]))[0])[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)
    out = theirs.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=2, pad_token_id=2
        ),
    )
    (completion,) = generate(model, [ids], max_new_tokens=NEW_TOKENS, stop_ids={2})
    assert completion.tokens == out[0, len(ids) :].tolist()


def test_the_tokenizer_in_our_folder(folder: Path, checkpoint: weights.Checkpoint) -> None:
    """AutoTokenizer on our folder: ids of plain text, and of a chat by the template that we wrote beside it."""
    assert checkpoint.tokenizer is not None
    assert checkpoint.chat_template is not None
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*PROMPTS, "1234567890 12.5%", "  two  spaces\n\n\ttab", "naïve 中文 ٣٤٥", "don't"]
    for text in texts:
        assert theirs(text)["input_ids"] == checkpoint.tokenizer.encode(text), text
        assert theirs.decode(checkpoint.tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    chat = [{"role": "user", "content": "Hi, 42!"}, {"role": "assistant", "content": "Hello."}]
    chat += [{"role": "user", "content": "And\nnow?"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert checkpoint.chat_template.encode(chat, checkpoint.tokenizer).tokens == expected
