"""One adapter over the two interpreters of a device: ai-edge-litert, and tflite-runtime where that has no wheel.

The rules:
- one thread, the default delegates (without XNNPACK litert trains twelve times slower);
- a template's pure signatures (`train`, `train_sampled`, `evaluate`) need no weights from the file, so all versions of
  a template, and all devices of a process, share one interpreter; only `suggest*` opens the version's own file;
- pools are small and drop the interpreter that was used longest ago;
- an interpreter is not thread-safe: one lock each. TensorFlow is never imported.
"""

import importlib
import importlib.util
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from edge_runtime.adapters.model_pool import ModelPool
from edge_runtime.ports import Arrays, RuntimeFailed
from wire_contract.manifest import Manifest

InterpreterName = Literal["auto", "litert", "tflite"]
MODULES = {"litert": "ai_edge_litert.interpreter", "tflite": "tflite_runtime.interpreter"}
PACKAGES = {"litert": "ai-edge-litert", "tflite": "tflite-runtime"}
TEMPLATES_HELD = 4
VERSIONS_HELD = 4
CHECKED_HELD = 4096


class Model:
    """An open file. Signature runners are made once, when first used."""

    def __init__(self, data: bytes, module: Any) -> None:
        try:
            self._interpreter = module.Interpreter(model_content=data, num_threads=1)
            self._names = frozenset(self._interpreter.get_signature_list())
        except (ValueError, RuntimeError) as e:
            raise RuntimeFailed(f"the interpreter cannot open a model of {len(data)} bytes: {e}") from e
        self._runners: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def signatures(self) -> frozenset[str]:
        """Names of the signatures in the file."""
        return self._names

    def run(self, name: str, inputs: Arrays) -> dict[str, Any]:
        """Run one signature. Raises `RuntimeFailed` for an unknown name, a wrong input, or a failing op."""
        if name not in self._names:
            raise RuntimeFailed(f"the model has signatures {sorted(self._names)}, got {name!r}")
        with self._lock:
            try:
                runner = self._runners.get(name)
                if runner is None:
                    # The first call allocates, and says so.
                    with _quiet_stderr():
                        runner = self._runners[name] = self._interpreter.get_signature_runner(name)
                        first: dict[str, Any] = runner(**inputs)
                    return first
                outputs: dict[str, Any] = runner(**inputs)
            except (ValueError, RuntimeError, TypeError) as e:
                raise RuntimeFailed(f"signature {name!r} does not run: {e}") from e
        return outputs


def load_module(runtime: InterpreterName) -> tuple[str, Any]:
    """Return the chosen interpreter's short name and module. Raises `RuntimeFailed` if it is not installed."""
    broken = ""
    for name in ("litert", "tflite") if runtime == "auto" else (runtime,):
        try:
            return name, importlib.import_module(MODULES[name])
        except ImportError as e:
            if importlib.util.find_spec(MODULES[name].split(".")[0]) is not None:
                broken += f"; {PACKAGES[name]} is installed and does not load: {e}"
    wanted = " or ".join(PACKAGES.values()) if runtime == "auto" else PACKAGES[runtime]
    raise RuntimeFailed(f"no interpreter can be loaded: pip install {wanted}{broken}")


def open_model(data_or_path: bytes | Path, runtime: InterpreterName = "auto") -> Model:
    """Open a model file. Raises `RuntimeFailed`, `OSError` for a path that cannot be read."""
    data = data_or_path if isinstance(data_or_path, bytes) else data_or_path.read_bytes()
    return Model(data, load_module(runtime)[1])


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep the interpreter's "Created delegate" line off the person's terminal: it is written to descriptor 2 from C++.

    What goes wrong comes as an exception all the same. Other threads' writes are lost for as long.
    """
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


class InterpreterRuntime:
    """Implements the ModelRuntime port. Share one object among the agents of a process: the pools are its own."""

    def __init__(self, runtime: InterpreterName = "auto") -> None:
        short, self._module = load_module(runtime)
        self._name = f"{short} {getattr(importlib.import_module(MODULES[short].split('.')[0]), '__version__', '')}"
        self._templates = ModelPool[Model](TEMPLATES_HELD)
        self._versions = ModelPool[Model](VERSIONS_HELD)
        self._checked: OrderedDict[str, None] = OrderedDict()

    @property
    def name(self) -> str:
        """Which interpreter, and its version."""
        return self._name.strip()

    def template(self, manifest: Manifest, read: Callable[[], bytes]) -> Model:
        """Return the shared runner of a template's pure signatures."""
        return self._templates.get(manifest.template_sha256, lambda: Model(read(), self._module))

    def version(self, manifest: Manifest, read: Callable[[], bytes], name: str = "") -> Model:
        """Return the runner of one version's own file."""
        return self._versions.get(name or manifest.sha256, lambda: Model(read(), self._module))

    def checked(self, sha256: str) -> bool:
        """Whether these bytes have passed `model_check` here."""
        return sha256 in self._checked

    def mark_checked(self, sha256: str) -> None:
        """Remember a passed check."""
        self._checked[sha256] = None
        while len(self._checked) > CHECKED_HELD:
            self._checked.popitem(last=False)
