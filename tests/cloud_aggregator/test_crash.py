"""Killed with -9 between commit and acknowledgement, or between commit and publishing: counted once, nothing lost."""

import subprocess
import sys
import threading
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloud_aggregator.adapters.mqtt import MqttTransport, parse_broker_url
from tests.cloud_aggregator.fleet import Aggregator, phones, update_id_of
from wire_contract import envelope
from wire_contract.messages import Receipt, decode_message
from wire_contract.topics import DeviceTopic, build_topic

# A real service on a real broker that kills itself at a point that the test names; no part of the product knows of it.
VICTIM = """
import os, signal, sys, time
from pathlib import Path
from cloud_aggregator.adapters.blobs import FileBlobs
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.adapters.key_files import load_keys
from cloud_aggregator.adapters.mqtt import MqttTransport
from cloud_aggregator.service import Service
from tests.cloud_aggregator.fleet import NOW, SetClock

folder, url, point = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

class Intake:
    def __init__(self, service):
        self.service = service
    def take_group(self, messages):
        self.service.take_group(messages)
        if point == "before-ack" and any("/up/" in message.topic for message in messages):
            os.kill(os.getpid(), signal.SIGKILL)

class Wire:
    def __init__(self, transport):
        self.transport = transport
    def publish(self, topic, payload, *, retain, done=None):
        if point == "before-publish" and topic.endswith("rcpt"):
            os.kill(os.getpid(), signal.SIGKILL)
        self.transport.publish(topic, payload, retain=retain, done=done)

transport = MqttTransport(url, "aggregator-crash")
service = Service(SqlDatabase.in_folder(folder), FileBlobs(folder / "blobs"), load_keys(folder), Wire(transport),
                  SetClock(NOW), entropy=os.urandom)
transport.start(Intake(service))
service.start()
print("ready", flush=True)
while True:
    service.turn(NOW)
    time.sleep(0.01)
"""


class Listener:
    """What the devices of the test hear."""

    def __init__(self, url):
        address = parse_broker_url(url)
        self.receipts, self.lock = [], threading.Lock()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="devices", protocol=paho.MQTTv5)
        self.client.on_message = self._hear
        self.client.connect(address.host, address.port)
        self.client.subscribe("fl/v1/dev/+/down/rcpt", qos=1)
        self.client.loop_start()

    def _hear(self, _client, _data, message):
        with self.lock:
            self.receipts.append((message.topic, message.payload))

    def verdicts(self, phone, key):
        topic = build_topic(DeviceTopic(phone.id, "down/rcpt"))
        with self.lock:
            heard = [payload for at, payload in self.receipts if at == topic]
        return [decode_message(envelope.verify(payload, "receipt", key), Receipt).verdict for payload in heard]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def start(folder, url, point):
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(folder), url, point], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert victim.stdout.readline() == b"ready\n", victim.stderr.read().decode()
    return victim


@pytest.mark.parametrize("point", ["before-ack", "before-publish"])
def test_an_aggregator_killed_after_its_commit_counts_every_update_once(broker, tmp_path, point):
    folder = tmp_path / "data"
    aggregator = Aggregator(folder).found()
    fleet = phones(aggregator, 4)
    updates = {phone: phone.update(phone.lease()) for phone in fleet}
    listener = Listener(broker.url)
    # The session must be there before the first message, as it is for any aggregator that ran before.
    MqttTransportOnce(broker.url)
    victim = start(folder, broker.url, point)
    try:
        for phone in fleet:
            for message in updates[phone]:
                listener.client.publish(message.topic, message.payload, qos=1).wait_for_publish(10)
        assert victim.wait(30) == -9
    finally:
        victim.kill()
        victim.communicate()
    survivor = start(folder, broker.url, "never")
    try:
        end = time.monotonic() + 30
        while not all(listener.verdicts(phone, aggregator.keys.public) for phone in fleet):
            assert time.monotonic() < end, aggregator.manifest()
            for phone in fleet:
                # A device whose receipt does not come asks, and sends what is missing.
                if not listener.verdicts(phone, aggregator.keys.public):
                    for message in updates[phone]:
                        listener.client.publish(message.topic, message.payload, qos=1).wait_for_publish(10)
            time.sleep(0.2)
        for phone in fleet:
            assert set(listener.verdicts(phone, aggregator.keys.public)) <= {"accepted", "duplicate"}
    finally:
        survivor.kill()
        survivor.communicate()
        listener.close()
    with aggregator.database.reading() as records:
        task = records.populations()[0].task
        assert [row.version for row in records.versions("toy")] == [2, 1]
        used = records.updates_of_version(task, 2)
        assert sorted(row.update_id for row in used) == sorted(update_id_of(messages) for messages in updates.values())
        assert records.updates_of_version(task, None) == []
    # The same four updates without any crash give the same file.
    calm = Aggregator(tmp_path / "calm").found()
    for phone in phones(calm, 4):
        calm.take(*phone.update(phone.lease()))
    calm.turn()
    assert calm.manifest().sha256 == aggregator.manifest().sha256


class MqttTransportOnce:
    """Makes the aggregator's session at the broker."""

    def __init__(self, url):
        transport = MqttTransport(url, "aggregator-crash")
        transport.start(self)
        transport.close()

    def take_group(self, messages):
        raise AssertionError("nothing was sent yet")
