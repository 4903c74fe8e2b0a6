"""`train`, `train_sampled` and `train_private`: one SGD step in float32, weights in and weights out. Pure.

Arguments, results, shapes and meaning are those of the exported file's signatures. Ids are int32 [batch, length];
`weights` float32 [batch, length]; `output_mask` [length, width, batch] multiplies what the output layer sees of the
state, never the recurrence.

`train_private` clips each row's own gradient before it is summed (Abadi et al. 2016, arXiv 1607.00133):

    loss_b = sum_t weights_bt x cross-entropy_bt,   g_b its gradient in all tensors together,
    weights - learning_rate x sum_b g_b min(1, example_clip / |g_b|) / batch

so that one row moves the sum by `example_clip` at most; `loss` is the weighted mean, as `train` reports it. |g_b| is
exact and comes out of one forward and one backward
pass (Goodfellow 2015, arXiv 1510.01799; tied embeddings as in Li et al. 2022, arXiv 2110.05679): for a product the
squared norm of a row's gradient is sum over t, t' of (delta_t . delta_t') (a_t . a_t'), and only the factor
min(1, C / |g_b|) is then folded into the small operands, so nothing is propagated twice.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.numpy_engine.output_layer import OutputLayer
from edge_runtime.numpy_engine.recurrence import Backward, Unrolled, by_row, by_step, go_back, kernel_inputs, unroll

Floats = NDArray[np.float32]
Inputs = Mapping[str, Any]
Outputs = dict[str, Any]
_ONE, _TWO = np.float32(1.0), np.float32(2.0)
_SMALLEST_NORM = np.float32(1e-30)
# As in the exported graph: float32 in the sums of a squared norm, and of a softmax over the vocabulary.
_ROUNDING, _SOFTMAX_ROUNDING = np.float32(2.0**-21), np.float32(2.0**-18)


def time_major(batch_major: NDArray[Any]) -> NDArray[Any]:
    """Return [batch, length] as a vector over positions step * batch + row, the order of the signatures' arrays."""
    return np.ascontiguousarray(batch_major.T).reshape(-1)


class _Pass:
    """Forward through the cell and the output layer, whose positions are row * length + step."""

    def __init__(self, input_rows: Floats, rows: Floats, inputs: Inputs) -> None:
        self.mask: Floats = inputs["output_mask"]
        self.length, self.width, self.batch = self.mask.shape
        self.kernel_rows, self.projection = inputs["kernel_rows"], inputs["projection"]
        self.rate: Floats = inputs["learning_rate"]
        steps = np.ascontiguousarray(input_rows.reshape(self.length, self.batch, self.width).transpose(0, 2, 1))
        self.state_h = np.zeros((self.width, self.batch), np.float32)
        state_c = np.zeros((self.projection.shape[1], self.batch), np.float32)
        self.kept: Unrolled = unroll(steps, self.kernel_rows, self.projection, self.state_h, state_c)
        self.out = OutputLayer(rows, by_row(self.kept.states * self.mask), inputs["targets"].reshape(-1))

    def go_back(self, share: Floats) -> Backward:
        """Return the gradients of the sum of share [N] x loss."""
        gradient = self.out.states_gradient(share).reshape(self.width, self.batch, self.length).transpose(2, 0, 1)
        return go_back(self.kept, gradient * self.mask, self.kernel_rows, self.projection)

    def stepped(self, gates: Floats, right: Floats, states: Floats, gated: Floats) -> Outputs:
        """Return the trained kernel rows and projection of two products' factors, each [features, N]."""
        return {
            "trained_kernel_rows": self.kernel_rows - gates @ right.T,
            "trained_projection": self.projection - states @ gated.T,
        }

    def stepped_at_rate(self, back: Backward) -> Outputs:
        """Return the same at the learning rate alone."""
        right, gated = by_step(kernel_inputs(self.kept, self.state_h)), by_step(self.kept.gated)
        right *= self.rate
        gated *= self.rate
        return self.stepped(by_step(back.gates), right, by_step(back.states), gated)

    def inputs_step(self, back: Backward, scale: Floats) -> Floats:
        """Return what the input rows move by, [N, width], time-major; scale is one value, or one of each row."""
        step = back.inputs * scale
        return np.ascontiguousarray(step.transpose(0, 2, 1)).reshape(self.length * self.batch, self.width)


def _mean_share(weights: Floats) -> Floats:
    share: Floats = weights.reshape(-1) / np.maximum(weights.sum(), _ONE)
    return share


def train(inputs: Inputs) -> Outputs:
    """The exact step over the whole vocabulary."""
    rows, tokens = inputs["output_rows"], time_major(inputs["tokens"])
    width = inputs["projection"].shape[0]
    run = _Pass(rows[tokens, :width], rows, inputs)
    share = _mean_share(inputs["weights"])
    back = run.go_back(share)
    stepped = run.out.stepped_rows(share, run.rate)
    np.subtract.at(stepped[:, :width], tokens, run.inputs_step(back, run.rate))
    return {
        "loss": np.array(share @ run.out.losses(), np.float32),
        "trained_output_rows": stepped,
        **run.stepped_at_rate(back),
    }


