"""Which seconds of a night a device should train: the policy read a second time, by another route.

It shares no code with `edge_runtime.eligibility`, nor with `zoneinfo`: a night is a grid of seconds, the window comes
from the C library's `localtime`, and the rules are interval algebra on whole arrays, with the future in sight, where
the device looks once in a while and remembers. Both read the same sentences (docs/training-conditions.md).
"""

import importlib.util
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
Flags = NDArray[np.bool_]
Terms = Mapping[str, object]
SYSTEM_ZONES = Path("/usr/share/zoneinfo")


@dataclass(frozen=True)
class Truth:
    """What is the case in each second from `began` (Unix seconds) on; NaN is what no sensor knows.

    `idle_age_s` is how old the idle hook's word is; `believed` whether the clock can be believed.
    """

    began: int
    charging: Seconds
    battery: Seconds
    celsius: Seconds
    idle_s: Seconds
    idle_age_s: Seconds
    load: Seconds
    metered: Seconds
    believed: Flags

    @property
    def seconds(self) -> int:
        """How long the night is."""
        return len(self.charging)


@dataclass(frozen=True)
class Verdict:
    """What a device did wrong: seconds trained in a row while a hard condition was false, starts out of turn, and
    seconds of sending in a row over a metered link, beyond what one look between two allows."""

    trained_against: int
    bad_starts: int
    sent_metered: int


def window(truth: Truth, time_zone: str, start: int, end: int) -> Flags:
    """Return the seconds in which the local wall clock stands in the window, by the C library."""
    place = SYSTEM_ZONES
    if not (place / time_zone).is_file():
        # What zoneinfo falls back to, as files.
        found = importlib.util.find_spec("tzdata")
        place = Path(found.origin).parent / "zoneinfo" if found is not None and found.origin else place
    if not (place / time_zone).is_file():
        raise FileNotFoundError(f"the C library has no time zone {time_zone}, and would silently take UTC")
    first = truth.began - truth.began % 60
    minutes = _local_minutes(place / time_zone, first, -(-(truth.began + truth.seconds - first) // 60))
    if start == end:
        open_minutes = np.ones(len(minutes), bool)
    else:
        since_start = (minutes - start) % 1440
        open_minutes = since_start < (end - start) % 1440
    return np.repeat(open_minutes, 60)[truth.began - first :][: truth.seconds]


def _local_minutes(zone_file: Path, first: int, count: int) -> NDArray[np.int64]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = f":{zone_file}"
    time.tzset()
    try:
        local = [time.localtime(first + 60 * i) for i in range(count)]
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
    return np.array([each.tm_hour * 60 + each.tm_min for each in local])


def conditions(truth: Truth, terms: Terms, open_: Flags, kind: str) -> Flags:
    """Return the seconds in which every hard condition holds: with the limits of a `kind`, "start" or "stop"."""
    n = {name: float(value) for name, value in terms.items() if isinstance(value, int | float)}
    with np.errstate(invalid="ignore"):
        return np.asarray(
            open_
            & truth.believed
            & (truth.charging == 1.0)
            & (truth.battery >= n[f"{kind}_battery"])
            & (truth.celsius <= n[f"{kind}_celsius"])
            & (truth.idle_s >= n["minimum_idle_s"])
            & (truth.idle_age_s <= n["maximum_age_s"])
        )


def _busy(truth: Truth, terms: Terms) -> Flags:
    with np.errstate(invalid="ignore"):
        return np.asarray(truth.load > float(str(terms["maximum_load"])))


def runs(flags: Flags) -> list[tuple[int, int]]:
    """Return the stretches [begin, end) in which the flags are set."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def sessions(
    truth: Truth, terms: Terms, open_: Flags, cpu_share: float, written_a_second: float
) -> list[tuple[int, int]]:
    """Return the stretches [begin, end) of seconds in which the policy lets it train, if it wastes none."""
    n = {name: float(value) for name, value in terms.items() if isinstance(value, int | float)}
    busy = _busy(truth, terms)
    startable = runs(conditions(truth, terms, open_, "start") & ~busy)
    goes_on = conditions(truth, terms, open_, "stop")
    # Load ends a training in the second in which it has lasted: of a long stretch, all but its grace counts as a stop.
    long_busy = np.zeros(truth.seconds, bool)
    for begin, end in runs(busy):
        long_busy[begin + int(n["grace_s"]) : end] = True
    stops = np.flatnonzero(~goes_on | long_busy)
    budget = min(
        n["training_s"],
        n["energy_wh"] * 3600.0 / (n["watts"] * cpu_share),
        n["written_bytes"] / written_a_second,
    )
    open_runs, always = runs(open_), terms["night_start"] == terms["night_end"]
    found: list[tuple[int, int]] = []
    cool = 0
    for begin, end in startable:
        at = max(begin + int(n["settle_s"]), cool)
        while at < end and len(found) < int(n["starts"]) and budget > 0:
            # The grid ends after the window does, so what is open at its end is open always.
            closes = next(b for a, b in open_runs if a <= at < b)
            if closes - at < n["minimum_window_s"] and not always:
                break
            later = stops[np.searchsorted(stops, at) :]
            until = min(int(later[0]) if len(later) else truth.seconds, int(at + budget))
            found.append((at, until))
            budget -= until - at
            cool = until + int(n["cool_down_s"])
            at = max(until + int(n["settle_s"]), cool) if until < end else end
    return found


def judge(
    truth: Truth, terms: Terms, open_: Flags, trained: list[tuple[float, float]], sent: Flags, *,
    poll_s: float, rest_s: float,
) -> Verdict:  # fmt: skip
    """Return what was wrong with what a device did, looking once in `poll_s` while it trained, in `rest_s` else."""
    n = {name: float(value) for name, value in terms.items() if isinstance(value, int | float)}
    did = np.zeros(truth.seconds, bool)
    for begin, end in trained:
        did[int(begin) : int(np.ceil(end))] = True
    against = did & ~conditions(truth, terms, open_, "stop")
    trained_against = sum(end - begin for begin, end in runs(against) if end - begin > poll_s)
    startable = conditions(truth, terms, open_, "start") & ~_busy(truth, terms)
    bad = 0
    ended = -np.inf
    for begin, end in trained:
        second = int(begin)
        before = startable[max(0, second - int(n["settle_s"])) : second + 1]
        longest = max((b - a for a, b in runs(~before)), default=0)
        left = open_[second : second + int(n["minimum_window_s"])]
        bad += bool(
            longest > rest_s
            or not startable[second]
            or second < n["settle_s"] - rest_s
            or begin - ended < n["cool_down_s"] - 1.0
            or not left.all()
        )
        ended = end
    with np.errstate(invalid="ignore"):
        metered = sent & ~(truth.metered == 0.0)
    # It is seen at the next look, and the grace ends at the first look after it.
    seen_s = rest_s * (1.0 + np.ceil(n["grace_s"] / rest_s))
    sent_metered = sum(end - begin for begin, end in runs(metered) if end - begin > seen_s)
    return Verdict(trained_against, bad + max(0, len(trained) - int(n["starts"])), sent_metered)
