"""The transport against real brokers; a plain paho client is the independent witness."""

import os
import resource
import socket
import subprocess
import sys
import time

import paho.mqtt.client as paho
import pytest

from benchmarks.fault_proxy import FaultProxy
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.ports import Outgoing, TooLarge, Unreachable
from tests.edge_runtime.certificates import make_certificate
from tests.edge_runtime.conftest import Broker, free_port, need_mosquitto

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


@pytest.mark.needs_mosquitto
def test_what_got_through_before_the_link_broke_is_known_and_only_the_rest_is_sent(mosquitto_broker):
    heard = Witness(mosquitto_broker, "up/#")
    with FaultProxy(("127.0.0.1", mosquitto_broker.port), cut_after_bytes=200_000) as proxy:
        transport = MqttTransport(proxy.url, "device-1", timeout_s=5)
        pieces = {f"up/{i}": os.urandom(20_000) for i in range(20)}
        connections = 0
        while pieces:
            connections += 1
            transport.connect(WILL, ())
            try:
                for topic, payload in pieces.items():
                    transport.publish(Outgoing(topic, payload))
                transport.flush(5)
            except Unreachable:
                assert not transport.connected
            for topic in transport.acknowledged():
                del pieces[topic]
        transport.disconnect()
        # 400 kB over a link that is cut every 200 kB: nothing but what was on its way, a window at most, went up twice.
        assert 2 <= proxy.cuts == connections - 1 <= 3
        assert proxy.bytes_up <= 401_000 + proxy.cuts * 4 * 20_100
    wait_until(lambda: len({topic for topic, _ in heard.seen}) == 20)
    assert len(heard.seen) <= 20 + 3 * 4
    heard.close()


@pytest.mark.needs_mosquitto
def test_a_slow_link_is_no_dead_one(mosquitto_broker):
    with FaultProxy(("127.0.0.1", mosquitto_broker.port), rate=50_000.0) as proxy:
        transport = MqttTransport(proxy.url, "device-1", timeout_s=5)
        transport.connect(WILL, ())
        for i in range(12):
            transport.publish(Outgoing(f"up/{i}", os.urandom(10_000)))
        # The whole takes two seconds and more; no single acknowledgement takes one and a half.
        transport.flush(1.5)
        assert len(transport.acknowledged()) == 12 and proxy.connections == 1
        transport.disconnect()


@pytest.mark.needs_mosquitto
def test_a_link_that_takes_bytes_and_gives_nothing_back_is_given_up(mosquitto_broker):
    with FaultProxy(("127.0.0.1", mosquitto_broker.port)) as proxy:
        transport = MqttTransport(proxy.url, "device-1", timeout_s=5)
        transport.connect(WILL, ())
        proxy.rate = 10.0
        transport.publish(Outgoing("up/1", os.urandom(5000)))
        with pytest.raises(Unreachable, match="acknowledged nothing for 1 s"):
            transport.flush(1.0)
        assert not transport.connected and transport.acknowledged() == ()


@pytest.fixture
def web_broker(tmp_path):
    """mosquitto with a WebSocket listener beside the plain one."""
    need_mosquitto()
    web = free_port()
    broker = Broker("mosquitto", tmp_path, f"listener {web} 127.0.0.1\nprotocol websockets\n")
    broker.web = web
    broker.start()
    wait_until(lambda: listens(web))
    yield broker
    broker.stop()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.needs_mosquitto
def test_where_the_mqtt_port_is_closed_the_websocket_carries_everything(web_broker):
    heard = Witness(web_broker)
    closed = free_port()
    transport = MqttTransport(f"mqtt://127.0.0.1:{closed} ws://127.0.0.1:{web_broker.web}/mqtt", "device-1")
    transport.connect(WILL, ("dev/down",))
    assert transport.address == f"ws://127.0.0.1:{web_broker.web}/mqtt"
    sent = [(f"up/{i}", os.urandom(48 * 1024)) for i in range(8)]
    for topic, payload in sent:
        transport.publish(Outgoing(topic, payload))
    transport.flush(10)
    down = os.urandom(90_000)
    heard.publish("dev/down", down)
    (received,) = transport.receive(5)
    assert received.payload == down
    transport.ack(received)
    wait_until(lambda: len(heard.seen) >= 9)
    assert [message for message in heard.seen if message[0] != "dev/down"] == sent
    transport.drop()
    wait_until(lambda: ("fl/will", b"offline") in heard.seen)
    heard.close()


