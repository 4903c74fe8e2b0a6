"""Which deltas there are, and which of them stay: the rules, without files, threads or a clock.

The rules:
- a delta leads to a version that a track announces now, from one of the last `versions` other files of either track: a
  phone that trains may hold a training version and want a refresh;
- what is sent is the smaller of the direct delta and the chain over the track's versions in between, and nothing at all
  unless it is smaller than the file: then the file is the answer;
- the chain's hops are worth making only once the direct delta is large: several late steps change the same codes, and
  a direct delta names each once;
- a delta goes when its target is announced no more, except a hop between neighbours of a track, which chains are made
  of: so at most about 6 x `versions` deltas of a population exist.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from wire_contract.delta import MAX_HOPS

# A direct delta below this share of the file is sent without trying a chain.
CHAIN_FROM_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Pair:
    """A delta's name: the SHA-256 (hex) of the file that it starts from and of the one that it ends in."""

    base: str
    target: str


@dataclass(frozen=True, slots=True)
class History:
    """The files that a population's devices may hold or want, as hashes.

    `training` and `refresh`: each track's files, the announced one first, every file once, at most 1 + `versions`.
    """

    training: tuple[str, ...]
    refresh: tuple[str, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """What is announced now."""
        return tuple(dict.fromkeys((*self.training[:1], *self.refresh[:1])))

    def offers(self, pair: Pair) -> bool:
        """Whether a device may ask for this delta."""
        held = (*self.training, *self.refresh)
        return pair.base != pair.target and pair.target in self.targets and pair.base in held


def history_of(training: Iterable[str], refreshes: Iterable[str], versions: int) -> History:
    """Return the history out of each track's file hashes, newest first, of which an undo may repeat some."""
    return History(
        *(tuple(dict.fromkeys(track))[: versions + 1] if versions else () for track in (training, refreshes))
    )


def hops_between(history: History, pair: Pair) -> tuple[Pair, ...]:
    """Return the neighbouring pairs of one track that lead from base to target; empty unless there are several."""
    for track in (history.training, history.refresh):
        if pair.base in track and pair.target in track:
            newest, oldest = track.index(pair.target), track.index(pair.base)
            files = track[newest : oldest + 1][::-1]
            return tuple(Pair(a, b) for a, b in pairwise(files)) if 2 < len(files) <= MAX_HOPS + 1 else ()
    return ()


def worth_a_chain(direct_bytes: int, file_bytes: int) -> bool:
    """Whether a chain could be the smaller answer."""
    return direct_bytes > CHAIN_FROM_SHARE * file_bytes


def choose(candidates: Sequence[bytes], file_bytes: int) -> bytes | None:
    """Return the smallest of the deltas, or None if the file itself is no larger."""
    smallest = min(candidates, key=len, default=None)
    return smallest if smallest is not None and len(smallest) < file_bytes else None


def unneeded(cached: Iterable[Pair], histories: Iterable[History]) -> set[Pair]:
    """Return the cached deltas that may go."""
    cached, histories = set(cached), list(histories)
    stays = {pair for pair in cached if any(history.offers(pair) for history in histories)}
    for history in histories:
        for track in (history.training, history.refresh):
            stays |= {Pair(older, newer) for newer, older in pairwise(track)}
    return cached - stays
