"""A real aggregator in a process of its own, for benchmarks and tests that kill it: `cloud-aggregator serve` as it is.

with AggregatorProcess(folder, bundle, population_toml, port=8080) as aggregator:
    enrolled = aggregator.enrol(home, token, population)
    aggregator.kill()       # SIGKILL, by its own pid
    aggregator.start()      # on the same port, over what the dead one left
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from cloud_aggregator.operator_client import ADDRESS_FILE, find_service
from edge_runtime import identity
from edge_runtime.adapters import enrolment
from wire_contract.messages import Enrolled

READY_S = 60.0


class AggregatorProcess:
    """`folder` takes the data directory. `port` is HTTP's, and stays; `broker_url` "" lets it start a broker."""

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        population_settings: str,
        *,
        port: int,
        broker_url: str = "",
        settings: str = "",
    ) -> None:
        self.data = folder / "data"
        self.port = port
        self.broker_url = broker_url
        self.process: subprocess.Popen[str] | None = None
        self.said: list[str] = []
        self.kills = 0
        folder.mkdir(parents=True, exist_ok=True)
        wanted = folder / "population.toml"
        wanted.write_text(population_settings)
        self.run("init")
        (self.data / "aggregator.toml").write_text(settings)
        self.run("population", "import", str(bundle), "--settings", str(wanted))
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self, *words: str) -> str:
        """Run one `cloud-aggregator` command over the data directory; return what it printed."""
        command = [sys.executable, "-m", "cloud_aggregator.cli", *words, "--data", str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=READY_S, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"cloud-aggregator {' '.join(words)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def start(self) -> None:
        """Start it and wait until devices can come."""
        (self.data / ADDRESS_FILE).unlink(missing_ok=True)
        command = [sys.executable, "-m", "cloud_aggregator.cli", "serve", "--data", str(self.data)]
        command += ["--port", str(self.port), *(["--broker", self.broker_url] if self.broker_url else [])]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        deadline = time.monotonic() + READY_S
        while not (self.data / ADDRESS_FILE).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the aggregator did not start: {self.said[-5:]}")
            time.sleep(0.05)

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.said.append(line.rstrip())

    @property
    def url(self) -> str:
        """Where its HTTP side is."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it as a power cut would end the process."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.kills += 1

    def stop(self) -> None:
        """Let it end by itself."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tokens(self, count: int) -> Iterator[str]:
        """Yield enrolment tokens."""
        service = find_service(self.data)
        for _ in range(count):
            body = {"population": None, "label": "", "uses": 1, "valid_seconds": 3600}
            yield service.send("POST", "/tokens", body)["token"]

    def enrol(self, home: Path, token: str, population: str) -> Enrolled:
        """Enrol a new device in `home`."""
        home.mkdir(parents=True, mode=0o700, exist_ok=True)
        who = identity.load_or_make(home, identity.system_entropy)
        enrolled, signed = enrolment.enrol(self.url, who, token=token, population=population, label="")
        identity.save_enrolled(home, signed)
        return enrolled
