import dataclasses
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.eligibility import Policy, Reading, Readings, Usage, decide, in_window, night_of
from tests.edge_runtime.fakes import GOOD

BERLIN = ZoneInfo("Europe/Berlin")
POLICY = Policy(time_zone="Europe/Berlin")


def berlin(*when: int, fold: int = 0) -> float:
    return datetime(*when, tzinfo=BERLIN, fold=fold).timestamp()


NIGHT = berlin(2026, 11, 24, 2, 10)


FRESH = Usage()


def answer(policy=POLICY, usage=FRESH, now=NIGHT, **changes):
    return decide(dataclasses.replace(GOOD, **changes), policy, usage, now)


def test_an_idle_charging_cool_device_on_an_unmetered_link_at_night_may_do_everything():
    decision = answer()
    assert (decision.may_train, decision.may_send, decision.reason) == (True, True, "every condition holds")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"charging": Reading(False)}, "cable"),
        ({"charging": Reading(None)}, "profile"),
        ({"battery": Reading(39.0)}, "40 %"),
        ({"battery": Reading(None)}, "battery sensor"),
        ({"battery": Reading(90.0, age_s=500.0)}, "battery sensor"),
        ({"idle_s": Reading(float("nan"))}, "idle hook"),
        ({"idle_s": Reading(3600.0, age_s=float("nan"))}, "idle hook"),
        ({"idle_s": Reading(3600.0, age_s=-121.0)}, "idle hook"),
        ({"celsius": Reading(float("nan"))}, "thermal sensor"),
        ({"idle_s": Reading(5.0)}, "120 s of rest"),
        ({"idle_s": Reading(None)}, "idle hook"),
        ({"celsius": Reading(70.5)}, "70 C"),
        ({"celsius": Reading(None)}, "thermal sensor"),
    ],
)
def test_what_stops_training_is_named_with_what_would_change_it(changes, word):
    decision = answer(**changes)
    assert not decision.may_train and decision.may_send
    assert word in decision.reason


@pytest.mark.parametrize("metered", [Reading(True), Reading(None)])
def test_a_metered_or_unknown_link_stops_sending_and_not_training(metered):
    decision = answer(metered=metered)
    assert decision.may_train and not decision.may_send
    assert "metered" in decision.reason


def test_a_reading_that_is_too_old_counts_as_unknown():
    assert not answer(idle_s=Reading(3600.0, age_s=121.0)).may_train
    assert answer(idle_s=Reading(3600.0, age_s=119.0)).may_train


def test_a_mains_device_without_a_battery_needs_no_power_sensor_but_obeys_one_that_says_no():
    mains = dataclasses.replace(POLICY, profile="mains")
    assert answer(mains, charging=Reading(None), battery=Reading(None)).may_train
    assert not answer(mains, charging=Reading(False)).may_train
    assert not answer(mains, battery=Reading(10.0)).may_train


def test_where_there_is_no_battery_the_mains_adapter_alone_says_whether_it_charges():
    assert answer(battery=Reading(None), has_battery=False).may_train
    assert not answer(battery=Reading(None), has_battery=False, charging=Reading(None)).may_train
    assert not answer(battery=Reading(None), has_battery=False, charging=Reading(False)).may_train


def test_budgets_end_the_night_separately():
    trained = answer(usage=Usage(training_s=7200.0))
    assert (trained.may_train, trained.may_send) == (False, True)
    sent = answer(usage=Usage(sent_bytes=POLICY.sent_bytes))
    assert (sent.may_train, sent.may_send) == (True, False)


def test_the_window_crosses_midnight_and_its_budget_belongs_to_the_evening_it_began():
    evening, morning = berlin(2026, 11, 23, 23, 0), berlin(2026, 11, 24, 5, 59)
    assert in_window(POLICY, evening) and in_window(POLICY, morning)
    assert not in_window(POLICY, evening - 1) and not in_window(POLICY, morning + 60)
    assert night_of(POLICY, evening) == night_of(POLICY, morning) == "2026-11-23"
    assert night_of(POLICY, berlin(2026, 11, 24, 23, 0)) == "2026-11-24"


def test_the_window_follows_the_wall_clock_over_both_changes_of_summer_time():
    # 2026-03-29 02:00 -> 03:00: a night of six hours; 2026-10-25 03:00 -> 02:00: one of eight.
    for start, hours in ((berlin(2026, 3, 28, 23), 6), (berlin(2026, 10, 24, 23), 8)):
        inside = [in_window(POLICY, start + 600 * i) for i in range(6 * 12)]
        assert inside == [i < 6 * hours for i in range(6 * 12)]


def test_a_window_inside_one_day_and_an_open_one():
    noon = Policy(night_start=12 * 60, night_end=13 * 60)
    assert in_window(noon, 1_800_057_600 + 12.5 * 3600) and not in_window(noon, 1_800_057_600 + 13 * 3600)
    assert in_window(Policy(night_start=0, night_end=0), 1_800_057_600 + 15 * 3600)


def maybe(strategy):
    return st.builds(Reading, st.none() | strategy, st.floats(-500, 500) | st.just(float("nan")))


READINGS = st.builds(
    Readings,
    charging=maybe(st.booleans()),
    battery=maybe(st.floats(0, 100) | st.just(float("nan"))),
    celsius=maybe(st.floats(-40, 120) | st.just(float("nan"))),
    idle_s=maybe(st.floats(0, 1e6) | st.just(float("nan"))),
    metered=maybe(st.booleans()),
    has_battery=st.booleans(),
)


@given(READINGS, st.floats(1.7e9, 1.9e9))
def test_whatever_the_sensors_say_no_unknown_lets_a_battery_device_train(readings, now):
    decision = decide(readings, POLICY, Usage(), now)
    fresh = {
        name: getattr(readings, name).value if abs(getattr(readings, name).age_s) <= 120 else None
        for name in ("charging", "battery", "celsius", "idle_s", "metered")
    }
    if decision.may_train:
        assert fresh["charging"] is True and fresh["idle_s"] >= 120 and fresh["celsius"] <= 70
        low = fresh["battery"] is not None and fresh["battery"] < 40
        known = fresh["battery"] is not None and fresh["battery"] >= 40
        assert known or (not readings.has_battery and not low)
    if decision.may_send:
        assert fresh["metered"] is False
    assert (decision.reason == "every condition holds") == (decision.may_train and decision.may_send)
