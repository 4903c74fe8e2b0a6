"""Convolutions as matrix products over patches, depthwise ones as sums of products. See `patches`."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from model_export.keras_graph.activations import activation_of
from model_export.keras_graph.dense import product
from model_export.keras_graph.patches import Pair, put, take, window
from model_export.keras_graph.table import Call, Complaint, rule


def channels_last(layer: Any) -> Iterator[Complaint]:
    """Refuse the other order of axes."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        yield "axes stand channels last, got channels_first", "build the layer with data_format='channels_last'"


def pair(values: Any, one: int = 1) -> Pair:
    """Return a layer's one or two numbers as (height, width); a sequence has height 1."""
    numbers = (values,) if isinstance(values, int) else tuple(int(value) for value in values)
    return (one, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def as_image(x: Any) -> Any:
    """Return [batch, steps, channels] as an image of height 1; an image as it is."""
    return tf.reshape(x, [x.shape[0], 1, x.shape[1], x.shape[2]]) if len(x.shape) == 3 else x


def as_given(y: Any, x: Any) -> Any:
    """Return an image of height 1 as a sequence again, if `x` was one."""
    return tf.reshape(y, [y.shape[0], y.shape[2], y.shape[3]]) if len(x.shape) == 3 else y


def _finished(call: Call, y: Any) -> Any:
    if call.layer.use_bias:
        y += call.weight(call.layer.bias)
    y = as_given(y, call.x)
    return y if call.bare else activation_of(call.layer)(y)


def _flat_kernel(kernel: Any) -> Any:
    return tf.reshape(kernel, [-1, kernel.shape[-1]])


def _refuse_conv(layer: Any) -> Iterator[Complaint]:
    yield from channels_last(layer)
    if layer.groups != 1:
        yield f"a convolution has one group, got groups={layer.groups}", "use groups=1, or a depthwise convolution"


def has_own_form(call: Call) -> bool:
    """Whether TensorFlow Lite's own operation may stand here: no gradient goes through, and it has no dilation."""
    return (
        not call.differentiated
        and call.layer.padding != "causal"
        and set(pair(getattr(call.layer, "dilation_rate", 1))) == {1}
    )


@rule("Conv1D Conv2D", "a matrix product over patches", _refuse_conv)
def convolution(call: Call) -> Any:
    layer, image = call.layer, as_image(call.x)
    if has_own_form(call) and pair(layer.kernel_size) != (1, 1):
        kernel = _image_kernel(call.weight(layer.kernel))
        return _finished(call, tf.nn.conv2d(image, kernel, [1, *pair(layer.strides), 1], layer.padding.upper()))
    at = window(
        (image.shape[1], image.shape[2]), pair(layer.kernel_size), pair(layer.strides), layer.padding,
        pair(layer.dilation_rate),
    )  # fmt: skip
    pieces = take(image, at)
    patches = tf.concat(pieces, axis=-1) if len(pieces) > 1 else pieces[0]
    return _finished(call, product(patches, _flat_kernel(call.weight(layer.kernel))))


def _refuse_transposed(layer: Any) -> Iterator[Complaint]:
    yield from channels_last(layer)
    if layer.output_padding is not None:
        yield f"output_padding is left to Keras, got {layer.output_padding}", "leave output_padding out"
    if set(pair(layer.dilation_rate)) != {1}:
        yield f"a transposed convolution is not dilated, got {layer.dilation_rate}", "use dilation_rate=1"


@rule("Conv1DTranspose Conv2DTranspose", "a matrix product whose patches are added up in place", _refuse_transposed)
def transposed_convolution(call: Call) -> Any:
    layer, image = call.layer, as_image(call.x)
    size, strides = pair(layer.kernel_size), pair(layer.strides)
    made = [
        length * stride + (max(count - stride, 0) if layer.padding == "valid" else 0)
        for length, count, stride in zip(image.shape[1:3], size, strides, strict=True)
    ]
    at = window((made[0], made[1]), size, strides, layer.padding)
    kernel = call.weight(layer.kernel)
    outputs = kernel.shape[-2]
    patches = product(image, tf.transpose(tf.reshape(kernel, [-1, kernel.shape[-1]])))
    pieces = tf.split(patches, patches.shape[-1] // outputs, axis=-1)
    return _finished(call, put(pieces, at))


def _depthwise(call: Call, kernel: Any) -> Any:
    """Return the sum over the window of piece * its kernel row; kernel [height, width, channels, multiplier]."""
    layer, x = call.layer, as_image(call.x)
    channels, multiplier = kernel.shape[-2:]
    strides = pair(layer.strides)
    # TensorFlow's own knows one stride only.
    if has_own_form(call) and (strides[0] == strides[1] or x.shape[1] == 1):
        return tf.nn.depthwise_conv2d(x, kernel, [1, strides[1], strides[1], 1], layer.padding.upper())
    at = window(
        (x.shape[1], x.shape[2]), (kernel.shape[0], kernel.shape[1]), strides, layer.padding,
        pair(layer.dilation_rate),
    )  # fmt: skip
    pieces = take(x, at)
    rows = tf.split(tf.reshape(kernel, [len(pieces), channels * multiplier]), len(pieces), axis=0)
    total = None
    for piece, row in zip(pieces, rows, strict=True):
        values = tf.reshape(piece, [-1, channels])
        if multiplier > 1:
            spread = tf.reshape(values, [-1, channels, 1]) * tf.ones([1, 1, multiplier], x.dtype)
            values = tf.reshape(spread, [-1, channels * multiplier])
        total = values * row if total is None else total + values * row
    return tf.reshape(total, [x.shape[0], *at.places, channels * multiplier])


def _image_kernel(kernel: Any) -> Any:
    return tf.reshape(kernel, [1, *kernel.shape]) if len(kernel.shape) == 3 else kernel


@rule("DepthwiseConv1D DepthwiseConv2D", "a sum of products over the window", channels_last)
def depthwise_convolution(call: Call) -> Any:
    kernel = _image_kernel(call.weight(call.layer.kernel))
    return _finished(call, _depthwise(call, kernel))


@rule("SeparableConv1D SeparableConv2D", "a sum of products over the window, then a matrix product", channels_last)
def separable_convolution(call: Call) -> Any:
    layer = call.layer
    y = _depthwise(call, _image_kernel(call.weight(layer.depthwise_kernel)))
    return _finished(call, product(y, _flat_kernel(call.weight(layer.pointwise_kernel))))
