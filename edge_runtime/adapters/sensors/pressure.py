"""Load: how much others wait, from the kernel's pressure stall information (PSI), else from the load average.

    ROOT/proc/pressure/{cpu,io,memory}           "some avg10=..": percent of the last ten seconds in which a task waited
    ROOT/sys/fs/cgroup/GROUP/{cpu,io,memory}.pressure    the same for one control group
    ROOT/proc/self/cgroup                        "0::/GROUP", this process's group
    ROOT/proc/loadavg                            tasks that run or wait, averaged over a minute

The trainer waits, too, and must not stop itself. The system's share is at most the sum of ours and the others', so what
is left after ours is taken away is at least what others wait: `is_others`. Where our own group is not known (no cgroup
v2, or the root group, which is everybody), and for the load average, it cannot be told apart: `is_others` is false and
the policy heeds the value for a start only. PSI is off in some kernels until `psi=1` is on their command line.
https://docs.kernel.org/accounting/psi.html
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.adapters.sensors.small_file import read_text, to_number

RESOURCES = ("cpu", "io", "memory")
_AVG10 = re.compile(r"^some avg10=(\d+(?:\.\d+)?)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Load:
    """A percentage, 0 where nobody waits, and whether it is that of others alone."""

    percent: float
    is_others: bool
    source: str


def read_load(root: Path, group: str | None = None, cpus: int | None = None) -> Load | None:
    """Return the load; None where the kernel tells none.

    `group` is the control group of agent and trainer together, by default that of this process; `cpus` how many
    processors share the load average.
    """
    system = {name: _some(root / "proc/pressure" / name) for name in RESOURCES}
    if all(value is None for value in system.values()):
        return _load_average(root, cpus)
    folder = own_group(root, group)
    own = {name: _some(folder / f"{name}.pressure") if folder is not None else None for name in RESOURCES}
    others = [value - (own[name] or 0.0) for name, value in system.items() if value is not None]
    told_apart = all(own[name] is not None for name, value in system.items() if value is not None)
    return Load(max(0.0, *others), told_apart, "proc/pressure")


def own_group(root: Path, group: str | None = None) -> Path | None:
    """Return the folder of our control group; None where it is everybody's, or there are no such groups."""
    if group is None:
        lines = (read_text(root / "proc/self/cgroup") or "").splitlines()
        group = next((line[len("0::") :] for line in lines if line.startswith("0::")), "")
    name = group.strip("/")
    if not name or ".." in name.split("/"):
        return None
    return root / "sys/fs/cgroup" / name


def _some(path: Path) -> float | None:
    found = _AVG10.search(read_text(path) or "")
    return float(found.group(1)) if found else None


def _load_average(root: Path, cpus: int | None) -> Load | None:
    words = (read_text(root / "proc/loadavg") or "").split()
    tasks = to_number(words[0]) if words else None
    if tasks is None:
        return None
    return Load(100.0 * tasks / (cpus or os.cpu_count() or 1), False, "proc/loadavg")
