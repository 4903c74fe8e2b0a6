"""Whole nights over a real mosquitto: the agent's own transport, the toy aggregator behind a plain paho client."""

import dataclasses

import msgspec
import paho.mqtt.client as paho
import pytest

from benchmarks.fault_proxy import FaultProxy
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.agent import Agent, Ports
from edge_runtime.eligibility import Reading
from edge_runtime.ports import Outgoing
from tests.edge_runtime.fakes import GOOD, Killed, World
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


def open_behind(world, broker, proxy):
    """Open the world's agent anew with a bad link between it and the broker."""
    world.agent.abandon()
    transport = MqttTransport(proxy.url, "device", timeout_s=5)
    ports = Ports(world.clock, world.sensors, transport, world.downloads, world.trainer(), world.entropy)
    world.agent = Agent(world.home, world.settings, ports)


def large_update(world):
    """Let the next update have dozens of chunks."""
    world.settings = msgspec.structs.replace(world.settings, chunk_bytes=1024)
    world.aggregator.plan = Plan(
        signature="train", rows=40, learning_rate=0.5, codec=CodecPlan(kept=0.9, entropy="none")
    )


def test_a_link_that_is_cut_again_and_again_brings_an_update_through_at_little_more_than_its_size(
    world, mosquitto_broker
):
    large_update(world)
    with FaultProxy(("127.0.0.1", mosquitto_broker.port), cut_after_bytes=12_000) as proxy:
        open_behind(world, mosquitto_broker, proxy)
        world.type_text()
        receipts = []
        for _ in range(60):
            receipts += world.agent.turn(wait_s=0.2).receipts
            world.aggregator.work()
            world.clock.time += 30
            if receipts and receipts[-1] != "incomplete":
                break
        (update,) = world.aggregator.updates.values()
        # Cut more than twice, and an old answer that comes again does not begin anew what was sent since.
        assert receipts[-1] == "accepted" and proxy.cuts >= 2
        assert update.init.size_bytes > 20_000
        # A window of chunks at each cut, and what a connection costs: will, subscriptions, report, question.
        assert proxy.bytes_up <= 1.15 * update.init.size_bytes + (proxy.cuts + 1) * (4 * 1200 + 3000)
        proxy.cut_after_bytes = 0
        world.agent.close()


class MeteredWhileAnUpdateWaits:
    """Every condition holds, but the link costs money from the moment when an update waits until `free` is set."""

    def __init__(self, world):
        self.world, self.free = world, False

    def read(self, now):
        waits = not self.free and bool(self.world.agent.updates_waiting())
        return dataclasses.replace(GOOD, metered=Reading(waits))


def test_a_broker_that_takes_smaller_packets_than_before_gets_the_update_in_smaller_chunks(world, mosquitto_broker):
    large_update(world)
    world.agent.abandon()
    world.settings = msgspec.structs.replace(world.settings, chunk_bytes=32 * 1024)
    world.sensors = MeteredWhileAnUpdateWaits(world)
    world.open()
    world.type_text()
    live(world, lambda report: report.update_queued)
    (queued,) = world.agent.updates_waiting()
    assert queued not in world.aggregator.updates
    world.agent.abandon()
    world.bridge.close()
    mosquitto_broker.stop()
    mosquitto_broker.extra = "max_packet_size 6000\n"
    mosquitto_broker.start()
    world.bridge.retained = []
    world.bridge.connect()
    world.sensors.free = True
    world.open()
    assert live(world, lambda report: report.receipts).receipts == ("accepted",)
    update = world.aggregator.updates[queued]
    assert update.plain is not None and update.init.chunk_bytes == 4096 and update.init.chunks > 5


def test_a_day_at_rest_costs_little_on_the_wire(world, mosquitto_broker):
    with FaultProxy(("127.0.0.1", mosquitto_broker.port)) as proxy:
        open_behind(world, mosquitto_broker, proxy)
        world.type_text()
        assert live(world, lambda report: report.receipts).receipts == ("accepted",)
        world.aggregator.turn_away = "enough for today"
        before, connections = proxy.bytes_up + proxy.bytes_down, proxy.connections
        # A whole day, idle and on its charger, looked at every minute; the aggregator tells it to come again later.
        for _ in range(24 * 60):
            world.clock.time += 60
            report = world.agent.turn()
            if report.connected:
                world.agent.turn(wait_s=0.05)
                world.aggregator.work()
        used = proxy.bytes_up + proxy.bytes_down - before
        assert 0 < used < 1_000_000
        assert proxy.connections - connections < 200


def test_a_device_that_was_told_to_come_later_does_not_ask_before_also_after_a_restart(world, mosquitto_broker):
    world.aggregator.turn_away = "enough"
    world.type_text()
    live(world, lambda report: report.turned_away)
    until = world.agent.state.not_before
    assert until > world.clock.time
    for moment in (world.clock.time, until - 1):
        world.clock.time = moment
        world.agent.abandon()
        world.open()
        for _ in range(3):
            world.agent.turn(wait_s=0.05)
            world.aggregator.work()
        assert len(world.aggregator.check_ins) == 1 and not world.agent.turn().connected
    world.clock.time = until
    live(world, lambda report: report.turned_away)
    assert len(world.aggregator.check_ins) == 2
