"""Reading a `.keras` file that somebody else may have made: no code in it is run; what it asks for is said plainly."""

import json
import zipfile
from pathlib import Path
from typing import Any

import keras

from model_export.broken_archive import BROKEN_ARCHIVE
from model_export.keras_graph.refusal import Refusal, Refused

MAX_MODEL_FILE_BYTES = 1 << 30
MAX_CONFIG_BYTES = 1 << 26
# What Keras itself writes; anything else is not read.
_ENTRIES = ("config.json", "metadata.json", "model.weights.h5")


def load_keras(path: Path) -> Any | Refused:
    """Return the Keras model in a `.keras` file, or why it is not read. Raises `FileNotFoundError`, `OSError`.

    Keras's safe mode stays on: a Lambda layer holds Python code, which is never run. Names of custom classes are not
    imported.
    """
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    if path.is_dir():
        return _refused(path, "is a folder", "save the model with model.save('NAME.keras')")
    found = _config_of(path)
    if isinstance(found, Refused):
        return found
    refusals = [*_code_in(found)]
    if refusals:
        return Refused(tuple(dict.fromkeys(refusals)))
    from tensorflow.errors import OpError

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except OpError as e:
        # The configuration's sizes are believed before the weights are read.
        said = " ".join(str(e.message).split())[-120:]
        return _refused(path, f"asks for tensors that cannot be made: {said}", "train a smaller model")
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, OSError, RuntimeError, MemoryError,
            ArithmeticError) as e:  # fmt: skip
        # Keras raises what the broken part happens to meet.
        said = " ".join(str(e).split())[:200] or type(e).__name__
        return _refused(path, f"cannot be read by Keras {keras.__version__}: {said}", "save it again with model.save")


def _refused(path: Path, reason: str, change: str) -> Refused:
    return Refused((Refusal(path.name, "file", reason, change),))


def _config_of(path: Path) -> dict[str, Any] | Refused:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if "config.json" not in sizes or "model.weights.h5" not in sizes:
                return _refused(
                    path, f"holds {', '.join(_ENTRIES)}, got {sorted(sizes)[:5]}", "save it with model.save"
                )
            if sum(sizes.values()) > MAX_MODEL_FILE_BYTES or sizes["config.json"] > MAX_CONFIG_BYTES:
                return _refused(path, f"unpacks to more than {MAX_MODEL_FILE_BYTES} bytes", "train a smaller model")
            config = json.loads(archive.read("config.json"))
    except (*BROKEN_ARCHIVE, OSError) as e:
        return _refused(path, f"is no .keras file: {type(e).__name__}", "save the model with model.save('NAME.keras')")
    return config if isinstance(config, dict) else _refused(path, "has no configuration", "save it with model.save")


def _code_in(config: Any) -> "list[Refusal]":
    """Return a refusal for each part that holds code or names a class that is not Keras's own."""
    if isinstance(config, list):
        return [refusal for item in config for refusal in _code_in(item)]
    if not isinstance(config, dict):
        return []
    found: list[Refusal] = []
    kind, module = config.get("class_name"), config.get("module")
    inner = config.get("config")
    name = str(inner.get("name", kind)) if isinstance(inner, dict) else str(kind)
    if kind in ("Lambda", "__lambda__"):
        change = "write it with keras.ops, or with layers of the table"
        return [Refusal(name, "Lambda", "holds Python code, which is not run", change)]
    named = module is not None or config.get("registered_name") is not None
    if kind is not None and "config" in config and named and not _of_keras(module):
        change = "replace it by layers of Keras, or by a functional model of them"
        return [Refusal(name, str(kind), "is a class of your own, which a device cannot have", change)]
    for value in config.values():
        found += _code_in(value)
    return found


def _of_keras(module: Any) -> bool:
    return isinstance(module, str) and (module in ("keras", "builtins") or module.startswith("keras."))
