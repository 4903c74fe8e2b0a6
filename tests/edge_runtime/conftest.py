"""Brokers for the transport's tests: mosquitto where it is installed, iotcore where its package is."""

import getpass
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

IOTCORE = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 4
[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 262144
max_inflight_count = 100
dynamic_filters = true
"""


class Broker:
    """A broker in a child process on a loopback port; `stop` and `start` keep the port."""

    def __init__(self, kind: str, folder: Path, extra: str = "") -> None:
        self.kind, self.folder, self.extra = kind, folder, extra
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self.kind == "mosquitto":
            configuration = self.folder / "mosquitto.conf"
            configuration.write_text(
                f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
                f"persistence_location {self.folder}/\nuser {getpass.getuser()}\n{self.extra}"
            )
            command = [mosquitto() or "mosquitto", "-c", str(configuration)]
        else:
            configuration = self.folder / "iotcore.toml"
            configuration.write_text(IOTCORE.format(port=self.port))
            command = [sys.executable, "-m", "iotcore", "--config", str(configuration)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"{self.kind} did not listen on {self.port}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(10)
            self.process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def need_mosquitto() -> None:
    """Skip where mosquitto is not installed; in CI its absence is a failure."""
    if mosquitto() is None:
        message = "mosquitto is not installed: apt-get install mosquitto"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def mosquitto_broker(tmp_path: Path) -> Iterator[Broker]:
    need_mosquitto()
    broker = Broker("mosquitto", tmp_path)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.needs_mosquitto), "iotcore"])
def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    if request.param == "mosquitto":
        need_mosquitto()
    elif importlib.util.find_spec("iotcore") is None:
        pytest.skip("iotcore is in the cloud's environment only: pip install iotcore==0.4.0")
    broker = Broker(request.param, tmp_path)
    broker.start()
    yield broker
    broker.stop()
