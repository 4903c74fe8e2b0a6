"""The transport's two ends together: a real `cloud-aggregator serve`, real devices' links, real brokers."""

import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.aggregator_process import AggregatorProcess
from cloud_aggregator.adapters.broker_addresses import announced_addresses
from cloud_aggregator.errors import InvalidSetting
from edge_runtime import identity
from edge_runtime.adapters.clock import SystemClock
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.broker_address import parse_addresses
from edge_runtime.link import Link
from edge_runtime.ports import Outgoing, Unreachable
from tests.edge_runtime.conftest import free_port, need_mosquitto
from wire_contract.topics import DeviceTopic, build_topic

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests/edge_runtime/fixtures/tiny"


@pytest.fixture
def ports():
    return [free_port() for _ in range(3)]


@dataclass
class Device:
    name: str
    transport: MqttTransport
    link: Link


class Cloud:
    def __init__(self, aggregator):
        self.aggregator = aggregator
        self.tokens = aggregator.tokens(9)

    def device(self, home):
        enrolled = self.aggregator.enrol(home, next(self.tokens), "keyboard")
        transport = MqttTransport(enrolled.broker_url, enrolled.device, timeout_s=5)
        clock = SystemClock()
        link = Link(transport, identity.load(home), "keyboard", "litert", clock, identity.system_entropy)
        return Device(enrolled.device, transport, link)

    def row(self, device):
        path = f"file:{self.aggregator.data / 'aggregator.db'}?mode=ro"
        connection = sqlite3.connect(path, uri=True)
        try:
            found = "SELECT online, training_version, report_nonce FROM devices WHERE device = ?"
            return connection.execute(found, (device,)).fetchone()
        finally:
            connection.close()

    def wait(self, device, condition):
        deadline = time.monotonic() + 20
        while not condition(self.row(device)):
            assert time.monotonic() < deadline, self.row(device)
            time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path, ports):
    """An aggregator with a broker of its own, whose MQTT port devices cannot reach and whose WebSocket they can."""
    need_mosquitto()
    http, closed, web = ports
    told = f"mqtt://127.0.0.1:{closed} ws://127.0.0.1:{web}/mqtt"
    settings = f'[broker]\nwebsocket_port = {web}\npublic_url = "{told}"\n'
    with AggregatorProcess(tmp_path / "cloud", BUNDLE, "", port=http, settings=settings) as aggregator:
        yield Cloud(aggregator)


@pytest.mark.needs_mosquitto
def test_a_device_behind_a_firewall_reaches_the_aggregator_through_the_websocket(cloud, tmp_path):
    device = cloud.device(tmp_path / "home")
    device.link.keep(True, (3, 0))
    assert device.transport.address.startswith("ws://")
    device.link.report((3, 0))
    device.link.flush()
    cloud.wait(device.name, lambda row: row[:2] == (1, 3))
    device.link.leave((3, 0))
    cloud.wait(device.name, lambda row: row[0] == 0)


@pytest.mark.needs_mosquitto
def test_the_late_will_of_an_older_connection_does_not_put_a_device_offline(cloud, tmp_path):
    device, witness = cloud.device(tmp_path / "home"), cloud.device(tmp_path / "witness")
    wills = []
    connect = device.transport.connect
    device.transport.connect = lambda will, topics: (wills.append(will), connect(will, topics))
    for version in (1, 2):
        device.link.drop()
        device.link.keep(True, (version, 0))
        device.link.report((version, 0))
        device.link.flush()
    cloud.wait(device.name, lambda row: row[1] == 2)
    # A broker may publish the will of the dropped connection at any time, also after the next one's report.
    device.transport.publish(wills[0])
    device.transport.flush(5)
    witness.link.keep(True, (1, 0))
    witness.link.report((1, 0))
    witness.link.flush()
    cloud.wait(witness.name, lambda row: row[0] == 1)
    assert cloud.row(device.name)[0] == 1
    # The will of the connection that stands counts, as it must.
    device.transport.publish(wills[1])
    device.transport.flush(5)
    cloud.wait(device.name, lambda row: row[0] == 0)


@pytest.mark.needs_mosquitto
def test_nobody_hears_what_is_published_under_rubbish_topics_or_payloads_and_the_service_goes_on(cloud, tmp_path):
    device = cloud.device(tmp_path / "home")
    device.link.keep(True, (1, 0))
    state = build_topic(DeviceTopic(device.name, "state"))
    for topic, payload in (("fl/v1/up/0/x/y", b""), (state, b"\xff" * 50), ("fl/v1/dev/x/req", b"{}"), (state, b"")):
        device.transport.publish(Outgoing(topic, payload))
    device.link.report((1, 0))
    device.link.flush()
    cloud.wait(device.name, lambda row: row[0] == 1)
    device.link.leave((1, 0))


@pytest.mark.parametrize(
    "text",
    [
        "mqtt://127.0.0.1:1883", "mqtts://a.example wss://a.example/mqtt", "mqtts://[::1]:8883 ws://h_1:80", "mqtt://h/",
        "mqtt://h1 mqtts://h1 ws://h1 wss://h1",
    ],
)  # fmt: skip
def test_what_the_cloud_announces_devices_can_read(text):
    assert len(parse_addresses(announced_addresses(text))) == len(text.split(" "))


@pytest.mark.parametrize(
    "text",
    [
        "http://h", "mqtt://h:0", "mqtt://h:65536", "mqtt://h  ws://h", "mqtt://h mqtt://h", "mqtt://h/x", "",
        "ws://h/?x", " ".join(f"mqtt://h{i}" for i in range(5)), "mqtt://" + "h" * 400, "wss://h/#f",
        "mqtt://user:pa ss@h",
    ],
)  # fmt: skip
def test_what_devices_could_not_read_the_cloud_refuses_to_announce(text):
    with pytest.raises(InvalidSetting) as refused:
        announced_addresses(text)
    assert "pa ss" not in str(refused.value) and "user" not in str(refused.value)
    with pytest.raises(Unreachable):
        parse_addresses(text)


def test_users_and_passwords_are_not_announced():
    told = announced_addresses("mqtts://cloud:s3cr@t@a.example wss://cloud:other@a.example/mqtt")
    assert told == "mqtts://a.example wss://a.example/mqtt"


def test_a_broken_public_url_ends_serve_at_once_with_the_rule(tmp_path):
    with pytest.raises(RuntimeError, match="did not start"):
        AggregatorProcess(
            tmp_path / "cloud", BUNDLE, "", port=free_port(), settings='[broker]\npublic_url = "http://x"\n'
        )
    shutil.rmtree(tmp_path / "cloud")
