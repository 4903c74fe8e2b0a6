"""Claim: int8 suggestions cost half of float32's CPU, lose next to no recall, and a parameter takes one byte and a bit.

- `int8_vs_float32`: CPU of one `suggest` (a step and its three likeliest words) in the float32 file over that in the
  int8 file, both converted from the same graph and weights and run by ai-edge-litert as a device runs them, turn by
  turn in one process; the median over rounds;
- `suggest_us`, `suggest_us_p95`, `context20_us`: microseconds of CPU a call, int8, over single calls;
- `recall_points_lost`: top-3 recall of the float32 file less that of the int8 file, in points, on the last fifths of
  dev people's text, a stream a person, the state carried along;
- `bytes_a_parameter`: of the whole file, with its training graphs; beside it of a file with the suggestions alone, and
  of the weights;
- tflite-runtime (in `.venv-device`) and the numpy engine turn by turn with them, each by a pipe, without targets.

Weights: the converged base of `benchmarks.learning_base` if one is in `.cache/bench` (the newest, whichever code made
it), else the public start there. Without either, CPU and bytes are those of the reference model untrained, and recall
is that of the shipped starter, of the preset `small`. The last line says which (`weights`, `recall_weights`).

Run: python -m benchmarks.infer [--rounds 60] [--seed 1]
The last line is one JSON object.
"""

import argparse
import contextlib
import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.learning_base import CACHE, key, people
from benchmarks.suggest_process import ROOT, Ids, RemoteSuggestions, Suggestions
from edge_runtime.adapters.runtime_choice import open_model
from edge_runtime.evaluation import NOT_SCORED
from edge_runtime.ports import SignatureRunner
from model_export.bundle import make_manifest
from model_export.checkpoint import load_checkpoint
from model_export.convert import Template, convert
from model_export.network import CANDIDATES, PRESETS, NetworkSize, initial_tensors, layout_without_file
from model_export.quiet import quiet
from wire_contract.layout import Tensors
from wire_contract.manifest import Manifest, encode_manifest
from wire_contract.vocabulary import SPECIALS, Vocabulary

CALLS_A_ROUND: Final = 20
WARM_UP_ROUNDS: Final = 5
TAIL_WORDS: Final = 1200
# A wrong vocabulary beside the weights would score a few percent.
LEAST_RECALL: Final = 15.0
TARGETS: Final = {"int8_vs_float32": 1.9, "recall_points_lost": 0.2, "bytes_a_parameter": 1.25}


@dataclass(frozen=True)
class Weights:
    """What is measured: float32 tensors, their vocabulary, and where they came from."""

    origin: str
    preset: str
    tensors: Tensors
    vocabulary: Vocabulary

    @property
    def size(self) -> NetworkSize:
        """The preset's."""
        return PRESETS[self.preset]


