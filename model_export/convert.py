"""From the network's size to one `.tflite` with all its signatures: the template. Imports TensorFlow when it runs.

The rules:
- only TFLITE_BUILTINS: a device has no Flex;
- weights int8 with one scale a tensor (per-channel scales need FULLY_CONNECTED version 12, which tflite-runtime 2.14
  lacks, and would store the embedding twice), or all of them float16;
- what the converter writes and no interpreter reads goes (`slimming`);
- the template is always converted with the same synthetic weights, then real ones are patched in exactly as the cloud
  and the phone do it: so the template's hash depends on size and converter only, never on a weight.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model_export.flatbuffer import SUGGEST_SIGNATURES, check_rules, weight_places
from model_export.halving import halve
from model_export.network import CANDIDATES, FAMILIES, NetworkSize
from model_export.quiet import quiet
from model_export.slimming import slim
from wire_contract.layout import Tensors
from wire_contract.manifest import TensorEntry

Weights = Literal["int8", "float16"]
TEMPLATE_SEED = 1


class ConversionError(Exception):
    """The converter refused the graphs; the message holds its last words."""


@dataclass(frozen=True, slots=True)
class Template:
    """The file's bytes and where its weights stand."""

    data: bytes
    tensors: tuple[TensorEntry, ...]


def template_tensors(size: NetworkSize) -> Tensors:
    """Return the weights that every template is converted with; the largest magnitude of a tensor is below 1."""
    rng = np.random.Generator(np.random.PCG64(TEMPLATE_SEED))
    return {name: rng.uniform(-0.9, 0.9, shape).astype(np.float32) for name, shape in size.tensor_shapes.items()}


def convert(
    size: NetworkSize,
    candidates: int = CANDIDATES,
    variants: Sequence[tuple[int, int]] = (),
    weights: Weights = "int8",
    families: Sequence[str] = FAMILIES,
) -> Template:
    """Return the template of this size: use `network.signature_specs` with the same arguments for its shapes.

    variants: further (batch, length) of the train signatures. weights: how the suggest graphs hold them; `float16` is
    for networks that lose too much in int8. families: which signatures; a suggestion is among them, for in its graph
    stand the weights. Raises `ConversionError`, `flatbuffer.UnexpectedFile`, or `ValueError` for arguments that name
    nothing.
    """
    with quiet():
        data = converted(size, candidates, variants, weights, families)
    return as_template(data, size)


def as_template(data: bytes, size: NetworkSize) -> Template:
    """Return a converted file slimmed, checked, and with the places of its weights. Raises `UnexpectedFile`."""
    slimmed = slim(data)
    check_rules(slimmed)
    return Template(slimmed, weight_places(slimmed, size))


def converted(
    size: NetworkSize,
    candidates: int = CANDIDATES,
    variants: Sequence[tuple[int, int]] = (),
    weights: Weights = "int8",
    families: Sequence[str] = FAMILIES,
) -> bytes:
    """Return what the converter makes, as it makes it; arguments and errors as `convert`."""
    if weights not in ("int8", "float16"):
        raise ValueError(f"weights are int8 or float16, got {weights!r}")
    import tensorflow as tf

    from model_export.signatures import suggestion_signatures, training_signatures

    suggestions = suggestion_signatures(template_tensors(size))
    functions = {
        **{name: function for name, function in suggestions.items() if name in families},
        **training_signatures(size, candidates, variants, families),
    }
    with tempfile.TemporaryDirectory(prefix="model-export-") as folder:
        tf.saved_model.save(tf.Module(), folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.optimizations = [tf.lite.Optimize.DEFAULT] if weights == "int8" else []
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        try:
            data = bytes(converter.convert())
        except Exception as e:
            # The converter raises its own classes and plain ones alike.
            raise ConversionError(f"the TensorFlow Lite converter failed: {str(e).strip().splitlines()[-1]}") from e
    return halve(data, SUGGEST_SIGNATURES) if weights == "float16" else data
