"""The engines of `benchmarks.train_step`: each does one step of the same network on the same batch.

The rules:
- every engine gets the same starting weights and the same batch; weights go in and come out at every step, as on a
  device, where the engine is an exported signature (inputs stay as they are, so every step is the same work);
- `litert_sampled_all_in` is the device's own `Stepper`: candidates drawn, rows gathered, the correction, the rows'
  step, and weights that move;
- an engine that is not here is missing with its reason, never left out.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.train_step_process import ROOT, RemoteSteps, write_cases
from edge_runtime.adapters.interpreter import open_model
from edge_runtime.candidates import choose
from edge_runtime.local_training import Stepper
from edge_runtime.numpy_engine.model import NumpyModel
from model_export.bundle import make_manifest
from model_export.convert import convert
from model_export.network import BATCH, CANDIDATES, LENGTH, PRESETS, NetworkSize, initial_tensors, layout_without_file
from wire_contract.manifest import signature_name
from wire_contract.vocabulary import Vocabulary

LEARNING_RATE = 0.1
EXAMPLE_CLIP = 1.0
SQUARE = 1024
# As many tokens in rows of half the length: a kernel that computes 32 columns at a time is full.
WIDE = (2 * BATCH, LENGTH // 2)
DEVICE_PYTHON = ROOT / ".venv-device" / "bin" / "python"
Ids = NDArray[np.int32]
Seconds = Callable[[], float]


def timed(step: Callable[[], object]) -> Seconds:
    """Return a function that does the step and says its CPU seconds."""

    def seconds() -> float:
        started = time.process_time()
        step()
        return time.process_time() - started

    return seconds


def matmuls(size: NetworkSize) -> Iterator[tuple[int, int, int, int]]:
    """Yield (rows, inner, columns, times) of the exact step's matrix products, none of which can be left out.

    What can be done for all positions at once is; what waits for the state is not. Twice their product is the step's
    FLOPs.
    """
    positions = BATCH * LENGTH
    yield 3 * size.cells, size.width + 1, positions, 1
    yield 3 * size.cells, size.width, BATCH, LENGTH - 1
    yield size.width, size.cells, BATCH, LENGTH
    yield size.words, size.width + 1, positions, 1
    yield size.width, size.words, positions, 1
    yield size.words, positions, size.width + 1, 1
    yield size.cells, size.width, BATCH, LENGTH
    yield size.width, 3 * size.cells, BATCH, LENGTH - 1
    yield size.width, 3 * size.cells, positions, 1
    yield 3 * size.cells, positions, 2 * size.width + 1, 1
    yield size.cells, positions, size.width, 1


def step_flops(size: NetworkSize) -> float:
    """Return the multiplications and additions in the step's matrix products."""
    return sum(2.0 * m * k * n * times for m, k, n, times in matmuls(size))


def sgemm_steps(size: NetworkSize, rng: np.random.Generator) -> tuple[Seconds, Seconds]:
    """Return numpy's sgemm on the step's own shapes, and on one square of 1024."""
    operands = [
        (rng.random((m, k), np.float32), rng.random((k, n), np.float32), np.empty((m, n), np.float32), times)
        for m, k, n, times in matmuls(size)
    ]
    square = rng.random((SQUARE, SQUARE), np.float32), rng.random((SQUARE, SQUARE), np.float32)
    product = np.empty((SQUARE, SQUARE), np.float32)

    def own_shapes() -> None:
        for left, right, out, times in operands:
            for _ in range(times):
                np.matmul(left, right, out=out)

    return timed(own_shapes), timed(lambda: np.matmul(*square, out=product))


