"""The aggregator's MQTT connection: paho-mqtt 2.2 over MQTT 5, with its own acknowledgement, window and reconnect.

The rules (each one answers a measured fault of brokers or of paho):
- a message is acknowledged only after `take_group` returned, that is, after its transaction was committed; a group is
  at most the messages of 64 updates, or 20 ms;
- what waits for the intake is bounded (`incoming`): while it is full the socket is not read;
- every connection is a new paho client: an acknowledgement belongs to its own connection and can't meet another message
  that has the same number on a later one; paho's burst at a reconnect does not happen, the broker keeps the session,
  and what was not acknowledged goes out again from our own queue;
- at most 16 publishes are in flight, fewer if the broker's receive maximum says so; the rest waits here, and while the
  broker is gone everything waits here;
- reconnects are ours: full jitter, 1 s doubling to 30 s;
- a publish larger than the broker's stated limit is dropped with a line on stderr: resending it would never end;
- an acknowledgement with a failure reason (no permission, over a quota) is no publication: the message goes out again
  with the next connection;
- whatever the intake raises, its thread goes on: what could not be stored is tried again, and a group that fails in any
  other way is given one by one, so that a single message cannot stop the rest.
"""

import queue
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cloud_aggregator.adapters.incoming import DEFAULT_GROUPING, HELD, Grouping, Incoming
from cloud_aggregator.addresses import without_credentials
from cloud_aggregator.back_pressure import BackPressure
from cloud_aggregator.errors import BrokerUnreachable, InvalidSetting, StorageFailed
from cloud_aggregator.labels import printable
from cloud_aggregator.ports import Intake, Message

RETRY_SECONDS = 1.0
WINDOW = 16
KEEPALIVE_S = 60
SESSION_EXPIRY_S = 7 * 86_400
MAX_PACKET_BYTES = 256 * 1024
FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 30.0
CONNECT_TIMEOUT_S = 10.0
PACKET_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker URL points: mqtt://host[:1883] or mqtts://host[:8883], with optional user and password."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None


