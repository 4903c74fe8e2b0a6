"""Claim: a version reaches a device ten steps behind in at most 300,000 bytes, byte for byte, at the same recall.

The reference model (1,422,250 values) in a real template. Ten late training steps are published in a row as the
aggregator does it: each version is patched into the file of the version before, once without hysteresis and once for
each of 0.5 (the default), 0.75 and 1.0 codes. For each, what a device downloads: one step (median of the ten), ten
steps as one direct delta and as a chain, against the whole file (raw, and behind zstd 19) and against Flower's float32
record of the same model, serialized by Flower itself where its environment is there (benchmarks.peer_environments),
4 bytes a value otherwise. `new_scales` is one step in which every tensor outgrows its scale: rare, and the worst case.

`identical`: a device's own slots (`edge_runtime.model_slots`) install the newest version from the file ten steps older
with the direct delta, and with the chain, and hold the aggregator's file; the bytes are counted at the Downloads port,
headers of HTTP not included. `recall_points_lost`: top-3 recall without hysteresis minus with 0.5, the same masters as
int8 files on held-out streams, mean over every second version (one scatters by 0.1); null where there are none.

Versions are `.cache/bench/late_versions.npz` (`versions`: float32 [at least 11, n], in layout order; optionally
`streams`, `lengths`: held-out word ids, one person after another), made by the learning harness. Without it they are a
seeded walk whose moves are sparse, heavy-tailed and clustered in rows, and the output says "synthetic".

Run: python -m benchmarks.downlink [--versions FILE] [--steps 10] [--seed 1]
The last line is one JSON object.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from edge_runtime.evaluation import score
from edge_runtime.model_slots import ModelSlots
from edge_runtime.ports import Download, NotThere
from edge_runtime.trust import Keys
from wire_contract import delta, envelope
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest, encode_manifest
from wire_contract.patch import patch, read_tensors
from wire_contract.trust_roles import template_path

CACHE = Path(__file__).parent.parent / ".cache" / "bench"
KEEPS = (0.0, 0.5, 0.75, 1.0)
DEFAULT_KEEP = 0.5
NOW = 1_800_000_000
Floats = NDArray[np.float32]

FLOWER_RECORD = """
import numpy as np, sys
from flwr.app import ArrayRecord
from flwr.common.serde import array_record_to_proto
arrays = [np.zeros(tuple(map(int, shape.split("x"))), np.float32) for shape in sys.argv[1:]]
print(array_record_to_proto(ArrayRecord(arrays)).ByteSize())
"""


def reference_model() -> tuple[bytes, Manifest, bytes]:
    """Return a file of the reference template, its manifest, and the vocabulary's bytes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from model_export.bundle import make_manifest
    from model_export.convert import convert, template_tensors
    from model_export.network import CANDIDATES, PRESETS
    from wire_contract.vocabulary import SPECIALS, Vocabulary

    size = PRESETS["reference"]
    letters = "abcdefghij"
    words = ["".join(letters[int(digit)] for digit in f"{i:05d}") for i in range(size.words - len(SPECIALS))]
    vocabulary = Vocabulary.from_words(words)
    file, manifest = make_manifest(
        convert(size), template_tensors(size), vocabulary, population="bench", candidates=CANDIDATES,
        logit_tolerance=1.0, now=NOW, valid_s=86_400 * 365,
    )  # fmt: skip
    return file, manifest, vocabulary.to_bytes()


def synthetic_versions(layout: Layout, count: int, seed: int) -> Floats:
    """Return `count` late versions of a walk under Adam-like steps; its moves are in rows, like the words of a text."""
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = {t.name: (rng.normal(size=t.shape) * 0.12).astype(np.float64) for t in layout.tensors}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    activity = {}
    for name, value in weights.items():
        rows = np.arange(value.shape[0]) + 20.0
        busy = rows**-0.7 if value.shape[0] == 10_000 else np.exp(rng.normal(size=value.shape[0]) * 0.7)
        activity[name] = (busy / busy.max()).reshape(-1, *[1] * (value.ndim - 1))
    versions, warm_up = [], 60
    for step in range(1, warm_up + count + 1):
        for name, value in weights.items():
            move = rng.standard_t(3, size=value.shape) * activity[name] * 0.02
            move[np.abs(move) < 0.03] = 0.0
            first[name] = 0.5 * first[name] + 0.5 * move
            second[name] = 0.99 * second[name] + 0.01 * move * move
            scaled = np.sqrt(second[name] / (1.0 - 0.99**step)) + 1e-4
            value += 0.0015 * first[name] / (1.0 - 0.5**step) / scaled
        if step > warm_up:
            versions.append(layout.flatten({name: value.astype(np.float32) for name, value in weights.items()}))
    return np.stack(versions)


