"""Evaluation over given weights, and the two int8 suggestions over weights that the file holds.

The rules:
- `evaluate` is float32 and pure, like training; ranks are counts of larger logits, so nothing is sorted;
- in the int8 graphs each weight is one constant that is used as it stands: never sliced, scaled, transposed or added
  to, or the converter would fold a second, stale copy of it into the file and a patched version would use that;
- the four specials are cut off behind the output layer, so they are never suggested and hold no probability.
"""

from typing import Any

import tensorflow as tf

from model_export.network import SUGGESTIONS
from model_export.training_graph import by_position, unroll
from wire_contract.vocabulary import PAD, SPECIALS

Tensor = Any
NEVER = -1e9
_SPECIALS = len(SPECIALS)


def evaluate(
    tokens: Tensor,
    targets: Tensor,
    weights: Tensor,
    state_h: Tensor,
    state_c: Tensor,
    output_rows: Tensor,
    kernel_rows: Tensor,
    projection: Tensor,
) -> dict[str, Tensor]:
    """Score targets, carrying the state; sums over positions, each times its weight.

    tokens, targets: int32 [batch, length]; state_h: [width, batch]; state_c: [cells, batch]. `logits` [N, words] are
    raw. A target is hit where fewer than 1 (3) ordinary words have a larger logit; a special is never hit. The ones
    column of `output_rows` meets a zero here.
    """
    width, batch = state_h.shape
    length = tokens.shape[1]
    labels, shares = by_position(targets), by_position(weights)
    rows = tf.gather(output_rows, by_position(tokens))[:, :width]
    kept = unroll(rows, kernel_rows, projection, batch, (state_h, state_c))
    positions = length * batch
    columns = tf.concat([tf.concat(kept.states, axis=1), tf.ones([1, positions]), tf.zeros([1, positions])], axis=0)
    logits = tf.transpose(tf.matmul(output_rows, columns))
    flat = tf.range(positions) * output_rows.shape[0] + labels
    target_logit = tf.gather(tf.reshape(logits, [-1]), flat)
    largest = tf.reduce_max(logits, axis=1, keepdims=True)
    log_total = tf.math.log(tf.reduce_sum(tf.exp(logits - largest), axis=1)) + largest[:, 0]
    larger = tf.cast(logits[:, _SPECIALS:] > target_logit[:, tf.newaxis], tf.float32)
    rank = tf.reduce_sum(larger, axis=1)
    ordinary = tf.cast(labels >= _SPECIALS, tf.float32) * shares
    return {
        "loss": tf.reduce_sum(shares * (log_total - target_logit)),
        "hits1": tf.reduce_sum(ordinary * tf.cast(rank < 1.0, tf.float32)),
        "hits3": tf.reduce_sum(ordinary * tf.cast(rank < float(SUGGESTIONS), tf.float32)),
        "count": tf.reduce_sum(shares),
        "logits": logits,
        "next_state_h": kept.states[-1],
        "next_state_c": kept.cells,
    }


class Suggester:
    """The network over constants, batch 1 and rows as activations, for the int8 signatures."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.embedding = tf.constant(tensors["embedding"])
        self.kernel = tf.constant(tensors["kernel"])
        self.projection = tf.constant(tensors["projection"])
        self.kernel_bias = tf.constant(tensors["kernel_bias"])
        self.output_bias = tf.constant(tensors["output_bias"])

    def _cell(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = tf.matmul(tf.concat([x, h], axis=1), self.kernel, transpose_b=True) + self.kernel_bias
        z_forget, z_output, z_candidate = tf.split(z, 3, axis=1)
        f, g = tf.sigmoid(z_forget), tf.tanh(z_candidate)
        c = g + f * (c - g)
        return tf.matmul(tf.sigmoid(z_output) * tf.tanh(c), self.projection, transpose_b=True), c

    def _ordinary_logits(self, h: Tensor) -> Tensor:
        return (tf.matmul(h, self.embedding, transpose_b=True) + self.output_bias)[0, _SPECIALS:]

    def suggest(self, token: Tensor, state_h: Tensor, state_c: Tensor) -> dict[str, Tensor]:
        """One step: token int32 [1], state_h [1, width], state_c [1, cells] -> the three likeliest next words."""
        h, c = self._cell(tf.gather(self.embedding, token), state_h, state_c)
        probabilities = tf.nn.softmax(self._ordinary_logits(h))
        scores, places = tf.math.top_k(probabilities, SUGGESTIONS)
        return {"ids": places + _SPECIALS, "scores": scores, "next_state_h": h, "next_state_c": c}

    def suggest_context(self, tokens: Tensor) -> dict[str, Tensor]:
        """A whole context at once: tokens int32 [length], left-padded with <pad>, which leaves the state at zero."""
        rows = tf.split(tf.gather(self.embedding, tokens), tokens.shape[0], axis=0)
        present = tf.split(tf.cast(tf.not_equal(tokens, PAD), tf.float32), tokens.shape[0])
        h = tf.zeros([1, self.projection.shape[0]])
        c = tf.zeros([1, self.projection.shape[1]])
        for x, here in zip(rows, present, strict=True):
            h, c = self._cell(x, h, c)
            h, c = h * here, c * here
        logits = self._ordinary_logits(h)
        scores, places = tf.math.top_k(tf.nn.softmax(logits), SUGGESTIONS)
        log_probs = tf.concat([tf.fill([_SPECIALS], NEVER), tf.nn.log_softmax(logits)], axis=0)
        return {"ids": places + _SPECIALS, "scores": scores, "log_probs": log_probs}
