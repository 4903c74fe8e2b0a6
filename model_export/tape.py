"""The gradient by TensorFlow's tape over the plain formulas: the second judge. Imports TensorFlow."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model_export.network import EMBEDDING, KERNEL, KERNEL_BIAS, OUTPUT_BIAS, PROJECTION
from model_export.reference import Gradient
from wire_contract.layout import Tensors


def tape_gradient(
    tensors: Tensors,
    tokens: NDArray[np.int32],
    targets: NDArray[np.int32],
    weights: NDArray[np.float32],
    output_mask: NDArray[np.float32],
) -> Gradient:
    """Return loss and gradients in TensorFlow's float32; arguments as `reference.gradient`."""
    batch, length = tokens.shape
    variables = {name: tf.Variable(value) for name, value in tensors.items()}
    kernel, projection = variables[KERNEL], variables[PROJECTION]
    with tf.GradientTape() as tape:
        inputs = tf.gather(variables[EMBEDDING], tokens.T)
        tape.watch(inputs)
        h = tf.zeros([batch, projection.shape[0]])
        c = tf.zeros([batch, projection.shape[1]])
        losses: list[Any] = []
        for t in range(length):
            z = tf.matmul(tf.concat([inputs[t], h], axis=1), kernel, transpose_b=True) + variables[KERNEL_BIAS]
            z_forget, z_output, z_candidate = tf.split(z, 3, axis=1)
            f = tf.sigmoid(z_forget)
            c = f * c + (1.0 - f) * tf.tanh(z_candidate)
            h = tf.matmul(tf.sigmoid(z_output) * tf.tanh(c), projection, transpose_b=True)
            seen = h * tf.transpose(output_mask[t])
            logits = tf.matmul(seen, variables[EMBEDDING], transpose_b=True) + variables[OUTPUT_BIAS]
            losses.append(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets[:, t], logits=logits))
        share = tf.constant(weights.T / max(float(weights.sum()), 1.0), tf.float32)
        loss = tf.reduce_sum(share * tf.stack(losses))
    gradients = tape.gradient(loss, {**variables, "input_rows": inputs})
    dense = {name: np.asarray(tf.convert_to_tensor(value), np.float64) for name, value in gradients.items()}
    input_rows = dense.pop("input_rows").reshape(batch * length, -1)
    return Gradient(float(loss), dense, input_rows)
