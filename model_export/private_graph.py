"""`train_private`: SGD on the clipped gradients of single rows, exact and in one pass, for differential privacy.

Use it where a device bounds what one row of its batch may do to its step (Abadi et al. 2016, arXiv 1607.00133). Row b
of the batch has the loss

    L_b = sum over its positions t of weights[b, t] * cross-entropy[b, t]

(not divided by the batch's sum of weights), g_b is its gradient over all five fleet tensors together, and the step is

    weights - learning_rate / batch * sum_b g_b * min(1, C / |g_b|)

with C = `example_clip`. So one row more or less moves the sum by at most C (1.00001 C by float32's rounding), and the
divisor is the batch's fixed number of rows, however many carry weight; a row without any weight has g_b = 0 and adds
nothing. Noise is the host's: the graph adds none. `loss` is the weighted mean, as `train` reports it.

The norms come without forming any g_b (Goodfellow 2015, arXiv 1510.01799; for sequences and tied embeddings Li et al.
2022, arXiv 2110.05679, "ghost clipping"): the gradient of a matrix is sum_t delta_t a_t^T, so its squared norm is
sum_tt' (delta_t . delta_t')(a_t . a_t'). The tied embedding gets such a sum from the output layer, and single rows dx_t
from the inputs, hence also their product with each other:

    |G_out + G_in|^2 = |G_out|^2 + |G_in|^2 + 2 sum_tt' delta_t[x_t'] (h_t . dx_t')

with delta_t = s_t (p_t - onehot(y_t)). Once the factors min(1, C / |g_b|) are known they scale the small right operands
of the matmuls that make the step; the way back through time is not gone twice.

A norm that is made of small differences of large terms (a row whose targets are all but certain) is less exact in
float32: by 1 part in 5,000 at 2 % of an untrained row's norm, more below. So the factors use the square plus a bound of
that rounding: such a row is clipped a little early and never late; for others the bound is below 1 part in a million.

Tensors here named by_row are [batch, length, features].
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from model_export.training_graph import (
    Deltas,
    Exponentials,
    Unrolled,
    by_position,
    exponentials,
    masked,
    through_time,
    trained_recurrence,
    unroll,
    with_sparse_rows,
)

Tensor = Any
SMALLEST_NORM = 1e-30
# Float32's rounding in the sums of a squared norm, a few units in the last place of their terms; of a softmax, tens.
ROUNDING = 2.0**-21
SOFTMAX_ROUNDING = 2.0**-18


def columns_by_row(columns: Tensor, batch: int) -> Tensor:
    """Return [features, N] as [batch, length, features]."""
    features, positions = columns.shape
    return tf.transpose(tf.reshape(columns, [features, positions // batch, batch]), [2, 1, 0])


def rows_by_row(rows: Tensor, batch: int) -> Tensor:
    """Return [N, features] as [batch, length, features]."""
    positions, features = rows.shape
    return tf.transpose(tf.reshape(rows, [positions // batch, batch, features]), [1, 0, 2])


def products(left: Tensor, right: Tensor) -> Tensor:
    """Return the scalar products of all pairs of positions within each row, [batch, length, length]."""
    return tf.matmul(left, right, transpose_b=True)


def _same(left: Tensor, right: Tensor) -> Tensor:
    """Return 1.0 where two positions of a row hold the same word; both int32 [batch, length]."""
    return tf.cast(tf.equal(left[:, :, tf.newaxis], right[:, tf.newaxis, :]), tf.float32)


@dataclass(frozen=True)
class Positions:
    """What belongs to each position of a batch: words read and to be predicted, int32 [batch, length], and weights."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor


def _softmax_products(out: Exponentials, ratio: Tensor, batch: int) -> Tensor:
    """Return s_t s_t' (p_t . p_t') of all pairs; ratio [N] is s / total."""
    parts = []
    for chunk in out.chunks:
        # Scaled before it is multiplied with itself: the square of an exponential may overflow.
        scaled = columns_by_row(chunk * ratio, batch)
        parts.append(products(scaled, scaled))
    return parts[0] if len(parts) == 1 else tf.add_n(parts)


