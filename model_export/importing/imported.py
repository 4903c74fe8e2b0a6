"""From a source's arrays, a name map and a vocabulary to starting weights, checked against the source's own answers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.importing.logit_check import Agreement, Answers, compare
from model_export.importing.name_map import NameMap, assemble, unused
from model_export.importing.refusal import BadImport
from model_export.importing.vocabulary_file import Rows, in_our_order, read_rows
from model_export.network import EMBEDDING, NetworkSize, size_of
from wire_contract.layout import Tensors


@dataclass(frozen=True, slots=True)
class Imported:
    """What `export --checkpoint` takes, and what was left over in the source."""

    size: NetworkSize
    tensors: Tensors
    rows: Rows
    unused: list[str]


def import_weights(
    arrays: Mapping[str, NDArray[np.generic]],
    names: NameMap,
    vocabulary: bytes,
    wanted: Mapping[str, int],
) -> Imported:
    """Return the network that these arrays are. Raises `BadImport`.

    wanted: `words`, `width`, `cells` where the caller states them, of the imported network: specials counted.
    """
    source_size, tensors = assemble(arrays, names)
    left = unused(arrays, names)
    left = [name for name in left if not _is_tied(name, arrays[name], tensors[EMBEDDING])]
    rows = read_rows(vocabulary, names.specials, source_size.words)
    ours = in_our_order(tensors, rows)
    try:
        size = size_of(ours)
    except ValueError as e:
        raise BadImport(str(e)) from e
    for name, number in wanted.items():
        if getattr(size, name) != number:
            raise BadImport(f"--{name} is {getattr(size, name)} by the source's shapes, got {number}")
    return Imported(size, ours, rows, left)


def _is_tied(name: str, value: NDArray[np.generic], embedding: NDArray[np.float32]) -> bool:
    """Whether an array is the embedding once more, as a tied output layer keeps it.

    Raises `BadImport` for one of its shape that is not: an output layer of its own, which this network has none of.
    """
    for turned in (value, value.T):
        if turned.shape == embedding.shape:
            if np.array_equal(turned.astype(np.float32), embedding):
                return True
            raise BadImport(
                f"embedding and output layer are one matrix (tied), got another one of that shape, {name!r}: a network "
                "with an output layer of its own cannot be imported"
            )
    return False


def check(imported: Imported, answers: Answers) -> Agreement:
    """Hold the imported network against the source's answers. Raises `BadImport`."""
    return compare(imported.tensors, imported.rows, answers)
