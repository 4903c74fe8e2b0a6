"""The real aggregator in the simulator's process: broker, database, HTTP side, MQTT connection; the clock is virtual.

The one difference from `cloud-aggregator serve` is who calls `turn`: there a loop, here the fleet, once a tick's
messages have all arrived; so one seed gives one model, whatever the order in which the broker delivered.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from cloud_aggregator import population as populations
from cloud_aggregator import trust
from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.broker import BrokerHandle, start_broker
from cloud_aggregator.adapters.ceremony_files import read_ceremony
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.key_files import make_keys
from cloud_aggregator.adapters.mqtt import MqttTransport
from cloud_aggregator.bundle import read_bundle
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.ports import Entropy
from cloud_aggregator.service import Service
from cloud_aggregator.serving import operator_token
from cloud_aggregator.turn_report import Pending, TurnReport
from cloud_aggregator.web.server import HttpHandle, start_http
from fleet_simulator.clock import VirtualClock
from wire_contract.envelope import key_id

ARRIVAL_TIMEOUT_S = 30.0


class ArrivalTimeout(Exception):  # noqa: N818
    """Messages that were sent have not all arrived; the message says how many are missing."""


class AggregatorHost:
    """Start it as a context manager; `data` is a data directory that `cloud-aggregator --data` reads afterwards.

    `ceremony` is given that directory, when the service's keys lie there, and returns the folder in which holders have
    signed the repository's offline roles; without it there is no repository.
    """

    def __init__(
        self,
        data: Path,
        bundle: Path,
        settings: PopulationSettings,
        clock: VirtualClock,
        *,
        entropy: Entropy,
        say: Callable[[str], None],
        broker_url: str = "",
        ceremony: Callable[[Path], Path] | None = None,
    ) -> None:
        self._data = data
        self._bundle = bundle
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._say = say
        self._broker_url = broker_url
        self._ceremony = ceremony
        self._stack = ExitStack()
        self.broker: BrokerHandle
        self.http: HttpHandle
        self.service: Service
        self.population = ""

    def __enter__(self) -> "AggregatorHost":
        try:
            return self._start()
        except BaseException:
            self._stack.close()
            raise

    def _start(self) -> "AggregatorHost":
        self._data.mkdir(parents=True, exist_ok=True)
        keys = make_keys(self._data, self._entropy)
        token = operator_token(self._data)
        offered = read_ceremony(self._ceremony(self._data)) if self._ceremony else None
        database = SqlDatabase.in_folder(self._data)
        self._stack.callback(database.close)
        blobs = FileBlobs(self._data / "blobs")
        with database.transaction() as records:
            if offered is not None:
                trust.import_ceremony(records, keys, offered, int(self._clock.now()))
            record = populations.found(
                records, blobs, keys, read_bundle(self._bundle, None), self._settings, int(self._clock.now())
            )
        self.population = record.population
        self.broker = start_broker(self._broker_url, self._data / "broker", say=self._say)
        self._stack.callback(self.broker.stop)
        transport = MqttTransport(self.broker.url, f"aggregator-{key_id(keys.public)[:16]}", say=self._say)
        self.service = Service(database, blobs, keys, transport, self._clock, entropy=self._entropy)
        self.service.addresses = replace(self.service.addresses, broker_url=self.broker.url)
        self.http = start_http(self.service, "127.0.0.1", 0, operator_token=token)
        self._stack.callback(self.http.stop)
        transport.start(self.service)
        self._stack.callback(transport.close)
        self.service.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def wait_for(self, *, check_ins: int = 0, updates: int = 0) -> Pending:
        """Return once that many check-ins and whole updates have arrived and are durable. Raises `ArrivalTimeout`."""
        end = time.monotonic() + ARRIVAL_TIMEOUT_S
        while True:
            pending = self.service.pending()
            if pending.check_ins >= check_ins and pending.received_updates >= updates:
                return pending
            if time.monotonic() > end:
                raise ArrivalTimeout(f"{check_ins} check-ins and {updates} updates were sent, {pending} have come")
            time.sleep(0.003)

    def turn(self) -> TurnReport:
        """Let the aggregator make its pass at the virtual time."""
        return self.service.turn(self._clock.now())

    def count_accepted(self) -> tuple[int, int]:
        """Return how many committed rows are accepted updates, and how many different leases they answer."""
        path = next(self._data.glob("*.db"))
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            row = connection.execute(
                "SELECT count(*), count(DISTINCT device || lease) FROM updates WHERE verdict = 'accepted'"
            ).fetchone()
        return int(row[0]), int(row[1])

    def write_refresh(self, folder: Path) -> int:
        """Write the released version as a bundle folder; return its number."""
        with self.service.database.reading() as records:
            announced = records.announcement(self.population, "refresh")
        if announced is None:
            raise LookupError(f"{self.population} has released nothing")
        return write_bundle(self.service, announced.signed_manifest, folder)


def write_bundle(service: Service, signed_manifest: bytes, folder: Path) -> int:
    """Write model.tflite, manifest.bin and, for a model of text, vocabulary.txt out of the service's blobs."""
    from wire_contract.envelope import read_envelope
    from wire_contract.manifest import decode_manifest

    manifest = decode_manifest(read_envelope(signed_manifest).body)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(service.blobs.get(manifest.sha256))
    if manifest.vocabulary_sha256:
        (folder / "vocabulary.txt").write_bytes(service.blobs.get(manifest.vocabulary_sha256))
    (folder / "manifest.bin").write_bytes(signed_manifest)
    return manifest.version
