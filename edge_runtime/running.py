"""`edge-runtime run`: an agent while there is business, and a small process that looks while there is none.

The rules:
- it begins with the agent, so that whatever is wrong with a home is said at once;
- an agent that has been at rest for a while ends, and the process starts itself anew (`os.execv`) as one that only
  looks (`rest`): what the night needed is gone from memory, and so is what a process gathers in a year;
- after work it waits until a cool-down is over, for a new process does not remember one;
- one process a home: the lock is held from the start to the end, across the new start, too.
"""

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result
from edge_runtime.adapters.files import sweep_litter
from edge_runtime.config import Settings, read_settings
from edge_runtime.eligibility import JUST_STARTED, Standing
from edge_runtime.ports import PortError
from edge_runtime.rest import Rest, rest_of

if TYPE_CHECKING:
    from edge_runtime.agent import Agent
    from edge_runtime.turn_report import TurnReport

# In the environment of a process that was started anew: the lock's descriptor.
LOCK_VARIABLE = "EDGE_RUNTIME_LOCK"
RESTING_S = 30.0
BUSY_S = 1.0
# How soon a condition that fell is noticed while the trainer works: a stop takes a quarter of a second at most.
WATCH_S = 0.05
KEEP_ROOM_S = 3600.0
# A minute shows that nothing is to be done; after work, the longest usual cool-down has passed.
REST_AFTER_S = 60.0
REST_AFTER_WORK_S = 900.0

StartAnew = Callable[[int], None]


def start_anew(lock: int) -> None:
    """Replace this process by a new one of the same command line, which holds the lock `lock`. Does not return."""
    os.set_inheritable(lock, True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, LOCK_VARIABLE: str(lock)})


def run(home: Path, *, once: bool, wait_s: float, record: Path | None = None, anew: StartAnew = start_anew) -> Result:
    """Live until told to stop (SIGTERM, Ctrl-C), or take one turn. With `record`, what the sensors say goes into a
    trace, and the process stays an agent. Raises `CommandError`."""
    lock, resting = _lock(home)
    try:
        if once:
            return _one_turn(home, wait_s, record)
        return _Life(home, wait_s, record, resting=resting, rested=lambda: anew(lock)).live()
    except PortError as e:
        raise CommandError(str(e), code="HOME_BROKEN", hint="edge-runtime doctor") from e
    finally:
        os.close(lock)


class _Life:
    def __init__(
        self, home: Path, wait_s: float, record: Path | None, *, resting: bool, rested: Callable[[], None]
    ) -> None:
        self._home = home
        self._wait_s = wait_s
        self._record = record
        self._resting = resting
        self._rested = rested
        self._stop = threading.Event()
        self._said = ""
        self._turns = 0

    def live(self) -> Result:
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        sweep_litter(self._home)
        standing = self._rest(read_settings(self._home)) if self._resting else JUST_STARTED
        if self._stop.is_set():
            return Result({"turns": 0, "phase": "resting"})
        from edge_runtime.home_opening import open_agent

        agent = open_agent(self._home, self._record, standing=standing)
        try:
            self._be_busy(agent)
        finally:
            agent.close()
        if not self._stop.is_set():
            self._rested()
        return Result({"turns": self._turns, "phase": agent.state.phase.value})

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _rest(self, settings: Settings) -> Standing:
        """Look until the agent is wanted, or the process was told to stop."""
        rest = rest_of(self._home, settings)
        try:
            while not self._stop.is_set():
                if self._look(rest):
                    break
                self._stop.wait(RESTING_S)
            return rest.standing
        finally:
            rest.close()

    def _look(self, rest: Rest) -> bool:
        try:
            decision = rest.look()
            self._say("resting", decision.reason)
            return rest.wants_agent(decision)
        except PortError as e:
            # The agent says what it is, and what becomes of it.
            self._say("resting", str(e))
            return True

    def _be_busy(self, agent: "Agent") -> None:
        """Take turns until the process is told to stop, or has been at rest for a while."""
        keep_room(agent)
        kept_at = rest_since = time.monotonic()
        worked = False
        while not self._stop.is_set():
            report = agent.turn(self._wait_s)
            self._turns += 1
            refused = f" ({', '.join(dict.fromkeys(report.refused))})" if report.refused else ""
            self._say(report.phase, report.reason + refused)
            now = time.monotonic()
            worked = worked or agent.works or bool(report.training_steps)
            if report.phase != "resting" or report.connected or agent.works or report.may_train:
                rest_since = now
            if self._record is None and now - rest_since >= (REST_AFTER_WORK_S if worked else REST_AFTER_S):
                return
            if not agent.works and now - kept_at >= KEEP_ROOM_S:
                # A full disk took it, or there was no room at the start.
                keep_room(agent)
                kept_at = now
            self._pause(agent, BUSY_S if report.connected or agent.works else RESTING_S)

    def _pause(self, agent: "Agent", pause_s: float) -> None:
        """Wait for the next turn; while the trainer works, look at the conditions several times a second."""
        end = time.monotonic() + pause_s
        while not self._stop.is_set() and (left := end - time.monotonic()) > 0:
            if not agent.works:
                self._stop.wait(left)
                return
            self._stop.wait(min(left, WATCH_S))
            agent.watch()
            if agent.work_is_over():
                return

    def _say(self, phase: str, reason: str) -> None:
        line = f"{phase}: {reason}"
        if line != self._said:
            sys.stderr.write(line + "\n")
            self._said = line


def _one_turn(home: Path, wait_s: float, record: Path | None) -> Result:
    from edge_runtime.device_commands import as_data
    from edge_runtime.home_opening import open_agent
    from edge_runtime.turn_report import merge

    sweep_litter(home)
    agent = open_agent(home, record)
    try:
        keep_room(agent)
        reports: list[TurnReport] = [agent.turn(wait_s)]
        # What the trainer works on is seen to its end, and another turn sends it.
        while agent.works:
            time.sleep(WATCH_S)
            agent.watch()
            if agent.work_is_over():
                reports.append(agent.turn(wait_s))
        return Result(as_data(merge(reports)))
    finally:
        agent.close()


def keep_room(agent: "Agent") -> None:
    """Lay out the ballast; a home without one works, and a disk that is broken says so at the first write."""
    try:
        agent.room.keep()
    except PortError as e:
        sys.stderr.write(f"no room is kept for a full disk: {e}\n")


def _lock(home: Path) -> tuple[int, bool]:
    """Hold the home for one running process: two agents would push each other off the broker by turns.

    Returns the lock's descriptor, and whether this process was started anew with it.
    """
    inherited = os.environ.pop(LOCK_VARIABLE, "")
    if not home.is_dir():
        hint = "edge-runtime enrol SERVER --token-file FILE"
        message = f"{home} holds no device key"
        raise CommandError(message, exit_code=ExitCode.REFUSED, code="NOT_ENROLLED", hint=hint)
    path = home / "run.lock"
    if inherited.isdigit() and _is_open_at(int(inherited), path):
        os.set_inheritable(int(inherited), False)
        return int(inherited), True
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(handle)
        raise CommandError(
            f"an agent runs in {home} already", exit_code=ExitCode.REFUSED, code="ALREADY_RUNNING"
        ) from e
    return handle, False


def _is_open_at(handle: int, path: Path) -> bool:
    try:
        held, there = os.fstat(handle), path.stat()
    except OSError:
        return False
    return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
