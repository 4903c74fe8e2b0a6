"""The rows that a group of messages touches: read by a few statements, changed in memory, written by a few statements.

The rules:
- it lives inside one transaction that holds the write lock, so what was read stays true until `write`;
- what it is asked for includes what the earlier messages of the group changed;
- rows are written in the order in which the messages came; nothing is written before `write`.
An update whose init and chunks all come in one group is written once, whole.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from cloud_aggregator.leases import Lease
from cloud_aggregator.records import (
    ChunkRecord,
    DeviceRecord,
    EventRecord,
    Records,
    RequestKind,
    RequestRecord,
    UpdateRecord,
)


class IntakeGroup:
    """A view of `records` for one group of messages; call `write` at its end."""

    def __init__(self, records: Records, now: int) -> None:
        self._records = records
        self._now = now
        self._devices: dict[str, DeviceRecord] = {}
        self._updates: dict[str, UpdateRecord] = {}
        self._leases: dict[str, Lease] = {}
        self._sizes: dict[str, dict[int, int]] = {}
        self._unfinished: dict[str, dict[bool, int]] = {}
        self._door: dict[str, int] = {}
        self._waiting: dict[str, set[tuple[str, str]]] = {}
        self._ids: Iterator[int] = iter(())
        self._new: dict[tuple[str, str], UpdateRecord] = {}
        self._changed: dict[int, UpdateRecord] = {}
        self._whole: dict[str, bytes] = {}
        self._chunks: dict[str, dict[int, ChunkRecord]] = {}
        self._dropped: set[str] = set()
        self._answered: list[str] = []
        self._reported: dict[str, DeviceRecord] = {}
        self._requests: dict[tuple[str, str, str], RequestRecord] = {}
        self._events: list[EventRecord] = []

    def look_up(self, devices: Iterable[str], update_ids: Iterable[str], inits: int) -> None:
        """Read the rows of these devices and updates, and take ids for as many new rows as there are inits."""
        self._devices = self._records.devices_of(devices)
        wanted = list(update_ids)
        self._updates = self._records.updates_of(wanted)
        self._ids = iter(self._records.take_update_ids(inits))
        self._sizes = self._records.chunk_sizes_of(wanted)

    def look_up_leases(self, leases: Iterable[str]) -> None:
        """Read these leases."""
        self._leases = self._records.leases_of(leases)

    def device(self, device: str) -> DeviceRecord | None:
        return self._devices.get(device)

    def update(self, update_id: str) -> UpdateRecord | None:
        """The one verified update of this id, or else one refused at the door."""
        return self._updates.get(update_id)

    def has_init(self, update_id: str, init_sha256: str) -> bool:
        """Whether this very init has a row, be it verified or refused."""
        return (update_id, init_sha256) in self._new or self._records.has_init(update_id, init_sha256)

    def lease(self, task: str, device: str, lease: str) -> Lease | None:
        found = self._leases.get(lease)
        return found if found is not None and (found.task, found.device) == (task, device) else None

    def chunk_sizes(self, update_id: str) -> dict[int, int]:
        """Sizes in bytes by index, of an update that is not whole."""
        return self._sizes.get(update_id, {})

    def chunk_data(self, update_id: str) -> dict[int, bytes]:
        """Chunks by index, of an update that is not whole."""
        staged = {index: chunk.data for index, chunk in self._chunks.get(update_id, {}).items()}
        if update_id in self._dropped or len(staged) == len(self.chunk_sizes(update_id)):
            return staged
        return {**self._records.chunk_data(update_id), **staged}

    def unfinished_bytes(self, device: str, *, claimed: bool) -> int:
        """Chunk bytes of a device's updates that are not whole: of signed inits, or of none."""
        return self._unfinished_of(device)[claimed]

    def _unfinished_of(self, device: str) -> dict[bool, int]:
        if device not in self._unfinished:
            self._unfinished[device] = {
                claimed: self._records.unfinished_bytes(device, claimed=claimed) for claimed in (True, False)
            }
        return self._unfinished[device]

    def put_chunk(self, update_id: str, device: str, index: int, data: bytes, *, claimed: bool) -> None:
        """Keep a chunk that does not make its update whole."""
        self._unfinished_of(device)[claimed] += len(data)
        self._chunks.setdefault(update_id, {})[index] = ChunkRecord(update_id, index, device, data, self._now)
        self._sizes.setdefault(update_id, {})[index] = len(data)

    def drop_chunks(self, update_id: str, device: str) -> None:
        """Forget the chunks of a signed init."""
        sizes = self._sizes.pop(update_id, {})
        if not sizes:
            return
        self._unfinished_of(device)[True] -= sum(sizes.values())
        self._chunks.pop(update_id, None)
        self._dropped.add(update_id)

    def new_id(self) -> int:
        """Return the id of a row that is about to be added."""
        return next(self._ids)

    def add_update(self, update: UpdateRecord) -> None:
        """Keep a new row. Its chunks, if some came before, count as claimed from now on."""
        self._new[update.update_id, update.init_sha256] = update
        known = self._updates.get(update.update_id)
        if known is None or known.lease is None:
            self._updates[update.update_id] = update
        if update.lease is None:
            self._door[update.device] = self.count_refused_at_door(update.device) + 1
            return
        early = sum(self.chunk_sizes(update.update_id).values())
        if early:
            unfinished = self._unfinished_of(update.device)
            unfinished[False] -= early
            unfinished[True] += early

    def change(self, update: UpdateRecord) -> None:
        """Put a changed row in place of the one of the same id and init."""
        if self._updates.get(update.update_id, update).init_sha256 == update.init_sha256:
            self._updates[update.update_id] = update
        if (update.update_id, update.init_sha256) in self._new:
            self._new[update.update_id, update.init_sha256] = update
        else:
            self._changed[update.id] = update

    def receive(self, update: UpdateRecord, sealed: bytes) -> None:
        """An update is whole: keep its sealed bytes, and end its lease."""
        self.drop_chunks(update.update_id, update.device)
        self.change(replace(update, state="received"))
        self._whole[update.update_id] = sealed
        self.end_lease(update)

    def end_lease(self, update: UpdateRecord) -> None:
        if update.lease is not None:
            self._answered.append(update.lease)

    def count_refused_at_door(self, device: str) -> int:
        if device not in self._door:
            self._door[device] = self._records.count_refused_at_door(device)
        return self._door[device]

    def waiting_queries(self, device: str) -> set[tuple[str, str]]:
        """(kind, key) of a device's requests that are no check-in."""
        if device not in self._waiting:
            self._waiting[device] = self._records.waiting_queries(device)
        return self._waiting[device]

    def put_request(self, device: str, kind: RequestKind, key: str, body: bytes) -> None:
        """Keep a request until the pass; a later one of the same device, kind and key takes its place."""
        self._requests[device, kind, key] = RequestRecord(0, device, kind, key, body)
        if kind != "check-in":
            self.waiting_queries(device).add((kind, key))

    def replace_device(self, device: DeviceRecord) -> None:
        self._devices[device.device] = self._reported[device.device] = device

    def add_event(self, kind: str, device: str, text: str) -> None:
        self._events.append(EventRecord(self._now, kind, device, text))

    def write(self) -> None:
        """Write what the group changed. Raises `StorageFailed`; `LookupError` if a row was there that was not read."""
        records = self._records
        records.drop_chunks(self._dropped)
        sealed: dict[int, bytes] = {}
        added = list(self._new.values())
        for new in added:
            whole = self._whole.pop(new.update_id, None) if new.lease is not None else None
            if whole is not None:
                sealed[new.id] = whole
        if records.add_updates(added) != len(added):
            raise LookupError("a new update's key is taken by a row that was not there when the group was read")
        for changed in self._changed.values():
            whole = self._whole.pop(changed.update_id, None)
            if whole is not None:
                sealed[changed.id] = whole
        records.put_sealed(sealed)
        records.set_verdicts(list(self._changed.values()))
        records.put_chunks([chunk for chunks in self._chunks.values() for chunk in chunks.values()])
        records.answer_leases(self._answered)
        records.put_requests(list(self._requests.values()))
        for device in self._reported.values():
            records.replace_device(device)
        records.add_events(self._events)
