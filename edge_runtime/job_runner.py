"""Performs a trainer's jobs over a device's home; the same code in a process of its own and in a simulation.

The rules:
- files are opened by the runner itself, at the first job, and never shared with the agent: what both write, they write
  in transactions of state.db, guarded by its count of forgettings;
- the update, its residual, the session's next state and the ledger's row become durable together (`training_task`);
- versions are only read here: fetching and switching them is the agent's.
numpy and the interpreter are loaded when a job needs them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import identity, session
from edge_runtime.adapters import checkpoints
from edge_runtime.adapters.example_store import SqliteExampleStore
from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.outbox import Outbox
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.home_examples import HomeExamples
from edge_runtime.identity import Identity
from edge_runtime.jobs import (
    Checked,
    CheckHealth,
    CheckVersion,
    Evaluate,
    HealthChecked,
    Job,
    JobResult,
    NoRoom,
    Personalize,
    RebuildVersion,
    Rebuilt,
    Refused,
    Settled,
    SettleUpdate,
    Train,
    WasForgotten,
)
from edge_runtime.ledger import OwnTerms
from edge_runtime.model_slots import Held, ModelSlots
from edge_runtime.ports import Clock, Download, Entropy, Forgotten, ModelRuntime, NotThere, StorageFailed, StorageFull
from edge_runtime.privacy_filter import id_stream
from edge_runtime.session_row import SessionRow
from edge_runtime.trust import Keys
from wire_contract.envelope import read_envelope
from wire_contract.manifest import ARRAY_FAMILY, Manifest
from wire_contract.messages import Enrolled, TaskOffer, UpdateHeader, UpdateInit, decode_message

if TYPE_CHECKING:
    from edge_runtime.examples import Examples

MayGoOn = Callable[[], bool]
MOST_STALENESS = 3
"""An update whose base lies further behind is refused as stale by an aggregator's default: it is not worth a night."""


class _NoDownloads:
    """The trainer fetches nothing."""

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        raise NotThere(f"the trainer fetches nothing, asked for {url}")


def _no_check(data: bytes, manifest: Manifest) -> None:
    raise StorageFailed("the trainer installs no version")


