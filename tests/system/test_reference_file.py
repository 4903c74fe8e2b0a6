"""The reference network's whole file: small enough, and right on every device's interpreter at full size."""

import sys
from pathlib import Path

import numpy as np
import pytest

from model_export.conformance import (
    evaluate_trial,
    judge_all,
    private_trial,
    run_on_device,
    runtimes_of,
    sampled_trial,
    train_trial,
)
from model_export.network import CANDIDATES, PRESETS, layout_without_file
from tests.model_export.conftest import lively_tensors

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

ROOT = Path(__file__).parents[2]
DEVICE_PROCESS = ROOT / "tests" / "model_export" / "device_process.py"
LARGEST_FILE = 1_800_000


@pytest.fixture(scope="module")
def reference_template():
    from model_export.convert import convert

    return convert(PRESETS["reference"])


def test_one_file_holds_all_six_signatures_in_one_million_eight_hundred_thousand_bytes(reference_template):
    assert len(reference_template.data) <= LARGEST_FILE
    held = sum(entry.size_bytes for entry in reference_template.tensors)
    assert held > 1_400_000


def test_every_gradient_of_the_reference_network_is_float64s_on_every_interpreter(reference_template, tmp_path):
    size = PRESETS["reference"]
    tensors, layout = lively_tensors(size, seed=3), layout_without_file(size)
    rng = np.random.Generator(np.random.PCG64(9))
    trials = [
        train_trial(tensors, layout, size, rng),
        sampled_trial(tensors, layout, size, CANDIDATES, rng),
        private_trial(tensors, layout, size, rng),
        evaluate_trial(tensors, layout, size, rng),
    ]
    path = tmp_path / "model.tflite"
    path.write_bytes(reference_template.data)
    pythons = [Path(sys.executable), ROOT / ".venv-device" / "bin" / "python"]
    for python in [python for python in pythons if python.exists()]:
        for runtime in runtimes_of(python):
            outputs = run_on_device([str(python), str(DEVICE_PROCESS)], path, [trial.case for trial in trials], runtime)
            findings = judge_all(trials, outputs)
            assert len(findings) > 20
            assert [finding for finding in findings if not finding.holds] == [], (python, runtime)
