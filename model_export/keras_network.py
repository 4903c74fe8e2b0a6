"""The same network as a Keras model: for pretraining, and as the baseline that the exported step is timed against.

Imports TensorFlow. Its weights carry the fleet tensors' names and shapes, so a checkpoint is a dictionary copy.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from model_export.network import EMBEDDING, KERNEL, KERNEL_BIAS, OUTPUT_BIAS, PROJECTION, NetworkSize
from wire_contract.layout import Tensors

Tensor = Any


class CifgCell(keras.layers.Layer):  # type: ignore[misc] # Keras ships no types
    """One step of the cell for `keras.layers.RNN`; see `network` for the formulas."""

    def __init__(self, width: int, cells: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.cells = width, cells
        self.state_size = [width, cells]
        self.output_size = width

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(3 * self.cells, 2 * self.width), name=KERNEL)
        self.kernel_bias = self.add_weight(shape=(3 * self.cells,), name=KERNEL_BIAS, initializer="zeros")
        self.projection = self.add_weight(shape=(self.width, self.cells), name=PROJECTION)

    def call(self, inputs: Tensor, states: Any, training: bool = False) -> tuple[Tensor, list[Tensor]]:
        h, c = states
        z = tf.matmul(tf.concat([inputs, h], axis=1), self.kernel, transpose_b=True) + self.kernel_bias
        z_forget, z_output, z_candidate = tf.split(z, 3, axis=1)
        f, g = tf.sigmoid(z_forget), tf.tanh(z_candidate)
        c = g + f * (c - g)
        h = tf.matmul(tf.sigmoid(z_output) * tf.tanh(c), self.projection, transpose_b=True)
        return h, [h, c]


class NextWordModel(keras.Model):  # type: ignore[misc] # Keras ships no types
    """Token ids [batch, length] -> logits [batch, length, words]; embedding tied."""

    def __init__(self, size: NetworkSize, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.embedding = self.add_weight(shape=(size.words, size.width), name=EMBEDDING)
        self.output_bias = self.add_weight(shape=(size.words,), name=OUTPUT_BIAS, initializer="zeros")
        self.cell = CifgCell(size.width, size.cells)
        # Unrolled: about 5 % less CPU here than the while loop that Keras makes otherwise.
        self.recurrence = keras.layers.RNN(self.cell, return_sequences=True, unroll=True)
        self.dropout = keras.layers.Dropout(dropout)

    def states(self, tokens: Tensor, training: bool = False) -> Tensor:
        """Return the output states [batch, length, width], with dropout while training."""
        return self.dropout(self.recurrence(tf.gather(self.embedding, tokens)), training=training)

    def call(self, tokens: Tensor, training: bool = False) -> Tensor:
        states = self.states(tokens, training)
        return tf.matmul(states, self.embedding, transpose_b=True) + self.output_bias

    def load(self, tensors: Tensors) -> None:
        """Copy the fleet tensors in; builds the model if it is not built yet."""
        if not self.recurrence.built:
            self.states(np.zeros((1, 2), np.int32))
        for name, variable in self._by_name().items():
            variable.assign(tensors[name])

    def tensors(self) -> Tensors:
        """Return the fleet tensors in the layout's order."""
        values = {name: np.asarray(variable.numpy(), np.float32) for name, variable in self._by_name().items()}
        return {name: values[name] for name in self.size.tensor_shapes}

    def _by_name(self) -> dict[str, Any]:
        return {
            EMBEDDING: self.embedding,
            KERNEL: self.cell.kernel,
            PROJECTION: self.cell.projection,
            KERNEL_BIAS: self.cell.kernel_bias,
            OUTPUT_BIAS: self.output_bias,
        }
