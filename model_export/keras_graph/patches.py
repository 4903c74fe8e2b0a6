"""Windows that slide over an image: taking their pieces and putting pieces back, each the other's gradient.

TensorFlow's own convolution and pooling have gradients that no device has built in. Here a convolution is a matrix
product over patches (im2col: Chellapilla et al. 2006), pooling a maximum or a mean over pieces, a transposed
convolution the putting back; slices, zero padding and additions are all they need, and no index table stands in the
file. Images are [batch, height, width, channels]; a sequence is an image of height 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from model_export.keras_graph.own_gradient import own_gradient

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """A window's size, strides and dilation, the padding around the image, and how often it fits (`places`)."""

    size: Pair
    strides: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]
    image: Pair
    places: Pair

    @property
    def padded(self) -> Pair:
        """Height and width of the padded image."""
        (top, bottom), (left, right) = self.padding
        return self.image[0] + top + bottom, self.image[1] + left + right

    @property
    def offsets(self) -> list[Pair]:
        """Where in the padded image each piece begins, rows first, as a kernel is flattened."""
        return [(i * self.dilation[0], j * self.dilation[1]) for i in range(self.size[0]) for j in range(self.size[1])]


def window(image: Pair, size: Pair, strides: Pair, padding: str, dilation: Pair = (1, 1)) -> Window:
    """Return the window as TensorFlow places it; padding is `valid`, `same` or (width only) `causal`."""
    pads, places = [], []
    for length, count, stride, gap in zip(image, size, strides, dilation, strict=True):
        reach = (count - 1) * gap + 1
        if padding == "same":
            wanted = -(-length // stride)
            total = max((wanted - 1) * stride + reach - length, 0)
            pads.append((total // 2, total - total // 2))
        elif padding == "causal":
            pads.append((reach - 1, 0))
        else:
            pads.append((0, 0))
        places.append((length + sum(pads[-1]) - reach) // stride + 1)
    return Window(size, strides, dilation, (pads[0], pads[1]), image, (places[0], places[1]))


def _view(at: Window, channels: int) -> list[int]:
    """Return how the padded image is looked at, without the batch: rows of `strides[0]` image rows, their columns, and
    a column's values, the last two as one where columns lie side by side.

    A piece is one block of this view, so that one SLICE takes it and one PAD puts it back, in runs that are as long as
    they can be. The view is as high and wide as the last piece reaches.
    """
    (rows, columns), (down, right) = at.places, at.strides
    last_row, last_column = at.offsets[-1]
    height = max(-(-at.padded[0] // down), last_row // down + rows)
    width = max(-(-at.padded[1] // right), last_column // right + columns)
    return [height, down * width * channels] if right == 1 else [height, down * width, right * channels]


def _block(at: Window, offset: Pair, channels: int) -> tuple[list[int], list[int]]:
    """Return where a piece's block begins in the view and how large it is."""
    (top, left), (rows, columns), (down, right) = offset, at.places, at.strides
    begin = top % down * (_view(at, channels)[1] // down)
    if right == 1:
        return [top // down, begin + left * channels], [rows, columns * channels]
    return [top // down, begin + left // right, left % right * channels], [rows, columns, channels]


def _height_and_width(at: Window, channels: int) -> Pair:
    """Return the view's height and width in image rows and columns."""
    view = _view(at, channels)
    return view[0] * at.strides[0], math.prod(view[1:]) // (at.strides[0] * channels)


def _seen(x: Any, at: Window, fill: float) -> Any:
    """Return the image, padded, as its view."""
    batch, _, _, channels = x.shape
    (top, _), (left, _) = at.padding
    high, wide = _height_and_width(at, channels)
    margins = [(0, 0), (top, high - at.image[0] - top), (left, wide - at.image[1] - left), (0, 0)]
    padded = tf.pad(x, margins, constant_values=tf.constant(fill, x.dtype)) if any(map(any, margins)) else x
    return tf.reshape(padded, [batch, *_view(at, channels)])


def _taken(x: Any, at: Window, fill: float) -> list[Any]:
    batch, _, _, channels = x.shape
    seen = _seen(x, at, fill)
    pieces = []
    for offset in at.offsets:
        begin, size = _block(at, offset, channels)
        pieces.append(tf.reshape(tf.slice(seen, [0, *begin], [batch, *size]), [batch, *at.places, channels]))
    return pieces


def _put(pieces: Sequence[Any], at: Window) -> Any:
    batch, _, _, channels = pieces[0].shape
    view = _view(at, channels)
    total: Any = None
    for piece, offset in zip(pieces, at.offsets, strict=True):
        begin, size = _block(at, offset, channels)
        margins = [(0, 0), *((b, n - b - s) for b, s, n in zip(begin, size, view, strict=True))]
        placed = tf.pad(tf.reshape(piece, [batch, *size]), margins)
        total = placed if total is None else total + placed
    (top, _), (left, _) = at.padding
    whole = tf.reshape(total, [batch, *_height_and_width(at, channels), channels])
    return tf.slice(whole, [0, top, left, 0], [batch, *at.image, channels])


def take(x: Any, at: Window, fill: float = 0.0) -> list[Any]:
    """Return one array [batch, *places, channels] for each position inside the window; outside the image is `fill`."""

    @own_gradient
    def function(x: Any) -> tuple[Any, Callable[..., Any]]:
        return tuple(_taken(x, at, fill)), lambda *gradients: _put(gradients, at)

    return list(_tuple(function(x)))


def put(pieces: Sequence[Any], at: Window) -> Any:
    """Return the image that adds every piece at its place; the transpose of `take` (with fill 0)."""

    @own_gradient
    def function(*pieces: Any) -> tuple[Any, Callable[..., Any]]:
        def gradient(dy: Any) -> Any:
            return tuple(_taken(dy, at, 0.0)) if len(pieces) > 1 else _taken(dy, at, 0.0)[0]

        return _put(pieces, at), gradient

    return function(*pieces)


def _tuple(value: Any) -> tuple[Any, ...]:
    # A custom gradient gives back one array as itself.
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def largest(pieces: Sequence[Any]) -> Any:
    """Return the elementwise maximum; its gradient goes to the first of equal pieces, as TensorFlow's pooling does."""

    @own_gradient
    def first_larger(a: Any, b: Any) -> tuple[Any, Callable[..., Any]]:
        def gradient(dy: Any) -> Any:
            to_b = dy * tf.cast(b > a, dy.dtype)
            return dy - to_b, to_b

        return tf.maximum(a, b), gradient

    return _fold(first_larger, pieces)


def _fold(join: Callable[[Any, Any], Any], pieces: Sequence[Any]) -> Any:
    result = pieces[0]
    for piece in pieces[1:]:
        result = join(result, piece)
    return result


def cut(x: Any, begin: Sequence[int], stop: Sequence[int]) -> Any:
    """Return x[begin:stop] along every axis; the gradient pads with zeros (no StridedSliceGrad)."""

    @own_gradient
    def function(x: Any) -> tuple[Any, Callable[..., Any]]:
        margins = [(b, n - s) for b, s, n in zip(begin, stop, x.shape, strict=True)]
        size = [s - b for b, s in zip(begin, stop, strict=True)]
        return tf.slice(x, list(begin), size), lambda dy: tf.pad(dy, margins)

    return function(x)
