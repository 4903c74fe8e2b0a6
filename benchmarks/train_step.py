"""Claim: the exported training step costs less CPU than Keras `train_on_batch` of the same network, and most of what it
costs is what the matrix products alone would.

One process, one thread each, process CPU time, round-robin: in every round each engine does one step on the same batch,
in an order that turns, and a ratio is taken within a round, so that load on the machine meets all alike. tflite-runtime
and PyTorch step in processes of their own when told to, within the same rounds.

- `litert_exact_vs_keras`: Keras (`train_on_batch`, SGD, exact softmax, jit off: what `auto` takes for this model) over
  the signature `train` in ai-edge-litert as a device runs it, weights in and out included; `..._min` is the smallest
  time over the smallest;
- `litert_sampled_vs_keras`: over `train_sampled` (512 candidates), the graph alone; `sampled_all_in`: over the device's
  own step, with candidates drawn, rows gathered and written back;
- `private_vs_exact`: `train_private` over `train`;
- `sgemm_fraction`: the time that numpy's OpenBLAS takes for the step's own matrix products and nothing else (see
  `train_step_engines.matmuls`) over the time of `train`: 1 would be a step that costs its products and no more.
  `sgemm_fraction_1024`: the step's FLOPs a second over those of one 1024 x 1024 x 1024 product, which products of 16
  columns do not reach in any library.

Run: python -m benchmarks.train_step [--preset reference|small] [--rounds 60] [--seed 1] [--torch-python PYTHON]
The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

WARM_UP_ROUNDS: Final = 5
# What must hold, and the goal beside it.
TARGETS: Final = {
    "litert_exact_vs_keras": (1.6, 1.8),
    "litert_exact_vs_keras_min": (1.5, 1.7),
    "sgemm_fraction": (0.60, 0.70),
    "litert_sampled_vs_keras": (5.0, 5.0),
    "sampled_all_in": (4.0, 4.0),
}
LARGEST: Final = {"private_vs_exact": 1.25}
ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
Times = NDArray[np.float64]


def measure(seconds: dict[str, Any], rounds: int) -> dict[str, Times]:
    """Return every engine's CPU seconds, one for each round."""
    names = list(seconds)
    times = np.zeros((WARM_UP_ROUNDS + rounds, len(names)))
    for number, row in enumerate(tqdm(times, desc="rounds", leave=False, disable=None)):
        for place in range(len(names)):
            # The order turns, so that no engine always finds another's leavings in the caches.
            column = (number + place) % len(names)
            row[column] = seconds[names[column]]()
    return dict(zip(names, times[WARM_UP_ROUNDS:].T, strict=True))


def spread(name: str, ratios: Times) -> dict[str, float]:
    """Return a ratio's median with its tenth and ninetieth percentile."""
    low, median, high = np.percentile(ratios, [10, 50, 90])
    return {name: round(float(median), 3), f"{name}_p10": round(float(low), 3), f"{name}_p90": round(float(high), 3)}


def results(times: dict[str, Times], flops: float) -> dict[str, float]:
    """Return the claims' ratios."""
    keras, exact = times["keras"], times["litert_exact"]
    square = 2.0 * 1024**3
    return {
        **spread("litert_exact_vs_keras", keras / exact),
        "litert_exact_vs_keras_min": round(float(keras.min() / exact.min()), 3),
        **spread("sgemm_fraction", times["sgemm"] / exact),
        **spread("sgemm_fraction_1024", (flops / exact) / (square / times["sgemm_1024"])),
        **spread("litert_sampled_vs_keras", keras / times["litert_sampled"]),
        "litert_sampled_vs_keras_min": round(float(keras.min() / times["litert_sampled"].min()), 3),
        **spread("sampled_all_in", keras / times["litert_sampled_all_in"]),
        **spread("private_vs_exact", times["litert_private"] / exact),
    }


def verdicts(found: dict[str, float]) -> dict[str, bool]:
    """Return which targets are met; a goal that is more than its target is one of its own."""
    met = {name: found[name] >= least for name, (least, _) in TARGETS.items()}
    met |= {f"{name}_goal": found[name] >= goal for name, (least, goal) in TARGETS.items() if goal > least}
    return met | {name: found[name] <= most for name, most in LARGEST.items()}


def cpu_name() -> str:
    """Return the processor's name and the vector instructions that its kernels may use."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    vectors = [flag for flag in ("avx512f", "avx2", "fma", "asimd", "neon") if flag in flags]
    return " ".join([fields.get("model name", platform.machine()), *vectors])


def row(name: str, own: Times, keras: Times) -> dict[str, float]:
    """Return one engine's times in milliseconds and how often they go into Keras's; print them."""
    low, median, high = np.percentile(keras / own, [10, 50, 90])
    print(
        f"{name:<24}{1e3 * np.median(own):>10.1f}{1e3 * own.min():>9.1f}   "
        f"{median:.2f} ({low:.2f}..{high:.2f}), {keras.min() / own.min():.2f}"
    )
    return {
        "cpu_ms_median": round(1e3 * float(np.median(own)), 2),
        "cpu_ms_min": round(1e3 * float(own.min()), 2),
        "vs_keras": round(float(median), 3),
        "vs_keras_p10": round(float(low), 3),
        "vs_keras_p90": round(float(high), 3),
        "vs_keras_min": round(float(keras.min() / own.min()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("reference", "small", "tiny"), default="reference")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--torch-python", default="", help="a Python that has PyTorch and numpy")
    asked = parser.parse_args()
    if "OPENBLAS_CORETYPE" in os.environ or any(os.environ.get(key) != value for key, value in ONE_THREAD.items()):
        # OpenBLAS reads these when numpy is imported, which has happened.
        kept = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:]], kept | ONE_THREAD)
    from model_export.quiet import quiet

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="train-step-")))
        with quiet():
            import tensorflow as tf

            from benchmarks.train_step_engines import Engines, python_with_torch, step_flops

            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
            engines = Engines(asked.preset, asked.seed, folder, python_with_torch(asked.torch_python), stack)
            # The first steps trace, compile and allocate, and say so.
            measure(engines.seconds, 1)
        times = measure(engines.seconds, asked.rounds)
    print(f"{'engine':<24}{'CPU ms med':>10}{'min':>9}   keras / engine: median (p10..p90), min/min")
    table: dict[str, Any] = {name: row(name, own, times["keras"]) for name, own in times.items()}
    for name, reason in engines.missing.items():
        print(f"{name:<24}{'-':>10}   {reason}")
        table[name] = {"missing": reason}
    size = engines.size
    found = results(times, step_flops(size))
    # The targets are the reference network's.
    met = verdicts(found) if asked.preset == "reference" else {}
    for name, holds in met.items():
        print(f"{name:<32}{found[name.removesuffix('_goal')]:>8}   {'met' if holds else 'NOT met'}")
    settings = {
        "preset": asked.preset, "parameters": size.parameters, "words": size.words, "width": size.width,
        "cells": size.cells, "batch": 16, "length": 20, "candidates": 512, "threads": 1,
        "gflop_a_step": round(step_flops(size) / 1e9, 3), "file_bytes": engines.file_bytes,
    }  # fmt: skip
    versions = {name: version(name) for name in ("tensorflow", "keras", "ai-edge-litert", "numpy")}
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                **found,
                "met": met,
                "rounds": asked.rounds,
                "seed": asked.seed,
                "cpu": cpu_name(),
                "machine": platform.machine(),
                "versions": versions | engines.versions,
                "settings": settings,
                "engines": table,
            }
        )
    )


if __name__ == "__main__":
    main()
