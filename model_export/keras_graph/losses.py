"""The three losses: of one example, from logits or values, with gradients of built-in operations.

Each takes the model's output before its last softmax or sigmoid [batch, ...] and the target, and gives [batch]: the
mean over the values of one example. `correct` is what `evaluate` counts: 1 or 0 (their mean), or the squared error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from model_export.keras_graph.activations import softmax
from model_export.keras_graph.own_gradient import own_gradient


@dataclass(frozen=True, slots=True)
class Loss:
    """Keras's name, the activation that it takes as the model's last, and how both are computed."""

    name: str
    last_activation: str
    target_dtype: Literal["float32", "int32"]
    per_example: Callable[[Any, Any], Any]
    correct: Callable[[Any, Any], Any]
    prediction: Callable[[Any], Any]


def _mean_of_example(values: Any) -> Any:
    return tf.reduce_mean(tf.reshape(values, [values.shape[0], -1]), axis=1)


def _categorical(logits: Any, target: Any) -> Any:
    shifted = logits - tf.stop_gradient(tf.reduce_max(logits, axis=-1, keepdims=True))
    chosen = tf.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    total = tf.math.log(tf.reduce_sum(tf.exp(shifted), axis=-1))
    return _mean_of_example(total - tf.reduce_sum(chosen * shifted, axis=-1))


def _class_found(logits: Any, target: Any) -> Any:
    best = tf.argmax(logits, axis=-1, output_type=tf.int32)
    return _mean_of_example(tf.cast(tf.equal(best, target), logits.dtype))


def _like_target(outputs: Any, target: Any) -> Any:
    return tf.reshape(outputs, target.shape)


def _binary(logits: Any, target: Any) -> Any:
    x = _like_target(logits, target)
    y = tf.cast(target, x.dtype)

    @own_gradient
    def entropy(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        value = tf.maximum(x, 0.0) - x * y + tf.math.log(1.0 + tf.exp(-tf.abs(x)))
        return value, lambda dy: dy * (tf.sigmoid(x) - y)

    return _mean_of_example(entropy(x))


def _side_found(logits: Any, target: Any) -> Any:
    x = _like_target(logits, target)
    return _mean_of_example(tf.cast(tf.equal(tf.cast(x >= 0.0, tf.int32), target), x.dtype))


def _squared(outputs: Any, target: Any) -> Any:
    difference = _like_target(outputs, target) - target
    return _mean_of_example(difference * difference)


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("sparse_categorical_crossentropy", "softmax", "int32", _categorical, _class_found, softmax),
        Loss("binary_crossentropy", "sigmoid", "int32", _binary, _side_found, tf.sigmoid),
        Loss("mean_squared_error", "", "float32", _squared, _squared, tf.identity),
    )
}
