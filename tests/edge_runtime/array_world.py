"""One device whose model learns from arrays, as `fakes.World` is one whose model learns from text."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime import session
from edge_runtime.adapters.files import write_atomically
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.array_examples import encode_records
from edge_runtime.session_row import SessionRow
from tests.edge_runtime import array_model
from tests.edge_runtime.fakes import World
from wire_contract import envelope
from wire_contract.manifest import encode_manifest
from wire_contract.messages import CheckIn, CodecPlan, Plan, RetryWindow

PLAN = Plan(signature="train", rows=40, epochs=2, learning_rate=0.3, dropout=0.0, codec=CodecPlan(kept=0.5))
_KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)


class ArrayWorld(World):
    """The version lies in the slots as if it had been installed; the runtime is `array_model`'s."""

    def __init__(self, folder, plan=PLAN, loss="sparse_categorical_crossentropy"):
        super().__init__(folder)
        self.manifest, self.file = array_model.make(loss)
        signed = envelope.sign(_KEY, "manifest", encode_manifest(self.manifest))
        digest = self.manifest.sha256
        write_atomically(folder / f"models/{digest}.tflite", self.file)
        write_atomically(folder / f"manifests/{digest}.bin", signed)
        for track in ("training", "refresh"):
            slot = f'{{"current": "{digest}", "previous": "", "version": 1, "sha256": "{digest}"}}'
            write_atomically(folder / f"slots/{track}.json", slot.encode())
        self.aggregator.manifest, self.aggregator.plan = self.manifest, plan
        self.kill()

    def trainer(self):
        """See `World.trainer`."""
        runtime = array_model.ArrayRuntime()
        return InProcessTrainer(self.home, runtime, self.entropy, self.clock, self.settings.held_out_share)

    def add(self, count, seed=1):
        """Put drawn examples into the store."""
        records = encode_records(array_model.draw(count, seed), array_model.SPECS)
        return self.agent.examples.add_arrays(records, self.clock.now())

    def request(self):
        """Return what the device asks for work with."""
        return CheckIn(
            device=self.agent.identity.device, population="keyboard", nonce="a" * 32, sent_at=0, held_version=1,
            capabilities=(), examples=1,
        )  # fmt: skip

    def lease(self):
        """Return an offer of the version that is here, with the session training for it."""
        now = int(self.clock.time)
        offer = self.aggregator.offer(self.request(), RetryWindow(earliest=now + 60, latest=now + 60))
        store = StateStore(self.home / "state.db")
        row = SessionRow(store)
        row.load()
        row.put(session.State(phase=session.Phase.TRAINING, offer=offer))
        store.close()
        return offer
