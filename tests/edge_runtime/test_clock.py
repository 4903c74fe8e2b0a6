"""The device's clocks: what is believed, what time it is meanwhile, and what a restart remembers."""

import math
import os
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adapters.clock import AGREES_S, WRITE_EVERY_S, NetworkTime, SystemClock

TRUE = 1_800_000_000.0


class Board:
    """A board whose time is played: `true` passes, its wall clock is `offset` away from it."""

    def __init__(self, offset=0.0, network=False):
        self.passed, self.offset, self.network, self.questions = 0.0, offset, network, 0

    def clock(self, floor=None, **settings):
        return SystemClock(
            floor, wall=lambda: TRUE + self.passed + self.offset, elapsed=lambda: 50.0 + self.passed,
            synchronized=self._asked, **settings,
        )  # fmt: skip

    def _asked(self):
        self.questions += 1
        return self.network


def test_a_clock_is_believed_when_network_time_has_set_it_and_asked_about_once_a_minute_until_then():
    board = Board()
    clock = board.clock()
    assert not clock.trusted() and not clock.trusted() and board.questions == 1
    board.network = True
    board.passed = 59.0
    assert not clock.trusted()
    board.passed = 60.0
    assert clock.trusted() and clock.now() == TRUE + 60.0
    board.passed = 4000.0
    assert clock.trusted() and board.questions == 2


def test_the_owners_word_is_enough():
    board = Board()
    assert board.clock(trust_rtc=True).trusted() and not board.clock().trusted()


@pytest.mark.parametrize("offset", [-TRUE, -7200.0, 7200.0, 4e8])
def test_an_answer_says_what_time_it_is_and_time_goes_on_from_it_whatever_the_wall_clock_says(offset):
    board = Board(offset)
    clock = board.clock()
    clock.prove(TRUE - 1.0, fresh=True)
    board.passed = 3600.0
    assert clock.trusted() and clock.now() == TRUE + 3599.0
    board.offset, board.network = 0.0, True
    board.passed = 3700.0
    assert clock.now() == TRUE + 3700.0, "network time counts before the answer"


def test_a_message_that_waited_somewhere_says_at_least_and_is_not_believed_to_be_now():
    board = Board(-TRUE)
    clock = board.clock()
    clock.prove(TRUE - 86_400.0, fresh=False)
    board.passed = 10.0
    assert not clock.trusted() and clock.now() == TRUE - 86_390.0


@pytest.mark.parametrize("server_time", [0.0, -5.0, 1e300, float("nan"), float("inf")])
def test_what_is_no_time_proves_nothing(server_time):
    board = Board()
    clock = board.clock()
    clock.prove(server_time, fresh=True)
    assert not clock.trusted() and clock.now() == TRUE


def test_after_a_restart_time_does_not_lie_below_what_was_seen_and_is_not_believed_for_that(tmp_path):
    floor = tmp_path / "clock_floor"
    Board(network=True).clock(floor).now()
    assert floor.read_text() == f"{TRUE:.0f}\n"
    board = Board(-TRUE)
    clock = board.clock(floor)
    board.passed = 30.0
    assert clock.now() == TRUE + 30.0, "time goes on, so that what waits for a time comes to it"
    assert not clock.trusted() and not clock.contradicted


def test_the_floor_is_written_once_an_hour_and_only_while_the_clock_is_believed(tmp_path):
    floor, board = tmp_path / "clock_floor", Board(network=True)
    clock = board.clock(floor)
    for board.passed in (0.0, 1.0, WRITE_EVERY_S - 1.0):
        clock.now()
    assert float(floor.read_text()) == TRUE
    board.passed = WRITE_EVERY_S
    clock.now()
    assert float(floor.read_text()) == TRUE + WRITE_EVERY_S
    other = tmp_path / "other"
    Board(4e8).clock(other).now()
    board.clock(other, writes=False).now()
    assert not other.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clock_floor"], "no litter"


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-3", "9" * 400, "\xff"])
def test_a_floor_that_is_no_time_is_none(tmp_path, text):
    (tmp_path / "clock_floor").write_text(text, encoding="latin-1")
    assert Board().clock(tmp_path / "clock_floor").now() == TRUE


def test_a_floor_that_cannot_be_written_does_not_stop_the_clock(tmp_path):
    (tmp_path / "home").write_text("not a folder")
    clock = Board(network=True).clock(tmp_path / "home" / "clock_floor")
    assert clock.now() == TRUE and "home" in clock.floor_error
    assert (tmp_path / "home").read_text() == "not a folder"


