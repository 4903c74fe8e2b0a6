"""Softmax cross-entropy against a whole vocabulary, in chunks of it, in float32. Pure.

A softmax is never formed. With L = rows [h; 1; -m] one product gives logits less a stabiliser, Q = exp(L), S its sum
over the vocabulary; p = Q / S is applied to the small factors instead of to Q:

    loss = sum_n share_n (log S_n + m_n - L_yn),   dH = (E^T Q) share / S - E_y share,   rows -= rate Q (H1 share / S)^T

m_n = max(logit of the target, |[h; 1]| R - 75), R the longest row: by Cauchy-Schwarz no exponent passes 75, so exp
cannot overflow whatever the weights. Where logits pass about 150 the other terms underflow and the gradient is no
longer the softmax's, but loss and weights stay finite: as in the exported file.

The rules of memory:
- a temporary has at most a chunk of the vocabulary times N values;
- the chunks of Q are kept for the second pass up to `KEPT_BYTES`, and computed again from there on: a vocabulary of any
  size needs no more than that.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
LARGEST_EXPONENT = np.float32(75.0)
SMALLEST_SUM = np.float32(1e-30)
KEPT_BYTES = 16 * 1024 * 1024
# 1,000 words x 320 positions are 1.3 MB: a second-level cache's size.
CHUNK_WORDS = 1000


class OutputLayer:
    """One batch's output layer: states [width, N] (masked) and targets [N] against rows [words, width + 2].

    `columns` is [h; 1; -m], `inverse_sums` 1 / S; the order of the N positions is the caller's.
    """

    def __init__(
        self, rows: Floats, states: Floats, targets: Ids, *, chunk_words: int = CHUNK_WORDS,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:  # fmt: skip
        self.rows, self.states, self.targets = rows, states, targets
        (width, positions), words = states.shape, rows.shape[0]
        self._target_rows = rows[targets]
        self.columns: Floats = np.empty((width + 2, positions), np.float32)
        self.columns[:width] = states
        self.columns[width] = 1.0
        seen = self.columns[: width + 1]
        self._target_logits: Floats = np.einsum("dn,nd->n", seen, self._target_rows[:, : width + 1])
        longest = np.sqrt(np.einsum("vd,vd->v", rows, rows).max())
        m = np.maximum(self._target_logits, np.sqrt(np.einsum("dn,dn->n", seen, seen)) * longest - LARGEST_EXPONENT)
        np.negative(m, out=self.columns[width + 1])
        self._spans = [(start, min(words, start + chunk_words)) for start in range(0, words, chunk_words)]
        self._kept: list[Floats] = []
        sums, pull = np.zeros(positions, np.float32), np.zeros((width, positions), np.float32)
        for start, stop in self._spans:
            q = self._exponentials(start, stop)
            sums += q.sum(axis=0)
            pull += rows[start:stop, :width].T @ q
            kept_bytes -= q.nbytes
            if kept_bytes >= 0:
                self._kept.append(q)
        np.maximum(sums, SMALLEST_SUM, out=sums)
        self.inverse_sums: Floats = np.float32(1.0) / sums
        self._log_sums: Floats = np.log(sums) + m
        self._pull: Floats = pull * self.inverse_sums

    def _exponentials(self, start: int, stop: int) -> Floats:
        q: Floats = self.rows[start:stop] @ self.columns
        np.exp(q, out=q)
        return q

    def chunks(self) -> Iterator[tuple[int, int, Floats]]:
        """Yield (first word, last word + 1, Q [words, N]) again, kept or computed anew."""
        for number, (start, stop) in enumerate(self._spans):
            kept = number < len(self._kept)
            yield start, stop, self._kept[number] if kept else self._exponentials(start, stop)

    def losses(self) -> Floats:
        """Return each position's cross-entropy [N]."""
        found: Floats = self._log_sums - self._target_logits
        return found

    def states_gradient(self, share: Floats) -> Floats:
        """Return the gradient at the states [width, N] of the sum of share [N] x loss."""
        width = self.states.shape[0]
        gradient = self._pull * share
        gradient -= self._target_rows[:, :width].T * share
        return gradient

    def stepped_rows(self, share: Floats, rate: np.float32 | Floats) -> Floats:
        """Return rows - rate x gradient of the sum of share x loss, without the inputs' part; the ones stay ones."""
        scaled = np.ascontiguousarray((self.columns * (share * self.inverse_sums * rate)).T)
        # Column width + 1 is the stabiliser's and no weight.
        scaled[:, -1] = 0.0
        stepped = np.empty_like(self.rows)
        for start, stop, q in self.chunks():
            np.matmul(q, scaled, out=stepped[start:stop])
            np.subtract(self.rows[start:stop], stepped[start:stop], out=stepped[start:stop])
        own = (self.columns * (share * rate)).T
        own = np.ascontiguousarray(own)
        own[:, -1] = 0.0
        np.add.at(stepped, self.targets, own)
        return stepped
