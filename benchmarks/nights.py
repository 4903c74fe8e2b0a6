"""Claim: over 10,000 nights in 50 time zones a device never trains while a hard condition is false for longer than the
time between two looks, uses at least 0.95 of the minutes that the policy allows, and starts at most twice a night.

Each night (`benchmarks.night_worlds`) plays a charger that flaps, heat, somebody who is up, load, a link that turns
metered, sensors that fail, a clock that is hours or decades wrong, and both changes of summer time. The device's side
is the real policy (`edge_runtime.eligibility.decide`) under the real clock (`edge_runtime.adapters.clock.SystemClock`),
looking once in 30 s at rest, as the agent does, and once in 10 s while it trains (the agent looks 20 times a second).
It always has work. What it does is held against the same policy read another way (`benchmarks.night_oracle`).

- violations: seconds trained in a row, longer than one look, while a hard condition was false; starts without two
  minutes in which no look could have seen a condition fail, within the cool-down, or with too little night left
- eligible_minutes_used: minutes in which both train, of those in which the oracle trains
- minutes_ratio: all minutes that the device trained, of those. It is above 1 where flaps are shorter than the time
  between two looks: the oracle sees them and spends a start on what is left between two, the device misses them
- starts_a_night_max: under a flapping charger

Run: python -m benchmarks.nights [--nights 10000] [--seed 5] [--processes 2]. The last line is one JSON object.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final

import numpy as np

from benchmarks import night_oracle
from benchmarks.night_worlds import CPU_SHARE, SCENARIOS, WRITTEN_A_SECOND, ZONES, Night, changes, holds_change, make
from edge_runtime.adapters.clock import SystemClock
from edge_runtime.eligibility import Moment, Reading, Readings, Standing, Usage, decide, night_of

REST_S: Final = 30.0
POLL_S: Final = 10.0
ANSWER_S: Final = 1.5
BATCH: Final = 50


@lru_cache(maxsize=4096)
def _reading(value: float | None) -> Reading[Any]:
    return Reading(value)


class Device:
    """One device through one night: `trained` are its stretches, `sent` the seconds in which it might send."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._at = 0.0
        self._clock = SystemClock(wall=self._wall, elapsed=lambda: 1_000.0 + self._at, synchronized=self._is_set)
        self._proved = False
        self.trained: list[tuple[float, float]] = []
        self.sent = np.zeros(night.truth.seconds, bool)
        self._named = (-1.0, "")
        self.looks = 0

    def _wall(self) -> float:
        true = self._night.truth.began + self._at
        return true if self._at >= self._night.clock.set_at else max(0.0, true + self._night.clock.offset_s)

    def _is_set(self) -> bool:
        return self._at >= self._night.clock.set_at

    def _readings(self) -> Readings:
        truth, second = self._night.truth, int(self._at)
        charging, metered = truth.charging.item(second), truth.metered.item(second)
        return Readings(
            charging=_reading(None if math.isnan(charging) else charging > 0.0),
            battery=_reading(truth.battery.item(second)),
            celsius=_reading(truth.celsius.item(second)),
            idle_s=Reading(truth.idle_s.item(second), truth.idle_age_s.item(second)),
            metered=_reading(None if math.isnan(metered) else metered > 0.0),
            load=_reading(truth.load.item(second)),
        )

    def _night_name(self, now: float) -> str:
        # It changes on whole minutes.
        if now // 60.0 != self._named[0]:
            self._named = (now // 60.0, night_of(self._night.policy, now))
        return self._named[1]

    def live(self) -> None:
        """Look, train and stop until the night is over."""
        policy, length = self._night.policy, self._night.truth.seconds
        standing, training, began = Standing(), False, 0.0
        used: dict[str, Usage] = defaultdict(Usage)
        # The first look falls anywhere between two.
        self._at = float(self._night.number % int(REST_S))
        while self._at < length:
            if not self._proved and self._at >= self._night.clock.proved_at:
                self._clock.prove(self._night.truth.began + self._at - ANSWER_S, fresh=True)
                self._proved = True
            moment = Moment(self._clock.now(), self._clock.elapsed(), self._clock.trusted())
            night = self._night_name(moment.now)
            standing, decision = decide(standing, self._readings(), policy, used[night], moment, training=training)
            self.looks += 1
            starts, goes_on = decision.may_train and not training, decision.may_train
            if training and not goes_on:
                self.trained.append((began, self._at))
            if starts:
                began = self._at
            training = goes_on
            step = POLL_S if training else REST_S
            if decision.may_send:
                self.sent[int(self._at) : int(self._at + step)] = True
            if training:
                before = used[night]
                used[night] = Usage(
                    training_s=before.training_s + step,
                    cpu_s=before.cpu_s + CPU_SHARE * step,
                    written_bytes=before.written_bytes + int(WRITTEN_A_SECOND * step),
                    starts=before.starts + starts,
                )
            self._at += step
        if training:
            self.trained.append((began, float(length)))


def try_night(number: int, seed: int) -> tuple[str, Counter[str]]:
    """Return the scenario and the counts of one night."""
    night = make(number, seed)
    terms = asdict(night.policy)
    device = Device(night)
    device.live()
    open_ = night_oracle.window(night.truth, night.zone, night.policy.night_start, night.policy.night_end)
    allowed = night_oracle.sessions(night.truth, terms, open_, CPU_SHARE, WRITTEN_A_SECOND)
    # A clock that an answer has set is late by what the answer took on its way.
    late_s = ANSWER_S if math.isfinite(night.clock.proved_at) else 0.0
    verdict = night_oracle.judge(
        night.truth, terms, open_, device.trained, device.sent, poll_s=POLL_S + late_s, rest_s=REST_S
    )
    both = sum(max(0.0, min(b, d) - max(a, c)) for a, b in device.trained for c, d in allowed)
    counts: Counter[str] = Counter(
        nights=1, looks=device.looks, trained_s=round(sum(b - a for a, b in device.trained)),
        allowed_s=sum(b - a for a, b in allowed), both_s=round(both), starts=len(device.trained),
        trained_against_s=verdict.trained_against, bad_starts=verdict.bad_starts, sent_metered_s=verdict.sent_metered,
        violations=int(bool(verdict.trained_against or verdict.bad_starts)),
        changed_clock=int(holds_change(night)),
    )  # fmt: skip
    counts[f"nights with {len(device.trained)} starts"] = 1
    return night.scenario, counts


def _batch(work: tuple[int, int, int]) -> dict[str, Counter[str]]:
    first, last, seed = work
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(first, last):
        scenario, counts = try_night(number, seed)
        found[scenario] += counts
    return dict(found)


def _most_starts(counts: Counter[str]) -> int:
    return max((int(name.split()[2]) for name in counts if name.startswith("nights with")), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=10_000, help="how many (the claim is about 10,000)")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    started = time.monotonic()
    work = [(i, min(i + BATCH, asked.nights), asked.seed) for i in range(0, asked.nights, BATCH)]
    found: dict[str, Counter[str]] = defaultdict(Counter)
    with multiprocessing.get_context("fork").Pool(asked.processes) as pool:
        for part in pool.imap_unordered(_batch, work):
            for scenario, counts in part.items():
                found[scenario] += counts
    total: Counter[str] = sum(found.values(), Counter())
    print(
        f"{total['nights']} nights, {len(ZONES)} zones, {total['changed_clock']} with a change of the local clock;"
        f" {total['looks']:,} looks; seed {asked.seed}"
    )
    heads = ("nights", "allowed h", "trained h", "used", "ratio", "starts max", "violations")
    print(f"{'scenario':18}" + "".join(f"{head:>11}" for head in heads))
    by_scenario = {}
    for scenario in SCENARIOS:
        c = found[scenario]
        row = {
            "nights": c["nights"],
            "eligible_minutes_used": round(c["both_s"] / max(1, c["allowed_s"]), 4),
            "minutes_ratio": round(c["trained_s"] / max(1, c["allowed_s"]), 4),
            "starts_a_night_max": _most_starts(c),
            "violations": c["violations"],
        }
        by_scenario[scenario] = row
        hours = f"{c['allowed_s'] / 3600:11.1f}{c['trained_s'] / 3600:11.1f}"
        shares = f"{row['eligible_minutes_used']:11.3f}{row['minutes_ratio']:11.3f}"
        print(f"{scenario:18}{c['nights']:11}{hours}{shares}{row['starts_a_night_max']:11}{c['violations']:11}")
    result = {
        "benchmark": "nights",
        "nights": total["nights"],
        "zones": len(ZONES),
        "zones_with_changes": sum(bool(changes(zone)) for zone in ZONES),
        "nights_with_a_change": total["changed_clock"],
        "seed": asked.seed,
        "rest_s": REST_S,
        "poll_s": POLL_S,
        "looks": total["looks"],
        "violations": total["violations"],
        "trained_against_s": total["trained_against_s"],
        "bad_starts": total["bad_starts"],
        "sent_metered_s": total["sent_metered_s"],
        "eligible_minutes": round(total["allowed_s"] / 60),
        "eligible_minutes_used": round(total["both_s"] / max(1, total["allowed_s"]), 4),
        "minutes_ratio": round(total["trained_s"] / max(1, total["allowed_s"]), 4),
        "starts_a_night_max": _most_starts(found["flapping charger"]),
        "by_scenario": by_scenario,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
