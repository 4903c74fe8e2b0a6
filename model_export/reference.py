"""The network in float64 numpy: forward, loss, gradients, and the manifest's template loss.

The judge of the exported file and of TensorFlow alike: written from the formulas of `network`, independent of both.
Arrays here are in the textbook order (position, feature); nothing is chunked, packed or stabilised by a bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.network import BATCH, LENGTH, NetworkSize, layout_without_file
from wire_contract.vocabulary import SPECIALS

Array = NDArray[np.float64]
Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Forward:
    """States [length, batch, width] and what the way back needs, each [length, batch, cells]."""

    inputs: Array
    states: Array
    forget: Array
    output: Array
    candidate: Array
    cells: Array
    cells_before: Array


def _double(tensors: Mapping[str, NDArray[np.floating]]) -> dict[str, Array]:
    return {name: np.asarray(value, np.float64) for name, value in tensors.items()}


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def run_cells(tensors: Mapping[str, Array], inputs: Array, state_h: Array, state_c: Array) -> Forward:
    """Run the cell over inputs [length, batch, width] from state_h [batch, width] and state_c [batch, cells]."""
    h, c = state_h, state_c
    kept: list[tuple[Array, ...]] = []
    for x in inputs:
        z = np.concatenate([x, h], axis=1) @ tensors["kernel"].T + tensors["kernel_bias"]
        z_forget, z_output, z_candidate = np.split(z, 3, axis=1)
        f, o, g = _sigmoid(z_forget), _sigmoid(z_output), np.tanh(z_candidate)
        before, c = c, f * c + (1.0 - f) * g
        h = (o * np.tanh(c)) @ tensors["projection"].T
        kept.append((h, f, o, g, c, before))
    return Forward(inputs, *(np.stack(values) for values in zip(*kept, strict=True)))


def logits_of(tensors: Mapping[str, NDArray[np.floating]], tokens: Ids) -> Array:
    """Return logits [length, batch, words] of tokens [batch, length] from the zero state."""
    exact = _double(tensors)
    width, cells = exact["projection"].shape
    batch = tokens.shape[0]
    forward = run_cells(exact, exact["embedding"][tokens.T], np.zeros((batch, width)), np.zeros((batch, cells)))
    return np.asarray(forward.states @ exact["embedding"].T + exact["output_bias"])


def context_logits(tensors: Mapping[str, NDArray[np.floating]], context: Ids) -> Array:
    """Return logits [words] after one left-padded context; leading <pad> leaves the state at zero."""
    present = context[np.argmax(context != 0) :] if (context != 0).any() else context[:0]
    if not len(present):
        return _double(tensors)["output_bias"]
    return np.asarray(logits_of(tensors, present[np.newaxis])[-1, 0])


def log_softmax(logits: Array) -> Array:
    """Return log probabilities along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def suggestion_log_probs(logits: Array) -> Array:
    """Return log probabilities of the ordinary words [words - 4], the specials left out."""
    return log_softmax(logits[..., len(SPECIALS) :])


@dataclass(frozen=True, slots=True)
class Gradient:
    """Loss and its gradient by fleet tensor, and at the input rows ([N, width], time-major)."""

    loss: float
    tensors: dict[str, Array]
    input_rows: Array


def gradient(
    tensors: Mapping[str, NDArray[np.floating]],
    tokens: Ids,
    targets: Ids,
    weights: NDArray[np.floating],
    output_mask: NDArray[np.floating],
) -> Gradient:
    """Return the weighted mean cross-entropy (divisor at least 1) and its exact gradient.

    tokens, targets, weights: [batch, length]; output_mask: [length, width, batch].
    """
    exact = _double(tensors)
    return _gradient(exact, exact["embedding"][tokens.T], targets, _mean_shares(weights), output_mask, tokens)


@dataclass(frozen=True, slots=True)
class PrivateGradient:
    """The loss, each row's gradient norm before clipping [batch], the bound, and the mean of the clipped gradients."""

    loss: float
    norms: Array
    clip: float
    tensors: dict[str, Array]


