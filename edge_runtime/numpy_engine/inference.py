"""`evaluate` over given weights, `suggest` and `suggest_context` over a version's own, in float32. Pure.

Arguments, results, shapes and meaning are those of the exported file's signatures. Where the file computes suggestions
with int8 weights and int8 activations, here the same int8 weights are dequantized once and used as float32: the result
lies nearer to the float graph than the interpreters' does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.numpy_engine.recurrence import sigmoid, unroll
from edge_runtime.numpy_engine.training import time_major
from wire_contract.vocabulary import PAD, SPECIALS

Floats = NDArray[np.float32]
SUGGESTIONS = 3
NEVER = np.float32(-1e9)
_SPECIALS = len(SPECIALS)
# Exponentials and ranks are taken of so many positions at once: 32 x 10,000 words are 1.3 MB.
_BLOCK_POSITIONS = 32


def evaluate(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Score targets, carrying the state; sums over positions, each times its weight. `logits` [N, words] are raw."""
    rows, projection = inputs["output_rows"], inputs["projection"]
    state_h, state_c = inputs["state_h"], inputs["state_c"]
    width, batch = state_h.shape
    labels, shares = time_major(inputs["targets"]), time_major(inputs["weights"])
    length = len(labels) // batch
    read = rows[time_major(inputs["tokens"]), :width].reshape(length, batch, width)
    kept = unroll(read.transpose(0, 2, 1), inputs["kernel_rows"], projection, state_h, state_c)
    states = np.ascontiguousarray(kept.states.transpose(0, 2, 1)).reshape(length * batch, width)
    logits = states @ rows[:, :width].T
    logits += rows[:, width]
    own = logits[np.arange(len(labels)), labels]
    log_sums, rank = np.empty_like(own), np.empty_like(own)
    for start in range(0, len(labels), _BLOCK_POSITIONS):
        block = slice(start, start + _BLOCK_POSITIONS)
        largest = logits[block].max(axis=1, keepdims=True)
        exponentials = logits[block] - largest
        np.exp(exponentials, out=exponentials)
        log_sums[block] = np.log(exponentials.sum(axis=1)) + largest[:, 0]
        rank[block] = np.count_nonzero(logits[block, _SPECIALS:] > own[block, np.newaxis], axis=1)
    ordinary = shares * (labels >= _SPECIALS)
    return {
        "loss": np.array(shares @ (log_sums - own), np.float32),
        "hits1": np.array(ordinary @ (rank < 1).astype(np.float32), np.float32),
        "hits3": np.array(ordinary @ (rank < SUGGESTIONS).astype(np.float32), np.float32),
        "count": np.array(shares.sum(), np.float32),
        "logits": logits,
        "next_state_h": np.array(kept.states[-1]),
        "next_state_c": np.array(kept.cells),
    }


class Suggester:
    """One version's weights, kept as float32 in the order in which a single row uses them."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._embedding = np.ascontiguousarray(tensors["embedding"])
        self._output_bias = np.array(tensors["output_bias"][_SPECIALS:])
        self._projection = np.ascontiguousarray(tensors["projection"])
        width = self._projection.shape[0]
        self._from_input = np.ascontiguousarray(tensors["kernel"][:, :width])
        self._from_state = np.ascontiguousarray(tensors["kernel"][:, width:])
        self._bias = np.array(tensors["kernel_bias"])

    def _cell(self, gates: Floats, h: Floats, c: Floats) -> tuple[Floats, Floats]:
        """Return the next state [width], [cells]; gates [3 cells] hold the input's part and the bias."""
        z = self._from_state @ h
        z += gates
        z_forget, z_output, z_candidate = z.reshape(3, -1)
        g = np.tanh(z_candidate)
        c = g + sigmoid(z_forget) * (c - g)
        state: Floats = self._projection @ (sigmoid(z_output) * np.tanh(c))
        return state, c

    def _ordinary_logits(self, h: Floats) -> Floats:
        logits: Floats = self._embedding[_SPECIALS:] @ h
        logits += self._output_bias
        return logits

    def suggest(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One step: token int32 [1], state_h [1, width], state_c [1, cells] -> the three likeliest next words."""
        token = int(inputs["token"][0])
        gates = self._from_input @ self._embedding[token] + self._bias
        h, c = self._cell(gates, inputs["state_h"][0], inputs["state_c"][0])
        logits = self._ordinary_logits(h)
        places = likeliest(logits)
        scores = np.exp(logits[places] - logits[places[0]]) / np.exp(logits - logits[places[0]]).sum()
        return {
            "ids": places + np.int32(_SPECIALS),
            "scores": scores,
            "next_state_h": h[np.newaxis],
            "next_state_c": c[np.newaxis],
        }

    def suggest_context(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A whole context at once: tokens int32 [length], left-padded with <pad>, which leaves the state at zero."""
        tokens = inputs["tokens"]
        gates = self._embedding[tokens] @ self._from_input.T
        gates += self._bias
        h = np.zeros(self._projection.shape[0], np.float32)
        c = np.zeros(self._projection.shape[1], np.float32)
        for token, by_input in zip(tokens, gates, strict=True):
            if token == PAD:
                h, c = np.zeros_like(h), np.zeros_like(c)
            else:
                h, c = self._cell(by_input, h, c)
        logits = self._ordinary_logits(h)
        places = likeliest(logits)
        shifted = logits - logits[places[0]]
        exponentials = np.exp(shifted)
        total = exponentials.sum()
        log_probs = np.full(len(self._embedding), NEVER, np.float32)
        np.subtract(shifted, np.log(total), out=log_probs[_SPECIALS:])
        return {"ids": places + np.int32(_SPECIALS), "scores": exponentials[places] / total, "log_probs": log_probs}


def likeliest(logits: Floats) -> NDArray[np.int32]:
    """Return the places of the `SUGGESTIONS` largest, largest first; of equal ones the lower place, as TOPK_V2."""
    third = np.partition(logits, -SUGGESTIONS)[-SUGGESTIONS]
    if np.isnan(third):
        # A state that overflowed: numpy sorts NaN behind everything, and nothing is at least NaN.
        logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
        third = np.partition(logits, -SUGGESTIONS)[-SUGGESTIONS]
    among = np.flatnonzero(logits >= third)
    return among[np.argsort(-logits[among], kind="stable")][:SUGGESTIONS].astype(np.int32)
