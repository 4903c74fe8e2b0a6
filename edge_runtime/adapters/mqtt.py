"""The Transport port over paho-mqtt 2.2, MQTT 5.

The rules, each with its measurement in the design's mqtt.md:
- no thread: paho's own loop functions are called by our methods; poll(2), not select(2), waits;
- a window of 4 publishes: paho never holds more, because after a reconnect it would send them all at once; each
  connection is a fresh paho client, so nothing of an old one is sent again behind our back;
- manual ack: a message is acknowledged after the agent has dealt with it; an ack for an older connection is dropped,
  because its packet id may by now mean another message;
- the broker's limits in the CONNACK (maximum packet size, receive maximum) are obeyed here: paho does not look at them,
  and a packet over the limit would be sent, refused and sent again for ever;
- reconnecting is the agent's business (full jitter by its own clock), not paho's;
- a persistent session of two hours, keepalive 60 s, so that a chunk never starves a ping.
"""

import select
import time
from collections import deque
from collections.abc import Sequence
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_runtime.ports import Outgoing, Received, TooLarge, Unreachable

WINDOW = 4
KEEPALIVE_S = 60
SESSION_EXPIRY_S = 7200
CONNECT_TIMEOUT_S = 10.0
MAX_PACKET_BYTES = 256 * 1024
# Fixed header, topic length, packet id and property length of a PUBLISH, rounded up.
PACKET_OVERHEAD_BYTES = 16


