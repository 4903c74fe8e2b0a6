"""What the doctor says about sensors, clock and night; the rest of it is tested with the command."""

import socket

import pytest

from edge_runtime import doctor
from edge_runtime.adapters.sensors.files import write_fixture
from edge_runtime.config import Settings
from edge_runtime.policy_settings import PolicySettings
from edge_runtime.ports import Unreachable


def findings(tmp_path, policy=None, **changes):
    given = {"charging": True, "battery": 90, "idle_seconds": 900, "metered": False, "celsius": 41.25, **changes}
    write_fixture(tmp_path / "root", **given)
    settings = Settings(
        sensors_root=str(tmp_path / "root"), policy=policy or PolicySettings(night_start="00:00", night_end="00:00")
    )
    return {f.name: f for f in doctor._conditions(tmp_path / "home", settings)}


def test_each_sensor_is_told_with_its_value_its_age_and_its_source(tmp_path):
    found = findings(tmp_path)
    assert all(f.ok for f in found.values())
    assert found["charging"].message == "yes from sys/class/power_supply, 0 s old"
    assert found["heat"].message == "41.25 C from sys/class/thermal, 0 s old"
    assert found["last use"].message == "900 s ago from run/edge-runtime/idle_seconds, 0 s old"
    assert found["under-voltage"].message == "unknown, and not asked for"
    assert found["training"].message == "Nothing stops training: it may start now. Nothing has to change."
    assert "always open" in found["night"].message and found["sensors"].message == "all that the policy asks for"


def test_a_sensor_that_is_missing_or_outdated_is_told_with_what_would_mend_it(tmp_path):
    found = findings(tmp_path, celsius=None, metered=None)
    (tmp_path / "root/run/edge-runtime/idle_seconds").write_text("900 1000\n")
    assert not found["heat"].ok and 'heat = "if_known"' in found["heat"].message
    assert not found["metered"].ok and 'link = "if_known"' in found["metered"].message
    assert not found["sensors"].ok and "temperature is unknown" in found["sensors"].message
    write_fixture(tmp_path / "root", charging=True, battery=90, idle_seconds=None, metered=False, celsius=41)
    (tmp_path / "root/run/edge-runtime/idle_seconds").write_text("900 1000\n")
    settings = Settings(
        sensors_root=str(tmp_path / "root"), policy=PolicySettings(night_start="00:00", night_end="00:00")
    )
    found = {f.name: f for f in doctor._conditions(tmp_path / "home", settings)}
    assert not found["last use"].ok and "older than 120 s" in found["last use"].message


def test_the_lines_that_would_mend_a_sensor_are_told_with_the_file_that_they_may_stand_in(tmp_path):
    write_fixture(tmp_path / "root", charging=None, battery=None, idle_seconds=None, metered=None, celsius=41)
    (tmp_path / "home").mkdir()
    file = tmp_path / "home/settings.toml"
    file.write_text(f'sensors_root = "{tmp_path}/root"\n[policy]\nnight_start = "00:00"\nnight_end = "00:00"\n')
    result = doctor.examine(tmp_path / "home")
    assert result.data["settings"] == ['profile = "mains"', 'idle = "if_known"', 'link = "if_known"']
    assert str(file) in result.text.splitlines()[-4]
    with file.open("a") as policy:
        policy.write("".join(line + "\n" for line in result.text.splitlines()[-3:]))
    result = doctor.examine(tmp_path / "home")
    found = {item["name"]: item["ok"] for item in result.data["items"]}
    assert found["settings"] and found["sensors"] and result.data["settings"] == []


def test_beside_a_settings_file_with_a_mistake_no_line_is_offered_that_may_stand_in_it_already(tmp_path):
    (tmp_path / "settings.toml").write_text('[policy]\nprofile = "mains"\nheat = "if known"\n')
    result = doctor.examine(tmp_path)
    assert result.data["settings"] == [] and "config check" in result.next_command


def test_somebody_who_uses_it_is_nothing_to_mend(tmp_path):
    found = findings(tmp_path, idle_seconds=3, charging=False)
    assert found["sensors"].ok and found["training"].ok
    assert "somebody used it 3 s ago" in found["training"].message


def test_a_clock_that_was_ahead_once_is_told_with_the_file_to_delete_and_a_doctor_writes_none(tmp_path):
    night = PolicySettings(clock="rtc")
    assert findings(tmp_path, night)["clock"].ok and not (tmp_path / "home").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/clock_floor").write_text("4000000000\n")
    found = findings(tmp_path, night)
    assert not found["clock"].ok and "clock_floor" in found["clock"].message
    assert (tmp_path / "home/clock_floor").read_text() == "4000000000\n"
    assert "as soon as the clock can be believed" in found["night"].message


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_one_of_the_brokers_addresses_that_answers_is_enough_and_each_is_told(port):
    closed = free_port()
    told = doctor._reach_broker(f"mqtts://127.0.0.1:{closed} ws://127.0.0.1:{port}/mqtt")
    assert f"mqtts://127.0.0.1:{closed} does not answer" in told and f"ws://127.0.0.1:{port}/mqtt answers" in told
    with pytest.raises(doctor._Amiss, match="does not answer"):
        doctor._reach_broker(f"mqtt://127.0.0.1:{closed}")
    with pytest.raises(Unreachable, match="a broker's address is"):
        doctor._reach_broker("mqtt://127.0.0.1:1  ws://127.0.0.1")


def test_a_server_that_answers_is_told_and_what_is_no_address_is_no_traceback(port):
    assert doctor._reach_server(f"http://127.0.0.1:{port}/models").endswith("answers")
    with pytest.raises(doctor._Amiss, match="does not answer"):
        doctor._reach_server(f"https://{70 * 'a'}.example/")
    for wrong in ("http://127.0.0.1:99999", "http://[::1"):
        with pytest.raises(doctor._Amiss, match="is no address"):
            doctor._reach_server(wrong)
