"""Every row of the table of layers against Keras itself: outputs and gradients in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.needs_tensorflow

# A few layers of Keras compute with float32 constants even in float64, and the exported gelu's erf is right to 1.5e-7.
BOUND = 2e-7


def names():
    from tests.model_export.keras_models.pieces import PIECES

    return PIECES


def pytest_generate_tests(metafunc):
    if "piece" in metafunc.fixturenames:
        metafunc.parametrize("piece", sorted(names()))


def test_the_exported_form_of_every_layer_gives_kerass_outputs_and_gradients(piece):
    import keras

    from model_export.keras_graph.agreement import Agreement, judge
    from model_export.keras_graph.examine import Examined, examine

    keras.utils.set_random_seed(5)
    model = names()[piece]()
    rng = np.random.Generator(np.random.PCG64(5))
    for weight in model.weights:
        if "variance" not in weight.path and "seed" not in weight.path:
            weight.assign(weight + rng.normal(0, 0.2, weight.shape))
    examined = examine(model, "mean_squared_error")
    assert isinstance(examined, Examined), examined.lines()
    found = judge(model, examined, rng)
    assert isinstance(found, Agreement), found.lines()
    assert found.forward_error <= BOUND
    assert found.gradient_error <= 2 * BOUND


def test_every_row_of_the_table_is_tried():
    from model_export.keras_graph.examine import examine
    from model_export.keras_graph.table import rules

    tried = set()
    for build in names().values():
        examined = examine(build(), "mean_squared_error")
        tried |= {row.kind for row in examined.rows}
    # InputLayer is no step of a graph, and Masking has a row only to be refused.
    assert set(rules()) - tried == {"InputLayer", "Masking"}


def test_the_table_of_activations_is_tried_whole():
    from model_export.keras_graph import activations
    from tests.model_export.keras_models import pieces

    assert set(pieces.ACTIVATIONS) == set(activations.ACTIVATIONS)


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "elu", "hard_sigmoid", "hard_silu", "selu"])
def test_where_an_activation_bends_its_slope_is_kerass(name):
    import keras
    import tensorflow as tf

    from model_export.keras_graph.activations import ACTIVATIONS

    at = tf.constant([-3.0, -1.0, -0.0, 0.0, 1.0, 3.0, 6.0])
    slopes = []
    for function in (ACTIVATIONS[name], keras.activations.get(name)):
        with tf.GradientTape() as tape:
            tape.watch(at)
            y = function(at)
        slopes.append(np.asarray(tape.gradient(y, at)))
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-6)


def test_of_equal_values_in_a_pooling_window_the_first_gets_the_gradient_as_in_tensorflow():
    import tensorflow as tf

    from model_export.keras_graph.patches import largest, take, window

    x = tf.constant(np.random.Generator(np.random.PCG64(3)).integers(0, 3, (2, 6, 6, 4)).astype(np.float32))
    at = window((6, 6), (3, 3), (2, 2), "same")
    weights = tf.random.stateless_normal((2, 3, 3, 4), (1, 2))
    gradients = []
    for pool in (lambda v: largest(take(v, at, -3e38)), lambda v: tf.nn.max_pool2d(v, 3, 2, "SAME")):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(pool(x) * weights)
        gradients.append(np.asarray(tape.gradient(y, x)))
    np.testing.assert_array_equal(gradients[0], gradients[1])


@settings(max_examples=40, deadline=None)
@given(
    image=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(["valid", "same"]),
    seed=st.integers(0, 99),
)
def test_putting_pieces_back_is_the_transpose_of_taking_them(image, size, strides, dilation, padding, seed):
    """<take(x), p> = <x, put(p)> for every window that fits."""
    import tensorflow as tf

    from model_export.keras_graph.patches import put, take, window

    at = window(image, size, strides, padding, dilation)
    if min(at.places) < 1:
        return
    rng = np.random.Generator(np.random.PCG64(seed))
    x = tf.constant(rng.normal(size=(2, *image, 3)))
    pieces = [tf.constant(rng.normal(size=(2, *at.places, 3))) for _ in at.offsets]
    taken = sum(float(tf.reduce_sum(a * b)) for a, b in zip(take(x, at), pieces, strict=True))
    assert taken == pytest.approx(float(tf.reduce_sum(x * put(pieces, at))), abs=1e-9)
