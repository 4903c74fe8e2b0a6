import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.adapters.sensors import hooks, under_voltage
from edge_runtime.adapters.sensors.files import FileSensors, write_fixture
from edge_runtime.adapters.sensors.linux import LinuxSensors
from edge_runtime.eligibility import Moment, Policy, Standing, Usage, decide

NOW = 1_800_000_000.0
ALWAYS = Policy(night_start=0, night_end=0, settle_s=0.0)
NAMES = ("charging", "battery", "celsius", "idle_s", "metered")


def fixture(root, **changes):
    given = {"charging": True, "battery": 80, "idle_seconds": 600, "metered": False, "celsius": 41.5}
    write_fixture(root, **{**given, **changes})
    return FileSensors(root)


def may_train(readings, now=NOW, policy=ALWAYS):
    return decide(Standing(), readings, policy, Usage(), Moment(now, 5.0), training=False)[1].may_train


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
    assert sensors.read(NOW).celsius.value is None


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
    for ahead, trains in ((5, True), (121, False), (1e9, False)):
        put(tmp_path, "run/edge-runtime/idle_seconds", f"3600 {NOW + ahead}\n")
        assert may_train(sensors.read(NOW)) is trains


def test_a_desktop_with_a_mains_adapter_trains_and_a_silent_battery_stops_a_laptop(tmp_path):
    desktop = fixture(tmp_path / "desktop", battery=None).read(NOW)
    assert not desktop.has_battery and may_train(desktop)
    laptop = fixture(tmp_path / "laptop")
    assert may_train(laptop.read(NOW))
    (tmp_path / "laptop/sys/class/power_supply/BAT0/capacity").unlink()
    readings = laptop.read(NOW)
    assert readings.has_battery and readings.charging.value is True
    assert not may_train(readings)


def test_an_empty_battery_bay_is_no_battery_and_a_ups_is_one(tmp_path):
    sensors = fixture(tmp_path, battery=None)
    for name, text in (("type", "Battery"), ("present", "0"), ("capacity", "0")):
        put(tmp_path, f"sys/class/power_supply/BAT1/{name}", text + "\n")
    assert not sensors.read(NOW).has_battery
    for name, text in (("type", "UPS"), ("status", "Charging"), ("capacity", "71"), ("temp", "305")):
        put(tmp_path, f"sys/class/power_supply/hat/{name}", text + "\n")
    readings = sensors.read(NOW)
    assert (readings.has_battery, readings.battery.value, readings.battery_celsius.value) == (True, 71.0, 30.5)


def test_a_zone_that_is_not_connected_is_no_temperature(tmp_path):
    sensors = fixture(tmp_path, celsius=None)
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "-274000\n")
    assert sensors.read(NOW).celsius.value is None
    put(tmp_path, "sys/class/thermal/thermal_zone1/temp", "48500\n")
    assert sensors.read(NOW).celsius.value == 48.5


def pressure(root: Path, folder: str, cpu: float, io: float = 0.0, memory: float = 0.0) -> None:
    suffix = ".pressure" if folder.startswith("sys") else ""
    for name, value in (("cpu", cpu), ("io", io), ("memory", memory)):
        put(
            root,
            f"{folder}/{name}{suffix}",
            f"some avg10={value:.2f} avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00\n",
        )


def test_load_is_the_most_pressed_resource_after_our_own_group_is_taken_away(tmp_path):
    sensors = fixture(tmp_path)
    pressure(tmp_path, "proc/pressure", 70.0, 12.0)
    readings = sensors.read(NOW)
    assert (readings.load.value, readings.load_is_others) == (70.0, False), "no group is known: it may be ours"
    put(tmp_path, "proc/self/cgroup", "1:name=systemd:/x\n0::/system.slice/edge-runtime.service\n")
    pressure(tmp_path, "sys/fs/cgroup/system.slice/edge-runtime.service", 65.0, 1.0)
    readings = sensors.read(NOW)
    assert (readings.load.value, readings.load_is_others) == (11.0, True)
    pressure(tmp_path, "proc/pressure", 5.0)
    assert sensors.read(NOW).load.value == 0.0


