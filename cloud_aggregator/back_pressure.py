"""Whether the aggregator may hand out more work than it could store: slow and full disks.

The rules:
- slow: the moving average of a group's commit time, times the groups that wait, is more than a bound; then no lease is
  offered until it has fallen to half the bound, so that the answer does not flap;
- full: a commit failed for want of room, or less than a reserve is left; then no lease is offered until a commit has
  gone through again and the reserve is there. What was acknowledged is on the disk already and stays;
- nothing is thrown away for either: what waits is not acknowledged, and the broker and the devices keep it.
Devices are turned away with the reason and the longest retry window.
"""

import threading
from dataclasses import dataclass
from typing import Final, Literal

SMOOTHING: Final = 0.2

PressureName = Literal["", "storage slow", "storage full"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that waiting messages may take, and bytes that must be left on the disk."""

    backlog_s: float = 10.0
    reserve_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pressure:
    """How storage is: `name` is empty while all is well; times in seconds, room in bytes (None: not known)."""

    name: PressureName
    told: str
    commit_s: float
    waiting_groups: float
    room_bytes: int | None


class BackPressure:
    """What is known of the storage's pace. Any thread may call it; times are given, no clock is read."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._commit_s = 0.0
        self._waiting = 0.0
        self._slow = False
        self._full = ""
        self._room: int | None = None

    def committed(self, seconds: float, waiting_groups: float) -> None:
        """A group was stored in that time, while so many groups' messages waited."""
        with self._lock:
            before = self._commit_s or seconds
            self._commit_s = (1 - SMOOTHING) * before + SMOOTHING * seconds
            self._waiting = waiting_groups
            backlog = self._commit_s * waiting_groups
            self._slow = backlog > (self._limits.backlog_s / 2 if self._slow else self._limits.backlog_s)

    def stored(self) -> str:
        """A commit went through: there is room. Return what was told of the lack of it, empty if there was none."""
        with self._lock:
            told, self._full = self._full, ""
            return told

    def failed_full(self, told: str) -> None:
        """A commit failed for want of room."""
        with self._lock:
            self._full = told

    def measured_room(self, room_bytes: int | None) -> None:
        """So many bytes are left for the database (None: nobody knows)."""
        with self._lock:
            self._room = room_bytes

    def now(self) -> Pressure:
        """Return how storage is."""
        with self._lock:
            name: PressureName = ""
            told = ""
            short = self._room is not None and self._room < self._limits.reserve_bytes
            if self._full or short:
                name = "storage full"
                told = self._full or f"{self._room} bytes are left, {self._limits.reserve_bytes} are kept in reserve"
            elif self._slow:
                name = "storage slow"
                told = f"a group takes {self._commit_s:.3f} s, {self._waiting:.1f} groups wait"
            return Pressure(name, told, self._commit_s, self._waiting, self._room)
