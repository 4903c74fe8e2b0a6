"""How long to wait, so that a fleet does not arrive together. Pure.

After a failure: delay = draw * min(600 s, 5 s * 2^attempt), draw uniform in [0, 1) ("full jitter", Brooker 2015).
At the opening of the night: each device has its own moment in the first minutes, by its name and the night, so that a
restart does not draw again and a device that becomes eligible later does not wait at all.
"""

import hashlib

FIRST_S = 5.0
LONGEST_S = 600.0


def longest_wait(attempt: int) -> float:
    """Return the upper end of the wait after failed attempt number `attempt` (0, 1, ...), in seconds."""
    return min(LONGEST_S, FIRST_S * 2.0 ** min(attempt, 30))


def wait(attempt: int, draw: float) -> float:
    """Return the seconds to wait; `draw` is uniform in [0, 1)."""
    return draw * longest_wait(attempt)


def night_start(device: str, opened_at: float, spread_s: float) -> float:
    """Return when this device's night begins (Unix seconds): within `spread_s` after the window opened, uniformly.

    The share is made of the device's name and the minute of the opening: the same for the whole night, another one the
    next, and different from device to device.
    """
    name = f"{device}|{int(opened_at // 60)}".encode()
    return opened_at + spread_s * int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2.0**64
