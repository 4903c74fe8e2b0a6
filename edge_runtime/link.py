"""The device's link to its broker: when to try again, what to say on coming and going, what to publish.

The rules:
- coming leaves a will that says offline, and going says it in person; both carry the connection's nonce, so that a
  late will of an older connection can be told apart;
- a lost connection is tried again after a full-jitter wait by the device's own clock;
- every publish is QoS 1 and counted; `flush` returns when the broker has taken all of them.
"""

from collections.abc import Sequence

from edge_runtime import backoff
from edge_runtime.identity import Identity
from edge_runtime.ports import Clock, Entropy, Outgoing, Received, TooLarge, Transport, Unreachable
from edge_runtime.turn_report import Notes
from wire_contract import envelope
from wire_contract.messages import DeviceReport, encode_message
from wire_contract.topics import DeviceTopic, ModelTopic, build_topic

FLUSH_S = 20.0
Versions = tuple[int, int]


class Link:
    """One agent's use of its Transport. `notes`, and `reason` (why it does not train now), are set anew each turn."""

    def __init__(
        self, transport: Transport, identity: Identity, population: str, runtime: str, clock: Clock, entropy: Entropy
    ) -> None:
        self._transport = transport
        self._identity = identity
        self._population = population
        self._runtime = runtime
        self._clock = clock
        self._entropy = entropy
        self._attempts = 0
        self._not_before = 0.0
        self._nonce = ""
        self._reported: Versions | None = None
        self.notes = Notes()
        self.reason = ""

    @property
    def connected(self) -> bool:
        """Whether the session with the broker stands."""
        return self._transport.connected

    def keep(self, wanted: bool, versions: Versions) -> None:
        """Connect or leave as `wanted`. Raises `Unreachable`."""
        if self.connected and not wanted:
            self.leave(versions)
        elif wanted and not self.connected and self._clock.now() >= self._not_before:
            self._nonce = self._entropy(16).hex()
            self._reported = None
            self._transport.connect(
                Outgoing(self._state_topic(), self._device_report(versions, online=False), retain=True),
                self._subscriptions(),
            )
            self._attempts = 0

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
        self._transport.drop()
        self._not_before = self._clock.now() + backoff.wait(self._attempts, draw)
        self._attempts += 1
        self.notes.refused.append("unreachable")

    def leave(self, versions: Versions) -> None:
        """Say goodbye and disconnect; never raises."""
        if self.connected:
            try:
                self.publish(self._state_topic(), self._device_report(versions, online=False), retain=True)
                self.flush()
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
        """Queue a publish. Raises `TooLarge`."""
        self._transport.publish(Outgoing(topic, payload, retain))
        self.notes.bytes_up += len(payload)

    def request(self, body: bytes) -> None:
        """Sign and publish a check-in, status query or model request. Raises `Unreachable`."""
        topic = build_topic(DeviceTopic(self._identity.device, "req"))
        self.publish(topic, envelope.sign(self._identity.key, "request", body))
        self.flush()

    def flush(self) -> None:
        """Return when the broker has taken everything. Raises `Unreachable`."""
        if self.connected:
            self._transport.flush(FLUSH_S)

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
