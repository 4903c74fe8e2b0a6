"""What each night has used of its budgets: counted while it is used, durable at the next write.

The rules:
- a training counts from its first second, not from its end, so that the budget can end it between two steps;
- what could not be written (a full disk) stays in memory, counts all the same, and is written with the next;
- a second of training belongs to the night in which it began to be counted.
"""

import sqlite3
from dataclasses import replace

from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Policy, Usage, night_of


class NightBudget:
    """One agent's count over its store. Times are Unix seconds."""

    def __init__(self, store: StateStore, policy: Policy) -> None:
        self._store = store
        self._policy = policy
        self._unwritten: dict[str, Usage] = {}
        self._since: float | None = None

    def usage(self, now: float) -> Usage:
        """Return what the night of `now` has used so far, a running training included."""
        self._count(now)
        night = night_of(self._policy, now)
        return _sum(self._store.usage(night), self._unwritten.get(night, Usage()))

    def begin_training(self, now: float) -> None:
        """Count seconds from `now` on."""
        self._since = now

    def end_training(self, now: float) -> None:
        """Count seconds no further than `now`."""
        self._count(now)
        self._since = None

    def add_sent(self, now: float, sent_bytes: int) -> None:
        """Count bytes that went to the broker."""
        if sent_bytes:
            self._add(now, Usage(sent_bytes=sent_bytes))

    def _count(self, now: float) -> None:
        if self._since is not None:
            if now > self._since:
                self._add(self._since, Usage(training_s=now - self._since))
            self._since = now

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
        """Make everything counted durable. Raises `StorageFull` or `StorageFailed`; it stays counted then."""
        self._count(now)
        if self._unwritten:
            with self._store.transaction() as connection:
                self.write(connection, now)
            self.written()


def _sum(a: Usage, b: Usage) -> Usage:
    return replace(a, training_s=a.training_s + b.training_s, sent_bytes=a.sent_bytes + b.sent_bytes)
