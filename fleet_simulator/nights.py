"""What happens to each device on each night: a seeded script of fates, and nothing else.

The script is pure: the same seed gives the same nights. Every tick some devices come by, and each meets one fate:

| fate | what its sensors play | what should follow |
|---|---|---|
| quiet | idle, charging, unmetered, cool | trains and sends its update at once |
| metered | unmetered only after `late` ticks | trains, the update waits in the outbox and arrives stale |
| busy | somebody types | no check-in, the reason says so |
| battery | not plugged in | no check-in |
| warm | above the policy's limit | no check-in |
| unplugged | the cable is pulled after `step` steps | stops, keeps a checkpoint, resumes another night |
| killed | the process dies after `step` steps | nothing is lost or half-written; it starts again another night |
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Fate = Literal["quiet", "metered", "busy", "battery", "warm", "unplugged", "killed"]

# Shares of the visits; they add up to 1. One visit in seven brings no update in its tick.
SHARES: dict[Fate, float] = {
    "quiet": 0.72, "metered": 0.14, "busy": 0.03, "battery": 0.03, "warm": 0.02, "unplugged": 0.03, "killed": 0.03,
}  # fmt: skip
# How many ticks a metered device's update is late: mostly the staleness that counts, seldom one that is refused.
LATE_TICKS: tuple[tuple[int, float], ...] = ((1, 0.5), (2, 0.27), (3, 0.15), (5, 0.08))
DAY_S = 86_400
TICK_HOURS = (1, 3)


@dataclass(frozen=True, slots=True)
class Visit:
    """Device number `device` comes by with this fate; `late` in ticks, `step` in training steps, else 0."""

    device: int
    fate: Fate
    late: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """One moment of the virtual fleet: `at` in Unix seconds (UTC nights), the devices that come by, and those whose
    network has become unmetered so that what waits in their outbox can go."""

    night: int
    at: int
    visits: tuple[Visit, ...]
    freed: tuple[int, ...]


def play_nights(seed: int, *, devices: int, nights: int, visits_a_tick: int, first_midnight: int) -> tuple[Tick, ...]:
    """Return the script of `nights` nights of two ticks each, `visits_a_tick` distinct devices in each.

    `first_midnight` is the Unix time (UTC) at which the first night begins. Devices come in random permutations, so
    each comes about equally often; a device whose update still waits for an unmetered network does not come again
    before it has gone. Raises `ValueError` if more visits than devices are asked.
    """
    if not 1 <= visits_a_tick <= devices:
        raise ValueError(f"1 <= visits a tick <= devices, got {visits_a_tick} of {devices}")
    rng = random.Random(f"nights-v1:{seed}")
    queue: list[int] = []
    waiting: dict[int, int] = {}
    ticks = []
    for number in range(nights * len(TICK_HOURS)):
        night, hour = divmod(number, len(TICK_HOURS))
        at = first_midnight + night * DAY_S + TICK_HOURS[hour] * 3600
        freed = tuple(sorted(device for device, due in waiting.items() if due <= number))
        for device in freed:
            del waiting[device]
        visits = []
        for device in _next_devices(rng, queue, devices, visits_a_tick, frozenset(waiting) | frozenset(freed)):
            visit = _meet_fate(rng, device)
            if visit.fate == "metered":
                waiting[device] = number + visit.late
            visits.append(visit)
        ticks.append(Tick(night, at, tuple(sorted(visits, key=lambda v: v.device)), freed))
    return tuple(ticks)


def _next_devices(
    rng: random.Random, queue: list[int], devices: int, count: int, away: frozenset[int]
) -> Sequence[int]:
    chosen: list[int] = []
    passed: list[int] = []
    while len(chosen) < min(count, devices - len(away)):
        if not queue:
            queue.extend(rng.sample(range(devices), devices))
        device = queue.pop()
        (passed if device in away or device in chosen else chosen).append(device)
    queue.extend(passed)
    return chosen


def _meet_fate(rng: random.Random, device: int) -> Visit:
    fate = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
    if fate == "metered":
        late = rng.choices([ticks for ticks, _ in LATE_TICKS], weights=[share for _, share in LATE_TICKS])[0]
        return Visit(device, fate, late=late)
    if fate in ("unplugged", "killed"):
        return Visit(device, fate, step=rng.randint(1, 3))
    return Visit(device, fate)
