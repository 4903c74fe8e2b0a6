"""The Trainer port within the agent's own process: for simulations with many devices, and for the keyboard.

A long job is done when `begin` returns; whether it may go on is asked of the agent between its steps. The runtime can
be shared by many agents of one process, so that a template is compiled once for all of them.
"""

import time
from collections.abc import Callable
from pathlib import Path

from edge_runtime.job_runner import JobRunner
from edge_runtime.jobs import Died, JobResult, LongJob, ShortJob, UsedUp
from edge_runtime.ports import Clock, Entropy, ModelRuntime


class InProcessTrainer:
    """Implements the Trainer port over `home`."""

    def __init__(
        self, home: Path, runtime: ModelRuntime, entropy: Entropy, clock: Clock, held_out_share: float = 0.0
    ) -> None:
        self._runner = JobRunner(home, runtime, entropy, clock, held_out_share)
        self._runtime = runtime
        self._result: JobResult | None = None
        self._cpu_s = 0.0

    @property
    def runtime(self) -> str:
        """See `ports.Trainer`."""
        return self._runtime.name

    @property
    def busy(self) -> bool:
        """See `ports.Trainer`."""
        return self._result is not None

    def begin(self, job: LongJob, may_go_on: Callable[[], bool]) -> None:
        """See `ports.Trainer`."""
        began = time.thread_time()
        try:
            self._result = self._runner.run(job, may_go_on)
        finally:
            self._cpu_s += time.thread_time() - began

    def poll(self) -> JobResult | None:
        """See `ports.Trainer`."""
        result, self._result = self._result, None
        return result

    def stop(self) -> None:
        """A job is over when `begin` returns: there is none to stop."""

    def do(self, job: ShortJob) -> JobResult:
        """See `ports.Trainer`."""
        if self._result is not None:
            return Died(reason="a long job's result was not fetched yet")
        return self._runner.run(job, lambda: True)

    def take_used(self) -> UsedUp:
        """See `ports.Trainer`."""
        used, self._cpu_s = UsedUp(cpu_s=self._cpu_s), 0.0
        return used

    def close(self) -> None:
        """See `ports.Trainer`."""
        self._runner.close()
