"""Whether a Raspberry Pi's supply is too weak just now: a brown-out corrupts cards, and a training draws the most.

    ROOT/sys/class/hwmon/hwmon*/name             "rpi_volt"
    ROOT/sys/class/hwmon/hwmon*/in*_lcrit_alarm  1: under-voltage now
    ROOT/sys/devices/platform/soc/soc:firmware/get_throttled    hexadecimal; bit 0 is under-voltage now
    vcgencmd get_throttled                       "throttled=0x50005", the same bits, where only the command is there

Bits 16 and above say what happened since the start and never clear, so they do not count. None of this has been seen
on a board by this project; the names are those of the kernel's driver and of the firmware's documentation.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from edge_runtime.adapters.sensors.small_file import read_text

DRIVER = "rpi_volt"
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
COMMAND = ("vcgencmd", "get_throttled")
_UNDER_VOLTAGE_NOW = 0x1
_THROTTLED = re.compile(r"^throttled=0x([0-9a-fA-F]{1,8})$")


def read_under_voltage(root: Path) -> tuple[bool, str] | None:
    """Return whether the supply is too weak now, and which file says so; None where no file does."""
    for monitor in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if read_text(monitor / "name") == DRIVER:
            alarms = [read_text(path) for path in sorted(monitor.glob("in*_lcrit_alarm"))]
            if any(alarm in ("0", "1") for alarm in alarms):
                return "1" in alarms, f"hwmon {DRIVER}"
    bits = _hexadecimal(read_text(root / FIRMWARE))
    return None if bits is None else (bool(bits & _UNDER_VOLTAGE_NOW), "firmware get_throttled")


def parse_throttled(text: str) -> bool | None:
    """Return whether the command's answer tells of under-voltage now; None for another text."""
    found = _THROTTLED.match(text.strip())
    return bool(int(found.group(1), 16) & _UNDER_VOLTAGE_NOW) if found else None


def _hexadecimal(text: str | None) -> int | None:
    try:
        return int(text, 16) if text is not None else None
    except ValueError:
        return None


def to_answer(output: str) -> Mapping[str, object] | None:
    """Return the command's answer as `background_command` keeps it, or None."""
    now = parse_throttled(output)
    return None if now is None else {"under_voltage": now}
