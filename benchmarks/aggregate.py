"""Claim: one core turns compressed updates into an exact sum faster than peers add up arrays that they already hold.

Ours is the whole way from the wire's bytes: zstd, LEB128, dequantization, weight, scatter into int64 fixed point. The
peers get whole float32 arrays in memory and only weigh and add them: their transport and decoding are free here.

- ours (numba) and ours (numpy): `Kernel.fold` of the two kernels; `admission` adds what a verdict needs (decode to a
  vector, its norm, fold in place), numba;
- numpy dense: `sums += weight * delta` in float32, the simplest sum of arrays;
- flower: flwr 1.41 `serverapp.strategy` `aggregate_arrayrecords`, and its older `strategy.aggregate.aggregate`;
- nvflare: nvflare 2.9 `WeightedAggregationHelper`.

Round-robin rounds: in each, every engine sums the same number of updates, >= 12 different ones over and over, and
measures its own process CPU time; peers run in their own environments and wait while another works. A round's ratio is
peer / ours in that round; medians and 10th to 90th percentiles over rounds, and min/min.

Then: the peak memory of a process that folds 10 .. 10^6 updates (VmHWM), each sum checked against count x entry; and
whether sums are bitwise equal over random orders, 1, 4 and 64 shards, and both kernels.

The updates are real ones if `.cache/bench/deltas.npz` is there (key `deltas`, float32 [updates, n]), else synthetic.

Run: python -m benchmarks.aggregate [--rounds 15] [--updates 240] [--memory 10,1000,100000,1000000] [--seed 1]
The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_environments import CACHE, ROOT, python_of
from benchmarks.synthetic_deltas import PARAMETERS, synthetic_delta
from cloud_aggregator.aggregation_kernel import Kernel, NumpyKernel, compiled_kernel
from cloud_aggregator.buffer import Accumulator, entries, merge
from wire_contract import codec

DIFFERENT_UPDATES = 16
KEPT = 14_222
CLIP_NORM = 10.0
WARM_UP_ROUNDS = 2
OURS = "ours_numba"
PEERS = ("flower", "flower_legacy", "nvflare")


class Peer:
    """A peer's process: idle unless it is asked to sum."""

    def __init__(self, name: str, deltas: Path) -> None:
        alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        alone.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [str(python_of(name)), str(ROOT / "benchmarks" / "peer_sums.py"), name, str(deltas)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=alone,
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A library may greet on stdout before it works.
            if line.startswith("{"):
                answer: dict[str, object] = json.loads(line)
                return answer
        raise RuntimeError(f"the peer's process ended with {self._process.wait()}")

    def sum(self, engine: str, count: int) -> float:
        """Return the CPU seconds that the engine took for `count` updates."""
        assert self._process.stdin is not None
        print(engine, count, file=self._process.stdin, flush=True)
        return float(str(self._answer()["cpu_s"]))

    def stop(self) -> None:
        self._process.communicate()


def load_deltas(seed: int) -> tuple[str, NDArray[np.float32]]:
    """Return what the deltas are, and the deltas, float32 [updates, n]."""
    stored = CACHE / "deltas.npz"
    if stored.exists():
        with np.load(stored) as file:
            deltas = file["deltas"]
        if len(deltas) >= 12 and deltas.shape[1] == PARAMETERS:
            return "real", np.ascontiguousarray(deltas[:DIFFERENT_UPDATES], dtype=np.float32)
    rngs = np.random.default_rng(seed).spawn(DIFFERENT_UPDATES)
    return "synthetic", np.stack([synthetic_delta(rng) for rng in rngs])


def encode_all(deltas: NDArray[np.float32]) -> list[bytes]:
    """Return the wire bytes of each delta, as a device makes them."""
    return [codec.encode(delta, None, kept=KEPT, clip_norm=CLIP_NORM, entropy="zstd").data for delta in deltas]


def weight_of(number: int) -> float:
    """Return the weight of update `number`, like an admitted one's: a share of the example cap."""
    return (40 + number % DIFFERENT_UPDATES) / 80


def our_engines(updates: list[bytes], deltas: NDArray[np.float32], fast: Kernel) -> dict[str, Callable[[int], None]]:
    size = deltas.shape[1]
    whole = {name: Accumulator.empty(size) for name in (OURS, "ours_numpy", "ours_admission")}
    dense = np.zeros(size, np.float32)
    plain = NumpyKernel()

    def folding(kernel: Kernel, into: Accumulator) -> Callable[[int], None]:
        def fold(count: int) -> None:
            into.count = 0
            for i in range(count):
                kernel.fold(into, updates[i % len(updates)], weight_of(i))

        return fold

    def admission(count: int) -> None:
        into = whole["ours_admission"]
        into.count = 0
        for i in range(count):
            vector = fast.decode(updates[i % len(updates)], size=size)
            if vector.norm() > CLIP_NORM * 1.000001:
                raise AssertionError(f"the clip norm is {CLIP_NORM}, got {vector.norm()}")
            into.fold(vector, weight_of(i))

    def numpy_dense(count: int) -> None:
        for i in range(count):
            np.add(dense, deltas[i % len(deltas)] * np.float32(weight_of(i)), out=dense)

    return {
        OURS: folding(fast, whole[OURS]),
        "ours_numpy": folding(plain, whole["ours_numpy"]),
        "ours_admission": admission,
        "numpy_dense": numpy_dense,
    }


def timed(engine: Callable[[int], None]) -> Callable[[int], float]:
    """Return the engine with the CPU seconds of this process as its answer."""

    def measure(count: int) -> float:
        started = time.process_time()
        engine(count)
        return time.process_time() - started

    return measure


def measure(engines: dict[str, Callable[[int], float]], rounds: int, count: int) -> NDArray[np.float64]:
    """Return CPU seconds [rounds, engine]; the order turns, so that nobody always finds another's leavings."""
    names = list(engines)
    times = np.zeros((WARM_UP_ROUNDS + rounds, len(names)))
    for number, row in enumerate(times):
        for place in range(len(names)):
            column = (number + place) % len(names)
            row[column] = engines[names[column]](count)
    return times[WARM_UP_ROUNDS:]


def compare(times: NDArray[np.float64], names: list[str], count: int) -> dict[str, dict[str, float]]:
    """Return each engine's updates a CPU second, and how many times ours is as fast, paired by round."""
    ours = times[:, names.index(OURS)]
    report = {}
    for column, name in enumerate(names):
        ratios = times[:, column] / ours
        low, median, high = np.percentile(ratios, [10, 50, 90])
        report[name] = {
            "updates_per_second": round(count / float(np.median(times[:, column])), 1),
            "best_updates_per_second": round(count / float(times[:, column].min()), 1),
            "ratio_median": round(float(median), 2),
            "ratio_p10": round(float(low), 2),
            "ratio_p90": round(float(high), 2),
            "ratio_min_min": round(float(times[:, column].min() / ours.min()), 2),
        }
    return report


def bitwise_equal(updates: list[bytes], size: int, rng: np.random.Generator, fast: Kernel, orders: int = 3) -> bool:
    """Whether the sums are the same bits over random orders, 1, 4 and 64 shards, and both kernels, mixed too."""
    work = [(updates[i % len(updates)], weight_of(i)) for i in range(200)]
    kernels: list[Kernel] = [NumpyKernel(), fast]
    wanted = None
    for _ in range(orders):
        for shards in (1, 4, 64):
            parts = [Accumulator.empty(size) for _ in range(shards)]
            for place in rng.permutation(len(work)):
                # A shard is a device's; here it is drawn, and so is the kernel.
                kernels[rng.integers(2)].fold(parts[rng.integers(shards)], *work[place])
            whole = parts[0].value()
            for part in parts[1:]:
                whole = merge(whole, part)
            wanted = whole.sums.tobytes() if wanted is None else wanted
            if whole.sums.tobytes() != wanted or whole.count != len(work):
                return False
    return True


def peak_memory(updates: Path, count: int) -> dict[str, float]:
    """Fold `count` updates in a process of its own; return its peak resident memory and how long that took."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aggregate", "--fold-only", str(count), str(updates)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def fold_only(count: int, path: Path) -> None:
    """What the process of `peak_memory` does; the sum is checked against count x entry of each update."""
    with np.load(path) as file:
        updates = [file[f"u{i}"].tobytes() for i in range(len(file.files))]
    kernel = compiled_kernel()
    into = Accumulator.empty(PARAMETERS)
    kernel.fold(into, updates[0], 1.0)
    before_mb = _peak_mb()
    into = Accumulator.empty(PARAMETERS)
    started = time.process_time()
    for i in range(count):
        kernel.fold(into, updates[i % len(updates)], weight_of(i))
    cpu_s, peak_mb = time.process_time() - started, _peak_mb()
    for number, data in enumerate(updates):
        vector = codec.decode(data, size=PARAMETERS)
        times = len(range(number, count, len(updates)))
        into.sums[vector.indices] -= times * entries(PARAMETERS, vector, weight_of(number))
    if into.sums.any():
        raise AssertionError(f"the sum of {count} updates is count x entry, {np.count_nonzero(into.sums)} differ")
    print(json.dumps({"updates": count, "peak_mb": peak_mb, "grown_mb": peak_mb - before_mb, "cpu_s": cpu_s}))


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise AssertionError("/proc/self/status says VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=240, help="updates that each engine sums in a round")
    parser.add_argument("--memory", default="10,1000,100000,1000000", help="numbers of updates, with commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fold-only", nargs=2, metavar=("COUNT", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.fold_only:
        fold_only(int(asked.fold_only[0]), Path(asked.fold_only[1]))
        return
    kind, deltas = load_deltas(asked.seed)
    updates = encode_all(deltas)
    fast = compiled_kernel()
    with tempfile.TemporaryDirectory() as folder:
        file, wire = Path(folder) / "deltas.npy", Path(folder) / "updates.npz"
        np.save(file, deltas)
        np.savez(wire, **{f"u{i}": np.frombuffer(data, np.uint8) for i, data in enumerate(updates)})
        peers = {name: Peer(name, file) for name in ("flower", "nvflare")}
        engines = {name: timed(engine) for name, engine in our_engines(updates, deltas, fast).items()}
        for name in PEERS:
            peer = peers[name.split("_")[0]]
            engines[name] = lambda count, peer=peer, name=name: peer.sum(name, count)  # type: ignore[misc]
        times = measure(engines, asked.rounds, asked.updates)
        for peer in peers.values():
            peer.stop()
        report = compare(times, list(engines), asked.updates)
        print(f"{'engine':<16}{'updates/s':>11}   ours is so many times as fast: median (p10..p90), min/min")
        for name, row in report.items():
            print(
                f"{name:<16}{row['updates_per_second']:>11.0f}   {row['ratio_median']:.2f} "
                f"({row['ratio_p10']:.2f}..{row['ratio_p90']:.2f}), {row['ratio_min_min']:.2f}"
            )
        equal = bitwise_equal(updates, deltas.shape[1], np.random.default_rng(asked.seed), fast)
        print(f"bitwise equal over orders, 1, 4 and 64 shards and both kernels: {equal}")
        memory = [peak_memory(wire, int(count)) for count in asked.memory.split(",")]
    print(f"{'updates folded':<16}{'peak MB':>11}{'grown MB':>11}{'CPU s':>9}")
    for row in memory:
        print(f"{row['updates']:<16.0f}{row['peak_mb']:>11.1f}{row['grown_mb']:>11.1f}{row['cpu_s']:>9.1f}")
    versions = {name: version(name) for name in ("numba", "numpy", "zstandard")}
    for peer in peers.values():
        versions |= {name: str(peer.about[name]) for name in ("flwr", "nvflare") if name in peer.about}
    print(
        json.dumps(
            {
                "benchmark": "aggregate",
                "seed": asked.seed,
                "rounds": asked.rounds,
                "ratio_flower": report["flower"]["ratio_median"],
                "ratio_flower_legacy": report["flower_legacy"]["ratio_median"],
                "ratio_nvflare": report["nvflare"]["ratio_median"],
                "updates_per_second": {name: row["updates_per_second"] for name, row in report.items()},
                "engines": report,
                "bitwise_equal": equal,
                "peak_mb": {str(int(row["updates"])): row["peak_mb"] for row in memory},
                "peak_mb_spread": round(max(r["peak_mb"] for r in memory) - min(r["peak_mb"] for r in memory), 1),
                "memory": memory,
                "settings": {
                    "deltas": kind,
                    "params": deltas.shape[1],
                    "different_updates": len(updates),
                    "updates_a_round": asked.updates,
                    "kept": KEPT,
                    "median_bytes": float(np.median([len(data) for data in updates])),
                },
                "machine": platform.machine(),
                "versions": versions,
            }
        )
    )


if __name__ == "__main__":
    main()
