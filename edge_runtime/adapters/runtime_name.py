"""The names of the three engines, and which of them is here, found without loading any."""

import importlib.util
import sys
from pathlib import Path
from typing import Literal

RuntimeName = Literal["auto", "litert", "tflite", "numpy"]
MODULES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}


def runtime_name(wanted: RuntimeName) -> str:
    """Return which engine and version would be loaded, found without loading it: `litert 2.3.0`, or `none`.

    The order of `auto` is `runtime_choice`'s.
    """
    for short in ("litert", "tflite", "numpy") if wanted == "auto" else (wanted,):
        module = MODULES.get(short, short)
        if importlib.util.find_spec(module) is not None:
            return f"{short} {_version_of(module)}".strip()
    return "none"


def _version_of(module: str) -> str:
    """Return the version in the name of the package's metadata folder, or "".

    `importlib.metadata` says the same and brings a mail parser with it, 2 MB in an idle agent.
    """
    for folder in map(Path, sys.path):
        for found in folder.glob(f"{module}-*.dist-info"):
            return found.name.removeprefix(f"{module}-").removesuffix(".dist-info")
    return ""
