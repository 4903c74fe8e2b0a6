"""The next-word family's signatures run by numpy: what an open file is to an interpreter.

Use it through `adapters.numpy_runtime` on a device; on its own where there is no manifest (a benchmark). It reads no
graph: what it computes is the family's own formulas, and the check of a version (`model_check`) tells whether the
file's are the same.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.numpy_engine import inference, training
from edge_runtime.numpy_engine.arguments import FAMILIES, Size, WrongArgument, arguments_of, checked
from edge_runtime.ports import Arrays, RuntimeFailed
from wire_contract.manifest import SignatureSpec, signature_family


class NumpyModel:
    """Implements SignatureRunner. Nothing is shared between calls but the suggestions' weights, which do not change."""

    def __init__(
        self, specs: Mapping[str, SignatureSpec], *, words: int, width: int, cells: int,
        tensors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:  # fmt: skip
        """`specs` are the manifest's signatures; without the version's `tensors` there are no suggestions."""
        size = Size(words, width, cells)
        self._functions: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "train": training.train,
            "train_private": training.train_private,
            "train_sampled": training.train_sampled,
            "evaluate": inference.evaluate,
        }
        if tensors is not None:
            suggester = inference.Suggester(tensors)
            self._functions |= {"suggest": suggester.suggest, "suggest_context": suggester.suggest_context}
        self._arguments = {
            name: arguments_of(name, spec, size)
            for name, spec in specs.items()
            if signature_family(name) in FAMILIES and signature_family(name) in self._functions
        }

    @property
    def signatures(self) -> frozenset[str]:
        """Names of the signatures that it runs."""
        return frozenset(self._arguments)

    def run(self, name: str, inputs: Arrays) -> dict[str, Any]:
        """Run one signature. Raises `RuntimeFailed` for an unknown name or a wrong input."""
        if name not in self._arguments:
            raise RuntimeFailed(f"the model has signatures {sorted(self._arguments)}, got {name!r}")
        try:
            arrays = checked(self._arguments[name], inputs)
        except WrongArgument as e:
            raise RuntimeFailed(f"signature {name!r} does not run: {e}") from e
        # A weight that overflowed gives infinities, as in the interpreters; whoever reads the result judges it.
        with np.errstate(all="ignore"):
            try:
                return self._functions[signature_family(name)](arrays)
            except MemoryError as e:
                raise RuntimeFailed(f"signature {name!r} does not run: {e or 'out of memory'}") from e
