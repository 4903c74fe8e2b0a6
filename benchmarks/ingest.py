"""Claim: updates are durable before they are acknowledged, twenty times faster than by a commit for each message.

All engines store the same kind of updates (12 kB sealed, an init and one chunk) with the same durability: SQLite in
WAL mode with synchronous=FULL, PostgreSQL with fsync and synchronous_commit on. They take turns: in every round each
stores its share, and a round's ratio is of that round, so that load on the machine meets all alike. Wall clock, for
the disk is what is measured; CPU time stands beside it.

- grouped: the aggregator's own intake, 64 updates (128 messages) in one transaction, the rows as after verification;
- update each: the same code, one update (its init and its chunk) in a transaction;
- message each: the same code, a transaction for each message: two for an update. MQTT acknowledges messages, so this is
  what the intake would do without groups;
- signed: the whole of `Service.take_group`, with reading and verifying every init;
- postgresql: the first three on a private cluster, where PostgreSQL is installed.

`ratio_sqlite` is message each / grouped, in time an update; `ratio_sqlite_update_each` is update each / grouped. Both
follow the disk: the faster it flushes, the more of a commit is the processor's work, of which a group saves less.
`flush_ms` is what this disk takes to append 12 kB and flush them. The second ratio was 13 to 20 in all runs so far.

Then the acknowledgement's latency: updates arrive at a steady rate in the intake's own queue, and each is timed from
its chunk's arrival until the commit of its group has returned. Then kills (of the process: what the operating system
holds stays, so this is no power cut): a process that takes updates in, with
duplicates, is killed with SIGKILL at a random moment, a hundred times over one database; it tells each acknowledged
update on a pipe, and a reader that shares no code with it counts what the database holds: `lost` were acknowledged and
are not there with their very bytes, `doubled` are there twice.

Run: python -m benchmarks.ingest [--rounds 12] [--kills 100] [--rate 500] [--seconds 15] [--seed 1]
The last line is one JSON object.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.ingest_load import NOW, Fleet, Update
from benchmarks.postgres import Cluster, find_programs
from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.incoming import Grouping, Incoming
from cloud_aggregator.adapters.key_files import make_keys
from cloud_aggregator.adapters.mqtt import MqttTransport
from cloud_aggregator.admission import open_init
from cloud_aggregator.intake_group import IntakeGroup
from cloud_aggregator.ports import Message
from cloud_aggregator.service import Service
from wire_contract.topics import UpdateTopic, parse_topic

SIZE_BYTES = 12_000
GROUP = 64
DEVICES = 400
# Of one round: enough that a group's commit is not one lucky moment.
SHARE = {"grouped": 8 * GROUP, "update each": 48, "message each": 32, "signed": 4 * GROUP, "signed message each": 24,
         "postgresql grouped": 4 * GROUP, "postgresql update each": 32, "postgresql message each": 24}  # fmt: skip
WARM_UP_ROUNDS = 2


class Fixed:
    """A clock that stands."""

    def now(self) -> float:
        return float(NOW)


class Engine:
    """A database of its own, and a way of storing updates in it."""

    def __init__(self, name: str, database: SqlDatabase, fleet: Fleet, service: Service | None) -> None:
        self.name = name
        self.database = database
        self.fleet = fleet
        self.service = service
        self.stored = 0
        self.store: Callable[[Sequence[Update]], None] = {
            "grouped": self._grouped,
            "update each": self._update_each,
            "message each": self._message_each,
            "signed": self._signed,
            "signed message each": self._signed_message_each,
        }[name.removeprefix("postgresql ")]
        with database.transaction() as records:
            fleet.enrol(records)

    def round(self) -> tuple[float, float]:
        """Store one round's share; return wall and CPU seconds an update."""
        count = SHARE[self.name]
        # The database gives these ids, in this order (`_grouped` and the others check it).
        updates = [replace(update, row=replace(update.row, id=1 + update.number))
                   for update in self.fleet.updates(self.stored, count)]  # fmt: skip
        with self.database.transaction() as records:
            for number in range(self.stored, self.stored + count):
                records.add_lease(self.fleet.lease_of(number))
        wall, cpu = time.perf_counter(), time.process_time()
        self.store(updates)
        used = time.perf_counter() - wall, time.process_time() - cpu
        self.stored += count
        return used[0] / count, used[1] / count

    def _rows(self, updates: Sequence[Update]) -> None:
        with self.database.transaction() as records:
            group = self._open(records, updates, len(updates))
            for update in updates:
                self._add(group, update)
                group.receive(update.row, update.sealed)
            group.write()

    def _add(self, group: IntakeGroup, update: Update) -> None:
        if group.new_id() != update.row.id:
            raise SystemExit(f"{self.name}: the database gave another id than {update.row.id}")
        group.add_update(update.row)

    def _open(self, records: object, updates: Sequence[Update], inits: int) -> IntakeGroup:
        group = IntakeGroup(records, NOW)
        group.look_up({u.row.device for u in updates}, [u.update_id for u in updates], inits)
        group.look_up_leases({u.row.lease for u in updates})
        return group

    def _grouped(self, updates: Sequence[Update]) -> None:
        for start in range(0, len(updates), GROUP):
            self._rows(updates[start : start + GROUP])

    def _update_each(self, updates: Sequence[Update]) -> None:
        for update in updates:
            self._rows([update])

    def _message_each(self, updates: Sequence[Update]) -> None:
        for update in updates:
            with self.database.transaction() as records:
                group = self._open(records, [update], 1)
                self._add(group, update)
                group.write()
            with self.database.transaction() as records:
                group = self._open(records, [update], 0)
                group.receive(group.update(update.update_id), update.sealed)
                group.write()

    def _signed(self, updates: Sequence[Update]) -> None:
        for start in range(0, len(updates), GROUP):
            self.service.take_group([m for update in updates[start : start + GROUP] for m in update.messages])

    def _signed_message_each(self, updates: Sequence[Update]) -> None:
        for update in updates:
            for message in update.messages:
                self.service.take_group([message])

    def check(self) -> None:
        """Raise `SystemExit` unless every update that was stored is received."""
        with self.database.reading() as records:
            found = records.count_updates("received")
        if found != self.stored:
            raise SystemExit(f"{self.name}: {self.stored} updates were stored, {found} are there")


