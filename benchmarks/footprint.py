"""Claim: a person does not notice the agent: little memory, no CPU when the cable is pulled, next to no bytes at rest.

- peak: `edge-runtime run` trains the reference model (1,422,250 parameters) in its child process, from the person's
  text to the queued update, with a stop, its checkpoint and the resumption in between; beside it Keras does as many
  steps of the same network and batch size in a process of its own. Memory is the sum of the resident sets of agent and
  child (pages that both share count twice: against us), sampled every 50 ms; `peak_ratio` is the larger of the exact
  and the sampled one;
- idle: the same command on an enrolled home by day, unplugged, when it has been at rest for two minutes; beside it
  Flower's SuperNode and NVFlare's client, each with the processes it starts, where their environments are there;
- cold start: CPU seconds of that command until it says what it waits for;
- stop: the charger's file says unplugged, at random moments of a training. `stop_ms` is until the child trains no more:
  gone, or stopped by the supervisor, after which it may only write its checkpoint; `last_tick_ms` is until it is gone,
  `cpu_after_ms` what it used in between. Also with four busy processes beside it;
- bytes: a day at rest over a counting proxy to mosquitto: one check-in cycle (turned away) is counted, and a minute of
  a connection that stands; the day is as many cycles as the shortest retry windows leave room for in a night.

Run: python -m benchmarks.footprint [--stops 110] [--starved-stops 50], twenty minutes, most of them waiting.
The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks import idle_bytes, idle_peers
from benchmarks.night_home import NightHome, bundle
from benchmarks.process_watch import Memory, Peak, cpu_of, memory_of, tree_of
from edge_runtime.adapters.child_trainer import ChildTrainer
from edge_runtime.agent import Agent
from edge_runtime.config import read_settings
from edge_runtime.running import REST_AFTER_S, RESTING_S, WATCH_S
from edge_runtime.session import Phase
from edge_runtime.wiring import real_ports
from wire_contract.messages import Plan

STEPS: Final = 64
WORDS: Final = 1400
PATIENCE_S: Final = 600.0
SPIN: Final = "while True: pass"
KERAS: Final = """\
import sys
import numpy as np
from model_export.quiet import quiet
with quiet():
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras
    from model_export.keras_network import NextWordModel
    from model_export.network import PRESETS, initial_tensors
    rng = np.random.Generator(np.random.PCG64(1))
    size = PRESETS["reference"]
    model = NextWordModel(size)
    model.load(initial_tensors(size, rng))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss, jit_compile=False)
    ids = (np.exp(rng.random((16, 21)) * np.log(size.words)) - 1).astype(np.int32)
    for _ in range(int(sys.argv[1])):
        model.train_on_batch(ids[:, :-1], ids[:, 1:])
