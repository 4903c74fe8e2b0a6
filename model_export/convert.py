"""From the network's size to one `.tflite` with five signatures: the template. Imports TensorFlow when it runs.

The rules:
- only TFLITE_BUILTINS: a device has no Flex;
- weights int8 with one scale a tensor (per-channel scales need FULLY_CONNECTED version 12, which tflite-runtime 2.14
  lacks, and would store the embedding twice);
- the template is always converted with the same synthetic weights, then real ones are patched in exactly as the cloud
  and the phone do it: so the template's hash depends on size and converter only, never on a weight.
"""

import tempfile
from dataclasses import dataclass

import numpy as np

from model_export.flatbuffer import check_rules, weight_places
from model_export.network import CANDIDATES, NetworkSize
from model_export.quiet import quiet
from wire_contract.layout import Tensors
from wire_contract.manifest import TensorEntry

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


def convert(size: NetworkSize, candidates: int = CANDIDATES) -> Template:
    """Return the template of this size. Raises `ConversionError` or `flatbuffer.UnexpectedFile`."""
    with quiet():
        data = _converted(size, candidates)
    check_rules(data)
    return Template(data, weight_places(data, size))


def _converted(size: NetworkSize, candidates: int) -> bytes:
    import tensorflow as tf

    from model_export.signatures import suggestion_signatures, training_signatures

    functions = {**suggestion_signatures(template_tensors(size)), **training_signatures(size, candidates)}
    with tempfile.TemporaryDirectory(prefix="model-export-") as folder:
        tf.saved_model.save(tf.Module(), folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        try:
            return bytes(converter.convert())
        except Exception as e:
            # The converter raises its own classes and plain ones alike.
            raise ConversionError(f"the TensorFlow Lite converter failed: {str(e).strip().splitlines()[-1]}") from e