def parse_broker_url(url: str) -> BrokerAddress:
    """Read a broker URL. Raises `InvalidSetting`."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == -1 or parts.path not in ("", "/"):
        raise InvalidSetting(
            f"a broker URL is mqtt://host:port or mqtts://host:port, got {without_credentials(url)[:120]!r}"
        )
    tls = parts.scheme == "mqtts"
    return BrokerAddress(parts.hostname, port or (8883 if tls else 1883), tls, parts.username, parts.password)


@dataclass(frozen=True, slots=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    done: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class _Acknowledged:
    client: paho.Client
    mid: int
    refusal: str


@dataclass(frozen=True, slots=True)
class _Online:
    client: paho.Client


@dataclass(frozen=True, slots=True)
class _Incoming:
    message: Message
    mid: int
    client: paho.Client


def subscriptions(shards: Sequence[int] = (0,)) -> list[str]:
    """Return the topic filters of an aggregator that owns these shards."""
    return ["fl/v1/dev/+/req", "fl/v1/dev/+/state", *(f"fl/v1/up/{shard}/#" for shard in shards)]


class MqttTransport:
    """`ports.Transport` over a broker; also what feeds the service.

    `start(intake)` returns once connected and subscribed; messages then go to `intake.take_group` on a thread of this
    class, and `on_group` (if given) is called after each group. `close` sends what it can within a second.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        shards: Sequence[int] = (0,),
        say: Callable[[str], None] | None = None,
        on_group: Callable[[], None] | None = None,
        grouping: Grouping = DEFAULT_GROUPING,
        pressure: BackPressure | None = None,
    ) -> None:
        self._address = parse_broker_url(url)
        self._url = without_credentials(url)
        self._client_id = client_id
        self._filters = subscriptions(shards)
        self._say = say or (lambda text: None)
        self._on_group = on_group
        self._outbox: queue.SimpleQueue[_Outgoing | _Acknowledged | _Online | None] = queue.SimpleQueue()
        self._grouping = grouping
        self._pressure = pressure or BackPressure()
        self._incoming: Incoming[_Incoming] = Incoming(grouping)
        self._client: paho.Client | None = None
        self._max_packet = MAX_PACKET_BYTES
        self._window = WINDOW
        self._subscribed = threading.Event()
        self._lost = threading.Event()
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._threads: list[threading.Thread] = []
        self._refusal = ""

    @property
    def online(self) -> bool:
        """Whether the broker is connected and has taken the subscriptions."""
        return self._subscribed.is_set()

    @property
    def waiting(self) -> int:
        """How many messages wait for the intake."""
        return self._incoming.waiting

    def start(self, intake: Intake) -> None:
        """Connect, subscribe, and begin to take messages in. Raises `BrokerUnreachable` if the first try fails."""
        self._run(lambda: self._take_in(intake), "mqtt-intake")
        self._run(self._send_out, "mqtt-sender")
        self._connect()
        if not self._has_connected():
            self.close()
            raise BrokerUnreachable(f"{self._url}: {self._refusal or 'the broker does not answer MQTT 5'}")
        self._run(self._keep_connected, "mqtt-reconnect")

    def publish(self, topic: str, payload: bytes, *, retain: bool, done: Callable[[], None] | None = None) -> None:
        self._idle.clear()
        self._outbox.put(_Outgoing(topic, payload, retain, done))

    def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has acknowledged all that was handed over; False if it took longer."""
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """Send what waits, for a second at most, and disconnect. Safe to call twice."""
        if self.online and not self._closing.is_set():
            self.flush(1.0)
        self._closing.set()
        self._lost.set()
        self._incoming.close()
        self._outbox.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)
        client, self._client = self._client, None
        self._subscribed.clear()
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _run(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _has_connected(self) -> bool:
        """Wait for the outcome of the connection that was started."""
        self._settled.wait(CONNECT_TIMEOUT_S)
        return self._subscribed.is_set()

    def _connect(self) -> None:
        """Start one new connection; its outcome comes by callbacks."""
        self._subscribed.clear()
        self._settled.clear()
        old = self._client
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        self._client = client
        if old is not None:
            old.loop_stop()
        address = self._address
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        if address.tls:
            client.tls_set_context(ssl.create_default_context())
        client.max_inflight_messages_set(WINDOW)
        client.on_socket_open = _send_at_once
        client.on_connect = self._connected
        client.on_subscribe = self._has_subscribed
        client.on_disconnect = self._disconnected
        # paho calls this while it holds its own lock: nothing here may wait for a lock of ours.
        client.on_publish = lambda c, _u, mid, reason, _p: self._outbox.put(
            _Acknowledged(c, mid, str(reason) if reason.is_failure else "")
        )
        client.on_message = lambda c, _u, message: self._incoming.put(
            _Incoming(Message(message.topic, bytes(message.payload)), message.mid, c)
        )
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = HELD
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        try:
            client.connect(address.host, address.port, keepalive=KEEPALIVE_S, clean_start=False, properties=properties)
        except (OSError, ValueError) as e:
            self._refusal = str(e)
            self._lost.set()
            self._settled.set()
            return
        client.loop_start()

    def _keep_connected(self) -> None:
        attempt = 0
        while not self._closing.is_set():
            self._lost.wait()
            if self._closing.is_set():
                return
            self._lost.clear()
            # Full jitter over a doubling ceiling, so that a broker's restart is not met by everybody at once.
            ceiling = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**attempt)
            if self._closing.wait(random.uniform(0, ceiling)):
                return
            self._connect()
            if self._has_connected():
                attempt = 0
                self._say(f"connected to {self._url} again")
            else:
                attempt = min(attempt + 1, 10)
                self._lost.set()

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._refusal = f"the broker refuses: {reason}"
            self._settled.set()
            return
        limit = getattr(properties, "MaximumPacketSize", None)
        self._max_packet = min(MAX_PACKET_BYTES, limit) if isinstance(limit, int) else MAX_PACKET_BYTES
        most = getattr(properties, "ReceiveMaximum", None)
        self._window = max(1, min(WINDOW, most)) if isinstance(most, int) else WINDOW
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._filters])

    def _has_subscribed(
        self, client: paho.Client, _data: Any, _mid: int, reasons: Sequence[ReasonCode], _properties: Any
    ) -> None:
        if client is not self._client:
            return
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._refusal = f"the broker refuses a subscription: {refused[0]}"
            self._settled.set()
            return
        self._subscribed.set()
        self._settled.set()
        self._outbox.put(_Online(client))

    def _disconnected(self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if client is not self._client or self._closing.is_set():
            return
        if self._subscribed.is_set():
            self._say(f"the broker {self._url} is gone ({reason}); what should go out waits")
        self._subscribed.clear()
        self._lost.set()
        self._settled.set()

    def _send_out(self) -> None:
        """Own the window: the only thread that hands messages to paho."""
        waiting: deque[_Outgoing] = deque()
        flying: dict[int, _Outgoing] = {}
        refused: list[_Outgoing] = []
        client: paho.Client | None = None
        while True:
            event = self._outbox.get()
            match event:
                case None:
                    return
                case _Outgoing():
                    waiting.append(event)
                case _Online(client):
                    # What the last connection did not finish goes out again, before what came later.
                    waiting.extendleft(reversed([*flying.values(), *refused]))
                    flying.clear()
                    refused.clear()
                case _Acknowledged(client=by, mid=mid, refusal=refusal):
                    finished = flying.pop(mid, None) if by is client else None
                    if finished is not None and refusal:
                        refused.append(finished)
                        self._say(f"{finished.topic}: the broker refuses the publish: {refusal}")
                    elif finished is not None and finished.done is not None:
                        finished.done()
            while client is not None and waiting and len(flying) < self._window:
                message = waiting.popleft()
                if len(message.payload) + len(message.topic) + PACKET_OVERHEAD_BYTES > self._max_packet:
                    self._say(f"{message.topic}: {len(message.payload)} bytes are over the broker's limit; dropped")
                    continue
                info = client.publish(message.topic, message.payload, qos=1, retain=message.retain)
                flying[info.mid] = message
            if not waiting and not flying and self._outbox.empty():
                self._idle.set()

    def _take_in(self, intake: Intake) -> None:
        while True:
            group = self._incoming.group()
            if not group:
                return
            while group := self._take_group(intake, group):
                if self._closing.wait(RETRY_SECONDS):
                    return
                # Among what came meanwhile may be check-ins, which are answered though there is no room to store them.
                group += self._incoming.ready(self._grouping.messages - len(group))
            if self._on_group is not None:
                self._on_group()

    def _take_group(self, intake: Intake, group: list[_Incoming]) -> list[_Incoming]:
        """Give a group to the intake; return what has to be given again."""
        again: list[_Incoming] = []
        started = time.monotonic()
        try:
            intake.take_group([incoming.message for incoming in group])
            waiting = self._incoming.waiting / self._grouping.messages
            self._pressure.committed(time.monotonic() - started, waiting)
        except StorageFailed as e:
            answered = set(map(id, e.answered))
            again = [incoming for incoming in group if id(incoming.message) not in answered]
            group = [incoming for incoming in group if id(incoming.message) in answered]
            self._say(f"{len(again)} messages could not be stored and are not acknowledged: {e}")
        except Exception as e:  # noqa: BLE001 - the thread must outlive whatever a message does
            if len(group) > 1:
                return [rest for incoming in group for rest in self._take_group(intake, [incoming])]
            topic = printable(group[0].message.topic)[:200]
            self._say(f"a message on {topic} cannot be taken in and is dropped: {e!r}")
        for incoming in group:
            # Goes to the connection that brought the message, or nowhere if that one is over.
            incoming.client.ack(incoming.mid, 1)
        return again


def _send_at_once(_client: paho.Client, _data: Any, opened: Any) -> None:
    # Small packets go both ways: Nagle's algorithm against delayed acknowledgements costs 40 ms for each exchange.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
