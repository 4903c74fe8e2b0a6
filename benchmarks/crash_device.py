"""Claim: nothing that a device was told is kept is lost by a power cut, a full or broken disk, or a kill.

Three parts, one judge (tests/edge_runtime/crash_story.py): a life of twelve stages (enrol, install, text, an
interrupted training, every verdict, a version from a delta, personal copies, forgetting while an update waits) is
played against an aggregator that judges on its own, and compared with the same life without a fault.

- cuts: everything that files and SQLite do to the disk is recorded, with its call site. At each operation, and before
  everything that broker or aggregator see of the device, the states that a power cut may leave are built (the model, in
  tests/edge_runtime/crash_states.py, is ALICE's: Pillai et al. 2014; prefixes, unsynced writes dropped, torn, out of
  order or zeros, unsynced names kept or dropped one by one); a new agent opens each that is drawn, with the world as it
  was at that moment, and goes on to the end of the stage, of one in four to the end of the next. `points` counts these
  states; `distinct_points` the call sites x kinds of operation, of which none may be missed (`all_points`);
  `legal_states` how many states there were to draw from. `unexplained`: files that differ after replaying the whole
  log, so something wrote past the layer.
- faults: operations of each stage are refused instead: ENOSPC once, EIO once, ENOSPC until there is room.
- kills: a real agent process is killed with SIGKILL 200 times at random instants, over a broker that outlives it.

`lost`: an enrolment, version, sentence, update, or vector that was acknowledged and is gone; `doubled`: an update that
was counted twice; `half_activated`: a slot or personal copy that is neither the old one nor the new one; `identical`:
every update says to the bit what it says in a life without a fault, and the residual is the same. `controls`: how many
problems the same judge finds on disks that lie about syncing; it must find some.

`written`: bytes that the whole life wrote by the agent's own count (what its nightly budget goes by), beside the
kernel's (/proc/self/io), where the folder is on a disk.

Run: python -m benchmarks.crash_device [--seed 1] [--states 5] [--kills 200] [--fault-every 3] [--full]
--full draws 16 states a moment and refuses every operation (about half an hour). The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from benchmarks.killed_device import KilledDevice
from edge_runtime.adapters import files
from tests.edge_runtime.crash_story import STAGES, Story, Verdict
from tests.edge_runtime.disk_faults import FaultReport, run_faults
from tests.edge_runtime.power_cuts import PowerCuts, Report, memory_folder
from tests.edge_runtime.recorded_disk import Operation

CONTROL_EVERY = 40
CONTROLS: dict[str, Callable[[Operation], bool]] = {
    "files are not synced": lambda done: done.by == "files" and done.kind == "sync",
    "names are not synced": lambda done: done.by == "files" and done.kind == "sync_directory",
}


def show_points(cuts: Report, faults: FaultReport) -> None:
    """Print every call site x kind: how often it came, the states judged after it, the faults in its place."""
    print(f"{'call site':<34}{'operation':<16}{'by':<8}{'moments':>9}{'states':>8}{'faults':>8}")
    for point in sorted(cuts.moments):
        site, kind, by = point
        print(f"{site:<34}{kind:<16}{by:<8}{cuts.moments[point]:>9}{cuts.by_point[point]:>8}"
              f"{faults.by_point[point]:>8}")  # fmt: skip


def controls(seed: int) -> dict[str, int]:
    """Return how many problems the judge finds where the disk lies."""
    found = {}
    for name, lies in CONTROLS.items():
        with memory_folder() as made:
            report = PowerCuts(made, seed=seed, most=4, every=CONTROL_EVERY, lies=lies).run()
        verdict = report.verdict
        found[name] = verdict.lost + verdict.doubled + verdict.half_activated + (not verdict.identical)
    return found


def kernel_written() -> int | None:
    """Return the bytes that this process has had written, by the kernel's count; None where it does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])
    return None


def written(folder: Path) -> dict[str, int | None]:
    """Play the life once on this folder's disk and count its writes in both ways."""
    files.take_written_bytes()
    before = kernel_written()
    story = Story(folder / "home")
    story.play()
    story.close()
    after = kernel_written()
    kernel = after - before if before is not None and after is not None else None
    with closing(sqlite3.connect(folder / "home" / "state.db")) as connection:
        counted = connection.execute("SELECT SUM(written_bytes) FROM usage").fetchone()[0]
    # What the last turns wrote has not been given to a night yet.
    return {"own_bytes": counted + files.take_written_bytes(), "kernel_bytes": kernel}


def measure(asked: argparse.Namespace) -> dict[str, object]:
    """Run all parts, print the table and return the report."""
    total, started = Verdict(), time.monotonic()
    with memory_folder() as made:
        cuts = PowerCuts(made, seed=asked.seed, most=asked.states).run()
    cut_s = time.monotonic() - started
    with memory_folder() as made:
        faults = run_faults(made, every=asked.fault_every)
    fault_s = time.monotonic() - started - cut_s
    caught = controls(asked.seed)
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        killed = KilledDevice(Path(made), asked.seed)
        killed.run(asked.kills)
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        bytes_written = written(Path(made))
    show_points(cuts, faults)
    for verdict in (cuts.verdict, faults.verdict, killed.verdict):
        total.add(verdict)
    print(f"cuts: {cuts.points} states judged of {cuts.legal_states} at {sum(cuts.moments.values())} moments of "
          f"{cuts.operations} operations; {dict(cuts.by_stage)}")  # fmt: skip
    print(f"faults: {dict(faults.by_name)}, {faults.said} of {faults.faults} named by the device")
    print(f"kills: {killed.kills}, in {killed.rounds} rounds; the call under way: {killed.by_call}")
    print(f"a disk that lies: {caught}; written: {bytes_written}")
    print(f"lost {total.lost}, doubled {total.doubled}, half activated {total.half_activated}, "
          f"identical {total.identical}")  # fmt: skip
    for problem in total.problems:
        print(problem, file=sys.stderr)
    return {
        "benchmark": "crash_device",
        "seed": asked.seed,
        "points": cuts.points,
        "distinct_points": len(cuts.all_points & cuts.moments.keys()),
        "all_points": len(cuts.all_points),
        "legal_states": cuts.legal_states,
        "moments": sum(cuts.moments.values()),
        "operations": cuts.operations,
        "unexplained": len(cuts.missed),
        "faults": faults.faults,
        "faults_named": faults.said,
        "kills": killed.kills,
        "rounds": killed.rounds,
        "lost": total.lost,
        "doubled": total.doubled,
        "half_activated": total.half_activated,
        "identical": total.identical,
        "controls": caught,
        "written": bytes_written,
        "seconds": {"cuts": round(cut_s, 1), "faults": round(fault_s, 1), "all": round(time.monotonic() - started, 1)},
        "cpu_s": round(sum(os.times()[:4]), 1),
        "settings": {
            "states_a_moment": asked.states,
            "fault_every": asked.fault_every,
            "stages": [stage.name for stage in STAGES],
        },
        "machine": platform.machine(),
        "versions": {"sqlite": sqlite3.sqlite_version, "numpy": version("numpy"), "python": platform.python_version()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--states", type=int, default=5, help="states judged at a moment, at most")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--fault-every", type=int, default=3, help="refuse every n-th operation of a stage")
    parser.add_argument("--full", action="store_true", help="16 states a moment, every operation refused")
    parser.add_argument("--folder", type=Path, help="on which disk the killed device lives")
    asked = parser.parse_args()
    if asked.full:
        asked.states, asked.fault_every = 16, 1
    print(json.dumps(measure(asked)))


if __name__ == "__main__":
    main()
