"""Ports played by memory: a clock and sensors that obey, a broker with sessions, an aggregator that judges on its own.

The aggregator is an independent reading of the protocol: it opens what the device sealed and keeps it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_runtime import identity
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.interpreter import InterpreterRuntime
from edge_runtime.agent import Agent, Ports
from edge_runtime.config import Settings
from edge_runtime.eligibility import Reading, Readings
from edge_runtime.policy_settings import PolicySettings
from edge_runtime.ports import Download, NotThere, Outgoing, Received, Sensors, TooLarge, Unreachable
from wire_contract import codec, envelope
from wire_contract.manifest import Manifest, decode_manifest, encode_manifest
from wire_contract.messages import (
    CheckIn,
    Chunk,
    Enrolled,
    EvaluationOffer,
    EvaluationReport,
    ModelAnnouncement,
    ModelChunk,
    ModelDenied,
    ModelRequest,
    Plan,
    Receipt,
    Request,
    RetryWindow,
    StatusQuery,
    TaskOffer,
    TurnedAway,
    UpdateHeader,
    UpdateInit,
    decode_message,
    encode_message,
)
from wire_contract.patch import patch, read_tensors
from wire_contract.topics import DeviceTopic, ModelTopic, UpdateTopic, build_topic, parse_topic
from wire_contract.trust_roles import template_path

TINY = Path(__file__).parent / "fixtures" / "tiny"
MIDNIGHT = 1_800_057_600 + 86_400 * 3
GOOD = Readings(
    charging=Reading(True), battery=Reading(90.0), celsius=Reading(40.0), idle_s=Reading(3600.0), metered=Reading(False)
)
RUNTIME = InterpreterRuntime("auto")


class Killed(BaseException):
    """The process dies here."""


class Fuse:
    """Kills the process at its `left`-th next call of any port; None: never. `calls` counts."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.calls = 0

    def burn(self) -> None:
        self.calls += 1
        if self.left is not None:
            if self.left == 0:
                self.left = None
                raise Killed
            self.left -= 1


class FakeClock:
    def __init__(self, now: float = MIDNIGHT, fuse: Fuse | None = None) -> None:
        self.time = now
        self.fuse = fuse or Fuse()

    def now(self) -> float:
        self.fuse.burn()
        return self.time

    def elapsed(self) -> float:
        return self.time

    def trusted(self) -> bool:
        return True

    def prove(self, server_time: float, *, fresh: bool) -> None:
        pass

    def twin(self) -> "_Twin":
        return _Twin(self)


class _Twin:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def now(self) -> float:
        return self.clock.time

    def elapsed(self) -> float:
        return self.clock.time

    def trusted(self) -> bool:
        return True

    def prove(self, server_time: float, *, fresh: bool) -> None:
        pass