def train_sampled(inputs: Inputs) -> Outputs:
    """The step over a candidate set (Jean et al. 2015); targets are positions in it."""
    run = _Pass(inputs["input_rows"], inputs["candidate_rows"], inputs)
    share = _mean_share(inputs["weights"])
    back = run.go_back(share)
    return {
        "loss": np.array(share @ run.out.losses(), np.float32),
        "trained_candidate_rows": run.out.stepped_rows(share, run.rate),
        "input_rows_step": run.inputs_step(back, run.rate),
        **run.stepped_at_rate(back),
    }


def train_private(inputs: Inputs) -> Outputs:
    """The exact step with every row's gradient clipped to `example_clip`; `norms` [batch] are those before.

    A row whose targets are all but certain has a norm of small differences of large terms. So the factors use the
    square plus a bound of its rounding, as the exported graph does: such a row is clipped a little early, never late.
    """
    rows, tokens = inputs["output_rows"], time_major(inputs["tokens"])
    width = inputs["projection"].shape[0]
    run = _Pass(rows[tokens, :width], rows, inputs)
    share: Floats = inputs["weights"].reshape(-1)
    back = run.go_back(share)
    gates, right = by_row(back.gates), by_row(kernel_inputs(run.kept, run.state_h))
    states, gated = by_row(back.states), by_row(run.kept.gated)
    pairs = _pairs(gates, run.batch) * _pairs(right, run.batch) + _pairs(states, run.batch) * _pairs(gated, run.batch)
    embedding, rounded = _embedding_pairs(run, back, share.reshape(run.batch, run.length), inputs["tokens"])
    pairs += embedding
    squares: Floats = np.maximum(pairs.sum(axis=(1, 2)), np.float32(0.0))
    slack: Floats = _ROUNDING * np.abs(pairs).sum(axis=(1, 2)) + _SOFTMAX_ROUNDING * rounded
    norms: Floats = np.sqrt(squares)
    factors: Floats = np.minimum(_ONE, inputs["example_clip"] / np.maximum(np.sqrt(squares + slack), _SMALLEST_NORM))
    factors /= np.float32(run.batch)
    scale = factors * run.rate
    scale_by_position = np.repeat(scale, run.length)
    right *= scale_by_position
    gated *= scale_by_position
    stepped = run.out.stepped_rows(share * np.repeat(factors, run.length), run.rate)
    np.subtract.at(stepped[:, :width], tokens, run.inputs_step(back, scale))
    return {
        "loss": np.array(_mean_share(inputs["weights"]) @ run.out.losses(), np.float32),
        "norms": norms,
        "trained_output_rows": stepped,
        **run.stepped(gates, right, states, gated),
    }


def _pairs(columns: Floats, batch: int) -> Floats:
    """Return the products of all pairs of a row's columns, [batch, length, length], of [features, batch x length]."""
    by_example = columns.reshape(len(columns), batch, -1)
    pairs: Floats = by_example.transpose(1, 2, 0) @ by_example.transpose(1, 0, 2)
    return pairs


def _embedding_pairs(run: _Pass, back: Backward, share: Floats, read: NDArray[np.int32]) -> tuple[Floats, Floats]:
    """Return what [embedding | bias] adds to |g_b|^2, by pairs of steps, and [batch] the size of the terms near 1 that
    cancel in it. share [batch, length].

    The tied rows get a part as outputs, delta h, and one as inputs, dX: both squares and the cross term. The output's
    delta_t is share_t (p_t - one at the target).
    """
    out, batch, length = run.out, run.batch, run.length
    targets = out.targets.reshape(batch, length)
    columns = np.ascontiguousarray(out.columns.reshape(-1, batch, length).transpose(1, 0, 2))
    inverse = out.inverse_sums.reshape(batch, 1, length)
    # p_t of the words that a row asks for and reads: [batch, place of the word, t].
    of_targets = np.exp(out.rows[targets] @ columns) * inverse
    of_read = np.exp(out.rows[read] @ columns) * inverse
    probable = np.zeros((batch, length, length), np.float32)
    for _, _, q in out.chunks():
        probable += _pairs(q * out.inverse_sums, batch)
    at_targets = of_targets + of_targets.transpose(0, 2, 1)
    both = share[:, :, np.newaxis] * share[:, np.newaxis, :]
    delta = probable - at_targets
    delta += targets[:, :, np.newaxis] == targets[:, np.newaxis, :]
    delta *= both
    states = out.states.reshape(run.width, batch, length)
    of_states: Floats = states.transpose(1, 2, 0) @ states.transpose(1, 0, 2)
    rounded: Floats = ((probable + at_targets) * both * np.abs(of_states + _ONE)).sum(axis=(1, 2))
    inputs = np.ascontiguousarray(back.inputs.transpose(2, 0, 1))
    of_inputs: Floats = inputs @ inputs.transpose(0, 2, 1)
    of_inputs *= read[:, :, np.newaxis] == read[:, np.newaxis, :]
    at_read = of_read - (read[:, :, np.newaxis] == targets[:, np.newaxis, :])
    at_read *= share[:, np.newaxis, :]
    cross: Floats = inputs @ states.transpose(1, 0, 2)
    total: Floats = delta * (of_states + _ONE) + of_inputs + _TWO * at_read * cross
    return total, rounded
