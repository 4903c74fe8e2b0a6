"""What a version was made of, signed with its manifest: so that anybody who holds it can tell where it comes from.

The rules:
- parents are lower versions of the population, nearest first; only what an exporter makes has none;
- what was measured is stated as numbers with names, never as a verdict;
- `code_sha256` names the code that made it, `sources` the hashes of what went in (weights, vocabulary, text);
- counts are the aggregator's: updates and examples that were summed since the version before on its track.
"""

import re
from typing import Literal

import msgspec

from wire_contract.errors import Malformed

MAX_PARENTS, MAX_MEASURES, MAX_SOURCES = 8, 16, 16
_HASH = re.compile(r"[0-9a-f]{64}")
_MEASURE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_COUNT = 1 << 53


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """A version that this one was made from."""

    version: int
    sha256: str


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One number that was measured, by name: `top3`, `words`, `recall_points_lost`."""

    name: str
    value: float


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """See the module. `made_by` is what happened: an export, steps of the aggregator, an undo."""

    made_by: Literal["export", "steps", "undo"]
    parents: tuple[Parent, ...] = ()
    updates: int = 0
    examples: int = 0
    evaluation: tuple[Measure, ...] = ()
    code_sha256: str = ""
    sources: tuple[str, ...] = ()


def check_lineage(lineage: Lineage, version: int) -> None:
    """Raise `Malformed` unless every rule holds for `version`'s lineage."""
    if len(lineage.parents) > MAX_PARENTS or (lineage.made_by != "export" and not lineage.parents):
        raise Malformed(f"a lineage has 1 to {MAX_PARENTS} parents, none for an export, got {len(lineage.parents)}")
    for parent in lineage.parents:
        if not 1 <= parent.version < version or not _HASH.fullmatch(parent.sha256):
            raise Malformed(f"a parent of version {version} is a lower version with its hash, got {parent.version}")
    if not (0 <= lineage.updates < _COUNT and 0 <= lineage.examples < _COUNT):
        raise Malformed(f"a lineage counts from 0, got {lineage.updates} updates, {lineage.examples} examples")
    if len(lineage.evaluation) > MAX_MEASURES:
        raise Malformed(f"a lineage has at most {MAX_MEASURES} measures, got {len(lineage.evaluation)}")
    for measure in lineage.evaluation:
        # Not a number, and infinite, fail both.
        if not _MEASURE.fullmatch(measure.name) or not abs(measure.value) <= 1e12:
            raise Malformed(f"a measure is a finite number with a name, got {measure.name[:40]!r}: {measure.value}")
    if lineage.code_sha256 and not _HASH.fullmatch(lineage.code_sha256):
        raise Malformed(f"code_sha256 is 64 lower-case hex digits, got {lineage.code_sha256[:80]!r}")
    if len(lineage.sources) > MAX_SOURCES or any(not _HASH.fullmatch(source) for source in lineage.sources):
        raise Malformed(f"sources are at most {MAX_SOURCES} hashes of 64 hex digits, got {lineage.sources[:2]}")
