"""Which version a person's keyboard uses: the newest release, unless it is worse for this very person. Pure.

The rules:
- judged word by word on text that the device holds out: only words where exactly one of the two versions has the word
  among its first three say anything (exact sign test: Dixon and Mood 1946);
- the previous version stays only if the newer one is significantly worse, one-sided, at 0.05. With about a hundred
  words a person, "worse at all" would say nothing (accuracy.md 2);
- the choice is about one release: the next one is judged anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """`keeps_previous`: the newer version is significantly worse. `better` and `worse` count the words where only the
    newer, or only the previous, version hit; `chance` is how likely so many worse ones are between equals."""

    keeps_previous: bool
    better: int
    worse: int
    chance: float

    def told(self, newer: int, previous: int) -> str:
        """Return the verdict as a sentence for the person; `newer` and `previous` are version numbers."""
        counts = f"{self.worse} of your held-out words are lost by it, {self.better} won"
        if self.keeps_previous:
            return f"version {newer} is worse for you than {previous} ({counts}), so the keyboard stays with {previous}"
        return f"version {newer} is not significantly worse for you than {previous} ({counts})"


def chance_of(worse: int, better: int) -> float:
    """Return the probability of `worse` or more heads in `worse` + `better` throws of a fair coin, exactly."""
    if min(worse, better) < 0:
        raise ValueError(f"counts are not negative, got {worse} and {better}")
    throws = worse + better
    tails: int = sum(comb(throws, heads) for heads in range(worse, throws + 1))
    return tails / (1 << throws)


def choose(newer: Sequence[bool], previous: Sequence[bool], significance: float = SIGNIFICANCE) -> Verdict:
    """Return the verdict on a newer version; the arguments say of the same words, in the same order, whether each
    version hit them. Raises `ValueError` if they are not equally long."""
    pairs = list(zip(newer, previous, strict=True))
    better = sum(bool(a) and not b for a, b in pairs)
    worse = sum(bool(b) and not a for a, b in pairs)
    chance = chance_of(worse, better)
    return Verdict(chance <= significance, better, worse, chance)
