import dataclasses
import itertools
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.eligibility import Moment, Policy, Reading, Readings, Standing, Usage, decide, in_window, night_of
from edge_runtime.policy_settings import PolicySettings, SettingsInvalid
from tests.edge_runtime.fakes import GOOD

BERLIN = ZoneInfo("Europe/Berlin")
POLICY = Policy(time_zone="Europe/Berlin")
# Nothing to wait for: what one look says.
AT_ONCE = dataclasses.replace(POLICY, settle_s=0.0, cool_down_s=0.0, grace_s=0.0)


def berlin(*when: int, fold: int = 0) -> float:
    return datetime(*when, tzinfo=BERLIN, fold=fold).timestamp()


NIGHT = berlin(2026, 11, 24, 2, 10)


FRESH = Usage()


def answer(policy=AT_ONCE, usage=FRESH, now=NIGHT, trusted=True, training=False, lease_until=None, **changes):
    readings = dataclasses.replace(GOOD, **changes)
    moment = Moment(now, 1000.0, trusted)
    return decide(Standing(), readings, policy, usage, moment, training=training, lease_until=lease_until)[1]


class Device:
    """Looks again and again, as an agent does; `at` is seconds after NIGHT."""

    def __init__(self, policy=POLICY, usage=FRESH):
        self.policy, self.usage, self.standing = policy, usage, Standing()

    def look(self, at, *, training=False, now=None, **changes):
        moment = Moment(NIGHT + at if now is None else now, 1000.0 + at)
        readings = dataclasses.replace(GOOD, **changes)
        self.standing, decision = decide(self.standing, readings, self.policy, self.usage, moment, training=training)
        return decision

    def settle(self, at=0.0):
        """Look until everything has held long enough; return when that was."""
        for step in range(5):
            decision = self.look(at + 30.0 * step)
        assert decision.may_train
        return at + 120.0


def test_an_idle_charging_cool_device_on_an_unmetered_link_at_night_may_do_everything():
    decision = answer()
    assert (decision.may_train, decision.may_send, decision.reason) == (True, True, "every condition holds")
    assert (decision.code, decision.stops, decision.send_stops) == ("", (), ())


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"charging": Reading(False)}, "unplugged", "cable"),
        ({"charging": Reading(None)}, "charging_unknown", "profile"),
        ({"battery": Reading(59.0)}, "battery_low", "60 %"),
        ({"battery": Reading(None)}, "battery_unknown", "battery sensor"),
        ({"battery": Reading(90.0, age_s=500.0)}, "battery_unknown", "battery sensor"),
        ({"idle_s": Reading(float("nan"))}, "idle_unknown", "idle hook"),
        ({"idle_s": Reading(3600.0, age_s=float("nan"))}, "idle_unknown", "idle hook"),
        ({"idle_s": Reading(3600.0, age_s=-121.0)}, "idle_unknown", "idle hook"),
        ({"celsius": Reading(float("nan"))}, "heat_unknown", "thermal sensor"),
        ({"idle_s": Reading(5.0)}, "in_use", "120 s of rest"),
        ({"idle_s": Reading(None)}, "idle_unknown", "idle hook"),
        ({"celsius": Reading(70.5)}, "hot", "70 C"),
        ({"celsius": Reading(None)}, "heat_unknown", "thermal sensor"),
        ({"battery_celsius": Reading(38.5)}, "battery_hot", "38 C"),
        ({"under_voltage": Reading(True)}, "under_voltage", "stronger supply"),
        ({"load": Reading(41.0)}, "load", "40 %"),
    ],
)
def test_what_stops_training_is_named_with_what_would_change_it(changes, code, word):
    decision = answer(**changes)
    assert not decision.may_train and decision.may_send
    assert decision.code == code and word in decision.remedy
    assert decision.reason == f"{decision.stops[0].what}: {decision.remedy}"


@pytest.mark.parametrize(
    "changes", [{"load": Reading(None)}, {"under_voltage": Reading(None)}, {"load": Reading(40.0)}]
)
def test_load_and_under_voltage_stop_only_where_they_are_known(changes):
    assert answer(**changes).may_train


