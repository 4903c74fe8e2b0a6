"""Two models of arrays through everything: exported, trained on devices that see different data, aggregated, better.

The exporter, the devices' processes and the broker are real processes, the aggregator is the real service, the clock is
virtual. Seeds are fixed; the margins are a fraction of what was measured.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cloud_aggregator.adapters.broker import start_broker
from cloud_aggregator.config import PaceSettings, PopulationSettings, ReleaseSettings
from cloud_aggregator.server_optimizer import OptimizerSettings
from edge_runtime import array_evaluation
from edge_runtime.adapters.runtime_choice import open_runtime
from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import DAY_S, Tick, Visit
from tests.system.array_models import fraud, image_sites
from tests.system.test_fleet import first_midnight
from wire_contract.envelope import read_envelope
from wire_contract.layout import Layout
from wire_contract.manifest import decode_manifest
from wire_contract.messages import CodecPlan, LocalRule, Plan
from wire_contract.patch import read_tensors

ROOT = Path(__file__).parents[2]
BIN, DEVICE_BIN = Path(sys.executable).parent, ROOT / ".venv-device/bin"
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def run(*words):
    done = subprocess.run(list(map(str, words)), cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def export(folder, data_maker, *options):
    """Build the Keras model in a process of its own, export it by the command, and return the bundle's folder."""
    model = folder / "model.keras"
    run(sys.executable, "-m", data_maker.__name__, model)
    run(BIN / "model-export", "keygen", folder / "key.pem")
    words = ("--signing-key", folder / "key.pem", "--population", "sites", "--output", folder / "bundle", *options)
    run(BIN / "model-export", "export-model", model, *words)
    return folder / "bundle"


@dataclass(frozen=True)
class Version:
    """A version's file and manifest, and its score on held-out examples."""

    manifest: object
    data: bytes
    score: array_evaluation.ArrayScore

    @classmethod
    def of(cls, folder, arrays):
        data = (folder / "model.tflite").read_bytes()
        manifest = decode_manifest(read_envelope((folder / "manifest.bin").read_bytes()).body)
        packed = Layout.of(manifest).pack(read_tensors(data, manifest))
        runner = open_runtime("litert").template(manifest, lambda: data)
        return cls(manifest, data, array_evaluation.score(runner, manifest, packed, arrays))


def play(folder, bundle, settings, files, rounds, device_python=None):
    """Let every device come by on every tick of some nights; return the fleet's totals, and write the last version."""
    start = first_midnight()
    broker = start_broker("", folder / "broker", say=lambda text: None)
    try:
        with Fleet(
            folder / "fleet", bundle, settings, seed=5, now=start - 3600, processes=2, broker_url=broker.url,
            device_python=device_python,
        ) as some:  # fmt: skip
            some.move_in_arrays(files)
            for number in range(rounds):
                visits = tuple(Visit(device, "quiet") for device in range(len(files)))
                if number == 1:
                    visits = (Visit(0, "unplugged", step=2), Visit(1, "killed", step=1), *visits[2:])
                night, hour = divmod(number, 2)
                some.play(Tick(night, start + night * DAY_S + (1 + 2 * hour) * 3600, visits, ()))
            some.release()
            some.host.write_refresh(folder / "last")
            some.check_counts()
            some.leave()
            return some.totals()
    finally:
        broker.stop()


def settings(plan, devices):
    return PopulationSettings(
        goal_count=devices - 2,
        minimum_updates=1,
        lease_seconds=5 * DAY_S,
        pace=PaceSettings(minimum_seconds=600, maximum_seconds=3600),
        plan=plan,
        optimizer=OptimizerSettings(name="fedavg", learning_rate=1.0, warmup_steps=0),
        release=ReleaseSettings(cron=""),
    )


def write_sites(folder, make, count):
    paths = []
    for number in range(count):
        paths.append(folder / f"site-{number}.npz")
        np.savez_compressed(paths[-1], **make(number))
    return paths


def evaluate(folder, examples, programs=BIN, *options):
    """Ask the command that a release gate asks."""
    words = (programs / "edge-runtime", "evaluate", folder / "model.tflite", examples, "--json", *options)
    return json.loads(run(*words).splitlines()[-1])


def test_sites_that_each_see_four_digits_teach_one_head_to_read_all_ten(tmp_path):
    bundle = export(tmp_path, image_sites, "--loss", "sparse_categorical_crossentropy", "--train-head", 1)
    held_out = image_sites.held_out()
    first = Version.of(bundle, held_out)
    # The frozen base costs a byte a value.
    assert [t.name for t in first.manifest.tensors] and first.manifest.parameters == 48 * 10 + 10
    assert len(first.data) < 80_000
    plan = Plan(
        signature="train", rows=120, epochs=3, learning_rate=0.3, dropout=0.0, clip_norm=10.0, weight_rule="uniform",
        codec=CodecPlan(kept=0.5),
    )  # fmt: skip
    files = write_sites(tmp_path, image_sites.site, image_sites.SITES)
    totals = play(tmp_path, bundle, settings(plan, image_sites.SITES), files, rounds=12)
    last = Version.of(tmp_path / "last", held_out)
    assert totals.accepted >= 60 and totals.versions >= 12 and totals.interrupted == totals.killed == 1
    assert last.manifest.version > 10 and last.manifest.template_sha256 == first.manifest.template_sha256
    assert first.score.accuracy < 20
    # A site alone knows four digits of ten.
    assert last.score.accuracy > 50, (first.score.accuracy, last.score.accuracy)
    np.savez(tmp_path / "held-out.npz", **held_out)
    asked = evaluate(tmp_path / "last", tmp_path / "held-out.npz")
    assert (asked["examples"], asked["hits"]) == (600, last.score.hits)


def test_banks_that_see_different_fraud_teach_one_model_to_find_both_kinds(tmp_path):
    if not DEVICE_BIN.exists():
        pytest.fail("the devices' environment is missing: make environments")
    bundle = export(tmp_path, fraud, "--loss", "binary_crossentropy")
    held_out = fraud.held_out()
    first = Version.of(bundle, held_out)
    assert len(first.manifest.tensors) == 5
    plan = Plan(
        signature="train", rows=400, epochs=2, learning_rate=0.3, dropout=0.0, clip_norm=10.0, weight_rule="examples",
        example_cap=400, codec=CodecPlan(kept=0.5), rules=(LocalRule(name="proximal", value=0.01),),
    )  # fmt: skip
    files = write_sites(tmp_path, fraud.bank, fraud.BANKS)
    totals = play(tmp_path, bundle, settings(plan, fraud.BANKS), files, 9, DEVICE_BIN / "python")
    assert totals.accepted >= 45
    last = Version.of(tmp_path / "last", held_out)
    (auc_before, recall_before), (auc, recall) = (found_by(v.score.outputs, held_out["target"]) for v in (first, last))
    assert last.score.mean_loss < min(0.18, 0.4 * first.score.mean_loss)
    assert auc > 0.9 > 0.6 > auc_before and recall > recall_before + 0.2, (auc_before, auc, recall_before, recall)
    np.savez(tmp_path / "held-out.npz", **held_out)
    for runtime in ("litert", "tflite"):
        asked = evaluate(tmp_path / "last", tmp_path / "held-out.npz", DEVICE_BIN, "--runtime", runtime)
        assert asked["hits"] == last.score.hits and asked["loss"] == pytest.approx(last.score.mean_loss, abs=2e-5)


def found_by(outputs, target):
    """Return (AUC, recall among a tenth of the payments) of a model's outputs."""
    return fraud.auc(outputs.reshape(-1), target), fraud.recall(outputs.reshape(-1), target)
