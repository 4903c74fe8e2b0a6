"""A device's clock that runs faster than the world: waits of minutes pass in seconds, durations stay what they are."""

import time


class FastClock:
    """Implements the Clock port. `now` began at the real time and runs `factor` times as fast; `elapsed` is real."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._began, self._at = time.time(), time.monotonic()

    def now(self) -> float:
        """See `edge_runtime.ports.Clock`."""
        return self._began + self._factor * (time.monotonic() - self._at)

    def elapsed(self) -> float:
        """See `edge_runtime.ports.Clock`."""
        return time.monotonic()

    def trusted(self) -> bool:
        """It can be believed."""
        return True

    def prove(self, server_time: float, *, fresh: bool = False) -> None:
        """It is ahead of everybody."""
