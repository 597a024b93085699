"""Every exercise can be done, is not done by its skeleton, and knows its typical wrong answers when it meets them."""

import re

import numpy as np
import pytest

from minillama import layers
from minillama.config import PRESETS, LlamaConfig, RopeScaling
from minillama.exercises import skeleton
from minillama.exercises.chapter import CHAPTERS, all_chapters, load_chapter
from minillama.exercises.examine import examine
from minillama.exercises.sources import ch02_tokens, ch04_rope, ch08_llama
from minillama.exercises.worker import load_file
from minillama.model import KVCache, Llama
from minillama.tokenizer import from_sentencepiece
from tests.tokenizer.models import trained_sentencepiece
from tests.tokenizer.texts import TEXTS

EXERCISES = [pytest.param(c, e, id=f"{c.code}-{e.name}") for c in all_chapters() for e in c.exercises]
WRONG = [
    pytest.param(c, e, w, id=f"{c.code}-{e.name}-{i}")
    for c in all_chapters()
    for e in c.exercises
    for i, w in enumerate(e.wrong)
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Chapter name and 'skeleton' or 'solved' -> the generated file, loaded as a learner's would be."""
    folder = tmp_path_factory.mktemp("exercises")
    modules = {}
    for chapter in all_chapters():
        for kind, render in (("skeleton", skeleton.skeleton), ("solved", skeleton.solved)):
            path = folder / f"{chapter.name}_{kind}.py"
            path.write_text(render(chapter), encoding="utf-8")
            modules[chapter.name, kind] = (load_file(path), path)
    return modules


@pytest.mark.parametrize(("chapter", "exercise"), EXERCISES)
def test_a_skeleton_is_unwritten(chapter, exercise, written):
    module, path = written[chapter.name, "skeleton"]
    assert examine(exercise, module, chapter.solutions, path).state == "unwritten"
    with pytest.raises(NotImplementedError):
        getattr(module, exercise.name)(**dict.fromkeys(exercise.solution.__code__.co_varnames[: _arguments(exercise)]))


def _arguments(exercise):
    code = exercise.solution.__code__
    return code.co_argcount + code.co_kwonlyargcount


@pytest.mark.parametrize(("chapter", "exercise"), EXERCISES)
def test_a_solution_passes(chapter, exercise, written):
    module, path = written[chapter.name, "solved"]
    verdict = examine(exercise, module, chapter.solutions, path)
    assert (verdict.state, verdict.message) == ("solved", "")


@pytest.mark.parametrize(("chapter", "exercise", "wrong"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(chapter, exercise, wrong):
    own = exercise.answered(chapter.solutions, wrong)
    verdict = examine(exercise, own, chapter.solutions)
    assert verdict.state == "failed"
    assert f"Likely cause: {wrong.cause}" in verdict.message
    assert not re.search("unpack|tuple index", verdict.message), "it misreads the solution's `saved`"


@pytest.mark.parametrize("exercise", [e for c in all_chapters() for e in c.exercises], ids=lambda e: e.name)
def test_an_exercise_has_what_it_needs(exercise):
    assert len(exercise.hints) >= 2
    assert len(exercise.wrong) >= 2
    assert exercise.name == exercise.solution.__name__
    assert re.search(r"[Rr]eturns|->", exercise.solution.__doc__ + exercise.task), "it is said what comes out"
    for wrong in exercise.wrong:
        assert wrong.cause.endswith(".")
        assert "\n" not in wrong.cause


def test_all_three_grades_are_there():
    for chapter in all_chapters():
        assert {exercise.grade for exercise in chapter.exercises} == {"warm-up", "core", "stretch"}


@pytest.mark.parametrize("name", ["ch08", "8", "08", "llama", "ch08_llama", "CH08", "ch08_llama.py"])
def test_a_chapter_has_several_names(name):
    assert load_chapter(name).name == "ch08_llama"


def test_chapters_are_numbered_as_their_files():
    assert [chapter.name for chapter in all_chapters()] == list(CHAPTERS)
    assert [e.number for e in load_chapter("ch04").exercises] == [f"4.{i}" for i in range(1, 8)]


# --- marked solutions do what the package does


def test_param_count_is_the_package_s():
    for config in PRESETS.values():
        assert ch08_llama.param_count(config) == LlamaConfig.param_count(config)


@pytest.mark.parametrize("kind", ["linear", "ntk", "llama3"])
def test_scaled_frequencies_are_the_package_s(kind):
    scaling = RopeScaling(kind, 8.0)
    ours = ch04_rope.scaled_frequencies(layers.rope_frequencies(64, 5e5), scaling)
    np.testing.assert_allclose(ours, layers.rope_frequencies(64, 5e5, scaling), rtol=1e-13)


def test_forward_and_gradients_are_the_package_s():
    config = ch08_llama.TINY
    model = Llama.init(config, dtype=np.float64)
    tokens = np.array([[1, 2, 3, 0], [6, 5, 5, 1]])
    hidden, saved = model.forward(tokens)
    np.testing.assert_array_equal(ch08_llama.forward(tokens, model.params, config), model.logits(hidden))

    x, _ = layers.embedding(tokens, model.params["tok_embeddings.weight"])
    rotations = layers.rope_rotations(np.arange(4), layers.rope_frequencies(config.head_dim), np.float64)
    blocks = []
    for i in range(config.n_layers):
        x, block_saved = ch08_llama.block(x, ch08_llama.block_weights(model.params, i), rotations, config)
        blocks.append(block_saved)
    expected = model.backward(np.ones_like(hidden), saved)
    dx, _ = layers.rmsnorm_backward(np.ones_like(hidden), layers.rmsnorm(x, model.params["norm.weight"], 1e-5)[1])
    for i in reversed(range(config.n_layers)):
        dx, grads = ch08_llama.block_backward(dx, blocks[i])
        for name, grad in grads.items():
            full = next(n for n in expected if n.startswith(f"layers.{i}.") and n.split(".")[-2] == name)
            np.testing.assert_allclose(grad, expected[full], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("count", [None, 8.0])
@pytest.mark.parametrize("mask", [None, np.array([[1, 0, 1], [0, 0, 0]], bool), np.zeros((2, 3), bool)])
def test_loss_in_its_place_is_the_package_s(mask, count):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((2, 3, 5)), rng.integers(0, 5, (2, 3))
    forward = ch08_llama.as_cross_entropy(ch08_llama.cross_entropy)
    backward = ch08_llama.as_cross_entropy_backward(ch08_llama.cross_entropy_backward)
    loss, saved = forward(logits, targets, mask, count=count, overwrite=True)
    expected, expected_saved = layers.cross_entropy(logits.copy(), targets, mask, count=count, overwrite=True)
    assert loss == pytest.approx(float(expected), rel=1e-14)
    for dloss in (1.0, 0.25):
        np.testing.assert_allclose(
            backward(saved, dloss), layers.cross_entropy_backward(expected_saved, dloss), rtol=1e-13, atol=1e-17
        )


def test_tied_gradient_is_the_package_s():
    rng = np.random.default_rng(0)
    dlogits, hidden, dx = rng.standard_normal((1, 4, 7)), rng.standard_normal((1, 4, 3)), rng.standard_normal((1, 4, 3))
    tokens, weight = np.array([[2, 2, 0, 6]]), np.zeros((7, 3))
    expected = layers.linear_backward(dlogits, (hidden, weight))[1] + layers.embedding_backward(dx, (tokens, (7, 3)))
    np.testing.assert_allclose(ch08_llama.tied_gradient(dlogits, hidden, dx, tokens), expected, rtol=1e-13)


def test_cache_positions_are_the_package_s():
    pads = np.array([2, 0, 1])
    cache = KVCache(ch08_llama.TINY, 3, 8, np.zeros(1, np.float32), pads)
    for new in (4, 1, 2):
        used = cache.used
        for ours, theirs in zip(ch08_llama.cache_positions(used, new, pads), cache.extend(new), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_package_s(text):
    tokenizer = from_sentencepiece(trained_sentencepiece())
    ids = {piece.text: i for i, piece in enumerate(tokenizer.pieces) if i >= 259}
    tokens = ch02_tokens.encode(text, ids, {piece: tokenizer.pieces[i].score for piece, i in ids.items()})
    assert tokens == tokenizer.encode(text, bos=False)
    assert ch02_tokens.decode(tokens, [piece.text for piece in tokenizer.pieces]) == tokenizer.decode(tokens)
