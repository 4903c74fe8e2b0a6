"""Both interpreters of a device, where they are installed, on the tiny fixture."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime import model_check
from edge_runtime.adapters.interpreter import InterpreterRuntime, load_module, open_model
from edge_runtime.model_check import CheckFailed
from edge_runtime.ports import RuntimeFailed
from tests.edge_runtime.test_local_training import MANIFEST, MODEL, PACKED
from wire_contract.patch import patch, read_tensors

INSTALLED = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite", "tflite_runtime"))
    if importlib.util.find_spec(module) is not None
]
CONTEXT = np.array(MANIFEST.golden.tokens, np.int32)


@pytest.fixture(params=INSTALLED)
def runtime(request):
    return InterpreterRuntime(request.param)


def test_a_device_environment_holds_an_interpreter_and_no_tensorflow():
    assert INSTALLED
    if Path(sys.prefix).name != ".venv-device":
        pytest.skip("this is not the device environment: run it with .venv-device/bin/python")
    assert importlib.util.find_spec("tensorflow") is None
    assert importlib.util.find_spec("keras") is None


def test_results_are_the_callers_own_and_survive_the_next_call(runtime):
    model = runtime.version(MANIFEST, lambda: MODEL)
    first = model.run("suggest_context", {"tokens": CONTEXT})
    kept = {name: value.copy() for name, value in first.items()}
    model.run("suggest_context", {"tokens": CONTEXT[::-1].copy()})
    for name, value in kept.items():
        assert np.array_equal(first[name], value)
        first[name][...] = 0
    again = model.run("suggest_context", {"tokens": CONTEXT})
    assert np.array_equal(again["log_probs"], kept["log_probs"])


def test_a_wrong_name_a_wrong_shape_and_bytes_that_are_no_model_are_said_by_name(runtime):
    model = runtime.version(MANIFEST, lambda: MODEL)
    with pytest.raises(RuntimeFailed, match="signatures"):
        model.run("sugest", {})
    with pytest.raises(RuntimeFailed, match="does not run"):
        model.run("suggest_context", {"tokens": np.zeros(3, np.float64)})
    with pytest.raises(RuntimeFailed, match="does not run"):
        model.run("suggest_context", {"words": CONTEXT})
    with pytest.raises(RuntimeFailed, match="cannot open"):
        runtime.version(MANIFEST, lambda: b"not a model at all, but long enough to look", "another file")


def test_all_versions_of_a_template_share_one_interpreter(runtime):
    reads = []

    def read():
        reads.append(1)
        return MODEL

    assert runtime.template(MANIFEST, read) is runtime.template(MANIFEST, read)
    assert len(reads) == 1


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both interpreters: pip install tflite-runtime ai-edge-litert")
def test_both_interpreters_train_and_suggest_alike():
    rows = np.random.default_rng(1).integers(4, 600, (16, 21)).astype(np.int32)
    outputs = []
    for name in INSTALLED:
        model = open_model(MODEL, name)
        trained = model.run(
            "train",
            {
                "tokens": rows[:, :-1].copy(), "targets": rows[:, 1:].copy(), "weights": np.ones((16, 20), np.float32),
                "learning_rate": np.float32(0.5), "output_mask": np.ones((20, 16, 16), np.float32), **PACKED,
            },
        )  # fmt: skip
        outputs.append((trained, model.run("suggest_context", {"tokens": CONTEXT})))
    (trained_a, suggested_a), (trained_b, suggested_b) = outputs
    for name in trained_a:
        np.testing.assert_allclose(trained_a[name], trained_b[name], atol=2e-6)
    np.testing.assert_allclose(suggested_a["log_probs"][4:], suggested_b["log_probs"][4:], atol=0.02)


def test_no_interpreter_at_all_is_said_with_what_to_install():
    code = (
        "import sys; sys.modules['tflite_runtime'] = None; sys.modules['ai_edge_litert'] = None\n"
        "from edge_runtime.adapters.interpreter import load_module\n"
        "from edge_runtime.ports import RuntimeFailed\n"
        "try:\n    load_module('auto')\nexcept RuntimeFailed as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "pip install ai-edge-litert or tflite-runtime" in done.stdout
    assert load_module(INSTALLED[0])[0] == INSTALLED[0]


def test_the_shipped_version_passes_its_golden_check(runtime):
    model_check.check(MODEL, MANIFEST, runtime)
    assert runtime.checked(MANIFEST.sha256)


def other_version(scale=1.3):
    tensors = {name: value * np.float32(scale) for name, value in read_tensors(MODEL, MANIFEST).items()}
    return patch(MODEL, MANIFEST, tensors), msgspec.structs.replace(MANIFEST, sha256="f" * 64)


def test_a_well_patched_version_passes(runtime):
    model_check.check(*other_version(), runtime)


@pytest.mark.parametrize("place", range(4))
def test_a_version_with_any_one_of_the_embeddings_scales_wrong_is_found(runtime, place):
    data, manifest = other_version()
    broken = bytearray(data)
    offset = manifest.tensors[0].scale_offsets[place]
    broken[offset : offset + 4] = (np.frombuffer(broken, "<f4", 1, offset)[0] * np.float32(4.0)).tobytes()
    with pytest.raises(CheckFailed) as caught:
        model_check.check(bytes(broken), manifest, runtime)
    assert caught.value.reason == "logit_tolerance"


def test_an_interpreter_that_computes_something_else_is_found(runtime):
    golden = msgspec.structs.replace(MANIFEST.golden, template_loss=MANIFEST.golden.template_loss + 2e-4)
    with pytest.raises(CheckFailed) as caught:
        model_check.check(MODEL, msgspec.structs.replace(MANIFEST, golden=golden), runtime)
    assert caught.value.reason == "template_loss"


def test_a_version_whose_weights_are_not_finite_is_refused(runtime):
    data, manifest = other_version()
    broken = bytearray(data)
    offset = manifest.tensors[-1].offsets[0]
    broken[offset : offset + 4] = np.float32(np.nan).tobytes()
    with pytest.raises(CheckFailed) as caught:
        model_check.check(bytes(broken), manifest, runtime)
    assert caught.value.reason == "does_not_run"