class JobRunner:
    """One home's runner. `run` does one job; `close` lets go of the files, and the next job opens them again.

    `held_out_share` is the settings': the agent and its trainer must hold out the same sentences. `let_go` closes the
    runtime's models when a training has made its last step; a runtime that is shared keeps them.
    """

    def __init__(
        self, home: Path, runtime: ModelRuntime, entropy: Entropy, clock: Clock, held_out_share: float = 0.0,
        let_go: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.home = home
        self._let_go = let_go
        self._held_out_share = held_out_share
        self._runtime = runtime
        self._entropy = entropy
        self._clock = clock
        self._store: StateStore | None = None
        self._person: HomeExamples | None = None
        self._who: tuple[Identity, Enrolled] | None = None

    def run(self, job: Job, may_go_on: MayGoOn) -> JobResult:
        """Do a job and return its result; between two steps of a long one `may_go_on` is asked.

        What the ports raise is a result here. Other exceptions are faults of the program and leave it.
        """
        try:
            match job:
                case Train():
                    return self._train(job, may_go_on)
                case Evaluate():
                    return self._evaluate(job, may_go_on)
                case Personalize():
                    return self._personalize(job, may_go_on)
                case CheckVersion():
                    return self._check(job)
                case RebuildVersion():
                    return self._rebuild(job)
                case CheckHealth():
                    return self._check_health(job)
                case SettleUpdate():
                    return self._settle(job)
        except Forgotten:
            return WasForgotten()
        except (StorageFull, StorageFailed) as e:
            return NoRoom(reason=str(e))

    def close(self) -> None:
        """Let go of the files."""
        if self._store is not None:
            self._store.close()
        if self._person is not None:
            self._person.close()
        self._store = self._person = self._who = None

    @property
    def store(self) -> StateStore:
        """The home's state.db."""
        if self._store is None:
            self._store = StateStore(self.home / "state.db")
        return self._store

    @property
    def who(self) -> tuple[Identity, Enrolled]:
        """Who the device is."""
        if self._who is None:
            self._who = identity.load(self.home), identity.load_enrolled(self.home)
        return self._who

    @property
    def examples(self) -> SqliteExampleStore:
        """The home's examples; nothing is added here, so no vocabulary is needed."""
        if self._person is None:
            self._person = HomeExamples(self.home, self.who[0], self._entropy, self._held_out_share)
        return self._person.store

    @property
    def slots(self) -> ModelSlots:
        """The versions, as the disk has them now."""
        enrolled = self.who[1]
        keys = Keys(enrolled.manifest_key, enrolled.aggregator_key)
        return ModelSlots(self.home, keys, enrolled.population, enrolled.model_url, _NoDownloads(), _no_check)

    def examples_of(self, held: Held) -> "Examples":
        """Return what the version can train on: text as ids of its vocabulary, or arrays. Raises `StorageFailed`."""
        from edge_runtime.array_examples import of_records
        from edge_runtime.examples import OfArrays, OfText

        if held.manifest.family == ARRAY_FAMILY:
            return OfArrays(of_records(self.examples.arrays(), held.manifest.examples))
        vocabulary = self.slots.vocabulary(held.manifest.vocabulary_sha256)
        if vocabulary is None:
            raise StorageFailed(f"the vocabulary of version {held.manifest.version} is not on the disk")
        return OfText(id_stream(self.examples.sentences(), vocabulary))

    def _train(self, job: Train, may_go_on: MayGoOn) -> JobResult:
        from edge_runtime import training_task

        offer, store = job.offer, self.store
        row = SessionRow(store)
        state = row.load()
        row.times_forgotten = job.times_forgotten
        row.refuse_forgotten()
        if state.phase is not session.Phase.TRAINING or state.offer is None or state.offer.lease != offer.lease:
            return Refused(reason=f"the session is {state.phase.value}, and trains for no lease {offer.lease[:16]}")
        slots = self.slots
        held = slots.base_of(offer)
        refusal = self._refusal(offer, held, slots)
        if held is None or refusal:
            checkpoints.drop(self.home)
            return Refused(reason=refusal)

        def save_state(update_id: str, finished_at: float) -> None:
            after, _ = session.step(state, session.UpdateQueued(finished_at, update_id))
            row.put(after)
            self._note_sent(offer.lease, update_id, finished_at)

        task = training_task.TrainingTask(
            self.home, store, self.who[0], self._runtime, self._entropy, job.chunk_bytes, job.times_forgotten,
            self._let_go,
        )  # fmt: skip
        result = task.run(
            offer, held, self.examples_of(held), may_go_on=may_go_on, now=self._clock.now, elapsed=self._clock.elapsed,
            save_state=save_state,
        )  # fmt: skip
        if isinstance(result, Refused):
            checkpoints.drop(self.home)
        return result

    def _refusal(self, offer: TaskOffer, held: Held | None, slots: ModelSlots) -> str:
        """Return why a lease is not worth a step any more, or ""."""
        if self._clock.now() >= offer.deadline:
            return f"the lease ended at {offer.deadline}"
        if held is None:
            return f"the base version {offer.base_version} is not on the disk any more"
        newest = slots.slot("training").version
        if newest - offer.base_version > MOST_STALENESS:
            return f"the base version {offer.base_version} lies more than {MOST_STALENESS} behind version {newest}"
        return ""

    def _settle(self, job: SettleUpdate) -> JobResult:
        from edge_runtime import training_task

        row = SessionRow(self.store)
        row.times_forgotten = job.times_forgotten
        task = training_task.TrainingTask(
            self.home, self.store, self.who[0], self._runtime, self._entropy, 0, job.times_forgotten
        )
        now = self._clock.now()

        def save_state() -> None:
            self._ledger.settle(self.store.connection, job.update_id, job.verdict, now)
            row.put(job.state)

        task.settle(job.update_id, job.verdict, save_state)
        return Settled()

    @property
    def _ledger(self) -> LedgerRows:
        # The owner's terms are asked before a participation begins, which is the agent's to do.
        return LedgerRows(self.store, OwnTerms())

    def _note_sent(self, lease: str, update_id: str, at: float) -> None:
        update = Outbox(self.store).get(update_id)
        if update is not None:
            init = decode_message(read_envelope(update.init).body, UpdateInit)
            header = decode_message(init.header, UpdateHeader)
            self._ledger.sent(
                self.store.connection, lease, update_id=update_id, size_bytes=init.size_bytes,
                examples=header.examples, steps=header.steps, at=at,
            )  # fmt: skip

    def _evaluate(self, job: Evaluate, may_go_on: MayGoOn) -> JobResult:
        from edge_runtime import evaluation_task

        self.store.refuse_forgotten(job.times_forgotten)
        slots = self.slots
        held = slots.held(job.offer.version_sha256)
        gone = Refused(reason=f"version {job.offer.version} is not on the disk any more")
        if held is None:
            return gone
        if held.manifest.family == ARRAY_FAMILY:
            from edge_runtime.array_examples import of_records

            arrays = of_records(self.examples.held_out_arrays(), held.manifest.examples)
            return evaluation_task.run_arrays(job.offer, held, arrays, self._runtime, may_go_on)
        vocabulary = slots.vocabulary(held.manifest.vocabulary_sha256)
        if vocabulary is None:
            return gone
        sentences = self.examples.held_out_sentences()
        return evaluation_task.run(job.offer, held, sentences, vocabulary, self._runtime, may_go_on)

    def _personalize(self, job: Personalize, may_go_on: MayGoOn) -> JobResult:
        from edge_runtime import personal_task
        from edge_runtime.adapters import personal_records

        release = personal_task.newest(self.slots)
        if release is not None and release.manifest.family == ARRAY_FAMILY:
            told = f"version {release.manifest.version} is a model of arrays: personal copies are of models of text"
            made = personal_records.MadeRecord(
                release=release.manifest.sha256, last_record=self.examples.last_record(), accepted=False, reason=told
            )
            # Remembered, so that it is not asked again before the next release.
            personal_records.write(self.home, self.store, job.times_forgotten, made)
            return Refused(reason=told)
        return personal_task.run(
            self.home, self.slots, self._runtime, self.examples, self.store,
            times_forgotten=job.times_forgotten, seed=job.seed, may_go_on=may_go_on,
        )  # fmt: skip

    def _check(self, job: CheckVersion) -> JobResult:
        from edge_runtime.model_check import CheckFailed, check

        try:
            check(job.data, job.manifest, self._runtime)
        except CheckFailed as e:
            return Checked(refused=e.reason, message=str(e))
        return Checked()

    def _rebuild(self, job: RebuildVersion) -> JobResult:
        from edge_runtime.version_delta import DeltaRefused, rebuild

        made = rebuild(job.base, job.base_sha256, job.delta, job.manifest)
        if isinstance(made, DeltaRefused):
            return Rebuilt(refused=made.reason, message=made.message)
        return Rebuilt(data=made)

    def _check_health(self, job: CheckHealth) -> JobResult:
        from edge_runtime import model_health_task
        from edge_runtime.held_out import HomeHeldOut

        slots = self.slots
        held = slots.held(job.sha256)
        if held is None:
            return NoRoom(reason=f"version {job.sha256[:16]} is not on the disk any more")
        before = slots.held(job.before) if job.before else None
        held_out = HomeHeldOut(slots, self.examples)
        health = model_health_task.run(held, before, self._runtime, self._clock.elapsed, held_out)
        return HealthChecked(reason=health.reason, said=health.said)
