"""A phone's commands, played by scripts on a PATH of their own."""

import json
import os
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adapters.sensors import termux
from edge_runtime.adapters.sensors.background_command import DEADLINE_S, BackgroundCommand
from edge_runtime.adapters.sensors.linux import LinuxSensors

NOW = 1_800_000_000.0
BATTERY = {"health": "GOOD", "percentage": 81, "plugged": "PLUGGED_AC", "status": "CHARGING", "temperature": 29.5}
WIFI = {"supplicant_state": "COMPLETED", "ip": "192.168.1.7", "ssid": "home"}


def script(folder, name, text):
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def until(answer, wanted, seconds=20.0):
    """Ask until the answer is as wanted; commands take the time that they take."""
    end = time.monotonic() + seconds
    while not wanted(value := answer()):
        assert time.monotonic() < end, value
        time.sleep(0.01)
    return value


def test_a_phone_is_read_from_its_commands_without_waiting_for_them(tmp_path):
    folder = tmp_path / "bin"
    script(folder, "termux-battery-status", f"sleep 0.2; cat <<E\n{json.dumps(BATTERY)}\nE")
    script(folder, "termux-wifi-connectioninfo", f"cat <<E\n{json.dumps(WIFI)}\nE")
    path = os.pathsep.join((str(folder), os.environ["PATH"]))
    sensors = LinuxSensors(tmp_path / "root", path=path)
    first = sensors.read(NOW)
    assert first.charging.value is None and sensors.waits
    readings = until(lambda: sensors.read(NOW), lambda r: r.charging.value is not None and r.metered.value is not None)
    assert (readings.charging.value, readings.battery.value, readings.battery_celsius.value) == (True, 81.0, 29.5)
    assert readings.has_battery and readings.metered.value is False
    assert readings.charging.source == "termux-battery-status" and readings.charging.age_s > 0.0
    script(folder, "vcgencmd", "echo throttled=0x50005")
    sensors.close()
    sensors = LinuxSensors(tmp_path / "root", path=path)
    assert until(lambda: sensors.read(NOW), lambda r: r.under_voltage.value is not None).under_voltage.value is True
    sensors.close()


def test_an_answer_grows_old_from_the_start_of_its_command_and_is_asked_for_again(tmp_path):
    elapsed = [100.0]
    count = tmp_path / "count"
    words = [script(tmp_path / "bin", "slow", f"echo x >> {count}; echo '{{\"n\": 1}}'")]
    command = BackgroundCommand(words, termux.to_answer, every_s=5.0, elapsed=lambda: elapsed[0])
    assert command.ask() is None and command.waits
    until(command.ask, lambda said: said is not None)
    elapsed[0] = 104.0
    assert command.ask() == ({"n": 1}, 4.0) and count.read_text() == "x\n"
    elapsed[0] = 105.0
    assert command.ask() == ({"n": 1}, 5.0)
    until(command.ask, lambda said: said[1] == 0.0)
    assert count.read_text() == "x\nx\n"


@pytest.mark.parametrize("text", ["exit 3", "echo nonsense", "echo '[1]'", "true", "head -c 100000 /dev/zero"])
def test_a_command_that_fails_or_says_nothing_of_use_gives_no_answer(tmp_path, text):
    elapsed = [100.0]
    command = BackgroundCommand(
        [script(tmp_path / "bin", "bad", text)], termux.to_answer, every_s=1e9, elapsed=lambda: elapsed[0]
    )
    command.ask()
    if "zero" in text:
        # More than a pipe holds: it waits for a reader that does not come, and is ended.
        elapsed[0] += DEADLINE_S + 1.0
    until(lambda: (command.ask(), command.waits)[1], lambda waits: not waits)
    assert command.ask() is None


def test_a_command_that_hangs_is_ended_and_the_older_answer_grows_old(tmp_path):
    elapsed = [100.0]
    file = tmp_path / "bin" / "sometimes"
    words = [script(tmp_path / "bin", "sometimes", "echo '{}'")]
    command = BackgroundCommand(words, termux.to_answer, every_s=5.0, elapsed=lambda: elapsed[0])
    until(command.ask, lambda said: said is not None)
    file.write_text("#!/bin/sh\nexec sleep 600\n")
    elapsed[0] = 106.0
    command.ask()
    process = command._process
    assert process is not None and process.poll() is None
    elapsed[0] = 106.0 + DEADLINE_S + 1.0
    assert command.ask() == ({}, 17.0)
    assert process.poll() is not None
    command.close()


def test_a_command_that_is_gone_is_no_error(tmp_path):
    command = BackgroundCommand([str(tmp_path / "none")], termux.to_answer)
    assert command.ask() is None and not command.waits


@pytest.mark.parametrize(
    ("changes", "charging"),
    [
        ({}, True),
        ({"plugged": "PLUGGED_USB", "status": "FULL"}, True),
        ({"plugged": "PLUGGED_USB", "status": "DISCHARGING"}, False),
        ({"plugged": "UNPLUGGED", "status": "NOT_CHARGING"}, False),
        ({"plugged": 3}, None),
    ],
)
def test_a_phone_charges_when_it_is_plugged_in_and_does_not_discharge_all_the_same(changes, charging):
    assert termux.charging({**BATTERY, **changes}) is charging


@pytest.mark.parametrize(
    ("wifi", "metered"),
    [
        (WIFI, False),
        ({"supplicant_state": "DISCONNECTED", "ip": "0.0.0.0"}, True),
        ({**WIFI, "ip": "0.0.0.0"}, True),
        ({}, None),
    ],
)
def test_only_a_connected_wifi_counts_as_unmetered(wifi, metered):
    assert termux.metered(wifi) is metered


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9), lambda s: st.lists(s, max_size=2)
)


@given(
    st.dictionaries(
        st.sampled_from(["plugged", "status", "percentage", "temperature", "supplicant_state", "ip"]), ANYTHING
    )
)
def test_whatever_a_command_says_is_a_value_in_its_range_or_unknown(said):
    assert termux.charging(said) in (True, False, None) and termux.metered(said) in (True, False, None)
    percent, celsius = termux.battery_percent(said), termux.battery_celsius(said)
    assert percent is None or 0.0 <= percent <= 100.0
    assert celsius is None or abs(celsius) < float("inf")


@given(st.text())
def test_output_is_an_object_or_no_answer(text):
    assert termux.to_answer(text) is None or isinstance(json.loads(text), dict)


def test_a_number_that_is_larger_than_any_is_unknown():
    said = termux.to_answer('{"percentage": 1' + 400 * "0" + ', "temperature": 1e999}')
    assert said is not None and termux.battery_percent(said) is None and termux.battery_celsius(said) is None


def test_a_command_that_leaves_a_child_with_its_pipe_is_not_waited_for(tmp_path):
    words = [script(tmp_path / "bin", "forks", 'sleep 300 &\necho $! > "$0.pid"\necho \'{"n": 1}\'')]
    command, seen = BackgroundCommand(words, termux.to_answer), []
    asking = threading.Thread(
        target=lambda: seen.append(until(command.ask, lambda value: value is not None)), daemon=True
    )
    asking.start()
    asking.join(20.0)
    os.kill(int((tmp_path / "bin/forks.pid").read_text()), signal.SIGKILL)
    assert [answer for answer, _ in seen] == [{"n": 1}]
    command.close()
