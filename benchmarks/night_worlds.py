"""Ten thousand nights to try a policy on: where they are, on which dates, and what goes wrong in them. Seeded.

Half of the nights hold a change of the local clock, where the zone has any: summer time of an hour, of half an hour
(Lord Howe), of two (Troll), at midnight (Havana, Beirut), backwards for Ramadan (Casablanca), and days that never were
(Apia and Fakaofo, 30 December 2011).
"""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from benchmarks.night_oracle import Truth
from edge_runtime.eligibility import Policy

ZONES = (
    "UTC", "Europe/Berlin", "Europe/London", "Europe/Dublin", "Europe/Lisbon", "Europe/Istanbul", "Europe/Moscow",
    "Atlantic/Azores", "Africa/Casablanca", "Africa/Cairo", "Africa/Johannesburg", "Africa/Lagos", "Africa/Nairobi",
    "America/New_York", "America/Chicago", "America/Denver", "America/Phoenix", "America/Los_Angeles",
    "America/Anchorage", "America/St_Johns", "America/Havana", "America/Mexico_City", "America/Bogota",
    "America/Caracas", "America/Santiago", "America/Asuncion", "America/Sao_Paulo", "America/Nuuk",
    "America/Port-au-Prince", "Asia/Beirut", "Asia/Gaza", "Asia/Tehran", "Asia/Kabul", "Asia/Karachi", "Asia/Kolkata",
    "Asia/Kathmandu", "Asia/Yangon", "Asia/Shanghai", "Asia/Tokyo", "Asia/Pyongyang", "Australia/Eucla",
    "Australia/Adelaide", "Australia/Sydney", "Australia/Lord_Howe", "Antarctica/Troll", "Pacific/Chatham",
    "Pacific/Marquesas", "Pacific/Kiritimati", "Pacific/Apia", "Pacific/Fakaofo",
)  # fmt: skip
SKIPPED_DAY = {"Pacific/Apia": date(2011, 12, 29), "Pacific/Fakaofo": date(2011, 12, 29)}
SCENARIOS = (
    "calm", "flapping charger", "somebody is up", "heat", "load", "metered flaps", "wrong clock", "sensors fail",
    "small budgets", "all at once",
)  # fmt: skip
FIRST, LAST = date(2011, 3, 1), date(2035, 12, 31)
WINDOWS = ((23 * 60, 6 * 60), (23 * 60, 6 * 60), (22 * 60 + 30, 5 * 60), (0, 7 * 60), (60, 5 * 60), (2 * 60, 3 * 60))
CPU_SHARE, WRITTEN_A_SECOND = 0.9, 6_000.0
BEFORE_S, AFTER_S = 1_800, 1_200

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClockFate:
    """What the device's wall clock does: `offset_s` wrong until network time sets it at `set_at`, or an answer of the
    aggregator says at `proved_at` what time it is; seconds of the night, infinity for never."""

    offset_s: float = 0.0
    set_at: float = 0.0
    proved_at: float = np.inf


@dataclass(frozen=True)
class Night:
    """One night of one device."""

    number: int
    zone: str
    scenario: str
    policy: Policy
    truth: Truth
    clock: ClockFate


@lru_cache(maxsize=64)
def changes(zone: str) -> tuple[date, ...]:
    """Return the local dates on whose night, from noon to noon, the zone's offset changes."""
    there, found = ZoneInfo(zone), []
    day = FIRST
    while day < LAST:
        noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        if noon.astimezone(there).utcoffset() != (noon + timedelta(days=1)).astimezone(there).utcoffset():
            found.append(day)
        day += timedelta(days=1)
    return tuple(found)


