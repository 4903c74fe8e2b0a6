"""The loop of turns: whatever a turn raises, the next one comes."""

import threading

import pytest

from cloud_aggregator.errors import StorageFailed
from cloud_aggregator.serving import take_turns
from cloud_aggregator.turn_report import TurnReport
from tests.cloud_aggregator.fleet import SetClock


class FailingTurns:
    """A service of the tests: its first turn fails, its second ends the loop."""

    def __init__(self, failure, stop):
        self.failure, self.stop, self.turns, self.clock = failure, stop, 0, SetClock()

    def turn(self, now):
        self.turns += 1
        if self.turns == 1:
            raise self.failure
        self.stop.set()
        return TurnReport(steps=(("toy", 2),), held=(("toy", "worse"),), troubles=("a file stays",))


class NoBroker:
    """A broker of the tests that is not ours to watch."""

    def revive(self):
        pass


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (StorageFailed("disk full"), "this turn failed and is tried again: disk full"),
        (ValueError("a value"), "this turn failed and is tried again: ValueError: a value"),
        (ZeroDivisionError(), "this turn failed and is tried again: ZeroDivisionError: "),
    ],
)
def test_a_turn_that_fails_is_told_and_the_next_one_is_taken(failure, told):
    stop, wake, lines = threading.Event(), threading.Event(), []
    wake.set()
    service = FailingTurns(failure, stop)
    take_turns(service, NoBroker(), stop, wake, lines.append)
    assert service.turns == 2
    assert lines == [told, "toy: training version 2", "toy: release held: worse", "a file stays"]