@pytest.mark.needs_mosquitto
def test_the_address_that_worked_is_tried_first_and_the_better_one_again_after_six_hours(web_broker):
    now = [0.0]
    with FaultProxy(("127.0.0.1", web_broker.port)) as proxy:
        proxy.refuses = True
        addresses = f"{proxy.url} ws://127.0.0.1:{web_broker.web}/mqtt"
        transport = MqttTransport(addresses, "device-1", timeout_s=5, clock=lambda: now[0] + time.monotonic())
        transport.connect(WILL, ())
        assert transport.address.startswith("ws://")
        proxy.refuses = False
        transport.connect(WILL, ())
        assert transport.address.startswith("ws://") and proxy.connections == 0
        now[0] = 6 * 3600.0
        transport.connect(WILL, ())
        assert transport.address == proxy.url and proxy.connections == 1
        transport.disconnect()


@pytest.mark.needs_mosquitto
@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
def test_over_tls_the_brokers_name_and_authority_are_checked(tmp_path, scheme):
    need_mosquitto()
    ca, certificate, key = make_certificate(tmp_path, "localhost")
    port = free_port()
    websockets = "protocol websockets\n" if scheme == "wss" else ""
    extra = f"listener {port} 127.0.0.1\n{websockets}certfile {certificate}\nkeyfile {key}\n"
    broker = Broker("mosquitto", tmp_path, extra)
    broker.start()
    wait_until(lambda: listens(port))
    heard = Witness(broker)
    try:
        transport = MqttTransport(f"{scheme}://localhost:{port}", "device-1", ca_file=ca, timeout_s=5)
        transport.connect(WILL, ("dev/down",))
        sent = [(f"up/{i}", os.urandom(48 * 1024)) for i in range(4)]
        for topic, payload in sent:
            transport.publish(Outgoing(topic, payload))
        transport.flush(10)
        # More than one TLS record holds: what was read ahead must not wait for the next arrival.
        for i in range(6):
            heard.publish("dev/down", bytes([i]) * 30_000)
        came = []
        while len(came) < 6:
            came += transport.receive(5)
        assert [received.payload[0] for received in came] == list(range(6))
        wait_until(lambda: len(heard.seen) >= 10)
        transport.disconnect()
        with pytest.raises(Unreachable, match=r"(?i)certificate|verify"):
            MqttTransport(f"{scheme}://localhost:{port}", "device-1", timeout_s=5).connect(WILL, ())
        with pytest.raises(Unreachable, match=r"(?i)certificate|mismatch"):
            MqttTransport(f"{scheme}://127.0.0.1:{port}", "device-1", ca_file=ca, timeout_s=5).connect(WILL, ())
    finally:
        heard.close()
        broker.stop()


def test_an_authority_that_is_no_file_lets_nobody_be_believed(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(Unreachable, match="PEM"):
            MqttTransport("mqtts://127.0.0.1:1", "d", ca_file=str(tmp_path / name)).connect(WILL, ())


@pytest.mark.needs_mosquitto
def test_a_process_with_more_open_files_than_select_can_hold_still_hears_its_broker(mosquitto_broker):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        transport = connect(mosquitto_broker)
        sender = connect(mosquitto_broker, (), "sender")
        sender.publish(Outgoing("dev/down", b"task"))
        sender.flush(5)
        (received,) = transport.receive(5)
        assert received.payload == b"task" and max(others) > 1024
        transport.disconnect()
        sender.disconnect()
    finally:
        for each in others:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_idle_transport_has_not_imported_paho():
    code = (
        "import sys; from edge_runtime.adapters.mqtt import MqttTransport; from edge_runtime.link import Link; "
        "MqttTransport('mqtt://127.0.0.1:1', 'd'); print([n for n in ('paho', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
