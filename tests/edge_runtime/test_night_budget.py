"""What a night has used: counted by the clock that never jumps, and durable."""

import sqlite3

import pytest

from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Policy, Usage
from edge_runtime.night_budget import NightBudget
from edge_runtime.ports import StorageFailed

NIGHT = 1_800_057_600.0 + 3600.0
POLICY = Policy(night_start=0, night_end=0)
DAY = 86_400.0


class Counted:
    """A budget over a store in a folder, with an elapsed clock that the test moves."""

    def __init__(self, folder):
        self.elapsed = 500.0
        self.store = StateStore(folder / "state.db")
        self.budget = NightBudget(self.store, POLICY, lambda: self.elapsed)


@pytest.fixture
def counted(tmp_path):
    opened = Counted(tmp_path)
    yield opened
    opened.store.close()


def test_a_training_counts_from_its_first_second_by_the_elapsed_clock(counted):
    counted.budget.begin_training(NIGHT)
    counted.elapsed += 40.0
    assert counted.budget.usage(NIGHT + 40.0).training_s == 40.0
    counted.elapsed += 20.0
    assert counted.budget.usage(NIGHT + 3000.0).training_s == 60.0, "a wall clock that jumps uses up no budget"
    counted.elapsed += 5.0
    assert counted.budget.usage(NIGHT + 10.0).training_s == 65.0, "and gives none back"
    counted.budget.end_training(NIGHT + 65.0)
    counted.elapsed += 100.0
    assert counted.budget.usage(NIGHT + 165.0).training_s == 65.0


def test_every_kind_of_use_is_there_after_a_restart(counted, tmp_path):
    counted.budget.begin_training(NIGHT)
    counted.budget.add(NIGHT, Usage(starts=1))
    counted.elapsed += 30.0
    counted.budget.add(NIGHT, Usage(cpu_s=25.0, written_bytes=4096))
    counted.budget.add_sent(NIGHT, 900)
    counted.budget.record(NIGHT + 30.0)
    again = Counted(tmp_path)
    assert again.budget.usage(NIGHT + 60.0) == Usage(30.0, 900, 25.0, 4096, 1)
    again.store.close()


def test_what_could_not_be_written_counts_all_the_same_and_is_written_with_the_next(counted, tmp_path):
    counted.budget.add(NIGHT, Usage(cpu_s=7.0))
    with pytest.raises(StorageFailed, match="locked"), counted.store.transaction() as connection:
        counted.budget.write(connection, NIGHT)
        raise sqlite3.OperationalError("database is locked")
    assert counted.store.usage("2027-01-15") == Usage(), "nothing half-written"
    counted.budget.record(NIGHT)
    counted.budget.record(NIGHT)
    assert counted.budget.usage(NIGHT).cpu_s == 7.0
    again = Counted(tmp_path)
    assert again.budget.usage(NIGHT).cpu_s == 7.0
    again.store.close()


def test_a_new_night_begins_with_nothing_used_and_a_second_belongs_to_the_night_in_which_it_was_counted(counted):
    end = NIGHT - NIGHT % DAY + DAY
    counted.budget.begin_training(end - 10.0)
    counted.elapsed += 10.0
    assert counted.budget.usage(end - 1.0).training_s == 10.0
    counted.elapsed += 4.0
    assert counted.budget.usage(end + 3.0).training_s == 0.0
    counted.elapsed += 5.0
    assert counted.budget.usage(end + 8.0).training_s == 5.0
    assert counted.budget.usage(end - 1.0).training_s == 14.0
