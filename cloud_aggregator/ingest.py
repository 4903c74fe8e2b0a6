"""From a message of the broker to rows, inside the transaction whose commit precedes the acknowledgement.

The rules:
- nothing here believes a message: a topic, an envelope or a chunk that breaks a rule becomes an event and no row;
- a request is verified before it waits, and few of one device may wait;
- an init is verified, and its lease must be one that the device was given, before it takes the key (task, device,
  lease); the first bytes under a key win, other bytes that the same device signed for it are a `conflict`; bytes that
  nobody signed are an event and nothing else: no row, no verdict, no receipt;
- chunks may come before their init and in any order; an update is received once all are there and hash to the init's;
- chunks are not signed, so wrong ones are dropped and asked for again, and refuse the update only at the third time;
- what a device may leave unfinished is bounded, and chunks without a signed init have a bound of their own, so that a
  stranger's do not take the room of a real update.
"""

import hashlib
from dataclasses import replace
from typing import Final

from cloud_aggregator.admission import Verdict, is_signed, open_init
from cloud_aggregator.labels import printable
from cloud_aggregator.ports import Message
from cloud_aggregator.records import DeviceRecord, Records, UpdateRecord
from wire_contract import envelope
from wire_contract.errors import ContractError
from wire_contract.messages import (
    MAX_UPDATE_BYTES,
    CheckIn,
    Chunk,
    DeviceReport,
    Request,
    StatusQuery,
    decode_message,
)
from wire_contract.topics import DeviceTopic, UpdateTopic, parse_topic

MAX_UNFINISHED_BYTES: Final = 2 * MAX_UPDATE_BYTES
MAX_REFUSED_AT_DOOR: Final = 64
MAX_QUERIES: Final = 8
MAX_MISMATCHES: Final = 3
MAX_CHUNKS: Final = MAX_UPDATE_BYTES // 1024


def take_message(records: Records, message: Message, now: int) -> None:
    """Turn one message into rows. Never raises for what a message holds; `StorageFailed` comes from the records."""
    try:
        topic = parse_topic(message.topic)
    except ContractError as e:
        records.add_event(now, "malformed topic", "", str(e))
        return
    match topic:
        case DeviceTopic(device, "req"):
            _take_request(records, device, message.payload, now)
        case DeviceTopic(device, "state"):
            _take_report(records, device, message.payload, now)
        case UpdateTopic(chunk=None):
            _take_init(records, topic, message.payload, now)
        case UpdateTopic():
            _take_chunk(records, topic, message.payload, now)
        case _:
            records.add_event(now, "unexpected topic", "", message.topic)


def _enrolled(records: Records, device: str) -> DeviceRecord | None:
    found = records.device(device)
    return found if found is not None and found.revoked_at is None else None


def read_request(body: bytes) -> CheckIn | StatusQuery:
    """Read the body of a device's request. Raises a `ContractError`."""
    wanted: type[CheckIn | StatusQuery] = Request  # type: ignore[assignment] # a union is no `type` for mypy yet
    return decode_message(body, wanted)


def _take_request(records: Records, device: str, payload: bytes, now: int) -> None:
    known = _enrolled(records, device)
    if known is None:
        records.add_event(now, "unknown_device", device, "a request of a device that is not enrolled, or is revoked")
        return
    try:
        body = envelope.verify(payload, "request", known.public_key)
    except ContractError as e:
        records.add_event(now, "bad_signature", device, str(e))
        return
    try:
        request = read_request(body)
    except ContractError as e:
        records.add_event(now, "malformed request", device, str(e))
        return
    if request.device != device:
        records.add_event(now, "bad_signature", device, f"the request names device {request.device}")
    elif isinstance(request, CheckIn):
        records.put_request(device, "check-in", "", body)
    else:
        _put_query(records, device, "status-query", request.update_id, body, now)


def _put_query(records: Records, device: str, kind: str, update_id: str, body: bytes, now: int) -> None:
    waiting = records.waiting_queries(device)
    if len(waiting) >= MAX_QUERIES and (kind, update_id) not in waiting:
        records.add_event(now, "too many requests", device, f"at most {MAX_QUERIES} questions of a device may wait")
        return
    records.put_request(device, kind, update_id, body)


def _take_report(records: Records, device: str, payload: bytes, now: int) -> None:
    known = _enrolled(records, device)
    if known is None or not payload:
        return
    try:
        report = decode_message(envelope.verify(payload, "report", known.public_key), DeviceReport)
    except ContractError as e:
        records.add_event(now, "malformed report", device, str(e))
        return
    # A last will is signed before its session begins: it says "offline" only for the session that it names.
    overtaken = not report.online and report.nonce != known.report_nonce
    if report.device != device or overtaken or (report.online and report.sent_at < known.reported_at):
        return
    if not report.online:
        records.replace_device(replace(known, online=False, last_seen=now))
        return
    records.replace_device(
        replace(
            known,
            online=True,
            last_seen=now,
            training_version=report.training_version,
            refresh_version=report.refresh_version,
            runtime=printable(report.runtime),
            reason=printable(report.reason),
            report_nonce=report.nonce,
            reported_at=report.sent_at,
        )
    )