class MqttTransport:
    """One device's session with the broker at `url` (mqtt://HOST:PORT), client id `client_id`."""

    def __init__(self, url: str, client_id: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme != "mqtt" or not parts.hostname:
            raise Unreachable(f"a broker's address is mqtt://HOST:PORT, got {url[:200]!r}")
        self._host, self._port = parts.hostname, parts.port or 1883
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._client: paho.Client | None = None
        self._poll = select.poll()
        self._epoch = 0
        self._ready = False
        self._granted = False
        self._lost = ""
        self._max_packet_bytes = 1 << 28
        self._window = WINDOW
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: set[int] = set()
        self._refused: list[str] = []
        self._inbox: list[Received] = []

    @property
    def connected(self) -> bool:
        """Whether the session stands, as far as is known."""
        return self._client is not None and self._ready and not self._lost

    def connect(self, will: Outgoing, subscriptions: Sequence[str]) -> None:
        """Open the session and subscribe. Raises `Unreachable`."""
        self.drop()
        self._epoch += 1
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=paho.MQTTv5, manual_ack=True,
            reconnect_on_failure=False,
        )  # fmt: skip
        client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        client.connect_timeout = self._timeout_s
        # Small packets go both ways: Nagle's algorithm against delayed acknowledgements costs 40 ms for each exchange.
        client.on_socket_open = _send_at_once
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        self._client = client
        try:
            client.connect(self._host, self._port, KEEPALIVE_S, clean_start=False, properties=properties)
            socket = client.socket()
            if socket is None:
                raise Unreachable(f"{self._where} closed the connection at once")
            self._poll.register(socket, select.POLLIN)
            self._pump_until(lambda: self._ready, "answers no CONNECT")
            if subscriptions:
                client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in subscriptions])
                self._pump_until(lambda: self._granted, "answers no SUBSCRIBE")
        except (OSError, ValueError) as e:
            self.drop()
            raise Unreachable(f"{self._where} does not answer: {e}") from e
        except Unreachable:
            self.drop()
            raise

    @property
    def _where(self) -> str:
        return f"the broker mqtt://{self._host}:{self._port}"

    def publish(self, message: Outgoing) -> None:
        """Queue a message. Raises `TooLarge` for a packet over the broker's limit."""
        size = len(message.payload) + len(message.topic) + PACKET_OVERHEAD_BYTES
        if size > self._max_packet_bytes:
            raise TooLarge(f"{self._where} takes packets of {self._max_packet_bytes} bytes, got {size}")
        self._waiting.append(message)

    def flush(self, timeout_s: float) -> None:
        """Return when the broker has acknowledged everything queued. Raises `Unreachable`."""
        deadline = time.monotonic() + timeout_s
        while self._waiting or self._in_flight:
            left = deadline - time.monotonic()
            if left <= 0:
                self.drop()
                raise Unreachable(f"{self._where} did not acknowledge within {timeout_s:.0f} s")
            self._pump(left)
        if self._refused:
            reasons, self._refused = ", ".join(self._refused), []
            raise Unreachable(f"{self._where} refuses a publish: {reasons}")

    def receive(self, timeout_s: float) -> list[Received]:
        """Return what has come; wait at most `timeout_s` for a first message. Raises `Unreachable`."""
        deadline = time.monotonic() + timeout_s
        self._pump(0.0)
        while not self._inbox and (left := deadline - time.monotonic()) > 0:
            self._pump(left)
        came, self._inbox = self._inbox, []
        return came

    def ack(self, received: Received) -> None:
        """Acknowledge a message of this connection; one of an older connection is silently left to redelivery."""
        epoch, mid, qos = received.handle if isinstance(received.handle, tuple) else (0, 0, 0)
        if self._client is not None and epoch == self._epoch and self.connected:
            self._client.ack(mid, qos)

    def tend(self) -> None:
        """Answer and send pings during long work; a lost connection shows itself at the next call that matters."""
        if self.connected:
            try:
                self._pump(0.0)
            except Unreachable as e:
                self._lost = str(e)

    def disconnect(self) -> None:
        """Leave with a DISCONNECT, so that the will stays unpublished."""
        if self._client is not None and self.connected:
            self._client.disconnect()
        self.drop()

    def drop(self) -> None:
        """Close the socket without a word, as a killed process would, and forget what waited."""
        client, self._client = self._client, None
        if client is not None:
            socket = client.socket()
            if socket is not None:
                self._poll = select.poll()
                socket.close()
        self._ready = self._granted = False
        self._lost = ""
        self._waiting.clear()
        self._in_flight.clear()
        self._refused.clear()
        self._inbox.clear()
        self._max_packet_bytes, self._window = 1 << 28, WINDOW

    def _pump_until(self, done: "Any", complaint: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unreachable(f"{self._where} {complaint} within {self._timeout_s:.0f} s")
            self._pump(left)

    def _pump(self, timeout_s: float) -> None:
        """Fill the window, wait for the socket at most `timeout_s`, read and write once. Raises `Unreachable`."""
        client = self._client
        if client is None:
            raise Unreachable(f"{self._where} is not connected")
        self._fill_window(client)
        socket = client.socket()
        if socket is not None and not self._lost:
            wants = select.POLLIN | (select.POLLOUT if client.want_write() else 0)
            self._poll.modify(socket, wants)
            for _, ready in self._poll.poll(timeout_s * 1000):
                if ready & ~select.POLLOUT:
                    client.loop_read()
                if ready & select.POLLOUT:
                    client.loop_write()
            client.loop_misc()
        if client.socket() is None or self._lost:
            reason = self._lost or "the connection is closed"
            self.drop()
            raise Unreachable(f"{self._where} is gone: {reason}")

    def _fill_window(self, client: paho.Client) -> None:
        while self._waiting and self._ready and len(self._in_flight) < self._window:
            message = self._waiting.popleft()
            info = client.publish(message.topic, message.payload, qos=1, retain=message.retain)
            self._in_flight.add(info.mid)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._lost = f"CONNECT refused: {reason}"
            return
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", self._max_packet_bytes)
        self._window = max(1, min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)))
        self._ready = True

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._lost = f"SUBSCRIBE refused: {', '.join(refused)}"
        self._granted = True

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if client is self._client:
            self._lost = self._lost or str(reason)

    def _on_publish(self, client: Any, data: Any, mid: int, reason: Any, properties: Any) -> None:
        self._in_flight.discard(mid)
        if reason.is_failure:
            self._refused.append(str(reason))

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        handle = (self._epoch, message.mid, message.qos)
        self._inbox.append(Received(message.topic, bytes(message.payload), handle))


def _send_at_once(client: Any, data: Any, opened: Any) -> None:
    opened.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
