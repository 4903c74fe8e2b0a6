"""May this device train, and may it use the network, now? Pure: readings, policy, usage and the time are arguments.

The rules:
- an unknown reading counts against training, and so does one that is outdated, dated in the future by as much, or no
  finite number; the one exception is `profile = "mains"`, the owner's word that the device hangs on the mains: there
  unknown power counts as plugged in and an unknown battery as full (one that says "discharging" or "low" stops it);
- where the sensors see no battery at all (a desktop with a mains adapter), there is none to know: the adapter alone
  says whether it charges. A battery that is there and does not say how full it is counts as unknown;
- training asks for all of: inside the local night window, charging, battery above the floor, idle, cool, budget left;
- the network asks for an unmetered link and bytes left in the night's budget;
- the reason is one sentence: what stops it, and what would change that. The first stop in the order above is named.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Generic, Literal, TypeVar
from zoneinfo import ZoneInfo

Value = TypeVar("Value", bound=float)
MINUTES_A_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class Reading(Generic[Value]):
    """A sensor's value, None if unknown, and how many seconds ago it was taken (negative: dated in the future)."""

    value: Value | None = None
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything the sensors say: power, battery in percent, heat in Celsius, seconds since the last touch, link.

    `has_battery` is false only where the sensors looked and found none.
    """

    charging: Reading[bool] = Reading()
    battery: Reading[float] = Reading()
    celsius: Reading[float] = Reading()
    idle_s: Reading[float] = Reading()
    metered: Reading[bool] = Reading()
    has_battery: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What this night has used already."""

    training_s: float = 0.0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """The owner's terms. `night_start` and `night_end` are minutes after local midnight; equal means always."""

    profile: Literal["battery", "mains"] = "battery"
    time_zone: str = "UTC"
    night_start: int = 23 * 60
    night_end: int = 6 * 60
    minimum_idle_s: float = 120.0
    minimum_battery: float = 40.0
    maximum_celsius: float = 70.0
    training_s: float = 7200.0
    sent_bytes: int = 32 * 1024 * 1024
    maximum_age_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, and why."""

    may_train: bool
    may_send: bool
    reason: str


@lru_cache(maxsize=64)
def zone(name: str) -> tzinfo:
    """Return a time zone; "UTC" needs no database. Raises `zoneinfo.ZoneInfoNotFoundError`."""
    return UTC if name == "UTC" else ZoneInfo(name)


def night_of(policy: Policy, now: float) -> str:
    """Return the name of the night that `now` belongs to, for its budget: the local date on which it began."""
    local = datetime.fromtimestamp(now, zone(policy.time_zone))
    begins = policy.night_start
    day = local.date() if local.hour * 60 + local.minute >= begins else local.date() - timedelta(days=1)
    return day.isoformat()


def in_window(policy: Policy, now: float) -> bool:
    """Whether the local wall clock stands inside the night window (which may cross midnight)."""
    local = datetime.fromtimestamp(now, zone(policy.time_zone))
    minute = local.hour * 60 + local.minute
    start, end = policy.night_start, policy.night_end
    if start == end:
        return True
    return start <= minute < end if start < end else minute >= start or minute < end


def decide(readings: Readings, policy: Policy, usage: Usage, now: float) -> Decision:
    """Return whether the device may train and may send at `now` (Unix seconds)."""
    stop_training = _stop_training(readings, policy, usage, now)
    stop_sending = _stop_sending(readings, policy, usage)
    return Decision(not stop_training, not stop_sending, stop_training or stop_sending or "every condition holds")


def _fresh(reading: Reading[Value], policy: Policy) -> Value | None:
    # Written so that an age that is no number is outdated, too.
    timely = -policy.maximum_age_s <= reading.age_s <= policy.maximum_age_s
    return reading.value if timely and reading.value is not None and math.isfinite(reading.value) else None


def _stop_training(readings: Readings, policy: Policy, usage: Usage, now: float) -> str:
    if not in_window(policy, now):
        return f"it is not night here: it trains from {_clock(policy.night_start)} to {_clock(policy.night_end)}"
    charging, battery = _fresh(readings.charging, policy), _fresh(readings.battery, policy)
    if charging is None and policy.profile != "mains":
        return 'whether it charges is unknown: a power sensor, or profile = "mains", would change that'
    if charging is False:
        return "it is not charging: it trains when the cable is in"
    if battery is None and readings.has_battery and policy.profile != "mains":
        return 'how full its battery is is unknown: a battery sensor, or profile = "mains", would change that'
    if battery is not None and battery < policy.minimum_battery:
        return f"the battery is at {battery:.0f} %: it trains from {policy.minimum_battery:.0f} %"
    idle_s = _fresh(readings.idle_s, policy)
    if policy.minimum_idle_s > 0:
        if idle_s is None:
            return "whether somebody uses it is unknown: an idle hook, or minimum_idle_s = 0, would change that"
        if idle_s < policy.minimum_idle_s:
            return f"somebody used it {idle_s:.0f} s ago: it trains after {policy.minimum_idle_s:.0f} s of rest"
    celsius = _fresh(readings.celsius, policy)
    if celsius is None:
        return "its temperature is unknown: a thermal sensor would change that"
    if celsius > policy.maximum_celsius:
        return f"it is {celsius:.0f} C warm: it trains at {policy.maximum_celsius:.0f} C or cooler"
    if usage.training_s >= policy.training_s:
        return f"tonight's {policy.training_s:.0f} s of training are used up: it goes on tomorrow night"
    return ""


def _stop_sending(readings: Readings, policy: Policy, usage: Usage) -> str:
    metered = _fresh(readings.metered, policy)
    if metered is None:
        return "whether the link is metered is unknown: a network hook would change that"
    if metered:
        return "the link is metered: it sends and fetches on an unmetered one"
    if usage.sent_bytes >= policy.sent_bytes:
        return f"tonight's {policy.sent_bytes} bytes are used up: it sends again tomorrow night"
    return ""


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
