"""`edge-runtime run` as a stranger leaves it running: a supervisor, a trainer beside it, and what happens to them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_runtime.adapters.sensors.files import write_fixture
from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import DAY_S
from tests.system.test_fleet import BUNDLE, SETTINGS, people
from wire_contract.messages import CodecPlan, Plan

ROOT = Path(__file__).parents[2]
# Long enough to be interrupted: hundreds of steps of the tiny model.
LONG = Plan(rows=64, epochs=100, learning_rate=0.05, clip_norm=10.0, example_cap=64, codec=CodecPlan(kept=0.02))
SETTINGS_TOML = """
sensors_root = "{root}"
held_out_share = 0.0
personal = false
spread_s = 0.0
[policy]
night_start = "00:00"
night_end = "00:00"
clock = "rtc"
settle_s = 0.0
cool_down_s = 0.0
minimum_window_s = 0.0
starts = 1000
"""


class Device:
    """An enrolled home, its played sensors, and the process that lives in it."""

    def __init__(self, folder: Path, server: str, token: str) -> None:
        self.home, self.sensors = folder / "home", folder / "sensors"
        self.home.mkdir(parents=True, mode=0o700)
        self.play()
        (folder / "token").write_text(token)
        (self.home / "settings.toml").write_text(SETTINGS_TOML.format(root=self.sensors))
        self.call("enrol", server, "--token-file", str(folder / "token"))
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log"

    def play(self, *, charging: bool = True, idle: float = 3600.0) -> None:
        write_fixture(self.sensors, charging=charging, battery=90.0, idle_seconds=idle, metered=False, celsius=40.0)

    def call(self, *arguments: str, text: str | None = None) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-m", "edge_runtime.cli", *arguments, "--home", str(self.home), "--json"],
            cwd=ROOT, capture_output=True, text=True, input=text, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_runtime.cli", "run", "--home", str(self.home), "--wait", "1"],
                cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=20)
        self.process = None

    def trainer(self) -> int | None:
        """Return the process id of the trainer, if one runs in this home."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    running = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
                except OSError:
                    continue
                if running and b"edge_runtime.trainer" in words and str(self.home).encode() in words:
                    return int(entry.name)
        return None

    def phase(self) -> str:
        return str(self.call("status")["phase"])

    def history(self) -> list[dict[str, object]]:
        return self.call("history")["items"]  # type: ignore[return-value]


def wait_until(holds, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


@pytest.fixture
def fleet_and_device(tmp_path, request):
    import msgspec

    plan = getattr(request, "param", SETTINGS.plan)
    settings = msgspec.structs.replace(SETTINGS, plan=plan, goal_count=100)
    with Fleet(tmp_path / "fleet", BUNDLE, settings, seed=1, now=int(time.time()) - DAY_S, processes=1) as fleet:
        token = fleet.host.service.mint_token(fleet.host.population, "device", time.time())
        device = Device(tmp_path, fleet.host.http.url, token)
        device.call("add", "-", text="\n".join(people()[0]))
        with fleet.on_wall_clock():
            try:
                yield fleet, device
            finally:
                device.end(signal.SIGKILL)
                if device.trainer():
                    os.kill(device.trainer(), signal.SIGKILL)


def test_a_night_is_trained_beside_the_supervisor_and_the_trainer_ends_with_it(fleet_and_device):
    fleet, device = fleet_and_device
    device.start()
    wait_until(lambda: fleet.host.count_accepted() == (1, 1))
    wait_until(lambda: device.trainer() is None)
    maps = Path(f"/proc/{device.process.pid}/maps").read_text()
    assert "numpy" not in maps and "litert" not in maps and "tflite" not in maps
    wait_until(lambda: [row["verdict"] for row in device.history()] == ["accepted"])
    device.end()
    assert device.phase() == "resting"


@pytest.mark.parametrize("fleet_and_device", [LONG], indirect=True)
def test_the_cable_stops_the_trainer_and_another_night_goes_on_to_one_update(fleet_and_device):
    fleet, device = fleet_and_device
    device.start()
    wait_until(lambda: device.trainer() is not None and device.phase() == "training", 30)
    device.play(charging=False)
    wait_until(lambda: device.trainer() is None, 10)
    assert device.phase() == "training"
    assert "charging" in str(device.call("explain")["stops"])
    assert fleet.host.count_accepted() == (0, 0)
    device.play()
    wait_until(lambda: fleet.host.count_accepted() == (1, 1))
    assert len(device.history()) == 1


@pytest.mark.parametrize("victim", ["trainer", "supervisor"])
@pytest.mark.parametrize("fleet_and_device", [LONG], indirect=True)
def test_a_killed_process_leaves_nobody_behind_and_the_lease_ends_in_one_update(fleet_and_device, victim):
    fleet, device = fleet_and_device
    device.start()
    wait_until(lambda: device.trainer() is not None and device.phase() == "training", 30)
    if victim == "trainer":
        os.kill(device.trainer(), signal.SIGKILL)
    else:
        device.end(signal.SIGKILL)
        wait_until(lambda: device.trainer() is None, 10)
        device.start()
    wait_until(lambda: fleet.host.count_accepted() == (1, 1), 90)
    assert len(device.history()) == 1


@pytest.mark.parametrize("fleet_and_device", [LONG], indirect=True)
def test_forgetting_reaches_the_trainer_and_nothing_of_the_training_is_sent(fleet_and_device):
    fleet, device = fleet_and_device
    device.start()
    wait_until(lambda: device.trainer() is not None and device.phase() == "training", 30)
    assert device.call("forget", "--everything", "--yes")["words_deleted"]
    wait_until(lambda: device.trainer() is None, 10)
    wait_until(lambda: device.phase() == "resting", 10)
    assert device.call("status")["examples_words"] == 0
    assert fleet.host.count_accepted() == (0, 0)
    assert not list(device.home.glob("checkpoint*"))


def test_a_device_with_nothing_to_do_starts_itself_anew_as_a_small_process_and_wakes_by_itself(fleet_and_device):
    fleet, device = fleet_and_device
    device.play(charging=False)
    device.start()
    process = device.process.pid
    maps = Path(f"/proc/{process}/maps")
    # A minute of rest, then the same process is another program; cryptography is gone from it.
    wait_until(lambda: "cryptography" in maps.read_text(), 20)
    wait_until(lambda: "cryptography" not in maps.read_text() and "msgspec" in maps.read_text(), 100)
    assert device.process.poll() is None
    refused = subprocess.run(
        [sys.executable, "-m", "edge_runtime.cli", "run", "--once", "--home", str(device.home)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 4 and "runs in" in refused.stderr
    device.end()
    assert fleet.host.count_accepted() == (0, 0)
