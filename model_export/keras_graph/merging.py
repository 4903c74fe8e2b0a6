"""Layers of several inputs."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from model_export.keras_graph.shaping import axis_of
from model_export.keras_graph.table import Call, Complaint, Use, rule


def _joined(call: Call, join: Any) -> Any:
    first, *rest = call.x
    for value in rest:
        first = join(first, value)
    return first


@rule("Add", "a sum")
def add(call: Call) -> Any:
    return _joined(call, tf.add)


@rule("Subtract", "a difference")
def subtract(call: Call) -> Any:
    return _joined(call, tf.subtract)


@rule("Multiply", "a product")
def multiply(call: Call) -> Any:
    return _joined(call, tf.multiply)


@rule("Average", "a mean")
def average(call: Call) -> Any:
    return _joined(call, tf.add) / len(call.x)


@rule("Maximum", "a maximum")
def maximum(call: Call) -> Any:
    return _joined(call, tf.maximum)


@rule("Minimum", "a minimum")
def minimum(call: Call) -> Any:
    return _joined(call, tf.minimum)


@rule("Concatenate", "side by side")
def concatenate(call: Call) -> Any:
    return tf.concat(list(call.x), axis=axis_of(call.layer.axis, call.x[0]))


def _refuse_dot(layer: Any) -> Iterator[Complaint]:
    axes = layer.axes if isinstance(layer.axes, int) else tuple(layer.axes)
    if axes not in (-1, (-1, -1)) and axes not in (1, (1, 1)):
        yield f"a dot product runs along the last axis of both, got axes={layer.axes}", "permute and use axes=-1"


def _refuse_ranks(use: Use) -> Iterator[Complaint]:
    if any(len(shape) != 2 for shape in use.shapes):
        yield "is of two vectors for each example", "use keras.ops.matmul, or Attention"


@rule("Dot", "a sum of products of two vectors", _refuse_dot, refuse_call=_refuse_ranks)
def dot(call: Call) -> Any:
    a, b = call.x
    if call.layer.normalize:
        a, b = _unit(a), _unit(b)
    return tf.reduce_sum(a * b, axis=-1, keepdims=True)


def _unit(x: Any) -> Any:
    # Keras's own bound, epsilon 1e-12 under the root.
    return x / tf.sqrt(tf.maximum(tf.reduce_sum(x * x, axis=-1, keepdims=True), 1e-12))
