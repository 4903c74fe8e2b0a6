"""The device's link to its broker: when to connect, what to say on coming and going, how to send an update.

The rules:
- coming leaves a will that says offline, and going says it in person; both carry the connection's nonce, so that a
  late will of an older connection can be told apart;
- a lost connection is tried again after a full-jitter wait by the device's own clock; the wait outlives the process,
  and grows until a connection was of use: one that opens and breaks at once is no success;
- when the night opens, each device waits for its own moment in the first minutes (`backoff.night_start`);
- an update goes out piece by piece, and between two pieces it is asked whether the link may still be used; what the
  broker has acknowledged is remembered until another update is sent, so that a broken link costs what was on its way;
- the rate that an upload had decides how large the chunks of the next one are (`send_window.chunk_bytes`);
- every publish is QoS 1 and counted; `flush` returns when the broker has taken all of them.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from edge_runtime import backoff, send_window
from edge_runtime.identity import Identity
from edge_runtime.ports import (
    Clock,
    Entropy,
    Forgotten,
    Outgoing,
    Received,
    StorageFailed,
    StorageFull,
    TooLarge,
    Transport,
    Unreachable,
)
from edge_runtime.turn_report import Notes
from wire_contract import envelope
from wire_contract.messages import DeviceReport, encode_message
from wire_contract.topics import DeviceTopic, ModelTopic, build_topic

STALL_S = 60.0
GOODBYE_S = 10.0
LIMIT_BYTES = 96 * 1024
Versions = tuple[int, int]
Pieces = Sequence[tuple[str, bytes]]


class LinkMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives the process: failed attempts, until when to wait (Unix seconds), the link's rate (bytes a second, 0
    unknown) and the broker's largest topic and payload."""

    attempts: Annotated[int, msgspec.Meta(ge=0)] = 0
    not_before: float = 0.0
    rate: Annotated[float, msgspec.Meta(ge=0.0, le=1e12)] = 0.0
    limit_bytes: Annotated[int, msgspec.Meta(ge=0)] = LIMIT_BYTES


def encode_memory(memory: LinkMemory) -> bytes:
    """Return the memory's bytes; inverse of `read_memory`."""
    return msgspec.msgpack.encode(memory)


def read_memory(data: bytes | None) -> LinkMemory:
    """Return the memory on the disk; a new one if there is none, or none that can be read: nothing hangs on it."""
    try:
        return LinkMemory() if data is None else msgspec.msgpack.decode(data, type=LinkMemory)
    except msgspec.DecodeError:
        return LinkMemory()


