"""Starting a broker where the operator has none.

The order (design 5): the URL that was given; else `mosquitto` on PATH or in /usr/sbin, with our configuration; else
`iotcore`, announced as insecure. Rules:
- loopback only, on a free port; the configuration is written into the data directory;
- ready means that every listener has answered a real MQTT 5 CONNECT;
- stopped by pid, and never alive after its starter (see `broker_child`);
- mosquitto saves every 10 s: on every change it is 24 times slower, and correctness rests on receipts, not on it; its
  default of 1,000 queued messages would drop updates without a word;
- iotcore's default payload of 20 kB is below a chunk, and its log segments are kept small because they stay in memory.
"""

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
    url: str, folder: Path, *, say: Callable[[str], None], port: int = 0, prefer: str = ""
) -> BrokerHandle:
    """Return a broker that answers MQTT 5; `folder` takes its configuration and persistence.

    `port` 0 means a free one; `prefer` ("mosquitto" or "iotcore") leaves the other out. Raises `BrokerUnreachable`.
    """
    if url:
        address = parse_broker_url(url)
        if not address.tls:
            _wait_until_ready(address.host, address.port, None)
        return BrokerHandle("given", url, not address.tls, persistence=True, session_expiry=True, ours=False)
    binary = find_mosquitto() if prefer != "iotcore" else None
    if binary is not None:
        return _start("mosquitto", [binary], _MOSQUITTO, folder, port, persistence=True)
    if prefer != "mosquitto" and importlib.util.find_spec("iotcore") is not None:
        handle = _start("iotcore", [], _IOTCORE, folder, port, persistence=False)
        say("INSECURE EMBEDDED BROKER (iotcore): loopback only, no TLS, no access control, nothing kept on disk")
        return handle
    raise BrokerUnreachable("no broker URL was given and neither mosquitto nor iotcore is installed")


def find_mosquitto() -> str | None:
    """Return the path of mosquitto, None if it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _start(name: str, words: list[str], template: str, folder: Path, port: int, *, persistence: bool) -> BrokerHandle:
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
            )
        )
        command = [sys.executable, "-m", "cloud_aggregator.adapters.broker_child", str(os.getpid()), name]
        with (folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [*command, *words, str(config)], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        try:
            _wait_until_ready("127.0.0.1", chosen, child)
        except BrokerUnreachable as e:
            _end(child)
            failure = str(e)
            continue
        url = f"mqtt://127.0.0.1:{chosen}"
        return BrokerHandle(name, url, True, persistence, session_expiry=persistence, ours=True, _child=child)
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


def _wait_until_ready(host: str, port: int, child: "subprocess.Popen[bytes] | None") -> None:
    end = time.monotonic() + (READY_TIMEOUT_S if child is not None else PROBE_TIMEOUT_S)
    while True:
        if answers_mqtt5(host, port):
            return
        if child is not None and child.poll() is not None:
            raise BrokerUnreachable(f"its process ended with {child.returncode}")
        if time.monotonic() > end:
            raise BrokerUnreachable(f"{host}:{port} does not answer an MQTT 5 CONNECT")
        time.sleep(0.02)


def answers_mqtt5(host: str, port: int) -> bool:
    """Whether a listener answers a real MQTT 5 CONNECT with success."""
    client_id = f"probe-{secrets.token_hex(8)}".encode()
    body = b"\x00\x04MQTT\x05\x02" + struct.pack(">H", 10) + b"\x00" + struct.pack(">H", len(client_id)) + client_id
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as connection:
            connection.settimeout(PROBE_TIMEOUT_S)
            connection.sendall(b"\x10" + bytes([len(body)]) + body)
            answer = connection.recv(4)
            connection.sendall(b"\xe0\x00")
    except OSError:
        return False
    return len(answer) == 4 and answer[0] == 0x20 and answer[3] == 0
