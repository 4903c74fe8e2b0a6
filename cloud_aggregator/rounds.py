"""When the open round closes and its buffer becomes a new training version.

The rules:
- at the goal count, at once;
- at the report deadline, if at least the minimum of updates is there; the divisor stays the goal count, so a
  part-filled buffer moves the model less, never more;
- below the minimum the round waits on: nothing that was accepted is thrown away.
"""

from dataclasses import dataclass
from typing import Literal

Cause = Literal["goal count", "report deadline"]


@dataclass(frozen=True, slots=True)
class RoundRules:
    """Counts of updates, and how long after its opening a round may wait for the rest (seconds)."""

    goal_count: int
    minimum_updates: int
    report_deadline_s: int


def close_cause(rules: RoundRules, *, updates: int, opened_at: int, now: int) -> Cause | None:
    """Return why the round closes now, or None while it stays open. `opened_at` is when its first update came."""
    if updates >= rules.goal_count:
        return "goal count"
    if updates >= max(1, rules.minimum_updates) and now >= opened_at + rules.report_deadline_s:
        return "report deadline"
    return None
