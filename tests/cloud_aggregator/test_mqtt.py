"""The MQTT connection on real brokers: acknowledged after the commit, grouped, nothing lost without a broker."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloud_aggregator.adapters import mqtt
from cloud_aggregator.adapters.broker import answers_mqtt5, start_broker
from cloud_aggregator.adapters.mqtt import MqttTransport, parse_broker_url
from cloud_aggregator.errors import BrokerUnreachable, InvalidSetting, StorageFailed


@dataclass
class Shelf:
    """An intake of the tests: keeps groups; fails while told so."""

    groups: list = field(default_factory=list)
    failures: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take_group(self, messages):
        with self.changed:
            if self.failures:
                self.failures -= 1
                raise StorageFailed("the disk is full")
            self.groups.append(list(messages))
            self.changed.notify_all()

    def payloads(self):
        return [message.payload for group in self.groups for message in group]

    def wait_for(self, wanted, seconds=20.0):
        with self.changed:
            assert self.changed.wait_for(lambda: wanted <= set(self.payloads()), seconds), len(self.payloads())


class Sender:
    """A plain client of the tests."""

    def __init__(self, url):
        address = parse_broker_url(url)
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="sender", protocol=paho.MQTTv5)
        self.client.max_inflight_messages_set(20)
        self.heard = []
        self.client.on_message = lambda _c, _u, message: self.heard.append(
            (message.topic, message.payload, message.retain)
        )
        self.client.connect(address.host, address.port)
        self.client.loop_start()

    def send(self, count, start=0):
        payloads = [b"message %d" % i for i in range(start, start + count)]
        infos = [self.client.publish(f"fl/v1/dev/{i % 7:032x}/req", p, qos=1) for i, p in enumerate(payloads)]
        for info in infos:
            info.wait_for_publish(20)
        return set(payloads)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def wait_until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def parts(broker):
    shelf, lines = Shelf(), []
    transport = MqttTransport(broker.url, "aggregator-test", say=lines.append)
    transport.start(shelf)
    sender = Sender(broker.url)
    yield transport, shelf, sender, lines
    sender.close()
    transport.close()


def test_messages_are_taken_in_groups_of_at_most_64_updates(parts):
    _, shelf, sender, _ = parts
    shelf.wait_for(sender.send(300))
    assert max(len(group) for group in shelf.groups) <= 128
    assert len(shelf.groups) < 300


def test_what_could_not_be_stored_is_tried_again_and_not_acknowledged_before(parts):
    _, shelf, sender, lines = parts
    shelf.failures = 1
    shelf.wait_for(sender.send(5))
    assert any("could not be stored and are not acknowledged: the disk is full" in line for line in lines)


class Odd(Shelf):
    """An intake of the tests that fails for some messages in a way that nobody foresaw."""

    def take_group(self, messages):
        if any(message.payload.endswith(b"3") for message in messages):
            raise OverflowError("too large")
        super().take_group(messages)


def test_the_intake_outlives_any_failure_and_drops_only_the_message_that_fails(broker):
    shelf, lines = Odd(), []
    transport = MqttTransport(broker.url, "aggregator-test", say=lines.append)
    transport.start(shelf)
    sender = Sender(broker.url)
    sent = sender.send(10)
    shelf.wait_for(sent - {b"message 3"})
    shelf.wait_for(sender.send(1, start=50))
    assert any("cannot be taken in and is dropped: OverflowError('too large')" in line for line in lines)
    assert b"message 3" not in shelf.payloads()
    assert len(shelf.payloads()) == len(set(shelf.payloads())) == 10
    sender.close()
    transport.close()


class RefusingBroker:
    """Speaks just enough MQTT 5 to refuse every publish of its first connection with "not authorized" (0x87)."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self.server.getsockname()[1]}"
        self.connections, self.publishes = [], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection, len(self.connections)), daemon=True).start()

    def _serve(self, connection, number):
        stream = connection.makefile("rb")
        try:
            while head := stream.read(1):
                length, shift = 0, 0
                while True:
                    byte = stream.read(1)[0]
                    length, shift = length | (byte & 127) << shift, shift + 7
                    if byte < 128:
                        break
                self._answer(connection, number, head[0] >> 4, stream.read(length))
        except (OSError, IndexError):
            connection.close()

    def _answer(self, connection, number, kind, body):
        if kind == 1:
            connection.sendall(b"\x20\x03\x00\x00\x00")
        elif kind == 8:
            connection.sendall(b"\x90\x06" + body[:2] + b"\x00\x01\x01\x01")
        elif kind == 3:
            self.publishes += 1
            at = 2 + int.from_bytes(body[:2], "big")
            reason = b"\x87" if number == 1 else b"\x00"
            connection.sendall(b"\x40\x04" + body[at : at + 2] + reason + b"\x00")

    def close(self):
        self.server.close()
        for connection in self.connections:
            connection.close()


