"""The ModelRuntime port that loads numpy and the interpreter at the first model, and knows its name before."""

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from edge_runtime.ports import SignatureRunner

if TYPE_CHECKING:
    from edge_runtime.adapters.interpreter import InterpreterRuntime

RuntimeName = Literal["auto", "litert", "tflite"]
PACKAGES = {"litert": ("ai_edge_litert", "ai-edge-litert"), "tflite": ("tflite_runtime", "tflite-runtime")}


def runtime_name(wanted: RuntimeName) -> str:
    """Return which interpreter and version would be loaded, found without loading it: `litert 2.3.0`, or `none`."""
    for short in ("litert", "tflite") if wanted == "auto" else (wanted,):
        module, package = PACKAGES[short]
        if importlib.util.find_spec(module) is not None:
            try:
                return f"{short} {version(package)}"
            except PackageNotFoundError:
                return short
    return "none"


class LazyRuntime:
    """Implements ModelRuntime."""

    def __init__(self, wanted: RuntimeName) -> None:
        self._wanted = wanted
        self._loaded: InterpreterRuntime | None = None

    def _runtime(self) -> "InterpreterRuntime":
        if self._loaded is None:
            from edge_runtime.adapters.interpreter import InterpreterRuntime

            self._loaded = InterpreterRuntime(self._wanted)
        return self._loaded

    @property
    def name(self) -> str:
        """See `runtime_name`."""
        return runtime_name(self._wanted)

    def template(self, template_sha256: str, read: Callable[[], bytes]) -> SignatureRunner:
        """See `ports.ModelRuntime`."""
        return self._runtime().template(template_sha256, read)

    def version(self, sha256: str, read: Callable[[], bytes]) -> SignatureRunner:
        """See `ports.ModelRuntime`."""
        return self._runtime().version(sha256, read)

    def checked(self, sha256: str) -> bool:
        """See `ports.ModelRuntime`."""
        return self._runtime().checked(sha256)

    def mark_checked(self, sha256: str) -> None:
        """See `ports.ModelRuntime`."""
        self._runtime().mark_checked(sha256)
