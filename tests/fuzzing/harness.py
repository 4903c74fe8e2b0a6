"""Throws broken bytes at decoders and counts what comes out. Deterministic: the same seed gives the same inputs.

The verdict on an input: refused (one of the target's refusals), accepted and judged right, accepted wrongly, or
crashed (any other exception). Every input of a `Broken` rule that is accepted is accepted wrongly.
"""

import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.fuzzing.mutators import mutate
from tests.fuzzing.target import Target

# Of the inputs, the share that breaks one known rule; the others are damaged at random.
STRUCTURED = 0.35
MAX_FINDINGS = 20
BATCH = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that was not treated as it should be."""

    target: str
    why: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.target}: {self.why}: {self.data[:200].hex()}"


@dataclass(slots=True)
class Tally:
    """What became of a target's inputs."""

    name: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    wrongly_accepted: int = 0
    crashed: int = 0
    broken: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def find(self, why: str, data: bytes) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(self.name, why, data))


def shares(targets: Sequence[Target], count: int) -> list[int]:
    """Return how many of `count` inputs each target gets; each rule of a target is broken once at least."""
    total = sum(target.share for target in targets)
    least = [int(2 * len(target.broken) / STRUCTURED) + 2 for target in targets]
    parts = [max(low, int(count * t.share / total)) for low, t in zip(least, targets, strict=True)]
    largest = max(range(len(parts)), key=parts.__getitem__)
    parts[largest] = max(1, parts[largest] + count - sum(parts))
    return parts


def fuzz(
    targets: Sequence[Target], count: int, seed: int, watch: Callable[[bytes, Target], None] | None = None
) -> list[Tally]:
    """Give `count` inputs to the targets by their shares. `watch` sees each input, to put it to another decoder."""
    tallies = []
    for target, part in zip(targets, shares(targets, count), strict=True):
        tally = Tally(target.name)
        # A seed of its own, so that a target's inputs do not change with another's.
        for data, rule in _inputs(target, part, Random(f"{seed} {target.name}")):
            _try(target, data, rule, tally)
            if watch is not None:
                watch(data, target)
        tallies.append(tally)
    return tallies


def _inputs(target: Target, count: int, rng: Random) -> Iterator[tuple[bytes, tuple[str, str] | None]]:
    structured = int(count * STRUCTURED) if target.broken else 0
    for number in range(structured):
        broken = target.broken[number % len(target.broken)]
        yield broken.make(rng), (broken.field, broken.rule)
    for _ in range(count - structured):
        yield mutate(target.seeds, rng), None


def _try(target: Target, data: bytes, rule: tuple[str, str] | None, tally: Tally) -> None:
    tally.inputs += 1
    if rule is not None:
        tally.broken[rule] += 1
    try:
        value = target.decode(data)
    except target.refusals:
        tally.refused += 1
        return
    except Exception as e:  # noqa: BLE001 - any other exception is what the harness looks for
        tally.crashed += 1
        tally.find(f"crashed with {type(e).__name__}: {e}", data)
        return
    why = target.judge(data, value) if rule is None else f"{rule[0]}: {rule[1]}"
    if why:
        tally.wrongly_accepted += 1
        tally.find(f"accepted although {why}", data)
    else:
        tally.accepted += 1


def check_seeds(targets: Sequence[Target]) -> list[Finding]:
    """Return the seeds that are refused or judged wrong: a harness whose good bytes are bad proves nothing."""
    findings = []
    for target in targets:
        for data in target.seeds:
            try:
                why = target.judge(data, target.decode(data))
            except target.refusals as e:
                why = f"a good seed is refused: {e}"
            if why:
                findings.append(Finding(target.name, why, data))
    return findings


def peak_memory_mb() -> float:
    """Return this process's largest resident memory so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
