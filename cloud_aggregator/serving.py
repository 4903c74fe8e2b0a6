"""`cloud-aggregator serve`: broker, HTTP side, MQTT connection and the loop of turns, started and stopped in order.

While it runs, `service.json` (mode 0600) in the data directory names the URL, the process and the operator's token's
file; the other commands find the service by it, and believe it only if the service answers. `serve.lock` is held as
long as the process lives, so that a data directory has one service. Nothing that fails in a turn ends the loop.
"""

import fcntl
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.broker import BrokerHandle, start_broker
from cloud_aggregator.adapters.broker_addresses import announced_addresses
from cloud_aggregator.adapters.clock import SystemClock
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.delta_files import DeltaFiles
from cloud_aggregator.adapters.evaluator import CommandEvaluator
from cloud_aggregator.adapters.incoming import Grouping
from cloud_aggregator.adapters.key_files import load_keys, write_secret
from cloud_aggregator.adapters.mqtt import MqttTransport, parse_broker_url
from cloud_aggregator.addresses import without_credentials
from cloud_aggregator.aggregation_kernel import KERNEL_VARIABLE, Kernel, KernelUnavailable, kernel_of
from cloud_aggregator.back_pressure import BackPressure, Limits
from cloud_aggregator.code_hash import aggregator_code
from cloud_aggregator.config import ServiceSettings
from cloud_aggregator.delta_publisher import DeltaPublisher
from cloud_aggregator.errors import AggregatorError, BrokerUnreachable, InvalidSetting, Refused, StorageFailed
from cloud_aggregator.housekeeping import Retention
from cloud_aggregator.operator_client import ADDRESS_FILE, OPERATOR_TOKEN
from cloud_aggregator.service import Gate, Service
from cloud_aggregator.web.server import start_http
from wire_contract.envelope import key_id

TURN_SECONDS = 1.0
LOCK_FILE = "serve.lock"

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
            self.handle = start_broker(
                "", self._folder, say=self._say, port=port, prefer=self.handle.name,
                websocket_port=self.handle.websocket_port,
            )  # fmt: skip
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
    kernel = chosen_kernel(os.environ)
    # Lineages name the code that runs, not what an upgrade lays in its place meanwhile.
    aggregator_code()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        wake.set()

    with ExitStack() as stack:
        stack.enter_context(_only_one(data))
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, end))
        database = open_database(data, settings)
        stack.callback(database.close)
        gate, abandon = _gate(data, settings)
        limits = Limits(settings.intake.backlog_seconds, settings.intake.reserve_megabytes * 1024 * 1024)
        pressure = BackPressure(limits)
        told = announced_addresses(settings.broker.public_url) if settings.broker.public_url else ""
        started = start_broker(
            settings.broker.url, data / "broker", say=say, websocket_port=settings.broker.websocket_port
        )
        watched = _WatchedBroker(started, data / "broker", say)
        stack.callback(watched.stop)
        broker = watched.handle
        transport = MqttTransport(
            broker.url,
            f"aggregator-{key_id(keys.public)[:16]}",
            say=say,
            on_group=wake.set,
            grouping=Grouping(settings.intake.group_updates, settings.intake.group_milliseconds / 1000),
            pressure=pressure,
        )
        blobs = FileBlobs(data / "blobs")
        deltas = DeltaPublisher(database, blobs, DeltaFiles(data / "deltas"))
        stack.callback(deltas.close)
        service = Service(
            database,
            blobs,
            keys,
            transport,
            SystemClock(),
            entropy=os.urandom,
            gate=gate,
            checkpoint_updates=settings.intake.checkpoint_updates,
            pressure=pressure,
            retention=Retention(settings.keep_updates_days, settings.keep_updates_refreshes),
            deltas=deltas,
            kernel=kernel,
        )
        service.addresses = replace(service.addresses, broker_url=told or announced_addresses(broker.addresses))
        http = start_http(
            service, settings.http.host, settings.http.port, operator_token=token, public_url=settings.http.public_url
        )
        stack.callback(http.stop)
        transport.start(service)
        stack.callback(transport.close)
        stack.callback(service.close, abandon)
        service.start()
        address = data / ADDRESS_FILE
        stack.callback(_remove_address, address)
        _write_address(address, http.url, broker)
        ready(broker, http.url)
        take_turns(service, watched, stop, wake, say)


def chosen_kernel(environment: Mapping[str, str]) -> Kernel:
    """Return the kernel that updates are decoded by. Raises `InvalidSetting` for one that is none or cannot run."""
    try:
        return kernel_of(environment)
    except (ValueError, KernelUnavailable) as e:
        raise InvalidSetting(f"{KERNEL_VARIABLE}: {e}") from e


def take_turns(
    service: Service, watched: _WatchedBroker, stop: threading.Event, wake: threading.Event, say: Say
) -> None:
    """Let the service turn once a second and whenever `wake` is set, until `stop` is; say what came of it."""
    more = False
    while not stop.is_set():
        if not more:
            wake.wait(TURN_SECONDS)
            wake.clear()
        try:
            watched.revive()
            report = service.turn(service.clock.now())
        except Exception as e:  # noqa: BLE001 - a loop that ends takes every other population and device with it
            # Nothing of the pass was kept; the rows are as they were, and the next turn tries again.
            kind = "" if isinstance(e, AggregatorError) else f"{type(e).__name__}: "
            say(f"this turn failed and is tried again: {kind}{e}")
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
        for trouble in report.troubles:
            say(trouble)


def _gate(data: Path, settings: ServiceSettings) -> tuple[Gate, Callable[[], None]]:
    """Return the gate, and what ends an evaluation that runs."""
    gate = settings.gate
    if not gate.held_out_text:
        return Gate(None, gate.tolerance_points), lambda: None
    text = data / gate.held_out_text
    if not text.is_file():
        raise AggregatorError(f"{text}: the held-out text of [gate] is no file")
    # Beside our own interpreter first: a service's PATH rarely holds the environment that it runs in.
    beside = Path(sys.executable).with_name(gate.command[0])
    command = (str(beside), *gate.command[1:]) if beside.is_file() else gate.command
    evaluator = CommandEvaluator(command, text, gate.timeout_seconds)
    return Gate(evaluator, gate.tolerance_points), evaluator.stop


@contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Hold the data directory; the lock ends with the process, however it ends. Raises `Refused`."""
    path = data / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StorageFailed(f"{path}: cannot be opened: {e}") from e
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(handle)
        raise Refused(f"{data} is served by another process", "a data directory has one service; stop that one") from e
    try:
        yield
    finally:
        os.close(handle)


def _write_address(path: Path, url: str, broker: BrokerHandle) -> None:
    path.unlink(missing_ok=True)
    shown = {"url": url, "pid": os.getpid(), "broker": broker.name}
    shown |= {"broker_url": without_credentials(broker.url), "broker_pid": broker.pid}
    write_secret(path, json.dumps(shown).encode())


def _remove_address(path: Path) -> None:
    """Remove the address file if it is this process's own."""
    try:
        own = json.loads(path.read_text("utf-8"))["pid"] == os.getpid()
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    if own:
        path.unlink(missing_ok=True)
