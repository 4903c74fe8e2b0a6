"""Schedules: cron in a time zone, across summer time, judged by the standard library's calendar."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.errors import InvalidSetting
from cloud_aggregator.records import ScheduleRecord
from cloud_aggregator.release_schedule import after_run, is_due
from cloud_aggregator.schedule import next_due

BERLIN = ZoneInfo("Europe/Berlin")


def at(*when, zone=BERLIN):
    return int(datetime(*when, tzinfo=zone).timestamp())


def test_sunday_morning_stays_sunday_morning_across_summer_time():
    spring, autumn = at(2026, 3, 22, 6), at(2026, 10, 18, 6)
    assert next_due("0 6 * * 0", "Europe/Berlin", spring) == at(2026, 3, 29, 6) == spring + 7 * 86_400 - 3600
    assert next_due("0 6 * * 0", "Europe/Berlin", autumn) == at(2026, 10, 25, 6) == autumn + 7 * 86_400 + 3600


def test_a_time_that_summer_time_skips_still_runs_that_day():
    due = next_due("30 2 * * *", "Europe/Berlin", at(2026, 3, 28, 12))
    assert at(2026, 3, 29, 1) < due < at(2026, 3, 29, 4)


def test_a_time_that_comes_twice_runs_once():
    first = next_due("30 2 * * *", "Europe/Berlin", at(2026, 10, 24, 12))
    second = next_due("30 2 * * *", "Europe/Berlin", first)
    assert datetime.fromtimestamp(first, BERLIN).date().isoformat() == "2026-10-25"
    assert datetime.fromtimestamp(second, BERLIN).date().isoformat() == "2026-10-26"


@given(st.integers(1_700_000_000, 2_000_000_000))
def test_the_next_due_moment_is_the_first_that_the_fields_name(after):
    due = next_due("0 6 * * 0", "UTC", after)
    moment = datetime.fromtimestamp(due, UTC)
    assert (moment.weekday(), moment.hour, moment.minute, moment.second) == (6, 6, 0, 0)
    assert 0 < due - after <= 7 * 86_400


def test_missed_runs_are_caught_up_once():
    schedule = ScheduleRecord("toy", "0 6 * * 0", "UTC", at(2026, 11, 1, 6, zone=UTC), None)
    late = at(2026, 11, 24, 12, zone=UTC)
    assert is_due(schedule, late)
    then = after_run(schedule, late)
    assert then.next_due == at(2026, 11, 29, 6, zone=UTC)
    assert then.last_run == late
    assert not is_due(then, late)


def test_no_schedule_is_never_due():
    assert not is_due(None, 10**10)
    assert not is_due(ScheduleRecord("toy", "", "UTC", None, None), 10**10)


@pytest.mark.parametrize("cron", ["0 6 * * 9", "often", "", "* * * *", "0 0 31 2 *"])
def test_an_expression_that_names_nothing_is_refused(cron):
    with pytest.raises(InvalidSetting, match="schedule"):
        next_due(cron, "UTC", 0)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe/Berlín"])
def test_a_time_zone_that_is_none_is_refused(zone):
    with pytest.raises(InvalidSetting, match="a time zone is a name"):
        next_due("0 6 * * 0", zone, 0)
