"""One task's training, from the held version to an update in the durable outbox; a trainer's `Train` job.

The rules:
- between steps it asks whether it may go on; if not, the checkpoint is written and the night is over;
- meanwhile a checkpoint is written every fifteen minutes, as long as the job's write budget has room for another one
  and for the one at the stop: a killed trainer loses that much at most;
- update, new residual and the session's next state become durable in one transaction, or none of them does; what is
  tidied up after it cannot undo it;
- if there is no room for them, the finished training is kept as a checkpoint instead, and is queued another time;
- if the person has something forgotten meanwhile, whichever process is told, nothing of the training is queued.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_runtime import checkpoint_timing, client_update, local_training, public_files, residual
from edge_runtime.adapters import checkpoints
from edge_runtime.adapters.checkpoints import Checkpoints
from edge_runtime.adapters.outbox import Outbox, QueuedUpdate
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.adapters.vectors import Vectors, pack_kept, unpack_kept
from edge_runtime.example_noise import secret_of
from edge_runtime.examples import Examples
from edge_runtime.identity import Identity
from edge_runtime.jobs import NoRoom, Queued, Refused, Stopped
from edge_runtime.local_rules import PlanRefused
from edge_runtime.local_training import Checkpoint
from edge_runtime.model_slots import Held
from edge_runtime.packed_base import PackedBase
from edge_runtime.ports import Entropy, Forgotten, ModelRuntime, RuntimeFailed, StorageFailed, StorageFull
from edge_runtime.public_files import BASIS, INDEX_SET, Kind
from edge_runtime.residual import Residual
from wire_contract import codec
from wire_contract.basis import Basis, basis_id, check_fits, decode_basis
from wire_contract.envelope import read_envelope
from wire_contract.errors import ContractError
from wire_contract.index_set import IndexSet, decode_index_set
from wire_contract.layout import Layout
from wire_contract.messages import TaskOffer, UpdateHeader, UpdateInit, decode_message, verdict_returns_the_update
from wire_contract.patch import read_tensors

Outcome = Stopped | Refused | NoRoom | Queued


def _keep_all() -> None:
    """The runtime is shared: it goes on."""


@dataclass(frozen=True)
class TrainingTask:
    """What a training needs. `times_forgotten` is the store's count as of the session that wants the training.

    `let_go` is called when the interpreter has made its last step: what it holds is as large as all the rest.
    """

    home: Path
    store: StateStore
    identity: Identity
    runtime: ModelRuntime
    entropy: Entropy
    chunk_bytes: int
    times_forgotten: int
    let_go: Callable[[], None] = _keep_all

    @property
    def _vectors(self) -> Vectors:
        return Vectors(self.home / "vectors", self.store)

    def run(
        self,
        offer: TaskOffer,
        held: Held,
        examples: Examples,
        *,
        may_go_on: Callable[[], bool],
        now: Callable[[], float],
        elapsed: Callable[[], float],
        save_state: Callable[[str, float], None],
    ) -> Outcome:
        """Train (or go on), make the update, queue it. Raises `Forgotten`.

        `now` is Unix seconds, `elapsed` seconds that never jump. `save_state` is called with the update's id and when
        it was finished, inside the transaction that queues it.
        """
        manifest = held.manifest
        layout = Layout.of(manifest)
        if layout.fingerprint != offer.layout_fingerprint:
            return Refused(reason=f"the offer is for layout {offer.layout_fingerprint[:16]}, the base has another")
        done = 0
        kept = Checkpoints(
            self.home, lease=offer.lease, base_sha256=offer.base_sha256, times_forgotten=self.times_forgotten
        )
        timing = checkpoint_timing.begin(elapsed())
        try:
            examples.check_plan(offer.plan, manifest)
            base = PackedBase(held.data, manifest)
            checkpoint = _resume(kept, base, examples) or examples.begin(base, offer.plan, manifest, offer.seed)
            codec.check_plan(offer.plan.codec)
            index_set, basis = self._index_set(offer, layout), self._basis(offer, layout)
            runner = self.runtime.template(manifest, lambda: held.data)
            secret = secret_of(self.identity.key, offer)
            for after in examples.steps(runner, checkpoint, offer.plan, manifest, offer.seed, secret):
                checkpoint = after
                done += 1
                if checkpoint.steps == examples.total_steps(checkpoint, offer.plan, manifest):
                    break
                self.store.refuse_forgotten(self.times_forgotten)
                goes_on = may_go_on()
                if not goes_on or timing.due(elapsed()):
                    timing = timing.written(elapsed(), self._save(kept, checkpoint))
                if not goes_on:
                    return Stopped(steps=done)
            del runner
            self.let_go()
            carried = residual.carry(
                self._vectors.residual(layout.fingerprint, layout.size), offer.base_version, offer.plan
            )
            encoded = client_update.make(
                local_training.result_of(checkpoint), read_tensors(held.data, manifest), carried, offer, layout,
                index_set, basis,
            )  # fmt: skip
            finished_at = now()
            sealed = client_update.seal_update(
                encoded,
                local_training.result_of(checkpoint),
                offer,
                key=self.identity.key,
                ephemeral_secret=self.entropy(32),
                finished_at=int(finished_at),
                chunk_bytes=self.chunk_bytes,
            )
        except (PlanRefused, ContractError, RuntimeFailed) as e:
            return Refused(reason=str(e), steps=done)
        except (StorageFull, StorageFailed) as e:
            return NoRoom(reason=str(e), steps=done)
        try:
            axes = basis_id(offer.plan.codec.basis)
            residual_file = self._vectors.write(Residual(offer.base_version, encoded.residual, axes))
            update = QueuedUpdate(
                sealed.update_id, offer.shard, sealed.init, sealed.chunks, offer.plan.clip_norm, layout.fingerprint,
                layout.size, axes, pack_kept(encoded.sent), finished_at,
            )  # fmt: skip
            with self.store.transaction() as connection:
                self.store.refuse_forgotten(self.times_forgotten)
                Outbox(self.store).put(connection, update)
                self._vectors.name_residual(connection, residual_file, layout.fingerprint)
                save_state(sealed.update_id, finished_at)
        except (StorageFull, StorageFailed) as e:
            return NoRoom(reason=f"{e}; {self._keep(kept, checkpoint)}", steps=done)
        self._tidy()
        return Queued(update_id=sealed.update_id, steps=done, update_bytes=len(encoded.data), finished_at=finished_at)

    def _index_set(self, offer: TaskOffer, layout: Layout) -> IndexSet | None:
        """Return the set that a `shared` plan names. Raises `PlanRefused` if it is not here, or another model's."""
        if offer.plan.codec.mode != "shared":
            return None
        index_set = decode_index_set(self._read(INDEX_SET, offer.plan.codec.index_set))
        if index_set.size != layout.size:
            raise PlanRefused(f"the index set is of a model of {index_set.size} values, this one has {layout.size}")
        return index_set

    def _basis(self, offer: TaskOffer, layout: Layout) -> Basis | None:
        """Return the basis that a plan names. Raises `PlanRefused` if it is not here, `Malformed` if it cannot be."""
        if not offer.plan.codec.basis:
            return None
        basis = decode_basis(self._read(BASIS, offer.plan.codec.basis))
        check_fits(basis, layout)
        return basis

    def _read(self, kind: Kind, name: str) -> bytes:
        data = public_files.read(self.home, kind, name)
        if data is None:
            raise PlanRefused(f"the plan names the {kind.word} {name[:16]!r}, and it is not on the disk")
        return data

    def _save(self, kept: Checkpoints, checkpoint: Checkpoint) -> int:
        size_bytes = kept.save(checkpoint)
        try:
            # Asked after the write: a `forget` that came before it has deleted an older file, or none.
            self.store.refuse_forgotten(self.times_forgotten)
        except Forgotten:
            checkpoints.drop(self.home)
            raise
        return size_bytes

    def _tidy(self) -> None:
        # The transaction has happened: a file that cannot be deleted now must not make it look as if it had not. It
        # goes at the next tidying, or at the first turn of the next process.
        with suppress(StorageFull, StorageFailed):
            checkpoints.drop(self.home)
        with suppress(StorageFull, StorageFailed):
            self._vectors.sweep()

    def _keep(self, kept: Checkpoints, checkpoint: Checkpoint) -> str:
        try:
            self._save(kept, checkpoint)
        except (StorageFull, StorageFailed):
            return "the training will be repeated from its seed"
        return "the training is kept as a checkpoint"

    def settle(self, update_id: str, verdict: str, save_state: Callable[[], None]) -> None:
        """Deal with the kept vector as the verdict says, and empty the outbox, in one transaction.

        Stale: it returns, `residual.take_back`. Anything else: the kept vector is gone. Raises `StorageFull`.
        """
        update = Outbox(self.store).get(update_id)
        returned = self._returned(update) if update is not None and verdict_returns_the_update(verdict) else None
        residual_file = None if returned is None else self._vectors.write(returned)
        with self.store.transaction() as connection:
            if update is not None:
                Outbox(self.store).remove(connection, update_id)
                if residual_file is not None:
                    self._vectors.name_residual(connection, residual_file, update.layout)
            save_state()
        self._tidy()

    def _returned(self, update: QueuedUpdate) -> Residual:
        init = decode_message(read_envelope(update.init).body, UpdateInit)
        return residual.take_back(
            self._vectors.residual(update.layout, update.size),
            unpack_kept(update.kept, update.size),
            decode_message(init.header, UpdateHeader).base_version,
            update.clip_norm,
            update.basis,
        )


def _resume(kept: Checkpoints, base: PackedBase, examples: Examples) -> Checkpoint | None:
    """Return the checkpoint to go on from; none if what it was learning from is not here any more."""
    checkpoint = kept.load(base)
    return checkpoint if checkpoint is not None and examples.holds(checkpoint) else None
