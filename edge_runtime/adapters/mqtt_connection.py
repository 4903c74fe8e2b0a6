"""One connection to a broker over paho-mqtt 2.2, MQTT 5: from CONNECT until the socket is closed, and never again.

The rules:
- no thread: paho's own loop functions are called by `pump`; poll(2), not select(2), waits, so that the number of open
  files does not matter; what TLS has read ahead is taken before waiting;
- each connection is a fresh paho client, so nothing of an older one is sent again behind our back, and an
  acknowledgement belongs to the connection that brought the message;
- manual ack: a message is acknowledged after the agent has dealt with it;
- opening takes its time limit and not longer, whatever a tarpit drips into a handshake;
- the limits that the CONNACK states are kept for every packet: paho does not look at them, and a packet over the limit
  would be sent, refused and sent again for ever.
"""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_runtime.adapters.tls import client_context
from edge_runtime.broker_address import BrokerAddress
from edge_runtime.ports import Outgoing, TooLarge, Unreachable

SESSION_EXPIRY_S: Final = 7200
OUR_MAX_PACKET_BYTES: Final = 128 * 1024
OUR_RECEIVE_MAXIMUM: Final = 16
# Type, remaining length, topic length, packet id, property length of a PUBLISH at QoS 1: 1 + 4 + 2 + 2 + 1 at most.
PUBLISH_OVERHEAD_BYTES: Final = 10
SUBSCRIBE_OVERHEAD_BYTES: Final = 8
NO_LIMIT: Final = 1 << 28
# How long a wait may be before paho looks whether a ping is due.
LONGEST_POLL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker takes, by its CONNACK."""

    packet_bytes: int = NO_LIMIT
    receive_maximum: int = 65_535
    retain: bool = True


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message that came, with paho's packet id."""

    topic: str
    payload: bytes
    mid: int
    qos: int


class Refused(Unreachable):
    """The broker itself said no: another address of the same broker would not help."""


