"""Which values of the model `shared` updates may speak of: chosen from public inputs alone. Pure.

The rules:
- a value's score is the server optimizer's second moment of it, where it keeps one: 5 % of the values then hold 82 % of
  the energy of new people's deltas, in a trial (ADR 11). Otherwise it is how much it has moved, the sum of the squared
  differences between consecutive published versions (23 %). Both are made of nothing but the sums that versions are
  made of: the set says of no person what the steps did not;
- the best scores fill the set but for a share that is drawn at random, so that values which have not moved yet get
  their chance (15 %: measured); ties go to the lower index; a value that never moved has no score and is only drawn;
- before there is a history, half of the set is the rows of the most frequent words, whole, and the rest is drawn. The
  vocabulary's order of frequency is public; 300 frequent words' rows held 99 % of the embedding's part of real deltas,
  while the other tensors' part was spread wide (ADR 8);
- draws come from a seed made of the population's name and the version: anybody can work the set out again.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire_contract.codec import select_largest
from wire_contract.layout import Layout, Vector

FREQUENT_SHARE: Final = 0.5

Indices = NDArray[np.int64]


def seed_of(population: str, version: int) -> int:
    """Return the public seed of the set that a population names from `version` on."""
    digest = hashlib.sha256(b"edge-federation index set v1\n" + population.encode() + b"\n%d" % version).digest()
    return int.from_bytes(digest[:8], "big")


def choose(history: Iterable[Vector], *, size: int, count: int, explore_share: float, seed: int) -> Indices:
    """Return `count` ascending indices below `size`, 1 <= count <= size.

    `history` are published versions (float32, layout order) in the order in which they were published, two or more; it
    is read once, two vectors at a time. `explore_share` in 0..1 is drawn.
    """
    scores = np.zeros(size, dtype=np.float64)
    before: Vector | None = None
    for version in history:
        if before is not None:
            scores += np.square(version.astype(np.float64) - before)
        before = version
    return choose_scored(scores, count=count, explore_share=explore_share, seed=seed)


def choose_scored(scores: NDArray[np.floating], *, count: int, explore_share: float, seed: int) -> Indices:
    """Return `count` ascending indices: the best of `scores` (0 or more, one a value), and `explore_share` drawn."""
    size = len(scores)
    wanted = count - round(explore_share * count)
    moved = select_largest(np.sqrt(scores).astype(np.float32), wanted) if wanted else np.zeros(0, dtype=np.int64)
    return _fill(moved[:wanted], size=size, count=count, seed=seed)


def choose_first(layout: Layout, *, words: int, count: int, seed: int) -> Indices:
    """Return the set of a population without a history: `count` ascending indices.

    Tensors with one row a word (their first dimension is `words`) are taken to stand in the order of frequency.
    """
    starts = np.cumsum([0, *(tensor.size for tensor in layout.tensors)])
    rows = [
        (int(start), tensor.size // words)
        for start, tensor in zip(starts, layout.tensors, strict=False)
        if tensor.shape and tensor.shape[0] == words
    ]
    width = sum(each for _, each in rows)
    frequent = min(words, int(FREQUENT_SHARE * count) // width) if width else 0
    parts = [np.arange(start, start + frequent * each, dtype=np.int64) for start, each in rows]
    chosen = np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
    return _fill(chosen, size=layout.size, count=count, seed=seed)


def _fill(chosen: Indices, *, size: int, count: int, seed: int) -> Indices:
    """Return the chosen places and others that are drawn, `count` in all, ascending."""
    free = np.ones(size, dtype=bool)
    free[chosen] = False
    places = np.flatnonzero(free)
    # Raw output, for that is the one stream that numpy promises never to change.
    keys = np.random.PCG64(seed).random_raw(len(places))
    drawn = places[np.argsort(keys, kind="stable")[: count - len(chosen)]]
    return np.sort(np.concatenate([chosen, drawn]).astype(np.int64))