def test_a_publish_that_the_broker_refuses_is_not_published_and_goes_out_with_the_next_connection(monkeypatch):
    monkeypatch.setattr(mqtt, "FIRST_BACKOFF_S", 0.05)
    broker, lines, done = RefusingBroker(), [], threading.Event()
    transport = MqttTransport(broker.url, "aggregator-test", say=lines.append)
    transport.start(Shelf())
    transport.publish("fl/v1/dev/00/down/rcpt", b"receipt", retain=False, done=done.set)
    assert transport.flush(20)
    wait_until(lambda: any("the broker refuses the publish" in line for line in lines))
    assert not done.is_set()
    broker.connections[0].shutdown(socket.SHUT_RDWR)
    assert done.wait(20)
    assert broker.publishes == 2
    transport.close()
    broker.close()


class Slow(Shelf):
    """An intake of the tests that stores nothing until it may."""

    def __init__(self):
        super().__init__()
        self.may = threading.Event()
        self.given = 0

    def take_group(self, messages):
        self.given = len(messages)
        assert self.may.wait(60)
        super().take_group(messages)


def test_while_the_disk_is_slow_a_bounded_number_of_messages_is_held_and_none_is_lost(broker):
    shelf, held = Slow(), []
    transport = MqttTransport(broker.url, "aggregator-test")
    transport.start(shelf)
    sender = Sender(broker.url)
    sent = sender.send(900)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        held.append(transport.waiting + shelf.given)
        time.sleep(0.01)
    # The broker has acknowledged all of them to the sender, and has most of them still.
    assert 0 < max(held) <= 256
    shelf.may.set()
    shelf.wait_for(sent)
    sender.close()
    transport.close()


def test_a_message_that_was_not_acknowledged_comes_again_to_the_next_connection(broker):
    lost = threading.Event()

    class Dies:
        def take_group(self, messages):
            lost.set()
            raise StorageFailed("never stored")

    first = MqttTransport(broker.url, "aggregator-test")
    first.start(Dies())
    sender = Sender(broker.url)
    sent = sender.send(3)
    assert lost.wait(10)
    first.close()
    shelf, acknowledged = Shelf(), threading.Event()
    second = MqttTransport(broker.url, "aggregator-test", on_group=acknowledged.set)
    second.start(shelf)
    shelf.wait_for(sent)
    assert acknowledged.wait(10)
    # By the time that this one is there the broker has read the acknowledgements before it.
    shelf.wait_for(sender.send(1, start=50))
    second.close()
    third_shelf, third = Shelf(), MqttTransport(broker.url, "aggregator-test")
    third.start(third_shelf)
    third_shelf.wait_for(sender.send(1, start=100))
    assert not sent & set(third_shelf.payloads())
    third.close()
    sender.close()


def test_retained_announcements_reach_whoever_comes_later(parts):
    transport, _, sender, _ = parts
    done = threading.Event()
    transport.publish("fl/v1/pop/toy/training", b"manifest", retain=True, done=done.set)
    assert done.wait(10)
    sender.client.subscribe("fl/v1/pop/+/training", qos=1)
    wait_until(lambda: sender.heard)
    assert sender.heard[0] == ("fl/v1/pop/toy/training", b"manifest", True)


def test_every_publish_is_acknowledged_though_few_are_in_flight(parts):
    transport, _, _, _ = parts
    done = []
    for i in range(200):
        transport.publish(f"fl/v1/dev/{i:032x}/down/rcpt", b"x" * 400, retain=False, done=lambda i=i: done.append(i))
    assert transport.flush(20)
    assert done == list(range(200))


def test_a_publish_over_the_brokers_limit_is_dropped_with_a_line_and_the_rest_goes_on(parts):
    transport, _, _, lines = parts
    done = []
    transport.publish("fl/v1/dev/00/down/rcpt", bytes(mqtt.MAX_PACKET_BYTES), retain=False, done=lambda: done.append(1))
    transport.publish("fl/v1/dev/00/down/rcpt", b"small", retain=False, done=lambda: done.append(2))
    assert transport.flush(20)
    assert done == [2]
    assert any("over the broker's limit; dropped" in line for line in lines)


class Knocks:
    """Holds a dead broker's port and counts who tries to connect."""

    def __init__(self, port):
        self.server, self.count = socket.create_server(("127.0.0.1", port)), 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.count += 1
            connection.close()

    def close(self):
        # A thread that waits in accept keeps the port until it is woken.
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


