"""A clock that only moves when it is told to; the one thing beside the sensors that the simulator plays."""


class VirtualClock:
    """Implements the devices' and the aggregator's Clock port. `now` is Unix seconds and never goes back."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def elapsed(self) -> float:
        """Return the same seconds: a virtual clock does not jump."""
        return self._now

    def trusted(self) -> bool:
        """A virtual clock can be believed."""
        return True

    def prove(self, server_time: float, *, fresh: bool) -> None:
        """The aggregator of a simulation has the same clock."""

    def move_to(self, now: float) -> None:
        """Set the time. Raises `ValueError` if it lies before the present."""
        if now < self._now:
            raise ValueError(f"a virtual clock never goes back, got {now} after {self._now}")
        self._now = now
