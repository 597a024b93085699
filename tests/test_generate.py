"""Generation: batches equal single rows, sampling rules, stop rules, streaming, limits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from minillama.errors import UsageError
from minillama.generate import GREEDY, Sampling, draw, generate, sample, stream
from minillama.model import KVCache, Llama
from minillama.training.threads import Threads
from tests.conftest import Arrays
from tests.test_model import TINY, lively, tokens

PROMPTS = [tokens(n, seed=n).tolist() for n in (9, 4, 1)]


class Letters:
    """A tokenizer of single bytes, as far as generation needs one: token i is the byte chr(97 + i)."""

    bos_id = None
    drops_first_space = False

    def __init__(self, pieces: dict[int, bytes] | None = None) -> None:
        self.pieces = pieces or {}

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.pieces.get(i, bytes([97 + i])) for i in ids)


def choosing(order: list[int]) -> Llama:
    """A model that writes `order`, token after token: each token's embedding points to its successor alone."""
    model = lively(TINY)
    params = {name: p * 0 if "attention.w" in name or "feed_forward" in name else p for name, p in model.params.items()}
    embedding, output = np.zeros((31, 24), np.float32), np.zeros((31, 24), np.float32)
    for place, (now, after) in enumerate(pairwise(order)):
        embedding[now, place] = output[after, place] = 5
    return Llama(TINY, params | {"tok_embeddings.weight": embedding, "output.weight": output})


def greedy_by_full_forward(model: Llama, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(model.logits(model.forward(np.array([text]))[0][0, -1]).argmax()))
    return text[len(prompt) :]


def test_greedy_batch_equals_each_row_without_a_cache() -> None:
    model = lively(TINY)
    batch = generate(model, PROMPTS, max_new_tokens=20)
    for prompt, completion in zip(PROMPTS, batch, strict=True):
        assert completion.tokens == greedy_by_full_forward(model, prompt, 20)
        assert completion.finish_reason == "length"


def test_generation_on_every_library(arrays: Arrays) -> None:
    model = lively(TINY)
    there = Llama(TINY, arrays.put(model.params))
    sampling = Sampling(temperature=0.8, top_p=0.9)
    expected = generate(model, PROMPTS, max_new_tokens=8, sampling=sampling, seed=3)
    assert [c.tokens for c in generate(there, PROMPTS, max_new_tokens=8, sampling=sampling, seed=3)] == [
        c.tokens for c in expected
    ]