class FakeSensors:
    """Returns `readings`; after `good_reads` reads (None: for ever) it returns `afterwards`, as a cable is pulled."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse
        self.readings = GOOD
        self.afterwards = replace(GOOD, charging=Reading(False))
        self.good_reads: int | None = None

    def read(self, now: float) -> Readings:
        self.fuse.burn()
        if self.good_reads is not None:
            if self.good_reads == 0:
                return self.afterwards
            self.good_reads -= 1
        return self.readings


@dataclass
class Session:
    subscriptions: tuple[str, ...] = ()
    queue: list[tuple[int, Outgoing]] = field(default_factory=list)


class FakeBroker:
    """Persistent sessions, retained messages, redelivery of what was not acknowledged, a packet limit, a switch."""

    def __init__(self) -> None:
        self.up = True
        self.max_packet_bytes = 1 << 20
        self.retained: dict[str, Outgoing] = {}
        self.sessions: dict[str, Session] = {}
        self.log: list[Outgoing] = []
        self.numbers = 0

    def publish(self, message: Outgoing) -> None:
        self.log.append(message)
        if message.retain:
            self.retained[message.topic] = message
        for session in self.sessions.values():
            if message.topic in session.subscriptions:
                self.enqueue(session, message)

    def enqueue(self, session: Session, message: Outgoing) -> None:
        self.numbers += 1
        session.queue.append((self.numbers, message))


class FakeTransport:
    def __init__(self, broker: FakeBroker, client: str, fuse: Fuse) -> None:
        self.fuse = fuse
        self.broker = broker
        self.client = client
        self.online = False
        self.delivered: set[int] = set()
        self.outgoing: list[Outgoing] = []
        self.taken: list[str] = []

    @property
    def connected(self) -> bool:
        return self.online

    @property
    def limit_bytes(self) -> int:
        return self.broker.max_packet_bytes

    def acknowledged(self) -> tuple[str, ...]:
        taken, self.taken = tuple(self.taken), []
        return taken

    def connect(self, will: Outgoing, subscriptions: Sequence[str]) -> None:
        self.fuse.burn()
        if not self.broker.up:
            raise Unreachable("the fake broker is down")
        session = self.broker.sessions.setdefault(self.client, Session())
        session.subscriptions = tuple(subscriptions)
        self.delivered = set()
        for topic in subscriptions:
            if topic in self.broker.retained:
                self.broker.enqueue(session, self.broker.retained[topic])
        self.online = True

    def publish(self, message: Outgoing) -> None:
        self.fuse.burn()
        if len(message.payload) > self.broker.max_packet_bytes:
            raise TooLarge(f"{len(message.payload)} bytes")
        self.outgoing.append(message)

    def flush(self, timeout_s: float) -> None:
        self._check()
        while self.outgoing:
            self.fuse.burn()
            message = self.outgoing.pop(0)
            self.broker.publish(message)
            self.taken.append(message.topic)

    def _check(self) -> None:
        if not self.broker.up:
            self.drop()
            raise Unreachable("the fake broker went away")

    def receive(self, timeout_s: float) -> list[Received]:
        self._check()
        fresh = [item for item in self.broker.sessions[self.client].queue if item[0] not in self.delivered]
        self.delivered |= {number for number, _ in fresh}
        return [Received(message.topic, message.payload, number) for number, message in fresh]

    def ack(self, received: Received) -> None:
        self.fuse.burn()
        session = self.broker.sessions[self.client]
        session.queue = [item for item in session.queue if item[0] != received.handle]

    def tend(self) -> None:
        pass

    def disconnect(self) -> None:
        self.drop()

    def drop(self) -> None:
        self.online = False
        self.outgoing.clear()


class FakeDownloads:
    """Serves `files` by path; breaks off after `cut_after` bytes once; `requests` remembers (path, start)."""

    def __init__(self, fuse: Fuse | None = None) -> None:
        self.fuse = fuse or Fuse()
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.resumes = True
        self.up = True
        self.requests: list[tuple[str, int]] = []

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        path = urlsplit(url).path
        self.requests.append((path, start))
        if not self.up:
            raise Unreachable("the fake server is down")
        if path not in self.files:
            raise NotThere(f"{path} is not there")
        begin = start if self.resumes else 0
        return Download(begin, self._chunks(self.files[path][begin:], limit_bytes - begin))

    def _chunks(self, data: bytes, limit_bytes: int) -> Iterator[bytes]:
        for i in range(0, len(data), 50_000):
            self.fuse.burn()
            piece = data[i : i + 50_000]
            if self.cut_after is not None and i + len(piece) > self.cut_after:
                self.cut_after = None
                raise Unreachable("the link broke")
            limit_bytes -= len(piece)
            if limit_bytes < 0:
                raise TooLarge("more than announced")
            yield piece


class Entropy:
    """A seeded byte stream."""

    def __init__(self, seed: int, fuse: Fuse | None = None) -> None:
        self.fuse = fuse or Fuse()
        self.rng = np.random.default_rng(seed)

    def __call__(self, count: int) -> bytes:
        self.fuse.burn()
        return self.rng.bytes(count)


@dataclass
class Update:
    """What the aggregator holds of one update."""

    init: UpdateInit | None = None
    header: UpdateHeader | None = None
    chunks: dict[int, bytes] = field(default_factory=dict)
    plain: bytes | None = None


class ToyAggregator:
    """Answers check-ins with offers and updates with receipts when `work` is called."""

    def __init__(self, broker: FakeBroker, downloads: FakeDownloads, clock: FakeClock) -> None:
        self.broker, self.downloads = broker, downloads
        # The same time, but the aggregator's looks at it kill no device.
        self.clock = clock.twin()
        self.key = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
        self.sealing_key = X25519PrivateKey.from_private_bytes(b"s" * 32)
        self.signed = (TINY / "manifest.bin").read_bytes()
        self.manifest_key = bytes.fromhex((TINY / "manifest_key.pub").read_text())
        self.manifest = decode_manifest(envelope.read_envelope(self.signed).body)
        self.model = (TINY / "model.tflite").read_bytes()
        self.vocabulary = (TINY / "vocabulary.txt").read_bytes()
        self.plan = Plan(signature="train_sampled", rows=48, learning_rate=0.5, clip_norm=10.0)
        self.verdict = "accepted"
        self.turn_away = ""
        self.asks_evaluation = False
        self.evaluations: list[EvaluationReport] = []
        self.lose_chunks = False
        self.mute_receipts = False
        self.lease_s = 6 * 3600
        self.seen = 0
        self.devices: dict[str, bytes] = {}
        self.check_ins: list[CheckIn] = []
        self.queries: list[StatusQuery] = []
        self.model_requests: list[ModelRequest] = []
        # What goes out over the broker, by (wanted, held): bytes, or the code of a denial; unknown ones are "no_delta".
        self.pieces: dict[tuple[str, str], bytes | str] = {}
        self.updates: dict[str, Update] = {}
        self.reports: list[bytes] = []
        downloads.files[template_path(self.manifest.population, self.manifest.template_sha256)] = self.signed
        downloads.files[f"/v1/vocabularies/{self.manifest.vocabulary_sha256}"] = self.vocabulary
        self.announce(self.signed, self.manifest, self.model, ("training", "refresh"))

    def announce(self, signed: bytes, manifest: Manifest, model: bytes, tracks: tuple[str, ...]) -> None:
        self.downloads.files[f"/v1/models/{manifest.sha256}"] = model
        for track in tracks:
            self.downloads.files[f"/v1/populations/keyboard/{track}"] = signed
            payload = encode_message(ModelAnnouncement(signed_manifest=signed))
            self.broker.publish(Outgoing(build_topic(ModelTopic("keyboard", track)), payload, retain=True))

    def next_version(self, kind: str = "training", **changes: object) -> tuple[bytes, Manifest, bytes]:
        """Patch slightly other weights in; return signed manifest, manifest and file. Announced by the caller."""
        tensors = read_tensors(self.model, self.manifest)
        tensors = {name: value * np.float32(1.01) for name, value in tensors.items()}
        model = patch(self.model, self.manifest, tensors)
        manifest = msgspec.structs.replace(
            self.manifest,
            version=self.manifest.version + 1,
            kind=kind,
            sha256=hashlib.sha256(model).hexdigest(),
            created_at=int(self.clock.now()),
            expires_at=int(self.clock.now()) + 86_400 * 30,
        )
        manifest = msgspec.structs.replace(manifest, **changes)
        return envelope.sign(self.key, "manifest", encode_manifest(manifest)), manifest, model

    def move_on(self, tracks: tuple[str, ...] = ("training",), kind: str = "training") -> None:
        """Make and announce a version."""
        signed, self.manifest, self.model = self.next_version(kind)
        self.signed = signed
        self.announce(signed, self.manifest, self.model, tracks)

    def enrolled(self, who: identity.Identity) -> bytes:
        self.devices[who.device] = who.public_key
        answer = Enrolled(
            device=who.device, population="keyboard", aggregator_key=envelope.public_bytes(self.key),
            manifest_key=self.manifest_key, broker_url="mqtt://127.0.0.1:1", model_url="http://toy/",
            shard=0, issued_at=int(self.clock.now()),
        )  # fmt: skip
        return envelope.sign(self.key, "enrolled", encode_message(answer))

    def work(self) -> None:
        """Deal with everything that was published since the last call."""
        while self.seen < len(self.broker.log):
            message = self.broker.log[self.seen]
            self.seen += 1
            match parse_topic(message.topic):
                case DeviceTopic(device, "req"):
                    body = envelope.verify(message.payload, "request", self.devices[device])
                    self.answer(decode_message(body, Request))
                case DeviceTopic(device, "state"):
                    self.reports.append(envelope.verify(message.payload, "report", self.devices[device]))
                case UpdateTopic(_, device, update_id, None):
                    update = self.updates.setdefault(update_id, Update())
                    update.init = decode_message(
                        envelope.verify(message.payload, "update", self.devices[device]), UpdateInit
                    )
                    update.header = decode_message(update.init.header, UpdateHeader)
                    self.judge(device, update_id)
                case UpdateTopic(_, device, update_id, number):
                    if self.lose_chunks:
                        self.lose_chunks = False
                        continue
                    chunk = decode_message(message.payload, Chunk)
                    assert (chunk.update_id, chunk.index) == (update_id, number)
                    self.updates.setdefault(update_id, Update()).chunks[number] = chunk.data
                    self.judge(device, update_id)

    def send_pieces(self, request: ModelRequest) -> None:
        self.model_requests.append(request)
        found = self.pieces.get((request.wanted, request.held), "no_delta")
        if isinstance(found, str):
            now = int(self.clock.now())
            denied = ModelDenied(
                device=request.device, nonce=request.nonce, code=found, issued_at=now,
                retry=RetryWindow(earliest=now + 60, latest=now + 60),
            )  # fmt: skip
            self.reply(request.device, envelope.sign(self.key, "task", encode_message(denied)))
            return
        for index in range(request.first, min(request.first + request.count, -(-len(found) // 49_152))):
            self.send_piece(
                request.device,
                ModelChunk(
                    wanted=request.wanted, held=request.held, size_bytes=len(found), index=index,
                    data=found[49_152 * index : 49_152 * (index + 1)],
                ),
            )  # fmt: skip

    def send_piece(self, device: str, chunk: ModelChunk) -> None:
        self.broker.publish(Outgoing(build_topic(DeviceTopic(device, "down/model")), encode_message(chunk)))

    def answer(self, request: CheckIn | StatusQuery | ModelRequest | EvaluationReport) -> None:
        if isinstance(request, EvaluationReport):
            self.evaluations.append(request)
            if not self.mute_receipts:
                self.send_receipt(request.device, request.report_id, self.verdict)
            return
        if isinstance(request, ModelRequest):
            self.send_pieces(request)
            return
        if isinstance(request, StatusQuery):
            self.queries.append(request)
            update = self.updates.get(request.update_id, Update())
            if update.plain is not None:
                self.send_receipt(request.device, request.update_id, self.verdict)
            else:
                chunks = update.init.chunks if update.init else 0
                missing = tuple(i for i in range(chunks) if i not in update.chunks)
                self.send_receipt(request.device, request.update_id, "incomplete", missing, update.init is None)
            return
        self.check_ins.append(request)
        now = int(self.clock.now())
        window = RetryWindow(earliest=now + 600, latest=now + 1200)
        if self.turn_away:
            reply: TaskOffer | EvaluationOffer | TurnedAway = TurnedAway(
                device=request.device, nonce=request.nonce, reason=self.turn_away, issued_at=now, retry=window
            )
        else:
            reply = self.ask_evaluation(request, window) if self.asks_evaluation else self.offer(request, window)
        self.reply(request.device, envelope.sign(self.key, "task", encode_message(reply)))

    def offer(self, request: CheckIn, window: RetryWindow) -> TaskOffer:
        now = int(self.clock.now())
        return TaskOffer(
            device=request.device, population="keyboard", task="0" * 16,
            lease=hashlib.sha256(request.nonce.encode()).hexdigest()[:32], nonce=request.nonce,
            base_version=self.manifest.version, base_sha256=self.manifest.sha256,
            layout_fingerprint=self.manifest.layout_fingerprint, plan=self.plan, seed=77,
            sealing_key=envelope.public_bytes(self.sealing_key), shard=0, issued_at=now,
            deadline=now + self.lease_s, retry=window,
        )  # fmt: skip

    def ask_evaluation(self, request: CheckIn, window: RetryWindow) -> EvaluationOffer:
        now = int(self.clock.now())
        return EvaluationOffer(
            device=request.device, population="keyboard", task="1" * 16,
            lease=hashlib.sha256(b"evaluate" + request.nonce.encode()).hexdigest()[:32], nonce=request.nonce,
            version=self.manifest.version, version_sha256=self.manifest.sha256, minimum_words=20, issued_at=now,
            deadline=now + self.lease_s, retry=window,
        )  # fmt: skip

    def reply(self, device: str, payload: bytes) -> None:
        self.broker.publish(Outgoing(build_topic(DeviceTopic(device, "down/task")), payload))

    def judge(self, device: str, update_id: str) -> None:
        update = self.updates[update_id]
        if update.init is None or update.header is None or len(update.chunks) < update.init.chunks:
            return
        sealed = b"".join(update.chunks[i] for i in range(update.init.chunks))
        assert hashlib.sha256(sealed).hexdigest() == update.init.sha256
        update.plain = envelope.unseal(
            sealed, header=update.init.header, ephemeral_key=update.header.ephemeral_key, recipient=self.sealing_key
        )
        if not self.mute_receipts:
            self.send_receipt(device, update_id, self.verdict)

    def send_receipt(
        self, device: str, update_id: str, verdict: str, missing: tuple[int, ...] = (), init_missing: bool = False
    ) -> None:
        receipt = Receipt(
            device=device, update_id=update_id, verdict=verdict, reason="", missing=missing, init_missing=init_missing,
            issued_at=int(self.clock.now()),
        )  # fmt: skip
        payload = envelope.sign(self.key, "receipt", encode_message(receipt))
        self.broker.publish(Outgoing(build_topic(DeviceTopic(device, "down/rcpt")), payload))

    def vector(self, update_id: str) -> codec.SparseVector:
        """Return what an update says."""
        plain = self.updates[update_id].plain
        assert plain is not None
        return codec.decode(plain, size=self.manifest.parameters)


class _Plugged:
    """What an agent reads is what the world's `plugged` says, whatever a test has put there."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def read(self, now: float) -> Readings:
        return self.world.plugged.read(now)


