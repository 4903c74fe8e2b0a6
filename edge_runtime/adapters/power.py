"""The sensors of a Linux device, read from files below a root (`/` on a device, a folder in a simulation).

    ROOT/sys/class/power_supply/NAME/type        Battery, Mains, USB, ...
    ROOT/sys/class/power_supply/NAME/scope       "Device" is a mouse or a pen: ignored
    ROOT/sys/class/power_supply/NAME/online      1 where a charger delivers
    ROOT/sys/class/power_supply/NAME/status      Charging, Full, Not charging, Discharging
    ROOT/sys/class/power_supply/NAME/capacity    percent
    ROOT/sys/class/thermal/thermal_zone*/temp    thousandths of a degree Celsius; the hottest counts
    ROOT/run/edge-runtime/idle_seconds           "SECONDS" or "SECONDS WRITTEN_AT": since somebody last used the device
    ROOT/run/edge-runtime/metered                "0" or "1", or "0 WRITTEN_AT"

The last two are the convention for desktop and network hooks: a hook writes the file whole, WRITTEN_AT in Unix seconds
(without it the value counts as fresh). What is missing, unreadable or no finite number is unknown; so is the age of a
value whose WRITTEN_AT is none, and with it the value. `write_fixture` writes the same tree.
"""

import math
from collections.abc import Callable
from pathlib import Path

from edge_runtime.eligibility import Reading, Readings

MAX_FILE_CHARACTERS = 64
_CHARGING = {"charging", "full", "not charging"}


class FileSensors:
    """Implements the Sensors port."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, now: float) -> Readings:
        """Read everything once; the files are small and local."""
        charging, battery, has_battery = self._power()
        return Readings(
            charging=Reading(charging),
            battery=Reading(battery),
            celsius=Reading(self._hottest()),
            idle_s=self._hook("idle_seconds", float, now),
            metered=self._hook("metered", lambda text: bool(int(text)), now),
            has_battery=has_battery,
        )

    def _power(self) -> tuple[bool | None, float | None, bool]:
        has_battery = False
        online: list[bool] = []
        status: list[str] = []
        capacity: list[float] = []
        for supply in sorted(self._root.glob("sys/class/power_supply/*")):
            if _text(supply / "scope") == "Device":
                continue
            kind = _text(supply / "type")
            if kind == "Battery":
                has_battery = True
                state = _text(supply / "status")
                if state is not None:
                    status.append(state.lower())
                level = _number(_text(supply / "capacity"))
                if level is not None:
                    capacity.append(level)
            elif kind is not None:
                plugged = _number(_text(supply / "online"))
                if plugged is not None:
                    online.append(plugged > 0)
        battery = min(capacity) if capacity else None
        if any(state == "discharging" for state in status):
            return False, battery, has_battery
        if any(online):
            return True, battery, has_battery
        if any(state in _CHARGING for state in status):
            return True, battery, has_battery
        return (False if online else None), battery, has_battery

    def _hottest(self) -> float | None:
        zones = [_number(_text(path)) for path in self._root.glob("sys/class/thermal/thermal_zone*/temp")]
        known = [value for value in zones if value is not None]
        return max(known) / 1000.0 if known else None

    def _hook(self, name: str, convert: Callable[[str], "float | bool"], now: float) -> Reading:  # type: ignore[type-arg]
        words = (_text(self._root / "run/edge-runtime" / name) or "").split()
        try:
            value = convert(words[0])
            age_s = now - float(words[1]) if len(words) > 1 else 0.0
        except (IndexError, ValueError):
            return Reading()
        return Reading(value, age_s) if math.isfinite(value) and math.isfinite(age_s) else Reading()


def write_fixture(
    root: Path,
    *,
    charging: bool | None,
    battery: float | None,
    idle_seconds: float | None,
    metered: bool | None,
    celsius: float | None,
) -> None:
    """Write the tree of the module docstring under `root`; None removes a sensor. For simulations and tests."""
    supply = root / "sys/class/power_supply"
    _put(supply / "BAT0/type", None if battery is None else "Battery")
    _put(supply / "BAT0/capacity", None if battery is None else f"{battery:.0f}")
    state = None if battery is None or charging is None else "Charging" if charging else "Discharging"
    _put(supply / "BAT0/status", state)
    _put(supply / "AC/type", None if charging is None else "Mains")
    _put(supply / "AC/online", None if charging is None else str(int(charging)))
    _put(root / "sys/class/thermal/thermal_zone0/temp", None if celsius is None else str(round(celsius * 1000)))
    _put(root / "run/edge-runtime/idle_seconds", None if idle_seconds is None else str(idle_seconds))
    _put(root / "run/edge-runtime/metered", None if metered is None else str(int(metered)))


def _put(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def _text(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_FILE_CHARACTERS).strip() or None
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
