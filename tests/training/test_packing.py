"""Dialogues in rows: packed side by side they count as alone, nothing is lost or read twice, no row is too long."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from minillama.chat import Dialogue
from minillama.config import LlamaConfig
from minillama.errors import UsageError
from minillama.model import Llama
from minillama.params import Params, accumulate
from minillama.training.losses import next_token_loss
from minillama.training.packing import PACKINGS, PackedDialogues, Packing, as_batch, pack
from minillama.training.workers import Batch

CONFIG = LlamaConfig(24, 2, 4, 40, vocab_size=31, n_kv_heads=2, max_seq_len=64)
SIZE = 20


def some(*lengths: int, seed: int = 0) -> list[Dialogue]:
    """Dialogues of random tokens, the last of each and about half of the others learned."""
    rng = np.random.default_rng([seed, len(lengths)])
    return [
        Dialogue(rng.integers(1, CONFIG.vocab_size, n).tolist(), [*(rng.random(n - 1) < 0.5).tolist(), True])
        for n in lengths
    ]


def model() -> Llama:
    """Float64, its weights large enough that every token seen matters."""
    llama = Llama.init(CONFIG, 5, np.float64)
    return Llama(CONFIG, {name: p * 8 if p.ndim > 1 else p for name, p in llama.params.items()})


def measured(llama: Llama, batch: Batch, count: float | None = None) -> tuple[float, Params]:
    loss, grads = next_token_loss(
        llama,
        batch["tokens"],
        batch["targets"],
        loss_mask=batch["loss_mask"],
        starts=batch["starts"],
        count=float(batch["loss_mask"].sum()) if count is None else count,
    )
    return float(loss), grads


def alone(llama: Llama, dialogues: list[Dialogue]) -> tuple[float, Params]:
    """Loss and gradients of the dialogues, each run by itself, without any packing."""
    count = float(sum(sum(dialogue.loss_mask[1:]) for dialogue in dialogues))
    total, grads = 0.0, Params()
    for dialogue in dialogues:
        tokens = np.array([dialogue.tokens])
        mask = np.array([dialogue.loss_mask[1:]])
        loss, more = next_token_loss(llama, tokens[:, :-1], tokens[:, 1:], loss_mask=mask, count=count)
        total += float(loss)
        accumulate(grads, more)
    return total, grads


DIALOGUES = some(8, 5, 6, 4, 11, 2, 7, 21)
ROWS = [[0, 1, 2], [3, 4, 5], [6], [7]]


def close(found: tuple[float, Params], expected: tuple[float, Params]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        assert abs(grad).max() > 1e-3, "a gradient of 0 is no test"
        np.testing.assert_allclose(found[1][name], grad, rtol=0, atol=1e-12, err_msg=name)


def test_packed_dialogues_have_the_loss_and_gradients_of_each_alone() -> None:
    close(measured(model(), as_batch(DIALOGUES, ROWS, SIZE)), alone(model(), DIALOGUES))


def test_one_a_row_has_the_same_loss_and_gradients_as_packed() -> None:
    rows = [[i] for i in range(len(DIALOGUES))]
    close(measured(model(), as_batch(DIALOGUES, rows, SIZE, "none")), alone(model(), DIALOGUES))


def test_concatenated_dialogues_see_what_stands_before_them() -> None:
    loss, grads = measured(model(), as_batch(DIALOGUES, ROWS, SIZE, "concatenated"))
    expected, expected_grads = alone(model(), DIALOGUES)
    assert abs(loss - expected) > 0.01
    assert max(abs(grads[name] - grad).max() for name, grad in expected_grads.items()) > 0.01


def test_the_first_dialogue_of_a_concatenated_row_is_as_alone() -> None:
    """And so is the whole of a row that has only one: it is what stands before a dialogue that makes the difference."""
    rows = [[i] for i in range(len(DIALOGUES))]
    close(measured(model(), as_batch(DIALOGUES, rows, SIZE, "concatenated")), alone(model(), DIALOGUES))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_rows_padding_changes_nothing(packing: Packing) -> None:
    """Neither how much there is of it nor what stands in it."""
    rows = [[i] for i in range(len(DIALOGUES))] if packing == "none" else ROWS
    loss, grads = measured(model(), as_batch(DIALOGUES, rows, SIZE, packing))
    longer = as_batch(DIALOGUES, rows, SIZE + 9, packing)
    garbage = as_batch(DIALOGUES, rows, SIZE + 9, packing)
    padding = np.ones_like(garbage["tokens"], bool)
    for row, those in enumerate(rows):
        padding[row, : sum(len(DIALOGUES[i].tokens) - 1 for i in those)] = False
    assert padding[0].any() and not garbage["loss_mask"][padding].any()
    garbage["tokens"][padding] = np.random.default_rng(1).integers(CONFIG.vocab_size, size=padding.sum())
    garbage["targets"][padding] = 7
    for batch in (longer, garbage):
        found, found_grads = measured(model(), batch)
        assert found == pytest.approx(loss, rel=1e-12)
        for name, grad in grads.items():
            np.testing.assert_allclose(found_grads[name], grad, rtol=0, atol=1e-12, err_msg=name)


def test_planted_bugs_are_noticed() -> None:
    """A mask one token off, and starts one place off: the comparison with each alone must fail."""
    for name, shift in (("loss_mask", 1), ("loss_mask", -1), ("starts", None)):
        batch = as_batch(DIALOGUES, ROWS, SIZE)
        if shift is None:
            batch["starts"] = np.maximum(batch["starts"] - 1, 0)
        else:
            batch[name] = np.roll(batch[name], shift, axis=1)
        with pytest.raises(AssertionError):
            close(measured(model(), batch), alone(model(), DIALOGUES))


def test_the_arrays_of_a_batch() -> None:
    """Every entry, by hand."""
    dialogues = [Dialogue([5, 6, 7], [False, True, True]), Dialogue([8, 9, 4, 3], [False, False, False, True])]
    batch = as_batch(dialogues, [[1, 0], [0], []], 7)
    assert batch["tokens"].tolist() == [[8, 9, 4, 5, 6, 0, 0], [5, 6, 0, 0, 0, 0, 0], [0] * 7]
    assert batch["targets"].tolist() == [[9, 4, 3, 6, 7, 0, 0], [6, 7, 0, 0, 0, 0, 0], [0] * 7]
    assert batch["loss_mask"].astype(int).tolist() == [[0, 0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0] * 7]
    assert batch["starts"].tolist() == [[0, 0, 0, 3, 3, 5, 6], [0, 0, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    together = as_batch(dialogues, [[1, 0], [0], []], 7, "concatenated")
    assert together["starts"].tolist() == [[0, 0, 0, 0, 0, 5, 6], [0, 0, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    for name in ("tokens", "targets", "loss_mask"):
        assert np.array_equal(together[name], batch[name])


def test_a_batch_with_masked_rows_has_the_loss_of_the_others() -> None:
    """A row of nothing, and a row of which nothing counts, add nothing; alone they give 0 and never NaN."""
    llama = model()
    masked = Dialogue(DIALOGUES[0].tokens, [False] * len(DIALOGUES[0].tokens))
    batch = as_batch([*DIALOGUES, masked], [*ROWS, [], [len(DIALOGUES)]], SIZE)
    close(measured(llama, batch), alone(llama, DIALOGUES))
    loss, grads = measured(llama, {name: x[-2:] for name, x in batch.items()}, count=1.0)
    assert loss == 0 and not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize("seed", range(5))
def test_first_fit(seed: int) -> None:
    """No row is too long, everything is in one, and a row is opened only where none of the open ones has room."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, SIZE + 1, 300).tolist()
    order = rng.permutation(300).tolist()
    rows = pack(lengths, order, SIZE)
    assert sorted(i for row in rows for i in row) == [*range(300)]
    assert max(sum(lengths[i] for i in row) for row in rows) <= SIZE
    place = {i: number for number, row in enumerate(rows) for i in row}
    room: list[int] = []
    for i in order:  # naively, over all rows that are open
        fits = [r for r in range(max(0, len(room) - 32), len(room)) if room[r] >= lengths[i]]
        if not fits:
            room.append(SIZE)
        assert place[i] == (fits[0] if fits else len(room) - 1)
        room[place[i]] -= lengths[i]
    assert len(rows) < 1.1 * sum(lengths) / SIZE + 1


