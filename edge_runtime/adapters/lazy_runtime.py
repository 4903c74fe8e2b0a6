"""The ModelRuntime port that loads numpy and the engine at the first model, and knows its name before."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_runtime.adapters.runtime_name import RuntimeName, runtime_name
from edge_runtime.ports import SignatureRunner
from wire_contract.manifest import Manifest

if TYPE_CHECKING:
    from edge_runtime.adapters.interpreter import InterpreterRuntime
    from edge_runtime.adapters.numpy_runtime import NumpyRuntime


class LazyRuntime:
    """Implements ModelRuntime."""

    def __init__(self, wanted: RuntimeName) -> None:
        self._wanted = wanted
        self._loaded: InterpreterRuntime | NumpyRuntime | None = None

    def _runtime(self) -> "InterpreterRuntime | NumpyRuntime":
        if self._loaded is None:
            from edge_runtime.adapters.runtime_choice import open_runtime

            self._loaded = open_runtime(self._wanted)
        return self._loaded

    @property
    def name(self) -> str:
        """See `runtime_name`."""
        return runtime_name(self._wanted)

    def template(self, manifest: Manifest, read: Callable[[], bytes]) -> SignatureRunner:
        """See `ports.ModelRuntime`."""
        return self._runtime().template(manifest, read)

    def version(self, manifest: Manifest, read: Callable[[], bytes], name: str = "") -> SignatureRunner:
        """See `ports.ModelRuntime`."""
        return self._runtime().version(manifest, read, name)

    def checked(self, sha256: str) -> bool:
        """See `ports.ModelRuntime`."""
        return self._runtime().checked(sha256)

    def let_go(self) -> None:
        """Close every model and forget what was checked: the interpreter's memory is free then."""
        self._loaded = None

    def mark_checked(self, sha256: str) -> None:
        """See `ports.ModelRuntime`."""
        self._runtime().mark_checked(sha256)