def test_same_seed_same_tokens_and_rows_are_independent() -> None:
    model = lively(TINY)
    sampling = Sampling(temperature=1.0)
    first, again, other = (
        [c.tokens for c in generate(model, [PROMPTS[0]] * 3, max_new_tokens=12, sampling=sampling, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[0] != first[1] != first[2]
    alone = generate(model, [PROMPTS[0]], max_new_tokens=12, sampling=sampling, seed=1)
    assert alone[0].tokens == first[0]


def test_a_part_of_the_rows_draws_what_it_draws_among_all() -> None:
    model = lively(TINY)
    prompts = [tokens(n, seed=n).tolist() for n in range(1, 9)]
    sampling = Sampling(temperature=1.0)
    among_all = generate(model, prompts, max_new_tokens=8, sampling=sampling, seed=1)
    rows = [5, 2]
    part = list(stream(model, [prompts[row] for row in rows], rows=rows, max_new_tokens=8, sampling=sampling, seed=1))
    for row in rows:
        assert [step.token for step in part if step.row == row] == among_all[row].tokens


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 3, 100])
def test_threads_share_the_prompts_and_change_nothing(count: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillama.generate.GROUP", group)
    model = choosing(list(range(12)))
    prompts = [[0], [3, 4, 5], [8], [1, 2], [9], [2], [1, 2, 3, 4, 5, 6]]
    rules = {"max_new_tokens": 6, "stop_ids": {10}, "tokenizer": Letters({10: b""}), "logprobs": True}
    rows = generate(model, prompts, **rules, threads=Threads(count))
    for row, alone in zip(rows, generate(model, prompts, **rules), strict=True):
        assert (row.tokens, row.text, row.finish_reason) == (alone.tokens, alone.text, alone.finish_reason)
        np.testing.assert_allclose(row.logprobs, alone.logprobs, rtol=0, atol=1e-5)
    bold = Sampling(temperature=1.0)
    many = [tokens(n % 7 + 1, seed=n).tolist() for n in range(20)]
    shared = generate(lively(TINY), many, max_new_tokens=5, sampling=bold, seed=2, threads=Threads(count))
    assert [row.tokens for row in shared] == [
        row.tokens for row in generate(lively(TINY), many, max_new_tokens=5, sampling=bold, seed=2)
    ]
    with pytest.raises(UsageError, match="prompt 1 is empty"):
        generate(model, [[1], []], threads=Threads(count))


def test_a_long_prompt_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TINY)
    whole = generate(model, PROMPTS, max_new_tokens=6)
    monkeypatch.setattr("minillama.generate.PREFILL", 4)
    assert generate(model, PROMPTS, max_new_tokens=6) == whole


def shapes_read(model: Llama, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all that `model` reads from here on."""
    shapes: list[tuple[int, ...]] = []
    forward = model.forward

    def spy(tokens: np.ndarray, **options: KVCache) -> object:
        shapes.append(tokens.shape)
        return forward(tokens, **options)

    monkeypatch.setattr(model, "forward", spy)
    return shapes


def test_many_prompts_go_in_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TINY)
    whole = generate(model, PROMPTS, max_new_tokens=6)
    monkeypatch.setattr("minillama.generate.READ", 14)
    shapes = shapes_read(model, monkeypatch)
    assert generate(model, PROMPTS, max_new_tokens=6) == whole
    assert shapes[:3] == [(3, 4), (3, 4), (3, 1)]
    monkeypatch.setattr("minillama.generate.READ", 1)
    assert generate(model, PROMPTS, max_new_tokens=6) == whole


def test_rows_that_have_ended_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = choosing(list(range(12)))
    shapes = shapes_read(model, monkeypatch)
    rows = generate(model, [[0], [5], [8], [2]], max_new_tokens=20, stop_ids={10})
    assert [len(row.tokens) for row in rows] == [10, 5, 2, 8]
    assert shapes == [(4, 1)] * 2 + [(3, 1)] * 3 + [(2, 1)] * 3 + [(1, 1)] * 2


def test_long_rows_go_in_smaller_groups_and_the_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = choosing(list(range(12)))
    prompts = [[1], [0, 1], [0, 1, 2], [2]]
    shapes = shapes_read(model, monkeypatch)
    generate(model, prompts, max_new_tokens=1, threads=Threads(1))
    assert shapes == [(4, 3)]
    monkeypatch.setattr("minillama.generate.SLOTS", 10)  # of the 11 that they take
    shapes.clear()
    generate(model, prompts, max_new_tokens=1, threads=Threads(1))
    assert shapes == [(2, 3), (2, 1)]


def test_logprobs_are_those_of_the_full_forward() -> None:
    model = lively(TINY)
    sampling = Sampling(temperature=0.7, top_k=5)
    for prompt, completion in zip(
        PROMPTS, generate(model, PROMPTS, max_new_tokens=6, sampling=sampling, logprobs=True), strict=True
    ):
        text = np.array([prompt + completion.tokens])
        logits = model.logits(model.forward(text)[0])[0].astype(np.float64) / 0.7
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected = [logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(completion.tokens)]
        np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=1e-5)
    assert generate(model, PROMPTS[:1], max_new_tokens=2)[0].logprobs == []


def frequencies(sampling: Sampling, probs: list[float], draws: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    logits = np.log(np.array(probs, np.float32))
    return np.bincount([sample(logits, sampling, rng) for _ in range(draws)], minlength=len(probs)) / draws


PROBS = [0.05, 0.4, 0.15, 0.3, 0.1]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBS),
        (Sampling(temperature=0.5), [p * p / sum(q * q for q in PROBS) for p in PROBS]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_k=99), PROBS),
        (Sampling(top_p=0.69), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_p=0.71), [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
        (Sampling(top_p=1e-9), [0, 1, 0, 0, 0]),
        (Sampling(top_p=1.0), PROBS),
        (Sampling(min_p=0.3), [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
        (Sampling(top_k=3, top_p=0.8), [0, 4 / 7, 0, 3 / 7, 0]),  # 0.4 + 0.3 of the 0.85 that top_k left
        (GREEDY, [0, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_sampling_rules_by_frequency(sampling: Sampling, expected: list[float]) -> None:
    observed = frequencies(sampling, PROBS)
    # 4000 draws: four standard deviations of a frequency are at most 0.032; what is excluded must never be drawn
    np.testing.assert_allclose(observed, expected, rtol=0, atol=0.032)
    assert np.all(observed[np.array(expected) == 0] == 0)


def one_row(logits: np.ndarray, sampling: Sampling, uniform: float) -> int:
    """What `draw` does, for one row, rule by rule on a list of candidates that gets shorter."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / sampling.temperature
    candidates = np.arange(len(scaled))
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        candidates = np.argpartition(scaled, -sampling.top_k)[-sampling.top_k :]
    probs = np.exp(scaled[candidates] - scaled[candidates].max())
    probs /= probs.sum()
    if sampling.top_p is not None and sampling.top_p < 1:
        likely = np.flatnonzero(probs >= (1 - sampling.top_p) / len(probs))
        likely = likely[np.argsort(-probs[likely], kind="stable")]
        size = int(np.searchsorted(np.cumsum(probs[likely]), sampling.top_p)) + 1
        candidates, probs = candidates[likely[:size]], probs[likely[:size]]
    if sampling.min_p is not None:
        likely = np.flatnonzero(probs >= sampling.min_p * probs.max())
        candidates, probs = candidates[likely], probs[likely]
    cdf = np.cumsum(probs)
    at = int(np.searchsorted(cdf, uniform * cdf[-1], side="right"))
    return int(candidates[min(at, len(candidates) - 1)])


RULES = [
    GREEDY,
    Sampling(),
    Sampling(0.5),
    Sampling(top_k=50),
    Sampling(top_k=1),
    Sampling(top_p=0.9),
    Sampling(1.3, top_p=0.999999),
    Sampling(top_p=1e-9),
    Sampling(top_p=1.0, min_p=0.0),
    Sampling(min_p=0.1),
    Sampling(min_p=1.0),
    Sampling(0.8, top_k=40, top_p=0.8, min_p=0.05),
]


@pytest.mark.parametrize("sampling", RULES, ids=str)
@pytest.mark.parametrize("spread", [0.1, 1, 8])
def test_many_rows_at_once_draw_what_each_draws_alone(sampling: Sampling, spread: float) -> None:
    """Token for token, ties among the logits included; rows are enough for several blocks."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((300, 1024)) * spread).astype(np.float32)
    logits[::2] = np.round(logits[::2])
    uniforms = rng.random(300)
    uniforms[:4] = 0, 1 - 2**-53, 0, 1 - 2**-53  # the ends of [0, 1)
    expected = [one_row(row, sampling, u) for row, u in zip(logits, uniforms, strict=True)]
    tokens, none = draw(logits, sampling, uniforms)
    assert tokens.tolist() == expected
    assert none is None
    again, scores = draw(logits, sampling, uniforms, logprobs=True)
    assert again.tolist() == expected and scores is not None
    scaled = logits.astype(np.float64) / (sampling.temperature or 1)
    logprobs = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(scores, logprobs[np.arange(300), tokens], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"min_p": -1.0}, "min_p -1.0"),
    ],
)
def test_impossible_sampling(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**fields)


def test_stop_token_ends_a_row_and_the_others_go_on() -> None:
    model = choosing(list(range(12)))
    rows = generate(model, [[0], [5], [8]], max_new_tokens=6, stop_ids={10}, tokenizer=Letters({10: b""}))
    assert [row.tokens for row in rows] == [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10], [9, 10]]
    assert [row.finish_reason for row in rows] == ["length", "stop", "stop"]
    assert [row.text for row in rows] == ["bcdefg", "ghij", "j"]


def test_stop_string_across_tokens_is_cut_and_never_shown() -> None:
    model = choosing(list(range(12)))
    steps = list(stream(model, [[0]], max_new_tokens=10, stop_strings=["efg", "zzz"], tokenizer=Letters()))
    assert [step.text for step in steps] == ["b", "c", "d", "", "", ""]
    assert steps[-1].token == 6 and steps[-1].finish_reason == "stop"


def test_what_was_held_back_is_shown_when_no_stop_string_comes() -> None:
    model = choosing(list(range(12)))
    (row,) = generate(model, [[0]], max_new_tokens=5, stop_strings=["efh"], tokenizer=Letters())
    assert (row.text, row.finish_reason) == ("bcdef", "length")
    (row,) = generate(model, [[0]], max_new_tokens=7, stop_strings=["efh"], tokenizer=Letters())
    assert row.text == "bcdefgh"


def test_streaming_never_gives_half_a_character() -> None:
    """The euro sign in three tokens appears whole; a character that is never completed becomes U+FFFD at the end."""
    model = choosing(list(range(12)))
    euro = Letters({2: b"\xe2", 3: b"\x82", 4: b"\xac"})
    steps = list(stream(model, [[0]], max_new_tokens=5, tokenizer=euro))
    assert [step.text for step in steps] == ["b", "", "", "€", "f"]
    for stop_strings in ((), ("zzz",)):  # decoded at once, and as they come
        for length, text in ((3, "b\ufffd"), (5, "b€f")):
            (row,) = generate(model, [[0]], max_new_tokens=length, tokenizer=euro, stop_strings=stop_strings)
            assert row.text == text


def test_a_full_context_ends_a_row_and_drops_nothing() -> None:
    model = lively(TINY)
    prompts = [tokens(60).tolist(), tokens(3).tolist()]
    long, short = generate(model, prompts, max_new_tokens=10)
    assert (len(long.tokens), long.finish_reason) == (4, "context")
    assert (len(short.tokens), short.finish_reason) == (10, "length")
    assert long.tokens == greedy_by_full_forward(model, prompts[0], 4)
    (endless,) = generate(model, [prompts[1]])
    assert (len(endless.tokens), endless.finish_reason) == (61, "context")


def test_a_chat_goes_on_from_its_cache() -> None:
    """A second prompt that begins with the first and its answer reads only what is new, and answers the same."""
    model = lively(TINY)
    cache = KVCache(TINY, 1, TINY.max_seq_len, like=model.params["norm.weight"])
    first = [step.token for step in stream(model, [PROMPTS[0]], max_new_tokens=5, cache=cache)]
    assert cache.used == len(PROMPTS[0]) + 4
    prompt = PROMPTS[0] + first + PROMPTS[1]
    second = [step.token for step in stream(model, [prompt], max_new_tokens=5, cache=cache)]
    assert second == greedy_by_full_forward(model, prompt, 5)
    with pytest.raises(UsageError, match="nothing to read"):
        list(stream(model, [PROMPTS[0]], max_new_tokens=5, cache=cache))


def test_bad_requests() -> None:
    model = lively(TINY)
    for prompts, kwargs, message in [
        ([], {}, "no prompt"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1] * 64], {}, "64 tokens and leaves no room in the context of 64"),
        ([[1, 99]], {}, "token 99 is not in the vocabulary"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens 0"),
        ([[1]], {"stop_strings": ["x"]}, "need a tokenizer"),
        ([[1]], {"stop_strings": [""], "tokenizer": Letters()}, "stop string is empty"),
    ]:
        with pytest.raises(UsageError, match=message):
            generate(model, prompts, **kwargs)