def test_a_dialogue_as_long_as_a_row_fits() -> None:
    assert pack([SIZE, 1, SIZE], range(3), SIZE) == [[0], [1], [2]]
    assert pack([3, 4, 3, 4, 3], range(5), 7) == [[0, 1], [2, 3], [4]]


def batches(packed: PackedDialogues) -> list[Batch]:
    return [packed.batch(step) for step in range(packed.steps)]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_dialogue_is_read_once_an_epoch(packing: Packing, batch_size: int, epochs: int) -> None:
    """Counted in the arrays: every token that is learned is a target exactly `epochs` times."""
    # Each dialogue is of a token of its own, so that its places can be found again.
    dialogues = [Dialogue([i + 1] * n, [False, *[True] * (n - 1)]) for i, n in enumerate([4, 9, 2, 7, 7, 13, 3, 20, 5])]
    packed = PackedDialogues(dialogues, 19, batch_size, epochs, seed=4, packing=packing)
    found: Counter[int] = Counter()
    for batch in batches(packed):
        assert len(batch["tokens"]) == batch_size and batch["tokens"].shape[1] <= 19
        assert batch["loss_mask"].any()
        found.update(batch["targets"][batch["loss_mask"]].tolist())
    assert found == {i + 1: epochs * (len(dialogue.tokens) - 1) for i, dialogue in enumerate(dialogues)}
    one = PackedDialogues(dialogues, 19, batch_size, 1, seed=4, packing=packing)
    assert packed.rows[: len(one.rows)] == one.rows  # everything comes once before anything comes again
    assert packed.rows.count([]) < batch_size * epochs


