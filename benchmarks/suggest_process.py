"""A process that runs a file's suggestions when told to, and says what CPU each call took: for paired measurements of
an interpreter that cannot live in the measuring process (TensorFlow imported before tflite-runtime breaks it).

    PYTHON -m benchmarks.suggest_process litert|tflite|numpy MODEL MANIFEST.msgpack TOKENS.npy

Each line of standard input, `suggest COUNT` or `suggest_context COUNT`, is answered by a line of JSON: nanoseconds of
process CPU time, one for each call. `Suggestions` is the same in this process.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.runtime_choice import open_model
from edge_runtime.adapters.runtime_name import runtime_name
from edge_runtime.ports import SignatureRunner
from wire_contract.manifest import decode_manifest

ROOT = Path(__file__).parent.parent
CONTEXT = 20
Ids = NDArray[np.int32]


class Suggestions:
    """Calls on one open file along a stream of word ids, the state carried along as a keyboard carries it."""

    def __init__(self, runner: SignatureRunner, tokens: Ids, *, width: int, cells: int) -> None:
        self._runner = runner
        self._tokens = tokens
        self._place = CONTEXT
        self.state: dict[str, Any] = {
            "state_h": np.zeros((1, width), np.float32), "state_c": np.zeros((1, cells), np.float32)
        }  # fmt: skip

    def _inputs(self, name: str) -> dict[str, Any]:
        self._place = self._place + 1 if self._place + 1 < len(self._tokens) else CONTEXT
        if name == "suggest":
            return {"token": self._tokens[self._place : self._place + 1], **self.state}
        return {"tokens": self._tokens[self._place - CONTEXT : self._place]}

    def times(self, name: str, count: int) -> list[int]:
        """Return nanoseconds of process CPU time of `count` calls, each."""
        taken = []
        for _ in range(count):
            inputs = self._inputs(name)
            started = time.process_time_ns()
            outputs = self._runner.run(name, inputs)
            taken.append(time.process_time_ns() - started)
            if name == "suggest":
                self.state = {"state_h": outputs["next_state_h"], "state_c": outputs["next_state_c"]}
        return taken


class RemoteSuggestions:
    """The same in a process of another Python."""

    def __init__(self, python: Path, runtime: str, folder: Path) -> None:
        words = [str(python), "-m", "benchmarks.suggest_process", runtime]
        files = [str(folder / name) for name in ("model.tflite", "manifest.msgpack", "tokens.npy")]
        self._process = subprocess.Popen(
            [*words, *files], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        self.name: str = json.loads(self._read())["name"]

    def _read(self) -> str:
        if self._process.stdout is None:
            raise SystemExit("the process has no standard output")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that suggests ended with {self._process.wait()}")
        return line

    def times(self, name: str, count: int) -> list[int]:
        """See `Suggestions.times`."""
        if self._process.stdin is None:
            raise SystemExit("the process has no standard input")
        self._process.stdin.write(f"{name} {count}\n")
        self._process.stdin.flush()
        return [int(each) for each in json.loads(self._read())]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(10)


def main() -> None:
    runtime, model, stated, tokens = sys.argv[1:]
    manifest = decode_manifest(Path(stated).read_bytes())
    shapes = {entry.name: entry.shape for entry in manifest.tensors}
    if runtime not in ("litert", "tflite", "numpy"):
        raise SystemExit(f"a runtime is litert, tflite or numpy, got {runtime!r}")
    runner = open_model(Path(model).read_bytes(), runtime, manifest)
    width, cells = shapes["projection"]
    suggestions = Suggestions(runner, np.load(tokens), width=width, cells=cells)
    print(json.dumps({"name": runtime_name(runtime)}), flush=True)
    for line in sys.stdin:
        name, count = line.split()
        print(json.dumps(suggestions.times(name, int(count))), flush=True)


if __name__ == "__main__":
    main()
