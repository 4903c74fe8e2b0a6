"""Power, from the kernel's power_supply class.

    ROOT/sys/class/power_supply/NAME/type        Battery, Mains, USB, UPS, ...
    ROOT/sys/class/power_supply/NAME/scope       "Device" is a mouse or a pen: ignored
    ROOT/sys/class/power_supply/NAME/present     0 is an empty battery bay: ignored
    ROOT/sys/class/power_supply/NAME/online      1 where a charger delivers
    ROOT/sys/class/power_supply/NAME/status      Charging, Full, Not charging, Discharging
    ROOT/sys/class/power_supply/NAME/capacity    percent
    ROOT/sys/class/power_supply/NAME/temp        tenths of a degree Celsius

A battery that discharges counts more than a charger that says that it is on: a weak charger cannot carry a training.
"""

from dataclasses import dataclass
from pathlib import Path

from edge_runtime.adapters.sensors.small_file import read_number, read_text

SOURCE = "sys/class/power_supply"
_CHARGING = {"charging", "full", "not charging"}
_WITH_BATTERY = {"Battery", "UPS"}


@dataclass(frozen=True, slots=True)
class Power:
    """What the supplies say together: the lowest battery in percent, the hottest one in Celsius."""

    charging: bool | None = None
    battery: float | None = None
    battery_celsius: float | None = None
    has_battery: bool = False


def read_power(root: Path) -> Power:
    """Return what the supplies under `root` say."""
    has_battery = False
    online: list[bool] = []
    status: list[str] = []
    capacity: list[float] = []
    heat: list[float] = []
    for supply in sorted(root.glob(f"{SOURCE}/*")):
        if read_text(supply / "scope") == "Device" or read_text(supply / "present") == "0":
            continue
        kind = read_text(supply / "type")
        if kind in _WITH_BATTERY:
            has_battery = True
            state = read_text(supply / "status")
            if state is not None:
                status.append(state.lower())
            _append(capacity, read_number(supply / "capacity"))
            _append(heat, read_number(supply / "temp"))
        elif kind is not None:
            plugged = read_number(supply / "online")
            if plugged is not None:
                online.append(plugged > 0)
    return Power(
        _charging(status, online),
        min(capacity) if capacity else None,
        max(heat) / 10.0 if heat else None,
        has_battery,
    )


def _append(values: list[float], value: float | None) -> None:
    if value is not None:
        values.append(value)


def _charging(status: list[str], online: list[bool]) -> bool | None:
    if "discharging" in status:
        return False
    if any(online) or any(state in _CHARGING for state in status):
        return True
    return False if online else None
