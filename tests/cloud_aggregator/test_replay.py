"""A version is made again bit for bit from what is recorded; whatever was changed is named."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from cloud_aggregator import population as populations
from cloud_aggregator.adapters import schema
from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.housekeeping import Retention
from cloud_aggregator.partial_sums import pack
from cloud_aggregator.round_replay import find_version, replay
from tests.cloud_aggregator.fleet import NOW, POPULATION, SIZE, Aggregator, environment, last_json, phones, run_step


def make_versions(aggregator, fleet, count):
    """Run rounds until the training version is `count` + 1."""
    for _ in range(count):
        run_step(aggregator, fleet)
        aggregator.turn(1)
        aggregator.clock.value += 900


@pytest.fixture
def trained(tmp_path, database_url):
    aggregator = Aggregator(tmp_path / "d", database_url=database_url).found()
    make_versions(aggregator, phones(aggregator, 4), 3)
    yield aggregator
    aggregator.database.close()


@pytest.fixture
def local(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    make_versions(aggregator, phones(aggregator, 4), 3)
    return aggregator


def again(aggregator, version, **choices):
    with aggregator.database.reading() as records:
        return replay(records, aggregator.blobs, aggregator.keys, records.populations()[0], version, **choices)


def tamper(aggregator, statement):
    with aggregator.database._engine.begin() as connection:
        assert connection.execute(statement).rowcount == 1


def one_update(aggregator, version):
    with aggregator.database.reading() as records:
        return records.updates_of_version(records.populations()[0].task, version)[1]


def test_every_version_comes_out_identical_and_nothing_is_written(local):
    path = local.folder / "aggregator.db"
    local.database.close()
    before = path.read_bytes()
    found = [again(local, version) for version in (1, 2, 3, 4)]
    assert all(each.identical for each in found)
    assert [each.steps for each in found] == [0, 1, 2, 3]
    assert [each.updates for each in found] == [0, 4, 8, 12]
    local.database.close()
    assert path.read_bytes() == before


def test_a_replay_reads_either_database(trained):
    found = again(trained, 4)
    assert found.identical, found.differs
    assert (found.started_from, found.steps, found.updates) == (1, 3, 12)


def test_a_replay_sets_out_from_the_newest_kept_state(tmp_path, monkeypatch):
    monkeypatch.setattr(populations, "KEEP_STATE_EVERY", 2)
    aggregator = Aggregator(tmp_path / "d").found()
    make_versions(aggregator, phones(aggregator, 4), 5)
    found = again(aggregator, 6)
    assert found.identical, found.differs
    assert (found.started_from, found.steps) == (5, 1)
    # The state of version 5 itself is compared when it is the target.
    assert (again(aggregator, 5).started_from, again(aggregator, 5).steps) == (3, 2)
    with aggregator.database.transaction() as records:
        state = records.kept_state(POPULATION, 5)
        altered = type(state)(state.master, state.m + 1, state.v, state.step)
        records.keep_state(POPULATION, 5, altered)
    assert again(aggregator, 5).differs == "version 5: the optimizer's m is not the one that is kept"


def test_a_changed_byte_of_a_sealed_update_is_named(trained):
    row = one_update(trained, 3)
    with trained.database.reading() as records:
        sealed = bytearray(records.sealed_bytes(row.id))
    sealed[7] ^= 1
    table = schema.sealed_updates
    tamper(trained, sa.update(table).where(table.c.id == row.id).values(data=bytes(sealed)))
    found = again(trained, 4)
    assert not found.identical
    assert found.differs.startswith(f"version 3, update {row.update_id}: its sealed bytes hash to ")
    assert again(trained, 2).identical


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": 0.5}, "version 3: its members hash to"),
        ({"sha256": "ab" * 32}, "version 3: its members hash to"),
        ({"staleness": 2}, "its staleness is 0, 2 is recorded"),
        ({"norm": 0.25}, "its norm is"),
        ({"header": b"no header"}, "version 3: what is recorded cannot be read: a message is a MessagePack map"),
        ({"verdict": "stale"}, "is recorded as stale and used by 3"),
        ({"used_by": 9}, "is recorded as accepted and used by 9"),
        ({"judged_at": NOW + 365 * 86_400}, "accepted is recorded, the verdict is expired"),
    ],
)
def test_a_changed_record_of_an_update_is_named(local, change, told):
    row = one_update(local, 3)
    table = schema.updates
    tamper(local, sa.update(table).where(table.c.id == row.id).values(**change))
    assert told in again(local, 3).differs


def test_an_update_that_was_deleted_or_added_is_named(local):
    table = schema.updates
    row, other = one_update(local, 3), one_update(local, 4)
    tamper(local, sa.update(table).where(table.c.id == other.id).values(used_by=3))
    assert again(local, 3).differs == "version 3: 1 more updates say that it used them"
    tamper(local, sa.delete(table).where(table.c.id == row.id))
    assert again(local, 3).differs == f"version 3: the row {row.id} of one of its updates is missing"


def test_a_damaged_record_of_members_is_named(local):
    sums = schema.partial_sums
    tamper(local, sa.update(sums).where(sums.c.version == 3).values(members=b"\x00"))
    assert again(local, 3).differs.startswith("version 3: the record of its members is damaged:")


def test_recorded_sums_and_files_that_are_not_what_comes_out_are_named(local):
    sums, versions = schema.partial_sums, schema.versions
    tamper(local, sa.update(versions).where(versions.c.version == 4).values(sha256="cd" * 32))
    assert again(local, 4).differs.startswith("version 4: its file hashes to")
    other = pack(POPULATION, 3, [], np.ones(SIZE, dtype=np.int64)).sums
    # Once the updates are gone these are all that there is.
    tamper(local, sa.update(sums).where(sums.c.version == 3).values(sums=other))
    assert again(local, 3).differs.startswith("version 3: the record of its sums is damaged: the stored sums")
    tamper(local, sa.update(sums).where(sums.c.version == 3).values(sums_sha256="ab" * 32))
    assert again(local, 3).differs.startswith("version 3: the sums hash to")


def test_an_undo_is_replayed_as_the_version_whose_weights_it_has(local):
    local.service.release(POPULATION, local.clock.value)
    undone = local.service.undo(POPULATION, local.clock.value).version
    found = again(local, undone)
    assert (found.version, found.identical) == (undone, True)


def test_an_undo_to_a_later_version_is_named(local):
    local.service.release(POPULATION, local.clock.value)
    undone = local.service.undo(POPULATION, local.clock.value).version
    versions = schema.versions
    tamper(local, sa.update(versions).where(versions.c.version == undone).values(weights_of=undone))
    assert again(local, undone).differs == f"version {undone}: it has the weights of version {undone}, which came later"


@pytest.mark.parametrize("column", ["signed_template", "settings"])
def test_a_populations_row_that_cannot_be_read_is_named(local, column):
    with local.database.reading() as records:
        record = records.populations()[0]
        found = replay(records, local.blobs, local.keys, replace(record, **{column: b"{"}), 3)
    assert found.differs.startswith("what is recorded of population toy cannot be read: ")


def test_a_state_to_set_out_from_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(populations, "KEEP_STATE_EVERY", 1)
    aggregator = Aggregator(tmp_path / "d").found()
    make_versions(aggregator, phones(aggregator, 4), 2)
    states = schema.kept_states
    tamper(aggregator, sa.update(states).where(states.c.version == 2).values(m=b"odd"))
    assert again(aggregator, 3).differs.startswith("what is recorded of population toy cannot be read: ")


def test_a_version_that_is_none_is_not_found(local):
    with pytest.raises(NotFound, match="no version 99"):
        again(local, 99)
    with local.database.reading() as records:
        population = records.populations()[0]
        assert [find_version(records, population, name) for name in ("3", "v-0003", "r-0002")] == [3, 3, 3]
        for name in ("r-0099", "x-3", "", "-"):
            with pytest.raises(NotFound):
                find_version(records, population, name)


def test_after_the_days_only_sums_are_left_and_the_replay_says_so(tmp_path):
    aggregator = Aggregator(tmp_path / "d", retention=Retention(updates_days=30)).found()
    make_versions(aggregator, phones(aggregator, 4), 2)
    aggregator.turn(31 * 86_400)
    with pytest.raises(Refused, match="sealed bytes of 4 of 4 updates of version 2 were deleted by age") as refusal:
        again(aggregator, 3)
    assert "--from-sums" in refusal.value.hint
    found = again(aggregator, 3, sums_may_do=True)
    assert (found.identical, found.from_sums, found.updates) == (True, (2, 3), 0)


def test_after_the_refreshes_only_sums_are_left(tmp_path):
    aggregator = Aggregator(tmp_path / "d", retention=Retention(updates_refreshes=2)).found()
    fleet = phones(aggregator, 4)
    for _ in range(4):
        make_versions(aggregator, fleet, 1)
        aggregator.service.release(POPULATION, aggregator.clock.value)
    aggregator.turn(3600)
    with aggregator.database.reading() as records:
        task = records.populations()[0].task
        kept = {
            version: sum(bool(records.sealed_bytes(row.id)) for row in records.updates_of_version(task, version))
            for version in (2, 3, 4, 5)
        }
    # Refreshes 4 and 5 went out after refresh 3.
    assert kept == {2: 0, 3: 0, 4: 4, 5: 4}


def replay_command(aggregator, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "cloud_aggregator.cli", "round", "replay", *arguments, "--data", str(aggregator.folder),
         "--json"],
        capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip
    return done.returncode, last_json(done.stdout or done.stderr)


def test_the_command_says_identical_differs_not_found_or_refused_by_its_exit_code(local):
    exit_code, answer = replay_command(local, "r-0003")
    assert (exit_code, answer["identical"], answer["version"]) == (0, True, 4)
    exit_code, answer = replay_command(local, "77")
    assert (exit_code, answer["error_code"]) == (3, "NOT_FOUND")
    table = schema.sealed_updates
    row = one_update(local, 2)
    tamper(local, sa.update(table).where(table.c.id == row.id).values(data=b"other"))
    exit_code, answer = replay_command(local, "2")
    assert (exit_code, answer["identical"]) == (1, False)
    assert answer["differs"].startswith(f"version 2, update {row.update_id}: its sealed bytes hash")
    tamper(local, sa.delete(table).where(table.c.id == row.id))
    exit_code, answer = replay_command(local, "2")
    assert (exit_code, answer["error_code"]) == (4, "REFUSED")