def make_service(folder: Path, database: SqlDatabase) -> Service:
    keys = make_keys(folder / "keys", os.urandom)
    transport = MqttTransport("mqtt://127.0.0.1", "benchmark")
    return Service(database, FileBlobs(folder / "blobs"), keys, transport, Fixed(), entropy=os.urandom)


def rates(engines: Sequence[Engine], rounds: int) -> dict[str, np.ndarray]:
    """Return [rounds, wall and CPU seconds an update] for each engine."""
    times = {engine.name: [] for engine in engines}
    for number in range(WARM_UP_ROUNDS + rounds):
        for place in range(len(engines)):
            engine = engines[(number + place) % len(engines)]
            used = engine.round()
            if number >= WARM_UP_ROUNDS:
                times[engine.name].append(used)
    for engine in engines:
        engine.check()
    return {name: np.array(each) for name, each in times.items()}


def verification_ms(fleet: Fleet, count: int = 512) -> float:
    """Return the median CPU milliseconds of reading and verifying one init."""
    keys = dict(zip(fleet.devices, fleet.publics, strict=True))
    used = []
    for update in fleet.updates(0, count):
        topic = parse_topic(update.messages[0].topic)
        assert isinstance(topic, UpdateTopic)
        start = time.process_time()
        open_init(update.messages[0].payload, topic, keys[topic.device])
        used.append(time.process_time() - start)
    return 1e3 * float(np.median(used))


def latency(folder: Path, fleet: Fleet, rate: float, seconds: float) -> dict[str, float]:
    """Return the acknowledgement latency in milliseconds at a steady rate of updates a second."""
    database = SqlDatabase.in_folder(folder)
    service = make_service(folder, database)
    updates = list(fleet.updates(0, int(rate * seconds)))
    with database.transaction() as records:
        fleet.enrol(records)
        for number in range(len(updates)):
            records.add_lease(fleet.lease_of(number))
    incoming: Incoming[tuple[Message, float | None]] = Incoming(Grouping())
    taken, groups = [], []

    def take() -> None:
        while group := incoming.group():
            service.take_group([message for message, _ in group])
            done = time.perf_counter()
            groups.append(len(group))
            taken.extend(done - arrived for _, arrived in group if arrived is not None)

    thread = threading.Thread(target=take)
    thread.start()
    started = time.perf_counter()
    for number, update in enumerate(updates):
        time.sleep(max(0.0, started + number / rate - time.perf_counter()))
        incoming.put((update.messages[0], None))
        incoming.put((update.messages[1], time.perf_counter()))
    sent_s = time.perf_counter() - started
    while len(taken) < len(updates):
        time.sleep(0.01)
    incoming.close()
    thread.join()
    database.close()
    p50, p90, p99 = np.percentile(np.array(taken) * 1e3, [50, 90, 99])
    return {
        "rate": round(len(updates) / sent_s, 1),
        "updates": len(updates),
        "messages_a_group": round(float(np.mean(groups)), 1),
        "p50_ms": round(float(p50), 2),
        "p90_ms": round(float(p90), 2),
        "p99_ms": round(float(p99), 2),
        "max_ms": round(float(max(taken)) * 1e3, 2),
    }


