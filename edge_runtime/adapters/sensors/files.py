"""The sensors that are files alone: those of the kernel and the hooks, and writing the same tree for a simulation."""

from pathlib import Path

from edge_runtime.adapters.sensors import hooks, power_supply, pressure, thermal, under_voltage
from edge_runtime.eligibility import Reading, Readings


class FileSensors:
    """Implements the Sensors port over the files under `root`; `group` as in `pressure.read_load`, `undated_is_fresh`
    as in `hooks`."""

    def __init__(self, root: Path = Path("/"), group: str | None = None, *, undated_is_fresh: bool = True) -> None:
        self._root = root
        self._group = group
        self._undated_is_fresh = undated_is_fresh

    def read(self, now: float) -> Readings:
        """Read everything once; the files are small and local."""
        power = power_supply.read_power(self._root)
        load = pressure.read_load(self._root, self._group)
        weak = under_voltage.read_under_voltage(self._root)
        return Readings(
            charging=Reading(power.charging, source=power_supply.SOURCE),
            battery=Reading(power.battery, source=power_supply.SOURCE),
            celsius=Reading(thermal.read_hottest(self._root), source=thermal.SOURCE),
            idle_s=hooks.read_idle_s(self._root, now, undated_is_fresh=self._undated_is_fresh),
            metered=hooks.read_metered(self._root, now),
            has_battery=power.has_battery,
            load=Reading() if load is None else Reading(load.percent, source=load.source),
            under_voltage=Reading() if weak is None else Reading(weak[0], source=weak[1]),
            battery_celsius=Reading(power.battery_celsius, source=power_supply.SOURCE),
            load_is_others=load is None or load.is_others,
        )


def write_fixture(
    root: Path,
    *,
    charging: bool | None,
    battery: float | None,
    idle_seconds: float | None,
    metered: bool | None,
    celsius: float | None,
) -> None:
    """Write the files that `FileSensors` reads under `root`; None removes a sensor. For simulations and tests."""
    supply = root / power_supply.SOURCE
    _put(supply / "BAT0/type", None if battery is None else "Battery")
    _put(supply / "BAT0/capacity", None if battery is None else f"{battery:.0f}")
    state = None if battery is None or charging is None else "Charging" if charging else "Discharging"
    _put(supply / "BAT0/status", state)
    _put(supply / "AC/type", None if charging is None else "Mains")
    _put(supply / "AC/online", None if charging is None else str(int(charging)))
    _put(root / "sys/class/thermal/thermal_zone0/temp", None if celsius is None else str(round(celsius * 1000)))
    _put(root / hooks.FOLDER / "idle_seconds", None if idle_seconds is None else str(idle_seconds))
    _put(root / hooks.FOLDER / "metered", None if metered is None else str(int(metered)))


def _put(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
