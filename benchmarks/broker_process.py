"""A broker in a child process, for benchmarks that kill it: mosquitto with its default autosave, or iotcore.

The port stays over `kill` and `start`. mosquitto saves its sessions every half hour by default, so that a kill loses
what came since; iotcore keeps nothing on the disk.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from cloud_aggregator.adapters.broker import answers_mqtt5

READY_S = 15.0
_MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
user {user}
persistence true
persistence_location {folder}/
max_queued_messages 100000
max_queued_bytes 1073741824
log_dest none
"""
_IOTCORE = """\
id = 0
[router]
id = 0
max_connections = 2000
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 10
[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 4194304
max_inflight_count = 100
dynamic_filters = true
"""


class BrokerProcess:
    """Use it in a `with`. `kind` is "mosquitto" or "iotcore"."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.kills = 0
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers."""
        template = _MOSQUITTO if self.kind == "mosquitto" else _IOTCORE
        path = self.folder / ("mosquitto.conf" if self.kind == "mosquitto" else "iotcore.toml")
        path.write_text(template.format(port=self.port, user=getpass.getuser(), folder=self.folder.resolve()))
        binary = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        iotcore = [sys.executable, "-m", "iotcore", "--config"]
        command = [binary, "-c"] if self.kind == "mosquitto" else iotcore
        self._process = subprocess.Popen(
            [*command, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + READY_S
        while not answers_mqtt5("127.0.0.1", self.port):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.kind} does not answer on port {self.port}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, by its own pid."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.kills += 1

    def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
