"""A person's own n-grams: orders 1 to 4, absolute discounting, built from their id stream on their device.

    P(w | c) = max(count(c, w) - D, 0) / count(c) + D * distinct(c) / count(c) * P(w | shorter c)

(Ney, Essen and Kneser 1994, with one D.) Below order 1 stands the mass that is left over: it belongs to whatever the
cache is mixed with. Specials are contexts, never predictions. It costs nothing to train and brings most of what a
fine-tuned copy brings (accuracy.md 2).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire_contract.vocabulary import SPECIALS, START

ORDERS = 4
DISCOUNT = 0.55


@dataclass(frozen=True, slots=True)
class Prediction:
    """Word ids and their probabilities, and the mass that is left for the rest of the mixture; they sum to 1.

    `order` is that of the longest n-grams which knew the context: 1 for words alone, 0 for nothing.
    """

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    leftover: float
    order: int = 0


class NgramCache:
    """Counts of one person; `add` as they type, `predict` for the next word."""

    def __init__(self, stream: Sequence[int] = (), *, orders: int = ORDERS, discount: float = DISCOUNT) -> None:
        if not (orders >= 1 and 0.0 < discount < 1.0):
            raise ValueError(f"orders >= 1 and a discount between 0 and 1, got {orders} and {discount}")
        self._orders = orders
        self._discount = discount
        self._counts: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        self._recent: tuple[int, ...] = ()
        self.add(stream)

    def add(self, ids: Sequence[int]) -> None:
        """Count what came next, in the order in which it was typed."""
        recent = self._recent
        for word in ids:
            if word >= len(SPECIALS):
                for length in range(min(self._orders, len(recent) + 1)):
                    following = self._counts[recent[len(recent) - length :]]
                    following[word] = following.get(word, 0) + 1
            # A sentence starts afresh: what stood before it says little about it.
            recent = (word,) if word == START else (*recent, word)[-(self._orders - 1) :] if self._orders > 1 else ()
        self._recent = recent

    def predict(self, context: Sequence[int]) -> Prediction:
        """Return the distribution of the next word after `context` (the last tokens, `<s>` at a sentence's start)."""
        places = [i for i, word in enumerate(context) if word == START]
        recent = tuple(context[places[-1] :] if places else context)
        mass: dict[int, float] = {}
        weight, order = 1.0, 0
        for length in range(min(self._orders - 1, len(recent)), -1, -1):
            following = self._counts.get(recent[len(recent) - length :])
            if not following:
                continue
            order = max(order, length + 1)
            total = sum(following.values())
            for word, count in following.items():
                mass[word] = mass.get(word, 0.0) + weight * (count - self._discount) / total
            weight *= self._discount * len(following) / total
        ids, probabilities = np.fromiter(mass, np.int64, len(mass)), np.fromiter(mass.values(), np.float64, len(mass))
        return Prediction(ids, probabilities, weight, order)
