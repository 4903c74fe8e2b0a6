"""The engine of devices without an interpreter, asked the exporter's conformance cases by the device's own command."""

import sys
from pathlib import Path

import pytest

from model_export.bundle import read_bundle
from model_export.conformance import ConformanceError, judge_all, make_trials, run_on_device

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

DEVICE = Path(__file__).parents[2] / ".venv-device" / "bin" / "python"
PYTHONS = [Path(sys.executable), *([DEVICE] if DEVICE.exists() else [])]


def ask(python, folder, trials):
    command = [str(python), "-m", "edge_runtime.cli"]
    outputs = run_on_device(command, folder / "model.tflite", [trial.case for trial in trials], "numpy")
    return judge_all(trials, outputs)


@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: python.parents[1].name)
def test_the_numpy_engine_agrees_with_float64_in_every_signature(bundle_folder, python):
    bundle = read_bundle(bundle_folder)
    trials = make_trials(bundle, seed=4)
    assert {trial.case.signature for trial in trials} == set(bundle.manifest.signatures)
    findings = ask(python, bundle_folder, trials)
    assert len(findings) > 40
    assert [finding for finding in findings if not finding.holds] == []


def test_without_a_manifest_the_command_says_what_it_needs(bundle_folder):
    trials = make_trials(read_bundle(bundle_folder), seed=4)[-1:]
    (bundle_folder / "manifest.bin").unlink()
    with pytest.raises(ConformanceError, match="opens a model with its manifest, got none"):
        ask(sys.executable, bundle_folder, trials)
