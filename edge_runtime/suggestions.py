"""What suggests the next word on a person's device: shared model, their copy, their n-grams, their latest words, mixed.

The rules:
- suggestions are the three likeliest words of the mixture; specials have no probability;
- what a person has typed counts at once: each of their words first teaches the mixture, then the caches;
- nothing of this leaves the device.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.mixture import Mixture, Parts, bucket_of
from edge_runtime.ngram_cache import NgramCache
from edge_runtime.ports import SignatureRunner
from edge_runtime.recency import Recency
from wire_contract.vocabulary import PAD, SPECIALS

CONTEXT_TOKENS = 20
SUGGESTIONS = 3
# Each costs two runs of the model: a pasted page is not worth them all.
MOST_TAUGHT_WORDS = 60


def probabilities_of(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return softmax [..., V] over the ordinary words; the four specials get 0. Takes logits or log probabilities."""
    values = np.asarray(logits, dtype=np.float64).copy()
    values[..., : len(SPECIALS)] = -np.inf
    values -= values.max(axis=-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=-1, keepdims=True)
    return values


def top_ids(distribution: NDArray[np.float64], count: int = SUGGESTIONS) -> tuple[int, ...]:
    """Return the ids of the likeliest ordinary words, most likely first; ties go to the lower id."""
    ordinary = distribution[len(SPECIALS) :]
    places = np.argpartition(-ordinary, min(count, len(ordinary) - 1))[: count + 1]
    threshold = np.sort(ordinary[places])[::-1][:count][-1]
    candidates = np.flatnonzero(ordinary >= threshold)
    best = candidates[np.lexsort((candidates, -ordinary[candidates]))][:count]
    return tuple(int(i) + len(SPECIALS) for i in best)


class Suggestions:
    """One person's. `shared` and `copy` run files with int8 weights; `stream` is all of the person's text as ids."""

    def __init__(
        self,
        shared: SignatureRunner,
        copy: SignatureRunner | None = None,
        stream: Sequence[int] = (),
        mixture: Mixture | None = None,
    ) -> None:
        self._shared = shared
        self._copy = copy
        self._ngrams = NgramCache(stream)
        self._recency = Recency(stream)
        self._words = len(stream)
        self.mixture = mixture or Mixture()

    def distribution(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Return the mixed probabilities [V] after `context`, the last 20 ids, left-padded. Raises `RuntimeFailed`."""
        parts = self._parts(context)
        return parts.mix(self.mixture.rows[bucket_of(self._words, parts.ngram.order)])

    def suggest(self, context: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of the three suggestions after `context`. Raises `RuntimeFailed`."""
        return top_ids(self.distribution(context))

    def learn(self, ids: Sequence[int]) -> None:
        """Take in what was typed, as ids with `<s>` before each sentence: mixture first, then caches.

        Raises `RuntimeFailed`; what came before the failure was learned.
        """
        untaught = max(0, len(ids) - MOST_TAUGHT_WORDS)
        self._count(ids[:untaught])
        for place in range(untaught, len(ids)):
            if ids[place] >= len(SPECIALS):
                before = ids[max(0, place - CONTEXT_TOKENS) : place]
                self._teach((PAD,) * (CONTEXT_TOKENS - len(before)) + tuple(before), ids[place])
            self._count(ids[place : place + 1])

    def _teach(self, context: Sequence[int], word: int) -> None:
        parts = self._parts(context)
        bucket = bucket_of(self._words, parts.ngram.order)
        self.mixture = self.mixture.learned(bucket, parts.of_word(word, self.mixture.rows[bucket]))

    def _count(self, ids: Sequence[int]) -> None:
        self._ngrams.add(ids)
        self._recency.add(ids)
        self._words += len(ids)

    def _parts(self, context: Sequence[int]) -> Parts:
        tokens = np.asarray(context, dtype=np.int32)
        shared = probabilities_of(self._shared.run("suggest_context", {"tokens": tokens})["log_probs"])
        copy = None
        if self._copy is not None:
            copy = probabilities_of(self._copy.run("suggest_context", {"tokens": tokens})["log_probs"])
        known = [int(i) for i in tokens if i != PAD]
        return Parts(shared, copy, self._ngrams.predict(known), self._recency.predict())
