"""Tokenizers and chat templates as transformers reads them from the folders that we write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from minillama.chat import LLAMA2, ChatTemplate, builtin
from minillama.tokenizer import Tokenizer, from_folder, from_gguf, from_llama2c, from_sentencepiece, train
from tests.data import data_file, smollm2_gguf
from tests.dialogues import BENIGN
from tests.tokenizer.models import byte_level_fields, trained_sentencepiece
from tests.tokenizer.test_training import STORY
from tests.tokenizer.texts import TEXTS, random_texts

TEXTS_HERE = TEXTS + random_texts(400, seed=7)
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2}


def _smollm2() -> tuple[Tokenizer, ChatTemplate]:
    import gguf

    fields = gguf.GGUFReader(smollm2_gguf()).fields
    values = {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}
    return from_gguf(values), ChatTemplate.from_source(values["tokenizer.chat_template"])


MAKERS = {
    "llama2": lambda: (from_sentencepiece(data_file("weights/llama2_32k.model")), LLAMA2),
    "tok512.model": lambda: (from_sentencepiece(data_file("weights/tok512.model")), LLAMA2),
    "tok512.bin": lambda: (from_llama2c(data_file("weights/tok512.bin"), 512), LLAMA2),
    "smollm2": _smollm2,
    "trained": lambda: (from_sentencepiece(trained_sentencepiece()), LLAMA2),
    "our settings": lambda: (train([STORY, *TEXTS], 600), LLAMA2),
    "symbols": lambda: (from_sentencepiece(trained_sentencepiece(user_defined_symbols="<sep>")), LLAMA2),
    **{
        pre: lambda pre=pre: (from_gguf(byte_level_fields(pre)), builtin("chatml"))
        for pre in ("gpt-2", "llama-bpe", "qwen2", "tekken", "default")
    },
}


@pytest.fixture(scope="module", params=MAKERS)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, ChatTemplate, Any]:
    """Our tokenizer and template read back from a folder, and transformers' reading of the same folder."""
    tokenizer, template = MAKERS[request.param]()
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    template.save(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": tokenizer.vocab_size}))
    read, shipped = from_folder(folder), ChatTemplate.from_folder(folder)
    assert read is not None
    assert shipped is not None
    return read, shipped, transformers.AutoTokenizer.from_pretrained(folder)


def test_ids(opened: tuple[Tokenizer, ChatTemplate, Any]) -> None:
    tokenizer, _, theirs = opened
    for text in TEXTS_HERE:
        assert theirs(text)["input_ids"] == tokenizer.encode(text, allow_special=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_ids_of_plain_text(opened: tuple[Tokenizer, ChatTemplate, Any]) -> None:
    tokenizer, _, theirs = opened
    for text in TEXTS_HERE:
        assert theirs(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text)


def test_text(opened: tuple[Tokenizer, ChatTemplate, Any]) -> None:
    tokenizer, _, theirs = opened
    for text in TEXTS_HERE:
        ids = tokenizer.encode(text)
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_dialogues(opened: tuple[Tokenizer, ChatTemplate, Any]) -> None:
    tokenizer, template, theirs = opened
    for dialogue in BENIGN:
        asks = dialogue[-1]["role"] == "user"
        ids = theirs.apply_chat_template(dialogue, add_generation_prompt=asks, tokenize=True, return_dict=False)
        assert template.encode(dialogue, tokenizer, add_generation_prompt=asks).tokens == ids


GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
)


def test_masks_of_generation_tags(tmp_path: Path) -> None:
    tokenizer, _ = _smollm2()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    template = ChatTemplate.from_source(GENERATION)
    for dialogue in BENIGN:
        # transformers counts a token that also holds the newline before an answer; we only count the answer's own.
        if any(m["role"] == "assistant" and (not m["content"] or m["content"][0].isspace()) for m in dialogue):
            continue
        expected = theirs.apply_chat_template(
            dialogue, chat_template=GENERATION, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ours = template.encode(dialogue, tokenizer, add_generation_prompt=False)
        assert ours.tokens == expected["input_ids"]
        assert ours.loss_mask == [bool(m) for m in expected["assistant_masks"]]
