"""What a person has typed lately: the more recent a word, the likelier it comes again.

    P(w) = sum over the last words equal to w of exp(-age / decay), over the same sum for all words

Age counts words (a unigram cache: Kuhn and De Mori 1990; the exponential decay: Clarkson and Robinson 1997).
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from edge_runtime.ngram_cache import Prediction
from wire_contract.vocabulary import SPECIALS

DECAY_WORDS = 100.0
# What is older weighs less than a hundredth of the newest.
KEPT_WORDS = 460


class Recency:
    """The last words of one person; `add` as they type, `predict` for the next word."""

    def __init__(self, stream: Sequence[int] = (), *, decay_words: float = DECAY_WORDS) -> None:
        if not decay_words > 0.0:
            raise ValueError(f"a decay is a positive number of words, got {decay_words}")
        self._last: deque[int] = deque(maxlen=KEPT_WORDS)
        self._weights = np.exp(-np.arange(KEPT_WORDS)[::-1] / decay_words)
        self.add(stream)

    def add(self, ids: Sequence[int]) -> None:
        """Count ordinary words, in the order in which they were typed."""
        self._last.extend(word for word in ids if word >= len(SPECIALS))

    def predict(self) -> Prediction:
        """Return the distribution; before the first word all of it is left over."""
        if not self._last:
            return Prediction(np.zeros(0, np.int64), np.zeros(0), 1.0)
        ids, places = np.unique(np.fromiter(self._last, np.int64, len(self._last)), return_inverse=True)
        mass = np.bincount(places, self._weights[-len(self._last) :])
        return Prediction(ids, mass / mass.sum(), 0.0)