def test_a_broker_that_is_gone_for_a_minute_of_retries_loses_nothing(broker_kind, tmp_path, monkeypatch):
    """What a minute's outage means to the transport is how often it has tried in vain, not the wall clock.

    With full jitter under ceilings of 1, 2, 4, 8, 16, 30 s a minute has 7 vain tries in the mean (0.5 + 1 + 2 + 4 + 8 +
    15 + 15 s). Here the backoff is 50 times shorter and the broker stays away until 8 tries have failed: the same path,
    past the point at which the ceiling stops to grow.
    """
    monkeypatch.setattr(mqtt, "FIRST_BACKOFF_S", 1.0 / 50)
    monkeypatch.setattr(mqtt, "LAST_BACKOFF_S", 30.0 / 50)
    first = start_broker("", tmp_path / "broker", say=lambda text: None, prefer=broker_kind)
    shelf, lines = Shelf(), []
    transport = MqttTransport(first.url, "aggregator-test", say=lines.append)
    transport.start(shelf)
    sender = Sender(first.url)
    shelf.wait_for(sender.send(3))
    sender.close()
    first.stop()
    wait_until(lambda: not transport.online)
    done = []
    for i in range(40):
        transport.publish(f"fl/v1/dev/{i:032x}/down/rcpt", b"late", retain=True, done=lambda i=i: done.append(i))
    assert not transport.flush(0.3)
    assert done == []
    port = parse_broker_url(first.url).port
    knocks = Knocks(port)
    wait_until(lambda: knocks.count >= 8)
    assert done == []
    assert not transport.online
    knocks.close()
    second = start_broker("", tmp_path / "broker", say=lambda text: None, prefer=broker_kind, port=port)
    assert transport.flush(30)
    assert sorted(done) == list(range(40))
    sender = Sender(second.url)
    shelf.wait_for(sender.send(3, start=50))
    sender.close()
    transport.close()
    second.stop()
    assert any("is gone" in line for line in lines)
    assert any("again" in line for line in lines)


def test_a_broker_that_is_not_there_is_unreachable_by_name():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{port}"):
        MqttTransport(f"mqtt://127.0.0.1:{port}", "x").start(Shelf())
    assert not answers_mqtt5("127.0.0.1", port)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://h", "h", 1883, False),
        ("mqtts://h", "h", 8883, True),
        ("mqtt://u:p@h:99/", "h", 99, False),
        ("mqtt://[::1]:1884", "::1", 1884, False),
    ],
)
def test_a_broker_url_names_host_port_and_tls(url, host, port, tls):
    address = parse_broker_url(url)
    assert (address.host, address.port, address.tls) == (host, port, tls)


@pytest.mark.parametrize("url", ["", "http://h", "mqtt://", "mqtt://h:99999", "h:1883", "mqtt://h/topic"])
def test_what_is_no_broker_url_is_refused(url):
    with pytest.raises(InvalidSetting, match="a broker URL is"):
        parse_broker_url(url)


def test_an_http_server_is_not_taken_for_a_broker():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400\r\n"), daemon=True).start()
        assert not answers_mqtt5("127.0.0.1", server.getsockname()[1])


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_stop_ends_the_broker_and_frees_its_port(broker):
    address = parse_broker_url(broker.url)
    assert answers_mqtt5(address.host, address.port)
    broker.stop()
    assert not alive(broker.pid)
    assert not answers_mqtt5(address.host, address.port)
    broker.stop()


STARTER = """
import sys, time
from pathlib import Path
from cloud_aggregator.adapters.broker import start_broker
handle = start_broker("", Path(sys.argv[1]), say=lambda text: None, prefer=sys.argv[2])
print(handle.url, handle.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_broker_outlives_whoever_started_it(broker_kind, tmp_path, number):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), broker_kind], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        # A suite that runs in a shell's background is born with Ctrl-C ignored, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    url, pid = starter.stdout.readline().split()
    address = parse_broker_url(url.decode())
    assert answers_mqtt5(address.host, address.port)
    starter.send_signal(number)
    starter.wait(10)
    starter.stdout.close()
    wait_until(lambda: not answers_mqtt5(address.host, address.port), 10)
    wait_until(lambda: not alive(int(pid)), 10)


def test_a_broker_given_by_url_is_used_and_never_stopped(broker):
    given = start_broker(broker.url, None, say=lambda text: None)
    assert (given.name, given.ours, given.url) == ("given", False, broker.url)
    given.stop()
    address = parse_broker_url(broker.url)
    assert answers_mqtt5(address.host, address.port)


def test_iotcore_is_announced_as_insecure(tmp_path):
    lines = []
    handle = start_broker("", tmp_path, say=lines.append, prefer="iotcore")
    handle.stop()
    assert "INSECURE EMBEDDED BROKER" in lines[0]
    assert (handle.insecure, handle.persistence) == (True, False)