class Engines:
    """All engines by name, those that are missing by reason, and what the file is."""

    def __init__(self, preset: str, seed: int, folder: Path, torch_python: Path | None, stack: ExitStack) -> None:
        self.size = PRESETS[preset]
        self.seconds: dict[str, Seconds] = {}
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        rng = np.random.Generator(np.random.PCG64(seed))
        self._tensors = initial_tensors(self.size, rng)
        self._packed = layout_without_file(self.size).pack(self._tensors)
        # Zipf-like ids, so that words repeat in a batch as in text; 0 is padding.
        ids = np.exp(rng.random((BATCH, LENGTH + 1)) * np.log(self.size.words - 1)).astype(np.int32)
        self.rows: Ids = np.clip(ids, 1, self.size.words - 1)
        self._template = convert(self.size)
        self.file_bytes = len(self._template.data)
        self.cases = self._cases(rng)
        self._add_keras()
        self._add_litert(rng)
        self._add_wide()
        self._add_numpy()
        self._add_processes(folder, torch_python, stack)
        self.seconds["sgemm"], self.seconds["sgemm_1024"] = sgemm_steps(self.size, rng)

    def _cases(self, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
        tokens, targets = self.rows[:, :-1].copy(), self.rows[:, 1:].copy()
        common = {
            "weights": np.ones((BATCH, LENGTH), np.float32),
            "learning_rate": np.array(LEARNING_RATE, np.float32),
            "output_mask": np.ones((LENGTH, self.size.width, BATCH), np.float32),
        }
        exact = {"tokens": tokens, "targets": targets, **common, **self._packed}
        chosen = choose(targets, targets > 0, size=CANDIDATES, words=self.size.words, rng=rng)
        candidate_rows = self._packed["output_rows"][chosen.ids]
        candidate_rows[:, self.size.width] -= chosen.log_inclusion
        sampled = {
            "input_rows": self._packed["output_rows"][tokens.T.reshape(-1), : self.size.width],
            "candidate_rows": candidate_rows,
            "targets": chosen.positions,
            **common,
            "kernel_rows": self._packed["kernel_rows"],
            "projection": self._packed["projection"],
        }
        private = {**exact, "example_clip": np.array(EXAMPLE_CLIP, np.float32)}
        return {"train": exact, "train_sampled": sampled, "train_private": private}

    def _add_keras(self) -> None:
        import keras

        from model_export.keras_network import NextWordModel

        tokens, targets = self.cases["train"]["tokens"], self.cases["train"]["targets"]
        for name, jit in (("keras", False), ("keras_jit", True)):
            model = NextWordModel(self.size)
            model.load(self._tensors)
            model.compile(
                optimizer=keras.optimizers.SGD(LEARNING_RATE),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=jit,
            )
            self.seconds[name] = timed(partial(model.train_on_batch, tokens, targets))

    def _add_litert(self, rng: np.random.Generator) -> None:
        import tensorflow as tf

        model = open_model(self._template.data, "litert")
        for name, signature in (
            ("litert_exact", "train"), ("litert_sampled", "train_sampled"), ("litert_private", "train_private"),
        ):  # fmt: skip
            self.seconds[name] = timed(partial(model.run, signature, self.cases[signature]))
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = [f"{a}{b}{c}" for a in letters for b in letters for c in letters][: self.size.words - 4]
        _, manifest = make_manifest(
            self._template, self._tensors, Vocabulary.from_words(words), population="benchmark",
            candidates=CANDIDATES, logit_tolerance=0.5, now=1, valid_s=1,
        )  # fmt: skip
        stepper = Stepper(model, manifest, self._packed, "train_sampled")
        self.seconds["litert_sampled_all_in"] = timed(partial(stepper.step, self.rows, LEARNING_RATE, 0.0, rng))
        interpreter = tf.lite.Interpreter(model_content=self._template.data, num_threads=1)
        runner = interpreter.get_signature_runner("train")
        self.seconds["tf_lite_exact"] = timed(partial(runner, **self.cases["train"]))
        self._specs = manifest.signatures

    def _add_wide(self) -> None:
        signature = signature_name("train_sampled", *WIDE)
        template = convert(self.size, variants=[WIDE], families=("train_sampled", "suggest"))
        sampled = self.cases["train_sampled"]
        batch, length = WIDE
        tokens = self.cases["train"]["tokens"].reshape(batch, length)
        inputs = {
            **sampled,
            "input_rows": self._packed["output_rows"][tokens.T.reshape(-1), : self.size.width],
            "targets": sampled["targets"].reshape(batch, length),
            "weights": np.ones((batch, length), np.float32),
            "output_mask": np.ones((length, self.size.width, batch), np.float32),
        }
        model = open_model(template.data, "litert")
        self.seconds[f"litert_{signature.removeprefix('train_')}"] = timed(partial(model.run, signature, inputs))

    def _add_numpy(self) -> None:
        engine = NumpyModel(self._specs, words=self.size.words, width=self.size.width, cells=self.size.cells)
        for name, signature in (
            ("numpy_exact", "train"), ("numpy_sampled", "train_sampled"), ("numpy_private", "train_private"),
        ):  # fmt: skip
            self.seconds[name] = timed(partial(engine.run, signature, self.cases[signature]))

    def _add_processes(self, folder: Path, torch_python: Path | None, stack: ExitStack) -> None:
        model, cases = folder / "model.tflite", folder / "cases.npz"
        model.write_bytes(self._template.data)
        write_cases(cases, self.cases)
        tflite = {"tflite_exact": "train", "tflite_sampled": "train_sampled", "tflite_private": "train_private"}
        if DEVICE_PYTHON.exists():
            self._add_process(tflite, RemoteSteps(DEVICE_PYTHON, "tflite", str(model), str(cases)), stack)
        else:
            self.missing |= dict.fromkeys(tflite, "there is no .venv-device")
        if torch_python is not None:
            self._add_process({"torch_exact": "train"}, RemoteSteps(torch_python, "torch", str(cases)), stack)
        else:
            self.missing["torch_exact"] = "PyTorch is not installed here: name a Python that has it by --torch-python"

    def _add_process(self, engines: dict[str, str], process: RemoteSteps, stack: ExitStack) -> None:
        stack.callback(process.close)
        package, _, number = process.name.partition(" ")
        self.versions[package] = number
        for name, signature in engines.items():
            self.seconds[name] = partial(process.seconds, signature)


def python_with_torch(given: str) -> Path | None:
    """Return the Python that has PyTorch: the one that is named, or this one."""
    if given:
        return Path(given)
    return Path(sys.executable) if find_spec("torch") is not None else None
