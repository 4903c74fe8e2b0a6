"""Learning without a network: hundreds of rounds in minutes, for what a claim about learning needs.

Everything that decides what is learnt is the product's own code: `local_training` through the interpreter,
`client_update` with its residual, seal and signature, `admission`, the int64 buffer, `training_step` with the server
optimizer and the int8 file. What is left out only moves bytes and time: broker, database, nights. The rules:
- devices come in a random permutation, again and again: each comes as often as any other;
- a device trains from the version's int8 file, like a phone;
- `staleness` are the shares of updates that are 0, 1, 2 or 3 steps behind; the base of such an update is that old
  version, and its weight falls as `staleness.weight` says;
- `float32` leaves out the codec and nothing else: the delta itself is summed, with the same weight and clip norm;
- one seed gives one result, and the same order of devices, rows, dropout and candidates under every codec, so that
  runs of one seed are pairs. The ephemeral keys are drawn from the system, and change nothing that is learnt.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from cloud_aggregator import index_sets
from cloud_aggregator.admission import Arrived, OpenedInit, Rules, Verdict, admit, open_init, update_weight
from cloud_aggregator.buffer import Accumulator, check_room, in_units
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.leases import Lease
from cloud_aggregator.server_optimizer import OptimizerState
from cloud_aggregator.staleness import MAXIMUM
from cloud_aggregator.training_step import take_step
from edge_runtime import client_update, local_training, residual
from edge_runtime.local_training import TrainingResult
from edge_runtime.ports import SignatureRunner
from edge_runtime.residual import Residual
from wire_contract import envelope
from wire_contract.basis import Basis, basis_id
from wire_contract.codec import EncodedUpdate, SparseVector, cap_norm
from wire_contract.index_set import IndexSet, decode_index_set, encode_index_set
from wire_contract.layout import Layout, Tensors, Vector
from wire_contract.manifest import Manifest
from wire_contract.messages import Chunk, RetryWindow, TaskOffer, decode_message
from wire_contract.patch import read_tensors
from wire_contract.topics import UpdateTopic

POPULATION: Final = "learning"
TASK: Final = "0" * 16
LEASE_S: Final = 86_400
CHUNK_BYTES: Final = 32_768
SYNCHRONOUS: Final = (1.0,)
UNIFORM_STALENESS: Final = (0.25, 0.25, 0.25, 0.25)

Stream = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """One run. `population` holds plan, goal count, optimizer and hysteresis, as an operator sets them.

    `rounds` steps of `population.goal_count` updates each; `staleness` as in the module's rules. What updates leave
    behind is carried as the plan's `residual_keep` says.
    """

    population: PopulationSettings
    rounds: int
    seed: int
    float32: bool = False
    staleness: tuple[float, ...] = SYNCHRONOUS


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a run begins: a template's manifest, a file of it, and the optimizer's state."""

    manifest: Manifest
    file: bytes
    optimizer: OptimizerState


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What one step made. `update_bytes` are the sealed updates with their signed inits, as they are published."""

    number: int
    file: bytes
    optimizer: OptimizerState
    update_bytes: tuple[int, ...]
    refused: tuple[str, ...]


@dataclass(slots=True)
class _Base:
    """A version that devices train from: packed once, for all that come."""

    number: int
    tensors: Tensors
    packed: Tensors

    @classmethod
    def of(cls, number: int, file: bytes, manifest: Manifest, layout: Layout) -> "_Base":
        tensors = read_tensors(file, manifest)
        return cls(number, tensors, layout.pack(tensors))


@dataclass(slots=True)
class _Device:
    name: str
    key: Ed25519PrivateKey
    stream: Stream
    residual: Residual | None = None


@dataclass(slots=True)
class Fleet:
    """Devices, each with its text as an id stream, and one aggregator. Use `rounds` once; results come one by one."""

    streams: Sequence[Stream]
    start: Start
    settings: LearningSettings
    runner: SignatureRunner
    index_set: IndexSet | None = None
    basis: Basis | None = None
    _devices: list[_Device] = field(default_factory=list)

    def rounds(self) -> Iterator[Round]:
        """Yield each step's result. Raises what training raises: `PlanRefused` for a text that is too short."""
        rng = np.random.Generator(np.random.PCG64(self.settings.seed))
        layout, population = Layout.of(self.start.manifest), self.settings.population
        self._devices = [_Device(_name(i), _key(i), stream) for i, stream in enumerate(self.streams)]
        sealing = X25519PrivateKey.generate()
        rules = Rules(
            population=POPULATION,
            task=TASK,
            layout_fingerprint=layout.fingerprint,
            size=layout.size,
            plan=population.plan,
            lease_grace_s=0,
            maximum_age_s=LEASE_S,
            index_set=self._find_set,
        )
        file, optimizer = self.start.file, self.start.optimizer
        bases = deque([_Base.of(1, file, self.start.manifest, layout)], maxlen=MAXIMUM + 1)
        turns = _turns(len(self._devices), rng)
        for number in range(1, self.settings.rounds + 1):
            buffer = Accumulator.empty(layout.size)
            sizes, refused = [], []
            for _ in range(population.goal_count):
                device = self._devices[next(turns)]
                drawn = int(rng.choice(len(self.settings.staleness), p=self.settings.staleness))
                behind = min(drawn, len(bases) - 1)
                seed = int(rng.integers(1 << 62))
                base = bases[-1 - behind]
                size, verdict = self._one(device, base, behind, seed, rules, sealing, layout, buffer)
                sizes.append(size)
                if verdict != "accepted":
                    refused.append(verdict)
            sent_in = None if self.settings.float32 else self.basis
            step = take_step(
                file,
                optimizer,
                buffer,
                manifest=self.start.manifest,
                layout=layout,
                settings=population,
                basis=sent_in,
            )
            file, optimizer = step.file, step.optimizer
            bases.append(_Base.of(number + 1, file, self.start.manifest, layout))
            yield Round(number, file, optimizer, tuple(sizes), tuple(refused))

    def _find_set(self, wanted: bytes) -> IndexSet | None:
        return self.index_set if self.index_set is not None and self.index_set.id == wanted else None

    def _one(
        self,
        device: _Device,
        base: _Base,
        behind: int,
        seed: int,
        rules: Rules,
        sealing: X25519PrivateKey,
        layout: Layout,
        buffer: Accumulator,
    ) -> tuple[int, str]:
        plan = rules.plan
        result = _train(self.runner, device.stream, base.packed, self.start.manifest, rules, seed)
        if self.settings.float32:
            delta = cap_norm(
                layout.flatten(layout.unpack(result.packed)) - layout.flatten(base.tensors), plan.clip_norm
            )
            # What `fold` does at every place at once, without writing down that the places are all of them.
            check_room(buffer.count)
            buffer.sums += in_units(delta.astype(np.float64), update_weight(plan, result.examples, behind))
            buffer.count += 1
            return 4 * layout.size, "accepted"
        offer = _offer(device, base.number, seed, rules, sealing)
        carried = residual.carry(device.residual, base.number, plan)
        encoded = client_update.make(result, base.tensors, carried, offer, layout, self.index_set, self.basis)
        size, verdict, vector = _send(device, encoded, result, offer, rules, sealing, behind)
        if vector is not None:
            buffer.fold(vector, verdict.weight)
            axes = basis_id(plan.codec.basis)
            device.residual = Residual(base.number, encoded.residual, axes) if plan.residual_keep else None
        return size, verdict.name


