"""Windows: every token a target once an epoch, in an order drawn from (seed, epoch); a batch depends on its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillama.data import tokenize
from minillama.errors import MinillamaError, UsageError
from minillama.training.batches import Windows, in_order
from tests.corpus.texts import stories, text_file, tokenizer


def split_of(count: int) -> Any:
    """`count` tokens, each its own position: which token stands where is then plain to see."""
    return np.arange(count)


def epoch_targets(windows: Windows, epoch: int) -> np.ndarray:
    """The targets of one epoch, in the order in which they come, whatever the batch size."""
    first, size = epoch * windows.windows_per_epoch, windows.batch_size
    rows = range(first, first + windows.windows_per_epoch)
    return np.concatenate([windows.batch(row // size)["targets"][row % size] for row in rows])


def cases(count: int) -> list[tuple[int, int, int, int]]:
    """(tokens, T, B, seed) by chance, sizes of 1 among them."""
    rng = np.random.default_rng(0)
    drawn = [(2, 1, 1, 0), (3, 1, 1, 1), (3, 2, 1, 0), (8, 4, 3, 0), (9, 4, 1, 0), (13, 12, 5, 2)]
    while len(drawn) < count:
        tokens = int(rng.integers(2, 200))
        drawn.append((tokens, int(rng.integers(1, tokens)), int(rng.integers(1, 9)), int(rng.integers(1000))))
    return drawn


CASES = cases(60)


@pytest.mark.parametrize(("tokens", "seq_len", "batch_size", "seed"), CASES)
def test_every_token_is_a_target_once_an_epoch(tokens: int, seq_len: int, batch_size: int, seed: int) -> None:
    windows = Windows(split_of(tokens), seq_len, batch_size, seed)
    left_over = tokens % seq_len
    seen = np.zeros(tokens, int)
    for epoch in range(4):
        targets = epoch_targets(windows, epoch)
        assert len(targets) == len(set(targets.tolist())) == tokens - left_over  # none twice, fewer than T left over
        seen[targets] += 1
        assert seen.max() - seen.min() <= 1  # those that were left over came before any came once more
    if left_over == 0:
        np.testing.assert_array_equal(seen, 4)


@pytest.mark.parametrize(("tokens", "seq_len", "batch_size", "seed"), CASES)
def test_a_target_is_the_token_that_follows(tokens: int, seq_len: int, batch_size: int, seed: int) -> None:
    windows = Windows(split_of(tokens), seq_len, batch_size, seed)
    for step in range(windows.steps_per_epoch + 2):
        batch = windows.batch(step)
        assert batch.keys() == {"tokens", "targets"}
        for name in batch:
            assert batch[name].shape == (batch_size, seq_len)
            assert batch[name].dtype == np.int64
            assert batch[name].flags.c_contiguous
        np.testing.assert_array_equal(batch["targets"], (batch["tokens"] + 1) % tokens)
        np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


@pytest.mark.parametrize(("tokens", "seq_len", "batch_size", "seed"), CASES)
def test_a_batch_depends_on_its_step_alone(tokens: int, seq_len: int, batch_size: int, seed: int) -> None:
    split = split_of(tokens)
    one_by_one = Windows(split, seq_len, batch_size, seed)
    expected = [one_by_one.batch(step) for step in range(12)]
    jumping = Windows(split, seq_len, batch_size, seed)
    for step in np.random.default_rng(seed).permutation(12).tolist():
        for name in expected[step]:
            np.testing.assert_array_equal(jumping.batch(step)[name], expected[step][name])
            np.testing.assert_array_equal(
                Windows(split, seq_len, batch_size, seed).batch(step)[name], expected[step][name]
            )


def test_batches_of_other_sizes_hold_the_same_rows_in_the_same_order() -> None:
    rows = {size: Windows(split_of(1000), 7, size, 3) for size in (1, 4, 8)}
    one = np.concatenate([rows[1].batch(step)["tokens"] for step in range(320)])
    for size in (4, 8):
        np.testing.assert_array_equal(np.concatenate([rows[size].batch(s)["tokens"] for s in range(320 // size)]), one)


def test_epochs_and_seeds_differ() -> None:
    windows = Windows(split_of(4000), 10, 8, seed=1)
    first, second = (epoch_targets(windows, epoch) for epoch in (0, 1))
    assert set(first.tolist()) == set(second.tolist())
    assert (first != second).mean() > 0.9
    other = epoch_targets(Windows(split_of(4000), 10, 8, seed=2), 0)
    assert (first != other).mean() > 0.9
    np.testing.assert_array_equal(first, epoch_targets(Windows(split_of(4000), 10, 8, seed=1), 0))
    in_place = (first == np.roll(np.arange(4000), -1)).mean()
    assert in_place < 0.1  # shuffled at all


def test_borders_of_the_windows_move_with_the_epoch() -> None:
    windows = Windows(split_of(103), 10, 1)
    starts = [{int(windows.batch(10 * epoch + i)["tokens"][0, 0]) % 10 for i in range(9)} for epoch in range(2)]
    assert starts[0] != starts[1]


def test_steps_per_epoch() -> None:
    assert Windows(split_of(100), 10, 5).steps_per_epoch == 2
    assert Windows(split_of(109), 10, 5).steps_per_epoch == 2
    assert Windows(split_of(110), 10, 5).steps_per_epoch == 3
    assert Windows(split_of(11), 10, 500).steps_per_epoch == 1


def test_a_batch_larger_than_an_epoch() -> None:
    batch = Windows(split_of(21), 10, 7).batch(0)
    assert batch["tokens"].shape == (7, 10)
    assert np.bincount(batch["targets"].ravel(), minlength=21).max() <= 4  # 70 targets of 21 tokens: 3 or 4 each
    assert np.bincount(batch["targets"].ravel(), minlength=21).min() >= 3


def test_a_corpus_that_is_too_short() -> None:
    for count in (0, 1, 9, 10):
        with pytest.raises(MinillamaError, match=rf"sequence length 10: expected more tokens .*, found {count}$"):
            Windows(split_of(count), 10, 1)
    Windows(split_of(11), 10, 1)


@pytest.mark.parametrize("sizes", [(0, 1, 0), (1, 0, 0), (-3, 1, 0), (1, 1, -1)])
def test_sizes_out_of_range(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=r"expected at least 1, 1 and 0$"):
        Windows(split_of(100), *sizes)


@pytest.mark.parametrize(("tokens", "seq_len", "batch_size", "_seed"), CASES)
def test_in_order_goes_over_the_split_once(tokens: int, seq_len: int, batch_size: int, _seed: int) -> None:
    batches = list(in_order(split_of(tokens), seq_len, batch_size))
    counted = np.concatenate([batch["targets"][batch["loss_mask"]] for batch in batches])
    np.testing.assert_array_equal(counted, np.arange(1, tokens))
    before = np.concatenate([batch["tokens"][batch["loss_mask"]] for batch in batches])
    np.testing.assert_array_equal(before, np.arange(tokens - 1))
    for batch in batches[:-1]:
        assert batch["loss_mask"].shape == batch["tokens"].shape == batch["targets"].shape == (batch_size, seq_len)
        assert batch["loss_mask"].all()
    last = batches[-1]
    assert 1 <= len(last["tokens"]) <= batch_size
    assert last["loss_mask"][:-1].all() and last["loss_mask"][-1, 0]
    for name in ("tokens", "targets"):
        np.testing.assert_array_equal(last[name][~last["loss_mask"]], 0)


def test_in_order_refuses() -> None:
    for count in (0, 1):
        with pytest.raises(MinillamaError, match=rf"validation: expected at least 2 tokens, found {count}$"):
            in_order(split_of(count), 10, 1)
    with pytest.raises(UsageError, match=r"expected at least 1 each$"):
        in_order(split_of(10), 0, 1)


@pytest.mark.parametrize("shard_tokens", [1, 10, 1 << 20])
def test_on_shards(tmp_path: Path, shard_tokens: int) -> None:
    """Windows lie across the borders of files as anywhere else."""
    path = text_file(tmp_path / "a.txt", stories(20))
    split = tokenize(path, tokenizer(), tmp_path / "data", shard_tokens=shard_tokens, validation=0).train
    in_memory: Any = split[:]
    windows, expected = (Windows(source, 16, 4, 5) for source in (split, in_memory))
    for step in range(2 * windows.steps_per_epoch):
        for name in ("tokens", "targets"):
            np.testing.assert_array_equal(windows.batch(step)[name], expected.batch(step)[name])
    for batch, other in zip(in_order(split, 16, 4), in_order(in_memory, 16, 4), strict=True):
        for name in ("tokens", "targets", "loss_mask"):
            np.testing.assert_array_equal(batch[name], other[name])
