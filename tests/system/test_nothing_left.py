"""However the fleet's process ends, its device processes and its broker end, too, even while devices wait."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLEET = """
import sys, time
from pathlib import Path
from tests.system.test_fleet import BUNDLE, SETTINGS, first_midnight, people
from fleet_simulator.control import AskForWork, Asked, Work
from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import Visit
with Fleet(Path(sys.argv[1]), BUNDLE, SETTINGS, seed=1, now=first_midnight(), processes=2) as fleet:
    fleet.move_in(people()[:2])
    asked = AskForWork(first_midnight() + 3600, (Visit(0, "quiet"), Visit(1, "quiet")), ())
    assert sum(some.check_ins for some in fleet._ask_all([asked] * 2, Asked)) == 2
    for worker in fleet._workers:
        worker.say(Work())  # nobody answers: both now wait for an offer that does not come
    print("up", flush=True)
    time.sleep(120)
"""


def of_session(session: int) -> set[int]:
    """Return the processes that name the fleet's folder or were started by it, by their session's environment mark."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                marked = f"FLEET_TEST={session}".encode() in (entry / "environ").read_bytes().split(b"\0")
                running = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
            except OSError:
                continue
            if marked and running:
                found.add(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_when_the_fleet_ends(tmp_path, number):
    mark = os.getpid() * 100 + int(number)
    fleet = subprocess.Popen(
        [sys.executable, "-c", FLEET, str(tmp_path / "fleet")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "FLEET_TEST": str(mark)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert fleet.stdout is not None
    assert fleet.stdout.readline() == b"up\n"
    assert len(of_session(mark)) >= 4
    fleet.send_signal(number)
    fleet.wait(timeout=20)
    end = time.monotonic() + 10
    while of_session(mark) and time.monotonic() < end:
        time.sleep(0.1)
    assert of_session(mark) == set()