def _train(
    runner: SignatureRunner, stream: Stream, packed: Tensors, manifest: Manifest, rules: Rules, seed: int
) -> TrainingResult:
    begun = local_training.begin(stream.tolist(), packed, rules.plan, manifest, seed)
    (finished,) = deque(local_training.steps(runner, begun, rules.plan, manifest, seed), maxlen=1)
    return local_training.result_of(finished)


def _offer(device: _Device, version: int, seed: int, rules: Rules, sealing: X25519PrivateKey) -> TaskOffer:
    lease = hashlib.sha256(f"{device.name}|{version}|{seed}".encode()).hexdigest()[:32]
    return TaskOffer(
        device=device.name,
        population=POPULATION,
        task=TASK,
        lease=lease,
        nonce="0" * 32,
        base_version=version,
        base_sha256="0" * 64,
        layout_fingerprint=rules.layout_fingerprint,
        plan=rules.plan,
        seed=seed,
        sealing_key=envelope.public_bytes(sealing),
        shard=0,
        issued_at=0,
        deadline=LEASE_S,
        retry=RetryWindow(earliest=0, latest=0),
    )


def _send(
    device: _Device,
    encoded: EncodedUpdate,
    result: TrainingResult,
    offer: TaskOffer,
    rules: Rules,
    sealing: X25519PrivateKey,
    behind: int,
) -> tuple[int, Verdict, SparseVector | None]:
    """Seal, sign, open and judge one update; return its published bytes, the verdict and the vector to fold."""
    sealed = client_update.seal_update(
        encoded, result, offer, key=device.key, ephemeral_secret=os.urandom(32), finished_at=0, chunk_bytes=CHUNK_BYTES
    )
    size = len(sealed.init) + sum(map(len, sealed.chunks))
    topic = UpdateTopic(0, device.name, sealed.update_id, None)
    opened = open_init(sealed.init, topic, device.key.public_key().public_bytes_raw())
    if not isinstance(opened, OpenedInit):
        return size, opened, None
    body = b"".join(decode_message(chunk, Chunk).data for chunk in sealed.chunks)
    lease = Lease(offer.lease, TASK, device.name, offer.base_version, offer.base_sha256, offer.seed, 0, LEASE_S)
    arrived = Arrived(opened.init.header, opened.header, body, lease, behind)
    verdict, vector = admit(arrived, rules, sealing, now=0)
    return size, verdict, vector


def _turns(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (int(i) for i in rng.permutation(count))


def _name(number: int) -> str:
    return hashlib.sha256(f"device {number}".encode()).hexdigest()[:32]


def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"key {number}".encode()).digest())


def public_index_set(history: Sequence[Vector], *, share: float, explore_share: float, seed: int) -> IndexSet:
    """Return the set that a `shared` plan names after these published versions, as an aggregator makes it."""
    size = len(history[-1])
    count = max(1, round(share * size))
    chosen = index_sets.choose(history, size=size, count=count, explore_share=explore_share, seed=seed)
    return decode_index_set(encode_index_set(size, chosen))


def with_index_set(settings: PopulationSettings, index_set: IndexSet) -> PopulationSettings:
    """Return the settings with a plan that names `index_set`."""
    codec_plan = msgspec.structs.replace(settings.plan.codec, index_set=index_set.sha256)
    return msgspec.structs.replace(settings, plan=msgspec.structs.replace(settings.plan, codec=codec_plan))


def run(fleet: Fleet, observe: Callable[[Round], None]) -> Round:
    """Run all rounds, calling `observe` after each, and return the last one."""
    last = None
    for last in fleet.rounds():
        observe(last)
    if last is None:
        raise ValueError(f"a run has at least one round, got {fleet.settings.rounds}")
    return last
