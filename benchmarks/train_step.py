"""Claim: the exported training step costs less CPU than Keras `train_on_batch` of the same network.

One process, one thread each, process CPU time, round-robin: in every round each engine does one step on the same
batch, and a round's ratio is Keras / exported in that round, so that load on the machine meets all alike.

- keras: `train_on_batch`, plain SGD, exact softmax, graph mode, jit_compile False (True is slower here);
- train: the exact signature in ai-edge-litert, weights in and out included;
- train_sampled: the candidate-set signature (K 512), the graph alone;
- train_sampled all-in: with the host's work (choosing candidates, gathering, log-inclusion, subtracting rows).

Run: python -m benchmarks.train_step [--preset reference|small] [--rounds 40] [--seed 1]
The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

BATCH, LENGTH, CANDIDATES = 16, 20, 512
LEARNING_RATE = 0.1
WARM_UP_ROUNDS = 5
NAMES = ("keras", "train", "train_sampled", "train_sampled all-in")
Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


def negative_candidates(targets: Ids, words: int, rng: np.random.Generator) -> tuple[Ids, Floats, Ids]:
    """Return candidate ids [K], their log inclusion probabilities and the targets' places among them.

    Negatives are log-uniform (Zipf), distinct, and fill the set up; a target is there for certain, so its own
    probability matters only as a negative of others. The device's rule is edge_runtime's; its cost is the same kind.
    """
    distinct = np.unique(targets)
    wanted = CANDIDATES - len(distinct)
    drawn = np.minimum(np.exp(rng.random(4 * CANDIDATES) * np.log(words + 1)).astype(np.int64) - 1, words - 1)
    _, first = np.unique(drawn, return_index=True)
    in_order = drawn[np.sort(first)]
    negatives = in_order[~np.isin(in_order, distinct, assume_unique=True)][:wanted]
    if len(negatives) < wanted:
        rest = np.setdiff1d(np.arange(words), np.concatenate([distinct, negatives]), assume_unique=True)
        negatives = np.concatenate([negatives, rest[: wanted - len(negatives)]])
    ids = np.sort(np.concatenate([distinct, negatives])).astype(np.int32)
    proposal = np.log((ids + 2.0) / (ids + 1.0)) / np.log(words + 1.0)
    log_inclusion = np.log(-np.expm1(CANDIDATES * np.log1p(-proposal))).astype(np.float32)
    return ids, log_inclusion, np.searchsorted(ids, targets).astype(np.int32)


class Steps:
    """The four engines on one batch, each a function that does one step."""

    def __init__(self, preset: str, seed: int) -> None:
        from model_export.convert import convert
        from model_export.interpreter import Interpreter
        from model_export.network import PRESETS, initial_tensors, layout_without_file

        self.size = PRESETS[preset]
        self.rng = np.random.Generator(np.random.PCG64(seed))
        tensors = initial_tensors(self.size, self.rng)
        # Zipf-like ids, so that words repeat in a batch as in text.
        ids = (np.exp(self.rng.random((BATCH, LENGTH + 1)) * np.log(self.size.words)) - 1).astype(np.int32)
        self.tokens, self.targets = ids[:, :-1].copy(), ids[:, 1:].copy()
        self.interpreter = Interpreter(convert(self.size).data)
        self.packed = layout_without_file(self.size).pack(tensors)
        self.sampled = {name: value.copy() for name, value in self.packed.items()}
        self.common = {
            "weights": np.ones((BATCH, LENGTH), np.float32),
            "learning_rate": np.array(LEARNING_RATE, np.float32),
            "output_mask": np.ones((LENGTH, self.size.width, BATCH), np.float32),
        }
        self.graph_only = self._sampled_inputs()
        self.keras = self._keras(tensors)

    def _keras(self, tensors: dict[str, Floats]) -> Callable[[], None]:
        import keras

        from model_export.keras_network import NextWordModel

        model = NextWordModel(self.size)
        model.load(tensors)
        model.compile(
            optimizer=keras.optimizers.SGD(LEARNING_RATE),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        return lambda: model.train_on_batch(self.tokens, self.targets)

    def train(self) -> None:
        outputs = self.interpreter.run(
            "train", {"tokens": self.tokens, "targets": self.targets, **self.common, **self.packed}
        )
        self.packed = {name: outputs[f"trained_{name}"] for name in self.packed}

    def _sampled_inputs(self) -> dict[str, NDArray]:
        ids, log_inclusion, places = negative_candidates(self.targets, self.size.words, self.rng)
        self.ids = ids
        rows = self.sampled["output_rows"][ids]
        rows[:, self.size.width] -= log_inclusion
        self.log_inclusion = log_inclusion
        return {
            "input_rows": self.sampled["output_rows"][self.tokens.T.reshape(-1), : self.size.width],
            "candidate_rows": rows,
            "targets": places,
            "kernel_rows": self.sampled["kernel_rows"],
            "projection": self.sampled["projection"],
            **self.common,
        }

    def train_sampled(self) -> None:
        self.interpreter.run("train_sampled", self.graph_only)

    def train_sampled_all_in(self) -> None:
        outputs = self.interpreter.run("train_sampled", self._sampled_inputs())
        rows = outputs["trained_candidate_rows"]
        rows[:, self.size.width] += self.log_inclusion
        self.sampled["output_rows"][self.ids] = rows
        np.subtract.at(
            self.sampled["output_rows"][:, : self.size.width], self.tokens.T.reshape(-1), outputs["input_rows_step"]
        )
        self.sampled["kernel_rows"] = outputs["trained_kernel_rows"]
        self.sampled["projection"] = outputs["trained_projection"]


def measure(steps: Steps, rounds: int) -> NDArray[np.float64]:
    """Return CPU seconds [rounds, engine]."""
    engines = (steps.keras, steps.train, steps.train_sampled, steps.train_sampled_all_in)
    times = np.zeros((WARM_UP_ROUNDS + rounds, len(engines)))
    for number, row in enumerate(times):
        for place in range(len(engines)):
            # The order turns, so that no engine always finds another's leavings in the caches.
            column = (number + place) % len(engines)
            started = time.process_time()
            engines[column]()
            row[column] = time.process_time() - started
    return times[WARM_UP_ROUNDS:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("reference", "small", "tiny"), default="reference")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from model_export.quiet import quiet

    with quiet():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        steps = Steps(asked.preset, asked.seed)
        times = measure(steps, asked.rounds)
    report = {}
    print(f"{'engine':<22}{'CPU ms median':>14}{'min':>8}   keras / engine: median (p10..p90), min/min")
    for column, name in enumerate(NAMES):
        own, ratios = times[:, column], times[:, 0] / times[:, column]
        low, median, high = np.percentile(ratios, [10, 50, 90])
        report[name.replace(" all-in", "_all_in")] = {
            "cpu_ms_median": round(1e3 * float(np.median(own)), 2),
            "cpu_ms_min": round(1e3 * float(own.min()), 2),
            "ratio_median": round(float(median), 3),
            "ratio_p10": round(float(low), 3),
            "ratio_p90": round(float(high), 3),
            "ratio_min_min": round(float(times[:, 0].min() / own.min()), 3),
        }
        print(
            f"{name:<22}{1e3 * np.median(own):>14.1f}{1e3 * own.min():>8.1f}   "
            f"{median:.2f} ({low:.2f}..{high:.2f}), {times[:, 0].min() / own.min():.2f}"
        )
    size = steps.size
    settings = {
        "preset": asked.preset, "parameters": size.parameters, "words": size.words, "width": size.width,
        "cells": size.cells, "batch": BATCH, "length": LENGTH, "candidates": CANDIDATES, "threads": 1,
    }  # fmt: skip
    versions = {name: version(name) for name in ("tensorflow", "keras", "ai-edge-litert", "numpy")}
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "seed": asked.seed,
                "rounds": asked.rounds,
                "settings": settings,
                "engines": report,
                "machine": platform.machine(),
                "versions": versions,
            }
        )
    )


if __name__ == "__main__":
    main()
