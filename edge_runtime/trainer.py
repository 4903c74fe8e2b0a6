"""The trainer's process: `python -m edge_runtime.trainer --home HOME ...`, started by `adapters.child_trainer`.

The rules:
- jobs come over standard input and answers leave over standard output, as `job_frames`; whatever else of this process
  writes to standard output goes to standard error;
- it opens the home by itself, and ends when its job is done and no other follows within a moment, when its supervisor
  is gone, or when it was told to stop (SIGTERM) and has answered;
- between two steps it looks whether it was told to stop, and whether its supervisor still holds the other end;
- it takes time from the supervisor: the wall clock that the supervisor believes in, carried on by the clock that both
  share and that never jumps.
numpy and the interpreter live here, for as long as there is work, and nowhere else on a device.
"""

import argparse
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from edge_runtime import identity
from edge_runtime.adapters import files, process_limits
from edge_runtime.adapters.lazy_runtime import LazyRuntime
from edge_runtime.job_frames import Frame, FrameBroken, FrameReader, encode
from edge_runtime.job_runner import JobRunner
from edge_runtime.jobs import Answer, Evaluate, Order, Personalize, Stopped, Train, UsedUp

_READ_BYTES = 1 << 16


class CarriedClock:
    """Implements the Clock port: Unix time is `ahead` of CLOCK_BOOTTIME, as it was when the process started."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def now(self) -> float:
        """See `ports.Clock`."""
        return self.elapsed() + self._ahead_s

    def elapsed(self) -> float:
        """See `ports.Clock`."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def trusted(self) -> bool:
        """The supervisor begins no job by a clock that it does not believe."""
        return True

    def prove(self, server_time: float, *, fresh: bool) -> None:
        """No message of a server comes here."""


class StopAsked:
    """Whether the process was told to stop; install it before anything slow."""

    def __init__(self) -> None:
        self._told = False
        signal.signal(signal.SIGTERM, self._note)
        # A person's Ctrl-C is for the supervisor, which then tells this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def __bool__(self) -> bool:
        return self._told


class Pipes:
    """The two pipes to the supervisor."""

    def __init__(self) -> None:
        self._input = 0
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._reader = FrameReader()
        self._waiting: list[Frame] = []
        self._poll = select.poll()
        self._poll.register(self._input, select.POLLIN)

    @property
    def hung_up(self) -> bool:
        """Whether the supervisor let go of its end, or died."""
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in self._poll.poll(0))

    def next_order(self, wait_s: float) -> Order | None:
        """Return the next order, or None: none came in time, or none will. Raises `FrameBroken`."""
        until = time.monotonic() + wait_s
        while not self._waiting:
            left = until - time.monotonic()
            if left <= 0 or not self._poll.poll(1e3 * left):
                return None
            data = os.read(self._input, _READ_BYTES)
            if not data:
                return None
            self._waiting += self._reader.feed(data)
        order = self._waiting.pop(0)
        if not isinstance(order, Order):
            raise FrameBroken(f"a trainer is sent orders, got {type(order).__name__}")
        return order

    def send(self, frame: Frame) -> None:
        """Write a frame. Raises `BrokenPipeError` if the supervisor is gone."""
        view = memoryview(encode(frame))
        while view:
            view = view[os.write(self._output, view) :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.trainer", description="Started by edge-runtime run.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--runtime", choices=("auto", "litert", "tflite", "numpy"), required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--ahead", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--memory", type=int, required=True, metavar="BYTES")
    parser.add_argument("--held-out", type=float, required=True, metavar="SHARE")
    parser.add_argument("--linger", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--priority", choices=("ordinary", "background", "idle"), required=True)
    return parser


def serve(arguments: argparse.Namespace, pipes: Pipes, stop: StopAsked) -> None:
    """Do what comes, until nothing more does."""
    priority = arguments.priority
    applied = process_limits.apply(parent=arguments.parent, memory_bytes=arguments.memory, priority=priority)
    pipes.send(applied)
    runtime = LazyRuntime(arguments.runtime)
    runner = JobRunner(
        arguments.home, runtime, identity.system_entropy, CarriedClock(arguments.ahead), arguments.held_out,
        runtime.let_go,
    )  # fmt: skip
    while not stop:
        order = pipes.next_order(arguments.linger)
        if order is None:
            break
        began = time.process_time()
        if isinstance(order.job, Train | Evaluate | Personalize) and priority == "background":
            applied, priority = process_limits.be_idle(applied, arguments.memory), "idle"
            pipes.send(applied)
        result = runner.run(order.job, lambda: not stop and not pipes.hung_up) if not stop else Stopped()
        used = UsedUp(cpu_s=time.process_time() - began, written_bytes=files.take_written_bytes())
        pipes.send(Answer(number=order.number, result=result, used=used))
    runner.close()


def main(words: list[str] | None = None) -> int:
    """Be a trainer until there is nothing to do."""
    arguments = _parser().parse_args(words)
    stop, pipes = StopAsked(), Pipes()
    try:
        serve(arguments, pipes, stop)
    except BrokenPipeError:
        return 0
    except FrameBroken as e:
        sys.stderr.write(f"the supervisor's order cannot be read: {e}\n")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # What a condition stopped should use no more CPU, and taking an interpreter's memory apart is some.
    os._exit(code)