"""


def device(*words: str) -> list[str]:
    return [sys.executable, "-m", "edge_runtime.cli", *words]


def add_text(home: NightHome) -> None:
    command = device("add", "-", "--home", str(home.home), "--json")
    subprocess.run(command, input=home.text(WORDS), text=True, check=True, capture_output=True)


def run_agent(home: NightHome) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        device("run", "--home", str(home.home)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def end(process: "subprocess.Popen[Any]") -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def drain(process: "subprocess.Popen[str]") -> None:
    """Keep its standard error from filling up."""
    assert process.stderr is not None
    threading.Thread(target=process.stderr.read, daemon=True).start()


def night_peak(folder: Path, signature: str) -> Peak:
    """Train one night in the real command; return the peak of the agent and its child."""
    home = NightHome(folder)
    add_text(home)
    # 70 rows make five batches an epoch.
    home.arm(Plan(signature=signature, rows=80, epochs=-(-STEPS // 5), learning_rate=0.1), now=int(time.time()))
    process = run_agent(home)
    drain(process)
    peak = Peak(process.pid)
    until = time.monotonic() + PATIENCE_S
    if signature == "train":
        stop_once(home, process.pid, until)
    while home.session().phase is Phase.TRAINING:
        if process.poll() is not None or time.monotonic() > until:
            end(process)
            raise SystemExit("the night did not end in an update")
        time.sleep(0.2)
    end(process)
    return peak.close()


def stop_once(home: NightHome, agent: int, until: float) -> None:
    """Pull the cable in the middle, so that a checkpoint is written and read; return when the child is gone."""
    while sum(map(cpu_of, tree_of(agent)[1:])) < 0.9 and time.monotonic() < until:
        time.sleep(0.05)
    home.unplug()
    while len(tree_of(agent)) > 1 and time.monotonic() < until:
        time.sleep(0.05)
    home.plug_in()


def keras_peak() -> Peak:
    process = subprocess.Popen([sys.executable, "-c", KERAS, str(STEPS)], stdout=subprocess.DEVNULL)
    peak = Peak(process.pid)
    if process.wait(PATIENCE_S):
        raise SystemExit("Keras did not train")
    return peak.close()


def cold_start(folder: Path) -> tuple[float, Memory]:
    """Return CPU seconds until the agent says what it waits for, and its memory then."""
    home = NightHome(folder)
    process = run_agent(home)
    assert process.stderr is not None
    said = process.stderr.readline()
    cpu_s = cpu_of(process.pid)
    drain(process)
    time.sleep(2)
    memory = memory_of(process.pid)
    end(process)
    if not said or memory is None:
        raise SystemExit("the agent said nothing")
    return cpu_s, memory


def at_rest(folder: Path) -> Memory:
    """Return the memory of the command by day: unplugged, and so long at rest that it has started itself anew."""
    home = NightHome(folder)
    add_text(home)
    home.unplug()
    process = run_agent(home)
    drain(process)
    time.sleep(REST_AFTER_S + 2 * RESTING_S + 10)
    memory, alone = memory_of(process.pid), len(tree_of(process.pid)) == 1
    end(process)
    if memory is None or not alone:
        raise SystemExit("the agent is not one process at rest")
    return memory


class Busy:
    """Processes that take all the CPU they get, while `on`."""

    def __init__(self, count: int) -> None:
        self._processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
        self.off()

    def on(self) -> None:
        self._tell(signal.SIGCONT)

    def off(self) -> None:
        self._tell(signal.SIGSTOP)

    def _tell(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def stops(folder: Path, count: int, busy: int, seed: int) -> list[dict[str, Any]]:
    """Pull the cable `count` times while the child trains; return what each stop took."""
    home, rng = NightHome(folder), random.Random(seed)
    add_text(home)
    settings = read_settings(home.home)
    ports = real_ports(home.home, settings)
    trainer = ports.trainer
    assert isinstance(trainer, ChildTrainer)
    spinners = Busy(busy)
    agent = Agent(home.home, settings, ports)
    found: list[dict[str, Any]] = []
    number = 0
    try:
        while len(found) < count:
            if agent.state.phase is not Phase.TRAINING:
                agent.abandon()
                number += 1
                signature = "train" if number % 2 else "train_sampled"
                plan = Plan(signature=signature, rows=80, epochs=100, learning_rate=0.01)
                home.arm(plan, now=int(time.time()), number=number)
                agent = Agent(home.home, settings, ports)
            made = one_stop(home, agent, trainer, spinners, rng)
            if made is None:
                time.sleep(WATCH_S)
            else:
                found.append(made)
                print(f"\r{len(found)} of {count} stops", end="", file=sys.stderr)
    finally:
        spinners.close()
        agent.close()
        print(file=sys.stderr)
    return found


def one_stop(
    home: NightHome, agent: Agent, trainer: ChildTrainer, spinners: Busy, rng: random.Random
) -> dict[str, Any] | None:
    home.plug_in()
    agent.turn()
    child, until = trainer.process, time.monotonic() + PATIENCE_S
    # Well into its steps: what it does at the start, it does not do for the person's machine to notice.
    while child is not None and cpu_of(child) < 0.7 and agent.works and time.monotonic() < until:
        time.sleep(WATCH_S)
        agent.watch()
        if agent.work_is_over():
            agent.turn()
    if child is None or not agent.works:
        return None
    before = trainer.last_stop
    spinners.on()
    flip: list[float] = []

    def pull() -> None:
        home.unplug()
        flip.append(time.monotonic())

    timer = threading.Timer(0.3 + rng.random() * 0.3, pull)
    timer.start()
    # As `edge-runtime run` does.
    while agent.works:
        time.sleep(WATCH_S)
        agent.watch()
        if agent.work_is_over():
            agent.turn()
    timer.join()
    until = time.monotonic() + 5
    while trainer.last_stop is before and time.monotonic() < until:
        time.sleep(0.005)
    spinners.off()
    report = trainer.last_stop
    if report is None or report is before:
        return None
    return {
        "stop_ms": 1e3 * (report.asked_at + report.trained_s - flip[0]),
        "last_tick_ms": 1e3 * (report.asked_at + report.gone_s - flip[0]),
        "cpu_after_ms": 1e3 * report.cpu_s, "starved": report.starved, "killed": report.killed,
    }  # fmt: skip


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"stops": len(found)}
    for name in ("stop_ms", "last_tick_ms", "cpu_after_ms"):
        values = [each[name] for each in found]
        made[f"{name}_p50"], made[f"{name}_p99"], made[f"{name}_max"] = (
            percentile(values, 0.5), percentile(values, 0.99), round(max(values), 1),
        )  # fmt: skip
    made["taken_by_the_kernel"] = sum(each["starved"] for each in found)
    made["killed"] = sum(each["killed"] for each in found)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=110)
    parser.add_argument("--starved-stops", type=int, default=50, help="with four busy processes beside the child")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-peers", action="store_true")
    asked = parser.parse_args()
    bundle()
    report: dict[str, Any] = {"benchmark": "footprint", "seed": asked.seed}
    with tempfile.TemporaryDirectory(prefix="footprint-") as name:
        folder = Path(name)
        exact, sampled = night_peak(folder / "exact", "train"), night_peak(folder / "sampled", "train_sampled")
        keras = keras_peak()
        starts = [cold_start(folder / f"cold{number}") for number in range(5)]
        agent = max((memory for _, memory in starts), key=lambda each: each.rss_mb)
        idle = at_rest(folder / "rest")
        quiet = summary(stops(folder / "stops", asked.stops, 0, asked.seed))
        starved = summary(stops(folder / "starved", asked.starved_stops, 4, asked.seed + 1))
        day = idle_bytes.measure(folder / "bytes")
    peers = {} if asked.no_peers else idle_peers.measure()
    ratios = {"exact": exact.rss_mb / keras.rss_mb, "sampled": sampled.rss_mb / keras.rss_mb}
    print(f"{'memory, MB':<44}{'RSS':>8}{'PSS':>8}{'processes':>11}{'/ Keras':>9}")
    for label, peak in (("a night, exact softmax", exact), ("a night, sampled softmax", sampled), ("Keras", keras)):
        ratio = peak.rss_mb / keras.rss_mb
        print(f"{label:<44}{peak.rss_mb:>8.1f}{peak.pss_mb:>8.1f}{peak.processes:>11}{ratio:>9.3f}")
    for label, memory in (("the agent at rest", idle), ("the agent between two turns of a night", agent)):
        print(f"{label:<44}{memory.rss_mb:>8.1f}{memory.pss_mb:>8.1f}{1:>11}")
    for label, peer in peers.items():
        if isinstance(peer, dict):
            print(f"{label + ' at rest':<44}{peer['rss_mb']:>8.1f}{peer['pss_mb']:>8.1f}{peer['processes']:>11}")
        else:
            print(f"{label + ' at rest':<44}{peer}")
    cold = max(cpu_s for cpu_s, _ in starts)
    print(f"cold start, the slowest of {len(starts)}: {cold:.2f} s of CPU")
    for label, made in (("stops", quiet), ("stops beside four busy processes", starved)):
        print(f"{label}: " + ", ".join(f"{key} {value}" for key, value in made.items()))
    print("a day at rest: " + ", ".join(f"{key} {value}" for key, value in day.items()))
    report |= {
        "peak_ratio": round(max(ratios.values()), 3), "peak_ratio_exact": round(ratios["exact"], 3),
        "peak_ratio_sampled": round(ratios["sampled"], 3), "peak_mb_exact": round(exact.rss_mb, 1),
        "peak_mb_sampled": round(sampled.rss_mb, 1), "peak_mb_keras": round(keras.rss_mb, 1),
        "peak_pss_mb": [round(each.pss_mb, 1) for each in (exact, sampled, keras)], "memory": "RSS, agent + child",
        "idle_mb": round(idle.rss_mb, 1), "idle_pss_mb": round(idle.pss_mb, 1),
        "agent_mb": round(agent.rss_mb, 1), "agent_pss_mb": round(agent.pss_mb, 1), "peers": peers,
        "cold_start_cpu_s": round(cold, 2), "stop_ms_p99": max(quiet["stop_ms_p99"], starved["stop_ms_p99"]),
        "quiet": quiet, "starved": starved, "idle_bytes_day": day["bytes_day"], "day": day, "steps": STEPS,
        "machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version(),
        "versions": {each: version(each) for each in ("ai-edge-litert", "tensorflow", "numpy", "msgspec", "paho-mqtt")},
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