class World:
    """One device, one broker, one aggregator. `plugged` are the sensors that the agent reads."""

    def __init__(self, folder: Path, seed: int = 1, fuse: Fuse | None = None) -> None:
        self.home = folder
        self.fuse = fuse or Fuse()
        self.clock, self.sensors = FakeClock(fuse=self.fuse), FakeSensors(self.fuse)
        self.plugged: Sensors = self.sensors
        self.broker, self.downloads = FakeBroker(), FakeDownloads(self.fuse)
        self.aggregator = ToyAggregator(self.broker, self.downloads, self.clock)
        self.entropy = Entropy(seed, self.fuse)
        # Nothing waits and no start runs out here: `test_eligibility` and `benchmarks.nights` are about that.
        policy = PolicySettings(
            night_start="00:00", night_end="00:00", settle_s=0, grace_s=0, cool_down_s=0, starts=1000, energy_wh=10_000
        )
        self.settings = Settings(policy=policy, held_out_share=0.0, ballast_bytes=0, personal=False)
        who = identity.load_or_make(folder, self.entropy)
        identity.save_enrolled(folder, self.aggregator.enrolled(who))
        self.agent = self.open()

    def open(self) -> Agent:
        transport = FakeTransport(self.broker, "device", self.fuse)
        plugged = _Plugged(self)
        ports = Ports(self.clock, plugged, transport, self.downloads, self.trainer(), self.entropy)
        self.agent = Agent(self.home, self.settings, ports)
        return self.agent

    def trainer(self) -> InProcessTrainer:
        """Return a trainer over this home, with the runtime that all tests of this process share."""
        return InProcessTrainer(self.home, RUNTIME, self.entropy, self.clock, self.settings.held_out_share)

    def another_process(self) -> Agent:
        """Return an agent over the same home, as a command opens it beside the one that runs; abandon it after use."""
        transport = FakeTransport(self.broker, "command", Fuse())
        clock, sensors = FakeClock(self.clock.time), FakeSensors(Fuse())
        entropy = Entropy(9)
        trainer = InProcessTrainer(self.home, RUNTIME, entropy, clock)
        return Agent(self.home, self.settings, Ports(clock, sensors, transport, FakeDownloads(), trainer, entropy))

    def kill(self) -> Agent:
        """Abandon the agent and start another one over the same home."""
        self.agent.abandon()
        return self.open()

    def type_text(self, sentences: int = 60) -> None:
        """Fetch the first version if need be, and type pronounceable nonsense."""
        if self.agent.current() is None:
            self.agent.fetch_refresh()
        rng = np.random.default_rng(5)
        words = self.aggregator.vocabulary.decode().split("\n")[4:-1]
        texts = [" ".join(words[min(i, 595)] for i in rng.zipf(1.3, 12).clip(1, 596) - 1) for _ in range(sentences)]
        self.agent.examples.add_many(texts, self.clock.now())

    def night(self) -> list:
        """Let device and aggregator talk until both have nothing to do."""
        reports = []
        for _ in range(6):
            reports.append(self.agent.turn())
            self.aggregator.work()
        return reports
