"""The training step as a graph of built-in ops: forward, hand-written back-propagation through time, SGD.

It exists because a tape's graph is slower and a Keras LSTM's does not convert without Flex. The rules, each measured
(a break of one is 1.5 to 2 times the time, or an op that the device lacks):
- no `transpose_b`, and no transpose that feeds the right side of a matmul directly: the converter turns both into
  FULLY_CONNECTED, which XNNPACK does not take with weights that are inputs. An elementwise op stands between;
- every activation is [features, batch]: weights are the left operand and are not packed again at every step;
- what does not wait for the state is done for all steps in one matmul: kernels compute 16 to 32 columns at a time, so a
  product of 16 columns may cost as much as one of 32;
- the output layer goes by columns and in chunks of the vocabulary that fit a core's cache: logits, exp and their pull
  on the state are done with one chunk before the next; bias, stabiliser and the sum of the exponentials are rows of a
  matmul, so that no pass over [words, positions] adds, subtracts, divides or sums;
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
CHUNK_WORDS = 500
LARGEST_EXPONENT = 75.0
SMALLEST_SUM = 1e-30


@dataclass(frozen=True)
class Unrolled:
    """What the forward pass keeps for the way back: lists over steps, each [features, batch].

    `retained` is f * (cells before - g), the part of the cells that the forget gate decides on.
    """

    input_rows: Tensor
    forget: list[Tensor]
    output: list[Tensor]
    candidate: list[Tensor]
    retained: list[Tensor]
    cells_tanh: list[Tensor]
    gated: list[Tensor]
    states_before: list[Tensor]
    states: list[Tensor]
    cells: Tensor

    @property
    def positions(self) -> int:
        """N: length x batch."""
        return int(self.input_rows.shape[0])

    def cell_inputs(self) -> Tensor:
        """Return [x; h before] of every position as rows [N, 2 width]."""
        return tf.concat([self.input_rows, tf.transpose(tf.concat(self.states_before, axis=1))], axis=1)

    def gated_columns(self) -> Tensor:
        """Return o * tanh(c) of every position as columns [cells, N]."""
        return tf.concat(self.gated, axis=1)


def by_position(values: Tensor) -> Tensor:
    """Return [batch, length] as a vector over positions."""
    return tf.reshape(tf.transpose(values), [-1])


def unroll(
    input_rows: Tensor, kernel_rows: Tensor, projection: Tensor, batch: int, state: tuple[Tensor, Tensor] | None = None
) -> Unrolled:
    """Run the cell over input_rows [N, width]; see `network` for the formulas.

    state: h [width, batch] and c [cells, batch] to begin with; without one it is zero, and the first step, which is a
    matmul shorter then, has no constant operand that the converter would make a FULLY_CONNECTED of.
    """
    width, cells = projection.shape
    positions = input_rows.shape[0]
    of_input = tf.concat([kernel_rows[:, :width], kernel_rows[:, 2 * width :]], axis=1)
    of_state = kernel_rows[:, width : 2 * width]
    columns = tf.concat([tf.transpose(input_rows), tf.ones([1, positions])], axis=0)
    from_input = tf.split(tf.matmul(of_input, columns), positions // batch, axis=1)
    h, c = state or (tf.zeros([width, batch]), tf.zeros([cells, batch]))
    kept = Unrolled(input_rows, [], [], [], [], [], [], [], [], cells=c)
    for t, z_input in enumerate(from_input):
        z = z_input if t == 0 and state is None else z_input + tf.matmul(of_state, h)
        z_forget, z_output, z_candidate = tf.split(z, 3, axis=0)
        f, o, g = tf.sigmoid(z_forget), tf.sigmoid(z_output), tf.tanh(z_candidate)
        retained = f * (c - g)
        c = g + retained
        tanh_c = tf.tanh(c)
        m = o * tanh_c
        kept.states_before.append(h)
        h = tf.matmul(projection, m)
        lists = (kept.forget, kept.output, kept.candidate, kept.retained, kept.cells_tanh, kept.gated, kept.states)
        for values, value in zip(lists, (f, o, g, retained, tanh_c, m, h), strict=True):
            values.append(value)
    return replace(kept, cells=c)


@dataclass(frozen=True)
class Exponentials:
    """exp(logits - m) in chunks of words, and what was summed over all of them.

    state_rows: [h; 1; 0] as rows [N, width + 2]; target_rows: each target's row of `rows`; pull: [width, N], the sum of
    embedding rows that the exponentials weigh; total: [N]; log_total: log of the softmax's denominator.
    """

    chunks: list[Tensor]
    spans: list[tuple[int, int]]
    stabiliser: Tensor
    state_rows: Tensor
    target_rows: Tensor
    target_logit: Tensor
    pull: Tensor
    total: Tensor

    @property
    def log_total(self) -> Tensor:
        """The logarithm of the softmax's denominator [N]."""
        return tf.math.log(self.total) + self.stabiliser

    def states_gradient(self, shares: Tensor) -> Tensor:
        """Return d/dh [width, N] of sum(shares * cross-entropy)."""
        width = self.pull.shape[0]
        return self.pull * (shares / self.total) - tf.transpose(self.target_rows[:, :width]) * shares

    def trained_rows(self, rows: Tensor, shares: Tensor) -> Tensor:
        """Return `rows` minus the dense part of their gradient; `shares` [N] have the learning rate in them."""
        scaled = self.state_rows * (shares / self.total)[:, tf.newaxis]
        dense = [tf.matmul(chunk, scaled) for chunk in self.chunks]
        return rows - (dense[0] if len(dense) == 1 else tf.concat(dense, axis=0))

    def target_rows_step(self, shares: Tensor) -> Tensor:
        """Return what is to be subtracted from the targets' rows besides, [N, width + 2]."""
        return self.state_rows * -shares[:, tf.newaxis]


