"""From a group of messages to rows, inside the transaction whose commit precedes the acknowledgements.

The rules:
- nothing here believes a message: a topic, an envelope or a chunk that breaks a rule becomes an event and no row;
- a request is verified before it waits, and few of one device may wait;
- an init is verified, and its lease must be one that the device was given, before it takes the key (task, device,
  lease); the first bytes under a key win, other bytes that the same device signed for it are a `conflict`; bytes that
  nobody signed are an event and nothing else: no row, no verdict, no receipt;
- chunks may come before their init and in any order; an update is received once all are there and hash to the init's,
  and is then one row of sealed bytes;
- chunks are not signed, so wrong ones are dropped and asked for again, and refuse the update only at the third time;
- what a device may leave unfinished is bounded, and chunks without a signed init have a bound of their own, so that a
  stranger's do not take the room of a real update.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cloud_aggregator.admission import OpenedInit, Verdict, is_signed, open_init
from cloud_aggregator.intake_group import IntakeGroup
from cloud_aggregator.labels import printable
from cloud_aggregator.ports import Message
from cloud_aggregator.records import DeviceRecord, Records, RequestKind, UpdateRecord
from wire_contract import envelope
from wire_contract.errors import ContractError
from wire_contract.messages import (
    MAX_UPDATE_BYTES,
    CheckIn,
    Chunk,
    DeviceReport,
    EvaluationReport,
    ModelRequest,
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
    """Turn one message into rows; see `take_messages`."""
    take_messages(records, [message], now)


def take_messages(records: Records, messages: Sequence[Message], now: int) -> None:
    """Turn messages into rows. Never raises for what a message holds; `StorageFailed` comes from the records."""
    group = IntakeGroup(records, now)
    topics = [_topic_of(group, message) for message in messages]
    updates = [topic for topic in topics if isinstance(topic, UpdateTopic)]
    group.look_up(
        {topic.device for topic in topics if isinstance(topic, DeviceTopic | UpdateTopic)},
        {topic.update_id for topic in updates},
        sum(topic.chunk is None for topic in updates),
    )
    opened = {
        at: _open(group, topic, messages[at].payload)
        for at, topic in enumerate(topics)
        if isinstance(topic, UpdateTopic) and topic.chunk is None
    }
    group.look_up_leases({each.header.lease for each in opened.values() if isinstance(each, OpenedInit)})
    for at, (topic, message) in enumerate(zip(topics, messages, strict=True)):
        match topic:
            case None:
                continue
            case DeviceTopic(device, "req"):
                _take_request(group, device, message.payload)
            case DeviceTopic(device, "state"):
                _take_report(group, device, message.payload, now)
            case UpdateTopic(chunk=None):
                _take_init(group, topic, message.payload, opened[at], now)
            case UpdateTopic():
                _take_chunk(group, topic, message.payload, now)
            case _:
                group.add_event("unexpected topic", "", message.topic)
    group.write()


def _topic_of(group: IntakeGroup, message: Message) -> object:
    try:
        return parse_topic(message.topic)
    except ContractError as e:
        group.add_event("malformed topic", "", str(e))
        return None


def _open(group: IntakeGroup, topic: UpdateTopic, payload: bytes) -> OpenedInit | Verdict:
    known = group.device(topic.device)
    return open_init(payload, topic, None if known is None else known.public_key)


def _enrolled(group: IntakeGroup, device: str) -> DeviceRecord | None:
    found = group.device(device)
    return found if found is not None and found.revoked_at is None else None


def read_request(body: bytes) -> CheckIn | StatusQuery | ModelRequest | EvaluationReport:
    """Read the body of a device's request. Raises a `ContractError`."""
    wanted: type[CheckIn | StatusQuery | ModelRequest | EvaluationReport] = Request  # type: ignore[assignment] # no `type` for mypy yet
    return decode_message(body, wanted)


def _take_request(group: IntakeGroup, device: str, payload: bytes) -> None:
    known = _enrolled(group, device)
    if known is None:
        group.add_event("unknown_device", device, "a request of a device that is not enrolled, or is revoked")
        return
    try:
        body = envelope.verify(payload, "request", known.public_key)
    except ContractError as e:
        group.add_event("bad_signature", device, str(e))
        return
    try:
        request = read_request(body)
    except ContractError as e:
        group.add_event("malformed request", device, str(e))
        return
    if request.device != device:
        group.add_event("bad_signature", device, f"the request names device {request.device}")
    elif isinstance(request, CheckIn):
        group.put_request(device, "check-in", "", body)
    elif isinstance(request, ModelRequest):
        _put_query(group, device, "model-request", "", body)
    elif isinstance(request, EvaluationReport):
        _put_query(group, device, "evaluation", request.report_id, body)
    else:
        _put_query(group, device, "status-query", request.update_id, body)


def _put_query(group: IntakeGroup, device: str, kind: RequestKind, update_id: str, body: bytes) -> None:
    waiting = group.waiting_queries(device)
    if len(waiting) >= MAX_QUERIES and (kind, update_id) not in waiting:
        group.add_event("too many requests", device, f"at most {MAX_QUERIES} questions of a device may wait")
        return
    group.put_request(device, kind, update_id, body)


