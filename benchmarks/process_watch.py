"""Memory and CPU of other processes, as Linux tells them under /proc; for benchmarks."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes (2^20): resident set, proportional set, and private."""

    rss_mb: float
    pss_mb: float
    private_mb: float


def memory_of(process: int) -> Memory | None:
    """Return a process's memory now; None if it is gone."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return None
    found: dict[str, float] = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = float(rest.split()[0]) / 1024
    if "Pss" not in found:
        return None
    return Memory(found["Rss"], found["Pss"], found["Private_Clean"] + found["Private_Dirty"])


def cpu_of(process: int) -> float:
    """Return the CPU seconds of a process so far (all threads), to the nanosecond where the kernel tells; 0 if gone."""
    total = 0
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return total / 1e9


def tree_of(process: int) -> list[int]:
    """Return a process and its descendants."""
    found = [process]
    for each in found:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


@dataclass
class Peak:
    """Samples a process and its descendants until `close`: the largest sums, and the largest of one process."""

    process: int
    interval_s: float = 0.05
    rss_mb: float = 0.0
    pss_mb: float = 0.0
    processes: int = 0
    samples: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.is_set():
            found = [each for each in map(memory_of, tree_of(self.process)) if each is not None]
            self.rss_mb = max(self.rss_mb, sum(each.rss_mb for each in found))
            self.pss_mb = max(self.pss_mb, sum(each.pss_mb for each in found))
            self.processes = max(self.processes, len(found))
            self.samples += 1
            time.sleep(self.interval_s)

    def close(self) -> "Peak":
        """Stop sampling."""
        self._done.set()
        self._thread.join()
        return self
