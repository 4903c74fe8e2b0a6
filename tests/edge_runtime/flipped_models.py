"""A process that opens broken models: `python -m tests.edge_runtime.flipped_models FILE SEED COUNT PLACES`.

It flips one bit of the file, COUNT times, asks `flatbuffer_check`, and lets the installed interpreter open and run what
that finds sound, as a device would if the file's hash were forged. Before each it says on its output which one; whoever
started it sees by its exit status whether the interpreter took the process with it. PLACES: `all`, or `structure` for
what is no large constant.
"""

import random
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.adapters.interpreter import load_module, open_model
from edge_runtime.flatbuffer_check import FileRefused, verify
from edge_runtime.ports import RuntimeFailed

LARGE = 4096
MEMORY_BYTES = 4 << 30


def flips(data: bytes, seed: int, count: int, places: str) -> list[tuple[int, int]]:
    """Return (position, bit) of each flip."""
    large = [(start, stop) for start, stop, _ in verify(data).constants if stop - start >= LARGE]
    rng, chosen = random.Random(seed), []
    while len(chosen) < count:
        position = rng.randrange(len(data))
        if places == "all" or not any(start <= position < stop for start, stop in large):
            chosen.append((position, rng.randrange(8)))
    return chosen


def questions(data: bytes) -> dict[str, dict[str, Any]]:
    """Return ones for every input of every signature of the whole file."""
    interpreter = load_module("auto")[1].Interpreter(model_content=data, num_threads=1)
    asked = {}
    for name in interpreter.get_signature_list():
        details = interpreter.get_signature_runner(name).get_input_details()
        asked[name] = {key: np.full(each["shape"], 1, each["dtype"]) for key, each in details.items()}
    return asked


def main() -> None:
    """See the module."""
    path, seed, count, places = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    data = path.read_bytes()
    told: Counter[str] = Counter()
    asked = questions(data)
    for position, bit in flips(data, seed, count, places):
        broken = bytearray(data)
        broken[position] ^= 1 << bit
        try:
            verify(bytes(broken))
        except FileRefused as e:
            told[e.reason] += 1
            continue
        sys.stdout.write(f"{position} {bit}\n")
        sys.stdout.flush()
        try:
            model = open_model(bytes(broken), "auto")
            for name, inputs in asked.items():
                model.run(name, inputs)
            told["runs"] += 1
        except RuntimeFailed:
            told["does_not_run"] += 1
    sys.stdout.write(" ".join(f"{name}={number}" for name, number in sorted(told.items())) + "\n")


if __name__ == "__main__":
    main()
