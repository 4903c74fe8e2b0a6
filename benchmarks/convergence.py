"""Claim: a nightly update of 12 kB keeps what float32's 5.7 MB would have taught (median bytes, 1,422,250 parameters).

Protocol (rare participation): from a converged base (`benchmarks.learning_base`: half of the train people) the other
half joins for 36 steps of 20 updates, so each comes about 3.6 times. Every run uses the product's own code
(`fleet_simulator.learning`). Runs of one seed are pairs: the same devices, rows, dropout and candidates under every
codec, and float32 with the same local work. All settings below, float32's server rate among them, were chosen on dev
people; what is printed is of test people, their last fifth.

    progress       the share of float32's reduction of held-out cross-entropy that is kept, mean over seeds
    progress_top3  the same of its gain in top-3 recall (one run scatters by about 0.12)
    async_vs_sync  top-3 recall at equal client updates: 240 steps of 20 by all train people from the public start,
                   staleness uniform in 0..3 against none, float32 both, each with its own server settings

Bytes are whole updates as published: sealed, signed, with every header. The median is of all updates of all seeds;
mean and 90th percentile stand beside it, for a threshold lets a long text say more than a short one.

    python -m benchmarks.convergence --full    all runs (about 45 minutes of two cores); writes results/convergence.json
    python -m benchmarks.convergence --bar     checks and prints the stored result and runs one seed's pair again
Both go on where they were stopped.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from benchmarks import learning_base
from benchmarks.convergence_runs import (
    ASYNC_STEPS,
    GOAL,
    OLD_TOPK,
    STEPS,
    Timing,
    Variant,
    name_of,
    run_timing,
    run_variant,
)
from benchmarks.learning_base import CACHE, ROOT, Base
from cloud_aggregator.server_optimizer import OptimizerSettings
from fleet_simulator.learning import SYNCHRONOUS, UNIFORM_STALENESS
from keyboard_demo.typists import Split
from wire_contract.messages import CodecPlan

SEEDS: Final = (1, 2, 3)
ASYNC_SEEDS: Final = (1, 2)
BAR_TOLERANCE: Final = 0.02
RESULT: Final = ROOT / "benchmarks" / "results" / "convergence.json"
RECORDS: Final = CACHE / "convergence"


def _threshold(least: float, bits: int = 2) -> CodecPlan:
    return CodecPlan(mode="topk", bits=bits, kept=0.1, threshold=least)


VARIANTS: Final = (
    Variant("float32", float32=True),
    Variant("topk 1 %, error feedback", OLD_TOPK, residual_keep=1.0),
    Variant("threshold 12 kB, no basis", _threshold(1.08e-3)),
    Variant("threshold 6 kB", _threshold(1.7e-3), principal=True),
    Variant("threshold 12 kB", _threshold(1.02e-3), principal=True),
    Variant("threshold 24 kB", _threshold(5.1e-4), principal=True),
    Variant("threshold 48 kB", _threshold(2.0e-4), principal=True),
    Variant("shared 5 %", CodecPlan(mode="shared", kept=0.05, bits=4, unit=2.0**-10), shared=True, residual_keep=1.0),
)
CLAIM: Final = "threshold 12 kB"
WIDE: Final = "threshold 24 kB"


def _async_optimizer(rate: float, beta1: float) -> OptimizerSettings:
    return OptimizerSettings(
        learning_rate=rate, beta1=beta1, beta2=0.99, epsilon=1e-4, warmup_steps=10, decay_steps=ASYNC_STEPS
    )


TIMINGS: Final = (
    Timing("synchronous", SYNCHRONOUS, _async_optimizer(2e-2, 0.5)),
    Timing("staleness 0..3", UNIFORM_STALENESS, _async_optimizer(2e-2, 0.0)),
)


def wanted_runs() -> list[tuple[Variant | Timing, int]]:
    """Return every run of the full result."""
    runs: list[tuple[Variant | Timing, int]] = [(variant, seed) for seed in SEEDS for variant in VARIANTS]
    return runs + [(timing, seed) for seed in ASYNC_SEEDS for timing in TIMINGS]


def inputs_hash(base: Base) -> str:
    """Return the hash of all that the stored result depends on: base, settings, seeds, code."""
    names = [name_of(base, made, seed, "test") for made, seed in wanted_runs()]
    return hashlib.sha256(" ".join(names).encode()).hexdigest()


def _record(base: Base, made: Variant | Timing, seed: int, split: Split, folder: Path) -> dict:
    """Return a run's record out of the cache, or run it in a process of its own first."""
    path = folder / f"{name_of(base, made, seed, split)}.json"
    if not path.exists():
        words = [sys.executable, "-m", "benchmarks.convergence", "--one", made.name, "--seed", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [*words, "--split", split], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"run {made.name} {seed} failed: {done.stderr.strip()[-800:]}")
        part = path.with_suffix(".part")
        part.write_text(done.stdout.strip().splitlines()[-1])
        part.rename(path)
    record: dict = json.loads(path.read_text())
    return record


