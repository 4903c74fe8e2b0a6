"""A broker that does what a test tells it: real bytes of MQTT 5 over a real socket, written from the specification.

It answers CONNECT with the properties that it was given, SUBSCRIBE and PINGREQ as they should be, and PUBLISH by what
`on_publish` says; it sends what the test pushes, with packet ids of the test's choice, and records every packet.
"""

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 13, 14
MAXIMUM_PACKET_SIZE, RECEIVE_MAXIMUM, MAXIMUM_QOS, RETAIN_AVAILABLE = 0x27, 0x21, 0x24, 0x25


def number(value):
    """Return a variable byte integer."""
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


def packet(kind, body, flags=0):
    return bytes([kind << 4 | flags]) + number(len(body)) + body


def text(value):
    data = value.encode()
    return struct.pack(">H", len(data)) + data


@dataclass
class Seen:
    """One packet from the client; `connection` counts from 1. For a PUBLISH: topic, payload, packet id, flags."""

    connection: int
    kind: int
    body: bytes
    flags: int = 0
    topic: str = ""
    payload: bytes = b""
    mid: int = 0


@dataclass
class ScriptedBroker:
    """`properties` (bytes), `reason` and `session_present` go into the CONNACK; `puback` is the reason code of the
    answer to a PUBLISH, or None for no answer at all."""

    properties: bytes = b""
    reason: int = 0
    session_present: bool = False
    puback: int | None = 0
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._now: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def kinds(self, connection=None):
        return [seen.kind for seen in self.seen if connection in (None, seen.connection)]

    def published(self):
        return [seen for seen in self.seen if seen.kind == PUBLISH]

    def push(self, topic, payload, mid):
        """Send a PUBLISH at QoS 1 with this packet id."""
        self._now.sendall(packet(PUBLISH, text(topic) + struct.pack(">H", mid) + b"\x00" + payload, flags=2))

    def send(self, data):
        self._now.sendall(data)

    def cut(self):
        self._now.shutdown(socket.SHUT_RDWR)
        self._now.close()

    def close(self):
        for each in (self._listener, self._now):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
        self._thread.join(5)

    def _serve(self):
        while True:
            try:
                self._now, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                self._talk(self._now)
            except OSError:
                continue

    def _talk(self, connection):
        while head := connection.recv(1):
            length = shift = 0
            while True:
                digit = self._exactly(connection, 1)[0]
                length |= (digit & 127) << shift
                shift += 7
                if digit < 128:
                    break
            body = self._exactly(connection, length)
            self._take(connection, Seen(self.connections, head[0] >> 4, body, head[0] & 15))

    def _take(self, connection, seen):
        if seen.kind == PUBLISH:
            size = struct.unpack(">H", seen.body[:2])[0]
            seen.topic = seen.body[2 : 2 + size].decode()
            seen.mid = struct.unpack(">H", seen.body[2 + size : 4 + size])[0]
            seen.payload = seen.body[5 + size :]
        elif seen.kind == PUBACK:
            seen.mid = struct.unpack(">H", seen.body[:2])[0]
        self.seen.append(seen)
        if seen.kind == CONNECT:
            body = bytes([self.session_present, self.reason]) + number(len(self.properties)) + self.properties
            connection.sendall(packet(CONNACK, body))
        elif seen.kind == SUBSCRIBE:
            topics, at = 0, 3
            while at < len(seen.body):
                at += 2 + struct.unpack(">H", seen.body[at : at + 2])[0] + 1
                topics += 1
            connection.sendall(packet(SUBACK, seen.body[:2] + b"\x00" + b"\x01" * topics))
        elif seen.kind == PUBLISH and self.puback is not None:
            connection.sendall(packet(PUBACK, struct.pack(">HBB", seen.mid, self.puback, 0)))
        elif seen.kind == PINGREQ:
            connection.sendall(packet(PINGRESP, b""))

    @staticmethod
    def _exactly(connection, count):
        data = b""
        while len(data) < count:
            piece = connection.recv(count - len(data))
            if not piece:
                raise OSError("the client is gone")
            data += piece
        return data
