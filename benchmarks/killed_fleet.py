"""Real agents against a real aggregator and broker that are killed with SIGKILL again and again; for `weak_link`.

Whatever is lost on the way, the devices' outboxes, the status answers and the receipts must get every update counted,
and the aggregator's keys must get none counted twice.
"""

import json
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from benchmarks.aggregator_process import AggregatorProcess
from benchmarks.broker_process import BrokerProcess
from benchmarks.fast_clock import FastClock
from benchmarks.lone_device import BUNDLE, POLICY, POPULATION, PlayedSensors, type_text
from edge_runtime import identity
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.interpreter import InterpreterRuntime
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.agent import Agent, Ports
from edge_runtime.config import Settings
from edge_runtime.ports import Outgoing
from tests.edge_runtime.conftest import free_port
from wire_contract.messages import Enrolled
from wire_contract.topics import UpdateTopic, parse_topic

AGGREGATOR_KILLS = 5
BROKER_KILLS = 3
LIMIT_S = 270.0


class CountingTransport(MqttTransport):
    """Counts what is handed to the broker, by kind."""

    inits = chunks = others = 0

    def publish(self, message: Outgoing) -> None:
        """See `edge_runtime.ports.Transport`."""
        super().publish(message)
        match parse_topic(message.topic):
            case UpdateTopic(chunk=None):
                self.inits += 1
            case UpdateTopic():
                self.chunks += 1
            case _:
                self.others += 1


class Device:
    """One agent that makes `share` updates and then stays unplugged until its last receipt is there."""

    def __init__(self, home: Path, enrolled: Enrolled, share: int, runtime: InterpreterRuntime) -> None:
        self.share, self.queued, self.receipts = share, 0, []
        clock, self.sensors = FastClock(10.0), PlayedSensors()
        self.transport = CountingTransport(enrolled.broker_url, enrolled.device, timeout_s=3)
        settings = Settings(policy=POLICY, chunk_bytes=1024, personal=False, ballast_bytes=0, spread_s=0)
        trainer = InProcessTrainer(home, runtime, identity.system_entropy, clock)
        ports = Ports(clock, self.sensors, self.transport, HttpDownloads(), trainer, identity.system_entropy)
        self.agent = Agent(home, settings, ports)

    def turn(self) -> None:
        """Let it do what is due."""
        report = self.agent.turn(0.0)
        self.queued += bool(report.update_queued)
        self.receipts += [verdict for verdict in report.receipts if verdict != "incomplete"]
        if self.queued >= self.share:
            self.sensors.eligible = False

    @property
    def done(self) -> bool:
        """Whether every update has its verdict."""
        return self.queued >= self.share and not self.agent.updates_waiting()


def play(folder: Path, kind: str, updates: int, devices: int, seed: int) -> dict[str, object]:
    """Return what became of `updates` updates."""
    rng = random.Random(f"{seed} {kind}")
    runtime = InterpreterRuntime("auto")
    began = time.monotonic()
    with BrokerProcess(kind, folder / "broker") as broker:
        settings = POPULATION.replace("400", str(updates))
        with AggregatorProcess(folder, BUNDLE, settings, port=free_port(), broker_url=broker.url) as aggregator:
            fleet = []
            for number, token in enumerate(aggregator.tokens(devices)):
                home = folder / f"device-{number}"
                share = updates // devices + (number < updates % devices)
                fleet.append(Device(home, aggregator.enrol(home, token, "keyboard"), share, runtime))
                type_text(fleet[-1].agent, number)
            _play_until_done(fleet, aggregator, broker, rng, updates)
            for device in fleet:
                device.agent.close()
            report = _judge(aggregator, updates)
    report |= {
        "aggregator_kills": aggregator.kills,
        "broker_kills": broker.kills,
        "receipts_accepted": sum(device.receipts.count("accepted") for device in fleet),
        "receipts_duplicate": sum(device.receipts.count("duplicate") for device in fleet),
        "inits_sent": sum(device.transport.inits for device in fleet),
        "chunks_sent": sum(device.transport.chunks for device in fleet),
        "chunks_sent_again": sum(device.transport.chunks for device in fleet) - report["chunks"],
        "requests_and_reports_sent": sum(device.transport.others for device in fleet),
        "seconds": round(time.monotonic() - began, 1),
    }
    return report


def _play_until_done(
    fleet: list[Device], aggregator: AggregatorProcess, broker: BrokerProcess, rng: random.Random, updates: int
) -> None:
    """Turn everybody round and round; kill by progress, so that every kill hits a fleet at work."""
    kills = ["aggregator"] * AGGREGATOR_KILLS + ["broker"] * BROKER_KILLS
    rng.shuffle(kills)
    marks = sorted(rng.uniform(0.05, 0.9) * updates for _ in kills)
    end = time.monotonic() + LIMIT_S
    down_since = 0.0
    while not all(device.done for device in fleet):
        if time.monotonic() > end:
            waiting = sum(len(device.agent.updates_waiting()) for device in fleet)
            raise SystemExit(f"not done within {LIMIT_S:.0f} s: {waiting} updates wait; {aggregator.said[-3:]}")
        for device in rng.sample(fleet, len(fleet)):
            if device.done:
                continue
            device.turn()
            if down_since and time.monotonic() - down_since > 0.5:
                broker.start()
                down_since = 0.0
            if marks and not down_since and sum(each.queued for each in fleet) >= marks[0]:
                marks.pop(0)
                if kills.pop() == "broker":
                    broker.kill()
                    down_since = time.monotonic()
                else:
                    aggregator.kill()
                    aggregator.start()
        time.sleep(0.02)
    if down_since:
        broker.start()


def _judge(aggregator: AggregatorProcess, updates: int) -> dict[str, object]:
    """Count what the database holds; a reader that shares no code with the service."""
    path = f"file:{aggregator.data / 'aggregator.db'}?mode=ro"
    end = time.monotonic() + 20
    while True:
        with closing(sqlite3.connect(path, uri=True)) as connection:
            rows = connection.execute(
                "SELECT update_id, device || lease, used_by, size_bytes, chunk_bytes FROM updates "
                "WHERE verdict = 'accepted'"
            ).fetchall()
            others = dict(
                connection.execute("SELECT verdict, count(*) FROM updates WHERE verdict != 'accepted' GROUP BY 1")
            )
            steps = connection.execute("SELECT version, updates FROM versions WHERE version > 1").fetchall()
            events = dict(connection.execute("SELECT kind, count(*) FROM events GROUP BY kind"))
        used = {name for name, _, used_by, *_ in rows if steps and used_by == steps[0][0]}
        if steps or time.monotonic() > end:
            break
        time.sleep(0.1)
    once = len(used) if len(rows) == len({key for _, key, *_ in rows}) and steps == [(2, updates)] else 0
    # Another outcome than the same bytes is an exit code of its own, and raises.
    replayed = bool(steps) and json.loads(aggregator.run("round", "replay", "2", "--json"))["identical"]
    return {
        "applied_once": once,
        "rows_accepted": len(rows),
        "verdicts_other": others,
        "steps": steps,
        "replay_identical": replayed,
        "duplicates_told": events.get("duplicate", 0),
        "events": events,
        "chunks": sum(-(-size // cut) for *_, size, cut in rows),
    }