def test_every_stop_is_told_and_the_first_one_is_the_reason():
    decision = answer(charging=Reading(False), idle_s=Reading(1.0), celsius=Reading(99.0), metered=Reading(True))
    assert [stop.code for stop in decision.stops] == ["unplugged", "in_use", "hot"]
    assert [stop.code for stop in decision.send_stops] == ["metered"]
    assert decision.code == "unplugged" and decision.immediate


@pytest.mark.parametrize("metered", [Reading(True), Reading(None)])
def test_a_metered_or_unknown_link_stops_sending_and_not_training(metered):
    decision = answer(metered=metered)
    assert decision.may_train and not decision.may_send
    assert "metered" in decision.reason


def test_a_reading_that_is_too_old_counts_as_unknown():
    assert not answer(idle_s=Reading(3600.0, age_s=121.0)).may_train
    assert answer(idle_s=Reading(3600.0, age_s=119.0)).may_train


def test_a_mains_device_without_a_battery_needs_no_power_sensor_but_obeys_one_that_says_no():
    mains = dataclasses.replace(AT_ONCE, profile="mains")
    assert answer(mains, charging=Reading(None), battery=Reading(None)).may_train
    assert not answer(mains, charging=Reading(False)).may_train
    assert not answer(mains, battery=Reading(10.0)).may_train


def test_where_there_is_no_battery_the_mains_adapter_alone_says_whether_it_charges():
    assert answer(battery=Reading(None), has_battery=False).may_train
    assert not answer(battery=Reading(None), has_battery=False, charging=Reading(None)).may_train
    assert not answer(battery=Reading(None), has_battery=False, charging=Reading(False)).may_train


@pytest.mark.parametrize(
    ("setting", "unknown", "known_and_bad"),
    [
        ({"idle": "if_known"}, {"idle_s": Reading()}, {"idle_s": Reading(3.0)}),
        ({"heat": "if_known"}, {"celsius": Reading()}, {"celsius": Reading(90.0)}),
        ({"heat": "if_known"}, {"celsius": Reading()}, {"celsius": Reading(), "battery_celsius": Reading(45.0)}),
    ],
)
def test_the_owners_word_stands_for_a_reading_that_is_missing_and_not_against_one_that_is_there(
    setting, unknown, known_and_bad
):
    owner = dataclasses.replace(AT_ONCE, **setting)
    assert not answer(**unknown).may_train and answer(owner, **unknown).may_train
    assert not answer(owner, **known_and_bad).may_train


def test_idleness_can_be_ignored_altogether_and_a_link_trusted_where_nobody_knows_it():
    assert answer(dataclasses.replace(AT_ONCE, idle="ignore"), idle_s=Reading(0.0)).may_train
    owner = dataclasses.replace(AT_ONCE, link="if_known")
    assert answer(owner, metered=Reading()).may_send and not answer(owner, metered=Reading(True)).may_send


def test_a_batterys_own_heat_is_enough_to_know_that_a_phone_is_cool():
    assert answer(celsius=Reading(), battery_celsius=Reading(30.0)).may_train


@pytest.mark.parametrize(
    ("usage", "code"),
    [
        (Usage(training_s=7200.0), "training_budget"),
        (Usage(cpu_s=14_400.0), "energy_budget"),
        (Usage(written_bytes=64 * 1024 * 1024), "written_budget"),
        (Usage(starts=2), "starts_budget"),
    ],
)
def test_each_budget_of_a_night_ends_its_training_and_not_its_sending(usage, code):
    decision = answer(usage=usage)
    assert (decision.may_train, decision.may_send, decision.code) == (False, True, code)


def test_a_night_of_20_watt_hours_is_14400_cpu_seconds_at_5_watts():
    assert answer(usage=Usage(cpu_s=14_399.0)).may_train
    assert not answer(dataclasses.replace(AT_ONCE, watts=10.0), usage=Usage(cpu_s=7_200.0)).may_train


def test_the_byte_budget_ends_sending_and_not_training():
    sent = answer(usage=Usage(sent_bytes=POLICY.sent_bytes))
    assert (sent.may_train, sent.may_send) == (True, False)


