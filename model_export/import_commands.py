"""The parser of `model-export import`; what it runs is imported when it runs."""

import argparse

from cli_contract.parser import Parser, add_command
from cli_contract.result import Result


def add_import_command(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Register `model-export import`."""
    parser = add_command(commands, "import", "take over weights of the keyboard's network from another framework", _run)
    parser.add_argument("source", metavar="SOURCE", help=".keras, .weights.h5, .npz, .safetensors, .pt or .pth (a "
                        "state dict), or a SavedModel's folder")  # fmt: skip
    parser.add_argument("--map", metavar="FILE", help="TOML: which array is which tensor (default: our own names)")
    parser.add_argument("--vocabulary", metavar="FILE", help="one word a line, in the order of the embedding's rows")
    parser.add_argument("--check", metavar="NPZ", help="tokens and logits that the source gave; compared within 1e-4")
    parser.add_argument("--signature", default="serving_default", metavar="NAME",
                        help="of a SavedModel, which is run and compared (default: serving_default)")  # fmt: skip
    for name in ("words", "width", "cells"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"refuse another number of {name}")
    parser.add_argument("--output", metavar="DIR",
                        help="new folder for imported.npz, vocabulary.txt and provenance.json")  # fmt: skip
    parser.add_argument("--list", action="store_true", dest="list_arrays", help="only name the source's arrays")


def _run(arguments: argparse.Namespace) -> Result:
    from model_export.importing.command import run

    return run(arguments)
