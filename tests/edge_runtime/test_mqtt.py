"""The transport against real brokers; a plain paho client is the independent witness."""

import os
import time

import paho.mqtt.client as paho
import pytest

from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.ports import Outgoing, TooLarge, Unreachable
from tests.edge_runtime.conftest import Broker

WILL = Outgoing("fl/will", b"offline", retain=True)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Witness:
    """Another client, that records everything and publishes at will."""

    def __init__(self, broker, topic="#"):
        self.seen: list[tuple[str, bytes]] = []
        self.ready = False
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.client.on_message = lambda c, u, m: self.seen.append((m.topic, m.payload))
        self.client.on_subscribe = lambda *a: setattr(self, "ready", True)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        self.client.subscribe(topic, qos=1)
        wait_until(lambda: self.ready)

    def publish(self, topic, payload):
        self.client.publish(topic, payload, qos=1).wait_for_publish(5)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def witness(any_broker):
    made = Witness(any_broker)
    yield made
    made.close()


def connect(broker, topics=("dev/down",), client_id="device-1"):
    transport = MqttTransport(broker.url, client_id, timeout_s=5)
    transport.connect(WILL, topics)
    return transport


def test_what_was_flushed_has_arrived_in_order_and_whole(any_broker, witness):
    transport = connect(any_broker)
    sent = [(f"up/{i}", os.urandom(32 * 1024)) for i in range(12)]
    for topic, payload in sent:
        transport.publish(Outgoing(topic, payload))
    transport.flush(10)
    wait_until(lambda: len(witness.seen) >= 12)
    assert witness.seen == sent
    transport.disconnect()


def test_paho_never_holds_more_than_the_window(any_broker, witness):
    transport = connect(any_broker)
    for i in range(40):
        transport.publish(Outgoing(f"up/{i}", b"x" * 2000))
    most = 0
    while transport._waiting or transport._in_flight:
        transport._pump(1.0)
        most = max(most, len(transport._in_flight))
    assert most <= 4
    transport.disconnect()


def test_a_message_that_was_not_acknowledged_comes_again_to_the_next_connection(any_broker, witness):
    transport = connect(any_broker)
    witness.publish("dev/down", b"first")
    (received,) = transport.receive(5)
    assert received.payload == b"first"
    for _ in range(2):
        transport.drop()
        transport.connect(WILL, ("dev/down",))
        (redelivered,) = transport.receive(5)
        assert redelivered.payload == b"first"
        # Its packet id may be another message's by now: an ack from the older connection must not count for this one.
        transport.ack(received)
        transport.tend()
    transport.ack(redelivered)
    transport.tend()
    transport.disconnect()
    transport.connect(WILL, ("dev/down",))
    assert transport.receive(0.3) == []
    transport.disconnect()


def test_what_was_published_while_the_device_was_away_waits_for_it(any_broker, witness):
    transport = connect(any_broker)
    transport.disconnect()
    witness.publish("dev/down", b"meanwhile")
    again = connect(any_broker)
    (received,) = again.receive(5)
    assert received.payload == b"meanwhile"
    again.ack(received)
    again.disconnect()


@pytest.mark.needs_mosquitto
def test_retained_messages_come_with_every_connection(mosquitto_broker):
    # iotcore sends them with a session's first subscription only; there the agent asks over HTTP (version_keeper).
    any_broker = mosquitto_broker
    sender = connect(any_broker, (), "sender")
    sender.publish(Outgoing("pop/model", b"manifest", retain=True))
    sender.flush(5)
    for _ in range(2):
        transport = connect(any_broker, ("pop/model",))
        (received,) = transport.receive(5)
        assert received.payload == b"manifest"
        transport.ack(received)
        transport.disconnect()
    sender.disconnect()


def test_a_dropped_connection_leaves_its_will_and_a_polite_one_does_not(any_broker, witness):
    connect(any_broker).disconnect()
    time.sleep(0.2)
    assert witness.seen == []
    transport = connect(any_broker)
    transport.drop()
    wait_until(lambda: ("fl/will", b"offline") in witness.seen)


def test_a_broker_that_goes_away_is_unreachable_and_comes_back(any_broker):
    transport = connect(any_broker)
    any_broker.stop()
    with pytest.raises(Unreachable):
        transport.publish(Outgoing("up/1", b"x"))
        transport.flush(5)
    assert not transport.connected
    with pytest.raises(Unreachable, match="does not answer"):
        transport.connect(WILL, ())
    any_broker.start()
    transport.connect(WILL, ("dev/down",))
    transport.publish(Outgoing("up/1", b"x"))
    transport.flush(5)
    transport.disconnect()


@pytest.mark.needs_mosquitto
def test_a_packet_over_the_brokers_limit_is_refused_here_and_the_connection_lives(mosquitto_broker):
    mosquitto_broker.stop()
    limited = Broker("mosquitto", mosquitto_broker.folder, "max_packet_size 2000\n")
    limited.start()
    try:
        transport = connect(limited)
        with pytest.raises(TooLarge, match="2000 bytes"):
            transport.publish(Outgoing("up/1", b"x" * 2000))
        transport.publish(Outgoing("up/1", b"x" * 1900))
        transport.flush(5)
        assert transport.connected
        transport.disconnect()
    finally:
        limited.stop()


def test_an_address_that_is_no_brokers_is_refused():
    with pytest.raises(Unreachable, match="mqtt://HOST:PORT"):
        MqttTransport("http://127.0.0.1:80", "d")
