"""The candidate set of a sampled training step: the batch's targets and log-uniform negatives, with their correction.

The softmax over the vocabulary is estimated over a set C that holds every target (Jean et al. 2015, section 3.2). A
word's logit is lowered by log(p), p its probability to get into C, or the model would learn the proposal instead of
the text. Ids fall with frequency, so negatives come from q(id) = log((id + 1) / id) / log(V), ids 1 to V - 1
(log-uniform, Zipf's shape; `<pad>` is never drawn), until C is full. With D draws p = 1 - (1 - q)^D, the estimate that
TensorFlow's unique samplers use; the batch's own targets count as draws, because they too bring their word into C.
With C the whole vocabulary p is 1 and the step is the exact one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """Word ids [K], the log inclusion probability of each, and the position in them of every target asked for."""

    ids: NDArray[np.int64]
    log_inclusion: NDArray[np.float32]
    positions: NDArray[np.int32]


def choose(
    targets: NDArray[np.int32], counted: NDArray[np.bool_], *, size: int, words: int, rng: np.random.Generator
) -> CandidateSet:
    """Return `size` distinct candidates out of `words` that hold every target where `counted` is true.

    Where it is false the position is 0, which a weight of zero makes meaningless. Raises `ValueError` if the targets
    do not fit.
    """
    wanted = np.unique(targets[counted]).astype(np.int64)
    if len(wanted) > size or size > words:
        raise ValueError(f"{len(wanted)} distinct targets <= {size} candidates <= {words} words does not hold")
    if size == words:
        ids = np.arange(words, dtype=np.int64)
        return CandidateSet(ids, np.zeros(words, np.float32), np.where(counted, targets, 0).astype(np.int32))
    held = np.zeros(words, dtype=np.bool_)
    held[wanted] = True
    negatives, draws = _draw(held, size - len(wanted), rng)
    ids = np.sort(np.concatenate([wanted, negatives]))
    proposal = np.log1p(1.0 / np.maximum(ids, 1)) / np.log(words)
    tries = draws + int(np.count_nonzero(counted))
    log_inclusion = np.log(-np.expm1(tries * np.log1p(-np.minimum(proposal, 1.0 - 1e-12))))
    place = np.zeros(words, dtype=np.int32)
    place[ids] = np.arange(size, dtype=np.int32)
    return CandidateSet(ids, log_inclusion.astype(np.float32), np.where(counted, place[targets], 0).astype(np.int32))


def _draw(held: NDArray[np.bool_], count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Draw until `count` new ids are there; return them in order of their draw, and how many draws that took."""
    words = len(held)
    if count > words - 1 - int(np.count_nonzero(held[1:])):
        # <pad> is needed to fill the set: everything else is in it.
        rest = np.flatnonzero(~held)[::-1][:count]
        return rest, 1 << 30
    taken = held.copy()
    taken[0] = True
    found: list[NDArray[np.int64]] = []
    missing, draws = count, 0
    while missing:
        chunk = 4 * missing + 64
        drawn = np.exp(rng.random(chunk) * np.log(words)).astype(np.int64)
        np.clip(drawn, 1, words - 1, out=drawn)
        _, first = np.unique(drawn, return_index=True)
        first.sort()
        fresh = first[~taken[drawn[first]]][:missing]
        taken[drawn[fresh]] = True
        found.append(drawn[fresh])
        missing -= len(fresh)
        draws += chunk if missing else int(fresh[-1]) + 1
    return (np.concatenate(found) if found else np.zeros(0, np.int64)), draws
