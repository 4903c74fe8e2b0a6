"""Real inputs of the other benchmarks, made once from the converged base into `.cache/bench`.

    python -m benchmarks.learning_inputs       about four minutes, and the base first if it is not there

- `deltas.npz`: `deltas` float32 [40, n], model deltas of 40 people who are new to the base (one visit each, with the
  plan of `benchmarks.convergence`), `weights` and `examples`, one each;
- `late_versions.npz`: `versions` float32 [12, n], the master weights of the last twelve of 36 steps of that benchmark's
  12 kB row (low server rate), and the test people's last fifths as ids (`streams`, `lengths`) to score versions on.
Both hold `base`, the base's SHA-256, and are made again when the base is another.
"""

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from benchmarks import convergence, convergence_runs, learning_base
from benchmarks.learning_base import CACHE, Base
from edge_runtime import local_training
from fleet_simulator.learning import Round
from wire_contract.messages import examples_share
from wire_contract.patch import read_tensors

PEOPLE: Final = 40
VERSIONS: Final = 12
DELTAS: Final = CACHE / "deltas.npz"
LATE: Final = CACHE / "late_versions.npz"


def _made_of(path: Path, base: Base) -> bool:
    if not path.exists():
        return False
    with np.load(path) as kept:
        return "base" in kept.files and str(kept["base"]) == base.sha256


def _write(path: Path, base: Base, **arrays: Any) -> None:
    part = path.with_suffix(".part.npz")
    np.savez(part, base=np.array(base.sha256), **arrays)
    part.rename(path)


def make_deltas(base: Base) -> None:
    """Train 40 new people once each on the converged base."""
    plan = convergence_runs.population(convergence.VARIANTS[0], 1).plan
    tensors = read_tensors(base.converged.file, base.manifest)
    packed, received = base.layout.pack(tensors), base.layout.flatten(tensors)
    runner = base.runner()
    deltas, examples = [], []
    for seed, stream in enumerate(tqdm(base.streams(learning_base.halves()[1][:PEOPLE]), desc="deltas")):
        checkpoint = local_training.begin(stream.tolist(), packed, plan, base.manifest, seed)
        for each in local_training.steps(runner, checkpoint, plan, base.manifest, seed):
            checkpoint = each
        deltas.append(base.layout.flatten(base.layout.unpack(checkpoint.packed)) - received)
        examples.append(len(checkpoint.rows))
    weights = [examples_share(plan, count) for count in examples]
    _write(DELTAS, base, deltas=np.stack(deltas), weights=np.array(weights), examples=np.array(examples))


def make_late_versions(base: Base) -> None:
    """Run the 12 kB row's 36 steps and keep the last versions."""
    variant = next(each for each in convergence.VARIANTS if each.name == convergence.CLAIM)
    masters: list[np.ndarray] = []
    with tqdm(total=convergence_runs.STEPS, desc="late versions") as bar:

        def observe(made: Round) -> None:
            bar.update()
            masters.append(made.optimizer.master)
            del masters[:-VERSIONS]

        convergence_runs.learn(base, variant, seed=1, observe=observe)
    tails = base.tails(learning_base.people("test"), convergence_runs.TAIL_IDS)
    _write(
        LATE, base, versions=np.stack(masters), streams=np.concatenate([np.array(t, np.int32) for t in tails]),
        lengths=np.array([len(t) for t in tails]),
    )  # fmt: skip


def make() -> None:
    """Make what is not there."""
    base = learning_base.load()
    if not _made_of(DELTAS, base):
        make_deltas(base)
    if not _made_of(LATE, base):
        make_late_versions(base)


if __name__ == "__main__":
    make()
    print(f"{DELTAS}\n{LATE}", file=sys.stderr)
