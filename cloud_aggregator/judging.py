"""The updates of one pass: judged in their order, their verdicts and receipts written many at a time.

The rules:
- rows are read, and written, as many together as may lie in memory with their sealed bytes;
- a row is given to the caller before it is written, so that a step may follow an acceptance at once; all is one
  transaction, and nothing counts before its commit;
- an update that was not accepted keeps no sealed bytes;
- the receipt is signed with the verdict and stored with it: whoever asks again gets the same bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from cloud_aggregator.answers import receipt_message, receipt_of
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.population import Population, admit_one, refuse_orphan
from cloud_aggregator.records import Records, UpdateRecord

MAX_TOGETHER: Final = 256
MAX_BYTES_TOGETHER: Final = 32 * 1024 * 1024


def judge_updates(
    records: Records, populations: Mapping[str, Population], rows: Sequence[UpdateRecord], keys: ServiceKeys, now: int
) -> Iterator[tuple[Population | None, UpdateRecord]]:
    """Yield each of the received `rows` with its verdict, and the population whose buffer it may be in.

    Take all that it yields: the verdicts of a part are written when the next one is asked for.
    """
    for part in in_parts(rows):
        devices = records.devices_of({row.device for row in part})
        leases = records.leases_of({row.lease or "" for row in part})
        sealed = records.sealed_of([row.id for row in part])
        judged = []
        for row in part:
            device = devices.get(row.device)
            population = None if device is None else populations.get(device.population)
            if device is None or population is None or device.revoked_at is not None:
                verdict = refuse_orphan(row, now)
            else:
                lease = leases.get(row.lease or "")
                verdict = admit_one(population, records, row, sealed.get(row.id, b""), lease, keys, now)
            verdict = with_receipt(verdict, keys, now)
            judged.append(verdict)
            yield population, verdict
        records.set_verdicts(judged)
        records.drop_sealed([row.id for row in judged if row.verdict != "accepted"])


def with_receipt(row: UpdateRecord, keys: ServiceKeys, now: int) -> UpdateRecord:
    """Return a judged row with its signed receipt."""
    return replace(row, receipt=receipt_message(receipt_of(row, now), keys).payload)


def in_parts(rows: Sequence[UpdateRecord]) -> Iterator[list[UpdateRecord]]:
    """Yield updates in their order, as many together as may lie in memory with their sealed bytes."""
    part: list[UpdateRecord] = []
    size = 0
    for row in rows:
        if part and (len(part) == MAX_TOGETHER or size + row.size_bytes > MAX_BYTES_TOGETHER):
            yield part
            part, size = [], 0
        part.append(row)
        size += row.size_bytes
    if part:
        yield part
