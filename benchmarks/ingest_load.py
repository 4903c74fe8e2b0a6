"""Signed updates for `benchmarks.ingest`: real keys, real inits and chunks, sealed bytes of a real update's size.

The bytes inside are random: what an update says is not looked at before its verdict.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_aggregator.leases import Lease
from cloud_aggregator.ports import Message
from cloud_aggregator.records import DeviceRecord, Records, UpdateRecord
from wire_contract import envelope
from wire_contract.messages import Chunk, UpdateHeader, UpdateInit, encode_message, lease_id
from wire_contract.topics import UpdateTopic, build_topic

NOW = 1_800_000_000
TASK = "ab" * 8
CHUNK_BYTES = 32_768


@dataclass(frozen=True, slots=True)
class Update:
    """One update: its number and id, its messages (the init and one chunk), and the row that they become."""

    number: int
    update_id: str
    messages: tuple[Message, Message]
    row: UpdateRecord
    sealed: bytes


class Fleet:
    """Devices with keys, and a stream of updates, each under a lease of its own; `seed` fixes all bytes."""

    def __init__(self, devices: int, size_bytes: int, seed: int) -> None:
        self._size = size_bytes
        self._seed = seed
        names = [hashlib.sha256(b"ingest %d %d" % (seed, number)).digest() for number in range(devices)]
        self._keys = [Ed25519PrivateKey.from_private_bytes(name) for name in names]
        self.publics = [envelope.public_bytes(key) for key in self._keys]
        self.devices = [envelope.key_id(public) for public in self.publics]

    def enrol(self, records: Records) -> None:
        """Store the devices."""
        for device, public in zip(self.devices, self.publics, strict=True):
            records.add_device(DeviceRecord(device, "load", public, "", NOW))

    def updates(self, start: int, count: int) -> Iterator[Update]:
        """Yield updates number `start` and following; the same numbers give the same bytes."""
        for number in range(start, start + count):
            yield self._update(number)

    def lease_of(self, number: int) -> Lease:
        """Return the lease of update `number`."""
        name = hashlib.sha256(b"lease %d %d" % (self._seed, number)).hexdigest()[:32]
        device = self.devices[number % len(self.devices)]
        return Lease(name, TASK, device, 1, "0" * 64, 1, NOW, NOW + 86_400)

    def _update(self, number: int) -> Update:
        lease = self.lease_of(number)
        update_id = lease_id(lease.device, TASK, lease.lease)
        sealed = hashlib.shake_256(b"%d %d" % (self._seed, number)).digest(self._size)
        header = encode_message(
            UpdateHeader(
                device=lease.device,
                population="load",
                task=TASK,
                lease=lease.lease,
                update_id=update_id,
                base_version=1,
                layout_fingerprint="cd" * 32,
                codec="topk4",
                examples=50,
                steps=4,
                loss_before=5.0,
                loss_after=4.5,
                finished_at=NOW,
                ephemeral_key=sealed[:32],
            )
        )
        sha256 = hashlib.sha256(sealed).hexdigest()
        init = UpdateInit(header=header, size_bytes=len(sealed), sha256=sha256, chunk_bytes=CHUNK_BYTES)
        signed = envelope.sign(self._keys[number % len(self._keys)], "update", encode_message(init))
        chunk = encode_message(Chunk(update_id=update_id, index=0, data=sealed))
        messages = (
            Message(build_topic(UpdateTopic(0, lease.device, update_id, None)), signed),
            Message(build_topic(UpdateTopic(0, lease.device, update_id, 0)), chunk),
        )
        row = UpdateRecord(
            id=0, update_id=update_id, device=lease.device, task=TASK, lease=lease.lease, header=header,
            size_bytes=len(sealed), sha256=sha256, chunk_bytes=CHUNK_BYTES,
            init_sha256=hashlib.sha256(signed).hexdigest(), finished_at=NOW, arrived_at=NOW, state="open",
            base_version=1,
        )  # fmt: skip
        return Update(number, update_id, messages, row, sealed)
