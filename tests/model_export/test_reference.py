"""The float64 judge itself, held against finite differences and closed forms."""

import numpy as np
import pytest

from model_export import reference
from model_export.network import BATCH, LENGTH, NetworkSize, initial_tensors, layout_without_file

SIZE = NetworkSize(words=300, width=12, cells=90)


def setting(seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    tensors = {name: value.astype(np.float64) for name, value in initial_tensors(SIZE, rng).items()}
    tensors["embedding"] *= 6
    tokens = rng.integers(0, SIZE.words, (3, 4)).astype(np.int32)
    targets = rng.integers(0, SIZE.words, (3, 4)).astype(np.int32)
    weights = (rng.random((3, 4)) > 0.3).astype(np.float64)
    mask = (rng.random((4, SIZE.width, 3)) > 0.4) / 0.6
    return rng, tensors, tokens, targets, weights, mask


@pytest.mark.parametrize("name", list(SIZE.tensor_shapes))
def test_the_gradient_is_the_slope_of_the_loss(name):
    rng, tensors, tokens, targets, weights, mask = setting(1)
    direction = rng.normal(size=tensors[name].shape)
    slope = (reference.gradient(tensors, tokens, targets, weights, mask).tensors[name] * direction).sum()
    step = 1e-5

    def loss_at(distance):
        moved = {**tensors, name: tensors[name] + distance * direction}
        return reference.gradient(moved, tokens, targets, weights, mask).loss

    assert slope == pytest.approx((loss_at(step) - loss_at(-step)) / (2 * step), rel=1e-6)


def test_over_all_words_the_sampled_gradient_is_the_exact_one():
    _, tensors, tokens, targets, weights, mask = setting(2)
    everything = np.arange(SIZE.words, dtype=np.int32)
    exact = reference.gradient(tensors, tokens, targets, weights, mask)
    sampled = reference.sampled_gradient(tensors, tokens, everything, np.zeros(SIZE.words), targets, weights, mask)
    embedding = sampled.tensors["embedding"].copy()
    np.add.at(embedding, tokens.T.reshape(-1), sampled.input_rows)
    assert sampled.loss == pytest.approx(exact.loss)
    np.testing.assert_allclose(embedding, exact.tensors["embedding"], atol=1e-14)


def test_weights_of_zero_everywhere_give_the_uniform_loss():
    _, tensors, tokens, targets, weights, mask = setting(3)
    zero = {name: np.zeros_like(value) for name, value in tensors.items()}
    ones = np.ones_like(weights)
    assert reference.gradient(zero, tokens, targets, ones, mask).loss == pytest.approx(np.log(SIZE.words))


def test_a_context_of_padding_only_is_the_zero_state():
    _, tensors, *_ = setting(4)
    logits = reference.context_logits(tensors, np.zeros(LENGTH, np.int32))
    assert np.array_equal(logits, tensors["output_bias"])


def test_synthetic_inputs_follow_the_stated_formula_and_fill_the_ones_column():
    packed = reference.synthetic_train_inputs(SIZE)
    columns = SIZE.width + 2
    rows = packed["output_rows"]
    assert rows.shape == (SIZE.words, columns)
    assert (rows[:, -1] == 1.0).all()
    index = 2 * columns + 3
    assert rows[2, 3] == np.float32(0.05 * ((index * 7919) % 201 - 100) / 100)
    assert packed["kernel_rows"][-1, -1] == np.float32(
        0.05 * (((packed["kernel_rows"].size - 1) * 7919) % 201 - 100) / 100
    )


def test_the_template_loss_is_near_the_uniform_one_and_depends_on_the_size():
    loss = reference.template_loss(SIZE)
    assert abs(loss - np.log(SIZE.words)) < 0.05
    assert loss != reference.template_loss(NetworkSize(words=300, width=12, cells=91))


def test_packing_and_unpacking_are_inverse_for_every_tensor():
    rng = np.random.Generator(np.random.PCG64(9))
    layout = layout_without_file(SIZE)
    vector = rng.normal(size=layout.size).astype(np.float32)
    assert np.array_equal(layout.flatten(layout.unpack(layout.pack(layout.unflatten(vector)))), vector)


def test_synthetic_tokens_are_ordinary_words():
    tokens, targets = reference.synthetic_batch(SIZE.words)
    assert tokens.shape == targets.shape == (BATCH, LENGTH)
    assert min(tokens.min(), targets.min()) >= 4
    assert max(tokens.max(), targets.max()) < SIZE.words