class Link:
    """One agent's use of its Transport. `notes`, and `reason` (why it does not train now), are set anew each turn.

    `remember` keeps the memory (it may raise a storage error, which becomes a note); `spread_s`: in how many seconds
    after the opening of the night the fleet comes (0: at once).
    """

    def __init__(
        self,
        transport: Transport,
        identity: Identity,
        population: str,
        runtime: str,
        clock: Clock,
        entropy: Entropy,
        *,
        memory: LinkMemory = LinkMemory(),  # noqa: B008 - frozen
        remember: Callable[[LinkMemory], None] = lambda memory: None,
        spread_s: float = 0.0,
    ) -> None:
        self._transport = transport
        self._identity = identity
        self._population = population
        self._runtime = runtime
        self._clock = clock
        self._entropy = entropy
        self._memory = memory
        self._remember = remember
        self._spread_s = spread_s
        self._nonce = ""
        self._reported: Versions | None = None
        self._upload = ""
        self._taken: set[str] = set()
        self.notes = Notes()
        self.reason = ""

    @property
    def connected(self) -> bool:
        """Whether the session with the broker stands."""
        return self._transport.connected

    @property
    def limit_bytes(self) -> int:
        """How many bytes topic and payload of a publish may have, by this broker or the last one."""
        return self._transport.limit_bytes if self.connected else self._memory.limit_bytes

    def chunk_bytes(self, wanted: int) -> int:
        """Return how large the chunks of an update that is sealed now should be: at most `wanted` bytes."""
        return send_window.chunk_bytes(wanted, self._memory.rate, send_window.KEEPALIVE_S, self.limit_bytes)

    def keep(self, wanted: bool, versions: Versions, opened_at: float | None = None) -> None:
        """Connect or leave as `wanted`. `opened_at`: when the night's window opened, None if it has none.

        Raises `Unreachable`.
        """
        if self.connected and not wanted:
            self.leave(versions)
        elif wanted and not self.connected and self._may_connect(opened_at):
            self._nonce = self._entropy(16).hex()
            self._reported = None
            self._transport.connect(
                Outgoing(self._state_topic(), self._device_report(versions, online=False), retain=True),
                self._subscriptions(),
            )

    def _may_connect(self, opened_at: float | None) -> bool:
        now, waits = self._clock.now(), self._memory.not_before
        # A wait that is longer than any comes from a clock that was wrong then.
        if now < waits <= now + backoff.LONGEST_S:
            return False
        if opened_at is None or not self._spread_s:
            return True
        return now >= backoff.night_start(self._identity.device, opened_at, self._spread_s)

    def _subscriptions(self) -> Sequence[str]:
        device, population = self._identity.device, self._population
        return [
            build_topic(topic)
            for topic in (
                DeviceTopic(device, "down/task"),
                DeviceTopic(device, "down/rcpt"),
                DeviceTopic(device, "down/model"),
                ModelTopic(population, "training"),
                ModelTopic(population, "refresh"),
            )
        ]

    def lose(self, draw: float) -> None:
        """Note that the connection broke, and wait before the next one."""
        self._note_taken()
        self._transport.drop()
        not_before = self._clock.now() + backoff.wait(self._memory.attempts, draw)
        self._keep_memory(attempts=self._memory.attempts + 1, not_before=not_before)
        self.notes.refused.append("unreachable")

    def leave(self, versions: Versions) -> None:
        """Say goodbye and disconnect; never raises."""
        if self.connected:
            try:
                self.publish(self._state_topic(), self._device_report(versions, online=False), retain=True)
                self._transport.flush(GOODBYE_S)
            except (Unreachable, TooLarge):
                self._transport.drop()
        self._transport.disconnect()

    def drop(self) -> None:
        """Let go without a word."""
        self._transport.drop()

    def tend(self) -> None:
        """Keep the session alive during long work."""
        self._transport.tend()

    def receive(self, timeout_s: float) -> list[Received]:
        """Return what came. Raises `Unreachable`."""
        return self._transport.receive(timeout_s) if self.connected else []

    def ack(self, received: Received) -> None:
        """Acknowledge a message that was dealt with."""
        self._transport.ack(received)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish, waiting for room in the window. Raises `TooLarge`, `Unreachable`."""
        self._transport.publish(Outgoing(topic, payload, retain))
        self.notes.bytes_up += len(payload)

    def send(self, pieces: Pieces, may_go_on: Callable[[], bool]) -> bool:
        """Publish pieces of one update; return whether the broker has taken all of them.

        False: `may_go_on` said no between two pieces. Raises `TooLarge`, with nothing of these pieces sent, and
        `Unreachable`; `lacking` then knows what got through.
        """
        for topic, payload in pieces:
            if len(topic) + len(payload) > self.limit_bytes:
                raise TooLarge(f"this broker takes {self.limit_bytes} bytes, got {len(topic) + len(payload)}")
        if pieces:
            self._begin_upload(pieces[0][0])
        self._taken.difference_update(topic for topic, _ in pieces)
        began, sent_bytes, whole = self._clock.elapsed(), 0, True
        for topic, payload in pieces:
            if not may_go_on():
                whole = False
                break
            self.publish(topic, payload)
            sent_bytes += len(payload)
        self.flush()
        self._learn(sent_bytes, self._clock.elapsed() - began)
        return whole

    def lacking(self, pieces: Pieces) -> Pieces:
        """Return an update's pieces that no broker has acknowledged; none if its sending was not begun here."""
        if not pieces or not self._upload or not pieces[0][0].startswith(self._upload):
            return []
        return [(topic, payload) for topic, payload in pieces if topic not in self._taken]

    def _begin_upload(self, topic: str) -> None:
        update = topic[: topic.rindex("/") + 1]
        if update != self._upload:
            self._upload, self._taken = update, set()

    def _note_taken(self) -> None:
        taken = self._transport.acknowledged()
        self._taken.update(topic for topic in taken if self._upload and topic.startswith(self._upload))
        if taken and self._memory.attempts:
            # The connection was of use.
            self._keep_memory(attempts=0, not_before=0.0)

    def _learn(self, sent_bytes: int, seconds: float) -> None:
        before = self._memory
        rate = send_window.measured_rate(before.rate, sent_bytes, seconds)
        limit = min(LIMIT_BYTES, self.limit_bytes)
        if limit != before.limit_bytes or not 0.75 * before.rate <= rate <= 1.25 * before.rate:
            self._keep_memory(rate=rate, limit_bytes=limit)

    def _keep_memory(self, **changes: float) -> None:
        self._memory = msgspec.structs.replace(self._memory, **changes)
        try:
            self._remember(self._memory)
        except (StorageFull, StorageFailed, Forgotten) as e:
            # It still holds in memory; a link is not given up because the disk is full.
            self.notes.refused.append(_NAMES[type(e)])

    def request(self, body: bytes) -> None:
        """Sign and publish a check-in, status query or model request. Raises `Unreachable`."""
        topic = build_topic(DeviceTopic(self._identity.device, "req"))
        self.publish(topic, envelope.sign(self._identity.key, "request", body))
        self.flush()

    def flush(self) -> None:
        """Return when the broker has taken everything. Raises `Unreachable`."""
        if self.connected:
            self._transport.flush(STALL_S)
            self._note_taken()

    def report(self, versions: Versions) -> None:
        """Publish the retained device report when the connection is new or (training, refresh) versions changed."""
        if self.connected and versions != self._reported:
            self.publish(self._state_topic(), self._device_report(versions, online=True), retain=True)
            self._reported = versions

    def _state_topic(self) -> str:
        return build_topic(DeviceTopic(self._identity.device, "state"))

    def _device_report(self, versions: Versions, *, online: bool) -> bytes:
        report = DeviceReport(
            device=self._identity.device,
            nonce=self._nonce,
            online=online,
            training_version=versions[0],
            refresh_version=versions[1],
            runtime=self._runtime,
            reason=self.reason,
            sent_at=int(self._clock.now()),
        )
        return envelope.sign(self._identity.key, "report", encode_message(report))


_NAMES: dict[type[Exception], str] = {
    StorageFull: "storage_full",
    StorageFailed: "storage_failed",
    Forgotten: "forgotten",
}