def _take_init(records: Records, topic: UpdateTopic, payload: bytes, now: int) -> None:
    known = records.device(topic.device)
    opened = open_init(payload, topic, None if known is None else known.public_key)
    if known is None or (isinstance(opened, Verdict) and not is_signed(opened)):
        refusal = opened if isinstance(opened, Verdict) else Verdict("unknown_device", "")
        records.add_event(now, refusal.name, topic.device, refusal.reason)
        return
    stored = records.update(topic.update_id)
    init_sha256 = hashlib.sha256(payload).hexdigest()
    if stored is not None and stored.init_sha256 == init_sha256:
        _put_query(records, topic.device, "repeat", topic.update_id, b"", now)
        return
    if known.revoked_at is not None:
        opened = Verdict("unknown_device", f"device {topic.device} is revoked")
    if isinstance(opened, Verdict):
        _refuse_at_door(records, topic, opened, init_sha256, stored, now)
        return
    if records.lease(opened.header.task, topic.device, opened.header.lease) is None:
        reason = f"device {topic.device} was never given lease {opened.header.lease}"
        records.add_event(now, "unknown_lease", topic.device, reason)
        return
    if stored is not None and stored.lease is not None:
        conflict = Verdict("conflict", "another update of this lease came first")
        _refuse_at_door(records, topic, conflict, init_sha256, None, now)
        return
    init, header = opened.init, opened.header
    row = UpdateRecord(
        id=0,
        update_id=topic.update_id,
        device=topic.device,
        task=header.task,
        lease=header.lease,
        header=init.header,
        size_bytes=init.size_bytes,
        sha256=init.sha256,
        chunk_bytes=init.chunk_bytes,
        init_sha256=init_sha256,
        finished_at=header.finished_at,
        arrived_at=now,
        state="open",
        base_version=header.base_version,
    )
    number = records.add_update(row)
    if number is None:
        records.add_event(now, "conflict", topic.device, f"a second key for update {topic.update_id}")
        return
    row = replace(row, id=number)
    sizes = records.chunk_sizes(topic.update_id)
    if any(index >= row.chunks or size != _size_of(row, index) for index, size in sizes.items()):
        records.drop_chunks(topic.update_id)
        sizes = {}
    _complete(records, row, sizes, now)


def _refuse_at_door(
    records: Records, topic: UpdateTopic, verdict: Verdict, init_sha256: str, stored: UpdateRecord | None, now: int
) -> None:
    records.add_event(now, verdict.name, topic.device, verdict.reason)
    if stored is not None or records.count_refused_at_door(topic.device) >= MAX_REFUSED_AT_DOOR:
        return
    records.add_update(
        UpdateRecord(
            id=0,
            update_id=topic.update_id,
            device=topic.device,
            task=None,
            lease=None,
            header=b"",
            size_bytes=1,
            sha256="",
            chunk_bytes=1024,
            init_sha256=init_sha256,
            finished_at=now,
            arrived_at=now,
            state="judged",
            verdict=verdict.name,
            reason=verdict.reason[:400],
            judged_at=now,
        )
    )


def _take_chunk(records: Records, topic: UpdateTopic, payload: bytes, now: int) -> None:
    index = topic.chunk
    if index is None or _enrolled(records, topic.device) is None:
        records.add_event(
            now, "unknown_device", topic.device, "a chunk of a device that is not enrolled, or is revoked"
        )
        return
    try:
        chunk = decode_message(payload, Chunk)
    except ContractError as e:
        records.add_event(now, "malformed chunk", topic.device, str(e))
        return
    if (chunk.update_id, chunk.index) != (topic.update_id, index) or index >= MAX_CHUNKS:
        records.add_event(now, "malformed chunk", topic.device, f"the topic says {topic.update_id}/{index}")
        return
    row = records.update(topic.update_id)
    if row is not None and row.state != "open":
        return
    if row is not None and (index >= row.chunks or len(chunk.data) != _size_of(row, index)):
        records.add_event(now, "malformed chunk", topic.device, f"chunk {index} has {len(chunk.data)} bytes")
        return
    claimed = row is not None and row.lease is not None
    if records.unfinished_bytes(topic.device, claimed=claimed) + len(chunk.data) > MAX_UNFINISHED_BYTES:
        records.add_event(now, "too much unfinished", topic.device, f"at most {MAX_UNFINISHED_BYTES} bytes may wait")
        return
    records.put_chunk(topic.update_id, topic.device, index, chunk.data, now)
    if row is not None:
        _complete(records, row, records.chunk_sizes(topic.update_id), now)


def _size_of(row: UpdateRecord, index: int) -> int:
    return min(row.chunk_bytes, row.size_bytes - index * row.chunk_bytes)


def _complete(records: Records, row: UpdateRecord, sizes: dict[int, int], now: int) -> None:
    if len(sizes) < row.chunks:
        return
    if hashlib.sha256(records.sealed_bytes(row.update_id)).hexdigest() == row.sha256:
        records.set_update_state(row.id, "received", row.mismatches)
        _end_lease(records, row)
        return
    records.drop_chunks(row.update_id)
    records.add_event(now, "hash mismatch", row.device, f"the chunks of {row.update_id} do not hash to the init's")
    mismatches = row.mismatches + 1
    records.set_update_state(row.id, "open", mismatches)
    if mismatches >= MAX_MISMATCHES:
        reason = f"the chunks did not hash to the signed init's {mismatches} times"
        records.set_verdict(replace(row, state="judged", verdict="malformed", reason=reason, judged_at=now))
        _end_lease(records, row)
    else:
        _put_query(records, row.device, "repeat", row.update_id, b"", now)


def _end_lease(records: Records, row: UpdateRecord) -> None:
    if row.task is None or row.lease is None:
        return
    lease = records.lease(row.task, row.device, row.lease)
    if lease is not None and lease.state == "live":
        records.set_lease_state(lease.lease, "answered")


def missing_chunks(records: Records, row: UpdateRecord) -> tuple[int, ...]:
    """Return the indices of an open update's chunks that are not there yet (at most 4096)."""
    sizes = records.chunk_sizes(row.update_id)
    return tuple(index for index in range(row.chunks) if index not in sizes)[:4096]
