"""What is deleted by age, so that neither devices nor strangers fill the disk.

The rules:
- sealed bytes of updates that a step used go after the days that the operator set, or once that many refreshes went out
  after the step's own, whichever comes first; then only the round's partial sums and the verdicts are left. What still
  waits for a step is never deleted;
- rows of refused updates, uploads that were never finished and the notes of counted evaluation reports go after the
  same days, chunks whose signed init has not come after one;
- refreshes are kept for ever, training versions while a device might still start from one, or a replay does;
- partial sums of the newest steps are kept, and optimizer states of the newest versions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cloud_aggregator.records import PopulationRecord, Records

KEEP_VERSIONS: Final = 64
KEEP_SUMS: Final = 256
KEEP_UNCLAIMED_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things stay: raw updates in days and in refreshes, model files and sums in versions."""

    updates_days: int = 30
    updates_refreshes: int = 4
    versions: int = KEEP_VERSIONS
    sums: int = KEEP_SUMS


DEFAULT_RETENTION: Final = Retention()


def drop_old_rows(records: Records, now: int, retention: Retention) -> None:
    """Delete what is too old."""
    before = now - retention.updates_days * 86_400
    for population in records.populations():
        records.drop_old_sealed(before, population.task, last_overtaken(records, population, retention))
        steps = [version.version for version in records.versions(population.population) if version.ordinal]
        records.drop_old_sums(population.population, steps[: retention.sums][-1] if steps else 0)
        old_states = [v for v in records.kept_versions(population.population) if v not in steps[: retention.versions]]
        records.drop_states(population.population, old_states)
    records.drop_old_refusals(before)
    records.drop_old_uploads(before)
    records.drop_old_reports(before)
    records.drop_unclaimed_chunks(now - KEEP_UNCLAIMED_S)


def last_overtaken(records: Records, population: PopulationRecord, retention: Retention) -> int:
    """Return the newest version that `retention.updates_refreshes` releases have gone out since; 0 if none has."""
    released = [r.version for r in records.releases(population.population) if r.outcome == "released"]
    # The newest release holds the versions up to it, so one more than the number has to be there.
    return released[retention.updates_refreshes] if len(released) > retention.updates_refreshes else 0


def unneeded_files(records: Records, populations: Iterable[str], keep_versions: int = KEEP_VERSIONS) -> set[str]:
    """Return the SHA-256 of the model files that no device and no replay can need any more."""
    unneeded: set[str] = set()
    needed: set[str] = set()
    for population in populations:
        versions = records.versions(population)
        refreshes = {release.sha256 for release in records.releases(population) if release.outcome != "held"}
        replayed = set(records.kept_versions(population))
        needed |= refreshes | {version.sha256 for version in versions[:keep_versions]}
        needed |= {version.sha256 for version in versions if version.version in replayed}
        unneeded |= {version.sha256 for version in versions[keep_versions:]}
    return unneeded - needed
