"""Pretraining on made-up text: it learns, it repeats, it draws rows as it says."""

import numpy as np
import pytest

from model_export.network import PRESETS, initial_tensors, layout_without_file

pytestmark = pytest.mark.needs_tensorflow

SIZE = PRESETS["tiny"]


@pytest.fixture(scope="module")
def pretraining():
    from model_export import pretraining

    return pretraining


@pytest.fixture(scope="module")
def recipe(pretraining):
    return pretraining.Recipe(steps=300, rows=16, length=12, negatives=64, learning_rate=2e-2, dropout=0.1, seed=3)


def counting_text(length):
    """A stream in which each word has one successor: easy to learn, impossible to guess."""
    return (4 + (np.arange(length) * 7) % 40).astype(np.int32)


@pytest.fixture(scope="module")
def trained(pretraining, recipe):
    losses = []
    sources = [pretraining.Source("text", counting_text(2_000), 1.0)]
    return pretraining.pretrain(SIZE, sources, recipe, lambda step, loss: losses.append(loss)), losses


def test_the_loss_falls_and_the_next_words_are_found(pretraining, trained):
    from model_export.scoring import recall

    tensors, losses = trained
    assert len(losses) == 300
    assert np.mean(losses[-5:]) < losses[0] - 2.0
    evaluate = pretraining.evaluator(SIZE)
    stream = counting_text(400).tolist()
    after = recall(evaluate, SIZE, layout_without_file(SIZE).pack(tensors), [stream])
    fresh = initial_tensors(SIZE, np.random.Generator(np.random.PCG64(3)))
    before = recall(evaluate, SIZE, layout_without_file(SIZE).pack(fresh), [stream])
    assert before.top3 < 10.0
    assert after.top3 > 60.0


def test_one_seed_gives_one_result(pretraining, recipe, trained):
    sources = [pretraining.Source("text", counting_text(2_000), 1.0)]
    again = pretraining.pretrain(SIZE, sources, recipe, lambda step, loss: None)
    for name, value in trained[0].items():
        assert np.array_equal(again[name], value)


def test_rows_come_from_the_sources_in_proportion_and_are_pieces_of_their_text(pretraining, recipe):
    rng = np.random.Generator(np.random.PCG64(1))
    sources = [
        pretraining.Source("even", np.arange(0, 2_000, 2, dtype=np.int32), 0.25),
        pretraining.Source("odd", np.arange(1, 2_001, 2, dtype=np.int32), 0.75),
    ]
    sampler = pretraining.RowSampler(sources, recipe, rng)
    rows = np.concatenate([sampler.draw() for _ in range(60)])
    assert rows.shape == (960, recipe.length + 1)
    assert (np.diff(rows, axis=1) == 2).all()
    assert 0.70 < (rows[:, 0] % 2 == 1).mean() < 0.80


def test_a_source_shorter_than_a_row_is_refused(pretraining, recipe):
    with pytest.raises(ValueError, match="more than 13 ids, got 5 short"):
        pretraining.RowSampler(
            [pretraining.Source("short", np.zeros(5, np.int32), 1.0)], recipe, np.random.default_rng(0)
        )


def test_the_keras_model_is_the_same_network(size, tensors):
    from model_export import reference
    from model_export.keras_network import NextWordModel

    model = NextWordModel(size)
    model.load(tensors)
    tokens = np.random.default_rng(1).integers(0, size.words, (2, 7)).astype(np.int32)
    exact = reference.logits_of(tensors, tokens)
    np.testing.assert_allclose(np.transpose(model(tokens).numpy(), (1, 0, 2)), exact, atol=2e-5)
    for name, value in model.tensors().items():
        assert np.array_equal(value, tensors[name])