def _take_report(group: IntakeGroup, device: str, payload: bytes, now: int) -> None:
    known = _enrolled(group, device)
    if known is None or not payload:
        return
    try:
        report = decode_message(envelope.verify(payload, "report", known.public_key), DeviceReport)
    except ContractError as e:
        group.add_event("malformed report", device, str(e))
        return
    # A last will is signed before its session begins: it says "offline" only for the session that it names.
    overtaken = not report.online and report.nonce != known.report_nonce
    if report.device != device or overtaken or (report.online and report.sent_at < known.reported_at):
        return
    if not report.online:
        group.replace_device(replace(known, online=False, last_seen=now))
        return
    group.replace_device(
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


def _take_init(group: IntakeGroup, topic: UpdateTopic, payload: bytes, opened: OpenedInit | Verdict, now: int) -> None:
    known = group.device(topic.device)
    if known is None or (isinstance(opened, Verdict) and not is_signed(opened)):
        refusal = opened if isinstance(opened, Verdict) else Verdict("unknown_device", "")
        group.add_event(refusal.name, topic.device, refusal.reason)
        return
    stored = group.update(topic.update_id)
    init_sha256 = hashlib.sha256(payload).hexdigest()
    if stored is not None and stored.init_sha256 == init_sha256:
        _put_query(group, topic.device, "repeat", topic.update_id, b"")
        return
    if known.revoked_at is not None:
        opened = Verdict("unknown_device", f"device {topic.device} is revoked")
    if isinstance(opened, Verdict):
        _refuse_at_door(group, topic, opened, init_sha256, stored, now)
        return
    if group.lease(opened.header.task, topic.device, opened.header.lease) is None:
        reason = f"device {topic.device} was never given lease {opened.header.lease}"
        group.add_event("unknown_lease", topic.device, reason)
        return
    if stored is not None and stored.lease is not None:
        conflict = Verdict("conflict", "another update of this lease came first")
        _refuse_at_door(group, topic, conflict, init_sha256, None, now)
        return
    init, header = opened.init, opened.header
    row = UpdateRecord(
        id=group.new_id(),
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
    group.add_update(row)
    sizes = group.chunk_sizes(topic.update_id)
    if any(index >= row.chunks or size != _size_of(row, index) for index, size in sizes.items()):
        group.drop_chunks(topic.update_id, topic.device)
    elif len(sizes) == row.chunks:
        _complete(group, row, group.chunk_data(topic.update_id), now)


def _refuse_at_door(
    group: IntakeGroup, topic: UpdateTopic, verdict: Verdict, init_sha256: str, stored: UpdateRecord | None, now: int
) -> None:
    group.add_event(verdict.name, topic.device, verdict.reason)
    if stored is not None or group.has_init(topic.update_id, init_sha256):
        return
    if group.count_refused_at_door(topic.device) >= MAX_REFUSED_AT_DOOR:
        return
    group.add_update(
        UpdateRecord(
            id=group.new_id(),
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


def _take_chunk(group: IntakeGroup, topic: UpdateTopic, payload: bytes, now: int) -> None:
    index = topic.chunk
    if index is None or _enrolled(group, topic.device) is None:
        group.add_event("unknown_device", topic.device, "a chunk of a device that is not enrolled, or is revoked")
        return
    try:
        chunk = decode_message(payload, Chunk)
    except ContractError as e:
        group.add_event("malformed chunk", topic.device, str(e))
        return
    if (chunk.update_id, chunk.index) != (topic.update_id, index) or index >= MAX_CHUNKS:
        group.add_event("malformed chunk", topic.device, f"the topic says {topic.update_id}/{index}")
        return
    row = group.update(topic.update_id)
    if row is not None and row.device != topic.device:
        group.add_event("malformed chunk", topic.device, f"update {topic.update_id} is another device's")
        return
    if row is not None and row.state != "open":
        return
    if row is not None and (index >= row.chunks or len(chunk.data) != _size_of(row, index)):
        group.add_event("malformed chunk", topic.device, f"chunk {index} has {len(chunk.data)} bytes")
        return
    sizes = group.chunk_sizes(topic.update_id)
    if index in sizes:
        return
    if row is not None and len(sizes) + 1 == row.chunks:
        # The last one: it is never stored by itself.
        _complete(group, row, {**(group.chunk_data(topic.update_id) if sizes else {}), index: chunk.data}, now)
        return
    claimed = row is not None
    if group.unfinished_bytes(topic.device, claimed=claimed) + len(chunk.data) > MAX_UNFINISHED_BYTES:
        group.add_event("too much unfinished", topic.device, f"at most {MAX_UNFINISHED_BYTES} bytes may wait")
        return
    group.put_chunk(topic.update_id, topic.device, index, chunk.data, claimed=claimed)


def _size_of(row: UpdateRecord, index: int) -> int:
    return min(row.chunk_bytes, row.size_bytes - index * row.chunk_bytes)


def _complete(group: IntakeGroup, row: UpdateRecord, chunks: dict[int, bytes], now: int) -> None:
    """All chunks are there: the update is received if they hash to what the device signed."""
    sealed = b"".join(chunks[index] for index in range(row.chunks))
    if hashlib.sha256(sealed).hexdigest() == row.sha256:
        group.receive(row, sealed)
        return
    group.drop_chunks(row.update_id, row.device)
    group.add_event("hash mismatch", row.device, f"the chunks of {row.update_id} do not hash to the init's")
    row = replace(row, mismatches=row.mismatches + 1)
    if row.mismatches >= MAX_MISMATCHES:
        reason = f"the chunks did not hash to the signed init's {row.mismatches} times"
        group.change(replace(row, state="judged", verdict="malformed", reason=reason, judged_at=now))
        group.end_lease(row)
    else:
        group.change(row)
        _put_query(group, row.device, "repeat", row.update_id, b"")


def missing_chunks(records: Records, row: UpdateRecord) -> tuple[int, ...]:
    """Return the indices of an open update's chunks that are not there yet (at most 4096)."""
    sizes = records.chunk_sizes(row.update_id)
    return tuple(index for index in range(row.chunks) if index not in sizes)[:4096]
