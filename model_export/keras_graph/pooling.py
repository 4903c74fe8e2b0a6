"""Pooling over the pieces of a window, and over whole images and sequences."""

from typing import Any

import numpy as np
import tensorflow as tf

from model_export.keras_graph.convolutions import as_given, as_image, channels_last, pair
from model_export.keras_graph.patches import Window, largest, take, window
from model_export.keras_graph.table import Call, rule

# The lowest float32: what lies outside an image is never the largest.
_LOWEST = -3.4e38


def _window(layer: Any, image: Any) -> Window:
    return window((image.shape[1], image.shape[2]), pair(layer.pool_size), pair(layer.strides), layer.padding)


def _own_pooling(pool: Any, layer: Any, image: Any) -> Any:
    return pool(image, list(pair(layer.pool_size)), list(pair(layer.strides)), layer.padding.upper())


@rule("MaxPooling1D MaxPooling2D", "a maximum over the window's pieces", channels_last)
def max_pooling(call: Call) -> Any:
    image = as_image(call.x)
    if not call.differentiated:
        return as_given(_own_pooling(tf.nn.max_pool2d, call.layer, image), call.x)
    return as_given(largest(take(image, _window(call.layer, image), _LOWEST)), call.x)


def _counts(at: Window) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return how many values of each place lie inside the image: TensorFlow's mean leaves the padding out."""
    counts = np.zeros(at.places)
    (top, _), (left, _) = at.padding
    rows, columns = np.arange(at.places[0]) * at.strides[0], np.arange(at.places[1]) * at.strides[1]
    for i, j in at.offsets:
        inside_rows = (rows + i >= top) & (rows + i < top + at.image[0])
        inside_columns = (columns + j >= left) & (columns + j < left + at.image[1])
        counts += np.outer(inside_rows, inside_columns)
    return counts


@rule("AveragePooling1D AveragePooling2D", "a mean over the window's pieces", channels_last)
def average_pooling(call: Call) -> Any:
    image = as_image(call.x)
    if not call.differentiated:
        return as_given(_own_pooling(tf.nn.avg_pool2d, call.layer, image), call.x)
    at = _window(call.layer, image)
    pieces = take(image, at)
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    counts = _counts(at)
    share = 1.0 / counts if len(np.unique(counts)) > 1 else np.array([[1.0 / counts[0, 0]]])
    return as_given(total * tf.constant(share[np.newaxis, :, :, np.newaxis], image.dtype), call.x)


def _pooled_axes(call: Call) -> list[int]:
    return list(range(1, len(call.x.shape) - 1))


@rule("GlobalAveragePooling1D GlobalAveragePooling2D", "a mean over all positions", channels_last)
def global_average_pooling(call: Call) -> Any:
    return tf.reduce_mean(call.x, _pooled_axes(call), keepdims=bool(call.layer.keepdims))


@rule("GlobalMaxPooling1D GlobalMaxPooling2D", "a maximum over all positions", channels_last)
def global_max_pooling(call: Call) -> Any:
    return tf.reduce_max(call.x, _pooled_axes(call), keepdims=bool(call.layer.keepdims))
