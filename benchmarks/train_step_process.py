"""A process that does one training step when told to, and says what CPU it took: for engines that cannot live in the
measuring process (TensorFlow imported before tflite-runtime breaks it) or not in its environment (PyTorch).

    PYTHON -m benchmarks.train_step_process tflite MODEL CASES.npz
    PYTHON -m benchmarks.train_step_process torch CASES.npz

CASES.npz: `SIGNATURE/ARGUMENT`. Each line of standard input names a signature; it is answered by nanoseconds of process
CPU time. PyTorch knows `train` alone: the same network with autograd and plain SGD. `RemoteSteps` is the other end.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
Step = Callable[[], object]


class RemoteSteps:
    """Steps in a process of another Python."""

    def __init__(self, python: Path, *words: str) -> None:
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.train_step_process", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.name = self._read()

    def _read(self) -> str:
        if self._process.stdout is None:
            raise SystemExit("the process has no standard output")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that trains ended with {self._process.wait()}")
        return line.strip()

    def seconds(self, signature: str) -> float:
        """Do one step there; return its CPU seconds."""
        if self._process.stdin is None:
            raise SystemExit("the process has no standard input")
        self._process.stdin.write(f"{signature}\n")
        self._process.stdin.flush()
        return int(self._read()) / 1e9

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(10)


def write_cases(path: Path, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the arguments of every signature."""
    arrays = {f"{name}/{key}": value for name, inputs in cases.items() for key, value in inputs.items()}
    # numpy's stub takes the first keyword for its own `allow_pickle`.
    np.savez(path, **arrays)


def read_cases(path: Path) -> dict[str, dict[str, Any]]:
    """Inverse of `write_cases`."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(path) as archive:
        for name in archive.files:
            signature, _, argument = name.partition("/")
            cases.setdefault(signature, {})[argument] = archive[name]
    return cases


def tflite_steps(model: Path, cases: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Step]]:
    """Return tflite-runtime's name and its steps."""
    import tflite_runtime
    from tflite_runtime.interpreter import Interpreter

    interpreter = Interpreter(str(model), num_threads=1)

    def step(name: str) -> Step:
        runner, inputs = interpreter.get_signature_runner(name), dict(cases[name])
        return lambda: runner(**inputs)

    return f"tflite-runtime {tflite_runtime.__version__}", {name: step(name) for name in cases}


def torch_steps(cases: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Step]]:
    """Return PyTorch's name and its step: rows as activations, one matmul a step for the input side, tied embedding."""
    import torch

    torch.set_num_threads(1)
    given = cases["train"]
    width = given["projection"].shape[0]
    embedding = torch.tensor(given["output_rows"][:, :width].copy(), requires_grad=True)
    output_bias = torch.tensor(given["output_rows"][:, width].copy(), requires_grad=True)
    kernel = torch.tensor(given["kernel_rows"][:, : 2 * width].copy(), requires_grad=True)
    kernel_bias = torch.tensor(given["kernel_rows"][:, 2 * width].copy(), requires_grad=True)
    projection = torch.tensor(given["projection"].copy(), requires_grad=True)
    tokens = torch.tensor(given["tokens"].T.astype(np.int64))
    targets = torch.tensor(given["targets"].T.reshape(-1).astype(np.int64))
    optimizer = torch.optim.SGD(
        [embedding, output_bias, kernel, kernel_bias, projection], lr=float(given["learning_rate"])
    )

    def step() -> None:
        optimizer.zero_grad()
        length, batch = tokens.shape
        z_inputs = embedding[tokens] @ kernel[:, :width].T + kernel_bias
        h, c = torch.zeros(batch, width), torch.zeros(batch, projection.shape[1])
        states = []
        for t in range(length):
            forget, output, candidate = (z_inputs[t] + h @ kernel[:, width:].T).chunk(3, dim=1)
            g = torch.tanh(candidate)
            c = g + torch.sigmoid(forget) * (c - g)
            h = (torch.sigmoid(output) * torch.tanh(c)) @ projection.T
            states.append(h)
        logits = torch.cat(states) @ embedding.T + output_bias
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()

    return f"torch {torch.__version__}", {"train": step}


def main() -> None:
    if sys.argv[1] == "tflite":
        name, steps = tflite_steps(Path(sys.argv[2]), read_cases(Path(sys.argv[3])))
    else:
        name, steps = torch_steps(read_cases(Path(sys.argv[2])))
    print(name, flush=True)
    for line in sys.stdin:
        step = steps[line.strip()]
        started = time.process_time_ns()
        step()
        print(time.process_time_ns() - started, flush=True)


if __name__ == "__main__":
    main()
