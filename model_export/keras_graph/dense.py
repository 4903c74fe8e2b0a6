"""Dense, Embedding and the layers that are an activation."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from model_export.keras_graph import activations
from model_export.keras_graph.activations import activation_of
from model_export.keras_graph.own_gradient import own_gradient
from model_export.keras_graph.table import Call, Complaint, rule


def product(x: Any, kernel: Any) -> Any:
    """Return x [..., n] times kernel [n, m]; one matrix product over all rows."""
    rows = tf.reshape(x, [-1, x.shape[-1]]) if len(x.shape) > 2 else x
    return _shaped(row_product(rows, kernel), [*x.shape[:-1], kernel.shape[-1]])


def row_product(rows: Any, kernel: Any) -> Any:
    """Return rows [k, n] times kernel [n, m].

    The gradient at the rows is written with a third axis: with two, the converter makes a FULLY_CONNECTED of it, which
    took twice to three times as long with weights that come in as arguments (LiteRT 2.3, x86-64).
    """

    @own_gradient
    def function(rows: Any, kernel: Any) -> tuple[Any, Callable[..., Any]]:
        def gradient(dy: Any) -> tuple[Any, Any]:
            at_rows = tf.matmul(dy[tf.newaxis], kernel[tf.newaxis], transpose_b=True)
            return tf.reshape(at_rows, rows.shape), tf.matmul(rows, dy, transpose_a=True)

        return tf.matmul(rows, kernel), gradient

    return function(rows, kernel)


def _shaped(x: Any, shape: list[int]) -> Any:
    return x if list(x.shape) == shape else tf.reshape(x, shape)


@rule("Dense", "a matrix product")
def dense(call: Call) -> Any:
    y = product(call.x, call.weight(call.layer.kernel))
    if call.layer.use_bias:
        y += call.weight(call.layer.bias)
    return y if call.bare else activation_of(call.layer)(y)


def _embedding_refuses(layer: Any) -> Iterator[Complaint]:
    if layer.input_dim < 2:
        yield f"has two rows or more, got input_dim={layer.input_dim}", "leave it out: one row is a constant"
    if layer.mask_zero:
        yield (
            "mask_zero=True makes later layers skip steps, which the exported graph does not",
            "set mask_zero=False (padding is then learnt like any other id)",
        )


def lookup(table: Any, ids: Any) -> Any:
    """Return table rows by ids of any shape; the gradient adds rows that come twice (SCATTER_ND accumulates)."""

    @own_gradient
    def function(table: Any) -> tuple[Any, Callable[..., Any]]:
        def gradient(dy: Any) -> Any:
            rows = tf.reshape(dy, [-1, table.shape[-1]])
            return tf.scatter_nd(tf.reshape(ids, [-1, 1]), rows, table.shape)

        return tf.gather(table, ids), gradient

    return function(table)


@rule("Embedding", "rows taken by id; the gradient adds up rows that come twice", _embedding_refuses)
def embedding(call: Call) -> Any:
    return lookup(call.weight(call.layer.embeddings), tf.cast(call.x, tf.int32))


@rule("Activation", "its activation; piecewise ones by maximum and comparison")
def activation(call: Call) -> Any:
    return call.x if call.bare else activation_of(call.layer)(call.x)


@rule("ReLU", "maximum and comparison")
def relu_layer(call: Call) -> Any:
    layer = call.layer
    return activations.relu(float(layer.negative_slope), layer.max_value, float(layer.threshold))(call.x)


@rule("LeakyReLU", "maximum and comparison")
def leaky_relu_layer(call: Call) -> Any:
    return activations.leaky_relu(float(call.layer.negative_slope))(call.x)


@rule("ELU", "maximum, exponential and comparison")
def elu_layer(call: Call) -> Any:
    return activations.elu(float(call.layer.alpha))(call.x)


@rule("PReLU", "maximum, minimum and a product")
def prelu_layer(call: Call) -> Any:
    return activations.relu()(call.x) - call.weight(call.layer.alpha) * activations.relu()(-call.x)


def _softmax_refuses(layer: Any) -> Iterator[Complaint]:
    if layer.axis not in (-1, [-1], (-1,)):
        yield f"the softmax runs along the last axis, got axis={layer.axis}", "permute first and use axis=-1"


@rule("Softmax", "a softmax along the last axis", _softmax_refuses)
def softmax_layer(call: Call) -> Any:
    return call.x if call.bare else activations.softmax(call.x)
