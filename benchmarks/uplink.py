"""Claim: what a phone sends up for a night's training has at most 12,000 bytes in the median, every header counted.

Real deltas: 40 people who are new to the converged reference model (1,422,250 parameters), one visit each
(`benchmarks.learning_inputs`). For each row the whole update is made as the device makes it: turn, select, quantize,
encode, seal, sign. Bytes are those of the signed init and of all chunks; encode is CPU time of this thread, from the
delta to the published bytes; peak is the most memory that was allocated meanwhile, in models (float32), by tracemalloc.

Beside them what others would send of the same delta: dense int8 (one scale a 256 values, zstd 19), float32, NVFlare's
edge path (`tolist()` as JSON, extrapolated from the first 100,000 values of each delta) and Flower's record, serialized
by Flower itself if its environment is there (`python -m benchmarks.peer_environments`).

Run: python -m benchmarks.uplink [--people 40]. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import msgspec
import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from benchmarks import convergence_runs, learning_base, learning_inputs
from benchmarks.convergence import CLAIM, VARIANTS
from benchmarks.convergence_runs import Variant
from benchmarks.downlink import flower_bytes
from benchmarks.learning_base import Base
from edge_runtime import client_update
from edge_runtime.local_training import TrainingResult
from fleet_simulator.learning import CHUNK_BYTES, POPULATION, TASK
from wire_contract.layout import Tensors
from wire_contract.messages import Plan, RetryWindow, TaskOffer
from wire_contract.patch import read_tensors

JSON_VALUES: Final = 100_000
BLOCK: Final = 256

Delta = NDArray[np.float32]


class Device:
    """Makes updates of given deltas under one variant's plan."""

    def __init__(self, base: Base, variant: Variant) -> None:
        self._base = base
        plan = convergence_runs.population(variant, 1).plan
        self._index_set = self._basis = None
        codec_plan = plan.codec
        if variant.shared:
            self._index_set = convergence_runs.index_set_of(base, plan.codec.kept, seed=1)
            codec_plan = msgspec.structs.replace(codec_plan, index_set=self._index_set.sha256)
        if variant.principal:
            self._basis = convergence_runs.basis_of(base)
            codec_plan = msgspec.structs.replace(codec_plan, basis=self._basis.sha256)
        self.plan: Plan = msgspec.structs.replace(plan, codec=codec_plan)
        self._key = Ed25519PrivateKey.generate()
        self._received: Tensors = read_tensors(base.converged.file, base.manifest)
        self._vector = base.layout.flatten(self._received)

    def update(self, delta: Delta, examples: int) -> tuple[int, float]:
        """Return an update's published bytes and the CPU seconds it took."""
        packed = self._base.layout.pack(self._base.layout.unflatten(self._vector + delta))
        result = TrainingResult(packed, 16, 5.0, 4.9, examples)
        offer = TaskOffer(
            device="a" * 32, population=POPULATION, task=TASK, lease="b" * 32, nonce="c" * 32, base_version=1,
            base_sha256="d" * 64, layout_fingerprint=self._base.layout.fingerprint, plan=self.plan, seed=1,
            sealing_key=bytes(range(32)), shard=0, issued_at=0, deadline=86_400,
            retry=RetryWindow(earliest=0, latest=0),
        )  # fmt: skip
        started = time.thread_time()
        encoded = client_update.make(
            result, self._received, None, offer, self._base.layout, self._index_set, self._basis
        )
        sealed = client_update.seal_update(
            encoded, result, offer, key=self._key, ephemeral_secret=os.urandom(32), finished_at=0,
            chunk_bytes=CHUNK_BYTES,
        )  # fmt: skip
        return len(sealed.init) + sum(map(len, sealed.chunks)), time.thread_time() - started


def dense_int8(delta: Delta) -> bytes:
    """Return the delta as int8 with a scale a block of 256, behind zstd 19."""
    padded = np.zeros(-(-len(delta) // BLOCK) * BLOCK, np.float32)
    padded[: len(delta)] = delta
    blocks = padded.reshape(-1, BLOCK)
    scales = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 127, np.float32(1e-30))
    codes = np.rint(blocks / scales).astype(np.int8)
    return zstandard.ZstdCompressor(level=19).compress(scales.tobytes() + codes.tobytes())


def json_bytes(delta: Delta) -> int:
    """Return the bytes of the delta as a JSON list, extrapolated from its first values."""
    part = delta[:JSON_VALUES]
    return round(len(json.dumps(part.tolist())) * len(delta) / len(part))


def peak_models(work: Callable[[], object], size: int) -> float:
    """Return the most memory that `work` allocates, in float32 models."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / (4 * size)
    finally:
        tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=40, help="how many of the 40 deltas (at least 30 for the claim)")
    asked = parser.parse_args()
    learning_inputs.make()
    base = learning_base.load()
    with np.load(learning_inputs.DELTAS) as kept:
        deltas, examples = kept["deltas"][: asked.people], kept["examples"][: asked.people]
    size = base.layout.size
    report: dict[str, object] = {"benchmark": "uplink", "params": size, "updates": len(deltas), "base": base.sha256}
    rows = []
    for variant in VARIANTS:
        if variant.float32:
            continue
        device = Device(base, variant)
        device.update(deltas[0], int(examples[0]))
        made = [device.update(delta, int(count)) for delta, count in zip(deltas, examples, strict=True)]
        sizes = [each[0] for each in made]
        largest = int(np.argmax(sizes))

        def work(device: Device = device, largest: int = largest) -> None:
            device.update(deltas[largest], int(examples[largest]))

        rows.append({
            "name": variant.name, "median_bytes": statistics.median(sizes), "mean_bytes": round(statistics.mean(sizes)),
            "p90_bytes": round(float(np.percentile(sizes, 90))), "largest_bytes": max(sizes),
            "encode_cpu_ms": round(1e3 * statistics.median(each[1] for each in made), 1),
            "peak_models": round(peak_models(work, size), 1),
        })  # fmt: skip
    flower, how = flower_bytes(base.manifest)
    for name, sizes in (
        ("dense int8, zstd 19", [len(dense_int8(delta)) for delta in deltas[:8]]),
        ("float32", [4 * size]),
        (f"Flower ({how})", [flower]),
        ("NVFlare edge, JSON", [json_bytes(delta) for delta in deltas[:8]]),
    ):
        rows.append(
            {"name": name, "median_bytes": statistics.median(sizes), "mean_bytes": round(statistics.mean(sizes))}
        )
    claim = next(row for row in rows if row["name"] == CLAIM)
    median = float(claim["median_bytes"])
    print(f"{'update':<44}{'median B':>12}{'mean B':>12}{'p90 B':>9}{'encode ms':>11}{'peak':>6}{'x this claim':>14}")
    for row in rows:
        print(
            f"{row['name']:<44}{row['median_bytes']:>12,.0f}{row['mean_bytes']:>12,}{row.get('p90_bytes', ''):>9}"
            f"{row.get('encode_cpu_ms', ''):>11}{row.get('peak_models', ''):>6}{row['median_bytes'] / median:>14.1f}"
        )
    report |= {
        "median_bytes": median, "mean_bytes": claim["mean_bytes"], "p90_bytes": claim["p90_bytes"],
        "ratio_float32": round(4 * size / median, 1), "ratio_flower": round(flower / median, 1),
        "encode_cpu_ms": claim["encode_cpu_ms"], "peak_models": claim["peak_models"], "rows": rows,
        "versions": {name: version(name) for name in ("numpy", "zstandard", "cryptography", "ai-edge-litert")},
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
