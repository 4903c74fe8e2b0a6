"""Whether somebody uses the device, from systemd-logind: `org.freedesktop.login1.Manager`.

IdleHint is false as soon as one session is in use. IdleSinceHintMonotonic (microseconds of CLOCK_MONOTONIC) says since
when all of them are idle; it is 0 where there is no session at all, as on a Pi without a screen: that one has been
idle since it started. A desktop that never sets the hint looks used for ever: its owner sets a hook, or `idle`.
https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.login1.html
"""

import time
from collections.abc import Callable

from edge_runtime.adapters.sensors.system_bus import SystemBus

SERVICE, PATH, INTERFACE = "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
SOURCE = "logind"


def read_idle_s(bus: SystemBus, monotonic: Callable[[], float] = time.monotonic) -> float | None:
    """Return how many seconds ago somebody last used the device, 0 while somebody does; None if logind tells not."""
    idle = bus.get(SERVICE, PATH, INTERFACE, "IdleHint")
    if not isinstance(idle, bool):
        return None
    if not idle:
        return 0.0
    since = bus.get(SERVICE, PATH, INTERFACE, "IdleSinceHintMonotonic")
    if isinstance(since, bool) or not isinstance(since, int):
        return None
    return max(0.0, monotonic() - since / 1e6)
