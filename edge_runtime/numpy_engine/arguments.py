"""The names, shapes and types that the next-word family's signatures take, and the check of a call against them. Pure.

The interpreters refuse a wrong argument; numpy would broadcast it, index from the end, or fail somewhere inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wire_contract.manifest import SignatureSpec, signature_family

INT32, FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)


class WrongArgument(Exception):  # noqa: N818 - named for what is wrong
    """A call does not fit its signature; the message states the rule and what came."""


@dataclass(frozen=True, slots=True)
class Argument:
    """Shape and type of one argument; int32 ones are below `ids` and not negative."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] = FLOAT32
    ids: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """Words of the vocabulary, width of embedding and state, LSTM cells."""

    words: int
    width: int
    cells: int


def arguments_of(name: str, spec: SignatureSpec, size: Size) -> dict[str, Argument]:
    """Return what signature `name` takes. Raises `KeyError` for a family that the engine does not know."""
    batch, length = spec.batch, spec.length
    words, width, cells = size.words, size.width, size.cells
    kernel = {"kernel_rows": Argument((3 * cells, 2 * width + 1)), "projection": Argument((width, cells))}
    weights = {"output_rows": Argument((words, width + 2)), **kernel}
    read = {"tokens": Argument((batch, length), INT32, words)}
    asked = {"targets": Argument((batch, length), INT32, words), "weights": Argument((batch, length))}
    step = {"learning_rate": Argument(()), "output_mask": Argument((length, width, batch))}
    families: dict[str, dict[str, Argument]] = {
        "train": {**read, **asked, **step, **weights},
        "train_private": {**read, **asked, **step, **weights, "example_clip": Argument(())},
        "train_sampled": {
            **step, **kernel,
            "input_rows": Argument((batch * length, width)),
            "candidate_rows": Argument((spec.candidates, width + 2)),
            "targets": Argument((batch, length), INT32, spec.candidates),
            "weights": Argument((batch, length)),
        },
        "evaluate": {
            **read, **asked, **weights, "state_h": Argument((width, batch)), "state_c": Argument((cells, batch)),
        },
        "suggest": {
            "token": Argument((1,), INT32, words), "state_h": Argument((1, width)), "state_c": Argument((1, cells)),
        },
        "suggest_context": {"tokens": Argument((length,), INT32, words)},
    }  # fmt: skip
    return families[signature_family(name)]


FAMILIES = ("train", "train_private", "train_sampled", "evaluate", "suggest", "suggest_context")


def checked(wanted: Mapping[str, Argument], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as C-contiguous arrays. Raises `WrongArgument` for a name, shape, type or id that does not
    fit."""
    if wanted.keys() != given.keys():
        missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
        raise WrongArgument(f"it takes {sorted(wanted)}, missing are {missing}, unknown {unknown}")
    found = {}
    for name, argument in wanted.items():
        try:
            array = np.asarray(given[name])
        except ValueError as e:
            raise WrongArgument(f"{name} is {argument.dtype} of shape {argument.shape}, got no array: {e}") from e
        if array.dtype != argument.dtype or array.shape != argument.shape:
            raise WrongArgument(
                f"{name} is {argument.dtype} of shape {argument.shape}, got {array.dtype} of shape {array.shape}"
            )
        # Some positions are taken straight out of tables: an id below zero would count from their end.
        if argument.ids and array.size and not (array.min() >= 0 and array.max() < argument.ids):
            raise WrongArgument(f"{name} holds ids from 0 to {argument.ids - 1}, got {array.min()}..{array.max()}")
        found[name] = np.ascontiguousarray(array).reshape(argument.shape)
    return found
