"""The part of `records.Records` that keeps the signed repository: metadata by role and version, contents by path."""

from dataclasses import asdict

import sqlalchemy as sa

from cloud_aggregator.adapters import schema as t
from cloud_aggregator.adapters.sql_evaluations import SqlEvaluations
from cloud_aggregator.trust_records import MetadataRecord, TargetRecord


class SqlTrust(SqlEvaluations):
    """Operations on the repository in one transaction."""

    def put_metadata(self, metadata: MetadataRecord) -> None:
        self._put(t.trust_metadata, asdict(metadata), ["role", "version"])

    def metadata(self, role: str, version: int | None = None) -> MetadataRecord | None:
        column = t.trust_metadata.c
        query = sa.select(t.trust_metadata).where(column.role == role).order_by(column.version.desc()).limit(1)
        if version is not None:
            query = query.where(column.version == version)
        row = self._connection.execute(query).one_or_none()
        return None if row is None else MetadataRecord(**row._mapping)

    def metadata_versions(self, role: str) -> list[int]:
        column = t.trust_metadata.c
        query = sa.select(column.version).where(column.role == role).order_by(column.version)
        return [int(version) for version in self._connection.scalars(query)]

    def drop_metadata(self, role: str, below: int) -> None:
        column = t.trust_metadata.c
        self._connection.execute(sa.delete(t.trust_metadata).where((column.role == role) & (column.version < below)))

    def put_target(self, target: TargetRecord) -> None:
        self._put(t.trust_targets, asdict(target), ["path", "sha256"])

    def target(self, path: str, sha256: str) -> TargetRecord | None:
        column = t.trust_targets.c
        chosen = (column.path == path) & (column.sha256 == sha256)
        row = self._connection.execute(sa.select(t.trust_targets).where(chosen)).one_or_none()
        return None if row is None else TargetRecord(**row._mapping)

    def drop_targets(self, path: str, keep: int) -> None:
        column = t.trust_targets.c
        query = sa.select(column.sha256).where(column.path == path).order_by(column.at.desc(), column.sha256)
        old = list(self._connection.scalars(query))[keep:]
        if old:
            gone = (column.path == path) & column.sha256.in_(old)
            self._connection.execute(sa.delete(t.trust_targets).where(gone))