def private_gradient(
    tensors: Mapping[str, NDArray[np.floating]],
    tokens: Ids,
    targets: Ids,
    weights: NDArray[np.floating],
    output_mask: NDArray[np.floating],
    clip: float | None = None,
) -> PrivateGradient:
    """Return sum_b g_b min(1, clip / |g_b|) / batch, each g_b a gradient of its own; arguments as `gradient`.

    g_b is the gradient of row b's sum of weights * cross-entropy over all five tensors together. Without a clip it is
    the median of the norms that are not zero, rounded to float32, so that half of the rows are clipped.
    """
    exact = _double(tensors)
    rows = []
    for b in range(tokens.shape[0]):
        row = slice(b, b + 1)
        inputs = exact["embedding"][tokens[row].T]
        shares = np.asarray(weights[row], np.float64).T
        rows.append(_gradient(exact, inputs, targets[row], shares, output_mask[:, :, row], tokens[row]))
    norms = np.sqrt([sum(float((value**2).sum()) for value in row.tensors.values()) for row in rows])
    bound = float(np.float32(np.median(norms[norms > 0.0]))) if clip is None else clip
    factors = np.where(norms > bound, bound / np.maximum(norms, 1e-300), 1.0) / len(rows)
    clipped = {
        name: np.asarray(sum(factor * row.tensors[name] for factor, row in zip(factors, rows, strict=True)))
        for name in exact
    }
    loss = sum(row.loss for row in rows) / max(float(np.asarray(weights, np.float64).sum()), 1.0)
    return PrivateGradient(loss, norms, bound, clipped)


def _mean_shares(weights: NDArray[np.floating]) -> Array:
    """Return each position's share [length, batch] in a mean whose divisor is at least 1."""
    exact = np.asarray(weights, np.float64)
    return np.asarray(exact.T / max(float(exact.sum()), 1.0))


def sampled_gradient(
    tensors: Mapping[str, NDArray[np.floating]],
    tokens: Ids,
    candidates: Ids,
    bias_shift: NDArray[np.floating],
    local_targets: Ids,
    weights: NDArray[np.floating],
    output_mask: NDArray[np.floating],
) -> Gradient:
    """Return the same over a candidate set; `embedding` and `output_bias` gradients are those of the candidates' rows.

    bias_shift [K] is added to the candidates' biases (minus the log inclusion probability).
    """
    exact = _double(tensors)
    inputs = exact["embedding"][tokens.T]
    exact["embedding"] = exact["embedding"][candidates]
    exact["output_bias"] = exact["output_bias"][candidates] + np.asarray(bias_shift, np.float64)
    return _gradient(exact, inputs, local_targets, _mean_shares(weights), output_mask, None)


def _gradient(
    exact: dict[str, Array],
    inputs: Array,
    targets: Ids,
    share: Array,
    output_mask: NDArray[np.floating],
    tokens: Ids | None,
) -> Gradient:
    width, cells = exact["projection"].shape
    length, batch, _ = inputs.shape
    forward = run_cells(exact, inputs, np.zeros((batch, width)), np.zeros((batch, cells)))
    mask = np.asarray(output_mask, np.float64).transpose(0, 2, 1)
    masked = forward.states * mask
    log_p = log_softmax(masked @ exact["embedding"].T + exact["output_bias"])
    steps, rows = np.meshgrid(np.arange(length), np.arange(batch), indexing="ij")
    loss = -float((share * log_p[steps, rows, targets.T]).sum())
    d_logits = np.exp(log_p)
    d_logits[steps, rows, targets.T] -= 1.0
    d_logits *= share[:, :, np.newaxis]
    grads = {name: np.zeros_like(value) for name, value in exact.items()}
    grads["embedding"] += np.einsum("tbv,tbd->vd", d_logits, masked, optimize=True)
    grads["output_bias"] += d_logits.sum(axis=(0, 1))
    d_states = (d_logits @ exact["embedding"]) * mask
    d_inputs = np.zeros_like(inputs)
    dh, dc = np.zeros((batch, width)), np.zeros((batch, cells))
    for t in reversed(range(length)):
        f, o, g, c, before = (
            values[t]
            for values in (forward.forget, forward.output, forward.candidate, forward.cells, forward.cells_before)
        )
        dh = dh + d_states[t]
        tanh_c = np.tanh(c)
        grads["projection"] += dh.T @ (o * tanh_c)
        dm = dh @ exact["projection"]
        dc = dc + dm * o * (1.0 - tanh_c**2)
        dz = np.concatenate(
            [dc * (before - g) * f * (1.0 - f), dm * tanh_c * o * (1.0 - o), dc * (1.0 - f) * (1.0 - g**2)], axis=1
        )
        h_before = forward.states[t - 1] if t else np.zeros((batch, width))
        grads["kernel"] += dz.T @ np.concatenate([inputs[t], h_before], axis=1)
        grads["kernel_bias"] += dz.sum(axis=0)
        d_inputs[t], dh = np.split(dz @ exact["kernel"], 2, axis=1)
        dc = dc * f
    if tokens is not None:
        np.add.at(grads["embedding"], tokens.T, d_inputs)
    return Gradient(loss, grads, d_inputs.reshape(length * batch, width))


