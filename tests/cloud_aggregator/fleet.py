"""A small model family, a data directory and devices for the aggregator's tests: no network, no TensorFlow.

`Phone` speaks the wire contract by itself and shares no code with the device runtime.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.key_files import make_keys
from cloud_aggregator.bundle import Bundle, check_bundle
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.housekeeping import Retention
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.population import found
from cloud_aggregator.ports import Message
from cloud_aggregator.server_optimizer import OptimizerSettings
from cloud_aggregator.service import Gate, Service
from wire_contract import codec, envelope
from wire_contract.manifest import (
    Golden,
    Manifest,
    SignatureSpec,
    TensorEntry,
    decode_manifest,
    encode_manifest,
    fingerprint,
    template_hash,
)
from wire_contract.messages import (
    CheckIn,
    Chunk,
    CodecPlan,
    DeviceReport,
    Enrolled,
    Enrolment,
    ModelAnnouncement,
    Plan,
    Receipt,
    StatusQuery,
    TaskOffer,
    TurnedAway,
    UpdateHeader,
    UpdateInit,
    decode_message,
    encode_message,
)
from wire_contract.patch import patch
from wire_contract.topics import DeviceTopic, UpdateTopic, build_topic, parse_topic
from wire_contract.vocabulary import Vocabulary

NOW = 1_800_000_000
POPULATION = "toy"
ROWS, COLUMNS = 40, 8
SIZE = ROWS * COLUMNS + ROWS
CLIP_NORM = 1.0
MANIFEST_KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
CAPABILITIES = ("codec:topk4", "entropy:zstd", "rule:sgd", "signature:train_sampled")

_ENTRIES = (
    TensorEntry(name="rows", shape=(ROWS, COLUMNS), kind="int8", offsets=(64,), scale_offsets=(8,)),
    TensorEntry(name="bias", shape=(ROWS,), kind="float32", offsets=(64 + ROWS * COLUMNS,)),
)
_BLANK = bytes((11 * i) % 251 for i in range(64 + SIZE + 3 * ROWS + 100))
VOCABULARY = Vocabulary.from_words(["the", "a", "of"])


def settings(**changes: object) -> PopulationSettings:
    """Settings in which a plain average with a goal count of 4 makes sums easy to follow."""
    base = PopulationSettings(
        goal_count=4,
        minimum_updates=2,
        lease_seconds=3600,
        lease_grace_seconds=600,
        maximum_age_seconds=7 * 86_400,
        report_deadline_seconds=86_400,
        plan=Plan(clip_norm=CLIP_NORM, weight_rule="uniform", codec=CodecPlan(kept=0.25)),
        optimizer=OptimizerSettings(name="fedavg", learning_rate=1.0, warmup_steps=0),
    )
    return msgspec.structs.replace(base, **changes)


def make_bundle(population: str = POPULATION, created_at: int = NOW - 100) -> Bundle:
    """Return a signed bundle of the toy model; another moment makes another export of it."""
    rng = np.random.default_rng(3)
    tensors = {
        "rows": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32),
        "bias": rng.normal(size=ROWS).astype(np.float32),
    }
    draft = Manifest(
        population=population,
        version=1,
        kind="refresh",
        sha256="0" * 64,
        size_bytes=len(_BLANK),
        template_sha256="0" * 64,
        layout_fingerprint=fingerprint(_ENTRIES),
        tensors=_ENTRIES,
        train_inputs=(),
        signatures={"train_sampled": SignatureSpec(batch=2, length=3, candidates=4)},
        vocabulary_sha256=VOCABULARY.sha256(),
        vocabulary_words=len(VOCABULARY),
        golden=Golden(tokens=(4, 5), template_loss=1.5, loss_tolerance=1e-4, logit_tolerance=0.5),
        created_at=created_at,
        expires_at=NOW + 365 * 86_400,
    )
    model = patch(_BLANK, draft, tensors)
    manifest = msgspec.structs.replace(
        draft, sha256=hashlib.sha256(model).hexdigest(), template_sha256=template_hash(model, draft)
    )
    signed = envelope.sign(MANIFEST_KEY, "manifest", encode_manifest(manifest))
    return check_bundle(signed, envelope.public_bytes(MANIFEST_KEY), model, VOCABULARY.to_bytes())


def write_bundle(folder: Path) -> Bundle:
    """Write a bundle as the exporter does."""
    bundle = make_bundle()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.tflite").write_bytes(bundle.model)
    (folder / "vocabulary.txt").write_bytes(bundle.vocabulary)
    (folder / "manifest.bin").write_bytes(bundle.signed_manifest)
    (folder / "manifest_key.pub").write_text(bundle.manifest_key.hex() + "\n")
    return bundle


def entropy(seed: bytes):
    """Return repeatable `Entropy`."""
    count = iter(range(1 << 30))
    return lambda size: hashlib.shake_256(seed + b"%d" % next(count)).digest(size)


@dataclass
class SetClock:
    """A clock that stands where it is set."""

    value: float = NOW

    def now(self) -> float:
        return self.value


@dataclass
class Wire:
    """A fake broker link: keeps what is published; `reachable` False holds acknowledgements back."""

    reachable: bool = True
    sent: list[tuple[str, bytes, bool]] = field(default_factory=list)

    def publish(self, topic, payload, *, retain, done=None):
        if not self.reachable:
            return
        self.sent.append((topic, payload, retain))
        if done is not None:
            done()


@dataclass
class Aggregator:
    """A service over a real database in a folder, with a fake wire and clock; `restart` opens it anew."""

    folder: Path
    gate: Gate = field(default_factory=Gate)
    clock: SetClock = field(default_factory=SetClock)
    wire: Wire = field(default_factory=Wire)
    retention: Retention = field(default_factory=Retention)
    checkpoint_updates: int = 256
    database_url: str = ""

    def __post_init__(self):
        self.keys: ServiceKeys = make_keys(self.folder, entropy(b"service"))
        self._open()

    def _open(self):
        self.database = SqlDatabase(self.database_url) if self.database_url else SqlDatabase.in_folder(self.folder)
        self.blobs = FileBlobs(self.folder / "blobs")
        self.service = Service(
            self.database, self.blobs, self.keys, self.wire, self.clock, entropy=entropy(b"tokens"), gate=self.gate,
            retention=self.retention, checkpoint_updates=self.checkpoint_updates,
        )  # fmt: skip

    def restart(self):
        """Forget everything that is not on disk."""
        self.database.close()
        self.wire = Wire()
        self._open()
        self.service.start()

    def found(self, **changes):
        with self.database.transaction() as records:
            found(records, self.blobs, self.keys, make_bundle(), settings(**changes), int(self.clock.now()))
        return self

    def turn(self, after: float = 0.0):
        self.clock.value += after
        return self.service.turn(self.clock.now())

    def take(self, *messages: Message):
        self.service.take_group(messages)

    def manifest(self, track: str = "training"):
        with self.database.reading() as records:
            record = records.announcement(POPULATION, track)
        return decode_manifest(envelope.verify(record.signed_manifest, "manifest", self.keys.public))

    def update_row(self, update_id: str):
        with self.database.reading() as records:
            return records.update(update_id)

    def events(self):
        with self.database.reading() as records:
            return records.count_events()


class Phone:
    """A device of the tests: real keys, real bytes."""

    def __init__(self, number: int, aggregator: Aggregator):
        self.number = number
        self.aggregator = aggregator
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"phone %d" % number).digest())
        self.public = envelope.public_bytes(self.key)
        self.id = envelope.key_id(self.public)
        self.count = 0

    def nonce(self) -> str:
        self.count += 1
        return hashlib.sha256(b"%d %d" % (self.number, self.count)).hexdigest()[:32]

    def enrolment(self, token: str, population: str = POPULATION) -> Enrolment:
        proof = envelope.sign_detached(self.key, "enrolment-proof", token.encode() + b"\n" + self.public)
        return Enrolment(
            token=token, public_key=self.public, population=population, label=f"phone {self.number}", proof=proof
        )

    def enrol(self) -> Enrolled:
        service, now = self.aggregator.service, self.aggregator.clock.now()
        token = service.mint_token(POPULATION, "", now)
        answer = service.enrol(self.enrolment(token), now)
        return decode_message(envelope.verify(answer, "enrolled", self.aggregator.keys.public), Enrolled)

    def check_in_message(self, **changes: object) -> Message:
        values = {
            "device": self.id,
            "population": POPULATION,
            "nonce": self.nonce(),
            "sent_at": int(self.aggregator.clock.now()),
            "held_version": 0,
            "capabilities": CAPABILITIES,
            "examples": 50,
            **changes,
        }
        check_in = CheckIn(**values)
        self.last_nonce = check_in.nonce
        return self._request(encode_message(check_in))

    def status_message(self, update_id: str) -> Message:
        query = StatusQuery(device=self.id, update_id=update_id, nonce=self.nonce(), sent_at=NOW)
        return self._request(encode_message(query))

    def _request(self, body: bytes) -> Message:
        return Message(build_topic(DeviceTopic(self.id, "req")), envelope.sign(self.key, "request", body))

    def report_message(self, **changes: object) -> Message:
        values = {
            "device": self.id, "nonce": "ab" * 16, "online": True, "training_version": 1, "refresh_version": 1,
            "runtime": "litert", "reason": "", "sent_at": int(self.aggregator.clock.now()), **changes,
        }  # fmt: skip
        body = encode_message(DeviceReport(**values))
        return Message(build_topic(DeviceTopic(self.id, "state")), envelope.sign(self.key, "report", body))

    def answers(self, leaf: str, kind: str, *types: type) -> list:
        """Everything that came down for this device on a topic, verified."""
        topic = build_topic(DeviceTopic(self.id, leaf))
        found_here = [payload for at, payload, _ in self.aggregator.wire.sent if at == topic]
        bodies = [envelope.verify(payload, kind, self.aggregator.keys.public) for payload in found_here]
        wanted = types[0] if len(types) == 1 else types[0] | types[1]
        return [decode_message(body, wanted) for body in bodies]

    def replies(self) -> list:
        return self.answers("down/task", "task", TaskOffer, TurnedAway)

    def receipts(self) -> list[Receipt]:
        return self.answers("down/rcpt", "receipt", Receipt)

    def lease(self, **changes: object) -> TaskOffer:
        """Check in, let the aggregator turn, and return the offer. After an answer, `rest` first."""
        self.aggregator.take(self.check_in_message(**changes))
        self.aggregator.turn()
        reply = self.replies()[-1]
        assert isinstance(reply, TaskOffer), reply
        return reply

    def rest(self) -> None:
        """Let the clock go on to the earliest moment that this device was told."""
        clock = self.aggregator.clock
        clock.value = max(clock.value, self.replies()[-1].retry.earliest)

    def update(self, offer: TaskOffer, **choices: object) -> list[Message]:
        """Return the messages of an update for a lease; see `build_update`."""
        return build_update(self, offer, **choices)


def phones(aggregator: Aggregator, count: int) -> list[Phone]:
    """Return enrolled phones 1 to `count`."""
    made = [Phone(number, aggregator) for number in range(1, count + 1)]
    for phone in made:
        phone.enrol()
    return made


def delta_of(number: int, scale: float = 0.02) -> np.ndarray:
    """A model delta that differs from phone to phone."""
    return (np.random.default_rng(number).normal(size=SIZE) * scale).astype(np.float32)


def build_update(
    phone: Phone,
    offer: TaskOffer,
    *,
    delta: np.ndarray | None = None,
    plain: bytes | None = None,
    sealed: bytes | None = None,
    key: Ed25519PrivateKey | None = None,
    chunk_bytes: int = 1024,
    finished_at: int | None = None,
    **header_changes: object,
) -> list[Message]:
    """Return init and chunks as MQTT messages; every argument replaces one honest part by another."""
    if plain is None:
        vector = delta_of(phone.number) if delta is None else delta
        plain = codec.encode(vector, None, kept=SIZE // 4, clip_norm=CLIP_NORM, entropy="zstd").data
    ephemeral = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"seal %d" % phone.number).digest())
    task, lease = header_changes.get("task", offer.task), header_changes.get("lease", offer.lease)
    update_id = hashlib.sha256(f"{phone.id}|{task}|{lease}".encode()).hexdigest()[:32]
    values = {
        "device": phone.id,
        "population": offer.population,
        "task": offer.task,
        "lease": offer.lease,
        "update_id": update_id,
        "base_version": offer.base_version,
        "layout_fingerprint": offer.layout_fingerprint,
        "codec": "topk4",
        "examples": 50,
        "steps": 4,
        "loss_before": 5.0,
        "loss_after": 4.5,
        "finished_at": int(phone.aggregator.clock.now()) if finished_at is None else finished_at,
        "ephemeral_key": envelope.public_bytes(ephemeral),
        **header_changes,
    }
    header = encode_message(UpdateHeader(**values))
    if sealed is None:
        sealed = envelope.seal(plain, header=header, ephemeral=ephemeral, recipient=offer.sealing_key)
    init = UpdateInit(
        header=header, size_bytes=len(sealed), sha256=hashlib.sha256(sealed).hexdigest(), chunk_bytes=chunk_bytes
    )
    signed = envelope.sign(key or phone.key, "update", encode_message(init))
    messages = [Message(build_topic(UpdateTopic(0, phone.id, update_id, None)), signed)]
    for index in range(init.chunks):
        data = sealed[index * chunk_bytes : (index + 1) * chunk_bytes]
        chunk = encode_message(Chunk(update_id=update_id, index=index, data=data))
        messages.append(Message(build_topic(UpdateTopic(0, phone.id, update_id, index)), chunk))
    return messages


def update_id_of(messages: list[Message]) -> str:
    topic = parse_topic(messages[0].topic)
    assert isinstance(topic, UpdateTopic)
    return topic.update_id


def big_update(phone, offer):
    """An update of three chunks: padding that is honest in size and hash but no codec."""
    return phone.update(offer, sealed=bytes(range(256)) * 10)


def submit(aggregator, phone, messages):
    """Deliver, turn, and return the receipt and the row."""
    aggregator.take(*messages)
    aggregator.turn()
    receipt = phone.receipts()[-1]
    return receipt, aggregator.update_row(update_id_of(messages))


def run_step(aggregator: Aggregator, fleet: list[Phone]) -> dict:
    """Give every phone a lease and take every phone's update in; return the offers. The next turn judges them."""
    aggregator.take(*[phone.check_in_message() for phone in fleet])
    aggregator.turn()
    offers = {phone: phone.replies()[-1] for phone in fleet}
    for phone in fleet:
        aggregator.take(*phone.update(offers[phone]))
    return offers


def announced(wire: Wire, topic_end: str) -> list[ModelAnnouncement]:
    """Retained model announcements on a track, in the order they went out."""
    return [
        decode_message(payload, ModelAnnouncement)
        for topic, payload, retain in wire.sent
        if topic.endswith(topic_end) and retain
    ]


def environment() -> dict[str, str]:
    """A subprocess environment with nothing of ours in it but the path."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])
