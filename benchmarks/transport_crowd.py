"""Many real transports in one process: each connects, subscribes, publishes 2 x 20 kB at QoS 1 and receives a message.

Run by `benchmarks.weak_link` in a process of its own, so that memory that was used before and let go is not counted as
none: python -m benchmarks.transport_crowd [--clients 1000]. The last line is one JSON object.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.broker_process import BrokerProcess
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.ports import Outgoing

PAYLOAD_BYTES = 20_000


def crowd(folder: Path, clients: int) -> dict:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * clients + 200)), hard))
    payload = random.Random(1).randbytes(PAYLOAD_BYTES)
    with BrokerProcess("mosquitto", folder / "broker") as broker:
        sender = MqttTransport(broker.url, "sender")
        sender.connect(Outgoing("will/sender", b""), ())
        memory, cpu, began = resident_kb(), time.process_time(), time.monotonic()
        transports = [MqttTransport(broker.url, f"client-{number}") for number in range(clients)]
        for number, transport in enumerate(transports):
            transport.connect(Outgoing(f"will/{number}", b""), (f"down/{number}",))
        connected = resident_kb()
        for number, transport in enumerate(transports):
            for place in range(2):
                transport.publish(Outgoing(f"up/{number}/{place}", payload))
        for transport in transports:
            transport.flush(30)
        for number in range(clients):
            sender.publish(Outgoing(f"down/{number}", b"task"))
        sender.flush(30)
        received = 0
        for transport in transports:
            for message in transport.receive(10):
                transport.ack(message)
                received += 1
        used = time.process_time() - cpu
        report = {
            "clients": clients,
            "received": received,
            "connected": sum(transport.connected for transport in transports),
            "seconds": round(time.monotonic() - began, 1),
            "cpu_ms_a_client": round(1e3 * used / clients, 2),
            "kb_a_client_connected": round((connected - memory) / clients, 1),
            "kb_a_client_after": round((resident_kb() - memory) / clients, 1),
            "rss_mb": round(resident_kb() / 1024, 1),
        }
        for transport in transports:
            transport.disconnect()
        sender.disconnect()
    return report


def resident_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        report = crowd(Path(made), asked.clients)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