def take_until_killed(folder: Path, waiting: Sequence[Update], rng: random.Random, pipe: int) -> None:
    """The victim: take random groups in, some of them twice, and tell each acknowledged update."""
    database = SqlDatabase.in_folder(folder)
    service = make_service(folder / str(os.getpid()), database)
    while True:
        group = rng.sample(waiting, min(len(waiting), rng.randint(1, GROUP)))
        group += rng.sample(group, rng.randint(0, len(group) // 2))
        service.take_group([message for update in group for message in update.messages])
        os.write(pipe, b"".join(update.update_id.encode() for update in group))


def kills(folder: Path, fleet: Fleet, count: int, seed: int) -> dict[str, object]:
    """Kill `count` times at random moments, then count what is there."""
    rng = random.Random(seed)
    total = 40 * count
    updates = list(fleet.updates(0, total))
    database = SqlDatabase.in_folder(folder)
    with database.transaction() as records:
        fleet.enrol(records)
        for number in range(total):
            records.add_lease(fleet.lease_of(number))
    database.close()
    acknowledged: dict[str, int] = {}
    for life in range(count):
        # What is new, and much that was taken before: a device that has no receipt sends again.
        waiting = updates[40 * life : 40 * (life + 1)] + rng.sample(updates[: 40 * (life + 1)], 40)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                take_until_killed(folder, waiting, random.Random(f"{seed} {life}"), write)
            finally:
                os._exit(1)
        os.close(write)
        time.sleep(rng.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        told = b""
        while part := os.read(read, 1 << 20):
            told += part
        os.close(read)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit("a process that was to be killed had ended by itself")
        for start in range(0, len(told) - len(told) % 32, 32):
            name = told[start : start + 32].decode()
            acknowledged[name] = acknowledged.get(name, 0) + 1
    expected = {update.update_id: hashlib.sha256(update.sealed).digest() for update in updates}
    with closing(sqlite3.connect(f"file:{folder / 'aggregator.db'}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT u.update_id, u.device || u.lease, s.data FROM updates u LEFT JOIN sealed_updates s ON s.id = u.id "
            "WHERE u.state = 'received'"
        ).fetchall()
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        loose = connection.execute("SELECT count(*) FROM sealed_updates WHERE id NOT IN (SELECT id FROM updates)")
        orphans = loose.fetchone()[0]
    whole = {name for name, _, data in rows if data and hashlib.sha256(data).digest() == expected[name]}
    return {
        "kills": count,
        "acknowledged": len(acknowledged),
        "sent_again_after_acknowledgement": sum(acknowledged.values()) - len(acknowledged),
        "stored": len(rows),
        "lost": len(acknowledged.keys() - whole),
        "doubled": len(rows) - len({key for _, key, _ in rows}),
        "orphans": orphans,
        "sound": sound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rate", type=float, default=500.0, help="updates a second for the latency")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long they arrive")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the databases lie for the while (default: a temporary one)")
    asked = parser.parse_args()
    fleet = Fleet(DEVICES, SIZE_BYTES, asked.seed)
    cluster = start_postgresql()
    try:
        with tempfile.TemporaryDirectory(dir=asked.folder) as made:
            report = measure(Path(made), fleet, cluster, asked)
    finally:
        if cluster is not None:
            cluster.stop()
    print(json.dumps(report))


def start_postgresql() -> Cluster | None:
    """Start a private, durable cluster; None where PostgreSQL is not installed."""
    programs = find_programs()
    return None if programs is None else Cluster(programs, durable=True)


def flush_ms(folder: Path, count: int = 64) -> float:
    """Return the median milliseconds of appending an update's bytes to a file and flushing them to the disk."""
    used = []
    with (folder / "flushed").open("ab", buffering=0) as file:
        for _ in range(count):
            start = time.perf_counter()
            file.write(bytes(SIZE_BYTES))
            os.fdatasync(file.fileno())
            used.append(time.perf_counter() - start)
    return 1e3 * float(np.median(used))


def measure(folder: Path, fleet: Fleet, cluster: Cluster | None, asked: argparse.Namespace) -> dict[str, object]:
    """Run all parts, print the tables and return the report."""
    engines = []
    for name in SHARE:
        if name.startswith("postgresql"):
            if cluster is None:
                continue
            database = SqlDatabase(cluster.new_database())
        else:
            database = SqlDatabase.in_folder(folder / name.replace(" ", "-"))
        engines.append(Engine(name, database, fleet, make_service(folder / f"service {name}", database)))
    times = rates(engines, asked.rounds)
    for engine in engines:
        engine.database.close()
    signature, flush = verification_ms(fleet), flush_ms(folder)
    shown = {}
    grouped = times["grouped"][:, 0]
    print(f"{'engine':<26}{'updates/s':>10}{'best':>8}{'CPU ms':>8}   grouped / engine: median (p10..p90), min/min")
    for name, own in times.items():
        ratios = own[:, 0] / grouped
        low, middle, high = np.percentile(ratios, [10, 50, 90])
        shown[name.replace(" ", "_")] = {
            "updates_per_second_median": round(1 / float(np.median(own[:, 0])), 1),
            "updates_per_second_best": round(1 / float(own[:, 0].min()), 1),
            "cpu_ms_median": round(1e3 * float(np.median(own[:, 1])), 4),
            "ratio_median": round(float(middle), 2),
            "ratio_p10": round(float(low), 2),
            "ratio_p90": round(float(high), 2),
            "ratio_min_min": round(float(own[:, 0].min() / grouped.min()), 2),
        }
        print(
            f"{name:<26}{1 / np.median(own[:, 0]):>10.0f}{1 / own[:, 0].min():>8.0f}{1e3 * np.median(own[:, 1]):>8.3f}"
            f"   {middle:.1f} ({low:.1f}..{high:.1f}), {own[:, 0].min() / grouped.min():.1f}"
        )
    print(f"reading and verifying an init: {signature:.3f} ms of CPU; a flush of {SIZE_BYTES} bytes: {flush:.2f} ms")
    acknowledged = latency(folder / "latency", fleet, asked.rate, asked.seconds)
    print(f"acknowledgement at {acknowledged['rate']} updates/s: p50 {acknowledged['p50_ms']} ms, "
          f"p99 {acknowledged['p99_ms']} ms, longest {acknowledged['max_ms']} ms")  # fmt: skip
    killed = kills(folder / "kills", fleet, asked.kills, asked.seed)
    print(f"{killed['kills']} kills: {killed['acknowledged']} acknowledged, {killed['lost']} lost, "
          f"{killed['doubled']} doubled")  # fmt: skip
    postgresql = shown.get("postgresql_grouped")

    def paired(each: str, in_groups: str) -> float | None:
        return round(float(np.median(times[each][:, 0] / times[in_groups][:, 0])), 2) if each in times else None

    return {
        "benchmark": "ingest",
        "seed": asked.seed,
        "rounds": asked.rounds,
        "ratio_sqlite": paired("message each", "grouped"),
        "ratio_sqlite_is": "a commit for each acknowledged MQTT message (two an update) / groups of 64 updates",
        "ratio_sqlite_update_each": paired("update each", "grouped"),
        "ratio_sqlite_update_each_is": "a commit for each update (its two messages together) / groups of 64 updates",
        "ratio_sqlite_signed": paired("signed message each", "signed"),
        "ratio_postgresql": paired("postgresql message each", "postgresql grouped"),
        "ratio_postgresql_update_each": paired("postgresql update each", "postgresql grouped"),
        "flush_ms": round(flush, 3),
        "updates_per_second": shown["grouped"]["updates_per_second_median"],
        "updates_per_second_signed": shown["signed"]["updates_per_second_median"],
        "postgresql_updates_per_second": postgresql and postgresql["updates_per_second_median"],
        "verify_cpu_ms": round(signature, 4),
        "p99_ms": acknowledged["p99_ms"],
        "kills": killed["kills"],
        "lost": killed["lost"],
        "doubled": killed["doubled"],
        "latency": acknowledged,
        "after_kills": killed,
        "engines": shown,
        "settings": {"bytes": SIZE_BYTES, "group": GROUP, "devices": DEVICES, "share": SHARE, "durability": "full"},
        "machine": platform.machine(),
        "versions": {
            **{name: version(name) for name in ("sqlalchemy", "cryptography", "psycopg", "numpy")},
            "sqlite": sqlite3.sqlite_version,
        },
    }


if __name__ == "__main__":
    main()
