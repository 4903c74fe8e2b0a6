"""The night window: minutes after local midnight, read from a wall clock that jumps twice a year. Pure.

The rules:
- the local clock alone says whether the window is open: where summer time repeats an hour, the window is open for both,
  and where a zone skips an hour or a whole day, what was skipped never opens;
- `start == end` means always; `start > end` crosses midnight;
- a night is named after the local date on which it began, so that both sides of midnight share one budget.

Every offset since 1973 is a whole number of minutes, so a window opens and closes on whole minutes of Unix time.
"""

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

MINUTES_A_DAY = 24 * 60
# A zone may skip a day (Apia, 30 December 2011), and the change to summer time the whole of a short window before it.
_SEARCH_MINUTES = 4 * MINUTES_A_DAY


@lru_cache(maxsize=64)
def zone(name: str) -> tzinfo:
    """Return a time zone; "UTC" needs no database. Raises `zoneinfo.ZoneInfoNotFoundError`."""
    return UTC if name == "UTC" else ZoneInfo(name)


def local_minute(time_zone: str, now: float) -> int:
    """Return the minutes since local midnight, by the wall clock, at `now` (Unix seconds)."""
    local = datetime.fromtimestamp(now, zone(time_zone))
    return local.hour * 60 + local.minute


def is_open(time_zone: str, start: int, end: int, now: float) -> bool:
    """Whether the local wall clock stands inside the window."""
    if start == end:
        return True
    minute = local_minute(time_zone, now)
    return start <= minute < end if start < end else minute >= start or minute < end


def night_name(time_zone: str, start: int, now: float) -> str:
    """Return the name of the night that `now` belongs to: the local date on which it began."""
    there = zone(time_zone)
    local = datetime.fromtimestamp(now, there)
    day = local.date()
    minute = local.hour * 60 + local.minute
    if minute < start:
        # The day before by the clock and not by the calendar, which may hold a day that never was.
        before = now - 60.0 * (minute + 1)
        while (yesterday := datetime.fromtimestamp(before, there).date()) >= day:
            before -= 3600.0
        day = yesterday
    return day.isoformat()


def stays_open(time_zone: str, start: int, end: int, now: float, seconds: float) -> bool:
    """Whether the window is open now and without a break for `seconds` more."""
    if start == end or seconds <= 0:
        return is_open(time_zone, start, end, now)
    minute = 60.0 * (now // 60.0)
    steps = int((now + seconds - minute) // 60.0)
    # The last second counts as inside: a window that closes just then was long enough.
    if minute + 60.0 * steps >= now + seconds:
        steps -= 1
    return all(is_open(time_zone, start, end, minute + 60.0 * step) for step in range(steps + 1))


def next_opening(time_zone: str, start: int, end: int, now: float) -> float | None:
    """Return when, after `now`, the window opens next, in Unix seconds; None if it is always open, or not for days."""
    return _next(time_zone, start, end, now, opens=True)


def next_closing(time_zone: str, start: int, end: int, now: float) -> float | None:
    """Return when, after `now`, the window closes next, in Unix seconds; None if it never does."""
    return _next(time_zone, start, end, now, opens=False)


def _next(time_zone: str, start: int, end: int, now: float, *, opens: bool) -> float | None:
    if start == end:
        return None
    minute = 60.0 * (now // 60.0)
    before = is_open(time_zone, start, end, now)
    for step in range(1, _SEARCH_MINUTES + 1):
        after = is_open(time_zone, start, end, minute + 60.0 * step)
        if after is opens and before is not opens:
            return minute + 60.0 * step
        before = after
    return None


def opened_at(time_zone: str, start: int, end: int, now: float) -> float | None:
    """Return when the window that is open at `now` opened, in Unix seconds; None if it is closed, or always open."""
    if start == end or not is_open(time_zone, start, end, now):
        return None
    minute = 60.0 * (now // 60.0)
    for step in range(1, _SEARCH_MINUTES + 1):
        if not is_open(time_zone, start, end, minute - 60.0 * step):
            return minute - 60.0 * (step - 1)
    return None
