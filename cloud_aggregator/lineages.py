"""What each version is made of, as its manifest states it (see `wire_contract.lineage`).

The rules:
- a training version's parent is the training version before it; its updates and examples are its own step's;
- a refresh's parents are the training versions that it took in since the previous refresh's weights, and that refresh,
  nearest first; of more than eight the nearest, and always the previous refresh. Its updates and examples are those of
  all steps since the previous refresh's weights;
- an undo's parents are the refresh that it replaces and the version whose weights it brings back; it sums nothing;
- `sources` are the hashes of the sets of updates that were summed (row ids, hashes and weights), nearest first;
- examples are what devices stated: nobody can check them.
"""

from collections.abc import Callable, Iterable, Sequence

from cloud_aggregator.code_hash import aggregator_code
from cloud_aggregator.records import VersionRecord
from cloud_aggregator.registry import Registered
from wire_contract.lineage import MAX_PARENTS, MAX_SOURCES, Lineage, Measure, Parent

# The hash of the set of updates that made a version; empty where it is no longer kept.
MembersHash = Callable[[int], str]


def step_lineage(before: Registered, updates: int, examples: int, members_sha256: str) -> Lineage:
    """Return the lineage of the training version that a step made from `before`."""
    return Lineage(
        made_by="steps",
        parents=(Parent(version=before.version, sha256=before.sha256),),
        updates=updates,
        examples=examples,
        code_sha256=aggregator_code(),
        sources=(members_sha256,),
    )


def refresh_lineage(
    versions: Sequence[VersionRecord], previous: Registered, version: int, evaluation: tuple[Measure, ...],
    members: MembersHash,
) -> Lineage:  # fmt: skip
    """Return the lineage of training version `version` as the refresh after `previous`; `versions` are newest first."""
    by_number = {each.version: each for each in versions}
    steps = _steps_since(by_number, _weights_of(by_number, previous.version), version)
    chain = [step for step in steps if step.version != version]
    parents = {step.version: step.sha256 for step in chain} | {previous.version: previous.sha256}
    hashes = [hash for step in steps if (hash := members(step.version))]
    return Lineage(
        made_by="steps",
        parents=_nearest(parents, previous.version),
        updates=sum(step.updates for step in steps),
        examples=sum(step.examples for step in steps),
        evaluation=evaluation,
        code_sha256=aggregator_code(),
        sources=tuple(hashes[:MAX_SOURCES]),
    )


def undo_lineage(previous: Registered, target: Registered) -> Lineage:
    """Return the lineage of a refresh that brings `target`'s weights back in place of `previous`."""
    parents = {each.version: each.sha256 for each in (previous, target)}
    return Lineage(made_by="undo", parents=_nearest(parents, previous.version), code_sha256=aggregator_code())


def _steps_since(by_number: dict[int, VersionRecord], base: VersionRecord, version: int) -> list[VersionRecord]:
    """Return the steps after `base`'s up to `version`'s, newest first."""
    last = by_number[version].ordinal or 0
    found = [each for each in by_number.values() if (base.ordinal or 0) < (each.ordinal or 0) <= last]
    return sorted(found, key=lambda each: -each.version)


def _weights_of(by_number: dict[int, VersionRecord], version: int) -> VersionRecord:
    """Return the training version whose weights `version` has: its own, or through undos those of an earlier one."""
    found = by_number[version]
    while found.weights_of is not None:
        found = by_number[found.weights_of]
    return found


def _nearest(parents: dict[int, str], always: int) -> tuple[Parent, ...]:
    kept: Iterable[int] = sorted(parents, reverse=True)[:MAX_PARENTS]
    if always not in kept:
        kept = [*list(kept)[: MAX_PARENTS - 1], always]
    return tuple(Parent(version=version, sha256=parents[version]) for version in sorted(kept, reverse=True))
