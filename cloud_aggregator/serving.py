"""`cloud-aggregator serve`: broker, HTTP side, MQTT connection and the loop of turns, started and stopped in order.

While it runs, `service.json` (mode 0600) in the data directory names the URL, the process and the operator's token's
file; the other commands find the service by it, and believe it only if the service answers.
"""

import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.broker import BrokerHandle, start_broker
from cloud_aggregator.adapters.clock import SystemClock
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.evaluator import CommandEvaluator
from cloud_aggregator.adapters.key_files import load_keys, write_secret
from cloud_aggregator.adapters.mqtt import MqttTransport, parse_broker_url
from cloud_aggregator.config import ServiceSettings
from cloud_aggregator.errors import AggregatorError, BrokerUnreachable, StorageFailed
from cloud_aggregator.operator_client import ADDRESS_FILE, OPERATOR_TOKEN
from cloud_aggregator.service import Gate, Service
from cloud_aggregator.web.server import start_http
from wire_contract.envelope import key_id

TURN_SECONDS = 1.0

Say = Callable[[str], None]


def open_database(data: Path, settings: ServiceSettings) -> SqlDatabase:
    """Open the database that the settings name, SQLite in the data directory by default."""
    return SqlDatabase(settings.database) if settings.database else SqlDatabase.in_folder(data)


def operator_token(data: Path) -> str:
    """Return the operator's token, making it at the first call."""
    path = data / OPERATOR_TOKEN
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(32).encode("ascii"))
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise StorageFailed(f"{path}: cannot be read: {e}") from e


class _WatchedBroker:
    """A broker of ours that is started again, on its port, when it dies; the connection then finds it by itself."""

    def __init__(self, handle: BrokerHandle, folder: Path, say: Say) -> None:
        self.handle = handle
        self._folder = folder
        self._say = say

    def revive(self) -> None:
        if self.handle.alive:
            return
        self._say(f"{self.handle.name} died; starting it again")
        port = parse_broker_url(self.handle.url).port
        try:
            self.handle = start_broker("", self._folder, say=self._say, port=port, prefer=self.handle.name)
        except BrokerUnreachable as e:
            self._say(f"{e}; trying again")

    def stop(self) -> None:
        self.handle.stop()


def serve(data: Path, settings: ServiceSettings, say: Say, ready: Callable[[BrokerHandle, str], None]) -> None:
    """Run until SIGINT or SIGTERM; `ready` is called with the broker and the HTTP URL once devices can come.

    Raises an `AggregatorError` if a part does not start. Whatever happens, what was started is stopped.
    """
    stop, wake = threading.Event(), threading.Event()
    keys = load_keys(data)
    token = operator_token(data)

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        wake.set()

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, end))
        database = open_database(data, settings)
        stack.callback(database.close)
        watched = _WatchedBroker(start_broker(settings.broker.url, data / "broker", say=say), data / "broker", say)
        stack.callback(watched.stop)
        broker = watched.handle
        transport = MqttTransport(broker.url, f"aggregator-{key_id(keys.public)[:16]}", say=say, on_group=wake.set)
        service = Service(
            database,
            FileBlobs(data / "blobs"),
            keys,
            transport,
            SystemClock(),
            entropy=os.urandom,
            gate=_gate(data, settings),
            keep_updates_days=settings.keep_updates_days,
        )
        service.addresses = replace(service.addresses, broker_url=settings.broker.public_url or broker.url)
        http = start_http(
            service, settings.http.host, settings.http.port, operator_token=token, public_url=settings.http.public_url
        )
        stack.callback(http.stop)
        transport.start(service)
        stack.callback(transport.close)
        service.start()
        address = data / ADDRESS_FILE
        stack.callback(address.unlink, missing_ok=True)
        _write_address(address, http.url, broker)
        ready(broker, http.url)
        _take_turns(service, watched, stop, wake, say)


def _take_turns(
    service: Service, watched: _WatchedBroker, stop: threading.Event, wake: threading.Event, say: Say
) -> None:
    more = False
    while not stop.is_set():
        if not more:
            wake.wait(TURN_SECONDS)
            wake.clear()
        watched.revive()
        try:
            report = service.turn(service.clock.now())
        except StorageFailed as e:
            # Nothing of the pass was kept; the rows are as they were, and the next turn tries again.
            say(f"this turn failed and is tried again: {e}")
            more = False
            stop.wait(TURN_SECONDS)
            continue
        more = report.more
        for population, version in report.steps:
            say(f"{population}: training version {version}")
        for population, version in report.released:
            say(f"{population}: refresh {version} released")
        for population, reason in report.held:
            say(f"{population}: release held: {reason}")


def _gate(data: Path, settings: ServiceSettings) -> Gate:
    gate = settings.gate
    if not gate.held_out_text:
        return Gate(None, gate.tolerance_points)
    text = data / gate.held_out_text
    if not text.is_file():
        raise AggregatorError(f"{text}: the held-out text of [gate] is no file")
    # Beside our own interpreter first: a service's PATH rarely holds the environment that it runs in.
    beside = Path(sys.executable).with_name(gate.command[0])
    command = (str(beside), *gate.command[1:]) if beside.is_file() else gate.command
    return Gate(CommandEvaluator(command, text, gate.timeout_seconds), gate.tolerance_points)


def _write_address(path: Path, url: str, broker: BrokerHandle) -> None:
    path.unlink(missing_ok=True)
    shown = {"url": url, "pid": os.getpid(), "broker": broker.name}
    shown |= {"broker_url": broker.url, "broker_pid": broker.pid}
    write_secret(path, json.dumps(shown).encode())
