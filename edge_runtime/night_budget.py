"""What each night has used of its budgets: counted while it is used, durable at the next write.

The rules:
- a training counts from its first second, not from its end, so that the budget can end it between two steps;
- seconds of training are counted by the clock that never jumps; the wall clock only names the night;
- what could not be written (a full disk) stays in memory, counts all the same, and is written with the next;
- a second of training belongs to the night in which it began to be counted.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import astuple, replace

from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Policy, Usage, night_of

WRITTEN_STEP_BYTES = 1 << 20


class NightBudget:
    """One agent's count over its store. Times are Unix seconds, and `elapsed` those since the device started."""

    def __init__(self, store: StateStore, policy: Policy, elapsed: Callable[[], float]) -> None:
        self._store = store
        self._policy = policy
        self._elapsed = elapsed
        self._unwritten: dict[str, Usage] = {}
        # When counting went on last: Unix seconds, for the night, and elapsed ones.
        self._since: tuple[float, float] | None = None

    def usage(self, now: float) -> Usage:
        """Return what the night of `now` has used so far, a running training included."""
        self._count(now)
        night = night_of(self._policy, now)
        return _sum(self._store.usage(night), self._unwritten.get(night, Usage()))

    @property
    def unwritten_s(self) -> float:
        """Seconds of training that are counted and not durable yet."""
        return sum(used.training_s for used in self._unwritten.values())

    def begin_training(self, now: float) -> None:
        """Count seconds from `now` on."""
        self._since = (now, self._elapsed())

    def end_training(self, now: float) -> None:
        """Count seconds no further than `now`."""
        self._count(now)
        self._since = None

    def add_sent(self, now: float, sent_bytes: int) -> None:
        """Count bytes that went to the broker."""
        if sent_bytes:
            self._add(now, Usage(sent_bytes=sent_bytes))

    def add(self, now: float, used: Usage) -> None:
        """Count what was used otherwise: CPU seconds, bytes written, a start."""
        if used != Usage():
            self._add(now, used)

    def _count(self, now: float) -> None:
        if self._since is None:
            return
        (when, before), elapsed = self._since, self._elapsed()
        if elapsed > before:
            self._add(when, Usage(training_s=elapsed - before))
        self._since = (now, elapsed)

    def _add(self, when: float, used: Usage) -> None:
        night = night_of(self._policy, when)
        self._unwritten[night] = _sum(self._unwritten.get(night, Usage()), used)

    def write(self, connection: sqlite3.Connection, now: float) -> None:
        """Write in the caller's transaction; call `written` once that is committed."""
        self._count(now)
        for night, used in self._unwritten.items():
            self._store.add_usage(connection, night, used)

    def written(self) -> None:
        """What `write` wrote is durable."""
        self._unwritten.clear()

    def record(self, now: float) -> None:
        """Make everything counted durable. Raises `StorageFull` or `StorageFailed`; it stays counted then.

        Bytes written are recorded with something else, or from a megabyte on: writing them down is a write itself.
        """
        self._count(now)
        if any(_worth_a_write(used) for used in self._unwritten.values()):
            with self._store.transaction() as connection:
                self.write(connection, now)
            self.written()


def _worth_a_write(used: Usage) -> bool:
    return used.written_bytes >= WRITTEN_STEP_BYTES or replace(used, written_bytes=0) != Usage()


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(*(mine + more for mine, more in zip(astuple(a), astuple(b), strict=True)))