@pytest.mark.parametrize("group", ["0::/\n", "0::/../../etc\n", "0::/a/../b\n", ""])
def test_everybodys_group_or_a_name_that_leads_elsewhere_is_not_ours(tmp_path, group):
    pressure(tmp_path, "proc/pressure", 50.0)
    put(tmp_path, "proc/self/cgroup", group)
    pressure(tmp_path, "sys/fs/cgroup", 50.0)
    readings = FileSensors(tmp_path).read(NOW)
    assert (readings.load.value, readings.load_is_others) == (50.0, False)


def test_without_pressure_the_load_average_counts_and_may_be_our_own(tmp_path):
    put(tmp_path, "proc/loadavg", "1.50 0.40 0.10 1/99 1234\n")
    readings = FileSensors(tmp_path).read(NOW)
    assert readings.load.value == pytest.approx(150.0 / os.cpu_count()) and not readings.load_is_others
    assert FileSensors(tmp_path / "none").read(NOW).load.value is None


@pytest.mark.parametrize(("alarm", "weak"), [("0", False), ("1", True), ("", None), ("2", None)])
def test_a_pis_voltage_alarm_is_read_where_its_driver_is(tmp_path, alarm, weak):
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "cpu_thermal\n")
    put(tmp_path, "sys/class/hwmon/hwmon0/in0_lcrit_alarm", "1\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", alarm + "\n")
    assert FileSensors(tmp_path).read(NOW).under_voltage.value is weak


@pytest.mark.parametrize(("bits", "weak"), [("50005", True), ("50000", False), ("0", False), ("zz", None)])
def test_the_firmwares_bits_say_what_is_now_and_not_what_was(tmp_path, bits, weak):
    put(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", bits + "\n")
    assert FileSensors(tmp_path).read(NOW).under_voltage.value is weak
    said = under_voltage.to_answer(f"throttled=0x{bits}\n")
    assert said == (None if weak is None else {"under_voltage": weak})


def test_every_reading_names_where_it_comes_from(tmp_path):
    fixture(tmp_path)
    pressure(tmp_path, "proc/pressure", 1.0)
    readings = LinuxSensors(tmp_path).read(NOW)
    sources = {getattr(readings, name).source for name in (*NAMES, "load")}
    assert sources == {
        "sys/class/power_supply", "sys/class/thermal", "run/edge-runtime/idle_seconds", "run/edge-runtime/metered",
        "proc/pressure",
    }  # fmt: skip


def test_an_idle_hook_that_died_does_not_say_for_ever_that_nobody_is_there(tmp_path):
    fixture(tmp_path)
    file = tmp_path / "run/edge-runtime/idle_seconds"
    os.utime(file, (NOW - 500, NOW - 500))
    assert hooks.read_idle_s(tmp_path, NOW, undated_is_fresh=False).age_s == 500.0
    assert not may_train(
        replace(FileSensors(tmp_path).read(NOW), idle_s=hooks.read_idle_s(tmp_path, NOW, undated_is_fresh=False))
    )
    assert hooks.read_idle_s(tmp_path, NOW).age_s == 0.0, "in a fixture time is played"


def test_files_are_read_again_only_after_a_tenth_of_a_second(tmp_path):
    now = [100.0]
    fixture(tmp_path)
    sensors = LinuxSensors(tmp_path, elapsed=lambda: now[0])
    assert sensors.read(NOW).charging.value is True
    fixture(tmp_path, charging=False)
    assert sensors.read(NOW).charging.value is True
    now[0] += 0.2
    assert sensors.read(NOW).charging.value is False
    now[0] -= 50.0
    fixture(tmp_path)
    assert sensors.read(NOW).charging.value is True, "a clock that went back is no reason to believe an old look"


def test_a_pipe_under_a_hooks_name_is_no_answer_and_holds_up_nobody(tmp_path):
    folder = tmp_path / "run/edge-runtime"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "idle_seconds")
    asked = threading.Thread(target=lambda: seen.append(FileSensors(tmp_path).read(NOW).idle_s.value), daemon=True)
    seen = []
    asked.start()
    asked.join(20.0)
    assert seen == [None]