def test_the_last_start_of_a_night_may_go_on_though_no_other_is_left():
    assert answer(usage=Usage(starts=2), training=True).may_train


def test_a_start_waits_until_everything_has_held_for_two_minutes_without_a_break():
    device = Device()
    assert [device.look(at).code for at in (0, 60, 119)] == ["settling"] * 3
    assert device.look(120).may_train
    device = Device()
    device.look(0)
    device.look(60, charging=Reading(False))
    assert [device.look(at).code for at in (61, 120, 180)] == ["settling"] * 3
    assert device.look(181).may_train


def test_looks_that_lie_far_apart_do_not_show_that_anything_held_between_them():
    device = Device()
    device.look(0)
    assert device.look(500).code == "settling"
    assert device.look(560).code == "settling" and device.look(620).may_train


def test_an_elapsed_clock_that_lies_back_is_another_start_and_shows_nothing():
    device = Device()
    device.settle(1000.0)
    assert [device.look(at).code for at in (0, 60, 120)] == ["settling", "settling", ""]


def test_each_limit_itself_is_good_enough():
    exact = {"battery": Reading(60.0), "idle_s": Reading(120.0), "celsius": Reading(70.0), "load": Reading(40.0)}
    assert answer(**exact, battery_celsius=Reading(38.0)).may_train
    assert answer(battery=Reading(40.0), celsius=Reading(80.0), training=True).may_train


def test_a_wall_clock_that_jumps_neither_shortens_the_wait_nor_the_cool_down():
    device = Device()
    device.look(0)
    assert device.look(1, now=NIGHT + 3600.0).code == "settling"
    began = device.settle()
    device.look(began + 1, training=True, charging=Reading(False))
    for step in range(19):
        decision = device.look(began + 2 + 30 * step, now=NIGHT + 7000.0)
        assert decision.code in ("cool_down",)
    assert device.look(began + 601, now=NIGHT + 7000.0).may_train


@pytest.mark.parametrize(
    "changes",
    [
        {"charging": Reading(False)},
        {"charging": Reading()},
        {"idle_s": Reading(0.0)},
        {"celsius": Reading(80.5)},
        {"battery": Reading(39.0)},
        {"under_voltage": Reading(True)},
    ],
)
def test_what_concerns_the_person_or_the_hardware_stops_a_training_at_once(changes):
    device = Device()
    began = device.settle()
    decision = device.look(began + 1, training=True, **changes)
    assert not decision.may_train and decision.immediate


@pytest.mark.parametrize("changes", [{"battery": Reading(41.0)}, {"celsius": Reading(79.0)}])
def test_a_training_goes_on_where_none_would_be_started(changes):
    device = Device()
    began = device.settle()
    assert device.look(began + 1, training=True, **changes).may_train
    assert not device.look(began + 2, **changes).may_train


def test_load_ends_a_training_after_ten_seconds_and_a_shorter_one_does_not():
    device, busy = Device(), {"load": Reading(80.0)}
    began = device.settle()
    assert device.look(began + 1, training=True, **busy).may_train
    assert device.look(began + 9, training=True, **busy).may_train
    assert device.look(began + 10, training=True).may_train
    assert device.look(began + 11, training=True, **busy).may_train
    decision = device.look(began + 21, training=True, **busy)
    assert (decision.may_train, decision.code, decision.immediate) == (False, "load", False)


def test_a_grace_does_not_run_between_looks_that_lie_far_apart():
    device, busy = Device(), {"load": Reading(80.0), "metered": Reading(True)}
    began = device.settle()
    first = device.look(began + 1, training=True, **busy)
    assert first.may_train and first.may_send
    later = device.look(began + 500, training=True, **busy)
    assert later.may_train and not later.may_send, "load has to be seen to last, a link to be in use"
    device.look(began + 510)
    assert not device.look(began + 900, metered=Reading(True)).may_send


