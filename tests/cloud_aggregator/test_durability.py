"""What was acknowledged is there after a kill -9 of the process or of the database's server, and counted once."""

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.ingest_load import NOW, Fleet
from benchmarks.postgres import Cluster, find_programs
from cloud_aggregator import service
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.errors import StorageFailed
from cloud_aggregator.ingest import take_messages
from tests.cloud_aggregator.fleet import Aggregator, environment, phones, update_id_of

UPDATES = 200

# Takes updates in, many of them twice, and tells each one whose transaction was committed.
VICTIM = """
import random, sys
from pathlib import Path
from benchmarks.ingest_load import NOW, Fleet
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.ingest import take_messages

folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
updates, rng = list(Fleet(20, 12_000, 1).updates(0, count)), random.Random(seed)
database = SqlDatabase.in_folder(folder)
print("ready", flush=True)
while True:
    group = rng.sample(updates, rng.randint(1, 8))
    group += rng.sample(group, len(group) // 2)
    with database.transaction() as records:
        take_messages(records, [message for update in group for message in update.messages], NOW)
    sys.stdout.write("".join(update.update_id + "\\n" for update in group))
    sys.stdout.flush()
"""


def prepare(database):
    fleet = Fleet(20, 12_000, 1)
    with database.transaction() as records:
        fleet.enrol(records)
        for number in range(UPDATES):
            records.add_lease(fleet.lease_of(number))
    return list(fleet.updates(0, UPDATES))


def test_of_a_process_that_is_killed_again_and_again_nothing_acknowledged_is_lost_or_doubled(tmp_path):
    database = SqlDatabase.in_folder(tmp_path)
    updates = {update.update_id: update for update in prepare(database)}
    database.close()
    acknowledged, rng = set(), random.Random(3)
    for life in range(4):
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(tmp_path), str(life), str(UPDATES)], stdout=subprocess.PIPE,
            env={**environment(), "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        assert victim.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.01, 0.12))
        victim.kill()
        told = victim.communicate()[0].decode()
        acknowledged |= {line for line in told.split("\n")[:-1] if len(line) == 32}
    assert acknowledged
    with closing(sqlite3.connect(tmp_path / "aggregator.db")) as connection:
        rows = connection.execute(
            "SELECT update_id, data FROM updates JOIN sealed_updates USING (id) WHERE state = 'received'"
        ).fetchall()
        assert connection.execute("SELECT count(*) FROM updates").fetchone()[0] == len(rows)
        assert connection.execute("SELECT count(*) FROM sealed_updates").fetchone()[0] == len(rows)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert len({name for name, _ in rows}) == len(rows)
    assert acknowledged <= {name for name, data in rows if data == updates[name].sealed}


def test_a_value_that_the_database_cannot_hold_is_no_failure_of_storage(cluster, tmp_path, monkeypatch):
    """Were it one, the group that brought it would be given again for ever, and nothing after it stored."""
    aggregator = Aggregator(tmp_path / "d", database_url=cluster.new_database()).found()
    phone = phones(aggregator, 1)[0]
    update, report = phone.update(phone.lease()), phone.report_message()

    def take(records, messages, now):
        take_messages(records, messages, now)
        if report in messages:
            records.add_event(now, "k" * 41, "", "longer than its column")

    monkeypatch.setattr(service, "take_messages", take)
    aggregator.take(report, *update)
    assert aggregator.update_row(update_id_of(update)).state == "received"
    assert aggregator.events() == {"message dropped": 1}
    aggregator.database.close()


def test_of_a_postgresql_server_that_is_killed_nothing_acknowledged_is_lost_or_doubled(tmp_path):
    programs = find_programs()
    if programs is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is missing: apt-get install postgresql")
        pytest.skip("PostgreSQL is missing: apt-get install postgresql")
    cluster = Cluster(programs, durable=True)
    try:
        database = SqlDatabase(cluster.new_database())
        updates = prepare(database)
        acknowledged, failures, rng = set(), 0, random.Random(5)
        for start in range(0, UPDATES, 20):
            group = updates[start : start + 20] + rng.sample(updates[: start + 20], 10)
            try:
                with database.transaction() as records:
                    take_messages(records, [message for update in group for message in update.messages], NOW)
                    if start in (40, 120):
                        # The server goes before the commit.
                        cluster.kill()
            except StorageFailed:
                failures += 1
                with database.reading() as records:
                    there = records.updates_of([update.update_id for update in updates])
                assert set(there) == acknowledged
                with database.transaction() as records:
                    take_messages(records, [message for update in group for message in update.messages], NOW)
            acknowledged |= {update.update_id for update in group}
            if start == 80:
                # And right after one.
                cluster.kill()
                try:
                    with database.reading() as records:
                        records.populations()
                except StorageFailed:
                    failures += 1
        assert failures >= 3
        with database.reading() as records:
            found = records.updates_of(acknowledged)
            assert len(found) == len(acknowledged) == UPDATES == records.count_updates("received")
            sealed = records.sealed_of([row.id for row in found.values()])
            assert all(hashlib.sha256(sealed[row.id]).hexdigest() == row.sha256 for row in found.values())
        database.close()
    finally:
        cluster.stop()
