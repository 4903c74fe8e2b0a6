"""Next-word answers on held-out text, of several forms of the same weights beside the float network.

The rules (data.md's metric, as `scoring` has it):
- a position is scored unless its target is <s>, <num> or <pad>; a target <unk> is scored and is a miss;
- its context is the tokens before it, at most as many as `suggest_context` takes, of the same person;
- log probabilities are of the ordinary words, the specials left out; perplexity is over targets that are words;
- of all scored positions the wanted number is taken evenly, so that every person's text counts by its length;
- every form answers the same contexts, in pairs with the judge: float64 formulas on the float weights.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export import reference
from model_export.scoring import _NOT_SCORED
from wire_contract.layout import Tensors
from wire_contract.vocabulary import PAD, SPECIALS

BATCH = 64
NEAREST = 8
_ORDINARY = len(SPECIALS)
# Differences are counted in bins, so that the 99th percentile of millions of them needs no memory.
_BIN, _BINS = 1e-3, 20_000

LogProbs = NDArray[np.float64]
# Contexts [n, length], left-padded -> log probabilities of the ordinary words [n, words - 4].
Answer = Callable[[NDArray[np.int32]], LogProbs]


@dataclass(frozen=True, slots=True)
class Questions:
    """Contexts [n, length], left-padded with <pad>, and their targets [n]."""

    contexts: NDArray[np.int32]
    targets: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class FormScore:
    """How one form answered: recall in percent, perplexity, and how far its log probabilities lie from the judge's.

    worst, p99: over all words of all contexts, nats; worst_likely: over the judge's eight likeliest words alone;
    agrees1: percent of contexts with the judge's own first suggestion.
    """

    top1: float
    top3: float
    perplexity: float
    agrees1: float
    worst: float
    p99: float
    worst_likely: float


def questions(streams: Sequence[Sequence[int]], length: int, limit: int) -> Questions:
    """Return at most `limit` questions, evenly over all scored positions. Raises `ValueError` where there is none."""
    places = [
        (who, t) for who, stream in enumerate(streams) for t in range(1, len(stream)) if stream[t] not in _NOT_SCORED
    ]
    if not places:
        raise ValueError("held-out text has words to predict, got none")
    count = min(limit, len(places))
    chosen = [places[i * len(places) // count] for i in range(count)]
    contexts = np.full((count, length), PAD, np.int32)
    for row, (who, t) in enumerate(chosen):
        before = streams[who][max(0, t - length) : t]
        contexts[row, length - len(before) :] = before
    return Questions(contexts, np.array([streams[who][t] for who, t in chosen], np.int32))


def float_answer(tensors: Tensors) -> Answer:
    """Return the judge: the float64 formulas on these weights, from the zero state."""
    exact = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    width, cells = exact["projection"].shape

    def answer(contexts: NDArray[np.int32]) -> LogProbs:
        out = np.empty((len(contexts), len(exact["embedding"]) - _ORDINARY))
        lengths = (np.cumsum(contexts != PAD, axis=1) > 0).sum(axis=1)
        for length in np.unique(lengths):
            rows = lengths == length
            tokens = contexts[rows, contexts.shape[1] - length :]
            zero = np.zeros((len(tokens), width)), np.zeros((len(tokens), cells))
            states = reference.run_cells(exact, exact["embedding"][tokens.T], *zero).states[-1]
            out[rows] = reference.suggestion_log_probs(states @ exact["embedding"].T + exact["output_bias"])
        return out

    return answer


def file_answer(run: Callable[[str, Mapping[str, NDArray[np.generic]]], Mapping[str, NDArray[np.generic]]]) -> Answer:
    """Return a file's own answers, asked one context after another of its `suggest_context`."""

    def answer(contexts: NDArray[np.int32]) -> LogProbs:
        rows = [np.asarray(run("suggest_context", {"tokens": context})["log_probs"]) for context in contexts]
        return np.stack(rows).astype(np.float64)[:, _ORDINARY:]

    return answer


def compare(
    asked: Questions, judge: Answer, forms: Mapping[str, Answer], progress: Callable[[int], object] = lambda _: None
) -> tuple[FormScore, dict[str, FormScore]]:
    """Return the judge's score and each form's; `progress` is told how many contexts more are done."""
    names = list(forms)
    judged, tallies = _Tally(), {name: _Tally() for name in names}
    for part in _parts(asked):
        exact = judge(part.contexts)
        likely = _largest(exact, NEAREST)
        judged.add(part, exact, exact, likely)
        for name in names:
            tallies[name].add(part, forms[name](part.contexts), exact, likely)
        progress(len(part))
    return judged.score(), {name: tallies[name].score() for name in names}


def _parts(asked: Questions) -> Iterator[Questions]:
    for start in range(0, len(asked), BATCH):
        chosen = slice(start, start + BATCH)
        yield Questions(asked.contexts[chosen], asked.targets[chosen])


def _largest(log_probs: LogProbs, count: int) -> NDArray[np.int64]:
    """Return the positions of each row's `count` largest values, largest first."""
    found = np.argpartition(-log_probs, min(count, log_probs.shape[1] - 1), axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(log_probs, found, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(found, order, axis=1), np.int64)


class _Tally:
    """Sums over contexts."""

    def __init__(self) -> None:
        self.count = self.hits1 = self.hits3 = self.agrees = self.words = 0
        self.loss = self.worst = self.worst_likely = 0.0
        self.bins = np.zeros(_BINS + 1, np.int64)

    def add(self, part: Questions, got: LogProbs, exact: LogProbs, likely: NDArray[np.int64]) -> None:
        first = likely[:, :3] if got is exact else _largest(got, 3)
        places = part.targets - _ORDINARY
        ordinary = places >= 0
        self.count += len(part)
        self.hits1 += int(np.sum(ordinary & (first[:, 0] == places)))
        self.hits3 += int(np.sum(ordinary & (first == places[:, np.newaxis]).any(axis=1)))
        self.agrees += int(np.sum(first[:, 0] == likely[:, 0]))
        self.words += int(ordinary.sum())
        self.loss -= float(got[ordinary, places[ordinary]].sum())
        difference = np.abs(got - exact)
        self.worst = max(self.worst, float(difference.max()))
        self.worst_likely = max(self.worst_likely, float(np.take_along_axis(difference, likely, axis=1).max()))
        filled = np.minimum(difference / _BIN, _BINS).astype(np.int64).ravel()
        self.bins += np.bincount(filled, minlength=_BINS + 1)

    def score(self) -> FormScore:
        reached = np.searchsorted(np.cumsum(self.bins), 0.99 * self.bins.sum())
        return FormScore(
            top1=100.0 * self.hits1 / self.count,
            top3=100.0 * self.hits3 / self.count,
            perplexity=math.exp(self.loss / max(self.words, 1)),
            agrees1=100.0 * self.agrees / self.count,
            worst=self.worst,
            # The upper edge of its bin; no more than the worst.
            p99=min(float(reached + 1) * _BIN, self.worst),
            worst_likely=self.worst_likely,
        )