def _newest(pattern: str) -> Path | None:
    found = sorted(CACHE.glob(pattern), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def trained() -> Weights | None:
    """Return the best trained reference weights that are here."""
    words = _newest("public/*/start/vocabulary.txt")
    if words is None:
        return None
    size, vocabulary = PRESETS["reference"], Vocabulary.from_bytes(words.read_bytes())
    base, start = _newest("base/*/converged.npz"), words.with_name("reference.npz")
    if base is not None:
        with np.load(base) as kept:
            tensors = layout_without_file(size).unflatten(kept["master"].astype(np.float32))
        made = "this code's" if base.parent.name == key() else "made by earlier code"
        return Weights(f"converged base {base.parent.name} ({made})", "reference", tensors, vocabulary)
    if start.exists():
        return Weights(f"public start {words.parts[-3]}", "reference", load_checkpoint(start, size), vocabulary)
    return None


def starter() -> Weights:
    """Return the weights that the repository ships."""
    folder = ROOT / "model_export" / "starter"
    vocabulary = Vocabulary.from_bytes((folder / "vocabulary.txt").read_bytes())
    return Weights("shipped starter", "small", load_checkpoint(folder / "small.npz", PRESETS["small"]), vocabulary)


def untrained(vocabulary: Vocabulary, seed: int) -> Weights:
    """Return reference weights as training begins with them: what they cost does not depend on their values."""
    rng = np.random.Generator(np.random.PCG64(seed))
    origin = "untrained: make bench-setup makes the trained reference model"
    return Weights(origin, "reference", initial_tensors(PRESETS["reference"], rng), vocabulary)


def float32_file(tensors: Tensors) -> bytes:
    """Return the suggestions' graphs converted as they are, without quantization."""
    import tensorflow as tf

    from model_export.signatures import suggestion_signatures

    functions = suggestion_signatures(tensors)
    with tempfile.TemporaryDirectory(prefix="infer-") as folder:
        tf.saved_model.save(tf.Module(), folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return bytes(converter.convert())


@dataclass(frozen=True)
class Files:
    """The same weights three times: the exported file, the suggestions alone, and float32."""

    whole: bytes
    manifest: Manifest
    suggestions_bytes: int
    float32: bytes


def make_files(weights: Weights) -> Files:
    """Convert; the int8 weights are patched into the template as the exporter, the cloud and a phone do it."""
    with quiet():
        template: Template = convert(weights.size)
        alone = convert(weights.size, families=("suggest", "suggest_context"))
        plain = float32_file(weights.tensors)
    data, manifest = make_manifest(
        template, weights.tensors, weights.vocabulary, population="infer", candidates=CANDIDATES,
        logit_tolerance=0.25, now=1, valid_s=86_400,
    )  # fmt: skip
    return Files(data, manifest, len(alone.data), plain)


def dev_tails(vocabulary: Vocabulary) -> list[Ids]:
    """Return each dev person's last fifth as ids, at most `TAIL_WORDS`."""
    tails = []
    for person in people("dev"):
        ids = [token for text in person.head_and_tail()[1] for token in vocabulary.encode_text(text)]
        tails.append(np.array(ids[:TAIL_WORDS], np.int32))
    return [tail for tail in tails if len(tail) > 1]


def hits(runner: SignatureRunner, size: NetworkSize, tails: Sequence[Ids], told: str) -> NDArray[np.bool_]:
    """Return for each scored word whether it was among the three that `suggest` named."""
    found = []
    for tail in tqdm(tails, desc=told, leave=False):
        state: dict[str, Any] = {
            "state_h": np.zeros((1, size.width), np.float32), "state_c": np.zeros((1, size.cells), np.float32)
        }  # fmt: skip
        for place in range(len(tail) - 1):
            outputs = runner.run("suggest", {"token": tail[place : place + 1], **state})
            state = {"state_h": outputs["next_state_h"], "state_c": outputs["next_state_c"]}
            if tail[place + 1] not in NOT_SCORED:
                # A word outside the vocabulary counts as a miss.
                found.append(bool(tail[place + 1] >= len(SPECIALS) and tail[place + 1] in outputs["ids"]))
    return np.array(found)


def recall(int8: SignatureRunner, float32: SignatureRunner, weights: Weights) -> dict[str, float]:
    """Return both recalls in percent, what int8 loses, and the standard error of that over words."""
    tails = dev_tails(weights.vocabulary)
    one = hits(int8, weights.size, tails, "recall, int8")
    other = hits(float32, weights.size, tails, "recall, float32")
    if 100 * other.mean() < LEAST_RECALL:
        raise SystemExit(f"{weights.origin} has a top-3 recall of {100 * other.mean():.1f} %: another vocabulary's?")
    lost = other.astype(np.float64) - one
    return {
        "recall_points_lost": round(100 * float(lost.mean()), 3),
        "recall_points_lost_standard_error": round(100 * float(lost.std() / np.sqrt(len(lost))), 3),
        "top3_float32": round(100 * float(other.mean()), 3),
        "top3_int8": round(100 * float(one.mean()), 3),
        "words": len(lost),
        "people": len(tails),
    }


Engine = Suggestions | RemoteSuggestions


def measure(engines: Mapping[str, Engine], rounds: int) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Return microseconds [rounds, CALLS_A_ROUND] by engine and signature, each engine in each round."""
    turns = [(name, signature) for name in engines for signature in ("suggest", "suggest_context")]
    times: dict[tuple[str, str], list[list[int]]] = {turn: [] for turn in turns}
    for number in tqdm(range(WARM_UP_ROUNDS + rounds), desc="rounds", leave=False):
        for place in range(len(turns)):
            # The order turns, so that no engine always finds another's leavings in the caches.
            turn = turns[(number + place) % len(turns)]
            times[turn].append(engines[turn[0]].times(turn[1], CALLS_A_ROUND))
    return {turn: np.array(each[WARM_UP_ROUNDS:]) / 1e3 for turn, each in times.items()}


def cpu_name() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str | None]:
    """Return the packages that were measured; None for one that is not in this environment."""
    found: dict[str, str | None] = {}
    for name in ("ai-edge-litert", "tensorflow", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def report(
    times: Mapping[tuple[str, str], NDArray[np.float64]], scored: dict[str, float], files: Files, weights: Weights
) -> dict[str, Any]:
    """Return what the JSON line holds of the results, and print the table."""
    print(f"{'engine':<24}{'suggest us':>11}{'p95':>8}{'20 words us':>13}")
    engines = {}
    for name in dict.fromkeys(name for name, _ in times):
        step, context = times[name, "suggest"], times[name, "suggest_context"]
        engines[name] = {
            "suggest_us": round(float(np.median(step)), 1),
            "suggest_us_p95": round(float(np.percentile(step, 95)), 1),
            "context20_us": round(float(np.median(context)), 1),
        }
        print(f"{name:<24}{np.median(step):>11.1f}{np.percentile(step, 95):>8.1f}{np.median(context):>13.1f}")
    ratios = np.median(times["litert float32", "suggest"], axis=1) / np.median(times["litert", "suggest"], axis=1)
    low, median, high = np.percentile(ratios, [10, 50, 90])
    parameters = weights.size.parameters
    whole, alone = len(files.whole) / parameters, files.suggestions_bytes / parameters
    print(f"\nfloat32 / int8 a step: {median:.2f} ({low:.2f}..{high:.2f})")
    print(
        f"top-3 recall: {scored['top3_float32']:.2f} % float32, {scored['top3_int8']:.2f} % int8, "
        f"{scored['recall_points_lost']:.2f} points lost (standard error "
        f"{scored['recall_points_lost_standard_error']:.2f}) on {scored['words']:,} words"
    )
    print(f"bytes a parameter: {whole:.3f} whole file, {alone:.3f} suggestions alone")
    return {
        "int8_vs_float32": round(float(median), 3),
        "int8_vs_float32_p10": round(float(low), 3),
        "int8_vs_float32_p90": round(float(high), 3),
        **engines["litert"],
        **scored,
        "bytes_a_parameter": round(whole, 4),
        "bytes_a_parameter_suggestions_alone": round(alone, 4),
        "bytes_a_parameter_weights": round(sum(each.size_bytes for each in files.manifest.tensors) / parameters, 4),
        "file_bytes": len(files.whole),
        "float32_file_bytes": len(files.float32),
        "engines": engines,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error(f"--rounds is at least 1, got {asked.rounds}")
    learned = trained() or starter()
    weights = learned if learned.preset == "reference" else untrained(learned.vocabulary, asked.seed)
    print(f"weights: {weights.origin}; {weights.size.parameters:,} parameters")
    print(f"recall of: {learned.origin}, preset {learned.preset}\n")
    files = make_files(weights)
    int8 = open_model(files.whole, "litert", files.manifest)
    float32 = open_model(files.float32, "litert")
    # Dev people's words in an order of the seed's: what the calls read does not change what they cost.
    tails = dev_tails(weights.vocabulary)
    order = np.random.Generator(np.random.PCG64(asked.seed)).permutation(len(tails))
    tokens = np.concatenate([tails[i] for i in order])
    shape = {"width": weights.size.width, "cells": weights.size.cells}
    engines: dict[str, Engine] = {
        "litert": Suggestions(int8, tokens, **shape),
        "litert float32": Suggestions(float32, tokens, **shape),
    }
    device = ROOT / ".venv-device" / "bin" / "python"
    with tempfile.TemporaryDirectory(prefix="infer-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(files.whole)
        (folder / "manifest.msgpack").write_bytes(encode_manifest(files.manifest))
        np.save(folder / "tokens.npy", tokens)
        remote = {"numpy": RemoteSuggestions(Path(sys.executable), "numpy", folder)}
        if device.exists():
            remote["tflite-runtime"] = RemoteSuggestions(device, "tflite", folder)
        for each in remote.values():
            stack.callback(each.close)
        times = measure({**engines, **remote}, asked.rounds)
    if learned is not weights:
        scored = make_files(learned)
        int8, float32 = open_model(scored.whole, "litert"), open_model(scored.float32, "litert")
    found = report(times, recall(int8, float32, learned), files, weights)
    met = {
        "int8_vs_float32": found["int8_vs_float32"] >= TARGETS["int8_vs_float32"],
        "recall_points_lost": found["recall_points_lost"] <= TARGETS["recall_points_lost"],
        "bytes_a_parameter": found["bytes_a_parameter"] <= TARGETS["bytes_a_parameter"],
    }
    print(
        json.dumps(
            {
                "benchmark": "infer",
                **found,
                "targets": TARGETS,
                "targets_met": met,
                "weights": weights.origin,
                "recall_weights": f"{learned.origin}, preset {learned.preset}",
                "preset": weights.preset,
                "parameters": weights.size.parameters,
                "seed": asked.seed,
                "rounds": asked.rounds,
                "calls_a_round": CALLS_A_ROUND,
                "cpu": cpu_name(),
                "versions": versions(),
                "other_engines": {name: each.name for name, each in remote.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
