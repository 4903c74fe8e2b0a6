"""Operations of `keras.ops` (and of Python's signs on Keras tensors) that may stand between layers."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from model_export.keras_graph import activations
from model_export.keras_graph.activations import ACTIVATIONS, sloped
from model_export.keras_graph.patches import cut
from model_export.keras_graph.shaping import axis_of
from model_export.keras_graph.table import Call, Complaint, Use, rule

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "ops.Add": tf.add,
    "ops.Subtract": tf.subtract,
    "ops.Multiply": tf.multiply,
    "ops.TrueDivide": tf.divide,
    "ops.Divide": tf.divide,
    "ops.Maximum": tf.maximum,
    "ops.Minimum": tf.minimum,
}
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "ops.Negative": tf.negative,
    "ops.Absolute": sloped(tf.abs, lambda x, _: tf.cast(x > 0, x.dtype) - tf.cast(x < 0, x.dtype)),
    "ops.Square": tf.square,
    "ops.Sqrt": sloped(tf.sqrt, lambda _, y: 0.5 / y),
    "ops.Exp": ACTIVATIONS["exponential"],
    "ops.Log": sloped(tf.math.log, lambda x, _: 1.0 / x),
    "ops.Tanh": ACTIVATIONS["tanh"],
    "ops.Sigmoid": ACTIVATIONS["sigmoid"],
    "ops.Relu": ACTIVATIONS["relu"],
    "ops.Relu6": ACTIVATIONS["relu6"],
    "ops.Selu": ACTIVATIONS["selu"],
    "ops.Silu": ACTIVATIONS["silu"],
    "ops.Softplus": ACTIVATIONS["softplus"],
    "ops.Softsign": ACTIVATIONS["softsign"],
    "ops.HardSigmoid": ACTIVATIONS["hard_sigmoid"],
    "ops.HardSilu": ACTIVATIONS["hard_silu"],
}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ops.Mean": tf.reduce_mean,
    "ops.Sum": tf.reduce_sum,
    "ops.Max": tf.reduce_max,
    "ops.Min": tf.reduce_min,
}


def _kind(call: Call) -> str:
    return f"ops.{type(call.layer).__name__}"


def _alike(call: Call, a: Any, b: Any) -> tuple[Any, Any]:
    """Return both operands as tensors of one dtype: whole numbers beside a fraction become floats, as in Keras."""
    kinds = [np.asarray(value).dtype.kind if not tf.is_tensor(value) else value.dtype.as_numpy_dtype().dtype.kind
             for value in (a, b)]  # fmt: skip
    whole = set(kinds) <= {"i", "u", "b"} and "Divide" not in _kind(call)
    dtype = tf.int32 if whole else call.dtype
    return tuple(tf.cast(v, dtype) if tf.is_tensor(v) else tf.constant(v, dtype) for v in (a, b))


@rule(" ".join(ARITHMETIC), "elementwise")
def arithmetic(call: Call) -> Any:
    a, b = call.argument(0, "x1"), call.argument(1, "x2")
    return ARITHMETIC[_kind(call)](*_alike(call, a, b))


@rule(" ".join(FUNCTIONS), "elementwise")
def function(call: Call) -> Any:
    return FUNCTIONS[_kind(call)](call.x)


@rule("ops.Gelu", "elementwise")
def gelu(call: Call) -> Any:
    return activations.gelu(bool(call.layer.approximate))(call.x)


@rule("ops.LeakyRelu", "elementwise")
def leaky_relu(call: Call) -> Any:
    return activations.leaky_relu(float(call.layer.negative_slope))(call.x)


@rule("ops.Elu", "elementwise")
def elu(call: Call) -> Any:
    return activations.elu(float(call.layer.alpha))(call.x)


def _refuse_power(use: Use) -> Iterator[Complaint]:
    exponent = use.argument(1, "x2")
    if not isinstance(exponent, int | float) or exponent != 2:
        yield "the power is 2", "use keras.ops.square, sqrt, exp or log"


@rule("ops.Power", "a square", refuse_call=_refuse_power)
def power(call: Call) -> Any:
    return tf.square(call.x)


@rule("ops.Clip", "maximum and minimum")
def clip(call: Call) -> Any:
    low, high = call.layer.x_min, call.layer.x_max
    inside = lambda x, _: tf.cast(tf.logical_and(x >= low, x <= high), x.dtype)  # noqa: E731 - a slope
    return sloped(lambda x: tf.minimum(tf.maximum(x, low), high), inside)(call.x)


def _reduced(layer: Any) -> list[int] | None:
    axis = layer.axis
    return None if axis is None else [axis] if isinstance(axis, int) else list(axis)


def _refuse_reduction(use: Use) -> Iterator[Complaint]:
    axes = _reduced(use.layer)
    rank = len(use.shapes[0])
    if axes is None or any(axis % rank == 0 for axis in axes):
        yield "mixes the examples of a batch", "name axes of one example: axis=1 and higher"


@rule(" ".join(REDUCTIONS), "along axes of one example", refuse_call=_refuse_reduction)
def reduction(call: Call) -> Any:
    return REDUCTIONS[_kind(call)](call.x, axis=_reduced(call.layer), keepdims=bool(call.layer.keepdims))


@rule("ops.Softmax", "a softmax along the last axis")
def softmax(call: Call) -> Any:
    return call.x if call.bare else activations.softmax(call.x)


def _refuse_reshape(use: Use) -> Iterator[Complaint]:
    if use.layer.newshape[0] not in (-1, None):
        yield "the first axis is the batch, of any size", "begin the new shape with -1"


@rule("ops.Reshape", "a reshape", refuse_call=_refuse_reshape)
def reshape(call: Call) -> Any:
    return tf.reshape(call.x, [call.x.shape[0], *call.layer.newshape[1:]])


def _refuse_transpose(use: Use) -> Iterator[Complaint]:
    if not use.layer.axes or use.layer.axes[0] != 0:
        yield "the batch stays first", "name axes that begin with 0"


@rule("ops.Transpose", "a transpose", refuse_call=_refuse_transpose)
def transpose(call: Call) -> Any:
    return tf.transpose(call.x, list(call.layer.axes))


def _refuse_batch_axis(use: Use) -> Iterator[Complaint]:
    axis = use.layer.axis
    rank = len(use.shapes[0]) + (1 if type(use.layer).__name__ in ("ExpandDims", "Stack") else 0)
    if not isinstance(axis, int) or axis % rank == 0:
        yield "leaves the batch's axis alone", "name one axis of an example: axis=1 and higher"


@rule("ops.ExpandDims", "a reshape", refuse_call=_refuse_batch_axis)
def expand_dims(call: Call) -> Any:
    shape = list(call.x.shape)
    shape.insert(call.layer.axis % (len(shape) + 1), 1)
    return tf.reshape(call.x, shape)


@rule("ops.Squeeze", "a reshape", refuse_call=_refuse_batch_axis)
def squeeze(call: Call) -> Any:
    shape = list(call.x.shape)
    del shape[axis_of(call.layer.axis, call.x)]
    return tf.reshape(call.x, shape)


@rule("ops.Concatenate", "side by side", refuse_call=_refuse_batch_axis)
def concatenate(call: Call) -> Any:
    return tf.concat(list(call.x), axis=axis_of(call.layer.axis, call.x[0]))


@rule("ops.Stack", "side by side", refuse_call=_refuse_batch_axis)
def stack(call: Call) -> Any:
    return tf.stack(list(call.x), axis=call.layer.axis)


@rule("ops.Matmul", "a matrix product")
def matmul(call: Call) -> Any:
    return tf.matmul(call.argument(0, "x1"), call.argument(1, "x2"))


def _keys(key: Any, rank: int) -> list[Any]:
    """Return one slice or int for each axis; raises `ValueError` for anything else."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - len(parts) + 1)
    parts += [slice(None)] * (rank - len(parts))
    for part in parts:
        plain = isinstance(part, int) or (isinstance(part, slice) and part.step in (None, 1))
        if not plain:
            raise ValueError(f"{part!r}")
    return parts


def _refuse_item(use: Use) -> Iterator[Complaint]:
    try:
        first = _keys(use.argument(1, "key"), len(use.shapes[0]))[0]
    except ValueError as e:
        yield f"an index is made of numbers and of slices with step 1, got {e}", "use x[:, a:b] and keras.ops.reshape"
        return
    if first != slice(None):
        yield "leaves the batch's axis alone", "begin the index with `:`"


@rule("ops.GetItem", "a slice; its gradient pads with zeros", refuse_call=_refuse_item)
def get_item(call: Call) -> Any:
    x = call.x
    begins, stops, shape = [], [], []
    for n, part in zip(x.shape, _keys(call.argument(1, "key"), len(x.shape)), strict=True):
        begin, stop = (part % n, part % n + 1) if isinstance(part, int) else part.indices(n)[:2]
        begins.append(begin)
        stops.append(max(stop, begin))
        if isinstance(part, slice):
            shape.append(stops[-1] - begin)
    return tf.reshape(cut(x, begins, stops), shape)
