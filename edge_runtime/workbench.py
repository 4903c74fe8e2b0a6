"""The agent's use of its trainer: one long job at a time, and short ones that are waited for.

The rules:
- a long job's seconds, CPU and starts go to the night's budget;
- what a short job says becomes what the caller's port would raise, so that it need not know where the work was done;
- a verdict that returns nothing to the residual needs no trainer: the outbox is emptied here.
"""

from collections.abc import Callable
from pathlib import Path

from edge_runtime import session
from edge_runtime.adapters import checkpoints, vector_files
from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.outbox import Outbox
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Usage
from edge_runtime.jobs import (
    Checked,
    CheckHealth,
    CheckVersion,
    Died,
    HealthChecked,
    JobResult,
    LongJob,
    NoRoom,
    RebuildVersion,
    Rebuilt,
    SettleUpdate,
    Train,
    WasForgotten,
)
from edge_runtime.model_health import Health
from edge_runtime.model_slots import VersionRefused
from edge_runtime.night_budget import NightBudget
from edge_runtime.ports import Clock, Forgotten, RuntimeFailed, StorageFailed, StorageFull, Trainer
from edge_runtime.session_row import SessionRow
from edge_runtime.version_delta import DeltaRefused
from wire_contract.manifest import Manifest
from wire_contract.messages import verdict_returns_the_update


class Workbench:
    """One agent's work."""

    def __init__(
        self,
        home: Path,
        trainer: Trainer,
        store: StateStore,
        row: SessionRow,
        ledger: LedgerRows,
        budget: NightBudget,
        clock: Clock,
    ) -> None:
        self._home = home
        self._trainer = trainer
        self._store = store
        self._row = row
        self._ledger = ledger
        self._budget = budget
        self._clock = clock
        self._job: LongJob | None = None
        self._result: JobResult | None = None

    @property
    def runtime(self) -> str:
        """Which interpreter, for reports."""
        return self._trainer.runtime

    @property
    def job(self) -> LongJob | None:
        """The long job that runs."""
        return self._job

    def begin(self, job: LongJob, may_go_on: Callable[[], bool]) -> None:
        """Begin a long job; with one running already, nothing."""
        if self._job is not None:
            return
        now = self._clock.now()
        self._budget.begin_training(now)
        if isinstance(job, Train):
            self._budget.add(now, Usage(starts=1))
        self._job = job
        try:
            self._trainer.begin(job, may_go_on)
        except BaseException:
            self._job = None
            self._budget.end_training(self._clock.now())
            raise

    @property
    def over(self) -> bool:
        """Whether the long job has its result."""
        if self._job is not None and self._result is None:
            self._result = self._trainer.poll()
        return self._result is not None

    def collect(self) -> tuple[LongJob, JobResult] | None:
        """Return the long job that is over, and its result."""
        if not self.over or self._job is None or self._result is None:
            return None
        job, result = self._job, self._result
        self._job = self._result = None
        self._budget.end_training(self._clock.now())
        self._take_used()
        return job, result

    def _take_used(self) -> None:
        used = self._trainer.take_used()
        self._budget.add(self._clock.now(), Usage(cpu_s=used.cpu_s, written_bytes=used.written_bytes))

    def stop(self) -> None:
        """End the long job, if one runs; its result comes with `collect`."""
        if self._job is not None:
            self._trainer.stop()

    def check(self, data: bytes, manifest: Manifest) -> None:
        """Run a version's golden checks. Raises `VersionRefused`, or `RuntimeFailed` if the trainer died."""
        result = self._trainer.do(CheckVersion(data=data, manifest=manifest))
        self._take_used()
        if not isinstance(result, Checked):
            raise RuntimeFailed(f"version {manifest.version} could not be checked: {_reason(result)}")
        if result.refused:
            raise VersionRefused(result.refused, result.message)

    def rebuild(self, base: bytes, base_sha256: str, delta: bytes, manifest: Manifest) -> bytes | DeltaRefused:
        """Make a version of a base and a delta; a trainer that died counts as a delta of no use."""
        result = self._trainer.do(RebuildVersion(base=base, base_sha256=base_sha256, delta=delta, manifest=manifest))
        self._take_used()
        if not isinstance(result, Rebuilt):
            return DeltaRefused("delta_not_applied", _reason(result))
        return DeltaRefused(result.refused, result.message) if result.refused else result.data

    def try_out(self, sha256: str, before: str) -> Health:
        """Start a version that is here, and judge its health against `before`'s, if that is not "".

        Raises `RuntimeFailed` if the trainer died, `StorageFailed` if it could not read the home.
        """
        result = self._trainer.do(CheckHealth(sha256=sha256, before=before))
        self._take_used()
        if isinstance(result, HealthChecked):
            return Health(result.reason, result.said)
        if isinstance(result, NoRoom):
            raise StorageFailed(result.reason)
        raise RuntimeFailed(f"version {sha256[:16]} did not come up: {_reason(result)}")

    def settle(self, update_id: str, verdict: str, after: session.State) -> None:
        """Deal with the kept vector as the verdict says and set the session to `after`, in one transaction.

        Raises `StorageFull`, `StorageFailed`, `Forgotten`.
        """
        if verdict_returns_the_update(verdict):
            job = SettleUpdate(
                update_id=update_id, verdict=verdict, state=after, times_forgotten=self._row.times_forgotten
            )
            result = self._trainer.do(job)
            self._take_used()
            _raise_failed(result)
            return
        now = self._clock.now()
        with self._store.transaction() as connection:
            Outbox(self._store).remove(connection, update_id)
            self._ledger.settle(connection, update_id, verdict, now)
            self._row.put(after)
        checkpoints.drop(self._home)
        vector_files.sweep(self._home / "vectors", self._store)

    def close(self) -> None:
        """End the trainer; a job that ran is stopped as its rules say."""
        self._job = self._result = None
        self._trainer.close()


def _reason(result: JobResult) -> str:
    return str(getattr(result, "reason", type(result).__name__))


def _raise_failed(result: JobResult) -> None:
    match result:
        case WasForgotten():
            raise Forgotten("the home was told to forget")
        case NoRoom(reason=reason):
            raise StorageFull(reason)
        case Died(reason=reason):
            raise StorageFailed(f"the trainer ended before it was done: {reason}")
