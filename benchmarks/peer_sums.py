"""A peer's in-memory sum, timed by itself: run by the Python of the peer's own environment, one line a turn.

    python benchmarks/peer_sums.py flower|nvflare DELTAS.npy

DELTAS.npy holds float32 [updates, values]. Each line on stdin is `engine number`: sum that many weighted updates (the
file's, over and over) once, then answer with the process CPU seconds that it took, as one JSON object on a line. The
peer is given what it holds after its own transport: whole arrays, in memory, for nothing.
Nothing of this project is imported here.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

# The reference model's tensors: rows, their biases, the LSTM kernel and bias, the projection.
SHAPES = ((10_000, 96), (10_000,), (2_010, 192), (2_010,), (670, 96))
NAMES = ("rows", "row_biases", "kernel", "kernel_bias", "projection")
LEGACY_COHORT = 12


def tensors_of(delta: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES])
    assert ends[-1] == len(delta), (ends[-1], len(delta))
    return [part.reshape(shape) for part, shape in zip(np.split(delta, ends[:-1]), SHAPES, strict=True)]


def flower(deltas: np.ndarray) -> dict[str, Callable[[int], None]]:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.server.strategy.aggregate import aggregate
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    records, results = [], []
    for number, delta in enumerate(deltas):
        arrays = tensors_of(delta)
        named = ArrayRecord({name: Array(array) for name, array in zip(NAMES, arrays, strict=True)})
        metrics = MetricRecord({"num-examples": 40 + number})
        records.append(RecordDict({"arrays": named, "metrics": metrics}))
        results.append((arrays, 40 + number))

    def whole_cohort(count: int) -> None:
        aggregate_arrayrecords([records[i % len(records)] for i in range(count)], "num-examples")

    def legacy(count: int) -> None:
        # It keeps a weighted copy of every update, so a large cohort is summed in parts: cheaper for it, too.
        for start in range(0, count, LEGACY_COHORT):
            aggregate([results[i % len(results)] for i in range(start, min(count, start + LEGACY_COHORT))])

    return {"flower": whole_cohort, "flower_legacy": legacy}


def nvflare(deltas: np.ndarray) -> dict[str, Callable[[int], None]]:
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    updates = [dict(zip(NAMES, tensors_of(delta), strict=True)) for delta in deltas]

    def helper(count: int) -> None:
        sums = WeightedAggregationHelper()
        for i in range(count):
            sums.add(updates[i % len(updates)], 40.0 + i % len(updates), f"site-{i}", 0)
        sums.get_result()

    return {"nvflare": helper}


def main() -> None:
    peer, path = sys.argv[1:]
    engines = {"flower": flower, "nvflare": nvflare}[peer](np.load(path))
    package = {"flower": "flwr", "nvflare": "nvflare"}[peer]
    print(json.dumps({"engines": sorted(engines), package: version(package), "numpy": np.__version__}), flush=True)
    for line in sys.stdin:
        engine, count = line.split()
        started = time.process_time()
        engines[engine](int(count))
        print(json.dumps({"cpu_s": time.process_time() - started}), flush=True)


if __name__ == "__main__":
    main()