def test_load_that_may_be_the_trainers_own_stops_a_start_and_never_a_training():
    busy = {"load": Reading(100.0), "load_is_others": False}
    device = Device()
    began = device.settle()
    assert all(device.look(began + at, training=True, **busy).may_train for at in range(1, 60))
    assert answer(**busy).code == "load"


def test_a_stop_stands_until_the_trainer_has_ended_and_then_comes_the_cool_down():
    device = Device()
    began = device.settle()
    assert device.look(began + 1, training=True, charging=Reading(False)).code == "unplugged"
    again = device.look(began + 2, training=True)
    assert not again.may_train and again.code == "stopping" and "not charging" in again.reason
    codes = [device.look(began + at).code for at in range(30, 600, 30)]
    assert set(codes) == {"cool_down"}
    assert device.look(began + 602).may_train


def test_a_training_that_ended_by_itself_needs_no_cool_down():
    device = Device()
    began = device.settle()
    for at in range(60):
        device.look(began + at, training=True)
    assert device.look(began + 60).may_train


def test_no_start_with_less_than_a_quarter_of_an_hour_of_night_or_lease_left():
    last = berlin(2026, 11, 24, 5, 45)
    assert answer(now=last).may_train and answer(now=last + 1).code == "window_short"
    assert answer(now=last + 890, training=True).may_train
    assert answer(lease_until=NIGHT + 899).code == "lease_short" and answer(lease_until=NIGHT + 900).may_train
    assert answer(lease_until=NIGHT + 1, training=True).may_train


def test_before_the_clock_can_be_believed_it_is_not_night_but_a_message_may_come():
    decision = answer(trusted=False)
    assert (decision.may_train, decision.may_send, decision.code) == (False, True, "clock")
    always = dataclasses.replace(AT_ONCE, night_start=0, night_end=0)
    assert answer(always, trusted=False).may_train, "who trains at any hour needs no clock"


def test_a_link_that_turns_metered_in_use_may_be_used_for_ten_seconds_and_a_new_one_not_at_all():
    device = Device()
    assert device.look(0).may_send
    assert device.look(1, metered=Reading(True)).may_send and device.look(10, metered=Reading(True)).may_send
    assert not device.look(11, metered=Reading(True)).may_send
    assert not device.look(12, metered=Reading(True)).may_send, "the grace does not begin anew"
    assert device.look(13).may_send
    assert not device.look(14, metered=Reading(None)).may_send, "an unknown link has no grace"
    assert not Device().look(0, metered=Reading(True)).may_send


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


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"start_battery": 30.0}, ("policy.start_battery", "policy.stop_battery")),
        ({"stop_celsius": 60.0}, ("policy.start_celsius", "policy.stop_celsius")),
        ({"start_battery_celsius": 50.0}, ("policy.start_battery_celsius", "policy.stop_battery_celsius")),
        ({"night_end": "23:10"}, ("policy.minimum_window_s", "policy.night_start", "policy.night_end")),
        ({"time_zone": "Europe/Berln"}, ("policy.time_zone",)),
    ],
)
def test_terms_that_cannot_hold_together_are_refused_naming_the_keys(changes, keys):
    with pytest.raises(SettingsInvalid) as refused:
        PolicySettings(**changes).as_policy()
    assert all(f'"{key}"' in str(refused.value) for key in keys)


def test_the_settings_defaults_are_the_policys():
    assert PolicySettings().as_policy() == Policy()
    always = PolicySettings(night_start="00:00", night_end="00:00", minimum_window_s=86_400.0).as_policy()
    assert (always.night_start, always.night_end) == (0, 0)


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
    load=maybe(st.floats(0, 100)),
    under_voltage=maybe(st.booleans()),
    battery_celsius=maybe(st.floats(-40, 120)),
    load_is_others=st.booleans(),
)


