"""How long to wait before trying again: full jitter, so that a fleet that lost its broker does not come back at once.

delay = draw * min(600 s, 5 s * 2^attempt), draw uniform in [0, 1) ("full jitter", Brooker 2015).
"""

FIRST_S = 5.0
LONGEST_S = 600.0


def longest_wait(attempt: int) -> float:
    """Return the upper end of the wait after failed attempt number `attempt` (0, 1, ...), in seconds."""
    return min(LONGEST_S, FIRST_S * 2.0 ** min(attempt, 30))


def wait(attempt: int, draw: float) -> float:
    """Return the seconds to wait; `draw` is uniform in [0, 1)."""
    return draw * longest_wait(attempt)