@dataclass(frozen=True)
class Published:
    """The files of consecutive versions under one setting of hysteresis."""

    keep: float
    files: list[bytes]


def publish(template: bytes, manifest: Manifest, layout: Layout, versions: Floats, keep: float) -> Published:
    """Return the versions' files; before the first, the weights have outgrown the scales of a smaller model."""
    smaller = patch(template, manifest, layout.unflatten(versions[0] * np.float32(0.9)))
    files = [patch(smaller, manifest, layout.unflatten(versions[0]), keep=keep)]
    for vector in versions[1:]:
        files.append(patch(files[-1], manifest, layout.unflatten(vector), keep=keep))
    return Published(keep, files)


class Shelf:
    """A Downloads port over a dictionary that counts what leaves it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.sent = files, 0

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        name = url.removeprefix("http://bench")
        if name not in self.files:
            raise NotThere(name)
        data = self.files[name][start:]
        self.sent += len(data)
        return Download(start, iter([data]))


@dataclass(frozen=True)
class Installed:
    """What a device did: bytes of the new version's download, CPU seconds, and whether it holds the right file."""

    sent: int
    cpu_s: float
    identical: bool


def install(old: bytes, new: bytes, data: bytes, manifest: Manifest, vocabulary: bytes) -> Installed:
    """Let a device that holds `old` install `new`, with `data` as the delta that the aggregator offers."""
    exporter, aggregator = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    template = envelope.sign(exporter, "manifest", encode_manifest(manifest))
    shelf = Shelf(
        {
            template_path(manifest.population, manifest.template_sha256): template,
            f"/v1/vocabularies/{manifest.vocabulary_sha256}": vocabulary,
        }
    )
    keys = Keys(envelope.public_bytes(exporter), envelope.public_bytes(aggregator))
    hashes = [hashlib.sha256(file).hexdigest() for file in (old, new)]
    with tempfile.TemporaryDirectory() as home:
        slots = ModelSlots(Path(home), keys, manifest.population, "http://bench/", shelf, lambda data, manifest: None)
        for number, (file, sha256) in enumerate(zip((old, new), hashes, strict=True)):
            stated = msgspec.structs.replace(
                manifest, version=2 + number, kind="training", sha256=sha256, url=f"/v1/models/{sha256}"
            )
            shelf.files[f"/v1/models/{sha256}"] = file
            if number:
                shelf.files[f"/v1/populations/{manifest.population}/deltas/{hashes[0]}/{sha256}"] = data
            sent, started = shelf.sent, time.process_time()
            slots.install(envelope.sign(aggregator, "manifest", encode_manifest(stated)), "training", NOW + 1)
        cpu_s, held = time.process_time() - started, slots.current("training")
    return Installed(shelf.sent - sent, cpu_s, held is not None and held.data == new)


def top3(file: bytes, manifest: Manifest, streams: Sequence[Sequence[int]]) -> float:
    """Return the top-3 recall, in percent, of a version's int8 weights on held-out people's word ids."""
    from edge_runtime.adapters.interpreter import InterpreterRuntime

    runner = InterpreterRuntime("auto").template(manifest, lambda: file)
    packed = Layout.of(manifest).pack(read_tensors(file, manifest))
    return score(runner, manifest.signatures["evaluate"], packed, streams).top3


