"""When a device may ask again: a window that widens with the load, so that a fleet does not arrive together.

As many devices as may be in flight are welcome after `minimum_s`; each further such group moves the end of the window
out by as much again. The device draws its own moment inside the window.
"""

from wire_contract.messages import RetryWindow


def retry_window(now: int, *, waiting: int, room: int, minimum_s: int, maximum_s: int) -> RetryWindow:
    """Return the window for a device that is answered at `now`.

    `waiting`: devices that were turned away lately, this one among them (0 for a device that got an offer); `room`:
    how many leases may be in flight; both counts. The window begins after `minimum_s` and ends after at most
    `maximum_s` seconds.
    """
    if room < 1 or not 0 <= minimum_s <= maximum_s:
        raise ValueError(f"room >= 1 and 0 <= minimum <= maximum, got {room}, {minimum_s}, {maximum_s}")
    groups = 1 + -(-waiting // room)
    latest = min(maximum_s, minimum_s * (1 + groups))
    return RetryWindow(earliest=now + minimum_s, latest=now + max(minimum_s, latest))
