"""Scheduled releases: none is lost when a process dies, and the gate stops nothing else."""

import threading

import pytest

from cloud_aggregator.errors import EvaluationFailed, Refused, StorageFailed
from cloud_aggregator.housekeeping import Retention
from cloud_aggregator.ports import Score
from cloud_aggregator.service import Gate
from tests.cloud_aggregator.fleet import NOW, POPULATION, Aggregator, phones

PATIENCE_S = 20.0


class SlowEvaluator:
    """An evaluator of the tests: waits until it is let go on, then every version scores the same."""

    def __init__(self, failure=None):
        self.failure = failure
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.running = self.most = self.calls = 0

    def score(self, version):
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.asked.set()
        assert self.go_on.wait(PATIENCE_S)
        self.running -= 1
        if self.failure is not None:
            raise self.failure
        return Score("top3", 25.0, "words", 100)


def trained(folder, evaluator=None):
    """A service with training version 2, at the moment at which its scheduled release is due."""
    aggregator = Aggregator(folder, gate=Gate(evaluator)).found()
    for phone in phones(aggregator, 4):
        aggregator.take(*phone.update(phone.lease()))
    assert aggregator.turn().applied == 4
    aggregator.clock.value = schedule_of(aggregator).next_due
    return aggregator


def schedule_of(aggregator):
    with aggregator.database.reading() as records:
        return records.schedule(POPULATION)


def turn_until(aggregator, holds):
    """Take turns until one of them tells what is waited for."""
    for _ in range(2000):
        report = aggregator.turn()
        if holds(report):
            return report
        threading.Event().wait(0.01)
    raise AssertionError("nothing was told")


def test_while_the_gate_judges_turns_go_on_and_a_later_one_tells_the_outcome(tmp_path):
    evaluator = SlowEvaluator()
    aggregator = trained(tmp_path / "d", evaluator)
    due = schedule_of(aggregator)
    assert aggregator.turn().released == ()
    assert evaluator.asked.wait(PATIENCE_S)
    phone = phones(aggregator, 1)[0]
    assert phone.lease().base_version == 2
    aggregator.take(*phone.update(phone.replies()[-1]))
    assert aggregator.turn().verdicts == {"accepted": 1}
    assert schedule_of(aggregator) == due
    assert evaluator.calls == 1
    evaluator.go_on.set()
    report = turn_until(aggregator, lambda report: report.released or report.held)
    assert (report.released, report.held) == (((POPULATION, 2),), ())
    assert schedule_of(aggregator).last_run == due.next_due
    assert schedule_of(aggregator).next_due == due.next_due + 7 * 86_400
    assert evaluator.most == 1


def test_a_release_by_hand_is_refused_while_another_is_judged(tmp_path):
    evaluator = SlowEvaluator()
    aggregator = trained(tmp_path / "d", evaluator)
    aggregator.turn()
    assert evaluator.asked.wait(PATIENCE_S)
    with pytest.raises(Refused, match="another release is being judged"):
        aggregator.service.release(POPULATION, aggregator.clock.value)
    evaluator.go_on.set()
    assert turn_until(aggregator, lambda report: report.released).released == ((POPULATION, 2),)


def test_a_service_that_stops_while_the_gate_judges_releases_after_its_restart(tmp_path):
    evaluator = SlowEvaluator(EvaluationFailed("killed"))
    aggregator = trained(tmp_path / "d", evaluator)
    due = schedule_of(aggregator)
    aggregator.turn()
    assert evaluator.asked.wait(PATIENCE_S)
    aggregator.service.close(evaluator.go_on.set)
    with aggregator.database.reading() as records:
        assert [release.cause for release in records.releases(POPULATION)] == ["import"]
    assert schedule_of(aggregator) == due
    aggregator.gate = Gate()
    aggregator.restart()
    assert aggregator.turn().released == ((POPULATION, 2),)
    assert schedule_of(aggregator).next_due > due.next_due


