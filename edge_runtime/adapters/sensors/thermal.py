"""Heat, from the kernel's thermal zones: ROOT/sys/class/thermal/thermal_zone*/temp, thousandths of a degree Celsius."""

from pathlib import Path

from edge_runtime.adapters.sensors.small_file import read_number

SOURCE = "sys/class/thermal"
# Zones that are not connected say -273 or -274 degrees, or one degree above all: they are no measurement.
_PLAUSIBLE = (-60.0, 200.0)


def read_hottest(root: Path) -> float | None:
    """Return the hottest zone's temperature in Celsius; None where no zone says a plausible one."""
    zones = [read_number(path) for path in root.glob(f"{SOURCE}/thermal_zone*/temp")]
    known = [value / 1000.0 for value in zones if value is not None]
    plausible = [celsius for celsius in known if _PLAUSIBLE[0] <= celsius <= _PLAUSIBLE[1]]
    return max(plausible) if plausible else None