def run_all(base: Base, wanted: list[tuple[Variant | Timing, int]], split: Split, folder: Path) -> dict:
    """Return all records by (name, seed); as many processes at a time as there are cores."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool, tqdm(total=len(wanted), unit="run") as bar:

        def one(each: tuple[Variant | Timing, int]) -> dict:
            found = _record(base, *each, split, folder)
            bar.update()
            return found

        records = list(pool.map(one, wanted))
    return {(made.name, seed): record for (made, seed), record in zip(wanted, records, strict=True)}


def summarize(records: dict, seeds: tuple[int, ...]) -> list[dict[str, object]]:
    """Return one row a variant: progress against float32 of the same seed, and bytes."""
    rows = []
    for variant in VARIANTS:
        own = [records[variant.name, seed] for seed in seeds]
        full = [records["float32", seed] for seed in seeds]
        kept = [(a["loss"][0] - a["loss"][1]) / (f["loss"][0] - f["loss"][1]) for a, f in zip(own, full, strict=True)]
        gain = [a["top3"][1] - a["top3"][0] for a in own]
        whole = [f["top3"][1] - f["top3"][0] for f in full]
        lost = [f["top1"][1] - a["top1"][1] for a, f in zip(own, full, strict=True)]
        sizes = np.concatenate([a["bytes"] for a in own])
        rows.append({
            "variant": variant.name, "progress": round(float(np.mean(kept)), 3),
            "progress_by_seed": [round(value, 3) for value in kept],
            "progress_top3": round(float(np.sum(gain) / np.sum(whole)), 3),
            "top3_gain": round(float(np.mean(gain)), 3), "top1_points_lost": round(float(np.mean(lost)), 3),
            "median_bytes": round(float(np.median(sizes))), "mean_bytes": round(float(sizes.mean())),
            "p90_bytes": round(float(np.percentile(sizes, 90))), "refused": sum(len(a["refused"]) for a in own),
        })  # fmt: skip
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    print(f"{'codec':<28}{'median B':>10}{'mean B':>10}{'p90 B':>10}{'progress':>10}{'top-3':>8}{'top-1 lost':>12}")
    for row in rows:
        print(
            f"{row['variant']:<28}{row['median_bytes']:>10,}{row['mean_bytes']:>10,}{row['p90_bytes']:>10,}"
            f"{row['progress']:>10.3f}{row['progress_top3']:>8.2f}{row['top1_points_lost']:>12.2f}"
        )


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Draw bytes against progress as an SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "convergence"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    line = [row for row in rows if str(row["variant"]).startswith("threshold") and "no basis" not in row["variant"]]
    axes.plot([r["median_bytes"] for r in line], [r["progress"] for r in line], "o-", label="threshold, principal axes")
    for row in rows:
        if row not in line and row["variant"] != "float32":
            axes.plot(row["median_bytes"], row["progress"], "s", label=row["variant"])
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="median bytes of an update (log)", ylabel="share of float32's progress kept")
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def full(base: Base) -> dict[str, object]:
    """Run everything and store the result."""
    records = run_all(base, wanted_runs(), "test", RECORDS)
    rows = summarize(records, SEEDS)
    recall = {t.name: [records[t.name, seed]["top3"] for seed in ASYNC_SEEDS] for t in TIMINGS}
    sync, stale = (recall[t.name] for t in TIMINGS)
    claim = next(row for row in rows if row["variant"] == CLAIM)
    wide = next(row for row in rows if row["variant"] == WIDE)
    report = {
        "benchmark": "convergence", "params": base.layout.size, "seeds": len(SEEDS), "steps": STEPS, "goal": GOAL,
        "words": records["float32", SEEDS[0]]["words"], "progress": claim["progress"],
        "progress_top3": claim["progress_top3"], "median_bytes": claim["median_bytes"],
        "mean_bytes": claim["mean_bytes"], "top1_points_lost": claim["top1_points_lost"],
        "progress_24kb": wide["progress"], "median_bytes_24kb": wide["median_bytes"],
        "async_seeds": len(ASYNC_SEEDS), "recall": recall,
        "async_vs_sync": round(float(np.mean(np.array(stale) / np.array(sync))), 4),
        "float32": {key: [records["float32", s][key] for s in SEEDS] for key in ("loss", "top1", "top3")},
        "frontier": rows, "base": base.sha256, "inputs": inputs_hash(base), "commit": _commit(),
        "versions": {name: version(name) for name in ("ai-edge-litert", "numpy", "zstandard", "chitchat-dataset")},
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, ROOT / "docs" / "convergence.svg")
    return report


def bar(base: Base) -> dict[str, object]:
    """Check the stored result and run seed 1's pair again. Raises `SystemExit` where they differ."""
    if not RESULT.exists():
        raise SystemExit("no stored result: python -m benchmarks.convergence --full")
    stored: dict[str, object] = json.loads(RESULT.read_text())
    same = stored["inputs"] == inputs_hash(base)
    pair: list[tuple[Variant | Timing, int]] = [(v, 1) for v in VARIANTS if v.float32 or v.name == CLAIM]
    with tempfile.TemporaryDirectory() as folder:
        records = run_all(base, pair, "test", Path(folder))
    own, whole = records[CLAIM, 1], records["float32", 1]
    again = (own["loss"][0] - own["loss"][1]) / (whole["loss"][0] - whole["loss"][1])
    claim = next(row for row in stored["frontier"] if row["variant"] == CLAIM)
    was = claim["progress_by_seed"][0]
    if same and abs(again - was) > BAR_TOLERANCE:
        raise SystemExit(f"seed 1 kept {was} when it was stored and keeps {again:.3f} now")
    return {**stored, "stored_inputs_match": same, "seed_1_again": round(again, 3),
            "seed_1_median_bytes_again": float(np.median(own["bytes"]))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="run everything and store the result")
    which.add_argument("--bar", action="store_true", help="check the stored result, run one seed again (default)")
    which.add_argument("--one", metavar="NAME", help="one run of a variant; prints its record")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    asked = parser.parse_args()
    base = learning_base.load(make=not asked.one)
    if asked.one:
        timing = next((each for each in TIMINGS if each.name == asked.one), None)
        if timing is not None:
            print(json.dumps(run_timing(base, timing, asked.seed, asked.split)))
            return
        variant = next(each for each in VARIANTS if each.name == asked.one)
        print(json.dumps(run_variant(base, variant, asked.seed, asked.split)))
        return
    report = full(base) if asked.full else bar(base)
    print_table(report["frontier"])
    print(f"asynchronous / synchronous top-3 recall: {report['async_vs_sync']}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