@given(READINGS, st.floats(1.7e9, 1.9e9), st.booleans())
def test_whatever_the_sensors_say_no_unknown_lets_a_battery_device_train(readings, now, training):
    decision = decide(Standing(), readings, AT_ONCE, Usage(), Moment(now, 5.0), training=training)[1]
    names = ("charging", "battery", "celsius", "idle_s", "metered", "load", "under_voltage", "battery_celsius")
    fresh = {
        name: getattr(readings, name).value if abs(getattr(readings, name).age_s) <= 120 else None for name in names
    }
    floor, limit, battery_limit = (40, 80, 42) if training else (60, 70, 38)
    if decision.may_train:
        assert fresh["charging"] is True and fresh["idle_s"] >= 120 and not fresh["under_voltage"]
        heat = [(fresh["celsius"], limit), (fresh["battery_celsius"], battery_limit)]
        known_heat = [(value, most) for value, most in heat if value is not None and value == value]
        assert known_heat and all(value <= most for value, most in known_heat)
        low = fresh["battery"] is not None and fresh["battery"] < floor
        known = fresh["battery"] is not None and fresh["battery"] >= floor
        assert known or (not readings.has_battery and not low)
        heeded = readings.load_is_others or not training
        assert not (heeded and fresh["load"] is not None and fresh["load"] > 40)
    if decision.may_send:
        assert fresh["metered"] is False
    assert (decision.reason == "every condition holds") == (decision.may_train and decision.may_send)


# A judge of the waiting rules that shares nothing with `decide`: it reads the whole history again at every look.

STEP_S = 10.0
SMALL = dataclasses.replace(
    POLICY, night_start=0, night_end=0, settle_s=30.0, cool_down_s=60.0, grace_s=20.0, starts=2, training_s=200.0
)


def judge(history, trained, starts):
    """Whether a device may train at the last entry of `history` (good, hot, busy), after `trained`, a bool a look."""
    good, hot, busy = history[-1]
    cool = hot < 2 if trained and trained[-1] else hot < 1
    if not good or not cool or sum(trained) * STEP_S >= SMALL.training_s:
        return False
    if trained and trained[-1]:
        run = len(list(itertools.takewhile(lambda entry: entry[2], reversed(history))))
        return not (run and (run - 1) * STEP_S >= SMALL.grace_s)
    if busy or starts >= SMALL.starts:
        return False
    # Stopped: trained at a look, and at the next one not any more.
    ends = [i + 1 for i in range(len(trained) - 1) if trained[i] and not trained[i + 1]]
    if ends and (len(history) - 1 - ends[-1]) * STEP_S < SMALL.cool_down_s:
        return False
    needed = int(SMALL.settle_s / STEP_S) + 1
    recent, was = history[-needed:], trained[-needed + 1 :]
    since_end = len(history) - 1 - ends[-1] if ends else len(history)
    held = all(g and (h < 1 or t) and not b for (g, h, b), t in zip(recent, [*was, False], strict=True))
    return len(recent) == needed and held and since_end >= needed


@given(
    st.lists(
        st.tuples(
            st.sampled_from([True] * 6 + [False]),
            st.sampled_from([0] * 6 + [1, 2]),
            st.sampled_from([False] * 5 + [True]),
        ),
        min_size=20,
        max_size=80,
    )
)
def test_an_independent_judge_of_the_whole_history_lets_it_train_in_the_same_seconds(history):
    standing, training, starts = Standing(), False, 0
    trained: list[bool] = []
    for step, (good, hot, busy) in enumerate(history):
        readings = dataclasses.replace(
            GOOD, charging=Reading(good), celsius=Reading((40.0, 75.0, 90.0)[hot]), load=Reading(90.0 if busy else 1.0)
        )
        usage = Usage(training_s=sum(trained) * STEP_S, starts=starts)
        moment = Moment(NIGHT + STEP_S * step, STEP_S * step)
        expected = judge(history[: step + 1], trained, starts)
        standing, decision = decide(standing, readings, SMALL, usage, moment, training=training)
        assert decision.may_train is expected, (step, decision.reason)
        starts += decision.may_train and not training
        training = decision.may_train
        trained.append(training)


def test_a_stop_stands_at_every_look_until_the_trainer_has_ended_however_often_the_cable_is_back():
    device = Device()
    at = device.settle()
    device.look(at + 1, training=True, charging=Reading(False))
    for later in range(2, 8):
        assert device.look(at + later, training=True).code == "stopping"
    assert device.look(at + 8).code == "cool_down"
