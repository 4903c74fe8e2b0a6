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
    """A kind of device: `watts` is what one busy core adds; `model` begins what its device tree calls it."""

    name: str
    watts: float
    model: str = ""


HARDWARE = (
    Hardware("Raspberry Pi Zero 2 W", 0.6, "Raspberry Pi Zero 2"),
    Hardware("Raspberry Pi 3", 1.0, "Raspberry Pi 3"),
    Hardware("Raspberry Pi 4", 1.2, "Raspberry Pi 4"),
    Hardware("Raspberry Pi 5", 2.0, "Raspberry Pi 5"),
    Hardware("phone", 2.0),
    Hardware("x86-64 computer", 10.0),
)


def watt_hours(cpu_s: float, watts: float) -> float:
    """Return the energy of `cpu_s` CPU seconds at `watts` a busy core, in watt-hours."""
    return cpu_s * watts / HOUR_S


def cpu_seconds(energy_wh: float, watts: float) -> float:
    """Return how many CPU seconds `energy_wh` watt-hours last; the inverse of `watt_hours`. `watts` is above 0."""
    return energy_wh * HOUR_S / watts


def hardware_of(model: str) -> Hardware | None:
    """Return the kind of device that a device tree's `model` names (/proc/device-tree/model), or None."""
    return next((each for each in HARDWARE if each.model and model.startswith(each.model)), None)
