"""The signatures of the exported file: names, arguments, shapes. Imports TensorFlow.

Argument and result names differ even without regard to case: a SavedModel refuses two that collide.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from model_export import inference_graph, private_graph, training_graph
from model_export.network import CANDIDATES, FAMILIES, LENGTH, NetworkSize, signature_specs
from wire_contract.layout import Tensors
from wire_contract.manifest import signature_family

Function = Any
Argument = tuple[tuple[int, ...], Any]
_TRAIN_GRAPHS: dict[str, Callable[..., Any]] = {
    "train": training_graph.train,
    "train_sampled": training_graph.train_sampled,
    "train_private": private_graph.train_private,
}


def _function(function: Callable[..., Any], **arguments: Argument) -> Function:
    specs = {name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in arguments.items()}
    return tf.function(function).get_concrete_function(**specs)


def _weights(size: NetworkSize) -> dict[str, Argument]:
    return {
        "output_rows": ((size.words, size.width + 2), tf.float32),
        "kernel_rows": ((3 * size.cells, 2 * size.width + 1), tf.float32),
        "projection": ((size.width, size.cells), tf.float32),
    }


def _train_arguments(family: str, size: NetworkSize, candidates: int, batch: int, length: int) -> dict[str, Argument]:
    rows: Argument = ((batch, length), tf.int32)
    scalar: Argument = ((), tf.float32)
    common = {
        "targets": rows,
        "weights": ((batch, length), tf.float32),
        "learning_rate": scalar,
        "output_mask": ((length, size.width, batch), tf.float32),
    }
    weights = _weights(size)
    if family == "train_sampled":
        del weights["output_rows"]
        return {
            "input_rows": ((batch * length, size.width), tf.float32),
            "candidate_rows": ((candidates, size.width + 2), tf.float32),
            **common,
            **weights,
        }
    private: dict[str, Argument] = {"example_clip": scalar} if family == "train_private" else {}
    return {"tokens": rows, **common, **private, **weights}


def training_signatures(
    size: NetworkSize,
    candidates: int = CANDIDATES,
    variants: Sequence[tuple[int, int]] = (),
    families: Sequence[str] = FAMILIES,
) -> Mapping[str, Function]:
    """Return the float32 signatures as concrete functions; they hold no weights.

    One function for each of `families` that is not a suggestion, and one more of each train family for each (batch,
    length) of `variants`.
    """
    functions = {}
    for name, spec in signature_specs(candidates, variants, families).items():
        family = signature_family(name)
        if family in _TRAIN_GRAPHS:
            arguments = _train_arguments(family, size, candidates, spec.batch, spec.length)
            functions[name] = _function(_TRAIN_GRAPHS[family], **arguments)
        elif family == "evaluate":
            functions[name] = _function(
                inference_graph.evaluate,
                tokens=((spec.batch, spec.length), tf.int32),
                targets=((spec.batch, spec.length), tf.int32),
                weights=((spec.batch, spec.length), tf.float32),
                state_h=((size.width, spec.batch), tf.float32),
                state_c=((size.cells, spec.batch), tf.float32),
                **_weights(size),
            )
    return functions


def suggestion_signatures(tensors: Tensors) -> Mapping[str, Function]:
    """Return `suggest` and `suggest_context` over constants, to be converted with int8 weights."""
    width, cells = tensors["projection"].shape
    suggester = inference_graph.Suggester(tensors)
    return {
        "suggest": _function(
            suggester.suggest,
            token=((1,), tf.int32),
            state_h=((1, width), tf.float32),
            state_c=((1, cells), tf.float32),
        ),
        "suggest_context": _function(suggester.suggest_context, tokens=((LENGTH,), tf.int32)),
    }