def flower_bytes(manifest: Manifest) -> tuple[int, str]:
    """Return the bytes of Flower's record of the model, and how they were found."""
    python = CACHE / "flower" / "bin" / "python"
    plain = 4 * manifest.parameters
    if not python.exists():
        return plain, "4 bytes a value; Flower's environment is not there"
    shapes = ["x".join(map(str, tensor.shape)) for tensor in manifest.tensors]
    asked = subprocess.run([python, "-c", FLOWER_RECORD, *shapes], capture_output=True, text=True, check=False)
    if asked.returncode:
        return plain, "4 bytes a value; Flower's own serializer failed"
    return int(asked.stdout.split()[-1]), "ArrayRecord, serialized by Flower"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=Path, default=CACHE / "late_versions.npz")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    template, manifest, vocabulary = reference_model()
    layout = Layout.of(manifest)
    streams: list[Sequence[int]] = []
    if asked.versions.exists():
        with np.load(asked.versions, allow_pickle=False) as stored:
            versions, source = stored["versions"][-asked.steps - 1 :].astype(np.float32), asked.versions.name
            if "streams" in stored.files:
                streams = np.split(stored["streams"], np.cumsum(stored["lengths"])[:-1])
    else:
        versions, source = synthetic_versions(layout, asked.steps + 1, asked.seed), "synthetic"
    if versions.shape != (asked.steps + 1, layout.size):
        raise SystemExit(f"versions are float32 [{asked.steps + 1}, {layout.size}], got {versions.shape}")
    rows, last, scored = {}, {}, {}
    print(f"versions: {source}, {asked.steps} steps of {manifest.parameters:,} values")
    print(
        f"{'hysteresis':<12}{'1 step':>10}{'10 direct':>11}{'10 chain':>10}{'new scales':>12}"
        f"{'changed':>9}{'encode s':>10}{'install s':>11}"
    )
    for keep in KEEPS:
        files = publish(template, manifest, layout, versions, keep).files
        started = time.process_time()
        hops = [delta.encode(old, new, manifest) for old, new in pairwise(files)]
        direct = delta.encode(files[0], files[-1], manifest)
        encode_s = (time.process_time() - started) / (len(hops) + 1)
        chained = delta.chain(hops)
        done = [install(files[0], files[-1], data, manifest, vocabulary) for data in (direct, chained)]
        exact = patch(template, manifest, layout.unflatten(versions[0]))
        grown = patch(exact, manifest, layout.unflatten(versions[1] * np.float32(1.01)), keep=keep)
        changed = float(np.mean(np.frombuffer(files[0], np.uint8) != np.frombuffer(files[-1], np.uint8)))
        rows[str(keep)] = {
            "one_step": int(np.median([len(hop) for hop in hops])),
            "steps_direct": done[0].sent,
            "steps_chain": done[1].sent,
            "new_scales": len(delta.encode(exact, grown, manifest)),
            "changed_share": round(changed, 5),
            "encode_cpu_s": round(encode_s, 3),
            "install_cpu_s": round(done[0].cpu_s, 3),
            "identical": all(each.identical for each in done),
        }
        last[keep] = files[-1]
        scored[keep] = files[2::2]
        row = rows[str(keep)]
        print(
            f"{keep:<12}{row['one_step']:>10,}{row['steps_direct']:>11,}{row['steps_chain']:>10,}{row['new_scales']:>12,}"
            f"{changed:>9.2%}{encode_s:>10.3f}{done[0].cpu_s:>11.3f}"
        )
    each = (
        {keep: [top3(file, manifest, streams) for file in files] for keep, files in scored.items()} if streams else {}
    )
    recall = {keep: float(np.mean(percents)) for keep, percents in each.items()}
    whole = len(template)
    packed = len(zstandard.ZstdCompressor(level=19).compress(last[0.0]))
    flower, how = flower_bytes(manifest)
    chosen = min(rows[str(DEFAULT_KEEP)]["steps_direct"], rows[str(DEFAULT_KEEP)]["steps_chain"])
    print(f"{'whole file':<12}{whole:>21,}   {whole / chosen:.1f} x what ten steps take at {DEFAULT_KEEP}")
    print(f"{'file, zstd':<12}{packed:>21,}   {packed / chosen:.1f} x")
    print(f"{'Flower':<12}{flower:>21,}   {flower / chosen:.1f} x   ({how})")
    for keep, percent in recall.items():
        print(f"top-3 at hysteresis {keep}: {percent:.3f} %")
    print(
        json.dumps(
            {
                "benchmark": "downlink",
                "params": manifest.parameters,
                "bytes_after_10_steps": chosen,
                "identical": all(row["identical"] for row in rows.values()),
                "recall_points_lost": round(recall[0.0] - recall[DEFAULT_KEEP], 3) if recall else None,
                "ratio_file": round(whole / chosen, 2),
                "ratio_file_zstd": round(packed / chosen, 2),
                "ratio_flower": round(flower / chosen, 2),
                "file_bytes": whole,
                "file_zstd_bytes": packed,
                "flower_bytes": flower,
                "flower_measured": how,
                "hysteresis": rows,
                "top3": {str(keep): round(percent, 3) for keep, percent in recall.items()},
                "top3_by_version": {str(keep): [round(p, 2) for p in percents] for keep, percents in each.items()},
                "versions_source": source,
                "steps": asked.steps,
                "seed": asked.seed,
                "machine": platform.machine(),
                "versions": {name: version(name) for name in ("numpy", "zstandard", "tensorflow")},
            }
        )
    )


if __name__ == "__main__":
    main()
