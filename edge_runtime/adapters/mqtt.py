"""The Transport port: one device's session with its broker, over one connection after another.

The rules, each with its measurement in the design's mqtt.md (docs/transport.md says what each one is worth):
- the broker's addresses are tried in order, the one that worked before first (`broker_address`); a broker that says no
  is not asked again at another address;
- a window of two to four publishes (`send_window`): paho never holds more, because after a reconnect it would send them
  all at once; `publish` waits for room, so that nothing else is queued in memory;
- what the broker has acknowledged is remembered by topic until it was asked for, also when the connection breaks;
- a wait ends when nothing at all is acknowledged for a while, not when the whole takes long: slow is not dead;
- an ack for an older connection is dropped, because its packet id may by now mean another message;
- reconnecting is the agent's business (full jitter by its own clock), not paho's;
- a persistent session of two hours, keepalive 60 s; every connection subscribes, for the broker may have lost the
  session, and retained messages come with a subscription;
- paho is imported by the first connection: an idle agent is small.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge_runtime.broker_address import Route, parse_addresses
from edge_runtime.ports import Outgoing, Received, Unreachable
from edge_runtime.send_window import KEEPALIVE_S, SendWindow

if TYPE_CHECKING:
    from edge_runtime.adapters.mqtt_connection import Connection

CONNECT_TIMEOUT_S = 10.0
STALL_S = 60.0
NO_LIMIT = 1 << 28


class MqttTransport:
    """One device's session with the broker at `url` (see `broker_address`), client id `client_id`.

    `ca_file` names the certificate authority that TLS connections trust instead of the system's; `keepalive_s` is how
    often something is heard at least; `clock` gives elapsed seconds. Raises `Unreachable` if `url` names no broker.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        ca_file: str = "",
        timeout_s: float = CONNECT_TIMEOUT_S,
        keepalive_s: int = KEEPALIVE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client_id = client_id
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._keepalive_s = keepalive_s
        self._clock = clock
        self._route = Route(parse_addresses(url), since=clock())
        self._connection: Connection | None = None
        self._lost = ""
        self._limit_bytes = NO_LIMIT
        self._window = SendWindow()
        self._in_flight: dict[int, tuple[str, float]] = {}
        self._taken: list[str] = []
        self._refused: list[str] = []

    @property
    def connected(self) -> bool:
        """Whether the session stands, as far as is known."""
        return self._connection is not None and not self._lost

    @property
    def address(self) -> str:
        """Where the session is, or was last: one of the addresses."""
        return str(self._route.addresses[self._route.place])

    @property
    def limit_bytes(self) -> int:
        """How many bytes topic and payload of a publish may have together, by the last broker's CONNACK."""
        return self._limit_bytes

    def connect(self, will: Outgoing, subscriptions: Sequence[str]) -> None:
        """Open the session and subscribe. Raises `Unreachable`."""
        from edge_runtime.adapters.mqtt_connection import Connection, Refused

        self.drop()
        failures = []
        for place in self._route.order(self._clock()):
            address = self._route.addresses[place]
            connection = Connection(
                address, self._client_id, ca_file=self._ca_file, keepalive_s=self._keepalive_s, on_taken=self._on_taken
            )
            try:
                connection.open(will, subscriptions, self._timeout_s, self._clock)
            except Refused:
                raise
            except Unreachable as e:
                failures.append(str(e))
                continue
            self._connection = connection
            self._route = self._route.worked(place, self._clock())
            self._limit_bytes = connection.limit_bytes
            self._window = SendWindow().limited(connection.limits.receive_maximum)
            return
        raise Unreachable("; ".join(failures))

    def publish(self, message: Outgoing) -> None:
        """Hand a message over; wait for room in the window. Raises `TooLarge`, `Unreachable`."""
        connection = self._present()
        self._wait(lambda: len(self._in_flight) < self._window.size, STALL_S)
        mid = connection.publish(message)
        self._in_flight[mid] = (message.topic, self._clock())

    def flush(self, timeout_s: float) -> None:
        """Return when the broker has acknowledged everything.

        Raises `Unreachable` after `timeout_s` without any acknowledgement, or when the broker refused a publish.
        """
        self._wait(lambda: not self._in_flight, timeout_s)
        if self._refused:
            reasons, self._refused = ", ".join(self._refused), []
            raise Unreachable(f"the broker {self.address} refuses a publish: {reasons}")

    def acknowledged(self) -> tuple[str, ...]:
        """Return the topics of publishes that the broker has taken since the last call, also after `Unreachable`."""
        taken, self._taken = tuple(self._taken), []
        return taken

    def receive(self, timeout_s: float) -> list[Received]:
        """Return what has come; wait at most `timeout_s` for a first message. Raises `Unreachable`."""
        deadline = self._clock() + timeout_s
        self._pump(0.0)
        connection = self._present()
        while not connection.arrived and (left := deadline - self._clock()) > 0:
            self._pump(left)
        came, connection.arrived = connection.arrived, []
        return [Received(arrived.topic, arrived.payload, (connection, arrived)) for arrived in came]

    def ack(self, received: Received) -> None:
        """Acknowledge a message of this connection; one of an older connection is silently left to redelivery."""
        connection, handle = self._connection, received.handle
        if connection is not None and self.connected and isinstance(handle, tuple) and handle[0] is connection:
            connection.ack(handle[1])

    def tend(self) -> None:
        """Answer and send pings during long work; a lost connection shows itself at the next call that matters."""
        if self.connected:
            try:
                self._pump(0.0)
            except Unreachable as e:
                self._lost = str(e)

    def disconnect(self) -> None:
        """Leave with a DISCONNECT, so that the will stays unpublished."""
        if self._connection is not None and self.connected:
            self._connection.say_goodbye()
        self.drop()

    def drop(self) -> None:
        """Close the socket without a word, as a killed process would, and forget what waited."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._lost = ""
        self._in_flight.clear()
        self._refused.clear()

    def _present(self) -> "Connection":
        if self._connection is None:
            raise Unreachable(f"the broker {self.address} is not connected")
        return self._connection

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Pump until `done`. Raises `Unreachable` after `timeout_s` without an acknowledgement."""
        since, waiting = self._clock(), len(self._in_flight)
        while not done():
            if len(self._in_flight) != waiting:
                since, waiting = self._clock(), len(self._in_flight)
            left = since + timeout_s - self._clock()
            if left <= 0:
                self.drop()
                raise Unreachable(f"the broker {self.address} acknowledged nothing for {timeout_s:.0f} s")
            self._pump(left)

    def _pump(self, timeout_s: float) -> None:
        connection = self._present()
        try:
            if self._lost:
                raise Unreachable(self._lost)
            connection.pump(timeout_s)
        except Unreachable:
            self.drop()
            raise

    def _on_taken(self, mid: int, refusal: str) -> None:
        topic, sent_at = self._in_flight.pop(mid, ("", 0.0))
        if refusal:
            self._refused.append(f"{topic}: {refusal}")
        elif topic:
            self._taken.append(topic)
            self._window = self._window.acknowledged(self._clock() - sent_at)
