"""The Trainer port as a child process: numpy and the interpreter live in it, for as long as there is work.

The rules:
- the child is started at the first job and ends by itself when none follows; it dies with this process;
- `stop` returns at once. The child is asked (SIGTERM, read between two steps). If it is not gone within `ASK_S`, it is
  being starved, or a step is long: SIGSTOP takes the CPU from it at once, then it may run like any other process for at
  most `GRACE_S` to write its checkpoint, and then SIGKILL. What that loses came after the last checkpoint;
- what comes over the pipe is read as hostile: garbage, an answer to another order or an end without answer is `Died`;
- every job has a time limit; a trainer that passes it is killed;
- CPU is counted by the kernel, a killed child's too, and so is what the child used after it was to stop.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.adapters.runtime_name import RuntimeName, runtime_name
from edge_runtime.job_frames import Limit
from edge_runtime.jobs import Died, Job, JobResult, LongJob, Order, ShortJob, Stopped, UsedUp
from edge_runtime.ports import Clock

if TYPE_CHECKING:
    from edge_runtime.adapters.trainer_process import TrainerProcess

ASK_S = 0.1
GRACE_S = 1.0
LEAVE_S = 2.0
PROGRAM = (sys.executable, "-m", "edge_runtime.trainer")


class TrainerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings say, and how much a trainer may take.

    `memory_bytes` is private memory (docs/trainer.md says what a night takes). `gives_way` puts long jobs behind
    everybody else; without it they run like any other process, on a machine that has nothing else to do.
    """

    runtime: RuntimeName = "auto"
    held_out_share: float = 0.0
    memory_bytes: int = 256 * 1024 * 1024
    gives_way: bool = True
    long_job_s: float = 3 * 3600.0
    short_job_s: float = 120.0
    linger_s: float = 1.0


_TERMS = TrainerTerms()


@dataclass(frozen=True, slots=True)
class StopReport:
    """How a stop went.

    `asked_at` is on the monotonic clock; from then on it took `trained_s` until the child trained no more (it was gone,
    or the kernel stopped it: `starved`), `gone_s` until it was gone (`killed`: not by itself), and `cpu_s` of CPU.
    """

    starved: bool
    killed: bool
    asked_at: float
    trained_s: float
    gone_s: float
    cpu_s: float


