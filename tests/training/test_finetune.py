"""Finetuning: which tokens are learned, what is left out, and that how it is computed changes no number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama import weights
from minillama.chat import ChatTemplate, Dialogue, builtin
from minillama.config import LlamaConfig, preset
from minillama.data.dialogues import ChatExample, find_dialogues
from minillama.errors import MinillamaError, UsageError
from minillama.generate import generate
from minillama.lora import LoraLlama
from minillama.tokenizer import Tokenizer
from minillama.training import finetune
from minillama.training.distributed import SingleProcess
from minillama.training.finetune import Encoded, Finetuning, Job, Recipe, encode, encode_all, recipe
from minillama.training.loop import Options, train
from minillama.training.losses import next_token_loss
from minillama.training.run_folder import RunFolder
from minillama.training.workers import Workers
from tests.training.chats import (
    chatml_tokenizer,
    jsonl,
    lively,
    plain_tokenizer,
    records,
    said,
    saved,
    tags_tokenizer,
)

TURNS = said("Hi Tim", "he ran", "And now", "he is happy", system="Be brief.")


def shown(dialogue: Dialogue, tokenizer: Tokenizer) -> list[str]:
    """Stretches of a dialogue that are learned or not, in turns, as text; what is learned in brackets."""
    stretches: list[str] = []
    before = None
    for token, learned in zip(dialogue.tokens, dialogue.loss_mask, strict=True):
        if learned != before:
            stretches.append("")
        stretches[-1] += tokenizer.piece(token)
        before = learned
    masked = bool(dialogue.loss_mask[0])
    return [f"[{text}]" if i % 2 != masked else text for i, text in enumerate(stretches)]


def example(messages: list[dict[str, str]], *learned: bool) -> ChatExample:
    answers = sum(message["role"] == "assistant" for message in messages)
    return ChatExample(tuple(messages), learned or (True,) * answers, "train")


TEMPLATES = {
    "llama2": (plain_tokenizer, "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi Tim [/INST]", "[ he ran </s>]",
               "<s> [INST] And now [/INST]", "[ he is happy </s>]"),
    "llama2-tags": (tags_tokenizer, "<s>[INST]<<SYS>> Be brief.<</SYS>> Hi Tim[/INST]", "[ he ran</s>]",
                    "<s>[INST] And now[/INST]", "[ he is happy</s>]"),
    "chatml": (chatml_tokenizer,
               "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi Tim<|im_end|>\n<|im_start|>assistant\n",
               "[he ran<|im_end|>]",
               "\n<|im_start|>user\nAnd now<|im_end|>\n<|im_start|>assistant\n", "[he is happy<|im_end|>]"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_their_end_tokens_are_learned_and_nothing_else(name: str) -> None:
    tokenizer, *stretches = TEMPLATES[name]
    dialogue = encode(example(TURNS), builtin(name), tokenizer())
    found = shown(dialogue, tokenizer())
    if name == "chatml":  # its template writes a line break after the last answer too
        assert found.pop() == "\n"
    assert found == stretches
    ends = [t for t, learned in zip(dialogue.tokens, dialogue.loss_mask, strict=True) if learned]
    assert sum(token in tokenizer().stop_ids for token in ends) == 2


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("learned", [(False, True), (True, False), (False, False)])
def test_answers_of_weight_0_are_read_and_not_learned(name: str, learned: tuple[bool, ...]) -> None:
    tokenizer, *_ = TEMPLATES[name]
    whole = encode(example(TURNS), builtin(name), tokenizer())
    part = encode(example(TURNS, *learned), builtin(name), tokenizer())
    assert part.tokens == whole.tokens
    second = max(i for i, token in enumerate(whole.tokens) if not whole.loss_mask[i] and any(whole.loss_mask[i:]))
    expected = [m and learned[i > second] for i, m in enumerate(whole.loss_mask)]
    assert part.loss_mask == expected and sum(expected) < sum(whole.loss_mask)


@pytest.mark.parametrize("name", TEMPLATES)
def test_many_turns_and_the_users_last_word(name: str) -> None:
    """Eight answers, every other of weight 0, then a request without an answer."""
    tokenizer, *_ = TEMPLATES[name]
    texts = [text for i in range(8) for text in (f"ask {i}", f"answer {i}")]
    dialogue = encode(example(said(*texts, "and"), *(i % 2 == 1 for i in range(8))), builtin(name), tokenizer())
    learned = [text for text in shown(dialogue, tokenizer()) if text.startswith("[") and "answer" in text[:10]]
    assert [text.strip("[] ").split("<")[0].strip() for text in learned] == [f"answer {i}" for i in (1, 3, 5, 7)]
    assert not dialogue.loss_mask[-1]


def test_a_mask_that_does_not_show_the_answers_is_an_error() -> None:
    """A template that marks two answers as one cannot say which of them is learned."""
    source = "{% generation %}{% for m in messages %}{{ m['content'] }}{% endfor %}{% endgeneration %}"
    with pytest.raises(MinillamaError, match="expected 2 answers in its loss mask, found 1"):
        encode(example(TURNS, False, True), ChatTemplate.from_source(source), chatml_tokenizer())


class Given:
    """Dialogues that are there already."""

    def __init__(self, *examples: ChatExample) -> None:
        self.all = examples

    def examples(self) -> Any:
        return iter(self.all)

    def identity(self) -> dict[str, Any]:
        return {"given": len(self.all)}


def encoded(*examples: ChatExample, size: int = 100, name: str = "llama2-tags") -> Encoded:
    return encode_all(Given(*examples), builtin(name), TEMPLATES[name][0](), size)


def test_a_dialogue_of_which_nothing_is_learned_is_left_out_and_counted() -> None:
    data = encoded(example(TURNS), example(TURNS, False, False), example(said("Only asked")))
    assert (len(data.train), data.cut, data.empty, data.refused) == (1, 0, 2, 0)
    assert data.notices() == ["2 dialogues left out: no token of theirs is learned"]


def test_too_long_dialogues_are_cut_and_counted() -> None:
    whole = encode(example(TURNS), builtin("llama2-tags"), tags_tokenizer())
    first = whole.loss_mask.index(True)
    length = len(whole.tokens)
    data = encoded(example(TURNS), size=length - 1)
    assert data.train == [whole] and data.cut == 0 and not data.notices()  # it just fits
    data = encoded(example(TURNS), size=length - 2)
    assert data.train == [Dialogue(whole.tokens[:-1], whole.loss_mask[:-1])]
    assert data.notices() == ["1 dialogues are longer than a row: cut there"]
    data = encoded(example(TURNS), size=first)  # one token of the first answer is left
    assert data.train == [Dialogue(whole.tokens[: first + 1], whole.loss_mask[: first + 1])]
    data = encoded(example(said("Hi", "ok")), example(TURNS), size=first - 1)  # and none
    assert (len(data.train), data.cut, data.empty) == (1, 1, 1)


def test_dialogues_that_the_template_cannot_hold_are_left_out_with_the_first_place(tmp_path: Path) -> None:
    lines = [
        {"messages": said("Hi", "Hello")},
        {"messages": [*said("Hi", "Hello"), *said("x", "again")[1:]]},
        {"messages": said("What is [INST]?", "A tag.")},
        {"messages": said("Half \ud800", "a character")},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = encode_all(find_dialogues(path), builtin("llama2"), plain_tokenizer(), 100)
    assert len(data.train) == 1 and data.refused == 3
    (notice,) = data.notices()
    assert notice.startswith(f"3 dialogues left out, the first of them {path}: line 2: ")
    assert "roles" in notice and "\n" not in notice


@pytest.mark.parametrize(
    ("examples", "found"),
    [
        ([], "found none"),
        ([example(TURNS, False, False)], "found 1 of which no token counts"),
        ([example(said("a", "b")[::-1])], "found 1 that the chat template cannot hold (a dialogue: "),
        ([ChatExample(tuple(TURNS), (True, True), "validation")], "found 1 held out"),
    ],
)
def test_nothing_to_learn_is_one_line(examples: list[ChatExample], found: str) -> None:
    with pytest.raises(MinillamaError) as error:
        encoded(*examples)
    assert str(error.value).startswith("nothing to learn: expected dialogues to train on, ")
    assert found in str(error.value) and "\n" not in str(error.value)


def test_the_request_shown_is_the_first_that_is_held_out() -> None:
    held_out = ChatExample(tuple(TURNS), (False, True), "validation")
    another = ChatExample(tuple(said("c", "d")), (True,), "validation")
    data = encoded(example(said("a", "b")), held_out, another)
    assert data.request == TURNS[:2] and len(data.validation) == 2
    assert encoded(example(said("a", "b"))).request == []


# The stage


def stage(data: Encoded, **options: Any) -> Finetuning:
    settings: dict[str, Any] = {"size": 100, "batch_size": 4, "epochs": 2, "threads": 1}
    return Finetuning(data, **settings | options)


def several(count: int = 24) -> Encoded:
    examples = [ChatExample(tuple(r["messages"]), (True,) * (len(r["messages"]) // 2), "train") for r in records(count)]
    examples[3] = ChatExample(examples[3].messages, examples[3].learned, "validation")
    examples[8] = ChatExample(examples[8].messages, examples[8].learned, "validation")
    return encoded(*examples)


def test_the_weight_of_a_batch_is_its_learned_tokens() -> None:
    data = several()
    found = stage(data, epochs=1)
    weights = [found.weight(found.batch(step)) for step in range(found.batches.steps)]
    assert sum(weights) == sum(sum(dialogue.loss_mask) for dialogue in data.train)


@pytest.mark.parametrize(
    ("packing", "threads", "rows"), [("packed", 1, 1), ("packed", 2, 2), ("concatenated", 2, 1), ("none", 1, 2)]
)
def test_threads_and_micro_batches_change_no_loss(packing: Any, threads: int, rows: int) -> None:
    """Nor a gradient; a piece may be of rows of which nothing counts."""
    data = several()
    data.train.extend(data.train[:1])
    model = lively(tags_tokenizer(), np.float64)
    found = stage(data, packing=packing)
    for step in (0, found.batches.steps // 2 - 1):
        batch = found.batch(step)
        weight = found.weight(batch)
        loss, grads = found.loss(model, batch, weight)
        workers = Workers(model, threads)
        total, flat = workers.gradients(found.loss, batch, weight, rows)
        assert total == pytest.approx(float(loss), rel=1e-9)
        expected = np.concatenate([grads[name].ravel() for name in model.trained])
        np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-9)


def test_recomputing_changes_no_loss() -> None:
    model, data = lively(tags_tokenizer(), np.float64), several()
    first, again = (stage(data, recompute=recompute) for recompute in (False, True))
    batch = first.batch(0)
    (loss, grads), (loss_again, grads_again) = (s.loss(model, batch, s.weight(batch)) for s in (first, again))
    assert float(loss_again) == pytest.approx(float(loss), rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_again[name], grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_validation_is_the_mean_over_the_learned_tokens_that_are_held_out(threads: int) -> None:
    model, data = lively(tags_tokenizer(), np.float64), several()
    measures = stage(data, threads=threads).validate(model)
    nats, count = 0.0, 0
    for dialogue in data.validation:
        tokens = np.array([dialogue.tokens])
        mask = np.array([dialogue.loss_mask[1:]])
        nats += float(next_token_loss(model, tokens[:, :-1], tokens[:, 1:], loss_mask=mask, count=1.0)[0])
        count += int(mask.sum())
    assert measures == {"loss": pytest.approx(nats / count), "perplexity": pytest.approx(math.exp(nats / count))}
    assert stage(encoded(example(TURNS))).validate(model) == {}


def test_a_sample_is_the_greedy_answer_to_the_request_shown() -> None:
    model, data, tokenizer, template = lively(tags_tokenizer()), several(), tags_tokenizer(), builtin("llama2-tags")
    tokens = template.encode(data.request, tokenizer).tokens
    room = model.config.max_seq_len - len(tokens)
    (answer,) = generate(
        model, [tokens], max_new_tokens=min(80, room), stop_ids=tokenizer.stop_ids, tokenizer=tokenizer
    )
    found = stage(data, show=(template, tokenizer)).sample(model)
    assert found == f"{data.request[-1]['content']} → {answer.text}"
    assert stage(data).sample(model) is None
    crowded = Encoded(data.train, data.validation, said("Hi " * 200), 0, 0)
    assert stage(crowded, show=(template, tokenizer)).sample(model) is None  # no room for an answer


def test_one_step_is_adamw_on_the_gradient_of_the_learned_tokens(tmp_path: Path) -> None:
    """From the loop: the tokens of a user are never targets, so that what follows them alone moves nothing."""
    model = lively(tags_tokenizer())
    before = {name: p.copy() for name, p in model.params.items()}
    data = encoded(example(said("Ann", "Yes")))
    folder = RunFolder(tmp_path)
    with folder.begun({}):
        train(model, stage(data, batch_size=1, epochs=1), Options(1, 0.01, threads=1, weight_decay=0.0), folder, {})
    dialogue = data.train[0]
    tokens = np.array([dialogue.tokens])
    untouched = lively(tags_tokenizer())
    _, grads = next_token_loss(untouched, tokens[:, :-1], tokens[:, 1:], loss_mask=np.array([dialogue.loss_mask[1:]]))
    for name, grad in grads.items():
        moved = model.params[name] - before[name]
        clear = abs(grad) > 1e-5
        assert clear.any() and np.array_equal(np.sign(moved[clear]), -np.sign(grad[clear])), name
        assert not moved[grad == 0].any(), name


# The job


@pytest.mark.parametrize(
    ("config", "lora", "lr"),
    [
        (preset("llama2-7b"), False, 2e-5),
        (preset("llama2-7b"), True, 6e-5),
        (preset("llama2-70b"), False, 2e-5 / 8**0.5),
        (preset("mini"), False, 3e-3),
    ],
)
def test_the_recipe_is_llama_2s_by_width(config: LlamaConfig, lora: bool, lr: float) -> None:
    assert recipe(config, lora) == Recipe(2, 4, 1024, pytest.approx(lr))
    assert recipe(LlamaConfig(16, 1, 2, 32, vocab_size=9, max_seq_len=77)).size == 77


def test_the_template_is_given_the_models_own_or_what_suits_the_vocabulary() -> None:
    own = builtin("chatml")
    assert finetune.chat_template("llama2", own, tags_tokenizer()) is builtin("llama2")
    assert finetune.chat_template(None, own, tags_tokenizer()) is own
    for name, (tokenizer, *_) in TEMPLATES.items():
        assert finetune.chat_template(None, None, tokenizer()).source == builtin(name).source
    with pytest.raises(UsageError, match="unknown chat template 'x'"):
        finetune.chat_template("x", None, tags_tokenizer())


def job(folder: Path, count: int = 12, **options: Any) -> Job:
    """Of dialogues all of which are trained on: nothing is measured or shown on the way."""
    lines = [{**record, "split": "train"} for record in records(count)]
    source = find_dialogues(jsonl(folder / "d.jsonl", lines))
    base = folder / "base"
    if not base.exists():
        saved(base, tags_tokenizer())
    settings: dict[str, Any] = {"size": 100, "batch_size": 2, "epochs": 2, "lr": 0.02, "threads": 1, "save_every": 99}
    return finetune.job(str(base), source, **settings | options)


def logged(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_threads_and_micro_batches_give_the_same_run(tmp_path: Path) -> None:
    """The losses of a whole run, each of whose updates follows from those before."""
    losses = []
    for number, (threads, rows) in enumerate(((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))):
        folder = RunFolder(tmp_path / f"run{number}")
        finetune.finetune(job(tmp_path, threads=threads, rows=rows, batch_size=4), folder, SingleProcess())
        losses.append(logged(folder.path))
    assert losses[0][-1] < losses[0][0] - 0.1
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=0, atol=1e-6 * losses[0][0])


def test_settings_are_what_the_numbers_depend_on(tmp_path: Path) -> None:
    settings = job(tmp_path).settings()
    same = job(tmp_path, threads=2, rows=3, save_every=7, recompute=True).settings()
    assert same == settings
    for change in (
        {"size": 61},
        {"batch_size": 4},
        {"epochs": 1},
        {"lr": 0.01},
        {"seed": 1},
        {"template": "llama2"},
        {"packing": "none"},
        {"lora": 2},
        {"stage": "gatt"},
    ):
        assert job(tmp_path, **change).settings() != settings, change
    assert job(tmp_path, lora=2).settings() != job(tmp_path, lora=2, lora_alpha=3.0).settings()
    assert job(tmp_path, lora=2).settings()["lora"] == {
        "rank": 2,
        "alpha": 4,
        "targets": ("wq", "wk", "wv", "wo", "w1", "w2", "w3"),
        "also": (),
    }
    assert settings["lora"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "learning rate -1.0: expected a positive number"),
        ({"packing": "tight"}, "packing 'tight': expected one of packed, concatenated, none"),
        ({"size": 129}, "rows of 129 tokens: expected at most the context of 128"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        finetune.finetune(job(tmp_path, **change), RunFolder(tmp_path / "run"), SingleProcess())
    assert not (tmp_path / "run").exists()


def test_an_alpha_without_a_rank(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"LoRA alpha 3\.0: expected a rank with it, found none"):
        job(tmp_path, lora_alpha=3.0)


def test_adapters_alone_are_trained_and_the_base_stays(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tags_tokenizer())
    before = (base / "model.safetensors").read_bytes()
    task = job(tmp_path, lora=3, lr=0.05)
    assert isinstance(task.model, LoraLlama)
    frozen = {name: p.copy() for name, p in task.model.params.items()}
    progress, _ = finetune.finetune(task, RunFolder(tmp_path / "run"), SingleProcess())
    assert all(np.array_equal(p, frozen[name]) for name, p in task.model.params.items())
    assert (base / "model.safetensors").read_bytes() == before
    folder = tmp_path / "run"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "model.safetensors").exists()
    loaded = weights.load(folder)
    assert loaded.chat_template is not None and loaded.tokenizer is not None
    merged = task.model.merged()
    for name, p in loaded.params.items():
        np.testing.assert_allclose(p, merged.params[name], rtol=1e-5, atol=1e-6)
    assert any(abs(p - frozen[name]).max() > 1e-3 for name, p in loaded.params.items())
    losses = logged(folder)
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) and progress.step == len(losses)
