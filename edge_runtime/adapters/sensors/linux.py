"""All the sensors of a Linux device or of Termux on a phone, each from its best source.

The rules:
- power and heat: the kernel's files, else Termux; idleness and link: the owner's hook while it is fresh, else logind
  and NetworkManager, else Termux, else the hook as old as it is;
- files are read at most once in `POLL_S`, so that the question between two training steps costs next to nothing and a
  flip is still seen in time; the services on the bus once in `ASK_S`, since each question wakes two processes. The age
  of a reading says how old it is;
- a source that is slow or hangs never holds up a read (`background_command`, `system_bus`).
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.adapters.sensors import logind, metered_link, termux, under_voltage
from edge_runtime.adapters.sensors.background_command import BackgroundCommand
from edge_runtime.adapters.sensors.files import FileSensors
from edge_runtime.adapters.sensors.system_bus import SystemBus
from edge_runtime.eligibility import Reading, Readings

# A stop may take a quarter of a second in all, and the supervisor looks every 0.05 s.
POLL_S = 0.1
ASK_S = 1.0
HOOK_FRESH_S = 120.0
THROTTLED_EVERY_S = 30.0

Value = TypeVar("Value", bound=float)


class LinuxSensors:
    """Implements the Sensors port. Nothing outside `root` is asked, save for commands on `path`.

    `group` as in `pressure.read_load`; `path` is where commands are looked for, by default the environment's and
    Termux's own folder if `root` is the real one, else nowhere.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        group: str | None = None,
        path: str | None = None,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        real = root == Path("/")
        if path is None:
            path = os.pathsep.join((os.environ.get("PATH", ""), termux.PREFIX_BIN)) if real else ""
        self._root = root
        self._elapsed = elapsed
        self._files = FileSensors(root, group, undated_is_fresh=not real)
        self._bus = SystemBus(root, elapsed)
        self._battery_status = self._command(termux.BATTERY_COMMAND, termux.to_answer, path, 5.0)
        self._wifi = self._command(termux.WIFI_COMMAND, termux.to_answer, path, 5.0)
        self._throttled = self._command(under_voltage.COMMAND, under_voltage.to_answer, path, THROTTLED_EVERY_S)
        self._asked: dict[str, tuple[float, Any]] = {}
        self._read: tuple[float, Readings] | None = None

    def _command(
        self, words: tuple[str, ...], to_answer: Callable[[str], Mapping[str, object] | None], path: str, every_s: float
    ) -> BackgroundCommand | None:
        place = shutil.which(words[0], path=path) if path else None
        if place is None:
            return None
        return BackgroundCommand((place, *words[1:]), to_answer, every_s=every_s, elapsed=self._elapsed)

    def read(self, now: float) -> Readings:
        """Return every reading, taken at most `POLL_S` ago."""
        at = self._elapsed()
        if self._read is None or not 0.0 <= at - self._read[0] < POLL_S:
            self._read = (at, self._all(now))
        return self._read[1]

    def _all(self, now: float) -> Readings:
        readings = self._files.read(now)
        readings = replace(readings, idle_s=self._idle_s(readings.idle_s), metered=self._metered(readings.metered))
        if readings.under_voltage.value is None and self._throttled is not None:
            weak = _answer(self._throttled, lambda said: bool(said["under_voltage"]), "vcgencmd")
            readings = replace(readings, under_voltage=weak)
        if self._battery_status is not None and (readings.charging.value is None or readings.battery.value is None):
            source = termux.BATTERY_COMMAND[0]
            readings = replace(
                readings,
                charging=_answer(self._battery_status, termux.charging, source),
                battery=_answer(self._battery_status, termux.battery_percent, source),
                battery_celsius=_answer(self._battery_status, termux.battery_celsius, source),
                has_battery=True,
            )
        return readings

    def _idle_s(self, hook: Reading[float]) -> Reading[float]:
        if _fresh(hook):
            return hook
        asked = self._ask(logind.SOURCE, logind.read_idle_s)
        return hook if asked.value is None else asked

    def _metered(self, hook: Reading[bool]) -> Reading[bool]:
        if _fresh(hook):
            return hook
        asked = self._ask(metered_link.SOURCE, metered_link.read_metered)
        if asked.value is not None:
            return asked
        if self._wifi is not None:
            wifi = _answer(self._wifi, termux.metered, termux.WIFI_COMMAND[0])
            if wifi.value is not None:
                return wifi
        return hook

    def _ask(self, source: str, question: Callable[[SystemBus], Value | None]) -> Reading[Value]:
        at = self._elapsed()
        before = self._asked.get(source)
        if before is None or not 0.0 <= at - before[0] < ASK_S:
            before = self._asked[source] = (at, question(self._bus))
        return Reading(before[1], at - before[0], source)

    def read_answered(self, now: float, at_most_s: float = 3.0) -> Readings:
        """Return every reading, after waiting for the first answers of commands: for who looks only once."""
        readings, end = self.read(now), time.monotonic() + at_most_s
        while self.waits and time.monotonic() < end:
            time.sleep(2 * POLL_S)
            readings = self.read(now)
        return readings

    @property
    def waits(self) -> bool:
        """Whether a command has yet to give its first answer."""
        return any(command.waits for command in self._commands())

    def _commands(self) -> list[BackgroundCommand]:
        return [command for command in (self._battery_status, self._wifi, self._throttled) if command is not None]

    def close(self) -> None:
        """Let go of the bus and end the commands that run."""
        self._bus.close()
        for command in self._commands():
            command.close()


def _fresh(hook: Reading[Value]) -> bool:
    return hook.value is not None and -HOOK_FRESH_S <= hook.age_s <= HOOK_FRESH_S


def _answer(
    command: BackgroundCommand, value_of: Callable[[Mapping[str, object]], Value | None], source: str
) -> Reading[Value]:
    said = command.ask()
    return Reading(source=source) if said is None else Reading(value_of(said[0]), said[1], source)
