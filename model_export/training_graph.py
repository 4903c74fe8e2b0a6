"""The training step as a graph of built-in ops: forward, hand-written back-propagation through time, SGD.

It exists because a tape's graph is slower and a Keras LSTM's does not convert without Flex. The rules, each measured
(a break of one is 1.5 to 2 times the time, or an op that the device lacks):
- no `transpose_b`, and no transpose that feeds the right side of a matmul directly: the converter turns both into
  FULLY_CONNECTED, which XNNPACK does not take with weights that are inputs. An elementwise op stands between;
- every activation is [features, batch]: weights are the left operand and are not packed again at every step;
- the output layer goes by columns and in chunks of the vocabulary; bias and stabiliser are rows of its small operand,
  so no pass over [words, positions] adds, subtracts or divides;
- a softmax is never formed: exp(logits - m) is used as it is and 1/sum scales the small factors.

m = max(logit of the target, |[h; 1]| R - 75), R the longest row of [embedding | bias | 1]: by Cauchy-Schwarz no
exponent exceeds 75, so exp cannot overflow whatever the weights. Where logits exceed about 150 the other terms
underflow and the gradient is no longer the softmax's, but loss and weights stay finite.

Position n of N = length x batch is step * batch + row.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

Tensor = Any
VOCABULARY_CHUNKS = 5
LARGEST_EXPONENT = 75.0


@dataclass(frozen=True)
class Unrolled:
    """What the forward pass keeps for the way back: lists over steps, each [features, batch]."""

    inputs: list[Tensor]
    forget: list[Tensor]
    output: list[Tensor]
    candidate: list[Tensor]
    cells_before: list[Tensor]
    cells_tanh: list[Tensor]
    gated: list[Tensor]
    states: list[Tensor]
    cells: Tensor

    @property
    def by_step(self) -> tuple[list[Tensor], ...]:
        """The eight lists in the order of the fields."""
        return (self.inputs, self.forget, self.output, self.candidate, self.cells_before, self.cells_tanh, self.gated,
                self.states)  # fmt: skip


@dataclass(frozen=True)
class OutputLayer:
    """Loss, the gradient at the states [width, N], the dense part of the new rows, and the targets' own rows."""

    loss: Tensor
    states_gradient: Tensor
    trained_rows: Tensor
    target_rows_step: Tensor


def by_position(ids: Tensor) -> Tensor:
    """Return [batch, length] as a vector over positions."""
    return tf.reshape(tf.transpose(ids), [-1])


def unroll(steps: list[Tensor], kernel_rows: Tensor, projection: Tensor, state_h: Tensor, state_c: Tensor) -> Unrolled:
    """Run the cell over `steps` (each [width, batch]) from a state; see `network` for the formulas."""
    one = tf.ones([1, steps[0].shape[1]])
    h, c = state_h, state_c
    kept = Unrolled([], [], [], [], [], [], [], [], cells=c)
    for x in steps:
        a = tf.concat([x, h, one], axis=0)
        z_forget, z_output, z_candidate = tf.split(tf.matmul(kernel_rows, a), 3, axis=0)
        f, o, g = tf.sigmoid(z_forget), tf.sigmoid(z_output), tf.tanh(z_candidate)
        before, c = c, g + f * (c - g)
        tanh_c = tf.tanh(c)
        m = o * tanh_c
        h = tf.matmul(projection, m)
        for values, value in zip(kept.by_step, (a, f, o, g, before, tanh_c, m, h), strict=True):
            values.append(value)
    return replace(kept, cells=c)