def exponentials(states: Tensor, rows: Tensor, targets: Tensor) -> Exponentials:
    """Multiply states [width, N] with `rows` [words, width + 2], whose last column is 1. targets: int32 [N]."""
    width, positions = states.shape
    words = rows.shape[0]
    ones = tf.ones([positions, 1])
    state_rows = tf.concat([tf.transpose(states), ones, tf.zeros([positions, 1])], axis=1)
    target_rows = tf.gather(rows, targets)
    target_logit = tf.reduce_sum(state_rows * target_rows, axis=1)
    longest_row = tf.sqrt(tf.reduce_max(tf.reduce_sum(rows * rows, axis=1)))
    reach = tf.sqrt(tf.reduce_sum(state_rows * state_rows, axis=1)) * longest_row
    m = tf.maximum(target_logit, reach - LARGEST_EXPONENT)
    columns = tf.concat([states, tf.ones([1, positions]), -m[tf.newaxis, :]], axis=0)
    count = max(1, round(words / CHUNK_WORDS))
    spans = list(itertools.pairwise(words * i // count for i in range(count + 1)))
    chunks, pulls = [], []
    for start, stop in spans:
        part = rows if count == 1 else rows[start:stop]
        chunk = tf.exp(tf.matmul(part, columns))
        chunks.append(chunk)
        # The ones column, transposed, is the row that sums.
        pulls.append(tf.matmul(part, chunk, transpose_a=True))
    pull = pulls[0] if count == 1 else tf.add_n(pulls)
    total = tf.maximum(pull[width + 1], SMALLEST_SUM)
    return Exponentials(chunks, spans, m, state_rows, target_rows, target_logit, pull[:width], total)


@dataclass(frozen=True)
class Deltas:
    """The loss's gradient at the gates [3 cells, N], at the states [width, N] and at the inputs [width, N]."""

    gates: Tensor
    states: Tensor
    inputs: Tensor


def through_time(kept: Unrolled, states_gradient: list[Tensor], kernel_rows: Tensor, projection: Tensor) -> Deltas:
    """Go back through time from the gradient at each step's state, [width, batch] each."""
    width = projection.shape[0]
    kernel_transposed = tf.transpose(kernel_rows)
    # Slices stand between the transposes and the matmuls: folded into them, they would be done at every step.
    to_input, to_state = kernel_transposed[:width], kernel_transposed[width : 2 * width]
    to_gated = tf.transpose(projection)
    gates, states = [], []
    dh, dc_next = states_gradient[-1], None
    for t in reversed(range(len(states_gradient))):
        f, o, g, m = kept.forget[t], kept.output[t], kept.candidate[t], kept.gated[t]
        dm = tf.matmul(to_gated, dh)
        dmm = dm * m
        dc = dm * o - dmm * kept.cells_tanh[t]
        if dc_next is not None:
            dc += dc_next
        dc_next = dc * f
        dg = dc - dc_next
        dz = tf.concat([dg * kept.retained[t], dmm * (1.0 - o), dg * (1.0 - g * g)], axis=0)
        gates.append(dz)
        states.append(dh)
        if t:
            dh = states_gradient[t - 1] + tf.matmul(to_state, dz)
    all_gates = tf.concat(gates[::-1], axis=1)
    return Deltas(all_gates, tf.concat(states[::-1], axis=1), tf.matmul(to_input, all_gates))


def trained_recurrence(
    deltas: Deltas, kept: Unrolled, kernel_rows: Tensor, projection: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor]:
    """Return kernel rows and projection minus `rate` times their gradient; rate: a scalar, or [N] by position."""
    by_row = rate if rate.shape.rank == 0 else rate[:, tf.newaxis]
    kernel = tf.matmul(deltas.gates, kept.cell_inputs() * by_row)
    # The bias apart: as one more column it would cost a whole panel of the kernel's.
    if rate.shape.rank == 0:
        bias = tf.reduce_sum(deltas.gates, axis=1, keepdims=True) * rate
    else:
        bias = tf.reduce_sum(deltas.gates * rate, axis=1, keepdims=True)
    # The gated cells are the larger operand, hence the left one, which is not packed.
    transposed = tf.matmul(kept.gated_columns(), tf.transpose(deltas.states) * by_row)
    return kernel_rows - tf.concat([kernel, bias], axis=1), projection - tf.transpose(transposed)


@dataclass(frozen=True)
class Seen:
    """What the output layer sees: states times mask, [width, N], and the mask in the same order."""

    states: Tensor
    mask: Tensor

    def gradient_by_step(self, states_gradient: Tensor, length: int) -> list[Tensor]:
        """Return the gradient at the recurrence's own states, step by step."""
        return list(tf.split(states_gradient * self.mask, length, axis=1))


def masked(kept: Unrolled, output_mask: Tensor) -> Seen:
    """Apply output_mask [length, width, batch]: to what the output layer sees of the state, never to the recurrence."""
    length, width, batch = output_mask.shape
    mask = tf.reshape(tf.transpose(output_mask, [1, 0, 2]), [width, length * batch])
    return Seen(tf.concat(kept.states, axis=1) * mask, mask)


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
) -> Step:
    """Return one step of SGD on the weighted mean loss; input_rows: [N, width]; targets: int32 [N]; weights: [N]."""
    length, _, batch = output_mask.shape
    kept = unroll(input_rows, kernel_rows, projection, batch)
    seen = masked(kept, output_mask)
    out = exponentials(seen.states, rows, targets)
    shares = weights / tf.maximum(tf.reduce_sum(weights), 1.0)
    gradients = seen.gradient_by_step(out.states_gradient(shares), length)
    deltas = through_time(kept, gradients, kernel_rows, projection)
    trained_kernel, trained_projection = trained_recurrence(deltas, kept, kernel_rows, projection, learning_rate)
    return Step(
        tf.reduce_sum(shares * (out.log_total - out.target_logit)),
        out.trained_rows(rows, shares * learning_rate),
        out.target_rows_step(shares * learning_rate),
        tf.transpose(deltas.inputs) * learning_rate,
        trained_kernel,
        trained_projection,
    )


def with_sparse_rows(
    rows: Tensor, inputs: Tensor, input_rows_step: Tensor, targets: Tensor, target_rows_step: Tensor
) -> Tensor:
    """Return `rows` minus the steps of single rows; SCATTER_ND adds rows that come twice, as TensorFlow does."""
    sparse = tf.concat([tf.pad(input_rows_step, [[0, 0], [0, 2]]), target_rows_step], axis=0)
    touched = tf.concat([inputs, targets], axis=0)[:, tf.newaxis]
    return rows - tf.scatter_nd(touched, sparse, rows.shape)


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
    )
    return {
        "loss": step.loss,
        "trained_output_rows": with_sparse_rows(step.rows, inputs, step.input_rows_step, labels, step.target_rows_step),
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
    )
    sparse = tf.scatter_nd(labels[:, tf.newaxis], step.target_rows_step, candidate_rows.shape)
    return {
        "loss": step.loss,
        "trained_candidate_rows": step.rows - sparse,
        "input_rows_step": step.input_rows_step,
        "trained_kernel_rows": step.kernel_rows,
        "trained_projection": step.projection,
    }