class ChildTrainer:
    """Implements the Trainer port over `home`. One thread uses it; the child is that thread's."""

    def __init__(
        self, home: Path, clock: Clock, terms: TrainerTerms = _TERMS, *, program: tuple[str, ...] = PROGRAM
    ) -> None:
        """`program` is what is started, with the trainer's arguments behind it."""
        self._home = home
        self._program = program
        self._clock = clock
        self._terms = terms
        self._child: TrainerProcess | None = None
        self._leaving: list[TrainerProcess] = []
        self._order: Order | None = None
        self._may_repeat = False
        self._numbers = 0
        self._long_until: float | None = None
        self._ending: threading.Thread | None = None
        self._past = UsedUp()
        self._reported = UsedUp()
        self.last_stop: StopReport | None = None

    @property
    def runtime(self) -> str:
        """See `ports.Trainer`."""
        return runtime_name(self._terms.runtime)

    @property
    def busy(self) -> bool:
        """See `ports.Trainer`."""
        return self._long_until is not None

    @property
    def process(self) -> int | None:
        """The child's process id, while there is one."""
        return None if self._child is None or self._child.gone.is_set() else self._child.pid

    def begin(self, job: LongJob, may_go_on: Callable[[], bool]) -> None:
        """See `ports.Trainer`; a child is told by `stop`, so `may_go_on` is not asked."""
        if self.busy:
            raise ValueError("a trainer does one long job at a time")
        now = time.monotonic()
        self._long_until = now + self._terms.long_job_s
        self._ask(job, idle=True, until=now + self._terms.short_job_s)

    def poll(self) -> JobResult | None:
        """See `ports.Trainer`."""
        if self._long_until is None:
            return None
        result = self._answer(until=time.monotonic())
        if result is None and time.monotonic() >= self._long_until:
            self._kill()
            result = Died(reason=f"a long job ends within {self._terms.long_job_s:g} s, and it did not")
        if result is not None:
            self._long_until = None
            # A night's work is done: the child goes now, and not after the moment in which it would wait for more.
            self._let_go()
        return result

    def stop(self) -> None:
        """See `ports.Trainer`."""
        child = self._child
        if child is None or not self.busy or child.told_to_stop:
            return
        child.told_to_stop = True
        self._ending = threading.Thread(target=self._end, args=(child,), name="trainer's end", daemon=True)
        self._ending.start()

    def do(self, job: ShortJob) -> JobResult:
        """See `ports.Trainer`."""
        if self.busy:
            return Died(reason="a short job waits for a long one to end, and one runs")
        until = time.monotonic() + self._terms.short_job_s
        self._ask(job, idle=False, until=until)
        result = self._answer(until=until)
        if result is None:
            self._kill()
            return Died(reason=f"a short job ends within {self._terms.short_job_s:g} s, and it did not")
        return result

    def take_used(self) -> UsedUp:
        """See `ports.Trainer`."""
        self._tidy()
        total = self._past
        for child in (*self._leaving, *([self._child] if self._child else [])):
            total = _sum(total, child.used())
        used = UsedUp(
            cpu_s=max(0.0, total.cpu_s - self._reported.cpu_s),
            written_bytes=max(0, total.written_bytes - self._reported.written_bytes),
        )
        self._reported = total
        return used

    def close(self) -> None:
        """See `ports.Trainer`. A long job is stopped as `stop` does, and this waits for that: a second at most."""
        self.stop()
        if self._ending is not None:
            self._ending.join()
        self._long_until = None
        self._let_go()
        for child in self._leaving:
            child.end(LEAVE_S)
        self._tidy()

    def limits(self, wait_s: float = 10.0) -> tuple[Limit, ...]:
        """Start a child, or ask the one that runs, which limits took effect; for `edge-runtime doctor`.

        Empty if the child says nothing in time.
        """
        if self._child is None:
            self._child = self._start(idle=True)
        child, until = self._child, time.monotonic() + wait_s
        while child.applied is None and time.monotonic() < until and child.receive(until - time.monotonic()):
            pass
        found = child.applied.limits if child.applied is not None else ()
        if not self.busy:
            self._let_go()
        return found

    def _start(self, *, idle: bool) -> "TrainerProcess":
        from edge_runtime.adapters.trainer_process import TrainerProcess

        terms = self._terms
        priority = "ordinary" if not terms.gives_way else "idle" if idle else "background"
        command = [
            *self._program, "--home", str(self._home), "--runtime", terms.runtime,
            "--parent", str(os.getpid()), "--ahead", repr(self._clock.now() - time.clock_gettime(time.CLOCK_BOOTTIME)),
            "--held-out", repr(terms.held_out_share), "--memory", str(terms.memory_bytes),
            "--linger", repr(terms.linger_s), "--priority", priority,
        ]  # fmt: skip
        environment = {
            **os.environ,
            # The same packages as here, however this process was started.
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
            # One thread: each would cost memory of its own, and the person's other cores.
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),
            # glibc's own threshold rises with use, and what is freed below it stays with the process.
            "MALLOC_MMAP_THRESHOLD_": "1048576",
        }
        return TrainerProcess(command, environment)

    def _ask(self, job: Job, *, idle: bool, until: float) -> None:
        """Send an order; whether it arrived shows when the answer is looked for."""
        self._tidy()
        self._numbers += 1
        self._order = Order(number=self._numbers, job=job)
        # A child that was about to end by itself takes no order any more; a new one does.
        self._may_repeat = self._child is not None
        if self._child is None:
            self._child = self._start(idle=idle)
        self._child.send(self._order, until)

    def _answer(self, until: float) -> JobResult | None:
        """Return the result of the last order; None if it has not come until then."""
        while True:
            child = self._child
            if child is None or self._order is None:
                return Died(reason="the trainer is gone")
            whole = child.receive(until - time.monotonic())
            if child.answers:
                answer = child.answers.pop(0)
                if answer.number == self._order.number:
                    return answer.result
                child.broken = f"it answered order {answer.number}, and was asked {self._order.number}"
                whole = False
            if not whole:
                ended = self._ended(child)
                if not (self._may_repeat and child.code == 0 and not child.broken and not child.told_to_stop):
                    return ended
                self._may_repeat = False
                self._child = self._start(idle=self.busy)
                self._child.send(self._order, time.monotonic() + self._terms.short_job_s)
            elif time.monotonic() >= until and not child.gone.is_set():
                return None

    def _ended(self, child: "TrainerProcess") -> JobResult:
        """Return what an end without an answer means."""
        if child.broken:
            child.signal(signal.SIGKILL)
        self._let_go()
        child.end(LEAVE_S)
        if child.broken:
            return Died(reason=child.broken)
        if child.told_to_stop and child.code in (0, -signal.SIGTERM, -signal.SIGKILL):
            # Before its first step, or after its grace.
            return Stopped()
        if child.code is not None and child.code < 0:
            return Died(reason=f"the trainer was ended by signal {-child.code} ({signal.strsignal(-child.code)})")
        return Died(reason=f"the trainer ended without an answer, exit status {child.code}")

    def _end(self, child: "TrainerProcess") -> None:
        used, starved, killed = child.used().cpu_s, False, False
        asked_at = time.monotonic()
        child.signal(signal.SIGTERM)
        if child.gone.wait(ASK_S):
            trained_s = time.monotonic() - asked_at
        else:
            starved = True
            child.signal(signal.SIGSTOP)
            trained_s = time.monotonic() - asked_at
            child.hurry()
            child.signal(signal.SIGCONT)
            if not child.gone.wait(GRACE_S):
                killed = True
                child.signal(signal.SIGKILL)
                child.gone.wait()
        gone_s = time.monotonic() - asked_at
        self.last_stop = StopReport(starved, killed, asked_at, trained_s, gone_s, max(0.0, child.used().cpu_s - used))

    def _kill(self) -> None:
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
        self._let_go()

    def _let_go(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.let_go()
            self._leaving.append(child)

    def _tidy(self) -> None:
        """Count in the children that are gone, and end those that do not go by themselves."""
        for child in list(self._leaving):
            if time.monotonic() - child.left_at > LEAVE_S:
                child.end(0.0)
            if child.gone.is_set():
                child.end(0.0)
                self._past = _sum(self._past, child.used())
                self._leaving.remove(child)
        if self._child is not None and self._child.gone.is_set() and not self.busy:
            self._let_go()
            self._tidy()


def _sum(a: UsedUp, b: UsedUp) -> UsedUp:
    return UsedUp(cpu_s=a.cpu_s + b.cpu_s, written_bytes=a.written_bytes + b.written_bytes)
