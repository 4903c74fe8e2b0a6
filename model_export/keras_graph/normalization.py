"""Normalizing layers: over features of one example, or with means and variances that stay as they are."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from model_export.keras_graph.table import Call, Complaint, rule


def _centred(x: Any, axes: list[int], epsilon: float) -> Any:
    difference = x - tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(difference * difference, axes, keepdims=True)
    return difference * tf.math.rsqrt(variance + epsilon)


def _axes(axis: Any, x: Any) -> list[int]:
    return sorted(a % len(x.shape) for a in ((axis,) if isinstance(axis, int) else axis))


def _along(weight: Any, axes: list[int], x: Any) -> Any:
    """Return a layer's weight so that it stands along `axes` of x."""
    shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    return weight if axes == [len(x.shape) - 1] else tf.reshape(weight, shape)


def _refuse_rms(layer: Any) -> Iterator[Complaint]:
    if layer.rms_scaling:
        yield "has no rms_scaling", "use RMSNormalization"


@rule("LayerNormalization", "mean and variance over an example's features", _refuse_rms)
def layer_normalization(call: Call) -> Any:
    layer, x = call.layer, call.x
    axes = _axes(layer.axis, x)
    y = _centred(x, axes, layer.epsilon)
    if layer.gamma is not None:
        y *= _along(call.weight(layer.gamma), axes, x)
    if layer.beta is not None:
        y += _along(call.weight(layer.beta), axes, x)
    return y


@rule("RMSNormalization", "root mean square over an example's features")
def rms_normalization(call: Call) -> Any:
    layer, x = call.layer, call.x
    axes = _axes(layer.axis, x)
    y = x * tf.math.rsqrt(tf.reduce_mean(x * x, axes, keepdims=True) + layer.epsilon)
    return y if layer.scale is None else y * _along(call.weight(layer.scale), axes, x)


@rule("UnitNormalization", "divided by the length of an example's features")
def unit_normalization(call: Call) -> Any:
    x, axes = call.x, _axes(call.layer.axis, call.x)
    return x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(x * x, axes, keepdims=True), 1e-12))


def _refuse_group(layer: Any) -> Iterator[Complaint]:
    if layer.axis != -1:
        yield f"groups are made of the last axis, got axis={layer.axis}", "use axis=-1"


@rule("GroupNormalization", "mean and variance over each group of channels", _refuse_group)
def group_normalization(call: Call) -> Any:
    layer, x = call.layer, call.x
    channels = x.shape[-1]
    groups = channels if layer.groups == -1 else layer.groups
    split = tf.reshape(x, [x.shape[0], -1, groups, channels // groups])
    y = tf.reshape(_centred(split, [1, 3], layer.epsilon), x.shape)
    if layer.scale:
        y *= call.weight(layer.gamma)
    if layer.center:
        y += call.weight(layer.beta)
    return y


@rule("BatchNormalization", "with the moving mean and variance as they are; scale and offset can be learnt")
def batch_normalization(call: Call) -> Any:
    layer, x = call.layer, call.x
    axes = _axes(layer.axis, x)
    scale = tf.math.rsqrt(call.weight(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale = scale * call.weight(layer.gamma)
    y = (x - _along(call.weight(layer.moving_mean), axes, x)) * _along(scale, axes, x)
    return y + _along(call.weight(layer.beta), axes, x) if layer.center else y


@rule("Rescaling", "a product and a sum")
def rescaling(call: Call) -> Any:
    scale, offset = (np.asarray(value, np.float64) for value in (call.layer.scale, call.layer.offset))
    return tf.cast(call.x, call.dtype) * tf.constant(scale, call.dtype) + tf.constant(offset, call.dtype)


@rule("Normalization", "with the mean and variance that it was adapted to")
def normalization(call: Call) -> Any:
    layer, x = call.layer, tf.cast(call.x, call.dtype)
    mean, variance = (np.asarray(value, np.float64) for value in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if layer.invert:
        return tf.constant(mean, x.dtype) + x * tf.constant(deviation, x.dtype)
    return (x - tf.constant(mean, x.dtype)) / tf.constant(deviation, x.dtype)
