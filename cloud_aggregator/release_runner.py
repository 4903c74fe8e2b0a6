"""Releases that the schedule makes due: none is lost, and the gate's minutes stop nothing else.

The rules:
- a schedule goes on to its next time in the transaction that records the release, or that finds nothing newer; a
  process that dies before that finds the schedule due again;
- a release that failed for another reason is tried again after a while;
- with an evaluator one release at a time is judged on a thread of its own, and a later turn tells how it ended; without
  one there is nothing to wait for, and it happens within the turn.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cloud_aggregator.records import Records, ReleaseRecord
from cloud_aggregator.release_schedule import after_run, is_due

TRY_AGAIN_S: Final = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a scheduled release ended; `version` None: nothing was released, for this reason."""

    population: str
    version: int | None
    reason: str

    @classmethod
    def of(cls, release: ReleaseRecord) -> "Outcome":
        """Return the outcome of a recorded release."""
        return cls(release.population, release.version if release.outcome == "released" else None, release.reason)


def advance(records: Records, population: str, now: int) -> None:
    """Let a schedule that was due at `now` stand for its next time."""
    schedule = records.schedule(population)
    if schedule is not None and is_due(schedule, now):
        records.set_schedule(after_run(schedule, now))


class ReleaseRunner:
    """Runs `release` (population, Unix seconds) for what is due. `threaded`: on a thread of its own.

    `release` raises nothing that the runner knows how to mend: whatever it raises is told and tried again.
    """

    def __init__(self, release: Callable[[str, float], Outcome], *, threaded: bool) -> None:
        self._release = release
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._ended: deque[Outcome] = deque()
        self._not_before: dict[str, float] = {}

    def run(self, due: list[str], now: float) -> list[Outcome]:
        """Start what is due and return what has ended since the last call. Never raises for a release."""
        for population in due:
            if now < self._not_before.get(population, now):
                continue
            if not self._threaded:
                self._run_one(population, now)
            elif self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run_one, args=(population, now), name="release-gate", daemon=True
                )
                self._thread.start()
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
        return ended

    def join(self, timeout_s: float) -> None:
        """Wait for the release that is being judged."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run_one(self, population: str, now: float) -> None:
        try:
            outcome = self._release(population, now)
        except Exception as e:  # noqa: BLE001 - a thread's exception would be lost, and the release with it
            self._not_before[population] = now + TRY_AGAIN_S
            outcome = Outcome(population, None, f"{e}; trying again in {TRY_AGAIN_S} s")
        self._ended.append(outcome)
