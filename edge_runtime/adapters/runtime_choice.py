"""Which of the three engines runs a device's models: ai-edge-litert, tflite-runtime, or numpy where neither is.

The rules:
- a name in the settings is that engine and no other;
- `auto` takes ai-edge-litert, else tflite-runtime; numpy only where neither is installed;
- an interpreter that is installed and cannot be loaded is said, with how to take numpy in its place: what a device runs
  does not change with a broken package.
"""

import importlib.util

from edge_runtime.adapters.interpreter import InterpreterRuntime, Model, load_module
from edge_runtime.adapters.numpy_runtime import NumpyRuntime, open_version
from edge_runtime.adapters.runtime_name import MODULES, RuntimeName
from edge_runtime.ports import RuntimeFailed, SignatureRunner
from wire_contract.manifest import Manifest


def is_numpy(wanted: RuntimeName) -> bool:
    """Whether numpy itself is what runs here."""
    if wanted == "auto":
        return not any(importlib.util.find_spec(module) for module in MODULES.values())
    return wanted == "numpy"


def open_runtime(wanted: RuntimeName) -> InterpreterRuntime | NumpyRuntime:
    """Return the engine that the settings name. Raises `RuntimeFailed` where it is not installed or does not load."""
    if wanted == "numpy" or (wanted == "auto" and is_numpy(wanted)):
        return NumpyRuntime()
    try:
        return InterpreterRuntime(wanted)
    except RuntimeFailed as e:
        raise RuntimeFailed(f'{e}; or set runtime = "numpy", which needs no other package') from e


def open_model(data: bytes, wanted: RuntimeName, manifest: Manifest | None = None) -> SignatureRunner:
    """Open a file, with all of its signatures. Raises `RuntimeFailed`; numpy needs the manifest, which says where the
    weights stand."""
    if wanted == "numpy" or (wanted == "auto" and is_numpy(wanted)):
        if manifest is None:
            raise RuntimeFailed("the numpy engine opens a model with its manifest, got none: name it by --manifest")
        return open_version(data, manifest)
    return Model(data, load_module(wanted)[1])
