"""Activations with a gradient of built-in operations: the value and, beside it, the slope.

TensorFlow's own tanh, sigmoid and softmax have one already. Keras's relu would leave a ReluGrad in the train graph, its
gelu an Erf; no device has either. Each slope is what Keras's gradient is, also where the function bends (0 for relu at
0), so that a step equals Keras's step there.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from model_export.keras_graph.own_gradient import own_gradient

Unary = Callable[[Any], Any]

_SQRT_HALF = 0.7071067811865476
_SQRT_HALF_OVER_PI = 0.3989422804014327
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_TANH_GELU = 0.7978845608028654


def sloped(value: Unary, slope: Callable[[Any, Any], Any]) -> Unary:
    """Return `value` with the gradient dy * slope(x, y)."""

    @own_gradient
    def function(x: Any) -> tuple[Any, Unary]:
        y = value(x)
        return y, lambda dy: dy * slope(x, y)

    return function


def _where(condition: Any, x: Any) -> Any:
    return tf.cast(condition, x.dtype)


def relu(negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Unary:
    """Return Keras's relu with its three settings (`keras.layers.ReLU`); the slope is 0 at every bend."""

    def value(x: Any) -> Any:
        above = tf.maximum(x, 0.0) if threshold == 0.0 else x * _where(x > threshold, x)
        capped = above if max_value is None else tf.minimum(above, max_value)
        return capped + negative_slope * tf.minimum(x - threshold, 0.0) if negative_slope else capped

    def slope(x: Any, _: Any) -> Any:
        inside = x > threshold if max_value is None else tf.logical_and(x > threshold, x < max_value)
        return _where(inside, x) + negative_slope * _where(x <= threshold, x) if negative_slope else _where(inside, x)

    return sloped(value, slope)


def leaky_relu(negative_slope: float = 0.2) -> Unary:
    """Return x above 0, `negative_slope` * x below."""
    return sloped(
        lambda x: tf.maximum(x, 0.0) + negative_slope * tf.minimum(x, 0.0),
        lambda x, _: _where(x > 0, x) + negative_slope * _where(x <= 0, x),
    )


def elu(alpha: float = 1.0) -> Unary:
    """Return x above 0, alpha * (exp(x) - 1) below."""
    return sloped(
        lambda x: tf.maximum(x, 0.0) + alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0),
        lambda x, _: _where(x > 0, x) + alpha * _where(x <= 0, x) * tf.exp(tf.minimum(x, 0.0)),
    )


def _selu_slope(x: Any, _: Any) -> Any:
    # At 0, unlike elu's, TensorFlow's slope is that of the upper side.
    return _SELU_SCALE * (_where(x >= 0, x) + _SELU_ALPHA * _where(x < 0, x) * tf.exp(tf.minimum(x, 0.0)))


def _softplus(x: Any) -> Any:
    return tf.maximum(x, 0.0) + tf.math.log(1.0 + tf.exp(-tf.abs(x)))


def _normal_cdf(x: Any) -> Any:
    """Abramowitz and Stegun 7.1.26: the error of erf is at most 1.5e-7."""
    z = tf.abs(x) * _SQRT_HALF
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * tf.exp(-z * z)
    return tf.where(x > 0, 1.0 - tail, tail)


def _normal_density(x: Any) -> Any:
    return _SQRT_HALF_OVER_PI * tf.exp(-0.5 * x * x)


def gelu(approximate: bool = False) -> Unary:
    """Return x * Phi(x); exact up to 1.5e-7 * x, or by tanh as Keras approximates it."""
    if not approximate:
        return sloped(lambda x: x * _normal_cdf(x), lambda x, _: _normal_cdf(x) + x * _normal_density(x))

    def inner(x: Any) -> Any:
        return tf.tanh(_TANH_GELU * (x + 0.044715 * x * x * x))

    def slope(x: Any, _: Any) -> Any:
        t = inner(x)
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _TANH_GELU * (1.0 + 3.0 * 0.044715 * x * x)

    return sloped(lambda x: 0.5 * x * (1.0 + inner(x)), slope)


def _hard_sigmoid(x: Any) -> Any:
    return tf.minimum(tf.maximum(x / 6.0 + 0.5, 0.0), 1.0)


def _inside(x: Any) -> Any:
    return _where(tf.logical_and(x > -3.0, x < 3.0), x)


def _silu_slope(x: Any, _: Any) -> Any:
    s = tf.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


def _mish_slope(x: Any, _: Any) -> Any:
    t = tf.tanh(_softplus(x))
    return t + x * tf.sigmoid(x) * (1.0 - t * t)


def linear(x: Any) -> Any:
    """Return x."""
    return x


def softmax(x: Any) -> Any:
    """Return the softmax along the last axis."""
    return tf.nn.softmax(x, axis=-1)


ACTIVATIONS: dict[str, Unary] = {
    "linear": linear,
    "relu": relu(),
    "relu6": relu(max_value=6.0),
    "leaky_relu": leaky_relu(),
    "elu": elu(),
    "selu": sloped(lambda x: _SELU_SCALE * elu(_SELU_ALPHA)(x), _selu_slope),
    "softplus": sloped(_softplus, lambda x, _: tf.sigmoid(x)),
    "softsign": sloped(lambda x: x / (1.0 + tf.abs(x)), lambda x, _: 1.0 / ((1.0 + tf.abs(x)) * (1.0 + tf.abs(x)))),
    "silu": sloped(lambda x: x * tf.sigmoid(x), _silu_slope),
    "gelu": gelu(),
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "exponential": sloped(tf.exp, lambda _, y: y),
    "hard_sigmoid": sloped(_hard_sigmoid, lambda x, _: _inside(x) / 6.0),
    "hard_silu": sloped(
        lambda x: x * _hard_sigmoid(x), lambda x, _: _hard_sigmoid(x) + x * _inside(x) / 6.0
    ),
    "mish": sloped(lambda x: x * tf.tanh(_softplus(x)), _mish_slope),
    "softmax": softmax,
}  # fmt: skip


def activation_name(function: Any) -> str:
    """Return Keras's name of an activation; of a function that is none of Keras's, its own name in quotes."""
    if function is None:
        return "linear"
    name = str(getattr(function, "__name__", function))
    module = str(getattr(function, "__module__", ""))
    return name if module.startswith("keras.") else repr(name)


def activation_of(layer: Any, attribute: str = "activation") -> Unary:
    """Return the exported form of a layer's activation (`examine` has refused what is not in the table)."""
    return ACTIVATIONS[activation_name(getattr(layer, attribute))]
