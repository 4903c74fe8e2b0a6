"""Claim: a link that breaks, crawls or loses its broker costs a device little, and an update is still counted once.

- cut: an update of 1.4 MB over a link that is cut whenever 600 kB have gone up. Ours is the device's own code (session,
  outbox, link, transport) against a real aggregator process, status answers included; beside it, in the same run and
  over the same proxy, paho-mqtt 2.2 alone: the whole update in one PUBLISH, and all its chunks handed to paho at once
  (its own window 4, its own reconnect). `bytes_ratio` is bytes on the wire upwards / bytes of the update;
- slow: the same update over 100 kB/s with the product's keepalive of 60 s, `disconnects_100kBps`; and, ours and paho's
  single PUBLISH side by side with a keepalive of 5 s, which makes the difference that 60 s hide on so short an update;
  and a fifth of it over 5 kB/s;
- kills: real agents (training the tests' tiny model) send 400 updates to a real aggregator process, while SIGKILL ends
  the aggregator five times and the broker three times: mosquitto with its default autosave (what came since the last
  half hour is gone), and iotcore (everything is gone). `applied_once`: updates that the aggregator's database holds
  accepted, once, and used by the one step that they make; the step's sum is made again from the records (`round
  replay`) and compared bit for bit. The devices' clocks run ten times as fast as the aggregator's, so that waits of
  minutes take seconds;
- crowd: 1,000 real transports in one process, each connects, subscribes, publishes 2 x 20 kB at QoS 1 and receives one
  message; CPU and memory of the process a client.

Loopback, no TLS, one machine: the proxy's cuts and rates are exact, what a real network adds is not measured.

Run: python -m benchmarks.weak_link [--part cut slow kills crowd] [--rounds 3] [--updates 400] [--clients 1000]
The last line is one JSON object. Takes about eight minutes.
"""

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import paho.mqtt.client as paho

from benchmarks import killed_fleet, lone_device
from benchmarks.broker_process import BrokerProcess
from benchmarks.fault_proxy import FaultProxy

UPDATE_BYTES = 1_400_000
CUT_BYTES = 600_000
PARTS = ("cut", "slow", "kills", "crowd")
NAIVE_S = 20.0
CHUNK_BYTES = 32_768
CROWD_S = 300.0


class NaivePaho:
    """paho-mqtt as its documentation shows it: its thread, its window, its reconnect."""

    def __init__(self, port: int, client_id: str, keepalive: int) -> None:
        self.disconnects = 0
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        self.client.max_inflight_messages_set(4)
        # Its own first wait is a second, then doubled: shortened, so that its loss is bytes and not patience.
        self.client.reconnect_delay_set(1, 2)
        self.client.on_disconnect = self._on_disconnect
        self.client.connect("127.0.0.1", port, keepalive)
        self.client.loop_start()

    def _on_disconnect(self, *_: object) -> None:
        self.disconnects += 1

    def send(self, pieces: list[bytes], limit_s: float) -> bool:
        """Publish all pieces at once; return whether all were acknowledged in time."""
        infos = [self.client.publish(f"naive/{number}", piece, qos=1) for number, piece in enumerate(pieces)]
        end = time.monotonic() + limit_s
        while time.monotonic() < end and not all(info.is_published() for info in infos):
            time.sleep(0.02)
        return all(info.is_published() for info in infos)

    def close(self) -> None:
        """End its thread and its connection."""
        self.client.disconnect()
        self.client.loop_stop()


def naive(broker: BrokerProcess, pieces: list[bytes], limit_s: float, keepalive: int = 60, **faults: float) -> dict:
    """Let paho alone send; return what it cost."""
    with FaultProxy(("127.0.0.1", broker.port), **faults) as proxy:
        client = NaivePaho(proxy.port, f"naive-{random.random()}", keepalive)
        began = time.monotonic()
        done = client.send(pieces, limit_s)
        used, sent = time.monotonic() - began, proxy.bytes_up
        disconnects = client.disconnects
        proxy.refuses = True
        proxy.break_all()
        client.close()
    total = sum(map(len, pieces))
    return {
        "done": done,
        "bytes_ratio": round(sent / total, 2),
        "disconnects": disconnects,
        "seconds": round(used, 1),
    }


