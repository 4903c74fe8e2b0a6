"""What a device saw, look by look, as JSON lines; and what a policy decides on it. Pure.

    {"moment": {"now": .., "elapsed": .., "trusted": true}, "readings": {..}, "usage": {..}, "training": false}

A trace answers "why did it not train last night", on another machine, and with another policy: `replay` gives the
decisions, with `eligibility.decide` itself. The rules:
- a line is a look; unknown keys, a wrong type or a line that is too long are refused with the line's number;
- JSON has no infinity: a reading that is no finite number, or of no finite age, is written as unknown, which is what
  the policy holds it for;
- a trace holds no text, names and addresses of nobody; it does say when somebody used the device.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from edge_runtime.eligibility import Decision, Moment, Policy, Reading, Readings, Standing, Usage, decide

MAX_LINE_BYTES = 8192
# The end of the year 9998: also a day later, and in whichever zone, a calendar can read the time.
LAST_S = 253_370_764_799.0


class TraceInvalid(ValueError):  # noqa: N818 - named for what the trace is
    """A line is no look; the message says which line, and why."""


class Look(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One look: the arguments of `decide` but for the policy and what it remembers."""

    moment: Moment
    readings: Readings
    usage: Usage
    training: bool
    lease_until: float | None = None


def encode_look(look: Look) -> bytes:
    """Return the line, with its end."""
    known: dict[str, Any] = {
        name: _finite(value)
        for name in Readings.__dataclass_fields__
        if isinstance(value := getattr(look.readings, name), Reading)
    }
    return msgspec.json.encode(msgspec.structs.replace(look, readings=replace(look.readings, **known))) + b"\n"


def _finite(reading: Reading[Any]) -> Reading[Any]:
    known = reading.value is not None and math.isfinite(reading.value) and math.isfinite(reading.age_s)
    return reading if known else Reading(source=reading.source)


def decode_looks(lines: Iterable[bytes]) -> Iterator[Look]:
    """Yield the looks of a trace; empty lines are passed over. Raises `TraceInvalid`."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            raise TraceInvalid(f"line {number}: a look has at most {MAX_LINE_BYTES} bytes, got {len(line)}")
        try:
            look = msgspec.json.decode(line, type=Look)
        except (msgspec.DecodeError, RecursionError) as e:
            raise TraceInvalid(f"line {number}: {e}") from e
        if not (0.0 <= look.moment.now <= LAST_S):
            raise TraceInvalid(f"line {number}: a moment lies between the years 1970 and 9998, got {look.moment.now}")
        yield look


def replay(looks: Iterable[Look], policy: Policy, standing: Standing | None = None) -> Iterator[tuple[Look, Decision]]:
    """Yield each look with the decision of `policy`, beginning as an agent that just started."""
    standing = standing or Standing()
    for look in looks:
        standing, decision = decide(
            standing, look.readings, policy, look.usage, look.moment,
            training=look.training, lease_until=look.lease_until,
        )  # fmt: skip
        yield look, decision
