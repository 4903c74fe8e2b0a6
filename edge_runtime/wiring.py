"""Which adapters a real device runs with."""

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import identity
from edge_runtime.adapters.clock import SystemClock
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.adapters.sensors.files import FileSensors
from edge_runtime.agent import Ports
from edge_runtime.config import Settings
from edge_runtime.ports import SignatureRunner

if TYPE_CHECKING:
    from edge_runtime.adapters.interpreter import InterpreterRuntime

PACKAGES = {"litert": ("ai_edge_litert", "ai-edge-litert"), "tflite": ("tflite_runtime", "tflite-runtime")}


class LazyRuntime:
    """Implements ModelRuntime; loads numpy and the interpreter at the first model: an idle device stays small."""

    def __init__(self, settings: Settings) -> None:
        self._wanted = settings.runtime
        self._loaded: InterpreterRuntime | None = None

    def _runtime(self) -> "InterpreterRuntime":
        if self._loaded is None:
            from edge_runtime.adapters.interpreter import InterpreterRuntime

            self._loaded = InterpreterRuntime(self._wanted)
        return self._loaded

    @property
    def name(self) -> str:
        """Which interpreter and version, found without loading it."""
        for short in ("litert", "tflite") if self._wanted == "auto" else (self._wanted,):
            module, package = PACKAGES[short]
            if importlib.util.find_spec(module) is not None:
                try:
                    return f"{short} {version(package)}"
                except PackageNotFoundError:
                    return short
        return "none"

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


def real_ports(home: Path, settings: Settings) -> Ports:
    """Return the ports of an enrolled device. Raises `identity.NotEnrolled`, `Unreachable` for a bad broker address."""
    enrolled = identity.load_enrolled(home)
    clock = SystemClock()
    return Ports(
        clock=clock,
        sensors=FileSensors(Path(settings.sensors_root)),
        transport=MqttTransport(enrolled.broker_url, enrolled.device),
        downloads=HttpDownloads(),
        trainer=InProcessTrainer(home, LazyRuntime(settings), identity.system_entropy, clock),
        entropy=identity.system_entropy,
    )
