"""The bytes of a day at rest, counted on the wire: a real agent, mosquitto, and a proxy that counts between them.

The aggregator's part is played: it turns every check-in away with the shortest retry window that an aggregator's
default pace has. What is counted is what the sockets carry, MQTT's headers included, TCP's and IP's not.
"""

import threading
import time
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.broker_process import BrokerProcess
from benchmarks.fault_proxy import FaultProxy
from benchmarks.night_home import POPULATION, NightHome
from cloud_aggregator.config import PaceSettings
from edge_runtime.agent import Agent
from edge_runtime.config import read_settings
from edge_runtime.session import Phase
from edge_runtime.wiring import real_ports
from wire_contract import envelope
from wire_contract.messages import CheckIn, ModelAnnouncement, RetryWindow, TurnedAway, decode_message, encode_message
from wire_contract.topics import DeviceTopic, ModelTopic, build_topic

NIGHT_S: Final = 7 * 3600
STANDS_S: Final = 130.0


class TurnsAway:
    """Answers every check-in on the broker with "no work now"."""

    def __init__(self, port: int, home: NightHome) -> None:
        self._home = home
        self.check_ins = 0
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="aggregator", protocol=mqtt.MQTTv5)
        self._client.on_message = self._answer
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        for track in ("training", "refresh"):
            announced = encode_message(ModelAnnouncement(signed_manifest=home.signed))
            self._client.publish(build_topic(ModelTopic(POPULATION, track)), announced, 1, retain=True)  # type: ignore[arg-type]
        self._client.subscribe(build_topic(DeviceTopic(home.identity.device, "req")), 1)

    def _answer(self, client: mqtt.Client, data: Any, message: mqtt.MQTTMessage) -> None:
        body = envelope.verify(message.payload, "request", self._home.identity.public_key)
        request = decode_message(body, CheckIn)
        self.check_ins += 1
        now, pace = int(time.time()), PaceSettings()
        reply = TurnedAway(
            device=request.device, nonce=request.nonce, reason="enough devices are at work", issued_at=now,
            retry=RetryWindow(earliest=now + pace.minimum_seconds, latest=now + 2 * pace.minimum_seconds),
        )  # fmt: skip
        signed = envelope.sign(self._home.aggregator_key, "task", encode_message(reply))
        client.publish(build_topic(DeviceTopic(request.device, "down/task")), signed, 1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def measure(folder: Path) -> dict[str, Any]:
    """Return the bytes of a cycle, of a standing connection's minute, and of a day."""
    folder.mkdir(parents=True)
    with BrokerProcess("mosquitto", folder / "broker") as broker, FaultProxy(("127.0.0.1", broker.port)) as proxy:
        home = NightHome(folder / "device", broker_url=proxy.url)
        aggregator = TurnsAway(broker.port, home)
        settings = read_settings(home.home)
        ports = real_ports(home.home, settings)
        agent = Agent(home.home, settings, ports)
        agent.examples.add_many(home.text(600).splitlines(), time.time())
        cycles: list[int] = []
        for number in range(3):
            _until_it_may_ask(agent, home)
            before = proxy.bytes_up + proxy.bytes_down
            until, asked = time.monotonic() + 60, aggregator.check_ins
            # Two more turns after the answer: the agent takes it in, and leaves.
            while aggregator.check_ins == asked or agent.state.phase is not Phase.RESTING or ports.transport.connected:
                agent.turn(1.0)
                if time.monotonic() > until:
                    raise SystemExit(f"check-in {number} was not answered: {agent.state.phase}")
            time.sleep(0.3)
            cycles.append(proxy.bytes_up + proxy.bytes_down - before)
        stands = _standing(agent, ports, home, proxy)
        agent.close()
        aggregator.close()
    pace = PaceSettings()
    times = NIGHT_S // pace.minimum_seconds
    return {
        "bytes_day": times * max(cycles), "cycle_bytes": max(cycles), "cycles_a_night": times,
        "shortest_retry_s": pace.minimum_seconds, "night_s": NIGHT_S,
        "standing_bytes_a_minute": stands, "standing_bytes_day": stands * 24 * 60,
    }  # fmt: skip


def _until_it_may_ask(agent: Agent, home: NightHome) -> None:
    """Let the retry window pass: what the session waits for is set to now."""
    home.plug_in()
    state = agent.state
    if state.not_before > time.time():
        from edge_runtime import session
        from edge_runtime.adapters.state_store import StateStore
        from edge_runtime.session_row import SessionRow

        store = StateStore(home.home / "state.db")
        row = SessionRow(store)
        row.load()
        row.put(session.State())
        store.close()
        agent._state = agent._saved = session.State()


def _standing(agent: Agent, ports: Any, home: NightHome, proxy: FaultProxy) -> int:
    """Return the bytes a minute of a connection that stands with nothing to say."""
    from edge_runtime.ports import Outgoing

    topic = build_topic(DeviceTopic(home.identity.device, "state"))
    ports.transport.connect(Outgoing(topic, b"", retain=True), [])
    time.sleep(0.5)
    before, began = proxy.bytes_up + proxy.bytes_down, time.monotonic()
    done = threading.Event()
    while time.monotonic() - began < STANDS_S:
        ports.transport.tend()
        done.wait(0.5)
    count = proxy.bytes_up + proxy.bytes_down - before
    ports.transport.disconnect()
    return round(count * 60 / STANDS_S)
