import dataclasses
import tomllib
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import night_window
from edge_runtime.eligibility import Moment, Policy, Reading, Standing, Usage, decide, in_window, night_of
from edge_runtime.explanation import explain, next_window, owners_words
from tests.edge_runtime.fakes import GOOD
from tests.edge_runtime.test_eligibility import NIGHT, POLICY, READINGS

SETTLED = Standing(looked_at=990.0, good_since=0.0)


def told(policy=POLICY, usage=None, now=NIGHT, trusted=True, training=False, **changes):
    readings = dataclasses.replace(GOOD, **changes)
    moment = Moment(now, 1000.0, trusted)
    return explain(SETTLED, readings, policy, usage or Usage(), moment, training=training)


def at(zone, *when, fold=0):
    return datetime(*when, tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def test_what_stops_it_and_what_would_change_that_are_one_sentence_each():
    explanation = told(charging=Reading(False), idle_s=Reading(5.0))
    assert explanation.stops == "It does not train because it is not charging, and somebody used it 5 s ago."
    assert explanation.would_change == "It trains when the cable is in; it trains after 120 s of rest."
    assert explanation.next_window.sentence == (
        "The window is open until 2026-11-24 06:00 (Europe/Berlin), 3 h 50 min more; the next one opens on"
        " 2026-11-24 23:00 (Europe/Berlin)."
    )


def test_where_nothing_stops_it_that_is_what_is_said():
    assert (
        told().stops == "Nothing stops training: it may start now." and told().would_change == "Nothing has to change."
    )
    assert told(training=True).stops == "Nothing stops training: it trains now."
    assert told(training=True, metered=Reading(None)).stops == (
        "Nothing stops training: it trains now, but sends nothing, since whether the link is metered is unknown."
    )


def test_a_device_that_may_neither_train_nor_send_is_told_about_both_and_which_words_of_its_owner_would_change_it():
    explanation = told(
        charging=Reading(None), celsius=Reading(None), battery_celsius=Reading(None), metered=Reading(None)
    )
    assert explanation.stops == (
        "It does not train because whether it charges is unknown, and its temperature is unknown."
        " It sends nothing either, since whether the link is metered is unknown."
    )
    assert explanation.settings == ('profile = "mains"', 'heat = "if_known"', 'link = "if_known"')
    assert told(charging=Reading(False), celsius=Reading(95.0)).settings == (), "no word makes a hot board cool"


@given(
    st.sampled_from([None, True, False]), st.sampled_from([None, 30.0, 99.0]), st.sampled_from([None, 5.0, 900.0]),
    st.sampled_from([None, True, False]), st.booleans(),
)  # fmt: skip
def test_whoever_writes_the_offered_lines_down_is_offered_none_after_that(charging, heat, idle, metered, trusted):
    readings = {"charging": Reading(charging), "celsius": Reading(heat), "battery_celsius": Reading(None),
                "idle_s": Reading(idle), "metered": Reading(metered)}  # fmt: skip
    offered = told(trusted=trusted, **readings)
    written = tomllib.loads(owners_words(offered.settings))
    trusts = trusted or written.pop("clock", "ntp") == "rtc"
    after = told(dataclasses.replace(POLICY, **written), trusted=trusts, **readings)
    assert after.settings == () and not any(stop.code.endswith("_unknown") for stop in after.decision.stops)


def test_a_running_training_is_stopped_by_what_is_said():
    assert told(training=True, celsius=Reading(85.0)).stops == "Its training is stopped because it is 85 C warm."


def test_by_day_the_next_window_is_tonight_and_an_always_open_one_never_opens():
    noon = at("Europe/Berlin", 2026, 11, 24, 12)
    window = told(now=noon).next_window
    assert window.opens_at == at("Europe/Berlin", 2026, 11, 24, 23) and window.closes_at is None
    assert window.sentence == "The next window opens on 2026-11-24 23:00 (Europe/Berlin), in 11 h."
    always = dataclasses.replace(POLICY, night_start=0, night_end=0)
    assert told(always, now=noon).next_window.opens_at is None
    assert "always open" in told(always, now=noon).next_window.sentence


def test_without_a_clock_that_can_be_believed_no_time_is_promised():
    window = told(trusted=False).next_window
    assert window.opens_at is None and "as soon as the clock can be believed" in window.sentence


@pytest.mark.parametrize(
    ("zone", "start", "end", "now", "opens"),
    [
        # The hour that summer time skips never opens: the next night's does.
        ("Europe/Berlin", 120, 180, (2026, 3, 29, 0, 0), (2026, 3, 30, 2, 0)),
        # The hour that winter time repeats opens twice.
        ("Europe/Berlin", 120, 150, (2026, 10, 25, 2, 40), (2026, 10, 25, 2, 0, 1)),
        # Lord Howe moves by half an hour: 02:00 to 02:30.
        ("Australia/Lord_Howe", 125, 300, (2026, 10, 4, 1, 59), (2026, 10, 4, 2, 30)),
        # Apia went from 29 to 31 December 2011.
        ("Pacific/Apia", 720, 780, (2011, 12, 29, 13, 0), (2011, 12, 31, 12, 0)),
        ("Asia/Kathmandu", 0, 60, (2026, 5, 1, 12, 0), (2026, 5, 2, 0, 0)),
    ],
)
def test_the_next_window_opens_by_the_local_clock_over_every_change_of_it(zone, start, end, now, opens):
    policy = Policy(time_zone=zone, night_start=start, night_end=end)
    moment = Moment(at(zone, *now), 1000.0)
    fold = opens[5] if len(opens) > 5 else 0
    assert next_window(policy, moment).opens_at == at(zone, *opens[:5], fold=fold)


def test_a_night_over_a_day_that_never_was_is_one_night_with_one_budget():
    policy = Policy(time_zone="Pacific/Apia")
    evening, morning = at("Pacific/Apia", 2011, 12, 29, 23, 30), at("Pacific/Apia", 2011, 12, 31, 0, 30)
    assert morning - evening == 3600.0
    assert night_of(policy, evening) == night_of(policy, morning) == "2011-12-29"


def test_the_night_after_a_short_day_is_not_the_night_before_it():
    policy = Policy(time_zone="Europe/Berlin")
    assert night_of(policy, at("Europe/Berlin", 2026, 3, 30, 0, 30)) == "2026-03-29"
    assert night_of(policy, at("Europe/Berlin", 2026, 10, 25, 5, 0)) == "2026-10-24"


ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "Australia/Lord_Howe",
        "America/Havana",
        "Africa/Casablanca",
        "Asia/Kolkata",
        "Antarctica/Troll",
    ]
)
MINUTES = st.integers(0, 1439)


