"""What is deleted by age, so that neither devices nor strangers fill the disk.

The rules:
- sealed bytes of judged updates and rows of refused ones go after the days that the operator set, but never what still
  waits for a step;
- an upload that was never finished goes after the same days, chunks whose signed init has not come after one;
- refreshes are kept for ever, training versions while a device might still start from one.
"""

from collections.abc import Iterable
from typing import Final

from cloud_aggregator.records import Records

KEEP_VERSIONS: Final = 64
KEEP_UNCLAIMED_S: Final = 86_400


def drop_old_rows(records: Records, now: int, keep_s: int) -> None:
    """Delete what is too old."""
    records.drop_old_chunks(now - keep_s)
    records.drop_old_refusals(now - keep_s)
    records.drop_old_uploads(now - keep_s)
    records.drop_unclaimed_chunks(now - KEEP_UNCLAIMED_S)


def unneeded_files(records: Records, populations: Iterable[str], keep_versions: int = KEEP_VERSIONS) -> set[str]:
    """Return the SHA-256 of the model files that no device can need any more."""
    unneeded: set[str] = set()
    needed: set[str] = set()
    for population in populations:
        versions = records.versions(population)
        refreshes = {release.sha256 for release in records.releases(population) if release.outcome != "held"}
        needed |= refreshes | {version.sha256 for version in versions[:keep_versions]}
        unneeded |= {version.sha256 for version in versions[keep_versions:]}
    return unneeded - needed
