"""A SavedModel's variables by name, and its own answers to sample tokens. Imports TensorFlow when it runs.

A SavedModel is a program: `answers` runs its signature, so import only what you would run. Its variables are read
without running it.
"""

from pathlib import Path

import numpy as np

from model_export.importing.array_files import Arrays
from model_export.importing.logit_check import Answers, answers_of, sample_tokens
from model_export.importing.refusal import MAX_ARRAYS, BadImport
from model_export.quiet import quiet
from wire_contract.manifest import MAX_PARAMETERS

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def is_saved_model(path: Path) -> bool:
    """Whether this folder is a SavedModel's."""
    return (path / "saved_model.pb").is_file()


def read_saved_model(path: Path) -> Arrays:
    """Return the variables by their place in the object graph (`cell/kernel`). Raises `BadImport`."""
    arrays: Arrays = {}
    try:
        with quiet():
            import tensorflow as tf

            reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
            shapes = reader.get_variable_to_shape_map()
            if len(shapes) > MAX_ARRAYS or sum(int(np.prod(shape)) for shape in shapes.values()) > MAX_PARAMETERS:
                raise BadImport(
                    f"{path.name}: a SavedModel has at most {MAX_PARAMETERS} values in {MAX_ARRAYS} variables"
                )
            for name in shapes:
                if name.endswith(_SUFFIX):
                    arrays[name.removesuffix(_SUFFIX)] = np.asarray(reader.get_tensor(name))
    except (OSError, ValueError, LookupError, RuntimeError, tf.errors.OpError) as e:
        raise BadImport(f"{path.name}: the variables cannot be read: {_last(e)}") from e
    return arrays


def saved_model_answers(path: Path, signature: str, words: int) -> Answers:
    """Run the signature on sample tokens and return what it gave. Raises `BadImport`."""
    try:
        with quiet():
            import tensorflow as tf

            loaded = tf.saved_model.load(str(path))
            if signature not in loaded.signatures:
                raise BadImport(f"{path.name} has the signatures {sorted(loaded.signatures)}, got {signature!r}")
            function = loaded.signatures[signature]
            inputs = function.structured_input_signature[1]
            if len(inputs) != 1:
                raise BadImport(f"{signature} takes token ids alone, got the arguments {sorted(inputs)}")
            ((argument, spec),) = inputs.items()
            if not spec.dtype.is_integer or spec.shape.rank != 2:
                raise BadImport(f"{signature} takes integers [rows, length], got {spec.dtype.name} {spec.shape}")
            tokens = sample_tokens(words)
            rows, length = (n or given for n, given in zip(spec.shape, tokens.shape, strict=True))
            tokens = np.resize(tokens, (rows, length))
            outputs = function(**{argument: tf.constant(tokens, spec.dtype)})
            if len(outputs) != 1:
                raise BadImport(f"{signature} gives logits alone, got {sorted(outputs)}")
            (logits,) = (np.asarray(value) for value in outputs.values())
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, tf.errors.OpError) as e:
        raise BadImport(f"{path.name}: {signature} cannot be run: {_last(e)}") from e
    return answers_of({"tokens": tokens, "logits": logits}, words)


def _last(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
