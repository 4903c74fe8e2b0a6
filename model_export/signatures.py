"""The five signatures of the exported file: names, arguments, shapes. Imports TensorFlow.

Argument and result names differ even without regard to case: a SavedModel refuses two that collide.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from model_export import inference_graph, training_graph
from model_export.network import BATCH, CANDIDATES, LENGTH, NetworkSize
from wire_contract.layout import Tensors

Function = Any


def _function(function: Callable[..., Any], **arguments: tuple[tuple[int, ...], Any]) -> Function:
    specs = {name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in arguments.items()}
    return tf.function(function).get_concrete_function(**specs)


def _weights(size: NetworkSize) -> dict[str, tuple[tuple[int, ...], Any]]:
    return {
        "output_rows": ((size.words, size.width + 2), tf.float32),
        "kernel_rows": ((3 * size.cells, 2 * size.width + 1), tf.float32),
        "projection": ((size.width, size.cells), tf.float32),
    }


def training_signatures(size: NetworkSize, candidates: int = CANDIDATES) -> Mapping[str, Function]:
    """Return `train`, `train_sampled` and `evaluate` as concrete functions; they hold no weights."""
    rows = ((BATCH, LENGTH), tf.int32)
    row_weights = ((BATCH, LENGTH), tf.float32)
    scalar: tuple[tuple[int, ...], Any] = ((), tf.float32)
    mask = ((LENGTH, size.width, BATCH), tf.float32)
    weights = _weights(size)
    sampled_weights = {name: weights[name] for name in ("kernel_rows", "projection")}
    return {
        "train": _function(
            training_graph.train,
            tokens=rows,
            targets=rows,
            weights=row_weights,
            learning_rate=scalar,
            output_mask=mask,
            **weights,
        ),
        "train_sampled": _function(
            training_graph.train_sampled,
            input_rows=((BATCH * LENGTH, size.width), tf.float32),
            candidate_rows=((candidates, size.width + 2), tf.float32),
            targets=rows,
            weights=row_weights,
            learning_rate=scalar,
            output_mask=mask,
            **sampled_weights,
        ),
        "evaluate": _function(
            inference_graph.evaluate,
            tokens=rows,
            targets=rows,
            weights=row_weights,
            state_h=((size.width, BATCH), tf.float32),
            state_c=((size.cells, BATCH), tf.float32),
            **weights,
        ),
    }


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
