"""The benchmark of nights can fail: its oracle catches who breaks the policy, and passes who does not."""

from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import night_oracle, night_worlds
from benchmarks.night_oracle import Truth
from benchmarks.nights import POLL_S, REST_S, Device, try_night
from edge_runtime.eligibility import Policy, in_window

HOURS = 4 * 3600
TERMS = asdict(Policy())


def truth(**changes):
    """A night of four hours in which all is well from its first second."""

    def full(value):
        return np.full(HOURS, value)

    fields = {
        "charging": full(1.0), "battery": full(90.0), "celsius": full(40.0), "idle_s": full(900.0),
        "idle_age_s": full(1.0), "load": full(0.0), "metered": full(0.0), "believed": np.ones(HOURS, bool),
    }  # fmt: skip
    for name, (begin, end, value) in changes.items():
        fields[name][begin:end] = value
    return Truth(1_800_000_000, **fields)


ALL_OPEN = np.ones(HOURS, bool)
NOTHING_SENT = np.zeros(HOURS, bool)


def verdict(world, trained, open_=ALL_OPEN, sent=NOTHING_SENT):
    return night_oracle.judge(world, TERMS, open_, trained, sent, poll_s=10.0, rest_s=30.0)


def sessions(world, open_=ALL_OPEN, **terms):
    return night_oracle.sessions(world, {**TERMS, **terms}, open_, 1.0, 1.0)


def test_the_oracle_trains_for_two_hours_after_two_minutes_and_no_longer():
    assert sessions(truth()) == [(120, 120 + 7200)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"charging": (1000, 1001, 0.0)}, [(120, 1000), (1600, 1600 + 7200 - 880)]),
        ({"charging": (1000, 1700, np.nan)}, [(120, 1000), (1820, 1820 + 7200 - 880)]),
        ({"celsius": (1000, 2000, 75.0)}, [(120, 7320)]),
        ({"celsius": (0, 2000, 75.0)}, [(2120, 9320)]),
        ({"celsius": (1000, 2000, 81.0)}, [(120, 1000), (2120, 2120 + 7200 - 880)]),
        ({"load": (1000, 1009, 90.0)}, [(120, 7320)]),
        ({"load": (1000, 1100, 90.0)}, [(120, 1010), (1610, 1610 + 7200 - 890)]),
        ({"believed": (0, 5000, False)}, [(5120, 5120 + 7200)]),
    ],
)
def test_the_oracle_reads_the_policy_as_its_page_says(changes, expected):
    assert sessions(truth(**changes)) == expected


def test_the_oracle_starts_no_third_time_and_not_in_the_last_quarter_of_an_hour():
    assert sessions(truth(), open_=np.arange(HOURS) < 1019) == []
    assert sessions(truth(), open_=np.arange(HOURS) < 1020) == [(120, 1020)]
    world = truth()
    world.charging[[500, 2000, 4000]] = 0.0
    assert sessions(world) == [(120, 500), (1100, 2000)]


def test_the_judge_catches_a_device_that_trains_against_a_condition_for_longer_than_a_look():
    unplugged = truth(charging=(2000, 2011, 0.0))
    assert verdict(unplugged, [(150.0, 3000.0)]).trained_against == 11
    assert verdict(unplugged, [(150.0, 2010.0)]).trained_against == 0
    assert verdict(truth(), [(150.0, 3000.0)], open_=np.arange(HOURS) < 2500).trained_against == 500


def test_the_judge_catches_a_start_out_of_turn():
    assert verdict(truth(), [(150.0, 3000.0)]).bad_starts == 0
    assert verdict(truth(), [(60.0, 3000.0)]).bad_starts == 1, "before two minutes were over"
    assert verdict(truth(charging=(1000, 1050, 0.0)), [(1090.0, 3000.0)]).bad_starts == 1, "too soon after a flap"
    assert verdict(truth(), [(150.0, 3000.0), (3500.0, 4000.0)]).bad_starts == 1, "within the cool-down"
    assert verdict(truth(), [(150.0, 300.0), (1000.0, 1100.0), (2000.0, 2100.0)]).bad_starts == 1, "a third time"
    assert verdict(truth(), [(150.0, 300.0)], open_=np.arange(HOURS) < 700).bad_starts == 1, "with little night left"


def test_the_judge_catches_a_device_that_sends_over_a_metered_link():
    sent = np.ones(HOURS, bool)
    assert verdict(truth(metered=(100, 200, 1.0)), [], sent=sent).sent_metered == 100
    assert verdict(truth(metered=(100, 150, 1.0)), [], sent=sent).sent_metered == 0


def test_the_c_library_and_the_policy_see_the_same_windows():
    for number in range(0, 400, 3):
        night = night_worlds.make(number, seed=1)
        policy = night.policy
        open_ = night_oracle.window(night.truth, night.zone, policy.night_start, policy.night_end)
        seconds = range(0, night.truth.seconds, 97)
        assert [bool(open_[s]) for s in seconds] == [in_window(policy, night.truth.began + s) for s in seconds]


def test_a_hundred_nights_pass_and_the_same_nights_catch_a_device_that_is_blind():
    honest = sum((try_night(number * 17, 3)[1] for number in range(100)), Counter())
    assert (honest["violations"], honest["sent_metered_s"]) == (0, 0)
    assert honest["both_s"] >= 0.95 * honest["allowed_s"] > 0
    caught = 0
    for number in range(100):
        night = night_worlds.make(number * 17, 3)
        blind = Device(night)
        calm = np.ones(night.truth.seconds)
        blind._night = replace(night, truth=replace(night.truth, charging=calm))
        blind.live()
        open_ = night_oracle.window(night.truth, night.zone, night.policy.night_start, night.policy.night_end)
        caught += bool(
            night_oracle.judge(
                night.truth, asdict(night.policy), open_, blind.trained, blind.sent, poll_s=POLL_S, rest_s=REST_S
            ).trained_against
        )
    assert caught >= 5
