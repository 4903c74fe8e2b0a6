"""The process between us and a broker: it makes sure that no broker outlives whoever started it.

    python -m cloud_aggregator.adapters.broker_child PARENT_PID mosquitto BINARY CONFIG
    python -m cloud_aggregator.adapters.broker_child PARENT_PID iotcore CONFIG
It ends, and takes the broker with it, when its standard input closes or its parent is another process than the one
named: one of the two happens however the parent ends, by return, Ctrl-C or kill -9. Ctrl-C itself goes to the whole
process group, so it is ignored here: the parent stops the broker after its own last words.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

PARENT_CHECK_S = 0.5


def watch_parent(parent: int, end: Callable[[], None]) -> None:
    """Call `end` once standard input closes or this process has been inherited by another."""

    def wait_for_input() -> None:
        # Not through sys.stdin: its lock would keep the interpreter from ending.
        while os.read(0, 4096):
            continue
        end()

    def wait_for_parent() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        end()

    for target in (wait_for_input, wait_for_parent):
        threading.Thread(target=target, daemon=True).start()


def _die_with_parent() -> None:
    # For the case that this very process is killed with -9: Linux then ends its child (prctl PR_SET_PDEATHSIG = 1).
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def run_mosquitto(parent: int, binary: str, config: str) -> int:
    """Run mosquitto until the parent is gone; return its exit code."""
    broker = subprocess.Popen([binary, "-c", config], stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    signal.signal(signal.SIGTERM, lambda _number, _frame: broker.terminate())

    def end() -> None:
        broker.terminate()
        try:
            broker.wait(timeout=3)
        except subprocess.TimeoutExpired:
            broker.kill()

    watch_parent(parent, end)
    return broker.wait()


def run_iotcore(parent: int, config: str) -> int:
    """Run iotcore in this process until the parent is gone; it has no shutdown of its own."""
    from iotcore import IotCoreBroker

    # rumqttd writes a line for every packet at level ERROR.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    watch_parent(parent, lambda: os._exit(0))
    IotCoreBroker(config_path=config).run_forever()
    return 0


def main(arguments: list[str]) -> int:
    """Start the broker that the arguments name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    match arguments:
        case [parent, "mosquitto", binary, config]:
            return run_mosquitto(int(parent), binary, config)
        case [parent, "iotcore", config]:
            return run_iotcore(int(parent), config)
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