def test_two_believed_clocks_that_contradict_each_other_are_neither_believed(tmp_path):
    floor = tmp_path / "clock_floor"
    floor.write_text(f"{TRUE + 4e8:.0f}\n")
    board = Board(network=True)
    clock = board.clock(floor)
    assert not clock.trusted() and clock.contradicted and clock.now() == TRUE + 4e8
    assert float(floor.read_text()) == TRUE + 4e8
    floor.unlink()
    clock = board.clock(floor)
    assert clock.trusted() and not clock.contradicted and clock.now() == TRUE


def test_a_believed_clock_that_is_set_back_a_little_stands_still_and_by_more_is_not_believed(tmp_path):
    board = Board(network=True)
    clock = board.clock()
    assert clock.now() == TRUE
    board.offset = -AGREES_S / 2
    assert clock.now() == TRUE and clock.trusted()
    board.offset = -AGREES_S - 1.0
    assert clock.now() >= TRUE and not clock.trusted()
    board.passed = AGREES_S
    assert clock.trusted()


def test_the_real_clocks_move_on(tmp_path):
    clock = SystemClock(tmp_path / "clock_floor", synchronized=NetworkTime(tmp_path))
    first = (clock.now(), clock.elapsed())
    second = (clock.now(), clock.elapsed())
    assert second[0] >= first[0] > 1.7e9 and second[1] >= first[1] > 0.0
    assert not clock.trusted()


STEP = st.one_of(
    st.tuples(st.just("pass"), st.floats(0, 5000)),
    st.tuples(st.just("jump"), st.floats(-1e5, 1e5)),
    st.tuples(st.just("prove"), st.floats(-1e5, 1e5)),
    st.tuples(st.just("hear"), st.floats(-1e5, 0)),
    st.tuples(st.just("network"), st.just(0.0)),
)


@given(st.lists(STEP, max_size=30))
def test_time_never_goes_back_while_it_is_believed_and_never_below_what_was_proved(steps):
    board = Board(1000.0)
    clock = board.clock()
    believed, proved = 0.0, 0.0
    for what, value in steps:
        match what:
            case "pass":
                board.passed += value
            case "jump":
                board.offset = value
            case "network":
                board.network = True
            case "prove" | "hear":
                server = TRUE + board.passed + value
                clock.prove(server, fresh=what == "prove")
                proved = max(proved, server)
        now = clock.now()
        assert now >= proved
        if clock.trusted():
            assert now >= believed
            believed = now


def test_a_time_that_no_calendar_can_read_proves_nothing(tmp_path):
    clock = SystemClock(tmp_path / "floor", wall=lambda: 100.0, elapsed=lambda: 5.0, synchronized=lambda: False)
    for later in (float(1 << 40), 253_402_300_799.0, math.inf, math.nan, -1.0):
        clock.prove(later, fresh=True)
    assert not clock.trusted() and clock.now() == 100.0
    clock.prove(253_370_764_800.0, fresh=True)
    assert datetime.fromtimestamp(clock.now() + 86_400, ZoneInfo("Pacific/Kiritimati")).year == 9999


@pytest.mark.parametrize("offset", [-TRUE + 100.0, -7200.0, 0.0, 4e8])
def test_a_command_beside_the_agent_believes_what_was_proved_to_the_agent_since_the_device_started(tmp_path, offset):
    board, floor = Board(offset), tmp_path / "clock_floor"
    agents = board.clock(floor)
    assert not board.clock(floor, writes=False).trusted()
    board.passed = 30.0
    agents.prove(TRUE + 30.0, fresh=True)
    assert agents.now() == TRUE + 30.0
    os.utime(floor, 2 * (TRUE + offset + 30.0,))
    board.passed = 5000.0
    beside = board.clock(floor, writes=False)
    assert beside.trusted() and beside.now() == agents.now() == TRUE + 5000.0
    assert not board.clock(floor).trusted(), "an agent that starts anew asks for itself"


def test_a_floor_from_before_the_device_started_or_from_a_later_date_proves_nothing_to_who_looks(tmp_path):
    board, floor = Board(), tmp_path / "clock_floor"
    floor.write_text(f"{TRUE - 100.0}\n")
    for written in (TRUE - 60.0, TRUE + 60.0):
        os.utime(floor, 2 * (written,))
        assert not board.clock(floor, writes=False).trusted()
