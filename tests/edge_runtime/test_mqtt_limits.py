"""What the transport does with a broker that misbehaves, forgets, or takes little: a scripted broker, byte for byte."""

import contextlib
import socket
import struct
import threading
import time

import pytest

from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.ports import Outgoing, TooLarge, Unreachable
from tests.edge_runtime.scripted_broker import (
    CONNECT,
    DISCONNECT,
    MAXIMUM_PACKET_SIZE,
    MAXIMUM_QOS,
    PUBACK,
    PUBLISH,
    RECEIVE_MAXIMUM,
    RETAIN_AVAILABLE,
    SUBSCRIBE,
    ScriptedBroker,
)
from tests.edge_runtime.test_mqtt import wait_until

WILL = Outgoing("fl/will", b"offline", retain=True)
TOPICS = tuple(f"fl/v1/dev/{'d' * 32}/down/{leaf}" for leaf in ("task", "rcpt", "model"))


@pytest.fixture
def broker():
    made = ScriptedBroker()
    yield made
    made.close()


def connect(broker, topics=TOPICS, **more):
    transport = MqttTransport(broker.url, "device-1", timeout_s=5, **more)
    transport.connect(WILL, topics)
    return transport


def flush_in_background(transport):
    failures = []

    def work():
        try:
            for i in range(10):
                transport.publish(Outgoing(f"up/{i}", b"x" * 500))
            transport.flush(5)
        except Unreachable as e:
            failures.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, failures


@pytest.mark.parametrize(("properties", "most"), [(b"", 2), (struct.pack(">BH", RECEIVE_MAXIMUM, 1), 1)])
def test_no_more_than_the_window_is_ever_unacknowledged(broker, properties, most):
    broker.properties, broker.puback = properties, None
    transport = connect(broker)
    thread, failures = flush_in_background(transport)
    wait_until(lambda: len(broker.published()) >= most)
    # The third would come at once if it came at all: everything before it was sent in one go.
    thread.join(0.3)
    assert len(broker.published()) == most
    broker.cut()
    thread.join(5)
    assert len(failures) == 1
    # The next connection begins with what is published on it: nothing of the last one is sent behind our back.
    transport.connect(WILL, TOPICS)
    broker.puback = 0
    transport.publish(Outgoing("up/new", b"y"))
    transport.flush(5)
    assert [seen.topic for seen in broker.published() if seen.connection == 2] == ["up/new"]
    transport.disconnect()


def test_the_window_opens_to_four_while_acknowledgements_come_quickly(broker):
    transport = connect(broker)
    for i in range(4):
        transport.publish(Outgoing(f"up/{i}", b"x"))
    transport.flush(5)
    broker.puback = None
    before = len(broker.published())
    thread, _ = flush_in_background(transport)
    wait_until(lambda: len(broker.published()) >= before + 4)
    thread.join(0.3)
    assert len(broker.published()) == before + 4
    broker.cut()
    thread.join(5)


def test_an_acknowledgement_for_an_older_connection_is_not_sent_on_the_new_one(broker):
    transport = connect(broker)
    broker.push(TOPICS[0], b"first", mid=7)
    (old,) = transport.receive(5)
    broker.cut()
    transport.connect(WILL, TOPICS)
    # The session was lost, and the same packet id is another message now.
    broker.push(TOPICS[1], b"second", mid=7)
    (new,) = transport.receive(5)
    transport.ack(old)
    transport.publish(Outgoing("up/marker", b""))
    transport.flush(5)
    assert PUBACK not in broker.kinds()
    transport.ack(new)
    wait_until(lambda: PUBACK in broker.kinds())
    assert [seen.mid for seen in broker.seen if seen.kind == PUBACK] == [7]
    transport.disconnect()


@pytest.mark.parametrize("present", [True, False])
def test_every_connection_subscribes_whatever_the_broker_says_of_the_session(broker, present):
    broker.session_present = present
    transport = connect(broker)
    broker.cut()
    transport.connect(WILL, TOPICS)
    for connection in (1, 2):
        (subscribe,) = (seen for seen in broker.seen if seen.kind == SUBSCRIBE and seen.connection == connection)
        assert all(topic.encode() in subscribe.body for topic in TOPICS)
    transport.disconnect()


def test_the_connect_asks_for_a_session_of_two_hours_and_a_ping_a_minute(broker):
    connect(broker).disconnect()
    (seen,) = (seen for seen in broker.seen if seen.kind == CONNECT)
    # Protocol name and level, flags (will, QoS 1, retained, no clean start), keepalive.
    assert seen.body[:10] == b"\x00\x04MQTT\x05" + bytes([0b00101100]) + struct.pack(">H", 60)
    assert struct.pack(">BI", 0x11, 7200) in seen.body
    wait_until(lambda: broker.kinds()[-1] == DISCONNECT)


def test_a_packet_over_the_brokers_limit_never_leaves_and_the_largest_that_fits_does(broker):
    broker.properties = struct.pack(">BI", MAXIMUM_PACKET_SIZE, 3000)
    transport = connect(broker)
    most = transport.limit_bytes
    with pytest.raises(TooLarge, match="3000 bytes"):
        transport.publish(Outgoing("up/1", b"x" * (most - 4 + 1)))
    assert PUBLISH not in broker.kinds()
    transport.publish(Outgoing("up/1", b"x" * (most - 4)))
    transport.flush(5)
    (seen,) = broker.published()
    assert 3000 - 8 <= len(seen.body) + 3 <= 3000
    transport.disconnect()


