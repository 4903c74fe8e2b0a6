"""Layers that move values and compute nothing."""

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from model_export.keras_graph.convolutions import channels_last
from model_export.keras_graph.patches import cut
from model_export.keras_graph.table import Call, Complaint, rule


def axis_of(axis: int, x: Any) -> int:
    """Return a counted-from-the-end axis as one counted from the start."""
    return axis if axis >= 0 else axis + len(x.shape)


@rule("Flatten", "a reshape", channels_last)
def flatten_layer(call: Call) -> Any:
    return tf.reshape(call.x, [call.x.shape[0], -1])


@rule("Reshape", "a reshape")
def reshape_layer(call: Call) -> Any:
    return tf.reshape(call.x, [call.x.shape[0], *call.layer.target_shape])


@rule("Permute", "a transpose")
def permute_layer(call: Call) -> Any:
    return tf.transpose(call.x, [0, *call.layer.dims])


@rule("RepeatVector", "copies side by side")
def repeat_vector(call: Call) -> Any:
    return tf.stack([call.x] * int(call.layer.n), axis=1)


def _margins(values: Any) -> list[tuple[int, int]]:
    """Return ((top, bottom), (left, right)) or ((before, after),) as a list of pairs."""
    if isinstance(values, int):
        return [(values, values)]
    pairs = [(int(v[0]), int(v[1])) if not isinstance(v, int) else None for v in values]
    return [p for p in pairs if p is not None] or [(int(values[0]), int(values[1]))]


@rule("ZeroPadding1D ZeroPadding2D", "zeros around", channels_last)
def zero_padding(call: Call) -> Any:
    return tf.pad(call.x, [(0, 0), *_margins(call.layer.padding), (0, 0)])


@rule("Cropping1D Cropping2D", "a slice; its gradient pads with zeros", channels_last)
def cropping(call: Call) -> Any:
    margins = [(0, 0), *_margins(call.layer.cropping), (0, 0)]
    stop = [n - after for n, (_, after) in zip(call.x.shape, margins, strict=True)]
    return cut(call.x, [before for before, _ in margins], stop)


def _refuse_upsampling(layer: Any) -> Iterator[Complaint]:
    yield from channels_last(layer)
    if getattr(layer, "interpolation", "nearest") != "nearest":
        yield f"upsampling repeats values, got interpolation={layer.interpolation!r}", "use interpolation='nearest'"


def repeated(x: Any, axis: int, times: int) -> Any:
    """Return x with each entry along `axis` repeated `times` in a row."""
    if times == 1:
        return x
    before, after = _product(x.shape[: axis + 1]), _product(x.shape[axis + 1 :])
    copies = tf.concat([tf.reshape(x, [before, 1, after])] * times, axis=1)
    return tf.reshape(copies, [*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :]])


def _product(shape: Sequence[int]) -> int:
    result = 1
    for n in shape:
        result *= int(n)
    return result


@rule("UpSampling1D UpSampling2D", "values repeated", _refuse_upsampling)
def upsampling(call: Call) -> Any:
    size = call.layer.size
    y = call.x
    for axis, times in enumerate((size,) if isinstance(size, int) else size, start=1):
        y = repeated(y, axis, int(times))
    return y
