"""The part of `records.Records` that keeps updates: inits, chunks, verdicts, receipts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cloud_aggregator.adapters import schema as t
from cloud_aggregator.records import UpdateRecord, UpdateState

_COLUMNS = [t.updates.c[field.name] for field in fields(UpdateRecord)]


class SqlUpdates:
    """Operations on updates and chunks in one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def _insert(self, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
        if self._connection.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)

    def _put(self, table: sa.Table, values: Mapping[str, object], keys: list[str]) -> None:
        """Insert, or replace the row of the same key."""
        statement = self._insert(table).values(values)
        rest = {name: statement.excluded[name] for name in values if name not in keys}
        self._connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest))

    def _insert_new(self, table: sa.Table, values: Mapping[str, object]) -> int | None:
        """Insert unless a unique key is taken; return the row's number, or 1 where the table has none."""
        result = self._connection.execute(self._insert(table).values(values).on_conflict_do_nothing())
        if result.rowcount != 1:
            return None
        key = result.inserted_primary_key
        return key[0] if key is not None and isinstance(key[0], int) else 1

    def add_update(self, update: UpdateRecord) -> int | None:
        values = asdict(update)
        del values["id"]
        return self._insert_new(t.updates, values)

    def update(self, update_id: str) -> UpdateRecord | None:
        query = sa.select(*_COLUMNS).where(t.updates.c.update_id == update_id)
        # Verified rows first: a refused init under the same id must not hide them.
        row = self._connection.execute(query.order_by(t.updates.c.lease.is_(None), t.updates.c.id).limit(1)).first()
        return None if row is None else UpdateRecord(**row._mapping)

    def count_refused_at_door(self, device: str) -> int:
        return self._count(t.updates, (t.updates.c.device == device) & t.updates.c.lease.is_(None))

    def set_update_state(self, id: int, state: UpdateState, mismatches: int) -> None:
        change = sa.update(t.updates).where(t.updates.c.id == id).values(state=state, mismatches=mismatches)
        self._connection.execute(change)

    def received_updates(self, limit: int) -> list[UpdateRecord]:
        column = t.updates.c
        query = sa.select(*_COLUMNS).where(column.state == "received")
        rows = self._connection.execute(query.order_by(column.finished_at, column.device, column.id).limit(limit))
        return [UpdateRecord(**row._mapping) for row in rows]

    def count_updates(self, state: UpdateState) -> int:
        return self._count(t.updates, t.updates.c.state == state)

    def set_verdict(self, update: UpdateRecord) -> None:
        names = ("state", "verdict", "reason", "staleness", "weight", "norm", "judged_at", "receipt")
        values = {name: getattr(update, name) for name in names}
        self._connection.execute(sa.update(t.updates).where(t.updates.c.id == update.id).values(values))

    def accepted_unused(self, task: str) -> list[UpdateRecord]:
        column = t.updates.c
        chosen = (column.task == task) & (column.verdict == "accepted") & column.used_by.is_(None)
        rows = self._connection.execute(sa.select(*_COLUMNS).where(chosen).order_by(column.id))
        return [UpdateRecord(**row._mapping) for row in rows]

    def mark_used(self, ids: Sequence[int], version: int) -> None:
        self._for_each(sa.update(t.updates).values(used_by=version), ids)

    def unpublished_receipts(self, limit: int) -> list[UpdateRecord]:
        column = t.updates.c
        chosen = (column.receipt_published == sa.false()) & (column.state == "judged")
        rows = self._connection.execute(sa.select(*_COLUMNS).where(chosen).order_by(column.id).limit(limit))
        return [UpdateRecord(**row._mapping) for row in rows]

    def mark_published(self, ids: Sequence[int]) -> None:
        self._for_each(sa.update(t.updates).values(receipt_published=True), ids)

    def _for_each(self, change: sa.Update, ids: Sequence[int]) -> None:
        if ids:
            chosen = change.where(t.updates.c.id == sa.bindparam("row"))
            self._connection.execute(chosen, [{"row": i} for i in ids])

    def updates_of_version(self, task: str, version: int | None) -> list[UpdateRecord]:
        column = t.updates.c
        chosen = (column.task == task) & (column.verdict == "accepted")
        chosen &= column.used_by.is_(None) if version is None else column.used_by == version
        rows = self._connection.execute(sa.select(*_COLUMNS).where(chosen).order_by(column.id))
        return [UpdateRecord(**row._mapping) for row in rows]

    def count_verdicts(self, task: str) -> dict[tuple[str, int | None], int]:
        column = t.updates.c
        query = sa.select(column.verdict, column.staleness, sa.func.count().label("n"))
        query = query.where(((column.task == task) | column.task.is_(None)) & (column.state == "judged"))
        rows = self._connection.execute(query.group_by(column.verdict, column.staleness))
        return {(row.verdict, row.staleness): row.n for row in rows}

    def put_chunk(self, update_id: str, device: str, index: int, data: bytes, now: int) -> None:
        values = {"update_id": update_id, "index": index, "device": device, "size_bytes": len(data), "data": data}
        values["arrived_at"] = now
        self._connection.execute(self._insert(t.chunks).values(values).on_conflict_do_nothing())

    def chunk_sizes(self, update_id: str) -> dict[int, int]:
        column = t.chunks.c
        rows = self._connection.execute(
            sa.select(column["index"], column.size_bytes).where(column.update_id == update_id)
        )
        return {int(row[0]): int(row[1]) for row in rows}

    def sealed_bytes(self, update_id: str) -> bytes:
        column = t.chunks.c
        query = sa.select(column.data).where(column.update_id == update_id).order_by(column["index"])
        return b"".join(bytes(data) for data in self._connection.scalars(query))

    def drop_chunks(self, update_id: str) -> None:
        self._connection.execute(sa.delete(t.chunks).where(t.chunks.c.update_id == update_id))

    def unfinished_bytes(self, device: str, *, claimed: bool) -> int:
        column = t.updates.c
        signed = sa.select(column.update_id).where(column.device == device, column.lease.is_not(None))
        query = sa.select(sa.func.coalesce(sa.func.sum(t.chunks.c.size_bytes), 0))
        chosen = t.chunks.c.device == device
        if claimed:
            unused = signed.where(column.verdict.is_(None) | (column.verdict != "accepted"))
            chosen &= t.chunks.c.update_id.in_(unused)
        else:
            chosen &= t.chunks.c.update_id.not_in(signed)
        return int(self._connection.scalar(query.where(chosen)) or 0)

    def drop_old_chunks(self, judged_before: int) -> int:
        column = t.updates.c
        used = column.used_by.is_not(None) | (column.verdict != "accepted")
        old = sa.select(column.update_id).where((column.judged_at < judged_before) & used)
        return self._connection.execute(sa.delete(t.chunks).where(t.chunks.c.update_id.in_(old))).rowcount

    def drop_old_refusals(self, judged_before: int) -> int:
        column = t.updates.c
        old = (column.judged_at < judged_before) & (column.verdict != "accepted")
        return self._connection.execute(sa.delete(t.updates).where(old)).rowcount

    def drop_unclaimed_chunks(self, arrived_before: int) -> int:
        claimed = sa.select(t.updates.c.update_id).where(t.updates.c.lease.is_not(None))
        old = (t.chunks.c.arrived_at < arrived_before) & t.chunks.c.update_id.not_in(claimed)
        return self._connection.execute(sa.delete(t.chunks).where(old)).rowcount

    def drop_old_uploads(self, arrived_before: int) -> int:
        column = t.updates.c
        old = (column.state == "open") & (column.arrived_at < arrived_before)
        chunks = t.chunks.c.update_id.in_(sa.select(column.update_id).where(old))
        self._connection.execute(sa.delete(t.chunks).where(chunks))
        return self._connection.execute(sa.delete(t.updates).where(old)).rowcount

    def _count(self, table: sa.Table, chosen: sa.ColumnElement[bool]) -> int:
        return int(self._connection.scalar(sa.select(sa.func.count()).select_from(table).where(chosen)) or 0)
