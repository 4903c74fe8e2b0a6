"""One real agent sends one large update to a real aggregator process over a bad link; for `benchmarks.weak_link`.

The agent's session, outbox, link and transport are the product's. Its trainer is played: it queues sealed bytes of the
wanted size, in the transaction in which the real one does, so that the tests' tiny model has an update of any size.
What is inside is random, so the verdict is a refusal in the end; what is measured is the way there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.aggregator_process import AggregatorProcess
from benchmarks.broker_process import BrokerProcess
from benchmarks.fast_clock import FastClock
from benchmarks.fault_proxy import FaultProxy
from edge_runtime import identity, session
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.interpreter import InterpreterRuntime
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.adapters.outbox import Outbox, QueuedUpdate
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.agent import Agent, Ports
from edge_runtime.client_update import seal_update
from edge_runtime.config import Settings
from edge_runtime.eligibility import Reading, Readings
from edge_runtime.jobs import JobResult, LongJob, Queued, Train
from edge_runtime.local_training import TrainingResult
from edge_runtime.policy_settings import PolicySettings
from edge_runtime.session_row import SessionRow
from tests.edge_runtime.conftest import free_port
from wire_contract import codec

BUNDLE = Path("tests/edge_runtime/fixtures/tiny")
GOOD = Readings(
    charging=Reading(True), battery=Reading(90.0), celsius=Reading(40.0), idle_s=Reading(3600.0), metered=Reading(False)
)
# A benchmark is a handful of looks: nothing is to wait for, or to run out.
POLICY = PolicySettings(
    night_start="00:00", night_end="00:00", settle_s=0, grace_s=0, cool_down_s=0, minimum_window_s=0, starts=10_000,
    energy_wh=10_000, written_bytes=1 << 40, sent_bytes=1 << 40, training_s=86_400, clock="rtc",
)  # fmt: skip
POPULATION = """\
goal_count = 400
minimum_updates = 400
[pace]
minimum_seconds = 1
maximum_seconds = 2
[plan]
rows = 32
epochs = 1
[plan.codec]
kept = 0.3
[release]
cron = ""
"""
SENTENCES = 12
LIMIT_S = 240.0


class PlayedSensors:
    """Every condition holds, until `eligible` is false: then the cable is out."""

    def __init__(self) -> None:
        self.eligible = True

    def read(self, now: float) -> Readings:
        """See `edge_runtime.ports.Sensors`."""
        if self.eligible:
            return GOOD
        return Readings(
            charging=Reading(False),
            battery=GOOD.battery,
            celsius=GOOD.celsius,
            idle_s=GOOD.idle_s,
            metered=GOOD.metered,
        )


class LargeUpdates(InProcessTrainer):
    """Trains nothing, and queues `data` as the update of whatever lease is offered."""

    def __init__(self, home: Path, runtime: InterpreterRuntime, clock: FastClock, data: bytes) -> None:
        super().__init__(home, runtime, identity.system_entropy, clock)
        self._home, self._clock, self._data = home, clock, data

    def begin(self, job: LongJob, may_go_on: Callable[[], bool]) -> None:
        """See `edge_runtime.ports.Trainer`."""
        if not isinstance(job, Train):
            super().begin(job, may_go_on)
            return
        who, offer, now = identity.load(self._home), job.offer, self._clock.now()
        nothing = np.zeros(0, dtype=np.float32)
        encoded = codec.EncodedUpdate(self._data, codec.SparseVector(0, nothing.astype(np.uint32), nothing), nothing)
        result = TrainingResult(packed={}, steps=2, loss_before=5.0, loss_after=4.0, examples=32)
        sealed = seal_update(
            encoded, result, offer, key=who.key, ephemeral_secret=identity.system_entropy(32), finished_at=int(now),
            chunk_bytes=job.chunk_bytes,
        )  # fmt: skip
        store = StateStore(self._home / "state.db")
        row = SessionRow(store)
        state = row.load()
        with store.transaction() as connection:
            update = QueuedUpdate(
                sealed.update_id, offer.shard, sealed.init, sealed.chunks, offer.plan.clip_norm,
                offer.layout_fingerprint, 1, b"", b"", now,
            )  # fmt: skip
            Outbox(store).put(connection, update)
            after, _ = session.step(state, session.UpdateQueued(now, sealed.update_id))
            row.put(after)
        store.close()
        self._answer: JobResult | None = Queued(
            update_id=sealed.update_id, steps=2, update_bytes=len(self._data), finished_at=now
        )

    def poll(self) -> JobResult | None:
        """See `edge_runtime.ports.Trainer`."""
        answer, self._answer = getattr(self, "_answer", None), None
        return answer or super().poll()


@dataclass
class Lone:
    """One device's parts."""

    agent: Agent
    sensors: PlayedSensors
    transport: MqttTransport


def vocabulary_words() -> list[str]:
    """Return the tiny model's invented words."""
    return (BUNDLE / "vocabulary.txt").read_text().split("\n")[4:-1]


def type_text(agent: Agent, seed: int) -> None:
    """Fetch the first version and let the person type a little."""
    agent.fetch_refresh()
    rng, words = np.random.default_rng(seed), vocabulary_words()
    texts = [" ".join(words[int(i)] for i in rng.integers(0, 200, 12)) for _ in range(SENTENCES)]
    agent.examples.add_many(texts, time.time())


def upload(
    folder: Path,
    broker: BrokerProcess,
    data: bytes,
    *,
    keepalive_s: int = 60,
    cut_after_bytes: int = 0,
    rate: float = 0.0,
) -> dict[str, object]:
    """Return what it cost to get `data` from the outbox to a verdict."""
    home, clock, runtime = folder / "home", FastClock(10.0), InterpreterRuntime("auto")
    with AggregatorProcess(folder, BUNDLE, POPULATION, port=free_port(), broker_url=broker.url) as aggregator:
        enrolled = aggregator.enrol(home, next(aggregator.tokens(1)), "keyboard")
        with FaultProxy(("127.0.0.1", broker.port), cut_after_bytes=cut_after_bytes, rate=rate) as proxy:
            settings = Settings(policy=POLICY, personal=False, ballast_bytes=0, spread_s=0)
            transport = MqttTransport(proxy.url, enrolled.device, keepalive_s=keepalive_s)
            trainer = LargeUpdates(home, runtime, clock, data)
            ports = Ports(clock, PlayedSensors(), transport, HttpDownloads(), trainer, identity.system_entropy)
            agent = Agent(home, settings, ports)
            type_text(agent, 1)
            began, receipts, sends = time.monotonic(), [], 0
            first, refused = 0.0, []
            while not receipts or receipts[-1] == "incomplete":
                this_turn = time.monotonic()
                report = agent.turn(0.2)
                first = first or (this_turn if report.update_queued else 0.0)
                receipts += report.receipts
                refused += report.refused
                sends += report.update_sent
                if time.monotonic() - began > LIMIT_S:
                    raise SystemExit(f"no verdict within {LIMIT_S:.0f} s: {report}")
            used, sent, connections = time.monotonic() - first, proxy.bytes_up, proxy.connections
            cuts = proxy.cuts
            proxy.rate = proxy.cut_after_bytes = 0
            agent.close()
    if any(name != "unreachable" for name in refused):
        raise SystemExit(f"the device refused something: {refused}")
    return {
        "done": True,
        "bytes_ratio": round(sent / len(data), 3),
        "disconnects": connections - 1,
        "cuts": cuts,
        "status_answers": receipts.count("incomplete"),
        "verdict": receipts[-1],
        "seconds": round(used, 1),
    }
