"""The system's clocks: wall time with a floor, time since the start, and whether the wall clock can be believed.

A board without a battery-backed clock starts in 1970, or where it was switched off. The rules:
- the wall clock is believed when network time has set it, or by the owner's word (`clock = "rtc"`). Else an answer of
  the aggregator to our own question (`prove`) says what time it is, and time goes on from it, by the clock that never
  jumps. A message that is no answer to a question that was just asked (one that waited in a broker's queue, a manifest)
  says "at least" and no more: `prove(..., fresh=False)` lifts the floor;
- time never lies below the floor: what was proved, and what was seen while it was believed. The floor is written to a
  file at most once an hour, and read after a restart. Time that is not believed never becomes a floor: a clock that
  once said 2036 must not hold the device there;
- a source that lies more than `AGREES_S` below the floor contradicts what was believed before, and one of the two is
  wrong: nothing is believed until it has passed the floor, or the file is deleted;
- who only looks (a command beside the agent) cannot ask the aggregator, so it takes the floor for the proof that it was
  to the agent, if the file was written since the device started: the time since then is that of the wall clock, which
  may be wrong but moves on;
- whether network time has set the clock: /run/systemd/timesync/synchronized (systemd-timesyncd), else the property
  NTPSynchronized of org.freedesktop.timedate1, which reads the kernel's own flag, so that chrony and ntpd count, too.
  It is asked once a minute until it says yes, and then believed until the device restarts.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

from edge_runtime.adapters.files import write_atomically
from edge_runtime.adapters.sensors.system_bus import SystemBus
from edge_runtime.ports import StorageFailed, StorageFull

FLOOR_FILE = "clock_floor"
WRITE_EVERY_S = 3600.0
ASK_EVERY_S = 60.0
# How far two right clocks may lie apart: seconds on the way, and a server's own clock.
AGREES_S = 120.0
MARK = "run/systemd/timesync/synchronized"
TIMEDATE = ("org.freedesktop.timedate1", "/org/freedesktop/timedate1", "org.freedesktop.timedate1")
# The year 9999 in whichever zone: what lies beyond is no time, and no calendar reads it.
_LAST_S = 253_370_764_800.0
_MAX_FLOOR_CHARACTERS = 32


def boot_time() -> float:
    """Return seconds since the device started, suspended time included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NetworkTime:
    """Whether network time has set the clock: the mark of timesyncd under `root`, or the bus."""

    def __init__(self, root: Path = Path("/"), bus: SystemBus | None = None) -> None:
        self._mark = root / MARK
        self._bus = bus or SystemBus(root, boot_time)

    def __call__(self) -> bool:
        """Ask now; it takes at most half a second where the bus hangs."""
        return self._mark.exists() or self._bus.get(*TIMEDATE, "NTPSynchronized") is True


class SystemClock:
    """Implements the Clock port.

    `floor_file` is HOME/clock_floor; without one, nothing is remembered. `trust_rtc` is the owner's word. The rest is
    where time comes from, for tests and simulations. `writes` is false where somebody only looks (a command beside the
    agent).
    """

    def __init__(
        self,
        floor_file: Path | None = None,
        *,
        trust_rtc: bool = False,
        wall: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = boot_time,
        synchronized: Callable[[], bool] | None = None,
        writes: bool = True,
    ) -> None:
        self._floor_file = floor_file if writes else None
        self._trust_rtc = trust_rtc
        self._wall = wall
        self._elapsed = elapsed
        self._synchronized = synchronized if synchronized is not None else NetworkTime()
        self._set = False
        self._ask_at = -math.inf
        self._floor, self._floor_at = _read_floor(floor_file), elapsed()
        self._proved = None if writes else self._proved_to_the_agent(floor_file)
        self._write_at = -math.inf
        self._contradicted = False
        self.floor_error = ""

    def _proved_to_the_agent(self, floor_file: Path | None) -> tuple[float, float] | None:
        try:
            age_s = self._wall() - floor_file.stat().st_mtime if floor_file is not None and self._floor else -1.0
        except OSError:
            return None
        # A file from before this start was written by a clock of which nothing is known any more.
        return (self._floor, self._floor_at - age_s) if 0.0 <= age_s <= self._floor_at else None

    def now(self) -> float:
        """Return Unix seconds, at least the floor."""
        now, believed = self._look()
        if believed:
            self._remember(now)
        return now

    def elapsed(self) -> float:
        """Return seconds since the device started, suspended time included."""
        return self._elapsed()

    def trusted(self) -> bool:
        """Whether the wall clock can be believed."""
        return self._look()[1]

    @property
    def contradicted(self) -> bool:
        """Whether what says the time lies below what was believed before, so that one of the two is wrong."""
        self._look()
        return self._contradicted

    def _look(self) -> tuple[float, bool]:
        elapsed = self._elapsed()
        source: float | None = None
        if self._trust_rtc or self._network_time():
            source = self._wall()
        elif self._proved is not None:
            source = self._proved[0] + elapsed - self._proved[1]
        if source is not None and source >= self._floor - AGREES_S:
            self._contradicted = False
            return max(source, self._floor), True
        self._contradicted = source is not None
        # What waits for a time must come to it all the same: time goes on from the floor, and is not believed.
        floor = self._floor + max(0.0, elapsed - self._floor_at) if self._floor else 0.0
        return max(floor, self._wall() if source is None else source), False

    def _network_time(self) -> bool:
        if not self._set and self._elapsed() >= self._ask_at:
            self._ask_at = self._elapsed() + ASK_EVERY_S
            self._set = self._synchronized()
        return self._set

    def prove(self, server_time: float, *, fresh: bool) -> None:
        """A signed message says `server_time` (Unix seconds); `fresh`: it answers a question that was just asked."""
        if not 0.0 < server_time <= _LAST_S:
            return
        if fresh:
            self._proved = (server_time, self._elapsed())
        self._lift(server_time)

    def _lift(self, floor: float) -> None:
        if floor > self._floor:
            self._floor, self._floor_at = floor, self._elapsed()

    def _remember(self, now: float) -> None:
        self._lift(now)
        if self._floor_file is None or self._elapsed() < self._write_at:
            return
        self._write_at = self._elapsed() + WRITE_EVERY_S
        try:
            write_atomically(self._floor_file, f"{now:.0f}\n".encode())
            self.floor_error = ""
        except (StorageFull, StorageFailed) as e:
            # A clock goes on without its file; the doctor says so, and in an hour it is tried again.
            self.floor_error = str(e)


def _read_floor(path: Path | None) -> float:
    if path is None:
        return 0.0
    try:
        with path.open(encoding="ascii") as file:
            value = float(file.read(_MAX_FLOOR_CHARACTERS))
    except (OSError, ValueError):
        return 0.0
    return value if 0.0 < value <= _LAST_S else 0.0
