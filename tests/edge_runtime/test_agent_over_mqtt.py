"""Whole nights over a real mosquitto: the agent's own transport, the toy aggregator behind a plain paho client."""

import dataclasses

import msgspec
import paho.mqtt.client as paho
import pytest

from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.agent import Agent, Ports
from edge_runtime.ports import Outgoing
from tests.edge_runtime.fakes import RUNTIME, Killed, World
from tests.edge_runtime.test_mqtt import wait_until
from wire_contract.messages import CodecPlan, Plan

pytestmark = pytest.mark.needs_mosquitto


class Bridge:
    """Carries what the toy aggregator publishes to a real broker, and what devices publish back to it."""

    def __init__(self, world, broker):
        self.world, self.broker = world, broker
        self.toy_publish = world.broker.publish
        self.retained = list(world.broker.retained.values())
        world.broker.publish = self.send
        self.connect()

    def connect(self):
        self.ready = False
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="aggregator", protocol=paho.MQTTv5)
        self.client.on_message = lambda c, u, m: self.toy_publish(Outgoing(m.topic, m.payload))
        self.client.on_subscribe = lambda *a: setattr(self, "ready", True)
        self.client.connect("127.0.0.1", self.broker.port, clean_start=False, properties=session_expiry())
        self.client.loop_start()
        self.client.subscribe([("fl/v1/up/#", 1), ("fl/v1/dev/+/req", 1), ("fl/v1/dev/+/state", 1)])
        wait_until(lambda: self.ready)
        for message in self.retained:
            self.send(message)

    def send(self, message):
        self.client.publish(message.topic, message.payload, qos=1, retain=message.retain).wait_for_publish(5)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def session_expiry():
    properties = paho.Properties(paho.PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    return properties


@pytest.fixture
def world(tmp_path, mosquitto_broker):
    made = World(tmp_path / "home")
    made.agent.abandon()
    made.bridge = Bridge(made, mosquitto_broker)

    def open_agent():
        transport = MqttTransport(mosquitto_broker.url, "device", timeout_s=5)
        ports = Ports(made.clock, made.sensors, transport, made.downloads, made.trainer(), made.entropy)
        made.agent = Agent(made.home, made.settings, ports)
        return made.agent

    made.open = open_agent
    open_agent()
    yield made
    made.agent.abandon()
    made.bridge.close()


def live(world, until, turns=200):
    """Let both sides work until a report satisfies `until`."""
    for _ in range(turns):
        report = world.agent.turn(wait_s=0.2)
        if until(report):
            return report
        world.aggregator.work()
    raise AssertionError(f"it did not happen in {turns} turns: {report}")


def test_a_night_over_a_real_broker_ends_with_an_accepted_update(world):
    world.type_text()
    report = live(world, lambda report: report.receipts)
    assert report.receipts == ("accepted",)
    (update,) = world.aggregator.updates.values()
    assert update.plain is not None


def test_an_update_of_many_chunks_arrives_whole(world):
    world.agent.abandon()
    world.settings = msgspec.structs.replace(world.settings, chunk_bytes=1024)
    world.open()
    world.type_text()
    world.aggregator.plan = Plan(
        signature="train", rows=40, learning_rate=0.5, codec=CodecPlan(kept=0.9, entropy="none")
    )
    assert live(world, lambda report: report.receipts).receipts == ("accepted",)
    (update,) = world.aggregator.updates.values()
    assert update.init.chunks > 12


def test_a_broker_that_is_gone_for_a_minute_loses_nothing(world, mosquitto_broker):
    world.type_text()
    live(world, lambda report: report.checked_in)
    world.aggregator.work()
    mosquitto_broker.stop()
    for _ in range(12):
        world.clock.time += 5
        assert not world.agent.turn().connected
    mosquitto_broker.start()
    world.bridge.close()
    world.bridge.connect()
    world.clock.time += 600
    assert live(world, lambda report: report.receipts).receipts == ("accepted",)


def test_a_process_killed_with_an_offer_unacknowledged_gets_it_again(world):
    world.type_text()
    live(world, lambda report: report.checked_in)
    wait_until(lambda: len(world.broker.log) > world.aggregator.seen)
    world.aggregator.work()
    # The first reading of a turn passes; the second is asked for when the offer is there.
    world.fuse.left = 1
    with pytest.raises(Killed):
        live(world, lambda report: report.receipts)
    world.agent.abandon()
    world.open()
    assert live(world, lambda report: report.receipts).receipts == ("accepted",)
    assert len(world.aggregator.check_ins) == 1 and len(world.aggregator.updates) == 1


def test_the_brokers_will_tells_of_a_device_that_vanished(world):
    world.type_text()
    live(world, lambda report: report.checked_in)
    world.agent._ports.transport.drop()
    wait_until(lambda: [m for m in world.broker.log if m.topic.endswith("/state")][1:])
    assert dataclasses.is_dataclass(world.broker.log[-1])
    world.aggregator.work()
    assert len(world.aggregator.reports) >= 2
