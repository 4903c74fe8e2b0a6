"""A process in which many real device agents live: no TensorFlow, no aggregator, driven over its standard streams.

Each device has its own home (key, examples, outbox, slots) and its own connection; what they share is the process and
one interpreter for the model's pure signatures. The clock is virtual and the sensors are played; nothing else is.
Run by the fleet as `python -m fleet_simulator.device_worker` in the device environment.
"""

import os
import resource
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_runtime import identity
from edge_runtime.adapters import enrolment
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.interpreter import InterpreterRuntime
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.agent import Agent, Ports
from edge_runtime.array_examples import encode_records, read_npz
from edge_runtime.config import Settings
from edge_runtime.policy_settings import PolicySettings
from edge_runtime.session import Phase
from edge_runtime.turn_report import TurnReport, merge
from fleet_simulator.clock import VirtualClock
from fleet_simulator.control import (
    Asked,
    AskForWork,
    Failed,
    Heard,
    HearReceipts,
    Leave,
    Left,
    MovedIn,
    MoveIn,
    Reply,
    Resident,
    Score,
    Work,
    Worked,
    WorkerDied,
    read_command,
    write_frame,
)
from fleet_simulator.entropy import seeded_entropy
from fleet_simulator.nights import Visit
from fleet_simulator.sensors import Killed, PlayedSensors

REPLY_TIMEOUT_S = 20.0
PARENT_POLL_S = 0.25
# A virtual night is a handful of looks, and a device's fate is in its sensors: nothing is to wait for, or to run out.
POLICY = PolicySettings(
    profile="battery", time_zone="UTC", night_start="23:00", night_end="06:00", settle_s=0, grace_s=0, cool_down_s=0,
    minimum_window_s=0, start_battery=40, start_celsius=70, stop_celsius=70, starts=1000, energy_wh=10_000,
    written_bytes=1 << 40,
)  # fmt: skip
# What a device says when it stays away, in a word for the histogram.
REASONS = (
    ("somebody used", "busy"),
    ("not charging", "on battery"),
    ("C warm", "warm"),
    ("metered", "metered"),
    ("budget", "budget"),
    ("used up", "budget"),
    ("night", "day"),
    ("every condition", "told to wait"),
)


@dataclass
class Device:
    """One device that lives here. `agent` is replaced when its process is killed."""

    number: int
    home: Path
    settings: Settings
    ports: Ports
    sensors: PlayedSensors
    agent: Agent
    visiting: bool = False
    asked: bool = False
    freed: bool = False
    was_interrupted: bool = False

    @property
    def phase(self) -> Phase:
        """What its agent does now."""
        return self.agent.state.phase