class Connection:
    """Make it, `open` it, `pump` it; `close` it for good. `on_taken(mid, refusal)` is called at each PUBACK."""

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        ca_file: str,
        keepalive_s: int,
        on_taken: Callable[[int, str], None],
    ) -> None:
        self._where = f"the broker {address}"
        self._address = address
        self._keepalive_s = keepalive_s
        self._on_taken = on_taken
        self._poll = select.poll()
        self._connected = False
        self._granted = 0
        self._lost = ""
        self.limits = Limits()
        self.session_present = False
        self.arrived: list[Arrived] = []
        client = _PatientClient(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, manual_ack=True,
            reconnect_on_failure=False, transport="websockets" if address.websocket else "tcp",
        )  # fmt: skip
        if address.websocket:
            client.ws_set_options(path=address.path)
        if address.tls:
            client.tls_set_context(client_context(ca_file))
        # Small packets go both ways: Nagle's algorithm against delayed acknowledgements costs 40 ms for each exchange.
        client.on_socket_open = _send_at_once
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        self._client = client

    @property
    def limit_bytes(self) -> int:
        """How many bytes topic and payload of a publish may have together."""
        return self.limits.packet_bytes - PUBLISH_OVERHEAD_BYTES

    def open(self, will: Outgoing, subscriptions: Sequence[str], timeout_s: float, clock: Callable[[], float]) -> None:
        """Connect and subscribe, each within `timeout_s` by `clock`. Raises `Unreachable`, `Refused`; closed then."""
        client, address = self._client, self._address
        client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        client.connect_timeout = timeout_s
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = OUR_MAX_PACKET_BYTES
        properties.ReceiveMaximum = OUR_RECEIVE_MAXIMUM
        try:
            client.connect(address.host, address.port, self._keepalive_s, clean_start=False, properties=properties)
            opened = client.socket()
            if opened is None:
                raise Unreachable(f"{self._where} closed the connection at once")
            self._poll.register(opened.fileno(), select.POLLIN)
            self._pump_until(lambda: self._connected, "CONNECT", timeout_s, clock)
            wanted = self._subscribe(subscriptions)
            self._pump_until(lambda: self._granted >= wanted, "SUBSCRIBE", timeout_s, clock)
        except (OSError, ValueError) as e:
            self.close()
            raise Unreachable(f"{self._where} does not answer: {e}") from e
        except Unreachable:
            self.close()
            raise

    def _subscribe(self, topics: Sequence[str]) -> int:
        """Send the subscriptions in as few packets as the broker's limit allows; return how many."""
        packets: list[list[str]] = []
        room = 0
        for topic in topics:
            size = len(topic.encode()) + 3
            if size + SUBSCRIBE_OVERHEAD_BYTES > self.limits.packet_bytes:
                raise Refused(f"{self._where} takes packets of {self.limits.packet_bytes} bytes: no subscription fits")
            if size > room:
                packets.append([])
                room = self.limits.packet_bytes - SUBSCRIBE_OVERHEAD_BYTES
            packets[-1].append(topic)
            room -= size
        for packet in packets:
            self._client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in packet])
        return len(packets)

    def publish(self, message: Outgoing) -> int:
        """Hand a message to the socket; return its packet id. Raises `TooLarge` with nothing sent."""
        size = len(message.payload) + len(message.topic.encode())
        if size > self.limit_bytes:
            raise TooLarge(
                f"{self._where} takes packets of {self.limits.packet_bytes} bytes, got {size + PUBLISH_OVERHEAD_BYTES}"
            )
        retain = message.retain and self.limits.retain
        return self._client.publish(message.topic, message.payload, qos=1, retain=retain).mid

    def ack(self, arrived: Arrived) -> None:
        """Acknowledge a message that this connection brought."""
        self._client.ack(arrived.mid, arrived.qos)

    def pump(self, timeout_s: float) -> None:
        """Wait for the socket at most `timeout_s`, read and write once. Raises `Unreachable`; closed then."""
        client = self._client
        opened = client.socket()
        if opened is not None and not self._lost:
            ahead = getattr(opened, "pending", None)
            if ahead is not None and ahead() > 0:
                # poll(2) does not know of it.
                self._read()
                timeout_s = 0.0
            opened = client.socket()
        if opened is not None and not self._lost:
            wants = select.POLLIN | (select.POLLOUT if client.want_write() else 0)
            self._poll.modify(opened.fileno(), wants)
            for _, ready in self._poll.poll(1000 * min(timeout_s, LONGEST_POLL_S)):
                if ready & ~select.POLLOUT:
                    self._read()
                if ready & select.POLLOUT:
                    client.loop_write()
            client.loop_misc()
        if client.socket() is None or self._lost:
            reason = self._lost or "the connection is closed"
            self.close()
            raise Unreachable(f"{self._where} is gone: {reason}")

    def _read(self) -> None:
        try:
            self._client.loop_read()
        except Exception as e:  # noqa: BLE001 - paho reads hostile bytes, and says nowhere what it may raise
            self._lost = f"it sent what is no MQTT: {e!r}"[:200]

    def _pump_until(self, done: Callable[[], bool], what: str, timeout_s: float, clock: Callable[[], float]) -> None:
        deadline = clock() + timeout_s
        while not done():
            left = deadline - clock()
            if left <= 0:
                raise Unreachable(f"{self._where} answers no {what} within {timeout_s:.0f} s")
            try:
                self.pump(left)
            except Refused:
                raise
            except Unreachable as e:
                if self._lost.startswith(_REFUSED):
                    raise Refused(str(e)) from e
                raise

    def say_goodbye(self) -> None:
        """Send a DISCONNECT, so that the will stays unpublished; then close."""
        if self._connected and not self._lost:
            self._client.disconnect()
        self.close()

    def close(self) -> None:
        """Close the socket without another word. Safe to call twice."""
        opened = self._client.socket()
        if opened is not None:
            opened.close()
        self._connected = False

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._lost = f"{_REFUSED} CONNECT: {reason}"
            return
        if getattr(properties, "MaximumQoS", 1) < 1:
            self._lost = f"{_REFUSED} QoS 1, and updates need it"
            return
        self.limits = Limits(
            packet_bytes=getattr(properties, "MaximumPacketSize", NO_LIMIT),
            receive_maximum=getattr(properties, "ReceiveMaximum", 65_535),
            retain=bool(getattr(properties, "RetainAvailable", 1)),
        )
        self.session_present = bool(flags.session_present)
        self._connected = True

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._lost = f"{_REFUSED} SUBSCRIBE: {', '.join(refused)}"
        self._granted += 1

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._lost = self._lost or str(reason)

    def _on_publish(self, client: Any, data: Any, mid: int, reason: Any, properties: Any) -> None:
        self._on_taken(mid, str(reason) if reason.is_failure else "")

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        self.arrived.append(Arrived(message.topic, bytes(message.payload), message.mid, message.qos))


_REFUSED: Final = "it refuses"


def _send_at_once(client: Any, data: Any, opened: Any) -> None:
    # A WebSocket's wrapper has no options of its own; its socket was opened by paho just before.
    getattr(opened, "_socket", opened).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _PatientClient(paho.Client):
    """paho bounds each read of a TLS or WebSocket handshake by `connect_timeout`; this bounds the whole handshake.

    A second handle to the connection is shut down when the time is up, which ends whatever read is under way.
    """

    def _create_socket(self) -> Any:
        self._watch: tuple[threading.Timer, socket.socket] | None = None
        try:
            return super()._create_socket()
        finally:
            if self._watch is not None:
                timer, twin = self._watch
                timer.cancel()
                twin.close()

    def _create_socket_connection(self) -> socket.socket:
        opened = super()._create_socket_connection()
        if self._ssl or self._transport == "websockets":
            twin = opened.dup()
            timer = threading.Timer(self.connect_timeout, _shut, (twin,))
            timer.daemon = True
            timer.start()
            self._watch = timer, twin
        return opened


def _shut(twin: socket.socket) -> None:
    # It may have been closed in this very moment.
    with contextlib.suppress(OSError):
        twin.shutdown(socket.SHUT_RDWR)
