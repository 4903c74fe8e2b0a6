"""Checkpointed sums: a restart folds only what came after them, and has bitwise the same buffer."""

import dataclasses

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloud_aggregator import population as populations
from cloud_aggregator.adapters import schema
from cloud_aggregator.errors import StorageFailed
from cloud_aggregator.partial_sums import Member, members_hash, pack, unpack_members, unpack_sums
from tests.cloud_aggregator.fleet import POPULATION, SIZE, Aggregator, phones, run_step

BIG = (1 << 63) - 1


@given(
    arrays(np.int64, st.integers(0, 70), elements=st.integers(-BIG - 1, BIG)),
    st.sets(st.integers(1, BIG - 1), max_size=40),
)
def test_sums_and_members_come_back_bit_for_bit(sums, ids):
    members = [Member(number, "ab" * 32, 0.5) for number in ids]
    stored = pack("p", 3, members, sums)
    assert unpack_members(stored) == sorted(ids)
    assert np.array_equal(unpack_sums(stored, len(sums)), sums)
    assert (stored.count, stored.high_water) == (len(ids), max(ids, default=0))


@given(st.permutations([Member(n, f"{n:02x}" * 32, n / 8) for n in range(1, 8)]))
def test_the_members_hash_knows_no_order(members):
    assert members_hash(members) == members_hash(sorted(members, key=lambda each: each.id))


@pytest.mark.parametrize("changed", [{"id": 9}, {"sha256": "cd" * 32}, {"weight": 0.25}])
def test_the_members_hash_binds_ids_hashes_and_weights(changed):
    member = Member(1, "ab" * 32, 0.5)
    assert members_hash([member]) != members_hash([dataclasses.replace(member, **changed)])


STORED = pack("p", 1, [Member(2, "ab" * 32, 1.0), Member(5, "ab" * 32, 1.0)], np.arange(9, dtype=np.int64))


@pytest.mark.parametrize(
    "changed",
    [
        {"sums": STORED.sums[:-1]},
        {"sums": b""},
        {"sums": STORED.members},
        {"sums_sha256": "00" * 32},
        {"members": b"\x28\xb5\x2f\xfd"},
        {"count": 3},
        {"count": -1},
        {"count": 1 << 21},
    ],
)
def test_a_damaged_row_is_refused(changed):
    damaged = dataclasses.replace(STORED, **changed)
    with pytest.raises(StorageFailed):
        unpack_sums(damaged, 9)
        unpack_members(damaged)


def accept(aggregator, fleet):
    """Let every phone's update be judged in a turn of its own."""
    for phone in fleet:
        aggregator.take(*phone.update(phone.lease()))
        aggregator.turn()


def buffer_of(aggregator):
    """The open round as the running service has it."""
    return aggregator.service._populations[POPULATION].buffer


def checkpoint_of(aggregator):
    with aggregator.database.reading() as records:
        return records.sums(POPULATION, 0)


@pytest.fixture
def open_round(tmp_path, database_url):
    aggregator = Aggregator(tmp_path / "d", database_url=database_url, checkpoint_updates=3).found(goal_count=20)
    accept(aggregator, phones(aggregator, 5))
    yield aggregator
    aggregator.database.close()


def count_folds(monkeypatch):
    folded = []
    fold = populations._vector_of
    monkeypatch.setattr(populations, "_vector_of", lambda *given: folded.append(given[2].id) or fold(*given))
    return folded


def test_a_checkpoint_is_made_every_so_many_folds_and_a_restart_folds_only_later_rows(open_round, monkeypatch):
    before = buffer_of(open_round).value()
    kept = checkpoint_of(open_round)
    assert (kept.count, len(unpack_members(kept))) == (3, 3)
    folded = count_folds(monkeypatch)
    open_round.restart()
    open_round.turn()
    after = buffer_of(open_round)
    assert np.array_equal(after.sums, before.sums)
    assert after.count == before.count == 5
    assert len(folded) == 2
    assert not set(folded) & set(unpack_members(kept))


def test_a_service_that_stops_leaves_nothing_to_fold(open_round, monkeypatch):
    before = buffer_of(open_round).value()
    open_round.service.close()
    folded = count_folds(monkeypatch)
    open_round.restart()
    open_round.turn()
    assert np.array_equal(buffer_of(open_round).sums, before.sums)
    assert folded == []


def test_a_checkpoint_that_does_not_fit_its_rows_is_not_believed(open_round):
    before = buffer_of(open_round).value()
    table = schema.partial_sums
    with open_round.database._engine.begin() as connection:
        sums = np.ones(SIZE, dtype=np.int64)
        lie = pack(POPULATION, 0, [Member(1, "ab" * 32, 1.0)], sums)
        connection.execute(sa.update(table).where(table.c.version == 0).values(dataclasses.asdict(lie)))
    open_round.restart()
    open_round.turn()
    assert np.array_equal(buffer_of(open_round).sums, before.sums)
    assert open_round.events()["damaged checkpoint"] == 1


def test_a_checkpoint_is_in_the_transaction_of_its_verdicts(tmp_path, monkeypatch):
    aggregator = Aggregator(tmp_path / "d", checkpoint_updates=1).found(goal_count=20)
    fleet = phones(aggregator, 2)
    accept(aggregator, fleet[:1])
    offer = fleet[1].lease()
    aggregator.take(*fleet[1].update(offer))
    with aggregator.database.reading() as records:
        kept = type(records).put_sums

    def put_and_die(self, sums):
        kept(self, sums)
        raise StorageFailed("the power went")

    monkeypatch.setattr(type(records), "put_sums", put_and_die)
    with pytest.raises(StorageFailed):
        aggregator.turn()
    monkeypatch.undo()
    assert checkpoint_of(aggregator).count == 1
    with aggregator.database.reading() as records:
        assert records.count_updates("received") == 1
    aggregator.turn()
    assert (checkpoint_of(aggregator).count, buffer_of(aggregator).count) == (2, 2)


def test_a_closed_round_keeps_its_sums_under_its_version_and_begins_anew(tmp_path):
    aggregator = Aggregator(tmp_path / "d", checkpoint_updates=1).found()
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    assert checkpoint_of(aggregator) is None
    with aggregator.database.reading() as records:
        kept = records.sums(POPULATION, 2)
        rows = records.updates_of_version(records.populations()[0].task, 2)
    assert unpack_members(kept) == [row.id for row in rows]
    assert kept.members_sha256 == members_hash(Member(row.id, row.sha256, row.weight) for row in rows)
    assert int(np.abs(unpack_sums(kept, SIZE)).max()) > 0
