"""An evaluation over a real broker: the operator asks, a real device scores what it holds out, the sums are shown."""

import time

import pytest

from cloud_aggregator import operator_view as view
from edge_runtime import identity
from edge_runtime.adapters import enrolment
from edge_runtime.adapters.clock import SystemClock
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.interpreter import InterpreterRuntime
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.adapters.sensors.files import FileSensors, write_fixture
from edge_runtime.agent import Agent, Ports
from edge_runtime.config import Settings
from edge_runtime.evaluation import NOT_SCORED, score
from edge_runtime.privacy_filter import id_stream
from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import DAY_S
from keyboard_demo.device import POLICY
from tests.system.test_fleet import BUNDLE, SETTINGS, people
from wire_contract.layout import Layout
from wire_contract.patch import read_tensors

SHARE = 0.4


class Device:
    """An enrolled agent with real adapters that lies idle and charges."""

    def __init__(self, home, fleet, number, texts):
        home.mkdir(mode=0o700)
        me = identity.load_or_make(home, identity.system_entropy)
        token = fleet.host.service.mint_token(fleet.host.population, f"device {number}", time.time())
        _, signed = enrolment.enrol(
            fleet.host.http.url, me, token=token, population=fleet.host.population, label=f"device {number}"
        )
        identity.save_enrolled(home, signed)
        write_fixture(home / "sensors", charging=True, battery=90.0, idle_seconds=3600.0, metered=False, celsius=40.0)
        settings = Settings(
            population=fleet.host.population, policy=POLICY, held_out_share=SHARE, ballast_bytes=0, personal=False,
            spread_s=0.0,
        )  # fmt: skip
        enrolled, clock = identity.load_enrolled(home), SystemClock()
        self.runtime = InterpreterRuntime("auto")
        ports = Ports(
            clock=clock,
            sensors=FileSensors(home / "sensors"),
            transport=MqttTransport(enrolled.broker_url, enrolled.device),
            downloads=HttpDownloads(),
            trainer=InProcessTrainer(home, self.runtime, identity.system_entropy, clock, SHARE),
            entropy=identity.system_entropy,
        )
        self.agent = Agent(home, settings, ports)
        self.agent.fetch_refresh()
        self.agent.examples.add_many(texts, time.time())

    def expected(self):
        """Score the held-out sentences independently of the task; return bucketed counts."""
        held = self.agent.current()
        vocabulary = self.agent.slots.vocabulary(held.manifest.vocabulary_sha256)
        streams = [id_stream([text], vocabulary) for text in self.agent.examples.held_out_sentences()]
        assert sum(token not in NOT_SCORED for stream in streams for token in stream[1:]) < 2000
        runner = self.runtime.template(held.manifest, lambda: held.data)
        packed = Layout.of(held.manifest).pack(read_tensors(held.data, held.manifest))
        found = score(runner, held.manifest.signatures["evaluate"], packed, streams)
        return tuple(count - count % 10 for count in (found.count, found.hits1, found.hits3))


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path / "fleet", BUNDLE, SETTINGS, seed=1, now=int(time.time()) - DAY_S, processes=1) as running:
        yield running


def shown(fleet, task):
    with fleet.host.service.database.reading() as records:
        return view.evaluation_show(records, task, int(time.time()))


def test_devices_report_counts_on_what_they_hold_out_and_then_train_as_before(fleet, tmp_path):
    devices = [Device(tmp_path / f"home{n}", fleet, n, people()[n]) for n in range(2)]
    asked = fleet.host.service.ask_evaluation(
        fleet.host.population, time.time(), version=None, devices=2, minimum_words=10, most_words=2000, valid_s=DAY_S
    )
    expected = [device.expected() for device in devices]
    assert all(words > 0 for words, _, _ in expected)
    with fleet.on_wall_clock():
        end = time.monotonic() + 60
        receipts = []
        while len(receipts) < 2 and time.monotonic() < end:
            receipts += [verdict for device in devices for verdict in device.agent.turn(0.5).receipts]
    for device in devices:
        device.agent.close()
    assert receipts == ["accepted", "accepted"]
    found = shown(fleet, asked.task)
    assert (found["reports"], found["state"]) == (2, "closed")
    assert (found["words"], found["hits1"], found["hits3"]) == tuple(map(sum, zip(*expected, strict=True)))
    assert fleet.host.count_accepted() == (0, 0), "no update was made of what is held out"


def test_a_device_with_little_text_says_so_and_nothing_else(fleet, tmp_path):
    device = Device(tmp_path / "home", fleet, 1, people()[0][:4])
    asked = fleet.host.service.ask_evaluation(
        fleet.host.population, time.time(), version=None, devices=1, minimum_words=1000, most_words=2000, valid_s=DAY_S
    )
    receipts = ()
    with fleet.on_wall_clock():
        end = time.monotonic() + 60
        while not receipts and time.monotonic() < end:
            receipts = device.agent.turn(0.5).receipts
    device.agent.close()
    assert receipts == ("accepted",)
    found = shown(fleet, asked.task)
    assert (found["reports"], found["too_little_text"], found["words"], found["top3_percent"]) == (1, 1, 0, None)