def squared_norms(
    at: Positions, kept: Unrolled, out: Exponentials, deltas: Deltas, word_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Return |g_b|^2 of every row, [batch], and how far rounding may have put it below the truth.

    word_rows [N, width + 2] are the rows of the words read.
    """
    batch = at.tokens.shape[0]
    weights = by_position(at.weights)
    ratio = weights / out.total
    states = rows_by_row(out.state_rows, batch)
    with_stabiliser = tf.concat([out.state_rows[:, :-1], -out.stabiliser[:, tf.newaxis]], axis=1)
    logits_of = rows_by_row(with_stabiliser, batch)
    own = at.weights[:, :, tf.newaxis]
    share = tf.transpose(tf.reshape(ratio, [-1, batch]))[:, :, tf.newaxis]
    # s_t p_t at the words that the row's positions are to predict, and at those that it reads.
    at_targets = tf.exp(products(logits_of, rows_by_row(out.target_rows, batch))) * share
    at_inputs = tf.exp(products(logits_of, rows_by_row(word_rows, batch))) * share
    others = at.weights[:, tf.newaxis, :]
    probable = _softmax_products(out, ratio, batch)
    output_deltas = probable - 2.0 * at_targets * others + _same(at.targets, at.targets) * own * others
    state_products = products(states, states)
    output_layer = output_deltas * state_products
    inputs = columns_by_row(deltas.inputs, batch)
    embedding = _same(at.tokens, at.tokens) * products(inputs, inputs)
    width = inputs.shape[2]
    tied = (at_inputs - _same(at.targets, at.tokens) * own) * products(states[:, :, :width], inputs)
    gates, cell_inputs = columns_by_row(deltas.gates, batch), rows_by_row(kept.cell_inputs(), batch)
    kernel = products(gates, gates) * (products(cell_inputs, cell_inputs) + 1.0)
    back, gated = columns_by_row(deltas.states, batch), columns_by_row(kept.gated_columns(), batch)
    projection = products(back, back) * products(gated, gated)
    every = output_layer + embedding + 2.0 * tied + kernel + projection
    # Where a target is all but certain, p . p' - 2 p[y'] + 1 is a small difference of terms near 1, and each p carries
    # the rounding of a sum over the vocabulary.
    rounded = (probable + 2.0 * at_targets * others) * tf.abs(state_products)
    slack = tf.reduce_sum(ROUNDING * tf.abs(every) + SOFTMAX_ROUNDING * rounded, axis=[1, 2])
    # Rounding may leave a sum of nothing below zero.
    return tf.maximum(tf.reduce_sum(every, axis=[1, 2]), 0.0), slack


def train_private(
    tokens: Tensor,
    targets: Tensor,
    weights: Tensor,
    learning_rate: Tensor,
    example_clip: Tensor,
    output_mask: Tensor,
    output_rows: Tensor,
    kernel_rows: Tensor,
    projection: Tensor,
) -> dict[str, Tensor]:
    """The step of the module's head; arguments as `train`'s, besides example_clip: float32, the clip norm C of a row.

    `norms` [batch] are |g_b| before clipping.
    """
    length, width, batch = output_mask.shape
    inputs, labels, shares = by_position(tokens), by_position(targets), by_position(weights)
    word_rows = tf.gather(output_rows, inputs)
    kept = unroll(word_rows[:, :width], kernel_rows, projection, batch)
    seen = masked(kept, output_mask)
    out = exponentials(seen.states, output_rows, labels)
    gradients = seen.gradient_by_step(out.states_gradient(shares), length)
    deltas = through_time(kept, gradients, kernel_rows, projection)
    at = Positions(tokens, targets, weights)
    squares, slack = squared_norms(at, kept, out, deltas, word_rows)
    at_most = tf.maximum(tf.sqrt(squares + slack), SMALLEST_NORM)
    factors = tf.minimum(example_clip / at_most, 1.0) * (learning_rate / float(batch))
    rate = tf.tile(factors, [length])
    trained_kernel, trained_projection = trained_recurrence(deltas, kept, kernel_rows, projection, rate)
    return {
        "loss": tf.reduce_sum(shares * (out.log_total - out.target_logit)) / tf.maximum(tf.reduce_sum(shares), 1.0),
        "norms": tf.sqrt(squares),
        "trained_output_rows": with_sparse_rows(
            out.trained_rows(output_rows, shares * rate),
            inputs,
            tf.transpose(deltas.inputs * rate),
            labels,
            out.target_rows_step(shares * rate),
        ),
        "trained_kernel_rows": trained_kernel,
        "trained_projection": trained_projection,
    }
