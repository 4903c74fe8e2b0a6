"""What a training costs in energy, estimated: CPU seconds times watts. Pure.

The rules:
- a device that cannot measure its draw counts the trainer's CPU seconds and multiplies them by the watts that one busy
  core adds; half a charge that is estimated is still bounded, and the owner can put a measured number in its place;
- the owner sets `policy.watts` and the night's cap `policy.energy_wh`; the policy stops a training that reached it;
- the watts below are **estimates**, not measurements of this project: what a device of the kind draws with all cores
  busy, less what it draws at rest, over its cores, rounded up. A power meter between plug and device knows better.
"""

from dataclasses import dataclass

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """A kind of device: `watts` is what one busy core adds."""

    name: str
    watts: float


HARDWARE = (
    Hardware("Raspberry Pi Zero 2 W", 0.6),
    Hardware("Raspberry Pi 3", 1.0),
    Hardware("Raspberry Pi 4", 1.2),
    Hardware("Raspberry Pi 5", 2.0),
    Hardware("phone", 2.0),
    Hardware("x86-64 computer", 10.0),
)


def watt_hours(cpu_s: float, watts: float) -> float:
    """Return the energy of `cpu_s` CPU seconds at `watts` a busy core, in watt-hours."""
    return cpu_s * watts / HOUR_S