def chunked(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def cut(folder: Path, rng: random.Random, rounds: int) -> dict:
    """Take turns; the last round lets paho try the single PUBLISH, too, which only its time limit ends."""
    rows: dict = {}
    with BrokerProcess("mosquitto", folder / "broker") as broker:
        for number in range(rounds):
            data = rng.randbytes(UPDATE_BYTES)
            rows[f"ours_{number}"] = lone_device.upload(folder / str(number), broker, data, cut_after_bytes=CUT_BYTES)
            pieces = chunked(data, CHUNK_BYTES)
            rows[f"paho_all_chunks_at_once_{number}"] = naive(broker, pieces, NAIVE_S, cut_after_bytes=CUT_BYTES)
        rows["paho_single_publish"] = naive(broker, [data], NAIVE_S, cut_after_bytes=CUT_BYTES)
    return rows


def ratios(rows: dict, kind: str) -> list[float]:
    return [row["bytes_ratio"] for name, row in rows.items() if name.startswith(kind)]


def slow(folder: Path, rng: random.Random) -> dict:
    data = rng.randbytes(UPDATE_BYTES)
    with BrokerProcess("mosquitto", folder / "broker") as broker:
        return {
            "ours_100kBps": lone_device.upload(folder / "a", broker, data, rate=100_000.0),
            "ours_100kBps_keepalive_5": lone_device.upload(folder / "b", broker, data, rate=100_000.0, keepalive_s=5),
            "paho_single_100kBps_keepalive_5": naive(broker, [data], 30.0, keepalive=5, rate=100_000.0),
            "ours_5kBps": lone_device.upload(folder / "c", broker, data[: UPDATE_BYTES // 5], rate=5_000.0),
        }


def crowd(clients: int) -> dict:
    """In a process of its own: memory that another part has used and let go would be used again, and not be seen."""
    command = [sys.executable, "-m", "benchmarks.transport_crowd", "--clients", str(clients)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CROWD_S, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, rows: dict) -> None:
    print(f"\n{name}")
    for key, value in rows.items():
        print(f"  {key:34s} {json.dumps(value) if isinstance(value, dict) else value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=3, help="of the link that is cut")
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--devices", type=int, default=40)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    # What is started ends with us, also when we are told to end.
    signal.signal(signal.SIGTERM, lambda number, frame: (_ for _ in ()).throw(SystemExit(143)))
    rng = random.Random(asked.seed)
    report: dict = {"benchmark": "weak_link", "seed": asked.seed}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        parts: dict[str, Callable[[], dict]] = {
            "cut": lambda: cut(folder / "cut", rng, asked.rounds),
            "slow": lambda: slow(folder / "slow", rng),
            "kills": lambda: {
                kind: killed_fleet.play(folder / kind, kind, asked.updates, asked.devices, asked.seed)
                for kind in ("mosquitto", "iotcore")
            },
            "crowd": lambda: crowd(asked.clients),
        }
        for name in asked.part:
            report[name] = parts[name]()
            show(name, report[name])
    if "cut" in report:
        report["bytes_ratio"] = max(ratios(report["cut"], "ours"))
        report["bytes_ratio_is"] = "the worst of the rounds, check-in, requests and reports included"
        report["naive_bytes_ratio"] = max(ratios(report["cut"], "paho_all"))
        report["naive_single_publish_done"] = report["cut"]["paho_single_publish"]["done"]
    if "slow" in report:
        report["disconnects_100kBps"] = report["slow"]["ours_100kBps"]["disconnects"]
        report["naive_disconnects_100kBps_keepalive_5"] = report["slow"]["paho_single_100kBps_keepalive_5"][
            "disconnects"
        ]
    if "kills" in report:
        report["applied_once"] = min(each["applied_once"] for each in report["kills"].values())
        report["updates"] = asked.updates
    if "crowd" in report:
        report["transports_in_one_process"] = report["crowd"]["received"]
    report["settings"] = {
        "update_bytes": UPDATE_BYTES,
        "cut_bytes": CUT_BYTES,
        "chunk_bytes": CHUNK_BYTES,
        "window": "2-4",
    }
    report["machine"] = platform.machine()
    report["versions"] = {name: version(name) for name in ("paho-mqtt", "iotcore")}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
