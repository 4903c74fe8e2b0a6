"""What runs a device's models, the interpreters that are installed and numpy: one suite, on the tiny fixture."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime import model_check
from edge_runtime.adapters.interpreter import load_module
from edge_runtime.adapters.runtime_choice import open_model, open_runtime
from edge_runtime.model_check import CheckFailed
from edge_runtime.ports import RuntimeFailed
from tests.edge_runtime.test_local_training import MANIFEST, MODEL, PACKED
from wire_contract.manifest import promises_hash
from wire_contract.patch import patch, read_tensors

INSTALLED = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite", "tflite_runtime"))
    if importlib.util.find_spec(module) is not None
]
CONTEXT = np.array(MANIFEST.golden.tokens, np.int32)


@pytest.fixture(params=[*INSTALLED, "numpy"])
def runtime(request):
    return open_runtime(request.param)


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
    # numpy needs nothing of the file for them.
    assert len(reads) == (0 if runtime.name.startswith("numpy") else 1)


def test_all_that_are_installed_train_and_suggest_alike():
    rows = np.random.default_rng(1).integers(4, 600, (16, 21)).astype(np.int32)
    outputs = []
    for name in (*INSTALLED, "numpy"):
        model = open_model(MODEL, name, MANIFEST)
        trained = model.run(
            "train",
            {
                "tokens": rows[:, :-1].copy(), "targets": rows[:, 1:].copy(), "weights": np.ones((16, 20), np.float32),
                "learning_rate": np.float32(0.5), "output_mask": np.ones((20, 16, 16), np.float32), **PACKED,
            },
        )  # fmt: skip
        outputs.append((trained, model.run("suggest_context", {"tokens": CONTEXT})))
    (trained, suggested), *others = outputs
    for trained_here, suggested_here in others:
        for name in trained:
            np.testing.assert_allclose(trained[name], trained_here[name], atol=2e-6)
        np.testing.assert_allclose(suggested["log_probs"][4:], suggested_here["log_probs"][4:], atol=0.02)


def test_a_file_is_opened_by_numpy_with_its_manifest_or_not_at_all():
    with pytest.raises(RuntimeFailed, match="opens a model with its manifest, got none"):
        open_model(MODEL, "numpy")


WITHOUT = "import sys; sys.modules['tflite_runtime'] = None; sys.modules['ai_edge_litert'] = None\n"


def said(code, *, path=()):
    code = f"import sys; sys.path[:0] = {[str(each) for each in path]!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_interpreter_at_all_is_said_with_what_to_install():
    code = (
        "from edge_runtime.adapters.interpreter import load_module\n"
        "from edge_runtime.ports import RuntimeFailed\n"
        "try:\n    load_module('auto')\nexcept RuntimeFailed as e:\n    print(e)\n"
    )
    assert "pip install ai-edge-litert or tflite-runtime" in said(WITHOUT + code)
    assert load_module(INSTALLED[0])[0] == INSTALLED[0]


def test_auto_is_numpy_only_where_neither_interpreter_is_installed():
    code = (
        "from edge_runtime.adapters.lazy_runtime import LazyRuntime\n"
        "from edge_runtime.adapters.runtime_name import runtime_name\n"
        "from edge_runtime.adapters.runtime_choice import open_runtime\n"
        "runtime = LazyRuntime('auto'); runtime.mark_checked('a')\n"
        "print(runtime_name('auto'), open_runtime('auto').name, runtime._loaded.name, sep=',')\n"
    )
    assert said(WITHOUT + code).strip() == ",".join([f"numpy {np.__version__}"] * 3)
    assert all(name.startswith(INSTALLED[0]) for name in said(code).strip().split(","))


def test_a_version_is_checked_and_every_module_of_a_device_loads_where_no_interpreter_is_installed():
    folder = Path(__file__).parent / "fixtures" / "tiny"
    code = (
        "import pkgutil, importlib, edge_runtime\n"
        "for each in pkgutil.walk_packages(edge_runtime.__path__, 'edge_runtime.'):\n"
        "    importlib.import_module(each.name)\n"
        "from pathlib import Path\n"
        "from edge_runtime import model_check\n"
        "from edge_runtime.adapters.lazy_runtime import LazyRuntime\n"
        "from wire_contract.envelope import read_envelope\n"
        "from wire_contract.manifest import decode_manifest, promises_hash\n"
        f"folder = Path({str(folder)!r})\n"
        "manifest = decode_manifest(read_envelope((folder / 'manifest.bin').read_bytes()).body)\n"
        "runtime = LazyRuntime('auto')\n"
        "model_check.check((folder / 'model.tflite').read_bytes(), manifest, runtime)\n"
        "print(runtime.name, runtime.checked(promises_hash(manifest)))\n"
    )
    assert said(WITHOUT + code).strip() == f"numpy {np.__version__} True"


def test_an_interpreter_that_is_installed_and_broken_is_said_and_not_replaced(tmp_path):
    for package in ("ai_edge_litert", "tflite_runtime"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "interpreter.py").write_text("raise ImportError('libfoo.so is missing')")
    code = (
        "from edge_runtime.adapters.runtime_choice import open_runtime\n"
        "from edge_runtime.ports import RuntimeFailed\n"
        "try:\n    open_runtime('auto')\nexcept RuntimeFailed as e:\n    print(e)\n"
    )
    told = said(code, path=[tmp_path])
    assert "ai-edge-litert is installed and does not load: libfoo.so is missing" in told
    assert 'runtime = "numpy"' in told


def test_the_shipped_version_passes_its_golden_check(runtime):
    model_check.check(MODEL, MANIFEST, runtime)
    assert runtime.checked(promises_hash(MANIFEST))


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
    # numpy reads one place, and sees to it that the others are the same.
    assert caught.value.reason == ("does_not_run" if runtime.name.startswith("numpy") else "logit_tolerance")


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
