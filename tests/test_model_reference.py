"""Loss and every gradient of whole models against PyTorch's autograd, frozen by fixtures/make_model_gradients.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minillama.config import LlamaConfig, RopeScaling
from tests.reference import gradient_errors, loss_and_gradients, relative_error

CASES = sorted((Path(__file__).parent / "fixtures" / "model_gradients").glob("*.npz"))
# The worst entry of a tensor in units of its largest one: see `relative_error` and `gradient_errors`.
TOLERANCE = {np.float64: 1e-9, np.float32: 2e-5}


def read(path: Path) -> tuple[LlamaConfig, dict[str, dict[str, np.ndarray]]]:
    """The config, and the arrays of one case by group: batch, param, grad and expected."""
    groups: dict[str, dict[str, np.ndarray]] = {"batch": {}, "param": {}, "grad": {}, "expected": {}}
    with np.load(path) as file:
        for key in file.files:
            group, _, name = key.rpartition("/")
            groups[group or "expected"][name] = file[key]
    fields = json.loads(str(groups["expected"].pop("config")))
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    return LlamaConfig(**fields), groups


def test_the_cases_are_all_there() -> None:
    configs = {path.stem: read(path)[0] for path in CASES}
    assert len(configs) == 14
    ratios = {(c.n_heads // c.n_kv_heads, c.n_kv_heads == 1) for c in configs.values()}
    assert ratios >= {(1, False), (2, False), (3, True)}  # MHA, GQA, MQA
    assert {c.tie_embeddings for c in configs.values()} == {True, False}
    kinds = {c.rope_scaling.kind for c in configs.values() if c.rope_scaling is not None}
    assert kinds == {"linear", "ntk", "llama3"}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_loss_and_every_gradient(path: Path, dtype: type) -> None:
    config, groups = read(path)
    params = {name: p.astype(dtype) for name, p in groups["param"].items()}
    batch, expected = groups["batch"], groups["expected"]
    loss, hidden, logits, grads = loss_and_gradients(config, params, **batch)
    real = batch.get("mask", np.ones(batch["tokens"].shape, bool))  # what a padded position holds means nothing
    assert loss == pytest.approx(float(expected["loss"]), rel=TOLERANCE[dtype])
    assert relative_error(hidden[real], expected["hidden"][real]) <= TOLERANCE[dtype]
    assert relative_error(logits[real], expected["logits"][real]) <= TOLERANCE[dtype]
    assert grads.keys() == config.param_shapes().keys()
    assert {grad.dtype for grad in grads.values()} == {np.dtype(dtype)}
    errors = gradient_errors(grads, groups["grad"])
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE[dtype], worst


def test_garbage_in_padding_changes_no_number() -> None:
    (path,) = (p for p in CASES if p.stem == "gqa_tied_padded")
    config, groups = read(path)
    batch = groups["batch"]
    other = batch | {"tokens": np.where(batch["mask"], batch["tokens"], (batch["tokens"] + 1) % config.vocab_size)}
    assert not np.array_equal(other["tokens"], batch["tokens"])
    loss, hidden, _, grads = loss_and_gradients(config, groups["param"], **batch)
    other_loss, other_hidden, _, other_grads = loss_and_gradients(config, groups["param"], **other)
    assert loss == other_loss
    np.testing.assert_array_equal(hidden[batch["mask"]], other_hidden[batch["mask"]])
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, other_grads[name], err_msg=name)