@dataclass(frozen=True, slots=True)
class Score:
    """What `evaluate` sums: weighted loss, hits and weights."""

    loss: float
    hits1: float
    hits3: float
    count: float


def score(logits: Array, targets: Ids, weights: NDArray[np.floating]) -> Score:
    """Return the sums over positions; logits [length, batch, words], targets and weights [batch, length]."""
    log_p = log_softmax(logits)
    steps, rows = np.meshgrid(np.arange(logits.shape[0]), np.arange(logits.shape[1]), indexing="ij")
    share = np.asarray(weights, np.float64).T
    own = logits[steps, rows, targets.T]
    rank = (logits[..., len(SPECIALS) :] > own[..., np.newaxis]).sum(axis=-1)
    ordinary = np.where(len(SPECIALS) > targets.T, 0.0, share)
    return Score(
        loss=-float((share * log_p[steps, rows, targets.T]).sum()),
        hits1=float((ordinary * (rank < 1)).sum()),
        hits3=float((ordinary * (rank < 3)).sum()),
        count=float(share.sum()),
    )


def synthetic_train_inputs(size: NetworkSize) -> dict[str, NDArray[np.float32]]:
    """Return the train inputs that every device can make for itself to check its interpreter.

    Value i of each flattened input is 0.05 * ((7919 i) mod 201 - 100) / 100, computed in float64 and rounded once;
    then the columns that belong to no part get the input's fill value (here: the ones column of `output_rows`).
    """
    packed = {}
    for spec in layout_without_file(size).train_inputs:
        i = np.arange(int(np.prod(spec.shape)), dtype=np.int64)
        array = (0.05 * ((i * 7919) % 201 - 100) / 100).astype(np.float32).reshape(spec.shape)
        if len(spec.shape) == 2 and len(spec.parts) > 1 and spec.parts[-1].stop < spec.shape[1]:
            array[:, spec.parts[-1].stop :] = spec.fill
        packed[spec.name] = array
    return packed


def synthetic_batch(words: int) -> tuple[Ids, Ids]:
    """Return tokens and targets [BATCH, LENGTH] of the interpreter check; none is a special."""
    b, t = np.meshgrid(np.arange(BATCH), np.arange(LENGTH), indexing="ij")
    tokens = 4 + (17 * b + 5 * t) % (words - 4)
    targets = 4 + (13 * b + 7 * t) % (words - 4)
    return tokens.astype(np.int32), targets.astype(np.int32)


def template_loss(size: NetworkSize) -> float:
    """Return what `evaluate` must give as loss / count on the synthetic inputs, all weights 1, states zero."""
    tensors = layout_without_file(size).unpack(synthetic_train_inputs(size))
    tokens, targets = synthetic_batch(size.words)
    total = score(logits_of(tensors, tokens), targets, np.ones((BATCH, LENGTH)))
    return total.loss / total.count
