"""The ModelRuntime port by numpy alone, for machines that have no interpreter's wheel (32-bit Raspberry Pi OS trixie).

The rules:
- it runs the next-word family, whose formulas it knows; another family is refused by name;
- what a manifest calls its train inputs must be what the formulas know; a model that is cut otherwise is refused;
- the pure signatures need nothing of the file; the suggestions' int8 weights are read by the manifest's offsets,
  dequantized once and kept as float32: four bytes a parameter for each version that is open;
- weights and scales that stand in the file more than once must be the same everywhere: an interpreter would use the
  other copy, and the check of a version compares two computations that both read the first one here.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.model_pool import ModelPool
from edge_runtime.numpy_engine.model import NumpyModel
from edge_runtime.ports import RuntimeFailed
from wire_contract.errors import ContractError, Malformed
from wire_contract.manifest import TEXT_FAMILY, Manifest
from wire_contract.patch import read_tensors

TEMPLATES_HELD = 4
VERSIONS_HELD = 2
CHECKED_HELD = 4096


def open_version(data: bytes, manifest: Manifest) -> NumpyModel:
    """Return the runner of a version's file, with all of the manifest's signatures. Raises `RuntimeFailed`."""
    _refuse_other_families(manifest)
    try:
        tensors = read_tensors(data, manifest)
        _check_copies(data, manifest)
    except ContractError as e:
        raise RuntimeFailed(f"the numpy engine cannot open a model of {len(data)} bytes: {e}") from e
    return _model(manifest, tensors)


def _check_copies(data: bytes, manifest: Manifest) -> None:
    for tensor in manifest.tensors:
        for offsets, size in ((tensor.offsets, tensor.size_bytes), (tensor.scale_offsets, 4)):
            if any(data[at : at + size] != data[offsets[0] : offsets[0] + size] for at in offsets[1:]):
                raise Malformed(f"all places of {tensor.name} hold the same bytes, and do not at {offsets}")


def _refuse_other_families(manifest: Manifest) -> None:
    if manifest.family != TEXT_FAMILY:
        raise RuntimeFailed(
            f"the numpy engine runs the {TEXT_FAMILY} family, got {manifest.family}: install ai-edge-litert"
        )


def _model(manifest: Manifest, tensors: Mapping[str, NDArray[np.float32]] | None) -> NumpyModel:
    shapes = {entry.name: entry.shape for entry in manifest.tensors}
    try:
        (words, width), (_, cells) = shapes["embedding"], shapes["projection"]
    except (KeyError, ValueError) as e:
        raise RuntimeFailed(f"the numpy engine knows tensors embedding and projection, got {shapes}") from e
    expected = {
        "embedding": (words, width), "kernel": (3 * cells, 2 * width), "projection": (width, cells),
        "kernel_bias": (3 * cells,), "output_bias": (words,),
    }  # fmt: skip
    packed = {
        "output_rows": (words, width + 2),
        "kernel_rows": (3 * cells, 2 * width + 1),
        "projection": (width, cells),
    }
    columns = {
        "output_rows": [("embedding", 0, width), ("output_bias", width, width + 1)],
        "kernel_rows": [("kernel", 0, 2 * width), ("kernel_bias", 2 * width, 2 * width + 1)],
        "projection": [("projection", 0, cells)],
    }
    found = {each.name: each.shape for each in manifest.train_inputs}
    parts = {each.name: [(p.tensor, p.start, p.stop) for p in each.parts] for each in manifest.train_inputs}
    if shapes != expected or found != packed or parts != columns:
        raise RuntimeFailed(f"the numpy engine knows the train inputs {packed}, got {found} made of {parts}")
    return NumpyModel(manifest.signatures, words=words, width=width, cells=cells, tensors=tensors)


class NumpyRuntime:
    """Implements the ModelRuntime port. Share one object among the agents of a process."""

    def __init__(self) -> None:
        self._templates = ModelPool[NumpyModel](TEMPLATES_HELD)
        self._versions = ModelPool[NumpyModel](VERSIONS_HELD)
        self._checked: OrderedDict[str, None] = OrderedDict()

    @property
    def name(self) -> str:
        """Which engine, and its version: `numpy 2.4.6`."""
        return f"numpy {np.__version__}"

    def template(self, manifest: Manifest, read: Callable[[], bytes]) -> NumpyModel:
        """Return the runner of the pure signatures; the file is not read. Raises `RuntimeFailed`."""
        _refuse_other_families(manifest)
        return self._templates.get(manifest.template_sha256, lambda: _model(manifest, None))

    def version(self, manifest: Manifest, read: Callable[[], bytes], name: str = "") -> NumpyModel:
        """Return the runner of one version's own file. Raises `RuntimeFailed`."""
        return self._versions.get(name or manifest.sha256, lambda: open_version(read(), manifest))

    def checked(self, sha256: str) -> bool:
        """Whether these bytes have passed `model_check` here."""
        return sha256 in self._checked

    def mark_checked(self, sha256: str) -> None:
        """Remember a passed check."""
        self._checked[sha256] = None
        while len(self._checked) > CHECKED_HELD:
            self._checked.popitem(last=False)
