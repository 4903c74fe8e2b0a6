"""Power, battery and link of an Android phone, from the commands of Termux:API. Pure: what their JSON says.

    termux-battery-status         {"percentage": 80, "plugged": "PLUGGED_AC", "status": "CHARGING", "temperature": 29.5}
    termux-wifi-connectioninfo    {"supplicant_state": "COMPLETED", "ip": "192.168.1.7", ...}

Android shows a guest neither the kernel's power files nor whether a person uses the phone nor whether a Wi-Fi is
metered: a Wi-Fi that is connected counts as unmetered, anything else as metered. The share of another phone looks like
any Wi-Fi here; its owner sets the `metered` hook. The commands take about half a second, so they run beside the agent
(`background_command`). This project has not run them on a phone.
"""

import json
import math
from collections.abc import Mapping

BATTERY_COMMAND = ("termux-battery-status",)
WIFI_COMMAND = ("termux-wifi-connectioninfo",)
PREFIX_BIN = "/data/data/com.termux/files/usr/bin"


def to_answer(output: str) -> Mapping[str, object] | None:
    """Return the JSON object that a command printed; None for anything else."""
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def charging(battery_status: Mapping[str, object]) -> bool | None:
    """Whether it charges: plugged in and not discharging all the same."""
    plugged, status = battery_status.get("plugged"), battery_status.get("status")
    if status == "DISCHARGING" or plugged == "UNPLUGGED":
        return False
    return True if isinstance(plugged, str) and plugged.startswith("PLUGGED_") else None


def battery_percent(battery_status: Mapping[str, object]) -> float | None:
    """How full the battery is, 0 to 100."""
    value = _number(battery_status.get("percentage"))
    return value if value is not None and 0.0 <= value <= 100.0 else None


def battery_celsius(battery_status: Mapping[str, object]) -> float | None:
    """How warm the battery is."""
    return _number(battery_status.get("temperature"))


def metered(wifi: Mapping[str, object]) -> bool | None:
    """Whether the link counts as metered: false on a connected Wi-Fi."""
    state = wifi.get("supplicant_state")
    if not isinstance(state, str):
        return None
    return not (state == "COMPLETED" and wifi.get("ip") not in (None, "", "0.0.0.0"))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        # JSON's integers have no end.
        return None
    return number if math.isfinite(number) else None
