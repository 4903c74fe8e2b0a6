"""What is stored of the signed repository (TUF): metadata and the files that they name, as frozen values.

All of it is rows, so that a release and its signatures are one transaction: a crash leaves the old set or the new one.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MetadataRecord:
    """One version of one role's metadata, the exact bytes that are served."""

    role: str
    version: int
    data: bytes
    at: int


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """The content that a role names, or named, at `path`: a signed manifest's exact bytes."""

    path: str
    sha256: str
    data: bytes
    at: int


class TrustRecords(Protocol):
    """The operations on the repository inside one transaction."""

    def put_metadata(self, metadata: MetadataRecord) -> None: ...
    def metadata(self, role: str, version: int | None = None) -> MetadataRecord | None:
        """One version of a role's metadata, by default the newest."""

    def metadata_versions(self, role: str) -> list[int]:
        """Rising."""

    def drop_metadata(self, role: str, below: int) -> None:
        """Delete the versions of a role below `below`."""

    def put_target(self, target: TargetRecord) -> None: ...
    def target(self, path: str, sha256: str) -> TargetRecord | None: ...
    def drop_targets(self, path: str, keep: int) -> None:
        """Delete the contents that `path` had, but the `keep` newest."""