class Worker:
    """The devices of one process, and the answers to the fleet's commands."""

    def __init__(self, runtime: InterpreterRuntime) -> None:
        self._runtime = runtime
        self._clock = VirtualClock(0.0)
        self._devices: dict[int, Device] = {}

    def answer(self, command: object) -> Reply:
        """Do what a command says."""
        match command:
            case MoveIn():
                return self._move_in(command)
            case AskForWork():
                return self._ask_for_work(command)
            case Work():
                return self._work()
            case HearReceipts():
                return self._hear_receipts()
            case Score():
                from fleet_simulator.scoring import score_persons

                return score_persons(self._runtime, command)
            case Leave():
                return self._leave()
        raise WorkerDied(f"no such command: {type(command).__name__}")

    def _move_in(self, command: MoveIn) -> MovedIn:
        self._clock.move_to(command.now)
        stored = unknown = 0
        for resident in command.residents:
            device = self._open(resident, command)
            self._devices[resident.number] = device
            device.agent.fetch_refresh()
            device.agent.examples.add_many(resident.texts, command.now)
            if resident.arrays:
                self._add_arrays(device, Path(resident.arrays), command.now)
            stored += device.agent.examples.count_words()
            unknown += sum(s.split().count("<unk>") for s in device.agent.examples.sentences())
        ids = tuple(device.agent.identity.device for device in self._devices.values())
        return MovedIn(ids, stored, unknown, self._runtime.name)

    def _add_arrays(self, device: Device, file: Path, now: float) -> None:
        held = device.agent.current()
        if held is None:
            raise WorkerDied(f"device {device.number} has no model that says what an example is")
        arrays = read_npz(file.read_bytes(), held.manifest)
        device.agent.examples.add_arrays(encode_records(arrays, held.manifest.examples), now)

    def _open(self, resident: Resident, command: MoveIn) -> Device:
        home = Path(resident.home)
        home.mkdir(parents=True, mode=0o700, exist_ok=True)
        entropy = seeded_entropy(resident.key_seed)
        who = identity.load_or_make(home, entropy)
        _, signed = enrolment.enrol(
            command.server_url, who, token=resident.token, population=command.population, label=resident.label
        )
        identity.save_enrolled(home, signed)
        enrolled = identity.load_enrolled(home)
        settings = Settings(
            population=command.population, server=command.server_url, policy=POLICY, held_out_share=0.0,
            ballast_bytes=0, personal=False, spread_s=0.0,
        )  # fmt: skip
        # The sensors ask what the agent does, and the agent needs its sensors first.
        sensors = PlayedSensors(home / "sensors", lambda: self._devices[resident.number].phase)
        ports = Ports(
            clock=self._clock,
            sensors=sensors,
            transport=MqttTransport(enrolled.broker_url, enrolled.device),
            downloads=HttpDownloads(),
            trainer=InProcessTrainer(home, self._runtime, entropy, self._clock),
            entropy=entropy,
        )
        return Device(resident.number, home, settings, ports, sensors, Agent(home, settings, ports))

    def _ask_for_work(self, command: AskForWork) -> Asked:
        self._clock.move_to(command.now)
        by_number: dict[int, Visit] = {visit.device: visit for visit in command.visits}
        check_ins = 0
        reasons: Counter[str] = Counter()
        for number, device in self._devices.items():
            visit = by_number.get(number)
            device.visiting, device.freed, device.asked = visit is not None, number in command.freed, False
            if visit is None:
                if device.freed:
                    device.sensors.rest()
                continue
            device.sensors.meet(visit)
            if device.phase is not Phase.RESTING:
                # It has work from an earlier night, which it takes up again in the second half.
                continue
            report = self._turn(device, 0.0)
            device.asked = report is not None and report.checked_in
            check_ins += device.asked
            if report is not None and device.phase is Phase.RESTING:
                reasons[short_reason(report.reason)] += 1
        return Asked(check_ins, dict(reasons))

    def _work(self) -> Worked:
        steps = trained = interrupted = resumed = killed = turned_away = late_check_ins = 0
        sent: list[int] = []
        for device in self._devices.values():
            if not (device.visiting or device.freed):
                continue
            was_sending = device.phase is Phase.SENDING
            # Who asked is answered. A device whose old lease is over asks now, and is answered on another night.
            if device.asked or device.phase is Phase.CHECKING_IN:
                report = self._turn_until(device, lambda d: d.phase is not Phase.CHECKING_IN)
            else:
                report = self._turn(device, 0.0)
            if report is None:
                killed += 1
                continue
            late_check_ins += report.checked_in
            steps += report.training_steps
            turned_away += bool(report.turned_away)
            interrupted += report.interrupted
            if report.update_queued:
                trained += 1
                resumed += device.was_interrupted
            device.was_interrupted = report.interrupted
            if report.update_sent and (report.update_queued or was_sending):
                sent.append(report.bytes_up)
        return Worked(len(sent), late_check_ins, steps, trained, interrupted, resumed, killed, turned_away, tuple(sent))

    def _hear_receipts(self) -> Heard:
        verdicts: Counter[str] = Counter()
        for device in self._devices.values():
            # An update that waits for an unmetered link has not been sent: no receipt can come.
            waits_for_link = device.phase is Phase.SENDING and device.agent.state.attempts == 0
            if not waits_for_link:
                # The night's slot is over: whoever is done does not ask for more work in this tick.
                device.sensors.rest()
            if device.phase is Phase.SENDING and not waits_for_link:
                report = self._turn_until(device, lambda d: d.phase is not Phase.SENDING)
                verdicts.update(report.receipts if report is not None else ())
            if device.visiting or device.freed:
                device.visiting = device.freed = False
                self._turn(device, 0.0)
        return Heard(dict(verdicts))

    def _turn_until(self, device: Device, settled: Callable[[Device], bool]) -> TurnReport | None:
        """Take turns until the device has settled and return what they did; None if it was killed.

        Other messages (announcements) may come before the awaited one. Raises `WorkerDied` when that does not come.
        """
        end = time.monotonic() + REPLY_TIMEOUT_S
        reports: list[TurnReport] = []
        while not reports or not settled(device):
            if time.monotonic() > end:
                raise WorkerDied(f"device {device.number} waits in {device.phase.value}: {reports[-1].reason}")
            report = self._turn(device, REPLY_TIMEOUT_S)
            if report is None:
                return None
            reports.append(report)
        return merge(reports)

    def _turn(self, device: Device, wait_s: float) -> TurnReport | None:
        try:
            return device.agent.turn(wait_s)
        except Killed:
            device.agent.abandon()
            device.agent = Agent(device.home, device.settings, device.ports)
            return None

    def _leave(self) -> Left:
        for device in self._devices.values():
            device.agent.close()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return Left(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def short_reason(reason: str) -> str:
    """Return a word for one of `eligibility.decide`'s sentences."""
    return next((word for part, word in REASONS if part in reason), reason)


def run(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Answer commands until `Leave` or the end of the pipe (then the parent is gone, and so are we)."""
    worker = Worker(InterpreterRuntime("auto"))
    while True:
        try:
            command = read_command(stdin)
        except WorkerDied:
            return 1
        try:
            write_frame(stdout, worker.answer(command))
        except Exception as e:  # noqa: BLE001 - the fleet must hear of it, whatever it is
            traceback.print_exc()
            write_frame(stdout, Failed(f"{type(e).__name__}: {e}"))
            return 1
        if isinstance(command, Leave):
            return 0


def end_with_parent(parent: int) -> None:
    """End this process soon after `parent` is gone, even while it waits for a broker: nothing may be left running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main() -> int:
    """Talk over the standard streams; what libraries print goes to stderr."""
    end_with_parent(os.getppid())
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return run(sys.stdin.buffer, replies)


if __name__ == "__main__":
    sys.exit(main())