def test_each_epoch_has_an_order_of_its_own() -> None:
    packed = PackedDialogues(some(*[6] * 40), SIZE, 1, epochs=2, packing="none")
    assert packed.rows[:40] != packed.rows[40:] and sorted(packed.rows[:40]) == sorted(packed.rows[40:])


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    dialogues = some(*range(2, 20))
    first, same, other = (PackedDialogues(dialogues, SIZE, 2, 2, seed).rows for seed in (3, 3, 4))
    assert first == same != other


def test_a_batch_is_a_pure_function_of_the_step() -> None:
    packed = PackedDialogues(some(*range(2, 20)), SIZE, 2, 2, seed=3)
    again = PackedDialogues(some(*range(2, 20)), SIZE, 2, 2, seed=3)
    first = batches(packed)
    for step in reversed(range(packed.steps)):
        second = again.batch(step)
        for name, x in first[step].items():
            assert np.array_equal(x, second[name]) and not np.shares_memory(x, second[name])


def test_unpacked_rows_are_as_long_as_the_longest_of_their_batch() -> None:
    dialogues = some(3, 8, 5, 20)
    packed = PackedDialogues(dialogues, SIZE, 2, packing="none")
    for step, batch in enumerate(batches(packed)):
        longest = max(len(dialogues[i].tokens) - 1 for row in packed.rows[2 * step : 2 * step + 2] for i in row)
        assert batch["tokens"].shape == (2, longest)


@pytest.mark.parametrize(
    ("dialogues", "arguments", "message"),
    [
        (some(4), (0, 1), "size 0, batch size 1, epochs 1: expected at least 1 each"),
        (some(4), (8, 0), "batch size 0"),
        (some(4), (8, 1, 0), "epochs 0"),
        ([], (8, 1), "no dialogues to learn from: expected at least one"),
        (some(4, 10), (8, 1), "a dialogue of 10 tokens: expected 2 to 9"),
    ],
)
def test_what_cannot_be_packed(dialogues: list[Dialogue], arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PackedDialogues(dialogues, *arguments)


def test_a_dialogue_of_one_token_has_nothing_to_learn() -> None:
    with pytest.raises(UsageError, match="a dialogue of 1 tokens: expected 2 to 9"):
        PackedDialogues([Dialogue([3], [True]), *some(4)], 8, 1)


def test_an_unknown_packing() -> None:
    with pytest.raises(UsageError, match="packing 'tight': expected one of packed, concatenated, none"):
        as_batch(DIALOGUES, ROWS, SIZE, "tight")  # type: ignore[arg-type]