def output_layer(
    states: Tensor, rows: Tensor, targets: Tensor, weights: Tensor, learning_rate: Tensor, chunks: int
) -> OutputLayer:
    """Cross-entropy against `rows` [words, width + 2] and everything that flows back from it.

    states: [width, N]; targets: int32 [N]; weights: [N]; the ones column of `rows` meets -m and stays exactly 1.
    """
    width, positions = states.shape
    words = rows.shape[0]
    share = weights / tf.maximum(tf.reduce_sum(weights), 1.0)
    ones, zeros = tf.ones([positions, 1]), tf.zeros([positions, 1])
    h1_rows = tf.concat([tf.transpose(states), ones, zeros], axis=1)
    target_rows = tf.gather(rows, targets)
    target_logit = tf.reduce_sum(h1_rows * target_rows, axis=1)
    longest_row = tf.sqrt(tf.reduce_max(tf.reduce_sum(rows * rows, axis=1)))
    reach = tf.sqrt(tf.reduce_sum(h1_rows * h1_rows, axis=1)) * longest_row
    m = tf.maximum(target_logit, reach - LARGEST_EXPONENT)
    columns = tf.concat([states, tf.ones([1, positions]), -m[tf.newaxis, :]], axis=0)
    rows_transposed = tf.transpose(rows)
    bounds = [words * i // chunks for i in range(chunks + 1)]
    spans = list(itertools.pairwise(bounds))
    exponentials = [tf.exp(tf.matmul(rows[start:stop], columns)) for start, stop in spans]
    total = tf.maximum(tf.add_n([tf.reduce_sum(q, axis=0) for q in exponentials]), 1e-30)
    loss = tf.reduce_sum(share * (tf.math.log(total) + m - target_logit))
    ratio = share / total
    pull = tf.add_n([tf.matmul(rows_transposed[:width, a:b], q) for (a, b), q in zip(spans, exponentials, strict=True)])
    states_gradient = pull * ratio - tf.transpose(target_rows[:, :width]) * share
    scaled = h1_rows * (ratio * learning_rate)[:, tf.newaxis]
    trained = tf.concat(
        [rows[a:b] - tf.matmul(q, scaled) for (a, b), q in zip(spans, exponentials, strict=True)], axis=0
    )
    return OutputLayer(loss, states_gradient, trained, h1_rows * (-share * learning_rate)[:, tf.newaxis])


def recurrence_step(
    kept: Unrolled, states_gradient: list[Tensor], kernel_rows: Tensor, projection: Tensor, learning_rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through time; return the trained kernel rows, the trained projection and lr * dX [N, width]."""
    width, batch = states_gradient[0].shape
    kernel_transposed = tf.transpose(kernel_rows)[: 2 * width]
    projection_transposed = tf.transpose(projection)
    dh_next, dc = tf.zeros([width, batch]), tf.zeros(kept.gated[0].shape)
    dz_steps, dh_steps, dx_steps = [], [], []
    for t in reversed(range(len(states_gradient))):
        f, o, g, m = kept.forget[t], kept.output[t], kept.candidate[t], kept.gated[t]
        dh = states_gradient[t] + dh_next
        dm = tf.matmul(projection_transposed, dh)
        dmo = dm * o
        dc += dmo - dmo * kept.cells_tanh[t] * kept.cells_tanh[t]
        dc_before = dc * f
        dg = dc - dc_before
        dz_forget = dg * f * (kept.cells_before[t] - g)
        dz_output = dm * m * (1.0 - o)
        dz_candidate = dg * (1.0 - g * g)
        dz = tf.concat([dz_forget, dz_output, dz_candidate], axis=0)
        dx, dh_next = tf.split(tf.matmul(kernel_transposed, dz), 2, axis=0)
        dc = dc_before
        dz_steps.append(dz)
        dh_steps.append(dh)
        dx_steps.append(dx)
    dz_all = tf.concat(dz_steps[::-1], axis=1)
    dh_all = tf.concat(dh_steps[::-1], axis=1)
    dx_all = tf.concat(dx_steps[::-1], axis=1)
    inputs = tf.transpose(tf.concat(kept.inputs, axis=1)) * learning_rate
    gated = tf.transpose(tf.concat(kept.gated, axis=1)) * learning_rate
    return (
        kernel_rows - tf.matmul(dz_all, inputs),
        projection - tf.matmul(dh_all, gated),
        tf.transpose(dx_all) * learning_rate,
    )


@dataclass(frozen=True)
class Step:
    """One SGD step: `rows` still lacks the sparse parts, which `target_rows_step` and `input_rows_step` hold."""

    loss: Tensor
    rows: Tensor
    target_rows_step: Tensor
    input_rows_step: Tensor
    kernel_rows: Tensor
    projection: Tensor


def training_step(
    input_rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    learning_rate: Tensor,
    output_mask: Tensor,
    rows: Tensor,
    kernel_rows: Tensor,
    projection: Tensor,
    chunks: int,
) -> Step:
    """Return one step of SGD on the weighted mean loss; input_rows: [N, width]; targets: int32 [N]; weights: [N].

    output_mask [length, width, batch] multiplies what the output layer sees of the state, never the recurrence.
    """
    length, width, batch = output_mask.shape
    steps = tf.unstack(tf.transpose(tf.reshape(input_rows, [length, batch, width]), [0, 2, 1]))
    masks = tf.unstack(output_mask)
    kept = unroll(steps, kernel_rows, projection, tf.zeros([width, batch]), tf.zeros([projection.shape[1], batch]))
    masked = tf.concat([h * mask for h, mask in zip(kept.states, masks, strict=True)], axis=1)
    out = output_layer(masked, rows, targets, weights, learning_rate, chunks)
    gradients = tf.split(out.states_gradient, length, axis=1)
    kernel, projected, input_step = recurrence_step(
        kept, [g * mask for g, mask in zip(gradients, masks, strict=True)], kernel_rows, projection, learning_rate
    )
    return Step(out.loss, out.trained_rows, out.target_rows_step, input_step, kernel, projected)


def train(
    tokens: Tensor,
    targets: Tensor,
    weights: Tensor,
    learning_rate: Tensor,
    output_mask: Tensor,
    output_rows: Tensor,
    kernel_rows: Tensor,
    projection: Tensor,
) -> dict[str, Tensor]:
    """The exact step over the whole vocabulary; weights in, weights out. tokens, targets: int32 [batch, length]."""
    width = projection.shape[0]
    inputs, labels = by_position(tokens), by_position(targets)
    step = training_step(
        tf.gather(output_rows, inputs)[:, :width],
        labels,
        by_position(weights),
        learning_rate,
        output_mask,
        output_rows,
        kernel_rows,
        projection,
        VOCABULARY_CHUNKS,
    )
    sparse = tf.concat([tf.pad(step.input_rows_step, [[0, 0], [0, 2]]), step.target_rows_step], axis=0)
    touched = tf.concat([inputs, labels], axis=0)[:, tf.newaxis]
    # SCATTER_ND adds rows that come twice, in TensorFlow and in TFLite.
    return {
        "loss": step.loss,
        "trained_output_rows": step.rows - tf.scatter_nd(touched, sparse, output_rows.shape),
        "trained_kernel_rows": step.kernel_rows,
        "trained_projection": step.projection,
    }


def train_sampled(
    input_rows: Tensor,
    candidate_rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    learning_rate: Tensor,
    output_mask: Tensor,
    kernel_rows: Tensor,
    projection: Tensor,
) -> dict[str, Tensor]:
    """The step over a candidate set: the batch's targets and negatives, chosen by the host (Jean et al. 2015).

    The host subtracts each candidate's log inclusion probability from the bias column (without it the model learns
    the proposal); with the whole vocabulary as candidates this is `train`. targets: positions in the candidate set.
    The graph holds no vocabulary, so its cost does not depend on it.
    """
    labels = by_position(targets)
    step = training_step(
        input_rows,
        labels,
        by_position(weights),
        learning_rate,
        output_mask,
        candidate_rows,
        kernel_rows,
        projection,
        chunks=1,
    )
    sparse = tf.scatter_nd(labels[:, tf.newaxis], step.target_rows_step, candidate_rows.shape)
    return {
        "loss": step.loss,
        "trained_candidate_rows": step.rows - sparse,
        "input_rows_step": step.input_rows_step,
        "trained_kernel_rows": step.kernel_rows,
        "trained_projection": step.projection,
    }
