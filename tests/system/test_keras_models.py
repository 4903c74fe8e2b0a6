"""Every named Keras model through the exporter and onto the devices' interpreters."""

import sys
from pathlib import Path

import numpy as np
import pytest

from model_export.conformance import judge_all, run_on_device, runtimes_of
from model_export.flatbuffer import operators
from wire_contract.manifest import check_manifest

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

NAMES = (
    "multilayer_perceptron", "convolutional_network", "depthwise_separable_network", "residual_network",
    "text_convolution", "long_short_term_memory", "gated_recurrent_unit", "bidirectional_tagger", "attention_block",
    "normalized_regression", "two_towers", "image_autoencoder", "binary_classifier", "frozen_base_with_head",
)  # fmt: skip
DEVICE = Path(__file__).parents[2] / ".venv-device" / "bin" / "python"


def test_every_named_model_is_in_the_matrix():
    from tests.model_export.keras_models.named import NAMED

    assert sorted(NAMED) == sorted(NAMES)


@pytest.fixture(scope="module", params=NAMES)
def export(request):
    from tests.model_export.keras_models.exported import export_named

    return export_named(request.param)


def test_every_gradient_is_that_of_kerass_own_tape_on_every_device_interpreter(export, tmp_path):
    from tests.model_export.keras_models.exported import trials_of

    path = tmp_path / "model.tflite"
    path.write_bytes(export.file.model)
    trials = trials_of(export, seed=3)
    pythons = [Path(sys.executable), *([DEVICE] if DEVICE.exists() else [])]
    asked = [(python, runtime) for python in pythons for runtime in runtimes_of(python)]
    assert asked
    for python, runtime in asked:
        command = [str(python), "-m", "edge_runtime.cli"]
        outputs = run_on_device(command, path, [trial.case for trial in trials], runtime)
        findings = judge_all(trials, outputs)
        assert len(findings) > len(export.examined.trainable)
        assert [finding for finding in findings if not finding.holds] == [], (python, runtime)


def test_the_file_holds_built_in_operators_and_no_variable_and_its_manifest_keeps_the_contract(export):
    from model_export.keras_graph.array_template import VARIABLE_OPERATORS

    counts = operators(export.file.model)
    assert sorted(counts) == ["evaluate", "predict", "train"] == sorted(export.file.manifest.signatures)
    names = set().union(*counts.values())
    assert not [name for name in names if name.startswith("CUSTOM") or name in VARIABLE_OPERATORS]
    check_manifest(export.file.manifest)
    int8 = {tensor.name for tensor in export.file.manifest.tensors if tensor.kind == "int8"}
    assert int8 == {tensor.name for tensor in export.file.manifest.tensors if tensor.size >= 1024}


def test_the_devices_own_check_of_structure_takes_the_file(export):
    from edge_runtime import flatbuffer_check

    contents = flatbuffer_check.check(export.file.model, export.file.manifest)
    assert sorted(contents.signatures) == ["evaluate", "predict", "train"]


def test_a_hundred_steps_on_one_batch_lower_its_loss(export):
    from model_export.interpreter import Interpreter
    from model_export.keras_graph.agreement import draw_examples
    from wire_contract.patch import read_tensors

    arrays = draw_examples(export.examined, 4, np.random.Generator(np.random.PCG64(9)))
    held = export.layout.pack(read_tensors(export.file.model, export.file.manifest))
    run = Interpreter(export.file.model).run
    given = {**arrays, "example_weights": np.ones(4, np.float32), "learning_rate": np.array(0.02, np.float32)}
    losses = []
    for _ in range(100):
        outputs = run("train", {**given, **held})
        losses.append(float(outputs["loss"]))
        held = {name: outputs[f"trained_{name}"] for name in held}
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
