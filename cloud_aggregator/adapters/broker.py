"""Starting a broker where the operator has none.

The order (design 5): the URL that was given; else `mosquitto` on PATH or in /usr/sbin, with our configuration; else
`iotcore`, announced as insecure. Rules:
- loopback only, on a free port; the configuration is written into the data directory;
- ready means that every listener has answered a real MQTT 5 CONNECT;
- stopped by pid, and never alive after its starter (see `broker_child`);
- mosquitto saves every 10 s: on every change it is 24 times slower, and correctness rests on receipts, not on it; its
  default of 1,000 queued messages would drop updates without a word;
- iotcore's default payload of 20 kB is below a chunk, and its log segments are kept small because they stay in memory;
- a WebSocket listener is mosquitto's, on loopback as the other: what ends TLS on 443 passes /mqtt on to it.
"""

import base64
import getpass
import importlib.util
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloud_aggregator.adapters.mqtt import parse_broker_url
from cloud_aggregator.addresses import without_credentials
from cloud_aggregator.errors import BrokerUnreachable

MAX_PAYLOAD_BYTES = 262_144
READY_TIMEOUT_S = 15.0
PROBE_TIMEOUT_S = 2.0
ATTEMPTS = 3

_MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
user {user}
persistence true
persistence_location {folder}/
autosave_interval 10
autosave_on_changes false
max_queued_messages 100000
max_queued_bytes 1073741824
max_inflight_messages 100
max_packet_size {packet}
persistent_client_expiration 14d
log_dest stderr
log_type error
log_type warning
"""

_WEBSOCKET = """\
listener {websocket_port} 127.0.0.1
protocol websockets
"""

_IOTCORE = """\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 10

