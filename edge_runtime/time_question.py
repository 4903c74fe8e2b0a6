"""Asking the aggregator what time it is, for a device that no clock tells. Pure, but for the elapsed clock it is given.

The rules:
- an answer tells the time only if its question left less than a minute ago: one that waited for hours in the broker's
  queue says what time it was;
- the question is a check-in that names no capability: such a device is turned away, and the signed answer says when;
- without an answer it is asked again after an hour.
"""

FRESH_S = 60.0
AGAIN_S = 3600.0


class TimeQuestion:
    """One agent's questions. Times are seconds of the elapsed clock."""

    def __init__(self) -> None:
        self._nonce = ""
        self._at = 0.0

    def asked(self, nonce: str, elapsed: float) -> None:
        """A request with this nonce leaves; any check-in's answer tells the time."""
        self._nonce, self._at = nonce, elapsed

    def is_fresh(self, nonce: str, elapsed: float) -> bool:
        """Whether an answer with this nonce came at once."""
        return nonce == self._nonce and elapsed - self._at <= FRESH_S

    def due(self, elapsed: float) -> bool:
        """Whether it may be asked now."""
        return not self._nonce or elapsed - self._at >= AGAIN_S

    def waits(self, elapsed: float) -> bool:
        """Whether an answer that would tell the time may still come."""
        return self.is_fresh(self._nonce, elapsed)