def test_subscriptions_are_cut_into_packets_that_the_broker_takes(broker):
    broker.properties = struct.pack(">BI", MAXIMUM_PACKET_SIZE, 80)
    connect(broker).disconnect()
    packets = [seen.body for seen in broker.seen if seen.kind == SUBSCRIBE]
    assert len(packets) == 3 and all(len(body) + 2 <= 80 for body in packets)
    broker.properties = struct.pack(">BI", MAXIMUM_PACKET_SIZE, 40)
    with pytest.raises(Unreachable, match="no subscription fits"):
        connect(broker)


def test_without_retained_messages_the_report_goes_out_unretained(broker):
    broker.properties = struct.pack(">BB", RETAIN_AVAILABLE, 0)
    transport = connect(broker)
    transport.publish(Outgoing("dev/state", b"online", retain=True))
    transport.flush(5)
    assert [seen.flags & 1 for seen in broker.published()] == [0]
    transport.disconnect()


def test_a_broker_that_loses_messages_by_its_nature_is_not_used(broker):
    broker.properties = struct.pack(">BB", MAXIMUM_QOS, 0)
    with pytest.raises(Unreachable, match="QoS 1"):
        connect(broker)


def test_a_refusal_is_told_by_name_and_no_other_address_is_bothered(broker):
    broker.reason = 0x87
    other = ScriptedBroker()
    try:
        transport = MqttTransport(f"{broker.url} {other.url}", "device-1", timeout_s=5)
        with pytest.raises(Unreachable, match="Not authorized"):
            transport.connect(WILL, TOPICS)
        assert other.connections == 0
    finally:
        other.close()


def test_a_publish_that_the_broker_refuses_does_not_count_as_taken(broker):
    transport = connect(broker)
    transport.publish(Outgoing("up/1", b"x"))
    transport.flush(5)
    broker.puback = 0x87
    transport.publish(Outgoing("up/2", b"x"))
    with pytest.raises(Unreachable, match="up/2: Not authorized"):
        transport.flush(5)
    assert transport.acknowledged() == ("up/1",)


RUBBISH = {
    "no type": b"\x00\x00",
    "a reserved type": b"\xf0\x00",
    "a length without end": b"\x32\xff\xff\xff\xff\x7f",
    "an acknowledgement of nothing": b"\x40\x02\x00\x01",
    "a topic that is no text": b"\x32\x08\x00\x02\xff\xfe\x00\x01\x00x",
    "a publish without topic": b"\x32\x00",
    "a property that does not exist": b"\x32\x0a\x00\x01a\x00\x01\x03\x7f\x00\x00x",
    "a second CONNACK": b"\x20\x03\x00\x00\x00",
    "a CONNECT": b"\x10\x00",
    "QoS 3": b"\x36\x06\x00\x01a\x00\x01\x00",
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH.keys())
def test_bytes_that_are_no_mqtt_end_at_worst_the_connection(broker, rubbish):
    transport = connect(broker)
    broker.send(rubbish)
    try:
        for _ in range(5):
            transport.receive(0.05)
    except Unreachable:
        assert not transport.connected
    transport.connect(WILL, TOPICS)
    transport.publish(Outgoing("up/1", b"x"))
    transport.flush(5)
    transport.disconnect()


@pytest.mark.parametrize("scheme", ["ws", "wss", "mqtts"])
def test_a_tarpit_that_drips_bytes_into_the_handshake_is_left_when_the_time_is_up(scheme):
    dripped, limit = [], 400
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        # What a WebSocket's client reads as a header line without end, and TLS as a record that is not whole yet.
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 101 Ok\r\n" if scheme == "ws" else b"\x16\x03\x03\x40\x00")
            while len(dripped) < limit:
                connection.sendall(b"x")
                dripped.append(1)
                time.sleep(0.05)
        connection.close()

    thread = threading.Thread(target=drip)
    thread.start()
    transport = MqttTransport(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", "device-1", timeout_s=0.5)
    with pytest.raises(Unreachable, match="does not answer"):
        transport.connect(WILL, TOPICS)
    thread.join(30)
    listener.close()
    # Each byte came well within the time limit of one read; it was the whole that took too long.
    assert 2 <= len(dripped) < limit


def test_a_wait_ends_when_nothing_is_acknowledged_and_not_when_the_whole_takes_long(broker):
    transport = connect(broker)
    broker.puback = None
    for i in range(2):
        transport.publish(Outgoing(f"up/{i}", b"x"))

    def acknowledge_slowly():
        wait_until(lambda: len(broker.published()) == 2)
        for seen in broker.published():
            time.sleep(0.7)
            broker.send(b"\x40\x02" + struct.pack(">H", seen.mid))

    thread = threading.Thread(target=acknowledge_slowly)
    thread.start()
    # Neither wait is longer than a second; both together are.
    transport.flush(1.0)
    thread.join(5)
    assert transport.acknowledged() == ("up/0", "up/1")
    transport.publish(Outgoing("up/2", b"x"))
    with pytest.raises(Unreachable, match="acknowledged nothing for 1 s"):
        transport.flush(1.0)