[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {payload}
max_inflight_count = 100
dynamic_filters = true
"""


@dataclass(frozen=True, slots=True)
class BrokerHandle:
    """A broker that answers. `insecure`: no TLS and no access control. `persistence`: sessions survive its restart.

    `ours` is False for one that was given by URL; `stop` then does nothing.
    """

    name: str
    url: str
    insecure: bool
    persistence: bool
    session_expiry: bool
    ours: bool
    _child: "subprocess.Popen[bytes] | None" = None
    websocket_port: int = 0

    @property
    def addresses(self) -> str:
        """What devices are told: the URL without user and password, and the WebSocket's if there is one."""
        url = without_credentials(self.url)
        return f"{url} ws://127.0.0.1:{self.websocket_port}/mqtt" if self.websocket_port else url

    @property
    def pid(self) -> int | None:
        """Process id of the child that holds the broker."""
        return None if self._child is None else self._child.pid

    @property
    def alive(self) -> bool:
        """Whether our child still runs; a broker that was given is not ours to watch."""
        return self._child is None or self._child.poll() is None

    def stop(self) -> None:
        """End the broker and wait until it is gone. Safe to call twice."""
        if self._child is not None:
            _end(self._child)


def start_broker(
    url: str,
    folder: Path,
    *,
    say: Callable[[str], None],
    port: int = 0,
    prefer: str = "",
    websocket_port: int = 0,
) -> BrokerHandle:
    """Return a broker that answers MQTT 5; `folder` takes its configuration and persistence.

    `port` 0 means a free one; `prefer` ("mosquitto" or "iotcore") leaves the other out; `websocket_port` (0: none) is
    where a mosquitto of ours listens for WebSockets. Raises `BrokerUnreachable`.
    """
    if url:
        address = parse_broker_url(url)
        if not address.tls:
            _wait_until_ready(address.host, address.port, None)
        return BrokerHandle("given", url, not address.tls, persistence=True, session_expiry=True, ours=False)
    binary = find_mosquitto() if prefer != "iotcore" else None
    if binary is not None:
        template = _MOSQUITTO + (_WEBSOCKET if websocket_port else "")
        return _start("mosquitto", [binary], template, folder, port, persistence=True, websocket_port=websocket_port)
    if prefer != "mosquitto" and importlib.util.find_spec("iotcore") is not None:
        handle = _start("iotcore", [], _IOTCORE, folder, port, persistence=False)
        say("INSECURE EMBEDDED BROKER (iotcore): loopback only, no TLS, no access control, nothing kept on disk")
        if websocket_port:
            say("broker.websocket_port needs mosquitto (apt-get install mosquitto): there is no WebSocket listener")
        return handle
    raise BrokerUnreachable("no broker URL was given and neither mosquitto nor iotcore is installed")


def find_mosquitto() -> str | None:
    """Return the path of mosquitto, None if it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _start(
    name: str,
    words: list[str],
    template: str,
    folder: Path,
    port: int,
    *,
    persistence: bool,
    websocket_port: int = 0,
) -> BrokerHandle:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise BrokerUnreachable(f"{folder}: the broker's directory cannot be made: {e}") from e
    failure = ""
    for _ in range(1 if port else ATTEMPTS):
        chosen = port or _free_port()
        config = folder / (f"{name}.conf" if name == "mosquitto" else f"{name}.toml")
        config.write_text(
            template.format(
                port=chosen,
                folder=folder.resolve(),
                user=getpass.getuser(),
                payload=MAX_PAYLOAD_BYTES,
                packet=MAX_PAYLOAD_BYTES + 1024,
                websocket_port=websocket_port,
            )
        )
        command = [sys.executable, "-m", "cloud_aggregator.adapters.broker_child", str(os.getpid()), name]
        with (folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [*command, *words, str(config)], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        try:
            _wait_until_ready("127.0.0.1", chosen, child)
            if websocket_port:
                _wait_until_ready("127.0.0.1", websocket_port, child, answers_over_websocket)
        except BrokerUnreachable as e:
            _end(child)
            failure = str(e)
            continue
        url = f"mqtt://127.0.0.1:{chosen}"
        return BrokerHandle(
            name, url, True, persistence, session_expiry=persistence, ours=True, _child=child,
            websocket_port=websocket_port,
        )  # fmt: skip
    raise BrokerUnreachable(f"{name} did not start: {failure}; see {folder / f'{name}.log'}")


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.stdin is not None and not child.stdin.closed:
        child.stdin.close()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(
    host: str,
    port: int,
    child: "subprocess.Popen[bytes] | None",
    answers: "Callable[[str, int], bool] | None" = None,
) -> None:
    end = time.monotonic() + (READY_TIMEOUT_S if child is not None else PROBE_TIMEOUT_S)
    while True:
        if (answers or answers_mqtt5)(host, port):
            return
        if child is not None and child.poll() is not None:
            raise BrokerUnreachable(f"its process ended with {child.returncode}")
        if time.monotonic() > end:
            raise BrokerUnreachable(f"{host}:{port} does not answer an MQTT 5 CONNECT")
        time.sleep(0.02)


def _connect_packet() -> bytes:
    client_id = f"probe-{secrets.token_hex(8)}".encode()
    body = b"\x00\x04MQTT\x05\x02" + struct.pack(">H", 10) + b"\x00" + struct.pack(">H", len(client_id)) + client_id
    return b"\x10" + bytes([len(body)]) + body


def _is_success(answer: bytes) -> bool:
    return len(answer) == 4 and answer[0] == 0x20 and answer[3] == 0


def answers_mqtt5(host: str, port: int) -> bool:
    """Whether a listener answers a real MQTT 5 CONNECT with success."""
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as connection:
            connection.settimeout(PROBE_TIMEOUT_S)
            connection.sendall(_connect_packet())
            answer = connection.recv(4)
            connection.sendall(b"\xe0\x00")
    except OSError:
        return False
    return _is_success(answer)


def answers_over_websocket(host: str, port: int) -> bool:
    """Whether a listener answers a real MQTT 5 CONNECT in a WebSocket (RFC 6455) with success."""
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    hello = (
        f"GET /mqtt HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    packet = _connect_packet()
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as connection:
            connection.settimeout(PROBE_TIMEOUT_S)
            connection.sendall(hello.encode())
            answer = b""
            while b"\r\n\r\n" not in answer and len(answer) < 4096 and (piece := connection.recv(1024)):
                answer += piece
            if not answer.startswith(b"HTTP/1.1 101"):
                return False
            # One binary frame, masked with zeros, as a client's must be.
            connection.sendall(b"\x82" + bytes([0x80 | len(packet)]) + bytes(4) + packet)
            return _is_success(connection.recv(6)[2:])
    except OSError:
        return False