def make(number: int, seed: int) -> Night:
    """Return the night of this number; the same for the same seed, whatever was made before."""
    rng = np.random.default_rng((seed, number))
    zone, scenario = ZONES[number % len(ZONES)], SCENARIOS[number // len(ZONES) % len(SCENARIOS)]
    start, end = WINDOWS[int(rng.integers(len(WINDOWS)))]
    policy = Policy(time_zone=zone, night_start=start, night_end=end)
    if scenario == "small budgets":
        policy = replace(
            policy, training_s=float(rng.integers(600, 7200)), energy_wh=float(rng.integers(1, 20)),
            written_bytes=int(rng.integers(4, 64)) << 20, starts=int(rng.integers(1, 4)),
        )  # fmt: skip
    began = _began(rng, zone, start)
    window_s = 60 * ((end - start) % 1440)
    # A clock that goes back makes the night longer, by two hours at most.
    longer_s = max(0, _offset_s(zone, began) - _offset_s(zone, began + BEFORE_S + window_s + 7_200))
    length = BEFORE_S + window_s + longer_s + AFTER_S
    clock = _clock_fate(rng) if scenario in ("wrong clock", "all at once") else ClockFate()
    return Night(number, zone, scenario, policy, _truth(rng, scenario, began, length, clock), clock)


def holds_change(night: Night) -> bool:
    """Whether the local clock changes in the night."""
    return _offset_s(night.zone, night.truth.began) != _offset_s(night.zone, night.truth.began + night.truth.seconds)


def _offset_s(zone: str, when: int) -> int:
    offset = datetime.fromtimestamp(when, ZoneInfo(zone)).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


def _began(rng: np.random.Generator, zone: str, start: int) -> int:
    days = changes(zone)
    if zone in SKIPPED_DAY and rng.random() < 0.2:
        day = SKIPPED_DAY[zone]
    elif days and rng.random() < 0.5:
        day = days[int(rng.integers(len(days)))] + timedelta(days=int(start < 12 * 60))
    else:
        day = FIRST + timedelta(days=int(rng.integers((LAST - FIRST).days)))
    opens = datetime(day.year, day.month, day.day, start // 60, start % 60, tzinfo=ZoneInfo(zone))
    return int(opens.timestamp()) - BEFORE_S


def _clock_fate(rng: np.random.Generator) -> ClockFate:
    offset_s = float(rng.choice([-1.7e9, -36_000.0, -3_600.0, 1_800.0, 43_200.0, 3e8])) + float(rng.uniform(-600, 600))
    at = float(rng.uniform(0, 18_000))
    match int(rng.integers(4)):
        case 0:
            return ClockFate(offset_s, set_at=at)
        case 1:
            return ClockFate(offset_s, set_at=np.inf, proved_at=at)
        case 2:
            return ClockFate(offset_s, set_at=at + 3_600.0, proved_at=at)
    return ClockFate(offset_s, set_at=np.inf)


def _flaps(rng: np.random.Generator, length: int, on: tuple[float, float], off: tuple[float, float]) -> Floats:
    """Return 1 and 0 in turns, each for a time that is log-uniform between two bounds in seconds."""
    values, at, state = np.ones(length), 0.0, bool(rng.random() < 0.7)
    while at < length:
        low, high = on if state else off
        until = at + float(np.exp(rng.uniform(np.log(low), np.log(high))))
        values[int(at) : int(until)] = state
        at, state = until, not state
    return values


def _truth(rng: np.random.Generator, scenario: str, began: int, length: int, clock: ClockFate) -> Truth:
    seconds = np.arange(length, dtype=np.float64)
    all_ = scenario == "all at once"
    charging = np.ones(length)
    if scenario == "flapping charger":
        shortest = float(rng.choice([1.0, 30.0, 300.0]))
        charging = _flaps(rng, length, (shortest, 7200.0), (1.0, 900.0))
    elif all_:
        charging = _flaps(rng, length, (600.0, 20_000.0), (1.0, 900.0))
    level = float(rng.uniform(40.0, 100.0)) + np.cumsum(np.where(charging > 0, 20.0, -12.0) / 3600.0)
    battery = np.clip(level, 5.0, 100.0)
    celsius = 45.0 + 6.0 * np.sin(seconds / 900.0 + float(rng.uniform(0, 6)))
    if scenario == "heat" or all_:
        celsius += 36.0 * (1.0 - _flaps(rng, length, (300.0, 14_400.0), (60.0, 3_600.0)))
    touches = np.zeros(length, bool)
    touches[: int(rng.uniform(0, 5_400))] = True
    if scenario == "somebody is up" or all_:
        touches |= _flaps(rng, length, (1_200.0, 20_000.0), (2.0, 900.0)) < 1
    last = np.maximum.accumulate(np.where(touches, seconds, -3_600.0))
    idle_s, idle_age_s = seconds - last, np.full(length, 2.0)
    load = np.full(length, 3.0)
    if scenario == "load" or all_:
        load += 80.0 * (1.0 - _flaps(rng, length, (300.0, 14_400.0), (1.0, 1_200.0)))
    metered = np.zeros(length)
    if scenario == "metered flaps" or all_:
        metered = 1.0 - _flaps(rng, length, (10.0, 7_200.0), (1.0, 3_600.0))
    if scenario == "sensors fail":
        for values in (charging, battery, celsius):
            values[_flaps(rng, length, (1_200.0, 20_000.0), (1.0, 900.0)) < 1] = np.nan
        died = int(rng.uniform(0, 2 * length))
        idle_age_s[died:] += np.arange(len(idle_age_s[died:]))
        idle_s[died:] = idle_s[died] if died < length else 0.0
    believed = (seconds >= clock.set_at) | (seconds >= clock.proved_at)
    # A tenth is what a sensor tells.
    return Truth(began, charging, battery.round(1), celsius.round(1), idle_s, idle_age_s, load, metered, believed)