@given(ZONES, MINUTES, MINUTES, st.integers(1_300_000_000, 2_000_000_000))
def test_the_windows_next_edges_are_the_first_minutes_in_which_it_changes(zone, start, end, now):
    policy = Policy(time_zone=zone, night_start=start, night_end=end)
    opens = night_window.next_opening(zone, start, end, now)
    closes = night_window.next_closing(zone, start, end, now)
    for edge, state in ((opens, True), (closes, False)):
        if edge is not None:
            assert edge > now and in_window(policy, edge) is state and in_window(policy, edge - 1) is not state
    if opens is not None and not in_window(policy, now):
        assert not in_window(policy, (now + opens) // 2)
    assert (start == end) == (opens is None)


@given(ZONES, MINUTES, st.integers(60, 1200), st.integers(1_300_000_000, 2_000_000_000))
def test_a_night_has_one_name_from_its_opening_to_its_end_and_the_next_one_another(zone, start, length, now):
    end = (start + length) % 1440
    policy = Policy(time_zone=zone, night_start=start, night_end=end)
    opens = night_window.next_opening(zone, start, end, now)
    closes = night_window.next_closing(zone, start, end, opens)
    names = {night_of(policy, opens + (closes - opens - 1) * i / 20) for i in range(21)}
    assert len(names) == 1
    assert night_of(policy, opens + 30 * 3600.0) not in names and night_of(policy, opens - 30 * 3600.0) not in names


@given(ZONES, MINUTES, MINUTES, st.integers(1_300_000_000, 2_000_000_000), st.integers(0, 3000))
def test_a_window_stays_open_where_every_second_of_the_time_is_inside(zone, start, end, now, seconds):
    policy = Policy(time_zone=zone, night_start=start, night_end=end)
    inside = all(in_window(policy, now + second) for second in range(0, max(1, seconds), 7))
    inside = inside and in_window(policy, now + max(0, seconds - 1))
    assert night_window.stays_open(zone, start, end, now, seconds) is inside


@given(READINGS, st.floats(1.7e9, 1.9e9), st.booleans(), st.booleans())
def test_an_explanation_is_of_the_very_decision_that_the_agent_acts_on(readings, now, training, trusted):
    moment = Moment(now, 1000.0, trusted)
    _, decision = decide(SETTLED, readings, POLICY, Usage(), moment, training=training)
    explanation = explain(SETTLED, readings, POLICY, Usage(), moment, training=training)
    assert explanation.decision == decision
    assert explanation.stops.startswith("Nothing stops training") is decision.may_train
    for sentence in (explanation.stops, explanation.would_change, explanation.next_window.sentence):
        assert sentence.endswith(".") and sentence[0].isupper() and "\n" not in sentence
    assert all(
        stop.what in explanation.stops and stop.remedy[1:] in explanation.would_change for stop in decision.stops
    )