class Dies(BaseException):
    """Stands for the end of the process."""


class DyingDatabase:
    """A database of the tests that ends the process before the commit of a transaction with a release in it."""

    def __init__(self, database):
        self.database, self.reading, self.room_bytes = database, database.reading, database.room_bytes

    def transaction(self):
        return _Dying(self.database)


class _Dying:
    def __init__(self, database):
        self.block = database.transaction()

    def __enter__(self):
        self.records = self.block.__enter__()
        self.before = len(self.records.releases(POPULATION))
        return self.records

    def __exit__(self, *failure):
        if failure[0] is None and len(self.records.releases(POPULATION)) > self.before:
            death = Dies()
            self.block.__exit__(Dies, death, None)
            raise death
        return self.block.__exit__(*failure)


def test_a_process_that_dies_before_the_releases_commit_finds_it_due_again(tmp_path):
    aggregator = trained(tmp_path / "d")
    due = schedule_of(aggregator)
    aggregator.service.database = DyingDatabase(aggregator.database)
    with pytest.raises(Dies):
        aggregator.turn()
    assert schedule_of(aggregator) == due
    assert aggregator.manifest("refresh").version == 1
    aggregator.restart()
    assert aggregator.turn().released == ((POPULATION, 2),)
    assert aggregator.turn(60).released == ()


def test_a_held_release_is_recorded_and_the_schedule_goes_on(tmp_path):
    evaluator = SlowEvaluator(EvaluationFailed("no words"))
    evaluator.go_on.set()
    aggregator = trained(tmp_path / "d", evaluator)
    due = schedule_of(aggregator)
    report = turn_until(aggregator, lambda report: report.held)
    assert report.held == ((POPULATION, "the evaluation failed: no words"),)
    with aggregator.database.reading() as records:
        assert records.releases(POPULATION)[0].outcome == "held"
    assert schedule_of(aggregator).next_due > due.next_due


def test_a_release_that_failed_otherwise_stays_due_and_is_tried_again_after_a_while(tmp_path):
    evaluator = SlowEvaluator(OSError("no memory"))
    evaluator.go_on.set()
    aggregator = trained(tmp_path / "d", evaluator)
    due = schedule_of(aggregator)
    report = turn_until(aggregator, lambda report: report.held)
    assert report.held == ((POPULATION, "no memory; trying again in 300 s"),)
    assert schedule_of(aggregator) == due
    aggregator.turn(299)
    assert evaluator.calls == 1
    evaluator.failure = None
    aggregator.clock.value += 1
    assert turn_until(aggregator, lambda report: report.released).released == ((POPULATION, 2),)


class UndeletableBlobs:
    """Blobs of the tests that cannot be deleted."""

    def __init__(self, blobs):
        self.put, self.get, self.path = blobs.put, blobs.get, blobs.path

    def drop(self, sha256):
        raise StorageFailed(f"{sha256}: cannot be deleted")


def test_files_that_cannot_be_deleted_are_told_and_stop_neither_turn_nor_release(tmp_path):
    aggregator = Aggregator(tmp_path / "d", retention=Retention(versions=1)).found(goal_count=1, minimum_updates=1)
    (phone,) = phones(aggregator, 1)
    for _ in range(2):
        aggregator.take(*phone.update(phone.lease()))
        aggregator.turn()
        phone.rest()
    aggregator.service.blobs = UndeletableBlobs(aggregator.blobs)
    aggregator.clock.value = schedule_of(aggregator).next_due
    report = aggregator.turn()
    assert report.released == ((POPULATION, 3),)
    assert len(report.troubles) == 1
    assert "cannot be deleted" in report.troubles[0]
    aggregator.service.blobs = aggregator.blobs
    aggregator.turn(3600)
    with aggregator.database.reading() as records:
        gone = [version.sha256 for version in records.versions(POPULATION) if version.version == 2]
    assert not (aggregator.folder / "blobs" / gone[0]).exists()
    assert aggregator.clock.value > NOW
