"""LiteRT in this process, for what the exporter measures itself; devices are asked in a process of their own."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from model_export.quiet import quiet

Arrays = dict[str, NDArray[np.generic]]


class Interpreter:
    """One file opened by ai-edge-litert with one thread; `run` returns copies."""

    def __init__(self, model: bytes) -> None:
        with quiet():
            from ai_edge_litert.interpreter import Interpreter as LiteRt

            self._interpreter = LiteRt(model_content=model, num_threads=1)
        self._runners: dict[str, Callable[..., Arrays]] = {}

    def run(self, signature: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run one signature on named arrays."""
        runner = self._runners.get(signature)
        if runner is None:
            # The first call allocates and announces its delegate.
            with quiet():
                runner = self._runners[signature] = self._interpreter.get_signature_runner(signature)
                outputs = runner(**inputs)
        else:
            outputs = runner(**inputs)
        return {name: np.array(value) for name, value in outputs.items()}
