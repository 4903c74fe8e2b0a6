"""Which device may work on a task now, and until when.

The rules (design 14: staleness is updates in flight / goal count, so flight is what gets limited):
- a lease is offered only while fewer than 2 x goal count leases are in flight;
- a device holds at most one live lease of a task; asking again while it lives gives the same lease again, unless the
  device no longer holds the lease's base version and could not get it any more;
- a lease ends by its update, by its deadline, or by another lease in its place; an update that still comes in time for
  a replaced lease is admitted like any other.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

IN_FLIGHT_PER_GOAL: Final = 2

LeaseState = Literal["live", "answered", "replaced", "expired"]


@dataclass(frozen=True, slots=True)
class Lease:
    """One task offered to one device until `deadline` (Unix seconds); `seed` fixes its local training."""

    lease: str
    task: str
    device: str
    base_version: int
    base_sha256: str
    seed: int
    issued_at: int
    deadline: int
    state: LeaseState = "live"


def may_offer(in_flight: int, goal_count: int) -> bool:
    """Whether one more lease may go out with `in_flight` leases already unanswered."""
    return in_flight < IN_FLIGHT_PER_GOAL * goal_count


def is_offered_again(lease: Lease, *, current_version: int, held_version: int, now: int) -> bool:
    """Whether a live lease is the answer to its device's next check-in.

    Not so when it has run out, nor when its base is no longer announced and the device does not hold it: that device
    could never start.
    """
    if lease.state != "live" or now >= lease.deadline:
        return False
    return lease.base_version in (current_version, held_version)


def draw_lease(
    service_seed: bytes, *, task: str, device: str, counter: int, base: tuple[int, str], now: int, lease_s: int
) -> Lease:
    """Return the `counter`-th lease of a device for a task; `base` is the version and its file's SHA-256.

    Id and seed are SHA-256 of the service's secret seed, task, device and counter: nobody can guess them, and a run
    with the same secret repeats exactly.
    """
    name = b"\n".join((b"edge-federation lease v1", service_seed, task.encode(), device.encode(), b"%d" % counter))
    digest = hashlib.sha256(name).digest()
    seed = int.from_bytes(digest[16:24], "big") >> 1
    return Lease(digest[:16].hex(), task, device, base[0], base[1], seed, now, now + lease_s)
