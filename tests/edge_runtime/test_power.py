from pathlib import Path

import pytest

from edge_runtime.adapters.sensors.files import FileSensors, write_fixture
from edge_runtime.eligibility import Policy, Usage, decide

NOW = 1_800_000_000.0
NAMES = ("charging", "battery", "celsius", "idle_s", "metered")


def fixture(root, **changes):
    given = {"charging": True, "battery": 80, "idle_seconds": 600, "metered": False, "celsius": 41.5}
    write_fixture(root, **{**given, **changes})
    return FileSensors(root)


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_what_a_simulation_writes_is_what_the_reader_reads(tmp_path):
    readings = fixture(tmp_path).read(NOW)
    values = {name: getattr(readings, name).value for name in NAMES}
    assert values == {"charging": True, "battery": 80.0, "celsius": 41.5, "idle_s": 600.0, "metered": False}
    readings = fixture(tmp_path, charging=False, metered=True).read(NOW)
    assert (readings.charging.value, readings.metered.value) == (False, True)


def test_what_is_not_there_is_unknown(tmp_path):
    readings = FileSensors(tmp_path).read(NOW)
    assert [getattr(readings, name).value for name in NAMES] == [None] * 5
    readings = fixture(tmp_path, idle_seconds=None, celsius=None).read(NOW)
    assert readings.idle_s.value is None and readings.celsius.value is None


@pytest.mark.parametrize("text", ["", "soon\n", "nan\n", "\x00\xff", "9" * 5000])
def test_a_file_with_nonsense_is_unknown(tmp_path, text):
    sensors = fixture(tmp_path)
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", text)
    value = sensors.read(NOW).celsius.value
    assert value is None or value > 1e50


def test_the_battery_of_a_mouse_is_ignored(tmp_path):
    sensors = fixture(tmp_path, charging=None, battery=None)
    put(tmp_path, "sys/class/power_supply/hidpp/type", "Battery\n")
    put(tmp_path, "sys/class/power_supply/hidpp/scope", "Device\n")
    put(tmp_path, "sys/class/power_supply/hidpp/status", "Discharging\n")
    put(tmp_path, "sys/class/power_supply/hidpp/capacity", "7\n")
    readings = sensors.read(NOW)
    assert readings.charging.value is None and readings.battery.value is None


def test_a_battery_that_discharges_counts_more_than_a_charger_that_says_it_is_on(tmp_path):
    sensors = fixture(tmp_path)
    put(tmp_path, "sys/class/power_supply/BAT0/status", "Discharging\n")
    assert sensors.read(NOW).charging.value is False


@pytest.mark.parametrize(("status", "charging"), [("Full", True), ("Not charging", True), ("Unknown", None)])
def test_without_a_charger_to_ask_the_batterys_status_decides(tmp_path, status, charging):
    sensors = fixture(tmp_path, charging=None)
    put(tmp_path, "sys/class/power_supply/BAT0/status", status + "\n")
    assert sensors.read(NOW).charging.value is charging


def test_the_hottest_zone_counts(tmp_path):
    sensors = fixture(tmp_path)
    put(tmp_path, "sys/class/thermal/thermal_zone3/temp", "81250\n")
    assert sensors.read(NOW).celsius.value == 81.25


def test_a_hooks_value_grows_old(tmp_path):
    sensors = fixture(tmp_path)
    put(tmp_path, "run/edge-runtime/idle_seconds", f"600 {NOW - 300}\n")
    reading = sensors.read(NOW).idle_s
    assert (reading.value, reading.age_s) == (600.0, 300.0)


@pytest.mark.parametrize("text", ["nan", "inf", "3600 nan", "3600 inf", "3600 -inf", "3600 soon"])
def test_a_hooks_value_or_time_that_is_no_finite_number_is_unknown(tmp_path, text):
    sensors = fixture(tmp_path)
    put(tmp_path, "run/edge-runtime/idle_seconds", text + "\n")
    put(tmp_path, "run/edge-runtime/metered", text.replace("3600", "0") + "\n")
    readings = sensors.read(NOW)
    assert readings.idle_s.value is None and readings.metered.value is None


def test_a_hooks_value_that_is_dated_in_the_future_does_not_open_the_night(tmp_path):
    sensors = fixture(tmp_path)
    always = Policy(night_start=0, night_end=0)
    for ahead, trains in ((5, True), (121, False), (1e9, False)):
        put(tmp_path, "run/edge-runtime/idle_seconds", f"3600 {NOW + ahead}\n")
        assert decide(sensors.read(NOW), always, Usage(), NOW).may_train is trains


def test_a_desktop_with_a_mains_adapter_trains_and_a_silent_battery_stops_a_laptop(tmp_path):
    always = Policy(night_start=0, night_end=0)
    desktop = fixture(tmp_path / "desktop", battery=None).read(NOW)
    assert not desktop.has_battery and decide(desktop, always, Usage(), NOW).may_train
    laptop = fixture(tmp_path / "laptop")
    assert decide(laptop.read(NOW), always, Usage(), NOW).may_train
    (tmp_path / "laptop/sys/class/power_supply/BAT0/capacity").unlink()
    readings = laptop.read(NOW)
    assert readings.has_battery and readings.charging.value is True
    assert not decide(readings, always, Usage(), NOW).may_train
