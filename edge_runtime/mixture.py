"""How much each of a person's predictors counts: mixture weights, learned online on their device.

    P(w) = sum of weight_i * P_i(w);   after each typed word:  weight_i <- weight_i * exp(step * P_i(w) / P(w)), normed

(The exponentiated gradient of the log loss: Kivinen and Warmuth 1997; accuracy: +0.05 points and harmless with step
0.01.) The rules:
- the components are the shared model, the person's fine-tuned copy, their n-grams and their latest words; what the last
  two leave over belongs to the first two in their proportion; without a copy its weight is the shared model's;
- there is a row of weights for each bucket: how much text the person has, and how long a context their n-grams know;
- no weight falls below `LEAST`, so that a component can come back;
- weights say something about a person, so they stay on the device and go when it is told to forget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from edge_runtime.ngram_cache import ORDERS, Prediction

COMPONENTS = ("shared", "copy", "ngram", "recency")
STEP = 0.01
LEAST = 0.001
TEXT_BUCKETS = (400, 2000)
"""Up to these many words a person's text is little, or some; above, much."""

Row = tuple[float, ...]


def bucket_of(words: int, order: int) -> int:
    """Return the bucket of a person with so many words whose n-grams matched `order` (0: nothing, to `ORDERS`)."""
    return sum(words >= least for least in TEXT_BUCKETS) * (ORDERS + 1) + min(order, ORDERS)


BUCKETS = tuple(product(range(len(TEXT_BUCKETS) + 1), range(ORDERS + 1)))

# Where a person begins, by what their n-grams know: found by EM (`fit_row`) on the last fifths of 67 dev people, 7,907
# words, with the converged reference model. There the mixture's top-3 recall is 30.4 %, the shared model's alone 29.1.
# The overall weights of accuracy.md 2, restricted to these components, have 29.9: they leave the n-grams too little.
_START: tuple[Row, ...] = (
    (0.35, 0.53, 0.09, 0.03),
    (0.41, 0.53, 0.01, 0.05),
    (0.34, 0.545, 0.085, 0.03),
    (0.33, 0.53, 0.115, 0.025),
    (0.33, 0.45, 0.21, 0.01),
)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A row of weights for each bucket, in the order of `COMPONENTS`; each row sums to 1."""

    rows: tuple[Row, ...] = tuple(_START[order] for _, order in BUCKETS)

    def __post_init__(self) -> None:
        if len(self.rows) != len(BUCKETS):
            raise ValueError(f"a mixture has {len(BUCKETS)} rows, got {len(self.rows)}")
        for row in self.rows:
            # Written so that a NaN fails, too.
            if len(row) != len(COMPONENTS) or not (min(row) >= 0.0 and abs(sum(row) - 1.0) <= 1e-6):
                raise ValueError(f"{len(COMPONENTS)} weights are not negative and sum to 1, got {row}")

    def learned(self, bucket: int, probabilities: Sequence[float], step: float = STEP) -> "Mixture":
        """Return the mixture after a word that the components gave these probabilities."""
        row = exponentiated(self.rows[bucket], probabilities, step)
        return Mixture((*self.rows[:bucket], row, *self.rows[bucket + 1 :]))


def exponentiated(row: Row, probabilities: Sequence[float], step: float) -> Row:
    """Return a row after one step; where no component gave the word any probability there is nothing to learn."""
    weights, given = np.asarray(row), np.asarray(probabilities, dtype=np.float64)
    mixed = float(weights @ given)
    if not mixed > 0.0:
        return row
    weights = weights * np.exp(step * given / mixed)
    weights = np.maximum(weights / weights.sum(), LEAST)
    return tuple(float(weight) for weight in weights / weights.sum())


@dataclass(frozen=True, slots=True)
class Parts:
    """What the components say of the next word: distributions [V] of shared model and copy (None: there is none), and
    what n-grams and recency know."""

    shared: NDArray[np.float64]
    copy: NDArray[np.float64] | None
    ngram: Prediction
    recency: Prediction

    def _base(self, row: Row) -> NDArray[np.float64]:
        neural = row[0] + row[1]
        if self.copy is None or neural == 0.0:
            return self.shared
        return (row[0] * self.shared + row[1] * self.copy) / neural

    def mix(self, row: Row) -> NDArray[np.float64]:
        """Return the mixed distribution [V]."""
        sparse = ((row[2], self.ngram), (row[3], self.recency))
        mixed = self._base(row) * (row[0] + row[1] + sum(weight * part.leftover for weight, part in sparse))
        for weight, part in sparse:
            mixed[part.ids] += weight * part.probabilities
        return mixed

    def of_word(self, word: int, row: Row) -> Row:
        """Return each component's probability of `word`, complete with what it leaves over: what `learned` takes."""
        base = float(self._base(row)[word])
        shared = float(self.shared[word])
        sparse = (float(part.probabilities[part.ids == word].sum()) + part.leftover * base
                  for part in (self.ngram, self.recency))  # fmt: skip
        return (shared, shared if self.copy is None else float(self.copy[word]), *sparse)


def fit_row(probabilities: NDArray[np.float64], rounds: int = 50) -> NDArray[np.float64]:
    """Return the weights under which words are likeliest, by EM; input [words, components]."""
    weights = np.full(probabilities.shape[1], 1.0 / probabilities.shape[1])
    for _ in range(rounds):
        shares = probabilities * weights
        weights = np.mean(shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300), axis=0)
    return weights
